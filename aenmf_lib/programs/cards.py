"""Program cards: a table with one row per program, which describes its genes, size, use and stability."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from aenmf_lib import results
from aenmf_lib.data.labels import DONOR
from aenmf_lib.models.base import Model, same_genes
from aenmf_lib.models.matching import unit_rows
from aenmf_lib.programs import enrichment
from aenmf_lib.programs.contents import Contents, UsageSums, read_fits
from aenmf_lib.programs.tables import concatenate, list_genes, list_matches, list_usages
from aenmf_lib.results.schema import CARD_COLUMNS, GENE_COLUMNS, MODELS, PUBLISHED, SET_COLUMNS
from aenmf_lib.training.inputs import Cells

__all__ = ["program_cards", "write_program_tables"]

log = logging.getLogger(__name__)

_GENES = 10  # genes listed in a card
_TYPES = 3  # cell types listed in a card
_TESTED = 100  # genes per program that are tested for gene sets
_OF_MODEL = ("programs", "program_cards")  # tables with one file per model
_NO_VARIANCE = 1e-12  # a variance below this share of the mean square is a rounding error


def program_cards(
    models: str | Path | Model | Sequence[str | Path | Model], cells: Cells | None = None, *, gene_sets: str | Path = ""
) -> pd.DataFrame:
    """Return a table that describes each program of one or several models in one row.

    Parameters
    ----------
    models
        Results files or fitted models, at most one of each kind, with the same genes. Skipped models are left out.
    cells
        Cells of the fits. Needed only for fitted models and for files written by ``model.save``.
    gene_sets
        GMT file of gene sets (symbols or ids). If empty, no gene sets are tested.

    Returns
    -------
    DataFrame
        ``Model``, ``program`` (from 0), and

        - ``top_genes``: the ten genes with the largest weights; ``specific_genes``: the ten genes with the largest
          product of weight and specificity (see `gene_table`).
        - ``share_of_norm``: ``‖h_j‖² ‖w_j‖² / ‖X‖²``. Programs overlap, so the sum over programs is not the share of
          ‖X‖² that the model explains. In model 2, W is only the part of the programs that all donors share. For
          projected cells, only the genes that they have count.
        - ``top_type``: the cell type with the largest mean usage; ``usage_by_type``: up to three types whose mean usage
          is above the mean of all cells, each with the ratio of the two means. Cells without a type do not count.
        - ``variance_by_type``: share of the variance of the usage that lies between types (η²);
          ``variance_by_donor``: share that lies between donors within types. Their sum is at most 1. Cells without a
          type are left out; if no cell has a type, all cells count as one type. The first is NaN with one type, the
          second with one donor, and both if the usage does not vary.
        - ``stability``: mean cosine of the program with its partners in the other random starts; NaN with one start.
        - ``nearest_<model>``, ``cosine_<model>``: the most similar program of each model, and its cosine. In the same
          model, the program itself does not count.
        - ``gene_set``, ``gene_set_overlap``, ``gene_set_fdr``: the gene set with the smallest p-value for the first 100
          genes in the order of ``specific_genes``, the number of its genes among these 100 ("3 of 40"), and its false
          discovery rate (see `enrichment.enrich`).

    Raises
    ------
    OSError, ValueError
        A file or a model is not valid, two models have different genes, or the gene sets cannot be used.
    """
    sets = enrichment.read_gene_sets(gene_sets) if gene_sets else {}
    fits, skipped = read_fits(models, cells)
    for name, reason in skipped.items():
        log.info("%s is left out, because it was skipped: %s", name, reason)
    return _make_cards(fits, _enrich(fits, sets))


def write_program_tables(
    paths: str | Path | Sequence[str | Path], out_dir: str | Path, *, gene_sets: str | Path = "", n: int = 100
) -> dict[str, pd.DataFrame]:
    """Write the tables that describe the programs of each model, and those that compare the models.

    Parameters
    ----------
    paths, out_dir
        One results file, or one per model, and the folder to write to. A skipped model has no rows.
    gene_sets, n
        GMT file, or empty for no gene sets; number of genes per program.

    Returns
    -------
    dict of DataFrame
        The tables of all models by the name of their files, each with a column ``Model``:

        - ``programs``: `gene_table`, and ``program_cards``: `program_cards`; each model has its own files
          ``programs_<model>.csv`` and ``program_cards_<model>.csv``
        - ``usage_by_type``: `usage_by_type`; it has no rows if no cell has a type
        - ``program_matches``: ``program`` of ``Model`` and ``other_program`` of the model ``other``, with their
          ``cosine``. The rows of each two models are their pairs (`match_programs`), for which ``matched`` is True, and
          then the other combinations of their programs with a cosine of at least 0.1.
        - ``gene_set_enrichment``: of each program, the sets with a false discovery rate below .05, and the set with the
          smallest p-value: ``gene_set``, ``overlap``, ``size``, ``p``, ``fdr`` (see `enrichment.enrich`), and
          ``shared_genes``. It has no rows without gene sets.

    Raises
    ------
    OSError, ValueError
        The errors of `program_cards`, or a file cannot be written.
    """
    sets = enrichment.read_gene_sets(gene_sets) if gene_sets else {}
    fits, skipped = read_fits(paths)
    enriched = _enrich(fits, sets)
    genes = [list_genes(fit, n).assign(Model=name) for name, fit in fits.items()]
    tables = {
        "programs": concatenate(genes, ["Model", *GENE_COLUMNS]),
        "program_cards": _make_cards(fits, enriched),
        "usage_by_type": list_usages({name: fit.usages for name, fit in fits.items()}),
        "program_matches": list_matches({name: fit.W for name, fit in fits.items()}),
        "gene_set_enrichment": _list_sets(enriched),
    }
    for stem, table in tables.items():
        if stem not in _OF_MODEL:
            results.write_table(table, Path(out_dir) / f"{stem}.csv")
            continue
        for name in (*fits, *skipped):
            part = table[table["Model"] == name].drop(columns="Model")
            results.write_table(part, Path(out_dir) / f"{stem}_{name.lower()}.csv")
    return tables


def _make_cards(fits: Mapping[str, Contents], enriched: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the cards of all models."""
    cards = [_describe(fit, fits, enriched.get(name)).assign(Model=name) for name, fit in fits.items()]
    first, last = CARD_COLUMNS
    models = [model for model in MODELS if model in PUBLISHED or model in fits]
    nearest = [f"{what}_{model}" for model in models for what in ("nearest", "cosine")]
    table = concatenate(cards, ["Model", *first, *nearest, *last])
    return table.astype({f"nearest_{model}": "Int64" for model in models})  # whole numbers, also beside empty ones


