"""Models from sums over shards equal models from the cells, and sums of other cells raise an error."""

import json

import anndata
import numpy as np
import pytest
import torch
from conftest import tiny_cells
from scipy.sparse import csr_matrix

from aenmf_lib import AENMF, CAENMF1, CAENMF2, data, results
from aenmf_lib.models import base
from aenmf_lib.training import second_moment, sharding
from aenmf_lib.training.moments import Moments


@pytest.fixture
def path(tmp_path):
    """Cells with five programs as notebook 01 writes them, sorted by donor: no shard has cells of all donors."""
    cells, rng = tiny_cells(n_cells=200), np.random.default_rng(1)
    cells = cells[np.argsort(cells.obs["donor_id"].to_numpy())].copy()
    counts = rng.poisson(rng.gamma(0.5, 1, (200, 5)) @ rng.gamma(0.3, 1, (5, 40)))
    cells.X = csr_matrix(np.log1p(counts).astype(np.float32))
    cells.var["feature_name"] = [f"name{i}" for i in range(cells.n_vars)]
    cells.uns["provenance"] = {"input": {"path": "raw.h5ad", "sha256": "0"}}
    cells.write_h5ad(tmp_path / "filtered.h5ad")
    return tmp_path / "filtered.h5ad"


def summed(path, order=range(4), of=4, folder="sums", *, by_donor=True):
    """Sum over the shards in the given order, merge them, and return the merged file."""
    files = [path.parent / folder / f"{i}-of-{of}.npz" for i in range(of)]
    for i in order:
        sharding.sum_shard(path, i, of, files[i], by_donor=by_donor)
    sharding.merge_shards(files, path, path.parent / f"{folder}.npz")
    return path.parent / f"{folder}.npz"


@pytest.mark.parametrize("kind", [AENMF, CAENMF1, CAENMF2])
def test_model_from_shards_equals_model_from_cells(path, kind):
    """Equal up to rounding: the order of float32 sums changes S by 1e-7, which two sweeps amplify to 1e-4 of W.

    The exact size depends on the processor: 1.3e-4 of W and 3e-4 of a latent were measured. Where the objective is
    flat, the difference grows until the fit ends, as for another order of the cells. Then W differs, but not the
    objective.
    """
    on_disk, in_memory, sums = data.load_stream(path), data.load(path), summed(path)
    model = kind(k=5, max_iter=2).fit(on_disk, sums=sums)
    reference = kind(k=5, max_iter=2, mode="explicit").fit(in_memory)
    assert np.abs(model.W_ - reference.W_).max() < 5e-4 * reference.W_.max()
    ends = [
        kind(k=5, mode="explicit").fit(cells).loss_history_[-1]
        for cells in (sharding.load_sums(sums, on_disk), in_memory)
    ]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
    results.write(path.parent / "model.h5ad", model, on_disk)
    results.write(path.parent / "reference.h5ad", reference, in_memory)
    found, expected = (results.read(path.parent / f"{name}.h5ad") for name in ("model", "reference"))
    for key, H in expected.obsm.items():
        np.testing.assert_allclose(found.obsm[key], H, rtol=5e-4, atol=5e-4 * H.max(), err_msg=key)
    assert found.obs.equals(expected.obs)
    assert found.var.equals(expected.var)
    found, expected = found.uns["provenance"], expected.uns["provenance"]
    assert (found["input"], found["source"]) == (expected["input"], expected["source"])
    assert found["sq_norm_per_cell"] == pytest.approx(expected["sq_norm_per_cell"], rel=1e-12)


def test_merged_sums_equal_sums_over_all_cells(path):
    sums = sharding.load_sums(summed(path), data.load_stream(path))
    whole = Moments.from_cells(data.load(path), by_donor=True, mode="explicit")
    assert (sums.partitions, sums.n_cells, sums.sums.labels) == (whole.partitions, whole.n_cells, whole.sums.labels)
    V = torch.eye(whole.n_genes)  # the products are then the second moments
    torch.testing.assert_close(sums.product_by_donor(V), whole.product_by_donor(V), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(sums.group_sums, whole.group_sums, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [AENMF, CAENMF1])
def test_pooled_sums_equal_sums_per_donor_and_give_the_same_model(path, kind):
    pooled_path = summed(path, folder="pooled", by_donor=False)
    cells = data.load_stream(path)
    pooled, per_donor = (sharding.load_sums(sums, cells) for sums in (pooled_path, summed(path)))
    assert (pooled.partitions, per_donor.partitions) == ([""], sorted(set(cells.obs["donor_id"])))
    V = torch.eye(pooled.n_genes)
    torch.testing.assert_close(pooled.product(V), per_donor.product(V), rtol=1e-6, atol=1e-5)
    for name in ("donor_sums", "donor_counts", "group_sums", "group_counts"):
        torch.testing.assert_close(getattr(pooled, name), getattr(per_donor, name), rtol=1e-6, atol=0)
    assert pooled.sq_norm == pytest.approx(per_donor.sq_norm, rel=1e-12)
    ends = [kind(k=5).fit(cells, sums=sums).loss_history_[-1] for sums in (pooled_path, path.parent / "sums.npz")]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)  # as in test_model_from_shards_equals_model_from_cells


