"""Reading parts of arrays in a file with several threads.

HDF5 allows one thread at a time, and the overhead of zarr for a chunk is about as long as reading its values. The
layouts that AnnData writes are therefore read here from the bytes of the file: contiguous arrays, and chunks with or
without compression. h5py and zarr read all others.
"""

import os
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import zarr
from google_crc32c import value as crc32c
from h5py import h5d, h5t, h5z

N_THREADS = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
PIECE = 2**18  # entries that fit in the cache of a core, so that they are read, checked and converted there

_SHARE = 2**22  # a further thread is started only for at least this many entries
_MISSING = 2**64 - 1  # offset and size of a chunk that a shard does not contain
_BOUND = 4096  # a chunk is damaged if it has more compressed bytes than this and twice its size


class Array:
    """An array of a file, or in memory. This class reads with the library that opened it."""

    piece: int | None = None  # entries that are best read at a time; None: as many as fit in memory

    def __init__(self, array: np.ndarray | h5py.Dataset | zarr.Array) -> None:
        self.array, self.dtype = array, array.dtype

    def read(self, lo: int, hi: int) -> np.ndarray:
        """Return the entries `lo` to before `hi`."""
        return self.array[lo:hi]

    def reader(self) -> Callable[[int, int], np.ndarray]:
        """Return a function that reads like `read`, for one thread. Its next call may overwrite the result."""
        return self.read


