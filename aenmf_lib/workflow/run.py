"""Execute a notebook: with parameters that it takes, by this interpreter; all its cells pass or there is no report.

``resolve`` writes what each notebook is given, and touches a file only when its content changes: make depends on these.
``execute`` runs one notebook.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from aenmf_lib.workflow import parameters

log = logging.getLogger(__name__)
GRACE = 20  # seconds that a kernel has to end by itself; Slurm by default gives 30 to all


class RunError(RuntimeError):
    """A notebook that did not pass; the text is for the user."""


class LogStream:
    """Output as a log file wants it: whole lines, and of a progress bar a state every so many seconds."""

    def __init__(self, stream: TextIO, every: float = 10.0) -> None:
        self.stream, self.every, self.rest, self.last = stream, every, "", time.monotonic()
        self.flush = stream.flush

    def write(self, text: str) -> None:
        """Take the next piece of output, in which a carriage return begins a bar's next state."""
        *lines, self.rest = (self.rest + text).split("\n")
        states = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
        now = time.monotonic()
        if "\r" in self.rest and now - self.last > self.every:
            states.append(self.rest.rpartition("\r")[2])
            self.rest, self.last = "\r", now
        self.stream.writelines(state + "\n" for state in states)


def _end_on_signal(what: str) -> None:
    """See to it that no kernel outlives this process; what ignores a signal (nohup) goes on ignoring it."""
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]

    def end(number: int, frame: object) -> None:
        import psutil

        for other in numbers:  # a second signal must not break the cleaning up after the first
            signal.signal(other, signal.SIG_IGN)
        kernel, all_ = psutil.Process().children(), psutil.Process().children(recursive=True)
        for child in kernel:  # a fit writes its state
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        psutil.wait_procs(kernel, timeout=GRACE)
        for child in all_:  # its workers, and what has not ended
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        log.error("%s: stopped by %s", what, signal.Signals(number).name)
        logging.shutdown()
        os._exit(128 + number)  # an ordinary exit waits for the kernel, which is gone

    for number in numbers:
        signal.signal(number, end)


def _most_memory() -> str:
    """Tell the most memory that one of the processes had which this one has started and seen end."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**30:.1f} GiB"


def execute(notebook: Path, values: dict[str, Any], report: Path) -> None:
    """Run a notebook in the current directory, by this interpreter.

    Parameters
    ----------
    notebook
        Percent script.
    values
        Its parameters, as ``parameters.effective`` gives them.
    report
        The executed notebook. While it runs, and if it fails, there is ``NAME.failed.ipynb`` instead.

    Raises
    ------
    RunError
        A cell failed, the notebook stopped before its end, or its process died.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # an optional part of jsonschema: 0.8 s to import, not needed here
    import jupytext
    import papermill
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError

    class Kernel(AsyncKernelManager):
        def _kernel_spec_manager_default(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[])  # a user's own kernelspec `python3` must not win

    source = jupytext.read(notebook)
    code = [c.source for c in source.cells if c.cell_type == "code" and "parameters" not in c.metadata.get("tags", [])]

    def announce(cell: Any, cell_index: int) -> None:
        if cell.source in code:  # not so are the cells of parameters
            lines = (line for line in cell.source.splitlines() if line.strip() and not line.startswith("#"))
            log.info("%s [%d/%d] %s", notebook.stem, code.index(cell.source) + 1, len(code), next(lines, "")[:80])

    failed = report.with_suffix(".failed.ipynb")
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)  # there is a report only if the last run passed
    jupytext.write(source, failed)
    logging.getLogger("papermill").setLevel(logging.WARNING)
    stream = sys.stderr if sys.stderr.isatty() else LogStream(sys.stderr)
    began = time.monotonic()
    try:
        done = papermill.execute_notebook(
            str(failed),
            str(failed),
            values,
            kernel_name="python3",
            language="python",
            kernel_manager_class=Kernel,
            extra_arguments=["--log-level=CRITICAL"],  # it warns that 127.0.0.1 is not encrypted, and of its own end
            on_cell_execute=announce,
            coalesce_streams=True,  # of a progress bar the report keeps the last state
            progress_bar=False,
            stdout_file=stream,
            stderr_file=stream,
        )
    except papermill.PapermillExecutionError as error:
        what = f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        what = f"its process died, most often for want of memory: it had taken {_most_memory()}"
    else:  # to papermill a sys.exit(0) in a cell is no error
        left = sum(c.cell_type == "code" and c.metadata.papermill.status != "completed" for c in done.cells)
        if not left:
            failed.replace(report)
            seconds = time.monotonic() - began
            log.info("%s: done in %.0f s, in %s: %s", notebook.stem, seconds, _most_memory(), report)
            return
        what = f"it stopped before its end, with {left} cells to go"
    raise RunError(f"{notebook.stem} failed: {what}\nAs far as it came, with the traceback: {failed}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m aenmf_lib.run", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--params", type=Path, metavar="FILE.yaml")
    common.add_argument("-p", dest="overrides", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    commands = parser.add_subparsers(dest="command", required=True)
    resolve = commands.add_parser("resolve", parents=[common], help="write what each notebook is given")
    resolve.add_argument("--notebooks", type=Path, nargs="+", required=True, help="all that a value may be meant for")
    resolve.add_argument("--out", type=Path, nargs="+", required=True, help="NOTEBOOK.yaml, in whichever folders")
    one = commands.add_parser("execute", parents=[common], help="run one notebook")
    one.add_argument("notebook", type=Path)
    one.add_argument("--report", type=Path, required=True, metavar="OUT.ipynb")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        notebooks = [chosen.notebook] if chosen.command == "execute" else chosen.notebooks
        values = parameters.resolve(notebooks, chosen.params, chosen.overrides)
        if chosen.command == "execute":
            _end_on_signal(chosen.notebook.stem)
            execute(chosen.notebook, values[chosen.notebook.stem], chosen.report)
            return
        for file in chosen.out:
            parameters.require_known(file.stem, values, f"--out {file}", "notebook")
        for file in chosen.out:
            parameters.write(file, values[file.stem])
    except (parameters.ParameterError, RunError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
