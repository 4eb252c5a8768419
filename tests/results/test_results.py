"""Tests of results files: published keys, written values, faults, and reading several models."""

import shutil
import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import tiny_cells

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF, results
from aenmf_lib.data import files
from aenmf_lib.data.streaming import CellStream

K = 4
# the keys, spelled out again so that a change of the schema fails here
KEYS = {
    "CAE_NMF1": ({"H_shared_k4", "H_cond_latent_k4", "H_concat_full_k4"}, {"W_concat_k4", "U_concat_gene_k4"}),
    "CAE_NMF2": ({"H_shared_k4", "H_cond_latent_k4", "H_concat_full_k4"}, {"W_concat_k4", "donor_part_k4"}),
    "AE_NMF": ({"H_shared_k4"}, {"W_tied_k4"}),
    "Base_NMF": ({"H_sklearn_nmf_k4"}, {"W_sklearn_nmf_k4"}),
    "Untied_AE_NMF": ({"H_untied_k4"}, {"W_untied_k4", "E_untied_k4", "U_untied_k4", "gene_weights"}),
}
META = {"CAE_NMF1": "cond_meta_concat_k4", "CAE_NMF2": "cond_meta_concat_k4", "Base_NMF": "sklearn_nmf_k4"}
META |= {"Untied_AE_NMF": "untied_meta_k4"}


@pytest.fixture(scope="module")
def cells():
    cells = tiny_cells()
    cells.X = cells.X.astype(np.float32)
    cells.uns["input"] = {"path": "filtered.h5ad", "sha256": "0" * 64}
    return cells


@pytest.fixture(scope="module")
def fitted(cells):
    return {model.name: model(k=K).fit(cells) for model in (CAENMF1, CAENMF2, AENMF, BaseNMF, UntiedAENMF)}


