"""Weights of the genes: their definition, and a fit of ``X diag(w)`` returned in the units of X."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix, diags
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import StandardScaler
from test_penalties import made

from aenmf_lib import AENMF, CAENMF1, CAENMF2, results
from aenmf_lib.models import aenmf, gene_weights
from aenmf_lib.training.moments import Moments

KINDS = (AENMF, CAENMF1, CAENMF2)


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
@pytest.mark.parametrize("by_donor", [False, True])
def test_weights_equal_their_dense_definition(mode, by_donor):
    """Dense: the correlations of the genes, all their eigenpairs."""
    cells = made(effect=1.0, n=400)
    w = gene_weights.shared_variance_weights(Moments.from_cells(cells, by_donor=by_donor, mode=mode))
    X = cells.X.toarray().astype(np.float64)
    deviation = X.std(0)
    a = 1 / np.maximum(deviation, 0.02)
    values, vectors = np.linalg.eigh(a[:, None] * np.cov(X.T, bias=True) * a)
    values, vectors = values[::-1][:30], vectors[:, ::-1][:, :30]
    communality = ((vectors**2) * (values - values[-1])).sum(1) / np.maximum(deviation * a, 1e-6) ** 2
    expected = np.clip(communality, 0, 1) ** 0.375 / np.maximum(deviation, 0.05)
    expected *= np.sqrt(np.square(X).sum() / np.square(X * expected).sum())
    assert np.abs(w - expected).max() < 0.02 * expected.max()
    assert np.square(X * w).sum() == pytest.approx(np.square(X).sum(), rel=1e-5)


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
@pytest.mark.parametrize("kind", KINDS)
def test_weighted_fit_equals_fit_of_weighted_cells(kind, mode, monkeypatch):
    cells = made(effect=1.0, n=400)
    cells.X = cells.X.astype(np.float64)
    w = np.random.default_rng(0).gamma(2, 0.5, cells.n_vars)
    w[3] = 0  # takes no part
    monkeypatch.setattr(aenmf, "shared_variance_weights", lambda moments: w)
    ours = kind(k=5, mode=mode, gene_weights="shared").fit(cells)
    other = cells.copy()
    other.X = csr_matrix(cells.X @ diags(w))
    theirs = kind(k=5, mode=mode).fit(other)
    np.testing.assert_allclose(ours.loss_history_, theirs.loss_history_, rtol=1e-9)
    np.testing.assert_allclose(ours.transform(cells), theirs.transform(other), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.W_ * w, theirs.W_ * (w > 0), rtol=1e-6, atol=1e-9)
    assert (ours.W_[:, 3] == 0).all()
    assert ours.objective(cells) == pytest.approx(theirs.objective(other), rel=1e-9)
    if kind is not AENMF:
        np.testing.assert_allclose(ours.cond_latent(cells), theirs.cond_latent(other), rtol=1e-6, atol=1e-9)


def test_shared_weights_find_a_rare_type_with_low_expression():
    """Loud genes of no type hold most of the squares; the genes of a rare type are quiet."""
    found = {rule: [] for rule in gene_weights.RULES}
    for seed in (0, 1):
        rng, n = np.random.default_rng(seed), 1500
        rare = rng.random(n) < 0.1
        loud = rng.gamma(1, 2, size=(n, 6)) @ rng.gamma(0.5, 1, size=(6, 80))
        quiet = 0.2 * rng.gamma(1, 1, size=(n, 1)) + 4 * rare[:, None] * rng.random(40)
        X = csr_matrix(np.log1p(rng.poisson(np.hstack([3 * loud, 0.5 * quiet]))).astype(np.float32))
        cells = AnnData(X, obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]))
        for rule, scores in found.items():
            H = AENMF(k=12, gene_weights=rule).fit(cells).transform(cells)
            of = LogisticRegression(), StandardScaler().fit_transform(H), rare
            scores.append(cross_val_score(*of, scoring="f1").mean())
    assert min(found["shared"]) > 0.95
    assert np.mean(found["none"]) < 0.6


def test_results_file_contains_weights_and_strength_uses_them(tmp_path):
    cells = made(effect=1.0, n=400)
    cells.uns["input"] = {}
    model = CAENMF1(k=4, strength=0.2, gene_weights="shared").fit(cells)
    given = CAENMF1(k=4, strength=0.2, gene_weights="shared").fit(
        cells, aenmf=AENMF(k=4, gene_weights="shared").fit(cells)
    )
    assert given.loss_history_[-1] == pytest.approx(model.loss_history_[-1], rel=1e-3)  # W of it was rounded on its way
    assert given.penalty_.gamma == pytest.approx(model.penalty_.gamma, rel=1e-2)
    results.write(tmp_path / "m.h5ad", model, cells)
    saved = results.read(tmp_path / "m.h5ad")
    w = saved.varm[results.GENE_WEIGHTS][:, 0]
    E = saved.varm["W_concat_k4"].T * w**2
    np.testing.assert_allclose(cells.X @ E.T, saved.obsm["H_shared_k4"], rtol=1e-4)


def test_unknown_rule_raises():
    with pytest.raises(ValueError, match=r"gene_weights='sd' is unknown\. Choose 'none' or 'shared'"):
        AENMF(gene_weights="sd")


def test_weighted_values_may_be_larger_than_log_counts():
    """The weights of rare genes can be large: on Kang's cells, weighted values up to 54 were refused as raw counts."""
    moments = Moments.from_cells(made(1.0, n=200))
    weights = [np.full(moments.n_genes, w) for w in (1.0, 64.0)]
    fits = [AENMF(k=2, max_iter=3, lambda_W=0).fit(moments.with_gene_weights(w)) for w in weights]
    np.testing.assert_allclose(fits[1].W_, fits[0].W_, rtol=1e-4, atol=1e-6)  # at λ = 0, the scale of X changes nothing
