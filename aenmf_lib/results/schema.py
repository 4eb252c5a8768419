"""Keys of results files, defined only here, and the function that checks a file against them."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData

from aenmf_lib.data import files
from aenmf_lib.data.frames import plain_frame
from aenmf_lib.data.labels import CELL_TYPE, DONOR
from aenmf_lib.data.reading import is_array

# role -> published key, where {k} is the rank
_CONDITIONAL = {"shared": "H_shared_k{k}", "cond_latent": "H_cond_latent_k{k}", "concat_full": "H_concat_full_k{k}"}
OBSM = {
    "CAE_NMF1": _CONDITIONAL,
    "CAE_NMF2": _CONDITIONAL,
    "AE_NMF": {"shared": "H_shared_k{k}"},
    "Base_NMF": {"shared": "H_sklearn_nmf_k{k}"},
    "Untied_AE_NMF": {"shared": "H_untied_k{k}"},
}
VARM = {
    "CAE_NMF1": {"W": "W_concat_k{k}", "U": "U_concat_gene_k{k}"},
    "CAE_NMF2": {"W": "W_concat_k{k}"},
    "AE_NMF": {"W": "W_tied_k{k}"},
    "Base_NMF": {"W": "W_sklearn_nmf_k{k}"},
    "Untied_AE_NMF": {"W": "W_untied_k{k}", "E": "E_untied_k{k}", "U": "U_untied_k{k}"},  # U only with donors
}
META = {
    "CAE_NMF1": "cond_meta_concat_k{k}",
    "CAE_NMF2": "cond_meta_concat_k{k}",
    "Base_NMF": "sklearn_nmf_k{k}",
    "Untied_AE_NMF": "untied_meta_k{k}",
}
GENE_WEIGHTS = "gene_weights"  # varm, only if genes are weighted: H = X (W diag(w²))ᵀ, except in the untied model
U_DONOR = "U_donor_k{k}"  # uns, model 2, optional
OVERLAP = "donor_overlap_k{k}"  # uns, conditional models: U Eᵀ (model 1) or diag(U_d Eᵀ) (model 2), (n_donors, k)
DONOR_PART = "donor_part_k{k}"  # varm, model 2, optional: donor part h̄ U_d at the mean usages h̄ of all cells
PROVENANCE = "provenance"  # uns
PROJECTION = "projection"  # in the provenance of projected cells: overlap of their genes with those of the model
SKIPPED = "skipped"  # in the provenance: why a model was not trained; the file then contains no embedding
FIT_KEYS = "fit_keys"  # in the provenance: names of the columns of donor and cell type in the cells of the fit
CELLS = "cells"  # in the provenance: original columns of donor and cell type, and the number of cells before sampling
USED_CELL_TYPE = "cell_type_in_training"  # in the provenance and in tables
MODELS = tuple(OBSM)  # the order of rows in every table and figure
PUBLISHED = ("CAE_NMF1", "CAE_NMF2", "AE_NMF", "Base_NMF")  # the models of the paper, which `make all` trains
# columns of programs_<model>.csv and of program_cards_<model>.csv
GENE_COLUMNS = ("program", "rank", "gene", "symbol", "weight", "specificity", "ribosomal", "mitochondrial")
CARD_COLUMNS = (  # nearest_<model> and cosine_<model> are between the two parts
    ("program", "top_genes", "specific_genes", "share_of_norm", "top_type", "usage_by_type", "variance_by_type",
     "variance_by_donor", "stability"),
    ("gene_set", "gene_set_overlap", "gene_set_fdr"),
)  # fmt: skip
# columns of usage_by_type.csv, program_matches.csv and gene_set_enrichment.csv
USAGE_COLUMNS = ("Model", "program", CELL_TYPE, "mean_usage", "n_cells")
MATCH_COLUMNS = ("Model", "program", "other", "other_program", "cosine", "matched")
SET_COLUMNS = ("Model", "program", "gene_set", "overlap", "size", "p", "fdr", "shared_genes")
# columns of donor_genes.csv and donor_share.csv
DONOR_GENE_COLUMNS = ("Model", DONOR, "rank", "gene", "symbol", "weight", "difference")
DONOR_SHARE_COLUMNS = ("Model", DONOR, "n_cells", "share", "share_common")

_ENTRIES = 2**18  # of an array that are checked at a time
_NEEDED = (USED_CELL_TYPE, "loss_history", "n_iter", "sq_norm_per_cell")  # entries that a provenance must contain


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that figure captions report besides scores."""

    k: int | None = None
    n_cells: int | None = None
    used_cell_type: Mapping[str, bool] = field(default_factory=dict)  # model -> whether training read cell_type
    donor_column: str = DONOR  # column of the input that is donor_id
    cell_type_column: str = CELL_TYPE
    sampled_from: int = 0  # number of cells before a random sample was drawn; 0 if all cells are used
    skipped: Mapping[str, str] = field(default_factory=dict)  # model -> why it was not trained


