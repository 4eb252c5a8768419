"""The consensus: planted programs, donor-specific programs, order of cells, interrupted runs, results files."""

import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib import AENMF, data, programs, results
from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.programs import consensus
from aenmf_lib.training.moments import Moments

N_DONORS, N_GENES, K = 6, 90, 5
OWN = 4  # program that only the first donor uses


def planted(seed: int = 0, n_cells: int = 600, n_donors: int = N_DONORS) -> tuple[AnnData, np.ndarray]:
    """Return cells of K programs over separate genes, of which only the first donor uses the last, and the programs."""
    rng = np.random.default_rng(seed)
    W = np.zeros((K, N_GENES))
    for j in range(K):
        W[j, 15 * j : 15 * (j + 1)] = rng.gamma(4, 1, 15)
    donor = np.arange(n_cells) % n_donors
    H = rng.gamma(0.5, 1, (n_cells, K))
    H[:, OWN] *= 4 * (donor == 0)
    X = csr_matrix(np.round(np.maximum(H @ W / 15 + rng.normal(0, 0.01, (n_cells, N_GENES)), 0), 3).astype(np.float32))
    X.eliminate_zeros()
    obs = pd.DataFrame(
        {"donor_id": [f"d{d}" for d in donor], "cell_type": "T"}, index=[f"cell{i}" for i in range(n_cells)]
    )
    return AnnData(X, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)])), W


@pytest.fixture(scope="module")
def truth():
    return planted()


@pytest.fixture(scope="module")
def fitted(truth):
    return programs.consensus_programs(truth[0], K, rounds=10)


def test_programs_of_all_donors_are_kept_and_recovered_and_that_of_one_donor_is_not(truth, fitted):
    model, table = fitted
    assert table["kept"].tolist() == [True] * 4 + [False]
    assert (table["recurrence"][:4] == 1).all()
    assert 0 < table["recurrence"][4] <= 0.5  # every donor is in half of the rounds
    assert model.k == len(model.W_) == 4
    pairs, cosine = programs.match_programs(truth[1][:OWN], model.W_)
    assert len(pairs) == 4
    assert cosine.min() > 0.999


def test_all_programs_are_kept_if_none_needs_to_recur(truth, fitted):
    model, table = programs.consensus_programs(truth[0], K, rounds=10, min_recurrence=0)
    assert table["kept"].all()
    assert model.k == K
    assert programs.match_programs(truth[1], model.W_)[1].min() > 0.9
    np.testing.assert_allclose(unit(model.W_[:4]), unit(fitted[0].W_), atol=1e-6)


def test_programs_of_all_rounds_are_kept_if_all_need_to_contain_them(truth, fitted):
    model, table = programs.consensus_programs(truth[0], K, rounds=10, min_recurrence=1)
    assert table["kept"].tolist() == (table["recurrence"] == 1).tolist() == [True] * 4 + [False]
    assert model.W_.tobytes() == fitted[0].W_.tobytes()


@pytest.mark.parametrize(("share", "text"), [(1, "in all 3 rounds"), (0.5, "in more than 50% of 3 rounds")])
def test_programs_that_do_not_recur_raise(share, text):
    rounds = [row[None] for row in np.eye(3, 5, dtype=np.float32)]  # one program each, with different genes
    with pytest.raises(ValueError, match=rf"No program recurs {text} \(at most 0%\)\. Choose a smaller k or"):
        consensus._combine(rounds, 1, 0, share)


def test_lengths_are_optimal_for_all_cells(truth):
    model, _ = programs.consensus_programs(truth[0], 9, rounds=4, min_recurrence=0)  # so many that they overlap
    objective = AENMFObjective(Moments.from_cells(truth[0], donor=False, cell_type=False), lambda_W=1e-2)
    W = torch.from_numpy(model.W_)
    best = objective.evaluate(W).loss
    assert model.loss_history_[-1] == pytest.approx(best, rel=1e-5)
    length = np.linalg.norm(W, axis=1)
    assert np.abs(length - 1).max() > 0.05
    assert (length > 0.1).sum() >= K
    for j in np.flatnonzero(length > 1e-6):  # a program that the others replace shrinks to 0
        for factor in (0.98, 1.02):
            changed = W.clone()
            changed[j] *= factor
            assert objective.evaluate(changed).loss > best


