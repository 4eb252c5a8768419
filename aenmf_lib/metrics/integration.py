"""Mixing of labels among neighboring cells: purity, silhouette and LISI.

All are computed on the z-scored embedding and the neighbor graph of benchmark 1. For cell types, a good embedding has
high purity and silhouette, and LISI near 1; for donors the reverse.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import silhouette_score

from aenmf_lib.data.preprocessing import LABELS
from aenmf_lib.data.progress import tqdm
from aenmf_lib.metrics.neighbors import NeighborGraph
from aenmf_lib.metrics.splits import encode
from aenmf_lib.metrics.validation import check_inputs

__all__ = ["evaluate"]

SILHOUETTE_CELLS = 20_000  # with more cells a sample is used: the silhouette needs the distance of every pair


def evaluate(
    graphs: Mapping[str, NeighborGraph],
    obs: pd.DataFrame,
    *,
    labels: Sequence[str] = LABELS,
    lisi: bool = False,
    seed: int = 42,
) -> pd.DataFrame:
    """Measure the mixing of every label in every embedding.

    Parameters
    ----------
    graphs : model name -> NeighborGraph; obs : (n_cells, columns)
        From `neighbors.neighbor_graphs`, and their cells with the columns `labels`.
    lisi, seed
        Add LISI, which needs the package scib-metrics; the seed of the sample of `SILHOUETTE_CELLS` cells.

    Returns
    -------
    One row per model and label: `Model, label, purity, silhouette, n_cells, n_classes, n_neighbors, silhouette_cells`,
    with `LISI` after `silhouette` if requested. Purity is the mean share of neighbors with the label of the cell. The
    silhouette is the mean of (b - a) / max(a, b), in [-1, 1] (Rousseeuw 1987). LISI is the mean inverse Simpson index
    of the labels nearby, from 1 to the number of classes (Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0). A
    label with one class has empty scores.

    Raises
    ------
    ValueError
        The labels cannot be used, a graph has other cells than `obs`, or scib-metrics is not installed.
    """
    check_inputs({model: graph.Z for model, graph in graphs.items()}, obs, labels, [seed])
    mean_lisi = _mean_lisi() if lisi else None
    classes, rows = {label: encode(obs[label]) for label in labels}, []
    for model, graph in tqdm(graphs.items(), desc="mixing", unit="model"):
        near, distance = (part.reshape(len(obs), -1) for part in (graph.distances.indices, graph.distances.data))
        for label, y in classes.items():
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
            if mean_lisi and n_classes < 2:
                row["LISI"] = np.nan
            elif mean_lisi:
                if n_missing := len(y) - len(known):
                    raise ValueError(
                        f"obs[{label!r}] is empty for {n_missing} of {len(y)} cells. LISI needs a label for every "
                        "cell. Leave LISI out (LISI=false)."
                    )
                row["LISI"] = mean_lisi(near, distance, y)
            row |= {"n_cells": len(known), "n_classes": n_classes, "n_neighbors": graph.n_neighbors}
            rows.append(row | {"silhouette_cells": n_sampled})
    return pd.DataFrame(rows)


def _mean_lisi() -> Callable[[np.ndarray, np.ndarray, np.ndarray], float]:
    """Return the function (neighbors, distances (n_cells, n_neighbors), classes (n_cells,)) -> LISI of scib-metrics."""
    try:
        scib = importlib.import_module("scib_metrics")
        results = importlib.import_module("scib_metrics.nearest_neighbors").NeighborsResults
    except ModuleNotFoundError as error:
        problem = f"lisi=True needs a package that is not installed ({error.name})."
        raise ValueError(f"{problem} Run `pip install scib-metrics`, or leave LISI out.") from error

    def mean_lisi(near: np.ndarray, distance: np.ndarray, y: np.ndarray) -> float:
        cell = np.arange(len(y))[:, None]  # scib-metrics counts the cell as its first neighbor
        distance = np.hstack([np.zeros_like(distance[:, :1]), distance]).astype(np.float32)
        return float(np.mean(scib.lisi_knn(results(np.hstack([cell, near]), distance), y)))  # perplexity: n_neighbors/3

    return mean_lisi
