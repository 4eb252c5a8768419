"""Nearest neighbors of the cells in an embedding, their Leiden clusters, and their layout by UMAP.

On a GPU, torch finds the neighbors; all other steps are the same. Parallel workers import this module, so scanpy,
torch and other large packages are imported in functions.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import igraph
import numpy as np
from scipy.sparse import csr_matrix
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

__all__ = ["NeighborGraph", "neighbor_graph", "neighbor_graphs", "umap", "umaps"]

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from anndata import AnnData

logger = logging.getLogger(__name__)

_MORE = 16  # candidates beyond the wanted ones, because float32 may exchange the last ones
_MOST_ROWS = 4096  # cells whose distances are computed at once; more are not faster
PARALLEL_UMAP = 10_000  # cells; workers need seconds to start, and fewer cells do not need much longer
_latest: dict[str, igraph.Graph] = {}  # the most recent graph of this worker


@dataclass(frozen=True)
class NeighborGraph:
    """Nearest neighbors of each cell in the z-scored embedding."""

    Z: np.ndarray  # (n_cells, k) z-scores of the usages; a constant column is 0
    connectivities: csr_matrix  # (n_cells, n_cells) UMAP's weights in [0, 1], symmetric
    distances: csr_matrix  # (n_cells, n_cells) Euclidean distances to the n_neighbors - 1 nearest other cells
    n_neighbors: int  # as scanpy counts: the cell itself is one of them


def gpu(device: str) -> torch.device | None:
    """Return the GPU for 'cuda' or 'cuda:<number>', and None for 'cpu'.

    Raises ValueError for an unknown name, and RuntimeError for a GPU that this machine does not have.
    """
    if device == "cpu":
        return None
    import torch

    from aenmf_lib.training.second_moment import check_device

    return torch.device(check_device(device))


def neighbor_graph(H: np.ndarray, n_neighbors: int = 25, device: str = "cpu") -> NeighborGraph:
    """Return the exact nearest neighbors in the z-scored embedding H (n_cells, k), as `scanpy.pp.neighbors` finds them.

    There must be more cells than `n_neighbors`, which counts the cell itself. `device` is 'cpu', 'cuda' or
    'cuda:<number>'. The neighbors are the same on all devices, and distances and weights are equal up to rounding.
    """
    import scanpy as sc
    from anndata import AnnData

    on = gpu(device)
    if len(H) <= n_neighbors:
        expected = f"n_neighbors={n_neighbors} needs at least {n_neighbors + 1}"
        raise ValueError(f"The embedding has {len(H)} cells; {expected}. Keep more cells.")
    cells = AnnData(StandardScaler().fit_transform(H))
    # use_rep: without it scanpy computes a PCA before the search when there are more than 50 columns.
    search = "sklearn" if on is None else _Search(n_neighbors, on)
    options = {"use_rep": "X", "method": "umap", "metric": "euclidean", "transformer": search}
    sc.pp.neighbors(cells, n_neighbors=n_neighbors, **options)
    weights = cells.obsp["connectivities"]  # already symmetric; kept to match the benchmark's formula
    distances = cells.obsp["distances"] if on is None else search.distances
    return NeighborGraph(cells.X, weights.maximum(weights.T), distances, n_neighbors)


class _Search:
    """The search of `neighbor_graph` on a GPU, with the methods that scanpy calls."""

    def __init__(self, n_neighbors: int, on: torch.device) -> None:
        self.n_neighbors, self.on = n_neighbors, on

    def get_params(self) -> dict[str, int]:
        """Return the number of neighbors, which counts the cell itself."""
        return {"n_neighbors": self.n_neighbors}

    def fit_transform(self, Z: np.ndarray) -> csr_matrix:
        """Return the distances (n_cells, n_cells) of each cell to itself and its n_neighbors - 1 nearest other cells.

        If rounding could change the neighbors of a cell, or another cell is equal, scikit-learn finds them instead.
        """
        n, (n_cells, k) = self.n_neighbors, Z.shape
        near, squares, beyond = nearest_candidates(Z, n + 1, self.on)
        last, next_ = squares[:, n - 1], np.minimum(squares[:, n], beyond)
        error = rounding_error(np.linalg.norm(Z, axis=1), np.sqrt(last), k)
        unclear = np.flatnonzero((next_ <= last + 2 * error) | (squares[:, 1] <= error))
        near, distance = near[:, :n], np.sqrt(squares[:, :n])
        if len(unclear):
            search = NearestNeighbors(n_neighbors=n + 1, algorithm="brute").fit(Z)
            distance[unclear], near[unclear] = (part[:, :n] for part in search.kneighbors(Z[unclear]))

        def matrix(first: int) -> csr_matrix:
            parts = distance[:, first:].ravel(), near[:, first:].ravel(), np.arange(n_cells + 1) * (n - first)
            return csr_matrix(parts, (n_cells, n_cells))

        self.distances = matrix(1)  # as in scanpy: without the first column, which is usually the cell itself
        return matrix(0)


def nearest_candidates(Z: np.ndarray, n: int, on: torch.device) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the nearest cells of each cell, which include the cell itself. torch computes them on the device `on`.

    Z is (n_cells, k), with columns around 0. Returns at least `n` cells (n_cells, m) by ascending distance, the squares
    of their distances in float64, (n_cells, m), and a lower bound on the square of the distance of every other cell,
    (n_cells,). All pairs are compared in float32, and the nearest ones again in float64. The blocks of cells are as
    large as the free memory of the device allows.
    """
    import torch

    from aenmf_lib.training.second_moment import available_memory, tf32

    n_cells, k = Z.shape
    m = min(n + _MORE, n_cells)
    exact = torch.as_tensor(Z).to(on, torch.float64)
    norms = exact.square().sum(1)  # (n_cells,)
    rounded, rounded_norms = exact.float(), norms.float()
    near, squares = np.empty((n_cells, m), np.int64), np.empty((n_cells, m))
    beyond = np.full(n_cells, np.inf)  # if there are no other cells
    rows = available_memory(str(on)) // (12 * n_cells + 24 * m * k)  # bytes: three matrices of pairs, candidates
    rows, start = min(max(rows, 1), _MOST_ROWS), 0
    while start < n_cells:
        block = slice(start, min(start + rows, n_cells))
        try:
            with tf32(False):
                pairs = torch.addmm(rounded_norms, rounded[block], rounded.T, alpha=-2)  # (rows, n_cells), without ‖a‖²
            lowest, cells = pairs.topk(m, largest=False)
            del pairs
            d2 = (exact[block, None] - exact[cells]).square_().sum(2)  # (rows, m)
            d2, order = d2.sort(stable=True)
            near[block], squares[block] = cells.gather(1, order).cpu(), d2.cpu()
            if m < n_cells:
                beyond[block] = (lowest[:, -1].double() + norms[block]).clamp_(min=0).cpu()
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            rows //= 2  # another program may use the memory
            logger.info("neighbors: not enough memory on %s; continuing with blocks of %d cells", on, rows)
            continue
        start = block.stop
    if m < n_cells:
        beyond -= rounding_error(norms.sqrt().cpu().numpy(), np.sqrt(beyond), k, np.float32)
    return near, squares, beyond


