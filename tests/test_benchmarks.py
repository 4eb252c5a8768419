"""The benchmarks: the tables of the README match the CSV files, and the measurements of time, memory and solvers."""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))  # the scripts import each other from there, also in spawned processes

import measure  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import roofline  # noqa: E402
import scoring  # noqa: E402
import scoring_atlas  # noqa: E402

from aenmf_lib.models.base import relative_error  # noqa: E402
from aenmf_lib.results import Embeddings, RunInfo  # noqa: E402


def test_tables_in_the_readme_match_the_csv_files():
    text = (FOLDER / "README.md").read_text()
    assert report.fill(text) == text


def allocate(mib: int) -> dict:
    with measure.measured() as found:
        np.ones(mib * 2**17)  # freed at once: the peak is measured, not what is left
        time.sleep(0.2)
    return found


def test_measured_reports_peak_memory_and_time_of_the_block():
    np.ones(200 * 2**17)  # before the block: not counted
    found = allocate(100)
    assert found["peak_mib"] == pytest.approx(100, rel=0.1)
    assert 0.2 <= found["seconds"] < 2
    assert found["cpu_seconds"] < found["seconds"]


def test_task_that_takes_too_long_is_killed_and_task_that_fails_raises():
    assert measure.run_in_process(time.sleep, 60, limit=0.5) == {"stop": "killed after 0.5 s"}
    with pytest.raises(RuntimeError, match=r"allocate\('x',\) ended with exit code 1"):
        measure.run_in_process(allocate, "x")


@pytest.mark.parametrize("solver", ["AE-NMF", "scikit-learn NMF", "MiniBatchNMF", "cNMF's solver", "Adam, 1e-3"])
def test_every_solver_returns_usages_and_programs_that_reconstruct_the_cells(planted, solver):
    cells = planted[0]
    H, W, n_iter, _ = peers.SOLVERS[solver](cells, 6, 0)
    assert (H.shape, W.shape) == ((cells.n_obs, 6), (6, cells.n_vars))
    assert n_iter > 0
    assert min(H.min(), W.min()) >= 0
    assert relative_error(cells, H, W) < 0.9


def test_roofline_forms_the_second_moment_of_its_cells():
    moments, formed = roofline.form_moments(2 * roofline.BLOCK, 50, 0.2, "cpu")
    X = roofline.simulated(roofline.BLOCK, 50, 0.2, 0)
    assert (moments.n_cells, formed["cells"]) == (2 * roofline.BLOCK, 2 * roofline.BLOCK)
    S = 3 * (X.T.astype(np.float64) @ X).toarray()  # one block more, added before the clock starts
    np.testing.assert_allclose(moments.product(moments._tensor(np.eye(50))).numpy(), S, rtol=1e-4)


@pytest.mark.parametrize("part", [scoring.CLUSTERING, "knn"])
def test_direct_calls_give_the_scores_of_the_project(part):
    H, types = scoring_atlas.simulate(400, 5)
    donors = np.random.default_rng(0).choice(["d1", "d2", "d3"], 400)
    obs = pd.DataFrame({"cell_type": (types % 3).astype(str), "donor_id": donors}, dtype="category")
    embeddings = Embeddings({"AE_NMF": H}, obs, RunInfo(5, 400))
    found, expected = (way(embeddings, part, 0, [42]) for way in (scoring.score, scoring.score_directly))
    np.testing.assert_allclose(found, expected, atol=1e-3)
