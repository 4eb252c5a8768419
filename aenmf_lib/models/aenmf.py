"""AE-NMF. The conditional models extend this class; Base NMF is separate."""

import functools
import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from aenmf_lib.data.labels import CELL_TYPE, DONOR
from aenmf_lib.models import base, initialization
from aenmf_lib.models.gene_weights import RULES, shared_variance_weights
from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.models.starts import check_start, compare_starts
from aenmf_lib.training import sharding, solver
from aenmf_lib.training.checkpoint import Checkpoint, checkpoint_files, role_path
from aenmf_lib.training.inputs import Cells, as_cells, usages
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.second_moment import MODES

__all__ = ["AENMF"]

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class AENMF(base.Model):
    """Autoencoding NMF: non-negative programs W with usages ``H = X Wᵀ``.

    Minimizes ``(1/n) ‖X − X Wᵀ W‖² + λ_W ‖W‖²`` over W ≥ 0: linear projective NMF [1]_, [2]_. The objective and its
    gradient are exact over all n cells.

    Parameters
    ----------
    k
        Number of programs.
    seed, n_starts
        Random starts use the seeds ``seed, seed + 1, …``; the best of `n_starts` fits is kept.
    tol, max_iter
        Stop when the objective decreases by less than the fraction `tol` over 10 sweeps (30 gradient steps), or after
        `max_iter` iterations.
    lambda_W
        λ_W, the weight of ‖W‖².
    row_norm
        Whether the rows of W are fixed at length 1.
    gene_weights
        'none', or 'shared': weight each gene by the variance that it shares with other genes.
    preset
        'published': use the published choices instead of the values given.
    init
        'cells': start from means of random cells, improved on samples. 'nndsvd': start from singular vectors.
    mode
        Representation of XᵀX: 'implicit', 'explicit', or 'auto' for the cheaper one.
    device
        Where torch computes: 'cpu', 'cuda', 'cuda:1' …

    Attributes
    ----------
    W_ : (k, n_genes)
        Programs, one per row, in the units of X.
    encoder_ : (k, n_genes)
        E of ``H = X Eᵀ``: W, or ``W diag(w²)`` with gene weights w.
    gene_weights_ : (n_genes,) or None
        Weights w of the genes.
    loss_history_ : (n_iter_ + 1,)
        Objective at the start and after each iteration.
    n_iter_, stop_reason_, seconds_
        Number of iterations, why the fit stopped, and its duration in seconds, initialization included.
    n_cells_, sq_norm_per_cell_
        Number of cells n, and ``‖X‖² / n``.
    genes_, symbols_ : (n_genes,)
        Names of the genes, and their symbols (``var['feature_name']``) or None.
    second_moment_ : str
        Representation of XᵀX and the reason for it.
    starts_ : DataFrame, one row per start
        Seed, objective, iterations, seconds, stop reason, whether kept, mean cosine of its programs to those kept.
    stability_ : DataFrame, one row per program
        Cosine of each program to its partner in the other starts (`programs.stability`).
    checkpoint_files_ : list of Path
        State files that the fit may have left.
    donor_key_, cell_type_key_ : str
        Columns of obs with the donors and the cell types.
    U_, overlap_, donors_, penalty_, strength_
        Empty, zero or None: these belong to the conditional models.

    Raises
    ------
    ValueError
        On construction, if a hyperparameter is not valid.

    References
    ----------
    .. [1] Yuan & Oja (2005), SCIA, doi:10.1007/11499145_35.
    .. [2] Yang & Oja (2010), IEEE Trans. Neural Netw. 21:734, doi:10.1109/TNN.2010.2041361.

    Examples
    --------
    >>> from aenmf_lib import AENMF, data
    >>> cells, _ = data.simulate(n_cells=200)
    >>> AENMF(k=3, max_iter=5).fit(cells).transform(cells).shape
    (200, 3)
    """

    n_starts: int = 1
    lambda_W: float = 1e-2
    row_norm: bool = False
    gene_weights: str = "none"
    preset: str | None = None
    init: str = "cells"
    mode: str = "auto"
    device: str = "cpu"

    name: ClassVar[str] = "AE_NMF"
    conditional: ClassVar[bool] = False
    by_donor: ClassVar[bool] = False  # whether the model needs one second moment per donor
    published: ClassVar[dict] = {"lambda_W": 1e-2, "row_norm": False, "gene_weights": "none"}
    choices: ClassVar[dict] = {
        "preset": (None, "published"), "init": initialization.INITS, "gene_weights": RULES, "mode": MODES
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        base.check_seeds(self.seed, self.n_starts, "starts")
        if self.preset == "published":
            vars(self).update(self.published)

    @property
    def encoder_(self) -> np.ndarray:
        """E of ``H = X Eᵀ``, (k, n_genes): W, or ``W diag(w²)`` with gene weights."""
        return self.W_ if self.gene_weights_ is None else (self.W_ * self.gene_weights_**2).astype(self.W_.dtype)

    def fit(
        self,
        cells: Cells | Moments,
        *,
        sums: str | Path | None = None,
        checkpoint: str | Path | None = None,
        aenmf: "AENMF | str | Path | None" = None,
        start: np.ndarray | None = None,
        donor_key: str = DONOR,
        cell_type_key: str = CELL_TYPE,
    ) -> "AENMF":
        """Fit the model to all cells and return it. The cells are not changed.

        Parameters
        ----------
        cells : n_cells × n_genes
            log1p of counts per 10,000: an AnnData or a matrix, dense or sparse, of any numeric type; a `CellStream`; or
            moments, which serve many fits. Conditional models need obs, and so an AnnData, a stream or moments.
        sums
            File of merged shard sums of these cells.
        checkpoint
            File for the state, written once a minute. If it exists, the fit resumes; on the CPU the result is
            bit-identical to that of an uninterrupted fit.
        aenmf
            Fitted AE-NMF of the same cells, or its results file, for models with a strength. If None, it is fitted.
        start : (k, n_genes), ≥ 0
            W to start from. If None, `init` decides, or with a strength the AE-NMF solution.
        donor_key, cell_type_key
            Columns of obs with the donor, which conditional models read, and with the cell type, which a penalty may
            read. `objective`, `embeddings` and `cond_latent` use them for other cells too.

        Raises
        ------
        TypeError, ValueError, MemoryError
            The cells (raw counts, for example), sums or checkpoint are not valid for this model, or the second moment
            exceeds the memory.
        """
        begin = time.perf_counter()
        self._set_names(cells, donor_key, cell_type_key)
        moments = self._weight_genes(self._load_moments(cells, sums), aenmf)
        self._fit(moments, self._to_tensor(start, moments), checkpoint)
        self.seconds_ = time.perf_counter() - begin
        return self

    def transform(self, X: Cells) -> np.ndarray:
        """Return the usages ``H = X Eᵀ`` of cells, in the precision of X.

        Parameters
        ----------
        X : n_cells × n_genes
            Cells as for `fit`, but not moments, with the genes of the fit in the same order. The versions of Ensembl
            ids may differ. A matrix without names needs the number of genes of the fit.

        Returns
        -------
        H : (n_cells, k)

        Raises
        ------
        NotFittedError, TypeError, ValueError
            The model is not fitted; the cells are not valid (raw counts, for example) or have other genes.
        """
        cells, H = base.check_genes(self, X), np.empty((0, self.k))
        for block, rows in usages(cells, self.encoder_, self.device):  # a list of blocks needs twice the memory
            H = H if len(H) else np.empty((cells.n_obs, self.k), block.dtype)
            H[rows] = block
        return H

    def objective(self, cells: Cells) -> float:
        """Return the exact objective of ``W_`` and ``U_`` on these cells.

        Raises the errors of `transform`, and ValueError for donors that were not in the fit.
        """
        cells = base.check_genes(self, cells)
        if self.conditional:
            self._check_U(self.U_)
            self._donor_codes(cells)  # raises for donors that were not in the fit
        moments = self._apply_weights(self._moments(cells))
        W, U = torch.from_numpy(self._variable()).to(self.device, moments.dtype), None
        if self.U_ is not None:  # only of the donors of these cells
            rows = np.searchsorted(self.donors_, moments.donors)
            U = torch.from_numpy(self._to_fit_units(self.U_[rows])).to(self.device, moments.dtype)
        objective = self._objective(moments)
        return objective.value(objective.point(W, U))

    def iter_embeddings(self, cells: Cells) -> Iterator[tuple[dict[str, np.ndarray], slice]]:
        """Yield the embeddings of blocks of cells by role, and the rows of each block. Raises as `transform` does."""
        for H, rows in usages(base.check_genes(self, cells), self.encoder_, self.device):
            yield {"shared": H}, rows

    def _load_moments(self, cells: Cells | Moments, sums: str | Path | None) -> Moments:
        """Return the checked moments of the cells: given, loaded from sums, or computed."""
        if sums:
            if (keys := (self.donor_key_, self.cell_type_key_)) != (DONOR, CELL_TYPE):
                raise ValueError(f"sums are grouped by {DONOR} and {CELL_TYPE}, not by {' and '.join(keys)}. Leave out "
                                 "donor_key and cell_type_key, or sums.")  # fmt: skip
            moments = sharding.load_sums(sums, cells, by_donor=self.by_donor, mode=self.mode, device=self.device)
        elif isinstance(cells, Moments):
            moments = cells
        else:
            cells = as_cells(cells)
            base.check_rank(self.k, cells.n_obs, cells.n_vars)
            moments = self._moments(cells)
        self._check_moments(moments)
        self.n_cells_, self.sq_norm_per_cell_ = moments.n_cells, moments.sq_norm / moments.n_cells
        return moments

    def _moments(self, cells: Cells) -> Moments:
        """Compute the moments that this model needs."""
        names = self.conditional and self.donor_key_, self.uses_cell_type and self.cell_type_key_
        settings = {"by_donor": self.by_donor, "k": self.k, "mode": self.mode, "device": self.device}
        return Moments.from_cells(cells, donor=names[0], cell_type=names[1], **settings)

    def _check_moments(self, moments: Moments) -> None:
        """Raise ValueError if moments do not fit this model. Those computed by `_moments` fit."""
        if moments.sq_norm == 0:
            raise ValueError("All values of the cells are 0, so there is nothing to fit. Pass cells with counts.")
        labels = moments.sums.labels
        for part, needed, found in (
            ("by_donor", self.by_donor, moments.by_donor),
            ("donor", self.conditional, DONOR in labels),
            ("cell_type", self.uses_cell_type, CELL_TYPE in labels),
        ):
            if needed and not found:
                raise ValueError(f"{self.name} needs moments with {part}=True. Pass it to Moments.from_cells.")
        base.check_rank(self.k, moments.n_cells, moments.n_genes)
        if moments.device != self.device:
            raise ValueError(f"The moments are on {moments.device!r}, not on device={self.device!r}. Load them there.")

    def _weight_genes(self, moments: Moments, aenmf: "AENMF | None") -> Moments:
        """Set `gene_weights_`, those of an AE-NMF if given, and return the moments of ``X diag(w)``."""
        self.gene_weights_ = None
        if self.gene_weights == "shared":
            self.gene_weights_ = aenmf.gene_weights_ if aenmf else shared_variance_weights(moments)
        return self._apply_weights(moments)

    def _apply_weights(self, moments: Moments) -> Moments:
        """Return the moments of ``X diag(w)``."""
        return moments if self.gene_weights_ is None else moments.with_gene_weights(self.gene_weights_)

    def _variable(self) -> np.ndarray:
        """Return the variable of the objective in the units of the fit: W."""
        return self._to_fit_units(self.W_)

    def _to_fit_units(self, decoder: np.ndarray) -> np.ndarray:
        """Convert W or U (…, n_genes) from the units of X to those of ``X diag(w)``."""
        return decoder if self.gene_weights_ is None else (decoder * self.gene_weights_).astype(decoder.dtype)

    def _to_data_units(self, decoder: np.ndarray) -> np.ndarray:
        """Convert W or U (…, n_genes) back to the units of X; genes of weight 0 get 0."""
        if self.gene_weights_ is None:
            return decoder
        used = self.gene_weights_ > 0
        return (decoder * np.where(used, 1 / np.where(used, self.gene_weights_, 1), 0)).astype(decoder.dtype)

    def _to_tensor(self, start: np.ndarray | None, moments: Moments) -> torch.Tensor | None:
        """Return a W to start from, (k, n_genes), if given, in the units of the fit."""
        if start is None:
            return None
        start = check_start(start, (self.k, moments.n_genes))
        return torch.from_numpy(self._to_fit_units(start)).to(moments.device, moments.dtype)

    def _fit(self, moments: Moments, W: torch.Tensor | None, checkpoint: str | Path | None) -> None:
        """Minimize from every start, or from W (k, n_genes) if given, and keep the best solution."""
        self.checkpoint_files_ = checkpoint_files(checkpoint, self.n_starts) if checkpoint else []
        settings = {"row_norm": self.row_norm, "tol": self.tol, "max_iter": self.max_iter, "name": self.name}
        objective, solutions = self._objective(moments), []
        seeds = range(self.seed, self.seed + (self.n_starts if W is None else 1))
        for i, seed in enumerate(seeds):
            state = None
            if checkpoint:
                state = Checkpoint(role_path(checkpoint, start=i), self._identity(moments) | {"start": seed})
            begin = functools.partial(self._start, moments, seed) if W is None else lambda: W
            solutions.append(solver.minimize(objective, begin, **settings, checkpoint=state))
            if state and len(seeds) > 1:  # if interrupted later, this start is not repeated
                state.write()
        best = min(range(len(solutions)), key=lambda i: min(solutions[i].loss_history))
        self._store(solutions[best], moments)
        Ws = [self._to_data_units(found.W.cpu().numpy()) for found in solutions]
        self.starts_, self.stability_ = compare_starts(self.name, solutions, Ws, best, seeds)

    def _objective(self, moments: Moments) -> AENMFObjective:
        return AENMFObjective(moments, lambda_W=self.lambda_W)

    def _start(self, moments: Moments, seed: int) -> torch.Tensor:
        """Return the W (k, n_genes) that this seed starts from."""
        settings = {"init": self.init, "lambda_W": self.lambda_W, "row_norm": self.row_norm}
        return initialization.initialize(moments, self.k, seed=seed, **settings)

    def _identity(self, moments: Moments) -> dict[str, str | int | float | bool | None]:
        """Return what a checkpoint must agree with before a fit resumes from it."""
        data = {"cells": moments.n_cells, "genes": hash_names(moments.genes), "sq_norm": moments.sq_norm}
        data |= {"second_moment": moments.mode, "version": version("aenmf_lib")}
        return {"model": self.name, **asdict(self), **data}

    def _store(self, solution: solver.Solution, moments: Moments) -> None:
        """Set the fitted attributes of one solution."""
        self.W_ = self._to_data_units(solution.W.cpu().numpy())
        self.U_ = None if solution.U is None else self._to_data_units(solution.U.cpu().numpy())
        self.loss_history_ = np.array(solution.loss_history)
        self.n_iter_, self.stop_reason_ = solution.n_iter, solution.reason
        self.genes_ = moments.genes.copy()
        self.second_moment_ = f"{moments.mode}: {moments.reason}"
        if n_empty := int((self.W_.sum(axis=1) == 0).sum()):
            log.warning("%s: %d of %d programs are empty (all weights 0). These cells may need fewer programs; try a "
                        "smaller k.", self.name, n_empty, self.k)  # fmt: skip


def hash_names(names: Iterable[str]) -> str:
    """Return a short hash of names in their order."""
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()[:16]
