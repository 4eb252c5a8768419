"""What is AE-NMF? The conditional models build on it (module `conditional`); the baseline has a module of its own.

A model is a dataclass of hyper-parameters; `fit` sets ``W_`` (k × genes), ``U_`` (the donor part, conditional models),
``n_iter_``, ``loss_history_`` (the exact objective over all cells, at the start and after each iteration), ``stop_``
(why it ended), ``genes_``, ``starts_`` (how each start ended) and ``stability_`` (how alike each program is in the
other starts, see `programs.stability`), and returns the model. Cells are an AnnData as `data.load` gives it.
"""

import functools
import hashlib
import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn.decomposition import non_negative_factorization
from sklearn.exceptions import ConvergenceWarning

from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.models import base, gene_weights, initialization, programs
from aenmf_lib.models.initialization import INITS
from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.training import solver
from aenmf_lib.training.checkpoint import Checkpoint
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.second_moment import to_torch

log = logging.getLogger(__name__)


@dataclass
class AENMF:
    """Autoencoding NMF: usages ``H = X Wᵀ``, reconstruction ``H W``.

    ``(1/n) ‖X − X Wᵀ W‖² + λ_W ‖W‖²`` over W ≥ 0: projective NMF (Yuan & Oja 2005; Yang & Oja 2010, IEEE Trans. Neural
    Netw. 21:734).
    """

    _: KW_ONLY
    k: int = 80  # programs
    seed: int = 42  # of the start
    n_starts: int = 1  # fit from so many starts, seed, seed + 1 …, and keep the best
    lambda_W: float = 1e-2  # weight of ‖W‖²
    row_norm: bool = False  # hold the rows of W at length 1
    gene_weights: str = "none"  # "shared": a gene counts by the variance it shares with others (module weighting)
    preset: str | None = None  # "published": the published choices, over the values given
    tol: float = 5e-4  # stop at this relative decrease of the objective over 10 sweeps (30 gradient steps)
    max_iter: int = 1000  # iterations at most
    init: str = "cells"  # start from random cells, improved on samples; or "nndsvd"
    mode: str = "auto"  # how XᵀX is kept: "implicit", "explicit", or the cheaper
    device: str = "cpu"  # where torch computes: "cpu", "cuda", "cuda:1" …

    name: ClassVar[str] = "AE_NMF"
    conditional: ClassVar[bool] = False
    by_donor: ClassVar[bool] = False  # whether it needs a second moment of every donor
    published: ClassVar[dict] = {"lambda_W": 1e-2, "row_norm": False, "gene_weights": "none"}

    def __post_init__(self) -> None:
        if self.preset not in (None, "published"):
            raise ValueError(f"preset={self.preset!r} is not known: give 'published' or None.")
        if self.init not in INITS:
            raise ValueError(f"init={self.init!r} is not known: give {' or '.join(map(repr, INITS))}.")
        if self.gene_weights not in gene_weights.RULES:
            known = " or ".join(map(repr, gene_weights.RULES))
            raise ValueError(f"gene_weights={self.gene_weights!r} is not known: give {known}.")
        base.check_hyperparameters(self)
        if self.preset == "published":
            for field, value in self.published.items():
                setattr(self, field, value)

    @property
    def uses_cell_type(self) -> bool:
        """Whether training reads ``cell_type``: a score against it is then not label-free."""
        return False

    def fit(
        self,
        cells: AnnData | CellStream | Moments,
        *,
        checkpoint: str | Path | None = None,
        plain: "AENMF | None" = None,
        start: np.ndarray | None = None,
    ) -> "AENMF":
        """Train on all cells.

        Parameters
        ----------
        cells : n_cells × n_genes
            ``X`` CSR, log1p of counts per 10 000; ``obs['donor_id']`` for the conditional models,
            ``obs['cell_type']`` where a penalty uses it (cells without one are in the data term alone). Or cells on
            disk, or their moments, which serve many fits.
        checkpoint
            File that keeps the state once a minute; if it is there, the fit goes on from it. On the CPU it ends in the
            same bits as one that was not interrupted.
        plain
            AE-NMF of the same cells and rank, from which `strength` is reckoned; without it, it is fitted first.
        start
            W to start from, (k, n_genes), ≥ 0. Without it, as `init` says, or for a `strength` from the plain AE-NMF.

        Raises
        ------
        ValueError
            k is larger than cells or genes, X is not sparse, negative or not finite, one donor only for a conditional
            model, a column is missing, or the checkpoint is of another fit.
        MemoryError
            The second moment does not fit; told before anything is computed.
        """
        begin = time.perf_counter()
        moments = cells if isinstance(cells, Moments) else self._moments(base.check_cells(cells, self.k))
        self._check_moments(moments)
        self.sq_norm_per_cell_ = moments.sq_norm / moments.n_cells
        self.gene_weights_ = None
        if self.gene_weights != "none":
            self.gene_weights_ = (
                gene_weights.shared_variance_weights(moments, self.gene_weights)
                if plain is None
                else plain.gene_weights_
            )
        moments = self._weighted(moments)
        first = self._prepare(moments, plain)
        if start is not None:
            W = self._in(_check_start(start, self.k, moments.n_genes))
            first = torch.from_numpy(W).to(moments.device, moments.dtype)
        self._fit(moments, first, checkpoint)
        self.seconds_ = time.perf_counter() - begin  # the start included
        return self

    def _fit(self, moments: Moments, first: torch.Tensor | None, checkpoint: str | Path | None) -> None:
        settings = {"row_norm": self.row_norm, "tol": self.tol, "max_iter": self.max_iter, "name": self.name}
        objective, found = self._objective(moments), []
        seeds = range(self.seed, self.seed + (self.n_starts if first is None else 1))  # a start that is given is one
        for i, seed in enumerate(seeds):
            place = checkpoint and checkpoint.start_checkpoint(checkpoint, i)
            keep = place and Checkpoint(place, self._identity(moments) | {"start": seed})
            begin = functools.partial(self._start, moments, seed) if first is None else lambda: first
            found.append(solver.minimize(objective, begin, **settings, checkpoint=keep))
            if keep and len(seeds) > 1:  # killed later, this start is not made again
                keep.finish()
        best = min(range(len(found)), key=lambda i: min(found[i].loss_history))
        self._keep(found[best], moments)
        self._compare(found, best, seeds)

    def _compare(self, found: list[solver.Solution], best: int, seeds: Sequence[int]) -> None:
        """Tell how the starts ended, and how alike their programs are to those kept."""
        others = [i for i in range(len(found)) if i != best]
        self.stability_ = programs.stability([self._out(found[i].W.cpu().numpy()) for i in (best, *others)])
        cosines = self.stability_.filter(like="start ").mean().tolist()
        self.starts_ = pd.DataFrame(
            {
                "seed": list(seeds),
                "objective": [min(one.loss_history) for one in found],
                "iterations": [one.n_iter for one in found],
                "seconds": [one.seconds for one in found],
                "stop": [one.reason for one in found],
                "kept": [i == best for i in range(len(found))],
                "cosine": [1.0 if i == best else cosines[others.index(i)] for i in range(len(found))],
            }
        )
        if others:
            objective = self.starts_["objective"]
            log.info(
                "%s: %d starts, objective %.6g to %.6g (%.2g %%), seed %d kept; mean cosine of its programs to the "
                "others' %.3f to %.3f",
                *(
                    self.name,
                    len(found),
                    objective.min(),
                    objective.max(),
                    100 * (objective.max() / objective.min() - 1),
                ),
                *(seeds[best], min(cosines), max(cosines)),
            )

    @property
    def encoder_(self) -> np.ndarray:
        """E of ``H = X Eᵀ``, (k, n_genes): W, and with weights ``W diag(w²)``."""
        return self.W_ if self.gene_weights_ is None else (self.W_ * self.gene_weights_**2).astype(self.W_.dtype)

    # ---------------------------------------------------------------- weights of the genes: the fit is of X diag(w)
    def _weighted(self, moments: Moments) -> Moments:
        return moments if self.gene_weights_ is None else moments.with_gene_weights(self.gene_weights_)

    def _in(self, decoder: np.ndarray) -> np.ndarray:
        """From the units of X to those of the fit."""
        return decoder if self.gene_weights_ is None else (decoder * self.gene_weights_).astype(decoder.dtype)

    def _out(self, decoder: np.ndarray) -> np.ndarray:
        """Back, 0 for genes that take no part."""
        if self.gene_weights_ is None:
            return decoder
        there = self.gene_weights_ > 0
        return (decoder * np.where(there, 1 / np.where(there, self.gene_weights_, 1), 0)).astype(decoder.dtype)

    def transform(self, X: AnnData | csr_matrix | CellStream) -> np.ndarray:
        """Give each cell its program usages, ``H = X Wᵀ``, or with weights of the genes ``H = X Eᵀ``.

        Parameters
        ----------
        X : (n_cells, n_genes)
            As in `fit`, in the gene order of the fit.

        Returns
        -------
        H : (n_cells, k), float32 (float64 for float64 input), in the units of X.

        Raises
        ------
        ValueError
            The genes are not those of the fit.
        """
        blocks = base.iter_blocks(base.check_genes(self, X))
        E = torch.from_numpy(self.encoder_.T.copy()).to(self.device)
        return np.concatenate(
            [
                (to_torch(some, self.device) @ E.to(torch.from_numpy(some.data).dtype)).cpu().numpy()
                for some, _ in blocks
            ]
        )

    def refit(self, cells: AnnData | CellStream) -> np.ndarray:
        """Give usages that are not tied to W: H ≥ 0 that fits the cells best for this W, (n_cells, k).

        By scikit-learn's non-negative least squares. `relative_error` tells what the tie costs.
        """
        found, settings = [], {"n_components": self.k, "update_H": False, "tol": 1e-3, "max_iter": 50}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for X, _ in base.iter_blocks(base.check_genes(self, cells)):
                W = np.ascontiguousarray(self.W_, dtype=X.dtype)
                found.append(non_negative_factorization(X, H=W, **settings)[0])
        return np.concatenate(found)

    def objective(self, cells: AnnData) -> float:
        """Value of the trained objective at ``W_`` and ``U_`` on these cells, exact."""
        base.check_matrix(base.check_genes(self, cells))
        if self.conditional:
            self._donor_codes(cells)  # refuses other donors than those of the fit
        moments = self._weighted(self._moments(cells))
        W, U = torch.from_numpy(self._in(self.W_)).to(self.device, moments.dtype), None
        if self.U_ is not None:  # of the donors that are there
            rows = np.searchsorted(self.donors_, moments.donors)
            U = torch.from_numpy(self._in(self.U_[rows])).to(self.device, moments.dtype)
        objective = self._objective(moments)
        return objective.value(objective.point(W, U))

    def embeddings(self, cells: AnnData | CellStream) -> dict[str, np.ndarray]:
        """Give what the results file holds for each cell, by role: ``shared`` is H."""
        return {"shared": self.transform(cells)}

    def _moments(self, cells: AnnData | CellStream) -> Moments:
        uses = {"donor": self.conditional, "cell_type": self.uses_cell_type, "by_donor": self.by_donor}
        return Moments.from_cells(cells, **uses, k=self.k, mode=self.mode, device=self.device)

    # ---------------------------------------------------------------- what a model adds
    def _check_moments(self, moments: Moments) -> None:
        """Refuse moments that do not serve this model; those made here do."""
        base.check_rank(self.k, moments.n_cells, moments.n_genes)
        wanted = ((DONOR, self.conditional), (CELL_TYPE, self.uses_cell_type))
        if lacking := [name for name, needed in wanted if needed and name not in moments.sums.labels]:
            raise ValueError(f"{self.name} needs moments that tell {lacking[0]!r} apart: make them anew with it.")
        if moments.device != self.device:
            raise ValueError(f"the moments are on {moments.device!r}, the model on {self.device!r}: load them there.")

    def _prepare(self, moments: Moments, plain: "AENMF | None") -> torch.Tensor | None:
        """Settle what the objective takes from the cells; gives W to start from, if that has found one."""
        return None

    def _objective(self, moments: Moments) -> AENMFObjective:
        return AENMFObjective(moments, lambda_W=self.lambda_W)

    def _start(self, moments: Moments, seed: int) -> torch.Tensor:
        settings = {"init": self.init, "seed": seed, "lambda_W": self.lambda_W, "row_norm": self.row_norm}
        return initialization.initialize(moments, self.k, **settings)

    def _identity(self, moments: Moments) -> dict[str, str | int | float | bool | None]:
        """Tell what a checkpoint must be of, to go on from."""
        genes = hashlib.sha256("\n".join(map(str, moments.genes)).encode()).hexdigest()[:16]
        data_ = {"cells": moments.n_cells, "genes": genes, "sq_norm": moments.sq_norm, "second_moment": moments.mode}
        return {"model": self.name, **asdict(self), **data_, "version": version("aenmf_lib")}

    def _keep(self, solution: solver.Solution, moments: Moments) -> None:
        self.W_ = self._out(solution.W.cpu().numpy())
        self.U_ = None if solution.U is None else self._out(solution.U.cpu().numpy())
        self.loss_history_ = np.array(solution.loss_history)
        self.n_iter_, self.stop_ = solution.n_iter, solution.reason
        self.genes_ = moments.genes.copy()
        self.second_moment_ = f"{moments.mode}: {moments.reason}"
        if dead := int((self.W_.sum(axis=1) == 0).sum()):
            log.warning(
                "%s: %d of %d programs died (W is 0): fewer programs describe these cells.", self.name, dead, self.k
            )


def _check_start(W: np.ndarray, k: int, n_genes: int) -> np.ndarray:
    if W.shape != (k, n_genes) or not (W >= 0).all():
        raise ValueError(f"start is {W.shape}, least value {W.min():g}: expected {(k, n_genes)}, all of it 0 or above.")
    return W
