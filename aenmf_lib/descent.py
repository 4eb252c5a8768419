"""How is an objective minimised on the CPU? Gene by gene, program by program, each entry to its own minimum.

Exact coordinate descent: with all else fixed the objective is a polynomial of degree four in one entry of W, and of
degree two in one of model 2's U, so the best step is known in closed form; it is over-relaxed by `RELAX`, which the
slow directions need. Genes are visited in blocks: ``W S`` is formed for a block at once (`_Implicit`, `_Explicit`),
followed within the block through the block's own part of S, and the cells' usages are then brought up to date.

With ``α = (W S)_a`` and ``s = S_aa`` for gene a, ``F = W S Wᵀ`` and ``G = V Vᵀ`` (V = W, or W + U_d of each donor), a
step t of entry j changes the squared error by ``c₁ t + c₂ t² + c₃ t³ + c₄ t⁴``:

    c₁ = 2 [G α + F v − α − (V S)_a]_j      c₂ = s G_jj + F_jj + 2 (α_j v_j + ⟨α, v⟩) − 2 s
    c₃ = 2 (α_j + s v_j)                    c₄ = s
"""

import math

import numpy as np
import torch
from numba import njit, prange

from aenmf_lib.moments import EXPLICIT, Moments
from aenmf_lib.objectives import Bending, Point, Tied

RELAX = 1.9  # share of the best step that is taken; 1 to below 2. Measured: 1.9 needs a fifth of the sweeps that 1 does
_GENES = 128  # genes of a block
_TILE = 2048  # cells of a tile: its usages stay in the cache of one core
_CHUNKS = 4  # partial sums of a Gram matrix: fixed, so that bits do not depend on the number of cores

# what a compiler may do to sums: reorder, but keep NaN and infinity for the solver to see
_FAST = {"contract", "reassoc", "arcp", "nsz"}
_parallel = njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)
_serial = njit(fastmath=_FAST, cache=True, nogil=True)


