"""Moments: the sums over cells from which all models are fitted.

Every objective depends on the cells only through sums over them: the second moment ``S = XᵀX`` (one per donor for model
2), the sums and counts of each (cell type, donor) group, and ``‖X‖²``. Sums over blocks, shards and machines can be
added. The same moments serve every rank, seed and penalty.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from aenmf_lib.training.accumulation import accumulator, thread_pool
from aenmf_lib.training.group_sums import CellLabels, GroupSums, select_rows
from aenmf_lib.training.inputs import Cells, as_cells, iter_matrices
from aenmf_lib.training.products import SecondMoment
from aenmf_lib.training.second_moment import (
    EXPLICIT,
    IMPLICIT,
    REQUESTED,
    check_device,
    choose_representation,
)

__all__ = ["Moments"]

log = logging.getLogger(__name__)

FORMAT = 3  # version of the file format
SAMPLE_SIZE = 4096  # cells in the sample
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class CellSample:
    """The cells whose names have the smallest hashes: a random sample that does not depend on the order of cells.

    For implicit moments by donor, which store the cells, `hashes` contains the hashes of all cells of each partition.
    The sample of a subset is then drawn again from all its cells. Otherwise, it consists of the cells of the subset
    that are already in the sample.
    """

    keys: np.ndarray  # (m,) uint64, sorted
    X: csr_matrix  # (m, n_genes)
    partition: np.ndarray  # (m,) str
    hashes: dict[str, np.ndarray] = field(default_factory=dict)  # partition: (n_cells,) uint64

    @classmethod
    def from_cells(
        cls, X: csr_matrix, keys: np.ndarray, partition: np.ndarray, before: "CellSample | None" = None
    ) -> "CellSample":
        """Return the sample of these cells, whose names have the hashes `keys`, and of the cells in `before`."""
        full = before and len(before.keys) == SAMPLE_SIZE
        rows = np.flatnonzero(keys < before.keys[-1]) if full else np.arange(len(keys))  # larger hashes cannot enter
        order = rows[np.argsort(keys[rows], kind="stable")[:SAMPLE_SIZE]]
        sample = cls(keys[order], X[order], partition[order])
        return before + sample if before else sample

    def __add__(self, other: "CellSample") -> "CellSample":
        hashes = dict(self.hashes)
        for name, more in other.hashes.items():
            hashes[name] = np.concatenate([hashes[name], more]) if name in hashes else more
        if not len(other.keys):
            return replace(self, hashes=hashes)
        X, partition = vstack([self.X, other.X], format="csr"), np.concatenate([self.partition, other.partition])
        return replace(CellSample.from_cells(X, np.concatenate([self.keys, other.keys]), partition), hashes=hashes)

    def subset(self, partitions: Sequence[str], second_moment: SecondMoment) -> "CellSample":
        """Return the sample of the cells of these partitions."""
        if not self.hashes:
            keep = np.flatnonzero(np.isin(self.partition, partitions))
            return CellSample(self.keys[keep], self.X[keep], self.partition[keep])
        hashes = {name: self.hashes[name] for name in partitions}
        keys = np.concatenate(list(hashes.values()))
        largest = np.partition(keys, SAMPLE_SIZE - 1)[SAMPLE_SIZE - 1] if len(keys) > SAMPLE_SIZE else keys.max()
        rows = {name: np.flatnonzero(of_cells <= largest) for name, of_cells in hashes.items()}
        X = vstack([second_moment.parts[name][rows[name]] for name in partitions], format="csr")
        keys = np.concatenate([hashes[name][rows[name]] for name in partitions])
        partition = np.repeat(np.array(partitions, str), [len(rows[name]) for name in partitions])
        return replace(CellSample.from_cells(X, keys, partition), hashes=hashes)


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
        labels = CellLabels(types, donors, donors if by_donor else no_labels, n_genes)
        sizes = {"n_cells": len(obs), "n_genes": n_genes, "n_partitions": len(labels.partitions)}
        nnz = cells.X.nnz if in_memory else cells.nnz
        mode, reason = choose_representation(**sizes, nnz=nnz, k=k, mode=mode, device=device)
        if reason != REQUESTED:
            log.info("XᵀX is used in %s form (%s)", mode, reason)

        parts, hashes, sample, dtype = {}, {}, None, torch.float32
        bar = tqdm(total=len(obs), desc="sums", unit="cell", unit_scale=True, mininterval=5, disable=in_memory)
        with bar, thread_pool() as pool:
            for X, rows in iter_matrices(cells):
                dtype, codes = torch.float64 if X.dtype == np.float64 else torch.float32, labels.codes[rows]
                keys = pd.util.hash_array(obs.index[rows].to_numpy(object))
                for code in np.unique(codes):
                    name, of_donor = labels.partitions[code], codes == code
                    X_d = select_rows(X, of_donor)
                    if mode != EXPLICIT:
                        parts.setdefault(name, []).append(X_d)
                        hashes.setdefault(name, []).append(keys[of_donor])
                        continue
                    if name not in parts:
                        parts[name] = accumulator(n_genes, dtype, device, pool)
                    parts[name].add(X_d)
                labels.add(X, rows)  # while the threads form S
                sample = CellSample.from_cells(X, keys, labels.names(rows), sample)
                bar.update(X.shape[0])
            for name, part in parts.items():
                parts[name] = part.finish() if mode == EXPLICIT else part[0] if len(part) == 1 else vstack(part, "csr")
        if by_donor:
            sample.hashes = {name: np.concatenate(keys) for name, keys in hashes.items()}
        second_moment = products.second_moment(mode, parts, dtype, device)
        return cls(cells.var_names, labels.sums(), second_moment, sample, reason)

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

    def subset(self, partitions: Sequence[str]) -> "Moments":
        """Return the moments of the cells of these donors. No second moment is copied.

        The sample contains only cells of these donors. With implicit moments, it is the same as from `from_cells`. With
        explicit moments, which store only the sampled cells, it is the part of the sample that these donors have.

        Raises
        ------
        ValueError
            The moments are not by donor; a donor is unknown; no donor is given; or no cell of these donors is sampled.
        """
        if not self.by_donor:
            raise ValueError("These moments are not by donor, so they have no subset. Make them with by_donor=True.")
        chosen = sorted({partitions} if isinstance(partitions, str) else set(partitions))
        if unknown := [name for name in chosen if name not in self.second_moment.parts]:
            raise ValueError(f"{len(unknown)} of {len(chosen)} donors are not in the moments (first: {unknown[0]!r}). "
                             f"Choose from {', '.join(map(repr, self.partitions))}.")  # fmt: skip
        if not chosen:
            raise ValueError("No donors were given. Pass at least one donor.")
        if chosen == self.partitions:
            return self
        sample = self._sample.subset(chosen, self.second_moment)
        if not sample.X.shape[0]:
            raise ValueError(f"None of the {self.sample.shape[0]:,} cells in the sample is of the donors "
                             f"{', '.join(chosen)}. Pass more donors, or use mode='implicit'.")  # fmt: skip
        second_moment = self.second_moment.subset(chosen)
        return Moments(self.genes, self.sums.subset(chosen), second_moment, sample, self.reason)

    def of_sample(self, n_cells: int) -> "Moments":
        """Return the implicit moments of the first cells of the sample, without labels, on the CPU."""
        X = self.sample[:n_cells]
        all_cells = np.full(X.shape[0], "")
        sums = GroupSums.from_cells(X, all_cells, all_cells, all_cells)
        second_moment = products.second_moment(IMPLICIT, {"": X}, self.dtype, "cpu")
        return Moments(self.genes, sums, second_moment, self._sample, REQUESTED)

    def with_gene_weights(self, w: np.ndarray) -> "Moments":
        """Return the moments of ``X diag(w)``, for gene weights w ≥ 0, (n_genes,)."""
        gene_sq = {name: w**2 * squares for name, squares in self.sums.gene_sq.items()}
        groups = {name: (n, w * total) for name, (n, total) in self.sums.groups.items()}
        sums = GroupSums(self.n_cells, float(sum(squares.sum() for squares in gene_sq.values())), groups, gene_sq)
        sample = replace(self._sample, X=products.scale_genes(self.sample, w))
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
        hashes = {f"hashes{self.partitions.index(name)}": keys for name, keys in self._sample.hashes.items()}
        files.write_npz(
            path, FORMAT, genes=self.genes.to_numpy(str), mode=self.mode, reason=self.reason, dtype=dtype,
            n_cells=self.n_cells, sq_norm=self.sq_norm, groups=np.array(names, dtype=str), counts=np.array(counts),
            sums=np.stack(totals), partitions=np.array(self.partitions, dtype=str), gene_sq=gene_sq,
            keys=self._sample.keys, sampled=self._sample.partition.astype(str), **hashes,
            **products.csr_arrays("sample", self.sample), **self.second_moment.arrays(), **more,
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
            hashes = {name: saved[f"hashes{i}"] for i, name in enumerate(gene_sq) if f"hashes{i}" in saved}
            sample = CellSample(saved["keys"], products.restore_csr(saved, "sample"), saved["sampled"], hashes)
            return cls(saved["genes"], sums, second_moment, sample, reason)
        except (KeyError, IndexError, TypeError, ValueError) as error:  # entries are missing or do not fit together
            found = f"{path} does not contain valid moments ({type(error).__name__}: {error})"
            raise ValueError(f"{found}. Delete the file and compute it again.") from error
