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
from aenmf_lib.data.labels import CELL_TYPE, DONOR, as_text, is_missing
from aenmf_lib.data.preprocessing import read_labels
from aenmf_lib.data.progress import hide_progress_bars
from aenmf_lib.metrics import classification, clustering, integration, neighbors
from aenmf_lib.metrics.baselines import package_version
from aenmf_lib.metrics.classifiers import KNN, LOGISTIC
from aenmf_lib.metrics.score_cache import ScoreCache, fingerprint, source_code
from aenmf_lib.metrics.splits import Splits, stratified_subset
from aenmf_lib.models.base import relative_error
from aenmf_lib.models.penalties import between_donor_variance
from aenmf_lib.results import run_info

__all__ = ["format_table", "run", "summarize"]

LABELS = {"type": CELL_TYPE, "on": DONOR}  # suffix of a score -> column that is predicted or compared
SEEN = [f"{score}_{suffix}" for suffix in LABELS for score in (LOGISTIC, KNN, "NMI", "ARI")]
SEEN += ["best_NMI_type", "best_resolution"]
UNSEEN = [f"unseen_{name}" for name in SEEN]
MIXING = ["LISI_type", "LISI_on", *(f"{score}_on" for score in integration.WITHIN_TYPES)]  # with scib-metrics
UNSEEN_MIXING = [f"unseen_{name}" for name in MIXING]
SCORES = ["error", "scatter", *SEEN, *MIXING, "unseen_error", "unseen_scatter", *UNSEEN, *UNSEEN_MIXING]
_KEY = ("on", *COLUMNS, "seed")
_SETTINGS = ["k", "n_cells", "n_unseen", "max_cells", "strength_left", "n_iter", "seconds", "version", "date"]
_CODE = "data", "training", "models", "metrics", "conditioning"  # a change in these packages may change a score
_PACKAGES = "aenmf_lib", "scikit-learn", "igraph", "numpy", "scipy", "torch", "scanpy"
_LEIDEN_SEEDS = range(5)
_CURVE_SEEDS = range(2)  # at each resolution of the curve


def run(
    cells: AnnData,
    plan: Sequence[Variant],
    *,
    on: Sequence[str] = (DONOR,),
    k: int = 80,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    max_cells: int = 4000,
    scib: bool = False,
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
    scib
        Also compute LISI, BRAS, CiLISI and kBET of this subset, which need the package scib-metrics; see
        `metrics.integration`. Without it, their columns are empty.

    Returns
    -------
    DataFrame in the order of `on`, `plan` and `seeds`. Scores without prefix are for the cells of the fit: F1 of five
    folds, NMI and ARI of five Leiden seeds at resolution 0.8. `best_NMI_type` is the highest NMI of the cell type over
    `clustering.RESOLUTIONS` (at each, the mean of two seeds), and `best_resolution` is its resolution. `unseen_` scores
    are for the held-out donors: F1 of classifiers trained on the other donors, clusters and neighbors of the held-out
    cells only, and ``‖X − H W‖ / ‖X‖``. `scatter` is the share of the usage variance between groups within a cell type.
    `strength_left` is the effective strength: the strength × (1 − the share of the penalty that chance explains).
    `version` is the package that computed a baseline, with its version; it is empty for the models. A label with one
    class has empty scores.

    Raises
    ------
    ValueError
        A column is missing, empty for some cells, or the same for all training donors; fewer than 3 donors;
        `max_cells` is too small for the classes; or `scib` is set and scib-metrics is not installed.
    """
    if scib:
        integration.import_scib()  # an error now, and not after the first fits
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
    packages = [*_PACKAGES, *["scib-metrics"] * scib]
    made_from = fingerprint(source_code(*_CODE), *data, *total, k, max_cells, packages=packages)
    tasks = {
        (name, *asdict(variant).values(), seed): fingerprint(made_from, labels[name], package_version(variant.Model))
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
                    scores = _score(cells, obs, out, seen, rest, max_cells, scib)
                found = {"n_unseen": out.sum(), "version": package_version(key[1]), **dict.fromkeys(SCORES, np.nan)}
                yield key, {**settings, **found, **scores}

    scores = ScoreCache(cache, [*_KEY, *_SETTINGS, *SCORES], _KEY, text=["date", "version"])
    return scores.evaluate(tasks, fit_and_score, description="study", unit="fit").astype(dict.fromkeys(SCORES, float))


def summarize(long: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation (ddof 1) over the seeds; one row per column conditioned on and variant.

    `long` may lack scores and the version, as tables of older versions of this library do.
    """
    groups = long.groupby(["on", *COLUMNS], sort=False)
    scores = [name for name in (*SCORES, "strength_left", "seconds") if name in long]
    table = groups[scores].agg(["mean", "std"])
    table.columns = [score if statistic == "mean" else f"{score}_std" for score, statistic in table.columns]
    table.insert(0, "n_starts", groups.size())
    if "version" in long:
        table.insert(1, "version", groups["version"].first())
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
    cells: AnnData, obs: pd.DataFrame, out: np.ndarray, seen: Embedding, rest: Embedding, max_cells: int, scib: bool
) -> dict[str, float]:
    """Score `seen` on all cells, and `rest` (fitted without the held-out cells) on the held-out cells, mask `out`."""
    scores = {name: getattr(seen, name) for name in ("strength_left", "n_iter", "seconds", "error")}
    scores["scatter"] = between_donor_variance(seen.H, obs)
    scores |= _cross_validate(seen.H, obs, max_cells) | _score_neighbors(seen.H, obs, max_cells, scib)
    if rest.transform is None:
        return scores
    H = rest.transform(cells[out])
    unseen = {"scatter": between_donor_variance(H, obs[out])}
    unseen |= _transfer_scores(np.vstack([rest.H, H]), pd.concat([obs[~out], obs[out]]), len(rest.H))
    unseen |= _score_neighbors(H, obs[out], max_cells, scib)
    if rest.W is not None:
        unseen["error"] = relative_error(cells[out], H, rest.W)
    return scores | {f"unseen_{name}": value for name, value in unseen.items()}


