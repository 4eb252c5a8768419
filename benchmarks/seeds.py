"""Compare the default stop of ten seeds with fits that run ten times as long.

python benchmarks/seeds.py results/kang2018/filtered.h5ad --k 20 --genes 2000
"""

import argparse
from pathlib import Path

from measure import run_in_turn
from peers import select_genes

from aenmf_lib import AENMF, data
from aenmf_lib.models.base import relative_error


def task(cells: str, genes: str, k: int, seed: int) -> dict:
    """Fit one seed twice and return both errors."""
    selected = select_genes(data.load(cells), 0 if genes == "all" else int(genes))

    def fit(**settings) -> tuple[AENMF, float]:
        model = AENMF(k=k, seed=seed, **settings).fit(selected)
        return model, relative_error(selected, model.transform(selected), model.W_)

    model, error = fit()
    _, error_long = fit(tol=0, max_iter=10 * model.n_iter_)
    return {"sweeps": model.n_iter_, "error": error, "error_long": error_long}


def main() -> None:
    """Read the command line, run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, help="filtered cells from notebook 01")
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--genes", default="all", help="number of most variable genes, or all")
    args = parser.parse_args()
    rows = [{"cells": str(args.cells), "genes": args.genes, "k": args.k, "seed": seed} for seed in (42, *range(9))]
    run_in_turn("seeds", task, rows, runs=1, keep=True)


if __name__ == "__main__":
    main()
