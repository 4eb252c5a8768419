"""Editing the elements of h5ad and zarr files alike."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from anndata.io import write_elem

Group = h5py.Group | zarr.Group
Array = h5py.Dataset | zarr.Array


@contextlib.contextmanager
def edit(path: Path) -> Iterator[Group]:
    """Open a file for editing. Consolidated metadata of zarr are written again."""
    if path.is_file():
        with h5py.File(path, "r+") as file:
            yield file
        return
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    before = zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None
    yield group
    if before:
        zarr.consolidate_metadata(path)


def elements(group: Group) -> dict[str, Group | Array]:
    """Return all groups and arrays in a file by path."""
    if isinstance(group, zarr.Group):
        return dict(sorted(group.members(max_depth=None)))
    found: dict[str, Any] = {}
    group.visititems(lambda name, item: found.update({name: item}))
    return dict(sorted(found.items()))


def arrays(group: Group, prefix: str = "") -> list[str]:
    """Return the paths of all arrays below `prefix`."""
    return [k for k, item in elements(group).items() if not is_group(item) and k.startswith(prefix)]


def is_group(item: Group | Array) -> bool:
    """Return whether an element is a group."""
    return isinstance(item, h5py.Group | zarr.Group)


def replace(group: Group, key: str, values: np.ndarray, *, keep_attributes: bool = True, **options) -> None:
    """Write other values in the place of an array, with its attributes."""
    attributes = dict(group[key].attrs) if keep_attributes and key in group else {}
    if key in group:
        del group[key]
    values = np.asarray(values)
    if values.dtype.kind in "OU":
        write_elem(group, key, values.astype(object))
        del attributes
        return
    if isinstance(group, zarr.Group):
        group.create_array(key, data=values, attributes=_plain(attributes), **options)
    else:
        group.create_dataset(key, data=values, **options).attrs.update(attributes)


def _plain(attributes: dict) -> dict:
    """Return attributes without NumPy types."""
    return {k: v.tolist() if isinstance(v, np.ndarray | np.generic) else v for k, v in attributes.items()}


def set_attribute(item: Group | Array, name: str, value: Any) -> None:
    """Set an attribute to any value that the format can store."""
    if isinstance(item, zarr.Group | zarr.Array):
        item.attrs[name] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    else:
        if name in item.attrs:
            del item.attrs[name]
        item.attrs[name] = value
