"""Reading ``obs`` and ``var``: names are text, and every column is of a type that anndata can write."""

import logging

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem

from aenmf_lib.data.reading import Fault, check_size, guard, is_array, read_element, short

log = logging.getLogger(__name__)


def read_frame(file: h5py.File | zarr.Group, part: str, path: str) -> pd.DataFrame:
    """Read ``obs``, ``var`` or ``raw/var``, as `plain_frame` returns it. Errors name the column."""
    with guard(path, part):
        group = file[part]
        attributes = dict(group.attrs)
    if attributes.get("encoding-type") != "dataframe" or attributes.get("encoding-version") != "0.2.0":
        return plain_frame(read_element(file, part, path), part, path)  # anndata < 0.8
    with guard(path, part):
        size = check_size(group)
        columns, index = [str(name) for name in attributes["column-order"]], str(attributes["_index"])
    values, n_rows = {}, None
    for read in (_length, read_elem):  # lengths first: HDF5 crashes if it runs out of memory while it reads texts
        for name in dict.fromkeys([index, *columns]):
            with guard(path, f"{part}/{name}", size=size):
                values[name] = read(group[name])
                length = values[name] if read is _length else len(values[name])
                n_rows = length if name == index else n_rows
                if None not in (length, n_rows) and length != n_rows:
                    raise Fault(f"has {length} values, but there are {n_rows} names")
    with guard(path, part):
        frame = pd.DataFrame({name: values[name] for name in columns}, index=pd.Index(values[index]), columns=columns)
        frame.index.name = None if index == "_index" else index
    return plain_frame(frame, part, path)


def _length(node: h5py.Group | h5py.Dataset | zarr.Group | zarr.Array) -> int | None:
    """Return the number of values of a column, or None if it consists of several arrays."""
    return node.shape[0] if is_array(node) else None


def read_names(file: h5py.File | zarr.Group, part: str, path: str) -> pd.Index:
    """Read the names of the cells or genes in ``obs``, ``var`` or ``raw/var``."""
    with guard(path, part):
        name = file[part].attrs.get("_index")
    if name is None:
        return read_frame(file, part, path).index
    with guard(path, f"{part}/{name}"):
        return _plain_names(pd.Index(read_elem(file[part][name])), part)


def plain_frame(frame: pd.DataFrame, part: str, path: str) -> pd.DataFrame:
    """Return a copy whose index is text and whose columns all versions of anndata can write. Log what becomes text."""
    with guard(path, part):
        if not isinstance(frame, pd.DataFrame):
            raise Fault("is not a table")
        index = _plain_names(frame.index, part)
        names = ["index" if name == "_index" else _writable(str(name)) for name in frame.columns]
        if repeated := pd.Index(names)[pd.Index(names).duplicated()].tolist():
            raise Fault(f"has more than one column {short(repeated[0])}", "Rename the columns.")
    columns, changed = {}, []
    for i, name in enumerate(names):
        with guard(path, f"{part}/{name}"):
            columns[name], is_changed = _plain_column(frame.iloc[:, i])
            if is_changed:
                changed.append(name)
    if changed:
        listed = ", ".join(map(short, changed[:5])) + ", …" * (len(changed) > 5)
        log.info("%s: %d columns are read as text, because their values are of several types or of a type that not all "
                 "versions of anndata can write: %s", part, len(changed), listed)  # fmt: skip
    index.name = None if index.name in (*names, "_index") else index.name
    return pd.DataFrame(columns, index=index, columns=names if names else None)


def _writable(name: str) -> str:
    """Return a name that HDF5 and zarr can give to a column: a slash makes a group, and '' and '.' are the parent."""
    return "_" if name in ("", ".", "..") else name.replace("/", "_")


def _plain_names(index: pd.Index, part: str) -> pd.Index:
    """Return the names of cells or genes as text, (n,) object. Raise Fault if one is missing."""
    missing = np.asarray(index.isna())
    if missing.any():
        found = f"has {missing.sum()} missing names (first: number {missing.argmax() + 1} of {len(index)})"
        raise Fault(found, f"Give each a name (cells.{part[-3:]}_names) and write the file again.")
    names = index if index.dtype == object and index.inferred_type == "string" else [_text(name) for name in index]
    names = pd.Index(names, dtype=object, name=index.name)
    if n := int((names == "").sum()):
        log.warning("%s: %d of %d names are empty", part, n, len(names))
    return names


def _text(value: object) -> str:
    """Return a value as text; bytes are UTF-8."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _texts(values: object) -> np.ndarray:
    """Return values as text, and missing values as NaN, (n,) object."""
    values = pd.Series(values).astype(object)
    missing = values.isna().to_numpy()
    texts = np.array([np.nan if none else _text(value) for value, none in zip(values, missing, strict=True)], object)
    return texts


def _plain_column(column: pd.Series) -> tuple[pd.Series | pd.Categorical | np.ndarray, bool]:
    """Return the values in a type that all versions of anndata can write, and whether other types became text."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        categories = column.cat.categories
        plain, changed = _plain_column(pd.Series(categories))
        plain = pd.Index(np.asarray(plain))
        if plain.is_unique:
            return pd.Categorical.from_codes(column.cat.codes, plain, ordered=column.cat.ordered), changed
        return pd.Categorical(plain.to_numpy()[column.cat.codes], ordered=False), True
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf" and dtype.itemsize <= 8:
        return column.to_numpy().astype(dtype.newbyteorder("="), copy=False), False
    if isinstance(dtype, pd.BooleanDtype) or (dtype in _NULLABLE_INTEGERS):
        return column.array, False
    if pd.api.types.is_string_dtype(dtype) or dtype.kind in "OSU":
        kinds = {type(value) for value in column.dropna()} if len(column) else set()
        if kinds == {bool} and not column.isna().any():
            return column.to_numpy().astype(bool), False
        texts = _texts(column)
        changed = bool(kinds - {str, bytes, np.str_, np.bytes_})
        return (pd.Categorical(texts) if pd.isna(texts).any() else texts), changed
    if str(dtype).lower().startswith("float"):  # nullable floats: a missing value is NaN
        return column.to_numpy(dtype=np.float64, na_value=np.nan), False
    texts = _texts(column)
    return (pd.Categorical(texts) if pd.isna(texts).any() else texts), True


_NULLABLE_INTEGERS = [kind() for kind in (pd.Int8Dtype, pd.Int16Dtype, pd.Int32Dtype, pd.Int64Dtype, pd.UInt8Dtype,
                                          pd.UInt16Dtype, pd.UInt32Dtype, pd.UInt64Dtype)]  # fmt: skip
