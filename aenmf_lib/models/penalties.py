"""Penalties that reduce donor information in the usages, and the rule that sets their weights.

Both penalties have the form ``‖P Wᵀ‖²`` with rows P made of group sums, so they need no pass over the cells. A strength
uses only the centered invariance, ``I_c = (1/n_l) Σ n_td ‖h̄_td − h̄_t‖²``, a mean over the n_l cells with a type. (The
untied model uses I_c of usages that are divided by their standard deviations.) A strength means the same on every data
set: at effective strength 1, the penalty at the AE-NMF solution is as large as the reconstruction error. Without a
strength, the penalties are the published ones. HSIC and the reconstruction error use all n cells.
"""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from aenmf_lib.data.labels import CELL_TYPE, DONOR, WITHOUT_TYPES, is_missing
from aenmf_lib.models.objectives import AENMFObjective, squared_norm
from aenmf_lib.training.moments import Moments

log = logging.getLogger(__name__)

STRENGTH = 0.2  # default of models 1 and 2
# Default of the untied model. Of 0.2, 0.4 and 1, it is the smallest value at which, after training, R(H) of the
# training cells was at or below what chance explains in every data set tried. No test score was used.
UNTIED_STRENGTH = 1.0
_ADVICE = " Choose other columns of donors and cell types (DONOR_KEY=…, CELL_TYPE_KEY=…)."


@dataclass(frozen=True)
class PenaltyWeights:
    """Weights of the two penalties, ``γ I(H) + η HSIC(H, C)``, or of ``γ R(H)`` in the untied model."""

    gamma: float  # of the invariance, or of R; both need the types
    eta: float  # of the HSIC between usages and donor
    centered: bool  # whether the invariance is I_c (differences between donors within a type), as with a strength
    note: str = ""  # why there is no penalty, or how few groups and cells determine it

    def rows(self, moments: Moments) -> torch.Tensor:
        """Return the rows P, (n_rows, n_genes), for which ``‖P Wᵀ‖²`` is the sum of both penalties."""
        rows = []
        if self.gamma:
            invariance = invariance_rows(moments, centered=self.centered)
            rows.append((self.gamma / moments.n_labeled) ** 0.5 * invariance)
        if self.eta:
            rows.append(self.eta**0.5 / (moments.n_cells - 1) * _hsic_rows(moments))
        return torch.cat(rows) if rows else moments.donor_sums[:0]


def weights_from_strength(strength: float, moments: Moments, W: torch.Tensor) -> tuple[PenaltyWeights, float]:
    """Compute the weight γ from a strength c, at the AE-NMF solution W: ``γ = c SSE₀ / (n I_c(H₀))``.

    Returns the weights, and the effective strength; see `penalty_weight`.
    """
    n, aenmf = moments.n_cells, AENMFObjective(moments, lambda_W=0.0)
    point = aenmf.point(W.to(moments.dtype))
    HtH = point.F.sum(0).double()  # HᵀH (k, k)
    weight, effective, note = penalty_weight(strength, moments, W.double(), HtH, n * aenmf.value(point))
    return PenaltyWeights(weight / n, 0.0, centered=True, note=note), effective


def penalty_weight(
    strength: float, moments: Moments, E: torch.Tensor, HtH: torch.Tensor, sse: float
) -> tuple[float, float, str]:
    """Return the weight for which ``weight · I_c(H) = c · SSE``, the effective strength c, and a note.

    With finitely many cells, I_c is above 0 even if the donors do not differ. So the strength is multiplied by
    1 − the share that chance explains. As in an analysis of variance, with Ω the covariance of usages within groups,
    ``I_c n_l`` has mean ``f tr Ω`` and variance ``2 f tr Ω²``, with f = G − T degrees of freedom for G groups of T
    types (exact for normal usages). Chance explains the mean plus two standard deviations. Ω uses all cells, and those
    without a type count as one more type.

    Parameters
    ----------
    E, HtH
        Encoder of the usages ``H = X Eᵀ``, (k, n_genes), and ``HᵀH``, (k, k), both float64.
    sse
        Squared error of the reconstruction.

    Returns
    -------
    The weight, the effective strength ``strength · (1 − chance / I_c)₊``, and why there is no penalty, or how few
    groups and cells determine it.
    """
    comparable, note = _compare_donors(moments)
    typed = moments.group_type[moments.group_type >= 0]
    between, within = len(typed) - len(typed.unique()), moments.n_cells - len(moments.group_counts)  # f, n − G
    sums, counts = moments.group_sums.double() @ E.T, moments.group_counts.double()
    omega = (HtH - sums.T @ (sums / counts[:, None])) / max(within, 1)
    chance = (between * float(omega.trace()) + 2 * (2 * between * squared_norm(omega)) ** 0.5) / moments.n_labeled
    rows = invariance_rows(moments, centered=True).double() @ E.T
    found = squared_norm(rows) / moments.n_labeled if comparable else 0.0
    effective = strength * max(0.0, 1 - chance / found) if found else 0.0
    if effective:
        log.info("strength %g: chance accounts for up to %.1f %% of the donor penalty, so the effective strength is "
                 "%.3g", strength, 100 * chance / found, effective)  # fmt: skip
    else:
        chance_note = "chance accounts for all of the donor penalty" if comparable else ""
        note = "; ".join(filter(None, [note, chance_note, "there is no penalty"]))
    if note:
        log.warning("strength %g: %s.%s", strength, note, "" if comparable else _ADVICE)
    return effective * sse / found if found else 0.0, effective, note


