"""Tests for programs whose usage differs between two groups of donors. The samples are donors, not cells."""

import logging
import numbers
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from aenmf_lib.data.labels import CELL_TYPE, DONOR, as_text

__all__ = ["differential_usage"]

log = logging.getLogger(__name__)

_FLOOR = 0.05  # added to the means before the logarithm, relative to the mean usage of the program
_SHOWN = 10  # maximum number of values in an error message
_RESULTS = ["effect", "ci_low", "ci_high", "statistic", "p_value"]


def differential_usage(
    H: Mapping[str, np.ndarray] | np.ndarray,
    obs: pd.DataFrame,
    by: str,
    *,
    groups: Sequence[str] = (),
    min_cells: int = 10,
    min_donors: int = 2,
) -> pd.DataFrame:
    """Compare the usage of each program between two groups of donors, within each cell type.

    The cells of a donor are not independent, so a test that treats cells as samples finds differences where there are
    none. Here the usages are averaged over the cells of each donor, type and group. A t-test compares these means m on
    the scale log2(m + c), where c is 5 % of the mean of m over all donors, types and groups with enough cells. If most
    donors have enough cells (`min_cells` of a type) in both groups, for example before and after a treatment, the test
    is paired, and donors with enough cells in one group only are left out. Otherwise, donors with enough cells in both
    groups are left out, and the test is the two-sample t-test with equal variances, because Welch's test finds fewer
    differences with two to four donors per group. If this would leave too few donors in a group, the test is paired,
    too. Trust the unpaired test less if the usage varies more between the donors of the smaller group.

    If each donor is in one group only, conditional models remove the differences between the groups together with those
    between donors. In this case, use the usages of an unconditional model.

    Parameters
    ----------
    H : {model: (n_cells, k)} or (n_cells, k)
        Usages by model, of the cells in `obs`. A single array is treated as a model with the name ``"H"``.
    obs
        Table of the cells with the columns ``donor_id``, ``cell_type`` and `by`. Cells without a type or group are
        left out.
    by
        Column of `obs` with the groups.
    groups
        The two groups to compare; the first is the reference. By default, the two values of the column: in the order
        of the categories if the column is an ordered categorical, otherwise in alphabetical order.
    min_cells
        Donors with fewer cells of a type in a group are left out of the tests of this type and group.
    min_donors
        Smallest number of donors per group, or of pairs in a paired design; at least 2.

    Returns
    -------
    DataFrame
        One row per model, program and type:

        - ``Model``, ``program`` (from 0), ``cell_type``, ``group_a`` (the reference), ``group_b``
        - ``n_donors_a``, ``n_donors_b``: numbers of donors with enough cells; ``n_pairs``: number of pairs, 0 if the
          design is unpaired; ``design``: ``paired`` or ``unpaired``
        - ``mean_a``, ``mean_b``: mean usage of the tested donors, each donor with the same weight
        - ``effect``: difference b - a of the means on the log2 scale, so 1 means that the usage about doubles;
          ``ci_low``, ``ci_high``: its 95 % confidence interval
        - ``statistic`` (t), ``p_value``; ``fdr``: Benjamini-Hochberg false discovery rate over all tests of a model
        - ``reason``: why a test was not done (its results are then NaN), or ''

    Raises
    ------
    ValueError
        A column is missing; `by` does not have two groups, or `groups` does not name two of its values; no type has
        cells of both groups; a cell has no donor; a group has too few donors; the usages do not fit `obs` or are not
        valid; or a minimum is not a whole number or is too small.

    References
    ----------
    Squair et al. (2021), "Confronting false discoveries in single-cell differential expression",
    doi:10.1038/s41467-021-25960-2. Benjamini and Hochberg (1995), doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    for name, value, least in (("min_cells", min_cells, 1), ("min_donors", min_donors, 2)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
            raise ValueError(f"{name}={value!r} is not valid. Choose a whole number of at least {least}.")
    H = H if isinstance(H, Mapping) else {"H": H}
    if not H:
        raise ValueError("H contains no model. Pass the usages of at least one, such as {'AE_NMF': usages}.")
    group, (a, b) = _read_groups(obs, by, groups)
    units, unit = _find_units(obs, group, (a, b))
    paired, donors = _choose_design(units, (a, b), by, min_cells, min_donors)
    comparisons = [
        _compare_donors(name, rows[rows[DONOR].isin(donors)], (a, b), paired, min_cells, min_donors)
        for name, rows in units.groupby(CELL_TYPE, sort=True)
    ]
    tables = []
    for model, usages in H.items():
        means = _average(usages, unit, units["n_cells"].to_numpy(), model)  # (n_units, k)
        typical = means[units["n_cells"] >= min_cells].mean(axis=0)  # (k,)
        logs = np.log2(means + _FLOOR * np.where(typical > 0, typical, 1))
        table = pd.concat([_test(means, logs, *each, paired) for each in comparisons])
        table = table.sort_values("program", kind="stable", ignore_index=True)
        tested = table["p_value"].notna()
        table.loc[tested, "fdr"] = stats.false_discovery_control(table.loc[tested, "p_value"]) if tested.any() else []
        tables.append(table.assign(Model=model, group_a=a, group_b=b, design="paired" if paired else "unpaired"))
        log.info(
            "%s: %d of %d tests done, %d with FDR < .05", model, tested.sum(), len(table), (table["fdr"] < 0.05).sum()
        )
    columns = ["Model", "program", CELL_TYPE, "group_a", "group_b", "n_donors_a", "n_donors_b", "n_pairs", "design",
               "mean_a", "mean_b", *_RESULTS, "fdr", "reason"]  # fmt: skip
    return pd.concat(tables, ignore_index=True)[columns]


def _read_groups(obs: pd.DataFrame, by: str, groups: Sequence[str]) -> tuple[pd.Series, tuple[str, str]]:
    """Return the group of each cell as text, (n_cells,), and the two groups, the reference first."""
    for column in (by, DONOR, CELL_TYPE):
        if column not in obs:
            columns = ", ".join(map(repr, obs.columns[:_SHOWN])) or "no columns"
            two = ", ".join(repr(name) for name in obs if obs[name].nunique() == 2) or "none"
            raise ValueError(f"obs has no column {column!r}; it has {columns}. Columns with two values: {two}. Choose "
                             "another column, or add this one to obs.")  # fmt: skip
    group = as_text(obs[by])
    donors = as_text(obs[DONOR]).groupby(group.to_numpy()).nunique()  # group -> number of donors
    names = sorted(donors.index, key=lambda name: (name.casefold(), name))
    if isinstance(obs[by].dtype, pd.CategoricalDtype) and obs[by].cat.ordered:
        names = [name for name in map(str, obs[by].cat.categories) if name in donors.index]
    if chosen := [str(name) for name in ([groups] if isinstance(groups, str) else groups)]:
        unknown = [name for name in chosen if name not in names]
        if unknown or len(chosen) != 2 or chosen[0] == chosen[1]:
            found = f"groups={chosen} are not two different values of obs[{by!r}]"
            raise ValueError(f"{found}. Choose two of {_list(names, donors)}; the first is the reference.")
        names = chosen
    if len(names) != 2:
        numbers = pd.api.types.is_numeric_dtype(obs[by].dtype) and len(names) > _SHOWN
        advice = f"Choose two, such as groups=[{', '.join(map(repr, names[:2]))}]" if len(names) > 2 else ""
        advice = "Cut the numbers into two groups first, for example with pandas.cut" if numbers else advice
        found = f"obs[{by!r}] has {len(names)} groups instead of two: {_list(names, donors) or 'no cell has a value'}"
        raise ValueError(f"{found}. {advice or 'Choose a column with two groups of donors'}.")
    if n := int((~group.isin(names)).sum()):
        log.warning("%d of %d cells are left out: obs[%r] is neither %r nor %r", n, len(obs), by, *names)
    return group, (names[0], names[1])


def _list(names: Sequence[str], donors: pd.Series) -> str:
    """Return the names of the groups with their numbers of donors, as text."""
    text = ", ".join(f"{name!r} ({donors[name]} donors)" for name in names[:_SHOWN])
    return text + f", … ({len(names)} in all)" * (len(names) > _SHOWN)


def _find_units(obs: pd.DataFrame, group: pd.Series, names: Sequence[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """Return one row per type, group and donor with ``n_cells``, and the row of each cell or -1, (n_cells,)."""
    labels = pd.DataFrame({CELL_TYPE: as_text(obs[CELL_TYPE]), "group": group, DONOR: as_text(obs[DONOR])})
    if n := int(labels[DONOR].isna().sum()):
        raise ValueError(f"obs[{DONOR!r}] is empty for {n} of {len(obs)} cells. Every cell needs a donor: fill the "
                         "column, or leave out these cells.")  # fmt: skip
    used = (labels[CELL_TYPE].notna() & group.isin(names)).to_numpy()
    if not used.any():
        raise ValueError(f"None of the {len(obs)} cells has a type and one of the groups {names}. Fill the column "
                         f"{CELL_TYPE!r} of obs, or choose other groups.")  # fmt: skip
    grouped = labels[used].groupby([CELL_TYPE, "group", DONOR], sort=True)
    of_cell = np.full(len(obs), -1)
    of_cell[used] = grouped.ngroup()
    return grouped.size().rename("n_cells").reset_index(), of_cell


def _choose_design(
    units: pd.DataFrame, groups: tuple[str, str], by: str, min_cells: int, min_donors: int
) -> tuple[bool, pd.Index]:
    """Return whether the design is paired, and the donors that fit it. Units with too few cells do not count."""
    if units.groupby(CELL_TYPE)["group"].nunique().max() < 2:
        raise ValueError(f"obs[{by!r}]: no cell type has cells of both groups, {groups[0]!r} and {groups[1]!r}. The "
                         "tests are within cell types. Choose a column that divides donors or samples, such as a "
                         "condition.")  # fmt: skip
    units = units[units["n_cells"] >= min_cells]
    a, b = (pd.Index(units.loc[units["group"] == name, DONOR].unique()) for name in groups)
    both, one = a.intersection(b), a.symmetric_difference(b)
    only = [len(found.intersection(one)) for found in (a, b)]
    paired = len(both) > len(one) or min(only) < min_donors <= len(both)
    if (len(both) if paired else min(only)) < min_donors:
        raise ValueError(
            f"obs[{by!r}]: {len(both)} donors have at least {min_cells} cells of a type in both groups. Of the others, "
            f"there are {only[0]} with {groups[0]!r} and {only[1]} with {groups[1]!r}. Expected at least {min_donors} "
            "in both groups or in each group, because the cells of one donor do not show how much donors vary. Choose "
            "groups with more donors, or another min_cells."
        )
    donors, others = (both, one) if paired else (one, both)
    if len(others):
        where, first = "one group only" if paired else "both groups", others.sort_values()[0]
        log.warning("%d donors (first: %r) are left out, because they have at least %d cells of a type in %s",
                    len(others), first, min_cells, where)  # fmt: skip
    return paired, donors


def _compare_donors(
    name: str, units: pd.DataFrame, groups: tuple[str, str], paired: bool, min_cells: int, min_donors: int
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return the columns about one type, and the rows of the units of each group. Pairs have the same order in both."""
    units = units[units["n_cells"] >= min_cells]
    a, b = (units[units["group"] == group].sort_values(DONOR) for group in groups)
    about = {CELL_TYPE: name, "n_donors_a": len(a), "n_donors_b": len(b), "n_pairs": 0, "reason": ""}
    if paired:
        a, b = a[a[DONOR].isin(b[DONOR])], b[b[DONOR].isin(a[DONOR])]
        about["n_pairs"] = len(a)
    if min(len(a), len(b)) < min_donors:
        found = f"{len(a)} pairs" if paired else f"{len(a)} and {len(b)} donors"
        about["reason"] = f"{found} with at least {min_cells} cells; {min_donors} needed"
    return about, a.index.to_numpy(), b.index.to_numpy()


