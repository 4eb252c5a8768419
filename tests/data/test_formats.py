"""Tests that the same cells give the same bits in every format and type, in memory and streamed."""

import logging
from contextlib import nullcontext

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy.sparse import csr_matrix, vstack

from aenmf_lib import data
from aenmf_lib.data import files
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.training.moments import Moments


def example(n_cells=90, n_genes=70) -> ad.AnnData:
    """Return counts below 2,000, which all types represent."""
    rng = np.random.default_rng(3)
    X = rng.poisson(rng.gamma(0.4, 2, n_genes) * rng.gamma(2, 1, (n_cells, 1))).astype(np.float32)
    X[3, 5], X[-2, -2] = 1999, 1023
    obs = pd.DataFrame(
        {"donor_id": rng.choice(["d1", "d2", "d3"], n_cells), "cell_type": rng.choice(["T", "B"], n_cells)},
        index=[f"cell{i}" for i in range(n_cells)],
    )
    return ad.AnnData(csr_matrix(X), obs=obs, var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(n_genes)]))


def split_pieces(X: csr_matrix) -> dict[str, np.ndarray]:
    """Return the arrays of X with each value above 1 stored in two pieces, in a random order within the cells."""
    rng, coo = np.random.default_rng(0), X.tocoo()
    big = np.flatnonzero(coo.data > 1)
    rows, columns = np.append(coo.row, coo.row[big]), np.append(coo.col, coo.col[big])
    values = np.append(np.where(coo.data > 1, 1, coo.data), coo.data[big] - 1)
    order = np.lexsort([rng.random(len(rows)), rows])
    indptr = np.append(0, np.bincount(rows, minlength=X.shape[0]).cumsum())
    return {"data": values[order].astype(np.float32), "indices": columns[order].astype(np.int32), "indptr": indptr}


def store(group, parts) -> None:
    """Replace arrays of a group in an HDF5 or zarr file, keeping their attributes."""
    for name, values in parts.items():
        attributes = dict(group[name].attrs)
        del group[name]
        if isinstance(group, h5py.Group):
            new = group.create_dataset(name, data=values)
        else:
            new = group.create_array(name, data=values)
        new.attrs.update(attributes)


def write(cells, tmp_path, kind):
    """Write the cells in one format and return the path."""
    path = tmp_path / f"cells.{'zarr' if kind.startswith('zarr') else 'h5ad'}"
    dense, csc = "dense" in kind, "csc" in kind
    cells.X = cells.X.toarray() if dense else cells.X.tocsc() if csc else cells.X
    if kind.startswith("zarr"):
        with ad.settings.override(zarr_write_format=2 if "v2" in kind else 3):
            if "sharded" in kind:

                def shard(write_elem, group, name, elem, dataset_kwargs, iospec):
                    sharded = {}
                    if iospec.encoding_type == "csr_matrix":
                        sharded = {"chunks": (32,), "shards": (256,)}
                    write_elem(group, name, elem, dataset_kwargs=dict(dataset_kwargs) | sharded)

                group = zarr.open_group(path, mode="w", zarr_format=3)
                ad.experimental.write_dispatched(group, "/", cells, callback=shard)
                assert group["X/data"].shards == (256,)
            else:
                cells.write_zarr(path, convert_strings_to_categoricals=False)
    else:
        cells.write_h5ad(path)
    dtype = kind.split()[-1]
    with (
        h5py.File(path, "r+")
        if path.suffix == ".h5ad"
        else nullcontext(zarr.open_group(path, mode="r+", use_consolidated=False)) as file
    ):
        if dtype == "uint16-indices":
            store(file["X"], {"indices": file["X/indices"][:].astype(np.uint16)})
        elif dtype == "int64-indices":
            store(file["X"], {part: file["X"][part][:].astype(">i8") for part in ("indices", "indptr")})
        elif dtype == "pieces":
            matrix = cells.X.T.tocsr() if csc else cells.X
            store(file["X"], split_pieces(matrix))
        elif dtype not in ("csr", "csc", "dense"):
            group, name = (file, "X") if dense else (file["X"], "data")
            store(group, {name: group[name][:].astype(dtype)})
    return path


KINDS = [
    "h5ad csr", "h5ad csc", "h5ad dense", "zarr v2 csr", "zarr v3 csr", "zarr v3 sharded csr", "zarr v2 csc",
    "zarr v3 dense", "h5ad f2", "h5ad >f4", "h5ad dense f2", "h5ad dense >f8", "h5ad csc f2", "h5ad f8", "h5ad i8",
    "h5ad >i4", "h5ad dense i2", "h5ad u8", "h5ad u2", "zarr v2 >f4", "zarr v3 f2", "zarr v3 i8", "h5ad uint16-indices",
    "h5ad int64-indices", "h5ad pieces", "h5ad csc pieces", "zarr v3 pieces",
]  # fmt: skip


def sums(cells) -> tuple:
    """Return the sums of X per donor and type, and ‖X‖²."""
    moments = Moments.from_cells(cells, mode="implicit")
    return moments.group_sums.numpy(), moments.group_counts.numpy(), moments.sums.sq_norm


