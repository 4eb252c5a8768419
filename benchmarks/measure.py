"""Measure time and memory of tasks, each run in its own process, and collect the runs in one table.

A separate process makes peak memory and CPU time those of the run, and no run warms up the caches of another. Tasks
that are compared run in turn (a b c, a b c, …), so that a busy machine slows all of them: trust the ratios within a
table more than the seconds.
"""

import contextlib
import ctypes
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from aenmf_lib.data.tables import read_table

RESULTS = Path(__file__).parent / "results"


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Fill a dictionary with seconds, CPU seconds and peak memory (MiB above the start) of the block."""
    found: dict[str, float] = {}
    ctypes.CDLL(None).malloc_trim(0)  # memory freed before would hide what the block uses
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, wall, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    yield found
    found |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    found["peak_mib"] = _memory("VmHWM") - before


def _memory(name: str) -> float:
    """Return an entry of /proc/self/status in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def run_in_process(task: Callable[..., dict], *args, limit: float | None = None) -> dict:
    """Run a task in a new process and return its result; after `limit` seconds kill it and return that as its stop."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, task, args))
    process.start()
    sender.close()
    if not receiver.poll(limit):
        process.kill()
        process.join()
        return {"stop": f"killed after {limit:g} s"}
    try:
        found = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{task.__name__}{args} ended with exit code {process.exitcode}.") from None
    process.join()
    return found


def _send(pipe, task: Callable[..., dict], args: tuple) -> None:
    pipe.send(task(*args))


def run_in_turn(
    name: str,
    task: Callable[..., dict],
    rows: list[dict],
    *,
    runs: int,
    limit: float | None = None,
    keep: bool = False,
    device: str = "cpu",
) -> pd.DataFrame:
    """Run `task(**row)` for each row in turn, `runs` times, and return the table, also written after every run.

    The table is ``results/<name>.csv``. With `keep`, its rows of other tasks are kept.
    """
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    done = read_table(path).to_dict("records") if keep and path.exists() else []
    done = [old for old in done if not any(all(str(old.get(key)) == str(row[key]) for key in row) for row in rows)]
    for run, row in tqdm([(run, row) for run in range(runs) for row in rows], desc=name):
        done.append({**row, "run": run, **run_in_process(_call, task, row, limit=limit), **machine(device)})
        pd.DataFrame(done).to_csv(path, index=False, float_format="%.6g")
    return pd.DataFrame(done)


def _call(task: Callable[..., dict], row: dict) -> dict:
    return task(**row)


def machine(device: str = "cpu") -> dict[str, str]:
    """Return the machine and the date of a measurement."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else platform.machine()
    name = f"{os.cpu_count()} cores, {model[0].partition(': ')[2]}, {vectors}"
    if device != "cpu":
        name = f"{torch.cuda.get_device_name(device)}; {name}"
    return {"machine": name, "date": date.today().isoformat()}
