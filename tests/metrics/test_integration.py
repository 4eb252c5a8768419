"""Measures of mixing against their definitions and in extreme cases."""

import importlib.util
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.spatial.distance import cdist
from scipy.stats import chisquare, entropy
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import StandardScaler

from aenmf_lib.metrics import integration, neighbors


def simulate(distance: float, n_cells: int = 200) -> tuple[np.ndarray, pd.DataFrame]:
    """Return usages and labels of two types `distance` noise deviations apart, and two donors that do not differ."""
    rng = np.random.default_rng(0)
    cell_type, donor = rng.integers(2, size=n_cells), rng.integers(2, size=n_cells)
    H = rng.normal(distance * cell_type[:, None], 1, size=(n_cells, 6)).astype(np.float32)
    obs = {"cell_type": np.array(["a", "b"])[cell_type], "donor_id": np.array(["d", "e"])[donor]}
    return H, pd.DataFrame(obs, index=[f"cell{i}" for i in range(n_cells)])


def run(H: np.ndarray, obs: pd.DataFrame, **options) -> pd.DataFrame:
    graphs = neighbors.neighbor_graphs({"AE_NMF": H}, obs)
    return integration.evaluate(graphs, obs, **options).set_index("label")


def test_purity_and_silhouette_equal_their_definitions():
    H, obs = simulate(1.0)
    z = StandardScaler().fit_transform(H.astype(float))
    distance = np.sqrt(((z[:, None] - z) ** 2).sum(-1))
    nearest = np.argsort(distance, axis=1)[:, 1:25]
    found = run(H, obs)
    for label in ("cell_type", "donor_id"):
        y = obs[label].to_numpy()
        same = y[:, None] == y
        assert found.loc[label, "purity"] == pytest.approx((y[nearest] == y[:, None]).mean(), abs=1e-12)
        a = (distance * same).sum(1) / (same.sum(1) - 1)
        b = (distance * ~same).sum(1) / (~same).sum(1)
        assert found.loc[label, "silhouette"] == pytest.approx(((b - a) / np.maximum(a, b)).mean(), abs=1e-5)
    assert not {"LISI", *integration.WITHIN_TYPES} & {*found}


def test_separate_types_are_pure_and_mixed_donors_are_not():
    found = run(*simulate(8.0))
    assert found.loc["cell_type", "purity"] > 0.99
    assert found.loc["cell_type", "silhouette"] > 0.5
    assert found.loc["donor_id", "purity"] == pytest.approx(0.5, abs=0.05)
    assert found.loc["donor_id", "silhouette"] == pytest.approx(0, abs=0.05)


def test_silhouette_of_many_cells_uses_a_sample_and_reports_its_size(monkeypatch):
    monkeypatch.setattr(integration, "SILHOUETTE_CELLS", 150)
    H, obs = simulate(2.0)
    found, again, other = run(H, obs), run(H, obs), run(H, obs, seed=1)
    assert set(found["silhouette_cells"]) == {150}
    pd.testing.assert_frame_equal(found, again, check_exact=True)
    assert found.loc["cell_type", "silhouette"] != other.loc["cell_type", "silhouette"]


# ------------------------------------------------------------------------------- LISI, BRAS, CiLISI and kBET
def simulate_types(shift: float = 0.0, n_cells: int = 400) -> tuple[np.ndarray, pd.DataFrame]:
    """Return usages and labels: five types, and one of a single donor; `shift` is the difference between donors."""
    rng = np.random.default_rng(1)
    sizes = {"large": n_cells, "middle": 150, "small": 60, "few": 25, "rare": 6, "of_one_donor": 40}
    types = np.repeat(list(sizes), list(sizes.values()))
    donor = rng.choice(["d", "e", "f"], len(types), p=[0.5, 0.3, 0.2])
    donor[types == "of_one_donor"] = "d"
    center = dict(zip(sizes, 4 * rng.normal(size=(len(sizes), 5)), strict=True))
    move = dict(zip("def", shift * rng.normal(size=(3, 5)), strict=True))
    H = np.array([center[kind] + move[name] for kind, name in zip(types, donor, strict=True)])
    obs = pd.DataFrame({"cell_type": types, "donor_id": donor}, index=[f"cell{i}" for i in range(len(types))])
    return (H + rng.normal(size=H.shape)).astype(np.float32), obs


