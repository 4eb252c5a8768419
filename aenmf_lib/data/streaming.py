"""Read filtered cells as a whole or in blocks, and raw counts in blocks, for files that do not fit in memory.

A background thread reads the next blocks while the caller computes. Reading, decompressing and normalizing release
Python's global interpreter lock (GIL), as do products of NumPy and torch; `scipy.linalg.blas` functions do not.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem
from scipy.sparse import csr_matrix

from aenmf_lib.data import files, preprocessing
from aenmf_lib.data.counts import describe_non_counts, matrix_shape, open_matrix

_AHEAD = 2  # blocks that the background thread reads in advance
_FIRST = 1024  # cells read to recognize counts and to estimate `nnz`. All others are checked when they are read.


class CellStream:
    """The cells of an ``.h5ad`` file in blocks. Each iteration reads the file again.

    Raises OSError or ValueError if the file or one of its values is invalid, or an argument does not fit the file.

    Parameters
    ----------
    path
        A file written by notebook 01, or a file of raw counts.
    counts, layer, fractional
        Read raw counts, found as by `data.read_counts`, and normalize them as `data.normalize` does (to the same
        bits). Without `counts`, ``X`` is read and must be log1p of counts per 10,000.
    genes
        Names of the genes to return, in this order; all genes if None. Cells are scaled by their counts of all genes.
    keep, rows
        The cells to return: (n_cells_in_file,) bool, and a contiguous range of cells of the file, such as one shard.
    block
        Number of cells to read at a time. Reading uses up to about 40 bytes per nonzero of a block.

    Attributes
    ----------
    n_obs, n_vars, obs_names, var_names, obs, var, uns
        As in AnnData, for the returned cells and genes.
    nnz, where
        Estimated number of nonzeros, from the first cells; and the matrix: ``X``, ``raw.X`` or ``layers['…']``.

    Yields
    ------
    X, rows : (at most block, n_vars) CSR float32, slice
        The next cells in the order of the file, without stored zeros, and their position in `obs`. No block is empty.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        counts: bool = False,
        layer: str = "",
        fractional: bool = False,
        genes: Sequence[str] | None = None,
        keep: np.ndarray | None = None,
        rows: slice | None = None,
        block: int = 4096,
    ) -> None:
        if (layer or fractional) and not counts:
            raise ValueError(f"layer={layer!r} and fractional={fractional} apply to raw counts only. Set counts=True.")
        if block < 1:
            raise ValueError(f"block={block} is too small. Set the number of cells to read at a time to 1 or more.")
        self.path, self.counts, self.fractional, self.block = Path(path), counts, fractional, block
        with files.open_h5ad(path) as file:
            first, self.where, self._key, obs, var = open_matrix(
                file, partial(_read, lo=0, hi=_FIRST), counts=counts, layer=layer, fractional=fractional
            )
            self.uns = {"provenance": read_elem(file["uns/provenance"])} if "uns/provenance" in file else {}
        self._columns = None
        if genes is not None:
            genes = pd.Index(genes)
            self._columns = var.index.get_indexer(genes)
            if len(missing := genes[self._columns < 0]):
                found = f"{len(missing)} of {len(genes)} genes are not in {self.where} of {path}"
                choices = ", ".join(map(repr, var.index[:3]))
                raise ValueError(f"{found} (first: {missing[0]!r}). Choose from its {len(var)} genes: {choices}, …")
            if repeated := list(genes[genes.duplicated()]):
                raise ValueError(f"genes contains {repeated[0]!r} more than once. Name each gene once.")
            first, var = first[:, self._columns], var.iloc[self._columns]
        self._range = range(len(obs))[rows or slice(None)]
        if self._range.step != 1:
            raise ValueError(f"rows={rows} is not a contiguous range of cells. Expected slice(first, last + 1).")
        keep = np.ones(len(obs), dtype=bool) if keep is None else np.asarray(keep)
        if keep.dtype != bool or keep.shape != (len(obs),):
            found = f"keep is {keep.dtype} of shape {keep.shape}"
            raise ValueError(f"{found}. Pass a bool for each of the {len(obs)} cells.")
        self._kept = self._range.start + np.flatnonzero(keep[self._range.start : self._range.stop])  # rows of the file
        self.obs, self.var = obs.iloc[self._kept], var
        self.nnz = round(first.nnz / max(first.shape[0], 1) * len(self._kept))

    n_obs = property(lambda self: len(self.obs))
    n_vars = property(lambda self: len(self.var))
    obs_names = property(lambda self: self.obs.index)
    var_names = property(lambda self: self.var.index)

    def __repr__(self) -> str:
        return f"{self.n_obs} cells × {self.n_vars} genes, {self.where} of {self.path}"

    def __iter__(self) -> Iterator[tuple[csr_matrix, slice]]:
        with files.open_h5ad(self.path) as file:
            reader, ahead = ThreadPoolExecutor(1, "read ahead"), deque()
            try:  # no local variable may refer to a block: it would stay in memory while the caller uses the next one
                for lo in range(self._range.start, self._range.stop, self.block):
                    hi = min(lo + self.block, self._range.stop)
                    rows = slice(*np.searchsorted(self._kept, [lo, hi]).tolist())
                    if rows.start < rows.stop:
                        ahead.append(reader.submit(self._read_block, file, lo, hi, rows))
                    if len(ahead) > _AHEAD:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:  # also if the caller stops early: the thread must end before the file is closed
                reader.shutdown(cancel_futures=True)

    def _read_block(self, file: h5py.File, lo: int, hi: int, rows: slice) -> tuple[csr_matrix, slice]:
        """Read the cells `lo` to `hi` of the file; return the kept ones, checked and normalized, and their `rows`."""
        X = _read(file[self._key], lo, hi)
        if X.shape[0] > rows.stop - rows.start:
            X = X[self._kept[rows] - lo]
        # normalized values must be finite and not negative, as fractional counts must
        describe = partial(describe_non_counts, fractional=self.fractional or not self.counts)
        if fault := describe(X.data):
            first = next(i for i, values in enumerate(np.split(X.data, X.indptr[1:-1])) if describe(values))
            cell = f"cell {self._kept[rows][first]}, {self.obs.index[rows][first]!r}"
            found = f"{self.path}: {self.where} {fault}, in cells {lo} to {hi - 1} (first: {cell})"
            expected = "counts" if self.counts else "log1p of counts per 10,000"
            raise ValueError(f"{found}. Expected {expected}. Correct the file, or leave out the cell.")
        if self.counts:
            return preprocessing.normalize(X, self._columns), rows
        X = X.astype(np.float32, copy=False)
        if self._columns is not None:
            X = X[:, self._columns]
        X.eliminate_zeros()
        X.sort_indices()
        return X, rows


