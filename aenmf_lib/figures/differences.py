"""Figure of the programs whose usage differs between two groups of donors."""

import pandas as pd
from matplotlib.axes import Axes

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.figures import style
from aenmf_lib.figures.heatmaps import color_bar, fit_genes, heatmap, longest, panel, write_rows
from aenmf_lib.figures.style import NO_RUN, value_range
from aenmf_lib.figures.tables import check_columns, check_table
from aenmf_lib.results import RunInfo

_LEVEL = 0.05  # of the false discovery rate
_CUTS = (0.5, 1, 2)  # possible ends of the color scale (log2); larger effects have the last color
_TOP = 10  # maximum number of programs per model
_TYPES = 40  # maximum number of cell types, if they have space
_GENES = 3  # genes in the name of a program
_LEAST, _WIDE = 1.1, 1.5  # lines of text, width of a column: the smallest, and that with enough space
_GROUPS = ["group_a", "group_b"]
_NUMBERS = ["n_donors_a", "n_donors_b", "n_pairs"]
_CARDS = "table of program cards"


@style.figure
def differential(table: pd.DataFrame, cards: pd.DataFrame | None = None, run: RunInfo = NO_RUN) -> style.Sheet:
    """Draw the programs whose usage differs between two groups of donors, 89 or 183 mm wide.

    There is one panel per model, and one column per cell type (those with the most tests with FDR < .05, if there is no
    space for all). The rows are the programs with FDR < .05 in at least one type, sorted by their largest significant
    effect, at most 10 per model. A dot marks FDR < .05, and a cross marks a test that was not done. Models without
    FDR < .05 are listed in the caption only. Table: the rows of `table` that are drawn, with ``row`` (from 0 in each
    panel).

    Parameters
    ----------
    table : from ``programs.differential_usage``
    cards : from ``programs.program_cards``; the first three ``top_genes`` are shown next to the number of a program
    """
    name = "differential_usage.csv"
    check_table(table, name, ["Model", "effect", "fdr", "program", CELL_TYPE, *_GROUPS, "design"], _NUMBERS)
    _check_rows(table, name, ["Model", "program", CELL_TYPE])
    if cards is not None:
        check_columns(cards, _CARDS, ["Model", "program", "top_genes"])
        _check_rows(cards, _CARDS, ["Model", "program"])
    table = table.astype(dict.fromkeys(["Model", CELL_TYPE, *_GROUPS], str))
    best = _select(table)
    models = style.model_names(best["Model"], run)
    rows = {model: _name_programs(best[best["Model"] == model], cards) for model in models}
    line = style.line()
    left = max(map(longest, rows.values()), default=0) + line
    wanted = min(table[CELL_TYPE].nunique(), _TYPES)
    page = "single" if left + wanted * _WIDE * line + line <= style.page_width("single") else "double"
    space = style.page_width(page) - left - line
    points = _select_types(table, best, max(min(_TYPES, int(space / (_LEAST * line))), 1))
    groups = style.shorten_labels(table[_GROUPS].iloc[0], 0.3 * style.page_width("single"))
    if points.empty:
        return style.empty_figure(points, "no test has FDR < .05", _notes(table, points, groups, run))

    types = sorted(points[CELL_TYPE].unique())
    labels = style.shorten_labels(types, 14 * line)
    heights = [(len(names) * 1.15 + 2.4) * line for names in rows.values()]
    below = longest(labels) + 5.5 * line
    fig = style.new_figure(points, page, sum(heights) + below, _notes(table, points, groups, run), models, run)
    fig.set_layout_engine("none")  # all panels are placed in mm
    largest = points["effect"].abs().max()
    cut = next((cut for cut in _CUTS if largest <= cut), _CUTS[-1])
    width, top, axes = min(space, len(types) * 3 * line), 0.0, []
    for (model, names), height in zip(rows.items(), heights, strict=True):
        ax = panel(fig, left, top + 2 * line, width, height - 2.4 * line)
        _draw(ax, points[points["Model"] == model], types, cut)
        write_rows(ax, -0.4 * line * len(types) / width, names, ha="right")
        ax.set_label(model)
        ax.set_title(models[model], loc="left")
        axes.append(ax)
        top += height
    for column, text in enumerate(labels):
        axes[-1].text(column + 0.5, len(names) + 0.3, text, rotation=90, ha="center", va="top", clip_on=False)
    bar = panel(fig, line, top + longest(labels) + 1.5 * line, min(14 * line, 0.5 * style.page_width(page)), 0.6 * line)
    color_bar(bar, style.current().diverging, f"log₂ of usage: {groups[1]} − {groups[0]}",
              {-cut: f"−{cut:g}", 0: "0", cut: f"{cut:g}"})  # fmt: skip
    style.letters(axes if len(axes) > 1 else ())
    return fig


