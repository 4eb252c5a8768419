"""Colors of the cells: a label, a column of numbers, the usage of a program, or the expression of a gene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgba_array

from aenmf_lib.figures import style

NUMBER, SELECTED = "number of cells", "selected"  # colorings that are not columns of obs
MISSING = "#bbbbbb"  # color of cells without a value
MAX_LABELS = 200  # columns with more labels are not offered, because their colors cannot be distinguished
_MAP = "viridis"  # color map of numbers
_SHOWN = 60  # maximum number of labels in a legend
_CLIPPED = 99.5  # values above this percentile get the last color, so that extreme values do not hide differences
_SAMPLE = 1_000_000  # about the number of values from which the percentile is computed


@dataclass(frozen=True)
class Coloring:
    """The colors of all cells by one quantity."""

    title: str
    data: np.ndarray  # (n_cells,): codes of labels, or -1; or float32 within [low, high], or NaN
    colors: list[str]  # one per label, or 256 from low to high
    labels: Sequence[str] | None = None  # None: the values are numbers
    low: float = 0.0
    high: float = 1.0

    @property
    def missing(self) -> np.ndarray:
        """Whether the value of each cell is missing, (n_cells,) bool."""
        return np.isnan(self.data) if self.labels is None else self.data < 0

    @property
    def table(self) -> np.ndarray:
        """The colors as numbers from 0 to 255; the last row is the color of missing values, (n_colors + 1, 3) uint8."""
        return np.round(255 * to_rgba_array([*self.colors, MISSING])[:, :3]).astype(np.uint8)

    @property
    def codes(self) -> np.ndarray:
        """The row of `table` with the color of each value, (…,) int."""
        if self.labels is not None:
            return np.where(self.missing, len(self.colors), self.data).astype(np.int32)
        scaled = (self.data - self.low) / (self.high - self.low) * (len(self.colors) - 0.001)
        return np.nan_to_num(scaled, nan=len(self.colors)).astype(np.int32)

    def rgb(self) -> np.ndarray:
        """Return the color of each value as numbers from 0 to 255, (…, 3) uint8."""
        return self.table[self.codes]

    def legend(self) -> str:
        """Return the legend as HTML."""
        title = f"<b>{escape(style.printable(self.title))}</b>"
        if self.labels is None:
            bar = f"linear-gradient(to right, {', '.join(self.colors[::15])})"
            scale = (
                f"{self.low:.3g} <span style='display:inline-block;width:120px;height:10px;background:{bar}'></span>"
            )
            parts = [f"{scale} {self.high:.3g}"]
        else:
            shown = zip(self.labels, self.colors, strict=True)
            parts = [_mark(color, style.printable(label)) for label, color in list(shown)[:_SHOWN]]
            parts += [f"… {len(self.labels):,} labels"] * (len(self.labels) > _SHOWN)
            parts += ["colors repeat"] * (len(set(self.colors)) < len(self.colors))
        parts += [_mark(MISSING, "missing")] * bool(self.missing.any())
        return f"<div style='line-height:1.5'>{title} &ensp;{' &ensp;'.join(parts)}</div>"


def color_column(column: pd.Series, title: str) -> Coloring:
    """Return the colors of a column of `Cells.column`: one color per label, or a scale of numbers."""
    if column.dtype.kind in "iuf":
        return color_values(column.to_numpy(), title)
    if len(column.cat.categories) > MAX_LABELS:  # slow for many cells
        column = column.cat.remove_unused_categories()
    labels = [str(label) for label in column.cat.categories]
    return Coloring(title, column.cat.codes.to_numpy(), style.palette(title, labels), labels)


def color_values(values: np.ndarray, title: str) -> Coloring:
    """Return the colors of numbers, (n_cells,), on a scale up to the 99.5th percentile.

    The scale starts at 0, or at the smallest value if this is negative or more than half of the largest value.
    """
    values = np.asarray(values, dtype=np.float32)
    finite = np.isfinite(values)
    some = values[:: max(1, len(values) // _SAMPLE)]
    some = some[np.isfinite(some)]
    low = min(0.0, float(some.min())) if len(some) else 0.0
    if len(some) and low == 0 and some.min() > 0.5 * some.max():  # for example scores near 1, or years
        low = float(some.min())
    high = float(np.percentile(some, _CLIPPED)) if len(some) else 1.0
    high = next((top for top in (high, float(some.max(initial=low))) if top > low), low + 1.0)
    clipped = np.clip(values, low, high)
    clipped[~finite] = np.nan
    return Coloring(title, clipped, [to_hex(color) for color in colormaps[_MAP](range(256))], low=low, high=high)


def _mark(color: str, text: str) -> str:
    """Return a disk of a color and its label as HTML."""
    return f"<span style='white-space:nowrap'><span style='color:{color}'>&#9679;</span> {escape(text)}</span>"
