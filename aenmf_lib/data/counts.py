"""Finding and reading raw counts, wherever a file or an AnnData stores them."""

import logging
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib.data.frames import plain_frame, read_frame, read_names
from aenmf_lib.data.judging import clean, describe_non_counts, judge  # noqa: F401
from aenmf_lib.data.matrices import Matrix, report_repairs
from aenmf_lib.data.reading import IN_MEMORY, guard, is_array, open_cells, path_of, short

log = logging.getLogger(__name__)

SAMPLE = 1024  # cells, spread over the file, on which a matrix is judged; all values are checked when they are read


def read_counts(cells: str | Path | AnnData, *, layer: str = "", fractional: bool = False) -> tuple[AnnData, str]:
    """Find and read the raw counts.

    Raises OSError or ValueError if the file cannot be read, no matrix contains counts, matrices contain different
    counts, or names are repeated; and MemoryError if the counts do not fit in memory.

    Parameters
    ----------
    cells, layer
        An ``.h5ad`` or ``.zarr``, or cells in memory; and the matrix: the name of a layer, ``X`` or ``raw.X``. If
        empty, the first of ``layers['counts']``, ``raw.X``, ``X`` and the other layers that contains counts.
    fractional
        Accept values that are not integers, and rounded or binarized counts, as corrected counts.

    Returns
    -------
    cells, where : AnnData, str
        ``X`` CSR float32 with sorted indices and without duplicates; all of ``obs`` and ``var``; and the name of the
        matrix: ``layers['…']``, ``raw.X`` or ``X``.
    """
    if isinstance(cells, AnnData):
        found = find_counts(cells, layer=layer, fractional=fractional, load=True)
        return _read_all(found, fractional), found.where
    with open_cells(cells) as file:
        found = find_counts(file, layer=layer, fractional=fractional, load=True)
        return _read_all(found, fractional), found.where


@dataclass
class Found:
    """A matrix with its cells and genes."""

    matrix: Matrix
    where: str  # X, raw.X or layers['…']
    key: str  # its place in the file
    sample: csr_matrix  # some of its cells, float32
    obs: pd.DataFrame
    var: pd.DataFrame


def find_counts(
    cells: h5py.File | zarr.Group | AnnData,
    *,
    layer: str = "",
    fractional: bool = False,
    counts: bool = True,
    load: bool = False,
) -> Found:
    """Find the raw counts (or ``X`` if not `counts`) of an open file or an AnnData, as `read_counts` does.

    Set `load` if all cells are read afterwards: if there is only one matrix, it is then read only once.
    """
    path, places, tables = _path(cells), _places(cells), _tables(cells)
    if not counts:
        if "X" not in places:
            raise ValueError(f"{path} has no X. Expected log1p of counts per 10,000. For raw counts, set counts=True.")
        matrix, key, var = _open(cells, "X", places, tables)
        if load:
            matrix.load()
        sample = matrix.read_sample(SAMPLE)
    else:
        judged = _judge_all(cells, places, tables, SAMPLE, layer=layer, fractional=fractional, load=load)
        chosen = _choose(path, judged, layer)
        matrix, key, var, sample = chosen.matrix, places[chosen.where][0], chosen.var, chosen.sample
    for part, names in (("obs", tables["obs"].index), ("var", var.index)):
        if len(repeated := names[names.duplicated()]):
            what = f"{len(repeated)} names in {part} are repeated (first: {short(repeated[0])})"
            remedy = f"call cells.{part}_names_make_unique() and write the file again"
            raise ValueError(f"{path}: {what}. Unique names are expected: {remedy}.")
    return Found(matrix, matrix.where, key, sample, tables["obs"], var)


def candidates(cells: h5py.File | zarr.Group | AnnData, rows: int = SAMPLE) -> pd.DataFrame:
    """Return what the matrices of an open file or an AnnData contain, from a sample of `rows` cells.

    One row per matrix: ``where``; ``kind`` ('counts', 'fractional', 'empty' or a description of the values);
    ``n_cells``, ``n_genes``, ``nnz_per_cell``, ``counts_per_cell``; ``chosen``: `read_counts` would read it.
    """
    judged = _judge_all(cells, _places(cells), _tables(cells, names_only=True), rows)
    try:
        chosen = _choose(_path(cells), judged, "").where
    except ValueError:
        chosen = ""
    return pd.DataFrame([
        {"where": one.where, "kind": one.kind or one.fault, "n_cells": one.matrix.shape[0],
         "n_genes": one.matrix.shape[1],
         "nnz_per_cell": one.sample.getnnz() / max(one.sample.shape[0], 1), "counts_per_cell": one.total,
         "chosen": one.where == chosen}
        for one in judged
    ])  # fmt: skip


