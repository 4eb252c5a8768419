"""Objectives against their definitions, written out dense in float64 and differentiated by torch."""

import numpy as np
import pytest
import torch
from conftest import tiny_cells

from aenmf_lib.models.initialization import rescale_rows
from aenmf_lib.models.objectives import AdditiveDonorObjective, AENMFObjective, DonorDecoderObjective
from aenmf_lib.models.penalties import PenaltyWeights
from aenmf_lib.training.moments import Moments

K = 5
CLOSE = 1e-10  # float64: what is left is the rounding of sums taken in another order


@pytest.fixture
def cells():
    return tiny_cells()


@pytest.fixture
def codes(cells):
    return {
        label: cells.obs[column].cat.codes.to_numpy()
        for label, column in (("donor", "donor_id"), ("cell_type", "cell_type"))
    }


def positive(*shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).random(shape) * 0.3)


def dense_tied(X, W, lambda_W):
    return (X - X @ W.T @ W).square().sum() / len(X) + lambda_W * W.square().sum()


def dense_penalty(X, C, T, W, *, gamma, eta, centered):
    """The definition of both penalties, term by term, over the cells."""
    n, H, loss = len(X), X @ W.T, 0.0
    for t in T.T.bool():
        for d in C.T.bool():
            if (t & d).any():
                mean = H[t & d].mean(0) - (H[t].mean(0) if centered else 0)
                loss = loss + gamma / n * int((t & d).sum()) * mean.square().sum()
    return loss + eta * ((H - H.mean(0)).T @ (C - C.mean(0))).square().sum() / (n - 1) ** 2


def dense_additive(X, C, W, U, *, lambda_W, lambda_U):
    loss = (X - X @ W.T @ W - C @ U).square().sum() / len(X)
    return loss + lambda_W * W.square().sum() + lambda_U * U.square().sum()


def dense_bending(X, donor, W, U, *, lambda_W, lambda_U):
    H = X @ W.T
    rebuilt = torch.stack([h @ (W + U[d]) for h, d in zip(H, donor, strict=True)])
    return (X - rebuilt).square().sum() / len(X) + lambda_W * W.square().sum() + lambda_U * U.square().sum()


def one_hot(codes):
    return torch.nn.functional.one_hot(torch.from_numpy(codes.astype(np.int64))).double()


def agrees(objective, reference, W, U):
    """Value and gradient agree with the dense reference differentiated by torch."""
    point = objective.point(W, U)
    point.loss = objective.value(point)
    W = W.clone().requires_grad_()
    loss = reference(W)
    loss.backward()
    assert point.loss == pytest.approx(loss.item(), rel=CLOSE)
    error = (objective.gradient(point) - W.grad).abs().max() / W.grad.abs().max()
    assert float(error) < CLOSE


def test_ae_nmf_objective_equals_dense_definition(cells):
    X, W = torch.from_numpy(cells.X.toarray()), positive(K, cells.n_vars)
    agrees(AENMFObjective(Moments.from_cells(cells), lambda_W=0.3), lambda W: dense_tied(X, W, 0.3), W, None)


@pytest.mark.parametrize("model", ["additive", "bending"])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(("gamma", "eta"), [(0.0, 0.0), (0.7, 0.0), (0.0, 40.0), (0.7, 40.0)])
def test_conditional_objectives_with_penalties_equal_dense_definition(cells, codes, model, gamma, eta, centered):
    X, C, T = torch.from_numpy(cells.X.toarray()), one_hot(codes["donor"]), one_hot(codes["cell_type"])
    weights, penalty = {"lambda_W": 0.2, "lambda_U": 0.1}, {"gamma": gamma, "eta": eta, "centered": centered}
    W, moments = positive(K, cells.n_vars), Moments.from_cells(cells, by_donor=model == "bending")
    P = PenaltyWeights(**penalty).rows(moments)
    if model == "additive":
        U = positive(3, cells.n_vars, seed=2)
        objective, dense = (
            AdditiveDonorObjective(moments, **weights, P=P),
            lambda W: dense_additive(X, C, W, U, **weights),
        )
    else:
        U = positive(3, K, cells.n_vars, seed=2)
        objective = DonorDecoderObjective(moments, **weights, P=P)
        dense = lambda W: dense_bending(X, codes["donor"], W, U, **weights)  # noqa: E731
    agrees(objective, lambda W: dense(W) + dense_penalty(X, C, T, W, **penalty), W, U)


