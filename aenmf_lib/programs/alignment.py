"""Alignment of the genes of new cells with the genes of a model, by id, id without version, or symbol."""

import logging
import numbers
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from aenmf_lib.data.labels import as_text, gene_ids
from aenmf_lib.data.preprocessing import find_gene_names

log = logging.getLogger(__name__)

_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "feature_id")  # common var columns with gene ids
LEAST, _ENOUGH = 0.5, 0.8  # a median coverage of the programs below the first is an error, below the second a warning
_WORST = 3  # number of programs with the lowest coverage that a message names


@dataclass(frozen=True)
class Alignment:
    """The gene of a model that each gene of new cells corresponds to, and the coverage of the programs."""

    target: np.ndarray  # (n_genes_of_file,) int, index of the gene in the model, or -1
    found: np.ndarray  # (n_genes_of_model,) bool, whether the cells have the gene
    names: str  # the columns that were matched, such as "var_names = genes_"
    n_ambiguous: int  # genes of the model that are in the file but share their name with another gene of the model
    coverage: np.ndarray  # (k,) share of the weight of each program that is in the found genes; 1 for empty programs

    @property
    def complete(self) -> bool:
        """Whether the cells have all genes of the model."""
        return bool(self.found.all())

    def select(self, X: csr_matrix) -> csr_matrix:
        """Return log-normalized cells X (n_cells, n_genes_of_file) with the genes of the model, (n_cells, n_genes).

        A gene that is not found is 0. If several genes of the file match one gene of the model, their counts are added.
        """
        matched = np.flatnonzero(self.target >= 0)
        repeated = np.isin(self.target[matched], np.flatnonzero(np.bincount(self.target[matched]) > 1))
        selected = self._spread(X, matched[~repeated])
        if repeated.any():
            counts = X.copy()
            counts.data = np.expm1(counts.data)
            selected = selected + self._spread(counts, matched[repeated]).log1p()
        selected.sort_indices()
        return selected

    def _spread(self, X: csr_matrix, columns: np.ndarray) -> csr_matrix:
        """Return the sum of the given columns of X for each gene of the model."""
        ones, shape = np.ones(len(columns), X.dtype), (X.shape[1], len(self.found))
        return X @ csr_matrix((ones, (columns, self.target[columns])), shape)

    def report(self) -> dict[str, str | int | np.ndarray]:
        """Return the entries about the genes in the provenance of projected cells."""
        return {
            "matched_by": self.names,
            "n_genes_found": int(self.found.sum()),
            "n_genes_model": len(self.found),
            "n_genes_file": len(self.target),
            "n_genes_ambiguous": self.n_ambiguous,
            "coverage": self.coverage,
        }


def align_genes(model, var: pd.DataFrame, *, gene_name_key: str = "", min_coverage: float = LEAST) -> Alignment:
    """Match the genes of a model with the genes of new cells, by the pair of columns that matches the most genes.

    The ids of the model, and its symbols if they are known, are compared with ``var_names`` of the cells, their symbols
    and the common columns of ids (``gene_ids``, ``gene_id``, ``ensembl_id``, ``feature_id``). Ensembl ids are also
    compared without their versions. Upper and lower case differ: ``Cd3e`` of a mouse does not match ``CD3E``. If
    several genes of the cells match one gene of the model, their counts are added. A name that several genes of the
    model share is not matched.

    `var` describes the genes of the new cells and has unique names. With `gene_name_key`, this column of `var` is
    compared instead of the common columns. The coverage of a program is the share of ``Σ_g w_g e_g`` that the found
    genes have, where w is the program in W and e the same row of the encoder. Without gene weights, it is the share of
    ‖w‖². If the missing genes are set to 0, a cell that expresses only this program keeps this share of its usage.

    Raises ValueError if `min_coverage` is not a number from 0 to 1, all programs are 0, there is no column
    `gene_name_key`, or the median coverage of the programs is 0 or below `min_coverage`.
    """
    if not isinstance(min_coverage, numbers.Real) or not 0 <= min_coverage <= 1:
        raise ValueError(f"min_coverage={min_coverage!r} is not valid. Choose a number from 0 to 1.")
    if not model.W_.any():
        raise ValueError(f"All programs of {model.name} are 0, so cells have no usages. Train the model again, with "
                         "smaller penalties.")  # fmt: skip
    pairs = _pairs(model, _file_names(var, gene_name_key))
    label, ours, theirs = max(pairs, key=lambda pair: _n_shared(*pair[1:]))  # the first of the best
    unique = ~ours.duplicated(keep=False) & (ours != "")
    at = ours[unique].get_indexer(theirs)
    target = np.where(at >= 0, np.flatnonzero(unique)[at] if unique.any() else -1, -1)
    found = np.zeros(len(ours), dtype=bool)
    found[target[target >= 0]] = True
    weight = model.W_.astype(np.float64) * getattr(model, "encoder_", model.W_)  # (k, n_genes)
    total = weight.sum(axis=1)
    coverage = np.divide(weight[:, found].sum(axis=1), total, out=np.ones_like(total), where=total > 0)
    coverage = np.minimum(coverage, 1)  # without the rounding error of the sums
    aligned = Alignment(target, found, label, int(np.isin(ours[~unique], theirs).sum()), coverage)
    _report(aligned, model.name, total > 0)
    median = np.median(coverage[total > 0])
    if median < min_coverage or not coverage[total > 0].any():
        least = f"at least {min_coverage:.0%}" if min_coverage else "more"
        raise ValueError(f"The {found.sum():,} genes that {model.name} and the cells share ({label}) have {median:.0%} "
                         f"of the weight of its programs (median); {least} is needed. "
                         f"{_advice(pairs, int(found.sum()))}")  # fmt: skip
    return aligned


