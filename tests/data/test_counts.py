"""Tests of finding and reading counts."""

import re

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import tiny_cells
from scipy.sparse import csr_matrix, vstack

from aenmf_lib import data
from aenmf_lib.data import counts, files


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


def test_counts_are_read_from_raw_a_layer_or_x(tmp_path):
    def all_three(cells):
        cells.raw = cells.copy()
        cells.layers["doubled"] = cells.X * 2
        cells.X = data.normalize(cells.X)

    path = counts_file(tmp_path, all_three)
    with pytest.raises(ValueError, match=r"different counts: raw.X: .* 40 genes, .*layers\['doubled'\]: .*LAYER=raw.X"):
        data.read_counts(path)
    raw, where = data.read_counts(path, layer="raw.X")
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


def test_log_normalized_x_raises(tmp_path):
    def normalized(cells):
        cells.X = data.normalize(cells.X)

    for fractional in (False, True):
        with pytest.raises(
            ValueError, match=r"X contains .* and seems to be log-normalized: expm1 of the values adds up"
        ):
            data.read_counts(counts_file(tmp_path, normalized), fractional=fractional)


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


def test_hdf5_file_without_obs_and_var_raises(tmp_path):
    import h5py

    path = tmp_path / "cells.h5ad"
    with h5py.File(path, "w") as file:
        file["matrix"] = np.eye(3)
    with pytest.raises(ValueError, match="contains matrix, but no obs and no var"):
        data.read_h5ad(path)


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
    with pytest.raises(ValueError, match=rf"{h5ad}: X has 61 index pointers, .* do not fit its shape of 61 × 40"):
        data.read_counts(h5ad)


# ---- which matrix
def deep(n_cells=200, n_genes=300, seed=0):
    """Return realistic counts: unequal totals, many ones."""
    rng = np.random.default_rng(seed)
    mean = rng.gamma(0.3, 4, n_genes) * rng.gamma(3, 0.3, (n_cells, 1))
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    return ad.AnnData(csr_matrix(rng.poisson(mean).astype(np.float32)), obs=obs, var=var)


def readers(cells, tmp_path, **options):
    """Return functions that read the counts of the cells in memory, from a file, and streamed."""
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return (
        lambda: data.read_counts(cells, **options)[1],
        lambda: data.read_counts(tmp_path / "cells.h5ad", **options)[1],
        lambda: data.CellStream(tmp_path / "cells.h5ad", counts=True, **options).where,
    )


def test_counts_in_a_layer_are_found_if_x_is_log_normalized_or_scaled(tmp_path):
    for change in (data.normalize, lambda X: np.asarray(X - X.mean(0))):
        cells = deep()
        cells.layers["counts"] = cells.X.copy()
        cells.X = change(cells.X)
        cells.raw = cells.copy()
        assert [read() for read in readers(cells, tmp_path)] == ["layers['counts']"] * 3


def test_equal_counts_are_read_from_the_first_place(tmp_path, caplog):
    cells = deep()
    raw = cells.copy()
    cells = cells[:, 10:].copy()
    cells.raw, cells.layers["a"], cells.layers["empty"] = raw, cells.X.copy(), csr_matrix(cells.shape)
    assert [read() for read in readers(cells, tmp_path)] == ["raw.X"] * 3
    cells.layers["counts"] = cells.X.copy()
    assert [read() for read in readers(cells, tmp_path)] == ["layers['counts']"] * 3
    assert (
        "raw.X has the same counts as layers['counts'], and 10 more genes. To use them, set LAYER=raw.X" in caplog.text
    )
    for layer, where in {"X": "X", "raw.X": "raw.X", "a": "layers['a']"}.items():
        assert [read() for read in readers(cells, tmp_path, layer=layer)] == [where] * 3


def test_different_counts_are_listed_and_a_layer_is_asked_for(tmp_path):
    cells = deep()
    cells.layers["spliced"] = cells.X.copy()
    cells.layers["spliced"].data[-1] += 1  # in the last cell only
    n = cells.X.sum() / 200
    expected = re.escape(f"matrices with different counts: X: 200 cells × 300 genes, {n:.6g} counts per cell; layers['")
    for read in readers(cells, tmp_path):
        with pytest.raises(ValueError, match=expected + ".*LAYER=X"):
            read()


