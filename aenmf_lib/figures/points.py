"""The points of the two benchmarks: checked, in one long table, with the names and limits that figures use."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.figures import style
from aenmf_lib.figures.labels import wrap_name
from aenmf_lib.figures.tables import check_table
from aenmf_lib.results import MODELS, RunInfo

BETTER = {CELL_TYPE: "higher is better", DONOR: "lower is better"}
METRICS = {"NMI": "NMI", "ARI": "ARI", "F1": "macro F1", "AUROC": "macro AUROC", "Accuracy": "accuracy"}
ABBREVIATIONS = "NMI, normalized mutual information; ARI, adjusted Rand index"  # for captions
AUROC = "AUROC, area under the receiver operating characteristic curve"
CLASSIFIERS = {  # name, marker
    "logistic_regression": ("logistic regression", "o"),
    "knn": ("k nearest neighbors", "s"),
    "random_forest": ("random forest", "^"),
    "random_forest_intelex": ("random forest of scikit-learn-intelex", "^"),
}
_BASELINES = {
    "PCA": "PCA of the matrix of the models, with {k} components",
    "Harmony": "Harmony, PCA corrected for {donor}",
}
CLUSTERING, CLASSIFICATION, RESOLUTION = "clustering", "classification", "resolution"  # benchmarks
_FILES = {  # benchmark: file, numbers of a run beside its scores, settings
    CLUSTERING: ("clustering_long.csv", ["seed"], ["n_neighbors", "resolution"]),
    CLASSIFICATION: ("classification_long.csv", ["seed", "fold"], ["min_cells_per_class", "max_cells"]),
    RESOLUTION: ("clustering_resolution.csv", ["seed", "resolution", "n_clusters"], ["n_neighbors"]),
}


def read_points(tables: Mapping[str, pd.DataFrame], shown: Mapping[str, Sequence[str]], run: RunInfo) -> pd.DataFrame:
    """Check the table of each benchmark; return one row per run and `shown` metric with ``value``.

    Labels of one class have no rows. Raises ValueError for a table with faults or of another run.
    """
    by = ["Model", "label", "classifier", "seed", "fold", "resolution", "n_clusters", "n_cells", "n_classes"]
    parts = []
    for benchmark, long in tables.items():
        (name, numbers, settings), metrics = _FILES[benchmark], shown[benchmark]
        check_table(long, name, ["label"], ["n_classes"], run)
        scored = long[long["n_classes"] >= 2]
        if len(scored):
            classifier = {"classifier": CLASSIFIERS} if benchmark == CLASSIFICATION else {}
            columns = ["Model", "label", "cell_type_in_training", *classifier, *settings]
            check_table(scored, name, columns, ["n_cells", *numbers, *metrics], **classifier)
        wide = scored.reindex(columns=[*by, *metrics]).assign(Model=scored["Model"].astype(str), benchmark=benchmark)
        parts.append(wide.melt(["benchmark", *by], metrics, "metric", "value"))
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def count_cells(tables: Mapping[str, pd.DataFrame]) -> str:
    """Return the numbers of cells of both benchmarks for `style.run_note`."""
    clustering, classification = (style.value_range(tables[name]["n_cells"]) for name in (CLUSTERING, CLASSIFICATION))
    return f"{clustering} cells ({classification} in the classification)"


def name_classifiers(found: Collection[str]) -> list[str]:
    """Return the names of the classifiers of a table."""
    return [name for kind, (name, _) in CLASSIFIERS.items() if kind in set(found)]


def mark_used(run: RunInfo, *tables: pd.DataFrame) -> RunInfo:
    """Return the run with the models that, according to the tables, were trained with cell types."""
    used = dict(run.used_cell_type)
    for table in tables:
        used |= dict.fromkeys(table["Model"][table["cell_type_in_training"] == True], True)  # noqa: E712
    return replace(run, used_cell_type=used)


def break_names(names: Mapping[str, str], width: float) -> dict[str, str]:
    """Return each name in at most two lines of `width` mm; if one needs more, all are shortened to one line."""
    lines = {model: wrap_name(name, width) for model, name in names.items()}
    if broken := [part for parts in lines.values() if len(parts) > 1 for part in parts]:  # wrap all at the widest part
        narrow = {model: wrap_name(name, max(map(style.text_width, broken))) for model, name in names.items()}
        lines |= {model: parts for model, parts in narrow.items() if len(parts) == 2}
    whole = all(len(parts) <= 2 and " ".join(parts) == names[model] for model, parts in lines.items())
    shown = {model: "\n".join(parts) for model, parts in lines.items()}
    if not whole or len({*shown.values()}) < len(shown):
        shown = dict(zip(names, style.shorten_labels(names.values(), 1.3 * width), strict=True))
    return shown


def describe_others(names: Iterable[str], run: RunInfo) -> str:
    """Return the sentence of a caption about the embeddings that are not models."""
    others = [model for model in names if model not in MODELS]
    donor = style.label_name(DONOR, run)
    donor = "the donor" if donor == "donor" else donor
    known = [_BASELINES[name].format(k=run.k or "k", donor=donor) for name in _BASELINES if name in others]
    files = [style.name_of(name) for name in others if name not in _BASELINES]
    known += [f"{style.join(files)}, read from {'a file' if len(files) == 1 else 'files'}"] if files else []
    return f"Other embeddings: {'; '.join(known)}" if known else ""


def limits(values: Iterable[float], origin: float = 0) -> tuple[float, float]:
    """Return the limits of an axis of scores: from the origin if values are near it, to 1 at most."""
    values = pd.Series(list(values), dtype=float)
    low, high = style.at_least(values.min(), values.max(), 0.02)
    pad = 0.06 * (high - low)
    start = low - pad
    if values.min() >= origin and start - origin < 0.4 * (high - origin):
        start = origin
    return start, min(high + pad, max(1, values.max()))


def list_unscored(run: RunInfo, *tables: pd.DataFrame) -> list[str]:
    """Return a sentence of the caption for each label with fewer than two classes in a table."""
    sentences = {}
    for long in tables:
        what = "value"
        if "min_cells_per_class" in long:
            what = f"class of at least {style.value_range(long['min_cells_per_class'])} cells"
        counts = long[long["n_classes"] < 2].groupby("label")["n_classes"].max().map({0: "no", 1: "one"})
        for label, column in style.label_columns(run).items():
            if label in counts:
                sentences[f"{column} has {counts[label]} {what} and was not scored"] = None
    return [*sentences]
