"""What does conditioning keep of the cell types, and remove of what it is told? The figure of a study."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aenmf_lib.conditioning import baselines, variants
from aenmf_lib.data.preprocessing import CELL_TYPE
from aenmf_lib.figures import layout, style
from aenmf_lib.figures.layout import DOUBLE, EDGE, LINE

# score -> its name; the last on donors held out
PANELS = {
    "NMI": "clusters (NMI)",
    "knn": "15 neighbors (F1)",
    "unseen_NMI": "clusters, donors held out (NMI)",
}
COLORS = {**style.COLORS, baselines.PCA: "#999999", baselines.HARMONY: "#CC79A7", baselines.LINEAR_SCVI: "#D55E00"}
_READ = {  # what training read -> mark, words
    CELL_TYPE: ("o", "trained with cell_type"),
    "clusters": ("D", "with clusters it found"),
    "none": ("^", "without labels"),
}
_LEAST = 0.1  # of an axis, so that small differences look small


def drawn(table: pd.DataFrame) -> pd.DataFrame:
    """Give a row a point: ``on, Model, strength, labels, gene_weights, score, type, type_std, on_value, on_std``.

    Raises
    ------
    ValueError
        The table has no row, or lacks a column.
    """
    columns = [
        "on",
        *variants.COLUMNS,
        *(f"{score}_{end}" for score in PANELS for end in ("type", "on", "type_std", "on_std")),
    ]
    if table.empty or (lacking := [name for name in columns if name not in table]):
        raise ValueError(
            f"the table of the study {'has no row' if table.empty else f'lacks {lacking[0]!r}'}: give it as "
            "study.summarize makes it."
        )
    parts = [
        table[["on", *variants.COLUMNS, "n_starts"]].assign(
            score=score,
            type=table[f"{score}_type"],
            type_std=table[f"{score}_type_std"],
            on_value=table[f"{score}_on"],
            on_std=table[f"{score}_on_std"],
        )
        for score in PANELS
    ]
    return pd.concat(parts, ignore_index=True).dropna(subset=["type", "on_value"])


@layout.STYLE
def conditioning(table: pd.DataFrame, *, k: int | None = None) -> Figure:
    """Draw what each model keeps of the types over what it leaves of the donor.

    Parameters
    ----------
    table
        From `study.summarize`.
    k
        Rank of the models, for the caption.

    Returns
    -------
    Figure, 183 mm wide: a row a column conditioned on, a panel a score; a color a model, a line its strengths from the
    published weights on, mean ± s.d. over the starts.

    Raises
    ------
    ValueError
        From `drawn`.
    """
    points = drawn(table)
    names, kinds = list(dict.fromkeys(points["on"])), set(points["Model"])
    models, reads = (
        [name for name in COLORS if name in kinds],
        [name for name in _READ if name in set(points["labels"])],
    )
    key = layout.Legend(
        [*models, *(_READ[name][1] for name in reads)],
        [*(COLORS[name] for name in models), *["#404040"] * len(reads)],
        ["o"] * len(models) + [_READ[name][0] for name in reads],
        DOUBLE - 2 * EDGE,
    )
    left, gap, high = EDGE + 10, 13, 42
    wide = (DOUBLE - left - EDGE - (len(PANELS) - 1) * gap) / len(PANELS)
    pitch = 2 * LINE + 2 + high + 10
    note = [
        style.rank(k),
        f"starts: {style.format_range(points['n_starts'])}",
        "bars: ±\u00a0s.d. over the starts" if points["type_std"].notna().any() else "one start: no s.d.",
        "numbers: strength of the penalties, 0 the published weights",
        *(["w: genes weighted"] if (points["gene_weights"] != "none").any() else []),
        *(["dotted: what the types alone tell"] if baselines.CELL_TYPE_ONLY in kinds else []),
    ]
    fig = layout.new_figure(DOUBLE, EDGE + len(names) * pitch + key.height, note)
    for row, on in enumerate(names):
        y = EDGE + row * pitch
        layout.text(fig, left, y, f"Conditioned on {on}", weight="bold")
        for column, (score, name) in enumerate(PANELS.items()):
            of = points[(points["on"] == on) & (points["score"] == score)]
            x = left + column * (wide + gap)
            layout.text(fig, x, y + LINE + 1, name)
            ax = layout.axes(fig, x, y + 2 * LINE + 2, wide, high, f"{on} {score}")
            types, of = of[of["Model"] == baselines.CELL_TYPE_ONLY], of[of["Model"] != baselines.CELL_TYPE_ONLY]
            for on_value in types["on_value"]:
                ax.axvline(on_value, color="#404040", lw=0.8, ls=":")
            for point in of.itertuples():
                ax.errorbar(
                    point.on_value, point.type, xerr=np.nan_to_num(point.on_std), yerr=np.nan_to_num(point.type_std),
                    fmt=_READ[point.labels][0], ms=3.5, mew=0, color=COLORS[point.Model], elinewidth=0.5,
                )  # fmt: skip
            for model in variants.CONDITIONAL:
                path = of[(of["Model"] == model) & (of["gene_weights"] == "none")].sort_values("strength")
                path = path[(path["labels"] == CELL_TYPE) | (path["strength"] == 0)]
                ax.plot(path["on_value"], path["type"], color=COLORS[model], lw=0.8, zorder=1)
            low, upp = layout.at_least(*ax.get_xlim(), _LEAST)
            ax.set(xlim=(low, upp) if low >= 0 else (-0.03 * upp, upp), ylim=layout.at_least(*ax.get_ylim(), _LEAST))
            _number(ax, of)
            ax.set(xlabel=f"{on} ← lower is better", ylabel="" if column else "cell type → higher is better")
    key.draw(fig, EDGE, EDGE + len(names) * pitch)
    return fig


def _number(ax: Axes, of: pd.DataFrame) -> None:
    """Write strengths beside their points, but for points that lie on one that is told."""
    told = []
    for point in of.itertuples():
        told_of = [f"{point.strength:g}"] if point.Model in variants.CONDITIONAL else []
        told_of += ["w"] if point.gene_weights != "none" else []
        at = ax.transLimits.transform((point.on_value, point.type))
        if told_of and all(np.abs(at - other).max() > 0.05 for other in told):
            told.append(at)
            ax.annotate(" ".join(told_of), (point.on_value, point.type), xytext=(2.5, 2), textcoords="offset points",
                        size=5, color=COLORS[point.Model])  # fmt: skip
