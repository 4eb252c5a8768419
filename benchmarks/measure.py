"""How is anything measured here? Each run in a process of its own, one after the other in turn, into one table.

A process of its own makes peak memory and CPU time those of the run, and no run warms another's caches. Running in
turn (a b c, a b c, …) lets a busy machine slow all alike: trust ratios between rows of one table, not seconds.
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

RESULTS = Path(__file__).parent / "results"


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Fill a dictionary with the seconds, CPU seconds and peak memory (MiB over what there was) of the block."""
    found: dict[str, float] = {}
    ctypes.CDLL(None).malloc_trim(0)  # memory freed before would hide what the block takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, wall, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    yield found
    found |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    found["peak_mib"] = _memory("VmHWM") - before


def _memory(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def alone(task: Callable[..., dict], *args, limit: float | None = None) -> dict:
    """Run a task in a new process and give what it returns; after `limit` seconds it is killed, which is told."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, task, args))
    process.start()
    there.close()
    if not here.poll(limit):
        process.kill()
        process.join()
        return {"stop": f"killed after {limit:g} s"}
    try:
        found = here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{task.__name__}{args} ended with exit code {process.exitcode}") from None
    process.join()
    return found


def _send(pipe, task: Callable[..., dict], args: tuple) -> None:
    pipe.send(task(*args))


def in_turn(
    name: str,
    task: Callable[..., dict],
    rows: list[dict],
    *,
    runs: int,
    limit: float | None = None,
    keep: bool = False,
    device: str = "cpu",
) -> pd.DataFrame:
    """Run `task(**row)` for each row in turn, `runs` times over; write and give the table ``results/<name>.csv``.

    The table is written after every run. With `keep`, rows already there stay: those of other settings.
    """
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    done = pd.read_csv(path).to_dict("records") if keep and path.exists() else []
    for run, row in tqdm([(run, row) for run in range(runs) for row in rows], desc=name):
        done.append({**row, "run": run, **alone(_call, task, row, limit=limit), **machine(device)})
        pd.DataFrame(done).to_csv(path, index=False, float_format="%.6g")
    return pd.DataFrame(done)


def _call(task: Callable[..., dict], row: dict) -> dict:
    return task(**row)


def machine(device: str = "cpu") -> dict[str, str]:
    """Say on what, and when."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else platform.machine()
    told = f"{os.cpu_count()} cores, {model[0].partition(': ')[2]}, {vectors}"
    if device != "cpu":
        told = f"{torch.cuda.get_device_name(device)}; {told}"
    return {"machine": told, "date": date.today().isoformat()}
