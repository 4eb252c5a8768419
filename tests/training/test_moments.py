"""Sums over cells and products with their second moment equal those of dense matrices."""

import numpy as np
import pytest
import torch
from conftest import tiny_cells

from aenmf_lib import AENMF
from aenmf_lib.training import moments, products, second_moment
from aenmf_lib.training.moments import Moments


@pytest.fixture(scope="module")
def cells():
    return tiny_cells()


@pytest.fixture(scope="module")
def dense(cells):
    """X, and the codes of donors and types."""
    return cells.X.toarray(), *(cells.obs[name].cat.codes.to_numpy() for name in ("donor_id", "cell_type"))


@pytest.fixture(scope="module")
def by_donor(cells):
    return Moments.from_cells(cells, by_donor=True)


def test_product_equals_dense_product(cells, dense):
    X, V = dense[0], np.random.default_rng(1).normal(size=(7, cells.n_vars))
    found = Moments.from_cells(cells, mode="implicit").product(torch.from_numpy(V))
    np.testing.assert_allclose(found.numpy(), V @ X.T @ X, rtol=1e-12)


def test_product_by_donor_accepts_one_matrix_or_one_per_donor(cells, dense, by_donor):
    X, donor, _ = dense
    V = np.random.default_rng(1).normal(size=(3, 7, cells.n_vars))
    expected = np.stack([V[d] @ X[donor == d].T @ X[donor == d] for d in range(3)])
    np.testing.assert_allclose(by_donor.product_by_donor(torch.from_numpy(V)).numpy(), expected, rtol=1e-11)
    one = by_donor.product_by_donor(torch.from_numpy(V[0])).sum(0)
    np.testing.assert_allclose(one.numpy(), V[0] @ X.T @ X, rtol=1e-11)
    np.testing.assert_allclose(by_donor.product(torch.from_numpy(V[0])).numpy(), V[0] @ X.T @ X, rtol=1e-11)


def test_sums_equal_dense_sums(dense, by_donor):
    X, donor, cell_type = dense
    assert by_donor.sq_norm == pytest.approx((X**2).sum(), rel=1e-12)
    np.testing.assert_allclose(by_donor.donor_sums, [X[donor == d].sum(0) for d in range(3)], rtol=1e-12)
    np.testing.assert_array_equal(by_donor.donor_counts, np.bincount(donor))
    np.testing.assert_allclose(by_donor.gene_sq, [(X[donor == d] ** 2).sum(0) for d in range(3)], rtol=1e-12)
    groups = [(t, d) for t in range(2) for d in range(3)]
    expected = [X[(cell_type == t) & (donor == d)].sum(0) for t, d in groups]
    np.testing.assert_allclose(by_donor.group_sums, expected, rtol=1e-12)
    np.testing.assert_array_equal(by_donor.group_type, [t for t, _ in groups])


def test_type_missing_in_one_donor_gives_no_empty_group(cells):
    subset = cells[~((cells.obs["cell_type"] == "B") & (cells.obs["donor_id"] == "d2"))].copy()
    assert len(Moments.from_cells(subset).group_counts) == 5


