"""The models: simulated truth, scikit-learn, invariances, several starts, and errors."""

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

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF, data, programs
from aenmf_lib.data import simulation
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.models import base
from aenmf_lib.training import moments, second_moment
from aenmf_lib.training.moments import Moments

K = len(simulation.PROGRAMS)
TIED = (AENMF, CAENMF1, CAENMF2)
AUTOENCODERS = (*TIED, UntiedAENMF)


@pytest.fixture(scope="session")
def fitted(planted):
    cells, _ = planted
    return {model.name: model(k=K).fit(cells) for model in (*AUTOENCODERS, BaseNMF)}


def cosine(a, b):
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), lengths, out=np.zeros_like(lengths), where=lengths > 0)


# ---- planted truth
@pytest.mark.parametrize("name", ["AE_NMF", "CAE_NMF1", "CAE_NMF2"])
def test_simulated_programs_are_found(planted, fitted, name):
    _, truth = planted
    _, matched = programs.match_programs(truth.W, fitted[name].W_)
    assert np.median(matched) > 0.9


def test_model_1_finds_simulated_donor_profiles():
    cells, truth = filtered(*data.simulate(donor_programs=0))
    found = CAENMF1(k=K).fit(cells)
    # W can take one donor's profile as a program of its own: a median, not all
    assert np.median(cosine(found.U_, truth.donor_profiles)) > 0.95


def test_model_2_finds_simulated_changes_of_programs():
    cells, truth = filtered(*data.simulate(donor_profiles=0))
    model = CAENMF2(k=K, strength=0).fit(cells)  # a penalty leaves more to U
    pairs, _ = programs.match_programs(truth.W, model.W_)
    U = model.U_[:, pairs[:, 1]]
    planted_here = np.linalg.norm(truth.donor_programs, axis=2) > 0
    assert np.median(cosine(U, truth.donor_programs)[planted_here]) > 0.75
    size = np.linalg.norm(U, axis=2)
    assert size[planted_here].mean() > 1.5 * size[~planted_here].mean()


def error(model, cells):
    """Reconstruction error without penalties, ‖X − X̂‖² / ‖X‖², for AE-NMF and model 1."""
    X = cells.X.toarray().astype(np.float64)
    rebuilt = X @ model.W_.T @ model.W_
    if model.U_ is not None:
        rebuilt = rebuilt + model.U_[np.searchsorted(model.donors_, cells.obs["donor_id"].astype(str))]
    return ((X - rebuilt) ** 2).sum() / (X**2).sum()


def test_model_1_reconstructs_better_only_with_a_donor_effect():
    for added, low, high in ((1.0, 0.02, 1.0), (0.0, -0.005, 0.005)):
        cells, _ = filtered(*data.simulate(n_cells=3000, donor_profiles=added, donor_programs=0), min_cells=300)
        unconditional, conditional = (error(model(k=K).fit(cells), cells) for model in (AENMF, CAENMF1))
        assert low < 1 - conditional / unconditional < high, added


# ---- objective
@pytest.mark.parametrize("name", ["AE_NMF", "CAE_NMF1", "CAE_NMF2"])
def test_best_loss_is_the_objective_of_the_fitted_model(planted, fitted, name):
    cells, _ = planted
    model = fitted[name]
    # float32 products; model 2's U is solved more exactly once W is found
    assert model.objective(cells) == pytest.approx(model.loss_history_.min(), rel=1e-3 if name == "CAE_NMF2" else 1e-6)
    assert model.objective(cells) <= model.loss_history_.min() * (1 + 1e-6)
    assert model.loss_history_[-1] < model.loss_history_[0]
    assert len(model.loss_history_) == model.n_iter_ + 1


