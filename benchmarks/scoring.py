"""How long do the two benchmarks take beside plain scikit-learn and scanpy calls, and do the scores agree?

    python benchmarks/scoring.py results/kang2018/k80/*_k80.h5ad --max-cells 4000

The plain way is that of a script: one call after the other, each on all cores as its library can. The faster forest
is compared with the published one. Both ways score all models against both labels; each part runs in a process of its
own, the two ways in turn.
"""

import argparse
import os
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import psutil
import scanpy
from anndata import AnnData
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from measure import in_turn
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aenmf_lib import results
from aenmf_lib.metrics import classification, clustering, neighbors, splits
from aenmf_lib.metrics.classifiers import CLASSIFIERS, FOREST, FORESTS
from aenmf_lib.metrics.validation import LABELS

CLUSTERING = "neighbors and Leiden"
PLAIN = {
    "logistic_regression": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "knn": lambda seed: make_pipeline(StandardScaler(), KNeighborsClassifier(15, n_jobs=-1)),
    FOREST: lambda seed: RandomForestClassifier(200, random_state=seed, n_jobs=-1),
}


def plain_classification(H: np.ndarray, y: np.ndarray, part: str, seeds: list[int]) -> list[tuple[float, float]]:
    """Give F1 and AUROC of every fold and seed."""
    scores = []
    for seed in seeds:
        for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(H, y):
            fitted = PLAIN[part](seed).fit(H[train], y[train])
            found, probability = fitted.predict(H[test]), fitted.predict_proba(H[test])
            probability = probability[:, 1] if probability.shape[1] == 2 else probability
            area = roc_auc_score(y[test], probability, multi_class="ovr")
            scores.append((f1_score(y[test], found, average="macro"), area))
    return scores


def plain_clustering(H: np.ndarray, obs: pd.DataFrame, seeds: list[int]) -> list[tuple[str, float, float]]:
    """Give label, ARI and NMI of every seed."""
    cells = AnnData(StandardScaler().fit_transform(H))
    scanpy.pp.neighbors(cells, n_neighbors=25, use_rep="X", transformer="sklearn")
    scores = []
    for seed in seeds:
        scanpy.tl.leiden(
            cells, resolution=0.8, flavor="igraph", directed=False, n_iterations=2, use_weights=False, random_state=seed
        )
        for label in LABELS:
            pair = obs[label].astype(str).to_numpy(), cells.obs["leiden"].to_numpy()
            scores.append((label, adjusted_rand_score(*pair), normalized_mutual_info_score(*pair)))
    return scores


def task(files: str, part: str, way: str, max_cells: int, n_seeds: int) -> dict:
    """Score all models against both labels once."""
    held = results.read_embeddings(files.split())
    of = {"used_cell_type": held.used_cell_type}
    if part == CLUSTERING:
        clustering.neighbors(np.random.default_rng(0).random((100, 5)))  # compiled code is loaded before
    seeds = list(clustering.SEEDS if part == CLUSTERING else classification.SEEDS)[:n_seeds]
    if way == "ours":  # workers are there before: a stage starts them once
        load = "import time, aenmf_lib.fits, aenmf_lib.communities; time.sleep(1)"  # so that each worker gets one
        Parallel(n_jobs=-1)(delayed(exec)(load) for _ in range(os.cpu_count()))
    begin, before = perf_counter(), psutil.cpu_times()
    if way == "ours":
        if part == CLUSTERING:
            graphs = neighbors.neighbor_graphs(held.H, held.obs)
            long, names = clustering.evaluate(graphs, held.obs, seeds=seeds, **of), ["ARI", "NMI"]
        else:
            forest = part if part in FORESTS else FOREST
            published = FOREST if part in FORESTS else part
            classification.CLASSIFIERS = {published: CLASSIFIERS[published]}
            options = {"seeds": seeds, "max_cells": max_cells, "forest": forest}
            long, names = classification.cross_validate(held.H, held.obs, **options, **of), ["F1", "AUROC"]
        means = long.groupby("label")[names].mean()
    else:
        scores, names = [], ["ARI", "NMI"] if part == CLUSTERING else ["F1", "AUROC"]
        for H in held.H.values():
            if part == CLUSTERING:
                scores += plain_clustering(H, held.obs, seeds)
                continue
            for label in LABELS:
                cells = splits.stratified_subset(held.obs, label, max_cells=max_cells)
                y = held.obs[label].astype(str).to_numpy()[cells]
                scores += [(label, *score) for score in plain_classification(H[cells], y, part, seeds)]
        means = pd.DataFrame(scores, columns=["label", *names]).groupby("label").mean()
    seconds, after = perf_counter() - begin, psutil.cpu_times()
    get_reusable_executor().shutdown(wait=True)  # or the process waits for its idle workers
    idle, total = after.idle - before.idle, sum(after[:8]) - sum(before[:8])
    told = {f"{name} {label}": means.loc[label, name] for label in LABELS for name in means}
    return {"seconds": seconds, "cores_busy": 1 - idle / total, **told}  # busy: of the whole machine


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="results files, as notebooks 02 to 05 write them")
    parser.add_argument("--max-cells", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=10, help="at most: 10 clusterings, 5 times 5 folds")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=[CLUSTERING, *PLAIN], help=f"also: {FOREST}_intelex")
    parser.add_argument("--keep", action="store_true", help="keep the rows that are there")
    o = parser.parse_args()
    rows = [
        {"files": " ".join(map(str, o.files)), "part": part, "way": way, "max_cells": o.max_cells, "n_seeds": o.seeds}
        for part in o.parts
        for way in (["plain", "ours"] if part in (CLUSTERING, *PLAIN) else ["ours"])
    ]
    in_turn("scoring", task, rows, runs=o.runs, keep=o.keep)


if __name__ == "__main__":
    main()
