"""How is any objective minimized? One loop: steps, when to stop, what to keep against being killed.

The steps are those of exact coordinate descent on the CPU with free rows (module `descent`), and of the projected
gradient elsewhere (module `gradient`). The objective is exact over all cells, so its value decides when to stop.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from aenmf_lib.models.objectives import AENMFObjective, DonorDecoderObjective
from aenmf_lib.training.checkpoint import Checkpoint
from aenmf_lib.training.coordinate_descent import CoordinateDescent, DonorCoordinateDescent
from aenmf_lib.training.projected_gradient import ProjectedGradient

log = logging.getLogger(__name__)


class Minimizer(Protocol):
    """What the loop asks of a way to minimize."""

    window: int  # iterations over which the decrease is judged
    loss: float  # the objective where it is

    def step(self) -> float | None:
        """Go one step; gives the objective, or None where no step lowers it any more."""

    def refresh(self) -> float:
        """Clear what rounding has added up to; gives the objective."""

    def arrays(self) -> dict[str, np.ndarray | float]:
        """Give what `restore` needs to go on from the last `refresh` to the same bits."""

    def restore(self, arrays: dict) -> None:
        """Go back to where `arrays` was told."""

    def solution(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """W and U."""


@dataclass
class Solution:
    """Where the solver ended, and why."""

    W: torch.Tensor  # (k, n_genes)
    U: torch.Tensor | None  # the donor part, if the model has one
    loss_history: list[float]  # objective at the start and after each iteration
    reason: str
    seconds: float  # of the iterations, those before a restart included

    @property
    def n_iter(self) -> int:
        """Iterations done."""
        return len(self.loss_history) - 1


def minimize(
    objective: AENMFObjective,
    start: Callable[[], torch.Tensor],
    *,
    row_norm: bool = False,
    tol: float = 5e-4,
    max_iter: int = 1000,
    name: str = "",
    checkpoint: Checkpoint | None = None,
) -> Solution:
    """Minimize an objective over W ≥ 0.

    Parameters
    ----------
    objective
        What to minimize.
    start
        Gives W to start from, (k, n_genes), not negative; not called where a checkpoint is found.
    row_norm
        Hold the rows of W at length 1.
    tol
        Stop when the best value fell by less than this share over the last 10 sweeps of coordinate descent (30
        gradient steps).
    max_iter
        Stop after this many iterations in any case.
    name
        Shown beside the progress.
    checkpoint
        Where the state is kept while it runs; if there is one, go on from there, on the CPU to the same bits.

    Returns
    -------
    Solution
        The best point seen. The history holds the value of every iteration, also where it rose.

    Raises
    ------
    FloatingPointError
        The objective or its gradient is not finite; the message names the iteration.
    ValueError
        The checkpoint is of something else.
    """
    begin, before = time.perf_counter(), 0.0
    if held := checkpoint.load() if checkpoint else None:
        method = _method(objective, torch.from_numpy(held["W"]).to(objective.moments.device), row_norm=row_norm)
        method.restore(held)
        history, before = list(held["history"]), float(held["seconds"])
        log.info("%s: going on from iteration %d, kept in %s", name, len(history) - 1, checkpoint.path)
    else:
        method = _method(objective, start(), row_norm=row_norm)
        history = [method.loss]
    _finite(history)
    reason, window = f"reached max_iter = {max_iter}", method.window

    def keep() -> None:
        if checkpoint:
            seconds = before + time.perf_counter() - begin
            checkpoint.keep(method.arrays() | {"history": list(history), "seconds": seconds})

    keep()
    with (
        checkpoint.at_the_end() if checkpoint else contextlib.nullcontext(),
        tqdm(total=max_iter, initial=len(history) - 1, desc=name, unit="it", mininterval=2, disable=not name) as bar,
    ):
        while len(history) <= max_iter:
            loss = method.step()
            if loss is None:
                reason = "no step lowers the objective any more"
                break
            history.append(loss)
            _finite(history)
            bar.update()
            bar.set_postfix(loss=f"{loss:.6g}", refresh=False)
            if len(history) > window and min(history[:-window]) - min(history) < tol * abs(min(history)):
                reason = f"relative decrease below tol = {tol:g} over {window} iterations"
                break
            if (len(history) - 1) % window == 0:
                method.refresh()
                keep()
    history[-1] = method.refresh()
    W, U = method.solution()
    seconds = before + time.perf_counter() - begin
    log.info("%s: loss %.6g after %d iterations, %.1f s: %s", name, min(history), len(history) - 1, seconds, reason)
    return Solution(W, U, history, reason, seconds)


def _method(objective: AENMFObjective, W: torch.Tensor, *, row_norm: bool) -> Minimizer:
    if objective.moments.device != "cpu" or row_norm:
        return ProjectedGradient(objective, W, row_norm=row_norm)
    if isinstance(objective, DonorDecoderObjective):
        return DonorCoordinateDescent(
            objective, W, torch.zeros(len(objective.moments.partitions), *W.shape, dtype=W.dtype)
        )
    return CoordinateDescent(objective, W)


def _finite(history: list[float]) -> None:
    if not math.isfinite(history[-1]):
        raise FloatingPointError(
            f"iteration {len(history) - 1}: the objective is {history[-1]}. Check the input for extreme values."
        )
