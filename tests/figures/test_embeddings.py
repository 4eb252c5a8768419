"""UMAPs: each point and color is that of its cell; names fit for any number, length and kind of labels."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from checks import EXTRA, LAYOUTS, ODD_NAMES, axes, check_files, check_layout, marks, settings, simulate, texts
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgba

from aenmf_lib import figures, results
from aenmf_lib.data import read_h5ad
from aenmf_lib.figures import embeddings, map_labels, style
from aenmf_lib.results import RunInfo


def cells(n: int = 300, n_types: int = 4, models=("AE_NMF",), **obs) -> AnnData:
    """Return random maps of cells with separate types and two donors; `obs` are further columns."""
    rng = np.random.default_rng(0)
    types, donors = np.arange(n) % n_types, np.arange(n) // 3 % 2
    columns = {"cell_type": [f"type {i}" for i in types], "donor_id": [f"D{i}" for i in donors]}
    frame = pd.DataFrame(columns | obs, index=[f"cell{i}" for i in range(n)])
    frame = frame.astype({"cell_type": "category", "donor_id": "category"})
    centers = np.array([[np.cos(a), np.sin(a)] for a in np.arange(n_types) * 2 * np.pi / n_types]) * 9
    maps = {f"X_umap_{name}": (centers[types] + rng.normal(size=(n, 2))).astype(np.float32) for name in models}
    return AnnData(obs=frame, obsm=maps)


def draw(coords: AnnData, color_by=(), **options):
    """Draw the figure."""
    return figures.fig2_embeddings(coords, color_by, **options)


def colors_of(fig, column: str, model: str = "AE_NMF") -> dict:
    """Return the color of each drawn cell in a panel."""
    (mark,) = marks(axes(fig)[f"{column} {model}"], PathCollection)
    return dict(zip(fig.table["cell"], map(to_hex, mark.get_facecolors()), strict=True))


@pytest.fixture(scope="module")
def small() -> dict:
    return simulate("small", EXTRA)


@pytest.fixture(scope="module")
def fig(small):
    return draw(small["umap"], run=small["run"])


def test_points_are_the_coordinates_of_their_cells_and_a_label_has_one_color(small, fig):
    table, coords, seen = fig.table, small["umap"], {}
    order = coords.obs_names.get_indexer(table["cell"])
    assert sorted(order) == list(range(400)) and list(order) != sorted(order)
    for model in (*results.MODELS, *EXTRA):
        for label in ("cell_type", "donor_id"):
            (mark,) = marks(axes(fig)[f"{label} {model}"], PathCollection)
            xy = coords.obsm[f"X_umap_{model}"][order]
            np.testing.assert_array_equal(np.asarray(mark.get_offsets(), dtype=np.float32), xy)
            np.testing.assert_array_equal(table[[f"{model}_x", f"{model}_y"]], xy)
            for name, color in zip(coords.obs[label].iloc[order], map(to_hex, mark.get_facecolors()), strict=True):
                assert seen.setdefault((label, name), color) == color
    assert len(set(seen.values())) == len(seen) == 8 + 5  # also between types and donors


def test_panels_are_the_models_and_then_other_embeddings(fig):
    titles = [ax.get_title().replace("\n", " ") for ax in fig.axes if ax.get_title()]
    assert titles == ["Conditional AE-NMF 1†", "Conditional AE-NMF 2", "AE-NMF", "NMF", "Untied AE-NMF", *EXTRA]
    assert "† marks models that were trained with cell types." in fig.caption
    assert "a, Cells colored by cell type. b, Cells colored by donor." in fig.caption
    assert "n = 400 cells, rank k = 12" in fig.caption


def test_each_name_is_near_the_cells_of_its_type():
    coords = cells()
    fig = draw(coords)
    ax = axes(fig)["cell_type AE_NMF"]
    centers = pd.DataFrame(coords.obsm["X_umap_AE_NMF"]).groupby(coords.obs["cell_type"].to_numpy()).mean()
    for text in ax.texts[:-1] if ax.texts[-1].get_text() == "a" else ax.texts:
        if text.get_text() != "a":
            at = np.array(text.xy)  # the end of the line from the name
            assert np.linalg.norm(centers - at, axis=1).argmin() == list(centers.index).index(text.get_text())
    assert {text.get_text() for text in ax.texts} == {*centers.index, "a"}


def test_a_name_has_the_color_of_its_type():
    fig = draw(cells())
    names = dict(zip(fig.table["cell_type"], colors_of(fig, "cell_type").values(), strict=False))
    for text in axes(fig)["cell_type AE_NMF"].texts:
        if text.get_text() in names:
            color, point = np.array(to_rgba(text.get_color())[:3]), np.array(to_rgba(names[text.get_text()])[:3])
            assert np.allclose(color / color.max(), point / point.max(), atol=0.01)  # at most darker


def test_types_whose_names_do_not_fit_have_numbers_that_the_key_explains():
    coords = cells(n_types=12)
    long = {f"type {i}": f"a very long name of the type number {i}, which does not fit" for i in range(12)}
    coords.obs["cell_type"] = coords.obs["cell_type"].cat.rename_categories(long)
    fig = draw(coords)
    key = [text.get_text() for text in fig.subfigs[0].legends[0].get_texts()]
    on_map = {text.get_text() for text in axes(fig)["cell_type AE_NMF"].texts} - {"a"}
    assert on_map == {word.split()[0] for word in key} == {str(i + 1) for i in range(12)}
    assert "Each number (of the legend) is on or next to the densest part of its type, or joined to" in fig.caption
    handles = [to_hex(handle.get_color()) for handle in fig.subfigs[0].legends[0].legend_handles]
    colors = dict(zip(fig.table["cell_type"], colors_of(fig, "cell_type").values(), strict=True))
    assert handles == [colors[name] for name in sorted(long.values())]


def test_texts_on_maps_have_no_boxes_and_lines_to_their_cells():
    for layout in LAYOUTS.values():
        fig = draw(cells(), settings=settings(**layout))
        ax = axes(fig)["cell_type AE_NMF"]
        for text in set(ax.texts) - {text for text in ax.texts if text.get_text() == "a"}:
            assert text.get_bbox_patch() is None
            x, y = ax.transData.transform(text.xy)
            box = next(box for word, box, of in texts(fig) if of is ax and word == text.get_text())
            assert (text.arrow_patch is None) == (box.x0 <= x <= box.x1 and box.y0 <= y <= box.y1)


def test_a_number_is_on_a_large_cluster_and_beside_a_small_one():
    coords = cells(n_types=2)
    long = {f"type {i}": f"a very long name of the type number {i}, " * 3 for i in range(2)}
    coords.obs["cell_type"] = coords.obs["cell_type"].cat.rename_categories(long)
    coords.obsm["X_umap_AE_NMF"][1::2] = [-9, 9] + coords.obsm["X_umap_AE_NMF"][1::2] * 0.05
    coords.obsm["X_umap_AE_NMF"][::2] = [9, 0] + (coords.obsm["X_umap_AE_NMF"][::2] - [9, 0]) * 2
    fig = draw(coords)
    ax = axes(fig)["cell_type AE_NMF"]
    joined = {text.get_text(): text.arrow_patch is not None for text in ax.texts if text.get_text() != "a"}
    assert joined == {"1": False, "2": True}
    box = next(box for word, box, of in texts(fig) if of is ax and word == "2")
    xy = ax.transData.transform(coords.obsm["X_umap_AE_NMF"][1::2])
    assert not any(box.contains(*point) for point in xy)


def test_titles_break_before_a_word_with_its_number():
    tables = simulate("small")
    for width in np.linspace(100, 150, 11):
        fig = draw(tables["umap"], run=tables["run"], settings=settings(width=width / 183, font=9 / 7))
        lines = [line for ax in fig.axes for line in ax.get_title().split("\n")]
        assert not {"1†", "2"} & {*lines} and "AE-NMF" in lines
        assert fig.get_figheight() * 25.4 < 247


def test_numbers_have_a_scale_and_missing_values_are_gray():
    age = np.linspace(20, 80, 300)
    age[7] = np.nan
    fig = draw(cells(age=age), ["age"])
    colors = colors_of(fig, "age")
    assert colors["cell7"] == embeddings._MISSING
    light = [sum(to_rgba(colors[f"cell{i}"])[:3]) for i in (10, 150, 290)]
    assert light == sorted(light) and len(set(light)) == 3  # viridis
    (scale,) = [ax for ax in fig.axes if ax.get_label() == "<colorbar>"]
    assert scale.get_xlim() == pytest.approx(np.nanpercentile(age, (0.5, 99.5)))
    assert "The color scale of age ends at the percentiles 0.5 and 99.5; gray cells have no value." in fig.caption
    assert check_layout(fig, on_panels=True) == []


def test_the_scale_of_one_number_has_different_ticks():
    fig = draw(cells(age=np.full(300, 30.0)), ["age"])
    (scale,) = [ax for ax in fig.axes if ax.get_label() == "<colorbar>"]
    fig.draw_without_rendering()
    texts = [tick.get_text() for tick in scale.get_xticklabels() if tick.get_text()]
    assert len(set(texts)) == len(texts) > 1
    assert scale.get_xlim() == (29.5, 30.5)
    assert "gray" not in fig.caption


def test_other_columns_keep_the_order_of_their_categories_and_have_a_legend():
    stage = pd.Categorical(np.array(["late", "early", None], object)[np.arange(300) % 3], ["early", "middle", "late"])
    treated = np.arange(300) % 2 == 0
    fig = draw(cells(stage=stage, treated=treated), ["stage", "treated", "cell_type"])
    legends = [[text.get_text() for text in part.legends[0].get_texts()] for part in fig.subfigs[1:]]
    assert legends == [["D0", "D1"], ["early", "late", "no value"], ["False", "True"]]
    assert colors_of(fig, "stage")["cell2"] == embeddings._MISSING
    assert list(fig.table)[:5] == ["cell", "cell_type", "donor_id", "stage", "treated"]


def test_cells_without_a_type_are_gray_and_a_type_with_their_name_stays_apart():
    coords = cells()
    coords.obs["cell_type"] = coords.obs["cell_type"].cat.rename_categories({"type 0": "no type"})
    coords.obs.loc["cell3", "cell_type"] = np.nan
    fig = draw(coords)
    table = fig.table.set_index("cell")["cell_type"]
    assert table["cell3"] == "(no type)" and (table == "no type").sum() == 75
    assert [text.get_text() for text in fig.subfigs[0].legends[0].get_texts()] == ["(no type)"]
    assert colors_of(fig, "cell_type")["cell3"] == embeddings._MISSING
    coords.obs["cell_type"] = np.nan
    assert set(draw(coords).table["cell_type"]) == {"no type"}


def test_many_cells_are_a_sample_in_the_same_colors(monkeypatch):
    coords = cells()
    whole = draw(coords)
    monkeypatch.setattr(embeddings, "MAX_POINTS", 3)  # fewer than there are types
    fig = draw(coords)
    assert "n = 300 cells, of which 3 drawn at random (seed 0) are shown" in fig.caption
    pd.testing.assert_frame_equal(fig.table, whole.table[:3])
    everywhere = colors_of(whole, "cell_type")
    assert all(everywhere[cell] == color for cell, color in colors_of(fig, "cell_type").items())


@pytest.mark.parametrize(("n", "pixels"), [(4_000, False), (6_000, True)])  # two panels
def test_more_than_10000_points_are_pixels(n, pixels):
    panels = axes(draw(cells(n)))
    assert {bool(mark.get_rasterized()) for ax in panels.values() for mark in marks(ax, PathCollection)} == {pixels}


@pytest.mark.parametrize(
    ("case", "layout"), [*(("small", layout) for layout in LAYOUTS), ("large", "default"), ("many", "width halved")]
)
def test_no_text_is_cut_or_over_other_text(case, layout):
    tables = simulate(case, EXTRA[:1])
    fig = draw(tables["umap"], settings=settings(**LAYOUTS[layout]))
    assert check_layout(fig, on_panels=True) == []
    if case == "many":
        assert "numbers are missing on a map" in fig.caption
        assert "100 values" in fig.caption  # the donors have no legend


@pytest.mark.parametrize("n_models", [1, 2, 4, 6])
def test_any_number_of_embeddings_fits_into_half_the_width(n_models):
    names = [*results.MODELS, *EXTRA][:n_models]
    run = RunInfo(5, 300, dict.fromkeys(results.MODELS, False))
    fig = draw(cells(models=names), run=run, settings=settings(width=0.5))
    assert check_layout(fig, on_panels=True) == []
    assert ("No UMAP was computed for" in fig.caption) is (n_models < len(results.MODELS))


@pytest.mark.parametrize("layout", ["default", "width halved"])
def test_odd_and_very_long_names_are_all_in_the_key_and_the_csv(layout, tmp_path):
    names = [*ODD_NAMES, *(f"{'very ' * 28}long name of {i}" for i in range(4)), "$\\frac{a}{b}$ é\nβ" + "x" * 140]
    coords = cells(len(names) * 10, len(names))
    coords.obs["cell_type"] = pd.Categorical(np.array(names, object)[np.arange(len(names) * 10) % len(names)])
    coords.obs["batch"] = coords.obs["cell_type"].to_numpy()[::-1]
    results.write_h5ad(coords, tmp_path / "umap.h5ad")
    fig = draw(read_h5ad(tmp_path / "umap.h5ad"), ["batch"], settings=settings(**LAYOUTS[layout]))
    assert check_layout(fig, on_panels=True) == []
    figures.save(fig, tmp_path)
    read = figures.read_table(tmp_path / "fig2_embeddings.csv")
    assert set(read["cell_type"]) == set(names)
    key = [text.get_text() for text in fig.subfigs[0].legends[0].get_texts()]
    assert len(set(key)) == len(names)


def test_one_donor_and_a_type_of_three_cells_are_drawn():
    coords = cells()
    coords.obs["donor_id"] = "only"
    coords.obs["cell_type"] = pd.Categorical(["rare"] * 3 + ["common"] * 297)
    coords.obsm["X_umap_AE_NMF"][:3] = 5.0  # all on one point
    fig = draw(coords)
    assert check_layout(fig, on_panels=True) == []
    assert {"rare", "common"} <= {word for word, *_ in texts(fig)}


def test_the_columns_of_the_user_are_named(small):
    run = RunInfo(12, 400, small["run"].used_cell_type, donor_column="batch", cell_type_column="annotation")
    fig = draw(small["umap"], run=run)
    words = " ".join([word for word, *_ in texts(fig)] + [fig.caption])
    assert "annotation (8)" in words and "batch (5)" in words
    assert "a, Cells colored by annotation. b, Cells colored by batch." in words
    assert not any(word in words.lower() for word in ("donor", "cell type", "cell_type"))


def test_files_are_the_same_bytes_with_real_text(fig, tmp_path):
    check_files(fig, tmp_path)


def test_columns_are_read_from_a_results_file_of_the_same_cells(tmp_path):
    coords = cells(condition=np.array(["x", "y"], object)[np.arange(300) % 2])
    other = AnnData(obs=coords.obs)
    results.write_h5ad(other, tmp_path / "model.h5ad")
    del coords.obs["condition"]
    found = embeddings.add_columns(coords, tmp_path / "model.h5ad", ["condition", "donor_id"])
    assert list(found.obs["condition"]) == list(other.obs["condition"]) and "condition" not in coords.obs
    assert embeddings.add_columns(coords, tmp_path / "nowhere.h5ad", ["donor_id"]) is coords
    with pytest.raises(ValueError, match=r"has no obs column 'conditions'.*Did you mean 'condition'\? .*COLOR_BY"):
        embeddings.add_columns(coords, tmp_path / "model.h5ad", ["conditions"])
    with pytest.raises(ValueError, match="contains 300 cells, which are not the 200 cells of umap"):
        embeddings.add_columns(coords[:200], tmp_path / "model.h5ad", ["condition"])
    with pytest.raises(ValueError, match=r"color_by contains 'condition', which is not a column of obs \(cell_type, "):
        draw(coords, ["condition"])
    with pytest.raises(ValueError, match="which is a column of the coordinates"):
        draw(cells(AE_NMF_x=1.0), ["AE_NMF_x"])


def test_invalid_coordinates_raise(small):
    coords, run = small["umap"], small["run"]
    with pytest.raises(ValueError, match=r"umap.h5ad has no column 'cell_type' \(it has donor_id\)"):
        draw(AnnData(obs=coords.obs[["donor_id"]], obsm=dict(coords.obsm)))
    with pytest.raises(ValueError, match=r"obsm \[\]. Expected 'X_umap_<Model>', such as 'X_umap_AE_NMF'"):
        draw(AnnData(obs=coords.obs))
    with pytest.raises(ValueError, match="contains 399 cells, but this run has 400"):
        draw(coords[1:].copy(), run=run)
    with pytest.raises(ValueError, match="contains Base_NMF, which is not among the models of this run"):
        draw(coords, run=RunInfo(12, 400, {"AE_NMF": False}))
    bad = coords.copy()
    bad.obsm["X_umap_AE_NMF"][7, 0] = np.nan
    with pytest.raises(ValueError, match=r"X_umap_AE_NMF'\] is not finite for 1 of 400 cells \(first: 'cell7'\)"):
        draw(bad)
    bad.obsm["X_umap_AE_NMF"] = np.zeros((400, 3))
    with pytest.raises(ValueError, match=r"X_umap_AE_NMF'\] has shape \(400, 3\). Expected \(400, 2\)"):
        draw(bad)
    bad = coords.copy()
    bad.obs.loc["cell3", "donor_id"] = np.nan
    with pytest.raises(ValueError, match=r"is empty for 1 of 400 cells \(first: 'cell3'"):
        draw(bad)


def test_the_densest_place_of_a_type_in_two_parts_is_in_the_larger_part():
    rng = np.random.default_rng(0)
    xy = np.concatenate([rng.normal(0, 0.3, (20, 2)), rng.normal(8, 0.3, (50, 2))])
    place = map_labels._find_densest(xy, np.array([[-2.0, 10.0], [-2.0, 10.0]]))
    assert np.linalg.norm(place - 8) < 1  # the mean of all cells is between the parts
    assert style.text_width("x") > 0