def iter_blocks(cells: AnnData | CellStream) -> Iterable[tuple[csr_matrix, slice]]:
    """Return blocks of cells and their rows in ``obs``: many blocks for a stream, one for cells in memory."""
    return cells if isinstance(cells, CellStream) else [(cells.X, slice(0, cells.n_obs))]


def load(path: str | Path) -> AnnData:
    """Return the cells that notebook 01 wrote, with their path and hash in ``uns['input']``."""
    return _record_input(files.read_h5ad(path), path)


def load_stream(path: str | Path) -> CellStream:
    """Return the cells that notebook 01 wrote, as `load` does, but on disk."""
    return _record_input(CellStream(path), path)


def _record_input(cells: AnnData | CellStream, path: str | Path) -> AnnData | CellStream:
    """Return `cells` with their file recorded. Raise ValueError if they have no donor or cell type."""
    if missing := [name for name in (preprocessing.DONOR, preprocessing.CELL_TYPE) if name not in cells.obs]:
        raise ValueError(f"{path} has no obs column {' and '.join(missing)}. Pass a file of notebook 01_filter.")
    cells.uns["input"] = files.file_info(path)
    return cells


def _read(matrix: h5py.Group | h5py.Dataset, lo: int, hi: int) -> csr_matrix:
    """Read the cells `lo` to before `hi`, or to the last cell, of a dense or CSR matrix."""
    path, name, dense = matrix.file.filename, matrix.name[1:].replace("/", "."), isinstance(matrix, h5py.Dataset)
    attributes = matrix.attrs
    stored = attributes.get("encoding-type", attributes.get("h5sparse_format", "of unknown format"))  # anndata < 0.7
    if not dense and stored not in ("csr_matrix", "csr"):
        convert = "cells = anndata.io.read_h5ad(…); cells.X = cells.X.tocsr(); cells.write_h5ad(…)"
        found = f"{path}: {name} is {stored}, which is not stored by cells"
        raise ValueError(f"{found}. Expected csr_matrix or array. Convert it once: {convert}.")
    n_cells, n_genes = matrix_shape(matrix)
    hi = min(hi, n_cells)
    try:
        if dense:
            return csr_matrix(matrix[lo:hi])
        indptr = matrix["indptr"][lo : hi + 1].astype(np.int64)
        values = slice(indptr[0], indptr[-1])
        X = csr_matrix((matrix["data"][values], matrix["indices"][values], indptr - indptr[0]), (hi - lo, n_genes))
        X.check_format(full_check=True)  # compiled code does not check the indices
    except (KeyError, OSError, ValueError) as error:
        found = f"{path} is damaged: {name} cannot be read at cells {lo} to {hi - 1}: {error}"
        raise OSError(f"{found}. Download or write it again.") from error
    return X
