"""Exact coordinate descent on the CPU for an untied encoder, ``H = X E`` with decoder W (both n_genes × k here).

If all else is fixed, the objective is a polynomial of degree two in one entry of W. In one entry of E, it is a
polynomial of degree two plus the penalty of one program, ``‖P e‖² / (n Var(h))``, a ratio of two such polynomials; a
step is made only if it lowers the exact objective. With ``α = (S E)_a``, ``β = (S W)_a`` and ``s = S_aa`` for gene a,
``F = EᵀSE`` and ``G = WᵀW``, a step t changes the squared error of ``X̂ = H Wᵀ`` by ``c₁ t + c₂ t²``:

    entry j of W:  c₁ = 2 [F w − α]_j    c₂ = F_jj           entry j of E:  c₁ = 2 [G α − β]_j    c₂ = s G_jj
"""

import numpy as np
import torch

from aenmf_lib.training import _untied_kernels
from aenmf_lib.training._kernels import GENES
from aenmf_lib.training.coordinate_descent import _Descent
from aenmf_lib.training.objective import Objective

# Measured (Kang et al., k = 20 and 60): with the larger relaxation of AE-NMF, a fit needs up to twice the sweeps.
_RELAX = 1.3  # over-relaxation
_VISITS = 4  # updates of W per update of E, without a new product with S


class UntiedDescent(_Descent):
    """Descent over the stack [E; W], (2k, n_genes), gene by gene: first W, then E. Before each sweep, U is optimal.

    Besides the attributes of every objective, the objective has `totals`, the sum of the cells; `M` and `donor_weight`,
    the sum of the cells of each donor and ``n_d + n λ_U`` (no rows without a donor part); the rows `P` of the penalty
    (no rows without a penalty) and its weight `gamma`.
    """

    separate = False
    kernel = _untied_kernels.visit_untied

    def __init__(self, objective: Objective, W: torch.Tensor) -> None:
        parts = (objective.M, objective.donor_weight, objective.P, objective.totals)
        self.M, self.donor_weight, self.P, self.totals = (part.double().numpy() for part in parts)
        # products of P that every sweep needs, (genes, genes) per block of genes
        blocks = [self.P[:, lo : lo + GENES] for lo in range(0, self.P.shape[1], GENES)]
        self.PP = [(P.T @ P).astype(W.numpy().dtype) if len(P) else np.empty((0, 0), W.numpy().dtype) for P in blocks]
        self.weight = 2 * objective.n * objective.gamma / len(W)  # of one program in n × objective
        super().__init__(objective, W)

    def arrays(self) -> dict[str, np.ndarray | float]:
        """Return what `restore` needs."""
        return {"W": np.hstack([self.E, self.W]).T.copy(), "least": self.least}

    def restore(self, arrays: dict) -> None:
        """Restore the state that `arrays` returned."""
        self.E = np.array(np.split(arrays["W"], 2)[0].T, order="C")
        super().restore({"W": np.split(arrays["W"], 2)[1], "least": arrays["least"]})

    def _compute(self) -> None:
        k = self.E.shape[1]
        self.state = self.second.track(np.hstack([self.E, self.W])[None])
        both, W = self.second.inner(self.state, self.state)[0], self._exact()
        self.F, self.cross = both[:k, :k].copy(), float(np.trace(both[:k, k:]))
        self.G = (W.T @ W).numpy()
        self._prepare()

    def _prepare(self) -> None:
        """Compute the optimal U, and the products of E and W with sums over donors and groups, in float64."""
        E, W = (part.astype(np.float64) for part in (self.E, self.W))
        self.J, self.PE, self.sums = self.M @ E, self.P @ E, self.totals @ E
        self.U = np.maximum(self.M - self.J @ W.T, 0) / self.donor_weight[:, None]
        self.V = self.U @ W

    def _visit(self, block: slice) -> tuple[float, int]:
        dtype, objective = self.W.dtype, self.objective
        both = self.second.columns(self.state, block.start, block.stop)[0]  # (genes, 2k)
        products = tuple(np.ascontiguousarray(part) for part in np.hsplit(both, 2))
        factors, changes = (self.E[block], self.W[block]), (np.zeros_like(self.E[block]), np.zeros_like(self.W[block]))
        M, U, P = (rows[:, block] for rows in (self.M, self.U, self.P))
        UM = U.T @ M if len(M) else np.empty((0, 0))
        donors = U.T @ self.J, M.T @ self.V, UM, UM.T.copy()
        q = np.square(self.PE).sum(0)
        gained, steps, cross = _untied_kernels.visit_untied(
            products, self.second.gram(block)[0], self.squares[0, block], factors, (self.F, self.G),
            tuple(part.astype(dtype) for part in donors),
            ((P.T @ self.PE).astype(dtype), self.PP[block.start // GENES], self.totals[block], q, self.sums),
            (0.5 * self.n * objective.lambda_W, self.weight, float(self.n)), (_RELAX, self.least, _VISITS), changes,
        )  # fmt: skip
        DE, DW = changes
        self.second.update(self.state, block.start, np.hstack(changes)[None])
        self.cross += cross
        self.J += M @ DE
        self.PE += P @ DE
        self.V += U @ DW
        return gained, steps

    def _value(self) -> float:
        objective = self.objective
        value = objective.moments.sq_norm - 2 * self.cross + np.sum(self.F * self.G)
        value += 2 * np.sum(self.J * self.V) - 2 * np.sum(self.M * self.U)
        value += self.donor_weight @ np.square(self.U).sum(1)
        norms = [float(np.square(M, dtype=np.float64).sum()) for M in (self.E, self.W)]
        second = np.diagonal(self.F)
        variance = second - self.sums**2 / self.n
        varies = variance > _untied_kernels.CONSTANT * second
        shares = np.square(self.PE).sum(0)[varies] / variance[varies]
        return float(value + 0.5 * self.n * objective.lambda_W * sum(norms) + self.weight * shares.sum()) / self.n

    def solution(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the stack [E; W], (2k, n_genes), and the optimal U for it."""
        stack = torch.from_numpy(self.arrays()["W"])
        return stack, self.objective.closed_form_U(stack)
