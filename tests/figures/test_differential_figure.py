"""The figure of differential usage: it shows the values of its csv, marks significant tests, and no text is cut."""

import numpy as np
import pandas as pd
import pytest
from checks import LAYOUTS, LONG_NAMES, axes, check_files, check_layout, marks, settings, texts
from matplotlib.collections import PathCollection, QuadMesh

from aenmf_lib import figures
from aenmf_lib.results import MODELS, RunInfo


def simulate(models=MODELS, k=12, n_types=8, share=0.05, names=(), **columns) -> pd.DataFrame:
    """Return a random table of tests, in the shape of ``programs.differential_usage``."""
    rng = np.random.default_rng(0)
    types = [*names, *(f"type {i}" for i in range(n_types))][:n_types]
    index = pd.MultiIndex.from_product([models, range(k), types], names=["Model", "program", "cell_type"])
    n = len(index)
    table = pd.DataFrame({"effect": rng.normal(0, 1, n), "fdr": rng.uniform(0.1, 1, n)}, index=index).reset_index()
    table.loc[rng.random(n) < share, "fdr"] = 0.01
    table.loc[table["cell_type"] == types[-1], ["effect", "fdr"]] = np.nan if n_types > 1 else [1.0, 0.01]
    numbers = {"n_donors_a": rng.integers(2, 5, n), "n_donors_b": 3, "n_pairs": 0, "design": "unpaired"}
    return table.assign(**numbers | {"group_a": "control", "group_b": "stimulated"} | columns)


def cards_of(table) -> pd.DataFrame:
    cards = table[["Model", "program"]].drop_duplicates()
    return cards.assign(top_genes=[f"GENE{p}, SECOND{p}, THIRD{p}, FOURTH{p}" for p in cards["program"]])


def test_colors_dots_and_crosses_equal_csv(tmp_path):
    table = simulate()
    fig = figures.differential(table)
    figures.save(fig, tmp_path)
    saved = figures.read_table(tmp_path / "differential.csv")
    assert set(axes(fig)) >= set(saved["Model"])
    for model, points in saved.groupby("Model"):
        ax = axes(fig)[model]
        grid = points.pivot_table(dropna=False, index="row", columns="cell_type", values="effect")
        (mesh,) = marks(ax, QuadMesh)
        np.testing.assert_allclose(mesh.get_array().filled(np.nan).reshape(grid.shape), grid, rtol=1e-12)
        found, missing = (marks.get_offsets() for marks in marks(ax, PathCollection))
        for at, chosen in ((found, points["fdr"] < 0.05), (missing, points["fdr"].isna())):
            expected = {
                (list(grid).index(t) + 0.5, r + 0.5) for t, r in points.loc[chosen, ["cell_type", "row"]].to_numpy()
            }
            assert {tuple(place) for place in at} == expected
    source = table.merge(saved[["Model", "program"]].drop_duplicates())
    merged = saved.merge(source, on=["Model", "program", "cell_type"], suffixes=("", "_source"))
    assert len(merged) == len(saved) == len(source)
    np.testing.assert_array_equal(merged["effect"], merged["effect_source"])


def test_rows_are_the_programs_with_the_largest_effects():
    table = simulate(models=["AE_NMF"], k=40, share=0.1)
    found = table[table["fdr"] < 0.05]
    size = found["effect"].abs().groupby(found["program"]).max().sort_values(ascending=False)
    fig = figures.differential(table, cards_of(table))
    labels = [text.get_text() for text in axes(fig)["AE_NMF"].texts]
    assert labels[:10] == [f"{p}: GENE{p}, SECOND{p}, THIRD{p}" for p in size.index[:10]]
    assert f"Not shown: {len(size) - 10} more programs of AE-NMF" in fig.caption


