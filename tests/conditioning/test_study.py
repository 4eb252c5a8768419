"""The study of conditioning: its scores are those of plain calls, the donors held out stay unseen, it can be killed."""

import importlib.util
import re
import sys
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix, hstack
from scipy.sparse import random as sparse_random
from sklearn.decomposition import NMF
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aenmf_lib import CAENMF1, CAENMF2
from aenmf_lib.conditioning import baselines, study, variants
from aenmf_lib.conditioning.variants import Variant
from aenmf_lib.figures import conditioning

K, ON = 4, ["donor_id", "condition"]


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """300 cells of three types and six donors; half of each donor's have more of ten genes."""
    rng = np.random.default_rng(0)
    donor, kind, treated = rng.choice(6, 300), rng.choice(3, 300), rng.choice(2, 300)
    mean = rng.gamma(0.3, size=(3, 60))[kind] + 0.3
    mean[:, :10] += 2 * treated[:, None]
    X = csr_matrix(np.log1p(rng.poisson(2 * mean)).astype(np.float64))
    obs = {"donor_id": [f"d{i}" for i in donor], "cell_type": [f"t{i}" for i in kind], "condition": treated.astype(str)}
    names = [f"c{i}" for i in range(300)]
    return AnnData(X, obs=pd.DataFrame(obs, index=names, dtype="category"), var=pd.DataFrame(index=map(str, range(60))))


@pytest.fixture(scope="module")
def plan() -> list[Variant]:
    return variants.plan(
        [0.2],
        at=0.2,
        labels=["cell_type", "clusters", "none"],
        gene_weights=["none", "shared"],
        yardsticks=["Types", "PCA", "Harmony", "Base_NMF"],
    )


@pytest.fixture(scope="module")
def long(cells, plan) -> pd.DataFrame:
    return study.run(cells, plan, on=ON, k=K, seeds=[0], max_cells=0)


def row(long: pd.DataFrame, variant: Variant, on: str = "condition", seed: int = 0) -> pd.Series:
    match = (long[list(variants.COLUMNS)] == pd.Series(asdict(variant))).all(axis=1)
    (found,) = long[match & (long["on"] == on) & (long["seed"] == seed)].index
    return long.loc[found]


def conditioned(cells: AnnData) -> AnnData:
    cells = cells.copy()
    cells.obs["donor_id"] = cells.obs["condition"]
    return cells


def test_a_row_for_each_model_start_and_column(long, plan):
    assert len(long) == len(plan) * len(ON)
    assert not long.duplicated(["on", *variants.COLUMNS, "seed"]).any()
    assert not long["error"][~long["Model"].isin(["Types", "Harmony"])].isna().any()


@pytest.mark.parametrize(("kind", "strength"), [(CAENMF1, 0.0), (CAENMF1, 0.2), (CAENMF2, 0.2)])
def test_the_error_is_that_of_the_dense_reconstruction(cells, long, kind, strength):
    labels = "cell_type" if strength or kind is CAENMF1 else "none"
    model = kind(k=K, seed=0, strength=strength, labels=labels).fit(conditioned(cells))
    X, H, d = cells.X.toarray(), model.transform(cells), cells.obs["condition"].cat.codes.to_numpy()
    more = model.U_[d] if kind is CAENMF1 else np.einsum("ij,ijp->ip", H, model.U_[d])
    wanted = np.linalg.norm(X - H @ model.W_ - more) / np.linalg.norm(X)
    assert row(long, Variant(kind.name, strength, labels))["error"] == pytest.approx(wanted, rel=1e-3)


def test_the_error_of_the_yardsticks_is_that_of_the_dense_reconstruction(cells, long):
    X = cells.X.toarray()
    centered = X - X.mean(0)
    values = np.linalg.svd(centered, compute_uv=False)
    of_pca = np.sqrt(np.square(values[K:]).sum()) / np.linalg.norm(X)
    assert row(long, Variant("PCA"))["error"] == pytest.approx(of_pca, rel=1e-6)
    nmf = NMF(K, init="nndsvda", max_iter=100, random_state=0)
    of_nmf = np.linalg.norm(X - nmf.fit_transform(cells.X) @ nmf.components_) / np.linalg.norm(X)
    assert row(long, Variant("Base_NMF"))["error"] == pytest.approx(of_nmf, rel=1e-6)


