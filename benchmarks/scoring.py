"""Compare the two published benchmarks with direct scikit-learn and scanpy calls: run time and scores.

    python benchmarks/scoring.py results/kang2018/k80/*_k80.h5ad --max-cells 4000
    python benchmarks/scoring.py results/kang2018/k80/*_k80.h5ad --max-cells 0 --seeds 5 --device cuda

The direct way is a script of one call after the other, each on all cores as its library allows. The forest of
scikit-learn-intelex is compared with the published one. All ways score all models against both labels. Each part runs
in its own process, and the ways take turns. With --device cuda, a GPU is a third way for the parts that it can compute.
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
from measure import run_in_turn
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aenmf_lib import results
from aenmf_lib.data import LABELS
from aenmf_lib.metrics import classification, clustering, neighbors
from aenmf_lib.metrics.classifiers import FOREST, KNN, LOGISTIC
from aenmf_lib.metrics.splits import Splits, stratified_subset

CLUSTERING = "neighbors and Leiden"
DIRECT = {
    LOGISTIC: lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    KNN: lambda seed: make_pipeline(StandardScaler(), KNeighborsClassifier(15, n_jobs=-1)),
    FOREST: lambda seed: RandomForestClassifier(200, random_state=seed, n_jobs=-1),
}


def classify_directly(H: np.ndarray, y: np.ndarray, part: str, seeds: list[int]) -> list[tuple[float, float]]:
    """Return F1 and AUROC of every fold and seed."""
    scores = []
    for seed in seeds:
        for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(H, y):
            fitted = DIRECT[part](seed).fit(H[train], y[train])
            predicted, probability = fitted.predict(H[test]), fitted.predict_proba(H[test])
            probability = probability[:, 1] if probability.shape[1] == 2 else probability
            area = roc_auc_score(y[test], probability, multi_class="ovr")
            scores.append((f1_score(y[test], predicted, average="macro"), area))
    return scores


def cluster_directly(H: np.ndarray, obs: pd.DataFrame, seeds: list[int]) -> list[tuple[str, float, float]]:
    """Return label, ARI and NMI of every seed."""
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


def score(
    embeddings: results.Embeddings, part: str, max_cells: int, seeds: list[int], device: str = "cpu"
) -> pd.DataFrame:
    """Return the mean scores per label, computed by this project."""
    if part == CLUSTERING:
        graphs = neighbors.neighbor_graphs(embeddings.H, embeddings.obs, device)
        long = clustering.evaluate(graphs, embeddings.obs, seeds=seeds)
        return long.groupby("label")[["ARI", "NMI"]].mean()
    options = {"splits": Splits(max_cells=max_cells), "classifiers": [part], "seeds": seeds, "device": device}
    long = classification.cross_validate(embeddings.H, embeddings.obs, **options)
    return long.groupby("label")[["F1", "AUROC"]].mean()


def score_directly(embeddings: results.Embeddings, part: str, max_cells: int, seeds: list[int]) -> pd.DataFrame:
    """Return the mean scores per label, computed by direct calls."""
    scores, obs = [], embeddings.obs
    for H in embeddings.H.values():
        if part == CLUSTERING:
            scores += cluster_directly(H, obs, seeds)
            continue
        for label in LABELS:
            cells = stratified_subset(obs, label, Splits(max_cells=max_cells))
            y = obs[label].astype(str).to_numpy()[cells]
            scores += [(label, *fold) for fold in classify_directly(H[cells], y, part, seeds)]
    names = ["ARI", "NMI"] if part == CLUSTERING else ["F1", "AUROC"]
    return pd.DataFrame(scores, columns=["label", *names]).groupby("label").mean()


def task(files: str, part: str, way: str, max_cells: int, n_seeds: int) -> dict:
    """Score all models against both labels once; return the time, the share of busy cores and the mean scores."""
    embeddings = results.read_embeddings(files.split())
    if part == CLUSTERING:
        neighbors.neighbor_graph(np.random.default_rng(0).random((100, 5)))  # load compiled code
    seeds = list(clustering.SEEDS if part == CLUSTERING else classification.SEEDS)[:n_seeds]
    if way == "cuda":  # start the GPU
        neighbors.neighbor_graph(np.random.default_rng(0).random((100, 5)), device="cuda")
    if way == "ours":  # a stage starts its workers once
        load = "import time, aenmf_lib.metrics.classifiers, aenmf_lib.metrics.neighbors; time.sleep(1)"
        Parallel(n_jobs=-1)(delayed(exec)(load) for _ in range(os.cpu_count()))
    begin, before = perf_counter(), psutil.cpu_times()
    on = {"device": way} if way == "cuda" else {}
    means = (score_directly if way == "plain" else score)(embeddings, part, max_cells, seeds, **on)
    seconds, after = perf_counter() - begin, psutil.cpu_times()
    get_reusable_executor().shutdown(wait=True)  # otherwise the process waits for its idle workers
    idle, total = after.idle - before.idle, sum(after[:8]) - sum(before[:8])
    scores = {f"{name} {label}": means.loc[label, name] for label in LABELS for name in means}
    return {"seconds": seconds, "cores_busy": 1 - idle / total, **scores}  # share of the whole machine


def main() -> None:
    """Read the command line, run all parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="results files from notebooks 02 to 05")
    parser.add_argument("--max-cells", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=10, help="at most 10 clusterings, 5 seeds of 5 folds")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=[CLUSTERING, *DIRECT], help=f"also: {FOREST}_intelex")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--keep", action="store_true", help="keep the existing rows")
    args = parser.parse_args()
    files = " ".join(map(str, args.files))
    on_gpu = args.device == "cuda"
    if on_gpu:
        args.parts = [part for part in args.parts if not part.startswith(FOREST)]
    rows = [
        {"files": files, "part": part, "way": way, "max_cells": args.max_cells, "n_seeds": args.seeds}
        for part in args.parts
        for way in (["plain", "ours"] if part in (CLUSTERING, *DIRECT) else ["ours"]) + ["cuda"] * on_gpu
    ]
    run_in_turn("scoring" + "_cuda" * on_gpu, task, rows, runs=args.runs, keep=args.keep, device=args.device)


if __name__ == "__main__":
    main()