# -------------------------------------------------------------------- W S, kept up to date while W moves
class _Implicit:
    """Products with the second moment through the usages of the cells; `apart` keeps owners apart."""

    def __init__(self, moments: Moments, *, apart: bool) -> None:
        self.n_owners = len(moments.owners) if apart else 1
        self.p, self.dtype = moments.n_genes, np.dtype(str(moments.dtype).removeprefix("torch."))
        tiles, owner, first = [], [], 0
        for d, name in enumerate(moments.owners):
            X = moments.cells(name)
            for lo in range(0, X.shape[0], _TILE):
                tiles.append((X, lo, min(lo + _TILE, X.shape[0]), first))
                owner.append(d if apart else 0)
            first += X.shape[0]
        self.n_cells, self.owner = first, np.array(owner)
        self.indptr = np.zeros((len(tiles), self.p + 1), np.int64)
        nnz = sum(int(X.indptr[hi] - X.indptr[lo]) for X, lo, hi, _ in tiles)
        self.indices, self.data = np.empty(nnz, np.int32), np.empty(nnz, self.dtype)
        self.rows = np.zeros((len(tiles), 2), np.int64)
        n_blocks = -(-self.p // _GENES)
        self._gram = np.zeros((self.n_owners, n_blocks, _GENES, _GENES), self.dtype)
        at = 0
        for t, (X, lo, hi, offset) in enumerate(tiles):
            start, stop = X.indptr[lo], X.indptr[hi]
            self.rows[t] = offset + lo, offset + hi
            indptr = X.indptr[lo : hi + 1].astype(np.int64) - start
            _by_gene(
                indptr,
                X.indices[start:stop],
                X.data[start:stop],
                at,
                offset + lo,
                self.indptr[t],
                self.indices,
                self.data,
            )
            _add_gram(indptr, X.indices[start:stop], X.data[start:stop], self._gram[self.owner[t]])
            at += stop - start

    def start(self, V: np.ndarray) -> np.ndarray:
        """Usages ``X Vᵀ`` for V (1 or n_owners, n_genes, k)."""
        H = np.zeros((self.n_cells, V.shape[2]), self.dtype)
        self.move(H, 0, V)
        return H

    def columns(self, H: np.ndarray, lo: int, hi: int) -> np.ndarray:
        """``V_d S_d`` for some genes: (n_owners, genes, k) float64."""
        parts = np.empty((len(self.owner), hi - lo, H.shape[1]), self.dtype)
        _gather(self.indptr, self.indices, self.data, H, lo, parts)
        if self.n_owners == 1:
            return parts.sum(0, dtype=np.float64)[None]
        return np.stack([parts[self.owner == d].sum(0, dtype=np.float64) for d in range(self.n_owners)])

    def move(self, H: np.ndarray, lo: int, D: np.ndarray) -> None:
        """Follow a change D (1 or n_owners, genes, k) of V from gene `lo` on."""
        owner = self.owner if len(D) > 1 else np.zeros_like(self.owner)
        _scatter(self.indptr, self.indices, self.data, owner, H, lo, D.astype(self.dtype))

    def inner(self, H: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """``V S_d V'ᵀ``, (n_owners, k, k) float64."""
        F = np.zeros((self.n_owners, H.shape[1], Y.shape[1]))
        for d, (lo, hi) in zip(self.owner, self.rows, strict=True):
            H_t = H[lo:hi].astype(np.float64)
            F[d] += H_t.T @ (H_t if Y is H else Y[lo:hi].astype(np.float64))
        return F

    def gram(self, lo: int, hi: int) -> np.ndarray:
        """Part of S_d between some genes, (n_owners, genes, genes)."""
        return self._gram[:, lo // _GENES, : hi - lo, : hi - lo]


class _Explicit:
    """Products with a stored second moment; the same methods as `_Implicit`, V itself in place of usages."""

    def __init__(self, moments: Moments, *, apart: bool) -> None:
        S = moments.second()
        self.S = S if apart or len(S) == 1 else S.sum(0, keepdim=True)
        self.n_owners = len(self.S)

    def start(self, V: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(V).to(self.S.dtype, copy=True).contiguous()

    def columns(self, V: torch.Tensor, lo: int, hi: int) -> np.ndarray:
        return torch.matmul(self.S[:, lo:hi], V).numpy().astype(np.float64)

    def move(self, V: torch.Tensor, lo: int, D: np.ndarray) -> None:
        V[:, lo : lo + D.shape[1]] += torch.from_numpy(D)

    def inner(self, V: torch.Tensor, Y: torch.Tensor) -> np.ndarray:
        return (V.double().mT @ torch.matmul(self.S, Y).double()).numpy()

    def gram(self, lo: int, hi: int) -> np.ndarray:
        return self.S[:, lo:hi, lo:hi].numpy()


def _second(moments: Moments, *, apart: bool) -> _Implicit | _Explicit:
    return (_Explicit if moments.mode == EXPLICIT else _Implicit)(moments, apart=apart)


# -------------------------------------------------------------------- the models
class TiedDescent:
    """AE-NMF, and with a donor part and penalties model 1: for a given U they add a form quadratic in W, ``W R Wᵀ``.

    ``R = LᵀK``, of few rows: ``L = [M; U; √n P]`` and ``K = [U; M; √n P]``, with the donor sums M.
    """

    def __init__(self, objective: Tied, start: Point) -> None:
        self.objective, self.n = objective, objective.n
        self.W = np.ascontiguousarray(start.W.numpy().T, dtype=np.float64)  # a gene a row
        self.second = _second(objective.moments, apart=False)
        self.squares = objective.gene_sq.double().sum((0, 1)).numpy()
        self.refresh()

    def refresh(self) -> None:
        """Form everything anew from W."""
        self.H = self.second.start(self.W[None])
        self.F, self.G = self.second.inner(self.H, self.H)[0], self.W.T @ self.W

    def sweep(self, relax: float) -> float:
        """Visit every entry of W once, after the best U for it; gives the objective."""
        p, k = self.W.shape
        L, K, constant = self.objective.quadratic(torch.from_numpy(self.W.T))
        LW = L @ torch.from_numpy(self.W)
        for lo in range(0, p, _GENES):
            hi = min(lo + _GENES, p)
            K_B, L_B = K[:, lo:hi], L[:, lo:hi]
            A, D = self.second.columns(self.H, lo, hi)[0], np.zeros((hi - lo, k))
            _descend(
                A, (K_B.T @ LW).numpy(), self.second.gram(lo, hi)[0], (K_B.T @ L_B).numpy(), self.squares[lo:hi],
                self.W[lo:hi], self.F, self.G, self.n * self.objective.lambda_W, relax, D,
            )  # fmt: skip
            self.second.move(self.H, lo, D[None])
            LW += L_B @ torch.from_numpy(D)
        sse = self.objective.moments.sq_norm - 2 * np.trace(self.F) + np.sum(self.F * self.G)
        extra = float((LW * (K @ torch.from_numpy(self.W))).sum()) + constant
        return float(sse + self.n * self.objective.lambda_W * np.trace(self.G) + extra) / self.n

    def solution(self) -> tuple[torch.Tensor, None]:
        """W as the objective takes it; the best U follows from it."""
        return torch.from_numpy(self.W.T.copy()).to(self.objective.moments.dtype), None


class BendingDescent:
    """Model 2: W and every donor's U together, a gene at a time."""

    def __init__(self, objective: Bending, start: Point) -> None:
        self.objective, self.n = objective, objective.n
        self.W = np.ascontiguousarray(start.W.numpy().T, dtype=np.float64)
        self.second = _second(objective.moments, apart=True)
        self.squares = np.ascontiguousarray(objective.gene_sq[:, 0].double().numpy())
        self.U = np.ascontiguousarray(start.U.mT.numpy(), dtype=np.float64)
        self.refresh()

    def refresh(self) -> None:
        """Form everything anew from W and U."""
        V = self.W + self.U
        self.H, self.Y = self.second.start(self.W[None]), self.second.start(V)
        self.F, self.G = self.second.inner(self.H, self.H), V.transpose(0, 2, 1) @ V
        self.cross = float(np.trace(self.second.inner(self.H, self.Y), axis1=1, axis2=2).sum())

    def sweep(self, relax: float) -> float:
        """Visit every entry of W and U once; gives the objective."""
        p, k = self.W.shape
        n_W, n_U = self.n * self.objective.lambda_W, self.n * self.objective.lambda_U
        for lo in range(0, p, _GENES):
            hi = min(lo + _GENES, p)
            A, B = (self.second.columns(state, lo, hi) for state in (self.H, self.Y))
            D, DV = np.zeros((hi - lo, k)), np.zeros((len(A), hi - lo, k))
            self.cross += _descend_bending(
                A, B, self.second.gram(lo, hi), self.squares[:, lo:hi], self.W[lo:hi], self.U[:, lo:hi], self.F, self.G,
                n_W, n_U, relax, D, DV,
            )  # fmt: skip
            self.second.move(self.H, lo, D[None])
            self.second.move(self.Y, lo, DV)
        sse = self.objective.moments.sq_norm - 2 * self.cross + np.sum(self.F * self.G)
        return float(sse + n_W * np.square(self.W).sum() + n_U * np.square(self.U).sum()) / self.n

    def solution(self) -> tuple[torch.Tensor, torch.Tensor]:
        """W and U as the objective takes them."""
        dtype = self.objective.moments.dtype
        return torch.from_numpy(self.W.T.copy()).to(dtype), torch.from_numpy(self.U).mT.contiguous().to(dtype)


# -------------------------------------------------------------------- one block of genes
@_serial
def _best_step(c1, c2, c3, c4, low):
    """Step t ≥ low to the least value of c₁t + c₂t² + c₃t³ + c₄t⁴ (c₄ > 0): 0, the bound, or a root of the cubic."""
    best, least = 0.0, 0.0
    value = low * (c1 + low * (c2 + low * (c3 + low * c4)))
    if value < least:
        best, least = low, value
    a, b, c = 0.75 * c3 / c4, 0.5 * c2 / c4, 0.25 * c1 / c4
    q, r = (a * a - 3 * b) / 9, (2 * a * a * a - 9 * a * b + 27 * c) / 54
    three = r * r < q * q * q
    if three:  # three real roots, of which the middle one is a maximum
        size, angle = -2 * math.sqrt(q), math.acos(r / math.sqrt(q * q * q))
    else:
        size, angle = 0.0, 0.0
        big = -math.copysign((abs(r) + math.sqrt(r * r - q * q * q)) ** (1 / 3), r)
    for root in range(2 if three else 1):
        if three:
            t = size * math.cos((angle + 2 * math.pi * root) / 3) - a / 3
        else:
            t = big + (q / big if big != 0 else 0.0) - a / 3
        if t > low:
            value = t * (c1 + t * (c2 + t * (c3 + t * c4)))
            if value < least:
                best, least = t, value
    return best


@_serial
def _relaxed(t, relax, low, c1, c2, c3, c4):
    """Go further than the best step, unless that would raise the value."""
    far = max(relax * t, low)
    return far if far * (c1 + far * (c2 + far * (c3 + far * c4))) < 0 else t


@_serial
def _rank_two(M, j, t, x, extra):
    """``M += t (e_j xᵀ + x e_jᵀ) + extra e_j e_jᵀ`` for a symmetric M; gives row j."""
    row = M[j]
    for i in range(len(x)):
        row[i] += t * x[i]
    row[j] += t * x[j] + extra
    for i in range(len(x)):
        if x[i] != 0:
            M[i, j] = row[i]
    return row


@_serial
def _add_products(out, M, x):
    """``out += M x`` for a symmetric M and an x with many zeros."""
    for i in range(len(x)):
        if x[i] != 0:
            row = M[i]
            for j in range(len(x)):
                out[j] += x[i] * row[j]


@_serial
def _descend(A, B, S, R, squares, W, F, G, n_lambda, relax, D):
    """Visit the entries of W of one block of genes, for a tied model.

    A, B : (genes, k), columns of W S and W R; S, R : (genes, genes), parts of them; W, F, G are updated; D is the
    change.
    """
    k = W.shape[1]
    g = np.empty(k)
    for a in range(W.shape[0]):
        s = squares[a]
        if s == 0:
            continue
        x, y, w, d = A[a], B[a], W[a], D[a]
        for b in range(a):
            if S[b, a] != 0 or R[b, a] != 0:
                for j in range(k):
                    x[j] += S[b, a] * D[b, j]
                    y[j] += R[b, a] * D[b, j]
        for j in range(k):
            g[j] = n_lambda * w[j] + y[j] - 2 * x[j]
        _add_products(g, G, x)
        _add_products(g, F, w)
        xw = 0.0
        for j in range(k):
            xw += x[j] * w[j]
        for j in range(k):
            c1 = 2 * g[j]
            if w[j] == 0 and c1 >= 0:
                continue
            c2 = s * G[j, j] + F[j, j] + 2 * (x[j] * w[j] + xw) - 2 * s + n_lambda + R[a, a]
            c3 = 2 * (x[j] + s * w[j])
            t = _best_step(c1, c2, c3, s, -w[j])
            if t == 0:
                continue
            t = _relaxed(t, relax, -w[j], c1, c2, c3, s)
            d[j] = t
            Gj, Fj = _rank_two(G, j, t, w, t * t), _rank_two(F, j, t, x, t * t * s)
            for i in range(k):
                g[i] += t * (w[i] * x[j] + x[i] * w[j] + s * Gj[i] + Fj[i])
            g[j] += 2 * t * xw + t * t * (x[j] + s * w[j]) + t * (n_lambda + R[a, a] - 2 * s)
            xw += t * (x[j] + s * w[j]) + t * t * s
            w[j] += t
            x[j] += t * s


@_serial
def _descend_bending(A, B, S, squares, W, U, F, G, n_lambda_W, n_lambda_U, relax, D, DV):
    """Visit the entries of W and U of one block of genes, for model 2; gives the change of Σ tr V_d S_d Wᵀ.

    A, B : (donors, genes, k), columns of W S_d and V_d S_d; S : (donors, genes, genes), parts of S_d; W, U, F, G are
    updated; D and DV are the changes of W and V.
    """
    m, n_genes, k = A.shape
    cross = 0.0
    f, g, v, xv = np.empty((m, k)), np.empty((m, k)), np.empty((m, k)), np.empty(m)
    for a in range(n_genes):
        w = W[a]
        s_all = 0.0
        for d in range(m):
            s_all += squares[d, a]
            x, y = A[d, a], B[d, a]
            for b in range(a):
                if S[d, b, a] != 0:
                    for j in range(k):
                        x[j] += S[d, b, a] * D[b, j]
                        y[j] += S[d, b, a] * DV[d, b, j]
            xv[d] = 0.0
            for j in range(k):
                v[d, j] = w[j] + U[d, a, j]
                xv[d] += x[j] * v[d, j]
                f[d, j] = 0.0
                g[d, j] = 0.0
            _add_products(f[d], F[d], v[d])
            _add_products(g[d], G[d], x)
        if s_all == 0:
            continue
        # ---- W, of all donors
        for j in range(k):
            c1 = n_lambda_W * w[j]
            for d in range(m):
                c1 += f[d, j] + g[d, j] - A[d, a, j] - B[d, a, j]
            c1 *= 2
            if w[j] == 0 and c1 >= 0:
                continue
            c2, c3 = n_lambda_W, 0.0
            for d in range(m):
                s, xj = squares[d, a], A[d, a, j]
                c2 += s * G[d, j, j] + F[d, j, j] + 2 * (xj * v[d, j] + xv[d]) - 2 * s
                c3 += 2 * (xj + s * v[d, j])
            t = _best_step(c1, c2, c3, s_all, -w[j])
            if t == 0:
                continue
            t = _relaxed(t, relax, -w[j], c1, c2, c3, s_all)
            w[j] += t
            D[a, j] = t
            for d in range(m):
                s, x, y = squares[d, a], A[d, a], B[d, a]
                Gj, Fj = _rank_two(G[d], j, t, v[d], t * t), _rank_two(F[d], j, t, x, t * t * s)
                for i in range(k):
                    g[d, i] += t * (v[d, i] * x[j] + s * Gj[i])
                    f[d, i] += t * (x[i] * v[d, j] + Fj[i])
                g[d, j] += t * xv[d] + t * t * x[j]
                f[d, j] += t * xv[d] + t * t * s * v[d, j]
                cross += t * (x[j] + y[j]) + t * t * s
                xv[d] += t * (x[j] + s * v[d, j]) + t * t * s
                x[j] += t * s
                y[j] += t * s
                v[d, j] += t
                DV[d, a, j] += t
        # ---- U, of each donor: quadratic, and G is all that follows
        for d in range(m):
            x, u = A[d, a], U[d, a]
            for j in range(k):
                c1 = 2 * (f[d, j] - x[j] + n_lambda_U * u[j])
                if u[j] == 0 and c1 >= 0:
                    continue
                c2 = F[d, j, j] + n_lambda_U
                t = max(-0.5 * c1 / c2, -u[j])
                t = _relaxed(t, relax, -u[j], c1, c2, 0.0, 0.0)
                if t == 0:
                    continue
                _rank_two(G[d], j, t, v[d], t * t)
                Fj = F[d, j]
                for i in range(k):
                    f[d, i] += t * Fj[i]
                u[j] += t
                v[d, j] += t
                DV[d, a, j] += t
                cross += t * x[j]
    return cross


# -------------------------------------------------------------------- cells in tiles, a tile stored by gene
@_serial
def _by_gene(indptr, genes, values, at, first_row, out_indptr, out_rows, out_values):
    """Store a CSR tile by gene, from place `at` of the output on."""
    p = len(out_indptr) - 1
    for i in range(len(genes)):
        out_indptr[genes[i] + 1] += 1
    out_indptr[0] = at
    for a in range(p):
        out_indptr[a + 1] += out_indptr[a]
    place = out_indptr[:p].copy()
    for row in range(len(indptr) - 1):
        for i in range(indptr[row], indptr[row + 1]):
            out_rows[place[genes[i]]] = first_row + row
            out_values[place[genes[i]]] = values[i]
            place[genes[i]] += 1


@_parallel
def _add_gram(indptr, genes, values, out):
    """Add a CSR tile's ``X_BᵀX_B`` for every block B of genes; genes of a cell are in order."""
    n_blocks, size = out.shape[0], out.shape[1]
    n_rows = len(indptr) - 1
    for part in prange(_CHUNKS):
        for row in range(n_rows):
            # each worker has its own share of the blocks: no two write to the same place
            i, stop = indptr[row], indptr[row + 1]
            first = n_blocks * part // _CHUNKS
            last = n_blocks * (part + 1) // _CHUNKS
            i += np.searchsorted(genes[i:stop], first * size)
            while i < stop and genes[i] < last * size:
                block = genes[i] // size
                end = i
                while end < stop and genes[end] < (block + 1) * size:
                    end += 1
                for one in range(i, end):
                    for two in range(i, end):
                        out[block, genes[one] - block * size, genes[two] - block * size] += values[one] * values[two]
                i = end


@_parallel
def _gather(indptr, rows, values, H, lo, out):
    """``out[t] = X_Bᵀ H`` for every tile t and the genes from `lo` on; out is (tiles, genes, k)."""
    k = H.shape[1]
    for t in prange(out.shape[0]):
        for a in range(out.shape[1]):
            total = out[t, a]
            for j in range(k):
                total[j] = 0
            i, stop = indptr[t, lo + a], indptr[t, lo + a + 1]
            while i + 4 <= stop:  # four cells at a time: a sum is loaded and stored once for all of them
                h0, h1, h2, h3 = H[rows[i]], H[rows[i + 1]], H[rows[i + 2]], H[rows[i + 3]]
                x0, x1, x2, x3 = values[i], values[i + 1], values[i + 2], values[i + 3]
                for j in range(k):
                    total[j] += x0 * h0[j] + x1 * h1[j] + x2 * h2[j] + x3 * h3[j]
                i += 4
            while i < stop:
                h0, x0 = H[rows[i]], values[i]
                for j in range(k):
                    total[j] += x0 * h0[j]
                i += 1


@_parallel
def _scatter(indptr, rows, values, owner, H, lo, D):
    """``H += X_B D`` for the genes from `lo` on; D is (owners, genes, k), most of it 0."""
    k = H.shape[1]
    for t in prange(len(owner)):
        D_t = D[owner[t]]
        programs, steps = np.empty(k, np.int64), np.empty(k, D.dtype)
        for a in range(D.shape[1]):
            d, moved = D_t[a], 0
            for j in range(k):
                if d[j] != 0:
                    programs[moved], steps[moved] = j, d[j]
                    moved += 1
            if moved == 0:
                continue
            for i in range(indptr[t, lo + a], indptr[t, lo + a + 1]):
                h, x = H[rows[i]], values[i]
                if 4 * moved > k:
                    for j in range(k):
                        h[j] += x * d[j]
                else:
                    for c in range(moved):
                        h[programs[c]] += x * steps[c]
