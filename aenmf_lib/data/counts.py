"""Finding and reading the raw counts of a file, wherever the file stores them."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem
from scipy.sparse import csr_matrix

from aenmf_lib.data import files

_LOG_MAX = 20.0  # log1p of counts per 10,000 is below this value


def read_counts(path: str | Path, *, layer: str = "", fractional: bool = False) -> tuple[AnnData, str]:
    """Find and read the raw counts.

    Raises OSError or ValueError if the file cannot be read, no matrix contains counts, or names are repeated.

    Parameters
    ----------
    path, layer
        The ``.h5ad`` file, and its layer. If empty, ``raw.X`` is read if it contains counts, and ``X`` otherwise.
    fractional
        Accept values that are not integers, for layers of corrected counts.

    Returns
    -------
    cells, where : AnnData, str
        CSR counts with their ``obs`` and ``var``, and the name of the matrix: ``layers['…']``, ``raw.X`` or ``X``.
    """
    with files.open_h5ad(path) as file:
        X, where, _, obs, var = open_matrix(file, _read_matrix, layer=layer, fractional=fractional)
    return AnnData(X, obs=obs, var=var), where


def _read_matrix(matrix: h5py.Group | h5py.Dataset) -> csr_matrix:
    """Read a whole matrix as CSR. Raise ValueError if its parts do not fit together."""
    try:
        return csr_matrix(read_elem(matrix))
    except ValueError as error:  # such as index pointers that do not fit the shape
        found = f"{matrix.file.filename}: {matrix.name[1:]} cannot be read: {error}"
        raise ValueError(f"{found}. Write the file again with anndata.") from error


def open_matrix(
    file: h5py.File, read: Callable, *, counts: bool = True, layer: str = "", fractional: bool = False
) -> tuple[csr_matrix, str, str, pd.DataFrame, pd.DataFrame]:
    """Find the raw counts (or ``X`` if not `counts`). Return `read` of the matrix, its name, its key, obs and var."""
    path = file.filename
    places = {"raw.X": ("raw/X", "raw/var"), "X": ("X", "var")}
    places = {where: keys for where, keys in places.items() if keys[0] in file and (counts or where == "X")}
    layers = {f"layers['{name}']": (f"layers/{name}", "var") for name in file.get("layers", ())}
    chosen = f"layers['{layer}']"
    if layer and chosen not in layers:
        found = f"{path} has no layer {layer!r}. It contains {', '.join(places | layers)}"
        raise ValueError(f"{found}. Set layer to one of the layers, or to '' for raw.X or X.")
    if not counts and not places:
        raise ValueError(f"{path} has no X. If it contains raw counts elsewhere, set counts=True.")
    candidates, rejected = {chosen: layers.pop(chosen)} if layer else places, []
    for where in candidates:
        key, var_key = candidates[where]
        X = read(file[key])
        fault = describe_non_counts(X.data, fractional=fractional) if counts else None
        if fault is None:
            break
        rejected.append(f"{where} {fault}")
    else:
        other = f"If a layer contains them, name it (LAYER=…): {', '.join(layers)}. " if layers else ""
        raise ValueError(
            f"{path} contains no raw counts: {'; '.join(rejected) or 'it has no matrix'}. Expected non-negative "
            f"integers. {other}If they are corrected counts with fractions, set fractional=true (FRACTIONAL=true)."
        )
    obs, var = read_elem(file["obs"]), read_elem(file[var_key])
    n_cells, n_genes = matrix_shape(file[key])
    if (n_cells, n_genes) != (len(obs), len(var)):
        expected = f"there are {len(obs)} cells in obs and {len(var)} genes in {var_key}"
        raise ValueError(f"{path}: {where} is {n_cells} × {n_genes}, but {expected}. Write the file again.")
    for part, names in (("obs", obs.index), ("var", var.index)):
        if len(repeated := names[names.duplicated()]):
            found = f"{len(repeated)} names in {part} are repeated (first: {repeated[0]!r}). Unique names are expected"
            raise ValueError(f"{path}: {found}: call cells.{part}_names_make_unique() and write the file again.")
    return X, where, key, obs, var


def matrix_shape(matrix: h5py.Group | h5py.Dataset) -> tuple[int, int]:
    """Return the shape of a dense or sparse matrix in a file."""
    if isinstance(matrix, h5py.Dataset):
        return matrix.shape
    shape = matrix.attrs.get("shape", matrix.attrs.get("h5sparse_shape"))  # the second in files of anndata < 0.7
    if shape is None:
        raise ValueError(f"{matrix.file.filename}: {matrix.name[1:]} has no shape. Write the file again with anndata.")
    return tuple(int(n) for n in shape)


def describe_non_counts(values: np.ndarray, *, fractional: bool = False) -> str | None:
    """Return a description of the values that cannot be counts, or None if all values can be counts."""
    # Values are usually valid, so this check reads them as few times as possible. Comparisons with NaN are False.
    in_range = not values.size or (values.min() >= 0 and values.max() < np.inf)
    if in_range and (fractional or np.array_equal(values, np.trunc(values))):
        return None
    if n := int((~np.isfinite(values)).sum()):
        return f"contains {n} values that are NaN or infinite"
    if n := int((values < 0).sum()):
        return f"contains {n} negative values (smallest {values.min():.4g}), as scaled data do"
    fractions, largest = values[values % 1 != 0], values.max()
    normalized = "log-normalized" if largest < _LOG_MAX else "normalized"
    kind = "corrected" if len(fractions) < len(values) / 2 else normalized
    found = f"contains {len(fractions)} values that are not integers (first {fractions[0]:.4g}, largest {largest:.4g})"
    return f"{found} and seems to be {kind}"
