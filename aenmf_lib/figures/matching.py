"""Figure 5: which programs the models share, and whether the programs are found again by other fits."""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from aenmf_lib.figures import style
from aenmf_lib.figures.heatmaps import color_bar, heatmap, light_to_dark, longest, matched_pairs, panel
from aenmf_lib.figures.settings import MM, POINTS
from aenmf_lib.figures.tables import check_table
from aenmf_lib.results import RunInfo

_LISTED = 0.1  # cosines below it are white; program_matches.csv has them only of matched programs
_SIDE = (11, 18)  # smallest and largest width of a heat map, in lines of text
_DOT = 0.36  # diameter of a dot, in lines of text
_HEIGHT = 1.9  # of a row of dots, in lines of text
_LABEL = 0.36  # largest share of the width for the names of rows
_TABLE = [
    "panel",
    "group",
    "Model",
    "program",
    "other",
    "other_program",
    "cosine",
    "matched",
    "row",
    "column",
    "median",
]
_STARTS, _HALVES = "random starts", "halves of the donors"


@style.figure
def fig5_matching(
    matches: pd.DataFrame,
    cards: pd.DataFrame | None = None,
    consensus: pd.DataFrame | None = None,
    rank: pd.DataFrame | None = None,
    run: RunInfo = style.NO_RUN,
) -> style.Sheet:
    """Draw the cosines of the programs of two models, and those of the same programs in other fits of a model.

    The heat maps compare the first model with each other model; programs are in the order of the cosine with their
    match. The dots are the cosines of all matched programs of each two models, and of each program with its matches in
    other random starts and in halves of the donors, if these tables are given.

    Table: ``panel`` (heat map, models or stability), ``group`` (the row of dots), ``Model``, ``program``, ``other``,
    ``other_program``, ``cosine``, ``matched``, ``row`` and ``column`` of the heat map, and the ``median`` of the group.
    Two programs of the heat map with a cosine below 0.1 are listed only if they are matched; they are white in it.

    Parameters
    ----------
    matches : ``program_matches.csv``: ``Model, program, other, other_program, cosine, matched``
    cards : ``program_cards_<model>.csv`` of all models, with ``Model``: the mean cosine over random ``stability``
    consensus : ``consensus.csv``: ``program, cosine, rounds, kept``
    rank : ``rank.csv``: the row of the rank of this run has the medians ``starts_median`` and ``halves_median``
    """
    columns = ["Model", "program", "other", "other_program", "matched"]
    check_table(matches, "program_matches.csv", columns, ["cosine"], run, may_be_empty=True)
    names = style.model_names([*matches["Model"], *matches["other"]], run)
    maps = _list_maps(matches, [*names])
    groups = _list_groups(matches, names) + (stable := _list_stability(cards, consensus, rank, run))
    if not groups:
        reason = "there is one model, and no table of random starts or halves of the donors"
        return style.empty_figure(matches, reason, style.run_note("", run))
    tables = [table.assign(panel="heat map", median=np.nan) for table in maps.values()]
    tables += [group.table.assign(panel=group.panel, group=group.name, median=group.median) for group in groups]
    table = pd.concat(tables, ignore_index=True).reindex(columns=_TABLE)
    return _draw(table, maps, groups, names, _caption(names, maps, stable, run), run)


@dataclass
class _Group:
    """A row of dots: the cosines of matched programs."""

    panel: str  # models or stability
    name: str
    table: pd.DataFrame  # cosine; no rows if only the median is known
    median: float


def _list_maps(matches: pd.DataFrame, models: list[str]) -> dict[str, pd.DataFrame]:
    """Return the cosines of the first model with each other one, with their row and column in the heat map."""
    maps = {}
    for other in models[1:]:
        table = matches[(matches["Model"] == models[0]) & (matches["other"] == other)]
        pairs = matched_pairs(matches, models[0], other).sort_values("cosine", ascending=False, kind="stable")
        for column, place in (("program", "row"), ("other_program", "column")):
            # programs without a match are last
            order = {program: i for i, program in enumerate(dict.fromkeys([*pairs[column], *sorted(table[column])]))}
            table = table.assign(**{place: table[column].map(order)})
        maps[other] = table.assign(group=other)
    return maps


def _list_groups(matches: pd.DataFrame, names: dict[str, str]) -> list[_Group]:
    """Return the cosines of the matched programs of each two models."""
    pairs = dict(list(matches[matches["matched"].astype(bool)].groupby(["Model", "other"])))
    return [
        _Group("models", f"{names[model]} – {names[other]}", table, table["cosine"].median())
        for model, other in itertools.product(names, names)
        if (table := pairs.get((model, other))) is not None
    ]


