"""The benchmarks: their tables are those of their csv, and what they measure is there."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))  # its scripts are run from there, and spawned processes look there too

import measure  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402


def test_the_tables_in_the_readme_are_those_of_the_csv():
    text = (FOLDER / "README.md").read_text()
    assert report.filled(text) == text


def takes_memory(mib: int) -> dict:
    with measure.measured() as found:
        np.ones(mib * 2**17)  # and lets it go: the peak is told, not what is left
        time.sleep(0.2)
    return found


def test_peak_memory_and_time_are_those_of_the_block():
    np.ones(200 * 2**17)  # before the block: not counted
    found = takes_memory(100)
    assert found["peak_mib"] == pytest.approx(100, rel=0.1)
    assert 0.2 <= found["seconds"] < 2
    assert found["cpu_seconds"] < found["seconds"]


def test_a_task_that_takes_too_long_is_killed_and_one_that_fails_is_told():
    assert measure.alone(time.sleep, 60, limit=0.5) == {"stop": "killed after 0.5 s"}
    with pytest.raises(RuntimeError, match=r"takes_memory\('x',\) ended with exit code 1"):
        measure.alone(takes_memory, "x")


@pytest.mark.parametrize("solver", ["AE-NMF", "scikit-learn NMF", "MiniBatchNMF", "cNMF's solver", "Adam, 1e-3"])
def test_every_solver_gives_usages_and_programs_that_rebuild_the_cells(planted, solver):
    cells = planted[0]
    H, W, n, _ = peers.SOLVERS[solver](cells, 6, 0)
    assert (H.shape, W.shape) == ((cells.n_obs, 6), (6, cells.n_vars))
    assert n > 0
    assert min(H.min(), W.min()) >= 0
    assert peers.models.relative_error(cells, H, W) < 0.9
