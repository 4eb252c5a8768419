"""Tests of the simulated cells: their format, and the counts against the truth."""

import numpy as np
import pandas as pd
import pytest

from aenmf_lib import data
from aenmf_lib.data import simulation


def test_simulated_file_has_the_shape_of_a_cellxgene_file(demo, tmp_path):
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


def test_depth_and_sparsity_are_realistic(demo):
    depth = np.asarray(demo[0].raw.X.sum(axis=1)).ravel()
    assert 2000 < np.median(depth) < 4500
    assert np.quantile(depth, 0.95) > 2 * np.quantile(depth, 0.05)
    assert 0.6 < 1 - demo[0].raw.X.nnz / np.prod(demo[0].shape) < 0.95


def test_donors_are_unequal_and_one_type_is_rare(demo):
    donors = demo[0].obs["donor_id"].value_counts()
    assert donors.max() > 3 * donors.min()
    assert (donors < 500).sum() == 1
    assert demo[0].obs["cell_type"].value_counts(normalize=True).min() < 0.03


def test_same_seed_gives_the_same_cells():
    (first, _), (again, _), (other, _) = (data.simulate(300, seed=seed) for seed in (1, 1, 2))
    assert (first.raw.X != again.raw.X).nnz == 0
    assert first.obs.equals(again.obs)
    assert (first.raw.X != other.raw.X).nnz > 0


def test_counts_of_a_program_correlate_with_its_usages(demo):
    cells, truth = demo
    share = cells.raw.X.multiply(1 / cells.raw.X.sum(axis=1)).tocsr()
    for j, name in enumerate(simulation.PROGRAMS):
        counts = np.asarray(share[:, truth.W[j] > 0].sum(axis=1)).ravel()
        if name != "housekeeping":  # every cell uses it equally
            assert np.corrcoef(counts, truth.H[:, j])[0, 1] > 0.8, name


def test_donor_effects_appear_only_in_their_genes(demo):
    cells, truth = demo
    share = data.normalize(cells.raw.X).toarray()
    codes = cells.obs["donor_id"].cat.codes.to_numpy()
    for d in range(len(truth.donor_profiles)):
        gain = share[codes == d].mean(0) - share[codes != d].mean(0)
        genes = truth.donor_profiles[d] > 0
        assert gain[genes].min() > 0.2
        untouched = (truth.donor_profiles.max(0) == 0) & (truth.donor_programs.max((0, 1)) == 0) & (truth.W.max(0) == 0)
        assert np.abs(gain[untouched]).mean() < 0.1

    _, none = data.simulate(200, donor_profiles=0, donor_programs=0)
    assert not none.donor_profiles.any()
    assert not none.donor_programs.any()


@pytest.mark.parametrize(("scenario", "rank"), [("demo_many", 2), ("demo_many_full", 40)])
def test_many_donors_have_few_cells_each_and_an_effect_of_the_planted_rank(scenario, rank):
    cells, truth = data.simulate(**simulation._SCENARIOS[scenario])
    donors = cells.obs["donor_id"].value_counts(sort=False)
    assert len(donors) == 40
    assert donors.between(90, 160).all()
    rates = np.expm1(truth.donor_profiles)  # without noise, what is added to the cells of each donor
    assert np.linalg.matrix_rank(rates) == rank
    np.testing.assert_array_equal(cells.uns["truth"]["added"], truth.donor_profiles)
    assert not truth.donor_programs.any()


def test_shared_profiles_are_added_in_the_given_amounts():
    usages = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    options = {"donor_programs": 0, "composition_concentration": 1e6}  # the same shares of the types in each donor
    cells, truth = data.simulate(3000, n_donors=4, donor_profiles=usages, **options)
    rates = np.expm1(truth.donor_profiles)
    assert not rates[0].any()
    np.testing.assert_allclose(rates[1] + rates[2], rates[3])
    codes = cells.obs["donor_id"].cat.codes.to_numpy()
    means = np.array([cells.X[codes == d].toarray().mean(axis=0) for d in range(4)])
    gain = means - means[0]
    first, second = (rates[1] > 0) & (rates[2] == 0), (rates[2] > 0) & (rates[1] == 0)
    of_first, of_second = gain[:, first].mean(axis=1), gain[:, second].mean(axis=1)
    assert of_first[[1, 3]].min() > 0.5  # the other counts of these cells fall a little, because depth is limited
    assert of_second[[2, 3]].min() > 0.5
    assert max(of_first[2], of_second[1]) < 0.1


