"""The speed of this machine, relative to the one for which the constants of `costs` were measured."""

import os
import time
import timeit
from dataclasses import dataclass

import numpy as np

# Seconds of the small tasks of `Speed.measure` on the reference machine
_REFERENCE = {"sparse": 0.0044, "dense": 0.0046, "trees": 0.0165}


@dataclass(frozen=True)
class Speed:
    """Time of a machine for sparse products, dense products and trees, relative to the reference machine."""

    sparse: float = 1.0
    dense: float = 1.0
    trees: float = 1.0
    cores: int = 2

    @classmethod
    def measure(cls) -> "Speed":
        """Measure this machine with small tasks, in about a second."""
        from scipy.sparse import csr_matrix
        from sklearn.tree import DecisionTreeClassifier
        from threadpoolctl import threadpool_limits

        rng, n_cells, n_genes, n_expressed = np.random.default_rng(0), 5000, 4000, 200
        genes = np.sort(rng.integers(n_genes, size=(n_cells, n_expressed), dtype=np.int32)).ravel()
        X = csr_matrix(
            (np.ones(len(genes), np.float32), genes, np.arange(n_cells + 1) * n_expressed), (n_cells, n_genes)
        )
        V, A = rng.random((n_genes, 20), dtype=np.float32), rng.random((700, 700), dtype=np.float32)
        H, y = rng.random((3000, 20)), rng.integers(8, size=3000)
        tasks = {
            "sparse": lambda: X @ V,
            "dense": lambda: A @ A,
            "trees": lambda: DecisionTreeClassifier(max_features="sqrt", random_state=0).fit(H, y),
        }
        with threadpool_limits(1):
            # processor time, which other programs hardly change
            timing = {"timer": time.process_time, "number": 1, "repeat": 5}
            seconds = {name: min(timeit.repeat(task, **timing)) for name, task in tasks.items()}
        return cls(**{name: seconds[name] / _REFERENCE[name] for name in seconds}, cores=available_cores())


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
