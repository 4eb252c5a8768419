"""How are more cells summed over than memory holds?

`Cells` is an ``.h5ad`` on disk that gives its cells block by block, in the units the models train on, and reads the
next blocks in a thread of its own while the caller computes: reading, unpacking and normalizing all release Python's
lock. So do products of numpy and torch; those of `scipy.linalg.blas` hold it, and stop the reader. Memory is that of a
few blocks, however many cells there are.

    S = sum(X.T @ X for X, _ in Cells("cells.h5ad", counts=True, genes=names))
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem
from scipy.sparse import csr_matrix

from aenmf_lib.data import files, preprocessing

_AHEAD = 2  # blocks that are read or being read while the caller works on another
_LOOK = 1024  # cells that tell whether a matrix holds counts, and how many; the others are checked as they come


class CellStream:
    """The cells of an ``.h5ad``, given in blocks. Each iteration reads the file anew.

    Parameters
    ----------
    path
        A file as `data.filter_cells` gives it, or one of raw counts.
    counts
        The file holds raw counts: found as `data.read_counts` does, and normalized as `data.normalize` does, to the
        same bits. Otherwise ``X`` is given as it is, and must be log1p of counts per 10 000 already.
    layer, fractional
        Of raw counts: the layer to take; let them be fractions.
    genes
        Names of the genes to give, in this order; all where None. Cells are scaled by their counts of all genes.
    keep : (cells of the file,) bool, optional
        The cells to give, for example those of donors that have enough.
    rows
        A run of the file's cells, a shard: several readers can each have their own.
    block
        Cells of the file read at once. Memory is at most about 40 bytes for each of their nonzeros.

    Attributes
    ----------
    n_obs, n_vars : int
        Number of cells and genes given. The names are those of AnnData.
    nnz : int
        Their nonzeros, guessed from the first cells of the file: to choose by, not to count on.
    var_names : Index
    obs, var : DataFrame
        Of the cells and genes given, all columns.
    uns : dict
        What `load` tells of the file.
    where : str
        ``X``, ``raw.X`` or ``layers['…']``.

    Yields
    ------
    X : (at most block, n_genes) CSR float32
        The next cells in the order of the file, without stored zeros. A block without cells to give is left out.
    rows : slice
        Where these cells are in `obs`.

    Raises
    ------
    FileNotFoundError, OSError
        The file is missing, cut short or damaged.
    ValueError
        There are no counts, or the values of some cells are none; the matrix is stored by genes; genes are not there;
        `keep` or `rows` do not fit the file.
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
            raise ValueError(f"layer={layer!r} and fractional={fractional} are about raw counts: give counts=True.")
        if block < 1:
            raise ValueError(f"block = {block}: the number of cells to read at once is expected, 1 or more.")
        self.path, self.counts, self.fractional, self.block = Path(path), counts, fractional, block
        look = partial(_read, lo=0, hi=_LOOK)
        with files.open_h5ad(path) as file:
            if counts:
                X, self.where, self._at, var = preprocessing.find_counts(
                    file, path, layer=layer, fractional=fractional, read=look
                )
            elif "X" in file:
                X, self.where, self._at, var = look(file["X"]), "X", "X", "var"
            else:
                raise ValueError(f"{path} has no X. If it holds raw counts elsewhere, give counts=True.")
            frame = read_elem(file[var])
            obs = read_elem(file["obs"])
            shape = _shape(file[self._at])
        names, self.uns = frame.index, {}
        if shape != (len(obs), len(names)):
            raise ValueError(
                f"{path}: {self.where} is {shape[0]} × {shape[1]}, but there are {len(obs)} cells in obs and "
                f"{len(names)} genes in {var}. Write the file again."
            )
        preprocessing.check_names(path, cells=obs.index, genes=names)
        self._columns = None if genes is None else self._find(names, genes)
        self.var = frame if genes is None else frame.iloc[self._columns]
        self.var_names = self.var.index
        self._rows = range(len(obs))[rows or slice(None)]
        if self._rows.step != 1:
            raise ValueError(f"rows = {rows}: a run of cells is expected, slice(first, last + 1).")
        self._keep = np.ones(len(obs), dtype=bool) if keep is None else np.asarray(keep)
        if self._keep.dtype != bool or self._keep.shape != (len(obs),):
            raise ValueError(
                f"keep is {self._keep.dtype} of shape {self._keep.shape}: a bool for each of the {len(obs)} cells of "
                f"{path} is expected."
            )
        self.obs = obs.iloc[self._rows.start : self._rows.stop][self._keep[self._rows.start : self._rows.stop]]
        seen = X if self._columns is None else X[:, self._columns]
        self.nnz = round(seen.nnz / max(seen.shape[0], 1) * len(self.obs))

    @property
    def n_obs(self) -> int:
        """Number of cells given."""
        return len(self.obs)

    @property
    def n_vars(self) -> int:
        """Number of genes given."""
        return len(self.var_names)

    def __repr__(self) -> str:
        return f"{self.n_obs} cells × {self.n_vars} genes, {self.where} of {self.path}"

    def __iter__(self) -> Iterator[tuple[csr_matrix, slice]]:
        with files.open_h5ad(self.path) as file:
            reader = ThreadPoolExecutor(1, "read ahead")
            ahead: deque[tuple[Future[csr_matrix], slice]] = deque()
            try:
                for rows, given in self._blocks():
                    ahead.append((reader.submit(self._block, file, rows), given))
                    if len(ahead) > _AHEAD:
                        yield _first(ahead)
                while ahead:
                    yield _first(ahead)
            finally:  # also when the caller leaves half-way: the thread ends before the file is closed
                reader.shutdown(cancel_futures=True)

    def _blocks(self) -> Iterator[tuple[range, slice]]:
        """Give the rows of the file that make a block, and where those of them that are kept are in `obs`."""
        before = 0
        for start in range(0, len(self._rows), self.block):
            rows = self._rows[start : start + self.block]
            if n := int(self._keep[rows.start : rows.stop].sum()):
                yield rows, slice(before, before + n)
                before += n

    def _block(self, file: h5py.File, rows: range) -> csr_matrix:
        """Read, check and normalize the cells of a block that are kept."""
        X = _read(file[self._at], rows.start, rows.stop)
        keep = self._keep[rows.start : rows.stop]
        if not keep.all():
            X = X[keep]
        # of normalized values is asked what is asked of counts that may be fractions: finite and not negative
        not_counts = partial(preprocessing.find_count_fault, fractional=self.fractional or not self.counts)
        if fault := not_counts(X.data):
            first = next(i for i, values in enumerate(np.split(X.data, X.indptr[1:-1])) if not_counts(values))
            row = rows[np.flatnonzero(keep)[first]]
            name = self.obs.index[self._keep[self._rows.start : row].sum()]
            raise ValueError(
                f"{self.path}: {self.where} {fault}, in cells {rows.start} to {rows.stop - 1} (first: cell {row}, "
                f"{name!r}). Expected: {'counts' if self.counts else 'log1p of counts per 10 000'}."
            )
        if self.counts:
            return preprocessing.normalize(X, self._columns)
        X = X.astype(np.float32, copy=False)
        if self._columns is not None:
            X = X[:, self._columns]
        X.eliminate_zeros()
        X.sort_indices()
        return X

    def _find(self, names: pd.Index, genes: Sequence[str]) -> np.ndarray:
        """Find the columns of genes."""
        genes = pd.Index(genes)
        columns = names.get_indexer(genes)
        if (missing := genes[columns < 0]).size:
            raise ValueError(
                f"{len(missing)} of {len(genes)} genes are not in {self.where} of {self.path} (first: {missing[0]!r}); "
                f"its {len(names)} genes are called {', '.join(map(repr, names[:3]))} …"
            )
        if not genes.is_unique:
            raise ValueError(f"genes: {genes[genes.duplicated()][0]!r} is asked for more than once.")
        return columns


