"""What do the models need to know of the cells?

Every objective depends on the cells through sums over them only: the second moment ``S = XᵀX`` (model 2: one a donor),
the sums and counts of each (cell type, donor) group, and ``‖X‖²``. Sums add up: over blocks read from disk, shards and
machines, always to the same thing. They serve every rank, seed and penalty.

S is kept in one of two ways. *Implicit*: the cells themselves, multiplied twice, ``V S = (X Vᵀ)ᵀ X``; a product costs
``4 nnz`` operations a program. *Explicit*: S formed once, ``n p²`` operations for n cells of p genes; a product then
costs ``2 p²`` a program, however many the cells. `choose` weighs the two.
"""

import contextlib
import logging
import warnings
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from aenmf_lib import data, results
from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.stream import Cells

log = logging.getLogger(__name__)

IMPLICIT, EXPLICIT = "implicit", "explicit"
_FORMAT = 1  # of the saved file
_MAX_NNZ = 2**31 - 1  # torch's CSR kernels are twice as fast with 32-bit indices, which can count this many nonzeros
_BLOCK = 1024  # cells made dense at a time
_FLUSH = 64  # dense blocks summed in the precision of X before they are added up in float64
_PANEL = 512  # genes of a panel of S
_TF32_ERROR = 1e-4  # relative error of a sampled part of S above which tf32 is not used

# What `choose` assumes, measured on 2 cores: operations on dense blocks run about this many times faster than those
# on nonzeros; and a fit takes about this many products.
DENSE_OVER_SPARSE = 5.0
PRODUCTS = 60


@dataclass
class Sums:
    """The small sums: everything but the second moments. They add up (``a + b``)."""

    n_cells: int = 0
    sq_norm: float = 0.0  # tr S = ‖X‖²
    groups: dict[tuple[str, str], tuple[int, np.ndarray]] = field(default_factory=dict)  # count and sum of each
    gene_sq: dict[str, np.ndarray] = field(default_factory=dict)  # diagonal of each second moment

    def __add__(self, other: "Sums") -> "Sums":
        total = Sums(self.n_cells + other.n_cells, self.sq_norm + other.sq_norm, dict(self.groups), dict(self.gene_sq))
        for name, (n, s) in other.groups.items():
            n0, s0 = total.groups.get(name, (0, 0.0))
            total.groups[name] = (n0 + n, s0 + s)
        for owner, squares in other.gene_sq.items():
            total.gene_sq[owner] = total.gene_sq.get(owner, 0.0) + squares
        return total

    @classmethod
    def of(cls, X: csr_matrix, cell_type: np.ndarray, donor: np.ndarray, owner: np.ndarray) -> "Sums":
        """Sum over one block of cells."""
        sums = cls(X.shape[0], float(np.square(X.data, dtype=np.float64).sum()))
        code, names = pd.MultiIndex.from_arrays([cell_type, donor]).factorize()
        one_hot = csr_matrix((np.ones(len(code)), code, np.arange(len(code) + 1)), shape=(len(code), len(names)))
        totals = (one_hot.T.tocsr() @ X.astype(np.float64)).toarray()
        sums.groups = dict(zip(names, zip(np.bincount(code).tolist(), totals, strict=True), strict=True))
        for name in np.unique(owner):
            X_d = _rows(X, owner == name)
            sums.gene_sq[name] = np.bincount(X_d.indices, np.square(X_d.data, dtype=np.float64), minlength=X.shape[1])
        return sums

    @property
    def labels(self) -> list[str]:
        """Which labels the groups were told apart by."""
        first = next(iter(self.groups), ("", ""))
        return [name for name, label in zip((CELL_TYPE, DONOR), first, strict=True) if label != ""]


