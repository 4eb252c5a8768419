"""A zoomable map of millions of cells: the kernel draws an image of the visible part, and ipympl displays it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ipympl.backend_nbagg import Canvas, FigureManager
from ipywidgets import Dropdown, VBox
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.widgets import LassoSelector

from aenmf_lib.exploration.coloring import Coloring
from aenmf_lib.exploration.raster import Tiles, fit
from aenmf_lib.exploration.reading import Cells

_SIZE = (9, 6)  # inches, with 100 pixels each
_ZOOM = 1.4  # zoom factor of one step of the mouse wheel


class Density:
    """The map of one model at a time. The mouse wheel zooms, dragging draws a lasso, and a button switches to panning.

    Without a `coloring`, it shows the number of cells. `on_select` is called with the sorted rows of selected cells.
    """

    def __init__(self, cells: Cells, coloring: Coloring | None, on_select: Callable[[np.ndarray], None]) -> None:
        self._cells, self._coloring, self._on_select, self._panning = cells, coloring, on_select, False
        self.figure = Figure(figsize=_SIZE, dpi=100)
        canvas = Canvas(self.figure)
        self._manager = FigureManager(canvas, 0)  # the toolbar
        canvas.header_visible = canvas.footer_visible = False
        canvas.capture_scroll = True
        self.axes = self.figure.add_axes((0, 0, 1, 1), xticks=[], yticks=[])
        self.axes.spines[:].set_visible(False)
        self._image = self.axes.imshow(np.zeros((1, 1, 4), np.uint8), origin="lower", aspect="auto")
        self._lasso = LassoSelector(self.axes, self._select, props={"color": "0.2", "lw": 1})
        self.model = Dropdown(options=cells.models, description="Map of")
        self.model.observe(lambda change: self._open(), names="value")
        self.widget = VBox([self.model, canvas])
        canvas.mpl_connect("scroll_event", self._zoom)
        canvas.mpl_connect("button_press_event", lambda event: self._set_panning(True))
        canvas.mpl_connect("button_release_event", lambda event: self._set_panning(False))
        canvas.mpl_connect("resize_event", lambda event: self._draw())
        self.axes.callbacks.connect("ylim_changed", lambda axes: self._panning or self._draw())
        self._open()

    def recolor(self, coloring: Coloring | None) -> None:
        """Draw the cells in other colors, or the number of cells if `coloring` is None."""
        self._coloring = coloring
        self._draw()

    def select(self, rows: np.ndarray) -> None:
        """Report the selected rows. The map shows the selection only if it is colored by 'selected'."""
        self._on_select(rows)

    def _open(self) -> None:
        """Read and draw the map of the chosen model. Only one map is in memory at a time."""
        self._tiles = None
        xy, title = self._cells.coordinates(self.model.value)
        self._tiles = Tiles(xy)
        self.model.description_tooltip = title
        self._set_view(self._tiles.view)

    def _draw(self) -> None:
        """Draw the visible part of the map, with the same scale on both axes."""
        if self._tiles is None:
            return
        width, height = (max(int(n), 1) for n in (self.axes.bbox.width, self.axes.bbox.height))
        view = fit((*self.axes.get_xlim(), *self.axes.get_ylim()), width, height, margin=1)
        self.axes.set_xlim(view[:2], emit=False)
        self.axes.set_ylim(view[2:], emit=False)
        self._image.set(data=self._tiles.image(self._coloring, view, width, height), extent=view)
        self.figure.canvas.draw_idle()

    def _set_view(self, view: tuple) -> None:
        """Show a rectangle of the map."""
        view = fit(view, self.axes.bbox.width, self.axes.bbox.height)
        self.axes.set_xlim(view[:2], emit=False)
        self.axes.set_ylim(view[2:])
        self._draw()

    def _zoom(self, event) -> None:
        """Zoom around the position of the mouse."""
        if event.inaxes is not None:
            scale = _ZOOM ** -np.sign(event.step)
            x, y = ([at + (end - at) * scale for end in ends] for at, ends in
                    ((event.xdata, self.axes.get_xlim()), (event.ydata, self.axes.get_ylim())))  # fmt: skip
            self.axes.set_xlim(x, emit=False)
            self.axes.set_ylim(y)

    def _set_panning(self, pressed: bool) -> None:
        """Record whether a mouse button is pressed. After panning, draw the image again when the button is released."""
        moved, self._panning = self._panning and not pressed, pressed
        if moved and self._image.get_extent() != [*self.axes.get_xlim(), *self.axes.get_ylim()]:
            self._draw()

    def _select(self, corners: list[tuple[float, float]]) -> None:
        """Report the cells inside the lasso."""
        if len(corners) > 2:
            (x0, y0), (x1, y1) = np.min(corners, axis=0), np.max(corners, axis=0)
            self._on_select(self._tiles.inside(Path(corners), (x0, x1, y0, y1)))
