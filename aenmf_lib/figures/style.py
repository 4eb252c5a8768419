"""What all figures share: settings, page size, colors, legends, names, captions, and saving."""

import base64
import functools
import html
import logging
import string
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.data.files import atomic
from aenmf_lib.data.tables import write_table

# The figures use these names as style.line() and so on.
from aenmf_lib.figures.labels import fix_layout
from aenmf_lib.figures.settings import _FORMATS, MM, POINTS, Settings, current, line, page_width, use
from aenmf_lib.figures.text import printable, shorten_labels, text_width, wrap  # noqa: F401
from aenmf_lib.results import MODELS, RunInfo
from aenmf_lib.results.schema import PUBLISHED

log = logging.getLogger(__name__)
logging.getLogger("fontTools").setLevel(logging.WARNING)  # it describes each font that it embeds

STEPS = [1, 2, 5, 10]  # of ticks
_TITLE_PAD = 5  # points, as in the style sheet
RASTER = 10_000  # more marks than this are drawn as pixels, also in pdf and svg
NO_RUN = RunInfo()  # nothing known about the run
_NO_DATE = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
_WORDS = {CELL_TYPE: "cell type", DONOR: "donor"}


class Sheet(Figure):
    """A Figure with a name, a caption, and the table that it draws. Notebooks display it without pyplot."""

    name: str
    table: pd.DataFrame
    caption: str
    settings: Settings

    def png(self) -> bytes:
        """Return the picture for a screen."""
        buffer = BytesIO()
        with use(self.settings):
            self.savefig(buffer, format="png", dpi=200)
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        """Return the picture and its caption for a notebook."""
        picture = base64.b64encode(self.png()).decode()
        width = round(self.get_figwidth() * 130)  # CSS pixels: larger than in print, to be read on a screen
        return (
            f'<img style="width:{width}px;max-width:100%" alt="{html.escape(self.name)}" '
            f'src="data:image/png;base64,{picture}"/>'
            f'<p class="tex2jax_ignore mathjax_ignore" style="max-width:60em">{html.escape(self.caption)}</p>'
        )


def figure(draw: Callable[..., Sheet]) -> Callable[..., Sheet]:
    """Decorate a function that draws: add `settings`, name the figure, and lay it out once for all its files."""

    @functools.wraps(draw)
    def drawn(*args, settings: Settings | None = None, **kwargs) -> Sheet:
        with use(settings):
            fig = draw(*args, **kwargs)
            fig.name = draw.__name__
            fig.settings = current()
            fix_layout(fig)
            fig.draw_without_rendering()
            return fig

    return drawn


def new_figure(
    table: pd.DataFrame,
    columns: str,
    height: float,
    caption: Iterable[str],
    names: Mapping[str, str] | None = None,
    run: RunInfo = NO_RUN,
) -> Sheet:
    """Return an empty figure.

    Parameters
    ----------
    table : what the figure draws
    columns : ``single`` or ``double``, the width
    height : in mm
    caption : sentences without the last period; empty ones are left out
    names : shown names of the models, to explain † in the caption
    run : for this explanation
    """
    fig = Sheet(figsize=(page_width(columns) / MM, height / MM), layout="constrained")
    pads = current().font_size / POINTS / 4  # inches
    fig.get_layout_engine().set(w_pad=pads, h_pad=pads)
    fig.caption = write_caption(caption, names, run)
    fig.table = table
    return fig


def write_caption(sentences: Iterable[str], names: Mapping[str, str] | None, run: RunInfo) -> str:
    """Return sentences without their last period as a caption. Explain † if it is among the shown names."""
    dagger = dagger_note(run) if "†" in str(names) else ""
    return " ".join(f"{sentence.rstrip('.')}." for sentence in [*sentences, dagger] if sentence)


def empty_figure(table: pd.DataFrame, reason: str, caption: Iterable[str] = ()) -> Sheet:
    """Return a figure that only says why there is nothing to draw."""
    width, text = page_width("single"), f"Not drawn: {reason}"
    lines = wrap(text, width - 2 * line())
    fig = new_figure(table, "single", (len(lines) + 2) * line(), [text, *caption])
    fig.text(line() / width, 0.5, "\n".join(lines), va="center")
    return fig


