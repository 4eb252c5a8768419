"""Writing and reading results files: the embeddings, programs and provenance of one fitted model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from aenmf_lib.data import files
from aenmf_lib.data.labels import CELL_TYPE, DONOR, LABELS, is_missing
from aenmf_lib.data.provenance import run_info
from aenmf_lib.results import schema
from aenmf_lib.results.schema import CELLS, GROUPS, MODELS, OBSM, PROVENANCE, SKIPPED, USED_CELL_TYPE, RunInfo

log = logging.getLogger(__name__)


def checkpoint_path(out: str | Path) -> Path:
    """Return the path where a fit keeps its state until the results file `out` is written."""
    return Path(out).with_suffix(".checkpoint.npz")


def write(path: str | Path, model, cells, *, donor_U: bool = False) -> None:
    """Write the results of a fitted model, without the expression matrix, and remove the fit's checkpoints.

    Parameters
    ----------
    path, model, cells
        The ``.h5ad`` file to write, a fitted model, and the cells of the fit: an AnnData or a `CellStream`. All columns
        of obs and ``var['feature_name']`` are kept. The columns of donors and cell types of the fit become
        ``donor_id`` and ``cell_type``; other columns with these names become ``donor_id_original`` … Embeddings are
        written in float32, programs in the precision of the fit, so that `load_model` rebuilds the model.
    donor_U
        Also write U of model 2, (n_donors, k, n_genes).

    Raises
    ------
    NotFittedError, TypeError, ValueError, OSError
        The model is not fitted, the cells are not those of the fit, or the file cannot be written.
    """
    name, k = model.name, model.k
    embeddings = model.embeddings(cells)
    if not hasattr(cells, "obs"):
        raise TypeError(f"The cells are a {type(cells).__name__}. Pass an AnnData, whose obs and var are written.")
    out = without_matrix(cells, model.donor_key_, model.cell_type_key_)
    for role, H in embeddings.items():
        out.obsm[OBSM[name][role].format(k=k)] = H.astype(np.float32)
    if model.groups_ is not None:
        out.obs[GROUPS] = model.groups_.astype("category")
    described = describe_cells(cells, model.donor_key_, model.cell_type_key_)
    add_model(out, model, described, donor_U=donor_U)
    files.write_h5ad(out, path)
    for state in model.checkpoint_files_:
        Path(state).unlink(missing_ok=True)
    log.info("wrote %s (%.1f MB)", path, Path(path).stat().st_size / 1e6)


def write_model(path: str | Path, model) -> None:
    """Write a fitted model to a results file without cells (see ``model.save``)."""
    out = AnnData(obs=pd.DataFrame(index=[]), var=pd.DataFrame(index=model.genes_))
    if model.symbols_ is not None:
        out.var["feature_name"] = model.symbols_
    if model.groups_ is not None:
        out.uns[GROUPS] = model.groups_.rename(GROUPS).to_frame()
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
        out.varm[key.format(k=k)] = (model.W_ if part == "W" else model.U_).T
    if model.gene_weights_ is not None:
        out.varm[schema.GENE_WEIGHTS] = model.gene_weights_[:, None]
    parameters = {field: "" if value is None else value for field, value in asdict(model).items()}
    if name in schema.META:
        donors = {"donors": list(model.donors_)} if len(model.donors_) else {}
        out.uns[schema.META[name].format(k=k)] = parameters | donors
    if len(model.donors_):
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


@dataclass
class Embeddings:
    """The embeddings of the same cells by several models, in the order of `MODELS`."""

    H: dict[str, np.ndarray]  # model -> (n_cells, k) float32
    obs: pd.DataFrame  # one row per cell, in the order of H; cell_type (NaN if unknown) and donor_id are categorical
    used_cell_type: dict[str, bool]  # model -> whether training read cell_type
    groups: dict[str, str]  # model -> groups within which its penalty compared donors: cell_type, clusters or none
    k: int
    cells: dict[str, str | int] = field(default_factory=dict)  # donor_key, cell_type_key and sampled_from of the input
    skipped: dict[str, str] = field(default_factory=dict)  # model -> why it was not trained

    def annotate(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the columns `cell_type_in_training` and `groups_in_training` to a table with a column `Model`."""
        model = table["Model"]
        return table.assign(**{USED_CELL_TYPE: model.map(self.used_cell_type), GROUPS: model.map(self.groups)})

    def with_skipped(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add a row without scores for each skipped model, and the reason in the column `skipped`, if there is any."""
        if not self.skipped:
            return table
        rows = pd.DataFrame({"Model": list(self.skipped), SKIPPED: list(self.skipped.values())})
        return pd.concat([table, rows], ignore_index=True)

    @property
    def run(self) -> RunInfo:
        """The facts that figures report about this run."""
        columns = {"donor_column": "donor_key", "cell_type_column": "cell_type_key", "sampled_from": "sampled_from"}
        known = {name: self.cells[key] for name, key in columns.items() if key in self.cells}
        return RunInfo(self.k, len(self.obs), self.used_cell_type, self.groups, skipped=self.skipped, **known)


def read(path: str | Path) -> AnnData:
    """Read a results file. Raises OSError or ValueError if it cannot be read or if `check` finds faults.

    The file of a skipped model is valid: it has obs, var and a provenance, but no embedding. The file of ``model.save``
    is valid too: it has no cells.
    """
    cells, faults = schema.load(path)
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
        raise ValueError(f"{path} has no embedding: it is a model without cells, written by model.save. To write the "
                         "embeddings, use results.write(new_path, results.load_model(path), cells).")  # fmt: skip
    name, k = schema.identify(cells)
    if role not in OBSM[name]:
        raise ValueError(f"{path}: {name} has no embedding {role!r}. Choose one of: {', '.join(OBSM[name])}.")
    return name, k, np.asarray(cells.obsm[OBSM[name][role].format(k=k)], dtype=np.float32), cells


def read_embeddings(paths: Sequence[str | Path], role: str = "shared") -> Embeddings:
    """Read the embeddings of several models, one results file per model. Files of skipped models are left out.

    Raises ValueError if two files are of the same model, if the files differ in cells, labels or rank, if a label is
    missing, or if all models were skipped.
    """
    if not paths:
        raise ValueError("No results file was given. Pass at least one path.")
    found, skipped, described = {}, {}, {}
    for path in paths:
        cells = read(path)
        provenance = cells.uns.get(PROVENANCE, {})
        if reason := schema.skip_reason(cells.uns):
            skipped[str(provenance["model"])] = reason
            continue
        name, k, H, cells = embedding_of(cells, path, role)
        if name in found:
            raise ValueError(f"{path} and {found[name][0]} are both of {name}. Pass one file per model.")
        _check_labels(cells.obs, path)
        if not found:
            first, rank, obs = path, k, cells.obs
        if k != rank:
            raise ValueError(f"{path} is of rank {k}, but {first} is of rank {rank}. Pass models of the same rank.")
        _check_same_cells(obs, first, cells.obs, path)
        # published files have no provenance: by their published settings, only model 1 read the cell types
        used = bool(provenance.get(USED_CELL_TYPE, name == "CAE_NMF1"))
        clusters = provenance.get("parameters", {}).get("labels") == "clusters"
        found[name] = path, H, used, CELL_TYPE if used else "clusters" if clusters else "none"
        described = described or dict(provenance.get(CELLS, {}))
    if not found:
        reasons = "; ".join(f"{model}: {reason}" for model, reason in skipped.items())
        raise ValueError(f"All models were skipped ({reasons}). Pass the file of a model that was trained.")
    untyped = is_missing(obs[CELL_TYPE])
    if untyped.any():
        log.info("%d of %d cells have no %s: left out of the scores against it", untyped.sum(), len(obs), CELL_TYPE)
    obs = obs.assign(**{label: obs[label].mask(untyped & (label == CELL_TYPE)).astype("category") for label in LABELS})
    H, used, groups = ({name: found[name][i] for name in MODELS if name in found} for i in (1, 2, 3))
    columns = {key: str(value) for key, value in described.items() if key in ("donor_key", "cell_type_key")}
    columns["sampled_from"] = int(described.get("sampled_from", 0))
    return Embeddings(H, obs, used, groups, rank, columns, {name: skipped[name] for name in MODELS if name in skipped})


def history(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Return the objective of each model during its training: ``Model, iteration, loss, relative_loss``.

    ``relative_loss`` is the loss divided by ‖X‖²/n. Base NMF has one row, because scikit-learn reports only the last
    value. Files without provenance and files of skipped models are left out. Raises ValueError if no file has a loss
    history.
    """
    if not paths:
        raise ValueError("No results file was given. Pass at least one path.")
    tables = []
    for path in paths:
        cells = read(path)
        if reason := schema.skip_reason(cells.uns):
            log.info("%s: %s was skipped (%s)", path, cells.uns[PROVENANCE]["model"], reason)
            continue
        if (provenance := cells.uns.get(PROVENANCE)) is None:
            log.warning("%s has no provenance and so no loss history: left out of the training curves", path)
            continue
        loss = np.asarray(provenance["loss_history"])
        iteration = np.arange(len(loss)) if len(loss) > 1 else [provenance["n_iter"]]
        table = pd.DataFrame({"Model": schema.identify(cells)[0], "iteration": iteration, "loss": loss})
        tables.append(table.assign(relative_loss=loss / provenance["sq_norm_per_cell"]))
    if not tables:
        raise ValueError(f"No loss history in {', '.join(map(str, paths))}. Train the models again with this version.")
    table = pd.concat(tables, ignore_index=True)
    return table.sort_values("Model", key=lambda model: model.map(MODELS.index), kind="stable", ignore_index=True)


def _check_labels(obs: pd.DataFrame, path: str | Path) -> None:
    """Raise ValueError if a results file has no cell types or donors, or cells without a donor."""
    for label in LABELS:
        if label not in obs:
            columns = ", ".join(map(repr, obs.columns[:20])) or "none"
            option = "donor_key" if label == DONOR else "cell_type_key"
            raise ValueError(f"{path} has no obs column {label!r}, against which models are scored; its columns are "
                             f"{columns}. Name it in fit(…, {option}=…), and write the results again.")  # fmt: skip
    if n := int(is_missing(obs[DONOR]).sum()):
        raise ValueError(f"{path}: obs[{DONOR!r}] is empty for {n} of {len(obs)} cells. Every cell needs a donor to be "
                         "scored. Correct the column and write the results again.")  # fmt: skip


def _check_same_cells(obs: pd.DataFrame, path, other: pd.DataFrame, other_path) -> None:
    """Raise ValueError if two results files differ in their cells or labels."""
    advice = "Train all models on one filtered file."
    if not obs.index.equals(other.index):
        shared = len(obs.index.intersection(other.index))
        order = " in another order" if shared == len(obs) == len(other) else ""
        found = f"{other_path} contains {len(other)} cells and {path} {len(obs)}; {shared} are in both{order}"
        raise ValueError(f"{found}. The same cells in the same order are expected. {advice}")
    for label in LABELS:
        if n := int((obs[label].astype(str).to_numpy() != other[label].astype(str).to_numpy()).sum()):
            raise ValueError(f"{other_path} and {path} differ in obs[{label!r}] for {n} of {len(obs)} cells. {advice}")
