"""Where does a fit start? From cells taken at random, improved on ever larger samples; or from singular vectors.

A mean of a few random cells is sparse, non-negative and close to the data ("random Acol" of Langville et al. 2006).
Descent on a sample costs little, and its noise leads past poor minima; all cells then need few sweeps. It is coordinate
descent on the CPU also where the fit is on a card: gradient steps on the same samples took a fifth of the time and led
to minima .3 to 1.5 % worse (Kang, k = 20 and 80, three seeds).
"""

import numpy as np
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.training import solver
from aenmf_lib.training.group_sums import SAMPLE_SIZE
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.second_moment import IMPLICIT

INITS = ("cells", "nndsvd")
_LEVELS = (1024, SAMPLE_SIZE)  # cells of the samples
_CELLS = 20  # whose mean one program starts from
_TOL, _SWEEPS = 1e-3, 50  # when descent on a sample ends


def initialize(
    moments: Moments, k: int, *, init: str, seed: int, lambda_W: float, row_norm: bool = False
) -> torch.Tensor:
    """Give a W to start from.

    Parameters
    ----------
    init
        'cells', or 'nndsvd'.
    seed
        Of what is random.
    lambda_W
        Weight of ‖W‖² in the AE-NMF objective that is minimized on samples.
    row_norm
        Whether the fit will hold rows at length 1, which needs programs that overlap little: they are then descended to
        also where the sample is all there is.

    Returns
    -------
    W : (k, n_genes), rows of the best lengths for the objective
    """
    if init == "nndsvd":
        return rescale_rows(AENMFObjective(moments, lambda_W=lambda_W), nndsvd(moments, k, seed=seed))
    X = moments.sample
    W = mean_cells(X, k, seed=seed)
    # where the sample is all there is, the last level is left to the fit itself
    sizes = [size for size in _LEVELS if size < moments.n_cells] or [X.shape[0]]
    for size in sizes:
        some = Moments.from_cells(AnnData(X[:size]), donor=False, cell_type=False, mode=IMPLICIT)
        objective = AENMFObjective(some, lambda_W=lambda_W)
        if size == sizes[0]:
            W = rescale_rows(objective, W)
        if size < moments.n_cells or row_norm:
            descent = {"tol": _TOL, "max_iter": _SWEEPS, "name": f"start, {size} cells"}
            W = solver.minimize(objective, lambda W=W: W, **descent).W
    return W.to(moments.device)


def mean_cells(X: csr_matrix, k: int, *, seed: int) -> torch.Tensor:
    """Give k means of random cells each, (k, n_genes)."""
    rng = np.random.default_rng(seed)
    n = min(_CELLS, X.shape[0])
    means = [X[rng.choice(X.shape[0], n, replace=False)].mean(axis=0) for _ in range(k)]
    return torch.from_numpy(np.vstack(means).astype(X.dtype))


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


def rescale_rows(objective: AENMFObjective, W: torch.Tensor, *, iterations: int = 200) -> torch.Tensor:
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
        r = r * (grows / shrinks.clamp(min=torch.finfo(shrinks.dtype).tiny)) ** 0.25  # a program that dies has 0 / 0
    return W * r[:, None].to(W.dtype)
