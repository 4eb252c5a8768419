"""What is on disk, under which key? Reading, writing and checking results-only files.

The keys are the published ones and stand in this file alone. Files that hold these keys and nothing more are read as
well.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from aenmf_lib.data import files, preprocessing
from aenmf_lib.data.files import write_h5ad
from aenmf_lib.data.preprocessing import CELL_TYPE
from aenmf_lib.results import provenance
from aenmf_lib.results.schema import (
    _PUBLISHED_WITH_CELL_TYPE,
    GENE_WEIGHTS,
    GROUPS,
    LABELS,
    META,
    MODELS,
    OBSM,
    PROVENANCE,
    U_DONOR,
    VARM,
    RunInfo,
    _faults,
    check,
    identify,
)
from aenmf_lib.training.checkpoint import checkpoint_path, hsic_checkpoint, plain_checkpoint, start_checkpoint

log = logging.getLogger(__name__)


def write(path: str | Path, model, cells, *, donor_U: bool = False) -> None:
    """Write what a trained model found, without the expression matrix.

    Parameters
    ----------
    path
        The ``.h5ad`` to write.
    model
        A fitted model of `aenmf_lib.models`.
    cells
        The cells of the fit, from `data.load` or `stream.load`.
    donor_U
        Write model 2's U (donors × k × genes) too.
    """
    name, k = model.name, model.k
    out = AnnData(obs=cells.obs.copy(), var=cells.var.copy())
    for role, H in model.embeddings(cells).items():
        out.obsm[OBSM[name][role].format(k=k)] = H.astype(np.float32)
    for part, key in VARM[name].items():
        out.varm[key.format(k=k)] = getattr(model, f"{part}_").T.astype(np.float32)
    if getattr(model, "gene_weights_", None) is not None:
        out.varm[GENE_WEIGHTS] = model.gene_weights_[:, None]
    donors = list(getattr(model, "donors_", ()))
    hyper = {field: "" if value is None else value for field, value in asdict(model).items()}
    if name in META:
        out.uns[META[name].format(k=k)] = hyper | ({"donors": donors} if donors else {})
    if donor_U and name == "CAE_NMF2":
        out.uns[U_DONOR.format(k=k)] = model.U_
    if getattr(model, "groups_", None) is not None:
        out.obs[GROUPS] = model.groups_.astype("category")
    out.uns[PROVENANCE] = {
        "model": name,
        "parameters": hyper,
        "cell_type_in_training": bool(model.uses_cell_type),
        "penalty": asdict(model.penalty_) | {"strength": model.strength_} if donors else {},
        "input": cells.uns["input"],
        "source": cells.uns.get(PROVENANCE, {}).get("input", {}),
        "loss_history": model.loss_history_,
        "sq_norm_per_cell": model.sq_norm_per_cell_,
        "n_iter": model.n_iter_,
        "stop": model.stop_,
        "second_moment": getattr(model, "second_moment_", ""),
        "fit_seconds": model.seconds_,
        "starts": getattr(model, "starts_", {}),
        "stability": getattr(model, "stability_", {}),
        "device": getattr(model, "device", "cpu"),
        **provenance.run_info(),
    }
    write_h5ad(out, path)
    state = checkpoint_path(path)
    for done in (state, plain_checkpoint(state), hsic_checkpoint(state)):
        for start in range(getattr(model, "n_starts", 1)):
            start_checkpoint(done, start).unlink(missing_ok=True)
    log.info("wrote %s (%.1f MB)", path, Path(path).stat().st_size / 1e6)


# -------------------------------------------------------------------------------------------------------------- reading
@dataclass
class Embeddings:
    """The embeddings of the same cells by several models."""

    H: dict[str, np.ndarray]  # model -> (n_cells, k) float32
    obs: pd.DataFrame  # a row a cell, in the order of H; cell_type (NaN: none) and donor_id categorical
    used_cell_type: dict[str, bool]  # model -> whether training read cell_type
    groups: dict[str, str]  # model -> within what its penalties compared donors: cell_type, clusters, none
    k: int

    def annotate(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add to a table of scores, a row a model at least, within what the model compared donors."""
        return table.assign(**{GROUPS: table["Model"].map(self.groups)})

    @property
    def run(self) -> RunInfo:
        """What figures report about this run."""
        return RunInfo(self.k, len(self.obs), self.used_cell_type, self.groups)


def read(path: str | Path) -> AnnData:
    """Read a results file.

    Raises
    ------
    ValueError
        It lacks a published key, or holds one of the wrong shape: `check` gives the list.
    """
    cells = files.read_h5ad(path)
    if faults := _faults(cells):
        raise ValueError(f"{path} is not a results file:\n  " + "\n  ".join(faults))
    return cells


