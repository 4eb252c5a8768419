"""The provenance of a data set's results as an RO-Crate (``ro-crate-metadata.json``), profile Provenance Run Crate.

Everything is derived from the executed notebooks and the files that they read and wrote, so the file can be written
again at any time: https://www.researchobject.org/workflow-run-crate/profiles/provenance_run_crate
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aenmf_lib.workflow import executed, inputs, parameters
from aenmf_lib.workflow.executed import Executed, Parameter
from aenmf_lib.workflow.jsonld import (
    COMPLETED,
    CRATE,
    FORMATS,
    MAKE,
    OF_CODE,
    OF_RESULTS,
    PROFILES,
    PYTHON,
    TERMS,
    TYPES,
    WORKFLOW_CRATE,
    compact,
    listed,
    refs,
)
from aenmf_lib.workflow.lock import Locked, only_one

log = logging.getLogger(__name__)
NAME = "ro-crate-metadata.json"
_WORKFLOW = "workflow/Makefile"  # the copy in the results, because a crate contains its workflow
_WAIT = 30  # seconds until other processes have written the file
_HASHED = 5_000_000  # bytes of the largest file that is read for its sha256
_OUTPUTS = ("out", "out_dir")  # parameters that name what a notebook writes; those below name what it reads
_INPUTS = ("data", "cells_path", "ae_nmf_path", "model_paths", "tables_dir", "sums_path", "gene_sets", "settings")


def add(report: Path, notebook: Path, record: Path) -> None:
    """Add a notebook that has just been executed to the crate of its results. An error is only a warning.

    Parameters
    ----------
    report, notebook : the executed notebook, and its source
    record : files that its kernel wrote, from ``executed.recorded``
    """
    with _only_warn():
        executed.add_record(report, record)
        if folder := folder_of(report):
            write(folder, notebook.resolve().parents[1] / "Makefile")


def update(folder: Path) -> None:
    """Write the crate of a data set again, because results have changed. An error is only a warning."""
    with _only_warn():
        write(folder)


@contextmanager
def _only_warn() -> Iterator[None]:
    """Log an error as a warning: the results are complete, whatever is wrong with their description."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        log.warning("warning: %s was not written: %s", NAME, error or repr(error))


def folder_of(report: Path) -> Path | None:
    """Return the folder of the data set, ``results/<data set>``, of an executed notebook, or None if it has none."""
    folder = report.parent.parent if re.fullmatch(r"k\d+", report.parent.name) else report.parent
    return folder if folder.resolve().parent.name == "results" else None


