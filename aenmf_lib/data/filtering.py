"""Filtering: from raw counts, in memory or in a file of any size, to the cells that all models train on."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib.data.counts import read_counts
from aenmf_lib.data.files import file_info, join_blocks
from aenmf_lib.data.frames import plain_frame
from aenmf_lib.data.judging import clean
from aenmf_lib.data.label_summary import LabelSummary, summarize_labels
from aenmf_lib.data.labels import CELL_TYPE, DONOR, LABELS
from aenmf_lib.data.matrices import Matrix
from aenmf_lib.data.preprocessing import SYMBOL, find_gene_names, normalize
from aenmf_lib.data.progress import cell_bar
from aenmf_lib.data.provenance import run_info
from aenmf_lib.data.reading import IN_MEMORY
from aenmf_lib.data.streaming import CellStream

log = logging.getLogger(__name__)

_BLOCK = 1024  # cells of a file in memory at a time; larger blocks are not faster


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
    options |= {"min_cells": min_cells, "fractional": fractional}
    if isinstance(cells, AnnData):
        cells = cells.to_memory() if cells.isbacked else cells
        counts, where = read_counts(cells, layer=layer, fractional=fractional)
        found, _ = filter_cells(counts, **options)
        found.uns["provenance"] |= {"input": {"path": "AnnData in memory", "sha256": ""}, "counts_from": where}
    else:
        stream, _ = filter_cells(cells, layer=layer, **options)
        found = AnnData(join_blocks(stream), obs=stream.obs, var=stream.var, uns=stream.uns)
    found.uns["provenance"] |= run_info()
    return found


def filter_cells(
    counts: AnnData | str | Path,
    *,
    layer: str = "",
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
) -> tuple[AnnData | CellStream, pd.DataFrame]:
    """Keep the donors with enough cells and the genes with counts, and normalize.

    Raises ValueError, with all faults at once, if a column, a donor, a type or all counts of a cell are missing, a
    value cannot be a count, no donor has enough cells, or an option does not fit the cells; for a file also the errors
    of `read_counts`.

    Parameters
    ----------
    counts, layer, min_cells
        Raw counts in ``X``, as `read_counts` returns them; or a file, and the matrix that contains its counts, as for
        `read_counts`. `min_cells` is the minimum number of cells per donor; 0 means 5,000, or a tenth of the cells of
        the largest donor if fewer than two donors have 5,000 cells.
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
    cells : AnnData or CellStream
        ``X`` CSR float32, log1p of counts per 10,000, of the genes with a count in the kept cells. ``obs`` and ``var``
        keep their columns. For a file this is a stream: all values have been read and checked once, and each iteration
        reads the kept cells again. `results.write_h5ad` writes both types, with the same result.
    cohort : DataFrame
        One row per donor and type, largest donor first: ``donor_id, cell_type`` ('' if missing), ``n_cells`` before
        sampling, whether the donor is ``kept``, and ``min_cells``, the threshold that was used.
    """
    labels = {
        "donor_key": donor_key,
        "cell_type_key": cell_type_key,
        "min_cells": min_cells,
        "keep_obs": _list(keep_obs),
        "drop_missing": drop_missing,
        "keep_unlabeled": keep_unlabeled,
        "drop_labels": _list(drop_labels),
        "merge_labels": merge_labels,
        "primary_only": primary_only,
        "sample": sample,
        "seed": seed,
    }
    rules = _Rules(labels, gene_name_key, drop_empty)
    if not isinstance(counts, AnnData):
        return _filter_file(counts, rules, layer=layer, fractional=fractional)
    if layer:
        advice = f"Pass data.read_counts(cells, layer={layer!r})[0], or the path of a file"
        raise ValueError(f"layer={layer!r} applies to files; the counts of an AnnData are expected in X. {advice}.")
    return _filter_in_memory(counts, rules, fractional=fractional)


# ---------------------------------------------------------------- which cells and columns are kept
@dataclass(frozen=True)
class _Rules:
    """The options of `filter_cells`, and their effect on obs and var."""

    labels: dict[str, object]  # options of `summarize_labels`
    gene_name_key: str
    drop_empty: bool

    def choose(self, obs: pd.DataFrame, var: pd.DataFrame, empty: np.ndarray) -> LabelSummary:
        """Return which cells and donors are kept, and log it. Raise ValueError with all faults at once.

        `empty` is a mask of the cells without counts, (n_cells,) bool.
        """
        summary = summarize_labels(obs, usable=~empty, **self.labels)
        if empty.any():
            found = f"The counts are all 0 for {empty.sum()} of {len(obs)} cells (first: {obs.index[empty][0]!r})"
            drop = "Set drop_empty=true (DROP_EMPTY=true) to drop these cells, or remove them from the file"
            messages = summary.warnings if self.drop_empty else summary.errors
            messages.append(f"{found}. {'These cells are dropped' if self.drop_empty else drop}.")
        try:
            find_gene_names(var, self.gene_name_key)
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
        return summary

    def tables(self, obs: pd.DataFrame, var: pd.DataFrame, summary: LabelSummary, expressed: np.ndarray) -> dict:
        """Return obs, var and uns of the kept cells and the `expressed` genes, (n_genes,) bool."""
        keys = {CELL_TYPE: self.labels["cell_type_key"], DONOR: self.labels["donor_key"]}
        keep, keep_obs = summary.keep, self.labels["keep_obs"]
        columns = list(dict.fromkeys([*keys.values(), *keep_obs])) if keep_obs else slice(None)
        kept = _rename_clashes(obs.loc[keep, columns], "obs", keys)
        labels = {CELL_TYPE: summary.cell_type, DONOR: summary.donor}
        labels = {name: pd.Categorical(values[keep]) for name, values in labels.items()}
        kept = pd.DataFrame(labels | {name: kept[name] for name in kept if name not in LABELS}, index=kept.index)
        symbol_key, symbols = find_gene_names(var, self.gene_name_key)
        var = _rename_clashes(var[expressed], "var", {SYMBOL: symbol_key} if symbol_key else {})
        if symbols is not None:
            var[SYMBOL] = symbols[expressed].to_numpy()
        facts = {"min_cells": summary.min_cells, "donors": summary.donors, "sampled_from": summary.sampled_from}
        used = {"donor_key": keys[DONOR], "cell_type_key": keys[CELL_TYPE]}
        return {"obs": kept, "var": var, "uns": {"provenance": facts | used}}


def _list(names: str | Sequence[str]) -> list[str]:
    """Return names as a list; a single name may be given as it is."""
    return [names] if isinstance(names, str) else list(names)


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


# ---------------------------------------------------------------- in memory
def _filter_in_memory(counts: AnnData, rules: _Rules, *, fractional: bool) -> tuple[AnnData, pd.DataFrame]:
    """Return what `filter_cells` returns for cells in memory."""
    if counts.isbacked:
        counts = counts.to_memory()
    X = _check_counts(counts, fractional=fractional)
    obs, var = plain_frame(counts.obs, "obs", IN_MEMORY), plain_frame(counts.var, "var", IN_MEMORY)
    empty = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel() == 0
    summary = rules.choose(obs, var, empty)
    X = X[summary.keep]  # a copy, which may be changed
    X.sum_duplicates()
    X.eliminate_zeros()
    expressed = X.getnnz(axis=0) > 0
    return AnnData(normalize(X, expressed), **rules.tables(obs, var, summary, expressed)), summary.cohort


def _check_counts(counts: AnnData, *, fractional: bool) -> csr_matrix:
    """Return the counts as CSR, (n_cells, n_genes). Raise ValueError if there are none or values are not counts."""
    X = csr_matrix(counts.shape) if counts.X is None else counts.X
    if not isinstance(X, csr_matrix) or X.dtype != np.float32:  # such X, as read_counts returns it, is not copied
        X = Matrix(X, IN_MEMORY, "X").read()
    _require_counts(X.data.any(), X.shape)
    X, _, fault = clean(X, fractional=fractional)
    if fault:
        advice = "Pass raw counts in X, as data.read_counts finds them, or set fractional=True for corrected counts"
        raise ValueError(f"X {fault}. Expected non-negative integers. {advice}.")
    return X


def _require_counts(found: bool, shape: tuple[int, int]) -> None:
    """Raise ValueError if no value above 0 was found in the cells × genes."""
    if not found:
        size = f"{shape[0]} cells × {shape[1]} genes"
        raise ValueError(f"Nothing to filter: {size} with 0 counts. Pass cells with raw counts in X.")


# ---------------------------------------------------------------- from a file
def _filter_file(path: str | Path, rules: _Rules, *, layer: str, fractional: bool) -> tuple[CellStream, pd.DataFrame]:
    """Return what `filter_cells` returns for a file, which is read once in blocks.

    The first pass assumes that no cell is empty, and finds the genes that are expressed in the cells that would then
    be kept. If empty cells change which cells are kept, a second pass over the kept cells finds the genes.
    """
    cells = CellStream(path, counts=True, normalize=False, layer=layer, fractional=fractional, block=_BLOCK)
    log.info("%s cells × %s genes, raw counts from %s", f"{cells.n_obs:,}", f"{cells.n_vars:,}", cells.where)
    likely, pool = summarize_labels(cells.obs, **rules.labels).keep, ThreadPoolExecutor(1, "hash")
    try:
        source = pool.submit(file_info, path)  # hashing releases the GIL
        sizes, expressed = _count(cells, likely)
        empty = sizes == 0
        _require_counts(sizes.any(), (cells.n_obs, cells.n_vars))
        summary = rules.choose(cells.obs, cells.var, empty)
        keep = summary.keep
        if not np.array_equal(keep, likely & ~empty):
            expressed = _count(cells.select(keep), np.ones(keep.sum(), dtype=bool))[1]
        found = cells.select(keep, expressed, normalize=True)
        for name, table in rules.tables(cells.obs, cells.var, summary, expressed).items():
            setattr(found, name, table)
        found.sizes, found.nnz = sizes[keep], int(sizes[keep].sum(dtype=np.int64))
        found.uns["provenance"] |= {"input": source.result(), "counts_from": cells.where}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after an error, do not wait for the hash
    return found, summary.cohort


def _count(cells: CellStream, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nonzeros of each cell, (n_cells,) int32, and the genes with a count in `chosen`, (n_genes,) bool."""
    sizes, expressed = np.zeros(cells.n_obs, dtype=np.int32), np.zeros(cells.n_vars, dtype=bool)
    for X, rows in cell_bar(cells, "count"):
        sizes[rows] = np.diff(X.indptr)
        expressed[X.indices if chosen[rows].all() else X.indices[np.repeat(chosen[rows], sizes[rows])]] = True
    return sizes, expressed
