"""Damage valid files in many ways and read each with the library.

    python benchmarks/fuzz.py --h5ad 1000 --zarr 200 --seed 0     # some minutes; writes benchmarks/results/fuzz.csv
    python benchmarks/fuzz.py --only h5ad:123 --seed 0            # one file, with tracebacks; --keep keeps the file

Each file is read in a process of its own, with limited time and memory. There are four outcomes: the right result (the
values of the undamaged file); a clear error (the library names the file, the problem and the remedy); an undetectable
change (the damaged file is valid, and anndata reads the same changed values); anything else. The exit status is 1 if
there is anything else.
"""

import argparse
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from fuzzing import byte_damage, element_damage, judge, matrix_damage, text_damage, zarr_damage  # noqa: F401
from fuzzing.bases import MIN_CELLS, Base, write_bases
from fuzzing.judge import ORDER, RIGHT, WRONG
from fuzzing.kinds import KINDS, Kind, NotApplicableError
from fuzzing.readers import READERS

_SECONDS, _MEMORY = 60, 2 << 30  # limits for one file
_RESULTS = Path(__file__).parent / "results"


def in_process(task: Callable[[], object], log: Path | None = None, seconds: float = _SECONDS) -> tuple[object, str]:
    """Run a task in a forked process. Return its result, and how the process ended if it has none."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if not pid:
        os.setsid()
        if log:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1), os.dup2(out, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = 1
        try:
            answer = pickle.dumps(task())
            with os.fdopen(sender, "wb") as pipe:
                pipe.write(answer)
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    os.close(sender)
    answer, end = b"", time.monotonic() + seconds
    with os.fdopen(receiver, "rb") as pipe:
        while True:
            if not select.select([pipe], [], [], max(end - time.monotonic(), 0))[0]:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return None, f"no answer after {seconds} s"
            part = os.read(pipe.fileno(), 1 << 16)
            if not part:
                break
            answer += part
    _, status = os.waitpid(pid, 0)
    if answer and not status:
        return pickle.loads(answer), ""
    code = os.waitstatus_to_exitcode(status)
    return None, f"the process died: {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"


def _limit_memory() -> None:
    """Let this process use a limited amount of memory more than now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY, now + _MEMORY))


def _peak_growth(before: float) -> int:
    """Return the growth of the peak memory of this process in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)


def _try_cells(folder: Path, base: Base, kind: Kind, number: list[int]) -> dict:
    """Damage a copy of a valid file and read it."""
    os.chdir(folder)
    rng, path = np.random.default_rng(number), folder / f"cells{base.path.suffix}"
    (shutil.copytree if base.path.is_dir() else shutil.copy)(base.path, path)
    try:
        with warnings.catch_warnings(action="ignore"):
            what = kind.damage(path, base, rng)
        (folder / "worker.damage").write_text(what)
    except NotApplicableError:
        return {"skipped": True}
    _limit_memory()
    watch, start = judge.Watch(folder), time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    outcome, notes = judge.read_all(
        path, READERS[base.content], base.truth, content=base.content, min_cells=MIN_CELLS, valid=kind.valid,
        strict=kind.strict, watch=watch,
    )  # fmt: skip
    return {"outcome": outcome, "damage": what, "notes": notes, "seconds": time.monotonic() - start,
            "mib": _peak_growth(before)}  # fmt: skip


def _try_text(folder: Path, target: str, damage: str, number: list[int]) -> dict:
    """Write a damaged file of another kind and read it."""
    os.chdir(folder)
    rng = np.random.default_rng(number)
    read = text_damage.TARGETS[target].read
    (folder / "valid").mkdir()
    (folder / "valid/03_train_ae_nmf.py").write_text(text_damage._NOTEBOOK)
    valid = folder / "valid" / text_damage.TARGETS[target].file
    valid.write_bytes(text_damage.TARGETS[target].content)
    expected = read(valid)
    path = text_damage.write(folder, target, damage, rng)
    _limit_memory()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.monotonic()
    try:
        found = read(path)
    except BaseException as error:  # noqa: BLE001, whatever the library raises is judged
        reason = judge.unclear(error, path.name)
        outcome, notes = WRONG if reason else judge.CLEAR, f"{reason} — {type(error).__name__}: {str(error)[:500]}"
        if os.environ.get("FUZZ_TRACEBACK"):
            traceback.print_exception(error)
    else:
        outcome, notes = RIGHT, ""
        if found != expected:
            outcome, notes = judge.compare_text(path, found, text_damage.TARGETS[target].plain)
    if (folder / "executed").exists():
        outcome, notes = WRONG, "code in the file was run"
    return {"outcome": outcome, "damage": damage, "notes": notes, "seconds": time.monotonic() - start,
            "mib": _peak_growth(before)}  # fmt: skip


class Fuzzer:
    """All cases of a seed, by suite and number."""

    def __init__(self, scratch: Path, seed: int, *, keep: bool = False) -> None:
        self.scratch, self.seed, self.keep, self.bases = scratch, seed, keep, {}

    def prepare(self, suite: str) -> list[str]:
        """Write the valid files of a suite. Return those that the library does not read as expected."""
        if suite == "other":
            return []
        bases, fault = in_process(
            lambda: write_bases(self.scratch / "bases", suite, self.seed), self.scratch / "bases.log", seconds=600
        )
        if fault:
            said = (self.scratch / "bases.log").read_text(errors="replace").strip()[-2000:]
            sys.exit(f"error: the valid {suite} files could not be written: {fault}. Run the tests first.\n{said}")
        self.bases[suite] = bases
        undamaged = Kind("undamaged", lambda path, base, rng: "nothing", (suite,), (), valid=True, strict=True)
        rows = [self._run(suite, -1 - i, base, undamaged) for i, base in enumerate(bases)]
        return [f"{row['base']}: {row['notes']}" for row in rows if row["outcome"] != RIGHT]

    def case(self, suite: str, number: int) -> dict:
        """Run one case and return its row. Kinds take turns; the file is chosen at random."""
        if suite == "other":
            target, damage = text_damage.CASES[number % len(text_damage.CASES)]
            return self._run(suite, number, target, damage)
        kinds = [kind for kind in KINDS if suite in kind.suites]
        kind, rng = kinds[number % len(kinds)], np.random.default_rng([self.seed, 99, number])
        bases = [base for base in self.bases[suite] if base.content in kind.contents]
        for attempt, i in enumerate(rng.integers(len(bases), size=40)):
            row = self._run(suite, number, bases[i], kind, attempt)
            if "skipped" not in row:
                return row
        raise RuntimeError(f"{kind.name} applies to none of the {suite} files. Correct this kind of damage.")

    def _run(self, suite: str, number: int, base: Base | str, kind: Kind | str, attempt: int = 0) -> dict:
        """Run one case in a process of its own."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch, prefix="case_"))
        seeds = [self.seed, ("h5ad", "zarr", "other").index(suite), number % (1 << 32), attempt]
        task = _try_text if suite == "other" else _try_cells
        start, log, damage = time.monotonic(), folder / "worker.log", folder / "worker.damage"
        found, fault = in_process(lambda: task(folder, base, kind, seeds), log)
        if fault:
            said, what = (p.read_text(errors="replace") if p.exists() else "" for p in (log, damage))
            found = {"outcome": WRONG, "damage": what, "notes": f"{fault}: {said.strip()[-300:]}",
                     "seconds": time.monotonic() - start, "mib": 0}  # fmt: skip
        if os.environ.get("FUZZ_TRACEBACK"):
            print(log.read_text(errors="replace"))
        if not self.keep:
            shutil.rmtree(folder)
        names = {"kind": base, "base": base} if suite == "other" else {"kind": kind.name, "base": base.name}
        return {"suite": suite, "number": number} | names | found


