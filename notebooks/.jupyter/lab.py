"""Open the notebooks in JupyterLab: on 127.0.0.1 and with a token, whatever a user's own settings say.

In a job of Slurm it opens no browser, and tells in results/.lab.json, which only its owner can read, where it is.
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
# handed over within the process: on the command line every user of the node could read the token
options = ["--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={token}", "--ServerApp.allow_remote_access=False"]
options.append("--ServerApp.allow_root=True")  # as containers have it; root's token is no weaker than another's
if job := os.environ.get("SLURM_JOB_ID"):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options += ["--no-browser", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    told, new = Path("results/.lab.json"), Path("results/.lab.json.new")
    told.parent.mkdir(exist_ok=True)
    new.unlink(missing_ok=True)
    new.write_text(json.dumps({"job": job, "node": socket.gethostname(), "port": port, "token": token}))
    new.replace(told)
LabApp.launch_instance(argv=[*sys.argv[1:], *options])
