"""Measure a pass over cells on disk, and training from the sums of that pass.

    python benchmarks/streaming.py pass     # sums of 2,000 of 20,000 genes, 20,000 to 200,000 cells
    python benchmarks/streaming.py train    # 5,000 genes, rank 256, 100,000 and 1,000,000 cells: some minutes
    python benchmarks/streaming.py train --device cuda    # on a GPU

The cells are simulated (`aenmf_lib.data.stand_in`) and written to --scratch: 6 GB each for `pass` and `train`. Each
file is read right after it was written: from the page cache if it fits into memory, otherwise from the disk.
"""

import argparse
from functools import partial
from pathlib import Path

from measure import measured, run_in_turn

from aenmf_lib import AENMF
from aenmf_lib.data import CellStream
from aenmf_lib.data.stand_in import StandIn
from aenmf_lib.training.moments import Moments

KEPT = 2000  # genes
SIZES = {"pass": (20_000, 60_000, 200_000), "train": (100_000, 1_000_000)}
GENES, NONZEROS = {"pass": 20_000, "train": 5000}, {"pass": 2460, "train": 600}
RANK = 256


def one_pass(cells: int, file: str, compression: str, device: str, *, scratch: Path) -> dict:
    """Measure one pass over counts on disk: normalization, S and the sums of every type and donor."""
    path = scratch / file
    names = CellStream(path, counts=True).var_names[:: GENES["pass"] // KEPT]
    options = {"mode": "explicit", "device": device}
    few = CellStream(path, counts=True, genes=names, rows=slice(0, 2048))
    Moments.from_cells(few, **options)  # load compiled code
    with measured() as found:
        Moments.from_cells(CellStream(path, counts=True, genes=names), **options)
    return found | {"us_per_cell": 1e6 * found["seconds"] / cells}


def train(cells: int, file: str, compression: str, device: str, *, scratch: Path) -> dict:
    """Measure a pass and the training from its sums."""
    path = scratch / file
    AENMF(k=4, max_iter=2, device=device).fit(CellStream(path, counts=True, rows=slice(0, 1500)))
    with measured() as found:
        with measured() as summed:
            options = {"donor": False, "cell_type": False, "mode": "explicit", "k": RANK, "device": device}
            moments = Moments.from_cells(CellStream(path, counts=True), **options)
        with measured() as trained:
            model = AENMF(k=RANK, device=device).fit(moments)
    return found | {
        "sums_seconds": summed["seconds"],
        "training_seconds": trained["seconds"],
        "iterations": model.n_iter_,
        "stop": model.stop_reason_,
        "explained": 1 - model.loss_history_[-1] * moments.n_cells / moments.sq_norm,
    }


def main() -> None:
    """Read the command line, simulate missing files, run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=SIZES)
    parser.add_argument("--scratch", type=Path, default=Path("data/scratch"))
    parser.add_argument("--runs", type=int, default=0, help="0: 5 passes, or 1 training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cells", type=int, nargs="+", help="other sizes")
    parser.add_argument("--compression", choices=("gzip",), default="", nargs="?")
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    rows = []
    for cells in args.cells or SIZES[args.what]:
        path = args.scratch / f"{args.what}_{cells}_{args.compression or 'plain'}.h5ad"
        if not path.exists():
            sizes = {"cells": cells, "genes": GENES[args.what], "nonzeros": NONZEROS[args.what]}
            StandIn(**sizes, types=12, donors=8, raw_only=True, compression=args.compression or "none").write(path)
        rows.append({"cells": cells, "file": path.name, "compression": args.compression, "device": args.device})
    task, runs = (one_pass, 5) if args.what == "pass" else (train, 1)
    device = args.device.removeprefix("cpu").partition(":")[0]
    name = "_".join(filter(None, ["streaming", args.what, args.compression, device]))
    table = run_in_turn(name, partial(task, scratch=args.scratch), rows, runs=args.runs or runs, device=args.device)
    print(table.groupby("cells").median(numeric_only=True))


if __name__ == "__main__":
    main()
