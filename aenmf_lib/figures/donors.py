"""The figure of the donor part: its genes, its share of the reconstruction, and what conditioning removes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from aenmf_lib.data import DONOR
from aenmf_lib.figures import style
from aenmf_lib.figures.donor_variance import SHARES, VariancePlan, draw_variance
from aenmf_lib.figures.heatmaps import color_bar, heatmap, longest, panel, write_rows
from aenmf_lib.figures.style import NO_RUN
from aenmf_lib.figures.tables import check_columns, check_run, check_table
from aenmf_lib.results import RunInfo

_CONDITIONAL = ("CAE_NMF1", "CAE_NMF2", "Untied_AE_NMF")
_DONORS = 24  # rows of a heat map; of more donors, those whose own share is largest
_LEAST_WIDTH = 12  # of the figure, in lines of text
_LEAST_HEAT = 10  # lines of text; a narrower heat map has the bars below it
_SCALE = "difference from the mean of the other donors (log1p)"
_OWN, _OF = "own + in all donors", "% of reconstruction"  # title of the bars
_COLUMNS = ["panel", "Model", DONOR, "gene", "symbol", "program", "quantity", "value"]


@dataclass
class _Panel:
    """What is drawn of one model: the rows, the columns, and their values."""

    model: str
    donors: list[str]
    genes: pd.DataFrame  # one row per column of the heat map: gene, symbol, row of the donor that has it as a top gene
    grid: np.ndarray  # (n_donors, n_genes), difference from the mean of the other donors
    share: pd.DataFrame  # one row per donor: share, share_common


@style.figure
def fig6_donors(
    donor_genes: pd.DataFrame, donor_share: pd.DataFrame, cards: pd.DataFrame, run: RunInfo = NO_RUN
) -> style.Sheet:
    """Draw what the donor part of the conditional models contains, 183 mm wide.

    One panel per conditional model: its top genes in each donor (columns), as the difference of the donor part from the
    mean of the other donors, and the share of the reconstruction that comes from the donor part. Below, the share of
    the variance of each program's usage between donors and between types, before conditioning (AE-NMF) and after. Of
    more than 24 donors, those are drawn whose own share is largest. In a narrow figure, the bars are below the heat
    map. Table: one row per value that is drawn.

    Parameters
    ----------
    donor_genes, donor_share : from ``programs.write_donor_tables``
    cards : from ``programs.write_program_tables``, of AE-NMF and the conditional models

    Raises
    ------
    ValueError
        A table has faults or is of another run, or the figure is narrower than 12 lines of text are high.
    """
    check_columns(donor_genes, "donor_genes.csv", ["Model", DONOR, "rank", "gene", "symbol", "difference"])
    check_columns(donor_share, "donor_share.csv", ["Model", DONOR, "share", "share_common"])
    check_columns(cards, "table of program cards", ["Model", "program", *SHARES])
    if donor_share.empty or donor_genes.empty:
        reason = next(filter(None, map(run.skipped.get, _CONDITIONAL)), "")
        reason = reason or "no results file of this run contains the donor part of a conditional model"
        return style.empty_figure(pd.DataFrame(columns=_COLUMNS), reason, style.run_note("", run))
    check_table(donor_genes, "donor_genes.csv", [], ["difference"])
    check_table(donor_share, "donor_share.csv", [], ["share", "share_common"], run)
    check_run(cards, "table of program cards", run)
    _check_donors(donor_genes, donor_share)
    width, least = style.page_width("double"), math.ceil(_LEAST_WIDTH * style.line())
    if width < least:
        raise ValueError(
            f"fig6_donors is {width:g} mm wide, but needs a width of at least {least} mm at a font size of "
            f"{style.current().font_size:g} points. Set WIDTH={least} or a smaller font_size."
        )

    names = style.model_names([*donor_share["Model"], *cards["Model"]], run)
    size = _Sizes(donor_share[DONOR].unique(), [*names.values()])
    models = filter({*donor_genes["Model"]}.__contains__, _CONDITIONAL)
    panels = [_choose(donor_genes, donor_share, model, int(size.heat / (1.2 * style.line()))) for model in models]
    drawn = ["AE_NMF", *_CONDITIONAL[:2], *({_CONDITIONAL[2]} & {*donor_share["Model"]})]  # untied: only with a U
    variance = cards[cards["Model"].isin(drawn)].melt(["Model", "program"], list(SHARES), "quantity")
    variance = variance.dropna(subset="value")
    order = [model for model in drawn if model in set(variance["Model"])]

    places = [_Places(part, names[part.model], size) for part in panels]
    rows = VariancePlan({model: names[model] for model in order}, stacked=size.stacked) if order else None
    height = sum(place.height for place in places) + (rows.height if rows else 0)
    caption = _notes(panels, donor_share, run, has_variance=bool(order))
    fig = style.new_figure(_list_values(panels, variance), "double", height, caption, names, run)
    fig.set_layout_engine("none")  # all panels are placed in mm
    top, axes = 0.0, []
    for part, place in zip(panels, places, strict=True):
        axes.append(_draw_genes(fig, part, place, top, size))
        top += place.height
    if rows:
        axes += draw_variance(fig, variance, rows, top)
    style.letters(axes)
    return fig


def _check_donors(genes: pd.DataFrame, share: pd.DataFrame) -> None:
    """Raise ValueError unless both tables have the same donors in each model with genes, as tables of one run do."""
    for model in style.in_order(genes["Model"]):
        first, second = (
            dict.fromkeys(table.loc[table["Model"] == model, DONOR].astype(str)) for table in (genes, share)
        )
        if first.keys() != second.keys():
            one, other = (style.join([*map(repr, donors)][:3]) if donors else "none" for donors in (first, second))
            raise ValueError(
                f"The donors of {model} in donor_genes.csv ({len(first)}, such as {one}) and in donor_share.csv "
                f"({len(second)}, such as {other}) differ; {len(first.keys() & second)} are in both. Expected the same "
                "donors, from one run. Run 10_programs again."
            )


class _Sizes:
    """Widths in mm: names of the donors, heat map, bars, and numbers; stacked, if the bars are below the heat map."""

    def __init__(self, donors: Sequence[str], titles: Sequence[str]) -> None:
        """Divide the width of the page."""
        line, page = style.line(), style.page_width("double")
        self.names = longest(style.shorten_labels(donors, 0.2 * page)) + 0.1
        self.numbers = style.text_width("00.0 + 00.0")
        self.bars = max(0.12 * page, 3 * line)
        self.heat = page - self.names - self.bars - self.numbers - 4 * line
        self.stacked = self.heat < max(_LEAST_HEAT * line, *(style.text_width(title, "bold") for title in titles))
        if self.stacked:
            self.heat = page - self.names - 2.5 * line
            self.bars = self.heat - self.numbers - 0.5 * line


class _Places:
    """Where the parts of the panel of one model are, in mm from its top, and the lines of its texts."""

    def __init__(self, part: _Panel, name: str, size: _Sizes) -> None:
        """Place the parts beside each other, or below each other."""
        line, rows = style.line(), 1.2 * style.line() * len(part.donors)
        room = style.page_width("double") - 2.5 * line
        self.genes = style.shorten_labels(part.genes["symbol"], 9 * line)
        self.scale = style.wrap(_SCALE, room if size.stacked else size.bars + size.numbers)
        below = (2 + 1.3 * len(self.scale)) * line  # color bar with its ticks and label
        if size.stacked:
            self.title = style.wrap(name, 0.8 * room)  # bold
            self.shares = style.wrap(f"{_OWN}, {_OF}", room)  # title of the bars
            self.top_of_heat = (1.4 + 1.25 * len(self.title)) * line
            space = (1.2 + 1.25 * len(self.shares)) * line
            self.top_of_shares = self.top_of_heat + rows + longest(self.genes) + space
        else:
            self.title, self.shares = [name], [f"{_OWN},", _OF]
            self.top_of_heat = self.top_of_shares = 2.6 * line
            below = max(longest(self.genes), below)
        self.height = self.top_of_shares + rows + below + 1.9 * line


def _choose(genes: pd.DataFrame, share: pd.DataFrame, model: str, most: int) -> _Panel:
    """Choose the donors (rows) and at most `most` genes (columns) of one model."""
    genes, share = (table[table["Model"] == model].astype({DONOR: str}) for table in (genes, share))
    own = (share["share"] - share["share_common"]).set_axis(share[DONOR])
    share = share[share[DONOR].isin(own.sort_values(ascending=False, kind="stable").index[:_DONORS])]
    donors = list(share[DONOR])
    grid = genes.pivot_table(index=DONOR, columns="gene", values="difference", sort=False).reindex(donors)
    top = genes.dropna(subset="rank")
    top = top[top[DONOR].isin(donors)].sort_values("difference", ascending=False, kind="stable")
    top = top.drop_duplicates("gene")  # a gene belongs to the donor that has it most
    top = top.sort_values(["rank", "difference"], ascending=[True, False], kind="stable")
    top = top[top["rank"] <= max(most // len(donors), 1)].head(max(most, 1))
    top = top.assign(row=top[DONOR].map(donors.index)).sort_values(["row", "rank"], kind="stable")
    return _Panel(model, donors, top[["gene", "symbol", "row"]], grid[top["gene"]].to_numpy(), share)


def _draw_genes(fig: style.Sheet, part: _Panel, place: _Places, top: float, size: _Sizes) -> Axes:
    """Draw the heat map, the shares and the color bar of one model."""
    line = style.line()
    left = size.names + 1.5 * line
    n_rows, n_columns = part.grid.shape
    height, width = 1.2 * line * n_rows, min(size.heat, n_columns * 3 * line)
    ax = panel(fig, left, top + place.top_of_heat, width, height)
    largest = np.abs(part.grid).max(initial=0) or 1
    end = float(f"{min(largest, np.quantile(part.grid[part.genes['row'], np.arange(n_columns)], 0.8)):.1g}") or largest
    heatmap(ax, part.grid, style.current().diverging, (-end, end))
    ax.set_label(part.model)
    for row, columns in part.genes.reset_index().groupby("row").groups.items():
        ax.add_patch(Rectangle((columns[0], row), len(columns), 1, fill=False, lw=0.6, clip_on=False))
    for column, gene in enumerate(place.genes):
        ax.text(column + 0.5, n_rows + 0.2, gene, rotation=90, ha="center", va="top", clip_on=False)
    donors = style.shorten_labels(part.donors, size.names)
    write_rows(ax, -0.4 * line * n_columns / width, donors, ha="right")
    ax.set_title("\n".join(place.title), loc="left", weight="bold")

    right = left if size.stacked else left + size.heat + line
    edge = 1.5 * line if size.stacked else right  # of the title of the bars and of the color bar
    shares = panel(fig, right, top + place.top_of_shares, size.bars, height)
    color = style.color_of(part.model)
    light = tuple(1 - 0.35 * (1 - np.array(to_rgb(color))))
    own, common = part.share["share"] - part.share["share_common"], part.share["share_common"]
    rows = np.arange(n_rows) + 0.5
    shares.barh(rows, own, 0.7, color=color)
    shares.barh(rows, common, 0.7, left=own, color=light)
    limit = (own + common).max() or 1
    shares.set(xlim=(0, limit), ylim=(n_rows, 0), label=f"{part.model} share")
    texts = [f"{100 * a:.1f} + {100 * b:.1f}" for a, b in zip(own, common, strict=True)]
    write_rows(shares, 1.04 * limit, texts)
    if size.stacked:
        write_rows(shares, -0.4 * line * limit / size.bars, donors, ha="right")
    shares.text((edge - right) * limit / size.bars, -0.35, "\n".join(place.shares), va="bottom", linespacing=1.25,
                clip_on=False)  # fmt: skip

    below = top + place.top_of_shares + height + 1.2 * line
    ticks = {-end: f"−{end:g}", 0: "0", end: f"{end:g}"}
    bar = panel(fig, edge, below, size.bars, 0.5 * line)
    color_bar(bar, style.current().diverging, "\n".join(place.scale), ticks)
    return ax


def _list_values(panels: Sequence[_Panel], variance: pd.DataFrame) -> pd.DataFrame:
    """Return one row per value that is drawn."""
    tables = []
    for part in panels:
        n_donors, n_genes = part.grid.shape
        genes = pd.concat([part.genes[["gene", "symbol"]]] * n_donors, ignore_index=True)
        tables.append(genes.assign(panel="genes", Model=part.model, quantity="difference", value=part.grid.ravel()))
        tables[-1][DONOR] = np.repeat(part.donors, n_genes)
        tables.append(part.share.melt(["Model", DONOR], ["share", "share_common"], "quantity").assign(panel="share"))
    tables.append(variance.assign(panel="variance"))
    return pd.concat(tables, ignore_index=True).reindex(columns=_COLUMNS)


def _notes(panels: Sequence[_Panel], share: pd.DataFrame, run: RunInfo, *, has_variance: bool) -> list[str]:
    """Return the sentences of the caption."""
    donors = style.label_plural(DONOR, run)
    n = share.groupby("Model")[DONOR].nunique().max()
    shown = max(len(part.donors) for part in panels)
    absent = [style.name_of(model) for model in _CONDITIONAL[:2]
              if model in run.used_cell_type and model not in set(share["Model"])]  # fmt: skip
    same = [style.name_of(model) for model in style.in_order(share["Model"])
            if model not in [part.model for part in panels]]  # fmt: skip
    first, last = "abcde"[: len(panels)], "abcde"[len(panels) :][: 2 * has_variance]  # letters of the panels
    return [
        f"Content of the donor part of the conditional models, for {n:,} {donors}",
        f"Only the {shown} {donors} with the largest own share are shown" if shown < n else "",
        f"{', '.join(first)}, Heat maps show genes that the donor part adds in one donor (framed) more than in the "
        "others, as the difference from the mean of the other donors in log1p of counts per 10,000, at the mean usages "
        "of all cells; differences beyond the scale have its last color",
        "Bars and numbers show the share of the reconstruction that comes from the donor part, divided into the part "
        f"that differs from other {donors} (own, dark) and the part that all {donors} have (light)",
        f"{style.name_of('CAE_NMF2')} computes the usages with W but reconstructs with W plus the donor part; what "
        f"this adds to W in all {donors} is the light part, which is no difference between them"
        if any(part.model == "CAE_NMF2" for part in panels)
        else "",
        *_variance_notes(last, donors),
        *(f"The donor part of {name} adds no gene in one donor more than in the others" for name in same),
        *(f"The results file of {name} contains no donor part; train this model again" for name in absent),
        *style.run_note(style.cells_of(run), run),
    ]


def _variance_notes(letters: str, donors: str) -> list[str]:
    """Return the sentences about the variance of the usages; none if it is not drawn."""
    if not letters:
        return []
    return [
        f"{letters[0]}, Share of the variance of each program's usage that lies between {donors} within cell types, "
        f"before conditioning ({style.name_of('AE_NMF')}) and after, one point per program, on a logarithmic axis; "
        "lines and numbers, means over the programs",
        f"{letters[1]}, The same for the variance between cell types, on a linear axis",
    ]
