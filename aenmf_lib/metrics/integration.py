"""Mixing of labels among neighboring cells: purity and silhouette, and the scores LISI, BRAS, CiLISI and kBET.

All are computed on the z-scored embedding. For cell types, a good embedding has high purity and silhouette, and LISI
near 1; for donors the reverse. BRAS, CiLISI and kBET compare donors within cell types: 0 is separate, 1 is mixed.
"""

import importlib
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import pandas as pd
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from aenmf_lib.data.labels import CELL_TYPE
from aenmf_lib.data.preprocessing import LABELS
from aenmf_lib.data.progress import tqdm
from aenmf_lib.metrics.neighbors import NeighborGraph
from aenmf_lib.metrics.splits import encode
from aenmf_lib.metrics.validation import check_inputs

__all__ = ["evaluate"]

SILHOUETTE_CELLS = 20_000  # with more cells a sample is used: the silhouette needs the distance of every pair
WITHIN_TYPES = ["BRAS", "CiLISI", "kBET"]
_N_NEIGHBORS = 90  # of LISI and CiLISI, with the cell itself, as in scib-metrics
_MIN_CELLS = 10  # smaller cell types are left out of BRAS, CiLISI and kBET
_KBET_NEIGHBORS = (10, 70)  # smallest and largest neighborhood of kBET, as in scib-metrics


def evaluate(
    graphs: Mapping[str, NeighborGraph],
    obs: pd.DataFrame,
    *,
    labels: Sequence[str] = LABELS,
    scib: bool = False,
    seed: int = 42,
) -> pd.DataFrame:
    """Measure the mixing of every label in every embedding.

    Parameters
    ----------
    graphs : model name -> NeighborGraph; obs : (n_cells, columns)
        From `neighbors.neighbor_graphs`, and their cells with the columns `labels`.
    scib, seed
        Add LISI, BRAS, CiLISI and kBET, which need the package scib-metrics and the column ``obs['cell_type']``; the
        seed of the sample of `SILHOUETTE_CELLS` cells.

    Returns
    -------
    One row per model and label: `Model, label, purity, silhouette, n_cells, n_classes, n_neighbors, silhouette_cells`,
    with `LISI, BRAS, CiLISI, kBET` after `silhouette` if requested. A label with one class has empty scores. All scores
    but the purity are those of the sampled cells.

    - Purity: mean share of neighbors with the label of the cell.
    - Silhouette: mean of (b - a) / max(a, b), in [-1, 1] (Rousseeuw 1987).
    - LISI: mean inverse Simpson index of the labels of the 90 nearest cells, from 1 to the number of classes (Korsunsky
      et al. 2019, doi:10.1038/s41592-019-0619-0).
    - BRAS: 1 - the absolute silhouette of the label among the cells of a type, mean over the types. Distances are
      cosine, and b is the mean distance to the cells of all other labels (Rautenstrauch & Ohler 2025,
      doi:10.1038/s41587-025-02743-4).
    - CiLISI: (LISI - 1) / (labels in the type - 1) with LISI among the cells of a type, mean over the cells (Andreatta
      et al. 2024, doi:10.1038/s41467-024-45240-z).
    - kBET: share of the cells whose neighbors within their type have the labels of the type in the expected
      proportions, by a χ² test at level 0.05, mean over the types (Büttner et al. 2019,
      doi:10.1038/s41592-018-0254-1). The neighborhood is a quarter of the mean number of cells per label, 10 to 70.

    The last three compare a label within cell types, so they are empty for the cell type itself. They are near 0 if the
    values of the label are separate, and near 1 if they are mixed (CiLISI only if they also have equally many cells).
    Cells without a type, types with fewer than 10 cells and types with one value of the label are left out.

    Raises
    ------
    ValueError
        The labels cannot be used, a graph has other cells than `obs`, or scib-metrics is not installed.
    """
    columns = [*dict.fromkeys([*labels, CELL_TYPE])] if scib else labels
    check_inputs({model: graph.Z for model, graph in graphs.items()}, obs, columns, [seed])
    functions = import_scib() if scib else None
    classes, rows = {label: encode(obs[label]) for label in columns}, []
    for model, graph in tqdm(graphs.items(), desc="mixing", unit="model"):
        near = graph.distances.indices.reshape(len(obs), -1)
        for label in labels:
            y = classes[label]
            known = np.flatnonzero(y >= 0)
            n_sampled = min(SILHOUETTE_CELLS, len(known))
            sample = np.sort(np.random.default_rng(seed).choice(known, n_sampled, replace=False))
            pairs = (y[near] >= 0) & (y[:, None] >= 0)  # (n_cells, n_neighbors): both cells are labeled
            n_classes, n_sampled_classes = int(y.max()) + 1, len(np.unique(y[sample]))
            row = {"Model": model, "label": label, "purity": np.nan, "silhouette": np.nan}
            if n_classes > 1 and pairs.any():
                row["purity"] = (y[near] == y[:, None])[pairs].mean()
            if 1 < n_sampled_classes < n_sampled:  # otherwise it is not defined
                row["silhouette"] = silhouette_score(graph.Z[sample], y[sample])
            if scib:
                row |= dict.fromkeys(["LISI", *WITHIN_TYPES], np.nan)
                if n_sampled_classes > 1:
                    row["LISI"] = _lisi(graph.Z[sample], y[sample], functions)
                if label != CELL_TYPE:
                    row |= _score_within_types(graph.Z[sample], y[sample], classes[CELL_TYPE][sample], functions)
            row |= {"n_cells": len(known), "n_classes": n_classes, "n_neighbors": graph.n_neighbors}
            rows.append(row | {"silhouette_cells": n_sampled})
    return pd.DataFrame(rows)


