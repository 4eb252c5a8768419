"""A GPU gives the same results as the CPU. All tests are skipped without a GPU."""

import functools

import numpy as np
import pytest
import torch
from conftest import tiny_cells
from scipy.sparse import csr_matrix

from aenmf_lib import AENMF, CAENMF1, CAENMF2, UntiedAENMF
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.models import base, penalties
from aenmf_lib.models.objectives import AdditiveDonorObjective, AENMFObjective, DonorDecoderObjective
from aenmf_lib.models.untied import UntiedObjective
from aenmf_lib.training import checkpoint, second_moment
from aenmf_lib.training.accumulation import accumulator, thread_pool
from aenmf_lib.training.inputs import usages
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.projected_gradient import ProjectedGradient

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
MODELS = (AENMF, CAENMF1, CAENMF2, UntiedAENMF)
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
def test_products_and_sums_equal_those_of_the_cpu(tiny, mode, by_donor, tmp_path):
    cpu, gpu = both(tiny, mode=mode, by_donor=by_donor)
    V = torch.from_numpy(np.random.default_rng(1).normal(size=(4, tiny.n_vars)))
    gpu.save(tmp_path / "moments.npz")
    halves = [Moments.from_cells(tiny[i::2].copy(), mode=mode, by_donor=by_donor, device="cuda") for i in (0, 1)]
    for other in (gpu, halves[0] + halves[1], Moments.load(tmp_path / "moments.npz", device="cuda")):
        found = other.product_by_donor(V.cuda())
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), cpu.product_by_donor(V), rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(other.product(V.cuda()).cpu(), cpu.product(V), rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(other.group_sums.cpu(), cpu.group_sums, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients_equal_those_of_the_cpu(tiny, name, mode):
    tiny.X = csr_matrix(tiny.X.toarray() * np.where((tiny.obs["donor_id"] == "d1").to_numpy()[:, None], 3, 1))
    found = []
    for moments in both(tiny, mode=mode, by_donor=name == "model 2"):
        W = torch.from_numpy(np.random.default_rng(2).random((4, tiny.n_vars)) * 0.3).to(moments.device)
        weights, effective = penalties.weights_from_strength(0.3, moments, W)
        assert weights.gamma > 0
        objective = OBJECTIVES[name](moments, lambda_W=1e-2, P=weights.rows(moments))
        point = objective.evaluate(W)
        terms = [objective.gradient(point), objective.curvature(point)]
        found.append([torch.tensor([point.loss, weights.gamma, effective]), *(term.cpu() for term in terms)])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 30.0])
@pytest.mark.parametrize("mode", MODES)
def test_untied_values_and_gradients_equal_those_of_the_cpu(tiny, gamma, mode):
    found = []
    for moments in both(tiny, mode=mode):
        objective = UntiedObjective(moments, lambda_W=1e-2, lambda_U=0.1, gamma=gamma, donors=gamma > 0)
        stack = torch.from_numpy(np.random.default_rng(2).random((8, tiny.n_vars)) * 0.3).to(moments.device)
        point = objective.evaluate(stack)
        terms = [objective.gradient(point), objective.curvature(point), *([] if point.U is None else [point.U])]
        found.append([torch.tensor([point.loss]), *(term.cpu() for term in terms)])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_second_moment_of_float32_cells_loses_no_precision_with_tf32():
    """The values are not exact in tf32, so rounding would show; the reference is a product in float64."""
    cells = tiny_cells(n_cells=3000, n_genes=600)
    X = cells.X.astype(np.float32)
    with thread_pool() as pool:
        formed = accumulator(600, torch.float32, "cuda", pool)
        formed.add(X)
        S = formed.finish().cpu()
    exact = torch.from_numpy((X.astype(np.float64).T @ X.astype(np.float64)).toarray())
    assert float((S - exact).norm() / exact.norm()) < 1e-4
    torch.testing.assert_close(S, S.T, rtol=0, atol=0)


