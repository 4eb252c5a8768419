"""The conditioning study: scores, held-out donors, resuming, invalid arguments and baselines."""

import importlib.util
import re
import sys
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix, hstack
from scipy.sparse import random as sparse_random
from sklearn.decomposition import NMF
from sklearn.metrics import f1_score, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aenmf_lib import CAENMF1, CAENMF2, figures
from aenmf_lib.conditioning import baselines, study, variants
from aenmf_lib.conditioning.variants import Variant, VariantFitter
from aenmf_lib.metrics import clustering, integration, neighbors
from aenmf_lib.models.penalties import between_donor_variance
from aenmf_lib.results import RunInfo

K, ON = 4, ["donor_id", "condition"]
ONE_START = {"k": K, "seeds": [0], "max_cells": 0}


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """300 cells of three types and six donors; in half of each donor's cells ten genes are higher."""
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
    names = ["Types", "PCA", "Harmony", "Base_NMF"]
    return variants.plan([0.2], at=0.2, gene_weights=["none", "shared"], baselines=names)


@pytest.fixture(scope="module")
def long(cells, plan) -> pd.DataFrame:
    """All variants by condition, and the first of them by donor."""
    parts = (plan, ["condition"]), (plan[:6], ["donor_id"])
    return pd.concat([study.run(cells, part, on=on, **ONE_START) for part, on in parts], ignore_index=True)


def row(long: pd.DataFrame, variant: Variant, on: str = "condition") -> pd.Series:
    match = (long[list(variants.COLUMNS)] == pd.Series(asdict(variant))).all(axis=1)
    (found,) = long[match & (long["on"] == on)].index
    return long.loc[found]


def with_obs(cells: AnnData, **columns) -> AnnData:
    cells = cells.copy()
    for name, values in columns.items():
        cells.obs[name] = values
    return cells


def by_condition(cells: AnnData) -> AnnData:
    return with_obs(cells, donor_id=cells.obs["condition"])


# --------------------------------------------------------------------------------------------------------------- scores
def test_study_has_one_row_per_model_column_and_seed(long, plan):
    assert len(long) == len(plan) + 6
    assert not long.duplicated(["on", *variants.COLUMNS, "seed"]).any()
    assert not long["error"][~long["Model"].isin(["Types", "Harmony"])].isna().any()


@pytest.mark.parametrize(("kind", "strength"), [(CAENMF1, 0.0), (CAENMF1, 0.2), (CAENMF2, 0.2)])
def test_error_equals_the_error_of_the_dense_reconstruction(cells, long, kind, strength):
    model = kind(k=K, seed=0, strength=strength).fit(by_condition(cells))
    X, H, d = cells.X.toarray(), model.transform(cells), cells.obs["condition"].cat.codes.to_numpy()
    donor_part = model.U_[d] if kind is CAENMF1 else np.einsum("ij,ijp->ip", H, model.U_[d])
    expected = np.linalg.norm(X - H @ model.W_ - donor_part) / np.linalg.norm(X)
    assert row(long, Variant(kind.name, strength))["error"] == pytest.approx(expected, rel=1e-3)


def test_error_of_the_baselines_equals_the_error_of_the_dense_reconstruction(cells, long):
    X = cells.X.toarray()
    values = np.linalg.svd(X - X.mean(0), compute_uv=False)
    error_of_pca = np.sqrt(np.square(values[K:]).sum()) / np.linalg.norm(X)
    assert row(long, Variant("PCA"))["error"] == pytest.approx(error_of_pca, rel=1e-6)
    nmf = NMF(K, init="nndsvda", max_iter=100, random_state=0)
    error_of_nmf = np.linalg.norm(X - nmf.fit_transform(cells.X) @ nmf.components_) / np.linalg.norm(X)
    assert row(long, Variant("Base_NMF"))["error"] == pytest.approx(error_of_nmf, rel=1e-6)


