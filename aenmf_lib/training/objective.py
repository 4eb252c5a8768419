"""The interface of an objective: attributes and methods that the solvers use. `models.objectives` implements it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from aenmf_lib.training.moments import Moments


@dataclass
class Point:
    """An objective evaluated at W, with the products that its gradient needs."""

    W: torch.Tensor  # (k, n_genes)
    T: torch.Tensor  # (1 or n_donors, k, n_genes), W S or W S_d
    F: torch.Tensor  # (1 or n_donors, k, k) float64, T Wᵀ
    U: torch.Tensor | None  # donor part: (n_donors, n_genes) in model 1, (n_donors, k, n_genes) in model 2
    loss: float = float("nan")


class Objective(Protocol):
    """An objective over W ≥ 0. Each evaluation solves for the donor part U at the given W."""

    coordinate_descent: Callable  # (objective, W): a minimizer with the methods of `ProjectedGradient`, for the CPU
    moments: Moments
    n: int  # cells
    gene_sq: torch.Tensor  # (1 or n_donors, 1, n_genes), diagonals of the second moments
    lambda_W: float
    lambda_U: float  # only with a donor part
    # (W, near=None): the point with the best U. If U is computed by iteration, the iteration starts from the U of
    # `near`, an earlier point.
    evaluate: Callable[..., Point]
    point: Callable[..., Point]  # (W, U=None): the point, with loss = NaN
    value: Callable[[Point], float]
    gradient: Callable[[Point], torch.Tensor]  # with respect to W, (k, n_genes)
    curvature: Callable[[Point], torch.Tensor]  # a positive estimate of the diagonal of the Hessian, (k, n_genes)
    # (W): L, K, c such that n × (objective − AE-NMF data term − λ_W term) = ⟨L Wᵀ, K Wᵀ⟩ + c. In model 2, ⟨…⟩ + c
    # is only n × the penalty.
    quadratic: Callable
    closed_form_U: Callable  # (W): the best U if W determines it without a product with S, otherwise None
    polish: Callable[[Point], Point]  # the point with a more exact U at the same W
