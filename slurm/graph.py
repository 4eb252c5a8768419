"""Ask make what there is to make and what waits for what: the Makefile alone knows the graph."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from jobs import command

# first prerequisite of a notebook's rule; folder and target of the jobs of a stage that is no notebook
_NOTEBOOK = re.compile(r"^notebooks/(\d\d_\w+)\.py$")
_JOBS = {
    "01_sums": re.compile(r"^(.*)/sums/[^/]+\.npz$"),
    "01_merge": re.compile(r"^(.*)/sums\.npz$"),
    "06_scores": re.compile(r"^(.*)/classification_scores/[^/]+\.done$"),
}
_SCORES = "06_scores"


@dataclass(frozen=True)
class Stage:
    """A notebook, or jobs that make a file each."""

    name: str
    folder: Path  # of its report and log
    tasks: list[list[str]]  # files that each of its jobs makes: of a notebook one job
    needs: list[str]  # stages whose files it takes
    missing: list[int]  # tasks that make would run

    @property
    def job(self) -> str:
        """Name of its jobs: the filter is of the data set, and of all its ranks."""
        return "/".join(self.folder.parts[1:]) + f":{self.name}"

    @property
    def failed(self) -> Path:
        """Notebook as far as it came."""
        return self.folder / f"{self.name}.failed.ipynb"

    def log(self, task: int | str = 0) -> Path:
        """Where a job writes to."""
        return self.folder / (f"{self.name}.{task}.log" if len(self.tasks) > 1 else f"{self.name}.log")


def graph(make: list[str], goals: list[str], *, resolve: bool = True) -> dict[str, Stage]:
    """Give the stages in an order in which they can run; without `resolve` what they were given is left as it is."""
    asked = dict.fromkeys([*goals, *(["scores"] if {*goals} - {"filter", "train", "conditioning"} else [])])
    told = command("env", "LC_ALL=C", *make, "-pn", *([] if resolve else ["-o", "resolved"]), *asked)
    files: dict[str, list[list[str]]] = {}
    rules: dict[str, set[str]] = {}
    for block in told.split("\n\n"):  # a file each
        if not (rule := re.search(r"^(results/[^:%\n ]+): (\S[^\n]*)$", block, re.M)):
            continue
        needs = rule[2].split()
        if job := next((name for name, target in _JOBS.items() if target.match(rule[1])), ""):
            name, own = job, [rule[1]]
        elif notebook := _NOTEBOOK.match(needs[0]):
            also = re.search(r"^#  Also makes: ([^\n]*)$", block, re.M)
            name, own = notebook[1], sorted([rule[1], *(also[1].split() if also else [])])
        else:
            continue
        if own not in files.setdefault(name, []):
            files[name].append(own)
        rules.setdefault(name, set()).update(needs)
    stage_of = {file: name for name, tasks in files.items() for task in tasks for file in task}
    needs_of = {name: sorted({stage_of[file] for file in rules[name] if file in stage_of}) for name in files}
    runs = set(re.findall(r"run execute notebooks/(\d\d_\w+)\.py", told)) | set(
        re.findall(r"--(?:done|out) (\S+)", told)
    )
    stages = {}
    for name in sorted(files, key=lambda name: (_depth(name, needs_of), name)):
        tasks = sorted(files[name])
        missing = [i for i, task in enumerate(tasks) if {name, *task} & runs]
        stages[name] = Stage(name, _folder(tasks, name), tasks, needs_of[name], missing)
    if _SCORES in stages and "scores" not in goals and not any(
        stage.missing for stage in stages.values() if _SCORES in stage.needs
    ):  # fmt: skip
        stages[_SCORES].missing.clear()  # what they are for is made
    return stages


def _depth(name: str, needs: dict[str, list[str]]) -> int:
    return 1 + max((_depth(need, needs) for need in needs[name]), default=0)


def _folder(tasks: list[list[str]], name: str) -> Path:
    if name in _JOBS:
        return Path(_JOBS[name].match(tasks[0][0])[1])
    reports = [Path(file) for file in tasks[0] if file.endswith(f"/{name}.ipynb")]
    return reports[0].parent
