"""Coordinate descent: every model and way to keep S, against the exact objective and the projected gradient."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_cells

from aenmf_lib.models import initialization
from aenmf_lib.models.objectives import AdditiveDonorObjective, AENMFObjective, DonorDecoderObjective
from aenmf_lib.models.penalties import PenaltyWeights
from aenmf_lib.training import _kernels, solver
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.projected_gradient import ProjectedGradient


def penalty(moments, gamma, eta):
    """Strong enough for the curvature to be the penalty's, where a wrong one would overshoot."""
    return PenaltyWeights(gamma, eta, centered=True).rows(moments)


OBJECTIVES = {
    "tied": lambda m: AENMFObjective(m, lambda_W=0.02),
    "additive": lambda m: AdditiveDonorObjective(
        m, lambda_W=0.02, lambda_U=0.1, P=PenaltyWeights(0.5, 3.0, centered=True).rows(m)
    ),
    "bending": lambda m: DonorDecoderObjective(m, lambda_W=0.02, lambda_U=0.05),
    "bending, kept down": lambda m: DonorDecoderObjective(
        m, lambda_W=0.02, lambda_U=0.05, P=PenaltyWeights(50.0, 300.0, centered=True).rows(m)
    ),
}


def made(name, mode, n_genes=600, dtype=np.float64):
    """More genes than two blocks hold."""
    cells = tiny_cells(n_cells=80, n_genes=n_genes)
    cells.X = cells.X.astype(dtype)
    objective = OBJECTIVES[name](Moments.from_cells(cells, by_donor=name.startswith("bending"), mode=mode))
    W = torch.from_numpy(np.random.default_rng(3).random((4, n_genes)).astype(dtype))
    return objective, initialization.rescale_rows(AENMFObjective(objective.moments, lambda_W=0.02), W) if name in (
        "tied",
        "additive",
    ) else W * 0.03


def minimized(objective, W, **settings):
    return solver.minimize(objective, lambda: W, **settings)


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_objective_followed_is_the_exact_one_and_never_rises(name, mode):
    objective, W = made(name, mode)
    descent = solver._method(objective, W, row_norm=False)
    before = descent.loss
    assert before == pytest.approx(objective.value(objective.point(*descent.solution())), rel=1e-12)
    for _ in range(8):
        U_used = objective.closed_form_U(descent.solution()[0])
        followed = descent.step()
        W_now, U_now = descent.solution()
        exact = objective.value(objective.point(W_now, U_used if name == "additive" else U_now))
        assert followed == pytest.approx(exact, rel=1e-11)
        assert followed <= before * (1 + 1e-12)
        before = followed


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_history_never_rises(name):
    history = np.array(minimized(*made(name, "implicit"), max_iter=30).loss_history)
    assert (np.diff(history) <= 1e-12 * history[0]).all()


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-10), (np.float32, 1e-4)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_modes_end_in_the_same_place(name, dtype, rtol):
    """In float32 the paths part by rounding, as descents do, but end as low."""
    ends = [
        minimized(*made(name, mode, dtype=dtype), max_iter=15).loss_history[-1] for mode in ("implicit", "explicit")
    ]
    assert ends[0] == pytest.approx(ends[1], rel=rtol)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_end_is_stationary_for_the_gradient_too(name):
    """What the projected gradient would still change: nothing where W > 0, nothing downhill where W = 0."""
    objective, W = made(name, "implicit", n_genes=40)
    solution = minimized(objective, W, tol=1e-13, max_iter=3000)
    point = objective.polish(objective.point(solution.W, solution.U))
    gradient = objective.gradient(point)
    moved = (point.W - gradient).clamp(min=0) - point.W
    first = (W - objective.gradient(objective.evaluate(W))).clamp(min=0) - W
    assert float(moved.abs().max()) < 1e-3 * float(first.abs().max())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_projected_gradient_finds_nothing_lower(name):
    """The other's oracle: two methods, one objective."""
    objective, W = made(name, "implicit", n_genes=40)
    solution = minimized(objective, W, tol=1e-10, max_iter=3000)
    gradient = ProjectedGradient(objective, solution.W, row_norm=False)
    for _ in range(300):
        if gradient.step() is None:
            break
    assert gradient.best.loss > solution.loss_history[-1] * (1 - 1e-4)


def test_code_just_compiled_and_code_from_the_cache_give_the_same_bits(tmp_path):
    """Numba links the two in different ways."""
    program = """if True:
        import hashlib
        from conftest import tiny_cells
        from aenmf_lib import AENMF, CAENMF1, CAENMF2
        cells = tiny_cells(n_cells=200, n_genes=100)
        for model in (AENMF, CAENMF1, CAENMF2):
            fit = model(k=20, tol=0, max_iter=20).fit(cells)
            print(model.name, hashlib.sha256(fit.W_.tobytes()).hexdigest(), *fit.loss_history_)
    """
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    told = [
        subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert told[0].splitlines() == told[1].splitlines()
    assert len(told[0].splitlines()) == 3


def test_the_best_step_is_the_minimum_of_the_quartic():
    """Against a grid, refined, for coefficients of all signs."""
    rng = np.random.default_rng(0)
    for c1, c2, c3 in rng.normal(size=(300, 3)) * 10.0 ** rng.uniform(-3, 3, (300, 1)):
        c4, low = 10.0 ** rng.uniform(-3, 3), -rng.exponential()
        step, value = _kernels.best_step(c1, c2, c3, c4, low)
        reach = 2 + 2 * max(abs(c1), abs(c2), abs(c3)) / c4  # beyond it the quartic term rules
        grid = np.concatenate([[0.0], np.linspace(low, reach, 4001), low + np.geomspace(1e-9, reach, 4001)])
        least = (grid * (c1 + grid * (c2 + grid * (c3 + grid * c4)))).min()
        assert step >= low
        assert value == pytest.approx(step * (c1 + step * (c2 + step * (c3 + step * c4))), rel=1e-6, abs=1e-12)
        assert value <= least + 1e-9 * abs(least)
