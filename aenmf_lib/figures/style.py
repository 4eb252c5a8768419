"""What all figures share: page size, colors, legends, text of captions, and saving."""

import functools
import logging
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.data.files import atomic
from aenmf_lib.data.tables import write_table
from aenmf_lib.results import GROUPS, MODELS, RunInfo

log = logging.getLogger(__name__)

COLORS = {"CAE_NMF1": "#0072B2", "CAE_NMF2": "#009E73", "AE_NMF": "#E69F00", "Base_NMF": "#000000"}  # Okabe & Ito
COLORS |= {"PCA": "#999999", "Harmony": "#CC79A7", "LinearSCVI": "#D55E00"}  # baselines of the conditioning study
STEPS = [1, 2, 5, 10]  # of ticks
SINGLE, DOUBLE = 89, 183  # mm, widths of one and of two columns of a journal
LINE = 3.1  # mm, height of a line of text
CAPTION = 6  # points
RASTER = 10_000  # more marks than this are drawn as pixels, also in the pdf
NO_RUN = RunInfo()  # nothing known about the run
STYLE = style.context("aenmf_lib.figures.aenmf", after_reset=True)  # a decorator: the user's rcParams change nothing
_INCH = 25.4  # mm


class Sheet(Figure):
    """A Figure with a name and the table that it draws. Notebooks display it without pyplot."""

    name: str
    table: pd.DataFrame

    @STYLE
    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def figure(draw: Callable[..., Sheet]) -> Callable[..., Sheet]:
    """Decorate a function that draws: use our style, name the figure, and lay it out once for all its files."""

    @STYLE
    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Sheet:
        fig = draw(*args, **kwargs)
        fig.name = draw.__name__
        fig.draw_without_rendering()
        fig.set_layout_engine("none")
        return fig

    return drawn


def new_figure(
    table: pd.DataFrame,
    width: float,
    height: float,
    note: Sequence[str],
    titles: Mapping[str, str] | None = None,
    run: RunInfo = NO_RUN,
) -> Sheet:
    """Return an empty figure of `width` × `height` mm, plus a caption of the clauses `note` below it."""
    note = [*filter(None, note), *[f"†\u00a0trained with {printable(run.cell_type_column)}"] * ("†" in str(titles))]
    lines = textwrap.wrap("; ".join(note) + ".", int(width * 0.88), break_on_hyphens=False)
    height += len(lines) * CAPTION * 1.25 / 72 * _INCH
    fig = Sheet(figsize=(width / _INCH, height / _INCH), layout="constrained")
    fig.supxlabel("\n".join(lines), x=1 / width, ha="left", size=CAPTION, color="0.3")
    fig.table = table
    return fig


def legend(
    fig: FigureBase, colors: Mapping[str, str], markers: Mapping[str, str] | None = None, where="upper", **options
) -> None:
    """Add a legend outside the panels: names with their color and marker, in as many columns as fit."""
    markers = dict.fromkeys(colors, "o") | (markers or {})
    handles = [Line2D([], [], label=name, ls="", color=colors[name], marker=markers[name]) for name in colors]
    columns = legend_columns(colors, fig.bbox.width / fig.figure.dpi * _INCH)
    fig.legend(handles=handles, loc=f"outside {where} left", ncols=columns, **options)