def _list_stability(
    cards: pd.DataFrame | None, consensus: pd.DataFrame | None, rank: pd.DataFrame | None, run: RunInfo
) -> list[_Group]:
    """Return the cosines between random starts and between halves of the donors, from the tables that are given."""
    groups = []
    if cards is not None:
        check_table(cards, "program_cards.csv", ["Model", "program", "stability"], [], run)
        known = cards[cards["stability"].notna()][["Model", "program", "stability"]]
        for model, name in style.model_names(known["Model"], run).items():
            table = known[known["Model"] == model].rename(columns={"stability": "cosine"})
            groups.append(_Group("stability", f"{name}: {_STARTS}", table, table["cosine"].median()))
    name = style.name_of("AE_NMF")  # of consensus and rank
    if consensus is not None:
        check_table(consensus, "consensus.csv", ["program", "kept"], ["cosine", "rounds"])
        label = f"{name}: {_HALVES}, {consensus['rounds'].max()} rounds"
        table = consensus[["program", "cosine", "kept"]].assign(Model="AE_NMF")
        groups.append(_Group("stability", label, table, table["cosine"].median()))
    if rank is not None:
        check_table(rank, "rank.csv", ["k", "starts_median", "halves_median"], [])
        for row in rank[rank["k"] == run.k].itertuples() if run.k else ():
            for label, median in ((_STARTS, row.starts_median), (_HALVES, row.halves_median)):
                if np.isfinite(median):
                    table = pd.DataFrame({"Model": ["AE_NMF"]})
                    groups.append(_Group("stability", f"{name}: {label}, rank table", table, median))
    return groups


def _caption(names: dict[str, str], maps: dict, stable: list[_Group], run: RunInfo) -> list[str]:
    """Return the sentences of the caption."""
    first = next(iter(names.values()), "")
    letters = iter("abc")
    weak = any(_is_weak(found).any() for found in maps.values())
    sentences = ["Agreement of programs between models and between fits"]
    if maps:
        sentences += [
            f"{next(letters)}, Cosine of each program of {first} with each program of the other models. Programs are "
            "in the order of the cosine with their match (Hungarian method): the matches are on the diagonal; white, "
            f"below {_LISTED:g}" + ("; framed, a match below it" if weak else ""),
            f"{next(letters)}, Cosines of the matched programs of each pair of models, one dot per program; line and "
            "number, median",
        ]  # fmt: skip
    else:
        sentences.append("There is one model, so no models are compared")
    if stable:
        sentences.append(
            f"{next(letters)}, Cosine of each program with its match in other fits of the same model, one dot per "
            "program (mean over the fits); line and number, median"
        )
        if any("rank table" in group.name for group in stable):
            sentences.append("Only the median is known for the rank table, whose fits used a part of the cells")
        if any("rounds" in group.name for group in stable):
            sentences.append("Open dots are clusters of programs that do not recur in enough rounds")
    else:
        sentences.append("The models were fitted with one random start, so their stability is unknown")
    return [*sentences, *style.run_note(style.cells_of(run), run)]


def _draw(
    table: pd.DataFrame, maps: dict[str, pd.DataFrame], groups: list[_Group], names: dict[str, str], caption: list[str],
    run: RunInfo,
) -> style.Sheet:  # fmt: skip
    """Return the figure."""
    line, width = style.line(), style.page_width("double")
    layout = _Maps(maps, names) if maps else None
    labels = {group.name: style.wrap(group.name, _LABEL * width) for group in groups}
    left = max(longest(lines) for lines in labels.values()) + line
    rows = {name: max(len(lines) + 0.5, _HEIGHT) * line for name, lines in labels.items()}
    panels = [[group for group in groups if group.panel == kind] for kind in ("models", "stability")]
    heights = [sum(rows[group.name] for group in part) for part in panels]
    y = layout.height if layout else 0.0
    height = y + sum(part + 5 * line for part in heights if part)
    fig = style.new_figure(table, "double", height, caption, names, run)
    fig.set_layout_engine("none")
    if layout:
        layout.draw(fig)
    tops = [0.5 * line] if layout else []
    for part, part_height in zip(panels, heights, strict=True):
        if part:
            tops.append(y)
            _draw_groups(fig, (left, y + 1.7 * line, width - left - 4 * line), part, rows, labels)
            y += part_height + 5 * line
    style.letters(panel(fig, 2 * line, top + 1.2 * line, 0.1, 0.1) for top in tops)
    return fig


