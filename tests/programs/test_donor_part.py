"""Tables of the donor part: planted donor genes come first, and shares equal those of a dense reconstruction."""

import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib import AENMF, CAENMF1, CAENMF2, UntiedAENMF, data, programs, results
from aenmf_lib.data.tables import read_table
from aenmf_lib.results import schema

MODELS = {"CAE_NMF1": CAENMF1, "CAE_NMF2": CAENMF2, "Untied_AE_NMF": UntiedAENMF}


def write(folder, models, cells):
    """Write the results files of fitted models; return their paths."""
    paths = [folder / f"{model.name}.h5ad" for model in models]
    for model, path in zip(models, paths, strict=True):
        results.write(path, model, cells)
    return paths


@pytest.fixture(scope="module")
def demo_tables(planted, tmp_path_factory):
    """Both tables of each conditional model for the simulated cells."""
    cells, folder = planted[0], tmp_path_factory.mktemp("demo")
    aenmf = AENMF(k=12).fit(cells)
    fitted = [model(k=12, gene_weights="none").fit(cells, aenmf=aenmf) for model in MODELS.values()]
    return programs.write_donor_tables(write(folder, [*fitted, aenmf], cells), folder)


@pytest.mark.parametrize("model", MODELS)
def test_top_genes_of_every_donor_are_its_planted_genes(planted, demo_tables, model):
    cells, truth = planted
    genes = demo_tables[0].query("Model == @model")
    donors = list(cells.obs["donor_id"].cat.categories)
    own = (truth.donor_profiles > 0) | (truth.donor_programs > 0).any(axis=1)  # (n_donors, n_genes)
    top = genes.dropna(subset="rank")
    assert top.groupby("donor_id").size().to_dict() == dict.fromkeys(donors, 10)
    for donor, found in top.groupby("donor_id"):
        assert own[donors.index(donor)][cells.var_names.get_indexer(found["gene"])].all()
        assert found.sort_values("rank")["difference"].is_monotonic_decreasing
    others = genes[genes["rank"].isna()]  # the same genes in the other donors
    assert others["difference"].max() < top["difference"].min()
    assert list(genes["symbol"]) == list(cells.var["feature_name"].astype(str)[genes["gene"]])


def test_donors_without_a_donor_effect_have_their_donor_part_in_common(demo_tables, tmp_path):
    cells = data.filter_cells(data.simulate(donor_profiles=0, donor_programs=0)[0].raw.to_adata(), min_cells=500)[0]
    aenmf = AENMF(k=12).fit(cells)
    fitted = [model(k=12, gene_weights="none").fit(cells, aenmf=aenmf) for model in MODELS.values()]
    _, without = programs.write_donor_tables(write(tmp_path, fitted, cells), tmp_path)
    for model in MODELS:
        own = [(t["share"] - t["share_common"])[t["Model"] == model] for t in (demo_tables[1], without)]
        assert own[0].min() > 2 * own[1].max()
    # with its own decoder, model 2 reconstructs a large part even if donors do not differ
    assert without.query("Model == 'CAE_NMF2'")["share_common"].min() > 0.2


def test_untied_model_without_a_penalty_has_no_donor_part(tiny, tmp_path):
    paths = write(tmp_path, [UntiedAENMF(k=3, max_iter=5, strength=0).fit(tiny)], tiny)
    assert all(table.empty for table in programs.write_donor_tables(paths, tmp_path))


