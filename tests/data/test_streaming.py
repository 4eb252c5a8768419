"""Tests of cells streamed from disk: blocks equal the whole matrix, and the reader thread ends with its caller."""

import threading
import time
import weakref
from itertools import pairwise

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import tiny_cells
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix, vstack

from aenmf_lib import data
from aenmf_lib.data import counts as counts_module
from aenmf_lib.data import matrices, streaming
from aenmf_lib.data.streaming import CellStream

GENES = [f"gene{i}" for i in (31, 2, 5, 17, 39, 0)]  # not in the order of the file


def counts() -> ad.AnnData:
    """Return 60 × 40 counts, with an empty cell and stored zeros."""
    cells = tiny_cells()
    cells.X.data = np.ceil(cells.X.data)
    cells.X.data[cells.X.indptr[7] : cells.X.indptr[8]] = 0
    cells.X = cells.X.astype(np.float32)
    return cells


def rewrite(path, dtypes=None, **options):
    """Store the arrays of X again with other types or chunks."""
    with h5py.File(path, "r+") as file:
        names = (
            ["X"] if isinstance(file["X"], h5py.Dataset) else [f"X/{part}" for part in ("data", "indices", "indptr")]
        )
        for name in names:
            values, attrs = file[name][()], dict(file[name].attrs)
            del file[name]
            dtype = (dtypes or {}).get(name, values.dtype)
            file.create_dataset(name, data=values.astype(dtype), **options).attrs.update(attrs)


def join_blocks(cells: CellStream) -> csr_matrix:
    """Return all blocks as one matrix, and check that their slices are contiguous."""
    blocks, rows = zip(*cells, strict=True) if cells.n_obs else ((), ())
    assert [r.start for r in rows] == [0, *(r.stop for r in rows[:-1])][: len(rows)]
    assert all(X.shape == (r.stop - r.start, cells.n_vars) for X, r in zip(blocks, rows, strict=True))
    assert all(X.dtype == np.float32 and X.has_sorted_indices for X in blocks)
    return vstack(blocks, format="csr") if blocks else csr_matrix((0, cells.n_vars), dtype=np.float32)


def assert_same_bits(given: csr_matrix, expected: csr_matrix) -> None:
    expected.sort_indices()
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(given, part), getattr(expected, part), strict=part == "data")


def reader_has_ended(path) -> bool:
    """Return whether no reader thread is left. HDF5 raises here if the file is still open for reading."""
    h5py.File(path, "r+").close()
    return not [thread for thread in threading.enumerate() if thread.name.startswith("read ahead")]


@pytest.fixture
def path(tmp_path):
    counts().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


LAYOUTS = {
    "contiguous": {},
    "chunked": {"chunks": (7,)},
    "gzip": {"chunks": (50,), "compression": "gzip"},
    "lzf": {"chunks": (50,), "compression": "lzf", "shuffle": True},
    "int64 indices": {"dtypes": {"X/indices": np.int64, "X/indptr": np.int64}},
    "int32 counts": {"dtypes": {"X/data": np.int32}},
    "uint16 counts": {"dtypes": {"X/data": np.uint16}},
    "float64 counts": {"dtypes": {"X/data": np.float64}},
}


