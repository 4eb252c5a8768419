"""How is an objective minimized where coordinate descent cannot? All of W at once, along the projected gradient.

Spectral projected gradient over the non-negative W (Birgin, Martínez & Raydan 2000, SIAM J. Optim. 10:1196), with the
gradient divided by the objective's own curvature. On a GPU, and where rows are held at length 1. What else a model has
(the donor part U) is solved for inside the objective, given W.
"""

from typing import Protocol

import numpy as np
import torch

_MEMORY = 10  # a step may rise above the last value, not above the worst of this many (non-monotone line search)
_ARMIJO = 1e-4  # share of the decrease a linear model promises that a step must deliver
_STEPS = (1e-3, 1e3)  # bounds on the spectral step, in units of the inverse curvature


class Point(Protocol):
    """An objective evaluated at one W."""

    W: torch.Tensor
    U: torch.Tensor | None
    loss: float


class Objective(Protocol):
    """What is asked of an objective."""

    def evaluate(self, W: torch.Tensor, near: Point | None = None) -> Point:
        """Value at W; `near` is a point close by that may serve as a start for an inner solve."""

    def gradient(self, point: Point) -> torch.Tensor:
        """Gradient with respect to W, (k, n_genes)."""

    def curvature(self, point: Point) -> torch.Tensor:
        """Positive estimate of the diagonal of the Hessian, (k, n_genes)."""


class ProjectedGradient:
    """Minimize over W ≥ 0, and with `row_norm` over rows of length 1."""

    window = 30  # iterations over which the decrease is judged: more than the line search may wander

    def __init__(self, objective: Objective, W: torch.Tensor, *, row_norm: bool) -> None:
        self.objective, self.row_norm = objective, row_norm
        self.here = self.best = objective.evaluate(project(W, row_norm=row_norm))
        self.length, self.recent = 1.0, [self.here.loss]
        self.gradient = self._gradient(self.here)
        self.loss = self.here.loss

    def step(self) -> float | None:
        """Go one step; gives the objective, or None where no step lowers it."""
        here, curvature = self.here, self.objective.curvature(self.here)
        ahead = self._line_search(curvature)
        if ahead is None:
            return None
        gradient = self._gradient(ahead)
        self.length = _spectral(self.length, ahead.W - here.W, gradient - self.gradient, curvature)
        self.here, self.gradient, self.loss = ahead, gradient, ahead.loss
        self.recent = [*self.recent, ahead.loss][-_MEMORY:]
        if ahead.loss < self.best.loss:
            self.best = ahead
        return self.loss

    def refresh(self) -> float:
        """Nothing has to be formed anew; gives the objective."""
        return self.loss

    def arrays(self) -> dict[str, np.ndarray | float]:
        """Give what `restore` needs to go on to the same bits."""
        held = {"length": self.length, "recent": np.array(self.recent)}
        for name, point in (("", self.here), ("best_", self.best)):
            held[name + "W"] = point.W.cpu().numpy()
            if point.U is not None:
                held[name + "U"] = point.U.cpu().numpy()
        return held

    def restore(self, arrays: dict) -> None:
        """Go back to where `arrays` was told."""
        device, points = self.here.W.device, []
        for name in ("", "best_"):
            W, U = (
                torch.from_numpy(arrays[name + part]).to(device) if name + part in arrays else None for part in "WU"
            )
            point = self.objective.point(W, U)
            point.loss = self.objective.value(point)
            points.append(point)
        (self.here, self.best), self.loss = points, points[0].loss
        self.length, self.recent = float(arrays["length"]), list(arrays["recent"])
        self.gradient = self._gradient(self.here)

    def solution(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """W and U of the best point seen."""
        best = self.objective.polish(self.best)
        return best.W, best.U

    def _gradient(self, point: Point) -> torch.Tensor:
        gradient = self.objective.gradient(point)
        if bad := int((~torch.isfinite(gradient)).sum()):
            raise FloatingPointError(
                f"loss {point.loss}, {bad} of {gradient.numel()} gradient entries are not finite. Check the input for "
                "extreme values."
            )
        return gradient

    def _line_search(self, curvature: torch.Tensor) -> Point | None:
        """Go along the projected direction until the value is low enough; None if it never is."""
        here, reference = self.here, max(self.recent)
        direction = project(here.W - self.length * self.gradient / curvature, row_norm=self.row_norm) - here.W
        slope = _dot(self.gradient, direction)
        if slope >= 0:
            return None
        share = 1.0
        while share > 1e-8:
            ahead = self.objective.evaluate(project(here.W + share * direction, row_norm=self.row_norm), here)
            if ahead.loss <= reference + _ARMIJO * share * slope:
                return ahead
            # minimum of the parabola through value, slope and the failed value, kept within a tenth and a half
            parabola = -slope * share**2 / (2 * (ahead.loss - here.loss - share * slope))
            share = min(max(parabola, 0.1 * share), 0.5 * share)
        return None


def project(W: torch.Tensor, *, row_norm: bool) -> torch.Tensor:
    """Give the nearest W that is allowed: W ≥ 0 and, with `row_norm`, rows of length 1 (a zero row stays zero)."""
    W = W.clamp(min=0)
    if row_norm:
        W = W / W.norm(dim=1, keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)
    return W


def _spectral(length: float, dW: torch.Tensor, dg: torch.Tensor, curvature: torch.Tensor) -> float:
    """Barzilai–Borwein step in the metric of the curvature; longer than the last where the objective bends down."""
    along = _dot(dW, dg)
    low, high = _STEPS
    return min(max(_dot(dW, curvature * dW) / along if along > 0 else 4 * length, low), high)


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.sum(a * b, dtype=torch.float64))