def test_base_nmf_equals_scikit_learn(planted, fitted):
    from sklearn.decomposition import NMF

    cells, _ = planted
    reference = NMF(K, init="nndsvda", solver="cd", max_iter=100, tol=1e-4, random_state=42)
    H = reference.fit_transform(cells.X)
    np.testing.assert_array_equal(fitted["Base_NMF"].H_, H)
    np.testing.assert_array_equal(fitted["Base_NMF"].W_, reference.components_)
    expected = reference.reconstruction_err_**2 / cells.n_obs
    assert fitted["Base_NMF"].loss_history_[-1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("model", TIED)
def test_row_norm_gives_rows_of_length_1_and_published_preset_sets_it(tiny, model):
    fitted = model(k=4, row_norm=True).fit(tiny)
    np.testing.assert_allclose(np.linalg.norm(fitted.W_, axis=1), 1, rtol=1e-9)
    assert model(preset="published").row_norm == (model is not AENMF)
    with pytest.raises(ValueError, match=r"preset='paper' is unknown\. Choose None or 'published'"):
        model(preset="paper")


def test_rows_of_length_1_fit_worse_than_free_rows(planted, fitted):
    cells, _ = planted
    unit = AENMF(k=K, row_norm=True).fit(cells)
    assert unit.loss_history_.min() > fitted["AE_NMF"].loss_history_.min()


@pytest.mark.parametrize("model", AUTOENCODERS)
def test_same_seed_gives_same_bits(tiny, model):
    first, again, other = (model(k=4, seed=seed).fit(tiny) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.W_, again.W_)
    np.testing.assert_array_equal(first.loss_history_, again.loss_history_)
    assert not np.array_equal(first.W_, other.W_)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 8), model=st.sampled_from(AUTOENCODERS))
def test_fit_is_non_negative_and_not_worse_than_its_start(seed, k, model):
    cells = tiny_cells(seed)
    fit = model(k=k, seed=seed, max_iter=40).fit(cells)
    assert (fit.W_ >= 0).all()
    assert fit.U_ is None or (fit.U_ >= 0).all()
    assert np.isfinite(fit.W_).all()
    assert fit.loss_history_.min() <= fit.loss_history_[0]


@pytest.mark.parametrize("model", AUTOENCODERS)
def test_cell_order_and_donor_names_do_not_change_programs(tiny, model):
    reference = model(k=4).fit(tiny)
    shuffled = tiny[np.random.default_rng(3).permutation(tiny.n_obs)].copy()
    shuffled.obs["donor_id"] = shuffled.obs["donor_id"].astype(str).map({"d1": "Z", "d2": "M", "d3": "A"})
    other = model(k=4).fit(shuffled)
    # float64; what is left is the order of sums, through a hundred iterations
    np.testing.assert_allclose(other.W_, reference.W_, atol=1e-6)


@pytest.mark.parametrize("model", AUTOENCODERS)
def test_cells_their_moments_and_merged_shards_give_the_same_fit(planted, tmp_path, model):
    """float32, so the objectives agree up to rounding."""
    cells = planted[0][:1500].copy()
    kind = model(k=6, max_iter=10)
    needs = {"donor": kind.conditional, "cell_type": kind.uses_cell_type, "by_donor": model is CAENMF2, "k": 6}
    shards = [Moments.from_cells(cells[i::4].copy(), **needs) for i in range(4)]
    reference = model(k=6, max_iter=10).fit(cells)
    merged = model(k=6, max_iter=10).fit(shards[0] + shards[1] + shards[2] + shards[3])
    assert merged.loss_history_[-1] == pytest.approx(reference.loss_history_[-1], rel=1e-3)
    again = model(k=6, max_iter=10).fit(Moments.from_cells(cells, **needs))
    np.testing.assert_array_equal(again.W_, reference.W_)
    assert reference.second_moment_.split(":")[0] in ("implicit", "explicit")


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 1e-6)])
@pytest.mark.parametrize("model", AUTOENCODERS)
def test_objective_does_not_depend_on_how_moments_are_computed(planted, tmp_path, model, dtype, rtol):
    """In memory, merged from four shards, and (float32 only) from disk; implicit and explicit."""
    cells = planted[0][:1500].copy()
    cells.X = cells.X.astype(dtype)
    fitted = model(k=6, max_iter=5, tol=0, gene_weights="none").fit(cells)
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
    for way, moments_ in made.items():
        objective = fitted._objective(moments_)
        U = None if fitted.U_ is None else torch.from_numpy(fitted.U_)
        values[way] = objective.value(objective.point(torch.from_numpy(fitted._variable()), U))
    assert values == pytest.approx(dict.fromkeys(values, values["implicit"]), rel=rtol)
    assert values["implicit"] == pytest.approx(fitted.objective(cells), rel=rtol)


