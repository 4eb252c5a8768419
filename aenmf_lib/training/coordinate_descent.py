"""Exact coordinate descent on the CPU: gene by gene and program by program, each entry is set to its minimum.

If all else is fixed, the objective is a polynomial of degree four in one entry of W, and of degree two in one entry of
U in model 2. With ``α = (W S)_a`` and ``s = S_aa`` for gene a, ``F = W S Wᵀ`` and ``G = V Vᵀ`` (V = W, or W + U_d for
donor d), a step t of entry j changes the squared error by ``c₁ t + c₂ t² + c₃ t³ + c₄ t⁴``:

    c₁ = 2 [G α + F v − α − (V S)_a]_j      c₂ = s G_jj + F_jj + 2 (α_j v_j + ⟨α, v⟩) − 2 s
    c₃ = 2 (α_j + s v_j)                    c₄ = s
"""

import functools
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numba.core.dispatcher import Dispatcher
from scipy.sparse import csr_matrix

from aenmf_lib.data.preprocessing import DONOR
from aenmf_lib.training import _kernels
from aenmf_lib.training._kernels import GENES
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.objective import Objective

log = logging.getLogger(__name__)

RELAX = 1.9  # over-relaxation: multiple of the best step, in [1, 2). Measured: 1.9 needs a fifth of the sweeps of 1
_WORTH = 0.1  # steps that gain less than this share of the mean gain per step in the last sweep are skipped
# Model 2 visits all genes in every fourth sweep, and otherwise those that gained this share of the mean. After some
# sweeps W also changes at fixed decoders; from the first sweep on, this led to minima up to 0.15 % worse (k = 80).
_FULL, _IDLE, _JOINT = 4, 0.3, 5
_VISITS = 4  # U is updated four times per W update, without a new product with S (measured: 45 instead of 65 sweeps)


def _is_compiled(kernel: Dispatcher) -> bool:
    """Return whether a kernel is compiled: in this process, or in a numba cache file newer than its source."""
    source, cache = Path(kernel.py_func.__code__.co_filename), Path(kernel.stats.cache_path)
    index = cache.glob(f"{source.stem}.{kernel.__name__}-*.nbi")
    return bool(kernel.signatures) or any(file.stat().st_mtime > source.stat().st_mtime for file in index)


@functools.cache  # once per process
def _announce_compilation() -> None:
    log.info("Compiling the coordinate descent kernels: once after installation, about a minute")


