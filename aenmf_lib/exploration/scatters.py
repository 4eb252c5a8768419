"""Linked maps of up to a million cells, which jupyter-scatter draws in the browser."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from jscatter import Scatter, compose

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.exploration.coloring import Coloring
from aenmf_lib.exploration.reading import Cells

_HEIGHT = 380  # pixels of a map
_SELECTED = "#d62728"


class Scatters:
    """One map per model. The cell under the mouse and the selected cells are marked in all maps.

    `on_select` is called with the sorted rows of the selected cells.
    """

    def __init__(self, cells: Cells, coloring: Coloring | None, on_select: Callable[[np.ndarray], None]) -> None:
        self._on_select, self._rows = on_select, np.zeros(0, dtype=np.int64)
        labels = {name: cells.column(name) for name in (CELL_TYPE, DONOR) if name in cells.columns}
        labels = {name: column.cat.add_categories([""]).fillna("") for name, column in labels.items()}
        frame = pd.DataFrame(labels, index=range(cells.n_cells))
        self._scatters, titled = [], []
        for model in cells.models:
            xy, kind = cells.coordinates(model)
            low, span = xy.min(axis=0), 1.1 * max(float(np.ptp(xy, axis=0).max()), 1e-9)
            low = (low + xy.max(axis=0)) / 2 - span / 2  # a square with all cells, and a margin
            for axis, values in zip("xy", xy.T, strict=True):
                frame[f"{model} {axis}"] = values
            scales = {f"{axis}_scale": (float(low[i]), float(low[i]) + span) for i, axis in enumerate("xy")}
            scatter = Scatter(
                x=f"{model} x",
                y=f"{model} y",
                data=frame,
                **scales,
                axes=False,
                color_selected=_SELECTED,
                opacity_unselected=0.15,
                tooltip=True,
                tooltip_properties=list(labels),
                tooltip_histograms=False,
            )
            self._scatters.append(scatter)
            titled.append((scatter, f"{model}, {kind}"))
        columns = 1 if len(cells.models) == 1 else 2
        self.widget = compose(
            titled,
            sync_selection=True,
            sync_hover=True,
            rows=-(-len(cells.models) // columns),
            cols=columns,
            row_height=_HEIGHT,
        )
        for scatter in self._scatters:
            scatter.widget.show()  # adds its buttons
            scatter.widget.observe(self._select, names="selection")
        self.recolor(coloring)

    def recolor(self, coloring: Coloring | None) -> None:
        """Draw the cells in other colors.

        The color indices are written into the widgets directly, because `Scatter.color` takes seconds for a million
        cells.
        """
        if coloring is None:
            coloring = Coloring("", np.zeros(1, dtype=np.int8), ["#444444"], ["cells"])
        colors = np.insert(coloring.table / 255, 3, 1, axis=1).tolist()  # (n_colors + 1, 4)
        codes, numbers = coloring.codes, {str(number): number for number in range(len(colors))}
        # The widget fails without the data of its legend and its histogram of colors, although both are hidden.
        legend = {"color_scale": "categorical", "color_domain": numbers, "color_histogram": [0] * len(colors)}
        for scatter in self._scatters:
            points = scatter.widget.points.astype(np.float32)  # a copy
            points[:, 2] = codes
            with scatter.widget.hold_sync():
                for name, value in legend.items():
                    setattr(scatter.widget, name, value)
                scatter.widget.prevent_filter_reset = scatter.widget.non_spatial_points_update = True
                scatter.widget.color, scatter.widget.color_by, scatter.widget.points = colors, "valueA", points

    def select(self, rows: np.ndarray) -> None:
        """Select cells in all maps."""
        self._scatters[0].selection(rows)

    def _select(self, change: dict) -> None:
        """Report the cells that were selected in one of the maps. jupyter-scatter updates the other maps."""
        rows = np.sort(np.asarray(change["new"], dtype=np.int64).ravel())
        if not np.array_equal(rows, self._rows):
            self._rows = rows
            self._on_select(rows)
