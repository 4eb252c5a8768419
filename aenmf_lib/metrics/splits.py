"""Which cells are classified, against which labels, and which of them are in which fold?"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from aenmf_lib.data import preprocessing

logger = logging.getLogger(__name__)


def encode(labels: pd.Series) -> np.ndarray:
    """Give each class a number, in the order of their names; -1 for cells without. (n_cells,) int."""
    there, found = ~preprocessing.is_missing(labels), np.full(len(labels), -1)
    found[there] = np.unique(labels[there].astype(str), return_inverse=True)[1]
    return found


def stratified_subset(
    obs: pd.DataFrame,
    label: str,
    *,
    n_splits: int = 5,
    min_cells_per_class: int = 10,
    max_cells: int = 0,
    subset_seed: int = 42,
) -> np.ndarray:
    """Choose the cells that are classified: those of large enough classes and, with `max_cells`, a stratified subset.

    The subset is drawn without looking at an embedding, so all models see the same cells. Each class gets
    `max(n_splits, min_cells_per_class)` cells, and of what is left a share in proportion to its other cells.

    Parameters
    ----------
    obs : (n_cells, columns)
    label
        Column of obs that holds the classes; cells without are left out.
    n_splits
        Folds; each needs a cell of each class.
    min_cells_per_class
        Smaller classes are left out, and logged with their counts.
    max_cells
        Size of the subset; 0 keeps all cells.
    subset_seed
        Decides which cells the subset holds.

    Returns
    -------
    cells : (n_chosen,), int
        Row numbers in obs, ascending.

    Raises
    ------
    ValueError
        Fewer than two classes are large enough; a class is smaller than the folds; `max_cells` is negative or too
        small.
    """
    classes = np.array(obs[label].astype(str), object)
    classes[preprocessing.is_missing(obs[label])] = None  # in no class
    sizes = pd.Series(classes).value_counts().sort_index()
    kept = sizes[sizes >= min_cells_per_class]
    if len(kept) < 2:
        raise ValueError(
            f"obs[{label!r}] has {len(kept)} classes with at least min_cells_per_class={min_cells_per_class} cells, of "
            f"{len(sizes)} (largest: {sizes.idxmax()!r}, {sizes.max()} cells). Classification needs two: keep more "
            f"cells."
        )
    if kept.min() < n_splits:
        raise ValueError(
            f"The class {kept.idxmin()!r} of obs[{label!r}] has {kept.min()} cells, fewer than the {n_splits} folds. "
            f"Each fold needs a cell of each class: set min_cells_per_class to {n_splits} or more."
        )
    dropped = sizes.drop(kept.index)
    if len(dropped):
        logger.info(
            "%s: %d classes with fewer than %d cells are left out, %d of %d cells: %s",
            *(label, len(dropped), min_cells_per_class, dropped.sum(), len(obs)),
            ", ".join(f"{name} ({n})" for name, n in dropped.items()),
        )
    cells = np.flatnonzero(np.isin(classes, kept.index))
    if max_cells < 0:
        raise ValueError(f"max_cells={max_cells} is negative. Expected a number of cells, or 0 for all.")
    if max_cells == 0 or max_cells >= len(cells):
        return cells

    floor = max(n_splits, min_cells_per_class)  # every kept class holds as many
    spare = max_cells - floor * len(kept)
    if spare < 0:
        raise ValueError(
            f"max_cells={max_cells} cannot hold {floor} cells of each of the {len(kept)} classes of obs[{label!r}]. "
            f"Set max_cells to {floor * len(kept)} or more, or to 0 for all cells."
        )
    logger.info("%s: a stratified subset of %d of %d cells, seed %d", label, max_cells, len(cells), subset_seed)
    share = spare * (kept - floor) / (kept - floor).sum()
    quota = floor + np.floor(share).astype(int)
    largest_remainder = (share % 1).sort_values(ascending=False, kind="stable").index
    quota[largest_remainder[: max_cells - quota.sum()]] += 1
    shuffled = np.random.default_rng(subset_seed).permutation(cells)
    rank = pd.Series(shuffled).groupby(classes[shuffled]).cumcount().to_numpy()  # first, second ... of its class
    return np.sort(shuffled[rank < quota[classes[shuffled]].to_numpy()])


def assign_folds(y: np.ndarray, seeds: Sequence[int], *, n_splits: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Put each cell into a fold, once for each seed, so that classes are spread evenly.

    Parameters
    ----------
    y : (n_cells,)
        Class of each cell.
    seeds, n_splits
        Of `StratifiedKFold(n_splits, shuffle=True, random_state=seed)`.
    groups : (n_cells,)
        If given, cells of one group are kept in one fold, by `StratifiedGroupKFold`.

    Returns
    -------
    fold_of : (n_seeds, n_cells), int8
    """
    fold_of = np.empty((len(seeds), len(y)), np.int8)
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    for seed, row in zip(seeds, fold_of, strict=True):
        folds = kind(n_splits, shuffle=True, random_state=seed).split(y, y, groups)
        for fold, (_, test) in enumerate(folds):
            row[test] = fold
    return fold_of


def assign_donor_folds(
    y: np.ndarray,
    names: np.ndarray,
    seeds: Sequence[int],
    *,
    n_splits: int,
    groups: np.ndarray,
    label: str,
    unseen: str,
) -> np.ndarray:
    """Put whole groups into folds, see `divide`, and say which classes a fold cannot score.

    Parameters
    ----------
    names : (n_classes,)
    n_splits
        Folds; as many as there are groups, if these are fewer.
    label, unseen
        Columns of obs that y and groups are from.

    Returns
    -------
    fold_of : (n_seeds, n_cells), int8
        -1 for the cells of a fold that holds fewer than two classes that the others hold too: it is left out.

    Raises
    ------
    ValueError
        One group alone.
    """
    n_groups = len(np.unique(groups))
    if n_groups < 2:
        raise ValueError(f"obs[{unseen!r}] is the same for all {len(y)} cells chosen: nothing is left unseen.")
    if n_groups < n_splits:
        logger.info("%s: %d folds, for there are so many %s among the cells chosen", label, n_groups, unseen)
        n_splits = n_groups
    fold_of = assign_folds(y, seeds, n_splits=n_splits, groups=groups)
    for seed, of in zip(seeds, fold_of, strict=True):
        for fold in range(n_splits):
            asked, learnt = np.unique(y[of == fold]), np.unique(y[of != fold])
            alone = np.setdiff1d(asked, learnt)
            if len(alone):
                logger.info(
                    "%s, seed %d, fold %d: in no %s that is learnt from, so %d of %d cells are left out: %s",
                    *(label, seed, fold, unseen, np.isin(y[of == fold], alone).sum(), (of == fold).sum()),
                    ", ".join(names[alone]),
                )
            if len(asked) - len(alone) < 2:
                logger.warning(
                    "%s, seed %d, fold %d is left out: its %d %s hold fewer than two classes that others hold too (%s)",
                    *(label, seed, fold, len(np.unique(groups[of == fold])), unseen, ", ".join(names[asked])),
                )
                of[of == fold] = -1
    return fold_of
