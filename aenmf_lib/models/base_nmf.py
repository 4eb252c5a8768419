"""What is the baseline? scikit-learn's NMF, as published."""

import contextlib
import time
import warnings
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from tqdm import tqdm

from aenmf_lib.models import base


@dataclass
class BaseNMF:
    """The baseline as published: scikit-learn's NMF, coordinate descent, ``X ≈ H W`` with H free.

    scikit-learn calls H `W` and W `components_`; only this class knows.
    """

    _: KW_ONLY
    k: int = 80  # programs
    seed: int = 42  # random_state
    tol: float = 1e-4  # scikit-learn's: relative size of the last sweep's changes
    max_iter: int = 100  # sweeps

    name: ClassVar[str] = "Base_NMF"
    uses_cell_type: ClassVar[bool] = False

    def __post_init__(self) -> None:
        base.check_hyperparameters(self)

    def fit(self, cells: AnnData) -> "BaseNMF":
        """Train on all cells; sets ``H_`` as well, the usages of these cells. See `AENMF.fit`."""
        X = base.check_cells(cells, self.k).X
        begin = time.perf_counter()
        self._nmf = NMF(
            n_components=self.k,
            init="nndsvda",
            solver="cd",
            beta_loss="frobenius",
            max_iter=self.max_iter,
            tol=self.tol,
            random_state=self.seed,
            verbose=1,
        )
        with _sweep_progress(self.name, self.max_iter), warnings.catch_warnings():
            # 100 sweeps are the published setting: that they do not converge is recorded in stop_, not warned of
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.H_ = self._nmf.fit_transform(X)
        self._nmf.verbose = 0  # its lines moved the bar; transform has none
        self.W_, self.U_ = self._nmf.components_, None
        self.n_iter_ = int(self._nmf.n_iter_)
        self.stop_ = f"reached max_iter = {self.max_iter}" if self.n_iter_ >= self.max_iter else f"tol = {self.tol:g}"
        self.seconds_ = time.perf_counter() - begin
        self.sq_norm_per_cell_ = float(np.square(X.data, dtype=np.float64).sum()) / X.shape[0]
        self.genes_ = cells.var_names.copy()
        self.loss_history_ = np.array([self._loss(X, self.H_)])  # scikit-learn tells the last one only
        return self

    def transform(self, X: AnnData | csr_matrix) -> np.ndarray:
        """Give each cell its usages by non-negative least squares, (n_cells, k); the cells of the fit have ``H_``."""
        return self._nmf.transform(base.check_matrix(base.check_genes(self, X)))

    def objective(self, cells: AnnData) -> float:
        """``(1/n) ‖X − H W‖²`` on these cells, H by `transform`."""
        X = base.check_matrix(base.check_genes(self, cells))
        return self._loss(X, self.transform(X))

    def embeddings(self, cells: AnnData) -> dict[str, np.ndarray]:
        """Give what the results file holds for each cell of the fit, by role."""
        return {"shared": self.H_}

    def _loss(self, X: csr_matrix, H: np.ndarray) -> float:
        H64, W64 = H.astype(np.float64), self.W_.astype(np.float64)
        sse = (
            np.square(X.data, dtype=np.float64).sum()
            - 2 * np.sum((X @ W64.T) * H64)
            + np.sum((H64.T @ H64) * (W64 @ W64.T))
        )
        return float(sse) / X.shape[0]


@contextlib.contextmanager
def _sweep_progress(name: str, total: int):
    """Turn the line that scikit-learn prints after each sweep into a progress bar."""
    with tqdm(total=total, desc=name, unit="it", mininterval=2) as bar:

        class Lines:
            def write(self, text: str) -> None:
                bar.update(text.count("violation"))

            def flush(self) -> None:
                bar.refresh()

        with contextlib.redirect_stdout(Lines()):
            yield
