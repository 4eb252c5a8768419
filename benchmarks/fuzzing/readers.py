"""Reading a file through the product, and the independent computation of what the product must return."""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import read_elem
from scipy import sparse

LABELS = ("donor_id", "cell_type")


@dataclass
class Cells:
    """What a reader returned: names, labels (None if missing), the matrix and, of results files, their arrays."""

    obs: list[str]
    var: list[str]
    labels: dict[str, list]
    X: sparse.csr_matrix | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    where: str = "X"

    def difference(self, other: "Cells", tolerance: float = 2e-6) -> str:
        """Return the first difference from other cells, or an empty text."""
        for name in ("obs", "var"):
            a, b = getattr(self, name), getattr(other, name)
            if a != b:
                first = next((pair for pair in zip(a, b, strict=False) if pair[0] != pair[1]), ("", ""))
                return f"{name} names: {len(a)} and {len(b)}, first different {str(first)[:80]}"
        for label in other.labels:
            a, b = self.labels.get(label), other.labels[label]
            if a != b:
                n = sum(x != y for x, y in zip(a or b, b, strict=False))
                return f"{label} of {n} cells"
        pairs = [(name, self.arrays.get(name), other.arrays[name]) for name in other.arrays]
        if (self.X is None) != (other.X is None):
            return "one has no X"
        if self.X is not None:
            if self.X.shape != other.X.shape:
                return f"shape {self.X.shape} and {other.X.shape}"
            pairs.append(("X", self.X.toarray(), other.X.toarray()))
        for name, a, b in pairs:
            if a is None or a.shape != b.shape:
                return f"{name} missing or of another shape"
            wrong = ~np.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
            if wrong.any():
                at = tuple(int(i[0]) for i in np.nonzero(wrong))
                return f"{int(wrong.sum())} values of {name}, first {a[at]} and {b[at]} at {at}"
        return ""


def _labels(obs: pd.DataFrame) -> dict[str, list]:
    """Return the labels as text."""
    return {
        name: [None if missing else _text(value) for value, missing in zip(obs[name], obs[name].isna(), strict=True)]
        for name in LABELS
        if name in obs
    }


def _text(label: object) -> str:
    """Return a label as text; the product writes numbers like 2.0 as '2'."""
    whole = isinstance(label, float | np.floating) and float(label).is_integer()
    return str(int(label) if whole else label)


def _names(index: pd.Index) -> list[str]:
    """Return names as text."""
    return [str(name) for name in index]


def _from_anndata(cells: AnnData, where: str = "X") -> Cells:
    """Return cells in memory as `Cells`."""
    X = None if cells.X is None else _canonical(cells.X)
    return Cells(_names(cells.obs_names), _names(cells.var_names), _labels(cells.obs), X, where=where)


def _canonical(X) -> sparse.csr_matrix:
    """Return a matrix as sorted CSR float64 without duplicates and zeros."""
    X = sparse.csr_matrix(X).astype(np.float64)
    X.sum_duplicates()
    X.eliminate_zeros()
    return X


# ---- Through the product ---------------------------------------------------------------------------------------------
def _memory(path: Path, min_cells: int) -> Cells:
    """Read as notebook 01 does."""
    from aenmf_lib import data

    counts, where = data.read_counts(path)
    kept, _ = data.filter_cells(counts, min_cells=min_cells)
    return _from_anndata(kept, where)


def _blocks(stream) -> Cells:
    """Return all blocks of a stream."""
    parts = [X.copy() for X, _ in stream]
    X = _canonical(sparse.vstack(parts, format="csr")) if parts else sparse.csr_matrix((0, stream.n_vars))
    return Cells(_names(stream.obs_names), _names(stream.var_names), _labels(stream.obs), X, where=stream.where)


def _stream(path: Path, min_cells: int) -> Cells:
    """Read counts in blocks."""
    from aenmf_lib import data

    return _blocks(data.CellStream(path, counts=True, block=64))


