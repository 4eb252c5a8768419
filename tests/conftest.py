"""Cells that several tests use."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.sparse import random as sparse_random

from aenmf_lib import data
from aenmf_lib.data import files, simulation

torch.set_num_threads(1)  # the problems are small: threads would mostly wait for each other


@pytest.fixture(scope="session")
def demo():
    """Simulated cells in the format of a user's file, and the truth."""
    return data.simulate()


@pytest.fixture(scope="session")
def planted(demo):
    """The simulated cells filtered as by notebook 01, and the truth of the kept genes and donors."""
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
    files.write_h5ad(counts, path)  # also with pandas 3, whose text columns older anndata cannot read
    return path


def tiny_cells(seed: int = 0, n_cells: int = 60, n_genes: int = 40) -> AnnData:
    """Return random non-negative cells in float64 with three donors and two types."""
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


def filtered(cells: AnnData, truth: simulation.Truth, *, min_cells: int = 500) -> tuple[AnnData, simulation.Truth]:
    """Return the cells filtered as by notebook 01, and the truth of the kept genes and donors."""
    kept, _ = data.filter_cells(cells.raw.to_adata(), min_cells=min_cells)
    genes = cells.var_names.get_indexer(kept.var_names)
    donors = cells.obs["donor_id"].cat.categories.get_indexer(kept.obs["donor_id"].cat.categories)
    return kept, simulation.Truth(
        truth.W[:, genes], truth.donor_profiles[donors][:, genes], truth.donor_programs[donors][..., genes], truth.H
    )
