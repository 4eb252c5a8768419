"""Measures for the choice of the rank: held-out errors and stability of AE-NMF at several ranks.

Each donor is assigned to one of two halves. Some donors are held out, and so is a share of the cells of every other
donor. The sums over these groups of cells (at most six) are computed once and used for all fits and errors. Every rank
has its own random starts, because starts from merged programs of a larger rank took a quarter more time and reached
similar objectives (Kang et al., ranks 5 to 40).
"""

import copy
import logging
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from aenmf_lib.data.labels import DONOR
from aenmf_lib.data.preprocessing import read_labels
from aenmf_lib.data.progress import hide_progress_bars
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.metrics.score_cache import ScoreCache, fingerprint, source_code
from aenmf_lib.models.aenmf import AENMF
from aenmf_lib.models.base import check_rank, check_seeds
from aenmf_lib.models.matching import match_programs, stability
from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.training.inputs import Cells, as_cells
from aenmf_lib.training.moments import Moments

__all__ = ["rank_summary", "rank_table"]

log = logging.getLogger(__name__)

_GROUP = "rank_group"  # obs column with the half and the role of each cell
_HALVES = ("A", "B")
_TRAIN, _CELLS, _DONORS = "train", "cells", "donors"  # roles: training, held out as cells, or with their donor
_ERRORS = ["error", "error_cells", "error_donors", "error_genes"]
_COSINES = ["starts_mean", "starts_median", "halves_mean", "halves_median"]
_MEASURES = [*_ERRORS, *_COSINES, "dead", "seconds", "seconds_more"]
_ALWAYS = ["error", "error_cells", "error_genes", "dead", "seconds", "seconds_more"]  # measures that no row lacks
_GENE_FOLDS = 5  # each fifth of the genes is predicted from the others
_RCOND = 1e-6  # singular values below this share of the largest are rounding errors of float32 products
_DEAD = 1e-5  # a program with ‖h‖² ‖w‖² below this share of ‖X‖² is dead
_CODE = "data", "training", "models", "programs/rank.py"  # cached rows are computed again if this code changes
_PACKAGES = "numpy", "scipy", "torch", "numba"
# For `rank_summary`
_GAIN = 0.001  # a smaller relative decrease of error_genes does not count as an improvement
_MOST = 0.98  # the summary reports the smallest rank that reaches this share of the improvement
_STABLE = 0.9  # the programs of a rank with at least this median cosine are stable


