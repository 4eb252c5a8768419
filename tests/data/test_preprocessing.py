"""Tests of reading counts, filtering and normalizing."""

import re

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import tiny_cells
from scipy.sparse import csr_matrix, vstack

from aenmf_lib import data


def counts_file(tmp_path, change=None):
    """Write 60 cells of integer counts, changed in place by `change`, and return the path."""
    cells = tiny_cells()
    cells.X.data = np.ceil(cells.X.data)
    cells.X = cells.X.astype(np.float32)
    if change is not None:
        change(cells)
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    return path


def set_value(at, value):
    """Return a function that sets one stored value of X."""

    def change(cells):
        cells.X.data[at] = value

    return change


def test_normalize_equals_scanpy():
    sc = pytest.importorskip("scanpy")
    cells = tiny_cells(n_cells=30)
    cells.X.data = np.ceil(cells.X.data)
    expected = cells.copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    np.testing.assert_allclose(data.normalize(cells.X).toarray(), expected.X.toarray(), rtol=2e-6)


def test_counts_are_read_from_raw_a_layer_or_x(tmp_path):
    def all_three(cells):
        cells.raw = cells.copy()
        cells.layers["doubled"] = cells.X * 2
        cells.X = data.normalize(cells.X)

    path = counts_file(tmp_path, all_three)
    raw, where = data.read_counts(path)
    assert where == "raw.X"
    doubled, where = data.read_counts(path, layer="doubled")
    assert where == "layers['doubled']"
    np.testing.assert_array_equal(doubled.X.toarray(), 2 * raw.X.toarray())

    cells, where = data.read_counts(counts_file(tmp_path))
    assert where == "X"
    np.testing.assert_array_equal(cells.X.toarray(), raw.X.toarray())


def test_x_is_read_if_raw_contains_no_counts(tmp_path):
    def log_in_raw(cells):
        normal = cells.copy()
        normal.X = data.normalize(cells.X)
        cells.raw = normal

    assert data.read_counts(counts_file(tmp_path, log_in_raw))[1] == "X"


