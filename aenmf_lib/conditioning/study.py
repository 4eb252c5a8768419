"""What does conditioning keep and remove, at what price? Every model on the same cells, from several starts, scored.

Each start is fitted twice: to all cells, and to those of two donors in three. The other donors were seen by no fit and
no classifier: where a penalty has read the cell types, their scores are the proof.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.metrics import f1_score
from tqdm import tqdm

from aenmf_lib.conditioning.baselines import Embedding
from aenmf_lib.conditioning.variants import COLUMNS, Variant, VariantFitter, label
from aenmf_lib.data import preprocessing
from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR
from aenmf_lib.metrics import classification, classifiers, clustering, neighbors
from aenmf_lib.metrics.score_cache import FINGERPRINT, ScoreCache, fingerprint
from aenmf_lib.models import base
from aenmf_lib.results import provenance

LABELS = {"type": CELL_TYPE, "on": DONOR}  # end of a column -> what is read from the usages
_KEY = ("on", *COLUMNS, "seed")
SEEN = [f"{score}_{label}" for label in LABELS for score in (classifiers.LOGISTIC, classifiers.KNN, "NMI", "ARI")]
UNSEEN = [f"unseen_{name}" for name in SEEN]
SCORES = ["error", "scatter", *SEEN, "unseen_error", "unseen_scatter", *UNSEEN]
_ABOUT = ["k", "n_cells", "n_unseen", "max_cells", "strength_left", "n_iter", "seconds", "date"]
_PACKAGES = "aenmf_lib", "scikit-learn", "igraph", "numpy", "scipy", "torch", "scanpy"
# other code may fit or score otherwise: it is done again
_CODE = ("baseline", "communities", "conditional", "descent", "fits", "folds", "groups", "kernels", "models", "moments",
         "objectives", "penalties", "start", "study", "sums", "variants", "weighting", "yardsticks")  # fmt: skip
_LEIDEN_SEEDS = range(5)


def run(
    cells: AnnData,
    plan: Sequence[Variant],
    *,
    on: Sequence[str] = (DONOR,),
    k: int = 80,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    max_cells: int = 4000,
    store: str | Path | None = None,
) -> pd.DataFrame:
    """Fit and score every variant: a row a column conditioned on, variant and seed.

    Parameters
    ----------
    cells : n_cells × n_genes
        As `data.load` gives them, with the columns of `on`.
    plan
        From `variants.plan`.
    on
        Columns of obs that the models are conditioned on, each in a study of its own. 'donor_id+condition' is both: a
        sample. The donors held out are always those of ``obs['donor_id']``.
    k
        Programs.
    seeds
        A start, and a choice of the donors held out, each.
    max_cells
        Cells, at random, that are clustered, and classified in five folds; classifiers of unseen donors take all.
    store
        File that keeps every row as soon as it is made: if killed, the same call goes on.

    Returns
    -------
    Rows in the order of `on`, plan and seeds. Scores of a name alone are on the cells of the fit (F1 of five folds, NMI
    and ARI of five Leiden seeds); `unseen_` on donors held out: F1 of classifiers that learnt from the others (none
    for a label that is not shared, as the donor itself), clusters of the held-out cells alone (none for a label that
    is the same for all of them), and ``‖X − H W‖ / ‖X‖``.
    `scatter` is the variance of the usages between the groups within a type, of all their variance.

    Raises
    ------
    ValueError
        A column is missing or empty for some cells (`cell_type` may be), there are fewer than 3 donors, donors held
        out leave one group of a column alone, or what a model's fit raises.
    """
    donors = cells.obs[DONOR].astype(str).to_numpy()
    labels = {name: _column(cells.obs, name) for name in on}
    if len(np.unique(donors)) < 3:
        raise ValueError(f"{len(np.unique(donors))} donors: a third is held out and two stay, so 3 or more are needed.")
    for seed, name in product(seeds, on):
        if len(left := np.unique(labels[name][~held_out(donors, seed)])) < 2:
            raise ValueError(
                f"{name} is {str(left[0])!r} for all donors that seed {seed} leaves in: it hangs on the donor, and "
                "nothing can be conditioned on it there. Give fewer starts, or another column in on."
            )
    names = [(name, variant, seed) for seed in seeds for name in on for variant in plan]
    held = ScoreCache(store, [*_KEY, *_ABOUT, *SCORES], _KEY)
    code = [Path(__file__).with_name(f"{module}.py").read_bytes() for module in _CODE]
    whole = fingerprint(
        *code, cells.obs_names.to_numpy(str), donors,
        preprocessing.read_labels(cells.obs, CELL_TYPE, partly=True).astype(str),
        cells.X.nnz, float(cells.X.sum(dtype=np.float64)), k, max_cells, packages=_PACKAGES,
    )  # fmt: skip
    of = {name: fingerprint(whole, labels[name], packages=()) for name in on}
    keys = {which: (which[0], *asdict(which[1]).values(), which[2], of[which[0]]) for which in names}
    date = provenance.run_info()["created"][:10]
    todo = [which for which in names if keys[which] not in held]
    with tqdm(total=len(names), initial=len(names) - len(todo), desc="study", unit="fit") as bar, _without_bars():
        for seed in sorted({seed for *_, seed in todo}, key=list(seeds).index):
            out = held_out(donors, seed)
            rest = {name: of[~out] for name, of in labels.items()}
            both = VariantFitter(cells, labels, k, seed), VariantFitter(cells[~out], rest, k, seed)
            row = {
                "seed": seed,
                "k": k,
                "n_cells": len(out),
                "n_unseen": out.sum(),
                "max_cells": max_cells,
                "date": date,
            }
            for name, variant in [which[:2] for which in todo if which[2] == seed]:
                bar.set_postfix_str(f"{label(variant)} on {name}")
                obs = cells.obs[[CELL_TYPE]].assign(**{DONOR: pd.Categorical(labels[name])})
                scores = _scores(cells, obs, out, *(each.fit(variant, name) for each in both), max_cells)
                held.add({"on": name, **asdict(variant), **row, **scores, FINGERPRINT: of[name]})
                bar.update()
    table = held.table(keys[name, variant, seed] for name in on for variant in plan for seed in seeds)
    return table.assign(**{score: table[score].mask(table[score].eq("")).astype(float) for score in SCORES})


def summarize(long: pd.DataFrame) -> pd.DataFrame:
    """Give a row a variant and column conditioned on: mean and standard deviation (ddof 1) over the starts."""
    table = long.groupby(["on", *COLUMNS], sort=False)[[*SCORES, "strength_left", "seconds"]].agg(["mean", "std"])
    table.columns = [score if of == "mean" else f"{score}_std" for score, of in table.columns]
    table.insert(0, "n_starts", long.groupby(["on", *COLUMNS], sort=False).size())
    return table.reset_index()


def format_table(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Lay out some columns of `summarize`: mean ± deviation, a row a variant."""
    shown = {
        name: [
            "" if pd.isna(mean) else f"{mean:.3f}" + ("" if pd.isna(std) else f" ± {std:.3f}")
            for mean, std in zip(table[name], table[f"{name}_std"], strict=True)
        ]
        for name in columns
    }
    rows = pd.MultiIndex.from_arrays([table["on"], [label(row) for row in table.itertuples()]], names=["on", "model"])
    return pd.DataFrame(shown, index=rows)


