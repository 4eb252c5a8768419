"""How is what the usages tell of the donor kept down, and how strongly?

Both penalties are of the form ``‖P Wᵀ‖²`` with rows P made of group sums, so no pass over the cells is needed. A
weight that bites on one data set does nothing on another; a strength means the same on all: 1 makes the penalty at the
plain AE-NMF solution as large as the error of reconstruction there.

Cells without a type are in no group of the invariance, ``I_c = (1/n_l) Σ n_td ‖h̄_td − h̄_t‖²`` over the n_l cells that
have one: a mean over them, so that γ means the same however many labels are missing. HSIC and the error of
reconstruction are of all n cells.
"""

import logging
from dataclasses import dataclass

import torch

from aenmf_lib.data.preprocessing import CELL_TYPE
from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.training.moments import Moments

log = logging.getLogger(__name__)

# within what groups donors are compared: those of a label, those found without one, or all cells together
STRENGTH = 0.2  # by default: see README, what differs from the published scripts
LABELS = ("cell_type", "clusters", "none")


@dataclass(frozen=True)
class PenaltyWeights:
    """Weights of the two penalties, ``γ I(H) + η HSIC(H, C)``."""

    gamma: float  # of the invariance, which needs the cell types
    eta: float  # of the HSIC between usages and donor
    centered: bool  # I_c: only what differs between donors within a type

    def rows(self, moments: Moments) -> torch.Tensor:
        """Rows P with ``‖P Wᵀ‖²`` the sum of both penalties, (n_rows, n_genes)."""
        rows = []
        if self.gamma:
            invariance = invariance_rows(moments, centered=self.centered)
            rows.append((self.gamma / moments.n_labeled) ** 0.5 * invariance)
        if self.eta:
            rows.append(self.eta**0.5 / (moments.n_cells - 1) * hsic_rows(moments))
        return torch.cat(rows) if rows else moments.donor_sums[:0]


def weights_from_strength(
    strength: float, labels: str, moments: Moments, W: torch.Tensor
) -> tuple[PenaltyWeights, float]:
    """Turn a strength into weights, at the plain AE-NMF solution W.

    ``γ = c SSE₀ / (n I_c(H₀))``, or ``η = c SSE₀ / (n HSIC(H₀, C))``. Neither penalty of finitely many cells is 0 where
    donors do not differ. That share is left in peace: c becomes ``c (1 − chance / found)₊``, so where donors do not
    differ nothing is paid.

    For I_c chance is that of an analysis of variance. With Ω the covariance of the usages within groups, the means of
    alike donors give ``I_c n_l`` a mean of ``f tr Ω`` and a variance of ``2 f tr Ω²``, at f = G − T degrees of freedom
    for G groups of T types (exact for normal usages); two standard deviations above the mean are taken off. Ω is of all
    cells: those without a type count as one more type. For HSIC, donors shuffled over all cells would give
    ``n/(n−1)³ · Σ_d n_d (1 − n_d/n) · V`` on average, V the total variance of the usages.

    Parameters
    ----------
    strength
        c, 0 or above.
    labels
        'cell_type': the centered invariance, which reads the cell types. 'clusters': the same, of moments that tell
        clusters apart in their place. 'none': HSIC, which reads neither, and so pushes out differences in composition
        as well.
    moments
        Of the cells, with the donor, and for 'cell_type' the type.
    W
        (k, n_genes)

    Returns
    -------
    Weights, and the strength after that deduction.
    """
    n, W = moments.n_cells, W.double()
    plain = AENMFObjective(moments, lambda_W=0.0)
    point = plain.point(W.to(moments.dtype))
    sse, second = n * plain.value(point), point.F.sum(0).double()  # HᵀH
    if labels == "none":
        n_d, mean = moments.donor_counts.double(), W @ moments.donor_sums.double().sum(0) / n
        found = _sq(hsic_rows(moments).double() @ W.T) / (n - 1) ** 2
        variance = float(second.trace()) / n - _sq(mean)
        chance = n / (n - 1) ** 3 * float((n_d * (1 - n_d / n)).sum()) * variance
    else:
        typed = moments.group_type[moments.group_type >= 0]
        free, spare = len(typed) - len(typed.unique()), n - len(moments.group_counts)
        rows = invariance_rows(moments, centered=True).double() @ W.T
        found = _sq(rows) / moments.n_labeled if free and spare else 0.0  # else what is found is rounding, or chance
        sums, counts = moments.group_sums.double() @ W.T, moments.group_counts.double()
        within = (second - sums.T @ (sums / counts[:, None])) / max(spare, 1)
        chance = (free * float(within.trace()) + 2 * (2 * free * _sq(within)) ** 0.5) / moments.n_labeled
    left = strength * max(0.0, 1 - chance / found) if found else 0.0
    weight = left * sse / (n * found) if found else 0.0
    weights = (
        PenaltyWeights(0.0, weight, centered=True) if labels == "none" else PenaltyWeights(weight, 0.0, centered=True)
    )
    told = (strength, left, 100 * min(chance / found, 1) if found else 100)
    if left:
        letter = "η" if labels == "none" else "γ"
        log.info("strength %g: %.3g beyond chance, which explains %.1f %% of what lies between donors; %s = %.4g",
                 *told, letter, weight)  # fmt: skip
    else:
        log.warning("strength %g: %.3g beyond chance, which explains %.1f %% of what lies between donors: there is no "
                    "penalty.", *told)  # fmt: skip
    return weights, left


def invariance_rows(moments: Moments, *, centered: bool) -> torch.Tensor:
    """Rows D with ``‖D Wᵀ‖² = Σ n_td ‖h̄_td‖²`` over groups that have a type; centered, of ``h̄_td − h̄_t`` instead."""
    check_labeled(moments)
    typed = moments.group_type >= 0
    n_td, sums, group_type = moments.group_counts[typed, None], moments.group_sums[typed], moments.group_type[typed]
    means = sums / n_td
    if centered:
        n_types = int(group_type.max()) + 1
        of_type = torch.zeros(n_types, len(sums), dtype=sums.dtype, device=sums.device)
        of_type[group_type, torch.arange(len(sums), device=sums.device)] = 1
        means = means - ((of_type @ sums) / (of_type @ n_td))[group_type]
    return n_td.sqrt() * means


def check_labeled(moments: Moments) -> None:
    """Refuse cells none of which has a type."""
    if not moments.n_labeled:
        raise ValueError(
            f"obs['{CELL_TYPE}'] is empty for all {moments.n_cells} cells, and the invariance compares donors within a "
            "type: give some cells their type, or set labels='none'."
        )


def hsic_rows(moments: Moments) -> torch.Tensor:
    """Rows Z with ``‖Z Wᵀ‖² = ‖H_cᵀ C_c‖²``: donor sums less what their share of all cells would give."""
    M, n_d = moments.donor_sums, moments.donor_counts
    return M - (n_d / moments.n_cells)[:, None] * M.sum(0)


def _sq(A: torch.Tensor) -> float:
    return float(A.square().sum(dtype=torch.float64))
