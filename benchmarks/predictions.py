"""Compare predictions with the measured time, memory and disk of each stage.

The first command runs `make rehearse` with two numbers of cells, and compares the estimates of the smaller run with the
costs of the larger one. The second command compares the predictions of `make check` for a data set with the costs of
its stages, which run in ``results/timing-<file>``. This folder is removed first. Run them on a quiet machine:

    python benchmarks/predictions.py MAX_CELLS=1000 --rehearse 20000 50000
    python benchmarks/predictions.py DATA=data/kang2018.h5ad MIN_CELLS=600 K=20 MAX_CELLS=3000

The table is ``results/predictions.csv``: its earlier rows of the same variables are replaced.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from measure import RESULTS, machine

from aenmf_lib.workflow import check, costs, parameters, rehearsal

_DONE = re.compile(r"^(\w+): done in (\d+) s, peak memory ([0-9.]+) GiB", re.M)
_OF_MAKE = ("DATASET", "EXECUTOR", "MODELS", "PYTHON", "QUICK")  # variables that no notebook reads
_MODELS = {"Base_NMF": "base_nmf", "AE_NMF": "ae_nmf", "CAE_NMF1": "cae_nmf1", "CAE_NMF2": "cae_nmf2"}


def make(*words: str) -> tuple[str, float, float]:
    """Run make, and return its output, the seconds, and the peak memory of its largest process in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(["make", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        sys.stderr.write(line)
        lines.append(line)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"make {' '.join(words)} failed. The stages that ended are not recorded.")
    return "".join(lines), time.perf_counter() - start, usage.ru_maxrss * 1024.0


def compare(variables: dict[str, str], goals: list[str]) -> pd.DataFrame:
    """Predict the stages, run them, and return one row per stage that ran."""
    data = variables["DATA"]
    variables = variables | {"DATASET": f"timing-{Path(data).stem}", "EXECUTOR": "local"}
    settings = [(name.lower(), text) for name, text in variables.items() if name not in _OF_MAKE]
    quick, models = variables.get("QUICK") == "true", variables.get("MODELS", "").split() or list(costs.STAGES)
    values = parameters.resolve(sorted(Path("notebooks").glob("0*.py")), None, settings, quick=quick)
    report = check.examine(values, models=models, variables=variables)
    if report.errors:
        sys.exit("\n".join(f"error: {text}" for text in report.errors))
    words = [f"{name}={text}" for name, text in variables.items()]
    make("clean", *words)
    rows = []
    for goal in goals:
        log, seconds, memory = make(goal, *words)
        if goal == "check":
            rows.append({"stage": "check", "seconds": seconds, "gb": memory / 1e9})
        rows += [
            {"stage": stage, "seconds": float(s), "gb": float(gib) * 2**30 / 1e9}
            for stage, s, gib in _DONE.findall(log)
        ]
    folder, k = Path("results") / (variables["DATASET"] + "-quick" * quick), values["02_train_base_nmf"]["k"]
    written = {costs.FILTER: folder / "filtered.h5ad"}
    written |= {costs.STAGES[name]: folder / f"k{k}" / f"{file}_k{k}.h5ad" for name, file in _MODELS.items()}
    predicted = report.costs[report.costs["part"] == ""].set_index("stage")
    for row in rows:
        if (stage := row["stage"]) in predicted.index:
            own = predicted.loc[stage]
            row |= {"predicted_seconds": own["seconds"], "predicted_gb": own["memory"] / 1e9}
            row |= {"time_ratio": own["seconds"] / row["seconds"], "memory_ratio": own["memory"] / 1e9 / row["gb"]}
            if stage in written and written[stage].exists():
                row |= {"disk_mb": written[stage].stat().st_size / 1e6, "predicted_disk_mb": own["disk"] / 1e6}
    name = " ".join(
        f"{name}={text}" for name, text in variables.items() if name not in ("DATASET", "EXECUTOR", "PYTHON")
    )
    return pd.DataFrame([{"run": name, **row, **machine()} for row in rows])


def compare_rehearsals(variables: dict[str, str], sizes: list[int]) -> pd.DataFrame:
    """Rehearse two numbers of cells. Return one row per stage.

    The larger one is measured, and estimated from the smaller one; `atlas_…` is the estimate from it for the atlas.
    """
    notebooks, plans = sorted(Path("notebooks").glob("[0-9][0-9]_*.py")), []
    for cells in sorted(sizes):
        given = variables | {"CELLS": str(cells), "EXECUTOR": "local"}
        make("rehearse", *(f"{name}={text}" for name, text in given.items()))
        valid = [*given, "K", "MIN_CELLS", "SAMPLE_CELLS", "DATA", "DATASET"]
        plans.append(rehearsal.Rehearsal.from_variables(given, notebooks, valid))
    small, large = plans
    estimated, found = rehearsal.estimate(small, large.shape.cells), rehearsal.estimate(large)
    table = pd.DataFrame({"seconds": found["seconds"], "gb": found["memory"] / 1e9})
    table["predicted_seconds"] = found["predicted_seconds"]
    table["predicted_gb"] = found["predicted_memory"] / 1e9
    table["estimated_seconds"] = estimated["estimated_seconds"]
    table["estimated_gb"] = estimated["estimated_memory"] / 1e9
    table["atlas_seconds"], table["atlas_gb"] = found["estimated_seconds"], found["estimated_memory"] / 1e9
    table["time_ratio"] = table["estimated_seconds"] / table["seconds"]
    table["memory_ratio"] = table["estimated_gb"] / table["gb"]
    words = " ".join(f"{name}={text}" for name, text in variables.items())
    name = f"{words} CELLS={large.shape.cells} from {small.shape.cells}".strip()
    return table.rename_axis("stage").reset_index().assign(run=name, **machine())


def main() -> None:
    """Read the command line, run one data set, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variables", nargs="*", metavar="NAME=VALUE", help="variables of make, such as DATA")
    parser.add_argument("--goals", nargs="+", default=["check", "all"])
    parser.add_argument("--rehearse", nargs=2, type=int, metavar="CELLS", help="run make rehearse with two sizes")
    options, path = parser.parse_args(), RESULTS / "predictions.csv"
    variables = dict(word.split("=", 1) for word in options.variables)
    if options.rehearse:
        new = compare_rehearsals(variables, options.rehearse)
    elif "DATA" in variables:
        new = compare(variables, options.goals)
    else:
        parser.error("pass DATA=cells.h5ad, or --rehearse and two numbers of cells")
    if path.exists():
        old = pd.read_csv(path)
        new = pd.concat([old[~old["run"].isin(new["run"])], new])
    new.to_csv(path, index=False, float_format="%.4g")
    print(new.drop(columns=["run", "machine", "date"]).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
