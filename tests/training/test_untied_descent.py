"""Coordinate descent for an untied encoder, against the exact objective and gradient steps."""

import functools

import numpy as np
import pytest
import torch
from conftest import tiny_cells

from aenmf_lib import UntiedAENMF, data
from aenmf_lib.data import files
from aenmf_lib.models.untied import UntiedObjective
from aenmf_lib.training import checkpoint, coordinate_descent, sharding, solver
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.projected_gradient import ProjectedGradient

OBJECTIVES = {
    "no donors": {"gamma": 0.0, "donors": False},
    "donors": {"gamma": 0.0, "donors": True},
    "penalty": {"gamma": 20.0, "donors": True},
    "large penalty": {"gamma": 3000.0, "donors": True},
}


@pytest.fixture(scope="module")
def problem():
    """Return a function that makes an objective and a stack to start from. 600 genes are more than two blocks."""
    computed = {}

    def make(name, mode, n_genes=600, dtype=np.float64, n_cells=80):
        key = mode, n_genes, dtype, n_cells
        if key not in computed:
            cells = tiny_cells(n_cells=n_cells, n_genes=n_genes)
            cells.X = cells.X.astype(dtype)
            cells.X[(cells.obs["donor_id"] == "d1").to_numpy()] *= 2
            computed[key] = Moments.from_cells(cells, mode=mode)
        W = np.random.default_rng(3).random((4, n_genes)).astype(dtype) * 0.02
        stack = torch.from_numpy(np.vstack([W, W]))
        return UntiedObjective(computed[key], lambda_W=0.02, lambda_U=0.1, **OBJECTIVES[name]), stack

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
    for _ in range(12):
        U_used = descent.solution()[1]
        updated = descent.step()
        exact = objective.value(objective.point(descent.solution()[0], U_used))
        assert updated == pytest.approx(exact, rel=1e-11)
        assert updated <= before * (1 + 1e-12)
        before = updated


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gain_of_every_block_equals_the_decrease_of_the_objective(problem, name):
    """Each step computes its exact gain, so everything that a step changes is followed within a block."""
    objective, W = problem(name, "explicit")
    descent = objective.coordinate_descent(objective, W)
    for _ in range(3):
        descent._prepare()
        for block in (slice(0, 256), slice(256, 512), slice(512, 600)):
            before = descent._value()
            gained, steps = descent._visit(block)
            assert steps > 0
            assert gained == pytest.approx(objective.n * (before - descent._value()), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize(("dtype", "rise"), [(np.float64, 1e-12), (np.float32, 1e-6)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_history_never_rises(problem, name, dtype, rise):
    """In float32, the products that a sweep updates are rounded."""
    history = np.array(minimize(*problem(name, "implicit", dtype=dtype), max_iter=40).loss_history)
    assert (np.diff(history) <= rise * history[0]).all()
    assert history[-1] < 0.9 * history[0]


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-6), (np.float32, 1e-4)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_implicit_and_explicit_reach_the_same_objective(problem, name, dtype, rtol):
    """Iterations differ by rounding, which decides which steps are skipped, but their ends agree."""
    ends = [
        minimize(*problem(name, mode, dtype=dtype), max_iter=60).loss_history[-1] for mode in ("implicit", "explicit")
    ]
    assert ends[0] == pytest.approx(ends[1], rel=rtol)


@pytest.fixture(scope="module")
def converged(problem):
    """Return a function that gives objective, start and almost converged solution."""
    found = {}

    def solve(name):
        if name not in found:
            objective, W = problem(name, "implicit", n_genes=40)
            found[name] = objective, W, minimize(objective, W, tol=1e-13, max_iter=5000)
        return found[name]

    return solve


@pytest.mark.parametrize("name", OBJECTIVES)
def test_solution_satisfies_the_optimality_conditions(converged, name):
    """A projected gradient step changes almost nothing: the gradient is 0 where E, W > 0, and ≥ 0 where they are 0."""
    objective, start, solution = converged(name)
    moved = []
    for stack in (start, solution.W):
        point = objective.evaluate(stack)
        moved.append(float(((stack - objective.gradient(point)).clamp(min=0) - stack).abs().max()))
    assert moved[1] < 1e-3 * moved[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_projected_gradient_does_not_improve_the_solution(converged, name):
    """Two independent methods for one objective check each other."""
    objective, _, solution = converged(name)
    gradient = ProjectedGradient(objective, solution.W, row_norm=False)
    for _ in range(300):
        if gradient.step() is None:
            break
    assert gradient.best.loss > solution.loss_history[-1] * (1 - 1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_projected_gradient_minimizes_the_objective(problem, name):
    """A GPU uses this method: it falls about as far as coordinate descent, possibly to another minimum. It resumes."""
    objective, W = problem(name, "explicit", n_genes=40)
    ends = [solver_of(objective, W) for solver_of in (descend, follow_gradient)]
    assert ends[1] < ends[0] + 0.1 * (objective.evaluate(W).loss - ends[0])


def descend(objective, W):
    return minimize(objective, W, max_iter=500, tol=1e-8).loss_history[-1]


def follow_gradient(objective, W):
    method = ProjectedGradient(objective, W, row_norm=False)
    for i in range(600):
        if i == 300:
            state, method = method.arrays(), ProjectedGradient(objective, W, row_norm=False)
            method.restore(state)
        if method.step() is None:
            break
    stack, U = method.solution()
    assert objective.value(objective.point(stack, U)) == pytest.approx(method.best.loss, rel=1e-12)
    return method.best.loss


@pytest.mark.parametrize("settings", [{"strength": 0.0}, {"strength": 1.0}, {"strength": 1.0, "n_starts": 2}])
def test_resumed_fit_equals_uninterrupted_fit(tmp_path, monkeypatch, settings):
    """The fit is interrupted again and again, while it fits AE-NMF and while it fits the untied model."""
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    cells = tiny_cells()
    make = functools.partial(UntiedAENMF, k=4, tol=0, max_iter=40, **settings)
    expected, rng, real, n_files = make().fit(cells), np.random.default_rng(1), coordinate_descent._Descent.step, []
    for _ in range(50):
        left = [int(rng.integers(11, 25))]

        def step(self, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(self)

        monkeypatch.setattr(coordinate_descent._Descent, "step", step)
        try:
            model = make().fit(cells, checkpoint=tmp_path / "state.npz")
            break
        except KeyboardInterrupt:
            n_files.append(len(list(tmp_path.iterdir())))
    assert len(n_files) > 2
    assert len(set(n_files)) > 1
    assert set(tmp_path.iterdir()) <= set(model.checkpoint_files_)
    for name in ("W_", "encoder_", "U_", "loss_history_"):
        np.testing.assert_array_equal(getattr(model, name), getattr(expected, name))
    with pytest.raises(ValueError, match=r"is a checkpoint of another fit: lambda_U is 0.1, expected 0.5"):
        make(lambda_U=0.5).fit(cells, checkpoint=tmp_path / "state.npz")


def test_sums_over_shards_give_the_fit_of_all_cells(tmp_path):
    cells = tiny_cells(n_cells=200)
    cells.X = cells.X.astype(np.float32)
    files.write_h5ad(cells, tmp_path / "cells.h5ad")
    shards = [tmp_path / f"{shard}-of-2.npz" for shard in range(2)]
    for shard, out in enumerate(shards):
        sharding.sum_shard(tmp_path / "cells.h5ad", shard, 2, out)
    sharding.merge_shards(shards, tmp_path / "cells.h5ad", tmp_path / "sums.npz")
    stream = data.load_stream(tmp_path / "cells.h5ad")
    found = UntiedAENMF(k=4, max_iter=40).fit(stream, sums=tmp_path / "sums.npz")
    expected = UntiedAENMF(k=4, max_iter=40, mode="explicit").fit(cells)
    assert found.loss_history_[-1] == pytest.approx(expected.loss_history_[-1], rel=1e-3)
    assert found.penalty_.gamma == pytest.approx(expected.penalty_.gamma, rel=1e-3)
