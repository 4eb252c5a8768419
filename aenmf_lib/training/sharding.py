"""How are the sums over an atlas made by many machines? A run of its cells each, added up into one file.

The file serves notebooks 03 to 05: second moments are explicit and by donor, groups of type and donor. Each file tells
what it was made of: what is of other cells or another number of shards is not added, and nothing is trained from it.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from aenmf_lib.data import files, streaming
from aenmf_lib.data.preprocessing import DONOR
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.training import moments
from aenmf_lib.training.moments import Moments
from aenmf_lib.training.second_moment import EXPLICIT, choose_representation

log = logging.getLogger(__name__)


def sum_shard(path: str | Path, shard: int, of: int, out: str | Path) -> None:
    """Sum over one shard of the cells that notebook 01 wrote; memory is that of the sums and a few blocks of cells.

    Raises
    ------
    ValueError
        There are fewer cells than shards, or no such shard.
    MemoryError
        The sums over all cells do not fit: told before anything is summed.
    """
    state = _state(path)  # before anything is read: of what is replaced meanwhile the old one is kept, and refused
    cells = CellStream(path)
    n = cells.n_obs
    if not 0 <= shard < of <= n:
        raise ValueError(
            f"shard {shard} of {of} was asked of the {n} cells of {path}: a number of shards from 1 to {n} is "
            "expected (SHARDS=…), and shards counted from 0."
        )
    _fits(cells, added=True)
    cells = CellStream(path, rows=slice(shard * n // of, (shard + 1) * n // of))
    log.info("shard %d of %d: %s", shard, of, cells)
    made_from = json.dumps({"shard": shard, "of": of, "cells": n, **state})
    Moments.from_cells(cells, by_donor=True, mode=EXPLICIT).save(out, made_from=made_from)


def merge_shards(shards: Sequence[str | Path], path: str | Path, out: str | Path) -> None:
    """Add up all shards of the cells at `path`, always in the same order; memory is that of two of them.

    Shards of other numbers beside them are removed: with those alone that it was made of beside it, `out` is known to
    be out of date when there are others.

    Raises
    ------
    ValueError
        A shard is missing, of other cells, or of another number of shards.
    MemoryError
        The sums do not fit: told before any are read.
    """
    cells = streaming.load_stream(path)
    for shard, file in enumerate(shards):  # after the hash: it is then of the file that the shards are of
        _check(file, {"shard": shard, "of": len(shards), "cells": cells.n_obs, **_state(path)}, path)
    _fits(cells, added=True)
    total = Moments.load(shards[0])
    for shard, file in enumerate(shards[1:], 2):
        total += Moments.load(file)
        log.info("added %d of %d shards, %d of %d cells", shard, len(shards), total.n_cells, cells.n_obs)
    for other in set(Path(shards[0]).parent.glob("[!.]*-of-*.npz")) - {Path(file) for file in shards}:
        other.unlink(missing_ok=True)
    total.reason = f"sums over {len(shards)} shards"
    total.save(out, made_from=json.dumps(_of_all(cells)))


def load_sums(sums: str | Path, cells: CellStream, *, mode: str = "auto", device: str = "cpu") -> Moments:
    """Read what `merge` wrote, for a fit to these cells, which `stream.load` gave.

    Raises
    ------
    ValueError
        The sums are of other cells or genes, or `mode` asks for no sums.
    MemoryError
        They do not fit: told before they are read.
    """
    if mode not in ("auto", EXPLICIT):
        raise ValueError(f"mode={mode!r}: {sums} holds explicit sums. Give 'auto', or no sums (no SHARDS).")
    _check(sums, _of_all(cells), cells.path)
    _fits(cells, device)
    return Moments.load(sums, device=device)


def _state(path: str | Path) -> dict[str, int]:
    """Tell a file from one that took its place, without reading it: of an atlas each shard reads its own part alone."""
    stat = Path(path).stat()
    return {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


def _of_all(cells: CellStream) -> dict[str, int | str]:
    return {"sha256": cells.uns["input"]["sha256"], "cells": cells.n_obs}


def _check(file: str | Path, expected: dict[str, int | str], path: str | Path) -> None:
    """Refuse sums that were made from something else."""
    found = json.loads(str(files.read_npz(file, moments.FORMAT, "sums over shards", ["made_from"])["made_from"]))
    differ = [f"{key} is {found.get(key)}, not {value}" for key, value in expected.items() if found.get(key) != value]
    if differ:
        raise ValueError(
            f"{file} was not made from {path} as it is now: {'; '.join(differ)}. Remove it and make it again."
        )


def _fits(cells: CellStream, device: str = "cpu", *, added: bool = False) -> None:
    """Refuse sums over all cells that cannot be trained from here, or `added` up, for which two are held in float64."""
    n_partitions = cells.obs[DONOR].nunique()
    sizes = {"n_cells": cells.n_obs, "n_genes": cells.n_vars, "nnz": cells.nnz, "n_partitions": n_partitions}
    try:
        choose_representation(
            **sizes, k=1, mode=EXPLICIT, device=device, beside=added * n_partitions * 4 * cells.n_vars**2
        )
    except MemoryError as error:
        raise MemoryError(f"{error} Sums over shards are explicit: for that, leave out SHARDS.") from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m aenmf_lib.shards", description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, help="the cells that notebook 01 wrote")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--shard", type=int, nargs=2, metavar=("I", "N"), help="sum over shard I, from 0, of N")
    what.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="add up these, all shards in their order")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.npz")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if chosen.merge:
            merge_shards(chosen.merge, chosen.cells, chosen.out)
        else:
            sum_shard(chosen.cells, *chosen.shard, chosen.out)
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"error: {error}")
    log.info("wrote %s", chosen.out)


if __name__ == "__main__":
    main()
