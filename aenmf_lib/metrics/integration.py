"""How mixed are labels where cells lie together? Measures of the field beside the published benchmarks.

All on the z-scored embedding and the graph of 25 nearest neighbors of benchmark 1. Against a cell type purity and
silhouette should be high and LISI near 1; against a donor the reverse.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.metrics import silhouette_score
from tqdm import tqdm

from aenmf_lib.data.preprocessing import LABELS
from aenmf_lib.metrics.splits import encode
from aenmf_lib.metrics.validation import check_embeddings, check_labels

SILHOUETTE_CELLS = 20_000  # of more a sample is drawn: the silhouette takes a distance for each pair


def evaluate(
    graphs: Mapping[str, AnnData],
    obs: pd.DataFrame,
    *,
    used_cell_type: Mapping[str, bool],
    labels: Sequence[str] = LABELS,
    lisi: bool = False,
    seed: int = 42,
) -> pd.DataFrame:
    """Measure every embedding against every label.

    Parameters
    ----------
    graphs : model name -> AnnData
        From `clustering.neighbors_of_all`.
    obs : (n_cells, columns)
        Holds the columns named in `labels`.
    used_cell_type : model name -> bool
        Whether `cell_type` was used in training; copied to every row of the model.
    labels
        Columns to measure.
    lisi
        Add LISI, which needs the package scib-metrics.
    seed
        Of the sample of `SILHOUETTE_CELLS` that silhouettes are means over.

    Returns
    -------
    A row a model and label: `Model, label, purity, silhouette, n_cells, n_classes, n_neighbors, silhouette_cells,
    cell_type_in_training`, with `LISI` after `silhouette` if asked for. Purity is the mean share of a cell's neighbors
    that have its label, among those that have one. The silhouette is the mean over cells of (b - a) / max(a, b), in
    [-1, 1] (Rousseeuw 1987).
    LISI is the mean over cells of the inverse Simpson index of the labels nearby, from 1 to the number of classes
    (Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0), at a perplexity of a third of the neighbors.

    Raises
    ------
    ValueError
        See `check_embeddings` and `check_labels` in `aenmf_lib.folds`; or scib-metrics is needed and not installed.
    """
    check_embeddings({model: cells.X for model, cells in graphs.items()}, obs)
    check_labels(obs, labels, [seed])
    simpson = _lisi() if lisi else None
    rows = []
    for model, cells in tqdm(graphs.items(), desc="mixing", unit="model"):
        distances = cells.obsp["distances"]
        near, far = (part.reshape(cells.n_obs, -1) for part in (distances.indices, distances.data))  # itself left out
        for label in labels:
            y = encode(obs[label])
            there = np.flatnonzero(y >= 0)
            if simpson and len(there) < len(y):
                raise ValueError(
                    f"obs[{label!r}] is empty for {len(y) - len(there)} of {len(y)} cells, and LISI takes a label for "
                    "each: leave it out (LISI=false)."
                )
            n_sampled = min(SILHOUETTE_CELLS, len(there))
            sample = np.sort(np.random.default_rng(seed).choice(there, n_sampled, replace=False))
            row = {
                "Model": model,
                "label": label,
                "purity": (y[near] == y[:, None])[(y[near] >= 0) & (y[:, None] >= 0)].mean(),
                "silhouette": silhouette_score(cells.X[sample], y[sample]),
            }
            if simpson:
                row["LISI"] = simpson(near, far, y)
            n_neighbors = cells.uns["neighbors"]["params"]["n_neighbors"]
            rows.append(
                row
                | {"n_cells": len(there), "n_classes": y.max() + 1, "n_neighbors": n_neighbors}
                | {"silhouette_cells": n_sampled, "cell_type_in_training": bool(used_cell_type[model])}
            )
    return pd.DataFrame(rows)


def _lisi():
    try:
        scib = importlib.import_module("scib_metrics")
        results = importlib.import_module("scib_metrics.nearest_neighbors").NeighborsResults
    except ModuleNotFoundError as error:
        raise ValueError(
            f"lisi=True needs a package that is not installed ({error.name}): `pip install scib-metrics`, or leave it "
            f"out."
        ) from error

    def lisi(near: np.ndarray, far: np.ndarray, y: np.ndarray) -> float:
        itself = np.arange(len(y))[:, None]  # comes first there
        found = results(np.hstack([itself, near]), np.hstack([np.zeros_like(far[:, :1]), far]).astype(np.float32))
        return float(np.mean(scib.lisi_knn(found, y)))

    return lisi
