"""Embeddings of other methods: their names, their alignment with the cells of the models, and faulty files."""

import re
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import tiny_cells
from scipy.sparse import csr_matrix

from aenmf_lib import AENMF, CAENMF1, results
from aenmf_lib.data import files
from aenmf_lib.results import RunInfo, extra, skipping

K = 4


@pytest.fixture(scope="module")
def cells():
    cells = tiny_cells()
    cells.X = cells.X.astype(np.float32)
    return cells


@pytest.fixture(scope="module")
def embeddings(cells, tmp_path_factory):
    """The embedding of model 1, whose penalty used the cell types, and that of AE-NMF."""
    paths = [tmp_path_factory.mktemp("run") / f"{model.name}.h5ad" for model in (CAENMF1, AENMF)]
    for path, model in zip(paths, (CAENMF1, AENMF), strict=True):
        results.write(path, model(k=K, max_iter=3).fit(cells), cells)
    return results.read_embeddings(paths)


@pytest.fixture
def write(cells, tmp_path):
    """A function that writes an embedding of the cells, of some of them (rows) or under other names, as X_pca."""

    def write(values=None, rows=None, names=None, key="X_pca", file="pca.h5ad"):
        rows = np.arange(cells.n_obs) if rows is None else rows
        values = embedding() if values is None else values
        obs = pd.DataFrame(index=cells.obs_names[rows] if names is None else names)
        found = ad.AnnData(obs=obs)
        found.obsm[key] = values if isinstance(values, pd.DataFrame) else values[rows]
        found.write_h5ad(tmp_path / file)
        return f"PCA={tmp_path / file}:{key}"

    return write


def embedding(n: int = 60, columns: int = 7) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, columns)).astype(np.float32)


# ---- reading
def test_rows_are_found_by_the_names_of_the_cells(embeddings, write):
    expected = embedding()
    order = np.random.default_rng(2).permutation(60)
    for rows in (None, order):
        H = embeddings.with_extra([write(rows=rows)]).H["PCA"]
        np.testing.assert_array_equal(H, expected)
        assert H.dtype == np.float32 and H.flags.c_contiguous
    assert not np.array_equal(order, np.arange(60))


def test_cells_that_are_not_in_the_run_are_left_out(embeddings, write, cells, caplog):
    caplog.set_level("INFO")
    values = np.vstack([embedding(), np.full((3, 7), np.nan, np.float32)])  # even if their values are not valid
    names = [*cells.obs_names, "other1", "other2", "other3"]
    found = embeddings.with_extra([write(values, rows=np.arange(63)[::-1], names=names[::-1])])
    np.testing.assert_array_equal(found.H["PCA"], embedding())
    assert "PCA: 3 of 63 cells" in caplog.text


def test_other_embeddings_follow_the_models_and_count_as_trained_without_labels(embeddings, write):
    entry = write()
    found = embeddings.with_extra([entry.replace("PCA=", "scVI="), entry]).with_extra([entry.replace("PCA", "Harmony")])
    names = ["CAE_NMF1", "AE_NMF", "Harmony", "PCA", "scVI"]
    assert list(found.H) == list(found.run.used_cell_type) == names
    assert found.run.used_cell_type == {name: name == "CAE_NMF1" for name in names}
    table = found.annotate(pd.DataFrame({"Model": names}))
    assert table["cell_type_in_training"].tolist() == [True, False, False, False, False]
    assert table["cell_type_in_training"].dtype == bool and not table.isna().any(axis=None)
    for model in embeddings.H:
        assert found.H[model] is embeddings.H[model]
    assert list(embeddings.H) == ["CAE_NMF1", "AE_NMF"]  # the original is not changed


def test_published_tables_have_no_other_embedding(embeddings):
    scores = pd.DataFrame({"Model": ["AE_NMF", "PCA", "Base_NMF"], "ARI": [0.1, 0.2, 0.3]})
    table = embeddings.published(scores)
    assert table["Model"].tolist() == ["AE_NMF", "Base_NMF"] and table.index.tolist() == [0, 1]
    skipping = replace(embeddings, run=replace(embeddings.run, skipped={"CAE_NMF2": "one donor"}))
    assert skipping.published(scores)["Model"].tolist() == ["AE_NMF", "Base_NMF", "CAE_NMF2"]


@pytest.mark.parametrize(
    "values",
    [embedding().astype(np.float64), (embedding() * 50).astype(np.int16), embedding() > 0, embedding(columns=1)],
    ids=["float64", "integers", "true and false", "one column"],
)
def test_numbers_of_other_types_are_read(embeddings, write, values):
    np.testing.assert_array_equal(embeddings.with_extra([write(values)]).H["PCA"], values.astype(np.float32))