# ---------------------------------------------------------------- places
def _path(cells: h5py.File | zarr.Group | AnnData) -> str:
    """Return the path of the cells for errors."""
    return IN_MEMORY if isinstance(cells, AnnData) else path_of(cells)


def _places(cells: h5py.File | zarr.Group | AnnData) -> dict[str, tuple[str, str]]:
    """Return the matrices in the order in which counts are looked for: name -> (its key, the key of its genes)."""
    if isinstance(cells, AnnData):
        layers = list(cells.layers)
        has = {"X": cells.X is not None, "raw/X": cells.raw is not None}
    else:
        with guard(_path(cells)):
            layers = list(cells["layers"]) if "layers" in cells and not is_array(cells["layers"]) else []
            has = {key: key in cells and cells[key].attrs.get("encoding-type") != "null" for key in ("X", "raw/X")}
    named = {f"layers['{name}']": (f"layers/{name}", "var") for name in layers}
    places = {"layers['counts']": named["layers['counts']"]} if "counts" in layers else {}
    places |= {"raw.X": ("raw/X", "raw/var")} if has["raw/X"] else {}
    places |= {"X": ("X", "var")} if has["X"] else {}
    return places | named


def _node(cells: h5py.File | zarr.Group | AnnData, key: str) -> object:
    """Return the matrix at a key."""
    if isinstance(cells, AnnData):
        return cells.X if key == "X" else cells.raw.X if key == "raw/X" else cells.layers[key.removeprefix("layers/")]
    with guard(_path(cells), key):
        return cells[key]


def _tables(cells: h5py.File | zarr.Group | AnnData, *, names_only: bool = False) -> dict[str, pd.DataFrame]:
    """Return obs, var and, if there is one, the var of raw; without their columns if `names_only`."""
    path = _path(cells)
    if isinstance(cells, AnnData):
        found = {"obs": cells.obs, "var": cells.var} | ({} if cells.raw is None else {"raw/var": cells.raw.var})
        return {part: plain_frame(table, part, path) for part, table in found.items()}
    with guard(path):
        parts = ["obs", "var"] + ["raw/var"] * ("raw/var" in cells)
    if names_only:
        return {part: pd.DataFrame(index=read_names(cells, part, path)) for part in parts}
    return {part: read_frame(cells, part, path) for part in parts}


def _open(cells: object, where: str, places: dict, tables: dict) -> tuple[Matrix, str, pd.DataFrame]:
    """Return a matrix, its key and its genes. Raise ValueError if its shape does not fit obs and var."""
    (key, var_key), path = places[where], _path(cells)
    if var_key not in tables:
        raise ValueError(f"{path}: {where} has no {var_key}, the table of genes. Write the file again with anndata.")
    matrix, var = Matrix(_node(cells, key), path, where), tables[var_key]
    n_cells, n_genes = matrix.shape
    if (n_cells, n_genes) != (len(tables["obs"]), len(var)):
        expected = f"there are {len(tables['obs'])} cells in obs and {len(var)} genes in {var_key.replace('/', '.')}"
        raise ValueError(f"{path}: {where} is {n_cells} × {n_genes}, but {expected}. Write the file again.")
    return matrix, key, var


# ---------------------------------------------------------------- choosing
@dataclass
class _Judged:
    """What a sample of a matrix contains."""

    matrix: Matrix
    where: str
    var: pd.DataFrame
    sample: csr_matrix  # float32
    kind: str  # 'counts', 'fractional', 'empty', or '' if `fault` says why it cannot be read as counts
    fault: str

    total = property(lambda self: float(self.sample.sum()) / max(self.sample.shape[0], 1))


def _judge_all(
    cells: object,
    places: dict,
    tables: dict,
    rows: int,
    *,
    layer: str = "",
    fractional: bool = False,
    load: bool = False,
) -> list[_Judged]:
    """Read a sample of the matrices, or of the one named `layer`, and judge them."""
    if layer:
        chosen = next((name for name in (f"layers['{layer}']", layer) if name in places), None)
        if chosen is None:
            contents = ", ".join(short(name, quote=False) for name in places) or "no matrix"
            found = f"{_path(cells)} has no layer {layer!r}. It contains {contents}"
            raise ValueError(f"{found}. Set layer (LAYER=…) to the name of a layer, X or raw.X, or to '' to search.")
        places = {chosen: places[chosen]}
    judged = []
    for where in places:
        matrix, _, var = _open(cells, where, places, tables)
        if load and len(places) == 1:
            matrix.load()
        judged.append(_Judged(matrix, where, var, *judge(matrix.read_sample(rows), fractional=fractional)))
    return judged


