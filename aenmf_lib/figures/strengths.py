"""Figure of the conditioning study: what each model keeps and removes over the strength of its penalty."""

import itertools
import string
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.figures import style
from aenmf_lib.figures.labels import place_labels, thin_ticks
from aenmf_lib.figures.style import NO_RUN, at_least
from aenmf_lib.figures.tables import check_table
from aenmf_lib.results import RunInfo

_PANELS = {"NMI": "clusters (NMI)", "knn": "15 neighbors (F1)", "unseen_NMI": "clusters, held-out donors (NMI)"}
_TYPES_ONLY = "Types"  # the baseline that contains the cell types and nothing else
_COLUMNS = ["on", "Model", "strength", "gene_weights", "n_starts"]
_SPAN = 0.1  # minimum range of an axis, so that small differences look small
_SIZES = (2.5, 3.5, 6.5)  # points: marker of strength 0, of the smallest and of the largest strength


@style.figure
def conditioning(table: pd.DataFrame, run: RunInfo = NO_RUN) -> style.Sheet:
    """Plot the cell-type score against the donor score of each model, 183 mm wide.

    One panel per conditioning column and score, one color per model, mean ± s.d. over the starts. A line connects the
    strengths of a model, from 0 (the published weights, or no penalty); larger markers are larger strengths. Table: one
    row per point, ``on, Model, strength, gene_weights, n_starts, score, type, type_std, on_value, on_std``.

    Parameters
    ----------
    table : from ``study.summarize``
    """
    columns = {"type": "type", "type_std": "type_std", "on_value": "on", "on_std": "on_std"}
    scores = [f"{score}_{end}" for score in _PANELS for end in columns.values()]
    check_table(table, "table of the study", [*_COLUMNS, *scores], [])
    values = {score: {name: table[f"{score}_{end}"] for name, end in columns.items()} for score in _PANELS}
    parts = [table[_COLUMNS].assign(score=score, **part) for score, part in values.items()]
    points = pd.concat(parts, ignore_index=True).dropna(subset=["type", "on_value"])
    if points.empty:
        return style.empty_figure(points, "no model has scores against both labels", style.run_note("", run))
    fig, complete = _draw(points, run)
    return fig if complete else _draw(points, run, legend=True)[0]  # the names do not fit into the panels


