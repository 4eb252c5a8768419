"""How far from the best that is known does a fit stop? Ten seeds to their own stop, and ten times as long.

python benchmarks/seeds.py results/kang2018/filtered.h5ad --k 20 --genes 2000
"""

import argparse
from pathlib import Path

from measure import in_turn
from peers import select

from aenmf_lib import AENMF, data
from aenmf_lib.models import base


def task(cells: str, genes: str, k: int, seed: int) -> dict:
    """Fit one seed twice."""
    loaded = select(data.load(cells), 0 if genes == "all" else int(genes))

    def fit(**settings) -> tuple[AENMF, float]:
        model = AENMF(k=k, seed=seed, **settings).fit(loaded)
        return model, base.relative_error(loaded, model.transform(loaded), model.W_)

    own, error = fit()
    _, longer = fit(tol=0, max_iter=10 * own.n_iter_)
    return {"sweeps": own.n_iter_, "error": error, "error_long": longer}


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, help="as notebook 01 writes them")
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--genes", default="all", help="the most variable ones: a number, or all")
    o = parser.parse_args()
    rows = [{"cells": str(o.cells), "genes": o.genes, "k": o.k, "seed": seed} for seed in (42, *range(9))]
    in_turn("seeds", task, rows, runs=1, keep=True)


if __name__ == "__main__":
    main()