def test_blocks_in_flight_do_not_overwrite_each_other(monkeypatch):
    """Cells are sent from two buffers while earlier blocks are still computed. Errors in float64 are only rounding."""
    monkeypatch.setitem(second_moment.CELLS, "cuda", 700)
    X = csr_matrix(tiny_cells(n_cells=9000, n_genes=1500).X, dtype=np.float64)
    with thread_pool() as pool:
        formed = accumulator(1500, torch.float64, "cuda", pool)
        for lo in range(0, 9000, 450):
            formed.add(X[lo : lo + 450])
        S = formed.finish().cpu()
    torch.testing.assert_close(S, torch.from_numpy((X.T @ X).toarray()), rtol=1e-11, atol=1e-8)
    E = np.random.default_rng(3).random((4, 1500))
    found = np.concatenate([H for H, _ in usages(X, E, "cuda")])
    np.testing.assert_allclose(found, X @ E.T, rtol=1e-11)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mode", MODES)
def test_fit_reaches_the_objective_of_the_cpu(planted, model, mode):
    cells, _ = planted
    cpu, gpu = (model(k=8, mode=mode, device=device).fit(cells) for device in ("cpu", "cuda"))
    assert gpu.loss_history_.min() < 1.01 * cpu.loss_history_.min()
    assert gpu.objective(cells) == pytest.approx(gpu.loss_history_.min(), rel=1e-4)
    for values in (gpu.W_, gpu.transform(cells)):
        assert np.isfinite(values).all()
        assert values.min() >= 0
    np.testing.assert_allclose(gpu.transform(cells), cells.X @ gpu.encoder_.T, rtol=1e-4, atol=1e-4)


def test_gene_weights_and_multiple_starts_match_the_cpu(planted):
    cells, _ = planted
    cpu, gpu = (AENMF(k=8, n_starts=2, gene_weights="shared", device=device).fit(cells) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu.gene_weights_, cpu.gene_weights_, rtol=1e-2, atol=1e-3 * cpu.gene_weights_.max())
    assert len(gpu.starts_) == 2
    assert gpu.loss_history_.min() < 1.01 * cpu.loss_history_.min()


def test_published_preset_gives_rows_of_length_one(planted):
    cells, _ = planted
    fitted = CAENMF1(k=8, preset="published", device="cuda").fit(cells)
    np.testing.assert_allclose(np.linalg.norm(fitted.W_, axis=1), 1, rtol=1e-5)


def test_strength_runs_on_the_gpu(planted):
    cells, _ = planted
    fitted = CAENMF1(k=8, device="cuda").fit(cells)
    assert fitted.strength_ > 0.1


def test_moments_of_cells_on_disk_equal_those_of_the_cpu(h5ad):
    cells, (cpu, gpu) = CellStream(h5ad, counts=True), both(CellStream(h5ad, counts=True), mode="explicit")
    V = torch.rand(3, cpu.n_genes)
    torch.testing.assert_close(gpu.product(V.cuda()).cpu(), cpu.product(V), rtol=1e-3, atol=1e-3)
    model = AENMF(k=3, device="cuda").fit(gpu)
    assert model.transform(cells).shape == (len(cells.obs), 3)


@pytest.mark.parametrize("model", MODELS)
def test_interrupted_fit_resumes(planted, model, tmp_path, monkeypatch):
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
    assert again.loss_history_.min() == pytest.approx(whole.loss_history_.min(), rel=5e-3)  # on a GPU not bit-identical


def test_moments_and_model_must_be_on_the_same_device(tiny):
    with pytest.raises(ValueError, match="The moments are on 'cpu', not on device='cuda'"):
        AENMF(k=3, device="cuda").fit(Moments.from_cells(tiny))
    n = torch.cuda.device_count()
    with pytest.raises(RuntimeError, match=f"torch finds {n} CUDA device"):
        AENMF(k=3, device=f"cuda:{n}").fit(tiny)


def test_relative_error_equals_dense_error(planted):
    cells, _ = planted
    fitted = AENMF(k=8, device="cuda").fit(cells)
    H, X = fitted.transform(cells), cells.X.toarray()
    dense = np.linalg.norm(X - H @ fitted.W_) / np.linalg.norm(X)
    assert base.relative_error(cells, H, fitted.W_) == pytest.approx(dense, rel=1e-4)
