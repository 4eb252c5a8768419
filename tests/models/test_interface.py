"""The interface of all models: accepted cells, raw counts, names of columns and genes, starts, progress."""

import logging

import numpy as np
import pytest
from anndata import AnnData
from conftest import tiny_cells
from scipy import sparse

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF, data
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.models import base
from aenmf_lib.training import checkpoint
from aenmf_lib.training.moments import Moments

MODELS = (AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF)
CONDITIONAL = (CAENMF1, CAENMF2)


@pytest.fixture(scope="module")
def cells():
    cells = tiny_cells()
    cells.X = cells.X.astype(np.float32)
    return cells


@pytest.fixture(scope="module")
def fitted(cells):
    return {model: model(k=3, max_iter=4).fit(cells) for model in MODELS}


def in_form(cells, form):
    return AnnData(form(cells.X), obs=cells.obs, var=cells.var)


def dense(X):
    return X.toarray()


@pytest.mark.parametrize("form", [dense, sparse.csc_matrix, sparse.csr_array, lambda X: X.toarray().astype(">f4")])
@pytest.mark.parametrize("model", MODELS)
def test_dense_and_csc_cells_give_the_fit_of_csr(cells, fitted, model, form):
    given, expected = in_form(cells, form), fitted[model]
    kept = given.X.copy()
    found = model(k=3, max_iter=4).fit(given)
    np.testing.assert_array_equal(found.W_, expected.W_)
    np.testing.assert_array_equal(expected.transform(given), expected.transform(cells))
    np.testing.assert_array_equal(expected.refit(given), expected.refit(cells))
    assert expected.objective(given) == expected.objective(cells)
    assert base.relative_error(given, expected.transform(given), expected.W_) < 1
    assert type(given.X) is type(kept)
    assert (abs(given.X - kept)).max() == 0


@pytest.mark.parametrize("model", [AENMF, BaseNMF])
@pytest.mark.parametrize("form", [dense, sparse.csc_matrix, sparse.csr_matrix, sparse.csc_array])
def test_matrix_without_names_is_accepted_and_needs_the_number_of_genes(cells, fitted, model, form):
    numbered = AnnData(cells.X)  # the starting point depends on the names of the cells
    np.testing.assert_array_equal(*(model(k=3, max_iter=4).fit(given).W_ for given in (form(cells.X), numbered)))
    np.testing.assert_array_equal(fitted[model].transform(form(cells.X)), fitted[model].transform(cells))
    with pytest.raises(ValueError, match=r"have 39 genes\. .* fitted to 40 genes"):
        fitted[model].transform(form(cells.X[:, 1:]))


@pytest.mark.parametrize("model", CONDITIONAL)
def test_conditional_model_of_a_matrix_asks_for_donors(cells, model):
    with pytest.raises(ValueError, match=r"obs\['(donor_id|cell_type)'\] is needed .* the cells have no columns"):
        model(k=3).fit(cells.X)


