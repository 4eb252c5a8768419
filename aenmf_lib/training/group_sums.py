"""Sums over the cells of each (cell type, donor) group, and sums of squares for each partition of the cells."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR


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
        """Return the sums over one block of cells."""
        labels = pd.DataFrame({CELL_TYPE: cell_type, DONOR: donor})
        code = labels.groupby([CELL_TYPE, DONOR], sort=False).ngroup().to_numpy()  # in order of appearance
        names = list(labels.drop_duplicates().itertuples(index=False, name=None))
        one_hot = csr_matrix((np.ones(len(code)), code, np.arange(len(code) + 1)), shape=(len(code), len(names)))
        totals = (one_hot.T.tocsr() @ X.astype(np.float64)).toarray()
        groups = dict(zip(names, zip(np.bincount(code).tolist(), totals, strict=True), strict=True))
        gene_sq = {}
        for name in np.unique(partition):
            X_d = select_rows(X, partition == name)
            gene_sq[name] = np.bincount(X_d.indices, np.square(X_d.data, dtype=np.float64), minlength=X.shape[1])
        return cls(X.shape[0], float(np.square(X.data, dtype=np.float64).sum()), groups, gene_sq)

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


def select_rows(X: csr_matrix, mask: np.ndarray) -> csr_matrix:
    """Return the rows of X in the mask; X itself, not a copy, if the mask contains all rows."""
    return X if mask.all() else X[np.flatnonzero(mask)]
