"""What would the two benchmarks take on an atlas? Each kind of work once, on simulated embeddings of growing size.

    python benchmarks/scoring_atlas.py --cells 50000 200000

Usages of k programs by cells of 40 types and 20 donors are drawn; types differ in size by a factor of hundreds. Each
part runs in a process of its own: peak memory is that of one worker, over the interpreter with everything imported.
"""

import argparse

import numpy as np
from measure import in_turn, measured

from aenmf_lib.metrics import classifiers, clustering, knn, neighbors, splits
from aenmf_lib.metrics.classification import SEEDS

N_TYPES, N_DONORS = 40, 20
NEIGHBORS, LEIDEN = "neighbor graph", "one Leiden seed"
PARTS = (NEIGHBORS, LEIDEN, "knn", "logistic_regression", "random_forest")


def simulate(n_cells: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw usages (n_cells, k) float32 and the type of each cell."""
    rng = np.random.default_rng(0)
    types = rng.choice(N_TYPES, n_cells, p=rng.dirichlet(np.full(N_TYPES, 0.5) + 0.01))
    donors = rng.choice(N_DONORS, n_cells)
    shape = rng.gamma(0.3, size=k) + 0.35 * rng.gamma(0.3, size=(N_TYPES, k)) + 0.02  # types overlap
    scale = rng.lognormal(0, 0.2, size=(N_DONORS, k))
    return (rng.gamma(shape[types]) * scale[donors]).astype(np.float32), types


def task(cells: int, k: int, part: str) -> dict:
    """Do one part once: of kNN the 25 folds of an embedding and label, of the others one fit or one graph."""
    H, types = simulate(cells, k)
    names, y, sizes = np.unique(types.astype(str), return_inverse=True, return_counts=True)
    large = np.flatnonzero(sizes[y] >= 10)
    y = np.unique(y[large], return_inverse=True)[1]
    names = names[sizes >= 10]
    fold_of = splits.assign_folds(y, SEEDS, n_splits=5)
    clustering.neighbors(H[:200])  # compiled code is loaded before
    graph = clustering.neighbors(H).obsp["connectivities"] if part == LEIDEN else None
    with measured() as found:
        if part == NEIGHBORS:
            clustering.neighbors(H)
        elif part == LEIDEN:
            neighbors.leiden(neighbors.unweighted_graph(graph.indptr, graph.indices), 0)
        elif part == "knn":
            wanted = [(division, fold) for division in range(len(SEEDS)) for fold in range(5)]
            make = classifiers.CLASSIFIERS[classifiers.KNN]
            for (division, fold), learnt, probability in knn.probabilities(
                make, H[large], y, fold_of, wanted, n_neighbors=classifiers.N_NEIGHBORS
            ):
                scores = classifiers.score_fold(y, fold_of[division] == fold, learnt, probability, names)
        else:
            scores = classifiers.fit_fold(classifiers.CLASSIFIERS[part], H, large, names, y, fold_of[0], SEEDS[0], 0)
    told = {"F1": scores["F1"]} if part in classifiers.CLASSIFIERS else {}
    return {"classes": len(names), **found, **told}


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--parts", nargs="+", default=PARTS)
    parser.add_argument("--keep", action="store_true", help="keep the rows that are there")
    o = parser.parse_args()
    rows = [{"cells": cells, "k": o.k, "part": part} for cells in o.cells for part in o.parts]
    in_turn("scoring_atlas", task, rows, runs=1, keep=o.keep)


if __name__ == "__main__":
    main()