@pytest.mark.parametrize("model", AUTOENCODERS)
def test_empty_genes_cells_and_donors_do_not_change_the_fit(tiny, model):
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


def test_empty_programs_are_reported(tiny, caplog):
    """The penalty is so large that all programs become 0."""
    AENMF(k=3, lambda_W=1e6).fit(tiny)
    assert "3 of 3 programs are empty" in caplog.text


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
def test_streamed_cells_give_the_fit_and_usages_of_cells_in_memory(demo, tmp_path, mode):
    demo[0][:1500].raw.to_adata().write_h5ad(tmp_path / "cells.h5ad")
    settings = {"k": 6, "max_iter": 5, "mode": mode}
    streamed = CellStream(tmp_path / "cells.h5ad", counts=True, block=500)
    model = CAENMF1(**settings).fit(streamed)
    in_memory = AnnData(vstack([block for block, _ in streamed], format="csr"), obs=streamed.obs)
    in_memory.var_names = streamed.var_names
    whole = CAENMF1(**settings).fit(in_memory)
    assert model.loss_history_[-1] == pytest.approx(whole.loss_history_[-1], rel=1e-4)
    H = model.transform(streamed)
    np.testing.assert_array_equal(H, model.transform(in_memory))
    assert H.shape == (in_memory.n_obs, 6)


def test_moments_without_donor_type_or_by_donor_raise_if_needed(tiny):
    with pytest.raises(ValueError, match="CAE_NMF2 needs moments with by_donor=True"):
        CAENMF2(k=3).fit(Moments.from_cells(tiny))
    with pytest.raises(ValueError, match="CAE_NMF1 needs moments with donor=True"):
        CAENMF1(k=3, strength=0, gamma=0).fit(Moments.from_cells(tiny, donor=False))
    with pytest.raises(ValueError, match="CAE_NMF1 needs moments with cell_type=True"):
        CAENMF1(k=3).fit(Moments.from_cells(tiny, cell_type=False))


def test_sample_does_not_depend_on_cell_order_or_shards(tiny, monkeypatch):
    monkeypatch.setattr(moments, "SAMPLE_SIZE", 20)
    whole = Moments.from_cells(tiny).sample
    assert whole.shape[0] == 20
    order = np.random.default_rng(1).permutation(tiny.n_obs)
    for parts in ([tiny[order].copy()], [tiny[i::3].copy() for i in range(3)]):
        made = [Moments.from_cells(part) for part in parts]
        total = sum(made[1:], made[0]).sample
        np.testing.assert_array_equal(total.toarray(), whole.toarray())


# ---- cost of the tie
def test_refit_usages_are_the_least_squares_optimum(planted, fitted):
    """Least squares for the same W: no worse than the tied ones, and the optimum as SciPy finds it cell by cell."""
    cells, _ = planted
    model = fitted["AE_NMF"]
    H = model.refit(cells)
    assert base.relative_error(cells, H, model.W_) < base.relative_error(cells, model.transform(cells), model.W_)
    for i in range(0, cells.n_obs, 500):
        residual = nnls(model.W_.T.astype(float), cells.X[i].toarray().ravel().astype(float))[1]
        assert np.linalg.norm(cells.X[i].toarray().ravel() - H[i] @ model.W_) < residual * 1.01


# ---- transform
def test_transform_equals_X_times_transposed_W(planted, fitted):
    cells, _ = planted
    model = fitted["AE_NMF"]
    np.testing.assert_allclose(model.transform(cells), cells.X @ model.W_.T, rtol=1e-5)
    np.testing.assert_array_equal(model.transform(cells[:7]), model.transform(cells)[:7])


def test_transform_of_other_genes_raises(tiny):
    model = AENMF(k=3).fit(tiny)
    with pytest.raises(ValueError, match="40 genes, of which 40 are genes of the model, in another order"):
        model.transform(tiny[:, ::-1].copy())
    with pytest.raises(ValueError, match=r"have 39 genes, of which 39 are genes of the model\. .* fitted to 40 genes"):
        model.transform(tiny[:, 1:].copy())