def embedding(path: str | Path, role: str = "shared") -> tuple[str, int, np.ndarray, AnnData]:
    """Give the model, the rank, one of its embeddings (n_cells, k) and the whole results file."""
    cells = read(path)
    name, k = identify(cells)
    if role not in OBSM[name]:
        raise ValueError(f"{path}: {name} has no embedding {role!r}; it has {', '.join(OBSM[name])}.")
    return name, k, np.asarray(cells.obsm[OBSM[name][role].format(k=k)], dtype=np.float32), cells


def read_embeddings(paths: Sequence[str | Path], role: str = "shared") -> Embeddings:
    """Read the embeddings of several models, which must be of the same cells, labels and rank.

    Raises
    ------
    ValueError
        A file is not a results file, two are of the same model, or they differ in cells, labels or rank.
    """
    found, obs, first = {}, None, None
    for path in paths:
        name, k, H, cells = embedding(path, role)
        if name in found:
            raise ValueError(f"{path} and {found[name][0]} are both of {name}: give one file a model.")
        found[name] = path, k, H, _used_cell_type(name, cells), _groups(name, cells)
        if obs is None:
            obs, first, rank = cells.obs, path, k
        if k != rank:
            raise ValueError(f"{path} is of rank {k}, {first} of rank {rank}: a benchmark compares one rank.")
        _check_same_cells(obs, first, cells.obs, path)
    if obs is None:
        raise ValueError("no results file was given.")
    untyped = preprocessing.is_missing(obs[CELL_TYPE])
    if untyped.any():
        log.info("%d of %d cells have no %s: left out of the scores against it", untyped.sum(), len(obs), CELL_TYPE)
    obs = obs.assign(**{label: obs[label].mask(untyped & (label == CELL_TYPE)).astype("category") for label in LABELS})
    names = [name for name in MODELS if name in found]
    H, used, groups = ({m: found[m][i] for m in names} for i in (2, 3, 4))
    return Embeddings(H, obs, used, groups, rank)


def history(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Give the objective of each model through its training.

    Returns
    -------
    DataFrame
        ``Model, iteration, loss, relative_loss``, the last being the loss over ‖X‖²/n. scikit-learn tells its last
        value only, so Base NMF has one row. A file without provenance has none.
    """
    tables = []
    for path in paths:
        cells = read(path)
        name, _ = identify(cells)
        made = cells.uns.get(PROVENANCE)
        if made is None:
            log.warning("%s holds no loss history (no provenance): left out of the training curves", path)
            continue
        loss = np.asarray(made["loss_history"])
        iteration = np.arange(len(loss)) if len(loss) > 1 else [made["n_iter"]]
        table = pd.DataFrame({"Model": name, "iteration": iteration, "loss": loss})
        tables.append(table.assign(relative_loss=loss / made["sq_norm_per_cell"]))
    if not tables:
        raise ValueError(f"none of the results files holds a loss history: {', '.join(map(str, paths))}.")
    table = pd.concat(tables, ignore_index=True)
    return table.sort_values("Model", key=lambda m: m.map(MODELS.index), kind="stable", ignore_index=True)


def _used_cell_type(name: str, cells: AnnData) -> bool:
    made = cells.uns.get(PROVENANCE)
    return name in _PUBLISHED_WITH_CELL_TYPE if made is None else bool(made["cell_type_in_training"])


def _groups(name: str, cells: AnnData) -> str:
    if _used_cell_type(name, cells):
        return CELL_TYPE
    parameters = cells.uns.get(PROVENANCE, {}).get("parameters", {})
    return "clusters" if parameters.get("labels") == "clusters" else "none"


def _check_same_cells(obs: pd.DataFrame, path, other: pd.DataFrame, other_path) -> None:
    if not obs.index.equals(other.index):
        shared = len(obs.index.intersection(other.index))
        order = " in another order" if shared == len(obs) == len(other) else ""
        raise ValueError(
            f"{other_path} holds {len(other)} cells, {path} {len(obs)}; {shared} are in both{order}. A benchmark needs "
            "the same cells in the same order: train all models on one filtered file."
        )
    for label in LABELS:
        if differ := int((obs[label].astype(str).to_numpy() != other[label].astype(str).to_numpy()).sum()):
            raise ValueError(f"{other_path} and {path} differ in obs[{label!r}] for {differ} of {len(obs)} cells.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m aenmf_lib.results", description="Say what is wrong with results files."
    )
    parser.add_argument("files", nargs="+", metavar="FILE.h5ad")
    wrong = 0
    for file in parser.parse_args().files:
        faults = check(file)
        print(file, *(faults or ["ok"]), sep="\n  ")
        wrong += bool(faults)
    sys.exit(wrong > 0)
