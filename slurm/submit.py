"""Send the stages that are not made to Slurm, as jobs that wait for each other; tell how they are; cancel them.

Each job is ``make EXECUTOR=local`` for one stage, so what is made is not made again, here as there. Called by the
Makefile.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from graph import Stage, graph
from jobs import STAGES, Job, SlurmError, check, command, options, queue, row
from lab import lab

WARNING = 120  # seconds before the time limit when a stage is told to keep its state
ASKED_FOR = "08_conditioning"  # not part of `all`
# what Slurm writes into the log of a job that it kills
_KILLED = {
    "memory": re.compile(r"memory limit|oom[-_ ]kill|out of memory", re.I),
    "time": re.compile("DUE TO TIME LIMIT"),
}


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one shell submit at a time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".submit.lock").open("w")
    except OSError as error:
        raise SlurmError(f"{folder} cannot be written to ({error.strerror}). Nothing was submitted.") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def submit(site: argparse.Namespace, make: list[str], goals: list[str]) -> None:
    """Send what is missing and not there yet, after a check of all of it."""
    with alone(site.run.parent):
        there = queue()
        run = "/".join(site.run.parts[-2:])
        if other := [job for job in there if changed(job, run, site.values)]:
            of, theirs = other[0].name.partition(":")[0], other[0].values or "none"
            raise SlurmError(
                f"{len(other)} jobs of {of} are there with other values ({theirs}; now {site.values or 'none'}), which "
                f"new ones would change under them. Wait (make watch {site.again}), or take them back (make cancel "
                f"{site.again})."
            )
        stages = graph(make, goals)
        jobs = {name: [job for job in there if job.name == stage.job] for name, stage in stages.items()}
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
                ids[name].append(send(stage, new[name], after, site, make))
                many = f", {len(new[name])} tasks" if len(stage.tasks) > 1 else ""
                print(f"{ids[name][-1]:>8}  {name}{many}{', after ' + ', '.join(needs) if needs else ''}")
            for job in jobs[name]:
                if job.state == "PENDING" and any(new[need] for need in needs):  # sent before what it needs
                    command("scontrol", "update", f"JobId={job.id}", after[0].removeprefix("--").capitalize())
                print(f"{job.id:>8}  {name}: is there already, {job.state.lower()}")
    if any(stage.missing for stage in stages.values()):
        print(f"Next: make watch {site.again} (or status, cancel). Logs: {site.run}/*.log")
    else:
        print("Everything is made.")


def changed(job: Job, run: str, values: str) -> bool:
    """Tell whether new jobs would change a job under its hands: one of this run, or of sums over other shards."""
    if job.name.startswith(f"{run}:"):
        return job.values != values
    shards, theirs = ([w for w in shlex.split(of) if w.startswith("SHARDS=")] for of in (values, job.values))
    of_sums = {f"{Path(run).parent}:{stage}" for stage in ("01_sums", "01_merge")}
    return job.name in of_sums and bool(shards) and shards != theirs


def send(stage: Stage, tasks: list[int], after: list[str], site: argparse.Namespace, make: list[str]) -> str:
    """Send some tasks of a stage; gives the number of the job."""
    asked = options(stage.name, site)
    stage.folder.mkdir(parents=True, exist_ok=True)
    array = [f"--array={','.join(map(str, tasks))}%{row(stage.name)['width']}"] if len(stage.tasks) > 1 else []
    files = [file for task in stage.tasks for file in task]  # of an array: one a task, at its number
    return command(
        "sbatch", "--parsable", f"--job-name={stage.job}", f"--output={stage.log('%a')}", "--open-mode=append",
        f"--comment={site.values}", "--requeue", f"--signal=B:USR1@{WARNING}", "--kill-on-invalid-dep=yes", *asked,
        *array, *after, str(Path(__file__).with_name("job.sh")),
        stage.name, " ".join(asked), site.prelude, *make, "--", *files,
    ).strip().partition(";")[0]  # fmt: skip


def status(site: argparse.Namespace, make: list[str]) -> bool:
    """Print a table; gives whether anything is on its way."""
    stages, known = graph(make, ["all", "conditioning"], resolve=False), queue(ended=True)
    for name, stage in stages.items():
        newest = {job.task: job for job in known if job.name == stage.job}  # squeue tells older jobs first
        live = [job for job in newest.values() if job.live]
        if name == ASKED_FOR and stage.missing and not live and not stage.log().exists():
            continue
        if live:
            states = [job.state.lower() for job in live]
            counts = f"{', '.join(f'{states.count(s)} {s}' for s in sorted(set(states)))} of {len(stage.tasks)}"
            job = live[0]
            reason = f" ({job.reason})" if job.reason not in ("None", "") else ""
            print(f"{name:20} {states[0] if len(stage.tasks) == 1 else counts}, job {job.id}{reason}")
        for task in stage.missing:
            if not (task in newest and newest[task].live):
                told = why(stage, task, newest.get(task), site)
                if told or not live:
                    print(f"{name:20} {told or 'not made'}")
                if not told:
                    break
        if not live and not stage.missing:
            print(f"{name:20} made")
    return any(job.live for job in known if job.name in {stage.job for stage in stages.values()})


def why(stage: Stage, task: int, job: Job | None, site: argparse.Namespace) -> str:
    """Tell in words how a task failed, with the end of its log; '' if it did not."""
    log = stage.log(task)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    start = max((i for i, line in enumerate(lines) if line.startswith("== ") and " on " in line), default=0)
    tail = lines[start:]
    if job and job.state == "CANCELLED":
        return f"not made (job {job.id} cancelled)"
    ended = job is not None and job.state not in ("COMPLETED", "COMPLETING")
    if not (ended or stage.failed.exists() or any(line.startswith(f"== {stage.name} failed") for line in tail)):
        return ""
    for what, pattern in _KILLED.items():
        if any(pattern.search(line) for line in tail):
            asked = dict(zip(("cpus", "memory", "time"), options(stage.name, site), strict=False))[what]
            told = f"killed for {what}: it had asked for {asked}. Raise its {what} in slurm/{STAGES.name}"
            break
    else:
        told = str(stage.failed if stage.failed.exists() else log if lines else f"{job.state} ({job.reason})")
    return "\n    ".join([f"failed: {told}", *tail[-6:]])


def cancel(site: argparse.Namespace) -> None:
    """Take back the jobs of this run; the filter's too, if no other rank waits for it."""
    own, data, there = "/".join(site.run.parts[-2:]), site.run.parent.name, queue()
    jobs = [job.id for job in there if job.name.startswith(f"{own}:")]
    if not any(job.name.startswith(f"{data}/") and not job.name.startswith(f"{own}:") for job in there):
        jobs += [job.id for job in there if job.name.startswith(f"{data}:")]
    if jobs:
        command("scancel", *jobs)
    print(f"{len(jobs)} jobs of {own} cancelled.")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["submit", "status", "watch", "cancel", "lab"])
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, results/<data set>/k<K>")
    parser.add_argument("--make", required=True, help="make, with what was given to it")
    parser.add_argument("--again", default="", help="what was given to make, to be told to the user")
    parser.add_argument("--values", default="", help="of it what may differ between two calls of the same run")
    parser.add_argument("--goals", nargs="*", default=["all"])
    for name in ("cpu-partition", "gpu-partition", "account", "gpu-type", "prelude", "sbatch"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--memory-share", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=0, help="at most so many a job")
    site = parser.parse_args()
    make = shlex.split(site.make)
    site.again, site.values = (shlex.join(shlex.split(given)) for given in (site.again, site.values))
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):  # of the make that called this
        os.environ.pop(name, None)
    try:
        if site.action == "submit":
            submit(site, make, site.goals)
        elif site.action == "cancel":
            cancel(site)
        elif site.action == "lab":
            lab(site, make)
        else:
            while status(site, make) and site.action == "watch":
                time.sleep(5)
                print()
    except SlurmError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
