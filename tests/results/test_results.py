"""What is on disk: published keys, nothing half written, faults named."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, results
from aenmf_lib.data import files

K = 4
ALL = (CAENMF1, CAENMF2, AENMF, BaseNMF)
# the table of published keys, spelled again on purpose
KEYS = {
    "CAE_NMF1": ({"H_shared_k4", "H_cond_latent_k4", "H_concat_full_k4"}, {"W_concat_k4", "U_concat_gene_k4"}),
    "CAE_NMF2": ({"H_shared_k4", "H_cond_latent_k4", "H_concat_full_k4"}, {"W_concat_k4"}),
    "AE_NMF": ({"H_shared_k4"}, {"W_tied_k4"}),
    "Base_NMF": ({"H_sklearn_nmf_k4"}, {"W_sklearn_nmf_k4"}),
}
META = {"CAE_NMF1": "cond_meta_concat_k4", "CAE_NMF2": "cond_meta_concat_k4", "Base_NMF": "sklearn_nmf_k4"}


@pytest.fixture
def cells(tiny):
    tiny.X = tiny.X.astype(np.float32)
    tiny.uns["input"] = {"path": "filtered.h5ad", "sha256": "0" * 64}
    return tiny


@pytest.fixture
def written(cells, tmp_path):
    paths = {}
    for model in ALL:
        paths[model.name] = tmp_path / f"{model.name}.h5ad"
        results.write(paths[model.name], model(k=K).fit(cells), cells)
    return paths


@pytest.mark.parametrize("name", KEYS)
def test_published_keys_and_no_expression(written, name):
    found = ad.read_h5ad(written[name])
    obsm, varm = KEYS[name]
    assert set(found.obsm) == obsm
    assert set(found.varm) == varm
    assert found.X is None
    assert META.get(name, "provenance") in found.uns
    assert results.check(written[name]) == []
    assert results.identify(found) == (name, K)


def test_what_was_written_is_what_the_model_found(cells, tmp_path):
    model = CAENMF2(k=K).fit(cells)
    results.write(tmp_path / "m.h5ad", model, cells, donor_U=True)
    found = results.read(tmp_path / "m.h5ad")
    H = cells.X @ model.W_.T
    latent = H * np.stack([np.diag(model.U_[list(model.donors_).index(d)] @ model.W_.T) for d in cells.obs["donor_id"]])
    np.testing.assert_allclose(found.obsm["H_shared_k4"], H, rtol=1e-5)
    np.testing.assert_allclose(found.obsm["H_cond_latent_k4"], latent, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.obsm["H_concat_full_k4"], np.hstack([H, latent]), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.varm["W_concat_k4"], model.W_.T)
    np.testing.assert_array_equal(found.uns["U_donor_k4"], model.U_)


def test_latent_of_model_1_is_the_usage_of_the_donor_profile(cells, tmp_path):
    model = CAENMF1(k=K).fit(cells)
    results.write(tmp_path / "m.h5ad", model, cells)
    C = pd.get_dummies(cells.obs["donor_id"])[list(model.donors_)].to_numpy(float)
    latent = results.read(tmp_path / "m.h5ad").obsm["H_cond_latent_k4"]
    np.testing.assert_allclose(latent, C @ model.U_ @ model.W_.T, rtol=1e-5, atol=1e-7)


def test_provenance_tells_labels_input_and_settings(cells, tmp_path):
    for gamma, used in ((1e-3, True), (0.0, False)):  # the published weight, and none
        results.write(tmp_path / "m.h5ad", CAENMF1(k=K, strength=0, gamma=gamma).fit(cells), cells)
        made = results.read(tmp_path / "m.h5ad").uns["provenance"]
        assert made["cell_type_in_training"] == used
        assert made["parameters"]["gamma"] == gamma
        assert made["input"]["sha256"] == "0" * 64
        assert made["parameters"]["seed"] == 42
        assert results.read_embeddings([tmp_path / "m.h5ad"]).used_cell_type == {"CAE_NMF1": used}


@pytest.mark.parametrize("name", KEYS)
def test_published_keys_and_nothing_more_are_enough(written, tmp_path, name):
    found = ad.read_h5ad(written[name])
    del found.uns["provenance"]
    found.obs["cell_type"] = found.obs["cell_type"].astype(str)
    found.write_h5ad(tmp_path / "published.h5ad")
    embeddings = results.read_embeddings([tmp_path / "published.h5ad"])
    assert list(embeddings.H) == [name]
    assert embeddings.H[name].shape == (60, K)
    assert embeddings.used_cell_type[name] == (name == "CAE_NMF1")
    assert embeddings.obs["cell_type"].dtype == "category"


def test_models_come_in_the_fixed_order(written):
    embeddings = results.read_embeddings([written[name] for name in reversed(KEYS)])
    assert list(embeddings.H) == ["CAE_NMF1", "CAE_NMF2", "AE_NMF", "Base_NMF"]


def test_history_is_relative_to_the_norm_of_a_cell(written, cells):
    history = results.history(list(written.values()))
    norm = (cells.X.toarray() ** 2).sum() / cells.n_obs
    np.testing.assert_allclose(history["relative_loss"], history["loss"] / norm, rtol=1e-6)
    assert (history["Model"] == "Base_NMF").sum() == 1
    assert set(history["Model"]) == set(KEYS)


def change(path, edit):
    found = ad.read_h5ad(path)
    edit(found)
    found.write_h5ad(path)
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: f.obsm.pop("H_shared_k4"), "obsm has no 'H_shared_k4'"),
        (lambda f: f.varm.pop("W_tied_k4"), "exactly one of .*W_tied_k<k>"),
        (lambda f: f.obs.pop("donor_id"), "obs has no column 'donor_id'"),
        (lambda f: f.obsm.update(H_shared_k4=f.obsm["H_shared_k4"][:, :2]), r"of shape \(60, 2\): 4 columns"),
        (lambda f: f.obsm["H_shared_k4"].__setitem__((0, 0), np.nan), "holds 1 values that are NaN or infinite"),
        (lambda f: f.obsm["H_shared_k4"].__setitem__((0, 0), -1), "holds 1 negative values"),
        (lambda f: f.obsm.update(H_shared_k4=f.obs[["donor_id"] * 4].to_numpy().astype("S9")), "numbers are expected"),
        (lambda f: f.uns["provenance"].pop("loss_history"), r"uns\['provenance'\] has no 'loss_history'"),
        (lambda f: setattr(f, "X", np.ones(f.shape)), "a results-only file has none"),
    ],
)
def test_faults_are_named(written, edit, message):
    path = change(written["AE_NMF"], edit)
    assert len(results.check(path)) == 1
    with pytest.raises(ValueError, match=message):
        results.read(path)


def test_check_tells_what_cannot_be_read(tmp_path):
    assert "is not there" in results.check(tmp_path / "none.h5ad")[0]


def test_files_of_other_cells_are_refused(written):
    def reverse(found):
        found.obs_names = found.obs_names[::-1]

    change(written["AE_NMF"], reverse)
    with pytest.raises(ValueError, match="60 are in both in another order"):
        results.read_embeddings(list(written.values()))


def test_files_with_other_labels_are_refused(written):
    def swap(found):
        found.obs["cell_type"] = found.obs["cell_type"].map({"T": "B", "B": "T"})

    change(written["AE_NMF"], swap)
    with pytest.raises(ValueError, match=r"differ in obs\['cell_type'\] for 60 of 60 cells"):
        results.read_embeddings(list(written.values()))


def test_two_files_of_one_model_and_two_ranks_are_refused(written, cells, tmp_path):
    with pytest.raises(ValueError, match="are both of AE_NMF"):
        results.read_embeddings([written["AE_NMF"], written["AE_NMF"]])
    results.write(tmp_path / "k3.h5ad", AENMF(k=3).fit(cells), cells)
    with pytest.raises(ValueError, match="is of rank 3"):
        results.read_embeddings([written["Base_NMF"], tmp_path / "k3.h5ad"])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    results.write_table(pd.DataFrame({"a": [1]}), path)
    with pytest.raises(RuntimeError, match="power cut"), files.atomic(path) as partial:
        partial.write_text("half a ta")
        raise RuntimeError("power cut")
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "a\n1\n"


def test_a_file_whose_cells_lack_a_type_is_read_and_one_that_lacks_a_donor_is_not(written, caplog):
    caplog.set_level("INFO")
    for label in ("cell_type", "donor_id"):
        change(
            written["AE_NMF"], lambda f, label=label: f.obs.insert(0, label, f.obs.pop(label).mask(np.arange(60) < 3))
        )
        if label == "cell_type":
            obs = results.read_embeddings([written["AE_NMF"]]).obs
            assert obs["cell_type"].isna().sum() == 3
            assert "3 of 60 cells have no cell_type: left out of the scores against it" in caplog.text
    assert results.check(written["AE_NMF"]) == ["obs['donor_id'] is empty for 3 of 60 cells"]


def test_labels_of_the_training_are_told(cells, tmp_path):
    for model, labels in ((CAENMF1, "clusters"), (CAENMF2, "none"), (CAENMF1, "cell_type")):
        path = tmp_path / f"{model.name}.h5ad"
        fitted = model(k=K, strength=0.5, labels=labels).fit(cells)
        results.write(path, fitted, cells)
        embeddings = results.read_embeddings([path])
        assert embeddings.groups == {model.name: labels}
        assert embeddings.used_cell_type == {model.name: labels == "cell_type"}
        told = embeddings.annotate(pd.DataFrame({"Model": [model.name] * 2, "NMI": 1.0}))
        assert told["groups_in_training"].tolist() == [labels] * 2
        kept = embeddings.obs.get("groups_in_training")
        assert (kept is not None) == (labels == "clusters")
        assert kept is None or kept.tolist() == fitted.groups_.tolist()


def test_models_without_penalties_compare_no_groups(written, cells, tmp_path):
    by_default = dict.fromkeys(("CAE_NMF1", "CAE_NMF2"), "cell_type") | dict.fromkeys(("AE_NMF", "Base_NMF"), "none")
    assert results.read_embeddings(list(written.values())).groups == by_default
    results.write(tmp_path / "m.h5ad", CAENMF2(k=K, strength=0).fit(cells), cells)
    assert results.read_embeddings([tmp_path / "m.h5ad"]).groups == {"CAE_NMF2": "none"}
