"""What is summed over cells besides their second moment, and which of them are kept as a sample? Both add up."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack

from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR

SAMPLE_SIZE = 4096  # cells of the sample


@dataclass
class CellSample:
    """Cells taken at random: those whose names have the least hashes, so that merged samples are one of all cells."""

    keys: np.ndarray  # (m,) uint64, sorted
    X: csr_matrix  # (m, n_genes)

    @classmethod
    def from_cells(cls, X: csr_matrix, names: pd.Index, below: np.uint64 | None = None) -> "CellSample":
        """Take a sample of one block of cells; of those only whose key is `below` one, if given."""
        keys = pd.util.hash_array(names.to_numpy(object))
        order = np.argsort(keys, kind="stable")[:SAMPLE_SIZE]
        if below is not None:
            order = order[keys[order] < below]
        return cls(keys[order], X[order])

    def __add__(self, other: "CellSample") -> "CellSample":
        if not len(other.keys):
            return self
        keys = np.concatenate([self.keys, other.keys])
        order = np.argsort(keys, kind="stable")[:SAMPLE_SIZE]
        return CellSample(keys[order], vstack([self.X, other.X], format="csr")[order])

    @property
    def limit(self) -> np.uint64 | None:
        """Key that a cell must be below to enter; None while there is room."""
        return self.keys[-1] if len(self.keys) == SAMPLE_SIZE else None


@dataclass
class GroupSums:
    """The small sums: everything but the second moments. They add up (``a + b``)."""

    n_cells: int = 0
    sq_norm: float = 0.0  # tr S = ‖X‖²
    groups: dict[tuple[str, str], tuple[int, np.ndarray]] = field(default_factory=dict)  # count and sum of each
    gene_sq: dict[str, np.ndarray] = field(default_factory=dict)  # diagonal of each second moment

    def __add__(self, other: "GroupSums") -> "GroupSums":
        total = GroupSums(
            self.n_cells + other.n_cells, self.sq_norm + other.sq_norm, dict(self.groups), dict(self.gene_sq)
        )
        for name, (n, s) in other.groups.items():
            n0, s0 = total.groups.get(name, (0, 0.0))
            total.groups[name] = (n0 + n, s0 + s)
        for owner, squares in other.gene_sq.items():
            total.gene_sq[owner] = total.gene_sq.get(owner, 0.0) + squares
        return total

    @classmethod
    def from_cells(cls, X: csr_matrix, cell_type: np.ndarray, donor: np.ndarray, owner: np.ndarray) -> "GroupSums":
        """Sum over one block of cells."""
        sums = cls(X.shape[0], float(np.square(X.data, dtype=np.float64).sum()))
        frame = pd.DataFrame({CELL_TYPE: cell_type, DONOR: donor})
        code = frame.groupby([CELL_TYPE, DONOR], sort=False).ngroup().to_numpy()  # in order of appearance
        names = list(frame.drop_duplicates().itertuples(index=False, name=None))
        one_hot = csr_matrix((np.ones(len(code)), code, np.arange(len(code) + 1)), shape=(len(code), len(names)))
        totals = (one_hot.T.tocsr() @ X.astype(np.float64)).toarray()
        sums.groups = dict(zip(names, zip(np.bincount(code).tolist(), totals, strict=True), strict=True))
        for name in np.unique(owner):
            X_d = select_rows(X, owner == name)
            sums.gene_sq[name] = np.bincount(X_d.indices, np.square(X_d.data, dtype=np.float64), minlength=X.shape[1])
        return sums

    @property
    def labels(self) -> list[str]:
        """Which labels the groups were told apart by."""
        first = next(iter(self.groups), ("", ""))
        return [name for name, label in zip((CELL_TYPE, DONOR), first, strict=True) if label != ""]


def select_rows(X: csr_matrix, wanted: np.ndarray) -> csr_matrix:
    """Give the cells that are wanted, without a copy where all are."""
    return X if wanted.all() else X[np.flatnonzero(wanted)]
