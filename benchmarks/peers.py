"""Compare run time, memory and error of AE-NMF and other solvers on the same cells.

    python benchmarks/peers.py results/kang2018/filtered.h5ad --k 80
    python benchmarks/peers.py results/kang2018/filtered.h5ad --k 20 --genes 2000
    python benchmarks/peers.py results/kang2018/filtered.h5ad --k 80 --keep --solvers AE-NMF  # only these rows again

Every solver runs to its own stop, with its own defaults unless stated here. The time is that of the fit from cells in
memory, including the initialization; compiled code is loaded before. For solvers that improve step by step, the column
`curve` contains the error after 1, 2, 4, … iterations. A solver whose package is not installed gets a row that says so.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from unittest import mock

import numpy as np
import torch
from anndata import AnnData
from measure import measured, run_in_process, run_in_turn
from scipy.sparse import csr_matrix
from sklearn.decomposition import MiniBatchNMF, _nmf, non_negative_factorization

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF, data
from aenmf_lib.models import initialization
from aenmf_lib.models.base import relative_error
from aenmf_lib.models.objectives import AENMFObjective
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.second_moment import IMPLICIT, to_torch

Step = tuple[int, float, np.ndarray, np.ndarray]  # iteration, seconds, H, W


@dataclass
class Result:
    """A fit. `measured` contains the seconds and peak_mib of a solver that runs in its own process."""

    H: np.ndarray  # (n_cells, k)
    W: np.ndarray  # (k, n_genes)
    iterations: int
    stop: str = ""
    steps: list[Step] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)


ADAM_BATCH, ADAM_EPOCHS, ADAM_TOL = 512, 100, AENMF.tol


def ours(model: type[AENMF], cells: AnnData, k: int, seed: int, device: str = "cpu") -> Result:
    """Fit a model of this project without gene weights, at strength 0: published weights, or no penalty."""
    settings = {"k": k, "seed": seed, "device": device} | ({"strength": 0} if model.conditional else {})
    settings["gene_weights"] = "none"
    fitted = model(**settings).fit(cells)
    return Result(fitted.transform(cells), fitted.W_, fitted.n_iter_, fitted.stop_reason_)


@contextlib.contextmanager
def recorded() -> Iterator[list[Step]]:
    """Fill a list with H and W of scikit-learn's coordinate descent after 1, 2, 4, … iterations."""
    steps: list[Step] = []
    update, calls, begin = _nmf._update_coordinate_descent, 0, perf_counter()

    def counted(X: csr_matrix, A: np.ndarray, Bt: np.ndarray, *args) -> float:
        nonlocal calls
        violation, calls = update(X, A, Bt, *args), calls + 1
        iteration = calls // 2  # H, then W
        if calls % 2 == 0 and iteration & (iteration - 1) == 0:
            steps.append((iteration, perf_counter() - begin, Bt.copy(), A.T.copy()))
        return violation

    with mock.patch.object(_nmf, "_update_coordinate_descent", counted):
        yield steps


def base_nmf(cells: AnnData, k: int, seed: int) -> Result:
    """Fit scikit-learn's NMF as published: coordinate descent, nndsvda, at most 100 iterations."""
    with recorded() as steps:
        fitted = BaseNMF(k=k, seed=seed).fit(cells)
    return Result(fitted.H_, fitted.W_, fitted.n_iter_, fitted.stop_reason_, steps)


def minibatch(cells: AnnData, k: int, seed: int) -> Result:
    """Fit scikit-learn's MiniBatchNMF."""
    fitted = MiniBatchNMF(n_components=k, random_state=seed)
    H = fitted.fit_transform(cells.X)
    return Result(H, fitted.components_, int(fitted.n_iter_))


def cnmf(cells: AnnData, k: int, seed: int) -> Result:
    """Fit one replicate of consensus NMF (cnmf 1.7): scikit-learn, random start, at most 1000 iterations."""
    settings = {"init": "random", "solver": "cd", "tol": 1e-4, "max_iter": 1000}
    with recorded() as steps:
        H, W, n = non_negative_factorization(cells.X, n_components=k, random_state=seed, **settings)
    return Result(H, W, n, steps=steps)