def test_scatter_is_the_variance_between_donors_within_a_type():
    H = np.array([[0.0], [2.0], [5.0], [5.0]])
    obs = pd.DataFrame({"cell_type": list("aabb"), "donor_id": list("xyxy")})
    assert study.scatter(H, obs) == pytest.approx((1 + 1) / (9 + 1 + 4 + 4))  # the types differ: that is not counted
    assert study.scatter(H, obs.assign(donor_id=list("xxyy"))) == pytest.approx(0.0)
    assert study.scatter(H, obs.assign(cell_type="a")) == pytest.approx(4 * 0.5**2 / (9 + 1 + 4 + 4))


def test_unseen_scores_are_of_classifiers_and_a_fit_that_saw_other_donors_alone(cells, long):
    out = study.held_out(cells.obs["donor_id"].to_numpy(), 0)
    assert 0 < out.sum() < len(out)
    assert not set(cells.obs["donor_id"][out]) & set(cells.obs["donor_id"][~out])
    model = CAENMF2(k=K, seed=0, strength=0.2, labels="none").fit(conditioned(cells)[~out].copy())
    H, y = model.transform(cells), cells.obs["condition"].to_numpy(str)
    knn = make_pipeline(StandardScaler(), KNeighborsClassifier(15)).fit(H[~out], y[~out])
    wanted = f1_score(y[out], knn.predict(H[out]), average="macro")
    assert row(long, Variant("CAE_NMF2", 0.2, "none"))["unseen_knn_on"] == pytest.approx(wanted, abs=0.02)


def test_the_types_of_donors_held_out_reach_no_fit(cells, long, plan):
    """A penalty reads cell_type: that of the cells held out must not matter to what they are given."""
    out = study.held_out(cells.obs["donor_id"].to_numpy(), 0)
    other = cells.copy()
    shuffled = other.obs["cell_type"].to_numpy(str)
    shuffled[out] = np.random.default_rng(1).permutation(shuffled[out])
    other.obs["cell_type"] = pd.Categorical(shuffled)
    variant = Variant("CAE_NMF1", 0.2, "cell_type")
    again = study.run(other, [variant], on=["condition"], k=K, seeds=[0], max_cells=0)
    before = row(long, variant)
    assert again["unseen_error"][0] == before["unseen_error"]
    assert again["unseen_knn_on"][0] == before["unseen_knn_on"]
    assert again["unseen_knn_type"][0] < before["unseen_knn_type"]
    assert again["error"][0] != before["error"]


def test_a_label_that_no_unseen_donor_shares_has_no_unseen_F1(long):
    by_donor = long[long["on"] == "donor_id"]
    assert by_donor["unseen_knn_on"].isna().all()
    assert by_donor["unseen_knn_type"].notna()[by_donor["Model"] != "Harmony"].all()


def test_killed_it_goes_on_and_enlarged_it_makes_what_is_new(cells, long, plan, tmp_path, monkeypatch):
    made = []
    scores = study._scores

    def counted(*given):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(1)
        return scores(*given)

    monkeypatch.setattr(study, "_scores", counted)
    some, store = plan[:4], tmp_path / "scores.csv"
    with pytest.raises(KeyboardInterrupt):
        study.run(cells, some, on=ON, k=K, seeds=[0], max_cells=0, store=store)
    made[:] = [1] * 100  # from here on all are made
    again = study.run(cells, some, on=ON, k=K, seeds=[0], max_cells=0, store=store)
    assert len(made) == 100 + 2 * len(some) - 5
    first = long[long["seed"] == 0].merge(again[["on", *variants.COLUMNS]])
    pd.testing.assert_frame_equal(again[study.SCORES], first[study.SCORES], check_exact=True)
    study.run(cells, plan[:5], on=ON, k=K, seeds=[0], max_cells=0, store=store)
    assert len(made) == 100 + 2 * len(some) - 5 + 2