def test_between_donor_variance_compares_donors_within_a_type():
    H = np.array([[0.0], [2.0], [5.0], [5.0]])
    obs = pd.DataFrame({"cell_type": list("aabb"), "donor_id": list("xyxy")})
    assert between_donor_variance(H, obs) == pytest.approx((1 + 1) / (9 + 1 + 4 + 4))  # the types differ: not counted
    assert between_donor_variance(H, obs.assign(cell_type="a")) == pytest.approx(4 * 0.5**2 / (9 + 1 + 4 + 4))


@pytest.mark.parametrize("donors", ["xxyy", "xxxx"])
def test_between_donor_variance_is_empty_without_two_donors_in_a_type(donors):
    obs = pd.DataFrame({"cell_type": list("aabb"), "donor_id": list(donors)})
    assert np.isnan(between_donor_variance(np.array([[0.0], [2.0], [5.0], [5.0]]), obs))


def test_unseen_scores_are_empty_where_one_donor_is_held_out(cells, plan):
    four = cells[cells.obs["donor_id"].isin(["d0", "d1", "d2", "d3"])].copy()
    scores = study.run(four, plan[:1], on=["donor_id"], **ONE_START).iloc[0]
    assert np.isnan(scores["unseen_scatter"]) and np.isnan(scores["unseen_NMI_on"])
    assert not np.isnan(scores["scatter"]) and not np.isnan(scores["unseen_NMI_type"])


def test_unseen_F1_uses_a_fit_and_a_classifier_of_the_other_donors(cells, long):
    out = study.held_out(cells.obs["donor_id"].to_numpy(), 0)
    assert 0 < out.sum() < len(out)
    assert not set(cells.obs["donor_id"][out]) & set(cells.obs["donor_id"][~out])
    model = CAENMF2(k=K, seed=0, strength=0.2).fit(by_condition(cells)[~out].copy())
    H, y = model.transform(cells), cells.obs["condition"].to_numpy(str)
    knn = make_pipeline(StandardScaler(), KNeighborsClassifier(15)).fit(H[~out], y[~out])
    expected = f1_score(y[out], knn.predict(H[out]), average="macro")
    assert row(long, Variant("CAE_NMF2", 0.2))["unseen_knn_on"] == pytest.approx(expected, abs=0.02)


def test_unseen_F1_averages_the_classes_of_the_held_out_cells():
    H = np.repeat([[0.0], [1.0], [2.0], [0.0], [1.0], [2.0]], [20, 20, 20, 4, 4, 1], axis=0)
    types = np.repeat(["a", "b", "c", "a", "b", "a"], [20, 20, 20, 4, 4, 1])  # the last cell is predicted as c
    obs = pd.DataFrame({"cell_type": types, "donor_id": "x"})
    scores = study._transfer_scores(H, obs, 60)
    assert scores["knn_type"] == pytest.approx((2 * 4 / (5 + 4) + 1) / 2)  # c would add an F1 of 0
    assert "knn_on" not in scores  # one donor: nothing to learn


def test_types_of_held_out_cells_do_not_change_the_fit(cells, long):
    out = study.held_out(cells.obs["donor_id"].to_numpy(), 0)
    types = cells.obs["cell_type"].to_numpy(str)
    types[out] = np.random.default_rng(1).permutation(types[out])
    variant = Variant("CAE_NMF1", 0.2)
    shuffled = with_obs(cells, cell_type=pd.Categorical(types))
    shuffled = study.run(shuffled, [variant], on=["condition"], **ONE_START).iloc[0]
    original = row(long, variant)
    assert shuffled["unseen_error"] == original["unseen_error"]
    assert shuffled["unseen_knn_on"] == original["unseen_knn_on"]
    assert shuffled["unseen_knn_type"] < original["unseen_knn_type"]
    assert shuffled["error"] != original["error"]


