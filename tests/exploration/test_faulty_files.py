"""Faulty and unusual files and arguments of the maps: the right values, or an error that names the file and the key."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib import data, results
from aenmf_lib.data import files
from aenmf_lib.exploration import explore
from aenmf_lib.exploration.coloring import MAX_LABELS

pytest_plugins = ["small_run"]


@pytest.fixture(scope="module")
def model(paths) -> Path:
    return next(path for path in paths[0] if path.name.startswith("ae_nmf"))


@pytest.fixture(scope="module")
def written(model):
    return results.read(model)


@pytest.fixture(scope="module")
def filtered(paths):
    return data.load(paths[2])


def rewrite(cells: AnnData, path: Path) -> Path:
    """Write a copy of cells without the record of their file."""
    cells = cells.copy()
    cells.uns.pop("input", None)
    files.write_h5ad(cells, path)
    return path


def test_genes_of_the_filtered_file_are_found_by_their_names_in_any_order(paths, model, filtered, tmp_path):
    more = np.random.default_rng(0).permutation(filtered.n_vars + 1)
    extra = AnnData(csr_matrix((600, 1), dtype=np.float32), obs=filtered.obs, var=pd.DataFrame(index=["EXTRA"]))
    wide = AnnData(
        csr_matrix(np.hstack([filtered.X.toarray(), extra.X.toarray()])[:, more]),
        obs=filtered.obs,
        var=pd.DataFrame(index=np.append(filtered.var_names, "EXTRA")[more]),
    )
    expected, found = (
        explore(model, cells_path=paths[2]),
        explore(model, cells_path=rewrite(wide, tmp_path / "w.h5ad")),
    )
    for maps in (expected, found):
        maps.select(np.arange(0, 600, 3))
    pd.testing.assert_frame_equal(found.tables["genes"], expected.tables["genes"])
    dense = filtered.X.toarray()
    for name in ("SYM7", filtered.var_names[7]):  # a symbol, and the name of the same gene
        np.testing.assert_array_equal(found.cells.gene(name), dense[:, 7])
        assert found.coloring(name).title.startswith(name)


def of_counts(cells):
    cells.X = (cells.X > 0).astype(np.float32) * 3


def of_counts_per_10000(cells):
    cells.X = cells.X.expm1()


def of_dense_counts(cells):
    cells.X = np.rint(cells.X.toarray())


def without_X(cells):
    del cells.X


@pytest.mark.parametrize("change", [of_counts, of_counts_per_10000, of_dense_counts, without_X])
def test_expression_that_is_not_log_normalized_is_refused_at_once(change, model, filtered, tmp_path):
    cells = filtered.copy()
    change(cells)
    path = rewrite(cells, tmp_path / "wrong.h5ad")
    with pytest.raises(ValueError, match=r"wrong\.h5ad: X .*log1p of counts per 10,000 is expected\. Pass the file of"):
        explore(model, cells_path=path)


def test_missing_genes_of_the_filtered_file_are_named(model, filtered, tmp_path):
    path = rewrite(filtered[:, 100:], tmp_path / "fewer.h5ad")
    found = rf"fewer\.h5ad has no 100 of the {filtered.n_vars} genes of the models \(first: '{filtered.var_names[0]}'\)"
    with pytest.raises(ValueError, match=found):
        explore(model, cells_path=path)


def test_models_with_other_genes_are_refused(paths, model, tmp_path):
    other = next(path for path in paths[0] if path != model)
    path = rewrite(results.read(other)[:, ::-1], tmp_path / "other.h5ad")
    with pytest.raises(ValueError, match=r"The genes of .*other\.h5ad are not those of .*Pass files of one run"):
        explore([model, path])


H, W = "H_shared_k4", "W_tied_k4"
FAULTS = {
    "columns of H": (lambda c: c.obsm.update({H: c.obsm[H][:, :3]}), r"obsm/H_shared_k4 has shape \(600, 3\); "),
    "columns of W": (lambda c: c.varm.update({W: c.varm[W][:, :3]}), r"varm/W_tied_k4 has shape \(\d+, 3\); "),
    "no H": (lambda c: c.obsm.pop(H), "obsm/H_shared_k4 does not exist; obsm has nothing"),
    "H of text": (lambda c: c.obsm.update({H: c.obsm[H].astype(str).astype(object)}), "obsm/H_shared_k4 has values of"),
    "sparse H": (lambda c: c.obsm.update({H: csr_matrix(c.obsm[H])}), "obsm/H_shared_k4 is stored as csr_matrix"),
    "H as a table": (
        lambda c: c.obsm.update({H: pd.DataFrame(c.obsm[H], c.obs_names, list("abcd"))}),
        "obsm/H_shared_k4 is stored as dataframe",
    ),
    "NaN in W": (lambda c: c.varm[W].__setitem__((0, 0), np.nan), "varm/W_tied_k4 contains 1 values that are NaN"),
    "no W": (lambda c: c.varm.clear(), r"is not a results file: The varm keys \(none\) .*Train a model on filtered"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_results_files_are_refused_at_once(fault, written, tmp_path):
    change, message = FAULTS[fault]
    cells = written.copy()
    change(cells)
    with pytest.raises(ValueError, match=rf"faulty\.h5ad:? .*{message}"):
        explore(rewrite(cells, tmp_path / "faulty.h5ad"))


def test_models_without_cells_and_filtered_files_are_no_results(paths, model, tmp_path):
    results.load_model(model).save(tmp_path / "saved.h5ad")
    with pytest.raises(ValueError, match=r"saved\.h5ad has no embedding: it is a model without cells.*results\.write"):
        explore(tmp_path / "saved.h5ad")
    with pytest.raises(ValueError, match=r"is not a results file: The varm keys \(none\)"):
        explore(paths[2])


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "1 values that are NaN"), (np.inf, "NaN or inf"), (-1, "1 neg")]
)
def test_invalid_usages_are_refused_when_they_are_read(value, message, written, tmp_path):
    cells = written.copy()
    cells.obsm[H][599, 1] = value
    found = explore(rewrite(cells, tmp_path / "faulty.h5ad"))
    for read in (
        lambda: found.cells.usage("AE_NMF", 0),
        found.figure,
        lambda: found.cells.usages("AE_NMF", np.array([599])),
    ):
        with pytest.raises(ValueError, match=rf"faulty\.h5ad: obsm/H_shared_k4 contains .*{message}.*Train the model"):
            read()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_umap_that_is_not_finite_is_refused_when_it_is_read(value, model, written, tmp_path):
    files.write_h5ad(AnnData(obs=written.obs, obsm={"X_umap_AE_NMF": np.full((600, 2), value)}), tmp_path / "umap.h5ad")
    found = explore(model, tmp_path)
    with pytest.raises(
        ValueError, match=r"umap\.h5ad: obsm/X_umap_AE_NMF contains 1200 values that are NaN or infinite"
    ):
        found.figure()


def test_umap_of_three_dimensions_is_refused_at_once(model, written, tmp_path):
    files.write_h5ad(AnnData(obs=written.obs, obsm={"X_umap_AE_NMF": np.zeros((600, 3))}), tmp_path / "umap.h5ad")
    with pytest.raises(
        ValueError, match=r"umap\.h5ad: obsm/X_umap_AE_NMF has shape \(600, 3\); \(600, 2\) is expected"
    ):
        explore(model, tmp_path)


def test_one_path_is_accepted_and_other_values_name_the_parameter(model):
    for one in (model, str(model), [model], (str(model),)):
        assert explore(one, None, None).cells.models == ["AE_NMF"]
    for arguments, name in (((3,), "model_paths"), (([model], 3), "tables_dir"), ((model, "", 3), "cells_path")):
        with pytest.raises(TypeError, match=f"{name} has 3, which is not a path. Pass a str or a Path"):
            explore(*arguments)
    for nothing in (None, "", [""]):
        with pytest.raises(ValueError, match="model_paths has an empty path"):
            explore(nothing)


def test_categories_without_cells_do_not_count_as_labels(written, tmp_path):
    cells = written.copy()
    names = [f"L{i}" for i in range(MAX_LABELS + 3)]
    cells.obs["few"] = pd.Categorical([names[i] for i in np.resize([5, 100, 202], 600)], categories=names)
    cells.obs["many"] = pd.Categorical(np.resize(names, 600), categories=[*names, "unused"])
    found = explore(rewrite(cells, tmp_path / "labels.h5ad"))
    coloring = found.coloring("few")
    assert coloring.labels == ["L5", "L100", "L202"]
    assert coloring.data[:4].tolist() == [0, 1, 2, 0]
    with pytest.raises(ValueError, match=r"obs\['many'\] has 204 labels, more than 200"):
        found.coloring("many")


def test_maps_start_with_a_column_of_few_labels(written, tmp_path):
    cells = written.copy()
    cells.obs["cell_type"] = cells.obs_names
    assert explore(rewrite(cells, tmp_path / "types.h5ad")).color == "donor_id"


def test_number_of_a_program_may_be_a_text(model):
    found = explore(model)
    pd.testing.assert_frame_equal(found.program("AE_NMF", "2")["genes"], found.program("AE_NMF", 2)["genes"])
