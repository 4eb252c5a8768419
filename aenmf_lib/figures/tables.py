"""What does each figure draw? The checked table behind the figure of the same name, written beside it as csv."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR, LABELS
from aenmf_lib.results import schema

CLUSTERING_METRICS = ("ARI", "NMI")
CLASSIFICATION_METRICS = ("F1", "AUROC", "Accuracy")
CLASSIFIERS = ("logistic_regression", "knn", "random_forest", "random_forest_intelex")
NO_TYPE = "no type"  # of cells without one, in the UMAP
MAX_POINTS = 50_000  # cells in a UMAP panel; of more, a sample is drawn
SEED = 0  # of that sample, and of the order in which cells are drawn


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a csv; errors about it, here and in what is made from it, name the file.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is empty or no csv.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: run 06_benchmarks first, or name the folder of another run.")
    try:
        table = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table ({error}): delete it and run 06_benchmarks again.") from error
    table.attrs["source"] = str(path)
    return table


def model_files(folder: str | Path) -> list[Path]:
    """Find the results-only files of a run, in a fixed order.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    files = sorted(Path(folder).glob("*nmf*_k*.h5ad"))
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no results file of a model (as base_nmf_k80.h5ad): train first (02 to 05), or name the "
            "folder of another run."
        )
    return files


def clustering(long: pd.DataFrame) -> pd.DataFrame:
    """Give a row per (Model, label, seed, metric): ``value``, and ``mean`` and ``sd`` (ddof 1) over the seeds.

    Parameters
    ----------
    long
        ``clustering_long.csv``.

    Raises
    ------
    ValueError
        The table lacks a column, has no row, or holds an unknown model or label, or a score that is no number.
    """
    check_table(
        long, [*_LONG, *CLUSTERING_METRICS, "n_neighbors", "resolution"], CLUSTERING_METRICS, "clustering_long.csv"
    )
    return _scores(long, CLUSTERING_METRICS, ["Model", "label"], ["seed"])


def classification(long: pd.DataFrame) -> pd.DataFrame:
    """Give a row per fit and metric: ``value``, ``mean`` and ``sd`` of its classifier, ``mean_all`` of its model.

    Parameters
    ----------
    long
        ``classification_long.csv``.

    Raises
    ------
    ValueError
        As `clustering`; or the table holds an unknown classifier.
    """
    needed = [*_LONG, "classifier", "fold", *CLASSIFICATION_METRICS, "min_cells_per_class", "max_cells"]
    check_table(long, needed, CLASSIFICATION_METRICS, "classification_long.csv")
    _known(long["classifier"], CLASSIFIERS, "classifier", _source(long, "classification_long.csv"))
    points = _scores(long, CLASSIFICATION_METRICS, ["Model", "label", "classifier"], ["seed", "fold"])
    return points.assign(mean_all=points.groupby(["Model", "label", "metric"])["value"].transform("mean"))


def resolution(curve: pd.DataFrame) -> pd.DataFrame:
    """Give a row per (Model, label, seed, resolution, metric).

    Parameters
    ----------
    curve
        ``clustering_resolution.csv``.

    Raises
    ------
    ValueError
        As `clustering`.
    """
    needed = [*_LONG, *CLUSTERING_METRICS, "n_clusters", "n_neighbors", "resolution"]
    check_table(curve, needed, [*CLUSTERING_METRICS, "resolution"], "clustering_resolution.csv")
    keep = ["Model", "label", "seed", "resolution", "n_clusters", "n_cells", "n_classes", "cell_type_in_training"]
    return curve.melt(id_vars=keep, value_vars=list(CLUSTERING_METRICS), var_name="metric", value_name="value")


