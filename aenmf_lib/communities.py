"""How are cells divided into communities, and how well do these agree with labels? What a worker of benchmark 1 does.

Imports little, for every worker pays for it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import igraph
import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

_last: dict[str, igraph.Graph] = {}  # the graph that a worker divided before


class _ScanpyRandom:
    """What igraph asks of a random generator, answered as scanpy does: a seed gives the partition scanpy gives."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.RandomState(seed)
        self.random, self.gauss = self._rng.random_sample, self._rng.normal

    def getrandbits(self, n: int) -> int:
        return self._rng.tomaxint() & ((1 << n) - 1)

    def randint(self, low: int, high: int) -> int:
        return self._rng.randint(low, high + 1)


def graph(indptr: np.ndarray, indices: np.ndarray) -> igraph.Graph:
    """Make the unweighted graph that `leiden` divides, once for all seeds.

    Parameters
    ----------
    indptr, indices
        Of the symmetric connectivities in CSR, (n_cells, n_cells), from `clustering.neighbours`.

    Returns
    -------
    Graph with an edge for each stored entry, so each pair of neighbours twice, in the order scanpy has them: modularity
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


def agreement(
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
    `name`; the number of clusters; label -> ARI and NMI, the latter normalised by the arithmetic mean of the two
    entropies.
    """
    if of not in _last:
        _last.clear()
        _last[of] = graph(indptr, indices)
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
