"""Spectral projected gradient over W ≥ 0: updates all of W at once. Used on GPUs and for rows of length 1.

Birgin, Martínez & Raydan (2000), SIAM J. Optim. 10:1196, with the gradient divided by the curvature of the objective.
If the model has a donor part U, each evaluation of the objective solves for U at the given W.
"""

import numpy as np
import torch

from aenmf_lib.training.objective import Objective, Point

_MEMORY = 10  # a step may raise the objective up to the maximum of this many last values (non-monotone line search)
_ARMIJO = 1e-4  # required decrease, as a share of the decrease that the gradient predicts
_STEPS = (1e-3, 1e3)  # bounds on the spectral step, in units of the inverse curvature


class ProjectedGradient:
    """Descent over W ≥ 0; `row_norm` also fixes the rows at length 1. `solver.minimize` calls the public methods."""

    window = 30  # iterations over which the decrease is measured; the objective may rise in some of them

    def __init__(self, objective: Objective, W: torch.Tensor, *, row_norm: bool) -> None:
        self.objective, self.row_norm = objective, row_norm
        self.here = self.best = objective.evaluate(_project(W, row_norm))
        self.length, self.recent, self.loss = 1.0, [self.here.loss], self.here.loss
        self.gradient = self._gradient(self.here)

    def step(self) -> float | None:
        """Make one step. Return the objective, or None if no acceptable step is found."""
        here, curvature = self.here, self.objective.curvature(self.here)
        ahead = self._line_search(curvature)
        if ahead is None:
            return None
        gradient = self._gradient(ahead)
        # Barzilai–Borwein step in the metric of the curvature; along negative curvature, 4 times the last step
        dW = ahead.W - here.W
        along = _dot(dW, gradient - self.gradient)
        length = _dot(dW, curvature * dW) / along if along > 0 else 4 * self.length
        self.length = min(max(length, _STEPS[0]), _STEPS[1])
        self.here, self.gradient, self.loss = ahead, gradient, ahead.loss
        self.recent = [*self.recent, ahead.loss][-_MEMORY:]
        if ahead.loss < self.best.loss:
            self.best = ahead
        return self.loss

    def refresh(self) -> float:
        """Return the objective. Nothing is recomputed: rounding errors do not accumulate in this solver."""
        return self.loss

    def arrays(self) -> dict[str, np.ndarray | float]:
        """Return what `restore` needs."""
        state = {"length": self.length, "recent": np.array(self.recent)}
        for name, point in (("", self.here), ("best_", self.best)):
            state[name + "W"] = point.W.cpu().numpy()
            if point.U is not None:
                state[name + "U"] = point.U.cpu().numpy()
        return state

    def restore(self, arrays: dict) -> None:
        """Restore the state that `arrays` returned."""
        device = self.here.W.device
        tensors = {name: torch.from_numpy(arrays[name]).to(device) for name in arrays if name.endswith(("W", "U"))}
        self.here, self.best = (self.objective.point(tensors[b + "W"], tensors.get(b + "U")) for b in ("", "best_"))
        for point in (self.here, self.best):
            point.loss = self.objective.value(point)
        self.length, self.recent, self.loss = float(arrays["length"]), list(arrays["recent"]), self.here.loss
        self.gradient = self._gradient(self.here)

    def solution(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return W and U of the point with the lowest objective so far."""
        best = self.objective.polish(self.best)
        return best.W, best.U

    def _gradient(self, point: Point) -> torch.Tensor:
        """Return the gradient, (k, n_genes), or raise FloatingPointError if it is not finite."""
        gradient = self.objective.gradient(point)
        if bad := int((~torch.isfinite(gradient)).sum()):
            found = f"loss {point.loss}, {bad} of {gradient.numel()} gradient entries are not finite"
            raise FloatingPointError(f"{found}. Check the input for extreme values.")
        return gradient

    def _line_search(self, curvature: torch.Tensor) -> Point | None:
        """Return the first point along the projected direction with a sufficient decrease, or None."""
        here, reference = self.here, max(self.recent)
        direction = _project(here.W - self.length * self.gradient / curvature, self.row_norm) - here.W
        slope = _dot(self.gradient, direction)
        if slope >= 0:
            return None
        share = 1.0
        while share > 1e-8:
            ahead = self.objective.evaluate(_project(here.W + share * direction, self.row_norm), here)
            if ahead.loss <= reference + _ARMIJO * share * slope:
                return ahead
            # minimum of the parabola through value, slope and failed value, limited to 0.1 to 0.5 of the last share
            parabola = -slope * share**2 / (2 * (ahead.loss - here.loss - share * slope))
            share = min(max(parabola, 0.1 * share), 0.5 * share)
        return None


def _project(W: torch.Tensor, row_norm: bool) -> torch.Tensor:
    """Return W with negative entries set to 0; `row_norm` also scales the rows to length 1 (a zero row stays zero)."""
    W = W.clamp(min=0)
    if row_norm:
        W = W / W.norm(dim=1, keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)
    return W


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the inner product, summed in float64."""
    return float(torch.sum(a * b, dtype=torch.float64))
