"""Baselines that are scored beside the models: PCA, and Harmony on its components."""

import importlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn import decomposition

from aenmf_lib.data import files, streaming
from aenmf_lib.data.labels import DONOR
from aenmf_lib.metrics.score_cache import fingerprint, source_code
from aenmf_lib.results import Embeddings, extra, run_info
from aenmf_lib.results.schema import PROVENANCE

__all__ = ["add_baselines"]

log = logging.getLogger(__name__)

PCA, HARMONY, LINEAR_SCVI = "PCA", "Harmony", "LinearSCVI"
BASELINES = (PCA, HARMONY)
_PACKAGES = {  # module, name for pip, oldest version
    PCA: ("sklearn", "scikit-learn", "1.6"),
    HARMONY: ("harmonypy", "harmonypy", "2.1"),
    LINEAR_SCVI: ("scvi", "scvi-tools", "1.2"),
}
_KEY = "X_{}"  # obsm, where {} is the name of a baseline
_MADE_FROM = "made_from"  # uns: the fingerprint of each baseline in the file


def require_package(name: str) -> ModuleType | None:
    """Import and return the package of a baseline, or None if it needs none of its own.

    Raises ValueError if the package is missing or too old.
    """
    if name not in _PACKAGES:
        return None
    module, package, oldest = _PACKAGES[name]
    advice = f"Install it with \"pip install '{package}>={oldest}'\", or remove {name!r} from baselines."
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        raise ValueError(f"{name} is not installed. {advice}") from None
    installed = version(package)
    if _numbers(installed) < _numbers(oldest):
        raise ValueError(f"{name} needs {package} {oldest} or newer, but {package} {installed} is installed. {advice}")
    return found


def package_version(name: str) -> str:
    """Return package and version of the code that computes a baseline ('harmonypy 2.1.0'), or '' for other methods."""
    return f"{_PACKAGES[name][1]} {version(_PACKAGES[name][1])}" if name in _PACKAGES else ""


def _numbers(text: str) -> list[int]:
    """Return the first two numbers of a version."""
    return [int(number) for number in re.findall(r"\d+", text)[:2]]


def check(names: Sequence[str], taken: Sequence[str] = ()) -> None:
    """Raise ValueError if a baseline is unknown, repeated, not installed, or the name of an embedding in `taken`."""
    for i, name in enumerate(names):
        if name not in BASELINES:
            raise ValueError(f"baselines contains {name!r}. Choose from {', '.join(map(repr, BASELINES))}.")
        extra.check_name(name, {*taken, *names[:i]})
        require_package(name)


def pca(X: csr_matrix, k: int, seed: int) -> tuple[np.ndarray, decomposition.PCA]:
    """Return the first k principal components of all genes, (n_cells, k), computed exactly, and the fitted PCA."""
    if k >= min(X.shape):
        cells_genes = " cells × ".join(map(str, X.shape))
        raise ValueError(
            f"{PCA} cannot compute {k} components of {cells_genes} genes. Expected fewer components than cells and "
            f"genes. Choose a smaller k, or remove {PCA} and {HARMONY} from baselines."
        )
    model = decomposition.PCA(k, svd_solver="arpack", random_state=seed)
    return model.fit_transform(X), model


def harmony(H: np.ndarray, donors: Sequence[str], seed: int) -> np.ndarray:
    """Correct an embedding (n_cells, k) for the donor (Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0)."""
    obs = pd.DataFrame({DONOR: np.asarray(donors)})
    corrected = require_package(HARMONY).run_harmony(H, obs, [DONOR], random_state=seed, verbose=False)
    return np.asarray(corrected.Z_corr)


