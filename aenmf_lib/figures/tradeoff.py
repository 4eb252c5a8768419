"""The trade-off between the scores against cell types and against donors: one labeled point per model."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.figures import style
from aenmf_lib.figures.labels import place_labels
from aenmf_lib.figures.points import BETTER, CLASSIFIERS, CLUSTERING, METRICS, RESOLUTION, break_names, limits
from aenmf_lib.figures.settings import MM
from aenmf_lib.results import RunInfo

_GRAY = "0.6"
_NEAR = 1.4  # mm between two points, of which one would hide much of the other
_TITLES = {CLUSTERING: "Trade-off of the clusters", "classification": "Trade-off of the predictions"}


def draw_pairs(
    fig: FigureBase, points: pd.DataFrame, pairs: Mapping[str, str], names: Sequence[str], run: RunInfo, n_columns: int
) -> dict[Axes, pd.DataFrame]:
    """Draw the score against cell types over the score against donors, of each benchmark in `pairs` (to its metric).

    Returns the axes, and the scores of each model in them, for `name_points`.
    """
    n_columns = min(n_columns, len(pairs))
    height = fig.bbox.height / fig.figure.dpi * MM / -(-len(pairs) // n_columns) - 6 * style.line()
    width = style.page_width("double") / n_columns - 8 * style.line()
    corners: dict[Axes, pd.DataFrame] = {}
    for ax, (benchmark, metric) in zip(style.panels(fig, len(pairs), n_columns), pairs.items(), strict=True):
        middle, other = _find_points(points[points["metric"] == metric], benchmark, names)
        for model, (donor, cell_type) in middle.iterrows():
            color = style.color_of(model)
            part = other.loc[[model]].droplevel("Model") if model in other.index else other[:0].droplevel("Model")
            if benchmark == CLUSTERING:
                _draw_line(ax, part, color)
            else:
                _draw_spokes(ax, part, (donor, cell_type), color)
        _mark_best(ax, pd.concat([middle, other.droplevel("Model")]), height)
        _draw_models(ax, middle, width, height)
        for label, write, space in ((DONOR, ax.set_xlabel, width), (CELL_TYPE, ax.set_ylabel, height)):
            text = f"{METRICS[metric]}, {style.label_name(label, run)} ({BETTER[label]})"
            write("\n".join(style.wrap(text, space)))
        ax.set_title(_TITLES[benchmark], loc="left")
        ax.set(label=f"trade-off {benchmark}")
        corners[ax] = middle
    return corners


def _find_points(points: pd.DataFrame, benchmark: str, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the mean scores (donor, cell type) of each model, and of each of its resolutions or classifiers."""
    labels, own = [DONOR, CELL_TYPE], points[points["benchmark"] == benchmark]
    kind = "resolution" if benchmark == CLUSTERING else "classifier"
    more = points[points["benchmark"] == RESOLUTION] if benchmark == CLUSTERING else own
    middle = own.pivot_table("value", "Model", "label").reindex(columns=labels).dropna()
    other = more.pivot_table("value", ["Model", kind], "label") if len(more) else middle[:0].assign(**{kind: 0})
    if other.index.nlevels == 1:
        other = other.set_index(kind, append=True)
    return middle.loc[[name for name in names if name in middle.index]], other.reindex(columns=labels).dropna()


def _draw_models(ax: Axes, points: pd.DataFrame, width: float, height: float) -> None:
    """Draw the point of each model; one that would cover others is a ring around them."""
    spans = np.ptp([ax.get_xlim(), ax.get_ylim()], axis=1)
    at = points[[DONOR, CELL_TYPE]].to_numpy() / spans * (width, height)  # mm
    for i, (model, (x, y)) in enumerate(points[[DONOR, CELL_TYPE]].iterrows()):
        color = style.color_of(model)
        covered = int((np.hypot(*(at[:i] - at[i]).T) < _NEAR).sum())
        if covered:
            ax.scatter(x, y, s=24 * (1 + covered) ** 1.5, facecolor="none", lw=1.1, edgecolor=color, clip_on=False,
                       zorder=4, label="ring")  # fmt: skip
        else:
            ax.scatter(x, y, s=24, c=color, lw=0.5, edgecolor="white", clip_on=False, zorder=4)


def _draw_line(ax: Axes, points: pd.DataFrame, color: str) -> None:
    """Draw the scores at other resolutions, from an open point at the lowest resolution."""
    points = points.sort_index()
    line = {"color": color, "marker": "o", "clip_on": False}
    ax.plot(points[DONOR], points[CELL_TYPE], lw=0.5, ms=1.6, zorder=2, **line)
    ax.plot(points[DONOR].iloc[:1], points[CELL_TYPE].iloc[:1], ls="", ms=2.8, mfc="white", mew=0.5, zorder=3, **line)


def _draw_spokes(ax: Axes, points: pd.DataFrame, center: tuple[float, float], color: str) -> None:
    """Draw the scores of each classifier, joined to those of their model."""
    for kind, *xy in points.itertuples():
        ax.plot(*zip(center, xy, strict=True), color=color, lw=0.4, zorder=2)
        ax.plot(*xy, marker=CLASSIFIERS[kind][1], ms=2.5, color=color, ls="", clip_on=False, zorder=3)


def _mark_best(ax: Axes, points: pd.DataFrame, height: float) -> None:
    """Set the limits of a trade-off of a `height` in mm, with space for the mark of the best corner, the upper left."""
    (low, high), size = limits(points[CELL_TYPE]), style.current().font_size
    ax.set(xlim=limits(points[DONOR]), ylim=(low, high + (high - low) * 2.2 * style.line() / height))
    arrow = {"arrowstyle": "->", "color": _GRAY, "lw": 0.6, "shrinkA": 0, "shrinkB": 1}
    ax.annotate("best", (0, 1), (1.6 * size, -1.2 * size), "axes fraction", textcoords="offset points", color=_GRAY,
                va="center", arrowprops=arrow)  # fmt: skip


def name_points(corners: Mapping[Axes, pd.DataFrame], names: Mapping[str, str]) -> list[str]:
    """Write the name of each model near its point; return the names for which there is no space. Call it last."""
    missing: dict[str, None] = {}
    for ax, points in corners.items():
        widest = 0.8 * ax.bbox.width / ax.figure.figure.dpi * MM
        shown = dict(zip(names, style.shorten_labels(names.values(), widest), strict=True))
        if any(style.text_width(name) > widest / 2 for name in names.values()):
            shown = break_names(names, widest / 2)
        colors = [style.color_of(model) for model in points.index]
        texts = [shown[model] for model in points.index]
        left_out = place_labels(ax, points[DONOR], points[CELL_TYPE], texts, colors)
        missing |= dict.fromkeys(names[points.index[i]] for i in left_out)
    return [*missing]