def test_unseen_F1_is_empty_for_a_label_that_held_out_donors_do_not_share(long):
    by_donor = long[long["on"] == "donor_id"]
    assert by_donor["unseen_knn_on"].isna().all()
    assert by_donor["unseen_knn_type"].notna()[by_donor["Model"] != "Harmony"].all()


def test_cells_without_a_type_are_in_no_score_against_the_type(cells, long):
    missing = np.random.default_rng(2).random(cells.n_obs) < 0.3
    partly = with_obs(cells, cell_type=cells.obs["cell_type"].mask(missing))
    scores = study.run(partly, [Variant("AE_NMF")], on=["condition"], **ONE_START).iloc[0]
    H = VariantFitter(partly, {}, K, 0).fit(Variant("AE_NMF"), "").H
    obs = partly.obs[["cell_type"]].assign(donor_id=partly.obs["condition"])
    assert scores["scatter"] == pytest.approx(between_donor_variance(H[~missing], obs[~missing]), rel=1e-6)
    # if cells without a type were a class, the score would fall by a third
    assert scores["unseen_knn_type"] > row(long, Variant("AE_NMF"))["unseen_knn_type"] - 0.1


def test_best_nmi_is_the_highest_over_the_resolutions(cells, long):
    found = row(long, Variant("PCA"))
    graph = neighbors.neighbor_graph(baselines.pca(cells, K, 0).H)
    links = neighbors.igraph_graph(graph.connectivities.indptr, graph.connectivities.indices)
    types = cells.obs["cell_type"].to_numpy(str)

    def mean_nmi(resolution: float) -> float:
        clusters = [neighbors.leiden(links, seed, resolution) for seed in (0, 1)]
        return np.mean([normalized_mutual_info_score(types, names) for names in clusters])

    nmi = {resolution: mean_nmi(resolution) for resolution in clustering.RESOLUTIONS}
    assert found["best_NMI_type"] == pytest.approx(max(nmi.values()), abs=1e-9)
    assert found["best_resolution"] == max(nmi, key=nmi.get) and len(set(nmi.values())) > 1
    assert long["best_NMI_type"].between(0, 1).all()


def test_rows_of_a_baseline_record_the_version_of_its_package(long):
    versions = long.groupby("Model")["version"].unique().explode()
    assert versions["Harmony"] == f"harmonypy {version('harmonypy')}"
    assert set(versions[["AE_NMF", "Base_NMF", "CAE_NMF1", "CAE_NMF2", "Types"]]) == {""}
    table = study.summarize(long)
    assert table.groupby("Model")["version"].first().equals(long.groupby("Model")["version"].first())


def test_scores_of_scib_metrics_are_empty_unless_requested(cells, long, monkeypatch):
    assert long[[*study.MIXING, *study.UNSEEN_MIXING]].isna().all(axis=None)
    monkeypatch.setattr(VariantFitter, "fit", None)
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(ValueError, match=r"not installed \(scib_metrics\)"):
        study.run(cells, [Variant("PCA")], on=["condition"], **ONE_START, scib=True)


@pytest.mark.skipif(not importlib.util.find_spec("scib_metrics"), reason="needs scib-metrics")
def test_scores_of_scib_metrics_are_those_of_the_embedding(cells, long):
    found = study.run(cells, [Variant("PCA")], on=["condition"], **ONE_START, scib=True).iloc[0]
    obs, H = by_condition(cells).obs, baselines.pca(cells, K, 0).H
    mixing = integration.evaluate(neighbors.neighbor_graphs({"H": H}, obs), obs, scib=True).set_index("label")
    expected = {f"{score}_on": mixing.loc["donor_id", score] for score in ("LISI", "BRAS", "CiLISI", "kBET")}
    expected["LISI_type"] = mixing.loc["cell_type", "LISI"]
    assert found[study.MIXING].to_dict() == pytest.approx(expected, rel=1e-6)
    assert (
        found[study.UNSEEN_MIXING].notna().all()
        and (found[study.UNSEEN_MIXING] != found[study.MIXING].to_numpy()).all()
    )
    pd.testing.assert_series_equal(found[study.SEEN], row(long, Variant("PCA"))[study.SEEN], check_names=False)


