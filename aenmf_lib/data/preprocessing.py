"""Normalizing raw counts, and finding the symbols of genes."""

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from aenmf_lib.data.labels import CELL_TYPE as CELL_TYPE
from aenmf_lib.data.labels import DONOR as DONOR
from aenmf_lib.data.labels import LABELS as LABELS
from aenmf_lib.data.labels import NO_TYPE as NO_TYPE
from aenmf_lib.data.labels import as_text
from aenmf_lib.data.labels import is_missing as is_missing
from aenmf_lib.data.labels import read_labels as read_labels
from aenmf_lib.data.matrices import Matrix
from aenmf_lib.data.one_pass import scale_of
from aenmf_lib.data.reading import IN_MEMORY

SYMBOL = "feature_name"  # var column of the result with the gene symbols
_SYMBOLS = (SYMBOL, "gene_symbols", "gene_symbol", "gene_name", "symbol", "gene_short_name")  # the first found is used


def find_gene_names(var: pd.DataFrame, gene_name_key: str = "") -> tuple[str, pd.Series | None]:
    """Return the column of the gene symbols, and the symbols as text, (n_genes,). Ids replace missing symbols.

    The column is `gene_name_key`, or the first of the usual names (in any case) with symbols that are not the ids.
    Without such a column the result is ``("", None)``. Raises ValueError if `gene_name_key` is not in `var`.
    """
    if gene_name_key and gene_name_key not in var:
        columns = ", ".join(map(repr, var)) or "none"
        found = f"There is no var column {gene_name_key!r}. The columns are: {columns}"
        raise ValueError(f"{found}. Choose one of them (GENE_NAME_KEY=…), or leave it empty to search.")
    ids = pd.Series(var.index.astype(str), index=var.index, dtype=object)
    folded = {str(name).casefold(): name for name in reversed(var.columns)}
    for name in [gene_name_key] if gene_name_key else [folded[name] for name in _SYMBOLS if name in folded]:
        symbols = as_text(var[name])
        if gene_name_key or ((symbols != ids) & symbols.notna()).any():
            return name, symbols.fillna(ids)
    return (SYMBOL, ids) if SYMBOL in var else ("", None)  # a column without symbols is filled with the ids


def normalize(X: csr_matrix, genes: np.ndarray | None = None) -> csr_matrix:
    """Scale each cell to 10,000 counts and take log1p. Cells without counts stay 0.

    Raises ValueError if `X` is not a matrix, or is damaged.

    Parameters
    ----------
    X, genes
        Counts, (n_cells, n_genes), in any sparse or dense matrix, and the genes to return (int or bool). All counts of
        a cell determine its scale. Entries that are stored in several pieces are summed first.

    Returns
    -------
    (n_cells, n_selected) CSR float32
        A new matrix with sorted indices and no stored zeros.
    """
    if not isinstance(X, csr_matrix) or not X.has_canonical_format:
        X = Matrix(X, IN_MEMORY, "X").read()
    X = X.astype(np.float32, copy=genes is None)
    total = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel()
    scale = scale_of(total)
    if genes is not None:
        X = X[:, genes]
    X.eliminate_zeros()
    np.log1p(X.data * np.repeat(scale, np.diff(X.indptr)), out=X.data)
    X.sort_indices()
    return X
