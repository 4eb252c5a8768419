"""Reading and writing whole files. Writing is atomic: an interrupted write leaves no partial file."""

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import psutil
import yaml
from anndata import AnnData
from anndata.io import write_elem
from scipy.sparse import csr_matrix, issparse

from aenmf_lib.data.frames import plain_frame
from aenmf_lib.data.progress import cell_bar
from aenmf_lib.data.reading import IN_MEMORY, Fault, guard, open_cells, read_element, short

_PARTS = ("uns", "obsm", "varm", "layers", "obsp", "varp")  # of an AnnData, apart from X, obs, var and raw


def read_h5ad(path: str | Path) -> AnnData:
    """Read a whole ``.h5ad`` or ``.zarr`` into memory. Raises OSError, ValueError or MemoryError with the remedy."""
    with open_cells(path) as file:
        cells = read_element(file, "", path)
    if not isinstance(cells, AnnData):
        raise ValueError(f"{path} was written by an old anndata version. Write it again with anndata 0.7 to 0.10.")
    with guard(path, "X"):
        if issparse(cells.X):
            cells.X.check_format(full_check=True)  # compiled code does not check the indices
    cells.obs, cells.var = plain_frame(cells.obs, "obs", path), plain_frame(cells.var, "var", path)
    return cells


def check_output(path: str | Path, suffix: str = "") -> None:
    """Raise OSError if a folder is in the place of the file `path`, or a file in the place of its folder.

    Raises ValueError if the name does not end in `suffix`.
    """
    path = Path(path)
    if suffix and path.suffix != suffix:
        raise ValueError(f"{path} cannot be written, because its name does not end in {suffix}. Rename it, for example "
                         f"to {path.with_suffix(suffix) if path.name else 'out' + suffix}.")  # fmt: skip
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, but the path of a file is expected. Add the name of a file.")
    if blocking := next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None):
        raise NotADirectoryError(f"{path} cannot be written, because {blocking} is a file, not a folder. Choose "
                                 "another folder, or move the file away.")  # fmt: skip


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. It is renamed to `path` if the block succeeds, and removed otherwise.

    Temporary files of processes that were killed are removed.
    """
    path = Path(path)
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.iterdir():
        process, _, name = left.name.removeprefix(".").partition(".")
        if name == path.name and process.isdecimal() and not _is_running(int(process)):
            left.unlink(missing_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Return whether a process runs. One that was killed may be listed as a zombie for a while."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def write_h5ad(
    cells: AnnData, path: str | Path, *, fill: Callable[[h5py.File], None] | None = None, fill_size: int = 0
) -> None:
    """Write an ``.h5ad`` file atomically. Columns that not all versions of anndata can write become text.

    The cells of a `CellStream` are written block by block. `fill` receives the open file and writes more elements, such
    as arrays that do not fit in memory; `fill_size` is the largest number of bytes that they take. Raises OSError if
    the file cannot be written, and ValueError if its name does not end in ``.h5ad``.
    """
    check_output(path, ".h5ad")
    obs, var = plain_frame(cells.obs, "obs", IN_MEMORY), plain_frame(cells.var, "var", IN_MEMORY)
    in_memory = isinstance(cells, AnnData)
    parts = {part: dict(getattr(cells, part)) for part in (_PARTS if in_memory else ("uns",))}
    if in_memory and cells.raw is not None:
        raw_var = plain_frame(cells.raw.var, "raw/var", IN_MEMORY)
        parts["raw"] = {"X": cells.raw.X, "var": raw_var, "varm": dict(cells.raw.varm)}
    X = cells.X if in_memory else csr_matrix((cells.n_obs, cells.n_vars), dtype=np.float32)
    plain = AnnData(X, obs=obs, var=var, **parts)
    plain.strings_to_categoricals()
    if plain.raw is not None:
        plain.strings_to_categoricals(plain.raw.var)
    size = fill_size + _size_of(plain) + (0 if in_memory else 8 * (cells.n_obs + int(cells.sizes.sum(dtype=np.int64))))
    with atomic(path) as partial, partial.open("w+b", buffering=0) as target:
        _reserve(target, size, path)
        target.truncate(0)  # HDF5 starts with an empty file, and cuts off what it does not need at the end
        with h5py.File(target, "w") as file:
            _reserve(target, size, path)
            write_elem(file, "/", plain)
            if not in_memory:
                _write_blocks(cells, file["X"])
            if fill:
                fill(file)


def create_array(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """Create an empty array that the caller writes in blocks, with the attributes that anndata needs to read it."""
    array = group.create_dataset(name, shape, dtype)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def _write_blocks(cells: Iterable[tuple[csr_matrix, slice]], group: h5py.Group) -> None:
    """Replace the arrays of an empty matrix by those of a `CellStream`, contiguous and not compressed."""
    pointers = _pointers(cells.sizes)
    for name in ("data", "indices", "indptr"):
        del group[name]
    group["indptr"] = pointers
    data, indices = (
        group.create_dataset(name, (int(pointers[-1]),), dtype)
        for name, dtype in (("data", np.float32), ("indices", np.int32))
    )
    _copy_blocks(cells, data, indices, pointers)


def join_blocks(cells: Iterable[tuple[csr_matrix, slice]]) -> csr_matrix:
    """Return all cells of a `CellStream` in one matrix, (n_obs, n_vars) CSR float32, without further copies."""
    pointers = _pointers(cells.sizes)
    data, indices = (np.empty(pointers[-1], dtype) for dtype in (np.float32, np.int32))
    _copy_blocks(cells, data, indices, pointers)
    return csr_matrix((data, indices, pointers), (cells.n_obs, cells.n_vars))


def _pointers(sizes: np.ndarray) -> np.ndarray:
    """Return index pointers, (n_cells + 1,), from the number of nonzeros per cell: int32 if they fit, else int64."""
    pointers = np.append(0, sizes.cumsum(dtype=np.int64))
    return pointers.astype(np.int32) if pointers[-1] < 2**31 else pointers


def _copy_blocks(cells: Iterable[tuple[csr_matrix, slice]], data: object, indices: object, pointers: object) -> None:
    """Copy the values and indices of a `CellStream` into arrays. Raise OSError if its file has changed."""
    for X, rows in cell_bar(cells, "normalize"):
        expected = pointers[rows.start : rows.stop + 1]
        if not np.array_equal(X.indptr, expected - expected[0]):
            raise OSError(f"{cells.path} changed while it was read. Run the command again.")
        data[expected[0] : expected[-1]] = X.data
        indices[expected[0] : expected[-1]] = X.indices


def _reserve(target: io.FileIO, size: int, path: str | Path) -> None:
    """Reserve bytes on the disk, because HDF5 crashes at the end of the program if a write fails."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(target.fileno(), 0, size)
    except OSError as error:
        free = shutil.disk_usage(Path(path).parent).free
        found = f"{path} cannot be written: it needs up to {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
        raise OSError(error.errno, f"{found} ({error.strerror}). Free some space and run the command again") from None


