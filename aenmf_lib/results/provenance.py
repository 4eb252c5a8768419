"""Which code, data, seed and machine made it?"""

import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("aenmf_lib", "anndata", "numpy", "scanpy", "scikit-learn", "scipy", "torch")


def run_info() -> dict[str, str]:
    """Give what made a result: code, versions, machine, time, and the peak memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "peak_memory_mib": f"{peak / 2**20:.0f}",
        **{f"version_{name}": version(name) for name in _PACKAGES},
    }


def _git_commit() -> str:
    """Give the commit of this code, "-dirty" where files differ; "unknown" outside a checkout or without git."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
