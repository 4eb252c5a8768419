"""What does conditioning keep and remove, at what price? Each model, on the donor or on a condition, scored.

    python benchmarks/conditioning.py results/kang2018/filtered.h5ad --on condition --k 20 --seeds 0 1

A row a model and seed, in ``results/conditioning.csv``; a killed run goes on. Besides the scores on all cells, three
donors (others for each seed) are left out of a second fit, and classified by what the rest was.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from measure import RESULTS, machine
from sklearn.metrics import f1_score
from tqdm import tqdm

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, classification, clustering, data, fits
from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.moments import Moments

STRENGTHS = (0.2, 1.0)
LEFT_OUT = 3  # donors
MAX_CELLS = 4000
MODELS = {
    "AE_NMF": {},
    "Base_NMF": {},
    "CAE_NMF1": {},
    "CAE_NMF2": {},
    **{f"{model}, {c:g}": {"strength": c} for model in ("CAE_NMF1", "CAE_NMF2") for c in STRENGTHS},
    "CAE_NMF1, 0.2, no labels": {"strength": 0.2, "labels": "none"},
    "CAE_NMF2, 0.2, no labels": {"strength": 0.2, "labels": "none"},
    "AE_NMF, weighted": {"gene_weights": "shared"},
    "CAE_NMF1, 0.2, weighted": {"strength": 0.2, "gene_weights": "shared"},
    "CAE_NMF2, 0.2, weighted": {"strength": 0.2, "gene_weights": "shared"},
}
KINDS = {model.name: model for model in (AENMF, BaseNMF, CAENMF1, CAENMF2)}


def fitted(cells: AnnData, k: int, seed: int, names: list[str]) -> Iterator[tuple[str, object, float]]:
    """Fit models to the same cells, a plain AE-NMF once."""
    moments, plain = Moments.of(cells, by_donor=True, k=k), {}
    for name in names:
        begin, kind, settings = time.perf_counter(), KINDS[name.partition(",")[0]], MODELS[name]
        if kind is BaseNMF:
            model = BaseNMF(k=k, seed=seed).fit(cells)
        else:
            rule = settings.get("gene_weights", "none")
            if rule not in plain and (kind is AENMF or settings):
                plain[rule] = AENMF(k=k, seed=seed, gene_weights=rule).fit(moments)
            if kind is AENMF:
                model = plain[rule]
            else:
                given = {"plain": plain[rule]} if settings else {}
                model = kind(k=k, seed=seed, **settings).fit(moments, **given)
        yield name, model, time.perf_counter() - begin if kind is BaseNMF else model.seconds_


def usages(model: object, cells: AnnData) -> np.ndarray:
    """H of the cells of the fit."""
    return model.H_ if isinstance(model, BaseNMF) else model.transform(cells)


def error(model: object, cells: AnnData, H: np.ndarray) -> float:
    """Give ‖X − X̂‖ / ‖X‖ with what the donors add, exact."""
    X, H = cells.X, H.astype(np.float64)
    codes = cells.obs[DONOR].cat.codes.to_numpy()
    squares, sse = np.square(X.data, dtype=np.float64).sum(), 0.0
    for d in np.unique(codes):
        own = codes == d
        V, u = model.W_.astype(np.float64), np.zeros(X.shape[1])
        if model.name == "CAE_NMF1":
            u = model.U_[d].astype(np.float64)
        if model.name == "CAE_NMF2":
            V = V + model.U_[d]
        M, ones = np.vstack([V, u]), np.column_stack([H[own], np.ones(own.sum())])
        sse += np.square(X[own].data, dtype=np.float64).sum()
        sse += np.sum((ones.T @ ones) * (M @ M.T)) - 2 * np.sum((X[own] @ M.T) * ones)
    return float(np.sqrt(sse / squares))


def scatter(H: np.ndarray, obs: pd.DataFrame) -> float:
    """Variance between donors within a type, of the total: ``I_c(H)`` over tr Cov(H)."""
    table = pd.DataFrame(H.astype(np.float64))
    types, groups = obs[CELL_TYPE].to_numpy(), [obs[CELL_TYPE].to_numpy(), obs[DONOR].to_numpy()]
    between = table.groupby(groups, observed=True).transform("mean") - table.groupby(types, observed=True).transform(
        "mean"
    )
    return float(np.square(between).to_numpy().sum() / len(H) / table.var(ddof=0).sum())


def scored(H: np.ndarray, obs: pd.DataFrame) -> dict[str, float]:
    """F1 of logistic regression and kNN, and NMI of Leiden, against the types and what was conditioned on."""
    settings = {"used_cell_type": {"AE_NMF": False}, "labels": [CELL_TYPE, DONOR]}
    long = classification.score(
        {"AE_NMF": H}, obs, seeds=[42], max_cells=MAX_CELLS, classifiers=[fits.LOGISTIC, fits.KNN], **settings
    )
    some = np.sort(np.random.default_rng(42).choice(len(H), min(MAX_CELLS, len(H)), replace=False))
    graphs = clustering.neighbours_of_all({"AE_NMF": H[some]}, obs.iloc[some])
    agree = clustering.score(graphs, obs.iloc[some], seeds=range(5), **settings)
    found = {}
    for label, short in ((CELL_TYPE, "type"), (DONOR, "on")):
        for classifier in (fits.LOGISTIC, fits.KNN):
            of = long[(long["label"] == label) & (long["classifier"] == classifier)]
            found[f"{classifier}_{short}"] = of["F1"].mean()
        found[f"nmi_{short}"] = agree.loc[agree["label"] == label, "NMI"].mean()
    return found


def unseen(H: np.ndarray, obs: pd.DataFrame, out: np.ndarray) -> dict[str, float]:
    """F1 on the cells left out, of classifiers that learnt from the others."""
    found = {}
    for label, short in ((CELL_TYPE, "type"), (DONOR, "on")):
        y = obs[label].astype(str).to_numpy()
        known = out & np.isin(y, np.unique(y[~out]))
        for classifier in (fits.LOGISTIC, fits.KNN):
            if known.any():  # of donors that were left out none is known
                learnt = fits.CLASSIFIERS[classifier](42).fit(H[~out], y[~out])
                found[f"unseen_{classifier}_{short}"] = f1_score(y[known], learnt.predict(H[known]), average="macro")
    return found


def rows(path: Path, on: str, k: int, seed: int, names: list[str]) -> Iterator[dict]:
    """Fit and score models on one set of cells."""
    cells = data.load(path)
    donors = cells.obs[DONOR].astype(str).to_numpy()
    cells.obs[DONOR] = cells.obs[on].astype(str).astype("category")
    left = np.random.default_rng(seed).permutation(np.unique(donors))[:LEFT_OUT]
    out = np.isin(donors, left)
    rest = cells[~out].copy()
    rest.obs[DONOR] = rest.obs[DONOR].cat.remove_unused_categories()
    of_rest = fitted(rest, k, seed, [name for name in names if not name.startswith("Base")])
    for name, model, seconds in fitted(cells, k, seed, names):
        H = usages(model, cells)
        told = {"seconds": seconds, "iterations": model.n_iter_, "strength": getattr(model, "strength_", 0.0)}
        told |= {"error": error(model, cells, H), "scatter": scatter(H, cells.obs), **scored(H, cells.obs)}
        if not isinstance(model, BaseNMF):
            told |= unseen(next(of_rest)[1].transform(cells), cells.obs, out)
        yield {"cells": str(path), "on": on, "k": k, "model": name, "seed": seed, **told, **machine()}


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, help="as notebook 01 writes them, with keep_obs for what is conditioned on")
    parser.add_argument("--on", default=DONOR, help="column of obs to condition on")
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    o = parser.parse_args()
    table = RESULTS / "conditioning.csv"
    done = pd.read_csv(table).to_dict("records") if table.exists() else []
    key = ("cells", "on", "k", "seed", "model")
    there = {tuple(row[name] for name in key) for row in done}
    for seed in tqdm(o.seeds, desc="conditioning"):
        names = [name for name in o.models if (str(o.cells), o.on, o.k, seed, name) not in there]
        for row in rows(o.cells, o.on, o.k, seed, names) if names else ():
            done.append(row)
            pd.DataFrame(done).to_csv(table, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
