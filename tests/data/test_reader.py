"""Tests of reading in one pass: the result is bit-identical to a plain computation, and unusual cells are not read."""

import subprocess
import sys
from itertools import pairwise

import h5py
import numpy as np
import pytest
import zarr
from conftest import tiny_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix, vstack

from aenmf_lib import data
from aenmf_lib.data import matrices, one_pass, storage
from aenmf_lib.data.matrices import Matrix
from aenmf_lib.data.one_pass import Task
from aenmf_lib.data.streaming import CellStream

N_GENES = 90


def counts(seed=0, n_cells=40, share=0.4) -> csr_matrix:
    """Return counts up to 2**20 with stored zeros, an empty cell, and a cell of zeros."""
    rng = np.random.default_rng(seed)
    X = csr_matrix(rng.geometric(0.3, (n_cells, N_GENES)) * (rng.random((n_cells, N_GENES)) < share), dtype=np.float32)
    X[3] = 0
    X.eliminate_zeros()
    X.data[rng.random(X.nnz) < 0.1] = 0
    X.data[rng.integers(X.nnz, size=4)] = 15, 16, 17, 2**20  # around the end of the table, and a large count
    X.data[X.indptr[7] : X.indptr[8]] = 0
    return X


def plain(X: csr_matrix, genes=None, *, normalize=True) -> csr_matrix:
    """Return the result in plain NumPy, value by value in the order of the formula."""
    rows = []
    for cell in X.toarray():
        scale = np.float32(1e4 / cell.sum(dtype=np.float64)) if cell.any() else np.float32(0)
        rows.append(np.log1p(cell * scale) if normalize else cell)
    dense = np.array(rows, dtype=np.float32)
    return csr_matrix(dense if genes is None else dense[:, genes])


def assert_same_bits(given: csr_matrix, expected: csr_matrix) -> None:
    assert given.shape == expected.shape
    assert given.has_sorted_indices and given.has_canonical_format
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(given, part), getattr(expected, part), strict=True)


def read(X, task=Task(), rows=None) -> csr_matrix | None:  # noqa: B008
    return Matrix(X, "cells", "X").read_cells(np.arange(X.shape[0]) if rows is None else rows, task)


@settings(deadline=None)  # the first call compiles
@given(
    st.integers(0, 2**32 - 1),
    st.one_of(st.none(), st.permutations(range(N_GENES)), st.lists(st.integers(0, N_GENES - 1), unique=True)),
    st.booleans(),
)
def test_one_pass_is_bit_identical_to_the_formula(seed, genes, normalize):
    X, columns = counts(seed), None if genes is None else np.array(genes, dtype=int)
    expected = plain(X, columns, normalize=normalize)
    assert_same_bits(read(X, Task(normalize=normalize, columns=columns)), expected)
    if normalize:
        assert_same_bits(data.normalize(X.copy(), columns), expected)


@pytest.mark.parametrize("piece", [1, 7, 100, 10**6])
def test_pieces_and_gaps_change_no_bit(monkeypatch, piece):
    monkeypatch.setattr(one_pass, "_GAP", 3)
    X, rows = counts(), np.flatnonzero(np.random.default_rng(1).random(40) < 0.6)
    matrix = Matrix(X, "cells", "X")
    for array in matrix._arrays:
        array.piece = piece
    assert_same_bits(matrix.read_cells(rows, Task()), plain(X)[rows])


@pytest.mark.parametrize("dtype", [bool, "u1", "u2", "f2", "i4", "u4", "i8", "f8", ">f4", ">i8"])
def test_types_that_represent_the_counts_give_the_same_bits(dtype):
    X = counts()
    X.data = np.minimum(X.data, 1 if dtype is bool else 200)
    stored = csr_matrix((X.data.astype(dtype), X.indices.astype(np.int64), X.indptr), X.shape)
    stored.indices = stored.indices.astype(np.uint16)
    assert_same_bits(read(stored), plain(X))


WRONG_VALUES = [-1, 0.5, np.nan, np.inf, -np.inf, 2**24 + 2, 1e-7]


