"""What does each figure show? One function a figure: tables in, a Figure out.

The table of what a figure draws comes from the function of the same name in `drawn`; `save` writes it beside the pdf
and the png. Nothing in a caption is typed by hand: it comes from the table, or from the results through a parameter.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aenmf_lib import drawn, page, results, words
from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.page import DOUBLE, EDGE, LINE, SINGLE

log = logging.getLogger(__name__)

NAMES = ("clustering", "resolution", "classification", "classes", "umap", "programs", "training")
RASTER = 10_000  # more marks than this are drawn as pixels, also in the pdf
CUT = 3  # z-scores beyond have the last colour


@page.STYLE
def umap(
    coords: AnnData,
    *,
    k: int | None = None,
    used_cell_type: Mapping[str, bool] | None = None,
    groups: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the UMAP of each embedding, by cell type and by donor.

    Parameters
    ----------
    coords : n_cells rows
        ``umap.h5ad``: obs ``cell_type`` and ``donor_id``, obsm ``X_umap_<Model>`` (n_cells, 2).
    k
        Rank of the models, for the caption.
    used_cell_type
        Was cell_type used in training, a value a model (``results.Embeddings.used_cell_type``): marks those with †.
    groups
        Within what donors were compared, a value a model (``results.Embeddings.groups``): clusters are told of.

    Returns
    -------
    Figure, 183 mm wide: a column a model, a row a label; a label has one colour in all panels.

    Raises
    ------
    ValueError
        From `drawn.umap`.
    """
    points = drawn.umap(coords)
    models = [model for model in results.MODELS if f"{model}_x" in points]
    used = words.used(models, used_cell_type)
    gap, left = 3, EDGE + LINE + 1
    side, top = (DOUBLE - EDGE - left - 3 * gap) / 4, EDGE + LINE + 1
    keys = {}
    for label in drawn.LABELS:
        names = points[label].cat.categories
        keys[label] = page.Key(names, page.palette(len(names)), ["o"] * len(names), DOUBLE - 2 * EDGE)
    sample = f", of which {len(points):,} drawn at random (seed {drawn.SEED}) are shown"
    note = [
        f"n = {coords.n_obs:,} cells" + (sample if len(points) < coords.n_obs else ""),
        words.rank(k),
        words.grouped(groups),
        "UMAP 1 to the right, UMAP 2 up, no unit; distances compare within a column only",
        "colours repeat" if any(len(set(key.colours)) < len(key.names) for key in keys.values()) else "",
    ]
    below = top + 2 * (side + gap)
    fig = page.sheet(DOUBLE, below + sum(key.height + 2 * LINE for key in keys.values()), note, used)
    for row, (label, key) in enumerate(keys.items()):
        colours, y = np.array(key.colours)[points[label].cat.codes], top + row * (side + gap)
        for column, model in enumerate(models):
            x = left + column * (side + gap)
            ax = page.axes(fig, x, y, side, side, f"{label} {model}")
            size = float(np.clip(12_000 / len(points), 0.25, 8))
            raster = len(points) > RASTER
            ax.scatter(points[f"{model}_x"], points[f"{model}_y"], s=size, c=colours, lw=0, rasterized=raster)
            ax.set_aspect("equal", adjustable="datalim")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if row == 0:
                page.text(fig, x + side / 2, EDGE, words.dagger(model, used), ha="center")
        name = words.LABELS[label][0]
        page.text(fig, EDGE, y + side / 2, name, rotation=90, va="center")
        page.text(fig, EDGE, below, f"{name} ({len(key.names)})", weight="bold")
        key.draw(fig, EDGE, below + LINE + 0.5)
        below += key.height + 2 * LINE
    return fig


