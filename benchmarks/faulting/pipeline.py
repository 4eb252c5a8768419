"""A copy of the repository with a small data set, in which make runs."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 600  # limit of one `make all`
_PARAMETERS = """\
data: data/small.h5ad
min_cells: 40
k: 4
clustering_seeds: [0]
classification_seeds: [42]
resolutions: [1.0]
max_iter: 300
tol: 1.0e-9
"""
_DATA = """\
from aenmf_lib import data
cells, truth = data.simulate(420, 1220, seed=3)
cells[cells.obs["cell_type"].isin(["B cell", "classical monocyte", "CD4-positive, alpha-beta T cell"])].write_h5ad(
    "data/small.h5ad"
)
"""
_MORE_WRITES = ("SECONDS = 60.0", "SECONDS = 0.2")  # checkpoints more often, so that interrupted fits resume


class Pipeline:
    """A copy of the repository with a small data set."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python, self.results = folder, python, folder / "results"
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        (folder / "notebooks/params/small.yaml").write_text(_PARAMETERS)
        checkpoint = folder / "aenmf_lib/training/checkpoint.py"
        checkpoint.write_text(checkpoint.read_text().replace(*_MORE_WRITES))
        (folder / "data").mkdir(exist_ok=True)
        subprocess.run([python, "-c", _DATA], cwd=folder, check=True)
        self.results.mkdir()

    def start(self, *goals: str, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        """Start make in a process group of its own."""
        log = tempfile.TemporaryFile("w+")  # closed with the process
        words = ["nice", "make", *(goals or ["all"]), "DATASET=small", "EXECUTOR=local", f"PYTHON={self.python}"]
        process = subprocess.Popen(
            words, cwd=self.folder, stdout=log, stderr=log, text=True, start_new_session=True, preexec_fn=limit
        )
        process.log = log
        return process

    def make(self, *goals: str, limit: Callable[[], None] | None = None) -> tuple[int, str]:
        """Run make to its end. Return its exit status and all its output."""
        process = self.start(*goals, limit=limit)
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return -1, f"no end within {SECONDS} s\n{output(process)}"
        return process.returncode, output(process)

    def empty(self) -> None:
        """Remove all results."""
        shutil.rmtree(self.results / "small", ignore_errors=True)


def output(process: subprocess.Popen[str]) -> str:
    """Return what a process has printed so far."""
    process.log.seek(0)
    return process.log.read()


def error_fault(status: int, text: str) -> str:
    """Return why the end of a failed run is not one error line, or an empty text."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if not status:
        return "the run succeeded"
    if "Traceback" in text:
        return "the output contains a traceback"
    return "" if len(errors) == 1 else f"{len(errors)} error lines"


def first_error(text: str) -> str:
    """Return the first error line, or the end of the output."""
    return next((line for line in text.splitlines() if line.startswith("error: ")), text.strip()[-300:])[:400]
