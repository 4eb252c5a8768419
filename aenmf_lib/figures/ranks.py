"""Figure of the measures that help to choose the rank."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from aenmf_lib.figures import style
from aenmf_lib.figures.style import DOUBLE, LINE, NO_RUN, at_least
from aenmf_lib.figures.tables import check_table
from aenmf_lib.results import RunInfo

_LIGHT, _BLUE = "0.6", "#56B4E9"  # sky blue of Okabe & Ito: the color of no model
# panel -> column -> name, color, marker, line
_PANELS = {
    "relative error": {
        "error": ("training cells", _LIGHT, "o", "--"),
        "error_cells": ("held-out cells", "black", "o", "-"),
        "error_donors": ("held-out donors", "black", "s", ":"),
        "error_genes": ("predicted genes", _BLUE, "D", "-"),
    },
    "cosine of matched programs": {
        "starts_median": ("starts, median", _LIGHT, "o", "-"),
        "starts_mean": ("starts, mean", _LIGHT, "o", ":"),
        "halves_median": ("halves of the donors, median", "black", "s", "-"),
        "halves_mean": ("halves of the donors, mean", "black", "s", ":"),
    },
    "dead programs": {"dead": ("", "black", "o", "-")},
    "seconds": {
        "seconds": ("first start", "black", "o", "-"),
        "seconds_more": ("other starts and halves", _LIGHT, "o", "--"),
    },
}
_COUNTS = ["k", "cells", "cells_out", "donors", "donors_out", "starts"]
_TICKS = 7  # maximum number of ranks with a label
_SPAN = 0.05  # minimum range of the errors, so that small differences look small


@style.figure
def rank(table: pd.DataFrame, run: RunInfo = NO_RUN) -> Figure:
    """Plot errors, stability, dead programs and seconds against the rank, 183 mm wide.

    Empty columns are left out, for example the error of held-out donors if there is one donor. The caption gives the
    reason. Table: the given table, sorted by rank.

    Parameters
    ----------
    table : from ``programs.rank_table``: one row per rank ``k``
    """
    columns = [column for lines in _PANELS.values() for column in lines]
    check_table(table, "table of ranks", [*columns, "held_out", "note"], _COUNTS)
    table = table.sort_values("k", ignore_index=True)
    counts, reason = table[_COUNTS].iloc[0].astype(int), table["note"].iloc[0]
    others = f"; held-out donors: {counts['donors_out']:,}" if counts["donors_out"] else ""
    note = [
        f"training: {counts['cells']:,} cells of {counts['donors']:,} donors",
        f"held-out cells: {counts['cells_out']:,} of the same donors{others}",
        "predicted genes: in the held-out cells, each fifth of the genes is predicted from the others",
        f"starts: {counts['starts']}",
        "" if pd.isna(reason) else reason,
        *style.run_note("", run),
    ]
    fig = style.new_figure(table, DOUBLE, 52 + 4 * LINE, note)
    for ax, (title, lines) in zip(fig.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        _draw(ax, title, table, lines)
    return fig


def _draw(ax: Axes, title: str, table: pd.DataFrame, lines: dict[str, tuple[str, str, str, str]]) -> None:
    """Draw the lines of one panel over the ranks, with their legend above."""
    for column, (name, color, marker, line) in lines.items():
        if table[column].notna().any():
            size = 6 if column == "error" else None  # larger, to be visible behind the line of the held-out cells
            ax.plot(table["k"], table[column], color=color, marker=marker, ls=line, label=name, markersize=size)
    ax.set(label=title, xlabel="rank k", ylabel=title, xscale="log")
    ranks = table["k"].to_numpy()
    shown = np.unique(np.linspace(0, len(ranks) - 1, min(len(ranks), _TICKS)).round().astype(int))
    ax.xaxis.set_major_locator(FixedLocator(ranks[shown]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    ax.locator_params("y", integer=title == "dead programs", nbins=5, steps=style.STEPS)
    low, high = ax.get_ylim()
    if title == "relative error":
        ax.set_ylim(at_least(low, high, _SPAN))
    elif title == "cosine of matched programs":
        ax.set_ylim(min(low, 0.5), 1.02)
    else:  # from slightly below 0, so that markers at 0 are not cut
        ax.set_ylim(-0.03 * max(high, 1), max(high, 1))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.01))
