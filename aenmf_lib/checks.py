"""Is what a model is given what it can use? Each refusal says what was found and what was expected."""

import numbers
from collections.abc import Iterable

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn.exceptions import NotFittedError

from aenmf_lib.stream import Cells


def settings(model) -> None:
    """Refuse hyper-parameters that no training can use, when the model is made rather than hours later."""
    for name, value in vars(model).items():
        whole = isinstance(value, numbers.Integral)
        if name in ("k", "max_iter", "n_starts") and not (whole and value >= (name != "k")):
            raise ValueError(f"{name}={value!r}: a whole number above 0 is expected.")
        if name in ("tol", "gamma", "eta", "lambda_W", "lambda_U", "strength") and not 0 <= value < np.inf:
            raise ValueError(f"{name}={value!r}: a number of 0 or above is expected.")


def cells_of(cells: AnnData | Cells, k: int) -> AnnData | Cells:
    """Refuse what is no set of cells, or has fewer than the k programs asked for."""
    if not isinstance(cells, AnnData | Cells):
        raise TypeError(f"fit takes an AnnData, as data.load gives it, not a {type(cells).__name__}.")
    if isinstance(cells, AnnData):
        rank(k, *matrix(cells.X).shape)
    else:
        rank(k, cells.n_cells, cells.n_genes)
    return cells


def rank(k: int, n_cells: int, n_genes: int) -> None:
    """Refuse more programs than there are cells or genes."""
    if not 1 <= k <= min(n_cells, n_genes):
        raise ValueError(
            f"k = {k} programs were asked of {n_cells} cells × {n_genes} genes: k must lie between 1 and "
            f"{min(n_cells, n_genes)}."
        )


def same_genes(model: object, X: AnnData | csr_matrix | Cells) -> csr_matrix | Cells:
    """Refuse genes that are not those of the fit; gives what the usages are computed from."""
    if not hasattr(model, "genes_"):
        raise NotFittedError(f"this {model.name} has not been fitted: call fit first.")
    if isinstance(X, AnnData | Cells):
        genes = X.var_names if isinstance(X, AnnData) else X.genes
        if not genes.equals(model.genes_):
            shared = len(model.genes_.intersection(genes))
            raise ValueError(
                f"the cells have {len(genes)} genes, the model {len(model.genes_)}, {shared} of them shared"
                f"{' but in another order' if shared == len(genes) == len(model.genes_) else ''}. "
                "Give the genes of the fit, in its order: cells[:, model.genes_]."
            )
        return X.X if isinstance(X, AnnData) else X
    if X.shape[1] != len(model.genes_):
        raise ValueError(f"X has {X.shape[1]} genes, the model {len(model.genes_)}. Give the genes of the fit.")
    return X


def blocks(X: csr_matrix | Cells) -> Iterable[tuple[csr_matrix, slice]]:
    """Give cells and where they are: those on disk block by block, those in memory at once."""
    return X if isinstance(X, Cells) else [(matrix(X), slice(None))]


def matrix(X: csr_matrix) -> csr_matrix:
    """Refuse what is not CSR, float, finite and non-negative."""
    if not isinstance(X, csr_matrix) and getattr(X, "format", None) != "csr":
        raise ValueError(f"X is a {type(X).__name__}: a CSR matrix is expected; write scipy.sparse.csr_matrix(X).")
    if X.dtype not in (np.float32, np.float64):
        raise ValueError(f"X is of {X.dtype}: float32 (or float64) is expected, log1p of counts per 10 000.")
    if bad := int((~np.isfinite(X.data)).sum()):
        raise ValueError(f"X holds {bad} values that are NaN or infinite: log1p of counts per 10 000 is expected.")
    if X.nnz and X.data.min() < 0:
        raise ValueError(f"X holds {int((X.data < 0).sum())} negative values: log1p of counts per 10 000 is expected.")
    return X
