"""The base class of the four models, the checks of their input, and the reconstruction error ‖X − HW‖ / ‖X‖."""

import numbers
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn.decomposition import non_negative_factorization
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from aenmf_lib.data.streaming import CellStream

__all__ = ["relative_error"]

_COUNTS = ("k", "max_iter", "n_starts")
_WEIGHTS = ("tol", "gamma", "eta", "lambda_W", "lambda_U", "strength")
_EXPECTED = "Expected log1p of counts per 10,000, as data.load returns."


@dataclass(kw_only=True)
class Model:
    """Base class of the four models: shared hyperparameters, defaults of fitted attributes, summaries of a fit."""

    k: int = 80
    seed: int = 42
    tol: float = 5e-4
    max_iter: int = 1000

    name: ClassVar[str]
    device: ClassVar[str] = "cpu"
    choices: ClassVar[dict[str, tuple]] = {}  # parameter -> its valid values

    # Values of fitted attributes that only some models set.
    U_ = gene_weights_ = groups_ = penalty_ = None
    strength_, second_moment_ = 0.0, ""
    donors_ = starts_ = stability_ = checkpoint_files_ = ()

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in _COUNTS and not (isinstance(value, numbers.Integral) and value >= 1):
                raise ValueError(f"{name}={value!r} is not valid. Choose a whole number of at least 1.")
            if name in _WEIGHTS and not 0 <= value < np.inf:
                raise ValueError(f"{name}={value!r} is not valid. Choose a finite number of at least 0.")
            if name in self.choices and value not in self.choices[name]:
                known = " or ".join(map(repr, self.choices[name]))
                raise ValueError(f"{name}={value!r} is unknown. Choose {known}.")

    @property
    def uses_cell_type(self) -> bool:
        """Whether training reads ``cell_type``. Scores against ``cell_type`` are then not label-free."""
        return False

    def refit(self, cells: AnnData | CellStream) -> np.ndarray:
        """Return the usages H ≥ 0 that fit the cells best for the fitted W, by least squares, (n_cells, k)."""
        usages, settings = [], {"n_components": self.k, "update_H": False, "tol": 1e-3, "max_iter": 50}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for X, _ in blocks(check_genes(self, cells)):
                W = np.ascontiguousarray(self.W_, dtype=X.dtype)
                usages.append(non_negative_factorization(X, H=W, **settings)[0])
        return np.concatenate(usages)

    def summary(self) -> str:
        """Return one line: the iterations, why the fit stopped, the objective and the share of ‖X‖² explained."""
        loss = self.loss_history_.min()
        return (
            f"{self.name}: {self.n_iter_} iterations ({self.stop_reason_}); objective {loss:.6g}; "
            f"{1 - loss / self.sq_norm_per_cell_:.1%} of ‖X‖² explained, penalties counted as error"
        )

    def tie_cost(self, cells: AnnData | CellStream) -> str:
        """Return one line with the relative error for ``H = X Wᵀ`` and for the best H ≥ 0 (`refit`)."""
        tied, free = (relative_error(cells, H, self.W_) for H in (self.transform(cells), self.refit(cells)))
        return f"{self.name}: ‖X − H W‖ / ‖X‖ = {tied:.4f} with H tied to W, {free:.4f} with H by least squares"


def relative_error(cells: AnnData | CellStream, H: np.ndarray, W: np.ndarray) -> float:
    """Return ``‖X − H W‖ / ‖X‖`` for usages H (n_cells, k) and programs W (k, n_genes), without forming H W."""
    error, squares = squared_error(cells, H, W)
    return float(np.sqrt(error / squares))


def squared_error(cells: AnnData | csr_matrix | CellStream, H: np.ndarray, W: np.ndarray) -> tuple[float, float]:
    """Return ``‖X − H W‖²`` and ``‖X‖²``."""
    H, W, squares, cross = H.astype(np.float64), W.astype(np.float64), 0.0, 0.0
    for X, rows in blocks(cells):
        squares += np.square(X.data, dtype=np.float64).sum()
        cross += np.sum((X @ W.T) * H[rows])
    return squares - 2 * cross + np.sum((H.T @ H) * (W @ W.T)), squares


def blocks(cells: AnnData | csr_matrix | CellStream) -> Iterable[tuple[csr_matrix, slice]]:
    """Return pairs of a CSR matrix and its rows. A matrix in memory is checked and is one block."""
    if isinstance(cells, CellStream):
        return cells
    return [(check_matrix(cells.X if isinstance(cells, AnnData) else cells), slice(None))]


def check_cells(cells: AnnData | CellStream, k: int) -> AnnData | CellStream:
    """Return the cells; raise if they are not an AnnData or stream, are not valid, or are fewer than k."""
    if not isinstance(cells, AnnData | CellStream):
        raise TypeError(f"fit got a {type(cells).__name__}. Pass an AnnData, as data.load returns.")
    if isinstance(cells, AnnData):
        check_matrix(cells.X)
    check_rank(k, cells.n_obs, cells.n_vars)
    return cells


def check_rank(k: int, n_cells: int, n_genes: int) -> None:
    """Raise ValueError if there are fewer cells or genes than k programs."""
    if k > (most := min(n_cells, n_genes)):
        raise ValueError(
            f"k={k} is too large for {n_cells:,} cells × {n_genes:,} genes. Choose k between 1 and {most}."
        )


def check_genes(model: Model, X: AnnData | csr_matrix | CellStream) -> AnnData | csr_matrix | CellStream:
    """Return X; raise if the model is not fitted or was fitted to other genes."""
    if not hasattr(model, "genes_"):
        raise NotFittedError(f"{model.name} is not fitted. Call fit first.")
    expected, named = model.genes_, isinstance(X, AnnData | CellStream)
    if X.var_names.equals(expected) if named else X.shape[1] == len(expected):
        return X
    found = f"{X.n_vars if named else X.shape[1]} genes"
    if named:
        n_shared = len(expected.intersection(X.var_names))
        order = ", in another order" if n_shared == X.n_vars == len(expected) else ""
        found += f", of which {n_shared} are genes of the model{order}"
    raise ValueError(
        f"The cells have {found}. {model.name} was fitted to {len(expected)} genes and expects exactly these, in the "
        "order of the fit. Select them with cells[:, model.genes_]."
    )


def check_matrix(X: csr_matrix) -> csr_matrix:
    """Return X; raise ValueError if it is not CSR, float, finite and non-negative."""
    if getattr(X, "format", None) != "csr":
        raise ValueError(f"X is a {type(X).__name__}. Expected a CSR matrix: use scipy.sparse.csr_matrix(X).")
    if X.dtype not in (np.float32, np.float64):
        raise ValueError(f"X has dtype {X.dtype}, not float32 or float64. {_EXPECTED}")
    if n_bad := int((~np.isfinite(X.data)).sum()):
        raise ValueError(f"X contains {n_bad} values that are NaN or infinite. {_EXPECTED}")
    if X.nnz and X.data.min() < 0:
        raise ValueError(f"X contains {int((X.data < 0).sum())} negative values. {_EXPECTED}")
    return X
