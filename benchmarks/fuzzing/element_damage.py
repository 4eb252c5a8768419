"""Damage to the elements of a file: types, names, attributes, encodings and links. The same for h5ad and zarr."""

from pathlib import Path

import h5py
import numpy as np
import zarr
from anndata.io import write_elem

from fuzzing.bases import Base
from fuzzing.kinds import NotApplicableError, kind
from fuzzing.store import Array, Group, arrays, edit, elements, is_group, replace, set_attribute

_CORE = ("X", "raw/X", "layers/counts", "obs", "var", "raw/var", "obsm", "varm")


def pick(items, rng: np.random.Generator):
    """Return one of the items at random."""
    items = list(items)
    if not items:
        raise NotApplicableError
    return items[rng.integers(len(items))]


def _core(group: Group, rng: np.random.Generator, *, only_arrays: bool = False) -> str:
    """Return an element that the product may read, or sometimes any element."""
    names = arrays(group) if only_arrays else list(elements(group))
    core = [name for name in names if name.startswith(_CORE)]
    return pick(core if rng.random() < 0.85 else names, rng)


def _values(array: Array) -> np.ndarray:
    """Return the values of an array, strings as str."""
    if isinstance(array, h5py.Dataset) and h5py.check_string_dtype(array.dtype):
        return np.asarray(array.asstr()[()], dtype=object)
    return np.asarray(array[()])


_DTYPES = ("float16", "float64", "int64", "int8", "uint16", "bool", "complex64", ">f4", ">i8", "S5", "str", "compound")


