"""Benchmark 1 against direct scanpy and scikit-learn calls, worked examples, and invariances."""

import random

import igraph
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler

from aenmf_lib.metrics import clustering, neighbors

SEEDS = [0, 1, 2, 3]


def simulate(n_cells: int = 400, k: int = 60, distance: float = 1.0) -> tuple[np.ndarray, pd.DataFrame]:
    """Return usages of five cell types, `distance` noise deviations apart in each program; one column is constant.

    k is above 50: for more columns than that scanpy would compute a PCA before the neighbor search.
    """
    rng = np.random.default_rng(0)
    cell_type = rng.integers(5, size=n_cells)
    H = rng.normal(distance * rng.normal(size=(5, k))[cell_type], 1)
    H = np.maximum(0, (H + 3) * rng.lognormal(size=k)).astype(np.float32)
    H[:, 7] = 0.1
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(cell_type, list("ABCDE")),
            "donor_id": rng.choice(["d1", "d2"], n_cells),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    return H, obs


def run(H: np.ndarray, obs: pd.DataFrame, **options) -> pd.DataFrame:
    """Score one embedding."""
    graphs = neighbors.neighbor_graphs({"AE_NMF": H}, obs)
    return clustering.evaluate(graphs, obs, **{"seeds": SEEDS, "n_jobs": 1, **options})


def test_scores_equal_those_of_scanpy_and_scikit_learn():
    H, obs = simulate(distance=0.3)
    long = run(H, obs)

    direct = AnnData(StandardScaler().fit_transform(H))
    sc.pp.neighbors(direct, n_neighbors=25, use_rep="X", method="umap", transformer="sklearn")
    graph = direct.obsp["connectivities"]
    partitions = []
    for seed in SEEDS:
        sc.tl.leiden(
            direct,
            adjacency=graph.maximum(graph.T),
            flavor="igraph",
            directed=False,
            use_weights=False,
            resolution=0.8,
            n_iterations=2,
            random_state=seed,
        )
        partitions.append(direct.obs["leiden"].to_numpy())
    assert len({tuple(p) for p in partitions}) == len(SEEDS)  # otherwise a seed that is ignored would not be noticed

    for label in ("cell_type", "donor_id"):
        rows = long[long["label"] == label]
        ari = [adjusted_rand_score(obs[label], p) for p in partitions]
        nmi = [normalized_mutual_info_score(obs[label], p) for p in partitions]
        assert rows["seed"].tolist() == SEEDS
        np.testing.assert_allclose(rows["ARI"], ari, rtol=0, atol=1e-12)
        np.testing.assert_allclose(rows["NMI"], nmi, rtol=0, atol=1e-12)
        assert rows["n_clusters"].tolist() == [len(set(p)) for p in partitions]
        table = clustering.summarize(long, label)
        np.testing.assert_allclose(
            table[["ARI", "ARI Std", "NMI", "NMI Std"]].to_numpy(float)[0],
            [np.mean(ari), np.std(ari, ddof=1), np.mean(nmi), np.std(nmi, ddof=1)],
            rtol=0,
            atol=1e-12,
        )
    # the same parameters, not only similar results
    assert set(zip(long["n_neighbors"], long["resolution"], strict=True)) == {(25, 0.8)}


def test_higher_resolutions_of_the_curve_give_more_clusters():
    H, obs = simulate(distance=0.3)
    graphs, options = neighbors.neighbor_graphs({"AE_NMF": H}, obs), {"seeds": [1], "n_jobs": 1}
    curve = clustering.resolution_curve(graphs, obs, [2.0, 0.1, 0.8], **options)
    assert curve["resolution"].tolist() == [0.1, 0.1, 0.8, 0.8, 2.0, 2.0]
    assert curve["n_clusters"].is_monotonic_increasing
    assert curve["n_clusters"].iloc[0] < curve["n_clusters"].iloc[-1]
    at = curve[curve["resolution"] == 0.8].reset_index(drop=True)
    pd.testing.assert_frame_equal(at, clustering.evaluate(graphs, obs, **options), check_exact=True)
    for wrong in ([], [0.8, 0.8], [0.8, -1]):
        with pytest.raises(ValueError, match=r"Expected one or more above 0, each only once"):
            clustering.resolution_curve(graphs, obs, wrong, **options)


