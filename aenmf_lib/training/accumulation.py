"""Forming the second moment S = XᵀX from sparse cells: on the CPU from their nonzeros, on a GPU from dense blocks."""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from aenmf_lib.training import _sum_kernels
from aenmf_lib.training.second_moment import CELLS, FLUSH, available_memory, tf32

log = logging.getLogger(__name__)

_WIDTH = 128  # genes in a dense tile; a tile with all cells of a block fits in the cache of one core
_DENSE = 0.05  # a dense tile is faster if at least this share of its entries is nonzero
_PARTS = 16  # parts of the rare genes, with equal work
_PANEL = 512, 2048  # smallest and largest number of rows of S in one dense product; larger ones compute more of S twice
_STAGED = 2**20  # entries that one thread copies to pinned memory at a time
_TF32_ERROR = 1e-4  # tf32 is used if the relative error of a sampled part of S is below this


class Accumulator:
    """Form one second moment, ``S += Xᵀ X``, from cells in any portions. Use `finish` to get S."""

    def __init__(self, n_genes: int, cells: int) -> None:
        self.n_genes, self._cells = n_genes, cells  # number of cells that are added together
        self._waiting: list[csr_matrix] = []

    def add(self, X: csr_matrix) -> None:
        """Add cells X, (cells, n_genes), without duplicate entries. X must not be changed later."""
        self._waiting.append(X)
        if sum(part.shape[0] for part in self._waiting) >= self._cells:
            self._add_waiting()

    def finish(self) -> torch.Tensor:
        """Return S, (n_genes, n_genes) float64. Afterwards, nothing can be added."""
        if self._waiting:
            self._add_waiting()
        return self._finish()

    def _add_waiting(self) -> None:
        """Add the cells that were not yet added, in blocks of similar size."""
        parts, self._waiting = self._waiting, []
        X = parts[0] if len(parts) == 1 else vstack(parts, format="csr")
        edges = np.linspace(0, X.shape[0], max(round(X.shape[0] / self._cells), 1) + 1).astype(np.int64)
        for lo, hi in pairwise(edges):
            self._add_block(X.indptr[lo : hi + 1], X.indices, X.data)


class SparseAccumulator(Accumulator):
    """Form S on the CPU. Each nonzero is multiplied only with values of more frequent genes, not of all genes.

    The genes are sorted by frequency. Columns of frequent genes are made dense, and each nonzero of a less frequent
    gene is multiplied with a row of these columns. Pairs of rare genes are multiplied one by one. The threads of `pool`
    compute separate parts of S while the caller prepares the next cells; S does not depend on their number. Sums are in
    the precision of X within a block, and in float64 over the blocks.
    """

    def __init__(self, n_genes: int, pool: ThreadPoolExecutor) -> None:
        super().__init__(n_genes, CELLS["cpu"])
        self._S, self._pool = np.zeros((n_genes, n_genes)), pool  # genes by rank: lower triangle, diagonal tiles
        self._rank: np.ndarray | None = None  # by frequency in the first block, for each gene
        self._running: list[Future] = []

    def _add_block(self, indptr: np.ndarray, genes: np.ndarray, values: np.ndarray) -> None:
        begin, end, n_cells = int(indptr[0]), int(indptr[-1]), len(indptr) - 1
        indptr, values = (indptr - begin).astype(np.int64, copy=False), values[begin:end]
        genes, counts = genes[begin:end].astype(np.int32, copy=False), np.zeros(self.n_genes, np.int64)
        _sum_kernels.count_genes(genes, counts)
        if self._rank is None:
            self._order = np.argsort(-counts, kind="stable")
            self._rank = np.argsort(self._order).astype(np.int32)
        counts = counts[self._order]
        start = np.concatenate([[0], counts.cumsum()])
        csc = start, np.empty(len(values), np.int32), np.empty(len(values), values.dtype)
        _sum_kernels.sort_by_gene(indptr, genes, values, self._rank, *csc)
        n_dense = dense_genes(counts, n_cells)
        tasks = [self._dense_task(csc, n_cells, lo, min(lo + _WIDTH, n_dense)) for lo in range(0, n_dense, _WIDTH)]
        if n_dense < self.n_genes:
            tasks += self._rare_tasks(csc, counts, n_cells, n_dense)
        self._wait()  # until now, the threads computed the previous block
        self._running = [self._pool.submit(*task) for task in tasks]

    def _dense_task(self, csc: tuple, n_cells: int, lo: int, hi: int) -> tuple:
        """Return a call that adds the products with the genes lo to before hi."""

        def add() -> None:
            _sum_kernels.add_dense_tile(*csc, lo, hi, np.empty((n_cells, _WIDTH), csc[2].dtype), self._S)

        return (add,)

    def _rare_tasks(self, csc: tuple, counts: np.ndarray, n_cells: int, first: int) -> list[tuple]:
        """Return calls of similar duration that add the products between the genes from rank `first` on."""
        n = int(counts[first:].sum())
        csr = np.zeros(n_cells + 1, np.int64), np.empty(n, np.int32), np.empty(n, csc[2].dtype), np.empty(n, np.int64)
        _sum_kernels.sort_rare(*csc, first, *csr)
        work = np.cumsum(counts[first:] * (counts[first:].cumsum() + 1.0))
        cuts = first + np.searchsorted(work, work[-1] * np.arange(1, _PARTS) / _PARTS)
        edges = np.unique([first, *cuts, self.n_genes]).tolist()
        return [(_sum_kernels.add_rare, *csc, first, lo, hi, *csr, self._S) for lo, hi in pairwise(edges)]

    def _wait(self) -> None:
        """Wait until the threads have added the previous block, and raise their errors."""
        while self._running:
            self._running.pop().result()

    def _finish(self) -> torch.Tensor:
        self._wait()
        if self._rank is not None:
            _sum_kernels.unsort(self._S, self._rank)
        return torch.from_numpy(self._S)


