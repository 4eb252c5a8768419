"""What models does a study of conditioning set side by side, and how is each fitted?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from aenmf_lib.conditioning.baselines import (
    CELL_TYPE_ONLY,
    HARMONY,
    LINEAR_SCVI,
    PCA,
    Embedding,
    harmony,
    linear_scvi,
    package,
    pca,
    types,
)
from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR
from aenmf_lib.models import base, penalties
from aenmf_lib.models.aenmf import AENMF
from aenmf_lib.models.base_nmf import BaseNMF
from aenmf_lib.models.conditional import CAENMF1, CAENMF2
from aenmf_lib.training.moments import Moments

CONDITIONAL = {model.name: model for model in (CAENMF1, CAENMF2)}
BASELINES = (CELL_TYPE_ONLY, PCA, HARMONY, LINEAR_SCVI, BaseNMF.name)
COLUMNS = ("Model", "strength", "labels", "gene_weights")


@dataclass(frozen=True)
class Variant:
    """One model with its settings."""

    Model: str
    strength: float = 0.0  # 0: the published weights
    labels: str = "none"  # what the penalties read: "cell_type", "clusters" or "none"
    gene_weights: str = "none"

    @property
    def conditional(self) -> bool:
        """Whether it is told the donor."""
        return self.Model in CONDITIONAL or self.Model in (HARMONY, LINEAR_SCVI)


def plan(
    strengths: Sequence[float],
    *,
    at: float,
    labels: Sequence[str],
    gene_weights: Sequence[str],
    yardsticks: Sequence[str],
) -> list[Variant]:
    """List what a study fits.

    Parameters
    ----------
    strengths
        Of both conditional models, with the first of `labels` and genes alike; the published weights are always there.
    at
        Strength at which the other `labels` and `gene_weights` are tried.
    labels, gene_weights
        See `conditional.CAENMF1`.
    yardsticks
        Of `YARDSTICKS`.

    Raises
    ------
    ValueError
        A yardstick is unknown or not installed, or a strength is not above 0.
    """
    if strange := [name for name in yardsticks if name not in BASELINES]:
        raise ValueError(f"yardsticks holds {strange[0]!r}: there are {', '.join(map(repr, BASELINES))}.")
    for name in yardsticks:
        package(name)
    if not strengths or min(*strengths, at) <= 0 or len(set(strengths)) < len(strengths):
        raise ValueError(f"strengths = {list(strengths)}, at = {at}: one or more above 0 is expected, and none twice.")
    for given, known in ((labels, penalties.LABELS), (gene_weights, gene_weights.RULES)):
        if not given or len(set(given)) < len(given) or set(given) - set(known):
            raise ValueError(
                f"{list(given)}: one or more of {', '.join(map(repr, known))} is expected, and none twice."
            )
    others = [rule for rule in gene_weights if rule != "none"]
    plan = [Variant(name) for name in yardsticks]
    plan += [Variant(AENMF.name, gene_weights=rule) for rule in ("none", *others)]
    for name in CONDITIONAL:
        plan += [Variant(name, labels=CELL_TYPE if name == CAENMF1.name else "none")]  # γ > 0 reads the types
        plan += [Variant(name, strength, labels[0]) for strength in sorted(strengths)]
        plan += [Variant(name, at, other) for other in labels[1:]]
        plan += [Variant(name, at, labels[0], rule) for rule in others]
    return plan


def label(variant: Variant) -> str:
    """Name a variant in a table or figure."""
    of_weights = ", weighted" if variant.gene_weights != "none" else ""
    if variant.Model not in CONDITIONAL:
        return variant.Model + of_weights
    reads = "" if variant.labels == CELL_TYPE else ", no labels" if variant.labels == "none" else f", {variant.labels}"
    return f"{variant.Model}, " + (f"{variant.strength:g}{reads}" if variant.strength else "published") + of_weights


class VariantFitter:
    """Fits to one set of cells from one start; what several need is fitted once."""

    def __init__(self, cells: AnnData, labels: dict[str, np.ndarray], k: int, seed: int) -> None:
        self.cells, self.labels, self.k, self.seed = cells.copy(), labels, k, seed
        self.kept: dict[str, Embedding] = {}
        self.plain: dict[str, AENMF] = {}
        self.sums: dict[str, Moments] = {}  # of all cells, and of those of each donor

    def fit(self, variant: Variant, on: str) -> Embedding:
        """Fit a variant, conditioned on a column if it is conditional."""
        if variant.conditional:
            self.cells.obs[DONOR] = pd.Categorical(self.labels[on])
            if variant.Model == HARMONY:
                return harmony(self.fit(Variant(PCA), on).H, self.cells.obs, self.seed)
            if variant.Model == LINEAR_SCVI:
                return linear_scvi(self.cells, self.k, self.seed)
            return self._conditional(variant, on)
        name = label(variant)
        if name not in self.kept:
            make = {
                CELL_TYPE_ONLY: lambda: types(self.cells, self.seed),
                PCA: lambda: pca(self.cells, self.k, self.seed),
                BaseNMF.name: self._base,
                AENMF.name: lambda: self._tied(self._plain(variant)),
            }
            self.kept[name] = make[variant.Model]()
        return self.kept[name]

    def _moments(self, on: str) -> Moments:
        if on not in self.sums:
            self.sums = {name: kept for name, kept in self.sums.items() if not name}  # of one column at a time
            whole = {"donor": False, "cell_type": False} if not on else {"by_donor": True}
            self.sums[on] = Moments.from_cells(self.cells, **whole, k=self.k)
        return self.sums[on]

    def _plain(self, variant: Variant) -> AENMF:
        rule = variant.gene_weights
        if rule not in self.plain:
            self.plain[rule] = AENMF(k=self.k, seed=self.seed, gene_weights=rule).fit(self._moments(""))
        return self.plain[rule]

    def _conditional(self, variant: Variant, on: str) -> Embedding:
        settings = {name: value for name, value in asdict(variant).items() if name != "Model"}
        model = CONDITIONAL[variant.Model](k=self.k, seed=self.seed, **settings)
        given = {"plain": self._plain(variant)} if variant.strength else {}
        cells = self.cells if variant.labels == "clusters" else self._moments(on)  # they are found in the cells
        return self._tied(model.fit(cells, **given))

    def _tied(self, model: AENMF) -> Embedding:
        H = model.transform(self.cells)
        error = _error(model, self.cells, H)
        left = getattr(model, "strength_", 0.0)
        return Embedding(H, model.transform, model.W_, error, left, model.n_iter_, model.seconds_)

    def _base(self) -> Embedding:
        model = BaseNMF(k=self.k, seed=self.seed).fit(self.cells)
        error = base.relative_error(self.cells, model.H_, model.W_)
        return Embedding(model.H_, model.transform, model.W_, error, 0.0, model.n_iter_, model.seconds_)


def _error(model: AENMF, cells: AnnData, H: np.ndarray) -> float:
    """Give ‖X − X̂‖ / ‖X‖ of a tied model with what the donors add, exact."""
    if not model.conditional:
        return base.relative_error(cells, H, model.W_)
    X, H, donor = cells.X, H.astype(np.float64), cells.obs[DONOR].to_numpy()
    squares, sse = np.square(X.data, dtype=np.float64).sum(), 0.0
    for d, name in enumerate(model.donors_):
        own = donor == name
        U = model.U_[d].astype(np.float64)
        V, u = (model.W_ + U, np.zeros(X.shape[1])) if U.ndim == 2 else (model.W_.astype(np.float64), U)
        M, F = np.vstack([V, u]), np.column_stack([H[own], np.ones(own.sum())])  # X̂ = F M
        sse += np.square(X[own].data, dtype=np.float64).sum() + np.sum((F.T @ F) * (M @ M.T))
        sse -= 2 * np.sum((X[own] @ M.T) * F)
    return float(np.sqrt(sse / squares))