def _average(H: np.ndarray, unit: np.ndarray, n_cells: np.ndarray, model: str) -> np.ndarray:
    """Return the mean usages of each unit, (n_units, k) float64, one program at a time to save memory."""
    H = np.asarray(H)
    if H.ndim != 2 or len(H) != len(unit) or not H.shape[1] or H.dtype.kind not in "biuf":
        raise ValueError(f"H of {model} has shape {H.shape} and type {H.dtype}. Expected numbers, {len(unit)} cells × "
                         "programs. Pass the usages of these cells.")  # fmt: skip
    if not (H.min() >= 0 and H.max() < np.inf):
        wrong = H.min() if not H.min() >= 0 else H.max()
        raise ValueError(f"H of {model} contains {wrong}. Expected finite usages of at least 0. Fit the model again.")
    used = np.flatnonzero(unit >= 0)
    return np.column_stack([np.bincount(unit[used], usage[used], len(n_cells)) for usage in H.T]) / n_cells[:, None]


def _test(means: np.ndarray, logs: np.ndarray, about: dict, a: np.ndarray, b: np.ndarray, paired: bool) -> pd.DataFrame:
    """Return the tests of one type, one row per program. `means`, (n_units, k), are usages, `logs` their logarithms."""
    k = means.shape[1]
    table = pd.DataFrame(about | {"program": np.arange(k)} | dict.fromkeys([*_RESULTS, "fdr"], np.nan))
    for column, rows in (("mean_a", a), ("mean_b", b)):
        table[column] = means[rows].mean(axis=0) if len(rows) else np.nan
    if about["reason"]:
        return table
    spread = np.ptp(logs[b] - logs[a], axis=0) if paired else np.ptp(logs[a], axis=0) + np.ptp(logs[b], axis=0)
    varies = spread > 1e-9  # smaller differences are rounding errors
    table.loc[~varies, "reason"] = (
        "the difference is the same in all pairs" if paired else "usage does not vary between the donors of a group"
    )
    x, y = logs[a][:, varies], logs[b][:, varies]
    test = stats.ttest_rel(y, x) if paired else stats.ttest_ind(y, x)
    interval = test.confidence_interval()
    values = [(y.mean(axis=0) - x.mean(axis=0)), interval.low, interval.high, test.statistic, test.pvalue]
    table.loc[varies, _RESULTS] = np.column_stack(values)
    return table
