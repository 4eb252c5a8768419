"""Tests of simulated cells with the shape of an atlas: schema, counts, structure, and memory that does not grow."""

import shutil
import tracemalloc
from collections import namedtuple

import anndata as ad
import numpy as np
import pytest
from anndata.io import read_zarr

from aenmf_lib import data
from aenmf_lib.data import stand_in
from aenmf_lib.data.stand_in import StandIn
from aenmf_lib.workflow.cli import main

SHAPE = {"cells": 1500, "genes": 3000, "nonzeros": 150, "types": 6, "donors": 4}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("stand_in") / "cells.h5ad"
    StandIn(**SHAPE).write(path)
    return path


@pytest.fixture(scope="module")
def cells(path):
    return ad.read_h5ad(path)


def test_schema_is_that_of_a_cellxgene_file(cells):
    labels = {
        "assay",
        "cell_type",
        "development_stage",
        "disease",
        "organism",
        "self_reported_ethnicity",
        "sex",
        "tissue",
    }
    expected = labels | {f"{name}_ontology_term_id" for name in labels} | {"donor_id", "suspension_type", "tissue_type"}
    assert expected | {"is_primary_data", "observation_joinid"} == {*cells.obs}
    assert all(cells.obs[name].dtype == "category" for name in expected)
    assert cells.obs["is_primary_data"].dtype == bool
    assert cells.obs_names.is_unique and cells.obs["observation_joinid"].is_unique
    assert {"feature_name", "feature_is_filtered", "feature_biotype", "feature_reference"} <= {*cells.var}
    assert cells.var_names.str.match(r"ENSG\d{11}$").all() and cells.var_names.equals(cells.raw.var_names)
    assert {"schema_version", "title", "citation"} <= {*cells.uns}
    for X in (cells.X, cells.raw.X):
        assert (X.format, X.dtype, X.indices.dtype, X.indptr.dtype) == ("csr", np.float32, np.int32, np.int32)


def test_counts_are_whole_and_x_is_their_normalization(path, cells):
    counts, where = data.read_counts(path)
    assert where == "raw.X" and counts.shape == (1500, 3000)
    assert (counts.X.data >= 1).all() and (counts.X.data == np.rint(counts.X.data)).all()
    expected = data.normalize(counts.X)
    np.testing.assert_array_equal(expected.indices, cells.X.indices)
    np.testing.assert_allclose(cells.X.data, expected.data, rtol=2e-6)  # float32


def test_number_of_nonzeros_is_as_requested_and_no_two_cells_are_equal(cells):
    per_cell = np.diff(cells.X.indptr)
    assert per_cell.mean() == pytest.approx(150, rel=0.03)
    assert per_cell.std() == pytest.approx(0.31 * 150, rel=0.1)  # of a lognormal with sigma .3
    assert len({(row.indices.tobytes(), row.data.tobytes()) for row in cells.raw.X}) == 1500
    assert (
        np.median(np.asarray((cells.X > 0).mean(axis=0)))
        < 0.02
        < np.quantile(np.asarray((cells.X > 0).mean(axis=0)), 0.8)
    )


def test_donors_and_types_have_unequal_numbers_of_cells_and_threshold_drops_donors(tmp_path):
    StandIn(**SHAPE | {"cells": 20_000, "nonzeros": 2, "donors": 20}).write(tmp_path / "cells.h5ad")
    obs = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r").obs
    donors = obs["donor_id"].value_counts()
    assert len(donors) == 20 and donors.max() > 10 * donors.min()
    assert 2 < (donors < 20_000 / 40).sum() < 10
    assert obs["cell_type"].value_counts().max() > 10 * obs["cell_type"].value_counts().min()


