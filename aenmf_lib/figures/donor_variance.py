"""The panels of the figure of donors that show what conditioning removes: the variance of the usages."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from aenmf_lib.figures import style
from aenmf_lib.figures.heatmaps import longest, panel
from aenmf_lib.figures.settings import MM, POINTS

SHARES = {"variance_by_donor": "donors, within types", "variance_by_type": "types"}  # column of cards -> between what
_LEAST = 1e-4  # left end of the axis of the variance between donors; smaller shares are drawn there


class VariancePlan:
    """Sizes in mm of the two panels, beside or (stacked) below each other, and the lines of their texts."""

    def __init__(self, names: dict[str, str], *, stacked: bool) -> None:
        """Divide the width of the page."""
        line, page = style.line(), style.page_width("double")
        self.stacked = stacked
        texts = {model: f"{'before' if model == 'AE_NMF' else 'after'}: {name}" for model, name in names.items()}
        most, n_lines = (0.35 * page, 5) if stacked else (0.27 * page, 2)
        self.labels = {model: style.wrap(text, most)[:n_lines] for model, text in texts.items()}
        self.left = max(map(longest, self.labels.values())) + 1.5 * line
        self.number = style.text_width("0.00 %") + line
        if stacked:
            self.width = page - self.left - self.number - 0.7 * line  # of a panel
            room = self.left + self.width - 1.5 * line  # of a title; "mean" is on the right
        else:
            room = self.width = (page - self.left - 2 * self.number - 2.5 * line) / 2
        self.titles = [style.wrap(f"usage variance between {text}", room) for text in SHARES.values()]
        self.row = max(2.2, 1.1 * max(map(len, self.labels.values())) + 0.4) * line  # height
        first, second = ((1.25 * len(lines) + 1.3) * line for lines in self.titles)
        panel = self.row * len(self.labels) + 2.8 * line
        self.tops = [first, first + panel + second] if stacked else [max(first, second)] * 2
        self.height = self.tops[1] + panel


def draw_variance(fig: style.Sheet, variance: pd.DataFrame, rows: VariancePlan, top: float) -> list[Axes]:
    """Draw the variance of the usages between donors and between types: one point per program, and the mean.

    Return one empty panel per letter.
    """
    line, names = style.line(), [*rows.labels]
    points = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
    axes = []
    for i, (quantity, title) in enumerate(zip(SHARES, rows.titles, strict=True)):
        left = rows.left + (0 if rows.stacked else i * (rows.width + rows.number + 2 * line))
        ax = panel(fig, left, top + rows.tops[i], rows.width, rows.row * len(names))
        wide = rows.width > 6 * line  # else there is no space for the tick in the middle
        logarithmic = quantity == "variance_by_donor"
        for row, model in enumerate(names):
            values = variance.loc[(variance["Model"] == model) & (variance["quantity"] == quantity), "value"]
            drawn, mean = (np.maximum(x, _LEAST * logarithmic) for x in (values, values.mean()))
            spread = row + 0.5 + 0.6 * (np.arange(len(values)) * 0.618034 % 1 - 0.5)
            ax.scatter(drawn, spread, s=5, color=style.color_of(model), alpha=0.6, lw=0, clip_on=False)
            ax.plot([mean, mean], [row + 0.12, row + 0.88], color="0", lw=1.2, clip_on=False)
            if len(values):
                text = f"{100 * values.mean():.2g} %"
                ax.annotate(text, (1, row + 0.5), (0.6 * line / MM * POINTS, 0), va="center_baseline", **points)
            if rows.stacked or not i:
                ax.annotate("\n".join(rows.labels[model]), (0, row + 0.5), (-0.5 * line / MM * POINTS, 0), va="center",
                            ha="right", linespacing=1, **points)  # fmt: skip
        ax.annotate("mean", (1, 0), (0.6 * line / MM * POINTS, 5), **points)
        if logarithmic:
            ax.set(xscale="log", xlim=(_LEAST, 1))
            ax.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["≤ 0.01", "", "1" * wide, "", "100"])
            ax.xaxis.set_minor_locator(NullLocator())
        else:
            ax.set_xticks([0, 0.5, 1], ["0", "50" * wide, "100"])
        ax.set(xlim=(_LEAST * logarithmic, 1), ylim=(len(names), 0), label=quantity)
        ax.set_xlabel("% of the variance" if wide else "%")
        ax.spines["bottom"].set_visible(True)
        start = 1.5 * line if rows.stacked else left  # of the title
        ax.set_title("\n".join(title), loc="left", x=(start - left) / rows.width)
        axes.append(panel(fig, start, top + rows.tops[i], 0.1, 0.1))
    return axes
