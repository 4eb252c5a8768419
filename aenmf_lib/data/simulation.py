"""Simulated immune cells of several donors with known ground truth, in the format of a CELLxGENE file.

Every cell is a mixture of non-negative gene programs. Donors differ by an added profile (the assumption of model 1) and
by donor-specific programs (the assumption of model 2). Counts are negative binomial at realistic depth.
"""

import numbers
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib.data import files, preprocessing

# program -> number of genes. Every cell uses the first; the usages of the activities vary from cell to cell.
_ACTIVITIES = {"interferon": 40, "cell cycle": 50, "stress": 40}
PROGRAMS = {
    "housekeeping": 120, "T cell": 60, "CD8 cytotoxic": 50, "NK": 50, "B": 60, "plasma": 50, "monocyte": 70,
    "dendritic": 50, "mast": 40, **_ACTIVITIES,
}  # fmt: skip
# cell type -> its share of the cells, and its usages of the identity programs
_CELL_TYPES = {
    "CD4-positive, alpha-beta T cell": (0.28, {"T cell": 1.0}),
    "CD8-positive, alpha-beta T cell": (0.18, {"T cell": 0.8, "CD8 cytotoxic": 0.7}),
    "natural killer cell": (0.10, {"NK": 1.0, "CD8 cytotoxic": 0.4}),
    "B cell": (0.13, {"B": 1.0}),
    "plasma cell": (0.05, {"plasma": 1.2, "B": 0.2}),
    "classical monocyte": (0.18, {"monocyte": 1.1}),
    "dendritic cell": (0.07, {"dendritic": 1.0, "monocyte": 0.3}),
    "mast cell": (0.01, {"mast": 1.2}),
}
_DONOR_SHARES = (0.27, 0.22, 0.19, 0.16, 0.12, 0.04)  # the last donor has fewer cells than the demo's threshold
_CONDITIONS = ("control", "treated")  # the donors get these conditions in turn
_MANY_DONORS = {"n_genes": 3200, "n_donors": 40, "donor_programs": 0.0}
# name of the data set -> arguments of `simulate`
_SCENARIOS = {
    "demo": {},
    "demo_none": {"donor_profiles": 0.0, "donor_programs": 0.0},
    "demo_weak": {"donor_profiles": 0.25, "donor_programs": 0.25},
    "demo_confounded": {"composition_concentration": 3.0},
    "demo_many": _MANY_DONORS | {"donor_profiles": np.random.default_rng(0).gamma(2, 2, (40, 2))},  # rank 2
    "demo_many_full": _MANY_DONORS | {"donor_profiles": 4 * np.eye(40)},  # a profile for each donor
}

_BACKGROUND = 0.25  # share of a cell's counts that is spread over all genes and belongs to no program
_PROFILE_GENES = 30  # genes in the added profile of a donor
_SHARED_GENES = 40  # genes in a profile that donors share; they are from two programs
_CHANGED_PROGRAMS = 4  # programs that differ in a donor
_CHANGED_GENES = 15  # genes that such a program gains


@dataclass(frozen=True)
class Truth:
    """The ground truth of a simulation. All but H are log1p of counts per 10,000 of a cell with typical usages."""

    W: np.ndarray  # (n_programs, n_genes)
    donor_profiles: np.ndarray  # (n_donors, n_genes), the added profile of each donor
    donor_programs: np.ndarray  # (n_donors, n_programs, n_genes), the gain of each program in each donor
    H: np.ndarray  # (n_cells, n_programs), usages


