"""The conditioning study: fit every variant under several seeds, and score its cell-type and donor information.

Under each seed a variant is fitted twice: to all cells, and without one third of the donors. Scores on these held-out
donors are independent evidence, because neither the second fit nor the classifier has used their cells.
"""

from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from aenmf_lib.conditioning.baselines import Embedding
from aenmf_lib.conditioning.variants import COLUMNS, Variant, VariantFitter, label
from aenmf_lib.data.labels import CELL_TYPE, DONOR, is_missing
from aenmf_lib.data.preprocessing import read_labels
from aenmf_lib.data.progress import hide_progress_bars
from aenmf_lib.metrics import classification, classifiers, clustering, neighbors
from aenmf_lib.metrics.classifiers import KNN, LOGISTIC
from aenmf_lib.metrics.score_cache import ScoreCache, fingerprint, source_code
from aenmf_lib.metrics.splits import Splits, stratified_subset
from aenmf_lib.models.base import relative_error
from aenmf_lib.models.penalties import between_donor_variance
from aenmf_lib.results import run_info

__all__ = ["format_table", "run", "summarize"]

LABELS = {"type": CELL_TYPE, "on": DONOR}  # suffix of a score -> column that is predicted or compared
SEEN = [f"{score}_{suffix}" for suffix in LABELS for score in (LOGISTIC, KNN, "NMI", "ARI")]
UNSEEN = [f"unseen_{name}" for name in SEEN]
SCORES = ["error", "scatter", *SEEN, "unseen_error", "unseen_scatter", *UNSEEN]
_KEY = ("on", *COLUMNS, "seed")
_SETTINGS = ["k", "n_cells", "n_unseen", "max_cells", "strength_left", "n_iter", "seconds", "date"]
_CODE = "data", "training", "models", "metrics", "conditioning"  # a change in these packages may change a score
_PACKAGES = "aenmf_lib", "scikit-learn", "igraph", "numpy", "scipy", "torch", "scanpy"
_LEIDEN_SEEDS = range(5)


