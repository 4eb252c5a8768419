"""What groups do cells form in an embedding? The graph of benchmark 1, and its clusters in place of an annotation."""

import numpy as np
import scanpy as sc
from anndata import AnnData
from sklearn.preprocessing import StandardScaler

from aenmf_lib import communities


def neighbours(H: np.ndarray, *, n_neighbors: int = 25) -> AnnData:
    """Find each cell's nearest neighbours in the z-scored embedding, exactly.

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


def clusters(H: np.ndarray) -> np.ndarray:
    """Group cells as benchmark 1 does under its first seed, at its resolution.

    Parameters
    ----------
    H : (n_cells, k)
        Usages. The neighbours are exact: the time grows with the square of the cells.

    Returns
    -------
    groups : (n_cells,), str
        Names of the groups, '0' the first found.

    Raises
    ------
    ValueError
        From `neighbours`.
    """
    links = neighbours(H).obsp["connectivities"]
    return communities.leiden(communities.graph(links.indptr, links.indices), seed=0).astype(str)
