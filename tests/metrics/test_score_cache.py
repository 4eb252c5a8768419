"""A benchmark that is killed goes on; what changed is scored again, and nothing else."""

import contextlib
import inspect
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from test_classification import simulate
from test_notebooks import ROOT, parameters

from aenmf_lib import AENMF, results
from aenmf_lib.metrics import classification, classifiers, clustering, neighbors, score_cache
from aenmf_lib.workflow import cli

NOTEBOOK = ROOT / "notebooks/06_benchmarks.py"

MADE = []  # fits and clusterings that were computed


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Note what is computed; needs n_jobs=1. Fast classifiers only."""
    named, leiden = classifiers.named, neighbors.leiden
    monkeypatch.setattr(classifiers, "named", lambda *args: MADE.append(args[0]) or named(*args))
    monkeypatch.setattr(neighbors, "leiden", lambda *args, **more: MADE.append(args[1]) or leiden(*args, **more))
    monkeypatch.setattr(
        classification, "CLASSIFIERS", {"logistic_regression": classifiers.CLASSIFIERS["logistic_regression"]}
    )
    MADE.clear()


def classify(path, H: dict, obs, **options) -> pd.DataFrame:
    """Score with kNN alone."""
    options = {"seeds": [42], "n_jobs": 1, **options}
    return classification.cross_validate(H, obs, used_cell_type=dict.fromkeys(H, False), store=path, **options)


def cluster(path, H: dict, obs, **options) -> pd.DataFrame:
    """Score three Leiden seeds."""
    graphs = neighbors.neighbor_graphs(H, obs)
    options = {"seeds": [0, 1, 2], "n_jobs": 1, **options}
    return clustering.evaluate(graphs, obs, used_cell_type=dict.fromkeys(H, False), store=path, **options)


@pytest.mark.parametrize(("benchmark", "each"), [(classify, 10), (cluster, 3)])
def test_what_is_there_is_not_made_again(benchmark, each, tmp_path):
    path = tmp_path / "scores.csv"
    H, obs = simulate()
    first = benchmark(path, {"AE_NMF": H}, obs)
    pd.testing.assert_frame_equal(first, benchmark(None, {"AE_NMF": H}, obs), check_exact=True)
    assert len(MADE) == 2 * each
    written = path.read_bytes()
    again = benchmark(path, {"AE_NMF": H}, obs)
    assert len(MADE) == 2 * each
    pd.testing.assert_frame_equal(again, first, check_exact=True)
    assert path.read_bytes() == written

    both = benchmark(path, {"AE_NMF": H, "Base_NMF": H[:, :3]}, obs)  # a model more: it alone is scored
    assert len(MADE) == 3 * each
    pd.testing.assert_frame_equal(both[both["Model"] == "AE_NMF"], first, check_exact=True)

    other = H.copy()
    other[0, 0] += 1
    benchmark(path, {"AE_NMF": other}, obs)  # one number more: all is scored
    assert len(MADE) == 4 * each

    relabeled = obs.assign(donor_id=obs["donor_id"].iloc[::-1].to_numpy())
    benchmark(path, {"AE_NMF": other}, relabeled)  # one label
    assert len(MADE) == 4 * each + each // (2 if benchmark is classify else 1)


def test_settings_count(tmp_path):
    H, obs = simulate()
    for max_cells, n_made in ((0, 10), (60, 20), (0, 20), (1000, 30)):  # 1000: the same cells, told otherwise
        found = classify(tmp_path / "scores.csv", {"AE_NMF": H}, obs, max_cells=max_cells)
        assert len(MADE) == n_made
        assert set(found["max_cells"]) == {max_cells}
    seen = {"used_cell_type": {"AE_NMF": True}, "seeds": [42], "n_jobs": 1, "store": tmp_path / "scores.csv"}
    assert classification.cross_validate({"AE_NMF": H}, obs, **seen)["cell_type_in_training"].all()
    MADE.clear()
    for resolution, n_made in ((0.8, 3), (0.5, 6), (0.8, 6)):
        found = cluster(tmp_path / "clusters.csv", {"AE_NMF": H}, obs, resolution=resolution)
        assert len(MADE) == n_made
        assert set(found["resolution"]) == {resolution}


@pytest.mark.parametrize("benchmark", [classify, cluster])
def test_an_interrupted_run_ends_in_the_same_table(benchmark, tmp_path, monkeypatch):
    H, obs = simulate()
    path, add = tmp_path / "scores.csv", score_cache.ScoreCache.add
    whole = benchmark(None, {"AE_NMF": H}, obs)
    n = len(MADE)

    def dies(self, row):
        add(self, row)
        if len(self.rows) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(score_cache.ScoreCache, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            benchmark(path, {"AE_NMF": H}, obs)
    path.write_bytes(path.read_bytes()[:-5])  # in the midst of the fourth row
    MADE.clear()
    pd.testing.assert_frame_equal(benchmark(path, {"AE_NMF": H}, obs), whole, check_exact=True)
    assert len(MADE) == n - (3 if benchmark is classify else 1)  # a clustering gives two rows


def forest(path) -> pd.DataFrame:
    """Score a forest with two workers, as the notebook does."""
    H, obs = simulate(n_cells=120)
    forests = {"random_forest": lambda seed: RandomForestClassifier(200, random_state=seed)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "CLASSIFIERS", forests)
        return classification.cross_validate(
            {"AE_NMF": H}, obs, used_cell_type={"AE_NMF": False}, seeds=[42], n_jobs=2, store=path
        )


def test_killed_at_random_the_table_is_the_same(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "scores.csv"
    path.touch()
    for _ in range(2):
        before = path.read_text().count("\n")
        # a process of its own, not a fork of this one, whose workers and threads it would believe to be its own
        process = subprocess.Popen([sys.executable, __file__, path], start_new_session=True)
        while process.poll() is None and path.read_text().count("\n") <= max(before, 1):  # a score more, or the last
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
        process.wait()
        assert path.read_text().count("\n") > before
    pd.testing.assert_frame_equal(forest(path), forest(None), check_exact=True)


def test_a_damaged_table_is_told(tmp_path):
    H, obs = simulate()
    path = tmp_path / "scores.csv"
    classify(path, {"AE_NMF": H}, obs)
    text = path.read_text()
    path.write_text(text.rstrip("\n") + ",more,and more\n")
    with pytest.raises(ValueError, match=r"scores\.csv is no table of scores .* Remove it"):
        classify(path, {"AE_NMF": H}, obs)
    path.write_text(text.replace("F1", "F_1"))  # of another version
    MADE.clear()
    classify(path, {"AE_NMF": H}, obs)
    assert len(MADE) == 10


def test_jobs_of_an_array_leave_their_scores_to_the_notebook(tiny, tmp_path, capsys):
    tiny.uns["input"] = {}
    file, params = tmp_path / "ae_nmf_k4.h5ad", tmp_path / "06.yaml"
    results.write(file, AENMF(k=4, max_iter=5).fit(tiny), tiny)
    params.write_text("n_jobs: 1\nclassification_seeds: [42]\n")
    stores = tmp_path / "classification_scores"
    stores.mkdir()

    def job(label: str) -> None:
        given = ["--label", label, "--notebook", str(NOTEBOOK), "--params", str(params)]
        cli.main([str(file), *given, "--store", str(stores / f"{label}.csv"), "--done", str(stores / f"{label}.done")])

    job("donor_id")
    assert len(MADE) == 5
    assert (stores / "donor_id.done").exists()
    job("donor_id")
    assert len(MADE) == 5
    held = results.read_embeddings([file])
    first = classify(tmp_path / "classification_scores.csv", held.H, held.obs)
    assert len(MADE) == 10  # the other label
    job("cell_type")
    (tmp_path / "classification_scores.csv").unlink()
    MADE.clear()
    before = {path.name: path.read_bytes() for path in stores.iterdir()}
    (stores / "cell_type.csv").write_bytes(before["cell_type.csv"][:-5])  # while its last line is being written
    second = classify(tmp_path / "classification_scores.csv", held.H, held.obs)
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert len(MADE) == 1
    assert (stores / "cell_type.csv").read_bytes() == before["cell_type.csv"][:-5]  # left to whom it belongs
    with pytest.raises(SystemExit, match=r"error: .*nowhere\.h5ad"):
        file = tmp_path / "nowhere.h5ad"
        job("cell_type")


def test_a_job_and_the_notebook_have_the_same_defaults():
    given, defaults = parameters(NOTEBOOK), inspect.signature(classification.cross_validate).parameters
    for name, option in cli.OPTIONS.items():
        assert np.array_equal(given[name], defaults[option].default), name


if __name__ == "__main__":  # what is killed above
    forest(sys.argv[1])
