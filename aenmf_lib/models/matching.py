"""Comparing the programs of two fits: the best pairs by cosine, and the stability over several starts."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

__all__ = ["match_programs", "stability"]


def match_programs(W_a: np.ndarray, W_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair the programs of two fits so that the sum of their cosines is largest (Hungarian method).

    Parameters
    ----------
    W_a, W_b : (k_a, n_genes), (k_b, n_genes)
        Programs of both fits over the same genes. The ranks may differ; surplus programs are in no pair.

    Returns
    -------
    pairs : (min(k_a, k_b), 2), int
        Row of W_a and row of W_b, in the order of W_a.
    cosine : (min(k_a, k_b),), float64
        Cosine of each pair; 0 for an empty program.
    """
    W_a, W_b = check_programs(W_a, "W_a"), check_programs(W_b, "W_b")
    if W_a.shape[1] != W_b.shape[1]:
        raise ValueError(f"W_a has {W_a.shape[1]} genes, W_b has {W_b.shape[1]}. Pass programs over the same genes.")
    cosines = unit_rows(W_a) @ unit_rows(W_b).T  # (k_a, k_b)
    pairs = np.column_stack(linear_sum_assignment(cosines, maximize=True))
    return pairs, cosines[pairs[:, 0], pairs[:, 1]]


def stability(Ws: Sequence[np.ndarray]) -> pd.DataFrame:
    """Compare each program of a fit with its partner in other fits. A low cosine means that it depends on the start.

    Parameters
    ----------
    Ws : (k, n_genes) each
        Programs of the fit, then those of the other fits, over the same genes.

    Returns
    -------
    DataFrame
        One row per program of the first fit: ``program`` (from 0), ``cosine`` (mean over the other fits), ``least``,
        and the cosine with each, ``start 1``, ``start 2`` … NaN without a partner or without other fits.
    """
    if not len(Ws):
        raise ValueError("Ws is empty. Pass the programs of at least one fit.")
    cosines = pd.DataFrame(index=pd.RangeIndex(len(Ws[0]), name="program"))
    for i, W in enumerate(Ws[1:], 1):
        pairs, cosine = match_programs(Ws[0], W)
        cosines[f"start {i}"] = pd.Series(cosine, pairs[:, 0])
    table = cosines.copy()
    table.insert(0, "cosine", cosines.mean(axis=1))
    table.insert(1, "least", cosines.min(axis=1))
    return table.reset_index()


def check_programs(W: np.ndarray, name: str) -> np.ndarray:
    """Return W as a float64 matrix (k, n_genes); raise if it is not finite and non-negative."""
    W = np.asarray(W, dtype=np.float64)
    if W.ndim != 2:
        raise ValueError(f"{name} has shape {W.shape}. Expected programs × genes.")
    bad = np.argwhere(~np.isfinite(W) | (W < 0))
    if len(bad):
        first = f"program {bad[0][0]}, gene {bad[0][1]}"
        raise ValueError(f"{name} contains {len(bad)} values that are negative, NaN or infinite (first: {first}: "
                         f"{W[*bad[0]]}). Expected finite values of at least 0.")  # fmt: skip
    return W


def unit_rows(W: np.ndarray) -> np.ndarray:
    """Return the rows scaled to length 1, (k, n_genes); a row of zeros stays."""
    # Divide by the largest value first: squares of tiny weights would underflow, squares of huge weights overflow.
    W = W / np.where((top := W.max(axis=1, keepdims=True, initial=0)) > 0, top, 1)
    length = np.linalg.norm(W, axis=1, keepdims=True)
    return W / np.where(length > 0, length, 1)
