"""Damage to the files in a zarr folder: chunks, metadata and links."""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from fuzzing.bases import Base
from fuzzing.element_damage import pick
from fuzzing.kinds import NotApplicableError, kind

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_CORE = ("X", "layers", "raw", "obs", "var")


def _files(path: Path, *, metadata: bool) -> list[Path]:
    """Return the metadata files, or the chunks, of the elements that the product reads."""
    found = sorted(p for p in path.rglob("*") if p.is_file() and (p.name in _METADATA) == metadata)
    return [p for p in found if p.parent == path or p.relative_to(path).parts[0] in _CORE]


@kind("chunk missing", "zarr")
def missing_chunk(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Delete a chunk. In zarr a missing chunk is valid, and its values are the fill value."""
    (chunk := pick(_files(path, metadata=False), rng)).unlink()
    return str(chunk.relative_to(path))


@kind("chunk truncated", "zarr")
def truncated_chunk(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Cut off a chunk, or empty it."""
    chunk = pick(_files(path, metadata=False), rng)
    os.truncate(chunk, at := int(pick((0, rng.integers(chunk.stat().st_size), chunk.stat().st_size - 1), rng)))
    return f"{chunk.relative_to(path)} cut off at {at}"


@kind("chunk flipped", "zarr")
def flipped_chunk(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Flip bits of a chunk."""
    chunk = pick(_files(path, metadata=False), rng)
    data = bytearray(chunk.read_bytes())
    for i in rng.integers(len(data), size=int(rng.integers(1, 9))):
        data[i] ^= 1 << int(rng.integers(8))
    chunk.write_bytes(data)
    return str(chunk.relative_to(path))


@kind("chunk replaced", "zarr")
def replaced_chunk(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Put zeros, random bytes, the chunk of another array or a folder in the place of a chunk."""
    chunks = _files(path, metadata=False)
    chunk, how = pick(chunks, rng), pick(("zeros", "random", "other", "folder"), rng)
    size = chunk.stat().st_size
    if how == "folder":
        chunk.unlink()
        chunk.mkdir()
    else:
        content = {"zeros": bytes(size), "random": rng.bytes(size), "other": pick(chunks, rng).read_bytes()}[how]
        chunk.write_bytes(content)
    return f"{chunk.relative_to(path)}: {how}"


@kind("metadata cut off or garbled", "zarr")
def garbled(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Truncate a json file, flip its bytes or replace it."""
    file, how = pick(_files(path, metadata=True), rng), pick(("cut", "flip", "empty", "list", "deep", "binary"), rng)
    data = bytearray(file.read_bytes())
    if how == "flip":
        for i in rng.integers(len(data), size=3):
            data[i] ^= 1 << int(rng.integers(8))
    else:
        data = {
            "cut": data[: int(rng.integers(len(data)))], "empty": b"", "list": b"[1, 2]", "deep": b"[" * 100_000,
            "binary": rng.bytes(200),
        }[how]  # fmt: skip
    file.write_bytes(bytes(data))
    return f"{file.relative_to(path)}: {how}"


@kind("metadata file missing", "zarr")
def missing_metadata(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Delete a json file."""
    (file := pick(_files(path, metadata=True), rng)).unlink()
    return str(file.relative_to(path))


_V2 = {
    "shape": ([1 << 44], [-5], [10], [], ["10"], 3.5, None), "chunks": ([1 << 44], [0], [-1], [7], [], None),
    "dtype": ("|O", "<f2", "<c8", "|S9", "<U99999999", "nonsense", None, "|V8"),
    "compressor": ({"id": "pickle"}, {"id": "absent"}, {"id": "zlib", "level": 1}, None, "text", {}),
    "filters": ([{"id": "pickle"}], [{"id": "vlen-utf8"}], "text", [{"id": "delta", "dtype": "<i4"}]),
    "fill_value": ("text", 7, None, float("nan")), "order": ("F", "X", None), "zarr_format": (1, 3, 99, "2"),
    "dimension_separator": ("/", ".", "..", None),
}  # fmt: skip
_V3 = {
    "shape": ([1 << 44], [-5], [10], [], ["10"], 3.5, None), "data_type": ("float16", "complex64", "string", "x", None),
    "chunk_grid": ({"name": "regular", "configuration": {"chunk_shape": [0]}}, {"name": "other"}, None,
                   {"name": "regular", "configuration": {"chunk_shape": [1 << 44]}}),
    "codecs": ([], [{"name": "absent"}], [{"name": "bytes"}], None, [{"name": "gzip"}], "text",
               [{"name": "numcodecs.pickle"}, {"name": "bytes"}]),
    "fill_value": ("text", 7, None), "zarr_format": (1, 2, 99, "3"), "node_type": ("group", "array", "x", None),
    "chunk_key_encoding": ({"name": "default", "configuration": {"separator": "../"}}, {"name": "v2"}, None),
}  # fmt: skip


@kind("metadata changed", "zarr")
def changed_metadata(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Change a field of the metadata of an array, also in the consolidated metadata."""
    files = [p for p in _files(path, metadata=True) if p.parent != path and b"shape" in p.read_bytes()]
    file = pick([p for p in files if p.name != ".zattrs"], rng)
    fields = _V3 if file.name == "zarr.json" else _V2
    name = pick(fields, rng)
    value = pick(fields[name], rng)
    key = str(file.parent.relative_to(path))

    def change(metadata: dict) -> None:
        if name in ("shape", "chunks") and isinstance(value, list) and len(value) == 1:
            metadata[name] = value + list(metadata[name][1:])
        elif value is None:
            metadata.pop(name, None)
        else:
            metadata[name] = value

    whole = json.loads(file.read_text())
    change(whole)
    file.write_text(json.dumps(whole))
    root = path / ("zarr.json" if file.name == "zarr.json" else ".zmetadata")
    if root.exists():
        together = json.loads(root.read_text())
        inner = together.get("metadata") or (together.get("consolidated_metadata") or {}).get("metadata") or {}
        entry = inner.get(key if root.name == "zarr.json" else f"{key}/.zarray")
        if entry:
            change(entry)
            root.write_text(json.dumps(together))
    return f"{name} of {key} is {str(value)[:60]}"


@kind("consolidated metadata", "zarr")
def consolidated(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Write consolidated metadata that name elements outside the folder, miss elements or do not belong to the file."""
    root = path / ("zarr.json" if (path / "zarr.json").exists() else ".zmetadata")
    if not root.exists():
        raise NotApplicableError
    whole = json.loads(root.read_text())
    inner = whole.get("metadata") or (whole.get("consolidated_metadata") or {}).get("metadata")
    if not inner:
        raise NotApplicableError
    how, name = pick(("outside", "missing", "exchanged", "absolute"), rng), pick(inner, rng)
    if how == "missing":
        del inner[name]
    elif how == "exchanged":
        inner[name] = inner[pick(inner, rng)]
    else:
        inner[{"outside": "../../outside", "absolute": "/etc"}[how] + name] = inner[name]
    root.write_text(json.dumps(whole))
    return f"{how}: {name}"


@kind("symbolic links in the folder", "zarr", strict=True)
def symlinks(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Replace a file or a folder by a link: to a copy of it, to itself, to nothing or to another file."""
    chunk = pick(_files(path, metadata=False), rng)
    how = pick(("copy", "folder", "loop", "absent", "passwd", "up"), rng)
    if how in ("folder", "up"):
        folder = pick([p for p in path.iterdir() if p.is_dir()], rng)
        moved = path.with_name("moved")
        shutil.move(folder, moved)
        folder.symlink_to(moved if how == "folder" else path, target_is_directory=True)
        return f"{folder.name}: {how}"
    moved = path.with_name("moved")
    shutil.move(chunk, moved)
    chunk.symlink_to({"copy": moved, "loop": chunk, "absent": path / "absent", "passwd": Path("/etc/passwd")}[how])
    return f"{chunk.relative_to(path)}: {how}"


@kind("something else in place of the folder", "zarr")
def other_folder(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Put an empty folder, a part of the store, a file, a zip file, or other files in its place."""
    how = pick(("empty", "part", "file", "zip", "other files"), rng)
    if how == "part":
        shutil.move(path / "obs", path.with_name("part"))
        shutil.rmtree(path)
        shutil.move(path.with_name("part"), path)
        return how
    if how == "zip":
        shutil.make_archive(str(path.with_name("packed")), "zip", path)
    shutil.rmtree(path)
    if how == "zip":
        path.with_name("packed.zip").rename(path)
    elif how == "file":
        path.write_bytes(b"text")
    else:
        path.mkdir()
        if how == "other files":
            (path / "readme.txt").write_text("nothing here")
    return how
