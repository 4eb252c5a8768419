"""Commands of Slurm: the queue, the resources that each stage requests, and a check that the cluster has them."""

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
    """An error reported by Slurm or found in its settings. The message is shown to the user."""


@dataclass(frozen=True)
class Job:
    """A job, or one task of a job array."""

    id: str
    name: str
    task: int  # its index in the array, 0 without an array
    state: str
    reason: str
    values: str  # variables given to make

    @property
    def active(self) -> bool:
        """Whether the job is waiting or running."""
        return self.state not in _ENDED.split()


def run_command(*words: str, stdin: str | None = None) -> str:
    """Run a command and return its output. Raise SlurmError with its error message if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, input=stdin, timeout=120)
    except FileNotFoundError:
        raise SlurmError(
            f"{words[0]} is not installed here. Run this on the cluster, or pass EXECUTOR=local."
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} did not answer within 120 s. Check that the cluster is up.") from None
    if done.returncode:
        raise SlurmError(f"{' '.join(words[:3])} …: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def queue(*, ended: bool = False) -> list[Job]:
    """Return the active jobs submitted from this folder, and with `ended` also those that Slurm still remembers."""
    output = run_command(
        "squeue", "--noheader", "--array", "--user", str(os.getuid()), *(["--states=all"] if ended else []),
        "--format", "%i\t%T\t%r\t%K\t%Z\t%j\t%k",
    )  # fmt: skip
    lines = [line.split("\t", 6) for line in output.splitlines()]
    jobs = [
        Job(job, name, int(task) if task.isdigit() else 0, state, reason, "" if values == "(null)" else values)
        for job, state, reason, task, folder, name, values in (line for line in lines if len(line) == 7)
        if folder == os.getcwd()
    ]
    return jobs if ended else [job for job in jobs if job.active]


def resources(stage: str) -> dict[str, str]:
    """Return the line of stages.tsv for a stage."""
    with STAGES.open() as file:
        lines = [line.removeprefix("# ") for line in file if line.startswith("# stage\t") or not line.startswith("#")]
    for line in csv.DictReader(lines, delimiter="\t"):
        if line["stage"] == stage:
            return line
    raise SlurmError(f"{STAGES} has no line for {stage}. Add one.")


def sbatch_options(stage: str, site: argparse.Namespace) -> list[str]:
    """Return the options of sbatch for a stage on this cluster."""
    requested = resources(stage)
    memory = re.fullmatch(r"(\d+)([MG])", requested["memory"])
    if not memory:
        raise SlurmError(f"{STAGES}, {stage}: memory is {requested['memory']!r}. Expected for example 64G or 800M.")
    mebibytes = int(memory[1]) * (1024 if memory[2] == "G" else 1) // site.memory_share
    cpus = min(int(requested["cpus"]), site.cpus or int(requested["cpus"]))
    options = [f"--cpus-per-task={cpus}", f"--mem={mebibytes}M", f"--time={requested['time']}"]
    partition = site.gpu_partition if requested["kind"] == "gpu" else site.cpu_partition
    options += [f"--partition={partition}"] if partition else []
    options += [f"--account={site.account}"] if site.account else []
    if int(requested["gpus"]):
        options.append(f"--gres=gpu:{site.gpu_type + ':' if site.gpu_type else ''}{requested['gpus']}")
    return [*options, *shlex.split(site.sbatch)]


def check(stage: str, site: argparse.Namespace) -> None:
    """Raise SlurmError, with what the cluster has, if it could not run a stage. Nothing is submitted."""
    try:
        run_command("sbatch", "--test-only", *sbatch_options(stage, site), stdin="#!/bin/sh\n")
    except SlurmError as error:
        available = run_command("sinfo", "--format", "%P %D nodes, %c CPUs, %m MB, %G, at most %l")
        raise SlurmError(
            f"{stage}: {error}\nThe cluster has:\n{available}Set the partitions in slurm/cluster.mk (see "
            f"slurm/cluster.mk.example) and the resources of a stage in slurm/{STAGES.name}. Nothing was submitted."
        ) from None
