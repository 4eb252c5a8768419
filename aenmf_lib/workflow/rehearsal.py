"""Rehearsal: run all stages on simulated cells with the shape of the atlas, and estimate the cost for the atlas."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from aenmf_lib.data.stand_in import StandIn
from aenmf_lib.results.schema import PUBLISHED
from aenmf_lib.workflow import cluster, costs, executed, parameters, report
from aenmf_lib.workflow.costs import BENCHMARKS, CLASSIFICATION, Size, Speed

log = logging.getLogger(__name__)

ATLAS_CELLS = 592_317  # of Tabula Sapiens Immune, as in the paper; its other sizes are the defaults of `StandIn`
_MIN_CELLS = 5000  # per donor, in the paper; a rehearsal uses the same share of its cells
_K = "80"
_OWN = ("CELLS", "DATA", "DATASET")  # variables that a rehearsal sets itself
_OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")


class RehearsalError(ValueError):
    """A rehearsal cannot run. The message is for the user."""


@dataclass(frozen=True)
class Rehearsal:
    """What one call of ``make rehearse`` runs.

    Attributes
    ----------
    shape : numbers of the simulated cells, genes, types and donors
    variables : variables of ``make all`` and their values
    settings : notebook -> parameter -> value, for all stages
    models : names of the models that are trained
    """

    shape: StandIn
    variables: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]
    models: Sequence[str]

    @classmethod
    def from_variables(cls, typed: Mapping[str, str], notebooks: Sequence[Path], valid: Sequence[str]) -> Rehearsal:
        """Return the rehearsal for the variables on the command line of make. Raises RehearsalError or ParameterError.

        `typed` are these variables, `notebooks` are those of all stages, and `valid` are the names that make knows.
        """
        text = typed.get("CELLS", "")
        if not text.isdecimal() or int(text) < 1000:
            raise RehearsalError(f"CELLS={text!r} is not a whole number of at least 1000. Set it, as in CELLS=100000.")
        if other := [name for name in ("DATA", "DATASET") if name in typed]:
            found = f"make rehearse does not use {other[0]}: it simulates its cells"
            raise RehearsalError(f"{found}. Remove {other[0]}. To run your cells: make all DATA=cells.h5ad.")
        cells = int(text)
        name = f"rehearsal-{cells}"
        usual = {"K": _K, "MIN_CELLS": str(max(round(_MIN_CELLS * cells / ATLAS_CELLS), 10))}
        usual |= {"SAMPLE_CELLS": "0"} if typed.get("QUICK") == "true" else {}  # all cells are rehearsed
        variables = usual | {key: value for key, value in typed.items() if key not in _OWN}
        variables |= {"DATASET": name, "DATA": str(_folder(name, variables) / "stand_in.h5ad")}
        words = [f"{key}={value}" for key, value in variables.items()]
        given = [*parameters.parse_variables(words, valid, notebooks, ["all"]), ("k", variables["K"])]
        params = notebooks[0].parent / "params" / f"{name}.yaml"
        quick = variables.get("QUICK") == "true"
        values = parameters.resolve(notebooks, params if params.is_file() else None, given, quick=quick)
        values = {path.stem: parameters.defaults(path) | values[path.stem] for path in notebooks}
        chosen = variables.get("MODELS", "").lower().replace(",", " ").split() or [*map(str.lower, PUBLISHED)]
        models = [model for model in costs.STAGES if model.lower() in chosen or "all" in chosen]
        return cls(StandIn(cells=cells), variables, values, models)

    @property
    def path(self) -> Path:
        """The file of the simulated cells."""
        return Path(self.variables["DATA"])

    @property
    def run(self) -> Path:
        """The folder of the results."""
        return self.path.parent / f"k{self.variables['K']}"

    @property
    def k(self) -> int:
        """The number of programs."""
        return int(self.variables["K"])


def _folder(name: str, variables: Mapping[str, str]) -> Path:
    """Return the folder of a data set, as the Makefile names it."""
    return Path("results") / (name + "-quick" * (variables.get("QUICK") == "true"))


def rehearse(rehearsal: Rehearsal, make: str, *, slurm: bool = False) -> None:
    """Write the simulated cells, run all stages through make, and print the table.

    On a cluster the stages are jobs. A later call, after they have ended, prints the table. Raises RehearsalError if
    the disk or the memory is too small, or a stage fails.
    """
    check(rehearsal, slurm=slurm)
    if not rehearsal.path.is_file():
        start = time.monotonic()
        rehearsal.shape.write(rehearsal.path)
        log.info("wrote %s in %.0f s", rehearsal.path, time.monotonic() - start)
    words = [f"{name}={text.replace('$', '$$')}" for name, text in rehearsal.variables.items()]
    of_make = {*_OF_MAKE, *_OWN, *rehearsal.variables}  # make exports its variables to its commands
    done = subprocess.run([make, "all", *words], env={k: v for k, v in os.environ.items() if k not in of_make})
    if done.returncode:
        again = shlex.join(["make", "all", *words])
        raise RehearsalError(f"A stage of the rehearsal failed (above). To run only what is missing: {again}")
    if missing := [stage for stage in _stages(rehearsal) if stage not in _measured(rehearsal).index]:
        log.info("Not finished: %s. Run the same command after the jobs to see the table.", ", ".join(missing))
        return
    table = estimate(rehearsal)
    table.to_csv(rehearsal.run / "rehearsal.csv", index_label="stage", float_format="%.4g")
    print(text(table, rehearsal))


def check(rehearsal: Rehearsal, *, slurm: bool = False) -> None:
    """Raise RehearsalError if the disk, or without a cluster the memory, is too small for the rehearsal."""
    shape = rehearsal.shape
    nnz = shape.cells * shape.nonzeros
    size = Size(shape.cells, shape.genes, nnz, shape.donors, shape.types, rehearsal.k, shape.cells, nnz)
    table = _predict(rehearsal, size)
    folder = rehearsal.path.parent
    needed = shape.size() + table["disk"].sum() - report.size_on_disk(folder)
    free = report.free_disk(folder)
    fewer = f"Choose fewer cells (now CELLS={shape.cells})"
    if needed > free:
        found = f"The rehearsal needs {report.bytes_text(needed)} of disk space, and {report.bytes_text(free)} are free"
        raise RehearsalError(f"{found} in {folder}. {fewer}, or replace results/ by a link to a larger disk.")
    largest, (_, available) = table["memory"].idxmax(), report.memory()
    if not slurm and (memory := table["memory"].max()) > available:
        found = f"{largest} may need {report.bytes_text(memory)} of memory, and {report.bytes_text(available)} are free"
        raise RehearsalError(f"{found}. {fewer} or a smaller MAX_CELLS.")


def estimate(rehearsal: Rehearsal, cells: int = ATLAS_CELLS) -> pd.DataFrame:
    """Return the measured and the estimated cost of each stage.

    The estimate for `cells` cells is the prediction of `costs`, times measured / predicted for the rehearsed cells. It
    assumes the numbers of genes, donors and types of the rehearsed cells.

    Returns
    -------
    One row per stage: measured ``seconds, memory, disk`` (bytes), the same columns with the prefix ``predicted_`` for
    the rehearsed cells, and with ``estimated_`` for `cells` cells. A part that separate jobs computed is not measured.
    """
    shape, measured = rehearsal.shape, _measured(rehearsal)
    size = cluster.measured_size(rehearsal.path.with_name("filtered.h5ad"), rehearsal.k)
    size = replace(size, file_cells=shape.cells, file_nnz=shape.cells * shape.nonzeros)
    factor = cells / shape.cells
    scaled = {name: round(factor * getattr(size, name)) for name in ("n_cells", "nnz", "file_cells", "file_nnz")}
    speed = Speed.measure()
    here = _predict(rehearsal, size, speed)
    there = _predict(rehearsal, replace(size, **scaled), speed)
    table = here.add_prefix("predicted_").join(measured)
    for name in ("seconds", "memory", "disk"):
        ratio = (table[name] / here[name]).where(here[name] > 0).fillna(1.0)
        table[f"estimated_{name}"] = there[name] * ratio
    return table[[*measured, *(f"{of}_{name}" for of in ("predicted", "estimated") for name in measured)]]


def text(table: pd.DataFrame, rehearsal: Rehearsal) -> str:
    """Return the table of `estimate` as text."""
    names = ("seconds", "memory", "disk")
    head = f"{'stage':<20}{'time':>9}{'memory':>9}{'disk':>9}   "
    groups = (f"measured, {rehearsal.shape.cells:,} cells", f"estimated, {ATLAS_CELLS:,} cells")
    lines = [f"{'':<20}{groups[0]:>27}   {groups[1]:>27}   {'measured / predicted':>20}", head]
    lines[1] = head + "".join(f"{name:>9}" for name in ("time", "memory", "disk")) + f"{'time':>13}{'memory':>10}"
    whole = pd.DataFrame({"all": table.sum()}).T
    memory = [f"{of}memory" for of in ("", "predicted_", "estimated_")]
    whole[memory] = table[memory].max().to_numpy()
    for stage, row in pd.concat([table, whole]).iterrows():
        cells = [f"{stage:<20}"]
        for prefix in ("", "estimated_"):
            shown = [_shown(name, row[prefix + name]) for name in names]
            cells.append("".join(f"{entry:>9}" for entry in shown) + "   ")
        ratios = (row[name] / row[f"predicted_{name}"] for name in names[:2])
        cells.append("".join(f"{'' if pd.isna(ratio) else format(ratio, '.2f'):>10}" for ratio in ratios))
        lines.append("".join(cells).rstrip())
    given = shlex.join(f"{name}={value}" for name, value in rehearsal.variables.items() if name not in _OWN)
    return "\n".join([
        *lines, "", f"Settings: {given}; {costs.available_cores()} cores. Memory: of the largest process.",
        "The estimate is the prediction of `make check` for the atlas, times measured / predicted for each stage.",
        "Fits to real cells need more iterations than fits to simulated cells. Expect up to twice the time.",
    ])  # fmt: skip


def _shown(name: str, value: float) -> str:
    """Return a number with its unit, or a dash if it was not measured."""
    if pd.isna(value):
        return "-"
    return report.time_text(value) if name == "seconds" else report.bytes_text(value)


def _predict(rehearsal: Rehearsal, size: Size, speed: Speed | None = None) -> pd.DataFrame:
    """Return the predicted ``seconds, memory, disk`` by stage. The classification in separate jobs is a stage."""
    table = costs.predict(size, rehearsal.settings, models=rehearsal.models, speed=speed)
    whole = table[table["part"] == ""].set_index("stage")[["seconds", "memory", "disk"]]
    if any((rehearsal.run / "classification_scores").glob("*.done")):
        scores = table[table["part"] == CLASSIFICATION].iloc[0]
        whole.loc[BENCHMARKS, "seconds"] -= scores["seconds"]
        whole.loc[cluster.SCORES] = scores[["seconds", "memory", "disk"]].astype(float)
    return whole


def _stages(rehearsal: Rehearsal) -> list[str]:
    """Return the names of the notebooks that run."""
    training = [costs.STAGES[model] for model in rehearsal.models]
    return [costs.FILTER, *training, BENCHMARKS, costs.FIGURES, costs.PROGRAMS]


def _measured(rehearsal: Rehearsal) -> pd.DataFrame:
    """Return ``seconds, memory, disk`` by stage, from the executed notebooks. Memory is of the largest process."""
    rows = {
        found.name: {
            "seconds": found.seconds,
            "memory": float(found.info["peak_memory_mib"]) * 2**20,
            "disk": float(sum(file.stat().st_size for file in found.files)),
        }
        for folder in (rehearsal.path.parent, rehearsal.run)
        for found in executed.find(folder)
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["seconds", "memory", "disk"])
