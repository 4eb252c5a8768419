"""The environment of a run: nothing that the user has set for other programs may change a result."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

# Variables of Python and of the packages. Numbers of threads, caches, locks and devices stay: they change no result.
_SETTINGS = ("PYTHON", "IPYTHON", "JUPYTER", "MPL", "MATPLOTLIB", "ANNDATA_", "PANDAS_", "ZARR_", "NPY_", "NUMBA_")
_SETTINGS += ("SCIPY_", "SKLEARN_", "SCANPY_", "TORCH_", "NVIDIA_TF32_OVERRIDE", "JAX_ENABLE_X64")
_KEPT = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS")

# A kernel without configuration files and start-up files, neither of the user nor of the machine.
_KERNEL = """
from IPython.core import application
application.SYSTEM_CONFIG_DIRS.clear()
application.ENV_CONFIG_DIRS.clear()
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what can change a result, and with matplotlib's own defaults."""
    kept = {name: value for name, value in environment.items() if name in _KEPT or not name.startswith(_SETTINGS)}
    kept["PYTHONNOUSERSITE"] = "1"
    if matplotlib := find_spec("matplotlib"):  # finds the folder, imports nothing
        kept["MATPLOTLIBRC"] = str(Path(matplotlib.origin).parent / "mpl-data" / "matplotlibrc")
    return kept


def clean_this_process() -> None:
    """Clean the environment of this process and of its children, before the packages are imported."""
    cleaned = clean(os.environ)
    os.environ.clear()
    os.environ.update(cleaned)


def kernel_command() -> list[str]:
    """Return the command of a kernel: this interpreter, without PYTHON* variables and the user's own packages."""
    options = ["--HistoryManager.enabled=False", "--log-level=CRITICAL"]  # no warnings about an unencrypted 127.0.0.1
    return [sys.executable, "-Es", "-c", _KERNEL, "-f", "{connection_file}", *options]


def stop_with_make() -> None:
    """Send SIGTERM to this process when the make that started it has ended, for any reason."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    if "MAKELEVEL" in os.environ:
        threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()
