"""The figure of the donor part: its genes, its share of the reconstruction, and what conditioning removes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from aenmf_lib.data import DONOR
from aenmf_lib.figures import style
from aenmf_lib.figures.heatmaps import color_bar, heatmap, longest, panel, write_rows
from aenmf_lib.figures.settings import MM, POINTS
from aenmf_lib.figures.style import NO_RUN
from aenmf_lib.figures.tables import check_columns, check_run, check_table
from aenmf_lib.results import RunInfo

_CONDITIONAL = ("CAE_NMF1", "CAE_NMF2")
_DONORS = 24  # rows of a heat map; of more donors, those whose own share is largest
_SHARES = {
    "variance_by_donor": "donors, within types",
    "variance_by_type": "types",
}  # column of the cards -> between what
_LEAST = 1e-4  # left end of the axis of the variance between donors; smaller shares are drawn there
_SCALE = "difference from the mean of the other donors (log1p)"
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
    more than 24 donors, those are drawn whose own share is largest. Table: one row per value that is drawn.

    Parameters
    ----------
    donor_genes, donor_share : from ``programs.write_donor_tables``
    cards : from ``programs.write_program_tables``, of AE-NMF and the conditional models
    """
    check_columns(donor_genes, "donor_genes.csv", ["Model", DONOR, "rank", "gene", "symbol", "difference"])
    check_columns(donor_share, "donor_share.csv", ["Model", DONOR, "share", "share_common"])
    check_columns(cards, "table of program cards", ["Model", "program", *_SHARES])
    if donor_share.empty or donor_genes.empty:
        reason = next(filter(None, map(run.skipped.get, _CONDITIONAL)), "")
        reason = reason or "no results file of this run contains the donor part of a conditional model"
        return style.empty_figure(pd.DataFrame(columns=_COLUMNS), reason, style.run_note("", run))
    check_table(donor_genes, "donor_genes.csv", [], ["difference"])
    check_table(donor_share, "donor_share.csv", [], ["share", "share_common"])
    for table, name in ((donor_share, "donor_share.csv"), (cards, "table of program cards")):
        check_run(table, name, run)

    names = style.model_names([*donor_share["Model"], *cards["Model"]], run)
    size = _Sizes.fit(donor_share[DONOR].unique())
    models = filter({*donor_share["Model"]}.__contains__, _CONDITIONAL)
    panels = [_choose(donor_genes, donor_share, model, int(size.heat / (1.2 * style.line()))) for model in models]
    variance = cards[cards["Model"].isin(["AE_NMF", *_CONDITIONAL])].melt(
        ["Model", "program"], list(_SHARES), "quantity"
    )
    variance = variance.dropna(subset="value")
    order = [model for model in ("AE_NMF", *_CONDITIONAL) if model in set(variance["Model"])]

    heights = [_height(part, size) for part in panels]
    below = (2.2 * len(order) + (5.5, 7)[size.narrow]) * style.line() if order else 0
    fig = style.new_figure(
        _list_values(panels, variance), "double", sum(heights) + below, _notes(panels, donor_share, run), names, run
    )
    fig.set_layout_engine("none")  # all panels are placed in mm
    top, axes = 0.0, []
    for part, height in zip(panels, heights, strict=True):
        axes.append(_draw_genes(fig, part, names[part.model], top, size))
        top += height
    if order:
        axes += _draw_variance(fig, variance, {model: names[model] for model in order}, top, below)
    style.letters(axes)
    return fig


@dataclass
class _Sizes:
    """Widths in mm, from left to right: names of the donors, heat map, bars, and numbers."""

    names: float
    heat: float
    bars: float
    numbers: float

    @classmethod
    def fit(cls, donors: Sequence[str]) -> "_Sizes":
        """Divide the width of the page."""
        line, width = style.line(), style.page_width("double")
        names = longest(style.shorten_labels(donors, 0.2 * width)) + 0.1
        bars, numbers = max(0.12 * width, 3 * line), style.text_width("00.0 + 00.0")
        return cls(names, width - names - bars - numbers - 4 * line, bars, numbers)

    @property
    def narrow(self) -> bool:
        """Whether titles need two lines."""
        return style.page_width("double") < 40 * style.line()

    @property
    def scale(self) -> list[str]:
        """The lines of the label of the color bar."""
        return style.wrap(_SCALE, self.bars + self.numbers)


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


def _gene_names(part: _Panel) -> list[str]:
    """Return the shown names of the genes."""
    return style.shorten_labels(part.genes["symbol"], 9 * style.line())


def _height(part: _Panel, size: _Sizes) -> float:
    """Return the height of the panel of one model in mm, with its title, names and color bar."""
    below = max(longest(_gene_names(part)), (2 + 1.3 * len(size.scale)) * style.line())
    return below + (1.2 * len(part.donors) + 4.5) * style.line()


