"""The figure of the comparison with other solvers."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.ticker import LogLocator, NullLocator

from aenmf_lib.figures import style
from aenmf_lib.figures.labels import place_labels, thin_ticks

OWN = ("AE-NMF", "model 1", "model 2", "untied model")
NO_ERROR = ("model 2",)  # reconstructs a cell with the U of its donor, which ‖X − H W‖ does not include
PANELS = {"peers_kang2018_all_k80": "14,044 genes, 80 programs", "peers_kang2018_2000_k20": "2,000 genes, 20 programs"}


@style.figure
def speed(peers: Mapping[str, pd.DataFrame]) -> style.Sheet:
    """Draw the error of each solver against its time, 183 mm wide, one panel per set of genes.

    Parameters
    ----------
    peers : tables of runs, from ``peers.py``, by the names in `PANELS`
    """
    parts = []
    for name, title in PANELS.items():
        runs = peers[name].dropna(subset=["seconds"])
        runs = runs[~runs["solver"].isin(NO_ERROR)].groupby("solver", sort=False)
        table = runs["seconds"].agg(["median", "min", "max"]).assign(error=runs["relative_error"].median())
        parts.append(table.reset_index().assign(cells=title, runs=runs.size().to_numpy()))
    table = pd.concat(parts, ignore_index=True)
    caption = [
        "Time and error of the solvers on the same cells (Kang et al. 2018), until each stops by its own rule; to the "
        "left is faster, and below is more accurate",
        f"Blue: solvers of this project. Points are medians of {style.value_range(table['runs'])} runs; lines join the "
        "fastest and the slowest run",
        f"Not drawn: {', '.join(NO_ERROR)}, whose reconstruction is not H W",
    ]
    n_columns = min(int(style.page_width("double") // (25 * style.line())) or 1, len(PANELS))
    height = (25 + 12 * style.line()) * len(PANELS) / n_columns
    fig = style.new_figure(table, "double", height, caption)
    axes = fig.subplots(len(PANELS) // n_columns, n_columns, squeeze=False).ravel()
    points = dict(list(table.groupby("cells")))
    for ax, title in zip(axes, PANELS.values(), strict=True):
        of_panel = points[title]
        ax.hlines(of_panel["error"], of_panel["min"], of_panel["max"], _colors(of_panel), lw=1)
        ax.scatter(of_panel["median"], of_panel["error"], s=16, color=_colors(of_panel))
        ax.set(xscale="log", xlabel="seconds (fewer are better)", ylabel="error (lower is better)", label=title)
        ax.set_title(title, loc="left")
        ax.margins(0.15)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
    thin_ticks(axes)
    style.letters(axes)
    for ax, title in zip(axes, PANELS.values(), strict=True):
        style.mark_cut_axis(ax, "y")
        of_panel = points[title]
        place_labels(ax, of_panel["median"], of_panel["error"], list(of_panel["solver"]), _colors(of_panel))
    return fig


def _colors(points: pd.DataFrame) -> list[str]:
    """Return the color of each point: that of model 1 for the solvers of this project."""
    own = style.color_of("CAE_NMF1")
    return [own if solver in OWN else "0.35" for solver in points["solver"]]