@kind("wrong type of an array")
def wrong_dtype(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Write an array with another type: of numbers, text, compound or times."""
    with edit(path) as group:
        name, dtype = _core(group, rng, only_arrays=True), pick(_DTYPES, rng)
        values = _values(group[name])
        values = values.astype(object) if values.dtype.kind == "T" else values
        if values.dtype.kind in "OSUT" and dtype not in ("S5", "str", "compound"):
            values = np.arange(values.size).reshape(values.shape)
        with np.errstate(all="ignore"):
            if dtype == "compound":
                new = np.zeros(values.shape, dtype=[("a", "i4"), ("b", "f8")])
            else:
                new = values.astype(str).astype(dtype) if dtype in ("S5", "str") else values.astype(dtype)
        try:
            replace(group, name, new)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise NotApplicableError from error
    return f"{name} as {dtype}"


@kind("other shape of an array")
def wrong_shape(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Write an array shorter, longer, empty, as a scalar or with another dimension."""
    with edit(path) as group:
        name = _core(group, rng, only_arrays=True)
        values, how = _values(group[name]), pick(("shorter", "longer", "empty", "scalar", "column", "3-D"), rng)
        flat = values.ravel()
        new = {
            "shorter": lambda: values[: max(len(values) - 1 - int(rng.integers(5)), 0)],
            "longer": lambda: np.concatenate([values, values[:3]]),
            "empty": lambda: values[:0],
            "scalar": lambda: flat[0],
            "column": lambda: flat[:, None],
            "3-D": lambda: flat[None, :, None],
        }[how]
        if not values.ndim or not values.size:
            raise NotApplicableError
        replace(group, name, np.asarray(new()))
    return f"{name} {how}"


@kind("missing element")
def delete_element(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Delete a group or an array."""
    with edit(path) as group:
        del group[name := _core(group, rng)]
    return name


@kind("renamed element")
def rename_element(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Give a group or an array another name: odd, long, with control characters, or the name of another element."""
    with edit(path) as group:
        name = _core(group, rng)
        new = pick(("..", "x\x1b[31mred", "é" * 40, "n" * 5000, " ", "obs", "nan", "../../escaped"), rng)
        parent, _, _ = name.rpartition("/")
        target = f"{parent}/{new}" if parent else new
        try:
            if isinstance(group, zarr.Group):
                (path / name).rename(path / parent / new)
            elif target.split("/")[-1] == ".." or target in group:
                raise NotApplicableError
            else:
                group.move(name, target)
        except (OSError, ValueError) as error:
            raise NotApplicableError from error
    return f"{name} is called {new[:30]!r}"


@kind("missing attribute")
def delete_attribute(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Delete an attribute."""
    with edit(path) as group:
        name = _core(group, rng) if rng.random() < 0.9 else "/"
        attribute = pick(group[name].attrs, rng) if name != "/" else pick(group.attrs, rng)
        del (group[name] if name != "/" else group).attrs[attribute]
    return f"{attribute} of {name}"


_ODD = (
    "", "csr_matrix", "csc_matrix", "array", "string-array", "categorical", "dataframe", "dict", "raw", "anndata",
    "nullable-integer", "nullable-boolean", "nullable-string-array", "awkward-array", "null", "numeric-scalar",
    "rec-array", "from-the-future", "x" * 3000, "\x1b[2J", 3, -1, 2.5, [1, 2], ["a", "b"],
)  # fmt: skip


@kind("other value of an attribute")
def change_attribute(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Set any attribute to an unexpected value."""
    with edit(path) as group:
        name = _core(group, rng) if rng.random() < 0.9 else "/"
        item = group if name == "/" else group[name]
        attribute, value = pick(item.attrs, rng), pick(_ODD, rng)
        set_attribute(item, attribute, value)
    return f"{attribute} of {name} is {str(value)[:40]!r}"


@kind("unknown encoding")
def change_encoding(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Set encoding-type or encoding-version to another value."""
    with edit(path) as group:
        names = [n for n, item in elements(group).items() if "encoding-type" in item.attrs and n.startswith(_CORE)]
        name, attribute = pick(names, rng), pick(("encoding-type", "encoding-version"), rng)
        value = pick(_ODD, rng) if attribute == "encoding-type" else pick(("9.9.9", "", "0.0.1", "x", 1), rng)
        set_attribute(group[name], attribute, value)
    return f"{attribute} of {name} is {str(value)[:40]!r}"


@kind("byte strings", valid=True, suites="h5ad")
def byte_strings(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Write texts as bytes of fixed length, as some older tools do."""
    with edit(path) as file:
        names = [n for n in arrays(file) if h5py.check_string_dtype(file[n].dtype) and n.startswith(("obs", "var"))]
        names = names if rng.integers(2) else [pick(names, rng)]
        for name in names:
            values = np.array([text.encode() for text in file[name].asstr()[()]])
            replace(file, name, values, keep_attributes=True)
    return f"{', '.join(names)} as S"


@kind("huge text")
def huge_text(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Make one name of a cell, a gene or a category very long."""
    with edit(path) as group:
        names = [n for n in arrays(group) if n.startswith(("obs/", "var/")) and _is_text(group[n])]
        name, size = pick(names, rng), int(rng.choice([10_000, 5_000_000]))
        values = _values(group[name]).astype(object)
        values[rng.integers(len(values))] = "x" * size
        replace(group, name, values)
    return f"a text of {size:,} characters in {name}"


def _is_text(array: Array) -> bool:
    """Return whether an array contains texts."""
    if isinstance(array, h5py.Dataset):
        return h5py.check_string_dtype(array.dtype) is not None
    return _values(array[:1]).dtype.kind in "OTU" if array.shape else False


@kind("odd or repeated names")
def odd_names(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Repeat names, or write empty names and control characters."""
    with edit(path) as group:
        name = pick([n for n in arrays(group) if n.startswith(("obs/", "var/")) and _is_text(group[n])], rng)
        values, new = _values(group[name]).astype(object), pick(("repeat", "", "\x1b[31m\n", "\x85", " ", "nan"), rng)
        values[rng.integers(len(values))] = values[0] if new == "repeat" else new
        replace(group, name, values)
    return f"{new!r} in {name}"


@kind("category codes")
def codes(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Set codes of a category column out of range or to missing."""
    with edit(path) as group:
        name = pick([n for n in arrays(group, "obs/") if n.endswith("/codes")], rng)
        values = np.array(group[name][:]).astype(np.int64)
        value = int(pick((-1, -2, 4, 5, 99, 127, -128, 40_000), rng))
        values[rng.integers(len(values), size=int(rng.integers(1, 4)))] = value
        replace(group, name, values.astype(np.int8) if abs(value) < 128 else values)
    return f"{value} in {name}"


@kind("categories")
def categories(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Write categories that are repeated, missing, numbers, or too few or too many."""
    with edit(path) as group:
        name = pick([n for n in arrays(group, "obs/") if n.endswith("/categories")], rng)
        values, how = _values(group[name]).astype(object), pick(("repeated", "NaN", "few", "numbers", "many", "2"), rng)
        if how == "NaN":
            new = np.r_[np.nan, np.arange(len(values) - 1)]
        elif how == "numbers":
            new = np.arange(len(values)) * 1.5
        elif how == "2":
            new = np.arange(len(values))
        else:
            new = {
                "repeated": np.append(values[:-1], values[0]),
                "few": values[:1],
                "many": np.append(values, [f"unused {i}" for i in range(300)]),
            }[how].astype(object)
        replace(group, name, new)
    return f"{how} in {name}"


@kind("columns of a table")
def columns(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Name columns that are not there, or an index outside of the table."""
    with edit(path) as group:
        table = group[pick([t for t in ("obs", "var", "raw/var") if t in group], rng)]
        attribute = pick(("column-order", "_index"), rng)
        if attribute == "_index":
            value = pick(("absent", "../var/_index", "donor_id", "/obs/_index", "", "../../../etc/passwd", ".."), rng)
        else:
            value = pick((["absent"], ["donor_id", "donor_id"], ["../X"], "donor_id", ["_index"], [], [""]), rng)
            value = np.array(value, dtype=object) if isinstance(value, list) and value else value
        if isinstance(table, h5py.Group) and isinstance(value, np.ndarray):
            value = np.array(value, dtype=h5py.string_dtype())
        elif isinstance(value, list) and isinstance(table, h5py.Group):
            value = np.zeros(0)
        set_attribute(table, attribute, value)
    return f"{attribute} of {table.name} is {value}"


@kind("an element of another kind")
def swap_elements(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Put a group, a scalar, a table or a list of texts where another element is expected."""
    with edit(path) as group:
        name = pick([n for n in elements(group) if n.startswith(_CORE) and n.count("/") < 2], rng)
        new = pick(("empty group", "scalar", "text", "table", "texts"), rng)
        del group[name]
        if new == "empty group":
            group.create_group(name)
        elif new == "table":
            import pandas as pd

            write_elem(group, name, pd.DataFrame({"a": [1, 2]}, index=["x", "y"]))
        else:
            write_elem(group, name, {"scalar": 3, "text": "text", "texts": np.array(["a", "b"], object)}[new])
    return f"{name} is a {new}"


@kind("links", "h5ad", strict=True)
def links(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Replace an element by a link: inside the file, to itself, to another file, or to raw bytes of another file."""
    how = pick(("soft", "hard", "broken", "cycle", "external", "external absent", "storage", "passwd"), rng)
    with edit(path) as file:
        name = _core(file, rng, only_arrays=how in ("storage", "passwd"))
        item = file[name]
        if how in ("storage", "passwd"):
            if item.dtype.kind not in "fiu" or not item.shape:
                raise NotApplicableError
            values, attributes, raw = item[()], dict(item.attrs), path.with_name("raw.bin")
            values.tofile(raw)
            target = str(raw) if how == "storage" else "/etc/passwd"
            del file[name]
            dataset = file.create_dataset(
                name, values.shape, values.dtype, external=[(target, 0, h5py.h5f.UNLIMITED)]
            )  # fmt: skip
            dataset.attrs.update(attributes)
            return f"the values of {name} are in {target}"
        if how.startswith("external"):
            other = path.with_name("other.h5")
            if how == "external":
                with h5py.File(other, "w") as second:
                    file.copy(item, second, "moved")
            del file[name]
            file[name] = h5py.ExternalLink(str(other), "/moved")
        elif how == "hard":
            parent = item.parent
            del file[name]
            file[name] = parent if parent.name != "/" else file
        else:
            file.move(name, "moved")
            file[name] = h5py.SoftLink({"soft": "/moved", "broken": "/absent", "cycle": f"/{name}"}[how])
    return f"{how} link in place of {name}"


@kind("expands without limit", "h5ad", "counts filtered results")
def expand(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Declare an array of terabytes, or store some GB of zeros in a few MB."""
    import zlib

    with edit(path) as file:
        name, bomb = _core(file, rng, only_arrays=True), bool(rng.integers(2))
        item = file[name]
        if not item.shape:
            raise NotApplicableError
        attributes, dtype, shape = dict(item.attrs), item.dtype, item.shape
        del file[name]
        rows = 1 << (28 if bomb else 40)
        chunk = (1 << 22, *shape[1:]) if len(shape) == 1 else (1 << 14, *shape[1:])
        rows = rows if len(shape) == 1 else rows >> 6
        new = file.create_dataset(name, (rows, *shape[1:]), dtype, chunks=chunk, compression="gzip")
        new.attrs.update(attributes)
        if bomb and dtype.kind in "fiu":
            packed = zlib.compress(bytes(int(np.prod(chunk)) * dtype.itemsize), 6)
            for start in range(0, rows, chunk[0]):
                new.id.write_direct_chunk((start, *[0] * (len(shape) - 1)), packed)
        if rng.integers(2) and is_group(parent := file[name].parent) and "shape" in parent.attrs:
            parent.attrs["shape"] = [1 << 40, parent.attrs["shape"][1]]
    return f"{name} has {rows:,} rows{' of stored zeros' if bomb else ''}"
