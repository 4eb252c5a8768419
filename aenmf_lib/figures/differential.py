"""Figure of the programs whose usage differs between two groups of donors."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.figures import style
from aenmf_lib.figures.style import DOUBLE, LINE, NO_RUN, SINGLE, value_range
from aenmf_lib.figures.tables import check_columns, check_table
from aenmf_lib.results import MODELS, RunInfo

_LEVEL = 0.05  # of the false discovery rate
_CUTS = (0.5, 1, 2)  # possible ends of the color scale (log2); larger effects have the last color
_TOP = 10  # maximum number of programs per model
_TYPES = 40  # maximum number of cell types
_GENES = 3  # genes in the name of a program
_NAME = 45  # mm, maximum length of the name of a program or a cell type
_COLUMN = 4.5  # mm, width of a column if there is enough space
_NUMBERS = ["n_donors_a", "n_donors_b", "n_pairs"]
_CARDS = "table of program cards"


@style.figure
def differential(table: pd.DataFrame, cards: pd.DataFrame | None = None, run: RunInfo = NO_RUN) -> Figure:
    """Draw the programs whose usage differs between two groups of donors, 89 to 183 mm wide.

    There is one panel per model, and one column per cell type (the 40 types with the most tests with FDR < .05, if
    there are more). The rows are the programs with FDR < .05 in at least one type, sorted by their largest significant
    effect, at most 10 per model. A dot marks FDR < .05, and a cross marks a test that was not done. Models without
    FDR < .05 are listed in the caption only. Table: the rows of `table` that are drawn, with ``row`` (from 0 in each
    panel).

    Parameters
    ----------
    table : from ``programs.differential_usage``
    cards : from ``programs.program_cards``; the first three ``top_genes`` are shown next to the number of a program
    """
    name = "differential_usage.csv"
    check_columns(table, name, ["Model", "effect", "fdr"])
    check_table(table, name, ["program", CELL_TYPE, "group_a", "group_b", "design"], _NUMBERS)
    _check_rows(table, name, ["Model", "program", CELL_TYPE])
    if cards is not None:
        check_columns(cards, _CARDS, ["Model", "program", "top_genes"])
        _check_rows(cards, _CARDS, ["Model", "program"])
    table = table.astype({column: str for column in ("Model", CELL_TYPE, "group_a", "group_b")})
    points = _select(table)
    types, models = sorted(points[CELL_TYPE].unique()), set(points["Model"])
    titles = style.titles(models, run.used_cell_type) | {model: model for model in sorted(models - {*MODELS})}
    groups = style.shorten_labels(table[["group_a", "group_b"]].iloc[0], 30)
    note = _notes(table, groups, run)
    if points.empty:
        return style.new_figure(points, SINGLE, 2, note)

    names = {model: _name_programs(points[points["Model"] == model], cards) for model in titles}
    labels = style.shorten_labels(types, _NAME)
    side = max(style.text_width(text) for texts in names.values() for text in texts) + 6
    width = np.clip(side + len(types) * _COLUMN, SINGLE, DOUBLE)
    rows = [len(texts) for texts in names.values()]
    height = sum(rows) * LINE + len(rows) * 5 + max(map(style.text_width, labels)) + 14
    fig = style.new_figure(points, width, height, note, titles, run)
    largest = points["effect"].abs().max()
    cut = next((cut for cut in _CUTS if largest <= cut), _CUTS[-1])
    axes = fig.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    for (model, title), ax in zip(titles.items(), axes, strict=True):
        _draw(ax, points[points["Model"] == model], types, cut)
        style.label_rows(ax, names[model])
        # if there are few columns, they do not fill the panel
        ax.set(label=model, xlabel="", ylabel="", xlim=(0, max(len(types), (width - side) / (2 * _COLUMN))))
        ax.set_title(title, loc="left")
    axes[-1].set_xticks(np.arange(len(types)) + 0.5, labels, rotation=90)
    axes[-1].tick_params(axis="x", length=0)
    extend = "both" if largest > cut else "neither"
    bar = fig.colorbar(axes[0].collections[0], ax=list(axes), location="bottom", shrink=45 / width, aspect=25, pad=0.02,
                       anchor=(0, 0), extend=extend, ticks=[-cut, 0, cut])  # fmt: skip
    bar.set_label(f"log₂ of usage: {groups[1]} − {groups[0]}", loc="left")
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
    sns.heatmap(grid, ax=ax, cmap="RdBu_r", vmin=-cut, vmax=cut, cbar=False, xticklabels=False, yticklabels=False)
    x, y = points[CELL_TYPE].map(types.index) + 0.5, points["row"] + 0.5
    found, missing = points["fdr"] < _LEVEL, points["fdr"].isna()
    ax.scatter(x[found], y[found], s=5, color="0", edgecolors="1", lw=0.4)
    ax.scatter(x[missing], y[missing], s=5, color="0.6", marker="x", lw=0.5)


def _select(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the programs to draw, with their ``row`` in the panel of their model."""
    found = table[table["fdr"] < _LEVEL].assign(size=lambda found: found["effect"].abs())
    best = found.groupby(["Model", "program"], as_index=False)["size"].max()
    best = best.sort_values(["size", "program"], ascending=[False, True])
    best["row"] = best.groupby("Model").cumcount()
    best = best.loc[best["row"] < _TOP, ["Model", "program", "row"]]
    points = table.merge(best, on=["Model", "program"], validate="many_to_one")
    most = (points["fdr"] < _LEVEL).groupby(points[CELL_TYPE]).sum().sort_values(ascending=False, kind="stable")
    points = points[points[CELL_TYPE].isin(most.index[:_TYPES])]
    return points.sort_values(["Model", "row", CELL_TYPE], ignore_index=True)