def _size_of(value: object) -> int:
    """Return the largest size in bytes that a part of an AnnData can have in a file."""
    if isinstance(value, AnnData):
        names = ("X", "obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns")
        parts = [getattr(value, name) for name in names] + ([value.raw.X, value.raw.var] if value.raw else [])
        return 2**16 + sum(map(_size_of, parts))
    if isinstance(value, Mapping):
        return sum(2**12 + _size_of(part) for part in value.values())
    if isinstance(value, pd.DataFrame):
        return int(value.memory_usage(deep=True).sum()) + 2**13 * (1 + value.shape[1])
    if issparse(value):
        return value.data.nbytes + value.indices.nbytes + value.indptr.nbytes + 2**14
    array = np.asarray(value) if value is not None else np.zeros(0)
    return 2**12 + (array.nbytes if array.dtype.kind != "O" else sum(64 + 4 * len(str(item)) for item in array.flat))


def write_npz(path: str | Path, version: int, **arrays: np.ndarray) -> None:
    """Write arrays and the version of their format as ``.npz`` atomically."""
    with atomic(path) as partial, partial.open("wb") as file:  # given a path, NumPy would append ".npz"
        np.savez(file, format=version, **arrays)


def read_npz(path: str | Path, version: int, what: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file, or only those in `names`. `what` describes the contents in errors."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist. Expected {what}. Compute it again.")
    try:
        with guard(path), np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (file.files if names is None else ["format", *names])}
            found = int(arrays["format"])
            if other := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
                raise Fault(f"contains {short(other[0])}, which is not an array")
    except (OSError, ValueError) as error:
        raise ValueError(f"{error} Expected {what}: delete the file and compute it again.") from error
    if found != version:
        raise ValueError(f"{path} contains {what} of format {found}, not {version}. Compute it again.")
    return arrays


def file_info(path: str | Path) -> dict[str, str]:
    """Return the path and the SHA-256 hash of a file; of a zarr folder, of all names and contents.

    For a file that was downloaded by 'make fetch' and has not changed, also return its address and its citation.
    """
    path = Path(path)
    if not path.is_dir():
        info, record = {"path": str(path), "sha256": _hash_file(path)}, fetch_record(path)
        known = yaml.safe_load(record.read_text(encoding="utf-8")) if record.is_file() else {}
        names = ("url", "citation") if known.get("sha256") == info["sha256"] else ()
        return info | {name: str(known[name]) for name in names if name in known}
    total = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{_hash_file(file)}\n".encode())
    return {"path": str(path), "sha256": total.hexdigest()}


def fetch_record(path: str | Path) -> Path:
    """Return the file in which 'make fetch' records the source of a file of cells."""
    return Path(path).with_suffix(".fetched.yaml")


def _hash_file(path: Path) -> str:
    """Return the SHA-256 hash of a file, which is read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
