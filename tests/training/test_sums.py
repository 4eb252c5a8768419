"""Tests of sums over sparse cells: second moments equal XᵀX in float64, however they are formed."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from aenmf_lib.training import accumulation, second_moment
from aenmf_lib.training.accumulation import DenseAccumulator, SparseAccumulator, dense_genes
from aenmf_lib.training.group_sums import GroupSums
from aenmf_lib.training.inputs import usages
from aenmf_lib.training.moments import Moments

SHARES = {  # share of the cells that express each gene: all genes rare, all frequent, or both, in random order
    "scatter": lambda rng: rng.uniform(0, 0.02, 500),
    "dense": lambda rng: rng.uniform(0.3, 0.9, 300),
    "hybrid": lambda rng: rng.permutation(np.geomspace(0.9, 1e-3, 500)),
}


def simulated(share, n_cells, seed=0, dtype=np.float32):
    """Return cells with these shares of nonzeros. Some cells are empty, and two genes are never expressed."""
    rng = np.random.default_rng(seed)
    X = np.where(rng.random((n_cells, len(share))) < share, rng.gamma(2, 0.5, (n_cells, len(share))), 0)
    X[rng.random(n_cells) < 0.05] = 0
    X[:, [0, -1]] = 0
    return csr_matrix(X.astype(dtype))


def to_anndata(X, labels):
    return AnnData(X, obs=pd.DataFrame(labels, index=[f"c{i}" for i in range(X.shape[0])]))


def exact(X):
    dense = X.toarray().astype(np.float64)
    return dense.T @ dense


def formed(X, edges=(), n_threads=2):
    with ThreadPoolExecutor(n_threads) as pool:
        accumulator = SparseAccumulator(X.shape[1], pool)
        for part in np.split(np.arange(X.shape[0]), edges):
            accumulator.add(X[part])
        return accumulator.finish().numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", SHARES)
def test_second_moment_equals_the_product_in_float64(kind, dtype):
    share = SHARES[kind](np.random.default_rng(1))
    X = simulated(share, 5000, dtype=dtype)  # two or three blocks
    n_dense = dense_genes(np.sort(X.getnnz(axis=0))[::-1], X.shape[0])
    assert {"scatter": n_dense == 0, "dense": n_dense == len(share), "hybrid": 0 < n_dense < len(share)}[kind]
    S, expected = formed(X), exact(X)
    tolerance = 1e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(S, expected, rtol=tolerance, atol=tolerance * expected.max() * 1e-3)
    assert np.linalg.norm(S - expected) < tolerance / 5 * np.linalg.norm(expected)
    np.testing.assert_array_equal(S, S.T)


@pytest.mark.parametrize("edges", [[], [1], [100, 101, 2100, 4999], [2048, 4096]])
def test_portions_of_the_cells_and_threads_change_nothing_but_rounding(edges):
    X = simulated(SHARES["hybrid"](np.random.default_rng(2)), 5000)
    S = formed(X, edges)
    np.testing.assert_allclose(S, exact(X), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(formed(X, edges, n_threads=1), S)
    np.testing.assert_array_equal(formed(X, edges, n_threads=3), S)


@pytest.mark.parametrize(("n_silent", "tolerance"), [(0, 6e-7), (126, 2e-6)])
def test_sums_of_equal_values_are_precise(n_silent, tolerance):
    """The rounding error of each addition is the same, so the errors of a long sum add up."""
    X = csr_matrix(np.full((9000, 130), 0.1, np.float32))  # two genes more than a tile of 128
    if n_silent:
        X = csr_matrix(np.hstack([X.toarray()[:, :2], np.zeros((9000, n_silent), np.float32)]))
        assert dense_genes(np.sort(X.getnnz(axis=0))[::-1], 9000) == 0
    np.testing.assert_allclose(formed(X), exact(X), rtol=tolerance)


def test_genes_that_become_frequent_later_are_summed_correctly():
    """Genes are sorted by their frequency in the first block, which differs from that in the later blocks here."""
    shares = np.geomspace(0.9, 1e-3, 500)
    X = vstack([simulated(shares, 2048), simulated(shares[::-1], 4096)], format="csr")
    np.testing.assert_allclose(formed(X, [2048]), exact(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 300), (4100, 129)])
def test_few_cells_or_genes_are_summed_correctly(shape):
    X = csr_matrix(np.random.default_rng(3).gamma(2, 1, shape).astype(np.float32))
    np.testing.assert_allclose(formed(X), exact(X), rtol=1e-6)
    X.data[:] = 0
    X.eliminate_zeros()
    np.testing.assert_array_equal(formed(X), np.zeros((shape[1], shape[1])))


def test_cells_with_64_bit_indices_are_summed_correctly():
    X = simulated(SHARES["hybrid"](np.random.default_rng(4)), 300)
    expected = formed(X)
    X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    with ThreadPoolExecutor(1) as pool:
        accumulator = SparseAccumulator(X.shape[1], pool)
        accumulator.add(X)
        np.testing.assert_array_equal(accumulator.finish().numpy(), expected)


def test_error_in_a_thread_is_raised(monkeypatch):
    def fail(*_):
        raise MemoryError("planted")

    monkeypatch.setattr(accumulation._sum_kernels, "add_dense_tile", fail)
    with pytest.raises(MemoryError, match="planted"):
        formed(simulated(SHARES["dense"](np.random.default_rng(5)), 100))


# ---- blocks that are made dense on a device
@pytest.mark.parametrize("n_genes", [1, 40, 1300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense_blocks_on_a_device_equal_the_product_in_float64(n_genes, dtype, monkeypatch):
    monkeypatch.setattr(accumulation, "FLUSH", 900)
    monkeypatch.setitem(second_moment.CELLS, "cuda", 400)
    X = simulated(np.random.default_rng(6).uniform(0, 0.5, n_genes), 2500, dtype=dtype)
    with ThreadPoolExecutor(2) as pool:
        accumulator = DenseAccumulator(n_genes, torch.from_numpy(X.data).dtype, "cpu", pool)
        for lo, hi in ((0, 10), (10, 1000), (1000, 2500)):
            accumulator.add(X[lo:hi])
        S = accumulator.finish().numpy()
    tolerance = 1e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(S, exact(X), rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(S, S.T)


@pytest.mark.parametrize("n_genes", [300, 2**16, 2**16 + 1])  # the last gene has the index 65,535 or more
def test_dense_block_has_the_cells_of_a_part_of_a_matrix(n_genes):
    rng = np.random.default_rng(7)
    genes = np.r_[n_genes - 1 - np.arange(15), np.arange(15)]
    X = csr_matrix((rng.random(30), (np.arange(30) % 7, genes)), (9, n_genes))
    transfer = accumulation.Transfer(n_genes, "cpu", None)
    for lo, hi in ((0, 9), (3, 6), (7, 9)):
        dense = transfer.dense(X.indptr[lo : hi + 1], X.indices, X.data)
        np.testing.assert_array_equal(dense.numpy(), X[lo:hi].toarray())


# ---- sums of groups
def test_sums_per_donor_add_up_to_pooled_sums():
    rng = np.random.default_rng(8)
    X = simulated(SHARES["hybrid"](rng), 3000)
    labels = {"donor_id": rng.choice(["d1", "d2", "d3"], 3000), "cell_type": rng.choice(["a", "b"], 3000)}
    per_donor, pooled = (
        Moments.from_cells(to_anndata(X, labels), by_donor=by_donor, mode="explicit") for by_donor in (True, False)
    )
    total = sum(S.numpy() for S in per_donor.second_moment.parts.values())
    np.testing.assert_allclose(total, pooled.second_moment.parts[""].numpy(), rtol=1e-6, atol=1e-6)
    for donor, S in per_donor.second_moment.parts.items():
        expected = exact(X[labels["donor_id"] == donor])
        np.testing.assert_allclose(S.numpy(), expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(per_donor.sums.gene_sq[donor], expected.diagonal(), rtol=1e-12)
    np.testing.assert_allclose(pooled.sums.gene_sq[""], exact(X).diagonal(), rtol=1e-12)


def test_group_sums_equal_plain_formulas():
    rng = np.random.default_rng(9)
    X = simulated(rng.uniform(0, 0.5, 50), 700)
    cell_type, donor, part = (rng.choice(list(names), 700) for names in ("abc", "xy", "pqr"))
    sums, dense = GroupSums.from_cells(X, cell_type, donor, part), X.toarray().astype(np.float64)
    assert sums.n_cells == 700
    assert sums.sq_norm == pytest.approx((dense**2).sum(), rel=1e-13)
    assert set(sums.groups) == set(zip(cell_type, donor, strict=True))
    for (t, d), (n, total) in sums.groups.items():
        of_group = (cell_type == t) & (donor == d)
        assert n == of_group.sum()
        np.testing.assert_allclose(total, dense[of_group].sum(0), rtol=1e-13)
    for name, squares in sums.gene_sq.items():
        np.testing.assert_allclose(squares, (dense[part == name] ** 2).sum(0), rtol=1e-13)


def test_usages_of_dense_blocks_equal_the_product(monkeypatch):
    """The name 'cpu:0' selects the dense blocks of a GPU, which are then computed on the CPU."""
    X, E = simulated(np.full(40, 0.3), 1000), np.random.default_rng(10).random((4, 40), dtype=np.float32)
    expected = X.astype(np.float64) @ E.T
    monkeypatch.setattr(second_moment.torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    monkeypatch.setitem(second_moment.CELLS, "cuda", 300)
    for device, n in (("cpu", 1), ("cpu:0", 4)):
        blocks, rows = zip(*usages(X, E, device), strict=True)
        assert len(blocks) == n
        assert [i for part in rows for i in range(part.start, part.stop)] == list(range(1000))
        np.testing.assert_allclose(np.concatenate(blocks), expected, rtol=1e-5)
