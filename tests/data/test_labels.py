"""Tests of the names of donors, types and genes."""

import numpy as np
import pandas as pd
import pytest

from aenmf_lib import data
from aenmf_lib.data import labels
from aenmf_lib.data.label_summary import summarize_labels
from aenmf_lib.data.labels import NO_TYPE, as_text, read_labels

N = 12


def summarize(donors=("a", "b"), types=("T", "B"), **options):
    """Summarize 12 cells, whose donors and types repeat; each type has cells of all donors of two."""
    donors = [donors[i // 2 % len(donors)] for i in range(N)] if len(donors) < N else donors
    types = [types[i % len(types)] for i in range(N)] if len(types) < N else types
    obs = pd.DataFrame({"donor_id": donors, "cell_type": types}, index=[f"cell{i}" for i in range(N)])
    columns = {key: options.pop(key) for key in list(options) if key in ("is_primary_data", "sex")}
    return summarize_labels(obs.assign(**columns), **({"min_cells": 1} | options))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["1", "01", "NA", "None", "null", "nan"], ["1", "01", "NA", "None", "null", "nan"]),
        ([1, 2], ["1", "2"]),
        ([1.0, 2.0, np.nan, 2.5], ["1", "2", np.nan, "2.5"]),
        (np.array([1, 2], dtype=np.float32), ["1", "2"]),
        ([True, False], ["True", "False"]),
        (pd.Series([1, True, "1"], dtype=object), ["1", "True", "1"]),
        ([b"T cell", "B"], ["T cell", "B"]),
        (pd.Categorical([b"T", b"B", None]), ["T", "B", np.nan]),
        (pd.Categorical([1.0, 2.0, 1.0]), ["1", "2", "1"]),
        (pd.Categorical(["NA", "b", None]), ["NA", "b", np.nan]),
        (pd.array(["x", None, " "], dtype="string"), ["x", np.nan, np.nan]),
        (pd.array([1, None], dtype="Int64"), ["1", np.nan]),
        (pd.array([True, None], dtype="boolean"), ["True", np.nan]),
        (pd.array([1.0, None], dtype="Float64"), ["1", np.nan]),
        (pd.Series([None, np.nan, pd.NA, pd.NaT, "", "\t\n"], dtype=object), [np.nan] * 6),
        ([[1], [2]], ["[1]", "[2]"]),
    ],
)
def test_as_text_of_every_type(column, expected):
    text = as_text(pd.Series(column))
    assert text.dtype == object
    pd.testing.assert_series_equal(text, pd.Series(expected, dtype=object))
    np.testing.assert_array_equal(labels.is_missing(pd.Series(column)), pd.isna(pd.Series(expected, dtype=object)))


def test_donors_1_and_01_stay_different_and_a_type_called_NA_is_a_type():
    summary = summarize(("1", "01"), ("NA", "B"))
    assert sorted(summary.donors["donor_id"]) == ["01", "1"]
    assert summary.keep.all() and summary.n_types == 2
    assert "'NA' (6 cells)" in summary.warnings[0] and 'DROP_LABELS="NA"' in summary.warnings[0]


def test_read_labels_returns_text_and_refuses_missing_labels_unless_partly():
    obs = pd.DataFrame({"donor_id": [1.0, 2.0, np.nan]})
    assert list(read_labels(obs, "donor_id", partly=True)) == ["1", "2", NO_TYPE]
    with pytest.raises(ValueError, match=r"obs\['donor_id'\] is empty for 1 of 3 cells"):
        read_labels(obs, "donor_id")
    with pytest.raises(ValueError, match=r"obs\['cell_type'\] is needed .*'donor_id'"):
        read_labels(obs, "cell_type")


def test_gene_ids_removes_the_versions_of_ensembl_ids_only():
    names = ["ENSG00000141510.18", "ENSMUSG00000000001.5", "ENSG00000182378.14_PAR_Y", "RP11-206L10.2"]
    expected = ["ENSG00000141510", "ENSMUSG00000000001", "ENSG00000182378_PAR_Y", "RP11-206L10.2"]
    assert list(data.gene_ids(names)) == expected


@pytest.mark.parametrize(
    "label",
    ["unknown", "Unknown", "nan", "None", "null", "N/A", "n.a.", "Unassigned", "undefined", "unclassified", "Doublet",
     "doublets", "T/B doublets", "multiplet", "pooled", "ambiguous", "low quality", "Low_quality cells", "unknown_2",
     "-"],
)  # fmt: skip
def test_placeholder_labels_are_reported_with_their_number_and_the_option(label):
    for summary, key in ((summarize(types=("T", label)), "cell_type"), (summarize(("a", label)), "donor_id")):
        (warning,) = summary.warnings
        assert f"obs['{key}'] has labels that do not seem to name a type or donor: {label!r} (6 cells)." in warning
        assert f'drop_labels (DROP_LABELS="{label}")' in warning
        assert summary.keep.all()  # a warning drops nothing


@pytest.mark.parametrize("label", ["T", "CD4-", "Naive B", "other T", "nanny", "Non-classical monocyte", "poolish"])
def test_usual_labels_are_not_reported(label):
    assert not summarize(types=("B", label)).warnings