def test_best_resolution_has_the_highest_nmi_of_the_type_over_the_seeds():
    rows = [  # Model, label, seed, resolution, NMI
        ("B", "cell_type", 0, 0.4, 0.9), ("B", "cell_type", 1, 0.4, 0.1), ("B", "cell_type", 0, 1.2, 0.6),
        ("B", "cell_type", 1, 1.2, 0.6), ("B", "donor_id", 0, 0.4, 0.9), ("B", "donor_id", 0, 1.2, 0.2),
        ("A", "cell_type", 0, 1.2, 0.7), ("A", "cell_type", 0, 0.4, 0.7), ("A", "donor_id", 0, 0.4, 0.3),
        ("C", "cell_type", 0, 0.4, np.nan), ("C", "donor_id", 0, 0.4, 0.5),
    ]  # fmt: skip
    curve = pd.DataFrame(rows, columns=["Model", "label", "seed", "resolution", "NMI"]).assign(ARI=0.5, n_clusters=3)
    table = clustering.best_resolution(curve)
    assert table[["Model", "label", "resolution", "NMI"]].to_numpy().tolist() == [
        ["B", "cell_type", 1.2, 0.6],
        ["B", "donor_id", 1.2, 0.2],
        ["A", "cell_type", 0.4, 0.7],  # of equal resolutions, the lowest
        ["A", "donor_id", 0.4, 0.3],
    ]
    assert list(table) == ["Model", "label", "resolution", "ARI", "NMI", "n_clusters"]


def test_workers_do_not_reuse_the_graph_of_another_embedding():
    H, obs = simulate(n_cells=150)
    for usages in (H, H[:, ::2], H):
        one, two = (run(usages, obs, n_jobs=n) for n in (1, 2))
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_neighbors_are_the_24_nearest_other_cells_by_z_scores():
    H, _ = simulate()
    graph = neighbors.neighbor_graph(H).connectivities.toarray()

    varying = np.delete(H.astype(float), 7, axis=1)
    z = (varying - varying.mean(0)) / varying.std(0)  # without the constant column
    squared = ((z[:, None, :] - z[None, :, :]) ** 2).sum(-1)
    nearest = np.argsort(squared, axis=1)[:, 1:25]
    expected = np.zeros(graph.shape, bool)
    np.put_along_axis(expected, nearest, True, axis=1)
    np.testing.assert_array_equal(graph > 0, expected | expected.T)
    np.testing.assert_array_equal(graph, np.maximum(graph, graph.T))


def test_scaling_a_program_changes_no_neighbor():
    H, _ = simulate(n_cells=100)
    units = 2.0 ** np.random.default_rng(1).integers(-3, 4, size=H.shape[1])  # powers of two lose no bit
    before = neighbors.neighbor_graph(H).connectivities
    after = neighbors.neighbor_graph((H * units).astype(np.float32)).connectivities
    assert (before != after).nnz == 0


def test_reordering_the_cells_reorders_the_graph():
    H, _ = simulate(n_cells=100)
    order = np.random.default_rng(1).permutation(len(H))
    before = neighbors.neighbor_graph(H).connectivities.toarray()
    after = neighbors.neighbor_graph(H[order]).connectivities.toarray()
    np.testing.assert_allclose(after, before[np.ix_(order, order)], atol=1e-5)  # float32 sums in another order


