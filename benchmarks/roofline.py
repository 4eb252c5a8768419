"""Measure the speed of the inner loops of training as a share of the peak of the machine.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --device cuda --genes 20000 --cells 600000    # on a GPU

The peaks are those of a square float32 product and of a copy. Each row is the median of a few repeats, measured in turn
with the peaks. The cells are simulated block by block, so that only S has to fit into memory.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from measure import RESULTS, machine
from scipy.sparse import csr_matrix, vstack
from tqdm import tqdm

from aenmf_lib import data
from aenmf_lib.models import initialization
from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.training import products, second_moment
from aenmf_lib.training.accumulation import accumulator, thread_pool
from aenmf_lib.training.coordinate_descent import CoordinateDescent
from aenmf_lib.training.moments import CellSample, GroupSums, Moments
from aenmf_lib.training.projected_gradient import ProjectedGradient

REPEATS = 5
BLOCK = 2**15  # cells per block
IMPLICIT = 20_000  # largest number of cells in the implicit rows


def simulated(n_cells: int, n_genes: int, share: float, seed: int) -> csr_matrix:
    """Return cells with random log-normalized counts, of which a share is not 0."""
    rng, blocks = np.random.default_rng(seed), []
    for n in np.diff([*range(0, n_cells, 1024), n_cells]):
        X = csr_matrix(rng.random((n, n_genes), dtype=np.float32) < share, dtype=np.float32)
        X.data = rng.integers(1, 5, X.nnz).astype(np.float32)
        blocks.append(X)
    return data.normalize(vstack(blocks, format="csr"))


def seconds(work: Callable[[], object], device: str) -> float:
    """Return the time of one call, including the work on the GPU."""
    begin = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def form_moments(cells: int, genes: int, share: float, device: str) -> tuple[Moments, dict]:
    """Form S from blocks of cells; return the moments, and the time of forming S, including the transfer to a GPU."""
    X = simulated(min(BLOCK, cells), genes, share, 0)  # the same block is added many times
    n_blocks, names = max(cells // X.shape[0], 1), pd.RangeIndex(X.shape[0]).astype(str)
    label, sums = np.full(X.shape[0], ""), GroupSums()
    with thread_pool() as pool:
        warm = accumulator(genes, torch.float32, device, pool)  # loads compiled code and libraries, checks tf32
        warm.add(X)
        warm.finish()
        S = accumulator(genes, torch.float32, device, pool)

        def form() -> None:
            for _ in tqdm(range(n_blocks), desc=f"S, {genes} genes"):
                S.add(X)
            formed.append(S.finish())

        formed: list[torch.Tensor] = []
        spent = seconds(form, device)
    of_block = GroupSums.from_cells(X, label, label, label)
    for _ in range(n_blocks):
        sums += of_block
    second = products.second_moment("explicit", {"": formed[0]}, torch.float32, device)
    gene_names = pd.RangeIndex(genes).astype(str)
    sample = CellSample.from_cells(X, pd.util.hash_array(names.to_numpy(object)), label)
    moments = Moments(gene_names, sums, second, sample, "benchmark")
    return moments, {"seconds": spent, "cells": n_blocks * X.shape[0], "tf32": bool(getattr(S, "tf32", False))}


def main() -> None:
    """Read the command line, measure all rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--genes", type=int, default=5000)
    parser.add_argument("--cells", type=int, default=40_000)
    parser.add_argument("--share", type=float, default=0.12, help="share of nonzeros")
    parser.add_argument("--k", type=int, nargs="+", default=[80, 256])
    args = parser.parse_args()
    device, p = args.device, args.genes
    size = 4096 if device == "cpu" else 16384
    A, B = (torch.rand(size, size, device=device) for _ in range(2))
    big = torch.rand(2**27, device=device)

    def peak(tf32: bool = False) -> float:
        with second_moment.tf32(tf32):
            return 2 * size**3 / min(seconds(lambda: A @ B, device) for _ in range(3)) / 1e9

    def copy() -> float:
        return 2 * 4 * len(big) / min(seconds(lambda: big.clone(), device) for _ in range(3)) / 1e9

    seconds(lambda: A @ B, device)
    rows = []

    def row(what: str, k: int, flop: float, work: Callable[[], object], bytes_: float = 0.0) -> None:
        work()
        found = [(seconds(work, device), peak(), copy()) for _ in range(REPEATS)]  # in turn with the peaks
        took, gemm, bandwidth = (float(np.median([f[i] for f in found])) for i in range(3))
        rows.append({"what": what, "genes": p, "k": k, "seconds": took, "gflops": flop / took / 1e9,
                     "sgemm_gflops": gemm, "share_of_sgemm": flop / took / 1e9 / gemm, "copy_gb_s": bandwidth,
                     "share_of_copy": bytes_ / took / 1e9 / bandwidth, **machine(device)})  # fmt: skip
        print(rows[-1])

    moments, formed = form_moments(args.cells, p, args.share, device)
    gemm = peak(formed["tf32"])  # in the same precision
    flop = float(formed["cells"]) * p**2  # one triangle of S
    rows.append({"what": "form S", "genes": p, "k": 0, "seconds": formed["seconds"],
                 "us_per_cell": 1e6 * formed["seconds"] / formed["cells"], "gflops": flop / formed["seconds"] / 1e9,
                 "tf32": formed["tf32"], "sgemm_gflops": gemm, "share_of_sgemm": flop / formed["seconds"] / 1e9 / gemm,
                 **machine(device)})  # fmt: skip
    for k in args.k:
        W = initialization.mean_cells(moments.sample, k, seed=0).to(device)
        objective = AENMFObjective(moments, lambda_W=1e-2)
        W = initialization.rescale_rows(objective, W)
        row("explicit product W S", k, 2.0 * k * p**2, lambda W=W: moments.product(W), 4.0 * p**2)
        gradient = ProjectedGradient(objective, W, row_norm=False)
        row("explicit gradient step", k, 2.0 * k * p**2 + 12.0 * k**2 * p, gradient.step, 4.0 * p**2)
        if device == "cpu":
            sweep = CoordinateDescent(objective, W)
            row("explicit coordinate sweep", k, 2.0 * k * p**2, sweep.step, 4.0 * p**2)
    cells = AnnData(X := simulated(min(args.cells, IMPLICIT), p, args.share, 0))
    implicit = Moments.from_cells(cells, donor=False, cell_type=False, mode="implicit", device=device)
    for k in args.k:
        W = initialization.mean_cells(implicit.sample, k, seed=0).to(device)
        row("implicit product W S", k, 4.0 * X.nnz * k, lambda W=W: implicit.product(W), 16.0 * X.nnz)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"roofline_{device.replace(':', '')}_{p}.csv"
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6g")
    print(path)


if __name__ == "__main__":
    main()
