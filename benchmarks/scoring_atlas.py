"""Measure each part of the two published benchmarks on simulated embeddings of increasing size.

    python benchmarks/scoring_atlas.py --cells 50000 200000
    python benchmarks/scoring_atlas.py --cells 200000 600000 --device cuda  # the parts that a GPU computes

The embeddings contain 40 types and 20 donors; the sizes of the types differ by a factor of hundreds. Each part runs in
its own process: peak memory is that of one worker, above the interpreter with all imports.
"""

import argparse

import numpy as np
from measure import measured, run_in_turn

from aenmf_lib.metrics import classifiers, knn, neighbors, splits
from aenmf_lib.metrics.classification import SEEDS
from aenmf_lib.metrics.classifiers import LOGISTIC

N_TYPES, N_DONORS = 40, 20
NEIGHBORS, LEIDEN = "neighbor graph", "one Leiden seed"
PARTS = (NEIGHBORS, LEIDEN, "knn", LOGISTIC, "random_forest")
ON_GPU = (NEIGHBORS, "knn", LOGISTIC)


def simulate(n_cells: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return usages (n_cells, k) float32 and the type of each cell (n_cells,)."""
    rng = np.random.default_rng(0)
    types = rng.choice(N_TYPES, n_cells, p=rng.dirichlet(np.full(N_TYPES, 0.5) + 0.01))
    donors = rng.choice(N_DONORS, n_cells)
    shape = rng.gamma(0.3, size=k) + 0.35 * rng.gamma(0.3, size=(N_TYPES, k)) + 0.02  # types overlap
    scale = rng.lognormal(0, 0.2, size=(N_DONORS, k))
    return (rng.gamma(shape[types]) * scale[donors]).astype(np.float32), types


def task(cells: int, k: int, part: str, device: str = "cpu") -> dict:
    """Measure one part: 25 folds of one embedding and label for kNN, else one graph, clustering or fit."""
    on, makers = neighbors.gpu(device), dict(classifiers.CLASSIFIERS)
    if on:
        makers[LOGISTIC] = lambda seed: classifiers.OnGPU(classifiers.CLASSIFIERS[LOGISTIC](seed), on)
    H, types = simulate(cells, k)
    names, y, sizes = np.unique(types.astype(str), return_inverse=True, return_counts=True)
    large = np.flatnonzero(sizes[y] >= 10)
    y = np.unique(y[large], return_inverse=True)[1]
    names = names[sizes >= 10]
    fold_of = dict(zip(SEEDS, splits.assign_folds(y, SEEDS, n_splits=5), strict=True))
    neighbors.neighbor_graph(H[:200], device=device)  # load compiled code, and start the GPU
    graph = neighbors.neighbor_graph(H) if part == LEIDEN else None
    with measured() as found:
        if part == NEIGHBORS:
            neighbors.neighbor_graph(H, device=device)
        elif part == LEIDEN:
            links = graph.connectivities
            neighbors.leiden(neighbors.igraph_graph(links.indptr, links.indices), 0)
        elif part == "knn":
            wanted = [(seed, fold) for seed in SEEDS for fold in range(5)]
            for (seed, fold), classes, probability in knn.probabilities(H[large], y, fold_of, wanted, on=on):
                scores = classifiers.score_fold(y[fold_of[seed] == fold], classes, probability, names)
        else:
            test = fold_of[SEEDS[0]] == 0
            scores = classifiers.fit_fold(makers[part], SEEDS[0], H, large, y, test, names)
    return {"classes": len(names), **found, **({"F1": scores["F1"]} if part in classifiers.CLASSIFIERS else {})}


def main() -> None:
    """Read the command line, run all parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--keep", action="store_true", help="keep the existing rows")
    args = parser.parse_args()
    device = {"device": args.device} if args.device != "cpu" else {}
    parts = args.parts or (ON_GPU if device else PARTS)
    rows = [{"cells": cells, "k": args.k, "part": part, **device} for cells in args.cells for part in parts]
    run_in_turn("scoring_atlas" + "_cuda" * bool(device), task, rows, runs=1, keep=args.keep, device=args.device)


if __name__ == "__main__":
    main()
