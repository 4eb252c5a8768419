"""Figure 3: usages and genes of programs, matched across models."""

import numpy as np
import pandas as pd
import pytest
from checks import LAYOUTS, ODD_NAMES, axes, check_files, check_layout, marks, settings
from matplotlib.collections import QuadMesh
from program_tables import of_models, simulate_programs

from aenmf_lib import figures
from aenmf_lib.figures.heatmaps import choose_programs
from aenmf_lib.results import MODELS, RunInfo


def draw(tables: dict, **options):
    return figures.fig3_programs(
        tables["usage"], tables["cards"], tables["matches"], **{"run": tables["run"]} | options
    )


def written(fig, label: str) -> list[str]:
    """Return the texts of a panel from top to bottom."""
    found = sorted(axes(fig)[label].texts, key=lambda text: text.get_position()[1])
    return [text.get_text() for text in found]


@pytest.fixture(scope="module")
def small():
    return simulate_programs("small")


@pytest.fixture(scope="module")
def fig(small):
    return draw(small)


@pytest.mark.parametrize(("case", "layout"), [*[("small", layout) for layout in LAYOUTS], ("middle", "default")])
def test_no_text_is_cut_and_no_texts_overlap(case, layout):
    assert check_layout(draw(simulate_programs(case), settings=settings(**LAYOUTS[layout]))) == []


@pytest.mark.parametrize(("case", "layout"), [("large", "default"), ("many", "default"), ("many", "font doubled")])
def test_many_types_and_programs_stay_readable(case, layout):
    tables = simulate_programs(case)
    fig = draw(tables, settings=settings(**LAYOUTS[layout]))
    assert check_layout(fig) == []
    shown = fig.table.dropna(subset="row")
    k, n_types = tables["run"].k, tables["usage"]["cell_type"].nunique()
    assert 12 <= shown["row"].nunique() < k
    assert f"{shown['row'].nunique()} of the {k} programs of Conditional AE-NMF 1† are shown" in fig.caption
    columns = fig.table["column"].nunique()
    assert columns >= 6
    assert (f"The {columns} cell types with most cells, of {n_types}, are shown" in fig.caption) == (columns < n_types)
    assert len(fig.table) == len(tables["usage"])  # the csv contains all
    assert "For lack of space, the heat maps of " in fig.caption


def test_large_text_on_a_narrow_page_is_not_cut(small):
    assert check_layout(draw(small, settings=settings(font=2, width=0.5))) == []


def test_files_are_the_same_bytes(fig, tmp_path):
    check_files(fig, tmp_path)


def test_names_that_look_like_numbers_or_formulas_are_drawn(small):
    types = sorted(small["usage"]["cell_type"].unique())
    odd = dict(zip(types, ODD_NAMES[-len(types) :], strict=True))
    usage = small["usage"].assign(cell_type=small["usage"]["cell_type"].map(odd))
    cards = small["cards"].assign(top_type=small["cards"]["top_type"].map(odd))
    fig = draw(small | {"usage": usage, "cards": cards})
    assert check_layout(fig) == []
    assert set(fig.table["cell_type"]) == set(odd.values())


# -------------------------------------------------------------------- values
def test_color_is_the_log_fold_of_the_mean_usage(fig, small):
    usage = small["usage"].pivot_table(index=["Model", "program"], columns="cell_type", values="mean_usage")
    fold = usage.div(usage.mean(axis=1), axis=0)
    types = fig.table.dropna(subset="column").drop_duplicates("column").sort_values("column")["cell_type"].tolist()
    assert sorted(types) == sorted(fold.columns)
    for model in MODELS:
        numbers = [int(number) for number in written(fig, f"numbers {model}")]
        (mesh,) = marks(axes(fig)[model], QuadMesh)
        expected = np.log2(fold.loc[[(model, number) for number in numbers], types].to_numpy())
        np.testing.assert_allclose(mesh.get_array().reshape(expected.shape), expected, atol=1e-12)
        assert [text.get_text() for text in axes(fig)[f"types {model}"].texts] == types


