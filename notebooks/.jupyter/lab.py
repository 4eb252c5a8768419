"""Open the notebooks in JupyterLab on 127.0.0.1 with a token, whatever the user's own settings are.

In a Slurm job no browser is opened. The address and token are written to results/.lab.json, which only its owner can
read.
"""

import json
import os
import secrets
import socket
import sys
from pathlib import Path

from jupyterlab.labapp import LabApp

os.umask(0o077)
token = secrets.token_hex(24)
# passed within the process: every user of the node could read a token on the command line
options = ["--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={token}", "--ServerApp.allow_remote_access=False"]
options.append("--ServerApp.allow_root=True")  # for containers; the token protects root as it protects other users
if job := os.environ.get("SLURM_JOB_ID"):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options += ["--no-browser", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    info, new = Path("results/.lab.json"), Path("results/.lab.json.new")
    info.parent.mkdir(exist_ok=True)
    new.unlink(missing_ok=True)
    new.write_text(json.dumps({"job": job, "node": socket.gethostname(), "port": port, "token": token}))
    new.replace(info)
LabApp.launch_instance(argv=[*sys.argv[1:], *options])
