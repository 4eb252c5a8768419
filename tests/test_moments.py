"""Products and sums over the cells, against dense ones."""

import numpy as np
import pytest
import torch
from conftest import tiny_cells

from aenmf_lib import moments as module
from aenmf_lib.moments import Moments


@pytest.fixture
def cells():
    return tiny_cells()


def codes(cells):
    return {
        "donor": cells.obs["donor_id"].cat.codes.to_numpy(),
        "cell_type": cells.obs["cell_type"].cat.codes.to_numpy(),
    }


def test_product_is_that_with_the_second_moment(cells):
    X, V = cells.X.toarray(), np.random.default_rng(1).normal(size=(7, cells.n_vars))
    np.testing.assert_allclose(Moments(cells.X).product(torch.from_numpy(V)).numpy(), V @ X.T @ X, rtol=1e-12)


def test_product_by_donor_takes_one_or_several_factors(cells):
    X, donor = cells.X.toarray(), codes(cells)["donor"]
    by_donor = Moments(cells.X, donor=donor, by_donor=True)
    V = np.random.default_rng(1).normal(size=(3, 7, cells.n_vars))
    expected = np.stack([V[d] @ X[donor == d].T @ X[donor == d] for d in range(3)])
    np.testing.assert_allclose(by_donor.product_by_donor(torch.from_numpy(V)).numpy(), expected, rtol=1e-11)
    one = by_donor.product_by_donor(torch.from_numpy(V[0])).sum(0)
    np.testing.assert_allclose(one.numpy(), V[0] @ X.T @ X, rtol=1e-11)
    np.testing.assert_allclose(by_donor.product(torch.from_numpy(V[0])).numpy(), V[0] @ X.T @ X, rtol=1e-11)


def test_sums(cells):
    X, donor, cell_type = cells.X.toarray(), *codes(cells).values()
    sums = Moments(cells.X, **codes(cells), by_donor=True)
    assert sums.sq_norm == pytest.approx((X**2).sum(), rel=1e-12)
    np.testing.assert_allclose(sums.donor_sums, [X[donor == d].sum(0) for d in range(3)], rtol=1e-12)
    np.testing.assert_array_equal(sums.donor_counts, np.bincount(donor))
    np.testing.assert_allclose(sums.gene_sq, [(X[donor == d] ** 2).sum(0) for d in range(3)], rtol=1e-12)
    groups = [(t, d) for t in range(2) for d in range(3)]
    np.testing.assert_allclose(
        sums.group_sums, [X[(cell_type == t) & (donor == d)].sum(0) for t, d in groups], rtol=1e-12
    )
    np.testing.assert_array_equal(sums.group_type, [t for t, _ in groups])


def test_a_group_without_cells_is_no_group(cells):
    """A type that one donor lacks gives no row of NaN means."""
    some = cells[~((cells.obs["cell_type"] == "B") & (cells.obs["donor_id"] == "d2"))].copy()
    assert len(Moments(some.X, **codes(some)).group_counts) == 5


def test_many_nonzeros_are_split_by_rows(cells, monkeypatch):
    whole = Moments(cells.X)
    monkeypatch.setattr(module, "_MAX_NNZ", 100)
    parts = Moments(cells.X)
    assert len(parts._parts) > 5
    assert max(X.values().numel() for _, X, _ in parts._parts) <= 100
    V = torch.rand(4, cells.n_vars, dtype=torch.float64)
    torch.testing.assert_close(parts.product(V), whole.product(V), rtol=1e-12, atol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused(cells):
    with pytest.raises(RuntimeError, match="device='cuda' was asked for"):
        Moments(cells.X, device="cuda")
