"""Tables about the programs of fitted models: their top genes, their mean usage by cell type, and their matches."""

import numbers
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from aenmf_lib.data.labels import as_text
from aenmf_lib.models.matching import check_programs, match_programs, unit_rows
from aenmf_lib.programs.contents import UsageSums
from aenmf_lib.results.schema import MATCH_COLUMNS, USAGE_COLUMNS

__all__ = ["top_genes", "usage_by_type"]

_LISTED = 0.1  # smallest cosine of two programs that are listed without being a pair


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
    cell_types = pd.Series(cell_types)
    n_typed = int(as_text(cell_types).notna().sum())
    if not H or not n_typed:
        raise ValueError(f"Got {len(H)} models and {n_typed} cells with a type, of {len(cell_types)} cells. Pass at "
                         "least one of each.")  # fmt: skip
    sums = {}
    for model, usages in H.items():
        usages = np.asarray(usages)
        if usages.ndim != 2 or len(usages) != len(cell_types):
            raise ValueError(f"H of {model} has shape {usages.shape}. Expected {len(cell_types)} cells × programs.")
        sums[model] = UsageSums.of(usages, cell_types, None)
        if not np.isfinite(sums[model].sums).all():
            raise ValueError(f"H of {model} contains NaN or infinite values. Fit the model again.")
    return list_usages(sums)


def list_usages(sums: Mapping[str, UsageSums]) -> pd.DataFrame:
    """Return the table of `usage_by_type` from the sums of each model. Without types it has no rows."""
    tables = [pd.DataFrame(columns=list(USAGE_COLUMNS))]
    for model, usages in sums.items():
        n_cells, by_type = usages.typed.by_type()
        means, (n_types, k) = by_type.div(n_cells, axis=0), by_type.shape
        columns = (model, np.repeat(np.arange(k), n_types), [*n_cells.index] * k, means.to_numpy().T.ravel())
        table = dict(zip(USAGE_COLUMNS, (*columns, np.tile(n_cells, k)), strict=True))
        tables.append(pd.DataFrame(table))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def list_matches(Ws: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Compare the programs of each two models: ``Model, program, other, other_program, cosine, matched``.

    The rows of each two models are their pairs (`match_programs`), for which ``matched`` is True, and then the other
    combinations of their programs with a cosine of at least 0.1. Ws has the programs (k, n_genes) of each model.
    """
    tables = [pd.DataFrame(columns=list(MATCH_COLUMNS))]
    for model, other in combinations(Ws, 2):
        pairs, _ = match_programs(Ws[model], Ws[other])
        cosines = unit_rows(Ws[model]) @ unit_rows(Ws[other]).T  # (k, k of the other model)
        matched = np.zeros(cosines.shape, dtype=bool)
        matched[pairs[:, 0], pairs[:, 1]] = True
        listed = np.argwhere((cosines >= _LISTED) & ~matched)
        at = np.vstack([pairs, listed])
        columns = (model, at[:, 0], other, at[:, 1], cosines[*at.T].round(6), matched[*at.T])
        tables.append(pd.DataFrame(dict(zip(MATCH_COLUMNS, columns, strict=True))))
    return pd.concat(tables[1:] or tables, ignore_index=True)
