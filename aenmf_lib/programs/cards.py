"""Program cards: a table with one row per program, which describes its genes, size, use and stability."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from aenmf_lib import results
from aenmf_lib.data.labels import CELL_TYPE, DONOR
from aenmf_lib.models.base import Model, same_genes
from aenmf_lib.models.matching import unit_rows
from aenmf_lib.programs import enrichment
from aenmf_lib.programs.contents import Contents, UsageSums, read_fits
from aenmf_lib.programs.genes import list_genes
from aenmf_lib.results.schema import CARD_COLUMNS, GENE_COLUMNS, MODELS
from aenmf_lib.training.inputs import Cells

__all__ = ["program_cards", "write_program_tables"]

log = logging.getLogger(__name__)

_GENES = 10  # genes listed in a card
_TYPES = 3  # cell types listed in a card
_TESTED = 100  # genes per program that are tested for gene sets
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
    cards = _make_cards(fits, sets)
    return pd.concat([cards[name].assign(Model=name) for name in fits], ignore_index=True)[["Model", *CARD_COLUMNS]]


def write_program_tables(
    paths: str | Path | Sequence[str | Path], out_dir: str | Path, *, gene_sets: str | Path = "", n: int = 100
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write ``programs_<model>.csv`` (`gene_table`) and ``program_cards_<model>.csv`` (`program_cards`) of each model.

    Parameters
    ----------
    paths, out_dir
        One results file, or one per model, and the folder to write to. The tables of a skipped model have only a
        header.
    gene_sets, n
        GMT file, or empty for no gene sets; number of genes per program.

    Returns
    -------
    genes, cards : DataFrame
        The tables of all models, with a column ``Model``.

    Raises
    ------
    OSError, ValueError
        The errors of `program_cards`, or a file cannot be written.
    """
    sets = enrichment.read_gene_sets(gene_sets) if gene_sets else {}
    fits, skipped = read_fits(paths)
    genes = {name: list_genes(fit, n) for name, fit in fits.items()}
    cards = _make_cards(fits, sets)
    for stem, tables, columns in (("programs", genes, GENE_COLUMNS), ("program_cards", cards, CARD_COLUMNS)):
        for name in (*fits, *skipped):
            table = tables.get(name, pd.DataFrame(columns=list(columns)))
            results.write_table(table, Path(out_dir) / f"{stem}_{name.lower()}.csv")
    return tuple(
        pd.concat([tables[name].assign(Model=name) for name in fits], ignore_index=True)[["Model", *columns]]
        for tables, columns in ((genes, GENE_COLUMNS), (cards, CARD_COLUMNS))
    )


def _make_cards(fits: Mapping[str, Contents], gene_sets: Mapping[str, Sequence[str]]) -> dict[str, pd.DataFrame]:
    """Return the cards of each model, with the columns `CARD_COLUMNS`."""
    return {name: _describe(fit, fits, gene_sets)[list(CARD_COLUMNS)] for name, fit in fits.items()}


