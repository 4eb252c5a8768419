"""Consensus programs: the programs that recur in AE-NMF fits to random halves of the donors.

One fit divides genes that all cells express, such as ribosomal genes, among its programs almost arbitrarily. The mean
over many fits does not depend on the start of any of them. All fits use the same sums over the cells of each donor.
"""

import logging
import numbers
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from aenmf_lib.data import files
from aenmf_lib.data.labels import DONOR
from aenmf_lib.data.progress import hide_progress_bars
from aenmf_lib.metrics.score_cache import fingerprint
from aenmf_lib.models.aenmf import AENMF
from aenmf_lib.models.base import check_seeds
from aenmf_lib.models.initialization import rescale_rows
from aenmf_lib.models.matching import stability, unit_rows
from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.training.inputs import Cells
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.solver import Solution

__all__ = ["consensus_programs"]

log = logging.getLogger(__name__)

_RECURS = 0.7  # cosine from which a program of a round counts as the consensus program
_OUTLIER = 0.5  # programs with a smaller cosine to the mean of their cluster do not enter it
_FORMAT = 1  # version of the file of a round
_N_INIT = 20  # starts of k-means
_NOISE = 1e-6  # smaller eigenvalues, relative to the largest, are rounding errors
_FACTS = ("seed", "objective", "iterations", "seconds", "stop")  # of a round


