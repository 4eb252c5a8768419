"""The stages of the Makefile, the stages that each one needs, and the tasks that make would run.

The Makefile is the only description of the graph: it is read from the output of ``make -pn``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from jobs import run_command

_NOTEBOOK = re.compile(r"/params/(\d\d_\w+)\.yaml$")  # first prerequisite of a notebook's rule
# targets of the stages that are not notebooks, with their folder
_TARGETS = {
    "01_sums": re.compile(r"^(.*)/sums(?:_pooled)?/[^/]+\.npz$"),
    "01_merge": re.compile(r"^(.*)/sums(?:_pooled)?\.npz$"),
    "06_scores": re.compile(r"^(.*)/(?:classification|unseen_donors)_scores/[^/]+\.done$"),
    "project": re.compile(r"^(.*)/projected/[^/]+\.h5ad$"),
}
_SCORES = "06_scores"


@dataclass(frozen=True)
class Stage:
    """A notebook, which is one job, or a stage with one job per file."""

    name: str
    folder: Path  # of its report and log
    tasks: list[list[str]]  # files that each job makes
    needs: list[str]  # stages whose files it reads
    missing: list[int]  # tasks that make would run

    @property
    def job_name(self) -> str:
        """Name of its jobs. The filter belongs to the data set, the other stages to one number of programs."""
        return "/".join(self.folder.parts[1:]) + f":{self.name}"

    @property
    def failed_notebook(self) -> Path:
        """The notebook with the cells that ran before it failed."""
        return self.folder / f"{self.name}.failed.ipynb"

    def log(self, task: int | str = 0) -> Path:
        """Return the log file of a job."""
        return self.folder / (f"{self.name}.{task}.log" if len(self.tasks) > 1 else f"{self.name}.log")


def read_graph(make: list[str], goals: list[str], *, resolve: bool = True) -> dict[str, Stage]:
    """Return the stages in an order in which they can run. Without `resolve` the values of the last run are kept."""
    with_scores = ["scores"] if {*goals} & {"all", "benchmarks", "figures"} else []
    keep = [] if resolve else ["AENMF_KEEP_VALUES=1"]
    output = run_command("env", "LC_ALL=C", *keep, *make, "-pn", *dict.fromkeys([*goals, *with_scores]))
    files: dict[str, list[list[str]]] = {}
    prerequisites: dict[str, set[str]] = {}
    for block in output.split("\n\n"):  # one per file
        if not (rule := re.search(r"^(results/[^:%\n ]+): (\S[^\n]*)$", block, re.M)):
            continue
        needs = rule[2].split()
        if stage := next((name for name, target in _TARGETS.items() if target.match(rule[1])), ""):
            name, own = stage, [rule[1]]
        elif notebook := _NOTEBOOK.search(needs[0]):
            others = re.search(r"^#  Also makes: ([^\n]*)$", block, re.M)
            name, own = notebook[1], sorted([rule[1], *(others[1].split() if others else [])])
        else:
            continue
        if own not in files.setdefault(name, []):
            files[name].append(own)
        prerequisites.setdefault(name, set()).update(needs)
    stage_of = {file: name for name, tasks in files.items() for task in tasks for file in task}
    needs_of = {name: sorted({stage_of[file] for file in prerequisites[name] if file in stage_of}) for name in files}
    to_run = set(re.findall(r"-m aenmf_lib execute notebooks/(\d\d_\w+)\.py", output))
    to_run |= set(re.findall(r"--(?:done|out) (\S+)", output))
    stages = {}
    for name in sorted(files, key=lambda name: (_depth(name, needs_of), name)):
        tasks = sorted(files[name])
        missing = [i for i, task in enumerate(tasks) if {name, *task} & to_run]
        stages[name] = Stage(name, _folder(tasks, name), tasks, needs_of[name], missing)
    for name in reversed([*stages]):  # rules in the output of make that no goal needs
        needed = stages[name].missing or name in goals or any(name in stage.needs for stage in stages.values())
        if name in _TARGETS and not needed:
            del stages[name]
    if _SCORES in stages and "scores" not in goals:
        if not any(stage.missing for stage in stages.values() if _SCORES in stage.needs):
            stages[_SCORES].missing.clear()  # the benchmarks, which read the scores, are done
    return stages


def _depth(name: str, needs: dict[str, list[str]]) -> int:
    """Return the length of the longest chain of stages that ends in this one."""
    return 1 + max((_depth(need, needs) for need in needs[name]), default=0)


def _folder(tasks: list[list[str]], name: str) -> Path:
    """Return the folder of a stage's report or log."""
    if name in _TARGETS:
        return Path(_TARGETS[name].match(tasks[0][0])[1])
    return next(Path(file).parent for file in tasks[0] if file.endswith(f"/{name}.ipynb"))