def _describe(fit: Contents, fits: Mapping[str, Contents], gene_sets: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return the cards of one model. The nearest programs are searched in all models in `fits`."""
    k, names = len(fit.W), fit.symbols if not gene_sets else enrichment.gene_names(fit.genes, fit.symbols, gene_sets)
    specific = _largest(fit.W * fit.specificity, _TESTED)
    by_type, by_donor = _explained_variance(fit.usages)
    size = fit.norms**2 * (fit.W**2).sum(1)
    cards = {
        "program": np.arange(k),
        "top_genes": [", ".join(fit.symbols[genes]) for genes in _largest(fit.W, _GENES)],
        "specific_genes": [", ".join(fit.symbols[genes[:_GENES]]) for genes in specific],
        "share_of_norm": size / fit.sq_norm,
        **_describe_types(fit.usages),
        "variance_by_type": by_type,
        "variance_by_donor": by_donor,
        "stability": fit.stability.get("cosine", np.full(k, np.nan)),
        **{column: values for model in MODELS for column, values in _find_nearest(fit, fits.get(model), model).items()},
        **_find_gene_sets([names[genes] for genes in specific], names, gene_sets),
    }
    return pd.DataFrame({column: np.asarray(values) for column, values in cards.items()})


def _largest(values: np.ndarray, n: int) -> list[np.ndarray]:
    """Return the genes with the n largest values above 0 of each program, from values (k, n_genes)."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :n]
    return [genes[row[genes] > 0] for genes, row in zip(order, values, strict=True)]


def _describe_types(usages: UsageSums) -> dict[str, list[str]]:
    """Return the columns `top_type` and `usage_by_type`. A text is empty if no cell has a type or uses the program."""
    typed = (usages.groups[CELL_TYPE] != "").to_numpy()
    k = usages.sums.shape[1]
    if not typed.any():
        return {"top_type": [""] * k, "usage_by_type": [""] * k}
    n_cells, sums = _by_type(usages, typed)
    means, overall = sums.div(n_cells, axis=0), sums.sum() / n_cells.sum()
    texts = []
    for j in range(k):
        ratio = (means[j] / overall[j]).sort_values(ascending=False, kind="stable")[:_TYPES] if overall[j] > 0 else ()
        texts.append([f"{name} ({value:.1f}×)" for name, value in dict(ratio).items() if value > 1])
    top = [means[j].idxmax() if overall[j] > 0 else "" for j in range(k)]
    return {"top_type": top, "usage_by_type": [", ".join(text) for text in texts]}


def _by_type(usages: UsageSums, chosen: np.ndarray) -> tuple[pd.Series, pd.DataFrame]:
    """Return the number of cells (n_types,) and the sums of usages (n_types, k) of each type in the chosen groups."""
    types = usages.groups.loc[chosen, CELL_TYPE].to_numpy()
    n_cells = usages.groups.loc[chosen, "n_cells"].groupby(types).sum()
    return n_cells, pd.DataFrame(usages.sums[chosen]).groupby(types).sum()


def _explained_variance(usages: UsageSums) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of the variance of each usage between types, and between donors within types, (k,) each."""
    typed = (usages.groups[CELL_TYPE] != "").to_numpy()
    typed = typed if typed.any() else np.ones(len(typed), dtype=bool)
    groups = usages.groups[typed]
    n_cells, sums = _by_type(usages, typed)
    # sums of n × mean²: over all cells as one group, over types, and over groups of type and donor
    overall = sums.sum().to_numpy() ** 2 / n_cells.sum()
    types = (sums**2).div(n_cells, axis=0).sum().to_numpy()
    parts = (usages.sums[typed] ** 2 / groups["n_cells"].to_numpy()[:, None]).sum(0)
    squares = usages.squares[typed].sum(0)
    total = squares - overall
    total = np.where(total > _NO_VARIANCE * squares, total, np.nan)
    by_type, by_donor = np.clip((types - overall) / total, 0, 1), np.clip((parts - types) / total, 0, 1)
    nothing = np.full(len(total), np.nan)
    return by_type if len(n_cells) > 1 else nothing, by_donor if len(groups[DONOR].unique()) > 1 else nothing


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
    return {f"nearest_{model}": pd.array(program, dtype="Int64"), f"cosine_{model}": cosine}


def _find_gene_sets(
    lists: Sequence[np.ndarray], names: np.ndarray, gene_sets: Mapping[str, Sequence[str]]
) -> dict[str, Sequence]:
    """Return the columns with the most enriched gene set of each list of genes."""
    k = len(lists)
    if not gene_sets:
        return {"gene_set": [""] * k, "gene_set_overlap": [""] * k, "gene_set_fdr": np.full(k, np.nan)}
    best = enrichment.enrich(lists, names, gene_sets).groupby("program").head(1)
    best = best.assign(shared=best["overlap"].astype(str) + " of " + best["size"].astype(str))
    found = best["overlap"] > 0
    return {"gene_set": best["gene_set"].where(found, ""), "gene_set_overlap": best["shared"].where(found, ""),
            "gene_set_fdr": best["fdr"]}  # fmt: skip
