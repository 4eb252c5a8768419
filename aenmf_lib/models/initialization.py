"""Starting values for W: means of random cells, improved on samples of the cells, or singular vectors (NNDSVD).

A mean of a few random cells is sparse, non-negative and close to the data ("random Acol" of Langville et al. 2006,
arXiv:1407.7299). Descent on a sample is cheap, and its noise leads past poor minima. It runs on the CPU even if the fit
uses a GPU, because coordinate descent changes the entries of W one after the other, which is slow on a GPU. Methods
that change many entries at once led to minima with a larger objective (Kang et al., k = 20 and 80, up to three seeds,
not in benchmarks/): gradient steps by 0.3 to 1.5 %, the best of four such starts by up to 1.2 %, multiplicative updates
by 0.8 %, Adam by 0.3 %, and steps that change one program at a time by 0.2 to 0.5 %.
"""

import numpy as np
import torch
from scipy.sparse import csr_matrix

from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.training import solver
from aenmf_lib.training.moments import SAMPLE_SIZE, Moments

INITS = ("cells", "nndsvd")
_SAMPLES = (1024, SAMPLE_SIZE)  # cells in the samples
_CELLS = 20  # cells averaged for one program
_TOL, _SWEEPS = 1e-3, 50  # when descent on a sample stops


def initialize(moments: Moments, k: int, *, init: str, seed: int, lambda_W: float, row_norm: bool) -> torch.Tensor:
    """Return a W to start from, (k, n_genes), whose rows have the lengths that are best for AE-NMF.

    With `row_norm` the programs must overlap little, so descent is also done on a sample that contains all cells.
    """
    if init == "nndsvd":
        return rescale_rows(AENMFObjective(moments, lambda_W=lambda_W), _nndsvd(moments, k, seed=seed))
    X = moments.sample
    W = mean_cells(X, k, seed=seed)
    # skip samples that contain all cells: the fit itself covers that step
    sizes = [size for size in _SAMPLES if size < moments.n_cells] or [X.shape[0]]
    for size in sizes:
        sample = moments.of_sample(size)
        objective = AENMFObjective(sample, lambda_W=lambda_W)
        if size == sizes[0]:
            W = rescale_rows(objective, W)
        if size < moments.n_cells or row_norm:
            settings = {"tol": _TOL, "max_iter": _SWEEPS, "name": f"start, {size} cells"}
            W = solver.minimize(objective, lambda W=W: W, **settings).W
    return W.to(moments.device)


def mean_cells(X: csr_matrix, k: int, *, seed: int) -> torch.Tensor:
    """Return k means of random cells, (k, n_genes)."""
    rng = np.random.default_rng(seed)
    n = min(_CELLS, X.shape[0])
    means = [X[rng.choice(X.shape[0], n, replace=False)].mean(axis=0) for _ in range(k)]
    return torch.from_numpy(np.vstack(means).astype(X.dtype))


def _nndsvd(moments: Moments, k: int, *, seed: int, power: int = 4, noise: float = 0.01) -> torch.Tensor:
    """Return the larger signed part of each leading right singular vector of X, plus a little noise, (k, n_genes).

    After Boutsidis & Gallopoulos (2008), Pattern Recognit. 41:1350, doi:10.1016/j.patcog.2007.09.010. The vectors come
    from `power` subspace iterations on S. The noise allows entries that start at 0 to grow.
    """
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(min(k + 10, moments.n_genes), moments.n_genes, generator=generator, dtype=moments.dtype)
    Q = random.to(moments.device)
    for _ in range(power):
        Q = torch.linalg.qr(moments.product(Q).T)[0].T
    F = moments.product(Q).double() @ Q.double().T
    _, vectors = torch.linalg.eigh((F + F.T) / 2)
    V = vectors.flip(1)[:, :k].T.to(Q.dtype) @ Q  # (k, n_genes)
    plus, minus = V.clamp(min=0), (-V).clamp(min=0)
    W = torch.where(plus.norm(dim=1, keepdim=True) >= minus.norm(dim=1, keepdim=True), plus, minus)
    grain = torch.rand(W.shape, generator=generator, dtype=W.dtype).to(W.device)
    return W + noise * W.mean() * grain


def rescale_rows(objective: AENMFObjective, W: torch.Tensor, *, iterations: int = 200) -> torch.Tensor:
    """Scale the rows of W so that their lengths minimize the AE-NMF objective, (k, n_genes), by k × k matrices only."""
    point = objective.evaluate(W)
    F, G = point.F.sum(0), W.double() @ W.double().T  # (k, k)
    penalty = objective.n * objective.lambda_W / 2 * torch.diag(G)
    r = (F.trace() / (F * G).sum()).sqrt().expand(len(W))  # the best common factor
    for _ in range(iterations):  # multiplicative updates of the k lengths
        rr = torch.outer(r, r)
        grows, shrinks = torch.diag(rr * F), (rr * F * rr * G).sum(1) + penalty * r**2
        r = r * (grows / shrinks.clamp(min=torch.finfo(shrinks.dtype).tiny)) ** 0.25  # 0 / 0 for an empty program
    return W * r[:, None].to(W.dtype)
