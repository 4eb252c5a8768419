"""Writing and reading results files: the embeddings, programs and provenance of one fitted model."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem

from aenmf_lib.data import files
from aenmf_lib.data.labels import CELL_TYPE, DONOR
from aenmf_lib.data.provenance import run_info
from aenmf_lib.results import schema
from aenmf_lib.results.schema import CELLS, OBSM, PROVENANCE, USED_CELL_TYPE

log = logging.getLogger(__name__)

_ATTRIBUTES = {"W": "W_", "E": "encoder_", "U": "U_"}  # part of varm -> attribute of the fitted model
NO_CELLS = ("has no embedding: it is a model without cells, written by model.save. To write the embeddings, use "
             "results.write(new_path, results.load_model(path), cells).")  # fmt: skip


def checkpoint_path(out: str | Path) -> Path:
    """Return the path where a fit keeps its state until the results file `out` is written."""
    return Path(out).with_suffix(".checkpoint.npz")


def write(path: str | Path, model, cells, *, donor_U: bool = False, float16: bool = False) -> None:
    """Write the results of a fitted model, without the expression matrix, and remove the fit's checkpoints.

    Parameters
    ----------
    path, model, cells
        The ``.h5ad`` file to write, a fitted model, and the cells of the fit: an AnnData or a `CellStream`. All columns
        of obs and ``var['feature_name']`` are kept. The columns of donors and cell types of the fit become
        ``donor_id`` and ``cell_type``; other columns with these names become ``donor_id_original`` … Embeddings are
        written in float32, those of a stream block by block. Programs keep the precision of the fit, so that
        `load_model` rebuilds the model.
    donor_U
        Also write U of model 2, (n_donors, k, n_genes).
    float16
        Write embeddings in float16, at half the size. Rounding changes values above 6e-5 by at most 0.05 %, and smaller
        values by at most 3e-8.

    Raises
    ------
    NotFittedError, TypeError, ValueError, OSError
        The model is not fitted, the cells are not those of the fit, an embedding is too large for float16, or the file
        cannot be written.
    """
    blocks = model.iter_embeddings(cells)
    first, rows = next(blocks)  # so that an error is raised before the file is created
    if not hasattr(cells, "obs"):
        raise TypeError(f"The cells are a {type(cells).__name__}. Pass an AnnData, whose obs and var are written.")
    out = without_matrix(cells, model.donor_key_, model.cell_type_key_)
    described = describe_cells(cells, model.donor_key_, model.cell_type_key_)
    add_model(out, model, described, donor_U=donor_U)
    dtype = np.dtype(np.float16 if float16 else np.float32)
    size = dtype.itemsize * out.n_obs * sum(H.shape[1] for H in first.values())
    size += 8 * out.n_vars * len(model.donors_) + 2**16
    fill = partial(_write_embeddings, model, chain([(first, rows)], blocks), out.n_obs, dtype)
    files.write_h5ad(out, path, fill=fill, fill_size=size)
    for state in model.checkpoint_files_:
        Path(state).unlink(missing_ok=True)
    log.info("wrote %s (%.1f MB)", path, Path(path).stat().st_size / 1e6)


def _write_embeddings(model, blocks: Iterable, n_cells: int, dtype: np.dtype, file: h5py.File) -> None:
    """Write embeddings to obsm block by block, and the donor part of model 2 at the mean usages to varm."""
    arrays, total, done = {}, 0.0, 0
    for embeddings, rows in blocks:
        for role, H in embeddings.items():
            key = OBSM[model.name][role].format(k=model.k)
            if role not in arrays:
                arrays[role] = files.create_array(file["obsm"], key, (n_cells, H.shape[1]), dtype)
            if H.size and (largest := H.max()) > np.finfo(dtype).max:
                raise ValueError(f"obsm[{key!r}] contains {largest:g}. The largest value of {dtype} is "
                                 f"{np.finfo(dtype).max:g}. Write the file again with float16=False.")  # fmt: skip
            arrays[role][rows] = H
        total, done = total + embeddings["shared"].sum(axis=0, dtype=np.float64), rows.stop
    if done != n_cells:
        raise OSError(f"The cells have changed during the run: {done} were read, and {n_cells} were expected. Do not "
                      "change the file during a run, and run the command again.")  # fmt: skip
    part = model._donor_part
    if model.name == "CAE_NMF2" and model.U_ is not None:
        part = np.einsum("j,djp->pd", (total / n_cells).astype(model.U_.dtype), model.U_)
    if part is not None:
        write_elem(file["varm"], schema.DONOR_PART.format(k=model.k), part)


def write_model(path: str | Path, model) -> None:
    """Write a fitted model to a results file without cells (see ``model.save``)."""
    out = AnnData(obs=pd.DataFrame(index=[]), var=pd.DataFrame(index=model.genes_))
    if model.symbols_ is not None:
        out.var["feature_name"] = model.symbols_
    if hasattr(model, "H_"):
        out.uns[OBSM[model.name]["shared"].format(k=model.k)] = model.H_
    described = describe_cells(out, model.donor_key_, model.cell_type_key_)
    add_model(out, model, described, donor_U=model.U_ is not None)
    files.write_h5ad(out, path)
    log.info("wrote %s (%.1f MB)", path, Path(path).stat().st_size / 1e6)


def add_model(out: AnnData, model, described: Mapping, *, donor_U: bool) -> None:
    """Add the programs, the settings and the provenance of a fitted model to the contents of a results file."""
    name, k = model.name, model.k
    # Programs keep the precision of the fit, so that a loaded model computes the same usages.
    for part, key in schema.VARM[name].items():
        if (array := getattr(model, _ATTRIBUTES[part])) is not None:
            out.varm[key.format(k=k)] = array.T
    if model.gene_weights_ is not None:
        out.varm[schema.GENE_WEIGHTS] = model.gene_weights_[:, None]
    parameters = {field: "" if value is None else value for field, value in asdict(model).items()}
    if name in schema.META:
        donors = {"donors": list(model.donors_)} if len(model.donors_) or name not in schema.PUBLISHED else {}
        out.uns[schema.META[name].format(k=k)] = parameters | donors
    if model.overlap_ is not None:
        out.uns[schema.OVERLAP.format(k=k)] = model.overlap_
    if donor_U and name == "CAE_NMF2":
        if model.U_ is None:
            raise ValueError("U of this model is unknown, because its file contains no U. Pass donor_U=False.")
        out.uns[schema.U_DONOR.format(k=k)] = model.U_
    out.uns[PROVENANCE] = {
        "model": name,
        "parameters": parameters,
        schema.FIT_KEYS: {"donor_key": model.donor_key_, "cell_type_key": model.cell_type_key_},
        USED_CELL_TYPE: bool(model.uses_cell_type),
        "penalty": asdict(model.penalty_) | {"strength": model.strength_} if model.penalty_ is not None else {},
        **described,
        "loss_history": model.loss_history_,
        "sq_norm_per_cell": model.sq_norm_per_cell_,
        "n_cells": model.n_cells_,
        "n_iter": model.n_iter_,
        "stop": model.stop_reason_,
        "second_moment": model.second_moment_,
        "fit_seconds": model.seconds_,
        "starts": model.starts_ if len(model.starts_) else {},
        "stability": model.stability_ if len(model.stability_) else {},
        "device": model.device,
        **run_info(),
    }


def without_matrix(cells, donor_key: str = DONOR, cell_type_key: str = CELL_TYPE) -> AnnData:
    """Return the cells without X: obs with donor_id and cell_type, if there are any, and var with feature_name."""
    obs = cells.obs.copy()
    for key, label in ((donor_key, DONOR), (cell_type_key, CELL_TYPE)):
        if key == label or key not in obs:
            continue
        if label in obs:
            kept = f"{label}_original"
            while kept in obs:
                kept += "_original"
            log.warning("obs[%r] is not the column of the fit (%r): it is written as %r", label, key, kept)
            obs = obs.rename(columns={label: kept})
        obs[label] = cells.obs[key]
    return AnnData(obs=obs, var=cells.var[[name for name in cells.var if name == "feature_name"]].copy())


def describe_cells(cells, donor_key: str = DONOR, cell_type_key: str = CELL_TYPE) -> dict[str, dict]:
    """Return the entries of the provenance that describe the cells: their file, its source, and their columns."""
    made = cells.uns.get(PROVENANCE, {})
    made = made if isinstance(made, Mapping) else {}
    keys = {"donor_key": (donor_key, DONOR), "cell_type_key": (cell_type_key, CELL_TYPE)}
    # a fit on donor_id of filtered cells used the column that the filter read
    columns = {name: key if key != label else str(made.get(name, label)) for name, (key, label) in keys.items()}
    described = columns | {"sampled_from": int(made.get("sampled_from", 0))}
    return {"input": cells.uns.get("input", {}), "source": made.get("input", {}), CELLS: described}


def read(path: str | Path, *, with_cells: bool = True) -> AnnData:
    """Read a results file. Raises OSError or ValueError if it cannot be read or if `check` finds faults.

    The file of a skipped model is valid: it has obs, var and a provenance, but no embedding. The file of ``model.save``
    is valid too: it has no cells. With ``with_cells=False``, obs and obsm, which may be large, are not read.
    """
    cells, faults = schema.load(path, with_cells=with_cells)
    if cells is None:
        raise ValueError(f"{path} {faults[0]}")
    if faults:
        advice = "Train the model again, or write the file again with results.write."
        raise ValueError(f"{path} is not a valid results file. {advice}\n  " + "\n  ".join(faults))
    return cells


def embedding(path: str | Path, role: str = "shared") -> tuple[str, int, np.ndarray, AnnData]:
    """Return the model, the rank, one embedding (n_cells, k) and the whole contents of a results file.

    Raises OSError or ValueError if the file is not valid, its model was skipped, or it has no such embedding.
    """
    return embedding_of(read(path), path, role)


def embedding_of(cells: AnnData, path: str | Path, role: str) -> tuple[str, int, np.ndarray, AnnData]:
    """Return what `embedding` returns, from the contents of a file."""
    if reason := schema.skip_reason(cells.uns):
        raise ValueError(f"{path} has no embedding, because {cells.uns[PROVENANCE]['model']} was skipped: {reason}.")
    if not cells.n_obs:
        raise ValueError(f"{path} {NO_CELLS}")
    name, k = schema.identify(cells)
    if role not in OBSM[name]:
        raise ValueError(f"{path}: {name} has no embedding {role!r}. Choose one of: {', '.join(OBSM[name])}.")
    return name, k, np.asarray(cells.obsm[OBSM[name][role].format(k=k)], dtype=np.float32), cells
