"""Run the demo through a Slurm of two nodes and compare it with what `make all` made here: not a test, some minutes.

    python tests/through_slurm.py

Every table and figure is to have the same bytes, every embedding the same bits. Tells what the machinery costs.
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
SITE = "GPU_PARTITION := gpu\nMEMORY_SHARE := 160\nMOST_CPUS := 2\n"
AFTER = {"01": (), "06_s": ("02", "03", "04", "05"), "06_b": ("06_s",), "07": ("06_b",)}


def run_there(folder: Path, env: dict[str, str]) -> dict[str, list[datetime]]:
    """Copy the project, send it, wait; gives when each job began and ended."""
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
            raise TimeoutError("the jobs take more than half an hour")
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
    """Compare all results; gives how many files are the same."""
    same = 0
    for file in sorted(path for path in HERE.rglob("*") if path.suffix in (".csv", ".pdf", ".png", ".h5ad")):
        other = there / file.relative_to(HERE)
        if file.name.endswith("_scores.csv"):  # kept as they are made: in any order, and on Slurm in eight files
            continue
        if file.suffix == ".h5ad":
            ours, theirs = anndata.read_h5ad(file), anndata.read_h5ad(other)
            for kind in ("obsm", "varm"):
                for name, values in getattr(ours, kind).items():
                    np.testing.assert_array_equal(getattr(theirs, kind)[name], values, err_msg=f"{file}: {name}")
        elif file.read_bytes() != other.read_bytes():
            raise AssertionError(f"{file} and {other} differ")
        same += 1
    return same


def overhead(times: dict, there: Path) -> None:
    """Print what each stage took beside its notebook, from the end of what it waited for."""
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
        print(f"{name:20} waits {waited:3.0f} s, {(end - begin).total_seconds() - own:3.0f} s beside its {own:.0f}")


def main() -> None:
    """Run the command line."""
    state, folder = (Path(tempfile.mkdtemp(prefix=name)) for name in ("slurm", "demo"))
    conf = cluster.start(state)
    try:
        times = run_there(folder, os.environ | {"SLURM_CONF": str(conf)})
        print(f"{compare(folder / 'results/demo')} files are the same through Slurm as here")
        overhead(times, folder / "results/demo")
    finally:
        cluster.stop(state)
        for path in (state, folder):
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
