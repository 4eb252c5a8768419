"""The conditional models: AE-NMF with a donor part, and penalties that reduce donor information in the usages."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from aenmf_lib.data.labels import CELL_TYPE, DONOR, read_labels
from aenmf_lib.models import base, penalties
from aenmf_lib.models.aenmf import AENMF, hash_names
from aenmf_lib.models.objectives import AdditiveDonorObjective, AENMFObjective, DonorDecoderObjective
from aenmf_lib.models.starts import load_aenmf
from aenmf_lib.training.checkpoint import role_path
from aenmf_lib.training.inputs import Cells, as_cells
from aenmf_lib.training.moments import Moments

__all__ = ["CAENMF1", "CAENMF2"]


@dataclass(kw_only=True)
class _Conditional(AENMF):
    """What the conditional models share. With a strength they start from the best of `n_starts` AE-NMF fits.

    Parameters
    ----------
    strength
        Strength of the penalty, which compares donors within cell types, relative to the reconstruction error of
        AE-NMF. 0: published weights, or those given.

    Attributes
    ----------
    donors_ : (n_donors,)
        Donors, in the order of U.
    penalty_ : PenaltyWeights
        Weights γ and η of the penalties, and a note if there is no penalty or if few cells determine it.
    strength_ : float
        Effective strength: `strength` × (1 − the share of the penalty that chance explains).
    overlap_ : (n_donors, k)
        Overlap of U of each donor with the encoder E: ``U Eᵀ`` in model 1, ``diag(U_d Eᵀ)`` in model 2.
    """

    strength: float = penalties.STRENGTH

    conditional: ClassVar[bool] = True
    published: ClassVar[dict] = AENMF.published | {"strength": 0.0, "row_norm": True}
    gamma = eta = 0.0  # penalty weights if strength=0; parameters of model 1 only

    @property
    def uses_cell_type(self) -> bool:
        return self.strength > 0 or self.gamma > 0

    def fit(self, cells, *, sums=None, checkpoint=None, aenmf=None, start=None,
            donor_key=DONOR, cell_type_key=CELL_TYPE) -> "_Conditional":  # fmt: skip
        """Fit the model to all cells and return it; see `AENMF.fit`."""
        begin = time.perf_counter()
        self._set_names(cells, donor_key, cell_type_key)
        moments = self._load_moments(cells, sums)
        if self._from_aenmf:  # first step: AE-NMF
            aenmf = self._find_aenmf(aenmf, cells, moments, checkpoint and role_path(checkpoint, "aenmf"))
            self._check_aenmf(aenmf, moments)
            start = aenmf.W_ if start is None else start
        moments = self._weight_genes(moments, aenmf if self._from_aenmf else None)
        if self.strength:  # second step: weight of the penalty, at the AE-NMF solution
            self.penalty_, self.strength_ = self._penalty_at(self._to_tensor(aenmf.W_, moments), moments)
        else:
            self.penalty_, self.strength_ = penalties.PenaltyWeights(self.gamma, self.eta, centered=False), 0.0
        self._fit(moments, self._to_tensor(start, moments), checkpoint)  # third step: the model itself
        if self._from_aenmf:
            self.starts_, self.stability_ = aenmf.starts_, aenmf.stability_
        self.seconds_ = time.perf_counter() - begin
        return self

    def summary(self) -> str:
        strength = f"; effective strength {self.strength_:.2g} of {self.strength:g}" if self.strength else ""
        note = f"; {self.penalty_.note}" if self.penalty_.note else ""
        return super().summary() + strength + note

    def iter_embeddings(self, cells: Cells) -> Iterator[tuple[dict[str, np.ndarray], slice]]:
        """Yield the usages, the latent of the donor, and both concatenated; see `AENMF.iter_embeddings`."""
        cells = base.check_genes(self, cells)
        self._check_U(self.overlap_)
        codes = self._donor_codes(cells)
        for found, rows in super().iter_embeddings(cells):
            latent = self._latent(found["shared"], codes[rows])
            yield found | {"cond_latent": latent, "concat_full": np.hstack([found["shared"], latent])}, rows

    @property
    def _from_aenmf(self) -> bool:
        """Whether the fit starts from an AE-NMF."""
        return self.strength > 0

    def _penalty_at(self, W: torch.Tensor, moments: Moments) -> tuple[penalties.PenaltyWeights, float]:
        """Return the weights that the strength gives at the AE-NMF solution W (k, n_genes); the effective strength."""
        return penalties.weights_from_strength(self.strength, moments, W)

    def _find_aenmf(self, aenmf, cells, moments: Moments, checkpoint: str | Path | None = None) -> AENMF:
        """Return the AE-NMF from which the weights are computed: given, read from the given file, or fitted."""
        settings = {field.name: getattr(self, field.name) for field in fields(AENMF) if field.name != "preset"}
        if isinstance(aenmf, str | Path):
            return load_aenmf(aenmf, settings, cells)
        return aenmf or AENMF(**settings).fit(moments, checkpoint=checkpoint)

    def _check_aenmf(self, aenmf: AENMF, moments: Moments) -> None:
        """Raise ValueError unless aenmf is a fitted AE-NMF of these genes, with the same rank and gene weights."""
        if getattr(aenmf, "name", "") != AENMF.name or not hasattr(aenmf, "W_"):
            raise ValueError(f"aenmf ({type(aenmf).__name__}) is not a fitted AENMF. Pass a fitted one, or None.")
        if aenmf.W_.shape != (self.k, moments.n_genes) or aenmf.gene_weights != self.gene_weights:
            found = f"aenmf has W of shape {aenmf.W_.shape} and gene_weights={aenmf.gene_weights!r}"
            raise ValueError(f"{found}. Expected {(self.k, moments.n_genes)} and {self.gene_weights!r}.")
        if not base.same_genes(pd.Index(aenmf.genes_), moments.genes):
            raise ValueError("aenmf was fitted to other genes, or in another order. Pass one fitted to these genes.")

    def _objective(self, moments: Moments) -> AENMFObjective:
        P = self.penalty_.rows(moments)
        return self.objective_class(moments, lambda_W=self.lambda_W, lambda_U=self.lambda_U, P=P)

    def _check_moments(self, moments: Moments) -> None:
        super()._check_moments(moments)
        if self.uses_cell_type:
            penalties.check_labeled(moments, self.cell_type_key_)
        self.donors_ = np.array(moments.donors)
        if len(self.donors_) < 2:
            raise ValueError(f"obs[{self.donor_key_!r}] contains only one donor ({moments.donors[0]!r}). {self.name} "
                             "needs at least 2. Lower min_cells to keep more donors, or use AENMF.")  # fmt: skip

    def _identity(self, moments: Moments) -> dict[str, str | int | float | bool | None]:
        """Add the groups of cells and the weight of the penalty, which depends on the AE-NMF of the fit."""
        groups = (f"{kind} {donor} {n}" for (kind, donor), (n, _) in sorted(moments.sums.groups.items()))
        return super()._identity(moments) | {"groups": hash_names(groups), "penalty": f"{self.penalty_.gamma:.3g}"}

    def _store(self, solution, moments: Moments) -> None:
        super()._store(solution, moments)
        self.overlap_ = self._overlap()

    def _check_U(self, known: np.ndarray | None) -> None:
        """Raise ValueError if U, or what is needed of it, is unknown."""
        if known is None:
            raise ValueError(f"U of this {self.name} is unknown, because the file from which it was loaded has no U. "
                             "Write the file with model.save or donor_U=True, or fit the model again.")  # fmt: skip

    def _donor_codes(self, cells: Cells) -> np.ndarray:
        """Return the row of U for each cell, (n_cells,)."""
        donor = read_labels(as_cells(cells).obs, self.donor_key_)
        if unknown := sorted(map(str, set(donor) - set(self.donors_))):
            raise ValueError(f"{len(unknown)} donors were not in the fit (first: {unknown[0]!r}). See model.donors_.")
        return np.searchsorted(self.donors_, donor)


@base.with_inherited_entries
@dataclass(kw_only=True)
class CAENMF1(_Conditional):
    """Conditional AE-NMF, model 1: one additive profile per donor, ``X̂ = X Wᵀ W + C U``.

    Minimizes ``(1/n) ‖X − X̂‖² + λ_W ‖W‖² + λ_U ‖U‖² + γ I(H) + η HSIC(H, C)`` over W, U ≥ 0, with C the one-hot
    donors. ``I = (1/n) Σ n_td ‖h̄_td‖²`` shrinks the mean usages of every group of type t and donor d. HSIC is linear
    [1]_. With a `strength`, the only penalty is the centered invariance ``I_c = (1/n) Σ n_td ‖h̄_td − h̄_t‖²``, which
    shrinks their distance from the mean of the type; the strength sets its weight γ (module `penalties`).

    In five runs on four real data sets, strength 0.2 removed 91, 91, 83, 75 and 39 % of the between-donor variance
    within types; this is not a guarantee. `CAENMF2` usually removes more, and classifiers of the cell type lose less.
    On a CPU it takes two to three times as long: prefer it where time allows.

    Parameters
    ----------
    lambda_U
        λ_U, the weight of ‖U‖².
    gamma, eta
        Only used if strength=0: the weights γ of the invariance I, which reads ``cell_type``, and η of HSIC.

    Attributes
    ----------
    U_ : (n_donors, n_genes)
        Profile of each donor.

    Raises
    ------
    ValueError
        On construction, if a parameter is not valid, or a weight is given together with a strength.

    References
    ----------
    .. [1] Gretton et al. (2005), ALT, doi:10.1007/11564089_7.

    Examples
    --------
    >>> from aenmf_lib import CAENMF1, data
    >>> cells, _ = data.simulate(n_cells=200)
    >>> model = CAENMF1(k=3, max_iter=5).fit(cells)
    >>> model.transform(cells).shape, model.U_.shape
    ((200, 3), (6, 2000))
    """

    lambda_U: float = 1e-1
    gamma: float = 1e-3
    eta: float = 0.256

    name: ClassVar[str] = "CAE_NMF1"
    objective_class: ClassVar = AdditiveDonorObjective
    published: ClassVar[dict] = _Conditional.published | {"lambda_U": 1e-1, "gamma": 1e-3, "eta": 0.256}

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("gamma", "eta") if getattr(self, name) != self.published[name]]
        if self.strength and given:
            values = ", ".join(f"{name}={getattr(self, name)!r}" for name in given)
            raise ValueError(f"{values} would be ignored, because strength={self.strength:g} sets the weight of the "
                             "penalty. Set strength=0 to use your own weights.")  # fmt: skip

    def cond_latent(self, cells: Cells) -> np.ndarray:
        """Return ``C U Eᵀ``, (n_cells, k): the usages of the profile of each cell's donor.

        Raises NotFittedError; TypeError or ValueError if the cells are not valid or have donors that were not in the
        fit.
        """
        base.check_genes(self, cells)
        self._check_U(self.overlap_)
        return self.overlap_[self._donor_codes(cells)]

    def _latent(self, H: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return the latent of the donor of each cell, (n, k), from its usages H and its row of U, `codes` (n,)."""
        return self.overlap_[codes]

    def _overlap(self) -> np.ndarray:
        return self.U_ @ self.encoder_.T


