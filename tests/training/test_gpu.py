"""The same on a card as on the CPU. All of it is skipped where there is none."""

import functools

import numpy as np
import pytest
import torch
from conftest import tiny_cells

from aenmf_lib import AENMF, CAENMF1, CAENMF2
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.models import base, penalties
from aenmf_lib.models.conditional import strength_path
from aenmf_lib.models.objectives import AdditiveDonorObjective, AENMFObjective, DonorDecoderObjective
from aenmf_lib.training import checkpoint
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.projected_gradient import ProjectedGradient
from aenmf_lib.training.second_moment import SecondMomentAccumulator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
MODELS = (AENMF, CAENMF1, CAENMF2)
MODES = ("implicit", "explicit")
OBJECTIVES = {
    "AE-NMF": AENMFObjective,
    "model 1": functools.partial(AdditiveDonorObjective, lambda_U=0.1),
    "model 2": functools.partial(DonorDecoderObjective, lambda_U=0.05),
}


def both(cells, **settings) -> list[Moments]:
    return [Moments.from_cells(cells, device=device, **settings) for device in ("cpu", "cuda")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("by_donor", [False, True])
def test_products_and_sums_are_those_of_the_cpu(tiny, mode, by_donor, tmp_path):
    here, there = both(tiny, mode=mode, by_donor=by_donor)
    V = torch.from_numpy(np.random.default_rng(1).normal(size=(4, tiny.n_vars)))
    there.save(tmp_path / "moments.npz")
    halves = [Moments.from_cells(tiny[i::2].copy(), mode=mode, by_donor=by_donor, device="cuda") for i in (0, 1)]
    for other in (there, halves[0] + halves[1], Moments.load(tmp_path / "moments.npz", device="cuda")):
        found = other.product_by_donor(V.cuda())
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), here.product_by_donor(V), rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(other.product(V.cuda()).cpu(), here.product(V), rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(other.group_sums.cpu(), here.group_sums, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients_are_those_of_the_cpu(tiny, name, mode):
    found = []
    for moments in both(tiny, mode=mode, by_donor=name == "model 2"):
        W = torch.from_numpy(np.random.default_rng(2).random((4, tiny.n_vars)) * 0.3).to(moments.device)
        weights, left = penalties.weights_from_strength(0.3, "none", moments, W)
        objective = OBJECTIVES[name](moments, lambda_W=1e-2, P=weights.rows(moments))
        point = objective.evaluate(W)
        told = [objective.gradient(point), objective.curvature(point)]
        found.append([torch.tensor([point.loss, weights.eta, left]), *(one.cpu() for one in told)])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_a_second_moment_of_float32_cells_loses_nothing_to_tf32():
    """Counts of many sizes, whose tf32 rounding is not 0; S is compared with that in float64."""
    cells = tiny_cells(n_cells=3000, n_genes=600)
    X = cells.X.astype(np.float32)
    forming = SecondMomentAccumulator(600, torch.float32, "cuda")
    forming.add(X)
    S, exact = forming.finish().cpu(), torch.from_numpy((X.astype(np.float64).T @ X.astype(np.float64)).toarray())
    assert float((S - exact).norm() / exact.norm()) < 1e-4
    torch.testing.assert_close(S, S.T, rtol=0, atol=0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mode", MODES)
def test_a_fit_ends_where_that_of_the_cpu_does(planted, model, mode):
    cells, _ = planted
    here, there = (model(k=8, mode=mode, device=device).fit(cells) for device in ("cpu", "cuda"))
    assert there.loss_history_.min() < 1.01 * here.loss_history_.min()
    assert there.objective(cells) == pytest.approx(there.loss_history_.min(), rel=1e-4)
    for told in (there.W_, there.transform(cells)):
        assert np.isfinite(told).all()
        assert told.min() >= 0
    np.testing.assert_allclose(there.transform(cells), cells.X @ there.encoder_.T, rtol=1e-4, atol=1e-4)


def test_weights_of_the_genes_and_several_starts(planted):
    cells, _ = planted
    here, there = (
        AENMF(k=8, n_starts=2, gene_weights="shared", device=device).fit(cells) for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there.gene_weights_, here.gene_weights_, rtol=1e-2, atol=1e-3 * here.gene_weights_.max())
    assert len(there.starts_) == 2
    assert there.loss_history_.min() < 1.01 * here.loss_history_.min()


def test_rows_of_length_one(planted):
    cells, _ = planted
    fitted = CAENMF1(k=8, preset="published", device="cuda").fit(cells)
    np.testing.assert_allclose(np.linalg.norm(fitted.W_, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("labels", ["cell_type", "clusters", "none"])
def test_a_strength_on_a_card(planted, labels):
    cells, _ = planted
    fitted = CAENMF1(k=8, labels=labels, device="cuda").fit(cells)
    assert fitted.strength_ > 0.1
    fits = list(
        strength_path(CAENMF1(k=8, device="cuda"), Moments.from_cells(cells, device="cuda"), [0.05, 0.5], sweeps=20)
    )
    assert [fit.strength for fit in fits] == [0.05, 0.5]


def test_cells_on_disk(h5ad):
    cells, (here, there) = CellStream(h5ad, counts=True), both(CellStream(h5ad, counts=True), mode="explicit")
    V = torch.rand(3, here.n_genes)
    torch.testing.assert_close(there.product(V.cuda()).cpu(), here.product(V), rtol=1e-3, atol=1e-3)
    model = AENMF(k=3, device="cuda").fit(there)
    assert model.transform(cells).shape == (len(cells.obs), 3)


@pytest.mark.parametrize("model", MODELS)
def test_a_fit_that_was_killed_goes_on(planted, model, tmp_path, monkeypatch):
    cells, _ = planted
    settings = {"k": 8, "tol": 0, "max_iter": 60, "mode": "explicit", "device": "cuda"}
    make = functools.partial(model, **settings, **({"strength": 0} if model.conditional else {}))
    whole, real, steps = make().fit(cells), ProjectedGradient.step, iter(range(60))
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)

    def killed(self):
        if next(steps) == 40:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(ProjectedGradient, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        make().fit(cells, checkpoint=tmp_path / "state.npz")
    monkeypatch.setattr(ProjectedGradient, "step", real)
    again = make().fit(cells, checkpoint=tmp_path / "state.npz")
    assert again.n_iter_ == whole.n_iter_
    assert again.loss_history_.min() == pytest.approx(whole.loss_history_.min(), rel=5e-3)  # not to the same bits


def test_the_moments_must_be_where_the_model_is(tiny):
    with pytest.raises(ValueError, match="the moments are on 'cpu', the model on 'cuda': load them there"):
        AENMF(k=3, device="cuda").fit(Moments.from_cells(tiny))
    n = torch.cuda.device_count()
    with pytest.raises(RuntimeError, match=f"torch sees {n} CUDA device"):
        AENMF(k=3, device=f"cuda:{n}").fit(tiny)


def test_the_error_is_that_of_the_product(planted):
    cells, _ = planted
    fitted = AENMF(k=8, device="cuda").fit(cells)
    H, X = fitted.transform(cells), cells.X.toarray()
    dense = np.linalg.norm(X - H @ fitted.W_) / np.linalg.norm(X)
    assert base.relative_error(cells, H, fitted.W_) == pytest.approx(dense, rel=1e-4)
