"""What is minimized? Values, gradients and the donor part U of the three autoencoding models.

Everything is written in the moments of the cells (module `moments`); with ``T = W S`` and ``F = T Wᵀ`` (one a donor
in model 2) the data term of every model is a difference of traces, so these are taken in float64. Notation and
formulas: ``n`` cells, ``d`` donors.
"""

from dataclasses import dataclass, replace

import torch

from aenmf_lib.training.moments import Moments


@dataclass
class Point:
    """An objective evaluated at W, with what its gradient needs."""

    W: torch.Tensor  # (k, n_genes)
    T: torch.Tensor  # (1 or n_donors, k, n_genes), W S or W S_d
    F: torch.Tensor  # (1 or n_donors, k, k) float64, T Wᵀ
    U: torch.Tensor | None  # donor part: (n_donors, n_genes) in model 1, (n_donors, k, n_genes) in model 2
    loss: float = float("nan")


class AENMFObjective:
    """AE-NMF: ``(1/n) ‖X − X Wᵀ W‖² + λ_W ‖W‖²``, and ``‖P Wᵀ‖²`` for the rows P of a penalty (module `penalties`)."""

    def __init__(self, moments: Moments, *, lambda_W: float, P: torch.Tensor | None = None) -> None:
        self.moments = moments
        self.lambda_W = lambda_W
        self.P = moments.donor_sums[:0] if P is None else P
        self.n = moments.n_cells
        self.gene_sq = self._gene_sq()[:, None, :]  # diagonals of S or S_d

    # ---------------------------------------------------------------- what the solver asks
    def evaluate(self, W: torch.Tensor, near: Point | None = None) -> Point:
        """Value at W, with the best U for it."""
        point = self.point(W)
        point.U = self.best_U(point, None if near is None else near.U)
        point.loss = self.value(point)
        return point

    def gradient(self, point: Point) -> torch.Tensor:
        """Gradient with respect to W at fixed U: as U is the best one, that of the objective."""
        V, VS = self.decoder(point), self.decoder_product(point)
        F, VV = point.F.to(V.dtype), _inner(V, V).to(V.dtype)
        data = 2 / self.n * (F @ V - 2 * point.T + VV @ point.T - (VS - point.T)).sum(0)
        return data + 2 * self.lambda_W * point.W + 2 * (self.P @ point.W.T).T @ self.P

    def curvature(self, point: Point) -> torch.Tensor:
        """Diagonal of the Hessian with respect to W at fixed U, held above a small positive value."""
        V, T, s = self.decoder(point), point.T, self.gene_sq
        VV, F = V.square().sum(2, keepdim=True), point.F.diagonal(dim1=1, dim2=2)[:, :, None].to(V.dtype)
        TV = T * V
        bend = 2 / self.n * (s * (VV - 2) + F + 2 * (TV + TV.sum(1, keepdim=True))).sum(0) + 2 * self.lambda_W
        bend = bend + 2 * self.P.square().sum(0)
        return bend.clamp(min=1e-3 * float(bend.mean().abs()) + torch.finfo(bend.dtype).tiny)

    def quadratic(self, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Give what the model adds to n times the objective at W's best U: ``⟨L Wᵀ, K Wᵀ⟩`` and a constant.

        W is (k, n_genes) float64 on the CPU, and so are L and K, of few rows.
        """
        P = self.n**0.5 * self.P.to(W)
        return P, P, 0.0

    # ---------------------------------------------------------------- the parts
    def point(self, W: torch.Tensor, U: torch.Tensor | None = None) -> Point:
        """Multiply by S: all that the cells are needed for."""
        T = self._product(W)
        return Point(W, T, _inner(T, W), U)

    def _product(self, W: torch.Tensor) -> torch.Tensor:
        return self.moments.product(W)[None]

    def _gene_sq(self) -> torch.Tensor:
        return self.moments.gene_sq.sum(0, keepdim=True)

    def value(self, point: Point) -> float:
        """Objective at (W, U): ``tr S − 2⟨V, T⟩ + ⟨F, V Vᵀ⟩`` over n, and the penalties."""
        V = self.decoder(point)
        sse = (
            self.moments.sq_norm
            - 2 * _inner(point.T, V).diagonal(dim1=1, dim2=2).sum()
            + (point.F * _inner(V, V)).sum()
        )
        return float(sse) / self.n + self.lambda_W * _sq(point.W) + _sq(self.P.double() @ point.W.double().T)

    def decoder(self, point: Point) -> torch.Tensor:
        """V, of the shape of T: what usages are multiplied by to give expression."""
        return point.W.expand_as(point.T)

    def decoder_product(self, point: Point) -> torch.Tensor:
        """V S, of the shape of T."""
        return point.T

    def best_U(self, point: Point, U: torch.Tensor | None) -> torch.Tensor | None:
        """U ≥ 0 that minimizes the objective for this W; the given U is a start."""
        return self.closed_form_U(point.W)

    def closed_form_U(self, W: torch.Tensor) -> torch.Tensor | None:
        """Give the U that W alone determines, without a product with S; None if the model has no such."""
        return None

    def polish(self, point: Point) -> Point:
        """Solve for U more exactly at the same W."""
        return point


class AdditiveDonorObjective(AENMFObjective):
    """Model 1: ``X̂ = X Wᵀ W + C U``, a profile per donor."""

    def __init__(self, moments: Moments, *, lambda_W: float, lambda_U: float, P: torch.Tensor | None = None) -> None:
        super().__init__(moments, lambda_W=lambda_W, P=P)
        self.lambda_U = lambda_U

    def closed_form_U(self, W: torch.Tensor) -> torch.Tensor:
        """Solve in closed form: ``max(0, (M − J W) / (n_d + n λ_U))`` with ``M = CᵀX``, ``J = M Wᵀ``."""
        M, weight = self.moments.donor_sums.to(W), self.moments.donor_counts.to(W) + self.n * self.lambda_U
        return (M - M @ W.T @ W).clamp(min=0) / weight[:, None]

    def quadratic(self, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Cross terms of the donor part and the penalty, ``2 ⟨M Wᵀ, U Wᵀ⟩ + n ‖P Wᵀ‖²``."""
        M, U = self.moments.donor_sums.to(W), self.closed_form_U(W)
        P = super().quadratic(W)[0]
        weight = self.moments.donor_counts.to(W) + self.n * self.lambda_U
        constant = float(weight @ U.square().sum(1) - 2 * (M * U).sum())
        return torch.cat([M, U, P]), torch.cat([U, M, P]), constant

    def value(self, point: Point) -> float:
        """Objective at (W, U)."""
        W, U, M = point.W.double(), point.U.double(), self.moments.donor_sums.double()
        sse = (
            (self.moments.donor_counts.double() @ U.square().sum(1))
            - 2 * (M * U).sum()
            + 2 * ((M @ W.T) * (U @ W.T)).sum()
        )
        return super().value(point) + float(sse) / self.n + self.lambda_U * _sq(U)

    def gradient(self, point: Point) -> torch.Tensor:
        """Gradient with respect to W at fixed U."""
        W, U, M = point.W, point.U, self.moments.donor_sums
        return super().gradient(point) + 2 / self.n * ((M @ W.T).T @ U + (U @ W.T).T @ M)

    def curvature(self, point: Point) -> torch.Tensor:
        """Diagonal of the Hessian with respect to W at fixed U."""
        cross = 4 / self.n * (self.moments.donor_sums * point.U).sum(0)
        return super().curvature(point) + cross


class DonorDecoderObjective(AENMFObjective):
    """Model 2: ``X̂_i = h_i (W + U_d(i))``, programs that bend per donor. Needs moments kept apart by donor."""

    def __init__(self, moments: Moments, *, lambda_W: float, lambda_U: float, P: torch.Tensor | None = None) -> None:
        super().__init__(moments, lambda_W=lambda_W, P=P)
        self.lambda_U = lambda_U

    def decoder(self, point: Point) -> torch.Tensor:
        """V_d = W + U_d."""
        return point.W + point.U

    def decoder_product(self, point: Point) -> torch.Tensor:
        """V_d S_d: the one product that the other models are spared."""
        return self.moments.product_by_donor(self.decoder(point))

    def _product(self, W: torch.Tensor) -> torch.Tensor:
        return self.moments.product_by_donor(W)

    def _gene_sq(self) -> torch.Tensor:
        return self.moments.gene_sq

    def best_U(self, point: Point, U: torch.Tensor | None, *, steps: int = 5) -> torch.Tensor:
        """Improve U by accelerated projected gradient steps (FISTA, restarted here), from U or from 0.

        Given W this is a non-negative least squares with the k × k Hessian ``A = F_d + n λ_U`` for every donor and
        gene. A holds no negative entry, so ``diag(A x / x)`` is above A for any x > 0; ``x = diag(A)^-½`` allows for
        programs of unlike size.
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
        """Objective at (W, U)."""
        return super().value(point) + self.lambda_U * _sq(point.U)

    def polish(self, point: Point, *, steps: int = 200) -> Point:
        """Solve for U more exactly at the same W."""
        better = replace(point, U=self.best_U(point, point.U, steps=steps))
        better.loss = self.value(better)
        return better


def _inner(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Give A Bᵀ over the genes in float64, (…, k, k)."""
    return A.double() @ B.double().transpose(-1, -2)


def _sq(A: torch.Tensor) -> float:
    return float(A.square().sum(dtype=torch.float64))
