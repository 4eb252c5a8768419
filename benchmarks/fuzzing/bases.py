"""Small valid files of every supported layout, with the values that reading them must return."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from fuzzing.readers import Cells, expect

N_CELLS, N_GENES, K, MIN_CELLS = 240, 90, 3, 30
_CHUNK = 700  # entries per chunk, so that every array of a matrix has several


@dataclass(frozen=True)
class Base:
    """A valid file: its path, what it contains (counts, filtered, results), its matrix, and the values it contains."""

    name: str
    path: Path
    content: str
    matrix: str
    truth: dict[str, Cells]  # reader -> what it must return


def simulate(rng: np.random.Generator) -> AnnData:
    """Return raw counts of five donors, one of them below the threshold, and four types; one gene has no counts."""
    X = rng.poisson(rng.gamma(0.4, 1.5, (N_CELLS, N_GENES)) * 0.8)
    X[:, 0] += 1  # no cell is without counts
    X[:, 7] = 0
    donor = np.array(["D1", "D2", "D3", "D4", "D5"])[rng.choice(5, N_CELLS, p=[0.3, 0.25, 0.25, 0.15, 0.05])]
    types = np.array(["B cell", "T cell", "monocyte", "NK cell"])[np.arange(N_CELLS) % 4]
    obs = pd.DataFrame(
        {"donor_id": pd.Categorical(donor), "cell_type": pd.Categorical(types), "percent": rng.random(N_CELLS)},
        index=pd.Index([f"cell_{i:03d}-{donor[i]}" for i in range(N_CELLS)], dtype=object),
    )
    var = pd.DataFrame(
        {"feature_name": [f"G{j}" for j in range(N_GENES)], "mean": X.mean(0)},
        index=pd.Index([f"ENSG{j:011d}" for j in range(N_GENES)], dtype=object),
    )
    cells = AnnData(sparse.csr_matrix(X.astype(np.float32)), obs=obs, var=var)
    cells.uns = {"title": "small", "colors": np.array(["#000000", "#ffffff"])}
    cells.obsm["X_pca"] = rng.normal(size=(N_CELLS, 2))
    return cells


def _normalized(cells: AnnData) -> sparse.csr_matrix:
    """Return log1p of counts per 10,000, (n_cells, n_genes)."""
    X = cells.X.multiply(1e4 / np.asarray(cells.X.sum(1))).tocsr()
    return X.log1p().astype(np.float32)


def _layouts(cells: AnnData) -> dict[str, tuple[AnnData, str]]:
    """Return the same cells with the counts in other places and layouts: name -> cells, key of the matrix."""

    def change(**parts) -> AnnData:
        copy = cells.copy()
        for name, value in parts.items():
            setattr(copy, name, value)
        return copy

    layered = change(X=_normalized(cells))
    layered.layers["counts"] = cells.X
    raw = change(X=_normalized(cells))
    raw.raw = cells
    return {
        "csr": (cells, "X"),
        "csc": (change(X=cells.X.tocsc()), "X"),
        "dense": (change(X=cells.X.toarray()), "X"),
        "layer": (layered, "layers/counts"),
        "raw": (raw, "raw/X"),
    }


def _filtered(cells: AnnData, folder: Path) -> AnnData:
    """Return the cells that notebook 01 would write."""
    from aenmf_lib import data, results

    source = folder / "source.h5ad"
    cells.write_h5ad(source)
    counts, where = data.read_counts(source)
    kept, _ = data.filter_cells(counts, min_cells=MIN_CELLS)
    kept.uns["provenance"] |= {"input": data.file_info(source), "counts_from": where, **results.run_info()}
    return kept


def _write_results(filtered: Path, folder: Path) -> dict[str, Path]:
    """Train two models briefly and return their results files."""
    from aenmf_lib import AENMF, CAENMF1, data, results

    cells, paths = data.load(filtered), {}
    for name, model in (("ae", AENMF(k=K, max_iter=5)), ("cae1", CAENMF1(k=K, max_iter=5))):
        paths[f"results_{name}"] = folder / f"results_{name}.h5ad"
        results.write(paths[f"results_{name}"], model.fit(cells), cells)
    return paths


def write_bases(folder: Path, suite: str, seed: int) -> list[Base]:
    """Write the valid files of a suite (h5ad or zarr) and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = simulate(np.random.default_rng([seed, 7]))
    layouts, filtered = _layouts(cells), _filtered(cells, folder)
    bases = []

    def add(name: str, written: AnnData, content: str, matrix: str, write: Callable[[AnnData, Path], None]) -> Path:
        path = folder / f"{name}.{suite}"
        write(written, path)
        bases.append(Base(name, path, content, matrix, expect(written, content, matrix, MIN_CELLS)))
        return path

    if suite == "h5ad":
        for name, options in {
            "csr": {"compression": "gzip", "chunks": (_CHUNK,)},
            "csr_lzf": {"compression": "lzf", "chunks": (_CHUNK,)},
            "csr_plain": {},
            "csc": {"compression": "gzip", "chunks": (_CHUNK,)},
            "dense": {"compression": "gzip"},
            "dense_plain": {},
            "layer": {"compression": "gzip", "chunks": (_CHUNK,)},
            "raw": {"compression": "gzip"},
        }.items():
            written, matrix = layouts[name.partition("_")[0]]
            add(name, written, "counts", matrix, lambda c, p, options=options: _write_h5ad(c, p, **options))
        path = add("filtered", filtered, "filtered", "X", _write_h5ad)
        for name, results_path in _write_results(path, folder).items():
            written = anndata.io.read_h5ad(results_path)
            bases.append(Base(name, results_path, "results", "", expect(written, "results", "", MIN_CELLS)))
        return bases
    for name, version, options in (
        ("csr_v2", 2, {"chunks": (_CHUNK,)}),
        ("csr_v3", 3, {"chunks": (_CHUNK,)}),
        ("csr_v3_sharded", 3, {"chunks": (_CHUNK,), "shards": (_CHUNK * 4,)}),
        ("csc_v2", 2, {"chunks": (_CHUNK,)}),
        ("dense_v3", 3, {}),
        ("layer_v3", 3, {"chunks": (_CHUNK,)}),
        ("raw_v2", 2, {"chunks": (_CHUNK,)}),
    ):
        written, matrix = layouts[name.partition("_")[0]]
        add(name, written, "counts", matrix, lambda c, p, v=version, o=options: _write_zarr(c, p, v, **o))
    add("filtered_v2", filtered, "filtered", "X", lambda c, p: _write_zarr(c, p, 2))
    add("filtered_v3", filtered, "filtered", "X", lambda c, p: _write_zarr(c, p, 3))
    return bases


