"""Running a notebook, and the command line."""

import errno
import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from aenmf_lib import results
from aenmf_lib.results import skipping
from aenmf_lib.workflow import cli, run
from aenmf_lib.workflow.lock import only_one

NOTEBOOK = """\
# %% [markdown]
# # A notebook
# %% tags=["parameters"]
k: int = 80  # programs
then: str = ""  # what happens
# %%
import os, sys, time
print("k is", k, "in", os.getcwd(), "by", sys.executable)
# %%
# how it ends
if then == "error":
    raise ValueError("bad cells\\nlook again")
if then == "exit":
    sys.exit(0)
if then == "die":
    taken = b"x" * (650 << 20)
    os._exit(9)
if then == "skip":
    class Skipped(Exception): pass
    raise Skipped("one donor only")
if then == "full":
    raise OSError(28, "No space left on device", "out/cells.h5ad")
if then == "hdf5":
    raise RuntimeError("Can't write data (file write failed, errno = 28, error message = 'No space left on device')")
if then == "memory":
    raise MemoryError("Unable to allocate 3.64 TiB for an array")
if then == "settings":
    import matplotlib, pandas, torch
    print("dtype", torch.get_default_dtype(), "strings", pandas.options.future.infer_string)
    print("path", [path for path in sys.path if "mine" in path], "font size", matplotlib.rcParams["font.size"])
    print("variables", [name for name in os.environ if name.startswith(("PYTHONPATH", "PANDAS", "ANNDATA"))])
if then == "wait":
    print("waiting", os.getpid(), flush=True)
    time.sleep(60)
# %%
print("the end")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "02_train.py").write_text(NOTEBOOK)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "aenmf_lib", *arguments]


def execute(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = command("execute", "02_train.py", "--report", "out/02_train.ipynb", *arguments)
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | environment, timeout=60, check=False)


def start(then: str, out: str = "") -> subprocess.Popen[str]:
    words = command("execute", "02_train.py", "--report", f"{out or then}/02_train.ipynb", "-p", "then", then)
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=restore_sigint)


def restore_sigint() -> None:
    """Reset SIGINT, because a test suite in the background ignores it and its child processes inherit this."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def made() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir())


def outputs(report: Path) -> str:
    cells = json.loads(report.read_text())["cells"]
    return "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))


def test_a_run_that_passes_leaves_only_the_report(folder, tmp_path):
    Path("out").mkdir()
    Path("out/02_train.failed.ipynb").write_text("of an earlier run")
    # a kernel of the user with the common name, in the folder that Jupyter searches first
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false", "{connection_file}"], "display_name": "other", "language": "python"})
    )
    done = execute("-p", "k", "20", JUPYTER_PATH=str(tmp_path / "jupyter"))
    assert done.returncode == 0, done.stderr
    assert made() == ["02_train.ipynb"]
    text = f"k is 20 in {folder} by {sys.executable}\n"
    assert not [path for path in Path("out").iterdir() if path.name.startswith(".")]
    assert outputs(Path("out/02_train.ipynb")) == text + "the end\n"
    assert text in done.stderr  # as it runs, too
    assert "02_train [3/3]" in done.stderr


def test_a_run_that_fails_leaves_only_the_failed_notebook(folder):
    Path("out").mkdir()
    Path("out/02_train.ipynb").write_text("of an earlier run")
    failed = execute("-p", "then", "error")
    assert failed.returncode == 1
    assert made() == ["02_train.failed.ipynb"]
    assert failed.stderr.endswith(
        "error: 02_train failed: ValueError: bad cells\nlook again\n"
        "The cells run so far, with the traceback: out/02_train.failed.ipynb\n"
    )
    assert "Traceback" not in failed.stderr
    assert outputs(Path("out/02_train.failed.ipynb")).startswith("k is 80")


def test_a_run_that_exits_or_dies_has_failed(folder):
    runs = {then: start(then) for then in ("exit", "die")}  # in parallel: starting a kernel takes seconds
    for then, message in (
        ("exit", "it stopped before its end, with 2 cells left"),
        ("die", "its process died, most often because memory ran out: it had used 0.7 GiB"),
    ):
        _, output = runs[then].communicate(timeout=60)
        assert runs[then].returncode == 1
        assert message in output
        assert [path.name for path in Path(then).iterdir()] == ["02_train.failed.ipynb"]


def read_until_waiting(runner: subprocess.Popen[str]) -> psutil.Process:
    """Return the kernel of a run, once it waits."""
    output = ""
    while not (line := runner.stderr.readline()).startswith("waiting"):
        output += line
        assert line, output  # the run ended before it waited
    return psutil.Process(int(line.split()[1]))


def ended(process: psutil.Process) -> bool:
    psutil.wait_procs([process], timeout=60)
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_no_report_and_no_kernel(folder, number):
    runner, killed = start("wait", number.name), number == signal.SIGKILL
    try:
        kernel = read_until_waiting(runner)
        assert (Path(number.name) / "02_train.running.ipynb").exists()
        runner.send_signal(number)
        assert runner.wait(60) == (-number if killed else 128 + number)
        assert ended(kernel)
        left = [".02_train.lock", "02_train.running.ipynb"] if killed else ["02_train.failed.ipynb"]
        assert sorted(path.name for path in Path(number.name).iterdir()) == left
    finally:
        runner.kill()
        runner.stderr.close()


