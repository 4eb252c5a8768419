"""Judging whether values are raw counts: what is wrong with them, and values that need to be rounded."""

import logging

import numpy as np
from scipy.sparse import csr_matrix

log = logging.getLogger(__name__)

_NEAR = 1e-6  # values that are not farther from a whole number, relative to it, are rounded
LARGEST = 2.0**31  # counts are below; negative integers that are read as unsigned may not be
EXACT = 2**24  # float32 represents all whole numbers up to this one
_LOG_MAX = 20.0  # log1p of counts per 10,000 is below this value
_MIN_CELLS = 20  # cells with counts that are needed to detect scaling by their totals and by the values of 1
_MIN_GENES = 20  # with at least this many expressed genes, a cell of raw counts usually contains a value of 1
_MANY = 20  # without a value above 1, counts are binarized if at least this many such values are expected


def clean(X: csr_matrix, *, fractional: bool = False) -> tuple[csr_matrix, int, str | None]:
    """Return counts in float32, how many were rounded, and what is wrong with the values, or None."""
    values = X.data
    # Values are usually valid, so this check reads them as few times as possible. Comparisons with NaN are False.
    lowest, largest = (values.min(), values.max()) if values.size else (0, 0)
    if not (lowest >= 0 and largest < LARGEST):
        return X, 0, _describe_range(values)
    n_rounded = 0
    if not (fractional or all(np.array_equal(part, np.trunc(part)) for part in _parts(values))):
        whole = np.rint(values)
        if n := int(_is_fraction(values).sum()):
            return X, 0, _describe_fractions(values, n)
        n_rounded, values = int((values != whole).sum()), whole
    if largest > EXACT:
        log.warning("counts above %d, such as %d, are rounded to 7 digits", EXACT, largest)
    return csr_matrix((values.astype(np.float32, copy=False), X.indices, X.indptr), X.shape), n_rounded, None


def _parts(values: np.ndarray) -> list[np.ndarray]:
    """Return views of at most 2**16 values, which stay in the cache of the processor while they are checked."""
    return [values[lo : lo + 2**16] for lo in range(0, len(values), 2**16)]


def _describe_range(values: np.ndarray) -> str:
    """Return a description of values below 0, above all counts, NaN or infinite."""
    if n := int((~np.isfinite(values)).sum()):
        return f"contains {n} values that are NaN or infinite"
    if n := int((values < 0).sum()):
        return f"contains {n} negative values (smallest {values.min():.4g}), as scaled data do"
    return (
        f"contains {int((values >= LARGEST).sum())} values that are too large for counts (largest {values.max():.4g})"
    )


def _is_fraction(values: np.ndarray) -> np.ndarray:
    """Return which values are not whole numbers within their precision, (n,) bool."""
    return np.abs(values - np.rint(values)) > _NEAR * np.maximum(np.abs(values), 1)


def _describe_fractions(values: np.ndarray, n: int) -> str:
    """Return a description of values of which `n` are not whole numbers."""
    first, largest = values[_is_fraction(values)][0], values.max()
    normalized = "log-normalized" if largest < _LOG_MAX else "normalized"
    kind = "corrected" if n < len(values) / 2 else normalized
    found = f"contains {n} values that are not integers (first {first:.8g}, largest {largest:.8g})"
    return f"{found} and seems to be {kind}"


def describe_non_counts(values: np.ndarray, *, fractional: bool = False) -> str | None:
    """Return a description of the values that cannot be counts, or None if all values can be counts."""
    row = csr_matrix((values, np.zeros(len(values), np.int32), [0, len(values)]), (1, 1))
    return clean(row, fractional=fractional)[2]


def judge(sample: csr_matrix, *, fractional: bool = False) -> tuple[csr_matrix, str, str]:
    """Return the sample as counts, its kind ('counts', 'fractional', 'empty' or ''), and why it is not counts."""
    X, _, fault = clean(sample)
    accepted = "fractional" if fractional else ""
    if fault is None and not X.data.any():
        return X, "empty", "contains only zeros"
    if fault is None:
        scaled = _describe_scaling(X)
        return X, "counts" if scaled is None else accepted, scaled or ""
    values, _, out_of_range = clean(sample, fractional=True)
    if out_of_range is not None:
        return sample, "", fault
    logs = values.copy()
    with np.errstate(over="ignore"):
        logs.data = np.expm1(logs.data.astype(np.float64))
    totals = _totals(logs)
    if len(totals) >= _MIN_CELLS and np.isfinite(totals).all() and np.ptp(totals) < 1e-2 * totals.mean():
        found = fault.partition(" and seems")[0]
        return (
            values,
            "",
            f"{found} and seems to be log-normalized: expm1 of the values adds up to {totals.mean():.6g} in each cell",
        )
    return values, accepted, fault


def _totals(X: csr_matrix) -> np.ndarray:
    """Return the totals of the cells that have values, (at most n_cells,)."""
    totals = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel()
    return totals[totals > 0]


def _describe_scaling(X: csr_matrix) -> str | None:
    """Return why whole numbers are not counts: binarized, or scaled and rounded. None if they can be counts.

    - Binarized: no value is above 1, though at least `_MANY` would be if each gene followed the Poisson distribution
      (the least variable of the distributions of counts) with its share of expressing cells.
    - Scaled and rounded: the totals of the cells are within 5 %, but few are equal (those of downsampled counts are);
      or almost no cell has a value of 1, though the cells express many genes.
    """
    X = X.copy()
    X.eliminate_zeros()
    n_cells, totals = X.shape[0], _totals(X)
    if X.data.max() == 1:
        share = np.minimum(X.getnnz(axis=0) / n_cells, 1 - 0.5 / n_cells)
        mean = -np.log1p(-share)
        expected = n_cells * float((1 - np.exp(-mean) * (1 + mean)).sum())
        if expected >= _MANY:
            found = "contains only 0 and 1 (binarized), though at least"
            return f"{found} {expected:,.0f} values of {X.nnz:,} would be 2 or more in counts"
        return None
    if len(totals) < _MIN_CELLS:
        return None
    same = np.unique(totals, return_counts=True)[1].max() / len(totals)
    if same < 0.5 and np.ptp(totals) < 0.05 * totals.mean():
        found = f"contains whole numbers that add up to nearly the same total in each cell ({totals.min():.6g} to"
        return f"{found} {totals.max():.6g}), as rounded counts per million do"
    n_genes = np.diff(X.indptr)[np.diff(X.indptr) > 0]
    cells = np.searchsorted(X.indptr, np.flatnonzero(X.data == 1), side="right")
    with_ones = np.count_nonzero(np.diff(cells, prepend=0))
    if np.median(n_genes) >= _MIN_GENES and with_ones < 0.05 * len(totals):
        found = f"contains the value 1 in {with_ones} of {len(totals)} cells (smallest value {X.data.min():.4g})"
        return f"{found}, as scaled and rounded counts do"
    return None
