"""Filtering and normalizing: from raw counts to the matrix that all models train on."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib.data.counts import read_counts
from aenmf_lib.data.files import file_info
from aenmf_lib.data.frames import plain_frame
from aenmf_lib.data.judging import clean
from aenmf_lib.data.label_summary import summarize_labels
from aenmf_lib.data.labels import CELL_TYPE, DONOR, LABELS, as_text
from aenmf_lib.data.labels import NO_TYPE as NO_TYPE
from aenmf_lib.data.labels import is_missing as is_missing
from aenmf_lib.data.labels import read_labels as read_labels
from aenmf_lib.data.matrices import Matrix
from aenmf_lib.data.provenance import run_info
from aenmf_lib.data.reading import IN_MEMORY

log = logging.getLogger(__name__)

_TARGET_SUM = 1e4  # total count of each cell before log1p
_SYMBOL = "feature_name"  # var column of the result with the gene symbols
_SYMBOLS = (_SYMBOL, "gene_symbols", "gene_symbol", "gene_name", "symbol", "gene_short_name")  # the first found is used


def prepare(
    cells: AnnData | str | Path, *, min_cells: int = 0, layer: str = "", fractional: bool = False, **options
) -> AnnData:
    """Read, filter and normalize cells, as notebook 01 does. Raises the errors of `read_counts` and `filter_cells`.

    Parameters
    ----------
    cells, layer, fractional
        A file or AnnData with raw counts, and the matrix that contains them, as for `read_counts`.
    min_cells, options
        The minimum number of cells per donor, and all other options of `filter_cells`.

    Returns
    -------
    AnnData
        The cells, as `filter_cells` returns them. ``uns["provenance"]`` records their source.

    Examples
    --------
    >>> from aenmf_lib import data
    >>> cells = data.prepare(data.simulate()[0], min_cells=500)
    >>> cells.obs["donor_id"].nunique()
    5
    """
    if not isinstance(cells, AnnData | str | Path):
        raise ValueError(f"prepare got a {type(cells).__name__}. Pass an AnnData, or the path of an .h5ad or .zarr.")
    if isinstance(cells, AnnData) and cells.isbacked:
        cells = cells.to_memory()
    counts, where = read_counts(cells, layer=layer, fractional=fractional)
    filtered, _ = filter_cells(counts, min_cells=min_cells, fractional=fractional, **options)
    source = cells.filename if isinstance(cells, AnnData) else cells
    known = file_info(source) if source else {"path": "AnnData in memory", "sha256": ""}
    filtered.uns["provenance"] |= {"input": known, "counts_from": where, **run_info()}
    return filtered


def filter_cells(
    counts: AnnData,
    *,
    min_cells: int = 0,
    donor_key: str = DONOR,
    cell_type_key: str = CELL_TYPE,
    gene_name_key: str = "",
    keep_obs: Sequence[str] = (),
    drop_missing: bool = False,
    keep_unlabeled: bool = False,
    drop_empty: bool = False,
    drop_labels: Sequence[str] = (),
    merge_labels: bool = False,
    primary_only: bool = False,
    fractional: bool = False,
    sample: int = 0,
    seed: int = 42,
) -> tuple[AnnData, pd.DataFrame]:
    """Keep the donors with enough cells and the genes with counts, and normalize.

    Raises ValueError, with all faults at once, if a column, a donor, a type or all counts of a cell are missing, a
    value cannot be a count, no donor has enough cells, or an option does not fit the cells.

    Parameters
    ----------
    counts, min_cells
        Raw counts in ``X``, as `read_counts` returns them, and the minimum number of cells per donor. 0 means 5,000, or
        a tenth of the cells of the largest donor if fewer than two donors have 5,000 cells.
    donor_key, cell_type_key
        Columns of ``obs``. The result has them as text in ``donor_id`` and ``cell_type`` too. Other columns with these
        names become ``donor_id_original`` and ``cell_type_original``.
    gene_name_key
        Column of ``var`` with the gene symbols, ``feature_name`` in the result. If empty, usual names are tried.
    keep_obs
        Further columns of ``obs`` to keep; all if empty.
    drop_missing, drop_empty
        Drop cells without a donor or a type, and cells without counts. Otherwise such cells raise an error.
    keep_unlabeled
        Keep cells without a type. The models train on them, and scores against the type leave them out.
    drop_labels, primary_only
        Drop the cells with one of these donors or types, and cells that are not primary data (CELLxGENE).
    merge_labels
        Merge labels that differ only in case or spaces into the most frequent spelling.
    fractional
        Accept values that are not integers, as `read_counts` does.
    sample, seed
        Keep at most this many random cells, drawn after filtering; 0 keeps all. Donors keep their shares of the cells.

    Returns
    -------
    cells : AnnData
        ``X`` CSR float32, log1p of counts per 10,000, of the genes with a count in the kept cells. ``obs`` and ``var``
        keep their columns.
    cohort : DataFrame
        One row per donor and type, largest donor first: ``donor_id, cell_type`` ('' if missing), ``n_cells`` before
        sampling, whether the donor is ``kept``, and ``min_cells``, the threshold that was used.
    """
    if counts.isbacked:
        counts = counts.to_memory()
    X = _check_counts(counts, fractional=fractional)
    obs, var = plain_frame(counts.obs, "obs", IN_MEMORY), plain_frame(counts.var, "var", IN_MEMORY)
    no_counts = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel() == 0
    summary = summarize_labels(
        obs,
        donor_key,
        cell_type_key,
        min_cells,
        usable=~no_counts,
        keep_obs=(keep_obs := _list(keep_obs)),
        drop_missing=drop_missing,
        keep_unlabeled=keep_unlabeled,
        drop_labels=_list(drop_labels),
        merge_labels=merge_labels,
        primary_only=primary_only,
        sample=sample,
        seed=seed,
    )
    if no_counts.any():
        found = f"The counts are all 0 for {no_counts.sum()} of {len(obs)} cells (first: {obs.index[no_counts][0]!r})"
        drop = "Set drop_empty=true (DROP_EMPTY=true) to drop these cells, or remove them from the file"
        messages = summary.warnings if drop_empty else summary.errors
        messages.append(f"{found}. {'These cells are dropped' if drop_empty else drop}.")
    try:
        symbol_key, symbols = find_gene_names(var, gene_name_key)
    except ValueError as error:
        summary.errors.append(str(error))
    if errors := summary.errors:
        several = f"There are {len(errors)} problems with these cells:"
        raise ValueError(errors[0] if len(errors) == 1 else "\n  ".join([several, *errors]))
    for message in summary.warnings:
        log.warning("%s", message)
    for message in summary.notes:
        log.info("%s", message)
    keep, donors = summary.keep, summary.donors
    log.info("kept %d of %d cells, %d of %d donors", keep.sum(), len(obs), donors["kept"].sum(), len(donors))

    X = X[keep]  # a copy, which may be changed
    X.sum_duplicates()
    X.eliminate_zeros()
    expressed = X.getnnz(axis=0) > 0
    columns = list(dict.fromkeys([cell_type_key, donor_key, *keep_obs])) if keep_obs else slice(None)
    kept = _rename_clashes(obs.loc[keep, columns], "obs", {CELL_TYPE: cell_type_key, DONOR: donor_key})
    labels = {CELL_TYPE: summary.cell_type, DONOR: summary.donor}
    labels = {name: pd.Categorical(values[keep]) for name, values in labels.items()}
    kept = pd.DataFrame(labels | {name: kept[name] for name in kept if name not in LABELS}, index=kept.index)
    var = _rename_clashes(var[expressed], "var", {_SYMBOL: symbol_key} if symbol_key else {})
    if symbols is not None:
        var[_SYMBOL] = symbols[expressed].to_numpy()
    cells = AnnData(normalize(X, expressed), obs=kept, var=var)
    keys = {"donor_key": donor_key, "cell_type_key": cell_type_key}
    facts = {"min_cells": summary.min_cells, "donors": donors, "sampled_from": summary.sampled_from}
    cells.uns["provenance"] = facts | keys
    return cells, summary.cohort


def _check_counts(counts: AnnData, *, fractional: bool) -> csr_matrix:
    """Return the counts as CSR, (n_cells, n_genes). Raise ValueError if there are none or values are not counts."""
    X = csr_matrix(counts.shape) if counts.X is None else counts.X
    if not isinstance(X, csr_matrix) or X.dtype != np.float32:  # such X, as read_counts returns it, is not copied
        X = Matrix(X, IN_MEMORY, "X").read()
    if not X.nnz:
        size = f"{counts.n_obs} cells × {counts.n_vars} genes"
        raise ValueError(f"Nothing to filter: {size} with 0 counts. Pass cells with raw counts in X.")
    X, _, fault = clean(X, fractional=fractional)
    if fault:
        advice = "Pass raw counts in X, as data.read_counts finds them, or set fractional=True for corrected counts"
        raise ValueError(f"X {fault}. Expected non-negative integers. {advice}.")
    return X


def _list(names: str | Sequence[str]) -> list[str]:
    """Return names as a list; a single name may be given as it is."""
    return [names] if isinstance(names, str) else list(names)


def find_gene_names(var: pd.DataFrame, gene_name_key: str = "") -> tuple[str, pd.Series | None]:
    """Return the column of the gene symbols, and the symbols as text, (n_genes,). Ids replace missing symbols.

    The column is `gene_name_key`, or the first of the usual names (in any case) with symbols that are not the ids.
    Without such a column the result is ``("", None)``. Raises ValueError if `gene_name_key` is not in `var`.
    """
    if gene_name_key and gene_name_key not in var:
        columns = ", ".join(map(repr, var)) or "none"
        found = f"There is no var column {gene_name_key!r}. The columns are: {columns}"
        raise ValueError(f"{found}. Choose one of them (GENE_NAME_KEY=…), or leave it empty to search.")
    ids = pd.Series(var.index.astype(str), index=var.index, dtype=object)
    folded = {str(name).casefold(): name for name in reversed(var.columns)}
    for name in [gene_name_key] if gene_name_key else [folded[name] for name in _SYMBOLS if name in folded]:
        symbols = as_text(var[name])
        if gene_name_key or ((symbols != ids) & symbols.notna()).any():
            return name, symbols.fillna(ids)
    return (_SYMBOL, ids) if _SYMBOL in var else ("", None)  # a column without symbols is filled with the ids


def _rename_clashes(frame: pd.DataFrame, part: str, own: dict[str, str]) -> pd.DataFrame:
    """Rename columns and an index with a name in `own` (new name -> column for it), unless they are that column.

    A slash, which would make a folder in the file, becomes an underscore. Categories that do not occur are removed.
    """
    taken, renamed = {*frame, *own}, {}
    for name in frame:
        new = (f"{name}_original" if own.get(name, name) != name else name).replace("/", "_")
        while new != name and new in taken:
            new += "_original"
        if new != name:
            taken.add(new)
            renamed[name] = new
            reason = f"{part}[{name!r}] is now {part}[{own[name]!r}]" if name in own else "a name cannot contain '/'"
            log.warning("%s[%r] of the file is renamed to %r: %s", part, name, new, reason)
    frame = frame.rename(columns=renamed)
    if (name := frame.index.name) in own:
        frame.index.name = None if f"{name}_original" in taken else f"{name}_original"
        log.warning("the index of %s, called %r in the file, is renamed to %r", part, name, frame.index.name)
    for name in frame.select_dtypes("category"):
        frame[name] = frame[name].cat.remove_unused_categories()
    return frame


def normalize(X: csr_matrix, genes: np.ndarray | None = None) -> csr_matrix:
    """Scale each cell to 10,000 counts and take log1p. Cells without counts stay 0.

    Raises ValueError if `X` is not a matrix, or is damaged.

    Parameters
    ----------
    X, genes
        Counts, (n_cells, n_genes), in any sparse or dense matrix, and the genes to return (int or bool). All counts of
        a cell determine its scale. Entries that are stored in several pieces are summed first.

    Returns
    -------
    (n_cells, n_selected) CSR float32
        A new matrix with sorted indices and no stored zeros.
    """
    if not isinstance(X, csr_matrix) or not X.has_canonical_format:
        X = Matrix(X, IN_MEMORY, "X").read()
    X = X.astype(np.float32, copy=genes is None)
    total = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(_TARGET_SUM, total, out=np.zeros_like(total), where=total > 0)
    if genes is not None:
        X = X[:, genes]
    X.eliminate_zeros()
    np.log1p(X.data * np.repeat(scale.astype(np.float32), np.diff(X.indptr)), out=X.data)
    X.sort_indices()
    return X
