"""How is an objective minimized on the CPU? Gene by gene, program by program, each entry to its own minimum.

Exact coordinate descent: with all else fixed the objective is a polynomial of degree four in one entry of W, and of
degree two in one of model 2's U, so the best step is known in closed form. Two things make it fast. The step is
over-relaxed by `RELAX`, which the slow directions need; and steps that gain next to nothing are not taken (`_WORTH`),
so that the cells need not follow them. Genes are visited in blocks: ``W S`` is formed for a block at once (`_Implicit`,
`_Explicit`), followed within the block through the block's own part of S, and the cells' usages are then brought up to
date.

With ``α = (W S)_a`` and ``s = S_aa`` for gene a, ``F = W S Wᵀ`` and ``G = V Vᵀ`` (V = W, or W + U_d of each donor), a
step t of entry j changes the squared error by ``c₁ t + c₂ t² + c₃ t³ + c₄ t⁴``:

    c₁ = 2 [G α + F v − α − (V S)_a]_j      c₂ = s G_jj + F_jj + 2 (α_j v_j + ⟨α, v⟩) − 2 s
    c₃ = 2 (α_j + s v_j)                    c₄ = s

The loops are in module `kernels`.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numba
import numpy as np
import torch

from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.training import _kernels
from aenmf_lib.training._kernels import GENES
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.second_moment import EXPLICIT

RELAX = 1.9  # share of the best step that is taken; 1 to below 2. Measured: 1.9 needs a fifth of the sweeps that 1 does
_WORTH = 0.1  # a step is taken if it gains this share of what the mean step of the last sweep did
_VISITS = 2  # to an entry of U for each to one of W: they need no new product with S. Measured: 55 sweeps instead of 77
_TILE = 2048  # cells of a tile at most: its usages stay in the cache of one core
_TILES = 8  # tiles come in multiples of this: a whole number for each core,
_FEW = 1024  # unless they would hold fewer cells than this
_ALONE = 2e6  # nonzeros × programs of a block below which one core is done before a second has woken up


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    """Let compiled loops use n cores; cells are in tiles, so that bits do not depend on it."""
    before = numba.get_num_threads()
    numba.set_num_threads(n)
    try:
        yield
    finally:
        numba.set_num_threads(before)


# -------------------------------------------------------------------- W S, kept up to date while W moves
@dataclass
class _Usages:
    """Usages of the cells, and the change of W that they have not followed yet."""

    H: np.ndarray  # (n_cells, k)
    lo: int
    D: np.ndarray  # (1 or n_partitions, genes, k)


class _Implicit:
    """Products with the second moment through the usages of the cells; `apart` keeps partitions apart."""

    def __init__(self, moments: Moments, *, apart: bool) -> None:
        self.n_partitions, self.threads = len(moments.partitions) if apart else 1, numba.get_num_threads()
        self.p, self.dtype = moments.n_genes, np.dtype(str(moments.dtype).removeprefix("torch."))
        parts = [moments.cells(name) for name in moments.partitions]
        nnz, self.n_cells = sum(X.nnz for X in parts), sum(X.shape[0] for X in parts)
        edges = []
        for X in parts:
            n_tiles = -(-X.shape[0] // _TILE)
            if len(parts) == 1:
                n_tiles = min(-(-n_tiles // _TILES) * _TILES, max(X.shape[0] // _FEW, 1))
            edges.append(np.linspace(0, X.shape[0], n_tiles + 1).astype(np.int64))
        self.owner = np.repeat(np.arange(len(parts)) * apart, [len(edge) - 1 for edge in edges])
        self.indptr = np.zeros((len(self.owner), self.p + 1), np.int64)
        self.indices, self.data = np.empty(nnz, np.int32), np.empty(nnz, self.dtype)
        self._gram = np.zeros((self.n_partitions, -(-self.p // GENES), GENES, GENES), self.dtype)
        self.rows, at, first, tile = [], 0, 0, 0  # rows of H of each tile; places already taken
        for d, (X, edge) in enumerate(zip(parts, edges, strict=True)):
            to = slice(tile, tile := tile + len(edge) - 1)
            cells = X.indptr, X.indices, X.data
            _kernels.by_gene(*cells, edge, first, at + X.indptr[edge], self.indptr[to], self.indices, self.data)
            _kernels.add_gram(*cells, self._gram[d if apart else 0])
            self.rows += pairwise(first + edge)
            at, first = at + X.nnz, first + X.shape[0]

    def start(self, V: np.ndarray) -> _Usages:
        """Usages ``X Vᵀ`` for V (1 or n_partitions, n_genes, k)."""
        return _Usages(np.zeros((self.n_cells, V.shape[2]), self.dtype), 0, np.ascontiguousarray(V, self.dtype))

    def columns(self, state: _Usages, lo: int, hi: int) -> np.ndarray:
        """``V_d S_d`` for some genes, (n_partitions, genes, k), once the usages have followed what changed."""
        owner = self.owner if len(state.D) > 1 else np.zeros_like(self.owner)
        parts = np.empty((len(owner), hi - lo, state.H.shape[1]), self.dtype)
        work = len(self.data) * GENES * state.H.shape[1] / self.p
        with _threads(1 if work < _ALONE else self.threads):
            _kernels.follow(self.indptr, self.indices, self.data, owner, state.H, state.lo, state.D, lo, parts)
        state.D = state.D[:, :0]
        if self.n_partitions == 1:
            return parts.sum(0)[None]
        return np.stack([parts[self.owner == d].sum(0) for d in range(self.n_partitions)])

    def move(self, state: _Usages, lo: int, D: np.ndarray) -> None:
        """Note a change D (1 or n_partitions, genes, k) of V from gene `lo` on."""
        state.lo, state.D = lo, D

    def inner(self, one: _Usages, two: _Usages) -> np.ndarray:
        """``V S_d V'ᵀ``, (n_partitions, k, k) float64."""
        for state in (one, two):
            self.columns(state, 0, 0)
        F = np.zeros((self.n_partitions, one.H.shape[1], two.H.shape[1]))
        for d, (lo, hi) in zip(self.owner, self.rows, strict=True):
            H = torch.from_numpy(one.H[lo:hi]).double()
            F[d] += (H.T @ (H if two is one else torch.from_numpy(two.H[lo:hi]).double())).numpy()
        return F

    def gram(self, block: slice) -> np.ndarray:
        """Part of S_d between the genes of a block, (n_partitions, genes, genes)."""
        size = block.stop - block.start
        return self._gram[:, block.start // GENES, :size, :size]


class _Explicit:
    """Products with a stored second moment; the same methods as `_Implicit`, V itself in place of usages."""

    def __init__(self, moments: Moments, *, apart: bool) -> None:
        S = moments.second()
        self.S = S if apart or len(S) == 1 else S.sum(0, keepdim=True)
        self.n_partitions = len(self.S)

    def start(self, V: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(V).to(self.S.dtype, copy=True).contiguous()

    def columns(self, V: torch.Tensor, lo: int, hi: int) -> np.ndarray:
        return torch.matmul(self.S[:, lo:hi], V).numpy()

    def move(self, V: torch.Tensor, lo: int, D: np.ndarray) -> None:
        V[:, lo : lo + D.shape[1]] += torch.from_numpy(D)

    def inner(self, V: torch.Tensor, Y: torch.Tensor) -> np.ndarray:
        return (V.double().mT @ torch.matmul(self.S, Y).double()).numpy()

    def gram(self, block: slice) -> np.ndarray:
        return self.S[:, block, block].numpy()


def _second(moments: Moments, *, apart: bool) -> _Implicit | _Explicit:
    """Make it for the first of several fits; only the last one asked for is kept, for it holds the cells again."""
    if apart not in moments.ready:
        moments.ready.clear()
        moments.ready[apart] = (_Explicit if moments.mode == EXPLICIT else _Implicit)(moments, apart=apart)
    return moments.ready[apart]


# -------------------------------------------------------------------- the models
class _Descent:
    """What the descents of all models share: a sweep over blocks of genes."""

    window = 10  # sweeps over which the decrease is judged, and after which everything is formed anew
    apart: ClassVar[bool]  # whether the second moments of partitions are needed apart

    def __init__(self, objective: AENMFObjective, W: torch.Tensor, U: torch.Tensor | None = None) -> None:
        self.objective, self.n = objective, objective.n
        self.second = _second(objective.moments, apart=self.apart)
        self.squares = np.ascontiguousarray(objective.gene_sq[:, 0].double().numpy())
        self.restore({"W": W.numpy(), "least": 0.0} | ({} if U is None else {"U": U.numpy()}))

    def arrays(self) -> dict[str, np.ndarray | float]:
        """Give what `restore` needs to go on from the last `refresh` to the same bits."""
        return {"W": self.W.T.copy(), "least": self.least}

    def restore(self, arrays: dict) -> None:
        """Go back to where `arrays` was told."""
        self.W, self.least = np.array(arrays["W"].T, order="C"), float(arrays["least"])  # a gene a row
        self.loss = self.refresh()

    def refresh(self) -> float:
        """Form everything anew from W; gives the objective."""
        self._form()
        return self._value()

    def step(self) -> float:
        """Visit the entries of W once; gives the objective."""
        self._prepare()
        gained, steps = 0.0, 0
        for lo in range(0, len(self.W), GENES):
            more = self._visit(slice(lo, min(lo + GENES, len(self.W))))
            gained, steps = gained + more[0], steps + more[1]
        self.least = _WORTH * gained / max(steps, 1)
        self.loss = self._value()
        return self.loss

    # ---------------------------------------------------------------- a form quadratic in W, ``W R Wᵀ`` with R = LᵀK
    def _prepare(self) -> None:
        """Form what the objective adds to the data term, of few rows: for model 1 at the best U for W."""
        W = self._exact()
        self.L, self.K, self.constant = self.objective.quadratic(W.T)
        self.LW = self.L @ W

    def _exact(self) -> torch.Tensor:
        return torch.from_numpy(self.W.astype(np.float64))

    def _quadratic(self, block: slice) -> tuple[np.ndarray, np.ndarray]:
        """Columns of W R and part of R for a block of genes; the part is empty where nothing is added."""
        L, K = self.L[:, block], self.K[:, block]
        if not len(L):
            return np.zeros_like(self.W[block]), np.empty((0, 0), self.W.dtype)
        return tuple((K.T @ other).numpy().astype(self.W.dtype) for other in (self.LW, L))

    def _followed(self, block: slice, D: np.ndarray) -> None:
        if len(self.L):
            self.LW += self.L[:, block] @ torch.from_numpy(D).double()

    def _added(self) -> float:
        return float((self.LW * (self.K @ self._exact())).sum()) + self.constant if len(self.K) else 0.0


class CoordinateDescent(_Descent):
    """AE-NMF, and with a donor part model 1: for a given U that adds a form quadratic in W, as a penalty does."""

    apart = False

    def _form(self) -> None:
        self.H = self.second.start(self.W[None])
        W = self._exact()
        self.F, self.G = self.second.inner(self.H, self.H)[0], (W.T @ W).numpy()
        self._prepare()

    def _visit(self, block: slice) -> tuple[float, int]:
        dtype = self.W.dtype
        A, D = self.second.columns(self.H, block.start, block.stop)[0], np.zeros_like(self.W[block])
        B, R = self._quadratic(block)
        done = _kernels.visit(
            A, B, self.second.gram(block)[0], R, self.squares[0, block], self.W[block], self.F, self.G,
            dtype.type(self.n * self.objective.lambda_W), RELAX, self.least, D,
        )  # fmt: skip
        self.second.move(self.H, block.start, D[None])
        self._followed(block, D)
        return done

    def _value(self) -> float:
        sse = self.objective.moments.sq_norm - 2 * np.trace(self.F) + np.sum(self.F * self.G)
        return float(sse + self.n * self.objective.lambda_W * np.trace(self.G) + self._added()) / self.n

    def solution(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """W, and the best U for it, as the objective takes them."""
        W = torch.from_numpy(self.W.T.copy())
        return W, self.objective.closed_form_U(W)


class DonorCoordinateDescent(_Descent):
    """Model 2: a block of W for all donors, then that of each donor's U, which given W do not meet."""

    apart = True

    def arrays(self) -> dict[str, np.ndarray | float]:
        """See `_Descent.arrays`."""
        return super().arrays() | {"U": self.U.transpose(0, 2, 1).copy()}

    def restore(self, arrays: dict) -> None:
        """See `_Descent.restore`."""
        self.U = np.array(arrays["U"].transpose(0, 2, 1), order="C")
        super().restore(arrays)

    def _form(self) -> None:
        self.H, self.Y = self.second.start(self.W[None]), self.second.start(self.W + self.U)
        V = torch.from_numpy(self.W + self.U).double()
        self.F, self.G = self.second.inner(self.H, self.H), (V.mT @ V).numpy()
        self.cross = float(np.trace(self.second.inner(self.H, self.Y), axis1=1, axis2=2).sum())

        self._prepare()

    def _visit(self, block: slice) -> tuple[float, int]:
        A, B = (self.second.columns(state, block.start, block.stop) for state in (self.H, self.Y))
        W, U, S = self.W[block], self.U[:, block].copy(), self.second.gram(block)
        D, n, settings = np.zeros_like(W), self.n, (RELAX, self.least)
        own = W, U, self.F, self.G, n * self.objective.lambda_W
        told = np.array(
            _kernels.visit_shared(A, B, S, *self._quadratic(block), self.squares[:, block], *own, *settings, D)
        )
        self._followed(block, D)
        # through torch, for numpy's product wakes threads of its own, which then keep the others waiting
        A += torch.matmul(torch.from_numpy(S), torch.from_numpy(D)).numpy()
        DV = np.repeat(D[None], len(A), axis=0)
        told += _kernels.visit_own(A, W, U, self.F, self.G, n * self.objective.lambda_U, *settings, _VISITS, DV).sum(0)
        self.U[:, block] = U
        self.cross += told[0]
        self.second.move(self.H, block.start, D[None])
        self.second.move(self.Y, block.start, DV)
        return told[1], int(told[2])

    def _value(self) -> float:
        sse = self.objective.moments.sq_norm - 2 * self.cross + np.sum(self.F * self.G)
        norms = (float(torch.linalg.vector_norm(torch.from_numpy(M), dtype=torch.float64)) for M in (self.W, self.U))
        weights = self.objective.lambda_W, self.objective.lambda_U
        weighed = sum(weight * norm**2 for weight, norm in zip(weights, norms, strict=True))
        return float(sse + self._added()) / self.n + weighed

    def solution(self) -> tuple[torch.Tensor, torch.Tensor]:
        """W and U as the objective takes them."""
        return torch.from_numpy(self.W.T.copy()), torch.from_numpy(self.U).mT.contiguous()
