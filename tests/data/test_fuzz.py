"""Damaged files: each kind of benchmarks/fuzz.py once, and the checks that decide whether an outcome is right."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from fuzzing import judge  # noqa: E402


def test_a_damaged_file_of_each_kind_is_read_right_or_refused_clearly():
    words = [sys.executable, str(ROOT / "benchmarks/fuzz.py"), "--quick"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 anything else" in done.stdout


def raised(text: str, kind: type[Exception] = ValueError, *, by: str = "/x/aenmf_lib/data/files.py") -> Exception:
    """Return an error that was raised in the file `by`."""
    try:
        exec(compile("raise kind(text)", by, "exec"), {"kind": kind, "text": text})
    except kind as error:
        return error
    raise AssertionError


CLEAR = "data/cells.h5ad is damaged: X cannot be read. Download or write it again."


def test_a_message_with_file_fault_and_advice_is_clear():
    assert not judge.unclear(raised(CLEAR), "cells.h5ad")


@pytest.mark.parametrize(
    "error, reason",
    [
        (raised(CLEAR, KeyError), "a KeyError is raised"),
        (raised(CLEAR, by="/x/site-packages/h5py/_hl/files.py"), "not caught"),
        (raised("X cannot be read. Download it again."), "does not name the file"),
        (raised("data/cells.h5ad: X cannot be read."), "no advice"),
        (raised(f"{CLEAR}\n{CLEAR}"), "more than one paragraph"),
        (raised(f"{CLEAR} \x1b[31m"), "control characters"),
        (raised(CLEAR + "x" * 2000), "characters"),
        (raised(f"<HDF5 file> {CLEAR}"), "<HDF5"),
    ],
)
def test_a_message_that_lacks_something_is_not_clear(error, reason):
    assert reason in judge.unclear(error, "cells.h5ad")


@pytest.mark.parametrize(
    "code, end",
    [("os.kill(os.getpid(), 11)", "SIGSEGV"), ("time.sleep(60)", "no answer after"), ("os._exit(3)", "exit status 3")],
)
def test_a_worker_that_crashes_hangs_or_ends_is_reported(code, end):
    words = (
        "import os, sys, time; sys.path.insert(0, 'benchmarks'); from fuzz import in_process; "
        f"print(in_process(lambda: {code}, seconds=2)[1])"
    )
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert end in done.stdout


def test_code_that_runs_and_files_that_are_written_are_noticed(tmp_path):
    (tmp_path / "judged.py").write_text(f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from fuzzing.judge import Watch, read_all

def write(path, min_cells):
    open(path.parents[1] / "escaped", "w").close()
    raise ValueError

def call(path, min_cells):
    os.system("true")
    raise ValueError

folder = Path({str(tmp_path)!r}) / "case"
folder.mkdir()
watch = Watch(folder)
for reader in (write, call):
    options = dict(content="counts", min_cells=1, valid=False, strict=False, watch=watch)
    print(read_all(folder / "cells.h5ad", {{"reader": reader}}, {{}}, **options))
""")
    done = subprocess.run([sys.executable, tmp_path / "judged.py"], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "wrote" in first and "escaped" in first
    assert "os.system" in second
