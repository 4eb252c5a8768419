"""Figure 4: genes, markers and gene sets of programs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from checks import LAYOUTS, axes, check_files, check_layout, marks, settings
from checks import texts as drawn_texts
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import to_rgb
from program_tables import of_models, simulate_programs

from aenmf_lib import figures
from aenmf_lib.figures.heatmaps import light_to_dark
from aenmf_lib.figures.settings import use
from aenmf_lib.results import RunInfo


def draw(tables: dict, **options):
    return figures.fig4_loadings(tables["genes"], tables["cards"], tables["sets"], **{"run": tables["run"]} | options)


def programs_of(fig) -> list[int]:
    """Return the programs in the order of the columns, as they are written above them."""
    found = [text for text in axes(fig)["programs"].texts if text.get_text().isdigit()]
    return [int(text.get_text()) for text in sorted(found, key=lambda text: text.get_position()[0])]


def genes_of(fig) -> dict[str, bool]:
    """Return the genes in the order of the rows, and whether they are bold."""
    texts = [text for text in axes(fig)["names of genes"].texts if text.get_color() != "0.4"]
    rows = [text for text in texts if text.get_position()[1] > 0]
    rows = sorted(rows, key=lambda text: text.get_position()[1])
    return {text.get_text(): text.get_weight() == "bold" for text in rows}


@pytest.fixture(scope="module")
def small():
    return simulate_programs("small")


@pytest.fixture(scope="module")
def fig(small):
    return draw(small)


@pytest.mark.parametrize(
    ("case", "layout"),
    [*[("small", layout) for layout in LAYOUTS], ("large", "default"), ("large", "width halved"), ("many", "default")],
)
def test_no_text_is_cut_and_no_texts_overlap(case, layout):
    tables = simulate_programs(case)
    fig = draw(tables, settings=settings(**LAYOUTS[layout]))
    assert check_layout(fig) == []
    n, k = len(programs_of(fig)), tables["run"].k
    assert n >= min(k, 7)
    assert (f"{n} of the {k} programs of Conditional AE-NMF 1† are shown" in fig.caption) == (n < k)


def test_large_text_on_a_narrow_page_is_not_cut(small):
    for k in (1, 2, 12):
        tables = {name: small[name][small[name]["program"] < k] for name in ("genes", "cards", "sets")}
        fig = draw(small | tables, run=RunInfo(), settings=settings(font=2, width=0.5))
        assert check_layout(fig) == []
        words = [word.replace("\n", " ") for word, *_ in drawn_texts(fig)]
        assert {"weight / largest weight of the program", "genes in common"} <= {*words}


def test_rotated_names_of_single_columns_do_not_touch_on_a_narrow_page(small):
    cards = small["cards"].assign(top_type="plasmacytoid dendritic " + small["cards"]["program"].astype(str))
    fig = draw(small | {"cards": cards}, settings=settings(font=2, width=0.5, markers={}))
    assert len(programs_of(fig)) > 5
    assert check_layout(fig) == []


def test_files_are_the_same_bytes(fig, tmp_path):
    check_files(fig, tmp_path)


def test_heat_map_has_the_weights_of_the_table_of_genes(fig, small):
    genes = small["genes"].query("Model == 'CAE_NMF1'")
    weights = genes.pivot_table(index="symbol", columns="program", values="weight")
    expected = (weights / genes.groupby("program")["weight"].max()).loc[list(genes_of(fig)), programs_of(fig)]
    (mesh,) = marks(axes(fig)["genes"], QuadMesh)
    values = mesh.get_array().reshape(expected.shape)
    np.testing.assert_allclose(values.filled(np.nan), expected.to_numpy(), rtol=1e-12)
    assert np.nanmax(values) == 1
    assert values.mask.any()  # genes that are not among the largest ones of a program are white


def test_all_genes_of_the_caption_are_rows(fig, small):
    n = int(fig.caption.split("a, The ")[1].split(" genes")[0])
    genes = small["genes"].query("Model == 'CAE_NMF1'")
    largest = genes[(genes["rank"] <= n) & genes["program"].isin(programs_of(fig))]
    assert set(largest["symbol"]) <= set(genes_of(fig))
    others = set(genes_of(fig)) - set(largest["symbol"])
    assert others
    assert all(genes_of(fig)[gene] for gene in others)  # the other rows are markers


def test_rows_are_in_the_order_of_the_program_in_which_they_are_largest(fig):
    genes = fig.table.query("part == 'gene'").sort_values("relative_weight", ascending=False)
    genes = genes.drop_duplicates("gene").sort_values("row")
    assert genes["column"].is_monotonic_increasing


def test_markers_of_the_settings_are_bold_with_their_type(small, fig):
    markers = {gene for genes in figures.read_settings().markers.values() for gene in genes}
    assert {gene for gene, bold in genes_of(fig).items() if bold} == markers & set(genes_of(fig))
    own = replace(settings(), markers={"my cells": ["gene100", "GENE101"]})  # upper or lower case
    mouse = small["genes"].assign(symbol=small["genes"]["symbol"].str.capitalize())
    fig = draw(small | {"genes": mouse}, settings=own)
    genes = genes_of(fig)
    assert {gene for gene, bold in genes.items() if bold} == {"Gene100", "Gene101"} & set(genes)
    found = mouse.query("Model == 'CAE_NMF1' and symbol in ['Gene100', 'Gene101']")["symbol"].unique()
    assert len(found)
    assert set(found) <= set(genes)
    texts = [text.get_text() for text in axes(fig)["names of genes"].texts]
    assert texts.count("my cells") == len(found)
    assert check_layout(fig) == []


def test_programs_are_grouped_by_the_type_that_uses_them_most(fig, small):
    top = small["cards"].query("Model == 'CAE_NMF1'").set_index("program")["top_type"]
    types = [top[program] for program in programs_of(fig)]
    assert types == sorted(types)
    names = [text for text in axes(fig)["programs"].texts if not text.get_text().isdigit()]
    assert [text.get_text() for text in names] == list(dict.fromkeys(types))


def test_programs_that_all_types_use_are_a_group_of_their_own(small):
    usage = small["usage"].copy()
    common = (usage["Model"] == "CAE_NMF1") & usage["program"].isin([3, 5])
    usage.loc[common, "mean_usage"] = np.where(usage.loc[common, "cell_type"] == "type 0", 1.4, 1.0)
    cards = small["cards"].copy()
    cards.loc[(cards["Model"] == "CAE_NMF1") & cards["program"].isin([3, 5]), "top_type"] = "type 0"
    fig = draw(small | {"cards": cards}, usage=usage)
    assert set(programs_of(fig)[-2:]) == {3, 5}
    names = [text.get_text() for text in axes(fig)["programs"].texts if not text.get_text().isdigit()]
    assert names[-1] == "all types" and names.count("all types") == 1
    assert "all types, this usage is below 1.5 times the mean over the types." in fig.caption
    usage.loc[common & (usage["cell_type"] == "type 0"), "mean_usage"] = 2.0  # 2 / 1.125 is above
    fig = draw(small | {"cards": cards}, usage=usage)
    assert "all types" not in [text.get_text() for text in axes(fig)["programs"].texts]
    assert "all types" not in fig.caption


@pytest.mark.parametrize("other", ["B cell", "plasmacytoid-dendritic"])  # names are above their columns, or rotated
def test_names_of_usual_length_are_not_shortened(small, other):
    types = small["cards"].query("Model == 'CAE_NMF1'")["top_type"].unique()
    names = {types[0]: "CD4-positive, alpha-beta T cell", types[1]: other}
    cards = small["cards"].replace({"top_type": names})
    fig = draw(small | {"cards": cards})
    texts = [text.get_text().replace("\n", " ") for text in axes(fig)["programs"].texts]
    assert "CD4-positive, alpha-beta T cell" in texts
    assert check_layout(fig) == []


def test_letters_and_markers_are_in_the_caption_only_if_they_are_drawn(small, fig):
    def letters(fig):
        return [word for word, *_ in drawn_texts(fig) if word in ("a", "b")]

    assert letters(fig) == ["a", "b"]
    assert "markers of cell types (bold)" in fig.caption
    fig = draw(small | {"sets": small["sets"].head(0)}, settings=replace(settings(), markers={"x": ["NOTHING"]}))
    assert letters(fig) == []
    assert "genes with the largest weights in each program. " in fig.caption
    assert "bold" not in fig.caption
    assert "a, The" not in fig.caption


# -------------------------------------------------------------------- gene sets
@pytest.mark.parametrize("least", [1e-55, 0.04, 1e-7, 1e-90])
def test_color_key_of_the_rates_has_round_ticks_that_cover_them(small, least):
    sets = small["sets"].assign(fdr=small["sets"]["fdr"].clip(lower=least))
    sets.loc[sets.index[sets["Model"] == "CAE_NMF1"][0], "fdr"] = least
    fig = draw(small | {"sets": sets})
    bar = next(ax for ax in fig.axes if ax.get_xlabel().startswith("−log10"))
    ticks = [int(text.get_text()) for text in bar.get_xticklabels()]
    assert len(ticks) >= 3 and ticks[-1] >= -np.log10(least)
    assert {f"{tick:.1g}" for tick in np.diff(ticks)} <= {f"{step * ten:.1g}" for step in (1, 2, 5) for ten in (1, 10)}
    (dots,) = marks(axes(fig)["gene sets"], PathCollection)
    assert dots.get_clim() == (0, ticks[-1])


def test_dots_are_the_planted_sets(fig, small):
    (dots,) = marks(axes(fig)["gene sets"], PathCollection)
    names = [text.get_text() for text in axes(fig)["gene sets"].texts]
    columns = programs_of(fig)
    drawn = {(names[int(y)], columns[int(x)]) for x, y in dots.get_offsets()}
    assert {(f"SET_OF_PROGRAM_{program}", program) for program in columns} <= drawn
    table = small["sets"].query("Model == 'CAE_NMF1' and fdr < 0.05").set_index(["gene_set", "program"])
    assert drawn == set(table.index)
    order = [(names[int(y)], columns[int(x)]) for x, y in dots.get_offsets()]
    areas = dots.get_sizes() / dots.get_sizes().max()
    np.testing.assert_allclose(areas, table.loc[order, "overlap"] / table["overlap"].max())
    np.testing.assert_allclose(dots.get_array(), -np.log10(table.loc[order, "fdr"]))
    assert set(fig.table.query("part == 'gene set'")["name"]) == set(names)


def test_without_gene_sets_the_caption_says_so(small):
    fig = draw(small | {"sets": small["sets"].head(0)})
    assert "No gene sets were tested (option GENE_SETS)." in fig.caption
    assert "gene sets" not in axes(fig)
    assert check_layout(fig) == []


def test_sets_without_a_small_rate_give_a_text_in_the_figure(small):
    fig = draw(small | {"sets": small["sets"].assign(fdr=0.7)})
    assert "b, No gene set has a false discovery rate below .05 in these programs." in fig.caption
    text = " ".join(text.get_text().replace("\n", " ") for text in axes(fig)["gene sets"].texts)
    assert text == "No gene set has a false discovery rate below .05 in these programs"
    assert check_layout(fig) == []


def test_at_most_14_sets_with_long_names_are_drawn():
    tables = simulate_programs("middle")
    sets = tables["sets"].assign(gene_set=tables["sets"]["gene_set"] + "_$" + "X" * 150)
    fig = draw(tables | {"sets": sets})
    assert len(axes(fig)["gene sets"].texts) == 14
    assert "The 14 sets with the smallest rates are shown; all are in gene_set_enrichment.csv." in fig.caption
    assert check_layout(fig) == []


# -------------------------------------------------------------------- models and settings
def test_another_model_can_be_drawn_and_missing_ones_are_named(small):
    fig = draw(small, model="Base_NMF")
    assert "Genes of the programs of NMF." in fig.caption
    assert set(fig.table["program"]) <= set(range(12))
    alone = draw(of_models(small, "AE_NMF"), run=RunInfo(12, 400, {"AE_NMF": False}))
    assert "Genes of the programs of AE-NMF." in alone.caption
    assert " not part of this run" in alone.caption
    with pytest.raises(ValueError, match=r"model='AE' is not in the tables\. Choose one of: .*AE_NMF"):
        draw(small, model="AE")


def test_programs_without_types_are_one_group(small):
    cards = small["cards"].assign(top_type="", variance_by_type=np.nan)
    fig = draw(small | {"cards": cards})
    assert [text.get_text() for text in axes(fig)["programs"].texts if not text.get_text().isdigit()] == ["no type"]
    assert check_layout(fig) == []


@pytest.mark.parametrize("name", ["viridis", "Blues", "viridis_r", "magma"])
def test_colormap_starts_at_its_light_end(name):
    with use(replace(settings(), sequential=name)):
        low, high = (sum(to_rgb(light_to_dark()(end))) for end in (0.0, 1.0))
    assert low > high


def test_tables_of_another_run_raise(small):
    with pytest.raises(ValueError, match="contains 12 programs, but this run has 10"):
        draw(small, run=RunInfo(10, 400, {}))
    for table, name, column in [
        ("sets", "gene_set_enrichment", "fdr"), ("sets", "gene_set_enrichment", "size"), ("genes", "programs", "rank")
    ]:  # fmt: skip
        wrong = small[table].astype({column: object})
        wrong.iloc[1, list(wrong).index(column)] = "low"
        with pytest.raises(ValueError, match=rf"{name}\.csv: '{column}' is not a finite number in 1 of .*low in row 2"):
            draw(small | {table: wrong})
    with pytest.raises(ValueError, match="has no column 'fdr'"):
        draw(small | {"sets": small["sets"].head(0).drop(columns="fdr")})
    with pytest.raises(ValueError, match="has no column 'symbol'"):
        draw(small | {"genes": small["genes"].drop(columns="symbol")})
    with pytest.raises(ValueError, match="has no rows"):
        draw(small | {"genes": pd.DataFrame(columns=list(small["genes"]))})
