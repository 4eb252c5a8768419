"""Checkpoints: the state of a fit in one file, from which an interrupted fit resumes."""

import contextlib
import json
import reprlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aenmf_lib.data import files

SECONDS = 60.0  # minimum time between two writes
_FORMAT = 1  # version of the file format
_DELETE = "Delete it to start again."
# fits that training a model may run: the model, and the AE-NMF that sets the scale of `strength`
_SUFFIXES = {"model": "", "aenmf": ".plain"}


def role_path(path: str | Path, role: str = "model", start: int = 0) -> Path:
    """Return the checkpoint file of a start of one fit (AE-NMF, model) that training a model runs."""
    suffix = _SUFFIXES[role] + (f".start{start}" if start else "")
    return Path(path).with_suffix(f"{suffix}.npz") if suffix else Path(path)


def checkpoint_files(path: str | Path, n_starts: int = 1) -> list[Path]:
    """Return all checkpoint files that training a model with this number of starts may write."""
    return [role_path(path, role, start) for role in _SUFFIXES for start in range(n_starts)]


@dataclass
class Checkpoint:
    """The checkpoint file of one fit: written atomically every `SECONDS`, and read when the same fit resumes."""

    path: Path
    of: dict[str, str | int | float | bool | None]  # identifies the fit: model, settings, data and version
    _last: float = field(default_factory=time.monotonic, init=False)  # time of the last write
    _newest: dict = field(default_factory=dict, init=False)  # last state passed to `keep`
    _writing: bool = field(default=False, init=False)
    _terminated: bool = field(default=False, init=False)  # whether SIGTERM has arrived

    def keep(self, state: dict[str, np.ndarray | float | list]) -> None:
        """Store a state in memory, and write it if the last write is at least `SECONDS` ago."""
        self._newest = state
        if time.monotonic() - self._last >= SECONDS:
            self.write()

    @contextlib.contextmanager
    def write_on_sigterm(self) -> Iterator[None]:
        """On SIGTERM (time limit, preemption), write the newest state, then pass SIGTERM to the previous handler."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
            yield
            return

        def terminate(number: int, frame: object) -> None:
            self._terminated = True
            if not self._writing:  # otherwise `write` is running and handles SIGTERM at its end
                self.write()

        self._handler = signal.signal(signal.SIGTERM, terminate) or signal.SIG_DFL
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, self._handler)

    def write(self) -> None:
        """Write the newest state. If SIGTERM has arrived, pass it to the previous handler afterwards."""
        self._writing = True
        of = json.dumps(self.of, default=lambda number: number.item())  # NumPy numbers
        files.write_npz(self.path, _FORMAT, of=of, **self._newest)
        self._last, self._writing = time.monotonic(), False
        if self._terminated:
            signal.signal(signal.SIGTERM, self._handler)
            signal.raise_signal(signal.SIGTERM)

    def load(self) -> dict[str, np.ndarray] | None:
        """Return the saved state, or None without a file. Raise ValueError if it is damaged or from another fit."""
        if not self.path.exists():
            return None
        state, expected = files.read_npz(self.path, _FORMAT, "a checkpoint"), self.of
        if missing := [name for name in ("of", "W", "history", "seconds") if name not in state]:
            raise ValueError(f"{self.path} is not a complete checkpoint: it has no {', '.join(missing)}. {_DELETE}")
        try:
            found = dict(json.loads(str(state["of"])))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged: it does not name its fit ({error}). {_DELETE}") from error
        if other := [name for name in expected | found if found.get(name) != expected.get(name)]:
            differ = ", ".join(
                f"{name} is {reprlib.repr(found.get(name))}, expected {expected.get(name)!r}" for name in other
            )
            raise ValueError(f"{self.path} is a checkpoint of another fit: {differ}. {_DELETE}")
        return state