def test_base_nmf_accepts_a_stream(cells, fitted, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    stream = CellStream(tmp_path / "cells.h5ad", block=25)
    model = BaseNMF(k=3, max_iter=4).fit(stream)
    np.testing.assert_array_equal(model.W_, fitted[BaseNMF].W_)
    np.testing.assert_array_equal(model.transform(stream), model.transform(cells))
    assert model.objective(stream) == pytest.approx(model.objective(cells), rel=1e-12)  # sums in another order


@pytest.mark.parametrize("form", [sparse.csr_matrix, dense])
@pytest.mark.parametrize("model", MODELS)
def test_raw_counts_are_refused_by_fit_and_transform(cells, fitted, model, form):
    counts = in_form(cells, form)
    counts.X = form(sparse.csr_matrix(np.ceil(cells.X.toarray())))
    remedy = r"whole numbers \(largest \d+\), as raw counts do.*data\.normalize\(X\).*data\.prepare\(adata, min_cells"
    methods = (
        model(k=3).fit,
        model(k=3).fit_transform,
        *(getattr(fitted[model], name) for name in "transform objective refit".split()),
    )
    for method in methods:
        with pytest.raises(ValueError, match=remedy):
            method(counts)


@pytest.mark.parametrize("model", MODELS)
def test_fit_transform_equals_fit_and_transform(cells, fitted, model):
    H = model(k=3, max_iter=4).fit_transform(cells, donor_key="donor_id")
    np.testing.assert_array_equal(H, fitted[model].H_ if model is BaseNMF else fitted[model].transform(cells))
    with pytest.raises(TypeError, match="The cells are a Moments"):
        model(k=3).fit_transform(Moments.from_cells(cells))


@pytest.mark.parametrize("model", CONDITIONAL)
def test_other_columns_give_the_same_fit_and_are_remembered(cells, model):
    expected = model(k=3, max_iter=4).fit(cells)
    renamed = cells.copy()
    renamed.obs = cells.obs.rename(columns={"donor_id": "patient", "cell_type": "annotation"})
    keys = {"donor_key": "patient", "cell_type_key": "annotation"}
    found = model(k=3, max_iter=4).fit(renamed, **keys)
    np.testing.assert_array_equal(found.W_, expected.W_)
    np.testing.assert_array_equal(found.U_, expected.U_)
    assert (found.donor_key_, found.cell_type_key_) == ("patient", "annotation")
    new = renamed[10:40].copy()
    assert found.objective(new) == expected.objective(cells[10:40].copy())
    for role, H in expected.embeddings(cells[10:40].copy()).items():
        np.testing.assert_array_equal(found.embeddings(new)[role], H)
    np.testing.assert_array_equal(found.cond_latent(new), expected.cond_latent(cells[10:40].copy()))
    with pytest.raises(ValueError, match=r"obs\['patient'\] is needed"):
        found.cond_latent(cells)
    with pytest.raises(ValueError, match=r"obs\['sample'\] is needed .* have 'patient', 'annotation'"):
        model(k=3).fit(renamed, **keys | {"donor_key": "sample"})


def test_one_donor_in_another_column_is_named(cells):
    cells = cells.copy()
    cells.obs["patient"] = "p1"
    with pytest.raises(ValueError, match=r"obs\['patient'\] contains only one donor \('p1'\)"):
        CAENMF1(k=3).fit(cells, donor_key="patient")


def test_checkpoint_of_a_fit_with_other_donors_raises(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    other = cells.copy()
    other.obs["batch"] = np.where(np.arange(60) < 20, "b1", "b2")
    settings = {"k": 3, "max_iter": 4, "strength": 0}
    CAENMF2(**settings).fit(other, checkpoint=tmp_path / "state.npz")
    with pytest.raises(ValueError, match="is a checkpoint of another fit: groups is"):
        CAENMF2(**settings).fit(other, checkpoint=tmp_path / "state.npz", donor_key="batch")


@pytest.mark.parametrize("model", MODELS)
def test_genes_match_if_only_the_versions_of_their_ids_differ(cells, fitted, model):
    ids = [f"ENSG{i:011d}" for i in range(40)]
    old, new = cells.copy(), cells.copy()
    old.var_names, new.var_names = [f"{name}.1" for name in ids], [f"{name}.12" for name in ids]
    fit = model(k=3, max_iter=4).fit(old)
    np.testing.assert_array_equal(fit.transform(new), fitted[model].transform(cells))
    new.var_names = ids
    np.testing.assert_array_equal(fit.transform(new), fitted[model].transform(cells))
    with pytest.raises(ValueError, match="of which 40 are genes of the model, in another order"):
        fit.transform(new[:, ::-1].copy())


@pytest.mark.parametrize("model", [AENMF, CAENMF1])
def test_start_may_be_a_list_and_an_invalid_one_raises(cells, model):
    W = np.random.default_rng(0).random((3, 40)).astype(np.float32)
    found, expected = (model(k=3, max_iter=4).fit(cells, start=start) for start in (W.tolist(), W))
    np.testing.assert_array_equal(found.W_, expected.W_)
    for start, message in (
        (W[:2], r"start has shape \(2, 40\), minimum .* Expected \(3, 40\), all ≥ 0 and finite"),
        (np.where(W > 0.5, np.nan, W), "start has shape"),
        ([[1.0], [1.0, 2.0]], "start is a list of values that form no matrix"),
        ("cells", "start is a str"),
    ):
        with pytest.raises(ValueError, match=message):
            model(k=3).fit(cells, start=start)


def test_unfitted_aenmf_raises(cells):
    with pytest.raises(ValueError, match=r"aenmf \(AENMF\) is not a fitted AENMF"):
        CAENMF1(k=3).fit(cells, aenmf=AENMF(k=3))


def test_base_nmf_shows_progress_and_prints_nothing(cells, capsys, caplog):
    caplog.set_level(logging.INFO)
    model = BaseNMF(k=3, max_iter=100).fit(cells)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{model.n_iter_}/100" in err
    assert f"Base_NMF: loss {model.loss_history_[0]:.6g} after {model.n_iter_} sweeps" in caplog.text
    with pytest.raises(ValueError, match=r"There are 59 cells, but Base_NMF was fitted to 60"):
        model.embeddings(cells[1:])


def test_log_has_no_line_about_a_representation_that_was_requested(cells, caplog):
    caplog.set_level(logging.INFO)
    AENMF(k=3, max_iter=2, mode="implicit").fit(cells)
    assert "requested" not in caplog.text
    assert "XᵀX" not in caplog.text


def test_rank_above_the_cells_is_checked_without_data():
    with pytest.raises(ValueError, match=r"k=80 is too large for 60 cells × 40 genes\. Choose k between 1 and 40"):
        base.check_rank(80, 60, 40)
    with pytest.raises(ValueError, match=r"for 0 cells × 40 genes\. Pass at least one cell and one gene"):
        base.check_rank(3, 0, 40)


def test_filtered_cells_of_normalize_are_accepted(h5ad):
    counts, _ = data.read_counts(h5ad)
    counts.X = data.normalize(counts.X)
    assert AENMF(k=3, max_iter=2).fit_transform(counts).shape == (60, 3)


def test_values_that_no_logarithm_of_counts_has_and_empty_cells_are_refused(tiny):
    with pytest.raises(ValueError, match=r"values up to .*data\.normalize"):
        AENMF(k=2).fit(tiny.X * 10.5)
    with pytest.raises(ValueError, match="All values of the cells are 0"):
        AENMF(k=2).fit(np.zeros((20, 20)))


@pytest.mark.parametrize("key", [None, "", 5, ["donor_id"]])
def test_key_that_is_not_a_name_is_refused(tiny, key):
    with pytest.raises(ValueError, match="is not the name of a column"):
        CAENMF1(k=2).fit(tiny, donor_key=key)


def test_seeds_of_all_starts_must_be_valid():
    with pytest.raises(ValueError, match="seed=4294967295 is too large for 2 starts"):
        AENMF(seed=2**32 - 1, n_starts=2)
