"""TODO module docstring."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem

log = logging.getLogger(__name__)


def read_h5ad(path: str | Path) -> AnnData:
    """Read an ``.h5ad`` whole.

    Raises
    ------
    FileNotFoundError, OSError, ValueError
        The file is missing, is not HDF5 or is cut short, or is not an AnnData file.
    """
    with open_h5ad(path) as file:
        cells = read_elem(file["/"])
    if not isinstance(cells, AnnData):
        raise ValueError(
            f"{path} was written by an anndata too old to be read: read and write it again with anndata 0.7 to 0.10."
        )
    return cells


def open_h5ad(path: str | Path) -> h5py.File:
    """Open an ``.h5ad`` for reading, with errors that name the file. Raises as `read_h5ad`."""
    path = Path(path)
    if path.is_dir():
        raise OSError(f"{path} is a folder: the path of an .h5ad file is expected.")
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.h5ad")) if path.parent.is_dir() else []
        there = f"; {path.parent}/ holds {', '.join(near[:5])}" if near else ""
        raise FileNotFoundError(
            f"{path} is not there{there}. Give the path of an .h5ad file: make all DATA=cells.h5ad."
        )
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        size = path.stat().st_size
        cut = "truncated" in str(error) or path.open("rb").read(4) == b"\x89HDF"
        what = "is cut short (an interrupted copy or download?)" if cut else "is not an HDF5 file"
        raise OSError(
            f"{path} ({size} bytes) {what}: {error}. An .h5ad is expected; fetch or write it again."
        ) from error
    if lacking := [part for part in ("obs", "var") if part not in file]:
        parts = ", ".join(file) or "nothing"
        file.close()
        raise ValueError(f"{path} is not an AnnData file: it has no {' and no '.join(lacking)} (it holds {parts}).")
    return file


# -------------------------------------------------------------------------------------------------------------- writing
@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes its name when the block ends well and is removed otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as csv, whole or not at all."""
    with atomic(path) as partial:
        table.to_csv(partial, index=False)


def write_npz(path: str | Path, version: int, **arrays: np.ndarray) -> None:
    """Write arrays as NumPy's ``.npz`` with the version of their format, whole or not at all."""
    with atomic(path) as partial, partial.open("wb") as file:  # given a name, NumPy would add to it
        np.savez(file, format=version, **arrays)


def read_npz(path: str | Path, version: int, what: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read an ``.npz``, whole or some arrays; `what` names it in errors. Raises FileNotFoundError, ValueError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in (file.files if names is None else ["format", *names])}
        found = int(held["format"])
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, NumPy and zlib each have their own for a damaged file
        raise ValueError(f"{path} is not a file of {what}, or is cut short ({error}): make it again.") from error
    if found != version:
        raise ValueError(f"{path} holds {what} of format {found}; this version reads {version}: make it again.")
    return held


def write_h5ad(cells: AnnData, path: str | Path) -> None:
    """Write an ``.h5ad``, whole or not at all."""
    with atomic(path) as partial:
        cells.write_h5ad(partial)


def file_info(path: str | Path) -> dict[str, str]:
    """Give the path and the SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
