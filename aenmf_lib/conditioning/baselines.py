"""What are the models held against? Methods of well-kept libraries, as their authors set them; the types alone."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn import decomposition

from aenmf_lib.data import preprocessing
from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR

CELL_TYPE_ONLY, PCA, HARMONY, LINEAR_SCVI = "Types", "PCA", "Harmony", "LinearSCVI"
_EXTRAS = {HARMONY: ("harmonypy", "harmonypy"), LINEAR_SCVI: ("scvi", "scvi-tools")}  # name to import, and to install
_NOISE = 0.05  # added to indicators of the type, so that neighbors of a type are random ones
_GENES = 2000  # that LinearSCVI sees, as in its tutorials


@dataclass
class Embedding:
    """What is scored: usages of the cells of the fit, and how others get theirs."""

    H: np.ndarray  # (n_cells, k)
    transform: Callable[[AnnData], np.ndarray] | None  # None: only the cells of the fit have usages
    W: np.ndarray | None = None  # (k, n_genes), where ``H W`` is the reconstruction of other cells
    error: float = np.nan  # ‖X − X̂‖ / ‖X‖, with what the donors add
    strength_left: float = 0.0  # after chance
    n_iter: int = 0
    seconds: float = np.nan


def package(name: str) -> ModuleType | None:
    """Import what a method needs.

    Raises
    ------
    ValueError
        It is not installed.
    """
    if name not in _EXTRAS:
        return None
    module, distribution = _EXTRAS[name]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ValueError(
            f"{name} is not installed: pip install {distribution}, or leave it out of yardsticks."
        ) from None


def types(cells: AnnData, seed: int) -> Embedding:
    """Embed cells by their type and nothing else: what an embedding tells of the donor that keeps only the types.

    That is their share among the donor's cells. A cell without a type is noise.
    """
    names = np.unique(cells.obs[CELL_TYPE][~preprocessing.is_missing(cells.obs[CELL_TYPE])].astype(str))

    def transform(other: AnnData) -> np.ndarray:
        known = other.obs[CELL_TYPE].astype(str).to_numpy()[:, None] == names
        return (known + _NOISE * np.random.default_rng(seed).normal(size=known.shape)).astype(np.float32)

    return Embedding(transform(cells), transform, seconds=0.0)


def pca(cells: AnnData, k: int, seed: int) -> Embedding:
    """Embed cells by the first k principal components, exact, of all genes."""
    X, begin = cells.X, time.perf_counter()
    model = decomposition.PCA(k, svd_solver="arpack", random_state=seed)
    H = model.fit_transform(X)
    squares = np.square(X.data, dtype=np.float64).sum()
    of_mean = len(H) * np.square(model.mean_, dtype=np.float64).sum()
    error = float(np.sqrt((squares - of_mean - (len(H) - 1) * model.explained_variance_.sum()) / squares))
    return Embedding(H, lambda other: model.transform(other.X), None, error, seconds=time.perf_counter() - begin)


def harmony(H: np.ndarray, obs: pd.DataFrame, seed: int) -> Embedding:
    """Correct an embedding for the donor: Korsunsky et al. 2019."""
    begin = time.perf_counter()
    found = package(HARMONY).run_harmony(H, obs, [DONOR], random_state=seed, verbose=False)
    Z = np.asarray(found.Z_corr)
    return Embedding(Z if Z.shape == H.shape else Z.T, None, seconds=time.perf_counter() - begin)


def linear_scvi(cells: AnnData, k: int, seed: int) -> Embedding:
    """Fit a variational autoencoder with a linear decoder, told the donor, to counts: Svensson et al. 2020.

    Of the most variable genes. Its encoder reads the counts alone, so cells of other donors have an embedding too.

    Raises
    ------
    ValueError
        The cells are not the logarithms of scaled counts.
    """
    scvi, begin = package(LINEAR_SCVI), time.perf_counter()
    for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they tell of GPUs, seeds and products
    genes = sc.pp.highly_variable_genes(cells, n_top_genes=min(_GENES, cells.n_vars), inplace=False)
    genes = genes["highly_variable"].to_numpy()

    def counted(other: AnnData, donor: np.ndarray | str) -> AnnData:
        obs = pd.DataFrame({DONOR: donor}, index=other.obs_names)
        var = pd.DataFrame(index=cells.var_names[genes])
        return AnnData(counts(other.X)[:, genes].astype(np.float32), obs=obs, var=var)

    mine = counted(cells, cells.obs[DONOR].astype(str).to_numpy())
    scvi.settings.seed = seed
    scvi.model.LinearSCVI.setup_anndata(mine, batch_key=DONOR)
    model = scvi.model.LinearSCVI(mine, n_latent=k)
    model.train(early_stopping=True, enable_progress_bar=False)
    some = mine.obs[DONOR].iloc[0]  # an unknown donor is refused, though the encoder reads none
    return Embedding(
        model.get_latent_representation(),
        lambda other: model.get_latent_representation(counted(other, some)),
        n_iter=len(model.history["elbo_train"]),
        seconds=time.perf_counter() - begin,
    )


def counts(X: csr_matrix) -> csr_matrix:
    """Take ``log1p`` and the scaling of each cell back: its least value was one count.

    Raises
    ------
    ValueError
        What comes out for some cell are no whole numbers.
    """
    found = X.astype(np.float64)
    np.expm1(found.data, out=found.data)
    found.data /= np.repeat(np.minimum.reduceat(found.data, found.indptr[:-1]), np.diff(found.indptr))
    whole = np.rint(found.data)
    if (odd := ~np.isclose(found.data, whole, rtol=1e-4, atol=1e-2)).any():
        raise ValueError(
            f"The counts of {len(np.unique(found.tocoo().row[odd]))} of {X.shape[0]} cells cannot be told from their "
            f"filtered values, which should be log1p of scaled whole counts: leave {LINEAR_SCVI} out of yardsticks."
        )
    found.data = whole
    return found
