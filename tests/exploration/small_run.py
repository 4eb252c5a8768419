"""Results of a small run, as notebook 09 finds them."""

from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, data, results
from aenmf_lib.data import files

K = 4


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``results/demo``: four small models of 600 cells, UMAP coordinates of all but Base NMF, and genes."""
    root = tmp_path_factory.mktemp("run")
    folder = root / "results/demo"
    (folder / "k12").mkdir(parents=True)
    raw = data.simulate(n_cells=600, n_genes=1300)[0].raw.to_adata()
    cells, _ = data.filter_cells(raw, min_cells=20)
    rng = np.random.default_rng(0)
    cells.obs["score"] = rng.normal(size=cells.n_obs)
    cells.obs.loc[cells.obs_names[::7], "score"] = np.nan
    cells.obs["barcode"] = cells.obs_names
    cells.obs["state"] = np.where(np.arange(cells.n_obs) % 5 == 0, None, "a < b & c")
    cells.var["feature_name"] = [f"SYM{i}" for i in range(cells.n_vars)]
    files.write_h5ad(cells, folder / "filtered.h5ad")
    cells = data.load(folder / "filtered.h5ad")
    models = [AENMF(k=K, max_iter=5), CAENMF1(k=K, max_iter=5), CAENMF2(k=K, max_iter=5), BaseNMF(k=K, max_iter=5)]
    for model in models:
        results.write(folder / f"k12/{model.name.lower()}_k12.h5ad", model.fit(cells), cells)
    centers = rng.normal(size=(20, 2)) * 5  # the cells of a type are close
    types = cells.obs["cell_type"].cat.codes
    maps = {f"X_umap_{model.name}": (centers[types] + rng.normal(size=(cells.n_obs, 2))).astype(np.float32)
            for model in models[:3]}  # fmt: skip
    files.write_h5ad(AnnData(obs=cells.obs[["cell_type", "donor_id"]], obsm=maps), folder / "k12/umap.h5ad")
    return root


@pytest.fixture(scope="session")
def paths(run: Path) -> tuple[list[Path], Path, Path]:
    """The arguments of `explore` for this run."""
    folder = run / "results/demo"
    return sorted(folder.glob("k12/*_k12.h5ad")), folder / "k12", folder / "filtered.h5ad"
