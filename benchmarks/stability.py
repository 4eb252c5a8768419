"""Compare the programs of two halves of the donors: one fit of each half, and a consensus over many fits.

python benchmarks/stability.py results/kang2018/filtered.h5ad --k 20
python benchmarks/stability.py results/kang2018/filtered.h5ad --k 20 --untied  # adds the rows of the untied model
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from measure import RESULTS, machine
from sklearn.decomposition import NMF

from aenmf_lib import AENMF, UntiedAENMF, data, programs
from aenmf_lib.data.progress import hide_progress_bars
from aenmf_lib.data.provenance import run_info
from aenmf_lib.data.tables import read_table
from aenmf_lib.metrics import classification, clustering, neighbors
from aenmf_lib.models.base import relative_error
from aenmf_lib.training.moments import Moments

STABLE = 0.95  # cosine from which a program counts as the same in both halves
UNTIED = "untied model"
ANOTHER_START = {"one fit": "another start", UNTIED: f"{UNTIED}, another start"}
B = 10_000  # added to the seeds of the second half: both halves share no random numbers


def fits(cells: AnnData, k: int, rounds: int, seed: int, *, nmf: bool, untied: bool) -> dict[str, tuple]:
    """Return W, its usages of the cells and the seconds of each method, for the cells of one half of the donors."""
    moments, found = Moments.from_cells(cells, cell_type=untied, by_donor=True), {}

    def add(name: str, fit, *args, **settings) -> AENMF:
        begin = time.perf_counter()
        model = fit(*args, **settings)
        model = model[0] if isinstance(model, tuple) else model
        found[name] = model.W_, model.transform(cells), time.perf_counter() - begin
        return model

    if untied:
        add(UNTIED, UntiedAENMF(k=k, seed=seed).fit, moments)
        add(ANOTHER_START[UNTIED], UntiedAENMF(k=k, seed=seed + 1).fit, moments)
        return found
    add("one fit", AENMF(k=k, seed=seed).fit, moments)
    add("another start", AENMF(k=k, seed=seed + 1).fit, moments)
    with tempfile.TemporaryDirectory() as folder:
        for name, share in (("consensus, all programs", 0), ("consensus", 0.5)):  # the second reads the saved rounds
            settings = {"rounds": rounds, "seed": seed, "min_recurrence": share, "checkpoint": f"{folder}/rounds.npz"}
            model = add(name, programs.consensus_programs, moments, k, **settings)
    found["consensus"] = (*found["consensus"][:2], sum(found[name][2] for name in list(found)[2:]))
    add("consensus, refitted", AENMF(k=model.k).fit, moments, start=model.W_)
    if nmf:
        begin, model = time.perf_counter(), NMF(k, init="random", random_state=seed, max_iter=100)
        H = model.fit_transform(cells.X)
        found["scikit-learn NMF"] = model.components_, H, time.perf_counter() - begin
    return found


def scores(cells: AnnData, W: np.ndarray, H: np.ndarray) -> dict[str, float]:
    """Return the error, the F1 scores and the NMI of the cell types for one half of the donors."""
    names, obs, of = ["knn", "logistic_regression"], cells.obs, {"H": H.astype(np.float32)}
    F1 = classification.cross_validate(of, obs, labels=["cell_type"], classifiers=names, seeds=[42])
    graphs = neighbors.neighbor_graphs(of, obs)
    NMI = clustering.evaluate(graphs, obs, labels=["cell_type"], seeds=list(range(5)))["NMI"]
    found = F1.groupby("classifier")["F1"].mean()
    return {"error": relative_error(cells, H, W), **{name: found[name] for name in names}, "NMI": NMI.mean()}


def compare(cells: AnnData, k: int, rounds: int, split: int, **methods: bool) -> pd.DataFrame:
    """Return one row per method for one random division of the donors into halves."""
    donors = np.random.default_rng(split).permutation(cells.obs["donor_id"].cat.categories)
    in_a = cells.obs["donor_id"].isin(donors[: len(donors) // 2]).to_numpy()
    halves = [cells[in_a].copy(), cells[~in_a].copy()]
    a, b = (fits(half, k, rounds, 1000 * split + i * B, **methods) for i, half in enumerate(halves))
    pairs = {}
    for name in (name for name in a if name not in ANOTHER_START.values()):
        if name in ANOTHER_START:
            title = "two starts, same donors" if name != UNTIED else f"{UNTIED}, two starts, same donors"
            pairs[title] = name, a[name], a[ANOTHER_START[name]]
        pairs[name] = name, a[name], b[name]
    rows = []
    for name, (scored, *both) in pairs.items():
        cosine = programs.match_programs(both[0][0], both[1][0])[1]
        of = [scores(half, *fit[scored][:2]) for half, fit in zip(halves, (a, b), strict=True)]
        rows.append({
            "k": k, "split": split, "method": name, "rounds": rounds if "consensus" in name else 1,
            "programs_a": len(both[0][0]), "programs_b": len(both[1][0]), "median": np.median(cosine),
            "mean": cosine.mean(), "stable": int((cosine >= STABLE).sum()), **pd.DataFrame(of).mean(),
            "seconds": both[0][2] + both[1][2], **machine(), "version": run_info()["version_aenmf_lib"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    """Read the command line, compare every division and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, help="filtered cells from notebook 01")
    parser.add_argument("--name", default="kang2018", help="name of the cells in the name of the table")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of the divisions")
    parser.add_argument("--nmf", action="store_true", help="also compare one fit of scikit-learn's NMF")
    parser.add_argument("--untied", action="store_true", help="add the rows of the untied model to the table")
    args = parser.parse_args()
    cells, path = data.load(args.cells), RESULTS / f"stability_{args.name}_k{args.k}.csv"
    done = [read_table(path)] if path.exists() else []
    for split in args.splits:
        known = pd.concat(done).query("split == @split") if done else pd.DataFrame(columns=["method"])
        if (known["method"] == (UNTIED if args.untied else "one fit")).any():
            continue
        with hide_progress_bars():
            done.append(compare(cells, args.k, args.rounds, split, nmf=args.nmf, untied=args.untied))
        pd.concat(done).to_csv(path, index=False, float_format="%.6g")
        print(done[-1].drop(columns=["machine", "date", "version"]).round(3).to_string())


if __name__ == "__main__":
    main()