@pytest.fixture(scope="module")
def originals(fitted, cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for name, model in fitted.items():
        results.write(folder / f"{name}.h5ad", model, cells, donor_U=True)
    return folder


@pytest.fixture
def written(originals, tmp_path):
    """Paths of one results file per model, which a test may change."""
    return {name: shutil.copy(originals / f"{name}.h5ad", tmp_path) for name in KEYS}


def edit_file(path, edit):
    """Apply `edit` to the contents of an .h5ad file."""
    found = ad.read_h5ad(path)
    edit(found)
    found.write_h5ad(path)


# ---- writing
@pytest.mark.parametrize("name", KEYS)
def test_file_has_the_published_keys_and_no_expression(written, name):
    found = ad.read_h5ad(written[name])
    obsm, varm = KEYS[name]
    assert set(found.obsm) == obsm
    assert set(found.varm) == varm
    assert found.X is None
    assert META.get(name, "provenance") in found.uns
    assert results.check(written[name]) == []
    assert results.identify(found) == (name, K)


def test_values_of_model_2_are_written_and_read_back(written, fitted, cells):
    model, found = fitted["CAE_NMF2"], results.read(written["CAE_NMF2"])
    H = cells.X @ model.W_.T
    latent = H * np.stack([np.diag(model.U_[list(model.donors_).index(d)] @ model.W_.T) for d in cells.obs["donor_id"]])
    np.testing.assert_allclose(found.obsm["H_shared_k4"], H, rtol=1e-5)
    np.testing.assert_allclose(found.obsm["H_cond_latent_k4"], latent, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.obsm["H_concat_full_k4"], np.hstack([H, latent]), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.varm["W_concat_k4"], model.W_.T)
    np.testing.assert_array_equal(found.uns["U_donor_k4"], model.U_)


def test_latent_of_model_1_is_the_usage_of_the_donor_profile(written, fitted, cells):
    model = fitted["CAE_NMF1"]
    C = pd.get_dummies(cells.obs["donor_id"])[list(model.donors_)].to_numpy(float)
    latent = results.read(written["CAE_NMF1"]).obsm["H_cond_latent_k4"]
    np.testing.assert_allclose(latent, C @ model.U_ @ model.W_.T, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("gamma", "used"), [(1e-3, True), (0.0, False)], ids=["published weight", "no penalty"])
def test_provenance_records_labels_input_and_parameters(cells, tmp_path, gamma, used):
    results.write(tmp_path / "m.h5ad", CAENMF1(k=K, strength=0, gamma=gamma).fit(cells), cells)
    provenance = results.read(tmp_path / "m.h5ad").uns["provenance"]
    assert provenance["cell_type_in_training"] == used
    assert provenance["parameters"]["gamma"] == gamma
    assert provenance["input"]["sha256"] == "0" * 64
    assert provenance["parameters"]["seed"] == 42
    assert results.read_embeddings([tmp_path / "m.h5ad"]).run.used_cell_type == {"CAE_NMF1": used}


@pytest.mark.parametrize("name", KEYS)
def test_provenance_has_the_same_keys_for_all_models(written, name):
    provenance = results.read(written[name]).uns["provenance"]
    keys = "model parameters cell_type_in_training penalty input source cells loss_history sq_norm_per_cell n_iter stop"
    keys += " second_moment fit_seconds starts stability device fit_keys n_cells"
    assert set(provenance) == {*keys.split(), *results.run_info()}
    assert bool(provenance["penalty"]) == (name not in ("AE_NMF", "Base_NMF"))
    assert (len(provenance["starts"]) > 0) == (len(provenance["stability"]) > 0) == (name != "Base_NMF")


def test_write_removes_the_checkpoints_of_the_fit(cells, tmp_path):
    out = tmp_path / "m.h5ad"
    model = AENMF(k=K).fit(cells, checkpoint=results.checkpoint_path(out))
    results.checkpoint_path(out).touch()
    results.write(out, model, cells)
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5ad"]


@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize("name", KEYS)
def test_stream_gives_the_same_file_as_cells_in_memory(fitted, cells, tmp_path, name, float16):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for source, block in (("memory", 0), ("stream", 7)):
        of = CellStream(tmp_path / "cells.h5ad", block=block) if block else cells
        results.write(tmp_path / f"{source}.h5ad", fitted[name], of, float16=float16)
        assert results.check(tmp_path / f"{source}.h5ad") == []
    memory, stream = (results.read(tmp_path / f"{source}.h5ad") for source in ("memory", "stream"))
    assert set(memory.obsm) == set(stream.obsm) == KEYS[name][0]
    for key, H in memory.obsm.items():
        assert stream.obsm[key].dtype == H.dtype == (np.float16 if float16 else np.float32)
        np.testing.assert_allclose(stream.obsm[key], H, rtol=1e-3 if float16 else 1e-6)
    for key, values in memory.varm.items():
        np.testing.assert_allclose(stream.varm[key], values, rtol=1e-6)


@pytest.mark.parametrize("name", KEYS)
def test_float16_rounds_the_embeddings_and_nothing_else(fitted, written, cells, tmp_path, name):
    results.write(path := tmp_path / "half.h5ad", fitted[name], cells, donor_U=True, float16=True)
    whole, half = results.read(written[name]), results.read(path)
    for key, H in whole.obsm.items():
        np.testing.assert_allclose(
            half.obsm[key], H, rtol=2**-11, atol=2**-25
        )  # 11 significant bits; below 2**-14, steps of 2**-24
    for key, values in whole.varm.items():
        np.testing.assert_array_equal(half.varm[key], values)
    H = results.read_embeddings([path]).H[name]
    assert H.dtype == np.float32
    np.testing.assert_array_equal(H, results.embedding(path)[2])
    model = results.load_model(path)
    np.testing.assert_array_equal(model.W_, fitted[name].W_)
    assert model.embeddings(cells)["shared"].dtype == np.float32


def test_values_too_large_for_float16_raise_and_leave_no_file(cells, tmp_path):
    model = AENMF(k=K, max_iter=3).fit(cells)
    model.W_ = model.W_ * np.float32(1e6)
    with pytest.raises(ValueError, match=r"obsm\['H_shared_k4'\] .*largest value of float16 is 65504"):
        results.write(tmp_path / "m.h5ad", model, cells, float16=True)
    assert not list(tmp_path.iterdir())


def test_writing_and_checking_a_stream_uses_less_memory_than_its_embeddings(tmp_path):
    k, cells = 100, tiny_cells(n_cells=24_000, n_genes=120)
    cells.X = cells.X.astype(np.float32)
    model = AENMF(k=k, max_iter=1).fit(cells[:2000].copy())
    cells.write_h5ad(tmp_path / "cells.h5ad")
    stream = CellStream(tmp_path / "cells.h5ad", block=500)
    tracemalloc.start()
    results.write(tmp_path / "m.h5ad", model, stream)
    assert results.check(tmp_path / "m.h5ad") == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = 4 * k * stream.n_obs
    assert (tmp_path / "m.h5ad").stat().st_size > size
    assert peak < size
    np.testing.assert_allclose(
        results.read(tmp_path / "m.h5ad").obsm["H_shared_k100"], model.transform(cells), rtol=1e-5
    )


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "table.csv"
    results.write_table(pd.DataFrame({"a": [1]}), path)
    with pytest.raises(RuntimeError, match="power cut"), files.atomic(path) as partial:
        partial.write_text("half a ta")
        raise RuntimeError("power cut")
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "a\n1\n"


# ---- reading
def test_untied_model_without_a_penalty_has_no_profiles_of_donors(cells, tmp_path):
    results.write(path := tmp_path / "m.h5ad", UntiedAENMF(k=K, strength=0).fit(cells), cells)
    found = results.read(path)
    assert set(found.varm) == {"W_untied_k4", "E_untied_k4", "gene_weights"}
    assert len(found.uns["untied_meta_k4"]["donors"]) == 0
    assert not found.uns["provenance"]["cell_type_in_training"]
    edit_file(path, lambda f: f.varm.update(U_untied_k4=np.ones((40, 3))))
    assert results.check(path) == ["varm['U_untied_k4'] has shape (40, 3); 40 × 0 values are expected"]


def test_untied_model_without_provenance_is_refused(written):
    edit_file(written["Untied_AE_NMF"], lambda found: found.uns.pop("provenance"))
    assert results.check(written["Untied_AE_NMF"]) == ["uns has no 'provenance'"]


@pytest.mark.parametrize("name", [name for name in KEYS if name != "Untied_AE_NMF"])
def test_published_keys_without_provenance_are_enough(written, name):
    def remove_provenance(found):
        del found.uns["provenance"]
        found.obs["cell_type"] = found.obs["cell_type"].astype(str)

    edit_file(written[name], remove_provenance)
    embeddings = results.read_embeddings([written[name]])
    assert list(embeddings.H) == [name]
    assert embeddings.H[name].shape == (60, K)
    assert embeddings.run.used_cell_type[name] == (name == "CAE_NMF1")
    assert embeddings.obs["cell_type"].dtype == "category"
    with pytest.raises(ValueError, match="No loss history"):
        results.history([written[name]])


def test_models_are_returned_in_the_fixed_order(written):
    embeddings = results.read_embeddings([written[name] for name in reversed(KEYS)])
    assert list(embeddings.H) == ["CAE_NMF1", "CAE_NMF2", "AE_NMF", "Base_NMF", "Untied_AE_NMF"]


def test_history_is_relative_to_the_squared_norm_per_cell(written, cells):
    history = results.history(list(written.values()))
    norm = (cells.X.toarray() ** 2).sum() / cells.n_obs
    np.testing.assert_allclose(history["relative_loss"], history["loss"] / norm, rtol=1e-6)
    assert (history["Model"] == "Base_NMF").sum() == 1
    assert set(history["Model"]) == set(KEYS)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: f.obsm.pop("H_shared_k4"), "obsm has no 'H_shared_k4'"),
        (lambda f: f.varm.pop("W_tied_k4"), "is not a results file: .* exactly one of .*W_tied_k<k>"),
        (lambda f: f.obsm.update(H_shared_k4=f.obsm["H_shared_k4"][:, :2]), r"has shape \(60, 2\); 60 × 4"),
        (lambda f: f.obsm["H_shared_k4"].__setitem__((0, 0), np.nan), "contains 1 values that are NaN or infinite"),
        (lambda f: f.obsm["H_shared_k4"].__setitem__((0, 0), -1), "contains 1 negative values"),
        (lambda f: f.obsm.update(H_shared_k4=f.obs[["donor_id"] * 4].to_numpy().astype("S9")), "numbers are expected"),
        (lambda f: f.uns["provenance"].pop("loss_history"), r"uns\['provenance'\] has no 'loss_history'"),
        (lambda f: f.uns.update(provenance="me"), r"uns\['provenance'\] is a str; a group .* is expected"),
        (
            lambda f: f.uns["provenance"].update(loss_history="low"),
            r"\['loss_history'\] is 'low', not a list",
        ),
        (lambda f: f.uns["provenance"].update(n_cells=-3), r"\['n_cells'\] is '-3', not a whole number of at least 1"),
        (lambda f: f.varm.update(W_tied_k4=f.varm["W_tied_k4"].astype("i8")), "type int64; float32 or float64 are"),
        (lambda f: f.uns["provenance"].update(parameters=1), r"\['parameters'\] is not a group"),
        (lambda f: setattr(f, "X", np.ones(f.shape)), "a results file must have no X"),
    ],
)
def test_invalid_file_raises_and_reports_its_fault(written, edit, message):
    edit_file(written["AE_NMF"], edit)
    assert len(results.check(written["AE_NMF"])) == 1
    with pytest.raises(ValueError, match=message):
        results.read(written["AE_NMF"])