def _load(path: Path, min_cells: int) -> Cells:
    """Read filtered cells."""
    from aenmf_lib import data

    return _from_anndata(data.load(path))


def _load_stream(path: Path, min_cells: int) -> Cells:
    """Read filtered cells in blocks."""
    from aenmf_lib import data

    return _blocks(data.load_stream(path))


def _results(path: Path, min_cells: int) -> Cells:
    """Read and check a results file. Both must agree."""
    from aenmf_lib import results

    faults = results.check(path)
    cells = results.read(path)
    if faults:
        raise AssertionError(f"check finds {faults}, but read accepts the file")
    return _of_results(cells)


def _of_results(cells: AnnData) -> Cells:
    """Return the names, labels and all arrays of a results file."""
    arrays = {f"obsm/{k}": np.asarray(v, float) for k, v in cells.obsm.items() if k.startswith("H_")}
    arrays |= {f"varm/{k}": np.asarray(v, float) for k, v in cells.varm.items() if k[0] in "WU"}
    return Cells(_names(cells.obs_names), _names(cells.var_names), _labels(cells.obs), None, arrays)


READERS: dict[str, dict[str, Callable[[Path, int], Cells]]] = {
    "counts": {"memory": _memory, "stream": _stream},
    "filtered": {"load": _load, "load_stream": _load_stream},
    "results": {"results": _results},
}


# ---- Independent of the product --------------------------------------------------------------------------------------
def expect(cells: AnnData, content: str, matrix: str, min_cells: int) -> dict[str, Cells]:
    """Return what every reader must return for these cells, computed in float64 with NumPy."""
    if content == "results":
        return {"results": _of_results(cells)}
    if content == "filtered":
        found = _from_anndata(cells)
        return {"load": found, "load_stream": found}
    X, var = _matrix(cells, matrix), (cells.raw.var if matrix == "raw/X" else cells.var)
    total = X.sum(axis=1, keepdims=True)
    normalized = np.log1p(X * np.divide(1e4, total, out=np.zeros_like(total), where=total > 0))
    obs, labels = cells.obs, _labels(cells.obs)
    stream = Cells(_names(obs.index), _names(var.index), labels, _canonical(normalized))
    if "donor_id" not in obs:
        return {"stream": stream, "memory": stream}
    sizes = Counter(labels["donor_id"])
    kept = np.array([sizes[donor] >= min_cells for donor in labels["donor_id"]], dtype=bool)
    genes = (X[kept] != 0).any(axis=0)
    chosen = {name: [v for v, k in zip(values, kept, strict=True) if k] for name, values in labels.items()}
    memory = Cells(
        _names(obs.index[kept]), _names(var.index[genes]), chosen, _canonical(normalized[np.ix_(kept, genes)])
    )
    return {"memory": memory, "stream": stream}


def _matrix(cells: AnnData, key: str) -> np.ndarray:
    """Return a matrix as dense float64."""
    X = cells.raw.X if key == "raw/X" else cells.layers[key.split("/", 1)[1]] if "/" in key else cells.X
    return np.asarray(X.todense() if sparse.issparse(X) else X, dtype=np.float64)


def plain_reader(path: Path, content: str, where: str, min_cells: int) -> dict[str, Cells]:
    """Return what every reader must return for the values that anndata reads from this file."""
    key = {"X": "X", "raw.X": "raw/X"}.get(where) or "layers/" + where.removeprefix("layers['").removesuffix("']")
    try:
        cells = anndata.io.read_h5ad(path) if path.is_file() else anndata.io.read_zarr(path)
    except Exception:  # of an element that the product does not need
        if content == "results":
            raise
        with h5py.File(path) if path.is_file() else contextlib.nullcontext(zarr.open_group(path, mode="r")) as file:
            X, obs, var = (read_elem(file[name]) for name in (key, "obs", "raw/var" if key == "raw/X" else "var"))
        cells, key = AnnData(X, obs=obs, var=var), "X"
    return expect(cells, content, key, min_cells)
