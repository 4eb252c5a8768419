"""Starts of a fit: the check of a given W, and the comparison of several random starts."""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from aenmf_lib.models.matching import stability as compare
from aenmf_lib.training.solver import Solution

log = logging.getLogger(__name__)


def check_start(start: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a W to start from as float64, (k, n_genes); raise ValueError if it is not finite, ≥ 0 and of `shape`."""
    try:
        W = np.asarray(start, dtype=np.float64)
    except (TypeError, ValueError):  # not numbers, or rows of different lengths
        W = None
    if W is not None and W.shape == shape and np.isfinite(W).all() and (W >= 0).all():
        return W
    found = f"is a {type(start).__name__} of values that form no matrix"
    if W is not None:
        found = f"has shape {W.shape}" + (f", minimum {W.min():g}" if W.size else "")
    raise ValueError(f"start {found}. Expected {shape}, all ≥ 0 and finite. Pass such a matrix, or None.")


def compare_starts(
    name: str, solutions: Sequence[Solution], Ws: Sequence[np.ndarray], best: int, seeds: range
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables `starts_` and `stability_` of a model, and log how much the starts differ.

    `Ws` are the programs of the solutions, (k, n_genes) each, in the units of X.
    """
    others = [i for i in range(len(solutions)) if i != best]
    stability = compare([Ws[i] for i in (best, *others)])
    cosines = stability.filter(like="start ").mean().to_numpy(float)
    rows = [(min(found.loss_history), found.n_iter, found.seconds, found.reason) for found in solutions]
    starts = pd.DataFrame(rows, columns=["objective", "iterations", "seconds", "stop"])
    starts.insert(0, "seed", seeds)
    starts["kept"] = starts.index == best
    starts["cosine"] = np.insert(cosines, best, 1.0)
    if others:
        objective = starts["objective"]
        spread = 100 * (objective.max() / objective.min() - 1)
        log.info("%s: %d starts; the objectives range from %.6g to %.6g (%.2g %% apart); seed %d is kept; mean cosine "
                 "of its programs to those of other starts %.3f to %.3f", name, len(solutions), objective.min(),
                 objective.max(), spread, seeds[best], min(cosines), max(cosines))  # fmt: skip
    return starts, stability