def test_partition_depends_only_on_its_seed():
    H, _ = simulate(distance=0.3)
    links = neighbors.neighbor_graph(H).connectivities
    graph = neighbors.igraph_graph(links.indptr, links.indices)
    random.seed(5)
    state = random.getstate()
    first = neighbors.leiden(graph, 3)
    neighbors.leiden(graph, 4)
    np.testing.assert_array_equal(neighbors.leiden(graph, 3), first)
    assert random.getstate() == state  # the global generator was not used

    random.seed(5)  # and igraph uses Python's generator again
    before = igraph.Graph.Erdos_Renyi(50, p=0.5).get_edgelist()
    random.seed(5)
    assert igraph.Graph.Erdos_Renyi(50, p=0.5).get_edgelist() == before


def test_renaming_donors_changes_no_score():
    H, obs = simulate(distance=0.3)
    renamed = obs.assign(donor_id=obs["donor_id"].map({"d1": "z", "d2": "a"}))
    pd.testing.assert_frame_equal(run(H, obs), run(H, renamed), rtol=1e-12)


def test_simulated_types_are_found_and_shuffled_types_are_not():
    H, obs = simulate(distance=1.5)
    obs["donor_id"] = np.random.default_rng(1).permutation(obs["cell_type"])
    long = run(H, obs).set_index("label")
    assert long.loc["cell_type", ["ARI", "NMI"]].min().min() > 0.99
    assert long.loc["donor_id", "ARI"].abs().max() < 0.02  # chance; its sd is about 1/n_cells


def test_rows_are_in_order_and_contain_the_settings():
    H, obs = simulate(n_cells=100)
    graphs = {"CAE_NMF1": neighbors.neighbor_graph(H, 10), "AE_NMF": neighbors.neighbor_graph(H[:, ::-1], 10)}
    long = clustering.evaluate(graphs, obs, seeds=[3, 1], resolution=0.5, n_jobs=1)
    assert long.columns.tolist() == (
        "Model label seed ARI NMI n_clusters n_cells n_classes n_neighbors resolution".split()
    )
    assert long[["Model", "label", "seed"]].to_numpy().tolist() == [
        [model, label, seed]
        for model in ("CAE_NMF1", "AE_NMF")
        for label in ("cell_type", "donor_id")
        for seed in (3, 1)
    ]
    settings = long.groupby("label")[["n_cells", "n_classes", "n_neighbors", "resolution"]].agg(set)
    assert settings.loc["cell_type"].tolist() == [{100}, {5}, {10}, {0.5}]
    assert settings.loc["donor_id"].tolist() == [{100}, {2}, {10}, {0.5}]


def test_each_model_is_scored_and_drawn_on_its_own_embedding():
    H, obs = simulate(n_cells=150, distance=0.5)
    graphs = neighbors.neighbor_graphs({"CAE_NMF1": H, "AE_NMF": H[:, :5]}, obs)
    options = {"seeds": [0, 1], "n_jobs": 1}
    together = clustering.evaluate(graphs, obs, **options)
    separate = [
        clustering.evaluate({model: neighbors.neighbor_graph(usages)}, obs, **options)
        for model, usages in {"CAE_NMF1": H, "AE_NMF": H[:, :5]}.items()
    ]
    pd.testing.assert_frame_equal(together, pd.concat(separate, ignore_index=True), check_exact=True)
    assert not np.array_equal(separate[0]["ARI"], separate[1]["ARI"])

    drawn = neighbors.umaps(graphs, obs)
    for model in graphs:
        np.testing.assert_array_equal(drawn.obsm[f"X_umap_{model}"], neighbors.umap(graphs[model]))


