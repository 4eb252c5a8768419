"""How are cells divided into communities, and how well do these agree with labels? What a worker of benchmark 1 does.

Imports little, for every worker pays for it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import igraph
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from aenmf_lib.data.preprocessing import LABELS
from aenmf_lib.metrics.validation import check_embeddings


class _ScanpyRandom:
    """What igraph asks of a random generator, answered as scanpy does: a seed gives the partition scanpy gives."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.RandomState(seed)
        self.random, self.gauss = self._rng.random_sample, self._rng.normal

    def getrandbits(self, n: int) -> int:
        return self._rng.tomaxint() & ((1 << n) - 1)

    def randint(self, low: int, high: int) -> int:
        return self._rng.randint(low, high + 1)


def unweighted_graph(indptr: np.ndarray, indices: np.ndarray) -> igraph.Graph:
    """Make the unweighted graph that `leiden` divides, once for all seeds.

    Parameters
    ----------
    indptr, indices
        Of the symmetric connectivities in CSR, (n_cells, n_cells), from `clustering.neighbors`.

    Returns
    -------
    Graph with an edge for each stored entry, so each pair of neighbors twice, in the order scanpy has them: modularity
    is the same as with single edges, and the path of the random search is scanpy's.
    """
    n_cells = len(indptr) - 1
    cells = np.repeat(np.arange(n_cells), np.diff(indptr))
    return igraph.Graph(n=n_cells, edges=list(zip(cells.tolist(), indices.tolist(), strict=True)))


def leiden(graph: igraph.Graph, seed: int, *, resolution: float = 0.8, n_iterations: int = 2) -> np.ndarray:
    """Divide the cells into clusters of high modularity (Leiden, Traag et al. 2019, doi:10.1038/s41598-019-41695-z).

    Gives the partition of `scanpy.tl.leiden(flavor="igraph", directed=False, use_weights=False, random_state=seed)`.

    Parameters
    ----------
    graph
        From `graph`.
    seed
        Decides the order of the random moves.
    resolution
        Higher gives more clusters.
    n_iterations
        Passes of the algorithm.

    Returns
    -------
    clusters : (n_cells,), int
    """
    igraph.set_random_number_generator(_ScanpyRandom(seed))
    try:
        found = graph.community_leiden("modularity", resolution=resolution, n_iterations=n_iterations)
    finally:
        igraph.set_random_number_generator(random)  # igraph's default
    return np.array(found.membership)


def neighbor_graph(H: np.ndarray, *, n_neighbors: int = 25) -> AnnData:
    """Find each cell's nearest neighbors in the z-scored embedding, exactly.

    Parameters
    ----------
    H : (n_cells, k)
        Usages. A constant column becomes 0.
    n_neighbors
        As scanpy counts them: the cell itself is one.

    Returns
    -------
    AnnData as `scanpy.pp.neighbors` leaves it: X (n_cells, k) holds the z-scores, `obsp["connectivities"]` the
    symmetric weights in [0, 1], `uns["neighbors"]` the parameters.

    Raises
    ------
    ValueError
        Not more cells than `n_neighbors`.
    """
    if len(H) <= n_neighbors:
        raise ValueError(
            f"The embedding has {len(H)} cells; n_neighbors={n_neighbors} needs at least {n_neighbors + 1}. Keep more "
            f"cells."
        )
    cells = AnnData(StandardScaler().fit_transform(H))
    # use_rep: without it scanpy puts a PCA before the search when there are more than 50 columns.
    sc.pp.neighbors(
        cells, n_neighbors=n_neighbors, use_rep="X", method="umap", metric="euclidean", transformer="sklearn"
    )
    graph = cells.obsp["connectivities"]
    # umap's fuzzy union is symmetric already; the definition of the benchmark says so without umap.
    cells.obsp["connectivities"] = graph.maximum(graph.T)
    return cells


def leiden_clusters(H: np.ndarray) -> np.ndarray:
    """Group cells as benchmark 1 does under its first seed, at its resolution.

    Parameters
    ----------
    H : (n_cells, k)
        Usages. The neighbors are exact: the time grows with the square of the cells.

    Returns
    -------
    groups : (n_cells,), str
        Names of the groups, '0' the first found.

    Raises
    ------
    ValueError
        From `neighbors`.
    """
    links = neighbor_graph(H).obsp["connectivities"]
    return leiden(unweighted_graph(links.indptr, links.indices), seed=0).astype(str)


def neighbor_graphs(H: Mapping[str, np.ndarray], obs: pd.DataFrame, *, n_neighbors: int = 25) -> dict[str, AnnData]:
    """Find the neighbors in every embedding, see `neighbors`.

    Parameters
    ----------
    H : model name -> (n_cells, k)
        Embeddings, as `results.read_embeddings` gives them.
    obs : (n_cells, columns)
        Names the cells.
    n_neighbors
        See `neighbors`.

    Returns
    -------
    model name -> AnnData

    Raises
    ------
    ValueError
        See `aenmf_lib.folds.check_embeddings` and `neighbors`.
    """
    check_embeddings(H, obs)
    return {
        model: neighbor_graph(usages, n_neighbors=n_neighbors)
        for model, usages in tqdm(H.items(), desc="neighbors", unit="model")
    }


def umap(cells: AnnData, *, seed: int = 42) -> np.ndarray:
    """Lay the neighbor graph out in the plane with UMAP (`scanpy.tl.umap`, its defaults).

    Parameters
    ----------
    cells
        From `neighbors`: the graph that Leiden divides is the graph that is drawn.
    seed
        Decides the start and the negative samples. Same seed, same coordinates.

    Returns
    -------
    coordinates : (n_cells, 2), float32
    """
    sc.tl.umap(cells, random_state=seed)
    return cells.obsm.pop("X_umap")


def umaps(graphs: Mapping[str, AnnData], obs: pd.DataFrame, *, seed: int = 42) -> AnnData:
    """Lay out every graph; an AnnData without X, with the labels in obs and `obsm["X_umap_<model>"]` (n_cells, 2)."""
    drawn = AnnData(obs=obs[list(LABELS)].copy())
    for model, cells in tqdm(graphs.items(), desc="UMAP", unit="model"):
        drawn.obsm[f"X_umap_{model}"] = umap(cells, seed=seed)
    drawn.uns["umap"] = {"seed": seed}
    return drawn
