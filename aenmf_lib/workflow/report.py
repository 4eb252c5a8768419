"""The text of `check`: what was found, what is wrong, what each stage costs, and what to type."""

import shlex
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from aenmf_lib.data.label_summary import LabelSummary
from aenmf_lib.data.labels import CELL_TYPE, DONOR
from aenmf_lib.data.reading import available_memory
from aenmf_lib.workflow.costs import Size, available_cores

_ORDER = (  # of the variables of make in the suggested command
    "DATASET DATA DONOR_KEY CELL_TYPE_KEY MIN_CELLS LAYER GENE_NAME_KEY FRACTIONAL DROP_MISSING KEEP_UNLABELED"
    " DROP_EMPTY DROP_LABELS MERGE_LABELS PRIMARY_ONLY SAMPLE_CELLS K SEED N_STARTS STRENGTH GENE_WEIGHTS"
    " DEVICE MAX_CELLS FOREST SCIB N_JOBS EXTRA BASELINES FORMAT WIDTH COLOR_BY SETTINGS MODELS QUICK SHARDS EXECUTOR"
).split()
FAULTS = (ValueError, TypeError, OSError, RuntimeError, MemoryError)  # what readers and constructors raise
_WIDTH = 118
_SHOWN = 5  # labels
_LONG = 1200.0  # seconds: above this, a quick look is suggested first


@dataclass
class Report:
    """What a check has found so far, in the order of its text."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)  # (what, found) of the first part of the text
    options: dict[str, str] = field(default_factory=dict)  # suggested variables of make
    dropped: set[str] = field(default_factory=set)  # variables of make that caused an error
    raised: dict[str, int] = field(default_factory=dict)  # values that QUICK raises, because the data need more
    size: Size | None = None  # of the filtered cells, if it is known
    costs: pd.DataFrame | None = None  # of each stage, from `cluster.add_cluster`; None if the sizes are not known
    command: str = ""  # the complete command line
    text: str = ""  # what `make check` prints

    def attempt(self, function: Callable, *arguments: Any, dropped: str = "", **options: Any) -> Any:
        """Return the result of a function, or record its error (and the variable that caused it) and return None."""
        try:
            return function(*arguments, **options)
        except FAULTS as error:
            self.error(str(error), dropped)
            return None

    def error(self, text: str, dropped: str = "") -> None:
        """Record an error once, and the variable that the suggested command leaves out."""
        if text not in self.errors:
            self.errors.append(text)
        if dropped:
            self.dropped.add(dropped)


def text(path: str, found: Report, *, quick: bool, slurm: bool) -> str:
    """Return the whole report."""
    parts = [f"Check of {path}", *_aligned(found.lines)]
    for title, entries in (("Problems", found.errors), ("Warnings", found.warnings)):
        if entries:
            parts += ["", f"{title} ({len(entries)})"]
            for number, entry in enumerate(entries, 1):
                parts += _wrapped(entry, f"  {number}. ")
    parts += [] if found.errors else ["", "No problems were found."]
    if found.costs is not None:
        parts += ["", *_costs(found.costs)]
    title = "Command" if not found.errors else "Command, corrected" if found.options or found.dropped else ""
    parts += ["", title or "Command, once the problems are solved", f"  {found.command}"]
    whole = found.costs[found.costs["part"] == ""] if found.costs is not None else None
    if whole is not None and not quick and whole["cluster_seconds" if slurm else "seconds"].sum() > _LONG:
        parts += ["For a first look in minutes, add QUICK=true."]
    return "\n".join(parts) + "\n"


def command(variables: Mapping[str, str]) -> str:
    """Return the command line of make with these variables."""
    names = sorted(variables, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    return " ".join(["make all", *(f"{name}={shlex.quote(variables[name])}" for name in names)])


def describe_labels(
    summary: LabelSummary, keys: Mapping[str, str], options: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return the lines about donors and types."""
    lines = []
    for label, what, option, values in (
        (DONOR, "donors", "DONOR_KEY", summary.donor),
        (CELL_TYPE, "cell types", "CELL_TYPE_KEY", summary.cell_type),
    ):
        suggested = f", with {option}={keys[label]}" if option in options else ""
        sizes = values.value_counts()
        largest = ", ".join(f"{name} ({n:,})" for name, n in sizes.head(_SHOWN).items())
        place = f"{len(sizes)} in obs[{keys[label]!r}]{suggested}"
        lines.append((what, f"{place}: {largest}{', …' * (len(sizes) > _SHOWN)}"))
    return lines + [("", note) for note in summary.notes]


