"""Opening files of cells. A guard around each read limits its memory, and turns all faults into one clear error."""

import contextlib
import functools
import math
import mmap
import os
import re
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import psutil
import zarr
from anndata.io import read_elem

if sys.platform == "linux":
    import resource

IN_MEMORY = "the AnnData"  # stands for the path of cells that are not in a file

_MAX_ELEMENTS, _MAX_DEPTH = 50_000, 64  # parts and levels of one element; if there are more, links form a circle
_TEXT_BYTES = 64  # memory of a short text
_SPARE = 2**32  # bytes that a read may need in addition to ten times the size of its values
_AGAIN = "Copy or download the file again, or write it again with anndata."
_HEAP, _MAX_SEARCHED = b"GCOL\x01\0\0\0", 2**28  # start of a heap of texts in HDF5; bytes
_ENTRY = struct.Struct("<H6xQ")  # number and length of a text in it
_KINDS = {  # first bytes of files that are not HDF5
    b"PK\x03\x04": "a zip archive, as .npz files, torch files and zipped zarr stores are",
    b"\x80": "a pickle of Python, which is not opened because it can run any code",
    b"\x1f\x8b": "compressed with gzip (unpack it: gunzip)",
    b"\x93NUMPY": "an array of NumPy (.npy)",
    b"<": "a web page or XML: the download may need a login",
}

_lock, _limits = threading.Lock(), []  # the limit of each guarded read that is in progress


