"""What is on disk, under which key? Reading, writing and checking results-only files.

The keys are the published ones and stand in this file alone. Files that hold these keys and nothing more are read as
well.
"""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from aenmf_lib import data, provenance
from aenmf_lib.data import CELL_TYPE, DONOR

log = logging.getLogger(__name__)

# role -> published key, {k} being the rank
_CONDITIONAL = {
    "shared": "H_shared_k{k}",
    "cond_latent": "H_cond_latent_k{k}",
    "concat_full": "H_concat_full_k{k}",
}
OBSM = {
    "CAE_NMF1": _CONDITIONAL,
    "CAE_NMF2": _CONDITIONAL,
    "AE_NMF": {"shared": "H_shared_k{k}"},
    "Base_NMF": {"shared": "H_sklearn_nmf_k{k}"},
}
VARM = {
    "CAE_NMF1": {"W": "W_concat_k{k}", "U": "U_concat_gene_k{k}"},
    "CAE_NMF2": {"W": "W_concat_k{k}"},
    "AE_NMF": {"W": "W_tied_k{k}"},
    "Base_NMF": {"W": "W_sklearn_nmf_k{k}"},
}
META = {"CAE_NMF1": "cond_meta_concat_k{k}", "CAE_NMF2": "cond_meta_concat_k{k}", "Base_NMF": "sklearn_nmf_k{k}"}
WEIGHTS = "gene_weights"  # of the genes in the objective, where they are not all alike: H = X (W diag(w²))ᵀ
U_DONOR = "U_donor_k{k}"  # model 2, written when asked for
PROVENANCE = "provenance"
GROUPS = "groups_in_training"  # obs: the clusters of a fit with labels="clusters"; in tables: its labels

_LABELS = (CELL_TYPE, DONOR)  # which every results file has; cells may lack the type
_NEEDED = ("cell_type_in_training", "loss_history", "n_iter", "sq_norm_per_cell")  # of the provenance, by what reads it

MODELS = tuple(OBSM)  # the order of rows in every table and figure
_PUBLISHED_WITH_CELL_TYPE = {"CAE_NMF1"}  # what a file without provenance was trained with, by its published settings


# -------------------------------------------------------------------------------------------------------------- writing
@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes its name when the block ends well and is removed otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as csv, whole or not at all."""
    with atomic(path) as partial:
        table.to_csv(partial, index=False)


def write_npz(path: str | Path, version: int, **arrays: np.ndarray) -> None:
    """Write arrays as NumPy's ``.npz`` with the version of their format, whole or not at all."""
    with atomic(path) as partial, partial.open("wb") as file:  # given a name, NumPy would add to it
        np.savez(file, format=version, **arrays)


def read_npz(path: str | Path, version: int, what: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read an ``.npz``, whole or some arrays; `what` names it in errors. Raises FileNotFoundError, ValueError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in (file.files if names is None else ["format", *names])}
        found = int(held["format"])
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, NumPy and zlib each have their own for a damaged file
        raise ValueError(f"{path} is not a file of {what}, or is cut short ({error}): make it again.") from error
    if found != version:
        raise ValueError(f"{path} holds {what} of format {found}; this version reads {version}: make it again.")
    return held


def write_h5ad(cells: AnnData, path: str | Path) -> None:
    """Write an ``.h5ad``, whole or not at all."""
    with atomic(path) as partial:
        cells.write_h5ad(partial)


def checkpoint(path: str | Path) -> Path:
    """Where a fit keeps its state while its results are not there yet; `write` removes it."""
    return Path(path).with_suffix(".checkpoint.npz")


def plain_checkpoint(path: str | Path) -> Path:
    """Where the AE-NMF that a strength is reckoned from keeps its state, beside that of the fit itself."""
    return Path(path).with_suffix(".plain.npz")


def start_checkpoint(path: str | Path, start: int) -> Path:
    """Where one of several starts of a fit keeps its state: the first where a fit of one start does."""
    return Path(path).with_suffix(f".start{start}.npz") if start else Path(path)


