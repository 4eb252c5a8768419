"""Benchmark 1: agreement of Leiden clusters with a label, by ARI and NMI.

The columns of an embedding are z-scored, each cell is linked to its 24 nearest other cells (n_neighbors=25 counts the
cell itself), and Leiden runs under ten seeds. All numbers equal those of scanpy and scikit-learn.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from aenmf_lib.data.labels import CELL_TYPE
from aenmf_lib.data.preprocessing import LABELS
from aenmf_lib.metrics import neighbors
from aenmf_lib.metrics.neighbors import NeighborGraph
from aenmf_lib.metrics.score_cache import ScoreCache, fingerprint, mean_and_std, run_parallel, source_code
from aenmf_lib.metrics.splits import encode
from aenmf_lib.metrics.validation import check_inputs

__all__ = ["best_resolution", "evaluate", "resolution_curve", "summarize"]

SEEDS = tuple(range(10))
RESOLUTIONS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 2.0)
LONG = ["Model", "label", "seed", "ARI", "NMI", "n_clusters", "n_cells", "n_classes", "n_neighbors", "resolution"]
_KEY = ("Model", "label", "seed", "resolution")


def evaluate(
    graphs: Mapping[str, NeighborGraph], obs: pd.DataFrame, *, resolution: float = 0.8, **options
) -> pd.DataFrame:
    """Cluster every embedding under every seed and compare the clusters with each label.

    `resolution_curve` explains the options, the table and the errors.
    """
    return resolution_curve(graphs, obs, [resolution], **options)


def resolution_curve(
    graphs: Mapping[str, NeighborGraph],
    obs: pd.DataFrame,
    resolutions: Sequence[float],
    *,
    labels: Sequence[str] = LABELS,
    seeds: Sequence[int] = SEEDS,
    n_jobs: int = -1,
    cache: str | Path | None = None,
) -> pd.DataFrame:
    """Cluster every embedding at every resolution under every seed, and compare the clusters with each label.

    Parameters
    ----------
    graphs : model name -> NeighborGraph; obs : (n_cells, columns)
        From `neighbors.neighbor_graphs`, and their cells with the columns `labels`. Cells without a cell type are
        clustered with the others, but not compared.
    resolutions, seeds
        Of Leiden: one clustering for each pair. A higher resolution (above 0) gives more clusters.
    n_jobs, cache
        Parallel clusterings (-1: one per core), and a file that records every score; see `ScoreCache`.

    Returns
    -------
    One row per resolution (ascending), model, label and seed, in this order: the columns `LONG`. A label with one
    class has empty scores.

    Raises
    ------
    ValueError
        The labels, seeds or resolutions cannot be used, or a graph has other cells than `obs`.
    """
    if not resolutions or min(resolutions) <= 0 or len(set(resolutions)) < len(resolutions):
        raise ValueError(f"The resolutions are {list(resolutions)}. Expected one or more above 0, each only once.")
    check_inputs({model: graph.Z for model, graph in graphs.items()}, obs, labels, seeds)
    classes = {label: encode(obs[label]) for label in labels}
    links = {model: (graph.connectivities.indptr, graph.connectivities.indices) for model, graph in graphs.items()}
    code, packages = source_code("metrics/neighbors.py"), ["igraph", "scikit-learn"]
    graph_ids = {
        model: fingerprint(*links[model], graphs[model].n_neighbors, code, packages=packages) for model in graphs
    }
    class_ids = {label: fingerprint(y) for label, y in classes.items()}
    tasks = {
        (model, label, seed, resolution): graph_ids[model] + class_ids[label]
        for resolution, model, label, seed in product(sorted(resolutions), graphs, labels, seeds)
    }

    def score(missing: list[tuple]) -> Iterator[tuple[tuple, dict]]:
        compared: dict[tuple, list[str]] = {}  # model, seed and resolution of a clustering -> labels
        for model, label, seed, resolution in missing:
            compared.setdefault((model, seed, resolution), []).append(label)
        calls = (((model, *rest), (graph_ids[model], *links[model], *rest)) for model, *rest in compared)
        for (model, seed, resolution), clusters in run_parallel(neighbors.leiden_in_worker, calls, n_jobs):
            for label in compared[model, seed, resolution]:
                scores = _agreement(clusters, classes[label]) | {"n_neighbors": graphs[model].n_neighbors}
                yield (model, label, seed, resolution), scores

    return ScoreCache(cache, LONG, _KEY).evaluate(tasks, score, description="Leiden")


def best_resolution(curve: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of each model at the resolution with the highest NMI against the cell type.

    `curve` is from `resolution_curve`. NMI is the mean over the seeds; if several resolutions have the highest NMI, the
    lowest of them is chosen. Scores against other labels are those at this resolution. One row per model and label:
    `Model, label, resolution, ARI, NMI, n_clusters`. A model without scores against the cell type is left out.
    """
    by = curve.groupby(["Model", "label", "resolution"], sort=False)
    mean = by[["ARI", "NMI", "n_clusters"]].mean().reset_index()
    of_type = mean[mean["label"] == CELL_TYPE].dropna(subset="NMI").sort_values("resolution")
    highest = of_type.sort_values("NMI", ascending=False, kind="stable").drop_duplicates("Model")
    table = mean[mean["resolution"] == mean["Model"].map(highest.set_index("Model")["resolution"])]
    order = {name: i for i, name in enumerate(curve["Model"].unique())}
    return table.sort_values("Model", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _agreement(clusters: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return ARI, NMI and counts for clusters (n_cells,) and classes (n_cells,); cells with y < 0 are not compared."""
    known = y >= 0
    pair = y[known], clusters[known]
    counts = {"n_clusters": int(clusters.max()) + 1, "n_cells": int(known.sum()), "n_classes": int(y.max()) + 1}
    if counts["n_classes"] < 2:
        return {"ARI": np.nan, "NMI": np.nan, **counts}
    ari, nmi = adjusted_rand_score(*pair), normalized_mutual_info_score(*pair, average_method="arithmetic")
    return {"ARI": float(ari), "NMI": float(nmi), **counts}


def summarize(long: pd.DataFrame, label: str) -> pd.DataFrame:
    """Summarize the scores of one label in the published table format: mean and standard deviation (ddof 1) over seeds.

    The columns are `Model, ARI, ARI Std, NMI, NMI Std`; one row per model in the order of `results.MODELS`, then of
    other methods. A label without scores, and scores of different cells or parameters, raise a ValueError.
    """
    settings = ["n_cells", "n_classes", "n_neighbors", "resolution"]
    table = mean_and_std(long, label, ["ARI", "NMI"], settings, names=("{}", "{} Std"))
    return table[["Model", "ARI", "ARI Std", "NMI", "NMI Std"]]