def write(folder: Path, makefile: Path | None = None) -> Path:
    """Write the crate of a data set and return its path. Other processes that write it wait.

    Parameters
    ----------
    folder : ``results/<data set>``
    makefile : the workflow, of which the crate contains a copy; without it an earlier copy is kept
    """
    with _alone(path := folder / NAME):
        if makefile and makefile.is_file():
            parameters.write_text(folder / _WORKFLOW, makefile.read_text(encoding="utf-8"))
        if not (folder / _WORKFLOW).is_file():
            raise ValueError(f"{makefile or folder / _WORKFLOW} does not exist. A crate contains its workflow.")
        parameters.write_text(path, json.dumps(describe(folder), ensure_ascii=False, indent=1) + "\n")
    return path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process writes a file. Raises Locked if that takes too long."""
    until = time.monotonic() + _WAIT
    while True:
        try:
            with only_one(path):
                yield
                return
        except Locked:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def describe(folder: Path) -> dict[str, Any]:
    """Return the crate of a data set, as JSON-LD. The same files give the same crate."""
    runs = [run for place in (folder, *sorted(folder.glob("k[0-9]*"))) for run in executed.find(place)]
    if not runs:
        raise ValueError(f"{folder} has no executed notebook. Run: make all DATASET={folder.name}")
    return {"@context": [f"{CRATE}/context", {"sha256": f"{TERMS}sha256", "resourceUsage": f"{TERMS}resourceUsage"}],
            "@graph": _Graph(folder, runs).entities()}  # fmt: skip


class _Graph:
    """The entities of a crate, by ``@id``."""

    def __init__(self, folder: Path, runs: list[Executed]) -> None:
        self.folder, self.runs, self.found = folder, runs, {}
        self.hashes = self._hashes()

    def entities(self) -> list[dict[str, Any]]:
        """Return the metadata file, the root, the workflow, and everything that belongs to them."""
        actions = [self._action(run) for run in self.runs]
        tools = list(dict.fromkeys(action["instrument"]["@id"] for action in actions))
        whole = self._workflow(tools, actions)
        files = [name for name, of in self.found.items() if {"File", "Dataset"} & set(listed(of["@type"]))]
        root = {
            "@id": "./",
            "@type": "Dataset",
            "name": f"Results of {self.folder.resolve().name}",
            "description": "Non-negative autoencoding of single cells: gene programs, usages, scores and figures. "
            f"Files up to {_HASHED / 1e6:g} MB have a sha256. Larger files have only a contentSize, unless a notebook "
            "recorded their sha256 when it read them.",
            "datePublished": max(run.end for run in self.runs),
            **self._linked(OF_RESULTS),
            "conformsTo": refs(PROFILES),
            "mainEntity": {"@id": _WORKFLOW},
            "hasPart": refs(files),
            "mentions": refs([whole, *(action["@id"] for action in actions)]),
        }
        descriptor = {"@id": NAME, "@type": "CreativeWork", "about": {"@id": "./"}}
        descriptor["conformsTo"] = refs([CRATE, WORKFLOW_CRATE])
        for profile, name in PROFILES.items():
            self._add({"@id": profile, "@type": "CreativeWork", "name": name, "version": profile.rpartition("/")[2]})
        return [compact(entity) for entity in (descriptor, root, *self.found.values())]

    def _workflow(self, tools: list[str], actions: list[dict[str, Any]]) -> str:
        """Add the Makefile, whose steps are the notebooks, and its run. Return the name of the run."""
        steps = {tool: self._step(tool)["@id"] for tool in tools}
        self._file(self.folder / _WORKFLOW)
        self.found[_WORKFLOW] |= {
            "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
            "name": "The pipeline: notebooks connected by a Makefile",
            "encodingFormat": "text/x-makefile",
            "programmingLanguage": {"@id": "#makefile"},
            "conformsTo": {"@id": "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"},
            "hasPart": refs(tools),
            "step": refs(steps.values()),
            **self._linked(OF_CODE),
            "version": " ".join(sorted({run.info.get("git_commit", "unknown") for run in self.runs})),
        }
        self._add({"@id": "#makefile", "@type": "ComputerLanguage", "name": "Makefile", "url": {"@id": MAKE}})
        self._add({"@id": MAKE, "@type": "SoftwareApplication", "name": "GNU make", "url": {"@id": MAKE}})
        made = dict.fromkeys(ref["@id"] for action in actions for ref in action["result"])
        read = dict.fromkeys(ref["@id"] for action in actions for ref in action["object"])
        run = {
            "@id": "#run",
            "@type": "CreateAction",
            "name": f"Run of the pipeline on {self.folder.resolve().name}",
            "description": "All notebooks, from the start of the first to the end of the last.",
            "instrument": {"@id": _WORKFLOW},
            "object": refs(name for name in read if name not in made and self.found[name]["@type"] == "File"),
            "result": refs(made),
            "startTime": min(run.start for run in self.runs),
            "endTime": max(run.end for run in self.runs),
            "actionStatus": COMPLETED,
        }
        controls = []
        for action in actions:
            step = {"@id": steps[action["instrument"]["@id"]]}
            control = {"@id": f"{action['@id']}/control", "@type": "ControlAction", "instrument": step}
            controls.append(self._add(control | {"object": {"@id": action["@id"]}})["@id"])
        engine = {"@id": "#make", "@type": "OrganizeAction", "name": "Run of GNU make", "instrument": {"@id": MAKE}}
        self._add(engine | {"object": refs(controls), "result": {"@id": run["@id"]}})
        return self._add(run)["@id"]

    def _linked(self, entities: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
        """Add entities, and return a reference to each."""
        return {key: {"@id": self._add(dict(of))["@id"]} for key, of in entities.items()}

    def _step(self, tool: str) -> dict[str, Any]:
        """Add the step of the pipeline that a notebook is. Its position is the number of the notebook."""
        step = {"@id": f"{tool}/step", "@type": "HowToStep", "workExample": {"@id": tool}}
        return self._add(step | {"position": str(int(tool[1:3]))})

    def _action(self, run: Executed) -> dict[str, Any]:
        """Add the execution of a notebook: what it read, its parameters, and what it wrote."""
        report = self._inside(run.path)
        action, tool = f"#{report.removesuffix('.ipynb')}", self._tool(run)
        out = self.folder / self._inside(run.parameters["out"].value) if "out" in run.parameters else None
        read, wrote, settings = [], [], []
        for parameter in run.parameters.values():
            is_file = parameter.name in (*_INPUTS, *_OUTPUTS)
            if is_file and not (parameter.value and parameter.given):  # a default is a file of the demo
                continue
            formal = self._formal(tool, parameter)
            if parameter.name in _INPUTS:
                read += [self._example(self._file(path), formal) for path in listed(parameter.value)]
            elif parameter.name == "out_dir":
                wrote += [self._example(self._file(path), formal) for path in run.files if path != out]
            elif parameter.name == "out":
                wrote += [self._example(self._file(out), formal)] if out.is_file() else []
            else:
                value = parameter.value if parameter.value != [] else "[]"
                entity = {"@id": f"{action}/{parameter.name}", "@type": "PropertyValue", "name": parameter.name}
                settings.append(self._example(self._add(entity | {"value": value})["@id"], formal))
            if parameter.name == "extra":  # NAME=file:key
                read += [self._file(text.partition("=")[2].rpartition(":")[0]) for text in parameter.value]
        usage = [self._usage(action, "duration", f"{run.seconds:.3f}", "https://qudt.org/vocab/unit/SEC")]
        if memory := run.info.get("peak_memory_mib"):
            usage.append(self._usage(action, "peak memory", memory, "https://qudt.org/vocab/unit/MebiBYTE"))
        machine = f"Python {run.info['python']} on {run.info['platform']}" if "python" in run.info else ""
        skipped = f"Skipped: {run.skipped}" if run.skipped else ""
        return self._add(
            {
                "@id": action,
                "@type": "CreateAction",
                "name": f"{run.title} ({report})",
                "description": ". ".join(filter(None, [run.question, skipped, machine])),
                "instrument": {"@id": tool},
                "object": refs([*read, *settings]),
                "result": refs([*wrote, self._file(run.path)]),
                "startTime": run.start,
                "endTime": run.end,
                "actionStatus": COMPLETED,
                "resourceUsage": refs(usage),
            }
        )

    def _usage(self, action: str, name: str, value: str, unit: str) -> str:
        """Add how much of a resource an action used."""
        entity = {"@id": f"{action}/{name.replace(' ', '-')}", "@type": "PropertyValue", "name": name}
        entity |= {"propertyID": TERMS + name.replace(" ", "_"), "unitCode": unit, "value": value}
        return self._add(entity)["@id"]

    def _tool(self, run: Executed) -> str:
        """Add the source of a notebook, one for each set of versions with which it was run."""
        versions = {"Python": run.info.get("python", "")} | run.packages
        versions |= {name.removeprefix("version_"): of for name, of in run.info.items() if name.startswith("version_")}
        parts = []
        for name in filter(versions.get, versions):
            entity = {"@id": f"pkg:pypi/{name}@{versions[name]}", "@type": "SoftwareApplication", "name": name}
            if name == "Python":
                entity |= {"@id": PYTHON + versions[name], "url": {"@id": PYTHON + versions[name]}}
            parts.append(self._add(entity | {"softwareVersion": versions[name]})["@id"])
        source = {"version": run.info.get("git_commit", "unknown"), "softwareRequirements": refs(parts)}
        variants = [name for name in self.found if re.fullmatch(re.escape(f"#{run.name}.py") + r"(-\d+)?", name)]
        same = [name for name in variants if source.items() <= self.found[name].items()]
        name = same[0] if same else f"#{run.name}.py" + (f"-{len(variants) + 1}" if variants else "")
        tool = {"@id": name, "@type": "SoftwareSourceCode", "name": run.title, "description": run.question}
        return self._add(tool | source | self._linked(OF_CODE) | {"input": [], "output": []})["@id"]

    def _formal(self, tool: str, parameter: Parameter) -> str:
        """Add a parameter to a notebook."""
        many, kind = parameter.kind.startswith("list["), parameter.kind.removeprefix("list[").removesuffix("]")
        is_file = parameter.name in (*_INPUTS, *_OUTPUTS)
        entity = {
            "@id": f"{tool}/{parameter.name}",
            "@type": "FormalParameter",
            "name": parameter.name,
            "additionalType": ("Dataset" if parameter.name == "tables_dir" else "File") if is_file else TYPES[kind],
            "conformsTo": {"@id": "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"},
        }
        entity |= {"description": parameter.meaning} if parameter.meaning else {}
        entity |= {"multipleValues": True} if many or parameter.name == "out_dir" else {}
        entity |= {} if is_file or parameter.default == [] else {"defaultValue": parameter.default}
        name, side = self._add(entity)["@id"], "output" if parameter.name in _OUTPUTS else "input"
        self.found[tool][side] += [ref for ref in refs([name]) if ref not in self.found[tool][side]]
        return name

    def _example(self, name: str, formal: str) -> str:
        """Record that an entity is the value of a parameter, in both directions. Return its name."""
        for entity, key, other in ((name, "exampleOfWork", formal), (formal, "workExample", name)):
            known = self.found[entity].setdefault(key, [])
            known += [ref for ref in refs([other]) if ref not in known]
        return name

    def _file(self, path: str | Path) -> str:
        """Add a file or folder. One outside the results gets a local name, one inside its path."""
        inside = self._inside(path)
        place = self.folder / inside if inside else Path(path)
        inside = inside if place.exists() else ""  # a crate contains all its files, except those with a local name
        is_folder = bool(inside) and place.is_dir()
        name = quote(inside) + "/" * is_folder if inside else f"#{quote(inputs.canonical(str(path)))}"
        if name in self.found:
            return name
        entity: dict[str, Any] = {"@id": name, "@type": "Dataset" if is_folder else "File", "name": place.name}
        sha256 = self.hashes.get(inside or inputs.canonical(str(path)))
        if inside and place.is_file():
            size = place.stat().st_size
            entity["contentSize"] = str(size)
            sha256 = hashlib.sha256(place.read_bytes()).hexdigest() if size <= _HASHED else sha256
        if not is_folder:
            entity["encodingFormat"] = FORMATS.get(place.suffix, "application/octet-stream")
        if sha256:
            entity["sha256"] = sha256
        return self._add(entity)["@id"]

    def _inside(self, path: str | Path) -> str:
        """Return the path within the results, or an empty string for another file.

        Parameters of notebooks name files as ``results/<data set>/…``, wherever the results are now.
        """
        path = Path(path)
        if path.is_relative_to(self.folder):
            return path.relative_to(self.folder).as_posix()
        marker = f"/results/{self.folder.resolve().name}/"
        return f"/{path.as_posix()}".rpartition(marker)[2] if marker in f"/{path.as_posix()}" else ""

    def _hashes(self) -> dict[str, str]:
        """Return the recorded sha256 of files: of the input, and of what a notebook read that ran after it was made."""
        import h5py

        record = parameters.read_old(self.folder / "input.yaml") or {}
        found = {record["path"]: record["sha256"]} if {"path", "sha256"} <= record.keys() else {}
        written = {path: run for run in self.runs for path in run.files}
        made = {self._inside(path): run.end for path, run in written.items()}
        for path, run in written.items():
            if path.suffix == ".h5ad":
                with suppress(OSError, KeyError, TypeError), h5py.File(path) as file:
                    read = {name: file[f"uns/provenance/input/{name}"].asstr()[()] for name in ("path", "sha256")}
                    name = self._inside(read["path"])
                    if name and run.start >= made.get(name, ""):
                        found[name] = read["sha256"]
        return found

    def _add(self, entity: dict[str, Any]) -> dict[str, Any]:
        """Add an entity, unless there is one with this name, and return it."""
        return self.found.setdefault(entity["@id"], entity)