# ----------------------------------------------------------------------------------------------- cache, output, summary
def test_interrupted_study_resumes_and_enlarged_study_adds_rows(cells, long, plan, tmp_path, monkeypatch):
    scored, score = [], study._score

    def interrupted(*args):
        if len(scored) == 5:
            raise KeyboardInterrupt
        return counted(*args)

    def counted(*args):
        scored.append(1)
        return score(*args)

    options = {"on": ON, **ONE_START, "cache": tmp_path / "scores.csv"}
    monkeypatch.setattr(study, "_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.run(cells, plan[:4], **options)
    monkeypatch.setattr(study, "_score", counted)
    resumed = study.run(cells, plan[:4], **options)
    assert len(scored) == 4 * len(ON)
    uninterrupted = resumed[["on", *variants.COLUMNS]].merge(long)
    pd.testing.assert_frame_equal(resumed[study.SCORES], uninterrupted[study.SCORES], check_exact=True)
    study.run(cells, plan[:5], **options)
    assert len(scored) == 5 * len(ON)


def test_only_a_new_column_or_changed_code_is_scored_again(cells, tmp_path, monkeypatch):
    scored, score = [], study._score
    monkeypatch.setattr(study, "_score", lambda *args: scored.append(1) or score(*args))
    options = {**ONE_START, "cache": tmp_path / "scores.csv"}
    for on, n_new in ((["donor_id"], 1), (["condition", "donor_id"], 1), (["donor_id"], 0)):
        scored.clear()
        study.run(cells, [Variant("PCA")], on=on, **options)
        assert len(scored) == n_new
    monkeypatch.setattr(study, "_CODE", ("models",))
    study.run(cells, [Variant("PCA")], on=["donor_id"], **options)
    assert len(scored) == 1


def test_study_shows_one_progress_bar_and_prints_nothing_else(cells, capfd):
    study.run(cells, [Variant("Base_NMF"), Variant("AE_NMF")], on=["condition"], **ONE_START)
    out, err = capfd.readouterr()
    assert out == ""
    assert {line.partition(":")[0].strip() for line in re.split(r"[\r\n]+", err) if "%|" in line} == {"study"}


def test_summary_has_mean_and_deviation_over_the_seeds(cells):
    plan = [Variant("AE_NMF"), Variant("PCA")]
    long = study.run(cells, plan, k=K, seeds=[0, 1, 2], max_cells=0)
    table, rows = study.summarize(long), long[long["Model"] == "AE_NMF"]
    assert list(table["Model"]) == ["AE_NMF", "PCA"]
    assert list(table["n_starts"]) == [3, 3]
    assert table.loc[0, "NMI_type"] == pytest.approx(rows["NMI_type"].mean())
    assert table.loc[0, "NMI_type_std"] == pytest.approx(rows["NMI_type"].std(ddof=1))
    texts = study.format_table(table, ["NMI_type", "unseen_knn_on"])
    assert texts.loc[("donor_id", "AE_NMF"), "unseen_knn_on"] == ""
    assert texts.loc[("donor_id", "AE_NMF"), "NMI_type"].startswith(f"{rows['NMI_type'].mean():.3f} ± ")


def test_figure_has_a_point_per_model_and_panel(long):
    table = study.summarize(long)
    fig = figures.conditioning(table, run=RunInfo(k=K))
    assert len(fig.table) == 3 * len(table) - 2  # Harmony cannot embed held-out donors
    with pytest.raises(ValueError, match="NMI_on"):
        figures.conditioning(table.drop(columns="NMI_on"))


# ------------------------------------------------------------------------------------------------ invalid plans and obs
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"baselines": ["UMAP"]}, "baselines contains 'UMAP'. Choose from 'Types', 'PCA', 'Harmony', "),
        ({"strengths": [0.0]}, "strengths=[0.0]"),
        ({"strengths": []}, "strengths=[]"),
        (
            {"strengths": [0.2, 0.2]},
            "strengths=[0.2, 0.2] with at=0.2 is not valid. Give one or more above 0",
        ),
        ({"at": 0.0}, "at=0.0"),
        ({"gene_weights": ["all"]}, "gene_weights=['all'] is not valid. Give one or more of 'none', 'shared'"),
    ],
)
def test_invalid_plan_raises(changed, message):
    valid = {"strengths": [0.2], "at": 0.2, "gene_weights": ["none"], "baselines": []}
    with pytest.raises(ValueError, match=re.escape(message)):
        variants.plan(**(valid | changed))


