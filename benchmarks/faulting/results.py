"""Comparing the results of two runs, bit for bit, except what differs in any two runs.

These are times, memory and commits, the hash of the filtered cells (which contain the time), and the order of the rows
in caches, to which parallel processes append.
"""

import csv
import hashlib
import io
import re
from pathlib import Path

import h5py

_VARIES = re.compile(r"seconds|created|git_commit|peak_memory|version_|platform|/mib|provenance/input/sha256", re.I)


def digest(folder: Path) -> dict[str, str]:
    """Return a hash of the values in each file of a results folder, by path. Reports and checks count by name only."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            found[name] = "report" if path.suffix in (".ipynb", ".txt") else _hash(path)
    return found


def differences(expected: dict[str, str], found: dict[str, str]) -> str:
    """Return the files that are missing, additional or different, or an empty text."""
    parts = {
        "missing": [name for name in expected if name not in found],
        "left over": [name for name in found if name not in expected],
        "different": [name for name in expected if name in found and found[name] != expected[name]],
    }
    return "; ".join(f"{what}: {', '.join(names[:5])} ({len(names)})" for what, names in parts.items() if names)


def _hash(path: Path) -> str:
    """Return a hash of the values of one file."""
    digest = hashlib.sha256()
    try:
        if path.suffix == ".h5ad":
            with h5py.File(path) as file:
                _add_elements(file, digest)
        elif path.suffix == ".csv":
            rows = list(csv.reader(io.StringIO(path.read_text())))
            kept = [i for i, name in enumerate(rows[0] if rows else ()) if not _VARIES.search(name)]
            rows = [[row[i] for i in kept if i < len(row)] for row in rows]
            digest.update(repr(rows[:1] + sorted(rows[1:]) if "scores" in path.name else rows).encode())
        else:
            digest.update(path.read_bytes())
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError) as error:
        return f"unreadable: {error}"
    return digest.hexdigest()


def _add_elements(file: h5py.File, digest) -> None:
    """Add the names, types and values of all elements to a hash."""

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if _VARIES.search(name):
            return
        digest.update(name.encode())
        for key in sorted(item.attrs):
            digest.update(f"{key}={item.attrs[key]!r}".encode())
        if isinstance(item, h5py.Dataset):
            values = item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()]
            text = repr(values.tolist()) if hasattr(values, "tolist") and values.dtype.kind == "O" else None
            digest.update(text.encode() if text else repr(values).encode() if not hasattr(values, "tobytes") else b"")
            if hasattr(values, "tobytes") and not text:
                digest.update(f"{values.dtype}{values.shape}".encode() + values.tobytes())

    file.visititems(add)