def describe_kept(summary: LabelSummary, size: Size) -> str:
    """Return how many cells, donors, types and genes stay."""
    donors = f"{size.n_donors} of {len(summary.donors)} donors (min_cells {summary.min_cells:,})"
    per_cell = size.nnz / max(size.n_cells, 1)
    cells = f"{size.n_cells:,} of {size.file_cells:,} cells"
    return f"{cells}, {donors}, {size.n_types} types, {size.n_genes:,} genes, {per_cell:,.0f} expressed per cell"


# ---------------------------------------------------------------- costs
def _costs(table: pd.DataFrame) -> list[str]:
    """Return the table of costs."""
    requests = "slurm/stages.tsv" if table["requested_memory"].notna().any() else "unknown"
    machine = f"this machine: {available_cores()} cores, {bytes_text(memory()[0])} of memory; cluster: {requests}"
    rows = [("stage", "memory", "disk", "time", "cluster", "requested there")]
    for row in table.itertuples():
        disk = bytes_text(row.disk) if row.disk else ""
        there = "" if pd.isna(row.cluster_seconds) else time_text(row.cluster_seconds)
        requested = ""
        if not pd.isna(row.requested_memory):
            requested = f"{bytes_text(row.requested_memory)}, {time_text(row.requested_seconds)}"
        name = f"  {row.part}" if row.part else row.stage
        rows.append((name, bytes_text(row.memory), disk, time_text(row.seconds), there, requested))
    whole = table[table["part"] == ""]
    seconds, there = whole[["seconds", "cluster_seconds"]].sum()
    memory_and_disk = bytes_text(whole["memory"].max()), bytes_text(whole["disk"].sum())
    rows.append(("all", *memory_and_disk, time_text(seconds), time_text(there) if there else "", ""))
    lines = ["  {:<22}{:>9}{:>9}{:>9}{:>11}{:>24}".format(*row).rstrip() for row in rows]
    return [f"Estimated cost; expect errors of a factor of two ({machine})", *lines]


def bytes_text(size: float) -> str:
    """Return a size such as ``1.2 GB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if size >= (1 if unit == "TB" else 0.1) * factor:
            return f"{size / factor:.1f} {unit}" if size < 10 * factor else f"{size / factor:.0f} {unit}"
    return f"{max(size / 1e6, 1):.0f} MB"


def time_text(seconds: float) -> str:
    """Return a time such as ``40 s``, ``4 min``, ``2.5 h`` or ``3 days``."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


# ---------------------------------------------------------------- machine
def memory() -> tuple[int, int]:
    """Return the memory of this machine and what is available, in bytes."""
    return psutil.virtual_memory().total, available_memory()


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def free_disk(folder: Path) -> int:
    """Return the free bytes of the disk of a folder, which need not exist."""
    return shutil.disk_usage(existing(folder)).free


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 if it does not exist."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


# ---------------------------------------------------------------- layout
def _aligned(lines: Sequence[tuple[str, str]]) -> list[str]:
    """Return (what, found) pairs in two columns."""
    width = max((len(what) for what, _ in lines), default=0) + 2
    return [part for what, found in lines for part in _wrapped(found, f"  {what:<{width}}")]


def _wrapped(entry: str, first: str) -> list[str]:
    """Return an entry in lines of limited width, indented like its first line; its own line breaks stay."""
    indent, lines = " " * len(first), []
    for line in entry.split("\n"):
        lines += textwrap.wrap(
            line, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False
        ) or [""]
    return [first + lines[0][len(first) :], *lines[1:]]
