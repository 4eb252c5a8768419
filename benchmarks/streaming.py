"""What does a pass over cells on disk cost, and what does training cost once it is done?

    python benchmarks/streaming.py pass     # the sums, 2000 of 20 000 genes, 20 000 to 200 000 cells
    python benchmarks/streaming.py train    # 5000 genes, rank 256, 100 000 and 1 000 000 cells: some minutes
    python benchmarks/streaming.py train --device cuda    # on a card

Cells are simulated (simulate.py) into --scratch: 4 GB for the first, 6 GB for the second. A file is read right after it
was written: it comes from the page cache where memory holds it, from the disk where not.
"""

import argparse
from pathlib import Path

from measure import in_turn, measured
from simulate import simulate

from aenmf_lib import AENMF
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.training.moments import Moments

KEPT = 2000  # genes
SIZES = {"pass": (20_000, 60_000, 200_000), "train": (100_000, 1_000_000)}
GENES, NONZEROS = {"pass": 20_000, "train": 5000}, {"pass": 2460, "train": 600}
RANK = 256


def one_pass(cells: int, path: str, compression: str, device: str) -> dict:
    """Sum over counts on disk: normalize, S and the sums of every type and donor."""
    names = [f"gene{g}" for g in range(0, GENES["pass"], GENES["pass"] // KEPT)]
    told = {"mode": "explicit", "device": device}
    Moments.from_cells(
        CellStream(path, counts=True, genes=names, rows=slice(0, 2048)), **told
    )  # loads what is compiled
    with measured() as found:
        Moments.from_cells(CellStream(path, counts=True, genes=names), **told)
    return found | {"us_per_cell": 1e6 * found["seconds"] / cells}


def train(cells: int, path: str, compression: str, device: str) -> dict:
    """Sum, then train from the sums alone."""
    AENMF(k=4, max_iter=2, device=device).fit(CellStream(path, counts=True, rows=slice(0, 1500)))
    with measured() as found:
        with measured() as summed:
            told = {"donor": False, "cell_type": False, "mode": "explicit", "k": RANK, "device": device}
            moments = Moments.from_cells(CellStream(path, counts=True), **told)
        with measured() as trained:
            model = AENMF(k=RANK, device=device).fit(moments)
    return found | {
        "sums_seconds": summed["seconds"],
        "training_seconds": trained["seconds"],
        "iterations": model.n_iter_,
        "stop": model.stop_,
        "explained": 1 - model.loss_history_[-1] * moments.n_cells / moments.sq_norm,
    }


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=SIZES)
    parser.add_argument("--scratch", type=Path, default=Path("data/scratch"))
    parser.add_argument("--runs", type=int, default=0, help="0: 5 passes, or 1 training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cells", type=int, nargs="+", help="instead of those above")
    parser.add_argument("--compression", choices=("gzip", "lzf"), default="", nargs="?")
    o = parser.parse_args()
    o.scratch.mkdir(parents=True, exist_ok=True)
    rows = []
    for cells in o.cells or SIZES[o.what]:
        path = o.scratch / f"{o.what}_{cells}_{o.compression or 'plain'}.h5ad"
        if not path.exists():
            sizes = {"cells": cells, "genes": GENES[o.what], "nonzeros": NONZEROS[o.what]}
            simulate(path, **sizes, compression=o.compression or None)
        rows.append({"cells": cells, "path": str(path), "compression": o.compression, "device": o.device})
    task, runs = (one_pass, 5) if o.what == "pass" else (train, 1)
    name = "_".join(filter(None, ["streaming", o.what, o.compression, o.device.removeprefix("cpu").partition(":")[0]]))
    table = in_turn(name, task, rows, runs=o.runs or runs, device=o.device)
    print(table.groupby("cells").median(numeric_only=True))


if __name__ == "__main__":
    main()