class DenseAccumulator(Accumulator):
    """Form one triangle of S on a device from blocks of cells, which are sent sparse and made dense there."""

    def __init__(self, n_genes: int, dtype: torch.dtype, device: str, pool: ThreadPoolExecutor) -> None:
        self.S = torch.zeros(n_genes, n_genes, dtype=torch.float64, device=device)
        self._recent = torch.zeros(n_genes, n_genes, dtype=dtype, device=device)
        self._n_recent = 0  # cells summed in `_recent`
        super().__init__(n_genes, cells_at_once(n_genes, device))
        self.tf32: bool | None = None
        self._panel = min(max(-(-n_genes // 2048) * 256, _PANEL[0]), _PANEL[1])
        self._transfer = Transfer(n_genes, device, pool)

    def _add_block(self, indptr: np.ndarray, genes: np.ndarray, values: np.ndarray) -> None:
        X = self._transfer.dense(indptr, genes, values)
        if self.tf32 is None:
            self.tf32 = _tf32_is_safe(X)
        with tf32(self.tf32):
            for lo in range(0, self.n_genes, self._panel):  # torch has no symmetric product
                hi = lo + self._panel
                self._recent[lo:hi, :hi].addmm_(X[:, lo:hi].T, X[:, :hi])
        self._n_recent += len(X)
        if self._n_recent >= FLUSH:
            self._flush()

    def _finish(self) -> torch.Tensor:
        self._flush()
        del self._recent
        for lo in range(0, self.n_genes, self._panel):  # in panels: a transpose of S would need a second S
            panel = slice(lo, lo + self._panel)
            self.S[panel, panel] = self.S[panel, panel].tril() + self.S[panel, panel].tril(-1).T
            self.S[panel, panel.stop :] = self.S[panel.stop :, panel].T
        return self.S

    def _flush(self) -> None:
        """Add the sums in the precision of X to S."""
        self.S += self._recent
        self._recent.zero_()
        self._n_recent = 0


class Transfer:
    """Send sparse cells to a device and make them dense there, while it still computes with the previous block.

    A separate stream copies a block from pinned memory and makes it dense. There are at most two blocks at a time:
    `dense` waits until the device has finished with the last block but one.
    """

    def __init__(self, n_genes: int, device: str, pool: ThreadPoolExecutor) -> None:
        self.n_genes, self.device, self._pool = n_genes, torch.device(device), pool
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._buffers, self._computed = deque([{}, {}]), deque()
        # 16 bits per index where possible; torch has no arithmetic for unsigned ones, so they are stored as signed ones
        self._index = np.uint16 if n_genes <= 2**16 else np.int32

    def dense(self, indptr: np.ndarray, genes: np.ndarray, values: np.ndarray) -> torch.Tensor:
        """Return the cells of a CSR matrix as a dense matrix on the device; indptr may begin within `genes`."""
        entries = slice(int(indptr[0]), int(indptr[-1]))
        parts = {"n": (np.diff(indptr), np.int32), "genes": (genes[entries], self._index)}
        parts["values"] = values[entries], values.dtype
        if self._stream is None:
            return self._scatter(*(torch.from_numpy(_signed(a.astype(t, copy=False))) for a, t in parts.values()))
        main = torch.cuda.current_stream(self.device)
        self._computed.append(main.record_event())
        if len(self._computed) > 1:
            self._computed.popleft().synchronize()
        buffers = self._buffers[0]
        self._buffers.rotate()
        staged = [self._stage(buffers, name, array, dtype) for name, (array, dtype) in parts.items()]
        with torch.cuda.stream(self._stream):
            X = self._scatter(*(part.to(self.device, non_blocking=True) for part in staged))
        main.wait_stream(self._stream)
        X.record_stream(main)
        return X

    def _stage(self, buffers: dict[str, torch.Tensor], name: str, array: np.ndarray, dtype: type) -> torch.Tensor:
        """Copy an array to pinned memory, in another type if necessary, with all threads."""
        if name not in buffers or len(buffers[name]) < len(array):
            of_type = torch.from_numpy(_signed(np.empty(0, dtype))).dtype
            buffers[name] = torch.empty(len(array) * 5 // 4, dtype=of_type, pin_memory=True)
        staged = buffers[name][: len(array)]
        to = staged.numpy().view(dtype)
        parts = [slice(lo, lo + _STAGED) for lo in range(0, len(array), _STAGED)]
        list(self._pool.map(lambda part: np.copyto(to[part], array[part], casting="unsafe"), parts))
        return staged

    def _scatter(self, n: torch.Tensor, genes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return a dense matrix from the number of entries of each cell, their genes and values."""
        X = torch.zeros(len(n), self.n_genes, dtype=values.dtype, device=self.device)
        first = torch.arange(0, X.numel(), self.n_genes, device=self.device)  # place of the first gene of each cell
        places = torch.repeat_interleave(first, n.long(), output_size=len(values))  # a known size needs no waiting
        places += genes.long() & 0xFFFF if self._index == np.uint16 else genes
        X.view(-1)[places] = values
        return X


def dense_genes(counts: np.ndarray, n_cells: int) -> int:
    """Return the number of frequent genes whose columns are made dense; counts of nonzeros, (n_genes,), by rank."""
    edges = np.arange(0, len(counts), _WIDTH)
    share = np.add.reduceat(counts, edges) / (n_cells * np.diff(edges, append=len(counts)))
    frequent = np.flatnonzero(share >= _DENSE)
    return min((int(frequent[-1]) + 1) * _WIDTH, len(counts)) if len(frequent) else 0


def cells_at_once(n_genes: int, device: str) -> int:
    """Return the number of cells in a dense block on a device. Two blocks in float32 use an eighth of its memory."""
    return max(min(CELLS["cuda"], available_memory(device) // (64 * n_genes)), 1)


def to_host(values: torch.Tensor) -> Callable[[], np.ndarray]:
    """Start to copy values from a device, and return a function that waits for the copy and returns it."""
    if not values.is_cuda:
        return values.numpy
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    done = torch.cuda.current_stream(values.device).record_event()

    def wait() -> np.ndarray:
        done.synchronize()
        return copy.numpy()

    return wait


def accumulator(n_genes: int, dtype: torch.dtype, device: str, pool: ThreadPoolExecutor) -> Accumulator:
    """Return the accumulator of S for this device. `pool` are the threads of `thread_pool`."""
    return SparseAccumulator(n_genes, pool) if device == "cpu" else DenseAccumulator(n_genes, dtype, device, pool)


@contextlib.contextmanager
def thread_pool() -> Iterator[ThreadPoolExecutor]:
    """Provide the threads that form second moments: one per core that numba may use."""
    with ThreadPoolExecutor(numba.get_num_threads(), "second moment") as pool:
        yield pool


def _signed(array: np.ndarray) -> np.ndarray:
    """Return unsigned 16-bit numbers as signed ones with the same bits; other arrays as they are."""
    return array.view(np.int16) if array.dtype == np.uint16 else array


def _tf32_is_safe(X: torch.Tensor) -> bool:
    """Return whether the GPU supports tf32 and the error of a sample of S with tf32 is below `_TF32_ERROR`."""
    if not X.is_cuda or X.dtype != torch.float32 or torch.cuda.get_device_capability(X.device) < (8, 0):
        return False
    sample = X[:, :: max(1, X.shape[1] // 256)].contiguous()
    exact = sample.double().T @ sample.double()
    with tf32(True):
        error = float(((sample.T @ sample) - exact).norm() / exact.norm())
    log.info("tf32 inputs: relative error %.1e on a sample, %s", error, "used" if error < _TF32_ERROR else "not used")
    return error < _TF32_ERROR
