"""Projection of new cells: genes, normalization, missing genes, donors that the model does not know, and the file."""

import copy
import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.optimize import nnls
from scipy.sparse import csr_matrix

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF, data, programs, results
from aenmf_lib.data import files
from aenmf_lib.programs.alignment import align_genes
from aenmf_lib.programs.missing_genes import Completion
from aenmf_lib.results.schema import OBSM, PROJECTION, PROVENANCE

MODELS = {"AE_NMF": AENMF, "CAE_NMF1": CAENMF1, "CAE_NMF2": CAENMF2, "Base_NMF": BaseNMF}
MODELS["Untied_AE_NMF"] = UntiedAENMF
K = 6
NEW = ["SIM3", "SIM5"]


@pytest.fixture(scope="module")
def counts():
    """Raw counts of all donors, in all genes that occur."""
    cells = data.simulate(n_cells=1500, n_genes=1300)[0].raw.to_adata()
    return cells[:, np.asarray((cells.X > 0).sum(axis=0)).ravel() > 5].copy()


@pytest.fixture(scope="module")
def prepared(counts):
    return data.prepare(counts, min_cells=1)


@pytest.fixture(scope="module")
def seen(prepared):
    return prepared[~prepared.obs["donor_id"].isin(NEW)].copy()


@pytest.fixture(scope="module")
def new(counts):
    return counts[counts.obs["donor_id"].isin(NEW)].copy()


@pytest.fixture(scope="module")
def fitted(seen):
    return {name: model(k=K, max_iter=30).fit(seen) for name, model in MODELS.items()}


def usages(found: AnnData, role: str = "shared") -> np.ndarray:
    name, k = results.identify(found)
    return np.asarray(found.obsm[OBSM[name][role].format(k=k)])


def report(found: AnnData) -> dict:
    return found.uns[PROVENANCE][PROJECTION]


