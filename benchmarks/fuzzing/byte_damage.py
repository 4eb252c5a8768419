"""Damage to the bytes of a file: interrupted copies, bad disks, and files that are something else."""

import gzip
import os
import re
from pathlib import Path

import h5py
import numpy as np

from fuzzing.bases import Base
from fuzzing.kinds import NotApplicableError, kind
from fuzzing.store import arrays, elements

_BLOCK = 512


def _flip(path: Path, at: np.ndarray, rng: np.random.Generator) -> None:
    """Flip one bit of each byte in `at`."""
    data = bytearray(path.read_bytes())
    for i in at:
        data[i] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def _flip_between(path: Path, lo: int, hi: int, rng: np.random.Generator, what: str, most: int = 8) -> str:
    """Flip up to `most` bits between two offsets."""
    n = int(rng.integers(1, most + 1))
    at = rng.integers(lo, max(hi, lo + 1), n)
    _flip(path, at, rng)
    return f"{n} bits of {what} (offsets {sorted(at.tolist())})"


@kind("truncated", "h5ad")
def truncate(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Cut off the file at any offset, often near an end."""
    size = path.stat().st_size
    choices = [int(rng.integers(size)), int(rng.integers(min(size, 4096))), size - 1 - int(rng.integers(64))]
    at = choices[rng.integers(3)]
    os.truncate(path, at)
    return f"cut off at {at} of {size} bytes"


@kind("bits flipped anywhere", "h5ad")
def flip_anywhere(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Flip some bits."""
    return _flip_between(path, 0, path.stat().st_size, rng, "the file", int(rng.choice([1, 8, 200])))


@kind("superblock", "h5ad")
def flip_superblock(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Flip bits of the first 96 bytes, which describe the file."""
    return _flip_between(path, 0, 96, rng, "the superblock")


@kind("object header", "h5ad")
def flip_object_header(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Flip bits of the header of an element: its shape, type, filters and attributes."""
    with h5py.File(path) as file:
        items = elements(file) | {"/": file["/"]}
        name = list(items)[rng.integers(len(items))]
        start = h5py.h5o.get_info(items[name].id).addr
    return _flip_between(path, start, min(start + 300, path.stat().st_size), rng, f"the header of {name}")


@kind("B-tree and heap", "h5ad")
def flip_tree(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Flip bits of the trees and heaps in which HDF5 finds elements, chunks and strings."""
    found = [m.start() for m in re.finditer(rb"TREE|SNOD|HEAP|GCOL|FRHP|BTHD|BTLF", path.read_bytes())]
    start = found[rng.integers(len(found))]
    return _flip_between(path, start, min(start + 200, path.stat().st_size), rng, f"the index at {start}")


@kind("chunk data", "h5ad")
def flip_chunk(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Flip bits of the values of an array."""
    with h5py.File(path) as file:
        stored = []
        for name in arrays(file):
            dataset = file[name]
            if dataset.chunks:
                stored += [(name, c.byte_offset, c.size) for c in _chunks(dataset)]
            elif dataset.id.get_offset():
                stored.append((name, dataset.id.get_offset(), dataset.id.get_storage_size()))
    name, start, size = stored[rng.integers(len(stored))]
    return _flip_between(path, start, start + size, rng, f"the values of {name}")


def _chunks(dataset: h5py.Dataset) -> list:
    """Return offset and size of all chunks."""
    return [dataset.id.get_chunk_info(i) for i in range(dataset.id.get_num_chunks())]


@kind("block of zeros", "h5ad")
def zero_block(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Overwrite a block of the file, as a bad sector would."""
    data, start = bytearray(path.read_bytes()), int(rng.integers(path.stat().st_size // _BLOCK)) * _BLOCK
    data[start : start + _BLOCK] = (bytes(_BLOCK), rng.bytes(_BLOCK))[rng.integers(2)]
    path.write_bytes(data)
    return f"the {_BLOCK} bytes at {start}"


@kind("two blocks swapped", "h5ad")
def swap_blocks(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Exchange two blocks of the file."""
    data = bytearray(path.read_bytes())
    a, b = (int(i) * _BLOCK for i in rng.integers(len(data) // _BLOCK, size=2))
    data[a : a + _BLOCK], data[b : b + _BLOCK] = data[b : b + _BLOCK], data[a : a + _BLOCK]
    path.write_bytes(data)
    return f"the blocks at {a} and {b}"


@kind("bytes after the end", "h5ad", valid=True)
def append(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Append bytes, which HDF5 ignores."""
    with path.open("ab") as file:
        file.write(rng.bytes(n := int(rng.integers(1, 5000))))
    return f"{n} bytes added"


@kind("something else in place of the file", "h5ad")
def other_file(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Replace the file by one of the things that people pass by mistake."""
    content = path.read_bytes()
    page = b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
    choices = {
        "empty": b"",
        "web page": page,
        "LFS pointer": pointer,
        "gzipped": gzip.compress(content),
        "pickle": b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x05touch\x85R.",
        "header only": content[:8],
        "random": rng.bytes(4000),
        "shifted": b"\n" + content,
    }
    name = [*choices, *_HDF5_FILES][rng.integers(len(choices) + len(_HDF5_FILES))]
    if name in choices:
        path.write_bytes(choices[name])
    else:
        _write_hdf5(path, name)
    return name


_HDF5_FILES = ("10x", "h5mu", "loom", "no groups")


def _write_hdf5(path: Path, name: str) -> None:
    """Write an HDF5 file of another format."""
    path.unlink()
    with h5py.File(path, "w") as file:
        if name == "10x":
            matrix = file.create_group("matrix")
            matrix["data"], matrix["indices"], matrix["indptr"] = [1, 2], [0, 1], [0, 1, 2]
            matrix["shape"], matrix["barcodes"] = [2, 2], np.array([b"A", b"B"])
        elif name == "h5mu":
            file.attrs["encoding-type"] = "MuData"
            file.create_group("mod/rna")
        elif name == "loom":
            file["matrix"] = np.ones((2, 2))
            file.create_group("row_attrs"), file.create_group("col_attrs")


@kind("unknown compression", "h5ad")
def unknown_filter(path: Path, base: Base, rng: np.random.Generator) -> str:
    """Name a filter that is not installed, as in files that were compressed with a plug-in."""
    data = bytearray(path.read_bytes())
    places = [m.start() - 8 for m in re.finditer(rb"deflate\x00", bytes(data))]
    if not places:
        raise NotApplicableError
    for place in places if rng.integers(2) else [places[rng.integers(len(places))]]:
        data[place : place + 2] = (32015).to_bytes(2, "little")
    path.write_bytes(data)
    return "filter 32015 (zstd) in place of deflate"