def pca(cells: AnnData, k: int, seed: int) -> Result:
    """Compute scanpy's PCA, whose programs may be negative. The mean of all cells is one more program."""
    import scanpy

    scanpy.pp.pca(cells, n_comps=k, random_state=seed)
    H = np.hstack([cells.obsm["X_pca"], np.ones((cells.n_obs, 1), np.float32)])
    return Result(H, np.vstack([cells.varm["PCs"].T, cells.X.mean(axis=0)]), -1)


def rcppml(cells: AnnData, k: int, seed: int) -> Result:
    """Fit `RcppML::nmf` with its defaults on all cores: with few iterations for the curve, and then until it stops."""
    with tempfile.TemporaryDirectory() as folder:
        for name, values in {"i": cells.X.indices, "p": cells.X.indptr, "x": cells.X.data}.items():
            values.astype("<f8" if name == "x" else "<i4").tofile(f"{folder}/{name}")
        sizes = [cells.n_vars, cells.n_obs, cells.X.nnz, k, seed, os.cpu_count()]
        subprocess.run(["Rscript", Path(__file__).parent / "rcppml.R", folder, *map(str, sizes)], check=True)
        steps = []
        for name in sorted(Path(folder).glob("*.fit"), key=lambda path: int(path.stem)):
            values = np.fromfile(name)
            (n, seconds, peak), w, d, h = np.split(values, np.cumsum([3, cells.n_vars * k, k]))
            steps.append((int(n), seconds, h.reshape(cells.n_obs, k), (w.reshape(k, -1) * d[:, None])))
    n, seconds, H, W = steps[-1]
    return Result(H, W, n, steps=steps[:-1], measured={"seconds": seconds, "cpu_seconds": np.nan, "peak_mib": peak})


def nmf_torch(cells: AnnData, k: int, seed: int) -> Result:
    """Fit the online NMF of nmf-torch, which takes dense cells."""
    run = importlib.import_module("nmf").run_nmf
    H, W, _ = run(cells.X.toarray(), k, mode="online", random_state=seed, n_jobs=os.cpu_count())
    return Result(H, W, -1)


def torchnmf(cells: AnnData, k: int, seed: int) -> Result:
    """Fit the multiplicative updates of torchnmf for β = 2, which takes dense cells."""
    torch.manual_seed(seed)  # it takes no generator
    X = torch.from_numpy(cells.X.toarray())
    net = importlib.import_module("torchnmf.nmf").NMF(X.shape, rank=k)
    n = net.fit(X, beta=2)
    return Result(net.H.detach().numpy(), net.W.detach().numpy().T, n)


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
    return Result(X @ W.numpy().T, W.numpy(), epoch, "" if epoch < ADAM_EPOCHS else f"reached {ADAM_EPOCHS} epochs")


