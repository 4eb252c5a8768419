"""Sums over shards train the models that the cells themselves train, and are never those of other cells."""

import json

import anndata
import numpy as np
import pytest
from conftest import tiny_cells
from scipy.sparse import csr_matrix

from aenmf_lib import AENMF, CAENMF1, CAENMF2, data, results
from aenmf_lib.models import base
from aenmf_lib.training import second_moment, sharding
from aenmf_lib.training.moments import Moments


@pytest.fixture
def path(tmp_path):
    """Cells of five programs as notebook 01 leaves them, sorted by donor: no shard has cells of all donors."""
    cells, rng = tiny_cells(n_cells=200), np.random.default_rng(1)
    cells = cells[np.argsort(cells.obs["donor_id"].to_numpy())].copy()
    counts = rng.poisson(rng.gamma(0.5, 1, (200, 5)) @ rng.gamma(0.3, 1, (5, 40)))
    cells.X = csr_matrix(np.log1p(counts).astype(np.float32))
    cells.var["feature_name"] = [f"name{i}" for i in range(cells.n_vars)]
    cells.uns["provenance"] = {"input": {"path": "raw.h5ad", "sha256": "0"}}
    cells.write_h5ad(tmp_path / "filtered.h5ad")
    return tmp_path / "filtered.h5ad"


def summed(path, order=range(4), of=4, folder="sums"):
    """Sum over shards, which end in some order, and merge them."""
    files = [path.parent / folder / f"{i}-of-{of}.npz" for i in range(of)]
    for i in order:
        sharding.main([str(path), "--shard", str(i), str(of), "--out", str(files[i])])
    sharding.main([str(path), "--merge", *map(str, files), "--out", str(path.parent / f"{folder}.npz")])
    return path.parent / f"{folder}.npz"


@pytest.mark.parametrize("kind", [AENMF, CAENMF1, CAENMF2])
def test_a_model_trained_from_shards_is_that_of_the_cells(path, kind):
    """Up to rounding: S is summed in float32 in another order, 1e-7 of it, which two sweeps carry on to 1e-5 of W.

    To the end of a fit it grows where the objective is flat, as it does when the cells themselves are given in another
    order: W is then not the same, the objective is.
    """
    there, here, sums = data.load_stream(path), data.load(path), summed(path)
    ours = kind(k=5, max_iter=2).fit(sharding.load_sums(sums, there))
    theirs = kind(k=5, max_iter=2, mode="explicit").fit(here)
    assert np.abs(ours.W_ - theirs.W_).max() < 1e-4 * theirs.W_.max()
    ends = [kind(k=5, mode="explicit").fit(of).loss_history_[-1] for of in (sharding.load_sums(sums, there), here)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
    for model, cells, name in ((ours, there, "ours"), (theirs, here, "theirs")):
        results.write(path.parent / f"{name}.h5ad", model, cells)
    ours_, theirs_ = (results.read(path.parent / f"{name}.h5ad") for name in ("ours", "theirs"))
    for key, H in theirs_.obsm.items():
        np.testing.assert_allclose(ours_.obsm[key], H, rtol=1e-4, atol=1e-4 * H.max(), err_msg=key)
    assert ours_.obs.equals(theirs_.obs)
    assert ours_.var.equals(theirs_.var)
    made, expected = ours_.uns["provenance"], theirs_.uns["provenance"]
    assert (made["input"], made["source"]) == (expected["input"], expected["source"])
    assert made["sq_norm_per_cell"] == pytest.approx(expected["sq_norm_per_cell"], rel=1e-12)


def test_usages_and_errors_are_those_of_cells_in_memory_whatever_the_blocks(path):
    here, there = data.load(path), data.CellStream(path, block=7)
    model = AENMF(k=5).fit(here)
    free, untied = model.refit(here), model.refit(there)
    np.testing.assert_allclose(untied, free, atol=0.02 * free.max())  # each block stops by itself
    assert base.relative_error(there, free, model.W_) == pytest.approx(
        base.relative_error(here, free, model.W_), rel=1e-6
    )


def test_the_order_in_which_shards_end_changes_no_bit(path):
    assert summed(path).read_bytes() == summed(path, order=(2, 0, 3, 1), folder="again").read_bytes()


def test_sums_of_other_cells_are_neither_merged_nor_trained_from(path, capsys):
    sums = summed(path)
    cells = anndata.read_h5ad(path)
    cells.X.data *= 2
    cells.write_h5ad(path)
    with pytest.raises(
        ValueError, match=r"sums\.npz was not made from .*filtered\.h5ad as it is now: sha256 is \w+, not"
    ):
        sharding.load_sums(sums, data.load_stream(path))
    with pytest.raises(
        SystemExit, match=r"error: .*1-of-4\.npz was not made from .* as it is now: .*modified_ns is \d+, "
    ):
        summed(path, order=[0])  # the others are left as they were


def test_half_shards_and_those_of_another_number_are_not_merged(path):
    sums = summed(path)
    files = sorted((path.parent / "sums").iterdir())
    with pytest.raises(ValueError, match=r"0-of-4\.npz was not made .*of is 4, not 3"):
        sharding.merge_shards(files[:3], path, sums)
    with pytest.raises(ValueError, match=r"1-of-4\.npz was not made .*shard is 1, not 0"):
        sharding.merge_shards([files[1], files[0], *files[2:]], path, sums)
    files[2].write_bytes(files[2].read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"2-of-4\.npz is not a file of sums over shards, or is cut short"):
        sharding.merge_shards(files, path, sums)


def test_a_merge_leaves_no_shards_of_another_number(path):
    """They would look to make as if the sums were made of them."""
    summed(path)
    summed(path, order=range(3), of=3)
    assert sorted(file.name for file in (path.parent / "sums").iterdir()) == [f"{i}-of-3.npz" for i in range(3)]


def test_what_cannot_be_summed_or_trained_from_is_refused_before_it_is(path, monkeypatch):
    sums, cells = summed(path), data.load_stream(path)
    with pytest.raises(ValueError, match=r"shard 0 of 201 was asked of the 200 cells .* from 1 to 200 is expected"):
        sharding.sum_shard(path, 0, 201, path.parent / "none.npz")
    with pytest.raises(ValueError, match=r"mode='implicit': .* holds explicit sums"):
        sharding.load_sums(sums, cells, mode="implicit")
    made_from = json.dumps({"sha256": cells.uns["input"]["sha256"], "cells": 200})
    Moments.from_cells(cells, donor=False, mode="explicit").save(sums, made_from=made_from)
    with pytest.raises(ValueError, match="CAE_NMF1 needs moments that tell 'donor_id' apart"):
        CAENMF1(k=5).fit(sharding.load_sums(sums, cells))
    # 40 × 40 × 3 donors at 12 bytes a pair to train from, 16 to be added, and blocks of 1024 cells
    monkeypatch.setattr(second_moment, "available_memory", lambda device: 12 * 3 * 1600 + 8 * 1024 * 40)
    sharding.load_sums(summed_before := sums, cells)
    for call in (
        lambda: sharding.sum_shard(path, 0, 4, path.parent / "none.npz"),
        lambda: sharding.merge_shards([], path, summed_before),
    ):
        with pytest.raises(MemoryError, match=r"explicit second moment of 200 cells .* needed .* leave out SHARDS"):
            call()