@dataclass
class _Maps:
    """The heat maps of the first model and each other one, in as many columns as fit. Lengths are in mm."""

    maps: dict[str, pd.DataFrame]
    names: dict[str, str]

    def __post_init__(self) -> None:
        """Place the heat maps and their color bar."""
        line, width, tables = style.line(), style.page_width("double"), self.maps.values()
        numbers = longest(str(program) for table in tables for program in table["program"].unique())
        self.gap = 2.3 * line + numbers  # on the left of each heat map
        self.across = int(np.clip((width - line) // (_SIDE[0] * line + self.gap), 1, len(tables)))
        self.side = min((width - line) / self.across - self.gap, _SIDE[1] * line)
        k = max(table[["row", "column"]].max().max() + 1 for table in tables)
        self.has_numbers = self.side / k >= 0.85 * line  # whether there is space for the numbers of the programs
        self.titles = {model: style.wrap(self.names[model], self.side) for model in self.maps}
        self.title = max(map(len, self.titles.values())) * line
        self.block = self.title + 1.5 * line + self.side + numbers * self.has_numbers  # height of a heat map
        self.height = -(-len(tables) // self.across) * self.block + 3.5 * line

    def draw(self, fig: Figure) -> None:
        """Draw the heat maps and their color bar."""
        line, first = style.line(), next(iter(self.names.values()))
        for i, (model, found) in enumerate(self.maps.items()):
            row, column = divmod(i, self.across)
            x, y = column * (self.side + self.gap) + self.gap, row * self.block + self.title + 0.7 * line
            ax = panel(fig, x, y, self.side, self.side)
            _draw_map(ax, found, self.side if self.has_numbers else 0)
            ax.set_label(f"map {model}")
            ax.set_title("\n".join(self.titles[model]), linespacing=1.15)
            if column == 0:
                label = panel(fig, 0.5 * line, y, 1.2 * line, self.side)
                text = style.shorten_labels([first], self.side)[0]
                label.text(0.6 * line, self.side / 2, text, rotation=90, ha="center", va="center")
        bar = panel(fig, self.gap, self.height - 3 * line, self.side, 0.5 * line)
        color_bar(bar, light_to_dark(), "cosine", {0: "0", 0.5: "0.5", 1: "1"})


def _draw_map(ax: Axes, found: pd.DataFrame, width: float) -> None:
    """Draw the heat map of the first model (rows) and another one (columns), with numbers unless `width` (mm) is 0."""
    grid = np.full((found["row"].max() + 1, found["column"].max() + 1), np.nan)
    grid[found["row"], found["column"]] = found["cosine"].where(found["cosine"] >= _LISTED)
    heatmap(ax, grid, light_to_dark())
    for row, column in found.loc[_is_weak(found), ["row", "column"]].to_numpy():
        ax.add_patch(Rectangle((column + 0.1, row + 0.1), 0.8, 0.8, fill=False, lw=0.4, edgecolor="0.4"))
    ax.spines[:].set_visible(True)
    for axis, column, place in ((ax.yaxis, "program", "row"), (ax.xaxis, "other_program", "column")) if width else ():
        numbers = found.drop_duplicates(place).sort_values(place)
        narrow = axis is ax.xaxis and longest(map(str, numbers[column])) > 0.8 * width / len(numbers)
        axis.set_ticks(numbers[place] + 0.5, numbers[column], rotation=90 if narrow else 0)
    ax.tick_params(length=0, pad=0.2 * style.line() / MM * POINTS)


def _is_weak(found: pd.DataFrame) -> pd.Series:
    """Return which rows are matched programs that have almost nothing in common."""
    return found["matched"].astype(bool) & (found["cosine"] < _LISTED)


def _draw_groups(
    fig: Figure, place: tuple[float, float, float], groups: list[_Group], rows: dict[str, float], labels: dict
) -> None:
    """Draw rows of dots with their names and medians."""
    x, y, width = place
    line, total = style.line(), sum(rows[group.name] for group in groups)
    ax = panel(fig, x, y, width, total)
    ax.set(label=groups[0].panel, xlim=(-0.01, 1.01), xlabel="cosine of matched programs")
    ax.spines["bottom"].set_visible(True)
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    at = 0.0
    for group in groups:
        height = rows[group.name]
        middle = at + height / 2
        ax.plot([0, 1], [middle, middle], color="0.9", lw=0.4, zorder=0)
        if "cosine" in group.table:
            values = group.table["cosine"].to_numpy(float)
            offsets = _swarm(values * width, _DOT * line, 0.8 * height)
            kept = group.table.get("kept", pd.Series(True, group.table.index)).astype(bool).to_numpy()
            size = (_DOT * line / MM * POINTS) ** 2
            color = np.where(kept, "0.45", "1")
            ax.scatter(values, middle + offsets, s=size, c=color, lw=0.3, edgecolor="0.45", zorder=1, clip_on=False,
                       rasterized=len(values) > style.RASTER)  # fmt: skip
        ax.plot([group.median] * 2, [at + 0.1 * height, at + 0.9 * height], color="0", lw=1.2, zorder=2)
        ax.text(1.03, middle, f"{group.median:.2f}", va="center_baseline", ha="left")
        ax.text(-0.02, middle, "\n".join(labels[group.name]), va="center", ha="right", linespacing=1.15)
        at += height


def _swarm(positions: np.ndarray, size: float, height: float) -> np.ndarray:
    """Return offsets that separate dots of a size (mm) at the same place; at most half of the height (mm)."""
    bins = np.floor(positions / size).astype(int)
    rank = pd.Series(bins).groupby(bins).cumcount().to_numpy()
    offsets = (rank + 1) // 2 * np.where(rank % 2, 1, -1) * size
    most = np.abs(offsets).max(initial=0)
    return offsets * min(1, (height / 2) / most) if most else offsets * 0.0
