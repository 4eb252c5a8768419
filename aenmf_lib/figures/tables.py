"""Checking the tables that figures are drawn from."""

from collections.abc import Collection

import numpy as np
import pandas as pd

from aenmf_lib.data import DONOR, LABELS
from aenmf_lib.results import MODELS, RunInfo

_KNOWN = {"label": LABELS, "cell_type_in_training": ("True", "False")}  # column -> possible values


def check_columns(table: pd.DataFrame, name: str, columns: Collection[str]) -> None:
    """Raise ValueError unless the table has these columns."""
    for column in columns:
        if column not in table:
            found = f"{table.attrs.get('source', name)} has no column {column!r} (it has {', '.join(map(str, table))})"
            raise ValueError(f"{found}. Run its notebook again.")


def check_table(
    table: pd.DataFrame,
    name: str,
    columns: Collection[str],
    numbers: Collection[str],
    run: RunInfo | None = None,
    *,
    may_be_empty: bool = False,
    **known: Collection[str],
) -> None:
    """Raise ValueError unless the table has rows, these columns, finite `numbers`, and only `known` values.

    With `run`, the table must also be of this run (see `check_run`).
    """
    source, again = table.attrs.get("source", name), "Run its notebook again."
    check_columns(table, name, [*columns, *numbers])
    if table.empty and not may_be_empty:
        raise ValueError(f"{source} has no rows, so there is nothing to draw. {again}")
    for column in numbers:
        bad = np.flatnonzero(~np.isfinite(pd.to_numeric(table[column], errors="coerce")))
        if len(bad):
            wrong = f"{source}: {column!r} is not a finite number in {len(bad)} of {len(table)} rows"
            raise ValueError(f"{wrong} (first: {table[column].iloc[bad[0]]} in row {bad[0] + 1}). {again}")
    for column, values in (_KNOWN | known).items():
        if column in columns and (unknown := sorted(set(table[column].astype(str)) - set(values))):
            expected = ", ".join(values)
            raise ValueError(f"{source} contains the {column.lower()} {unknown[0]!r}. Expected one of {expected}.")
    flag = "cell_type_in_training"
    if flag in columns and table[flag].dtype != bool:  # the text "False" counts as true
        raise ValueError(f"{source}: {flag!r} is of type {table[flag].dtype}. Expected True or False. {again}")
    if run:
        check_run(table, name, run)


def check_run(table: pd.DataFrame, name: str, run: RunInfo) -> None:
    """Raise ValueError if a table has models, cells or programs that the run does not have."""
    source, again = table.attrs.get("source", name), "Run its notebook again, or pass the folder of this run."
    trained = {*run.used_cell_type} | {*run.skipped}
    if trained and "Model" in table and (other := {*table["Model"]} & {*MODELS} - trained):
        raise ValueError(f"{source} contains {min(other)}, which is not among the models of this run "
                         f"({', '.join(sorted(trained))}). {again}")  # fmt: skip
    n_cells = table.get("n_cells", pd.Series(dtype=int))
    programs = table.get("program", pd.Series(dtype=int)).dropna() + 1
    # tables that must contain all cells or all programs; others may contain fewer
    whole = "label" in table and not {"max_cells", "class"} & {*table}
    all_cells = n_cells[table["label"] == DONOR] if whole else n_cells[:0]
    all_programs = programs if {"share_of_norm", "mean_usage", "matched"} & {*table} else programs[:0]
    for found, complete, expected, unit in (
        (n_cells, all_cells, run.n_cells, "cells"),
        (programs, all_programs, run.k, "programs"),
    ):
        if expected and len(found) and (found.max() > expected or (len(complete) and complete.max() < expected)):
            raise ValueError(f"{source} contains {int(found.max()):,} {unit}, but this run has {expected:,}. {again}")