def consensus_programs(
    cells: Cells | Moments,
    k: int = 80,
    *,
    rounds: int = 40,
    seed: int = 42,
    min_recurrence: float = 0.5,
    donor_key: str = DONOR,
    checkpoint: str | Path | None = None,
    **settings,
) -> tuple[AENMF, pd.DataFrame]:
    """Fit AE-NMF to random halves of the donors, and average the programs that recur.

    Each round fits k programs to a random half of the donors, from its own random start. The next round fits the other
    half. The programs of all rounds, scaled to length 1, are divided into k clusters by k-means. The mean of each
    cluster, without outliers, is a program, as in consensus NMF [1]_. W contains the programs that recur. Their lengths
    are refitted to all cells, but not their directions: a few iterations from the means would lead to programs that
    differ between groups of donors again.

    Parameters
    ----------
    cells : n_cells × n_genes
        Cells as for `AENMF.fit`, with the donors in obs, or moments. With one donor, or with moments that are not by
        donor, all rounds use all cells and differ only in the random start.
    k
        Number of programs of each fit, and of clusters.
    rounds, seed
        Number of fits, at least 2, and seed of the first; the next fits use ``seed + 1``, ``seed + 2`` …
    min_recurrence
        A program is kept if more than this share of the rounds contains it, with a cosine of at least 0.7. Every donor
        is in half of the rounds, so 0.5 removes programs that only one donor has. With 0 all k programs are kept,
        with 1 those of all rounds.
    donor_key
        Column of obs with the donors.
    checkpoint
        Path from which the names of the round files are derived. Each round is saved, so that an interrupted run
        continues with a bit-identical result on the CPU. `results.write` removes these files.
    settings
        Other parameters of `AENMF`: `gene_weights`, `lambda_W`, `device` …

    Returns
    -------
    model : AENMF
        ``W_`` has one row per program that is kept, and ``model.k`` is their number. ``starts_`` describes the rounds;
        ``stability_`` has the cosine of each program with its partner in each round.
    table : DataFrame, one row per cluster, most recurrent first
        ``program`` (row of W if kept), ``recurrence`` (share of the rounds), ``cosine`` and ``least`` (mean and minimum
        over the rounds of the cosine with the partner, see `match_programs`), ``rounds``, ``kept``.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `AENMF.fit` does, also if half of the donors have fewer than k cells; `rounds`, `seed` or `min_recurrence` is
        out of range; no program recurs.

    Notes
    -----
    Memory: that of the moments by donor, and k × n_genes weights per round, of which most are 0.

    References
    ----------
    .. [1] Kotliar et al. (2019), eLife 8:e43803, doi:10.7554/eLife.43803.

    Examples
    --------
    >>> from aenmf_lib import data, programs
    >>> cells, _ = data.simulate(n_cells=300)
    >>> model, table = programs.consensus_programs(cells, k=3, rounds=4, max_iter=5, min_recurrence=0)
    >>> model.transform(cells).shape
    (300, 3)
    """
    begin = time.perf_counter()
    if isinstance(rounds, bool) or not isinstance(rounds, int | np.integer) or rounds < 2:
        raise ValueError(f"rounds={rounds!r} is not valid. Choose a whole number of at least 2.")
    if not (isinstance(min_recurrence, numbers.Real) and 0 <= min_recurrence <= 1):
        raise ValueError(f"min_recurrence={min_recurrence!r} is not valid. Choose a share from 0 to 1.")
    model = AENMF(k=k, seed=seed, **settings)
    check_seeds(seed, rounds, "rounds")
    model._set_names(cells, donor_key, model.cell_type_key_)
    if not isinstance(cells, Moments):
        by_donor = {"donor": donor_key, "cell_type": False, "by_donor": True}
        cells = Moments.from_cells(cells, **by_donor, mode=model.mode, k=k * rounds, device=model.device)
    moments = model._load_moments(cells, None)
    weighted = model._weight_genes(moments, None)

    found = []
    for i, donors in enumerate(_donors_of_rounds(moments, rounds, seed)):
        part = moments.subset(donors) if donors else moments
        path = Path(checkpoint).with_suffix(f".round{i}.npz") if checkpoint else None
        found.append(_fit_round(model, part, seed + i, path, settings))
        model.checkpoint_files_ = [*model.checkpoint_files_, *([path] if path else [])]
        n, iterations, seconds = len(donors) or len(moments.donors), found[-1]["iterations"], found[-1]["seconds"]
        log.info("round %d of %d: %d donors, %d iterations, %.1f s", i + 1, rounds, n, iterations, seconds)

    Ws = [each["W"] for each in found]
    W, table, cosines = _combine(Ws, k, seed, min_recurrence)
    model.k = len(W)
    start = torch.from_numpy(model._to_fit_units(W)).to(weighted.device, weighted.dtype)
    objective = AENMFObjective(weighted, lambda_W=model.lambda_W)
    if model.row_norm:
        start = start / start.norm(dim=1, keepdim=True)
    else:  # no sweeps follow, so the lengths must converge
        start = rescale_rows(objective, start, iterations=2000)
    loss, seconds = objective.evaluate(start).loss, time.perf_counter() - begin
    model._store(Solution(start, None, [loss], f"consensus of {rounds} fits", seconds), moments)
    model.seconds_, model.stability_ = seconds, cosines
    model.starts_ = pd.DataFrame(found, columns=_FACTS).assign(kept=False)
    model.starts_["cosine"] = cosines.filter(like="start ").mean().to_numpy()
    log.info("consensus: %d of %d programs recur in %s %d rounds; objective %.6g (the rounds: %.6g to %.6g)", len(W), k,
             _share(min_recurrence), rounds, loss, model.starts_["objective"].min(),
             model.starts_["objective"].max())  # fmt: skip
    return model, table


