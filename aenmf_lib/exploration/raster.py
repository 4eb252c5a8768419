"""Images of many points, drawn by datashader: number, labels or mean value of the points in each pixel of a view.

The points are sorted by tiles once. To draw a view, only the rows of tiles that it shows are read. Neighboring points
fall into neighboring pixels, which stay in the cache of the processor.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import datashader as ds
import numba
import numpy as np
import pandas as pd
from datashader.transfer_functions import Image, spread
from matplotlib import colormaps

from aenmf_lib.exploration.coloring import Coloring

GRID = 512  # number of rows of tiles, and of columns
_THREADS = min(os.cpu_count() or 1, 8)
_POINTS = 2**16  # minimum number of points per thread
_SPARSE = 0.01  # points are enlarged if they fill less than this share of the pixels
_BINS = 40_000_000  # maximum of pixels × labels (160 MB per thread); an image that needs more gets fewer pixels


class Tiles:
    """Points sorted by tiles, so that any view can be drawn quickly.

    Parameters
    ----------
    xy
        Coordinates, (n_points, 2), which are converted to float32. Points that are not finite are left out.

    Attributes
    ----------
    view
        The rectangle that contains all points, ``(x_min, x_max, y_min, y_max)``.
    order
        Rows of `xy` in the order of the tiles, (n_drawn,) uint32.
    """

    def __init__(self, xy: np.ndarray) -> None:
        edges = np.linspace(0, len(xy), _THREADS + 1).astype(np.int64)
        xy = np.asarray(xy, dtype=np.float32)
        with ThreadPoolExecutor(_THREADS) as threads:
            parts = [xy[lo:hi] for lo, hi in pairwise(edges)]
            ends = np.array(list(threads.map(_find_ends, parts)))  # (n_parts, 4)
            low, high = ends[:, :2].min(axis=0), ends[:, 2:].max(axis=0)
            if not (low <= high).all():
                raise ValueError(f"None of the {len(xy)} points has finite coordinates. Compute the map again.")
            span = np.maximum(high - low, 1e-6 * np.maximum(np.abs(high), 1)).astype(np.float32)
            self.view = (float(low[0]), float(low[0] + span[0]), float(low[1]), float(low[1] + span[1]))
            self._low, self._scale = low, (GRID / span).astype(np.float32)
            counts = np.array(list(threads.map(lambda part: _count_tiles(part, self._low, self._scale), parts)))
            total = counts.sum(axis=0)  # (GRID² + 1,), the last for points that are not finite
            first = np.concatenate([[0], np.cumsum(total)])
            self._rows = first[: GRID**2 + 1 : GRID]  # first point of each row of tiles
            next_of = first[:-1] + np.cumsum(counts, axis=0) - counts  # (n_parts, GRID² + 1), the next free place
            self.order = np.empty(len(xy), dtype=np.uint32)
            self._x, self._y = (np.empty(len(xy), dtype=np.float32) for _ in "xy")
            given = [(part, lo, places) for part, lo, places in zip(parts, edges, next_of, strict=False)]
            list(threads.map(lambda one: _sort(*one, self._low, self._scale, self.order, self._x, self._y), given))
        n = int(self._rows[-1])
        self.order, self._x, self._y = self.order[:n], self._x[:n], self._y[:n]
        self._colored: tuple[Coloring, np.ndarray] | None = None

    def image(self, coloring: Coloring | None, view: tuple, width: int, height: int) -> np.ndarray:
        """Draw the points of a view, (height, width, 4) uint8, the first row at the bottom.

        With labels, the color of a pixel is the mean color of the labels of its points. With numbers, it is the color
        of their mean value. Without a coloring, it shows the number of points.
        """
        if coloring is None:
            counts = self.count(view, width, height)
            colors = np.array(colormaps["Blues"](range(256)))[:, :3] * 255
            rgb = colors[(80 + 175 * _logarithm(counts)).astype(int)]
            opacity = 255 * (counts > 0)
        elif coloring.labels is not None:
            coarse = int(np.ceil(np.sqrt(width * height * (len(coloring.labels) + 1) / _BINS)))
            by_label = self.count_labels(coloring, view, max(width // coarse, 1), max(height // coarse, 1))
            by_label = by_label[np.arange(height) * len(by_label) // height][
                :, np.arange(width) * by_label.shape[1] // width
            ]
            counts = by_label.sum(axis=2)
            rgb = by_label.astype(np.float32) @ coloring.table[: by_label.shape[2]] / np.maximum(counts, 1)[..., None]
            opacity = np.where(counts > 0, 130 + 125 * _logarithm(counts), 0)
        else:
            means, counts = self.average(coloring, view, width, height)
            rgb = replace(coloring, data=means).rgb()
            opacity = 255 * (counts > 0)
        picture = np.dstack([rgb, opacity]).astype(np.uint8)
        filled = (counts > 0).mean()
        return _enlarge(picture, 2 if filled < _SPARSE else 1 if filled < 4 * _SPARSE else 0)

    def count(self, view: tuple, width: int, height: int) -> np.ndarray:
        """Return the number of points in each pixel of a view, (height, width), the first row at the bottom."""
        return self._draw(ds.count(), view, width, height, lambda part: {})

    def count_labels(self, coloring: Coloring, view: tuple, width: int, height: int) -> np.ndarray:
        """Return the number of points per label in each pixel, (height, width, n_labels + 1); the last has no label."""
        codes = self._sorted(coloring)
        kinds = pd.CategoricalDtype(range(len(coloring.labels) + 1))
        column = lambda part: {"v": pd.Categorical.from_codes(codes[part], dtype=kinds, validate=False)}  # noqa: E731
        return self._draw(ds.by("v", ds.count()), view, width, height, column)

    def average(self, coloring: Coloring, view: tuple, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean value (or NaN) and the number of the points in each pixel, (height, width) each."""
        values = self._sorted(coloring)
        column = lambda part: {"v": values[part]}  # noqa: E731
        found = self._draw(ds.summary(sum=ds.sum("v"), n=ds.count("v"), all=ds.count()), view, width, height, column)
        with np.errstate(invalid="ignore", divide="ignore"):
            return found["sum"] / found["n"], found["all"]

    def inside(self, path, view: tuple) -> np.ndarray:
        """Return the sorted rows of the points inside a matplotlib path within a view, (n_inside,)."""
        rows = self._visible(view)
        found = []
        for lo in range(rows.start, rows.stop, 2**20):
            part = slice(lo, min(lo + 2**20, rows.stop))
            x, y = self._x[part], self._y[part]
            near = np.flatnonzero((x >= view[0]) & (x <= view[1]) & (y >= view[2]) & (y <= view[3]))
            near = near[path.contains_points(np.column_stack([x[near], y[near]]))]
            found.append(self.order[part][near])
        return np.sort(np.concatenate([np.zeros(0, np.uint32), *found])).astype(np.int64)

    def _visible(self, view: tuple) -> slice:
        """Return the slice of the points in the rows of tiles that a view shows."""
        first, last = (np.float32(y - self._low[1]) * self._scale[1] for y in view[2:])
        first, last = (int(np.clip(np.floor(tile) + add, 0, GRID)) for tile, add in ((first, -1), (last, 2)))
        return slice(int(self._rows[first]), int(self._rows[max(last, first)]))

    def _sorted(self, coloring: Coloring) -> np.ndarray:
        """Return the values of a coloring in the order of the tiles; missing labels get the last code."""
        if self._colored is None or self._colored[0] is not coloring:
            self._colored = None  # free the memory first
            values = coloring.data
            if coloring.labels is not None:
                kind = next(kind for kind in (np.int8, np.int16, np.int32) if len(coloring.labels) < np.iinfo(kind).max)
                values = np.where(values < 0, len(coloring.labels), values).astype(kind)
            self._colored = coloring, _gather(values, self.order)
        return self._colored[1]

    def _draw(self, what, view: tuple, width: int, height: int, column) -> np.ndarray | dict[str, np.ndarray]:
        """Aggregate the visible points in parts, one per thread, and add up the parts."""
        canvas = ds.Canvas(width, height, x_range=view[:2], y_range=view[2:])
        visible = self._visible(view)
        n_parts = int(np.clip((visible.stop - visible.start) // _POINTS, 1, _THREADS))
        edges = np.linspace(visible.start, visible.stop, n_parts + 1).astype(int).tolist()

        def one(lo: int, hi: int) -> dict[str, np.ndarray]:
            part = slice(lo, hi)
            points = pd.DataFrame({"x": self._x[part], "y": self._y[part], **column(part)}, copy=False)
            drawn = canvas.points(points, "x", "y", what)
            return {name: drawn[name].data for name in drawn} if hasattr(drawn, "data_vars") else {"": drawn.data}

        with ThreadPoolExecutor(n_parts) as threads:
            total, *others = threads.map(one, edges, edges[1:])
        for name in total:
            for other in others:
                if total[name].dtype.kind == "f":  # the sum of no points is NaN
                    total[name] = np.nan_to_num(total[name]) + np.nan_to_num(other[name])
                else:
                    total[name] += other[name]
        return total if len(total) > 1 else total[""]


def fit(view: tuple, width: float, height: float, margin: float = 1.02) -> tuple[float, float, float, float]:
    """Enlarge a view around its center to the aspect ratio of an image, so that both axes have the same scale."""
    scale = max((view[1] - view[0]) / width, (view[3] - view[2]) / height) * margin
    x, y = (view[0] + view[1]) / 2, (view[2] + view[3]) / 2
    return x - scale * width / 2, x + scale * width / 2, y - scale * height / 2, y + scale * height / 2


def _logarithm(counts: np.ndarray) -> np.ndarray:
    """Return log(counts) divided by its largest value: 0 for at most one point, 1 for the largest count."""
    return np.log(np.maximum(counts, 1)) / np.log(max(counts.max(), 2))


def _enlarge(picture: np.ndarray, by: int) -> np.ndarray:
    """Enlarge each point by `by` pixels in all directions."""
    if not by:
        return picture
    pixels = np.ascontiguousarray(picture).view(np.uint32)[..., 0]
    return spread(Image(pixels, dims=["y", "x"]), px=by).data[..., None].view(np.uint8)


@numba.njit(nogil=True, cache=True)
def _tile(x: float, y: float, low: np.ndarray, scale: np.ndarray) -> int:
    """Return the index of the tile of a point, or GRID² if the point is not finite."""
    if not (np.isfinite(x) and np.isfinite(y)):
        return GRID * GRID
    column = min(int((x - low[0]) * scale[0]), GRID - 1)
    row = min(int((y - low[1]) * scale[1]), GRID - 1)
    return row * GRID + column


@numba.njit(nogil=True, cache=True)
def _find_ends(xy: np.ndarray) -> np.ndarray:
    """Return the smallest x and y and the largest x and y of the finite points, (4,) float32."""
    ends = np.array([np.inf, np.inf, -np.inf, -np.inf], dtype=np.float32)
    for i in range(len(xy)):
        if np.isfinite(xy[i, 0]) and np.isfinite(xy[i, 1]):
            for j in range(2):
                ends[j] = min(ends[j], xy[i, j])
                ends[2 + j] = max(ends[2 + j], xy[i, j])
    return ends


@numba.njit(nogil=True, cache=True)
def _count_tiles(xy: np.ndarray, low: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the number of points in each tile, (GRID² + 1,)."""
    counts = np.zeros(GRID * GRID + 1, dtype=np.int64)
    for i in range(len(xy)):
        counts[_tile(xy[i, 0], xy[i, 1], low, scale)] += 1
    return counts


@numba.njit(nogil=True, cache=True)
def _sort(xy, first, places, low, scale, order, x, y) -> None:
    """Write the points of a part, which starts at row `first` of the data, to the next free places of their tiles."""
    for i in range(len(xy)):
        tile = _tile(xy[i, 0], xy[i, 1], low, scale)
        place = places[tile]
        places[tile] = place + 1
        order[place] = first + i
        x[place], y[place] = xy[i, 0], xy[i, 1]


def _gather(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return ``values[order]``, in parts, one per thread."""
    result = np.empty(len(order), dtype=values.dtype)
    edges = np.linspace(0, len(order), _THREADS + 1).astype(int).tolist()
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(lambda lo, hi: _copy(values, order[lo:hi], result[lo:hi]), edges, edges[1:]))
    return result


@numba.njit(nogil=True, cache=True)
def _copy(values: np.ndarray, order: np.ndarray, result: np.ndarray) -> None:
    """Write ``values[order]`` into `result`."""
    for i in range(len(order)):
        result[i] = values[order[i]]
