"""What do the figures of the benchmarks show? As module `figures`, one function a figure: tables in, a Figure out."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aenmf_lib.data.preprocessing import CELL_TYPE
from aenmf_lib.figures import layout, style, tables
from aenmf_lib.figures.layout import DOUBLE, EDGE, LINE, SINGLE

_KINDS = {
    "logistic_regression": ("logistic regression", "o"),
    "knn": ("k nearest neighbors", "s"),
    "random_forest": ("random forest", "^"),
    "random_forest_intelex": ("random forest of scikit-learn-intelex", "^"),
}
_METRICS = {"F1": "macro F1", "AUROC": "macro AUROC", "Accuracy": "accuracy"}


@layout.STYLE
def clustering(long: pd.DataFrame, *, k: int | None = None) -> Figure:
    """Draw how well Leiden clusters of each embedding agree with cell types and with donors.

    Parameters
    ----------
    long
        ``clustering_long.csv``: a row per (Model, label, seed).
    k
        Rank of the models, for the caption.

    Returns
    -------
    Figure, 89 mm wide: a row a label, a column a score, a point a seed, mean ± s.d. of the seeds.

    Raises
    ------
    ValueError
        From `drawn.clustering`.
    """
    points = tables.clustering(long)
    seeds = points.groupby(["Model", "label", "metric"]).size()
    note = [
        f"n = {style.format_range(long['n_cells'])} cells",
        style.rank(k),
        style.cluster_note(long),
        f"Leiden seeds: {style.format_range(seeds)}, neighbors: {style.format_range(long['n_neighbors'])}, "
        f"resolution: {style.format_range(long['resolution'])}",
        f"points: seeds; bars: mean{style.spread(points)}",
    ]
    return _scores(points, note, width=SINGLE, band=5.5)


@layout.STYLE
def classification(long: pd.DataFrame, *, k: int | None = None) -> Figure:
    """Draw how well classifiers read cell types and donors from each embedding.

    Parameters
    ----------
    long
        ``classification_long.csv``: a row per fit (Model, label, classifier, seed, fold).
    k
        Rank of the models, for the caption.

    Returns
    -------
    Figure, 183 mm wide: a row a label, a column a score, a line a classifier, a point a fit, mean ± s.d. of its fits;
    the upright line of a model is the mean of all its fits, the number in the published table.

    Raises
    ------
    ValueError
        From `drawn.classification`.
    """
    points = tables.classification(long)
    fits = points.groupby(["Model", "label", "classifier", "metric"]).size()
    cap = int(long["max_cells"].max())
    by = f"{style.pluralize(long['seed'].nunique(), 'seed')} × {style.pluralize(long['fold'].nunique(), 'fold')}"
    note = [
        f"n = {style.format_range(long['n_cells'])} cells" + (f" (max_cells = {cap:,})" if cap else ""),
        style.rank(k),
        style.cluster_note(long),
        f"classes of at least {style.format_range(long['min_cells_per_class'])} cells",
        f"fits a model and classifier: {style.format_range(fits)} ({by})",
        f"points: fits; bars: mean{style.spread(points)} of a classifier; upright line: mean of all fits of a model",
    ]
    return _scores(points, note, width=DOUBLE, band=10.5)


@layout.STYLE
def resolution(curve: pd.DataFrame, *, k: int | None = None) -> Figure:
    """Draw how the agreement of Leiden clusters with the labels hangs on the resolution.

    Parameters
    ----------
    curve
        ``clustering_resolution.csv``: a row per (Model, label, seed, resolution).
    k
        Rank of the models, for the caption.

    Returns
    -------
    Figure, 89 mm wide: a row a label, a column a score, a line a model (mean of the seeds).

    Raises
    ------
    ValueError
        From `drawn.resolution`.
    """
    points = tables.resolution(curve)
    models, metrics = style.models(points), list(dict.fromkeys(points["metric"]))
    labels = [label for label in style.LABELS if label in set(points["label"])]
    used = set(points["Model"][(points["label"] == CELL_TYPE) & points["cell_type_in_training"]])
    left, gap, high = EDGE + 12, 15, 26
    wide = (SINGLE - left - 2 * EDGE - (len(metrics) - 1) * gap) / len(metrics)
    pitch = LINE + 1 + high + 10
    key = layout.Legend(
        [style.mark_label_aware(model, used) for model in models],
        [style.COLORS[model] for model in models],
        ["o"] * len(models),
        SINGLE - left - EDGE,
    )
    foot = EDGE + len(labels) * pitch
    note = [
        f"n = {style.format_range(curve['n_cells'])} cells",
        style.rank(k),
        style.cluster_note(curve),
        f"Leiden seeds: {curve['seed'].nunique()}, neighbors: {style.format_range(curve['n_neighbors'])}",
        f"clusters: {style.format_range(curve['n_clusters'])}",
    ]
    fig = layout.new_figure(SINGLE, foot + key.height, note, used)
    for row, label in enumerate(labels):
        of, y, (name, direction) = points[points["label"] == label], EDGE + row * pitch, style.LABELS[label]
        layout.text(fig, left, y, f"{name} ({style.format_range(of['n_classes'])} classes): {direction}", weight="bold")
        for column, metric in enumerate(metrics):
            ax = layout.axes(fig, left + column * (wide + gap), y + LINE + 1, wide, high, f"{label} {metric}")
            for model in models:
                line = of[(of["Model"] == model) & (of["metric"] == metric)].groupby("resolution")["value"].mean()
                ax.plot(line.index, line, color=style.COLORS[model], marker="o", ms=2, lw=0.8)
            ax.set(xlabel="resolution", ylabel=metric, ylim=layout.at_least(*ax.get_ylim(), 0.04))
            ax.xaxis.set_major_locator(MaxNLocator(4, steps=style.STEPS))
            ax.yaxis.set_major_locator(MaxNLocator(4, steps=style.STEPS))
    key.draw(fig, left, foot)
    return fig


@layout.STYLE
def classes(
    by_class: pd.DataFrame,
    confusion: pd.DataFrame,
    *,
    k: int | None = None,
    used_cell_type: Mapping[str, bool] | None = None,
    groups: Mapping[str, str] | None = None,
) -> Figure:
    """Draw how well each cell type is read from each embedding, and what it is taken for.

    Parameters
    ----------
    by_class, confusion
        ``classification_by_class.csv`` and ``classification_confusion.csv``; rows of other labels are passed over.
    k
        Rank of the models, for the caption.
    used_cell_type
        Was cell_type used in training, a value a model: marks those with †.
    groups
        Within what donors were compared, a value a model (``results.Embeddings.groups``): clusters are told of.

    Returns
    -------
    Figure, 183 mm wide: a row a cell type; on the left F1, a point a model, on the right a panel a model with the share
    of the cells of a type (row) that were taken for each type (column).

    Raises
    ------
    ValueError
        From `drawn.classes`.
    """
    points = tables.classes(by_class, confusion)
    models = style.models(points)
    used = style.used(models, used_cell_type)
    first = points.drop_duplicates(["Model", "class"])
    cells = first.drop_duplicates("class").set_index("class")["n_cells"]
    names, counts = layout.shorten_labels(cells.index, 55), [f"{n:,}" for n in cells]
    left = EDGE + 1.5 + max(map(layout.breadth, names))
    right = EDGE + 1.5 + max(map(layout.breadth, [*counts, "cells"]))
    strip, gap, top, high = 30, 3, EDGE + LINE + 1, len(cells) * LINE
    wide = (DOUBLE - left - right - strip - len(models) * gap) / len(models)
    scale = top + high + 9
    kinds = [_KINDS[kind][0] for kind in _KINDS if kind in set(by_class["classifier"])]
    note = [
        f"n = {cells.sum():,} cells",
        style.rank(k),
        style.cluster_note(groups),
        f"mean of {', '.join(kinds)} over all folds and seeds",
        "color: share of the cells of a type that were taken for a type, in the order of the rows",
    ]
    key = layout.Legend(models, [style.COLORS[model] for model in models], ["o"] * len(models), DOUBLE - left - EDGE)
    fig = layout.new_figure(DOUBLE, scale + 9 + key.height, note, used)
    ax = layout.axes(fig, left, top, strip, high, "F1")
    for i, model in enumerate(models):
        of, y = first[first["Model"] == model], np.arange(len(cells)) + 0.5 + (i - (len(models) - 1) / 2) * 0.18
        ax.scatter(of["F1"], y, s=7, c=style.COLORS[model], lw=0, clip_on=False, zorder=3)
    ax.set(xlim=(0, 1), ylim=(len(cells), 0), xlabel="F1", xticks=[0, 0.5, 1])
    ax.set_yticks(np.arange(len(cells)) + 0.5, names)
    ax.tick_params(axis="y", length=0)
    ax.hlines(np.arange(1, len(cells)), 0, 1, color="0.85", lw=0.4, zorder=0)
    key.draw(fig, left, scale + 8)
    for i, model in enumerate(models):
        x = left + strip + gap + i * (wide + gap)
        panel = layout.axes(fig, x, top, wide, high, model)
        grid = points[points["Model"] == model].pivot_table(index="class", columns="predicted", values="share")
        mesh = panel.pcolormesh(grid.to_numpy(), cmap="Greys", vmin=0, vmax=1, rasterized=len(points) > 10_000)
        panel.set(ylim=(len(cells), 0), xticks=[], yticks=[])
        layout.text(fig, x, top - LINE - 1, style.mark_label_aware(model, used))
        layout.text(fig, x + wide / 2, top + high + 1, "taken for", ha="center")
    layout.column(fig, DOUBLE - EDGE, top, ["cells", *counts])
    bar = layout.axes(fig, left, scale + 1, 25, 2, "scale")
    fig.colorbar(mesh, cax=bar, orientation="horizontal", ticks=[0, 1])
    layout.text(fig, left + 28, scale + 2, "share of the cells of a type", va="center")
    return fig


def _scores(points: pd.DataFrame, note: list[str], *, width: float, band: float) -> Figure:
    """Draw a row of panels a label, a panel a metric, in it a band a model, in that a line a classifier."""
    models, metrics = style.models(points), list(dict.fromkeys(points["metric"]))
    labels = [label for label in style.LABELS if label in set(points["label"])]
    kinds = [kind for kind in _KINDS if kind in set(points["classifier"])] if "classifier" in points else []
    used = set(points["Model"][(points["label"] == CELL_TYPE) & points["cell_type_in_training"]])
    left, gap, high = EDGE + 2 + max(layout.breadth(f"{model}†") for model in models), 7.5, len(models) * band
    wide = (width - left - 2 * EDGE - (len(metrics) - 1) * gap) / len(metrics)
    pitch = LINE + 1 + high + 9.5
    foot = EDGE + len(labels) * pitch - 1.5
    fig = layout.new_figure(width, foot + (LINE if kinds else 0), note, used)
    for row, label in enumerate(labels):
        of, y, (name, direction) = points[points["label"] == label], EDGE + row * pitch, style.LABELS[label]
        layout.text(fig, left, y, f"{name} ({style.format_range(of['n_classes'])} classes): {direction}", weight="bold")
        for column, metric in enumerate(metrics):
            ax = layout.axes(fig, left + column * (wide + gap), y + LINE + 1, wide, high, f"{label} {metric}")
            _panel(ax, of[of["metric"] == metric], models, kinds)
            ax.set_xlabel(_METRICS.get(metric, metric))
            marked = used if label == CELL_TYPE else ()
            ax.set_yticks(
                range(len(models)), [style.mark_label_aware(m, marked) if column == 0 else "" for m in models]
            )
    if kinds:
        names, markers = zip(*[_KINDS[kind] for kind in kinds], strict=True)
        key = layout.Legend(names, ["0.3"] * len(kinds), markers, width - left - EDGE)
        key.draw(fig, left, foot)
    return fig


def _panel(ax: Axes, points: pd.DataFrame, models: list[str], kinds: list[str]) -> None:
    """Draw the scores of one label and metric."""
    for i, model in enumerate(models):
        of = points[points["Model"] == model]
        if i:
            ax.axhline(i - 0.5, color="0.85", lw=0.4, zorder=0)
        if of.empty:
            continue
        if not kinds:
            _strip(ax, of, i, 0.8, "o", style.COLORS[model])
            continue
        ax.vlines(of["mean_all"].iloc[0], i - 0.42, i + 0.42, color=style.COLORS[model], lw=0.7, zorder=1)
        for j, kind in enumerate(kinds):
            fits = of[of["classifier"] == kind]
            _strip(ax, fits, i + (j - (len(kinds) - 1) / 2) * 0.3, 0.27, _KINDS[kind][1], style.COLORS[model])
    ax.set(xlim=layout.at_least(*ax.get_xlim(), 0.01 if kinds else 0.04), ylim=(len(models) - 0.5, -0.5))
    ax.xaxis.set_major_locator(MaxNLocator(5 if kinds else 3, steps=style.STEPS))
    ax.tick_params(axis="y", length=0)


def _strip(ax: Axes, points: pd.DataFrame, y: float, height: float, marker: str, color: str) -> None:
    """Draw runs in the order of their seeds, and below them mean ± s.d., within ``height`` about y."""
    if points.empty:
        return
    points = points.sort_values([column for column in ("seed", "fold") if column in points])
    n, mean, sd = len(points), points["mean"].iloc[0], points["sd"].iloc[0]
    away = np.linspace(-0.45, 0.05, n) if n > 1 else np.array([-0.2])
    ax.scatter(points["value"], y + height * away, s=6, c=color, marker=marker, alpha=0.4, lw=0, zorder=2)
    bar = y + 0.36 * height  # apart from the points, so that it hides none
    ax.vlines(mean, bar - 0.16 * height, bar + 0.16 * height, color=color, lw=1.2, zorder=3)
    if n > 1:
        ax.hlines(bar, mean - sd, mean + sd, color=color, lw=0.8, zorder=3)
