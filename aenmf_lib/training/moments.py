"""Moments: the sums over cells from which all models are fitted.

Every objective depends on the cells only through sums over them: the second moment ``S = XᵀX`` (one per donor for model
2), the sums and counts of each (cell type, donor) group, and ``‖X‖²``. Sums over blocks, shards and machines can be
added. The same moments serve every rank, seed and penalty.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from aenmf_lib.data import files, preprocessing
from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR, NO_TYPE
from aenmf_lib.data.progress import tqdm
from aenmf_lib.training import products
from aenmf_lib.training.inputs import Cells, as_cells, iter_matrices
from aenmf_lib.training.products import SecondMoment
from aenmf_lib.training.second_moment import (
    EXPLICIT,
    REQUESTED,
    SecondMomentAccumulator,
    check_device,
    choose_representation,
)

__all__ = ["Moments"]

log = logging.getLogger(__name__)

FORMAT = 2  # version of the file format
SAMPLE_SIZE = 4096  # cells in the sample
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class CellSample:
    """The cells whose names have the smallest hashes: a random sample that does not depend on the order of cells."""

    keys: np.ndarray  # (m,) uint64, sorted
    X: csr_matrix  # (m, n_genes)

    @classmethod
    def from_cells(cls, X: csr_matrix, names: pd.Index, before: "CellSample | None" = None) -> "CellSample":
        """Return the sample of these cells and of the cells that the sample `before` was drawn from."""
        keys = pd.util.hash_array(names.to_numpy(object))
        order = np.argsort(keys, kind="stable")[:SAMPLE_SIZE]
        if before and len(before.keys) == SAMPLE_SIZE:  # larger hashes cannot enter
            order = order[keys[order] < before.keys[-1]]
        sample = cls(keys[order], X[order])
        return before + sample if before else sample

    def __add__(self, other: "CellSample") -> "CellSample":
        if not len(other.keys):
            return self
        keys = np.concatenate([self.keys, other.keys])
        order = np.argsort(keys, kind="stable")[:SAMPLE_SIZE]
        return CellSample(keys[order], vstack([self.X, other.X], format="csr")[order])


@dataclass
class GroupSums:
    """Sums over cells: the parts of `Moments` except the second moments and the sample."""

    n_cells: int = 0
    sq_norm: float = 0.0  # tr S = ‖X‖²
    groups: dict[tuple[str, str], tuple[int, np.ndarray]] = field(default_factory=dict)  # (type, donor): count and sum
    gene_sq: dict[str, np.ndarray] = field(default_factory=dict)  # diagonal of each second moment

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
            X_d = _select_rows(X, partition == name)
            gene_sq[name] = np.bincount(X_d.indices, np.square(X_d.data, dtype=np.float64), minlength=X.shape[1])
        return cls(X.shape[0], float(np.square(X.data, dtype=np.float64).sum()), groups, gene_sq)

    @property
    def labels(self) -> list[str]:
        """Columns of obs by which the cells are grouped."""
        first = next(iter(self.groups), ("", ""))
        return [name for name, label in zip((CELL_TYPE, DONOR), first, strict=True) if label != ""]


class Moments:
    """Sums over cells, and products with their second moment. Made by `Moments.from_cells` or `Moments.load`.

    Attributes
    ----------
    genes, n_cells, n_genes, n_labeled, sq_norm
        Names of the genes; numbers of cells, genes and cells with a type; ``tr S = ‖X‖²``.
    partitions, gene_sq : list of str, (n_partitions, n_genes)
        Groups of cells with their own second moment: the sorted donors, or [''] for all cells together. Diagonals of
        the second moments.
    donors, donor_counts, donor_sums : list of str, (n_donors,), (n_donors, n_genes)
        Sorted donors; number and sum of the cells of each.
    group_counts, group_sums, group_type : (n_groups,), (n_groups, n_genes), (n_groups,) int
        For each (cell type, donor) pair that occurs: number and sum of its cells, and the code of the cell type. The
        code is -1 for cells without a type, which the penalties ignore.
    sample : (at most 4096, n_genes) csr_matrix
        A random sample of the cells that does not depend on their order.
    mode, reason, dtype, device
        'implicit' or 'explicit', and the reason; precision of X and of the fit; device that computes the products.
    """

    def __init__(
        self, genes: pd.Index, sums: GroupSums, second_moment: SecondMoment, sample: CellSample, reason: str
    ) -> None:
        self.genes, self.sums, self.second_moment, self._sample = pd.Index(genes), sums, second_moment, sample
        self.mode, self.dtype, self.device = second_moment.mode, second_moment.dtype, second_moment.device
        self.n_cells, self.n_genes, self.sq_norm, self.reason = sums.n_cells, len(self.genes), sums.sq_norm, reason
        self.partitions = list(second_moment.parts)
        self.by_donor, self.labels, self.sample = self.partitions != [""], sums.labels, sample.X
        self.gene_sq = self._tensor(np.stack([sums.gene_sq[name] for name in self.partitions]))

        names = sorted(sums.groups)
        types, self.donors = (sorted({name[i] for name in names} - {NO_TYPE}) for i in (0, 1))
        self.group_counts = self._tensor([sums.groups[name][0] for name in names])
        self.group_sums = self._tensor(np.stack([sums.groups[name][1] for name in names]))
        codes = {NO_TYPE: -1} | {name: code for code, name in enumerate(types)}
        self.group_type = torch.tensor([codes[name[0]] for name in names], device=self.device)
        self.n_labeled = sum(n for name, (n, _) in sums.groups.items() if name[0] != NO_TYPE)
        of_donor = self._tensor([[name[1] == donor for name in names] for donor in self.donors])
        self.donor_counts, self.donor_sums = of_donor @ self.group_counts, of_donor @ self.group_sums

    def _tensor(self, values: np.ndarray | list) -> torch.Tensor:
        """Return the values in the precision of X, on the device."""
        return torch.as_tensor(np.asarray(values), dtype=self.dtype, device=self.device)

    @classmethod
    def from_cells(
        cls, cells: Cells, *, donor: bool | str = True, cell_type: bool | str = True, by_donor: bool = False,
        mode: str = "auto", k: int = 80, device: str = "cpu",
    ) -> "Moments":  # fmt: skip
        """Compute the sums over cells in memory or, block by block, on disk.

        Parameters
        ----------
        cells : n_cells × n_genes
            log1p of counts per 10,000: an AnnData, a matrix (dense or sparse), or a `CellStream`.
        donor, cell_type
            Group the cells by ``obs['donor_id']``, ``obs['cell_type']``, or by the column of obs with the given name.
            The conditional models need the donor; the invariance needs the type. Cells without a type form one untyped
            group per donor.
        by_donor
            Keep one second moment per donor, as model 2 needs. The other models can use these moments too.
        mode, device
            'implicit', 'explicit', or 'auto': the cheaper one for a fit of `k` programs. 'cpu', 'cuda', 'cuda:1' …

        Raises
        ------
        TypeError, ValueError, MemoryError
            X is not log1p of counts per 10,000 (see `inputs.as_cells`); there are no cells; a column or the donor of
            some cells is missing; the second moment does not fit in memory (checked before it is computed).
        """
        check_device(device)
        cells = as_cells(cells)
        obs, n_genes, in_memory = cells.obs, len(cells.var_names), isinstance(cells, AnnData)
        if not len(obs) or not n_genes:
            raise ValueError(f"There are {len(obs)} cells × {n_genes} genes. Pass at least one of each.")
        no_labels = np.full(len(obs), "")
        donor_key = donor if isinstance(donor, str) else DONOR
        type_key = cell_type if isinstance(cell_type, str) else CELL_TYPE
        types = preprocessing.read_labels(obs, type_key, partly=True) if cell_type else no_labels
        donors = preprocessing.read_labels(obs, donor_key, partly=False) if donor or by_donor else no_labels
        partition = donors if by_donor else no_labels
        sizes = {"n_cells": len(obs), "n_genes": n_genes, "n_partitions": len(np.unique(partition))}
        nnz = cells.X.nnz if in_memory else cells.nnz
        mode, reason = choose_representation(**sizes, nnz=nnz, k=k, mode=mode, device=device)
        if reason != REQUESTED:
            log.info("XᵀX is used in %s form (%s)", mode, reason)

        sums, parts, sample, dtype = GroupSums(), {}, None, torch.float32
        bar = tqdm(total=len(obs), desc="sums", unit="cell", unit_scale=True, mininterval=5, disable=in_memory)
        for X, rows in iter_matrices(cells):
            bar.update(X.shape[0])
            dtype = torch.float64 if X.dtype == np.float64 else torch.float32
            sums += GroupSums.from_cells(X, types[rows], donors[rows], partition[rows])
            sample = CellSample.from_cells(X, obs.index[rows], sample)
            for name in np.unique(partition[rows]):
                X_d = _select_rows(X, partition[rows] == name)
                if mode != EXPLICIT:
                    parts.setdefault(name, []).append(X_d)
                    continue
                if name not in parts:
                    parts[name] = SecondMomentAccumulator(n_genes, dtype, device)
                parts[name].add(X_d)
        bar.close()
        for name, part in parts.items():
            parts[name] = part.finish() if mode == EXPLICIT else part[0] if len(part) == 1 else vstack(part, "csr")
        return cls(cells.var_names, sums, products.second_moment(mode, parts, dtype, device), sample, reason)

    # ---------------------------------------------------------------- changed cells, groups or weights
    def __add__(self, other: "Moments") -> "Moments":
        return self._added(other)

    def __iadd__(self, other: "Moments") -> "Moments":
        return self._added(other, in_place=True)

    def _added(self, other: "Moments", *, in_place: bool = False) -> "Moments":
        """Return the moments of both sets of cells; `in_place` needs memory for two explicit S, otherwise for three."""
        if not self.genes.equals(other.genes):
            shared = len(self.genes.intersection(other.genes))
            raise ValueError(
                f"cannot add moments of different genes: {self.n_genes} and {other.n_genes} genes, {shared} shared "
                "(the order must be equal too). Compute both from the same genes in the same order."
            )
        for what in ("mode", "dtype", "by_donor", "labels"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                different = f"cannot add moments of different {what}: {mine} and {theirs}"
                raise ValueError(f"{different}. Compute both with the same settings.")
        second_moment = self.second_moment.merged(other.second_moment, in_place=in_place)
        return Moments(self.genes, self.sums + other.sums, second_moment, self._sample + other._sample, self.reason)

    def with_groups(self, cells: AnnData, cell_type: np.ndarray, *, donor_key: str = DONOR) -> "Moments":
        """Return the moments of the same cells with new cell types, (n_cells,) str. The second moment is not copied."""
        donor = preprocessing.read_labels(cells.obs, donor_key)
        partition = donor if self.by_donor else np.full(len(donor), "")
        sums = GroupSums.from_cells(as_cells(cells).X, cell_type, donor, partition)
        return Moments(self.genes, sums, self.second_moment, self._sample, self.reason)

    def with_gene_weights(self, w: np.ndarray) -> "Moments":
        """Return the moments of ``X diag(w)``, for gene weights w ≥ 0, (n_genes,)."""
        gene_sq = {name: w**2 * squares for name, squares in self.sums.gene_sq.items()}
        groups = {name: (n, w * total) for name, (n, total) in self.sums.groups.items()}
        sums = GroupSums(self.n_cells, float(sum(squares.sum() for squares in gene_sq.values())), groups, gene_sq)
        sample = CellSample(self._sample.keys, products.scale_genes(self.sample, w))
        return Moments(self.genes, sums, self.second_moment.weighted(w), sample, self.reason)

    # ---------------------------------------------------------------- products
    def product(self, V: torch.Tensor) -> torch.Tensor:
        """Return ``V S``, (k, n_genes), for V (k, n_genes) and the second moment S of all cells."""
        return self.second_moment.product(V)

    def product_by_donor(self, V: torch.Tensor) -> torch.Tensor:
        """Return ``V_d S_d``, (n_donors, k, n_genes), for one V (k, n_genes) or one per donor."""
        return self.second_moment.products(V)

    # ---------------------------------------------------------------- files
    def save(self, path: str | Path, **more: np.ndarray | str) -> None:
        """Write the moments, and the arrays in `more`, to one NumPy ``.npz`` file, atomically."""
        names, dtype = sorted(self.sums.groups), str(self.dtype).removeprefix("torch.")
        counts, totals = zip(*(self.sums.groups[name] for name in names), strict=True)
        gene_sq = np.stack([self.sums.gene_sq[name] for name in self.partitions])
        files.write_npz(
            path, FORMAT, genes=self.genes.to_numpy(str), mode=self.mode, reason=self.reason, dtype=dtype,
            n_cells=self.n_cells, sq_norm=self.sq_norm, groups=np.array(names, dtype=str), counts=np.array(counts),
            sums=np.stack(totals), partitions=np.array(self.partitions, dtype=str), gene_sq=gene_sq,
            keys=self._sample.keys, **products.csr_arrays("sample", self.sample), **self.second_moment.arrays(), **more,
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> "Moments":
        """Read the moments that `save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            The file does not exist, contains no moments, is damaged, or has another format version.
        """
        check_device(device)
        saved = files.read_npz(path, FORMAT, "moments")
        try:
            mode, reason, dtype = (str(saved[name]) for name in ("mode", "reason", "dtype"))
            names = [(str(cell_type), str(donor)) for cell_type, donor in saved["groups"]]
            counts_and_sums = zip(map(int, saved["counts"]), saved["sums"], strict=True)
            groups = dict(zip(names, counts_and_sums, strict=True))
            gene_sq = dict(zip(map(str, saved["partitions"]), saved["gene_sq"], strict=True))
            sums = GroupSums(int(saved["n_cells"]), float(saved["sq_norm"]), groups, gene_sq)
            second_moment = products.restore_second_moment(saved, mode, _DTYPES[dtype], device)
            sample = CellSample(saved["keys"], products.restore_csr(saved, "sample"))
            return cls(saved["genes"], sums, second_moment, sample, reason)
        except (KeyError, IndexError, TypeError, ValueError) as error:  # entries are missing or do not fit together
            found = f"{path} does not contain valid moments ({type(error).__name__}: {error})"
            raise ValueError(f"{found}. Delete the file and compute it again.") from error


def _select_rows(X: csr_matrix, mask: np.ndarray) -> csr_matrix:
    """Return the rows of X in the mask; X itself, not a copy, if the mask contains all rows."""
    return X if mask.all() else X[np.flatnonzero(mask)]
