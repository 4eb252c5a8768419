"""TODO module docstring."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from anndata import AnnData

from aenmf_lib.data import files, preprocessing
from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR, LABELS

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
GENE_WEIGHTS = "gene_weights"  # of the genes in the objective, where they are not all alike: H = X (W diag(w²))ᵀ
U_DONOR = "U_donor_k{k}"  # model 2, written when asked for
PROVENANCE = "provenance"
GROUPS = "groups_in_training"  # obs: the clusters of a fit with labels="clusters"; in tables: its labels

_NEEDED = ("cell_type_in_training", "loss_history", "n_iter", "sq_norm_per_cell")  # of the provenance, by what reads it

MODELS = tuple(OBSM)  # the order of rows in every table and figure
_PUBLISHED_WITH_CELL_TYPE = {"CAE_NMF1"}  # what a file without provenance was trained with, by its published settings


@dataclass(frozen=True)
class RunInfo:
    """What captions and tables report about a run besides its scores."""

    k: int | None = None
    n_cells: int | None = None
    used_cell_type: Mapping[str, bool] = field(default_factory=dict)  # model -> whether training read cell_type
    groups: Mapping[str, str] = field(default_factory=dict)  # model -> groups within which its penalty compared donors


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


def check(path: str | Path) -> list[str]:
    """Say what is wrong with a results file; an empty list if nothing is."""
    try:
        cells = files.read_h5ad(path)
    except (OSError, ValueError) as error:
        return [str(error)]
    return _faults(cells)


def _faults(cells: AnnData) -> list[str]:
    faults = []
    for label in LABELS:
        if label not in cells.obs:
            faults.append(f"obs has no column {label!r} (it has {', '.join(map(repr, cells.obs)) or 'none'})")
        elif label != CELL_TYPE and (empty := int(preprocessing.is_missing(cells.obs[label]).sum())):
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
