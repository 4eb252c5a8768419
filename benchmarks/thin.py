"""Thin the counts of cells at random, as if they had been sequenced less deeply.

python benchmarks/thin.py data/kang2018.h5ad data/kang2018_third.h5ad --keep 0.333
"""

import argparse
from pathlib import Path

import numpy as np
from anndata import AnnData

from aenmf_lib import data, results


def thin(cells: AnnData, keep: float, seed: int = 0) -> AnnData:
    """Return cells in which each count of X is drawn from a binomial distribution with probability `keep`."""
    rng, X = np.random.default_rng(seed), cells.X.copy()
    X.data = rng.binomial(X.data.astype(np.int64), keep).astype(np.float32)
    X.eliminate_zeros()
    return AnnData(X, obs=cells.obs, var=cells.var)


def main() -> None:
    """Read the command line, thin the cells and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, help="raw counts")
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep", type=float, default=1 / 3, help="share of the counts to keep")
    args = parser.parse_args()
    counts, _ = data.read_counts(args.cells)
    results.write_h5ad(thin(counts, args.keep), args.out)


if __name__ == "__main__":
    main()
