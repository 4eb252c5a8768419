"""Coordinate descent, for every model and representation of S, against the exact objective and gradient steps."""

import logging
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
from aenmf_lib.training import _kernels, coordinate_descent, solver
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.projected_gradient import ProjectedGradient


def penalty(moments, gamma, eta):
    """Return the rows of a penalty. With large weights a wrong curvature would make the steps overshoot."""
    return PenaltyWeights(gamma, eta, centered=True).rows(moments)


OBJECTIVES = {
    "AE-NMF": lambda m: AENMFObjective(m, lambda_W=0.02),
    "model 1": lambda m: AdditiveDonorObjective(m, lambda_W=0.02, lambda_U=0.1, P=penalty(m, 0.5, 3.0)),
    "model 2": lambda m: DonorDecoderObjective(m, lambda_W=0.02, lambda_U=0.05),
    "model 2, penalty": lambda m: DonorDecoderObjective(m, lambda_W=0.02, lambda_U=0.05, P=penalty(m, 50.0, 300.0)),
}


@pytest.fixture(scope="module")
def problem():
    """Return a function that makes an objective and a start W. 600 genes are more than two blocks."""
    computed = {}

    def make(name, mode, n_genes=600, dtype=np.float64):
        by_donor = name.startswith("model 2")
        key = mode, n_genes, dtype, by_donor
        if key not in computed:
            cells = tiny_cells(n_cells=80, n_genes=n_genes)
            cells.X = cells.X.astype(dtype)
            computed[key] = Moments.from_cells(cells, by_donor=by_donor, mode=mode)
        moments, W = computed[key], np.random.default_rng(3).random((4, n_genes)).astype(dtype)
        W = torch.from_numpy(W)
        if by_donor:
            return OBJECTIVES[name](moments), W * 0.03
        return OBJECTIVES[name](moments), initialization.rescale_rows(AENMFObjective(moments, lambda_W=0.02), W)

    return make


def minimize(objective, W, **settings):
    return solver.minimize(objective, lambda: W, **settings)


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_incremental_objective_equals_exact_objective_and_never_rises(problem, name, mode):
    objective, W = problem(name, mode)
    descent = objective.coordinate_descent(objective, W)
    before = descent.loss
    assert before == pytest.approx(objective.value(objective.point(*descent.solution())), rel=1e-12)
    for _ in range(8):
        U_used = objective.closed_form_U(descent.solution()[0])
        updated = descent.step()
        W_now, U_now = descent.solution()
        exact = objective.value(objective.point(W_now, U_used if name == "model 1" else U_now))
        assert updated == pytest.approx(exact, rel=1e-11)
        assert updated <= before * (1 + 1e-12)
        before = updated


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_history_never_rises(problem, name):
    history = np.array(minimize(*problem(name, "implicit"), max_iter=30).loss_history)
    assert (np.diff(history) <= 1e-12 * history[0]).all()