def classes(by_class: pd.DataFrame, confusion: pd.DataFrame) -> pd.DataFrame:
    """Give a row per (Model, class, predicted): ``n_cells`` and ``F1`` of the cell type, and ``share`` of its cells.

    F1 is the mean over classifiers; the share is of the cells of all of them.

    Parameters
    ----------
    by_class, confusion
        ``classification_by_class.csv`` and ``classification_confusion.csv``.

    Raises
    ------
    ValueError
        As `clustering`; or the tables are not of the same cell types.
    """
    keys = ["Model", "label", "classifier", "class"]
    check_table(by_class, [*keys, "n_cells", "F1"], ["n_cells", "F1"], "classification_by_class.csv")
    check_table(confusion, [*keys, "predicted", "n_cells"], ["n_cells"], "classification_confusion.csv")
    by_class, confusion = (table[table["label"] == CELL_TYPE] for table in (by_class, confusion))
    told = [set(zip(table["Model"], table["class"].astype(str), strict=True)) for table in (by_class, confusion)]
    if told[0] != told[1] or not told[0]:
        raise ValueError(
            f"the tables by class and of confusion hold {len(told[0])} and {len(told[1])} pairs of a model and a cell "
            f"type, {len(told[0] & told[1])} in both: run the notebook that writes them again."
        )
    means = by_class.groupby(["Model", "class"], as_index=False).agg(n_cells=("n_cells", "max"), F1=("F1", "mean"))
    counts = confusion.groupby(["Model", "class", "predicted"])["n_cells"].sum()
    names = sorted(means["class"].unique())
    every = pd.MultiIndex.from_product([means["Model"].unique(), names, names], names=counts.index.names)
    share = counts.reindex(every, fill_value=0)
    share = (share / share.groupby(["Model", "class"]).transform("sum")).rename("share").reset_index()
    return means.merge(share, on=["Model", "class"], validate="one_to_many")


def umap(coords: AnnData) -> pd.DataFrame:
    """Give the cells in the order drawn: ``cell, cell_type, donor_id, <Model>_x, <Model>_y``.

    The order is a seeded shuffle (no type lies above the others), cut at `MAX_POINTS` cells. Cells without a type
    are of a type of their own, `NO_TYPE`.

    Parameters
    ----------
    coords
        ``umap.h5ad``: obs ``cell_type`` and ``donor_id``, obsm ``X_umap_<Model>`` (n_cells, 2).

    Raises
    ------
    ValueError
        A column or all maps are missing, there are no cells, a cell has no donor, or a coordinate is no number.
    """
    missing = [key for key in LABELS if key not in coords.obs]
    maps = {model: f"X_umap_{model}" for model in schema.MODELS if f"X_umap_{model}" in coords.obsm}
    if missing or not maps or not coords.n_obs:
        raise ValueError(
            f"umap.h5ad holds {coords.n_obs} cells, obs {list(coords.obs)} and obsm {list(coords.obsm)}: expected "
            f"cells with obs {CELL_TYPE!r} and {DONOR!r} and an obsm 'X_umap_<Model>' for one of "
            f"{', '.join(schema.MODELS)}. Run 06_benchmarks again."
        )
    order = np.random.default_rng(SEED).permutation(coords.n_obs)[:MAX_POINTS]
    table = pd.DataFrame({"cell": coords.obs_names[order]})
    for key in LABELS:
        labels = pd.Categorical(coords.obs[key]).remove_unused_categories()
        empty = np.flatnonzero(labels.codes < 0)
        if len(empty) and key == CELL_TYPE:
            labels = labels.add_categories(NO_TYPE)
            labels[empty] = NO_TYPE
        elif len(empty):
            raise ValueError(
                f"umap.h5ad: obs[{key!r}] is empty for {len(empty):,} of {coords.n_obs:,} cells (first: "
                f"{coords.obs_names[empty[0]]!r}). Run 06_benchmarks again."
            )
        # The names of all cells stay the categories: a sample changes no color.
        table[key] = pd.Categorical.from_codes(labels.codes[order], labels.categories)
    for model, key in maps.items():
        xy = np.asarray(coords.obsm[key])
        if xy.shape != (coords.n_obs, 2) or not np.isfinite(xy).all():
            raise ValueError(
                f"umap.h5ad: obsm[{key!r}] has shape {xy.shape} and {(~np.isfinite(xy)).sum()} values that are NaN or "
                f"infinite: expected ({coords.n_obs}, 2) finite numbers. Run 06_benchmarks again."
            )
        table[f"{model}_x"], table[f"{model}_y"] = xy[order].T
    return table


