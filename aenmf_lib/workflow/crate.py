"""The provenance of a data set's results as an RO-Crate (``ro-crate-metadata.json``), profile Provenance Run Crate.

Everything is derived from the executed notebooks and the files that they read and wrote, so the file can be written
again at any time: https://www.researchobject.org/workflow-run-crate/profiles/provenance_run_crate
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aenmf_lib.workflow import executed, inputs, jsonld, parameters
from aenmf_lib.workflow.executed import Executed, Parameter
from aenmf_lib.workflow.jsonld import compact, listed, ref, refs
from aenmf_lib.workflow.lock import only_one

log = logging.getLogger(__name__)
NAME = "ro-crate-metadata.json"
_WORKFLOW = "workflow/Makefile"  # the copy in the results, because a crate contains its workflow
_WAIT = 30  # seconds until other processes have written the file
_HASHED = 5_000_000  # bytes of the largest file that is read for its sha256
_OUTPUTS = ("out", "out_dir")  # parameters that name what a notebook writes; those below name what it reads
_INPUTS = ("data", "cells_path", "ae_nmf_path", "model_paths", "tables_dir", "sums_path", "gene_sets", "settings")


def add(report: Path, notebook: Path, record: Path) -> None:
    """Add a notebook that has just been executed to the crate of its results. An error is only a warning.

    `record` is the file in which the kernel named what it wrote, from `executed.recorded`.
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

    The crate contains a copy of `makefile`, which is the workflow; without it an earlier copy is kept.
    """
    with only_one(path := folder / NAME, "written", wait=_WAIT):
        if makefile and makefile.is_file():
            parameters.write_text(folder / _WORKFLOW, makefile.read_text(encoding="utf-8"))
        if not (folder / _WORKFLOW).is_file():
            raise ValueError(f"{makefile or folder / _WORKFLOW} does not exist. A crate contains its workflow.")
        parameters.write_text(path, json.dumps(describe(folder), ensure_ascii=False, indent=1) + "\n")
    return path


def describe(folder: Path) -> dict[str, Any]:
    """Return the crate of a data set, as JSON-LD. The same files give the same crate."""
    runs = [run for place in (folder, *sorted(folder.glob("k[0-9]*"))) for run in executed.find(place)]
    if not runs:
        raise ValueError(f"{folder} has no executed notebook. Run: make all DATASET={folder.name}")
    return {"@context": jsonld.CONTEXT, "@graph": _Graph(folder, runs).entities()}


class _Graph:
    """The entities of a crate, by ``@id``."""

    def __init__(self, folder: Path, runs: list[Executed]) -> None:
        self.folder, self.runs, self.found = folder, runs, {}
        self.hashes = self._hashes()

    def _add(self, name: str, kind: str, /, **properties: Any) -> str:
        """Add an entity, unless there is one with this ``@id``, and return its ``@id``."""
        self.found.setdefault(name, {"@id": name, "@type": kind, **properties})
        return name

    def _linked(self, entities: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
        """Add entities, and return a reference to each."""
        for entity in entities.values():
            self.found.setdefault(entity["@id"], dict(entity))
        return {key: ref(entity["@id"]) for key, entity in entities.items()}

    def entities(self) -> list[dict[str, Any]]:
        """Return the metadata file, the root, the workflow, and everything that belongs to them."""
        actions = [self._action(run) for run in self.runs]
        tools = list(dict.fromkeys(self.found[action]["instrument"]["@id"] for action in actions))
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
            **self._linked(jsonld.OF_RESULTS),
            "conformsTo": refs(jsonld.PROFILES),
            "mainEntity": ref(_WORKFLOW),
            "hasPart": refs(files),
            "mentions": refs([whole, *actions]),
        }
        descriptor = {"@id": NAME, "@type": "CreativeWork", "about": ref("./")}
        descriptor["conformsTo"] = refs([jsonld.CRATE, jsonld.WORKFLOW_CRATE])
        for profile, name in jsonld.PROFILES.items():
            self._add(profile, "CreativeWork", name=name, version=profile.rpartition("/")[2])
        return [compact(entity) for entity in (descriptor, root, *self.found.values())]

    def _workflow(self, tools: list[str], actions: list[str]) -> str:
        """Add the Makefile, whose steps are the notebooks, and its run. Return the name of the run."""
        steps = {}
        for tool in tools:  # the position is the number of the notebook
            steps[tool] = self._add(f"{tool}/step", "HowToStep", workExample=ref(tool), position=str(int(tool[1:3])))
        self._file(self.folder / _WORKFLOW)
        self.found[_WORKFLOW] |= {
            "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
            "name": "The pipeline: notebooks connected by a Makefile",
            "encodingFormat": "text/x-makefile",
            "programmingLanguage": ref("#makefile"),
            "conformsTo": ref("https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"),
            "hasPart": refs(tools),
            "step": refs(steps.values()),
            **self._linked(jsonld.OF_CODE),
            "version": " ".join(sorted({run.info.get("git_commit", "unknown") for run in self.runs})),
        }
        self._add("#makefile", "ComputerLanguage", name="Makefile", url=ref(jsonld.MAKE))
        self._add(jsonld.MAKE, "SoftwareApplication", name="GNU make", url=ref(jsonld.MAKE))
        made = dict.fromkeys(each["@id"] for action in actions for each in self.found[action]["result"])
        read = dict.fromkeys(each["@id"] for action in actions for each in self.found[action]["object"])
        controls = []
        for action in actions:
            step = ref(steps[self.found[action]["instrument"]["@id"]])
            controls.append(self._add(f"{action}/control", "ControlAction", instrument=step, object=ref(action)))
        self._add(
            "#make", "OrganizeAction",
            name="Run of GNU make", instrument=ref(jsonld.MAKE), object=refs(controls), result=ref("#run"),
        )  # fmt: skip
        return self._add(
            "#run",
            "CreateAction",
            name=f"Run of the pipeline on {self.folder.resolve().name}",
            description="All notebooks, from the start of the first to the end of the last.",
            instrument=ref(_WORKFLOW),
            object=refs(name for name in read if name not in made and self.found[name]["@type"] == "File"),
            result=refs(made),
            startTime=min(run.start for run in self.runs),
            endTime=max(run.end for run in self.runs),
            actionStatus=jsonld.COMPLETED,
        )

    def _action(self, run: Executed) -> str:
        """Add the execution of a notebook: what it read, its parameters, and what it wrote."""
        report = self._inside(run.path)
        action, tool = f"#{report.removesuffix('.ipynb')}", self._tool(run)
        out = self.folder / self._inside(run.parameters["out"].value) if "out" in run.parameters else None
        read, wrote, settings = [], [], []
        for parameter in run.parameters.values():
            name, value = parameter.name, parameter.value
            if name in (*_INPUTS, *_OUTPUTS) and not (value and parameter.given):  # a default is a file of the demo
                continue
            formal = self._formal(tool, parameter)
            if name in _INPUTS:
                read += [self._example(self._file(path), formal) for path in listed(value)]
            elif name == "out_dir":
                wrote += [self._example(self._file(path), formal) for path in run.files if path != out]
            elif name == "out":
                wrote += [self._example(self._file(out), formal)] if out.is_file() else []
            else:
                shown = value if value != [] else "[]"
                setting = self._add(f"{action}/{name}", "PropertyValue", name=name, value=shown)
                settings.append(self._example(setting, formal))
            if name == "extra":  # NAME=file:key
                read += [self._file(text.partition("=")[2].rpartition(":")[0]) for text in value]
        usage = [self._usage(action, "duration", f"{run.seconds:.3f}", "https://qudt.org/vocab/unit/SEC")]
        if memory := run.info.get("peak_memory_mib"):
            usage.append(self._usage(action, "peak memory", memory, "https://qudt.org/vocab/unit/MebiBYTE"))
        machine = f"Python {run.info['python']} on {run.info['platform']}" if "python" in run.info else ""
        skipped = f"Skipped: {run.skipped}" if run.skipped else ""
        return self._add(
            action,
            "CreateAction",
            name=f"{run.title} ({report})",
            description=". ".join(filter(None, [run.question, skipped, machine])),
            instrument=ref(tool),
            object=refs([*read, *settings]),
            result=refs([*wrote, self._file(run.path)]),
            startTime=run.start,
            endTime=run.end,
            actionStatus=jsonld.COMPLETED,
            resourceUsage=refs(usage),
        )

    def _usage(self, action: str, name: str, value: str, unit: str) -> str:
        """Add how much of a resource an action used."""
        term = jsonld.TERMS + name.replace(" ", "_")
        entity = f"{action}/{name.replace(' ', '-')}"
        return self._add(entity, "PropertyValue", name=name, propertyID=term, unitCode=unit, value=value)

    def _tool(self, run: Executed) -> str:
        """Add the source of a notebook, one for each set of versions with which it was run."""
        parts = []
        for name, version in {"Python": run.info.get("python", ""), **run.packages}.items():
            entity, more = f"pkg:pypi/{name}@{version}", {"softwareVersion": version}
            if name == "Python":
                entity = jsonld.PYTHON + version
                more = {"url": ref(entity), **more}
            if version:
                parts.append(self._add(entity, "SoftwareApplication", name=name, **more))
        source = {"version": run.info.get("git_commit", "unknown"), "softwareRequirements": refs(parts)}
        variants = [name for name in self.found if re.fullmatch(re.escape(f"#{run.name}.py") + r"(-\d+)?", name)]
        same = [name for name in variants if source.items() <= self.found[name].items()]
        name = same[0] if same else f"#{run.name}.py" + (f"-{len(variants) + 1}" if variants else "")
        described = {"name": run.title, "description": run.question, **source, **self._linked(jsonld.OF_CODE)}
        return self._add(name, "SoftwareSourceCode", **described, input=[], output=[])

    def _formal(self, tool: str, parameter: Parameter) -> str:
        """Add a parameter to a notebook."""
        many, kind = parameter.kind.startswith("list["), jsonld.TYPES[parameter.kind.removeprefix("list[").rstrip("]")]
        if is_file := parameter.name in (*_INPUTS, *_OUTPUTS):
            kind = "Dataset" if parameter.name == "tables_dir" else "File"
        more = {"description": parameter.meaning} if parameter.meaning else {}
        more |= {"multipleValues": True} if many or parameter.name == "out_dir" else {}
        more |= {} if is_file or parameter.default == [] else {"defaultValue": parameter.default}
        profile = ref("https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE")
        entity, shared = f"{tool}/{parameter.name}", {"name": parameter.name, "additionalType": kind}
        self._add(entity, "FormalParameter", **shared, conformsTo=profile, **more)
        known = self.found[tool]["output" if parameter.name in _OUTPUTS else "input"]
        known += [ref(entity)] if ref(entity) not in known else []
        return entity

    def _example(self, name: str, formal: str) -> str:
        """Record that an entity is the value of a parameter, in both directions. Return its name."""
        for entity, key, other in ((name, "exampleOfWork", formal), (formal, "workExample", name)):
            known = self.found[entity].setdefault(key, [])
            known += [ref(other)] if ref(other) not in known else []
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
        entity: dict[str, Any] = {"name": place.name}
        sha256 = self.hashes.get(inside or inputs.canonical(str(path)))
        if inside and place.is_file():
            size = place.stat().st_size
            entity["contentSize"] = str(size)
            sha256 = hashlib.sha256(place.read_bytes()).hexdigest() if size <= _HASHED else sha256
        if not is_folder:
            entity["encodingFormat"] = jsonld.FORMATS.get(place.suffix, "application/octet-stream")
        if sha256:
            entity["sha256"] = sha256
        return self._add(name, "Dataset" if is_folder else "File", **entity)

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
