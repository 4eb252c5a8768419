"""The cells that fits, moments and usages are computed from: accepted types, checks, and conversion to CSR."""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse, sparray, spmatrix, vstack

from aenmf_lib.data.streaming import CellStream
from aenmf_lib.training.accumulation import Transfer, cells_at_once, thread_pool, to_host
from aenmf_lib.training.second_moment import to_torch

Cells = AnnData | CellStream | spmatrix | sparray | np.ndarray

_EXPECTED = "Expected log1p of counts per 10,000, as data.load returns."
_ROWS = 4096  # rows of a dense matrix that are converted at a time
_LARGEST = 50.0  # no logarithm of counts is larger, whatever its base and the total of a cell
_SAMPLE = 100_000  # values, spread over all, that usually show that X does not contain raw counts


def as_cells(cells: Cells) -> AnnData | CellStream:
    """Return the cells with a checked X, a canonical CSR matrix of floats; the object itself if X is already one.

    A matrix becomes an AnnData. Nothing is changed in place. A stream checks its values when it reads them.

    Raises
    ------
    TypeError, ValueError
        The type is not supported; X is missing or damaged, or has values that are not log1p of counts per 10,000.
    """
    if isinstance(cells, CellStream):
        return cells
    if not isinstance(cells, AnnData):
        if not (issparse(cells) or isinstance(cells, np.ndarray)):
            raise TypeError(
                f"The cells are a {type(cells).__name__}. Expected an AnnData (as data.load returns), a CellStream, "
                "or a NumPy array or SciPy sparse matrix, cells × genes."
            )
        return AnnData(_checked(as_csr(cells)))
    if cells.isbacked:
        cells = cells.to_memory()
    if (X := cells.X) is None:
        raise ValueError(f"The cells have no X. {_EXPECTED} Set it, for example with data.prepare.")
    matrix = _checked(as_csr(X))
    return cells if matrix is X and not cells.is_view else AnnData(matrix, obs=cells.obs, var=cells.var)


def as_csr(X: spmatrix | sparray | np.ndarray) -> csr_matrix:
    """Return a numeric matrix as canonical CSR in float32 (float64 stays); X itself if it is that already."""
    if not (issparse(X) or isinstance(X, np.ndarray)) or isinstance(X, np.ma.MaskedArray):
        raise TypeError(f"X is a {type(X).__name__}. Expected a NumPy array or a SciPy sparse matrix, cells × genes.")
    if X.ndim != 2:
        raise ValueError(f"X has shape {X.shape}. Expected two dimensions, cells × genes.")
    if X.dtype.kind not in "fiub":
        raise ValueError(f"X has values of type {X.dtype}, not numbers. {_EXPECTED}")
    dtype = np.float64 if X.dtype.kind == "f" and X.dtype.itemsize > 4 else np.float32
    if not issparse(X):  # in blocks: SciPy has no float16, and a dense copy of all cells may not fit in memory
        blocks = [csr_matrix(X[lo : lo + _ROWS].astype(dtype, copy=False)) for lo in range(0, X.shape[0], _ROWS)]
        return vstack(blocks, format="csr") if blocks else csr_matrix(X.shape, dtype=dtype)
    if X.format in ("csr", "csc"):
        check_indices(X)
    # a new object, so that flags and order of the given one stay as they are
    parts = X.tocsr() if X.dtype == dtype else X.astype(dtype).tocsr()
    matrix = csr_matrix((parts.data, parts.indices, parts.indptr), X.shape)
    if not matrix.has_canonical_format:
        matrix = matrix.astype(np.float64)  # duplicates are summed in float64, as in streams
        matrix.sum_duplicates()
        return matrix.astype(dtype)
    return X if isinstance(X, csr_matrix) and X.dtype == dtype else matrix


def iter_matrices(cells: Cells) -> Iterable[tuple[csr_matrix, slice]]:
    """Return pairs of a checked CSR matrix and its rows: many for a stream, one for cells in memory."""
    cells = as_cells(cells)
    return _iter_stream(cells) if isinstance(cells, CellStream) else [(cells.X, slice(0, cells.n_obs))]