@pytest.mark.parametrize("genes", [None, GENES], ids=["all genes", "some"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_equal_the_normalized_matrix(path, layout, genes):
    rewrite(path, **LAYOUTS[layout])
    whole = data.normalize(counts().X)
    cells = CellStream(path, counts=True, genes=genes, block=13)
    expected = whole if genes is None else whole[:, [int(name[4:]) for name in genes]]
    assert_same_bits(join_blocks(cells), expected)
    assert list(cells.var_names) == (genes or list(counts().var_names))
    assert (cells.n_obs, cells.n_vars, cells.where) == (*expected.shape, "X")
    pd.testing.assert_frame_equal(cells.obs, counts().obs)


@pytest.mark.parametrize("options", [{}, {"chunks": (11, 9), "compression": "gzip"}], ids=["contiguous", "gzip"])
def test_blocks_of_a_dense_matrix_equal_the_normalized_matrix(path, options):
    cells = counts()
    cells.X = cells.X.toarray()
    cells.write_h5ad(path)
    rewrite(path, **options)
    assert_same_bits(
        join_blocks(CellStream(path, counts=True, genes=GENES, block=13)),
        data.normalize(counts().X)[:, [31, 2, 5, 17, 39, 0]],
    )


def test_nnz_is_estimated_from_cells_spread_over_the_file(path, monkeypatch):
    keep, columns = np.arange(60) % 2 == 0, [31, 2, 5, 17, 39, 0]
    assert CellStream(path, genes=GENES).nnz == counts().X[:, columns].nnz
    monkeypatch.setattr(counts_module, "SAMPLE", 12)
    sample = [i + j for i in (0, 19, 38, 57) for j in range(3)]
    assert CellStream(path, genes=GENES, keep=keep).nnz == round(counts().X[sample][:, columns].nnz / 12 * 30)


def test_fractional_counts_are_normalized_to_the_same_bits(path):
    cells = counts()
    cells.X.data[cells.X.data > 0] += np.random.default_rng(0).random((cells.X.data > 0).sum(), dtype=np.float32)
    cells.write_h5ad(path)
    streamed = CellStream(path, counts=True, fractional=True, genes=GENES, block=13)
    assert_same_bits(join_blocks(streamed), data.normalize(cells.X)[:, [31, 2, 5, 17, 39, 0]])


def test_filtered_cells_are_returned_unchanged(path):
    filtered, _ = data.filter_cells(counts(), min_cells=1, drop_empty=True)
    filtered.write_h5ad(path)
    assert_same_bits(join_blocks(CellStream(path, block=13)), filtered.X)
    assert_same_bits(join_blocks(CellStream(path, genes=GENES, block=13)), filtered[:, GENES].X)


def test_stream_finds_the_same_counts_as_read_counts(path):
    cells = counts()
    cells.raw = cells.copy()
    cells.layers["doubled"] = cells.X * 2
    cells.X = data.normalize(cells.X)
    cells = cells[:, 5:].copy()
    cells.write_h5ad(path)
    with pytest.raises(ValueError, match=r"matrices with different counts: raw.X: 60 cells × 40 genes, .*LAYER=raw.X"):
        CellStream(path, counts=True)
    raw, doubled = (CellStream(path, counts=True, layer=name) for name in ("raw.X", "doubled"))
    assert (raw.where, raw.n_vars, doubled.where, doubled.n_vars) == ("raw.X", 40, "layers['doubled']", 35)
    assert_same_bits(join_blocks(raw), data.normalize(counts().X))
    assert_same_bits(join_blocks(doubled), data.normalize(counts().X[:, 5:]))
    with pytest.raises(ValueError, match="has no layer 'tripled'"):
        CellStream(path, counts=True, layer="tripled")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(block=st.integers(1, 70), edges=st.lists(st.integers(0, 60), max_size=3), kept=st.integers(0, 2**60 - 1))
def test_block_size_shards_and_kept_cells_do_not_change_values(path, block, edges, kept):
    keep = np.array([kept >> i & 1 for i in range(60)], dtype=bool)
    edges = [0, *sorted(edges), 60]
    shards = [
        CellStream(path, counts=True, genes=GENES, keep=keep, rows=slice(lo, hi), block=block)
        for lo, hi in pairwise(edges)
    ]
    whole = data.normalize(counts().X)[keep][:, [31, 2, 5, 17, 39, 0]]
    assert_same_bits(vstack([join_blocks(shard) for shard in shards], format="csr"), whole)
    assert [name for shard in shards for name in shard.obs.index] == list(counts().obs_names[keep])


def test_stream_can_be_iterated_twice_and_nested(path):
    cells = CellStream(path, counts=True, block=20)
    assert [(a, b) for _, a in cells for _, b in cells] == [
        (slice(a, a + 20), slice(b, b + 20)) for a in (0, 20, 40) for b in (0, 20, 40)
    ]
    assert reader_has_ended(path)


# ---- the reader thread
def test_next_blocks_are_read_while_the_caller_computes(path, monkeypatch):
    made = threading.Semaphore(0)
    block = CellStream._read_block
    monkeypatch.setattr(CellStream, "_read_block", lambda *arguments: (block(*arguments), made.release())[0])
    for _ in CellStream(path, counts=True, block=20):
        assert all(made.acquire(timeout=10) for _ in range(3))  # this block and the two next blocks
        break
    else:
        pytest.fail("the stream returned no block")


def test_few_blocks_are_in_memory_at_a_time(path, monkeypatch):
    alive, most = set(), []
    block = CellStream._read_block

    def count(*arguments):
        X, rows = block(*arguments)
        alive.add(id(X))
        weakref.finalize(X, alive.discard, id(X))
        most.append(len(alive))
        return X, rows

    monkeypatch.setattr(CellStream, "_read_block", count)
    n = 0
    for X, _ in CellStream(path, counts=True, block=1):
        time.sleep(0.002)  # slower than the reader
        n += X.shape[0]
    assert n == len(most) == 60
    # the caller's block, the one it takes next, and those read in advance
    assert max(most) <= 2 + streaming._AHEAD


def leave(cells):
    for _ in cells:
        break


def fail(cells):
    for _ in cells:
        raise KeyError("raised by the caller")


def close(cells):
    blocks = iter(cells)
    next(blocks)
    blocks.close()


def never_start(cells):
    iter(cells)


@pytest.mark.parametrize("stop", [leave, fail, close, never_start])
def test_reader_ends_if_the_caller_stops_early(path, stop):
    try:
        stop(CellStream(path, counts=True, block=1))
    except KeyError as error:
        assert "raised by the caller" in str(error)
    assert reader_has_ended(path)


@pytest.mark.parametrize("value", [-1, np.nan, np.inf, 1.5])
def test_invalid_value_raises_with_its_cell(path, monkeypatch, value):
    monkeypatch.setattr(counts_module, "SAMPLE", 8)
    cells = counts()
    cells.X.data[cells.X.indptr[44]] = value
    cells.write_h5ad(path)
    what = {-1: "1 negative values", 1.5: "1 values that are not integers"}.get(value, "1 values that are NaN")
    keep = ~np.isin(np.arange(60), [2, 41])
    given = 0
    with pytest.raises(
        ValueError, match=rf"cells.h5ad: X contains {what}.* in cells 40 to 59 \(first: cell 44, 'cell44'\)"
    ):
        for X, _ in CellStream(path, counts=True, keep=keep, rows=slice(1, None), block=39):
            given += X.shape[0]
    assert given == 38  # the valid cells before
    assert reader_has_ended(path)
    if value == 1.5:
        assert join_blocks(CellStream(path, counts=True, fractional=True)).shape == (60, 40)
    else:
        with pytest.raises(ValueError, match=r"Expected log1p of counts per 10,000"):
            join_blocks(CellStream(path))


def test_file_without_counts_raises_on_construction(path):
    cells = counts()
    cells.X = data.normalize(cells.X)
    cells.write_h5ad(path)
    with pytest.raises(ValueError, match=r"contains no raw counts: X contains .* seems to be log-normalized"):
        CellStream(path, counts=True)


# ---- invalid files and arguments
def test_truncated_file_raises(path):
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(OSError, match="is truncated"):
        CellStream(path, counts=True)


def test_damaged_chunk_raises(path, monkeypatch):
    monkeypatch.setattr(counts_module, "SAMPLE", 8)
    rewrite(path, chunks=(50,), compression="gzip")
    with h5py.File(path) as file:
        chunks = file["X/data"].id
        last = chunks.get_chunk_info(chunks.get_num_chunks() - 1)
    raw = bytearray(path.read_bytes())
    raw[last.byte_offset : last.byte_offset + last.size] = bytes(last.size)
    path.write_bytes(raw)
    with pytest.raises(OSError, match=r"cells.h5ad: X cannot be read \(.*Copy or download the file again"):
        join_blocks(CellStream(path, block=15))
    assert reader_has_ended(path)


@pytest.mark.parametrize("value", [40, -1])
def test_indices_out_of_range_raise(path, monkeypatch, value):
    monkeypatch.setattr(counts_module, "SAMPLE", 8)
    with h5py.File(path, "r+") as file:
        file["X/indices"][int(file["X/indptr"][50])] = value
    with pytest.raises(ValueError, match=rf"cells.h5ad: X has the index {value}, but there are 40 genes"):
        join_blocks(CellStream(path, genes=GENES, block=20))
    assert reader_has_ended(path)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (50, 10**6, "that decrease"), (50, -3, "index pointers from 0 to"), (50, 3, "that decrease"),
        (-1, 5, "index pointers from 0 to 5, but there are"), (0, 1, "index pointers from 1 to"),
    ],
)  # fmt: skip
def test_index_pointers_out_of_order_raise(path, at, value, message):
    with h5py.File(path, "r+") as file:
        pointers = file["X/indptr"][:]
        pointers[at] = value
        file["X/indptr"][:] = pointers
    for read in (lambda: data.read_counts(path), lambda: CellStream(path, counts=True), lambda: CellStream(path)):
        with pytest.raises(ValueError, match=f"cells.h5ad: X has .*{message}"):
            read()