def panels(fig: FigureBase, n: int, n_columns: int) -> np.ndarray:
    """Return n panels in rows of `n_columns`."""
    axes = fig.subplots(-(-n // n_columns), n_columns, squeeze=False).ravel()
    for ax in axes[n:]:
        ax.remove()
    return axes[:n]


def legend(fig: FigureBase, colors: Mapping[str, str], where: str = "upper", **options) -> None:
    """Add a legend outside the panels: names with a dot of their color, in as many columns as fit."""
    handles = [Line2D([], [], label=name, ls="", color=color, marker="o") for name, color in colors.items()]
    columns = legend_columns(colors, fig.bbox.width / fig.figure.dpi * MM)
    fig.legend(handles=handles, loc=f"outside {where} left", ncols=columns, **options)


def legend_columns(names: Collection[str], width: float) -> int:
    """Return the number of legend columns that fit into `width` mm."""
    return max(int((width - line()) // (max(map(text_width, names)) + 2 * line())), 1)


def letters(axes: Iterable[Axes]) -> None:
    """Write a, b, c … in bold at the upper left of panels, to the left of their titles."""
    for letter, ax in zip(string.ascii_lowercase, axes, strict=False):
        shift = (-1.6 * current().font_size, _TITLE_PAD)
        ax.annotate(letter, (0, 1), shift, "axes fraction", textcoords="offset points", weight="bold", va="baseline")


def mark_cut_axis(ax: Axes, which: str = "x") -> None:
    """Mark an axis that does not start at 0 with two strokes, if 0 is not within its limits."""
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    if low <= 0 <= high:
        return
    for points in np.array([2.0, 3.2]) * current().font_size / 7:  # from the corner
        xy = (points, 0) if which == "x" else (0, points)
        mark = [(-0.4, -1), (0.4, 1)] if which == "x" else [(-1, -0.4), (1, 0.4)]
        offset = offset_copy(ax.transAxes, ax.figure, *xy, units="points")
        ax.plot([0], [0], marker=mark, ms=4, mew=0.5, color="0", ls="", clip_on=False, transform=offset, zorder=5)


def palette(kind: str, names: Collection[object]) -> list[str]:
    """Return one color per name. `kind` is ``cell_type``, ``donor_id`` or another column. Beyond 256 colors repeat."""
    colors = current().palette(kind)
    chosen = current().label_colors.get(kind, {})
    return [chosen.get(str(name), colors[i % len(colors)]) for i, name in enumerate(names)]


def luminance(color: Sequence[float]) -> float:
    """Return how light a color (red, green, blue, …) appears, from 0 to 1."""
    return float(np.dot(color[:3], (0.3, 0.6, 0.1)))


def at_least(low: float, high: float, span: float) -> tuple[float, float]:
    """Widen the limits of an axis to `span`, so that negligible differences look small."""
    half = max(high - low, span) / 2
    return (low + high) / 2 - half, (low + high) / 2 + half


def in_order(models: Iterable[str]) -> list[str]:
    """Return the models in the order of every figure: ours, then others in the order in which they appear."""
    found = dict.fromkeys(map(str, models))
    return [*filter(found.__contains__, MODELS), *(model for model in found if model not in MODELS)]


def color_of(model: str) -> str:
    """Return the color of a model: that of the settings, or one of a name that is not in the settings."""
    known = current().models
    if "color" in known.get(model, {}):
        return known[model]["color"]
    colors = current().other_embeddings
    return colors[sum(map(ord, model)) % len(colors)]


def name_of(model: str) -> str:
    """Return the shown name of a model."""
    return printable(current().models.get(model, {}).get("name", model))


def model_names(models: Iterable[str], run: RunInfo = NO_RUN) -> dict[str, str]:
    """Return the shown name of each model, in the order of every figure, with † if training used the cell types."""
    return {model: name_of(model) + "†" * bool(run.used_cell_type.get(model)) for model in in_order(models)}


def label_titles(run: RunInfo) -> dict[str, str]:
    """Return the title of each label: that of the default column, or the name of the column that the user chose."""
    chosen = {CELL_TYPE: ("Cell type", run.cell_type_column), DONOR: ("Donor", run.donor_column)}
    return {label: title if column == label else printable(column) for label, (title, column) in chosen.items()}


def label_columns(run: RunInfo) -> dict[str, str]:
    """Return the column of the user's file that each label was read from."""
    return {CELL_TYPE: printable(run.cell_type_column), DONOR: printable(run.donor_column)}


def label_name(label: str, run: RunInfo) -> str:
    """Return the name of a label within a sentence."""
    column = label_columns(run)[label]
    return _WORDS[label] if column == label else column


def label_plural(label: str, run: RunInfo) -> str:
    """Return the name of the values of a label within a sentence."""
    column = label_columns(run)[label]
    return f"{_WORDS[label]}s" if column == label else f"values of {column}"


def dagger_note(run: RunInfo) -> str:
    """Return the sentence of a caption that explains †."""
    column = run.cell_type_column
    labels = "cell types" if column == CELL_TYPE else f"the labels in {printable(column)}"
    return f"† marks models that were trained with {labels}"


def cells_of(run: RunInfo) -> str:
    """Return the number of cells of a run for `run_note`; empty if it is unknown."""
    return f"{run.n_cells:,} cells" if run.n_cells else ""


def run_note(cells: str, run: RunInfo) -> list[str]:
    """Return the sentences of a caption about the run."""
    skipped = {}  # reason -> models
    for model in filter(run.skipped.get, MODELS):
        skipped.setdefault(printable(run.skipped[model]).split(". ")[0].rstrip("."), []).append(name_of(model))
    known = run.used_cell_type
    missing = [name_of(model) for model in PUBLISHED if known and model not in known and not run.skipped.get(model)]
    facts = [
        f"n = {cells}" if cells else "",
        f"a random sample of {run.n_cells:,} of {run.sampled_from:,} cells" if run.sampled_from and run.n_cells else "",
        "" if run.k is None else f"rank k = {run.k}",
    ]
    found = ", ".join(filter(None, facts))
    return [
        found if cells else found.capitalize(),
        *(f"{join(models)} {be(models)} skipped: {reason}" for reason, models in skipped.items()),
        f"{join(missing)} {be(missing)} not part of this run" if missing else "",
    ]


def join(words: Sequence[str]) -> str:
    """Return words as in a sentence: a, b and c."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def be(words: Sequence[str]) -> str:
    """Return the verb after words as a subject: was or were."""
    return "was" if len(words) == 1 else "were"


def value_range(values: pd.Series) -> str:
    """Return the common value as text, or the smallest and largest value."""
    low, high = values.min(), values.max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def save(fig: Sheet, out_dir: str | Path) -> None:
    """Write the figure in all formats of its settings, its data as csv, and its caption as txt, each atomically.

    The files are ``<out_dir>/<fig.name>.<format>``. The same figure gives the same bytes. Pictures of this figure in
    other formats, from an earlier call, no longer match the csv and are removed.
    """
    stem = Path(out_dir) / fig.name
    write_table(fig.table, f"{stem}.csv")
    with atomic(f"{stem}.txt") as path:
        Path(path).write_text(f"{fig.caption}\n", encoding="utf-8")
    with use(fig.settings):
        for ending in fig.settings.formats:
            with atomic(f"{stem}.{ending}") as path:  # a date would change the bytes
                fig.savefig(path, format=ending, metadata=_NO_DATE.get(ending))
    for ending in {*_FORMATS}.difference(fig.settings.formats):
        Path(f"{stem}.{ending}").unlink(missing_ok=True)
    log.info("wrote %s as csv, txt, %s (%d rows)", stem, ", ".join(fig.settings.formats), len(fig.table))