def test_too_many_nonzeros_are_split_between_cells(cells, monkeypatch):
    whole = Moments.from_cells(cells, mode="implicit")
    monkeypatch.setattr(products, "_MAX_NNZ", 100)
    split = Moments.from_cells(cells, mode="implicit")
    parts = split.second_moment._sparse
    assert len(parts) > 5
    assert max(X.values().numel() for _, X, _ in parts) <= 100
    V = torch.rand(4, cells.n_vars, dtype=torch.float64)
    torch.testing.assert_close(split.product(V), whole.product(V), rtol=1e-12, atol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_device_raises(cells):
    with pytest.raises(RuntimeError, match="device='cuda' is not available"):
        Moments.from_cells(cells, device="cuda")


@pytest.mark.parametrize("by_donor", [False, True])
@pytest.mark.parametrize("mode", ["implicit", "explicit"])
def test_added_and_saved_moments_equal_those_of_all_cells(cells, tmp_path, mode, by_donor):
    V = torch.from_numpy(np.random.default_rng(1).normal(size=(4, cells.n_vars)))
    whole = Moments.from_cells(cells, by_donor=by_donor, mode="implicit")
    shards = [Moments.from_cells(cells[i::4].copy(), by_donor=by_donor, mode=mode) for i in range(4)]
    added = shards[0] + shards[1] + shards[2]
    added += shards[3]
    added.save(tmp_path / "moments.npz")
    for other in (
        Moments.from_cells(cells, by_donor=by_donor, mode=mode),
        added,
        Moments.load(tmp_path / "moments.npz"),
    ):
        assert (other.n_cells, other.donors) == (cells.n_obs, whole.donors)
        torch.testing.assert_close(other.product_by_donor(V), whole.product_by_donor(V), rtol=1e-12, atol=1e-10)
        for name in ("donor_sums", "group_sums", "group_counts", "gene_sq"):
            torch.testing.assert_close(getattr(other, name), getattr(whole, name), rtol=1e-12, atol=0)
        assert other.sq_norm == pytest.approx(whole.sq_norm, rel=1e-12)
        assert (other.sample != whole.sample).nnz == 0


def test_moments_of_shards_with_different_donors_are_added(cells):
    V = torch.from_numpy(np.random.default_rng(1).normal(size=(4, cells.n_vars)))
    other_donors = (cells.obs["donor_id"] != "d1").to_numpy()
    whole, *shards = (
        Moments.from_cells(subset.copy(), by_donor=True, mode="explicit")
        for subset in (cells, cells[other_donors], cells[~other_donors])
    )
    added = shards[0] + shards[1]
    assert (added.partitions, added.n_cells) == (whole.partitions, whole.n_cells)
    torch.testing.assert_close(added.product_by_donor(V), whole.product_by_donor(V), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(added.group_sums, whole.group_sums, rtol=1e-12, atol=0)


def test_adding_moments_of_different_genes_modes_or_labels_raises(cells):
    moments = Moments.from_cells(cells, mode="implicit")
    with pytest.raises(ValueError, match="cannot add moments of different genes: 40 and 39 genes, 39 shared"):
        moments + Moments.from_cells(cells[:, 1:].copy())
    with pytest.raises(ValueError, match="cannot add moments of different mode: implicit and explicit"):
        moments + Moments.from_cells(cells, mode="explicit")
    with pytest.raises(ValueError, match="cannot add moments of different labels"):
        moments + Moments.from_cells(cells, mode="implicit", cell_type=False)


def test_truncated_moments_file_raises(cells, tmp_path):
    path = tmp_path / "moments.npz"
    Moments.from_cells(cells).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"moments\.npz cannot be read .* Expected moments: delete"):
        Moments.load(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda a: a.pop("mode"),
        lambda a: a.pop("cells0_data"),
        lambda a: a.update(dtype="load"),
        lambda a: a.update(counts=a["counts"][1:]),
        lambda a: a["cells0_indices"].__setitem__(3, 40),
        lambda a: a["sample_indptr"].__setitem__(3, 10**6),
    ],
)
def test_moments_that_lack_entries_or_do_not_fit_together_raise(cells, tmp_path, edit):
    path = tmp_path / "moments.npz"
    Moments.from_cells(cells, mode="implicit").save(path)
    with np.load(path) as file:
        arrays = dict(file)
    edit(arrays)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"moments\.npz does not contain valid moments .*Delete the file"):
        Moments.load(path)


def test_mode_is_the_cheaper_one_that_fits(monkeypatch):
    sizes = {"nnz": 10_000_000, "n_genes": 2000, "k": 80}
    assert second_moment.choose_representation(n_cells=14_000, **sizes | {"n_genes": 14_000})[0] == "implicit"
    assert second_moment.choose_representation(n_cells=100_000, **sizes | {"nnz": 50_000_000})[0] == "explicit"
    monkeypatch.setattr(second_moment, "available_memory", lambda device: 10**9)
    with pytest.raises(MemoryError, match=r"explicit second moment of .* does not fit: needed .* Use mode='implicit'"):
        second_moment.choose_representation(n_cells=14_000, **sizes | {"n_genes": 60_000}, mode="explicit")
    mode, reason = second_moment.choose_representation(n_cells=100_000, **sizes | {"nnz": 100_000_000, "n_genes": 200})
    assert (mode, "only explicit fits" in reason) == ("explicit", True)
    monkeypatch.setattr(second_moment, "available_memory", lambda device: 0)
    with pytest.raises(MemoryError, match=r"the second moment of .* does not fit: needed .* Use fewer genes"):
        second_moment.choose_representation(n_cells=14_000, **sizes)