@pytest.mark.parametrize(
    ("name", "module", "package"), [("Harmony", "harmonypy", "harmonypy"), ("LinearSCVI", "scvi", "scvi-tools")]
)
def test_error_names_the_package_that_a_baseline_needs(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"\"pip install '{package}>=.*'\", or remove '{name}' from baselines"):
        variants.plan([0.2], at=0.2, gene_weights=["none"], baselines=[name])


def test_invalid_column_or_too_few_donors_raise_before_any_fit(cells, plan, monkeypatch):
    monkeypatch.setattr(VariantFitter, "fit", None)
    with pytest.raises(ValueError, match=r"obs has no column 'batch'\. It has 'donor_id', 'cell_type', 'condition'"):
        study.run(cells, plan, on=["donor_id+batch"], k=K)
    two = cells[cells.obs["donor_id"].isin(["d0", "d1"])].copy()
    with pytest.raises(ValueError, match="The cells have 2 donors"):
        study.run(two, plan, on=["condition"], k=K)
    incomplete = with_obs(cells, condition=cells.obs["condition"].mask(np.arange(300) < 3))
    with pytest.raises(ValueError, match=r"obs\['condition'\] is empty for 3 of 300 cells"):
        study.run(incomplete, plan, on=["condition"], k=K)
    confounded = with_obs(cells, batch=np.where(cells.obs["donor_id"] == "d0", "one", "other"))
    with pytest.raises(ValueError, match=r"obs\['batch'\] is 'other' for all training donors of seed ."):
        study.run(confounded, plan, on=["batch"], k=K)


def test_too_small_max_cells_raises_before_any_fit(cells, plan, monkeypatch):
    monkeypatch.setattr(VariantFitter, "fit", None)
    with pytest.raises(ValueError, match=r"max_cells=29 is too small for 10 cells of each of the 3 classes of obs"):
        study.run(cells, plan, on=["condition"], k=K, max_cells=29)
    with pytest.raises(ValueError, match=r"max_cells=59 .* the 6 classes of obs\['donor_id'\]\. Set max_cells to 60"):
        study.run(cells, plan, on=["condition", "donor_id"], k=K, max_cells=59)


def test_combined_columns_with_commas_and_columns_named_with_a_plus_stay_apart(cells):
    obs = pd.DataFrame({"a": ["x, y", "x", "1", "01"], "b": ["z", "y, z", "NA", "NA"]})
    assert len(set(study._group_labels(obs, "a+b"))) == 4
    assert study._group_labels(obs, "b+a").tolist()[2:] == ["NA, 1", "NA, 01"]
    assert study._group_labels(obs.assign(**{"a+b": list("pqrs")}), "a+b").tolist() == list("pqrs")


