"""Starts of a fit: a given W or AE-NMF, and the comparison of several random starts."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from aenmf_lib import results
from aenmf_lib.models.matching import stability as compare
from aenmf_lib.training.solver import Solution

log = logging.getLogger(__name__)


def check_start(start: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a W to start from as float64, (k, n_genes); raise ValueError if it is not finite, ≥ 0 and of `shape`."""
    try:
        W = np.asarray(start, dtype=np.float64)
    except (TypeError, ValueError):  # not numbers, or rows of different lengths
        W = None
    if W is not None and W.shape == shape and np.isfinite(W).all() and (W >= 0).all():
        return W
    found = f"is a {type(start).__name__} of values that form no matrix"
    if W is not None:
        found = f"has shape {W.shape}" + (f", minimum {W.min():g}" if W.size else "")
    raise ValueError(f"start {found}. Expected {shape}, all ≥ 0 and finite. Pass such a matrix, or None.")


def load_aenmf(path: str | Path, settings: Mapping[str, object], cells: object):
    """Return the AE-NMF of a results file; raise ValueError unless it is the fit of these cells with these settings.

    `settings` are parameters of AE-NMF. The input files of both are compared if both are recorded.
    """
    aenmf = results.load_model(path)
    if aenmf.name != "AE_NMF":
        raise ValueError(f"{path} contains {aenmf.name}, not AE_NMF. Pass the file of notebook 03, or leave it out.")
    names = [name for name in settings if name not in ("preset", "mode", "device")]
    found, expected = ({name: values[name] for name in names} for values in (vars(aenmf), settings))
    made = results.read(path, with_cells=False).uns.get("provenance", {}).get("input", {})
    given = getattr(cells, "uns", {}).get("input", {})
    if made.get("sha256") and given.get("sha256"):
        found["input"], expected["input"] = (f"{of['path']} (sha256 {of['sha256'][:12]})" for of in (made, given))
        if made["sha256"] == given["sha256"]:
            found["input"] = expected["input"]
    other = [name for name in found if found[name] != expected[name]]
    if other:
        differ = ", ".join(f"{name} is {found[name]!r}, expected {expected[name]!r}" for name in other)
        raise ValueError(f"{path} contains an AE-NMF of another fit: {differ}. Run notebook 03 with the same "
                         "settings, or leave out the file: AE-NMF is then fitted here.")  # fmt: skip
    log.info("using the AE-NMF from %s", path)
    return aenmf


def compare_starts(
    name: str, solutions: Sequence[Solution], Ws: Sequence[np.ndarray], best: int, seeds: range
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables `starts_` and `stability_` of a model, and log how much the starts differ.

    `Ws` are the programs of the solutions, (k, n_genes) each, in the units of X.
    """
    others = [i for i in range(len(solutions)) if i != best]
    stability = compare([Ws[i] for i in (best, *others)])
    cosines = stability.filter(like="start ").mean().to_numpy(float)
    rows = [(min(found.loss_history), found.n_iter, found.seconds, found.reason) for found in solutions]
    starts = pd.DataFrame(rows, columns=["objective", "iterations", "seconds", "stop"])
    starts.insert(0, "seed", seeds)
    starts["kept"] = starts.index == best
    starts["cosine"] = np.insert(cosines, best, 1.0)
    if others:
        objective = starts["objective"]
        spread = 100 * (objective.max() / objective.min() - 1)
        log.info("%s: %d starts; the objectives range from %.6g to %.6g (%.2g %% apart); seed %d is kept; mean cosine "
                 "of its programs to those of other starts %.3f to %.3f", name, len(solutions), objective.min(),
                 objective.max(), spread, seeds[best], min(cosines), max(cosines))  # fmt: skip
    return starts, stability
