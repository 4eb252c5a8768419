"""Tests that filtering a file in blocks gives the cells, tables, messages and errors of filtering in memory."""

import logging
import os
import signal
import subprocess
import sys

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import tiny_cells
from scipy.sparse import csr_matrix

from aenmf_lib import data, results
from aenmf_lib.data import counts as counts_module
from aenmf_lib.data import files, filtering
from aenmf_lib.data.streaming import CellStream

KINDS = ["csr", "csc", "dense", "pieces", "int32", "raw.X", "layer", "zarr", "zarr csc"]


def messy_cells(rng: np.random.Generator, *, fractional: bool) -> ad.AnnData:
    """Return random counts with the faults of real files: empty cells and genes, missing and similar labels."""
    n_cells, n_genes = rng.integers(30, 90), rng.integers(15, 40)
    X = rng.poisson(rng.gamma(0.3, 2, n_genes) * rng.gamma(2, 1, (n_cells, 1))).astype(np.float32)
    X[:, rng.integers(n_genes)] = 0
    X[0, 0] = X[-1, -1] = 3
    if rng.random() < 0.5:  # cells without counts
        X[rng.random(n_cells) < 0.1] = 0
    if rng.random() < 0.4:  # a gene of one donor only
        X[rng.integers(n_cells // 2) :, rng.integers(n_genes)] = 0
    if fractional:
        X[X > 0] += rng.random((X > 0).sum(), dtype=np.float32)
    donors = rng.choice(["d1", "d2", "d3", "D1 ", "unknown"], n_cells, p=[0.4, 0.3, 0.15, 0.1, 0.05]).astype(object)
    types = rng.choice(["T", "t", "B", "doublet"], n_cells, p=[0.5, 0.1, 0.3, 0.1]).astype(object)
    for labels in (donors, types):
        if rng.random() < 0.4:
            labels[rng.random(n_cells) < 0.1] = rng.choice(np.array([np.nan, " "], dtype=object))
    obs = {"donor_id": donors, "cell_type": types, "batch": rng.integers(0, 3, n_cells).astype(str)}
    obs |= {"age": pd.array(rng.integers(20, 90, n_cells), dtype="Int64"), "dose": rng.random(n_cells)}
    obs |= {"is_primary_data": rng.random(n_cells) < 0.8, "stage": pd.Categorical(rng.choice(list("xyz"), n_cells))}
    names = [f"cell{i}" for i in range(n_cells)]
    var = pd.DataFrame({"gene_symbols": [f"S{i}" for i in range(n_genes)]}, index=[f"g{i}" for i in range(n_genes)])
    return ad.AnnData(csr_matrix(X), obs=pd.DataFrame(obs, index=names), var=var)


def random_options(rng: np.random.Generator) -> dict:
    """Return random options of `filter_cells`; most of them let some cells pass."""
    return {
        "min_cells": int(rng.choice([0, 1, 5, 12, 60], p=[0.2, 0.3, 0.25, 0.2, 0.05])),
        "donor_key": str(rng.choice(["donor_id", "batch", "patient"], p=[0.7, 0.27, 0.03])),
        "gene_name_key": str(rng.choice(["", "gene_symbols", "hgnc"], p=[0.6, 0.35, 0.05])),
        "keep_obs": [["stage"], []][rng.integers(2)],
        "drop_missing": bool(rng.random() < 0.85),
        "keep_unlabeled": bool(rng.random() < 0.3),
        "drop_empty": bool(rng.random() < 0.85),
        "drop_labels": [["doublet"], "unknown", []][rng.choice(3, p=[0.2, 0.1, 0.7])],
        "merge_labels": bool(rng.random() < 0.5),
        "primary_only": bool(rng.random() < 0.3),
        "sample": int(rng.choice([0, 2, 11])),
        "seed": int(rng.integers(100)),
    }


def in_pieces(X: csr_matrix, rng: np.random.Generator) -> csr_matrix:
    """Return the same counts with each value stored as two entries, in a random order within the cell."""
    rows, columns = np.repeat(X.tocoo().row, 2), np.repeat(X.indices, 2)
    values = np.ravel(np.column_stack([X.data - np.floor(X.data / 2), np.floor(X.data / 2)]))
    order = np.lexsort([rng.random(len(rows)), rows])
    return csr_matrix((values[order], columns[order], X.indptr * 2), X.shape)


def write(cells: ad.AnnData, folder, kind: str, rng: np.random.Generator):
    """Write the cells in one of `KINDS` and return the path."""
    path, X = folder / ("cells.zarr" if "zarr" in kind else "cells.h5ad"), cells.X
    if kind in ("raw.X", "layer"):
        moved = cells.copy()
        cells = cells.copy()
        cells.X = data.normalize(X)
        if kind == "layer":
            cells.layers["umis"] = X
        else:
            cells.raw = moved
            cells = cells[:, 3:].copy()
    else:
        cells.X = X.tocsc() if "csc" in kind else X.toarray() if "dense" in kind else X
        cells.X = in_pieces(X, rng) if kind == "pieces" else X.astype(np.int32) if kind == "int32" else cells.X
    (cells.write_zarr if "zarr" in kind else cells.write_h5ad)(path)
    return path


def outcome(run, caplog):
    """Return the cells and the cohort, or the error, and what was logged while filtering."""
    caplog.clear()
    try:
        found, error = run(), None
    except ValueError as raised:
        found, error = None, f"{type(raised).__name__}: {raised}"
    own = [record.getMessage() for record in caplog.records if record.name == filtering.__name__]
    return found, error, own


def assert_same_file(one: h5py.Group, other: h5py.Group) -> None:
    """Compare names, attributes, types and values of two groups of HDF5 files."""
    assert set(one) == set(other)
    for name in one:
        a, b = one[name], other[name]
        assert {k: str(v) for k, v in a.attrs.items()} == {k: str(v) for k, v in b.attrs.items()}, name
        if isinstance(a, h5py.Group):
            assert_same_file(a, b)
        else:
            assert (a.dtype, a.shape, a.compression) == (b.dtype, b.shape, b.compression), name
            np.testing.assert_array_equal(a[()], b[()], err_msg=name)


N_CASES, REACHED = 27, {"filtered": 0, "refused": 0, "again": 0}


@pytest.mark.parametrize("case", range(N_CASES))
def test_a_file_gives_the_same_cells_and_messages_as_the_same_cells_in_memory(case, tmp_path, caplog, monkeypatch):
    rng, kind = np.random.default_rng(case), KINDS[case % len(KINDS)]
    fractional = kind not in ("int32", "pieces", "layer") and bool(rng.random() < 0.2)
    path = write(messy_cells(rng, fractional=fractional), tmp_path, kind, rng)
    options = random_options(rng) | {"fractional": fractional}
    layer = {"raw.X": "raw.X", "layer": "umis"}.get(kind, "")
    monkeypatch.setattr(filtering, "_BLOCK", int(rng.choice([1, 7, 29, 1024])))
    passes, count = [], filtering._count
    monkeypatch.setattr(filtering, "_count", lambda *cells: passes.append(1) or count(*cells))
    caplog.set_level(logging.INFO)

    def in_memory():
        counts, _ = data.read_counts(path, layer=layer, fractional=fractional)
        return data.filter_cells(counts, **options)

    expected, error, messages = outcome(in_memory, caplog)
    given, same_error, same_messages = outcome(lambda: data.filter_cells(path, layer=layer, **options), caplog)
    assert " genes, raw counts from " in same_messages.pop(0)
    assert (same_error, same_messages) == (error, messages)
    REACHED["again"] += len(passes) > 1
    REACHED["refused" if error else "filtered"] += 1
    if error:
        return
    (stream, cohort), (cells, expected_cohort) = given, expected
    pd.testing.assert_frame_equal(cohort, expected_cohort)
    source = {"input": data.file_info(path), "counts_from": {"layer": "layers['umis']"}.get(kind, layer or "X")}
    assert {name: stream.uns["provenance"].pop(name) for name in source} == source
    assert stream.nnz == cells.X.nnz
    results.write_h5ad(stream, tmp_path / "streamed.h5ad")
    results.write_h5ad(cells, tmp_path / "expected.h5ad")
    with h5py.File(tmp_path / "streamed.h5ad") as one, h5py.File(tmp_path / "expected.h5ad") as other:
        assert_same_file(one, other)
        assert dict(one.attrs) == dict(other.attrs)
        assert {one["X"][name].chunks for name in one["X"]} == {None}  # contiguous, to be read fast
    pd.testing.assert_frame_equal(stream.obs, cells.obs)
    pd.testing.assert_frame_equal(stream.var, cells.var)
    if case % 3:
        return
    prepared = data.prepare(path, layer=layer, **options)
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(prepared.X, part), getattr(cells.X, part), strict=True)
    pd.testing.assert_frame_equal(prepared.obs, cells.obs)


def test_the_random_cases_reach_every_branch():
    if sum(REACHED.values()) < N_CASES:
        pytest.skip("only some of the cases ran in this process")
    assert REACHED["filtered"] >= N_CASES // 2 and REACHED["refused"] >= 5 and REACHED["again"] >= 3, REACHED


@pytest.fixture
def path(tmp_path):
    """A file of 60 cells, with too few cells of one donor."""
    cells = tiny_cells()
    cells.X.data = np.ceil(cells.X.data).astype(np.float32)
    cells.obs["donor_id"] = ["a", "b", "few"] * 4 + ["a", "b"] * 24
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.mark.parametrize("block", [1, 19, 20, 60, 61])
def test_genes_of_dropped_cells_only_are_dropped_at_every_edge_of_the_blocks(path, tmp_path, monkeypatch, block):
    cells = ad.read_h5ad(path)
    X = cells.X.toarray()
    X[:, [3, 8]] = 0
    X[[2, 11], 3] = 1  # cells of the donor that is dropped
    X[[59], 8] = 1  # the last cell
    cells.X = csr_matrix(X)
    cells.write_h5ad(path)
    monkeypatch.setattr(filtering, "_BLOCK", block)
    stream, _ = data.filter_cells(path, min_cells=5)
    assert "gene3" not in stream.var_names and "gene8" in stream.var_names
    results.write_h5ad(stream, tmp_path / "out.h5ad")
    kept = np.setdiff1d(np.arange(60), [2, 5, 8, 11])
    expected = data.normalize(csr_matrix(X))[kept][:, np.delete(np.arange(40), 3)]
    np.testing.assert_array_equal(data.load(tmp_path / "out.h5ad").X.toarray(), expected.toarray())


def test_cells_of_dropped_donors_are_not_read_again(path, tmp_path, monkeypatch):
    stream, _ = data.filter_cells(path, min_cells=5)
    wanted, read = [], CellStream._read_block
    monkeypatch.setattr(
        CellStream, "_read_block", lambda self, *given: (wanted.append(self._kept[given[-1]]), read(self, *given))[1]
    )
    results.write_h5ad(stream, tmp_path / "out.h5ad")
    np.testing.assert_array_equal(np.concatenate(wanted), np.setdiff1d(np.arange(60), [2, 5, 8, 11]))


def test_a_wrong_value_in_a_cell_that_is_dropped_is_an_error_as_in_memory(path, monkeypatch):
    monkeypatch.setattr(counts_module, "SAMPLE", 8)  # without this cell
    with h5py.File(path, "r+") as file:
        file["X/data"][int(file["X/indptr"][11])] = -1
    for filter_cells in (data.filter_cells, lambda path, **options: data.filter_cells(data.read_counts(path)[0])):
        with pytest.raises(ValueError, match=r"X contains 1 negative values .* \(first: cell 11, 'cell11'\)"):
            filter_cells(path, min_cells=5)


def test_cells_without_counts_raise(path):
    with h5py.File(path, "r+") as file:
        file["X/data"][:] = 0
    for cells in (path, data.read_counts(path)[0]):
        with pytest.raises(ValueError, match="Nothing to filter: 60 cells × 40 genes with 0 counts"):
            data.filter_cells(cells)


def test_layer_of_an_anndata_is_refused(path):
    with pytest.raises(ValueError, match=r"layer='umis' applies to files.*Pass data.read_counts"):
        data.filter_cells(ad.read_h5ad(path), layer="umis")


def test_a_file_that_changes_while_it_is_filtered_is_an_error_and_the_old_result_stays(path, tmp_path):
    out = tmp_path / "out.h5ad"
    out.write_text("old")
    stream, _ = data.filter_cells(path, min_cells=5)
    cells = ad.read_h5ad(path)
    X = cells.X.toarray()
    X[40, X[40] == 0] = 1
    cells.X = csr_matrix(X)
    cells.write_h5ad(path)
    with pytest.raises(OSError, match=r"cells\.h5ad changed while it was read\. Run the command again"):
        results.write_h5ad(stream, out)
    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["cells.h5ad", "out.h5ad"]


KILLED = """
import os, signal, sys
from aenmf_lib import data, results
from aenmf_lib.data import filtering, streaming
filtering._BLOCK = 10
stream, _ = data.filter_cells(sys.argv[1], min_cells=5)
blocks = streaming.CellStream.__iter__
def stop(self):
    for n, block in enumerate(blocks(self)):
        if n == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        yield block
streaming.CellStream.__iter__ = stop
results.write_h5ad(stream, sys.argv[2])
"""


def test_a_killed_run_leaves_the_old_result_and_the_next_run_removes_the_partial_file(path, tmp_path):
    out = tmp_path / "out.h5ad"
    out.write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, path, out], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert out.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 3  # the unfinished file
    results.write_h5ad(data.filter_cells(path, min_cells=5)[0], out)
    assert sorted(os.listdir(tmp_path)) == ["cells.h5ad", "out.h5ad"]
    assert data.load(out).n_obs == 56


