"""AE-NMF with an untied encoder, and its objective: usages ``H = X Eᵀ`` for an encoder E ≥ 0 separate from W.

Here E has the shape of W, (k, n_genes). The results file contains it as genes × k.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from aenmf_lib.models import base, penalties
from aenmf_lib.models.aenmf import AENMF
from aenmf_lib.models.conditional import _Conditional
from aenmf_lib.models.objectives import AENMFObjective, _inner, squared_norm
from aenmf_lib.training import _untied_kernels
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.objective import Point
from aenmf_lib.training.untied_descent import UntiedDescent

__all__ = ["UntiedAENMF"]


class UntiedObjective(AENMFObjective):
    """``(1/n) ‖X − H W − C U‖² + (λ_W / 2) (‖E‖² + ‖W‖²) + λ_U ‖U‖² + γ R(H)`` with ``H = X Eᵀ``, over E, W, U ≥ 0.

    The variable, ``point.W``, is the stack [E; W], (2k, n_genes). So ``point.T`` is [E S; W S], and ``point.F``
    contains ``E S Eᵀ``, ``E S Wᵀ`` and ``W S Wᵀ``. Without `donors` there is no U.
    """

    coordinate_descent: ClassVar = UntiedDescent

    def __init__(self, moments: Moments, *, lambda_W: float, lambda_U: float, gamma: float, donors: bool) -> None:
        super().__init__(moments, lambda_W=lambda_W, lambda_U=lambda_U)
        if gamma:
            rows = penalties.invariance_rows(moments, centered=True)  # raises if no cell has a type
            self.P = (self.n / moments.n_labeled) ** 0.5 * rows
        self.gamma, self.totals = gamma, moments.donor_sums.sum(0, dtype=torch.float64)
        self.M, n_d = (part if donors else part[:0] for part in (moments.donor_sums, moments.donor_counts))
        self.donor_weight = n_d + self.n * lambda_U

    def closed_form_U(self, W: torch.Tensor) -> torch.Tensor | None:
        """Return ``max(0, (M − J W) / (n_d + n λ_U))`` with ``M = CᵀX`` and ``J = M Eᵀ``; None without donors."""
        if not len(self.M):
            return None
        E, W = W.chunk(2)
        return (self.M - self.M @ E.T @ W).clamp(min=0) / self.donor_weight[:, None]

    def value(self, point: Point) -> float:
        """Return the objective at the stack [E; W] and U."""
        (E, W), (EE, EW) = point.W.chunk(2), self._usage_products(point)
        value = self.moments.sq_norm - 2 * EW.trace() + (EE * _inner(W, W)).sum()
        if point.U is not None:
            M, U = self.M.double(), point.U.double()
            value = value + 2 * ((M @ E.double().T) * (U @ W.double().T)).sum() - 2 * (M * U).sum()
            value = value + self.donor_weight.double() @ U.square().sum(1)
        penalty = self.gamma * float(self._shares(E, EE)[0].mean()) if self.gamma else 0.0
        return float(value) / self.n + 0.5 * self.lambda_W * squared_norm(point.W) + penalty

    def gradient(self, point: Point) -> torch.Tensor:
        """Return the gradient with respect to the stack at fixed U, (2k, n_genes)."""
        (E, W), (ES, WS), EE = point.W.chunk(2), point.T[0].chunk(2), self._usage_products(point)[0]
        by_E, by_W = _inner(W, W).to(W.dtype) @ ES - WS, EE.to(W.dtype) @ W - ES
        if point.U is not None:
            by_E, by_W = by_E + (point.U @ W.T).T @ self.M, by_W + (self.M @ E.T).T @ point.U
        if self.gamma:
            shares, scale = self._shares(E, EE)
            centered = ES - torch.outer(E.double() @ self.totals, self.totals) / self.n  # n × covariance with the genes
            of_penalty = scale * ((self.P @ E.T).T @ self.P - shares * centered)
            by_E = by_E + self.n * self.gamma / len(E) * of_penalty.to(W.dtype)
        return 2 / self.n * torch.cat([by_E, by_W]) + self.lambda_W * point.W

    def curvature(self, point: Point) -> torch.Tensor:
        """Return a positive estimate of the diagonal of the Hessian with respect to the stack, (2k, n_genes)."""
        (E, W), EE = point.W.chunk(2), self._usage_products(point)[0]
        by_E = W.square().sum(1, keepdim=True) * self.gene_sq[0]
        if self.gamma:
            of_penalty = self._shares(E, EE)[1] * self.P.double().square().sum(0)  # as if the variance were fixed
            by_E = by_E + (self.n * self.gamma / len(E) * of_penalty).to(W.dtype)
        bend = 2 / self.n * torch.cat([by_E, EE.diagonal()[:, None].to(W.dtype).expand_as(W)]) + self.lambda_W
        return bend.clamp(min=1e-3 * float(bend.mean()) + torch.finfo(bend.dtype).tiny)

    def _usage_products(self, point: Point) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``E S Eᵀ = HᵀH`` and ``E S Wᵀ``, (k, k) float64."""
        k = len(point.W) // 2
        return point.F[0, :k, :k], point.F[0, :k, k:]

    def _shares(self, E: torch.Tensor, EE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``I_c(h_j) / Var(h_j)``, the mean of which is R(H), and ``1 / (n Var(h_j))``; both (k, 1).

        Both are 0 for constant usages.
        """
        E, second = E.double(), EE.diagonal()
        spread = second - (E @ self.totals).square() / self.n
        inverse = torch.where(spread > _untied_kernels.CONSTANT * second, 1 / spread, 0)
        return ((E @ self.P.double().T).square().sum(1) * inverse)[:, None], inverse[:, None]


@base.with_inherited_entries
@dataclass(kw_only=True)
class UntiedAENMF(_Conditional):
    """AE-NMF with an untied encoder: usages ``H = X Eᵀ``, where the encoder E is not the decoder W.

    Minimizes ``(1/n) ‖X − X̂‖² + (λ_W / 2) (‖E‖² + ‖W‖²) + λ_U ‖U‖² + γ R(H)`` over E, W, U ≥ 0, with ``X̂ = H W + C U``
    and one-hot donors C. ``R(H) = (1/k) Σ_j I_c(h_j) / Var(h_j)`` is the mean over the programs of the share of their
    variance that lies between donors within a cell type; I_c is that of `CAENMF1`. R does not depend on the lengths of
    the rows of E, so a smaller E does not reduce it. The encoder can avoid genes that differ between donors, while the
    decoder still reconstructs them. With strength 0 there is no penalty and no donor part: ``X̂ = H W``.

    With ``E = W`` and strength 0, this is the objective of AE-NMF [1]_. The fit starts from the AE-NMF solution, and no
    sweep increases the objective (on a GPU: the best step is kept). So with strength 0 the objective ends at or below
    that of AE-NMF. The effective strength is c times (1 − the share of R that chance explains), where c is `strength`.
    It sets γ: at the AE-NMF solution, ``n γ R(H)`` is the effective strength times the squared error
    (`penalties.penalty_weight`).

    Parameters
    ----------
    lambda_W
        λ_W / 2 is the weight of ‖E‖² and of ‖W‖².
    lambda_U
        λ_U, the weight of ‖U‖².
    gene_weights
        'shared': weight each gene by the variance that it shares with other genes, or 'none'.
    row_norm
        Must be False: the rows of W have no fixed length.
    preset
        Must be None: this model was not published.
    strength
        Strength of the penalty, relative to the reconstruction error of AE-NMF. 0: no penalty and no donor part.

    Attributes
    ----------
    encoder_ : (k, n_genes)
        E of ``H = X Eᵀ``, in the units of X.
    donors_ : (n_donors,)
        Donors, in the order of U; empty with strength 0.
    U_ : (n_donors, n_genes) or None
        Profile of each donor; None with strength 0.
    penalty_ : PenaltyWeights
        Weight γ of the penalty R, and a note if there is no penalty or if few cells determine it.
    overlap_
        None.

    Raises
    ------
    ValueError
        On construction, if a parameter is not valid, or if `row_norm` or `preset` is set.

    References
    ----------
    .. [1] Yang & Oja (2010), IEEE Trans. Neural Netw. 21:734, doi:10.1109/TNN.2010.2041361.

    Examples
    --------
    >>> from aenmf_lib import UntiedAENMF, data
    >>> cells, _ = data.simulate(n_cells=200)
    >>> model = UntiedAENMF(k=3, max_iter=5).fit(cells)
    >>> model.transform(cells).shape, model.encoder_.shape, model.U_.shape
    ((200, 3), (3, 2000), (6, 2000))
    """

    strength: float = penalties.UNTIED_STRENGTH
    lambda_U: float = 1e-1
    gene_weights: str = "shared"

    name: ClassVar[str] = "Untied_AE_NMF"
    published: ClassVar[dict] = {}
    encoder_ = None  # set by `fit`, and not computed from W as in AE-NMF
    _from_aenmf = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset or self.row_norm:
            raise ValueError(f"preset={self.preset!r}, row_norm={self.row_norm!r} is not valid for {self.name}: it was "
                             "not published, and the rows of W have no fixed length. Leave both out.")  # fmt: skip

    @property
    def conditional(self) -> bool:
        """Whether the model has a donor part and a penalty. They need donors and cell types."""
        return self.strength > 0

    iter_embeddings = AENMF.iter_embeddings  # only H: this model has no latent of the donor

    def _penalty_at(self, W: torch.Tensor, moments: Moments) -> tuple[penalties.PenaltyWeights, float]:
        """Return the weights and the effective strength; see `_Conditional`.

        R(H) is I_c of usages that are divided by their standard deviations, divided by k.
        """
        tied, n = AENMFObjective(moments, lambda_W=0.0), moments.n_cells
        point = tied.point(W)
        HtH, mean = point.F[0], W.double() @ moments.donor_sums.double().sum(0) / n
        variance = HtH.diagonal() / n - mean.square()
        scale = torch.where(variance > 0, variance.clamp(min=0).rsqrt(), 0)  # of an empty program: 0
        E, HtH = scale[:, None] * W.double(), scale[:, None] * HtH * scale
        weight, effective, note = penalties.penalty_weight(self.strength, moments, E, HtH, n * tied.value(point))
        return penalties.PenaltyWeights(self.k * weight / n, 0.0, centered=True, note=note), effective

    def _fit(self, moments: Moments, W: torch.Tensor, checkpoint: str | Path | None) -> None:
        super()._fit(moments, torch.cat([W, W]), checkpoint)

    def _objective(self, moments: Moments) -> UntiedObjective:
        weights = {"lambda_W": self.lambda_W, "lambda_U": self.lambda_U, "gamma": self.penalty_.gamma}
        return UntiedObjective(moments, **weights, donors=self.conditional)

    def _variable(self) -> np.ndarray:
        """Return the stack [E; W] in the units of the fit, (2k, n_genes).

        There, E is divided by the gene weights, and W is multiplied by them.
        """
        return np.vstack([self._to_data_units(self.encoder_), self._to_fit_units(self.W_)])

    def _check_moments(self, moments: Moments) -> None:
        if self.conditional:
            super()._check_moments(moments)
        else:
            super(_Conditional, self)._check_moments(moments)
            self.donors_ = ()

    def _store(self, solution, moments: Moments) -> None:
        E, W = solution.W.chunk(2)
        super()._store(replace(solution, W=W), moments)
        self.encoder_ = self._to_fit_units(E.cpu().numpy())

    def _overlap(self) -> None:
        """Return None: this model has no embedding of the donor part."""
