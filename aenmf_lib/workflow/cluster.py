"""The memory and time that a job of each stage requests on a cluster (``slurm/stages.tsv``), and its predicted cost."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aenmf_lib.data.files import open_cells
from aenmf_lib.data.labels import CELL_TYPE, DONOR
from aenmf_lib.workflow import metadata
from aenmf_lib.workflow.costs import BENCHMARKS, CLASSIFICATION, STAGES, Size, Speed, compares_donors, predict

REQUESTS = Path("slurm/stages.tsv")
SCORES = "06_scores"  # the classification, in one job per model, label and seed
AUTO, TRAINING = "auto", "training"  # instead of a number: the prediction of the stage, or the largest of training
_MEMORY_FACTOR, _MORE_MEMORY = 1.5, 2e9
_TIME_FACTOR, _MORE_TIME, _STEP = 4, 1800, 600  # seconds; rounded up to ten minutes
_UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}


def read_requests(path: Path = REQUESTS) -> pd.DataFrame:
    """Return the table of requests by stage: ``gpus, cpus, memory, time, width``. It is empty if there is no file.

    `memory` (bytes) and `time` (seconds) are numbers or one of the words `AUTO` and `TRAINING`.
    """
    names = ["stage", "gpus", "cpus", "memory", "time", "width"]
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    for row in rows:
        if len(row) != len(names):
            found = f"{chr(9).join(row)!r} has {len(row)} columns"
            raise ValueError(f"{path}: {found}. Expected {len(names)}: {', '.join(names)}, separated by tabs.")
    table = pd.DataFrame(rows, columns=names).set_index("stage")
    for name, read in (("memory", _bytes), ("time", _seconds)):
        table[name] = [text if text in (AUTO, TRAINING) else read(text, f"{path}, {stage}")
                       for stage, text in table[name].items()]  # fmt: skip
    for name in ("gpus", "cpus", "width"):
        if wrong := {stage: text for stage, text in table[name].items() if not text.isdecimal()}:
            stage, text = next(iter(wrong.items()))
            raise ValueError(f"{path}, {stage}: {name} is {text!r}. Expected a whole number, such as 4.")
        table[name] = table[name].astype(int)
    return table


def _bytes(text: str, where: str) -> int:
    """Return a size such as 64G in bytes, with the units of Slurm."""
    if not text[:-1].isdigit() or text[-1] not in _UNITS:
        raise ValueError(f"{where}: memory is {text!r}. Expected {AUTO}, {TRAINING}, or a size such as 64G or 800M.")
    return int(text[:-1]) * _UNITS[text[-1]]


def _seconds(text: str, where: str) -> int:
    """Return a time such as 12:00:00 or 2-00:00:00 in seconds."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    total = 60 * (60 * (24 * days + hours) + minutes) + seconds
    if not total:
        expected = f"Expected {AUTO}, {TRAINING}, or a time such as 12:00:00 or 2-00:00:00"
        raise ValueError(f"{where}: time is {text!r}. {expected}.")
    return total


def measured_size(filtered: Path, k: int) -> Size:
    """Read the sizes of filtered cells from their file."""
    with open_cells(filtered) as file:
        obs = metadata.read_obs(file, [DONOR, CELL_TYPE], [DONOR, CELL_TYPE])
        n_genes = len(metadata.read_var(file, "X"))
        contents = metadata.measure(file, {"where": "X", "n_cells": len(obs), "n_genes": n_genes}, k)
        names = metadata.bytes_per_cell(file)
    return Size(len(obs), n_genes, contents.nnz, obs[DONOR].nunique(), obs[CELL_TYPE].nunique(), k, names=names)