def _draw(points: pd.DataFrame, run: RunInfo, *, legend: bool = False) -> tuple[style.Sheet, bool]:
    """Return the figure, with the names of the models in the panels or in a legend, and whether all names fit."""
    width = style.page_width("double")
    run = replace(run, used_cell_type=dict.fromkeys(_conditional(points), True))
    names = style.model_names(points.loc[points["Model"] != _TYPES_ONLY, "Model"], run)
    found = set(points[["on", "score"]].itertuples(index=False, name=None))
    panels = [panel for panel in itertools.product(points["on"].unique(), _PANELS) if panel in found]
    n_columns = int(np.clip(width // (13 * style.line()), 1, len(_PANELS)))
    keys = _list_keys(points)
    height = -(-len(panels) // n_columns) * (min(width / n_columns * 0.8, 18 * style.line()) + 3 * style.line())
    height += (len(keys) + len(names) * legend + 1) * style.line()
    fig = style.new_figure(points, "double", height, _notes(points, run, len(panels), legend=legend), names, run)
    colors = {name: Line2D([], [], color=style.color_of(model), marker="o") for model, name in names.items()}
    for handles in (colors if legend else {}, keys):
        if handles:
            n = style.legend_columns(handles, width)
            fig.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=n, numpoints=1)
    axes = style.panels(fig, len(panels), n_columns)
    chosen, room = style.label_columns(run), width / n_columns - 5 * style.line()
    parts = [points[(points["on"] == on) & (points["score"] == score)] for on, score in panels]
    for ax, (on, score), part in zip(axes, panels, parts, strict=True):
        column = "+".join(chosen.get(name, name) for name in on.split("+"))
        title = _PANELS[score].replace("donors", style.label_plural(DONOR, run))
        texts = f"{column} (lower is better)", f"{style.label_name(CELL_TYPE, run)} (higher is better)", title
        xlabel, ylabel, title = ("\n".join(style.wrap(text, room)[:2]) for text in texts)
        _draw_points(ax, part, _sizes(points))
        ax.set(label=f"{on} {score}", xlabel=xlabel, ylabel=ylabel)
        ax.set_title(title, loc="left")
    thin_ticks(axes)
    style.letters(axes if len(axes) > 1 else ())
    for ax in axes:
        style.mark_cut_axis(ax, "x")
        style.mark_cut_axis(ax, "y")
    if legend:
        return fig, True
    named = set()
    for ax, part in zip(axes, parts, strict=True):
        named |= _name_points(ax, part, names)
    return fig, named == set(names)


def _sizes(points: pd.DataFrame) -> dict[float, float]:
    """Return the size of the marker of each strength, in points."""
    strengths = sorted(set(points["strength"]) - {0})
    sizes = np.linspace(*_SIZES[1:], len(strengths)) if len(strengths) > 1 else _SIZES[2:]
    return {0: _SIZES[0]} | dict(zip(strengths, sizes, strict=False))


def _list_keys(points: pd.DataFrame) -> dict[str, Line2D]:
    """Return the keys to the sizes and the kinds of the markers of the conditional models."""
    strengths = set(points["strength"][points["Model"].isin(_conditional(points))])
    keys = {}
    for strength, size in _sizes(points).items():
        if strength in strengths:
            name = f"strength {strength:g}" + " (published weights, or no penalty)" * (strength == 0)
            keys[name] = Line2D([], [], color="0.3", marker="o", ls="", markersize=size)
    if (points["gene_weights"] != "none").any():
        keys["genes weighted"] = Line2D([], [], color="0.3", marker="o", ls="", mfc="1", mew=0.8)
    return keys


def _conditional(points: pd.DataFrame) -> set[str]:
    """Return the models with a strength."""
    return set(points["Model"][points["strength"] > 0])


def _draw_points(ax: Axes, points: pd.DataFrame, sizes: dict[float, float]) -> None:
    """Draw the points of one panel, and the lines over the strengths."""
    for value in points["on_value"][points["Model"] == _TYPES_ONLY]:
        ax.axvline(value, color="0.25", lw=0.8, ls=":")
    points = points[points["Model"] != _TYPES_ONLY]
    conditional = _conditional(points)
    for point in points.itertuples():
        color, size = style.color_of(point.Model), sizes[point.strength] if point.Model in conditional else 4
        weighted = point.gene_weights != "none"
        bars = {"xerr": np.nan_to_num(point.on_std), "yerr": np.nan_to_num(point.type_std), "elinewidth": 0.5}
        ax.errorbar(
            point.on_value, point.type, fmt="o", color=color, **bars, markersize=size,
            mfc="1" if weighted else color, mew=0.8 * weighted,
        )  # fmt: skip
    for model in sorted(conditional):
        path = _path(points[points["Model"] == model])
        ax.plot(path["on_value"], path["type"], color=style.color_of(model), lw=0.8, zorder=1)
    low, high = at_least(*ax.get_xlim(), _SPAN)
    ax.set(xlim=(low, high) if low >= 0 else (-0.03 * high, high), ylim=at_least(*ax.get_ylim(), _SPAN))


def _path(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points of one model over the strengths, with the gene weights that have the most strengths."""
    rules = points.groupby("gene_weights", sort=False)["strength"].nunique()
    return points[points["gene_weights"] == rules.idxmax()].sort_values("strength")


def _name_points(ax: Axes, points: pd.DataFrame, names: dict[str, str]) -> set[str]:
    """Write the name of each model at the point of its largest strength; return the models whose name has space."""
    points = points[points["Model"].isin(names)]
    ends = [_path(part).iloc[-1] for _, part in points.groupby("Model", sort=False)]
    models = [end["Model"] for end in ends]
    texts, colors = [names[model] for model in models], [style.color_of(model) for model in models]
    missing = place_labels(ax, [end["on_value"] for end in ends], [end["type"] for end in ends], texts, colors)
    return {model for i, model in enumerate(models) if i not in missing}


def _notes(points: pd.DataFrame, run: RunInfo, n_panels: int, *, legend: bool) -> list[str]:
    """Return the sentences of the caption."""
    several = points["type_std"].notna().any()
    letters = {1: "", 2: "a, b, "}.get(n_panels, f"a to {string.ascii_lowercase[n_panels - 1]}, ")
    return [
        f"{letters}Score against the cell type, and against the column conditioned on, of each model"
        f" (mean{' ± s.d.' * bool(several)} of {style.value_range(points['n_starts'])} starts)",
        *style.run_note("", replace(run, used_cell_type={})),
        "Lines connect the strengths of the penalty of a model, from 0 (the published weights, or no penalty in the "
        "untied model); a larger marker is a larger strength" if _conditional(points) else "",
        "" if legend else "Names are at the largest strength; a name that has no space in one panel is in another",
        "The dotted line is the score of an embedding that contains only the cell types"
        if _TYPES_ONLY in set(points["Model"]) else "",
    ]  # fmt: skip