def simulate(
    n_cells: int = 5000,
    n_genes: int = 2000,
    *,
    seed: int = 0,
    donor_profiles: float | np.ndarray = 1.0,
    donor_programs: float = 1.0,
    composition_concentration: float = 60.0,
    n_donors: int = len(_DONOR_SHARES),
    treatment: tuple[str, str, float] | None = None,
) -> tuple[AnnData, Truth]:
    """Simulate `n_cells` cells with `n_genes` genes; the same `seed` gives the same cells.

    Parameters
    ----------
    donor_profiles, donor_programs
        Strength of the added profiles and of the donor-specific changes of the programs. 0 simulates none. If
        `donor_profiles` is an array (n_donors, r), the donors share r profiles, and the array contains the usages of
        these profiles by each donor: the added profiles have rank r or less. The genes of a shared profile are from two
        programs.
    composition_concentration
        Concentration of the Dirichlet distribution of the cell-type shares of each donor. With 60 the donors have
        similar shares. With 3 some donors have almost no cells of some types, which confounds donor and composition.
    n_donors
        Number of donors. Up to six donors have different numbers of cells; more than six have similar numbers.
    treatment
        A program, a cell type and a factor, such as ``("interferon", "B cell", 2.0)``. In treated donors, the usage of
        this program in the cells of this type is multiplied by the factor. By default, treated donors do not differ.

    Returns
    -------
    cells, truth : AnnData, Truth
        ``raw.X`` integer counts, ``X`` log-normalized, ``obs['cell_type']`` and ``obs['donor_id']`` categorical,
        ``obs['condition']`` categorical ('control', or 'treated' for every second donor), Ensembl-like ``var_names``
        with ``feature_name``, and the truth, which ``uns['truth']`` also contains.

    Raises
    ------
    ValueError
        A number has a wrong type or is out of range, the genes are too few, or an array or the treatment is not valid.
    """
    whole = {"n_cells": (n_cells, 1), "n_genes": (n_genes, 1), "n_donors": (n_donors, 1), "seed": (seed, 0)}
    real = {"donor_programs": (donor_programs, 0), "composition_concentration": (composition_concentration, 0.01)}
    if not (shared := isinstance(donor_profiles, np.ndarray)):
        real["donor_profiles"] = donor_profiles, 0
    for name, (value, least) in (whole | real).items():
        if not _is_number(value, least, numbers.Integral if name in whole else numbers.Real):
            kind = "whole" if name in whole else "finite"
            raise ValueError(f"{name}={value!r} is not valid. Choose a {kind} number of at least {least}.")
    if shared and not _are_usages(donor_profiles, n_donors):
        raise ValueError(f"donor_profiles of shape {donor_profiles.shape} is not valid. Expected one row per donor "
                         f"({n_donors}), at least one column, and finite numbers of at least 0.")  # fmt: skip
    if treatment is not None and not _is_treatment(treatment):
        known = f"Expected a program ({', '.join(PROGRAMS)}), a cell type ({', '.join(_CELL_TYPES)}) and a factor ≥ 0"
        raise ValueError(f"treatment={treatment!r} is not valid. {known}.")
    own = 0 if shared else _PROFILE_GENES
    needed = sum(PROGRAMS.values()) + n_donors * (own + _CHANGED_PROGRAMS * _CHANGED_GENES)
    if n_genes < needed:
        raise ValueError(f"n_genes={n_genes} is too small for the programs and donors. Set it to {needed} or more.")
    rng = np.random.default_rng(seed)
    W, profiles, programs, names = _draw_programs(rng, n_genes, n_donors, own)
    if shared:
        profiles = donor_profiles @ _draw_shared_profiles(rng, donor_profiles.shape[1], W) * 0.05
    else:
        profiles *= donor_profiles * 0.05
    programs *= donor_programs * 0.15
    background = rng.lognormal(0, 1, n_genes)
    background *= _BACKGROUND / background.sum()

    shares = np.array(_DONOR_SHARES[:n_donors] if n_donors <= len(_DONOR_SHARES) else np.ones(n_donors))
    donor = np.sort(rng.choice(n_donors, n_cells, p=shares / sum(shares)))
    H, cell_type = _draw_usages(rng, donor, composition_concentration)
    if treatment:
        program, name, factor = treatment
        H[(cell_type == list(_CELL_TYPES).index(name)) & (donor % 2 == 1), list(PROGRAMS).index(program)] *= factor
    rate = H @ W + background + profiles[donor]  # (n_cells, n_genes)
    for d in range(n_donors):
        rate[donor == d] += H[donor == d] @ programs[d]
    depth = rng.lognormal(np.log(3000), 0.35, n_cells)
    mean = rate / rate.sum(axis=1, keepdims=True) * depth[:, None]
    counts = csr_matrix(rng.poisson(mean * rng.gamma(4, 1 / 4, mean.shape)).astype(np.float32))  # dispersion 1/4

    scale = 1e4 / rate.sum(axis=1).mean()  # counts per 10,000 at a rate of 1
    usual = np.array([np.median(h[h > 0.1]) for h in H.T])[:, None]  # (n_programs, 1), typical usage
    order = rng.permutation(n_cells)  # the cells of real files are not sorted by donor
    truth = Truth(np.log1p(scale * usual * W), np.log1p(scale * profiles), np.log1p(scale * usual * programs), H[order])

    counts, donor = counts[order], donor[order]
    donor_names = [f"SIM{d + 1}" for d in range(n_donors)]
    obs = pd.DataFrame(index=[f"{donor_names[d]}_{i:05d}" for d, i in zip(donor, order, strict=True)])
    obs["cell_type"] = pd.Categorical.from_codes(cell_type[order], list(_CELL_TYPES))
    obs["donor_id"] = pd.Categorical.from_codes(donor, donor_names)
    obs["condition"] = pd.Categorical.from_codes(donor % 2, _CONDITIONS)
    obs = obs.assign(assay="simulated", tissue="blood", disease="normal").astype("category")
    ids = [f"ENSG9{i:010d}" for i in range(n_genes)]  # no human gene has such an id
    var = pd.DataFrame({"feature_name": names.astype(str), "feature_is_filtered": False}, index=ids)
    cells = AnnData(counts, obs=obs, var=var)
    cells.raw = cells.copy()
    cells.X = preprocessing.normalize(counts)
    planted = {"W": truth.W, "added": truth.donor_profiles, "bent": truth.donor_programs}
    title = "Simulated immune cells with planted programs and donor effects"
    cells.uns = {"title": title, "truth": planted | {"programs": np.array(list(PROGRAMS))}}
    return cells, truth