def skip_reason(uns: Mapping) -> str:
    """Return why a model was not trained, or '' for the results of a trained model."""
    provenance = uns.get(PROVENANCE)
    return str(provenance.get(SKIPPED, "")) if isinstance(provenance, Mapping) else ""


def identify(cells: AnnData) -> tuple[str, int]:
    """Return the model and the rank of a results file. Raises ValueError unless its keys are those of one model."""
    found = _find_models(cells.varm)
    if len(found) != 1:
        raise ValueError(_describe_models(found, cells.varm))
    return found[0]


def _find_models(keys: Iterable[str]) -> list[tuple[str, int]]:
    """Return the models and ranks whose programs are among the keys of varm."""
    found = []
    for name in MODELS:
        prefix = re.escape(VARM[name]["U" if name == "CAE_NMF1" else "W"].removesuffix("{k}"))
        matches = (re.fullmatch(rf"{prefix}([0-9]{{1,9}})", key) for key in keys)
        found += [(name, int(match[1])) for match in matches if match]
    # models 1 and 2 have the same keys, except the U of model 1
    return [(name, k) for name, k in found if name != "CAE_NMF2" or ("CAE_NMF1", k) not in found]


def _describe_models(found: list[tuple[str, int]], keys: Iterable[str]) -> str:
    """Describe the keys of varm, which are not those of exactly one model."""
    models = ", ".join(f"{name} (k = {k})" for name, k in found) or "no model"
    expected = ", ".join(VARM[name]["W"].format(k="<k>") for name in MODELS if name != "CAE_NMF1")
    keys = ", ".join(list(keys)[:20]) or "none"
    return f"The varm keys ({keys}) belong to {models}. Expected exactly one of {expected}."


def check(path: str | Path) -> list[str]:
    """Return the faults of a results file. The list is empty if the file is valid, or if its model was skipped."""
    try:
        _require_path(path)
        with files.open_cells(path) as file:
            if faults := _find_missing_results(file, path):
                return faults
            with files.guard(path):
                obsm = dict(file.get("obsm", {}))  # arrays of HDF5, which `find_faults` reads in blocks
                parts = {part: files.read_element(file, part, path) for part in file if part not in ("obsm", "raw")}
                parts |= {name: plain_frame(parts.get(name), name, path) for name in ("obs", "var")}
                embeddings = {key: value for key, value in obsm.items() if is_array(value)}
                return find_faults(AnnData(**parts, obsm=embeddings))
    except (OSError, ValueError, MemoryError) as error:
        return [str(error)]


def load(path: str | Path, *, with_cells: bool = True) -> tuple[AnnData | None, list[str]]:
    """Return the contents of a results file and their faults. A file without results is not read.

    With ``with_cells=False``, obs and obsm, which may be large, are not read. The contents then have no cells, like
    those of a file written by ``model.save``.
    """
    _require_path(path)
    with files.open_cells(path) as file:
        if faults := _find_missing_results(file, path):
            return None, faults
        if not with_cells:
            parts = {part: files.read_element(file, part, path) for part in ("var", "varm", "uns") if part in file}
            parts["var"] = plain_frame(parts.get("var"), "var", path)
    with files.guard(path):
        cells = files.read_h5ad(path) if with_cells else AnnData(obs=pd.DataFrame(index=[]), **parts)
    return cells, find_faults(cells)


def _require_path(path: object) -> None:
    """Raise TypeError unless the argument is a path."""
    if not isinstance(path, str | Path):
        raise TypeError(f"Got {path!r:.80}, a {type(path).__name__}. Expected the path of a results file (.h5ad).")


def _find_missing_results(file: h5py.File, path: str | Path) -> list[str]:
    """Return a fault if a file has neither the programs of a model nor the reason why a model was skipped."""
    with files.guard(path):
        keys = list(file["varm"]) if "varm" in file else []
        skipped = f"uns/{PROVENANCE}/{SKIPPED}" in file
    if skipped or _find_models(keys):
        return []
    train = "Train a model on filtered cells and write it with results.write."
    return [f"is not a results file: {_describe_models([], keys)} {train}"]


