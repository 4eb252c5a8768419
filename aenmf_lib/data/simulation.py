"""What do cells with a known answer look like?

Simulated immune cells of several donors in the shape of a CELLxGENE file. Every cell mixes non-negative gene
programs; donors differ by an added profile (what model 1 assumes) and by programs that bend (what model 2 assumes);
counts are negative binomial at realistic depth. The truth is kept in ``uns['truth']``.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib.data import files, preprocessing

log = logging.getLogger(__name__)

# program -> number of genes; the first is used by every cell, the last three vary from cell to cell
PROGRAMS = {
    "housekeeping": 120,
    "T cell": 60,
    "CD8 cytotoxic": 50,
    "NK": 50,
    "B": 60,
    "plasma": 50,
    "monocyte": 70,
    "dendritic": 50,
    "mast": 40,
    "interferon": 40,
    "cell cycle": 50,
    "stress": 40,
}
ACTIVITIES = ("interferon", "cell cycle", "stress")
# cell type -> its share of the cells and the identity programs it uses
CELL_TYPES = {
    "CD4-positive, alpha-beta T cell": (0.28, {"T cell": 1.0}),
    "CD8-positive, alpha-beta T cell": (0.18, {"T cell": 0.8, "CD8 cytotoxic": 0.7}),
    "natural killer cell": (0.10, {"NK": 1.0, "CD8 cytotoxic": 0.4}),
    "B cell": (0.13, {"B": 1.0}),
    "plasma cell": (0.05, {"plasma": 1.2, "B": 0.2}),
    "classical monocyte": (0.18, {"monocyte": 1.1}),
    "dendritic cell": (0.07, {"dendritic": 1.0, "monocyte": 0.3}),
    "mast cell": (0.01, {"mast": 1.2}),
}
# name of the data set -> what is planted in it
SCENARIOS = {
    "demo": {},
    "demo_none": {"added": 0.0, "bent": 0.0},
    "demo_weak": {"added": 0.25, "bent": 0.25},
    "demo_confounded": {"alike": 3.0},
}
DONOR_SHARES = (0.27, 0.22, 0.19, 0.16, 0.12, 0.04)  # the last stays under the threshold of the demo

_BACKGROUND = 0.25  # share of a cell's counts that no program makes, spread over all genes
_DONOR_GENES = 30  # genes of a donor's added profile
_BENT_PROGRAMS = 4  # programs that bend in a donor
_BENT_GENES = 15  # genes a bent program gains


@dataclass(frozen=True)
class Truth:
    """What was planted, in the units the models see: log1p of counts per 10 000 of a cell that uses it as usual."""

    W: np.ndarray  # (n_programs, n_genes)
    added: np.ndarray  # (n_donors, n_genes), a profile per donor
    bent: np.ndarray  # (n_donors, n_programs, n_genes), what a program gains in a donor
    H: np.ndarray  # (n_cells, n_programs), usages


def simulate(
    n_cells: int = 5000,
    n_genes: int = 2000,
    *,
    seed: int = 0,
    added: float = 1.0,
    bent: float = 1.0,
    alike: float = 60.0,
) -> tuple[AnnData, Truth]:
    """Simulate cells.

    Parameters
    ----------
    n_cells, n_genes
        Size; there must be room for the programs and the donors' genes.
    seed
        Everything random; the same seed gives the same counts.
    added, bent
        Strength of the donors' added profiles and of the bending of their programs; 0 plants none.
    alike
        How alike donors are in their shares of the cell types (of a Dirichlet distribution): 60 nearly, with 3 some
        types are all but missing in some donors, and the donor is confounded with the composition.

    Returns
    -------
    cells : AnnData
        ``raw.X`` integer counts, ``X`` log-normalized, ``obs['cell_type']`` and ``obs['donor_id']`` categorical,
        Ensembl-like ``var_names`` with ``feature_name``.
    truth : Truth

    Raises
    ------
    ValueError
        Too few genes.
    """
    n_donors, k = len(DONOR_SHARES), len(PROGRAMS)
    needed = sum(PROGRAMS.values()) + n_donors * (_DONOR_GENES + _BENT_PROGRAMS * _BENT_GENES)
    if n_genes < needed:
        raise ValueError(f"n_genes = {n_genes}: the programs and the donors' genes need {needed}.")
    rng = np.random.default_rng(seed)

    genes = iter(rng.permutation(n_genes))
    take = lambda n: np.array([next(genes) for _ in range(n)])  # noqa: E731
    W, names = np.zeros((k, n_genes)), np.array([f"BG{i:04d}" for i in range(n_genes)], dtype=object)
    for j, (program, size) in enumerate(PROGRAMS.items()):
        members = take(size)
        W[j, members] = _weights(rng, size)
        names[members] = [f"{program.upper().replace(' ', '_')}{i + 1}" for i in range(size)]
    A, B = np.zeros((n_donors, n_genes)), np.zeros((n_donors, k, n_genes))
    for d in range(n_donors):
        A[d, take(_DONOR_GENES)] = added * 0.05 * _weights(rng, _DONOR_GENES)
        for j in rng.choice(k - len(ACTIVITIES) - 1, _BENT_PROGRAMS, replace=False):
            B[d, j, take(_BENT_GENES)] = bent * 0.15 * _weights(rng, _BENT_GENES)
    background = rng.lognormal(0, 1, n_genes)
    background *= _BACKGROUND / background.sum()

    donor = np.sort(rng.choice(n_donors, n_cells, p=np.array(DONOR_SHARES) / sum(DONOR_SHARES)))
    H, kind = _usages(rng, donor, alike)
    rate = H @ W + background + A[donor]
    for d in range(n_donors):
        rate[donor == d] += H[donor == d] @ B[d]
    depth = rng.lognormal(np.log(3000), 0.35, n_cells)
    mean = rate / rate.sum(axis=1, keepdims=True) * depth[:, None]
    counts = csr_matrix(rng.poisson(mean * rng.gamma(4, 1 / 4, mean.shape)).astype(np.float32))  # dispersion 1/4

    usual = 1e4 / rate.sum(axis=1).mean()  # counts per 10 000 that a rate of 1 makes
    level = np.array([np.median(h[h > 0.1]) for h in H.T])
    truth = Truth(np.log1p(usual * level[:, None] * W), np.log1p(usual * A), np.log1p(usual * level[:, None] * B), H)
    return _cellxgene(rng, counts, kind, donor, names, truth), truth


def _weights(rng: np.random.Generator, n: int) -> np.ndarray:
    w = rng.gamma(4, 1, n)
    return w / w.sum()


def _usages(rng: np.random.Generator, donor: np.ndarray, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw each cell's type, in a composition of its donor's own, and its usages."""
    names, programs = list(CELL_TYPES), list(PROGRAMS)
    shares = np.array([share for share, _ in CELL_TYPES.values()])
    own = rng.dirichlet(alike * shares / shares.sum(), donor.max() + 1)
    own[:, -1] = shares[-1]  # the rare type is in every donor
    own /= own.sum(axis=1, keepdims=True)
    kind = np.array([rng.choice(len(names), p=own[d]) for d in donor])
    H = np.zeros((len(donor), len(programs)))
    H[:, 0] = 1.0
    for t, name in enumerate(names):
        for program, usage in CELL_TYPES[name][1].items():
            H[kind == t, programs.index(program)] = usage
    H *= rng.gamma(12, 1 / 12, H.shape)
    for program in ACTIVITIES:
        H[:, programs.index(program)] = rng.gamma(0.7, 0.3, len(donor))  # a few cells much, most little
    return H, kind