def _iter_stream(cells: CellStream) -> Iterator[tuple[csr_matrix, slice]]:
    """Yield the blocks of a stream and their rows; raise ValueError if the first nonzero block has raw counts."""
    checked = cells.counts  # a stream of counts normalizes them
    for X, rows in cells:
        if not checked and X.nnz:
            check_normalized(X)
            checked = True
        yield X, rows


def usages(cells: Cells, encoder: np.ndarray, device: str = "cpu") -> Iterator[tuple[np.ndarray, slice]]:
    """Yield the usages ``X Eᵀ``, (n, k), of blocks of cells and their rows, for an encoder E, (k, n_genes).

    While a GPU computes a block, the next block is sent to it and the usages of the previous block are returned.
    """
    E = torch.from_numpy(encoder.T.copy()).to(device)
    if device == "cpu":
        for X, rows in iter_matrices(cells):
            yield (to_torch(X) @ E.to(torch.from_numpy(X.data).dtype)).numpy(), rows
        return
    ready = deque()
    with thread_pool() as pool:
        transfer = Transfer(len(E), device, pool)
        n_cells = cells_at_once(len(E), device)
        for X, rows in iter_matrices(cells):
            for lo in range(0, X.shape[0], n_cells):
                hi = min(lo + n_cells, X.shape[0])
                dense = transfer.dense(X.indptr[lo : hi + 1], X.indices, X.data)
                ready.append((to_host(dense @ E.to(dense.dtype)), slice(rows.start + lo, rows.start + hi)))
                if len(ready) > 1:
                    H, done = ready.popleft()
                    yield H(), done
        for H, done in ready:
            yield H(), done


def check_normalized(X: csr_matrix) -> None:
    """Raise ValueError if all values are whole numbers, or one is too large to be log1p of counts per 10,000."""
    if _is_whole(X.data[:: max(1, len(X.data) // _SAMPLE)]) and _is_whole(X.data) and X.data.any():
        raise ValueError(
            f"X contains only whole numbers (largest {X.data.max():g}), as raw counts do. {_EXPECTED} Normalize them "
            "first: cells.X = data.normalize(X), or cells = data.prepare(adata, min_cells=…)."
        )

    if X.nnz and (largest := X.data.max()) > _LARGEST:
        raise ValueError(
            f"X contains values up to {largest:g}, which a logarithm of counts cannot have. {_EXPECTED} Normalize the "
            "raw counts: cells.X = data.normalize(counts), or cells = data.prepare(adata, min_cells=…)."
        )


def _is_whole(values: np.ndarray) -> bool:
    """Return whether all values are whole numbers."""
    return np.array_equal(values, np.trunc(values))


def _checked(X: csr_matrix) -> csr_matrix:
    """Return X; raise ValueError if a value is NaN, infinite or negative, or if X contains raw counts."""
    if X.nnz and not (X.data.min() >= 0 and X.data.max() < np.inf):  # comparisons with NaN are False
        if n_bad := int((~np.isfinite(X.data)).sum()):
            raise ValueError(f"X contains {n_bad} values that are NaN or infinite. {_EXPECTED}")
        raise ValueError(f"X contains {int((X.data < 0).sum())} negative values. {_EXPECTED}")
    check_normalized(X)
    return X


def check_indices(X: spmatrix | sparray) -> None:
    """Raise ValueError if the index arrays of a CSR or CSC matrix are damaged: compiled code does not check them."""
    n_major, n_minor = X.shape if X.format == "csr" else X.shape[::-1]
    nnz = min(len(X.indices), len(X.data))
    valid = len(X.indptr) == n_major + 1 and X.indptr[0] == 0 and X.indptr[-1] <= nnz and (np.diff(X.indptr) >= 0).all()
    if not valid:
        raise ValueError(f"X is damaged: its index pointers are not {n_major + 1} increasing numbers from 0 to {nnz}. "
                         "Create it again, for example with scipy.sparse.csr_matrix(dense).")  # fmt: skip
    if nnz and not 0 <= X.indices.min() <= X.indices.max() < n_minor:
        raise ValueError(f"X is damaged: its indices range from {X.indices.min()} to {X.indices.max()}, but should be "
                         f"at least 0 and below {n_minor}. Create it again from the original data.")  # fmt: skip