@pytest.mark.parametrize(("dtype", "iterations", "rtol"), [(np.float64, 60, 1e-10), (np.float32, 300, 1e-4)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_implicit_and_explicit_reach_the_same_objective(problem, name, dtype, iterations, rtol):
    """In float32, rounding decides which steps are skipped, so only the ends of long fits are compared."""
    modes = "implicit", "explicit"
    fits = [minimize(*problem(name, mode, dtype=dtype), tol=0, max_iter=iterations) for mode in modes]
    assert fits[0].loss_history[-1] == pytest.approx(fits[1].loss_history[-1], rel=rtol)


@pytest.fixture(scope="module")
def converged(problem):
    """Return a function that gives objective, start and almost converged solution."""
    found = {}

    def solve(name):
        if name not in found:
            objective, W = problem(name, "implicit", n_genes=40)
            found[name] = objective, W, minimize(objective, W, tol=1e-13, max_iter=3000)
        return found[name]

    return solve


@pytest.mark.parametrize("name", OBJECTIVES)
def test_solution_is_stationary(converged, name):
    """A projected gradient step changes almost nothing: the gradient is 0 where W > 0, and ≥ 0 where W = 0."""
    objective, W, solution = converged(name)
    point = objective.polish(objective.point(solution.W, solution.U))
    moved = (point.W - objective.gradient(point)).clamp(min=0) - point.W
    first = (W - objective.gradient(objective.evaluate(W))).clamp(min=0) - W
    assert float(moved.abs().max()) < 1e-3 * float(first.abs().max())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_projected_gradient_does_not_improve_the_solution(converged, name):
    """Two independent methods for one objective check each other."""
    objective, _, solution = converged(name)
    gradient = ProjectedGradient(objective, solution.W, row_norm=False)
    for _ in range(300):
        if gradient.step() is None:
            break
    assert gradient.best.loss > solution.loss_history[-1] * (1 - 1e-4)


def test_donor_moments_work_for_both_descents(problem):
    """Each descent frees the caches of the other. Recomputed caches give bit-identical results."""
    cells = tiny_cells(n_cells=80, n_genes=300)
    for mode in ("implicit", "explicit"):
        moments, histories = Moments.from_cells(cells, by_donor=True, mode=mode), []
        W = torch.from_numpy(np.random.default_rng(3).random((4, 300))) * 0.03
        for name in ("AE-NMF", "model 2", "AE-NMF", "model 2"):
            histories.append(minimize(OBJECTIVES[name](moments), W, max_iter=3).loss_history)
        assert histories[:2] == histories[2:]
        fresh = Moments.from_cells(cells, by_donor=True, mode=mode)
        assert histories[1] == minimize(OBJECTIVES["model 2"](fresh), W, max_iter=3).loss_history


def test_compiled_and_cached_kernels_give_identical_fits(tmp_path):
    """Also: `compile_kernels` compiles all kernels for float32 cells, and compiling is logged once."""
    program = """if True:
        import hashlib, logging
        from conftest import tiny_cells
        from aenmf_lib import AENMF, CAENMF1, CAENMF2, UntiedAENMF
        from aenmf_lib.training import _cell_kernels, _kernels, _untied_kernels, coordinate_descent
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        coordinate_descent.compile_kernels()
        kernels = [_kernels.visit, _kernels.visit_shared, _kernels.visit_own, _untied_kernels.visit_untied]
        kernels += [_cell_kernels.by_gene, _cell_kernels.follow]
        n_compiled = [len(kernel.signatures) for kernel in kernels]
        cells = tiny_cells(n_cells=200, n_genes=300)
        cells.X = cells.X.astype("float32")
        for model in (AENMF, CAENMF1, CAENMF2, UntiedAENMF, lambda **more: UntiedAENMF(strength=0, **more)):
            fit = model(k=20, tol=0, max_iter=20).fit(cells)
            print(fit.name, hashlib.sha256(fit.W_.tobytes()).hexdigest(), *fit.loss_history_)
        assert [len(kernel.signatures) for kernel in kernels] == n_compiled
    """
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    runs = [
        subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout.splitlines()) == 5
    message = "Compiling the coordinate descent kernels: once after installation, about a minute"
    assert [run.stderr.count(message) for run in runs] == [1, 0]


def test_compiled_kernels_log_no_compilation(problem, caplog):
    objective, W = problem("AE-NMF", "implicit")
    objective.coordinate_descent(objective, W).step()
    with caplog.at_level(logging.INFO):
        coordinate_descent.CoordinateDescent(objective, W)
    assert "Compiling" not in caplog.text


def test_best_step_is_the_minimum_of_the_quartic():
    """Compare with a fine grid, for coefficients of all signs."""
    rng = np.random.default_rng(0)
    for c1, c2, c3 in rng.normal(size=(300, 3)) * 10.0 ** rng.uniform(-3, 3, (300, 1)):
        c4, low = 10.0 ** rng.uniform(-3, 3), -rng.exponential()
        step, value = _kernels.best_step(c1, c2, c3, c4, low)
        reach = 2 + 2 * max(abs(c1), abs(c2), abs(c3)) / c4  # beyond it the quartic term dominates
        grid = np.concatenate([[0.0], np.linspace(low, reach, 4001), low + np.geomspace(1e-9, reach, 4001)])
        least = (grid * (c1 + grid * (c2 + grid * (c3 + grid * c4)))).min()
        assert step >= low
        assert value == pytest.approx(step * (c1 + step * (c2 + step * (c3 + step * c4))), rel=1e-6, abs=1e-12)
        assert value <= least + 1e-9 * abs(least)
