"""Compare run time, memory and error of AE-NMF and other solvers on the same cells.

    python benchmarks/peers.py results/kang2018/filtered.h5ad --k 80
    python benchmarks/peers.py results/kang2018/filtered.h5ad --k 20 --genes 2000

Every solver runs to its own stop, with its own defaults unless stated here. The time is that of the fit from cells in
memory, including the initialization; compiled code is loaded before. Leave out a solver whose package is not installed
with --solvers.
"""

import argparse
import importlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData
from measure import measured, run_in_turn
from scipy.sparse import csr_matrix
from sklearn.decomposition import MiniBatchNMF, non_negative_factorization

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, data
from aenmf_lib.models import initialization
from aenmf_lib.models.base import relative_error
from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.second_moment import IMPLICIT, to_torch

Result = tuple[np.ndarray, np.ndarray, int, str]  # H, W, iterations, stop reason
ADAM_BATCH, ADAM_EPOCHS, ADAM_TOL = 512, 100, AENMF.tol


def ours(model: type[AENMF], cells: AnnData, k: int, seed: int, device: str = "cpu") -> Result:
    """Fit a model of this project, the conditional ones with the published weights."""
    settings = {"k": k, "seed": seed, "device": device} | ({"strength": 0} if model.conditional else {})
    fitted = model(**settings).fit(cells)
    return fitted.transform(cells), fitted.W_, fitted.n_iter_, fitted.stop_reason_


def base_nmf(cells: AnnData, k: int, seed: int) -> Result:
    """Fit scikit-learn's NMF as published: coordinate descent, nndsvda, at most 100 iterations."""
    fitted = BaseNMF(k=k, seed=seed).fit(cells)
    return fitted.H_, fitted.W_, fitted.n_iter_, fitted.stop_reason_


def minibatch(cells: AnnData, k: int, seed: int) -> Result:
    """Fit scikit-learn's MiniBatchNMF."""
    fitted = MiniBatchNMF(n_components=k, random_state=seed)
    H = fitted.fit_transform(cells.X)
    return H, fitted.components_, int(fitted.n_iter_), ""


def cnmf(cells: AnnData, k: int, seed: int) -> Result:
    """Fit one replicate of consensus NMF (cnmf 1.7): scikit-learn, random start, at most 1000 iterations."""
    settings = {"init": "random", "solver": "cd", "tol": 1e-4, "max_iter": 1000}
    H, W, n = non_negative_factorization(cells.X, n_components=k, random_state=seed, **settings)
    return H, W, n, ""


def nmf_torch(cells: AnnData, k: int, seed: int) -> Result:
    """Fit the online NMF of nmf-torch, which takes dense cells."""
    run = importlib.import_module("nmf").run_nmf
    H, W, _ = run(cells.X.toarray(), k, mode="online", random_state=seed, n_jobs=os.cpu_count())
    return H, W, -1, ""


def torchnmf(cells: AnnData, k: int, seed: int) -> Result:
    """Fit the multiplicative updates of torchnmf for β = 2, which takes dense cells."""
    torch.manual_seed(seed)  # it takes no generator
    X = torch.from_numpy(cells.X.toarray())
    net = importlib.import_module("torchnmf.nmf").NMF(X.shape, rank=k)
    n = net.fit(X, beta=2)
    return net.H.detach().numpy(), net.W.detach().numpy().T, n, ""


def adam(cells: AnnData, k: int, seed: int, *, rate: float) -> Result:
    """Minimize the AE-NMF objective by Adam on minibatches of 512 cells, with the initialization and stop of AE-NMF."""
    rng, X, penalty = np.random.default_rng(seed), cells.X, AENMF.lambda_W
    some = Moments.from_cells(AnnData(X[:4096]), donor=False, cell_type=False, mode=IMPLICIT)
    W = initialization.rescale_rows(
        AENMFObjective(some, lambda_W=penalty), initialization.mean_cells(X, k, seed=seed)
    ).requires_grad_()
    optimizer = torch.optim.Adam([W], lr=rate)
    order = rng.permutation(X.shape[0])
    batches = [_both(X[order[lo : lo + ADAM_BATCH]]) for lo in range(0, X.shape[0], ADAM_BATCH)]
    squares = float(np.square(X.data, dtype=np.float64).sum())
    losses: list[float] = []
    for epoch in range(1, ADAM_EPOCHS + 1):
        total = squares
        for i in rng.permutation(len(batches)):
            B, Bt, n = batches[i]
            with torch.no_grad():
                H, G = B @ W.T, W @ W.T  # (cells, k), (k, k)
                A, F = (Bt @ H).T, H.T @ H  # (k, genes), (k, k)
                W.grad = (2 * (F @ W + G @ A) - 4 * A) / n + 2 * penalty * W
                total += float((F * G).sum() - 2 * F.trace()) + n * penalty * float(G.trace())
            optimizer.step()
            with torch.no_grad():
                W.clamp_(min=0)
        losses.append(total)
        if epoch > 10 and min(losses[:-10]) - min(losses) < ADAM_TOL * min(losses):
            break
    W = W.detach()
    return X @ W.numpy().T, W.numpy(), epoch, "" if epoch < ADAM_EPOCHS else f"reached {ADAM_EPOCHS} epochs"


