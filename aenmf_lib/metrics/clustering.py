"""How ARI and NMI are made: benchmark 1, how well the groups that cells form in an embedding agree with a label.

z-scored columns, the graph of 25 nearest neighbors, Leiden under ten seeds, then the adjusted Rand index and the
normalized mutual information against a label. Every number is what the plain scanpy and scikit-learn calls give; the
graph of a model is made once for all seeds, both labels and the UMAP, and a clustering is made once for both labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import igraph
import numpy as np
import pandas as pd
from anndata import AnnData
from joblib import Parallel, delayed
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from tqdm import tqdm

from aenmf_lib.data.preprocessing import LABELS
from aenmf_lib.metrics import neighbors
from aenmf_lib.metrics.neighbors import leiden, unweighted_graph
from aenmf_lib.metrics.score_cache import FINGERPRINT, ScoreCache, fingerprint
from aenmf_lib.metrics.splits import encode
from aenmf_lib.metrics.validation import check_embeddings, check_labels, select_label
from aenmf_lib.results.schema import MODELS

_last: dict[str, igraph.Graph] = {}  # the graph that a worker divided before


def compare(
    name: tuple[str, int],
    of: str,
    indptr: np.ndarray,
    indices: np.ndarray,
    classes: Mapping[str, np.ndarray],
    **options,
) -> tuple[tuple[str, int], int, dict[str, tuple[float, float]]]:
    """Divide a graph once and compare with labels.

    Parameters
    ----------
    name
        Model and seed, given back: workers answer in any order.
    of
        Fingerprint of the graph: a worker that is asked for the same again has it still.
    indptr, indices
        See `graph`.
    options
        See `leiden`.
    classes : label -> (n_cells,) int
        Cells below 0 have no class and are not compared.

    Returns
    -------
    `name`; the number of clusters; label -> ARI and NMI, the latter normalized by the arithmetic mean of the two
    entropies.
    """
    if of not in _last:
        _last.clear()
        _last[of] = unweighted_graph(indptr, indices)
    clusters = leiden(_last[of], name[1], **options)
    pairs = {label: (y[y >= 0], clusters[y >= 0]) for label, y in classes.items()}
    found = {
        label: (
            float(adjusted_rand_score(*pair)),
            float(normalized_mutual_info_score(*pair, average_method="arithmetic")),
        )
        for label, pair in pairs.items()
    }
    return name, int(clusters.max()) + 1, found


SEEDS = tuple(range(10))
_SETTINGS = ("n_clusters", "n_cells", "n_classes", "n_neighbors", "resolution")


def evaluate(
    graphs: Mapping[str, AnnData],
    obs: pd.DataFrame,
    *,
    used_cell_type: Mapping[str, bool],
    labels: Sequence[str] = LABELS,
    seeds: Sequence[int] = SEEDS,
    resolution: float = 0.8,
    n_jobs: int = -1,
    store: str | Path | None = None,
) -> pd.DataFrame:
    """Cluster every embedding under every seed and compare the clusters with each label: a row a model, label and seed.

    Parameters
    ----------
    graphs : model name -> AnnData
        From `neighbors_of_all`.
    obs : (n_cells, columns)
        Holds the columns named in `labels`.
    used_cell_type : model name -> bool
        Whether `cell_type` was used in training; copied to every row of the model.
    labels
        Columns to compare with. Cells without a type are clustered with the others, and not compared.
    seeds
        One clustering each, compared with all labels.
    resolution
        Of `communities.leiden`.
    n_jobs
        Clusterings at once (-1: one a core). The scores do not depend on it.
    store
        File that keeps every seed as soon as it is done, see `aenmf_lib.classification.score`.

    Returns
    -------
    A row a model, label and seed: `Model, label, seed, ARI, NMI, n_clusters, n_cells, n_classes, n_neighbors,
    resolution, cell_type_in_training`. NMI is normalized by the arithmetic mean of the two entropies.

    Raises
    ------
    ValueError
        See `check_embeddings` and `check_labels` in `aenmf_lib.folds`.
    """
    check_embeddings({model: cells.X for model, cells in graphs.items()}, obs)
    check_labels(obs, labels, seeds)
    classes = {label: encode(obs[label]) for label in labels}
    in_training = {model: bool(used_cell_type[model]) for model in graphs}
    key = ("Model", "label", "seed")
    held = ScoreCache(store, [*key, "ARI", "NMI", *_SETTINGS, "cell_type_in_training"], key)

    code = Path(neighbors.__file__).read_bytes()  # as in `classification`
    made_from, settings, tasks = {}, {}, []
    for model, cells in graphs.items():
        n_neighbors = cells.uns["neighbors"]["params"]["n_neighbors"]
        settings[model] = {"n_neighbors": n_neighbors, "resolution": resolution}
        links = cells.obsp["connectivities"].indptr, cells.obsp["connectivities"].indices
        of = fingerprint(*links, n_neighbors, resolution, in_training[model], code, packages=("igraph", "scikit-learn"))
        made_from |= {(model, label): fingerprint(of, y, packages=()) for label, y in classes.items()}
        for seed in seeds:
            missing = {
                label: y for label, y in classes.items() if (model, label, seed, made_from[model, label]) not in held
            }
            if missing:
                tasks.append(((model, seed), of, *links, missing))
    run = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
        delayed(compare)(*task, resolution=resolution) for task in tasks
    )
    n_all = len(graphs) * len(seeds)
    with tqdm(run, total=n_all, initial=n_all - len(tasks), desc="Leiden", unit="seed") as bar:
        for (model, seed), n_clusters, found in bar:
            for label, (ari, nmi) in found.items():
                held.add(
                    {
                        **{"Model": model, "label": label, "seed": seed, FINGERPRINT: made_from[model, label]},
                        **{"ARI": ari, "NMI": nmi, "n_clusters": n_clusters, "n_classes": classes[label].max() + 1},
                        "n_cells": int((classes[label] >= 0).sum()),
                        **settings[model],
                        "cell_type_in_training": in_training[model],
                    }
                )
    return held.table((*row, made_from[row[:2]]) for row in product(graphs, labels, seeds))


def resolution_curve(
    graphs: Mapping[str, AnnData], obs: pd.DataFrame, resolutions: Sequence[float], **options
) -> pd.DataFrame:
    """Give the rows of `score` for each of several resolutions; takes its options."""
    if not resolutions or min(resolutions) <= 0 or len(set(resolutions)) < len(resolutions):
        raise ValueError(f"The resolutions are {list(resolutions)}. Expected one or more above 0, and none twice.")
    tables = [evaluate(graphs, obs, resolution=resolution, **options) for resolution in sorted(resolutions)]
    return pd.concat(tables, ignore_index=True)


def summarize(long: pd.DataFrame, label: str) -> pd.DataFrame:
    """Make the published table of one label: a row a model, mean and standard deviation over its seeds.

    Parameters
    ----------
    long : a row a model, label and seed
        From `score`.
    label
        Which of its labels.

    Returns
    -------
    `Model, ARI, ARI Std, NMI, NMI Std`, models in the order of `results.MODELS`. Deviations have ddof 1 (with one seed
    they are NaN).

    Raises
    ------
    ValueError
        No score against the label; scores from different cells or parameters.
    """
    rows = select_label(long, label, ["n_cells", "n_classes", "n_neighbors", "resolution"])
    table = rows.groupby("Model", sort=False)[["ARI", "NMI"]].agg(["mean", "std"])
    table.columns = [metric if of == "mean" else f"{metric} Std" for metric, of in table.columns]
    return table.loc[sorted(table.index, key=MODELS.index)].reset_index()
