"""The default data set looks like a CELLxGENE file, and its truth is what was planted."""

import numpy as np
import pytest

from aenmf_lib import data
from aenmf_lib.data import simulation


def test_shape_of_a_cellxgene_file(demo, tmp_path):
    cells, _ = demo
    raw = cells.raw.X
    assert (raw.data % 1 == 0).all()
    assert np.abs(cells.X - data.normalize(raw)).max() == 0
    assert {"cell_type", "donor_id"} <= set(cells.obs)
    assert (cells.obs[["cell_type", "donor_id"]].dtypes == "category").all()
    assert cells.var_names.str.match(r"^ENSG\d{11}$").all()
    assert cells.var["feature_name"].is_unique
    cells.write_h5ad(tmp_path / "demo.h5ad")
    assert data.read_counts(tmp_path / "demo.h5ad")[1] == "raw.X"


def test_realistic_depth_and_sparsity(demo):
    depth = np.asarray(demo[0].raw.X.sum(axis=1)).ravel()
    assert 2000 < np.median(depth) < 4500
    assert np.quantile(depth, 0.95) > 2 * np.quantile(depth, 0.05)
    assert 0.6 < 1 - demo[0].raw.X.nnz / np.prod(demo[0].shape) < 0.95


def test_unequal_donors_one_under_the_threshold_and_a_rare_type(demo):
    donors = demo[0].obs["donor_id"].value_counts()
    assert donors.max() > 3 * donors.min()
    assert (donors < 500).sum() == 1
    assert demo[0].obs["cell_type"].value_counts(normalize=True).min() < 0.03


def test_same_seed_same_cells():
    (first, _), (again, _), (other, _) = (data.simulate(300, seed=seed) for seed in (1, 1, 2))
    assert (first.raw.X != again.raw.X).nnz == 0
    assert first.obs.equals(again.obs)
    assert (first.raw.X != other.raw.X).nnz > 0


def test_expression_follows_the_planted_usages(demo):
    """Cells that use a program more hold more counts of its genes."""
    cells, truth = demo
    share = cells.raw.X.multiply(1 / cells.raw.X.sum(axis=1)).tocsr()
    for j, name in enumerate(simulation.PROGRAMS):
        counts = np.asarray(share[:, truth.W[j] > 0].sum(axis=1)).ravel()
        if name != "housekeeping":  # used by all alike
            assert np.corrcoef(counts, truth.H[:, j])[0, 1] > 0.8, name


def test_donor_effects_are_in_the_counts_where_planted_and_nowhere_else(demo):
    cells, truth = demo
    share = data.normalize(cells.raw.X).toarray()
    codes = cells.obs["donor_id"].cat.codes.to_numpy()
    for d in range(len(truth.added)):
        gain = share[codes == d].mean(0) - share[codes != d].mean(0)
        genes = truth.added[d] > 0
        assert gain[genes].min() > 0.2
        untouched = (truth.added.max(0) == 0) & (truth.bent.max((0, 1)) == 0) & (truth.W.max(0) == 0)
        assert np.abs(gain[untouched]).mean() < 0.1

    _, none = data.simulate(200, added=0, bent=0)
    assert not none.added.any()
    assert not none.bent.any()


def test_too_few_genes_are_refused():
    with pytest.raises(ValueError, match="n_genes = 500: the programs and the donors' genes need"):
        data.simulate(100, 500)
