"""What does each figure show? One function a figure: tables in, a Figure out.

The table of what a figure draws comes from the function of the same name in `drawn`; `save` writes it beside the pdf
and the png. Nothing in a caption is typed by hand: it comes from the table, or from the results through a parameter.
"""

import logging
from collections.abc import Mapping

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR
from aenmf_lib.figures import layout, style, tables
from aenmf_lib.figures.layout import DOUBLE, EDGE, LINE, SINGLE
from aenmf_lib.results import schema

log = logging.getLogger(__name__)

NAMES = ("clustering", "resolution", "classification", "classes", "umap", "programs", "training")
RASTER = 10_000  # more marks than this are drawn as pixels, also in the pdf
CUT = 3  # z-scores beyond have the last color


@layout.STYLE
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
    Figure, 183 mm wide: a column a model, a row a label; a label has one color in all panels.

    Raises
    ------
    ValueError
        From `drawn.umap`.
    """
    points = tables.umap(coords)
    models = [model for model in schema.MODELS if f"{model}_x" in points]
    used = style.used(models, used_cell_type)
    gap, left = 3, EDGE + LINE + 1
    side, top = (DOUBLE - EDGE - left - 3 * gap) / 4, EDGE + LINE + 1
    keys = {}
    for label in tables.LABELS:
        names = points[label].cat.categories
        keys[label] = layout.Legend(names, layout.palette(len(names)), ["o"] * len(names), DOUBLE - 2 * EDGE)
    sample = f", of which {len(points):,} drawn at random (seed {tables.SEED}) are shown"
    note = [
        f"n = {coords.n_obs:,} cells" + (sample if len(points) < coords.n_obs else ""),
        style.rank(k),
        style.cluster_note(groups),
        "UMAP 1 to the right, UMAP 2 up, no unit; distances compare within a column only",
        "colors repeat" if any(len(set(key.colors)) < len(key.names) for key in keys.values()) else "",
    ]
    below = top + 2 * (side + gap)
    fig = layout.new_figure(DOUBLE, below + sum(key.height + 2 * LINE for key in keys.values()), note, used)
    for row, (label, key) in enumerate(keys.items()):
        colors, y = np.array(key.colors)[points[label].cat.codes], top + row * (side + gap)
        for column, model in enumerate(models):
            x = left + column * (side + gap)
            ax = layout.axes(fig, x, y, side, side, f"{label} {model}")
            size = float(np.clip(12_000 / len(points), 0.25, 8))
            raster = len(points) > RASTER
            ax.scatter(points[f"{model}_x"], points[f"{model}_y"], s=size, c=colors, lw=0, rasterized=raster)
            ax.set_aspect("equal", adjustable="datalim")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if row == 0:
                layout.text(fig, x + side / 2, EDGE, style.mark_label_aware(model, used), ha="center")
        name = style.LABELS[label][0]
        layout.text(fig, EDGE, y + side / 2, name, rotation=90, va="center")
        layout.text(fig, EDGE, below, f"{name} ({len(key.names)})", weight="bold")
        key.draw(fig, EDGE, below + LINE + 0.5)
        below += key.height + 2 * LINE
    return fig


@layout.STYLE
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
    points = tables.programs(table)
    models, ranks = style.models(points), points.groupby("Model")["program"].nunique()
    used = style.used(models, used_cell_type)
    cells = points.drop_duplicates(CELL_TYPE).set_index(CELL_TYPE)["n_cells"].sort_index()
    names, counts = layout.shorten_labels(cells.index, 55), [f"{n:,}" for n in cells]
    left = EDGE + 1.5 + max(map(layout.breadth, names))
    right = EDGE + 1.5 + max(map(layout.breadth, [*counts, "cells"]))
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
        f"rank k = {style.format_range(ranks)}",
        style.cluster_note(groups),
        f"color: mean usage of a program by the cells of a type, as z-score over the types, cut at ±{CUT}",
        "programs in the order of the type they peak in",
    ]
    fig = layout.new_figure(DOUBLE, scale + 7, note, used)
    for i, model in enumerate(models):
        row, column = divmod(i, across)
        x, y, of = left + column * (wide + gap), top + row * pitch, points[points["Model"] == model]
        ax = layout.axes(fig, x, y, wide, high, model)
        grid = of.pivot_table(index=CELL_TYPE, columns="position", values="z_score").to_numpy()  # (n_types, k)
        mesh = ax.pcolormesh(grid, cmap="RdBu_r", vmin=-CUT, vmax=CUT, rasterized=len(points) > RASTER)
        ax.set_ylim(len(cells), 0)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_yticks(np.arange(len(cells)) + 0.5, names if column == 0 else [""] * len(cells))
        order = of.drop_duplicates("position").sort_values("position")["program"] if numbered else []
        ax.set_xticks(np.arange(len(order)) + 0.5, order, rotation=90)
        layout.text(fig, x, y - LINE - 1, style.mark_label_aware(model, used))
        layout.text(fig, x + wide / 2, y + high + foot - LINE + 1, f"{grid.shape[1]} programs", ha="center")
        if model == models[-1] or column == across - 1:
            layout.column(fig, x + wide + right - EDGE, y, ["cells", *counts])
    ends = "both" if points["z_score"].abs().max() > CUT else "neither"
    bar = layout.axes(fig, left, scale + 1, 30, 2, "scale")
    fig.colorbar(mesh, cax=bar, orientation="horizontal", extend=ends, ticks=[-CUT, 0, CUT])
    layout.text(fig, left + 34, scale + 2, "mean usage, z-score over cell types", va="center")
    return fig


@layout.STYLE
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
    tables.check_table(table, [DONOR, "n_cells", "kept"], ["n_cells"], "table of donors")
    table = table.astype({DONOR: str, "kept": bool}).sort_values(["n_cells", DONOR], ascending=[False, True])
    names, counts, kept = layout.shorten_labels(table[DONOR], 35), [f"{n:,}" for n in table["n_cells"]], table["kept"]
    left, top, high = EDGE + 2 + max(map(layout.breadth, names)), EDGE + LINE, len(table) * LINE
    wide = SINGLE - left - max(map(layout.breadth, counts)) - 3 - EDGE
    in_all = f"{table['n_cells'][kept].sum():,} of {table['n_cells'].sum():,} cells"
    fig = layout.new_figure(SINGLE, top + high + 8, [f"{kept.sum()} of {len(table)} donors kept (dark), with {in_all}"])
    ax = layout.axes(fig, left, top, wide, high, "donors")
    layout.column(fig, SINGLE - EDGE, top, ["", *counts])
    ax.barh(np.arange(len(table)), table["n_cells"], color=np.where(kept, "0.35", "0.8"), height=0.7)
    ax.axvline(min_cells, color="0", lw=0.7, ls="--")
    ax.set(ylim=(len(table) - 0.5, -0.5), xlim=(0, max(table["n_cells"].max(), min_cells)), xlabel="cells")
    ax.set_yticks(np.arange(len(table)), names)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(3, integer=True, steps=style.STEPS))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    share = min_cells / ax.get_xlim()[1]
    align = "left" if share < 0.25 else "right" if share > 0.75 else "center"
    layout.text(fig, left + share * wide, EDGE - 0.5, f"at least {min_cells:,}", ha=align)
    return fig