class _Direct(Array):
    """Base class of arrays that are read from the bytes of a file."""

    piece = PIECE

    def read(self, lo: int, hi: int) -> np.ndarray:
        out, n = np.empty(hi - lo, self.dtype), min(N_THREADS, (hi - lo) // _SHARE + 1)
        edges = [(hi - lo) * i // n for i in range(n + 1)]
        with ThreadPoolExecutor(n, "read part") as pool:
            list(pool.map(lambda a, b: self._filler()(lo + a, out[a:b]), edges[:-1], edges[1:]))
        return out

    def reader(self) -> Callable[[int, int], np.ndarray]:
        fill, buffer = self._filler(), np.empty(0, self.dtype)

        def read(lo: int, hi: int) -> np.ndarray:
            nonlocal buffer
            if len(buffer) < hi - lo:
                buffer = np.empty(max(hi - lo, PIECE), self.dtype)
            fill(lo, buffer[: hi - lo])
            return buffer[: hi - lo]

        return read

    def _filler(self) -> Callable[[int, np.ndarray], None]:
        """Return a function that writes the entries from a position on to an array."""
        raise NotImplementedError


class _Contiguous(_Direct):
    """An array of an HDF5 file without chunks."""

    def __init__(self, array: h5py.Dataset) -> None:
        super().__init__(array)
        self._file, self._offset = array.file.id.get_vfd_handle(), array.id.get_offset()

    def _filler(self) -> Callable[[int, np.ndarray], None]:
        _check_open(self.array)
        return lambda lo, out: _fill(self._file, out, self._offset + lo * self.dtype.itemsize)


class _Chunked(_Direct):
    """An array of chunks. `decode` decompresses a chunk into an array of its size; None copies its bytes."""

    def __init__(self, array: h5py.Dataset | zarr.Array, decode: Callable[[bytes, np.ndarray], None] | None) -> None:
        super().__init__(array)
        self._size, self._decode = array.chunks[0], decode

    def _load(self, number: int, out: np.ndarray) -> None:
        """Write the values of a chunk to an array of its size."""
        raise NotImplementedError

    def _unpack(self, file: int, offset: int, n_bytes: int, out: np.ndarray) -> None:
        """Read a chunk at an `offset` of a file and decode it."""
        if self._decode is None:
            if n_bytes != out.nbytes:
                raise OSError(f"a chunk has {n_bytes} bytes, not {out.nbytes}")
            return _fill(file, out, offset)
        if n_bytes > 2 * out.nbytes + _BOUND:
            raise OSError(f"a chunk of {out.nbytes} bytes has {n_bytes} compressed bytes, which is too many")
        packed = np.empty(n_bytes, np.uint8)
        _fill(file, packed, offset)
        try:
            return self._decode(packed, out)
        except (zlib.error, OSError, ValueError, RuntimeError) as error:
            raise OSError(f"a chunk cannot be decompressed ({error})") from error

    def _filler(self) -> Callable[[int, np.ndarray], None]:
        last, number, n = np.empty(self._size, self.dtype), -1, self._size

        def fill(lo: int, out: np.ndarray) -> None:
            nonlocal number
            hi = lo + len(out)
            for chunk in range(lo // n, -(-hi // n)):
                a, b = max(lo, chunk * n), min(hi, (chunk + 1) * n)
                if b - a == n:
                    self._load(chunk, out[a - lo : b - lo])
                    continue
                if chunk != number:  # kept: the next part usually starts in the same chunk
                    number = -1
                    self._load(chunk, last)
                    number = chunk
                out[a - lo : b - lo] = last[a - chunk * n : b - chunk * n]

        return fill


class _Hdf5Chunks(_Chunked):
    """The chunks of an HDF5 file."""

    def __init__(self, array: h5py.Dataset, decode: Callable | None) -> None:
        super().__init__(array, decode)
        self._file, found = array.file.id.get_vfd_handle(), []
        # chunk_iter continues while its function returns None
        array.id.chunk_iter(lambda chunk: found.append((chunk[0][0], chunk[2], chunk[3], chunk[1])))
        found = np.array(found, dtype=np.int64).reshape(-1, 4)
        self._places = found[found[:, 0].argsort(), 1:3]  # offset and bytes of each chunk
        expected = np.arange(-(-array.shape[0] // self._size)) * self._size
        no_filter_is_left_out = not found[:, 3].any()
        self.complete = np.array_equal(np.sort(found[:, 0]), expected) and no_filter_is_left_out

    def _filler(self) -> Callable[[int, np.ndarray], None]:
        _check_open(self.array)
        return super()._filler()

    def _load(self, number: int, out: np.ndarray) -> None:
        self._unpack(self._file, *self._places[number].tolist(), out)


class _ZarrChunks(_Chunked):
    """The chunks of a zarr folder: each in a file, or many in a shard that ends with their positions."""

    def __init__(self, array: zarr.Array, decode: Callable | None) -> None:
        super().__init__(array, decode)
        self._folder, self._shards = Path(array.store.root) / array.path, {}
        self._per_file = array.shards[0] // self._size if array.shards else 1

    def _load(self, number: int, out: np.ndarray) -> None:
        path = self._folder / self.array.metadata.encode_chunk_key((number // self._per_file,))
        file = os.open(path, os.O_RDONLY)
        try:
            offset, n_bytes = 0, os.fstat(file).st_size
            if self.array.shards:
                places = self._shards.get(path)
                if places is None:
                    places = self._shards[path] = self._read_index(file, n_bytes)
                offset, n_bytes = places[number % self._per_file].tolist()
            if n_bytes == _MISSING:
                out[:] = self.array.fill_value
            else:
                self._unpack(file, offset, n_bytes, out)
        finally:
            os.close(file)

    def _read_index(self, file: int, size: int) -> np.ndarray:
        """Return offset and bytes of each chunk of a shard, (n_chunks, 2), and check them."""
        index = np.empty(16 * self._per_file + 4, np.uint8)
        if size < len(index):
            raise OSError("a shard ends before its index")
        _fill(file, index, size - len(index))
        if crc32c(index[:-4].tobytes()) != int.from_bytes(index[-4:].tobytes(), "little"):
            raise OSError("the index of a shard does not match its checksum")
        return index[:-4].view("<u8").reshape(-1, 2)


# ---------------------------------------------------------------- opening
def open_array(array: np.ndarray | h5py.Dataset | zarr.Array) -> Array:
    """Return the fastest way to read an array of one dimension."""
    if isinstance(array, np.ndarray) or not hasattr(os, "preadv") or not array.dtype.isnative or not array.size:
        return Array(array)
    return (_open_hdf5 if isinstance(array, h5py.Dataset) else _open_zarr)(array)


def _open_hdf5(array: h5py.Dataset) -> Array:
    """Return an array of an HDF5 file. Direct reading needs a read-only file that stores the values as in memory."""
    file, options = array.file, array.id.get_create_plist()
    stored = h5t.py_create(array.dtype).equal(array.id.get_type())
    if not stored or file.mode != "r" or file.driver != "sec2" or file.userblock_size:
        return Array(array)
    if options.get_layout() == h5d.CONTIGUOUS and array.id.get_offset() is not None:
        return _Contiguous(array)
    filters = [options.get_filter(i)[0] for i in range(options.get_nfilters())]
    decoders = {
        (): None,
        (h5z.FILTER_DEFLATE,): _inflate,
        (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE): _inflate_shuffled,
    }
    if options.get_layout() == h5d.CHUNKED and tuple(filters) in decoders and hasattr(array.id, "chunk_iter"):
        chunks = _Hdf5Chunks(array, decoders[tuple(filters)])
        return chunks if chunks.complete else Array(array)
    return Array(array)


def _open_zarr(array: zarr.Array) -> Array:
    """Return an array of a zarr folder, of format 2 or 3."""
    if not isinstance(array.store, zarr.storage.LocalStore) or array.filters or len(array.compressors or ()) > 1:
        return Array(array)
    if getattr(getattr(array.serializer, "endian", None), "value", sys.byteorder) != sys.byteorder:
        return Array(array)
    nested = isinstance(array.serializer, zarr.codecs.ShardingCodec)
    if nested or array.nchunks_initialized < array.nchunks:  # chunks of zeros are not written
        return Array(array)
    if array.shards:
        (shards,) = array.metadata.codecs
        kinds = [type(codec) for codec in shards.index_codecs]
        usual = kinds == [zarr.codecs.BytesCodec, zarr.codecs.Crc32cCodec] and shards.index_location.value == "end"
        if not usual or shards.index_codecs[0].endian.value != "little":
            return Array(array)
    decoders = {None: None, "gzip": _inflate, "zlib": _inflate}
    decoders |= {"zstd": _decode_zstd, "blosc": _decode_blosc}
    names = [getattr(codec, "codec_id", None) or codec.to_dict()["name"] for codec in array.compressors or ()]
    name = names[0] if names else None
    return _ZarrChunks(array, decoders[name]) if name in decoders else Array(array)


def _check_open(array: h5py.Dataset) -> None:
    """Raise OSError if the file was closed, because its descriptor may now belong to another file."""
    if not array:
        raise OSError("the file was closed")


# ---------------------------------------------------------------- bytes
def _fill(file: int, out: np.ndarray, offset: int) -> None:
    """Fill an array with the bytes of a file from an offset on. Raise OSError if the file is too short."""
    left = memoryview(out).cast("B")
    while left:
        n = os.preadv(file, [left], offset)
        if n <= 0:
            raise OSError(f"the file ends at byte {offset}, before its values")
        left, offset = left[n:], offset + n


def _inflate(packed: np.ndarray, out: np.ndarray) -> None:
    """Decompress a chunk of zlib or gzip."""
    _copy(zlib.decompressobj(wbits=47).decompress(packed, out.nbytes + 1), out)  # 47: either header; never more bytes


def _inflate_shuffled(packed: np.ndarray, out: np.ndarray) -> None:
    """Decompress a chunk of HDF5 that has the first bytes of all values, then their second bytes, and so on."""
    planes = np.empty((out.itemsize, len(out)), np.uint8)
    _inflate(packed, planes.reshape(-1))
    out.view(np.uint8).reshape(len(out), out.itemsize)[:] = planes.T


def _decode_zstd(packed: np.ndarray, out: np.ndarray) -> None:
    """Decompress a chunk of Zstandard with Arrow: numcodecs blocks other threads."""
    from pyarrow import Codec  # loaded when it is needed

    _copy(memoryview(Codec("zstd").decompress(packed, out.nbytes)).cast("B"), out)


def _decode_blosc(packed: np.ndarray, out: np.ndarray) -> None:
    """Decompress a chunk of Blosc."""
    _copy(numcodecs.blosc.decompress(packed), out)


def _copy(values: bytes | memoryview, out: np.ndarray) -> None:
    """Copy decompressed values to an array of their size. Raise OSError if there are more or fewer."""
    if len(values) != out.nbytes:
        raise OSError(f"a chunk has {len(values)} bytes, not {out.nbytes}")
    memoryview(out).cast("B")[:] = values
