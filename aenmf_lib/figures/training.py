"""TODO module docstring."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aenmf_lib.figures import layout, style, tables
from aenmf_lib.figures.layout import EDGE, LINE, SINGLE

log = logging.getLogger(__name__)


@layout.STYLE
def training(
    history: pd.DataFrame,
    *,
    k: int | None = None,
    n_cells: int | None = None,
    groups: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the loss of each model against the iteration.

    Parameters
    ----------
    history
        From ``results.history``: ``Model, iteration, loss, relative_loss``. A model with one row (of Base NMF only the
        end is known) is a marker.
    k, n_cells
        Rank of the models and number of cells, for the caption.
    groups
        Within what donors were compared, a value a model (``results.Embeddings.groups``): clusters are told of.

    Returns
    -------
    Figure, 89 mm wide: a line a model, named at its end with its last value.

    Raises
    ------
    ValueError
        From `drawn.training`.
    """
    lines = {str(model): line for model, line in tables.training(history).groupby("Model", sort=False)}
    ends = {model: (line["iteration"].iloc[-1], line["relative_loss"].iloc[-1]) for model, line in lines.items()}
    names = {model: f"{model} {loss:.3f}" for model, (_, loss) in ends.items()}
    note = [
        "" if n_cells is None else f"n = {n_cells:,} cells",
        style.rank(k),
        style.cluster_note(groups),
        "relative loss: what was minimized, penalties included, over the mean squared norm of a cell",
        "numbers: last values",
        "marker: only the end is known" if min(map(len, lines.values())) == 1 else "",
    ]
    left, top, high, lead = EDGE + 12, EDGE + 1, 45, 6
    wide = SINGLE - left - lead - max(map(layout.breadth, names.values())) - EDGE
    fig = layout.new_figure(SINGLE, top + high + 8, note)
    ax = layout.axes(fig, left, top, wide, high, "training")
    for model, line in lines.items():
        marker = "o" if len(line) == 1 else None
        ax.plot(line["iteration"], line["relative_loss"], color=style.COLORS[model], marker=marker, ms=3.5, label=model)
    ax.set(xlabel="iteration", ylabel="relative loss")
    _few_ticks(ax, 4, 7)
    low, upp = ax.get_ylim()
    ax.set(xlim=ax.get_xlim(), ylim=(low, upp))
    places = layout.spread_labels([(ends[model][1] - low) / (upp - low) * high for model in lines], LINE, 0, high)
    look = {"arrowstyle": "-", "lw": 0.6, "ls": ":", "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
    for model, place in zip(lines, places, strict=True):
        thread = {**look, "color": style.COLORS[model]}
        at = (1 + lead / wide, place / high)
        ax.annotate(names[model], ends[model], at, textcoords="axes fraction", va="center", arrowprops=thread, zorder=1)
    return fig


@layout.STYLE
def loss_curve(loss_history: Sequence[float]) -> Figure:
    """Draw the loss of one fit against the iteration, small, for the notebook that trains.

    Parameters
    ----------
    loss_history
        The model's ``loss_history_``: the trained loss, a value an iteration.

    Returns
    -------
    Figure, 89 mm wide.

    Raises
    ------
    ValueError
        The history is empty, not a list of numbers, or holds NaN or infinite values.
    """
    loss = np.asarray(loss_history, dtype=float)
    if loss.ndim != 1 or not len(loss) or not np.isfinite(loss).all():
        raise ValueError(
            f"loss_history has shape {loss.shape} and {(~np.isfinite(loss)).sum()} values that are NaN or infinite: "
            "expected one finite number an iteration."
        )
    fig = layout.new_figure(SINGLE, EDGE + 38, [f"{style.pluralize(len(loss), 'value')}, the last {loss[-1]:.6g}"])
    ax = layout.axes(fig, EDGE + 15, EDGE, SINGLE - 2 * EDGE - 17, 30, "loss")
    ax.plot(np.arange(len(loss)), loss, color="0.2", marker="o" if len(loss) == 1 else None, ms=3)
    ax.set(xlabel="iteration", ylabel="loss")
    _few_ticks(ax, 5, 5)
    if len(loss) == 1:
        ax.set_xticks([0], ["end"])  # scikit-learn tells its last value only
    return fig


def _few_ticks(ax: Axes, x: int, y: int) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(x, integer=True, steps=style.STEPS))
    ax.yaxis.set_major_locator(MaxNLocator(y, steps=style.STEPS))
