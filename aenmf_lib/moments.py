"""What do the models need to know of the cells?

Every objective depends on the cells through sums over them only: ``S = XᵀX``, and a handful of group sums. ``S`` is
never formed here; ``Moments.product`` multiplies by it, ``V S = (X Vᵀ)ᵀ X``, which is two sparse × dense products. A
model that needs ``S`` per donor asks for the same product with the cells kept apart by donor.
"""

import warnings
from itertools import pairwise

import numpy as np
import torch
from scipy.sparse import csr_matrix

# torch's CSR kernels are twice as fast with 32-bit indices, which can count this many nonzeros
_MAX_NNZ = 2**31 - 1


def to_torch(X: csr_matrix, device: str = "cpu") -> torch.Tensor:
    """Give a SciPy CSR matrix as a torch CSR tensor with 32-bit indices, sharing memory on the CPU."""
    with warnings.catch_warnings():
        # torch warns once a process that its CSR support is beta and that it trusts the indices: SciPy made them
        warnings.filterwarnings(
            "ignore", message="Sparse (CSR tensor support is in beta|invariant checks are implicitly)"
        )
        parts = (torch.from_numpy(a.astype(np.int32, copy=False)) for a in (X.indptr, X.indices))
        return torch.sparse_csr_tensor(*parts, torch.from_numpy(X.data), X.shape, device=device)


class Moments:
    """Sums over the cells, and products with the second moment ``S = XᵀX``.

    Parameters
    ----------
    X : (n_cells, n_genes) CSR
        log1p of counts per 10 000. Its dtype (float32 or float64) is the one worked in.
    donor : (n_cells,) int, optional
        Donor of each cell, 0 … n_donors − 1, each present. Needed by the conditional models.
    cell_type : (n_cells,) int, optional
        Type of each cell. Needed by the invariance penalty.
    by_donor
        Keep ``S_d = X_dᵀX_d`` apart for each donor; otherwise there is one ``S`` of all cells.
    device
        Where the products are computed.

    Attributes
    ----------
    n_cells, n_genes : int
    n_blocks : int
        Number of second moments: n_donors where kept apart by donor, else 1.
    sq_norm : float
        tr S = ‖X‖².
    gene_sq : (n_blocks, n_genes)
        Diagonals of the second moments.
    donor_counts : (n_donors,)
    donor_sums : (n_donors, n_genes)
    group_counts : (n_groups,)
        Cells of each (cell type, donor) pair that has any.
    group_sums : (n_groups, n_genes)
    group_type : (n_groups,) int
        Which cell type a group is of.
    """

    def __init__(
        self,
        X: csr_matrix,
        *,
        donor: np.ndarray | None = None,
        cell_type: np.ndarray | None = None,
        by_donor: bool = False,
        device: str = "cpu",
    ) -> None:
        if device.partition(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"device={device!r} is not known: give 'cpu', 'cuda' or 'cuda:<number>'.")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise RuntimeError(
                f"device={device!r} was asked for, but torch sees no CUDA device here: use device='cpu'."
            )
        self.n_cells, self.n_genes = X.shape
        self.device = device
        self.dtype = torch.float64 if X.dtype == np.float64 else torch.float32
        self.sq_norm = float(
            np.dot(X.data, X.data) if X.dtype == np.float64 else np.square(X.data, dtype=np.float64).sum()
        )

        if donor is not None:
            self.donor_sums, self.donor_counts = self._sums(X, donor)
        if cell_type is not None and donor is not None:
            n_donors = len(self.donor_counts)
            pairs, group = np.unique(cell_type.astype(np.int64) * n_donors + donor, return_inverse=True)
            self.group_sums, self.group_counts = self._sums(X, group)
            self.group_type = torch.from_numpy(pairs // n_donors).to(device)

        owner = donor if by_donor else np.zeros(self.n_cells, dtype=np.int64)
        self.n_blocks = int(owner.max()) + 1
        self._parts = []
        gene_sq = np.zeros((self.n_blocks, self.n_genes))
        for b in range(self.n_blocks):
            rows = np.flatnonzero(owner == b)
            X_b = X[rows] if len(rows) < self.n_cells else X
            gene_sq[b] = X_b.multiply(X_b).sum(axis=0)
            for part in _split(X_b):
                # the transpose is stored: products with a transposed view of a CSR tensor are 20 to 70 times slower
                self._parts.append((b, to_torch(part, device), to_torch(part.T.tocsr(), device)))
        self.gene_sq = torch.from_numpy(gene_sq).to(device, self.dtype)

    def _sums(self, X: csr_matrix, group: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        counts = np.bincount(group)
        one_hot = csr_matrix((np.ones(len(group)), group, np.arange(len(group) + 1)), shape=(len(group), len(counts)))
        sums = (one_hot.T @ X.astype(np.float64)).toarray()
        return tuple(torch.from_numpy(np.asarray(a)).to(self.device, self.dtype) for a in (sums, counts))

    def product(self, V: torch.Tensor) -> torch.Tensor:
        """Multiply by the second moment of all cells: V (k, n_genes) → ``V S``, (k, n_genes)."""
        VS = torch.zeros_like(V)
        for _, X, Xt in self._parts:
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
        V = V.expand(self.n_blocks, *V.shape[-2:])
        VS = torch.zeros_like(V, memory_format=torch.contiguous_format)
        for d, X, Xt in self._parts:
            VS[d] += (Xt @ (X @ V[d].T.contiguous())).T
        return VS


def _split(X: csr_matrix) -> list[csr_matrix]:
    n_parts = -(-X.nnz // _MAX_NNZ)
    if n_parts <= 1:
        return [X]
    cuts = np.searchsorted(
        X.indptr, np.linspace(0, X.nnz, n_parts + 2)[1:-1]
    )  # one part more: cuts fall on whole cells
    edges = [0, *cuts, X.shape[0]]
    return [X[lo:hi] for lo, hi in pairwise(edges) if hi > lo]
