"""Which cells are classified, against which labels, and which of them are in which fold?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from aenmf_lib import data
from aenmf_lib.data import CELL_TYPE, DONOR

logger = logging.getLogger(__name__)

LABELS = (CELL_TYPE, DONOR)


def check_embeddings(H: Mapping[str, np.ndarray], obs: pd.DataFrame) -> None:
    """Stop on embeddings that neither benchmark can score.

    Parameters
    ----------
    H : model name -> (n_cells, k)
    obs : (n_cells, columns)

    Raises
    ------
    ValueError
        No embedding; one with other rows than obs; one with NaN or infinite values.
    """
    if not H:
        raise ValueError("There is no embedding to score. Name at least one results file.")
    for model, usages in H.items():
        if usages.ndim != 2 or len(usages) != len(obs):
            raise ValueError(
                f"The embedding of {model} has shape {usages.shape}, but obs has {len(obs)} cells. Expected a row for "
                f"each cell, in the order of obs: take both from the same results file."
            )
        bad = ~np.isfinite(usages)
        if bad.any():
            cell, program = np.argwhere(bad)[0]
            raise ValueError(
                f"The embedding of {model} holds {bad.sum()} NaN or infinite values in {bad.any(axis=1).sum()} of "
                f"{len(obs)} cells (first: cell {obs.index[cell]!r}, column {program}). Expected finite usages: train "
                f"{model} again and look at its loss history."
            )


def codes(labels: pd.Series) -> np.ndarray:
    """Give each class a number, in the order of their names; -1 for cells without. (n_cells,) int."""
    there, found = ~data.missing(labels), np.full(len(labels), -1)
    found[there] = np.unique(labels[there].astype(str), return_inverse=True)[1]
    return found


def check_labels(obs: pd.DataFrame, labels: Sequence[str], seeds: Sequence[int]) -> None:
    """Stop on labels and seeds that neither benchmark can use.

    Cells may lack a `cell_type`: they are left out of every score against it.

    Parameters
    ----------
    obs : (n_cells, columns)
    labels
        Columns of obs to score against.
    seeds
        Repetitions.

    Raises
    ------
    ValueError
        A label that is missing as a column, missing for some cells (but for `cell_type`), or the same for all; no
        seed, or one seed twice.
    """
    for label in labels:
        if label not in obs:
            raise ValueError(f"obs has no column {label!r}, only {list(obs.columns)}. Name a column that holds labels.")
        missing = data.missing(obs[label])
        if missing.any() and (label != CELL_TYPE or missing.all()):
            raise ValueError(
                f"obs[{label!r}] is empty for {missing.sum()} of {len(obs)} cells (first: {obs.index[missing][0]!r}). "
                f"Every cell that is scored needs a label: leave these cells out before training, or name another "
                f"column."
            )
        there = obs[label][~missing]
        if there.nunique() < 2:
            raise ValueError(
                f"obs[{label!r}] is {there.iloc[0]!r} for all {len(there)} cells. Agreement and classification need "
                f"at least two classes: keep more cells (a lower min_cells), or leave {label!r} out of the labels."
            )
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"The seeds are {list(seeds)}. Expected at least one, and none twice.")


def choose_cells(
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
    classes[data.missing(obs[label])] = None  # in no class
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


def divide(y: np.ndarray, seeds: Sequence[int], *, n_splits: int, groups: np.ndarray | None = None) -> np.ndarray:
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


def divide_unseen(
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
    fold_of = divide(y, seeds, n_splits=n_splits, groups=groups)
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
