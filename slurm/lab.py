"""Run JupyterLab in a job on a compute node, and tell how to get there from elsewhere. Called by the Makefile."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import shlex
import socket
import time
from pathlib import Path

from jobs import SlurmError, check, command, options, queue

TOLD, LOG = Path("results/.lab.json"), Path("results/lab.log")


def lab(site: argparse.Namespace, make: list[str]) -> None:
    """Send the job if there is none, wait until it runs, and print what to type.

    Raises
    ------
    SlurmError
        The cluster refused the job, or it ended; the text says where it wrote to.
    """
    job = next((job.id for job in queue() if job.name == "lab"), "") or _send(site, make)
    before = ""
    while not (told := _told(job)):
        state = next((f"{j.state.lower()} ({j.reason})" for j in queue() if j.id == job), "")
        if not state and not _told(job):
            end = "\n    ".join(LOG.read_text(errors="replace").splitlines()[-6:] if LOG.exists() else [])
            raise SlurmError(f"job {job} ended before JupyterLab was there. {LOG}:\n    {end}")
        if state != before:
            print(f"job {job}: {state}", flush=True)
            before = state
        time.sleep(1)
    user = getpass.getuser()
    print("JupyterLab runs. On your own machine type")
    print(f"  ssh -N -L 8888:127.0.0.1:{told['port']} -J {user}@{socket.getfqdn()} {user}@{told['node']}")
    print(f"and open http://127.0.0.1:8888/lab?token={told['token']}")
    print(f"To end it: scancel {job}")


def _send(site: argparse.Namespace, make: list[str]) -> str:
    check("lab", site)
    os.umask(0o077)  # of the log as well, for the server writes its token there
    LOG.parent.mkdir(exist_ok=True)
    LOG.unlink(missing_ok=True)
    asked = options("lab", site)
    return command(
        "sbatch", "--parsable", "--job-name=lab", f"--output={LOG}", "--no-requeue", *asked,
        str(Path(__file__).with_name("job.sh")), "lab", shlex.join(asked), site.prelude, *make, "--", "lab",
    ).strip().partition(";")[0]  # fmt: skip


def _told(job: str) -> dict[str, str]:
    """Give where the server is, once it is up."""
    try:
        told = json.loads(TOLD.read_text())
        up = f"http://127.0.0.1:{told['port']}/lab" in LOG.read_text(errors="replace")
    except FileNotFoundError:
        return {}
    return told if told["job"] == job and up else {}
