"""Names or numbers of the cell types on a map."""

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from scipy.ndimage import uniform_filter

from aenmf_lib.figures import style
from aenmf_lib.figures.labels import place_labels
from aenmf_lib.figures.settings import MM

_NAMES = 30  # more types than this are numbered
# rows and columns of squares of a map, which names avoid if they have cells: names cover more cells in a coarser grid
_GRIDS = (40, 28, 20, 14)
_HIDDEN = 0.25  # a number that would cover a larger share of the cells around it is beside them
_FULL = 0.5  # share of a map that numbers can cover at most
_STRAY = 5_000  # a square with fewer cells than one of so many is free


def break_names(names: Iterable[str], width: float) -> dict[str, str] | None:
    """Return each name in at most two lines of `width` mm, or None if the names are too many or too long."""
    lines = {name: style.wrap(name, width) for name in names}
    whole = all(" ".join(parts) == style.printable(name) for name, parts in lines.items())
    if not whole or len(lines) > _NAMES or max(map(len, lines.values()), default=0) > 2:
        return None
    shown = {name: "\n".join(parts) for name, parts in lines.items()}
    return shown if len(set(shown.values())) == len(shown) else None


def label_map(ax: Axes, cells: Mapping[str, np.ndarray], texts: Mapping[str, str], colors: Mapping[str, str]) -> int:
    """Write a text for each type beside its cells, or on them if there is no other space.

    Parameters
    ----------
    ax : a map with its final size and limits, still without cells
    cells : the coordinates of the cells of each type (n, 2)
    texts : of the types; numbers are written on the cells
    colors : of the types

    Returns
    -------
    int
        Number of texts for which there is no space.
    """
    limits = np.array([ax.get_xlim(), ax.get_ylim()])
    names = sorted((name for name in cells if name in texts), key=lambda name: -len(cells[name]))
    if not names:
        return 0
    on_cells, n_types = all(text.isdecimal() for text in texts.values()), len(names)
    if on_cells:  # of many numbers, those of the largest types
        side = ax.get_window_extent().width / ax.figure.figure.dpi * MM
        area = max(map(style.text_width, texts.values())) * style.line()
        names = names[: max(1, int(_FULL * side**2 / area))]
    xy = np.array([_find_densest(cells[name], limits) for name in names])
    shown = [texts[name] for name in names]
    dark = ["black" if on_cells else _darken(colors[name]) for name in names]
    centered = [
        on_cells and not _is_hidden(ax, cells[name], at, texts[name]) for name, at in zip(names, xy, strict=True)
    ]
    every = np.concatenate(list(cells.values()))
    for squares in _GRIDS:
        before = set(ax.texts)
        covered = _cover(ax, every, limits, squares)
        left = place_labels(ax, *xy.T, shown, dark, centered=centered, on_map=True)
        covered.remove()
        if not left:
            break
        for text in set(ax.texts) - before:
            text.remove()
    else:  # as many as possible: numbers on the cells
        left = place_labels(ax, *xy.T, shown, dark, centered=on_cells, on_map=True)
    return n_types - len(names) + len(left)


def _is_hidden(ax: Axes, xy: np.ndarray, at: np.ndarray, text: str) -> bool:
    """Return whether a text at a place would cover much of the cluster there, of the cells xy (n, 2) of a type."""
    pixels = ax.figure.figure.dpi / MM
    size = np.array([style.text_width(text), style.line()]) * pixels
    away = abs(ax.transData.transform(xy) - ax.transData.transform(at))
    around = away[(away < 1.5 * size).all(axis=1)]
    return bool((around < size / 2).all(axis=1).mean() > _HIDDEN)


def _find_densest(xy: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return the mean of the cells xy (n, 2) in the densest part of a map with limits (2, 2)."""
    counts, *edges = np.histogram2d(*xy.T, bins=24, range=limits)
    at = np.unravel_index(uniform_filter(counts, 3, mode="constant").argmax(), counts.shape)
    middle = np.array([(edge[i] + edge[i + 1]) / 2 for edge, i in zip(edges, at, strict=True)])
    near = (np.abs(xy - middle) <= 1.5 * np.diff(limits, axis=1)[:, 0] / 24 * (1 + 1e-6)).all(axis=1)
    return xy[near].mean(axis=0)


def _cover(ax: Axes, xy: np.ndarray, limits: np.ndarray, squares: int) -> LineCollection:
    """Draw a dot in each square of a map with many cells, which texts avoid if they can, and return the dots."""
    counts, *edges = np.histogram2d(*xy.T, bins=squares, range=limits)
    found = np.argwhere(counts > len(xy) / _STRAY)  # (n, 2)
    centers = np.column_stack([(edge[i] + edge[i + 1]) / 2 for edge, i in zip(edges, found.T, strict=True)])
    return ax.add_collection(LineCollection([[center, center] for center in centers]), autolim=False)


def _darken(color: str) -> tuple[float, ...]:
    """Return a color that is dark enough for text on white."""
    rgb = np.array(to_rgb(color))
    return tuple(rgb * min(1.0, 0.42 / max(style.luminance(rgb), 0.01)))