def _donors_of_rounds(moments: Moments, rounds: int, seed: int) -> list[list[str]]:
    """Return the donors of each round: a random half, then the other half, and so on. [] stands for all cells."""
    n = len(moments.partitions)
    if n < 2:
        log.info("The moments contain one group of cells, so the rounds differ only in the random start")
        return [[]] * rounds
    rng, halves = np.random.default_rng(seed), []
    while len(halves) < rounds:
        order = rng.permutation(n)
        halves += [sorted(moments.partitions[d] for d in half) for half in (order[: n // 2], order[n // 2 :])]
    return halves[:rounds]


def _fit_round(model: AENMF, part: Moments, seed: int, path: Path | None, settings: dict) -> dict:
    """Return the programs and the facts of one fit; if the file of this round has them, without fitting."""
    fit = AENMF(k=model.k, seed=seed, **settings)
    weights = "" if model.gene_weights_ is None else model.gene_weights_
    donors = zip(part.donors, part.donor_counts.tolist(), strict=True)
    of = fingerprint(repr(fit._identity(part)), repr(list(donors)), weights)
    if path and path.exists():
        saved = files.read_npz(path, _FORMAT, "a round of a consensus")
        if str(saved.get("of")) == of:
            W = csr_matrix((saved["data"], saved["indices"], saved["indptr"]), (fit.k, part.n_genes)).toarray()
            return {"W": W} | {name: saved[name].item() for name in _FACTS}
        log.info("%s contains a round of another consensus; it is fitted again", path)
    state = path and path.with_suffix(".fit.npz")
    with hide_progress_bars():
        fit.fit(part, aenmf=model, checkpoint=state)
    values = (seed, float(fit.loss_history_.min()), fit.n_iter_, float(fit.seconds_), fit.stop_reason_)
    facts, W = dict(zip(_FACTS, values, strict=True)), csr_matrix(fit.W_)
    if path:
        files.write_npz(path, _FORMAT, of=of, data=W.data, indices=W.indices, indptr=W.indptr, **facts)
    for file in fit.checkpoint_files_:
        Path(file).unlink(missing_ok=True)
    return {"W": fit.W_, **facts}


def _combine(
    Ws: list[np.ndarray], k: int, seed: int, min_recurrence: float
) -> tuple[np.ndarray, pd.DataFrame, pd.DataFrame]:
    """Return the programs that recur, (n_kept, n_genes) of length 1, the table, and their cosines in each round."""
    stack = csr_matrix(np.vstack([unit_rows(W.astype(np.float64)).astype(np.float32) for W in Ws]))
    stack = stack[np.flatnonzero(stack.getnnz(axis=1))]  # without empty programs
    n_clusters = min(k, stack.shape[0])
    label = _cluster(stack, n_clusters, seed)
    one_hot = csr_matrix((np.ones(len(label)), label, np.arange(len(label) + 1)), (len(label), n_clusters))
    W = unit_rows((one_hot.T @ stack).toarray())
    member = one_hot.multiply((stack @ W.T) >= _OUTLIER).tocsr()  # (n_programs, n_clusters)
    W = np.where(member.sum(axis=0).reshape(-1, 1) > 0, unit_rows((member.T @ stack).toarray()), W)
    cosines = stability([W, *Ws])
    each = cosines.filter(like="start ").fillna(0)
    table = pd.DataFrame({"recurrence": (each >= _RECURS).mean(axis=1), "cosine": each.mean(axis=1),
                          "least": each.min(axis=1), "rounds": len(Ws)})  # fmt: skip
    order = table.sort_values(["recurrence", "cosine"], ascending=False, kind="stable").index.to_numpy()
    table = table.loc[order].reset_index(drop=True)
    table.insert(0, "program", table.index)
    table["kept"] = (table["recurrence"] > min_recurrence) | (table["recurrence"] == 1) | (min_recurrence == 0)
    kept = order[: (n := int(table["kept"].sum()))]
    if not n:
        raise ValueError(f"No program recurs in {_share(min_recurrence)} {len(Ws)} rounds (at most "
                         f"{table['recurrence'].max():.0%}). Choose a smaller k or min_recurrence.")  # fmt: skip
    cosines = cosines.loc[kept].reset_index(drop=True).assign(program=np.arange(n))
    return W[kept], table, cosines


def _share(min_recurrence: float) -> str:
    """Return the necessary share of the rounds as text."""
    return "all" if min_recurrence == 1 else f"more than {min_recurrence:.0%} of"


def _cluster(programs: csr_matrix, k: int, seed: int) -> np.ndarray:
    """Return the k-means cluster of each program, (n_programs,), from the inner products of the programs."""
    with threadpool_limits(1):  # sums over several threads can differ in the last bit
        values, vectors = np.linalg.eigh((programs @ programs.T).toarray().astype(np.float64))
        points = vectors * np.sqrt(values.clip(min=0))  # as far from each other as the programs
        return KMeans(k, n_init=_N_INIT, random_state=seed).fit_predict(points[:, values > _NOISE * values[-1]])