def programs(table: pd.DataFrame) -> pd.DataFrame:
    """Add ``z_score`` (of mean_usage over the types, ddof 0) and ``position`` (column of the heatmap, from 0).

    Programs stand in the order of the type they peak in. A program that all types use alike, or none, has
    z-scores 0 and stands last.

    Parameters
    ----------
    table
        From ``programs.usage_by_type``: ``Model, program, cell_type, mean_usage, n_cells``.

    Raises
    ------
    ValueError
        The table lacks a column or a (model, program, type), has no row, or holds a usage that is no number.
    """
    name = "table of programs"
    check_table(table, ["Model", "program", CELL_TYPE, "mean_usage", "n_cells"], ["mean_usage"], name)
    keys = ["Model", "program", CELL_TYPE]
    points = table.astype({CELL_TYPE: str}).sort_values(keys, ignore_index=True)
    whole = points.groupby("Model")["program"].nunique().sum() * points[CELL_TYPE].nunique()
    if points.duplicated(keys).any() or len(points) != whole:
        raise ValueError(
            f"{_source(table, name)} has {len(points)} rows: expected {whole}, one per model, program and cell type."
        )
    usage = points.groupby(["Model", "program"])["mean_usage"]
    spread = usage.transform("std", ddof=0)
    alike = spread <= 1e-12 * usage.transform("max").abs()  # what is left is rounding
    away = (points["mean_usage"] - usage.transform("mean")) / spread.mask(alike, 1)
    points["z_score"] = away.mask(alike, 0.0)
    peaks = points.loc[points.groupby(["Model", "program"])["z_score"].idxmax()]
    peaks = peaks.assign(flat=peaks["z_score"] == 0)
    peaks = peaks.sort_values(["flat", CELL_TYPE, "z_score", "program"], ascending=[True, True, False, True])
    peaks = peaks.assign(position=peaks.groupby("Model").cumcount())
    return points.merge(peaks[["Model", "program", "position"]], on=["Model", "program"], validate="many_to_one")


def training(history: pd.DataFrame) -> pd.DataFrame:
    """Give the history of each model, in the order of the figures and of the iterations.

    Parameters
    ----------
    history
        From ``results.history``: ``Model, iteration, loss, relative_loss``.

    Raises
    ------
    ValueError
        The table lacks a column, has no row, or holds an unknown model or a loss that is no number.
    """
    numbers = ["iteration", "loss", "relative_loss"]
    check_table(history, ["Model", *numbers], numbers, "training history")
    place = history["Model"].map(schema.MODELS.index)
    return history.assign(place=place).sort_values(["place", "iteration"], ignore_index=True).drop(columns="place")


def check_table(table: pd.DataFrame, needed: Collection[str], numbers: Collection[str], name: str) -> None:
    """Say what is wrong with a table before anything is drawn from it.

    Parameters
    ----------
    table
        Any; what `read_table` read names its file in errors.
    needed, numbers
        Columns that must be there; those that must hold finite numbers.
    name
        What to call a table that comes from no file.

    Raises
    ------
    ValueError
        A column is missing, there are no rows, a number is none, or a model or label is unknown.
    """
    source = _source(table, name)
    missing = [column for column in needed if column not in table]
    if missing:
        raise ValueError(
            f"{source} has no column {missing[0]!r} (it has: {', '.join(map(str, table))}): "
            "run the notebook that writes it again."
        )
    if table.empty:
        raise ValueError(f"{source} has no rows, so there is nothing to draw: run the notebook that writes it again.")
    for column in numbers:
        bad = np.flatnonzero(~np.isfinite(pd.to_numeric(table[column], errors="coerce")))
        if len(bad):
            raise ValueError(
                f"{source}: {column!r} is no finite number in {len(bad)} of {len(table)} rows (first: "
                f"{table[column].iloc[bad[0]]} in row {bad[0] + 1}): run the notebook that writes it again."
            )
    if "Model" in needed:
        _known(table["Model"], schema.MODELS, "model", source)
    if "label" in needed:
        _known(table["label"], LABELS, "label", source)
    seen = "cell_type_in_training"
    if seen in needed and not pd.api.types.is_bool_dtype(table[seen]):
        raise ValueError(f"{source}: {seen!r} holds {table[seen].iloc[0]!r}: expected True or False in every row.")


_LONG = ["Model", "label", "seed", "n_cells", "n_classes", "cell_type_in_training"]


def _scores(long: pd.DataFrame, metrics: Collection[str], by: list[str], each: list[str]) -> pd.DataFrame:
    keep = [*by, *each, "n_cells", "n_classes", "cell_type_in_training"]
    points = long.melt(id_vars=keep, value_vars=list(metrics), var_name="metric", value_name="value")
    groups = points.groupby([*by, "metric"])["value"]
    return points.assign(mean=groups.transform("mean"), sd=groups.transform("std"))


def _known(values: pd.Series, known: Collection[str], what: str, source: str) -> None:
    odd = sorted(set(values.astype(str)) - set(known))
    if odd:
        raise ValueError(f"{source} holds the {what} {odd[0]!r}: expected one of {', '.join(known)}.")


def _source(table: pd.DataFrame, name: str) -> str:
    return table.attrs.get("source", name)