# ---- refusals
@pytest.mark.parametrize("model", [*AUTOENCODERS, BaseNMF])
@pytest.mark.parametrize("k", [0, 41])
def test_rank_below_1_or_above_the_data_raises(tiny, model, k):
    with pytest.raises(ValueError, match=f"k={k} is "):
        model(k=k).fit(tiny)


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        (AENMF, {"k": 12.0}),
        (BaseNMF, {"k": True}),
        (AENMF, {"seed": -1}),
        (BaseNMF, {"seed": 1.5}),
        (AENMF, {"row_norm": "no"}),
        (CAENMF1, {"strength": -1}),
        (CAENMF2, {"strength": "a"}),
        (CAENMF1, {"lambda_W": True}),
        (AENMF, {"max_iter": 0}),
        (AENMF, {"tol": np.nan}),
        (CAENMF1, {"gamma": -1.0}),
        (CAENMF2, {"lambda_U": np.inf}),
        (BaseNMF, {"max_iter": -1}),
    ],
)
def test_invalid_hyperparameter_raises_on_construction(model, setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r} is not valid. Choose (a |True)"):
        model(**setting)


@pytest.mark.parametrize(
    ("setting", "choices"),
    [
        ({"device": "gpu"}, "'cpu', 'cuda' or 'cuda:<number>'"),
        ({"device": "cuda:x"}, "'cpu', 'cuda' or 'cuda:<number>'"),
        ({"gene_weights": "foo"}, "'none' or 'shared'"),
        ({"gene_weights": ["none"]}, "'none' or 'shared'"),
        ({"mode": "dense"}, "'auto' or 'implicit' or 'explicit'"),
        ({"init": None}, "'cells' or 'nndsvd'"),
    ],
)
def test_unknown_choice_raises_on_construction_and_lists_the_choices(setting, choices):
    with pytest.raises(ValueError, match=f"is unknown. Choose {choices}"):
        CAENMF1(**setting)


def test_device_that_this_machine_lacks_is_accepted_on_construction():
    assert AENMF(device="cuda:99").device == "cuda:99"
    with pytest.raises(RuntimeError, match="device='cuda:99' is not available"):
        second_moment.check_device("cuda:99")


def test_unfitted_model_wrong_input_and_unknown_device_raise(tiny):
    with pytest.raises(NotFittedError, match=r"AE_NMF is not fitted\. Call fit first"):
        AENMF(k=3).transform(tiny)
    with pytest.raises(TypeError, match=r"The cells are a str\. Expected an AnnData"):
        AENMF(k=3).fit("cells.h5ad")
    with pytest.raises(RuntimeError, match="device='cuda:99' is not available"):
        AENMF(k=3, device="cuda:99").fit(tiny)


@pytest.mark.parametrize("model", [CAENMF1, CAENMF2])
def test_conditional_model_with_one_donor_raises(tiny, model):
    tiny.obs["donor_id"] = "only"
    with pytest.raises(ValueError, match=r"contains only one donor \('only'\).*at least 2"):
        model(k=3).fit(tiny)


def test_model_1_without_gamma_needs_no_cell_type(tiny):
    labeled = CAENMF1(k=3, strength=0, gamma=0).fit(tiny)
    del tiny.obs["cell_type"]
    np.testing.assert_array_equal(CAENMF1(k=3, strength=0, gamma=0).fit(tiny).W_, labeled.W_)
    with pytest.raises(
        ValueError, match=r"obs\['cell_type'\] is needed to train this model; the cells have 'donor_id'"
    ):
        CAENMF1(k=3).fit(tiny)


@pytest.mark.parametrize("model", [*AUTOENCODERS, BaseNMF])
@pytest.mark.parametrize(("value", "message"), [(-1.0, "1 negative values"), (np.nan, "1 values that are NaN")])
def test_negative_or_nan_values_raise(tiny, model, value, message):
    tiny.X.data[5] = value
    with pytest.raises(ValueError, match=message):
        model(k=3).fit(tiny)


