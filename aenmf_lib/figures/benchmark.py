"""Scores of clusters and classifiers against cell types and donors, the trade-off, and the scores by resolution."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.figures import style
from aenmf_lib.figures.labels import place_labels, thin_ticks
from aenmf_lib.figures.points import (
    ABBREVIATIONS,
    AUROC,
    BETTER,
    CLASSIFICATION,
    CLASSIFIERS,
    CLUSTERING,
    METRICS,
    RESOLUTION,
    break_names,
    count_cells,
    describe_others,
    limits,
    list_unscored,
    mark_used,
    name_classifiers,
    read_points,
)
from aenmf_lib.figures.tradeoff import draw_pairs, name_points
from aenmf_lib.results import RunInfo

_SHOWN = {CLUSTERING: ("NMI", "ARI"), CLASSIFICATION: ("F1", "AUROC"), RESOLUTION: ("NMI", "ARI")}
_WHAT = {CLUSTERING: "Clusters vs.", CLASSIFICATION: "Prediction of"}
_PAGE = 245  # mm, the height of a page
_CHANCE = {"AUROC": 0.5}  # where an axis of scores starts, if not at 0


@style.figure
def fig1_benchmark(
    clustering: pd.DataFrame,
    classification: pd.DataFrame,
    resolution: pd.DataFrame | None = None,
    run: RunInfo = style.NO_RUN,
) -> style.Sheet:
    """Draw the scores of each embedding against cell types and donors, and the trade-off between the two.

    Scores: one row per model, with one filled point per seed, one open point per fold, and a thick line at the mean
    over the seeds; each classifier has its own row of points. Trade-off: one labeled point per model, with a thin line
    through the scores at other Leiden resolutions, or to the scores of each classifier.

    Table: one row per (benchmark, Model, label, classifier, seed, fold, resolution, metric) with ``value``, the
    ``mean`` of its model and classifier, and ``mean_all`` of its model. The benchmark ``resolution`` is the thin line.

    Parameters
    ----------
    clustering : ``clustering_long.csv``, one row per (Model, label, seed)
    classification : ``classification_long.csv``, one row per fit (Model, label, classifier, seed, fold)
    resolution : ``clustering_resolution.csv``, one row per (Model, label, seed, resolution)
    """
    tables = {CLUSTERING: clustering, CLASSIFICATION: classification}
    tables |= {} if resolution is None else {RESOLUTION: resolution}
    points = read_points(tables, _SHOWN, run)
    by = ["benchmark", "Model", "label", "metric", *["resolution"] * (RESOLUTION in tables)]
    for column, groups in (("mean", [*by, "classifier"]), ("mean_all", by)):
        points[column] = points.groupby(groups, dropna=False)["value"].transform("mean")
    unscored = list_unscored(run, clustering, classification)
    if points.empty:
        return style.empty_figure(points, "no label has two classes", [*style.run_note("", run), *unscored])
    names = style.model_names(points["Model"], mark_used(run, clustering, classification))
    found = {*points[["benchmark", "label"]].drop_duplicates().itertuples(index=False, name=None)}
    blocks = [(benchmark, label) for benchmark in _WHAT for label in BETTER if (benchmark, label) in found]
    pairs = {name: _SHOWN[name][0] for name in _WHAT if {(name, CELL_TYPE), (name, DONOR)} <= found}
    caption = _describe(points, tables, blocks, pairs, run)
    return _draw(points, names, blocks, pairs, [*caption, *unscored], run)


def _draw(points, names: dict[str, str], blocks, pairs, caption: list[str], run: RunInfo) -> style.Sheet:
    """Draw the panels of scores above those of the trade-off."""
    width, row = style.page_width("double"), style.line()
    for n_columns, share in ((4, 0.22), (4, 0.16), (2, 0.34), (1, 0.34)):  # at most two lines per name
        shown = break_names(names, share * width)
        widest = max(style.text_width(text) for name in shown.values() for text in name.split("\n")) + row
        if (width - widest) / n_columns > 2.8 * style.text_width("0.888"):
            break
    n_columns = min(n_columns, 2 * max(sum(b == benchmark for b, _ in blocks) for benchmark in _WHAT))
    panels = [(benchmark, label, metric) for benchmark, label in blocks for metric in _SHOWN[benchmark]]
    rows = [panels[i : i + n_columns] for i in range(0, len(panels), n_columns)]
    titles = {block: _title(*block, points, run, (width - widest) / n_columns * min(n_columns, 2)) for block in blocks}
    kinds = [kind for kind in CLASSIFIERS if kind in set(points["classifier"])]
    lines = 1 + max(name.count("\n") for name in shown.values())
    bands = [max(1.5, 1.1 * lines, 0.85 * len(kinds) * (panels[0][0] == CLASSIFICATION)) * row for panels in rows]
    space = (max(title.count("\n") for title in titles.values()) + 4.5) * row
    key = _list_key(kinds)
    n_key = style.legend_columns([entry.get_label() for entry in key], width)
    above = sum(len(names) * band + space for band in bands) + (len(key) // n_key + 2) * row
    n_beside = 2 if len(pairs) == 2 and width / 2 - 7 * row > 1.3 * widest else 1
    side = max(min(width / n_beside, 22 * row), (1 + lines) * len(names) * row + 6 * row)
    n_below = len(pairs) / n_beside
    side = min(side, max((_PAGE - above) / max(n_below, 1), 16 * row))
    below = side * n_below
    fig = style.new_figure(points, "double", above + below, caption, names, run)
    parts = [above, below] if pairs else [above]
    upper, *lower = fig.subfigures(len(parts), 1, height_ratios=parts, squeeze=False).ravel()
    firsts = _draw_rows(upper, points, rows, titles, kinds, [len(names) * band for band in bands], shown, n_columns)
    upper.legend(handles=key, loc="outside lower left", ncols=n_key)
    corners = draw_pairs(lower[0], points, pairs, [*names], run, n_beside) if pairs else {}
    thin_ticks(fig.axes)
    for ax in fig.axes:
        style.mark_cut_axis(ax, "x")
        if ax in corners:
            style.mark_cut_axis(ax, "y")
    style.letters([*firsts, *corners])
    if "ring" in {mark.get_label() for ax in corners for mark in ax.collections}:
        fig.caption += " A ring is a large point that would cover another one."
    if missing := name_points(corners, names):
        be = "is" if len(missing) == 1 else "are"
        fig.caption += f" For lack of space, {style.join(missing)} {be} not labeled; colors are as in a."
    return fig


def _draw_rows(fig: FigureBase, points, rows, titles, kinds, heights, names, n_columns: int) -> list[Axes]:
    """Draw the panels of scores; return the first axes of each block."""
    grid = fig.subplots(len(rows), n_columns, squeeze=False, height_ratios=heights, sharey="row")
    firsts = []
    for axes, panels in zip(grid, rows, strict=True):
        for ax, (benchmark, label, metric) in zip(axes, panels, strict=False):
            scores = points[(points["benchmark"] == benchmark) & (points["label"] == label)]
            scores = scores[scores["metric"] == metric]
            _draw_scores(ax, scores, [*names], kinds if benchmark == CLASSIFICATION else [])
            ax.set(label=f"{benchmark} {label} {metric}", xlabel=METRICS[metric])
            if metric == _SHOWN[benchmark][0]:
                ax.set_title(titles[benchmark, label], loc="left")
                firsts.append(ax)
        for ax in axes[len(panels) :]:
            ax.remove()
        axes[0].set_yticks(range(len(names)), [*names.values()])
    return firsts


def _title(benchmark: str, label: str, points: pd.DataFrame, run: RunInfo, width: float) -> str:
    """Return the title of a block of panels, in lines that fit."""
    n = points["n_classes"][(points["benchmark"] == benchmark) & (points["label"] == label)]
    name = style.shorten_labels([style.label_name(label, run)], width / 2)[0]
    text = f"{_WHAT[benchmark]} {name} ({style.value_range(n.astype(int))}):"
    room = width - 2 * style.line()
    if style.text_width(f"{text} {BETTER[label]}") <= room:
        return f"{text} {BETTER[label]}"
    return "\n".join([*style.wrap(text, room), *style.wrap(BETTER[label], room)])


def _list_key(kinds: Sequence[str]) -> list[Line2D]:
    """Return the entries of the legend."""
    dark: dict[str, Any] = {"ls": "", "color": "0.3"}
    key = [Line2D([], [], label="seed", marker="o", **dark)]
    if kinds:
        key.append(Line2D([], [], label="fold", marker="o", mfc="none", mew=0.6, **dark))
    key.append(Line2D([], [], label="mean over seeds (thick line)", marker="|", mew=1.2, ms=6, **dark))
    if kinds:
        key.append(Line2D([], [], label="mean of all fits (thin line)", marker="|", mew=0.5, ms=9, **dark))
    return key + [
        Line2D([], [], ls="", color="0.7", label=CLASSIFIERS[kind][0], marker=CLASSIFIERS[kind][1]) for kind in kinds
    ]


def _draw_scores(ax: Axes, points: pd.DataFrame, models: list[str], kinds: list[str]) -> None:
    """Draw the scores of one benchmark, label and metric."""
    metric = points["metric"].iloc[0]
    for y, model in enumerate(models):
        color, own = style.color_of(model), points[points["Model"] == model]
        if y:
            ax.axhline(y - 0.5, color="0.85", lw=0.4, zorder=0)
        if own.empty:
            continue
        if not kinds:
            ax.vlines(own["mean"].iloc[0], y - 0.36, y + 0.36, color, lw=1.2, zorder=2)
            at = y + np.linspace(-0.22, 0.22, len(own)) if len(own) > 1 else [y]
            ax.scatter(own["value"], at, s=7, c=color, lw=0, alpha=0.7, clip_on=False, zorder=3)
            continue
        ax.vlines(own["mean_all"].iloc[0], y - 0.46, y + 0.46, color, lw=0.5, zorder=1)
        for i, kind in enumerate(kinds):
            fits = own[own["classifier"] == kind].sort_values(["seed", "fold"])
            if fits.empty:
                continue
            center, marker = y + 0.3 * (i - (len(kinds) - 1) / 2), CLASSIFIERS[kind][1]
            at = center + (np.linspace(-0.1, 0.1, len(fits)) if len(fits) > 1 else 0)
            raster = len(points) > style.RASTER
            ax.scatter(fits["value"], at, s=5, marker=marker, facecolor="none", edgecolor=color, lw=0.35,
                       alpha=0.8, clip_on=False, zorder=2, rasterized=raster)  # fmt: skip
            seeds = fits.groupby("seed")["value"].mean()
            ax.scatter(seeds, np.full(len(seeds), center), s=8, marker=marker, c=color, lw=0, clip_on=False, zorder=3)
            ax.vlines(fits["mean"].iloc[0], center - 0.14, center + 0.14, color, lw=1.2, zorder=4)
    ax.set(xlim=limits(points["value"], _CHANCE.get(metric, 0)), ylim=(len(models) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)


def _describe(points: pd.DataFrame, tables: dict[str, pd.DataFrame], blocks, pairs, run: RunInfo) -> list[str]:
    """Return the sentences of the caption."""
    at = dict(zip([*blocks, *pairs], "abcdef", strict=False))
    found = {label for _, label in blocks}
    labels = [style.label_name(label, run) for label in BETTER if label in found]
    sentences = [
        f"Scores of the embeddings against {' and '.join(labels)}",
        *style.run_note(count_cells(tables), run),
        describe_others(style.in_order(points["Model"]), run),
        "Each model was fit once: the points show the spread of Leiden seeds and of folds, not of repeated fits",
    ]
    for benchmark in dict(blocks):
        letters = [at[block] for block in blocks if block[0] == benchmark]
        long, own = tables[benchmark], points[points["benchmark"] == benchmark]
        n_seeds = own["seed"].nunique()
        if benchmark == CLUSTERING:
            text = (
                f"Agreement of Leiden clusters ({style.value_range(long['n_neighbors'])} neighbors, resolution "
                f"{style.value_range(long['resolution'])}) with the labels. Points show Leiden seeds "
                f"(n = {n_seeds}) on the same neighbor graph; thick lines show the mean over the seeds"
            )
        else:
            text = (
                f"Scores of {style.join(name_classifiers(own['classifier']))}, which predict the label from the "
                f"embedding, for classes of at least {style.value_range(long['min_cells_per_class'])} cells. Open "
                f"points show folds ({own['fold'].nunique()} per seed, of the same cells); filled points show seeds "
                f"(n = {n_seeds}), each the mean of its folds; thick lines show the mean over the seeds of a "
                "classifier; thin lines show the mean of all fits"
            )
        sentences.append(f"{', '.join(letters)}, {text}")
    trade_off = {
        CLUSTERING: "Trade-off of the clusters: large points show the mean over the seeds",
        CLASSIFICATION: "Trade-off of the predictions: large points show the mean of all fits, small points that of "
        "each classifier",
    }
    if (points["benchmark"] == RESOLUTION).any():
        values = style.value_range(tables[RESOLUTION]["resolution"])
        trade_off[CLUSTERING] += (
            f"; small points that are joined by a line show one seed at resolutions {values}, of which the open point "
            "is the lowest"
        )
    sentences += [f"{at[benchmark]}, {trade_off[benchmark]}" for benchmark in pairs]
    return [*sentences, f"{ABBREVIATIONS}; {AUROC}", "Axes that are marked with two strokes do not start at 0"]


@style.figure
def figS5_resolution(curve: pd.DataFrame, run: RunInfo = style.NO_RUN) -> style.Sheet:
    """Draw the agreement of Leiden clusters with cell types and donors, and their number, against the resolution.

    One line per model, the mean over the seeds. Table: one row per (Model, label, seed, resolution, metric) with
    ``value``; the metric ``clusters`` is the number of clusters.

    Parameters
    ----------
    curve : ``clustering_resolution.csv``, one row per (Model, label, seed, resolution)
    """
    points = read_points({RESOLUTION: curve}, _SHOWN, run)
    unscored = list_unscored(run, curve)
    note = style.run_note(f"{style.value_range(curve['n_cells'])} cells", run)
    if points.empty:
        return style.empty_figure(points, "no label has two values", [*note, *unscored])
    first = points[points["metric"] == "NMI"].drop_duplicates(["Model", "seed", "resolution"])
    clusters = first.assign(label="", metric="clusters", value=first["n_clusters"], n_classes=0)
    points = pd.concat([points, clusters], ignore_index=True)
    names = style.model_names(points["Model"], mark_used(run, curve))
    panels = [(label, metric) for label in BETTER if label in set(points["label"]) for metric in _SHOWN[RESOLUTION]]
    panels.insert(2, ("", "clusters"))
    width, row = style.page_width("double"), style.line()
    n_columns = next(n for n in (3, 2, 1) if n == 1 or width / n > 6 * style.text_width("0.888"))
    shown = style.shorten_labels(names.values(), width / 2)
    n_rows, n_key = -(-len(panels) // n_columns), -(-len(shown) // style.legend_columns(shown, width))
    name = {label: style.label_name(label, run) for label in BETTER}
    what = {label: f"Agreement with {name[label]}" for label in BETTER}
    what[""] = "Number of clusters; dotted lines show the number of values of each label"
    n_seeds = curve["seed"].nunique()
    seeds = "one Leiden seed (n = 1 here)" if n_seeds == 1 else f"the mean over the Leiden seeds (n = {n_seeds})"
    at = dict(zip(panels, "abcde", strict=False))
    caption = [
        "Agreement of Leiden clusters with the labels, and number of clusters, at several resolutions",
        *note,
        *(f"{', '.join(at[panel] for panel in panels if panel[0] == label)}, {what[label]}" for label in dict(panels)),
        f"Lines show {seeds}, with {style.value_range(curve['n_neighbors'])} neighbors",
        f"Axes that are marked with two strokes do not start at 0. {ABBREVIATIONS}",
        *unscored,
    ]
    fig = style.new_figure(points, "double", n_rows * 17 * row + n_key * row, caption, names, run)
    style.legend(fig, dict(zip(shown, map(style.color_of, names), strict=True)))
    axes = style.panels(fig, len(panels), n_columns)
    for ax, (label, metric) in zip(axes, panels, strict=True):
        scores = points[(points["label"] == label) & (points["metric"] == metric)]
        _draw_curves(ax, scores, [*names])
        ax.set(label=f"{label} {metric}".strip(), xlabel="resolution", ylabel=METRICS.get(metric, "clusters"))
        title = f"{METRICS[metric]}, {name[label]}: {BETTER[label]}" if label else "Number of clusters"
        ax.set_title("\n".join(style.wrap(title, width / n_columns - 5 * row)), loc="left")
    counts = points[points["label"] != ""].groupby("label")["n_classes"].max()
    texts = style.shorten_labels([f"{name[label]} ({n:,})" for label, n in counts.items()], width / n_columns / 2)
    for n in counts:
        axes[2].axhline(n, color="0.6", lw=0.6, ls=":", zorder=0)
    thin_ticks(axes)
    for ax in axes:
        style.mark_cut_axis(ax, "y")
    style.letters(axes)
    place_labels(axes[2], [axes[2].get_xlim()[0]] * len(counts), counts, texts, ["0.4"] * len(counts))
    return fig


def _draw_curves(ax: Axes, points: pd.DataFrame, models: list[str]) -> None:
    """Draw one line per model against the resolution."""
    for model in models:
        line = points[points["Model"] == model].groupby("resolution")["value"].mean()
        ax.plot(line, color=style.color_of(model), marker="o", ms=2.2, lw=0.9, clip_on=False)
    resolutions = points["resolution"]
    ax.set(xlim=(min(0, resolutions.min()), resolutions.max() * 1.03))
    counts = points["metric"].iloc[0] == "clusters"
    low, high = (0, max(points["value"].max(), 1)) if counts else limits(points["value"])
    ax.set_ylim(low, high + 0.07 * (high - low))  # keeps the highest tick away from the letter of the panel