def half_of(cells: AnnData) -> AnnData:
    return cells[:, np.random.default_rng(7).permutation(cells.n_vars)[: cells.n_vars // 2]].copy()


# ---------------------------------------------------------------- all genes
@pytest.mark.parametrize("name", MODELS)
def test_usages_are_those_of_transform_to_the_bit_whatever_the_form_and_the_order_of_genes(
    fitted, new, prepared, name, tmp_path
):
    model = fitted[name]
    expected = model.transform(prepared[new.obs_names].copy())
    shuffled = new[:, np.random.default_rng(1).permutation(new.n_vars)].copy()
    files.write_h5ad(shuffled, path := tmp_path / "new.h5ad")
    for cells in (new, shuffled, path, prepared[new.obs_names]):
        np.testing.assert_array_equal(usages(programs.project(model, cells)), expected)


def test_file_is_projected_in_blocks_with_the_same_usages(fitted, new, monkeypatch, tmp_path):
    files.write_h5ad(new, path := tmp_path / "new.h5ad")
    whole = programs.project(fitted["CAE_NMF2"], new)
    monkeypatch.setattr(
        data.CellStream.__init__, "__kwdefaults__", data.CellStream.__init__.__kwdefaults__ | {"block": 100}
    )
    blocks = programs.project(fitted["CAE_NMF2"], path)
    np.testing.assert_array_equal(usages(blocks), usages(whole))
    np.testing.assert_allclose(usages(blocks, "cond_latent"), usages(whole, "cond_latent"), rtol=1e-3, atol=1e-5)


def test_cells_are_scaled_by_the_counts_of_all_genes_of_their_file(fitted, new):
    extra = AnnData(csr_matrix(new.X.sum(axis=1) * 0.1), obs=new.obs, var=pd.DataFrame(index=["unknown gene"]))
    extra.X.data = np.rint(extra.X.data)
    wider = AnnData(csr_matrix(np.hstack([new.X.toarray(), extra.X.toarray()])), obs=new.obs)
    wider.var_names = [*new.var_names, "unknown gene"]
    found = programs.project(fitted["AE_NMF"], wider)
    expected = data.normalize(wider.X)[:, :-1].toarray() @ fitted["AE_NMF"].W_.T
    np.testing.assert_allclose(usages(found), expected, rtol=1e-5)
    assert 0.08 < report(found)["share_outside_model"] < 0.1


def test_values_that_are_normalized_in_another_way_are_refused(fitted, new):
    cells = new.copy()
    cells.X = data.normalize(new.X)
    cells.uns = {}
    programs.project(fitted["AE_NMF"], cells)
    cells.X.data = np.log1p(100 * np.expm1(cells.X.data))
    with pytest.raises(ValueError, match=r"expm1\(X\) over the genes of a cell is between 1e\+06 and 1e\+06"):
        programs.project(fitted["AE_NMF"], cells)
    cells.layers["counts"] = new.X
    assert usages(programs.project(fitted["AE_NMF"], cells)).any()
    with pytest.raises(ValueError, match="no layer 'other'"):
        programs.project(fitted["AE_NMF"], cells, layer="other")


# ---------------------------------------------------------------- names of genes
def test_genes_are_found_by_id_without_version_or_by_symbol(fitted, new):
    model, by_id = fitted["AE_NMF"], usages(programs.project(fitted["AE_NMF"], new))
    versions, symbols, column = new.copy(), new.copy(), new.copy()
    versions.var_names = [f"{name}.{i % 7}" for i, name in enumerate(new.var_names)]
    symbols.var_names = new.var["feature_name"].astype(str)
    del symbols.var["feature_name"]
    column.var = pd.DataFrame({"gene_ids": new.var_names}, index=[f"row{i}" for i in range(new.n_vars)])
    own = AnnData(new.X, obs=new.obs, var=column.var.rename(columns={"gene_ids": "my names"}))
    for cells, key, names in (
        (versions, "", "var_names = genes_, without versions"),
        (symbols, "", "var_names = symbols_"),
        (column, "", "var['gene_ids'] = genes_"),
        (own, "my names", "var['my names'] = genes_"),
    ):
        found = programs.project(model, cells, gene_name_key=key)
        assert report(found)["matched_by"] == names
        np.testing.assert_array_equal(usages(found), by_id)
        assert list(found.var_names) == list(model.genes_)


def test_counts_of_a_gene_in_two_rows_are_added_and_repeated_names_of_the_model_are_left_out(fitted, new, caplog):
    model = fitted["AE_NMF"]
    first = np.minimum(new.X[:, [0]].toarray(), 1)
    split = np.hstack([new.X.toarray(), first])
    split[:, [0]] -= first
    cells = AnnData(csr_matrix(split), obs=new.obs)
    cells.var_names = [*(f"{name}.1" for name in new.var_names), f"{new.var_names[0]}.2"]
    found = programs.project(model, cells)
    np.testing.assert_allclose(usages(found), usages(programs.project(model, new)), rtol=1e-5)

    repeated = copy.copy(model)
    repeated.genes_ = pd.Index(["same", "same", *model.genes_[2:]])
    renamed = new.copy()
    renamed.var_names = ["same", *new.var_names[1:]]
    aligned = align_genes(repeated, renamed.var[[]])
    assert aligned.n_ambiguous == 2
    assert not aligned.found[:2].any()
    assert aligned.found[2:].all()
    assert "share their name" in caplog.text


def test_symbols_of_another_species_are_not_matched_and_the_error_says_so(fitted, new):
    mouse = new.copy()
    mouse.var = pd.DataFrame(index=new.var["feature_name"].astype(str).str.lower().to_numpy())
    with pytest.raises(ValueError, match="another species"):
        programs.project(fitted["AE_NMF"], mouse)
    mouse.var = pd.DataFrame(index=[f"x{i}" for i in range(new.n_vars)])
    with pytest.raises(ValueError, match=r"share .* have 0% of the weight of its programs .*gene_name_key"):
        programs.project(fitted["AE_NMF"], mouse)


# ---------------------------------------------------------------- missing genes
def test_coverage_is_the_share_of_the_usage_that_cells_of_one_program_keep(fitted, new):
    model, some = fitted["AE_NMF"], half_of(new)
    aligned = align_genes(model, some.var, min_coverage=0)
    W = model.W_.astype(float)
    kept = np.diag(np.where(aligned.found, W, 0) @ W.T) / np.diag(W @ W.T)
    np.testing.assert_allclose(aligned.coverage, kept)
    with pytest.raises(ValueError, match=r"at least 90% is needed. Most genes of the cells are found"):
        align_genes(model, some.var, min_coverage=0.9)


@pytest.mark.parametrize("name", MODELS)
def test_completion_is_exact_where_the_reconstruction_is(seen, fitted, name):
    """Cells X = H V + c of programs without common genes: half of the genes determine the usages of all genes."""
    rng = np.random.default_rng(0)
    model, n_genes = copy.copy(fitted[name]), 60
    model.genes_ = pd.Index([f"g{i}" for i in range(n_genes)])
    model.W_ = np.zeros((K, n_genes), np.float32)
    model.W_[np.arange(n_genes) % K, np.arange(n_genes)] = rng.gamma(2, 1, n_genes)
    model.W_ /= np.linalg.norm(model.W_, axis=1, keepdims=True)
    model.symbols_ = model.U_ = None
    if name == "Untied_AE_NMF":
        model.encoder_ = model.W_
    H = rng.gamma(1, 1, (50, K))
    X = csr_matrix(H @ model.W_, dtype=np.float32)
    some = np.sort(rng.choice(n_genes, n_genes // 2, replace=False))
    aligned = align_genes(model, pd.DataFrame(index=model.genes_[some]), min_coverage=0)
    completion = Completion(model, aligned, X[:, some], totals=False)
    np.testing.assert_allclose(completion.usages(completion.select(X[:, some])), H, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_usages_with_half_of_the_genes_keep_their_scale(fitted, new, prepared, name):
    model = fitted[name]
    full = model.transform(prepared[new.obs_names].copy())
    found = programs.project(model, half_of(new), min_coverage=0.3)
    H = usages(found)
    assert H.min() >= 0
    slope = (H * full).sum(axis=0) / np.square(full).sum(axis=0)
    assert abs(np.median(slope) - 1) < 0.05
    counts = np.asarray(new.X.sum(axis=0)).ravel()
    genes = new.var_names.isin(half_of(new).var_names)
    assert report(found)["count_share"] == pytest.approx(counts[genes].sum() / counts.sum(), abs=0.03)
    kept = half_of(prepared[new.obs_names])  # normalized before the genes were removed: the totals are known
    found = programs.project(model, kept, min_coverage=0.3)
    assert report(found)["count_share"] == 1
    slope = (usages(found) * full).sum(axis=0) / np.square(full).sum(axis=0)
    assert abs(np.median(slope) - 1) < 0.05


def test_program_without_genes_does_not_make_usages_explode(fitted, new, caplog):
    model = copy.copy(fitted["AE_NMF"])
    model.W_ = model.W_ * 1.2  # not a projection
    top = np.argsort(-model.W_[0])[:300]
    some = new[:, np.setdiff1d(np.arange(new.n_vars), top)].copy()
    H = usages(programs.project(model, some, min_coverage=0))
    assert np.isfinite(H).all()
    assert H.min() >= 0
    assert H.max() < 10 * model.transform(data.normalize(new.X)).max()


# ---------------------------------------------------------------- new donors
@pytest.mark.parametrize("weights", ["none", "shared"])
def test_untied_profile_of_a_donor_of_the_fit_is_that_of_the_fit(seen, counts, weights):
    model = UntiedAENMF(k=K, max_iter=60, gene_weights=weights).fit(seen)
    found = programs.project(model, counts[seen.obs_names])
    scale = model.U_.max()
    np.testing.assert_allclose(found.varm[f"U_untied_k{K}"].T / scale, model.U_ / scale, atol=2e-5)
    some = half_of(counts[seen.obs_names])
    half = programs.project(model, some, min_coverage=0.3).varm[f"U_untied_k{K}"].T
    found = model.genes_.isin(some.var_names)
    assert np.linalg.norm((half - model.U_)[:, found]) < 0.3 * np.linalg.norm(model.U_[:, found])
    np.testing.assert_allclose(half[:, ~found], np.tile(model.U_[:, ~found].mean(axis=0), (len(half), 1)), rtol=1e-5)


def test_untied_model_without_a_penalty_projects_cells_of_one_donor(seen, new, prepared, tmp_path):
    results.write(path := tmp_path / "model.h5ad", UntiedAENMF(k=K, max_iter=5, strength=0).fit(seen), seen)
    one = new[new.obs["donor_id"] == NEW[0]].copy()
    found = programs.project(path, one)
    np.testing.assert_array_equal(usages(found), results.load_model(path).transform(prepared[one.obs_names].copy()))
    files.write_h5ad(found, out := tmp_path / "out.h5ad")
    assert results.check(out) == [] and f"U_untied_k{K}" not in found.varm


@pytest.mark.parametrize("weights", ["none", "shared"])
def test_profile_of_a_donor_of_the_fit_is_that_of_the_fit(seen, counts, weights):
    model = CAENMF1(k=K, max_iter=60, gene_weights=weights).fit(seen)
    found = programs.project(model, counts[seen.obs_names])
    assert list(found.obs["donor_id"].cat.categories) == list(model.donors_)
    scale = model.U_.max()
    np.testing.assert_allclose(found.varm[f"U_concat_gene_k{K}"].T / scale, model.U_ / scale, atol=2e-5)
    expected = model.cond_latent(seen)
    np.testing.assert_allclose(usages(found, "cond_latent"), expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_profile_of_a_new_donor_is_the_closed_form_with_the_cells_of_the_fit(fitted, prepared, new, seen):
    model = fitted["CAE_NMF1"]
    found = programs.project(model, new)
    W = model.W_.astype(float)
    for row, donor in zip(found.varm[f"U_concat_gene_k{K}"].T, NEW, strict=True):
        X = prepared[(prepared.obs["donor_id"] == donor).to_numpy()].X.toarray().astype(float)
        best = np.maximum(0, (X - X @ W.T @ W).sum(axis=0)) / (len(X) + seen.n_obs * model.lambda_U)
        np.testing.assert_allclose(row, best, atol=1e-5 * best.max())
        latent = usages(found, "cond_latent")[(new.obs["donor_id"] == donor).to_numpy()]
        np.testing.assert_allclose(latent, np.tile(row @ W.T, (len(latent), 1)), rtol=1e-4)


@pytest.mark.parametrize("weights", ["none", "shared"])
def test_programs_of_a_new_donor_are_those_of_non_negative_least_squares(seen, prepared, new, weights):
    """Model 2: minimize ‖X_d − H (W + U)‖² + n λ_U ‖U‖² over U ≥ 0, gene by gene, with scipy."""
    model = CAENMF2(k=K, max_iter=5, gene_weights=weights).fit(seen)
    found = programs.project(model, new[new.obs["donor_id"] == NEW[0]].copy())
    X = prepared[(prepared.obs["donor_id"] == NEW[0]).to_numpy()].X.toarray().astype(float)
    w = np.ones(X.shape[1]) if model.gene_weights_ is None else model.gene_weights_
    H, ridge = X @ model.encoder_.T, np.sqrt(seen.n_obs * model.lambda_U) * np.eye(K)
    rest, A = (X - H @ model.W_) * w, np.vstack([H, ridge])
    U = np.stack([nnls(A, np.concatenate([column, np.zeros(K)]))[0] for column in rest.T], axis=1)
    overlap = (np.divide(U, w, out=np.zeros_like(U), where=w > 0) * model.encoder_).sum(axis=1)
    np.testing.assert_allclose(usages(found, "cond_latent"), H * overlap, rtol=0.01, atol=0.01 * overlap.max())
    np.testing.assert_array_equal(
        usages(found, "concat_full"), np.hstack([usages(found), usages(found, "cond_latent")])
    )


def test_donor_part_of_cells_with_half_of_the_genes_is_close_to_that_of_all_genes(fitted, new):
    for name in ("CAE_NMF1", "CAE_NMF2"):
        full, some = (usages(programs.project(fitted[name], cells, min_coverage=0.3), "cond_latent")
                      for cells in (new, half_of(new)))  # fmt: skip
        assert np.linalg.norm(some - full) < 0.3 * np.linalg.norm(full)


# ---------------------------------------------------------------- labels and files
def test_labels_are_read_from_the_named_columns_and_may_be_unknown(fitted, new, caplog):
    cells = new.copy()
    cells.obs = cells.obs.rename(columns={"donor_id": "patient", "cell_type": "annotation"})
    named = programs.project(fitted["CAE_NMF1"], cells, donor_key="patient", cell_type_key="annotation")
    assert named.obs["donor_id"].equals(named.obs["patient"])
    assert named.obs["cell_type"].astype(str).equals(new.obs["cell_type"].astype(str))
    caplog.set_level(logging.INFO)
    unnamed = programs.project(fitted["CAE_NMF1"], cells)
    assert list(unnamed.obs["donor_id"].unique()) == ["new cells"]
    assert (unnamed.obs["cell_type"] == "unknown").all()
    assert "all cells are of one new donor, 'new cells'" in caplog.text
    assert "no types in obs['cell_type']" in caplog.text
    with pytest.raises(ValueError, match=r"no column 'person'.*'patient'.*DONOR_KEY"):
        programs.project(fitted["AE_NMF"], cells, donor_key="person")
    cells.obs["patient"] = cells.obs["patient"].astype(object)
    cells.obs.iloc[0, cells.obs.columns.get_loc("patient")] = None
    with pytest.raises(ValueError, match=r"obs\['patient'\] is empty for 1 of"):
        programs.project(fitted["AE_NMF"], cells, donor_key="patient")


@pytest.mark.parametrize("name", MODELS)
def test_projected_file_is_a_results_file_that_is_scored_like_others(fitted, seen, new, name, tmp_path):
    results.write(tmp_path / "model.h5ad", fitted[name], seen)
    files.write_h5ad(new, tmp_path / "new.h5ad")
    programs.project_file(tmp_path / "new.h5ad", tmp_path / "model.h5ad", out := tmp_path / "folder" / "out.h5ad")
    assert results.check(out) == []
    found = results.read_embeddings([out], "shared")
    np.testing.assert_array_equal(found.H[name], usages(programs.project(fitted[name], new)))
    assert found.obs["cell_type"].astype(str).tolist() == new.obs["cell_type"].astype(str).tolist()
    assert report(results.read(out))["n_genes_found"] == len(fitted[name].genes_)
    again = results.load_model(out)
    np.testing.assert_array_equal(again.W_, fitted[name].W_)


def test_file_without_labels_is_one_donor_named_after_the_file(fitted, seen, new, tmp_path):
    results.write(tmp_path / "model.h5ad", fitted["CAE_NMF2"], seen)
    bare = AnnData(new.X, obs=pd.DataFrame(index=new.obs_names), var=pd.DataFrame(index=new.var_names))
    files.write_h5ad(bare, tmp_path / "patient7.h5ad")
    programs.project_file(tmp_path / "patient7.h5ad", tmp_path / "model.h5ad", tmp_path / "out.h5ad")
    obs = results.read_embeddings([tmp_path / "out.h5ad"], "concat_full").obs
    assert list(obs["donor_id"].unique()) == ["patient7"]
    assert (obs["cell_type"] == "unknown").all()


@pytest.mark.parametrize("link", ["", "symlink_to", "hardlink_to"])
@pytest.mark.parametrize("source", ["new.h5ad", "model.h5ad"])
def test_input_is_not_overwritten(fitted, seen, new, tmp_path, source, link):
    results.write(tmp_path / "model.h5ad", fitted["AE_NMF"], seen)
    files.write_h5ad(new, tmp_path / "new.h5ad")
    out = tmp_path / "folder" / ".." / source
    (tmp_path / "folder").mkdir()
    if link:
        getattr(out := tmp_path / "link.h5ad", link)(tmp_path / source)
    before = files.file_info(tmp_path / source)
    with pytest.raises(ValueError, match=rf"would overwrite .*{source}, which is read. Choose another path"):
        programs.project_file(tmp_path / "new.h5ad", tmp_path / "model.h5ad", out)
    assert files.file_info(tmp_path / source) == before


def test_output_is_checked_before_the_model_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"out\.zarr cannot be written"):
        programs.project_file("none.h5ad", "none.h5ad", tmp_path / "out.zarr")


@pytest.mark.parametrize("name", MODELS)
def test_cells_without_rows_or_genes_are_refused(fitted, new, name, tmp_path):
    for empty, size in ((new[:0], f"0 cells × {new.n_vars} genes"), (new[:, :0], f"{new.n_obs} cells × 0 genes")):
        files.write_h5ad(empty, path := tmp_path / "empty.h5ad")
        for cells in (empty, path):
            with pytest.raises(ValueError, match=f"{size}. At least one of each is expected"):
                programs.project(fitted[name], cells)


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.1, "a", None])
def test_coverage_that_is_no_share_is_refused(fitted, new, value):
    with pytest.raises(ValueError, match=f"min_coverage={value!r} is not valid. Choose a number from 0 to 1"):
        programs.project(fitted["AE_NMF"], new, min_coverage=value)


@pytest.mark.parametrize("name", MODELS)
def test_genes_from_which_no_usage_follows_are_refused(fitted, new, name):
    model = copy.copy(fitted[name])
    model.W_ = model.W_.copy()
    model.W_[:, model.genes_ == new.var_names[0]] = 0
    counts = csr_matrix(np.random.default_rng(0).integers(1, 5, (new.n_obs, 2)))
    unused = AnnData(counts, obs=new.obs, var=pd.DataFrame(index=[new.var_names[0], "x"]))
    unknown = AnnData(counts, obs=new.obs, var=pd.DataFrame(index=["x", "y"]))
    for cells in (unused, unknown):
        with pytest.raises(ValueError, match=r"have 0% of the weight .* more is needed"):
            programs.project(model, cells, min_coverage=0)
    model.W_[:] = 0
    with pytest.raises(ValueError, match=f"All programs of {name} are 0"):
        programs.project(model, new[:, ::2].copy())


def test_found_genes_without_counts_are_refused(fitted, new):
    cells = AnnData(csr_matrix(new.X.sum(axis=1)), obs=new.obs, var=pd.DataFrame(index=["x"]))
    cells = AnnData(csr_matrix(np.hstack([cells.X.toarray(), np.zeros((new.n_obs, 5))])), obs=new.obs)
    cells.var_names = ["x", *new.var_names[:5]]
    with pytest.raises(ValueError, match=r"have no counts in a sample.*more genes of the model"):
        programs.project(fitted["AE_NMF"], cells, min_coverage=0)


@pytest.mark.parametrize("genes", ["all", "half"])
def test_share_of_norm_is_that_of_the_projected_cells(fitted, seen, new, prepared, tmp_path, genes):
    model, cells = fitted["AE_NMF"], new if genes == "all" else half_of(new)
    found = programs.project(model, cells, min_coverage=0.3)
    files.write_h5ad(found, out := tmp_path / "out.h5ad")
    aligned = align_genes(model, cells.var, min_coverage=0)
    X = Completion(model, aligned, data.normalize(cells.X)).select(data.normalize(cells.X)).toarray().astype(float)
    H, W = usages(found).astype(float), model.W_[:, aligned.found].astype(float)
    expected = [np.sum(np.outer(H[:, j], W[j]) ** 2) / np.sum(X**2) for j in range(K)]
    np.testing.assert_allclose(programs.program_cards(out)["share_of_norm"], expected, rtol=0.01)
    assert results.load_model(out).summary() == model.summary()  # the fit is that of the cells seen in training


# ---------------------------------------------------------------- comparison
def test_projected_cells_score_like_the_same_cells_in_training(prepared):
    table = programs.compare_projection(prepared, "AE_NMF", k=K, new_donors=NEW).set_index("cells")
    score = table["F1_cell_type"]
    assert score["new, projected"] > score["new, in training"] - 0.1  # the smallest type has a few cells
    assert score["new, by symbol"] == score["new, projected"]
    assert score["new, half of the genes"] > score["new, half of the genes, not corrected"]
    slope = table["slope"]
    assert slope["new, by symbol"] == pytest.approx(1)
    assert abs(slope["new, half of the genes"] - 1) < 0.05
    assert slope["new, half of the genes, not corrected"] < 0.8


def test_comparison_refuses_unknown_names_and_needs_two_donors_to_fit(prepared):
    with pytest.raises(ValueError, match="'NMF' is unknown"):
        programs.compare_projection(prepared, "NMF")
    for donors in (["XY"], "XY"):
        with pytest.raises(ValueError, match="contains 'XY'"):
            programs.compare_projection(prepared, new_donors=donors)
    with pytest.raises(ValueError, match="1 remain for the fit"):
        programs.compare_projection(prepared, new_donors=[f"SIM{i}" for i in range(1, 6)])
