"""Results of any AnnData, of skipped models, and what the results keep of the cells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import tiny_cells

from aenmf_lib import AENMF, CAENMF1, BaseNMF, results
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.results import skipping

K = 4


@pytest.fixture
def cells():
    cells = tiny_cells()
    cells.X = cells.X.astype(np.float32)
    return cells


@pytest.fixture(scope="module")
def aenmf():
    return AENMF(k=K, max_iter=3).fit(tiny_cells())


def test_cells_without_labels_and_source_are_written(cells, tmp_path):
    for model in (AENMF(k=K, max_iter=3), BaseNMF(k=K, max_iter=3)):
        bare = ad.AnnData(cells.X)
        results.write(tmp_path / "m.h5ad", model.fit(bare), bare)
        assert results.check(tmp_path / "m.h5ad") == []
        assert results.embedding(tmp_path / "m.h5ad")[2].shape == (60, K)
        assert len(results.history([tmp_path / "m.h5ad"]))
        assert results.read(tmp_path / "m.h5ad").uns["provenance"]["input"] == {}


def test_stream_is_written(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    stream = CellStream(tmp_path / "cells.h5ad", block=25)
    results.write(tmp_path / "m.h5ad", BaseNMF(k=K, max_iter=3).fit(stream), stream)
    assert list(results.read_embeddings([tmp_path / "m.h5ad"]).H) == ["Base_NMF"]


def test_matrix_is_refused_because_results_need_obs(cells, aenmf, tmp_path):
    with pytest.raises(TypeError, match=r"The cells are a csr_matrix\. Pass an AnnData"):
        results.write(tmp_path / "m.h5ad", aenmf, cells.X)
    assert not list(tmp_path.iterdir())


def test_all_of_obs_and_only_gene_names_of_var_are_kept(cells, aenmf, tmp_path):
    cells.obs["age"], cells.obs["note"] = np.arange(60), pd.array(["a", pd.NA] * 30, dtype="string")
    cells.obs["donor_id"] = cells.obs["donor_id"].astype("string")
    cells.var["feature_name"] = pd.array([f"G{i}" for i in range(40)], dtype="string")
    cells.var["mean"] = 1.0
    results.write(tmp_path / "m.h5ad", aenmf, cells)
    found = results.read(tmp_path / "m.h5ad")
    assert list(found.obs) == ["donor_id", "cell_type", "age", "note"]
    assert list(found.var) == ["feature_name"]
    assert found.obs["age"].tolist() == list(range(60))
    assert found.var["feature_name"].tolist() == [f"G{i}" for i in range(40)]
    assert found.obs["donor_id"].tolist() == cells.obs["donor_id"].tolist()
    assert found.obs["note"].isna().tolist() == [False, True] * 30


@pytest.mark.parametrize("swapped", [False, True])
def test_columns_of_the_fit_become_donor_and_type_and_others_are_kept(cells, tmp_path, swapped):
    cells.obs["batch"] = np.where(np.arange(60) % 2, "b1", "b2")
    cells.obs["fine"] = np.where(np.arange(60) < 30, "f1", "f2")
    keys = {"donor_key": "batch", "cell_type_key": "fine"}
    if swapped:
        keys = {"donor_key": "cell_type", "cell_type_key": "donor_id"}
    before = cells.obs.copy()
    model = CAENMF1(k=K, max_iter=3).fit(cells, **keys)
    results.write(tmp_path / "m.h5ad", model, cells)
    pd.testing.assert_frame_equal(cells.obs, before)
    found = results.read(tmp_path / "m.h5ad").obs
    assert found["donor_id"].tolist() == before[keys["donor_key"]].tolist()
    assert found["cell_type"].tolist() == before[keys["cell_type_key"]].tolist()
    assert found["donor_id_original"].tolist() == before["donor_id"].tolist()
    assert found["cell_type_original"].tolist() == before["cell_type"].tolist()
    run = results.read_embeddings([tmp_path / "m.h5ad"]).run
    assert (run.donor_column, run.cell_type_column) == tuple(keys.values())


def test_columns_and_sampling_of_filtered_cells_are_recorded(cells, aenmf, tmp_path):
    cells.uns["provenance"] = {"donor_key": "patient", "cell_type_key": "celltype", "sampled_from": 5000}
    results.write(tmp_path / "m.h5ad", aenmf, cells)
    run = results.read_embeddings([tmp_path / "m.h5ad"]).run
    assert (run.donor_column, run.cell_type_column, run.sampled_from) == ("patient", "celltype", 5000)
    with ad.settings.override(allow_write_nullable_strings=True):
        found = ad.read_h5ad(tmp_path / "m.h5ad")
        del found.uns["provenance"]["cells"]  # as files of earlier versions
        found.write_h5ad(tmp_path / "m.h5ad")
    run = results.read_embeddings([tmp_path / "m.h5ad"]).run
    assert (run.donor_column, run.cell_type_column, run.sampled_from) == ("donor_id", "cell_type", 0)


def test_note_on_the_penalty_is_kept(cells, tmp_path):
    cells.obs["cell_type"] = "of " + cells.obs["donor_id"].astype(str)
    results.write(tmp_path / "m.h5ad", CAENMF1(k=K, max_iter=3).fit(cells), cells)
    penalty = results.read(tmp_path / "m.h5ad").uns["provenance"]["penalty"]
    assert penalty["note"].startswith("no type has cells of two donors")
    assert penalty["strength"] == 0


# ---- skipped models
@pytest.fixture
def skipped(cells, tmp_path):
    """A results file of model 1 that was skipped."""
    cells.obs["donor_id"] = "only"
    with pytest.raises(results.Skipped, match="CAE_NMF1 is skipped: all cells are of one donor, 'only'"):
        results.require_donors(cells, tmp_path / "cae1.h5ad", CAENMF1)
    return tmp_path / "cae1.h5ad"


def test_model_is_skipped_with_one_donor_and_its_file_is_valid(skipped, cells):
    assert results.check(skipped) == []
    found = results.read(skipped)
    assert found.obs_names.equals(cells.obs_names)
    assert found.uns["provenance"]["skipped"].startswith("all cells are of one donor, 'only'")
    assert not found.obsm
    assert not found.varm
    with pytest.raises(ValueError, match=r"cae1\.h5ad has no embedding, because CAE_NMF1 was skipped: all cells"):
        results.embedding(skipped)


def test_skipped_models_are_left_out_and_listed(skipped, cells, aenmf, tmp_path):
    results.write(tmp_path / "ae.h5ad", aenmf, cells)
    for paths in ([skipped, tmp_path / "ae.h5ad"], [tmp_path / "ae.h5ad", skipped]):
        embeddings = results.read_embeddings(paths)
        assert list(embeddings.H) == ["AE_NMF"]
        assert list(embeddings.run.skipped) == ["CAE_NMF1"]
        assert embeddings.run.skipped["CAE_NMF1"].startswith("all cells are of one donor")
        assert set(results.history(paths)["Model"]) == {"AE_NMF"}
        table = embeddings.published(pd.DataFrame({"Model": ["AE_NMF"], "ARI": [0.5]}))
        assert table["Model"].tolist() == ["AE_NMF", "CAE_NMF1"]
        assert table["ARI"].isna().tolist() == [False, True]
        assert table["skipped"].iloc[1].startswith("all cells are of one donor")
    with pytest.raises(ValueError, match=r"All models were skipped \(CAE_NMF1: all cells"):
        results.read_embeddings([skipped])
    with pytest.raises(ValueError, match="No loss history"):
        results.history([skipped])


def test_two_donors_are_enough_and_other_calls_of_skip_raise(cells, tmp_path):
    results.require_donors(cells, tmp_path / "m.h5ad", CAENMF1)
    results.require_donors(cells, tmp_path / "m.h5ad", "CAE_NMF2")
    for model, reason in (("cNMF", "why not"), (CAENMF1, "")):
        with pytest.raises(ValueError, match="skip got model="):
            skipping.skip(tmp_path / "m.h5ad", model, cells, reason)
    del cells.obs["donor_id"]
    with pytest.raises(ValueError, match="no obs column 'donor_id'"):
        results.require_donors(cells, tmp_path / "m.h5ad", CAENMF1)
    assert not list(tmp_path.iterdir())


def test_skipped_file_with_an_embedding_is_a_fault(skipped):
    found = ad.read_h5ad(skipped)
    found.obsm["H_shared_k4"] = np.ones((60, 4))
    found.write_h5ad(skipped)
    assert results.check(skipped) == ["the model was skipped, but obsm or varm has H_shared_k4"]
