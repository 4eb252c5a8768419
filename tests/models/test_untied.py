"""The untied model: its objective against the definition, its invariants, and the interface of a model."""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_cells
from scipy.sparse import csr_matrix

from aenmf_lib import AENMF, BaseNMF, UntiedAENMF, data
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.models import base
from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.models.untied import UntiedObjective
from aenmf_lib.training.moments import Moments

K = 4
CLOSE = 1e-10  # float64: what is left is the rounding of sums taken in another order
WEIGHTS = {"lambda_W": 0.3, "lambda_U": 0.1}


@pytest.fixture(params=["all typed", "some untyped"])
def cells(request):
    """Cells of one donor with twice the expression; in one case, a fifth of the cells has no type."""
    cells = tiny_cells()
    cells.X = csr_matrix(cells.X.toarray() * np.where(cells.obs["donor_id"] == "d1", 2, 1)[:, None])
    if request.param == "some untyped":
        cells.obs["cell_type"] = cells.obs["cell_type"].astype(object).mask(np.arange(60) % 5 == 0)
    return cells


def penalty(H, obs):
    """Return R(H) by its definition: the mean share of the variance of a usage between donors within a type."""
    typed, total = obs["cell_type"].notna().to_numpy(), 0.0
    for _, group in obs[typed].groupby(["cell_type", "donor_id"], observed=True):
        of_type = obs["cell_type"] == group["cell_type"].iloc[0]
        difference = H[obs.index.isin(group.index)].mean(0) - H[of_type.to_numpy(dtype=bool)].mean(0)
        total = total + len(group) * difference.square()
    return (total / typed.sum() / H.var(0, correction=0)).mean()


def dense(cells, stack, U, *, lambda_W, lambda_U, gamma):
    """Return the objective, written out over the cells."""
    X, (E, W) = torch.from_numpy(cells.X.toarray()), stack.chunk(2)
    H = X @ E.T
    loss = lambda_W / 2 * (E.square().sum() + W.square().sum()) + gamma * penalty(H, cells.obs)
    X = X - H @ W
    if U is not None:
        X = X - torch.from_numpy(pd.get_dummies(cells.obs["donor_id"]).to_numpy(float)) @ U
        loss = loss + lambda_U * U.square().sum()
    return X.square().sum() / len(X) + loss


def positive(*shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).random(shape) * 0.3)


@pytest.mark.parametrize("donors", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 70.0])
def test_objective_equals_dense_definition(cells, donors, gamma):
    """Value and gradient. The curvature is the diagonal of the Hessian: always for W, and for E without a penalty."""
    objective = UntiedObjective(Moments.from_cells(cells), **WEIGHTS, gamma=gamma, donors=donors)
    stack, U = positive(2 * K, 40), positive(3, 40, seed=2) if donors else None
    point = objective.point(stack, U)
    loss = functools.partial(dense, cells, U=U, gamma=gamma, **WEIGHTS)
    assert objective.value(point) == pytest.approx(float(loss(stack)), rel=CLOSE)
    gradient = torch.autograd.functional.jacobian(loss, stack)
    torch.testing.assert_close(objective.gradient(point), gradient, rtol=0, atol=CLOSE * float(gradient.abs().max()))
    hessian = torch.einsum("jaja->ja", torch.autograd.functional.hessian(loss, stack))
    curvature = objective.curvature(point)
    assert (curvature > 0).all()
    exact = torch.full_like(stack, not gamma, dtype=torch.bool)
    exact[K:] = True
    large = exact & (hessian > hessian.mean() / 10)  # smaller ones may be clamped
    torch.testing.assert_close(curvature[large], hessian[large], rtol=1e-8, atol=0)
    assert large.any()


def test_best_U_satisfies_the_optimality_conditions(cells):
    objective = UntiedObjective(Moments.from_cells(cells), **WEIGHTS, gamma=70.0, donors=True)
    stack = positive(2 * K, 40) / 4
    U = objective.evaluate(stack).U
    gradient = torch.autograd.functional.jacobian(lambda U: dense(cells, stack, U, gamma=70.0, **WEIGHTS), U)
    assert 0 < (U > 0).double().mean() <= 1
    assert float(gradient[U > 0].abs().max()) < 1e-9
    assert float(gradient.min()) > -1e-9