class Moments:
    """Sums over the cells, and products with their second moment. Made by `Moments.of` or `Moments.load`.

    Attributes
    ----------
    genes : (n_genes,) Index
    n_cells, n_genes : int
    sq_norm : float
        tr S = ‖X‖².
    owners : list of str
        Whose cells have a second moment of their own: the donors, sorted, or [''] for all cells together.
    gene_sq : (n_owners, n_genes)
        Diagonals of the second moments.
    donors : list of str
        Sorted.
    donor_counts, donor_sums : (n_donors,), (n_donors, n_genes)
    group_counts, group_sums : (n_groups,), (n_groups, n_genes)
        Number and sum of the cells of each (cell type, donor) pair that has any.
    group_type : (n_groups,) int
        Which cell type a group is of.
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
        sums: Sums,
        second: dict[str, csr_matrix | torch.Tensor],
        *,
        mode: str,
        reason: str,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.genes, self.sums, self._second = pd.Index(genes), sums, second
        self.mode, self.reason, self.dtype, self.device = mode, reason, dtype, check_device(device)
        self.n_cells, self.n_genes, self.sq_norm = sums.n_cells, len(self.genes), sums.sq_norm
        self.owners = sorted(sums.gene_sq)
        self.gene_sq = self._tensor(np.stack([sums.gene_sq[owner] for owner in self.owners]))

        names = sorted(sums.groups)
        types, self.donors = (sorted({name[i] for name in names}) for i in (0, 1))
        self.group_counts = self._tensor([sums.groups[name][0] for name in names])
        self.group_sums = self._tensor(np.stack([sums.groups[name][1] for name in names]))
        self.group_type = torch.tensor([types.index(name[0]) for name in names], device=device)
        of_donor = self._tensor([[name[1] == donor for name in names] for donor in self.donors])
        self.donor_counts, self.donor_sums = of_donor @ self.group_counts, of_donor @ self.group_sums
        self._sparse: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._stack: torch.Tensor | None = None

    def _tensor(self, values: np.ndarray | list) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=self.dtype, device=self.device)

    # ---------------------------------------------------------------- from cells
    @classmethod
    def of(
        cls,
        cells: AnnData | Cells,
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
            invariance of model 1 the type.
        by_donor
            Keep one second moment a donor, as model 2 needs; it serves the other models too.
        mode
            'implicit', 'explicit', or 'auto': the cheaper for a fit of `k` programs (`choose`).
        device
            'cpu', 'cuda', 'cuda:1' …

        Raises
        ------
        ValueError
            A column is missing or empty for some cells.
        MemoryError
            What was asked for does not fit; told before anything is computed.
        """
        check_device(device)
        obs, in_memory = cells.obs, isinstance(cells, AnnData)
        genes, nnz = (cells.var_names, cells.X.nnz) if in_memory else (cells.genes, cells.nnz)
        nothing = np.full(len(obs), "")
        labels = [
            data.labels(obs, name) if wanted else nothing
            for name, wanted in ((CELL_TYPE, cell_type), (DONOR, donor or by_donor))
        ]
        owner = labels[1] if by_donor else nothing
        sizes = {"n_cells": len(obs), "n_genes": len(genes), "nnz": nnz, "n_owners": len(np.unique(owner))}
        mode, reason = choose(**sizes, k=k, mode=mode, device=device)
        log.info("second moment %s: %s", mode, reason)

        sums, second, dtype = Sums(), {}, torch.float32
        for X, rows in [(cells.X, slice(0, cells.n_obs))] if in_memory else cells:
            dtype = torch.float64 if X.dtype == np.float64 else torch.float32
            sums += Sums.of(X, *(label[rows] for label in labels), owner[rows])
            for name in np.unique(owner[rows]):
                X_d = _rows(X, owner[rows] == name)
                if mode == IMPLICIT:
                    second.setdefault(name, []).append(X_d)
                else:
                    if name not in second:
                        second[name] = _Forming(len(genes), dtype, device)
                    second[name].add(X_d)
        done = {
            name: part.finish() if mode == EXPLICIT else part[0] if len(part) == 1 else vstack(part, format="csr")
            for name, part in second.items()
        }
        return cls(genes, sums, done, mode=mode, reason=reason, dtype=dtype, device=device)

    # ---------------------------------------------------------------- merge, save, load
    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets of cells together."""
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
                second[name] = second[name] + more.to(self.device)
            else:
                second[name] = vstack([second[name], more], format="csr")
        return self._with(self.sums + other.sums, second)

    def all_reduce(self) -> "Moments":
        """Sum over the processes of ``torch.distributed``: each gets the moments of all cells.

        Every process sums its own shard of the cells (`stream.Cells` takes ``rows``), on its own card if it has one.
        """
        import torch.distributed as dist

        if self.mode != EXPLICIT:
            raise ValueError("implicit moments hold the cells: only explicit ones can be summed over processes.")
        tables = [None] * dist.get_world_size()
        dist.all_gather_object(tables, (list(self.genes), self.sums))
        if any(genes != tables[0][0] or sums.labels != tables[0][1].labels for genes, sums in tables):
            raise ValueError("the processes hold moments of other genes or labels: they cannot be summed.")
        total = sum((sums for _, sums in tables), Sums())
        second = {}
        for name in sorted(total.gene_sq):
            mine = self._second.get(name)
            second[name] = self._zeros() if mine is None else mine.clone()
            dist.all_reduce(second[name])
        return self._with(total, second)

    def _with(self, sums: Sums, second: dict) -> "Moments":
        keep = {"mode": self.mode, "reason": self.reason, "dtype": self.dtype, "device": self.device}
        return Moments(self.genes, sums, second, **keep)

    def _zeros(self) -> torch.Tensor:
        return torch.zeros(self.n_genes, self.n_genes, dtype=torch.float64, device=self.device)

    def save(self, path: str | Path) -> None:
        """Write everything to one file (NumPy's ``.npz``), whole or not at all."""
        names = sorted(self.sums.groups)
        arrays = {
            "format": _FORMAT,
            "genes": self.genes.to_numpy(str),
            "mode": self.mode,
            "reason": self.reason,
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_cells": self.n_cells,
            "sq_norm": self.sq_norm,
            "groups": np.array(names, dtype=str),
            "counts": np.array([self.sums.groups[name][0] for name in names]),
            "sums": np.stack([self.sums.groups[name][1] for name in names]),
            "owners": np.array(self.owners, dtype=str),
            "gene_sq": np.stack([self.sums.gene_sq[name] for name in self.owners]),
        }
        for i, name in enumerate(self.owners):
            part = self._second[name]
            if self.mode == EXPLICIT:
                arrays[f"S{i}"] = part.cpu().numpy()
            else:
                arrays |= {f"data{i}": part.data, f"indices{i}": part.indices, f"indptr{i}": part.indptr}
        with results.atomic(path) as partial, partial.open("wb") as file:  # given a name, NumPy would add to it
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> "Moments":
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            There is no such file; it is not one of moments, is cut short, or of another version.
        """
        held = read_npz(path, _FORMAT, "moments")
        groups = [tuple(map(str, name)) for name in held["groups"]]
        owners = [str(name) for name in held["owners"]]
        sums = Sums(
            int(held["n_cells"]),
            float(held["sq_norm"]),
            {name: (int(n), s) for name, n, s in zip(groups, held["counts"], held["sums"], strict=True)},
            dict(zip(owners, held["gene_sq"], strict=True)),
        )
        second = {}
        for i, name in enumerate(owners):
            if str(held["mode"]) == EXPLICIT:
                second[name] = torch.from_numpy(held[f"S{i}"]).to(device)
            else:
                shape = (len(held[f"indptr{i}"]) - 1, len(held["genes"]))
                second[name] = csr_matrix(tuple(held[f"{part}{i}"] for part in ("data", "indices", "indptr")), shape)
        keep = {"mode": str(held["mode"]), "reason": str(held["reason"]), "dtype": getattr(torch, str(held["dtype"]))}
        return cls(held["genes"], sums, second, **keep, device=device)

    # ---------------------------------------------------------------- products
    @property
    def by_donor(self) -> bool:
        """Whether every donor has a second moment of its own."""
        return self.owners != [""]

    def cells(self, owner: str) -> csr_matrix:
        """Cells of one owner, (n_cells, n_genes), where S is implicit."""
        return self._second[owner]

    def second(self) -> torch.Tensor:
        """S of each owner where it is explicit, (n_owners, n_genes, n_genes), in the precision of X."""
        if self._stack is None:
            self._stack = torch.stack([self._second[name].to(self.dtype) for name in self.owners])
        return self._stack

    def product(self, V: torch.Tensor) -> torch.Tensor:
        """Multiply by the second moment of all cells: V (k, n_genes) → ``V S``, (k, n_genes)."""
        if self.mode == EXPLICIT:
            return torch.matmul(V, self.second()).sum(0)
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
        V = V.expand(len(self.owners), *V.shape[-2:])
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
                for d, name in enumerate(self.owners)
                for part in _split(self.cells(name))
            ]
        return self._sparse


class _Forming:
    """One second moment while it is formed, its lower triangle only: ``S += X_blockᵀ X_block``, blocks made dense."""

    def __init__(self, p: int, dtype: torch.dtype, device: str) -> None:
        self.S = torch.zeros(p, p, dtype=torch.float64, device=device)
        self.recent = torch.zeros(p, p, dtype=dtype, device=device)
        self.pending = 0
        self.tf32: bool | None = None

    def add(self, X: csr_matrix) -> None:
        """Add cells."""
        for lo in range(0, X.shape[0], _BLOCK):
            block = X[lo : lo + _BLOCK]
            dense = (
                to_torch(block, str(self.S.device)).to_dense() if self.S.is_cuda else torch.from_numpy(block.toarray())
            )
            if self.tf32 is None:
                self.tf32 = _tf32_is_safe(dense)
            with _tf32(self.tf32):
                # torch has no symmetric product, and SciPy's holds Python's lock, which stops the reader
                for start in range(0, len(self.S), _PANEL):
                    stop = start + _PANEL
                    self.recent[start:stop, :stop].addmm_(dense[:, start:stop].T, dense[:, :stop])
            self.pending += 1
            if self.pending == _FLUSH:
                self._flush()

    def finish(self) -> torch.Tensor:
        """S, (n_genes, n_genes) float64."""
        self._flush()
        del self.recent
        for start in range(0, len(self.S), _PANEL):  # by panels: a transpose of all would be a second S
            stop = start + _PANEL
            self.S[start:stop, start:stop] = (
                self.S[start:stop, start:stop].tril() + self.S[start:stop, start:stop].tril(-1).T
            )
            self.S[start:stop, stop:] = self.S[stop:, start:stop].T
        return self.S

    def _flush(self) -> None:
        self.S += self.recent
        self.recent.zero_()
        self.pending = 0


def _tf32_is_safe(X: torch.Tensor) -> bool:
    """Whether the card has tf32 and a sample of S shows that nothing is lost by it."""
    if not X.is_cuda or X.dtype != torch.float32 or torch.cuda.get_device_capability(X.device) < (8, 0):
        return False
    some = X[:, :: max(1, X.shape[1] // 256)].contiguous()
    exact = some.double().T @ some.double()
    with _tf32(True):
        error = float(((some.T @ some) - exact).norm() / exact.norm())
    log.info("tf32 inputs, relative error %.1e on a sample: %s", error, "used" if error < _TF32_ERROR else "not used")
    return error < _TF32_ERROR


@contextlib.contextmanager
def _tf32(allowed: bool):
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def choose(
    *, n_cells: int, n_genes: int, nnz: int, k: int, n_owners: int = 1, mode: str = "auto", device: str = "cpu"
) -> tuple[str, str]:
    """Choose how S is kept: the mode that takes fewer operations for one fit and fits in memory.

    Operations are counted in those of a dense product: `DENSE_OVER_SPARSE` is what one on a nonzero costs.

    Returns
    -------
    mode, reason : str

    Raises
    ------
    MemoryError
        The mode asked for, or both, do not fit.
    """
    if mode not in ("auto", IMPLICIT, EXPLICIT):
        raise ValueError(f"mode={mode!r} is not known: give 'auto', {IMPLICIT!r} or {EXPLICIT!r}.")
    there = available_memory(device)
    need = {
        IMPLICIT: 24 * nnz,  # the cells, and a copy by gene
        EXPLICIT: n_owners * 12 * n_genes**2 + 8 * _BLOCK * n_genes,  # S in float64 and in the precision of X
    }
    operations = {
        IMPLICIT: PRODUCTS * 4.0 * nnz * k * DENSE_OVER_SPARSE,
        EXPLICIT: float(n_cells) * n_genes**2 + PRODUCTS * 2.0 * n_owners * n_genes**2 * k,
    }
    fits = [name for name in need if need[name] <= there]
    sizes = ", ".join(f"{name} {need[name] / 2**30:.3g} GiB" for name in need)
    where = "on the card" if device != "cpu" else "in memory"
    if mode != "auto":
        if mode not in fits:
            instead = f"use mode={fits[0]!r}" if fits else "take fewer genes"
            raise MemoryError(
                f"the {mode} second moment of {n_cells} cells × {n_genes} genes"
                f"{f', {n_owners} donors apart,' if n_owners > 1 else ''} does not fit: needed {sizes}; there is "
                f"{there / 2**30:.3g} GiB {where}: {instead}."
            )
        return mode, "asked for"
    if not fits:
        raise MemoryError(
            f"neither second moment of {n_cells} cells × {n_genes} genes fits: needed {sizes}; there is "
            f"{there / 2**30:.3g} GiB {where}. Take fewer genes, or a machine with more memory."
        )
    best = min(fits, key=operations.get)
    told = " against ".join(f"{name} {operations[name]:.2g}" for name in sorted(need, key=lambda name: name != best))
    only = "" if len(fits) == 2 else f"; only {best} fits ({sizes}; there is {there / 2**30:.3g} GiB)"
    return best, f"operations for {k} programs: {told}{only}"


def available_memory(device: str) -> int:
    """Bytes free on the device; on the CPU what the machine, or the job's control group, has left."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except OSError:  # no control group of this kind here
        return free


def check_device(device: str) -> str:
    """Give the device back if it is there."""
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} is not known: give 'cpu', 'cuda' or 'cuda:<number>'.")
    if device.startswith("cuda"):
        n = torch.cuda.device_count()
        if int(device.partition(":")[2] or 0) >= n:
            raise RuntimeError(
                f"device={device!r} was asked for, but torch sees {n or 'no'} CUDA device{'s' * (n != 1)} here: use "
                f"{'a smaller number or ' if n else ''}device='cpu'."
            )
    return device