def requests(
    size: Size | None,
    values: Mapping[str, Mapping[str, Any]],
    *,
    models: Collection[str],
    speed: Speed | None = None,
    path: Path = REQUESTS,
) -> pd.DataFrame:
    """Return the request of one job of each stage, in one row per stage.

    `size` is None for goals that read no data set. The result then has no row for stages whose memory or time the
    table of requests (`path`) does not give as a number. `values` are those of all parameters, by notebook, and
    `models` are those that are trained.

    ``gpus, cpus, width, memory`` (bytes) and ``seconds`` are requested. ``predicted_memory`` and ``predicted_seconds``
    are the prediction without a margin, or NaN if there is none. ``source`` names the requests that are
    numbers of the table, and is empty if all are predictions.
    """
    table, rows = read_requests(path), {}
    trained = [m for m in models if size and (size.n_donors > 1 or not compares_donors(m, values))]
    speed = speed or Speed()
    predicted = {
        cpus: _by_stage(size, values, trained, replace(speed, cores=cpus)) if trained else {}
        for cpus in set(table["cpus"])
    }
    for stage, row in table.iterrows():
        of_stage = predicted[row.cpus]
        training = np.max([of_stage[STAGES[m]] for m in trained], axis=0) if trained else (np.nan, np.nan)
        own = of_stage.get(stage, (np.nan, np.nan))
        computed = {AUTO: own, TRAINING: training}
        memory, seconds = row.memory, row.time
        if memory in computed:
            memory = -(-(_MEMORY_FACTOR * computed[memory][0] + _MORE_MEMORY) // 2**30) * 2**30
        if seconds in computed:
            seconds = -(-(_TIME_FACTOR * computed[seconds][1] + _MORE_TIME) // _STEP) * _STEP
        if np.isnan(memory) or np.isnan(seconds):
            if trained and stage not in STAGES.values():
                found = f"there is no prediction for this stage, so {AUTO} is not possible"
                raise ValueError(f"{path}, {stage}: {found}. Expected numbers for memory and time. Write them there.")
            continue
        given = [name for name in ("memory", "time") if row[name] not in computed]
        device = values.get(stage, {}).get("device", values.get(STAGES["AE_NMF"], {}).get("device", "cpu"))
        rows[stage] = {
            "gpus": int(row.gpus) if str(device).startswith("cuda") else 0,
            "cpus": int(row.cpus),
            "width": int(row.width),
            "memory": int(memory),
            "seconds": int(seconds),
            "predicted_memory": own[0],
            "predicted_seconds": own[1],
            "source": f"{' and '.join(given)} from {path}" if given else "",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _by_stage(
    size: Size, values: Mapping[str, Mapping[str, Any]], models: Collection[str], speed: Speed
) -> dict[str, tuple[float, float]]:
    """Return the predicted memory (bytes) and time (seconds) of one job of each stage.

    A job of the classification is predicted as one model and one seed with both labels, which is an upper bound. The
    job of 06 waits for these jobs, so its time does not include the classification, except on a GPU: there 06 computes
    all classifiers but the forests.
    """
    table = predict(size, values, models=models, speed=speed)
    whole = table[table["part"] == ""].set_index("stage")
    found = {stage: (row.memory, row.seconds) for stage, row in whole.iterrows()}
    if not str(values.get(BENCHMARKS, {}).get("device", "cpu")).startswith("cuda"):
        scores = table[table["part"] == CLASSIFICATION].iloc[0]
        found[BENCHMARKS] = found[BENCHMARKS][0], found[BENCHMARKS][1] - scores.seconds
    one = {BENCHMARKS: {**values.get(BENCHMARKS, {}), "classification_seeds": [0], "unseen_seeds": []}}
    alone = predict(size, {**values, **one}, models=list(models)[:1], speed=speed)
    job = alone[alone["part"] == CLASSIFICATION].iloc[0]
    return found | {SCORES: (job.memory, job.seconds)}


def add_cluster(
    table: pd.DataFrame, size: Size, values: Mapping[str, Mapping[str, Any]], *, models: Collection[str], speed: Speed
) -> pd.DataFrame:
    """Return the table of `costs.predict` with the cost of each stage on a cluster and the request of its job.

    The new columns are ``cluster_seconds, cluster_memory, requested_memory, requested_seconds``, NaN if nothing is
    requested. A core of the cluster is assumed to be as fast as a core here. The classification has its own row.
    """
    names = {"predicted_seconds": "cluster_seconds", "predicted_memory": "cluster_memory",
             "memory": "requested_memory", "seconds": "requested_seconds"}  # fmt: skip
    asked = requests(size, values, models=models, speed=speed).reindex(columns=["width", *names])
    if SCORES in asked.index:
        of = values.get(BENCHMARKS, {})
        n_jobs = len(models) * (2 * len(of.get("classification_seeds", [0])) + len(of.get("unseen_seeds", [0])))
        asked.loc[SCORES, "predicted_seconds"] *= -(-n_jobs // asked.loc[SCORES, "width"])
    jobs = table["stage"].where(table["part"] == "", table["part"].map({CLASSIFICATION: SCORES}))
    of_jobs = asked[[*names]].rename(columns=names).astype(float).reindex(jobs)
    return table.join(of_jobs.set_axis(table.index))
