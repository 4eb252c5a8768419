"""Base NMF, the published baseline: scikit-learn's NMF by coordinate descent."""

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from aenmf_lib.data.labels import CELL_TYPE, DONOR
from aenmf_lib.data.progress import tqdm
from aenmf_lib.models.base import Model, check_fitted, check_genes, check_rank, squared_error
from aenmf_lib.training.inputs import Cells, as_cells, iter_matrices

__all__ = ["BaseNMF"]

log = logging.getLogger(__name__)


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
    n_cells_, sq_norm_per_cell_
        Number of cells n, and ``‖X‖² / n``.
    genes_, symbols_ : (n_genes,)
        Names of the genes, and their symbols (``var['feature_name']``) or None.
    donor_key_, cell_type_key_ : str
        Columns of obs with the donors and the cell types, which `results.write` copies.
    second_moment_, starts_, stability_, gene_weights_, checkpoint_files_
        Empty or None: these belong to the other models.
    U_, overlap_, donors_, penalty_, strength_
        Empty, zero or None: these belong to the conditional models.

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
    >>> BaseNMF(k=3, max_iter=5).fit(cells).H_.shape
    (200, 3)
    """

    tol: float = 1e-4
    max_iter: int = 100

    name: ClassVar[str] = "Base_NMF"

    def fit(self, cells: Cells, *, donor_key: str = DONOR, cell_type_key: str = CELL_TYPE) -> "BaseNMF":
        """Fit the model to all cells and return it. The cells are not changed.

        Parameters
        ----------
        cells : n_cells × n_genes
            log1p of counts per 10,000: an AnnData or a matrix, dense or sparse, of any numeric type; or a `CellStream`,
            which is read into memory.
        donor_key, cell_type_key
            Columns of obs that `results.write` stores as donor and cell type. Training reads neither.

        Raises
        ------
        TypeError, ValueError
            The cells are not valid (raw counts, for example), or k is larger than the number of cells or genes.
        """
        begin = time.perf_counter()
        self._set_names(cells, donor_key, cell_type_key)
        cells = as_cells(cells)
        check_rank(self.k, cells.n_obs, cells.n_vars)
        X = _in_memory(cells)
        nmf = self._scikit_learn(verbose=1)
        with warnings.catch_warnings(), _progress(self.name, self.max_iter):
            warnings.simplefilter("ignore", ConvergenceWarning)  # stop_reason_ reports it
            self.H_ = nmf.fit_transform(X)
        self.W_, self.genes_ = nmf.components_, cells.var_names.copy()
        self.n_iter_ = int(nmf.n_iter_)
        converged = self.n_iter_ < self.max_iter
        self.stop_reason_ = f"tol = {self.tol:g}" if converged else f"reached max_iter = {self.max_iter}"
        self.seconds_ = time.perf_counter() - begin
        error, squares = squared_error(X, self.H_, self.W_)
        self.n_cells_, self.sq_norm_per_cell_ = X.shape[0], float(squares) / X.shape[0]
        self.loss_history_ = np.array([float(error) / X.shape[0]])
        log.info("%s: loss %.6g after %d sweeps, %.1f s: %s", self.name, self.loss_history_[0], self.n_iter_,
                 self.seconds_, self.stop_reason_)  # fmt: skip
        return self

    def fit_transform(self, cells: Cells, **fit_options) -> np.ndarray:
        """Fit the model to all cells and return `H_`, their usages in the fit, (n_cells, k). Raises as `fit` does."""
        return self.fit(cells, **fit_options).H_

    def transform(self, X: Cells) -> np.ndarray:
        """Return the usages of cells by non-negative least squares. `H_` has those of the fit.

        Parameters
        ----------
        X : n_cells × n_genes
            Cells as for `fit`, with the genes of the fit in the same order. The versions of Ensembl ids may differ. A
            matrix without names needs the number of genes of the fit.

        Returns
        -------
        H : (n_cells, k)

        Raises
        ------
        NotFittedError, TypeError, ValueError
            The model is not fitted; the cells are not valid (raw counts, for example) or have other genes.
        """
        X = _in_memory(check_genes(self, X)).astype(self.W_.dtype, copy=False)
        nmf = self._scikit_learn()
        nmf.components_, nmf.n_components_, nmf.n_features_in_ = self.W_, self.k, len(self.genes_)
        return nmf.transform(X)

    def _scikit_learn(self, verbose: int = 0) -> NMF:
        """Return scikit-learn's NMF with the settings of this model."""
        settings = {"init": "nndsvda", "solver": "cd", "beta_loss": "frobenius", "tol": self.tol}
        return NMF(self.k, **settings, max_iter=self.max_iter, random_state=self.seed, verbose=verbose)

    def objective(self, cells: Cells) -> float:
        """Return ``(1/n) ‖X − H W‖²`` of these cells, with H from `transform`, whose errors it raises."""
        error, _ = squared_error(cells, H := self.transform(cells), self.W_)
        return float(error) / len(H)

    def iter_embeddings(self, cells: Cells) -> Iterator[tuple[dict[str, np.ndarray], slice]]:
        """Yield the usages of the cells of the fit, by role, and their rows: all in one block."""
        check_fitted(self)
        n_cells = cells.n_obs if hasattr(cells, "n_obs") else cells.shape[0]
        if n_cells != len(self.H_):
            raise ValueError(f"There are {n_cells} cells, but {self.name} was fitted to {len(self.H_)}. Pass the cells "
                             "of the fit, or use transform.")  # fmt: skip
        yield {"shared": self.H_}, slice(0, n_cells)


def _in_memory(cells: Cells) -> csr_matrix:
    """Return the checked matrix of all cells, (n_cells, n_genes)."""
    blocks = [X for X, _ in iter_matrices(cells)]
    return blocks[0] if len(blocks) == 1 else vstack(blocks, format="csr")


class _Sweeps(io.TextIOBase):
    """A text stream that advances a progress bar by the lines that scikit-learn prints, one per sweep."""

    def __init__(self, bar: tqdm) -> None:
        self.bar, self.line = bar, ""

    def write(self, text: str) -> int:
        """Read the violation of a sweep at the end of its line, ``violation: 0.5``. Other lines are ignored."""
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            name, _, value = line.partition(": ")
            if name == "violation":
                self.bar.set_postfix(violation=f"{float(value):.3g}", refresh=False)
                self.bar.update()
        return len(text)


@contextlib.contextmanager
def _progress(name: str, max_iter: int) -> Iterator[None]:
    """Show a progress bar instead of the lines that scikit-learn prints."""
    with tqdm(total=max_iter, desc=name, unit="it", mininterval=2) as bar, contextlib.redirect_stdout(_Sweeps(bar)):
        yield
