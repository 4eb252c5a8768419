"""Tables about the programs of fitted models: their genes, their mean usage by cell type, and their matches."""

import numbers
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from aenmf_lib.data.labels import CELL_TYPE, as_text
from aenmf_lib.models.base import Model
from aenmf_lib.models.matching import check_programs, match_programs, unit_rows
from aenmf_lib.programs.contents import Contents, UsageSums, read_contents
from aenmf_lib.results.schema import GENE_COLUMNS, MATCH_COLUMNS, USAGE_COLUMNS
from aenmf_lib.training.inputs import Cells

__all__ = ["gene_table", "top_genes", "usage_by_type"]

_LISTED = 0.1  # smallest cosine of two programs that are listed without being a pair
# symbols, in upper or lower case; without the kinases RPS6K… and the binding protein RPS19BP1
_GROUPS = {"ribosomal": r"RP(?:[SL]\d+(?!\d|K|BP)|LP[0-2]|SA$)", "mitochondrial": "MT-"}


def gene_table(model: str | Path | Model, cells: Cells | None = None, *, n: int = 100) -> pd.DataFrame:
    """Return the genes with the largest weights of each program, with their symbols and their specificity.

    Parameters
    ----------
    model
        Path of a results file, or a fitted model.
    cells
        Cells of the fit. Needed only for a fitted model or for a file written by ``model.save``.
    n
        Number of genes per program, at least 1. Genes with weight 0 are not listed.

    Returns
    -------
    DataFrame
        - ``program`` (from 0), ``rank`` (position of the gene in its program, from 1)
        - ``gene`` (the id), ``symbol`` (the symbol in `var`, or the id of a gene without one)
        - ``weight``: W_jg. With gene weights in the fit, W is still that of X, not of the weighted X.
        - ``specificity``: share of the program in the reconstruction of the gene, ``‖h_j‖ W_jg / Σ_i ‖h_i‖ W_ig``, from
          0 to 1. It does not change if a row of W is divided by a number and its column of H is multiplied by it.
        - ``ribosomal``, ``mitochondrial``: whether the symbol is that of such a gene (RPL…, RPS…, MT-…, in upper or
          lower case). Both are False if there are no symbols.

    Raises
    ------
    OSError, ValueError
        The file or the model is not valid, the model was skipped, or n is not a whole number of at least 1.
    """
    fit = read_contents(model, cells)
    if fit.skipped:
        raise ValueError(f"{model} has no programs, because {fit.name} was skipped: {fit.skipped}.")
    return list_genes(fit, n)


def list_genes(fit: Contents, n: int) -> pd.DataFrame:
    """Return the table of `gene_table`."""
    table = top_genes(fit.W, np.arange(len(fit.genes)), n)
    program, gene = table["program"].to_numpy(), table["gene"].to_numpy()
    symbols = pd.Series(fit.symbols[gene], dtype=object)
    table["gene"], table["symbol"] = np.asarray(fit.genes, dtype=object)[gene], symbols
    table["specificity"] = fit.specificity[program, gene]
    for column, pattern in _GROUPS.items():
        table[column] = symbols.str.match(pattern, case=False).to_numpy(dtype=bool)
    return table[list(GENE_COLUMNS)]


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
    tables = []
    for model, usages in sums.items():
        n_cells, by_type = usages.typed.by_type()  # (n_types,), (n_types, k)
        means = by_type.div(n_cells, axis=0).rename_axis(CELL_TYPE)
        table = means.melt(var_name="program", value_name="mean_usage", ignore_index=False).reset_index()
        tables.append(table.assign(Model=model, n_cells=n_cells.loc[table[CELL_TYPE]].to_numpy()))
    return concatenate(tables, USAGE_COLUMNS)


def list_matches(Ws: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Compare the programs of each two models: ``Model, program, other, other_program, cosine, matched``.

    The rows of each two models are their pairs (`match_programs`), for which ``matched`` is True, and then the other
    combinations of their programs with a cosine of at least 0.1. Ws has the programs (k, n_genes) of each model.
    """
    tables = []
    for model, other in combinations(Ws, 2):
        pairs, _ = match_programs(Ws[model], Ws[other])
        cosines = unit_rows(Ws[model]) @ unit_rows(Ws[other]).T  # (k, k of the other model)
        matched = np.zeros(cosines.shape, dtype=bool)
        matched[pairs[:, 0], pairs[:, 1]] = True
        listed = np.argwhere((cosines >= _LISTED) & ~matched)
        at = np.vstack([pairs, listed])
        columns = (model, at[:, 0], other, at[:, 1], cosines[*at.T].round(6), matched[*at.T])
        tables.append(pd.DataFrame(dict(zip(MATCH_COLUMNS, columns, strict=True))))
    return concatenate(tables, MATCH_COLUMNS)


def concatenate(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """Return tables below each other, with these columns. Without a table, the result has no rows."""
    return pd.concat(tables, ignore_index=True)[list(columns)] if tables else pd.DataFrame(columns=list(columns))