def legend_columns(names: Collection[str], width: float) -> int:
    """Return the number of legend columns that fit into `width` mm."""
    return max(int((width - 2) // (max(map(text_width, names)) + 6)), 1)


def label_rows(ax: Axes, names: Sequence[str] = (), counts: Sequence[int] = ()) -> None:
    """Write names of rows on the left of a panel, and their numbers of cells on the right."""
    for axis, labels in ((ax, names), (ax.secondary_yaxis("right") if len(counts) else None, counts)):
        if len(labels):
            axis.set_yticks(np.arange(len(labels)) + 0.5, [f"{n:,}" if labels is counts else n for n in labels])
            axis.tick_params(axis="y", length=0)
    if len(counts):
        axis.spines[:].set_visible(False)
        axis.set_ylabel("cells", labelpad=4)


@functools.cache
def text_width(text: str) -> float:
    """Return the width of a line of 7 pt text in mm."""
    font = FontProperties(family="DejaVu Sans", size=7)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72 * _INCH


def printable(name: str) -> str:
    """Return a name as it is drawn: with a space for line breaks, tabs and other characters that cannot be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(name)).split()) or "(blank)"


def shorten_labels(names: Sequence[str], width: float) -> list[str]:
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


def palette(n: int) -> list[str]:
    """Return n colors that differ as much as possible (scanpy's palettes); beyond 102 they repeat."""
    from scanpy.plotting import palettes  # takes seconds to import, and only the UMAP needs it

    colors = next((p for p in (palettes.vega_20_scanpy, palettes.zeileis_28) if n <= len(p)), palettes.godsnot_102)
    return [colors[i % len(colors)] for i in range(n)]


def at_least(low: float, high: float, span: float) -> tuple[float, float]:
    """Widen the limits of an axis to `span`, so that negligible differences look small."""
    half = max(high - low, span) / 2
    return (low + high) / 2 - half, (low + high) / 2 + half


def titles(models: Collection[str], daggers: Mapping[str, bool]) -> dict[str, str]:
    """Return the title of each model, in the order of every figure, with † if `daggers` is true for it."""
    return {model: f"{model}†" if daggers.get(model) else model for model in MODELS if model in set(models)}


def label_titles(run: RunInfo) -> dict[str, str]:
    """Return the title of each label: that of the default column, or the name of the column that the user chose."""
    chosen = {CELL_TYPE: ("Cell type", run.cell_type_column), DONOR: ("Donor", run.donor_column)}
    return {label: title if column == label else printable(column) for label, (title, column) in chosen.items()}


def label_columns(run: RunInfo) -> dict[str, str]:
    """Return the column of the user's file that each label was read from."""
    return {CELL_TYPE: printable(run.cell_type_column), DONOR: printable(run.donor_column)}


def run_note(cells: str, run: RunInfo, table: pd.DataFrame | None = None) -> list[str]:
    """Return the clauses of a caption about the run; donor groups in `table` replace those of `run`."""
    groups, skipped = dict(run.groups), {}  # skipped: reason -> models
    for model in filter(run.skipped.get, MODELS):
        skipped.setdefault(printable(run.skipped[model]).split(". ")[0].rstrip("."), []).append(model)
    if table is not None and GROUPS in table:
        groups |= dict(zip(table["Model"], table[GROUPS], strict=True))
    clusters = ", ".join(model for model in MODELS if groups.get(model) == "clusters")
    donors = "donors" if run.donor_column == DONOR else f"values of {printable(run.donor_column)}"
    return [
        f"n = {cells}" if cells else "",
        f"random sample of {run.n_cells:,} of {run.sampled_from:,} cells" if run.sampled_from and run.n_cells else "",
        "" if run.k is None else f"rank k = {run.k}",
        f"{donors} compared within clusters in training: {clusters}" if clusters else "",
        *(f"{' and '.join(models)} skipped: {reason}" for reason, models in skipped.items()),
    ]


def value_range(values: pd.Series) -> str:
    """Return the common value as text, or the smallest and largest value."""
    low, high = values.min(), values.max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


@STYLE
def save(fig: Sheet, out_dir: str | Path) -> None:
    """Write ``<out_dir>/<fig.name>.pdf``, ``.png`` and ``.csv`` (its table), each atomically.

    The same figure gives the same bytes.
    """
    stem = Path(out_dir) / fig.name
    write_table(fig.table, f"{stem}.csv")
    for ending, metadata in {"pdf": {"CreationDate": None}, "png": {}}.items():  # a date would change the bytes
        with atomic(f"{stem}.{ending}") as path:
            fig.savefig(path, format=ending, metadata=metadata)
    log.info("wrote %s as pdf, png and csv (%d rows)", stem, len(fig.table))
