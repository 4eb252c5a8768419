"""The parts of a file that `check` reads: columns of obs, var, and index pointers and some indices of a matrix."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr

from aenmf_lib.data.frames import read_frame, read_names
from aenmf_lib.data.matrices import Matrix
from aenmf_lib.data.reading import guard, is_array, path_of, read_element

_CHUNK = 2**22  # indices that are read at a time
_CHUNKS = 16  # number of such reads, to count the expressed genes
_FEW_CELLS = 200_000  # text columns of larger files are read only if they are named

File = h5py.File | zarr.Group


@dataclass(frozen=True)
class Contents:
    """The nonzeros of a matrix."""

    n_genes: int  # with counts, if all indices were read; otherwise all
    nnz: int
    seen: int  # genes with counts among the indices that were read
    complete: bool  # whether all indices were read, or enough to see as many genes as programs
    empty: np.ndarray | None  # (n_cells,) bool: cells without counts; None if the matrix is not stored by cells


def read_obs(file: File, wanted: Iterable[str], needed: Sequence[str]) -> pd.DataFrame:
    """Return the names of the cells and the `wanted` columns; all likely ones if a `needed` column is missing."""
    path = path_of(file)
    with guard(path, "obs"):
        group, attributes = file["obs"], dict(file["obs"].attrs)
    if attributes.get("encoding-version") != "0.2.0":
        return read_frame(file, "obs", path)  # anndata < 0.8
    columns = [str(name) for name in attributes["column-order"]]
    names = [name for name in dict.fromkeys(wanted) if name in columns]
    index = read_names(file, "obs", path)
    if any(name not in columns for name in needed):
        few = len(index) <= _FEW_CELLS
        names = [name for name in columns if name in names or few or not is_array(group[name])]
    values = {name: read_element(group, name, path) for name in names}
    frame = pd.DataFrame(
        {name: pd.Series(value).to_numpy() if is_array(value) else value for name, value in values.items()}
    )
    return frame.set_axis(index) if names else pd.DataFrame(index=index)


def read_var(file: File, where: str) -> pd.DataFrame:
    """Return var of a matrix, which is ``raw/var`` for ``raw.X``."""
    return read_frame(file, "raw/var" if where == "raw.X" else "var", path_of(file))


def measure(file: File, matrix: Mapping[str, Any], k: int) -> Contents:
    """Count the nonzeros and the cells without any, and look for genes with counts until there are k.

    `matrix` is a row of `counts.candidates`.
    """
    where, n_cells, n_genes = matrix["where"], int(matrix["n_cells"]), int(matrix["n_genes"])
    with guard(path_of(file), where):
        node = file["raw/X" if where == "raw.X" else "X" if where == "X" else f"layers/{layer_of(where)}"]
        if is_array(node):
            return Contents(n_genes, round(matrix["nnz_per_cell"] * n_cells), n_genes, False, None)
        sizes = np.diff(node["indptr"][:].astype(np.int64))
        nnz, by_gene = int(sizes.sum()), Matrix(node, path_of(file), where).format == "csc"
        if by_gene:
            seen = int((sizes > 0).sum())
            return Contents(seen, nnz, seen, True, None)
        found, indices, read = np.zeros(n_genes, bool), node["indices"], 0
        starts = (
            np.linspace(0, nnz, _CHUNKS + 1).astype(np.int64)[:-1] if nnz > _CHUNK * _CHUNKS else range(0, nnz, _CHUNK)
        )
        for start in starts:
            part = indices[int(start) : int(start) + _CHUNK]
            found[part] = True
            read += len(part)
            if found.sum() >= max(k, n_genes // 2) or read >= _CHUNK * _CHUNKS:
                break
        whole, seen = read >= nnz, int(found.sum())
    return Contents(seen if whole else n_genes, nnz, seen, whole or seen >= k, sizes == 0)


def bytes_per_cell(file: File) -> float:
    """Return the approximate size of obs in a file, per cell."""
    order = file["obs"].attrs.get("column-order", ())
    return 84.0 + 8 * len(order)


def layer_of(where: str) -> str:
    """Return the value of LAYER that names a matrix: ``counts`` for ``layers['counts']``."""
    return where.removeprefix("layers[").removesuffix("]").strip("'\"")
