"""Provenance of a result: code, package versions, machine and time."""

import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("aenmf_lib", "anndata", "numpy", "scanpy", "scikit-learn", "scipy", "torch")


def run_info() -> dict[str, str]:
    """Return the code, versions, machine and time of a result, and the peak memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS and in KiB elsewhere
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "peak_memory_mib": f"{peak / (2**20 if sys.platform == 'darwin' else 2**10):.0f}",
        **{f"version_{name}": version(name) for name in _PACKAGES},
    }


def _git_commit() -> str:
    """Return the commit of this code, with "-dirty" if files differ, or "unknown" without git or a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        folder = Path(__file__).resolve().parent
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