def _cross_validate(H: np.ndarray, obs: pd.DataFrame, max_cells: int) -> dict[str, float]:
    """Return the mean F1 of five folds per classifier and label."""
    names, columns = [LOGISTIC, KNN], list(LABELS.values())
    options = {"labels": columns, "splits": Splits(max_cells=max_cells), "classifiers": names, "seeds": [42]}
    mean = classification.cross_validate({"H": H}, obs, **options).groupby(["classifier", "label"])["F1"].mean()
    return {f"{name}_{suffix}": mean[name, column] for name in names for suffix, column in LABELS.items()}


def _score_neighbors(H: np.ndarray, obs: pd.DataFrame, max_cells: int, scib: bool) -> dict[str, float]:
    """Return the scores of the Leiden clusters, and the mixing, against each label that has two classes or more."""
    subset = np.sort(np.random.default_rng(42).choice(len(H), min(max_cells or len(H), len(H)), replace=False))
    obs = obs.iloc[subset]
    columns = {suffix: column for suffix, column in LABELS.items() if len(obs[column].unique()) > 1}
    if not columns:
        return {}
    graphs, labels = neighbors.neighbor_graphs({"H": H[subset]}, obs), list(columns.values())
    long = clustering.evaluate(graphs, obs, labels=labels, seeds=_LEIDEN_SEEDS)
    mean = long.groupby("label")[["NMI", "ARI"]].mean()
    scores = {f"{score}_{suffix}": mean.loc[column, score] for score in mean for suffix, column in columns.items()}
    if CELL_TYPE in labels:
        curve = clustering.resolution_curve(graphs, obs, clustering.RESOLUTIONS, labels=[CELL_TYPE], seeds=_CURVE_SEEDS)
        if len(best := clustering.best_resolution(curve)):
            scores |= {"best_NMI_type": best.loc[0, "NMI"], "best_resolution": best.loc[0, "resolution"]}
    if scib:
        mixing = integration.evaluate(graphs, obs, labels=labels, scib=True).set_index("label")
        where = {name: name.split("_") for name in MIXING}
        scores |= {name: mixing.loc[columns[end], score] for name, (score, end) in where.items() if end in columns}
    return scores


def _transfer_scores(H: np.ndarray, obs: pd.DataFrame, n_training: int) -> dict[str, float]:
    """Train classifiers on the first `n_training` cells, and return their F1 on the other cells."""
    scores = {}
    for name, (suffix, column) in product((LOGISTIC, KNN), LABELS.items()):
        if len(as_text(obs[column].iloc[:n_training]).dropna().unique()) > 1:
            scores[f"{name}_{suffix}"] = classification.transfer_f1(H, obs[column], n_training, name)
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
