"""Checks of the files of a run. They read keys, shapes and types, and of the cells only a few values of X."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import zarr

from aenmf_lib.data.frames import read_names
from aenmf_lib.data.judging import describe_non_counts
from aenmf_lib.data.reading import Fault, guard, is_array
from aenmf_lib.results.schema import identify

MODEL_REMEDY = "Train the model again, or write the file again with results.write"
MAP_REMEDY = "Compute the map again with notebook 06 (make benchmarks)"
_FILTERED = "Pass the file of filtered cells on which the models were trained (notebook 01)"
_HIGHEST = np.log1p(1e4) + 1e-3  # log1p of counts per 10,000 is not larger
_SAMPLE = {1: 4096, 2: 64}  # number of dimensions -> values of a sparse X, or cells of a dense X, that are judged


def find_model(file: h5py.File | zarr.Group, path: str | Path) -> tuple[str, int]:
    """Return the model and the rank of an open results file. Raise ValueError if it has no cells or no model."""
    with guard(path):
        keys = list(file.get("varm", {}))
        try:
            found = identify(SimpleNamespace(varm=keys))
        except ValueError as error:
            advice = "Train a model on filtered cells and write it with results.write."
            raise Fault(f"is not a results file: {str(error).rstrip('.')}", advice) from None
        if not index_of(file["obs"]).shape[0]:
            raise Fault("has no embedding: it is a model without cells, written by model.save", "To write the "
                        "embeddings, use results.write(new_path, results.load_model(path), cells).")  # fmt: skip
    return found


def check_array(
    file: h5py.File | zarr.Group, element: str, path: str | Path, shape: tuple[int, int], remedy: str
) -> None:
    """Raise ValueError unless an element, such as ``obsm/H_shared_k4``, is an array of numbers of this shape."""
    part, _, key = element.partition("/")
    with guard(path, element):
        group = file.get(part, {})
        if key not in group:
            raise Fault(f"does not exist; {part} has {', '.join(group) or 'nothing'}", f"{remedy}.")
        node = group[key]
        if not is_array(node):
            raise Fault(f"is stored as {node.attrs.get('encoding-type', 'a group')}, not as an array", f"{remedy}.")
        if node.dtype.kind not in "fiu":
            raise Fault(f"has values of type {node.dtype}; numbers are expected", f"{remedy}.")
        if node.shape != shape:
            raise Fault(f"has shape {node.shape}; {shape} is expected", f"{remedy}.")


def check_values(values: np.ndarray, remedy: str, *, negative: bool = False) -> np.ndarray:
    """Return the values, just read inside a `guard`. Raise Fault if they are not finite, or not `negative` but < 0."""
    low, high = values.min(initial=0), values.max(initial=0)  # NaN if there is a NaN; no copy of the values
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Fault(f"contains {int((~np.isfinite(values)).sum())} values that are NaN or infinite", f"{remedy}.")
    if low < 0 and not negative:
        raise Fault(f"contains {int((values < 0).sum())} negative values", f"{remedy}.")
    return values


def find_columns(file: h5py.File | zarr.Group, path: str | Path, n_cells: int, genes: pd.Index) -> np.ndarray:
    """Return the column of each gene in X, (n_genes,). Raise ValueError if one is missing, or X is not normalized."""
    names, remedy = read_names(file, "var", path), f"{_FILTERED}."
    with guard(path, "X"):
        node = file.get("X")
        if node is None or node.attrs.get("encoding-type") == "null":
            raise Fault("does not exist; log1p of counts per 10,000 is expected", remedy)
        shape = tuple(node.shape if is_array(node) else node.attrs["shape"])
        if shape != (n_cells, len(names)):
            raise Fault(f"has shape {shape}, but there are {n_cells} cells and {len(names)} genes", remedy)
        stored = node if is_array(node) else node["data"]
        values = np.ravel(stored[: _SAMPLE[stored.ndim]])
        values = values[values != 0]
        # `not … <=` also refuses NaN
        if len(values) and (describe_non_counts(values) is None or not values.max() <= _HIGHEST):
            found = f"has values such as {', '.join(f'{value:.4g}' for value in values[:3])}"
            raise Fault(f"{found} (largest {values.max():.4g}); log1p of counts per 10,000 is expected", remedy)
        columns = names.get_indexer(genes)
    if len(missing := genes[columns < 0]):
        found = f"{path} has no {len(missing)} of the {len(genes)} genes of the models (first: {missing[0]!r})"
        raise ValueError(f"{found}. {remedy}")
    return columns


def index_of(frame: h5py.Group | zarr.Group) -> h5py.Dataset | zarr.Array:
    """Return the index of a data frame in a file."""
    return frame[frame.attrs.get("_index", "_index")]
