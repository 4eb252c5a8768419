"""Damage to the matrix: its layout, index pointers, indices and values. The same for h5ad and zarr."""

from pathlib import Path

import numpy as np
from anndata.io import read_elem, write_elem
from scipy import sparse

from fuzzing.bases import Base
from fuzzing.element_damage import pick
from fuzzing.kinds import NotApplicableError, kind
from fuzzing.store import Group, edit, is_group, replace, set_attribute

_WITH_MATRIX = "counts filtered"


def _sparse(group: Group, base: Base) -> Group:
    """Return the sparse matrix of the file."""
    matrix = group[base.matrix]
    if not is_group(matrix):
        raise NotApplicableError
    return matrix


def _change(path: Path, base: Base, part: str, change) -> None:
    """Replace the array `part` of the matrix by what `change` makes of it."""
    with edit(path) as group:
        matrix = _sparse(group, base)
        replace(matrix, part, change(np.array(matrix[part][:])))


@kind("index pointers", contents=_WITH_MATRIX)
def indptr(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Write index pointers that run backwards, out of range, are too few or too many, or do not start at 0."""
    how = pick(("backwards", "past the end", "negative", "too few", "too many", "start", "all zero", "short end"), rng)

    def change(p: np.ndarray) -> np.ndarray:
        i = int(rng.integers(1, len(p) - 1))
        if how in ("too few", "too many", "all zero"):
            return {"too few": p[:-3], "too many": np.append(p, p[-1]), "all zero": p * 0}[how]
        p = p.astype(np.int64) if rng.integers(2) else p
        at = {"start": 0, "past the end": -1, "short end": -1}.get(how, i)
        wrong = {"past the end": p[-1] + 1000, "negative": -5, "backwards": p[i - 1] - 3, "start": 2}
        p[at] = wrong.get(how, p[-1] - 4)
        return p

    _change(path, base, "indptr", change)
    return f"indptr {how}"


@kind("indices out of range", contents=_WITH_MATRIX)
def indices(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Write indices past the last gene, or negative."""
    value = int(pick((-1, -(2**31), 90, 240, 241, 2**31 - 1, 10_000), rng))

    def change(index: np.ndarray) -> np.ndarray:
        index[rng.integers(len(index), size=int(rng.integers(1, 3)))] = value
        return index

    _change(path, base, "indices", change)
    return f"index {value}"


@kind("repeated indices", contents=_WITH_MATRIX)
def repeated(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Repeat an index, which changes the matrix to the sum of the two entries."""

    def change(index: np.ndarray) -> np.ndarray:
        i = rng.integers(len(index) - 1, size=3)
        index[i] = index[i + 1]
        return index

    _change(path, base, "indices", change)
    return "three indices repeat the next"


@kind("entries stored in pieces", contents="counts", valid=True)
def pieces(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Store counts above 1 as two entries of the same cell and gene."""
    with edit(path) as group:
        matrix = _sparse(group, base)
        data, index, p = (np.array(matrix[part][:]) for part in ("data", "indices", "indptr"))
        twice = np.where(data > 1, 2, 1)
        new = np.repeat(data, twice)
        second = np.cumsum(twice)[data > 1] - 1
        new[second], new[second - 1] = 1, data[data > 1] - 1
        replace(matrix, "data", new)
        replace(matrix, "indices", np.repeat(index, twice))
        replace(matrix, "indptr", np.r_[0, np.cumsum(twice)][p].astype(p.dtype))
    return f"{len(second)} counts in two pieces"


@kind("unsorted indices", contents=_WITH_MATRIX, valid=True)
def unsorted(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Store the entries of each row in random order."""
    with edit(path) as group:
        matrix = _sparse(group, base)
        data, index, p = (np.array(matrix[part][:]) for part in ("data", "indices", "indptr"))
        order = np.lexsort([rng.random(len(data)), np.repeat(np.arange(len(p) - 1), np.diff(p))])
        replace(matrix, "data", data[order])
        replace(matrix, "indices", index[order])
    return "rows in random order"


@kind("zeros stored", contents="counts", valid=True)
def stored_zeros(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Store explicit zeros at the end of each row, where there is room."""
    with edit(path) as group:
        matrix = _sparse(group, base)
        parts = tuple(np.array(matrix[part][:]) for part in ("data", "indices", "indptr"))
        n_rows, n_columns = (int(n) for n in matrix.attrs["shape"])
        major = n_rows if matrix.attrs["encoding-type"] == "csr_matrix" else n_columns
        minor = n_columns + n_rows - major
        X = sparse.csr_matrix(parts, (major, minor))
        free = [np.setdiff1d(np.arange(minor), row)[:2] for row in np.split(X.indices, X.indptr[1:-1])]
        at = np.repeat(X.indptr[1:], [len(f) for f in free])
        replace(matrix, "data", np.insert(parts[0], at, 0))
        replace(matrix, "indices", np.insert(parts[1], at, np.concatenate(free)).astype(parts[1].dtype))
        replace(matrix, "indptr", (parts[2] + np.r_[0, np.cumsum([len(f) for f in free])]).astype(parts[2].dtype))
    return "two zeros per row"


@kind("other types of indices", contents=_WITH_MATRIX, valid=True)
def index_types(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Write 64-bit, unsigned and 16-bit indices and index pointers."""
    index, pointer = pick(("int64", "uint16", "uint8", "uint32", "int16", ">i4", "uint64"), rng), pick(
        ("int64", "uint32", "uint64", ">i8", "int32"), rng
    )  # fmt: skip
    with edit(path) as group:
        matrix = _sparse(group, base)
        replace(matrix, "indices", np.array(matrix["indices"][:]).astype(index))
        replace(matrix, "indptr", np.array(matrix["indptr"][:]).astype(pointer))
    return f"indices {index}, indptr {pointer}"


@kind("other types of values", contents=_WITH_MATRIX, valid=True)
def value_types(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Write values of every numeric type and byte order that can represent them."""
    kinds = "float64 >f8 >f4 float16 int32 int64 uint8 uint16 int16 >i4 uint64 >u2 int8 uint32"
    chosen = pick(kinds.split() if base.content == "counts" else ["float64", ">f4", ">f8"], rng)
    with edit(path) as group:
        matrix = group[base.matrix]
        where, part = (matrix, "data") if is_group(matrix) else (group, base.matrix)
        replace(where, part, np.array(where[part][()]).astype(chosen))
    return f"values of {base.matrix} as {chosen}"


@kind("other layout", contents=_WITH_MATRIX, valid=True)
def layout(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Write the same matrix as CSR, CSC or dense."""
    with edit(path) as group:
        X, name = read_elem(group[base.matrix]), pick(("csr", "csc", "dense"), rng)
        X = sparse.csr_matrix(X)
        del group[base.matrix]
        write_elem(group, base.matrix, {"csr": X, "csc": X.tocsc(), "dense": X.toarray()}[name])
    return f"{base.matrix} as {name}"


@kind("values that are no counts", contents=_WITH_MATRIX)
def bad_values(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Write NaN, infinite, negative, fractional or very large values."""
    value = float(pick((np.nan, np.inf, -np.inf, -1, 0.5, 1e30, 1e300, 3e9, -0.0), rng))
    with edit(path) as group:
        matrix = group[base.matrix]
        where, part = (matrix, "data") if is_group(matrix) else (group, base.matrix)
        values = np.array(where[part][()]).astype(np.float64 if abs(value) > 1e38 else np.float32)
        values.flat[rng.integers(values.size)] = value
        replace(where, part, values)
    return f"one value is {value}"


@kind("declared shape", contents=_WITH_MATRIX)
def shape(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Declare a shape that is too large or small, negative, not a number or missing."""
    with edit(path) as group:
        matrix = _sparse(group, base)
        n, m = (int(i) for i in matrix.attrs["shape"])
        choices = ((n + 1, m), (n, m + 1), (n - 1, m), (n, m - 1), (1 << 40, m), (n, 1 << 40), (-n, m), (n, -m))
        choices += ((n, float(m)), (m, n), (n,), (n, m, 1), "text", (0, 0), (n, m + 0.5), ("240", "90"), None)
        new = choices[rng.integers(len(choices))]
        if new is None:
            del matrix.attrs["shape"]
        else:
            set_attribute(matrix, "shape", list(new) if isinstance(new, tuple) else new)
    return f"shape {new}"


@kind("exchanged parts", contents=_WITH_MATRIX)
def exchanged(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Put the parts of a sparse matrix in the place of one another, or CSR called CSC."""
    with edit(path) as group:
        matrix = _sparse(group, base)
        a, b = pick((("data", "indices"), ("indices", "indptr"), ("data", "indptr"), ("type", "type")), rng)
        if a == "type":
            now = matrix.attrs["encoding-type"]
            set_attribute(matrix, "encoding-type", "csc_matrix" if now == "csr_matrix" else "csr_matrix")
        else:
            first, second = np.array(matrix[a][:]), np.array(matrix[b][:])
            replace(matrix, a, second)
            replace(matrix, b, first)
    return f"{a} and {b} exchanged"


@kind("no cells or no genes", contents=_WITH_MATRIX)
def nothing(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Write a valid file with no cells, no genes or no counts."""
    import anndata

    cells = anndata.io.read_h5ad(path) if path.is_file() else anndata.io.read_zarr(path)
    how = pick(("cells", "genes", "counts"), rng)
    if cells.raw is not None or "counts" in cells.layers:
        raise NotApplicableError
    if how == "counts":
        cells.X = sparse.csr_matrix(cells.shape, dtype=np.float32)
    else:
        cells = (cells[:0] if how == "cells" else cells[:, :0]).copy()
    if path.is_file():
        cells.write_h5ad(path)
    else:
        cells.write_zarr(path)
    return f"no {how}"
