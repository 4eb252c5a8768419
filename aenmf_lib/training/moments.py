"""What do the models need to know of the cells?

Every objective depends on the cells through sums over them only: the second moment ``S = XᵀX`` (model 2: one a donor),
the sums and counts of each (cell type, donor) group, and ``‖X‖²``. Sums add up: over blocks read from disk, shards and
machines, always to the same thing. They serve every rank, seed and penalty.

S is kept in one of two ways. *Implicit*: the cells themselves, multiplied twice, ``V S = (X Vᵀ)ᵀ X``; a product costs
``4 nnz`` operations a program. *Explicit*: S formed once, ``n p²`` operations for n cells of p genes; a product then
costs ``2 p²`` a program, however many the cells. `choose` weighs the two.
"""

import logging
import operator
from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack
from tqdm import tqdm

from aenmf_lib.data import files, preprocessing
from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR
from aenmf_lib.data.streaming import CellStream, iter_blocks
from aenmf_lib.training.group_sums import CellSample, GroupSums, select_rows
from aenmf_lib.training.second_moment import (
    EXPLICIT,
    IMPLICIT,
    SecondMomentAccumulator,
    check_device,
    choose_representation,
    to_torch,
)

log = logging.getLogger(__name__)

FORMAT = 2  # of the saved file
_MAX_NNZ = 2**31 - 1  # torch's CSR kernels are twice as fast with 32-bit indices, which can count this many nonzeros
_CSR = ("data", "indices", "indptr")


