"""Compiled loops of coordinate descent over the cells, which are stored in tiles. Values have the precision of X."""

import numpy as np
from numba import njit, prange

_CHUNKS = 4  # parallel parts of `add_gram`, each with its own blocks of genes
_FAST = {"contract", "reassoc", "arcp", "nsz"}  # sums may be reordered; NaN and infinity are kept, for the solver
_parallel = njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)


@_parallel
def by_gene(indptr, genes, values, edges, first_row, at, out_indptr, out_rows, out_values):
    """Convert each row tile from CSR to CSC. Tile t has rows edges[t] to edges[t + 1] and is written from at[t] on."""
    for t in prange(len(edges) - 1):
        begin = out_indptr[t]
        for i in range(indptr[edges[t]], indptr[edges[t + 1]]):
            begin[genes[i] + 1] += 1
        begin[0] = at[t]
        begin[:] = np.cumsum(begin)
        place = begin[:-1].copy()
        for row in range(edges[t], edges[t + 1]):
            for i in range(indptr[row], indptr[row + 1]):
                out_rows[place[genes[i]]] = first_row + row
                out_values[place[genes[i]]] = values[i]
                place[genes[i]] += 1


@_parallel
def add_gram(indptr, genes, values, out):
    """Add ``X_BᵀX_B`` of a CSR matrix for every block B of genes. Column indices must be sorted within each row."""
    n_blocks, size = out.shape[0], out.shape[1]
    for part in prange(_CHUNKS):  # parts write to disjoint blocks
        first, last = n_blocks * part // _CHUNKS, n_blocks * (part + 1) // _CHUNKS
        for row in range(len(indptr) - 1):
            i, stop = indptr[row], indptr[row + 1]
            i += np.searchsorted(genes[i:stop], first * size)
            while i < stop and genes[i] < last * size:
                block = genes[i] // size
                end = i + np.searchsorted(genes[i:stop], (block + 1) * size)
                for one in range(i, end):
                    for two in range(i, end):
                        out[block, genes[one] - block * size, genes[two] - block * size] += values[one] * values[two]
                i = end


@_parallel
def follow(indptr, rows, values, owner, H, lo, D, next_lo, wanted, out):
    """Add the pending update D (genes from lo), as X D, to H. Then compute XᵀH per tile for genes from next_lo."""
    # D : (partitions, genes, k), mostly 0; owner[t] selects D for tile t. out : (tiles, genes, k), 0 for a gene that is
    # not wanted. 0 genes are allowed.
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
            first, last = indptr[t, lo + a], indptr[t, lo + a + 1]
            if 10 * moved > k:  # update whole rows, with vector instructions
                for i in range(first, last):
                    h, x = H[rows[i]], values[i]
                    for j in range(k):
                        h[j] += x * d[j]
                continue
            for c in range(0, moved - 1, 2):  # two programs at a time, to read each cell once for both
                j0, j1, d0, d1 = programs[c], programs[c + 1], steps[c], steps[c + 1]
                for i in range(first, last):
                    row, x = rows[i], values[i]
                    H[row, j0] += x * d0
                    H[row, j1] += x * d1
            if moved % 2:
                j0, d0 = programs[moved - 1], steps[moved - 1]
                for i in range(first, last):
                    H[rows[i], j0] += values[i] * d0
        for a in range(out.shape[1]):
            total = out[t, a]
            for j in range(k):
                total[j] = 0
            if not wanted[a]:
                continue
            i, stop = indptr[t, next_lo + a], indptr[t, next_lo + a + 1]
            while i + 4 <= stop:  # four cells at a time, to load and store each sum less often
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