def write_demo(path: str | Path) -> None:
    """Simulate the scenario named by the file's stem (``demo``, ``demo_weak``, …) and write it as ``.h5ad``."""
    name = Path(path).stem
    if name not in _SCENARIOS:
        raise ValueError(f"Unknown scenario {name!r}. Name the file after one of: {', '.join(_SCENARIOS)}.")
    files.write_h5ad(simulate(**_SCENARIOS[name])[0], path)


def _is_number(value: object, least: float, kind: type = numbers.Real) -> bool:
    """Return whether a value is a finite number of this kind and at least `least`."""
    return isinstance(value, kind) and not isinstance(value, bool) and least <= value < np.inf


def _are_usages(value: np.ndarray, n_donors: int) -> bool:
    """Return whether an array has one row per donor, at least one column, and only finite numbers of at least 0."""
    fits = value.ndim == 2 and len(value) == n_donors and value.size > 0 and np.issubdtype(value.dtype, np.number)
    return fits and bool((value >= 0).all() and np.isfinite(value).all())


def _is_treatment(value: object) -> bool:
    """Return whether a value is a program, a cell type and a factor."""
    fits = isinstance(value, tuple | list) and len(value) == 3
    return fits and value[0] in [*PROGRAMS] and value[1] in [*_CELL_TYPES] and _is_number(value[2], 0)


def _draw_programs(rng: np.random.Generator, n_genes: int, n_donors: int, own: int) -> tuple[np.ndarray, ...]:
    """Draw W (k, n_genes), donor profiles (n_donors, n_genes) of `own` genes each, changed programs, gene names."""
    k = len(PROGRAMS)
    unused = iter(rng.permutation(n_genes))
    W, profiles, programs = (np.zeros((*shape, n_genes)) for shape in ((k,), (n_donors,), (n_donors, k)))
    names = np.array([f"BG{i:04d}" for i in range(n_genes)], dtype=object)
    for j, (program, size) in enumerate(PROGRAMS.items()):
        genes = list(islice(unused, size))
        W[j, genes] = _draw_weights(rng, size)
        names[genes] = [f"{program.upper().replace(' ', '_')}{i + 1}" for i in range(size)]
    for d in range(n_donors):
        profiles[d, list(islice(unused, own))] = _draw_weights(rng, own)
        for j in rng.choice(k - len(_ACTIVITIES) - 1, _CHANGED_PROGRAMS, replace=False):
            programs[d, j, list(islice(unused, _CHANGED_GENES))] = _draw_weights(rng, _CHANGED_GENES)
    return W, profiles, programs, names


def _draw_shared_profiles(rng: np.random.Generator, n: int, W: np.ndarray) -> np.ndarray:
    """Draw (n, n_genes) profiles, each with genes of two programs; each profile sums to 1."""
    profiles = np.zeros((n, W.shape[1]))
    for profile in profiles:
        genes = np.flatnonzero(W[rng.choice(len(W), 2, replace=False)].any(axis=0))
        profile[rng.choice(genes, _SHARED_GENES, replace=False)] = _draw_weights(rng, _SHARED_GENES)
    return profiles


def _draw_weights(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw (n,) positive weights that sum to 1."""
    weights = rng.gamma(4, 1, n)
    return weights / weights.sum()


def _draw_usages(rng: np.random.Generator, donor: np.ndarray, concentration: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw the usages (n_cells, n_programs) and the type (n_cells,) of each cell, by the shares of its donor."""
    types, programs = list(_CELL_TYPES), list(PROGRAMS)
    shares = np.array([share for share, _ in _CELL_TYPES.values()])
    donor_shares = rng.dirichlet(concentration * shares / shares.sum(), donor.max() + 1)
    donor_shares[:, -1] = shares[-1]  # every donor has the rare type
    donor_shares /= donor_shares.sum(axis=1, keepdims=True)
    cell_type = np.array([rng.choice(len(types), p=donor_shares[d]) for d in donor])
    H = np.zeros((len(donor), len(programs)))
    H[:, 0] = 1.0
    for t, name in enumerate(types):
        for program, usage in _CELL_TYPES[name][1].items():
            H[cell_type == t, programs.index(program)] = usage
    H *= rng.gamma(12, 1 / 12, H.shape)
    for program in _ACTIVITIES:
        H[:, programs.index(program)] = rng.gamma(0.7, 0.3, len(donor))  # high in a few cells, low in most
    return H, cell_type
