"""Check a data set and all parameters before anything runs: report the cells, all errors, the cost and the command.

Only metadata, the columns of the labels and a sample of the cells are read, so a check of a million cells takes
seconds. All faults are reported at once.
"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from aenmf_lib.figures.settings import read_settings
from aenmf_lib.metrics import baselines, classifiers
from aenmf_lib.models.aenmf import AENMF
from aenmf_lib.models.base_nmf import BaseNMF
from aenmf_lib.models.conditional import CAENMF1, CAENMF2
from aenmf_lib.models.untied import UntiedAENMF
from aenmf_lib.results import extra
from aenmf_lib.training.second_moment import check_device
from aenmf_lib.workflow import cluster, costs, parameters, report
from aenmf_lib.workflow.cells_check import check_cells
from aenmf_lib.workflow.costs import BENCHMARKS, FIGURES, FILTER, STAGES, Size, Speed
from aenmf_lib.workflow.report import Report

_MODELS = {model.name: model for model in (BaseNMF, AENMF, CAENMF1, CAENMF2, UntiedAENMF)}


def examine(
    values: Mapping[str, Mapping[str, Any]],
    *,
    models: Sequence[str],
    variables: Mapping[str, str],
    slurm: bool = False,
    notebooks: Path = Path("notebooks"),
    folder: Path = Path("results"),
) -> Report:
    """Check the cells and the parameters of all stages. Faults of the user are reported, not raised.

    `values` are those that are set, from `parameters.resolve`; all others have the defaults of the notebook. The
    suggested command repeats `variables`, those on the command line of make. If the stages run on a cluster (`slurm`),
    the GPU and the memory of this machine do not matter. The results will be written into `folder`.
    """
    found, quick = Report(), variables.get("QUICK") == "true"
    defaults = {path.stem: parameters.defaults(path) for path in sorted(notebooks.glob("[0-9][0-9]_*.py"))}
    settings = {name: own | dict(values.get(name, {})) for name, own in defaults.items()}
    _check_models(settings, models, slurm, found)
    _check_benchmarks(settings[BENCHMARKS], found)
    drawn = settings[FIGURES]
    found.attempt(read_settings, drawn["settings"], dropped="SETTINGS")
    found.attempt(read_settings, width=drawn["width"], dropped="WIDTH")
    found.attempt(read_settings, formats=drawn["formats"], dropped="FORMAT")
    size = check_cells(settings, found, may_raise=quick and "MAX_CELLS" not in variables)
    _check_folder(folder, found)
    if size:
        settings[BENCHMARKS] |= found.raised
        if baselines.HARMONY in settings[BENCHMARKS]["baselines"] and size.n_donors < 2:
            text = f"{baselines.HARMONY} corrects for differences between donors, and there is only one donor."
            found.error(f"{text} Remove it from BASELINES.", "BASELINES")
        found.size, found.costs = size, _predict(size, settings, models, found)
    if found.costs is not None:
        _check_resources(found.costs, slurm, folder, found)
    kept = {name: text for name, text in variables.items() if name not in found.dropped}
    found.command = report.command(kept | found.options)
    found.text = report.text(settings[FILTER]["data"], found, quick=quick, slurm=slurm)
    return found


# ---------------------------------------------------------------- parameters
def _check_models(settings: Mapping[str, dict], models: Sequence[str], slurm: bool, found: Report) -> None:
    """Check each parameter of each model, then all together, and look for the device."""
    for name in models:
        if name not in _MODELS:
            found.error(f"There is no model {name!r}. Choose from {', '.join(_MODELS)} (MODELS=…).", "MODELS")
            continue
        values, model = settings[STAGES[name]], _MODELS[name]
        own = {key: value for key, value in values.items() if key in model.__dataclass_fields__}
        if "preset" in own:
            own["preset"] = own["preset"] or None
        before = len(found.errors)
        for key, value in own.items():
            strength = {"strength": own["strength"]} if key in ("gamma", "eta") else {}  # they need strength=0
            found.attempt(model, **strength | {key: value}, dropped=key.upper())
        if len(found.errors) == before:
            found.attempt(model, **own)
        if not slurm and "device" in own:
            found.attempt(check_device, own["device"], dropped="DEVICE")


def _check_benchmarks(values: Mapping[str, Any], found: Report) -> None:
    """Check the parameters that only notebook 06 reads."""
    for name in ("clustering_seeds", "classification_seeds", "unseen_seeds", "resolutions"):
        numbers, least = values[name], "above 0" if name == "resolutions" else "of 0 or more"
        too_small = [n for n in numbers if n < 0 or (name == "resolutions" and n == 0)]
        if not numbers or len(set(numbers)) < len(numbers) or too_small:
            expected = f"Expected at least one number {least}, each only once"
            found.error(f"{name} is {numbers}. {expected}. Correct it in the parameters file.")
    if values["n_jobs"] == 0:
        found.error("n_jobs=0 is not valid. Set the number of workers, or -1 for all cores (N_JOBS=…).", "N_JOBS")
    if values["max_cells"] < 0:
        found.error(
            f"max_cells={values['max_cells']} is negative. Set it to 0 for all cells (MAX_CELLS=0).", "MAX_CELLS"
        )
    found.attempt(
        classifiers.find_classifiers, [classifiers.LOGISTIC, classifiers.KNN, values["forest"]], dropped="FOREST"
    )
    if values["scib"] and not importlib.util.find_spec("scib_metrics"):
        text = "scib=true needs the package scib-metrics. Run `pip install scib-metrics`, or leave out SCIB=true."
        found.error(text, "SCIB")
    found.attempt(extra.check, values["extra"], dropped="EXTRA")
    found.attempt(baselines.check, values["baselines"], [entry.partition("=")[0] for entry in values["extra"]],
                  dropped="BASELINES")  # fmt: skip


# ---------------------------------------------------------------- resources
def _predict(size: Size, settings: Mapping[str, dict], models: Sequence[str], found: Report) -> pd.DataFrame | None:
    """Return the predicted cost of each stage, or None if there is no model to train."""
    known = [name for name in models if name in _MODELS]
    trained = [name for name in known if size.n_donors > 1 or not costs.compares_donors(name, settings)]
    if not trained:
        text = "All models in MODELS compare donors, and there is only one donor. Add Base_NMF or AE_NMF to MODELS."
        found.error(text if known else "There is no model to train. Set MODELS.")
        return None
    speed = Speed.measure()
    table = costs.predict(size, settings, models=trained, speed=speed)
    return cluster.add_cluster(table, size, settings, models=trained, speed=speed)


def _check_resources(table: pd.DataFrame, slurm: bool, folder: Path, found: Report) -> None:
    """Compare the predictions with the memory and the disk of this machine, and with the requests on the cluster."""
    need, free = table["disk"].sum() - report.size_on_disk(folder), report.free_disk(folder)
    if need > free:
        found.error(
            f"The results need {report.bytes_text(need)} of disk space, and {folder}/ has {report.bytes_text(free)} "
            "free. Free some disk space, or make results/ a link to a larger disk."
        )
    whole = table[table["part"] == ""]
    if slurm:
        for row in whole[whole["memory"] > whole["requested_memory"]].itertuples():
            found.warnings.append(
                f"{row.stage} may need {report.bytes_text(row.memory)} of memory; its job requests "
                f"{report.bytes_text(row.requested_memory)}. Raise memory in {cluster.REQUESTS}, or write auto there."
            )
        for row in whole[whole["cluster_seconds"] > whole["requested_seconds"]].itertuples():
            found.warnings.append(
                f"{row.stage} may take {report.time_text(row.cluster_seconds)}; its job requests "
                f"{report.time_text(row.requested_seconds)}. Raise time in {cluster.REQUESTS}, or write auto there."
            )
        return
    total, available = report.memory()
    for row in whole[whole["memory"] > available].itertuples():
        text = f"{row.stage} may need {report.bytes_text(row.memory)} of memory"
        advice = "Use a machine with more memory, SAMPLE_CELLS=100000, or QUICK=true for a first look"
        if row.stage == BENCHMARKS:
            advice += "; N_JOBS=1 needs less"
        if row.memory > 2 * total:
            found.error(f"{text}; this machine has {report.bytes_text(total)}. {advice}.")
        else:
            found.warnings.append(f"{text}; {report.bytes_text(available)} are available. {advice}.")


def _check_folder(folder: Path, found: Report) -> None:
    """Check whether the results can be written."""
    place = report.existing(folder)
    if not os.access(place, os.W_OK | os.X_OK):
        found.error(f"Results cannot be written to {folder}/: permission denied for {place}. Ask its owner.")
