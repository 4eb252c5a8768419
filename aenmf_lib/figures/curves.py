"""Figures of the loss against the iteration, and of the conditioning study over the strength of the penalties."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.figures import style
from aenmf_lib.figures.style import COLORS, DOUBLE, LINE, NO_RUN, SINGLE, at_least
from aenmf_lib.figures.tables import check_table
from aenmf_lib.results import RunInfo

_PANELS = {"NMI": "clusters (NMI)", "knn": "15 neighbors (F1)", "unseen_NMI": "clusters, held-out donors (NMI)"}
_LABELS = {  # labels that training used -> marker, name
    CELL_TYPE: ("o", f"trained with {CELL_TYPE}"),
    "clusters": ("D", "trained with inferred clusters"),
    "none": ("^", "without labels"),
}
_TYPES_ONLY = "Types"  # the baseline that contains the cell types and nothing else
_COLUMNS = ["on", "Model", "strength", "labels", "gene_weights", "n_starts"]
_SPAN = 0.1  # minimum range of an axis, so that small differences look small


@style.figure
def training(history: pd.DataFrame, run: RunInfo = NO_RUN) -> Figure:
    """Draw the loss of each model against the iteration, 89 mm wide.

    One line per model; the legend gives the last values. A model with one row (Base NMF, of which only the last value
    is known) is a marker. Table: the history in the order of the models and iterations.

    Parameters
    ----------
    history : from ``results.history``: ``Model, iteration, loss, relative_loss``
    """
    check_table(history, "training history", ["Model"], ["iteration", "loss", "relative_loss"])
    models = style.titles(history["Model"], {})
    lines = {model: history[history["Model"] == model].sort_values("iteration") for model in models}
    note = [
        *style.run_note(f"{run.n_cells:,} cells" if run.n_cells else "", run),
        "relative loss: the objective, penalties included, over the mean squared norm of a cell",
        "numbers: last values",
        "marker: only the last value is known" if min(map(len, lines.values())) == 1 else "",
    ]
    fig = style.new_figure(pd.concat(lines.values(), ignore_index=True), SINGLE, 53 + 2 * LINE, note)
    ax = fig.subplots()
    for model, line in lines.items():
        marker = "o" if len(line) == 1 else None
        ax.plot(line["iteration"], line["relative_loss"], color=COLORS[model], marker=marker, label=model)
    ax.set(label="training", xlabel="iteration", ylabel="relative loss")
    ax.locator_params("x", nbins=4, steps=style.STEPS, integer=True)
    style.legend(fig, {f"{model} {line['relative_loss'].iloc[-1]:.3f}": COLORS[model] for model, line in lines.items()})
    return fig


@style.figure
def loss_curve(loss_history: Sequence[float]) -> Figure:
    """Draw the loss of one fit against the iteration, 89 mm wide, for the training notebooks.

    Parameters
    ----------
    loss_history : ``loss_history_`` of a model: the objective, one value per iteration
    """
    if (loss := np.asarray(loss_history, dtype=float)).ndim != 1:
        raise ValueError(f"loss_history has shape {loss.shape}. Expected (n_iterations,). Pass model.loss_history_.")
    table = pd.DataFrame({"loss": loss}).rename_axis("iteration").reset_index()
    check_table(table, "loss_history", [], ["loss"])
    fig = style.new_figure(table, SINGLE, 40, [f"values: {len(table):,}, the last {table['loss'].iloc[-1]:.6g}"])
    ax = fig.subplots()
    ax.plot(table["iteration"], table["loss"], color="0.2", marker="o" if len(table) == 1 else None)
    ax.set(label="loss", xlabel="iteration", ylabel="loss")
    ax.locator_params(nbins=5, steps=style.STEPS)
    ax.locator_params("x", integer=True)
    if len(table) == 1:
        ax.set_xticks([0], ["end"])  # scikit-learn reports only the last value
    return fig


@style.figure
def conditioning(table: pd.DataFrame, run: RunInfo = NO_RUN) -> Figure:
    """Plot the cell-type score against the donor score of each model, 183 mm wide.

    One row of panels per conditioning column, one panel per score, one color per model, mean ± s.d. over the starts. A
    line connects the strengths of a model, from 0 (the published weights). Table: one row per point,
    ``on, Model, strength, labels, gene_weights, n_starts, score, type, type_std, on_value, on_std``.

    Parameters
    ----------
    table : from ``study.summarize``
    """
    columns = {"type": "type", "type_std": "type_std", "on_value": "on", "on_std": "on_std"}
    scores = [f"{score}_{end}" for score in _PANELS for end in columns.values()]
    check_table(table, "table of the study", [*_COLUMNS, *scores], [], Model=[*COLORS, _TYPES_ONLY], labels=_LABELS)
    values = {score: {name: table[f"{score}_{end}"] for name, end in columns.items()} for score in _PANELS}
    parts = [table[_COLUMNS].assign(score=score, **part) for score, part in values.items()]
    points = pd.concat(parts, ignore_index=True).dropna(subset=["type", "on_value"])
    names, found = points["on"].unique(), set(points["Model"])
    chosen = style.label_columns(run)
    cell_type = "cell type" if run.cell_type_column == CELL_TYPE else style.shorten_labels([chosen[CELL_TYPE]], 30)[0]
    held_out = "donors" if run.donor_column == DONOR else style.shorten_labels([f"values of {chosen[DONOR]}"], 21)[0]
    shown = style.shorten_labels(["+".join(chosen.get(part, part) for part in on.split("+")) for on in names], 27)
    note = [
        *style.run_note("", run),
        f"starts: {style.value_range(points['n_starts'])}",
        "bars: ±\u00a0s.d. over the starts" if points["type_std"].notna().any() else "one start: no s.d.",
        "numbers: strength of the penalties (0: published weights), omitted where they overlap",
        "w: genes weighted" if (points["gene_weights"] != "none").any() else "",
        "dotted: an embedding of the cell types only" if _TYPES_ONLY in found else "",
    ]
    fig = style.new_figure(points, DOUBLE, len(names) * 62 + 3 * LINE, note)
    used = {name: marker for kind, (marker, name) in _LABELS.items() if kind in set(points["labels"])}
    markers = {name.replace(CELL_TYPE, chosen[CELL_TYPE]): marker for name, marker in used.items()}
    colors = {model: color for model, color in COLORS.items() if model in found}
    style.legend(fig, colors | dict.fromkeys(markers, "#404040"), markers)
    for on, column, part in zip(names, shown, np.ravel(fig.subfigures(len(names), 1)), strict=True):
        part.suptitle(f"Conditioned on {column}", x=0.005, ha="left", weight="bold")
        for ax, (score, title) in zip(part.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
            _draw_points(ax, points[(points["on"] == on) & (points["score"] == score)])
            ax.set(
                label=f"{on} {score}", xlabel=f"{column} ← lower is better", ylabel=f"{cell_type} → higher is better"
            )
            ax.set_title(title.replace("donors", held_out), loc="left")
    fig.draw_without_rendering()
    for ax in fig.axes:
        _place_numbers(ax)
    return fig


def _draw_points(ax: Axes, points: pd.DataFrame) -> None:
    """Draw the points of one panel, the lines over the strengths, and the strengths as numbers."""
    for value in points["on_value"][points["Model"] == _TYPES_ONLY]:
        ax.axvline(value, color="#404040", lw=0.8, ls=":")
    points = points[points["Model"] != _TYPES_ONLY]
    conditional = set(points["Model"][points["strength"] > 0])
    for point in points.itertuples():
        at, color = (point.on_value, point.type), COLORS[point.Model]
        bars = {"xerr": np.nan_to_num(point.on_std), "yerr": np.nan_to_num(point.type_std), "elinewidth": 0.5}
        ax.errorbar(*at, fmt=_LABELS[point.labels][0], color=color, **bars)
        words = [f"{point.strength:g}"] * (point.Model in conditional) + ["w"] * (point.gene_weights != "none")
        if words:
            ax.annotate(" ".join(words), at, (2.5, 2), textcoords="offset points", size=5, color=color)
    paths = points[(points["gene_weights"] == "none") & ((points["labels"] == CELL_TYPE) | (points["strength"] == 0))]
    for model in sorted(conditional):
        path = paths[paths["Model"] == model].sort_values("strength")
        ax.plot(path["on_value"], path["type"], color=COLORS[model], lw=0.8, zorder=1)
    low, high = at_least(*ax.get_xlim(), _SPAN)
    ax.set(xlim=(low, high) if low >= 0 else (-0.03 * high, high), ylim=at_least(*ax.get_ylim(), _SPAN))


def _place_numbers(ax: Axes) -> None:
    """Move each number to a corner of its point that is free, or crossed by two lines at most; else remove it."""
    lines = [line.get_transform().transform_path(line.get_path()) for line in ax.lines]
    lines += [bars.get_transform().transform_path(path) for bars in ax.collections for path in bars.get_paths()]
    boxes = [bar.lines[0].get_window_extent() for bar in ax.containers]
    boxes.append(ax.bbox.translated(-ax.bbox.width, 0).padded(6))  # the vertical axis
    for text in list(ax.texts):
        for x, most, y in itertools.product((2.5, -2.5), (0, 2), (2, -2)):
            text.set(position=(x, y), ha="left" if x > 0 else "right", va="baseline" if y > 0 else "top")
            box = text.get_window_extent().padded(1)
            if sum(p.intersects_bbox(box, filled=False) for p in lines) <= most and not any(map(box.overlaps, boxes)):
                boxes.append(box)
                break
        else:
            text.remove()
