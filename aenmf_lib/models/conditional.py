"""What are the conditional models? AE-NMF with a part of each donor, and what keeps the usages from telling of them."""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from aenmf_lib.data import preprocessing
from aenmf_lib.data.preprocessing import DONOR, NO_TYPE
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.metrics import neighbors
from aenmf_lib.models import base, penalties
from aenmf_lib.models.aenmf import AENMF
from aenmf_lib.models.objectives import AdditiveDonorObjective, DonorDecoderObjective
from aenmf_lib.training.moments import Moments

log = logging.getLogger(__name__)

_CLUSTERING_STRENGTH = 0.2  # strength of HSIC that takes a strong effect out and leaves the types in


@dataclass
class _Conditional(AENMF):
    """What the two conditional models share: the donors, their latent, and what keeps the usages from telling of them.

    A fit sets ``penalty_``, the weights, and ``strength_``, what was left of the strength after chance. With a strength
    it is one fit, from the best of the `n_starts` of a plain AE-NMF: ``starts_`` and ``stability_`` are of these.

    With ``labels="clusters"`` donors are compared within groups that the cells form by themselves, kept in ``groups_``,
    a Series by cell: those of benchmark 1, in the usages of a fit with ``labels="none"`` of the same strength, but at
    most 0.2, from which the fit starts. Clusters of the plain AE-NMF hold the effect that is to be seen: on Kang by
    condition (k = 20, strength 0.2) their NMI with it was .38, against .04, and kNN read it with F1 .81 in the end,
    against .69 (.68 with the types, .78 with HSIC alone, .99 without a strength). Above 0.2 HSIC pushes out types that
    donors have unlike shares of, and clusters found there miss them: at strength 1 on cells that differ in nothing
    else, kNN F1 of the types of unseen donors fell from .98 to .49 and .83 (two data sets), against .98.
    """

    _: KW_ONLY
    strength: float = penalties.STRENGTH  # of the centered invariance, or with labels="none" of HSIC; 0: as published
    labels: str = "cell_type"  # "clusters": groups found without labels; "none": HSIC alone, so γ is 0

    conditional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels not in penalties.LABELS:
            known = " or ".join(map(repr, penalties.LABELS))
            raise ValueError(f"labels={self.labels!r} is not known: give {known}.")
        if self.labels == "clusters" and not self.strength:
            raise ValueError(
                "labels='clusters' goes with a strength, at which the clusters are found: set strength=0.2."
            )
        self.groups_: pd.Series | None = None

    @property
    def uses_cell_type(self) -> bool:
        """Whether training reads ``cell_type``."""
        return self.labels == "cell_type" and self.strength > 0

    def _weights(self) -> penalties.PenaltyWeights:
        """Weights where there is no strength."""
        return penalties.PenaltyWeights(0.0, 0.0, centered=True)

    def fit(
        self,
        cells: AnnData | CellStream | Moments,
        *,
        checkpoint: str | Path | None = None,
        plain: AENMF | None = None,
        start: np.ndarray | None = None,
    ) -> "_Conditional":
        """Train on all cells. Takes and raises what `AENMF.fit` does; ``labels="clusters"`` needs them in memory."""
        begin, self.groups_ = time.perf_counter(), None
        if self.strength:
            if self.labels == "clusters" and not isinstance(cells, AnnData):
                raise ValueError(
                    f"labels='clusters' groups the cells by their usages and needs them in memory: fit takes an "
                    f"AnnData then, not {type(cells).__name__}. Load the cells (leave out SHARDS), or set "
                    "labels='none'."
                )
            moments = cells if isinstance(cells, Moments) else self._moments(base.check_cells(cells, self.k))
            self._check_moments(moments)
            if plain is None:
                shared = {field.name: getattr(self, field.name) for field in fields(AENMF) if field.name != "preset"}
                plain = AENMF(**shared).fit(moments, checkpoint=checkpoint and checkpoint.plain_checkpoint(checkpoint))
            if self.labels == "clusters":
                loose = replace(self, labels="none", strength=min(self.strength, _CLUSTERING_STRENGTH))
                loose.fit(moments, plain=plain, checkpoint=checkpoint and checkpoint.hsic_checkpoint(checkpoint))
                moments, start = self._grouped(moments, cells, loose), loose.W_ if start is None else start
            cells = moments
        super().fit(cells, checkpoint=checkpoint, plain=plain, start=start)
        if self.strength:  # this fit is one, from there
            self.starts_, self.stability_ = plain.starts_, plain.stability_
        self.seconds_ = time.perf_counter() - begin
        return self

    def _grouped(self, moments: Moments, cells: AnnData, model: AENMF) -> Moments:
        """Find groups in the usages of a model, and tell them apart in place of the types."""
        found = neighbors.leiden_clusters(model.transform(cells))
        self.groups_ = pd.Series(found, cells.obs_names)
        log.info("%s: donors are compared within %d clusters", self.name, self.groups_.nunique())
        return moments.with_groups(cells, found)

    def _prepare(self, moments: Moments, plain: AENMF | None) -> torch.Tensor | None:
        self.penalty_, self.strength_, first = self._weights(), 0.0, None
        if self.strength:
            if plain.W_.shape != (self.k, moments.n_genes) or plain.gene_weights != self.gene_weights:
                raise ValueError(
                    f"the plain AE-NMF is {plain.W_.shape} with gene_weights={plain.gene_weights!r}; "
                    f"{(self.k, moments.n_genes)} with {self.gene_weights!r} is expected."
                )
            first = torch.from_numpy(self._in(plain.W_)).to(moments.device)
            self.penalty_, self.strength_ = penalties.weights_from_strength(self.strength, self.labels, moments, first)
        return first

    def _moments(self, cells: AnnData | CellStream) -> Moments:
        moments = super()._moments(cells)
        if self.groups_ is not None:  # a cell that was not in the fit is in no group
            moments = moments.with_groups(cells, self.groups_.reindex(cells.obs_names).fillna(NO_TYPE).to_numpy())
        return moments

    def _identity(self, moments: Moments) -> dict[str, str | int | float | bool | None]:
        told = super()._identity(moments)
        if self.groups_ is not None:
            told["groups"] = hashlib.sha256("\n".join(self.groups_).encode()).hexdigest()[:16]
        return told

    def _check_moments(self, moments: Moments) -> None:
        super()._check_moments(moments)
        if self.uses_cell_type:
            penalties.check_labeled(moments)
        self.donors_ = np.array(moments.donors)
        if len(self.donors_) < 2:
            raise ValueError(
                f"obs['{DONOR}'] holds one donor ({moments.donors[0]!r}); {self.name} is conditioned on the donor and "
                "needs at least 2. Lower min_cells to keep more donors, or train AENMF."
            )

    def _donor_codes(self, cells: AnnData | CellStream) -> np.ndarray:
        """Row of U of each cell."""
        donor, known = preprocessing.read_labels(cells.obs, DONOR), self.donors_
        if strange := sorted(set(donor) - set(known)):
            raise ValueError(
                f"{len(strange)} donors were not in the fit (first: {str(strange[0])!r}); the donor part is known for "
                f"{', '.join(map(repr, map(str, known[:5])))}{' …' if len(known) > 5 else ''} only."
            )
        return np.searchsorted(known, donor)

    def embeddings(self, cells: AnnData | CellStream) -> dict[str, np.ndarray]:
        """Give what the results file holds for each cell, by role: usages, the donor's latent, both side by side."""
        shared, latent = self.transform(cells), self.cond_latent(cells)
        return {"shared": shared, "cond_latent": latent, "concat_full": np.hstack([shared, latent])}