def _write_h5ad(cells: AnnData, path: Path, **options) -> None:
    """Write cells, with HDF5 options for the arrays of the matrices only."""
    cells.write_h5ad(path, compression=options.get("compression"))
    if "chunks" in options:
        import h5py

        with h5py.File(path, "r+") as file:
            for key in ("X", "layers/counts"):
                for name in ("data", "indices", "indptr"):
                    place = f"{key}/{name}"
                    if isinstance(file.get(key), h5py.Group) and len(file[place]) > _CHUNK:
                        values, attributes = file[place][:], dict(file[place].attrs)
                        del file[place]
                        file.create_dataset(place, data=values, **options).attrs.update(attributes)


def _write_zarr(cells: AnnData, path: Path, version: int, **options) -> None:
    """Write cells as zarr, with chunks and shards for the arrays of the matrices."""
    import zarr

    from fuzzing.store import edit

    with anndata.settings.override(zarr_write_format=version):
        cells.write_zarr(path)
    if options:
        with edit(path) as group:
            for key in ("X", "layers/counts", "raw/X"):
                matrix = group.get(key)
                for name in ("data", "indices") if isinstance(matrix, zarr.Group) else ():
                    values, attributes = matrix[name][:], dict(matrix[name].attrs)
                    del matrix[name]
                    matrix.create_array(name, data=values, attributes=attributes, **options)
