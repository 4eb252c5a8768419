"""Full disks, read-only folders, kills and two runs at once: one message, nothing half-written, the next run works."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

NOTEBOOK = """\
# %% [markdown]
# # A notebook that writes its result in two parts
# %% tags=["parameters"]
out: str = ""  # the result
size: int = 0  # its size in KiB
wait: float = 0.0  # seconds between its parts
# %%
import os, time
from pathlib import Path
from aenmf_lib.data.files import atomic
with atomic(out) as partial, partial.open("wb") as file:
    file.write(b"x" * 512 * size)
    file.flush()
    print("half written by", os.getpid(), flush=True)
    time.sleep(wait)
    file.write(b"x" * 512 * size)
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "02_write.py").write_text(NOTEBOOK)
    return tmp_path


@contextlib.contextmanager
def disk(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def start(size: int = 4, wait: float = 0.0) -> subprocess.Popen[str]:
    """Run the notebook, as make does."""
    values = [("out", "results/out.bin"), ("size", size), ("wait", wait)]
    words = [sys.executable, "-m", "aenmf_lib", "execute", "02_write.py", "--report", "results/02_write.ipynb"]
    words += [str(word) for pair in values for word in ("-p", *pair)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def half_written(process: subprocess.Popen[str]) -> int:
    """Wait until half of the result is written. Return the process of the kernel."""
    while "half written by" not in (line := process.stdout.readline()):
        assert line, "the notebook ended early"
    return int(line.split()[-1])


def the_one_error(said: str) -> str:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said, said
    return errors[0]


def names() -> list[str]:
    return sorted(path.name for path in Path("results").iterdir())


def assert_the_next_run_passes() -> None:
    status, said = finish(start())
    assert status == 0, said
    assert names() == ["02_write.ipynb", "out.bin"]
    assert Path("results/out.bin").stat().st_size == 4096
    assert json.loads(Path("results/02_write.ipynb").read_text())["cells"]


def ended(pid: int, seconds: float = 30) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        psutil.Process(pid).wait(seconds)
    return not psutil.pid_exists(pid)


@needs_root
@pytest.mark.parametrize("size, free", [(2000, "1M"), (4, "8k")], ids=["for the result", "for the report"])
def test_a_full_disk_ends_in_one_line_that_says_what_to_do(folder, size, free):
    with disk(Path("results"), free):
        status, said = finish(start(size))
        assert status == 1
        assert "No space left on device" in (error := the_one_error(said)) and "Free some space" in error
        assert "out.bin" not in "".join(names())  # neither the result nor a part of it
        subprocess.run(["mount", "-o", "remount,size=16M", "results"], check=True)
        assert_the_next_run_passes()


@needs_root
def test_a_read_only_folder_ends_in_one_line_that_says_what_to_do(folder):
    with disk(Path("results"), "1M"):
        subprocess.run(["mount", "-o", "remount,ro", "results"], check=True)
        status, said = finish(start())
        assert status == 1
        assert "Read-only file system" in (error := the_one_error(said)) and "Work in a clone" in error


def test_after_a_kill_of_the_runner_its_kernel_ends_and_the_next_run_passes(folder):
    process = start(wait=60)
    kernel = half_written(process)
    process.kill()
    process.wait()
    assert ended(kernel)
    assert "out.bin" not in names() and "02_write.ipynb" not in names()
    assert_the_next_run_passes()


def test_after_a_kill_of_the_kernel_the_runner_says_so(folder):
    process = start(wait=60)
    os.kill(half_written(process), signal.SIGKILL)
    status, said = finish(process)
    assert status == 1 and "its process died" in the_one_error(said)
    assert "out.bin" not in names()


def test_after_a_kill_of_all_processes_the_next_run_passes(folder):
    process = start(wait=60)
    for pid in (half_written(process), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert "out.bin" not in names()
    assert_the_next_run_passes()


def test_of_two_runs_at_once_the_second_says_that_the_first_is_running(folder):
    first = start(wait=4)
    half_written(first)
    status, said = finish(start())
    assert status == 1 and "already being run by process" in the_one_error(said)
    assert finish(first)[0] == 0
    assert names() == ["02_write.ipynb", "out.bin"]


def test_little_memory_ends_in_one_line(folder):
    import resource

    (folder / "02_write.py").write_text(NOTEBOOK + "import numpy as np\nnp.ones((size << 40,))\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, hard))
    try:
        status, said = finish(start())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert status == 1 and "Out of memory" in the_one_error(said)


def test_a_lock_left_by_a_killed_run_does_not_stop_the_next(folder):
    Path("results").mkdir()
    Path("results/.02_write.lock").write_text("no process")
    assert_the_next_run_passes()