def _cellxgene(rng, counts, kind, donor, names, truth) -> AnnData:
    n_cells, n_genes = counts.shape
    order = rng.permutation(n_cells)  # cells of a file are not sorted by donor
    counts, kind, donor = counts[order], kind[order], donor[order]
    truth.H[:] = truth.H[order]
    label = pd.Categorical.from_codes
    obs = pd.DataFrame(
        {
            "cell_type": label(kind, list(CELL_TYPES)),
            "donor_id": label(donor, [f"SIM{d + 1}" for d in range(len(DONOR_SHARES))]),
            "assay": pd.Categorical(["simulated"] * n_cells),
            "tissue": pd.Categorical(["blood"] * n_cells),
            "disease": pd.Categorical(["normal"] * n_cells),
        },
        index=[f"SIM{d + 1}_{i:05d}" for d, i in zip(donor, order, strict=True)],
    )
    var = pd.DataFrame(
        {"feature_name": names.astype(str), "feature_is_filtered": False},
        index=[f"ENSG9{i:010d}" for i in range(n_genes)],  # no human gene has such an id
    )
    cells = AnnData(counts, obs=obs, var=var)
    cells.raw = cells.copy()
    cells.X = preprocessing.normalize(counts)
    cells.uns = {
        "title": "Simulated immune cells with planted programs and donor effects",
        "truth": {"W": truth.W, "added": truth.added, "bent": truth.bent, "programs": np.array(list(PROGRAMS))},
    }
    return cells


if __name__ == "__main__":
    (path,) = map(Path, sys.argv[1:])
    files.write_h5ad(simulate(**SCENARIOS[path.stem])[0], path)