def test_the_means_and_deviations_are_those_of_the_starts(cells, plan):
    long = study.run(cells, [Variant("AE_NMF"), Variant("PCA")], k=K, seeds=[0, 1, 2], max_cells=0)
    table, of = study.summarize(long), long[long["Model"] == "AE_NMF"]
    assert list(table["Model"]) == ["AE_NMF", "PCA"]
    assert list(table["n_starts"]) == [3, 3]
    assert table.loc[0, "NMI_type"] == pytest.approx(of["NMI_type"].mean())
    assert table.loc[0, "NMI_type_std"] == pytest.approx(of["NMI_type"].std(ddof=1))
    shown = study.format_table(table, ["NMI_type", "unseen_knn_on"])
    assert shown.loc[("donor_id", "AE_NMF"), "unseen_knn_on"] == ""
    assert shown.loc[("donor_id", "AE_NMF"), "NMI_type"].startswith(f"{of['NMI_type'].mean():.3f} ± ")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"yardsticks": ["UMAP"]}, "yardsticks holds 'UMAP': there are 'Types', 'PCA', 'Harmony', "),
        ({"strengths": [0.0]}, "strengths = [0.0]"),
        ({"strengths": []}, "strengths = []"),
        (
            {"strengths": [0.2, 0.2]},
            "strengths = [0.2, 0.2], at = 0.2: one or more above 0 is expected, and none twice",
        ),
        ({"at": 0.0}, "at = 0.0"),
        ({"labels": ["celltype"]}, "['celltype']: one or more of 'cell_type', 'clusters', 'none'"),
        ({"gene_weights": ["all"]}, "['all']: one or more of 'none', 'shared'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changed, told):
    given = {
        "strengths": [0.2],
        "at": 0.2,
        "labels": ["cell_type"],
        "gene_weights": ["none"],
        "yardsticks": [],
    } | changed
    with pytest.raises(ValueError, match=re.escape(told)):
        variants.plan(**given)


@pytest.mark.parametrize(
    ("name", "module", "words"), [("Harmony", "harmonypy", "harmonypy"), ("LinearSCVI", "scvi", "scvi-tools")]
)
def test_without_its_package_a_yardstick_says_what_to_install(monkeypatch, name, module, words):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"pip install {words}, or leave it out of yardsticks"):
        variants.plan([0.2], at=0.2, labels=["none"], gene_weights=["none"], yardsticks=[name])


def test_the_types_alone_tell_of_donors_what_their_shares_of_the_types_do(cells):
    """Alike, kNN guesses; where a donor has one type alone, its name is read from it."""
    alike = study.run(cells, [Variant("Types")], on=["condition"], k=K, seeds=[0], max_cells=0).iloc[0]
    assert (alike["knn_type"], alike["unseen_knn_type"]) == (1, 1)
    assert alike["knn_on"] == pytest.approx(0.5, abs=0.1)
    unlike = cells.copy()
    unlike.obs["condition"] = np.where(unlike.obs["cell_type"] == "t0", "one", "other")
    assert study.run(unlike, [Variant("Types")], on=["condition"], k=K, seeds=[0], max_cells=0)["knn_on"].iloc[0] == 1
    some = cells.copy()
    some.obs["cell_type"] = some.obs["cell_type"].astype(object).where(np.arange(300) > 9, " ")
    assert np.abs(baselines.types(some, 0).H[:10]).max() < 0.5


def test_the_counts_come_back_from_the_filtered_values():
    raw = sparse_random(200, 50, density=0.4, format="csr", random_state=0, dtype=np.float32)
    raw.data = np.ceil(raw.data**4 * 3000)
    raw = hstack([csr_matrix(np.ones((200, 1), np.float32)), raw]).tocsr()  # every cell has a gene of one count
    X = csr_matrix(raw.multiply(1e4 / raw.sum(1)), dtype=np.float32).log1p()
    found = baselines.counts(X)
    np.testing.assert_array_equal(found.toarray(), raw.toarray())
    X.data[X.indptr[7]] *= 1.3
    with pytest.raises(ValueError, match=r"counts of 1 of 200 cells cannot be told .*: leave LinearSCVI out"):
        baselines.counts(X)


@pytest.mark.skipif(not importlib.util.find_spec("scvi"), reason="needs scvi-tools")
def test_linear_scvi_takes_an_effect_out_and_embeds_cells_of_donors_it_has_not_seen(cells):
    given = conditioned(cells)
    found = variants.VariantFitter(given, {"condition": given.obs["condition"].to_numpy(str)}, K, 0).fit(
        Variant("LinearSCVI"), "condition"
    )
    assert found.H.shape == (300, K)
    other = given.copy()
    other.obs["donor_id"] = "new"
    np.testing.assert_allclose(found.transform(other), found.H, atol=1e-4)
    assert study.scatter(found.H, given.obs) < 0.5 * study.scatter(baselines.pca(given, K, 0).H, given.obs)