@dataclass
class CAENMF1(_Conditional):
    """Conditional AE-NMF, model 1: an additive profile per donor, ``X̂ = X Wᵀ W + C U``.

    ``(1/n) ‖X − X̂‖² + λ_W ‖W‖² + λ_U ‖U‖² + γ · I(H) + η · HSIC(H, C)`` over W, U ≥ 0. I shrinks the mean usage of
    every (cell type, donor) group, or centered its distance from the mean of the type; HSIC is the linear one of
    Gretton et al. (2005). A `strength` sets the weight of one of them (module `penalties`); with 0 they are the
    numbers given, by default the published ones, and γ = 0 trains without ``cell_type``.
    """

    _: KW_ONLY
    lambda_U: float = 1e-1  # weight of ‖U‖²
    gamma: float = 1e-3  # without a strength: weight of the invariance, which uses cell_type
    eta: float = 0.256  # without a strength: weight of the HSIC between usages and donor
    invariance: str = "published"  # or "centered", as a strength has it: only what differs between donors within a type

    name: ClassVar[str] = "CAE_NMF1"
    published: ClassVar[dict] = {
        "lambda_W": 1e-2,
        "lambda_U": 1e-1,
        "gamma": 1e-3,
        "eta": 0.256,
        "invariance": "published",
        "strength": 0.0,
        "labels": "cell_type",
        "row_norm": True,
        "gene_weights": "none",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength:
            given = [
                f"{name}={getattr(self, name)!r}"
                for name in ("gamma", "eta", "invariance")
                if getattr(self, name) != self.published[name]
                and not (name == "gamma" and self.labels != "cell_type" and self.gamma == 0)
            ]
            if given:
                raise ValueError(
                    f"{', '.join(given)} would not be used: strength={self.strength:g} sets the weights of the "
                    "penalties. Set strength=0 to give them as numbers."
                )
        if self.invariance not in ("published", "centered"):
            raise ValueError(f"invariance={self.invariance!r} is not known: give 'published' or 'centered'.")
        if self.labels != "cell_type":
            self.gamma = 0.0

    @property
    def uses_cell_type(self) -> bool:
        """Whether training reads ``cell_type``."""
        return super().uses_cell_type or self.gamma > 0

    def _weights(self) -> penalties.PenaltyWeights:
        return penalties.PenaltyWeights(self.gamma, self.eta, centered=self.invariance == "centered")

    def cond_latent(self, cells: AnnData | CellStream) -> np.ndarray:
        """Give ``C U Wᵀ``, (n_cells, k): the usages of the profile of each cell's donor."""
        return (self.U_ @ self.encoder_.T)[self._donor_codes(cells)]

    def _objective(self, moments: Moments) -> AdditiveDonorObjective:
        return AdditiveDonorObjective(
            moments, lambda_W=self.lambda_W, lambda_U=self.lambda_U, P=self.penalty_.rows(moments)
        )


@dataclass
class CAENMF2(_Conditional):
    """Conditional AE-NMF, model 2: programs that bend per donor, ``x̂ = h (W + U_d)``.

    ``(1/n) ‖X − X̂‖² + λ_W ‖W‖² + λ_U ‖U‖²`` over W, U ≥ 0, and with a `strength` the penalty of model 1, which the
    published code reads here and never uses.
    """

    _: KW_ONLY
    lambda_U: float = 5e-2  # weight of ‖U‖²

    name: ClassVar[str] = "CAE_NMF2"
    by_donor: ClassVar[bool] = True
    published: ClassVar[dict] = {
        "lambda_W": 1e-2,
        "lambda_U": 5e-2,
        "strength": 0.0,
        "labels": "cell_type",
        "row_norm": True,
        "gene_weights": "none",
    }

    def cond_latent(self, cells: AnnData | CellStream) -> np.ndarray:
        """Give ``h ∘ diag(U_d Wᵀ)``, (n_cells, k)."""
        overlap = np.einsum("djp,jp->dj", self.U_, self.encoder_)
        return self.transform(cells) * overlap[self._donor_codes(cells)]

    def _objective(self, moments: Moments) -> DonorDecoderObjective:
        return DonorDecoderObjective(
            moments, lambda_W=self.lambda_W, lambda_U=self.lambda_U, P=self.penalty_.rows(moments)
        )

    def _check_moments(self, moments: Moments) -> None:
        if not moments.by_donor:
            raise ValueError(f"{self.name} needs a second moment of every donor: make moments with by_donor=True.")
        super()._check_moments(moments)


def strength_path(
    model: _Conditional, moments: Moments, strengths: Sequence[float], *, plain: AENMF | None = None, sweeps: int = 5
) -> Iterator[_Conditional]:
    """Fit a conditional model at rising strengths, each from where the one before ended.

    Parameters
    ----------
    model
        Its settings but for `strength` and `max_iter`.
    moments
        Of the cells.
    strengths
        Taken in rising order.
    plain
        AE-NMF of the same cells; without it, it is fitted first.
    sweeps
        Iterations at each at most: the next goes on from there, so for model 1 they need not be many. On Kang (k = 20
        and 80, by condition and by donor) eight strengths of 5 took 0.9 to 1.9 times an AE-NMF's time and ended within
        0.8 % of the objective of a fit of its own. Model 2 takes W along but not its U, and needs some tens.

    Yields
    ------
    A fitted model for each strength.
    """
    if model.preset == "published" or model.labels == "clusters":
        raise ValueError(
            f"preset={model.preset!r}, labels={model.labels!r}: a path has strengths, which the published preset has "
            "not, and takes moments, which clusters cannot be found in. Fit those models one by one."
        )
    if plain is None:
        shared = {field.name: getattr(model, field.name) for field in fields(AENMF)}
        plain = AENMF(**shared).fit(moments)
    W = plain.W_
    for strength in sorted(strengths):
        fitted = replace(model, strength=strength, max_iter=sweeps).fit(moments, plain=plain, start=W)
        W = fitted.W_
        yield fitted