def test_consensus_differs_less_between_halves_of_the_donors_than_single_fits():
    cells, _ = data.simulate(n_cells=1200, n_genes=1300)
    donors = cells.obs["donor_id"].cat.categories
    halves = [cells[cells.obs["donor_id"].isin(donors[i::2])].copy() for i in (0, 1)]
    single = [AENMF(k=14, seed=i).fit(half).W_ for i, half in enumerate(halves)]
    both = [programs.consensus_programs(half, 14, rounds=8, seed=100 * i)[0].W_ for i, half in enumerate(halves)]
    assert np.median(programs.match_programs(*both)[1]) > np.median(programs.match_programs(*single)[1])


def test_same_seed_gives_the_same_bits_and_another_seed_other_rounds(truth, fitted):
    again, table = programs.consensus_programs(truth[0], K, rounds=10)
    assert again.W_.tobytes() == fitted[0].W_.tobytes()
    pd.testing.assert_frame_equal(table, fitted[1], check_exact=True)
    other = programs.consensus_programs(truth[0], K, rounds=10, seed=7)[0]
    assert other.starts_["objective"].tolist() != again.starts_["objective"].tolist()


def test_order_of_the_cells_and_moments_change_only_rounding(truth, fitted):
    cells = truth[0]
    shuffled = cells[np.random.default_rng(0).permutation(cells.n_obs)].copy()
    moments = Moments.from_cells(shuffled, cell_type=False, by_donor=True, mode="explicit")
    for given in (shuffled, moments):
        model, table = programs.consensus_programs(given, K, rounds=10)
        # rounding may change the order of programs that recur equally
        assert programs.match_programs(fitted[0].W_, model.W_)[1].min() > 0.99999
        np.testing.assert_allclose(table["recurrence"], fitted[1]["recurrence"], atol=0.1)