def test_types_and_donors_can_be_recognized_from_the_counts(cells):
    """Each cell gets the label of the nearest mean profile, computed from the other half of the cells."""
    X, half = cells.X.toarray(), np.arange(1500) % 2 == 0

    def accuracy(names, within):
        right = []
        for group in np.unique(within):
            a, b = half & (within == group), ~half & (within == group)
            means = np.stack([X[a & (names == name)].mean(axis=0) for name in np.unique(names[a])])
            found = ((X[b][:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
            right.append(np.unique(names[a])[found] == names[b])
        return np.concatenate(right).mean()

    kind, donor = (cells.obs[name].to_numpy(str) for name in ("cell_type", "donor_id"))
    assert accuracy(kind, np.zeros(1500)) > 0.9
    shuffled = np.random.default_rng(0).permutation(donor)
    assert accuracy(donor, kind) > accuracy(shuffled, kind) + 0.2


@pytest.mark.parametrize("name", ["gzip.h5ad", "none.zarr", "zstd.zarr"])
def test_every_format_has_the_same_cells(name, tmp_path, cells, monkeypatch):
    monkeypatch.setattr("aenmf_lib.data.appending._CHUNK", 1 << 12)
    monkeypatch.setattr("aenmf_lib.data.appending._SHARD", 1 << 15)
    StandIn(**SHAPE, compact=True, compression=name.split(".")[0]).write(tmp_path / name)
    found = ad.read_h5ad(tmp_path / name) if name.endswith("h5ad") else read_zarr(tmp_path / name)
    assert found.raw.X.dtype == found.raw.X.indices.dtype == found.X.indices.dtype == np.uint16
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found.raw.X, part), getattr(cells.raw.X, part))
        np.testing.assert_array_equal(getattr(found.X, part), getattr(cells.X, part))
    assert found.obs.equals(cells.obs)


def test_raw_only_has_the_counts_in_x_and_another_seed_gives_other_cells(tmp_path, cells):
    StandIn(**SHAPE, raw_only=True).write(tmp_path / "cells.h5ad")
    found = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert found.raw is None and (found.X != cells.raw.X).nnz == 0
    StandIn(**SHAPE, raw_only=True, seed=1).write(tmp_path / "cells.h5ad")
    assert (ad.read_h5ad(tmp_path / "cells.h5ad").X != cells.raw.X).nnz > 1e5


def test_memory_does_not_grow_with_the_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(stand_in, "_BLOCK", 1 << 15)
    peaks = []
    for nonzeros in (50, 400):
        tracemalloc.start()
        StandIn(**SHAPE | {"nonzeros": nonzeros}).write(tmp_path / "cells.h5ad")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 3e6 < 1500 * 350 * 12


def test_no_two_cells_have_the_same_random_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(stand_in, "_BLOCK", 1 << 14)
    draw, seeds = stand_in._draw, []
    monkeypatch.setattr(stand_in, "_draw", lambda own, *args: seeds.append(own) or draw(own, *args))
    StandIn(**SHAPE).write(tmp_path / "cells.h5ad")
    assert len(seeds) > 10 and len(np.unique(np.concatenate(seeds))) == 1500


def test_predicted_size_is_that_of_the_file(path):
    size = path.stat().st_size
    assert size <= StandIn(**SHAPE).size() + 2**20 and StandIn(**SHAPE | {"cells": 10**6}).size() < 700 * size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"donors": 40_000}, "donors=40000 is not possible. Choose a whole number from 1 to 5000"),
        ({"cells": 0}, "cells=0 is not possible. Choose a whole number from 1"),
        ({"genes": 70_000, "compact": True}, "genes=70000 is not possible. Choose a whole number from 100 to 65536"),
        ({"nonzeros": 2900}, "nonzeros=2900 is too large for genes=3000"),
        ({"compression": "zstd"}, "with the compression 'zstd' cannot be written. Choose"),
    ],
)
def test_impossible_shape_is_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        StandIn(**SHAPE | change).write(tmp_path / "cells.h5ad")
    assert not [*tmp_path.iterdir()]


def test_disk_that_is_too_small_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(OSError, match=r"needs 0.0 GB, and 0.0 GB are free in .* Choose fewer cells \(now 1,500\)"):
        StandIn(**SHAPE).write(tmp_path / "new" / "cells.h5ad")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
def test_failed_write_leaves_the_earlier_file(name, tmp_path, monkeypatch):
    StandIn(**SHAPE).write(tmp_path / name)
    before = data.file_info(tmp_path / name)

    def fail(*args):
        raise RuntimeError("stopped")

    monkeypatch.setattr(stand_in, "_draw", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        StandIn(**SHAPE, seed=1).write(tmp_path / name)
    assert data.file_info(tmp_path / name) == before and len([*tmp_path.iterdir()]) == 1


def test_command_line_writes_the_same_file(tmp_path, cells):
    words = [word for name, value in SHAPE.items() for word in (f"--{name}", str(value))]
    main(["stand-in", str(tmp_path / "cells.zarr"), *words, "--raw-only"])
    assert (read_zarr(tmp_path / "cells.zarr").X != cells.raw.X).nnz == 0