def example() -> pd.DataFrame:
    """Two models under three seeds, with numbers that are easy to average."""
    rows = [
        ("Base_NMF", "cell_type", 0.2, 0.5),
        ("Base_NMF", "cell_type", 0.4, 0.5),
        ("Base_NMF", "cell_type", 0.6, 0.5),
        ("CAE_NMF2", "cell_type", 0.1, 0.3),
        ("CAE_NMF2", "cell_type", 0.2, 0.6),
        ("CAE_NMF2", "cell_type", 0.3, 0.9),
        ("CAE_NMF2", "donor_id", 0.0, 0.0),
    ]
    long = pd.DataFrame(rows, columns=["Model", "label", "ARI", "NMI"])
    return long.assign(n_cells=9, n_classes=2, n_neighbors=25, resolution=0.8)


def test_summary_of_a_worked_example():
    expected = pd.DataFrame(
        [["CAE_NMF2", 0.2, 0.1, 0.6, 0.3], ["Base_NMF", 0.4, 0.2, 0.5, 0.0]],
        columns=["Model", "ARI", "ARI Std", "NMI", "NMI Std"],
    )
    pd.testing.assert_frame_equal(clustering.summarize(example(), "cell_type"), expected, rtol=0, atol=1e-12)


def test_summary_lists_other_methods_after_the_models_and_without_changing_them():
    others = pd.concat([example().assign(Model=name) for name in ("scVI", "PCA")])
    table = clustering.summarize(pd.concat([others, example()]), "cell_type")
    assert table["Model"].tolist() == ["CAE_NMF2", "Base_NMF", "scVI", "PCA"]
    pd.testing.assert_frame_equal(table[:2], clustering.summarize(example(), "cell_type"), check_exact=True)


def test_summary_of_different_settings_or_an_unknown_label_is_an_error():
    with pytest.raises(ValueError, match=r"no score for 'batch', only for \['cell_type', 'donor_id'\]"):
        clustering.summarize(example(), "batch")
    mixed = example()
    mixed.loc[0, "n_cells"] = 7
    with pytest.raises(ValueError, match=r"different n_cells: \[7, 9\]"):
        clustering.summarize(mixed, "cell_type")


def test_umap_equals_that_of_scanpy_from_principal_components_and_repeats():
    H, obs = simulate(n_cells=200)
    graphs = neighbors.neighbor_graphs({"AE_NMF": H}, obs)
    drawn = neighbors.umaps(graphs, obs, seed=3)

    direct = AnnData(StandardScaler().fit_transform(H))
    sc.pp.neighbors(direct, n_neighbors=25, use_rep="X", method="umap", transformer="sklearn")
    sc.tl.umap(direct, init_pos="pca", random_state=3)
    np.testing.assert_array_equal(drawn.obsm["X_umap_AE_NMF"], direct.obsm["X_umap"])
    np.testing.assert_array_equal(neighbors.umap(graphs["AE_NMF"], seed=3), direct.obsm["X_umap"])
    assert not np.array_equal(neighbors.umap(graphs["AE_NMF"], seed=4), direct.obsm["X_umap"])
    assert drawn.X is None
    pd.testing.assert_frame_equal(drawn.obs, obs)


def test_parallel_umaps_are_the_same_and_leave_the_graphs_as_they_are(monkeypatch):
    H, obs = simulate(n_cells=200)
    graphs = neighbors.neighbor_graphs({"Base_NMF": H, "AE_NMF": H[:, :1]}, obs)  # also an embedding with one column
    graphs["Base_NMF"].connectivities.data[:4] = 1e-6  # umap-learn sets such small weights to 0
    before = {model: graph.connectivities.copy() for model, graph in graphs.items()}
    alone = neighbors.umaps(graphs, obs, n_jobs=1)
    monkeypatch.setattr(neighbors, "PARALLEL_UMAP", 0)
    parallel = neighbors.umaps(graphs, obs, n_jobs=2)
    assert list(parallel.obsm) == list(alone.obsm) == ["X_umap_Base_NMF", "X_umap_AE_NMF"]
    for name, xy in alone.obsm.items():
        assert np.isfinite(xy).all()
        np.testing.assert_array_equal(parallel.obsm[name], xy)
    for model, weights in before.items():
        np.testing.assert_array_equal(graphs[model].connectivities.data, weights.data)


