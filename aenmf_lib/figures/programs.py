"""Figure 3: which cell types use which programs, with the genes of each program, matched across models."""

import pandas as pd

from aenmf_lib.data import CELL_TYPE
from aenmf_lib.figures import style
from aenmf_lib.figures.heatmaps import PAGE, SPECIFIC, choose_programs, chosen_note, matched_pairs, panel
from aenmf_lib.figures.tables import check_table
from aenmf_lib.figures.usage_panels import FOLD, GENES, NONE, Columns, draw_types, draw_usages, specific_programs
from aenmf_lib.results import RunInfo

_ROWS = 12  # programs that are shown even if the page becomes higher than PAGE
_BLOCK = 20  # types below each other in the second panel, if a second block fits beside them


@style.figure
def fig3_programs(
    usage: pd.DataFrame, cards: pd.DataFrame, matches: pd.DataFrame, run: RunInfo = style.NO_RUN
) -> style.Sheet:
    """Draw the mean usage of each program by each cell type, and the programs that define each type.

    One row is one program of the first model, with its three largest genes, and its matched program in each other
    model. The color is the mean usage of a type, divided by the mean over the types. If not all programs, types or
    models fit on a page, the caption says which ones are shown.

    Table: one row per model, program and type, also of those that are not drawn. ``fold`` is the color (on a log
    scale); ``row_program`` is the program of the first model that is matched with ``program``, and ``cosine`` their
    cosine; ``row`` and ``column`` are positions in the heat maps (empty if not drawn); ``genes`` are the three largest
    genes.

    Parameters
    ----------
    usage : ``usage_by_type.csv``: ``Model, program, cell_type, mean_usage, n_cells``
    cards : ``program_cards_<model>.csv`` of all models, with ``Model``
    matches : ``program_matches.csv``: ``Model, program, other, other_program, cosine, matched``
    """
    _check(usage, cards, matches, run)
    if usage[CELL_TYPE].nunique() < 2:
        found = "all cells with a type are of one type" if len(usage) else "no cell has a type"
        reason = f"{found} ({style.label_columns(run)[CELL_TYPE]})"
        return style.empty_figure(usage, reason, style.run_note("", run))
    points = _add_columns(usage, cards, matches)
    names, line = style.model_names(points["Model"], run), style.line()
    first = next(iter(names))
    own = cards[cards["Model"] == first]
    columns = Columns(points, own, names)
    blocks = max(min(-(-len(columns.types) // _BLOCK), int(style.page_width("double") / (25 * line))), 1)
    second = (-(-len(columns.types) // blocks) + 2) * line  # height of the second panel
    n_rows = max(int((PAGE - columns.head - columns.foot - second) / line), _ROWS)
    points = _add_places(points, first, columns.types, choose_programs(own, n_rows))
    height = columns.head + points["row"].nunique() * line + columns.foot + second
    fig = style.new_figure(points, "double", height, _caption(points, columns, names, run), names, run)
    fig.set_layout_engine("none")
    draw_usages(fig, points, columns, names)
    draw_types(fig, points[points["Model"] == first], columns, height - second, blocks)
    style.letters(panel(fig, 2 * line, top + 1.2 * line, 0.1, 0.1) for top in (0, height - second))
    return fig


def _caption(points: pd.DataFrame, columns: Columns, names: dict[str, str], run: RunInfo) -> list[str]:
    """Return the sentences of the caption."""
    first, *others = names
    own = points[points["Model"] == first]
    specific = specific_programs(own, columns.types)
    k, n_types = own["program"].nunique(), points[CELL_TYPE].nunique()
    types = style.label_plural(CELL_TYPE, run)
    strips = [names[model] for model in others if not columns.width(model)]
    cells = points.drop_duplicates(CELL_TYPE)["n_cells"].sum()
    return [
        f"Usage of programs by {types}",
        f"a, Mean usage of the programs by {types}, divided by the mean over the types; the color stops at 1/{2**FOLD} "
        f"and {2**FOLD}",
        f"Each row is one program of {names[first]}, with up to three of its genes (those with the largest weights)"
        + (", and the matched program of each other model (Hungarian method on the cosine)" if others else ""),
        "The number of a program is the same in all figures and tables of its model"
        + ("; the darker its background, the larger the cosine of the match" if others else ""),
        f"For lack of space, the heat maps of {style.join(strips)} are not drawn; their values are in the csv file"
        if strips
        else "",
        "" if all(map(columns.is_named, columns.widths)) else "All heat maps have the same order of columns",
        chosen_note(own["row"].notna().groupby(own["program"]).any().sum(), k, f" of {names[first]}"),
        f"The {len(columns.types)} {types} with most cells, of {n_types}, are shown" * (len(columns.types) < n_types),
        f"The dendrogram shows the average linkage of the types by their usages of all {k} programs of "
        f"{names[first]} (z-scores)",
        f"b, The programs of {names[first]} that are most specific for each type, with their number, genes, and mean "
        f"usage in the type, divided by the mean over the types (bar and number before ×; at least {SPECIFIC:g})"
        + f"; {NONE}, no such program"
        * (specific[CELL_TYPE].nunique() < len(columns.types)),
        *style.run_note(f"{cells:,} cells with a type", run),
    ]


def _check(usage: pd.DataFrame, cards: pd.DataFrame, matches: pd.DataFrame, run: RunInfo) -> None:
    """Raise ValueError unless the tables are complete and of one run."""
    by = ["Model", "program"]
    check_table(usage, "usage_by_type.csv", [*by, CELL_TYPE], ["mean_usage", "n_cells"], run, may_be_empty=True)
    check_table(cards, "program_cards.csv", [*by, "top_genes", "top_type", "variance_by_type"], ["share_of_norm"], run)
    columns = [*by, "other", "other_program", "cosine", "matched"]
    check_table(matches, "program_matches.csv", columns, [], run, may_be_empty=True)
    source, again = usage.attrs.get("source", "usage_by_type.csv"), "Run 10_programs again."
    expected = usage.groupby("Model")["program"].nunique().sum() * usage[CELL_TYPE].nunique()
    if usage.duplicated([*by, CELL_TYPE]).any() or len(usage) != expected:
        raise ValueError(f"{source} has {len(usage)} rows. Expected {expected}, one per model, program and cell type. "
                         f"{again}")  # fmt: skip
    programs, described = (set(zip(table["Model"], table["program"], strict=True)) for table in (usage, cards))
    if len(usage) and programs != described:
        model, program = min(programs ^ described)
        raise ValueError(f"{source} and the cards of the programs are of different runs: program {program} of {model} "
                         f"is in only one of them. {again}")  # fmt: skip


def _add_columns(usage: pd.DataFrame, cards: pd.DataFrame, matches: pd.DataFrame) -> pd.DataFrame:
    """Return the usages with the columns `fold`, `row_program`, `cosine` and `genes`."""
    points = usage.astype({CELL_TYPE: str})
    mean = points.groupby(["Model", "program"])["mean_usage"].transform("mean")
    points["fold"] = points["mean_usage"] / mean.where(mean > 0)
    first, *others = style.in_order(points["Model"])
    own = cards.loc[cards["Model"] == first, ["program"]]
    pairs = [own.assign(Model=first, row_program=own["program"], cosine=1.0)]
    for other in others:
        part = matched_pairs(matches, first, other).assign(Model=other)
        part = part.rename(columns={"program": "row_program", "other_program": "program"})
        pairs.append(part[["program", "Model", "row_program", "cosine"]])
    points = points.merge(pd.concat(pairs), "left", ["Model", "program"])
    genes = cards.assign(genes=[", ".join(str(text).split(", ")[:GENES]) for text in cards["top_genes"]])
    points = points.merge(genes[["Model", "program", "genes"]], "left", ["Model", "program"])
    return points.astype({"row_program": "Int64"})


def _add_places(points: pd.DataFrame, first: str, types: list[str], programs: list[int]) -> pd.DataFrame:
    """Add the row and the column of each value in the heat maps. A program is at the type that uses it most."""
    own = points[(points["Model"] == first) & points["program"].isin(programs) & points[CELL_TYPE].isin(types)]
    columns = {name: column for column, name in enumerate(types)}
    peaks = own.assign(column=own[CELL_TYPE].map(columns)).sort_values("fold", ascending=False, kind="stable")
    peaks = peaks.drop_duplicates("program").sort_values(["column", "fold"], ascending=[True, False], kind="stable")
    rows = {program: row for row, program in enumerate(peaks["program"])}
    places = {"row": points["row_program"].map(rows), "column": points[CELL_TYPE].map(columns)}
    return points.assign(**places).astype(dict.fromkeys(places, "Int64"))