def test_pooled_sums_for_model_2_and_mixed_shards_raise_an_error(path):
    pooled = summed(path, folder="pooled", by_donor=False)
    message = r"pooled\.npz has one second moment for all donors, but CAE_NMF2 needs one per donor\. Compute .* MODELS"
    with pytest.raises(ValueError, match=message):
        CAENMF2(k=5).fit(data.load_stream(path), sums=pooled)
    summed(path)
    for donors in (0, 3):
        files = [path.parent / ("sums" if i == donors else "pooled") / f"{i}-of-4.npz" for i in range(4)]
        with pytest.raises(ValueError, match=rf"{donors}-of-4\.npz has sums per donor, and .*of-4\.npz has none"):
            sharding.merge_shards(files, path, path.parent / "mixed.npz")
    with pytest.raises(RuntimeError, match="device='cuda:99' is not available"):
        sharding.sum_shard(path, 0, 4, path.parent / "none.npz", device="cuda:99")


def test_usages_and_errors_are_equal_in_memory_and_in_blocks(path):
    in_memory, on_disk = data.load(path), data.CellStream(path, block=7)
    model = AENMF(k=5).fit(in_memory)
    H, H_blocks = model.refit(in_memory), model.refit(on_disk)
    np.testing.assert_allclose(H_blocks, H, atol=0.02 * H.max())  # the iterations of each block stop separately
    errors = [base.relative_error(cells, H, model.W_) for cells in (on_disk, in_memory)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)


def test_merge_does_not_depend_on_shard_order(path):
    assert summed(path).read_bytes() == summed(path, order=(2, 0, 3, 1), folder="again").read_bytes()


def test_sums_of_other_cells_raise(path):
    sums = summed(path)
    cells = anndata.read_h5ad(path)
    cells.X.data *= 2
    cells.write_h5ad(path)
    with pytest.raises(
        ValueError, match=r"sums\.npz was not made from .*filtered\.h5ad as it is now: sha256 is \w+, not"
    ):
        sharding.load_sums(sums, data.load_stream(path))
    with pytest.raises(ValueError, match=r"1-of-4\.npz was not made from .* as it is now: .*modified_ns is \d+, "):
        summed(path, order=[0])  # the other shards were summed from the old file


def test_merging_missing_misplaced_or_truncated_shards_raises(path):
    sums = summed(path)
    files = sorted((path.parent / "sums").iterdir())
    with pytest.raises(ValueError, match=r"0-of-4\.npz was not made .*of is 4, not 3"):
        sharding.merge_shards(files[:3], path, sums)
    with pytest.raises(ValueError, match=r"1-of-4\.npz was not made .*shard is 1, not 0"):
        sharding.merge_shards([files[1], files[0], *files[2:]], path, sums)
    files[2].write_bytes(files[2].read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"2-of-4\.npz cannot be read .* Expected sums over shards: delete"):
        sharding.merge_shards(files, path, sums)


def test_merging_deletes_shards_of_other_shard_counts(path):
    """Otherwise make would not rebuild the sums when SHARDS is set back to the old value."""
    summed(path)
    summed(path, order=range(3), of=3)
    assert sorted(file.name for file in (path.parent / "sums").iterdir()) == [f"{i}-of-3.npz" for i in range(3)]


def test_invalid_sums_raise_before_reading(path, monkeypatch):
    sums, cells = summed(path), data.load_stream(path)
    shards = sorted((path.parent / "sums").iterdir())
    with pytest.raises(ValueError, match=r"No shard of .* was given"):
        sharding.merge_shards([], path, sums)
    with pytest.raises(ValueError, match=r"shard 0 of 201 does not exist for the 200 cells .* Choose 1 to 200 shards"):
        sharding.sum_shard(path, 0, 201, path.parent / "none.npz")
    with pytest.raises(ValueError, match=r"mode='implicit', but .* contains explicit sums"):
        sharding.load_sums(sums, cells, mode="implicit")
    with pytest.raises(ValueError, match=r"sums are grouped by donor_id and cell_type, not by batch and cell_type"):
        AENMF(k=5).fit(cells, sums=sums, donor_key="batch")
    with pytest.raises(TypeError, match=r"needs the cells from data.load_stream, not a AnnData"):
        AENMF(k=5).fit(data.load(cells.path), sums=sums)
    # 40 × 40 genes × 3 donors at 12 bytes per pair to fit, at 16 to merge, and a block of all cells
    monkeypatch.setattr(second_moment, "available_memory", lambda device: 12 * 3 * 1600 + 24 * cells.nnz)
    sharding.load_sums(sums, cells)
    for call in (
        lambda: sharding.sum_shard(path, 0, 4, path.parent / "none.npz", by_donor=True),
        lambda: sharding.merge_shards(shards, path, sums),
    ):
        with pytest.raises(MemoryError, match=r"explicit second moment of 200 cells .* needed .* leave out SHARDS"):
            call()


def test_conditional_model_with_sums_without_donors_raises(path):
    cells = data.load_stream(path)
    made_from = json.dumps({"sha256": cells.uns["input"]["sha256"], "cells": 200})
    Moments.from_cells(cells, donor=False, mode="explicit").save(path.parent / "sums.npz", made_from=made_from)
    with pytest.raises(ValueError, match="CAE_NMF1 needs moments with donor=True"):
        CAENMF1(k=5).fit(cells, sums=path.parent / "sums.npz")
