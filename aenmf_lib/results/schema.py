"""Keys of results files, defined only here, and the function that checks a file against them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from anndata import AnnData

from aenmf_lib.data import files, preprocessing
from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR, LABELS

# role -> published key, where {k} is the rank
_CONDITIONAL = {"shared": "H_shared_k{k}", "cond_latent": "H_cond_latent_k{k}", "concat_full": "H_concat_full_k{k}"}
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
GENE_WEIGHTS = "gene_weights"  # varm, only if the genes have different weights: H = X (W diag(w²))ᵀ
U_DONOR = "U_donor_k{k}"  # uns, model 2, optional
PROVENANCE = "provenance"  # uns
USED_CELL_TYPE = "cell_type_in_training"  # in the provenance and in tables
GROUPS = "groups_in_training"  # in obs: the clusters of a fit with labels="clusters"; in tables: the labels of a fit
MODELS = tuple(OBSM)  # the order of rows in every table and figure

_NEEDED = (USED_CELL_TYPE, "loss_history", "n_iter", "sq_norm_per_cell")  # entries that a provenance must contain


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that figure captions report besides scores."""

    k: int | None = None
    n_cells: int | None = None
    used_cell_type: Mapping[str, bool] = field(default_factory=dict)  # model -> whether training read cell_type
    groups: Mapping[str, str] = field(default_factory=dict)  # model -> groups within which its penalty compared donors


def identify(cells: AnnData) -> tuple[str, int]:
    """Return the model and the rank of a results file. Raises ValueError unless its keys are those of one model."""
    found = []
    for name in MODELS:
        prefix = list(VARM[name].values())[-1].removesuffix("{k}")
        ranks = (key.removeprefix(prefix) for key in cells.varm if key.startswith(prefix))
        found += [(name, int(rank)) for rank in ranks if rank.isdigit()]
    # both conditional models have the same keys, except the U of model 1
    found = [(name, k) for name, k in found if name != "CAE_NMF2" or ("CAE_NMF1", k) not in found]
    if len(found) != 1:
        models = ", ".join(f"{name} (k = {k})" for name, k in found) or "no model"
        expected = ", ".join(VARM[name]["W"].format(k="<k>") for name in MODELS if name != "CAE_NMF1")
        found = f"The varm keys ({', '.join(cells.varm) or 'none'}) belong to {models}"
        raise ValueError(f"{found}. Expected exactly one of {expected}.")
    return found[0]


def check(path: str | Path) -> list[str]:
    """Return the faults of a results file. The list is empty if the file is valid."""
    try:
        return find_faults(files.read_h5ad(path))
    except (OSError, ValueError) as error:
        return [str(error)]


def find_faults(cells: AnnData) -> list[str]:
    """Return the faults of the contents of a results file."""
    faults = []
    for label in LABELS:
        if label not in cells.obs:
            faults.append(f"obs has no column {label!r}; it has {', '.join(map(repr, cells.obs)) or 'none'}")
        elif label != CELL_TYPE and (n := int(preprocessing.is_missing(cells.obs[label]).sum())):
            faults.append(f"obs[{label!r}] is empty for {n} of {cells.n_obs} cells")
    if cells.X is not None:
        faults.append(f"X is a matrix of {cells.n_obs} × {cells.n_vars}; a results file must have no X")
    try:
        name, k = identify(cells)
    except ValueError as error:
        return [*faults, str(error)]
    for role, key in OBSM[name].items():
        faults += _find_matrix_faults(cells.obsm, "obsm", key.format(k=k), 2 * k if role == "concat_full" else k)
    n_donors = cells.obs[DONOR].nunique() if DONOR in cells.obs else None
    for part, key in VARM[name].items():
        faults += _find_matrix_faults(cells.varm, "varm", key.format(k=k), k if part == "W" else n_donors)
    if name in META and META[name].format(k=k) not in cells.uns:
        faults.append(f"uns has no {META[name].format(k=k)!r}")
    if PROVENANCE in cells.uns:
        faults += [f"uns['{PROVENANCE}'] has no {key!r}" for key in _NEEDED if key not in cells.uns[PROVENANCE]]
    return faults


def _find_matrix_faults(matrices: Mapping, place: str, key: str, width: int | None) -> list[str]:
    """Return the first fault of a matrix that must be finite and non-negative, with `width` columns if given."""
    if key not in matrices:
        return [f"{place} has no {key!r}; it has {', '.join(map(repr, matrices)) or 'none'}"]
    matrix, name = np.asarray(matrices[key]), f"{place}[{key!r}]"
    if matrix.dtype.kind not in "fiu":
        return [f"{name} has values of type {matrix.dtype}; numbers are expected"]
    if matrix.ndim != 2 or (width is not None and matrix.shape[1] != width):
        return [f"{name} has shape {matrix.shape}; {width} columns are expected"]
    if n := int((~np.isfinite(matrix)).sum()):
        return [f"{name} contains {n} values that are NaN or infinite"]
    n = int((matrix < 0).sum())
    return [f"{name} contains {n} negative values"] if n else []