def test_drop_labels_drops_types_and_donors_and_an_unknown_label_is_an_error():
    summary = summarize(("a", "b", "doublet "), ("T", "Unknown"), drop_labels=["Unknown", "doublet"])
    assert list(summary.keep) == [True, False, True, False, False, False] * 2
    assert not summary.warnings[1:] and "Only the cell type 'T'" in summary.warnings[0]
    summary = summarize(types=("T", "Unknown"), drop_labels=["unknwon"])
    (error,) = summary.errors
    assert "drop_labels contains 'unknwon', which is not in obs['cell_type'] or obs['donor_id']" in error
    assert "Did you mean 'Unknown'" in error


def test_near_duplicates_are_reported_and_merged_on_request_into_the_most_frequent_spelling():
    types = ["T cell "] * 5 + ["T cell", "t  cell", "T\ncell", "B\ncell", "B\ncell", "NK", "NK"]
    summary = summarize(["a", "b"] * 6, types)
    similar, odd = summary.warnings
    listed = "'T cell ' (5 cells), 'T\\ncell' (1 cells), 'T cell' (1 cells), 't  cell' (1 cells)"
    assert f"4 labels that differ only in case or spaces: {listed}." in similar
    assert "set merge_labels=true (MERGE_LABELS=true)" in similar
    assert "1 labels with line breaks, tabs or extra spaces: 'B\\ncell' (2 cells)" in odd
    assert summary.n_types == 6
    merged = summarize(["a", "b"] * 6, types, merge_labels=True)
    assert dict(merged.cell_type.value_counts()) == {"T cell": 8, "B cell": 2, "NK": 2}
    assert not merged.warnings


def test_merged_donors_count_together():
    donors = ["p1"] * 4 + ["P1 "] * 3 + ["p2"] * 5
    assert list(summarize(donors, min_cells=5).donors["n_cells"]) == [5, 4, 3]
    merged = summarize(donors, min_cells=5, merge_labels=True).donors
    assert dict(zip(merged["donor_id"], merged["n_cells"], strict=True)) == {"p1": 7, "p2": 5}


@pytest.mark.parametrize("as_category", [False, True])
def test_cells_that_are_not_primary_data_are_reported_and_dropped_on_request(as_category):
    primary = pd.Series([True] * 8 + [False] * 4)
    primary = pd.Categorical(primary.astype(str)) if as_category else primary.to_numpy()
    (warning,) = summarize(is_primary_data=primary).warnings
    assert "4 of 12 cells are not primary data" in warning and "PRIMARY_ONLY=true" in warning
    summary = summarize(is_primary_data=primary, primary_only=True)
    assert list(summary.keep) == [True] * 8 + [False] * 4
    assert not summary.warnings
    assert not summarize(is_primary_data=np.zeros(N, bool)).warnings
    assert "keeps no cell" in summarize(is_primary_data=np.zeros(N, bool), primary_only=True).errors[0]
    assert "primary_only needs obs['is_primary_data']" in summarize(primary_only=True).errors[0]


def test_confounded_donors_are_reported():
    (warning,) = summarize(["a"] * 4 + ["b"] * 4 + ["c"] * 4, ["T"] * 4 + ["B"] * 4 + ["NK"] * 4).warnings
    assert "so donors cannot be compared within types. Choose another CELL_TYPE_KEY or DONOR_KEY." in warning
    (warning,) = summarize(["a"] * 6 + ["b"] * 6, list("TTBCDE" + "TFGHIJ")).warnings
    assert warning == "1 of 10 types have cells of two donors or more; donors can be compared only within these."
    summary = summarize()
    assert summary.notes == ["2 of 2 types have cells of two donors or more."] and not summary.warnings


def test_missing_columns_are_errors_with_likely_columns_and_their_number_of_values():
    obs = pd.DataFrame(
        {
            "barcode_sample": [f"c{i}" for i in range(N)],
            "orig.ident": "x",
            "patient": ["p1", "p2"] * 6,
            "Batch": [1, 2, 3] * 4,
            "sample_score": np.linspace(0, 1, N),
            "celltype": ["T", "B"] * 6,
            "leiden": list("0123") * 3,
        }
    )
    donor, cell_type, sex = summarize_labels(obs, keep_obs=["sex"]).errors
    assert "no obs column 'donor_id'. These may contain the donors: 'patient' (2 values), " in donor
    assert "'Batch' (3 values), 'orig.ident' (1 value). The columns are: 'barcode_sample', 'orig.ident'" in donor
    assert "Choose one of them (DONOR_KEY=patient)." in donor
    assert "'celltype' (2 values)" in cell_type and "'leiden' (4 values)" in cell_type
    assert "Choose one of them (CELL_TYPE_KEY=celltype)." in cell_type
    assert "no obs column 'sex'" in sex and "keep_obs" in sex


def test_all_errors_and_warnings_are_found_at_once():
    donors = ["a"] * 5 + ["b"] * 4 + ["c"] * 2 + [None]
    types, options = ["T", "unknown", None] * 4, {"drop_labels": ["x"], "sample": -1, "primary_only": True}
    summary = summarize(donors, types, min_cells=9, **options)
    assert len(summary.errors) == 6  # sample, primary_only, drop_labels, two columns with missing labels, min_cells
    assert "No donor has 9 cells or more. The 3 donors have: a 4, b 2, c 2" in summary.errors[-1]
    assert "2 keeps 2 donors" in summary.errors[-1]
    assert "'unknown' (4 cells)" in summary.warnings[0]
    assert not summary.keep.any()


def test_unusable_cells_are_not_counted():
    usable = np.arange(N) >= 4
    summary = summarize(usable=usable)
    assert list(summary.keep) == list(usable)
    assert summary.donors["n_cells"].sum() == 8