def _both(X: csr_matrix) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return X and Xᵀ as tensors, and the number of cells."""
    return to_torch(X), to_torch(X.T.tocsr()), X.shape[0]


SOLVERS: dict[str, Callable[[AnnData, int, int], Result]] = {
    "AE-NMF": partial(ours, AENMF),
    "scikit-learn NMF": base_nmf,
    "model 1": partial(ours, CAENMF1),
    "model 2": partial(ours, CAENMF2),
    "AE-NMF, GPU": partial(ours, AENMF, device="cuda"),
    "model 1, GPU": partial(ours, CAENMF1, device="cuda"),
    "model 2, GPU": partial(ours, CAENMF2, device="cuda"),
    "MiniBatchNMF": minibatch,
    "nmf-torch": nmf_torch,
    "torchnmf": torchnmf,
    "cNMF's solver": cnmf,
    "Adam, 1e-3": partial(adam, rate=1e-3),
    "Adam, 1e-4": partial(adam, rate=1e-4),
}
OURS = [name for name, solver in SOLVERS.items() if getattr(solver, "func", None) is ours]
TIED = (*OURS, "Adam, 1e-3", "Adam, 1e-4")  # H = X Wᵀ


def select_genes(cells: AnnData, genes: int) -> AnnData:
    """Return the cells with their most variable genes according to scanpy, or with all genes if `genes` is 0."""
    if not genes:
        return cells
    import scanpy

    scanpy.pp.highly_variable_genes(cells, n_top_genes=genes)
    return cells[:, cells.var["highly_variable"]].copy()


def task(cells: str, genes: int, k: int, seed: int, solver: str) -> dict:
    """Fit once; return time, memory and errors."""
    loaded = select_genes(data.load(cells), genes)
    if solver in OURS:  # load compiled code, and start the GPU
        (model,), device = SOLVERS[solver].args, SOLVERS[solver].keywords.get("device", "cpu")
        model(k=4, max_iter=2, tol=0, device=device).fit(_few(loaded))
    with measured() as found:
        H, W, n_iter, stop = SOLVERS[solver](loaded, k, seed)
    found |= {"iterations": n_iter, "stop": stop, "relative_error": relative_error(loaded, H, W)}
    if solver in TIED:  # cost of the tie: usages by least squares for the same W
        untied = AENMF(k=k)
        untied.W_, untied.genes_ = W, loaded.var_names
        found["relative_error_untied"] = relative_error(loaded, untied.refit(loaded), W)
    return found


def _few(cells: AnnData) -> AnnData:
    """Return up to 50 cells of every donor, with 300 genes."""
    rows = np.concatenate([np.flatnonzero(cells.obs["donor_id"] == d)[:50] for d in cells.obs["donor_id"].unique()])
    return cells[np.sort(rows), :300].copy()


def main() -> None:
    """Read the command line, run all solvers and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, help="filtered cells from notebook 01")
    parser.add_argument("--name", help="name of the table (default: folder of the cells)")
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--genes", type=int, default=0, help="number of most variable genes; 0: all")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a fit is killed")
    parser.add_argument(
        "--solvers", nargs="+", choices=SOLVERS, default=[name for name in SOLVERS if "GPU" not in name]
    )
    parser.add_argument("--keep", action="store_true", help="keep the existing rows")
    args = parser.parse_args()
    row = {"cells": str(args.cells), "genes": args.genes, "k": args.k, "seed": args.seed}
    rows = [row | {"solver": solver} for solver in args.solvers]
    name = f"peers_{args.name or args.cells.resolve().parent.name}_{args.genes or 'all'}_k{args.k}"
    device = "cuda" if any("GPU" in solver for solver in args.solvers) else "cpu"
    name += "_cuda" * (device == "cuda")
    table = run_in_turn(name, task, rows, runs=args.runs, limit=args.limit, keep=args.keep, device=device)
    print(table.groupby("solver", sort=False)[["seconds", "cpu_seconds", "peak_mib", "relative_error"]].median())


if __name__ == "__main__":
    main()