def test_too_little_space_is_an_error_before_the_cells_are_read_again(path, tmp_path, monkeypatch):
    stream, _ = data.filter_cells(path, min_cells=5)
    monkeypatch.setattr(CellStream, "__iter__", lambda self: pytest.fail("the cells are read"))

    def full(file, offset, size):
        assert size > 8 * stream.nnz
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(files, "_size_of", lambda value: 0)
    with pytest.raises(OSError, match=r"out.h5ad cannot be written: it needs up to .* MB are free"):
        results.write_h5ad(stream, tmp_path / "out.h5ad")
    assert os.listdir(tmp_path) == ["cells.h5ad"]


LIMITED = """
import resource, sys
import psutil
from aenmf_lib import data, results
from aenmf_lib.data import filtering
small, large, out, kind = sys.argv[1:]
results.write_h5ad(data.filter_cells(small, min_cells=5)[0], out)  # loads compiled code
data.filter_cells(data.read_counts(small)[0], min_cells=5)
limit = psutil.Process().memory_info().data + 115_000_000
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    cells = large if kind == "blocks" else data.read_counts(large)[0]
    results.write_h5ad(data.filter_cells(cells, min_cells=5)[0], out)
except MemoryError:
    print("out of memory")
else:
    print("written")
"""


@pytest.mark.skipif(not psutil.LINUX, reason="limits the memory of a process")
def test_memory_does_not_grow_with_the_number_of_cells(path, tmp_path):
    rng, n_cells, per_cell = np.random.default_rng(0), 20_000, 800
    indices = rng.integers(1, 6, (n_cells, per_cell), dtype=np.int32).cumsum(axis=1, dtype=np.int32) - 1
    values = rng.integers(1, 9, n_cells * per_cell).astype(np.float32)
    X = csr_matrix((values, indices.ravel(), np.arange(n_cells + 1) * per_cell), (n_cells, 5 * per_cell))
    obs = {"donor_id": rng.choice(["a", "b"], n_cells), "cell_type": rng.choice(["B", "T"], n_cells)}
    large = tmp_path / "large.h5ad"
    ad.AnnData(X, obs=pd.DataFrame(obs, index=np.arange(n_cells).astype(str))).write_h5ad(large)
    for kind, expected in (("blocks", "written\n"), ("memory", "out of memory\n")):
        words = [sys.executable, "-W", "ignore", "-c", LIMITED, path, large, tmp_path / f"{kind}.h5ad", kind]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.stdout == expected, done.stderr
    assert data.load(tmp_path / "blocks.h5ad").X.nnz == X.nnz