# ---- subsets of the donors
def _assert_equal_moments(found, expected, n_genes):
    """Assert that two moments are equal up to rounding; the samples and dtypes are compared elsewhere."""
    V = torch.from_numpy(np.random.default_rng(1).normal(size=(4, n_genes)))
    assert (found.partitions, found.donors, found.labels) == (expected.partitions, expected.donors, expected.labels)
    assert (found.n_cells, found.n_labeled, found.mode) == (expected.n_cells, expected.n_labeled, expected.mode)
    assert found.sq_norm == pytest.approx(expected.sq_norm, rel=1e-12)
    for name in ("gene_sq", "donor_counts", "donor_sums", "group_counts", "group_sums", "group_type"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=0)
    for product in ("product", "product_by_donor"):
        products_ = (getattr(moments, product)(V) for moments in (found, expected))
        torch.testing.assert_close(*products_, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
@pytest.mark.parametrize("donors", [["d1"], ["d3", "d1"], ["d1", "d2", "d3"]])
def test_subset_equals_moments_of_the_cells_of_these_donors(cells, mode, donors):
    whole = Moments.from_cells(cells, by_donor=True, mode=mode)
    expected = Moments.from_cells(cells[cells.obs["donor_id"].isin(donors)].copy(), by_donor=True, mode=mode)
    found = whole.subset(donors)
    _assert_equal_moments(found, expected, cells.n_vars)
    np.testing.assert_array_equal(found.sample.toarray(), expected.sample.toarray())
    assert all(found.second_moment.parts[name] is whole.second_moment.parts[name] for name in donors)
    _assert_equal_moments(found.subset(["d1"]), whole.subset(["d1"]), cells.n_vars)


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
def test_sample_of_a_subset_contains_only_its_cells_in_any_order(cells, monkeypatch, tmp_path, mode):
    monkeypatch.setattr(moments, "SAMPLE_SIZE", 12)
    donors = ["d1", "d3"]
    order = np.random.default_rng(1).permutation(cells.n_obs)
    shards = [Moments.from_cells(cells[order][i::3].copy(), by_donor=True, mode=mode) for i in range(3)]
    added = shards[0] + shards[1] + shards[2]
    added.save(tmp_path / "moments.npz")
    whole = Moments.from_cells(cells, by_donor=True, mode=mode)
    weighted = whole.with_gene_weights(np.ones(cells.n_vars))
    of_donors = cells[cells.obs["donor_id"].isin(donors)].copy()
    expected = {tuple(row) for row in of_donors.X.toarray()}
    samples = [part.subset(donors).sample for part in (whole, added, Moments.load(tmp_path / "moments.npz"), weighted)]
    for sample in samples:
        np.testing.assert_array_equal(sample.toarray(), samples[0].toarray())
        assert {tuple(row) for row in sample.toarray()} <= expected
    redrawn = Moments.from_cells(of_donors, by_donor=True, mode=mode).sample
    if mode == "implicit":
        np.testing.assert_array_equal(samples[0].toarray(), redrawn.toarray())
    else:  # the cells of these donors among the 12 sampled cells
        assert 0 < samples[0].shape[0] < 12
        np.testing.assert_array_equal(samples[0].toarray(), redrawn[: samples[0].shape[0]].toarray())


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
def test_fit_to_a_subset_equals_fit_to_its_cells(cells, mode):
    donors, settings = ["d1", "d3"], {"k": 3, "max_iter": 20, "tol": 0}
    of_donors = cells[cells.obs["donor_id"].isin(donors)].copy()
    found = AENMF(**settings).fit(Moments.from_cells(cells, by_donor=True, mode=mode).subset(donors))
    expected = AENMF(**settings, mode=mode).fit(of_donors)
    np.testing.assert_allclose(found.loss_history_, expected.loss_history_, rtol=1e-8)  # sums in another order


def test_subset_of_unknown_or_no_donors_or_of_pooled_moments_raises(cells, by_donor, monkeypatch):
    with pytest.raises(ValueError, match=r"1 of 2 donors are not in the moments .first: 'd9'.*Choose from 'd1', 'd2'"):
        by_donor.subset(["d1", "d9"])
    with pytest.raises(ValueError, match="No donors were given"):
        by_donor.subset([])
    with pytest.raises(ValueError, match=r"not by donor, so they have no subset. Make them with by_donor=True"):
        Moments.from_cells(cells).subset(["d1"])
    monkeypatch.setattr(moments, "SAMPLE_SIZE", 1)
    explicit = Moments.from_cells(cells, by_donor=True, mode="explicit")
    with pytest.raises(ValueError, match="None of the 1 cells in the sample is of the donors"):
        [explicit.subset([name]) for name in explicit.partitions]
