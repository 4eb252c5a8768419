"""Send the stages that are not made to Slurm, as jobs that wait for each other; tell how they are; cancel them.

What there is to make, and what waits for what, is asked of make: the Makefile alone knows the graph. Each job is
``make EXECUTOR=local`` for one stage, so what is made is not made again, here as there. Called by the Makefile.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
WARNING = 120  # seconds before the time limit when a stage is told to keep its state
_NOTEBOOK = re.compile(r"notebooks/(\d\d_\w+)\.py$")


class SlurmError(RuntimeError):
    """What the cluster refused; the text is for the user."""


@dataclass(frozen=True)
class Graph:
    """The stages of a run, as make knows them."""

    report: dict[str, Path]  # stage -> its executed notebook, in the order of the stages
    files: dict[str, list[str]]  # stage -> all it makes
    needs: dict[str, list[str]]  # stage -> those whose files it takes
    missing: list[str]  # what make would run

    def name(self, stage: str) -> str:
        """Name the job of a stage: that of the filter is of the data set, and of all its ranks."""
        return "/".join(self.report[stage].parent.parts[1:]) + f":{stage}"


def command(*words: str, stdin: str | None = None) -> str:
    """Run a command and give what it says; SlurmError with its own words if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, input=stdin, timeout=120)
    except FileNotFoundError:
        raise SlurmError(
            f"{words[0]} is not installed here: run this on the cluster, or give EXECUTOR=local."
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} did not answer within 120 s: is the cluster up?") from None
    if done.returncode:
        raise SlurmError(f"{' '.join(words[:3])} …: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def graph(make: list[str], goals: list[str], *, resolve: bool = True) -> Graph:
    """Ask make; without `resolve` the values that were given to the stages are left as they are."""
    told = command("env", "LC_ALL=C", *make, "-pn", *([] if resolve else ["-o", "resolved"]), *goals)
    stage_of, rules = {}, {}
    for block in told.split("\n\n"):  # a file each
        rule = re.search(r"^(results/[^:%\n ]+): (\S[^\n]*)$", block, re.M)
        if rule and (stage := _NOTEBOOK.search(rule[2].split()[0])):
            also = re.search(r"^#  Also makes: ([^\n]*)$", block, re.M)
            stage_of |= dict.fromkeys([rule[1], *(also[1].split() if also else [])], stage[1])
            rules[stage[1]] = rule[2].split()
    needs = {stage: sorted({stage_of[p] for p in rules[stage] if p in stage_of}) for stage in sorted(rules)}
    report = {stage: Path(t) for t, stage in stage_of.items() if t.endswith(f"/{stage}.ipynb")}
    run = set(re.findall(r"run execute notebooks/(\d\d_\w+)\.py", told))
    files = {stage: sorted(target for target, of in stage_of.items() if of == stage) for stage in needs}
    missing = [stage for stage in needs if stage in run]
    return Graph({stage: report[stage] for stage in needs}, files, needs, missing)


def queue() -> dict[str, tuple[str, str, str]]:
    """Ask which jobs sent from this folder are there: name -> job, state, reason."""
    told = command("squeue", "--noheader", "--user", str(os.getuid()), "--format", "%i\t%T\t%r\t%Z\t%j")
    lines = [line.split("\t", 4) for line in told.splitlines()]
    return {
        name: (job, state, reason)
        for job, state, reason, folder, name in (line for line in lines if len(line) == 5)
        if folder == os.getcwd() and state != "COMPLETING"
    }


def live(held: Graph) -> dict[str, tuple[str, str, str]]:
    """Tell which stages are on their way: stage -> job, state, reason."""
    there = queue()
    return {stage: there[held.name(stage)] for stage in held.report if held.name(stage) in there}


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one shell submit at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".submit.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def needs_of(stage: str) -> dict[str, str]:
    """Read what a stage asks for."""
    with (HERE / "stages.tsv").open() as file:
        lines = [line.removeprefix("# ") for line in file if line.startswith("# stage\t") or not line.startswith("#")]
    for row in csv.DictReader(lines, delimiter="\t"):
        if row["stage"] == stage:
            return row
    raise SlurmError(f"{HERE / 'stages.tsv'} has no line for {stage}: add one.")


def asked(stage: str, site: argparse.Namespace) -> list[str]:
    """Give the options of sbatch for a stage on this cluster."""
    row = needs_of(stage)
    memory = re.fullmatch(r"(\d+)([MG])", row["memory"])
    if not memory:
        raise SlurmError(f"{HERE / 'stages.tsv'}, {stage}: memory is {row['memory']!r}; expected such as 64G or 800M.")
    mebibytes = int(memory[1]) * (1024 if memory[2] == "G" else 1) // site.memory_share
    cpus = min(int(row["cpus"]), site.cpus or int(row["cpus"]))
    options = [f"--cpus-per-task={cpus}", f"--mem={mebibytes}M", f"--time={row['time']}"]
    partition = site.gpu_partition if row["kind"] == "gpu" else site.cpu_partition
    options += [f"--partition={partition}"] if partition else []
    options += [f"--account={site.account}"] if site.account else []
    if int(row["gpus"]):
        options.append(f"--gres=gpu:{site.gpu_type + ':' if site.gpu_type else ''}{row['gpus']}")
    return [*options, *shlex.split(site.sbatch)]


def submit(site: argparse.Namespace, make: list[str], goals: list[str]) -> None:
    """Send what is missing and not there yet, after a check of all of it."""
    with alone(site.run.parent):
        held = graph(make, goals)
        there = live(held)
        new = [stage for stage in held.missing if stage not in there]
        for stage in new:
            try:
                command("sbatch", "--test-only", *asked(stage, site), stdin="#!/bin/sh\n")
            except SlurmError as error:
                there_are = command("sinfo", "--format", "%P %D nodes, %c CPUs, %m MB, %G, at most %l")
                raise SlurmError(
                    f"{stage}: {error}\nThere are:\n{there_are}Name them in slurm/cluster.mk "
                    "(slurm/cluster.mk.example shows how); what a stage asks for stands in slurm/stages.tsv. "
                    "Nothing was submitted."
                ) from None
        jobs = {stage: job for stage, (job, *_) in there.items()}
        for stage in new:
            after = [jobs[need] for need in held.needs[stage] if need in jobs]
            log = held.report[stage].with_suffix(".log")
            log.parent.mkdir(parents=True, exist_ok=True)
            target = shlex.join([*make, *held.files[stage]])
            options = asked(stage, site)
            jobs[stage] = command(
                "sbatch", "--parsable", f"--job-name={held.name(stage)}", f"--output={log}", "--open-mode=append",
                "--requeue", f"--signal=B:USR1@{WARNING}", "--kill-on-invalid-dep=yes", *options,
                *([f"--dependency=afterok:{':'.join(after)}"] if after else []),
                str(HERE / "job.sh"), stage, " ".join(options), site.prelude, *shlex.split(target),
            ).strip().partition(";")[0]  # fmt: skip
            waits = f", after {', '.join(need for need in held.needs[stage] if need in jobs)}" if after else ""
            print(f"{jobs[stage]:>8}  {stage}{waits}")
        for stage, (job, state, _) in there.items():
            needs = [need for need in held.needs[stage] if need in jobs]
            if state == "PENDING" and set(needs) & set(new):  # it was sent before what it needs
                command("scontrol", "update", f"JobId={job}", f"Dependency=afterok:{':'.join(jobs[n] for n in needs)}")
            print(f"{job:>8}  {stage}: is there already, {state.lower()}")
    if not held.missing:
        print("Everything is made.")
    else:
        print(f"Next: make watch {site.again} (or status, cancel). Logs: {site.run}/*.log")


def status(site: argparse.Namespace, make: list[str], goals: list[str]) -> bool:
    """Print a table; gives whether anything is on its way."""
    held = graph(make, goals, resolve=False)
    there = live(held)
    for stage, report in held.report.items():
        if stage in there:
            job, state, reason = there[stage]
            print(f"{stage:20} {state.lower()}, job {job}" + (f" ({reason})" if reason not in ("None", "") else ""))
        elif stage not in held.missing:
            print(f"{stage:20} made")
        elif (failed := report.with_suffix(".failed.ipynb")).exists():
            print(f"{stage:20} failed: {failed}")
            with contextlib.suppress(FileNotFoundError):
                for line in report.with_suffix(".log").read_text(errors="replace").splitlines()[-6:]:
                    print(f"    {line}")
        else:
            print(f"{stage:20} not made")
    return bool(there)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["submit", "status", "watch", "cancel"])
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, results/<data set>/k<K>")
    parser.add_argument("--make", required=True, help="make, with what was given to it")
    parser.add_argument("--again", default="", help="what was given to make, to be told to the user")
    parser.add_argument("--goals", nargs="*", default=["all"])
    for name in ("cpu-partition", "gpu-partition", "account", "gpu-type", "prelude", "sbatch"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--memory-share", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=0, help="at most so many a job")
    site = parser.parse_args()
    make = shlex.split(site.make)
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):  # of the make that called this
        os.environ.pop(name, None)
    try:
        if site.action == "submit":
            submit(site, make, site.goals)
        elif site.action == "status":
            status(site, make, site.goals)
        elif site.action == "watch":
            while status(site, make, site.goals):
                time.sleep(5)
                print()
        else:
            own, data = "/".join(site.run.parts[-2:]), site.run.parent.name
            there = queue()
            jobs = [job for name, (job, *_) in there.items() if name.startswith(f"{own}:")]
            if not any(name.startswith(f"{data}/") and not name.startswith(f"{own}:") for name in there):
                jobs += [job for name, (job, *_) in there.items() if name.startswith(f"{data}:")]  # no other rank waits
            if jobs:
                command("scancel", *jobs)
            print(f"{len(jobs)} jobs of {own} cancelled.")
    except SlurmError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