class Fault(ValueError):
    """A fault of a file, found inside `guard`: what is wrong, as 'has …' or 'is …', and optionally what to do."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


@contextlib.contextmanager
def guard(
    path: str | Path, element: str = "", catch: type | tuple[type, ...] = Exception, *, size: int = 0
) -> Iterator[None]:
    """Turn errors of a read into OSError, ValueError or MemoryError with the file, the element and the remedy.

    By default it catches all errors, because damaged data raise errors of every kind in HDF5, zarr, NumPy, SciPy and
    pandas. Then only calls of these libraries belong inside. During a read of `size` bytes, memory is limited.
    """
    try:
        with _limit_memory(size):
            yield
    except catch as error:
        if getattr(error, "explained", False):  # by a guard inside this one
            raise
        notes = " ".join(getattr(error, "__notes__", ()))  # anndata adds where an error occurred
        if inner := re.search(r"key '?(.+?)'? of .* from /?(\S*)", notes):
            element = f"{inner[2]}/{inner[1]}".strip("/")
        name = f"{path}: {short(element, quote=False)}" if element else str(path)
        explained = _explain(error, name, in_memory=path == IN_MEMORY)
        explained.explained = True
        raise explained from error


def _explain(error: Exception, name: str, *, in_memory: bool) -> Exception:
    """Return the error to raise for an `error` while reading the element `name` of a file."""
    again = "Correct it." if in_memory else _AGAIN
    if isinstance(error, Fault):
        return ValueError(f"{name} {error}. {error.remedy or again}")
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    text = printable(text)[:300].rstrip(". ") or type(error).__name__
    if isinstance(error, MemoryError) or "memory allocation failed" in text or "an't allocate" in text:
        sizes = text if " GB " in text else f"{available_memory() / 1e9:.1f} GB are available"
        found = f"{name} does not fit in memory ({sizes})"
        return MemoryError(f"{found}. Use a machine with more memory. If the file should be small, it is damaged.")
    if isinstance(error, RecursionError):
        text = "its groups contain each other, or are nested too deeply"
    if isinstance(error, UnicodeError):
        text = f"a text is not UTF-8 ({text})"
    kind = next((kind for kind in (FileNotFoundError, PermissionError, OSError) if isinstance(error, kind)), ValueError)
    return kind(f"{name} cannot be read ({text}). {again}")


def available_memory() -> int:
    """Return the free bytes of the machine, within the cgroup limit at /sys/fs/cgroup (containers, Slurm)."""
    free, group = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    if sys.platform == "linux":
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]  # ulimit -v
        free = free if limit == resource.RLIM_INFINITY else min(free, limit - psutil.Process().memory_info().vms)
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except OSError:  # no cgroup v2 limit is mounted there
        return free


@contextlib.contextmanager
def _limit_memory(size: int) -> Iterator[None]:
    """Limit the memory of the process during a read of `size` bytes: compressed data can expand without end.

    The limit applies to all threads. A thread that reads in the background must not disturb the others: then the limit
    is the available memory of the machine.
    """
    if sys.platform != "linux":
        yield
        return
    with _lock:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if not _limits:
            spare = int(0.9 * available_memory())
            if threading.current_thread() is threading.main_thread():
                spare = min(spare, _SPARE + 10 * size)
            allowed = [psutil.Process().memory_info().data + spare, soft, hard]
            limit = min(value for value in allowed if value != resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        _limits.append(soft)
    try:
        yield
    finally:
        with _lock:
            before = _limits[0]
            _limits.pop()
            if not _limits:
                resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


# ---------------------------------------------------------------- opening
@contextlib.contextmanager
def open_cells(path: str | Path) -> Iterator[h5py.File | zarr.Group]:
    """Open an ``.h5ad`` file or a ``.zarr`` folder for reading. Raises OSError or ValueError with the remedy."""
    path = Path(path)
    _check_path(path)
    if path.is_dir():
        yield _check_parts(_open_zarr(path), path)
        return
    with _open_hdf5(path) as file:
        yield _check_parts(file, path)


def path_of(file: h5py.File | zarr.Group) -> str:
    """Return the path of an open file of cells."""
    return file.filename if isinstance(file, h5py.File) else str(file.store.root)


def _check_path(path: Path) -> None:
    """Raise OSError if there is no file or folder that can be read."""
    try:
        path.stat()
        readable = os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))
    except PermissionError:
        readable = False
    except (FileNotFoundError, NotADirectoryError):
        found = (p for kind in ("h5ad", "zarr") for p in path.parent.glob(f"*.{kind}") if p.exists())
        nearby = sorted(found) if path.parent.is_dir() and os.access(path.parent, os.R_OK | os.X_OK) else []
        contains = f" {path.parent}/ contains {', '.join(p.name for p in nearby[:5])}." if nearby else ""
        example = nearby[0] if nearby else "data/cells.h5ad"
        found = f"{path} (a link to {path.readlink()})" if path.is_symlink() else str(path)
        advice = f"Pass the path of an existing .h5ad or .zarr, such as {example} (with make: DATA={example})."
        if "results" in path.parts:
            advice = "'make all' writes the results; pass the path of an existing file."
        raise FileNotFoundError(f"File not found: {found}.{contains} {advice}") from None
    except (OSError, ValueError) as error:  # links in a circle, names that are too long or contain a null character
        circle = "is a link that leads to itself" if "symbolic links" in str(error) else f"cannot be opened ({error})"
        raise OSError(f"{path} {circle}. Pass the path of a file.") from None
    if not readable:
        raise PermissionError(f"{path} cannot be read: permission denied. Ask its owner, or run: chmod +r {path}")
    if not path.is_file() and not path.is_dir():
        raise OSError(f"{path} is neither a file nor a folder. Pass the path of an .h5ad or .zarr.")


def _open_zarr(path: Path) -> zarr.Group:
    """Open a zarr folder without links and special files."""
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        raise OSError(f"{path} is a folder, but not a zarr store. Pass the path of an .h5ad file or a .zarr folder.")
    for folder, folders, names in os.walk(path):
        for name in folders + names:
            mode, size = (status := (inside := Path(folder, name)).lstat()).st_mode, status.st_size
            if size == 0 and (mode & 0o170000) == 0o100000:  # some readers take an empty shard for zeros
                found = f"{path}: {inside.relative_to(path)} is empty (was a copy interrupted, or a disk full?)"
                raise ValueError(f"{found}. Copy or write the folder again.")
            if (mode & 0o170000) not in (0o040000, 0o100000):  # neither a folder nor a file
                kind = "a link to another file" if inside.is_symlink() else "a special file"
                raise ValueError(f"{path}: {inside.relative_to(path)} is {kind}. Copy the data into the folder.")
    with guard(path):
        return zarr.open_group(path, mode="r", use_consolidated=False)  # a copy of the metadata can be out of date


def _open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file. Raise OSError that says why it cannot be opened."""
    with guard(path), path.open("rb") as file:
        start = file.read(512)
    _check_heaps(path, path.stat().st_size, path.stat().st_mtime_ns)
    try:
        return h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        text, size = " ".join(str(error).split()), f"{path} ({path.stat().st_size:,} bytes)"
        if "unable to lock file" in text:
            found = f"{path} is open for writing in another program, or the file system has no locks ({text})"
            raise OSError(f"{found}. Close the other program, or set HDF5_USE_FILE_LOCKING=FALSE.") from error
        if not h5py.is_hdf5(path) and not start.startswith(b"\x89HDF"):
            kind = next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), "")
            kind = "empty" if not start else kind or ("a text file" if _is_text(start) else "not an HDF5 file")
            kind = kind if kind == "not an HDF5 file" else f"not an HDF5 file; it is {kind}"
            raise OSError(f"{size} is {kind}. Pass an .h5ad file or a .zarr folder.") from error
        if "truncated" in text:
            found = f"{size} is truncated (was a copy or download interrupted?): {text}"
            raise OSError(f"{found}. Copy, download or write it again.") from error
        raise OSError(f"{size} cannot be opened as HDF5 ({text}). {_AGAIN}") from error


