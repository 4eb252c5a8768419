"""Figures of the two benchmarks: clustering, resolution, classification and classes."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.figures import style
from aenmf_lib.figures.style import COLORS, DOUBLE, LINE, NO_RUN, RASTER, SINGLE, value_range
from aenmf_lib.figures.tables import check_columns, check_table
from aenmf_lib.results import RunInfo

_LABELS = {CELL_TYPE: "higher is better", DONOR: "lower is better"}  # rows of panels
_METRICS = {"ARI": "ARI", "NMI": "NMI", "F1": "macro F1", "AUROC": "macro AUROC", "Accuracy": "accuracy"}
_CLASSIFIERS = {  # name, marker
    "logistic_regression": ("logistic regression", "o"),
    "knn": ("k nearest neighbors", "s"),
    "random_forest": ("random forest", "^"),
    "random_forest_intelex": ("random forest of scikit-learn-intelex", "^"),
}
_RUN = ["n_cells", "n_classes", "cell_type_in_training"]


@style.figure
def clustering(long: pd.DataFrame, run: RunInfo = NO_RUN) -> Figure:
    """Draw how well Leiden clusters of each embedding agree with cell types and with donors, 89 mm wide.

    One row per label, one column per score, one point per seed, mean ± s.d. of the seeds. Table: one row per (Model,
    label, seed, metric) with ``value``, and ``mean`` and ``sd`` (ddof 1) over the seeds.

    Parameters
    ----------
    long : ``clustering_long.csv``, one row per (Model, label, seed)
    """
    by, settings, name = ["Model", "label"], ["n_neighbors", "resolution"], "clustering_long.csv"
    long, unscored = _leave_out(long, name, run)
    if long.empty:
        return style.new_figure(long, SINGLE, 2, [*style.run_note("", run), *unscored])
    points = _melt(long, name, ["ARI", "NMI"], by, ["seed"], settings)
    note = [
        *style.run_note(f"{value_range(long['n_cells'])} cells", run, long),
        f"Leiden seeds: {value_range(points.groupby([*by, 'metric']).size())}, "
        f"neighbors: {value_range(long['n_neighbors'])}, resolution: {value_range(long['resolution'])}",
        f"points: seeds; bars: mean{_error_bars(points)}",
        *unscored,
    ]
    return _draw_grid(points, note, SINGLE, 5.5, run)


@style.figure
def classification(long: pd.DataFrame, run: RunInfo = NO_RUN) -> Figure:
    """Draw how well classifiers predict cell types and donors from each embedding, 183 mm wide.

    One row per label, one column per score, one point per fit, mean ± s.d. of each classifier. The vertical line of a
    model is the mean of all its fits, the number in the published table. Table: one row per fit and metric with
    ``value``, ``mean`` and ``sd`` of its classifier, ``mean_all`` of its model.

    Parameters
    ----------
    long : ``classification_long.csv``, one row per fit (Model, label, classifier, seed, fold)
    """
    by, settings = ["Model", "label", "classifier"], ["min_cells_per_class", "max_cells"]
    long, unscored = _leave_out(long, name := "classification_long.csv", run)
    if long.empty:
        return style.new_figure(long, DOUBLE, 2, [*style.run_note("", run), *unscored])
    points = _melt(long, name, ["F1", "AUROC", "Accuracy"], by, ["seed", "fold"], settings)
    points = points.assign(mean_all=points.groupby(["Model", "label", "metric"])["value"].transform("mean"))
    fits, cap = points.groupby([*by, "metric"]).size(), int(long["max_cells"].max())
    runs = " × ".join(str(long[column].nunique()) for column in ("seed", "fold"))
    note = [
        *style.run_note(f"{value_range(long['n_cells'])} cells" + f" (max_cells = {cap:,})" * bool(cap), run, long),
        f"classes of at least {value_range(long['min_cells_per_class'])} cells",
        f"fits per model and classifier: {value_range(fits)} (seeds × folds: {runs})",
        f"points: fits; bars: mean{_error_bars(points)} of a classifier; vertical line: mean of all fits of a model",
        *unscored,
    ]
    return _draw_grid(points, note, DOUBLE, 10.5, run)


@style.figure
def resolution(curve: pd.DataFrame, run: RunInfo = NO_RUN) -> Figure:
    """Draw the agreement of Leiden clusters with the labels against the resolution, 89 mm wide.

    One row per label, one column per score, one line per model (mean of the seeds). Table: one row per (Model, label,
    seed, resolution, metric).

    Parameters
    ----------
    curve : ``clustering_resolution.csv``, one row per (Model, label, seed, resolution)
    """
    each, name = ["seed", "resolution", "n_clusters"], "clustering_resolution.csv"
    curve, unscored = _leave_out(curve, name, run)
    if curve.empty:
        return style.new_figure(curve, SINGLE, 2, [*style.run_note("", run), *unscored])
    points = _melt(curve, name, ["ARI", "NMI"], ["Model", "label"], each, ["n_neighbors"])
    points, titles = points.drop(columns=["mean", "sd"]), _titles(points)
    note = [
        *style.run_note(f"{value_range(curve['n_cells'])} cells", run, curve),
        f"Leiden seeds: {curve['seed'].nunique()}, neighbors: {value_range(curve['n_neighbors'])}",
        f"clusters: {value_range(curve['n_clusters'])}",
        *unscored,
    ]
    fig = style.new_figure(points, SINGLE, points["label"].nunique() * 42 + 2 * LINE, note, titles, run)
    for ax, scores in _panels(fig, points, run):
        sns.lineplot(scores, x="resolution", y="value", hue="Model", hue_order=list(titles), palette=COLORS, ax=ax,
                     errorbar=None, legend=False, marker="o", ms=2, mew=0, lw=0.8)  # fmt: skip
        ax.set(ylabel=scores["metric"].iloc[0], ylim=style.at_least(*ax.get_ylim(), 0.04))
        ax.locator_params(nbins=4, steps=style.STEPS)
    style.legend(fig, {title: COLORS[model] for model, title in titles.items()})
    return fig


@style.figure
def classes(by_class: pd.DataFrame, confusion: pd.DataFrame, run: RunInfo = NO_RUN) -> Figure:
    """Draw how well each cell type is predicted from each embedding, and which types it is mistaken for, 183 mm wide.

    One row per cell type; on the left F1, one point per model, on the right one panel per model with the share of the
    cells of a type (row) that were predicted as each type (column). Table: one row per (Model, class, predicted) with
    ``n_cells``, ``F1`` (mean over classifiers) and ``share`` (of the cells of all classifiers).

    Parameters
    ----------
    by_class, confusion : ``classification_by_class.csv`` and ``classification_confusion.csv``
    """
    points = _class_table(by_class, confusion)
    if points.empty:
        unscored = f"{style.label_columns(run)[CELL_TYPE]} has fewer than two classes and was not scored"
        return style.new_figure(points, DOUBLE, 2, [*style.run_note("", run), unscored])
    titles, first = style.titles(points["Model"], run.used_cell_type), points.drop_duplicates(["Model", "class"])
    cells = first.drop_duplicates("class").set_index("class")["n_cells"]  # sorted by name
    kinds = [name for kind, (name, _) in _CLASSIFIERS.items() if kind in set(by_class["classifier"])]
    note = [
        *style.run_note(f"{cells.sum():,} cells", run),
        f"mean of {', '.join(kinds)} over all folds and seeds",
        "color: share of each type (row) predicted as each type (column, in the order of the rows)",
    ]
    fig = style.new_figure(points, DOUBLE, len(cells) * LINE + 26, note, titles, run)
    f1, *panels = fig.subplots(1, 1 + len(titles), width_ratios=[1.2] + [1] * len(titles))
    f1.set(label="F1", xlim=(0, 1), ylim=(len(cells), 0), xlabel="F1", xticks=[0, 0.5, 1])
    f1.hlines(range(1, len(cells)), 0, 1, color="0.85", lw=0.4, zorder=0)
    style.label_rows(f1, style.shorten_labels(cells.index, 55))
    for i, ((model, title), ax) in enumerate(zip(titles.items(), panels, strict=True)):
        y = np.arange(len(cells)) + 0.5 + (i - (len(titles) - 1) / 2) * 0.18
        f1.scatter(first["F1"][first["Model"] == model], y, s=7, c=COLORS[model], lw=0, clip_on=False, zorder=3)
        grid = points[points["Model"] == model].pivot_table(index="class", columns="predicted", values="share")
        sns.heatmap(grid, ax=ax, cmap="Greys", vmin=0, vmax=1, cbar=False, xticklabels=False, yticklabels=False,
                    rasterized=len(points) > RASTER)  # fmt: skip
        ax.set(label=model, title=title, xlabel="predicted type", ylabel="")
        ax.spines[:].set_visible(True)
    style.label_rows(panels[-1], counts=cells)
    fig.colorbar(panels[0].collections[0], ax=panels, location="bottom", pad=0.02, shrink=0.4, aspect=30,
                 ticks=[0, 0.5, 1], label="share of the cells of a type")  # fmt: skip
    style.legend(fig, {model: COLORS[model] for model in titles})
    return fig


def _class_table(by_class: pd.DataFrame, confusion: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (Model, class, predicted) of cell types; no row if there are fewer than two types."""
    keys, by = ["Model", "label", "classifier", "class"], ["Model", "class"]
    names = "classification_by_class.csv", "classification_confusion.csv"
    check_columns(by_class, names[0], [*keys, "n_cells", "F1"])
    check_columns(confusion, names[1], [*keys, "predicted", "n_cells"])
    types, mistaken = (table[table["label"] == CELL_TYPE] for table in (by_class, confusion))
    if types["F1"].isna().all() and mistaken.empty:
        return pd.DataFrame(columns=[*by, "n_cells", "F1", "predicted", "share"])
    by_class, confusion = types, mistaken
    check_table(by_class, names[0], keys, ["n_cells", "F1"])
    check_table(confusion, names[1], [*keys, "predicted"], ["n_cells"])
    first, second = (set(table[by].astype(str).itertuples(index=False, name=None)) for table in (by_class, confusion))
    if first != second or not first:
        raise ValueError(
            f"The tables by class and of confusion contain {len(first)} and {len(second)} pairs of a model and a cell "
            f"type, of which {len(first & second)} are in both. Expected the same pairs. Run 06_benchmarks again."
        )
    means = by_class.groupby(by, as_index=False).agg(n_cells=("n_cells", "max"), F1=("F1", "mean"))
    counts = confusion.groupby([*by, "predicted"])["n_cells"].sum()
    names = sorted(means["class"].unique())
    every = pd.MultiIndex.from_product([means["Model"].unique(), names, names], names=counts.index.names)
    counts = counts.reindex(every, fill_value=0)
    share = (counts / counts.groupby(by).transform("sum")).rename("share").reset_index()
    return means.merge(share, on=by, validate="one_to_many")


