"""Names of donors, cell types and genes, read as text."""

import logging
import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

log = logging.getLogger(__name__)

DONOR = "donor_id"
CELL_TYPE = "cell_type"
LABELS = (CELL_TYPE, DONOR)  # the labels that every embedding is scored against
WITHOUT_TYPES = (  # advice for cells without types
    "Choose another column (cell_type_key), or cluster the usages of AE-NMF and use the clusters as cell types "
    "(notebooks/README.md shows how), or train without this penalty (strength=0, and gamma=0 in model 1)."
)
NO_TYPE = " "  # replaces a missing type in arrays of strings; `is_missing` treats blank labels as missing

_ENSEMBL_VERSION = re.compile(r"^(ENS[A-Z]*[0-9]{6,})\.[0-9]+")  # ENSG00000141510.18, ENSG00000182378.14_PAR_Y


def as_text(column: pd.Series) -> pd.Series:
    """Return a column as text, (n_cells,) object, whatever its type. Missing and blank values are NaN.

    Whole numbers have no decimals: pandas turns 1 and 2 into 1.0 and 2.0 if a value is missing.
    """
    if column.dtype == object and pd.api.types.infer_dtype(column, skipna=True) != "string":
        names = np.array([_to_text(value) for value in column], dtype=object)  # 1 and True are equal, their texts not
    else:
        codes, values = pd.factorize(column)
        names = np.array([*map(_to_text, values), np.nan], dtype=object)[codes]  # code -1, a missing value, is the last
    return pd.Series(names, index=column.index, name=column.name, dtype=object)


def _to_text(value: object) -> str | float:
    """Return a value as text, or NaN if it is missing or blank."""
    if value is None or value is pd.NA or value is pd.NaT:
        return np.nan
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return np.nan
        value = int(value) if value % 1 == 0 else value
    return str(value) if str(value).strip() else np.nan


def is_missing(column: pd.Series) -> np.ndarray:
    """Return a mask of the cells whose label is missing or blank, (n_cells,) bool. The text 'NA' is a label."""
    return as_text(column).isna().to_numpy()


def read_labels(obs: pd.DataFrame, name: str, *, partly: bool = False) -> np.ndarray:
    """Return a column as text, (n_cells,) object. Missing labels are `NO_TYPE` if `partly`, or raise ValueError."""
    if name not in obs:
        columns = ", ".join(map(repr, obs)) or "no columns"
        advice = WITHOUT_TYPES if partly else "Add the column, or choose another one."
        raise ValueError(f"obs['{name}'] is needed to train this model; the cells have {columns}. {advice}")
    labels = as_text(obs[name])
    if n := int(labels.isna().sum()):
        if not partly:
            raise ValueError(f"obs['{name}'] is empty for {n} of {len(obs)} cells. Every cell needs a value.")
        log.info("obs['%s'] is empty for %d of %d cells: the penalties leave them out", name, n, len(obs))
    return labels.fillna(NO_TYPE).to_numpy(dtype=object)


def gene_symbols(var: pd.DataFrame) -> np.ndarray | None:
    """Return ``var['feature_name']`` as text, or the id of a gene without a symbol, (n_genes,); None without column."""
    if "feature_name" not in var:
        return None
    symbols = as_text(var["feature_name"])
    return symbols.where(symbols.notna(), var.index.astype(str)).to_numpy(dtype=object)


def gene_ids(names: Iterable[str]) -> pd.Index:
    """Return gene names without the versions of Ensembl ids, for matching. Names may then be repeated."""
    return pd.Index([_ENSEMBL_VERSION.sub(r"\1", str(name)) for name in names], dtype=object)
