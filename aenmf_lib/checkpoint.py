"""Where does a fit go on that was killed? The state of the solver in one file, and what it is the state of."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aenmf_lib import results

SECONDS = 60.0  # between two writings
_FORMAT = 1  # of the file


@dataclass
class Checkpoint:
    """A file that is written every `SECONDS`, whole or not at all, and read by whoever fits the same again."""

    path: Path
    of: dict[str, str | int | float | bool | None]  # model, settings, data and version
    last: float = field(default_factory=time.monotonic)

    def keep(self, state: Callable[[], dict]) -> None:
        """Write the state, if the last writing is long enough ago."""
        if time.monotonic() - self.last < SECONDS:
            return
        results.write_npz(self.path, _FORMAT, of=json.dumps(self.of), **state())
        self.last = time.monotonic()

    def load(self) -> dict[str, np.ndarray] | None:
        """Read the state; None if there is none.

        Raises
        ------
        ValueError
            It is the state of something else, or the file is damaged.
        """
        if not self.path.exists():
            return None
        held = results.read_npz(self.path, _FORMAT, "a solver's state")
        there = json.loads(str(held["of"]))
        if other := [name for name in self.of | there if there.get(name) != self.of.get(name)]:
            told = ", ".join(f"{name} is {there.get(name)!r} there and {self.of.get(name)!r} here" for name in other)
            raise ValueError(f"{self.path} is a checkpoint of another fit: {told}. Remove it to start anew.")
        return held
