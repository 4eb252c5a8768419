"""Functions that call Slurm: list the queue, read the request of each stage, check that the cluster can run it."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

_ENDED = "BOOT_FAIL CANCELLED COMPLETED COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT"
_FORMAT = ("%i", "%T", "%r", "%K", "%M", "%m", "%Z", "%j", "%k")  # fields of squeue: those of Job, and the folder
_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)$")


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
    elapsed: str = ""  # time since it started, such as 1:02:33
    memory: str = ""  # requested, such as 34G

    @property
    def active(self) -> bool:
        """Whether the job is waiting or running."""
        return self.state not in _ENDED.split()

    @property
    def run(self) -> str:
        """The run of the job (demo/k12) or its data set (demo), or the name of the job if it belongs to neither."""
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Request:
    """What a job of a stage requests."""

    gpus: int
    cpus: int
    memory: int  # MiB
    seconds: int
    width: int  # number of jobs of the stage that run at the same time
    notes: list[str] = field(default_factory=list)  # which values are not the computed ones

    def __str__(self) -> str:
        """Return the request as text for the user."""
        gpu = f", {self.gpus} GPU{'s' * (self.gpus > 1)}" * bool(self.gpus)
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        cpus = f"{self.cpus} CPU{'s' * (self.cpus > 1)}"
        return f"{size_text(self.memory)}, {cpus}, {_clock(self.seconds)}{gpu}{notes}"


def run_command(*words: str, stdin: str | None = None, timeout: float = 120) -> str:
    """Run a command and return its output. Raise SlurmError with its error message if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, input=stdin, timeout=timeout)
    except FileNotFoundError:
        raise SlurmError(
            f"{words[0]} is not installed here. Run this on the cluster, or pass EXECUTOR=local."
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} did not answer within {timeout} s. Check that the cluster is up.") from None
    if done.returncode:
        raise SlurmError(f"{' '.join(words[:3])} …: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def queue(*, ended: bool = False) -> list[Job]:
    """Return the active jobs submitted from this folder, and with `ended` also those that Slurm still remembers."""
    output = run_command(
        "squeue", "--noheader", "--array", "--user", str(os.getuid()), *(["--states=all"] if ended else []),
        "--format", "\t".join(_FORMAT),
    )  # fmt: skip
    lines = [line.split("\t", len(_FORMAT) - 1) for line in output.splitlines()]
    jobs = [
        Job(
            job, name, int(task) if task.isdigit() else 0, state, reason,
            "" if values == "(null)" else values, elapsed, memory,
        )
        for job, state, reason, task, elapsed, memory, folder, name, values in lines
        if folder == os.getcwd()
    ]  # fmt: skip
    return jobs if ended else [job for job in jobs if job.active]


def memory_used(jobs: list[Job]) -> dict[str, float]:
    """Return the largest memory (MiB) that each running job has used so far, by job."""
    if not jobs:
        return {}
    try:
        shown = run_command("sstat", "-anP", "-o", "JobID,MaxRSS", "-j", ",".join(job.id for job in jobs))
    except SlurmError:  # this cluster does not record memory
        return {}
    used: dict[str, float] = {}
    for line in shown.splitlines():  # one line per step, such as 12.batch
        step, _, size = line.partition("|")
        if re.fullmatch(r"[\d.]+[KMGT]", size):  # "0" or nothing: not measured yet
            job = step.partition(".")[0]
            used[job] = max(used.get(job, 0.0), mebibytes(size))
    return used


def mebibytes(size: str) -> float:
    """Return a size of Slurm, such as 34G, in units of 2**20 bytes."""
    return float(size[:-1]) * {"K": 2**-10, "M": 1, "G": 2**10, "T": 2**20}[size[-1]]


def size_text(size: float) -> str:
    """Return a size in mebibytes as text, such as 34 GB, in units of 1024, as Slurm counts."""
    return f"{size / 1024:.3g} GB" if size >= 1024 else f"{size:.0f} MB"


# ---------------------------------------------------------------- requests
def read_requests(site: argparse.Namespace, filtered: str = "") -> tuple[str, dict[str, Request]]:
    """Return the sizes of the data as text, and the request of each stage, which is at most what its partition has.

    `filtered` is the file of the filtered cells, if it is up to date. Otherwise the sizes are those of `make check`.
    """
    words = [*shlex.split(site.requests), *(["--cells", filtered] if filtered else [])]
    found = json.loads(run_command(*words, timeout=1800))
    nodes = {"cpu": _nodes(site.cpu_partition, "cpu"), "gpu": _nodes(site.gpu_partition, "gpu")}
    size = found["size"]
    source = f"{size[0]:,} cells × {size[1]:,} genes" if size else ""
    requests = {}
    for stage, asked in found["stages"].items():
        memory, notes = -(-asked["memory"] // 2**20), [asked["source"]] if asked["source"] else []
        request = Request(asked["gpus"], asked["cpus"], memory, asked["seconds"], asked["width"], notes)
        requests[stage] = _capped(request, nodes["gpu" if request.gpus else "cpu"])
    return source, requests


def _nodes(partition: str, kind: str) -> list[tuple[int, int, float]]:
    """Return (memory in MiB, CPUs, longest time in seconds) of each kind of node in the given or default partition."""
    shown = run_command(
        "sinfo", "--noheader", "--exact", "--format", "%P|%m|%c|%l|%G", *(["-p", partition] if partition else [])
    )
    rows = [line.split("|", 4) for line in shown.splitlines()]
    return [
        (int(memory.rstrip("+")), int(cpus.rstrip("+")), _read_time(longest))  # 64000+: other nodes have more
        for name, memory, cpus, longest, gres in rows
        if (partition or name.endswith("*")) and (kind == "cpu" or "gpu" in gres)
    ]


def _capped(request: Request, nodes: list[tuple[int, int, float]]) -> Request:
    """Return the request, lowered to fit a node, with a note of the lowered values. Without nodes, nothing changes."""
    if not nodes:  # sbatch reports the error
        return request
    memory, cpus, _ = max(nodes, key=lambda node: (node[0] >= request.memory and node[1] >= request.cpus, node))
    most = {"memory": memory, "cpus": cpus, "seconds": max(node[2] for node in nodes)}
    lowered = {name: int(limit) for name, limit in most.items() if getattr(request, name) > limit}
    if not lowered:
        return request
    asked = {"memory": size_text(request.memory), "cpus": f"{request.cpus} CPUs", "seconds": _clock(request.seconds)}
    note = f"instead of {', '.join(asked[name] for name in lowered)}: the partition has no more"
    return replace(request, **lowered, notes=[*request.notes, note])


def _read_time(text: str) -> float:
    """Return a time of Slurm, such as 1-00:00:00 or infinite, in seconds."""
    match = _TIME.match(text)
    if not match:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _clock(seconds: float) -> str:
    """Return a time such as 40 min, 6.5 h or 2 days."""
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 48 * 3600 else f"{seconds / 86400:.3g} days"


def sbatch_options(request: Request, site: argparse.Namespace) -> list[str]:
    """Return the options of sbatch for a request on this cluster."""
    minutes = -(-request.seconds // 60)
    options = [f"--cpus-per-task={request.cpus}", f"--mem={request.memory}M", f"--time={minutes}"]
    partition = site.gpu_partition if request.gpus else site.cpu_partition
    options += [f"--partition={partition}"] if partition else []
    options += [f"--account={site.account}"] if site.account else []
    if request.gpus:
        options.append(f"--gres=gpu:{site.gpu_type + ':' if site.gpu_type else ''}{request.gpus}")
    return [*options, *shlex.split(site.sbatch)]


def start_job(
    name: str, request: Request, site: argparse.Namespace, make: list[str], files: list[str], *options: str
) -> str:
    """Submit a job that makes files, with more options of sbatch, and return its number."""
    requested = sbatch_options(request, site)
    job = [str(Path(__file__).with_name("job.sh")), name, " ".join(requested), site.prelude, *make, "--", *files]
    return run_command("sbatch", "--parsable", *options, *requested, *job).strip().partition(";")[0]


def check(stage: str, request: Request, site: argparse.Namespace) -> None:
    """Raise SlurmError if the cluster cannot run a stage. The message lists what it has. Nothing is submitted."""
    try:
        run_command("sbatch", "--test-only", *sbatch_options(request, site), stdin="#!/bin/sh\n")
    except SlurmError as error:
        available = run_command("sinfo", "--format", "%P %D nodes, %c CPUs, %m MB, %G, at most %l")
        raise SlurmError(
            f"{stage}: {error}\nIt requests {request}. The cluster has:\n{available}Set the partitions in "
            "slurm/cluster.mk (see slurm/cluster.mk.example) and the resources of a stage in slurm/stages.tsv. "
            "Nothing was submitted."
        ) from None
