"""Gene-set enrichment of programs: the gene sets of a GMT file, and a hypergeometric test."""

import gzip
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.stats import false_discovery_control, hypergeom

from aenmf_lib.data.labels import gene_ids

log = logging.getLogger(__name__)

_EXPECTED = "Expected a GMT file: one gene set per line, 'name<tab>description<tab>gene<tab>gene…'."
SIGNIFICANT = 0.05  # sets with a smaller false discovery rate are listed
MIN_SIZE = 5  # a set needs at least this number of genes among the genes of the fit


def read_gene_sets(path: str | Path) -> dict[str, list[str]]:
    """Return the gene sets of a GMT file by name: one set per line, ``name, description, gene, gene …``, tab-separated.

    The file may be compressed with gzip. Each gene is listed once per set, and empty sets are left out. Raises OSError
    or ValueError if the file cannot be read, contains no set, or contains two different sets with the same name.
    """
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8-sig")
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a text file ({error}). {_EXPECTED}") from error
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror}). Pass the path of a GMT file.") from None
    sets, lines = {}, {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, *rest = [entry.strip() for entry in line.split("\t")]
        if not name or not rest:
            raise ValueError(f"{path}: line {number} has no {'tab' if name else 'name'}: {line[:60]!r}. {_EXPECTED}")
        genes = list(dict.fromkeys(filter(None, rest[1:])))
        if name in sets and set(sets[name]) != set(genes):
            raise ValueError(f"{path}: lines {lines[name]} and {number} are different sets with the same name, "
                             f"{name!r}. Rename one of them.")  # fmt: skip
        if genes and name not in sets:
            sets[name], lines[name] = genes, number
    if not sets:
        raise ValueError(f"{path} contains no gene set. {_EXPECTED}")
    return sets


def large_sets(
    gene_sets: Mapping[str, Sequence[str]], genes: pd.Index, symbols: np.ndarray
) -> Mapping[str, Sequence[str]]:
    """Return the sets with at least `MIN_SIZE` genes of the fit, and report the others; all sets if none is large."""
    background = set(_gene_names(genes, symbols, gene_sets))
    large = {name: members for name, members in gene_sets.items() if len(background.intersection(members)) >= MIN_SIZE}
    if not large:
        return gene_sets  # `enrich` raises the error
    if small := [name for name in gene_sets if name not in large]:
        log.info("%d of %d gene sets not tested, because fewer than %d of their genes are genes of the fit: %s",
                 len(small), len(gene_sets), MIN_SIZE, ", ".join(small[:3]) + ", …" * (len(small) > 3))  # fmt: skip
    return large


def enrich(
    lists: Sequence[Sequence[str]], background: Sequence[str], gene_sets: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Test whether each list of genes contains more genes of each set than a random list of the same length.

    The test is the one-sided hypergeometric test. Genes of lists and sets that are not in the background are ignored,
    and repeated names count once. Sets with fewer than `MIN_SIZE` genes in the background are not tested. The false
    discovery rate (Benjamini and Hochberg 1995) covers all pairs of a list and a tested set, also pairs without a
    common gene.

    Returns
    -------
    DataFrame
        One row per list and tested set, sorted by program and p: ``program`` (number of the list, from 0),
        ``gene_set``, ``overlap`` (number of common genes), ``size`` (genes of the set in the background), ``p``,
        ``fdr``.

    Raises
    ------
    ValueError
        No set has enough genes in the background.
    """
    universe = pd.Index(dict.fromkeys(background))
    members = _membership(gene_sets.values(), universe)
    sizes = np.diff(members.indptr)
    names = np.array(list(gene_sets), dtype=object)
    if not sizes.any():
        examples = [", ".join(map(repr, list(values)[:3])) for values in (next(iter(gene_sets.values())), universe)]
        raise ValueError(f"None of the genes of {len(names):,} gene sets is a gene of the fit. The sets contain, for "
                         f"example, {examples[0]}; the genes of the fit are {examples[1]} … Use gene sets with the "
                         "same kind of names (symbols or ids) and of the same species.")  # fmt: skip
    tested = np.flatnonzero(sizes >= MIN_SIZE)
    if not len(tested):
        raise ValueError(f"The largest of {len(names):,} gene sets has {sizes.max()} genes of the fit. Expected at "
                         f"least {MIN_SIZE}. Use larger sets.")  # fmt: skip
    chosen = _membership(lists, universe)
    overlap = (chosen @ members[tested].T).toarray().astype(int)  # (n_lists, n_tested)
    cases = np.stack(np.broadcast_arrays(overlap, sizes[tested], np.diff(chosen.indptr)[:, None])).reshape(3, -1)
    shape = tuple(cases.max(axis=1) + 1)
    few, at = np.unique(np.ravel_multi_index(cases, shape), return_inverse=True)  # many tests have the same numbers
    overlaps, set_sizes, lengths = np.unravel_index(few, shape)
    p = np.minimum(hypergeom.sf(overlaps - 1, len(universe), set_sizes, lengths), 1)[at]
    table = pd.DataFrame(
        {
            "program": np.repeat(np.arange(len(lists)), len(tested)),
            "gene_set": np.tile(names[tested], len(lists)),
            "overlap": overlap.ravel(),
            "size": np.tile(sizes[tested], len(lists)),
            "p": p,
            "fdr": false_discovery_control(p),
        }
    )
    return table.sort_values(["program", "p"], kind="stable", ignore_index=True)


def enrich_programs(
    lists: Sequence[np.ndarray], genes: pd.Index, symbols: np.ndarray, gene_sets: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Test the gene sets for lists of positions of genes, by symbols or by ids, whichever match more genes of the sets.

    Returns the rows of `enrich` with a false discovery rate below .05, and the first row of each list, with a column
    ``shared_genes``: the symbols of the common genes in the order of the list.
    """
    names = _gene_names(genes, symbols, gene_sets)
    table = enrich([names[positions] for positions in lists], names, gene_sets)
    table = table[(table["fdr"] < SIGNIFICANT) | ~table.duplicated("program")].reset_index(drop=True)
    members = {name: set(gene_sets[name]) for name in table["gene_set"].unique()}
    shared = [
        ", ".join(dict.fromkeys(symbols[gene] for gene in lists[program] if names[gene] in members[gene_set]))
        for program, gene_set in zip(table["program"], table["gene_set"], strict=True)
    ]
    return table.assign(shared_genes=shared)


def _gene_names(genes: pd.Index, symbols: np.ndarray, gene_sets: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Return the symbols or the ids without version, (n_genes,), whichever match more genes of the sets."""
    wanted = {gene for members in gene_sets.values() for gene in members}
    ids = gene_ids(genes).to_numpy(dtype=object)
    return max((symbols, ids), key=lambda names: len(wanted.intersection(names)))


def _membership(sets, universe: pd.Index) -> csr_matrix:
    """Return the membership of the genes in the sets, (n_sets, n_genes) of 0 and 1."""
    rows = [np.unique(found[found >= 0]) for found in (universe.get_indexer(list(genes)) for genes in sets)]
    indptr = np.cumsum([0, *map(len, rows)])
    return csr_matrix(
        (np.ones(indptr[-1]), np.concatenate([*rows, []]).astype(int), indptr), (len(rows), len(universe))
    )
