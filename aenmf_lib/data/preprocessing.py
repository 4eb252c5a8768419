"""Filtering donors and normalizing: from raw counts to the matrix that all models train on."""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

log = logging.getLogger(__name__)

DONOR = "donor_id"
CELL_TYPE = "cell_type"
LABELS = (CELL_TYPE, DONOR)  # the labels that every embedding is scored against
NO_TYPE = " "  # replaces a missing type in arrays of strings; `is_missing` treats blank labels as missing

_TARGET_SUM = 1e4  # total count of each cell before log1p


def filter_cells(
    counts: AnnData,
    *,
    min_cells: int,
    donor_key: str = DONOR,
    cell_type_key: str = CELL_TYPE,
    keep_obs: Sequence[str] = (),
    drop_missing: bool = False,
    keep_unlabeled: bool = False,
    drop_empty: bool = False,
) -> tuple[AnnData, pd.DataFrame]:
    """Keep the donors with enough cells and the genes with counts, and normalize.

    Raises ValueError if a column, a donor, a type or all counts of a cell are missing, or no donor has enough cells.

    Parameters
    ----------
    counts, min_cells
        Raw counts, as `read_counts` returns them, and the minimum number of cells per donor.
    donor_key, cell_type_key, keep_obs
        Columns of ``obs``: donor and cell type (``donor_id`` and ``cell_type`` in the result), and others to keep.
    drop_missing, drop_empty
        Drop cells without a donor or a type, and cells without counts. Otherwise such cells raise an error.
    keep_unlabeled
        Keep cells without a type. The models train on them, and scores against the type leave them out.

    Returns
    -------
    cells : AnnData
        ``X`` CSR float32, log1p of counts per 10,000, of the genes with a count in the kept cells.
    donors : DataFrame
        One row per donor, most cells first: ``donor_id, n_cells, kept``.
    """
    obs = counts.obs
    _check_filter_arguments(counts, min_cells, [donor_key, cell_type_key, *keep_obs])
    no_donor, unlabeled = is_missing(obs[donor_key]), is_missing(obs[cell_type_key])
    no_type = unlabeled & (not keep_unlabeled)
    no_counts = np.asarray(counts.X.sum(axis=1, dtype=np.float64)).ravel() == 0
    drop, choose = "Set drop_missing=true (DROP_MISSING=true) to drop these cells", "or choose another column"
    no_type_advice = f"{drop}, set keep_unlabeled=true (KEEP_UNLABELED=true) to keep them, {choose}"
    no_counts_advice = "Set drop_empty=true (DROP_EMPTY=true) to drop these cells, or remove them from the file"
    for fault, what, dropped, advice in (
        (no_donor, f"obs[{donor_key!r}] is empty", drop_missing, f"{drop}, {choose}"),
        (no_type, f"obs[{cell_type_key!r}] is empty", drop_missing, no_type_advice),
        (no_counts, "the counts are all 0", drop_empty, no_counts_advice),
    ):
        if fault.any():
            found = f"{what} for {fault.sum()} of {len(obs)} cells (first: {obs.index[fault][0]!r})"
            if not dropped:
                raise ValueError(f"{found}. {advice}.")
            log.warning("%s. These cells are dropped.", found)

    keep = ~(no_donor | no_type | no_counts)
    donor = obs[donor_key].astype(str)
    donors = donor[keep].value_counts().rename_axis(DONOR).reset_index(name="n_cells")
    donors["kept"] = donors["n_cells"] >= min_cells
    if not donors["kept"].any():
        sizes = ", ".join(f"{name} {n}" for name, n in donors[[DONOR, "n_cells"]].head(20).itertuples(index=False))
        found = f"No donor has {min_cells} cells or more. The {len(donors)} donors have: {sizes}"
        raise ValueError(f"{found}{' …' * (len(donors) > 20)}. Choose a smaller min_cells (make all MIN_CELLS=…).")
    keep &= donor.isin(donors.loc[donors["kept"], DONOR]).to_numpy()
    donor, cell_type = donor[keep], obs[cell_type_key].astype(str).astype(object).mask(unlabeled, np.nan)[keep]
    for values, label, user in ((donor, DONOR, "models 1 and 2"), (cell_type, CELL_TYPE, "the benchmarks")):
        if len(left := values.dropna().unique()) < 2:
            log.warning("too few %s values are left (%s): %s need at least 2", label, ", ".join(left) or "none", user)
    if n := int(cell_type.isna().sum()):
        log.info("%d of the kept cells have no type", n)
    log.info("kept %d of %d cells, %d of %d donors", len(donor), len(obs), donors["kept"].sum(), len(donors))

    X = counts.X[keep]
    expressed = X.getnnz(axis=0) > 0
    columns = {CELL_TYPE: pd.Categorical(cell_type), DONOR: pd.Categorical(donor)}
    kept_obs = pd.DataFrame(columns | {key: obs[key][keep] for key in keep_obs}, index=obs.index[keep])
    var = counts.var.loc[expressed, [name for name in counts.var if name == "feature_name"]]
    return AnnData(normalize(X, expressed), obs=kept_obs, var=var), donors


