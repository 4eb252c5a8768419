"""The part of `check` that reads the cells: their counts, their labels, and whether these fit the parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from aenmf_lib.data import counts, files, label_summary
from aenmf_lib.data.labels import CELL_TYPE, DONOR, is_missing
from aenmf_lib.data.preprocessing import find_gene_names
from aenmf_lib.metrics.splits import Splits, smallest_max_cells
from aenmf_lib.models.base import check_rank
from aenmf_lib.programs.enrichment import enrich_programs, read_gene_sets
from aenmf_lib.workflow import metadata, report
from aenmf_lib.workflow.costs import BENCHMARKS, FIGURES, FILTER, STAGES, Size
from aenmf_lib.workflow.report import FAULTS, Report

_PROGRAMS = "10_programs"
_NEIGHBORS = 25  # notebook 06 needs more cells than this
_LABEL_OPTIONS = "min_cells keep_obs drop_missing keep_unlabeled drop_labels merge_labels primary_only".split()


def check_cells(settings: Mapping[str, dict], found: Report, *, may_raise: bool) -> Size | None:
    """Check the file, its counts and its labels; return the sizes of the filtered cells if they are known."""
    values, k, contents = settings[FILTER], settings[STAGES["AE_NMF"]]["k"], None
    needed = [values["donor_key"], values["cell_type_key"], *values["keep_obs"]]
    try:
        with files.open_cells(values["data"]) as file:
            matrix = _find_counts(file, values, found)
            colors = settings[FIGURES]["color_by"]
            obs = found.attempt(metadata.read_obs, file, [*needed, *colors, "is_primary_data"], needed)
            if obs is None:
                return None
            _check_colors(obs, colors, values, found)
            _check_names("obs", obs.index, values, found)
            if matrix is not None:
                contents = found.attempt(metadata.measure, file, matrix, k)
                _check_genes(file, matrix["where"], values, settings[_PROGRAMS]["gene_sets"], found)
            names = metadata.bytes_per_cell(file)
    except FAULTS as error:
        found.error(str(error))
        return None
    empty = np.zeros(len(obs), bool) if contents is None or contents.empty is None else contents.empty
    summary = _check_labels(obs, empty, values, found)
    if summary is None or not summary.keep.any():
        if contents is not None:
            _check_rank(Size(len(obs), contents.n_genes, contents.nnz, n_donors=0, n_types=0, k=k), contents, found)
        return None
    kept = pd.DataFrame({DONOR: summary.donor, CELL_TYPE: summary.cell_type}, dtype="category")[summary.keep]
    _check_classes(kept, settings[BENCHMARKS], found, may_raise=may_raise)
    if contents is None:
        return None
    size = Size(
        n_cells=len(kept), n_genes=contents.n_genes, nnz=round(contents.nnz * len(kept) / max(len(obs), 1)),
        n_donors=kept[DONOR].nunique(), n_types=kept[CELL_TYPE].nunique(), k=k,
        file_cells=len(obs), file_nnz=contents.nnz, names=names,
    )  # fmt: skip
    found.lines.append(("kept", report.describe_kept(summary, size)))
    _check_rank(size, contents, found)
    return replace(size, k=int(found.options.get("K", k)))


def _find_counts(file: metadata.File, values: Mapping[str, Any], found: Report) -> pd.Series | None:
    """Return the row of the matrix that the filter would take, and list the others."""
    layer, fractional = values["layer"], values["fractional"]
    table = found.attempt(counts.candidates, file)
    if table is None:
        return None
    is_chosen = table["chosen"]
    if layer:
        is_chosen = table["where"].isin([layer, f"layers['{layer}']"]) & (table["kind"] == "counts")
    if fractional or not is_chosen.any():  # the filter decides; its error is reported
        taken = found.attempt(counts.find_counts, file, layer=layer, fractional=fractional)
        is_chosen = table["where"] == (taken.where if taken else "")
    others = "; ".join(f"{row.where} {row.kind}" for row in table[~is_chosen].itertuples())
    if is_chosen.any():
        row = table[is_chosen].iloc[0]
        also = f" (also: {others})" if others else ""
        found.lines.append(("counts", f"{row['where']}{also}"))
        return row
    found.lines.append(("counts", f"none chosen ({others or 'the file has no matrix'})"))
    usable = table[table["kind"] == "counts"]
    if usable.empty:
        return None
    found.options["LAYER"] = metadata.layer_of(usable["where"].iloc[0])
    return usable.iloc[0]


def _check_colors(obs: pd.DataFrame, columns: Sequence[str], values: Mapping[str, Any], found: Report) -> None:
    """Check that the UMAP can be colored by these columns."""
    kept = [CELL_TYPE, DONOR, *(values["keep_obs"] or obs)]
    for column in columns:
        if column not in kept:
            reason = "keep_obs leaves it out" if column in obs else "the file has no such column"
            found.error(f"UMAPs cannot be colored by obs[{column!r}]: {reason}. Expected columns of obs, separated by "
                        "commas. Correct color_by (COLOR_BY=condition).", "COLOR_BY")  # fmt: skip


def _check_genes(file: metadata.File, where: str, values: Mapping[str, Any], gene_sets: str, found: Report) -> None:
    """Find the column with the gene symbols, and compare symbols and ids with the genes of a file of gene sets."""
    var = found.attempt(metadata.read_var, file, where)
    if var is None:
        return
    _check_names("var", var.index, values, found)
    symbols = found.attempt(find_gene_names, var, values["gene_name_key"])
    if symbols:
        found.lines.append(("gene symbols", f"var[{symbols[0]!r}]" if symbols[0] else "none found: var names are used"))
    sets = found.attempt(read_gene_sets, gene_sets, dropped="GENE_SETS") if gene_sets else None
    if sets and symbols:
        names = var.index.to_numpy(dtype=object) if symbols[1] is None else symbols[1].to_numpy(dtype=object)
        found.attempt(enrich_programs, [np.arange(1)], var.index, names, sets, dropped="GENE_SETS")


def _check_names(part: str, names: pd.Index, values: Mapping[str, Any], found: Report) -> None:
    """Record names of cells or genes that occur more than once."""
    if names.has_duplicates:
        repeated = names[names.duplicated()]
        text = f"{values['data']}: {len(repeated)} names in {part} are repeated (first: {repeated[0]!r})"
        remedy = f"call cells.{part}_names_make_unique() and write the file again"
        found.error(f"{text}. Unique names are expected: {remedy}.")


def _check_labels(
    obs: pd.DataFrame, empty: np.ndarray, values: Mapping[str, Any], found: Report
) -> label_summary.LabelSummary | None:
    """Check donors and types; continue with the suggested values, so that later checks run too."""
    if n := int(empty.sum()):
        text = f"The counts are all 0 for {n} of {len(obs)} cells (first: {obs.index[empty][0]!r})"
        if values["drop_empty"]:
            found.warnings.append(f"{text}. These cells are dropped.")
        else:
            found.options["DROP_EMPTY"] = "true"
            found.error(f"{text}. Set drop_empty=true (DROP_EMPTY=true) to drop these cells.")
    keys = {DONOR: values["donor_key"], CELL_TYPE: values["cell_type_key"]}
    options = {name: values[name] for name in _LABEL_OPTIONS}
    options |= {"usable": ~empty, "sample": values["sample_cells"], "seed": values["seed"]}
    summaries: list[label_summary.LabelSummary] = []

    def summarize() -> None:
        summaries.append(label_summary.summarize_labels(obs, *keys.values(), **options))

    summarize()
    for label, option in ((DONOR, "DONOR_KEY"), (CELL_TYPE, "CELL_TYPE_KEY")):
        if keys[label] not in obs:
            likely = [*label_summary.likely_columns(obs, keys[label], label), "COLUMN"]
            keys[label] = found.options[option] = likely[0]
    if found.options.keys() & {"DONOR_KEY", "CELL_TYPE_KEY"}:
        summarize()
    unlabeled = False
    for label, option in ((DONOR, "drop_missing"), (CELL_TYPE, "keep_unlabeled")):
        known = keys[label] in obs and not options["drop_missing"] and not options[option]
        if known and is_missing(obs[keys[label]])[~empty].any():
            found.options[option.upper()], options[option], unlabeled = "true", True, True
    if unlabeled:
        summarize()
    donors = summaries[-1].donors
    if len(donors) and not donors["kept"].any():
        enough = int(donors["n_cells"].iloc[:2].min())
        power = 10 ** (len(str(enough)) - 1)
        options["min_cells"] = enough // power * power  # with one digit that is not 0
        found.options["MIN_CELLS"] = str(options["min_cells"])
        summarize()
    summary = summaries[-1]
    for text in [text for each in summaries for text in each.errors]:
        found.error(text)
    found.warnings += [text for text in summary.warnings if text not in found.warnings]
    if any(key not in obs for key in keys.values()):
        return None
    found.lines += report.describe_labels(summary, keys, found.options)
    return summary


def _check_rank(size: Size, contents: metadata.Contents, found: Report) -> None:
    """Compare K with the numbers of cells, genes and types."""
    most = min(size.n_cells, contents.n_genes)
    if found.attempt(check_rank, size.k, size.n_cells, contents.n_genes) is None and size.k > most:
        found.options["K"] = str(max(1, min(most, 20, max(size.n_types, most // 2))))
    elif not contents.complete and contents.seen < size.k:
        found.warnings.append(
            f"Only {contents.seen} genes have counts in the cells that were read, fewer than k={size.k}. "
            "Perhaps choose a smaller K."
        )
    if size.k < size.n_types:
        found.warnings.append(
            f"K={size.k} is smaller than the number of cell types, {size.n_types}: several types must share a program. "
            f"Choose a larger K, such as K={round(2 * size.n_types, -1) or 10}."
        )
    if size.n_cells <= _NEIGHBORS:
        found.error(
            f"Only {size.n_cells} cells are left. The neighbor graph of notebook 06 needs {_NEIGHBORS + 1}. "
            "Keep more cells, for example with a smaller MIN_CELLS."
        )


def _check_classes(kept: pd.DataFrame, values: dict[str, Any], found: Report, *, may_raise: bool) -> None:
    """Compare the sizes of the classes with the folds, and MAX_CELLS with the number of classes."""
    splits, least = Splits(), {label: smallest_max_cells(kept, label) for label in (CELL_TYPE, DONOR)}
    for label in least:
        sizes = kept[label].astype(object).value_counts()  # without categories that no cell has
        small = sizes[sizes < splits.min_cells_per_class]
        if len(small):
            found.warnings.append(
                f"{len(small)} of {len(sizes)} classes of {label} have fewer than {splits.min_cells_per_class} cells "
                f"(smallest: {small.index[-1]!r}, {small.iloc[-1]}). The classification leaves them out."
            )
        if not least[label] and len(sizes) > 1:
            found.warnings.append(
                f"Fewer than two classes of {label} are large enough, so {label} has no classification scores."
            )
    needed, max_cells = max(least.values()), values["max_cells"]
    if 0 < max_cells < min(needed, len(kept)):
        label = max(least, key=least.get)
        if may_raise:
            found.raised["max_cells"] = needed
            return
        found.options["MAX_CELLS"] = str(needed)
        found.error(
            f"max_cells={max_cells} is too small for {splits.floor} cells of each of the {needed // splits.floor} "
            f"classes of {label}. Set max_cells to {needed} or more (MAX_CELLS={needed}), or to 0 for all cells."
        )
