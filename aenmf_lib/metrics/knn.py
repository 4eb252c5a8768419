"""k-nearest-neighbor classification of all folds of all seeds by one search.

The pipeline z-scores the training cells of each fold, so distances differ slightly from fold to fold. The one search
divides each column by its largest standard deviation in any fold. Search distances are lower bounds, so cells beyond a
fold's k-th distance can be skipped. The distances of a fold are computed for a few dozen candidates per cell; where
rounding could change the neighbors, the pipeline of scikit-learn predicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from joblib import Parallel, delayed
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches
from threadpoolctl import threadpool_limits

from aenmf_lib.metrics.classifiers import CLASSIFIERS, KNN, N_NEIGHBORS
from aenmf_lib.metrics.neighbors import nearest_candidates, rounding_error

if TYPE_CHECKING:
    import torch

_CANDIDATES = 40  # per cell: enough to settle ≥ 99 % of cells (15 neighbors, 5 folds; measured)
_BATCH = 256  # cells per batch: their differences to the candidates fit into the cache


def probabilities(
    H: np.ndarray,
    y: np.ndarray,
    fold_of: Mapping[int, np.ndarray],
    wanted: Iterable[tuple[int, int]],
    n_jobs: int = -1,
    on: torch.device | None = None,
) -> Iterator[tuple[tuple[int, int], np.ndarray, np.ndarray]]:
    """Yield the probabilities of ``CLASSIFIERS[KNN]`` for the cells of each wanted fold.

    H is (n_cells, k), y (n_cells,) int, and `fold_of` maps a seed to the fold of each cell. For each wanted pair of a
    seed and a fold: yields the pair, the training classes (n_learned,), and the probabilities (n_test, n_learned). They
    are the same if the GPU `on` finds the neighbors instead of scikit-learn.
    """
    seeds = list(fold_of)
    found, undecided = _neighbors_outside_fold(H, np.stack(list(fold_of.values())), n_jobs, on)
    n_classes = int(y.max()) + 1
    for seed, fold in wanted:
        division, test = seeds.index(seed), fold_of[seed] == fold
        classes = np.unique(y[~test])
        rows = np.arange(test.sum())[:, None] * n_classes
        votes = np.bincount((rows + y[found[division, test]]).ravel(), minlength=rows.size * n_classes)
        probability = votes.reshape(-1, n_classes)[:, classes] / N_NEIGHBORS
        unclear = undecided[division, test]
        if unclear.any():
            pipeline = CLASSIFIERS[KNN](0).fit(H[~test], y[~test])
            probability[unclear] = pipeline.predict_proba(H[np.flatnonzero(test)[unclear]])
        yield (seed, fold), classes, probability


def _neighbors_outside_fold(
    H: np.ndarray, fold_of: np.ndarray, n_jobs: int = -1, on: torch.device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest cells in the other folds, z-scored over these, (n_divisions, n_cells, N_NEIGHBORS) int32.

    Also returns where rounding could change them, (n_divisions, n_cells) bool. `fold_of` is (n_divisions, n_cells).
    """
    n_cells, n_candidates = len(H), min(_CANDIDATES, len(H))
    found = np.zeros((len(fold_of), n_cells, N_NEIGHBORS), np.int32)
    undecided = np.ones((len(fold_of), n_cells), bool)
    if n_candidates <= N_NEIGHBORS:
        return found, undecided
    scalers = [[StandardScaler().fit(H[of != fold]) for fold in range(max(of.max(), 0) + 1)] for of in fold_of]
    scales = [np.stack([scaler.scale_ for scaler in division]) for division in scalers]  # each (n_folds, k)
    means = [np.stack([scaler.mean_ for scaler in division]) for division in scalers]
    widest = np.concatenate(scales).max(axis=0)

    Z = (H - H.mean(axis=0, dtype=np.float64)) / widest  # centered, to reduce the rounding error of differences
    if on:
        candidates, _, beyond = nearest_candidates(Z, n_candidates, on)
    else:
        distance, candidates = NearestNeighbors(n_neighbors=n_candidates, algorithm="brute").fit(Z).kneighbors(Z)
        beyond = np.square(distance[:, -1]) if n_candidates < n_cells else np.full(n_cells, np.inf)

    def decide(rows: slice) -> None:
        near = candidates[rows]
        squares = np.square(Z[rows, None] - Z[near])  # (n_rows, n_candidates, k)
        for division, of in enumerate(fold_of):
            own = of[rows]
            scale = scales[division][own]
            d2 = np.matmul(squares, np.square(widest / scale)[..., None])[..., 0]
            d2[of[near] == own[:, None]] = np.inf
            order = np.argpartition(d2, (N_NEIGHBORS - 1, N_NEIGHBORS), axis=1)[:, : N_NEIGHBORS + 1]
            last, next_ = np.take_along_axis(d2, order[:, -2:], axis=1).T
            found[division, rows] = np.take_along_axis(near, order[:, :-1], axis=1)
            norm = np.linalg.norm((H[rows] - means[division][own]) / scale, axis=1)
            error = _error_of_pipeline(norm, np.sqrt(last), H)
            undecided[division, rows] = (next_ <= last + 2 * error) | (beyond[rows] <= last + error)

    with threadpool_limits(1, "blas"):
        Parallel(n_jobs=n_jobs, require="sharedmem")(delayed(decide)(rows) for rows in gen_batches(n_cells, _BATCH))
    return found, undecided


def _error_of_pipeline(norm: np.ndarray, distance: np.ndarray, H: np.ndarray) -> np.ndarray:
    """Return a bound on the rounding error of squared distances, given the norms of the z-scores and the distances."""
    moved = 1.01 * np.finfo(H.dtype).eps * (2 * norm + distance)  # each z-score is rounded to the dtype of H twice
    return moved * (2 * distance + moved) + rounding_error(norm, distance, H.shape[1])
