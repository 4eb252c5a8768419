"""Benchmark 2 against scikit-learn pipelines, worked examples, and invariances."""

import logging
import re
import sys
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from aenmf_lib.data.tables import read_table, write_table
from aenmf_lib.metrics import classification, knn, splits
from aenmf_lib.metrics.classifiers import CLASSIFIERS, INTELEX, KNN, LOGISTIC, METRICS, OTHERS, Forest
from aenmf_lib.metrics.splits import Splits, stratified_subset

UNSEEN_DONORS = Splits(held_out="donor_id")


def simulate(n_cells: int = 240, k: int = 8, distance: float = 0.5) -> tuple[np.ndarray, pd.DataFrame]:
    """Return usages of four cell types, the last with nine cells, and two donors; `distance` is in noise deviations."""
    rng = np.random.default_rng(0)
    cell_type = np.r_[rng.choice(3, n_cells - 9, p=[0.5, 0.3, 0.2]), np.full(9, 3)]
    donor = rng.integers(2, size=n_cells)
    H = rng.normal(distance * (rng.normal(size=(4, k))[cell_type] + rng.normal(size=(2, k))[donor]), 1)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(cell_type, ["T cell", "B cell", "monocyte", "pDC"]),
            "donor_id": pd.Categorical.from_codes(donor, ["d2", "d1"]),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    shuffled = rng.permutation(n_cells)
    return H[shuffled].astype(np.float32), obs.iloc[shuffled]


def run(H: np.ndarray, obs: pd.DataFrame, **options) -> pd.DataFrame:
    """Score one embedding in this process."""
    return classification.cross_validate({"AE_NMF": H}, obs, **{"seeds": [42], "n_jobs": 1, **options})


def reference(H: np.ndarray, y: np.ndarray, seeds: list[int]) -> pd.DataFrame:
    """Return the scores of benchmark 2, computed only with scikit-learn; y contains names."""
    sizes = pd.Series(y).value_counts()
    large = np.isin(y, sizes.index[sizes >= 10])
    H, y = H[large], y[large]
    rows = []
    for seed in seeds:
        for fold, (train, test) in enumerate(StratifiedKFold(5, shuffle=True, random_state=seed).split(H, y)):
            for name, classifier in {
                "logistic_regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
                "knn": make_pipeline(StandardScaler(), KNeighborsClassifier(n_neighbors=15)),
                "random_forest": RandomForestClassifier(n_estimators=200, random_state=seed),
            }.items():
                classifier.fit(H[train], y[train])
                found, probability = classifier.predict(H[test]), classifier.predict_proba(H[test])
                one_vs_rest = [roc_auc_score(y[test] == c, probability[:, i]) for i, c in enumerate(np.unique(y))]
                rows.append(
                    {
                        "classifier": name,
                        "seed": seed,
                        "fold": fold,
                        "F1": f1_score(y[test], found, average="macro"),
                        "AUROC": np.mean(one_vs_rest),
                        "Precision": precision_score(y[test], found, average="macro", zero_division=0),
                        "Accuracy": accuracy_score(y[test], found),
                        "Recall": recall_score(y[test], found, average="macro"),
                    }
                )
    return pd.DataFrame(rows).set_index(["classifier", "seed", "fold"]).sort_index()


def test_scores_equal_those_of_scikit_learn():
    H, obs = simulate()
    seeds = [52]
    long = run(H, obs, seeds=seeds)
    for label in ("cell_type", "donor_id"):  # three classes after the rare one is left out; two classes
        expected = reference(H, obs[label].astype(str).to_numpy(), seeds)
        ours = long[long["label"] == label].set_index(["classifier", "seed", "fold"]).sort_index()
        pd.testing.assert_frame_equal(ours[expected.columns], expected, rtol=0, atol=1e-12)
        table = classification.summarize(long, label).iloc[0]
        assert table["n_rows"] == len(expected) == 15
        for metric in METRICS:
            assert table[f"MeanFold{metric}"] == pytest.approx(expected[metric].mean(), abs=1e-12)
            assert table[f"{metric}_std"] == pytest.approx(np.std(expected[metric], ddof=1), abs=1e-12)


