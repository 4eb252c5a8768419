"""Cells that several tests use."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.sparse import random as sparse_random

from aenmf_lib import data
from aenmf_lib.data import simulation

torch.set_num_threads(1)  # the problems are small: threads would wait for each other, the more so on a busy machine


@pytest.fixture(scope="session")
def demo():
    """Simulated cells, as a user's file would hold them, and what was planted."""
    return data.simulate()


@pytest.fixture(scope="session")
def planted(demo):
    """The demo's cells filtered as notebook 01 does, and the truth for the genes and donors kept."""
    return filtered(*demo)


@pytest.fixture
def tiny() -> AnnData:
    """60 × 40 random cells in float64, three donors and two types, for comparisons with dense formulas."""
    return tiny_cells()


@pytest.fixture
def h5ad(tmp_path: Path, tiny: AnnData) -> Path:
    """A file of raw counts in X."""
    counts = tiny.copy()
    counts.X = (counts.X * 3).astype(np.float32)
    counts.X.data = np.ceil(counts.X.data)
    path = tmp_path / "cells.h5ad"
    counts.write_h5ad(path)
    return path


def tiny_cells(seed: int = 0, n_cells: int = 60, n_genes: int = 40) -> AnnData:
    rng = np.random.default_rng(seed)
    X = sparse_random(n_cells, n_genes, density=0.3, format="csr", random_state=rng, dtype=np.float64)
    X.data = rng.gamma(2, 1, X.nnz)
    obs = pd.DataFrame(
        {
            "donor_id": pd.Categorical(rng.choice(["d1", "d2", "d3"], n_cells)),
            "cell_type": pd.Categorical(rng.choice(["T", "B"], n_cells)),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    return AnnData(X, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))


def filtered(cells: AnnData, truth: simulation.Truth, *, min_cells: int = 500):
    kept, _ = data.filter_cells(cells.raw.to_adata(), min_cells=min_cells)
    genes = cells.var_names.get_indexer(kept.var_names)
    rows = [list(cells.obs["donor_id"].cat.categories).index(d) for d in kept.obs["donor_id"].cat.categories]
    return kept, simulation.Truth(truth.W[:, genes], truth.added[rows][:, genes], truth.bent[rows][..., genes], truth.H)