@pytest.mark.parametrize("gene_weights", ["none", "shared"])
@pytest.mark.parametrize("name", MODELS)
def test_tables_equal_a_dense_reconstruction(tiny, tmp_path, name, gene_weights):
    model = MODELS[name](k=3, max_iter=20, gene_weights=gene_weights, lambda_U=0.01).fit(tiny)
    genes, share = programs.write_donor_tables(write(tmp_path, [model], tiny), tmp_path)
    H = model.transform(tiny)
    # the donor part of all cells as if they were of donor d, (n_cells, n_genes)
    parts = [H @ U if name == "CAE_NMF2" else np.tile(U, (len(H), 1)) for U in model.U_]
    means = np.stack([part.mean(axis=0) for part in parts])
    assert list(share["donor_id"]) == list(model.donors_)
    assert list(share["n_cells"]) == list(tiny.obs["donor_id"].value_counts()[model.donors_])
    total = [(H @ model.W_ + part).sum() for part in parts]
    np.testing.assert_allclose(
        share["share"], [part.sum() / t for part, t in zip(parts, total, strict=True)], rtol=1e-5
    )
    common = len(H) * means.min(axis=0).sum()
    np.testing.assert_allclose(share["share_common"], [common / t for t in total], rtol=1e-5)
    difference = means - np.stack([np.delete(means, d, axis=0).mean(axis=0) for d in range(3)])
    row, column = np.searchsorted(model.donors_, genes["donor_id"]), tiny.var_names.get_indexer(genes["gene"])
    np.testing.assert_allclose(genes["weight"], means[row, column], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(genes["difference"], difference[row, column], rtol=1e-5, atol=1e-6)
    for d, found in genes.dropna(subset="rank").groupby("donor_id"):
        expected = np.argsort(-difference[list(model.donors_).index(d)], kind="stable")[:10]
        assert list(found.sort_values("rank")["gene"]) == list(tiny.var_names[expected])


def test_donors_that_differ_only_in_their_cell_types_do_not_differ(tiny, tmp_path):
    tiny.obs["donor_id"] = np.where(tiny.obs["cell_type"] == "T", "d1", "d2")
    model = CAENMF2(k=3, max_iter=5, strength=0).fit(tiny)
    model.U_ = model.U_[[0, 0]]
    genes, share = programs.write_donor_tables(write(tmp_path, [model], tiny), tmp_path)
    assert genes.empty
    np.testing.assert_allclose(share["share_common"], share["share"], rtol=1e-6)


def test_written_tables_are_those_returned(tiny, tmp_path):
    tiny.obs["donor_id"] = tiny.obs["donor_id"].cat.rename_categories({"d1": "01", "d2": "NA", "d3": "1"})
    paths = write(tmp_path, [model(k=3, max_iter=5).fit(tiny) for model in MODELS.values()], tiny)
    for table, name in zip(programs.write_donor_tables(paths, tmp_path), ("donor_genes", "donor_share"), strict=True):
        pd.testing.assert_frame_equal(read_table(tmp_path / f"{name}.csv"), table, check_dtype=False)
        assert set(table["donor_id"]) == {"01", "NA", "1"}


def test_model_2_is_left_out_if_its_file_has_no_donor_part(tiny, tmp_path, caplog):
    paths = write(tmp_path, [model(k=3, max_iter=5).fit(tiny) for model in MODELS.values()], tiny)
    found = results.read(paths[1])
    del found.varm[schema.DONOR_PART.format(k=3)]
    results.write_h5ad(found, paths[1])
    assert results.check(paths[1]) == []
    with caplog.at_level(logging.WARNING):
        _, share = programs.write_donor_tables(paths, tmp_path)
    assert set(share["Model"]) == {"CAE_NMF1", "Untied_AE_NMF"}
    assert "CAE_NMF2.h5ad has no varm['donor_part_k3']" in caplog.text


def test_damaged_donor_part_is_a_fault(tiny, tmp_path):
    (path,) = write(tmp_path, [CAENMF2(k=3, max_iter=5).fit(tiny)], tiny)
    found, key = results.read(path), schema.DONOR_PART.format(k=3)
    found.varm[key] = found.varm[key][:, :1]
    results.write_h5ad(found, path)
    with pytest.raises(ValueError, match=r"varm\['donor_part_k3'\] has shape \(40, 1\); 40 × 3 values are expected"):
        programs.write_donor_tables(path, tmp_path)


def test_without_conditional_model_tables_have_only_a_header(tiny, tmp_path):
    one = tiny[tiny.obs["donor_id"] == "d1"].copy()
    paths = write(tmp_path, [AENMF(k=3, max_iter=5).fit(one)], one)
    paths.append(tmp_path / "CAE_NMF1.h5ad")
    with pytest.raises(results.Skipped):
        results.require_donors(one, paths[-1], CAENMF1)
    for table, columns in zip(
        programs.write_donor_tables(paths, tmp_path),
        (schema.DONOR_GENE_COLUMNS, schema.DONOR_SHARE_COLUMNS),
        strict=True,
    ):
        assert table.empty
        assert tuple(table) == columns
    assert (tmp_path / "donor_genes.csv").read_text() == ",".join(schema.DONOR_GENE_COLUMNS) + "\n"


def test_table_of_genes_stays_small_with_many_donors(tmp_path):
    rng = np.random.default_rng(0)
    X = csr_matrix(rng.gamma(1, size=(300, 1000)) * (rng.random((300, 1000)) < 0.1))
    obs = pd.DataFrame({"donor_id": np.repeat([f"d{i}" for i in range(50)], 6)}, index=[f"c{i}" for i in range(300)])
    cells = AnnData(X, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(1000)]))
    (path,) = write(tmp_path, [CAENMF1(k=3, max_iter=2, strength=0, gamma=0.0).fit(cells)], cells)
    genes, share = programs.write_donor_tables(path, tmp_path)
    assert len(share) == 50
    assert 100 < genes["gene"].nunique() <= 200
    assert len(genes) == 50 * genes["gene"].nunique()
    assert (genes.dropna(subset="rank").groupby("donor_id").size() == 4).all()


def test_two_files_of_one_model_raise(tiny, tmp_path):
    paths = write(tmp_path, [CAENMF1(k=3, max_iter=5).fit(tiny)], tiny)
    with pytest.raises(ValueError, match=r"are both of CAE_NMF1\. Pass one file per model"):
        programs.write_donor_tables(paths * 2, tmp_path)