def test_one_row_is_one_planted_program_in_all_models(fig, small):
    k = small["run"].k
    rows = [int(number) for number in written(fig, "numbers CAE_NMF1")]
    for i, model in enumerate(MODELS):
        assert [int(number) for number in written(fig, f"numbers {model}")] == [(row - i) % k for row in rows]
    cosines = fig.table.drop_duplicates(["Model", "program"]).set_index(["Model", "program"])["cosine"]
    (mesh,) = marks(axes(fig)["numbers Base_NMF"], QuadMesh)
    expected = [cosines["Base_NMF", (row - 3) % k] for row in rows]
    np.testing.assert_allclose(mesh.get_array().ravel(), expected)
    assert min(expected) > 0.9


def test_genes_at_a_number_are_those_of_its_card_in_both_panels(fig, small):
    top = small["cards"].query("Model == 'CAE_NMF1'").set_index("program")["top_genes"]
    genes = {program: ", ".join(text.split(", ")[:3]) for program, text in top.items()}
    rows = [int(number) for number in written(fig, "numbers CAE_NMF1")]
    assert sorted(rows) == list(range(small["run"].k))
    assert written(fig, "genes") == [genes[row] for row in rows]
    texts = [text.get_text() for text in axes(fig)["types"].texts]
    at = [i for i, text in enumerate(texts) if text in genes.values()]
    assert len(at) >= 8
    for i in at:
        assert texts[i] == genes[int(texts[i - 1])]


def test_second_panel_lists_the_programs_with_the_largest_fold_in_each_type(fig):
    texts = [text.get_text() for text in axes(fig)["types"].texts]
    own = fig.table[fig.table["Model"] == "CAE_NMF1"]
    for name, part in own.groupby("cell_type"):
        best = part.sort_values("fold", ascending=False).iloc[0]
        i = texts.index(name)
        assert texts[i + 1 : i + 3] == [f"{best['fold']:.1f}×", str(best["program"])]


def test_only_programs_far_above_the_mean_of_types_are_called_specific(small):
    usage = small["usage"].copy()
    rows = (usage["Model"] == "CAE_NMF1") & (usage["cell_type"] == "type 0")
    others = usage[(usage["Model"] == "CAE_NMF1") & ~rows].groupby("program")["mean_usage"].mean()
    usage.loc[rows, "mean_usage"] = (usage.loc[rows, "program"].map(others) * 0.9).to_numpy()
    fig = draw(small | {"usage": usage})
    texts = [text.get_text() for text in axes(fig)["types"].texts]
    folds = [float(text[:-1]) for text in texts if text.endswith("×")]
    assert min(folds) >= 1.5
    assert texts[texts.index("type 0") + 1] == "–"
    assert "at least 1.5); –, no such program." in fig.caption
    flat = draw(small | {"usage": usage.assign(mean_usage=1.0)})
    assert [text.get_text() for text in axes(flat)["types"].texts].count("–") == 8
    assert check_layout(flat) == []


@pytest.mark.parametrize("width", [1, 120 / 183])
def test_names_of_usual_length_are_not_shortened(small, width):
    long = {"type 0": "CD4-positive, alpha-beta T cell", "type 1": "CD8-positive, alpha-beta T cell"}
    usage = small["usage"].replace({"cell_type": long})
    fig = draw(small | {"usage": usage}, settings=settings(width=width))
    for label in ("types CAE_NMF1", "types"):
        assert set(long.values()) <= {text.get_text() for text in axes(fig)[label].texts}
    assert check_layout(fig) == []


def test_caption_says_where_the_color_stops_and_which_heat_maps_are_left_out(fig):
    expected = (
        "a, Mean usage of the programs by cell types, divided by the mean over the types; the color stops at 1/4 "
    )
    assert f"{expected}and 4." in fig.caption
    (mesh,) = marks(axes(fig)["CAE_NMF1"], QuadMesh)
    assert [2.0**end for end in mesh.get_clim()] == [1 / 4, 4]
    narrow = draw(simulate_programs("middle"), settings=settings(width=0.5))
    missing = [model for model in MODELS if model not in axes(narrow)]
    assert missing
    left_out = "Conditional AE-NMF 2, AE-NMF, NMF and Untied AE-NMF"
    assert f"For lack of space, the heat maps of {left_out} are not drawn" in narrow.caption


