"""Coordinate descent: every model and way to keep S, against the exact objective and the projected gradient."""

import numpy as np
import pytest
import torch
from conftest import tiny_cells

from aenmf_lib import solver
from aenmf_lib.descent import BendingDescent, TiedDescent
from aenmf_lib.moments import Moments
from aenmf_lib.objectives import Additive, Bending, Tied

OBJECTIVES = {
    "tied": lambda m: Tied(m, lambda_W=0.02),
    "additive": lambda m: Additive(m, lambda_W=0.02, lambda_U=0.1, gamma=0.5, eta=3.0, centred=True),
    "bending": lambda m: Bending(m, lambda_W=0.02, lambda_U=0.05),
}


def made(name, mode, n_genes=300):
    """More genes than two blocks hold."""
    cells = tiny_cells(n_cells=80, n_genes=n_genes)
    objective = OBJECTIVES[name](Moments.of(cells, by_donor=name == "bending", mode=mode))
    W = torch.from_numpy(np.random.default_rng(3).random((4, n_genes)))
    return objective, solver.best_scale(Tied(objective.moments, lambda_W=0.02), W) if name != "bending" else W * 0.03


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_objective_followed_is_the_exact_one_and_never_rises(name, mode):
    objective, W = made(name, mode)
    descent = (BendingDescent if name == "bending" else TiedDescent)(objective, objective.evaluate(W))
    before = np.inf
    for _ in range(8):
        U_used = objective.best_U(objective.point(descent.solution()[0]), None) if name == "additive" else None
        followed = descent.sweep(1.9)
        W_now, U_now = descent.solution()
        exact = objective.value(objective.point(W_now, U_used if name == "additive" else U_now))
        assert followed == pytest.approx(exact, rel=1e-11)
        assert followed <= before * (1 + 1e-12)
        before = followed


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_history_never_rises_from_the_start_on(name):
    """The start told is the one descended from: model 2 keeps the U that its start was given."""
    history = np.array(solver.minimise(*made(name, "implicit"), max_iter=30).loss_history)
    assert (np.diff(history) <= 1e-12 * history[0]).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_modes_end_in_the_same_place(name):
    ends = [solver.minimise(*made(name, mode), max_iter=15).point.loss for mode in ("implicit", "explicit")]
    assert ends[0] == pytest.approx(ends[1], rel=1e-10)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_end_is_stationary_for_the_gradient_too(name):
    """What the projected gradient would still change: nothing where W > 0, nothing downhill where W = 0."""
    objective, W = made(name, "implicit", n_genes=40)
    point = solver.minimise(objective, W, tol=1e-13, max_iter=3000).point
    if name == "bending":
        point = objective.polish(point)
    gradient = objective.gradient(point)
    moved = (point.W - gradient).clamp(min=0) - point.W
    start = (W - objective.gradient(objective.evaluate(W))).clamp(min=0) - W
    assert float(moved.abs().max()) < 1e-3 * float(start.abs().max())
