"""Choice of the cells that are classified, and their division into cross-validation folds."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit

from aenmf_lib.data.preprocessing import is_missing

__all__ = ["Splits"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """Which cells are classified, and how they are divided into folds. The defaults are the published benchmark."""

    n_splits: int = 5  # number of folds; each needs a cell of each class
    min_cells_per_class: int = 10  # classes with fewer cells are left out
    max_cells: int = 0  # size of a subset of the cells, stratified by class; 0 takes all cells
    subset_seed: int = 42
    held_out: str = ""  # column of obs whose groups stay in one fold, such as 'donor_id' to test on unseen donors

    def __post_init__(self) -> None:
        for name, least in (("n_splits", 2), ("min_cells_per_class", 1), ("max_cells", 0)):
            if (value := getattr(self, name)) < least:
                advice = ", or to 0 for all cells" if name == "max_cells" else ""
                raise ValueError(f"{name}={value} is too small. Set it to {max(least, 1)} or more{advice}.")

    @property
    def floor(self) -> int:
        """Number of cells of each class in the smallest subset."""
        return max(self.n_splits, self.min_cells_per_class)


PUBLISHED = Splits()


def encode(labels: pd.Series) -> np.ndarray:
    """Return the class of each cell as a number, in the order of the class names; -1 if missing. (n_cells,) int."""
    known, codes = ~is_missing(labels), np.full(len(labels), -1)
    codes[known] = np.unique(labels[known].astype(str), return_inverse=True)[1]
    return codes


def _classes(obs: pd.DataFrame, label: str, min_cells: int) -> tuple[np.ndarray, pd.Series, pd.Series]:
    """Return the class of each cell (n_cells,), None if missing, and the sizes of the large and the small classes."""
    names = obs[label].astype(str).to_numpy(object, copy=True)
    names[is_missing(obs[label])] = None
    sizes = pd.Series(names, dtype=object).value_counts().sort_index()
    return names, sizes[sizes >= min_cells], sizes[sizes < min_cells]


def smallest_max_cells(obs: pd.DataFrame, label: str, splits: Splits = PUBLISHED) -> int:
    """Return the smallest `max_cells` that has enough cells of each class; 0 if there are fewer than two classes."""
    _, kept, _ = _classes(obs, label, splits.min_cells_per_class)
    return splits.floor * len(kept) if len(kept) > 1 else 0


def stratified_subset(obs: pd.DataFrame, label: str, splits: Splits = PUBLISHED) -> np.ndarray:
    """Return the rows of obs that are classified, ascending: the cells of classes that are large enough.

    The choice does not depend on an embedding, so all models are scored on the same cells. In a subset, each class gets
    ``max(n_splits, min_cells_per_class)`` cells; the rest is drawn in proportion to the class sizes. If fewer than two
    classes are large enough, a warning says so, and all their cells are returned.
    """
    n_splits, min_cells, max_cells = splits.n_splits, splits.min_cells_per_class, splits.max_cells
    names, kept, dropped = _classes(obs, label, min_cells)
    if len(kept) < 2:
        if len(sizes := pd.concat([kept, dropped])) > 1:  # `check_inputs` reports a single class
            logger.warning(
                "obs[%r] has %d classes with at least min_cells_per_class=%d cells, of %d (largest: %r, %d cells). A "
                "classification needs two, so the scores are empty.",
                *(label, len(kept), min_cells, len(sizes), sizes.idxmax(), sizes.max()),
            )
        return np.flatnonzero(np.isin(names, kept.index))
    if kept.min() < n_splits:
        raise ValueError(
            f"The class {kept.idxmin()!r} of obs[{label!r}] has {kept.min()} cells, fewer than the {n_splits} folds. "
            f"Each fold needs a cell of each class. Set min_cells_per_class to {n_splits} or more."
        )
    if len(dropped):
        logger.info(
            "%s: %d classes with fewer than %d cells are left out, %d of %d cells: %s",
            *(label, len(dropped), min_cells, dropped.sum(), len(obs)),
            ", ".join(f"{name} ({n})" for name, n in dropped.items()),
        )
    cells = np.flatnonzero(np.isin(names, kept.index))
    if max_cells == 0 or max_cells >= len(cells):
        return cells
    if max_cells < (needed := smallest_max_cells(obs, label, splits)):
        raise ValueError(
            f"max_cells={max_cells} is too small for {splits.floor} cells of each of the {len(kept)} classes of "
            f"obs[{label!r}]. Set max_cells to {needed} or more, or to 0 for all cells."
        )
    logger.info("%s: a stratified subset of %d of %d cells, seed %d", label, max_cells, len(cells), splits.subset_seed)
    classes = pd.factorize(names[cells])[0]  # numbered in the order of the cells, so names do not change the draw
    return cells[_draw(classes, max_cells, splits.floor, splits.subset_seed)]


def _draw(classes: np.ndarray, size: int, floor: int, seed: int) -> np.ndarray:
    """Return the positions of `size` cells, ascending, with at least `floor` of each of the classes (n_cells,)."""
    shuffled = np.random.default_rng(seed).permutation(len(classes))
    rank = pd.Series(shuffled).groupby(classes[shuffled]).cumcount().to_numpy()  # 0, 1, … within each class
    first, rest = shuffled[rank < floor], np.sort(shuffled[rank >= floor])
    n_more = size - len(first)
    if n_more == 0:
        return np.sort(first)
    counts = np.bincount(classes[rest])
    strata = np.where(counts[classes[rest]] > 1, classes[rest], counts.argmax())  # scikit-learn needs ≥ 2 per stratum
    if min(n_more, len(rest) - n_more) < len(np.unique(strata)):  # and ≥ 1 per side
        strata[:] = 0
    split = StratifiedShuffleSplit(1, train_size=n_more, test_size=len(rest) - n_more, random_state=seed)
    more, _ = next(split.split(rest, strata))
    return np.sort(np.r_[first, rest[more]])


def assign_folds(y: np.ndarray, seeds: Sequence[int], n_splits: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return the fold of each cell by seed, (n_seeds, n_cells) int16: classes y spread evenly, a group in one fold."""
    fold_of = np.empty((len(seeds), len(y)), np.int16)
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    for seed, row in zip(seeds, fold_of, strict=True):
        for fold, (_, test) in enumerate(splitter(n_splits, shuffle=True, random_state=seed).split(y, y, groups)):
            row[test] = fold
    return fold_of