def test_similar_types_are_next_to_each_other(small):
    rng = np.random.default_rng(0)
    base = rng.gamma(0.3, size=(12, 4))
    names = [f"{part}{i}" for i in range(4) for part in "ab"]
    means = np.repeat(base, 2, axis=1) * rng.uniform(0.95, 1.05, (12, 8))  # the types come in pairs
    order = rng.permutation(8)
    usage = pd.DataFrame(means[:, order], columns=[names[i] for i in order]).rename_axis("program").reset_index()
    usage = usage.melt("program", var_name="cell_type", value_name="mean_usage").assign(Model="CAE_NMF1", n_cells=50)
    cards = small["cards"].query("Model == 'CAE_NMF1'")
    fig = draw({"usage": usage, "cards": cards, "matches": small["matches"].head(0), "run": small["run"]})
    columns = fig.table.drop_duplicates("cell_type").set_index("cell_type")["column"]
    for i in range(4):
        assert abs(columns[f"a{i}"] - columns[f"b{i}"]) == 1
    assert len(axes(fig)["dendrogram"].lines) == 7


def test_a_type_with_one_program_is_at_the_diagonal(fig):
    first = fig.table[(fig.table["Model"] == "CAE_NMF1")].dropna(subset=["row", "column"])
    peaks = first.sort_values("fold", ascending=False).drop_duplicates("program").sort_values("row")
    assert peaks["column"].is_monotonic_increasing


def test_specific_and_large_programs_are_chosen():
    cards = pd.DataFrame(
        {
            "program": range(6),
            "top_type": ["T", "T", "B", "B", "", "T"],
            "variance_by_type": [0.1, 0.9, 0.2, 0.3, np.nan, 0.8],
            "share_of_norm": [0.5, 0.01, 0.02, 0.03, 0.4, 0.3],
        }
    )
    assert choose_programs(cards, 6) == [1, 3, 0, 4, 5, 2]
    assert choose_programs(cards, 4) == [1, 3, 0, 4]
    assert choose_programs(cards, 2) == [1, 0]  # the specific ones are at most half
    assert choose_programs(cards, 3, preferred=[2]) == [1, 2, 0]


# -------------------------------------------------------------------- incomplete runs
def test_other_models_are_drawn_if_one_is_missing(small):
    fig = draw(of_models(small, "AE_NMF", "Base_NMF"), run=RunInfo(12, 400, {"AE_NMF": False, "Base_NMF": False}))
    assert "CAE_NMF1" not in axes(fig)
    assert " not part of this run" in fig.caption
    numbers = [int(number) for number in written(fig, "numbers AE_NMF")]
    assert [int(number) for number in written(fig, "numbers Base_NMF")] == [(number - 1) % 12 for number in numbers]
    alone = draw(of_models(small, "AE_NMF"))
    assert check_layout(alone) == []
    assert "Hungarian" not in alone.caption


def test_a_run_without_types_gives_a_figure_with_the_reason(small):
    fig = draw(small | {"usage": small["usage"].head(0)})
    assert fig.caption.startswith("Not drawn: no cell has a type (cell_type).")
    one = small["usage"].query("cell_type == 'type 0'")
    assert "all cells with a type are of one type (cell_type)" in draw(small | {"usage": one}).caption
    assert check_layout(fig) == []


def test_a_program_that_no_cell_uses_is_empty(small):
    usage = small["usage"].copy()
    usage.loc[(usage["Model"] == "CAE_NMF1") & (usage["program"] == 3), "mean_usage"] = 0.0
    fig = draw(small | {"usage": usage})
    part = fig.table[(fig.table["Model"] == "CAE_NMF1") & (fig.table["program"] == 3)]
    assert part["fold"].isna().all()
    assert check_layout(fig) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"run": RunInfo(10, 400, {})}, "contains 12 programs, but this run has 10"),
        (lambda t: {"usage": t["usage"].drop(columns="mean_usage")}, "has no column 'mean_usage'"),
        (lambda t: {"usage": t["usage"].iloc[1:]}, "Expected 480, one per model, program and cell type"),
        (lambda t: {"cards": t["cards"].iloc[1:]}, "program 0 of CAE_NMF1 is in only one of them"),
        (lambda t: {"matches": t["matches"].query("other != 'AE_NMF'")}, "has no pairs of CAE_NMF1 and AE_NMF"),
        (lambda t: {"usage": t["usage"].assign(mean_usage=np.nan)}, "'mean_usage' is not a finite number"),
    ],
)
def test_tables_of_another_run_raise(small, change, message):
    with pytest.raises(ValueError, match=message):
        draw(small | change(small))
