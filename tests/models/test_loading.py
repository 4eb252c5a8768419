"""A model that is loaded from its file is the model that wrote the file."""

import shutil
import warnings
from dataclasses import asdict

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_cells
from sklearn.decomposition import NMF
from sklearn.exceptions import NotFittedError

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF, results
from aenmf_lib.data import files
from aenmf_lib.models import loading

K = 4
FITS = {
    "AE_NMF": (AENMF, {}),
    "AE_NMF starts": (AENMF, {"n_starts": 3}),
    "AE_NMF weights": (AENMF, {"gene_weights": "shared"}),
    "CAE_NMF1": (CAENMF1, {}),
    "CAE_NMF1 published": (CAENMF1, {"preset": "published"}),
    "CAE_NMF1 weights": (CAENMF1, {"gene_weights": "shared"}),
    "CAE_NMF2": (CAENMF2, {}),
    "CAE_NMF2 weights": (CAENMF2, {"gene_weights": "shared"}),
    "Base_NMF": (BaseNMF, {"seed": 7, "tol": 1e-3}),
    "Untied_AE_NMF": (UntiedAENMF, {}),
    "Untied_AE_NMF weights": (UntiedAENMF, {"gene_weights": "shared"}),
    "Untied_AE_NMF no penalty": (UntiedAENMF, {"strength": 0.0}),
}
FITTED = [(name, dtype) for name in FITS for dtype in ("float32", "float64")]
pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of iterations")


def make_cells(dtype="float32"):
    cells = tiny_cells()
    cells.X = cells.X.astype(dtype)
    cells.var_names = [f"ENSG{i:011d}" for i in range(40)]
    cells.var["feature_name"] = [f"S{i}" for i in range(39)] + [""]
    return cells


@pytest.fixture(scope="module")
def fitted():
    return {
        (name, dtype): model(k=K, max_iter=3, **settings).fit(make_cells(dtype))
        for name, (model, settings) in FITS.items()
        for dtype in ("float32", "float64")
    }


