"""Is what a model is given what it can use? Each refusal says what was found and what was expected."""

import logging
import numbers
from collections.abc import Iterable

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn.exceptions import NotFittedError

from aenmf_lib.data.streaming import CellStream

log = logging.getLogger(__name__)


def check_hyperparameters(model) -> None:
    """Refuse hyper-parameters that no training can use, when the model is made rather than hours later."""
    for name, value in vars(model).items():
        whole = isinstance(value, numbers.Integral)
        if name in ("k", "max_iter", "n_starts") and not (whole and value >= (name != "k")):
            raise ValueError(f"{name}={value!r}: a whole number above 0 is expected.")
        if name in ("tol", "gamma", "eta", "lambda_W", "lambda_U", "strength") and not 0 <= value < np.inf:
            raise ValueError(f"{name}={value!r}: a number of 0 or above is expected.")


def check_cells(cells: AnnData | CellStream, k: int) -> AnnData | CellStream:
    """Refuse what is no set of cells, or has fewer than the k programs asked for."""
    if not isinstance(cells, AnnData | CellStream):
        raise TypeError(f"fit takes an AnnData, as data.load gives it, not a {type(cells).__name__}.")
    if isinstance(cells, AnnData):
        check_rank(k, *check_matrix(cells.X).shape)
    else:
        check_rank(k, cells.n_obs, cells.n_vars)
    return cells


def check_rank(k: int, n_cells: int, n_genes: int) -> None:
    """Refuse more programs than there are cells or genes."""
    if not 1 <= k <= min(n_cells, n_genes):
        raise ValueError(
            f"k = {k} programs were asked of {n_cells} cells × {n_genes} genes: k must lie between 1 and "
            f"{min(n_cells, n_genes)}."
        )


def check_genes(model: object, X: AnnData | csr_matrix | CellStream) -> csr_matrix | CellStream:
    """Refuse genes that are not those of the fit; gives what the usages are computed from."""
    if not hasattr(model, "genes_"):
        raise NotFittedError(f"this {model.name} has not been fitted: call fit first.")
    if isinstance(X, AnnData | CellStream):
        genes = X.var_names
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


def iter_blocks(X: csr_matrix | CellStream) -> Iterable[tuple[csr_matrix, slice]]:
    """Give cells and where they are: those on disk block by block, those in memory at once."""
    return X if isinstance(X, CellStream) else [(check_matrix(X), slice(None))]


def check_matrix(X: csr_matrix) -> csr_matrix:
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


def summary(model) -> str:
    """Say how a fit ended, what share of ‖X‖² it explains (penalties count against it), what is left of a strength."""
    loss = model.loss_history_.min()
    explained = 1 - loss / model.sq_norm_per_cell_
    told = f"{model.name}: {model.n_iter_} iterations, {model.stop_}; objective {loss:.6g}, {explained:.1%} explained"
    if strength := getattr(model, "strength", 0):
        told += f"; of the strength {strength:g}, {model.strength_:.2g} beyond what chance explains"
    return told


def cost_of_the_tie(model, cells: AnnData | CellStream) -> str:
    """Say what error W leaves with ``H = X Wᵀ``, and with the H ≥ 0 that fits best."""
    tied, free = (relative_error(cells, H, model.W_) for H in (model.transform(cells), model.refit(cells)))
    return f"{model.name}: ‖X − H W‖ / ‖X‖ is {tied:.4f} with H tied to W, {free:.4f} with H by least squares"


def relative_error(cells: AnnData | CellStream, H: np.ndarray, W: np.ndarray) -> float:
    """Give ``‖X − H W‖ / ‖X‖``, exact, without forming ``H W``."""
    H, W, squares, cross = H.astype(np.float64), W.astype(np.float64), 0.0, 0.0
    for X, rows in iter_blocks(cells if isinstance(cells, CellStream) else cells.X):
        squares += np.square(X.data, dtype=np.float64).sum()
        cross += np.sum((X @ W.T) * H[rows])
    return float(np.sqrt((squares - 2 * cross + np.sum((H.T @ H) * (W @ W.T))) / squares))
