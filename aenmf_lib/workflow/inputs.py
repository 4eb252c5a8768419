"""The input of a data set, recognized by its content: a new path or date changes no result."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from aenmf_lib.workflow import parameters
from aenmf_lib.workflow.parameters import ParameterError

log = logging.getLogger(__name__)
_LARGE = 2 * 2**30  # bytes from which reading the whole file takes seconds
_PACKED = {".gz": "gunzip", ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd", ".zip": "unzip", ".tar": "tar -xf"}


def canonical(path: str) -> str:
    """Return one spelling of a path: relative to the current folder if it is inside, otherwise absolute."""
    absolute = os.path.abspath(os.path.expanduser(path))
    relative = os.path.relpath(absolute)
    return absolute if relative.startswith("..") else relative


def require(data: str, folder: Path, goals: Sequence[str] = ()) -> None:
    """Raise ParameterError if the input is missing and `goals` need it, or if it is not a file of cells."""
    if not data and not (folder / "filtered.h5ad").is_file():
        place = "notebooks/params/<data set>.yaml"
        raise ParameterError(f"No cells to read. Pass DATA=cells.h5ad, or add the line 'data: cells.h5ad' to {place}.")
    path = Path(data).expanduser()
    if data and path.exists():
        if path.suffix in _PACKED:
            raise ParameterError(
                f"{data} is packed. Expected an .h5ad or .zarr. Unpack it first: {_PACKED[path.suffix]} {data}."
            )
        return
    if (folder / "filtered.h5ad").is_file():
        files = {f"{folder}/{name}" for name in ("filtered.h5ad", "cohort.csv", "01_filter.ipynb")}
        if needing := {"all", "filter", "check", *files} & {*goals}:
            raise ParameterError(
                f"{data} no longer exists. {describe(folder)}. To use these cells, replace the goal "
                f"'{min(needing)}' by: train, benchmarks or figures. To filter again, put the file back or pass its "
                f"new path as DATA=…."
            )
        return
    if path.is_symlink():
        raise ParameterError(f"{data} is a link to {os.readlink(path)}, which does not exist. Pass an existing file.")
    near = sorted(found for end in ("h5ad", "zarr") for found in path.parent.glob(f"*.{end}"))
    near = near or sorted(found for end in ("h5ad", "zarr") for found in Path().glob(f"data/*.{end}"))
    others = f"{near[0].parent}/ contains {', '.join(p.name for p in near[:5])}. " if near else ""
    raise ParameterError(f"File not found: {data}. {others}Pass an existing file: make all DATA=cells.h5ad.")


def describe(folder: Path) -> str:
    """Return from which input the filtered cells of a data set were made."""
    made = _lines(folder / "input.yaml")
    source = f"{made['path']} (sha256 {made['sha256'][:12]}…)" if {"path", "sha256"} <= made.keys() else "it"
    return f"{folder}/filtered.h5ad was made from {source}"


def _lines(file: Path) -> dict[str, str]:
    """Return the 'name: value' lines of a file that `Input.write` wrote. Needs no package."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8", errors="replace")
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


class Input:
    """A file or zarr folder, compared with the input that results were made from.

    ``<folder>/input.yaml`` has path and hash, and is written only when the content changes: stages depend on it.
    ``<folder>/.input.json`` records size and dates, so that the content is read again only when one of them changes.
    """

    def __init__(self, path: str, folder: Path) -> None:
        self.path, self.folder = canonical(path), folder
        self.file, self._cache = folder / "input.yaml", folder / ".input.json"
        self.record, self._cached = _lines(self.file), parameters.read_json(self._cache)
        self._signature = signature(Path(self.path))

    @property
    def touched(self) -> bool:
        """Whether the content may differ from the recorded content."""
        return "sha256" not in self.record or self._cached != self._state(self.record["sha256"])

    @cached_property
    def sha256(self) -> str:
        """The hash of the content."""
        if not self.touched:
            return self.record["sha256"]
        size = Path(self.path).stat().st_size
        if size > _LARGE:
            log.info("Reading %s (%.0f GB) to compute its hash", self.path, size / 1e9)
        return content_hash(self.path)

    @property
    def changed(self) -> bool:
        """Whether the content differs from that of the existing results."""
        return self.record.get("sha256") != self.sha256

    def require_own_results(self) -> None:
        """Raise ParameterError if the folder has results of another file, which has other content."""
        other = self.record.get("path", self.path)
        if other != self.path and (self.folder / "filtered.h5ad").is_file() and self.changed:
            raise ParameterError(
                f"{self.folder}/ was made from {other}, not from {self.path}. Pass DATASET=other to keep both, or "
                f"remove the folder with: make clean DATASET={self.folder.name}"
            )

    def write(self) -> None:
        """Write the record, if it has changed, and the cache."""
        parameters.write(self.file, {"path": self.path, "sha256": self.sha256}, unimportant=("path",))
        if self._cached != self._state(self.sha256):
            parameters.write_text(self._cache, json.dumps(self._state(self.sha256)))

    def _state(self, sha256: str) -> dict[str, str]:
        """Return the content of the cache."""
        return {"signature": self._signature, "sha256": sha256}


def content_hash(path: str | Path) -> str:
    """Return the hash of the content of a file or of a zarr folder."""
    from aenmf_lib.data.files import file_info

    return file_info(path)["sha256"]


def signature(path: Path) -> str:
    """Return size, dates and inode of a file, or a hash of those of all files in a folder."""
    if not path.is_dir():
        found = path.stat()
        return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
    files = sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return hashlib.sha256("\n".join(f"{file} {signature(file)}" for file in files).encode()).hexdigest()
