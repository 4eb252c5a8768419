"""What is in a program? Its genes, the cell types that use it, and its partner in another run."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix


def top_genes(W: np.ndarray, genes: Sequence[str], n: int = 10) -> pd.DataFrame:
    """List the genes with the largest weights of each program.

    Parameters
    ----------
    W : (k, n_genes)
        Programs, one a row. Not negative.
    genes : (n_genes,)
        Gene names, in the order of W's columns.
    n
        Genes a program. A program with fewer positive weights lists only those.

    Returns
    -------
    DataFrame
        Columns ``program`` (row of W, from 0), ``rank`` (from 1), ``gene``, ``weight``. Equals stay in gene order.

    Raises
    ------
    ValueError
        W is no matrix, holds NaN, infinite or negative values, ``genes`` does not fit it, or ``n`` is below 1.
    """
    W = _programs(W, "W")
    genes = np.asarray(genes)
    if genes.shape != (W.shape[1],):
        raise ValueError(f"W has {W.shape[1]} genes, but genes has shape {genes.shape}: give one name for each column.")
    if n < 1:
        raise ValueError(f"n = {n}: ask for at least one gene a program.")
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
    """Average the usage of each program over the cells of each type.

    Parameters
    ----------
    H : {model: (n_cells, k)}
        Usages of each model, the same cells in the same order (as in ``results.Embeddings.H``).
    cell_types : (n_cells,)
        The type of each cell; those without one are left out.

    Returns
    -------
    DataFrame
        A row per (model, program, type that has cells): ``Model``, ``program`` (column of H, from 0), ``cell_type``,
        ``mean_usage`` (in the units of H), ``n_cells``.

    Raises
    ------
    ValueError
        No model, a matrix that does not fit ``cell_types`` or is not finite, or no cell with a type.
    """
    types = pd.Categorical(cell_types).remove_unused_categories()
    there = np.flatnonzero(types.codes >= 0)
    if not H or not len(there):
        raise ValueError(
            f"{len(H)} models and {len(there)} cells with a type, of {len(types)}: a table of usages needs at least "
            "one of each."
        )
    counts = np.bincount(types.codes[there], minlength=len(types.categories))  # (n_types,)
    shape = len(types.categories), len(types)
    members = csr_matrix((np.ones(len(there)), (types.codes[there], there)), shape)  # (n_types, n_cells)
    tables = []
    for model, usage in H.items():
        usage = np.asarray(usage)
        if usage.ndim != 2 or len(usage) != len(types):
            raise ValueError(f"H of {model} has shape {usage.shape}: expected {len(types)} cells by programs.")
        means = (members @ usage.astype(np.float64)) / counts[:, None]  # (n_types, k)
        if not np.isfinite(means).all():
            raise ValueError(f"H of {model} holds NaN or infinite values: fit the model again.")
        table = pd.DataFrame(means.T, columns=types.categories).melt(
            var_name="cell_type", value_name="mean_usage", ignore_index=False
        )
        table = table.rename_axis("program").reset_index().sort_values("program", kind="stable")
        table["n_cells"] = table["cell_type"].map(dict(zip(types.categories, counts, strict=True)))
        table.insert(0, "Model", model)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def match_programs(W_a: np.ndarray, W_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair the programs of two runs so that the sum of their cosines is largest (Hungarian method).

    Parameters
    ----------
    W_a : (k_a, n_genes)
        Programs of one run (or planted ones), one a row.
    W_b : (k_b, n_genes)
        Programs of the other, over the same genes in the same order. The ranks may differ.

    Returns
    -------
    pairs : (min(k_a, k_b), 2), int
        Row of W_a, row of W_b, in the order of W_a. With unlike ranks the programs left over are in no pair.
    cosine : (min(k_a, k_b),), float64
        Cosine of each pair. A program of zeros has cosine 0 with any other.

    Raises
    ------
    ValueError
        The genes differ in number, or a matrix holds NaN, infinite or negative values.

    References
    ----------
    Kuhn (1955), Naval Res. Logist. Q. 2:83, doi:10.1002/nav.3800020109.
    """
    W_a, W_b = _programs(W_a, "W_a"), _programs(W_b, "W_b")
    if W_a.shape[1] != W_b.shape[1]:
        raise ValueError(f"W_a has {W_a.shape[1]} genes, W_b {W_b.shape[1]}: programs are compared gene by gene.")
    cosines = _unit_rows(W_a) @ _unit_rows(W_b).T  # (k_a, k_b)
    pairs = np.column_stack(linear_sum_assignment(cosines, maximize=True))
    return pairs, cosines[pairs[:, 0], pairs[:, 1]]


def stability(Ws: Sequence[np.ndarray]) -> pd.DataFrame:
    """Tell how alike each program of a fit is to its partner in others: those of low cosine hang on the start.

    Parameters
    ----------
    Ws : (k, n_genes) each
        Programs of the fit that is kept, then those of the others, over the same genes.

    Returns
    -------
    DataFrame
        A row a program of the first: ``program`` (from 0), ``cosine`` (mean over the others), ``least``, and
        ``start 1``, ``start 2`` … with each. NaN where another, of lower rank, has no partner; all, without others.

    Raises
    ------
    ValueError
        From `match`; or there is no W.
    """
    if not len(Ws):
        raise ValueError("there are no programs: give those of one fit at least.")
    table = pd.DataFrame(index=pd.RangeIndex(len(Ws[0]), name="program"))
    for i, W in enumerate(Ws[1:], 1):
        pairs, cosine = match_programs(Ws[0], W)
        table[f"start {i}"] = pd.Series(cosine, pairs[:, 0])
    each = table.copy()
    table.insert(0, "cosine", each.mean(axis=1))
    table.insert(1, "least", each.min(axis=1))
    return table.reset_index()


def _programs(W: np.ndarray, name: str) -> np.ndarray:
    """Give W as a float64 matrix, or say what is wrong with it."""
    W = np.asarray(W, dtype=np.float64)
    if W.ndim != 2:
        raise ValueError(f"{name} has shape {W.shape}: expected programs by genes.")
    bad = np.argwhere(~np.isfinite(W) | (W < 0))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{name} holds {len(bad)} values that are negative, NaN or infinite (first: program {row}, gene {column}: "
            f"{W[row, column]}): programs are finite and not negative."
        )
    return W


def _unit_rows(W: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; a row of zeros stays."""
    # The largest value first: the squares of tiny weights would vanish, those of huge ones overflow.
    W = W / np.where((top := W.max(axis=1, keepdims=True, initial=0)) > 0, top, 1)
    length = np.linalg.norm(W, axis=1, keepdims=True)
    return W / np.where(length > 0, length, 1)
