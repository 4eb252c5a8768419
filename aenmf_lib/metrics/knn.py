"""Which training cells are nearest to each cell, in all folds of all seeds at once?

The pipeline of k nearest neighbors z-scores the training cells of each fold, so each fold has distances of its own,
and takes a search of its own. But they differ little. One search, with every column divided by the largest deviation
that it has in any fold, gives distances no longer than those of any fold: a cell farther there than the k-th neighbor
of a fold is no neighbor in it. Of a few dozen candidates a cell the distances of each fold are computed; where they
do not decide beyond rounding, the pipeline itself is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import ClassifierMixin
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches
from threadpoolctl import threadpool_limits

_CANDIDATES = 40  # a cell; measured, for 15 neighbors in four fifths of the cells: 99 % or more are decided
_BATCH = 256  # cells at once: their differences to the candidates fit the cache


def probabilities(
    make: Callable[[int], ClassifierMixin],
    H: np.ndarray,
    y: np.ndarray,
    fold_of: np.ndarray,
    wanted: Iterable[tuple[int, int]],
    *,
    n_neighbors: int,
    n_jobs: int = -1,
) -> Iterator[tuple[tuple[int, int], np.ndarray, np.ndarray]]:
    """Give what `StandardScaler` and `KNeighborsClassifier` give for the cells of each fold.

    Parameters
    ----------
    make
        Gives that pipeline, for a seed that it does not need.
    H : (n_cells, k)
    y : (n_cells,), int
    fold_of : (n_divisions, n_cells), int
        Fold of each cell, in each of several ways to divide them.
    wanted
        Pairs of a division and a fold.
    n_neighbors
        Those of the pipeline.
    n_jobs
        Threads.

    Yields
    ------
    A pair that is wanted, the classes learnt there, and their probabilities in the cells of the fold, (n_test,
    n_learnt).
    """
    found, undecided = _neighbors_outside_fold(H, fold_of, n_neighbors, n_jobs=n_jobs)
    n_classes = int(y.max()) + 1
    for division, fold in wanted:
        test = fold_of[division] == fold
        classes = np.unique(y[~test])
        rows = np.arange(test.sum())[:, None] * n_classes
        votes = np.bincount((rows + y[found[division, test]]).ravel(), minlength=rows.size * n_classes)
        probability = votes.reshape(-1, n_classes)[:, classes] / n_neighbors
        asked = undecided[division, test]
        if asked.any():
            pipeline = make(0).fit(H[~test], y[~test])
            probability[asked] = pipeline.predict_proba(H[np.flatnonzero(test)[asked]])
        yield (division, fold), classes, probability


def _neighbors_outside_fold(
    H: np.ndarray, fold_of: np.ndarray, n_neighbors: int, *, n_jobs: int = -1
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest cells that are not in a cell's own fold, z-scored over all that are not.

    Returns
    -------
    found : (n_divisions, n_cells, n_neighbors), int32
    undecided : (n_divisions, n_cells), bool
        Where `found` may not be what the z-scores in the precision of H give.
    """
    n_cells, n_candidates = len(H), min(_CANDIDATES, len(H))
    found = np.zeros((len(fold_of), n_cells, n_neighbors), np.int32)
    undecided = np.ones((len(fold_of), n_cells), bool)
    if n_candidates <= n_neighbors:
        return found, undecided
    scalers = [[StandardScaler().fit(H[of != fold]) for fold in range(max(of.max(), 0) + 1)] for of in fold_of]
    scales = [np.stack([scaler.scale_ for scaler in division]) for division in scalers]  # each (n_folds, k)
    means = [np.stack([scaler.mean_ for scaler in division]) for division in scalers]
    widest = np.concatenate(scales).max(axis=0)

    Z = (H - H.mean(axis=0, dtype=np.float64)) / widest  # centered, or the search would cancel what differs
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
            order = np.argpartition(d2, (n_neighbors - 1, n_neighbors), axis=1)[:, : n_neighbors + 1]
            last, next_ = np.take_along_axis(d2, order[:, -2:], axis=1).T
            found[division, rows] = np.take_along_axis(near, order[:, :-1], axis=1)
            norm = np.linalg.norm((H[rows] - means[division][own]) / scale, axis=1)
            error = _rounding(norm, np.sqrt(last), H.dtype)
            undecided[division, rows] = (next_ <= last + 2 * error) | (beyond[rows] <= last + error)

    with threadpool_limits(1, "blas"):
        Parallel(n_jobs=n_jobs, require="sharedmem")(delayed(decide)(rows) for rows in gen_batches(n_cells, _BATCH))
    return found, undecided


def _rounding(norm: np.ndarray, distance: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Bound what rounding does to the squared distance of a cell's z-scores, of this norm, to others.

    Each z-score is rounded to `dtype` twice; distances are then computed in float64 as ``‖a‖² - 2 ab + ‖b‖²``.
    """
    both = 2 * norm + distance  # no less than the norms of the two together
    moved = 1.01 * np.finfo(dtype).eps * both
    return moved * (2 * distance + moved) + 64 * np.finfo(np.float64).eps * np.square(both)
