"""A Slurm cluster of two nodes on this machine, for tests and for manual trials.

    python tests/workflow/cluster.py start     # prints the setting that selects it
    python tests/workflow/cluster.py stop

Needs the Debian packages slurmctld, slurmd, slurm-client and munge; root only to install them. The nodes are daemons of
this user on separate ports, each with a simulated GPU.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "sbatch", "munged")
NODES, CPUS, MEMORY = 2, 4, 4000
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2
SlurmdParameters=config_overrides
GresTypes=gpu
JobRequeue=1
ReturnToService=2
KillWait=5
MinJobAge=3600
SlurmdTimeout=5
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} {more}
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE
PartitionName=gpu Nodes=ALL MaxTime=INFINITE
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2
"""


def available() -> bool:
    """Return whether the programs of Slurm are installed."""
    return all(shutil.which(name, path=_path()) for name in PACKAGES)


def start(folder: Path) -> Path:
    """Start the cluster with its state in an empty folder and return its slurm.conf, for the variable SLURM_CONF."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    key, conf = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    port = _free_ports(NODES + 1)
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    size = {"nodes": NODES, "cpus": CPUS}
    where = {"host": socket.gethostname().partition(".")[0], "port": port, "first": port + 1, "last": port + NODES}
    conf.write_text(CONF.format(folder=folder, user=user, more=f"RealMemory={MEMORY} Gres=gpu:1", **size, **where))
    (folder / "gres.conf").write_text(f"NodeName=n[1-{NODES}] Name=gpu File=/dev/null\n")
    (folder / "state").mkdir()
    _run(
        "munged", f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed", conf=conf,
    )  # fmt: skip
    _run("slurmctld", "-c", "-f", str(conf), conf=conf)
    for node in range(1, NODES + 1):
        start_node(folder, f"n{node}")
    for _ in range(150):
        idle = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "cpu", "-t", "idle", "-o", "%N"], env=_env(conf), capture_output=True, text=True
        )
        if len(idle.stdout.split()) == NODES:
            return conf
        time.sleep(0.2)
    logs = "\n".join(path.read_text()[-600:] for path in sorted(folder.glob("*.log")))
    stop(folder)
    raise RuntimeError(f"The nodes did not start:\n{logs}")


def start_node(folder: Path, node: str) -> None:
    """Start a node, also after it was lost."""
    conf = folder / "slurm.conf"
    _run("slurmd", "-N", node, "-f", str(conf), conf=conf)


def lose_node(folder: Path, node: str) -> None:
    """Kill the daemon of a node, as a crash would."""
    os.kill(int((folder / f"{node}.pid").read_text()), signal.SIGKILL)


def stop(folder: Path) -> None:
    """Cancel all jobs and stop the daemons."""
    conf = folder / "slurm.conf"
    subprocess.run(["scancel", "--user", str(os.getuid())], env=_env(conf), capture_output=True, timeout=30)
    for pid in [*folder.glob("n*.pid"), folder / "slurmctld.pid", folder / "munged.pid"]:
        try:
            os.kill(int(pid.read_text()), signal.SIGTERM)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            continue


def _run(*words: str, conf: Path) -> None:
    done = subprocess.run(words, env=_env(conf), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words[0]}: {done.stderr or done.stdout}")


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def _env(conf: Path) -> dict[str, str]:
    return os.environ | {"SLURM_CONF": str(conf), "PATH": _path()}


def _free_ports(n: int) -> int:
    """Return the first of n consecutive free ports."""
    for port in range(23_000 + os.getpid() % 5000, 60_000, n):
        try:
            for p in range(port, port + n):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", p))
        except OSError:
            continue
        return port
    raise RuntimeError(f"No {n} consecutive free ports.")


if __name__ == "__main__":
    folder = Path(tempfile.gettempdir()) / f"aenmf-slurm-{os.getuid()}"
    if sys.argv[1:] == ["start"]:
        shutil.rmtree(folder, ignore_errors=True)
        print(f"export SLURM_CONF={start(folder)}")
    elif sys.argv[1:] == ["stop"]:
        stop(folder)
    else:
        sys.exit(__doc__)
