"""CSR matrices in a new file, to which cells are appended block by block."""

import contextlib
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import zarr
from anndata.io import write_elem

from aenmf_lib.data.files import check_output

COMPRESSIONS = {".h5ad": ("none", "gzip"), ".zarr": ("none", "zstd")}
_CHUNK, _SHARD = 1 << 16, 1 << 22  # values per chunk of a compressed array, and per shard of zarr


class GrowingMatrix:
    """A CSR matrix in an open file, to which cells are appended.

    Parameters
    ----------
    file, name
        An open ``.h5ad`` or a zarr group, and the name of the matrix.
    indptr, n_genes
        Index pointers (n_cells + 1,) of all cells, and the number of columns.
    types
        Types of the stored values and indices.
    compression, pool
        One of `COMPRESSIONS`, and the threads that compress.
    """

    def __init__(
        self,
        file: h5py.File | zarr.Group,
        name: str,
        indptr: np.ndarray,
        n_genes: int,
        *,
        types: tuple[type, type],
        compression: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        group, shape = file.create_group(name), [len(indptr) - 1, n_genes]
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        write_elem(group, "indptr", indptr.astype(np.int32 if indptr[-1] < 2**31 else np.int64))
        n, (value, index) = int(indptr[-1]), map(np.dtype, types)
        self._data = _Column(group, "data", n, value, compression, pool)
        self._indices = _Column(group, "indices", n, index, compression, pool)

    def append(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Append the entries of the next cells."""
        self._indices.append(indices)
        self._data.append(values)

    def close(self) -> None:
        """Write the remaining entries."""
        self._indices.append(final=True)
        self._data.append(final=True)


class _Column:
    """An array of known length in a file, which is written in whole chunks or shards."""

    def __init__(
        self,
        group: h5py.Group | zarr.Group,
        name: str,
        n: int,
        dtype: np.dtype,
        compression: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._at, self._waiting, self._step, self._compress = 0, np.empty(0, dtype), 1, None
        attributes = {"encoding-type": "array", "encoding-version": "0.2.0"}
        if isinstance(group, h5py.Group):
            chunks = (min(_CHUNK, n),) if compression == "gzip" else None
            self._array = group.create_dataset(name, (n,), dtype, chunks=chunks, compression=chunks and compression)
            if chunks:
                self._step, self._compress = chunks[0], pool
        else:
            self._step = min(_SHARD, -(-n // _CHUNK) * _CHUNK)
            codec = zarr.codecs.ZstdCodec(level=3) if compression == "zstd" else None
            sizes = {"chunks": (_CHUNK,), "shards": (self._step,), "compressors": codec, "filters": None}
            self._array = group.create_array(name, shape=(n,), dtype=dtype, **sizes)
        self._array.attrs.update(attributes)

    def append(self, values: np.ndarray = (), *, final: bool = False) -> None:
        """Append values. Only whole chunks are written until the `final` call."""
        values = np.concatenate([self._waiting, np.asarray(values, self._waiting.dtype)])
        n = len(values) if final else len(values) // self._step * self._step
        whole, self._waiting = values[:n], values[n:]
        if self._compress is None:
            self._array[self._at : self._at + n] = whole
        else:  # h5py itself would compress on one core
            pieces = [whole[at : at + self._step] for at in range(0, n, self._step)]
            for i, piece in enumerate(self._compress.map(self._deflate, pieces)):
                self._array.id.write_direct_chunk((self._at + i * self._step,), piece)
        self._at += n

    def _deflate(self, values: np.ndarray) -> bytes:
        """Return a compressed chunk; the last one of an array is filled with zeros."""
        return zlib.compress(np.pad(values, (0, self._step - len(values))).tobytes(), 4)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder, which replaces `path` if the block succeeds, and is removed otherwise."""
    if path.is_dir() and any(path.iterdir()) and not (path / "zarr.json").is_file():
        raise FileExistsError(f"{path} is a folder, but not a zarr store, and is not overwritten. Choose another name.")
    check_output(path.parent / f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
