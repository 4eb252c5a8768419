"""Run the demo on a Slurm cluster of two nodes and compare it with the results of `make all` here. Takes minutes.

    python tests/workflow/through_slurm.py

Every table and figure must have the same bytes and every embedding the same bits. Prints the overhead of each stage.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import anndata
import cluster
import numpy as np

ROOT = Path(__file__).parents[2]
HERE = ROOT / "results/demo"
SITE = "GPU_PARTITION := gpu\n"
AFTER = {"01": (), "06_s": ("02", "03", "04", "05"), "06_b": ("06_s",), "10": ("02", "03", "04", "05")}
AFTER["07"] = ("06_b", "10")
COMPARED = {".csv", ".h5ad", ".pdf", ".png", ".svg", ".txt", ".md", ".tex"}  # not notebooks and records of the run


def run_on_cluster(folder: Path, env: dict[str, str]) -> dict[str, list[datetime]]:
    """Copy the project, submit it and wait. Return when the jobs of each stage began and ended."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in [*listed.stdout.split("\n")[:-1], "data/demo.h5ad"]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "slurm/cluster.mk").write_text(SITE)
    python = f"PYTHON={sys.executable}"
    subprocess.run(["make", "all", python], cwd=folder, env=env, check=True)
    began, times = time.monotonic(), {}
    while subprocess.run(["squeue", "-h"], env=env, capture_output=True, text=True, check=True).stdout.strip():
        if time.monotonic() - began > 1800:
            raise TimeoutError("The jobs took more than 30 minutes.")
        time.sleep(1)
    shown = subprocess.run(["scontrol", "-o", "show", "job"], env=env, capture_output=True, text=True, check=True)
    for line in shown.stdout.splitlines():
        name = re.search(r"JobName=\S*?:?(\d\d_\w+) ", line)[1]
        times.setdefault(name, []).append([
            datetime.fromisoformat(re.search(rf" {what}=(\S+)", line)[1]) for what in ("StartTime", "EndTime")
        ])  # fmt: skip
    subprocess.run(["make", "status", python], cwd=folder, env=env, check=True)
    return times


def compare(there: Path) -> int:
    """Compare all results and return the number of equal files."""
    same = 0
    for file in sorted(path for path in HERE.rglob("*") if path.suffix in COMPARED):
        other = there / file.relative_to(HERE)
        if file.name.endswith("_scores.csv"):  # a cache: in any order, and with Slurm in one file per job
            continue
        if file.name == "check.txt" or "report" in file.parts:  # of this machine; not part of `make all`
            continue
        if not other.is_file():
            raise AssertionError(f"{file} was not made with Slurm. Remove {HERE}, and type `make all` before this.")
        if file.suffix == ".h5ad":
            ours, theirs = anndata.read_h5ad(file), anndata.read_h5ad(other)
            for kind in ("obsm", "varm"):
                for name, values in getattr(ours, kind).items():
                    np.testing.assert_array_equal(getattr(theirs, kind)[name], values, err_msg=f"{file}: {name}")
        elif file.read_bytes() != other.read_bytes():
            raise AssertionError(f"{file} and {other} differ")
        same += 1
    return same


def print_overhead(times: dict, there: Path) -> None:
    """Print for each stage the time from the end of the stages it needs, and the time outside its notebook."""
    for name, jobs in sorted(times.items()):
        if name == "06_scores":
            continue
        needs = next((of for stage, of in AFTER.items() if name.startswith(stage)), ("01",))
        ready = [end for other, pairs in times.items() if other.startswith(needs or "none") for _, end in pairs]
        own = sum(
            float(seconds)
            for log in there.rglob(f"{name}.log")
            for seconds in re.findall(r": done in (\d+) s", log.read_text())
        )
        begin, end = jobs[0]
        waited = (begin - max(ready)).total_seconds() if ready else 0.0
        overhead = (end - begin).total_seconds() - own
        print(f"{name:20} waited {waited:3.0f} s, overhead {overhead:3.0f} s, notebook {own:.0f} s")


def main() -> None:
    """Run the command line."""
    state, folder = (Path(tempfile.mkdtemp(prefix=name)) for name in ("slurm", "demo"))
    conf = cluster.start(state)
    try:
        times = run_on_cluster(folder, os.environ | {"SLURM_CONF": str(conf)})
        print(f"{compare(folder / 'results/demo')} files are equal with Slurm and here")
        print_overhead(times, folder / "results/demo")
    finally:
        cluster.stop(state)
        for path in (state, folder):
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
