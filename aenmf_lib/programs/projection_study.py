"""Test of projection: comparison of projected cells of new donors with the same cells in training."""

import copy
import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib.data.labels import CELL_TYPE, DONOR
from aenmf_lib.data.preprocessing import normalize
from aenmf_lib.data.progress import hide_progress_bars
from aenmf_lib.metrics import classification
from aenmf_lib.metrics.classifiers import KNN
from aenmf_lib.metrics.splits import Splits
from aenmf_lib.models.aenmf import AENMF
from aenmf_lib.models.base import Model, relative_error
from aenmf_lib.models.base_nmf import BaseNMF
from aenmf_lib.models.conditional import CAENMF1, CAENMF2
from aenmf_lib.models.untied import UntiedAENMF
from aenmf_lib.programs.projection import project
from aenmf_lib.results.schema import OBSM, PROJECTION, PROVENANCE

__all__ = ["compare_projection"]

log = logging.getLogger(__name__)

_MODELS = {model.name: model for model in (AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF)}
_NEW = 3 / 8  # share of the donors that are new if no donor is given


def compare_projection(
    cells: AnnData, model: str = "CAE_NMF1", *, k: int = 80, seed: int = 42, new_donors: Sequence[str] = ()
) -> pd.DataFrame:
    """Fit a model without some donors, project their cells, and compare the usages with those of training.

    Parameters
    ----------
    cells : n_cells × n_genes
        Filtered cells as `data.load` returns them.
    model, k, seed
        Name of the model, such as 'CAE_NMF1'; number of programs; seed of the fits and of the choice of missing genes.
    new_donors
        Donors to project. By default, the last three eighths of the donors in the order of their names, at least one.

    Returns
    -------
    DataFrame, one row per way to obtain the usages
        - ``cells``: 'seen' (donors of the fit), 'new, in training' (the new donors in a second model, which is fitted
          to all donors), 'new, projected' (onto the first model), 'new, by symbol' (genes matched by symbol), 'new,
          half of the genes' (a random half, with the correction for missing genes) and 'new, half of the genes, not
          corrected' (missing genes set to 0)
        - ``n_cells``, ``n_genes`` (genes that were used), ``coverage`` (median over the programs)
        - ``F1_cell_type``: macro F1 of a kNN classifier that was trained on the cells of the seen donors; for 'seen',
          mean of five cross-validation folds
        - ``F1_donor``: macro F1 of a kNN classifier of the donor, mean of five cross-validation folds over these cells
        - ``error``: ``‖X − H W‖ / ‖X‖`` over all genes. It contains no donor part, so it is large for model 2.
        - ``slope``, ``correlation``: medians over the programs, for the usages compared with those of 'new, projected';
          NaN for the first two rows

    Raises
    ------
    ValueError
        A name is unknown, or fewer than two donors remain for the fit.
    """
    new = _find_new(cells, model, new_donors)
    seen_cells, new_cells = cells[~new].copy(), cells[new].copy()
    with hide_progress_bars():
        fitted, fitted_to_all = (_MODELS[model](k=k, seed=seed).fit(some) for some in (seen_cells, cells))
    half = np.sort(np.random.default_rng(seed).permutation(cells.n_vars)[: -(-cells.n_vars // 2)])
    fewer = new_cells[:, half].copy()
    fewer.X = normalize(fewer.X.expm1())  # as if their file did not have the other genes
    zeros = csr_matrix((np.ones(len(half), np.float32), (np.arange(len(half)), half)), (len(half), cells.n_vars))
    others = {
        "new, projected": project(fitted, new_cells),
        "new, by symbol": project(*_with_symbols(fitted, new_cells)),
        "new, half of the genes": project(fitted, fewer, min_coverage=0),
    }
    key = OBSM[model]["shared"].format(k=k)
    usages = {name: found.obsm[key] for name, found in others.items()}
    usages["new, half of the genes, not corrected"] = fitted.transform(fewer.X @ zeros)
    genes = {name: found.uns[PROVENANCE][PROJECTION] for name, found in others.items()}
    genes["new, half of the genes, not corrected"] = genes["new, half of the genes"]

    H, H_all, full = fitted.transform(seen_cells), fitted_to_all.transform(cells), usages["new, projected"]
    rows = [
        _describe("seen", seen_cells, H, fitted, _cross_validated(H, seen_cells.obs, CELL_TYPE)),
        _describe("new, in training", new_cells, H_all[new], fitted_to_all,
                  _transferred(H_all[~new], seen_cells.obs, H_all[new], new_cells.obs)),
    ]  # fmt: skip
    for name, H_new in usages.items():
        score = _transferred(H, seen_cells.obs, H_new, new_cells.obs)
        row = _describe(name, new_cells, H_new, fitted, score)
        row |= {"n_genes": genes[name]["n_genes_found"], "coverage": np.median(genes[name]["coverage"])}
        rows.append(row | _compare_usages(H_new, full))
    return pd.DataFrame(rows)


def _find_new(cells: AnnData, model: str, new_donors: Sequence[str]) -> np.ndarray:
    """Return whether each cell is of a new donor, (n_cells,) bool. Raise ValueError if a name is unknown."""
    if model not in _MODELS:
        raise ValueError(f"model={model!r} is unknown. Choose one of {', '.join(_MODELS)}.")
    donor = cells.obs[DONOR].astype(str)
    known = sorted(donor.unique())
    new_donors = [new_donors] if isinstance(new_donors, str) else new_donors
    if unknown := sorted(set(new_donors) - set(known)):
        raise ValueError(f"new_donors contains {unknown[0]!r}, which is no donor. Choose from {', '.join(known)}.")
    chosen = list(new_donors) or known[-max(1, round(_NEW * len(known))) :]
    if (n_left := len(set(known) - set(chosen))) < 2:
        raise ValueError(f"Of {len(known)} donors, {n_left} remain for the fit. At least 2 are needed. Choose fewer "
                         "new donors, or use cells of more donors.")  # fmt: skip
    log.info("%s is fitted to %d donors; the new donors are %s", model, n_left, ", ".join(map(str, chosen)))
    return donor.isin(chosen).to_numpy()


def _with_symbols(model: Model, cells: AnnData) -> tuple[Model, AnnData]:
    """Return the model and the cells, changed such that genes match by symbol only."""
    renamed, cells = copy.copy(model), cells.copy()
    if model.symbols_ is None or (np.asarray(model.symbols_) == model.genes_).all():  # the names are symbols
        renamed.symbols_, renamed.genes_ = model.genes_, pd.Index([f"id{i}" for i in range(len(model.genes_))])
        return renamed, cells
    cells.var_names = pd.Index(model.symbols_)
    return renamed, cells[:, ~cells.var_names.duplicated(keep=False)].copy()


def _describe(name: str, cells: AnnData, H: np.ndarray, model: Model, score: float) -> dict[str, float | str]:
    """Return a row of the table."""
    row = {"cells": name, "n_cells": cells.n_obs, "n_genes": cells.n_vars, "coverage": 1.0, "F1_cell_type": score}
    return row | {"F1_donor": _cross_validated(H, cells.obs, DONOR), "error": relative_error(cells, H, model.W_)}


def _cross_validated(H: np.ndarray, obs: pd.DataFrame, label: str) -> float:
    """Return the mean F1 of a kNN classifier of a label in five cross-validation folds, or NaN with one class."""
    options = {"labels": [label], "splits": Splits(), "classifiers": [KNN], "seeds": [42], "n_jobs": 1}
    with hide_progress_bars():
        return float(classification.cross_validate({"H": H}, obs, **options)["F1"].mean())


def _transferred(H: np.ndarray, obs: pd.DataFrame, H_new: np.ndarray, obs_new: pd.DataFrame) -> float:
    """Return the F1 of a kNN classifier of the cell type, trained on the cells of H, tested on those of H_new."""
    both, types = np.concatenate([H, H_new]), pd.concat([obs[CELL_TYPE], obs_new[CELL_TYPE]]).astype(object)
    return classification.transfer_f1(both, types, len(H), KNN)


def _compare_usages(H: np.ndarray, full: np.ndarray) -> dict[str, float]:
    """Return the median slope and correlation over the programs of H with `full`, (n_cells, k) usages each."""
    used = np.flatnonzero((full.std(axis=0) > 0) & (H.std(axis=0) > 0))
    slopes = (H * full).sum(axis=0)[used] / np.square(full).sum(axis=0)[used]
    correlations = [np.corrcoef(H[:, j], full[:, j])[0, 1] for j in used]
    return {"slope": float(np.median(slopes)), "correlation": float(np.median(correlations))}
