"""Tests that torch computes the scores of scikit-learn, on the CPU and, if there is one, on a GPU."""

import logging
import os

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from test_classification import awkward
from test_clustering import simulate

from aenmf_lib.metrics import classification, clustering, integration, knn, neighbors, splits
from aenmf_lib.metrics.classifiers import CLASSIFIERS, FOREST, KNN, LOGISTIC, METRICS, Forest, OnGPU, fit_fold
from aenmf_lib.training import second_moment

KINDS = ["single", "double", "hardly varies", "duplicates", "constant columns", "rare and large", "near ties"]
TOLERANCE = 0.0005  # of a published score


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def on(request, monkeypatch) -> torch.device:
    """The device of torch that the tests use as the GPU."""
    device = torch.device(request.param)
    monkeypatch.setattr(neighbors, "gpu", lambda name: None if name == "cpu" else device)
    return device


def z_scores(kind: str) -> np.ndarray:
    return StandardScaler().fit_transform(awkward(kind)[0])


@pytest.mark.parametrize("kind", [*KINDS, "few cells"])
def test_candidates_are_the_nearest_cells_and_all_others_are_beyond_the_bound(on, kind):
    Z = z_scores(kind)
    near, squares, beyond = neighbors.nearest_candidates(Z, 20, on)
    every = np.square(Z.astype(float)[:, None] - Z[None].astype(float)).sum(2)  # (n_cells, n_cells)
    assert near.shape[1] >= 20
    assert all(len(set(row)) == len(row) for row in near.tolist())
    np.testing.assert_allclose(squares, np.take_along_axis(every, near, 1), rtol=1e-12, atol=1e-12)
    assert (np.diff(squares, axis=1) >= 0).all()
    np.put_along_axis(every, near, np.inf, 1)
    assert (every.min(1) >= beyond).all()
    if kind in ("single", "double"):  # the bound is close
        assert np.median(squares[:, -1] - beyond) < 0.001
    sure = squares[:, 19] < beyond  # then no other cell is nearer
    expected = NearestNeighbors(n_neighbors=20, algorithm="brute").fit(Z).kneighbors(Z)[0]
    np.testing.assert_allclose(np.sqrt(squares[sure, :20]), expected[sure], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_neighbor_graph_is_that_of_scanpy(on, kind):
    H = awkward(kind)[0]
    expected, found = neighbors.neighbor_graph(H), neighbors.neighbor_graph(H, device="cuda")
    for name in ("connectivities", "distances"):
        one, two = getattr(expected, name), getattr(found, name)
        np.testing.assert_array_equal(one.indptr, two.indptr)
        assert np.isfinite(two.data).all()
        if kind != "near ties":  # scikit-learn itself then finds other neighbors with other numbers of threads
            np.testing.assert_allclose(one.toarray(), two.toarray(), rtol=1e-5, atol=1e-5)
    assert found.n_neighbors == expected.n_neighbors
    np.testing.assert_array_equal(found.Z, expected.Z)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_knn_are_those_of_scikit_learn(on, kind):
    H, y = awkward(kind)
    fold_of = dict(zip((42, 52), splits.assign_folds(y, [42, 52], n_splits=5), strict=True))
    wanted = [(seed, fold) for seed in fold_of for fold in range(5)]
    expected = knn.probabilities(H, y, fold_of, wanted, n_jobs=1)
    for one, two in zip(expected, knn.probabilities(H, y, fold_of, wanted, 1, on), strict=True):
        assert one[0] == two[0]
        for part in (1, 2):
            np.testing.assert_array_equal(one[part], two[part])


def test_search_on_the_gpu_leaves_no_more_cells_undecided_than_on_the_cpu(on):
    H, y = awkward("single")
    fold_of = splits.assign_folds(y, [42, 52], n_splits=5)
    one, two = (knn._neighbors_outside_fold(H, fold_of, 1, where)[1].mean() for where in (None, on))
    assert two <= one + 0.01 < 0.1


def test_little_memory_makes_the_blocks_smaller_and_changes_no_neighbor(on, monkeypatch, caplog):
    Z = z_scores("single")
    expected = neighbors.nearest_candidates(Z, 20, on)
    free = 30 * (12 * len(Z) + 24 * 36 * Z.shape[1])
    monkeypatch.setattr(second_moment, "available_memory", lambda device: free)
    product, rows = torch.addmm, []

    def limited(norms, block, *others, **options):
        rows.append(len(block))
        if len(block) > 10:  # another program has taken the memory
            raise torch.OutOfMemoryError("not enough")
        return product(norms, block, *others, **options)

    monkeypatch.setattr(torch, "addmm", limited)
    with caplog.at_level(logging.INFO):
        found = neighbors.nearest_candidates(Z, 20, on)
    assert rows[:4] == [30, 15, 7, 7]
    assert "; continuing with blocks of 7 cells" in caplog.text
    for one, two in zip(expected[:2], found[:2], strict=True):
        np.testing.assert_array_equal(one[:, :20], two[:, :20])
    monkeypatch.setattr(torch, "addmm", lambda *args, **options: limited(args[0], Z, *args[2:], **options))
    with pytest.raises(torch.OutOfMemoryError):
        neighbors.nearest_candidates(Z, 20, on)


def labeled(n_cells: int = 1500) -> tuple[np.ndarray, pd.DataFrame]:
    """Return usages of five types that overlap, and three donors."""
    H, obs = simulate(n_cells=n_cells, k=20, distance=0.4)
    return H, obs.assign(donor_id=np.random.default_rng(1).choice(["d1", "d2", "d3"], n_cells))


def test_logistic_regression_stops_at_the_optimum_of_scikit_learn(on):
    H, obs = labeled()
    for label in ("cell_type", "two"):
        y = np.unique(obs.assign(two=obs["cell_type"] == "A")[label].astype(str), return_inverse=True)[1] * 3
        pipelines = [CLASSIFIERS[LOGISTIC](0), CLASSIFIERS[LOGISTIC](0)]
        gpu = OnGPU(pipelines[0], on).fit(H[:1000], y[:1000])
        cpu = pipelines[1].fit(H[:1000], y[:1000])
        found, expected = (model.predict_proba(H[1000:]) for model in (gpu, cpu))
        np.testing.assert_array_equal(gpu.classes_, cpu.classes_)
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, expected, atol=2e-3)  # both stop when the gradient is below 1e-4
        losses = [log_loss(y[:1000], model.predict_proba(H[:1000])) for model in (gpu, cpu)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_fits_on_the_gpu_that_did_not_converge_are_marked(on):
    H, obs = labeled(300)
    y, test = np.unique(obs["cell_type"], return_inverse=True)[1], np.arange(300) % 5 == 0
    few = sklearn.clone(CLASSIFIERS[LOGISTIC](0)).set_params(logisticregression__max_iter=2)
    for classifier, converged in ((few, False), (CLASSIFIERS[LOGISTIC](0), True)):
        fold = fit_fold(lambda seed, c=classifier: OnGPU(c, on), 0, H, np.arange(300), y, test, np.array([*"ABCDE"]))
        assert fold["converged"] is converged


def test_fit_on_the_gpu_changes_no_setting_of_the_process(on):
    H, obs = labeled(300)
    before = dict(os.environ), sklearn.get_config()
    OnGPU(CLASSIFIERS[LOGISTIC](0), on).fit(H, obs["cell_type"].cat.codes.to_numpy())
    with pytest.raises(ValueError, match="NaN"):
        OnGPU(CLASSIFIERS[LOGISTIC](0), on).fit(H * np.nan, obs["cell_type"].cat.codes.to_numpy())
    assert (dict(os.environ), sklearn.get_config()) == before


def test_too_little_memory_for_a_logistic_regression_is_an_error_with_advice(on, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    pipeline = CLASSIFIERS[LOGISTIC](0)
    monkeypatch.setattr(pipeline, "fit", full)
    with pytest.raises(MemoryError, match=r"of \(8, 2\) numbers needs more memory than .* Set max_cells to a"):
        OnGPU(pipeline, on).fit(np.zeros((8, 2), np.float32), np.arange(8) % 2)


def test_classifier_without_a_gpu_version_is_an_error():
    with pytest.raises(ValueError, match=r"cannot fit this classifier on a GPU. Install version 1.9 or later"):
        OnGPU(CLASSIFIERS[KNN](0), torch.device("cpu"))


def test_published_scores_on_the_gpu_differ_by_less_than_the_tolerance(on, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(CLASSIFIERS, FOREST, lambda seed: Forest(3, seed))  # fast; only their equality matters
    H, obs = labeled()
    embeddings, options = {"AE_NMF": H, "Base_NMF": H[:, :8]}, {"seeds": [42, 52], "n_jobs": 1}
    options["cache"] = tmp_path / "scores.csv"
    cpu = classification.cross_validate(embeddings, obs, **options)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        gpu = classification.cross_validate(embeddings, obs, device="cuda", **options)
    assert "logistic_regression and knn: computed on cuda; other classifiers on the CPU" in caplog.text
    assert "40 of 120 rows are already in" in caplog.text  # the forests; the GPU reuses no other score
    kind = cpu["classifier"]
    pd.testing.assert_frame_equal(cpu[kind != LOGISTIC], gpu[kind != LOGISTIC], check_exact=True)
    for label in ("cell_type", "donor_id"):
        one, two = (classification.summarize(long, label) for long in (cpu, gpu))
        means = [f"MeanFold{metric}" for metric in METRICS]
        assert (one[means] - two[means]).abs().max(axis=None) <= TOLERANCE
    caplog.clear()
    with caplog.at_level(logging.INFO):
        for device, before in (("cpu", cpu), ("cuda", gpu)):
            again = classification.cross_validate(embeddings, obs, device=device, **options)
            pd.testing.assert_frame_equal(again, before, check_exact=True)
    assert caplog.text.count("120 of 120 rows are already in") == 2


def test_clusters_and_mixing_on_the_gpu_are_those_of_the_cpu(on, caplog):
    H, obs = labeled()
    with caplog.at_level(logging.INFO):
        cpu, gpu = (neighbors.neighbor_graphs({"AE_NMF": H}, obs, device) for device in ("cpu", "cuda"))
    assert [record.message for record in caplog.records] == ["neighbors: computed on cuda"]
    for evaluate in (
        lambda graphs: clustering.evaluate(graphs, obs, n_jobs=1),
        lambda graphs: integration.evaluate(graphs, obs),
    ):
        pd.testing.assert_frame_equal(evaluate(cpu), evaluate(gpu), check_exact=True)


def test_unknown_or_missing_gpus_are_errors():
    H, obs = labeled(100)
    with pytest.raises(ValueError, match=r"device='gpu' is unknown\. Choose 'cpu', 'cuda' or"):
        neighbors.neighbor_graphs({"AE_NMF": H}, obs, "gpu")
    for score in (neighbors.neighbor_graphs, classification.cross_validate):
        with pytest.raises(RuntimeError, match=r"device='cuda:99' is not available: torch finds \d+ CUDA device"):
            score({"AE_NMF": H}, obs, device="cuda:99")
