"""Tests of filtering and normalizing."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import tiny_cells
from scipy.sparse import csc_matrix, csr_array, csr_matrix

from aenmf_lib import data
from aenmf_lib.data.label_summary import summarize_labels


def test_normalize_equals_scanpy():
    sc = pytest.importorskip("scanpy")
    cells = tiny_cells(n_cells=30)
    cells.X.data = np.ceil(cells.X.data)
    expected = cells.copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    np.testing.assert_allclose(data.normalize(cells.X).toarray(), expected.X.toarray(), rtol=2e-6)


@pytest.fixture
def counts():
    cells = tiny_cells()
    cells.X.data = np.ceil(cells.X.data)
    cells.obs["donor_id"] = ["big"] * 40 + ["small"] * 15 + ["edge"] * 5
    return cells


def test_donor_with_min_cells_is_kept(counts):
    cells, cohort = data.filter_cells(counts, min_cells=15)
    kept = cohort.groupby("donor_id")["kept"].unique().map(list).to_dict()
    assert kept == {"big": [True], "small": [True], "edge": [False]}
    assert cells.n_obs == 55
    assert list(cells.obs["donor_id"].cat.categories) == ["big", "small"]
    assert cells.X.dtype == np.float32
    np.testing.assert_allclose(np.expm1(cells.X.toarray().astype(float)).sum(1), 1e4, rtol=1e-5)


def test_other_column_names_are_renamed(counts):
    counts.obs = counts.obs.rename(columns={"donor_id": "patient", "cell_type": "label"})
    counts.obs["sex"], counts.obs["age"] = "f", 30
    cells, _ = data.filter_cells(counts, min_cells=1, donor_key="patient", cell_type_key="label", keep_obs=["sex"])
    assert list(cells.obs) == ["cell_type", "donor_id", "label", "patient", "sex"]
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
        ValueError,
        match=r"No donor has 5000 cells or more\. The 3 donors have: big 40, small 15, edge 5\. .* 15 keeps 2 donors",
    ):
        data.filter_cells(counts, min_cells=5000)


def test_missing_column_raises_and_lists_the_columns(counts):
    with pytest.raises(ValueError, match=r"no obs column 'patient'\. .*The columns are: 'donor_id', 'cell_type'"):
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
    cells, cohort = data.filter_cells(counts, min_cells=1, drop_missing=True)
    assert cells.n_obs == cohort["n_cells"].sum() == 58
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
    assert "No cell has a type: scores against the cell type cannot be computed" in caplog.text


def test_cells_without_counts_raise_or_are_dropped(counts):
    X = counts.X.toarray()
    X[4] = 0
    counts.X = csr_matrix(X)
    with pytest.raises(ValueError, match=r"The counts are all 0 for 1 of 60 cells \(first: 'cell4'\)"):
        data.filter_cells(counts, min_cells=1)
    assert data.filter_cells(counts, min_cells=1, drop_empty=True)[0].n_obs == 59


def test_one_donor_or_one_type_logs_a_warning(counts, caplog):
    counts.obs["cell_type"] = "T"
    data.filter_cells(counts, min_cells=16)
    assert "Only the donor 'big' is left: the conditional models, which compare donors, will be skipped" in caplog.text
    assert "A smaller min_cells keeps more: 15 keeps 2 donors" in caplog.text
    assert "Only the cell type 'T' is left: scores against the cell type cannot be computed" in caplog.text


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


def test_csc_dense_and_integer_counts_give_the_same_bits_as_csr(counts):
    expected, _ = data.filter_cells(counts, min_cells=15)
    for X in (csc_matrix(counts.X), counts.X.toarray(), counts.X.astype(np.uint16), counts.X.astype(np.float32)):
        other = counts.copy()
        other.X = X
        cells, _ = data.filter_cells(other, min_cells=15)
        np.testing.assert_array_equal(cells.X.toarray(), expected.X.toarray(), strict=True)


def test_a_count_stored_in_two_pieces_is_summed_before_log1p_and_the_input_is_unchanged(counts):
    X = counts.X.astype(np.float32)
    counts.X = X
    expected, _ = data.filter_cells(counts, min_cells=1)
    twice = np.repeat(np.arange(X.nnz), 2)  # each count as two halves
    data_, indices = X.data[twice], X.indices[twice]
    data_[::2], data_[1::2] = np.floor(data_[::2] / 2), np.ceil(data_[1::2] / 2)
    counts.X = csr_matrix((data_, indices, X.indptr * 2), X.shape)
    cells, _ = data.filter_cells(counts, min_cells=1)
    np.testing.assert_array_equal(cells.X.toarray(), expected.X.toarray())
    assert counts.X.nnz == 2 * X.nnz


def test_a_gene_whose_stored_counts_are_all_0_is_dropped(counts):
    counts.X = csr_matrix(counts.X, dtype=np.float32)
    counts.X.data[counts.X.indices == 7] = 0
    assert "gene7" not in data.filter_cells(counts, min_cells=1)[0].var_names


def test_normalized_values_raise_unless_fractional(counts):
    counts.X = data.normalize(counts.X)
    with pytest.raises(ValueError, match=r"X contains .* values that are not integers .*Pass raw counts in X"):
        data.filter_cells(counts, min_cells=1)
    assert data.filter_cells(counts, min_cells=1, fractional=True)[0].n_obs == 60


def test_all_columns_are_kept_in_a_type_that_can_be_written(counts, tmp_path):
    counts.obs["age"] = pd.array([30, None] * 30, dtype="Int64")
    counts.obs["date"] = pd.Timestamp("2020-01-02")
    counts.obs["mixed"] = [1, "a"] * 30
    counts.obs["text"] = pd.array([f"t{i}" for i in range(60)], dtype="string")
    counts.obs["none"] = None
    counts.obs["interval"] = pd.cut(np.arange(60), 3)
    counts.obs["_index"] = "a"
    counts.obs["a/b"] = 1
    counts.obs["stage"] = pd.Categorical(["x"] * 40 + ["y"] * 20)
    counts.var["length"] = np.arange(40.0)
    cells, _ = data.filter_cells(counts, min_cells=40)
    cells.write_h5ad(tmp_path / "filtered.h5ad")
    obs = data.load(tmp_path / "filtered.h5ad").obs
    assert {"age", "date", "mixed", "text", "none", "interval", "a_b", "stage"} < set(obs)
    assert list(obs["stage"].cat.categories) == ["x"]  # y occurs in dropped cells only
    assert list(cells.var["length"]) == [int(name.removeprefix("gene")) for name in cells.var_names]


def test_columns_that_clash_with_our_names_are_renamed_and_reported(counts, caplog):
    counts.obs["batch"] = ["x", "y"] * 30
    counts.obs.index.name = "cell_type"
    counts.var["feature_name"], counts.var["gene_symbols"] = counts.var_names, [f"S{i}" for i in range(40)]
    cells, _ = data.filter_cells(counts, min_cells=1, donor_key="batch", keep_obs=["donor_id"])
    assert list(cells.obs["donor_id"]) == ["x", "y"] * 30
    assert list(cells.obs["donor_id_original"]) == list(counts.obs["donor_id"])
    assert list(cells.obs["batch"]) == list(cells.obs["donor_id"])
    assert "obs['donor_id'] of the file is renamed to 'donor_id_original': obs['donor_id'] is now obs['batch']" in (
        caplog.text
    )
    assert cells.obs.index.name != "cell_type"
    assert list(cells.var["feature_name"]) == list(cells.var["gene_symbols"])
    assert list(cells.var["feature_name_original"]) == list(cells.var_names)


def test_swapped_columns_are_both_renamed(counts):
    cells, _ = data.filter_cells(counts, min_cells=1, donor_key="cell_type", cell_type_key="donor_id")
    assert list(cells.obs["donor_id"]) == list(cells.obs["cell_type_original"]) == list(counts.obs["cell_type"])
    assert list(cells.obs["cell_type"]) == list(cells.obs["donor_id_original"]) == list(counts.obs["donor_id"])


def test_a_new_name_that_exists_is_not_overwritten(counts):
    counts.obs["batch"], counts.obs["donor_id_original"] = "x", "mine"
    cells, _ = data.filter_cells(counts, min_cells=1, donor_key="batch")
    assert set(cells.obs["donor_id_original"]) == {"mine"}
    assert list(cells.obs["donor_id_original_original"]) == list(counts.obs["donor_id"])


def test_repeated_column_raises(counts):
    counts.obs = pd.concat([counts.obs, counts.obs["donor_id"]], axis=1)
    with pytest.raises(ValueError, match="more than one column 'donor_id'"):
        data.filter_cells(counts, min_cells=1)


@pytest.mark.parametrize("name", ["feature_name", "gene_symbols", "Gene_Symbol", "gene_name", "SYMBOL"])
def test_gene_symbols_are_found_and_missing_ones_filled_with_the_id(counts, name):
    counts.var["feature_name"] = np.nan
    counts.var["gene_short_name"] = counts.var_names  # the ids
    counts.var[name] = [f"S{i}" for i in range(38)] + [None, " "]
    cells, _ = data.filter_cells(counts, min_cells=1)
    expected = {f"gene{i}": f"S{i}" if i < 38 else f"gene{i}" for i in range(40)}
    assert dict(zip(cells.var_names, cells.var["feature_name"], strict=True)) == {
        name: expected[name] for name in cells.var_names
    }


def test_gene_name_key_is_used_and_a_wrong_one_lists_the_columns(counts):
    counts.var["gene_symbols"], counts.var["hgnc"] = "a", "b"
    assert set(data.filter_cells(counts, min_cells=1, gene_name_key="hgnc")[0].var["feature_name"]) == {"b"}
    with pytest.raises(ValueError, match=r"no var column 'hgcn'\. The columns are: 'gene_symbols', 'hgnc'"):
        data.filter_cells(counts, min_cells=1, gene_name_key="hgcn")


def test_without_a_column_of_symbols_there_is_no_feature_name(counts):
    counts.var["gene_symbols"] = counts.var_names
    assert "feature_name" not in data.filter_cells(counts, min_cells=1)[0].var
    counts.var["feature_name"] = np.nan
    cells, _ = data.filter_cells(counts, min_cells=1)
    assert list(cells.var["feature_name"]) == list(cells.var_names)


def test_all_errors_are_raised_at_once(counts):
    counts.X = csr_matrix(counts.X, dtype=np.float32)
    counts.X.data[: counts.X.indptr[1]] = 0
    with pytest.raises(ValueError, match="obs column 'patient'") as error:
        data.filter_cells(counts, donor_key="patient", keep_obs=["sex"], gene_name_key="name", min_cells=1)
    assert str(error.value).startswith("There are 4 problems") and str(error.value).count("\n") == 4
    assert "'sex'" in str(error.value) and "var column 'name'" in str(error.value) and "all 0" in str(error.value)


def test_sample_keeps_the_shares_of_the_donors_whatever_the_order_of_genes(counts):
    cells, cohort = data.filter_cells(counts, min_cells=1, sample=12, seed=1)
    assert dict(cells.obs["donor_id"].value_counts()) == {"big": 8, "small": 3, "edge": 1}
    assert cohort.groupby("donor_id")["n_cells"].sum().to_dict() == {"big": 40, "small": 15, "edge": 5}
    assert cells.uns["provenance"]["sampled_from"] == 60
    shuffled = counts[:, np.random.default_rng(0).permutation(40)].copy()
    again, _ = data.filter_cells(shuffled, min_cells=1, sample=12, seed=1)
    assert list(again.obs_names) == list(cells.obs_names)
    np.testing.assert_array_equal(again[:, cells.var_names].X.toarray(), cells.X.toarray())
    assert list(data.filter_cells(counts, min_cells=1, sample=12, seed=2)[0].obs_names) != list(cells.obs_names)
    everything, _ = data.filter_cells(counts, min_cells=1, sample=60)
    assert (everything.n_obs, everything.uns["provenance"]["sampled_from"]) == (60, 0)


def test_every_donor_keeps_a_cell_in_a_small_sample(counts):
    cells, _ = data.filter_cells(counts, min_cells=1, sample=3)
    assert dict(cells.obs["donor_id"].value_counts()) == {"big": 1, "small": 1, "edge": 1}
    with pytest.raises(ValueError, match="sample=2 is smaller than the number of donors"):
        data.filter_cells(counts, min_cells=1, sample=2)


def test_prepare_does_what_notebook_01_does(counts, tmp_path):
    path = tmp_path / "cells.h5ad"
    counts.layers["counts"] = counts.X.copy()
    counts.X = data.normalize(counts.X)
    counts.write_h5ad(path)
    cells = data.prepare(path, min_cells=15, layer="counts")
    expected, _ = data.filter_cells(data.read_counts(path, layer="counts")[0], min_cells=15)
    np.testing.assert_array_equal(cells.X.toarray(), expected.X.toarray())
    provenance = cells.uns["provenance"]
    assert provenance["input"] == data.file_info(path)
    assert (provenance["counts_from"], provenance["min_cells"]) == ("layers['counts']", 15)
    assert (provenance["donor_key"], provenance["cell_type_key"]) == ("donor_id", "cell_type")
    donors = [("big", 40, True), ("small", 15, True), ("edge", 5, False)]
    assert list(provenance["donors"].itertuples(index=False, name=None)) == donors
    assert provenance["version_anndata"]
    cells.write_h5ad(tmp_path / "filtered.h5ad")
    in_memory = data.prepare(ad.read_h5ad(path), min_cells=15, layer="counts")
    np.testing.assert_array_equal(in_memory.X.toarray(), cells.X.toarray())


def test_min_cells_0_is_5000_or_a_tenth_of_the_largest_donor(counts, caplog):
    cells, cohort = data.filter_cells(counts)
    assert cohort["kept"].all() and set(cohort["min_cells"]) == {4}
    assert cells.uns["provenance"]["min_cells"] == 4
    assert "Fewer than two donors have 5,000 cells, so min_cells is 4" in caplog.text
    obs = pd.DataFrame({"donor_id": ["a"] * 5000 + ["b"] * 6000 + ["c"] * 4999, "cell_type": "T"})
    summary = summarize_labels(obs)
    assert (summary.min_cells, list(summary.donors["kept"])) == (5000, [True, True, False])


@pytest.mark.parametrize("kind", [np.asarray, csc_matrix, csr_array, "pieces"])
def test_normalize_accepts_any_matrix_and_sums_pieces(kind):
    X = csr_matrix(np.random.default_rng(0).poisson(1.0, (20, 20)).astype(np.float32))
    pieces = csr_matrix((np.repeat(X.data / 2, 2), np.repeat(X.indices, 2), X.indptr * 2), X.shape)
    other = pieces if kind == "pieces" else kind(X.toarray())
    np.testing.assert_array_equal(data.normalize(other).toarray(), data.normalize(X).toarray())


@pytest.mark.parametrize(("option", "value"), [("sample", 50.5), ("sample", -1), ("seed", -1)])
def test_sample_and_seed_that_are_not_whole_numbers_are_refused(counts, option, value):
    with pytest.raises(ValueError, match=rf"{option}={value} is not valid"):
        data.filter_cells(counts, min_cells=1, **({"sample": 2} | {option: value}))
