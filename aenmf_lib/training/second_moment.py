"""How is the second moment formed, and is it worth forming? On the CPU or a card, in blocks of cells made dense."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from scipy.sparse import csr_matrix

log = logging.getLogger(__name__)

IMPLICIT, EXPLICIT = "implicit", "explicit"
_BLOCK = {"cpu": 1024, "cuda": 8192}  # cells made dense at a time
_PANEL = {"cpu": 512, "cuda": 2048}  # genes of a panel of S
_FLUSH = 2**16  # cells summed in the precision of X before they are added up in float64
_TF32_ERROR = 1e-4  # relative error of a sampled part of S above which tf32 is not used

# What `choose` assumes, measured on 2 cores: operations on dense blocks run about this many times faster than those
# on nonzeros; and a fit takes about this many products.
DENSE_OVER_SPARSE = 5.0
PRODUCTS = 60


class SecondMomentAccumulator:
    """One second moment while it is formed, its lower triangle only: ``S += X_blockᵀ X_block``, blocks made dense."""

    def __init__(self, p: int, dtype: torch.dtype, device: str) -> None:
        self.S = torch.zeros(p, p, dtype=torch.float64, device=device)
        self.recent = torch.zeros(p, p, dtype=dtype, device=device)
        self.pending = 0  # cells
        self.tf32: bool | None = None
        self.block, self.panel = _BLOCK[self.S.device.type], _PANEL[self.S.device.type]

    def add(self, X: csr_matrix) -> None:
        """Add cells."""
        for lo in range(0, X.shape[0], self.block):
            block = _rows(X, lo, lo + self.block)
            if self.S.is_cuda:
                dense = to_torch(block, str(self.S.device), pinned=True).to_dense()
            else:
                dense = torch.from_numpy(block.toarray())
            if self.tf32 is None:
                self.tf32 = _tf32_is_safe(dense)
            with tf32(self.tf32):
                # torch has no symmetric product, and SciPy's holds Python's lock, which stops the reader
                for start in range(0, len(self.S), self.panel):
                    stop = start + self.panel
                    self.recent[start:stop, :stop].addmm_(dense[:, start:stop].T, dense[:, :stop])
            self.pending += len(dense)
            if self.pending >= _FLUSH:
                self._flush()

    def finish(self) -> torch.Tensor:
        """S, (n_genes, n_genes) float64."""
        self._flush()
        del self.recent
        for start in range(0, len(self.S), self.panel):  # by panels: a transpose of all would be a second S
            stop = start + self.panel
            self.S[start:stop, start:stop] = (
                self.S[start:stop, start:stop].tril() + self.S[start:stop, start:stop].tril(-1).T
            )
            self.S[start:stop, stop:] = self.S[stop:, start:stop].T
        return self.S

    def _flush(self) -> None:
        self.S += self.recent
        self.recent.zero_()
        self.pending = 0


def _rows(X: csr_matrix, lo: int, hi: int) -> csr_matrix:
    """Cells lo to hi, sharing memory with X: a slice would copy them."""
    indptr = X.indptr[lo : hi + 1]
    at = slice(indptr[0], indptr[-1])
    return csr_matrix((X.data[at], X.indices[at], indptr - indptr[0]), (len(indptr) - 1, X.shape[1]), copy=False)


def _tf32_is_safe(X: torch.Tensor) -> bool:
    """Whether the card has tf32 and a sample of S shows that nothing is lost by it."""
    if not X.is_cuda or X.dtype != torch.float32 or torch.cuda.get_device_capability(X.device) < (8, 0):
        return False
    some = X[:, :: max(1, X.shape[1] // 256)].contiguous()
    exact = some.double().T @ some.double()
    with tf32(True):
        error = float(((some.T @ some) - exact).norm() / exact.norm())
    log.info("tf32 inputs, relative error %.1e on a sample: %s", error, "used" if error < _TF32_ERROR else "not used")
    return error < _TF32_ERROR


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let float32 products on a card round their inputs to tf32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def choose_representation(
    *,
    n_cells: int,
    n_genes: int,
    nnz: int,
    k: int,
    n_partitions: int = 1,
    mode: str = "auto",
    device: str = "cpu",
    beside: int = 0,
) -> tuple[str, str]:
    """Choose how S is kept: the mode that takes fewer operations for one fit and fits in memory.

    Operations are counted in those of a dense product: `DENSE_OVER_SPARSE` is what one on a nonzero costs. `beside`
    are bytes that an explicit one takes besides.

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
        # S in float64 and in the precision of X, and a dense block
        EXPLICIT: n_partitions * 12 * n_genes**2 + 8 * _BLOCK[device.partition(":")[0]] * n_genes + beside,
    }
    operations = {
        IMPLICIT: PRODUCTS * 4.0 * nnz * k * DENSE_OVER_SPARSE,
        EXPLICIT: float(n_cells) * n_genes**2 + PRODUCTS * 2.0 * n_partitions * n_genes**2 * k,
    }
    fits = [name for name in need if need[name] <= there]
    sizes = ", ".join(f"{name} {need[name] / 2**30:.3g} GiB" for name in need)
    where = "on the card" if device != "cpu" else "in memory"
    if mode != "auto":
        if mode not in fits:
            instead = f"use mode={fits[0]!r}" if fits else "take fewer genes"
            raise MemoryError(
                f"the {mode} second moment of {n_cells} cells × {n_genes} genes"
                f"{f', {n_partitions} donors,' if n_partitions > 1 else ''} does not fit: needed {sizes}; there is "
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


def to_torch(X: csr_matrix, device: str = "cpu", *, pinned: bool = False) -> torch.Tensor:
    """Give a SciPy CSR matrix as a torch CSR tensor with 32-bit indices, sharing memory on the CPU.

    Through `pinned` memory a card is sent it while it works on what came before.
    """
    parts = [torch.from_numpy(a) for a in (X.indptr.astype(np.int32), X.indices.astype(np.int32, copy=False), X.data)]
    if pinned:
        parts = [part.pin_memory().to(device, non_blocking=True) for part in parts]
    with warnings.catch_warnings():
        # torch warns once a process that its CSR support is beta and that it trusts the indices: SciPy made them
        warnings.filterwarnings(
            "ignore", message="Sparse (CSR tensor support is in beta|invariant checks are implicitly)"
        )
        return torch.sparse_csr_tensor(*parts, X.shape, device=device)