@pytest.mark.parametrize(
    "usages",
    [np.ones((3, 2)), np.ones(2), np.ones((2, 0)), -np.ones((2, 2)), np.full((2, 1), np.nan), np.array([["a"]] * 2)],
)
def test_invalid_usages_of_shared_profiles_raise(usages):
    with pytest.raises(ValueError, match=r"donor_profiles of shape .* is not valid\. Expected one row per donor \(2\)"):
        data.simulate(100, n_donors=2, donor_profiles=usages)


def test_too_few_genes_raise():
    with pytest.raises(ValueError, match=r"n_genes=500 is too small .* Set it to 1220 or more"):
        data.simulate(100, 500)


def test_write_demo_writes_the_scenario_of_the_file_name(tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "simulate", lambda **options: (data.simulate(100, **options)[0], None))
    simulation.write_demo(tmp_path / "demo_none.h5ad")
    expected, _ = data.simulate(100, donor_profiles=0, donor_programs=0)
    assert (data.read_h5ad(tmp_path / "demo_none.h5ad").X != expected.X).nnz == 0
    with pytest.raises(ValueError, match=r"Unknown scenario 'other'\. .* demo, demo_none"):
        simulation.write_demo(tmp_path / "other.h5ad")


def test_a_treatment_changes_one_program_of_one_type_in_every_second_donor():
    cells, truth = data.simulate(4000, n_donors=4, donor_profiles=0, treatment=("interferon", "B cell", 3.0))
    conditions = cells.obs.groupby("donor_id", observed=True)["condition"].unique()
    assert [list(names) for names in conditions] == [["control"], ["treated"]] * 2
    usage = pd.DataFrame(truth.H, columns=list(simulation.PROGRAMS))
    genes = cells.var["feature_name"].str.startswith("INTERFERON").to_numpy()
    usage["counts"] = cells.X[:, genes].sum(axis=1)
    by = [cells.obs["cell_type"].to_numpy(), cells.obs["condition"].to_numpy()]
    means = usage.groupby(by).mean().drop(index="mast cell", level=0)
    ratio = (means.xs("treated", level=1) / means.xs("control", level=1)).fillna(1)
    assert ratio.loc["B cell", "interferon"] == pytest.approx(3, rel=0.25)
    assert ratio.loc["B cell", "counts"] > 1.4
    ratio.loc["B cell", ["interferon", "counts"]] = 1
    assert ((ratio > 0.6) & (ratio < 1.6)).all(axis=None)  # 100 cells of some types, with a standard deviation of 1.2


def test_demo_without_a_treatment_has_its_earlier_cells():
    obs = data.simulate()[0].obs
    assert obs["donor_id"].value_counts(sort=False).tolist() == [1364, 1100, 923, 825, 570, 218]
    assert obs["cell_type"].value_counts(sort=False).tolist() == [1610, 882, 464, 672, 242, 677, 387, 66]


@pytest.mark.parametrize("n", [1, 12])
def test_the_number_of_donors_can_be_chosen(n):
    cells, truth = data.simulate(1000, n_donors=n)
    assert cells.obs["donor_id"].nunique() == len(truth.donor_profiles) == n


@pytest.mark.parametrize(
    "treatment",
    [
        ("interferons", "B cell", 2.0), ("B", "B cells", 2.0), ("B", "B cell", -1.0), ("B", "B cell", "3"),
        ("B", "B cell", np.inf), ("B", "B cell"), (["B"], "B cell", 2.0), "B",
    ],
)  # fmt: skip
def test_invalid_treatments_raise(treatment):
    with pytest.raises(ValueError, match=r"is not valid\. Expected a program \(housekeeping, .* a factor ≥ 0"):
        data.simulate(100, treatment=treatment)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("n_cells", 0, "whole number of at least 1"),
        ("n_genes", 2000.0, "whole number of at least 1"),
        ("n_donors", 0, "whole number of at least 1"),
        ("n_donors", 1.5, "whole number of at least 1"),
        ("n_donors", True, "whole number of at least 1"),
        ("seed", -1, "whole number of at least 0"),
        ("donor_profiles", -1, "finite number of at least 0"),
        ("donor_programs", np.nan, "finite number of at least 0"),
        ("composition_concentration", 0, "finite number of at least 0.01"),
        ("composition_concentration", np.inf, "finite number of at least 0.01"),
    ],
)
def test_invalid_numbers_raise(name, value, expected):
    with pytest.raises(ValueError, match=rf"{name}={value!r} is not valid\. Choose a {expected}\."):
        data.simulate(**{"n_cells": 100, name: value})