def test_tied_stack_has_the_objective_of_ae_nmf(cells):
    moments, W = Moments.from_cells(cells), positive(K, 40)
    untied, tied = UntiedObjective(moments, **WEIGHTS, gamma=0.0, donors=False), AENMFObjective(moments, lambda_W=0.3)
    assert untied.evaluate(torch.cat([W, W])).loss == pytest.approx(tied.evaluate(W).loss, rel=CLOSE)


def test_smaller_encoder_with_larger_decoder_changes_neither_error_nor_penalty(cells):
    """There is no loophole: the penalty does not fall if a program shrinks in E and grows in W."""
    weights = {"lambda_W": 0.0, "lambda_U": 0.1, "donors": True}
    (E, W), a = positive(2 * K, 40).chunk(2), torch.tensor([[0.01], [0.5], [3.0], [100.0]], dtype=torch.float64)
    for gamma in (0.0, 70.0):
        objective = UntiedObjective(Moments.from_cells(cells), gamma=gamma, **weights)
        values = [objective.evaluate(torch.cat(stack)).loss for stack in ((E, W), (a * E, W / a))]
        assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert (
        values[0]
        > 1.01 * UntiedObjective(Moments.from_cells(cells), gamma=0.0, **weights).evaluate(torch.cat([E, W])).loss
    )


def test_constant_and_empty_usages_have_no_penalty(cells):
    objective = UntiedObjective(Moments.from_cells(cells), **WEIGHTS, gamma=70.0, donors=True)
    stack = positive(2 * K, 40)
    stack[0] = 0
    found, without = objective.evaluate(stack), UntiedObjective(objective.moments, **WEIGHTS, gamma=0.0, donors=True)
    H = torch.from_numpy(cells.X.toarray()) @ stack[1:K].T
    expected = without.evaluate(stack).loss + 70.0 * float(penalty(H, cells.obs)) * (K - 1) / K
    assert found.loss == pytest.approx(expected, rel=CLOSE)
    assert torch.isfinite(objective.gradient(found)).all()


def test_penalty_of_cells_without_a_type_is_refused(tiny):
    tiny.obs["cell_type"] = np.nan
    with pytest.raises(ValueError, match="is empty for all 60 cells"):
        UntiedObjective(Moments.from_cells(tiny), **WEIGHTS, gamma=70.0, donors=True)


def test_strength_sets_the_penalty_relative_to_the_error_of_ae_nmf(cells):
    """Dense definitions. The share that chance explains is subtracted from the strength."""
    aenmf = AENMF(k=K, max_iter=30).fit(cells)
    model = UntiedAENMF(k=K, strength=0.7, gene_weights="none", max_iter=1).fit(cells, aenmf=aenmf)
    X = torch.from_numpy(cells.X.toarray())
    H = X @ torch.from_numpy(aenmf.W_).T
    error = float((X - H @ torch.from_numpy(aenmf.W_)).square().mean(0).sum())
    assert 0 < model.strength_ < 0.7
    assert model.penalty_.gamma * float(penalty(H, cells.obs)) == pytest.approx(model.strength_ * error, rel=1e-9)
    Z = ((H - H.mean(0)) / H.std(0, correction=0)).numpy()
    labels = [cells.obs[name].astype(object).fillna("").to_numpy() for name in ("cell_type", "donor_id")]
    groups = pd.DataFrame(Z).groupby(labels)
    within = sum((len(z) - 1) * np.cov(z.to_numpy().T) for _, z in groups if len(z) > 1) / (60 - groups.ngroups)
    typed = cells.obs.dropna()
    free = len(typed[["cell_type", "donor_id"]].drop_duplicates()) - typed["cell_type"].nunique()
    chance = (free * np.trace(within) + 2 * np.sqrt(2 * free * np.trace(within @ within))) / len(typed) / K
    assert model.strength_ == pytest.approx(0.7 * (1 - chance / float(penalty(H, cells.obs))), rel=1e-9)


