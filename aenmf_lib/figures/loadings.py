"""Figure 4: the genes of the programs, with known markers, and the gene sets that the programs contain."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aenmf_lib.data import CELL_TYPE
from aenmf_lib.figures import style
from aenmf_lib.figures.heatmaps import SPECIFIC, chosen_note, color_bar, heatmap, light_to_dark, longest, panel
from aenmf_lib.figures.loading_plan import ALL_TYPES, HEADS, HIGH, SETS, SIGNIFICANT, Plan, make_plan
from aenmf_lib.figures.settings import MM, POINTS
from aenmf_lib.figures.tables import check_table
from aenmf_lib.results import RunInfo

_LEAST = 1e-99  # smaller false discovery rates have the same color
_DOT = 0.9  # diameter of the largest dot, in lines of text
_NO_SETS = "No gene set has a false discovery rate below .05 in these programs"


@style.figure
def fig4_loadings(
    genes: pd.DataFrame,
    cards: pd.DataFrame,
    enrichment: pd.DataFrame,
    usage: pd.DataFrame | None = None,
    run: RunInfo = style.NO_RUN,
    *,
    model: str = "",
) -> style.Sheet:
    """Draw the genes with the largest weights in the programs of one model, and the gene sets that these contain.

    One column is one program, one row is one gene; the color is its weight, divided by the largest weight of the
    program. Markers of the settings are bold, with the name of their cell type; the figure also shows markers that are
    not among the largest genes. Dots are gene sets: their size is the number of common genes, their color the false
    discovery rate. If not all programs fit, the caption says which ones are shown.

    Table: ``part`` (gene or gene set), ``name`` (symbol, or name of the set), ``program``, ``row`` and ``column`` of
    the heat map, and for genes ``gene``, ``weight``, ``relative_weight`` and ``marker_of``; for sets ``overlap``,
    ``size``, ``fdr`` and ``shared_genes``.

    Parameters
    ----------
    genes, cards : ``programs_<model>.csv`` and ``program_cards_<model>.csv`` of all models, with ``Model``
    enrichment : ``gene_set_enrichment.csv``; without rows if no gene sets were given
    usage : ``usage_by_type.csv``, for the programs that no type uses much more than the others
    run : facts about the run, for the caption
    model : the model to draw (default: the first one)
    """
    check_table(genes, "programs.csv", ["Model", "gene", "symbol"], ["program", "rank", "weight"], run)
    of_cards = ["Model", "top_type", "variance_by_type"], ["program", "share_of_norm"]
    check_table(cards, "program_cards.csv", *of_cards, run)
    of_sets = ["Model", "gene_set", "shared_genes"], ["program", "overlap", "size", "fdr"]
    check_table(enrichment, "gene_set_enrichment.csv", *of_sets, run, may_be_empty=True)
    if usage is not None:
        of_usage = ["Model", CELL_TYPE], ["program", "mean_usage"]
        check_table(usage, "usage_by_type.csv", *of_usage, run, may_be_empty=True)
    model = model or style.in_order(cards["Model"])[0]
    if model not in set(cards["Model"]) & set(genes["Model"]):
        raise ValueError(f"model={model!r} is not in the tables. Choose one of: {', '.join({*cards['Model']})}.")
    genes, cards, enrichment = (table[table["Model"] == model] for table in (genes, cards, enrichment))
    usage = None if usage is None else usage[usage["Model"] == model]
    plan = make_plan(genes, cards, enrichment, usage)
    names = style.model_names([model], run)
    fig = style.new_figure(plan.table, "double", plan.height, _caption(plan, names[model], len(cards), run), names, run)
    fig.set_layout_engine("none")
    _draw_genes(fig, plan)
    if plan.tested:
        _draw_sets(fig, plan)
    _draw_keys(fig, plan)
    line = style.line()
    tops = [1.2 * line, plan.top_of_sets + 0.1 * line] if plan.tested else []
    style.letters(panel(fig, 2 * line, top, 0.1, 0.1) for top in tops)
    return fig


def _caption(plan: Plan, name: str, total: int, run: RunInfo) -> list[str]:
    """Return the sentences of the caption."""
    several = f"The {plan.n_genes} genes with the largest weights"
    first = "The gene with the largest weight" if plan.n_genes == 1 else several
    markers = ", and markers of cell types (bold) among the 100 genes with the largest weights"
    markers *= bool(plan.genes["marker_of"].any())
    is_type = style.label_name(CELL_TYPE, run).lower()
    if not plan.tested:
        sets = ["No gene sets were tested (option GENE_SETS)"]
    elif not plan.sets:
        sets = [f"b, {_NO_SETS}"]
    else:
        sets = [
            "b, Gene sets that are enriched in the 100 most specific genes of a program (false discovery rate below "
            f"{SIGNIFICANT:g})",
            f"The {SETS} sets with the smallest rates are shown; all are in gene_set_enrichment.csv"
            if len(plan.sets) == SETS
            else "",
        ]
    return [
        f"Genes of the programs of {name}",
        "a, " * plan.tested + f"{first} in each program" + markers,
        "The color is the weight of a gene, divided by the largest weight of the program; white, a gene that is not "
        "among the 100 genes with the largest weights of this program",
        f"The programs are grouped by the {is_type} with the largest mean usage"
        + f"; {ALL_TYPES}, this usage is below {SPECIFIC:g} times the mean over the types" * (ALL_TYPES in plan.groups),
        chosen_note(plan.n_columns, total, f" of {name}", f"those with a marker among their {HIGH} largest genes, "),
        *sets,
        *style.run_note(style.cells_of(run), run),
    ]


def _draw_genes(fig: Figure, plan: Plan) -> None:
    """Draw the heat map of genes with the names of genes and programs."""
    line, n_rows = style.line(), len(plan.genes)
    width, height = plan.n_columns * plan.column, n_rows * line
    names = panel(fig, 0, plan.head, plan.left, height)
    names.set(label="names of genes", ylim=(n_rows, 0))
    given = [*filter(None, dict.fromkeys(plan.genes["marker_of"]))]
    types = dict(zip(given, style.shorten_labels(given, plan.marker_width), strict=True))
    middle = {"va": "center_baseline", "ha": "right"}
    for i, (symbol, marker) in enumerate(zip(plan.symbols, plan.genes["marker_of"], strict=True)):
        x, y = plan.left - 0.4 * line, i + 0.5
        names.text(x, y, symbol, weight="bold" if marker else "normal", **middle)
        if marker and plan.marker_width:
            names.text(x - 0.4 * line - plan.symbol_width, y, types[marker], color="0.4", **middle)
    ax = panel(fig, plan.left, plan.head, width, height)
    ax.set_label("genes")
    for i in range(n_rows):
        ax.plot([0, plan.n_columns], [i + 0.5, i + 0.5], color="0.9", lw=0.4, zorder=0)
    grid = np.full((n_rows, plan.n_columns), np.nan)
    own = plan.table[plan.table["part"] == "gene"]
    grid[own["row"].to_numpy(int), own["column"].to_numpy(int)] = own["relative_weight"]
    heatmap(ax, grid, light_to_dark())
    top = panel(fig, plan.left, 0, width, plan.head)
    top.set(label="programs", xlim=(0, plan.n_columns))
    numbers = longest(map(str, plan.programs))
    rotated = {} if numbers < plan.column else {"rotation": 90}
    for i, program in enumerate(plan.programs):
        top.text(i + 0.5, plan.head - 0.3 * line, program, ha="center", va="bottom", **rotated)
    numbers = numbers if rotated else line
    y, rotated = plan.head - numbers - 0.6 * line, {} if plan.is_flat else {"rotation": 90, "ma": "left"}
    for start, end, label in zip(plan.starts[:-1], plan.starts[1:], plan.group_labels, strict=True):
        top.plot([start + 0.15, end - 0.15], [y, y], color="0.3", lw=0.6)
        text = "\n".join(label)
        top.text((start + end) / 2, y - 0.2 * line, text, ha="center", va="bottom", linespacing=1.15, **rotated)
        if start:
            ax.plot([start, start], [0, n_rows], color="0.6", lw=0.4)
    for text, height in zip(HEADS, (0.3 * line, plan.head - y + 0.2 * line), strict=True):
        names.text(plan.left - 0.4 * line, -height / line, text, va="bottom", ha="right")


def _draw_sets(fig: Figure, plan: Plan) -> None:
    """Draw the dots of gene sets below the programs."""
    line, n_rows = style.line(), max(len(plan.sets), 1)
    ax = panel(fig, plan.left, plan.top_of_sets, plan.n_columns * plan.column, n_rows * line)
    ax.set(label="gene sets", xlim=(0, plan.n_columns), ylim=(n_rows, 0))
    if not plan.sets:
        ax.text(0, 0.5, "\n".join(style.wrap(_NO_SETS, plan.n_columns * plan.column)), va="center", ha="left")
        return
    for i, name in enumerate(style.shorten_labels(plan.sets, plan.left - 0.8 * line)):
        ax.text(-0.4 * line / plan.column, i + 0.5, name, ha="right", va="center_baseline")
        ax.plot([0, plan.n_columns], [i + 0.5, i + 0.5], color="0.9", lw=0.4, zorder=0)
    dots = plan.table[plan.table["part"] == "gene set"]
    ax.scatter(dots["column"].astype(int) + 0.5, dots["row"].astype(int) + 0.5, s=_areas(dots["overlap"], dots),
               c=-np.log10(dots["fdr"].clip(lower=_LEAST)), cmap=light_to_dark(), vmin=0, vmax=_rates(dots)[-1], lw=0.3,
               edgecolor="0.2", zorder=2)  # fmt: skip


def _areas(overlaps: Sequence[float], dots: pd.DataFrame) -> np.ndarray:
    """Return the areas of dots in square points, in proportion to the number of common genes."""
    diameter = _DOT * style.line() / MM * POINTS
    return diameter**2 * np.asarray(overlaps, float) / dots["overlap"].max()


def _rates(dots: pd.DataFrame) -> list[int]:
    """Return the ticks of the color bar of -log10 of the false discovery rate, which cover its range."""
    most = max(-np.log10(max(dots["fdr"].min(), _LEAST)), 2)
    return [*map(int, MaxNLocator(3, steps=style.STEPS, integer=True).tick_values(0, most))]


def _draw_keys(fig: Figure, plan: Plan) -> None:
    """Draw the color bars, and the sizes of the dots."""
    line, dots = style.line(), plan.table[plan.table["part"] == "gene set"]
    width, labels = plan.key_width, ["\n".join(lines) for lines in plan.key_labels]
    keys = [{0: "0", 0.5: "0.5", 1: "1"}]
    if len(dots):
        keys.append({tick: f"{tick}" for tick in _rates(dots)})
    top = plan.top_of_keys + line
    shift = 0 if plan.keys_below else width
    places = [(1.5 * line + i * shift, top + below) for i, below in enumerate(plan.tops_of_keys)]
    for place, ticks, label in zip(places, keys, labels, strict=False):
        color_bar(panel(fig, *place, width - 2 * line, 0.5 * line), light_to_dark(), label, ticks)
    if not len(dots):
        return
    ax = panel(fig, places[2][0], places[2][1] - 0.3 * line, width - 2 * line, 4 * line)
    ax.set_label("sizes")
    low, high = int(dots["overlap"].min()), int(dots["overlap"].max())
    x = 0.5 * line
    for n in sorted({low, (low + high) // 2, high}):
        ax.scatter(x, 0.55 * line, s=_areas([n], dots), color="0.7", lw=0.3, edgecolor="0.2")
        ax.text(x + 0.6 * line, 0.55 * line, n, va="center_baseline")
        x += 1.8 * line + style.text_width(str(n))
    ax.text(0, 1.2 * line, labels[2], va="top", linespacing=1.15)