def _draw_genes(fig: style.Sheet, part: _Panel, name: str, top: float, size: _Sizes) -> Axes:
    """Draw the heat map, the shares and the color bar of one model."""
    line = style.line()
    left = size.names + 1.5 * line
    n_rows, n_columns = part.grid.shape
    upper, height = top + 2.6 * line, 1.2 * line * n_rows
    width = min(size.heat, n_columns * 3 * line)
    ax = panel(fig, left, upper, width, height)
    largest = np.abs(part.grid).max(initial=0) or 1
    end = float(f"{min(largest, np.quantile(part.grid[part.genes['row'], np.arange(n_columns)], 0.8)):.1g}") or largest
    heatmap(ax, part.grid, style.current().diverging, (-end, end))
    ax.set_label(part.model)
    for row, columns in part.genes.reset_index().groupby("row").groups.items():
        ax.add_patch(Rectangle((columns[0], row), len(columns), 1, fill=False, lw=0.6, clip_on=False))
    for column, gene in enumerate(_gene_names(part)):
        ax.text(column + 0.5, n_rows + 0.2, gene, rotation=90, ha="center", va="top", clip_on=False)
    for row, donor in enumerate(style.shorten_labels(part.donors, size.names)):
        ax.text(-0.4 * line * n_columns / width, row + 0.5, donor, ha="right", va="center_baseline", clip_on=False)
    ax.set_title(name, loc="left", weight="bold")

    right = left + size.heat + line
    shares = panel(fig, right, upper, size.bars, height)
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
    title = ["own + in all donors,", "% of reconstruction"]
    shares.text(0, -0.35, "\n".join(title), va="bottom", linespacing=1.25, clip_on=False)

    bar = panel(fig, right, upper + height + 1.2 * line, size.bars, 0.5 * line)
    ticks = {-end: f"−{end:g}", 0: "0", end: f"{end:g}"}
    color_bar(bar, style.current().diverging, "\n".join(size.scale), ticks)
    return ax


def _draw_variance(
    fig: style.Sheet, variance: pd.DataFrame, names: dict[str, str], top: float, height: float
) -> list[Axes]:
    """Draw the variance of the usages between donors and between types: one point per program, and the mean."""
    line, width = style.line(), style.page_width("double")
    points = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
    labels = [f"{'before' if model == 'AE_NMF' else 'after'}: {name}" for model, name in names.items()]
    labels = [style.wrap(label, 0.27 * width)[:2] for label in labels]
    left, number = max(map(longest, labels)) + 1.5 * line, style.text_width("0.00 %") + line
    size = (width - left - 2 * number - 2.5 * line) / 2
    axes = []
    for i, (quantity, between) in enumerate(_SHARES.items()):
        bottom = 2.5 * line
        ax = panel(fig, left + i * (size + number + 2 * line), top + height - bottom - 2.2 * line * len(names), size,
                   2.2 * line * len(names))  # fmt: skip
        logarithmic = quantity == "variance_by_donor"
        for row, model in enumerate(names):
            values = variance.loc[(variance["Model"] == model) & (variance["quantity"] == quantity), "value"]
            drawn, mean = (np.maximum(x, _LEAST * logarithmic) for x in (values, values.mean()))
            spread = row + 0.5 + 0.6 * (np.arange(len(values)) * 0.618034 % 1 - 0.5)
            ax.scatter(drawn, spread, s=5, color=style.color_of(model), alpha=0.6, lw=0, clip_on=False)
            ax.plot([mean, mean], [row + 0.12, row + 0.88], color="0", lw=1.2, clip_on=False)
            if len(values):
                text = f"{100 * values.mean():.2g} %"
                ax.annotate(text, (1, row + 0.5), (0.6 * line / MM * POINTS, 0), va="center_baseline", **points)
            if not i:
                ax.annotate("\n".join(labels[row]), (0, row + 0.5), (-0.5 * line / MM * POINTS, 0), va="center",
                            ha="right", linespacing=1, **points)  # fmt: skip
        ax.annotate("mean", (1, 0), (0.6 * line / MM * POINTS, 5), **points)
        if logarithmic:
            ax.set(xscale="log", xlim=(_LEAST, 1))
            ax.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["≤ 0.01", "", "1", "", "100"])
            ax.xaxis.set_minor_locator(NullLocator())
        else:
            ax.set_xticks([0, 0.5, 1], ["0", "50", "100"])
        ax.set(xlim=(_LEAST * logarithmic, 1), ylim=(len(names), 0), label=quantity, xlabel="% of the variance")
        ax.spines["bottom"].set_visible(True)
        ax.set_title("\n".join(style.wrap(f"usage variance between {between}", size)), loc="left")
        axes.append(ax)
    return axes


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


def _notes(panels: Sequence[_Panel], share: pd.DataFrame, run: RunInfo) -> list[str]:
    """Return the sentences of the caption."""
    donors = "donors" if run.donor_column == DONOR else f"values of {style.printable(run.donor_column)}"
    n = share.groupby("Model")[DONOR].nunique().max()
    shown = max(len(part.donors) for part in panels)
    absent = [style.name_of(model) for model in _CONDITIONAL
              if model in run.used_cell_type and model not in set(share["Model"])]  # fmt: skip
    first, last = "abcd"[: len(panels)], "abcd"[len(panels) :][:2]  # letters of the panels
    return [
        f"Content of the donor part of the conditional models, for {n:,} {donors}",
        *style.run_note(f"{run.n_cells:,} cells" if run.n_cells else "", run),
        f"Only the {shown} {donors} with the largest own share are shown" if shown < n else "",
        f"{', '.join(first)}, Heat maps show genes that the donor part adds in one donor (framed) more than in the "
        "others, as the difference from the mean of the other donors in log1p of counts per 10,000, at the mean usages "
        "of all cells; differences beyond the scale have its last color",
        "Bars and numbers show the share of the reconstruction that comes from the donor part, divided into the part "
        "that all donors have and the rest (own)",
        "The decoder and the encoder of Conditional AE-NMF 2 differ, so the part that all donors have is not a donor "
        "effect"
        if any(part.model == "CAE_NMF2" for part in panels)
        else "",
        f"{', '.join(last)}, Points show the share of the variance of each program's usage that lies between donors "
        "within cell types, and between cell types, before conditioning (AE-NMF) and after; lines and numbers show "
        "means over the programs",
        *(f"The results file of {name} contains no donor part; train this model again" for name in absent),
    ]