def import_scib() -> SimpleNamespace:
    """Return the functions of scib-metrics that are used here."""
    try:
        scib = importlib.import_module("scib_metrics")
        results = importlib.import_module("scib_metrics.nearest_neighbors").NeighborsResults
    except ModuleNotFoundError as error:
        problem = f"scib=True needs a package that is not installed ({error.name})."
        raise ValueError(f"{problem} Run `pip install scib-metrics`, or leave out its scores (scib=False).") from error
    return SimpleNamespace(lisi=scib.lisi_knn, bras=scib.bras, kbet=scib.kbet, neighbors=results)


def _nearest(Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest cells of each cell, first itself, and their distances; both (n_cells, ≤ 90)."""
    distance, near = NearestNeighbors(n_neighbors=min(_N_NEIGHBORS, len(Z))).fit(Z).kneighbors(Z)
    return near, distance.astype(np.float32)


def _lisi(Z: np.ndarray, y: np.ndarray, scib: SimpleNamespace) -> float:
    """Return the mean LISI of classes y (n_cells,) in an embedding Z (n_cells, k); the perplexity is 30."""
    return float(np.mean(scib.lisi(scib.neighbors(*_nearest(Z)), y)))


def _score_within_types(Z: np.ndarray, y: np.ndarray, types: np.ndarray, scib: SimpleNamespace) -> dict[str, float]:
    """Return BRAS, CiLISI and kBET of classes y within types, both (n_cells,), in an embedding Z (n_cells, k)."""
    near = np.tile(np.arange(len(Z))[:, None], _N_NEIGHBORS)  # short rows end with the cell itself, which LISI ignores
    distance, largest = np.zeros(near.shape, np.float32), np.full(len(Z), np.nan)  # largest: upper bound of LISI - 1
    accepted = []
    for kind in np.unique(types[types >= 0]):
        own = np.flatnonzero(types == kind)
        own_y = np.unique(y[own], return_inverse=True)[1]
        n_classes = own_y.max() + 1
        if len(own) < _MIN_CELLS or n_classes < 2:
            continue
        own_near, own_distance = _nearest(Z[own])
        near[own, : own_near.shape[1]], distance[own, : own_near.shape[1]] = own[own_near], own_distance
        largest[own] = n_classes - 1
        size = int(np.clip(len(own) // (4 * n_classes), *_KBET_NEIGHBORS))
        accepted.append(float(scib.kbet(scib.neighbors(own_near[:, :size], own_distance[:, :size]), own_y)[0]))
    if not accepted:
        return dict.fromkeys(WITHIN_TYPES, np.nan)
    scored = np.isfinite(largest)
    lisi = np.asarray(scib.lisi(scib.neighbors(near, distance), y))
    bras = float(scib.bras(Z[scored], types[scored], np.unique(y[scored], return_inverse=True)[1]))
    return {"BRAS": bras, "CiLISI": float(np.mean((lisi - 1)[scored] / largest[scored])), "kBET": np.mean(accepted)}