def iter_blocks(cells: AnnData | CellStream) -> Iterable[tuple[csr_matrix, slice]]:
    """Return blocks of cells with the rows that they occupy: many for a stream, one for cells in memory."""
    return cells if isinstance(cells, CellStream) else [(cells.X, slice(0, cells.n_obs))]


def load_stream(path: str | Path) -> CellStream:
    """Give the cells that notebook 01 wrote as `data.load` does, but on disk."""
    cells = CellStream(path)
    preprocessing.check_filtered(path, cells.obs)
    cells.uns["input"] = files.file_info(path)
    with files.open_h5ad(path) as file:
        if "uns/provenance" in file:
            cells.uns["provenance"] = read_elem(file["uns/provenance"])
    return cells


def _first(ahead: deque[tuple[Future[csr_matrix], slice]]) -> tuple[csr_matrix, slice]:
    future, given = ahead.popleft()  # names of this function alone: none outlives it and keeps the block
    return future.result(), given


def _shape(matrix: h5py.Group | h5py.Dataset) -> tuple[int, int]:
    """Give the size of a matrix, if its cells can be read one after the other."""
    if isinstance(matrix, h5py.Dataset):
        return matrix.shape
    attrs = matrix.attrs
    stored = attrs.get("encoding-type", attrs.get("h5sparse_format", "of no known format"))  # anndata < 0.7: second
    if not stored.startswith("csr"):
        place = matrix.name[1:].replace("/", ".")
        raise ValueError(
            f"{matrix.file.filename}: {place} is {stored}: not stored by cells (csr_matrix or array), so no block "
            "of them can be read. Convert it once: cells = anndata.io.read_h5ad(…); cells.X = cells.X.tocsr(); "
            "cells.write_h5ad(…)."
        )
    return tuple(int(n) for n in attrs.get("shape", attrs.get("h5sparse_shape")))


def _read(matrix: h5py.Group | h5py.Dataset, lo: int, hi: int) -> csr_matrix:
    """Read the cells from `lo` to before `hi`, or to the last."""
    n_cells, n_genes = _shape(matrix)
    hi = min(hi, n_cells)
    try:
        if isinstance(matrix, h5py.Dataset):
            return csr_matrix(matrix[lo:hi])
        indptr = matrix["indptr"][lo : hi + 1].astype(np.int64)
        at = slice(indptr[0], indptr[-1])
        X = csr_matrix((matrix["data"][at], matrix["indices"][at], indptr - indptr[0]), (hi - lo, n_genes))
        X.check_format(full_check=True)  # compiled code trusts the indices
    except (KeyError, OSError, ValueError) as error:
        raise OSError(
            f"{matrix.file.filename} is damaged: {matrix.name[1:]} cannot be read at cells {lo} to {hi - 1}: {error}. "
            "Fetch or write the file again."
        ) from error
    return X
