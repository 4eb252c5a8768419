"""The loop that minimizes any objective: steps, stopping rule and checkpoints.

On the CPU the method is exact coordinate descent (`coordinate_descent`); on a GPU, or for rows of length 1, it is the
projected gradient (`projected_gradient`). The objective is exact over all cells, so its value decides when to stop.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from aenmf_lib.data.progress import tqdm
from aenmf_lib.training.checkpoint import Checkpoint
from aenmf_lib.training.objective import Objective
from aenmf_lib.training.projected_gradient import ProjectedGradient

log = logging.getLogger(__name__)


@dataclass
class Solution:
    """The result of the solver, with the reason for which it stopped."""

    W: torch.Tensor  # (k, n_genes)
    U: torch.Tensor | None  # the donor part, if the model has one
    loss_history: list[float]  # objective at the start and after each iteration
    reason: str
    seconds: float  # run time, including the time before the fit was resumed

    @property
    def n_iter(self) -> int:
        """Number of iterations."""
        return len(self.loss_history) - 1


def minimize(
    objective: Objective, start: Callable[[], torch.Tensor], *, row_norm: bool = False, tol: float = 5e-4,
    max_iter: int = 1000, name: str = "", checkpoint: Checkpoint | None = None,
) -> Solution:  # fmt: skip
    """Minimize an objective over W ≥ 0; `row_norm` also fixes the rows of W at length 1. Return the best point.

    `start` returns the first W (k, n_genes), unless the file of `checkpoint` exists. Then the fit resumes: on CPU the
    result is bit-identical to an uninterrupted fit. The fit stops when the best value fell by less than the share `tol`
    in 10 sweeps (30 gradient steps). A `name` shows a progress bar. FloatingPointError: the objective is not finite.
    """
    begin, seconds_before = time.perf_counter(), 0.0
    if state := checkpoint.load() if checkpoint else None:
        try:
            if state["W"].shape[1:] != (n_genes := objective.gene_sq.shape[-1],):
                raise ValueError(f"W has shape {state['W'].shape}, not k × {n_genes}")
            method = _method(objective, torch.from_numpy(state["W"]).to(objective.moments.device), row_norm=row_norm)
            method.restore(state)
            history, seconds_before = list(state["history"]), float(state["seconds"])
        except (KeyError, TypeError, ValueError) as error:  # entries are missing or of a wrong type or shape
            found = f"{checkpoint.path} is not a valid checkpoint of this fit ({type(error).__name__}: {error})"
            raise ValueError(f"{found}. Delete it to start again.") from error
        log.info("%s: resuming after iteration %d from %s", name, len(history) - 1, checkpoint.path)
    else:
        method = _method(objective, start(), row_norm=row_norm)
        history = [method.loss]
    _check_finite(history)
    reason, window = f"reached max_iter = {max_iter}", method.window

    def keep() -> None:
        if checkpoint:
            seconds = seconds_before + time.perf_counter() - begin
            checkpoint.keep(method.arrays() | {"history": list(history), "seconds": seconds})

    keep()
    with (
        checkpoint.write_on_sigterm() if checkpoint else contextlib.nullcontext(),
        tqdm(total=max_iter, initial=len(history) - 1, desc=name, unit="it", mininterval=2, disable=not name) as bar,
    ):
        while len(history) <= max_iter:
            loss = method.step()
            if loss is None:
                reason = "no step lowers the objective any more"
                break
            history.append(loss)
            _check_finite(history)
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
    solution = Solution(W, U, history, reason, seconds_before + time.perf_counter() - begin)
    log.info(
        "%s: loss %.6g after %d iterations, %.1f s: %s", name, min(history), solution.n_iter, solution.seconds, reason
    )
    return solution


def _method(objective: Objective, W: torch.Tensor, *, row_norm: bool) -> ProjectedGradient:
    """Return the solver for this objective, device and constraint, at W (k, n_genes). All have the same methods."""
    if objective.moments.device != "cpu" or row_norm:
        return ProjectedGradient(objective, W, row_norm=row_norm)
    return objective.coordinate_descent(objective, W)


def _check_finite(history: list[float]) -> None:
    """Raise FloatingPointError if the last objective value is not finite."""
    if not math.isfinite(history[-1]):
        n, loss = len(history) - 1, history[-1]
        raise FloatingPointError(f"iteration {n}: the objective is {loss}. Check the input for extreme values.")