@pytest.fixture(scope="module")
def originals(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for (name, dtype), model in fitted.items():
        results.write(folder / f"{name}.{dtype}.h5ad", model, make_cells(dtype))
    return folder


@pytest.fixture
def written(originals, tmp_path):
    """Path of a copy of a results file, which a test may change."""
    return lambda name, dtype="float32": shutil.copy(originals / f"{name}.{dtype}.h5ad", tmp_path)


def edit_file(path, edit):
    found = ad.read_h5ad(path)
    edit(found)
    found.write_h5ad(path)
    return path


def assert_same_attributes(found, expected, *, but=()):
    assert type(found) is type(expected)
    assert asdict(found) == asdict(expected)
    assert {type(a) for a in asdict(found).values()} == {type(a) for a in asdict(expected).values()}
    for name in [name for name in vars(expected) if name.endswith("_") and name not in (*but, "checkpoint_files_")]:
        one, other = getattr(found, name), getattr(expected, name)
        if isinstance(other, pd.DataFrame):
            pd.testing.assert_frame_equal(one, other)
        elif isinstance(other, pd.Series):
            pd.testing.assert_series_equal(one, other, check_names=False)
        elif isinstance(other, np.ndarray):
            assert one.dtype == other.dtype, name
            np.testing.assert_array_equal(one, other, err_msg=name)
        else:
            assert type(one) is type(other), name
            assert one.equals(other) if isinstance(other, pd.Index) else one == other, name


# ---- the same model
@pytest.mark.parametrize(("name", "dtype"), FITTED)
def test_loaded_model_equals_the_model_that_wrote_the_results(fitted, originals, name, dtype):
    expected, cells = fitted[name, dtype], make_cells(dtype)
    found = results.load_model(originals / f"{name}.{dtype}.h5ad")
    # U of model 2 is not in the file; embeddings are stored in float32
    assert_same_attributes(found, expected, but=("U_",) if "NMF2" in name else ("H_",) if dtype == "float64" else ())
    new = cells[10:30].copy()
    np.testing.assert_array_equal(found.transform(new), expected.transform(new))
    np.testing.assert_array_equal(found.transform(cells), expected.transform(cells))
    assert found.summary() == expected.summary()
    if name == "Base_NMF":
        np.testing.assert_array_equal(found.embeddings(cells)["shared"], expected.H_.astype(np.float32))
        return
    for role, H in expected.embeddings(new).items():
        np.testing.assert_array_equal(found.embeddings(new)[role], H)
        assert found.embeddings(new)[role].dtype == H.dtype


@pytest.mark.parametrize(("name", "dtype"), FITTED)
def test_loaded_model_equals_the_saved_model(fitted, tmp_path, name, dtype):
    expected, cells = fitted[name, dtype], make_cells(dtype)
    expected.save(tmp_path / "m.h5ad")
    assert results.check(tmp_path / "m.h5ad") == []
    found = results.load_model(tmp_path / "m.h5ad")
    assert_same_attributes(found, expected)
    assert found.objective(cells) == expected.objective(cells)
    np.testing.assert_array_equal(found.refit(cells), expected.refit(cells))
    for role, H in expected.embeddings(cells).items():
        np.testing.assert_array_equal(found.embeddings(cells)[role], H)


def test_usages_of_loaded_base_nmf_are_those_of_the_fitted_object_of_scikit_learn(originals):
    X = make_cells().X
    nmf = NMF(K, init="nndsvda", tol=1e-3, max_iter=3, random_state=7).fit(X)
    np.testing.assert_array_equal(
        results.load_model(originals / "Base_NMF.float32.h5ad").transform(X), nmf.transform(X)
    )
    long = BaseNMF(k=K, tol=0.1, max_iter=500).fit(X)  # stops by tol, in the fit and in transform
    nmf = NMF(K, init="nndsvda", tol=0.1, max_iter=500, random_state=42).fit(X)
    np.testing.assert_array_equal(long.transform(X), nmf.transform(X))


@pytest.mark.parametrize("name", FITS)
def test_results_of_a_loaded_model_equal_the_first_results(originals, tmp_path, name):
    first = originals / f"{name}.float32.h5ad"
    results.write(tmp_path / "again.h5ad", results.load_model(first), make_cells())
    a, b = ad.read_h5ad(first), ad.read_h5ad(tmp_path / "again.h5ad")
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    for part in ("obsm", "varm"):
        assert set(getattr(a, part)) == set(getattr(b, part))
        for key, values in getattr(a, part).items():
            np.testing.assert_array_equal(values, getattr(b, part)[key])
    for found in (a, b):
        for key in results.run_info():  # time, memory …
            del found.uns["provenance"][key]
    assert repr(a.uns) == repr(b.uns)


def test_model_2_with_stored_u_computes_its_objective_and_without_u_says_so(fitted, written, tmp_path):
    expected, cells = fitted["CAE_NMF2", "float32"], make_cells()
    results.write(tmp_path / "U.h5ad", expected, cells, donor_U=True)
    found = results.load_model(tmp_path / "U.h5ad")
    np.testing.assert_array_equal(found.U_, expected.U_)
    assert found.objective(cells) == expected.objective(cells)
    found = results.load_model(written("CAE_NMF2"))
    assert found.U_ is None
    for call in (
        lambda: found.objective(cells),
        lambda: results.write(tmp_path / "V.h5ad", found, cells, donor_U=True),
    ):
        with pytest.raises(ValueError, match=r"U of this (CAE_NMF2|model) is unknown.*donor_U="):
            call()
    new = cells.copy()
    new.obs["donor_id"] = "d9"
    with pytest.raises(ValueError, match="1 donors were not in the fit"):
        found.embeddings(new)


def test_columns_of_the_fit_are_those_of_the_cells_and_not_those_of_the_source(tmp_path):
    cells = make_cells()
    cells.uns["provenance"] = {"donor_key": "patient", "cell_type_key": "celltype"}  # as of the filter
    results.write(tmp_path / "m.h5ad", CAENMF1(k=K, max_iter=3).fit(cells), cells)
    found = results.load_model(tmp_path / "m.h5ad")
    assert (found.donor_key_, found.cell_type_key_) == ("donor_id", "cell_type")
    cells.obs["batch"] = cells.obs["donor_id"]
    results.write(tmp_path / "m.h5ad", CAENMF1(k=K, max_iter=3).fit(cells, donor_key="batch"), cells)
    assert results.load_model(tmp_path / "m.h5ad").donor_key_ == "batch"


def test_cells_are_not_read(written, monkeypatch):
    monkeypatch.setattr(files, "read_h5ad", lambda path: pytest.fail("the embeddings would be read"))
    path, read, elements = written("CAE_NMF1"), files.read_element, []
    monkeypatch.setattr(files, "read_element", lambda file, name, path: elements.append(name) or read(file, name, path))
    results.load_model(path)
    assert elements == ["var", "varm", "uns"]


def test_gpu_that_this_machine_does_not_have_becomes_cpu(written, monkeypatch, caplog):
    path = edit_file(written("AE_NMF"), lambda found: found.uns["provenance"]["parameters"].update(device="cuda:3"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert results.load_model(path).device == "cpu"
    assert "device='cuda:3' is not available" in caplog.text
    monkeypatch.setattr(loading, "check_device", lambda device: device)
    assert results.load_model(path).device == "cuda:3"


# ---- files without provenance
@pytest.mark.parametrize("name", ["AE_NMF", "CAE_NMF1", "CAE_NMF2", "Base_NMF"])
def test_file_with_published_keys_only_gives_programs_and_published_parameters(fitted, written, name):
    def publish(found):
        found.uns = {key: "" for key in found.uns if key.startswith(("cond_meta", "sklearn"))}
        found.obs["donor_id"] = found.obs["donor_id"].astype(str)
        if name != "Base_NMF":
            found.obs.index = [f"other{i}" for i in range(60)]

    expected, cells = fitted[name, "float32"], make_cells()
    found = results.load_model(edit_file(written(name), publish))
    preset = {} if name == "Base_NMF" else {"preset": "published"}
    assert found == type(expected)(k=K, **preset)
    assert found.n_cells_ == 60
    assert np.isnan(found.sq_norm_per_cell_)
    assert "unknown" in found.summary()
    np.testing.assert_array_equal(found.W_, expected.W_)
    if name != "Base_NMF":  # its usages depend on the settings of the fit
        np.testing.assert_array_equal(found.transform(cells), expected.transform(cells))
    if name == "CAE_NMF1":
        np.testing.assert_array_equal(found.U_, expected.U_)
        for role, H in expected.embeddings(cells).items():
            np.testing.assert_array_equal(found.embeddings(cells)[role], H)
    if name == "CAE_NMF2":
        with pytest.raises(ValueError, match="U of this CAE_NMF2 is unknown, because the file"):
            found.embeddings(cells)


def test_file_of_an_earlier_version_without_the_later_entries_is_loaded(fitted, written):
    def make_old(found):
        del found.uns["donor_overlap_k4"], found.uns["provenance"]["fit_keys"], found.uns["provenance"]["n_cells"]

    found, expected = results.load_model(edit_file(written("CAE_NMF1"), make_old)), fitted["CAE_NMF1", "float32"]
    assert_same_attributes(found, expected)


@pytest.mark.parametrize("labels", ["cell_type", "clusters", "none"])
@pytest.mark.parametrize("name", ["CAE_NMF1", "CAE_NMF2"])
def test_file_with_parameters_of_an_earlier_version_is_loaded(fitted, written, caplog, name, labels):
    """labels='none' and 'clusters' set gamma of model 1 to 0; 'clusters' also added a column."""
    caplog.set_level("INFO")

    def make_old(found):
        old = {"labels": labels}
        if name == "CAE_NMF1":
            old |= {"invariance": "published", "gamma": 1e-3 if labels == "cell_type" else 0.0}
        found.uns["provenance"]["parameters"].update(old)
        found.uns["cond_meta_concat_k4"].update(old)
        found.obs["groups_in_training"] = "0"

    path, cells = edit_file(written(name), make_old), make_cells()
    found, expected = results.load_model(path), fitted[name, "float32"]
    assert caplog.text.count("these parameters are ignored") == 1
    assert f"labels={labels!r} (now always 'cell_type')" in caplog.text
    assert_same_attributes(found, expected, but=("U_",) if name == "CAE_NMF2" else ())
    np.testing.assert_array_equal(found.transform(cells), expected.transform(cells))
    assert results.check(path) == []
    np.testing.assert_array_equal(results.read_embeddings([path]).H[name], expected.transform(cells).astype(np.float32))


def test_weights_given_in_an_earlier_version_are_kept(written):
    def make_old(found):
        found.uns["provenance"]["parameters"].update(strength=0.0, gamma=30.0, invariance="centered")
        found.uns["provenance"]["penalty"].update(gamma=30.0, centered=True)

    found = results.load_model(edit_file(written("CAE_NMF1"), make_old))
    assert (found.gamma, found.penalty_.gamma, found.penalty_.centered) == (30, 30, True)


# ---- files that are no model
def test_saved_model_has_no_embedding_and_says_what_to_do(fitted, tmp_path):
    fitted["AE_NMF", "float32"].save(tmp_path / "m.h5ad")
    for call in (results.embedding, lambda path: results.read_embeddings([path])):
        with pytest.raises(ValueError, match=r"has no embedding: it is a model without cells.*results\.write\(new"):
            call(tmp_path / "m.h5ad")
    assert len(results.history([tmp_path / "m.h5ad"])) == len(fitted["AE_NMF", "float32"].loss_history_)


@pytest.mark.parametrize("missing", ["n_cells", ""])
def test_model_without_cells_and_without_their_number_is_refused(fitted, tmp_path, missing):
    fitted["AE_NMF", "float32"].save(path := tmp_path / "m.h5ad")
    edit_file(path, lambda f: f.uns["provenance"].pop(missing) if missing else f.uns.pop("provenance"))
    with pytest.raises(ValueError, match=r"has no cells and no uns/provenance/n_cells.*model\.save"):
        results.load_model(path)


@pytest.mark.parametrize("model", [AENMF, CAENMF2, BaseNMF])
def test_unfitted_model_is_not_saved(model, tmp_path):
    with pytest.raises(NotFittedError, match="Call fit first"):
        model(k=K).save(tmp_path / "m.h5ad")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda f: f.uns["provenance"]["parameters"].update(momentum=0.9),
            r"has parameters that AE_NMF does not have \(momentum\); the version .* is [0-9.]+.* Install that version",
        ),
        (lambda f: f.uns["provenance"].update(penalty={"a": 1}), r"penalty .* unknown \(a, centered,"),
        (lambda f: f.uns["provenance"]["parameters"].update(k=5), "parameter k is 5, but its programs are of rank 4"),
        (lambda f: f.uns["provenance"]["parameters"].update(tol=-1.0), r"cannot be read \(tol=-1.0 is not valid"),
        (lambda f: f.varm.pop("gene_weights"), "varm has no 'gene_weights'"),
        (lambda f: f.varm["W_tied_k4"].__setitem__((0, 0), np.nan), "1 values that are NaN"),
        (lambda f: f.varm.update(W_tied_k4=f.varm["W_tied_k4"][:, :3]), r"has shape \(40, 3\); 40 × 4"),
        (lambda f: f.varm["W_tied_k4"].fill(0), "has no program with a weight above 0.* smaller penalties"),
        (lambda f: f.varm.pop("W_tied_k4"), "is not a results file"),
        (lambda f: f.uns["provenance"].pop("loss_history"), "has no 'loss_history'"),
        (lambda f: f.uns.update(provenance="me"), r"uns\['provenance'\] is a str"),
    ],
)
def test_damaged_file_raises_and_names_the_fault(written, edit, message):
    path = edit_file(written("AE_NMF weights"), edit)
    with pytest.raises(ValueError, match=message) as caught:
        results.load_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: f.varm.pop("E_untied_k4"), "varm has no 'E_untied_k4'"),
        (lambda f: f.varm["E_untied_k4"].__setitem__((0, 0), -1), r"\['E_untied_k4'\] contains 1 negative values"),
        (lambda f: f.varm["E_untied_k4"].fill(0), "has no program with a weight above 0"),
        (lambda f: f.varm.pop("U_untied_k4"), "varm has no 'U_untied_k4'"),
        (lambda f: f.uns["provenance"].pop("parameters"), "its provenance has no parameters of Untied_AE_NMF"),
        (lambda f: f.uns["provenance"].pop("penalty"), "its provenance has no penalty"),
        (lambda f: f.uns["provenance"]["penalty"].update(gamma=np.nan), "its penalty contains values that are NaN"),
        (lambda f: f.uns["provenance"]["parameters"].update(strength=0.0), "its strength is 0, but it lists 3 donors"),
    ],
)
def test_damaged_file_of_the_untied_model_is_refused(written, edit, message):
    with pytest.raises(ValueError, match=message):
        results.load_model(edit_file(written("Untied_AE_NMF"), edit))


