"""The models on cells with a known answer, and what they refuse."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from conftest import filtered, tiny_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from scipy.sparse import csr_matrix, hstack, vstack
from sklearn.exceptions import NotFittedError

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, data, programs
from aenmf_lib.data import simulation
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.models import base
from aenmf_lib.training import group_sums, moments
from aenmf_lib.training.moments import Moments

K = len(simulation.PROGRAMS)
AUTOENCODERS = (AENMF, CAENMF1, CAENMF2)


@pytest.fixture(scope="module")
def fitted(planted):
    cells, _ = planted
    return {model.name: model(k=K).fit(cells) for model in (*AUTOENCODERS, BaseNMF)}


def cosine(a, b):
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), lengths, out=np.zeros_like(lengths), where=lengths > 0)


# ---- planted truth
@pytest.mark.parametrize("name", ["AE_NMF", "CAE_NMF1", "CAE_NMF2"])
def test_planted_programs_are_found(planted, fitted, name):
    _, truth = planted
    _, matched = programs.match_programs(truth.W, fitted[name].W_)
    assert np.median(matched) > 0.9


def test_model_1_finds_the_added_profiles():
    cells, truth = filtered(*data.simulate(bent=0))
    found = CAENMF1(k=K).fit(cells)
    # W can take one donor's profile as a program of its own: a median, not all
    assert np.median(cosine(found.U_, truth.added)) > 0.95


def test_model_2_finds_how_programs_bend():
    cells, truth = filtered(*data.simulate(added=0))
    model = CAENMF2(k=K, strength=0).fit(cells)  # a penalty leaves more to U
    pairs, _ = programs.match_programs(truth.W, model.W_)
    U = model.U_[:, pairs[:, 1]]
    planted_here = np.linalg.norm(truth.bent, axis=2) > 0
    assert np.median(cosine(U, truth.bent)[planted_here]) > 0.75
    size = np.linalg.norm(U, axis=2)
    assert size[planted_here].mean() > 1.5 * size[~planted_here].mean()


def error(model, cells):
    """Reconstruction error without penalties, ‖X − X̂‖² / ‖X‖², for AE-NMF and model 1."""
    X = cells.X.toarray().astype(np.float64)
    rebuilt = X @ model.W_.T @ model.W_
    if model.U_ is not None:
        rebuilt = rebuilt + model.U_[np.searchsorted(model.donors_, cells.obs["donor_id"].astype(str))]
    return ((X - rebuilt) ** 2).sum() / (X**2).sum()


def test_model_1_gains_where_an_effect_was_planted_and_ties_where_none_was():
    for added, low, high in ((1.0, 0.02, 1.0), (0.0, -0.005, 0.005)):
        cells, _ = filtered(*data.simulate(n_cells=3000, added=added, bent=0), min_cells=300)
        plain, conditional = (error(model(k=K).fit(cells), cells) for model in (AENMF, CAENMF1))
        assert low < 1 - conditional / plain < high, added


def test_centred_invariance_takes_the_donor_out_of_the_usages(planted):
    """The penalty at a weight that bites: groups of one type lie closer together."""
    cells, _ = planted

    def scatter(model):
        H = model.fit(cells).transform(cells)
        type_, donor = cells.obs["cell_type"].to_numpy(), cells.obs["donor_id"].to_numpy()
        means = {t: H[type_ == t].mean(0) for t in set(type_)}
        pairs = [(t, d, (type_ == t) & (donor == d)) for t in set(type_) for d in set(donor)]
        return sum(n.sum() * ((H[n].mean(0) - means[t]) ** 2).sum() for t, _, n in pairs if n.any()) / (H**2).sum()

    free, held = (scatter(CAENMF1(k=K, strength=0, eta=0, gamma=gamma, invariance="centered")) for gamma in (0.0, 30.0))
    assert held < 0.3 * free


# ---- objective
@pytest.mark.parametrize("name", ["AE_NMF", "CAE_NMF1", "CAE_NMF2"])
def test_the_loss_told_is_the_objective_of_what_is_kept(planted, fitted, name):
    cells, _ = planted
    model = fitted[name]
    # float32 products; model 2's U is solved more exactly once W is found
    assert model.objective(cells) == pytest.approx(model.loss_history_.min(), rel=1e-3 if name == "CAE_NMF2" else 1e-6)
    assert model.objective(cells) <= model.loss_history_.min() * (1 + 1e-6)
    assert model.loss_history_[-1] < model.loss_history_[0]
    assert len(model.loss_history_) == model.n_iter_ + 1


def test_base_nmf_is_scikit_learns(planted, fitted):
    from sklearn.decomposition import NMF

    cells, _ = planted
    plain = NMF(K, init="nndsvda", solver="cd", max_iter=100, tol=1e-4, random_state=42)
    H = plain.fit_transform(cells.X)
    np.testing.assert_array_equal(fitted["Base_NMF"].H_, H)
    np.testing.assert_array_equal(fitted["Base_NMF"].W_, plain.components_)
    expected = plain.reconstruction_err_**2 / cells.n_obs
    assert fitted["Base_NMF"].loss_history_[-1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("model", AUTOENCODERS)
def test_row_norm_and_the_published_preset(tiny, model):
    held = model(k=4, row_norm=True).fit(tiny)
    np.testing.assert_allclose(np.linalg.norm(held.W_, axis=1), 1, rtol=1e-9)
    assert model(preset="published").row_norm == (model is not AENMF)
    with pytest.raises(ValueError, match="preset='paper' is not known"):
        model(preset="paper")


def test_rows_held_at_length_1_cost_something(planted, fitted):
    cells, _ = planted
    held = AENMF(k=K, row_norm=True).fit(cells)
    assert held.loss_history_.min() > fitted["AE_NMF"].loss_history_.min()


@pytest.mark.parametrize("model", AUTOENCODERS)
def test_same_seed_same_bits(tiny, model):
    first, again, other = (model(k=4, seed=seed).fit(tiny) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.W_, again.W_)
    np.testing.assert_array_equal(first.loss_history_, again.loss_history_)
    assert not np.array_equal(first.W_, other.W_)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 8), model=st.sampled_from(AUTOENCODERS))
def test_never_negative_and_never_worse_than_the_start(seed, k, model):
    cells = tiny_cells(seed)
    fit = model(k=k, seed=seed, max_iter=40).fit(cells)
    assert (fit.W_ >= 0).all()
    assert fit.U_ is None or (fit.U_ >= 0).all()
    assert np.isfinite(fit.W_).all()
    assert fit.loss_history_.min() <= fit.loss_history_[0]


@pytest.mark.parametrize("model", AUTOENCODERS)
def test_order_of_cells_and_names_of_donors_change_nothing(tiny, model):
    plain = model(k=4).fit(tiny)
    shuffled = tiny[np.random.default_rng(3).permutation(tiny.n_obs)].copy()
    shuffled.obs["donor_id"] = shuffled.obs["donor_id"].astype(str).map({"d1": "Z", "d2": "M", "d3": "A"})
    other = model(k=4).fit(shuffled)
    # float64; what is left is the order of sums, through a hundred iterations
    np.testing.assert_allclose(other.W_, plain.W_, atol=1e-6)


@pytest.mark.parametrize("model", AUTOENCODERS)
def test_cells_moments_and_cells_on_disk_train_the_same(planted, tmp_path, model):
    """One file read three ways: float32, so as low as each other to rounding."""
    cells, _ = planted
    kind = model(k=6, max_iter=10)
    needs = {"donor": kind.conditional, "cell_type": kind.uses_cell_type, "by_donor": model is CAENMF2, "k": 6}
    shards = [Moments.from_cells(cells[i::4].copy(), **needs) for i in range(4)]
    plain = model(k=6, max_iter=10).fit(cells)
    merged = model(k=6, max_iter=10).fit(shards[0] + shards[1] + shards[2] + shards[3])
    assert merged.loss_history_[-1] == pytest.approx(plain.loss_history_[-1], rel=1e-3)
    again = model(k=6, max_iter=10).fit(Moments.from_cells(cells, **needs))
    np.testing.assert_array_equal(again.W_, plain.W_)
    assert plain.second_moment_.split(":")[0] in ("implicit", "explicit")


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 1e-6)])
@pytest.mark.parametrize("model", AUTOENCODERS)
def test_the_objective_is_the_same_however_the_second_moment_is_kept(planted, tmp_path, model, dtype, rtol):
    """In memory, merged from four shards, and (float32 alone) from disk; implicit and explicit."""
    cells = planted[0].copy()
    cells.X = cells.X.astype(dtype)
    fitted = model(k=6, max_iter=5, tol=0).fit(cells)
    needs = {"by_donor": model is CAENMF2}
    made = {}
    for mode in ("implicit", "explicit"):
        made[mode] = Moments.from_cells(cells, **needs, mode=mode)
        shards = [Moments.from_cells(cells[i::4].copy(), **needs, mode=mode) for i in range(4)]
        made[f"{mode}, merged"] = shards[0] + shards[1] + shards[2] + shards[3]
        if dtype == np.float32:
            cells.write_h5ad(tmp_path / "cells.h5ad")
            made[f"{mode}, streamed"] = Moments.from_cells(
                CellStream(tmp_path / "cells.h5ad", block=700), **needs, mode=mode
            )
    values = {}
    for way, held in made.items():
        objective = fitted._objective(held)
        U = None if fitted.U_ is None else torch.from_numpy(fitted.U_)
        values[way] = objective.value(objective.point(torch.from_numpy(fitted.W_), U))
    assert values == pytest.approx(dict.fromkeys(values, values["implicit"]), rel=rtol)
    assert values["implicit"] == pytest.approx(fitted.objective(cells), rel=rtol)


@pytest.mark.parametrize("model", AUTOENCODERS)
def test_empty_genes_cells_and_donors_change_nothing(tiny, model):
    """A gene without counts gets no weight, and a donor without cells is no donor."""
    whole, padded = model(k=3, max_iter=5).fit(tiny), tiny.copy()
    padded.obs["donor_id"] = padded.obs["donor_id"].cat.add_categories("d9")
    padded = AnnData(hstack([padded.X, csr_matrix((tiny.n_obs, 2))], format="csr"), obs=padded.obs)
    padded.var_names = [*tiny.var_names, "none1", "none2"]
    fitted = model(k=3, max_iter=5).fit(padded)
    assert fitted.W_[:, -2:].max() == 0
    np.testing.assert_allclose(fitted.loss_history_, whole.loss_history_, rtol=1e-9)
    padded.X.data[: padded.X.indptr[4]] = 0
    padded.X.eliminate_zeros()
    assert np.isfinite(model(k=3, max_iter=5).fit(padded).W_).all()


def test_programs_that_die_are_counted(tiny, caplog):
    """A penalty so heavy that no program is worth its weight."""
    AENMF(k=3, lambda_W=1e6).fit(tiny)
    assert "3 of 3 programs died" in caplog.text


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
def test_cells_on_disk_train_and_are_transformed_as_in_memory(demo, tmp_path, mode):
    demo[0].raw.to_adata().write_h5ad(tmp_path / "cells.h5ad")
    settings = {"k": 6, "max_iter": 5, "mode": mode}
    streamed = CellStream(tmp_path / "cells.h5ad", block=500)
    model = CAENMF1(**settings).fit(streamed)
    in_memory = AnnData(vstack([block for block, _ in streamed], format="csr"), obs=streamed.obs)
    in_memory.var_names = streamed.genes
    whole = CAENMF1(**settings).fit(in_memory)
    assert model.loss_history_[-1] == pytest.approx(whole.loss_history_[-1], rel=1e-4)
    H = model.transform(streamed)
    np.testing.assert_array_equal(H, model.transform(in_memory))
    assert H.shape == (in_memory.n_obs, 6)


def test_moments_that_do_not_serve_a_model_are_refused(tiny):
    with pytest.raises(ValueError, match="CAE_NMF2 needs a second moment of every donor"):
        CAENMF2(k=3).fit(Moments.from_cells(tiny))
    with pytest.raises(ValueError, match="CAE_NMF1 needs moments that tell 'donor_id' apart"):
        CAENMF1(k=3, strength=0, gamma=0).fit(Moments.from_cells(tiny, donor=False))
    with pytest.raises(ValueError, match="CAE_NMF1 needs moments that tell 'cell_type' apart"):
        CAENMF1(k=3).fit(Moments.from_cells(tiny, cell_type=False))


def test_a_sample_does_not_depend_on_how_cells_are_cut_or_ordered(tiny, monkeypatch):
    monkeypatch.setattr(group_sums, "SAMPLE", 20)
    whole = Moments.from_cells(tiny).sample
    assert whole.shape[0] == 20
    order = np.random.default_rng(1).permutation(tiny.n_obs)
    for parts in ([tiny[order].copy()], [tiny[i::3].copy() for i in range(3)]):
        made = [Moments.from_cells(part) for part in parts]
        total = sum(made[1:], made[0]).sample
        np.testing.assert_array_equal(total.toarray(), whole.toarray())


# ---- untied
def test_untied_usages_fit_better_and_are_stationary(planted, fitted):
    """Least squares for the same W: no worse than the tied ones, and the optimum as SciPy finds it cell by cell."""
    cells, _ = planted
    model = fitted["AE_NMF"]
    H = model.refit(cells)
    assert base.relative_error(cells, H, model.W_) < base.relative_error(cells, model.transform(cells), model.W_)
    for i in range(0, cells.n_obs, 500):
        residual = nnls(model.W_.T.astype(float), cells.X[i].toarray().ravel().astype(float))[1]
        assert np.linalg.norm(cells.X[i].toarray().ravel() - H[i] @ model.W_) < residual * 1.01


# ---- transform
def test_transform_is_the_tied_encoder(planted, fitted):
    cells, _ = planted
    model = fitted["AE_NMF"]
    np.testing.assert_allclose(model.transform(cells), cells.X @ model.W_.T, rtol=1e-5)
    np.testing.assert_array_equal(model.transform(cells[:7]), model.transform(cells)[:7])


def test_other_genes_are_refused(tiny):
    model = AENMF(k=3).fit(tiny)
    with pytest.raises(ValueError, match="40 of them shared but in another order"):
        model.transform(tiny[:, ::-1].copy())
    with pytest.raises(ValueError, match=r"the cells have 39 genes, the model 40, 39 of them shared\."):
        model.transform(tiny[:, 1:].copy())


# ---- refusals
@pytest.mark.parametrize("model", [*AUTOENCODERS, BaseNMF])
@pytest.mark.parametrize("k", [0, 41])
def test_a_rank_that_does_not_fit_is_refused(tiny, model, k):
    with pytest.raises(ValueError, match=f"k = {k} programs were asked of 60 cells × 40 genes"):
        model(k=k).fit(tiny)


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        (AENMF, {"k": 12.0}),
        (AENMF, {"max_iter": 0}),
        (AENMF, {"tol": np.nan}),
        (CAENMF1, {"gamma": -1.0}),
        (CAENMF2, {"lambda_U": np.inf}),
        (BaseNMF, {"max_iter": -1}),
    ],
)
def test_settings_that_no_training_can_use_are_refused_at_once(model, setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r}: a "):
        model(**setting)


def test_what_is_not_fitted_or_not_cells_is_told(tiny):
    with pytest.raises(NotFittedError, match="call fit first"):
        AENMF(k=3).transform(tiny)
    with pytest.raises(TypeError, match="fit takes an AnnData"):
        AENMF(k=3).fit(tiny.X)
    with pytest.raises(ValueError, match="device='gpu' is not known"):
        AENMF(k=3, device="gpu").fit(tiny)


@pytest.mark.parametrize("model", [CAENMF1, CAENMF2])
def test_one_donor_is_refused(tiny, model):
    tiny.obs["donor_id"] = "only"
    with pytest.raises(ValueError, match=r"holds one donor \('only'\).*at least 2"):
        model(k=3).fit(tiny)


def test_without_labels_model_1_needs_no_cell_type(tiny):
    labeled = CAENMF1(k=3, strength=0, gamma=0).fit(tiny)
    del tiny.obs["cell_type"]
    np.testing.assert_array_equal(CAENMF1(k=3, strength=0, gamma=0).fit(tiny).W_, labeled.W_)
    with pytest.raises(
        ValueError, match=r"obs\['cell_type'\] is needed to train this model; the cells have 'donor_id'"
    ):
        CAENMF1(k=3).fit(tiny)


@pytest.mark.parametrize("model", [*AUTOENCODERS, BaseNMF])
@pytest.mark.parametrize(("value", "message"), [(-1.0, "1 negative values"), (np.nan, "1 values that are NaN")])
def test_values_that_are_no_expression_are_refused(tiny, model, value, message):
    tiny.X.data[5] = value
    with pytest.raises(ValueError, match=message):
        model(k=3).fit(tiny)


def test_unknown_donors_have_no_latent(tiny):
    model = CAENMF1(k=3).fit(tiny)
    tiny.obs["donor_id"] = ["d9", *tiny.obs["donor_id"].astype(str)[1:]]
    with pytest.raises(ValueError, match="1 donors were not in the fit \\(first: 'd9'\\)"):
        model.cond_latent(tiny)


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
@pytest.mark.parametrize("model", [AENMF, CAENMF1])
def test_moments_kept_by_donor_serve_the_other_models_too(tiny, model, mode):
    fitted = [model(k=4).fit(moments.Moments.from_cells(tiny, by_donor=apart, mode=mode)) for apart in (False, True)]
    np.testing.assert_allclose(fitted[1].loss_history_[-1], fitted[0].loss_history_[-1], rtol=1e-6)


# ---- several starts
@pytest.mark.parametrize("model", AUTOENCODERS)
def test_the_best_of_several_starts_is_kept(tiny, model):
    plainly = {"strength": 0} if model.conditional else {}  # with a strength it is the plain AE-NMF that is begun anew
    several = model(k=4, seed=4, n_starts=4, **plainly).fit(tiny)
    alone = [model(k=4, seed=seed, **plainly).fit(tiny) for seed in (4, 5, 6, 7)]
    objectives = [one.loss_history_.min() for one in alone]
    best = int(np.argmin(objectives))
    assert best > 0  # else the first could be kept always
    np.testing.assert_array_equal(several.W_, alone[best].W_)
    assert several.U_ is None or np.array_equal(several.U_, alone[best].U_)
    np.testing.assert_array_equal(several.loss_history_, alone[best].loss_history_)
    table = several.starts_
    assert table["seed"].tolist() == [4, 5, 6, 7]
    assert table["objective"].tolist() == objectives
    assert table["iterations"].tolist() == [one.n_iter_ for one in alone]
    assert table["stop"].tolist() == [one.stop_ for one in alone]
    assert table.index[table["kept"]].tolist() == [best]
    cosines = [programs.match_programs(several.W_, one.W_)[1].mean() for one in alone]
    np.testing.assert_allclose(table["cosine"], cosines, rtol=1e-6)
    others = [programs.match_programs(several.W_, one.W_)[1] for i, one in enumerate(alone) if i != best]
    np.testing.assert_allclose(several.stability_["cosine"], np.mean(others, axis=0), rtol=1e-6)


def test_the_spread_of_starts_is_told(tiny, caplog):
    caplog.set_level("INFO")
    AENMF(k=4, n_starts=3).fit(tiny)
    assert "AE_NMF: 3 starts, objective" in caplog.text
    one = AENMF(k=4).fit(tiny)
    assert (len(one.starts_), one.starts_["cosine"].item(), one.stability_["cosine"].isna().all()) == (1, 1.0, True)
    with pytest.raises(ValueError, match="n_starts=0: a whole number above 0"):
        AENMF(n_starts=0)


@pytest.mark.parametrize("model", [CAENMF1, CAENMF2])
def test_with_a_strength_the_starts_are_those_of_the_plain_solution(tiny, model):
    moments = Moments.from_cells(tiny, by_donor=model.by_donor)
    plain = AENMF(k=4, seed=4, n_starts=4).fit(moments)
    assert plain.starts_["kept"].idxmax() > 0
    given = model(k=4, seed=4, strength=0.2, labels="none").fit(moments, plain=plain)
    found = model(k=4, seed=4, strength=0.2, labels="none", n_starts=4).fit(moments)
    np.testing.assert_array_equal(found.W_, given.W_)
    assert found.starts_.drop(columns="seconds").equals(plain.starts_.drop(columns="seconds"))


def test_planted_programs_are_stable_and_one_of_noise_is_not():
    """Of one program more than were planted, what it takes up hangs on the start."""
    rng = np.random.default_rng(0)
    truth = np.kron(np.eye(5), np.ones(20)) * rng.gamma(4, 0.5, 100)
    X = csr_matrix(np.log1p(rng.poisson(rng.gamma(0.3, 3, (800, 5)) @ truth + 0.3)).astype(np.float32))
    fitted = AENMF(k=6, n_starts=4).fit(AnnData(X))
    pairs, matched = programs.match_programs(truth, fitted.W_)
    cosine = fitted.stability_.set_index("program")["cosine"]
    assert (matched > 0.95).sum() == 4  # the fifth shares its genes with the surplus one
    assert cosine[pairs[matched > 0.95, 1]].min() > 0.9
    assert cosine.drop(pairs[:, 1]).item() < 0.5
