"""The figure of the embeddings: UMAPs, colored by cell type, donor and other columns of obs."""

import difflib
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import SubFigure

from aenmf_lib.data import CELL_TYPE, DONOR, LABELS
from aenmf_lib.data.frames import read_frame
from aenmf_lib.data.labels import as_text, is_missing
from aenmf_lib.data.reading import open_cells
from aenmf_lib.figures import style
from aenmf_lib.figures.cohort import NO_TYPE, unused_name
from aenmf_lib.figures.labels import wrap_name
from aenmf_lib.figures.map_labels import break_names, label_map
from aenmf_lib.figures.style import NO_RUN
from aenmf_lib.figures.tables import check_run, check_table
from aenmf_lib.results import RunInfo

MAX_POINTS = 50_000  # UMAPs of more cells show a random sample of this size
_SEED = 0  # of this sample, and of the order in which cells are drawn
_MISSING = "#cccccc"  # color of cells without a value
_PREFIX = "X_umap_"  # of the keys of obsm
_PANEL = 7  # smallest width of a panel, in lines of text
_CLIPPED = (0.5, 99.5)  # percentiles of a column of numbers between which the colors change


def add_columns(coords: AnnData, path: str | Path, columns: Sequence[str]) -> AnnData:
    """Return the UMAP coordinates with more columns of obs, read from a results file of the same cells.

    Raises ValueError if the file has no such column, or its cells are others.
    """
    wanted = [name for name in dict.fromkeys(columns) if name not in coords.obs]
    if not wanted:
        return coords
    with open_cells(path) as file:
        obs = read_frame(file, "obs", str(path))
    for name in wanted:
        if name not in obs:
            close = difflib.get_close_matches(name, map(str, obs), 1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            found = f"{path} has no obs column {name!r}, by which the cells are to be colored"
            raise ValueError(f"{found}. {hint}Choose from: {', '.join(map(str, obs))} (COLOR_BY=…).")
    if not obs.index.equals(coords.obs_names):
        found = f"{path} contains {len(obs):,} cells, which are not the {coords.n_obs:,} cells of umap.h5ad"
        raise ValueError(f"{found}, or in another order. Run 06_benchmarks again with this results file.")
    coords = coords.copy()
    coords.obs = coords.obs.join(obs[wanted])
    return coords


@dataclass
class _Coloring:
    """The colors of the drawn cells by one column of obs."""

    column: str
    title: str
    cells: pd.Categorical | np.ndarray  # of each drawn cell: a label, or a number
    colors: np.ndarray  # of each drawn cell
    names: dict[str, str]  # label -> color; empty for numbers
    missing: str = ""  # the name for cells without a value, if there are any
    scale: ScalarMappable | None = None  # of numbers


class _Layout:
    """How the panels of each column of obs are arranged; lengths in mm."""

    def __init__(self, names: Sequence[str]) -> None:
        """Choose the arrangement of one panel per model."""
        width, line = style.page_width("double"), style.line()
        self.rows = -(-len(names) // max(1, int(width / (_PANEL * line))))
        self.columns = -(-len(names) // self.rows)
        self.panel = min((width - 2 * line) / self.columns - 0.7 * line, 17 * line)  # width and height
        self.titles = ["\n".join(wrap_name(name, self.panel)) for name in names]

    def height(self, titles: bool) -> float:
        """Return the height of the panels of one column."""
        lines = max(title.count("\n") + 2 for title in self.titles) if titles else 1
        return self.rows * (self.panel + lines * style.line())


@style.figure
def fig2_embeddings(coords: AnnData, color_by: Sequence[str] = (), run: RunInfo = NO_RUN) -> style.Sheet:
    """Draw the UMAP of each embedding, by cell type, by donor and by other columns of obs, 183 mm wide.

    One row of panels per column of obs, one panel per embedding. A label has one color in all panels. The names of the
    types are written on the maps, or numbers and a key if there is no space. Table: the cells in the order drawn,
    ``cell, cell_type, donor_id``, the columns in `color_by`, ``<Model>_x, <Model>_y``.

    Parameters
    ----------
    coords : ``umap.h5ad``, with obs ``cell_type``, ``donor_id`` and the columns in `color_by` (see `add_columns`), and
        obsm ``X_umap_<Model>`` (n_cells, 2)
    color_by : further columns of obs; numbers have a scale, all others have one color per value
    """
    maps = _check_maps(coords, run)
    order = np.random.default_rng(_SEED).permutation(coords.n_obs)[:MAX_POINTS]  # no type covers the others
    titles = style.label_titles(run)
    colorings = [
        _color(coords.obs, name, titles.get(name, style.printable(name)), order)
        for name in dict.fromkeys([*LABELS, *color_by])
    ]
    places = {f"{model}_{axis}": xy[order, i] for model, xy in maps.items() for i, axis in enumerate("xy")}
    labels = {coloring.column: coloring.cells for coloring in colorings}
    if both := [name for name in places if name in labels]:
        raise ValueError(f"color_by contains {both[0]!r}, which is a column of the coordinates. Rename it in obs.")
    table, names = pd.DataFrame({"cell": coords.obs_names[order]} | labels | places), style.model_names(maps, run)
    caption = _write_caption(coords.n_obs, len(table), [coloring.title for coloring in colorings], names, run)
    fig = _draw(table, colorings, names, caption, run, numbered=False)
    return fig or _draw(table, colorings, names, caption, run, numbered=True)


def _write_caption(n_cells: int, n_drawn: int, titles: list[str], names: Collection[str], run: RunInfo) -> list[str]:
    """Return the sentences of the caption that do not depend on what fits into the figure."""
    sample = f", of which {n_drawn:,} drawn at random (seed {_SEED}) are shown" * (n_drawn < n_cells)
    shown = [title.lower() if title in ("Cell type", "Donor") else title for title in titles]
    missing = [style.name_of(model) for model in run.used_cell_type if model not in names]
    return [
        "UMAP of each embedding",
        *(f"{letter}, Cells colored by {title}" for letter, title in zip(string.ascii_lowercase, shown, strict=False)),
        *style.run_note(f"{n_cells:,} cells{sample}", run),
        f"No UMAP was computed for {style.join(missing)}" if missing else "",
        "The axes are UMAP 1 (horizontal) and UMAP 2 (vertical), without unit; distances in different embeddings "
        "cannot be compared",
    ]


def _check_maps(coords: AnnData, run: RunInfo) -> dict[str, np.ndarray]:
    """Return the coordinates of each embedding (n_cells, 2), in the order of all figures."""
    name, again = "umap.h5ad", "Run 06_benchmarks again."
    check_table(coords.obs, name, LABELS, [])
    keys = {key.removeprefix(_PREFIX): key for key in coords.obsm if key.startswith(_PREFIX)}
    if not keys:
        raise ValueError(f"{name} contains obsm {list(coords.obsm)}. Expected '{_PREFIX}<Model>', such as "
                         f"'{_PREFIX}AE_NMF'. {again}")  # fmt: skip
    check_run(pd.DataFrame({"Model": list(keys)}), name, run)
    if run.n_cells and coords.n_obs != run.n_cells:
        raise ValueError(f"{name} contains {coords.n_obs:,} cells, but this run has {run.n_cells:,}. {again}")
    if (empty := is_missing(coords.obs[DONOR])).any():
        found = f"{empty.sum():,} of {coords.n_obs:,} cells (first: {coords.obs_names[empty][0]!r})"
        raise ValueError(f"{name}: obs[{DONOR!r}] is empty for {found}. {again}")
    maps = {model: np.asarray(coords.obsm[keys[model]]) for model in style.in_order(keys)}
    for model, xy in maps.items():
        place = f"{name}: obsm[{keys[model]!r}]"
        if xy.shape != (coords.n_obs, 2):
            raise ValueError(f"{place} has shape {xy.shape}. Expected ({coords.n_obs}, 2). {again}")
        if n := int((bad := ~np.isfinite(xy).all(axis=1)).sum()):
            cell = coords.obs_names[bad][0]
            raise ValueError(f"{place} is not finite for {n:,} of {len(xy):,} cells (first: {cell!r}). {again}")
    return maps


def _color(obs: pd.DataFrame, column: str, title: str, order: np.ndarray) -> _Coloring:
    """Return the colors of the cells in `order` by one column of obs."""
    if column not in obs:
        raise ValueError(f"color_by contains {column!r}, which is not a column of obs ({', '.join(map(str, obs))}). "
                         "Choose one of them, or add the column to obs.")  # fmt: skip
    values = obs[column]
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if is_number and column not in LABELS and values.notna().any():
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        finite = np.isfinite(numbers)
        low, high = np.percentile(numbers[finite], _CLIPPED) if finite.any() else (0, 1)
        around = 0.0 if low < high else 0.5  # of one value
        scale = ScalarMappable(Normalize(low - around, high + around), style.current().sequential)
        colors = np.where(finite[order, None], scale.to_rgba(numbers[order]), to_rgba(_MISSING))
        missing = "" if finite[order].all() else "no value"
        return _Coloring(column, title, numbers[order], colors, {}, missing, scale)
    text = as_text(values)
    found = sorted(text.dropna().unique())
    if isinstance(values.dtype, pd.CategoricalDtype):  # in the order of the categories
        found = [name for name in as_text(pd.Series(values.cat.categories)).dropna().unique() if name in set(found)]
    missing = [unused_name(NO_TYPE if column == CELL_TYPE else "no value", found)] if text.isna().any() else []
    labels = pd.Categorical(text.fillna(missing[0]) if missing else text, [*found, *missing])[order]
    palette = [*style.palette(column, found), *[_MISSING for _ in missing]]
    names = dict(zip(labels.categories, palette, strict=True))
    colors = np.array([to_rgba(color) for color in palette])[labels.codes]
    return _Coloring(column, title, labels, colors, names, missing="".join(missing))


def _draw(
    table: pd.DataFrame,
    colorings: list[_Coloring],
    names: dict[str, str],
    caption: list[str],
    run: RunInfo,
    *,
    numbered: bool,
) -> style.Sheet | None:
    """Return the figure, with the names of the types or numbers on the maps. Return None if the names do not fit."""
    layout, types = _Layout(list(names.values())), colorings[0]
    known = [name for name in types.names if name != types.missing]
    numbers = {name: str(i) for i, name in enumerate(known, 1)}
    on_map = numbers if numbered else break_names(known, layout.panel / 2)
    if on_map is None:
        return None
    keys = [_make_key(types, numbers if numbered else {}), *map(_make_key, colorings[1:])]
    keys = [key if i == 0 or _measure_key(key) < layout.panel else {} for i, key in enumerate(keys)]
    titled = [i == 0 or layout.rows > 1 for i in range(len(colorings))]
    heights = [layout.height(titles) + (_measure_key(key) or 3 * style.line() * (coloring.scale is not None))
               for titles, key, coloring in zip(titled, keys, colorings, strict=True)]  # fmt: skip
    fig = style.new_figure(table, "double", sum(heights), caption, names, run)
    parts, rows = np.ravel(fig.subfigures(len(heights), 1, height_ratios=heights)), []
    for part, coloring, key, titles in zip(parts, colorings, keys, titled, strict=True):
        axes = _prepare_panels(part, coloring, table, list(names), layout)
        for ax, title in zip(axes, layout.titles if titles else (), strict=False):
            ax.set_title(title)
        if key:
            style.legend(part, key, where="lower")
        elif coloring.scale:
            part.colorbar(coloring.scale, ax=axes, location="bottom", shrink=0.3, aspect=25, extend="both")
        rows.append(axes)
    style.letters(axes[0] for axes in rows)
    fig.draw_without_rendering()  # sets the sizes of the panels
    left_out = []
    for ax, model in zip(rows[0], names, strict=False):
        by_type = table.groupby(CELL_TYPE, observed=True)[[f"{model}_x", f"{model}_y"]]
        cells = {str(name): xy.to_numpy() for name, xy in by_type}
        left_out.append(label_map(ax, cells, on_map, types.names))
    if any(left_out) and not numbered:
        return None
    _draw_cells(rows, colorings, table, list(names), layout)
    fig.caption += _describe_keys(colorings, keys, on_map, max(left_out), numbered=numbered)
    return fig


def _make_key(coloring: _Coloring, numbers: dict[str, str] | None = None) -> dict[str, str]:
    """Return the entries of the legend of a column and their colors. Of the types, only those with numbers."""
    page, line = style.page_width("double"), style.line()
    columns = 6 if len(coloring.names) > 30 else 3
    width = max(page / columns - 4 * line, min((6 if columns == 6 else 12) * line, page - 6 * line))
    shown = dict(zip(coloring.names, style.shorten_labels(coloring.names, width), strict=True))
    if numbers is not None:
        shown = {name: f"{numbers.get(name, '')} {text}".strip() for name, text in shown.items()
                 if name in numbers or name == coloring.missing}  # fmt: skip
    return {text: coloring.names[name] for name, text in shown.items()}


def _measure_key(key: dict[str, str]) -> float:
    """Return the height of a legend in mm."""
    if not key:
        return 0.0
    return (-(-len(key) // style.legend_columns(key, style.page_width("double"))) + 1) * 0.97 * style.line()


def _prepare_panels(
    part: SubFigure, coloring: _Coloring, table: pd.DataFrame, models: list[str], layout: _Layout
) -> list[Axes]:
    """Return the panels of one column of obs, one per model, still without cells."""
    panels = part.subplots(layout.rows, layout.columns, squeeze=False).ravel()
    for model, ax in zip(models, panels, strict=False):
        x, y = table[f"{model}_x"], table[f"{model}_y"]
        span = 1.05 * max(np.ptp(x), np.ptp(y), 1e-9)  # a square that contains all cells
        ax.set(xlim=style.at_least(x.min(), x.max(), span), ylim=style.at_least(y.min(), y.max(), span))
        ax.set(label=f"{coloring.column} {model}", aspect="equal")
    for ax in panels:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    n = len(coloring.names) - bool(coloring.missing)
    title = f"{coloring.title} ({n:,})" if coloring.names else coloring.title
    panels[0].set_ylabel(style.shorten_labels([title], layout.panel)[0])
    return list(panels)


def _draw_cells(
    rows: list[list[Axes]], colorings: list[_Coloring], table: pd.DataFrame, models: list[str], layout: _Layout
) -> None:
    """Draw the cells in all panels. Many cells are drawn as pixels."""
    size = np.clip(12_000 / len(table), 0.25, 8) * (layout.panel / 45) ** 2
    look = {"s": size, "lw": 0, "rasterized": len(table) * len(models) * len(rows) > style.RASTER}
    for axes, coloring in zip(rows, colorings, strict=True):
        for ax, model in zip(axes, models, strict=False):
            ax.scatter(table[f"{model}_x"], table[f"{model}_y"], c=coloring.colors, **look)


def _describe_keys(
    colorings: list[_Coloring], keys: list[dict], on_map: dict[str, str], left_out: int, *, numbered: bool
) -> str:
    """Return the last sentences of the caption: the texts on the maps, and the legends that were left out."""
    what = "number (of the legend) is on or" if numbered else "name is"
    sentences = [f"Each {what} next to the densest part of its type, or joined to it by a line."]
    if left_out:
        sentences.append(f"For lack of space, up to {left_out:,} of {len(on_map):,} numbers are missing on a map.")
    for coloring, key in zip(colorings[1:], keys[1:], strict=True):
        if coloring.names and not key:
            n, colors = len(coloring.names), len(set(coloring.names.values()))
            repeat = f", in {colors:,} colors" if colors < n else ""
            sentences.append(f"{coloring.title} has {n:,} values{repeat}, too many for a legend.")
        if coloring.scale:
            low, high = _CLIPPED
            gray = "; gray cells have no value" * bool(coloring.missing)
            sentences.append(f"The color scale of {coloring.title} ends at the percentiles {low} and {high}{gray}.")
    return " ".join(["", *sentences])
