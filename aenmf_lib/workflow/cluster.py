"""What each stage requests on a cluster (``slurm/stages.tsv``), and how long it would take there."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aenmf_lib.workflow.costs import BENCHMARKS, CLASSIFICATION, Size, Speed, predict

REQUESTS = Path("slurm/stages.tsv")
_SCORES = "06_scores"  # the classification runs in jobs of its own: one per model and label
_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def read_requests(path: Path = REQUESTS) -> pd.DataFrame:
    """Return the requests by stage: ``cpus, memory`` (bytes), ``seconds, width``; no rows without the file."""
    if not path.is_file():
        return pd.DataFrame(columns=["cpus", "memory", "seconds", "width"])
    names = ["stage", "kind", "gpus", "cpus", "memory", "time", "width"]
    table = pd.read_csv(path, sep="\t", comment="#", names=names, index_col="stage")
    table["memory"] = [float(text.rstrip("KMGTB")) * _UNITS.get(text.rstrip("B")[-1:], 1e6) for text in table["memory"]]
    days = [text.split("-") if "-" in text else ["0", text] for text in table["time"]]
    table["seconds"] = [86400 * int(day) + pd.Timedelta(clock).total_seconds() for day, clock in days]
    return table[["cpus", "memory", "seconds", "width"]]


def add_cluster(
    table: pd.DataFrame, size: Size, values: Mapping[str, Mapping[str, Any]], *, models: Collection[str], speed: Speed
) -> pd.DataFrame:
    """Return the table of `costs.predict` with the time of each job on a cluster, and what the job requests.

    The new columns are ``cluster_seconds, cluster_memory, requested_memory, requested_seconds``, NaN if nothing is
    requested. One core there is assumed to be as fast as here. The job of 06 waits for the jobs of the classification,
    which have a row of their own.
    """
    requests, new = read_requests(), []
    tables = {n: predict(size, values, models=models, speed=replace(speed, cores=n)) for n in set(requests["cpus"])}
    for i, row in enumerate(table.itertuples()):
        job = _SCORES if row.part == CLASSIFICATION else row.stage
        if job not in requests.index or (row.part and job != _SCORES):
            new.append((np.nan,) * 4)
            continue
        request = requests.loc[job]
        there = tables[request["cpus"]]
        seconds = there["seconds"].iloc[i]
        if job == _SCORES:
            seconds /= min(request["width"], 2 * len(models))
        elif job == BENCHMARKS:
            seconds -= there.loc[there["part"] == CLASSIFICATION, "seconds"].iloc[0]
        new.append((seconds, there["memory"].iloc[i], request["memory"], request["seconds"]))
    names = ["cluster_seconds", "cluster_memory", "requested_memory", "requested_seconds"]
    return table.join(pd.DataFrame(new, columns=names, index=table.index, dtype=float))
