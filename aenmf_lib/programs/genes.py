"""Table of the genes of each program, with their symbols and their specificity."""

from pathlib import Path

import numpy as np
import pandas as pd

from aenmf_lib.models.base import Model
from aenmf_lib.programs.contents import Contents, read_contents
from aenmf_lib.programs.tables import top_genes
from aenmf_lib.results.schema import GENE_COLUMNS
from aenmf_lib.training.inputs import Cells

__all__ = ["gene_table"]

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