def _scores(
    cells: AnnData, obs: pd.DataFrame, out: np.ndarray, seen: Embedding, rest: Embedding, max_cells: int
) -> dict[str, float]:
    """Score an embedding of all cells, and how one of the rest does on the cells held out."""
    row = {"strength_left": seen.strength_left, "n_iter": seen.n_iter, "seconds": seen.seconds, "error": seen.error}
    row |= {"scatter": scatter(seen.H, obs), **_folds(seen.H, obs, max_cells), **_clusters(seen.H, obs, max_cells)}
    if rest.transform is None:
        return row
    held, of = cells[out], obs[out]
    H = rest.transform(held)
    more = {"scatter": scatter(H, of), **_transfer_scores(rest.H, obs[~out], H, of), **_clusters(H, of, max_cells)}
    if rest.W is not None:
        more["error"] = base.relative_error(held, H, rest.W)
    return row | {f"unseen_{score}": value for score, value in more.items()}


def scatter(H: np.ndarray, obs: pd.DataFrame) -> float:
    """Give the variance between donors within a type, of the total: ``I_c(H) / tr Cov(H)``."""
    typed = ~preprocessing.is_missing(obs[CELL_TYPE])
    table, obs = pd.DataFrame(H[typed].astype(np.float64)), obs[typed]
    types, donors = obs[CELL_TYPE].to_numpy(), obs[DONOR].to_numpy()
    of_type = table.groupby(types, observed=True).transform("mean")
    between = table.groupby([types, donors], observed=True).transform("mean") - of_type
    return float(np.square(between).to_numpy().sum() / len(table) / table.var(ddof=0).sum())


