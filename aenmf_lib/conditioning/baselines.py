"""Baselines for the models: established methods with default settings, and an embedding of the cell types only."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib.data.labels import CELL_TYPE, DONOR, is_missing
from aenmf_lib.metrics import baselines
from aenmf_lib.metrics.baselines import LINEAR_SCVI

CELL_TYPE_ONLY = "Types"
_NOISE = 0.05  # standard deviation of the noise that makes the neighbors within a type random
_N_GENES = 2000  # most variable genes for LinearSCVI, as in its tutorials


@dataclass
class Embedding:
    """Usages of the cells of a fit, and the function that embeds other cells."""

    H: np.ndarray  # (n_cells, k)
    transform: Callable[[AnnData], np.ndarray] | None  # None: the method cannot embed other cells
    W: np.ndarray | None = None  # (k, n_genes), where ``H W`` reconstructs other cells
    error: float = np.nan  # ‖X − X̂‖ / ‖X‖, including the donor part
    strength_left: float = 0.0  # effective strength: strength after subtracting the chance share
    n_iter: int = 0
    seconds: float = np.nan  # of the fit


def cell_types(cells: AnnData, seed: int) -> Embedding:
    """Embed cells by cell type only: shows how far cell-type composition by itself predicts the donor."""
    names = np.unique(cells.obs[CELL_TYPE][~is_missing(cells.obs[CELL_TYPE])].astype(str))

    def transform(other: AnnData) -> np.ndarray:
        types = other.obs[CELL_TYPE].astype(str).to_numpy(object, copy=True)
        types[is_missing(other.obs[CELL_TYPE])] = None  # only noise; a missing type is not a type named 'nan'
        indicators = types[:, None] == names
        return (indicators + _NOISE * np.random.default_rng(seed).normal(size=indicators.shape)).astype(np.float32)

    return Embedding(transform(cells), transform, seconds=0.0)


def pca(cells: AnnData, k: int, seed: int) -> Embedding:
    """Embed cells by the first k principal components of all genes."""
    H, model = baselines.pca(cells.X, k, seed)
    squares = np.square(cells.X.data, dtype=np.float64).sum()
    of_mean = len(H) * np.square(model.mean_, dtype=np.float64).sum()
    error = float(np.sqrt((squares - of_mean - (len(H) - 1) * model.explained_variance_.sum()) / squares))
    return Embedding(H, lambda other: model.transform(other.X), None, error)


def linear_scvi(cells: AnnData, k: int, seed: int) -> Embedding:
    """Fit a variational autoencoder with a linear decoder to counts (doi:10.1093/bioinformatics/btaa169).

    The donor is its batch key. The encoder reads counts only, so it can embed cells of other donors.
    """
    scvi = baselines.require_package(LINEAR_SCVI)
    for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they log the GPU and the seed of every fit
    genes = sc.pp.highly_variable_genes(cells, n_top_genes=min(_N_GENES, cells.n_vars), inplace=False)
    genes = genes["highly_variable"].to_numpy()

    def with_counts(other: AnnData, donor: np.ndarray | str) -> AnnData:
        obs, var = pd.DataFrame({DONOR: donor}, index=other.obs_names), pd.DataFrame(index=cells.var_names[genes])
        return AnnData(recover_counts(other.X)[:, genes].astype(np.float32), obs=obs, var=var)

    training = with_counts(cells, cells.obs[DONOR].astype(str).to_numpy())
    scvi.settings.seed = seed
    scvi.model.LinearSCVI.setup_anndata(training, batch_key=DONOR)
    model = scvi.model.LinearSCVI(training, n_latent=k)
    model.train(early_stopping=True, enable_progress_bar=False)
    known_donor = training.obs[DONOR].iloc[0]  # scvi refuses an unknown donor, although its encoder ignores the donor
    H, n_iter = model.get_latent_representation(), len(model.history["elbo_train"])
    return Embedding(H, lambda other: model.get_latent_representation(with_counts(other, known_donor)), n_iter=n_iter)


def recover_counts(X: csr_matrix) -> csr_matrix:
    """Return the counts behind ``log1p`` of scaled counts, if the smallest value of every cell was one count."""
    counts = X.astype(np.float64)
    np.expm1(counts.data, out=counts.data)
    counts.data /= np.repeat(np.minimum.reduceat(counts.data, counts.indptr[:-1]), np.diff(counts.indptr))
    whole = np.rint(counts.data)
    if (wrong := ~np.isclose(counts.data, whole, rtol=1e-4, atol=1e-2)).any():
        raise ValueError(
            f"The counts of {len(np.unique(counts.tocoo().row[wrong]))} of {X.shape[0]} cells cannot be recovered. "
            f"Expected log1p of scaled whole counts. Remove {LINEAR_SCVI!r} from baselines."
        )
    counts.data = whole
    return counts
