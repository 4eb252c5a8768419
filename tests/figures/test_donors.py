"""The figure of the donor part: its values are those of its tables, and what cannot be drawn is explained."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from checks import LAYOUTS, ODD_NAMES, axes, check_files, check_layout, marks, settings, texts
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.patches import Rectangle

from aenmf_lib import figures
from aenmf_lib.results import RunInfo

CONDITIONAL = ("CAE_NMF1", "CAE_NMF2", "Untied_AE_NMF")
MODELS = (*CONDITIONAL, "AE_NMF", "Base_NMF")
RUN = RunInfo(12, 4_000, dict.fromkeys(CONDITIONAL, True) | {"AE_NMF": False, "Base_NMF": False})


def simulate(n_donors=5, k=12, *, donors=(), models=CONDITIONAL, symbols=()) -> tuple[pd.DataFrame, ...]:
    """Return tables of genes, shares and program cards in which each donor has ten genes of its own."""
    rng = np.random.default_rng(0)
    donors = [*donors, *(f"D{i:02}" for i in range(n_donors))][:n_donors]
    n = 10 * n_donors
    names = [*symbols, *(f"GENE{i}" for i in range(n))][:n]
    genes, shares = [], []
    for model in models:
        for d, donor in enumerate(donors):
            difference = rng.normal(-0.1, 0.05, n)
            difference[10 * d : 10 * d + 10] = 2 - 0.1 * np.arange(10) - 0.001 * d
            rank = np.full(n, np.nan)
            rank[10 * d : 10 * d + 10] = np.arange(1, 11)
            columns = {"rank": rank, "gene": [f"ENSG{i}" for i in range(n)], "symbol": names, "weight": difference + 1}
            genes.append(pd.DataFrame(columns).assign(Model=model, donor_id=donor, difference=difference))
            share = {"Model": model, "donor_id": donor, "n_cells": 100, "share": 0.4 - d / 1000, "share_common": 0.3}
            shares.append(share)
    programs = pd.MultiIndex.from_product([MODELS, range(k)], names=["Model", "program"]).to_frame(index=False)
    programs["variance_by_type"] = rng.uniform(0, 1, len(programs))
    programs["variance_by_donor"] = rng.uniform(0, 0.1, len(programs)) * (programs["Model"] == "AE_NMF")
    header = ["Model", "donor_id", "rank", "gene", "symbol", "weight", "difference"]
    genes = pd.concat(genes)[header] if genes else pd.DataFrame(columns=header)
    shares = pd.DataFrame(shares, columns=["Model", "donor_id", "n_cells", "share", "share_common"])
    return genes, shares, programs


def test_heat_map_bars_and_points_equal_the_tables(tmp_path):
    genes, share, cards = simulate()
    fig = figures.fig6_donors(genes, share, cards, RUN)
    figures.save(fig, tmp_path)
    saved, panels = figures.read_table(tmp_path / "fig6_donors.csv"), axes(fig)
    for model in CONDITIONAL:
        (mesh,) = marks(panels[model], QuadMesh)
        drawn = saved[(saved["Model"] == model) & (saved["panel"] == "genes")]
        donors, columns = drawn["donor_id"].unique(), drawn["gene"].unique()
        grid = mesh.get_array().filled(np.nan).reshape(len(donors), len(columns))
        source = genes[genes["Model"] == model].pivot_table(index="donor_id", columns="gene", values="difference")
        np.testing.assert_allclose(grid, source.loc[donors, columns], rtol=1e-12)
        words = [text.get_text() for text in panels[model].texts]
        assert [word for word in words if word in set(donors)] == list(donors)
        assert [word for word in words if word.startswith("GENE")] == list(drawn["symbol"].iloc[: len(columns)])
        frames = [patch for patch in panels[model].patches if isinstance(patch, Rectangle)]
        for frame, donor in zip(frames, donors, strict=True):  # frames are around the top genes of the donor
            first, n = int(frame.get_x()), int(frame.get_width())
            expected = genes[(genes["Model"] == model) & (genes["donor_id"] == donor)].nsmallest(n, "rank")["gene"]
            assert (donors[int(frame.get_y())], list(columns[first : first + n])) == (donor, list(expected))
        bars = panels[f"{model} share"].patches
        part = share[share["Model"] == model]
        widths = [bar.get_width() for bar in bars]
        np.testing.assert_allclose(widths, [*(part["share"] - part["share_common"]), *part["share_common"]])
    for quantity in ("variance_by_donor", "variance_by_type"):
        for model, points in zip(("AE_NMF", *CONDITIONAL), marks(panels[quantity], PathCollection), strict=True):
            values = cards.loc[cards["Model"] == model, quantity]
            np.testing.assert_allclose(
                points.get_offsets()[:, 0], np.maximum(values, 1e-4 * quantity.endswith("donor"))
            )
            word = f"{100 * values.mean():.2g} %"
            assert word in [text.get_text() for text in panels[quantity].texts]


def test_caption_explains_what_the_colors_and_bars_are():
    caption = figures.fig6_donors(*simulate(), RUN).caption
    for part in ("5 donors", "n = 4,000 cells, rank k = 12", "difference from the mean of the other donors",
                 "differs from other donors (own, dark) and the part that all donors have (light)",
                 "Conditional AE-NMF 2 computes the usages with W but reconstructs with W plus the donor part",
                 "a, b, c, Heat maps", "d, Share of the variance", "on a logarithmic axis", "trained with cell types",
                 "e, The same for the variance between cell types, on a linear axis"):  # fmt: skip
        assert part in caption
    genes, share, cards = simulate(models=["CAE_NMF1"])
    caption = figures.fig6_donors(genes, share, cards).caption
    assert "a, Heat maps" in caption and "b, Share of the variance" in caption and "c, The same" in caption
    assert "reconstructs with W plus" not in caption


LAYOUTS = {**LAYOUTS, "font doubled, width halved": {"font": 2, "width": 0.5}}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("n_donors", "k"), [(2, 3), (5, 12), (25, 80), (100, 256)])
def test_no_text_is_cut_or_over_other_text(n_donors, k, layout):
    fig = figures.fig6_donors(*simulate(n_donors, k), settings=settings(**LAYOUTS[layout]))
    assert check_layout(fig) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_long_and_odd_names_fit(layout):
    names = [f"donor {'x' * 140} {i}" for i in range(4)]
    for options in ({"donors": names, "symbols": names}, {"n_donors": 24, "donors": ODD_NAMES, "symbols": ODD_NAMES}):
        fig = figures.fig6_donors(*simulate(**options), settings=settings(**LAYOUTS[layout]))
        assert check_layout(fig) == []


def test_of_many_donors_those_with_the_largest_own_share_are_drawn():
    fig = figures.fig6_donors(*simulate(30), RUN)
    drawn = fig.table.loc[fig.table["panel"] == "share", "donor_id"].unique()
    assert list(drawn) == [f"D{i:02}" for i in range(24)]
    assert "Only the 24 donors with the largest own share are shown" in fig.caption


def test_panels_of_a_very_narrow_figure_are_below_each_other():
    fig = figures.fig6_donors(*simulate(), RUN, settings=settings(font=2, width=0.5))
    boxes = {name: ax.get_position() for name, ax in axes(fig).items()}
    order = [name for model in CONDITIONAL for name in (model, f"{model} share")]
    order += ["variance_by_donor", "variance_by_type"]
    for upper, lower in itertools.pairwise(order):
        assert boxes[upper].y0 > boxes[lower].y1
    assert all(boxes[name].width > 0.2 for name in order)
    for name in order[:6]:  # each row has the name of its donor, and letters and titles are complete
        assert {f"D{i:02}" for i in range(5)} <= {text.get_text() for text in axes(fig)[name].texts}
    words = [word.replace("\n", " ") for word, *_ in texts(fig)]
    assert [word for word in words if word in "abcde"] == [*"abcde"]
    for word in ("Conditional AE-NMF 1†", "after: Conditional AE-NMF 1†", "own + in all donors, % of reconstruction"):
        assert word in words


@pytest.mark.parametrize(("font", "least"), [(1, 38), (2, 75)])
def test_smallest_width_is_in_the_error_and_works(font, least):
    look = settings(font=font)
    with pytest.raises(ValueError, match=rf"needs a width of at least {least} mm .* Set WIDTH={least} or a smaller"):
        figures.fig6_donors(*simulate(), RUN, settings=replace(look, double=least - 1))
    for width in (least, 1.1 * least, 1.6 * least):
        assert check_layout(figures.fig6_donors(*simulate(), RUN, settings=replace(look, double=width))) == []


def test_a_narrow_figure_shows_fewer_genes_of_each_donor():
    wide, narrow = (figures.fig6_donors(*simulate(), settings=settings(width=w)).table for w in (1, 0.5))
    counts = [table[table["Model"] == "CAE_NMF1"]["gene"].nunique() for table in (wide, narrow)]
    assert counts[0] > counts[1] >= 5


def test_without_a_conditional_model_the_figure_says_why():
    skipped = "obs['donor_id'] contains only one donor ('a'). CAE_NMF1 needs at least 2."
    runs = {
        skipped: RunInfo(12, 4_000, {"AE_NMF": False}, skipped={"CAE_NMF1": skipped, "CAE_NMF2": skipped}),
        "no results file of this run contains the donor part": RunInfo(12, 4_000, {"AE_NMF": False}),
    }
    for reason, run in runs.items():
        genes, share, cards = simulate(models=())
        for layout in LAYOUTS.values():
            fig = figures.fig6_donors(genes, share, cards[cards["Model"] == "AE_NMF"], run, settings=settings(**layout))
            assert check_layout(fig) == []
        assert fig.table.empty
        assert reason in fig.caption
        assert reason.split()[0] in " ".join(word for word, *_ in texts(fig))


def test_one_conditional_model_is_drawn_and_the_missing_part_is_reported():
    genes, share, cards = simulate(models=["CAE_NMF1"])
    fig = figures.fig6_donors(genes, share, cards, RUN)
    assert "CAE_NMF2" not in axes(fig)
    assert "The results file of Conditional AE-NMF 2 contains no donor part; train this model again." in fig.caption
    run = RunInfo(12, 4_000, {"CAE_NMF1": True, "AE_NMF": False})
    fig = figures.fig6_donors(genes, share, cards[cards["Model"].isin(["CAE_NMF1", "AE_NMF"])], run)
    assert "Conditional AE-NMF 2 and NMF were not part of this run." in fig.caption
    assert check_layout(fig) == []


def test_an_untied_model_without_donors_is_not_drawn():
    genes, share, cards = simulate(models=["CAE_NMF1", "CAE_NMF2"])
    fig = figures.fig6_donors(
        genes, share, cards, replace(RUN, used_cell_type={**RUN.used_cell_type, CONDITIONAL[2]: False})
    )
    assert CONDITIONAL[2] not in {*fig.table["Model"]}
    assert "Untied AE-NMF" not in fig.caption


def test_without_variances_the_donor_part_is_still_drawn():
    genes, share, cards = simulate()
    fig = figures.fig6_donors(genes, share, cards.assign(variance_by_type=np.nan), RUN)  # one type
    assert check_layout(fig) == []
    fig = figures.fig6_donors(genes, share, cards.assign(variance_by_type=np.nan, variance_by_donor=np.nan), RUN)
    assert set(fig.table["panel"]) == {"genes", "share"}
    assert "variance" not in fig.caption
    assert check_layout(fig) == []


def test_tables_with_faults_or_of_another_run_are_refused():
    genes, share, cards = simulate()
    with pytest.raises(ValueError, match=r"donor_genes\.csv has no column 'difference'"):
        figures.fig6_donors(genes.drop(columns="difference"), share, cards)
    with pytest.raises(ValueError, match=r"donor_share\.csv: 'share' is not a finite number in 15 of 15 rows"):
        figures.fig6_donors(genes, share.assign(share=np.nan), cards)
    with pytest.raises(ValueError, match="contains 12 programs, but this run has 5"):
        figures.fig6_donors(genes, share, cards, RunInfo(5, 4_000, RUN.used_cell_type))
    with pytest.raises(ValueError, match=r"donor_share\.csv contains CAE_NMF1, which is not among the models"):
        figures.fig6_donors(genes, share, cards, RunInfo(12, 4_000, {"AE_NMF": False}))
    other = simulate(donors=["patient 1", "patient 2"], n_donors=2)[1]
    message = (r"donors of CAE_NMF1 in donor_genes\.csv \(5, such as 'D00', 'D01' and 'D02'\) and in "
               r"donor_share\.csv \(2, such as 'patient 1' and 'patient 2'\) differ; 0 are in both")  # fmt: skip
    with pytest.raises(ValueError, match=message):
        figures.fig6_donors(genes, other, cards)
    with pytest.raises(ValueError, match=r"and in donor_share\.csv \(0, such as none\) differ"):
        figures.fig6_donors(genes, share[share["Model"] == "CAE_NMF1"], cards)


def test_a_model_whose_donors_do_not_differ_is_left_out():
    genes, share, cards = simulate()
    fig = figures.fig6_donors(genes[genes["Model"] == "CAE_NMF1"], share, cards, RUN)
    assert "CAE_NMF2" not in axes(fig)
    assert "The donor part of Conditional AE-NMF 2 adds no gene in one donor more than in the others." in fig.caption
    assert check_layout(fig) == []


def test_files_are_the_same_twice(tmp_path):
    check_files(figures.fig6_donors(*simulate(), RUN), tmp_path)