def test_interrupted_consensus_continues_with_the_same_bits(truth, fitted, tmp_path, monkeypatch):
    done, fit = [], AENMF.fit

    def interrupted(self, *args, **options):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(self.seed)
        return fit(self, *args, **options)

    path = tmp_path / "consensus.npz"
    monkeypatch.setattr(AENMF, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        programs.consensus_programs(truth[0], K, rounds=10, checkpoint=path)
    rounds = [int(file.suffixes[0].removeprefix(".round")) for file in tmp_path.iterdir()]
    assert sorted(rounds) == [0, 1, 2, 3]
    monkeypatch.setattr(AENMF, "fit", lambda self, *a, **o: (done.append(self.seed), fit(self, *a, **o))[1])
    model, table = programs.consensus_programs(truth[0], K, rounds=10, checkpoint=path)
    assert done == list(range(42, 52))  # no round twice
    assert model.W_.tobytes() == fitted[0].W_.tobytes()
    pd.testing.assert_frame_equal(table, fitted[1], check_exact=True)
    assert model.starts_.drop(columns="seconds").equals(fitted[0].starts_.drop(columns="seconds"))


def test_killed_process_leaves_only_whole_rounds(truth, fitted, tmp_path):
    cells, path = tmp_path / "cells.h5ad", tmp_path / "state" / "consensus.npz"
    results.write_h5ad(truth[0], cells)
    code = f"""
import logging, os, signal
from aenmf_lib import data, programs
class Kill(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith("round 3 of"):
            os.kill(os.getpid(), signal.SIGKILL)
logging.getLogger().addHandler(Kill())
logging.getLogger().setLevel(logging.INFO)
programs.consensus_programs(data.load({str(cells)!r}), {K}, rounds=10, checkpoint={str(path)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-500:]
    assert sorted(file.name for file in path.parent.iterdir()) == [f"consensus.round{i}.npz" for i in range(3)]
    model, _ = programs.consensus_programs(truth[0], K, rounds=10, checkpoint=path)
    assert model.W_.tobytes() == fitted[0].W_.tobytes()


def test_rounds_of_other_settings_or_cells_are_not_used(truth, tmp_path):
    cells, path = truth[0], tmp_path / "consensus.npz"
    programs.consensus_programs(cells, K, rounds=2, checkpoint=path, min_recurrence=0)
    for given, settings in ((cells, {"lambda_W": 0.5}), (cells[100:].copy(), {})):
        with_file = programs.consensus_programs(given, K, rounds=2, checkpoint=path, min_recurrence=0, **settings)[0]
        without = programs.consensus_programs(given, K, rounds=2, min_recurrence=0, **settings)[0]
        assert with_file.W_.tobytes() == without.W_.tobytes()


def test_each_donor_is_in_every_second_round(truth, monkeypatch):
    used, subset = [], Moments.subset
    monkeypatch.setattr(Moments, "subset", lambda self, donors: used.append(donors) or subset(self, donors))
    programs.consensus_programs(truth[0], K, rounds=6)
    for first, second in zip(used[::2], used[1::2], strict=True):
        assert sorted(first + second) == sorted(truth[0].obs["donor_id"].unique())
        assert len(first) == len(second) == N_DONORS // 2
    assert len({tuple(donors) for donors in used}) > 2


@pytest.mark.parametrize("case", ["one donor", "moments of all cells"])
def test_without_groups_of_donors_the_rounds_differ_in_the_start(case, caplog):
    cells, W = planted(n_donors=1)
    if case != "one donor":
        cells = Moments.from_cells(cells, donor=False, cell_type=False)
    with caplog.at_level(logging.INFO):
        model, _ = programs.consensus_programs(cells, K, rounds=4)
    assert "the rounds differ only in the random start" in caplog.text
    assert len(set(model.starts_["objective"])) > 1
    assert programs.match_programs(W, model.W_)[1].min() > 0.99


def test_results_file_is_valid_and_its_model_transforms_equally(truth, fitted, tmp_path):
    path = tmp_path / "ae_nmf_consensus_k5.h5ad"
    model, _ = programs.consensus_programs(truth[0], K, rounds=10, checkpoint=results.checkpoint_path(path))
    results.write(path, model, truth[0])
    assert results.check(path) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name]  # the files of the rounds are removed
    loaded = results.load_model(path)
    assert loaded.transform(truth[0]).tobytes() == fitted[0].transform(truth[0]).tobytes()
    assert loaded.stability_["cosine"].min() > 0.9
    assert len(loaded.starts_) == 10


def test_gene_weights_are_those_of_all_cells(truth):
    cells = truth[0]
    model, _ = programs.consensus_programs(cells, K, rounds=10, gene_weights="shared")
    expected = AENMF(k=4, gene_weights="shared").fit(cells).gene_weights_
    np.testing.assert_allclose(model.gene_weights_, expected, rtol=1e-5)  # the sums by donor round differently
    assert programs.match_programs(truth[1][:OWN], model.W_)[1].min() > 0.98
    assert model.objective(cells) == pytest.approx(model.loss_history_[0], rel=1e-4)


def test_rows_of_length_one_stay_so(truth):
    model, _ = programs.consensus_programs(truth[0], 4, rounds=2, row_norm=True, max_iter=30)
    np.testing.assert_allclose(np.linalg.norm(model.W_, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 1}, "rounds=1 is not valid"),
        ({"rounds": 2.5}, "rounds=2.5 is not valid"),
        ({"min_recurrence": 2}, "min_recurrence=2 is not valid"),
        ({"min_recurrence": "all"}, "min_recurrence='all' is not valid"),
        ({"seed": 2**32 - 1, "rounds": 3}, "seed=4294967295 is too large for 3 rounds. Choose at most 4294967293"),
        ({"donor_key": "patient"}, "patient"),
        ({"tol": -1}, "tol=-1 is not valid"),
    ],
)
def test_invalid_settings_raise_value_errors(truth, settings, message):
    with pytest.raises(ValueError, match=message):
        programs.consensus_programs(truth[0], K, **settings)


def unit(W: np.ndarray) -> np.ndarray:
    return W / np.linalg.norm(W, axis=1, keepdims=True)