def run(
    cells: AnnData,
    plan: Sequence[Variant],
    *,
    on: Sequence[str] = (DONOR,),
    k: int = 80,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    max_cells: int = 4000,
    cache: str | Path | None = None,
) -> pd.DataFrame:
    """Fit and score every variant; return one row per column conditioned on, variant and seed.

    Parameters
    ----------
    cells : n_cells × n_genes
        Filtered cells as `data.load` returns them, with the columns of `on`.
    plan, k, seeds
        The variants, from `variants.plan`; the number of programs; and seeds, which also choose the held-out donors.
    on
        Columns of obs to condition on, one study each ('donor_id+condition' combines two). The held-out donors are
        always those of ``obs['donor_id']``.
    max_cells, cache
        Size of the random subset that is clustered and cross-validated (0: all cells); and a CSV file that records
        every row immediately, so that an interrupted study can resume.

    Returns
    -------
    DataFrame in the order of `on`, `plan` and `seeds`. Scores without prefix are for the cells of the fit: F1 of five
    folds, NMI and ARI of five Leiden seeds. `unseen_` scores are for the held-out donors: F1 of classifiers trained on
    the other donors, clusters of the held-out cells only, and ``‖X − H W‖ / ‖X‖``. `scatter` is the share of the
    usage variance between groups within a cell type. `strength_left` is the effective strength: the strength after
    subtracting the chance share. A label with one class has empty scores.

    Raises
    ------
    ValueError
        A column is missing, empty for some cells, or the same for all training donors; fewer than 3 donors; or
        `max_cells` is too small for the classes.
    """
    donors = cells.obs[DONOR].astype(str).to_numpy()
    labels = {name: _group_labels(cells.obs, name) for name in on}
    if (n_donors := len(np.unique(donors))) < 3:
        raise ValueError(f"The cells have {n_donors} donors. Expected at least 3: one is held out, two remain.")
    for seed, name in product(seeds, on):
        if len(left := np.unique(labels[name][~held_out(donors, seed)])) < 2:
            raise ValueError(
                f"obs[{name!r}] is {str(left[0])!r} for all training donors of seed {seed}. Expected two values or "
                "more to condition on. Use fewer seeds, or choose another column for `on`."
            )
    for name, groups in labels.items():  # a subset that is too small is an error now, and not after the first fits
        for column, values in ((CELL_TYPE, cells.obs[CELL_TYPE]), (name, groups)):
            stratified_subset(pd.DataFrame({column: np.asarray(values)}), column, Splits(max_cells=max_cells))
    data = cells.obs_names.to_numpy(str), donors, read_labels(cells.obs, CELL_TYPE, partly=True).astype(str)
    total = cells.X.nnz, float(cells.X.sum(dtype=np.float64))
    made_from = fingerprint(source_code(*_CODE), *data, *total, k, max_cells, packages=_PACKAGES)
    tasks = {
        (name, *asdict(variant).values(), seed): fingerprint(made_from, labels[name])
        for name, variant, seed in product(on, plan, seeds)
    }
    settings = {"k": k, "n_cells": cells.n_obs, "max_cells": max_cells, "date": run_info()["created"][:10]}

    def fit_and_score(missing: list[tuple]) -> Iterator[tuple[tuple, dict]]:
        for seed in seeds:
            out, keys = held_out(donors, seed), [key for key in missing if key[-1] == seed]
            fitters = [
                VariantFitter(cells[some], {name: groups[some] for name, groups in labels.items()}, k, seed)
                for some in (slice(None), ~out)
                if keys
            ]
            for key in keys:
                obs = cells.obs[[CELL_TYPE]].assign(**{DONOR: pd.Categorical(labels[key[0]])})
                with hide_progress_bars(), redirect_stdout(StringIO()):  # scikit-learn prints every sweep
                    seen, rest = (fitter.fit(Variant(*key[1:-1]), key[0]) for fitter in fitters)
                    scores = _score(cells, obs, out, seen, rest, max_cells)
                yield key, {**settings, "n_unseen": out.sum(), **dict.fromkeys(SCORES, np.nan), **scores}

    scores = ScoreCache(cache, [*_KEY, *_SETTINGS, *SCORES], _KEY, text=["date"])
    return scores.evaluate(tasks, fit_and_score, description="study", unit="fit").astype(dict.fromkeys(SCORES, float))


