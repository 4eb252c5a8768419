"""A figure of the maps, for notebooks without widgets: executed by make, exported, or shown without a browser."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from aenmf_lib.exploration.coloring import MISSING, Coloring
from aenmf_lib.exploration.reading import Cells
from aenmf_lib.figures import style

MAX_MARKS = 50_000  # with more cells, the maps are images instead of marks
_PIXELS = 500  # width and height of such an image
_SEED = 0  # seed of the order in which cells are drawn
_SHOWN = 40  # maximum number of labels in the legend


@style.figure
def maps(cells: Cells, coloring: Coloring | None) -> Figure:
    """Draw the map of each model, colored by one quantity, or by the number of cells if `coloring` is None.

    Table: number of cells of each label, if any.
    """
    table, colors = pd.DataFrame(), {}
    if coloring is not None and coloring.labels is not None:
        labels = style.shorten_labels(coloring.labels, style.page_width("double") / 3)
        n_labels = len(labels)
        counts = np.bincount(coloring.data.astype(np.int32) % (n_labels + 1), minlength=n_labels + 1)
        table = pd.DataFrame({"label": [*coloring.labels, "(missing)"], "n_cells": counts})
        colors = dict(list(zip(labels, coloring.colors, strict=True))[:_SHOWN])
        colors |= {"(missing)": MISSING} if counts[-1] else {}
    title = "number of cells" if coloring is None else style.printable(coloring.title)
    more = f"{_SHOWN} of {len(coloring.labels)} labels are listed" if len(table) - 1 > _SHOWN else ""
    columns = 1 if len(cells.models) == 1 else 2
    rows = -(-len(cells.models) // columns)
    width = style.page_width("double")
    lines = 2 - (-len(colors) // style.legend_columns(colors, width)) if colors else 5
    note = [f"n = {cells.n_cells:,} cells", "Axes have no unit. Do not compare distances between maps", more]
    fig = style.new_figure(table, "double", rows * width / 2 + lines * style.line(), note)
    part = fig.subfigures()
    axes = part.subplots(rows, columns, squeeze=False).ravel()
    for model, ax in zip(cells.models, axes, strict=False):
        xy, kind = cells.coordinates(model)
        ends = [(float(np.nanmin(values)), float(np.nanmax(values))) for values in xy.T]
        span = 1.05 * max(high - low for low, high in ends)  # a square that contains all cells
        view = [end for low, high in ends for end in style.at_least(low, high, max(span, 1e-9))]
        _draw(ax, xy, coloring, view)
        ax.set(
            label=model,
            title=f"{model}, {kind}",
            aspect="equal",
            xticks=[],
            yticks=[],
            xlim=view[:2],
            ylim=view[2:],
        )
    for ax in axes:
        ax.spines[:].set_visible(False)
    for ax in axes[len(cells.models) :]:
        ax.set_axis_off()
    title = style.shorten_labels([title], 0.8 * width)[0]
    if colors:
        style.legend(part, colors, where="lower", title=title, alignment="left")
    elif coloring is not None:
        scale = ScalarMappable(Normalize(coloring.low, coloring.high), ListedColormap(coloring.colors))
        part.colorbar(scale, ax=list(axes), location="bottom", shrink=0.3, aspect=25, pad=0.02, label=title)
    return fig


def _draw(ax, xy: np.ndarray, coloring: Coloring | None, view: list[float]) -> None:
    """Draw one map: one mark per cell, or an image of more than MAX_MARKS cells."""
    if len(xy) <= MAX_MARKS and coloring is not None:
        order = np.random.default_rng(_SEED).permutation(len(xy))  # random order, so that no label covers the others
        size = np.clip(20_000 / len(xy), 0.3, 8)
        ax.scatter(*xy[order].T, s=size, c=coloring.rgb()[order] / 255, lw=0, rasterized=len(xy) > style.RASTER)
        return
    from aenmf_lib.exploration.raster import Tiles

    picture = Tiles(xy).image(coloring, tuple(view), _PIXELS, _PIXELS)
    ax.imshow(picture, origin="lower", extent=view, interpolation="nearest")
