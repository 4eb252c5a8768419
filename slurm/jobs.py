"""Talk with Slurm: which jobs are there, and what a stage asks for."""

from __future__ import annotations

import argparse
import csv
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

STAGES = Path(__file__).with_name("stages.tsv")
_ENDED = "BOOT_FAIL CANCELLED COMPLETED COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT"


class SlurmError(RuntimeError):
    """What the cluster refused; the text is for the user."""


@dataclass(frozen=True)
class Job:
    """A job, or one of an array."""

    id: str
    name: str
    task: int  # its number in the array; 0 where there is none
    state: str
    reason: str
    values: str  # that were given to make

    @property
    def live(self) -> bool:
        """Whether it is still to do something."""
        return self.state not in _ENDED.split()


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


def queue(*, ended: bool = False) -> list[Job]:
    """Ask which jobs that were sent from this folder are there; with `ended` those too that Slurm still knows of."""
    told = command(
        "squeue", "--noheader", "--array", "--user", str(os.getuid()), *(["--states=all"] if ended else []),
        "--format", "%i\t%T\t%r\t%K\t%Z\t%j\t%k",
    )  # fmt: skip
    lines = [line.split("\t", 6) for line in told.splitlines()]
    jobs = [
        Job(job, name, int(task) if task.isdigit() else 0, state, reason, "" if values == "(null)" else values)
        for job, state, reason, task, folder, name, values in (line for line in lines if len(line) == 7)
        if folder == os.getcwd()
    ]
    return jobs if ended else [job for job in jobs if job.live]


def row(stage: str) -> dict[str, str]:
    """Read what a stage asks for."""
    with STAGES.open() as file:
        lines = [line.removeprefix("# ") for line in file if line.startswith("# stage\t") or not line.startswith("#")]
    for line in csv.DictReader(lines, delimiter="\t"):
        if line["stage"] == stage:
            return line
    raise SlurmError(f"{STAGES} has no line for {stage}: add one.")


def options(stage: str, site: argparse.Namespace) -> list[str]:
    """Give the options of sbatch for a stage on this cluster."""
    asked = row(stage)
    memory = re.fullmatch(r"(\d+)([MG])", asked["memory"])
    if not memory:
        raise SlurmError(f"{STAGES}, {stage}: memory is {asked['memory']!r}; expected such as 64G or 800M.")
    mebibytes = int(memory[1]) * (1024 if memory[2] == "G" else 1) // site.memory_share
    cpus = min(int(asked["cpus"]), site.cpus or int(asked["cpus"]))
    found = [f"--cpus-per-task={cpus}", f"--mem={mebibytes}M", f"--time={asked['time']}"]
    partition = site.gpu_partition if asked["kind"] == "gpu" else site.cpu_partition
    found += [f"--partition={partition}"] if partition else []
    found += [f"--account={site.account}"] if site.account else []
    if int(asked["gpus"]):
        found.append(f"--gres=gpu:{site.gpu_type + ':' if site.gpu_type else ''}{asked['gpus']}")
    return [*found, *shlex.split(site.sbatch)]


def check(stage: str, site: argparse.Namespace) -> None:
    """Ask the cluster whether it could run a stage, before anything is sent.

    Raises
    ------
    SlurmError
        It could not; the text tells what there is.
    """
    try:
        command("sbatch", "--test-only", *options(stage, site), stdin="#!/bin/sh\n")
    except SlurmError as error:
        there_are = command("sinfo", "--format", "%P %D nodes, %c CPUs, %m MB, %G, at most %l")
        raise SlurmError(
            f"{stage}: {error}\nThere are:\n{there_are}Name them in slurm/cluster.mk (slurm/cluster.mk.example shows "
            f"how); what a stage asks for stands in slurm/{STAGES.name}. Nothing was submitted."
        ) from None