def _compare_donors(moments: Moments) -> tuple[bool, str]:
    """Return whether I_c can compare donors, and a note if it cannot, or only within few types."""
    typed = moments.group_type >= 0
    codes, counts = moments.group_type[typed], moments.group_counts[typed].double()
    donors = torch.bincount(codes)  # (n_types,), of each type
    n_types, n_shared = int((donors > 0).sum()), int((donors > 1).sum())
    if not n_shared:
        return False, "no type has cells of two donors, so donors cannot be compared within types"
    if moments.n_cells == len(moments.group_counts):
        return False, ("every type has a single cell per donor, so differences between donors cannot be compared "
                       "with differences between cells")  # fmt: skip
    n_cells = int(counts[(donors > 1)[codes]].sum())
    if n_shared == n_types or (n_shared > 1 and 2 * n_shared >= n_types and 2 * n_cells >= moments.n_labeled):
        return True, ""
    return True, (f"donors can be compared only within {n_shared} of {n_types} types, with {n_cells:,} of "
                  f"{moments.n_labeled:,} cells")  # fmt: skip


def between_donor_variance(H: np.ndarray, obs: pd.DataFrame) -> float:
    """Return the share of the usage variance that lies between donors within a type, ``I_c(H) / tr Cov(H)``.

    Parameters
    ----------
    H, obs
        Usages (n_cells, k), and one row per cell with `cell_type` and `donor_id`. Cells without a type are left out.

    Returns
    -------
    float, NaN if no type has cells of two donors.
    """
    typed = ~is_missing(obs[CELL_TYPE])
    usages, obs = pd.DataFrame(H[typed].astype(np.float64)), obs[typed]
    if not obs[[CELL_TYPE, DONOR]].drop_duplicates()[CELL_TYPE].duplicated().any():
        return float("nan")
    types, donors = obs[CELL_TYPE].to_numpy(), obs[DONOR].to_numpy()
    type_means = usages.groupby(types, observed=True).transform("mean")
    between = usages.groupby([types, donors], observed=True).transform("mean") - type_means
    return float(np.square(between).to_numpy().sum() / len(usages) / usages.var(ddof=0).sum())


def invariance_rows(moments: Moments, *, centered: bool) -> torch.Tensor:
    """Return rows D, (n_groups, n_genes), with ``‖D Wᵀ‖² = Σ n_td ‖h̄_td‖²``; centered, of ``h̄_td − h̄_t``."""
    check_labeled(moments)
    typed = moments.group_type >= 0
    n_td, sums, group_type = moments.group_counts[typed, None], moments.group_sums[typed], moments.group_type[typed]
    means = sums / n_td
    if centered:
        groups = torch.arange(len(sums), device=sums.device)
        member = torch.zeros(int(group_type.max()) + 1, len(sums), dtype=sums.dtype, device=sums.device)
        member[group_type, groups] = 1  # (n_types, n_groups)
        means = means - ((member @ sums) / (member @ n_td))[group_type]
    return n_td.sqrt() * means


def _hsic_rows(moments: Moments) -> torch.Tensor:
    """Return rows Z, (n_donors, n_genes), with ``‖Z Wᵀ‖² = ‖H_cᵀ C_c‖²``: donor sums minus their expected value."""
    M, n_d = moments.donor_sums, moments.donor_counts
    return M - (n_d / moments.n_cells)[:, None] * M.sum(0)


def check_labeled(moments: Moments, key: str = CELL_TYPE) -> None:
    """Raise ValueError if no cell has a type; `key` is the column of types."""
    if not moments.n_labeled:
        raise ValueError(f"obs[{key!r}] is empty for all {moments.n_cells:,} cells. The penalty compares donors "
                         f"within cell types. {WITHOUT_TYPES}")  # fmt: skip
