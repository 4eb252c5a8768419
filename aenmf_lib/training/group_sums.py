"""Sums over the cells of each (cell type, donor) group, and sums of squares for each partition of the cells."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR
from aenmf_lib.training import _sum_kernels


@dataclass
class GroupSums:
    """Sums over cells: the parts of `Moments` except the second moments and the sample."""

    n_cells: int = 0
    sq_norm: float = 0.0  # tr S = ‖X‖²
    groups: dict[tuple[str, str], tuple[int, np.ndarray]] = field(default_factory=dict)  # (type, donor): count and sum
    gene_sq: dict[str, np.ndarray] = field(default_factory=dict)  # partition: diagonal of its second moment

    def __add__(self, other: "GroupSums") -> "GroupSums":
        groups, gene_sq = dict(self.groups), dict(self.gene_sq)
        for name, (n, total) in other.groups.items():
            n_before, before = groups.get(name, (0, 0.0))
            groups[name] = n_before + n, before + total
        for name, squares in other.gene_sq.items():
            gene_sq[name] = gene_sq.get(name, 0.0) + squares
        return GroupSums(self.n_cells + other.n_cells, self.sq_norm + other.sq_norm, groups, gene_sq)

    @classmethod
    def from_cells(cls, X: csr_matrix, cell_type: np.ndarray, donor: np.ndarray, partition: np.ndarray) -> "GroupSums":
        """Return the sums over the cells X, (n_cells, n_genes), with these labels."""
        labels = CellLabels(cell_type, donor, partition, X.shape[1])
        labels.add(X, slice(0, X.shape[0]))
        return labels.sums()

    def subset(self, partitions: Sequence[str]) -> "GroupSums":
        """Return the sums over the cells of these partitions, which are donors."""
        groups = {name: group for name, group in self.groups.items() if name[1] in set(partitions)}
        gene_sq = {name: self.gene_sq[name] for name in partitions}
        sq_norm = float(sum(squares.sum() for squares in gene_sq.values()))
        return GroupSums(sum(n for n, _ in groups.values()), sq_norm, groups, gene_sq)

    @property
    def labels(self) -> list[str]:
        """Columns of obs by which the cells are grouped."""
        first = next(iter(self.groups), ("", ""))
        return [name for name, label in zip((CELL_TYPE, DONOR), first, strict=True) if label != ""]


class CellLabels:
    """The sums over the groups and partitions of all cells, to which cells are added block by block."""

    def __init__(self, cell_type: np.ndarray, donor: np.ndarray, partition: np.ndarray, n_genes: int) -> None:
        labels = pd.DataFrame({CELL_TYPE: cell_type, DONOR: donor})
        self._group = labels.groupby([CELL_TYPE, DONOR], sort=False).ngroup().to_numpy()  # in order of appearance
        self._groups = list(labels.drop_duplicates().itertuples(index=False, name=None))
        self.codes, names = pd.factorize(partition)  # partition of each cell
        self.partitions = names.tolist()
        self._sums, self._squares = np.zeros((len(self._groups), n_genes)), np.zeros((len(names), n_genes))

    def add(self, X: csr_matrix, rows: slice) -> None:
        """Add the cells `rows`."""
        group, partition = self._group[rows], self.codes[rows]
        order = np.argsort(group, kind="stable")
        _sum_kernels.add_groups(X.indptr, X.indices, X.data, order, group, partition, self._sums, self._squares)

    def names(self, rows: slice) -> np.ndarray:
        """Return the partitions of the cells `rows`, (n_rows,) str."""
        return np.array(self.partitions, dtype=str)[self.codes[rows]]

    def sums(self) -> GroupSums:
        """Return the sums, after all cells were added."""
        counts = np.bincount(self._group).tolist()
        groups = dict(zip(self._groups, zip(counts, self._sums, strict=True), strict=True))
        squares = dict(zip(self.partitions, self._squares, strict=True))
        return GroupSums(len(self._group), float(self._squares.sum()), groups, squares)


def select_rows(X: csr_matrix, mask: np.ndarray) -> csr_matrix:
    """Return the rows of X in the mask; X itself, not a copy, if the mask contains all rows."""
    return X if mask.all() else X[np.flatnonzero(mask)]