def _file_names(var: pd.DataFrame, gene_name_key: str) -> dict[str, pd.Index]:
    """Return the names of the genes of a file: its index, and either its ids and symbols or the requested column."""
    names = {"var_names": pd.Index(var.index.astype(str), dtype=object)}
    for key in _ID_COLUMNS:
        if key in var and not gene_name_key:
            names[f"var[{key!r}]"] = pd.Index(as_text(var[key]).fillna("").to_numpy(), dtype=object)
    key, symbols = find_gene_names(var, gene_name_key)
    if key:
        names[f"var[{key!r}]"] = pd.Index(symbols.to_numpy(), dtype=object)
    return names


def _pairs(model, theirs: dict[str, pd.Index]) -> list[tuple[str, pd.Index, pd.Index]]:
    """Return each way to match names, ids first: its description, the names of the model, and those of the file."""
    ours = {"genes_": pd.Index(model.genes_.astype(str), dtype=object)}
    if model.symbols_ is not None:
        ours["symbols_"] = pd.Index(np.asarray(model.symbols_), dtype=object)
    edits = {"": lambda names: names, ", without versions": gene_ids}
    return [
        (f"{file} = {own}{note}", edit(ours[own]), edit(theirs[file]))
        for own, file, (note, edit) in product(ours, theirs, edits.items())
    ]


def _n_shared(ours: pd.Index, theirs: pd.Index) -> int:
    """Return the number of genes of the model whose name is unique in the model and occurs in the file."""
    return int((ours.isin(theirs) & ~ours.duplicated(keep=False) & (ours != "")).sum())


def _report(aligned: Alignment, model: str, used: np.ndarray) -> None:
    """Log the overlap of the genes, as a warning if it is low. `used`, (k,) bool, marks programs that are not empty."""
    n, total, coverage = int(aligned.found.sum()), len(aligned.found), aligned.coverage
    if aligned.n_ambiguous:
        log.warning("%d genes of %s are not matched, because they share their name with another gene of the model",
                    aligned.n_ambiguous, model)  # fmt: skip
    if aligned.complete:
        log.info("all %d genes of %s are found (%s)", total, model, aligned.names)
        return
    median, worst = np.median(coverage[used]), np.flatnonzero(used)[np.argsort(coverage[used], kind="stable")]
    log.log(
        logging.WARNING if median < _ENOUGH else logging.INFO,
        "%d of the %d genes of %s are among the %d genes of the cells (%s). They have %.0f %% of the weight of its "
        "programs (median; lowest: %s)",
        *(n, total, model, len(aligned.target), aligned.names, 100 * median),
        ", ".join(f"program {i} {coverage[i]:.0%}" for i in worst[:_WORST]),
    )


def _advice(pairs: list, n_found: int) -> str:
    """Return the advice if too few genes are found: rename to orthologs, use more genes, or name another column."""
    folded = max(_n_shared(*(names.str.upper() for names in pair[1:])) for pair in pairs)
    if folded > 2 * n_found:
        return (
            f"{folded:,} genes match if upper and lower case are ignored, so the cells may be of another species. "
            "Rename the genes to their orthologs in the species of the model."
        )
    ours, theirs = pairs[0][1:]
    if n_found > len(theirs) / 2:
        return "Most genes of the cells are found. Use a file with more genes, or lower min_coverage (in Python)."
    examples = f"The model has names such as {ours[0]!r}, and the cells have names such as {theirs[0]!r}"
    return f"{examples}. Set gene_name_key (GENE_NAME_KEY=…) to the var column that contains the ids or symbols."