class Moments:
    """Sums over the cells, and products with their second moment. Made by `Moments.from_cells` or `Moments.load`.

    Attributes
    ----------
    genes : (n_genes,) Index
    n_cells, n_genes : int
    sq_norm : float
        tr S = ‖X‖².
    partitions : list of str
        Whose cells have a second moment of their own: the donors, sorted, or [''] for all cells together.
    gene_sq : (n_partitions, n_genes)
        Diagonals of the second moments.
    donors : list of str
        Sorted.
    donor_counts, donor_sums : (n_donors,), (n_donors, n_genes)
    group_counts, group_sums : (n_groups,), (n_groups, n_genes)
        Number and sum of the cells of each (cell type, donor) pair that has any.
    group_type : (n_groups,) int
        Which cell type a group is of; -1: cells without one, of whom the penalties take no notice.
    n_labeled : int
        Cells that have a type.
    sample : (at most 4096, n_genes) csr_matrix
        Cells taken at random, in an order that does not depend on that of the cells.
    mode, reason : str
        'implicit' or 'explicit', and why.
    dtype : torch.dtype
        That of X, float32 or float64: the one worked in.
    device : str
        Where products are computed.
    """

    def __init__(
        self,
        genes: pd.Index,
        sums: GroupSums,
        second: dict[str, csr_matrix | torch.Tensor],
        sample: CellSample,
        *,
        mode: str,
        reason: str,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.genes, self.sums, self._second, self._sample = pd.Index(genes), sums, second, sample
        self.mode, self.reason, self.dtype, self.device = mode, reason, dtype, check_device(device)
        self.n_cells, self.n_genes, self.sq_norm = sums.n_cells, len(self.genes), sums.sq_norm
        self.partitions = sorted(sums.gene_sq)
        self.gene_sq = self._tensor(np.stack([sums.gene_sq[owner] for owner in self.partitions]))

        names = sorted(sums.groups)
        types, self.donors = (sorted({name[i] for name in names} - {preprocessing.NO_TYPE}) for i in (0, 1))
        self.group_counts = self._tensor([sums.groups[name][0] for name in names])
        self.group_sums = self._tensor(np.stack([sums.groups[name][1] for name in names]))
        codes = {preprocessing.NO_TYPE: -1} | {name: code for code, name in enumerate(types)}
        self.group_type = torch.tensor([codes[name[0]] for name in names], device=device)
        self.n_labeled = sum(n for name, (n, _) in sums.groups.items() if name[0] != preprocessing.NO_TYPE)
        of_donor = self._tensor([[name[1] == donor for name in names] for donor in self.donors])
        self.donor_counts, self.donor_sums = of_donor @ self.group_counts, of_donor @ self.group_sums
        self._sparse: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._stack: torch.Tensor | None = None
        self.ready: dict = {}  # what the descent has made of it, for the next fit

    def _tensor(self, values: np.ndarray | list) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=self.dtype, device=self.device)

    # ---------------------------------------------------------------- from cells
    @classmethod
    def from_cells(
        cls,
        cells: AnnData | CellStream,
        *,
        donor: bool = True,
        cell_type: bool = True,
        by_donor: bool = False,
        mode: str = "auto",
        k: int = 80,
        device: str = "cpu",
    ) -> "Moments":
        """Sum over cells in memory or, block by block, on disk.

        Parameters
        ----------
        cells : n_cells × n_genes
            An AnnData whose ``X`` is CSR, log1p of counts per 10 000, float32 or float64; or a `stream.Cells`.
        donor, cell_type
            Tell groups apart by ``obs['donor_id']``, ``obs['cell_type']``. The conditional models need the donor, the
            invariance the type, which some cells may lack: each donor's are then a group of no type.
        by_donor
            Keep one second moment a donor, as model 2 needs; it serves the other models too.
        mode
            'implicit', 'explicit', or 'auto': the cheaper for a fit of `k` programs (`choose`).
        device
            'cpu', 'cuda', 'cuda:1' …

        Raises
        ------
        ValueError
            A column is missing, or the donor of some cells.
        MemoryError
            What was asked for does not fit; told before anything is computed.
        """
        check_device(device)
        obs, genes, in_memory = cells.obs, cells.var_names, isinstance(cells, AnnData)
        nnz = cells.X.nnz if in_memory else cells.nnz
        nothing = np.full(len(obs), "")
        labels = [
            preprocessing.read_labels(obs, name, partly=name == CELL_TYPE) if wanted else nothing
            for name, wanted in ((CELL_TYPE, cell_type), (DONOR, donor or by_donor))
        ]
        owner = labels[1] if by_donor else nothing
        sizes = {"n_cells": len(obs), "n_genes": len(genes), "nnz": nnz, "n_partitions": len(np.unique(owner))}
        mode, reason = choose_representation(**sizes, k=k, mode=mode, device=device)
        log.info("second moment %s: %s", mode, reason)

        sums, second, sample, dtype = GroupSums(), {}, None, torch.float32
        bar = tqdm(total=len(obs), desc="sums", unit="cell", unit_scale=True, mininterval=5, disable=in_memory)
        for X, rows in iter_blocks(cells):
            bar.update(X.shape[0])
            dtype = torch.float64 if X.dtype == np.float64 else torch.float32
            sums += GroupSums.from_cells(X, *(label[rows] for label in labels), owner[rows])
            more = CellSample.from_cells(X, obs.index[rows], None if sample is None else sample.limit)
            sample = more if sample is None else sample + more
            for name in np.unique(owner[rows]):
                X_d = select_rows(X, owner[rows] == name)
                if mode == IMPLICIT:
                    second.setdefault(name, []).append(X_d)
                else:
                    if name not in second:
                        second[name] = SecondMomentAccumulator(len(genes), dtype, device)
                    second[name].add(X_d)
        bar.close()
        done = {
            name: part.finish() if mode == EXPLICIT else part[0] if len(part) == 1 else vstack(part, format="csr")
            for name, part in second.items()
        }
        return cls(genes, sums, done, sample, mode=mode, reason=reason, dtype=dtype, device=device)

    # ---------------------------------------------------------------- merge, save, load
    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets of cells together."""
        return self._added(other, torch.add)

    def __iadd__(self, other: "Moments") -> "Moments":
        """Likewise; an explicit S is added to where it is, so that there are two at most, not three."""
        return self._added(other, torch.Tensor.add_)

    def _added(self, other: "Moments", add: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> "Moments":
        if not self.genes.equals(other.genes):
            shared = len(self.genes.intersection(other.genes))
            raise ValueError(
                f"moments of other genes cannot be added: {self.n_genes} and {other.n_genes} genes, {shared} shared "
                "(their order counts too). Make both from the same genes in the same order."
            )
        for what, mine, theirs in (
            ("implicit or both explicit", self.mode, other.mode),
            ("of the same precision", self.dtype, other.dtype),
            ("by donor or both not", self.by_donor, other.by_donor),
            ("grouped by the same labels", self.sums.labels, other.sums.labels),
        ):
            if mine != theirs:
                raise ValueError(f"moments to be added must both be {what}: one is {mine}, the other {theirs}.")
        second = dict(self._second)
        for name, more in other._second.items():
            if name not in second:
                second[name] = more
            elif self.mode == EXPLICIT:
                second[name] = add(second[name], more.to(self.device))
            else:
                second[name] = vstack([second[name], more], format="csr")
        return self._with(self.sums + other.sums, second, self._sample + other._sample)

    def all_reduce(self) -> "Moments":
        """Sum over the processes of ``torch.distributed``: each gets the moments of all cells.

        Every process sums its own shard of the cells (`stream.Cells` takes ``rows``), on its own card if it has one.
        """
        import torch.distributed as dist

        if self.mode != EXPLICIT:
            raise ValueError("implicit moments hold the cells: only explicit ones can be summed over processes.")
        tables = [None] * dist.get_world_size()
        dist.all_gather_object(tables, (list(self.genes), self.sums, self._sample))
        if any(genes != tables[0][0] or sums.labels != tables[0][1].labels for genes, sums, _ in tables):
            raise ValueError("the processes hold moments of other genes or labels: they cannot be summed.")
        total = sum((sums for _, sums, _ in tables), GroupSums())
        sample = reduce(operator.add, (sample for *_, sample in tables))
        second = {}
        for name in sorted(total.gene_sq):
            mine = self._second.get(name)
            second[name] = self._zeros() if mine is None else mine.clone()
            dist.all_reduce(second[name])
        return self._with(total, second, sample)

    def _with(self, sums: GroupSums, second: dict, sample: CellSample) -> "Moments":
        keep = {"mode": self.mode, "reason": self.reason, "dtype": self.dtype, "device": self.device}
        return Moments(self.genes, sums, second, sample, **keep)

    def with_groups(self, cells: AnnData, cell_type: np.ndarray) -> "Moments":
        """Moments of the same cells, other types told apart, (n_cells,) str; what products need is shared."""
        donor = preprocessing.read_labels(cells.obs, DONOR)
        sums = GroupSums.from_cells(cells.X, cell_type, donor, donor if self.by_donor else np.full(len(donor), ""))
        other = self._with(sums, self._second, self._sample)
        other.ready, other._sparse, other._stack = self.ready, self._sparse, self._stack
        return other

    def with_gene_weights(self, w: np.ndarray) -> "Moments":
        """Moments of ``X diag(w)``, for weights w ≥ 0 of the genes, (n_genes,)."""
        squares = {owner: w**2 * of for owner, of in self.sums.gene_sq.items()}
        groups = {name: (n, w * total) for name, (n, total) in self.sums.groups.items()}
        sums = GroupSums(self.n_cells, float(sum(of.sum() for of in squares.values())), groups, squares)
        if self.mode == EXPLICIT:
            both = torch.as_tensor(w, device=self.device)
            second = {name: S * (both[:, None] * both).to(S.dtype) for name, S in self._second.items()}
        else:
            second = {name: _scaled(X, w) for name, X in self._second.items()}
        return self._with(sums, second, CellSample(self._sample.keys, _scaled(self._sample.X, w)))

    def _zeros(self) -> torch.Tensor:
        return torch.zeros(self.n_genes, self.n_genes, dtype=torch.float64, device=self.device)

    def save(self, path: str | Path, **more: np.ndarray | str) -> None:
        """Write everything, and more if given, to one file (NumPy's ``.npz``), whole or not at all."""
        names = sorted(self.sums.groups)
        arrays = {
            "genes": self.genes.to_numpy(str),
            "mode": self.mode,
            "reason": self.reason,
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_cells": self.n_cells,
            "sq_norm": self.sq_norm,
            "groups": np.array(names, dtype=str),
            "counts": np.array([self.sums.groups[name][0] for name in names]),
            "sums": np.stack([self.sums.groups[name][1] for name in names]),
            "partitions": np.array(self.partitions, dtype=str),
            "gene_sq": np.stack([self.sums.gene_sq[name] for name in self.partitions]),
            "keys": self._sample.keys,
        }
        sparse = {"sample": self._sample.X}
        for i, name in enumerate(self.partitions):
            if self.mode == EXPLICIT:
                arrays[f"S{i}"] = self._second[name].cpu().numpy()
            else:
                sparse[f"cells{i}"] = self._second[name]
        for name, X in sparse.items():
            arrays |= {f"{name}_{part}": getattr(X, part) for part in _CSR}
        files.write_npz(path, FORMAT, **arrays, **more)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> "Moments":
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            There is no such file; it is not one of moments, is cut short, or of another version.
        """
        held = files.read_npz(path, FORMAT, "moments")
        groups = [tuple(map(str, name)) for name in held["groups"]]
        partitions = [str(name) for name in held["partitions"]]
        sums = GroupSums(
            int(held["n_cells"]),
            float(held["sq_norm"]),
            {name: (int(n), s) for name, n, s in zip(groups, held["counts"], held["sums"], strict=True)},
            dict(zip(partitions, held["gene_sq"], strict=True)),
        )

        def sparse(name: str) -> csr_matrix:
            shape = (len(held[f"{name}_indptr"]) - 1, len(held["genes"]))
            return csr_matrix(tuple(held[f"{name}_{part}"] for part in _CSR), shape)

        second = {
            name: torch.from_numpy(held[f"S{i}"]).to(device) if str(held["mode"]) == EXPLICIT else sparse(f"cells{i}")
            for i, name in enumerate(partitions)
        }
        keep = {"mode": str(held["mode"]), "reason": str(held["reason"]), "dtype": getattr(torch, str(held["dtype"]))}
        return cls(held["genes"], sums, second, CellSample(held["keys"], sparse("sample")), **keep, device=device)

    # ---------------------------------------------------------------- products
    @property
    def by_donor(self) -> bool:
        """Whether every donor has a second moment of its own."""
        return self.partitions != [""]

    @property
    def sample(self) -> csr_matrix:
        """Cells taken at random, (at most 4096, n_genes)."""
        return self._sample.X

    def cells(self, owner: str) -> csr_matrix:
        """Cells of one owner, (n_cells, n_genes), where S is implicit."""
        return self._second[owner]

    def second(self) -> torch.Tensor:
        """S of each owner where it is explicit, (n_partitions, n_genes, n_genes), in the precision of X."""
        if self._stack is None:
            self._stack = torch.stack([self._second[name].to(self.dtype) for name in self.partitions])
        return self._stack

    def product(self, V: torch.Tensor) -> torch.Tensor:
        """Multiply by the second moment of all cells: V (k, n_genes) → ``V S``, (k, n_genes)."""
        if self.mode == EXPLICIT:
            S = self.second()
            if len(S) == 1:  # S Vᵀ, for S is symmetric: a tall matrix is multiplied faster than a flat one
                return (S[0] @ V.T).T.contiguous()
            return torch.matmul(V, S).sum(0)
        VS = torch.zeros_like(V)
        for _, X, Xt in self._csr():
            VS += (Xt @ (X @ V.T.contiguous())).T
        return VS

    def product_by_donor(self, V: torch.Tensor) -> torch.Tensor:
        """Multiply by the second moment of each donor's cells, which must be kept apart.

        Parameters
        ----------
        V : (k, n_genes) or (n_donors, k, n_genes)
            One factor for all donors, or one for each.

        Returns
        -------
        (n_donors, k, n_genes), ``V_d S_d``.
        """
        V = V.expand(len(self.partitions), *V.shape[-2:])
        if self.mode == EXPLICIT:
            return torch.matmul(V, self.second())
        VS = torch.zeros_like(V, memory_format=torch.contiguous_format)
        for d, X, Xt in self._csr():
            VS[d] += (Xt @ (X @ V[d].T.contiguous())).T
        return VS

    def _csr(self) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        """Cells of each owner in torch's CSR and their stored transpose: a transposed view is 20 to 70 times slower."""
        if not self._sparse:
            self._sparse = [
                (d, to_torch(part, self.device), to_torch(part.T.tocsr(), self.device))
                for d, name in enumerate(self.partitions)
                for part in _split(self.cells(name))
            ]
        return self._sparse


def _scaled(X: csr_matrix, w: np.ndarray) -> csr_matrix:
    return csr_matrix((X.data * w.astype(X.dtype)[X.indices], X.indices, X.indptr), X.shape)


def _split(X: csr_matrix) -> list[csr_matrix]:
    n_parts = -(-X.nnz // _MAX_NNZ)
    if n_parts <= 1:
        return [X]
    cuts = np.searchsorted(
        X.indptr, np.linspace(0, X.nnz, n_parts + 2)[1:-1]
    )  # one part more: cuts fall on whole cells
    edges = [0, *cuts, X.shape[0]]
    return [X[lo:hi] for lo, hi in pairwise(edges) if hi > lo]
