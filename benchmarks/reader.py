"""Measure how fast cells are read from disk into blocks that are checked and normalized.

    python benchmarks/reader.py     # 40,000 cells × 20,000 genes, 2,460 nonzeros per cell, 5 formats: some minutes

The files contain simulated cells (`aenmf_lib.data.stand_in`). They are written to --scratch (2 GB) and read from the
page cache. Each run is a separate process on one core or on two. `peak_mib` is the memory beyond the opened stream.
"""

import argparse
import os
from functools import partial
from pathlib import Path

from measure import measured, run_in_turn

from aenmf_lib.data import CellStream
from aenmf_lib.data.stand_in import StandIn

KEPT, GENES, NONZEROS = 2000, 20_000, 2460
FORMATS = {
    "h5ad, uncompressed": (".h5ad", {}),
    "h5ad, uncompressed, uint16": (".h5ad", {"compact": True}),
    "h5ad, gzip": (".h5ad", {"compression": "gzip"}),
    "zarr 3, shards, uncompressed": (".zarr", {}),
    "zarr 3, shards, zstd": (".zarr", {"compression": "zstd"}),
}


def read(file: str, genes: int, cores: int, *, scratch: Path, **_: str) -> dict:
    """Measure one pass over counts: time, memory, and nonzeros of the file per second and core."""
    path = scratch / file
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    names = CellStream(path, counts=True).var_names[:: GENES // genes]
    for _block in CellStream(path, counts=True, genes=names, rows=slice(0, 100)):
        pass  # load compiled code
    stream = CellStream(path, counts=True, genes=names)
    nonzeros = CellStream(path, counts=True).nnz
    with measured() as found:
        for _block in stream:
            pass
    speed = {"million_per_s_core": nonzeros / found["cpu_seconds"] / 1e6}
    return found | speed | {"us_per_cell": 1e6 * found["seconds"] / stream.n_obs}


def main() -> None:
    """Read the command line, write missing files, run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, default=Path("data/scratch"))
    parser.add_argument("--cells", type=int, default=40_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.formats:
        suffix, options = FORMATS[name]
        path = args.scratch / f"reader_{args.cells}_{'_'.join(map(str, options.values())) or 'plain'}{suffix}"
        if not path.exists():
            StandIn(cells=args.cells, genes=GENES, nonzeros=NONZEROS, raw_only=True, **options).write(path)
        sizes = [(GENES, 1), (KEPT, 1), (KEPT, 2)]
        rows += [{"format": name, "file": path.name, "genes": genes, "cores": cores} for genes, cores in sizes]
    table = run_in_turn("reader", partial(read, scratch=args.scratch), rows, runs=args.runs)
    print(
        table.groupby(["format", "genes", "cores"], sort=False)
        .median(numeric_only=True)
        .drop(columns="run")
        .to_string()
    )


if __name__ == "__main__":
    main()