def _melt(long: pd.DataFrame, name: str, metrics: list[str], by: list[str], each: list[str], settings: list[str]):
    """Check a table of scores; return one row per run and metric, with mean and s.d. over the runs of a group `by`."""
    check_table(long, name, [*by, *_RUN, *settings], [*each, *metrics], classifier=_CLASSIFIERS)
    points = long.melt(id_vars=[*by, *each, *_RUN], value_vars=metrics, var_name="metric", value_name="value")
    runs = points.groupby([*by, "metric"])["value"]
    return points.assign(mean=runs.transform("mean"), sd=runs.transform("std"))


def _titles(points: pd.DataFrame) -> dict[str, str]:
    """Return the title of each model, with † if it was trained with cell types and is scored against them."""
    trained = points["Model"][(points["label"] == CELL_TYPE) & points["cell_type_in_training"]]
    return style.titles(points["Model"], dict.fromkeys(trained, True))


def _leave_out(long: pd.DataFrame, name: str, run: RunInfo) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of the labels with two classes or more, and a clause of the caption for each other label."""
    check_table(long, name, ["label"], ["n_classes"])
    columns, few = style.label_columns(run), long[long["n_classes"] < 2]
    what = "value"
    if "min_cells_per_class" in long:
        what = f"class of at least {value_range(long['min_cells_per_class'])} cells"
    counts = few.groupby("label")["n_classes"].max().map({0: "no", 1: "one"})
    clauses = [
        f"{columns[label]} has {counts[label]} {what} and was not scored" for label in columns if label in counts
    ]
    return long.drop(few.index), clauses


def _error_bars(points: pd.DataFrame) -> str:
    """Return what the error bars show; a single run has none."""
    return " ±\u00a0s.d. (ddof\u00a01)" if points["sd"].notna().any() else " (a single run: no s.d.)"


def _panels(fig: Figure, points: pd.DataFrame, run: RunInfo, **options) -> Iterator[tuple[Axes, pd.DataFrame]]:
    """Yield the axes and the scores of each label (rows) and metric (columns)."""
    labels, metrics = [label for label in _LABELS if label in set(points["label"])], points["metric"].unique()
    for label, row in zip(labels, fig.subplots(len(labels), len(metrics), squeeze=False, **options), strict=True):
        scores, name = points[points["label"] == label], style.shorten_labels([style.label_titles(run)[label]], 28)[0]
        title = f"{name} ({value_range(scores['n_classes'])} classes): {_LABELS[label]}"
        row[0].set_title(title, loc="left", weight="bold", pad=5)
        for metric, ax in zip(metrics, row, strict=True):
            ax.set_label(f"{label} {metric}")
            yield ax, scores[scores["metric"] == metric]


def _draw_grid(points: pd.DataFrame, note: Sequence[str], width: float, band: float, run: RunInfo) -> Figure:
    """Draw scores as points with mean ± s.d.; each model has `band` mm of the height of a panel."""
    titles = _titles(points)
    kinds = {kind: _CLASSIFIERS[kind] for kind in _CLASSIFIERS if kind in set(points.get("classifier", ()))}
    height = points["label"].nunique() * (len(titles) * band + 13) + (2 * LINE if kinds else LINE)
    fig = style.new_figure(points, width, height, note, titles, run)
    for ax, scores in _panels(fig, points, run, sharey="row"):
        _draw_scores(ax, scores, list(titles), list(kinds))
        ax.set(xlabel=_METRICS[scores["metric"].iloc[0]], ylabel="")
        ax.set_yticks(range(len(titles)), [_titles(scores).get(model, model) for model in titles])
    if kinds:
        style.legend(fig, dict.fromkeys((name for name, _ in kinds.values()), "0.3"), dict(kinds.values()))
    return fig


def _draw_scores(ax: Axes, points: pd.DataFrame, models: list[str], kinds: list[str]) -> None:
    """Draw the scores of one label and metric: runs in the order of their seeds, and below them mean ± s.d."""
    points = points.sort_values([column for column in ("seed", "fold") if column in points])
    center, height, by, shapes = points["Model"].map(models.index), 0.8, ["Model"], {}
    if kinds:
        offset = points["classifier"].map(kinds.index) - (len(kinds) - 1) / 2
        center, height, by = center + 0.3 * offset, 0.27, ["Model", "classifier"]
        shapes = {"style": "classifier", "markers": {kind: _CLASSIFIERS[kind][1] for kind in kinds}}
        rows = points.drop_duplicates("Model")
        y = rows["Model"].map(models.index)
        ax.vlines(rows["mean_all"], y - 0.42, y + 0.42, rows["Model"].map(COLORS), lw=0.7, zorder=1)
    runs = points.groupby(by)["value"]
    place = runs.cumcount() / (runs.transform("size") - 1).clip(lower=1)  # 0 to 1
    sns.scatterplot(
        points.assign(y=center + height * (place / 2 - 0.45)), x="value", y="y", hue="Model", palette=COLORS, **shapes,
        s=6, alpha=0.4, linewidth=0, legend=False, rasterized=len(points) > RASTER, zorder=2, ax=ax,
    )  # fmt: skip
    bars = points.assign(y=center + 0.36 * height).drop_duplicates(by)  # below the points, to hide none
    ax.vlines(bars["mean"], bars["y"] - 0.16 * height, bars["y"] + 0.16 * height, bars["Model"].map(COLORS), lw=1.2)
    bars = bars.dropna(subset="sd")
    ax.hlines(bars["y"], bars["mean"] - bars["sd"], bars["mean"] + bars["sd"], bars["Model"].map(COLORS), lw=0.8)
    for i in range(1, len(models)):
        ax.axhline(i - 0.5, color="0.85", lw=0.4, zorder=0)
    ax.set(xlim=style.at_least(*ax.get_xlim(), 0.01 if kinds else 0.04), ylim=(len(models) - 0.5, -0.5))
    ax.locator_params("x", nbins=5 if kinds else 3, steps=style.STEPS)
    ax.tick_params(axis="y", length=0)
