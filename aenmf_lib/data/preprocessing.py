"""Which cells and genes enter, and in what units?

Raw counts in, one matrix out that every model trains on: log1p of counts per 10 000, cells of donors that have enough.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem
from scipy.sparse import csr_matrix, issparse

from aenmf_lib.data import files
from aenmf_lib.data.files import open_h5ad, read_h5ad

log = logging.getLogger(__name__)

DONOR = "donor_id"
CELL_TYPE = "cell_type"
LABELS = (CELL_TYPE, DONOR)  # what every embedding is scored against
NO_TYPE = " "  # stands for no type where cells are told apart by it: no label is blank
TARGET_SUM = 1e4  # counts a cell is scaled to before log1p

# what a matrix that is not counts most likely is, told from its values
_LOG_MAX = 20.0


def load(path: str | Path) -> AnnData:
    """Read the cells that `filter_cells` wrote; ``uns['input']`` tells their path and hash."""
    cells = read_h5ad(path)
    check_filtered(path, cells.obs)
    cells.uns["input"] = files.file_info(path)
    return cells


def check_filtered(path: str | Path, obs: pd.DataFrame) -> None:
    """Refuse cells without donor and type."""
    if missing := [name for name in (DONOR, CELL_TYPE) if name not in obs]:
        raise ValueError(f"{path} has no obs column {' and '.join(missing)}: it was not written by notebook 01_filter.")


def read_counts(path: str | Path, *, layer: str = "", fractional: bool = False) -> tuple[AnnData, str]:
    """Find and read the raw counts.

    Parameters
    ----------
    path
        An ``.h5ad``.
    layer
        Take this layer; where empty, ``raw.X`` if there is one that holds counts, else ``X``.
    fractional
        Allow counts that are not integers, for layers of corrected counts.

    Returns
    -------
    cells : AnnData
        ``X`` CSR counts, all of ``obs``, the ``var`` that belongs to the matrix.
    where : str
        ``layers['…']``, ``raw.X`` or ``X``.

    Raises
    ------
    ValueError
        No such layer, or no matrix of counts: what each matrix looks like is told.
    """
    with open_h5ad(path) as file:
        X, where, _, var = find_counts(file, path, layer=layer, fractional=fractional)
        try:
            cells = AnnData(X, obs=read_elem(file["obs"]), var=read_elem(file[var]))
        except ValueError as error:
            raise ValueError(f"{path}: {where} does not fit obs and {var}: {error}. Write the file again.") from error
    check_names(path, cells=cells.obs_names, genes=cells.var_names)
    return cells, where


def _whole(matrix: h5py.Group | h5py.Dataset) -> csr_matrix:
    X = read_elem(matrix)
    return X.tocsr() if issparse(X) else csr_matrix(X)


def find_counts(
    file: h5py.File,
    path: str | Path,
    *,
    layer: str = "",
    fractional: bool = False,
    read: Callable[[h5py.Group | h5py.Dataset], csr_matrix] = _whole,
) -> tuple[csr_matrix, str, str, str]:
    """Find the raw counts in an open file. Takes and raises what `read_counts` does.

    Parameters
    ----------
    read
        Reads of a matrix what is looked at, and given back: all of it, or its first cells.

    Returns
    -------
    X : CSR
        What `read` gave.
    where : str
        ``layers['…']``, ``raw.X`` or ``X``.
    matrix, var : str
        The keys in the file of the matrix and of the genes that belong to it.
    """
    places = {"raw.X": ("raw/X", "raw/var"), "X": ("X", "var")}
    places |= {f"layers['{name}']": (f"layers/{name}", "var") for name in file.get("layers", ())}
    if layer and f"layers['{layer}']" not in places:
        raise ValueError(
            f"{path} has no layer {layer!r}; it has {', '.join(w for w, (at, _) in places.items() if at in file)}. "
            "Set layer to one of the layers, or to '' for raw.X or X."
        )
    wanted = [f"layers['{layer}']"] if layer else ["raw.X", "X"]
    found = []
    for where in wanted:
        matrix, var = places[where]
        if matrix not in file:
            continue
        X = read(file[matrix])
        fault = find_count_fault(X.data, fractional=fractional)
        if fault is None:
            return X, where, matrix, var
        found.append(f"{where} {fault}")
    more = [name for name in places if name.startswith("layers") and name not in wanted]
    raise ValueError(
        f"{path} holds no raw counts: {'; '.join(found) or 'no matrix at all'}. Non-negative integers are expected. "
        + (f"If a layer holds them, name it (LAYER=…): there is {', '.join(more)}. " if more else "")
        + "Corrected counts that are truly fractional are let in with fractional=true (FRACTIONAL=true)."
    )


def filter_cells(
    counts: AnnData,
    *,
    min_cells: int,
    donor_key: str = DONOR,
    cell_type_key: str = CELL_TYPE,
    keep_obs: list[str] = (),
    drop_missing: bool = False,
    keep_unlabeled: bool = False,
    drop_empty: bool = False,
) -> tuple[AnnData, pd.DataFrame]:
    """Keep the donors with enough cells, and normalize.

    Parameters
    ----------
    counts : n_cells × n_genes
        As `read_counts` gives them.
    min_cells
        Keep donors with at least this many cells.
    donor_key, cell_type_key
        The columns of ``obs`` to take; called ``donor_id`` and ``cell_type`` from here on.
    keep_obs
        More columns to keep.
    drop_missing
        Drop cells without a donor or a type; otherwise they are an error.
    keep_unlabeled
        Keep cells without a type, as such: they count in the data term of the models, and in no score against the type.
    drop_empty
        Drop cells without counts; otherwise they are an error.

    Returns
    -------
    cells : AnnData
        ``X`` CSR float32, log1p of counts per 10 000, of the genes with any count in the kept cells.
    donors : DataFrame
        A row a donor, most cells first: ``donor_id, n_cells, kept``.

    Raises
    ------
    ValueError
        A column is missing, donor or type is empty, a cell has no counts, or no donor has enough cells.
    """
    obs = counts.obs
    if not counts.n_obs or not counts.n_vars or not counts.X.nnz:
        raise ValueError(
            f"there is nothing to filter: {counts.n_obs} cells × {counts.n_vars} genes, {counts.X.nnz} counts."
        )
    if min_cells < 1:
        raise ValueError(f"min_cells = {min_cells}: the least number of cells of a donor is expected, 1 or more.")
    for what, key in (("donor", donor_key), ("cell type", cell_type_key), *(("kept", key) for key in keep_obs)):
        if key not in obs:
            there = ", ".join(map(repr, obs)) or "none"
            raise ValueError(
                f"there is no obs column {key!r} for the {what}; there are {there}. Name another (DONOR_KEY=…, "
                "CELL_TYPE_KEY=…)."
            )

    keep = np.ones(counts.n_obs, dtype=bool)
    untyped = is_missing(obs[cell_type_key])
    for key, fault in ((donor_key, is_missing(obs[donor_key])), (cell_type_key, untyped)):
        instead, typed = f"name another column than {key!r}", key == cell_type_key
        if typed and keep_unlabeled:
            continue
        if typed:
            instead = f"keep_unlabeled=true (KEEP_UNLABELED=true) to keep them without a type, or {instead}"
        keep &= _drop_or_raise(fault, drop_missing, counts, f"obs[{key!r}] is empty", instead, "drop_missing")
    total = np.asarray(counts.X.sum(axis=1, dtype=np.float64)).ravel()
    keep &= _drop_or_raise(
        total == 0, drop_empty, counts, "the counts are all 0", "remove them from the file", "drop_empty"
    )

    donor = obs[donor_key].astype(str)
    n_cells = donor[keep].value_counts()
    donors = pd.DataFrame(
        {DONOR: n_cells.index, "n_cells": n_cells.to_numpy(), "kept": n_cells.to_numpy() >= min_cells}
    )
    if not donors["kept"].any():
        sizes = ", ".join(f"{d} {n}" for d, n in n_cells.head(20).items()) + (" …" if len(n_cells) > 20 else "")
        raise ValueError(
            f"no donor has {min_cells} cells or more; the {len(n_cells)} donors have: {sizes}. Lower min_cells "
            "(make all MIN_CELLS=…)."
        )
    keep &= donor.isin(donors.loc[donors["kept"], DONOR]).to_numpy()
    types = obs[cell_type_key].astype(str).astype(object).mask(untyped, np.nan)
    for label, values, who in ((DONOR, donor, "models 1 and 2"), (CELL_TYPE, types, "the benchmarks")):
        if len(left := values[keep].dropna().unique()) < 2:
            told = left[0] if len(left) else "none"
            log.warning("one %s is left (%s): %s need at least 2 and will stop.", label, told, who)
    if n := int((untyped & keep).sum()):
        log.info("%d of the cells kept have no type", n)
    log.info("kept %d of %d cells, %d of %d donors", keep.sum(), len(keep), donors["kept"].sum(), len(donors))

    X = counts.X[keep]
    expressed = X.getnnz(axis=0) > 0
    X = normalize(X, expressed)
    kept = pd.DataFrame(
        {
            CELL_TYPE: pd.Categorical(types[keep]),
            DONOR: pd.Categorical(donor[keep]),
            **{key: obs[key][keep] for key in keep_obs},
        },
        index=obs.index[keep],
    )
    names = [name for name in ("feature_name",) if name in counts.var]
    return AnnData(X, obs=kept, var=counts.var.loc[expressed, names]), donors


def is_missing(column: pd.Series) -> np.ndarray:
    """Tell which cells have no label: NaN, or blank. (n_cells,) bool."""
    return column.isna().to_numpy() | (column.astype(str).str.strip() == "").to_numpy()


def read_labels(obs: pd.DataFrame, name: str, *, partly: bool = False) -> np.ndarray:
    """Give a column of labels as strings, `UNLABELED` for cells without where they may be `partly` missing.

    Raises ValueError where the column is missing, or else empty for some cells.
    """
    if name not in obs:
        there = ", ".join(map(repr, obs)) or "no columns"
        raise ValueError(f"obs['{name}'] is needed to train this model; the cells have {there}.")
    empty, found = is_missing(obs[name]), np.array(obs[name].astype(str), object)
    if empty.any() and not partly:
        raise ValueError(f"obs['{name}'] is empty for {empty.sum()} of {len(obs)} cells: it is needed for every cell.")
    if empty.any():
        log.info(
            "obs['%s'] is empty for %d of %d cells: these are in no group of a penalty", *(name, empty.sum(), len(obs))
        )
        found[empty] = NO_TYPE
    return found


def normalize(X: csr_matrix, genes: np.ndarray | None = None) -> csr_matrix:
    """Scale each cell to 10 000 counts and take log1p, float32. Cells without counts stay 0.

    Parameters
    ----------
    X : n_cells × n_genes
        Counts.
    genes : int or bool, optional
        Give these genes alone, in this order. A cell is scaled by its counts of all genes all the same.

    Returns
    -------
    n_cells × the genes given; a new matrix with sorted indices and no stored zeros.
    """
    X = X.astype(np.float32, copy=genes is None)
    total = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(TARGET_SUM, total, out=np.zeros_like(total), where=total > 0)
    if genes is not None:
        X = X[:, genes]
    X.eliminate_zeros()
    np.log1p(X.data * np.repeat(scale.astype(np.float32), np.diff(X.indptr)), out=X.data)
    X.sort_indices()
    return X


def find_count_fault(values: np.ndarray, *, fractional: bool = False) -> str | None:
    """Say what keeps these values from being counts; None if nothing does."""
    # all is well, mostly: told with the fewest passes over the values. NaN fails the first comparison.
    if not values.size or (
        values.min() >= 0 and values.max() < np.inf and (fractional or np.array_equal(values, np.trunc(values)))
    ):
        return None
    if n := int((~np.isfinite(values)).sum()):
        return f"holds {n} values that are NaN or infinite"
    if n := int((values < 0).sum()):
        return f"holds {n} negative values (smallest {values.min():.4g}), as scaled data do"
    fraction = values[values % 1 != 0]
    few = len(fraction) < len(values) / 2
    largest = values.max()
    looks = "corrected" if few else "log-normalized" if largest < _LOG_MAX else "normalized"
    return (
        f"holds {len(fraction)} values that are not integers (first {fraction[0]:.4g}, largest {largest:.4g}): "
        f"it looks {looks}"
    )


def check_names(path: str | Path, **names: pd.Index) -> None:
    """Refuse names of ``cells`` or ``genes`` that stand more than once."""
    for what, index in names.items():
        if not index.is_unique:
            twice = index[index.duplicated()]
            raise ValueError(
                f"{path}: {len(twice)} names of {what} stand more than once (first: {twice[0]!r}). Make them unique, "
                f"for example with adata.{'obs' if what == 'cells' else 'var'}_names_make_unique()."
            )


def _drop_or_raise(
    fault: np.ndarray, allowed: bool, cells: AnnData, what: str, instead: str, parameter: str
) -> np.ndarray:
    """Give the cells to keep; where dropping is not allowed, a fault is an error."""
    if n := int(fault.sum()):
        first = cells.obs_names[fault][0]
        if not allowed:
            raise ValueError(
                f"{what} for {n} of {len(fault)} cells (first: {first!r}). Set {parameter}=true "
                f"({parameter.upper()}=true) to leave these cells out, or {instead}."
            )
        log.warning("%s for %d of %d cells (first: %r): left out", what, n, len(fault), first)
    return ~fault