def find_faults(cells: AnnData) -> list[str]:
    """Return the faults of the contents of a results file."""
    faults = []
    if cells.X is not None:
        faults.append(f"X is a matrix of {cells.n_obs} × {cells.n_vars}; a results file must have no X")
    if skip_reason(cells.uns):
        if (model := str(cells.uns[PROVENANCE].get("model"))) not in MODELS:
            faults.append(f"uns['{PROVENANCE}']['model'] is {model!r}, which is not one of {', '.join(MODELS)}")
        if cells.obsm or cells.varm:
            faults.append(f"the model was skipped, but obsm or varm has {', '.join([*cells.obsm, *cells.varm])}")
        return faults
    try:
        name, k = identify(cells)
    except ValueError as error:
        return [*faults, str(error)]
    for role, key in OBSM[name].items() if cells.n_obs else ():
        shape = (cells.n_obs, 2 * k if role == "concat_full" else k)
        faults += _find_array_faults(cells.obsm, "obsm", key.format(k=k), shape)
    n_donors = _count_donors(cells, name, k)
    for part, key in VARM[name].items():
        if (part, name, n_donors) == ("U", "Untied_AE_NMF", 0) and key.format(k=k) not in cells.varm:
            continue  # trained without a penalty
        shape = (cells.n_vars, n_donors if part == "U" else k)
        faults += _find_array_faults(cells.varm, "varm", key.format(k=k), shape, () if part == "U" else ("f4", "f8"))
    for key, shape in ((OVERLAP, (n_donors, k)), (U_DONOR, (n_donors, k, cells.n_vars))):
        if name in ("CAE_NMF1", "CAE_NMF2") and key.format(k=k) in cells.uns:
            faults += _find_array_faults(cells.uns, "uns", key.format(k=k), shape)
    if DONOR_PART.format(k=k) in cells.varm:
        faults += _find_array_faults(cells.varm, "varm", DONOR_PART.format(k=k), (cells.n_vars, n_donors))
    if name in META and META[name].format(k=k) not in cells.uns:
        faults.append(f"uns has no {META[name].format(k=k)!r}")
    if PROVENANCE in cells.uns:
        faults += _find_provenance_faults(cells.uns[PROVENANCE])
        weighted = not faults and cells.uns[PROVENANCE].get("parameters", {}).get("gene_weights") == "shared"
        if weighted or GENE_WEIGHTS in cells.varm:
            faults += _find_array_faults(cells.varm, "varm", GENE_WEIGHTS, (cells.n_vars, 1))
    elif name not in PUBLISHED:
        faults.append(f"uns has no {PROVENANCE!r}")
    return faults


def _count_donors(cells: AnnData, name: str, k: int) -> int | None:
    """Return the number of donors that the file lists, or else of those in obs, or None if neither is known."""
    meta = cells.uns.get(META[name].format(k=k)) if name in META else None
    if isinstance(meta, Mapping) and "donors" in meta:
        return np.size(meta["donors"])
    return cells.obs[DONOR].nunique() if DONOR in cells.obs else None


def _find_provenance_faults(provenance: object) -> list[str]:
    """Return the faults of a provenance."""
    place = f"uns['{PROVENANCE}']"
    if not isinstance(provenance, Mapping):
        return [f"{place} is a {type(provenance).__name__}; a group with named entries is expected"]
    if missing := [key for key in _NEEDED if key not in provenance]:
        return [f"{place} has no {key!r}" for key in missing]
    groups = [key for key in ("parameters", CELLS) if not isinstance(provenance.get(key, {}), Mapping)]
    wrong = [f"{place}[{key!r}] is not a group with named entries" for key in groups]
    for key, n_dimensions in (("loss_history", 1), ("n_iter", 0), ("sq_norm_per_cell", 0)):
        values = np.asarray(provenance[key])
        if values.dtype.kind not in "fiu" or values.ndim != n_dimensions or not values.size:
            wrong.append(f"{place}[{key!r}] is {str(provenance[key])[:80]!r}, not {'a list of ' * n_dimensions}numbers")
    n_cells = np.asarray(provenance.get("n_cells", 1))
    if n_cells.dtype.kind not in "iu" or n_cells.ndim or n_cells < 1:
        wrong.append(f"{place}['n_cells'] is {str(n_cells)[:80]!r}, not a whole number of at least 1")
    return wrong


def _find_array_faults(
    arrays: Mapping, place: str, key: str, shape: tuple[int | None, ...], dtypes: tuple[str, ...] = ()
) -> list[str]:
    """Return the first fault of an array that must be finite and non-negative, of a shape (None: any) and a dtype."""
    if key not in arrays:
        return [f"{place} has no {key!r}; it has {', '.join(map(repr, arrays)) or 'none'}"]
    array, name = arrays[key], f"{place}[{key!r}]"
    if not isinstance(array, h5py.Dataset):
        array = np.asarray(array)
    if array.dtype.kind not in "fiu" or (dtypes and array.dtype not in [np.dtype(dtype) for dtype in dtypes]):
        expected = " or ".join(np.dtype(dtype).name for dtype in dtypes) or "numbers"
        return [f"{name} has values of type {array.dtype}; {expected} are expected"]
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        expected = " × ".join("any number" if n is None else str(n) for n in shape)
        return [f"{name} has shape {array.shape}; {expected} values are expected"]
    n_bad = n_negative = 0
    n_rows = max(1, _ENTRIES // max(1, math.prod(array.shape[1:])))
    for lo in range(0, len(array), n_rows):
        block = array[lo : lo + n_rows]
        n_bad, n_negative = n_bad + int((~np.isfinite(block)).sum()), n_negative + int((block < 0).sum())
    if n_bad:
        return [f"{name} contains {n_bad} values that are NaN or infinite"]
    return [f"{name} contains {n_negative} negative values"] if n_negative else []
