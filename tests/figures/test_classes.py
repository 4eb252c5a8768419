"""figS4_classes shows F1 and confusion of each cell type, with names that can be read, in every layout."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from checks import EXTRA, LAYOUTS, ODD_NAMES, axes, check_files, check_layout, marks, settings, simulate, texts
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex

from aenmf_lib import figures, results
from aenmf_lib.figures import style
from aenmf_lib.metrics import classification
from aenmf_lib.results import RunInfo


def draw(tables: dict, layout: dict | None = None, **run):
    """Draw the figure as notebook 07 does."""
    run = replace(tables["run"], **run)
    return figures.figS4_classes(tables["by_class"], tables["confusion"], run=run, settings=settings(**(layout or {})))


@pytest.fixture(scope="module")
def small() -> dict:
    return simulate("small")


@pytest.fixture(scope="module")
def drawn(small):
    return draw(small)


def tables_of(counts: np.ndarray, names: list[str], model: str = "AE_NMF") -> dict:
    """Return the tables of one model and classifier with these numbers of cells (class, predicted)."""
    of = {"Model": model, "label": "cell_type", "classifier": "knn"}
    by_class = [
        {**of, "class": name, "n_cells": int(row.sum()), "F1": 0.5} for name, row in zip(names, counts, strict=True)
    ]
    confusion = [
        {**of, "class": names[i], "predicted": names[j], "n_cells": int(counts[i, j])} for i, j in np.argwhere(counts)
    ]
    return {"by_class": pd.DataFrame(by_class), "confusion": pd.DataFrame(confusion), "run": style.NO_RUN}


def test_points_lines_and_colors_equal_the_tables(small, drawn):
    panels, order = axes(drawn), list(drawn.table.drop_duplicates("class")["class"])
    scores = small["by_class"].groupby(["Model", "class"])["F1"].agg(["mean", "min", "max"])
    for model, dots in zip(results.MODELS, marks(panels["F1"], PathCollection), strict=True):
        assert to_hex(dots.get_facecolor()[0]).upper() == style.color_of(model)
        np.testing.assert_allclose(dots.get_offsets()[:, 0], scores.loc[model].loc[order, "mean"])
        np.testing.assert_array_equal(np.floor(dots.get_offsets()[:, 1]), range(len(order)))
    drawn_lines = {
        tuple(np.asarray(s)[:, 0].round(12)) for m in marks(panels["F1"], LineCollection) for s in m.get_segments()
    }
    assert {tuple(row) for row in scores[["min", "max"]].round(12).to_numpy()} <= drawn_lines
    counts = small["confusion"].groupby(["Model", "class", "predicted"])["n_cells"].sum()
    for model in results.MODELS:
        (mesh,) = marks(panels[model], QuadMesh)
        share = np.ma.filled(np.ma.asarray(mesh.get_array()), 0).reshape(len(order), len(order))
        for i, name in enumerate(order):
            row = counts[model, name] / counts[model, name].sum()
            np.testing.assert_allclose(share[i], row.reindex(order, fill_value=0))
    np.testing.assert_allclose(drawn.table.groupby(["Model", "class"])["share"].sum(), 1)


def test_rows_and_columns_have_the_names_of_the_types_in_the_same_order(drawn):
    order = list(drawn.table.drop_duplicates("class")["class"])
    panels = axes(drawn)
    assert [text.get_text() for text in panels["F1"].get_yticklabels()] == [f"{name} (50)" for name in order]
    for model in results.MODELS:
        assert [text.get_text() for text in panels[model].get_xticklabels()] == order
        assert panels[model].get_ylim() == (len(order), 0) and panels["F1"].get_ylim() == (len(order), 0)
    assert list(drawn.table["predicted"][: len(order)]) == order
    assert list(drawn.table["number"].unique()) == list(range(1, len(order) + 1))


@pytest.mark.parametrize("layout", ["font doubled", "width halved"])
def test_numbers_below_the_scores_do_not_touch(layout):
    fig = draw(simulate("middle"), LAYOUTS[layout])
    fig.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes(fig)["F1"].get_xticklabels() if label.get_text()]
    assert len(boxes) >= 2
    for left, right in pairwise(boxes):
        assert right.x0 - left.x1 > 0.27 * left.height


def test_long_names_are_whole_and_their_columns_have_numbers(small):
    names = {"type 0": "CD8-positive, alpha-beta T cell", "type 1": "CD4-positive, alpha-beta T cell"}
    renamed = {key: small[key].replace({"class": names, "predicted": names}) for key in ("by_class", "confusion")}
    fig = draw({**small, **renamed})
    rows = [text.get_text() for text in axes(fig)["F1"].get_yticklabels()]
    assert {*names.values()} <= {row.split(" (")[0] for row in rows} and check_layout(fig) == []
    assert rows[0].endswith("  1") and axes(fig)["AE_NMF"].get_xticklabels()[0].get_text() == "1"
    assert "The numbers of the columns are those of the rows." in fig.caption
    assert "The numbers of the columns" not in draw(small).caption


def test_a_figure_of_six_embeddings_at_120_mm_and_9_points_fits_on_a_page():
    fig = draw(simulate("middle", ("PCA", "Harmony")), {"width": 120 / 183, "font": 9 / 7})
    assert fig.get_figheight() * 25.4 <= 247 and check_layout(fig) == []
    assert axes(fig)["CAE_NMF1"].get_title(loc="left") == "Conditional\nAE-NMF 1†"


def test_the_caption_mentions_the_range_only_if_it_is_drawn(small, drawn):
    assert "lines show the range" in drawn.caption and "400" not in drawn.caption.replace("n = 400", "")
    assert "range" not in draw(simulate("many")).caption


def test_types_that_are_mistaken_for_each_other_are_neighbors():
    names = list("abcdefgh")
    counts = np.diag(np.full(8, 100))
    for i, j in ((0, 5), (1, 7), (2, 4), (3, 6)):
        counts[i, j] = counts[j, i] = 60
    order = list(draw(tables_of(counts, names)).table["class"].drop_duplicates())
    for pair in ("af", "bh", "ce", "dg"):
        assert abs(order.index(pair[0]) - order.index(pair[1])) == 1


def test_shares_below_one_percent_are_white_and_the_scale_is_explained():
    tables = tables_of(np.array([[991, 9, 0], [20, 980, 0], [0, 0, 10]]), ["a", "b", "c"])
    fig = draw(tables)
    (mesh,) = marks(axes(fig)["AE_NMF"], QuadMesh)
    shown = np.ma.getmaskarray(np.ma.asarray(mesh.get_array()).reshape(3, 3))
    order = list(fig.table["class"].drop_duplicates())
    a, b = order.index("a"), order.index("b")
    assert shown[a, b] and not shown[b, a] and not shown[a, a]
    assert "square-root scale; white, less than 1%" in fig.caption
    assert fig.table.query("`class` == 'a' and predicted == 'b'")["share"].item() == 0.009


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("case", "extra"), [("small", ()), ("middle", EXTRA), ("large", EXTRA)])
def test_no_text_is_cut_or_over_other_text(case, extra, layout):
    assert check_layout(draw(simulate(case, extra), LAYOUTS[layout])) == []


def test_200_types_are_numbered_with_a_key_of_their_names():
    tables = simulate("many")
    fig = draw(tables)
    assert check_layout(fig) == []
    key = {int(word.split()[0]): word for word, *_ in texts(fig) if word.endswith("(60)")}
    names = fig.table.drop_duplicates("class").set_index("number")["class"]
    assert sorted(key) == sorted(names.index) == list(range(1, 201))
    for number, name in names.items():
        assert key[number] == f"{number} {name} (60)" or "…" in key[number]
    for model in results.MODELS:
        assert "200" in [text.get_text() for text in axes(fig)[model].get_xticklabels()]
    assert fig.get_figheight() * 25.4 < 310


def test_long_and_odd_names_fit_and_are_all_in_the_csv(tmp_path):
    rng, n = np.random.default_rng(0), len(ODD_NAMES)
    labels = pd.Series(np.array(ODD_NAMES, object)[np.arange(30 * n) % n], dtype="category")
    obs = pd.DataFrame({"cell_type": labels, "donor_id": labels.to_numpy()[::-1]}).astype("category")
    H = {model: rng.random((len(obs), 5)).astype(np.float32) for model in results.MODELS[:2]}
    fits = classification.cross_validate(H, obs, classifiers=["knn"], seeds=[42], n_jobs=1)
    tables = {"run": RunInfo(5)}
    for name, table in (("by_class", classification.per_class(fits)), ("confusion", classification.confusion(fits))):
        results.write_table(table, tmp_path / f"{name}.csv")
        tables[name] = figures.read_table(tmp_path / f"{name}.csv")
    for layout in LAYOUTS.values():
        fig = draw(tables, layout)
        assert check_layout(fig) == []
    figures.save(fig, tmp_path)
    read = figures.read_table(tmp_path / "figS4_classes.csv")
    assert set(read["class"]) == set(read["predicted"]) == set(ODD_NAMES)


@pytest.mark.parametrize("lost", ["NA", "nan", "None", "null", "01"])
def test_a_type_with_the_name_of_a_missing_value_keeps_its_share(lost, tmp_path):
    types = np.array(["T cell", lost, "1"], object)[np.arange(360) % 3]
    H = np.eye(3)[np.arange(360) % 3] + np.random.default_rng(0).gamma(1, 0.6, (360, 3))
    obs = pd.DataFrame({"cell_type": types, "donor_id": np.repeat(["A", "B", "C"], 120)})
    options = {"seeds": [42], "labels": ["cell_type"], "classifiers": ["knn"], "n_jobs": 1}
    long = classification.cross_validate({"AE_NMF": H}, obs, **options)
    counts = classification.confusion(long)
    results.write_table(classification.per_class(long), tmp_path / "by_class.csv")
    results.write_table(counts, tmp_path / "confusion.csv")
    table = figures.figS4_classes(
        *(figures.read_table(tmp_path / f"{name}.csv") for name in ("by_class", "confusion"))
    ).table
    assert set(table["class"]) == set(table["predicted"]) == {"T cell", lost, "1"}
    counts["share"] = counts["n_cells"] / 120
    both = table.merge(counts[["class", "predicted", "share"]], on=["class", "predicted"])
    np.testing.assert_allclose(both["share_x"], both["share_y"])
    assert both["share_y"].sum() == pytest.approx(3)


def test_one_type_gives_the_reason_and_empty_scores_of_donors_change_nothing(small, drawn, tmp_path):
    by_class, other = small["by_class"], small["by_class"].assign(label="donor_id", F1=np.nan)
    confusion = small["confusion"].assign(label="donor_id")
    for table in (pd.concat([by_class.assign(F1=np.nan)[:1], other]), other[:0]):
        fig = draw({**small, "by_class": table, "confusion": confusion[: len(table)]})
        assert "cell_type has fewer than two classes and was not scored" in fig.caption
        assert any("Not drawn" in word for word, *_ in texts(fig)) and check_layout(fig) == []
        figures.save(fig, tmp_path)
        assert len(figures.read_table(tmp_path / "figS4_classes.csv")) == 0
    confusion = pd.concat([small["confusion"], confusion])
    fig = draw({**small, "by_class": pd.concat([by_class, other]), "confusion": confusion})
    pd.testing.assert_frame_equal(fig.table, drawn.table)


def test_fewer_models_and_two_types_are_drawn(small):
    part = {key: small[key][small[key]["Model"] == "AE_NMF"] for key in ("by_class", "confusion")}
    fig = draw({**small, **part}, used_cell_type={"AE_NMF": False})
    assert set(axes(fig)) - {""} == {"F1", "AE_NMF"} and check_layout(fig) == []
    assert "Conditional AE-NMF 1, Conditional AE-NMF 2 and NMF were not part of this run" in fig.caption
    assert check_layout(draw(tables_of(np.array([[3, 0], [1, 2]]), ["rare", "common"]))) == []


def test_captions_report_the_classifiers_the_daggers_and_the_column_of_the_user(small, drawn):
    assert drawn.caption.startswith(
        "Prediction of cell type from the embeddings, by class. n = 400 cells, rank k = 12."
    )
    assert "logistic regression, k nearest neighbors and random forest" in drawn.caption
    assert "Conditional AE-NMF 1†" in " ".join(word for word, *_ in texts(drawn)).replace("\n", " ")
    assert "† marks models that were trained with cell types." in drawn.caption
    own = draw(small, cell_type_column="annotation_level_2", used_cell_type={})
    assert "Prediction of annotation_level_2" in own.caption and "†" not in own.caption
    assert "cell type" not in own.caption


def test_files_have_the_same_bytes_twice(drawn, tmp_path):
    check_files(drawn, tmp_path)


def test_invalid_tables_raise(small):
    drop = ~((small["confusion"]["class"] == "type 3") & (small["confusion"]["Model"] == "AE_NMF"))
    with pytest.raises(ValueError, match=r"contain 40 and 39 pairs of a model and a cell type, of which 39 are in"):
        draw({**small, "confusion": small["confusion"][drop]})
    with pytest.raises(ValueError, match=r"classification_by_class\.csv has no column 'F1'"):
        draw({**small, "by_class": small["by_class"].drop(columns="F1")})
    holed = small["by_class"].copy()
    holed.loc[4, "F1"] = np.nan
    with pytest.raises(ValueError, match=r"'F1' is not a finite number in 1 of 120 rows \(first: nan in row 5\)"):
        draw({**small, "by_class": holed})
    with pytest.raises(ValueError, match="contains AE_NMF, which is not among the models of this run"):
        draw(small, used_cell_type={"CAE_NMF1": True})