def _choose(path: str, judged: list[_Judged], layer: str) -> _Judged:
    """Return the matrix to read. Raise ValueError if none contains counts, or several contain different counts."""
    usable = [one for one in judged if one.kind in ("counts", "fractional")]
    usable = usable or [one for one in judged if one.kind == "empty"][:1]
    if not usable:
        rejected = "; ".join(f"{short(one.where, quote=False)} {one.fault}" for one in judged) or "it has no matrix"
        advice = "set fractional=true (FRACTIONAL=true)" + (f" and layer={layer!r}" if layer else "")
        raise ValueError(
            f"{path} contains no raw counts: {rejected}. Expected non-negative integers. If the values are corrected "
            f"or scaled counts, {advice}. Otherwise store the raw counts in a layer 'counts'."
        )
    first = usable[0]
    others = [one for one in usable[1:] if not _same_counts(first, one)]
    if others:
        sizes = [f"{one.matrix.shape[0]} cells × {one.matrix.shape[1]} genes" for one in (first, *others)]
        listed = "; ".join(
            f"{short(one.where, quote=False)}: {size}, {one.total:.6g} counts per cell"
            for one, size in zip((first, *others), sizes, strict=True)
        )
        choice = first.where.removeprefix("layers['").removesuffix("']")
        raise ValueError(
            f"{path} has {1 + len(others)} matrices with different counts: {listed}. Choose one: "
            f"layer={choice!r} (LAYER={choice}), the name of another layer, X or raw.X."
        )
    larger = [one for one in usable[1:] if one.matrix.shape[1] > first.matrix.shape[1]]
    if larger:
        log.warning("%s has the same counts as %s, and %d more genes. To use them, set LAYER=%s", larger[0].where,
                    first.where, larger[0].matrix.shape[1] - first.matrix.shape[1], larger[0].where)  # fmt: skip
    return first


def _same_counts(one: _Judged, other: _Judged) -> bool:
    """Return whether two samples contain the same counts for the genes that both have."""
    A, B, genes, others = one.sample, other.sample, one.var.index, other.var.index
    if genes is not others:
        shared = genes[~genes.duplicated(keep=False)].intersection(others[~others.duplicated(keep=False)])
        if len(shared):
            A, B = A[:, genes.get_indexer_for(shared)], B[:, others.get_indexer_for(shared)]
    return A.shape == B.shape and np.abs((A - B).data, dtype=np.float64).max(initial=0) <= 1e-4


# ---------------------------------------------------------------- reading
def _read_all(found: Found, fractional: bool) -> AnnData:
    """Read and check all cells."""
    rows = np.arange(found.matrix.shape[0])
    X, n_rounded = check_cells(found.matrix, found.matrix.read(), rows, found.obs.index, fractional)
    report_repairs(found.matrix, n_rounded)
    return AnnData(X, obs=found.obs, var=found.var)


def check_cells(
    matrix: Matrix, X: csr_matrix, rows: np.ndarray, names: pd.Index, fractional: bool = False, *, counts: bool = True
) -> tuple[csr_matrix, int]:
    """Return the cells X in float32 and how many values were rounded. Raise ValueError if a value is not valid.

    `rows` are the numbers of the cells in the matrix, and `names` the names of all cells. Values that are not `counts`
    must be finite and not negative, as fractional counts must.
    """
    fractional = fractional or not counts
    clean_X, n_rounded, fault = clean(X, fractional=fractional)
    if fault is not None:
        first = next(i for i in range(X.shape[0]) if clean(X[i], fractional=fractional)[2] is not None)
        cell = f"cell {rows[first]}, {short(names[rows[first]])}"
        found = f"{matrix.path}: {matrix.where} {fault}, in cells {rows[0]} to {rows[-1]} (first: {cell})"
        expected = "counts" if counts else "log1p of counts per 10,000"
        raise ValueError(f"{found}. Expected {expected}. Correct the file, or remove the cell.")
    return clean_X, n_rounded
