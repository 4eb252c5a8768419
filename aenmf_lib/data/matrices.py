"""Reading a matrix by cells: dense, CSR or CSC, in a file or in memory, of any numeric type and byte order."""

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

import h5py
import numpy as np
import zarr
from scipy.sparse import csc_matrix, csr_matrix, issparse, vstack

from aenmf_lib.data.one_pass import Task, read_cells
from aenmf_lib.data.reading import Fault, available_memory, check_local, check_memory, guard, is_array
from aenmf_lib.data.storage import Array, open_array

log = logging.getLogger(__name__)

_DENSE_BYTES = 2**27  # bytes of a dense matrix that are read at a time
_ENTRIES = 2**22  # entries of a CSC matrix that are read at a time
_BLOCK = 2**24  # entries of a CSR matrix that are read at a time
_MAX_UNUSUAL = 3  # after this many blocks that `read_cells` could not read, it is not tried on the other blocks
_ENTRY_BYTES = 40  # memory per entry while a CSC matrix is sorted by cells
_FORMATS = {"csr_matrix": "csr", "csc_matrix": "csc", "csr": "csr", "csc": "csc"}  # the last two: anndata < 0.7


class Matrix:
    """A matrix of which cells can be read.

    Parameters
    ----------
    node, path, where
        A group or an array of an open file, or a SciPy or NumPy matrix; its file, and its name for errors.

    Attributes
    ----------
    shape, format
        (n_cells, n_genes), and ``'csr'``, ``'csc'`` or ``'dense'``.
    n_duplicates
        Number of duplicated entries that were summed in the cells read so far.
    """

    def __init__(self, node: object, path: str, where: str) -> None:
        self.path, self.where, self.n_duplicates = path, where, 0
        self._n_unusual, self.one_at_a_time = 0, threading.Lock()  # only one thread at a time may call `read`
        self._window, self._first = None, 0  # cells that were read in advance, and the number of the first
        with guard(path, where):
            self._in_memory = issparse(node) or isinstance(node, np.ndarray)
            if not self._in_memory and not isinstance(node, h5py.Group | h5py.Dataset | zarr.Group | zarr.Array):
                remedy = "Load it first: cells = cells.to_memory()."
                raise Fault(f"is a {type(node).__name__}, not a SciPy or NumPy matrix", remedy)
            if issparse(node) and node.format not in ("csr", "csc"):
                node = node.tocsr()
            self._open(node)

    def _guard(self) -> AbstractContextManager:
        """Return a guard that adds the name of this matrix to a Fault or MemoryError."""
        size = math.prod(self._data.shape) * self._data.dtype.itemsize
        return guard(self.path, self.where, (Fault, MemoryError), size=3 * size)

    def _slice(self, array: object, lo: int, hi: int) -> np.ndarray:
        """Read a part of an array of the file."""
        whole = array.array if isinstance(array, Array) else array
        size = (hi - lo) * math.prod(whole.shape[1:]) * whole.dtype.itemsize
        with guard(self.path, self.where, size=size):
            return array.read(lo, hi) if isinstance(array, Array) else array[lo:hi]

    def _open(self, node: object) -> None:
        """Check the shape, the types and the index pointers. Values and indices are checked when they are read."""
        attributes = getattr(node, "attrs", {})
        if is_array(node) and not issparse(node):
            self.format, self._data, shape = "dense", node, node.shape
        elif issparse(node):
            self.format, shape = node.format, node.shape
            self._data, self._indices, pointers = node.data, node.indices, node.indptr
        else:
            stored = attributes.get("encoding-type", attributes.get("h5sparse_format", "of unknown format"))
            if stored not in _FORMATS:
                raise Fault(f"is {stored}, not csr_matrix, csc_matrix or array")
            self.format, shape = _FORMATS[stored], attributes.get("shape", attributes.get("h5sparse_shape"))
            if shape is None:
                raise Fault("has no shape")
            if missing := [name for name in ("data", "indices", "indptr") if name not in node]:
                raise Fault(f"has no {' and no '.join(missing)}")
            self._data, self._indices, pointers = node["data"], node["indices"], node["indptr"]
        if len(shape) != 2 or self._data.dtype.kind not in "biuf" or self._data.dtype.itemsize > 8:
            raise Fault(
                f"contains values of type {self._data.dtype} in {len(shape)} dimensions, not a table of numbers"
            )
        self.shape = n_cells, n_genes = int(shape[0]), int(shape[1])
        if min(self.shape) < 0 or max(self.shape) >= 2**31:
            raise Fault(f"has the shape {n_cells} × {n_genes}, which is not possible")
        for array in [self._data] if self.format == "dense" else [self._data, self._indices, pointers]:
            check_local(array)
        if self.format == "dense":
            return
        for name, array in (("indices", self._indices), ("indptr", pointers)):
            if not is_array(array) or array.dtype.kind not in "iu" or len(array.shape) != 1:
                raise Fault(f"has {name} that are not whole numbers")
        if not self._in_memory:
            check_memory(8 * pointers.shape[0])
        pointers = pointers[:]
        n_rows, n_entries = self.shape[self.format == "csc"], self._data.shape[0]
        if len(pointers) != n_rows + 1 or len(self._data.shape) != 1 or self._indices.shape[0] != n_entries:
            lengths = f"{len(pointers)} index pointers, {self._indices.shape[0]} indices and {n_entries} values"
            raise Fault(f"has {lengths}, which do not fit its shape of {n_cells} × {n_genes}")
        if pointers.min() < 0 or int(pointers[0]) != 0 or int(pointers[-1]) != n_entries:
            found = f"has index pointers from {pointers[0]} to {pointers[-1]}"
            raise Fault(f"{found}, but there are {n_entries} values")
        pointers = pointers.astype(np.int64)
        if (back := np.diff(pointers) < 0).any():
            raise Fault(f"has index pointers that decrease (first: number {back.argmax() + 1})")
        self._pointers = pointers
        for name, array in (("data", self._data), ("indices", self._indices)):
            n_chunks, n_missing = _count_chunks(array)
            if n_genes > 1 and n_missing > 0:  # they would be read as zeros
                raise Fault(f"lacks {n_missing} of {n_chunks} chunks of its {name}")
        self._arrays = open_array(self._data), open_array(self._indices)

    def end_of_block(self, lo: int, hi: int) -> int:
        """Return the end of the block of cells that starts at `lo`: `hi`, or less to limit the number of nonzeros."""
        if self.format != "csr":
            return hi
        last = int(np.searchsorted(self._pointers, self._pointers[lo] + _BLOCK, "right")) - 1
        return min(hi, max(last, lo + 1))

    def read_cells(self, rows: np.ndarray, task: Task) -> csr_matrix | None:
        """Read cells in one pass, as `one_pass.read_cells` does. Return None if only `read` can read them.

        `rows` are the numbers of the cells, (n_cells,), in increasing order. Several threads can call this at once.
        """
        if self.format != "csr" or self._n_unusual >= _MAX_UNUSUAL:
            return None
        starts, stops = self._pointers[rows], self._pointers[rows + 1]
        with self._guard():
            size = int((stops - starts).sum()) * (self._data.dtype.itemsize + self._indices.dtype.itemsize)
            check_memory(size)
            with guard(self.path, self.where, size=size):
                X = read_cells(self._arrays, starts, stops, self.shape[1], task)
        if X is None:
            self._n_unusual += 1
        return X

    def read(self, lo: int = 0, hi: int | None = None) -> csr_matrix:
        """Return the cells `lo` to before `hi`: sorted CSR, duplicates summed, float32 (float64 if necessary)."""
        hi = self.shape[0] if hi is None else min(hi, self.shape[0])
        with self._guard():
            if not self._is_ready(lo, hi) and self.format == "csc":
                self._read_ahead(lo, hi)
            if not self._is_ready(lo, hi):
                return self._read(lo, hi)
            if (lo, hi) == (self._first, self._first + self._window.shape[0]):
                X, self._window = self._window, None
                return X
            return self._window[lo - self._first : hi - self._first]

    def load(self) -> None:
        """Read all cells now. `read` and `read_sample` then return parts of them."""
        self._window = self.read()

    def read_sample(self, rows: int) -> csr_matrix:
        """Return about `rows` cells from the start, the middle and the end; all cells if there are not more."""
        n_cells, piece = self.shape[0], max(rows // 4, 1)
        starts = np.linspace(0, max(n_cells - piece, 0), 4).astype(int).tolist()
        ranges = [(lo, lo + piece) for lo in starts] if n_cells > rows else [(0, n_cells)]
        with self._guard():
            if self.format == "csc" and self.scans() > 1:
                return self._gather(np.concatenate([np.arange(lo, hi) for lo, hi in ranges]))
            if self._is_ready(0, n_cells):
                return _join([self._window[lo:hi] for lo, hi in ranges])
        return _join([self.read(lo, hi) for lo, hi in ranges])

    def _read(self, lo: int, hi: int) -> csr_matrix:
        """Read cells of a dense or CSR matrix."""
        if self.format == "dense":
            blocks = (self._slice(self._data, a, b) for a, b in self._dense_blocks(lo, hi))
            return _join([csr_matrix(_native(block)) for block in blocks])
        start, stop = int(self._pointers[lo]), int(self._pointers[hi])
        if not self._in_memory:
            check_memory((stop - start) * (self._data.dtype.itemsize + self._indices.dtype.itemsize))
        data, indices = self._entries(start, stop, self.shape[1])
        return self._canonical(
            csr_matrix((data, indices, _index(self._pointers[lo : hi + 1] - start)), (hi - lo, self.shape[1]))
        )

    def scans(self) -> int:
        """Return how often the whole matrix is read while all its cells are read in blocks: 1 if it is not CSC."""
        return -(-self.shape[0] // max(self._window_size(), 1)) if self.format == "csc" else 1

    def _window_size(self) -> int:
        """Return the number of cells of a CSC matrix that fit in half of the available memory."""
        needed = _ENTRY_BYTES * int(self._pointers[-1])
        return int(self.shape[0] * min(1, available_memory() / 2 / max(needed, 1)))

    def _is_ready(self, lo: int, hi: int) -> bool:
        """Return whether the cells `lo` to before `hi` were read in advance."""
        return self._window is not None and self._first <= lo <= hi <= self._first + self._window.shape[0]

    def _read_ahead(self, lo: int, hi: int) -> None:
        """Collect as many cells of a CSC matrix as fit in memory, at least `lo` to before `hi`, in one scan."""
        self._window, n_cells, size = None, self.shape[0], self._window_size()
        self._first, end = (0, n_cells) if size >= n_cells else (lo, max(hi, min(lo + size, n_cells)))
        self._window = self._gather(np.arange(self._first, end))

    def _gather(self, rows: np.ndarray) -> csr_matrix:
        """Return the cells `rows`, sorted, of a CSC matrix, from one scan over its columns."""
        n_cells, n_genes = self.shape
        position = None
        if len(rows) < n_cells:
            position = np.full(n_cells, -1, dtype=np.int32)
            position[rows] = np.arange(len(rows))
        parts, counts = [], np.zeros(n_genes + 1, dtype=np.int64)
        first = 0
        while first < n_genes:
            start = self._pointers[first]
            last = max(first + 1, int(np.searchsorted(self._pointers, start + _ENTRIES, "right")) - 1)
            data, indices = self._entries(int(start), int(self._pointers[last]), n_cells)
            edges = self._pointers[first : last + 1] - start
            if position is not None:
                indices = position[indices]
                keep = indices >= 0
                edges = np.concatenate([[0], np.cumsum(keep)])[edges]
                data, indices = data[keep], indices[keep]
            counts[first + 1 : last + 1] = np.diff(edges)
            parts.append((data, indices))
            first = last
        data, indices = (
            (np.concatenate(part) for part in zip(*parts, strict=True))
            if parts
            else (np.zeros(0), np.zeros(0, np.int32))
        )
        del parts
        return self._canonical(csc_matrix((data, indices, _index(counts.cumsum())), (len(rows), n_genes)).tocsr())

    def _entries(self, start: int, stop: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return values in a type of SciPy and indices below `n`, (stop − start,) each, as new arrays."""
        indices = self._slice(self._arrays[1], start, stop)
        if indices.size and (indices.min() < 0 or indices.max() >= n):
            wrong = indices.min() if indices.min() < 0 else indices.max()
            what = "genes" if self.format == "csr" else "cells"
            raise Fault(f"has the index {wrong}, but there are {n} {what}")
        values = _native(self._slice(self._arrays[0], start, stop), copy=self._in_memory)
        return values, indices.astype(np.int32, copy=self._in_memory)

    def _canonical(self, X: csr_matrix) -> csr_matrix:
        """Return X with sorted indices and without duplicates. Duplicates are summed in float64."""
        X.sort_indices()
        if not X.has_canonical_format:
            n, X = X.nnz, X.astype(np.float64)
            X.sum_duplicates()
            self.n_duplicates += n - X.nnz
        return X

    def _dense_blocks(self, lo: int, hi: int) -> Iterator[tuple[int, int]]:
        """Return ranges of cells of a dense matrix that are read one after the other."""
        step = max(1, _DENSE_BYTES // max(self.shape[1] * self._data.dtype.itemsize, 1))
        chunk = (getattr(self._data, "chunks", None) or (1,))[0]
        step = max(step // chunk * chunk, 1) if step >= chunk else step
        return ((a, min(a + step, hi)) for a in range(lo, max(hi, lo + 1), step))


def report_repairs(matrix: Matrix, n_rounded: int) -> None:
    """Log how many duplicated entries were summed and how many values were rounded."""
    if matrix.n_duplicates:
        log.warning("%s: %d duplicated entries were summed", matrix.where, matrix.n_duplicates)
    if n_rounded:
        log.info("%s: %d values within 1e-6 of whole numbers were rounded", matrix.where, n_rounded)


def _count_chunks(array: object) -> tuple[int, int]:
    """Return the number of chunks of an array with values, and how many of these are not in the file."""
    if isinstance(array, zarr.Array) and array.size:
        return array.nchunks, array.nchunks - array.nchunks_initialized
    if isinstance(array, h5py.Dataset) and array.chunks and array.size:
        n_chunks = math.prod(-(-n // chunk) for n, chunk in zip(array.shape, array.chunks, strict=True))
        return n_chunks, n_chunks - array.id.get_num_chunks()
    return 0, 0


def _join(blocks: list[csr_matrix]) -> csr_matrix:
    """Return blocks of cells as one matrix."""
    return blocks[0] if len(blocks) == 1 else vstack(blocks, format="csr")


def _native(values: np.ndarray, *, copy: bool = False) -> np.ndarray:
    """Return values in native byte order as float32, or as float64 if float32 cannot represent their type."""
    exact = values.dtype.kind == "b" or values.dtype.itemsize < 4 or values.dtype.str[1:] == "f4"
    return np.asarray(values).astype(np.float32 if exact else np.float64, copy=copy)


def _index(pointers: np.ndarray) -> np.ndarray:
    """Return index pointers as int32 if they fit."""
    return pointers.astype(np.int32) if pointers[-1] < 2**31 else pointers
