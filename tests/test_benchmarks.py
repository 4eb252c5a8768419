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


@pytest.mark.parametrize(
    "solver", ["AE-NMF", "scikit-learn NMF", "MiniBatchNMF", "cNMF's solver", "RcppML 0.3.7", "Adam, 1e-3"]
)
def test_every_solver_returns_usages_and_programs_that_reconstruct_the_cells(planted, solver):
    if without := peers.missing(solver):
        pytest.skip(without)
    cells = planted[0]
    fit = peers.SOLVERS[solver](cells, 6, 0)
    assert (fit.H.shape, fit.W.shape) == ((cells.n_obs, 6), (6, cells.n_vars))
    assert fit.iterations > 0
    assert min(fit.H.min(), fit.W.min()) >= 0
    assert relative_error(cells, fit.H, fit.W) < 0.9
    if solver in ("scikit-learn NMF", "cNMF's solver", "RcppML 0.3.7"):  # the recorded steps lead to the result
        iterations, seconds, *_ = zip(*fit.steps, strict=True)
        assert list(iterations) == [2**i for i in range(len(iterations))]
        errors = [relative_error(cells, H, W) for _, _, H, W in fit.steps] + [relative_error(cells, fit.H, fit.W)]
        assert errors[0] > errors[-1] == pytest.approx(min(errors), rel=0.01)
        if solver != "RcppML 0.3.7":  # it scales each program, so its error can rise; its steps are runs of their own
            assert errors == sorted(errors, reverse=True)
            assert 0 < seconds[0] and list(seconds) == sorted(seconds)


def test_pca_leaves_the_error_of_a_singular_value_decomposition(planted):
    cells = planted[0].copy()
    fit = peers.pca(cells, 6, 0)
    X = cells.X.toarray().astype(np.float64)
    lost = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)[6:]
    expected = np.linalg.norm(lost) / np.linalg.norm(X)
    assert relative_error(cells, fit.H.astype(np.float64), np.asarray(fit.W, np.float64)) == pytest.approx(
        expected, rel=1e-3
    )


def test_solver_that_is_not_installed_gets_a_row_that_says_so(monkeypatch):
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    found = peers.task("none.h5ad", 0, 4, 0, "RcppML 0.3.7")
    assert found == {"stop": "not run: Rscript or RcppML 0.3.7 is not installed (Debian: r-cran-rcppml)"}


def test_time_to_an_error_is_interpolated_between_the_recorded_steps():
    run = {"solver": "", "seconds": 10.0, "relative_error": 0.5, "curve": "[[1, 2.0, 0.9], [2, 4.0, 0.7]]"}
    cases = {0.9: 2.0, 0.8: 3.0, 0.7: 4.0, 0.6: 7.0, 0.5: 10.0, 0.95: 2.0}
    assert {target: report._seconds_to(target, run) for target in cases} == pytest.approx(cases)
    assert np.isnan(report._seconds_to(0.4, run))
    other = {"seconds": 3.0, "relative_error": 0.6, "curve": float("nan")}
    assert report._seconds_to(0.6, other | {"solver": "AE-NMF"}) == 3.0
    assert np.isnan(report._seconds_to(0.6, other | {"solver": "nmf-torch"}))  # earlier, but nobody knows when


def test_kept_rows_are_those_of_other_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(
        measure, "run_in_process", lambda task, call, row, limit: {"seconds": len(list(tmp_path.iterdir()))}
    )
    rows = [{"solver": "a", "genes": 0}, {"solver": "b", "genes": 0}]
    measure.run_in_turn("t", allocate, rows, runs=2)
    table = measure.run_in_turn("t", allocate, rows[:1], runs=1, keep=True)
    assert table["solver"].tolist() == ["b", "b", "a"]
    assert table["seconds"].tolist()[-1] == 1


def test_roofline_forms_the_second_moment_of_its_cells():
    moments, formed = roofline.form_moments(2 * roofline.BLOCK, 50, 0.2, "cpu")
    X = roofline.simulated(roofline.BLOCK, 50, 0.2, 0)
    assert (moments.n_cells, formed["cells"]) == (2 * roofline.BLOCK, 2 * roofline.BLOCK)
    S = 2 * (X.T.astype(np.float64) @ X).toarray()
    np.testing.assert_allclose(moments.product(moments._tensor(np.eye(50))).numpy(), S, rtol=1e-4)


@pytest.mark.parametrize("part", [scoring.CLUSTERING, "knn"])
def test_direct_calls_give_the_scores_of_the_project(part):
    H, types = scoring_atlas.simulate(400, 5)
    donors = np.random.default_rng(0).choice(["d1", "d2", "d3"], 400)
    obs = pd.DataFrame({"cell_type": (types % 3).astype(str), "donor_id": donors}, dtype="category")
    embeddings = Embeddings({"AE_NMF": H}, obs, RunInfo(5, 400))
    found, expected = (way(embeddings, part, 0, [42]) for way in (scoring.score, scoring.score_directly))
    np.testing.assert_allclose(found, expected, atol=1e-3)
