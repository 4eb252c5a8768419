"""Differential usage: hand-worked tables, comparison with scipy, false positives, planted differences, errors."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import filtered
from scipy import stats

from aenmf_lib import AENMF, data, programs
from aenmf_lib.data.simulation import PROGRAMS

KANG = Path(__file__).parents[2] / "data/kang2018.h5ad"
SWAP = {"control": "treated", "treated": "control"}
RESULTS = ["effect", "ci_low", "ci_high", "statistic", "p_value", "fdr"]


def usages_of(values) -> np.ndarray:
    """Return usages whose logarithm, after 5 % of their mean is added, is log2(values)."""
    values = np.asarray(values, dtype=float)
    return values - 0.05 * values.mean(0) / 1.05


def one_cell_each(donors, groups, values, types="T") -> tuple[np.ndarray, pd.DataFrame]:
    """Return H (n_cells, k) and obs with one cell per value."""
    return usages_of(values), pd.DataFrame({"donor_id": donors, "condition": groups, "cell_type": types})


def draw_cells(rng, k=20, n_donors=12, types=("T", "B"), spread=0.3, paired=False, n_cells=60):
    """Return gamma usages H (n_cells, k) of donors that differ, and obs with a random or paired `condition`."""
    treated = rng.permutation(n_donors) < n_donors // 2
    tables, H = [], []
    for d, name in itertools.product(range(n_donors), types):
        level = np.exp(rng.normal(0, spread, k))
        for group in ("control", "treated") if paired else (("control", "treated")[int(treated[d])],):
            n = int(rng.integers(n_cells // 2, n_cells * 2))
            own = level * np.exp(rng.normal(0, spread / 2, k))
            H.append(rng.gamma(0.7, own / 0.7, (n, k)))
            tables.append(pd.DataFrame({"donor_id": f"D{d}", "cell_type": name, "condition": [group] * n}))
    return np.vstack(H), pd.concat(tables, ignore_index=True)


def test_paired_table_equals_a_hand_worked_one():
    # log2: control 0, 1, 2 and treated 1, 3, 5 of donors a, b, c: differences 1, 2, 3, so t = 2 / (1 / sqrt(3)).
    values = 2.0 ** np.array([[5], [1], [0], [1], [2], [3]])
    H, obs = one_cell_each(["c", "a", "a", "b", "c", "b"], ["treated", "treated", *["control"] * 3, "treated"], values)
    (row,) = programs.differential_usage(H, obs, "condition", min_cells=1).to_dict("records")
    assert (row["design"], row["n_pairs"], row["n_donors_a"], row["n_donors_b"]) == ("paired", 3, 3, 3)
    assert (row["group_a"], row["group_b"], row["Model"], row["program"], row["cell_type"]) == (
        "control", "treated", "H", 0, "T",
    )  # fmt: skip
    assert row["effect"] == pytest.approx(2, rel=1e-12)
    assert row["statistic"] == pytest.approx(2 * np.sqrt(3), rel=1e-12)
    assert row["p_value"] == pytest.approx(1 - np.sqrt(6 / 7), rel=1e-9)  # 2 degrees of freedom: 1 - t / sqrt(t² + 2)
    assert row["fdr"] == row["p_value"]
    assert [row["ci_low"], row["ci_high"]] == pytest.approx([2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)])
    assert row["mean_a"] == pytest.approx(usages_of(values)[[2, 3, 4]].mean())


def test_unpaired_table_equals_a_hand_worked_one():
    # log2: 0, 2 against 3, 5: difference 3, pooled variance 2, standard error sqrt(2 (1/2 + 1/2)).
    H, obs = one_cell_each(list("abcd"), ["ctrl", "ctrl", "stim", "stim"], 2.0 ** np.array([[0], [2], [3], [5]]))
    (row,) = programs.differential_usage(H, obs, "condition", min_cells=1).to_dict("records")
    assert (row["design"], row["n_pairs"], row["n_donors_a"], row["n_donors_b"]) == ("unpaired", 0, 2, 2)
    t = 3 / np.sqrt(2)
    assert [row["effect"], row["statistic"]] == pytest.approx([3, t], rel=1e-12)
    assert row["p_value"] == pytest.approx(1 - t / np.sqrt(t**2 + 2), rel=1e-9)
    assert [row["ci_low"], row["ci_high"]] == pytest.approx([3 - 4.302653 * np.sqrt(2), 3 + 4.302653 * np.sqrt(2)])


@pytest.mark.parametrize("paired", [True, False])
def test_results_equal_tests_of_donor_means(paired):
    rng = np.random.default_rng(1)
    H, obs = draw_cells(rng, k=7, n_donors=8, paired=paired)
    order = rng.permutation(len(obs))
    H, obs = H[order], obs.iloc[order]
    table = programs.differential_usage({"AE_NMF": H, "Base_NMF": H[:, :3] ** 2}, obs, "condition")
    assert table["Model"].tolist() == ["AE_NMF"] * 14 + ["Base_NMF"] * 6
    means = (
        pd.DataFrame(H)
        .groupby([obs["cell_type"].to_numpy(), obs["condition"].to_numpy(), obs["donor_id"].to_numpy()])
        .mean()
    )
    logs = np.log2(means + 0.05 * means.mean())
    rows = table[table["Model"] == "AE_NMF"].set_index(["cell_type", "program"])
    for name in ("T", "B"):
        a, b = (logs.loc[(name, group)].sort_index() for group in ("control", "treated"))
        expected = stats.ttest_rel(b, a) if paired else stats.ttest_ind(b, a)
        got = rows.loc[name].sort_index()
        np.testing.assert_allclose(got["statistic"], expected.statistic, rtol=1e-9)
        np.testing.assert_allclose(got["p_value"], expected.pvalue, rtol=1e-9)
        np.testing.assert_allclose(got["ci_low"], expected.confidence_interval().low, rtol=1e-9)
        np.testing.assert_allclose(got["mean_b"], means.loc[(name, "treated")].mean(), rtol=1e-9)
    for _, part in table.groupby("Model"):
        p = np.sort(part["p_value"])
        adjusted = np.minimum.accumulate((p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
        np.testing.assert_allclose(np.sort(part["fdr"]), adjusted, rtol=1e-12)


def test_order_of_cells_and_scale_of_programs_change_nothing():
    rng = np.random.default_rng(2)
    H, obs = draw_cells(rng, k=5, n_donors=6, paired=True)
    table = programs.differential_usage(H, obs, "condition")
    order = rng.permutation(len(obs))
    scaled = programs.differential_usage(H[order] * 10.0 ** np.arange(-2, 3), obs.iloc[order], "condition")
    np.testing.assert_allclose(scaled[RESULTS], table[RESULTS], rtol=1e-6)
    pd.testing.assert_frame_equal(table, programs.differential_usage(H, obs, "condition"), check_exact=True)


def test_the_chosen_order_of_the_groups_gives_the_reference():
    H, obs = draw_cells(np.random.default_rng(3), k=3)
    table = programs.differential_usage(H, obs, "condition")
    swapped = programs.differential_usage(H, obs, "condition", groups=["treated", "control"])
    assert set(swapped["group_a"]) == {"treated"}
    np.testing.assert_allclose(swapped["effect"], -table["effect"], rtol=1e-12)
    np.testing.assert_allclose(swapped["ci_low"], -table["ci_high"], rtol=1e-12)
    np.testing.assert_allclose(swapped["p_value"], table["p_value"], rtol=1e-12)
    ordered = obs.assign(condition=pd.Categorical(obs["condition"], ["treated", "control"], ordered=True))
    pd.testing.assert_frame_equal(programs.differential_usage(H, ordered, "condition"), swapped)
    case = obs.assign(condition=obs["condition"].replace({"treated": "IFN"}))  # in ASCII, I is before c
    assert set(programs.differential_usage(H, case, "condition")["group_a"]) == {"control"}


def share_of_small_p(H, obs) -> tuple[float, float]:
    """Return the share of p < .05 of the tests of donors, and of tests that count cells."""
    table = programs.differential_usage(H, obs, "condition")
    treated = (obs["condition"] == "treated").to_numpy()
    of_cells = []
    for name in obs["cell_type"].unique():
        of_type = (obs["cell_type"] == name).to_numpy()
        of_cells.append(stats.ttest_ind(H[of_type & treated], H[of_type & ~treated]).pvalue)
    return (table["p_value"] < 0.05).mean(), (np.concatenate(of_cells) < 0.05).mean()


@pytest.mark.parametrize(("paired", "n_donors"), [(False, 4), (False, 5), (False, 12), (True, 3), (True, 8)])
def test_without_a_difference_five_percent_of_p_values_are_below_five_percent(paired, n_donors):
    rng = np.random.default_rng(n_donors)
    shares = [share_of_small_p(*draw_cells(rng, k=400, n_donors=n_donors, paired=paired)) for _ in range(5)]
    of_donors, of_cells = np.mean(shares, axis=0)
    assert 0.035 < of_donors < 0.06  # 4,000 tests: standard deviation .0034
    assert of_cells > 0.15  # why donors are the units


def test_planted_differences_are_found():
    rng = np.random.default_rng(0)
    found, effects, others = [], [], []
    for _ in range(40):
        H, obs = draw_cells(rng, k=12, n_donors=16, spread=0.15, n_cells=100)
        changed = ((obs["condition"] == "treated") & (obs["cell_type"] == "B")).to_numpy()
        H[changed, 4] *= 2
        table = programs.differential_usage(H, obs, "condition").set_index(["program", "cell_type"])
        found.append(table.loc[(4, "B"), "fdr"] < 0.05)
        effects.append(table.loc[(4, "B"), "effect"])
        others.append((table.drop(index=(4, "B"))["fdr"] < 0.05).mean())
    assert np.mean(found) >= 0.9
    assert np.mean(effects) == pytest.approx(1, abs=0.1)
    assert np.mean(others) < 0.01


@pytest.fixture(scope="module")
def fitted():
    """Cells of twelve donors, of which the treated use the interferon program more in monocytes, and their usages."""
    treatment = ("interferon", "classical monocyte", 2.0)
    cells, truth = filtered(*data.simulate(n_donors=12, treatment=treatment), min_cells=50)
    model = AENMF(k=12).fit(cells)
    interferon = truth.W[list(PROGRAMS).index("interferon")]
    return cells.obs, model.transform(cells), int((model.W_ @ interferon / np.linalg.norm(model.W_, axis=1)).argmax())


def test_a_fit_finds_the_program_that_the_treatment_changes(fitted):
    obs, H, program = fitted
    table = programs.differential_usage(H, obs, "condition")
    first = table.loc[table["p_value"].idxmin()]
    assert (first["program"], first["cell_type"]) == (program, "classical monocyte")
    assert first["fdr"] < 0.01
    assert 0.2 < first["effect"] < 1  # planted: 1, but the logarithms of X and the other programs make it smaller
    others = table[table["cell_type"] != "classical monocyte"]
    assert (others["fdr"] < 0.05).mean() < 0.02


def test_random_groups_of_a_fit_differ_in_five_percent_of_the_tests(fitted):
    obs, H, _ = fitted
    rng, donors = np.random.default_rng(0), obs["donor_id"].cat.categories
    shares, found = [], []
    others = (obs["cell_type"] != "classical monocyte").to_numpy()
    for _ in range(40):
        treated = obs["donor_id"].isin(rng.permutation(donors)[: len(donors) // 2])
        random = obs.assign(condition=np.where(treated, "treated", "control"))
        table = programs.differential_usage(H[others], random[others], "condition")
        shares.append((table["p_value"].dropna() < 0.05).mean())
        found.append((table["fdr"] < 0.05).mean())
    assert 0.02 < np.mean(shares) < 0.06
    assert np.mean(found) < 0.01


def test_interferon_is_found_in_all_types_of_stimulated_cells():
    if not KANG.exists():
        pytest.skip(f"{KANG} does not exist")
    cells = data.prepare(KANG, min_cells=600)
    genes = cells.var_names.get_indexer(["ISG15", "IFI6", "LY6E", "IFIT3", "MX1"])
    usage = cells.X[:, genes].toarray().sum(axis=1, keepdims=True)  # a program of five genes
    table = programs.differential_usage(usage, cells.obs, "condition")
    assert set(table["design"]) == {"paired"}
    assert set(table["group_a"]) == {"control"}
    tested = table[table["reason"] == ""]
    assert len(tested) == 11
    assert (tested["ci_low"] > 1).all()
    assert (tested["fdr"] < 0.01).all()
    # labels swapped in four of eight donors
    swap = cells.obs["donor_id"].isin(sorted(cells.obs["donor_id"].unique())[::2])
    swapped = cells.obs["condition"].map({"control": "IFN-beta", "IFN-beta": "control"}).astype(str)
    random = cells.obs.assign(condition=cells.obs["condition"].astype(str).mask(swap, swapped))
    assert (programs.differential_usage(usage, random, "condition")["p_value"].dropna() > 0.05).all()


def test_tests_that_cannot_be_done_have_a_reason():
    rng = np.random.default_rng(4)
    H, obs = draw_cells(rng, k=3, n_donors=4, types=("T", "B", "rare", "one group"))
    H[:, 2] = 0
    rare = np.flatnonzero(obs["cell_type"] == "rare")
    extra = np.flatnonzero((obs["cell_type"] == "one group") & (obs["condition"] == "treated"))
    keep = np.ones(len(obs), dtype=bool)
    keep[extra], keep[rare] = False, obs.iloc[rare].groupby("donor_id").cumcount() < 5
    table = programs.differential_usage(H[keep], obs[keep], "condition").set_index(["cell_type", "program"])
    assert set(table.loc["rare", "reason"]) == {"0 and 0 donors with at least 10 cells; 2 needed"}
    assert set(table.loc["one group", "reason"]) == {"2 and 0 donors with at least 10 cells; 2 needed"}
    assert table.loc[("T", 2), "reason"] == "usage does not vary between the donors of a group"
    assert set(table.loc[("B", 0), ["reason"]]) == {""}
    undone = table["reason"] != ""
    assert table.loc[undone, RESULTS].isna().all(axis=None)
    assert table.loc[~undone, RESULTS].notna().all(axis=None)
    few = programs.differential_usage(H[keep], obs[keep], "condition", min_cells=5).set_index(["cell_type", "program"])
    assert few.loc[("rare", 0), "p_value"] > 0


def test_donors_that_do_not_fit_the_design_are_left_out(caplog):
    rng = np.random.default_rng(5)
    H, obs = draw_cells(rng, k=4, n_donors=6, paired=True)
    lost = ((obs["donor_id"] == "D5") & (obs["condition"] == "treated")).to_numpy()
    table = programs.differential_usage(H[~lost], obs[~lost], "condition")
    assert (
        "1 donors (first: 'D5') are left out, because they have at least 10 cells of a type in one group only"
        in caplog.text
    )
    without = (obs["donor_id"] != "D5").to_numpy()
    expected = programs.differential_usage(H[without], obs[without], "condition")
    assert (table["n_pairs"] == 5).all()
    # the mean usage, of which 5 % is added, still contains the donor
    np.testing.assert_allclose(table["effect"], expected["effect"], rtol=0.05, atol=0.01)

    H, obs = draw_cells(rng, k=4, n_donors=8)
    both = obs["condition"].where((obs["donor_id"] != "D3") | (np.arange(len(obs)) % 2 == 0), "treated")
    both[(obs["donor_id"] == "D3") & (np.arange(len(obs)) % 2 == 0)] = "control"
    table = programs.differential_usage(H, obs.assign(condition=both), "condition")
    assert set(table["design"]) == {"unpaired"}
    assert (table["n_donors_a"] + table["n_donors_b"] == 7).all()
    assert (
        "1 donors (first: 'D3') are left out, because they have at least 10 cells of a type in both groups"
        in caplog.text
    )


@pytest.mark.parametrize("n_donors", [1, 5])
def test_single_cells_in_the_other_group_change_neither_design_nor_donors(n_donors):
    H, obs = draw_cells(np.random.default_rng(12), k=3, n_donors=8)
    expected = programs.differential_usage(H, obs, "condition")
    first = obs.drop_duplicates("donor_id").index[:n_donors]
    stray = obs.loc[first].assign(condition=obs.loc[first, "condition"].map(SWAP))
    table = programs.differential_usage(np.vstack([H, H[first]]), pd.concat([obs, stray]), "condition")
    assert set(table["design"]) == {"unpaired"}
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


def test_the_design_is_paired_if_an_unpaired_one_is_impossible():
    H, obs = draw_cells(np.random.default_rng(13), k=3, n_donors=9, paired=True)
    lost = (obs["donor_id"].isin([f"D{d}" for d in range(4, 9)]) & (obs["condition"] == "treated")).to_numpy()
    table = programs.differential_usage(H[~lost], obs[~lost], "condition", min_donors=4)
    assert set(table["design"]) == {"paired"}
    assert set(table["n_pairs"]) == {4}  # five donors have cells of the control only
    assert table["p_value"].notna().all()


@pytest.mark.parametrize(
    ("donors", "reason"),
    [
        ("abcd", "usage does not vary between the donors of a group"),
        ("abab", "the difference is the same in all pairs"),
    ],
)
def test_groups_without_variance_have_a_reason(donors, reason):
    H, obs = one_cell_each(list(donors), ["ctrl", "ctrl", "stim", "stim"], [[1], [1], [2], [2]])
    table = programs.differential_usage(H, obs, "condition", min_cells=1)
    assert table["reason"].tolist() == [reason]
    assert table[RESULTS].isna().all(axis=None)


def test_cells_without_a_group_or_type_are_left_out(caplog):
    H, obs = draw_cells(np.random.default_rng(6), k=3)
    expected = programs.differential_usage(H, obs, "condition")
    more = obs.iloc[:90].copy()
    more.loc[:29, "condition"], more.loc[30:59, "condition"], more.loc[60:, "cell_type"] = np.nan, " ", np.nan
    table = programs.differential_usage(
        np.vstack([H, H[:90] * 9]), pd.concat([obs, more], ignore_index=True).astype("category"), "condition"
    )
    pd.testing.assert_frame_equal(table, expected)
    assert f"60 of {len(obs) + 90} cells are left out: obs['condition'] is neither" in caplog.text


@pytest.mark.parametrize("names", [(0, 1), (False, True), ("NA", "nan")])
def test_groups_can_be_numbers_truth_values_and_any_text(names):
    H, obs = draw_cells(np.random.default_rng(7), k=2)
    expected = programs.differential_usage(H, obs, "condition")
    renamed = obs.assign(condition=obs["condition"].map(dict(zip(("control", "treated"), names, strict=True))))
    table = programs.differential_usage(H, renamed, "condition", groups=names)
    assert (table["group_a"].iloc[0], table["group_b"].iloc[0]) == (str(names[0]), str(names[1]))
    np.testing.assert_array_equal(table["p_value"], expected["p_value"])


def three_groups(obs):
    return obs["condition"].where(obs["donor_id"] != "D1", "other")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda obs: {}, {"by": "sex"}, r"no column 'sex'; it has 'donor_id', .*two values: 'cell_type', 'condition'"),
        (lambda obs: {"condition": "control"}, {}, r"has 1 groups instead of two: 'control' \(12 donors\)"),
        (lambda obs: {"condition": np.nan}, {}, r"has 0 groups instead of two: no cell has a value"),
        (lambda obs: {"condition": three_groups(obs)}, {}, r"has 3 groups .*such as groups=\['control', 'other'\]"),
        (lambda obs: {"condition": np.arange(len(obs)) / 7}, {}, r"groups instead of two.*pandas\.cut"),
        (lambda obs: {}, {"groups": ["control", "drug"]}, r"not two different values.*'control' \(6 donors\)"),
        (lambda obs: {}, {"groups": ["control"]}, r"groups=\['control'\] are not two different values"),
        (lambda obs: {}, {"groups": ["control"] * 2}, "are not two different values"),
        (
            lambda obs: {"condition": np.where(obs["donor_id"] == "D1", "treated", "control")},
            {},
            r"0 donors .* there are 11 with 'control' and 1 with 'treated'\. Expected at least 2 in both groups",
        ),
        (lambda obs: {}, {"min_donors": 7}, r"6 with 'control' and 6 with 'treated'\. Expected at least 7"),
        (lambda obs: {}, {"min_cells": 10**6}, r"0 donors have at least 1000000 cells .*or another min_cells"),
        (lambda obs: {}, {"by": "cell_type"}, r"no cell type has cells of both groups, 'B' and 'T'\. .*a condition"),
        (lambda obs: {"donor_id": obs["donor_id"].where(obs["donor_id"] != "D1")}, {}, r"obs\['donor_id'\] is empty"),
        (lambda obs: {"cell_type": np.nan}, {}, "cells has a type and one of the groups"),
        (lambda obs: {}, {"min_donors": 1}, "min_donors=1 is not valid. Choose a whole number of at least 2"),
        (lambda obs: {}, {"min_cells": 0}, "min_cells=0 is not valid. Choose a whole number of at least 1"),
        (lambda obs: {}, {"min_cells": "a"}, "min_cells='a' is not valid"),
        (lambda obs: {}, {"min_cells": np.nan}, "min_cells=nan is not valid"),
    ],
)  # fmt: skip
def test_bad_groups_raise(change, options, message):
    H, obs = draw_cells(np.random.default_rng(8), k=2)
    with pytest.raises(ValueError, match=message):
        programs.differential_usage(H, obs.assign(**change(obs)), **{"by": "condition"} | options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda H: H[1:],
            r"H of AE_NMF has shape \(\d+, 2\) and type float64\. Expected numbers, \d+ cells × programs",
        ),
        (lambda H: H[:, :0], r"has shape \(\d+, 0\)"),
        (lambda H: H.astype(str), "and type <U"),
        (lambda H: np.where(np.arange(len(H))[:, None] == 5, np.nan, H), "AE_NMF contains nan. Expected finite usages"),
        (lambda H: np.where(np.arange(len(H))[:, None] == 5, np.inf, H), "contains inf"),
        (lambda H: np.where(np.arange(len(H))[:, None] == 5, -1e-3, H), "contains -0.001"),  # the means stay positive
    ],
)
def test_bad_usages_raise(change, message):
    H, obs = draw_cells(np.random.default_rng(9), k=2)
    with pytest.raises(ValueError, match=message):
        programs.differential_usage({"AE_NMF": change(H)}, obs, "condition")


def test_usages_of_no_model_raise():
    with pytest.raises(ValueError, match="H contains no model"):
        programs.differential_usage({}, draw_cells(np.random.default_rng(9), k=2)[1], "condition")
