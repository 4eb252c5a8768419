"""Panels of the figure of programs: heat maps of mean usages by type, and the programs that define each type."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage

from aenmf_lib.data import CELL_TYPE
from aenmf_lib.figures import style
from aenmf_lib.figures.heatmaps import COSINES, SPECIFIC, color_bar, fit_genes, heatmap, longest, panel, write_rows

GENES = 3  # of each program
NONE = "–"  # of a type without a program of its own
_TOP = 3  # programs of each cell type in the second panel
_NAMED, _WIDE = 0.9, 1.5  # smallest and largest width of a column with a name, in lines of text
_NARROW = 0.8  # mm, smallest width of a column without a name
_ORDERED = 100  # more types are in the order of an ordinary dendrogram
_TREE, _STRIP, _BAR = 2.2, 0.35, 2  # dendrogram, colors of types, and the longest bar, in lines of text
_BAR_HEIGHT = 2.2  # of a color bar with its ticks, in lines of text
_LABEL = 0.36  # largest share of the width for the genes of a row
_NAME = 14  # longest name of a type below the heat maps, in lines of text
FOLD = 2  # log2 of the largest fold with a color of its own


class Columns:
    """The columns of the heat maps: all types of all models, or of the first one, or the types with most cells.

    Lengths are in mm.
    """

    def __init__(self, points: pd.DataFrame, cards: pd.DataFrame, names: dict[str, str]) -> None:
        """Choose the columns that fit, and their order."""
        line, width, n_models = style.line(), style.page_width("double"), len(names)
        genes = [fit_genes(str(text), _LABEL * width, GENES) for text in cards["top_genes"]]
        self.genes = min(longest(genes), _LABEL * width)  # width of the genes of a row
        self.number = longest(map(str, cards["program"])) + 0.5 * line  # width of the number of a program
        room = width - self.genes - n_models * (self.number + 0.6 * line) - line
        sizes = points.drop_duplicates(CELL_TYPE).set_index(CELL_TYPE)["n_cells"].sort_index()
        colors = dict(zip(sizes.index, style.palette(CELL_TYPE, sizes.index), strict=True))
        sizes = sizes.sort_values(ascending=False, kind="stable")
        n_types, named = len(sizes), _NAMED * line
        widths = [min(room / n_types / n_models, _WIDE * line)] * n_models
        if widths[0] < named:  # only the first model has names
            others = (room / n_types - named) / max(n_models - 1, 1)
            widths = [named, *[others] * (n_models - 1)]
            if others < _NARROW or n_models == 1:  # only the first model has a heat map
                n_types = min(n_types, max(int(room / named), 2))
                widths = [min(room / n_types, _WIDE * line)]
        self.widths = dict(zip(names, widths, strict=False))  # models with a heat map -> width of a column

        types = sizes.index[:n_types]
        own = points[points["Model"] == next(iter(names))]
        grid = own.pivot_table(index="program", columns=CELL_TYPE, values="fold", observed=True)[types]  # (k, n_types)
        spread = grid.std(axis=1, ddof=0)
        scores = grid.sub(grid.mean(axis=1), axis=0).div(spread.where(spread > 1e-12, 1), axis=0)
        self.tree = linkage(scores.to_numpy().T, "average", optimal_ordering=n_types <= _ORDERED)
        self.types = [*types[leaves_list(self.tree)]]
        self.labels = style.shorten_labels(self.types, _NAME * line)  # shown names of the types
        self.colors = [colors[name] for name in self.types]

        # a name is rotated if a word is wider than the heat map of its model
        rooms = {model: self.width(model) + self.number for model in names}
        self.rotated = {model for model, name in names.items() if longest(name.split()) > rooms[model]}
        self.titles = {
            model: [name] if model in self.rotated else style.wrap(name, rooms[model]) for model, name in names.items()
        }
        tall = [longest(lines) if model in self.rotated else len(lines) * line for model, lines in self.titles.items()]
        self.head = max(tall[0] + _TREE * line, *tall) + 0.8 * line  # height of the titles and the dendrogram

        # colormap, lines of the label and ticks of each color bar
        folds = {value: f"1/{2**-value}" if value < 0 else f"{2**value}" for value in range(-FOLD, FOLD + 1)}
        bars = [(style.current().diverging, "mean usage, fold of the mean over types", folds)]
        bars += [(COSINES, "cosine of the match", {0: "0", 0.5: "0.5", 1: "1"})] * (n_models > 1)
        self.bars = [(cmap, style.wrap(label, self.genes - 1.5 * line), ticks) for cmap, label, ticks in bars]
        height = sum(_BAR_HEIGHT + len(lines) for _, lines, _ in self.bars) + 0.8
        self.foot = max(longest(self.labels) + 1.5 * line, height * line)  # of the names of the types, or of the bars

    def width(self, model: str) -> float:
        """Return the width of the heat map of a model, 0 without one."""
        return len(self.types) * self.widths.get(model, 0)

    def is_named(self, model: str) -> bool:
        """Return whether the columns of a model are wide enough for the names of the types."""
        return self.widths.get(model, 0) >= _NAMED * style.line()


def draw_usages(fig: Figure, points: pd.DataFrame, columns: Columns, names: dict[str, str]) -> None:
    """Draw the heat maps with their dendrogram, titles, numbers and names."""
    line, first = style.line(), next(iter(names))
    rows = points.drop_duplicates(["Model", "program"]).dropna(subset="row").sort_values("row")
    n_rows = rows["row"].nunique()
    top, height, cmap = columns.head, n_rows * line, style.current().diverging
    genes = panel(fig, 0.3 * line, top, columns.genes, height)
    genes.set(label="genes", ylim=(n_rows, 0))
    texts = [fit_genes(text, columns.genes, GENES) for text in rows[rows["Model"] == first]["genes"]]
    write_rows(genes, columns.genes, texts, ha="right")
    x = columns.genes + 0.6 * line
    for model in names:
        _draw_numbers(panel(fig, x, top, columns.number, height), model, rows[rows["Model"] == model], n_rows)
        title = panel(fig, x, 0, columns.width(model) + columns.number, columns.head)
        title.set_label(f"title {model}")
        y = columns.head - (_TREE + 0.6 if model == first else 0.4) * line
        rotated = {"rotation": 90} if model in columns.rotated else {"linespacing": 1.15}
        title.text(0, y, "\n".join(columns.titles[model]), ha="left", va="bottom", **rotated)
        x += columns.number
        if width := columns.width(model):
            ax = panel(fig, x, top, width, height)
            own = points[(points["Model"] == model)].dropna(subset=["row", "column"])
            grid = own.pivot_table(index="row", columns="column", values="fold", observed=True)
            with np.errstate(divide="ignore"):
                heatmap(ax, np.log2(grid.reindex(range(n_rows)).to_numpy(float)), cmap, (-FOLD, FOLD))
            ax.set_label(model)
            _draw_names(panel(fig, x, top + height, width, columns.foot - line), columns, model)
        if model == first:
            tree = panel(fig, x, columns.head - (_TREE + 0.2) * line, width, _TREE * line)
            _draw_tree(tree, columns.tree)
        x += width + 0.6 * line
    _draw_bars(fig, top + height, columns)


def _draw_numbers(ax: Axes, model: str, rows: pd.DataFrame, n_rows: int) -> None:
    """Write the number of the program in each row; the cosine of its match is the color behind it."""
    places = rows["row"].to_numpy(int)
    cosines, texts = np.full((n_rows, 1), np.nan), np.full(n_rows, "", dtype=object)
    cosines[places, 0], texts[places] = rows["cosine"], rows["program"].astype(str)
    ax.set(label=f"numbers {model}", xlim=(0, 1), ylim=(n_rows, 0))
    if (rows["row_program"] != rows["program"]).any():
        heatmap(ax, cosines, COSINES)
    write_rows(ax, 0.5, texts, ha="center")


def _draw_names(ax: Axes, columns: Columns, model: str) -> None:
    """Draw the color of each type, and its name if there is room."""
    height = ax.get_ylim()[0]
    ax.set(label=f"types {model}", xlim=(0, len(columns.types)))
    for i, (label, color) in enumerate(zip(columns.labels, columns.colors, strict=True)):
        ax.add_patch(Rectangle((i, 0.15 * style.line()), 1, _STRIP * style.line(), color=color, lw=0))
        if columns.is_named(model):
            ax.text(i + 0.5, min(0.8 * style.line(), height), label, rotation=90, ha="center", va="top")


def _draw_tree(ax: Axes, tree: np.ndarray) -> None:
    """Draw the dendrogram of the types. Each type is 10 units wide."""
    found = dendrogram(tree, no_plot=True)
    ax.plot(np.transpose(found["icoord"]), np.transpose(found["dcoord"]), color="0.3", lw=0.5, solid_joinstyle="miter")
    ax.set(label="dendrogram", xlim=(0, 10 * (len(tree) + 1)), ylim=(0, 1.02 * max(tree[:, 2].max(), 1e-9)))


def specific_programs(points: pd.DataFrame, types: list[str]) -> pd.DataFrame:
    """Return the rows of the programs with the largest fold in each type, if it is at least SPECIFIC."""
    best = points[points[CELL_TYPE].isin(types) & (points["fold"] >= SPECIFIC)]
    return best.sort_values(["fold", "program"], ascending=[False, True]).groupby(CELL_TYPE).head(_TOP)


def draw_types(fig: Figure, points: pd.DataFrame, columns: Columns, top: float, blocks: int) -> None:
    """Draw the programs that define each type: a bar with their fold in this type, their number and genes."""
    line, width = style.line(), style.page_width("double") / blocks
    down = -(-len(columns.types) // blocks)
    names = min(longest(columns.labels), 0.3 * width)
    labels = style.shorten_labels(columns.types, names)
    best = specific_programs(points, columns.types)
    fold, number = longest(f"{value:.1f}×" for value in best["fold"]), longest(map(str, points["program"]))
    numbers = (_BAR + 1.2) * line + fold + number  # width of an entry without genes
    room = width - names - 1.5 * line
    widths = [style.text_width(fit_genes(text, _LABEL * room, GENES)) for text in best["genes"]]
    genes = np.quantile(widths or [0], 0.8)
    entries = int(np.clip(room / (numbers + genes), 1, _TOP))
    each = room / entries
    by_type = {name: part.head(entries) for name, part in best.groupby(CELL_TYPE)}
    ax = panel(fig, 0, top + 1.5 * line, width * blocks, (down + 0.5) * line)
    ax.set_label("types")
    middle = {"va": "center_baseline"}
    for i, (name, label, color) in enumerate(zip(columns.types, labels, columns.colors, strict=True)):
        x, y = i // down * width + 0.3 * line, i % down * line
        ax.text(x + names, y + line / 2, label, ha="right", **middle)
        x += names + 0.6 * line
        if name not in by_type:
            ax.text(x, y + line / 2, NONE, ha="left", color="0.35", **middle)
        for row in by_type.get(name, points.head(0)).itertuples():
            length = _BAR * line * row.fold / best["fold"].max()
            ax.add_patch(Rectangle((x, y + 0.2 * line), length, 0.6 * line, color=color, lw=0))
            at = x + (_BAR + 0.2) * line + fold
            ax.text(at, y + line / 2, f"{row.fold:.1f}×", ha="right", color="0.35", **middle)
            at += 0.5 * line + number
            ax.text(at, y + line / 2, row.program, ha="right", **middle)
            ax.text(at + 0.4 * line, y + line / 2, fit_genes(row.genes, each - numbers, GENES), ha="left", **middle)
            x += each


def _draw_bars(fig: Figure, top: float, columns: Columns) -> None:
    """Draw the color bars below the genes."""
    line = style.line()
    top += 0.8 * line
    for cmap, lines, ticks in columns.bars:
        color_bar(panel(fig, 1.2 * line, top, columns.genes - 1.5 * line, 0.5 * line), cmap, "\n".join(lines), ticks)
        top += (_BAR_HEIGHT + len(lines)) * line
