"""Tables about programs: top genes, mean usage by cell type, matching between fits, and stability."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix

__all__ = ["match_programs", "stability", "top_genes", "usage_by_type"]


def top_genes(W: np.ndarray, genes: Sequence[str], n: int = 10) -> pd.DataFrame:
    """List the genes with the largest weights of each program.

    Parameters
    ----------
    W, genes : (k, n_genes), (n_genes,)
        Programs, finite and non-negative, and the names of the genes.
    n
        Number of genes per program, at least 1. Genes with weight 0 are not listed.

    Returns
    -------
    DataFrame
        ``program`` (row of W, from 0), ``rank`` (from 1), ``gene``, ``weight``. Ties keep the order of the genes.
    """
    W = _check_programs(W, "W")
    genes = np.asarray(genes)
    if genes.shape != (W.shape[1],):
        raise ValueError(f"W has {W.shape[1]} genes, but genes has shape {genes.shape}. Pass one name per column of W.")
    if n < 1:
        raise ValueError(f"n={n} is too small. Choose n of at least 1.")
    order = np.argsort(-W, axis=1, kind="stable")[:, :n]  # (k, n)
    table = pd.DataFrame(
        {
            "program": np.repeat(np.arange(len(W)), order.shape[1]),
            "rank": np.tile(np.arange(1, order.shape[1] + 1), len(W)),
            "gene": genes[order].ravel(),
            "weight": np.take_along_axis(W, order, axis=1).ravel(),
        }
    )
    return table[table["weight"] > 0].reset_index(drop=True)


def usage_by_type(H: Mapping[str, np.ndarray], cell_types: pd.Series) -> pd.DataFrame:
    """Compute the mean usage of each program over the cells of each type.

    Parameters
    ----------
    H : {model: (n_cells, k)}
        Usages by model, of the same cells in the same order.
    cell_types : (n_cells,)
        Type of each cell. Cells without a type are left out.

    Returns
    -------
    DataFrame
        One row per model, program and type: ``Model``, ``program`` from 0, ``cell_type``, ``mean_usage``, ``n_cells``.
    """
    types = pd.Categorical(cell_types).remove_unused_categories()
    labeled = np.flatnonzero(types.codes >= 0)
    if not H or not len(labeled):
        found = f"{len(H)} models and {len(labeled)} cells with a type, of {len(types)} cells"
        raise ValueError(f"Got {found}. Pass at least one of each.")
    counts = np.bincount(types.codes[labeled], minlength=len(types.categories))  # (n_types,)
    shape = len(types.categories), len(types)
    members = csr_matrix((np.ones(len(labeled)), (types.codes[labeled], labeled)), shape)  # (n_types, n_cells)
    tables = []
    for model, usages in H.items():
        usages = np.asarray(usages)
        if usages.ndim != 2 or len(usages) != len(types):
            raise ValueError(f"H of {model} has shape {usages.shape}. Expected {len(types)} cells × programs.")
        means = (members @ usages.astype(np.float64)) / counts[:, None]  # (n_types, k)
        if not np.isfinite(means).all():
            raise ValueError(f"H of {model} contains NaN or infinite values. Fit the model again.")
        k, n_types = means.shape[1], len(counts)
        table = {"Model": model, "program": np.repeat(np.arange(k), n_types), "cell_type": list(types.categories) * k}
        tables.append(pd.DataFrame(table | {"mean_usage": means.T.ravel(), "n_cells": np.tile(counts, k)}))
    return pd.concat(tables, ignore_index=True)


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
    W_a, W_b = _check_programs(W_a, "W_a"), _check_programs(W_b, "W_b")
    if W_a.shape[1] != W_b.shape[1]:
        raise ValueError(f"W_a has {W_a.shape[1]} genes, W_b has {W_b.shape[1]}. Pass programs over the same genes.")
    cosines = _unit_rows(W_a) @ _unit_rows(W_b).T  # (k_a, k_b)
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


def _check_programs(W: np.ndarray, name: str) -> np.ndarray:
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


def _unit_rows(W: np.ndarray) -> np.ndarray:
    """Return the rows scaled to length 1, (k, n_genes); a row of zeros stays."""
    # Divide by the largest value first: squares of tiny weights would underflow, squares of huge weights overflow.
    W = W / np.where((top := W.max(axis=1, keepdims=True, initial=0)) > 0, top, 1)
    length = np.linalg.norm(W, axis=1, keepdims=True)
    return W / np.where(length > 0, length, 1)
