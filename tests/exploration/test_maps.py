"""What the maps show, without a browser, compared with pandas, dense matrices and NumPy's histogram."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.path import Path as Outline
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from aenmf_lib import data, results
from aenmf_lib.data import files
from aenmf_lib.exploration import explore, raster, reading, selection
from aenmf_lib.exploration import maps as module
from aenmf_lib.exploration.coloring import MISSING, Coloring, color_values
from aenmf_lib.exploration.raster import Tiles, fit
from aenmf_lib.figures import style

pytest_plugins = ["small_run"]


@pytest.fixture(scope="module")
def found(paths):
    return explore(*paths)


@pytest.fixture(scope="module")
def embeddings(paths):
    return results.read_embeddings(paths[0])


@pytest.fixture(scope="module")
def filtered(paths):
    return data.load(paths[2])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 97)


def test_columns_usages_and_names_equal_those_of_the_results_files(found, embeddings):
    cells = found.cells
    assert cells.models == list(embeddings.H)
    assert cells.columns[:2] == ["cell_type", "donor_id"]
    for name in ("cell_type", "donor_id"):
        assert cells.column(name).tolist() == embeddings.obs[name].tolist()
    np.testing.assert_array_equal(cells.column("score"), embeddings.obs["score"])
    rows = np.array([0, 5, 96, 97, 98, 599])
    assert cells.names(rows).tolist() == embeddings.obs.index[rows].tolist()
    for model, H in embeddings.H.items():
        np.testing.assert_array_equal(cells.usages(model, rows), H[rows])
        for program in range(H.shape[1]):
            np.testing.assert_array_equal(cells.usage(model, program), H[:, program])


def test_expression_of_a_gene_is_its_column_of_the_filtered_matrix(found, filtered):
    dense = filtered.X.toarray()
    for gene in (0, 7, filtered.n_vars - 1):
        np.testing.assert_array_equal(found.cells.gene(f"SYM{gene}"), dense[:, gene])
    rows = np.array([3, 4, 5, 100, 599])
    np.testing.assert_array_equal(found.cells.expression(rows).toarray(), dense[rows])


def test_programs_are_named_by_symbols_and_described_by_genes_and_types(found, embeddings, paths):
    W = results.read(next(path for path in paths[0] if path.name.startswith("ae_nmf"))).varm["W_tied_k4"].T
    best = np.argsort(-W[2], kind="stable")[:3]
    assert found.names["AE_NMF"][2] == "2: " + ", ".join(f"SYM{gene}" for gene in best)
    tables = found.program("AE_NMF", 2)
    assert tables["genes"].index[:3].tolist() == [f"SYM{gene}" for gene in best]
    usage = pd.Series(embeddings.H["AE_NMF"][:, 2].astype(float), embeddings.obs.index)
    expected = usage.groupby(embeddings.obs["cell_type"], observed=True).mean().sort_values(ascending=False)
    pd.testing.assert_series_equal(
        tables["types"]["mean_usage"], expected, check_names=False, check_index_type=False, check_categorical=False
    )


def test_map_without_umap_shows_the_principal_components(found, embeddings):
    xy, kind = found.cells.coordinates("Base_NMF")
    assert kind == "principal components"
    Z = StandardScaler().fit_transform(embeddings.H["Base_NMF"].astype(float))
    expected = PCA(2).fit_transform(Z)
    for axis in range(2):
        assert abs(np.corrcoef(xy[:, axis], expected[:, axis])[0, 1]) > 1 - 1e-6
    np.testing.assert_allclose(np.abs(xy).max(axis=0), np.abs(expected).max(axis=0), rtol=1e-4)
    assert found.cells.coordinates("AE_NMF")[1] == "UMAP"


def test_tables_of_a_selection_equal_pandas(found, embeddings, filtered):
    rows = np.sort(np.random.default_rng(0).choice(600, 150, replace=False))
    found.select(rows)
    obs, inside = embeddings.obs, np.isin(np.arange(600), rows)
    for label, title in (("cell_type", "types"), ("donor_id", "donors")):
        expected = obs[label][inside].value_counts()
        expected = expected[expected > 0]
        table = found.tables[title]
        assert table["selected"].to_dict() == expected.to_dict()
        assert (table["selected"].diff().dropna() <= 0).all()
        shares = expected / obs[label].value_counts()[expected.index]
        assert table["share_of_label"].to_dict() == pytest.approx(shares.to_dict())
        assert table["share"].sum() == pytest.approx(1)
    programs, genes = found.tables["programs"], found.tables["genes"]
    for table, values, names in (
        (programs.loc["AE_NMF"], embeddings.H["AE_NMF"].astype(float), found.names["AE_NMF"]),
        (genes, filtered.X.toarray().astype(float), list(found.cells.symbols)),
    ):
        a, b = values[inside], values[~inside]
        difference = (a.mean(axis=0) - b.mean(axis=0)) / np.sqrt((a.var(axis=0) + b.var(axis=0)) / 2)
        order = [names.index(name) for name in table.index]
        np.testing.assert_allclose(table["selected"], a.mean(axis=0)[order], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(table["others"], b.mean(axis=0)[order], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(table["difference"], np.nan_to_num(difference)[order], rtol=1e-3, atol=1e-5)
        assert (np.diff(table["difference"]) <= 0).all()
    expressing = pd.Series((filtered.X.toarray()[inside] > 0).mean(axis=0), found.cells.symbols)
    np.testing.assert_allclose(genes["expressing"], expressing[genes.index])
    assert found.selected.index.tolist() == obs.index[inside].tolist()
    assert found.selected["donor_id"].tolist() == obs["donor_id"][inside].tolist()
    found.select([])
    assert found.tables == {}
    assert found.selected.empty


def test_markers_of_a_type_are_the_genes_that_its_cells_express_more(found, filtered):
    inside = (filtered.obs["cell_type"] == "B cell").to_numpy()
    found.select(inside)
    dense = filtered.X.toarray()
    more = dense[inside].mean(axis=0) - dense[~inside].mean(axis=0)
    highest = {f"SYM{gene}" for gene in np.argsort(-more)[:30]}
    assert set(found.tables["genes"].index[:10]) <= highest
    found.select([])


def test_samples_of_large_selections_are_random_sorted_and_disjoint():
    rows = np.arange(1000, 9000, 2)
    inside, outside = selection.sample_both(100_000, rows, 500)
    for part in (inside, outside):
        assert len(part) == 500
        assert (np.diff(part) > 0).all()
    assert np.isin(inside, rows).all()
    assert not np.isin(outside, rows).any()
    assert outside.max() > 90_000
    inside, outside = selection.sample_both(10, np.arange(8), 5)
    assert (len(inside), outside.tolist()) == (5, [8, 9])


def test_labels_have_the_colors_of_the_figures_and_missing_values_are_gray(found):
    coloring = found.coloring("state")
    assert coloring.labels == ["a < b & c"]
    assert coloring.missing.sum() == 120
    gray = tuple(int(MISSING[i : i + 2], 16) for i in (1, 3, 5))
    assert {tuple(rgb) for rgb in coloring.rgb()[coloring.missing].tolist()} == {gray}
    assert "a &lt; b &amp; c" in coloring.legend()
    assert "missing" in coloring.legend()
    types = found.coloring("cell_type")
    assert types.colors == style.palette("cell_type", types.labels)
    score = found.coloring("score")
    assert np.isnan(score.data).sum() == len(range(0, 600, 7))
    assert {tuple(rgb) for rgb in score.rgb()[score.missing].tolist()} == {gray}
    assert score.low == np.nanmin(score.data)
    assert found.coloring("AE_NMF 1").title.startswith("usage of AE_NMF 1: SYM")


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([0, 0, 0, 0], 0, 1), ([1, 2, 3, 4], 0, 4), ([5, 5, 5], 5, 6), ([2019, 2020], 2019, 2020), ([np.nan], 0, 1)],
)
def test_colors_of_numbers_have_a_finite_scale(values, low, high):
    coloring = color_values(np.array(values, dtype=float), "values")
    assert (coloring.low, coloring.high) == pytest.approx((low, high), rel=0.01)
    assert coloring.rgb().shape == (len(values), 3)


def test_unknown_colors_and_selections_raise_and_list_the_choices(found, paths, tmp_path):
    with pytest.raises(ValueError, match=r"'CD3' is not a column \(cell_type, donor_id, .*Choose one of these"):
        found.color = "CD3"
    with pytest.raises(ValueError, match=r"'barcode'\] has 600 labels, more than 200"):
        found.color = "barcode"
    with pytest.raises(ValueError, match=r"There is no program 4 of 'AE_NMF'. .*AE_NMF \(0 to 3\)"):
        found.program("AE_NMF", 4)
    for color in (None, ["cell_type"]):
        with pytest.raises(ValueError, match=r"(None|\['cell_type'\]) is not a column"):
            found.color = color
    for which in (["CELL0"], "all", [1.7], [np.nan]):
        with pytest.raises(TypeError, match=r"Pass one bool per cell, .*, or the rows of cells as whole numbers"):
            found.select(which)
    with pytest.raises(ValueError, match="rows -1 to 700"):
        found.select([-1, 700])
    with pytest.raises(ValueError, match=r"shape \(3,\). Pass one value for each of the 600 cells"):
        found.select(np.array([True, False, True]))
    other = results.read(paths[0][0])[::-1].copy()
    files.write_h5ad(other, tmp_path / "other.h5ad")
    with pytest.raises(ValueError, match="which are not those of the models"):
        explore([paths[0][1], tmp_path / "other.h5ad"])
    with pytest.raises(ValueError, match="are both of"):
        explore([paths[0][0], paths[0][0]])
    with pytest.raises(ValueError, match="No results file was given"):
        explore([])


def test_skipped_models_are_left_out_and_genes_are_optional(paths, filtered, tmp_path):
    path = tmp_path / "skipped.h5ad"
    with pytest.raises(results.Skipped):
        from aenmf_lib.results.skipping import skip

        skip(path, "CAE_NMF1", filtered, "one donor")
    found = explore([path, next(p for p in paths[0] if p.name.startswith("ae_nmf"))], cells_path=tmp_path / "none.h5ad")
    assert (found.cells.models, found.cells.skipped) == (["AE_NMF"], {"CAE_NMF1": "one donor"})
    found.select([1, 2, 3])
    assert list(found.tables) == ["types", "donors", "programs"]
    with pytest.raises(ValueError, match="no filtered file"):
        found.cells.gene("SYM1")


def test_picture_replaces_the_widgets_without_a_browser(found, monkeypatch):
    shown = found._repr_mimebundle_()
    assert sorted(shown) == ["image/png", "text/plain"]
    assert "600 cells" in shown["text/plain"]
    fig = found.figure()
    assert fig.table["n_cells"].sum() == 600
    assert [ax.get_title() for ax in fig.subfigs[0].axes][:4] == [
        f"{model}, {'principal components' if model == 'Base_NMF' else 'UMAP'}" for model in found.cells.models
    ]
    assert found.figure().png() == fig.png()
    for color in ("score", "AE_NMF 0", "SYM3", module.NUMBER):
        found.color = color
        assert found.figure().png()
    found.color = "cell_type"


def points(n: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return coordinates, labels (-1: missing) and values of clusters of points."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 5, n)
    xy = rng.normal(size=(7, 2))[labels] * 3 + rng.normal(size=(n, 2)) * [1, 0.3]
    return xy.astype(np.float32), labels.astype(np.int16), rng.gamma(1, size=n).astype(np.float32)


VIEWS = {
    "all": None,
    "zoomed": (-1.0, 1.5, -0.5, 2.0),
    "few points": (-5.8, -5.7, 3.3, 3.45),
    "beside": (100.0, 101.0, 100.0, 101.0),
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", VIEWS)
def test_raster_equals_a_histogram(name, threads, monkeypatch):
    monkeypatch.setattr(raster, "_THREADS", threads)
    monkeypatch.setattr(raster, "_POINTS", 1000)
    xy, labels, values = points()
    tiles = Tiles(xy)
    view = VIEWS[name] or fit(tiles.view, 80, 60)
    edges = np.linspace(*view[2:], 61), np.linspace(*view[:2], 81)
    x, y = xy.T.astype(float)
    expected = np.histogram2d(y, x, bins=edges)[0]
    counts = tiles.count(view, 80, 60)
    assert np.abs(counts - expected).sum() <= 2e-4 * expected.sum()  # points on an edge of a pixel
    if name == "all":
        assert counts.sum() == len(xy)
    assert (name == "beside") == (counts.sum() == 0)
    kinds = Coloring("labels", labels, ["#ff0000"] * 5, list("abcde"))
    by_label = tiles.count_labels(kinds, view, 80, 60)
    assert by_label.shape == (60, 80, 6)
    np.testing.assert_array_equal(by_label.sum(axis=2), counts)
    for label in range(6):
        mask = labels == (label if label < 5 else -1)
        histogram = np.histogram2d(y[mask], x[mask], bins=edges)[0]
        assert np.abs(by_label[..., label] - histogram).sum() <= 2e-4 * max(histogram.sum(), 1)
    values[::9] = np.nan
    numbers = Coloring("values", values, ["#000000"] * 256)
    means, n = tiles.average(numbers, view, 80, 60)
    np.testing.assert_array_equal(n, counts)
    there = np.isfinite(values)
    sums, ns = (np.histogram2d(y[there], x[there], bins=edges, weights=w)[0] for w in (values[there], None))
    full = (ns > 0) & (counts == expected)
    np.testing.assert_allclose(means[full], (sums[full] / ns[full]), rtol=1e-4, atol=0.02)


def test_picture_does_not_depend_on_the_order_of_the_points_or_the_threads(monkeypatch):
    xy, labels, values = points()
    order = np.random.default_rng(1).permutation(len(xy))
    for coloring in (None, Coloring("", labels, ["#ff0000", "#00ff00", "#0000ff", "#aa00aa", "#777777"], list("abcde")),
                     color_values(values, "")):  # fmt: skip
        monkeypatch.setattr(raster, "_THREADS", 2)
        view = fit(Tiles(xy).view, 200, 100)
        first = Tiles(xy).image(coloring, view, 200, 100)
        moved = None if coloring is None else type(coloring)(**{**vars(coloring), "data": coloring.data[order]})
        monkeypatch.setattr(raster, "_THREADS", 1)
        second = Tiles(xy[order]).image(moved, view, 200, 100)
        assert (first.shape, first.dtype) == ((100, 200, 4), np.uint8)
        assert np.abs(first.astype(int) - second).max() <= 1  # rounding of sums
        assert (first[..., 3] > 0).any()


def test_color_of_a_pixel_is_the_mean_color_of_its_points():
    xy = np.array([[0, 0], [0, 0], [0, 0], [0, 0], [1, 1], [2, 2]], dtype=np.float32)
    coloring = Coloring("", np.array([0, 0, 0, 1, 1, -1]), ["#ff0000", "#0000ff"], ["a", "b"])
    picture = Tiles(xy).image(coloring, (-0.5, 2.5, -0.5, 2.5), 3, 3)
    assert picture[0, 0, :3].tolist() == [191, 0, 63]
    assert picture[1, 1, :3].tolist() == [0, 0, 255]
    assert picture[2, 2, :3].tolist() == [int(MISSING[i : i + 2], 16) for i in (1, 3, 5)]
    assert picture[0, 2, 3] == 0


def test_points_inside_an_outline_are_found_in_a_zoomed_view():
    xy, *_ = points()
    xy[5] = np.nan
    outline = Outline([(-1, -1), (1, 0), (0.5, 2), (-0.5, 1)])
    expected = np.flatnonzero(outline.contains_points(xy))
    assert len(expected) > 100
    np.testing.assert_array_equal(Tiles(xy).inside(outline, (-1, 1, -1, 2)), expected)


def test_many_labels_give_a_coarser_image(monkeypatch):
    xy, labels, _ = points()
    coloring = Coloring("", labels, ["#ff0000"] * 5, list("abcde"))
    tiles = Tiles(xy)
    view = fit(tiles.view, 90, 60)
    fine = tiles.image(coloring, view, 90, 60)
    monkeypatch.setattr(raster, "_BINS", 90 * 60)
    coarse = tiles.image(coloring, view, 90, 60)
    assert coarse.shape == fine.shape
    assert (coarse[..., 3] > 0).mean() > (fine[..., 3] > 0).mean()


def test_points_without_coordinates_are_left_out_and_no_points_raise():
    xy, *_ = points(1000)
    xy[:10] = np.inf
    tiles = Tiles(xy)
    assert tiles.count(tiles.view, 10, 10).sum() in (988, 989, 990)  # the last points lie on the edge of the view
    assert tiles.count(fit(tiles.view, 10, 10), 10, 10).sum() == 990
    with pytest.raises(ValueError, match="None of the 2 points has finite coordinates"):
        Tiles(np.full((2, 2), np.nan))


def test_no_point_of_a_zoomed_view_is_missing():
    xy, *_ = points(200_000)
    tiles, rng = Tiles(xy), np.random.default_rng(2)
    for x, y in xy[rng.choice(len(xy), 20)]:
        half = rng.uniform(0.02, 0.5)
        view = (x - half, x + half, y - half, y + half)
        inside = (xy[:, 0] >= view[0]) & (xy[:, 0] < view[1]) & (xy[:, 1] >= view[2]) & (xy[:, 1] < view[3])
        assert abs(int(tiles.count(view, 50, 50).sum()) - int(inside.sum())) <= 1  # a point on the edge