@pytest.mark.parametrize("place", [0, 5, -1])
@pytest.mark.parametrize("value", WRONG_VALUES)
def test_value_that_needs_more_than_one_pass_is_left_to_the_general_path(value, place):
    X = counts()
    X.data[place] = value
    assert read(X) is None
    wrong = {-1, np.inf, -np.inf} | {value for value in [value] if np.isnan(value)}
    assert (read(X, Task(counts=False)) is None) == (value in wrong or np.isnan(value))


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("fault", ["swapped", "repeated", "negative", "too large"])
@pytest.mark.parametrize("cell", [0, 20, 39])
def test_genes_that_need_more_than_one_pass_are_left_to_the_general_path(fault, cell, counted):
    X = counts()
    first, last = X.indptr[cell], X.indptr[cell + 1] - 1
    if fault == "swapped":
        X.indices[[last - 1, last]] = X.indices[[last, last - 1]]
    elif fault == "repeated":
        X.indices[first + 1] = X.indices[first]
    elif fault == "negative":
        X.indices[first] = -1
    else:
        X.indices[last] = N_GENES
    assert read(X, Task(counts=counted)) is None


def test_cell_whose_total_is_not_exact_in_float32_is_left_to_the_general_path():
    X = csr_matrix(np.array([[2**24 - 1, 1, 0], [1, 2, 0]], dtype=np.float32))
    assert_same_bits(Matrix(X, "cells", "X").read_cells(np.arange(2), Task()), plain(X))
    X[0, 2] = 1
    assert Matrix(X, "cells", "X").read_cells(np.arange(2), Task()) is None


def test_float64_values_that_float32_cannot_represent_are_left_to_the_general_path():
    X = counts().astype(np.float64)
    X.data[9] = 1 + 1e-12
    assert read(X) is None


def test_normalized_values_are_returned_as_they_are():
    X = plain(counts())
    assert_same_bits(read(X, Task(counts=False)), X)
    assert_same_bits(read(X, Task(counts=False, columns=np.array([5, 2, 80]))), csr_matrix(X.toarray()[:, [5, 2, 80]]))


def test_matrix_stops_trying_after_three_unusual_blocks():
    X = counts()
    X.data[0] = 0.5
    matrix = Matrix(X, "cells", "X")
    rows = np.arange(3)
    assert [matrix.read_cells(rows, Task()) is None for _ in range(3)] == [True] * 3
    assert matrix.read_cells(np.arange(9, 12), Task()) is None


