"""How is a page laid out? Words are measured, and boxes placed in millimetres from the top left: nothing overlaps."""

import logging
from bisect import bisect_right
from collections.abc import Collection, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from aenmf_lib.data import files

log = logging.getLogger(__name__)

SINGLE, DOUBLE = 89, 183  # mm, widths of one and of two columns of a journal
LINE = 3.1  # mm, one line of words
EDGE = 2  # mm, white at the rim
SIZE, NOTE = 7, 6  # points: all words, the caption
_INCH = 25.4
STYLE = style.context("aenmf_lib.figures.aenmf", after_reset=True)  # a decorator; a user's rcParams change nothing


class Sheet(Figure):
    """A Figure that a notebook shows without pyplot, which would keep every figure alive and bring the user's style."""

    @STYLE
    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def new_figure(width: float, height: float, note: Sequence[str], used_cell_type: Collection[str] = ()) -> Figure:
    """Make a figure with ``height`` mm to draw in and a caption at its foot.

    Parameters
    ----------
    width, height
        Millimetres; the caption's lines are added to the height.
    note
        Clauses of the caption; empty ones are left out.
    used_cell_type
        Models with a dagger: if there are any, the caption explains it.
    """
    clauses = [clause for clause in note if clause]
    if used_cell_type:
        clauses.append("†\u00a0trained with cell_type")
    lines = wrap("; ".join(clauses) + ".", width - 2 * EDGE)
    step = NOTE * 1.3 / 72 * _INCH
    fig = Sheet(figsize=(width / _INCH, (height + 1 + len(lines) * step + EDGE) / _INCH))
    for i, line in enumerate(lines):
        text(fig, EDGE, height + 1 + i * step, line, size=NOTE, color="0.3")
    return fig


def axes(fig: Figure, left: float, top: float, width: float, height: float, label: str) -> Axes:
    """Add axes whose box lies there; ``label`` names them to whoever looks into the figure."""
    w, h = fig.get_size_inches() * _INCH
    return fig.add_axes((left / w, 1 - (top + height) / h, width / w, height / h), label=label)


def text(fig: Figure, left: float, top: float, words: str, *, va: str = "top", **kwargs) -> None:
    """Write words whose corner (or middle, as ``ha`` and ``va`` say) lies there."""
    w, h = fig.get_size_inches() * _INCH
    fig.text(left / w, 1 - top / h, words, va=va, **kwargs)


def column(fig: Figure, right: float, top: float, words: Sequence[str]) -> None:
    """Write lines that end at ``right``: a heading above ``top``, the rest a line each below it."""
    text(fig, right, top - LINE - 1, words[0], ha="right")
    for i, line in enumerate(words[1:]):
        text(fig, right, top + (i + 0.5) * LINE, line, ha="right", va="center_baseline")