class _Descent:
    """Base class of the descents: sweeps over blocks of genes. W and U are transposed here, (n_genes, k) per matrix.

    ``W S`` is computed for a whole block (`products`). Within the block it is updated with S between the block's genes.
    The usages of the cells are updated after the block. The compiled loops are in `_kernels` and `_cell_kernels`.
    """

    window = 10  # sweeps over which the decrease is measured, and after which all products are recomputed
    separate: ClassVar[bool]  # whether each partition keeps its own second moment
    kernel: ClassVar[Dispatcher]  # compiled when the first fit needs it

    def __init__(self, objective: Objective, W: torch.Tensor, **more: np.ndarray) -> None:
        if not _is_compiled(type(self).kernel):
            _announce_compilation()
        self.objective, self.n = objective, objective.n
        self.second = objective.moments.second_moment.for_descent(separate=self.separate)
        self.squares = np.ascontiguousarray(objective.gene_sq[:, 0].double().numpy())
        self.restore({"W": W.numpy(), "least": 0.0, **more})

    def arrays(self) -> dict[str, np.ndarray | float]:
        return {"W": self.W.T.copy(), "least": self.least}

    def restore(self, arrays: dict) -> None:
        self.W, self.least = np.array(arrays["W"].T, order="C"), float(arrays["least"])
        self.loss = self.refresh()

    def refresh(self) -> float:
        self._compute()
        return self._value()

    def step(self) -> float:
        self._prepare()
        gained, steps = 0.0, 0
        for lo in range(0, len(self.W), GENES):
            more = self._visit(slice(lo, min(lo + GENES, len(self.W))))
            gained, steps = gained + more[0], steps + more[1]
        self.least = _WORTH * gained / max(steps, 1)
        self.loss = self._value()
        return self.loss

    # ---------------------------------------------------------------- terms quadratic in W: ``W R Wᵀ`` with R = LᵀK
    def _prepare(self) -> None:
        """Compute the terms that the objective adds to the data term; in model 1, at the optimal U for W."""
        W = self._exact()
        self.L, self.K, self.constant = self.objective.quadratic(W.T)
        self.LW = self.L @ W

    def _exact(self) -> torch.Tensor:
        """Return W in float64."""
        return torch.from_numpy(self.W.astype(np.float64))

    def _quadratic(self, block: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return W R for a block of genes, (genes, k), and R between these genes, (genes, genes) or empty."""
        L, K, dtype = self.L[:, block], self.K[:, block], self.W.dtype
        R = (K.T @ L).numpy().astype(dtype) if len(L) else np.empty((0, 0), dtype)
        return (K.T @ self.LW).numpy().astype(dtype), R

    def _added(self) -> float:
        """Return the terms that the objective adds to the data term."""
        return float((self.LW * (self.K @ self._exact())).sum()) + self.constant


class CoordinateDescent(_Descent):
    """Descent for AE-NMF and model 1; at fixed U, donor part and penalty are quadratic in W."""

    separate = False
    kernel = _kernels.visit

    def _compute(self) -> None:
        self.H = self.second.track(self.W[None])
        W = self._exact()
        self.F, self.G = self.second.inner(self.H, self.H)[0], (W.T @ W).numpy()
        self._prepare()

    def _visit(self, block: slice) -> tuple[float, int]:
        A, D = self.second.columns(self.H, block.start, block.stop)[0], np.zeros_like(self.W[block])
        B, R = self._quadratic(block)
        done = _kernels.visit(
            A, B, self.second.gram(block)[0], R, self.squares[0, block], self.W[block], self.F, self.G,
            self.W.dtype.type(self.n * self.objective.lambda_W), RELAX, self.least, D,
        )  # fmt: skip
        self.second.update(self.H, block.start, D[None])
        self.LW += self.L[:, block] @ torch.from_numpy(D).double()
        return done

    def _value(self) -> float:
        sse = self.objective.moments.sq_norm - 2 * np.trace(self.F) + np.sum(self.F * self.G)
        return float(sse + self.n * self.objective.lambda_W * np.trace(self.G) + self._added()) / self.n

    def solution(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return W, (k, n_genes), and the optimal U for W."""
        W = torch.from_numpy(self.W.T.copy())
        return W, self.objective.closed_form_U(W)


class DonorCoordinateDescent(_Descent):
    """Descent for model 2: per block of genes, first W is updated, then U of each donor, in parallel.

    An entry of W changes in two ways: together with the decoders W + U_d, or at fixed decoders, where U_d changes by
    the opposite amount. At a minimum, few genes have a weight in the encoder W, and most steps would not change W.
    Therefore, most sweeps visit only genes whose last visit gained more than `_IDLE` of the mean gain.
    """

    separate = True
    kernel = _kernels.visit_shared

    def __init__(self, objective: Objective, W: torch.Tensor) -> None:
        shape = (len(objective.moments.partitions), *W.shape)
        super().__init__(objective, W, U=np.zeros(shape, W.numpy().dtype), sweeps=0)

    def arrays(self) -> dict[str, np.ndarray | float]:
        """Return what `restore` needs."""
        return super().arrays() | {"U": self.U.transpose(0, 2, 1).copy(), "sweeps": self.sweeps}

    def restore(self, arrays: dict) -> None:
        """Restore the state that `arrays` returned."""
        self.U, self.sweeps = np.array(arrays["U"].transpose(0, 2, 1), order="C"), int(arrays["sweeps"])
        super().restore(arrays)

    def step(self) -> float:
        """Make one sweep and return the objective."""
        full, mean = self.since_refresh % _FULL == 0, self.gains[:, self.squares.any(0)].mean(1, keepdims=True)
        self.active = np.ones_like(self.gains, bool) if full else self.gains > _IDLE * mean
        self.since_refresh, self.sweeps = self.since_refresh + 1, self.sweeps + 1
        return super().step()

    def _compute(self) -> None:
        self.since_refresh, self.gains = 0, np.zeros((2, len(self.W)))  # gains of each gene in W and U, last visit
        self.H, self.Y = self.second.track(self.W[None]), self.second.track(self.W + self.U)
        V = torch.from_numpy(self.W + self.U).double()
        self.F, self.G = self.second.inner(self.H, self.H), (V.mT @ V).numpy()
        self.cross = float(np.trace(self.second.inner(self.H, self.Y), axis1=1, axis2=2).sum())
        self._prepare()

    def _visit(self, block: slice) -> tuple[float, int]:
        active, gains = self.active[:, block], self.gains[:, block]
        A = self.second.columns(self.H, block.start, block.stop, active.any(0))
        B = self.second.columns(self.Y, block.start, block.stop, active[0])
        W, U, S, squares = self.W[block], self.U[:, block].copy(), self.second.gram(block), self.squares[:, block]
        (D, E), products, limits = np.zeros((2, *W.shape), W.dtype), (self.F, self.G), (RELAX, self.least)
        weights = self.n * self.objective.lambda_W, self.n * self.objective.lambda_U
        by_W = _kernels.visit_shared(
            A, B, S, *self._quadratic(block), squares, W, U, *products, weights, *limits, active[0],
            self.sweeps > _JOINT, gains[0], D, E,
        )  # fmt: skip
        self.LW += self.L[:, block] @ torch.from_numpy(D).double()
        DV, by_donor, moved = np.repeat(E[None], len(A), axis=0), np.zeros(A.shape[:2]), np.flatnonzero(D.any(1))
        by_U = _kernels.visit_own(
            A, S, D, moved, W, U, *products, weights[1], *limits, _VISITS, active[1], by_donor, DV
        ).sum(0)
        gains[1, active[1]] = by_donor.sum(0)[active[1]]
        cross, gained, steps = np.add(by_W, by_U)
        self.U[:, block] = U
        self.cross += cross
        self.second.update(self.H, block.start, D[None])
        self.second.update(self.Y, block.start, DV)
        return gained, int(steps)

    def _value(self) -> float:
        sse = self.objective.moments.sq_norm - 2 * self.cross + np.sum(self.F * self.G)
        W, U = (float(torch.from_numpy(M).square().sum(-1).sum(dtype=torch.float64)) for M in (self.W, self.U))
        return float(sse + self._added()) / self.n + self.objective.lambda_W * W + self.objective.lambda_U * U

    def solution(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return W, (k, n_genes), and U, (n_donors, k, n_genes)."""
        return torch.from_numpy(self.W.T.copy()), torch.from_numpy(self.U).mT.contiguous()


def compile_kernels() -> None:
    """Compile all kernels for float32 cells into numba's cache: run one sweep of each descent on a few cells."""
    from aenmf_lib.training.untied_descent import UntiedDescent  # which imports this module

    n_cells, n_genes = 8, GENES + 8  # one full and one partial block, two donors: all array layouts that occur
    X = csr_matrix(np.random.default_rng(0).random((n_cells, n_genes), dtype=np.float32))
    cells = AnnData(X, obs=pd.DataFrame({DONOR: ["a", "b"] * (n_cells // 2)}, index=[str(i) for i in range(n_cells)]))
    moments = Moments.from_cells(cells, cell_type=False, by_donor=True, mode="implicit")
    W, rows = torch.rand(2, n_genes), torch.ones(1, n_genes, dtype=torch.float64)
    summed = moments.gene_sq.sum(0, keepdim=True)
    objective = SimpleNamespace(moments=moments, n=n_cells, lambda_W=1.0, lambda_U=1.0, gamma=1.0, P=rows)
    objective.quadratic, objective.totals = lambda W: (rows, rows, 0.0), rows[0]
    objective.M, objective.donor_weight = moments.donor_sums, moments.donor_counts
    of = {CoordinateDescent: summed, DonorCoordinateDescent: moments.gene_sq, UntiedDescent: summed}
    for descent, gene_sq in of.items():
        objective.gene_sq = gene_sq[:, None]
        descent(objective, W).step()