def test_captions_report_design_and_donors():
    table = simulate()
    text = figures.differential(table, run=RunInfo(12, 5000, dict.fromkeys(MODELS, False) | {"CAE_NMF1": True})).caption
    numbers = "unpaired t-tests of donors, not cells (2 to 4 control, 3 stimulated)"
    for part in ("n = 5,000 cells", "rank k = 12", numbers, "that were not tested", "trained with cell types"):
        assert part in text
    assert "a, b, c, d, e, Rows are programs" in text
    alone = figures.differential(simulate(models=["AE_NMF"]))
    assert " Rows are programs" in alone.caption and ", Rows" not in alone.caption
    text = figures.differential(simulate(design="paired", n_pairs=8), run=RunInfo(donor_column="patient")).caption
    assert "paired t-tests of values of patient, not cells (8 pairs)" in text


def test_models_without_a_significant_test_are_in_the_caption(tmp_path):
    table = simulate(share=0)
    table.loc[3, "fdr"] = 0.01
    fig = figures.differential(table)
    none = "Conditional AE-NMF 2 (84 tests), AE-NMF (84 tests), NMF (84 tests) and Untied AE-NMF (84 tests)"
    assert f"No test has FDR < .05 in {none}" in fig.caption
    assert [ax.get_title(loc="left") for ax in fig.axes][:1] == ["Conditional AE-NMF 1"]
    fig = figures.differential(simulate(share=0))
    assert fig.caption.startswith("Not drawn: no test has FDR < .05.")
    assert not fig.axes
    figures.save(fig, tmp_path)
    assert pd.read_csv(tmp_path / "differential.csv").empty


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 80, "n_types": 30, "names": LONG_NAMES},
        {"models": ["AE_NMF"], "n_types": 1},
        {"models": ["H"], "n_types": 3, "share": 0.3},
        {"models": ["Base_NMF"], "n_types": 60, "group_a": "a very long name of the " * 9, "group_b": "b" * 99},
        {"share": 0},
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_text_is_cut_or_over_other_text(options, layout):
    table, look = simulate(**options), settings(**LAYOUTS[layout])
    for cards in (cards_of(table), None):
        fig = figures.differential(table, cards, run=RunInfo(80, 592_317, {"CAE_NMF1": True}), settings=look)
        assert check_layout(fig) == []
        assert fig.get_size_inches()[0] * 25.4 in (pytest.approx(look.single), pytest.approx(look.double))


def test_groups_and_types_may_look_like_numbers(tmp_path):
    table = simulate(models=["AE_NMF"], names=["1", "01"], group_a=0, group_b=1)
    words = [word for word, *_ in texts(figures.differential(table))]
    assert {"1", "01", "log₂ of usage: 1 − 0"} <= set(words)


def test_bad_tables_raise():
    table = simulate()
    with pytest.raises(ValueError, match=r"differential_usage\.csv has no column 'fdr'"):
        figures.differential(table.drop(columns="fdr"))
    with pytest.raises(ValueError, match="has no rows"):
        figures.differential(table.iloc[:0])
    with pytest.raises(ValueError, match="table of program cards has no column 'top_genes'"):
        figures.differential(table, table[["Model", "program"]])
    cards = cards_of(table)
    with pytest.raises(ValueError, match=r"cards: 1 of 61 rows repeat the Model, program .*\(first: AE_NMF, 3\)"):
        figures.differential(table, pd.concat([cards, cards[(cards["Model"] == "AE_NMF") & (cards["program"] == 3)]]))
    with pytest.raises(ValueError, match=r"usage\.csv: 480 of 960 rows repeat the Model, program, cell_type"):
        figures.differential(pd.concat([table, table]))


def test_types_without_space_are_those_with_the_fewest_findings():
    table = simulate(models=["AE_NMF"], n_types=60, share=0.1)
    fig = figures.differential(table)
    drawn = set(fig.table["cell_type"])
    found = (table["fdr"] < 0.05) & table["program"].isin(fig.table["program"])
    counts = found.groupby(table["cell_type"]).sum()
    assert len(drawn) == 40
    assert counts[list(drawn)].min() >= counts.drop(list(drawn)).max()
    assert "20 cell types with fewer dots" in fig.caption
    narrow = figures.differential(table, settings=settings(width=0.5))
    assert narrow.table["cell_type"].nunique() < 40


def test_files_are_the_same_twice(tmp_path):
    table = simulate()
    check_files(figures.differential(table, cards_of(table)), tmp_path)
