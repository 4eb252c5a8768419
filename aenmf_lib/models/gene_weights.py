"""How much does each gene count in the objective? As published alike, or by the variance that it shares with others.

Exact AE-NMF spends its nearly disjoint programs on the few hundred genes that hold most of ‖X‖², and types told apart
by quieter genes go without. Dividing by the standard deviation alone raises genes that are noise as well, the more so
in shallow data; the communality of factor analysis tells the two apart.
"""

import numpy as np
import torch

from aenmf_lib.training.moments import Moments

RULES = ("none", "shared")
_RANK = 30  # factors; 15 to 80 gave the same scores
_POWER = 0.75  # of the communality: .5 lets in more noise, 1 cost scores on unseen donors
_FLOORS = 0.02, 0.05  # of the standard deviation, for the correlations and for the weights; .02 to .2 changed nothing
_ITERATIONS = 20  # of the subspace: with 4 the weights are 10 to 30 % off


def shared_variance_weights(moments: Moments, rule: str = "shared", *, seed: int = 0) -> np.ndarray:
    """Weigh the genes: the objective is then that of ``X diag(w)``.

    ``w = com^(p/2) / max(sd, floor)`` with the communality ``com = Σ_i V_gi² (l_i − l_r)`` of the r leading pairs
    (l, V) of the genes' correlations: l_r, the least of them, stands for what noise alone would give.

    Parameters
    ----------
    moments
        Of the cells; only sums and products with S are used.
    rule
        'shared', or 'none': all 1.
    seed
        Of the random start of the subspace iteration.

    Returns
    -------
    w : (n_genes,) float64, ≥ 0, scaled so that ``‖X diag(w)‖ = ‖X‖``: λ keeps its meaning. 0 where a gene shares
    nothing: it takes no part.
    """
    squares = moments.gene_sq.double().sum(0).cpu().numpy()
    if rule == "none":
        return np.ones(moments.n_genes)
    mean = moments.donor_sums.double().sum(0).cpu().numpy() / moments.n_cells
    variance = np.clip(squares / moments.n_cells - mean**2, 0, None)
    deviation = np.sqrt(variance)
    scale = 1 / np.maximum(deviation, _FLOORS[0])
    values, vectors = leading_eigenpairs(moments, scale, mean, min(_RANK, moments.n_genes), seed=seed)
    shared = (vectors**2 * np.clip(values - values[-1], 0, None)).sum(1)
    communality = np.clip(shared / np.maximum(variance * scale**2, 1e-12), 0, 1)
    w = communality ** (_POWER / 2) / np.maximum(deviation, _FLOORS[1])
    return w * np.sqrt(squares.sum() / max((w**2 * squares).sum(), np.finfo(float).tiny))


def leading_eigenpairs(
    moments: Moments, scale: np.ndarray, mean: np.ndarray, rank: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Leading eigenpairs of ``diag(a) Cov diag(a)``, by subspace iteration: values (rank,), vectors (n_genes, rank)."""
    a = torch.as_tensor(scale, device=moments.device)
    m = a * torch.as_tensor(mean, device=moments.device)
    generator = torch.Generator().manual_seed(seed)
    more = min(rank + 10, moments.n_genes)
    Q = torch.linalg.qr(torch.randn(moments.n_genes, more, generator=generator, dtype=torch.float64))[0].to(a.device)

    def product(Q: torch.Tensor) -> torch.Tensor:
        SQ = moments.product((a[:, None] * Q).T.to(moments.dtype)).T.double()
        return a[:, None] * SQ / moments.n_cells - torch.outer(m, m @ Q)

    for _ in range(_ITERATIONS):
        Q = torch.linalg.qr(product(Q))[0]
    F = Q.T @ product(Q)
    values, vectors = torch.linalg.eigh((F + F.T) / 2)
    return values.flip(0)[:rank].cpu().numpy(), (Q @ vectors.flip(1)[:, :rank]).cpu().numpy()