def _folds(H: np.ndarray, obs: pd.DataFrame, max_cells: int) -> dict[str, float]:
    names = [classifiers.LOGISTIC, classifiers.KNN]
    settings = {"used_cell_type": {"H": False}, "labels": list(LABELS.values()), "seeds": [42]}
    long = classification.cross_validate({"H": H}, obs, max_cells=max_cells, classifiers=names, **settings)
    mean = long.groupby(["classifier", "label"])["F1"].mean()
    return {f"{by}_{short}": mean[by, of] for by in names for short, of in LABELS.items()}


def _clusters(H: np.ndarray, obs: pd.DataFrame, max_cells: int) -> dict[str, float]:
    some = np.sort(np.random.default_rng(42).choice(len(H), min(max_cells or len(H), len(H)), replace=False))
    of = {short: name for short, name in LABELS.items() if len(obs[name].iloc[some].unique()) > 1}
    if not of:
        return {}
    graphs = neighbors.neighbor_graphs({"H": H[some]}, obs.iloc[some])
    settings = {"used_cell_type": {"H": False}, "labels": list(of.values())}
    agreement = clustering.evaluate(graphs, obs.iloc[some], seeds=_LEIDEN_SEEDS, **settings)
    mean = agreement.groupby("label")[["NMI", "ARI"]].mean()
    return {f"{score}_{short}": mean.loc[name, score] for score in mean for short, name in of.items()}


def _transfer_scores(H_rest: np.ndarray, rest: pd.DataFrame, H: np.ndarray, held: pd.DataFrame) -> dict[str, float]:
    """F1 on cells of unseen donors, of classifiers that learnt from all others."""
    found = {}
    for short, of in LABELS.items():
        learn, y = ~preprocessing.is_missing(rest[of]), rest[of].astype(str).to_numpy()
        truth, y = held[of].astype(str).to_numpy(), y[learn]
        known = np.isin(truth, np.unique(y)) & ~preprocessing.is_missing(held[of])
        for by in (classifiers.LOGISTIC, classifiers.KNN):
            if known.any() and len(np.unique(y)) > 1:
                told = classifiers.CLASSIFIERS[by](42).fit(H_rest[learn], y).predict(H[known])
                found[f"{by}_{short}"] = f1_score(truth[known], told, average="macro")
    return found


def held_out(donors: np.ndarray, seed: int) -> np.ndarray:
    """Choose the cells of a third of the donors, two of which stay at least."""
    names = np.random.default_rng(seed).permutation(np.unique(donors))
    return np.isin(donors, names[: min(max(1, round(len(names) / 3)), len(names) - 2)])


def _column(obs: pd.DataFrame, name: str) -> np.ndarray:
    parts = name.split("+")
    if lacking := [part for part in parts if part not in obs]:
        raise ValueError(
            f"obs has no column {lacking[0]!r}: it has {', '.join(map(repr, obs))}. Name it in keep_obs of notebook "
            "01, and filter again."
        )
    for part in parts:
        if (empty := preprocessing.is_missing(obs[part])).any():
            raise ValueError(f"obs[{part!r}] is empty for {empty.sum()} of {len(obs)} cells: every cell needs a value.")
    return obs[parts].astype(str).agg(", ".join, axis=1).to_numpy(str)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Leave one bar, of the study: those of its hundreds of fits would fill the report."""
    make = tqdm.__init__
    with patch.object(tqdm, "__init__", lambda bar, *given, **named: make(bar, *given, **{**named, "disable": True})):
        yield