# ---------------------------------------------------------------- layouts
VALUES = np.random.default_rng(2).integers(0, 9, 5000).astype(np.float32)
DIRECT = {
    "contiguous": {},
    "chunked": {"chunks": (700,)},
    "gzip": {"chunks": (700,), "compression": "gzip"},
    "gzip shuffle": {"chunks": (700,), "compression": "gzip", "shuffle": True},
    "one chunk": {"chunks": (5000,), "compression": "gzip"},
}
LIBRARY = {
    "lzf": {"chunks": (700,), "compression": "lzf"},
    "checksum": {"chunks": (700,), "fletcher32": True},
    "only shuffle": {"chunks": (700,), "shuffle": True},
    "big-endian": {"dtype": ">f4"},
}
ZARR = {
    "v2 blosc": (2, {"compressors": [zarr.codecs.BloscCodec()]}),
    "v2": (2, {"compressors": None}),
    "v3 plain": (3, {"compressors": None}),
    "v3 zstd": (3, {}),
    "v3 gzip": (3, {"compressors": [zarr.codecs.GzipCodec()]}),
    "v3 blosc": (3, {"compressors": [zarr.codecs.BloscCodec()]}),
    "v3 shards": (3, {"shards": (2100,)}),
    "v3 plain shards": (3, {"shards": (2100,), "compressors": None}),
}
ZARR_LIBRARY = {
    "v3 checksum": (3, {"compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]}),
    "v3 big-endian": (3, {"serializer": zarr.codecs.BytesCodec(endian="big")}),
}


def check_ranges(array, given: storage.Array) -> None:
    """Check reads of the whole, of parts, and of parts one after the other."""
    np.testing.assert_array_equal(given.read(0, 5000), VALUES)
    read, rng = given.reader(), np.random.default_rng(3)
    for lo, hi in np.sort(rng.integers(0, 5001, (40, 2))).tolist() + [[i, i + 250] for i in range(0, 5000, 250)]:
        np.testing.assert_array_equal(read(lo, hi), VALUES[lo:hi])
        np.testing.assert_array_equal(given.read(lo, hi), array[lo:hi])


@pytest.mark.parametrize("share", [storage._SHARE, 400], ids=["one thread", "several"])
@pytest.mark.parametrize("layout", DIRECT | LIBRARY)
def test_arrays_of_hdf5_are_read_exactly(tmp_path, monkeypatch, layout, share):
    monkeypatch.setattr(storage, "_SHARE", share)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("other", data=np.arange(99))
        file.create_dataset("a", data=VALUES, **(DIRECT | LIBRARY)[layout])
    with h5py.File(tmp_path / "a.h5") as file:
        opened = storage.open_array(file["a"])
        assert isinstance(opened, storage._Direct) == (layout in DIRECT)
        check_ranges(file["a"], opened)


@pytest.mark.parametrize("layout", ZARR | ZARR_LIBRARY)
def test_arrays_of_zarr_are_read_exactly(tmp_path, layout):
    version, options = (ZARR | ZARR_LIBRARY)[layout]
    if version == 2 and options["compressors"]:
        options = {"compressors": "auto"}
    zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version).create_array(
        "a", data=VALUES, **{"chunks": (700,)} | options
    )
    array = zarr.open_group(tmp_path / "a.zarr", mode="r")["a"]
    opened = storage.open_array(array)
    assert isinstance(opened, storage._Direct) == (layout in ZARR)
    check_ranges(array, opened)


def test_file_with_a_user_block_or_open_for_writing_is_read_by_h5py(tmp_path):
    for name, options in (("block.h5", {"userblock_size": 512}), ("plain.h5", {})):
        with h5py.File(tmp_path / name, "w", **options) as file:
            file["a"] = VALUES
            assert type(storage.open_array(file["a"])) is storage.Array
    with h5py.File(tmp_path / "block.h5") as file:
        assert type(storage.open_array(file["a"])) is storage.Array


def test_chunk_that_skips_its_filter_is_read_by_h5py(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("a", (5000,), np.float32, chunks=(5000,), compression="gzip")
        array.id.write_direct_chunk((0,), VALUES.tobytes(), filter_mask=1)
    with h5py.File(tmp_path / "a.h5") as file:
        opened = storage.open_array(file["a"])
        assert type(opened) is storage.Array
        np.testing.assert_array_equal(opened.read(0, 5000), VALUES)


def test_closed_file_is_not_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = VALUES
    with h5py.File(tmp_path / "a.h5") as file:
        opened = storage.open_array(file["a"])
    with pytest.raises(OSError, match="closed"):
        opened.read(0, 9)


@pytest.mark.parametrize("n_values", [699, 701])
@pytest.mark.parametrize("layout", ["v3 plain", "v3 zstd", "v3 blosc", "v3 gzip"])
def test_chunk_of_another_length_raises(tmp_path, layout, n_values):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("a", data=VALUES, chunks=(700,), **ZARR[layout][1])
    group.create_array("b", data=VALUES[:n_values], chunks=(n_values,), **ZARR[layout][1])
    (tmp_path / "a.zarr/a/c/2").write_bytes((tmp_path / "a.zarr/b/c/0").read_bytes())
    opened = storage.open_array(zarr.open_group(tmp_path / "a.zarr", mode="r")["a"])
    np.testing.assert_array_equal(opened.read(0, 1400), VALUES[:1400])
    with pytest.raises(OSError, match=r"a chunk has|a chunk cannot be decompressed"):
        opened.read(1500, 1600)


def test_damaged_index_of_a_shard_raises(tmp_path):
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_array("a", data=VALUES, chunks=(700,), shards=(2100,))
    path = tmp_path / "a.zarr/a/c/1"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    opened = storage.open_array(zarr.open_group(tmp_path / "a.zarr", mode="r")["a"])
    with pytest.raises(OSError, match="index of a shard does not match its checksum"):
        opened.read(2200, 2300)


def test_chunk_of_zeros_that_a_shard_leaves_out_is_read_as_zeros(tmp_path):
    values = VALUES.copy()
    values[700:1400] = 0
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_array("a", data=values, chunks=(700,), shards=(2100,))
    opened = storage.open_array(zarr.open_group(tmp_path / "a.zarr", mode="r")["a"])
    assert isinstance(opened, storage._Direct)
    np.testing.assert_array_equal(opened.read(600, 1500), values[600:1500])


@pytest.mark.parametrize(
    "options", [{}, {"shards": (2100,)}, {"serializer": zarr.codecs.ShardingCodec(chunk_shape=(100,))}]
)
def test_chunks_that_are_not_written_and_nested_shards_are_read(tmp_path, options):
    values = np.concatenate([np.zeros(4200, np.int32), np.arange(700, dtype=np.int32)])  # zarr does not write zeros
    options = {"chunks": (700,)} | options
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_array("a", data=values, **options)
    opened = storage.open_array(zarr.open_group(tmp_path / "a.zarr", mode="r")["a"])
    np.testing.assert_array_equal(opened.read(10, 4900), values[10:])


# ---------------------------------------------------------------- streams
@pytest.fixture
def path(tmp_path):
    cells = tiny_cells()
    cells.X.data = np.ceil(cells.X.data)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        for name in ("X/data", "X/indices"):
            values = file[name][:]
            del file[name]
            file[name] = values  # contiguous
    return tmp_path / "cells.h5ad"


def test_usual_cells_are_read_in_one_pass(path, monkeypatch):
    stream = CellStream(path, counts=True, block=13)
    monkeypatch.setattr(CellStream, "_read_any", None)
    assert vstack([X for X, _ in stream]).shape == (60, 40)


def test_counts_are_returned_without_normalization(path):
    expected = np.ceil(tiny_cells().X.toarray()).astype(np.float32)
    stream = CellStream(path, counts=True, normalize=False, genes=["gene4", "gene1"], block=13)
    assert_same_bits(vstack([X for X, _ in stream], format="csr"), csr_matrix(expected[:, [4, 1]]))
    with pytest.raises(ValueError, match=r"normalize=False applies to raw counts only. Set counts=True"):
        CellStream(path, normalize=False)


def test_cells_of_unwanted_donors_are_not_read(path, monkeypatch):
    keep = np.zeros(60, dtype=bool)
    keep[[4, 5, 30, 59]] = True
    stream, read, fill = CellStream(path, counts=True, keep=keep), [], storage._fill
    monkeypatch.setattr(one_pass, "_GAP", 0)
    monkeypatch.setattr(storage, "_fill", lambda file, out, at: (read.append(out.nbytes), fill(file, out, at)))
    ((X, rows),) = stream
    with h5py.File(path) as file:
        n = np.diff(file["X/indptr"][:])[keep].sum()
        assert sum(read) == n * (file["X/data"].dtype.itemsize + file["X/indices"].dtype.itemsize)
    assert (X.shape, rows, len(read)) == ((4, 40), slice(0, 4), 6)


def test_blocks_have_a_limited_number_of_nonzeros(path, monkeypatch):
    whole = vstack([X for X, _ in CellStream(path, counts=True, normalize=False)], format="csr")
    limit = int(np.diff(whole.indptr).max())
    monkeypatch.setattr(matrices, "_BLOCK", limit)
    blocks, rows = zip(*CellStream(path, counts=True, normalize=False), strict=True)
    assert max(X.nnz for X in blocks) <= limit < min(a.nnz + b.nnz for a, b in pairwise(blocks))
    assert [r.start for r in rows] == [0, *(r.stop for r in rows[:-1])]
    assert_same_bits(vstack(blocks, format="csr"), whole)
    monkeypatch.setattr(matrices, "_BLOCK", 1)  # a cell is never split
    assert [X.shape[0] for X, _ in CellStream(path, counts=True)] == [1] * 60


def test_file_that_is_truncated_while_open_raises(path):
    stream, raw = CellStream(path, counts=True, block=13), path.read_bytes()
    with h5py.File(path) as file:
        at = file["X/data"].id.get_offset()
    blocks = iter(stream)
    path.write_bytes(raw[: at + 40])
    with pytest.raises(OSError, match=r"cells.h5ad.*truncated|cells.h5ad: X cannot be read \(the file ends at byte"):
        list(blocks)


def test_reading_needs_no_compilation_after_compile_kernels(path, tmp_path):
    program = f"""if True:
        from aenmf_lib.data import CellStream, _kernels, one_pass
        one_pass.compile_kernels()
        kernels = [getattr(_kernels, name) for name in ("are_counts", "are_values", "append", "look_up")]
        compiled = [len(kernel.signatures) for kernel in kernels]
        for options in ({{"counts": True}}, {{"genes": ["gene3"], "counts": True}}, {{}}):
            assert sum(X.shape[0] for X, _ in CellStream({str(path)!r}, **options)) == 60
        assert compiled == [1] * 4 == [len(kernel.signatures) for kernel in kernels]
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
