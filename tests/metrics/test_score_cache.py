"""A killed benchmark resumes; only scores with changed data, settings or code are computed again."""

import ast
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import score_forest
import yaml
from sklearn.ensemble import RandomForestClassifier
from test_classification import simulate

from aenmf_lib import AENMF, results
from aenmf_lib.metrics import classification, classifiers, clustering, neighbors
from aenmf_lib.metrics.classifiers import CLASSIFIERS, FOREST, LOGISTIC
from aenmf_lib.metrics.score_cache import ScoreCache, fingerprint, source_code
from aenmf_lib.metrics.splits import PUBLISHED, Splits
from aenmf_lib.workflow import cli

NOTEBOOK = Path(__file__).parents[2] / "notebooks/06_benchmarks.py"

COMPUTED = []  # fits and clusterings


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Record what is computed; needs n_jobs=1."""
    score_fold, leiden = classifiers.score_fold, neighbors.leiden  # every fit ends with score_fold
    monkeypatch.setattr(classifiers, "score_fold", lambda *args: COMPUTED.append("fit") or score_fold(*args))
    monkeypatch.setattr(neighbors, "leiden", lambda *args: COMPUTED.append(args[1]) or leiden(*args))
    COMPUTED.clear()


def classify(path, H: dict, obs, **options) -> pd.DataFrame:
    """Score logistic regressions of one seed."""
    options = {"classifiers": [LOGISTIC], "seeds": [42], "n_jobs": 1, **options}
    return classification.cross_validate(H, obs, cache=path, **options)


def cluster(path, H: dict, obs, **options) -> pd.DataFrame:
    """Score three Leiden seeds."""
    options = {"seeds": [0, 1, 2], "n_jobs": 1, **options}
    return clustering.evaluate(neighbors.neighbor_graphs(H, obs), obs, cache=path, **options)


@pytest.mark.parametrize(("benchmark", "each"), [(classify, 10), (cluster, 3)])
def test_recorded_scores_are_not_computed_again(benchmark, each, tmp_path):
    path = tmp_path / "scores.csv"
    H, obs = simulate()
    first = benchmark(path, {"AE_NMF": H}, obs)
    pd.testing.assert_frame_equal(first, benchmark(None, {"AE_NMF": H}, obs), check_exact=True)
    assert len(COMPUTED) == 2 * each
    written = path.read_bytes()
    again = benchmark(path, {"AE_NMF": H}, obs)
    assert len(COMPUTED) == 2 * each
    pd.testing.assert_frame_equal(again, first, check_exact=True)
    assert path.read_bytes() == written

    both = benchmark(path, {"AE_NMF": H, "Base_NMF": H[:, :3]}, obs)  # only the added model is scored
    assert len(COMPUTED) == 3 * each
    pd.testing.assert_frame_equal(both[both["Model"] == "AE_NMF"], first, check_exact=True)

    other = H.copy()
    other[0, 0] += 1
    benchmark(path, {"AE_NMF": other}, obs)  # one changed usage: all is scored
    assert len(COMPUTED) == 4 * each

    relabeled = obs.assign(donor_id=obs["donor_id"].iloc[::-1].to_numpy())
    benchmark(path, {"AE_NMF": other}, relabeled)  # one changed label
    assert len(COMPUTED) == 4 * each + each // (2 if benchmark is classify else 1)


def test_changed_settings_are_computed_again(tmp_path):
    H, obs = simulate()
    for max_cells, n_computed in ((0, 10), (60, 20), (0, 20), (1000, 30)):  # 1000: the same cells, another setting
        found = classify(tmp_path / "scores.csv", {"AE_NMF": H}, obs, splits=Splits(max_cells=max_cells))
        assert len(COMPUTED) == n_computed
        assert set(found["max_cells"]) == {max_cells}
    COMPUTED.clear()
    for resolution, n_computed in ((0.8, 3), (0.5, 6), (0.8, 6)):
        found = cluster(tmp_path / "clusters.csv", {"AE_NMF": H}, obs, resolution=resolution)
        assert len(COMPUTED) == n_computed
        assert set(found["resolution"]) == {resolution}


@pytest.mark.parametrize("benchmark", [classify, cluster])
def test_interrupted_run_resumes_to_the_same_table(benchmark, tmp_path, monkeypatch):
    H, obs = simulate()
    path, append = tmp_path / "scores.csv", ScoreCache._append
    whole = benchmark(None, {"AE_NMF": H}, obs)
    n = len(COMPUTED)

    def interrupt(self, row):
        append(self, row)
        if len(self.rows) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScoreCache, "_append", interrupt)
        with pytest.raises(KeyboardInterrupt):
            benchmark(path, {"AE_NMF": H}, obs)
    path.write_bytes(path.read_bytes()[:-5])  # in the middle of the fourth row
    COMPUTED.clear()
    pd.testing.assert_frame_equal(benchmark(path, {"AE_NMF": H}, obs), whole, check_exact=True)
    assert len(COMPUTED) == n - (3 if benchmark is classify else 1)  # one clustering gives two rows


def test_run_killed_at_a_random_time_resumes_to_the_same_table(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "scores.csv"
    path.touch()
    for _ in range(2):
        before = path.read_text().count("\n")
        # A separate process and not a fork of this one, whose workers and threads it would share.
        process = subprocess.Popen([sys.executable, score_forest.__file__, path], start_new_session=True)
        while process.poll() is None and path.read_text().count("\n") <= max(before, 1):  # until one more score
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
        process.wait()
        assert path.read_text().count("\n") > before
    pd.testing.assert_frame_equal(score_forest.run(path), score_forest.run(None), check_exact=True)


def test_damaged_table_is_an_error_and_another_version_is_replaced(tmp_path):
    H, obs = simulate()
    path = tmp_path / "scores.csv"
    classify(path, {"AE_NMF": H}, obs)
    text = path.read_text()
    path.write_text(text.rstrip("\n") + ",more,and more\n")
    with pytest.raises(ValueError, match=r"scores\.csv is not a table of scores .* Remove the file"):
        classify(path, {"AE_NMF": H}, obs)
    path.write_text(text.replace("F1", "F_1"))  # another version
    COMPUTED.clear()
    classify(path, {"AE_NMF": H}, obs)
    assert len(COMPUTED) == 10


def test_worker_gets_only_missing_keys_and_may_yield_in_any_order(tmp_path):
    calls = []

    def worker(missing):
        calls.append(missing)
        for key in reversed(missing):
            yield key, {"score": key[0] * 0.1}

    def evaluate(tasks):
        return ScoreCache(tmp_path / "scores.csv", ["x", "score"], ["x"]).evaluate(tasks, worker)

    assert evaluate({(1,): "a", (3,): "a"})["x"].tolist() == [1, 3]
    table = evaluate({(3,): "a", (2,): "a", (1,): "b"})
    assert calls == [[(1,), (3,)], [(2,), (1,)]]
    pd.testing.assert_frame_equal(table, pd.DataFrame({"x": [3, 2, 1], "score": [3 * 0.1, 2 * 0.1, 0.1]}))
    evaluate({(1,): "a"})
    assert len(calls) == 2


def test_fingerprint_changes_with_values_types_and_packages():
    parts = np.arange(3.0), np.arange(3.0, dtype=np.float32), np.array(["a", "b"]), np.array(["a", "c"], object), 1, "1"
    found = [fingerprint(part) for part in parts] + [fingerprint(1, packages=["numpy"])]
    assert len(set(found)) == len(found)
    assert fingerprint(np.array(["a", "b"], object)) == fingerprint(np.array(["a", "b"], object))


def test_source_code_of_a_package_contains_that_of_its_modules():
    module = Path(classifiers.__file__).read_bytes()
    assert source_code("metrics/classifiers.py") == module
    assert module in source_code("metrics")


def test_workers_do_not_import_scanpy():
    code = "import sys, aenmf_lib.metrics.neighbors, aenmf_lib.metrics.classifiers; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"aenmf_lib.data", "anndata", "scanpy", "torch", "umap"} & set(loaded)


def test_notebook_reuses_scores_of_array_jobs(tiny, tmp_path):
    tiny.uns["input"] = {}
    file, params = tmp_path / "ae_nmf_k4.h5ad", tmp_path / "06.yaml"
    results.write(file, AENMF(k=4, max_iter=5).fit(tiny), tiny)
    params.write_text(
        "n_jobs: 1\nclassification_seeds: [42, 52]\nunseen_seeds: [7]\nforest: random_forest\nmax_cells: 0\n"
    )

    def job(label: str, seed: int, *more: str, folder: str = "classification_scores") -> Path:
        part = tmp_path / folder / f"{label}.{seed}"
        options = ["--label", label, "--seed", str(seed), "--notebook", str(NOTEBOOK), "--params", str(params), *more]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(CLASSIFIERS, FOREST, lambda seed: RandomForestClassifier(2, random_state=seed))
            cli.main(["score", str(file), *options, "--cache", f"{part}.csv", "--done", f"{part}.done"])
        return part.with_suffix(f".{seed}.csv")

    def notebook(name: str = "classification_scores", seeds: tuple = (42, 52), **options) -> pd.DataFrame:
        COMPUTED.clear()
        embeddings, options = results.read_embeddings([file]), {"classifiers": list(CLASSIFIERS)[:3], **options}
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(CLASSIFIERS, FOREST, lambda seed: RandomForestClassifier(2, random_state=seed))
            return classify(tmp_path / f"{name}.csv", embeddings.H, embeddings.obs, seeds=seeds, **options)

    alone = notebook("elsewhere")  # without jobs
    assert len(COMPUTED) == 2 * 2 * 15
    COMPUTED.clear()
    job("donor_id", 52)
    assert len(COMPUTED) == 10
    first = job("donor_id", 42)  # the job of the first seed searches the neighbors for the folds of all seeds
    assert len(COMPUTED) == 10 + 10 + 10
    job("donor_id", 42)
    assert len(COMPUTED) == 30
    assert first.with_suffix(".done").exists()
    pd.testing.assert_frame_equal(notebook(), alone, check_exact=True)
    assert len(COMPUTED) == 30  # the other label
    (tmp_path / "classification_scores.csv").unlink()
    job("cell_type", 42)
    job("cell_type", 52)
    whole = first.read_bytes()
    first.write_bytes(whole[:-5])  # while its last line is being written
    pd.testing.assert_frame_equal(notebook(), alone, check_exact=True)
    assert len(COMPUTED) == 1
    assert first.read_bytes() == whole[:-5]  # the file of another process is not changed

    unseen = {"seeds": (7,), "labels": ["cell_type"], "splits": Splits(held_out="donor_id")}
    alone = notebook("unseen_elsewhere", **unseen)
    assert len(COMPUTED) > 0
    job("cell_type", 7, "--held-out", "donor_id", folder="unseen_donors_scores")
    pd.testing.assert_frame_equal(notebook("unseen_donors_scores", **unseen), alone, check_exact=True)
    assert COMPUTED == []

    with pytest.raises(SystemExit, match=r"error: --seed 7 is not a seed of this run. Expected one of \[42, 52\]"):
        job("cell_type", 7)
    with pytest.raises(SystemExit, match=r"error: .*nowhere\.h5ad"):
        file = tmp_path / "nowhere.h5ad"
        job("cell_type", 42)


def test_values_of_make_are_the_defaults_of_cross_validate():
    lines = ast.parse(NOTEBOOK.read_text()).body
    notebook = {line.target.id: ast.literal_eval(line.value) for line in lines if isinstance(line, ast.AnnAssign)}
    notebook |= yaml.safe_load((NOTEBOOK.parent / "defaults.yaml").read_text())
    defaults = classification.cross_validate.__kwdefaults__
    assert tuple(notebook["classification_seeds"]) == defaults["seeds"]
    assert Splits(max_cells=notebook["max_cells"], subset_seed=notebook["seed"]) == defaults["splits"] == PUBLISHED
    assert notebook["n_jobs"] == defaults["n_jobs"]
    assert notebook["forest"] == defaults["classifiers"][-1]


def test_text_in_a_column_of_scores_is_refused(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("Model,F1,made_from\nAE_NMF,0.5,ab\nAE_NMF,0.2x5,cd\n")
    with pytest.raises(ValueError, match=r"scores\.csv: the column 'F1' contains '0\.2x5'.* Remove the file"):
        ScoreCache(path, ["Model", "F1"], ["Model"])


def test_cache_of_a_run_that_was_killed_before_its_first_score_is_read(tmp_path):
    path = tmp_path / "scores.csv"
    for _ in range(2):  # the second time the file has a header only
        cache = ScoreCache(path, ["Model", "F1"], ["Model"])
    assert cache.rows == {}
    assert path.read_text() == "Model,F1,made_from\n"