def test_zarr_and_a_path_with_colons_and_equal_signs_are_read(embeddings, write, tmp_path):
    write(file="a:b=c.h5ad")
    ad.read_h5ad(tmp_path / "a:b=c.h5ad").write_zarr(tmp_path / "pca.zarr")
    found = embeddings.with_extra([f"A={tmp_path}/a:b=c.h5ad:X_pca", f"B={tmp_path}/pca.zarr:X_pca"])
    for name in "AB":
        np.testing.assert_array_equal(found.H[name], embedding())


# ---- faults
@pytest.mark.parametrize("entry", ["PCA", "PCA=", "PCA=pca.h5ad", "=pca.h5ad:X_pca", "PCA=:X_pca", "PCA=pca.h5ad:", ""])
def test_entry_of_another_form_is_refused(entry):
    with pytest.raises(ValueError, match=re.escape(f"extra contains {entry!r}. Expected NAME=path:key, such as PCA=")):
        extra.parse([entry])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["my PCA"], "The name 'my PCA' of an embedding is not valid. Expected letters, digits and"),
        (["a/b"], "The name 'a/b'"),
        (["a,b"], "The name 'a,b'"),
        (["$x$"], "The name '$x$'"),
        (["-x"], "a letter or digit at the start. Choose another name."),
        (["PCA\n"], r"The name 'PCA\n'"),
        (["AE_NMF"], "has the name 'AE_NMF', which is that of the model AE_NMF. Choose another one."),
        (["ae-nmf"], "has the name 'ae-nmf', which is that of the model AE_NMF"),
        (["PCA", "scVI", "PCA"], "Two embeddings have the name 'PCA'. Every name is expected once"),
    ],
)
def test_name_that_is_not_valid_or_taken_is_refused(names, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        extra.parse([f"{name}=pca.h5ad:X_pca" for name in names])


def test_valid_names_and_places_are_kept():
    found = extra.parse(["PCA=pca.h5ad:X_pca", "scVI_2.0-b=~/a b/x.zarr:X_scVI"], taken=["Harmony"])
    assert found["PCA"] == ("pca.h5ad", "X_pca")
    path, key = found["scVI_2.0-b"]
    assert path.endswith("/a b/x.zarr") and "~" not in path and key == "X_scVI"
    with pytest.raises(ValueError, match="Two embeddings have the name 'Harmony'"):
        extra.parse(["Harmony=x.h5ad:X"], taken=["Harmony"])


ARRAYS = [
    (csr_matrix(embedding()), r"is sparse \(csr_matrix\).*Convert it with .*\.toarray\(\)"),
    (
        pd.DataFrame(embedding(), [f"cell{i}" for i in range(60)]).add_prefix("x"),
        r"is not an array \(dataframe\).*to_nu",
    ),
    (embedding().astype("U4"), "has values of type object"),
    (embedding().astype(complex), r"has values of type .*astype\('float32'\)"),
    (embedding()[:, :0], r"has shape \(60, 0\)\. Expected a dense matrix of numbers for PCA.*at least one column"),
    (embedding()[:, :, None], r"has shape \(60, 7, 1\)"),
]


@pytest.mark.parametrize(("values", "message"), ARRAYS, ids=["sparse", "table", "text", "complex", "empty", "3-d"])
def test_array_that_is_not_a_dense_matrix_of_numbers_is_refused(embeddings, write, values, message):
    entry = write(values)
    for call in (embeddings.with_extra, extra.check):
        with pytest.raises(ValueError, match=rf"pca\.h5ad: obsm\['X_pca'\] {message}"):
            call([entry])


@pytest.mark.parametrize("shape", [(60,), (59, 7), (61, 7)])
def test_array_with_another_number_of_rows_or_dimensions_is_refused(embeddings, write, tmp_path, shape):
    import h5py

    entry = write()
    with h5py.File(tmp_path / "pca.h5ad", "a") as file:
        attributes = dict(file["obsm/X_pca"].attrs)
        del file["obsm/X_pca"]
        file["obsm/X_pca"] = np.zeros(shape, np.float32)
        file["obsm/X_pca"].attrs.update(attributes)
    message = r"has shape \(60,\)" if len(shape) == 1 else rf"has {shape[0]} rows, but the file has 60 cells"
    for call in (embeddings.with_extra, extra.check):
        with pytest.raises(ValueError, match=message):
            call([entry])


@pytest.mark.parametrize(("wrong", "n"), [(np.nan, 1), (-np.inf, 2), (1e39, 1)])
def test_values_that_are_not_finite_are_reported_with_their_cell(embeddings, write, wrong, n):
    values = embedding().astype(np.float64)
    values[[30, 31][:n], 5] = wrong
    message = rf"obsm\['X_pca'\] contains {n} values .*first: cell 'cell30', column 5\).*Correct PCA, or leave it out"
    with pytest.raises(ValueError, match=message):
        embeddings.with_extra([write(values, rows=np.arange(60)[::-1])])


def test_missing_file_key_and_cells_are_reported(embeddings, write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.h5ad"):
        embeddings.with_extra([f"PCA={tmp_path}/nowhere.h5ad:X_pca"])
    entry = write()
    for call in (embeddings.with_extra, extra.check):
        with pytest.raises(ValueError, match=r"has no obsm\['X_umap'\], which PCA names; its obsm contains 'X_pca'\."):
            call([entry.replace("X_pca", "X_umap")])
    message = (
        r"2 of the 60 cells of this run are not in .*pca\.h5ad \(first: 'cell0'; the first cell of the file is 'cell1'"
    )
    with pytest.raises(ValueError, match=message):
        embeddings.with_extra([write(rows=np.r_[1:59])])


def test_repeated_names_of_cells_are_refused_only_if_rows_must_be_found_by_name(embeddings, write, cells):
    names = [*cells.obs_names[:-1], "cell0"]
    with pytest.raises(ValueError, match=r"1 names of cells are repeated in .*pca\.h5ad \(first: 'cell0'\)"):
        embeddings.with_extra([write(names=names)])
    same = replace(embeddings, obs=embeddings.obs.set_axis(names))
    np.testing.assert_array_equal(same.with_extra([write(names=names)]).H["PCA"], embedding())


def test_check_reads_no_values(write):
    extra.check([write(np.full((60, 2), np.nan, np.float32))])
    with pytest.raises(ValueError, match="Two embeddings have the name"):
        extra.check([write()], taken=["PCA"])


# ---- facts about a run
def test_run_without_cells_equals_the_run_of_the_embeddings(embeddings, cells, tmp_path, monkeypatch):
    cells = cells.copy()
    cells.uns["provenance"] = {"donor_key": "patient", "cell_type_key": "celltype", "sampled_from": 5000}
    paths = [tmp_path / f"{name}.h5ad" for name in ("b", "a", "c")]
    results.write(paths[0], AENMF(k=K, max_iter=3).fit(cells), cells)
    results.write(paths[1], CAENMF1(k=K, max_iter=3).fit(cells), cells)
    with pytest.raises(results.Skipped):
        skipping.skip(paths[2], "CAE_NMF2", cells, "why not")
    expected = results.read_embeddings(paths).run
    assert (expected.n_cells, expected.sampled_from, expected.donor_column) == (60, 5000, "patient")
    read, read_element = [], files.read_element
    monkeypatch.setattr(files, "read_element", lambda f, part, path: read.append(part) or read_element(f, part, path))
    monkeypatch.setattr(files, "read_h5ad", None)
    assert results.read_run(paths) == expected
    assert expected.used_cell_type == {"CAE_NMF1": True, "AE_NMF": False}
    assert expected.skipped == {"CAE_NMF2": "why not"}
    assert set(read) == {"var", "varm", "uns"}
    assert set(results.history(paths)["Model"]) == {"CAE_NMF1", "AE_NMF"}  # reads no cells either


def test_run_of_a_published_file_has_the_published_settings(cells, tmp_path):
    path = tmp_path / "m.h5ad"
    results.write(path, CAENMF1(k=K, max_iter=3).fit(cells), cells)
    found = ad.read_h5ad(path)
    del found.uns["provenance"]
    found.write_h5ad(path)
    assert results.read_run([path]) == results.read_embeddings([path]).run
    assert results.read_run([path]) == RunInfo(K, 60, {"CAE_NMF1": True})


def test_files_that_are_not_of_one_run_are_refused(cells, tmp_path):
    for name, k, n in (("a", K, 60), ("k3", 3, 60), ("few", K, 50)):
        some = cells[:n].copy()
        model = AENMF if name == "a" else CAENMF1
        results.write(tmp_path / f"{name}.h5ad", model(k=k, max_iter=3).fit(some), some)
    AENMF(k=K, max_iter=3).fit(cells).save(tmp_path / "model.h5ad")
    for others, message in (
        (["k3"], r"k3\.h5ad is of rank 3, but .*a\.h5ad is of rank 4"),
        (["few"], r"a\.h5ad contains 60 cells and .*few\.h5ad 50\. The same cells are expected"),
        (["a"], r"are both of AE_NMF"),
    ):
        with pytest.raises(ValueError, match=message):
            results.read_run([tmp_path / "a.h5ad", *(tmp_path / f"{name}.h5ad" for name in others)])
    with pytest.raises(ValueError, match="has no embedding: it is a model without cells"):
        results.read_run([tmp_path / "model.h5ad"])
    with pytest.raises(ValueError, match="No results file was given"):
        results.read_run([])
