"""The rank table: errors equal dense ones, planted ranks are found, noise supports no rank, runs are resumed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib import AENMF, data, programs
from aenmf_lib.data import files
from aenmf_lib.programs import rank
from aenmf_lib.training.moments import Moments

K_TRUE = 6
TIMES = ["seconds", "seconds_more"]


def simulated(k: int, *, n_donors: int = 6, n_cells: int = 1200, n_genes: int = 200, seed: int = 0) -> AnnData:
    """Return cells of k programs: the mean of the noise, and k − 1 with separate genes; k = 1: only noise."""
    rng = np.random.default_rng(seed)
    X = rng.gamma(1, 0.5, (n_cells, n_genes)) * rng.lognormal(0, 0.3, n_genes)
    if n := k - 1:
        W = np.where(np.arange(n_genes) % n == np.arange(n)[:, None], rng.gamma(2, 0.5, (n, n_genes)), 0)
        X += (rng.random((n_cells, n)) < 0.3) * rng.gamma(4, 0.4, (n_cells, n)) @ W
    donor = pd.Categorical(rng.choice([f"d{i}" for i in range(n_donors)], n_cells))
    obs = pd.DataFrame({"donor_id": donor, "cell_type": "T"}, index=[f"c{i}" for i in range(n_cells)])
    return AnnData(csr_matrix(X.astype(np.float32)), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


@pytest.fixture(scope="module")
def cells():
    return simulated(K_TRUE)


@pytest.fixture(scope="module")
def table(cells):
    return programs.rank_table(cells, [2, 4, 6, 8, 12])


def roles(cells, seed=42, held_out=0.2):
    return rank._divide(cells.obs.index, cells.obs["donor_id"].to_numpy(str), seed, held_out)


# ---- oracle
def test_errors_equal_those_of_dense_matrices(cells, table):
    """A model fitted to the training cells, and errors of the held-out cells from X itself."""
    _, role = roles(cells)
    row = table[table["k"] == 4].iloc[0]
    train = cells[role == "train"].copy()
    groups = pd.Categorical(np.char.add(roles(cells)[0], ": train")[role == "train"])
    moments = Moments.from_cells(AnnData(train.X, obs=train.obs.assign(donor_id=groups), var=train.var), by_donor=True,
                                 cell_type=False)  # fmt: skip
    W = AENMF(k=4).fit(moments).W_.astype(float)
    for name, column in (("train", "error"), ("cells", "error_cells"), ("donors", "error_donors")):
        X = cells.X[role == name].toarray().astype(float)
        assert row[column] == pytest.approx(np.linalg.norm(X - X @ W.T @ W) / np.linalg.norm(X), rel=1e-4), name
    X, fitted = (cells.X[role == name].toarray().astype(float) for name in ("cells", "train"))
    fold, predicted = np.random.default_rng(42).permutation(200) % 5, np.zeros_like(X)
    for b in range(5):
        usages, W_a = fitted @ W.T, np.where(fold != b, W, 0)
        M = np.linalg.lstsq(fitted @ W_a.T, usages, rcond=None)[0]
        predicted[:, fold == b] = X @ W_a.T @ M @ W[:, fold == b]
    assert row["error_genes"] == pytest.approx(np.linalg.norm(X - predicted) / np.linalg.norm(X), rel=1e-4)


def test_roles_and_halves_divide_the_cells_in_any_order(cells):
    half, role = roles(cells)
    donors = cells.obs["donor_id"].to_numpy(str)
    by_donor = pd.crosstab(donors, role)
    assert (by_donor["donors"] > 0).sum() == 1  # a fifth of six donors
    kept = by_donor[by_donor["donors"] == 0]
    np.testing.assert_allclose(kept["cells"], 0.2 * kept.sum(axis=1), atol=0.5)
    assert (pd.crosstab(donors, half) > 0).sum(axis=1).eq(1).all()
    assert 0.4 < (half == "A").mean() < 0.6
    order = np.random.default_rng(1).permutation(cells.n_obs)
    for found, expected in zip(roles(cells[order]), (half, role), strict=True):
        np.testing.assert_array_equal(found, expected[order])
    assert (roles(cells, seed=1)[1] != role).any()


def test_training_does_not_use_held_out_cells(cells, table):
    trained = np.repeat(roles(cells)[1] == "train", np.diff(cells.X.indptr))
    changed = cells.copy()
    changed.X.data = np.where(trained, cells.X.data, cells.X.data**0.5).astype(np.float32)
    found = programs.rank_table(changed, [4], starts=1).iloc[0]
    expected = table[table["k"] == 4].iloc[0]
    assert found["error"] == pytest.approx(expected["error"], rel=1e-6)
    assert found["error_cells"] != pytest.approx(expected["error_cells"], rel=1e-3)


# ---- planted truth
def test_prediction_improves_and_programs_are_stable_up_to_the_planted_rank(table):
    table = table.set_index("k")
    for column in ("error_cells", "error_donors", "error_genes"):
        gain = -table[column].diff() / np.diff(table.index, prepend=0)  # per program
        assert gain[K_TRUE] > 10 * gain[8], column
    assert table["error_genes"][12] == pytest.approx(table["error_genes"][K_TRUE], rel=0.005)
    for between in ("starts", "halves"):
        assert table[f"{between}_median"][K_TRUE] > 0.95
        assert table[f"{between}_mean"][K_TRUE] > table[f"{between}_mean"][12] + 0.1
    assert f"98% of its improvement at k = {K_TRUE} " in programs.rank_summary(table.reset_index())


def test_noise_supports_no_rank():
    table = programs.rank_table(simulated(1), [1, 3, 6, 12], starts=1)
    assert (table["error_genes"].iloc[1:] > table["error_genes"].iloc[0]).all()
    assert (table["error"].diff().iloc[1:] < 0).all()  # the error of the training cells would suggest the largest rank
    assert "so the data support no more than k = 1" in programs.rank_summary(table)


# ---- again
def test_interrupted_run_is_resumed_with_the_missing_ranks(cells, tmp_path, monkeypatch):
    expected = programs.rank_table(cells, [2, 3], starts=1)
    measure, cache = rank._measure, tmp_path / "rank_fits.csv"

    def interrupted(fitter, *rest):
        if fitter.k == 3:
            fitter.fit("train", *[part["train"] for part in rest[:1]], 42)
            raise KeyboardInterrupt
        return measure(fitter, *rest)

    monkeypatch.setattr(rank, "_measure", interrupted)
    monkeypatch.setattr("aenmf_lib.training.checkpoint.SECONDS", 0)  # write every state
    with pytest.raises(KeyboardInterrupt):
        programs.rank_table(cells, [2, 3], starts=1, cache=cache)
    assert [path.suffix for path in (tmp_path / "rank_fits").iterdir()] == [".npz"]
    fitted = []
    monkeypatch.setattr(rank, "_measure", lambda fitter, *rest: fitted.append(fitter.k) or measure(fitter, *rest))
    found = programs.rank_table(cells, [3, 2, 3], starts=1, cache=cache)
    assert fitted == [3]
    assert not (tmp_path / "rank_fits").exists()
    pd.testing.assert_frame_equal(found.drop(columns=TIMES), expected.drop(columns=TIMES), check_exact=True)
    programs.rank_table(cells, [2], starts=1, seed=1, cache=cache)  # another seed is another fit
    assert fitted == [3, 2]


def test_cached_rank_with_an_empty_error_is_computed_again(cells, tmp_path):
    cache = tmp_path / "rank_fits.csv"
    expected = programs.rank_table(cells, [2], starts=1, cache=cache)
    # as text: pandas crashes when it tries to read a hash such as 89e3803708888da7 as a number
    pd.read_csv(cache, dtype={"made_from": str}).assign(error_cells=np.nan).to_csv(cache, index=False)
    found = programs.rank_table(cells, [2], starts=1, cache=cache)
    pd.testing.assert_frame_equal(found.drop(columns=TIMES), expected.drop(columns=TIMES), check_exact=True)
    pd.testing.assert_frame_equal(programs.rank_table(cells, [2], starts=1, cache=cache), found)  # the new row is used


def test_stream_gives_the_table_of_the_cells_in_memory(cells, table, tmp_path):
    files.write_h5ad(cells, tmp_path / "cells.h5ad")
    found = programs.rank_table(data.CellStream(tmp_path / "cells.h5ad", block=256), [2, 6])
    expected = table[table["k"].isin([2, 6])].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.drop(columns=TIMES), expected.drop(columns=TIMES), rtol=1e-3)


# ---- few donors and bad input
@pytest.mark.parametrize("n_donors", [1, 2, 3])
def test_few_donors_give_empty_columns_with_a_reason(n_donors):
    cells = simulated(3, n_donors=n_donors, n_cells=300, n_genes=60)
    row = programs.rank_table(cells, [3], starts=1).iloc[0]
    assert np.isnan(row["starts_mean"])
    assert (row["donors"], row["donors_out"]) == ((1, 0) if n_donors == 1 else (n_donors - 1, 1))
    donor_columns = row[["error_donors", "halves_mean", "halves_median"]].astype(float)
    assert donor_columns.isna().all() if n_donors == 1 else donor_columns.notna().all()
    assert ("one donor: no held-out donors" in row["note"]) == (n_donors == 1)
    assert "one start: no comparison of starts" in row["note"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": []}, r"ranks=\[\] is not a list of at least one rank"),
        ({"ranks": 5}, "ranks=5 is not a list of at least one rank"),
        ({"ranks": None}, "ranks=None is not a list"),
        ({"ranks": [2, 0]}, "ranks contains 0"),
        ({"ranks": [2.5]}, "ranks contains 2.5"),
        ({"ranks": [2, 300]}, r"k=300 is too large for .* × 200 genes. Choose ranks between 1 and 200"),
        ({"ranks": [2], "starts": 0}, "starts contains 0"),
        ({"ranks": [2], "held_out": 1.0}, r"held_out=1.0 is not valid. Choose a share between 0 and 1"),
        ({"ranks": [2], "held_out": 1e-6}, "No cell of the training donors is held out with held_out=1e-06"),
        ({"ranks": [2], "seed": -1}, "seed=-1 is not valid. Choose a whole number from 0 to 4294967295"),
        ({"ranks": [2], "seed": "a"}, "seed='a' is not valid"),
        ({"ranks": [2], "seed": 2**64}, "seed=18446744073709551616 is not valid"),
        ({"ranks": [2], "seed": 2**32 - 1}, "seed=4294967295 is too large for 2 starts. Choose at most 4294967294"),
        ({"ranks": [2], "cache": "fits"}, "cache='fits' is not the path of a CSV file. Choose a name such as"),
        ({"ranks": [2], "cache": "folder.csv"}, "cache='folder.csv' is not the path of a CSV file"),
    ],
)
def test_invalid_settings_raise_before_the_first_fit(cells, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    Path("folder.csv").mkdir()
    monkeypatch.setattr(AENMF, "fit", lambda *args, **options: pytest.fail("fitted"))
    with pytest.raises(ValueError, match=message):
        programs.rank_table(cells, **settings)


@pytest.mark.parametrize(
    ("n_cells", "message"),
    [
        (0, r"k=2 is too large for 0 cells × 80 genes\. Pass at least one cell"),
        (80, r"held out with held_out=0.2, because the donors have too few cells \(80 cells of 40 donors\)"),
    ],
)
def test_too_few_cells_raise(n_cells, message):
    cells = simulated(3, n_cells=n_cells, n_genes=80)
    cells.obs["donor_id"] = [f"d{i // 2}" for i in range(n_cells)]
    with pytest.raises(ValueError, match=message):
        programs.rank_table(cells, [2])


def test_rank_above_the_cells_of_half_the_donors_raises():
    cells = simulated(3, n_donors=2, n_cells=60, n_genes=80)
    with pytest.raises(ValueError, match=r"k=40 is too large for \d+ cells .*Choose ranks between 1 and \d+"):
        programs.rank_table(cells, [2, 40])


def test_dead_programs_are_counted():
    """Programs without weights, or with negligible weights, are dead."""
    W = np.zeros((3, 40), np.float32)
    W[0], W[1, 3] = 0.15, 1e-6
    shares = rank._error(Moments.from_cells(simulated(2, n_cells=50, n_genes=40), donor=False, cell_type=False), W)[1]
    np.testing.assert_array_equal(shares < rank._DEAD, [False, True, True])


# ---- summary
def test_summary_names_ranks_with_improvement_stability_and_dead_programs(table):
    made = table.assign(error_genes=[0.9, 0.8, 0.7, 0.6, 0.5], dead=[0, 0, 0, 1, 3])
    made = made.assign(starts_median=[1, 0.95, 0.91, 0.7, 0.6], halves_median=0.5)
    text = programs.rank_summary(made)
    assert "still improves at the largest rank (error 0.900 at k = 2, 0.500 at k = 12)" in text
    assert "between starts is at least 0.9 at k = 2, 4, 6;" in text
    assert "between halves of the donors is at least 0.9 at no rank;" in text
    assert "1 of 8 programs are dead at k = 8" in text
    assert text.count(".") == text.replace("0.", "").count(".") + text.count("0.")
    assert "between starts" not in programs.rank_summary(made.assign(starts_median=np.nan))
    assert "supports no choice" in programs.rank_summary(made.iloc[:1])
    with pytest.raises(ValueError, match="has no column 'dead'"):
        programs.rank_summary(made.drop(columns="dead"))
    with pytest.raises(ValueError, match="has no rows"):
        programs.rank_summary(made.iloc[:0])
    with pytest.raises(ValueError, match=r"'error_genes' is empty in 5 of 5 rows \(first: k = 2\)"):
        programs.rank_summary(made.assign(error_genes=np.nan))
