"""Reading the files of a run for the maps, one column at a time, so that 60 million cells fit into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack

from aenmf_lib.data import CELL_TYPE, DONOR, CellStream
from aenmf_lib.data.judging import clean
from aenmf_lib.data.labels import as_text, gene_symbols
from aenmf_lib.data.matrices import Matrix
from aenmf_lib.data.reading import guard, open_cells, read_element
from aenmf_lib.exploration import checking
from aenmf_lib.exploration.checking import MAP_REMEDY, MODEL_REMEDY, index_of
from aenmf_lib.exploration.coloring import MAX_LABELS
from aenmf_lib.results import MODELS, OBSM, VARM
from aenmf_lib.results.schema import PROVENANCE, skip_reason

BLOCK = 2**18  # number of cells that are read at a time
_COMPARED = 20_000  # about the number of cell names that are compared between two files
_KEPT = 8  # maximum number of usages, genes and maps that stay in memory


class Cells:
    """The cells of one run, read from its results files: labels, usages, maps, and, with a filtered file, expression.

    The parameters and errors are those of `explore`.

    Attributes
    ----------
    n_cells, models, skipped, columns
        Number of cells; names of the models, in the order of all tables; the reason of each skipped model; and the
        columns of obs.
    W, genes, symbols
        Programs of each model, (k, n_genes); names of the genes; and their unique symbols, or names if there is none.
    """

    def __init__(
        self, model_paths: str | Path | Sequence[str | Path], tables_dir: str | Path = "", cells_path: str | Path = ""
    ) -> None:
        self.skipped: dict[str, str] = {}
        self.W: dict[str, np.ndarray] = {}
        self._usages: dict[str, tuple[str | Path, str]] = {}  # model -> file, key of obsm
        self._cache: dict[tuple, np.ndarray] = {}
        self._path, names = None, None
        if not isinstance(model_paths, Iterable) or isinstance(model_paths, str | os.PathLike):
            model_paths = [model_paths]
        for path in (_as_path(path, "model_paths") for path in model_paths):
            if path is None:
                raise ValueError("model_paths has an empty path. Pass the paths of results files.")
            with open_cells(path) as file:
                provenance = read_element(file["uns"], PROVENANCE, path) if PROVENANCE in file.get("uns", {}) else {}
                if reason := skip_reason({PROVENANCE: provenance}):
                    self.skipped[str(provenance.get("model"))] = reason
                    continue
                model, k = checking.find_model(file, path)
                if model in self._usages:
                    raise ValueError(
                        f"{path} and {self._usages[model][0]} are both of {model}. Pass one file per model."
                    )
                names = self._check_cells(file, path, names)
                self._add_model(file, path, model, k)
        if self._path is None:
            reasons = "; ".join(f"{model}: {reason}" for model, reason in self.skipped.items())
            found = f"All models were skipped ({reasons})" if reasons else "No results file was given"
            raise ValueError(f"{found}. Pass the file of a model that was trained.")
        self.models = [model for model in MODELS if model in self._usages]
        folder, cells_path = _as_path(tables_dir, "tables_dir"), _as_path(cells_path, "cells_path")
        self._umap = folder / "umap.h5ad" if folder and (folder / "umap.h5ad").exists() else None
        self.cells_path = cells_path if cells_path and cells_path.exists() else None
        if self._umap is not None:
            with open_cells(self._umap) as file:
                self._check_cells(file, self._umap, names)
                self._maps = {f"X_umap_{model}" for model in self.models} & set(file.get("obsm", ()))
                for key in sorted(self._maps):
                    checking.check_array(file, f"obsm/{key}", self._umap, (self.n_cells, 2), MAP_REMEDY)
        if self.cells_path is not None:
            with open_cells(self.cells_path) as file:
                self._check_cells(file, self.cells_path, names)
                self._columns = checking.find_columns(file, self.cells_path, self.n_cells, self.genes)

    def column(self, name: str) -> pd.Series:
        """Return a column of obs, (n_cells,), as numbers or as categories. Blank labels are missing."""
        if name not in self.columns:
            raise ValueError(f"obs has no column {name!r}. Choose one of {', '.join(self.columns)}.")
        with open_cells(self._path) as file:
            values = read_element(file["obs"], name, self._path)
        column = pd.Series(values, copy=False)
        if column.dtype.kind in "iuf":  # also the nullable types of pandas
            nullable = isinstance(column.dtype, pd.api.extensions.ExtensionDtype)
            return pd.Series(column.to_numpy(np.float64, na_value=np.nan)) if nullable else column
        column = column if isinstance(column.dtype, pd.CategoricalDtype) else as_text(column).astype("category")
        blank = [name for name in column.cat.categories if not str(name).strip()]
        return column.cat.remove_categories(blank)

    def n_labels(self, name: str) -> int:
        """Return the number of labels of a column: 0 for numbers, the number of cells for text without categories.

        Categories without cells do not count, unless more than MAX_LABELS categories have cells.
        """
        with open_cells(self._path) as file, guard(self._path, f"obs/{name}"):
            node = file["obs"][name]
            group = hasattr(node, "keys")
            if group and "categories" in node:
                n = node["categories"].shape[0]
                return n if n <= MAX_LABELS else self._count_used(node["codes"], n)
            values = node["values"] if group else node
            return 0 if values.dtype.kind in "iuf" else 2 if values.dtype.kind == "b" else self.n_cells

    def names(self, rows: np.ndarray) -> pd.Index:
        """Return the names of the cells in the sorted `rows`, (n_rows,)."""
        with open_cells(self._path) as file:
            names = [_decode(name) for part in self._pick(index_of(file["obs"]), rows) for name in part]
        return pd.Index(names, dtype=object)

    def usage(self, model: str, program: int) -> np.ndarray:
        """Return the usage of one program, (n_cells,) float32."""

        def read() -> np.ndarray:
            return np.concatenate([H[:, program] for H in self._blocks(model)]).astype(np.float32, copy=False)

        return self._cached(("usage", model, program), read)

    def usages(self, model: str, rows: np.ndarray) -> np.ndarray:
        """Return the usages of the cells in the sorted `rows`, (n_rows, k)."""
        path, key = self._usages[model]
        with open_cells(path) as file, guard(path, f"obsm/{key}"):
            H = np.concatenate([*self._pick(file["obsm"][key], rows)])
            return checking.check_values(H, MODEL_REMEDY)

    def usage_by_label(self, model: str, program: int, labels: pd.Series) -> pd.DataFrame:
        """Return the mean usage of a program and the number of cells for each label, largest mean first."""
        codes, values = labels.cat.codes.to_numpy(), self.usage(model, program)
        sums, counts = np.zeros((2, len(labels.cat.categories) + 1))
        for lo in range(0, self.n_cells, BLOCK):  # in blocks, because bincount makes copies with eight bytes per value
            group = codes[lo : lo + BLOCK].astype(np.int64) + 1
            sums += np.bincount(group, values[lo : lo + BLOCK], len(sums))
            counts += np.bincount(group, minlength=len(counts))
        table = pd.DataFrame({"mean_usage": sums[1:], "n_cells": counts[1:].astype(int)}, labels.cat.categories)
        table = table[table["n_cells"] > 0]
        table["mean_usage"] /= table["n_cells"]
        return table.sort_values("mean_usage", ascending=False, kind="stable")

    def coordinates(self, model: str) -> tuple[np.ndarray, str]:
        """Return the map of a model, (n_cells, 2) float32, and its kind: "UMAP" or "principal components"."""
        if self._umap is not None and (key := f"X_umap_{model}") in self._maps:
            with open_cells(self._umap) as file:
                xy = np.asarray(read_element(file["obsm"], key, self._umap), dtype=np.float32)
            with guard(self._umap, f"obsm/{key}"):
                return checking.check_values(xy, MAP_REMEDY, negative=True), "UMAP"
        return self._cached(("map", model), lambda: self._principal_components(model)), "principal components"

    def find_gene(self, name: str) -> int | None:
        """Return the number of a gene, given by its symbol or its name, or None if there is no such gene."""
        found = (index.get_loc(str(name)) for index in (self.symbols, self.genes) if str(name) in index)
        return next(found, None)

    def gene(self, name: str) -> np.ndarray:
        """Return the expression of a gene, (n_cells,) float32. The filtered file is read in blocks."""
        if self.cells_path is None:
            raise ValueError("There is no filtered file, so the expression of genes is unknown. Pass cells_path=….")
        if (number := self.find_gene(name)) is None:
            raise ValueError(f"There is no gene {name!r}. Choose from {', '.join(self.symbols[:3])}, ….")

        def read() -> np.ndarray:
            values = np.zeros(self.n_cells, dtype=np.float32)
            for X, rows in CellStream(self.cells_path, genes=[self.genes[number]]):
                values[rows] = X.toarray()[:, 0]
            return values

        return self._cached(("gene", number), read)

    def expression(self, rows: np.ndarray) -> csr_matrix:
        """Return the expression of `genes` in the cells in the sorted `rows`, (n_rows, n_genes) CSR."""
        with open_cells(self.cells_path) as file:
            with guard(self.cells_path, "X"):
                node = file["X"]
            matrix = Matrix(node, str(self.cells_path), "X")
            starts = np.flatnonzero(np.diff(rows, prepend=-2) > 1)  # starts of runs of consecutive rows
            ends = np.append(rows[starts[1:] - 1], rows[-1]) + 1
            X = vstack([matrix.read(lo, hi) for lo, hi in zip(rows[starts], ends, strict=True)], format="csr")
        if fault := clean(X, fractional=True)[2]:
            raise ValueError(f"{self.cells_path}: X {fault}. Expected log1p of counts per 10,000. Filter again.")
        return X[:, self._columns]

    def _principal_components(self, model: str) -> np.ndarray:
        """Return the first two principal components of the z-scored usages, (n_cells, 2) float32."""
        k = len(self.W[model])
        total, squares = np.zeros(k), np.zeros((k, k))
        for H in self._blocks(model):
            total += H.sum(axis=0, dtype=np.float64)
            squares += H.T.astype(np.float64) @ H
        mean = total / self.n_cells
        covariance = squares / self.n_cells - np.outer(mean, mean)
        scale = np.sqrt(np.maximum(np.diag(covariance), 1e-12 * max(covariance.max(), 1e-300)))
        axes = np.linalg.eigh(covariance / np.outer(scale, scale))[1][:, : -min(k, 2) - 1 : -1]  # (k, 2)
        axes *= np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])  # otherwise the sign is arbitrary
        axes = np.pad(axes, ((0, 0), (0, 2 - axes.shape[1]))) / scale[:, None]
        return np.concatenate([(H @ axes - mean @ axes).astype(np.float32) for H in self._blocks(model)])

    def _blocks(self, model: str) -> Iterator[np.ndarray]:
        """Yield the usages of a model in blocks of cells, (at most BLOCK, k)."""
        path, key = self._usages[model]
        with open_cells(path) as file, guard(path, f"obsm/{key}"):
            H = file["obsm"][key]
            for lo in range(0, self.n_cells, BLOCK):
                yield checking.check_values(H[lo : lo + BLOCK], MODEL_REMEDY)

    def _count_used(self, codes, n: int) -> int:
        """Return how many of n categories have cells, or n if these are more than MAX_LABELS."""
        used = np.zeros(n + 1, dtype=bool)  # the last for missing labels, whose code is -1
        for lo in range(0, self.n_cells, BLOCK):
            used[codes[lo : lo + BLOCK]] = True
            if used[:n].sum() > MAX_LABELS:
                return n
        return int(used[:n].sum())

    def _pick(self, node, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the values of `node` in the sorted `rows`, block by block."""
        for lo in range(0, self.n_cells, BLOCK):
            first, last = np.searchsorted(rows, [lo, lo + BLOCK])
            if first < last:
                start, stop = int(rows[first]), int(rows[last - 1]) + 1
                yield node[start:stop][rows[first:last] - start]

    def _cached(self, key: tuple, read: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an array from the cache, or read it. The cache keeps the last _KEPT arrays."""
        if key not in self._cache:
            while len(self._cache) >= _KEPT:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = read()
        return self._cache[key]

    def _add_model(self, file, path: Path, model: str, k: int) -> None:
        """Record the usages, the programs and, of the first model, the columns and genes. H is not read."""
        H, W = OBSM[model]["shared"].format(k=k), VARM[model]["W"].format(k=k)
        genes, symbols = _gene_names(read_element(file, "var", path))
        if self._path is None:
            with guard(path, "obs"):
                self.columns = _columns(file["obs"])
            self._path, self.genes, self.symbols = path, genes, symbols
        elif not genes.equals(self.genes):
            found = f"The genes of {path} are not those of {self._path}, or in another order"
            raise ValueError(f"{found}. Pass files of one run.")
        checking.check_array(file, f"obsm/{H}", path, (self.n_cells, k), MODEL_REMEDY)
        checking.check_array(file, f"varm/{W}", path, (len(genes), k), MODEL_REMEDY)
        self._usages[model] = path, H
        weights = read_element(file["varm"], W, path).T
        with guard(path, f"varm/{W}"):
            self.W[model] = checking.check_values(weights, MODEL_REMEDY)

    def _check_cells(self, file, path: str | Path, names: np.ndarray | None) -> np.ndarray:
        """Return the name of every n-th cell. Raise ValueError if these names differ from those of the first file."""
        with guard(path, "obs"):
            index = index_of(file["obs"])
            step = max(1, index.shape[0] // _COMPARED)
            found = np.array([_decode(name) for name in index[::step]], dtype=object)
        if names is None:
            self.n_cells = index.shape[0]
        elif index.shape[0] != self.n_cells or (found != names).any():
            differ = "" if index.shape[0] != self.n_cells else f" (first: {found[found != names][0]!r})"
            expected = f"The same {self.n_cells} cells as in {self._path}, in the same order, are expected"
            raise ValueError(f"{path} contains {index.shape[0]} cells, which are not those of the models{differ}. "
                             f"{expected}. Pass files of one run.")  # fmt: skip
        return found


def _as_path(path: object, name: str) -> Path | None:
    """Return a path, or None for '' or None. Raise TypeError for other values."""
    if path is None or isinstance(path, str | os.PathLike):
        return Path(path) if path else None
    raise TypeError(f"{name} has {path!r}, which is not a path. Pass a str or a Path.")


def _columns(frame) -> list[str]:
    """Return the columns of a data frame in a file, cell type and donor first."""
    columns = [str(_decode(name)) for name in frame.attrs["column-order"]]
    return sorted(columns, key=lambda name: (name != CELL_TYPE, name != DONOR))  # the others keep their order


def _decode(name: object) -> object:
    """Return a text of an HDF5 file as str."""
    return name.decode() if isinstance(name, bytes) else name


def _gene_names(var: pd.DataFrame) -> tuple[pd.Index, pd.Index]:
    """Return the names of the genes and unique symbols: the name if there is none, "symbol (name)" if repeated."""
    names = var.index.astype(str)
    symbols = pd.Series(names if (found := gene_symbols(var)) is None else found, dtype=object)
    repeated = symbols.duplicated(keep=False)
    return names, pd.Index(symbols.mask(repeated & (symbols != names), symbols + " (" + names + ")"))
