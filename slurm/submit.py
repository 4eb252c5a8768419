"""Submit the missing stages to Slurm as jobs that wait for each other, or cancel them.

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
from collections.abc import Iterator
from pathlib import Path

from graph import Stage, read_graph
from jobs import Job, Request, SlurmError, check, queue, read_requests, run_command, start_job
from lab import start_lab
from states import show_status, watch

WARNING = 120  # seconds before the time limit at which a stage is asked to save its state


def submit(site: argparse.Namespace, make: list[str], goals: list[str]) -> None:
    """Submit the stages that are missing and not yet queued, after the cluster has accepted all of them in a test."""
    with _lock(site.run.parent):
        queued = queue()
        run = "/".join(site.run.parts[-2:])
        if others := [job for job in queued if _conflicts(job, run, site.values, goals)]:
            owner, theirs = others[0].run, others[0].values or "none"
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
        requests = _find_requests(stages, site) if any(new.values()) else {}
        for name in stages:
            if new[name]:
                check(name, requests[name], site)
        ids = {name: [job.id for job in jobs[name]] for name in stages}
        for name, stage in stages.items():
            needs = [need for need in stage.needs if ids[need]]
            after = [f"--dependency=afterok:{':'.join(i for need in needs for i in ids[need])}"] if needs else []
            if new[name]:
                ids[name].append(_submit_stage(stage, new[name], after, requests[name], site, make))
                count = f", {len(new[name])} tasks" if len(stage.tasks) > 1 else ""
                waits = f", after {', '.join(needs)}" if needs else ""
                print(f"{ids[name][-1]:>8}  {name}{count}{waits}: {requests[name]}")
            for job in jobs[name]:
                if job.state == "PENDING" and any(new[need] for need in needs):  # queued before the stages it needs
                    run_command("scontrol", "update", f"JobId={job.id}", after[0].removeprefix("--").capitalize())
                print(f"{job.id:>8}  {name}: already {job.state.lower()}")
    if any(stage.missing for stage in stages.values()):
        print(f"Next: make watch {site.again} (or status, cancel). Logs: {site.run}/*.log")
    else:
        print("Everything is done.")


def _find_requests(stages: dict[str, Stage], site: argparse.Namespace) -> dict[str, Request]:
    """Return the requests of all stages, computed from the filtered cells if these are up to date; print the source."""
    filtered = site.run.parent / "filtered.h5ad"
    made = site.resolve and filtered.is_file() and not ("01_filter" in stages and stages["01_filter"].missing)
    source, requests = read_requests(site, str(filtered) if made else "")
    for name, stage in stages.items():
        if stage.missing and name not in requests:
            raise SlurmError(f"slurm/stages.tsv has no request for {name}. Expected memory and time. Write them there.")
    if source:
        print(f"Memory and time are computed from {source}; numbers in slurm/stages.tsv replace them.")
    return requests


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
    if job.run == run or (goals == ["rank"] and job.name == f"{Path(run).parent}:12_rank"):
        return job.values != values
    shards, theirs = ([w for w in shlex.split(of) if w.startswith("SHARDS=")] for of in (values, job.values))
    stages_of_sums = {f"{Path(run).parent}:{stage}" for stage in ("01_sums", "01_merge")}
    return job.name in stages_of_sums and bool(shards) and shards != theirs


def _submit_stage(
    stage: Stage, tasks: list[int], after: list[str], request: Request, site: argparse.Namespace, make: list[str]
) -> str:
    """Submit some tasks of a stage and return the number of the job."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    array = [f"--array={','.join(map(str, tasks))}%{request.width}"] if len(stage.tasks) > 1 else []
    files = [file for task in stage.tasks for file in task]  # of an array: one per task, at its index
    return start_job(
        stage.name, request, site, make, files,
        f"--job-name={stage.job_name}", f"--output={stage.log('%a')}", "--open-mode=append", "--requeue",
        f"--comment={site.values}", f"--signal=B:USR1@{WARNING}", "--kill-on-invalid-dep=yes", *array, *after,
    )  # fmt: skip


def cancel(site: argparse.Namespace) -> None:
    """Cancel the jobs of this run, and those of the data set if no other run waits for them."""
    run, data, queued = "/".join(site.run.parts[-2:]), site.run.parent.name, queue()
    jobs = [job.id for job in queued if job.run == run]
    if not any(job.run.startswith(f"{data}/") and job.run != run for job in queued):
        jobs += [job.id for job in queued if job.run == data]
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
    parser.add_argument("--requests", default="", help="command that prints what a job of each stage requests")
    for name in ("cpu-partition", "gpu-partition", "account", "gpu-type", "prelude", "sbatch"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--page", default="", help="notebook that JupyterLab opens")
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
        elif site.action == "watch":
            watch(site, make)
        else:
            print(*show_status(site, make)[0], sep="\n")
    except SlurmError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # of `make watch`
        sys.exit(130)
    except OSError as error:
        sys.exit(f"error: {error.filename or error}: {error.strerror}. Free some space or ask for permission there.")


if __name__ == "__main__":
    main()
