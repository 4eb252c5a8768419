"""Tables about the selected cells: their labels, their usages of programs, and their marker genes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.exploration.reading import Cells

LABELS = {CELL_TYPE: "types", DONOR: "donors"}  # columns of obs whose labels are counted, and the names of their tables
USED, MARKED = 50_000, 2000  # maximum number of cells for usages and for genes; random samples of more cells
_SEED = 0  # seed of these samples
_SHOWN = 10  # rows per model in the table of programs


def count_labels(labels: pd.Series, rows: np.ndarray) -> pd.DataFrame:
    """Count the labels of the selected cells, most frequent first.

    Columns: ``selected``, the number of selected cells with the label; ``share``, their share of the selected cells;
    and ``share_of_label``, their share of all cells with the label.
    """
    codes, names = labels.cat.codes.to_numpy(), [*labels.cat.categories, "(missing)"]
    selected, everywhere = (np.bincount(part.astype(np.int32) % len(names), minlength=len(names))
                            for part in (codes[rows], codes))  # fmt: skip
    table = pd.DataFrame({"selected": selected}, pd.Index(names, name=labels.name))
    table["share"] = selected / max(len(rows), 1)
    table["share_of_label"] = selected / np.maximum(everywhere, 1)
    return table[selected > 0].sort_values("selected", ascending=False, kind="stable")


def sample_both(n_cells: int, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted rows of at most `size` selected and `size` other cells. Larger groups are sampled at random."""
    rng = np.random.default_rng(_SEED)
    others = n_cells - len(rows)
    if others > 4 * size:  # draw enough rows that are not selected, without a list of all others
        drawn = np.unique(rng.integers(n_cells, size=int(3 * size * n_cells / others)))
        outside = drawn[~np.isin(drawn, rows, assume_unique=True)]
    else:
        outside = np.setdiff1d(np.arange(n_cells), rows, assume_unique=True)
    groups = (part if len(part) <= size else np.sort(rng.choice(part, size, replace=False)) for part in (rows, outside))
    return tuple(groups)


def _compare(
    cells: Cells, read: Callable[[np.ndarray], np.ndarray | csr_matrix], names: pd.Index, rows: np.ndarray, size: int
) -> pd.DataFrame:
    """Compare the mean of each feature in the selected cells and in other cells, largest difference first.

    `read` takes sorted rows and returns the features of these cells, (n_rows, n_features). At most `size` cells of each
    group are read. Columns: the means ``selected`` and ``others``; their ``difference``, divided by the standard
    deviation within both groups; and, with a sparse matrix, ``expressing``, the share of the selected cells with a
    value above 0.
    If all cells are selected, ``others`` is NaN.
    """
    groups = [read(part) for part in sample_both(cells.n_cells, rows, size) if len(part)]
    means = [np.asarray(group.mean(axis=0, dtype=np.float64)).ravel() for group in groups]
    squares = [np.asarray((group.multiply(group) if hasattr(group, "multiply") else group**2).mean(axis=0)).ravel()
               for group in groups]  # fmt: skip
    table = pd.DataFrame({"selected": means[0], "others": means[1] if len(means) > 1 else np.nan}, names)
    variance = sum(square - mean**2 for square, mean in zip(squares, means, strict=True)) / len(groups)
    spread = np.sqrt(np.maximum(variance, 0))
    table["difference"] = (table["selected"] - table["others"]) / np.where(spread > 1e-6, spread, np.inf)
    if hasattr(groups[0], "getnnz"):
        table["expressing"] = groups[0].getnnz(axis=0) / groups[0].shape[0]
    return table.sort_values("difference", ascending=False, kind="stable")


def describe(cells: Cells, names: dict[str, list[str]], rows: np.ndarray) -> dict[str, pd.DataFrame]:
    """Return tables of the selected cells: ``types``, ``donors``, ``programs`` and, with a filtered file, ``genes``.

    `names` are those of the programs of each model, and `rows` are the sorted rows of the cells, (n_selected,).
    """
    tables = {
        title: count_labels(cells.column(label), rows) for label, title in LABELS.items() if label in cells.columns
    }
    compared = [
        _compare(cells, partial(cells.usages, model), pd.Index(names[model]), rows, USED).head(_SHOWN)
        for model in cells.models
    ]
    tables["programs"] = pd.concat(compared, keys=cells.models, names=["Model", "program"])
    if cells.cells_path is not None:
        tables["genes"] = _compare(cells, cells.expression, pd.Index(cells.symbols, name="gene"), rows, MARKED)
    return tables
