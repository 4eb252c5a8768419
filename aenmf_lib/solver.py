"""How is any objective minimised? Where it starts, its steps, when it stops.

On the CPU with free rows: exact coordinate descent (module `descent`). With rows held at length 1, and on a GPU:
spectral projected gradient over the non-negative W (Birgin, Martínez & Raydan 2000, SIAM J. Optim. 10:1196), with the
gradient divided by the objective's own curvature. What else a model has (the donor part U) is solved for inside the
objective, given W. The objective is exact over all cells, so its value decides every step and when to stop.
"""

import logging
import math
import time
from dataclasses import dataclass
from typing import Protocol

import torch
from tqdm import tqdm

from aenmf_lib.descent import RELAX, BendingDescent, TiedDescent
from aenmf_lib.moments import Moments
from aenmf_lib.objectives import Bending, Tied

log = logging.getLogger(__name__)

_MEMORY = 10  # a step may rise above the last value, not above the worst of this many (non-monotone line search)
_WINDOW = 30  # iterations over which the decrease is judged: more than the line search may wander
_SWEEPS = 10  # the same for sweeps of coordinate descent, none of which rises
_ARMIJO = 1e-4  # share of the decrease a linear model promises that a step must deliver
_STEPS = (1e-3, 1e3)  # bounds on the spectral step, in units of the inverse curvature


class Point(Protocol):
    """An objective evaluated at one W."""

    W: torch.Tensor
    loss: float


class Objective(Protocol):
    """What the solver asks of an objective."""

    def evaluate(self, W: torch.Tensor, near: Point | None = None) -> Point:
        """Value at W; `near` is a point close by that may serve as a start for an inner solve."""

    def gradient(self, point: Point) -> torch.Tensor:
        """Gradient with respect to W, (k, n_genes)."""

    def curvature(self, point: Point) -> torch.Tensor:
        """Positive estimate of the diagonal of the Hessian, (k, n_genes)."""


@dataclass
class Solution:
    """Where the solver ended, and why."""

    point: Point
    loss_history: list[float]  # objective at the start and after each iteration
    reason: str
    seconds: float

    @property
    def n_iter(self) -> int:
        """Iterations done."""
        return len(self.loss_history) - 1


def nndsvd(moments: Moments, k: int, *, seed: int, power: int = 4, noise: float = 0.01) -> torch.Tensor:
    """Start from the top right singular vectors of X, the larger of the two signed parts of each, and a little noise.

    The vectors come from `power` subspace iterations on S. The part kept is that of Boutsidis & Gallopoulos (2008),
    Pattern Recognit. 41:1350; the noise lets entries that start at 0 leave it.

    Returns
    -------
    W : (k, n_genes), rows of length about 1
    """
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(min(k + 10, moments.n_genes), moments.n_genes, generator=generator, dtype=moments.dtype)
    Q = random.to(moments.device)
    for _ in range(power):
        Q = torch.linalg.qr(moments.product(Q).T)[0].T
    F = moments.product(Q).double() @ Q.double().T
    _, vectors = torch.linalg.eigh((F + F.T) / 2)
    V = vectors.flip(1)[:, :k].T.to(Q.dtype) @ Q
    plus, minus = V.clamp(min=0), (-V).clamp(min=0)
    W = torch.where(plus.norm(dim=1, keepdim=True) >= minus.norm(dim=1, keepdim=True), plus, minus)
    grain = torch.rand(W.shape, generator=generator, dtype=W.dtype).to(W.device)
    return W + noise * W.mean() * grain


def best_scale(objective: Tied, W: torch.Tensor, *, iterations: int = 200) -> torch.Tensor:
    """Scale the rows of W to lower the AE-NMF objective as far as their lengths can.

    One closed-form factor for all rows, ``sqrt(tr F / ⟨F, G⟩)``, then multiplicative updates of the k lengths: all on
    k × k matrices, no pass over the cells.
    """
    point = objective.evaluate(W)
    F, G = point.F.sum(0), W.double() @ W.double().T
    penalty = objective.n * objective.lambda_W / 2 * torch.diag(G)
    r = (F.trace() / (F * G).sum()).sqrt().expand(len(W))
    for _ in range(iterations):
        rr = torch.outer(r, r)
        grows, shrinks = torch.diag(rr * F), (rr * F * rr * G).sum(1) + penalty * r**2
        r = r * (grows / shrinks) ** 0.25
    return W * r[:, None].to(W.dtype)


def project(W: torch.Tensor, *, row_norm: bool) -> torch.Tensor:
    """Give the nearest W that is allowed: W ≥ 0 and, with `row_norm`, rows of length 1 (a zero row stays zero)."""
    W = W.clamp(min=0)
    if row_norm:
        W = W / W.norm(dim=1, keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)
    return W