def _check_rows(table: pd.DataFrame, name: str, columns: list[str]) -> None:
    """Raise ValueError if two rows have the same values in the columns."""
    repeated = table.loc[table.duplicated(columns), columns]
    if len(repeated):
        first = ", ".join(map(str, repeated.iloc[0]))
        raise ValueError(f"{table.attrs.get('source', name)}: {len(repeated)} of {len(table)} rows repeat the "
                         f"{', '.join(columns)} of another (first: {first}). Pass the table of one run.")  # fmt: skip


def _draw(ax: Axes, points: pd.DataFrame, types: list[str], cut: float) -> None:
    """Draw the effects of one model as colors from -cut to cut, FDR < .05 as dots, and missing tests as crosses."""
    grid = points.pivot_table(index="row", columns=CELL_TYPE, values="effect", dropna=False).reindex(columns=types)
    heatmap(ax, grid.to_numpy(), style.current().diverging, (-cut, cut))
    x, y = points[CELL_TYPE].map(types.index) + 0.5, points["row"] + 0.5
    found, missing = points["fdr"] < _LEVEL, points["fdr"].isna()
    ax.scatter(x[found], y[found], s=5, color="0", edgecolors="1", lw=0.4)
    ax.scatter(x[missing], y[missing], s=5, color="0.6", marker="x", lw=0.5)


def _select(table: pd.DataFrame) -> pd.DataFrame:
    """Return the programs to draw, with their ``row`` in the panel of their model."""
    found = table[table["fdr"] < _LEVEL].assign(size=lambda found: found["effect"].abs())
    best = found.groupby(["Model", "program"], as_index=False)["size"].max()
    best = best.sort_values(["size", "program"], ascending=[False, True])
    best["row"] = best.groupby("Model").cumcount()
    return best.loc[best["row"] < _TOP, ["Model", "program", "row"]]


def _select_types(table: pd.DataFrame, best: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the rows of the chosen programs, for the n cell types with the most tests with FDR < .05."""
    points = table.merge(best, on=["Model", "program"], validate="many_to_one")
    most = (points["fdr"] < _LEVEL).groupby(points[CELL_TYPE]).sum().sort_values(ascending=False, kind="stable")
    points = points[points[CELL_TYPE].isin(most.index[:n])]
    return points.sort_values(["Model", "row", CELL_TYPE], ignore_index=True)


def _name_programs(rows: pd.DataFrame, cards: pd.DataFrame | None) -> list[str]:
    """Return the names of the programs of one model, in the order of the rows: number and first top genes."""
    rows, width = rows.sort_values("row"), min(20 * style.line(), 0.5 * style.page_width("single"))
    genes = pd.Series(dtype=object)
    if cards is not None:
        genes = cards[cards["Model"] == rows["Model"].iloc[0]].set_index("program")["top_genes"].astype(str)
    names = []
    for program in rows["program"]:
        text = ", ".join(genes.get(program, "").replace(",", " ").split())
        space = width - style.text_width(f"{program}: ")
        names.append(f"{program}: {fit_genes(text, space, _GENES)}" if text else f"{program}")
    return names


def _notes(table: pd.DataFrame, points: pd.DataFrame, groups: list[str], run: RunInfo) -> list[str]:
    """Return the sentences of the caption."""
    tested, found = table[table["fdr"].notna()], table[table["fdr"] < _LEVEL]
    a, b, pairs = (value_range(tested[column]) if len(tested) else "0" for column in _NUMBERS)
    paired = table["design"].iloc[0] == "paired"
    numbers = f"{pairs} pairs" if paired else f"{a} {groups[0]}, {b} {groups[1]}"
    tests = table.groupby("Model", sort=False)["fdr"].count()
    none = [f"{style.name_of(model)} ({n:,} tests)" for model, n in tests.items() if model not in set(found["Model"])]
    programs = found.groupby("Model", sort=False)["program"].nunique()
    more = [f"{n - _TOP} more programs of {style.name_of(model)}" for model, n in programs.items() if n > _TOP]
    letters = "".join(f"{letter}, " for letter, _ in zip("abcdefgh", programs, strict=False)) * (len(programs) > 1)
    n_types, shown = table[CELL_TYPE].nunique(), points[CELL_TYPE].nunique()
    more += [f"{n_types - shown} cell types with fewer dots"] if len(points) and n_types > shown else []
    return [
        f"Programs whose usage differs between {groups[0]} and {groups[1]}: "
        f"{'paired' if paired else 'unpaired'} t-tests of {style.label_plural(DONOR, run)}, not cells ({numbers})",
        *style.run_note(style.cells_of(run), run),
        f"No test has FDR < .05 in {style.join(none)}" if none else "",
        *(
            f"{letters}Rows are programs with FDR < .05 in at least one column, the largest effect first",
            f"Not shown: {', '.join(more)}" if more else "",
            "Dots mark FDR < .05 over all tests of a model",
            "Crosses mark programs and types that were not tested" if len(tested) < len(table) else "",
            "Effects beyond the scale have its last color"
            if len(points) and points["effect"].abs().max() > _CUTS[-1]
            else "",
        )
        * bool(len(found)),
    ]
