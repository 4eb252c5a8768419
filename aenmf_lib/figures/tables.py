"""Reading and checking the tables that figures are drawn from."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from aenmf_lib.data import LABELS
from aenmf_lib.results import MODELS

_KNOWN = {"Model": MODELS, "label": LABELS, "cell_type_in_training": ("True", "False")}  # column -> possible values


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a csv. Later errors about the table name its file.

    Raises FileNotFoundError if the file does not exist, and ValueError if it is empty or not a csv.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist. Run 06_benchmarks first, or pass the folder of another run.")
    try:
        table = pd.read_csv(path)
    except ValueError as error:  # all errors of pandas about the content are ValueErrors
        raise ValueError(f"{path} is not a table ({error}). Delete it and run 06_benchmarks again.") from error
    table.attrs["source"] = str(path)
    return table


def model_files(folder: str | Path) -> list[Path]:
    """Return the results files of the models of a run, sorted by name. Raises FileNotFoundError if there is none."""
    if files := sorted(Path(folder).glob("*nmf*_k*.h5ad")):
        return files
    missing = f"{folder} contains no results file of a model (such as base_nmf_k80.h5ad)"
    raise FileNotFoundError(f"{missing}. Train first (notebooks 02 to 05), or pass the folder of another run.")


def check_table(
    table: pd.DataFrame, name: str, columns: Collection[str], numbers: Collection[str], **known: Collection[str]
) -> None:
    """Raise ValueError unless the table has rows, these columns, finite `numbers`, and only `known` values."""
    source, again = table.attrs.get("source", name), "Run its notebook again."
    for column in (*columns, *numbers):
        if column not in table:
            raise ValueError(f"{source} has no column {column!r} (it has {', '.join(map(str, table))}). {again}")
    if table.empty:
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
