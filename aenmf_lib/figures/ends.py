"""Names of lines, written at the right of a panel, each at the height of the end of its line."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import offset_copy
from scipy.optimize import isotonic_regression

from aenmf_lib.figures import style
from aenmf_lib.figures.settings import MM


def label_ends(ax: Axes, ends: Sequence[tuple[float, float]], texts: Sequence[str], colors: Sequence[str]) -> None:
    """Write texts at the right of a panel, in the order of the ends (x, y) of their lines, without overlap.

    A thin line joins each text to its end. Call this function when all lines are drawn and the limits are set.
    """
    fig = ax.figure.figure
    if engine := fig.get_layout_engine():
        engine.execute(fig)  # sets the height of the panel
    step = style.line() * max(text.count("\n") + 1 for text in texts) / (ax.bbox.height / fig.dpi * MM)
    at = ax.transAxes.inverted().transform(ax.transData.transform(np.asarray(ends, dtype=float)))[:, 1]
    order = np.argsort(at, kind="stable")
    spread = np.arange(len(at)) * step
    low = min(step / 2, 0.5)
    at[order] = isotonic_regression(at[order] - spread).x.clip(low, max(1 - low - spread[-1], low)) + spread
    place = offset_copy(ax.transAxes, fig, x=1.2 * style.line() / MM)
    for end, height, text, color in zip(ends, at, texts, colors, strict=True):
        join = {"arrowstyle": "-", "color": color, "lw": 0.4, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
        ax.annotate(text, end, (1, height), textcoords=place, color=color, va="center", arrowprops=join,
                    annotation_clip=False, linespacing=1)  # fmt: skip