@pytest.mark.parametrize("label", ["donor_id", "cell_type"])
def test_scoring_a_file_without_a_label_names_the_file_and_the_column(written, label):
    edit_file(written["AE_NMF"], lambda found: found.obs.pop(label))
    assert results.check(written["AE_NMF"]) == []
    with pytest.raises(ValueError, match=rf"AE_NMF\.h5ad has no obs column '{label}'.*{label.split('_')[0]}.*_key="):
        results.read_embeddings([written["AE_NMF"]])


@pytest.mark.parametrize(
    ("name", "key", "edit", "message"),
    [
        ("CAE_NMF1", "donor_overlap_k4", lambda a: a * np.nan, r"uns\['donor_overlap_k4'\] contains .* NaN"),
        ("CAE_NMF1", "donor_overlap_k4", lambda a: a - 9, "negative values"),
        ("CAE_NMF1", "donor_overlap_k4", lambda a: a[:, :1], r"has shape \(3, 1\); 3 × 4 values are expected"),
        ("CAE_NMF2", "donor_overlap_k4", lambda a: a[:-1], r"has shape \(2, 4\); 3 × 4 values are expected"),
        ("CAE_NMF2", "U_donor_k4", lambda a: a * np.nan, r"uns\['U_donor_k4'\] contains .* NaN"),
        ("CAE_NMF2", "U_donor_k4", lambda a: a[:, :3], r"has shape \(3, 3, 40\); 3 × 4 × 40 values are expected"),
    ],
)
def test_invalid_donor_part_is_a_fault_and_is_not_loaded(written, name, key, edit, message):
    edit_file(written[name], lambda found: found.uns.update({key: edit(found.uns[key])}))
    for call in (results.read, results.load_model):
        with pytest.raises(ValueError, match=message):
            call(written[name])


