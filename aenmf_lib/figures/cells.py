"""Figures of the cells: UMAP, programs by cell type, and cells per donor."""

from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from anndata import AnnData
from matplotlib.figure import Figure

from aenmf_lib.data import CELL_TYPE, DONOR, LABELS
from aenmf_lib.figures import style
from aenmf_lib.figures.style import DOUBLE, LINE, NO_RUN, RASTER, SINGLE
from aenmf_lib.figures.tables import check_table
from aenmf_lib.results import MODELS, RunInfo

MAX_POINTS = 50_000  # a UMAP of more cells shows a random sample of this size
_SEED = 0  # of this sample, and of the order in which cells are drawn
_NO_TYPE = "no type"  # shown in the UMAP for cells without a type, in brackets if a type has this name
_CUT = 3  # z-scores beyond ±3 are drawn in the color of ±3


@style.figure
def umap(coords: AnnData, run: RunInfo = NO_RUN) -> Figure:
    """Draw the UMAP of each embedding, by cell type and by donor, 183 mm wide.

    One column per model, one row per label; a label has one color in all panels. Table: the cells in the order drawn,
    ``cell, cell_type, donor_id, <Model>_x, <Model>_y``.

    Parameters
    ----------
    coords : ``umap.h5ad``, with obs ``cell_type`` and ``donor_id``, obsm ``X_umap_<Model>`` (n_cells, 2)
    """
    points = _umap_table(coords)
    titles = style.titles([model for model in MODELS if f"{model}_x" in points], run.used_cell_type)
    names = {label: style.shorten_labels(points[label].cat.categories, DOUBLE / 3 - 8) for label in LABELS}
    sample = f", of which {len(points):,} drawn at random (seed {_SEED}) are shown" * (len(points) < coords.n_obs)
    note = [
        *style.run_note(f"{coords.n_obs:,} cells{sample}", run),
        "horizontal: UMAP 1, vertical: UMAP 2, no unit; distances are comparable within a column only",
        "colors repeat" if max(map(len, names.values())) > 102 else "",
    ]
    heights = [54 + 3.3 * -(-len(shown) // style.legend_columns(shown, DOUBLE)) for shown in names.values()]
    fig = style.new_figure(points, DOUBLE, sum(heights), note, titles, run)
    parts = fig.subfigures(2, 1, height_ratios=heights)
    for (label, title), part in zip(style.label_titles(run).items(), parts, strict=True):
        palette = style.palette(len(names[label]))
        color = np.array(palette)[points[label].cat.codes]
        axes = part.subplots(1, len(MODELS))
        for (model, name), ax in zip(titles.items(), axes, strict=False):
            x, y = points[f"{model}_x"], points[f"{model}_y"]
            size = np.clip(12_000 / len(points), 0.25, 8)
            ax.scatter(x, y, s=size, c=color, lw=0, rasterized=len(points) > RASTER)
            span = 1.05 * max(np.ptp(x), np.ptp(y), 1e-9)  # a square that contains all cells
            ax.set(xlim=style.at_least(x.min(), x.max(), span), ylim=style.at_least(y.min(), y.max(), span))
            ax.set(label=f"{label} {model}", title=name, aspect="equal")
        for ax in axes:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        colors = dict(zip(names[label], palette, strict=True))
        title = f"{style.shorten_labels([title], 100)[0]} ({len(colors)})"
        style.legend(part, colors, where="lower", title=title, alignment="left")
    return fig


@style.figure
def programs(usage: pd.DataFrame, run: RunInfo = NO_RUN) -> Figure:
    """Draw which cell types use which programs, 183 mm wide.

    One panel per model, one row per cell type, one column per program, in the order of the type in which a program
    peaks. Program numbers are shown if there is room. Table: adds ``z_score`` (of mean_usage over the types, ddof 0)
    and ``position`` (column of the heatmap, from 0). A program that all types use equally has z-scores 0 and is last.

    Parameters
    ----------
    usage : from ``programs.usage_by_type``: ``Model, program, cell_type, mean_usage, n_cells``
    """
    points = _program_table(usage)
    titles, ranks = style.titles(points["Model"], run.used_cell_type), points.groupby("Model")["program"].nunique()
    cells = points.drop_duplicates(CELL_TYPE).set_index(CELL_TYPE)["n_cells"].sort_index()
    names = style.shorten_labels(cells.index, 55)
    across = 2 if len(titles) > 2 and len(cells) <= 25 else len(titles)  # two rows of panels, if they fit on a page
    down = -(-len(titles) // across)
    numbered = (DOUBLE - max(map(style.text_width, names)) - 20) / across - 3 >= ranks.max() * LINE
    note = [
        *style.run_note(f"{cells.sum():,} cells", replace(run, k=None)),
        f"rank k = {style.value_range(ranks)}",
        f"color: mean usage of a program by the cells of a type, as z-score over the types, clipped at ±{_CUT}",
        "programs are in the order of the type in which they peak",
    ]
    height = down * (len(cells) * LINE + (14 if numbered else 9)) + 12
    fig = style.new_figure(points, DOUBLE, height, note, titles, run)
    axes = fig.subplots(down, across, squeeze=False).ravel()
    for i, ((model, title), ax) in enumerate(zip(titles.items(), axes, strict=False)):
        rows = points[points["Model"] == model]
        grid = rows.pivot_table(index=CELL_TYPE, columns="position", values="z_score")  # (n_types, k)
        sns.heatmap(grid, ax=ax, cmap="RdBu_r", vmin=-_CUT, vmax=_CUT, cbar=False, xticklabels=False,
                    yticklabels=False, rasterized=len(points) > RASTER)  # fmt: skip
        ax.set(label=model, title=title, xlabel=f"{grid.shape[1]} programs", ylabel="")
        if numbered:
            order = rows.drop_duplicates("position").sort_values("position")["program"]
            ax.set_xticks(np.arange(len(order)) + 0.5, order, rotation=90)
            ax.tick_params(length=0)
        last = i % across == across - 1 or i == len(titles) - 1
        style.label_rows(ax, names if i % across == 0 else (), cells if last else ())
    for ax in axes[len(titles) :]:
        ax.set_axis_off()
    extend = "both" if points["z_score"].abs().max() > _CUT else "neither"
    over = "cell types" if run.cell_type_column == CELL_TYPE else style.shorten_labels([run.cell_type_column], 60)[0]
    fig.colorbar(axes[0].collections[0], ax=list(axes), location="bottom", pad=0.02, shrink=0.25, aspect=25,
                 extend=extend, ticks=[-_CUT, 0, _CUT], label=f"mean usage, z-score over {over}")  # fmt: skip
    return fig


@style.figure
def donors(table: pd.DataFrame, min_cells: int, column: str = DONOR) -> Figure:
    """Draw the number of cells of each donor, and the threshold, 89 mm wide.

    One bar per donor, largest first; light bars are donors that were dropped.

    Parameters
    ----------
    table : one row per donor: ``donor_id, n_cells, kept``
    min_cells : the threshold
    column : the column of the user's file that contains the donors, for the caption
    """
    check_table(table, "table of donors", [DONOR, "kept"], ["n_cells"])
    table = table.astype({DONOR: str, "kept": bool}).sort_values(["n_cells", DONOR], ascending=[False, True])
    kept, n_cells, name = table["kept"], table["n_cells"], style.printable(column)
    every, each = ("donors", "donor") if column == DONOR else (f"values of {name}", f"value of {name}")
    note = [
        f"{kept.sum()} of {len(table)} {every} kept (dark), with {n_cells[kept].sum():,} of {n_cells.sum():,} cells",
        f"dashed line: minimum cells per {each} ({min_cells:,})",
    ]
    fig = style.new_figure(table, SINGLE, len(table) * LINE + 13, note)
    ax = fig.subplots()
    ax.barh(np.arange(len(table)) + 0.5, n_cells, color=np.where(kept, "0.35", "0.8"), height=0.7)
    ax.axvline(min_cells, color="0", lw=0.7, ls="--")
    ax.set(label="donors", xlim=(0, max(n_cells.max(), min_cells) * 1.02), ylim=(len(table), 0), xlabel="cells")
    style.label_rows(ax, style.shorten_labels(table[DONOR], 35), n_cells)
    ax.locator_params("x", nbins=3, steps=style.STEPS, integer=True)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    return fig


def _umap_table(coords: AnnData) -> pd.DataFrame:
    """Return the cells in the order drawn: a seeded shuffle (no type covers the others) of at most MAX_POINTS cells."""
    name, again = "umap.h5ad", "Run 06_benchmarks again."
    check_table(coords.obs, name, LABELS, [])
    maps = {model: f"X_umap_{model}" for model in MODELS if f"X_umap_{model}" in coords.obsm}
    if not maps:
        expected = f"'X_umap_<Model>' for one of {', '.join(MODELS)}"
        raise ValueError(f"{name} contains obsm {list(coords.obsm)}. Expected {expected}. {again}")
    table = pd.DataFrame({"cell": coords.obs_names})
    for key in LABELS:
        labels = pd.Categorical(coords.obs[key]).remove_unused_categories()
        if (empty := labels.isna()).any() and key == DONOR:
            found = f"{empty.sum():,} of {coords.n_obs:,} cells (first: {coords.obs_names[empty][0]!r})"
            raise ValueError(f"{name}: obs[{key!r}] is empty for {found}. {again}")
        if empty.any():
            no_type = _NO_TYPE
            while no_type in labels.categories:
                no_type = f"({no_type})"
            labels = labels.add_categories(no_type).fillna(no_type)
        table[key] = labels
    for model, key in maps.items():
        xy = np.asarray(coords.obsm[key])
        if xy.shape != (coords.n_obs, 2):
            raise ValueError(f"{name}: obsm[{key!r}] has shape {xy.shape}. Expected ({coords.n_obs}, 2). {again}")
        table[f"{model}_x"], table[f"{model}_y"] = xy.T
    check_table(table, name, [], [f"{model}_{axis}" for model in maps for axis in "xy"])
    order = np.random.default_rng(_SEED).permutation(coords.n_obs)[:MAX_POINTS]
    return table.iloc[order].reset_index(drop=True)  # a sample keeps the categories, and with them the colors


def _program_table(usage: pd.DataFrame) -> pd.DataFrame:
    """Return the usages with z-scores and the position of each program in the heatmap of its model."""
    name, by = "table of programs", ["Model", "program"]
    check_table(usage, name, [*by, CELL_TYPE, "n_cells"], ["mean_usage"])
    points = usage.astype({CELL_TYPE: str}).sort_values([*by, CELL_TYPE], ignore_index=True)
    expected = points.groupby("Model")["program"].nunique().sum() * points[CELL_TYPE].nunique()
    if points.duplicated([*by, CELL_TYPE]).any() or len(points) != expected:
        found = f"{usage.attrs.get('source', name)} has {len(points)} rows. Expected {expected}, one per model, program"
        raise ValueError(f"{found} and cell type. Pass the table from programs.usage_by_type.")
    means = points.groupby(by)["mean_usage"]
    spread = means.transform("std", ddof=0)
    flat = spread <= 1e-12 * means.transform("max").abs()  # rounding only
    points["z_score"] = ((points["mean_usage"] - means.transform("mean")) / spread.mask(flat, 1)).mask(flat, 0.0)
    peaks = points.loc[points.groupby(by)["z_score"].idxmax()].assign(flat=lambda peaks: peaks["z_score"] == 0)
    peaks = peaks.sort_values(["flat", CELL_TYPE, "z_score", "program"], ascending=[True, True, False, True])
    places = peaks[by].assign(position=peaks.groupby("Model").cumcount())
    return points.merge(places, on=by, validate="many_to_one")