@pytest.fixture(scope="module")
def fitted(planted):
    """The simulated cells, AE-NMF, and untied models with strength 0 and 1."""
    cells, _ = planted
    aenmf = AENMF(k=8).fit(cells)
    models = {c: UntiedAENMF(k=8, strength=c, gene_weights="none").fit(cells, aenmf=aenmf) for c in (0.0, 1.0)}
    return cells, aenmf, models


def test_strength_0_ends_below_ae_nmf_and_needs_no_labels(fitted):
    cells, aenmf, models = fitted
    model = models[0.0]
    assert model.loss_history_[0] == pytest.approx(aenmf.loss_history_[-1], rel=1e-6)
    assert model.loss_history_[-1] < 0.99 * model.loss_history_[0]
    errors = [base.relative_error(cells, fit.transform(cells), fit.W_) for fit in (model, aenmf)]
    assert errors[0] < errors[1]
    assert (model.U_, model.overlap_, len(model.donors_)) == (None, None, 0)
    assert (model.strength_, model.penalty_.gamma, model.uses_cell_type, model.conditional) == (0.0, 0.0, False, False)
    unlabeled = UntiedAENMF(k=8, strength=0.0, max_iter=2).fit(cells.X, aenmf=None)
    assert unlabeled.encoder_.shape == (8, cells.n_vars)


@pytest.mark.parametrize("name", ["simulated", "kang2018"])
def test_error_with_strength_0_is_between_those_of_ae_nmf_and_base_nmf(name):
    """On simulated cells, and on those of Kang et al. if notebook 01 wrote them: 3,000 cells, the 1,000 top genes."""
    path = Path(__file__).parents[2] / f"results/{name}/filtered.h5ad"
    if name != "simulated" and not path.exists():
        pytest.skip(f"make filter DATASET={name} was not run")
    cells = data.load(path) if name != "simulated" else data.simulate(n_cells=3000)[0]
    rows = np.sort(np.random.default_rng(0).permutation(cells.n_obs)[:3000])
    cells = cells[rows, np.sort(np.argsort(-np.asarray(cells.X.sum(0)).ravel())[:1000])].copy()
    aenmf, other = AENMF(k=10).fit(cells), BaseNMF(k=10).fit(cells)
    untied = UntiedAENMF(k=10, strength=0.0, gene_weights="none").fit(cells, aenmf=aenmf)
    usages = (other.H_, untied.transform(cells), aenmf.transform(cells))
    errors = [base.relative_error(cells, H, fit.W_) for fit, H in zip((other, untied, aenmf), usages, strict=True)]
    assert errors == sorted(errors)


def test_strength_removes_the_donor_from_the_usages(fitted):
    cells, aenmf, models = fitted
    model, H = models[1.0], models[1.0].transform(cells)
    before, after = (
        float(penalty(torch.from_numpy(fit.transform(cells)).double(), cells.obs)) for fit in (aenmf, model)
    )
    assert after < 0.01 * before
    assert (model.conditional, model.uses_cell_type) == (True, True)
    assert list(model.embeddings(cells)) == ["shared"]
    np.testing.assert_allclose(H, cells.X @ model.encoder_.T, rtol=1e-4, atol=1e-4)
    assert min(part.min() for part in (model.W_, model.encoder_, model.U_)) >= 0
    assert (np.diff(model.loss_history_) <= 1e-6 * model.loss_history_[0]).all()
    X = cells.X.toarray() - H @ model.W_ - model.U_[np.searchsorted(model.donors_, cells.obs["donor_id"].astype(str))]
    parts = 0.005 * (np.square(model.W_).sum() + np.square(model.encoder_).sum()) + 0.1 * np.square(model.U_).sum()
    found = np.square(X, dtype=np.float64).sum() / len(X) + parts + model.penalty_.gamma * after
    assert model.loss_history_[-1] == pytest.approx(found, rel=1e-5)
    assert model.objective(cells) == pytest.approx(found, rel=1e-5)
    assert "effective strength" in model.summary()
    assert model.refit(cells[:50].copy()).shape == (50, 8)


