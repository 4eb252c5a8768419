"""The figure of the cohort: the cells of each donor and type, and the donors that were dropped."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.figures import style
from aenmf_lib.figures.heatmaps import light_to_dark
from aenmf_lib.figures.style import NO_RUN
from aenmf_lib.figures.tables import check_table
from aenmf_lib.results import RunInfo

_ROWS = 50  # types beyond this number, at 7 points, are counted together in the last row
_KEPT, _DROPPED = "0.35", "0.8"  # colors of the bars
NO_TYPE = "no type"  # shown for cells without a type, in brackets if a type has this name


class _Layout:
    """The sizes of the panels in mm, and the names that fit."""

    def __init__(self, counts: pd.DataFrame) -> None:
        """Choose the sizes for a table of types × donors."""
        width, line, n = style.page_width("double"), style.line(), counts.shape[1]
        self.rows = style.shorten_labels(counts.index, 0.3 * width)
        room = width - max(map(style.text_width, self.rows)) - 4 * line
        largest = style.text_width(f"{counts.to_numpy().sum(axis=1).max():,}")
        self.column = min((room - np.clip(largest + line, 0.28 * room, 0.4 * room)) / n, 5 * line)  # of the heat map
        self.bars = room - n * self.column  # width of the panel with the cells of each type
        self.columns = style.shorten_labels(counts.columns, 12 * line) if self.column > line else []
        self.upright = any(style.text_width(name) > self.column - line / 2 for name in self.columns)  # rotated
        widest = style.text_width(f"{counts.to_numpy().max():,}")
        self.numbers = widest < self.column - line / 3  # whether the numbers of cells fit into the heat map


@style.figure
def figS3_cohort(cohort: pd.DataFrame, run: RunInfo = NO_RUN) -> style.Sheet:
    """Draw the cells of each donor and type, and which donors were kept, 183 mm wide.

    Panel a: cells of each donor, most cells first, with the minimum number of cells. Panel b: one row per type, one
    column per donor. Panel c: cells of each type. The smallest of more than 50 types are counted in one row. Table: the
    cohort, in the order of the rows and columns.

    Parameters
    ----------
    cohort : ``cohort.csv``: ``donor_id, cell_type`` ('' if missing), ``n_cells``, ``kept`` (of the donor),
        ``min_cells``
    """
    cohort = _check_cohort(cohort, run)
    donors = cohort.groupby(DONOR).agg(n_cells=("n_cells", "sum"), kept=("kept", "first"))
    donors = donors.sort_values(["kept", "n_cells", DONOR], ascending=[False, False, True])
    types = cohort.groupby(CELL_TYPE)["n_cells"].sum().rename_axis(CELL_TYPE).reset_index()
    types = types.assign(missing=types[CELL_TYPE] == "")
    types = types.sort_values(["missing", "n_cells", CELL_TYPE], ascending=[True, False, True])[CELL_TYPE]
    counts = cohort.pivot_table(index=CELL_TYPE, columns=DONOR, values="n_cells", aggfunc="sum", fill_value=0)
    counts = counts.loc[types, donors.index]
    order = {DONOR: donors.index.get_indexer, CELL_TYPE: counts.index.get_indexer}
    table = cohort.sort_values([DONOR, CELL_TYPE], key=lambda column: order[column.name](column), ignore_index=True)
    counts, pooled = _pool(counts, int(_ROWS * 7 / style.current().font_size))
    return _draw(table, counts, donors, pooled, run)


def _check_cohort(cohort: pd.DataFrame, run: RunInfo) -> pd.DataFrame:
    """Return the cohort with its labels as text. Raise ValueError if it is not valid or of another run."""
    name = cohort.attrs.get("source", "cohort.csv")
    check_table(cohort, name, [DONOR, CELL_TYPE, "kept"], ["n_cells", "min_cells"], kept=("True", "False"))
    cohort = cohort.astype({DONOR: str, CELL_TYPE: str, "n_cells": int})
    cohort["kept"] = cohort["kept"].astype(str) == "True"
    n = cohort.loc[cohort["kept"], "n_cells"].sum()
    if run.n_cells and n != (run.sampled_from or run.n_cells):
        expected = f"This run has {run.n_cells:,} cells" + f" of {run.sampled_from:,}" * bool(run.sampled_from)
        raise ValueError(f"{name} contains {n:,} kept cells. {expected}. Run 01_filter again, or pass the table of the "
                         "cells that the models were trained on.")  # fmt: skip
    return cohort


def _pool(counts: pd.DataFrame, most: int) -> tuple[pd.DataFrame, int]:
    """Return the counts with at most so many rows, the last for the smallest types, and the number of these types."""
    counts = counts.rename(index={"": unused_name(NO_TYPE, counts.index)})
    if len(counts) <= most:
        return counts, 0
    first, rest = counts.iloc[: most - 1], counts.iloc[most - 1 :]
    name = unused_name(f"{len(rest):,} others", first.index)
    return pd.concat([first, rest.sum().to_frame(name).T]), len(rest)


def unused_name(name: str, taken: Collection[str]) -> str:
    """Return a name, in brackets if it is taken."""
    while name in taken:
        name = f"({name})"
    return name


def _draw(table: pd.DataFrame, counts: pd.DataFrame, donors: pd.DataFrame, pooled: int, run: RunInfo) -> style.Sheet:
    """Return the figure of a table of types × donors."""
    fit, line, kept = _Layout(counts), style.line(), donors["kept"].to_numpy()
    min_cells = int(table["min_cells"].iloc[0])
    handles = _describe_bars(donors, min_cells, run)
    beside = max(style.text_width(handle.get_label()) for handle in handles) + 3 * line < fit.bars
    column, row = fit.column * counts.shape[1], 1.1 * line * len(counts)
    names = max(map(style.text_width, fit.columns), default=0) if fit.upright else line
    height = 6 * line + row + names + (5 if fit.numbers else 8) * line + (0 if beside else len(handles) * line)
    fig = style.new_figure(table, "double", height, _write_caption(counts, donors, pooled, run))
    heights = [6 * line, row] if fit.numbers else [6 * line, row, 0.6 * line]
    sizes = {"width_ratios": [column, fit.bars], "height_ratios": heights}
    (by_donor, corner), (heat, by_type), *below = fig.subplots(len(heights), 2, gridspec_kw=sizes)
    corner.set_axis_off()
    if beside:
        corner.legend(handles=handles, loc="upper left")
    else:
        fig.legend(handles=handles, loc="outside upper left")
    _draw_donors(by_donor, donors, min_cells)
    mesh = _draw_counts(heat, counts, fit, run)
    if not kept.all():
        heat.axvline(kept.sum(), color="0", lw=0.7, ls="--")
    if below:
        below[0][1].set_axis_off()
        _draw_scale(fig, mesh, below[0][0], column)
    _draw_types(by_type, counts.loc[:, kept].sum(axis=1), counts.sum(axis=1), fit)
    style.letters([by_donor, heat, by_type])
    return fig


def _draw_scale(fig: style.Sheet, mesh: QuadMesh, ax: Axes, width: float) -> None:
    """Draw the scale of the heat map, `width` mm wide."""
    bar = fig.colorbar(mesh, cax=ax, orientation="horizontal", label="cells")
    decades = [n for n in 10.0 ** np.arange(12) if n <= mesh.norm.vmax]
    fits = len(decades) * 1.5 * style.text_width(f"{decades[-1]:,.0f}") < width
    bar.set_ticks(decades if fits else decades[:: len(decades) - 1])
    bar.ax.xaxis.set_major_formatter("{x:,.0f}")
    bar.ax.minorticks_off()


def _describe_bars(donors: pd.DataFrame, min_cells: int, run: RunInfo) -> list[Artist]:
    """Return the entries of the legend."""
    entries = []
    for kept, name, color in ((True, "kept", _KEPT), (False, "dropped", _DROPPED)):
        n_cells = donors.loc[donors["kept"] == kept, "n_cells"]
        if len(n_cells):
            noun = (" donor" if len(n_cells) == 1 else " donors") if run.donor_column == DONOR else ""
            entries.append(Patch(color=color, label=f"{name}: {len(n_cells):,}{noun}, {n_cells.sum():,} cells"))
    return [*entries, Line2D([], [], color="0", lw=0.7, ls="--", label=f"minimum: {min_cells:,} cells")]


def _draw_donors(ax: Axes, donors: pd.DataFrame, min_cells: int) -> None:
    """Draw the cells of each donor, and the threshold."""
    n_cells, n = donors["n_cells"], len(donors)
    color = np.where(donors["kept"], _KEPT, _DROPPED)
    ax.bar(np.arange(n) + 0.5, n_cells, color=color, width=0.8 if n < 50 else 1)
    ax.axhline(min_cells, color="0", lw=0.7, ls="--")
    ax.set(label="donors", xlim=(0, n), ylim=(0, max(n_cells.max(), min_cells) * 1.05), xticks=[], ylabel="cells")
    ax.locator_params("y", nbins=3, steps=style.STEPS, integer=True)
    ax.yaxis.set_major_formatter("{x:,.0f}")


def _draw_counts(ax: Axes, counts: pd.DataFrame, fit: _Layout, run: RunInfo) -> QuadMesh:
    """Draw the heat map. Pairs without a cell are white."""
    values = counts.to_numpy()
    norm, colors = LogNorm(1, max(values.max(), 10)), light_to_dark()
    mesh = ax.pcolormesh(np.ma.masked_equal(values, 0), cmap=colors, norm=norm, rasterized=values.size > style.RASTER)
    ax.set(label="counts", ylim=(len(counts), 0), yticks=np.arange(len(counts)) + 0.5, yticklabels=fit.rows)
    ax.set_xticks(np.arange(len(fit.columns)) + 0.5, fit.columns, rotation=90 if fit.upright else 0)
    if not fit.columns:
        width = fit.column * counts.shape[1]
        ax.set_xlabel(style.shorten_labels([f"{counts.shape[1]:,} {style.label_plural(DONOR, run)}"], width)[0])
    ax.tick_params(length=0)
    if fit.numbers:
        for (i, j), n in np.ndenumerate(values):
            dark = n > 0 and style.luminance(colors(norm(n))) < 0.55
            ax.text(j + 0.5, i + 0.5, f"{n:,}", ha="center", va="center", color="white" if dark else "black")
    return mesh


def _draw_types(ax: Axes, kept: pd.Series, total: pd.Series, fit: _Layout) -> None:
    """Draw the cells of each type: kept, then dropped."""
    y = np.arange(len(total)) + 0.5
    ax.barh(y, kept, color=_KEPT, height=0.8)
    ax.barh(y, total - kept, left=kept, color=_DROPPED, height=0.8)
    ax.set(label="types", ylim=(len(total), 0), yticks=[], xlabel="cells")
    width = style.text_width(f"{total.max():,}") + style.line()
    if width < fit.bars / 2:  # the numbers are readable without an axis
        ax.set_xlim(0, total.max() * fit.bars / (fit.bars - width))
        for at, n in zip(y, total, strict=True):
            ax.annotate(f"{n:,}", (n, at), (2, 0), textcoords="offset points", va="center")
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
    else:
        ax.set_xlim(0, total.max())
        ax.set_xticks([total.max()], [f"{total.max():,}"], ha="right")


def _write_caption(counts: pd.DataFrame, donors: pd.DataFrame, pooled: int, run: RunInfo) -> list[str]:
    """Return the sentences of the caption."""
    donor, all_donors = _name_values("donor", run.donor_column, DONOR)
    label, labels = _name_values("type", run.cell_type_column, CELL_TYPE)
    kept, n_cells = donors["kept"], donors["n_cells"]
    found = f"{n_cells[kept].sum():,} of {n_cells.sum():,} cells"
    return [
        f"Cells of each {donor} and {label}: {kept.sum():,} of {len(kept):,} {all_donors} were kept, with {found}",
        f"a, Cells of each {donor}; the dashed line is the minimum number of cells",
        f"b, Cells of each {label} (rows) and {donor} (columns)"
        + "; white, no cell" * bool((counts == 0).any(axis=None)),
        f"c, Cells of each {label}, kept (dark) and dropped (light)",
        f"The {pooled:,} smallest {labels} are counted in one row" if pooled else "",
        f"A random sample of {run.n_cells:,} of the kept cells was analyzed"
        if run.sampled_from and run.n_cells
        else "",
    ]


def _name_values(word: str, column: str, default: str) -> tuple[str, str]:
    """Return the words for one value and for several values of a label, from the column that the user chose."""
    if column == default:
        return word, f"{word}s"
    return f"value of {style.printable(column)}", f"values of {style.printable(column)}"