def test_donor_part_of_other_donors_than_listed_is_refused(written):
    path = edit_file(written("CAE_NMF1"), lambda f: f.uns["cond_meta_concat_k4"].update(donors=["d1", "d2"]))
    with pytest.raises(
        ValueError, match=r"(?s)CAE_NMF1.*U_concat_gene_k4.*has shape \(40, 3\); 40 × 2 values are expected"
    ):
        results.load_model(path)


def test_other_files_are_refused(tmp_path):
    cells = make_cells()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match=r"cells\.h5ad is not a results file"):
        results.load_model(tmp_path / "cells.h5ad")
    with pytest.raises(FileNotFoundError, match=r"File not found.*cells\.h5ad"):
        results.load_model(tmp_path / "none.h5ad")
    cells.obs["donor_id"] = "only"
    with pytest.raises(results.Skipped):
        results.require_donors(cells, tmp_path / "skipped.h5ad", CAENMF1)
    with pytest.raises(ValueError, match=r"skipped\.h5ad has no model, because CAE_NMF1 was skipped: all cells are of"):
        results.load_model(tmp_path / "skipped.h5ad")


def test_cut_file_is_refused(written):
    path = written("CAE_NMF1")
    with open(path, "r+b") as file:
        file.truncate(20_000)
    with warnings.catch_warnings(), pytest.raises((OSError, ValueError), match="CAE_NMF1"):
        results.load_model(path)


def test_unknown_name_of_results_lists_the_names():
    with pytest.raises(AttributeError, match=r"has no attribute 'load'.*load_model"):
        _ = results.load
