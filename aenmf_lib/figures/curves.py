"""Figures of lines: the loss against the iteration, and the measures that help to choose the rank."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy
from scipy.optimize import isotonic_regression

from aenmf_lib.figures import style
from aenmf_lib.figures.labels import thin_ticks
from aenmf_lib.figures.settings import MM
from aenmf_lib.figures.style import NO_RUN
from aenmf_lib.figures.tables import check_table
from aenmf_lib.results import RunInfo

_NARROW = 12  # lines of text, the width from which names fit beside the panel
_LIGHT, _DARK, _BLUE = "0.6", "0", "#3585B0"  # colors of no model
# panel -> column -> name at the end of its line, color, marker, line
_PANELS = {
    "relative error": {
        "error": ("training cells", _LIGHT, "o", "--"),
        "error_cells": ("held-out cells", _DARK, "o", "-"),
        "error_donors": ("held-out donors", _DARK, "s", ":"),
        "error_genes": ("predicted genes", _BLUE, "D", "-"),
    },
    "cosine of matched programs": {
        "starts_median": ("starts, median", _LIGHT, "o", "-"),
        "starts_mean": ("starts, mean", _LIGHT, "o", ":"),
        "halves_median": ("donor halves, median", _DARK, "s", "-"),
        "halves_mean": ("donor halves, mean", _DARK, "s", ":"),
    },
    "empty programs": {"dead": ("", _DARK, "o", "-")},
    "seconds": {
        "seconds": ("first start", _DARK, "o", "-"),
        "seconds_more": ("other starts\nand halves", _LIGHT, "o", "--"),
    },
}
_COUNTS = ["k", "cells", "cells_out", "donors", "donors_out", "starts"]
_SPAN = 0.05  # minimum range of the errors, so that small differences look small


@style.figure
def figS1_training(history: pd.DataFrame, run: RunInfo = NO_RUN) -> style.Sheet:
    """Draw the loss of each model against the iteration, 89 mm wide.

    One line per model, with its name and last value. A model with one row (NMF, of which only the last value is known)
    is a marker. Table: the history in the order of the models and iterations.

    Parameters
    ----------
    history : from ``results.history``: ``Model, iteration, loss, relative_loss``
    """
    check_table(history, "training history", ["Model"], ["iteration", "loss", "relative_loss"], run)
    names = style.model_names(history["Model"], run)
    lines = {model: history[history["Model"] == model].sort_values("iteration") for model in names}
    single = [style.name_of(model) for model, line in lines.items() if len(line) == 1]
    caption = [
        "Loss of each model during its training: the objective, penalties included, divided by the mean squared norm "
        "of a cell. Numbers are the last values",
        *style.run_note(style.cells_of(run), run),
        f"Only the last value of {style.join(single)} is known (marker)" if single else "",
    ]
    height = 40 + 1.5 * len(lines) * style.line()
    fig = style.new_figure(pd.concat(lines.values(), ignore_index=True), "single", height, caption, names, run)
    ax = fig.subplots()
    for model, line in lines.items():
        marker = "o" if len(line) == 1 else None
        ax.plot(line["iteration"], line["relative_loss"], color=style.color_of(model), marker=marker, label=model)
    ax.set(label="training", xlabel="iteration", ylabel="relative loss")
    ends = [tuple(line[["iteration", "relative_loss"]].iloc[-1]) for line in lines.values()]
    texts = [f"{names[model]}  {y:.3f}" for model, (_, y) in zip(lines, ends, strict=True)]
    colors = [style.color_of(model) for model in lines]
    width = style.page_width("single")
    if width > _NARROW * style.line():
        _label_ends(ax, ends, ["\n".join(style.wrap(text, 0.42 * width)) for text in texts], colors)
    else:  # no space for names beside the panel
        shown = style.shorten_labels(texts, width - 4 * style.line())
        fig.set_size_inches(fig.get_figwidth(), (height + len(shown) * style.line()) / MM)
        style.legend(fig, dict(zip(shown, colors, strict=True)))
    _set_ticks(ax)
    style.mark_cut_axis(ax, "y")
    return fig


@style.figure
def loss_curve(loss_history: Sequence[float]) -> style.Sheet:
    """Draw the loss of one fit against the iteration, 89 mm wide, for the training notebooks.

    Parameters
    ----------
    loss_history : ``loss_history_`` of a model: the objective, one value per iteration
    """
    if (loss := np.asarray(loss_history, dtype=float)).ndim != 1:
        raise ValueError(f"loss_history has shape {loss.shape}. Expected (n_iterations,). Pass model.loss_history_.")
    table = pd.DataFrame({"loss": loss}).rename_axis("iteration").reset_index()
    check_table(table, "loss_history", [], ["loss"])
    values = f"{len(table):,} values, the last {table['loss'].iloc[-1]:.6g}"
    caption = [f"Loss (objective, penalties included) at the start and after each iteration: {values}"]
    fig = style.new_figure(table, "single", 25 + 5 * style.line(), caption)
    ax = fig.subplots()
    ax.plot(table["iteration"], table["loss"], color="0.2", marker="o" if len(table) == 1 else None)
    ax.set(label="loss", xlabel="iteration", ylabel="loss")
    _set_ticks(ax)
    if len(table) == 1:
        ax.set_xticks([0], ["end"])  # scikit-learn reports only the last value
    style.mark_cut_axis(ax, "y")
    return fig


def _set_ticks(ax: Axes) -> None:
    """Set ticks that have space for their labels; iterations are whole numbers."""
    thin_ticks([ax])
    if isinstance(locator := ax.xaxis.get_major_locator(), MaxNLocator):
        locator.set_params(integer=True)


@style.figure
def figS2_rank(table: pd.DataFrame, run: RunInfo = NO_RUN) -> style.Sheet:
    """Plot errors, stability, empty programs and seconds against the rank, 183 mm wide.

    Empty columns are left out, for example the error of held-out donors if there is one donor. The caption gives the
    reason. Table: the given table, sorted by rank.

    Parameters
    ----------
    table : from ``programs.rank_table``: one row per rank ``k``
    """
    columns = [column for lines in _PANELS.values() for column in lines]
    check_table(table, "table of ranks", [*columns, "held_out", "note"], _COUNTS)
    table = table.sort_values("k", ignore_index=True)
    counts, note = table[_COUNTS].iloc[0].astype(int), table["note"].iloc[0]
    panels = {title: lines for title, lines in _PANELS.items() if table[[*lines]].notna().any(axis=None)}
    letters = dict(zip(panels, "abcd", strict=False))
    scored = ["the training cells", _count(counts["cells_out"], "held-out cell") + " of the same donors"]
    scored += [_count(counts["donors_out"], "held-out donor")] if counts["donors_out"] else []
    compared = {"starts_mean": f"between {counts['starts']} random starts"}
    compared |= {"halves_mean": "between fits to halves of the donors"}
    compared = [text for column, text in compared.items() if table[column].notna().any()]
    explained = {
        "relative error": f"Relative errors ‖X − X Wᵀ W‖ / ‖X‖ of {style.join(scored)}. For predicted genes, each "
        "fifth of the genes of the held-out cells is predicted from the other genes; programs that describe noise do "
        "not decrease this error",
        "cosine of matched programs": f"Cosines of programs that were matched {style.join(compared or [''])}",
        "empty programs": "Number of empty programs: those with ‖h‖² ‖w‖² below 0.001% of ‖X‖², where h are the usages "
        "and w the weights",
        "seconds": "Time of the first start, and of the other starts and the fits to halves together",
    }
    caption = [
        "Choice of the rank k with AE-NMF, trained on "
        f"{_count(counts['cells'], 'cell')} of {_count(counts['donors'], 'donor')}",
        *(f"{letters[title]}, {text}" for title, text in explained.items() if title in letters),
        *_list_notes(note),
        *style.run_note("", run),
    ]
    # columns of panels: each needs space for its names, and as much for its lines
    names = [name for lines in _PANELS.values() for name, *_ in lines.values()]
    needed = 2 * max(style.text_width(part) for name in names for part in name.split("\n")) + 8 * style.line()
    n_columns = max(n for n in (1, 2) if n == 1 or n * needed <= style.page_width("double"))
    height = -(-len(panels) // n_columns) * (28 + 7 * style.line())
    fig = style.new_figure(table, "double", height, caption)
    axes = style.panels(fig, len(panels), n_columns)
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        _draw_ranks(ax, title, table, lines)
    for ax, lines in zip(axes, panels.values(), strict=True):
        _label_ranks(ax, table, lines)
    thin_ticks(axes)
    for ax in axes:
        if ax.get_label() == "empty programs":
            ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        _thin_ranks(ax, table["k"].to_numpy())
        style.mark_cut_axis(ax, "y")
    style.letters(axes)
    return fig


def _count(n: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _list_notes(note: object) -> list[str]:
    """Return a sentence for each reason of the table, such as 'one start: no comparison of starts'."""
    reasons = note.split("; ") if isinstance(note, str) and note else []
    parts = [style.printable(reason).partition(": ") for reason in reasons]
    return [f"{what[:1].upper()}{what[1:]}, because there is {why}" if what else why for why, _, what in parts]


def _draw_ranks(ax: Axes, title: str, table: pd.DataFrame, lines: dict[str, tuple[str, str, str, str]]) -> None:
    """Draw the lines of one panel over the ranks."""
    for column, (name, color, marker, line) in lines.items():
        if table[column].notna().any():
            size = 6 if column == "error" else None  # larger, to be visible behind the line of the held-out cells
            ax.plot(table["k"], table[column], color=color, marker=marker, ls=line, label=name, markersize=size)
    ax.set(label=title, xlabel="rank k", xscale="log")
    ax.set_title(title, loc="left")
    ax.xaxis.set_minor_locator(NullLocator())
    low, high = ax.get_ylim()
    if title == "relative error":
        ax.set_ylim(style.at_least(low, high, _SPAN))
    elif title == "cosine of matched programs":
        ax.set_ylim(min(low, 0.5), 1.1)
    else:  # from slightly below 0, so that markers at 0 are not cut
        ax.set_ylim(-0.03 * max(high, 1), 1.1 * max(high, 1))


def _label_ranks(ax: Axes, table: pd.DataFrame, lines: dict[str, tuple[str, str, str, str]]) -> None:
    """Write the names of the lines at their ends."""
    drawn = [column for column, (name, *_) in lines.items() if name and table[column].notna().any()]
    ends = [tuple(table[["k", column]].dropna().iloc[-1]) for column in drawn]
    if drawn:
        _label_ends(ax, ends, [lines[column][0] for column in drawn], [lines[column][1] for column in drawn])


def _thin_ranks(ax: Axes, ranks: np.ndarray) -> None:
    """Set ticks at ranks whose labels have space."""
    x = ax.transAxes.inverted().transform(ax.transData.transform([(k, 0) for k in ranks]))[:, 0]
    x = x * ax.bbox.width / ax.figure.dpi * MM
    shown = [0]
    for i in range(1, len(ranks)):
        if x[i] - x[shown[-1]] > style.text_width(f"{ranks[i]}") + style.line():
            shown.append(i)
    ax.xaxis.set_major_locator(FixedLocator(ranks[shown]))
    ax.xaxis.set_major_formatter("{x:g}")


def _label_ends(ax: Axes, ends: Sequence[tuple[float, float]], texts: Sequence[str], colors: Sequence[str]) -> None:
    """Write texts at the right of a panel, in the order of the ends (x, y) of their lines, without overlap.

    A thin line joins each text to its end. Call this function when all lines are drawn and the limits are set.
    """
    fig = ax.figure.figure
    if engine := fig.get_layout_engine():
        engine.execute(fig)  # sets the height of the panel
    step = style.line() * max(text.count("\n") + 1 for text in texts) / (ax.bbox.height / fig.dpi * MM)
    at = ax.transAxes.inverted().transform(ax.transData.transform(np.asarray(ends, dtype=float)))[:, 1]
    order = np.argsort(at, kind="stable")
    spread = np.arange(len(at)) * step
    low = min(step / 2, 0.5)
    at[order] = isotonic_regression(at[order] - spread).x.clip(low, max(1 - low - spread[-1], low)) + spread
    place = offset_copy(ax.transAxes, fig, x=1.2 * style.line() / MM)
    for end, height, text, color in zip(ends, at, texts, colors, strict=True):
        join = {"arrowstyle": "-", "color": color, "lw": 0.4, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
        ax.annotate(text, end, (1, height), textcoords=place, color=color, va="center", arrowprops=join,
                    annotation_clip=False, linespacing=1)  # fmt: skip
