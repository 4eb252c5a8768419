"""Embeddings of other methods, such as PCA, which are scored beside the models. They are read from files of cells."""

import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import zarr

from aenmf_lib.data.files import guard, open_cells, read_element
from aenmf_lib.data.frames import read_names
from aenmf_lib.data.reading import is_array
from aenmf_lib.results.schema import MODELS

log = logging.getLogger(__name__)

_EXPECTED = "Expected NAME=path:key, such as PCA=pca.h5ad:X_pca, where key is an entry of obsm"


def parse(entries: Sequence[str], taken: Collection[str] = ()) -> dict[str, tuple[str, str]]:
    """Return the path and the key of obsm by name, from entries such as 'PCA=pca.h5ad:X_pca'.

    Raises ValueError if an entry has another form, or if its name is not valid, that of a model or in `taken`.
    """
    found: dict[str, tuple[str, str]] = {}
    for entry in entries:
        name, equals, place = str(entry).partition("=")
        path, colon, key = place.rpartition(":")
        if not (name and equals and path and colon and key):
            raise ValueError(f"extra contains {entry!r}. {_EXPECTED}.")
        check_name(name, {*taken, *found})
        found[name] = str(Path(path).expanduser()), key
    return found


def check_name(name: str, taken: Collection[str] = ()) -> None:
    """Raise ValueError if an embedding cannot have this name in tables, because it is not valid or not unique."""
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(
            f"The name {name!r} of an embedding is not valid. Expected letters, digits and the characters . _ -, and a "
            "letter or digit at the start. Choose another name."
        )
    if model := next((model for model in MODELS if _simple(model) == _simple(name)), None):
        raise ValueError(f"An embedding has the name {name!r}, which is that of the model {model}. Choose another one.")
    if name in taken:
        raise ValueError(f"Two embeddings have the name {name!r}. Every name is expected once. Rename one of them.")


def _simple(name: str) -> str:
    """Return a name without case and signs: 'AE-NMF' would look like the model AE_NMF in figures."""
    return re.sub("[._-]", "", name).casefold()


def check(entries: Sequence[str], taken: Collection[str] = (), names: pd.Index | None = None) -> None:
    """Raise OSError or ValueError if an entry, its file or its array is not valid. The values are not read.

    If the `names` of the cells are given, the file must contain all of them.
    """
    for name, (path, key) in parse(entries, taken).items():
        with open_cells(path) as file:
            there = _read_cells(file, name, path, key)
        if names is not None and not there.equals(names):
            _find_rows(name, path, there, names)


def read(entries: Sequence[str], names: pd.Index, taken: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Read the embeddings of these cells.

    Parameters
    ----------
    entries, taken
        Texts 'NAME=path:key' as for `parse`: a ``.h5ad`` or ``.zarr`` and a two-dimensional array in its obsm.
    names : (n_cells,)
        Names of the cells. The file must contain all of them, in any order; others are left out.

    Returns
    -------
    The embeddings by name, (n_cells, columns) float32, in the order of `names`. Values may be negative.

    Raises
    ------
    OSError, ValueError
        An entry is not valid (see `parse`); the file or the array cannot be read; the array is sparse, not
        two-dimensional or without columns; its rows are not the cells of the file; cells are missing or repeated; or
        values are NaN or infinite.
    """
    return {name: _read(name, path, key, names) for name, (path, key) in parse(entries, taken).items()}


def _read(name: str, path: str, key: str, names: pd.Index) -> np.ndarray:
    """Read one embedding, (n_cells, columns) float32, in the order of the cells `names`."""
    with open_cells(path) as file:
        there = _read_cells(file, name, path, key)
        rows = None if there.equals(names) else _find_rows(name, path, there, names)
        values = read_element(file, f"obsm/{key}", path)
    with np.errstate(over="ignore"):  # a value that is too large becomes infinite
        H = np.asarray(values if rows is None else values[rows], dtype=np.float32, order="C")
    bad = ~np.isfinite(H)
    if bad.any():
        cell, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{path}: obsm[{key!r}] contains {bad.sum()} values that are NaN, infinite or too large for float32 "
            f"(first: cell {names[cell]!r}, column {column}). Expected finite values. Correct {name}, or leave it out."
        )
    log.info("%s: %d columns of %s (obsm[%r])", name, H.shape[1], path, key)
    return H


def _read_cells(file: h5py.File | zarr.Group, name: str, path: str, key: str) -> pd.Index:
    """Return the names of the cells in a file. Raise ValueError unless obsm has a valid array with a row for each."""
    n_rows = _check_array(file, name, path, key)
    there = read_names(file, "obs", path)
    if len(there) != n_rows:
        raise ValueError(
            f"{path}: obsm[{key!r}] has {n_rows} rows, but the file has {len(there)} cells. Expected one row per "
            "cell. Write the file again with anndata."
        )
    return there


def _check_array(file: h5py.File | zarr.Group, name: str, path: str, key: str) -> int:
    """Return the number of rows of an array in obsm. Raise ValueError unless it is a matrix of numbers."""
    with guard(path, "obsm"):
        known = sorted(file["obsm"]) if "obsm" in file else []
    if key not in known:
        listed = ", ".join(map(repr, known[:20])) or "nothing"
        raise ValueError(
            f"{path} has no obsm[{key!r}], which {name} names; its obsm contains {listed}. {_EXPECTED}. Name one of "
            "these keys, or write the embedding into obsm."
        )
    with guard(path, f"obsm/{key}"):
        node, kind = file[f"obsm/{key}"], str(dict(file[f"obsm/{key}"].attrs).get("encoding-type", "a group"))
        shape, dtype = (node.shape, node.dtype) if is_array(node) else ((), None)
    if dtype is None:
        how = "toarray()" if kind in ("csr_matrix", "csc_matrix") else "to_numpy()"
        what = f"is sparse ({kind})" if how == "toarray()" else f"is not an array ({kind})"
        remedy = f"Convert it with cells.obsm[{key!r}] = cells.obsm[{key!r}].{how}, and write the file again"
    elif getattr(dtype, "kind", "O") not in "fiub":
        what, remedy = f"has values of type {dtype}", "Convert it with .astype('float32'), and write the file again"
    elif len(shape) != 2 or not shape[1]:
        what, remedy = f"has shape {tuple(shape)}", "Name an array with a row for each cell and at least one column"
    else:
        return shape[0]
    raise ValueError(f"{path}: obsm[{key!r}] {what}. Expected a dense matrix of numbers for {name}. {remedy}.")


def _find_rows(name: str, path: str, there: pd.Index, names: pd.Index) -> np.ndarray:
    """Return the row of each cell in a file with the cells `there`, (n_cells,)."""
    for of, index in ((path, there), ("the results files", names)):
        if not index.is_unique:
            twice = index[index.duplicated()]
            raise ValueError(
                f"{len(twice)} names of cells are repeated in {of} (first: {twice[0]!r}), so the rows of {name} cannot "
                "be assigned to the cells. Expected unique names. Call cells.obs_names_make_unique() before filtering."
            )
    rows = there.get_indexer(names)
    missing = rows < 0
    if missing.any():
        raise ValueError(
            f"{missing.sum()} of the {len(names)} cells of this run are not in {path} (first: {names[missing][0]!r}; "
            f"the first cell of the file is {there[0] if len(there) else 'none'!r}). {name} needs a row for every "
            "cell, with the same name. Compute it on the filtered cells."
        )
    if left := len(there) - len(names):
        log.info("%s: %d of %d cells in %s are not in this run and are left out", name, left, len(there), path)
    return rows
