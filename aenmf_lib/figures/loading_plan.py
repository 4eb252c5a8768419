"""What the figure of loadings shows and where: programs, genes and gene sets that fit on a page."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from aenmf_lib.figures import style
from aenmf_lib.figures.heatmaps import PAGE, SPECIFIC, choose_programs, longest

SETS = 14  # gene sets that are drawn
SIGNIFICANT = 0.05  # gene sets with a smaller false discovery rate are drawn
LABELS = ("weight / largest weight of the program", "−log10 false discovery rate", "genes in common")  # of the keys
ALL_TYPES = "all types"  # group of the programs that no type uses SPECIFIC times as much as the mean of types
HEADS = ("program", "used most by")  # names of the rows above the heat map
_KEYS = 3.2  # height of the color bars without their labels, in lines of text
HIGH = 10  # programs with a marker among their first genes are shown before other programs
_LEFT = 0.33  # largest share of the width for names of genes and gene sets
_COLUMN = (0.95, 4)  # smallest and largest width of a column, in lines of text
_LINES = 3  # of the name of a group above its columns
_MOST = 8  # largest number of genes per program
_MARKERS = 0.25  # largest share of the rows for markers that are not among the largest genes
_ROWS = 20  # genes that are shown even if the page becomes higher than PAGE
_HEAD, _GAP = 11, 1.7  # most space above the genes, and above the gene sets, in lines of text
_TABLE = [
    "part", "name", "program", "row", "column", "gene", "rank", "weight", "relative_weight", "marker_of", "overlap",
    "size", "fdr", "shared_genes",
]  # fmt: skip


@dataclass
class Plan:
    """What is drawn where. Lengths are in mm."""

    programs: list[int]  # in the order of the columns
    groups: list[str]  # top type of each column
    n_genes: int  # per program
    genes: pd.DataFrame  # one row per row of the heat map: gene, symbol, marker_of
    sets: list[str]  # in the order of the rows
    tested: bool  # whether gene sets were given
    table: pd.DataFrame  # of the figure

    def __post_init__(self) -> None:
        """Divide the page."""
        line, page = style.line(), style.page_width("double")

        # names on the left of the heat map
        self.symbols = style.shorten_labels(self.genes["symbol"], 0.2 * page)
        self.symbol_width = max(style.text_width(text, "bold") for text in self.symbols)
        markers = longest(self.genes["marker_of"]) + line if self.genes["marker_of"].any() else 0
        wanted = max(self.symbol_width + markers, longest(map(style.printable, self.sets))) + 0.5 * line
        least = max(longest(HEADS) + line, self.symbol_width + 0.5 * line)
        self.left = max(min(wanted, _LEFT * page), least)
        room = self.left - self.symbol_width - line
        self.marker_width = room if room > 3 * line else 0.0  # of the types of the markers; 0 without space for them

        # columns, and the first column of each group of programs with the same top type
        self.n_columns = len(self.programs)
        self.column = min((page - self.left - 1.3 * line) / self.n_columns, _COLUMN[1] * line)
        starts = [i for i, group in enumerate(self.groups) if i == 0 or group != self.groups[i - 1]]
        self.starts = [*starts, self.n_columns]

        # names of the groups above their columns: flat in at most three lines, or rotated
        names = [style.printable(self.groups[i] or "no type") for i in starts]
        widths = np.diff(self.starts) * self.column - 0.5 * line
        flat = [style.wrap(name, width) for name, width in zip(names, widths, strict=True)]
        self.is_flat = all(
            longest(name.split()) < width and len(lines) <= _LINES
            for name, width, lines in zip(names, widths, flat, strict=True)
        )
        self.group_labels = flat if self.is_flat else _wrap_rotated(names, widths)
        tallest = max(len(lines) * line if self.is_flat else longest(lines) for lines in self.group_labels)
        if self.tested and self.left - longest(HEADS) < 2.7 * line:  # the letter of the panel is above them
            tallest = max(tallest, 2.1 * line)
        numbers = longest(map(str, self.programs))
        self.head = tallest + (line if numbers < self.column else numbers) + 1.3 * line

        # gene sets below the genes, and the keys: below each other if a word is wider than a third of the page
        self.top_of_sets = self.head + (len(self.genes) + _GAP) * line
        rows = max(len(self.sets), 1) + 0.3 if self.tested else -_GAP + 0.3
        self.top_of_keys = self.top_of_sets + rows * line
        labels, room = LABELS if self.sets else LABELS[:1], page - 2 * line
        self.keys_below = longest(" ".join(labels).split()) > room / 3 - 2 * line
        self.key_width = room / (1 if self.keys_below else 3 if self.sets else 2)
        self.key_labels = [style.wrap(label, self.key_width - 2 * line) for label in labels]
        heights = [(_KEYS + len(lines)) * line for lines in self.key_labels]
        self.tops_of_keys = [0, *np.cumsum(heights)[:-1]] if self.keys_below else [0] * len(heights)
        self.height = self.top_of_keys + (sum(heights) if self.keys_below else max(heights))


def _wrap_rotated(names: list[str], widths: np.ndarray) -> list[list[str]]:
    """Return the lines of each rotated name; one shortened line if they are wider than its columns."""
    line, length = style.line(), (_HEAD - 3.5) * style.line()
    labels = []
    for name, short, width in zip(names, style.shorten_labels(names, length), widths, strict=True):
        lines = style.wrap(name, length)
        fits = len(lines) * 1.2 * line <= width + 0.5 * line and longest(name.split()) <= length
        labels.append(lines if fits else [short])
    return labels


def make_plan(
    genes: pd.DataFrame, cards: pd.DataFrame, enrichment: pd.DataFrame, usage: pd.DataFrame | None = None
) -> Plan:
    """Choose the programs, genes and gene sets that fit on a page."""
    line, width = style.line(), style.page_width("double")
    tested, significant = len(enrichment) > 0, enrichment[enrichment["fdr"] < SIGNIFICANT]
    n_sets = min(significant["gene_set"].nunique(), SETS)
    n_rows = max(int(PAGE / line - _HEAD - _KEYS - 2 - (n_sets + _GAP if tested else 0)), _ROWS)
    largest = genes.groupby("program")["weight"].transform("max")
    marker_of = genes["symbol"].astype(str).str.upper().map(_markers()).fillna("")
    genes = genes.assign(relative_weight=genes["weight"] / largest, marker_of=marker_of)
    with_markers = genes[(genes["marker_of"] != "") & (genes["rank"] <= HIGH)]
    with_markers = with_markers.sort_values("relative_weight", ascending=False, kind="stable")["program"].tolist()
    left = max(_LEFT * width, longest(HEADS) + line)
    n_programs = int((width - left - 1.3 * line) / (_COLUMN[0] * line))
    for n in range(min(n_programs, len(cards)), 0, -1):  # as many programs as fit with at least two genes
        programs = choose_programs(cards, n, with_markers)
        n_genes, rows = _choose_genes(genes[genes["program"].isin(programs)], n_rows)
        if n_genes > 1:
            break
    chosen = cards[cards["program"].isin(programs)].astype({"top_type": str})
    chosen = chosen.assign(group=chosen["top_type"].mask(chosen["program"].isin(_of_all_types(usage)), ALL_TYPES))
    chosen = chosen.assign(last=chosen["group"].map({ALL_TYPES: 1, "": 2}).fillna(0)).sort_values(
        ["last", "group", "variance_by_type", "program"], ascending=[True, True, False, True], kind="stable"
    )
    columns = {program: column for column, program in enumerate(chosen["program"])}
    shown = genes[genes["program"].isin(programs) & genes["gene"].isin(rows)]
    shown = shown.assign(column=shown["program"].map(columns))
    best = shown.sort_values(["relative_weight", "column"], ascending=[False, True]).drop_duplicates("gene")
    best = best.sort_values(["column", "relative_weight"], ascending=[True, False], kind="stable", ignore_index=True)
    shown = shown.merge(best[["gene"]].assign(row=best.index), on="gene").sort_values(["row", "column"])

    dots = significant[significant["program"].isin(programs)]
    dots = dots.assign(column=dots["program"].map(columns)).sort_values(["fdr", "column"], kind="stable")
    first = dots.drop_duplicates("gene_set").head(SETS).sort_values(["column", "fdr"], kind="stable")
    sets = {name: row for row, name in enumerate(first["gene_set"])}
    dots = dots[dots["gene_set"].isin(sets)]
    dots = dots.assign(row=dots["gene_set"].map(sets)).sort_values(["row", "column"])
    parts = [shown.assign(part="gene", name=shown["symbol"]), dots.assign(part="gene set", name=dots["gene_set"])]
    table = pd.concat([part for part in parts if len(part)], ignore_index=True).reindex(columns=_TABLE)
    return Plan([*columns], chosen["group"].tolist(), n_genes, best[["symbol", "marker_of"]], [*sets], tested, table)


def _of_all_types(usage: pd.DataFrame | None) -> list[int]:
    """Return the programs that no type uses SPECIFIC times as much as the mean of the types."""
    if usage is None or not len(usage):
        return []
    means = usage.groupby("program")["mean_usage"].agg(["mean", "max"])
    return [*means.index[(means["mean"] > 0) & (means["max"] < SPECIFIC * means["mean"])]]


def _choose_genes(genes: pd.DataFrame, n_rows: int) -> tuple[int, set[str]]:
    """Return the number of largest genes per program for which there is space, and these genes with markers."""
    best = genes.sort_values("relative_weight", ascending=False, kind="stable").drop_duplicates("gene")
    markers = best[best["marker_of"] != ""]["gene"].head(int(_MARKERS * n_rows))
    unions = [{*genes[genes["rank"] <= n]["gene"], *markers} for n in range(1, _MOST + 1)]
    n_genes = max(sum(len(union) <= n_rows for union in unions), 1)
    return n_genes, unions[n_genes - 1]


def _markers() -> dict[str, str]:
    """Return the cell type of each marker of the settings; genes are in upper case."""
    markers = {}
    for name, genes in style.current().markers.items():
        for gene in genes:
            markers.setdefault(gene.upper(), style.printable(name))
    return markers