def test_dense_counts_are_read(tmp_path):
    def dense(cells):
        cells.X = cells.X.toarray()

    assert isinstance(data.read_counts(counts_file(tmp_path, dense))[0].X, csr_matrix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value(3, -1), r"X contains 1 negative values \(smallest -1\), as scaled data do"),
        (set_value(3, np.nan), "X contains 1 values that are NaN or infinite"),
        (set_value(3, np.inf), "X contains 1 values that are NaN or infinite"),
        (set_value(3, 1.5), r"X contains 1 values that are not integers \(first 1.5"),
    ],
)
def test_values_that_are_not_counts_raise(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        data.read_counts(counts_file(tmp_path, change))


def test_log_normalized_x_raises_and_lists_the_layers(tmp_path):
    def normalized(cells):
        cells.layers["counts"] = cells.X.copy()
        cells.X = data.normalize(cells.X)

    with pytest.raises(ValueError, match=r"seems to be log-normalized.*name it \(LAYER=…\): layers\['counts'\]"):
        data.read_counts(counts_file(tmp_path, normalized))


def test_fractional_counts_are_accepted_if_requested(tmp_path):
    path = counts_file(tmp_path, set_value(3, 1.5))
    assert data.read_counts(path, fractional=True)[0].X.data[3] == 1.5


def test_unknown_layer_raises_and_lists_the_matrices(tmp_path):
    with pytest.raises(ValueError, match=r"has no layer 'decontXcounts'\. It contains X"):
        data.read_counts(counts_file(tmp_path), layer="decontXcounts")


def test_repeated_gene_names_raise(tmp_path):
    def twice(cells):
        cells.var_names = ["gene0", *cells.var_names[:-1]]

    with pytest.raises(ValueError, match="names in var are repeated \\(first: 'gene0'\\)"):
        data.read_counts(counts_file(tmp_path, twice))


def test_missing_file_raises_and_lists_nearby_files(tmp_path):
    counts_file(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"not found: .*other.h5ad\. .* contains cells.h5ad\. .*DATA=.*cells.h5ad"
    ):
        data.read_counts(tmp_path / "other.h5ad")


def test_text_file_raises(tmp_path):
    text = tmp_path / "cells.h5ad"
    text.write_text("cell,gene\n")
    with pytest.raises(OSError, match=r"\(10 bytes\) is not an HDF5 file"):
        data.read_h5ad(text)


def test_truncated_file_raises(tmp_path):
    path = counts_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(OSError, match="is truncated"):
        data.read_counts(path)


def test_hdf5_file_without_obs_and_var_raises(tmp_path):
    import h5py

    path = tmp_path / "cells.h5ad"
    with h5py.File(path, "w") as file:
        file["matrix"] = np.eye(3)
    with pytest.raises(ValueError, match="contains matrix, but no obs and no var"):
        data.read_h5ad(path)


@pytest.fixture
def counts():
    cells = tiny_cells()
    cells.X.data = np.ceil(cells.X.data)
    cells.obs["donor_id"] = ["big"] * 40 + ["small"] * 15 + ["edge"] * 5
    return cells


def test_donor_with_min_cells_is_kept(counts):
    cells, donors = data.filter_cells(counts, min_cells=15)
    assert dict(zip(donors["donor_id"], donors["kept"], strict=True)) == {"big": True, "small": True, "edge": False}
    assert cells.n_obs == 55
    assert list(cells.obs["donor_id"].cat.categories) == ["big", "small"]
    assert cells.X.dtype == np.float32
    np.testing.assert_allclose(np.expm1(cells.X.toarray().astype(float)).sum(1), 1e4, rtol=1e-5)


def test_other_column_names_are_renamed(counts):
    counts.obs = counts.obs.rename(columns={"donor_id": "patient", "cell_type": "label"})
    counts.obs["sex"] = "f"
    cells, _ = data.filter_cells(counts, min_cells=1, donor_key="patient", cell_type_key="label", keep_obs=["sex"])
    assert list(cells.obs) == ["cell_type", "donor_id", "sex"]
    pd.testing.assert_series_equal(cells.obs["donor_id"].astype(str), counts.obs["patient"], check_names=False)


def test_genes_without_counts_in_the_kept_cells_are_dropped(counts):
    X = counts.X.toarray()
    X[:40, 7] = 0  # expressed by donors that are dropped only
    X[40:, 7] = 1
    counts.X = csr_matrix(X)
    cells, _ = data.filter_cells(counts, min_cells=40)
    assert "gene7" not in cells.var_names
    assert cells.n_vars == counts.n_vars - 1


def test_no_donor_with_min_cells_raises_and_lists_the_donors(counts):
    with pytest.raises(
        ValueError, match=r"No donor has 5000 cells or more\. The 3 donors have: big 40, small 15, edge 5"
    ):
        data.filter_cells(counts, min_cells=5000)


def test_missing_column_raises_and_lists_the_columns(counts):
    with pytest.raises(ValueError, match=r"no obs column 'patient'\. The columns are: 'donor_id', 'cell_type'"):
        data.filter_cells(counts, min_cells=1, donor_key="patient")


@pytest.mark.parametrize("empty", [np.nan, "", " "])
@pytest.mark.parametrize("column", ["donor_id", "cell_type"])
def test_cells_without_a_label_raise_or_are_dropped(counts, column, empty):
    counts.obs[column] = counts.obs[column].astype(object)
    counts.obs.iloc[[2, 5], counts.obs.columns.get_loc(column)] = empty
    message = re.escape(
        f"obs['{column}'] is empty for 2 of 60 cells (first: 'cell2'). Set drop_missing=true (DROP_MISSING=true)"
    )
    with pytest.raises(ValueError, match=message):
        data.filter_cells(counts, min_cells=1)
    cells, donors = data.filter_cells(counts, min_cells=1, drop_missing=True)
    assert cells.n_obs == donors["n_cells"].sum() == 58
    assert not {"cell2", "cell5"} & set(cells.obs_names)


@pytest.mark.parametrize("empty", [np.nan, "", " "])
def test_keep_unlabeled_keeps_cells_without_a_type_but_not_without_a_donor(counts, empty, tmp_path, caplog):
    counts.obs["cell_type"] = counts.obs["cell_type"].astype(object)
    counts.obs.iloc[[2, 5], counts.obs.columns.get_loc("cell_type")] = empty
    with pytest.raises(ValueError, match=r"set keep_unlabeled=true \(KEEP_UNLABELED=true\) to keep them"):
        data.filter_cells(counts, min_cells=1)
    caplog.set_level("INFO")
    cells, _ = data.filter_cells(counts, min_cells=1, keep_unlabeled=True)
    cells.write_h5ad(tmp_path / "filtered.h5ad")
    assert "2 of the kept cells have no type" in caplog.text
    kept = data.load(tmp_path / "filtered.h5ad").obs["cell_type"]
    assert list(kept.index[kept.isna()]) == ["cell2", "cell5"]
    assert list(kept.cat.categories) == ["B", "T"]
    counts.obs["donor_id"] = counts.obs["donor_id"].mask(np.arange(60) == 7)
    with pytest.raises(ValueError, match=r"obs\['donor_id'\] is empty for 1 of 60 cells \(first: 'cell7'\)"):
        data.filter_cells(counts, min_cells=1, keep_unlabeled=True)
    assert data.filter_cells(counts, min_cells=1, keep_unlabeled=True, drop_missing=True)[0].n_obs == 59


def test_keep_unlabeled_accepts_cells_without_any_type(counts, tmp_path, caplog):
    counts.obs["cell_type"] = np.nan
    cells, _ = data.filter_cells(counts, min_cells=1, keep_unlabeled=True)
    cells.write_h5ad(tmp_path / "filtered.h5ad")
    assert data.load(tmp_path / "filtered.h5ad").obs["cell_type"].isna().all()
    assert "too few cell_type values are left (none): the benchmarks need at least 2" in caplog.text


def test_cells_without_counts_raise_or_are_dropped(counts):
    X = counts.X.toarray()
    X[4] = 0
    counts.X = csr_matrix(X)
    with pytest.raises(ValueError, match=r"the counts are all 0 for 1 of 60 cells \(first: 'cell4'\)"):
        data.filter_cells(counts, min_cells=1)
    assert data.filter_cells(counts, min_cells=1, drop_empty=True)[0].n_obs == 59


def test_one_donor_or_one_type_logs_a_warning(counts, caplog):
    counts.obs["cell_type"] = "T"
    data.filter_cells(counts, min_cells=16)
    assert "too few donor_id values are left (big): models 1 and 2 need at least 2" in caplog.text
    assert "too few cell_type values are left (T): the benchmarks need at least 2" in caplog.text


def test_matrix_without_counts_raises(counts):
    counts.X = csr_matrix(counts.shape, dtype=np.float32)
    with pytest.raises(ValueError, match="Nothing to filter: 60 cells × 40 genes with 0 counts"):
        data.filter_cells(counts, min_cells=1)


def test_load_reads_filtered_cells_and_rejects_other_files(tmp_path, counts):
    cells, _ = data.filter_cells(counts, min_cells=1)
    cells.write_h5ad(tmp_path / "filtered.h5ad")
    loaded = data.load(tmp_path / "filtered.h5ad")
    assert (loaded.X != cells.X).nnz == 0
    assert len(loaded.uns["input"]["sha256"]) == 64
    ad.AnnData(cells.X).write_h5ad(tmp_path / "bare.h5ad")
    with pytest.raises(ValueError, match="has no obs column donor_id and cell_type"):
        data.load(tmp_path / "bare.h5ad")


def test_sparse_matrix_of_old_anndata_is_read(h5ad):
    expected = data.read_counts(h5ad)[0]
    with h5py.File(h5ad, "a") as file:
        attributes = file["X"].attrs
        attributes["h5sparse_format"], attributes["h5sparse_shape"] = "csr", attributes["shape"]
        for name in ("encoding-type", "encoding-version", "shape"):
            del attributes[name]
    streamed = vstack([X for X, _ in data.CellStream(h5ad, counts=True)])
    assert (data.read_counts(h5ad)[0].X != expected.X).nnz == 0
    assert (streamed != data.normalize(expected.X)).nnz == 0


def test_matrix_whose_shape_does_not_fit_its_pointers_is_an_error_with_the_file_name(h5ad):
    with h5py.File(h5ad, "a") as file:
        file["X"].attrs["shape"] = [61, 40]
    with pytest.raises(ValueError, match=rf"{h5ad}: X cannot be read: .*Write the file again with anndata"):
        data.read_counts(h5ad)