def add_baselines(
    embeddings: Embeddings, names: Sequence[str], cells_path: str | Path, path: str | Path, *, seed: int = 42
) -> Embeddings:
    """Return the embeddings and some baselines of the same cells, with as many columns as the models have programs.

    Parameters
    ----------
    embeddings
        From `results.read_embeddings`. Harmony corrects for their donors.
    names
        'PCA', 'Harmony' (of the principal components), both or none.
    cells_path
        The filtered cells on which the models were trained. They are read only if a baseline has to be computed.
    path
        An ``.h5ad`` file to write, with the baselines in obsm as ``X_PCA`` and ``X_Harmony``, (n_cells, k) float32. A
        baseline that it already contains, of the same cells, k, seed and versions, is not computed again.
    seed
        Seed of both baselines.

    Raises
    ------
    OSError, ValueError
        A baseline is unknown or not installed; the cells are not those of the models, are too few, or are of one donor
        (Harmony); or a file cannot be read or written.
    """
    check(names, list(embeddings.H))
    if not names:
        return embeddings
    donors = embeddings.obs[DONOR].astype(str).to_numpy(object)
    if HARMONY in names and len(set(donors)) < 2:
        raise ValueError(
            f"All cells are of one donor, {donors[0]!r}, and {HARMONY} corrects for differences between donors. "
            f"Expected two donors or more. Remove {HARMONY!r} from baselines."
        )
    if not Path(cells_path).exists():
        raise FileNotFoundError(
            f"cells_path={str(cells_path)!r} does not exist. {' and '.join(names)} must be computed from the filtered "
            "cells on which the models were trained. Pass their file, or remove the baselines."
        )
    k, source = embeddings.run.k, files.file_info(cells_path)
    code, packages = source_code("metrics/baselines.py"), ["scikit-learn", "scipy", "numpy"]
    made_from = {PCA: fingerprint(code, source["sha256"], k, seed, packages=packages)}
    if HARMONY in names:
        made_from[HARMONY] = fingerprint(made_from[PCA], donors, packages=["harmonypy"])
    found = _read_stored(path, made_from, embeddings.obs.index)
    if not found.keys() >= set(names):
        if PCA not in found:
            log.info("%s: %d components of the cells in %s", PCA, k, cells_path)
            found[PCA] = pca(_read_cells(cells_path, embeddings.obs.index).X, k, seed)[0].astype(np.float32)
        if HARMONY in names:
            log.info("%s: correcting the components for %d donors", HARMONY, len(set(donors)))
            found[HARMONY] = harmony(found[PCA], donors, seed).astype(np.float32)
        stored = {_MADE_FROM: {name: made_from[name] for name in found}}
        stored[PROVENANCE] = {"input": source, "parameters": {"k": k, "seed": seed}, **run_info()}
        obsm = {_KEY.format(name): H for name, H in found.items()}
        files.write_h5ad(AnnData(obs=embeddings.obs[[]].copy(), obsm=obsm, uns=stored), path)
    embeddings = embeddings.with_extra([f"{name}={path}:{_KEY.format(name)}" for name in names])
    return replace(embeddings, versions={name: package_version(name) for name in names})


def _read_stored(path: str | Path, made_from: Mapping[str, str], names: pd.Index) -> dict[str, np.ndarray]:
    """Return those baselines in a file that have the given fingerprints and cells."""
    if not Path(path).exists():
        return {}
    try:
        stored = files.read_h5ad(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{error} Or remove the file: its embeddings are computed again.") from error
    if not stored.obs_names.equals(names):
        return {}
    known, arrays = stored.uns.get(_MADE_FROM, {}), {name: stored.obsm.get(_KEY.format(name)) for name in made_from}
    return {name: H for name, H in arrays.items() if H is not None and known.get(name) == made_from[name]}


def _read_cells(path: str | Path, names: pd.Index) -> AnnData:
    """Read the cells of the models, which have these names."""
    cells = streaming.load(path)
    if not cells.obs_names.equals(names):
        shared = cells.obs_names.intersection(names).size
        order = " in another order" if shared == len(names) == cells.n_obs else ""
        raise ValueError(
            f"{path} contains {cells.n_obs} cells and the results files {len(names)}; {shared} are in both{order}. The "
            "cells of the models are expected. Pass the filtered file on which they were trained as cells_path."
        )
    return cells
