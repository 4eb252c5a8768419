"""Embeddings of other methods in notebook 06: PCA and Harmony by name, planted embeddings, unchanged model scores."""

import sys
import tomllib
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import jupytext
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import random as sparse_random
from sklearn.ensemble import RandomForestClassifier

from aenmf_lib import AENMF, BaseNMF, results
from aenmf_lib.data.files import write_h5ad
from aenmf_lib.data.tables import read_table
from aenmf_lib.metrics import baselines, classifiers, knn, neighbors
from aenmf_lib.metrics.classifiers import CLASSIFIERS, FOREST
from aenmf_lib.models.penalties import between_donor_variance

NOTEBOOK = Path(__file__).parents[2] / "notebooks/06_benchmarks.py"
MODELS = ["AE_NMF", "Base_NMF"]
PUBLISHED = [f"{part}_{label}.csv" for part in ("clustering", "classification") for label in ("cell_type", "donor_id")]
N, K = 320, 5


@pytest.fixture(scope="module")
def folder(planted, tmp_path_factory) -> Path:
    """A folder with 80 simulated cells of each of four types, and the results of two models."""
    folder = tmp_path_factory.mktemp("run")
    types = planted[0].obs["cell_type"]
    rows = [np.flatnonzero(types == name)[:320:4] for name in types.value_counts().index[:4]]
    cells = planted[0][:, ::4].copy()[np.sort(np.concatenate(rows))].copy()
    write_h5ad(cells, folder / "filtered.h5ad")
    for model in (AENMF, BaseNMF):
        results.write(folder / f"{model.name}.h5ad", model(k=K, max_iter=20).fit(cells), cells)
    return folder


@pytest.fixture(scope="module")
def embeddings(folder):
    return results.read_embeddings([folder / f"{model}.h5ad" for model in MODELS])


@pytest.fixture
def add(embeddings, folder, tmp_path):
    """Add baselines of the cells of the run, which are recorded in `tmp_path`."""

    def add(*names, of=embeddings, cells=folder / "filtered.h5ad", **options):
        return baselines.add_baselines(of, names, cells, tmp_path / "baselines.h5ad", **options)

    return add


@pytest.fixture
def counted(monkeypatch):
    """What is computed, in order."""
    computed, pca, harmony = [], baselines.pca, baselines.harmony
    monkeypatch.setattr(baselines, "pca", lambda *args: computed.append("PCA") or pca(*args))
    monkeypatch.setattr(baselines, "harmony", lambda *args: computed.append("Harmony") or harmony(*args))
    return computed