@base.with_inherited_entries
@dataclass(kw_only=True)
class CAENMF2(_Conditional):
    """Conditional AE-NMF, model 2: programs that differ by donor, ``x̂ = h (W + U_d)``.

    Extends AE-NMF [1]_. Minimizes ``(1/n) ‖X − X̂‖² + λ_W ‖W‖² + λ_U ‖U‖²`` over W, U ≥ 0, and with a `strength` also
    the penalty of model 1. (The published code has options for penalties in model 2 but ignores them.)

    Model 2 usually removes more of the donor information than model 1 and preserves the cell types better; on a CPU it
    takes two to three times as long. On donors that were not in the fit, the donor information is only partly removed
    unless the fit contained a similar effect.

    Parameters
    ----------
    lambda_U
        λ_U, the weight of ‖U‖².

    Attributes
    ----------
    U_ : (n_donors, k, n_genes)
        Change of each program in each donor.

    Raises
    ------
    ValueError
        On construction, if a parameter is not valid.

    References
    ----------
    .. [1] Yang & Oja (2010), IEEE Trans. Neural Netw. 21:734, doi:10.1109/TNN.2010.2041361.

    Examples
    --------
    >>> from aenmf_lib import CAENMF2, data
    >>> cells, _ = data.simulate(n_cells=200)
    >>> CAENMF2(k=3, max_iter=5).fit(cells).U_.shape
    (6, 3, 2000)
    """

    lambda_U: float = 5e-2

    name: ClassVar[str] = "CAE_NMF2"
    by_donor: ClassVar[bool] = True
    objective_class: ClassVar = DonorDecoderObjective
    published: ClassVar[dict] = _Conditional.published | {"lambda_U": 5e-2}

    def cond_latent(self, cells: Cells) -> np.ndarray:
        """Return ``h ∘ diag(U_d Eᵀ)``, (n_cells, k). Raises as `transform` does, and for new donors."""
        cells = base.check_genes(self, cells)
        self._check_U(self.overlap_)
        return self._latent(self.transform(cells), self._donor_codes(cells))

    def _latent(self, H: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return the latent of the donor of each cell, (n, k), from its usages H and its row of U, `codes` (n,)."""
        return H * self.overlap_[codes]

    def _overlap(self) -> np.ndarray:
        return np.einsum("djp,jp->dj", self.U_, self.encoder_)
