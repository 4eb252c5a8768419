"""Nearest neighbors of the cells in an embedding, their Leiden clusters, and their layout by UMAP.

Parallel workers import this module, so scanpy and other large packages are imported in functions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import igraph
import numpy as np
from sklearn.preprocessing import StandardScaler

__all__ = ["NeighborGraph", "leiden_clusters", "neighbor_graph", "neighbor_graphs", "umap", "umaps"]

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_matrix

_latest: dict[str, igraph.Graph] = {}  # the most recent graph of this worker


@dataclass(frozen=True)
class NeighborGraph:
    """Nearest neighbors of each cell in the z-scored embedding."""

    Z: np.ndarray  # (n_cells, k) z-scores of the usages; a constant column is 0
    connectivities: csr_matrix  # (n_cells, n_cells) UMAP's weights in [0, 1], symmetric
    distances: csr_matrix  # (n_cells, n_cells) Euclidean distances to the n_neighbors - 1 nearest other cells
    n_neighbors: int  # as scanpy counts: the cell itself is one of them


def neighbor_graph(H: np.ndarray, n_neighbors: int = 25) -> NeighborGraph:
    """Return the exact nearest neighbors in the z-scored embedding H (n_cells, k), as `scanpy.pp.neighbors` finds them.

    There must be more cells than `n_neighbors`, which counts the cell itself.
    """
    import scanpy as sc
    from anndata import AnnData

    if len(H) <= n_neighbors:
        expected = f"n_neighbors={n_neighbors} needs at least {n_neighbors + 1}"
        raise ValueError(f"The embedding has {len(H)} cells; {expected}. Keep more cells.")
    cells = AnnData(StandardScaler().fit_transform(H))
    # use_rep: without it scanpy computes a PCA before the search when there are more than 50 columns.
    options = {"use_rep": "X", "method": "umap", "metric": "euclidean", "transformer": "sklearn"}
    sc.pp.neighbors(cells, n_neighbors=n_neighbors, **options)
    weights = cells.obsp["connectivities"]  # already symmetric; kept to match the benchmark's formula
    return NeighborGraph(cells.X, weights.maximum(weights.T), cells.obsp["distances"], n_neighbors)


def neighbor_graphs(H: Mapping[str, np.ndarray], obs: pd.DataFrame) -> dict[str, NeighborGraph]:
    """Return the `neighbor_graph` of every model, for embeddings (n_cells, k) from `results.read_embeddings`.

    NaN and infinite values raise a ValueError that names a cell of `obs`.
    """
    from aenmf_lib.data.progress import tqdm
    from aenmf_lib.metrics.validation import check_inputs

    check_inputs(H, obs)
    return {model: neighbor_graph(usages) for model, usages in tqdm(H.items(), desc="neighbors", unit="model")}


def leiden_clusters(H: np.ndarray) -> np.ndarray:
    """Return the clusters of benchmark 1 under its first seed, for usages H (n_cells, k): '0', '1', …, (n_cells,)."""
    graph = neighbor_graph(H).connectivities
    return leiden(igraph_graph(graph.indptr, graph.indices), seed=0).astype(str)


def leiden(graph: igraph.Graph, seed: int, resolution: float = 0.8) -> np.ndarray:
    """Return the Leiden clusters, (n_cells,) int (Traag et al. 2019, doi:10.1038/s41598-019-41695-z).

    The partition of `scanpy.tl.leiden(flavor="igraph", directed=False, use_weights=False, n_iterations=2)` under the
    same random_state, without building the graph again for each seed (2.6 times faster on 24,000 cells).
    """
    rng = np.random.RandomState(seed)
    as_scanpy = SimpleNamespace(  # the functions that scanpy gives to igraph, so that a seed gives scanpy's partition
        random=rng.random_sample,
        gauss=rng.normal,
        randint=lambda low, high: rng.randint(low, high + 1),
        getrandbits=lambda n: rng.tomaxint() & ((1 << n) - 1),
    )
    igraph.set_random_number_generator(as_scanpy)
    try:
        return np.array(graph.community_leiden("modularity", resolution=resolution, n_iterations=2).membership)
    finally:
        igraph.set_random_number_generator(random)  # igraph's default


def leiden_in_worker(graph_id: str, indptr: np.ndarray, indices: np.ndarray, *options: float) -> np.ndarray:
    """Return `leiden` of a graph that this process builds only once for successive calls with the same `graph_id`."""
    if graph_id not in _latest:
        _latest.clear()
        _latest[graph_id] = igraph_graph(indptr, indices)
    return leiden(_latest[graph_id], *options)


def igraph_graph(indptr: np.ndarray, indices: np.ndarray) -> igraph.Graph:
    """Return the unweighted graph of connectivities in CSR, (n_cells, n_cells).

    As in scanpy every pair of neighbors has two edges, in the same order, so that the random search is scanpy's.
    """
    cells = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return igraph.Graph(n=len(indptr) - 1, edges=list(zip(cells.tolist(), indices.tolist(), strict=True)))


def umap(graph: NeighborGraph, seed: int = 42) -> np.ndarray:
    """Return the coordinates of `scanpy.tl.umap` with its defaults, (n_cells, 2) float32."""
    import scanpy as sc
    from anndata import AnnData

    params = {"n_neighbors": graph.n_neighbors, "method": "umap", "metric": "euclidean", "use_rep": "X"}
    matrices = {"connectivities": graph.connectivities, "distances": graph.distances}
    cells = AnnData(graph.Z, obsp=matrices)
    cells.uns["neighbors"] = {"params": params, **{f"{name}_key": name for name in matrices}}
    sc.tl.umap(cells, random_state=seed)
    return cells.obsm["X_umap"]


def umaps(graphs: Mapping[str, NeighborGraph], obs: pd.DataFrame, seed: int = 42) -> AnnData:
    """Return an AnnData without X: the labels in obs, and the `umap` of each model in ``obsm["X_umap_<model>"]``."""
    from anndata import AnnData

    from aenmf_lib.data.preprocessing import LABELS
    from aenmf_lib.data.progress import tqdm

    coords = {f"X_umap_{model}": umap(graph, seed) for model, graph in tqdm(graphs.items(), desc="UMAP", unit="model")}
    return AnnData(obs=obs[list(LABELS)].copy(), obsm=coords, uns={"umap": {"seed": seed}})
