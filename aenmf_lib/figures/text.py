"""Text in figures: its width in the font of the figure, and names that fit into a given width."""

import functools
from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib import textpath
from matplotlib.font_manager import FontProperties

from aenmf_lib.figures.settings import MM, POINTS, current, find_font


def text_width(text: str, weight: str = "normal") -> float:
    """Return the width of a line of text in mm, in the font of the figure."""
    return _width(text, find_font(current().fonts), current().font_size, weight)


@functools.cache
def _width(text: str, family: str, size: float, weight: str) -> float:
    """Return the width of a line of text in mm."""
    font = FontProperties(family=[family, "DejaVu Sans"], size=size, weight=weight)
    return textpath.text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / POINTS * MM


def wrap(text: str, width: float) -> list[str]:
    """Return a text in lines that are at most `width` mm wide; a longer word is shortened."""
    lines = [""]
    for word in printable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer) <= width or not lines[-1]:
            lines[-1] = _shorten(longer, width)
        else:
            lines.append(_shorten(word, width))
    return lines


def printable(name: object) -> str:
    """Return a name as it is drawn: with a space for line breaks, tabs and other characters that cannot be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(name)).split()) or "(blank)"


def shorten_labels(names: Iterable[object], width: float) -> list[str]:
    """Cut the middle out of names wider than `width` mm, and number names that would then look equal."""
    names = [printable(name) for name in names]
    shown = [_shorten(name, width) for name in names]
    for _ in range(3):  # a number may give a name that another cell type has already
        column = pd.Series(shown, dtype=object)
        numbers = column.groupby(column).cumcount() + 1
        for i in np.flatnonzero(column.duplicated(keep=False)):
            end = f" ({numbers[i]})"
            shown[i] = _shorten(names[i], width - text_width(end)) + end
        names = list(shown)
    return shown


def _shorten(name: str, width: float) -> str:
    """Return the name, or as much of its start and end as fits into `width` mm."""
    shown, n = name, len(name)
    while (too_wide := text_width(shown)) > width and n > 1:
        n = min(n - 1, int(n * width / too_wide) + 2)
        shown = f"{name[: n - n // 2].rstrip()}…{name[len(name) - n // 2 :].lstrip()}"
    return shown
