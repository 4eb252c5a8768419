"""Usages of cells that lack some genes of a model, on the scale of the usages of cells with all genes.

Two things change if genes are missing. First, a cell is scaled to 10,000 counts over fewer genes, so its values are too
large. Second, the sum over the genes in ``h = x Eᵀ`` has fewer terms, so usages are too small. An example are the blood
cells of three new donors (Kang et al. 2018) with a random half of the genes. The usages of AE-NMF were .60 to .63 times
those with all genes before the correction, and 1.00 to 1.01 times after it (medians of 20 programs; four halves).
"""

import copy
import logging

import numpy as np
from scipy.sparse import csr_matrix
from scipy.stats import poisson

from aenmf_lib.programs.alignment import Alignment

log = logging.getLogger(__name__)

_TOTAL = 1e4  # number of counts to which a cell is scaled
_ROUNDS = 4  # iterations of the estimate of `share`, which changes by less than .001 after three
_CELLS = 128  # maximum number of cells in the sample whose genes are all predicted
_LARGEST = 0.9  # maximum spectral radius of the k × k matrix B of missing genes: usages grow at most about tenfold
_EXACT = 100  # up to this expected count, the mean of log1p is an exact sum


class Completion:
    """Computation of the usages of cells that have only some of the genes of a model.

    AE-NMF is linear, and its reconstruction ``h V + c`` predicts the missing genes from the usages. V and c are W and
    0, plus the mean donor part if the model has one. The usages are the solution h of a linear system of size k, in
    which the predicted values replace the missing ones: ``h = x_found E_foundᵀ + (h V + c)_missing E_missingᵀ``. All
    entries are non-negative, so the solution is non-negative. Base NMF needs no correction, because its usages are the
    non-negative least squares over the found genes.

    Parameters
    ----------
    model, aligned
        A fitted model, and the alignment of the genes of the cells.
    sample : (n_sample, n_genes_of_file) csr_matrix
        Some log-normalized cells, which are used to estimate `share`.
    totals
        Whether each cell was scaled to 10,000 counts over the genes of its file. If False, the cells were scaled
        before genes were removed, and their values are not changed.

    Attributes
    ----------
    share : float
        Estimated share of the found genes in the counts of all genes of the model.

    Raises ValueError if the found genes have no counts in the sample.
    """

    def __init__(self, model, aligned: Alignment, sample: csr_matrix, *, totals: bool = True) -> None:
        self.model, self.aligned, self.share = model, aligned, 1.0
        self.decoder, self.offset = _mean_decoder(model)
        if aligned.complete:
            return
        missing, E = ~aligned.found, getattr(model, "encoder_", model.W_).astype(np.float64)
        if model.name == "Base_NMF":
            self._observed = copy.copy(model)
            self._observed.W_ = np.ascontiguousarray(model.W_[:, aligned.found])
            self._observed.genes_ = model.genes_[aligned.found]
        else:
            B = self.decoder[:, missing] @ E[:, missing].T  # (k, k)
            radius = np.abs(np.linalg.eigvals(B)).max()
            if radius > _LARGEST:
                log.warning("The cells lack almost all genes of some programs, whose usages are therefore too small")
                B *= _LARGEST / radius
            self._inverse = np.linalg.inv(np.eye(len(B)) - B)
            self._predicted = self.offset[missing] @ E[:, missing].T  # (k,)
        if totals:
            self._estimate_share(sample)

    def select(self, X: csr_matrix) -> csr_matrix:
        """Return log-normalized cells (n_cells, n_genes_of_file) with the genes of the model, scaled by `share`."""
        selected = self.aligned.select(X)
        if self.share == 1:
            return selected
        counts = np.expm1(selected.data, dtype=np.float64)
        own = np.add.reduceat(np.append(counts, 0), selected.indptr[:-1]) * (np.diff(selected.indptr) > 0) / _TOTAL
        scale = 1 / (1 + own * (1 / self.share - 1))  # (n_cells,)
        selected.data = np.log1p(counts * np.repeat(scale, np.diff(selected.indptr))).astype(selected.dtype)
        return selected

    def usages(self, X: csr_matrix) -> np.ndarray:
        """Return the usages (n_cells, k) of cells from `select`, equal to ``model.transform`` if no gene is missing."""
        if self.aligned.complete:
            return self.model.transform(X)
        if self.model.name == "Base_NMF":
            return self._observed.transform(X[:, self.aligned.found])
        H = self.model.transform(X)
        return ((H + self._predicted) @ self._inverse).astype(H.dtype)

    def _estimate_share(self, sample: csr_matrix) -> None:
        """Set `share` to the share of the found genes in the counts that the model predicts for the sample."""
        expressed = sample[np.diff(sample.indptr) > 0]
        if not expressed.shape[0]:
            return
        smallest = np.minimum.reduceat(np.expm1(expressed.data), expressed.indptr[:-1])
        n_counts = float(np.median(_TOTAL / smallest))  # the smallest value of a cell is usually one count
        some = sample[:: -(-sample.shape[0] // _CELLS)]
        for _ in range(_ROUNDS):
            logs = self.usages(self.select(some)) @ self.decoder + self.offset  # (at most _CELLS, n_genes)
            counts = _counts_from_logs(logs, n_counts / self.share).sum(axis=0)
            found = float(counts[self.aligned.found].sum())
            if not found > 0:
                raise ValueError(f"The cells have {self.aligned.found.sum()} genes of {self.model.name}, which have no "
                                 "counts in a sample, so the usages cannot be corrected for the missing genes. Use "
                                 "cells with more genes of the model.")  # fmt: skip
            self.share = found / float(counts.sum())
        log.info("The genes that were found have about %.0f %% of the counts of all genes of the model. Cells are "
                 "scaled to %.0f counts, so that they are comparable with cells that have all genes",
                 100 * self.share, _TOTAL * self.share)  # fmt: skip


def _mean_decoder(model) -> tuple[np.ndarray, np.ndarray]:
    """Return V (k, n_genes) and c (n_genes,) of ``x̂ = h V + c``, with the mean U of the fitted donors."""
    W, U = model.W_.astype(np.float64), model.U_
    if U is None:
        return W, np.zeros(W.shape[1])
    mean = np.asarray(U).mean(axis=0, dtype=np.float64)
    return (W, mean) if mean.ndim == 1 else (W + mean, np.zeros(W.shape[1]))


def _counts_from_logs(mean: np.ndarray, n_counts: float) -> np.ndarray:
    """Convert means of log1p, (n_cells, n_genes), to mean counts per 10,000, for cells with n_counts counts in total.

    Counts are assumed to follow a Poisson distribution. log1p is concave, so expm1 of the mean of log1p is too small,
    most of all for rare genes.
    """
    rates = np.geomspace(1e-5, _TOTAL, 1000)  # counts per 10,000
    expected, size = rates * n_counts / _TOTAL, _TOTAL / n_counts  # expected counts; value of one count
    few, n = expected[expected <= _EXACT], np.arange(4 * _EXACT)
    exact = poisson.pmf(n, few[:, None]) @ np.log1p(n * size)
    many = rates[len(few) :]
    logs = np.concatenate([exact, np.log1p(many) - many * size / (2 * (1 + many) ** 2)])  # second-order approximation
    return np.interp(mean, np.maximum.accumulate(logs), rates, left=0.0)
