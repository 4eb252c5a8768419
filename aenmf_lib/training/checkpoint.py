"""Where does a fit go on that was killed? The state of the solver in one file, and what it is the state of."""

import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aenmf_lib.data import files

log = logging.getLogger(__name__)


def checkpoint_path(path: str | Path) -> Path:
    """Where a fit keeps its state while its results are not there yet; `write` removes it."""
    return Path(path).with_suffix(".checkpoint.npz")


def plain_checkpoint(path: str | Path) -> Path:
    """Where the AE-NMF that a strength is reckoned from keeps its state, beside that of the fit itself."""
    return Path(path).with_suffix(".plain.npz")


def start_checkpoint(path: str | Path, start: int) -> Path:
    """Where one of several starts of a fit keeps its state: the first where a fit of one start does."""
    return Path(path).with_suffix(f".start{start}.npz") if start else Path(path)


def hsic_checkpoint(path: str | Path) -> Path:
    """Where the fit that clusters are found on keeps its state, likewise."""
    return Path(path).with_suffix(".hsic.npz")


SECONDS = 60.0  # between two writings
_FORMAT = 1  # of the file


@dataclass
class Checkpoint:
    """A file that is written every `SECONDS`, whole or not at all, and read by whoever fits the same again."""

    path: Path
    of: dict[str, str | int | float | bool | None]  # model, settings, data and version
    last: float = field(default_factory=time.monotonic, init=False)
    newest: dict = field(default_factory=dict, init=False)  # state that was kept, written or not
    writing: bool = field(default=False, init=False)
    told: bool = field(default=False, init=False)  # to end

    def keep(self, state: dict[str, np.ndarray | float | list]) -> None:
        """Take over a state, and write it if the last writing is long enough ago."""
        self.newest = state
        if time.monotonic() - self.last >= SECONDS:
            self._write()

    def finish(self) -> None:
        """Write the newest state at once: what it is of has ended, and what is to follow takes long."""
        self._write()

    @contextlib.contextmanager
    def at_the_end(self) -> Iterator[None]:
        """Let SIGTERM, which announces a time limit or a preemption, write the newest state before it has its way."""
        if threading.current_thread() is not threading.main_thread():  # no other may handle signals
            yield
            return

        def end(number: int, frame: object) -> None:
            self.told = True
            if not self.writing:  # otherwise what is being written is the newest
                self._write()

        self.before = signal.signal(signal.SIGTERM, end) or signal.SIG_DFL
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, self.before)

    def _write(self) -> None:
        self.writing = True
        files.write_npz(self.path, _FORMAT, of=json.dumps(self.of), **self.newest)
        self.last, self.writing = time.monotonic(), False
        if self.told:
            signal.signal(signal.SIGTERM, self.before)
            signal.raise_signal(signal.SIGTERM)

    def load(self) -> dict[str, np.ndarray] | None:
        """Read the state; None if there is none.

        Raises
        ------
        ValueError
            It is the state of something else, or the file is damaged.
        """
        if not self.path.exists():
            return None
        held = files.read_npz(self.path, _FORMAT, "a solver's state")
        there = json.loads(str(held["of"]))
        if other := [name for name in self.of | there if there.get(name) != self.of.get(name)]:
            told = ", ".join(f"{name} is {there.get(name)!r} there and {self.of.get(name)!r} here" for name in other)
            raise ValueError(f"{self.path} is a checkpoint of another fit: {told}. Remove it to start anew.")
        return held