def _enrich(fits: Mapping[str, Contents], sets: Mapping[str, Sequence[str]]) -> dict[str, pd.DataFrame]:
    """Return the enrichment of the sets in the most specific genes of the programs of each model; {} without sets."""
    if not sets:
        return {}
    first = next(iter(fits.values()))  # all models have the same genes
    sets = enrichment.large_sets(sets, first.genes, first.symbols)
    lists = {name: _largest(fit.W * fit.specificity, _TESTED) for name, fit in fits.items()}
    return {name: enrichment.enrich_programs(lists[name], fit.genes, fit.symbols, sets) for name, fit in fits.items()}


def _describe(fit: Contents, fits: Mapping[str, Contents], enriched: pd.DataFrame | None) -> pd.DataFrame:
    """Return the cards of one model. The nearest programs are searched in all models in `fits`."""
    k = len(fit.W)
    specific = _largest(fit.W * fit.specificity, _GENES)
    by_type, by_donor = _explained_variance(fit.usages)
    size = fit.norms**2 * (fit.W**2).sum(1)
    cards = {
        "program": np.arange(k),
        "top_genes": [", ".join(fit.symbols[genes]) for genes in _largest(fit.W, _GENES)],
        "specific_genes": [", ".join(fit.symbols[genes]) for genes in specific],
        "share_of_norm": size / fit.sq_norm,
        **_describe_types(fit.usages),
        "variance_by_type": by_type,
        "variance_by_donor": by_donor,
        "stability": fit.stability.get("cosine", np.full(k, np.nan)),
        **{column: values for model in MODELS for column, values in _find_nearest(fit, fits.get(model), model).items()},
        **_best_set(enriched, k),
    }
    return pd.DataFrame({column: np.asarray(values) for column, values in cards.items()})


