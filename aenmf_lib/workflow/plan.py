"""Before the first stage: compare the values and the input with those of the last call, and check them."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aenmf_lib.workflow import inputs, parameters
from aenmf_lib.workflow.digests import Digest

log = logging.getLogger(__name__)
_CHECKED = {"all", "filter", "train", "scores", "benchmarks", "programs", "figures"}  # goals that are checked before
# goals that do not run all stages, and the beginnings of the names of those that they run
_TRAINED = ("01", "02", "03", "04", "05", "15")
_RUN_BY = {"filter": ("01",), "train": _TRAINED, "scores": _TRAINED, "benchmarks": (*_TRAINED, "06")}
_RUN_BY |= {"programs": (*_TRAINED, "10"), "conditioning": ("01", "08"), "projection": ("01", "11")}
_RUN_BY |= {"rank": ("01", "12"), "consensus": ("01", "13"), "differential": (*_TRAINED, "14")}


class CheckError(ValueError):
    """The check has found errors. The message is for the user."""


@dataclass
class Plan:
    """The values of all notebooks for one call of make."""

    values: dict[str, dict[str, Any]]  # by notebook and parameter
    notebooks: Sequence[Path]
    files: Sequence[Path]  # where the values are written, one file per notebook
    digest_files: Sequence[Path]  # one per notebook and per package of the library
    folder: Path  # of the data set
    run: Path  # of one number of programs
    models: Sequence[str]
    variables: dict[str, str]  # the command line of make
    slurm: bool = False

    def __post_init__(self) -> None:
        filtering = self.values.get("01_filter", {})
        if data := filtering.get("data"):
            filtering["data"] = inputs.canonical(data)
        self.raised = self.run / ".raised.yaml"  # values of QUICK that were too small for the classes
        self._raise(parameters.read_old(self.raised))
        self.before = {file.stem: parameters.read_old(file) for file in self.files}

    @property
    def changed(self) -> list[Path]:
        """The files of values that this call would change."""
        return [f for f in self.files if parameters.differ(self.before[f.stem], self.values[f.stem], ("data",))]

    def update(self, goals: Sequence[str], *, dry_run: bool = False) -> None:
        """Check values and input if they have changed, and write them. With `dry_run` only print what would change."""
        data, check = self.values.get("01_filter", {}).get("data", ""), self.run / "check.txt"
        found = inputs.Input(data, self.folder) if data and Path(data).exists() else None
        digests = [Digest(file, self.notebooks[0].parent, self.values) for file in self.digest_files]
        if dry_run:
            changed = [*self.changed, *(digest.file for digest in digests if digest.changed)]
            print(*changed, *([self.folder / "input.yaml"] if not found or found.changed else []))
            return
        if found:
            found.require_own_results()
        elif "01_filter" in self.values:
            self._use_filtered(data, goals)
        self._announce(goals)
        changed = self.changed or any(digest.of_user and digest.changed for digest in digests)
        if found and {*goals} & _CHECKED and (changed or found.touched or not check.is_file()):
            self._check(check)
        for file in self.files:
            if found or file.stem != "01_filter":
                parameters.write(file, self.values[file.stem], unimportant=("data",))
        for digest in digests:
            digest.write()
        if found:
            found.write()

    def examine(self) -> Any:
        """Return the report of `workflow.check` for these values."""
        from aenmf_lib.workflow import check

        return check.examine(
            self.values,
            models=self.models,
            slurm=self.slurm,
            variables=self.variables,
            notebooks=self.notebooks[0].parent,
            folder=self.folder,
        )

    def compare_look(self, figure: str, usual: dict[str, Any]) -> None:
        """Print how a figure that was drawn alone differs from those of notebook 07, and how to undo this.

        `usual` are the values of notebook 07 without variables.
        """
        from aenmf_lib.workflow import executed

        try:
            last = executed.read(self.run / "07_figures.ipynb").parameters
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # has not run: nothing to differ from
            return
        here, differences = self.values["07_figures"], []
        undo = {name: text for name, text in self.variables.items() if name not in map(parameters.variable, _LOOK)}
        for name in _LOOK:
            if name not in last or (name == "color_by" and figure != "fig2_embeddings"):
                continue
            of_run, default = last[name].value, last[name].default
            if here.get(name, default) != of_run:
                now, was = (_show(name, values, default) for values in (here, {name: of_run}))
                differences.append(f"{parameters.variable(name)}: {now} instead of {was}")
            if usual.get(name, default) != of_run:
                undo[parameters.variable(name)] = _text(of_run)
        if differences:
            words = shlex.join(f"{name}={text}" for name, text in undo.items())
            text = "%s now differs from the other figures of the run (%s). To undo: make figures %s"
            log.info(text, figure, "; ".join(differences), words)

    def _check(self, file: Path) -> None:
        """Check before the first stage. Raise CheckError if there are errors, otherwise write the report."""
        report = self.examine()
        for warning in report.warnings:
            log.warning("warning: %s", warning)
        if report.errors:
            again = shlex.join(f"{name}={text}" for name, text in self.variables.items())
            raise CheckError("\nerror: ".join(report.errors) + f"\nNothing was run. Whole report: make check {again}")
        if report.raised:
            parameters.write(self.raised, report.raised)
            self._raise(report.raised)
        parameters.write_text(file, report.text.rstrip("\n") + "\n")

    def _raise(self, least: dict[str, int] | None) -> None:
        """Raise values of QUICK to the smallest possible ones."""
        for name, number in (least or {}).items():
            for values in self.values.values():
                if name in values and self.variables.get("QUICK") == "true" and name.upper() not in self.variables:
                    values[name] = max(values[name], number)

    def _use_filtered(self, data: str, goals: Sequence[str]) -> None:
        """Use the filtered cells of a missing input. Raise ParameterError if they have to be filtered again."""
        inputs.require(data, self.folder, goals)
        before, now = self.before.get("01_filter"), self.values.get("01_filter", {})
        if before is not None and parameters.differ(before, now, ("data",)):
            changes = "; ".join(line for stem, line in self._changes() if stem == "01_filter")
            raise parameters.ParameterError(
                f"{changes}. This change needs the cells of {data}, which no longer exists. Pass the values of the "
                f"last call, or put the file back."
            )
        log.warning("warning: %s no longer exists. %s.", data, inputs.describe(self.folder))

    def _announce(self, goals: Sequence[str]) -> None:
        """Print the values that differ from those of existing results, and which stages run again, now or later."""
        changes = [(stem, line) for stem, line in self._changes() if self._has_results(stem)]
        for line in dict.fromkeys(line for _, line in changes):
            log.info("%s", line)
        stages = sorted({stem for stem, _ in changes})
        now = [stem for stem in stages if any(stem[:2] in _RUN_BY.get(goal, stem[:2]) for goal in goals)]
        if stages:
            text = f"Computed again: {now[0]}" if now else f"Not by this call, but later computed again: {stages[0]}"
            log.info("These values differ from the last call. %s, and stages that need it", text)

    def _has_results(self, stem: str) -> bool:
        """Return whether a notebook has run with the earlier values."""
        folder = self.folder if stem == "01_filter" else self.run
        return (folder / f"{stem}.ipynb").is_file()

    def _changes(self) -> list[tuple[str, str]]:
        """Return the notebook and a line 'NAME: was …, now …' for each value that has changed."""
        changes = []
        for notebook in self.notebooks:
            before, now = self.before.get(notebook.stem), self.values[notebook.stem]
            if before is None or not parameters.differ(before, now, ("data",)):
                continue
            usual = parameters.defaults(notebook)
            for name in sorted(usual.keys() & {*before, *now} - {"data"}):
                was, is_now = (_show(name, of, usual[name]) for of in (before, now))
                if was != is_now:
                    shown = _NAMES.get(name, parameters.variable(name))
                    changes.append((notebook.stem, f"{shown}: was {was}, now {is_now}"))
        return changes


_LOOK = ("settings", "formats", "width", "color_by")  # parameters of notebook 07
_NAMES = {"model_paths": "MODELS", "sums_path": "SHARDS"}


def _show(name: str, values: dict[str, Any], default: Any) -> str:
    """Return a value for the user, marked if it is the default."""
    value = values.get(name, default)
    if name == "model_paths":
        return " ".join(Path(path).stem.rpartition("_k")[0] for path in value)
    return f"{_text(value) or 'empty'}{' (default)' if value == default else ''}"


def _text(value: Any) -> str:
    """Return a value as text for the command line of make."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")