def binarized(X):
    return (X > 0).astype(np.float32)


def per_million(X):
    return csr_matrix(np.rint(X.multiply(1e6 / X.sum(1)).toarray()))


def without_ones(X):
    return csr_matrix(np.rint(X.toarray() * 3.4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (binarized, r"contains only 0 and 1 \(binarized\)"),
        (per_million, "contains whole numbers that add up to nearly the same total in each cell"),
        (without_ones, "contains the value 1 in 0 of 200 cells"),
    ],
)
def test_whole_numbers_that_are_not_counts_are_refused_but_are_fractional_counts(tmp_path, change, message):
    cells = deep()
    cells.X = csr_matrix(change(cells.X), dtype=np.float32)
    for read in readers(cells, tmp_path):
        with pytest.raises(ValueError, match=f"X {message}.*FRACTIONAL=true"):
            read()
    assert [read() for read in readers(cells, tmp_path, fractional=True)] == ["X"] * 3


def test_downsampled_and_shallow_counts_are_counts(tmp_path):
    cells, rng = deep(), np.random.default_rng(0)
    X = cells.X.toarray()
    cells.X = csr_matrix(
        np.stack([rng.multinomial(150, row.astype(float) / row.sum(dtype=float)) for row in X]).astype(np.float32)
    )
    assert [read() for read in readers(cells, tmp_path)] == ["X"] * 3
    cells.X = csr_matrix((rng.random(X.shape) < 0.002).astype(np.float32))
    assert [read() for read in readers(cells, tmp_path)] == ["X"] * 3


def test_values_close_to_whole_numbers_are_rounded_and_counted(tmp_path, caplog):
    cells = deep()
    expected = cells.X.toarray()
    cells.X = cells.X.astype(np.float64)
    cells.X.data[:5] += [1e-7, -1e-7, 5e-7, 1e-9, -1e-6 / 2]
    caplog.set_level("INFO")
    for where in readers(cells, tmp_path):
        assert where() == "X"
    np.testing.assert_array_equal(data.read_counts(tmp_path / "cells.h5ad")[0].X.toarray(), expected)
    assert "X: 5 values within 1e-6 of whole numbers were rounded" in caplog.text
    cells.X.data[7] += 2e-6
    for read in readers(cells, tmp_path):
        with pytest.raises(ValueError, match="contains 1 values that are not integers"):
            read()


@pytest.mark.parametrize("value", [2.0**63, 1e39])
def test_values_that_are_larger_than_any_count_are_refused(tmp_path, value):
    cells = deep()
    cells.X = cells.X.astype(np.float64)
    cells.X.data[3] = value
    for read in readers(cells, tmp_path):
        with pytest.raises(ValueError, match="contains 1 values that are too large for counts"):
            read()


def test_counts_above_the_precision_of_float32_are_reported(tmp_path, caplog):
    cells = deep()
    cells.X = cells.X.astype(np.int64)
    cells.X.data[3] = 2**24 + 1
    assert data.read_counts(cells)[0].X.data[3] == 2**24
    assert "counts above 16777216, such as 16777217, are rounded to 7 digits" in caplog.text


def test_reading_does_not_change_the_cells_in_memory():
    cells = deep()
    cells.X = csr_matrix((cells.X.data[::-1].copy(), cells.X.indices[::-1].copy() % 7, cells.X.indptr), cells.shape)
    before = cells.X.copy()
    data.read_counts(cells)
    np.testing.assert_array_equal(cells.X.data, before.data)
    np.testing.assert_array_equal(cells.X.indices, before.indices)


def test_candidates_lists_all_matrices(tmp_path):
    cells = deep()
    cells.layers["counts"] = cells.X.copy()
    cells.X = data.normalize(cells.X)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with files.open_cells(tmp_path / "cells.h5ad") as file:
        table = counts.candidates(file, rows=100).set_index("where")
    assert table["chosen"].to_dict() == {"layers['counts']": True, "X": False}
    assert table.loc["layers['counts']", "kind"] == "counts"
    assert "log-normalized" in table.loc["X", "kind"]
    assert (table["n_cells"] == 200).all()
