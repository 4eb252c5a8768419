"""JupyterLab in a job on a compute node, with the ssh command to reach it. Called by the Makefile."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import socket
import time
from pathlib import Path

from jobs import SlurmError, check, queue, read_requests, start_job

_ADDRESS, _LOG = Path("results/.lab.json"), Path("results/lab.log")


def start_lab(site: argparse.Namespace, make: list[str], page: str = "") -> None:
    """Submit the job if there is none, wait until it runs, and print how to connect and open a page.

    Raises SlurmError if the cluster refuses the job, or if the job ends. The message contains the end of its log.
    """
    job = next((job.id for job in queue() if job.name == "lab"), "") or _submit(site, make)
    before = ""
    while not (address := _read_address(job)):
        state = next((f"{j.state.lower()} ({j.reason})" for j in queue() if j.id == job), "")
        if not state and not _read_address(job):
            end = "\n    ".join(_LOG.read_text(errors="replace").splitlines()[-6:] if _LOG.exists() else [])
            raise SlurmError(f"job {job} ended before JupyterLab started. {_LOG}:\n    {end}")
        if state != before:
            print(f"job {job}: {state}", flush=True)
            before = state
        time.sleep(1)
    user = getpass.getuser()
    print("JupyterLab is running. On your own machine type")
    print(f"  ssh -N -L 8888:127.0.0.1:{address['port']} -J {user}@{socket.getfqdn()} {user}@{address['node']}")
    print(f"and open http://127.0.0.1:8888/lab{page and f'/tree/{page}'}?token={address['token']}")
    print(f"To stop it: scancel {job}")


def _submit(site: argparse.Namespace, make: list[str]) -> str:
    """Submit the job and return its number."""
    request = read_requests(site)[1]["lab"]
    check("lab", request, site)
    os.umask(0o077)  # also for the log, to which the server writes its token
    _LOG.parent.mkdir(exist_ok=True)
    _LOG.unlink(missing_ok=True)
    options = ["--job-name=lab", f"--output={_LOG}", "--no-requeue"]
    return start_job("lab", request, site, make, ["lab"], *options)


def _read_address(job: str) -> dict[str, str]:
    """Return node, port and token of the server once it is up."""
    try:
        address = json.loads(_ADDRESS.read_text())
        up = f"http://127.0.0.1:{address['port']}/lab" in _LOG.read_text(errors="replace")
    except FileNotFoundError:
        return {}
    return address if address["job"] == job and up else {}
