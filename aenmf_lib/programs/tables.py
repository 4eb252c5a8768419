"""Tables about the programs of fitted models: their top genes and their mean usage by cell type."""

import numbers
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from aenmf_lib.models.matching import check_programs

__all__ = ["top_genes", "usage_by_type"]


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
    W = check_programs(W, "W")
    genes = np.asarray(genes)
    if genes.shape != (W.shape[1],):
        raise ValueError(f"W has {W.shape[1]} genes, but genes has shape {genes.shape}. Pass one name per column of W.")
    if not isinstance(n, numbers.Integral) or n < 1:
        raise ValueError(f"n={n!r} is not valid. Choose a whole number of at least 1.")
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
