"""The variants (models with their settings) that a conditioning study compares, and the code that fits them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from anndata import AnnData

from aenmf_lib.conditioning import baselines as methods
from aenmf_lib.conditioning.baselines import CELL_TYPE_ONLY, Embedding
from aenmf_lib.data import DONOR
from aenmf_lib.metrics.baselines import HARMONY, LINEAR_SCVI, PCA, harmony, require_package
from aenmf_lib.models.aenmf import AENMF
from aenmf_lib.models.base import relative_error, squared_error
from aenmf_lib.models.base_nmf import BaseNMF
from aenmf_lib.models.conditional import CAENMF1, CAENMF2
from aenmf_lib.models.gene_weights import RULES
from aenmf_lib.models.untied import UntiedAENMF
from aenmf_lib.training.moments import Moments

__all__ = ["Variant", "label", "plan"]

BASELINES = (CELL_TYPE_ONLY, PCA, HARMONY, LINEAR_SCVI, BaseNMF.name)
COLUMNS = ("Model", "strength", "gene_weights")
_CONDITIONAL = {model.name: model for model in (CAENMF1, CAENMF2, UntiedAENMF)}


@dataclass(frozen=True)
class Variant:
    """One model of the study with its settings."""

    Model: str
    strength: float = 0.0  # 0: the published weights, or no penalty in the untied model
    gene_weights: str = "none"


def plan(
    strengths: Sequence[float], *, at: float, gene_weights: Sequence[str], baselines: Sequence[str]
) -> list[Variant]:
    """Return the variants of a study.

    Parameters
    ----------
    strengths, at
        Strengths of the conditional models, each with its default gene weights, and the strength at which the other
        `gene_weights` are tried. Strength 0 is always included.
    gene_weights, baselines
        Values of the parameter `gene_weights` of the models, and some of `BASELINES`.

    Raises
    ------
    ValueError
        A baseline is unknown or not installed, a strength is not positive, or a value is unknown or given twice.
    """
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise ValueError(f"baselines contains {unknown[0]!r}. Choose from {', '.join(map(repr, BASELINES))}.")
    for name in baselines:
        require_package(name)
    if not strengths or min(*strengths, at) <= 0 or len(set(strengths)) < len(strengths):
        raise ValueError(f"strengths={list(strengths)} with at={at} is not valid. Give one or more above 0, each once.")
    if not gene_weights or len(set(gene_weights)) < len(gene_weights) or set(gene_weights) - set(RULES):
        expected = f"Give one or more of {', '.join(map(repr, RULES))}, each once."
        raise ValueError(f"gene_weights={list(gene_weights)} is not valid. {expected}")
    variants = [Variant(name) for name in baselines]
    variants += [Variant(AENMF.name, gene_weights=rule) for rule in dict.fromkeys(("none", *gene_weights))]
    for name, model in _CONDITIONAL.items():
        usual = model.gene_weights
        variants += [Variant(name, strength, usual) for strength in (0.0, *sorted(strengths))]
        variants += [Variant(name, at, rule) for rule in gene_weights if rule != usual]
    return variants


def label(variant: Variant) -> str:
    """Return the name of a variant in tables and figures."""
    weighted = ", weighted" if variant.gene_weights != "none" else ""
    if variant.Model not in _CONDITIONAL:
        return variant.Model + weighted
    none = "no penalty" if variant.Model == UntiedAENMF.name else "published"
    return f"{variant.Model}, " + (f"{variant.strength:g}" if variant.strength else none) + weighted


class VariantFitter:
    """Fit variants to one set of cells under one seed, and reuse the fits and sums that several of them need."""

    def __init__(self, cells: AnnData, labels: dict[str, np.ndarray], k: int, seed: int) -> None:
        self.cells, self.labels, self.k, self.seed = cells.copy(), labels, k, seed
        self._embeddings: dict[str, Embedding] = {}  # of variants that do not use the donor
        self._aenmf: dict[str, AENMF] = {}  # one fit per rule of gene weights
        self._moments: dict[str, Moments] = {}  # "": of all cells; a column: by its groups

    def fit(self, variant: Variant, on: str) -> Embedding:
        """Fit a variant and return its embedding; a conditional one is conditioned on the column `on`."""
        if variant.Model in (*_CONDITIONAL, HARMONY, LINEAR_SCVI):
            self.cells.obs[DONOR] = pd.Categorical(self.labels[on])
            return self._fit(variant, on)
        if (name := label(variant)) not in self._embeddings:
            self._embeddings[name] = self._fit(variant, on)
        return self._embeddings[name]

    def _fit(self, variant: Variant, on: str) -> Embedding:
        """Fit a variant, with the groups of `on` as the donors of the cells."""
        cells, start = self.cells, {"k": self.k, "seed": self.seed}
        uncorrected = self.fit(Variant(PCA), on).H if variant.Model == HARMONY else None
        begin = time.perf_counter()
        others = {
            CELL_TYPE_ONLY: lambda: methods.cell_types(cells, self.seed),
            PCA: lambda: methods.pca(cells, self.k, self.seed),
            HARMONY: lambda: Embedding(harmony(uncorrected, cells.obs[DONOR], self.seed), None),
            LINEAR_SCVI: lambda: methods.linear_scvi(cells, self.k, self.seed),
            BaseNMF.name: lambda: self._embed(BaseNMF(**start).fit(cells)),
            AENMF.name: lambda: self._embed(self._fit_aenmf(variant.gene_weights)),
        }
        if variant.Model in others:
            found = others[variant.Model]()
            return replace(found, seconds=time.perf_counter() - begin) if np.isnan(found.seconds) else found
        model = _CONDITIONAL[variant.Model](**start, strength=variant.strength, gene_weights=variant.gene_weights)
        starts_from_aenmf = variant.strength or isinstance(model, UntiedAENMF)
        aenmf = self._fit_aenmf(variant.gene_weights) if starts_from_aenmf else None
        return self._embed(model.fit(self._get_moments(on), aenmf=aenmf))

    def _get_moments(self, on: str) -> Moments:
        """Return the moments of all cells (`on` = "") or those by the groups of a column."""
        if on not in self._moments:
            self._moments = {name: moments for name, moments in self._moments.items() if not name}  # save memory
            options = {"by_donor": True} if on else {"donor": False, "cell_type": False}
            self._moments[on] = Moments.from_cells(self.cells, **options, k=self.k)
        return self._moments[on]

    def _fit_aenmf(self, rule: str) -> AENMF:
        """Return the AE-NMF with this rule of gene weights."""
        if rule not in self._aenmf:
            self._aenmf[rule] = AENMF(k=self.k, seed=self.seed, gene_weights=rule).fit(self._get_moments(""))
        return self._aenmf[rule]

    def _embed(self, model: AENMF | BaseNMF) -> Embedding:
        """Return the embedding of a fitted model, with its error on the cells of the fit."""
        H = model.H_ if isinstance(model, BaseNMF) else model.transform(self.cells)
        error = _reconstruction_error(model, self.cells, H)
        return Embedding(H, model.transform, model.W_, error, model.strength_, model.n_iter_, model.seconds_)


def _reconstruction_error(model: AENMF | BaseNMF, cells: AnnData, H: np.ndarray) -> float:
    """Return ‖X − X̂‖ / ‖X‖ with the donor part of the model; H is (n_cells, k)."""
    if model.U_ is None:
        return relative_error(cells, H, model.W_)
    donors, total = cells.obs[DONOR].to_numpy(), np.zeros(2)
    for donor, U in zip(model.donors_, model.U_, strict=True):
        own = donors == donor
        if U.ndim == 2:  # model 2: x̂ = h (W + U_d)
            F, M = H[own], model.W_ + U.astype(np.float64)
        else:  # model 1: x̂ = h W + u_d
            F, M = np.column_stack([H[own], np.ones(own.sum())]), np.vstack([model.W_, U])
        total += squared_error(cells.X[own], F, M)
    return float(np.sqrt(total[0] / total[1]))
