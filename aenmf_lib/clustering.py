"""How ARI and NMI are made: benchmark 1, how well the groups that cells form in an embedding agree with a label.

z-scored columns, the graph of 25 nearest neighbours, Leiden under ten seeds, then the adjusted Rand index and the
normalised mutual information against a label. Every number is what the plain scanpy and scikit-learn calls give; the
graph of a model is made once for all seeds, both labels and the UMAP, and a clustering is made once for both labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from joblib import Parallel, delayed
from tqdm import tqdm

from aenmf_lib import communities
from aenmf_lib.classification import select_label
from aenmf_lib.folds import LABELS, check_embeddings, check_labels, codes
from aenmf_lib.groups import neighbours
from aenmf_lib.results import MODELS
from aenmf_lib.store import OF, Store, fingerprint

SEEDS = tuple(range(10))
_SETTINGS = ("n_clusters", "n_cells", "n_classes", "n_neighbors", "resolution")


def neighbours_of_all(H: Mapping[str, np.ndarray], obs: pd.DataFrame, *, n_neighbors: int = 25) -> dict[str, AnnData]:
    """Find the neighbours in every embedding, see `neighbours`.

    Parameters
    ----------
    H : model name -> (n_cells, k)
        Embeddings, as `results.read_embeddings` gives them.
    obs : (n_cells, columns)
        Names the cells.
    n_neighbors
        See `neighbours`.

    Returns
    -------
    model name -> AnnData

    Raises
    ------
    ValueError
        See `aenmf_lib.folds.check_embeddings` and `neighbours`.
    """
    check_embeddings(H, obs)
    return {
        model: neighbours(usages, n_neighbors=n_neighbors)
        for model, usages in tqdm(H.items(), desc="neighbours", unit="model")
    }


def score(
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
        From `neighbours_of_all`.
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
    resolution, cell_type_in_training`. NMI is normalised by the arithmetic mean of the two entropies.

    Raises
    ------
    ValueError
        See `check_embeddings` and `check_labels` in `aenmf_lib.folds`.
    """
    check_embeddings({model: cells.X for model, cells in graphs.items()}, obs)
    check_labels(obs, labels, seeds)
    classes = {label: codes(obs[label]) for label in labels}
    in_training = {model: bool(used_cell_type[model]) for model in graphs}
    key = ("Model", "label", "seed")
    held = Store(store, [*key, "ARI", "NMI", *_SETTINGS, "cell_type_in_training"], key)

    code = Path(communities.__file__).read_bytes()  # as in `classification`
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
        delayed(communities.agreement)(*task, resolution=resolution) for task in tasks
    )
    n_all = len(graphs) * len(seeds)
    with tqdm(run, total=n_all, initial=n_all - len(tasks), desc="Leiden", unit="seed") as bar:
        for (model, seed), n_clusters, found in bar:
            for label, (ari, nmi) in found.items():
                held.add(
                    {
                        **{"Model": model, "label": label, "seed": seed, OF: made_from[model, label]},
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
    tables = [score(graphs, obs, resolution=resolution, **options) for resolution in sorted(resolutions)]
    return pd.concat(tables, ignore_index=True)


def summarise(long: pd.DataFrame, label: str) -> pd.DataFrame:
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


def umap(cells: AnnData, *, seed: int = 42) -> np.ndarray:
    """Lay the neighbour graph out in the plane with UMAP (`scanpy.tl.umap`, its defaults).

    Parameters
    ----------
    cells
        From `neighbours`: the graph that Leiden divides is the graph that is drawn.
    seed
        Decides the start and the negative samples. Same seed, same coordinates.

    Returns
    -------
    coordinates : (n_cells, 2), float32
    """
    sc.tl.umap(cells, random_state=seed)
    return cells.obsm.pop("X_umap")


def umap_of_all(graphs: Mapping[str, AnnData], obs: pd.DataFrame, *, seed: int = 42) -> AnnData:
    """Lay out every graph; an AnnData without X, with the labels in obs and `obsm["X_umap_<model>"]` (n_cells, 2)."""
    drawn = AnnData(obs=obs[list(LABELS)].copy())
    for model, cells in tqdm(graphs.items(), desc="UMAP", unit="model"):
        drawn.obsm[f"X_umap_{model}"] = umap(cells, seed=seed)
    drawn.uns["umap"] = {"seed": seed}
    return drawn