def assign_donor_folds(
    y: np.ndarray, names: np.ndarray, groups: np.ndarray, seeds: Sequence[int], splits: Splits, label: str
) -> np.ndarray:
    """Return `assign_folds` with whole groups in a fold, and -1 for the cells of a fold that cannot be scored.

    A fold is scored if it has at least two classes that the other folds have too. There are never more folds than
    groups. y (n_cells,) is the class of each cell, an index into `names`; `label` is its column, for log lines.
    """
    n_groups, held_out = len(np.unique(groups)), splits.held_out
    if n_groups < 2:
        logger.warning(
            "%s: obs[%r] is the same for all %d chosen cells, so the scores are empty. Expected at least two values, "
            "one to train on and one to test.",
            *(label, held_out, len(y)),
        )
        return np.full((len(seeds), len(y)), -1, np.int16)
    n_splits = min(splits.n_splits, n_groups)
    if n_splits < splits.n_splits:
        logger.info("%s: %d folds, because the chosen cells have only %d %s", label, n_groups, n_groups, held_out)
    fold_of = assign_folds(y, seeds, n_splits, groups)
    for seed, folds in zip(seeds, fold_of, strict=True):
        for fold in range(n_splits):
            test = folds == fold
            tested, unknown = np.unique(y[test]), np.setdiff1d(y[test], y[~test])
            if len(unknown):
                logger.info(
                    "%s, seed %d, fold %d: %d of %d cells are left out, their class has no training cell: %s",
                    *(label, seed, fold, np.isin(y[test], unknown).sum(), test.sum(), ", ".join(names[unknown])),
                )
            if len(tested) - len(unknown) < 2:
                logger.warning(
                    "%s, seed %d, fold %d is left out: its %d %s have fewer than two classes with training cells (%s)",
                    *(label, seed, fold, len(np.unique(groups[test])), held_out, ", ".join(names[tested])),
                )
                folds[test] = -1
    return fold_of
