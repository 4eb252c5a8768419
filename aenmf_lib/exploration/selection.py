"""Tables about the selected cells: their labels, their usages of programs, and their marker genes."""

from __future__ import annotations

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


def compare_usages(cells: Cells, model: str, names: list[str], rows: np.ndarray) -> pd.DataFrame:
    """Compare the mean usages of the selected cells with those of other cells, largest difference first.

    Columns: the mean usages ``selected`` and ``others``, and their ``difference``, divided by the standard deviation
    within both groups.
    """
    inside, outside = sample_both(cells.n_cells, rows, USED)
    groups = [cells.usages(model, part) for part in (inside, outside) if len(part)]
    return _compare(groups, pd.Index(names, name=model))


def find_markers(cells: Cells, rows: np.ndarray) -> pd.DataFrame:
    """Compare the mean expression of each gene in the selected cells and in other cells, largest difference first.

    Columns: the means of log1p of counts per 10,000 ``selected`` and ``others``; their ``difference``, divided by the
    standard deviation within both groups; and ``expressing``, the share of the selected cells that express the gene.
    """
    inside, outside = sample_both(cells.n_cells, rows, MARKED)
    groups = [cells.expression(part) for part in (inside, outside) if len(part)]
    return _compare(groups, pd.Index(cells.symbols, name="gene"))


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


def _compare(groups: list[np.ndarray | csr_matrix], names: pd.Index) -> pd.DataFrame:
    """Return the table of differences between two groups (cells × features). With one group, ``others`` is NaN."""
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

    Parameters
    ----------
    cells
        The cells of the run.
    names
        Names of the programs of each model.
    rows
        Sorted rows of the selected cells, (n_selected,).
    """
    tables = {
        title: count_labels(cells.column(label), rows) for label, title in LABELS.items() if label in cells.columns
    }
    compared = [compare_usages(cells, model, names[model], rows).head(_SHOWN) for model in cells.models]
    tables["programs"] = pd.concat(compared, keys=cells.models, names=["Model", "program"])
    if cells.cells_path is not None:
        tables["genes"] = find_markers(cells, rows)
    return tables