def to_torch(X: csr_matrix, device: str = "cpu") -> torch.Tensor:
    """Give a SciPy CSR matrix as a torch CSR tensor with 32-bit indices, sharing memory on the CPU."""
    with warnings.catch_warnings():
        # torch warns once a process that its CSR support is beta and that it trusts the indices: SciPy made them
        warnings.filterwarnings(
            "ignore", message="Sparse (CSR tensor support is in beta|invariant checks are implicitly)"
        )
        parts = (torch.from_numpy(a.astype(np.int32, copy=False)) for a in (X.indptr, X.indices))
        return torch.sparse_csr_tensor(*parts, torch.from_numpy(X.data), X.shape, device=device)


def read_npz(path: str | Path, version: int, what: str) -> dict[str, np.ndarray]:
    """Read an ``.npz`` whole; `what` names it in errors. Raises FileNotFoundError, ValueError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        found = int(held["format"])
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, NumPy and zlib each have their own for a damaged file
        raise ValueError(f"{path} is not a file of {what}, or is cut short ({error}): make it again.") from error
    if found != version:
        raise ValueError(f"{path} holds {what} of format {found}; this version reads {version}: make it again.")
    return held


def _rows(X: csr_matrix, wanted: np.ndarray) -> csr_matrix:
    return X if wanted.all() else X[np.flatnonzero(wanted)]


def _split(X: csr_matrix) -> list[csr_matrix]:
    n_parts = -(-X.nnz // _MAX_NNZ)
    if n_parts <= 1:
        return [X]
    cuts = np.searchsorted(
        X.indptr, np.linspace(0, X.nnz, n_parts + 2)[1:-1]
    )  # one part more: cuts fall on whole cells
    edges = [0, *cuts, X.shape[0]]
    return [X[lo:hi] for lo, hi in pairwise(edges) if hi > lo]
