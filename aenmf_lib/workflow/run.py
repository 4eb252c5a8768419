"""Run a notebook with given parameters, in this interpreter. Its report exists only if all cells passed."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from aenmf_lib.workflow import crate, environment, errors, executed
from aenmf_lib.workflow.lock import Locked, only_one

__all__ = ["execute"]

log = logging.getLogger(__name__)
_GRACE = 20  # seconds for a kernel to end by itself; Slurm by default gives all processes 30
_SKIPPED = "Skipped: "


class RunError(RuntimeError):
    """A notebook failed or stopped before its end. The message is for the user."""


class LogStream:
    """Output for a log file: whole lines, and the state of a progress bar once every few seconds."""

    def __init__(self, stream: TextIO, every: float = 10.0) -> None:
        self.stream, self.every, self.rest, self.last = stream, every, "", time.monotonic()
        self.flush = stream.flush

    def write(self, text: str) -> None:
        """Write the next part of the output, in which a carriage return starts the next state of a progress bar."""
        *lines, self.rest = (self.rest + text).split("\n")
        states = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
        now = time.monotonic()
        if "\r" in self.rest and now - self.last > self.every:
            states.append(self.rest.rpartition("\r")[2])
            self.rest, self.last = "\r", now
        self.stream.writelines(state + "\n" for state in states)


def execute(notebook: Path, values: dict[str, Any], report: Path) -> None:
    """Run a notebook in the current directory, with the interpreter that runs this function.

    `report` exists only if the last run passed: it is ``NAME.running.ipynb`` while the notebook runs, and
    ``NAME.failed.ipynb`` if it failed. A cell that raises an exception named ``Skipped`` ends it with success.
    Raises RunError if a cell failed, the notebook stopped before its end, its process died, or another process runs
    the same notebook.

    Parameters
    ----------
    notebook : percent script
    values : its parameters, from ``parameters.resolve``
    report : the executed notebook
    """
    running, failed = report.with_suffix(".running.ipynb"), report.with_suffix(".failed.ipynb")
    try:
        with only_one(report) as lock, tempfile.TemporaryDirectory(prefix="aenmf-") as private:

            def clean_up() -> None:
                with contextlib.suppress(OSError):
                    running.replace(failed)
                shutil.rmtree(private, ignore_errors=True)
                lock.unlink(missing_ok=True)

            _stop_kernel_on_signal(notebook.stem, clean_up)
            for earlier in (report, failed, running):
                earlier.unlink(missing_ok=True)
            start = time.monotonic()
            fault = _run(notebook, values, running, Path(private))
            if fault.startswith(_SKIPPED):
                log.info("%s: skipped: %s", notebook.stem, fault.removeprefix(_SKIPPED))
            elif fault:
                running.replace(failed)
                raise RunError(f"{notebook.stem} failed: {fault}\nThe cells run so far, with the traceback: {failed}")
            running.replace(report)
            crate.add(report, notebook, Path(private) / "files")
            seconds, memory = time.monotonic() - start, executed.peak_memory() / 2**30
            log.info("%s: done in %.0f s, peak memory %.1f GiB: %s", notebook.stem, seconds, memory, report)
    except Locked as error:
        raise RunError(str(error)) from None
    except OSError as error:  # of this process: the report could not be written
        with contextlib.suppress(OSError):
            running.replace(failed)
        raise RunError(f"{notebook.stem} failed: {errors.explain(error, running)}") from None


def _run(notebook: Path, values: dict[str, Any], running: Path, private: Path) -> str:
    """Run the cells, write them into `running`, and return why they failed or an empty string."""
    sys.modules.setdefault("rfc3987_syntax", None)  # an optional part of jsonschema: 0.8 s to import, not needed here
    import jupytext
    import papermill
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError

    settings = {"IPYTHONDIR": str(private), "JUPYTER_RUNTIME_DIR": str(private)}

    class Kernels(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:  # not a user's own kernel of this name
            argv = executed.recorded(environment.kernel_command(), private / "files")
            return KernelSpec(argv=argv, display_name=kernel_name, language="python")

    class Kernel(AsyncKernelManager):
        def _kernel_spec_manager_default(self) -> KernelSpecManager:
            return Kernels()

        async def start_kernel(self, **options: Any) -> None:
            self.connection_file = str(private / "kernel.json")
            await super().start_kernel(**options, env=environment.clean(os.environ) | settings)

    source = jupytext.read(notebook)
    code = [c.source for c in source.cells if c.cell_type == "code" and "parameters" not in c.metadata.get("tags", [])]

    def announce(cell: Any, cell_index: int) -> None:
        if cell.source in code:
            lines = (line for line in cell.source.splitlines() if line.strip() and not line.startswith("#"))
            log.info("%s [%d/%d] %s", notebook.stem, code.index(cell.source) + 1, len(code), next(lines, "")[:80])

    jupytext.write(source, running)
    logging.getLogger("papermill").setLevel(logging.WARNING)
    stream = sys.stderr if sys.stderr.isatty() else LogStream(sys.stderr)
    try:
        done = papermill.execute_notebook(
            str(running),
            str(running),
            values,
            kernel_name="python3",
            language="python",
            kernel_manager_class=Kernel,
            on_cell_execute=announce,
            coalesce_streams=True,  # the report keeps the last state of a progress bar
            progress_bar=False,
            stdout_file=stream,
            stderr_file=stream,
        )
    except papermill.PapermillExecutionError as error:
        if error.ename == "Skipped":
            return f"{_SKIPPED}{error.evalue}"
        return f"{error.ename}: {errors.explain_text(error.ename, error.evalue)}"
    except DeadKernelError:
        memory = executed.peak_memory() / 2**30
        return f"its process died, most often because memory ran out: it had used {memory:.1f} GiB"
    # papermill does not report a sys.exit(0) in a cell
    left = sum(c.cell_type == "code" and c.metadata.papermill.status != "completed" for c in done.cells)
    return f"it stopped before its end, with {left} cells left" if left else ""


def _stop_kernel_on_signal(name: str, clean_up: Callable[[], None]) -> None:
    """On SIGINT, SIGTERM or SIGHUP end the kernel with this process. A signal that is ignored (nohup) stays ignored."""
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]

    def stop(number: int, frame: object) -> None:
        import psutil

        for other in numbers:  # a second signal must not interrupt this function
            signal.signal(other, signal.SIG_IGN)
        kernels, descendants = psutil.Process().children(), psutil.Process().children(recursive=True)
        for process in kernels:  # a fit writes its state
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(kernels, timeout=_GRACE)
        for process in descendants:  # workers, and kernels that have not ended
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        log.error("%s: stopped by %s", name, signal.Signals(number).name)
        logging.shutdown()
        clean_up()
        os._exit(128 + number)  # a normal exit would wait for the kernel, which no longer exists

    for number in numbers:
        signal.signal(number, stop)