@pytest.mark.parametrize("rows", [59, 61])
def test_file_that_has_changed_since_it_was_opened_raises(path, rows):
    cells = CellStream(path, counts=True)
    ad.concat([counts(), counts()], index_unique="-")[:rows].copy().write_h5ad(path)
    with pytest.raises(
        OSError, match=rf"has changed: .* had 60 × 40 values when it was opened, and now has {rows} × 40\. Do not"
    ):
        list(cells)


def test_file_deleted_before_iteration_raises(path):
    cells = CellStream(path, counts=True)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="File not found"):
        next(iter(cells))


@pytest.mark.parametrize("budget", [10**9, 600], ids=["one scan", "many scans"])
def test_blocks_of_a_csc_matrix_equal_those_of_the_csr_matrix(path, monkeypatch, caplog, budget):
    cells = counts()
    expected = data.normalize(cells.X)
    cells.X = cells.X.tocsc()
    cells.write_h5ad(path)
    monkeypatch.setattr(matrices, "_ENTRIES", 100)  # many pieces per scan
    monkeypatch.setattr(matrices, "available_memory", lambda: budget * 20)
    stream = CellStream(path, counts=True, block=7)
    n = 1 if budget > 10**6 else -(-60 // int(60 * budget * 10 / (matrices._ENTRY_BYTES * cells.X.nnz)))
    assert f"reads the whole file {'once' if n == 1 else f'{n} times'}" in caplog.text
    assert "cells.X = cells.X.tocsr()" in caplog.text
    assert_same_bits(join_blocks(stream), expected)
    assert_same_bits(data.normalize(data.read_counts(path)[0].X), expected)


def test_matrix_without_indices_raises(path):
    with h5py.File(path, "r+") as file:
        del file["X/indices"]
    for read in (CellStream, data.load, data.read_counts):
        with pytest.raises(ValueError, match=r"cells.h5ad: X has no indices"):
            read(path)


def test_repeated_cell_names_raise(path):
    with h5py.File(path, "r+") as file:
        file["obs/_index"][5] = "cell6"
    with pytest.raises(ValueError, match=r"1 names in obs are repeated \(first: 'cell6'\)"):
        CellStream(path)


def test_matrix_shape_that_differs_from_obs_raises(path):
    with h5py.File(path, "r+") as file:
        file["X"].attrs["shape"] = [59, 40]
    with pytest.raises(ValueError, match=r"X has 61 index pointers, .* do not fit its shape of 59 × 40"):
        CellStream(path)


def test_file_without_x_raises(path):
    with h5py.File(path, "r+") as file:
        del file["X"]
    with pytest.raises(ValueError, match=r"has no X\. Expected log1p of counts per 10,000"):
        CellStream(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"genes": ["gene1", "CD8A", "CD4"]},
            r"2 of 3 genes are not in X of .*\(first: 'CD8A'\)\. Choose from its 40 genes: 'gene0'",
        ),
        ({"genes": ["gene1", "gene2", "gene1"]}, "genes contains 'gene1' more than once"),
        ({"keep": np.arange(60)}, "keep is int64 of shape .60,.. Pass a bool for each of the 60 cells"),
        ({"keep": np.ones(59, dtype=bool)}, "a bool for each of the 60 cells"),
        ({"rows": slice(0, 60, 2)}, "is not a contiguous range of cells"),
        ({"rows": (0, 60)}, "is not a contiguous range of cells"),
        ({"rows": slice(0, 9.5)}, "is not a contiguous range of cells"),
        ({"block": 0}, "block=0 is too small"),
        ({"counts": False, "layer": "raw"}, "layer='raw' .* Set counts=True"),
    ],
)
def test_invalid_argument_raises(path, options, message):
    with pytest.raises(ValueError, match=message):
        CellStream(path, **{"counts": True} | options)


@pytest.mark.parametrize(
    ("options", "message"), [({"genes": "gene1"}, "Pass a list of names"), ({"block": 2.5}, "block=2.5")]
)
def test_argument_of_another_type_raises(path, options, message):
    with pytest.raises(TypeError, match=message):
        CellStream(path, **options)


def test_genes_match_without_their_ensembl_version(path):
    cells = counts()
    cells.var_names = [f"ENSG{i:011d}.{i % 7 + 1}" for i in range(40)]
    cells.write_h5ad(path)
    stream = CellStream(path, counts=True, genes=["ENSG00000000031", "ENSG00000000002.9", "ENSG00000000005.6"])
    assert list(stream.var_names) == ["ENSG00000000031.4", "ENSG00000000002.3", "ENSG00000000005.6"]
    assert_same_bits(join_blocks(stream), data.normalize(counts().X)[:, [31, 2, 5]])
