"""Where are scores kept while a benchmark runs? In a line of a csv each, so that a killed one goes on."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from aenmf_lib.data import files

log = logging.getLogger(__name__)

FINGERPRINT = "made_from"  # column that tells of which numbers a score is


def fingerprint(*parts: np.ndarray | str | float | Sequence, packages: Sequence[str]) -> str:
    """Tell what a score is made from: other cells, values, settings or packages give other letters."""
    digest = hashlib.sha256()
    for part in (*parts, *(f"{name} {version(name)}" for name in packages)):
        if isinstance(part, np.ndarray):
            part = part.astype(str) if part.dtype == object else part  # of objects NumPy holds addresses
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"{part!r};".encode())
    return digest.hexdigest()[:16]


class ScoreCache:
    """A csv that grows by a row as soon as a score is known, and is never written anew.

    Rows are known by their `key` and by what they were made from, so the same numbers are scored once: a model that is
    added, a label that is mended or another subset is scored alone. Without a path nothing is kept.

    A folder beside it, of its name without the ending, may hold such files of other processes, one each (jobs of an
    array): their rows count as its own and are never written to.
    """

    def __init__(self, path: str | Path | None, columns: Sequence[str], key: Sequence[str]) -> None:
        self.path, self.columns, self.key = path and Path(path), [*columns, FINGERPRINT], [*key, FINGERPRINT]
        self.rows: dict[tuple, dict] = {}
        if not self.path:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for part in sorted(self.path.with_suffix("").glob("[!.]*.csv")):
            self._read(part)
        self._cut()
        if self.path.stat().st_size and self._read(self.path):
            return
        files.write_table(pd.DataFrame(columns=self.columns), self.path)

    def _cut(self) -> None:
        """Take away a last line that was being written when the process was killed."""
        with self.path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)

    def _read(self, path: Path) -> bool:
        """Take the rows, if they are of this version; another process may be writing the last line."""
        text = path.read_bytes()
        lines = io.BytesIO(text[: text.rfind(b"\n") + 1])
        if not lines.getvalue():
            return False
        try:
            table = pd.read_csv(lines, float_precision="round_trip", keep_default_na=False, dtype={FINGERPRINT: str})
        except (pd.errors.ParserError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is no table of scores ({str(error).strip()}). Remove it: what it held is made again."
            ) from error
        if list(table) != self.columns:
            log.info("%s is of another version: its scores are made again.", path)
            return False
        self.rows |= {tuple(row[name] for name in self.key): row for row in table.to_dict("records")}
        return True

    def __contains__(self, key: tuple) -> bool:
        return key in self.rows

    def add(self, row: Mapping) -> None:
        """Keep a row, on disk before this returns."""
        self.rows[tuple(row[name] for name in self.key)] = dict(row)
        if self.path:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
                file.flush()
                os.fsync(file.fileno())

    def table(self, keys: Iterable[tuple]) -> pd.DataFrame:
        """Give the rows of these keys, in this order, without what they were made from."""
        return pd.DataFrame([self.rows[key] for key in keys], columns=self.columns[:-1])