def test_a_run_is_refused_while_another_one_runs_and_resumes_after_its_end(folder):
    runner = start("wait", "out")
    try:
        kernel = read_until_waiting(runner)
        refused = execute()
        assert refused.returncode == 1
        assert f"error: 02_train is already being run by process {runner.pid} of user " in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert kernel.is_running()
        runner.kill()
        runner.wait()
        assert execute().returncode == 0  # the system released the lock
        assert made() == ["02_train.ipynb"]
    finally:
        runner.kill()
        runner.stderr.close()


def test_a_run_ends_with_the_make_that_started_it(folder):
    Path("Makefile").write_text(
        f"all:\n\texec {' '.join(command('execute'))} 02_train.py --report out/02_train.ipynb -p then wait\n"
    )
    make = subprocess.Popen(["make"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        kernel = read_until_waiting(make)
        make.kill()
        make.wait()
        done = execute()  # waits until the other one has ended
        assert done.returncode == 0, done.stderr
        assert ended(kernel)
    finally:
        make.kill()
        make.stderr.close()


def test_a_file_system_without_locks_is_used_with_a_warning(folder, monkeypatch, caplog):
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_one(Path("out/02_train.ipynb")):
        pass
    assert "out has no file locks. Run make only once at a time" in caplog.text
    assert made() == []


def test_a_skipped_notebook_has_passed(folder):
    done = execute("-p", "then", "skip")
    assert done.returncode == 0, done.stderr
    assert "02_train: skipped: one donor only\n" in done.stderr
    assert made() == ["02_train.ipynb"]


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("full", "OSError: No space left on device: out/cells.h5ad. Free some space on this disk"),
        ("hdf5", "RuntimeError: Can't write data .* 'No space left on device'.. Free some space on this disk"),
        ("memory", "MemoryError: Out of memory: Unable to allocate 3.64 TiB for an array. Use a machine with more"),
    ],
)
def test_an_error_of_the_system_in_a_cell_is_one_line_with_the_remedy(folder, then, message):
    failed = execute("-p", "then", then)
    assert failed.returncode == 1
    line, rest = failed.stderr[failed.stderr.index("error:") :].split("\n", 1)
    assert re.match(f"error: 02_train failed: {message}", line.replace("'out/cells.h5ad'", "out/cells.h5ad")), line
    assert rest == "The cells run so far, with the traceback: out/02_train.failed.ipynb\n"


@pytest.mark.parametrize("place", ["", "jupytext"])
def test_a_report_that_cannot_be_written_is_one_line_with_the_remedy(folder, place):
    if place:
        limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400)); "
        code = f"{limit}import sys; from aenmf_lib.workflow import cli; cli.main(sys.argv[1:])"
        words = [sys.executable, "-c", code, "execute", "02_train.py", "--report", "out/02_train.ipynb"]
        message = "File too large: out/02_train.running.ipynb.*ulimit -f"
    else:
        Path("out").write_text("a file")
        words = command("execute", "02_train.py", "--report", "out/02_train.ipynb")
        message = "File exists: out|Not a directory: out"
    failed = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 1
    assert re.fullmatch(f"error: 02_train failed: .*({message}).*\n", failed.stderr), failed.stderr


def test_settings_of_the_user_do_not_reach_a_kernel(folder, tmp_path):
    startup = tmp_path / "ipython/profile_default/startup/00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text(
        "import pandas, torch\npandas.options.future.infer_string = True\ntorch.set_default_dtype(torch.float64)\n"
    )
    (tmp_path / "ipython/profile_default/ipython_config.py").write_text("c.InteractiveShellApp.exec_lines = ['1/0']\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/sitecustomize.py").write_text(startup.read_text())
    (tmp_path / "matplotlibrc.mine").write_text("font.size: 3\n")
    settings = {
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONPATH": str(tmp_path / "mine"),
        "PYTHONSTARTUP": str(startup),
        "MATPLOTLIBRC": str(tmp_path / "matplotlibrc.mine"),
        "PANDAS_FUTURE_INFER_STRING": "1",
        "ANNDATA_ALLOW_WRITE_NULLABLE_STRINGS": "1",
    }
    done = execute("-p", "then", "settings", **settings)
    assert done.returncode == 0, done.stderr
    assert outputs(Path("out/02_train.ipynb")).splitlines()[1:-1] == [
        "dtype torch.float32 strings False",
        "path [] font size 10.0",
        "variables []",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "kk", "20"), "error: Unknown parameter kk. Did you mean k? Valid parameters: k, then.\n"),
        (("-p", "k", "1e2"), "error: k: expected int, found '1e2' (str). Write a value of this type.\n"),
        (("--params", "cells.yaml"), "error: cells.yaml: k: expected int, found '20' (str)."),
    ],
)
def test_wrong_parameters_are_refused_before_the_report_is_touched(folder, arguments, message):
    Path("cells.yaml").write_text("k: '20'\n")
    Path("out").mkdir()
    Path("out/02_train.ipynb").write_text("of an earlier run")
    refused = execute(*arguments)
    assert refused.returncode == 1
    assert refused.stderr.startswith(message)
    assert Path("out/02_train.ipynb").read_text() == "of an earlier run"


