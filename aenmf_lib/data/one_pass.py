"""Reading cells of a CSR matrix in one pass: values are checked, normalized and selected while they are in the cache.

Cells that need more than that (unsorted or repeated genes, values that must be rounded or are wrong, totals that
float32 cannot represent) are not read here: `Matrix.read`, `counts.check_cells` and `preprocessing.normalize` handle
them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_matrix

from aenmf_lib.data.judging import EXACT, LARGEST
from aenmf_lib.data.storage import PIECE, Array, open_array

_TARGET_SUM = 1e4  # total count of each cell before log1p
_GAP = 2**14  # one read that includes up to this many unwanted entries is faster than two reads
_TABLE = 16  # counts below this number, usually more than 9 of 10, are looked up in a table for each cell
_COUNTS = np.arange(_TABLE, dtype=np.float32)


@dataclass(frozen=True)
class Task:
    """What to read: `columns` are the genes to return, (n_selected,), or None for all.

    With `counts`, values must be whole numbers. `normalize` then scales each cell to 10,000 and takes log1p.
    """

    counts: bool = True
    normalize: bool = True
    columns: np.ndarray | None = None


def scale_of(total: np.ndarray) -> np.ndarray:
    """Return the factors that scale cells with these totals to 10,000, (n_cells,) float32; 0 for empty cells."""
    return np.divide(_TARGET_SUM, total, out=np.zeros_like(total), where=total > 0).astype(np.float32)


def read_cells(
    arrays: tuple[Array, Array], starts: np.ndarray, stops: np.ndarray, n_genes: int, task: Task
) -> csr_matrix | None:
    """Return cells as CSR float32 without zeros, or None if one of them needs more than this pass.

    `arrays` are the values and the genes. The entries of cell i are `starts[i]` to before `stops[i]`; starts increase.
    """
    from aenmf_lib.data import _kernels  # compiled code is loaded when it is needed

    sizes, n_selected = stops - starts, n_genes if task.columns is None else len(task.columns)
    room = min(int(sizes.sum()), len(sizes) * n_selected) + 1
    values, genes = np.empty(room, np.float32), np.empty(room, np.int32)
    indptr, column = np.zeros(len(sizes) + 1, np.int64), np.empty(0, np.int32)
    if task.columns is not None:
        column = np.full(n_genes, -1, np.int32)
        column[task.columns] = np.arange(n_selected)
    large = np.empty(0, np.int64)
    piece = min(array.piece or 2**62 for array in arrays)
    readers = [array.reader() for array in arrays]
    for first, last in _runs(starts, stops, piece):
        lo, hi = int(starts[first]), int(stops[last - 1])
        data, indices = _exact(readers[0](lo, hi), np.float32), _exact(readers[1](lo, hi), np.int32)
        if data is None or indices is None:
            return None
        cells = (data, indices, starts[first:last] - lo, sizes[first:last])
        edges, total = indptr[first : last + 1], np.empty(last - first)
        if task.counts:
            if not _kernels.are_counts(*cells, n_genes, EXACT, total):
                return None
        elif not _kernels.are_values(*cells, n_genes, LARGEST):
            return None
        _kernels.append(*cells, column, values, genes, edges)
        if task.counts and task.normalize:
            scale = scale_of(total)
            if len(large) < edges[-1] - edges[0]:
                large = np.empty(max(edges[-1] - edges[0], PIECE), np.int64)
            at = large[: _kernels.look_up(values, edges, np.log1p(scale[:, None] * _COUNTS), scale, large)]
            values[at] = np.log1p(values[at])
    nnz = int(indptr[-1])
    indptr = indptr if nnz >= 2**31 else indptr.astype(np.int32)
    X = csr_matrix((values[:nnz], genes[:nnz], indptr), (len(sizes), n_selected))
    X.has_sorted_indices = task.columns is None or bool((np.diff(task.columns) > 0).all())
    X.sort_indices()
    X.has_canonical_format = True
    return X


def compile_kernels() -> None:
    """Compile the loops into numba's cache, by reading three cells as counts and as values."""
    X = csr_matrix(np.eye(3, dtype=np.float32))
    arrays = open_array(X.data), open_array(X.indices)
    for counts in (True, False):
        read_cells(arrays, X.indptr[:-1].astype(np.int64), X.indptr[1:].astype(np.int64), 3, Task(counts))


def _runs(starts: np.ndarray, stops: np.ndarray, piece: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of cells to read at a time: at most `piece` entries or one cell, without large gaps."""
    gaps = np.flatnonzero(starts[1:] - stops[:-1] > _GAP) + 1
    for first, end in pairwise([0, *gaps.tolist(), len(starts)]):
        while first < end:
            last = int(np.searchsorted(stops[first:end], starts[first] + piece, "right")) + first
            yield first, (last := max(last, first + 1))
            first = last


def _exact(values: np.ndarray, dtype: type) -> np.ndarray | None:
    """Return values as float32 or int32, or None if this type cannot represent one of them exactly."""
    converted = values.astype(dtype, copy=False)
    return converted if np.can_cast(values.dtype, dtype) or (converted == values).all() else None
