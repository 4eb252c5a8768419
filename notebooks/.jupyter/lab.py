"""Open the notebooks in JupyterLab on 127.0.0.1 with a token, whatever the user's own settings are.

The optional argument is the notebook to open. In a Slurm job no browser is opened. The address and token are written to
results/.lab.json, which only its owner can read.
"""

import json
import os
import secrets
import socket
import sys
from pathlib import Path

from jupyterlab.labapp import LabApp

os.umask(0o077)
page = f"/lab/tree/{sys.argv[1]}" if sys.argv[1:] else "/lab"
token = secrets.token_hex(24)
# passed within the process: every user of the node could read a token on the command line
options = ["--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={token}", "--ServerApp.allow_remote_access=False"]
options.append("--ServerApp.allow_root=True")  # for containers; the token protects root as it protects other users
options += [f"--ServerApp.default_url={page}", f"--LabApp.default_url={page}"]
options += ["--ServerApp.answer_yes=True", "--Application.log_level=ERROR"]  # Ctrl-C stops it without a question
job = os.environ.get("SLURM_JOB_ID")
if job:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options += ["--no-browser", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    info, new = Path("results/.lab.json"), Path("results/.lab.json.new")
    info.parent.mkdir(exist_ok=True)
    new.unlink(missing_ok=True)
    new.write_text(json.dumps({"job": job, "node": socket.gethostname(), "port": port, "token": token}))
    new.replace(info)
server = LabApp.initialize_server(argv=options)
server.log.addFilter(lambda record: "To access the server" not in record.getMessage())  # the address, again
address = f"JupyterLab: http://127.0.0.1:{server.port}{page}?token={token}"
server.io_loop.add_callback(print, address, flush=True)  # once it listens
server.start()