def test_resolve_writes_one_file_per_notebook_and_keeps_unchanged_files(folder):
    Path("06_benchmarks.py").write_text('# %% tags=["parameters"]\nmax_cells: int = 0\n')
    Path("cells.yaml").write_text("k: 20\nmax_cells: 5\n")
    words = ["resolve", "--params", "cells.yaml", "--notebooks", "02_train.py", "06_benchmarks.py"]
    words += ["--out", "out/02_train.yaml", "out/06_benchmarks.yaml"]
    cli.main(words)
    assert Path("out/02_train.yaml").read_text() == "k: 20\n"
    assert Path("out/06_benchmarks.yaml").read_text() == "max_cells: 5\n"
    for file in Path("out").iterdir():
        os.utime(file, (1, 1))
    cli.main([*words, "-p", "max_cells", "6"])
    assert Path("out/02_train.yaml").stat().st_mtime == 1
    assert Path("out/06_benchmarks.yaml").read_text() == "max_cells: 6\n"
    with pytest.raises(SystemExit, match=r"Unknown notebook 02_trian in --out 02_trian.yaml. Did you mean 02_train"):
        cli.main([*words, "02_trian.yaml"])


def test_the_command_line_imports_nothing_heavy():
    heavy = "numpy torch scanpy papermill jupytext yaml".split()
    code = f"import sys, aenmf_lib.workflow.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_variables_of_make_are_checked_without_the_packages_of_the_environment(folder):
    Path("01_filter.py").write_text('# %% tags=["parameters"]\nmin_cells: int = 5\n')
    words = [
        "-S",
        "-m",
        "aenmf_lib",
        "resolve",
        "--notebooks",
        "01_filter.py",
        "--valid",
        "K",
        "MIN_CELLS",
        "--variables",
    ]
    root = {"PYTHONPATH": str(Path(__file__).parents[2])}
    for variable, message in (
        ("MIN_CELLS=x", "MIN_CELLS: expected int, found 'x'"),
        ("KK=3", "Unknown variable KK. Did you mean K?"),
    ):
        refused = subprocess.run(
            [sys.executable, *words, variable], env=root, capture_output=True, text=True, check=False
        )
        assert refused.stderr.startswith(f"error: {message}")
    assert subprocess.run([sys.executable, *words, "MIN_CELLS=7"], env=root, check=False).returncode == 0


def test_every_command_is_documented(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    for name in ("resolve", "execute", "score", "sum", "merge", "simulate", "check", "preflight", "compile"):
        assert f"    {name}" in shown


@pytest.mark.parametrize(
    "arguments",
    [("sum", "none.h5ad", "--shard", "0", "2", "--out", "x.npz"), ("merge", "none.h5ad", "x.npz", "--out", "y.npz")],
)
def test_a_missing_file_ends_a_command_with_one_line(folder, arguments):
    with pytest.raises(SystemExit, match=r"^error: [^\n]*none.h5ad[^\n]*$"):
        cli.main(arguments)


def test_simulate_writes_cells_that_check_refuses(folder, capsys):
    cli.main(["simulate", "demo.h5ad"])
    assert Path("demo.h5ad").is_file()
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", "demo.h5ad"])
    assert ended.value.code == 1
    assert capsys.readouterr().out.startswith("demo.h5ad: is not a results file")


def test_a_skipped_model_has_no_scores_and_is_done(folder, tiny):
    with pytest.raises(results.Skipped):
        skipping.skip("cae_nmf1_k5.h5ad", "CAE_NMF1", tiny, "one donor only")
    Path("06_benchmarks.py").write_text('# %% tags=["parameters"]\nmax_cells: int = 0\n')
    words = [
        "--label",
        "donor_id",
        "--seed",
        "42",
        "--notebook",
        "06_benchmarks.py",
        "--cache",
        "x.csv",
        "--done",
        "x.done",
    ]
    cli.main(["score", "cae_nmf1_k5.h5ad", *words])
    assert Path("x.done").is_file()
    assert not Path("x.csv").exists()


def test_a_log_file_gets_whole_lines_and_few_states_of_a_progress_bar(monkeypatch):
    now = iter([0.0, 1.0, 2.0, 3.0, 14.0, 15.0, 16.0, 30.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    log = run.LogStream(stream, every=10.0)
    pieces = ["one li", "ne\n", "\r 1%", "\r 2%", "\r 3%", "\r100%\n", "\r\r 1%"]
    seen = []
    for piece in pieces:
        log.write(piece)
        seen.append(stream.getvalue())
        stream.seek(0)
        stream.truncate()
    assert seen == ["", "one line\n", "", " 2%\n", "", "100%\n", " 1%\n"]
