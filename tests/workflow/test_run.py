import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from aenmf_lib.workflow import run

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
    taken = b"x" * (600 << 20)
    os._exit(9)
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
    return [sys.executable, "-m", "aenmf_lib.workflow.run", *arguments]


def execute(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    asked = command("execute", "02_train.py", "--report", "out/02_train.ipynb", *arguments)
    return subprocess.run(asked, capture_output=True, text=True, env=os.environ | environment, timeout=60, check=False)


def start(then: str, out: str = "") -> subprocess.Popen[str]:
    asked = command("execute", "02_train.py", "--report", f"{out or then}/02_train.ipynb", "-p", "then", then)
    return subprocess.Popen(asked, stderr=subprocess.PIPE, text=True)


def made() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir())


def outputs(report: Path) -> str:
    cells = json.loads(report.read_text())["cells"]
    return "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))


def test_when_all_cells_pass_there_is_a_report_and_no_failed_one(folder, tmp_path):
    Path("out").mkdir()
    Path("out/02_train.failed.ipynb").write_text("of an earlier run")
    # a kernel of the user's, of the name that everyone uses, in the place that is looked at first
    theirs = tmp_path / "jupyter" / "kernels" / "python3"
    theirs.mkdir(parents=True)
    (theirs / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false", "{connection_file}"], "display_name": "theirs", "language": "python"})
    )
    done = execute("-p", "k", "20", JUPYTER_PATH=str(tmp_path / "jupyter"))
    assert done.returncode == 0, done.stderr
    assert made() == ["02_train.ipynb"]
    said = f"k is 20 in {folder} by {sys.executable}\n"
    assert outputs(Path("out/02_train.ipynb")) == said + "the end\n"
    assert said in done.stderr  # as it runs, too
    assert "02_train [3/3]" in done.stderr


def test_a_failed_run_leaves_what_it_made_under_another_name(folder):
    Path("out").mkdir()
    Path("out/02_train.ipynb").write_text("of an earlier run")
    failed = execute("-p", "then", "error")
    assert failed.returncode == 1
    assert made() == ["02_train.failed.ipynb"]
    assert failed.stderr.endswith(
        "error: 02_train failed: ValueError: bad cells\nlook again\n"
        "As far as it came, with the traceback: out/02_train.failed.ipynb\n"
    )
    assert "Traceback" not in failed.stderr
    assert outputs(Path("out/02_train.failed.ipynb")).startswith("k is 80")


def test_a_run_that_ends_early_has_failed(folder):
    runs = {then: start(then) for then in ("exit", "die")}  # at once: to start a kernel takes seconds
    for then, words in (
        ("exit", "it stopped before its end, with 2 cells to go"),
        ("die", "its process died, most often for want of memory: it had taken 0.7 GiB"),
    ):
        _, said = runs[then].communicate(timeout=60)
        assert runs[then].returncode == 1
        assert words in said
        assert [path.name for path in Path(then).iterdir()] == ["02_train.failed.ipynb"]


def test_a_stopped_run_leaves_no_report_and_no_kernel(folder):
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    runs = {number: start("wait", number.name) for number in signals}
    try:
        for number, runner in runs.items():
            kernel = next(psutil.Process(int(line.split()[1])) for line in runner.stderr if line.startswith("waiting"))
            runner.send_signal(number)
            assert runner.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
            psutil.wait_procs([kernel], timeout=60)
            assert not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE
            assert [path.name for path in Path(number.name).iterdir()] == ["02_train.failed.ipynb"]
    finally:
        for runner in runs.values():
            runner.kill()
            runner.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-p", "kk", "20"), "error: -p: 'kk' is no parameter of 02_train. Did you mean k?\n"),
        (("-p", "k", "1e2"), "error: -p: k: expected int, found '1e2'.\n"),
        (("--params", "cells.yaml"), "error: cells.yaml: k: expected int, found '20' (str)."),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_touched(folder, arguments, words):
    Path("cells.yaml").write_text("k: '20'\n")
    Path("out").mkdir()
    Path("out/02_train.ipynb").write_text("of an earlier run")
    refused = execute(*arguments)
    assert refused.returncode == 1
    assert refused.stderr.startswith(words)
    assert Path("out/02_train.ipynb").read_text() == "of an earlier run"


def test_resolve_writes_a_file_a_notebook_and_leaves_the_unchanged_alone(folder):
    Path("06_benchmarks.py").write_text('# %% tags=["parameters"]\nmax_cells: int = 0\n')
    Path("cells.yaml").write_text("k: 20\nmax_cells: 5\n")
    asked = ["resolve", "--params", "cells.yaml", "--notebooks", "02_train.py", "06_benchmarks.py"]
    asked += ["--out", "out/02_train.yaml", "out/06_benchmarks.yaml"]
    run.main(asked)
    assert Path("out/02_train.yaml").read_text() == "k: 20\n"
    assert Path("out/06_benchmarks.yaml").read_text() == "max_cells: 5\n"
    for file in Path("out").iterdir():
        os.utime(file, (1, 1))
    run.main([*asked, "-p", "max_cells", "6"])
    assert Path("out/02_train.yaml").stat().st_mtime == 1
    assert Path("out/06_benchmarks.yaml").read_text() == "max_cells: 6\n"
    with pytest.raises(SystemExit, match=r"'02_trian' is no notebook. Did you mean 02_train"):
        run.main([*asked, "02_trian.yaml"])


def test_resolve_is_quick_to_start():
    heavy = (
        "import sys, aenmf_lib.run; print([m for m in ('numpy', 'torch', 'papermill', 'jupytext') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", heavy], text=True) == "[]\n"


def test_a_log_file_gets_whole_lines_and_a_bar_now_and_then(monkeypatch):
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
