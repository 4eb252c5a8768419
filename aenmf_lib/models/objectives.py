"""Objectives of the three autoencoding models: value, gradient, curvature and the best donor part U.

Everything is written in the moments of the cells. With ``T = W S`` and ``F = T Wᵀ`` (one per donor in model 2) the data
term of every model is a difference of traces, so these are taken in float64. Notation: ``n`` cells, ``d`` donors.
"""

from dataclasses import replace
from typing import ClassVar

import torch

from aenmf_lib.training.coordinate_descent import CoordinateDescent, DonorCoordinateDescent
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.objective import Point


class AENMFObjective:
    """AE-NMF: ``(1/n) ‖X − X Wᵀ W‖² + λ_W ‖W‖²``, plus ``‖P Wᵀ‖²`` for the rows P of a penalty."""

    coordinate_descent: ClassVar = CoordinateDescent  # minimizes this objective on the CPU
    by_donor: ClassVar[bool] = False  # whether the donors have separate second moments

    def __init__(self, moments: Moments, *, lambda_W: float, lambda_U: float = 0.0, P: torch.Tensor | None = None):
        self.moments, self.n = moments, moments.n_cells
        self.lambda_W, self.lambda_U = lambda_W, lambda_U
        self.P = moments.donor_sums[:0] if P is None else P
        gene_sq = moments.gene_sq if self.by_donor else moments.gene_sq.sum(0, keepdim=True)
        self.gene_sq = gene_sq[:, None, :]  # (1 or n_donors, 1, n_genes), diagonals of S or S_d

    def evaluate(self, W: torch.Tensor, near: Point | None = None) -> Point:
        """Return the point at W with its best U and its value; `near` is a point whose U serves as a start."""
        point = self.point(W)
        point.U = self.best_U(point, None if near is None else near.U)
        point.loss = self.value(point)
        return point

    def point(self, W: torch.Tensor, U: torch.Tensor | None = None) -> Point:
        """Return the point at (W, U) without its value. Only this step multiplies by S."""
        T = self.moments.product_by_donor(W) if self.by_donor else self.moments.product(W)[None]
        return Point(W, T, _inner(T, W), U)

    def value(self, point: Point) -> float:
        """Return the objective: ``(tr S − 2⟨V, T⟩ + ⟨F, V Vᵀ⟩) / n`` plus the penalties, with V the decoder."""
        V = self._decoder(point)
        sse = self.moments.sq_norm - 2 * _inner(point.T, V).diagonal(dim1=1, dim2=2).sum()
        sse = sse + (point.F * _inner(V, V)).sum()
        penalty = squared_norm(self.P.double() @ point.W.double().T)
        return float(sse) / self.n + self.lambda_W * squared_norm(point.W) + penalty

    def gradient(self, point: Point) -> torch.Tensor:
        """Return the gradient with respect to W at fixed U, (k, n_genes). At the best U it is the full gradient."""
        V, VS = self._decoder(point), self._decoder_product(point)
        F, VV = point.F.to(V.dtype), _inner(V, V).to(V.dtype)
        data = 2 / self.n * (F @ V - 2 * point.T + VV @ point.T - (VS - point.T)).sum(0)
        return data + 2 * self.lambda_W * point.W + 2 * (self.P @ point.W.T).T @ self.P

    def curvature(self, point: Point) -> torch.Tensor:
        """Return the diagonal of the Hessian with respect to W at fixed U, clamped to positive values, (k, n_genes)."""
        V, T, s = self._decoder(point), point.T, self.gene_sq
        VV, F = V.square().sum(2, keepdim=True), point.F.diagonal(dim1=1, dim2=2)[:, :, None].to(V.dtype)
        TV = T * V
        bend = 2 / self.n * (s * (VV - 2) + F + 2 * (TV + TV.sum(1, keepdim=True))).sum(0) + 2 * self.lambda_W
        bend = bend + 2 * self.P.square().sum(0)
        return bend.clamp(min=1e-3 * float(bend.mean().abs()) + torch.finfo(bend.dtype).tiny)

    def quadratic(self, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return L, K (n_rows, n_genes) and c: ``⟨L Wᵀ, K Wᵀ⟩ + c`` is n times the donor part and the penalty."""
        P = self.n**0.5 * self.P.to(W)
        return P, P, 0.0

    def _decoder(self, point: Point) -> torch.Tensor:
        """Return V, which maps usages to expression, in the shape of T."""
        return point.W.expand_as(point.T)

    def _decoder_product(self, point: Point) -> torch.Tensor:
        """Return V S, in the shape of T."""
        return point.T

    def best_U(self, point: Point, U: torch.Tensor | None) -> torch.Tensor | None:
        """Return the U ≥ 0 that minimizes the objective at this W; the given U is a start."""
        return self.closed_form_U(point.W)

    def closed_form_U(self, W: torch.Tensor) -> torch.Tensor | None:
        """Return the U that W determines without a product with S; None if the model has no such U."""
        return None

    def polish(self, point: Point) -> Point:
        """Return the point with a more exact U at the same W."""
        return point


class AdditiveDonorObjective(AENMFObjective):
    """Model 1: ``X̂ = X Wᵀ W + C U``, one profile per donor."""

    def closed_form_U(self, W: torch.Tensor) -> torch.Tensor:
        """Return ``max(0, (M − J W) / (n_d + n λ_U))`` with ``M = CᵀX`` and ``J = M Wᵀ``, (n_donors, n_genes)."""
        M, weight = self.moments.donor_sums.to(W), self.moments.donor_counts.to(W) + self.n * self.lambda_U
        return (M - M @ W.T @ W).clamp(min=0) / weight[:, None]

    def quadratic(self, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return L, K and c of ``2 ⟨M Wᵀ, U Wᵀ⟩ + n ‖P Wᵀ‖² + c``."""
        M, U = self.moments.donor_sums.to(W), self.closed_form_U(W)
        P = super().quadratic(W)[0]
        weight = self.moments.donor_counts.to(W) + self.n * self.lambda_U
        constant = float(weight @ U.square().sum(1) - 2 * (M * U).sum())
        return torch.cat([M, U, P]), torch.cat([U, M, P]), constant

    def value(self, point: Point) -> float:
        """Return the objective at (W, U)."""
        W, U, M = point.W.double(), point.U.double(), self.moments.donor_sums.double()
        sse = self.moments.donor_counts.double() @ U.square().sum(1) - 2 * (M * U).sum()
        sse = sse + 2 * ((M @ W.T) * (U @ W.T)).sum()
        return super().value(point) + float(sse) / self.n + self.lambda_U * squared_norm(U)

    def gradient(self, point: Point) -> torch.Tensor:
        """Return the gradient with respect to W at fixed U, (k, n_genes)."""
        W, U, M = point.W, point.U, self.moments.donor_sums
        return super().gradient(point) + 2 / self.n * ((M @ W.T).T @ U + (U @ W.T).T @ M)

    def curvature(self, point: Point) -> torch.Tensor:
        """Return the diagonal of the Hessian with respect to W at fixed U, (k, n_genes)."""
        cross = 4 / self.n * (self.moments.donor_sums * point.U).sum(0)
        return super().curvature(point) + cross


class DonorDecoderObjective(AENMFObjective):
    """Model 2: ``X̂_i = h_i (W + U_d(i))``, a change of the programs per donor. Needs moments by donor."""

    coordinate_descent: ClassVar = DonorCoordinateDescent
    by_donor: ClassVar[bool] = True

    def _decoder(self, point: Point) -> torch.Tensor:
        return point.W + point.U  # (n_donors, k, n_genes)

    def _decoder_product(self, point: Point) -> torch.Tensor:
        return self.moments.product_by_donor(self._decoder(point))

    def best_U(self, point: Point, U: torch.Tensor | None, *, steps: int = 5) -> torch.Tensor:
        """Improve U by accelerated projected gradient steps (FISTA, restarted here), from U or from 0.

        For every donor and gene this is non-negative least squares with the k × k Hessian ``A = F_d + n λ_U``. A has no
        negative entry, so ``diag(A x / x)`` bounds it for any x > 0; ``x = diag(A)^-½`` adapts to programs of any size.
        """
        U = torch.zeros_like(point.T) if U is None else U
        A = point.F.to(U.dtype)  # (n_donors, k, k)
        B = point.T - A @ point.W  # (n_donors, k, n_genes)
        A = A + self.n * self.lambda_U * torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
        x = A.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(A.dtype).tiny).rsqrt()[:, :, None]
        step = x / (A @ x)  # (n_donors, k, 1)
        ahead, t = U, 1.0
        for _ in range(steps):
            before, U = U, (ahead + step * (B - A @ ahead)).clamp(min=0)
            t_before, t = t, (1 + (1 + 4 * t * t) ** 0.5) / 2
            ahead = U + (t_before - 1) / t * (U - before)
        return U

    def value(self, point: Point) -> float:
        """Return the objective at (W, U)."""
        return super().value(point) + self.lambda_U * squared_norm(point.U)

    def polish(self, point: Point, *, steps: int = 200) -> Point:
        """Return the point with a more exact U at the same W."""
        better = replace(point, U=self.best_U(point, point.U, steps=steps))
        better.loss = self.value(better)
        return better


def _inner(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Return A Bᵀ over the genes in float64, (…, k, k)."""
    return A.double() @ B.double().transpose(-1, -2)


def squared_norm(A: torch.Tensor) -> float:
    """Return ‖A‖², summed in float64."""
    return float(A.square().sum(dtype=torch.float64))
