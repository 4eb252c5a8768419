"""A cache of scores on disk, the one loop that computes the scores that are missing in it, and their summary."""

import csv
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from aenmf_lib.data.progress import tqdm
from aenmf_lib.data.tables import parse_table, write_table
from aenmf_lib.results.schema import MODELS

logger = logging.getLogger(__name__)

_FINGERPRINT = "made_from"  # last column of the file: identifies the data, settings and code behind a score
_LIBRARY = Path(__file__).parents[1]


class ScoreCache:
    """A CSV file of scores. Rows are appended as soon as computed; a file with other columns is replaced.

    `columns` are those of the table, in order; those in `key` identify a row, and those in `text` contain text. A row
    is found by its key and its fingerprint, so a score is computed again only when the data, the settings or the code
    behind it change. Without a path the scores are in memory only. The folder named like the file without suffix
    (``scores/`` for ``scores.csv``) may contain such files of other processes. They are read but not changed.
    """

    def __init__(
        self, path: str | Path | None, columns: Sequence[str], key: Sequence[str], text: Sequence[str] = ()
    ) -> None:
        self.path, self.columns, self.key = path and Path(path), [*columns, _FINGERPRINT], [*key, _FINGERPRINT]
        self.text = {*self.key, *text}
        self.rows: dict[tuple, Mapping] = {}
        if not self.path:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for part in sorted(self.path.with_suffix("").glob("[!.]*.csv")):
            self._read(part)
        with self.path.open("ab+") as file:  # remove a last line that was cut off when the process was killed
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        if not self._read(self.path):
            write_table(pd.DataFrame(columns=self.columns), self.path)

    def evaluate(
        self, tasks: Mapping[tuple, str], worker: Callable, *, description: str = "", unit: str = "score"
    ) -> pd.DataFrame:
        """Compute the missing rows and return all. Record each immediately, so a killed run can resume.

        `tasks` maps the key of each row, in the order of the table, to its fingerprint. `worker` gets the list of the
        missing keys and yields ``(key, the other columns)`` for each, in any order; see `run_parallel`.
        """
        missing = [key for key, made_from in tasks.items() if (*key, made_from) not in self.rows]
        n_found = len(tasks) - len(missing)
        if n_found:
            logger.info("%s: %d of %d rows are already in %s.", description, n_found, len(tasks), self.path)
        with tqdm(total=len(tasks), initial=n_found, desc=description, unit=unit) as bar:
            for key, scores in worker(missing) if missing else ():
                self._append(dict(zip(self.key, (*key, tasks[key]), strict=True)) | dict(scores))
                bar.update()
        rows = [self.rows[*key, made_from] for key, made_from in tasks.items()]
        return pd.DataFrame(rows, columns=self.columns[:-1])

    def _read(self, path: Path) -> bool:
        """Read the rows of a file, if it has the columns of this version of the library."""
        text = path.read_bytes()
        lines = text[: text.rfind(b"\n") + 1]  # another process may be writing the last line
        if not lines:
            return False
        try:
            table = parse_table(lines)
        except ValueError as error:
            problem = f"{path} is not a table of scores ({str(error).strip()})."
            raise ValueError(f"{problem} Remove the file: its scores are computed again.") from error
        if list(table) != self.columns:
            logger.info("%s was written by another version: its scores are computed again.", path)
            return False
        for name in table.columns.difference(list(self.text)):
            wrong = table.loc[pd.to_numeric(table[name], errors="coerce").isna(), name].dropna()
            if len(wrong):
                problem = f"{path}: the column {name!r} contains {str(wrong.iloc[0])[:60]!r}. Numbers are expected."
                raise ValueError(f"{problem} Remove the file: its scores are computed again.")
        self.rows |= {tuple(row[name] for name in self.key): row for row in table.to_dict("records")}
        return True

    def _append(self, row: Mapping) -> None:
        """Record a row; it is on disk when this returns."""
        self.rows[tuple(row[name] for name in self.key)] = row
        row = {name: "" if value != value else value for name, value in row.items()}  # NaN is an empty field
        if self.path:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
                file.flush()
                os.fsync(file.fileno())


def run_parallel(function: Callable, calls: Iterable[tuple[tuple, tuple]], n_jobs: int) -> Iterator[tuple]:
    """Yield ``(key, function(*arguments))`` for each ``(key, arguments)``, in the order in which the calls finish."""

    def call(key: tuple, arguments: tuple) -> tuple[tuple, object]:
        return key, function(*arguments)

    yield from Parallel(n_jobs=n_jobs, return_as="generator_unordered")(delayed(call)(*each) for each in calls)


def fingerprint(*parts: np.ndarray | str | float | Sequence, packages: Sequence[str] = ()) -> str:
    """Return 16 hexadecimal digits that change with any of the parts or with the version of a package."""
    digest = hashlib.sha256()
    for part in (*parts, *(f"{name} {version(name)}" for name in packages)):
        if isinstance(part, np.ndarray):
            part = part.astype(str) if part.dtype == object else part  # the bytes of an object array are addresses
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"{part!r};".encode())
    return digest.hexdigest()[:16]


def source_code(*names: str) -> bytes:
    """Return the source of modules ('metrics/knn.py') and packages ('models') of this library, for a fingerprint."""
    paths = [path for name in names for path in sorted(_LIBRARY.glob(name if name.endswith(".py") else f"{name}/*.py"))]
    return b"".join(path.read_bytes() for path in paths)


def mean_and_std(
    long: pd.DataFrame, label: str, scores: Sequence[str], settings: Sequence[str], *, names: tuple[str, str]
) -> pd.DataFrame:
    """Return mean and standard deviation (ddof 1) of each score for one label, one row per model.

    The columns are `Model`, the scores as `names` (patterns for mean and deviation, such as "{}_std"), `n_rows`, and
    the settings, which must be the same in all rows. `n_rows` is the number of rows with scores. The models are in the
    order of `results.MODELS`, followed by other methods in the order of the rows.
    """
    rows = long[long["label"] == label]
    if rows.empty:
        known = sorted(long["label"].unique())
        raise ValueError(f"The table has no score for {label!r}, only for {known}. Choose one of these.")
    for setting in settings:
        values = sorted(rows[setting].unique().tolist())
        if len(values) > 1:
            raise ValueError(
                f"The scores for {label!r} come from runs with different {setting}: {values}. One table needs the same "
                "value in all rows. Run the benchmark again on all models together."
            )
    by_model = rows.groupby("Model", sort=False)
    table = by_model[list(scores)].agg(["mean", "std"])
    table.columns = [name.format(score) for score in scores for name in names]
    table["n_rows"] = by_model[scores[0]].count()
    table[list(settings)] = by_model[list(settings)].first()
    known = [model for model in MODELS if model in table.index]
    return table.loc[[*known, *table.index.difference(known, sort=False)]].reset_index()