def summarize(long: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation (ddof 1) over the seeds; one row per column conditioned on and variant."""
    groups = long.groupby(["on", *COLUMNS], sort=False)
    table = groups[[*SCORES, "strength_left", "seconds"]].agg(["mean", "std"])
    table.columns = [score if statistic == "mean" else f"{score}_std" for score, statistic in table.columns]
    table.insert(0, "n_starts", groups.size())
    return table.reset_index()


def format_table(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return some columns of `summarize` as text, mean ± standard deviation; one row per variant."""

    def text(column: str, pattern: str) -> np.ndarray:
        return table[column].map(lambda value: "" if pd.isna(value) else pattern.format(value)).to_numpy(object)

    index = pd.MultiIndex.from_arrays([table["on"], [label(row) for row in table.itertuples()]], names=["on", "model"])
    return pd.DataFrame({name: text(name, "{:.3f}") + text(f"{name}_std", " ± {:.3f}") for name in columns}, index)


def held_out(donors: np.ndarray, seed: int) -> np.ndarray:
    """Return a mask of the held-out cells: those of one third of the donors, leaving at least two for training."""
    names = np.random.default_rng(seed).permutation(np.unique(donors))
    return np.isin(donors, names[: min(max(1, round(len(names) / 3)), len(names) - 2)])


def _score(
    cells: AnnData, obs: pd.DataFrame, out: np.ndarray, seen: Embedding, rest: Embedding, max_cells: int
) -> dict[str, float]:
    """Score `seen` on all cells, and `rest` (fitted without the held-out cells) on the held-out cells, mask `out`."""
    scores = {name: getattr(seen, name) for name in ("strength_left", "n_iter", "seconds", "error")}
    scores["scatter"] = between_donor_variance(seen.H, obs)
    scores |= _cross_validate(seen.H, obs, max_cells) | _compare_clusters(seen.H, obs, max_cells)
    if rest.transform is None:
        return scores
    H = rest.transform(cells[out])
    unseen = {"scatter": between_donor_variance(H, obs[out])}
    unseen |= _transfer_scores(np.vstack([rest.H, H]), pd.concat([obs[~out], obs[out]]), len(rest.H))
    unseen |= _compare_clusters(H, obs[out], max_cells)
    if rest.W is not None:
        unseen["error"] = relative_error(cells[out], H, rest.W)
    return scores | {f"unseen_{name}": value for name, value in unseen.items()}


def _cross_validate(H: np.ndarray, obs: pd.DataFrame, max_cells: int) -> dict[str, float]:
    """Return the mean F1 of five folds per classifier and label."""
    names, columns = [LOGISTIC, KNN], list(LABELS.values())
    options = {"labels": columns, "splits": Splits(max_cells=max_cells), "classifiers": names, "seeds": [42]}
    mean = classification.cross_validate({"H": H}, obs, **options).groupby(["classifier", "label"])["F1"].mean()
    return {f"{name}_{suffix}": mean[name, column] for name in names for suffix, column in LABELS.items()}


def _compare_clusters(H: np.ndarray, obs: pd.DataFrame, max_cells: int) -> dict[str, float]:
    """Return NMI and ARI of Leiden clusters with each label that has two classes or more."""
    subset = np.sort(np.random.default_rng(42).choice(len(H), min(max_cells or len(H), len(H)), replace=False))
    obs = obs.iloc[subset]
    columns = {suffix: column for suffix, column in LABELS.items() if len(obs[column].unique()) > 1}
    if not columns:
        return {}
    graphs = neighbors.neighbor_graphs({"H": H[subset]}, obs)
    long = clustering.evaluate(graphs, obs, labels=list(columns.values()), seeds=_LEIDEN_SEEDS)
    mean = long.groupby("label")[["NMI", "ARI"]].mean()
    return {f"{score}_{suffix}": mean.loc[column, score] for score in mean for suffix, column in columns.items()}


def _transfer_scores(H: np.ndarray, obs: pd.DataFrame, n_training: int) -> dict[str, float]:
    """Train classifiers on the first `n_training` cells, and return their F1 on the other cells."""
    scores, held = {}, np.arange(len(H)) >= n_training
    for name, (suffix, column) in product((LOGISTIC, KNN), LABELS.items()):
        labeled = np.flatnonzero(~is_missing(obs[column]))
        names, y = np.unique(obs[column].iloc[labeled].astype(str), return_inverse=True)
        test = held[labeled]
        if len(set(y[~test])) > 1 and np.isin(y[test], y[~test]).any():
            fold = classifiers.fit_fold(classifiers.CLASSIFIERS[name], 42, H, labeled, y, test, names)
            scores[f"{name}_{suffix}"] = fold["F1"]
    return scores


def _group_labels(obs: pd.DataFrame, name: str) -> np.ndarray:
    """Return the values of a column, or of several joined by '+', as strings (n_cells,)."""
    columns = [name] if name in obs else name.split("+")
    for column in columns:
        if column not in obs:
            known = ", ".join(map(repr, obs))
            advice = "Add the column to keep_obs of notebook 01, and filter again."
            raise ValueError(f"obs has no column {column!r}. It has {known}. {advice}")
        if (empty := is_missing(obs[column])).any():
            raise ValueError(f"obs[{column!r}] is empty for {empty.sum()} of {len(obs)} cells. Every cell needs one.")
    values = obs[columns].astype(str)
    if len(columns) > 1:  # 'a, b' with 'c' is another group than 'a' with 'b, c'
        values = values.map(lambda value: value.replace("\\", "\\\\").replace(",", "\\,"))
    return values.agg(", ".join, axis=1).to_numpy(str)
