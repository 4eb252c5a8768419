"""Figures of the loss against the iteration."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from aenmf_lib.figures import style
from aenmf_lib.figures.ends import label_ends
from aenmf_lib.figures.labels import thin_ticks
from aenmf_lib.figures.settings import MM
from aenmf_lib.figures.style import NO_RUN
from aenmf_lib.figures.tables import check_run, check_table
from aenmf_lib.results import RunInfo

_NARROW = 12  # lines of text, the width from which names fit beside the panel


@style.figure
def figS1_training(history: pd.DataFrame, run: RunInfo = NO_RUN) -> style.Sheet:
    """Draw the loss of each model against the iteration, 89 mm wide.

    One line per model, with its name and last value. A model with one row (NMF, of which only the last value is known)
    is a marker. Table: the history in the order of the models and iterations.

    Parameters
    ----------
    history : from ``results.history``: ``Model, iteration, loss, relative_loss``
    """
    check_table(history, "training history", ["Model"], ["iteration", "loss", "relative_loss"])
    check_run(history, "training history", run)
    names = style.model_names(history["Model"], run)
    lines = {model: history[history["Model"] == model].sort_values("iteration") for model in names}
    single = [style.name_of(model) for model, line in lines.items() if len(line) == 1]
    caption = [
        "Loss of each model during its training: the objective, penalties included, divided by the mean squared norm "
        "of a cell. Numbers are the last values",
        *style.run_note(f"{run.n_cells:,} cells" if run.n_cells else "", run),
        f"Only the last value of {style.join(single)} is known (marker)" if single else "",
    ]
    height = 40 + 1.5 * len(lines) * style.line()
    fig = style.new_figure(pd.concat(lines.values(), ignore_index=True), "single", height, caption, names, run)
    ax = fig.subplots()
    for model, line in lines.items():
        marker = "o" if len(line) == 1 else None
        ax.plot(line["iteration"], line["relative_loss"], color=style.color_of(model), marker=marker, label=model)
    ax.set(label="training", xlabel="iteration", ylabel="relative loss")
    ends = [tuple(line[["iteration", "relative_loss"]].iloc[-1]) for line in lines.values()]
    texts = [f"{names[model]}  {y:.3f}" for model, (_, y) in zip(lines, ends, strict=True)]
    colors = [style.color_of(model) for model in lines]
    width = style.page_width("single")
    if width > _NARROW * style.line():
        label_ends(ax, ends, ["\n".join(style.wrap(text, 0.42 * width)) for text in texts], colors)
    else:  # no space for names beside the panel
        shown = style.shorten_labels(texts, width - 4 * style.line())
        fig.set_size_inches(fig.get_figwidth(), (height + len(shown) * style.line()) / MM)
        style.legend(fig, dict(zip(shown, colors, strict=True)))
    _set_ticks(ax)
    style.mark_cut_axis(ax, "y")
    return fig


@style.figure
def loss_curve(loss_history: Sequence[float]) -> style.Sheet:
    """Draw the loss of one fit against the iteration, 89 mm wide, for the training notebooks.

    Parameters
    ----------
    loss_history : ``loss_history_`` of a model: the objective, one value per iteration
    """
    if (loss := np.asarray(loss_history, dtype=float)).ndim != 1:
        raise ValueError(f"loss_history has shape {loss.shape}. Expected (n_iterations,). Pass model.loss_history_.")
    table = pd.DataFrame({"loss": loss}).rename_axis("iteration").reset_index()
    check_table(table, "loss_history", [], ["loss"])
    values = f"{len(table):,} values, the last {table['loss'].iloc[-1]:.6g}"
    caption = [f"Loss (objective, penalties included) at the start and after each iteration: {values}"]
    fig = style.new_figure(table, "single", 25 + 5 * style.line(), caption)
    ax = fig.subplots()
    ax.plot(table["iteration"], table["loss"], color="0.2", marker="o" if len(table) == 1 else None)
    ax.set(label="loss", xlabel="iteration", ylabel="loss")
    _set_ticks(ax)
    if len(table) == 1:
        ax.set_xticks([0], ["end"])  # scikit-learn reports only the last value
    style.mark_cut_axis(ax, "y")
    return fig


def _set_ticks(ax: Axes) -> None:
    """Set ticks that have space for their labels; iterations are whole numbers."""
    thin_ticks([ax])
    if isinstance(locator := ax.xaxis.get_major_locator(), MaxNLocator):
        locator.set_params(integer=True)