def test_awkward_names_of_columns_and_groups_are_kept_in_the_cache(cells, tmp_path, monkeypatch):
    names = np.array(["NA", "nan", "None", "1", "01", "x "], object)
    donors = names[cells.obs["donor_id"].cat.codes]
    renamed = with_obs(cells, donor_id=donors, **{"01": cells.obs["condition"], "NA": cells.obs["condition"]})
    options = {"on": ["01", "NA", "donor_id"], **ONE_START, "cache": tmp_path / "scores.csv"}
    first = study.run(renamed, [Variant("PCA")], **options)
    assert first["on"].tolist() == ["01", "NA", "donor_id"]
    monkeypatch.setattr(VariantFitter, "fit", None)  # nothing is fitted again
    pd.testing.assert_frame_equal(study.run(renamed, [Variant("PCA")], **options), first, check_exact=True)


def test_a_missing_type_is_not_the_type_named_nan(cells):
    types = cells.obs["cell_type"].astype(object).replace({"t0": "nan"}).mask(cells.obs["cell_type"] == "t1")
    H = baselines.cell_types(with_obs(cells, cell_type=types), seed=0).H
    mean = pd.DataFrame(H).groupby(cells.obs["cell_type"].to_numpy()).mean().round()
    assert mean.to_numpy().tolist() == [[1, 0], [0, 0], [0, 1]]  # 'nan', missing, t2


def test_cells_of_one_type_have_empty_scores_against_the_type(cells):
    one = study.run(with_obs(cells, cell_type="t0"), [Variant("PCA")], on=["condition"], **ONE_START).iloc[0]
    assert one[["knn_type", "NMI_type", "unseen_knn_type"]].isna().all()
    assert one[["knn_on", "NMI_on", "unseen_knn_on"]].notna().all()


# ------------------------------------------------------------------------------------------------------------ baselines
def test_types_only_embedding_predicts_a_donor_only_from_its_composition(cells, long):
    scores = row(long, Variant("Types"))
    assert (scores["knn_type"], scores["unseen_knn_type"]) == (1, 1)
    assert scores["knn_on"] == pytest.approx(0.5, abs=0.1)
    confounded = with_obs(cells, condition=np.where(cells.obs["cell_type"] == "t0", "one", "other"))
    scores = study.run(confounded, [Variant("Types")], on=["condition"], **ONE_START).iloc[0]
    assert scores["knn_on"] == 1
    untyped = with_obs(cells, cell_type=cells.obs["cell_type"].astype(object).where(np.arange(300) > 9, " "))
    assert np.abs(baselines.cell_types(untyped, 0).H[:10]).max() < 0.5


def test_counts_are_recovered_from_the_filtered_values():
    raw = sparse_random(200, 50, density=0.4, format="csr", random_state=0, dtype=np.float32)
    raw.data = np.ceil(raw.data**4 * 3000)
    raw = hstack([csr_matrix(np.ones((200, 1), np.float32)), raw]).tocsr()  # every cell has a gene with one count
    X = csr_matrix(raw.multiply(1e4 / raw.sum(1)), dtype=np.float32).log1p()
    np.testing.assert_array_equal(baselines.recover_counts(X).toarray(), raw.toarray())
    X.data[X.indptr[7]] *= 1.3
    with pytest.raises(ValueError, match=r"counts of 1 of 200 cells cannot be recovered.*Remove 'LinearSCVI'"):
        baselines.recover_counts(X)


@pytest.mark.skipif(not importlib.util.find_spec("scvi"), reason="needs scvi-tools")
def test_linear_scvi_removes_an_effect_and_embeds_cells_of_unknown_donors(cells):
    treated = by_condition(cells)
    fitter = VariantFitter(treated, {"condition": treated.obs["condition"].to_numpy(str)}, K, 0)
    found = fitter.fit(Variant("LinearSCVI"), "condition")
    assert found.H.shape == (300, K)
    np.testing.assert_allclose(found.transform(with_obs(treated, donor_id="new")), found.H, atol=1e-4)
    uncorrected = between_donor_variance(baselines.pca(treated, K, 0).H, treated.obs)
    assert between_donor_variance(found.H, treated.obs) < 0.5 * uncorrected
