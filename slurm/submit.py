"""Submit the missing stages to Slurm as jobs that wait for each other, show their status, and cancel them.

Each job is ``make EXECUTOR=local`` for one stage, so that finished stages are not repeated. Called by the Makefile.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from graph import Stage, read_graph
from jobs import STAGES, Job, SlurmError, check, queue, resources, run_command, sbatch_options
from lab import start_lab

WARNING = 120  # seconds before the time limit at which a stage is asked to save its state
# goals that are not part of `all`, with their stages
_ON_REQUEST = {
    "conditioning": "08_conditioning",
    "projection": "11_project",
    "rank": "12_rank",
    "consensus": "13_consensus",
    "differential": "14_differential",
}
# what Slurm writes into the log of a job that it kills
_KILLED = {
    "memory": re.compile(r"memory limit|oom[-_ ]kill|out of memory", re.I),
    "time": re.compile("DUE TO TIME LIMIT"),
}


def submit(site: argparse.Namespace, make: list[str], goals: list[str]) -> None:
    """Submit the stages that are missing and not yet queued, after the cluster has accepted all of them in a test."""
    with _lock(site.run.parent):
        queued = queue()
        run = "/".join(site.run.parts[-2:])
        if others := [job for job in queued if _conflicts(job, run, site.values, goals)]:
            owner, theirs = others[0].name.partition(":")[0], others[0].values or "none"
            raise SlurmError(
                f"{len(others)} jobs of {owner} are queued with other values ({theirs}; now {site.values or 'none'}); "
                f"new jobs would overwrite their parameters. Wait (make watch {site.again}), or cancel them (make "
                f"cancel {site.again})."
            )
        if site.resolve:  # the values of the notebooks and the check of the input
            done = subprocess.run(shlex.split(site.resolve), check=False)
            if done.returncode:
                raise SlurmError("Nothing was submitted, because the check found errors. Correct the errors above.")
        stages = read_graph(make, goals)
        jobs = {name: [job for job in queued if job.name == stage.job_name] for name, stage in stages.items()}
        new = {
            name: [task for task in stage.missing if task not in {job.task for job in jobs[name]}]
            for name, stage in stages.items()
        }
        for name in stages:
            if new[name]:
                check(name, site)
        ids = {name: [job.id for job in jobs[name]] for name in stages}
        for name, stage in stages.items():
            needs = [need for need in stage.needs if ids[need]]
            after = [f"--dependency=afterok:{':'.join(i for need in needs for i in ids[need])}"] if needs else []
            if new[name]:
                ids[name].append(_submit_stage(stage, new[name], after, site, make))
                count = f", {len(new[name])} tasks" if len(stage.tasks) > 1 else ""
                print(f"{ids[name][-1]:>8}  {name}{count}{', after ' + ', '.join(needs) if needs else ''}")
            for job in jobs[name]:
                if job.state == "PENDING" and any(new[need] for need in needs):  # queued before what it needs
                    run_command("scontrol", "update", f"JobId={job.id}", after[0].removeprefix("--").capitalize())
                print(f"{job.id:>8}  {name}: already {job.state.lower()}")
    if any(stage.missing for stage in stages.values()):
        print(f"Next: make watch {site.again} (or status, cancel). Logs: {site.run}/*.log")
    else:
        print("Everything is done.")


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let only one shell submit at a time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".submit.lock").open("w")
    except OSError as error:
        raise SlurmError(f"Cannot write to {folder} ({error.strerror}). Nothing was submitted.") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _conflicts(job: Job, run: str, values: str, goals: list[str]) -> bool:
    """Return whether a queued job has other variables: a job of this run, or of the data set with another SHARDS."""
    if job.name.startswith(f"{run}:") or (goals == ["rank"] and job.name == f"{Path(run).parent}:12_rank"):
        return job.values != values
    shards, theirs = ([w for w in shlex.split(of) if w.startswith("SHARDS=")] for of in (values, job.values))
    stages_of_sums = {f"{Path(run).parent}:{stage}" for stage in ("01_sums", "01_merge")}
    return job.name in stages_of_sums and bool(shards) and shards != theirs


def _submit_stage(stage: Stage, tasks: list[int], after: list[str], site: argparse.Namespace, make: list[str]) -> str:
    """Submit some tasks of a stage and return the number of the job."""
    options = sbatch_options(stage.name, site)
    stage.folder.mkdir(parents=True, exist_ok=True)
    width = resources(stage.name)["width"]
    array = [f"--array={','.join(map(str, tasks))}%{width}"] if len(stage.tasks) > 1 else []
    files = [file for task in stage.tasks for file in task]  # of an array: one per task, at its index
    return run_command(
        "sbatch", "--parsable", f"--job-name={stage.job_name}", f"--output={stage.log('%a')}", "--open-mode=append",
        f"--comment={site.values}", "--requeue", f"--signal=B:USR1@{WARNING}", "--kill-on-invalid-dep=yes", *options,
        *array, *after, str(Path(__file__).with_name("job.sh")),
        stage.name, " ".join(options), site.prelude, *make, "--", *files,
    ).strip().partition(";")[0]  # fmt: skip


def show_status(site: argparse.Namespace, make: list[str]) -> bool:
    """Print a table of the stages and return whether any job is active."""
    projects = ["project"] if any(word.startswith("CELLS=") for word in make) else []
    goals = ["rank"] if site.ranks else projects or ["all", *_ON_REQUEST]
    stages, known = read_graph(make, goals, resolve=False), queue(ended=True)
    for name, stage in stages.items():
        newest = {job.task: job for job in known if job.name == stage.job_name}  # squeue lists older jobs first
        active = [job for job in newest.values() if job.active]
        if name in _ON_REQUEST.values() and stage.missing and not active and not stage.log().exists():
            continue
        if active:
            states = [job.state.lower() for job in active]
            counts = f"{', '.join(f'{states.count(s)} {s}' for s in sorted(set(states)))} of {len(stage.tasks)}"
            job = active[0]
            reason = f" ({job.reason})" if job.reason not in ("None", "") else ""
            print(f"{name:20} {states[0] if len(stage.tasks) == 1 else counts}, job {job.id}{reason}")
        for task in stage.missing:
            if not (task in newest and newest[task].active):
                failure = explain_failure(stage, task, newest.get(task), site)
                if failure or not active:
                    print(f"{name:20} {failure or 'not done'}")
                if not failure:
                    break
        if not active and not stage.missing:
            print(f"{name:20} done")
    return any(job.active for job in known if job.name in {stage.job_name for stage in stages.values()})


def explain_failure(stage: Stage, task: int, job: Job | None, site: argparse.Namespace) -> str:
    """Return why a task failed, with the end of its log, or an empty string if it did not fail."""
    log = stage.log(task)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    start = max((i for i, line in enumerate(lines) if line.startswith("== ") and " on " in line), default=0)
    tail = lines[start:]
    if job and job.state == "CANCELLED":
        return f"not done (job {job.id} canceled)"
    ended = job is not None and job.state not in ("COMPLETED", "COMPLETING")
    failed = stage.failed_notebook.exists() or any(line.startswith(f"== {stage.name} failed") for line in tail)
    if not (ended or failed):
        return ""
    for limit, pattern in _KILLED.items():
        if any(pattern.search(line) for line in tail):
            options = sbatch_options(stage.name, site)
            requested = dict(zip(("cpus", "memory", "time"), options, strict=False))[limit]
            reason = f"out of {limit}: it requested {requested}. Raise its {limit} in slurm/{STAGES.name}"
            break
    else:
        notebook = stage.failed_notebook
        reason = str(notebook if notebook.exists() else log if lines else f"{job.state} ({job.reason})")
    return "\n    ".join([f"failed: {reason}", *tail[-6:]])


def cancel(site: argparse.Namespace) -> None:
    """Cancel the jobs of this run, and those of the data set if no other run waits for them."""
    run, data, queued = "/".join(site.run.parts[-2:]), site.run.parent.name, queue()
    jobs = [job.id for job in queued if job.name.startswith(f"{run}:")]
    if not any(job.name.startswith(f"{data}/") and not job.name.startswith(f"{run}:") for job in queued):
        jobs += [job.id for job in queued if job.name.startswith(f"{data}:")]
    if jobs:
        run_command("scancel", *jobs)
    print(f"{len(jobs)} jobs of {run} canceled.")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["submit", "status", "watch", "cancel", "lab"])
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, results/<data set>/k<K>")
    parser.add_argument("--variables", nargs="*", default=[], help="NAME=value, the command line of make")
    parser.add_argument("--goals", nargs="*", default=["all"])
    parser.add_argument("--resolve", default="", help="command that checks the input and writes the values")
    for name in ("cpu-partition", "gpu-partition", "account", "gpu-type", "prelude", "sbatch"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--page", default="", help="notebook that JupyterLab opens")
    parser.add_argument("--memory-share", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=0, help="maximum number of CPUs of a job, 0 for no maximum")
    site = parser.parse_args()
    given = {word.partition("=")[0]: word.replace("$", "$$") for word in sorted(site.variables)}  # $$: $ for make
    given.pop("EXECUTOR", None)
    make = ["make", "EXECUTOR=local", *given.values()]
    site.again = shlex.join(given.values())
    site.ranks = bool(re.search("[ ,]", given.get("K", "")))  # a list belongs to no run
    of_run = ("DATASET", "PYTHON", *([] if site.ranks else ["K"]))
    site.values = shlex.join(word for name, word in given.items() if name not in of_run)
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):  # of the make that called this
        os.environ.pop(name, None)
    try:
        if site.action == "submit":
            submit(site, make, site.goals)
        elif site.action == "cancel":
            cancel(site)
        elif site.action == "lab":
            start_lab(site, make, site.page)
        else:
            while show_status(site, make) and site.action == "watch":
                time.sleep(5)
                print()
    except SlurmError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or error}: {error.strerror}. Free some space or ask for permission there.")


if __name__ == "__main__":
    main()
