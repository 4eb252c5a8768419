"""Products with the second moment S = XᵀX of the cells, which is stored in one of two ways.

*Implicit*: the cells are stored and multiplied twice, ``V S = (X Vᵀ)ᵀ X``. A product costs ``4 nnz`` operations per
program. *Explicit*: S is formed once, ``n p²`` operations for n cells and p genes. A product then costs ``2 p²`` per
program, for any number of cells. `second_moment.choose_representation` compares the two.
"""

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numba
import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from aenmf_lib.training import _cell_kernels
from aenmf_lib.training._kernels import GENES
from aenmf_lib.training.inputs import check_indices
from aenmf_lib.training.second_moment import EXPLICIT, IMPLICIT, check_device, to_torch

_MAX_NNZ = 2**31 - 1  # limit of 32-bit indices, with which torch's CSR kernels are twice as fast
_TILE = 2048  # maximum number of cells in a tile: its usages fit in the cache of one core
_TILES = 8  # the tile count is rounded up to a multiple of this, for an equal number per core,
_FEW = 1024  # if tiles keep at least this many cells; otherwise there are fewer tiles
_SMALL_WORK = 2e6  # below this work (nonzeros × programs of a block), use one thread


class SecondMoment:
    """Second moments ``S_d = X_dᵀ X_d`` of the partitions of the cells: the donors, or '' for all cells together.

    `_Explicit` and `_Implicit` have the same methods; `_Explicit` documents them. Coordinate descent reads `columns` of
    ``V S`` while it changes V. `track` takes one V or one per partition, (1 or n, n_genes, k), and returns the state
    that `update`, `columns` and `inner` use. n is 1 after ``for_descent(separate=False)``.
    """

    mode: str

    def __init__(self, parts: dict[str, csr_matrix | torch.Tensor], dtype: torch.dtype, device: str) -> None:
        self.parts = {name: parts[name] for name in sorted(parts)}
        self.dtype, self.device, self.n = dtype, check_device(device), len(parts)
        self._pooled: SecondMoment | None = None

    def merged(self, other: "SecondMoment", *, in_place: bool = False) -> "SecondMoment":
        """Return the second moments of both sets of cells; `in_place` reuses the memory of an explicit S."""
        parts = dict(self.parts)
        for name, more in other.parts.items():
            if name not in parts:
                parts[name] = more
            elif self.mode == IMPLICIT:
                parts[name] = vstack([parts[name], more], format="csr")
            else:
                more = more.to(self.device)
                parts[name] = parts[name].add_(more) if in_place else parts[name] + more
        return type(self)(parts, self.dtype, self.device)

    def subset(self, names: list[str]) -> "SecondMoment":
        """Return the second moments of some partitions. Their parts are shared, not copied."""
        return type(self)({name: self.parts[name] for name in names}, self.dtype, self.device)

    def weighted(self, w: np.ndarray) -> "SecondMoment":
        """Return the second moments of ``X diag(w)``."""
        return type(self)({name: scale_genes(part, w) for name, part in self.parts.items()}, self.dtype, self.device)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays from which `restore_second_moment` rebuilds the second moments."""
        if self.mode == EXPLICIT:
            return {f"S{i}": S.cpu().numpy() for i, S in enumerate(self.parts.values())}
        return {key: a for i, X in enumerate(self.parts.values()) for key, a in csr_arrays(f"cells{i}", X).items()}

    def for_descent(self, *, separate: bool) -> "SecondMoment":
        """Return S per partition (`separate`) or summed. Caches that only the other form needs are freed."""
        if separate or len(self.parts) == 1:
            self._pooled = None
            return self
        self.__dict__.pop("_grams", None)
        if self._pooled is None:
            self._pooled = copy.copy(self)
            self._pooled.n = 1
            self._pool(self._pooled)
        return self._pooled


class _Explicit(SecondMoment):
    """S is stored, in float64 and in the precision of X; the state of coordinate descent is V."""

    mode = EXPLICIT

    @cached_property
    def _S(self) -> torch.Tensor:
        """Second moments in the precision of X, (n, n_genes, n_genes)."""
        return torch.stack([S.to(self.dtype) for S in self.parts.values()])

    def _pool(self, pooled: "_Explicit") -> None:
        total = torch.zeros_like(next(iter(self.parts.values())))
        for S in self.parts.values():  # one by one: a stack of all S would need more memory
            total += S
        pooled._S = total.to(self.dtype)[None]

    def product(self, V: torch.Tensor) -> torch.Tensor:
        """Return ``V S`` for the second moment S of all cells; V and the result are (k, n_genes)."""
        S = self.for_descent(separate=False)._S[0]
        return (S @ V.T).T.contiguous()  # V S, because S is symmetric; the product with a tall matrix is faster

    def products(self, V: torch.Tensor) -> torch.Tensor:
        """Return ``V_d S_d``, (n_partitions, k, n_genes), for one V (k, n_genes) or one per partition."""
        return torch.matmul(V.expand(self.n, *V.shape[-2:]), self._S)

    def track(self, V: np.ndarray) -> torch.Tensor:
        """Return the state from which `columns` computes ``V S``."""
        return torch.from_numpy(V).to(self.dtype, copy=True).contiguous()

    def update(self, V: torch.Tensor, lo: int, D: np.ndarray) -> None:
        """Add D, (1 or n, genes, k), to V from gene `lo` on."""
        V[:, lo : lo + D.shape[1]] += torch.from_numpy(D)

    def columns(self, V: torch.Tensor, lo: int, hi: int, wanted: np.ndarray | None = None) -> np.ndarray:
        """Return ``V_d S_d`` for the genes from `lo` to before `hi`, (n, genes, k). Genes not `wanted` may be 0."""
        return torch.matmul(self._S[:, lo:hi], V).numpy()

    def inner(self, V: torch.Tensor, Y: torch.Tensor) -> np.ndarray:
        """Return ``V_d S_d Y_dᵀ``, (n, k, k) float64."""
        return (V.double().mT @ torch.matmul(self._S, Y).double()).numpy()

    def gram(self, block: slice) -> np.ndarray:
        """Return S_d between the genes of a block, (n, genes, genes)."""
        return self._S[:, block, block].numpy()


@dataclass
class _Usages:
    """Usages H = ``X Vᵀ`` of the cells, and a pending update D of V (genes from `lo`) that H does not yet include."""

    H: np.ndarray  # (n_cells, k)
    lo: int
    D: np.ndarray  # (1 or n, genes, k)


@dataclass
class _Tiles:
    """A copy of the cells in tiles of rows, each tile in CSC."""

    partition: np.ndarray  # (n_tiles,)
    rows: list[tuple[int, int]]  # first and last row of H of each tile
    indptr: np.ndarray  # (n_tiles, n_genes + 1)
    indices: np.ndarray  # (nnz,) rows of H
    data: np.ndarray  # (nnz,)


class _Implicit(SecondMoment):
    """The cells are stored; the state of coordinate descent is the usages ``X Vᵀ``."""

    mode = IMPLICIT

    def _pool(self, pooled: "_Implicit") -> None:
        pooled._tiles = replace(self._tiles, partition=np.zeros_like(self._tiles.partition))

    @cached_property
    def _sparse(self) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        """Partition, cells and their transpose, both as torch CSR; a transposed view would be 20 to 70 times slower."""
        parts = ((d, part) for d, X in enumerate(self.parts.values()) for part in _split(X))
        return [(d, to_torch(X, self.device), to_torch(X.T.tocsr(), self.device)) for d, X in parts]

    def product(self, V: torch.Tensor) -> torch.Tensor:
        VS = torch.zeros_like(V)
        for _, X, Xt in self._sparse:
            VS += (Xt @ (X @ V.T.contiguous())).T
        return VS

    def products(self, V: torch.Tensor) -> torch.Tensor:
        V = V.expand(self.n, *V.shape[-2:])
        VS = torch.zeros_like(V, memory_format=torch.contiguous_format)
        for d, X, Xt in self._sparse:
            VS[d] += (Xt @ (X @ V[d].T.contiguous())).T
        return VS

    @cached_property
    def _tiles(self) -> _Tiles:
        parts, edges = list(self.parts.values()), []
        for X in parts:
            n_tiles = -(-X.shape[0] // _TILE)
            if len(parts) == 1:
                n_tiles = min(-(-n_tiles // _TILES) * _TILES, max(X.shape[0] // _FEW, 1))
            edges.append(np.linspace(0, X.shape[0], n_tiles + 1).astype(np.int64))
        partition = np.repeat(np.arange(len(parts)), [len(edge) - 1 for edge in edges])
        indptr, nnz = np.zeros((len(partition), parts[0].shape[1] + 1), np.int64), sum(X.nnz for X in parts)
        tiles = _Tiles(partition, [], indptr, np.empty(nnz, np.int32), np.empty(nnz, parts[0].dtype))
        at = row = tile = 0
        for X, edge in zip(parts, edges, strict=True):
            of_part, begin = indptr[tile : tile + len(edge) - 1], at + X.indptr[edge]
            _cell_kernels.by_gene(X.indptr, X.indices, X.data, edge, row, begin, of_part, tiles.indices, tiles.data)
            tiles.rows += pairwise(row + edge)
            at, row, tile = at + X.nnz, row + X.shape[0], tile + len(of_part)
        return tiles

    @cached_property
    def _grams(self) -> np.ndarray:
        """S_d between the genes of each block, (n, n_blocks, GENES, GENES)."""
        parts = list(self.parts.values())
        grams = np.zeros((self.n, -(-parts[0].shape[1] // GENES), GENES, GENES), parts[0].dtype)
        for d, X in enumerate(parts):
            _cell_kernels.add_gram(X.indptr, X.indices, X.data, grams[d if self.n > 1 else 0])
        return grams

    def track(self, V: np.ndarray) -> _Usages:
        n_cells, dtype = sum(X.shape[0] for X in self.parts.values()), self._tiles.data.dtype
        return _Usages(np.zeros((n_cells, V.shape[2]), dtype), 0, np.ascontiguousarray(V, dtype))

    def update(self, state: _Usages, lo: int, D: np.ndarray) -> None:
        state.lo, state.D = lo, D

    def columns(self, state: _Usages, lo: int, hi: int, wanted: np.ndarray | None = None) -> np.ndarray:
        tiles, (k, p) = self._tiles, (state.H.shape[1], self._tiles.indptr.shape[1] - 1)
        row_of_D = tiles.partition if len(state.D) > 1 else np.zeros_like(tiles.partition)
        parts = np.empty((len(row_of_D), hi - lo, k), state.H.dtype)
        cells, n_cores = (tiles.indptr, tiles.indices, tiles.data), numba.get_num_threads()
        wanted = np.ones(hi - lo, bool) if wanted is None else wanted
        if len(tiles.data) * GENES * k / p < _SMALL_WORK:
            numba.set_num_threads(1)  # sums are per tile, so the number of threads changes no bit of the result
        try:
            _cell_kernels.follow(*cells, row_of_D, state.H, state.lo, state.D, lo, wanted, parts)
        finally:
            numba.set_num_threads(n_cores)
        state.D = state.D[:, :0]
        if self.n == 1:
            return parts.sum(0)[None]
        return np.stack([parts[tiles.partition == d].sum(0) for d in range(self.n)])

    def inner(self, V: _Usages, Y: _Usages) -> np.ndarray:
        for state in (V, Y):
            self.columns(state, 0, 0)
        F = np.zeros((self.n, V.H.shape[1], Y.H.shape[1]))
        for d, (lo, hi) in zip(self._tiles.partition, self._tiles.rows, strict=True):
            H = torch.from_numpy(V.H[lo:hi]).double()
            F[d] += (H.T @ (H if Y is V else torch.from_numpy(Y.H[lo:hi]).double())).numpy()
        return F

    def gram(self, block: slice) -> np.ndarray:
        size = block.stop - block.start
        return self._grams[:, block.start // GENES, :size, :size]


def second_moment(mode: str, parts: dict, dtype: torch.dtype, device: str) -> SecondMoment:
    """Return second moments. `parts`: partition name to cells (csr_matrix) if implicit, to S (float64) if explicit."""
    return (_Implicit if mode == IMPLICIT else _Explicit)(parts, dtype, device)


def restore_second_moment(arrays: dict, mode: str, dtype: torch.dtype, device: str) -> SecondMoment:
    """Rebuild the second moments from saved arrays and partition names."""
    parts, device = {}, check_device(device)
    for i, name in enumerate(map(str, arrays["partitions"])):
        explicit = mode == EXPLICIT
        parts[name] = torch.from_numpy(arrays[f"S{i}"]).to(device) if explicit else restore_csr(arrays, f"cells{i}")
    return second_moment(mode, parts, dtype, device)


def csr_arrays(name: str, X: csr_matrix) -> dict[str, np.ndarray]:
    """Return the arrays to save for a CSR matrix."""
    return {f"{name}_data": X.data, f"{name}_indices": X.indices, f"{name}_indptr": X.indptr}


def restore_csr(arrays: dict[str, np.ndarray], name: str) -> csr_matrix:
    """Rebuild a (cells, genes) CSR matrix from the arrays that `csr_arrays` returned."""
    data, indices, indptr = (arrays[f"{name}_{part}"] for part in ("data", "indices", "indptr"))
    X = csr_matrix((data, indices, indptr), (len(indptr) - 1, len(arrays["genes"])))
    check_indices(X)
    return X


def scale_genes(M: csr_matrix | torch.Tensor, w: np.ndarray) -> csr_matrix | torch.Tensor:
    """Return ``X diag(w)`` for cells X, or ``diag(w) S diag(w)`` for an explicit S."""
    if isinstance(M, csr_matrix):
        return csr_matrix((M.data * w.astype(M.dtype)[M.indices], M.indices, M.indptr), M.shape)
    w = torch.as_tensor(w, device=M.device)
    return M * (w[:, None] * w).to(M.dtype)


def _split(X: csr_matrix) -> list[csr_matrix]:
    """Return X in parts of at most `_MAX_NNZ` nonzeros."""
    n_parts = -(-X.nnz // _MAX_NNZ)
    if n_parts <= 1:
        return [X]
    cuts = np.searchsorted(X.indptr, np.linspace(0, X.nnz, n_parts + 2)[1:-1])  # one more: cuts are between cells
    return [X[lo:hi] for lo, hi in pairwise([0, *cuts, X.shape[0]]) if hi > lo]
