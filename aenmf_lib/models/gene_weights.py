"""Weights of the genes in the objective: by the variance that a gene shares with other genes.

Exact AE-NMF spends its nearly disjoint programs on the few hundred genes that make up most of ‖X‖² and misses types
that differ in other genes. Dividing by the standard deviation also raises noisy genes, above all in shallow data. The
communality of factor analysis separates shared variance from noise.
"""

import numpy as np
import torch

from aenmf_lib.training.moments import Moments

RULES = ("none", "shared")
_RANK = 30  # factors; 15 to 80 gave the same scores
_POWER = 0.75  # of the communality; 0.5 keeps more noise, 1 lowered scores on unseen donors
_FLOORS = 0.02, 0.05  # of the standard deviation, for correlations and for weights; 0.02 to 0.2 changed nothing
_ITERATIONS = 20  # of the subspace iteration; after 4 the weights are still 10 to 30 % off


def shared_variance_weights(moments: Moments, *, seed: int = 0) -> np.ndarray:
    """Compute gene weights w from shared variance. The objective is then that of ``X diag(w)``.

    ``w = com^(p/2) / max(sd, floor)`` with the communality ``com = Σ_i V_gi² (l_i − l_r)`` from the r leading
    eigenpairs (l, V) of the gene correlations. The smallest of them, l_r, estimates the level of noise.

    Returns
    -------
    w : (n_genes,) float64, ≥ 0
        Scaled so that ``‖X diag(w)‖ = ‖X‖`` and λ keeps its meaning. 0 for a gene that shares no variance.
    """
    squares = moments.gene_sq.double().sum(0).cpu().numpy()
    mean = moments.donor_sums.double().sum(0).cpu().numpy() / moments.n_cells
    variance = np.clip(squares / moments.n_cells - mean**2, 0, None)
    deviation = np.sqrt(variance)
    scale = 1 / np.maximum(deviation, _FLOORS[0])
    values, vectors = _leading_eigenpairs(moments, scale, mean, min(_RANK, moments.n_genes), seed=seed)
    shared = (vectors**2 * np.clip(values - values[-1], 0, None)).sum(1)
    communality = np.clip(shared / np.maximum(variance * scale**2, 1e-12), 0, 1)
    w = communality ** (_POWER / 2) / np.maximum(deviation, _FLOORS[1])
    return w * np.sqrt(squares.sum() / max((w**2 * squares).sum(), np.finfo(float).tiny))


def _leading_eigenpairs(
    moments: Moments, scale: np.ndarray, mean: np.ndarray, rank: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues (rank,) and eigenvectors (n_genes, rank) of ``diag(scale) Cov diag(scale)``, largest first."""
    a = torch.as_tensor(scale, device=moments.device)
    m = a * torch.as_tensor(mean, device=moments.device)
    generator = torch.Generator().manual_seed(seed)
    n_vectors = min(rank + 10, moments.n_genes)
    start = torch.randn(moments.n_genes, n_vectors, generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(start)[0].to(a.device)  # (n_genes, n_vectors)

    def multiply(Q: torch.Tensor) -> torch.Tensor:
        SQ = moments.product((a[:, None] * Q).T.to(moments.dtype)).T.double()
        return a[:, None] * SQ / moments.n_cells - torch.outer(m, m @ Q)

    for _ in range(_ITERATIONS):
        Q = torch.linalg.qr(multiply(Q))[0]
    F = Q.T @ multiply(Q)
    values, vectors = torch.linalg.eigh((F + F.T) / 2)
    return values.flip(0)[:rank].cpu().numpy(), (Q @ vectors.flip(1)[:, :rank]).cpu().numpy()
