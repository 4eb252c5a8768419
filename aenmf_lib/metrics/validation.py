"""TODO module docstring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from aenmf_lib.data import preprocessing
from aenmf_lib.data.preprocessing import CELL_TYPE


def select_label(long: pd.DataFrame, label: str, settings: Sequence[str]) -> pd.DataFrame:
    """Take the rows of one label from a long table, if all were made under one value of each setting."""
    rows = long[long["label"] == label]
    if rows.empty:
        raise ValueError(f"The table holds no score against {label!r}, only against {sorted(long['label'].unique())}.")
    for setting in settings:
        values = sorted(rows[setting].unique().tolist())
        if len(values) > 1:
            raise ValueError(
                f"The scores against {label!r} come from runs with different {setting}: {values}. They cannot share a "
                f"table: run the benchmark again on all models at once."
            )
    return rows


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
        missing = preprocessing.is_missing(obs[label])
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
