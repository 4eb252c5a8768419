"""The figure of the classes: how well each cell type is predicted, and which types it is mistaken for."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import FigureBase
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from aenmf_lib.data import CELL_TYPE
from aenmf_lib.figures import style
from aenmf_lib.figures.labels import thin_ticks, wrap_name
from aenmf_lib.figures.points import CLASSIFIERS, name_classifiers
from aenmf_lib.figures.tables import check_columns, check_run, check_table
from aenmf_lib.results import RunInfo

_BY_CLASS, _CONFUSION = "classification_by_class.csv", "classification_confusion.csv"
_NORM = PowerNorm(0.5, 0.01, 1)  # small shares are visible
_MAX_ROWS = 30  # more types than this are numbered, with a key of their names
_NAMES = 0.4  # most of the width for the names of rows
_DEEP = 9  # longer names of columns, in lines of text, are replaced by numbers
_PAGE = 230  # mm, the height of a page, without the color bar
_TICKS = [0.01, 0.05, 0.25, 0.5, 1]  # of the color bar
_SMALL = 0.01  # smaller shares are white
_RANGES = 400  # of more points of F1, the ranges are not drawn


@style.figure
def figS4_classes(by_class: pd.DataFrame, confusion: pd.DataFrame, run: RunInfo = style.NO_RUN) -> style.Sheet:
    """Draw how well each cell type is predicted from each embedding, and which types it is mistaken for.

    F1: one row per cell type, one point per model, with a line over its classifiers. Confusion: one panel per model
    with the share of the cells of a type (row) that were predicted as each type (column). Types that are mistaken for
    each other are neighbors. More than 30 types are numbered, and a key has their names.

    Table: one row per (Model, class, predicted) with the ``number`` of the class in the figure, ``n_cells``, ``F1``
    (mean over the classifiers, and ``F1_low``, ``F1_high``) and ``share`` (of the cells of all classifiers).

    Parameters
    ----------
    by_class, confusion : ``classification_by_class.csv`` and ``classification_confusion.csv``
    """
    points = _merge(by_class, confusion, run)
    if points.empty:
        reason = f"{style.label_columns(run)[CELL_TYPE]} has fewer than two classes and was not scored"
        return style.empty_figure(points, reason, style.run_note("", run))
    names = style.model_names(points["Model"], run)
    types = points.drop_duplicates("class").set_index("class")["n_cells"]  # in the order of the figure
    others = f"b to {chr(ord('a') + len(names))}" if len(names) > 1 else "b"  # letters of the panels of confusion
    caption = [
        f"Prediction of {style.label_name(CELL_TYPE, run)} from the embeddings, by class",
        *style.run_note(f"{types.sum():,} cells", run),
        f"a, F1: points show the mean over {style.join(name_classifiers(by_class['classifier']))}"
        + "; lines show the range" * (len(types) * len(names) <= _RANGES)
        + "; colors are those of the names of the models",
        f"{others}, Share of the cells of a class (row) that were predicted as each class (column), over all "
        "classifiers, folds and seeds, on a square-root scale; white, less than 1%",
        "Classes that are mistaken for each other are next to each other",
        "Numbers of cells are in parentheses",
    ]
    return (_draw_named if len(types) <= _MAX_ROWS else _draw_numbered)(points, types, names, caption, run)


def _merge(by_class: pd.DataFrame, confusion: pd.DataFrame, run: RunInfo) -> pd.DataFrame:
    """Return one row per (Model, class, predicted) of cell types; no row if there are fewer than two types."""
    keys, by = ["Model", "label", "classifier", "class"], ["Model", "class"]
    check_columns(by_class, _BY_CLASS, [*keys, "n_cells", "F1"])
    check_columns(confusion, _CONFUSION, [*keys, "predicted", "n_cells"])
    check_run(by_class, _BY_CLASS, run)
    by_class, confusion = (table[table["label"] == CELL_TYPE] for table in (by_class, confusion))
    if by_class["F1"].isna().all() and confusion.empty:
        return pd.DataFrame(columns=[*by, "number", "n_cells", "F1", "F1_low", "F1_high", "predicted", "share"])
    check_table(by_class, _BY_CLASS, keys, ["n_cells", "F1"], classifier=CLASSIFIERS)
    check_table(confusion, _CONFUSION, [*keys, "predicted"], ["n_cells"], classifier=CLASSIFIERS)
    first, second = (set(table[by].astype(str).itertuples(index=False, name=None)) for table in (by_class, confusion))
    if first != second:
        raise ValueError(
            f"The tables by class and of confusion contain {len(first)} and {len(second)} pairs of a model and a cell "
            f"type, of which {len(first & second)} are in both. Expected the same pairs. Run 06_benchmarks again."
        )
    scores = by_class.groupby(by)["F1"].agg(F1="mean", F1_low="min", F1_high="max")
    scores.insert(0, "n_cells", by_class.groupby(by)["n_cells"].max())
    counts = confusion.groupby([*by, "predicted"])["n_cells"].sum()
    classes = sorted(set(by_class["class"]))
    every = pd.MultiIndex.from_product([style.in_order(by_class["Model"]), classes, classes], names=counts.index.names)
    counts = counts.reindex(every, fill_value=0)
    share = (counts / counts.groupby(by).transform("sum")).rename("share").reset_index()
    order = _order(share)
    points = scores.reset_index().merge(share, on=by, validate="one_to_many")
    points.insert(2, "number", points["class"].map(order.index) + 1)
    places = {"Model": style.in_order(points["Model"]), "class": order, "predicted": order}
    return points.sort_values([*places], key=lambda column: column.map(places[column.name].index), ignore_index=True)


def _order(share: pd.DataFrame) -> list[str]:
    """Return the classes in an order in which classes that are mistaken for each other are neighbors."""
    mean = share.pivot_table("share", "class", "predicted")
    if len(mean) < 3:
        return [*mean.index]
    distance = 1 - (mean.to_numpy() + mean.to_numpy().T) / 2
    np.fill_diagonal(distance, 0)
    links = hierarchy.linkage(squareform(distance.round(9), checks=False), "average", optimal_ordering=True)
    return [mean.index[i] for i in hierarchy.leaves_list(links)]


def _draw_named(points, types: pd.Series, names: Mapping[str, str], caption, run: RunInfo) -> style.Sheet:
    """Draw all panels with one row of text per class; the columns have names too, or else numbers."""
    width, row, n = style.page_width("double"), style.line(), len(types)
    cells, n_panels = [f" ({count:,})" for count in types], 1 + len(names)
    widest = max(map(style.text_width, cells)) + row
    shown = style.shorten_labels(types.index, max(_NAMES * width - widest, 4 * row))
    rows = [f"{name}{count}" for name, count in zip(shown, cells, strict=True)]
    left = max(map(style.text_width, rows)) + 1.5 * row
    depth = max(map(style.text_width, shown)) + row
    n_columns = int((width - left) // ((n + 1.5) * row))  # cells as wide as a line of text is high
    height = -(-n_panels // max(n_columns, 1)) * (n * row + depth + 3 * row)
    numbered = not n_columns or depth > _DEEP * row or height > min(75 * row, _PAGE)
    if numbered:
        left += style.text_width(f"  {n}")
        n_columns, depth = max(int((width - left) // (6 * row)), 1), 2 * row
        rows = [f"{name}  {i}" for i, name in enumerate(rows, 1)]
        caption = [*caption, "The numbers of the columns are those of the rows"]
    n_rows = -(-n_panels // min(n_columns, n_panels))
    n_columns = -(-n_panels // n_rows)
    panel = (width - left) / n_columns - 1.5 * row
    titles = _title(names, panel)
    above = (2 + max(title.count("\n") for title in titles.values())) * row
    heights = [n_rows * (n * row + depth + above), 3.5 * row]
    fig = style.new_figure(points, "double", sum(heights), caption, names, run)
    upper, bar = fig.subfigures(2, 1, height_ratios=heights)
    f1, *panels = axes = style.panels(upper, n_panels, n_columns)
    _draw_f1(f1, points, [*names], "y")
    f1.set_title("F1", loc="left")
    for ax, (model, title) in zip(panels, titles.items(), strict=True):
        _draw_confusion(ax, points[points["Model"] == model], title)
        if numbered:
            _number(ax.xaxis, n, panel)
        else:
            ax.set_xticks(np.arange(n) + 0.5, shown, rotation=90)
    for ax in axes[::n_columns]:
        ax.set_yticks(np.arange(n) + 0.5, rows)
    for ax in axes:
        ax.tick_params(length=0, axis="y" if ax is f1 else "both")
    _add_colorbar(bar, panels[0])
    style.letters(axes)  # before the ticks: the letters make the panels narrower
    thin_ticks([f1])
    return fig


def _draw_numbered(points, types: pd.Series, names: Mapping[str, str], caption, run: RunInfo) -> style.Sheet:
    """Draw all panels with numbers for the classes, and a key of their names below."""
    width, row, n = style.page_width("double"), style.line(), len(types)
    n_columns = min(max(int(width // (14 * row)), 1), len(names))
    n_rows, panel = -(-len(names) // n_columns), width / n_columns - 4 * row
    titles = _title(names, panel)
    above = (3.5 + max(title.count("\n") for title in titles.values())) * row
    n_key = max(int(width // (13 * row)), 1)
    per_column, wide = -(-n // n_key), width / n_key - row
    ends = [f" ({count:,})" for count in types]
    space = wide - max(map(style.text_width, ends)) - style.text_width(f"{n} ")
    shown = style.shorten_labels(types.index, space)
    key = [f"{i} {name}{end}" for i, name, end in zip(range(1, n + 1), shown, ends, strict=True)]
    heights = [16 * row, n_rows * (panel + above), 3.5 * row, (per_column + 1) * row]
    fig = style.new_figure(points, "double", sum(heights), caption, names, run)
    upper, middle, bar, lower = fig.subfigures(4, 1, height_ratios=heights)
    f1 = upper.subplots()
    _draw_f1(f1, points, [*names], "x")
    f1.set(xlabel="class", ylabel="F1")
    _number(f1.xaxis, n, width - 8 * row)
    panels = style.panels(middle, len(names), n_columns)
    for ax, (model, title) in zip(panels, titles.items(), strict=True):
        _draw_confusion(ax, points[points["Model"] == model], title)
        ax.set(xlabel="predicted class", ylabel="class" if ax in panels[::n_columns] else "")
        _number(ax.xaxis, n, panel)
        _number(ax.yaxis, n, panel)
    _add_colorbar(bar, panels[0])
    for i, text in enumerate(key):
        lower.text(0.3 * row / width + i // per_column / n_key, 1 - (i % per_column + 0.5) * row / heights[-1], text)
    style.letters([f1, *panels])
    return fig


def _title(names: Mapping[str, str], width: float) -> dict[str, str]:
    """Return the title of each panel of a `width` in mm, with a point in the color of the model if all titles fit."""
    if max(style.text_width(f"● {name}") for name in names.values()) <= width:
        return {model: f"● {name}" for model, name in names.items()}
    return {model: "\n".join(wrap_name(name, width + 0.8 * style.line())) for model, name in names.items()}


def _draw_f1(ax: Axes, points: pd.DataFrame, models: list[str], along: str) -> None:
    """Draw the F1 of each class, and its range over the classifiers; the classes are `along` x or y."""
    scores = points.drop_duplicates(["Model", "class"])
    n, small = scores["number"].max(), len(scores) > _RANGES
    step = 0.8 / len(models)
    for i, model in enumerate(models):
        own, color = scores[scores["Model"] == model], style.color_of(model)
        at = own["number"] - 0.5 + (i - (len(models) - 1) / 2) * step
        lines, xy = (ax.hlines, (own["F1"], at)) if along == "y" else (ax.vlines, (at, own["F1"]))
        if not small:
            lines(at, own["F1_low"], own["F1_high"], color, lw=0.5, alpha=0.7, zorder=2)
        ax.scatter(*xy, s=3 if small else 7, c=color, lw=0, clip_on=False, zorder=3)
    rules = dict(color="0.85", lw=0.4, zorder=0)
    if along == "y":
        ax.hlines(range(1, n), 0, 1, **rules)
        ax.set(label="F1", xlim=(0, 1), ylim=(n, 0))
    else:
        ax.vlines(range(10, n, 10), 0, 1, **rules)
        ax.set(label="F1", xlim=(0, n), ylim=(0, 1.08))


def _draw_confusion(ax: Axes, points: pd.DataFrame, title: str) -> None:
    """Draw the shares of one model; no color where no cell was predicted as a class."""
    model, n = points["Model"].iloc[0], points["number"].max()
    grid = points["share"].to_numpy().reshape(n, n)
    colormap = style.current().sequential
    colormap = colormap.removesuffix("_r") if colormap.endswith("_r") else f"{colormap}_r"  # light: small shares
    lines = {"edgecolors": "0.93", "lw": 0.3} if n <= 25 else {}
    shares, as_pixels = np.ma.masked_less(grid, _SMALL), grid.size > style.RASTER
    ax.pcolormesh(shares, cmap=colormap, norm=_NORM, rasterized=as_pixels, **lines)
    ax.set(label=model, xlim=(0, n), ylim=(n, 0), xticks=[], yticks=[])
    ax.set_title(title, loc="left", color=style.color_of(model))
    ax.spines[:].set_visible(True)


def _number(axis, n: int, length: float) -> None:
    """Write numbers of classes at an axis of a `length` in mm, as many as have space."""
    needed = 1.3 * (style.text_width(str(n)) if axis.axis_name == "x" else style.line())
    step = next((step for step in (1, 2, 5, 10, 20, 50) if step * length / n >= needed), 100)
    shown = [i for i in range(1, n + 1) if i % step == 0 or (i == 1 and step > 1 and step * length / n > 2 * needed)]
    axis.set_ticks([i - 0.5 for i in shown], [str(i) for i in shown])


def _add_colorbar(fig: FigureBase, panel: Axes) -> None:
    """Draw the color bar of the shares in a part of a figure."""
    width, row = style.page_width("double"), style.line()
    side = max(width - 26 * row, 0) / 2
    *_, ax = axes = fig.subplots(1, 3, width_ratios=[side + row, side + row, max(width - 2 * side, row)])
    for empty in axes[:2]:
        empty.set_visible(False)
    label = "share of the cells of a class"
    bar = fig.figure.colorbar(panel.collections[0], cax=ax, orientation="horizontal", label=label)
    bar.outline.set_linewidth(0.5)
    bar.ax.minorticks_off()
    bar.ax.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
