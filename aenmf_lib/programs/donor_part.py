"""Tables of the donor part of the conditional models: its genes by donor, and its share of the reconstruction."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from aenmf_lib import results
from aenmf_lib.data.labels import DONOR
from aenmf_lib.models.matching import check_programs
from aenmf_lib.programs.contents import Contents, read_contents
from aenmf_lib.programs.tables import concatenate
from aenmf_lib.results import schema
from aenmf_lib.results.schema import DONOR_GENE_COLUMNS, DONOR_SHARE_COLUMNS

__all__ = ["write_donor_tables"]

log = logging.getLogger(__name__)

_TOP = 10  # genes per donor
_GENES = 200  # genes in all: with more than 20 donors, fewer genes per donor


def write_donor_tables(
    paths: str | Path | Sequence[str | Path], out_dir: str | Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write what the donor part of the conditional models contains: ``donor_genes.csv`` and ``donor_share.csv``.

    A conditional model reconstructs a cell of donor d as ``x̂ = h W + r``, where the donor part r is ``u_d`` (model 1
    and the untied model) or ``h U_d`` (model 2), and both terms are non-negative. Donors are compared at the same
    usages, the mean h̄ over all cells: ``r_d = u_d`` or ``r_d = h̄ U_d``, the mean of r over all cells if all of them
    were of donor d. So donors with other shares of the cell types do not differ for this reason. Units are those of X,
    log1p of counts per 10,000.

    Parameters
    ----------
    paths
        One results file, or one per model. Only those of the conditional models are used.
    out_dir
        Folder to write to.

    Returns
    -------
    genes : DataFrame
        One row per model, donor and gene, for the top genes of all donors: ``Model``, ``donor_id``; ``rank`` of the
        gene in this donor, empty if it is a top gene of other donors only; ``gene`` (the id), ``symbol``; ``weight``,
        r_dg; ``difference``, the weight minus the mean weight of the other donors. The top genes of a donor, at most
        10, are those with the largest differences above 0, because the donor part also contains expression that all
        donors share. With more than 20 donors, there are fewer top genes per donor: about 200 in all.
    share : DataFrame
        One row per model and donor: ``Model``, ``donor_id``, ``n_cells``; ``share``, the share of the reconstruction
        that comes from the donor part, ``Σ_g r_dg / Σ_g (h̄ W + r_d)_g``; and ``share_common``, the part of this share
        that all donors have: r_dg is replaced by its minimum over the donors in the numerator.

        Both tables have only a header if there is no conditional model. Model 2 is left out if its file does not
        contain ``h̄ U_d``, because an earlier version wrote it, or because the cells were projected.

    Raises
    ------
    OSError, ValueError
        A file is not valid, two files are of the same model, or a table cannot be written.
    """
    parts, given = {}, {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        if (part := _read(path)) is None:
            continue
        if (name := part[0].name) in parts:
            raise ValueError(f"{given[name]} and {path} are both of {name}. Pass one file per model.")
        parts[name], given[name] = part, path
    ordered = [parts[name] for name in results.MODELS if name in parts]
    genes = concatenate([_list_genes(*part) for part in ordered], DONOR_GENE_COLUMNS)
    share = concatenate([_compute_share(*part) for part in ordered], DONOR_SHARE_COLUMNS)
    for table, name in ((genes, "donor_genes"), (share, "donor_share")):
        results.write_table(table, Path(out_dir) / f"{name}.csv")
    return genes, share


def _read(path: str | Path) -> tuple[Contents, np.ndarray, np.ndarray] | None:
    """Return a fit, its donors (n_donors,) and the donor part of each, (n_donors, n_genes); None if it has none."""
    found = results.read(path, with_cells=False)
    if schema.skip_reason(found.uns):
        return None
    name, k = schema.identify(found)
    if name not in schema.META or name == "Base_NMF":
        return None
    meta = found.uns[schema.META[name].format(k=k)]
    if name == "Untied_AE_NMF" and not ("donors" in meta and len(meta["donors"])):  # trained without a penalty
        return None
    key = (schema.DONOR_PART if name == "CAE_NMF2" else schema.VARM[name]["U"]).format(k=k)
    if key not in found.varm:
        log.warning("%s has no varm[%r], so the tables of donors leave out %s. Train the model again with this version",
                    path, key, name)  # fmt: skip
        return None
    fit = read_contents(path)
    donors = meta.get("donors", sorted(set(fit.usages.groups[DONOR])))  # a published file does not list its donors
    return fit, np.array(donors, dtype=object), check_programs(found.varm[key].T, f"{path}: varm[{key!r}]")


def _list_genes(fit: Contents, donors: np.ndarray, weights: np.ndarray) -> pd.DataFrame:
    """Return the rows of one model in the table of genes: the top genes of all donors, in each donor."""
    n_donors = len(donors)
    difference = weights - (weights.sum(0) - weights) / max(n_donors - 1, 1)
    n = min(max(_GENES // n_donors, 1), _TOP)
    rank = rankdata(-difference, method="ordinal", axis=1).astype(int)  # (n_donors, n_genes)
    rank[(rank > n) | (difference <= 0)] = 0
    shown = np.flatnonzero(rank.any(axis=0))
    table = pd.DataFrame({
        DONOR: np.repeat(donors, len(shown)),
        "rank": pd.array(rank[:, shown].ravel(), dtype="Int64"),
        "gene": np.tile(np.asarray(fit.genes, dtype=object)[shown], n_donors),
        "symbol": np.tile(fit.symbols[shown], n_donors),
        "weight": weights[:, shown].ravel(),
        "difference": difference[:, shown].ravel(),
    })  # fmt: skip
    table["rank"] = table["rank"].mask(table["rank"] == 0)
    return table.sort_values([DONOR, "rank"], kind="stable").assign(Model=fit.name)


def _compute_share(fit: Contents, donors: np.ndarray, weights: np.ndarray) -> pd.DataFrame:
    """Return the rows of one model in the table of shares."""
    n_cells = fit.usages.groups.groupby(DONOR)["n_cells"].sum()
    shared = float(fit.usages.sums.sum(0) @ fit.W.sum(1) / n_cells.sum())  # sum of h̄ W over the genes
    own, common = weights.sum(1), weights.min(0).sum()
    total = shared + own
    share, share_common = (np.divide(x, total, out=np.zeros_like(total), where=total > 0) for x in (own, common))
    n_cells = n_cells.reindex(donors, fill_value=0).to_numpy()
    columns = {DONOR: donors, "n_cells": n_cells, "share": share, "share_common": share_common}
    return pd.DataFrame(columns).assign(Model=fit.name)
