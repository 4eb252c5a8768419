"""The states of the jobs as text: all runs with jobs, the stages of one run, and why a stage failed."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from graph import Stage, read_graph
from jobs import Job, mebibytes, memory_used, queue, size_text

# goals that are not part of `all`, with their stages
_ON_REQUEST = {
    "conditioning": "08_conditioning",
    "projection": "11_project",
    "rank": "12_rank",
    "consensus": "13_consensus",
    "differential": "14_differential",
}
# limit -> text that Slurm writes into the log of a job that it kills, and the option that requests more
_KILLED = {
    "memory": (re.compile(r"memory limit|oom[-_ ]kill|out of memory", re.I), "--mem"),
    "time": (re.compile("DUE TO TIME LIMIT"), "--time"),
}
_EVERY = 5.0  # seconds between two updates of `watch`
_START = re.compile(r"^== \S+ on \S+, job .*?(?:, requested (?P<requested>.*))?$")
_STEP = re.compile(r" \[(\d+)/(\d+)\] |\b(\d+)%\|")  # the cell of a notebook, or the percentage of a progress bar


def watch(site: argparse.Namespace, make: list[str]) -> None:
    """Show the status every few seconds until no job is left. On a terminal, each status replaces the last one."""
    redraws, active = sys.stdout.isatty(), True
    while active:
        lines, active = show_status(site, make)
        if redraws:
            width, height = shutil.get_terminal_size()
            shown = [line[:width] for line in "\n".join(lines).split("\n")][: height - 2]
            print("\x1b[H", *(f"{line}\x1b[K\n" for line in shown), "\x1b[J", sep="", end="", flush=True)
        else:
            print(*lines, *([""] if active else []), sep="\n", flush=True)
        if active:
            time.sleep(_EVERY)


def show_status(site: argparse.Namespace, make: list[str]) -> tuple[list[str], bool]:
    """Return lines on all runs and on the stages of one run, and whether any job of this run is active."""
    projects = ["project"] if any(word.startswith("CELLS=") for word in make) else []
    goals = ["rank"] if site.ranks else projects or ["all", *_ON_REQUEST]
    stages, known = read_graph(make, goals, resolve=False), queue(ended=True)
    own = {stage.job_name for stage in stages.values()}
    used = memory_used([job for job in known if job.name in own and job.state == "RUNNING"])
    lines = _list_runs([job for job in known if job.active])
    for name, stage in stages.items():
        newest = {job.task: job for job in known if job.name == stage.job_name}  # squeue lists older jobs first
        active = [job for job in newest.values() if job.active]
        if name in _ON_REQUEST.values() and stage.missing and not active and not stage.log().exists():
            continue
        if active:
            lines.append(f"{name:20} {_describe(stage, active, used)}")
        for task in stage.missing:
            if not (task in newest and newest[task].active):
                failure = explain_failure(stage, task, newest.get(task))
                if failure or not active:
                    lines.append(f"{name:20} {failure or 'not done'}")
                if not failure:
                    break
        if not active and not stage.missing:
            lines.append(f"{name:20} done")
    return lines, any(job.active for job in known if job.name in own)


def _list_runs(active: list[Job]) -> list[str]:
    """Return one line per run that has jobs from this folder, and an empty line after them."""
    runs: dict[str, Counter] = {}
    for job in active:
        runs.setdefault(job.run, Counter())[job.state.lower()] += 1
    lines = [f"{run:20} {_counts(states)}" for run, states in sorted(runs.items())]
    return [*lines, ""] if lines else []


def _counts(states: Counter) -> str:
    """Return how many jobs have each state, such as 2 pending, 1 running."""
    return ", ".join(f"{n} {state}" for state, n in sorted(states.items()))


def _describe(stage: Stage, active: list[Job], used: dict[str, float]) -> str:
    """Return state, elapsed time, progress and memory of the active jobs of a stage."""
    running = [job for job in active if job.state == "RUNNING"]
    first = min(running or active, key=lambda job: job.task)
    parts = [first.state.lower()]
    if len(stage.tasks) > 1:
        states = Counter(job.state.lower() for job in active)
        parts = [f"{_counts(states)} of {len(stage.tasks)}", f"{len(stage.tasks) - len(stage.missing)} done"]
    if running:
        parts += [max((job.elapsed for job in running), key=lambda text: (len(text), text))]
        parts += _progress(stage.log(first.task)) if len(stage.tasks) == 1 else []
        if memory := [used[job.id] for job in running if used.get(job.id)]:
            asked = first.memory and size_text(mebibytes(first.memory))
            parts.append(f"{size_text(max(memory))} of {asked}")
    reason = f" ({first.reason})" if first.reason not in ("None", "") else ""
    return f"{', '.join(parts)}, job {first.id.partition('_')[0]}{reason}"


def _progress(log: Path) -> list[str]:
    """Return the current cell of a notebook and the percentage of its progress bar, if the log contains them."""
    cell, share = "", ""
    for line in _last_start(log)[1:]:
        for match in _STEP.finditer(line):
            cell, share = (f"cell {match[1]} of {match[2]}", "") if match[1] else (cell, f"{match[3]} %")
    return [text for text in (cell, share) if text]


def _last_start(log: Path) -> list[str]:
    """Return the lines of a log since its job last started."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[max((i for i, line in enumerate(lines) if _START.match(line)), default=0) :]


def explain_failure(stage: Stage, task: int, job: Job | None) -> str:
    """Return why a task failed, with the end of its log, or an empty string if it did not fail."""
    log = stage.log(task)
    tail = _last_start(log)
    if job and job.state == "CANCELLED":
        return f"not done (job {job.id} canceled)"
    ended = job is not None and job.state not in ("COMPLETED", "COMPLETING")
    failed = stage.failed_notebook.exists() or any(line.startswith(f"== {stage.name} failed") for line in tail)
    if not (ended or failed):
        return ""
    for limit, (pattern, option) in _KILLED.items():
        if any(pattern.search(line) for line in tail):
            start = _START.match(tail[0])
            words = ((start and start["requested"]) or "").split()
            requested = next((word for word in words if word.startswith(option)), "an unknown amount")
            reason = f"out of {limit}: it requested {requested}. Request more {limit} in slurm/stages.tsv"
            break
    else:
        notebook = stage.failed_notebook
        reason = str(notebook if notebook.exists() else log if tail else f"{job.state} ({job.reason})")
    return "\n    ".join([f"failed: {reason}", *tail[-6:]])