# ---- notebook 06
def run_notebook(folder: Path, out: Path, **values) -> Path:
    """Run the cells of notebook 06 with these values, with forests of two trees and without UMAP."""
    code = [cell.source for cell in jupytext.read(NOTEBOOK).cells if cell.cell_type == "code"]
    values |= {"model_paths": [str(folder / f"{model}.h5ad") for model in MODELS], "out_dir": str(out)}
    values |= {"cells_path": str(folder / "filtered.h5ad"), "n_jobs": 1, "clustering_seeds": [0, 1], "max_cells": 0}
    values |= {"resolutions": [0.4, 0.8], "seed": 7}
    variables: dict = {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setitem(CLASSIFIERS, FOREST, lambda seed: RandomForestClassifier(2, random_state=seed))
        patch.setattr(neighbors, "umap", lambda graph, seed: graph.Z[:, :2].astype(np.float32))
        exec(code[0], variables)
        assert values.keys() <= variables.keys()
        variables |= values
        for cell in code[1:]:
            exec(cell, variables)
    return out


@pytest.fixture(scope="module")
def runs(folder, embeddings, tmp_path_factory) -> dict[str, Path]:
    """The tables of three runs: of the models only; with baselines; and with the same baselines and others as files."""
    out = tmp_path_factory.mktemp("out")
    found = {"models": run_notebook(folder, out / "models")}
    found["baselines"] = run_notebook(folder, out / "baselines", baselines=["PCA", "Harmony"])
    file, types = found["baselines"] / "baselines.h5ad", pd.get_dummies(embeddings.obs["cell_type"]).to_numpy()
    order = np.random.default_rng(0).permutation(len(types))
    of_user = ad.AnnData(obs=embeddings.obs.iloc[order][[]])
    of_user.obsm["planted"] = types[order]
    for name in ("PCA", "Harmony"):
        of_user.obsm[f"X_{name}"] = ad.read_h5ad(file).obsm[f"X_{name}"][order]
    of_user.write_h5ad(out / "user.h5ad")
    extra = [f"PCA={out}/user.h5ad:X_PCA", f"Harmony={out}/user.h5ad:X_Harmony", f"Planted_1.0={out}/user.h5ad:planted"]
    found["extra"] = run_notebook(folder, out / "extra", extra=extra)
    return found


def tables(run: Path) -> dict[str, pd.DataFrame]:
    return {path.name: read_table(path) for path in sorted(run.glob("*.csv")) if not path.stem.endswith("_scores")}


def test_scores_of_the_models_do_not_change_with_other_embeddings(runs):
    for name in PUBLISHED:
        expected = (runs["models"] / name).read_bytes()
        assert (runs["baselines"] / name).read_bytes() == (runs["extra"] / name).read_bytes() == expected
    expected = tables(runs["models"])
    assert len(expected) == 13
    for run in ("baselines", "extra"):
        for name, table in tables(runs[run]).items():
            own = table[table["Model"].isin(MODELS)].reset_index(drop=True)
            pd.testing.assert_frame_equal(own, expected[name], check_exact=True)
        found, alone = (ad.read_h5ad(runs[which] / "umap.h5ad") for which in (run, "models"))
        for model in MODELS:
            np.testing.assert_array_equal(found.obsm[f"X_umap_{model}"], alone.obsm[f"X_umap_{model}"])


def test_other_embeddings_are_in_all_tables_but_the_published_ones(runs):
    for name, table in tables(runs["extra"]).items():
        others = [] if name in PUBLISHED else ["Harmony", "PCA", "Planted_1.0"]
        assert list(dict.fromkeys(table["Model"])) == [*MODELS, *others], name
        if name not in PUBLISHED:
            scores = table[table["Model"].isin(others)].select_dtypes("number")
            assert scores.drop(columns="AUROC_std", errors="ignore").notna().all(axis=None), name
        if "cell_type_in_training" in table:
            assert table["cell_type_in_training"].dtype == bool
            assert set(table["version"]) == {""}
    keys = {f"X_umap_{name}" for name in [*MODELS, "Harmony", "PCA", "Planted_1.0"]}
    assert set(ad.read_h5ad(runs["extra"] / "umap.h5ad").obsm) == keys


def test_baselines_by_name_and_as_files_have_the_same_scores(runs):
    found = tables(runs["extra"])
    for name, expected in tables(runs["baselines"]).items():
        table = found[name][found[name]["Model"] != "Planted_1.0"].reset_index(drop=True)
        if "version" in table:  # that of an embedding in a file is unknown
            versions = expected.groupby("Model")["version"].unique().explode().to_dict()
            known = {"PCA": f"scikit-learn {version('scikit-learn')}", "Harmony": f"harmonypy {version('harmonypy')}"}
            assert versions == dict.fromkeys(MODELS, "") | known
            expected = expected.assign(version="")
        pd.testing.assert_frame_equal(table, expected, check_exact=True)
    maps = [ad.read_h5ad(runs[run] / "umap.h5ad").obsm for run in ("extra", "baselines")]
    for name in ("PCA", "Harmony"):
        np.testing.assert_array_equal(*(coords[f"X_umap_{name}"] for coords in maps))


def test_baselines_of_the_notebook_have_the_rank_and_seed_of_the_run(runs, add):
    file = ad.read_h5ad(runs["baselines"] / "baselines.h5ad")
    assert file.uns["provenance"]["parameters"] == {"k": K, "seed": 7}
    np.testing.assert_array_equal(file.obsm["X_Harmony"], add("Harmony", seed=7).H["Harmony"])


def test_planted_types_have_perfect_scores_and_no_donor(runs):
    clusters = read_table(runs["extra"] / "clustering_long.csv")
    own = clusters[clusters["Model"] == "Planted_1.0"].groupby("label")[["ARI", "NMI"]].mean()
    assert own.loc["cell_type"].tolist() == [1, 1] and (own.loc["donor_id"] < 0.1).all()
    fits = read_table(runs["extra"] / "classification_long.csv")
    own = fits[fits["Model"] == "Planted_1.0"].groupby("label")["F1"].mean()
    assert own["cell_type"] == 1 and own["donor_id"] < 0.4
    mixing = read_table(runs["extra"] / "integration.csv").set_index(["Model", "label"])
    assert mixing.loc[("Planted_1.0", "cell_type"), "purity"] == 1


def test_run_that_starts_again_computes_no_score_and_no_baseline(folder, runs, monkeypatch, tmp_path):
    for name in ("clustering_scores.csv", "classification_scores.csv", "unseen_donors_scores.csv", "baselines.h5ad"):
        (tmp_path / name).write_bytes((runs["baselines"] / name).read_bytes())
    for module, name in ((neighbors, "leiden"), (classifiers, "fit_fold"), (knn, "probabilities")):
        monkeypatch.setattr(module, name, None)
    for name in ("pca", "harmony"):
        monkeypatch.setattr(baselines, name, None)
    run_notebook(folder, tmp_path, baselines=["PCA", "Harmony"])
    for name, table in tables(runs["baselines"]).items():
        pd.testing.assert_frame_equal(read_table(tmp_path / name), table, check_exact=True)


# ---- baselines
def test_pca_equals_that_of_the_dense_matrix(embeddings, folder, add):
    X = ad.read_h5ad(folder / "filtered.h5ad").X.toarray().astype(float)
    left, values, _ = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    H = add("PCA").H["PCA"]
    assert H.shape == (N, K) and H.dtype == np.float32
    np.testing.assert_allclose(np.abs(H), np.abs(left * values)[:, :K], atol=1e-2)


def test_harmony_removes_the_donor_from_the_components(embeddings, add):
    found = add("Harmony")
    assert list(found.H) == [*MODELS, "Harmony"]
    before, after = (between_donor_variance(H, found.obs) for H in (add("PCA").H["PCA"], found.H["Harmony"]))
    assert after < 0.7 * before


def test_baselines_are_computed_once(add, counted, tmp_path):
    first = add("PCA", "Harmony")
    assert counted == ["PCA", "Harmony"]
    written = (tmp_path / "baselines.h5ad").read_bytes()
    again = add("Harmony", "PCA")
    add("PCA")
    assert counted == ["PCA", "Harmony"] and (tmp_path / "baselines.h5ad").read_bytes() == written
    for name in first.H:
        np.testing.assert_array_equal(again.H[name], first.H[name])


def test_harmony_uses_the_recorded_components(add, counted):
    add("PCA")
    late = add("PCA", "Harmony")
    assert counted == ["PCA", "Harmony"]
    np.testing.assert_array_equal(late.H["Harmony"], add("Harmony", seed=42).H["Harmony"])


def test_other_seed_donors_or_cells_are_computed_again(add, counted, embeddings, folder, tmp_path):
    add("PCA", "Harmony")
    other = embeddings.obs["donor_id"].cat.reorder_categories(embeddings.obs["donor_id"].cat.categories[::-1])
    swapped = embeddings.obs["donor_id"].astype(str).to_numpy()[::-1]
    add("Harmony", of=results.Embeddings(embeddings.H, embeddings.obs.assign(donor_id=other), embeddings.run))
    assert counted == ["PCA", "Harmony"]  # the same donors
    add("Harmony", of=results.Embeddings(embeddings.H, embeddings.obs.assign(donor_id=swapped), embeddings.run))
    assert counted == ["PCA", "Harmony", "Harmony"]
    add("PCA", seed=1)
    assert counted[3:] == ["PCA"]
    cells = ad.read_h5ad(folder / "filtered.h5ad")
    cells.X.data[0] += 1
    write_h5ad(cells, tmp_path / "other.h5ad")
    add("PCA", seed=1, cells=tmp_path / "other.h5ad")
    assert counted[4:] == ["PCA"]


def test_no_baseline_reads_nothing(embeddings, tmp_path):
    assert baselines.add_baselines(embeddings, [], "nowhere.h5ad", tmp_path / "baselines.h5ad") is embeddings
    assert not list(tmp_path.iterdir())


def test_missing_package_is_named_before_anything_is_computed(add, monkeypatch):
    monkeypatch.setitem(sys.modules, "harmonypy", None)
    monkeypatch.setattr(baselines, "pca", None)
    with pytest.raises(
        ValueError, match=r"Harmony is not installed\. Install it with \"pip install 'harmonypy>=2\.1'\", or"
    ):
        add("PCA", "Harmony")


def test_package_that_is_too_old_is_named_before_anything_is_computed(add, monkeypatch):
    monkeypatch.setattr(baselines, "version", lambda package: "2.0.12" if package == "harmonypy" else version(package))
    monkeypatch.setattr(baselines, "pca", None)
    with pytest.raises(
        ValueError, match=r"needs harmonypy 2\.1 or newer, but harmonypy 2\.0\.12 is installed\. Install"
    ):
        add("PCA", "Harmony")


def test_oldest_versions_are_those_of_the_package():
    project = tomllib.loads((NOTEBOOK.parents[1] / "pyproject.toml").read_text())["project"]
    declared = {*project["dependencies"], *project["optional-dependencies"]["baselines"]}
    assert {f"{package}>={oldest}" for _, package, oldest in baselines._PACKAGES.values()} <= declared


def test_faults_are_reported_before_anything_is_computed(add, embeddings, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "pca", None)
    with pytest.raises(ValueError, match=r"baselines contains 'UMAP'\. Choose from 'PCA', 'Harmony'\."):
        add("UMAP")
    with pytest.raises(ValueError, match="Two embeddings have the name 'PCA'"):
        add("PCA", "PCA")
    taken = results.Embeddings(embeddings.H | {"PCA": embeddings.H["AE_NMF"]}, embeddings.obs, embeddings.run)
    with pytest.raises(ValueError, match="Two embeddings have the name 'PCA'"):
        add("PCA", of=taken)
    one = results.Embeddings(embeddings.H, embeddings.obs.assign(donor_id="d1"), embeddings.run)
    with pytest.raises(ValueError, match=r"All cells are of one donor, 'd1'.*Remove 'Harmony' from baselines"):
        add("Harmony", of=one)
    with pytest.raises(FileNotFoundError, match=r"cells_path='nowhere\.h5ad' does not exist\. PCA and Harmony must be"):
        add("PCA", "Harmony", cells="nowhere.h5ad")
    cells = ad.read_h5ad(folder / "filtered.h5ad")
    write_h5ad(cells[:300].copy(), tmp_path / "few.h5ad")
    with pytest.raises(ValueError, match=r"few\.h5ad contains 300 cells and the results files 320; 300 are in both\."):
        add("PCA", cells=tmp_path / "few.h5ad")
    (tmp_path / "baselines.h5ad").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="Or remove the file: its embeddings are computed again"):
        add("PCA")


def test_more_components_than_genes_are_an_error():
    X = sparse_random(30, 9, density=0.5, format="csr", random_state=0)
    with pytest.raises(ValueError, match=r"PCA cannot compute 9 components of 30 cells × 9 genes\. .*smaller k"):
        baselines.pca(X, 9, 0)
