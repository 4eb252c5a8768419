"""The penalties: their definitions, the weights that a strength gives, and their effect on donors and cell types."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib import AENMF, CAENMF1, CAENMF2
from aenmf_lib.models import penalties
from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.training.moments import Moments

BOTH = (CAENMF1, CAENMF2)


def scatter(H: np.ndarray, obs: pd.DataFrame) -> float:
    """Return I_c(H) by its definition, divided by the total variance of H."""
    found = 0.0
    for _, of_type in obs.groupby("cell_type", observed=True):
        mean = H[of_type["row"]].mean(0)
        for _, group in of_type.groupby("donor_id", observed=True):
            found += len(group) * np.square(H[group["row"]].mean(0) - mean).sum()
    return found / len(H) / H.var(0).sum()


def by_chance(H: np.ndarray, obs: pd.DataFrame) -> float:
    """Return I_c of donors that do not differ, two standard deviations above its mean, from within-group covariance."""
    columns = [obs["cell_type"].astype(object).fillna(""), obs["donor_id"]]
    within, groups = np.zeros((H.shape[1],) * 2), pd.DataFrame(H).groupby([c.to_numpy() for c in columns])
    for _, group in groups:
        within += (len(group) - 1) * np.cov(group.to_numpy().T, ddof=1) if len(group) > 1 else 0
    within /= len(H) - groups.ngroups
    typed = obs.dropna()[["cell_type", "donor_id"]].drop_duplicates()
    free = len(typed) - typed["cell_type"].nunique()
    deviation = np.sqrt(2 * free * np.trace(within @ within))
    return (free * np.trace(within) + 2 * deviation) / obs["cell_type"].notna().sum()


def made(effect: float, *, shares=(0.5, 0.5), single_donor_type: bool = False, seed: int = 0, n: int = 1200) -> AnnData:
    """Return cells of three types and two donors, of which the second has more of 20 genes."""
    rng = np.random.default_rng(seed)
    programs = rng.gamma(0.3, size=(5, 120))
    donor = rng.choice(2, n)
    kind = np.where(rng.random(n) < np.array(shares)[donor], 0, 1 + rng.choice(2, n))
    if single_donor_type:
        donor[kind == 2] = 0
    usages = rng.gamma(1, 0.2, size=(n, 5))
    usages[np.arange(n), kind] += 1.5
    mean = usages @ programs
    mean[:, :20] += effect * donor[:, None]
    X = csr_matrix(np.log1p(rng.poisson(2 * mean)).astype(np.float32))
    obs = pd.DataFrame(
        {"donor_id": pd.Categorical([f"d{i}" for i in donor]), "cell_type": pd.Categorical([f"t{i}" for i in kind])},
        index=[f"c{i}" for i in range(n)],
    )
    obs["row"] = np.arange(n)
    return AnnData(X, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(120)]))


_FITS = {}


def fitted_aenmf(cells: AnnData) -> AENMF:
    """Return AE-NMF of these cells, fitted once for all tests that use equal cells."""
    key = hashlib.sha256(cells.X.data.tobytes() + cells.X.indices.tobytes()).hexdigest()
    if key not in _FITS:
        _FITS[key] = AENMF(k=6).fit(cells)
    return _FITS[key]


def test_between_donor_variance_equals_its_definition():
    cells = made(effect=1.0, n=300)
    H, obs = np.random.default_rng(0).random((300, 4)), cells.obs.copy()
    assert penalties.between_donor_variance(H, obs) == pytest.approx(scatter(H, obs), rel=1e-12)
    obs["cell_type"] = obs["cell_type"].astype(object).mask(np.arange(300) % 5 == 0)
    typed = obs["cell_type"].notna().to_numpy()
    expected = scatter(H[typed], obs[typed].assign(row=np.arange(typed.sum())))
    assert penalties.between_donor_variance(H, obs) == pytest.approx(expected, rel=1e-12)


def test_share_of_chance_and_effective_strength_are_logged(caplog):
    caplog.set_level("INFO")
    cells = made(effect=1.0, n=300)
    W = torch.from_numpy(np.random.default_rng(0).random((4, 120))).float()
    effective = penalties.weights_from_strength(0.2, Moments.from_cells(cells), W)[1]
    assert "strength 0.2: chance accounts for up to " in caplog.text
    assert f"so the effective strength is {effective:.3g}" in caplog.text


def test_strength_sets_penalty_relative_to_the_error_of_ae_nmf(tiny):
    """Dense definitions; the share that chance explains is subtracted."""
    tiny.X = csr_matrix(tiny.X.toarray() * np.where((tiny.obs["donor_id"] == "d1").to_numpy()[:, None], 3, 1))
    moments, W = Moments.from_cells(tiny), torch.from_numpy(np.random.default_rng(1).random((4, tiny.n_vars)) * 0.3)
    X, n = tiny.X.toarray(), tiny.n_obs
    H = X @ W.numpy().T
    sse = np.square(X - H @ W.numpy()).sum()
    weights, left = penalties.weights_from_strength(0.3, moments, W)
    assert 0 < left < 0.3
    between = scatter(H, tiny.obs.assign(row=np.arange(n))) * H.var(0).sum()
    assert left == pytest.approx(0.3 * (1 - by_chance(H, tiny.obs) / between), rel=1e-9)
    assert weights.eta == 0
    assert weights.gamma * between == pytest.approx(left * sse / n, rel=1e-9)


def test_chance_bounds_donors_shuffled_within_types():
    """The types are far apart, and the donor effect within them is weak."""
    cells, rng = made(effect=0.3, shares=(0.8, 0.3)), np.random.default_rng(0)
    model = AENMF(k=6).fit(cells)
    H, of_type = model.transform(cells), cells.obs.groupby("cell_type", observed=True)["donor_id"]
    left = penalties.weights_from_strength(1.0, Moments.from_cells(cells), torch.from_numpy(model.W_))[1]
    chance = (1 - left) * scatter(H, cells.obs)
    shuffled = [scatter(H, cells.obs.assign(donor_id=of_type.transform(rng.permutation))) for _ in range(300)]
    assert left > 0.3
    assert np.mean(shuffled) < chance < 2.5 * np.mean(shuffled)
    assert np.mean(np.array(shuffled) > chance) < 0.1


@pytest.mark.parametrize("each", ["one donor per type", "one cell per group"])
def test_penalty_is_zero_if_donors_cannot_be_compared(tiny, each, caplog):
    if each == "one cell per group":
        tiny = tiny[:30].copy()
        tiny.obs["donor_id"] = [f"d{i}" for i in range(30)]
    else:
        tiny.obs["cell_type"] = "of " + tiny.obs["donor_id"].astype(str)
    W = torch.from_numpy(np.random.default_rng(1).random((4, tiny.n_vars)))
    weights, left = penalties.weights_from_strength(0.2, Moments.from_cells(tiny), W)
    assert (weights.gamma, left) == (0, 0)
    assert weights.note in caplog.text
    assert "100" not in caplog.text
    if each == "one donor per type":
        expected = "no type has cells of two donors, so donors cannot be compared within types; there is no penalty"
        assert weights.note == expected
        assert "Choose other columns of donors and cell types" in caplog.text
    else:
        assert weights.note.endswith("cannot be compared with differences between cells; there is no penalty")


def test_types_and_cells_that_determine_the_penalty_are_reported_if_they_are_few(tiny, caplog):
    """Of three types, one has cells of two donors."""
    caplog.set_level("INFO")
    types = np.where(tiny.obs["donor_id"] == "d3", "of d3", np.where(tiny.obs["donor_id"] == "d2", "of d2", "shared"))
    tiny.obs["cell_type"] = np.where(np.arange(60) % 2 & (tiny.obs["donor_id"] == "d2"), "shared", types)
    n = (tiny.obs["cell_type"] == "shared").sum()
    tiny.X = csr_matrix(tiny.X.toarray() * np.where((tiny.obs["donor_id"] == "d1").to_numpy()[:, None], 5, 1))
    W = torch.from_numpy(np.random.default_rng(1).random((4, tiny.n_vars)))
    weights, left = penalties.weights_from_strength(0.2, Moments.from_cells(tiny), W)
    assert left > 0
    assert weights.note == f"donors can be compared only within 1 of 3 types, with {n} of 60 cells"
    assert weights.note in caplog.text


def test_missing_penalty_is_explained_in_summary(tiny):
    tiny.obs["cell_type"] = "of " + tiny.obs["donor_id"].astype(str)
    expected = "no type has cells of two donors, so donors cannot be compared within types; there is no penalty"
    assert CAENMF2(k=3, max_iter=3).fit(tiny).summary().endswith(f"effective strength 0 of 0.2; {expected}")


@pytest.mark.parametrize("model", BOTH)
def test_strong_donor_effect_is_removed_and_types_are_kept(model):
    cells = made(effect=2.0)
    aenmf = fitted_aenmf(cells)
    H, H_aenmf = model(k=6, strength=0.5).fit(cells, aenmf=aenmf).transform(cells), aenmf.transform(cells)
    assert scatter(H, cells.obs) < 0.15 * scatter(H_aenmf, cells.obs)

    def between_types(H):
        means = pd.DataFrame(H - H.mean(0), cells.obs_names).groupby(cells.obs["cell_type"], observed=True).mean()
        counts = cells.obs["cell_type"].value_counts().loc[means.index].to_numpy()
        return (counts[:, None] * means.to_numpy() ** 2).sum() / len(H) / H.var(0).sum()

    assert between_types(H) > 0.9 * between_types(H_aenmf)


@pytest.mark.parametrize("model", BOTH)
def test_penalty_is_zero_without_donor_effect(model):
    cells = made(effect=0.0)
    fitted = model(k=6, strength=0.2).fit(cells)
    assert fitted.strength_ < 0.02
    assert f"effective strength {fitted.strength_:.2g} of 0.2" in fitted.summary()
    free = (model(k=6, strength=0) if model is CAENMF2 else model(k=6, strength=0, gamma=0.0, eta=0.0)).fit(cells)
    assert fitted.loss_history_[-1] < 1.01 * free.loss_history_[-1]


def test_strength_keeps_composition_and_hsic_removes_it():
    cells = made(effect=0.0, shares=(0.9, 0.1))
    aenmf = fitted_aenmf(cells)
    centered = CAENMF1(k=6, strength=1.0).fit(cells, aenmf=aenmf)
    hsic = CAENMF1(k=6, strength=0, gamma=0.0, eta=100.0).fit(cells, start=aenmf.W_)

    def apart(model):
        """Return the squared distance of the most common type to the others, relative to the variance."""
        H, first = model.transform(cells), (cells.obs["cell_type"] == "t0").to_numpy()
        return np.square(H[first].mean(0) - H[~first].mean(0)).sum() / H.var(0).sum()

    assert apart(centered) > 0.8 * apart(aenmf)
    assert apart(hsic) < 0.6 * apart(aenmf)


def test_type_of_a_single_donor_is_kept():
    cells = made(effect=2.0, single_donor_type=True)
    aenmf = fitted_aenmf(cells)
    model = CAENMF1(k=6, strength=0.5).fit(cells, aenmf=aenmf)

    def apart(model):
        H, single = model.transform(cells), (cells.obs["cell_type"] == "t2").to_numpy()
        return np.square(H[single].mean(0) - H[~single].mean(0)).sum() / H.var(0).sum()

    assert scatter(model.transform(cells), cells.obs) < 0.2 * scatter(aenmf.transform(cells), cells.obs)
    assert apart(model) > 0.5 * apart(aenmf)


def test_weight_of_hsic_only_needs_no_cell_type():
    cells = made(effect=2.0, n=300)
    del cells.obs["cell_type"]
    fitted = CAENMF1(k=4, strength=0, gamma=0.0, eta=1.0).fit(cells)
    assert not fitted.uses_cell_type
    assert (fitted.penalty_.gamma, fitted.penalty_.eta) == (0, 1)


def test_ae_nmf_is_fitted_first_if_not_given():
    cells = made(effect=2.0, n=300)
    given = CAENMF1(k=4, strength=0.2).fit(cells, aenmf=AENMF(k=4).fit(cells))
    found = CAENMF1(k=4, strength=0.2).fit(cells)
    np.testing.assert_array_equal(found.W_, given.W_)
    assert found.penalty_ == given.penalty_
    for other in (AENMF(k=3), AENMF(k=4, gene_weights="shared")):
        with pytest.raises(ValueError, match=r"aenmf has W of shape .* Expected \(4, 120\) and 'none'"):
            CAENMF1(k=4, strength=0.2).fit(cells, aenmf=other.fit(cells))
    with pytest.raises(ValueError, match="aenmf was fitted to other genes, or in another order"):
        CAENMF1(k=4, strength=0.2).fit(cells, aenmf=AENMF(k=4).fit(cells[:, ::-1].copy()))


def test_start_is_used_and_an_invalid_start_raises():
    cells = made(effect=1.0, n=300)
    W = AENMF(k=4).fit(cells).W_
    again = AENMF(k=4, max_iter=1).fit(cells, start=W)
    assert again.loss_history_[0] == pytest.approx(AENMF(k=4).fit(cells).loss_history_[-1], rel=1e-5)
    for wrong in (W[:3], -W):
        with pytest.raises(ValueError, match=r"start has shape .* Expected \(4, 120\), all ≥ 0"):
            AENMF(k=4).fit(cells, start=wrong)


def test_negative_strength_raises():
    with pytest.raises(ValueError, match="strength=-1"):
        CAENMF2(strength=-1)


# ---- labels that are partly missing
def unlabel(cells: AnnData, which: np.ndarray) -> AnnData:
    other = cells.copy()
    other.obs["cell_type"] = other.obs["cell_type"].mask(which)
    return other


def dense_rows(X: np.ndarray, obs: pd.DataFrame) -> np.ndarray:
    """sqrt(n_td / n_l) (x̄_td − x̄_t) of the cells that have a type."""
    X, obs, rows = X[obs["cell_type"].notna()], obs[obs["cell_type"].notna()], []
    for (kind, _), of in obs.groupby(["cell_type", "donor_id"], observed=True).indices.items():
        rows.append((len(of) / len(X)) ** 0.5 * (X[of].mean(0) - X[obs["cell_type"] == kind].mean(0)))
    return np.array(rows)


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
def test_cells_without_a_type_are_only_in_the_data_term(tiny, mode):
    rng = np.random.default_rng(2)
    some, W = unlabel(tiny, rng.random(60) < 0.3), rng.random((4, tiny.n_vars)) * 0.3
    X, donor = tiny.X.toarray(), pd.get_dummies(tiny.obs["donor_id"]).to_numpy(float)
    moments = Moments.from_cells(some, by_donor=True, mode=mode)
    assert (moments.n_cells, moments.n_labeled) == (60, int(some.obs["cell_type"].notna().sum()))
    assert moments.n_labeled < 50

    def penalty(gamma: float, eta: float) -> float:
        rows = penalties.PenaltyWeights(gamma, eta, centered=True).rows(moments)
        return float((rows @ torch.from_numpy(W).T).square().sum())

    hsic = np.square((X @ W.T).T @ (donor - donor.mean(0))).sum() / 59**2
    assert penalty(0.7, 0.0) == pytest.approx(0.7 * np.square(dense_rows(X, some.obs) @ W.T).sum(), rel=1e-12)
    assert penalty(0.0, 0.4) == pytest.approx(0.4 * hsic, rel=1e-12)
    tied = AENMFObjective(moments, lambda_W=0.0)
    error = np.square(X - X @ W.T @ W).sum() / 60
    assert tied.value(tied.point(torch.from_numpy(W))) == pytest.approx(error, rel=1e-12)
    np.testing.assert_allclose(moments.donor_sums, donor.T @ X, rtol=1e-12)


def test_strength_uses_only_cells_with_a_type(tiny):
    rng = np.random.default_rng(3)
    tiny.X = csr_matrix(tiny.X.toarray() * np.where((tiny.obs["donor_id"] == "d1").to_numpy()[:, None], 4, 1))
    some, W = unlabel(tiny, rng.random(60) < 0.3), rng.random((4, tiny.n_vars)) * 0.3
    X = some.X.toarray()
    H = X @ W.T
    between = np.square(dense_rows(X, some.obs) @ W.T).sum()
    chance = by_chance(H, some.obs)
    weights, left = penalties.weights_from_strength(0.3, Moments.from_cells(some), torch.from_numpy(W))
    assert 0 < left < 0.3
    assert left == pytest.approx(0.3 * (1 - chance / between), rel=1e-9)
    assert weights.gamma * between == pytest.approx(left * np.square(X - H @ W).sum() / 60, rel=1e-9)


@pytest.mark.parametrize("model", BOTH)
def test_donor_effect_is_removed_if_one_type_is_unlabeled(model):
    cells = made(effect=2.0)
    some = unlabel(cells, (cells.obs["cell_type"] == "t1").to_numpy())
    aenmf = AENMF(k=6).fit(some)
    H, H_aenmf = model(k=6, strength=0.5).fit(some, aenmf=aenmf).transform(some), aenmf.transform(some)
    typed = some.obs.dropna()
    assert set(typed["cell_type"]) == {"t0", "t2"}
    assert scatter(H, typed) < 0.15 * scatter(H_aenmf, typed)


@pytest.mark.parametrize("model", BOTH)
def test_programs_of_cells_without_a_type_are_learned(model):
    cells = made(effect=1.0, n=600)
    without = (cells.obs["cell_type"] == "t1").to_numpy()
    some = unlabel(cells, without)
    other = some.copy()
    other.X = csr_matrix(some.X.toarray()[:, ::-1] * without[:, None] + some.X.toarray() * ~without[:, None])
    W, W_other, W_dropped = (model(k=6, strength=0.3).fit(c).W_ for c in (some, other, some[~without].copy()))
    assert np.abs(W - W_other).max() > 0.1 * W.max()
    assert np.abs(W - W_dropped).max() > 0.1 * W.max()


def test_moments_with_unlabeled_cells_add_up_and_are_saved(tiny, tmp_path):
    some = unlabel(tiny, (tiny.obs["cell_type"] == "T").to_numpy() & (np.arange(60) % 2 == 0))
    some.obs["cell_type"] = some.obs["cell_type"].astype(object).mask(np.arange(60) % 7 == 0, " ")  # blank is missing
    whole = Moments.from_cells(some)
    added = Moments.from_cells(some[:20].copy()) + Moments.from_cells(some[20:].copy())
    added.save(tmp_path / "moments.npz")
    for other in (added, Moments.load(tmp_path / "moments.npz")):
        assert (other.n_labeled, other.sums.labels) == (whole.n_labeled, ["cell_type", "donor_id"])
        rows = [penalties.invariance_rows(moments, centered=True) for moments in (other, whole)]
        torch.testing.assert_close(*rows, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("model", BOTH)
def test_cells_without_any_type_raise_with_advice(tiny, model):
    none = unlabel(tiny, np.ones(60, bool))
    advice = "cell_type_key.*cluster the usages of AE-NMF.*strength=0"
    with pytest.raises(ValueError, match=rf"obs\['cell_type'\] is empty for all 60 cells\..*{advice}"):
        model(k=3, strength=0.2).fit(none)
    with pytest.raises(ValueError, match=rf"obs\['annotation'\] is needed.*{advice}"):
        model(k=3, strength=0.2).fit(none, cell_type_key="annotation")
    free = {"gamma": 0.0} if model is CAENMF1 else {}
    model(k=3, strength=0, max_iter=3, **free).fit(none)  # as the advice says
    with pytest.raises(ValueError, match="is empty for all 60 cells"):
        CAENMF1(k=3, strength=0, max_iter=3).fit(tiny).objective(none)  # γ > 0


def test_clusters_of_the_usages_can_replace_the_types():
    """The recipe of notebooks/README.md, on cells whose clusters are not the donors."""
    cells = made(effect=0.6)
    aenmf, types = fitted_aenmf(cells), cells.obs.pop("cell_type")
    cells.obsm["H"] = aenmf.transform(cells)
    sc.pp.neighbors(cells, use_rep="H")
    sc.tl.leiden(cells, key_added="cluster", flavor="igraph", n_iterations=2, directed=False)
    fitted = CAENMF2(k=6, strength=0.5).fit(cells, aenmf=aenmf, cell_type_key="cluster")
    obs = cells.obs.assign(cell_type=types)
    assert scatter(fitted.transform(cells), obs) < 0.5 * scatter(cells.obsm["H"], obs)


def test_default_has_a_strength_and_published_preset_has_none():
    for model in BOTH:
        assert model().strength == penalties.STRENGTH
        assert model(preset="published", strength=0.7).strength == 0
        published, unset = model(preset="published"), model(strength=0)
        assert all(getattr(published, name) == getattr(unset, name) for name in ("gamma", "eta"))


@pytest.mark.parametrize("given", [{"gamma": 30.0}, {"eta": 0.0}, {"gamma": 0.0}])
def test_weight_given_together_with_a_strength_raises(given):
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} would be ignored, because strength=0.2 .*Set strength=0"):
        CAENMF1(**given)
    assert getattr(CAENMF1(strength=0, **given), name) == value