def hsic_checkpoint(path: str | Path) -> Path:
    """Where the fit that clusters are found on keeps its state, likewise."""
    return Path(path).with_suffix(".hsic.npz")


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
        out.varm[WEIGHTS] = model.gene_weights_[:, None]
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
        **provenance.of_run(),
    }
    write_h5ad(out, path)
    state = checkpoint(path)
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

    def told(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add to a table of scores, a row a model at least, within what the model compared donors."""
        return table.assign(**{GROUPS: table["Model"].map(self.groups)})


def read(path: str | Path) -> AnnData:
    """Read a results file.

    Raises
    ------
    ValueError
        It lacks a published key, or holds one of the wrong shape: `check` gives the list.
    """
    cells = data.read_h5ad(path)
    if faults := _faults(cells):
        raise ValueError(f"{path} is not a results file:\n  " + "\n  ".join(faults))
    return cells


def identify(cells: AnnData) -> tuple[str, int]:
    """Tell the model and the rank of a results file from the published keys it holds.

    Raises
    ------
    ValueError
        There is no key of a model, or keys of several.
    """
    found = []
    for name in MODELS:
        signature = list(VARM[name].values())[-1].removesuffix("{k}")
        ranks = (key.removeprefix(signature) for key in cells.varm if key.startswith(signature))
        found += [(name, int(rank)) for rank in ranks if rank.isdigit()]
    # the conditional models share their keys, but for the U that only model 1 has in varm
    found = [(name, k) for name, k in found if name != "CAE_NMF2" or ("CAE_NMF1", k) not in found]
    if len(found) != 1:
        expected = ", ".join(VARM[name]["W"].format(k="<k>") for name in MODELS if name != "CAE_NMF1")
        there = ", ".join(f"{name} (k = {k})" for name, k in found) or "none"
        raise ValueError(
            f"models found: {there}, by the varm keys {', '.join(cells.varm) or '(none)'}; "
            f"exactly one of {expected} is expected."
        )
    return found[0]


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
    untyped = data.missing(obs[CELL_TYPE])
    if untyped.any():
        log.info("%d of %d cells have no %s: left out of the scores against it", untyped.sum(), len(obs), CELL_TYPE)
    obs = obs.assign(**{label: obs[label].mask(untyped & (label == CELL_TYPE)).astype("category") for label in _LABELS})
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


def check(path: str | Path) -> list[str]:
    """Say what is wrong with a results file; an empty list if nothing is."""
    try:
        cells = data.read_h5ad(path)
    except (OSError, ValueError) as error:
        return [str(error)]
    return _faults(cells)


def _faults(cells: AnnData) -> list[str]:
    faults = []
    for label in _LABELS:
        if label not in cells.obs:
            faults.append(f"obs has no column {label!r} (it has {', '.join(map(repr, cells.obs)) or 'none'})")
        elif label != CELL_TYPE and (empty := int(data.missing(cells.obs[label]).sum())):
            faults.append(f"obs[{label!r}] is empty for {empty} of {cells.n_obs} cells")
    if cells.X is not None:
        faults.append(f"X is a matrix of {cells.n_obs} × {cells.n_vars}: a results-only file has none")
    try:
        name, k = identify(cells)
    except ValueError as error:
        return [*faults, str(error)]
    widths = {"shared": k, "cond_latent": k, "concat_full": 2 * k}
    for role, key in OBSM[name].items():
        faults += _matrix_faults(cells.obsm, "obsm", key.format(k=k), widths[role])
    n_donors = cells.obs[DONOR].nunique() if DONOR in cells.obs else None
    for part, key in VARM[name].items():
        faults += _matrix_faults(cells.varm, "varm", key.format(k=k), k if part == "W" else n_donors)
    if name in META and META[name].format(k=k) not in cells.uns:
        faults.append(f"uns has no {META[name].format(k=k)!r}")
    if PROVENANCE in cells.uns:
        faults += [f"uns['{PROVENANCE}'] has no {key!r}" for key in _NEEDED if key not in cells.uns[PROVENANCE]]
    return faults


def _matrix_faults(place, where: str, key: str, width: int | None) -> list[str]:
    if key not in place:
        return [f"{where} has no {key!r} (it has {', '.join(map(repr, place)) or 'none'})"]
    matrix = np.asarray(place[key])
    if matrix.dtype.kind not in "fiu":
        return [f"{where}[{key!r}] holds values of {matrix.dtype}: numbers are expected"]
    if matrix.ndim != 2 or (width is not None and matrix.shape[1] != width):
        return [f"{where}[{key!r}] is of shape {matrix.shape}: {width} columns are expected"]
    if bad := int((~np.isfinite(matrix)).sum()):
        return [f"{where}[{key!r}] holds {bad} values that are NaN or infinite"]
    if bad := int((matrix < 0).sum()):
        return [f"{where}[{key!r}] holds {bad} negative values"]
    return []


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
    for label in _LABELS:
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