def assert_same(given, expected) -> None:
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(given, part), getattr(expected, part), strict=part == "data")


@pytest.mark.parametrize("kind", KINDS)
def test_same_cells_give_the_same_bits_in_memory_and_streamed(tmp_path, kind, caplog):
    expected = data.normalize(example().X)
    in_memory = example()
    in_memory.X = expected
    caplog.set_level(logging.INFO)
    path = write(example(), tmp_path, kind)
    cells, where = data.read_counts(path)
    assert where == "X"
    assert_same(cells.X, example().X)
    assert_same(data.normalize(cells.X), expected)
    stream = CellStream(path, counts=True, block=17)
    assert_same(vstack([X for X, _ in stream], format="csr"), expected)
    assert list(stream.var_names) == list(cells.var_names) == list(example().var_names)
    cells.X = expected
    for given in (cells, CellStream(path, counts=True)):  # one block: the order of a sum changes its last bits
        for ours, theirs in zip(sums(given), sums(in_memory), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    n_pieces = int((example().X.data > 1).sum())
    assert (f"X: {n_pieces} duplicated entries were summed" in caplog.text) == ("pieces" in kind)


def test_bool_values_are_read_as_ones(tmp_path):
    cells = example(10, 8)  # too few cells to tell that they are binarized
    cells.X = (cells.X > 3).tocsr()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    read = data.read_counts(tmp_path / "cells.h5ad")[0].X
    assert read.dtype == np.float32
    assert set(read.data) == {1}


@pytest.mark.parametrize("kind", ["h5ad csr", "h5ad csc", "h5ad dense", "zarr v2 csr", "zarr v3 sharded csr"])
def test_filtered_cells_load_equally_in_memory_and_streamed(tmp_path, kind):
    cells = data.filter_cells(example(), min_cells=1)[0]
    expected = cells.X.copy()
    path = write(cells, tmp_path, kind)
    assert_same(data.load(path).X, expected)
    assert_same(vstack([X for X, _ in data.load_stream(path)], format="csr"), expected)
    assert data.load(path).uns["provenance"].keys() == data.load_stream(path).uns["provenance"].keys()
    assert files.read_h5ad(path).shape == cells.shape


def test_zarr_hash_depends_on_names_and_contents(tmp_path):
    path = write(example(), tmp_path, "zarr v3 csr")
    before = files.file_info(path)["sha256"]
    assert files.file_info(path)["sha256"] == before
    chunk = next(file for file in sorted((path / "X").rglob("*")) if file.is_file())
    chunk.rename(chunk.with_name("other"))
    renamed = files.file_info(path)["sha256"]
    chunk.with_name("other").rename(chunk)
    chunk.write_bytes(chunk.read_bytes() + b" ")
    assert len({before, renamed, files.file_info(path)["sha256"]}) == 3


def test_missing_zarr_chunk_is_an_error_and_not_zeros(tmp_path):
    path = write(example(), tmp_path, "zarr v3 csr")
    next(file for file in (path / "X/data").rglob("*") if file.name != "zarr.json" and file.is_file()).unlink()
    for read in (data.read_counts, lambda path: CellStream(path, counts=True), data.load):
        with pytest.raises(ValueError, match=r"cells.zarr: X lacks 1 of 1 chunks of its data"):
            read(path)


def test_missing_hdf5_chunk_is_an_error_and_not_zeros(tmp_path):
    path = tmp_path / "cells.h5ad"
    example().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        values = file["X/data"][:]
        del file["X/data"]
        written = file["X"].create_dataset("data", shape=values.shape, dtype=values.dtype, chunks=(len(values) // 2,))
        written[: len(values) // 2] = values[: len(values) // 2]
    for read in (data.read_counts, lambda path: CellStream(path, counts=True), data.load):
        with pytest.raises(ValueError, match=r"cells.h5ad: X lacks \d of \d chunks of its data"):
            read(path)


def test_empty_file_in_a_zarr_folder_is_an_error_and_not_zeros(tmp_path):
    path = write(example(), tmp_path, "zarr v3 csr")
    next(file for file in (path / "X/data").rglob("*") if file.name != "zarr.json" and file.is_file()).write_bytes(b"")
    with pytest.raises(ValueError, match=r"cells\.zarr: X.data.* is empty .*Copy or write the folder again"):
        data.read_counts(path)


def test_counts_with_the_rounding_error_of_float32_are_whole():
    cells = example()
    cells.X = csr_matrix(cells.X, dtype=np.float64)
    cells.X.data[0] = 5000
    cells.X *= 1 + 1e-7
    assert data.read_counts(cells)[0].X.max() == 5000


@pytest.mark.parametrize("name", ["", ".", "a/b"])
def test_column_whose_name_is_a_path_can_be_written_and_read(tmp_path, name):
    cells = example()
    cells.obs[name] = 1
    files.write_h5ad(cells, tmp_path / "cells.h5ad")
    assert {"_", "a_b"} & set(data.read_h5ad(tmp_path / "cells.h5ad").obs)