@functools.lru_cache
def _check_heaps(path: Path, size: int, modified: int) -> None:
    """Raise OSError if reading a text would never end: an entry of size 0 in a heap of texts makes HDF5 loop forever.

    HDF5 does not return to Python during this loop, so only this search prevents it. Large files are not searched. A
    file that has the same `size` and the same time in `modified` is searched once.
    """
    if not 0 < size <= _MAX_SEARCHED:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        for heap in re.finditer(_HEAP, raw):
            at = heap.start()
            entry, end = at + 16, min(at + int.from_bytes(raw[at + 8 : at + 16], "little"), len(raw))
            while entry + 16 <= end:
                number, length = _ENTRY.unpack_from(raw, entry)
                if number == length == 0:
                    raise OSError(f"{path} is damaged: the texts at byte {entry} cannot be read. {_AGAIN}")
                entry += 16 + -(-length // 8) * 8 if number else length


def _is_text(start: bytes) -> bool:
    """Return whether the first bytes of a file are text."""
    return b"\0" not in start and start.decode("utf-8", "ignore").encode() in start


def _check_parts(file: h5py.File | zarr.Group, path: Path) -> h5py.File | zarr.Group:
    """Return `file` if it contains cells and no links to other files. Raise ValueError otherwise."""
    outside = []
    with guard(path):
        if isinstance(file, h5py.File):
            file.visititems_links(lambda name, link: isinstance(link, h5py.ExternalLink) and outside.append(name))
        parts = list(file)
        mods = list(file["mod"]) if "mod" in parts and hasattr(file["mod"], "keys") else []
        groups = [name for name in parts if not is_array(file[name])] if not outside and not mods else []
        tenx = any("barcodes" in file[name] for name in groups if name not in ("obs", "var"))
    if outside:
        raise ValueError(f"{path}: {outside[0]} is a link to another file. Copy the data into the file.")
    if missing := [part for part in ("obs", "var") if part not in parts or mods]:
        new, lines = path.with_suffix(".h5ad"), []
        if tenx:
            kind = "a 10x file"
            lines = [f"import scanpy; cells = scanpy.read_10x_h5({str(path)!r}); cells.var_names_make_unique()"]
        elif mods:
            kind, element = "a file of several modalities (.h5mu)", f"mod/{'rna' if 'rna' in mods else mods[0]}"
            reader = "zarr.open_group" if path.is_dir() else "h5py.File"
            opened = f"{reader}({str(path)!r}, mode='r')[{element!r}]"
            lines = [f"import {reader.split('.')[0]}, anndata; cells = anndata.io.read_elem({opened})"]
        if lines:
            lines = "\n".join(f"  {line}" for line in [*lines, f"cells.write_h5ad({str(new)!r})"])
            raise ValueError(f"{path} is {kind}, not an .h5ad file. Convert it with Python, then pass {new}:\n{lines}")
        contents = ", ".join(short(name, quote=False) for name in parts[:20]) or "nothing"
        found = f"{path} contains {contents}, but no {' and no '.join(missing)}"
        raise ValueError(f"{found}. Write it again with AnnData.write_h5ad or AnnData.write_zarr.")
    return file


# ---------------------------------------------------------------- elements
def is_array(node: object) -> bool:
    """Return whether a node of a file is an array and not a group."""
    return hasattr(node, "dtype")


def read_element(parent: h5py.Group | zarr.Group, name: str, path: str | Path) -> object:
    """Read a whole element of a file with anndata, if it fits in memory."""
    element = f"{parent.name.strip('/')}/{name}".strip("/")
    with guard(path, element):
        node = parent[name] if name else parent
        size = check_size(node)
    with guard(path, element, size=size):
        return read_elem(node)


def check_size(node: h5py.Group | h5py.Dataset | zarr.Group | zarr.Array) -> int:
    """Return the bytes of an element. Raise Fault or MemoryError if it is too large or in another file."""
    nodes, n_nodes, size = [(node, 0)], 0, 0
    while nodes:
        (node, depth), n_nodes = nodes.pop(), n_nodes + 1
        if n_nodes > _MAX_ELEMENTS or depth > _MAX_DEPTH:
            limit = f"{_MAX_ELEMENTS:,} parts or {_MAX_DEPTH} levels"
            raise Fault(f"has more than {limit}; perhaps it has a link to one of its own groups")
        if is_array(node):
            check_local(node)
            itemsize = node.dtype.itemsize if getattr(node.dtype, "kind", "O") in "biufcSUV" else _TEXT_BYTES
            size += math.prod(node.shape or (0,)) * itemsize  # no shape: empty
        else:
            nodes.extend((node[name], depth + 1) for name in node)
    check_memory(size)
    return size


def check_local(array: h5py.Dataset | zarr.Array) -> None:
    """Raise Fault if the values of an array are in another file, or take more space compressed than uncompressed."""
    if not isinstance(array, h5py.Dataset):
        return
    if array.external or array.is_virtual:
        raise Fault("is a link to another file", "Copy the data into the file.")
    if array.shape and array.chunks and array.dtype.kind in "biuf":
        n_chunks = math.prod(-(-n // chunk) for n, chunk in zip(array.shape, array.chunks, strict=True))
        size = n_chunks * (math.prod(array.chunks) * array.dtype.itemsize + 4096)
        if (stored := array.id.get_storage_size()) > size:
            raise Fault(f"has {stored:,} bytes of compressed values, more than the possible {size:,}")


def check_memory(size: int) -> None:
    """Raise MemoryError if `size` bytes are not available."""
    if size > (free := available_memory()):
        raise MemoryError(f"{size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are available")


def short(name: object, *, quote: bool = True) -> str:
    """Return a name for an error message, not longer than 80 characters."""
    text = printable(name)
    text = text if len(text) <= 80 else f"{text[:76]} …"
    return repr(text) if quote else text


def printable(text: object) -> str:
    """Return a text in one line, without control characters and surrogates."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(str(text).split()))