@pytest.mark.parametrize("value", [None, 3, ["m.h5ad"]])
def test_value_that_is_no_path_is_refused(value):
    for call in (results.read, results.load_model):
        with pytest.raises(TypeError, match=rf"Got .*{type(value).__name__}. Expected the path of a results file"):
            call(value)


def test_other_file_is_said_to_be_no_results_file(cells, tmp_path, monkeypatch):
    cells.write_h5ad(tmp_path / "mycells.h5ad")
    monkeypatch.setattr(files, "read_h5ad", lambda path: pytest.fail("a large file would be read"))
    (fault,) = results.check(tmp_path / "mycells.h5ad")
    assert fault.startswith("is not a results file: The varm keys (none) belong to no model")
    with pytest.raises(ValueError, match=r"mycells\.h5ad is not a results file: "):
        results.read(tmp_path / "mycells.h5ad")


def test_check_reports_a_missing_file(tmp_path):
    assert "File not found" in results.check(tmp_path / "none.h5ad")[0]


def test_unknown_embedding_raises(written):
    with pytest.raises(ValueError, match=r"AE_NMF has no embedding 'concat_full'\. Choose one of: shared"):
        results.embedding(written["AE_NMF"], "concat_full")


def test_cells_in_another_order_raise(written):
    edit_file(written["AE_NMF"], lambda found: setattr(found, "obs_names", found.obs_names[::-1]))
    with pytest.raises(ValueError, match="60 are in both in another order"):
        results.read_embeddings(list(written.values()))