def breadth(words: str, size: float = SIZE, weight: str = "normal") -> float:
    """Measure a line of words, in mm, with a little to spare for the rounding of a screen."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(words, font, ismath=False)[0] / 72 * _INCH * 1.02


def wrap(words: str, width: float) -> list[str]:
    """Break a caption into lines of at most ``width`` mm."""
    lines = [""]
    for word in words.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and breadth(longer, NOTE) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def shorten_labels(names: Sequence[str], width: float) -> list[str]:
    """Cut the middle out of names wider than ``width`` mm; names that would become one are numbered in their order."""
    shown = [_cut(str(name), width) for name in names]
    twins = {name for name in shown if shown.count(name) > 1}
    for twin in twins:
        places = [i for i, name in enumerate(shown) if name == twin]
        for number, i in enumerate(places, 1):
            end = f" ({number})"
            shown[i] = _cut(str(names[i]), width - breadth(end)) + end
    return shown


def _cut(name: str, width: float) -> str:
    if breadth(name) <= width:
        return name

    def keep(n: int) -> str:
        tail = name[len(name) - n // 2 :]
        space = tail.find(" ", 0, len(tail) // 2)  # the tail starts with a whole word where one is near
        return f"{name[: n - n // 2].rstrip()}…{tail[space + 1 :]}"

    most = bisect_right(
        range(len(name)), width, key=lambda n: breadth(f"{name[: n - n // 2]}…{name[len(name) - n // 2 :]}")
    )
    return keep(max(most - 1, 0))


def at_least(low: float, upp: float, span: float) -> tuple[float, float]:
    """Widen the limits of an axis: differences that mean nothing do not fill it."""
    half = max(upp - low, span) / 2
    return (low + upp) / 2 - half, (low + upp) / 2 + half


def spread_labels(at: Sequence[float], pitch: float, low: float, high: float) -> np.ndarray:
    """Move labels from their heights ``at`` until they are ``pitch`` apart and, if there is room, within low..high."""
    at = np.asarray(at, dtype=float)
    order = np.argsort(at, kind="stable")
    y = np.clip(at[order], low, high)
    for i in range(1, len(y)):
        y[i] = max(y[i], y[i - 1] + pitch)
    y[-1:] = np.minimum(y[-1:], high)
    for i in range(len(y) - 2, -1, -1):
        y[i] = min(y[i], y[i + 1] - pitch)
    placed = np.empty_like(y)
    placed[order] = y
    return placed


def palette(n: int) -> list[str]:
    """Give n colors that differ as well as so many can (scanpy's); beyond 102 they repeat."""
    from scanpy.plotting import palettes  # takes seconds to import, and only the UMAP needs it

    colors = next((p for p in (palettes.vega_20_scanpy, palettes.zeileis_28) if n <= len(p)), palettes.godsnot_102)
    return [colors[i % len(colors)] for i in range(n)]


class Legend:
    """A legend in columns of equal width, as many as fit, read downwards.

    Parameters
    ----------
    names
        Words beside the marks.
    colors, markers
        A mark each.
    width
        Millimetres it may fill.
    """

    def __init__(self, names: Sequence[str], colors: Sequence[str], markers: Sequence[str], width: float):
        self.names = shorten_labels(names, width / 3 - 5)
        self.colors, self.markers, self.width = list(colors), list(markers), width
        self.step = max(map(breadth, self.names)) + 5
        self.rows = -(-len(self.names) // max(int(width // self.step), 1))

    @property
    def height(self) -> float:
        """Millimetres that it fills."""
        return self.rows * LINE

    def draw(self, fig: Figure, left: float, top: float) -> None:
        """Draw it with its top left corner there."""
        ax = axes(fig, left, top, self.width, self.height, "key")
        ax.set(xlim=(0, self.width), ylim=(self.height, 0))
        ax.axis("off")
        for i, (name, color, marker) in enumerate(zip(self.names, self.colors, self.markers, strict=True)):
            column, row = divmod(i, self.rows)
            x, y = column * self.step + 1, (row + 0.5) * LINE
            ax.scatter([x], [y], s=9, c=[color], marker=marker, lw=0)
            ax.text(x + 1.5, y, name, va="center_baseline")


@STYLE
def save(fig: Figure, path_stem: str | Path, table: pd.DataFrame) -> None:
    """Write a figure as pdf and png and the csv of what it draws; each file whole or not at all, the same bytes again.

    Parameters
    ----------
    fig
        From a function of this module.
    path_stem
        Path without ending; its folder is made where missing.
    table
        What is drawn: from the function of the same name in `drawn`.

    Raises
    ------
    ValueError
        The table has no row.
    """
    if table.empty:
        raise ValueError(f"{path_stem}.csv would have no rows: save a figure with the table that it draws.")
    Path(path_stem).parent.mkdir(parents=True, exist_ok=True)
    files.write_table(table, f"{path_stem}.csv")
    # Without a date, the same figure has the same bytes tomorrow, whatever SOURCE_DATE_EPOCH says.
    for ending, metadata in {"pdf": {"CreationDate": None}, "png": {}}.items():
        with files.atomic(f"{path_stem}.{ending}") as path:
            fig.savefig(path, format=ending, metadata=metadata)
    log.info("wrote %s as pdf, png and csv (%d rows)", path_stem, len(table))