def test_every_penalty_weight_changes_the_objective(cells, codes):
    """Each penalty changes the value by what the definition says, so none is read and never used."""
    moments, W = Moments.from_cells(cells, by_donor=True), positive(K, cells.n_vars)
    for model, shape in ((AdditiveDonorObjective, (3, cells.n_vars)), (DonorDecoderObjective, (3, K, cells.n_vars))):
        U, weights = positive(*shape, seed=2), {"lambda_W": 0.0, "lambda_U": 0.0}
        unpenalized = model(moments, **weights)
        base = unpenalized.value(unpenalized.point(W, U))
        more = [model(moments, **weights | {name: 1.0}) for name in weights]
        more += [
            model(moments, **weights, P=PenaltyWeights(*pair, centered=False).rows(moments))
            for pair in ((1, 0), (0, 1))
        ]
        for objective in more:
            assert objective.value(objective.point(W, U)) > base + 1e-3


@pytest.mark.parametrize("kind", ["additive", "bending"])
def test_best_U_satisfies_the_optimality_conditions(cells, codes, kind):
    """At the best U the gradient with respect to U is 0 where U > 0 and not negative where U = 0."""
    X, C = torch.from_numpy(cells.X.toarray()), one_hot(codes["donor"])
    W = positive(K, cells.n_vars) / 4  # too little: U has something to add
    if kind == "additive":
        weights, moments = {"lambda_W": 0.2, "lambda_U": 0.1}, Moments.from_cells(cells)
        objective = AdditiveDonorObjective(moments, **weights, P=PenaltyWeights(0.7, 4.0, centered=False).rows(moments))
        U = objective.best_U(objective.point(W), None)
        loss = lambda U: dense_additive(X, C, W, U, **weights)  # noqa: E731
    else:
        weights = {"lambda_W": 0.2, "lambda_U": 0.1}
        objective = DonorDecoderObjective(Moments.from_cells(cells, by_donor=True), **weights)
        U = objective.best_U(objective.point(W), None, steps=5000)
        loss = lambda U: dense_bending(X, codes["donor"], W, U, **weights)  # noqa: E731
    assert (U > 0).any()
    assert (U >= 0).all()
    U = U.clone().requires_grad_()
    loss(U).backward()
    scale = float(X.square().sum()) / len(X)
    assert float(U.grad[U > 0].abs().max()) < 1e-9 * scale
    assert float(U.grad.min()) > -1e-9 * scale


@pytest.mark.parametrize("kind", ["tied", "additive", "bending"])
def test_curvature_equals_the_hessian_diagonal(cells, codes, kind):
    X, C, T = torch.from_numpy(cells.X.toarray()), one_hot(codes["donor"]), one_hot(codes["cell_type"])
    W = positive(K, cells.n_vars)
    weights, penalty = {"lambda_W": 0.2, "lambda_U": 0.1}, {"gamma": 0.7, "eta": 4.0, "centered": True}
    if kind == "tied":
        objective, U = AENMFObjective(Moments.from_cells(cells), lambda_W=0.3), None
        loss = lambda W: dense_tied(X, W, 0.3)  # noqa: E731
    elif kind == "additive":
        moments, U = Moments.from_cells(cells), positive(3, cells.n_vars, seed=2)
        objective = AdditiveDonorObjective(moments, **weights, P=PenaltyWeights(**penalty).rows(moments))
        loss = lambda W: dense_additive(X, C, W, U, **weights) + dense_penalty(X, C, T, W, **penalty)  # noqa: E731
    else:
        moments, U = Moments.from_cells(cells, by_donor=True), positive(3, K, cells.n_vars, seed=2)
        objective = DonorDecoderObjective(moments, **weights, P=PenaltyWeights(**penalty).rows(moments))
        dense = lambda W: dense_bending(X, codes["donor"], W, U, **weights)  # noqa: E731
        loss = lambda W: dense(W) + dense_penalty(X, C, T, W, **penalty)  # noqa: E731
    hessian = torch.autograd.functional.hessian(loss, W)
    diagonal = torch.einsum("jaja->ja", hessian)
    curvature = objective.curvature(objective.point(W, U))
    assert (curvature > 0).all()
    large = diagonal > diagonal.mean()  # smaller ones may be clamped
    assert torch.allclose(curvature[large], diagonal[large], rtol=1e-8)


def test_rescaled_rows_have_stationary_lengths(cells):
    """No change of the lengths of the rows lowers the objective further."""
    objective = AENMFObjective(Moments.from_cells(cells), lambda_W=0.01)
    W = rescale_rows(objective, positive(K, cells.n_vars), iterations=2000)
    length_gradient = (objective.gradient(objective.evaluate(W)) * W).sum(1)
    assert float(length_gradient.abs().max()) < 1e-6 * objective.evaluate(W).loss