def test_different_labels_raise(written):
    def swap(found):
        found.obs["cell_type"] = found.obs["cell_type"].map({"T": "B", "B": "T"})

    edit_file(written["AE_NMF"], swap)
    with pytest.raises(ValueError, match=r"differ in obs\['cell_type'\] for 60 of 60 cells"):
        results.read_embeddings(list(written.values()))


def test_two_files_of_one_model_or_of_two_ranks_raise(written, cells, tmp_path):
    with pytest.raises(ValueError, match="are both of AE_NMF"):
        results.read_embeddings([written["AE_NMF"], written["AE_NMF"]])
    results.write(tmp_path / "k3.h5ad", AENMF(k=3).fit(cells), cells)
    with pytest.raises(ValueError, match="is of rank 3"):
        results.read_embeddings([written["Base_NMF"], tmp_path / "k3.h5ad"])
    for function in (results.read_embeddings, results.history):
        with pytest.raises(ValueError, match="No results file was given"):
            function([])


def test_cells_without_a_type_are_read_and_cells_without_a_donor_are_a_fault(written, caplog):
    def remove_labels(label):
        edit_file(written["AE_NMF"], lambda f: f.obs.insert(0, label, f.obs.pop(label).mask(np.arange(60) < 3)))

    caplog.set_level("INFO")
    remove_labels("cell_type")
    assert results.read_embeddings([written["AE_NMF"]]).obs["cell_type"].isna().sum() == 3
    assert "3 of 60 cells have no cell_type: left out of the scores against it" in caplog.text
    remove_labels("donor_id")
    assert results.check(written["AE_NMF"]) == []
    with pytest.raises(ValueError, match=r"AE_NMF\.h5ad: obs\['donor_id'\] is empty for 3 of 60 cells"):
        results.read_embeddings([written["AE_NMF"]])


@pytest.mark.parametrize(("strength", "used"), [(0.5, True), (0, False)])
def test_use_of_cell_types_in_training_is_recorded_and_added_to_tables(cells, tmp_path, strength, used):
    results.write(tmp_path / "m.h5ad", CAENMF2(k=K, strength=strength).fit(cells), cells)
    embeddings = results.read_embeddings([tmp_path / "m.h5ad"])
    assert embeddings.run == results.RunInfo(K, 60, {"CAE_NMF2": used})
    table = embeddings.annotate(pd.DataFrame({"Model": ["CAE_NMF2"] * 2, "NMI": 1.0}))
    assert table["cell_type_in_training"].tolist() == [used] * 2