def test_latent_of_unknown_donor_raises(tiny):
    model = CAENMF1(k=3).fit(tiny)
    tiny.obs["donor_id"] = ["d9", *tiny.obs["donor_id"].astype(str)[1:]]
    with pytest.raises(ValueError, match="1 donors were not in the fit \\(first: 'd9'\\)"):
        model.cond_latent(tiny)


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
@pytest.mark.parametrize("model", [AENMF, CAENMF1])
def test_moments_by_donor_give_the_fit_of_pooled_moments(tiny, model, mode):
    fitted = [model(k=4).fit(moments.Moments.from_cells(tiny, by_donor=apart, mode=mode)) for apart in (False, True)]
    np.testing.assert_allclose(fitted[1].loss_history_[-1], fitted[0].loss_history_[-1], rtol=1e-6)


# ---- several starts
@pytest.mark.parametrize("model", TIED)
def test_best_of_several_starts_is_kept(tiny, model):
    settings = {"strength": 0} if model.conditional else {}  # with a strength, AE-NMF has the starts
    several = model(k=4, seed=5, n_starts=4, **settings).fit(tiny)
    single = [model(k=4, seed=seed, **settings).fit(tiny) for seed in (5, 6, 7, 8)]
    objectives = [one.loss_history_.min() for one in single]
    best = int(np.argmin(objectives))
    assert best > 0  # otherwise a model that always keeps the first would pass
    np.testing.assert_array_equal(several.W_, single[best].W_)
    assert several.U_ is None or np.array_equal(several.U_, single[best].U_)
    np.testing.assert_array_equal(several.loss_history_, single[best].loss_history_)
    table = several.starts_
    assert table["seed"].tolist() == [5, 6, 7, 8]
    assert table["objective"].tolist() == objectives
    assert table["iterations"].tolist() == [one.n_iter_ for one in single]
    assert table["stop"].tolist() == [one.stop_reason_ for one in single]
    assert table.index[table["kept"]].tolist() == [best]
    cosines = [programs.match_programs(several.W_, one.W_)[1].mean() for one in single]
    np.testing.assert_allclose(table["cosine"], cosines, rtol=1e-6)
    others = [programs.match_programs(several.W_, one.W_)[1] for i, one in enumerate(single) if i != best]
    np.testing.assert_allclose(several.stability_["cosine"], np.mean(others, axis=0), rtol=1e-6)


def test_spread_of_starts_is_logged(tiny, caplog):
    caplog.set_level("INFO")
    AENMF(k=4, n_starts=3).fit(tiny)
    assert "AE_NMF: 3 starts; the objectives range from" in caplog.text
    one = AENMF(k=4).fit(tiny)
    assert (len(one.starts_), one.starts_["cosine"].item(), one.stability_["cosine"].isna().all()) == (1, 1.0, True)
    with pytest.raises(ValueError, match=r"n_starts=0 is not valid\. Choose a whole number"):
        AENMF(n_starts=0)


@pytest.mark.parametrize("model", [CAENMF1, CAENMF2])
def test_starts_with_a_strength_are_those_of_ae_nmf(tiny, model):
    moments = Moments.from_cells(tiny, by_donor=model.by_donor)
    aenmf = AENMF(k=4, seed=4, n_starts=4).fit(moments)
    assert aenmf.starts_["kept"].idxmax() > 0
    given = model(k=4, seed=4, strength=0.2).fit(moments, aenmf=aenmf)
    found = model(k=4, seed=4, strength=0.2, n_starts=4).fit(moments)
    np.testing.assert_array_equal(found.W_, given.W_)
    assert found.starts_.drop(columns="seconds").equals(aenmf.starts_.drop(columns="seconds"))


def test_simulated_programs_are_stable_and_a_surplus_program_is_not():
    """With one program more than simulated, the content of the surplus program depends on the start."""
    rng = np.random.default_rng(0)
    truth = np.kron(np.eye(5), np.ones(20)) * rng.gamma(4, 0.5, 100)
    X = csr_matrix(np.log1p(rng.poisson(rng.gamma(0.3, 3, (800, 5)) @ truth + 0.3)).astype(np.float32))
    fitted = AENMF(k=6, n_starts=4).fit(AnnData(X))
    pairs, matched = programs.match_programs(truth, fitted.W_)
    cosine = fitted.stability_.set_index("program")["cosine"]
    assert (matched > 0.95).sum() == 4  # the fifth shares its genes with the surplus one
    assert cosine[pairs[matched > 0.95, 1]].min() > 0.9
    assert cosine.drop(pairs[:, 1]).item() < 0.5
