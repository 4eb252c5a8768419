"""Choice between forming the second moment S = XᵀX and products with the cells; checks of devices and memory."""

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
CELLS = {"cpu": 2048, "cuda": 2**15}  # number of cells that are added to S together
FLUSH = 2**16  # cells summed on a GPU in the precision of X before their sum is added in float64

# For `choose_representation`, measured on 2 cores
_DENSE_OVER_SPARSE = 5.0  # an operation on a nonzero takes this many times longer than one on a dense block
_RANK = 0.3  # share of all genes that are more frequent than the gene of a nonzero, on average
_ADDING = 0.1  # operations to add the sums over a block to S, per cell and entry of S
_PRODUCTS = 60  # typical number of products with S in one fit


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
    # implicit: the cells and a copy by gene; explicit: S in float64 and in the precision of X, and blocks of cells
    n_block, per_cell = CELLS[device.partition(":")[0]] * (n_partitions + 1), 24 * nnz // max(n_cells, 1)
    block = min(n_block, n_cells) * (per_cell if device == "cpu" else 8 * n_genes // (n_partitions + 1))
    need = {IMPLICIT: 24 * nnz, EXPLICIT: n_partitions * 12 * n_genes**2 + block + extra_bytes}
    forming = 2.0 * nnz * n_genes * _RANK * _DENSE_OVER_SPARSE + _ADDING * n_cells * n_genes**2
    operations = {
        IMPLICIT: _PRODUCTS * 4.0 * nnz * k * _DENSE_OVER_SPARSE,
        EXPLICIT: forming + _PRODUCTS * 2.0 * n_partitions * n_genes**2 * k,
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
