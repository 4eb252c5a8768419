"""Base NMF, the published baseline: scikit-learn's NMF by coordinate descent."""

import time
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from aenmf_lib.models.base import Model, check_cells, check_genes, check_matrix, squared_error

__all__ = ["BaseNMF"]


@dataclass(kw_only=True)
class BaseNMF(Model):
    """Base NMF, the published baseline: ``X ≈ H W`` with free usages H.

    Minimizes ``‖X − H W‖²`` over H, W ≥ 0 by scikit-learn's coordinate descent [1]_. The defaults are the published
    settings; 100 sweeps often end before convergence. In scikit-learn, our H is named `W`, and our
    W is named `components_`.

    Parameters
    ----------
    k, seed
        Number of programs, and seed of the initialization (scikit-learn's `random_state`).
    tol, max_iter
        Stop when the violation of the optimality conditions is at most `tol` times that of the first sweep, or after
        `max_iter` sweeps.

    Attributes
    ----------
    W_ : (k, n_genes)
        Programs, one per row.
    H_ : (n_cells, k)
        Usages of the cells of the fit.
    loss_history_ : (1,)
        ``(1/n) ‖X − H W‖²`` at the end; scikit-learn does not report earlier values.
    n_iter_, stop_reason_, seconds_
        Number of sweeps, why the fit stopped, and its duration in seconds.
    sq_norm_per_cell_ : float
        ``‖X‖² / n``.
    genes_ : (n_genes,) Index
        Names of the genes.
    second_moment_, starts_, stability_, gene_weights_, U_, donors_, groups_, penalty_, strength_, checkpoint_files_
        Empty, zero or None: these belong to the other models.

    Raises
    ------
    ValueError
        On construction, if a hyperparameter is not valid.

    References
    ----------
    .. [1] Cichocki & Phan (2009), IEICE Trans. Fundam. E92-A:708, doi:10.1587/transfun.E92.A.708.

    Examples
    --------
    >>> from aenmf_lib import BaseNMF, data
    >>> cells, _ = data.simulate(n_cells=200)
    >>> BaseNMF(k=3, max_iter=5).fit(cells).H_.shape  # doctest: +ELLIPSIS
    violation: 1.0
    ...
    (200, 3)
    """

    tol: float = 1e-4
    max_iter: int = 100

    name: ClassVar[str] = "Base_NMF"

    def fit(self, cells: AnnData) -> "BaseNMF":
        """Fit the model to all cells and return it. scikit-learn prints one line per sweep.

        Raises
        ------
        TypeError, ValueError
            The input is not an AnnData with a valid X, or k is larger than the number of cells or genes.
        """
        begin = time.perf_counter()
        X = check_cells(cells, self.k).X
        settings = {"init": "nndsvda", "solver": "cd", "beta_loss": "frobenius", "tol": self.tol}
        self._nmf = NMF(self.k, **settings, max_iter=self.max_iter, random_state=self.seed, verbose=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # stop_reason_ reports it
            self.H_ = self._nmf.fit_transform(X)
        self._nmf.verbose = 0
        self.W_, self.genes_ = self._nmf.components_, cells.var_names.copy()
        self.n_iter_ = int(self._nmf.n_iter_)
        converged = self.n_iter_ < self.max_iter
        self.stop_reason_ = f"tol = {self.tol:g}" if converged else f"reached max_iter = {self.max_iter}"
        self.seconds_ = time.perf_counter() - begin
        error, squares = squared_error(X, self.H_, self.W_)
        self.sq_norm_per_cell_ = float(squares) / X.shape[0]
        self.loss_history_ = np.array([float(error) / X.shape[0]])
        return self

    def transform(self, X: AnnData | csr_matrix) -> np.ndarray:
        """Return the usages of cells by non-negative least squares, (n_cells, k). `H_` has those of the fit."""
        X = check_genes(self, X)
        return self._nmf.transform(check_matrix(X.X if isinstance(X, AnnData) else X))

    def objective(self, cells: AnnData) -> float:
        """Return ``(1/n) ‖X − H W‖²`` of these cells, with H from `transform`."""
        error, _ = squared_error(cells, self.transform(cells), self.W_)
        return float(error) / cells.shape[0]

    def embeddings(self, cells: AnnData) -> dict[str, np.ndarray]:
        """Return the embeddings of the cells of the fit by role, as the results file stores them."""
        return {"shared": self.H_}