def test_a_column_that_is_not_there_and_too_few_donors_are_told(cells, plan):
    with pytest.raises(ValueError, match="obs has no column 'batch': it has 'donor_id', 'cell_type', 'condition'"):
        study.run(cells, plan, on=["donor_id+batch"], k=K)
    four = cells[cells.obs["donor_id"].isin(["d0", "d1", "d2", "d3"])].copy()
    one_out = study.run(four, plan[:1], on=["donor_id"], k=K, seeds=[0], max_cells=0)
    assert one_out["unseen_NMI_on"].isna().all() and one_out["unseen_NMI_type"].notna().all()
    two = cells[cells.obs["donor_id"].isin(["d0", "d1"])].copy()
    with pytest.raises(ValueError, match="2 donors: a third is held out"):
        study.run(two, plan, on=["condition"], k=K)


def test_the_figure_draws_each_model_once_a_panel(long):
    table = study.summarize(long)
    points = conditioning.drawn(table)
    assert len(points) == 3 * len(table) - 2  # Harmony has none on donors held out
    fig = conditioning.conditioning(table, k=K)
    panels = {ax.get_label(): ax for ax in fig.axes if ax.get_label() != "key"}
    assert set(panels) == {f"{on} {score}" for on in ON for score in conditioning.PANELS}
    for (on, score), of in points.groupby(["on", "score"]):
        drawn = [tuple(bar.lines[0].get_xydata()[0]) for bar in panels[f"{on} {score}"].containers]
        models = of[of["Model"] != "Types"]
        assert sorted(drawn) == sorted(zip(models["on_value"], models["type"], strict=True))
        (dotted,) = [line for line in panels[f"{on} {score}"].lines if line.get_linestyle() == ":"]
        assert set(dotted.get_xdata()) == set(of["on_value"][of["Model"] == "Types"])


def test_a_table_that_is_none_of_a_study_is_refused(long):
    with pytest.raises(ValueError, match="lacks 'NMI_on'"):
        conditioning.conditioning(study.summarize(long).drop(columns="NMI_on"))
    with pytest.raises(ValueError, match="has no row"):
        conditioning.conditioning(study.summarize(long)[:0])


def test_cells_without_a_type_are_in_no_score_against_it(cells):
    some = cells.copy()
    none = np.random.default_rng(2).random(some.n_obs) < 0.3
    some.obs["cell_type"] = some.obs["cell_type"].mask(none)
    found = study.run(some, [Variant("AE_NMF")], on=["condition"], k=K, seeds=[0], max_cells=0).iloc[0]
    H = variants.VariantFitter(some, {}, K, 0).fit(Variant("AE_NMF"), "").H
    obs = some.obs[["cell_type"]].assign(donor_id=some.obs["condition"])
    assert found["scatter"] == pytest.approx(study.scatter(H[~none], obs[~none]), rel=1e-6)
    whole = study.run(cells, [Variant("AE_NMF")], on=["condition"], k=K, seeds=[0], max_cells=0).iloc[0]
    assert found["unseen_knn_type"] > whole["unseen_knn_type"] - 0.1  # a class of those without would cost a third


def test_a_column_that_is_empty_for_some_cells_or_hangs_on_the_donor_is_refused_before_any_fit(
    cells, plan, monkeypatch
):
    monkeypatch.setattr(variants.VariantFitter, "fit", None)
    holes, tied = cells.copy(), cells.copy()
    holes.obs["condition"] = holes.obs["condition"].mask(np.arange(300) < 3)
    with pytest.raises(ValueError, match=r"obs\['condition'\] is empty for 3 of 300 cells"):
        study.run(holes, plan, on=["condition"], k=K)
    tied.obs["batch"] = np.where(tied.obs["donor_id"] == "d0", "one", "other")
    with pytest.raises(ValueError, match=r"batch is 'other' for all donors that seed . leaves in"):
        study.run(tied, plan, on=["batch"], k=K)


def test_a_column_more_or_other_code_makes_what_is_new(cells, tmp_path, monkeypatch):
    made, scores = [], study._scores
    monkeypatch.setattr(study, "_scores", lambda *given: made.append(1) or scores(*given))
    given = {"k": K, "seeds": [0], "max_cells": 0, "store": tmp_path / "scores.csv"}
    for on, new in ((["donor_id"], 1), (["condition", "donor_id"], 1), (["donor_id"], 0)):
        made.clear()
        study.run(cells, [Variant("PCA")], on=on, **given)
        assert len(made) == new
    monkeypatch.setattr(study, "_CODE", ("models",))
    study.run(cells, [Variant("PCA")], on=["donor_id"], **given)
    assert len(made) == 1