def minimise(
    objective: Objective,
    W: torch.Tensor,
    *,
    row_norm: bool = False,
    tol: float = 1e-4,
    max_iter: int = 1000,
    name: str = "",
) -> Solution:
    """Minimise an objective over W ≥ 0.

    Parameters
    ----------
    objective
        What to minimise.
    W : (k, n_genes)
        Start, not negative.
    row_norm
        Hold the rows of W at length 1.
    tol
        Stop when the best value fell by less than this share over the last 30 iterations (10 of coordinate descent).
    max_iter
        Stop after this many iterations in any case.
    name
        Shown beside the progress.

    Returns
    -------
    Solution
        The best point seen. The history holds the value of every iteration, also where it rose.

    Raises
    ------
    FloatingPointError
        The objective or its gradient is not finite; the message names the iteration.
    """
    if objective.moments.device == "cpu" and not row_norm:
        return _descend(objective, W, tol=tol, max_iter=max_iter, name=name)
    begin = time.perf_counter()
    here = objective.evaluate(project(W, row_norm=row_norm))
    gradient = _finite(objective.gradient(here), here, 0)
    best, best_values, history = here, [here.loss], [here.loss]
    step, reason = 1.0, f"reached max_iter = {max_iter}"

    with tqdm(total=max_iter, desc=name, unit="it", mininterval=2, disable=not name) as bar:
        for iteration in range(1, max_iter + 1):
            curvature = objective.curvature(here)
            ahead = _line_search(objective, here, gradient, curvature, step, max(history[-_MEMORY:]), row_norm)
            if ahead is None:
                reason = "no step lowers the objective any more"
                break
            ahead_gradient = _finite(objective.gradient(ahead), ahead, iteration)
            step = _spectral_step(step, ahead.W - here.W, ahead_gradient - gradient, curvature)
            here, gradient = ahead, ahead_gradient
            history.append(here.loss)
            best = here if here.loss < best.loss else best
            best_values.append(best.loss)
            bar.update()
            bar.set_postfix(loss=f"{best.loss:.6g}", refresh=False)
            if iteration >= _WINDOW and best_values[-1 - _WINDOW] - best.loss < tol * best.loss:
                reason = f"relative decrease below tol = {tol:g} over {_WINDOW} iterations"
                break
    solution = Solution(best, history, reason, time.perf_counter() - begin)
    log.info(
        "%s: loss %.6g after %d iterations, %.1f s: %s", name, best.loss, solution.n_iter, solution.seconds, reason
    )
    return solution


def _descend(objective: Tied, W: torch.Tensor, *, tol: float, max_iter: int, name: str) -> Solution:
    """Minimise by coordinate descent; a sweep does what several gradient steps do, so fewer are judged."""
    begin = time.perf_counter()
    start = objective.evaluate(project(W, row_norm=False))
    if not math.isfinite(start.loss):
        raise FloatingPointError(f"iteration 0: loss {start.loss}. Check the input for extreme values.")
    descent = (BendingDescent if isinstance(objective, Bending) else TiedDescent)(objective, start)
    history, reason = [start.loss], f"reached max_iter = {max_iter}"
    with tqdm(total=max_iter, desc=name, unit="it", mininterval=2, disable=not name) as bar:
        for iteration in range(1, max_iter + 1):
            history.append(descent.sweep(RELAX))
            if not math.isfinite(history[-1]):
                raise FloatingPointError(
                    f"iteration {iteration}: loss {history[-1]}. Check the input for extreme values."
                )
            bar.update()
            bar.set_postfix(loss=f"{history[-1]:.6g}", refresh=False)
            if iteration >= _SWEEPS and history[-1 - _SWEEPS] - history[-1] < tol * history[-1]:
                reason = f"relative decrease below tol = {tol:g} over {_SWEEPS} iterations"
                break
            if iteration % _SWEEPS == 0:
                descent.refresh()  # what rounding has added up to
    W, U = descent.solution()
    point = objective.point(W, U)
    point.U = objective.best_U(point, U)
    point.loss = objective.value(point)
    history[-1] = point.loss  # model 1's U is the best one now
    seconds = time.perf_counter() - begin
    log.info("%s: loss %.6g after %d iterations, %.1f s: %s", name, point.loss, len(history) - 1, seconds, reason)
    return Solution(point, history, reason, seconds)


def _line_search(objective, here, gradient, curvature, step, reference, row_norm):
    """Go along the projected direction until the value is low enough; None if it never is."""
    direction = project(here.W - step * gradient / curvature, row_norm=row_norm) - here.W
    slope = _dot(gradient, direction)
    if slope >= 0:
        return None
    share = 1.0
    while share > 1e-8:
        ahead = objective.evaluate(project(here.W + share * direction, row_norm=row_norm), here)
        if ahead.loss <= reference + _ARMIJO * share * slope:
            return ahead
        # minimum of the parabola through value, slope and the failed value, kept within a tenth and a half
        parabola = -slope * share**2 / (2 * (ahead.loss - here.loss - share * slope))
        share = min(max(parabola, 0.1 * share), 0.5 * share)
    return None


def _spectral_step(step, dW, dg, curvature) -> float:
    """Barzilai–Borwein step in the metric of the curvature; longer than the last where the objective bends down."""
    along = _dot(dW, dg)
    low, high = _STEPS
    return min(max(_dot(dW, curvature * dW) / along if along > 0 else 4 * step, low), high)


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.sum(a * b, dtype=torch.float64))


def _finite(gradient: torch.Tensor, point: Point, iteration: int) -> torch.Tensor:
    if not torch.isfinite(gradient).all() or not abs(point.loss) < float("inf"):
        bad = int((~torch.isfinite(gradient)).sum())
        raise FloatingPointError(
            f"iteration {iteration}: loss {point.loss}, {bad} of {gradient.numel()} gradient entries are not finite. "
            "Check the input for extreme values."
        )
    return gradient
