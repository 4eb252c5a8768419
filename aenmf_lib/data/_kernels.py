"""Compiled loops over the cells of a CSR matrix: check, select and normalize their values.

The loops release Python's global interpreter lock, so that several threads read at the same time. Each loop over the
entries of a cell does little, so that the compiler can use vector instructions.
"""

import numpy as np
from numba import njit

_compiled = njit(nogil=True, cache=True)
_part = njit(nogil=True, forceinline=True)  # inlined: newly compiled code and cached code are the same


@_part
def _are_sorted(indices, n_genes):
    """Return whether indices increase from at least 0 to below `n_genes`."""
    before, after = indices[:-1], indices[1:]
    wrong = np.int32(0)
    for j in range(len(after)):
        wrong |= np.int32(after[j] <= before[j])
    return wrong == 0 and (len(indices) == 0 or (indices[0] >= 0 and indices[-1] < n_genes))


@_compiled
def are_counts(data, indices, start, size, n_genes, largest, total):
    """Return whether genes are sorted and unique, and values and totals of cells are whole numbers up to `largest`.

    The totals of the cells are written to `total`.
    """
    zero, largest = np.float32(0), np.float32(largest)
    right = True
    for cell in range(len(start)):
        values = data[start[cell] : start[cell] + size[cell]]
        wrong, added = np.int32(0), np.int64(0)
        for j in range(len(values)):
            value = values[j] if values[j] > zero else zero  # NaN becomes 0
            count = np.int32(value if value < largest else largest)
            wrong |= np.int32(np.float32(count) != values[j])
            added += np.int64(count)
        total[cell] = added
        right &= wrong == 0 and added <= np.int64(largest)
        right &= _are_sorted(indices[start[cell] : start[cell] + size[cell]], n_genes)
    return right


@_compiled
def are_values(data, indices, start, size, n_genes, limit):
    """Return whether genes are sorted and unique in each cell, and all values are from 0 to below `limit`."""
    zero, limit = np.float32(0), np.float32(limit)
    right = True
    for cell in range(len(start)):
        values = data[start[cell] : start[cell] + size[cell]]
        wrong = np.int32(0)
        for j in range(len(values)):
            wrong |= np.int32(not (values[j] >= zero and values[j] < limit))  # NaN is wrong too
        right &= wrong == 0 and _are_sorted(indices[start[cell] : start[cell] + size[cell]], n_genes)
    return right


@_compiled
def append(data, indices, start, size, column, values, genes, indptr):
    """Append cells without zeros to `values` and `genes`, from `indptr[0]` on, and write their ends to `indptr`.

    Genes are renumbered by `column`, and left out where it is -1; an empty `column` keeps all. The arrays need room for
    one more entry: each value is written, and the next one overwrites it if it is not kept.
    """
    put, everything = np.uint64(indptr[0]), len(column) == 0
    for cell in range(len(start)):
        found = data[start[cell] : start[cell] + size[cell]]
        of_cell = indices[start[cell] : start[cell] + size[cell]]
        if everything:
            for j in range(len(found)):
                values[put], genes[put] = found[j], of_cell[j]
                put += np.uint64(found[j] != 0)
        else:
            for j in range(len(found)):
                gene = column[np.uint32(of_cell[j])]
                values[put], genes[put] = found[j], gene
                put += np.uint64(gene >= 0 and found[j] != 0)
        indptr[cell + 1] = put


@_compiled
def look_up(values, indptr, table, scale, large):
    """Replace counts below `width` by entries of `table`, (n_cells, width). Return the number of larger counts.

    Larger counts are multiplied by the `scale` of their cell, and their positions are written to `large`.
    """
    n_large, width = np.uint64(0), np.float32(table.shape[1])
    for cell in range(len(scale)):
        first = indptr[cell]
        of_cell, logs, factor = values[first : indptr[cell + 1]], table[cell], scale[cell]
        for j in range(len(of_cell)):
            if of_cell[j] < width:
                of_cell[j] = logs[np.uint32(of_cell[j])]
            else:
                of_cell[j] *= factor
                large[n_large] = first + j
                n_large += np.uint64(1)
    return n_large
