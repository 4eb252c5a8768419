"""Computation of the donor part of new donors from sums over their own cells, without cell types."""

from types import SimpleNamespace

import numpy as np
import torch
from scipy.sparse import csr_matrix

from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.programs.missing_genes import Completion
from aenmf_lib.training.objective import Point

_STEPS = 200  # of the non-negative least squares of model 2, which starts from the mean U of the fitted donors


class DonorSums:
    """Sums over the cells of new donors, and the donor part that they determine at the fitted W.

    The donor part minimizes the objective of the fit over U, with the W and the number of cells n of the fit. If the
    cells of a fitted donor are given again, the result for model 1 is therefore the U of the fit, apart from rounding.
    For model 2, the latent of the donor can differ from that of the fit by some per cent, because the fit stops (`tol`)
    before its U minimizes the objective for its W.
    """

    def __init__(self, completion: Completion, n_donors: int) -> None:
        self.completion, self.model = completion, completion.model
        self.k, n_genes = self.model.W_.shape
        self.n_cells, self.usages = np.zeros(n_donors), np.zeros((n_donors, self.k))
        self.cells = np.zeros((n_donors, n_genes))  # sums of X
        self.products = [np.zeros((self.k, n_genes), np.float32) for _ in range(n_donors * self.model.by_donor)]  # Hᵀ X
        self.gram = np.zeros((n_donors, self.k, self.k))  # Hᵀ H

    def add(self, X: csr_matrix, H: np.ndarray, donor: np.ndarray) -> None:
        """Add cells X (n_cells, n_genes) with usages H (n_cells, k) and donors `donor`, (n_cells,) int."""
        for d in np.unique(donor):
            own = donor == d
            self.n_cells[d] += own.sum()
            self.cells[d] += np.asarray(X[own].sum(axis=0, dtype=np.float64)).ravel()
            self.usages[d] += H[own].sum(axis=0, dtype=np.float64)
            if self.products:
                self.products[d] += (X[own].T @ H[own]).T
                self.gram[d] += H[own].T.astype(np.float64) @ H[own]

    def donor_part(self) -> tuple[np.ndarray | None, np.ndarray]:
        """Return U (n_donors, n_genes), None for model 2, and its overlap (n_donors, k), None for the untied model."""
        model, found = self.model, self.completion.aligned.found
        w = np.ones(len(found)) if model.gene_weights_ is None else model.gene_weights_.astype(np.float64)
        to_data = np.divide(1, w, out=np.zeros_like(w), where=w > 0)
        known = model.U_ is not None and not found.all()
        mean = np.asarray(model.U_).mean(axis=0) if known else 0.0  # replaces U at the missing genes
        if model.name == "Untied_AE_NMF":  # its embeddings do not need the overlap
            cells, weight = self._complete_cells(), self.n_cells + model.n_cells_ * model.lambda_U
            U = np.maximum(cells - cells @ model.encoder_.T @ model.W_, 0) / weight[:, None]
            return np.where(found, U * (w > 0), mean).astype(model.W_.dtype), None
        W = torch.from_numpy((model.W_ * w).astype(model.W_.dtype))
        if not self.products:
            U = self._objective(self._complete_cells() * w).closed_form_U(W).numpy() * to_data
            U = np.where(found, U, mean).astype(model.W_.dtype)
            return U, U @ model.encoder_.T
        overlap = []
        for d in range(len(self.n_cells)):
            T = torch.from_numpy((self._complete_products(d) * w).astype(model.W_.dtype))[None]
            objective = self._objective(self.cells[d : d + 1] * w)
            point = Point(W, T, T.double() @ W.double().T, None)
            U = objective.best_U(point, self._start(w), steps=_STEPS)[0].numpy() * to_data
            overlap.append((np.where(found, U, mean) * model.encoder_).sum(axis=1))
        return None, np.array(overlap, dtype=model.W_.dtype)

    def _objective(self, sums: np.ndarray) -> AENMFObjective:
        """Return the objective of the model for these sums, (n_donors, n_genes), with the n of the fit."""
        model, sums = self.model, torch.from_numpy(sums)
        moments = SimpleNamespace(n_cells=model.n_cells_, donor_sums=sums, gene_sq=torch.zeros(1, sums.shape[1]))
        moments.donor_counts = torch.from_numpy(self.n_cells)
        return model.objective_class(moments, lambda_W=model.lambda_W, lambda_U=model.lambda_U)

    def _complete_cells(self) -> np.ndarray:
        """Return the sums of X, (n_donors, n_genes). Missing genes have the values that the model predicts."""
        predicted = self.usages @ self.completion.decoder + self.n_cells[:, None] * self.completion.offset
        return np.where(self.completion.aligned.found, self.cells, predicted)

    def _complete_products(self, d: int) -> np.ndarray:
        """Return Hᵀ X of a donor, (k, n_genes). Missing genes have the values that the model predicts."""
        return np.where(self.completion.aligned.found, self.products[d], self.gram[d] @ self.completion.decoder)

    def _start(self, w: np.ndarray) -> torch.Tensor | None:
        """Return the mean U of the fitted donors as the start, (1, k, n_genes), in the units of the fit."""
        if self.model.U_ is None:
            return None
        return torch.from_numpy((np.asarray(self.model.U_).mean(axis=0) * w).astype(self.model.W_.dtype))[None]