def _name_programs(points: pd.DataFrame, cards: pd.DataFrame | None) -> list[str]:
    """Return the names of the programs of one model, in the order of the rows: number and first top genes."""
    rows = points.drop_duplicates("row").sort_values("row")
    names = rows["program"].astype(str)
    if cards is not None:
        genes = cards[cards["Model"] == rows["Model"].iloc[0]].set_index("program")["top_genes"].astype(str)
        genes = genes.str.split(r"[,\s]+").str[:_GENES].str.join(", ")
        names += (": " + rows["program"].map(genes)).fillna("")
    return style.shorten_labels(names, _NAME)


def _notes(table: pd.DataFrame, groups: list[str], run: RunInfo) -> list[str]:
    """Return the clauses of the caption."""
    tested, found = table[table["fdr"].notna()], table[table["fdr"] < _LEVEL]
    donors = "donors" if run.donor_column == DONOR else f"values of {style.printable(run.donor_column)}"
    a, b, pairs = (value_range(tested[column]) if len(tested) else "0" for column in _NUMBERS)
    paired = table["design"].iloc[0] == "paired"
    numbers = f"{pairs} pairs" if paired else f"{a} {groups[0]}, {b} {groups[1]}"
    tests = table.groupby("Model", sort=False)["fdr"].count()
    none = ", ".join(f"{model} ({n:,} tests)" for model, n in tests.items() if model not in set(found["Model"]))
    programs = found.groupby("Model", sort=False)["program"].nunique()
    more = [f"{n - _TOP} more of {model}" for model, n in programs.items() if n > _TOP]
    more += [f"{n - _TYPES} cell types with fewer dots"] if (n := table[CELL_TYPE].nunique()) > _TYPES else []
    return [
        *style.run_note(f"{run.n_cells:,} cells" if run.n_cells else "", run),
        f"{'paired' if paired else 'unpaired'} t-tests of {donors}, not cells ({numbers})",
        f"no FDR < .05: {none}" if none else "",
        *(
            "rows: programs with FDR < .05 in at least one column, largest effect first",
            f"not shown: {', '.join(more)}" if more else "",
            "dot: FDR < .05 over all tests of a model",
            "cross: not tested" if len(tested) < len(table) else "",
        )
        * bool(len(found)),
    ]