def _check_filter_arguments(counts: AnnData, min_cells: int, columns: Sequence[str]) -> None:
    """Raise ValueError if there are no counts, `min_cells` is below 1, or a column of `obs` is missing."""
    if not counts.n_obs or not counts.n_vars or not counts.X.nnz:
        size = f"{counts.n_obs} cells × {counts.n_vars} genes"
        raise ValueError(f"Nothing to filter: {size} with {counts.X.nnz} counts. Pass a file that contains counts.")
    if min_cells < 1:
        raise ValueError(f"min_cells={min_cells} is too small. Set the minimum number of cells per donor to 1 or more.")
    if missing := [column for column in columns if column not in counts.obs]:
        found = f"There is no obs column {missing[0]!r}. The columns are: {', '.join(map(repr, counts.obs)) or 'none'}"
        raise ValueError(f"{found}. Choose one of them (DONOR_KEY=…, CELL_TYPE_KEY=…).")


def is_missing(column: pd.Series) -> np.ndarray:
    """Return a mask of the cells whose label is NaN or blank, (n_cells,) bool."""
    return column.isna().to_numpy() | (column.astype(str).str.strip() == "").to_numpy()


def read_labels(obs: pd.DataFrame, name: str, *, partly: bool = False) -> np.ndarray:
    """Return a column as strings, (n_cells,) object. Missing labels are `NO_TYPE` if `partly`, or raise ValueError."""
    if name not in obs:
        columns = ", ".join(map(repr, obs)) or "no columns"
        raise ValueError(f"obs['{name}'] is needed to train this model; the cells have {columns}. Add the column.")
    missing, labels = is_missing(obs[name]), np.array(obs[name].astype(str), object)
    if n := int(missing.sum()):
        if not partly:
            raise ValueError(f"obs['{name}'] is empty for {n} of {len(obs)} cells. Every cell needs a value.")
        log.info("obs['%s'] is empty for %d of %d cells: the penalties leave them out", name, n, len(obs))
        labels[missing] = NO_TYPE
    return labels


def normalize(X: csr_matrix, genes: np.ndarray | None = None) -> csr_matrix:
    """Scale each cell to 10,000 counts and take log1p. Cells without counts stay 0.

    Parameters
    ----------
    X, genes
        Counts, (n_cells, n_genes), and the genes to return (int or bool). All counts of a cell determine its scale.

    Returns
    -------
    (n_cells, n_selected) CSR float32
        A new matrix with sorted indices and no stored zeros.
    """
    X = X.astype(np.float32, copy=genes is None)
    total = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(_TARGET_SUM, total, out=np.zeros_like(total), where=total > 0)
    if genes is not None:
        X = X[:, genes]
    X.eliminate_zeros()
    np.log1p(X.data * np.repeat(scale.astype(np.float32), np.diff(X.indptr)), out=X.data)
    X.sort_indices()
    return X
