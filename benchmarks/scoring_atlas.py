"""Measure each part of the two published benchmarks on simulated embeddings of increasing size.

    python benchmarks/scoring_atlas.py --cells 50000 200000

The embeddings contain 40 types and 20 donors; the sizes of the types differ by a factor of hundreds. Each part runs in
its own process: peak memory is that of one worker, above the interpreter with all imports.
"""

import argparse

import numpy as np
from measure import measured, run_in_turn

from aenmf_lib.metrics import classifiers, knn, neighbors, splits
from aenmf_lib.metrics.classification import SEEDS

N_TYPES, N_DONORS = 40, 20
NEIGHBORS, LEIDEN = "neighbor graph", "one Leiden seed"
PARTS = (NEIGHBORS, LEIDEN, "knn", "logistic_regression", "random_forest")


def simulate(n_cells: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return usages (n_cells, k) float32 and the type of each cell (n_cells,)."""
    rng = np.random.default_rng(0)
    types = rng.choice(N_TYPES, n_cells, p=rng.dirichlet(np.full(N_TYPES, 0.5) + 0.01))
    donors = rng.choice(N_DONORS, n_cells)
    shape = rng.gamma(0.3, size=k) + 0.35 * rng.gamma(0.3, size=(N_TYPES, k)) + 0.02  # types overlap
    scale = rng.lognormal(0, 0.2, size=(N_DONORS, k))
    return (rng.gamma(shape[types]) * scale[donors]).astype(np.float32), types


def task(cells: int, k: int, part: str) -> dict:
    """Measure one part: 25 folds of one embedding and label for kNN, else one graph, clustering or fit."""
    H, types = simulate(cells, k)
    names, y, sizes = np.unique(types.astype(str), return_inverse=True, return_counts=True)
    large = np.flatnonzero(sizes[y] >= 10)
    y = np.unique(y[large], return_inverse=True)[1]
    names = names[sizes >= 10]
    fold_of = dict(zip(SEEDS, splits.assign_folds(y, SEEDS, n_splits=5), strict=True))
    neighbors.neighbor_graph(H[:200])  # load compiled code
    graph = neighbors.neighbor_graph(H) if part == LEIDEN else None
    with measured() as found:
        if part == NEIGHBORS:
            neighbors.neighbor_graph(H)
        elif part == LEIDEN:
            links = graph.connectivities
            neighbors.leiden(neighbors.igraph_graph(links.indptr, links.indices), 0)
        elif part == "knn":
            wanted = [(seed, fold) for seed in SEEDS for fold in range(5)]
            for (seed, fold), classes, probability in knn.probabilities(H[large], y, fold_of, wanted):
                scores = classifiers.score_fold(y[fold_of[seed] == fold], classes, probability, names)
        else:
            test = fold_of[SEEDS[0]] == 0
            scores = classifiers.fit_fold(classifiers.CLASSIFIERS[part], SEEDS[0], H, large, y, test, names)
    return {"classes": len(names), **found, **({"F1": scores["F1"]} if part in classifiers.CLASSIFIERS else {})}


def main() -> None:
    """Read the command line, run all parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--parts", nargs="+", default=PARTS)
    parser.add_argument("--keep", action="store_true", help="keep the existing rows")
    args = parser.parse_args()
    rows = [{"cells": cells, "k": args.k, "part": part} for cells in args.cells for part in args.parts]
    run_in_turn("scoring_atlas", task, rows, runs=1, keep=args.keep)


if __name__ == "__main__":
    main()