def awkward(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return an embedding that is difficult for a neighbor search, and classes."""
    rng = np.random.default_rng(1)
    n_cells = 35 if kind == "few cells" else 1000
    H = rng.gamma(0.3, size=(n_cells, 12)).astype(np.float64 if kind in ("double", "hardly varies") else np.float32)
    if kind == "duplicates":
        H[500:] = H[:500]
    if kind == "constant columns":
        H[:, 3], H[:, 4] = 0, 7.5
    if kind == "hardly varies":
        H[:, 3] = 1 + 1e-8 * rng.normal(size=n_cells)
    if kind == "rare and large":  # deviations that differ much from fold to fold
        H[:, 5] = 0
        H[rng.choice(n_cells, 4, replace=False), 5] = 1000
    if kind == "near ties":
        H = np.round(H)
    return H, rng.integers(3, size=n_cells)


@pytest.mark.parametrize(
    "kind",
    ["single", "double", "hardly varies", "duplicates", "constant columns", "rare and large", "near ties", "few cells"],
)
def test_one_neighbor_search_gives_the_probabilities_of_each_fold(kind):
    H, y = awkward(kind)
    fold_of = splits.assign_folds(y, [42, 52], n_splits=5)
    wanted = [(seed, fold) for seed in (42, 52) for fold in range(5)]
    found = knn.probabilities(H, y, {42: fold_of[0], 52: fold_of[1]}, wanted, n_jobs=1)
    for (seed, fold), classes, probability in found:
        test = fold_of[(42, 52).index(seed)] == fold
        pipeline = make_pipeline(StandardScaler(), KNeighborsClassifier(15)).fit(H[~test], y[~test])
        np.testing.assert_array_equal(classes, pipeline.classes_)
        np.testing.assert_array_equal(probability, pipeline.predict_proba(H[test]))
    _, undecided = knn._neighbors_outside_fold(H, fold_of, n_jobs=1)
    if kind in ("single", "double", "constant columns"):  # the search decides, not the pipeline
        assert undecided.mean() < 0.1
    if kind in ("duplicates", "near ties"):
        assert undecided.any()


def donors(n_donors: int = 6) -> tuple[np.ndarray, pd.DataFrame]:
    """Return cells of several donors; one of them has a type that no other has."""
    H, obs = simulate(n_cells=400)
    obs = obs.assign(donor_id=[f"d{i % n_donors}" for i in range(len(obs))])
    obs["cell_type"] = obs["cell_type"].astype(str).where(obs["cell_type"] != "pDC", "T cell")
    obs.loc[(obs["donor_id"] == "d3") & (obs["cell_type"] == "monocyte"), "cell_type"] = "mast cell"
    return H, obs


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_forest_grown_in_parts_equals_the_whole_forest_bit_for_bit(dtype):
    rng = np.random.default_rng(0)
    X, y = rng.gamma(0.5, size=(300, 8)).astype(dtype), 2 * rng.integers(4, size=300)
    whole = RandomForestClassifier(50, random_state=42).fit(X[:200], y[:200])
    for at_once in (1, 20, 50, 99):
        parts = Forest(50, 42, at_once=at_once).fit(X[:200], y[:200])
        np.testing.assert_array_equal(parts.predict_proba(X[200:]), whole.predict_proba(X[200:]))
        np.testing.assert_array_equal(parts.classes_, whole.classes_)


def test_scores_of_unseen_donors_equal_those_of_scikit_learn(caplog):
    H, obs = donors()
    with caplog.at_level(logging.INFO):
        long = run(H, obs, labels=["cell_type"], splits=UNSEEN_DONORS, classifiers=[LOGISTIC])
    y, groups = obs["cell_type"].to_numpy(), obs["donor_id"].to_numpy()
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=42).split(H, y, groups)
    for fold, (train, test) in enumerate(folds):
        assert not set(groups[train]) & set(groups[test])
        test = test[np.isin(y[test], y[train])]
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(H[train], y[train])
        present = np.unique(y[test])
        expected = f1_score(y[test], classifier.predict(H[test]), labels=present, average="macro")
        area = np.mean(
            [
                roc_auc_score(y[test] == c, classifier.predict_proba(H[test])[:, list(classifier.classes_).index(c)])
                for c in present
            ]
        )
        ours = long[long["fold"] == fold].iloc[0]
        assert ours["F1"] == pytest.approx(expected, abs=1e-12)
        assert ours["AUROC"] == pytest.approx(area, abs=1e-12)
        assert ours["n_scored"] == len(test)
    assert re.search(r"seed 42, fold \d: \d+ of \d+ cells are left out, .* no training cell: mast", caplog.text)
    assert np.isfinite(long[list(METRICS)]).all(axis=None)


def test_fewer_donors_than_folds_give_one_fold_per_donor(caplog):
    H, obs = donors(n_donors=4)
    options = {"labels": ["cell_type"], "splits": UNSEEN_DONORS, "classifiers": [KNN]}
    with caplog.at_level(logging.INFO):
        assert len(run(H, obs, **options)) == 4
    assert "cell_type: 4 folds, because the chosen cells have only 4 donor_id" in caplog.text
    rare = obs.assign(cell_type=obs["cell_type"].where(obs["donor_id"] != "d0", "rare " + obs.index.astype(str)))
    assert len(run(H, rare, **options)) == 3  # no cell of d0 is chosen
    one = run(H, rare.assign(donor_id=(obs["donor_id"] == "d0").map({True: "x", False: "y"})), **options)
    assert re.search(r"obs\['donor_id'\] is the same for all \d+ chosen cells, so the scores are empty", caplog.text)
    assert one["fold"].tolist() == [-1] and one["F1"].isna().all()


def test_fold_of_donors_with_one_class_is_left_out_and_reported(caplog):
    H, obs = donors(n_donors=4)
    obs.loc[obs["donor_id"] == "d2", "cell_type"] = "B cell"  # this donor has only one class
    options = {"labels": ["cell_type"], "splits": Splits(n_splits=4, held_out="donor_id"), "classifiers": [KNN]}
    long = run(H, obs, **options)
    assert len(long) == 3
    assert np.isfinite(long[list(METRICS)]).all(axis=None)
    assert re.search(r"cell_type, seed 42, fold \d is left out: its 1 donor_id have fewer .* \(B cell\)", caplog.text)
    obs["cell_type"] = obs["donor_id"]
    long = run(H, obs, **options)
    assert long["fold"].tolist() == [-1] and long["F1"].isna().all()
    assert classification.per_class(long)["n_fits"].tolist() == [0] * 4


def test_scores_of_classes_equal_those_of_scikit_learn():
    H, obs = simulate()
    obs = obs[(obs["cell_type"] != "pDC").to_numpy()]
    H = H[: len(obs)]
    long = run(H, obs, labels=["cell_type"], classifiers=["random_forest"])
    y = obs["cell_type"].astype(str).to_numpy()
    expected, counts = [], 0
    for train, test in StratifiedKFold(5, shuffle=True, random_state=42).split(H, y):
        classifier = RandomForestClassifier(200, random_state=42).fit(H[train], y[train])
        found, probability = classifier.predict(H[test]), classifier.predict_proba(H[test])
        counts += confusion_matrix(y[test], found)
        area = roc_auc_score(y[test], probability, multi_class="ovr", average=None)
        expected.append([*precision_recall_fscore_support(y[test], found, zero_division=0)[:3], area])
    table = classification.per_class(long)
    table = table.sort_values("class")
    assert table["class"].tolist() == sorted(np.unique(y))
    assert table["n_cells"].tolist() == [(y == c).sum() for c in sorted(np.unique(y))]
    for column, mean, std in zip(
        ("Precision", "Recall", "F1", "AUROC"), np.mean(expected, 0), np.std(expected, 0, ddof=1), strict=True
    ):
        np.testing.assert_allclose(table[column], mean, atol=1e-12)
        np.testing.assert_allclose(table[f"{column}_std"], std, atol=1e-12)
    assert table["F1"].mean() == pytest.approx(long["F1"].mean())
    confused = classification.confusion(long).pivot_table(
        index="class", columns="predicted", values="n_cells", fill_value=0
    )
    np.testing.assert_array_equal(confused, counts)


def test_defaults_are_the_published_five_seeds_and_folds():
    H, obs = simulate()
    long = classification.cross_validate({"AE_NMF": H}, obs, classifiers=[KNN], n_jobs=1)
    for label in ("cell_type", "donor_id"):
        fits = long.loc[long["label"] == label, ["seed", "fold"]].to_numpy().tolist()
        assert fits == [[seed, fold] for seed in (42, 52, 62, 72, 82) for fold in range(5)]


def test_only_the_requested_classifiers_are_trained():
    H, obs = np.random.default_rng(0).random((80, 3)), pd.DataFrame({"cell_type": ["a", "b"] * 40})
    long = run(H, obs, labels=["cell_type"], classifiers=[KNN])
    assert set(long["classifier"]) == {KNN}
    for wrong in ([], ["svm"]):
        with pytest.raises(ValueError, match="Choose one or more of knn, logistic_regression, random_forest"):
            run(H, obs, labels=["cell_type"], classifiers=wrong)


def test_number_of_workers_changes_no_score():
    H, obs = simulate(n_cells=120)
    one, two = (run(H, obs, labels=["donor_id"], n_jobs=n) for n in (1, 2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_each_fit_uses_one_thread(monkeypatch):
    threads = []

    class Spy(KNeighborsClassifier):
        def fit(self, X, y):
            threads.extend(pool["num_threads"] for pool in threadpool_info())
            return super().fit(X, y)

    monkeypatch.setitem(CLASSIFIERS, LOGISTIC, lambda seed: Spy())
    run(*simulate(), classifiers=[LOGISTIC])
    assert threads
    assert set(threads) == {1}


def test_renaming_donors_changes_no_score():
    H, obs = simulate(distance=2)  # an odd number of neighbors and two donors: no tie that a name could break
    renamed = obs.assign(donor_id=obs["donor_id"].map({"d1": "z", "d2": "a"}))
    before, after = (run(H, o, labels=["donor_id"], classifiers=[KNN])[classification.LONG] for o in (obs, renamed))
    pd.testing.assert_frame_equal(before, after, rtol=1e-12)


def test_simulated_classes_are_predicted_and_shuffled_ones_are_not():
    H, obs = simulate(distance=4)
    obs["donor_id"] = np.random.default_rng(1).permutation(obs["donor_id"])
    scores = run(H, obs).groupby("label")[list(METRICS)].mean()
    assert scores.loc["cell_type"].min() > 0.99
    # two donors of about equal size: chance is 0.5; all folds together have 240 cells, so 0.1 is three standard errors
    assert scores.loc["donor_id", ["AUROC", "Accuracy", "Recall"]].sub(0.5).abs().max() < 0.1


def test_rows_are_in_order_and_contain_the_settings():
    H, obs = simulate()
    long = classification.cross_validate(
        {"CAE_NMF1": H, "AE_NMF": H[:, ::-1]},
        obs,
        splits=Splits(max_cells=100),
        classifiers=[KNN],
        seeds=[52, 42],
        n_jobs=1,
    )
    assert long.columns.tolist() == (
        "Model label classifier seed fold F1 AUROC Precision Accuracy Recall "
        "n_cells n_classes min_cells_per_class max_cells n_scored by_class".split()
    )
    assert long[["Model", "label", "seed", "fold"]].to_numpy().tolist() == [
        [model, label, seed, fold]
        for model in ("CAE_NMF1", "AE_NMF")
        for label in ("cell_type", "donor_id")
        for seed in (52, 42)
        for fold in range(5)
    ]
    settings = long.groupby("label")[["n_cells", "n_classes", "min_cells_per_class", "max_cells"]].agg(set)
    assert settings.loc["cell_type"].tolist() == [{100}, {3}, {10}, {100}]
    assert settings.loc["donor_id"].tolist() == [{100}, {2}, {10}, {100}]


def test_all_models_are_scored_on_the_same_cells_and_folds():
    H, obs = simulate()
    H = {"CAE_NMF1": H, "AE_NMF": H.copy()}
    options = {"splits": Splits(max_cells=60), "classifiers": [KNN], "seeds": [42], "n_jobs": 1}
    long = classification.cross_validate(H, obs, **options)
    one, other = (rows.drop(columns="Model").reset_index(drop=True) for _, rows in long.groupby("Model"))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_each_model_is_scored_on_its_own_embedding():
    H, obs = simulate()
    H = {"CAE_NMF1": H, "AE_NMF": H[:, :3]}
    options = {"classifiers": [KNN], "seeds": [42], "n_jobs": 1}
    together = classification.cross_validate(H, obs, **options)
    separate = [classification.cross_validate({model: usages}, obs, **options) for model, usages in H.items()]
    pd.testing.assert_frame_equal(together, pd.concat(separate, ignore_index=True), check_exact=True)
    assert not np.array_equal(separate[0]["AUROC"], separate[1]["AUROC"])


def labeled(**sizes: int) -> pd.DataFrame:
    """Return obs with the given number of cells of each class, in random order."""
    classes = np.random.default_rng(0).permutation(np.repeat(list(sizes), list(sizes.values())))
    return pd.DataFrame({"cell_type": pd.Categorical(classes)}, index=[f"cell{i}" for i in range(len(classes))])


def test_small_classes_are_left_out_and_logged(caplog):
    obs = labeled(a=30, b=10, c=9, d=1)
    with caplog.at_level(logging.INFO):
        cells = stratified_subset(obs, "cell_type")
    np.testing.assert_array_equal(cells, np.flatnonzero(obs["cell_type"].isin(["a", "b"])))
    assert "2 classes with fewer than 10 cells are left out, 10 of 50 cells: c (9), d (1)" in caplog.text


def test_subset_of_a_worked_example():
    # 10 per class leave 32 of 62 for the other 90 + 50 + 2 cells: 20.28, 11.27, 0.45; the largest remainder rounds up
    obs = labeled(a=100, b=60, c=12, rare=5)
    cells = stratified_subset(obs, "cell_type", Splits(max_cells=62))
    assert obs["cell_type"].iloc[cells].value_counts().to_dict() == {"a": 30, "b": 21, "c": 11, "rare": 0}
    assert (np.diff(cells) > 0).all()


def test_subset_depends_only_on_its_seed_and_not_on_class_names():
    obs = labeled(a=100, b=60, c=12)
    cells = stratified_subset(obs, "cell_type", Splits(max_cells=62))
    np.testing.assert_array_equal(stratified_subset(obs, "cell_type", Splits(max_cells=62)), cells)
    renamed = obs.assign(cell_type=obs["cell_type"].map({"a": "z", "b": "y", "c": "x"}))
    np.testing.assert_array_equal(stratified_subset(renamed, "cell_type", Splits(max_cells=62)), cells)
    assert not np.array_equal(stratified_subset(obs, "cell_type", Splits(max_cells=62, subset_seed=1)), cells)
    assert cells.max() > 120  # not the first of each class


@pytest.mark.parametrize("max_cells", [0, 172, 1000])
def test_max_cells_above_the_number_of_cells_takes_all(max_cells, caplog):
    obs = labeled(a=100, b=60, c=12)
    with caplog.at_level(logging.INFO):
        cells = stratified_subset(obs, "cell_type", Splits(max_cells=max_cells))
    np.testing.assert_array_equal(cells, np.arange(172))
    assert "subset" not in caplog.text


def test_smallest_subset_contains_enough_cells_of_each_class():
    obs = labeled(a=5000, b=10)
    cells = stratified_subset(obs, "cell_type", Splits(max_cells=20))
    assert obs["cell_type"].iloc[cells].value_counts().to_dict() == {"a": 10, "b": 10}


@pytest.mark.parametrize("max_cells", [30, 31, 33, 60, 169, 170, 171])
def test_subset_has_the_exact_size_and_enough_cells_of_each_class(max_cells):
    # After 10 cells of each class, one class has one cell left, and near both ends no class can get its share.
    obs = labeled(a=101, b=60, c=11)
    cells = stratified_subset(obs, "cell_type", Splits(max_cells=max_cells))
    assert len(np.unique(cells)) == len(cells) == max_cells
    assert (np.diff(cells) > 0).all()
    assert obs["cell_type"].iloc[cells].value_counts().min() >= 10


def test_summary_of_a_worked_example():
    metrics = {
        "F1": [0.2, 0.4, 0.6],
        "AUROC": [0.5, 0.6, 0.7],
        "Precision": [0.1, 0.4, 0.7],
        "Accuracy": [0.9, 0.9, 0.9],
        "Recall": [0.3, 0.5, 0.7],
    }
    base = pd.DataFrame({"Model": "Base_NMF", "label": "cell_type", "classifier": ["knn", "knn", "forest"], **metrics})
    other = base.assign(Model="CAE_NMF1", F1=[0.0, 0.5, 1.0])
    long = pd.concat([base, other, base.assign(label="donor_id", F1=0.0)])
    long = long.assign(n_cells=50, n_classes=3, min_cells_per_class=10, max_cells=0)
    shared = [0.6, 0.1, 0.4, 0.3, 0.9, 0.0, 0.5, 0.2, 3, 50, 3, 10]
    expected = pd.DataFrame(
        [["CAE_NMF1", 0.5, 0.5, *shared], ["Base_NMF", 0.4, 0.2, *shared]],
        columns=[
            *("Model", "MeanFoldF1", "F1_std", "MeanFoldAUROC", "AUROC_std", "MeanFoldPrecision", "Precision_std"),
            *("MeanFoldAccuracy", "Accuracy_std", "MeanFoldRecall", "Recall_std"),
            *("n_rows", "n_cells", "n_classes", "min_cells_per_class"),
        ],
    )
    pd.testing.assert_frame_equal(classification.summarize(long, "cell_type"), expected, rtol=0, atol=1e-12)

    with pytest.raises(ValueError, match="no score for 'batch'"):
        classification.summarize(long, "batch")
    long["n_classes"] = [3, 4, 3] * 3
    with pytest.raises(ValueError, match=r"different n_classes: \[3, 4\]"):
        classification.summarize(long, "cell_type")


def test_fits_that_did_not_converge_are_reported_once(monkeypatch, caplog):
    hurried = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1))
    monkeypatch.setitem(CLASSIFIERS, LOGISTIC, lambda seed: hurried)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(*simulate(), labels=["donor_id"], classifiers=[LOGISTIC, KNN])
    assert [r.levelname for r in caplog.records if "converge" in r.message] == ["WARNING"]
    assert "5 of 5 logistic regressions did not converge (first: donor_id, seed 42, fold 0, AE_NMF)" in caplog.text


def test_intelex_forest_is_named_separately(monkeypatch):
    H, obs = simulate()
    with pytest.raises(ValueError, match=r"\['oak'\]. Choose one or more of .*, random_forest, random_forest_intelex"):
        run(H, obs, classifiers=["oak"])
    monkeypatch.setitem(sys.modules, "sklearnex", None)
    with pytest.raises(ValueError, match=r"needs a package that is not installed .*scikit-learn-intelex"):
        run(H, obs, classifiers=[INTELEX])
    monkeypatch.setitem(OTHERS, INTELEX, lambda seed: RandomForestClassifier(5))
    monkeypatch.setattr("aenmf_lib.metrics.score_cache.version", lambda name: "1")
    long = run(H, obs, classifiers=[LOGISTIC, KNN, INTELEX], labels=["donor_id"])
    assert set(long["classifier"]) == {"logistic_regression", "knn", "random_forest_intelex"}


def test_other_warnings_of_a_fit_are_shown(monkeypatch):
    class Loud(KNeighborsClassifier):
        def fit(self, X, y):
            warnings.warn("listen", UserWarning, stacklevel=2)
            return super().fit(X, y)

    monkeypatch.setitem(CLASSIFIERS, LOGISTIC, lambda seed: Loud())
    with pytest.warns(UserWarning, match="listen"):
        run(*simulate(), classifiers=[LOGISTIC])


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (
            {"splits": Splits(max_cells=29)},
            "max_cells=29 is too small for 10 cells of each of the 3 classes .* Set max_cells to 30",
        ),
        (
            {"splits": Splits(min_cells_per_class=3, n_splits=10)},
            "class 'pDC' of obs\\['cell_type'\\] has 9 cells, fewer than the 10",
        ),
        ({"labels": ["batch"]}, r"no column 'batch', only \['cell_type', 'donor_id'\]"),
        ({"seeds": []}, r"The seeds are \[\]"),
        ({"seeds": [42, 42]}, r"The seeds are \[42, 42\]. Expected at least one seed, each only once"),
    ],
)
def test_settings_that_do_not_fit_the_cells_are_errors(options, found):
    with pytest.raises(ValueError, match=found):
        run(*simulate(), **options)


@pytest.mark.parametrize("empty", [np.nan, " "])
def test_missing_donors_are_an_error_with_number_and_example(empty):
    H, obs = simulate()
    obs["donor_id"] = obs["donor_id"].astype(object)
    obs.iloc[[5, 8], 1] = empty
    with pytest.raises(ValueError, match=rf"obs\['donor_id'\] is empty for 2 of 240 cells .first: '{obs.index[5]}'"):
        run(H, obs)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"max_cells": -1}, r"max_cells=-1 is too small\. Set it to 1 or more, or to 0 for all cells"),
        ({"n_splits": 0}, r"n_splits=0 is too small\. Set it to 2 or more"),
        ({"n_splits": 1}, "n_splits=1 is too small"),
        ({"min_cells_per_class": 0}, r"min_cells_per_class=0 is too small\. Set it to 1 or more"),
    ],
)
def test_splits_of_impossible_numbers_are_an_error(options, found):
    with pytest.raises(ValueError, match=found):
        Splits(**options)


def test_smallest_max_cells_is_the_limit_of_the_subset():
    _, obs = simulate()
    assert splits.smallest_max_cells(obs, "cell_type") == 30  # pDC has 9 cells
    assert splits.smallest_max_cells(obs, "cell_type", Splits(min_cells_per_class=3)) == 4 * 5  # five folds
    for choice in (Splits(), Splits(n_splits=20), Splits(min_cells_per_class=3)):
        least = splits.smallest_max_cells(obs, "cell_type", choice)
        assert len(stratified_subset(obs, "cell_type", replace(choice, max_cells=least))) == least
        with pytest.raises(
            ValueError, match=rf"max_cells={least - 1} is too small .* Set max_cells to {least} or more"
        ):
            stratified_subset(obs, "cell_type", replace(choice, max_cells=least - 1))
    assert splits.smallest_max_cells(obs.assign(cell_type="T cell"), "cell_type") == 0


@pytest.mark.parametrize("held_out", ["", "donor_id"])
def test_a_label_with_one_class_has_empty_scores_and_a_warning(held_out, caplog, tmp_path):
    H, obs = simulate()
    obs = obs.assign(cell_type="T cell")
    options = {"seeds": [42, 52], "classifiers": [KNN, LOGISTIC], "splits": Splits(held_out=held_out)}
    long = run(H, obs, **options, cache=tmp_path / "scores.csv")
    assert "obs['cell_type'] is 'T cell' for all 240 cells, so its scores are empty" in caplog.text
    types, donor = (long[long["label"] == label] for label in ("cell_type", "donor_id"))
    assert types[["classifier", "seed", "fold"]].to_numpy().tolist() == [
        [classifier, seed, -1] for classifier in (KNN, LOGISTIC) for seed in (42, 52)
    ]
    assert types[list(METRICS)].isna().all(axis=None)
    assert types[["n_cells", "n_classes", "n_scored"]].drop_duplicates().to_numpy().tolist() == [[240, 1, 0]]
    if not held_out:
        assert np.isfinite(donor[list(METRICS)]).all(axis=None)
    table = classification.summarize(long, "cell_type")
    assert table.isna().to_numpy().sum() == 2 * len(METRICS)
    assert table[["Model", "n_rows", "n_cells", "n_classes"]].to_numpy().tolist() == [["AE_NMF", 0, 240, 1]]
    rows = classification.per_class(long).query("label == 'cell_type'")
    assert rows[["class", "n_cells", "n_fits"]].to_numpy().tolist() == [["T cell", 0, 0]] * 2
    assert rows["F1"].isna().all()
    assert "cell_type" not in set(classification.confusion(long)["label"])
    again = run(H, obs, **options, cache=tmp_path / "scores.csv")  # from the file
    pd.testing.assert_frame_equal(again, long, check_exact=True)


def test_cells_of_one_type_and_one_donor_give_tables_of_empty_scores(caplog):
    H, obs = simulate()
    long = run(H, obs.assign(cell_type="T cell", donor_id="d1"), classifiers=[KNN])
    assert len(long) == 2
    assert long["F1"].isna().all()
    assert len(classification.confusion(long)) == 0
    assert classification.confusion(long).columns.tolist() == [
        *("Model", "label", "classifier", "class", "predicted", "n_cells")
    ]
    assert len(classification.per_class(long)) == 2


def test_fewer_than_two_large_classes_give_empty_scores_and_a_warning(caplog):
    H, obs = simulate()
    for least, n_classes in ((100, 1), (1000, 0)):
        caplog.clear()
        options = {"labels": ["cell_type"], "classifiers": [KNN], "splits": Splits(min_cells_per_class=least)}
        long = run(H, obs, **options)
        assert long[["fold", "n_classes"]].to_numpy().tolist() == [[-1, n_classes]]
        assert (
            f"has {n_classes} classes with at least min_cells_per_class={least} cells, of 4 (largest: 'T" in caplog.text
        )
        assert len(classification.per_class(long)) == n_classes
        assert len(classification.confusion(long)) == 0


def test_more_than_127_donors_are_in_as_many_folds():
    groups = np.repeat(np.arange(150), 2)
    y = np.tile([0, 1], 150)
    assert len(np.unique(splits.assign_folds(y, [42], 150, groups))) == 150


def test_embeddings_of_other_types_are_errors():
    H, obs = simulate()
    for wrong, kind in ((np.rint(H).astype(int), "int64"), (H > 0, "bool"), (pd.DataFrame(H), "DataFrame")):
        with pytest.raises(ValueError, match=rf"AE_NMF is of type {kind}\. Expected an array of float32 or float64"):
            run(wrong, obs)


AWKWARD = ["NA", "nan", "None", "1", "01", "x", " x", "x ", 'a"b', "a,b", "a\nb", "a\rb", "é", "$x_1$", "TRUE", "1e5"]


def test_awkward_names_of_classes_stay_apart(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(20 * len(AWKWARD)) % len(AWKWARD)
    H = np.eye(len(AWKWARD), dtype=np.float32)[y] + rng.normal(0, 0.1, (len(y), len(AWKWARD))).astype(np.float32)
    obs = pd.DataFrame({"cell_type": np.array(AWKWARD, object)[y], "donor_id": np.array(AWKWARD, object)[y]})
    for values in (obs, obs.astype("category")):
        long = run(H, values, classifiers=[KNN], cache=tmp_path / "scores.csv")
        again = run(H, values, classifiers=[KNN], cache=tmp_path / "scores.csv")
        pd.testing.assert_frame_equal(again, long, check_exact=True)
        assert set(long["n_classes"]) == {len(AWKWARD)}
        for name, table in {"c": classification.confusion(long), "p": classification.per_class(long)}.items():
            write_table(table, tmp_path / f"{name}.csv")
            read = read_table(tmp_path / f"{name}.csv")
            pd.testing.assert_frame_equal(read, table, check_exact=True)
            assert set(read["class"]) == set(AWKWARD)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 11  # every name in one row of the file


def test_renamed_classes_are_scored_again(tmp_path):
    H, obs = simulate()
    one = obs.assign(cell_type=obs["cell_type"].map({"T cell": "1", "B cell": "01"}).astype(object).fillna("NA"))
    for values, n_rows in ((one, 1), (one.replace({"cell_type": {"01": "1.0"}}), 2), (one, 2)):
        run(
            H, values, labels=["cell_type"], classifiers=[KNN], splits=Splits(n_splits=2), cache=tmp_path / "scores.csv"
        )
        assert len(read_table(tmp_path / "scores.csv")) == 2 * n_rows


def test_embeddings_with_other_cells_or_infinite_values_are_errors():
    H, obs = simulate()
    with pytest.raises(ValueError, match=r"AE_NMF has shape \(239, 8\), but obs has 240 cells"):
        run(H[1:], obs)
    H[3, 2] = np.inf
    with pytest.raises(ValueError, match=rf"1 NaN or infinite values in 1 of 240 cells .*'{obs.index[3]}', column 2"):
        run(H, obs)
    with pytest.raises(ValueError, match="no embedding"):
        classification.cross_validate({}, obs)


def test_cells_without_a_type_are_left_out_of_the_scores_for_it():
    H, obs = simulate()
    without = np.random.default_rng(1).random(len(H)) < 0.2
    some = obs.assign(cell_type=obs["cell_type"].mask(without))
    found, left = run(H, some, classifiers=[KNN]), run(H[~without], obs[~without], classifiers=[KNN])
    for label, expected in (("cell_type", left), ("donor_id", run(H, obs, classifiers=[KNN]))):
        rows = [table[table["label"] == label].reset_index(drop=True) for table in (found, expected)]
        pd.testing.assert_frame_equal(*rows)
    with pytest.raises(ValueError, match=r"obs\['cell_type'\] is empty for 240 of 240 cells"):
        run(H, obs.assign(cell_type=None))
