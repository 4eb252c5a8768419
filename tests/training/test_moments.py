"""Products and sums over the cells, against dense ones."""

import os

import numpy as np
import pytest
import torch
import torch.multiprocessing
from conftest import tiny_cells

from aenmf_lib.training import moments, second_moment
from aenmf_lib.training.moments import Moments


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
    np.testing.assert_allclose(
        Moments.from_cells(cells, mode="implicit").product(torch.from_numpy(V)).numpy(), V @ X.T @ X, rtol=1e-12
    )


def test_product_by_donor_takes_one_or_several_factors(cells):
    X, donor = cells.X.toarray(), codes(cells)["donor"]
    by_donor = Moments.from_cells(cells, by_donor=True)
    V = np.random.default_rng(1).normal(size=(3, 7, cells.n_vars))
    expected = np.stack([V[d] @ X[donor == d].T @ X[donor == d] for d in range(3)])
    np.testing.assert_allclose(by_donor.product_by_donor(torch.from_numpy(V)).numpy(), expected, rtol=1e-11)
    one = by_donor.product_by_donor(torch.from_numpy(V[0])).sum(0)
    np.testing.assert_allclose(one.numpy(), V[0] @ X.T @ X, rtol=1e-11)
    np.testing.assert_allclose(by_donor.product(torch.from_numpy(V[0])).numpy(), V[0] @ X.T @ X, rtol=1e-11)


def test_sums(cells):
    X, donor, cell_type = cells.X.toarray(), *codes(cells).values()
    sums = Moments.from_cells(cells, by_donor=True)
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
    assert len(Moments.from_cells(some).group_counts) == 5


def test_many_nonzeros_are_split_by_rows(cells, monkeypatch):
    whole = Moments.from_cells(cells, mode="implicit")
    monkeypatch.setattr(moments, "_MAX_NNZ", 100)
    parts = Moments.from_cells(cells, mode="implicit")
    assert len(parts._csr()) > 5
    assert max(X.values().numel() for _, X, _ in parts._csr()) <= 100
    V = torch.rand(4, cells.n_vars, dtype=torch.float64)
    torch.testing.assert_close(parts.product(V), whole.product(V), rtol=1e-12, atol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused(cells):
    with pytest.raises(RuntimeError, match="device='cuda' was asked for"):
        Moments.from_cells(cells, device="cuda")


@pytest.mark.parametrize("by_donor", [False, True])
def test_implicit_explicit_merged_and_saved_are_the_same(cells, tmp_path, by_donor):
    V = torch.from_numpy(np.random.default_rng(1).normal(size=(4, cells.n_vars)))
    whole = Moments.from_cells(cells, by_donor=by_donor, mode="implicit")
    for mode in ("implicit", "explicit"):
        shards = [Moments.from_cells(cells[i::4].copy(), by_donor=by_donor, mode=mode) for i in range(4)]
        merged = shards[0] + shards[1] + shards[2] + shards[3]
        merged.save(tmp_path / "moments.npz")
        for other in (
            Moments.from_cells(cells, by_donor=by_donor, mode=mode),
            merged,
            Moments.load(tmp_path / "moments.npz"),
        ):
            assert other.n_cells == cells.n_obs
            torch.testing.assert_close(other.product_by_donor(V), whole.product_by_donor(V), rtol=1e-12, atol=1e-10)
            for name in ("donor_sums", "group_sums", "group_counts", "gene_sq"):
                torch.testing.assert_close(getattr(other, name), getattr(whole, name), rtol=1e-12, atol=0)
            assert other.sq_norm == pytest.approx(whole.sq_norm, rel=1e-12)


def one_process(rank, folder):
    """Sum over every other cell, and then over both processes."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    cells = tiny_cells()[rank::2]
    if rank:  # the other process alone has cells of this donor
        cells = cells[cells.obs["donor_id"] != "d1"]
    for by_donor in (False, True):
        mine = Moments.from_cells(cells.copy(), by_donor=by_donor, mode="explicit")
        mine.all_reduce().save(f"{folder}/{rank}{by_donor}.npz")
    with pytest.raises(ValueError, match="moments of other genes or labels"):
        Moments.from_cells(cells[:, rank:].copy(), mode="explicit").all_reduce()
    torch.distributed.destroy_process_group()


def test_two_processes_sum_to_the_moments_of_all_cells(cells, tmp_path):
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    there = (np.arange(60) % 2 == 0) | (cells.obs["donor_id"] != "d1").to_numpy()
    V = torch.from_numpy(np.random.default_rng(1).normal(size=(4, cells.n_vars)))
    for by_donor in (False, True):
        whole = Moments.from_cells(cells[there].copy(), by_donor=by_donor, mode="explicit")
        for rank in range(2):
            found = Moments.load(tmp_path / f"{rank}{by_donor}.npz")
            torch.testing.assert_close(found.product_by_donor(V), whole.product_by_donor(V), rtol=1e-12, atol=1e-10)
            torch.testing.assert_close(found.group_sums, whole.group_sums, rtol=1e-12, atol=0)
            assert (found.n_cells, found.partitions) == (whole.n_cells, whole.partitions)
            assert (found.sample != whole.sample).nnz == 0


def test_moments_of_other_genes_are_not_added(cells):
    with pytest.raises(ValueError, match="moments of other genes cannot be added: 40 and 39 genes, 39 shared"):
        Moments.from_cells(cells) + Moments.from_cells(cells[:, 1:].copy())
    with pytest.raises(ValueError, match="must both be implicit or both explicit"):
        Moments.from_cells(cells, mode="implicit") + Moments.from_cells(cells, mode="explicit")


def test_a_cut_file_of_moments_is_refused(cells, tmp_path):
    path = tmp_path / "moments.npz"
    Moments.from_cells(cells).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is not a file of moments, or is cut short"):
        Moments.load(path)


def test_the_mode_is_the_cheaper_that_fits(monkeypatch):
    sizes = {"nnz": 10_000_000, "n_genes": 2000, "k": 80}
    assert second_moment.choose_representation(n_cells=14_000, **sizes | {"n_genes": 14_000})[0] == "implicit"
    assert second_moment.choose_representation(n_cells=100_000, **sizes | {"nnz": 50_000_000})[0] == "explicit"
    monkeypatch.setattr(second_moment, "available_memory", lambda device: 10**9)
    with pytest.raises(MemoryError, match=r"explicit second moment of .* does not fit: needed .* use mode='implicit'"):
        second_moment.choose_representation(n_cells=14_000, **sizes | {"n_genes": 60_000}, mode="explicit")