def rounding_error(norm: np.ndarray, distance: np.ndarray, k: int, dtype: type = np.float64) -> np.ndarray:
    """Return a bound on the rounding error of ‖a‖² - 2 ab + ‖b‖² for points of k columns, from ‖a‖ and ‖a - b‖."""
    return max(64, k) * np.finfo(dtype).eps * np.square(2 * norm + distance)


def neighbor_graphs(H: Mapping[str, np.ndarray], obs: pd.DataFrame, device: str = "cpu") -> dict[str, NeighborGraph]:
    """Return the `neighbor_graph` of every model, for embeddings (n_cells, k) from `results.read_embeddings`.

    NaN and infinite values raise a ValueError that names a cell of `obs`.
    """
    from aenmf_lib.data.progress import tqdm
    from aenmf_lib.metrics.validation import check_inputs

    check_inputs(H, obs)
    if gpu(device):
        logger.info("neighbors: computed on %s", device)
    models = tqdm(H.items(), desc="neighbors", unit="model")
    return {model: neighbor_graph(usages, device=device) for model, usages in models}


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
    """Return the coordinates of `scanpy.tl.umap`, (n_cells, 2) float32, which start at two principal components.

    By default, scanpy starts at eigenvectors of the graph. They take very long if few links join large groups of cells,
    and principal components preserve the global structure as well (Kobak & Linderman 2021,
    doi:10.1038/s41587-020-00809-z). Only an embedding with one column, which has no two components, starts as scanpy
    does. All other settings are scanpy's defaults. One thread computes the coordinates, so that they do not depend on
    the number of cores.
    """
    import scanpy as sc
    from anndata import AnnData
    from threadpoolctl import threadpool_limits

    params = {"n_neighbors": graph.n_neighbors, "method": "umap", "metric": "euclidean", "use_rep": "X"}
    weights = graph.connectivities.copy()  # umap-learn sets weights that are too small for its number of steps to 0
    matrices = {"connectivities": weights, "distances": graph.distances}
    cells = AnnData(graph.Z, obsp=matrices)
    cells.uns["neighbors"] = {"params": params, **{f"{name}_key": name for name in matrices}}
    with threadpool_limits(1):
        sc.tl.umap(cells, init_pos="pca" if cells.n_vars > 1 else "spectral", random_state=seed)
    return cells.obsm["X_umap"]


def umaps(graphs: Mapping[str, NeighborGraph], obs: pd.DataFrame, seed: int = 42, n_jobs: int = -1) -> AnnData:
    """Return an AnnData without X: the labels in obs, and the `umap` of each model in ``obsm["X_umap_<model>"]``.

    `n_jobs` models are computed at once (-1: one per core), if there are enough cells to gain time from it.
    """
    from anndata import AnnData

    from aenmf_lib.data.preprocessing import LABELS
    from aenmf_lib.data.progress import tqdm
    from aenmf_lib.metrics.score_cache import run_parallel

    calls = [((model,), (graph, seed)) for model, graph in graphs.items()]
    found = run_parallel(umap, calls, n_jobs if len(obs) >= PARALLEL_UMAP else 1)
    coords = {model: xy for (model,), xy in tqdm(found, desc="UMAP", unit="model", total=len(calls))}
    obsm = {f"X_umap_{model}": coords[model] for model in graphs}
    return AnnData(obs=obs[list(LABELS)].copy(), obsm=obsm, uns={"umap": {"seed": seed}})