def test_no_strength_remains_if_donors_do_not_differ(planted):
    """Donors are shuffled within types."""
    cells, rng = planted[0].copy(), np.random.default_rng(0)
    donors = cells.obs["donor_id"].astype(str).to_numpy()
    for rows in cells.obs.groupby("cell_type", observed=True).indices.values():
        donors[rows] = rng.permutation(donors[rows])
    cells.obs["donor_id"] = donors
    assert UntiedAENMF(k=8, strength=1.0, max_iter=1).fit(cells).strength_ < 0.05


def test_result_does_not_depend_on_the_order_of_the_cells(planted):
    """Only rounding differs. It decides which steps are skipped, so the tolerance is that of the stopping rule."""
    cells = planted[0][:1500].copy()
    fits = [UntiedAENMF(k=5).fit(of) for of in (cells, cells[::-1].copy())]
    assert fits[0].loss_history_[-1] == pytest.approx(fits[1].loss_history_[-1], rel=5e-4)
    H = [fit.transform(cells) for fit in fits]
    assert np.linalg.norm(H[0] - H[1]) < 0.01 * np.linalg.norm(H[0])


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_gene_weights_are_undone_in_every_part(planted, strength):
    cells = planted[0][:1500].copy()
    model = UntiedAENMF(k=5, strength=strength, gene_weights="shared").fit(cells)
    assert model.objective(cells) == pytest.approx(model.loss_history_[-1], rel=1e-5)
    w = model.gene_weights_
    weighted = Moments.from_cells(cells).with_gene_weights(w)
    stack = torch.from_numpy(np.vstack([np.where(w > 0, model.encoder_ / w, 0), model.W_ * w])).float()
    U = torch.from_numpy(model.U_ * w).float() if strength else None
    objective = model._objective(weighted)
    assert objective.value(objective.point(stack, U)) == pytest.approx(model.loss_history_[-1], rel=1e-5)


def test_streams_and_moments_give_the_same_fit(planted, tmp_path):
    cells = planted[0][:1500].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    settings = {"k": 5, "mode": "explicit"}
    expected = UntiedAENMF(**settings).fit(cells)
    for given in (CellStream(tmp_path / "cells.h5ad", block=400), Moments.from_cells(cells, mode="explicit")):
        found = UntiedAENMF(**settings).fit(given)
        assert found.loss_history_[-1] == pytest.approx(expected.loss_history_[-1], rel=5e-4)
    stream = CellStream(tmp_path / "cells.h5ad", block=400)
    np.testing.assert_allclose(found.transform(stream), found.transform(cells), rtol=1e-6)


def test_starts_are_those_of_ae_nmf(planted):
    cells = planted[0][:1500].copy()
    model = UntiedAENMF(k=5, n_starts=2, gene_weights="none").fit(cells)
    aenmf = AENMF(k=5, n_starts=2).fit(Moments.from_cells(cells, k=5))
    assert model.starts_["objective"].tolist() == aenmf.starts_["objective"].tolist()
    assert len(model.stability_) == 5


def test_invalid_settings_and_one_donor_raise(tiny):
    for settings in ({"preset": "published"}, {"row_norm": True}):
        with pytest.raises(ValueError, match=r"is not valid for Untied_AE_NMF: .*Leave both out"):
            UntiedAENMF(k=3, **settings)
    with pytest.raises(ValueError, match=r"strength=-1 is not valid"):
        UntiedAENMF(k=3, strength=-1)
    model = UntiedAENMF(k=3, max_iter=2).fit(tiny)
    new = tiny.copy()
    new.obs["donor_id"] = "new"
    with pytest.raises(ValueError, match="1 donors were not in the fit"):
        model.objective(new)
    with pytest.raises(ValueError, match="contains only one donor"):
        UntiedAENMF(k=3).fit(new)
    assert UntiedAENMF(k=3, strength=0.0, max_iter=2).fit(new).U_ is None