def test_fewer_cells_than_neighbors_are_an_error():
    H, obs = simulate(n_cells=25)
    with pytest.raises(ValueError, match="has 25 cells; n_neighbors=25 needs at least 26"):
        neighbors.neighbor_graphs({"AE_NMF": H}, obs)


def test_infinite_usages_are_reported_with_their_cell():
    H, obs = simulate(n_cells=100)
    H[[3, 4], 2] = np.nan, np.inf
    with pytest.raises(
        ValueError, match=r"AE_NMF contains 2 NaN or infinite values in 2 of 100 cells .*'cell3', column 2"
    ):
        neighbors.neighbor_graphs({"AE_NMF": H}, obs)


def test_graph_of_other_cells_is_an_error():
    H, obs = simulate(n_cells=100)
    graphs = neighbors.neighbor_graphs({"AE_NMF": H}, obs)
    with pytest.raises(ValueError, match=r"AE_NMF has shape \(100, 60\), but obs has 99 cells"):
        clustering.evaluate(graphs, obs.iloc[1:])


def test_a_single_donor_has_empty_scores_and_a_warning(caplog, tmp_path):
    H, obs = simulate(n_cells=100)
    obs = obs.assign(donor_id="d1")
    long = run(H, obs, cache=tmp_path / "scores.csv")
    assert "obs['donor_id'] is 'd1' for all 100 cells, so its scores are empty" in caplog.text
    types, donor = (long[long["label"] == label] for label in ("cell_type", "donor_id"))
    assert donor[["ARI", "NMI"]].isna().all(axis=None)
    assert donor["n_clusters"].tolist() == types["n_clusters"].tolist()
    assert np.isfinite(types[["ARI", "NMI"]]).all(axis=None)
    table = clustering.summarize(long, "donor_id")
    assert table["Model"].tolist() == ["AE_NMF"] and table.isna().to_numpy().sum() == 4
    pd.testing.assert_frame_equal(run(H, obs, cache=tmp_path / "scores.csv"), long, check_exact=True)  # from the file


def test_labels_in_columns_with_awkward_names_are_kept_in_the_cache(tmp_path, monkeypatch):
    H, obs = simulate(n_cells=100)
    names = ["1", "01", "NA", "a,b", 'a"b', "a\nb"]
    obs = obs.assign(**dict.fromkeys(names, obs["cell_type"]))
    first = run(H, obs, labels=names, cache=tmp_path / "scores.csv")
    assert list(first["label"].unique()) == names
    monkeypatch.setattr(neighbors, "leiden_in_worker", None)  # nothing is computed again
    pd.testing.assert_frame_equal(run(H, obs, labels=names, cache=tmp_path / "scores.csv"), first, check_exact=True)


def test_cells_without_a_type_are_clustered_but_not_compared():
    H, obs = simulate(distance=0.3)
    without = np.random.default_rng(1).random(400) < 0.3
    long = run(H, obs.assign(cell_type=obs["cell_type"].mask(without)))
    links = neighbors.neighbor_graph(H).connectivities
    clusters = neighbors.leiden(neighbors.igraph_graph(links.indptr, links.indices), seed=0)
    types, donors = (long[(long["label"] == label) & (long["seed"] == 0)] for label in ("cell_type", "donor_id"))
    left = obs["cell_type"].astype(str)[~without], clusters[~without]
    np.testing.assert_allclose(types["ARI"], adjusted_rand_score(*left), atol=1e-12)
    np.testing.assert_allclose(types["NMI"], normalized_mutual_info_score(*left), atol=1e-12)
    np.testing.assert_allclose(donors["NMI"], normalized_mutual_info_score(obs["donor_id"], clusters), atol=1e-12)
    assert (types["n_cells"].item(), types["n_classes"].item()) == ((~without).sum(), 5)
    assert donors["n_cells"].item() == 400
