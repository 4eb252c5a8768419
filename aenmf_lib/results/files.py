"""Writing and reading results files: the embeddings, programs and provenance of one fitted model."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from aenmf_lib.data import files, preprocessing
from aenmf_lib.data.preprocessing import CELL_TYPE, LABELS
from aenmf_lib.results import schema
from aenmf_lib.results.provenance import run_info
from aenmf_lib.results.schema import GROUPS, MODELS, OBSM, PROVENANCE, USED_CELL_TYPE, RunInfo

log = logging.getLogger(__name__)


def checkpoint_path(out: str | Path) -> Path:
    """Return the path where a fit keeps its state until the results file `out` is written."""
    return Path(out).with_suffix(".checkpoint.npz")


def write(path: str | Path, model, cells, *, donor_U: bool = False) -> None:
    """Write the results of a fitted model, without the expression matrix, and remove the fit's checkpoints.

    Parameters
    ----------
    path, model, cells
        The ``.h5ad`` file to write, a fitted model, and the cells of the fit, from `data.load` or `data.load_stream`.
    donor_U
        Also write U of model 2, (n_donors, k, n_genes).
    """
    name, k = model.name, model.k
    out = AnnData(obs=cells.obs.copy(), var=cells.var.copy())
    for role, H in model.embeddings(cells).items():
        out.obsm[OBSM[name][role].format(k=k)] = H.astype(np.float32)
    for part, key in schema.VARM[name].items():
        out.varm[key.format(k=k)] = (model.W_ if part == "W" else model.U_).T.astype(np.float32)
    if model.gene_weights_ is not None:
        out.varm[schema.GENE_WEIGHTS] = model.gene_weights_[:, None]
    if model.groups_ is not None:
        out.obs[GROUPS] = model.groups_.astype("category")
    parameters = {field: "" if value is None else value for field, value in asdict(model).items()}
    if name in schema.META:
        donors = {"donors": list(model.donors_)} if len(model.donors_) else {}
        out.uns[schema.META[name].format(k=k)] = parameters | donors
    if donor_U and name == "CAE_NMF2":
        out.uns[schema.U_DONOR.format(k=k)] = model.U_
    out.uns[PROVENANCE] = {
        "model": name,
        "parameters": parameters,
        USED_CELL_TYPE: bool(model.uses_cell_type),
        "penalty": asdict(model.penalty_) | {"strength": model.strength_} if model.penalty_ is not None else {},
        "input": cells.uns["input"],
        "source": cells.uns.get(PROVENANCE, {}).get("input", {}),
        "loss_history": model.loss_history_,
        "sq_norm_per_cell": model.sq_norm_per_cell_,
        "n_iter": model.n_iter_,
        "stop": model.stop_reason_,
        "second_moment": model.second_moment_,
        "fit_seconds": model.seconds_,
        "starts": model.starts_ if len(model.starts_) else {},
        "stability": model.stability_ if len(model.stability_) else {},
        "device": model.device,
        **run_info(),
    }
    files.write_h5ad(out, path)
    for state in model.checkpoint_files_:
        Path(state).unlink(missing_ok=True)
    log.info("wrote %s (%.1f MB)", path, Path(path).stat().st_size / 1e6)


@dataclass
class Embeddings:
    """The embeddings of the same cells by several models, in the order of `MODELS`."""

    H: dict[str, np.ndarray]  # model -> (n_cells, k) float32
    obs: pd.DataFrame  # one row per cell, in the order of H; cell_type (NaN if unknown) and donor_id are categorical
    used_cell_type: dict[str, bool]  # model -> whether training read cell_type
    groups: dict[str, str]  # model -> groups within which its penalty compared donors: cell_type, clusters or none
    k: int

    def annotate(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the columns `cell_type_in_training` and `groups_in_training` to a table with a column `Model`."""
        model = table["Model"]
        return table.assign(**{USED_CELL_TYPE: model.map(self.used_cell_type), GROUPS: model.map(self.groups)})

    @property
    def run(self) -> RunInfo:
        """The facts that figures report about this run."""
        return RunInfo(self.k, len(self.obs), self.used_cell_type, self.groups)


def read(path: str | Path) -> AnnData:
    """Read a results file. Raises OSError or ValueError if it cannot be read or if `check` finds faults."""
    cells = files.read_h5ad(path)
    if faults := schema.find_faults(cells):
        raise ValueError(f"{path} is not a valid results file:\n  " + "\n  ".join(faults))
    return cells


def embedding(path: str | Path, role: str = "shared") -> tuple[str, int, np.ndarray, AnnData]:
    """Return the model, the rank, one embedding (n_cells, k) and the whole contents of a results file."""
    cells = read(path)
    name, k = schema.identify(cells)
    if role not in OBSM[name]:
        raise ValueError(f"{path}: {name} has no embedding {role!r}. Choose one of: {', '.join(OBSM[name])}.")
    return name, k, np.asarray(cells.obsm[OBSM[name][role].format(k=k)], dtype=np.float32), cells


def read_embeddings(paths: Sequence[str | Path], role: str = "shared") -> Embeddings:
    """Read the embeddings of several models, one results file per model.

    Raises ValueError if two files are of the same model, or if the files differ in cells, labels or rank.
    """
    if not paths:
        raise ValueError("No results file was given. Pass at least one path.")
    found = {}
    for path in paths:
        name, k, H, cells = embedding(path, role)
        if name in found:
            raise ValueError(f"{path} and {found[name][0]} are both of {name}. Pass one file per model.")
        if not found:
            first, rank, obs = path, k, cells.obs
        if k != rank:
            raise ValueError(f"{path} is of rank {k}, but {first} is of rank {rank}. Pass models of the same rank.")
        _check_same_cells(obs, first, cells.obs, path)
        # published files have no provenance: by their published settings, only model 1 read the cell types
        provenance = cells.uns.get(PROVENANCE, {USED_CELL_TYPE: name == "CAE_NMF1"})
        used = bool(provenance[USED_CELL_TYPE])
        clusters = provenance.get("parameters", {}).get("labels") == "clusters"
        found[name] = path, H, used, CELL_TYPE if used else "clusters" if clusters else "none"
    untyped = preprocessing.is_missing(obs[CELL_TYPE])
    if untyped.any():
        log.info("%d of %d cells have no %s: left out of the scores against it", untyped.sum(), len(obs), CELL_TYPE)
    obs = obs.assign(**{label: obs[label].mask(untyped & (label == CELL_TYPE)).astype("category") for label in LABELS})
    H, used, groups = ({name: found[name][i] for name in MODELS if name in found} for i in (1, 2, 3))
    return Embeddings(H, obs, used, groups, rank)


def history(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Return the objective of each model during its training: ``Model, iteration, loss, relative_loss``.

    ``relative_loss`` is the loss divided by ‖X‖²/n. Base NMF has one row, because scikit-learn reports only the last
    value. Files without provenance are skipped. Raises ValueError if no file has a loss history.
    """
    tables = []
    for path in paths:
        cells = read(path)
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
