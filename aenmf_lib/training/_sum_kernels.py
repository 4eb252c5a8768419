"""Compiled loops of the sums over cells. All release Python's global interpreter lock, so that threads overlap."""

import numpy as np
from numba import njit

_RUN = 64  # cells that are summed in the precision of X: of equal values, 64 lose 5e-7 of an entry of S,
_RARE_RUN = 256  # and 256 lose 1.5e-6
# Sums may be reordered; NaN and infinity are kept. Not parallel: several threads call these loops for separate parts.
_fast = njit(fastmath={"contract", "reassoc", "arcp", "nsz"}, cache=True, nogil=True)


@_fast
def add_groups(indptr, genes, values, order, group, partition, sums, squares):
    """Add the cells to the sums of their groups, and their squares to the sums of their partitions, both float64."""
    for row in order:  # by group, so that its sums stay in the cache
        total, square = sums[group[row]], squares[partition[row]]
        for i in range(indptr[row], indptr[row + 1]):
            x = np.float64(values[i])  # `float` keeps the precision of X
            total[genes[i]] += x
            square[genes[i]] += x * x


@_fast
def count_genes(genes, counts):
    """Add the number of nonzeros of each gene to `counts`."""
    for i in range(len(genes)):
        counts[genes[i]] += 1


@_fast
def sort_by_gene(indptr, genes, values, rank, start, rows, sorted_values):
    """Convert cells from CSR to CSC with the genes in the order of their ranks; gene r starts at start[r]."""
    place = start[:-1].copy()
    for row in range(len(indptr) - 1):
        for i in range(indptr[row], indptr[row + 1]):
            at = place[rank[genes[i]]]
            place[rank[genes[i]]] = at + 1
            rows[at], sorted_values[at] = row, values[i]


@_fast
def sort_rare(start, rows, values, first, indptr, genes, rare_values, where):
    """Convert the genes of rank ≥ first from CSC to CSR with the genes in order; `where` is the place of each entry."""
    base = start[first]
    for i in range(base, start[-1]):
        indptr[rows[i] + 1] += 1
    for row in range(len(indptr) - 1):
        indptr[row + 1] += indptr[row]
    place = indptr[:-1].copy()
    for gene in range(first, len(start) - 1):
        for i in range(start[gene], start[gene + 1]):
            at = place[rows[i]]
            place[rows[i]] = at + 1
            genes[at], rare_values[at], where[i - base] = gene - first, values[i], at


@_fast
def add_dense_tile(start, rows, values, lo, hi, tile, S):
    """``S[lo:, lo:hi] += X[:, lo:]ᵀ X[:, lo:hi]``: the columns are made dense in `tile`, the rows are sparse."""
    tile[:] = 0
    for gene in range(lo, hi):
        for i in range(start[gene], start[gene + 1]):
            tile[rows[i], gene - lo] = values[i]
    total = np.empty(tile.shape[1], tile.dtype)
    for gene in range(lo, len(start) - 1):
        s = S[gene, lo:hi]
        for first in range(start[gene], start[gene + 1], _RUN):
            i, stop = first, min(first + _RUN, start[gene + 1])
            total[:] = 0
            while i + 4 <= stop:  # four cells at a time, to load and store each sum less often
                x0, x1, x2, x3 = values[i], values[i + 1], values[i + 2], values[i + 3]
                t0, t1, t2, t3 = tile[rows[i]], tile[rows[i + 1]], tile[rows[i + 2]], tile[rows[i + 3]]
                for j in range(len(total)):
                    total[j] += x0 * t0[j] + x1 * t1[j] + x2 * t2[j] + x3 * t3[j]
                i += 4
            while i < stop:
                x0, t0 = values[i], tile[rows[i]]
                for j in range(len(total)):
                    total[j] += x0 * t0[j]
                i += 1
            for j in range(hi - lo):
                s[j] += total[j]


@_fast
def add_rare(start, rows, values, first, lo, hi, indptr, genes, rare_values, where, S):
    """``S[lo:hi, first:] += X[:, lo:hi]ᵀ X[:, first:]`` up to the diagonal, one product of two nonzeros at a time."""
    total = np.empty(hi - first, values.dtype)
    for gene in range(lo, hi):
        s = S[gene, first:]
        for begin in range(start[gene], start[gene + 1], _RARE_RUN):
            total[: gene - first + 1] = 0
            for i in range(begin, min(begin + _RARE_RUN, start[gene + 1])):
                x = values[i]
                for other in range(indptr[rows[i]], where[i - start[first]] + 1):
                    total[genes[other]] += x * rare_values[other]
            for j in range(gene - first + 1):
                s[j] += total[j]


@_fast
def unsort(S, rank):
    """Change S in place from the order of the ranks to that of the genes. The lower triangle is copied to the upper."""
    n, size = len(S), 64
    for top in range(0, n, size):  # in squares, which fit in the cache
        for left in range(0, top + 1, size):
            for i in range(top, min(top + size, n)):
                for j in range(left, min(left + size, i)):
                    S[j, i] = S[i, j]
    row = np.empty(n)
    for i in range(n):
        for j in range(n):
            row[j] = S[i, rank[j]]
        S[i] = row
    done = np.zeros(n, np.bool_)
    for first in range(n):
        if done[first]:
            continue
        row[:] = S[first]
        to = first
        while rank[to] != first:  # follow one cycle of the permutation
            S[to] = S[rank[to]]
            done[to] = True
            to = rank[to]
        S[to] = row
        done[to] = True
