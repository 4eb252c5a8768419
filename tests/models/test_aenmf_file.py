"""Tests of conditional models that start from the AE-NMF in a results file: they equal models that fit AE-NMF."""

import numpy as np
import pandas as pd
import pytest

from aenmf_lib import AENMF, CAENMF1, CAENMF2, data, results
from aenmf_lib.training.moments import Moments

SETTINGS = {"k": 4, "n_starts": 2, "max_iter": 20}


def cells(digest="a" * 64):
    made, _ = data.simulate(n_cells=400, n_genes=1220, seed=1)
    made.uns["input"] = {"path": "filtered.h5ad", "sha256": digest}
    return made


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Results files of AE-NMF, by its gene weights."""
    folder, paths = tmp_path_factory.mktemp("aenmf"), {}
    for weights in ("none", "shared"):
        paths[weights] = folder / f"{weights}.h5ad"
        results.write(paths[weights], AENMF(**SETTINGS, gene_weights=weights).fit(cells()), cells())
    return paths


@pytest.mark.parametrize("weights", ["none", "shared"])
@pytest.mark.parametrize("model", [CAENMF1, CAENMF2])
def test_fit_from_a_file_equals_fit_from_a_fitted_aenmf(written, model, weights):
    settings = SETTINGS | {"gene_weights": weights}
    own = AENMF(**settings).fit(cells())
    expected = model(**settings).fit(cells(), aenmf=own)
    found = model(**settings).fit(cells(), aenmf=written[weights])
    for name in ("W_", "U_", "loss_history_", "overlap_", "gene_weights_"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (found.penalty_, found.strength_) == (expected.penalty_, expected.strength_)
    pd.testing.assert_frame_equal(found.stability_, expected.stability_)
    pd.testing.assert_frame_equal(found.starts_.drop(columns="seconds"), expected.starts_.drop(columns="seconds"))
    assert found.strength_ > 0
    if model is CAENMF1 and weights == "none":  # otherwise AE-NMF is fitted to sums that were rounded in another order
        here = model(**settings).fit(cells())
        np.testing.assert_array_equal(found.W_, here.W_)
        np.testing.assert_array_equal(found.loss_history_, here.loss_history_)


def test_no_aenmf_is_fitted_if_a_file_is_given(written, monkeypatch):
    monkeypatch.setattr(AENMF, "fit", lambda *_, **__: pytest.fail("AE-NMF was fitted"))
    CAENMF1(**SETTINGS).fit(cells(), aenmf=str(written["none"]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 3}, "k is 4, expected 3"),
        ({"seed": 7}, "seed is 42, expected 7"),
        ({"n_starts": 1}, "n_starts is 2, expected 1"),
        ({"lambda_W": 0.5}, "lambda_W is 0.01, expected 0.5"),
        ({"tol": 0.1, "max_iter": 5}, "tol is 0.0005, expected 0.1, max_iter is 20, expected 5"),
        ({"init": "nndsvd"}, "init is 'cells', expected 'nndsvd'"),
        ({"row_norm": True}, "row_norm is False, expected True"),
        ({"gene_weights": "shared"}, "gene_weights is 'none', expected 'shared'"),
    ],
)
def test_file_of_other_settings_raises(written, changed, message):
    with pytest.raises(ValueError, match=f"another fit: {message}.*Run notebook 03 with the same"):
        CAENMF1(**SETTINGS | changed).fit(cells(), aenmf=written["none"])


def test_file_of_other_cells_or_of_another_model_raises(written, tmp_path):
    with pytest.raises(ValueError, match=r"input is 'filtered.h5ad \(sha256 aaa.*expected 'filtered.h5ad \(sha256 bbb"):
        CAENMF1(**SETTINGS).fit(cells("b" * 64), aenmf=written["none"])
    results.write(tmp_path / "m.h5ad", CAENMF1(**SETTINGS).fit(cells(), aenmf=written["none"]), cells())
    with pytest.raises(ValueError, match="contains CAE_NMF1, not AE_NMF"):
        CAENMF1(**SETTINGS).fit(cells(), aenmf=tmp_path / "m.h5ad")


def test_moments_without_an_input_file_are_accepted(written):
    moments = Moments.from_cells(cells())
    assert CAENMF1(**SETTINGS).fit(moments, aenmf=written["none"]).strength_ > 0


@pytest.mark.parametrize("settings", [{"strength": 0.0}, {"strength": 0.0, "gene_weights": "shared"}])
def test_file_is_not_read_without_a_strength(tmp_path, settings):
    CAENMF1(k=3, max_iter=2, **settings).fit(cells(), aenmf=tmp_path / "missing.h5ad")