def main() -> None:
    """Read the command line, run the cases, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for suite, default in (("h5ad", 1000), ("zarr", 200), ("other", len(text_damage.CASES))):
        parser.add_argument(f"--{suite}", type=int, default=default, help=f"number of {suite} files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="SUITE:NUMBER", help="run these cases, with tracebacks")
    parser.add_argument("--quick", action="store_true", help="each kind of damage once")
    parser.add_argument("--keep", type=Path, help="folder that keeps the files")
    parser.add_argument("--out", type=Path, default=_RESULTS / "fuzz.csv")
    args = parser.parse_args()
    numbers = {suite: range(getattr(args, suite)) for suite in ("h5ad", "zarr", "other")}
    if args.quick:
        kinds = {suite: [kind for kind in KINDS if suite in kind.suites] for suite in ("h5ad", "zarr")}
        numbers["h5ad"] = range(len(kinds["h5ad"]))
        numbers["zarr"] = [i for i, kind in enumerate(kinds["zarr"]) if "h5ad" not in kind.suites]
    if args.only:
        chosen = [name.split(":") for name in args.only]
        numbers = {suite: [int(n) for s, n in chosen if s == suite] for suite in numbers}
        os.environ["FUZZ_TRACEBACK"] = "1"
    scratch = args.keep or Path(tempfile.mkdtemp(prefix="fuzz_"))
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ |= {"HOME": str(scratch), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    for name in ("data", "results", "training.checkpoint", "metrics.score_cache", "workflow.parameters"):
        import_module(f"aenmf_lib.{name}")  # once, for all forked processes
    import_module("aenmf_lib.data.one_pass").compile_kernels()  # numba writes its cache now, not during a read
    fuzzer, rows, unreadable = Fuzzer(scratch, args.seed, keep=bool(args.keep)), [], []
    try:
        for suite, chosen in numbers.items():
            unreadable += fuzzer.prepare(suite) if len(chosen) else []
            rows += [fuzzer.case(suite, number) for number in chosen]
    finally:
        if not args.keep:
            shutil.rmtree(scratch)
    sys.exit(_report(pd.DataFrame(rows), unreadable, args))


def _report(table: pd.DataFrame, unreadable: list[str], args: argparse.Namespace) -> int:
    """Print the outcomes by kind and the cases that are wrong. Write the table. Return the exit status."""
    for text in unreadable:
        print(f"undamaged, but not read as expected: {text}")
    wrong = table[table["outcome"] == WRONG]
    for row in wrong.to_dict("records"):
        print(f"\n{row['suite']}:{row['number']} {row['kind']} ({row['base']}; {row['damage']}): {row['notes']}")
        print(f"  python benchmarks/fuzz.py --seed {args.seed} --only {row['suite']}:{row['number']}")
    counts = pd.crosstab([table["suite"], table["kind"]], table["outcome"]).reindex(columns=list(ORDER), fill_value=0)
    print("\n" + pd.concat([counts, counts.groupby("suite").sum().assign(kind="all").set_index("kind", append=True)])
          .sort_index(kind="stable").to_string())  # fmt: skip
    print(f"{len(table)} files: {', '.join(f'{int(counts[o].sum())} {o}' for o in ORDER)}; slowest "
          f"{table['seconds'].max():.1f} s, most memory {table['mib'].max()} MiB")  # fmt: skip
    if not args.only and not args.quick:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        counts.reset_index().to_csv(args.out, index=False)
    return int(len(wrong) > 0 or bool(unreadable))


if __name__ == "__main__":
    main()
