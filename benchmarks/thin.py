"""Make shallow cells of deep ones: each count is kept by chance, as if so much less had been sequenced.

python benchmarks/thin.py data/kang2018.h5ad data/kang2018_third.h5ad --keep 0.333
"""

import argparse
from pathlib import Path

import numpy as np
from anndata import AnnData

from aenmf_lib import data, results


def thinned(cells: AnnData, keep: float, seed: int = 0) -> AnnData:
    """Draw from each count of X, whole numbers, a binomial one."""
    rng, X = np.random.default_rng(seed), cells.X.copy()
    X.data = rng.binomial(X.data.astype(np.int64), keep).astype(np.float32)
    X.eliminate_zeros()
    return AnnData(X, obs=cells.obs, var=cells.var)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, help="raw counts")
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep", type=float, default=1 / 3)
    o = parser.parse_args()
    counts, _ = data.read_counts(o.cells)
    results.write_h5ad(thinned(counts, o.keep), o.out)


if __name__ == "__main__":
    main()
