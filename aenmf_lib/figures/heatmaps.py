"""What the figures of programs share: panels placed in mm, heat maps, color bars, and the choice of programs."""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from aenmf_lib.figures import style
from aenmf_lib.figures.settings import MM

COSINES = LinearSegmentedColormap.from_list("cosines", ["#FFFFFF", "#7FA6C9"])  # black text is readable on all of them
PAGE = 235  # mm, height of a page: figures of many programs show as many of them as fit
SPECIFIC = 1.5  # programs whose mean usage in each type is below this fold of the mean over types are of all types
_RASTER = 4_000  # heat maps with more cells are drawn as pixels, also in pdf and svg
_CELL = 1.5  # mm, width of a cell of a heat map above which there are lines between cells


def panel(fig: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Return a panel at a position in mm from the upper left corner of the figure, without ticks and spines.

    One unit of its axes is 1 mm, and y points downwards.
    """
    page = np.array(fig.get_size_inches()) * MM
    ax = fig.add_axes((left / page[0], 1 - (top + height) / page[1], width / page[0], height / page[1]))
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    ax.patch.set_visible(False)
    ax.spines[:].set_visible(False)
    return ax


def heatmap(ax: Axes, grid: np.ndarray, cmap: str | Colormap, limits: tuple[float, float] = (0, 1)) -> None:
    """Fill a panel with the cells of a grid (n_rows, n_columns). Empty cells (NaN) stay white."""
    n_rows, n_columns = grid.shape
    width = ax.get_position().width * ax.figure.get_figwidth() * MM / n_columns
    raster = {"rasterized": True} if grid.size > _RASTER else {}
    lines = {"edgecolor": "white", "lw": 0.3} if width > _CELL and not raster else {}
    ax.pcolormesh(np.ma.masked_invalid(grid), cmap=cmap, vmin=limits[0], vmax=limits[1], **lines, **raster)
    ax.set(xlim=(0, n_columns), ylim=(n_rows, 0))


def light_to_dark() -> Colormap:
    """Return the colormap of the settings for values from 0, with the light end at 0, which fits a white page."""
    cmap = mpl.colormaps[style.current().sequential]
    return cmap if style.luminance(cmap(0.0)) >= style.luminance(cmap(1.0)) else cmap.reversed()


def color_bar(ax: Axes, cmap: str | Colormap, label: str, ticks: Mapping[float, str]) -> None:
    """Draw a horizontal color bar in a panel, with its label below the ticks (value: text), which cover its range.

    If there is no space for all ticks, only the first and the last one are drawn.
    """
    scale = ScalarMappable(Normalize(min(ticks), max(ticks)), cmap)
    bar = ax.figure.colorbar(scale, cax=ax, orientation="horizontal")
    room = ax.get_position().width * ax.figure.get_figwidth() * MM
    if (longest(ticks.values()) + 0.4 * style.line()) * (len(ticks) - 1) > room:
        ticks = {value: ticks[value] for value in (min(ticks), max(ticks))}
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.outline.set_linewidth(0.4)
    ax.tick_params(length=1.5)
    ax.set_xlabel(label, loc="left")


def matched_pairs(matches: pd.DataFrame, first: str, other: str) -> pd.DataFrame:
    """Return the rows of the matched programs of two models. Raise ValueError if there are none."""
    pairs = matches[(matches["Model"] == first) & (matches["other"] == other) & matches["matched"].astype(bool)]
    if pairs.empty:
        source = matches.attrs.get("source", "program_matches.csv")
        raise ValueError(f"{source} has no pairs of {first} and {other}. Run 10_programs again.")
    return pairs


def choose_programs(cards: pd.DataFrame, n: int, preferred: Sequence[int] = ()) -> list[int]:
    """Return at most n programs of one model: the most specific ones of the types, and then the largest ones.

    The most specific program of a type is, among the programs that the type uses most, the one whose usage has the
    largest share of its variance between types. They are at most half of the programs. `preferred` programs are chosen
    before the largest ones.
    """
    cards = cards.sort_values("program", kind="stable")
    specific = cards.sort_values("variance_by_type", ascending=False, kind="stable")
    specific = specific[specific["top_type"].astype(str) != ""].drop_duplicates("top_type")["program"]
    largest = cards.sort_values("share_of_norm", ascending=False, kind="stable")["program"]
    return list(dict.fromkeys([*specific[: n // 2], *preferred, *largest]))[:n]


def chosen_note(shown: int, total: int, what: str, preferred: str = "") -> str:
    """Return the sentence of a caption about the programs that are not shown; empty if all are shown."""
    if shown == total:
        return ""
    return (f"{shown} of the {total} programs{what} are shown: the most specific ones of the types (largest share of "
            f"their variance between types), {preferred}and the largest ones (share of the norm)")  # fmt: skip


def fit_genes(text: str, width: float, most: int) -> str:
    """Return the first genes of a list such as "CD3D, CD3E, CD2", at most `most`, that fit into `width` mm."""
    genes = style.printable(text).split(", ")[:most] if text else []
    while len(genes) > 1 and style.text_width(", ".join(genes)) > width:
        genes.pop()
    shown = ", ".join(genes)
    return shown if style.text_width(shown) <= width else style.shorten_labels([shown], width)[0]


def longest(texts: Iterable[str]) -> float:
    """Return the width of the widest text in mm; 0 without texts."""
    return max(map(style.text_width, texts), default=0.0)


def write_rows(ax: Axes, x: float, texts: Sequence[str], **options) -> None:
    """Write one text per row of height 1 of a panel, centered on its row."""
    for row, text in enumerate(texts):
        ax.text(x, row + 0.5, text, **{"va": "center_baseline", "clip_on": False} | options)
