"""How the second moment S = XᵀX is formed, and when forming it is cheaper; checks of torch devices and memory."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_matrix

from aenmf_lib.data import reading

log = logging.getLogger(__name__)

IMPLICIT, EXPLICIT = "implicit", "explicit"
MODES = ("auto", IMPLICIT, EXPLICIT)
REQUESTED = "requested"  # the reason for a representation that was not chosen automatically
_BLOCK = {"cpu": 1024, "cuda": 8192}  # number of cells converted to dense at a time
_PANEL = {"cpu": 512, "cuda": 2048}  # number of genes in a panel of S
_FLUSH = 2**16  # cells summed in the precision of X before their sum is added in float64
_TF32_ERROR = 1e-4  # tf32 is used if the relative error of a sampled part of S is below this

# For `choose_representation`, measured on 2 cores
_DENSE_OVER_SPARSE = 5.0  # an operation on a nonzero takes this many times longer than one on a dense block
_PRODUCTS = 60  # typical number of products with S in one fit


class SecondMomentAccumulator:
    """Form one second moment from blocks of cells, ``S += X_blockᵀ X_block``, in the lower triangle until `finish`."""

    def __init__(self, n_genes: int, dtype: torch.dtype, device: str) -> None:
        self.S = torch.zeros(n_genes, n_genes, dtype=torch.float64, device=device)
        self._recent = torch.zeros(n_genes, n_genes, dtype=dtype, device=device)
        self._n_recent = 0  # cells summed in `_recent`
        self.tf32: bool | None = None
        self._block, self._panel = _BLOCK[self.S.device.type], _PANEL[self.S.device.type]

    def add(self, X: csr_matrix) -> None:
        """Add cells X, (cells, n_genes), to S."""
        for lo in range(0, X.shape[0], self._block):
            block = X[lo : lo + self._block]
            if self.S.is_cuda:
                dense = to_torch(block, str(self.S.device), pinned=True).to_dense()
            else:
                dense = torch.from_numpy(block.toarray())
            if self.tf32 is None:
                self.tf32 = _tf32_is_safe(dense)
            with tf32(self.tf32):
                # torch has no symmetric product; SciPy's syrk holds the GIL and would block the reader
                for start in range(0, len(self.S), self._panel):
                    stop = start + self._panel
                    self._recent[start:stop, :stop].addmm_(dense[:, start:stop].T, dense[:, :stop])
            self._n_recent += len(dense)
            if self._n_recent >= _FLUSH:
                self._flush()

    def finish(self) -> torch.Tensor:
        """Return S, (n_genes, n_genes) float64."""
        self._flush()
        del self._recent
        for start in range(0, len(self.S), self._panel):  # in panels: a transpose of S would need a second S
            panel = slice(start, start + self._panel)
            self.S[panel, panel] = self.S[panel, panel].tril() + self.S[panel, panel].tril(-1).T
            self.S[panel, panel.stop :] = self.S[panel.stop :, panel].T
        return self.S

    def _flush(self) -> None:
        self.S += self._recent
        self._recent.zero_()
        self._n_recent = 0


def _tf32_is_safe(X: torch.Tensor) -> bool:
    """Return whether the GPU supports tf32 and the error of a sample of S with tf32 is below `_TF32_ERROR`."""
    if not X.is_cuda or X.dtype != torch.float32 or torch.cuda.get_device_capability(X.device) < (8, 0):
        return False
    sample = X[:, :: max(1, X.shape[1] // 256)].contiguous()
    exact = sample.double().T @ sample.double()
    with tf32(True):
        error = float(((sample.T @ sample) - exact).norm() / exact.norm())
    log.info("tf32 inputs: relative error %.1e on a sample, %s", error, "used" if error < _TF32_ERROR else "not used")
    return error < _TF32_ERROR


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Set whether float32 products on a GPU may round their inputs to tf32; reset this on exit."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def choose_representation(
    *, n_cells: int, n_genes: int, nnz: int, k: int, n_partitions: int = 1, mode: str = "auto", device: str = "cpu",
    extra_bytes: int = 0,
) -> tuple[str, str]:  # fmt: skip
    """Return how to store S, and the reason. 'auto': the mode with fewer operations for one fit that fits in memory."""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown. Choose 'auto', {IMPLICIT!r} or {EXPLICIT!r}.")
    available = available_memory(device)
    # implicit: the cells and a copy by gene; explicit: S in float64 and in the precision of X, and a dense block
    dense_block = 8 * _BLOCK[device.partition(":")[0]] * n_genes
    need = {IMPLICIT: 24 * nnz, EXPLICIT: n_partitions * 12 * n_genes**2 + dense_block + extra_bytes}
    operations = {
        IMPLICIT: _PRODUCTS * 4.0 * nnz * k * _DENSE_OVER_SPARSE,
        EXPLICIT: float(n_cells) * n_genes**2 + _PRODUCTS * 2.0 * n_partitions * n_genes**2 * k,
    }
    fits = [name for name in need if need[name] <= available]
    if mode in fits:
        return mode, REQUESTED
    sizes = ", ".join(f"{name} {need[name] / 2**30:.3g} GiB" for name in need)
    sizes = f"needed {sizes}; available {available / 2**30:.3g} GiB {'in memory' if device == 'cpu' else 'on the GPU'}"
    if mode != "auto" or not fits:
        what = "the second moment" if mode == "auto" else f"the {mode} second moment"
        donors = f", {n_partitions} donors" if n_partitions > 1 else ""
        remedy = f"Use mode={fits[0]!r}." if fits else "Use fewer genes, or a machine with more memory."
        raise MemoryError(f"{what} of {n_cells} cells × {n_genes} genes{donors} does not fit: {sizes}. {remedy}")
    best, other = sorted(need, key=lambda name: (name not in fits, operations[name]))
    counts = f"operations for {k} programs: {best} {operations[best]:.2g}, {other} {operations[other]:.2g}"
    return best, counts if len(fits) == 2 else f"{counts}; only {best} fits ({sizes})"


def available_memory(device: str) -> int:
    """Return the free bytes of the GPU, or of the machine."""
    return torch.cuda.mem_get_info(device)[0] if device != "cpu" else reading.available_memory()


def check_device(device: str) -> str:
    """Return the device; raise ValueError if its name is unknown, or RuntimeError if this machine has no such GPU."""
    check_device_name(device)
    kind, _, number = device.partition(":")
    if kind == "cuda" and int(number or 0) >= (n := torch.cuda.device_count()):
        remedy = "a smaller number or device='cpu'" if n else "device='cpu'"
        raise RuntimeError(f"device={device!r} is not available: torch finds {n} CUDA device(s). Use {remedy}.")
    return device


def check_device_name(device: str) -> None:
    """Raise ValueError unless the name of a device is valid. This machine need not have the device."""
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", device, re.ASCII):
        raise ValueError(f"device={device!r} is unknown. Choose 'cpu', 'cuda' or 'cuda:<number>'.")


def to_torch(X: csr_matrix, device: str = "cpu", *, pinned: bool = False) -> torch.Tensor:
    """Return X as a torch CSR tensor with 32-bit indices. `pinned` memory overlaps the copy to a GPU and computing."""
    parts = [torch.from_numpy(a) for a in (X.indptr.astype(np.int32), X.indices.astype(np.int32, copy=False), X.data)]
    if pinned:
        parts = [part.pin_memory().to(device, non_blocking=True) for part in parts]
    with warnings.catch_warnings():
        # torch warns once per process that CSR support is beta and that it does not check the indices, which SciPy made
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support is in beta|invariant checks are)")
        return torch.sparse_csr_tensor(*parts, X.shape, device=device)