def nearest(Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all cells by their distance from each cell, first itself, and the distances."""
    distance = cdist(Z, Z)
    order = np.argsort(distance, axis=1, kind="stable")
    return order, np.take_along_axis(distance, order, axis=1)


def lisi(Z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return LISI by its definition: Gaussian-like weights of the 89 nearest other cells with a perplexity of 30."""
    found = []
    for near, distance in zip(*nearest(Z), strict=True):
        d, labels = distance[1:90], y[near[1:90]]

        def weights(beta, d=d):
            p = np.exp(-beta * (d - d[0]))
            return p / p.sum()

        def excess(beta, weights=weights):
            return entropy(weights(beta)) - np.log(30)

        p = weights(brentq(excess, 0, 1e3, xtol=1e-12)) if len(d) > 30 else np.full(len(d), 1 / len(d))
        found.append(1 / sum(p[labels == label].sum() ** 2 for label in np.unique(labels)))
    return np.array(found)


def within_types(Z: np.ndarray, obs: pd.DataFrame) -> dict[str, float]:
    """Return BRAS, CiLISI and kBET by their definitions."""
    scaled, accepted, mixed = [], [], []
    for _, own in obs.reset_index(drop=True).groupby("cell_type"):
        z, y = Z[own.index], own["donor_id"].to_numpy()
        if len(y) < 10 or len(set(y)) < 2:
            continue
        scaled.append((lisi(z, y) - 1) / (len(set(y)) - 1))
        size = int(np.clip(len(y) // (4 * len(set(y))), 10, 70))
        expected = size * pd.Series(y).value_counts(normalize=True).sort_index()
        counts = [
            pd.Series(y[near[:size]]).value_counts().reindex(expected.index, fill_value=0) for near in nearest(z)[0]
        ]
        accepted.append(np.mean([chisquare(count, expected).pvalue >= 0.05 for count in counts]))
        distance, same = cdist(z, z, "cosine"), y[:, None] == y
        a, b = (distance * same).sum(1) / (same.sum(1) - 1), (distance * ~same).sum(1) / (~same).sum(1)
        mixed.append(1 - np.abs((b - a) / np.maximum(a, b)).mean())
    return {"BRAS": np.mean(mixed), "CiLISI": np.concatenate(scaled).mean(), "kBET": np.mean(accepted)}


needs_scib = pytest.mark.skipif(not importlib.util.find_spec("scib_metrics"), reason="needs scib-metrics")


def test_scores_of_scib_metrics_without_the_package_are_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(
        ValueError, match=r"not installed \(scib_metrics\)\. Run `pip install scib-metrics`, or leave out"
    ):
        run(*simulate(1.0), scib=True)


@needs_scib
def test_lisi_is_one_for_separate_types_and_higher_for_mixed_donors():
    found = run(*simulate(8.0), scib=True)
    assert found.loc["cell_type", "LISI"] == pytest.approx(1, abs=0.01)
    assert 1.8 < found.loc["donor_id", "LISI"] <= 2


@needs_scib
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_scores_of_scib_metrics_equal_their_definitions(shift):
    H, obs = simulate_types(shift)
    found, Z = run(H, obs, scib=True), StandardScaler().fit_transform(H)
    for label in ("cell_type", "donor_id"):
        assert found.loc[label, "LISI"] == pytest.approx(lisi(Z, obs[label].to_numpy()).mean(), abs=1e-3)
    for score, expected in within_types(Z, obs).items():
        assert found.loc["donor_id", score] == pytest.approx(expected, abs=2e-3), score
        assert np.isnan(found.loc["cell_type", score])


@needs_scib
def test_mixed_donors_score_near_one_and_separate_donors_near_zero():
    mixed, separate = (
        run(*simulate_types(shift), scib=True).loc["donor_id", ["BRAS", "CiLISI", "kBET"]] for shift in (0, 9)
    )
    assert (mixed > [0.88, 0.65, 0.95]).all()  # CiLISI: (1 / (0.5² + 0.3² + 0.2²) - 1) / 2 = 0.82 in many cells
    assert (separate < [0.05, 0.1, 0.01]).all()  # CiLISI: the 89 neighbors of the small types are of all donors


@needs_scib
def test_scores_within_types_use_only_cells_with_a_type_and_a_sample_of_many(monkeypatch):
    H, obs = simulate_types(0.5)
    without = np.random.default_rng(2).random(len(obs)) < 0.2
    found = run(H, obs.assign(cell_type=obs["cell_type"].mask(without)), scib=True)
    expected = within_types(StandardScaler().fit_transform(H)[~without], obs[~without])
    assert found.loc["donor_id", list(expected)].to_dict() == pytest.approx(expected, abs=2e-3)
    monkeypatch.setattr(integration, "SILHOUETTE_CELLS", 300)
    sampled = run(H, obs, scib=True)
    assert sampled.loc["donor_id", "CiLISI"] != run(H, obs, scib=True, seed=1).loc["donor_id", "CiLISI"]


@needs_scib
def test_scores_within_types_are_empty_if_no_type_has_two_donors():
    H, obs = simulate(1.0)
    found = run(H, obs.assign(donor_id=obs["cell_type"]), scib=True).loc["donor_id"]
    assert found[["BRAS", "CiLISI", "kBET"]].isna().all() and found["LISI"] >= 1


def test_purity_and_silhouette_use_only_cells_with_a_type():
    H, obs = simulate(1.0)
    without = np.random.default_rng(1).random(200) < 0.2
    found = run(H, obs.assign(cell_type=obs["cell_type"].mask(without))).loc["cell_type"]
    z = StandardScaler().fit_transform(H.astype(float))
    distance = np.sqrt(((z[:, None] - z) ** 2).sum(-1))
    y, same = obs["cell_type"].to_numpy(), []
    for cell in np.flatnonzero(~without):
        near = [other for other in np.argsort(distance[cell])[1:25] if not without[other]]
        same += [y[cell] == y[other] for other in near]
    assert found["purity"] == pytest.approx(np.mean(same), abs=1e-12)
    with_all = run(H, obs)["silhouette"]["cell_type"]
    assert found["silhouette"] == pytest.approx(silhouette_score(z[~without], y[~without]), abs=1e-5) != with_all
    assert found["n_cells"] == (~without).sum()


@pytest.mark.parametrize("scib", [False, pytest.param(True, marks=needs_scib)])
def test_a_label_with_one_class_has_empty_scores(scib, caplog):
    H, obs = simulate(1.0)
    found = run(H, obs.assign(donor_id="d"), scib=scib)
    assert found.loc["donor_id", ["purity", "silhouette", *["LISI", *integration.WITHIN_TYPES] * scib]].isna().all()
    assert found.loc["donor_id", ["n_cells", "n_classes"]].tolist() == [200, 1]
    pd.testing.assert_series_equal(found.loc["cell_type"], run(H, obs, scib=scib).loc["cell_type"])
    assert "obs['donor_id'] is 'd' for all 200 cells" in caplog.text


def test_silhouette_is_empty_if_the_sample_has_one_class(monkeypatch):
    monkeypatch.setattr(integration, "SILHOUETTE_CELLS", 20)
    H, obs = simulate(1.0)
    found = run(H, obs.assign(donor_id=np.where(np.arange(200) == 7, "rare", "common")))
    assert np.isnan(found.loc["donor_id", "silhouette"]) and found.loc["donor_id", "purity"] > 0.9