def _largest(values: np.ndarray, n: int) -> list[np.ndarray]:
    """Return the genes with the n largest values above 0 of each program, from values (k, n_genes)."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :n]
    return [genes[row[genes] > 0] for genes, row in zip(order, values, strict=True)]


def _describe_types(usages: UsageSums) -> dict[str, list[str]]:
    """Return the columns `top_type` and `usage_by_type`. A text is empty if no cell has a type or uses the program."""
    k = usages.sums.shape[1]
    n_cells, sums = usages.typed.by_type()
    means, overall = sums.div(n_cells, axis=0), sums.sum() / n_cells.sum()
    top, texts = [""] * k, [""] * k
    for j in np.flatnonzero(overall > 0):  # none if no cell has a type
        ratio = (means[j] / overall[j]).sort_values(ascending=False, kind="stable")[:_TYPES]
        top[j] = means[j].idxmax()
        texts[j] = ", ".join(f"{name} ({value:.1f}×)" for name, value in ratio.items() if value > 1)
    return {"top_type": top, "usage_by_type": texts}


def _explained_variance(usages: UsageSums) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of the variance of each usage between types, and between donors within types, (k,) each."""
    usages = usages.typed if len(usages.typed.groups) else usages
    n_cells, sums = usages.by_type()
    # sums of n × mean²: over all cells as one group, over types, and over groups of type and donor
    overall = sums.sum().to_numpy() ** 2 / n_cells.sum()
    types = (sums**2).div(n_cells, axis=0).sum().to_numpy()
    parts = (usages.sums**2 / usages.groups["n_cells"].to_numpy()[:, None]).sum(0)
    squares = usages.squares.sum(0)
    total = squares - overall
    total = np.where(total > _NO_VARIANCE * squares, total, np.nan)
    by_type, by_donor = np.clip((types - overall) / total, 0, 1), np.clip((parts - types) / total, 0, 1)
    nothing = np.full(len(total), np.nan)
    return by_type if len(n_cells) > 1 else nothing, by_donor if len(usages.groups[DONOR].unique()) > 1 else nothing


def _find_nearest(fit: Contents, other: Contents | None, model: str) -> dict[str, np.ndarray]:
    """Return the columns with the most similar program of a model for each program, and with its cosine."""
    program, cosine = np.full(len(fit.W), np.nan), np.full(len(fit.W), np.nan)
    if other is not None:
        if not same_genes(other.genes, fit.genes):
            raise ValueError(f"{other.name} and {fit.name} have different genes ({len(other.genes)} and "
                             f"{len(fit.genes)}). Pass models of the same filtered cells.")  # fmt: skip
        cosines = unit_rows(fit.W) @ unit_rows(other.W).T
        if other is fit:
            np.fill_diagonal(cosines, 0)
        found = cosines.max(1) > 0
        program[found], cosine[found] = cosines.argmax(1)[found], cosines.max(1)[found]
    return {f"nearest_{model}": program, f"cosine_{model}": cosine}


def _best_set(enriched: pd.DataFrame | None, k: int) -> dict[str, Sequence[str]]:
    """Return the columns with the most enriched gene set of each program."""
    if enriched is None:
        return {"gene_set": [""] * k, "gene_set_overlap": [""] * k, "gene_set_fdr": np.full(k, np.nan)}
    best = enriched.groupby("program").head(1)
    shared = best["overlap"].astype(str) + " of " + best["size"].astype(str)
    found = best["overlap"] > 0
    return {"gene_set": best["gene_set"].where(found, ""), "gene_set_overlap": shared.where(found, ""),
            "gene_set_fdr": best["fdr"]}  # fmt: skip


def _list_sets(enriched: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the table ``gene_set_enrichment``."""
    tables = [table[table["overlap"] > 0].assign(Model=name) for name, table in enriched.items()]
    return concatenate(tables, SET_COLUMNS)
