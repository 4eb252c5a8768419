"""Read filtered cells as a whole or in blocks, and raw counts in blocks, for files that do not fit in memory.

Threads read the next blocks while the caller computes. Reading, decompressing and normalizing release Python's global
interpreter lock (GIL), as do products of NumPy and torch; `scipy.linalg.blas` functions do not.
"""

import copy
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib.data import files, preprocessing
from aenmf_lib.data.counts import Found, check_cells, find_counts
from aenmf_lib.data.labels import CELL_TYPE, DONOR, gene_ids
from aenmf_lib.data.matrices import Matrix, report_repairs
from aenmf_lib.data.one_pass import Task
from aenmf_lib.data.reading import guard, open_cells, read_element, short
from aenmf_lib.data.storage import N_THREADS

log = logging.getLogger(__name__)

_AHEAD = max(2, N_THREADS)  # blocks that are read in advance


class CellStream:
    """The cells of an ``.h5ad`` or ``.zarr`` in blocks. Each iteration reads the file again.

    Raises OSError or ValueError if the file or one of its values is invalid, or an argument does not fit the file.

    Parameters
    ----------
    path
        A file written by notebook 01, or a file of raw counts.
    counts, layer, fractional
        Read raw counts, found as by `data.read_counts`, and normalize them as `data.normalize` does (with
        identical results). Without `counts`, ``X`` is read and must be log1p of counts per 10,000.
    normalize
        With `counts`: if False, return the counts themselves, checked in the same way.
    genes
        Names of the genes to return, in this order; all genes if None. Ensembl ids match without their version. Cells
        are scaled by their counts of all genes.
    keep, rows
        The cells to return: (n_cells_in_file,) bool, and a contiguous range of cells of the file, such as one shard.
    block
        Number of cells to read at a time; fewer if they have more than 16 million nonzeros. Each block that is read in
        advance (one per core, but 2 to 8) uses about 8 bytes per nonzero, or 40 if its values or genes need a repair.
        From a matrix that is stored by genes (CSC), as many cells are read at a time as fit in half of the memory.

    Attributes
    ----------
    n_obs, n_vars, obs_names, var_names, obs, var, uns
        As in AnnData, for the returned cells and genes.
    nnz, where
        Number of nonzeros, estimated from a sample; and the matrix: ``X``, ``raw.X`` or ``layers['…']``.

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
        normalize: bool = True,
        genes: Sequence[str] | None = None,
        keep: np.ndarray | None = None,
        rows: slice | None = None,
        block: int = 4096,
    ) -> None:
        if (layer or fractional) and not counts:
            raise ValueError(f"layer={layer!r} and fractional={fractional} apply to raw counts only. Set counts=True.")
        if not (normalize or counts):
            raise ValueError("normalize=False applies to raw counts only. Set counts=True.")
        if isinstance(block, bool) or not isinstance(block, int | np.integer):
            raise TypeError(f"block={block!r} is not a whole number. Set the number of cells to read at a time.")
        if block < 1:
            raise ValueError(f"block={block} is too small. Set the number of cells to read at a time to 1 or more.")
        self.path, self.counts, self.fractional, self.block = Path(path), counts, fractional, int(block)
        self.normalize = normalize
        with open_cells(path) as file:
            found = find_counts(file, layer=layer, fractional=fractional, counts=counts)
            self.where, self._key, self._names = found.where, found.key, found.obs.index
            self._shape = found.matrix.shape
            if found.matrix.format == "csc":
                _warn_csc(found)
            self.uns = _read_provenance(file, path)
        obs, var, sample = found.obs, found.var, found.sample
        self._columns = None
        if genes is not None:
            self._columns = self._find_genes(genes, var)
            sample, var = sample[:, self._columns], var.iloc[self._columns]
        rows = slice(None) if rows is None else rows
        whole = (
            [n is None or isinstance(n, int | np.integer) for n in (rows.start, rows.stop, rows.step)]
            if (isinstance(rows, slice))
            else [False]
        )
        self._range = range(len(obs))[rows] if all(whole) and rows.step != 0 else None
        if self._range is None or self._range.step != 1:
            raise ValueError(f"rows={rows} is not a contiguous range of cells. Expected slice(first, last + 1).")
        keep = np.ones(len(obs), dtype=bool) if keep is None else np.asarray(keep)
        if keep.dtype != bool or keep.shape != (len(obs),):
            found = f"keep is {keep.dtype} of shape {keep.shape}"
            raise ValueError(f"{found}. Pass a bool for each of the {len(obs)} cells.")
        self._kept = self._range.start + np.flatnonzero(keep[self._range.start : self._range.stop])  # rows of the file
        self.obs, self.var = obs.iloc[self._kept], var
        self.nnz = round(sample.nnz / max(sample.shape[0], 1) * len(self._kept))

    def _find_genes(self, genes: Sequence[str], var: pd.DataFrame) -> np.ndarray:
        """Return the columns of the genes in the file, (n_selected,) int. Raise ValueError if one is not there."""
        if isinstance(genes, str):
            raise TypeError(f"genes={genes!r} is one text. Pass a list of names.")
        genes = pd.Index(genes)
        if repeated := list(genes[genes.duplicated()]):
            raise ValueError(f"genes contains {repeated[0]!r} more than once. Name each gene once.")
        columns = var.index.get_indexer(genes)
        ids = gene_ids(var.index)
        if (columns < 0).any() and ids.is_unique:
            columns = np.where(columns < 0, ids.get_indexer(gene_ids(genes)), columns)
        if len(missing := genes[columns < 0]):
            found = f"{len(missing)} of {len(genes)} genes are not in {self.where} of {self.path}"
            choices = ", ".join(map(short, var.index[:3]))
            raise ValueError(f"{found} (first: {missing[0]!r}). Choose from its {len(var)} genes: {choices}, …")
        if len(repeated := genes[pd.Index(columns).duplicated()]):
            raise ValueError(f"genes contains two versions of {repeated[0]!r}. Name each gene once.")
        return columns

    def select(self, keep: np.ndarray, genes: np.ndarray | None = None, *, normalize: bool = False) -> "CellStream":
        """Return a stream of some of these cells, (n_obs,) bool, and genes, (n_vars,) bool. Nothing is read."""
        found = copy.copy(self)
        found.__dict__.pop("sizes", None)
        found.normalize, found._kept, found.obs = normalize, self._kept[keep], self.obs[keep]
        if genes is not None:
            columns = np.flatnonzero(genes)
            found._columns = columns if self._columns is None else self._columns[columns]
            found.var = self.var[genes]
        return found

    @cached_property
    def sizes(self) -> np.ndarray:
        """The number of nonzeros of each cell, (n_obs,) int32. Reads all cells, unless `filter_cells` has."""
        return np.concatenate([np.diff(X.indptr) for X, _ in self] or [np.zeros(0)]).astype(np.int32)

    n_obs = property(lambda self: len(self.obs))
    n_vars = property(lambda self: len(self.var))
    obs_names = property(lambda self: self.obs.index)
    var_names = property(lambda self: self.var.index)

    def __repr__(self) -> str:
        return f"{self.n_obs} cells × {self.n_vars} genes, {self.where} of {self.path}"

    def __iter__(self) -> Iterator[tuple[csr_matrix, slice]]:
        with open_cells(self.path) as file:
            with guard(self.path, self.where):
                node = file[self._key]
            matrix, self._n_rounded = Matrix(node, str(self.path), self.where), 0
            if matrix.shape != self._shape:
                before, now = (f"{n_cells} × {n_genes}" for n_cells, n_genes in (self._shape, matrix.shape))
                raise OSError(
                    f"{self.path} has changed: {self.where} had {before} values when it was opened, and now has {now}. "
                    "Do not change the file during a run. Run the command again, or open a new CellStream."
                )
            reader, ahead = ThreadPoolExecutor(N_THREADS if matrix.format == "csr" else 1, "read ahead"), deque()
            try:  # no local variable may refer to a block: it would stay in memory while the caller uses the next one
                hi = self._range.start
                while hi < self._range.stop:
                    lo, hi = hi, matrix.end_of_block(hi, min(hi + self.block, self._range.stop))
                    rows = slice(*np.searchsorted(self._kept, [lo, hi]).tolist())
                    if rows.start < rows.stop:
                        ahead.append(reader.submit(self._read_block, matrix, lo, hi, rows))
                    if len(ahead) > _AHEAD:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
                report_repairs(matrix, self._n_rounded)
            finally:  # also if the caller stops early: the thread must end before the file is closed
                reader.shutdown(cancel_futures=True)

    def _read_block(self, matrix: Matrix, lo: int, hi: int, rows: slice) -> tuple[csr_matrix, slice]:
        """Read the cells `lo` to `hi` of the file; return the kept ones, checked and normalized, and their `rows`."""
        X = matrix.read_cells(self._kept[rows], Task(self.counts, self.normalize, self._columns))
        if X is None:
            with matrix.one_at_a_time:
                X = self._read_any(matrix, lo, hi, rows)
        return X, rows

    def _read_any(self, matrix: Matrix, lo: int, hi: int, rows: slice) -> csr_matrix:
        """Return the kept cells from `lo` to `hi`, checked and normalized, for any kind of matrix."""
        X = matrix.read(lo, hi)
        if X.shape[0] > rows.stop - rows.start:
            X = X[self._kept[rows] - lo]
        X, n_rounded = check_cells(matrix, X, self._kept[rows], self._names, self.fractional, counts=self.counts)
        self._n_rounded += n_rounded
        if self.counts and self.normalize:
            return preprocessing.normalize(X, self._columns)
        if self._columns is not None:
            X = X[:, self._columns]
        X.eliminate_zeros()
        X.sort_indices()
        return X


def iter_blocks(cells: AnnData | CellStream) -> Iterable[tuple[csr_matrix, slice]]:
    """Return blocks of cells and their rows in ``obs``: many blocks for a stream, one for cells in memory."""
    return cells if isinstance(cells, CellStream) else [(cells.X, slice(0, cells.n_obs))]


def load(path: str | Path) -> AnnData:
    """Return the cells that notebook 01 wrote, with their path and hash in ``uns['input']``."""
    with open_cells(path) as file:
        found = find_counts(file, counts=False, load=True)
        X, _ = check_cells(found.matrix, found.matrix.read(), np.arange(len(found.obs)), found.obs.index, counts=False)
        X.eliminate_zeros()
        cells = AnnData(X, obs=found.obs, var=found.var, uns=_read_provenance(file, path))
    return _record_input(cells, path)


def load_stream(path: str | Path) -> CellStream:
    """Return the cells that notebook 01 wrote, as `load` does, but on disk."""
    return _record_input(CellStream(path), path)


def _record_input(cells: AnnData | CellStream, path: str | Path) -> AnnData | CellStream:
    """Return `cells` with their file recorded. Raise ValueError if they have no donor or cell type."""
    if missing := [name for name in (DONOR, CELL_TYPE) if name not in cells.obs]:
        raise ValueError(f"{path} has no obs column {' and '.join(missing)}. Pass a file of notebook 01_filter.")
    cells.uns["input"] = files.file_info(path)
    return cells


def _read_provenance(file: h5py.File | zarr.Group, path: str | Path) -> dict[str, object]:
    """Return ``uns`` with the provenance of the file, if there is one."""
    with guard(path, "uns"):
        found = "uns" in file and "provenance" in file["uns"]
    return {"provenance": read_element(file["uns"], "provenance", path)} if found else {}


def _warn_csc(found: Found) -> None:
    """Log how often the file is read per pass over the cells, and how to convert it."""
    times = "once" if (n := found.matrix.scans()) == 1 else f"{n} times"
    element = {"X": "X", "raw.X": "raw"}.get(found.where, found.where)
    convert = f"cells.{element} = cells.{element}.tocsr()" if element != "raw" else "cells.raw = cells.raw.to_adata()"
    log.warning(
        "%s is stored by genes (CSC): each pass over the cells sorts it again, and reads the whole file %s. To convert "
        "it: cells = anndata.io.read_h5ad(…); %s; cells.write_h5ad(…)", found.where, times, convert,
    )  # fmt: skip