@page.STYLE
def programs(
    table: pd.DataFrame,
    *,
    used_cell_type: Mapping[str, bool] | None = None,
    groups: Mapping[str, str] | None = None,
) -> Figure:
    """Draw which cell types use which programs.

    Parameters
    ----------
    table
        From ``programs.usage_by_type``: ``Model, program, cell_type, mean_usage, n_cells``.
    used_cell_type
        Was cell_type used in training, a value a model: marks those with †.
    groups
        Within what donors were compared, a value a model (``results.Embeddings.groups``): clusters are told of.

    Returns
    -------
    Figure, 183 mm wide: a panel a model, a row a cell type, a column a program; programs stand in the order of the type
    they peak in. Their numbers are shown where there is room for all, and are in the csv.

    Raises
    ------
    ValueError
        From `drawn.programs`.
    """
    points = drawn.programs(table)
    models, ranks = words.models(points), points.groupby("Model")["program"].nunique()
    used = words.used(models, used_cell_type)
    cells = points.drop_duplicates(CELL_TYPE).set_index(CELL_TYPE)["n_cells"].sort_index()
    names, counts = page.short(cells.index, 55), [f"{n:,}" for n in cells]
    left = EDGE + 1.5 + max(map(page.breadth, names))
    right = EDGE + 1.5 + max(map(page.breadth, [*counts, "cells"]))
    gap, high = 3, len(cells) * LINE

    def width(across: int) -> float:
        return (DOUBLE - left - right - (across - 1) * gap) / across

    # Panels in one row, or in two where that makes room for the programs' numbers and stays on a page.
    needed = ranks.max() * LINE
    layouts = [len(models)] + ([-(-len(models) // 2)] if high < 80 else [])
    across = next((n for n in layouts if width(n) >= needed), len(models))
    numbered, wide = width(across) >= needed, min(width(across), max(2 * needed, 32))
    foot = (4.5 if numbered else 0) + LINE
    top, pitch = EDGE + LINE + 1, LINE + 3 + high + foot
    scale = top + -(-len(models) // across) * pitch - LINE
    note = [
        f"n = {cells.sum():,} cells",
        f"rank k = {words.span(ranks)}",
        words.grouped(groups),
        f"colour: mean usage of a program by the cells of a type, as z-score over the types, cut at ±{CUT}",
        "programs in the order of the type they peak in",
    ]
    fig = page.sheet(DOUBLE, scale + 7, note, used)
    for i, model in enumerate(models):
        row, column = divmod(i, across)
        x, y, of = left + column * (wide + gap), top + row * pitch, points[points["Model"] == model]
        ax = page.axes(fig, x, y, wide, high, model)
        grid = of.pivot_table(index=CELL_TYPE, columns="position", values="z_score").to_numpy()  # (n_types, k)
        mesh = ax.pcolormesh(grid, cmap="RdBu_r", vmin=-CUT, vmax=CUT, rasterized=len(points) > RASTER)
        ax.set_ylim(len(cells), 0)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_yticks(np.arange(len(cells)) + 0.5, names if column == 0 else [""] * len(cells))
        order = of.drop_duplicates("position").sort_values("position")["program"] if numbered else []
        ax.set_xticks(np.arange(len(order)) + 0.5, order, rotation=90)
        page.text(fig, x, y - LINE - 1, words.dagger(model, used))
        page.text(fig, x + wide / 2, y + high + foot - LINE + 1, f"{grid.shape[1]} programs", ha="center")
        if model == models[-1] or column == across - 1:
            page.column(fig, x + wide + right - EDGE, y, ["cells", *counts])
    ends = "both" if points["z_score"].abs().max() > CUT else "neither"
    bar = page.axes(fig, left, scale + 1, 30, 2, "scale")
    fig.colorbar(mesh, cax=bar, orientation="horizontal", extend=ends, ticks=[-CUT, 0, CUT])
    page.text(fig, left + 34, scale + 2, "mean usage, z-score over cell types", va="center")
    return fig


@page.STYLE
def training(
    history: pd.DataFrame,
    *,
    k: int | None = None,
    n_cells: int | None = None,
    groups: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the loss of each model against the iteration.

    Parameters
    ----------
    history
        From ``results.history``: ``Model, iteration, loss, relative_loss``. A model with one row (of Base NMF only the
        end is known) is a marker.
    k, n_cells
        Rank of the models and number of cells, for the caption.
    groups
        Within what donors were compared, a value a model (``results.Embeddings.groups``): clusters are told of.

    Returns
    -------
    Figure, 89 mm wide: a line a model, named at its end with its last value.

    Raises
    ------
    ValueError
        From `drawn.training`.
    """
    lines = {str(model): line for model, line in drawn.training(history).groupby("Model", sort=False)}
    ends = {model: (line["iteration"].iloc[-1], line["relative_loss"].iloc[-1]) for model, line in lines.items()}
    names = {model: f"{model} {loss:.3f}" for model, (_, loss) in ends.items()}
    note = [
        "" if n_cells is None else f"n = {n_cells:,} cells",
        words.rank(k),
        words.grouped(groups),
        "relative loss: what was minimised, penalties included, over the mean squared norm of a cell",
        "numbers: last values",
        "marker: only the end is known" if min(map(len, lines.values())) == 1 else "",
    ]
    left, top, high, lead = EDGE + 12, EDGE + 1, 45, 6
    wide = SINGLE - left - lead - max(map(page.breadth, names.values())) - EDGE
    fig = page.sheet(SINGLE, top + high + 8, note)
    ax = page.axes(fig, left, top, wide, high, "training")
    for model, line in lines.items():
        marker = "o" if len(line) == 1 else None
        ax.plot(
            line["iteration"], line["relative_loss"], color=words.COLOURS[model], marker=marker, ms=3.5, label=model
        )
    ax.set(xlabel="iteration", ylabel="relative loss")
    _few_ticks(ax, 4, 7)
    low, upp = ax.get_ylim()
    ax.set(xlim=ax.get_xlim(), ylim=(low, upp))
    places = page.apart([(ends[model][1] - low) / (upp - low) * high for model in lines], LINE, 0, high)
    look = {"arrowstyle": "-", "lw": 0.6, "ls": ":", "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
    for model, place in zip(lines, places, strict=True):
        thread = {**look, "color": words.COLOURS[model]}
        at = (1 + lead / wide, place / high)
        ax.annotate(names[model], ends[model], at, textcoords="axes fraction", va="center", arrowprops=thread, zorder=1)
    return fig


@page.STYLE
def loss_curve(loss_history: Sequence[float]) -> Figure:
    """Draw the loss of one fit against the iteration, small, for the notebook that trains.

    Parameters
    ----------
    loss_history
        The model's ``loss_history_``: the trained loss, a value an iteration.

    Returns
    -------
    Figure, 89 mm wide.

    Raises
    ------
    ValueError
        The history is empty, not a list of numbers, or holds NaN or infinite values.
    """
    loss = np.asarray(loss_history, dtype=float)
    if loss.ndim != 1 or not len(loss) or not np.isfinite(loss).all():
        raise ValueError(
            f"loss_history has shape {loss.shape} and {(~np.isfinite(loss)).sum()} values that are NaN or infinite: "
            "expected one finite number an iteration."
        )
    fig = page.sheet(SINGLE, EDGE + 38, [f"{words.count(len(loss), 'value')}, the last {loss[-1]:.6g}"])
    ax = page.axes(fig, EDGE + 15, EDGE, SINGLE - 2 * EDGE - 17, 30, "loss")
    ax.plot(np.arange(len(loss)), loss, color="0.2", marker="o" if len(loss) == 1 else None, ms=3)
    ax.set(xlabel="iteration", ylabel="loss")
    _few_ticks(ax, 5, 5)
    if len(loss) == 1:
        ax.set_xticks([0], ["end"])  # scikit-learn tells its last value only
    return fig


@page.STYLE
def donors(table: pd.DataFrame, *, min_cells: int) -> Figure:
    """Draw the cells of each donor against the threshold.

    Parameters
    ----------
    table
        A row a donor: ``donor_id, n_cells, kept``.
    min_cells
        The threshold, drawn as a line.

    Returns
    -------
    Figure, 89 mm wide: a bar a donor, largest first; light bars are donors that were dropped.

    Raises
    ------
    ValueError
        The table lacks a column or has no row.
    """
    drawn.check(table, [DONOR, "n_cells", "kept"], ["n_cells"], "table of donors")
    table = table.astype({DONOR: str, "kept": bool}).sort_values(["n_cells", DONOR], ascending=[False, True])
    names, counts, kept = page.short(table[DONOR], 35), [f"{n:,}" for n in table["n_cells"]], table["kept"]
    left, top, high = EDGE + 2 + max(map(page.breadth, names)), EDGE + LINE, len(table) * LINE
    wide = SINGLE - left - max(map(page.breadth, counts)) - 3 - EDGE
    in_all = f"{table['n_cells'][kept].sum():,} of {table['n_cells'].sum():,} cells"
    fig = page.sheet(SINGLE, top + high + 8, [f"{kept.sum()} of {len(table)} donors kept (dark), with {in_all}"])
    ax = page.axes(fig, left, top, wide, high, "donors")
    page.column(fig, SINGLE - EDGE, top, ["", *counts])
    ax.barh(np.arange(len(table)), table["n_cells"], color=np.where(kept, "0.35", "0.8"), height=0.7)
    ax.axvline(min_cells, color="0", lw=0.7, ls="--")
    ax.set(ylim=(len(table) - 0.5, -0.5), xlim=(0, max(table["n_cells"].max(), min_cells)), xlabel="cells")
    ax.set_yticks(np.arange(len(table)), names)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(3, integer=True, steps=words.STEPS))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    share = min_cells / ax.get_xlim()[1]
    align = "left" if share < 0.25 else "right" if share > 0.75 else "center"
    page.text(fig, left + share * wide, EDGE - 0.5, f"at least {min_cells:,}", ha=align)
    return fig


@page.STYLE
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
    results.write_table(table, f"{path_stem}.csv")
    # Without a date, the same figure has the same bytes tomorrow, whatever SOURCE_DATE_EPOCH says.
    for ending, metadata in {"pdf": {"CreationDate": None}, "png": {}}.items():
        with results.atomic(f"{path_stem}.{ending}") as path:
            fig.savefig(path, format=ending, metadata=metadata)
    log.info("wrote %s as pdf, png and csv (%d rows)", path_stem, len(table))


def _few_ticks(ax: Axes, x: int, y: int) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(x, integer=True, steps=words.STEPS))
    ax.yaxis.set_major_locator(MaxNLocator(y, steps=words.STEPS))