def rank_table(
    cells: Cells, ranks: Sequence[int], *, seed: int = 42, starts: int = 2, held_out: float = 0.2,
    donor_key: str = DONOR, device: str = "cpu", cache: str | Path | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Fit AE-NMF at several ranks, and return the held-out errors, the stability and the time of each rank.

    Parameters
    ----------
    cells : n_cells × n_genes
        Filtered cells in memory or on disk, with the donors in obs.
    ranks
        Numbers of programs to compare. Their order and repetitions are ignored.
    seed, starts
        Seed of the first random start, and of the random division of donors, cells and genes; number of random starts.
    held_out
        Share of the donors, and share of the cells of each other donor, that training does not use.
    donor_key, device
        Column of obs with the donors; torch device, such as 'cpu' or 'cuda'.
    cache
        File (``.csv``) that stores each rank as soon as it is computed, so that an interrupted run can be resumed. A
        folder with the same name, without the extension, stores the states of unfinished fits.

    Returns
    -------
    DataFrame, one row per rank
        - ``k``: the rank
        - ``error``: ``‖X − X Wᵀ W‖ / ‖X‖`` of the training cells. ``error_cells``: the same for the held-out cells of
          the training donors; ``error_donors``: the same for all cells of the held-out donors
        - ``error_genes``: relative error of the held-out cells of the training donors, if each fifth of the genes is
          predicted from the other genes. A regression, fitted to the training cells, estimates the usages from the
          other genes (bi-cross-validation, after [1]_).
        - ``starts_mean``, ``starts_median``: mean and median over the programs of the first start of their cosine with
          the matched programs of the other starts. ``halves_mean``, ``halves_median``: the same for two fits, each to
          all cells of one half of the donors
        - ``dead``: number of programs with ``‖h‖² ‖w‖²`` below 1e-5 of ``‖X‖²``
        - ``seconds``: time of the first start; ``seconds_more``: time of the other starts and the two halves together
        - ``cells``, ``cells_out``, ``donors``, ``donors_out``: numbers of cells and donors in training and held out
        - ``starts``, ``held_out``: as given; ``note``: why some columns are empty

    Raises
    ------
    TypeError, ValueError, MemoryError
        The cells are not valid or too few; `ranks` is empty; a rank is not a whole number, or is larger than the number
        of cells or genes of the smallest fit; another setting is out of range; or memory is too small.

    References
    ----------
    .. [1] Owen & Perry (2009), Ann. Appl. Stat. 3:564, doi:10.1214/08-AOAS227.
    """
    ranks = _check_settings(ranks, starts, held_out, cache)
    AENMF(seed=seed, device=device)  # checks both
    check_seeds(seed, starts, "starts")
    cells = as_cells(cells)
    check_rank(ranks[0], cells.n_obs, cells.n_vars)
    donors = np.asarray(read_labels(cells.obs, donor_key, partly=False)).astype(str)
    half, role = _divide(cells.obs.index, donors, seed, held_out)
    n_donors = len(np.unique(donors))
    for name, what in ((_TRAIN, "left for training"), (_CELLS, "held out")):
        if not (role == name).any():
            raise ValueError(f"No cell of the training donors is {what} with held_out={held_out:g}, because the donors "
                             f"have too few cells ({cells.n_obs:,} cells of {n_donors:,} donors). Use donors with more "
                             "cells, or another value of held_out.")  # fmt: skip
    n_programs = sum(ranks) * (starts + (n_donors > 1))  # of all fits, which use the same sums
    moments = _moments(cells, half, role, k=n_programs, device=device)
    parts = {name: _select(moments, name) for name in (_TRAIN, _CELLS, _DONORS, *_HALVES[: min(n_donors, 2)])}
    _check_ranks(ranks, parts)

    made_from = fingerprint(
        source_code(*_CODE), cells.obs.index.to_numpy(str), cells.var_names.to_numpy(str), half, role,
        moments.donor_sums.cpu().numpy(), seed, starts, held_out, device, packages=_PACKAGES,
    )  # fmt: skip
    states = Path(cache).with_suffix("") if cache else None

    def measure(missing: list[tuple[int]]) -> Iterator[tuple[tuple[int], dict]]:
        for (k,) in missing:
            fitter = _Fitter(k, device, states and states / f"{made_from}_k{k}.npz")
            yield (k,), _measure(fitter, parts, range(seed, seed + starts))
            fitter.remove_states()

    scores = ScoreCache(cache, ["k", *_MEASURES], ["k"])
    scores.rows = {key: row for key, row in scores.rows.items() if not any(pd.isna(row[name]) for name in _ALWAYS)}
    with hide_progress_bars():
        table = scores.evaluate({(k,): made_from for k in ranks}, measure, description="ranks", unit="rank")
    if states and states.is_dir() and not any(states.iterdir()):
        states.rmdir()
    counts = {name: int((role == name).sum()) for name in (_TRAIN, _CELLS)}
    out = len(np.unique(donors[role == _DONORS]))
    reasons = ["one donor: no held-out donors and no halves of the donors"] * (n_donors == 1)
    reasons += ["one start: no comparison of starts"] * (starts == 1)
    return table.astype(dict.fromkeys(_MEASURES, float) | {"dead": int}).assign(
        cells=counts[_TRAIN], cells_out=counts[_CELLS], donors=n_donors - out, donors_out=out, starts=starts,
        held_out=held_out, note="; ".join(reasons),
    )  # fmt: skip


@dataclass
class _Fitter:
    """Fits of one rank with different cells and seeds. Their states stay on disk until `remove_states`."""

    k: int
    device: str
    state: Path | None  # file name of the states, to which each fit appends its own name
    seconds = 0.0  # time of all fits

    def fit(self, name: str, moments: Moments, seed: int) -> AENMF:
        """Return AE-NMF fitted to the moments, and log its iterations and time."""
        checkpoint = self.state and self.state.with_name(f"{self.state.stem}_{name}{seed}.npz")
        if checkpoint:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
        model = AENMF(k=self.k, seed=seed, device=self.device).fit(moments, checkpoint=checkpoint)
        self.seconds += model.seconds_
        log.info("k = %d, %s, seed %d: %d iterations, %.1f s", self.k, name, seed, model.n_iter_, model.seconds_)
        return model

    def remove_states(self) -> None:
        """Remove the states of all fits, after the rank is stored in the table."""
        for path in self.state.parent.glob(f"{self.state.stem}_*.npz") if self.state else ():
            path.unlink()


def _measure(fitter: _Fitter, parts: dict[str, Moments | None], seeds: range) -> dict[str, float]:
    """Return all measures of one rank. `parts` are the moments of each role and of each half."""
    model, *others = (fitter.fit("train", parts[_TRAIN], seed) for seed in seeds)
    found = {**dict.fromkeys(_MEASURES, np.nan), "seconds": model.seconds_}
    found["error"], shares = _error(parts[_TRAIN], model.W_)
    found["dead"] = int((shares < _DEAD).sum())
    found["error_cells"] = _error(parts[_CELLS], model.W_)[0]
    found["error_genes"] = _gene_error(parts[_TRAIN], parts[_CELLS], model.W_, seeds[0])
    if parts[_DONORS]:
        found["error_donors"] = _error(parts[_DONORS], model.W_)[0]
    cosines = {}
    if others:
        cosines["starts"] = stability([model.W_, *(other.W_ for other in others)])["cosine"]
    if "B" in parts:
        halves = [fitter.fit(f"half {name}", parts[name], seeds[0]).W_ for name in _HALVES]
        cosines["halves"] = match_programs(*halves)[1]
    for name, cosine in cosines.items():
        found |= {f"{name}_mean": float(np.mean(cosine)), f"{name}_median": float(np.median(cosine))}
    return found | {"seconds_more": fitter.seconds - model.seconds_}


# -------------------------------------------------------------------- errors
def _error(moments: Moments, W: np.ndarray) -> tuple[float, np.ndarray]:
    """Return ``‖X − X Wᵀ W‖ / ‖X‖``, and ``‖h‖² ‖w‖² / ‖X‖²`` of each program, (k,)."""
    objective = AENMFObjective(moments, lambda_W=0.0)
    point = objective.evaluate(torch.from_numpy(W).to(moments.device, moments.dtype))
    H, G = point.F[0].diagonal(), point.W.double().square().sum(1)  # squared norms of the columns of H, rows of W
    squared = max(point.loss * moments.n_cells / moments.sq_norm, 0.0)
    return squared**0.5, (H * G / moments.sq_norm).cpu().numpy()


def _gene_error(train: Moments, held_out: Moments, W: np.ndarray, seed: int) -> float:
    """Return the relative error of X if each fold of the genes is predicted from the other genes.

    Let b be the genes of a fold and a the other genes. The usages ``X Wᵀ`` are predicted by ``X W_aᵀ M``, where M is
    the least-squares solution for the training cells. With ``E = Mᵀ W_a``, the prediction of the genes b is ``X Eᵀ
    W_b``. Its squared error needs only products with S = XᵀX of the held-out cells:
    ``tr S_bb − 2⟨E S, W_b⟩ + ⟨E S Eᵀ, W_b W_bᵀ⟩``.
    """
    W, fold = W.astype(np.float64), np.random.default_rng(seed).permutation(W.shape[1]) % _GENE_FOLDS
    squared = held_out.gene_sq.double().sum().item()
    for b in range(_GENE_FOLDS):
        W_a, W_b = W * (fold != b), W * (fold == b)
        WS = _product(train, W_a)  # (k, n_genes)
        M = np.linalg.pinv(WS @ W_a.T, rcond=_RCOND, hermitian=True) @ (WS @ W.T)  # (k, k)
        ES = _product(held_out, E := M.T @ W_a)
        squared += float(np.sum((ES @ E.T) * (W_b @ W_b.T)) - 2 * np.sum(ES * W_b))
    return max(squared / held_out.sq_norm, 0.0) ** 0.5


def _product(moments: Moments, V: np.ndarray) -> np.ndarray:
    """Return V S in float64, (k, n_genes)."""
    return moments.product(torch.from_numpy(V).to(moments.device, moments.dtype)).double().cpu().numpy()


# -------------------------------------------------------------------- groups of cells
def _divide(names: pd.Index, donors: np.ndarray, seed: int, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the half ('A' or 'B') and the role of each cell. Neither depends on the order of the cells.

    The halves have similar numbers of cells. The held-out cells of a donor are those with the smallest hashes of names.
    """
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"donor": donors, "hash": pd.util.hash_array(names.to_numpy(object), hash_key=f"{seed:016d}")})
    sizes = table["donor"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    n = len(sizes)
    halves = np.concatenate([rng.permutation(2) for _ in range(0, n, 2)])[:n] if n > 1 else np.zeros(1, int)
    n_out = min(max(round(held_out * n), 1), n - 1)
    out = rng.permutation(sizes.index.to_numpy(str))[:n_out]
    by_donor = table.groupby("donor")["hash"]
    of_cell = by_donor.rank(method="first") <= (held_out * by_donor.transform("size")).round()
    role = np.where(table["donor"].isin(out), _DONORS, np.where(of_cell, _CELLS, _TRAIN))
    half = table["donor"].map(dict(zip(sizes.index, np.array(_HALVES)[halves], strict=True)))
    return half.to_numpy(str), role


def _moments(cells: AnnData | CellStream, half: np.ndarray, role: np.ndarray, *, k: int, device: str) -> Moments:
    """Return the sums over each half and role. The cells are neither changed nor copied."""
    obs = pd.DataFrame({_GROUP: np.char.add(np.char.add(half, ": "), role)}, index=cells.obs.index)
    if isinstance(cells, AnnData):
        grouped = AnnData(cells.X, obs=obs, var=pd.DataFrame(index=cells.var_names))
    else:
        grouped = copy.copy(cells)
        grouped.obs = obs
    return Moments.from_cells(grouped, donor=_GROUP, cell_type=False, by_donor=True, k=k, device=device)


def _select(moments: Moments, name: str) -> Moments | None:
    """Return the moments of one role or one half, or None if it has no cells."""
    chosen = [group for group in moments.partitions if name in group.split(": ")]
    return moments.subset(chosen) if chosen else None


# -------------------------------------------------------------------- checks
def _check_settings(ranks: Sequence[int], starts: int, held_out: float, cache: str | Path | None) -> list[int]:
    """Return the sorted ranks. Raise ValueError if a setting is not valid."""
    if np.ndim(ranks) != 1 or not len(ranks):
        raise ValueError(f"ranks={ranks!r} is not a list of at least one rank. Pass numbers such as [5, 10, 20].")
    for name, values in (("ranks", ranks), ("starts", [starts])):
        for value in values:
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if not whole or value < 1:
                raise ValueError(f"{name} contains {value!r}. Choose whole numbers of at least 1.")
    if not (isinstance(held_out, numbers.Real) and 0 < held_out < 1):
        raise ValueError(f"held_out={held_out!r} is not valid. Choose a share between 0 and 1, such as 0.2.")
    if cache and (Path(cache).suffix != ".csv" or Path(cache).is_dir()):
        raise ValueError(f"cache={str(cache)!r} is not the path of a CSV file. Choose a name such as 'rank_fits.csv'.")
    return sorted({int(k) for k in ranks})


def _check_ranks(ranks: list[int], parts: dict[str, Moments | None]) -> None:
    """Raise ValueError if a fit has fewer cells or genes than programs."""
    fits = {name: part.n_cells for name, part in parts.items() if name not in (_CELLS, _DONORS)}
    name, n_cells = min(fits.items(), key=lambda fit: fit[1])
    if ranks[-1] > (most := min(n_cells, parts[_TRAIN].n_genes)):
        used = "the training cells" if name == _TRAIN else "half of the donors"
        raise ValueError(f"k={ranks[-1]} is too large for {n_cells:,} cells ({used}) × {parts[_TRAIN].n_genes:,} "
                         f"genes. Choose ranks between 1 and {most}.")  # fmt: skip


# -------------------------------------------------------------------- summary
def rank_summary(table: pd.DataFrame) -> str:
    """Return one sentence about the ranks that the table of `rank_table` supports.

    The data support the smallest rank that reaches 98 % of the decrease of `error_genes` between the smallest rank and
    the best one. If this decrease is at most 0.1 %, the data support no more than the smallest rank. The sentence also
    reports ranks with stable programs, and dead programs. Raises ValueError if the table is empty, lacks a column, or
    has a row without `error_genes`.
    """
    if not len(table) or (missing := {"k", *_MEASURES} - set(table)):
        found = "has no rows" if not len(table) else f"has no column {min(missing)!r}"
        raise ValueError(f"The table {found}. Pass the table that rank_table returned.")
    if len(table) == 1:
        return f"A table with one rank, k = {table['k'].iloc[0]}, supports no choice; compare at least two ranks."
    if (empty := table["error_genes"].isna()).any():
        raise ValueError(f"The column 'error_genes' is empty in {empty.sum()} of {len(table)} rows (first: k = "
                         f"{table['k'][empty].iloc[0]}). Pass the table that rank_table returned.")  # fmt: skip
    table = table.sort_values("k").set_index("k")
    clauses = [_supported(table["error_genes"])]
    for name, between in (("starts", "starts"), ("halves", "halves of the donors")):
        cosine = table[f"{name}_median"]
        if cosine.notna().any():
            stable = ", ".join(map(str, table.index[cosine >= _STABLE]))
            clauses.append(f"the median cosine of programs between {between} is at least {_STABLE:g} at "
                           f"{f'k = {stable}' if stable else 'no rank'}")  # fmt: skip
    dead = table["dead"][table["dead"] > 0]
    clauses.append(f"{dead.iloc[0]} of {dead.index[0]} programs are dead at k = {dead.index[0]}" if len(dead)
                   else "no program is dead")  # fmt: skip
    clauses.append("the errors of held-out cells and donors support no choice, because they decrease with almost every "
                   "program, even without structure in the data; no column shows which programs have a biological "
                   "meaning")  # fmt: skip
    return "; ".join(clauses) + "."


def _supported(error: pd.Series) -> str:
    """Return the clause about `error_genes`. `error` is indexed by rank."""
    first, last, improvement = error.index[0], error.index[-1], error.iloc[0] - error.min()
    best = next(k for k in error.index if error[k] <= error.min() + (1 - _MOST) * improvement)
    values = "error " + ", ".join(f"{error[k]:.3f} at k = {k}" for k in dict.fromkeys((first, best, last)))
    if improvement <= _GAIN * error[first]:
        return (f"No rank predicts the genes of held-out cells more than {_GAIN:.1%} better than the smallest rank "
                f"({values}), so the data support no more than k = {first}")  # fmt: skip
    if best == last:
        return (f"The prediction of the genes of held-out cells still improves at the largest rank ({values}), so the "
                f"data support k = {last} and perhaps more")  # fmt: skip
    return (f"The prediction of the genes of held-out cells reaches {_MOST:.0%} of its improvement at k = {best} "
            f"({values}), so more programs than that add little")  # fmt: skip
