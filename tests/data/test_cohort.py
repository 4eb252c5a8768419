"""The table of the cells of each donor and type, before and after the choice of the donors."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_cells

from aenmf_lib import data, results
from aenmf_lib.data.tables import read_table

DONORS = ["big"] * 40 + ["small"] * 15 + ["edge"] * 5


@pytest.fixture
def counts():
    cells = tiny_cells()
    cells.X.data = np.ceil(cells.X.data)
    cells.obs["donor_id"] = DONORS
    cells.obs["cell_type"] = ["T", "B", "T", "NK"] * 15
    return cells


def cohort_of(counts, **options) -> pd.DataFrame:
    """Return the cohort of raw counts."""
    return data.filter_cells(counts, **({"min_cells": 15} | options))[1]


def numbers(cohort) -> dict:
    """Return the number of cells by donor and type."""
    return cohort.set_index(["donor_id", "cell_type"])["n_cells"].to_dict()


def test_a_cohort_counts_the_cells_of_all_donors_and_says_which_are_kept(counts):
    cells, cohort = data.filter_cells(counts, min_cells=15)
    assert list(cohort) == ["donor_id", "cell_type", "n_cells", "kept", "min_cells"]
    assert numbers(cohort) == dict(Counter(zip(counts.obs["donor_id"], counts.obs["cell_type"], strict=True)))
    assert list(cohort["donor_id"].unique()) == ["big", "small", "edge"]  # largest first
    assert cohort.groupby("donor_id")["kept"].agg(["min", "max"]).to_numpy().tolist() == [[1, 1], [0, 0], [1, 1]]
    assert set(cohort["min_cells"]) == {15}
    kept = cells.obs.groupby(["donor_id", "cell_type"], observed=True).size().to_dict()
    assert numbers(cohort[cohort["kept"]]) == kept


def test_a_sample_does_not_change_the_cohort(counts):
    pd.testing.assert_frame_equal(cohort_of(counts, sample=10), cohort_of(counts))


def test_dropped_cells_are_not_in_the_cohort(counts):
    counts.X[[0, 1]] = 0  # a T and a B cell of the largest donor
    expected = Counter(zip(counts.obs["donor_id"][2:], counts.obs["cell_type"][2:], strict=True))
    assert numbers(cohort_of(counts, drop_empty=True)) == dict(expected)
    expected = {pair: n for pair, n in expected.items() if pair[1] != "NK"}
    assert numbers(cohort_of(counts, drop_empty=True, drop_labels=["NK"], min_cells=9)) == expected


def test_cells_without_a_type_are_counted_under_an_empty_name(counts):
    counts.obs.loc[["cell2", "cell59"], "cell_type"] = np.nan
    found = numbers(cohort_of(counts, keep_unlabeled=True))
    assert (found["big", ""], found["edge", ""]) == (1, 1)
    assert sum(found.values()) == 60


def test_merged_labels_and_other_columns_are_counted(counts):
    counts.obs["cell_type"] = ["T", "t ", "T", "NK"] * 15
    counts.obs = counts.obs.rename(columns={"donor_id": "patient", "cell_type": "label"})
    cohort = cohort_of(counts, donor_key="patient", cell_type_key="label", merge_labels=True)
    assert set(cohort["cell_type"]) == {"T", "NK"}
    assert numbers(cohort)["big", "T"] == 30


def test_the_threshold_that_was_chosen_is_in_the_cohort(counts):
    assert set(cohort_of(counts, min_cells=0)["min_cells"]) == {4}  # a tenth of the largest donor


def test_a_cohort_with_odd_names_survives_its_file(counts, tmp_path):
    names = ["NA", "01", "1", "a,b", 'a"b', "a\nb", "$x$", "é—β", "nan", "T" * 150]
    counts.obs["cell_type"] = names * 6
    counts.obs["donor_id"] = [names[i // 3 % 10] for i in range(60)]
    cohort = cohort_of(counts, min_cells=1)
    results.write_table(cohort, tmp_path / "cohort.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "cohort.csv"), cohort)
    assert set(cohort["cell_type"]) == set(cohort["donor_id"]) == set(names)
