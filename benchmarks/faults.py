"""Inject faults into the pipeline, in a copy of the repository, and compare its results with an undisturbed run.

    python benchmarks/faults.py --kills 50      # about half an hour; writes benchmarks/results/faults.csv
    python benchmarks/faults.py --faults kill --kills 7 --scratch /tmp/faults

Faults: `kill` (SIGKILL at random moments of every stage, of all processes, only make, only the runner or only the
kernel), `disk` (a full disk in every stage), `read-only`, `memory` and `two` (two runs at once). `disk` and `read-only`
mount a tmpfs on the results folder and need root. After each fault, `make all` must end with the same bits.
"""

import argparse
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil

sys.path.insert(0, str(Path(__file__).parent))
from faulting.pipeline import SECONDS, Pipeline, error_fault, first_error, output
from faulting.results import differences, digest

ROOT = Path(__file__).parents[1]


class Faults:
    """Injects faults and records fault, stage and outcome."""

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        self.pipeline, self.random, self.rows = pipeline, random.Random(seed), []
        start = time.monotonic()
        status, text = pipeline.make()
        if status:
            sys.exit(f"error: the undisturbed run failed: {first_error(text)}. Correct this first.")
        self.expected = digest(pipeline.results / "small")
        self.reference = pipeline.folder / "reference"
        shutil.copytree(pipeline.results / "small", self.reference, symlinks=True)
        reports = sorted(self.reference.rglob("0*.ipynb"), key=lambda path: path.stat().st_mtime)
        self.ends = {report.stem: report.stat().st_mtime for report in reports}
        begins = [self.ends[reports[0].stem] - 8, *self.ends.values()]
        self.seconds = {stage: end - begin for (stage, end), begin in zip(self.ends.items(), begins, strict=False)}
        print(f"undisturbed run: {time.monotonic() - start:.0f} s, {len(self.expected)} files; stages {self.seconds}")

    def record(self, fault: str, stage: str, wrong: str, note: str = "") -> None:
        """Add a row to the table and print it."""
        self.rows.append({"fault": fault, "stage": stage, "outcome": wrong or "same results", "note": note})
        print(f"{fault:28} {stage:20} {wrong or 'same results'}  {note}".rstrip(), flush=True)

    def finish(self, fault: str, stage: str, wrong: str = "", note: str = "") -> None:
        """Run `make all` to its end and compare the results."""
        status, text = self.pipeline.make()
        if status:
            wrong = wrong or f"the next run fails: {first_error(text)}"
        self.record(fault, stage, wrong or differences(self.expected, digest(self.pipeline.results / "small")), note)

    def stage_now(self, process: subprocess.Popen[str]) -> str:
        """Return the stage that is running: the last one that has printed the number of a cell and has not ended."""
        found = re.findall(r"^(0\d_\w+)(?: \[|: done)", output(process), re.M)
        return found[-1] if found and f"{found[-1]}: done" not in output(process) else ""

    def damaged_targets(self) -> str:
        """Return the results files that exist but are not complete."""
        now = digest(self.pipeline.results / "small")
        finished = {name: now[name] for name in now if name.endswith((".h5ad", ".pdf", ".png"))}
        wrong = [name for name, value in finished.items() if self.expected.get(name, value) != value]
        return f"incomplete: {', '.join(wrong)}" if wrong else ""

    # ---- kill -9 -----------------------------------------------------------------------------------------------------
    def kill(self, n: int) -> None:
        """Kill at `n` random moments, spread over the stages; finish after each pass over all stages."""
        victims = ("all processes", "make", "the runner", "the kernel")
        done, cycle = 0, 0
        while done < n:
            self.pipeline.empty()
            rows = []
            for number, stage in enumerate(self.ends):
                if done == n:
                    break
                victim = victims[(cycle + number) % len(victims)]
                killed, wrong = self._kill_in(stage, victim)
                done += bool(killed)
                rows.append((victim, killed or f"{stage} had ended", wrong or self.damaged_targets()))
            status, text = self.pipeline.make()
            end = f"the next run fails: {first_error(text)}" if status else ""
            end = end or differences(self.expected, digest(self.pipeline.results / "small"))
            for victim, stage, wrong in rows:
                self.record(f"kill -9 of {victim}", stage, wrong or end)
            cycle += 1

    def _kill_in(self, stage: str, victim: str) -> tuple[str, str]:
        """Run make until `stage` runs, wait a random time and kill. Return the stage that was killed, and a fault."""
        process, begin = self.pipeline.start(), time.monotonic()
        while process.poll() is None and self.stage_now(process) != stage:
            time.sleep(0.02)
            if time.monotonic() - begin > SECONDS:
                break
        pause = self.random.uniform(0, 0.9 * self.seconds[stage])
        while process.poll() is None and pause > 0:
            time.sleep(min(0.05, pause))
            pause -= 0.05
        now = self.stage_now(process)
        if process.poll() is not None:
            return "", f"the run failed before the kill: {first_error(output(process))}" if process.returncode else ""
        pids = self._pids(process.pid, victim)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not pids:
            os.killpg(process.pid, signal.SIGKILL)
        wrong = ""
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            wrong = f"make still runs 60 s after the kill of {victim}"
            os.killpg(process.pid, signal.SIGKILL)
        if not wrong and victim == "the kernel" and pids and now and process.returncode:  # 0: it had done its work
            wrong = error_fault(process.returncode, output(process))
            wrong = f"{wrong}: {first_error(output(process))}" if wrong else ""
        return now or "between stages", wrong

    def _pids(self, make: int, victim: str) -> list[int]:
        """Return the processes to kill."""
        everyone = psutil.Process(make).children(recursive=True)
        commands = {}
        for process in everyone:
            try:
                commands[process.pid] = " ".join(process.cmdline())
            except psutil.Error:
                continue
        runner = [pid for pid, words in commands.items() if "aenmf_lib execute" in words]
        kernel = [pid for pid, words in commands.items() if "kernel.json" in words or "ipykernel" in words]
        chosen = {"the runner": runner, "the kernel": kernel, "make": [make]}
        return chosen.get(victim, [make, *commands])

    # ---- disk --------------------------------------------------------------------------------------------------------
    def disk(self) -> None:
        """Fill the disk before the first stage, and while each stage runs: completely, or up to half of its results."""
        with self._mounted(next(iter(self.ends)), 64 << 10):
            self._refused("disk full from the start", next(iter(self.ends)), self.pipeline.make(), "remount,size=2G")
        for stage in self.ends:
            size = sum(path.stat().st_size for path in self._of_stage(stage, only=True))
            for left, what in ((0, "completely"), (size // 2, "half of the results fit")):
                with self._mounted(stage, 256 << 20):
                    process, filler = self.pipeline.start(), self.pipeline.results / "filler"
                    while process.poll() is None and self.stage_now(process) != stage:
                        time.sleep(0.02)
                    _fill(filler, left)
                    process.wait(SECONDS)
                    ended = process.returncode, output(process)
                    filler.unlink()
                    self._refused(f"disk full ({what})", stage, ended, "remount,size=2G")

    def _refused(self, fault: str, stage: str, ended: tuple[int, str], remount: str) -> None:
        """Check the end of a run that must fail, remove the fault and finish."""
        status, text = ended
        wrong, note = error_fault(status, text) or self.damaged_targets(), first_error(text)
        subprocess.run(["mount", "-o", remount, str(self.pipeline.results)], check=True)
        self.finish(fault, stage, f"{wrong}: {note}" if wrong else "", note)

    def read_only(self) -> None:
        """Make the results folder read-only before the first stage and before the last."""
        for stage in (next(iter(self.ends)), list(self.ends)[-1]):
            with self._mounted(stage, 1 << 30):
                subprocess.run(["mount", "-o", "remount,ro", str(self.pipeline.results)], check=True)
                self._refused("read-only results", stage, self.pipeline.make(), "remount,rw")

    def _of_stage(self, stage: str, *, only: bool = False) -> list[Path]:
        """Return the files that were written during a stage, or also later."""
        begin = max((end for name, end in self.ends.items() if name < stage), default=0)
        end = self.ends[stage] if only else float("inf")
        files = (path for path in self.reference.rglob("*") if path.is_file() and path.suffix != ".yaml")
        return [path for path in files if begin < path.stat().st_mtime <= end]

    def _mounted(self, stage: str, free: int) -> "Mounted":
        """Mount a tmpfs on the results folder with the results of all stages before `stage` and some free space."""
        later = {path.relative_to(self.reference) for path in self._of_stage(stage)}
        return Mounted(self.pipeline.results, self.reference, later, free)

    # ---- memory and two runs -----------------------------------------------------------------------------------------
    def memory(self) -> None:
        """Limit the address space in filter and training, from too little to start to enough."""
        for goal in ("filter", "train"):
            for limit in (0.3, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2, 3.0, 4.0):
                self.pipeline.empty()
                if goal == "train":
                    self.pipeline.make("filter")
                size = int(limit * (1 << 30))
                status, text = self.pipeline.make(
                    goal, limit=lambda size=size: resource.setrlimit(resource.RLIMIT_AS, (size, size))
                )
                wrong, note = error_fault(status, text) if status else "", first_error(text) if status else "enough"
                self.record(f"memory limit {limit} GiB", goal, f"{wrong}: {note}" if wrong else "", note)
        self.finish("memory limit, then none", "all")

    def two(self) -> None:
        """Start two runs at once, and a second run in the middle of the first."""
        for pause in (0, 3, 25):
            self.pipeline.empty()
            first = self.pipeline.start()
            time.sleep(pause)
            second = self.pipeline.start()
            wrong, notes = "", []
            for process in (first, second):
                process.wait(SECONDS)
                if process.returncode:
                    fault = error_fault(process.returncode, output(process))
                    notes.append(first_error(output(process)))
                    wrong = wrong or (f"{fault}: {notes[-1]}" if fault else "")
            if first.returncode and second.returncode:
                wrong = wrong or f"both runs fail: {'; '.join(notes)}"
            self.finish(f"two runs, {pause} s apart", "all", wrong, "; ".join(notes))


def _fill(path: Path, left: int) -> None:
    """Write a file that leaves only `left` bytes of its disk."""
    status = os.statvfs(path.parent)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(status.f_bavail * status.f_frsize - left, 1))


class Mounted:
    """A tmpfs with some results and little space; unmounted at the end."""

    def __init__(self, folder: Path, reference: Path, without: set[Path], free: int) -> None:
        self.folder, self.reference, self.without, self.free = folder, reference, without, free

    def __enter__(self) -> None:
        shutil.rmtree(self.folder / "small", ignore_errors=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2G", "tmpfs", str(self.folder)], check=True)

        def left_out(folder: str, names: list[str]) -> list[str]:
            return [name for name in names if (Path(folder) / name).relative_to(self.reference) in self.without]

        shutil.copytree(self.reference, self.folder / "small", ignore=left_out, symlinks=True)
        status = os.statvfs(self.folder)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        size = f"size={used + self.free}"
        subprocess.run(["mount", "-o", f"remount,{size}", str(self.folder)], check=True)

    def __exit__(self, *error: object) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


def main() -> None:
    """Read the command line, inject the faults, print and write the table."""
    known = ("kill", "disk", "read-only", "memory", "two")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--faults", nargs="+", choices=known, default=known)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"), help="the environment that runs the copy")
    parser.add_argument("--scratch", type=Path, help="folder for the copy (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/faults.csv")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("stopped"))  # so that disks are unmounted
    scratch = Path(tempfile.mkdtemp(prefix="faults_", dir=args.scratch))
    try:
        faults = Faults(Pipeline(scratch, args.python), args.seed)
        for name in args.faults:
            if name in ("disk", "read-only") and os.geteuid():
                print(f"{name}: skipped, because mounting a small disk needs root")
            elif name == "kill":
                faults.kill(args.kills)
            else:
                getattr(faults, name.replace("-", "_"))()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    table = pd.DataFrame(faults.rows)
    counts = table.groupby(["fault", "stage", "outcome"]).size().rename("n").reset_index()
    print(counts.to_string(index=False))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    counts.to_csv(args.out, index=False)
    sys.exit(int((table["outcome"] != "same results").any()))


if __name__ == "__main__":
    main()
