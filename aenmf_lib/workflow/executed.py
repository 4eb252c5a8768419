"""Executed notebooks, which are the record of a run: titles, parameters, times, files written and versions."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import re
import resource
import sys
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from aenmf_lib.workflow import parameters

log = logging.getLogger(__name__)
_RECORD = "aenmf_lib"  # key of the record in the metadata of an executed notebook
_NAME = re.compile(r"\d\d_\w+\.ipynb")
_FOR_TOOLS = re.compile(r"[ \t]*# (?:noqa(?:: [A-Z0-9, ]*[A-Z0-9])?|fmt: \w+)(?=\s*(?:#|$))", re.M)
PLACE = "@parameters@"  # text of the cell that replaces those of the parameters


@dataclass(frozen=True)
class Parameter:
    """A parameter of an executed notebook."""

    name: str
    kind: str  # its declared type, such as list[int]
    value: Any
    default: Any  # of the notebook
    meaning: str  # the comment of its declaration; may be empty
    given: bool  # whether it was set for this run


@dataclass(frozen=True)
class Executed:
    """An executed notebook."""

    path: Path
    title: str  # of its first cell
    question: str  # of its first cell
    parameters: dict[str, Parameter]  # by name, in the order of their declaration
    start: str  # in ISO 8601, to the second
    end: str
    seconds: float
    outputs: list[str]  # files that it wrote, in the order of writing, relative to its folder
    info: dict[str, str]  # code, versions, machine and peak memory, as in the provenance of a results file
    packages: dict[str, str]  # versions of the packages that the library declares, and of those in `info`
    skipped: str  # why it stopped early with success; usually empty

    @property
    def name(self) -> str:
        """Name of the notebook, such as ``06_benchmarks``."""
        return self.path.stem

    @property
    def files(self) -> list[Path]:
        """The files that it wrote and that still exist."""
        return [path for name in self.outputs if (path := self.path.parent / name).is_file()]


def find(folder: Path) -> list[Executed]:
    """Return the executed notebooks of a folder, by name. A notebook that cannot be read is left out with a warning."""
    found = []
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        if _NAME.fullmatch(path.name):
            try:
                found.append(read(path))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                if path.stem != "09_explore":  # opened in JupyterLab, not executed
                    log.warning("warning: %s is left out, because it is not an executed notebook (%r)", path, error)
    return found


def read(path: Path) -> Executed:
    """Return the content of an executed notebook. Raises KeyError if it was not executed by the pipeline."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells, run = notebook["cells"], notebook["metadata"]["papermill"]
    text = "".join(next((cell["source"] for cell in cells if cell["cell_type"] == "markdown"), ""))
    title = re.search(r"^# (.+)$", text, re.M)
    question = re.search(r"\*\*Question\.\*\*\s+(.+?)\s+\*\*", text, re.S)
    declared = next((cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])), {"source": ""})
    errors = [out for cell in cells for out in cell.get("outputs", ()) if out["output_type"] == "error"]
    record = notebook["metadata"].get(_RECORD, {})
    info = record.get("info", {})
    of_info = {name.removeprefix("version_"): of for name, of in info.items() if name.startswith("version_")}
    return Executed(
        path,
        title[1] if title else path.stem,
        " ".join(question[1].split()) if question else "",
        _parameters("".join(declared["source"]), run["parameters"]),
        *(datetime.fromisoformat(run[key]).isoformat(timespec="seconds") for key in ("start_time", "end_time")),
        float(run["duration"]),
        record.get("outputs", []),
        info,
        record.get("packages", {}) | of_info,
        next((error["evalue"] for error in errors if error["ename"] == "Skipped"), ""),
    )


def for_readers(path: Path) -> str:
    """Return the text of an executed notebook without comments for tools such as ``# noqa``.

    The cells of the parameters, which are the defaults and what replaced them, become one cell with the text `PLACE`.
    """
    notebook, cells = json.loads(path.read_text(encoding="utf-8")), []
    tags = {"parameters", "injected-parameters"}
    place = {"cell_type": "markdown", "id": "parameters", "metadata": {}, "source": PLACE}
    for cell in notebook["cells"]:
        if tags & {*cell["metadata"].get("tags", [])}:
            cells += [place] if place not in cells else []
            continue
        if cell["cell_type"] == "code":
            cell["source"] = _FOR_TOOLS.sub("", "".join(cell["source"]))
        cells.append(cell)
    return json.dumps(notebook | {"cells": cells})


def _parameters(source: str, given: dict[str, Any]) -> dict[str, Parameter]:
    """Return the parameters that a cell of lines ``name: type = literal  # meaning`` declares, with their values."""
    found, lines = {}, source.split("\n")
    for line in ast.parse(source).body:
        if isinstance(line, ast.AnnAssign):
            name, default = line.target.id, ast.literal_eval(line.value)
            meaning = lines[line.end_lineno - 1][line.end_col_offset :].strip().removeprefix("#").split("  # ")[0]
            kind, value = ast.unparse(line.annotation), given.get(name, default)
            found[name] = Parameter(name, kind, value, default, meaning.strip(), name in given)
    return found


# ---- Recording, while a notebook runs --------------------------------------------------------------------------------
def recorded(command: list[str], record: Path) -> list[str]:
    """Return the command of a kernel that also records which files it writes. The command runs code after ``-c``."""
    place = command.index("-c") + 1
    start = f"from aenmf_lib.workflow.executed import record_files; record_files({str(record)!r}); del record_files\n"
    return [*command[:place], start + command[place], *command[place + 1 :]]


def record_files(record: str) -> None:
    """Record the name of each file that this process renames, which is how all results get their name."""
    file = open(record, "a", buffering=1, encoding="utf-8")  # open as long as the process runs
    described = []

    def note(event: str, values: tuple) -> None:
        if event == "os.rename":
            with contextlib.suppress(Exception):  # an error here would be an error of the code that renames
                library = sys.modules.get("aenmf_lib.data.provenance")
                if library and not described:
                    described.append(True)
                    file.write(json.dumps({"info": library.run_info()}) + "\n")
                file.write(json.dumps({"file": os.fsdecode(values[1])}) + "\n")

    sys.addaudithook(note)


def add_record(notebook: Path, record: Path) -> None:
    """Write into the metadata of an executed notebook what its kernel recorded, and the versions of the packages."""
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()] if record.is_file() else []
    folder = notebook.parent.resolve()
    files = [Path(line["file"]).resolve() for line in lines if "file" in line]
    files = [file for file in files if file.is_relative_to(folder) and file.is_file()]  # no caches of packages
    info = next((line["info"] for line in lines if "info" in line), {})
    names = [re.match(r"[\w.-]+", line)[0] for line in requires("aenmf_lib") or () if "extra ==" not in line]
    content = json.loads(notebook.read_text(encoding="utf-8"))
    content["metadata"][_RECORD] = {
        "outputs": list(dict.fromkeys(file.relative_to(folder).as_posix() for file in files)),
        "info": info | {"peak_memory_mib": f"{peak_memory() / 2**20:.0f}"},
        "packages": {name: found for name in names if (found := _version(name))},
    }
    parameters.write_text(notebook, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def peak_memory() -> int:
    """Return the largest memory of any finished child process, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def _version(name: str) -> str:
    """Return the version of an installed package, or an empty string."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