def _both(X: csr_matrix) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return X and Xᵀ as tensors, and the number of cells."""
    return to_torch(X), to_torch(X.T.tocsr()), X.shape[0]


SOLVERS: dict[str, Callable[[AnnData, int, int], Result]] = {
    "AE-NMF": partial(ours, AENMF),
    "scikit-learn NMF": base_nmf,
    "model 1": partial(ours, CAENMF1),
    "model 2": partial(ours, CAENMF2),
    "untied model": partial(ours, UntiedAENMF),
    "AE-NMF, GPU": partial(ours, AENMF, device="cuda"),
    "model 1, GPU": partial(ours, CAENMF1, device="cuda"),
    "model 2, GPU": partial(ours, CAENMF2, device="cuda"),
    "MiniBatchNMF": minibatch,
    "cNMF's solver": cnmf,
    "RcppML 0.3.7": rcppml,
    "scanpy's PCA": pca,
    "nmf-torch": nmf_torch,
    "torchnmf": torchnmf,
    "Adam, 1e-3": partial(adam, rate=1e-3),
    "Adam, 1e-4": partial(adam, rate=1e-4),
}
_CITED = "Measured once, in November 2026, on 2 cores with AVX2, where AE-NMF took {} s."
CITED = {  # table -> note and rows: name, seconds, error
    "peers_kang2018_all_k80": (
        _CITED.format("15–16"),
        [
            ("RcppML 1.0.0, projective", "28–32", "0.6910"),
            ("RcppML 1.0.0, projective, tol 1e-5", "60", "0.6906"),
            ("RcppML 1.0.0, nmf", "168–182", "0.6773"),
        ],
    ),
    "peers_kang2018_2000_k20": (
        _CITED.format("0.8–0.9"),
        [
            ("RcppML 1.0.0, projective", "1.9", "0.703"),
            ("RcppML 1.0.0, projective, tol 1e-5", "3.7–4.2", "0.703"),
        ],
    ),
}
OURS = [name for name, solver in SOLVERS.items() if getattr(solver, "func", None) is ours]
TIED = (*(name for name in OURS if name != "untied model"), "Adam, 1e-3", "Adam, 1e-4")  # H = X Wᵀ


def select_genes(cells: AnnData, genes: int) -> AnnData:
    """Return the cells with their most variable genes according to scanpy, or with all genes if `genes` is 0."""
    if not genes:
        return cells
    import scanpy

    scanpy.pp.highly_variable_genes(cells, n_top_genes=genes)
    return cells[:, cells.var["highly_variable"]].copy()


def missing(solver: str) -> str:
    """Return a message if a program or package of a solver is not installed, otherwise an empty text."""
    module = {"nmf-torch": "nmf", "torchnmf": "torchnmf"}.get(solver)
    if module and not importlib.util.find_spec(module):
        return f"not run: the package {solver} is not installed"
    if solver == "RcppML 0.3.7":
        ask = ["Rscript", "-e", 'q(status = packageVersion("RcppML") != "0.3.7")']
        if not shutil.which("Rscript") or subprocess.run(ask, capture_output=True).returncode:
            return "not run: Rscript or RcppML 0.3.7 is not installed (Debian: r-cran-rcppml)"
    return ""


def task(cells: str, genes: int, k: int, seed: int, solver: str) -> dict:
    """Fit once; return time, memory and errors."""
    if without := missing(solver):
        return {"stop": without}
    loaded = select_genes(data.load(cells), genes)
    if solver in OURS:  # load compiled code, and start the GPU
        (model,), device = SOLVERS[solver].args, SOLVERS[solver].keywords.get("device", "cpu")
        model(k=4, max_iter=2, tol=0, device=device).fit(_few(loaded))
    with measured() as found:
        fit = SOLVERS[solver](loaded, k, seed)
    found |= fit.measured | {"iterations": fit.iterations, "stop": fit.stop}
    found["relative_error"] = relative_error(loaded, fit.H, fit.W)
    if solver in TIED:  # cost of the tie: usages by least squares for the same W
        untied = AENMF(k=k)
        untied.W_, untied.genes_ = fit.W, loaded.var_names
        found["relative_error_untied"] = relative_error(loaded, untied.refit(loaded), fit.W)
    curve = [(n, round(seconds, 3), round(relative_error(loaded, H, W), 6)) for n, seconds, H, W in fit.steps]
    return found | {"curve": json.dumps(curve)}


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
    parser.add_argument("--keep", action="store_true", help="keep the existing rows of the other solvers")
    args = parser.parse_args()
    row = {"cells": str(args.cells), "genes": args.genes, "k": args.k, "seed": args.seed}
    rows = [row | {"solver": solver} for solver in args.solvers]
    name = f"peers_{args.name or args.cells.resolve().parent.name}_{args.genes or 'all'}_k{args.k}"
    device = "cuda" if any("GPU" in solver for solver in args.solvers) else "cpu"
    name += "_cuda" * (device == "cuda")
    for each in rows:
        if each["solver"] in OURS:  # compile all kernels that these cells need; the compiled code is stored on disk
            run_in_process(task, *each.values())
    table = run_in_turn(name, task, rows, runs=args.runs, limit=args.limit, keep=args.keep, device=device)
    print(table.groupby("solver", sort=False)[["seconds", "cpu_seconds", "peak_mib", "relative_error"]].median())


if __name__ == "__main__":
    main()
