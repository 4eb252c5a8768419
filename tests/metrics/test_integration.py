"""Measures of mixing against their definitions and in extreme cases."""

import importlib.util
import sys

import numpy as np
import pandas as pd
import pytest
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
    assert "LISI" not in found


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


def test_lisi_without_its_package_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(ValueError, match=r"not installed \(scib_metrics\). Run `pip install scib-metrics`"):
        run(*simulate(1.0), lisi=True)


@pytest.mark.skipif(not importlib.util.find_spec("scib_metrics"), reason="needs scib-metrics")
def test_lisi_is_one_for_separate_types_and_higher_for_mixed_donors():
    found = run(*simulate(8.0), lisi=True)
    assert found.loc["cell_type", "LISI"] == pytest.approx(1, abs=0.01)
    assert 1.5 < found.loc["donor_id", "LISI"] <= 2


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


def test_lisi_of_cells_without_a_label_is_an_error(monkeypatch):
    H, obs = simulate(1.0)
    monkeypatch.setattr(integration, "_mean_lisi", lambda: lambda near, distance, y: 1.0)
    with pytest.raises(ValueError, match=r"is empty for 1 of 200 cells. LISI needs a label for every cell"):
        run(H, obs.assign(cell_type=obs["cell_type"].mask(np.arange(200) == 3)), lisi=True)


@pytest.mark.parametrize("lisi", [False, True])
def test_a_label_with_one_class_has_empty_scores(lisi, monkeypatch, caplog):
    H, obs = simulate(1.0)
    monkeypatch.setattr(integration, "_mean_lisi", lambda: lambda near, distance, y: 1.0)
    found = run(H, obs.assign(donor_id="d"), lisi=lisi)
    assert found.loc["donor_id", ["purity", "silhouette", *["LISI"] * lisi]].isna().all()
    assert found.loc["donor_id", ["n_cells", "n_classes"]].tolist() == [200, 1]
    pd.testing.assert_series_equal(found.loc["cell_type"], run(H, obs, lisi=lisi).loc["cell_type"])
    assert "obs['donor_id'] is 'd' for all 200 cells" in caplog.text


def test_silhouette_is_empty_if_the_sample_has_one_class(monkeypatch):
    monkeypatch.setattr(integration, "SILHOUETTE_CELLS", 20)
    H, obs = simulate(1.0)
    found = run(H, obs.assign(donor_id=np.where(np.arange(200) == 7, "rare", "common")))
    assert np.isnan(found.loc["donor_id", "silhouette"]) and found.loc["donor_id", "purity"] > 0.9
