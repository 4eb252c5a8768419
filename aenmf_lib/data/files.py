"""Reading and checking ``.h5ad`` files, and writing files atomically: an interrupted write leaves no partial file."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem


def read_h5ad(path: str | Path) -> AnnData:
    """Read a whole ``.h5ad`` file into memory. Raises the errors of `open_h5ad`."""
    with open_h5ad(path) as file:
        cells = read_elem(file["/"])
    if not isinstance(cells, AnnData):
        raise ValueError(f"{path} was written by an old anndata version. Write it again with anndata 0.7 to 0.10.")
    return cells


def open_h5ad(path: str | Path) -> h5py.File:
    """Open an ``.h5ad`` file for reading. Raises FileNotFoundError, OSError or ValueError if that is not possible."""
    path = Path(path)
    if path.is_dir():
        raise OSError(f"{path} is a folder. Pass the path of an .h5ad file.")
    if not path.is_file():
        nearby = sorted(path.parent.glob("*.h5ad")) if path.parent.is_dir() else []
        contains = f" {path.parent}/ contains {', '.join(p.name for p in nearby[:5])}." if nearby else ""
        example = nearby[0] if nearby else "data/cells.h5ad"
        raise FileNotFoundError(f"File not found: {path}.{contains} Pass an existing file: make all DATA={example}.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        truncated = "truncated" in str(error) or path.open("rb").read(4) == b"\x89HDF"
        problem = "is truncated (was a copy or download interrupted?)" if truncated else "is not an HDF5 file"
        found = f"{path} ({path.stat().st_size:,} bytes) {problem}: {error}"
        raise OSError(f"{found}. Expected an .h5ad file. Download or write it again.") from error
    if missing := [part for part in ("obs", "var") if part not in file]:
        found = f"{path} contains {', '.join(file) or 'nothing'}, but no {' and no '.join(missing)}"
        file.close()
        raise ValueError(f"{found}. Expected a file written by AnnData.write_h5ad.")
    return file


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. It is renamed to `path` if the block succeeds, and removed otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV atomically, without its index."""
    with atomic(path) as partial:
        table.to_csv(partial, index=False)


def write_h5ad(cells: AnnData, path: str | Path) -> None:
    """Write an ``.h5ad`` file atomically."""
    with atomic(path) as partial:
        cells.write_h5ad(partial)


def write_npz(path: str | Path, version: int, **arrays: np.ndarray) -> None:
    """Write arrays and the version of their format as ``.npz`` atomically."""
    with atomic(path) as partial, partial.open("wb") as file:  # given a path, NumPy would append ".npz"
        np.savez(file, format=version, **arrays)


def read_npz(path: str | Path, version: int, what: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file, or only those in `names`. `what` describes the contents in errors."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (file.files if names is None else ["format", *names])}
        found = int(arrays["format"])
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, NumPy and zlib raise different errors for damaged files
        raise ValueError(f"{path} does not contain {what}, or is truncated ({error}). Compute it again.") from error
    if found != version:
        raise ValueError(f"{path} contains {what} of format {found}, not {version}. Compute it again.")
    return arrays


def file_info(path: str | Path) -> dict[str, str]:
    """Return the path and the SHA-256 hash of a file."""
    with Path(path).open("rb") as file:
        return {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
