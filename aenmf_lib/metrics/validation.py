"""Checks of the embeddings, labels and seeds that are passed to a benchmark."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from aenmf_lib.data.preprocessing import CELL_TYPE, is_missing

logger = logging.getLogger(__name__)


def check_inputs(
    H: Mapping[str, np.ndarray], obs: pd.DataFrame, labels: Sequence[str] = (), seeds: Sequence[int] = (0,)
) -> None:
    """Raise a ValueError for embeddings (n_cells, k), labels (columns of obs) or seeds that cannot be scored.

    A label with one class is not an error: a warning says that its scores are empty.
    """
    if not H:
        raise ValueError("There is no embedding to score. Name at least one results file.")
    for model, usages in H.items():
        kind = usages.dtype if isinstance(usages, np.ndarray) else type(usages).__name__
        if kind not in (np.float32, np.float64):
            raise ValueError(
                f"The embedding of {model} is of type {kind}. Expected an array of float32 or float64. Convert it with "
                "numpy.asarray(…, dtype=numpy.float32)."
            )
        if usages.ndim != 2 or len(usages) != len(obs):
            raise ValueError(
                f"The embedding of {model} has shape {usages.shape}, but obs has {len(obs)} cells. Expected one row "
                "per cell, in the order of obs. Take both from the same results file."
            )
        bad = ~np.isfinite(usages)
        if bad.any():
            cell, program = np.argwhere(bad)[0]
            raise ValueError(
                f"The embedding of {model} contains {bad.sum()} NaN or infinite values in {bad.any(axis=1).sum()} of "
                f"{len(obs)} cells (first: cell {obs.index[cell]!r}, column {program}). Expected finite usages. "
                f"Train {model} again and look at its loss history."
            )
    for label in labels:
        if label not in obs:
            raise ValueError(f"obs has no column {label!r}, only {list(obs.columns)}. Name one that contains labels.")
        missing = is_missing(obs[label])
        if missing.any() and (label != CELL_TYPE or missing.all()):  # a cell may have no type
            raise ValueError(
                f"obs[{label!r}] is empty for {missing.sum()} of {len(obs)} cells (first: {obs.index[missing][0]!r}). "
                "Every cell that is scored needs a label. Remove these cells before training, or name another column."
            )
        values = obs[label][~missing]
        if values.nunique() < 2:
            logger.warning(
                "obs[%r] is %r for all %d cells, so its scores are empty. A score needs at least two classes.",
                *(label, values.iloc[0], len(values)),
            )
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"The seeds are {list(seeds)}. Expected at least one seed, each only once.")
