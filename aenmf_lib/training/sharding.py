"""Sums over an atlas on many machines: each job sums over one shard of the cells; a last job merges the sums.

Notebooks 03 to 05 read the merged file. Its second moments are explicit, one per donor; its groups are by type and
donor. Each file records its source. Sums of other cells or of another number of shards raise ValueError.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from aenmf_lib.data import files, streaming
from aenmf_lib.data.preprocessing import DONOR
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.training.moments import FORMAT, Moments
from aenmf_lib.training.second_moment import EXPLICIT, choose_representation

__all__ = ["load_sums", "merge_shards", "sum_shard"]

log = logging.getLogger(__name__)


def sum_shard(path: str | Path, shard: int, of: int, out: str | Path) -> None:
    """Sum over one shard of the cells that notebook 01 wrote. Memory use: the sums and a few blocks of cells.

    Raises
    ------
    ValueError, MemoryError
        The shard does not exist; the sums over all cells do not fit in memory (checked before summing).
    """
    state = _state(path)  # first, so that a file replaced in between is detected when the shards are merged
    cells = CellStream(path)
    n = cells.n_obs
    if not 0 <= shard < of <= n:
        missing = f"shard {shard} of {of} does not exist for the {n} cells of {path}"
        raise ValueError(f"{missing}. Choose 1 to {n} shards (SHARDS=…), numbered from 0.")
    _check_memory(cells, merging=True)
    cells = CellStream(path, rows=slice(shard * n // of, (shard + 1) * n // of))
    log.info("shard %d of %d: %s", shard, of, cells)
    made_from = json.dumps({"shard": shard, "of": of, "cells": n, **state})
    Moments.from_cells(cells, by_donor=True, mode=EXPLICIT).save(out, made_from=made_from)


def merge_shards(shards: Sequence[str | Path], path: str | Path, out: str | Path) -> None:
    """Add the sums of all shards of the cells at `path`, in the order of the shards. Memory use: two sums.

    Shard files of other SHARDS values in the same folder are deleted, so that make rebuilds `out` when SHARDS changes.

    Raises
    ------
    FileNotFoundError, ValueError, MemoryError
        A shard is missing; it is from other cells or another number of shards; the sums do not fit (checked first).
    """
    if not len(shards):
        raise ValueError(
            f"No shard of {path} was given. Pass the files that sum_shard wrote, in the order of the shards."
        )
    cells = streaming.load_stream(path)
    for shard, file in enumerate(shards):  # hash first, to detect a file replaced in between
        _check_source(file, {"shard": shard, "of": len(shards), "cells": cells.n_obs, **_state(path)}, path)
    _check_memory(cells, merging=True)
    total = Moments.load(shards[0])
    for shard, file in enumerate(shards[1:], 2):
        total += Moments.load(file)
        log.info("added %d of %d shards, %d of %d cells", shard, len(shards), total.n_cells, cells.n_obs)
    for other in set(Path(shards[0]).parent.glob("[!.]*-of-*.npz")) - {Path(file) for file in shards}:
        other.unlink(missing_ok=True)
    total.reason = f"sums over {len(shards)} shards"
    total.save(out, made_from=json.dumps(_source(cells)))


def load_sums(sums: str | Path, cells: CellStream, *, mode: str = "auto", device: str = "cpu") -> Moments:
    """Return the moments that `merge_shards` wrote, to fit `cells`, which `data.load_stream` returned.

    Raises
    ------
    ValueError, MemoryError
        The sums are from other cells; the mode is not explicit; the sums do not fit in memory (checked before reading).
    """
    if not isinstance(cells, CellStream) or "input" not in cells.uns:
        raise TypeError(f"sums={str(sums)!r} needs the cells from data.load_stream, not a {type(cells).__name__}.")
    if mode not in ("auto", EXPLICIT):
        raise ValueError(f"mode={mode!r}, but {sums} contains explicit sums. Set mode='auto', or leave out SHARDS.")
    _check_source(sums, _source(cells), cells.path)
    _check_memory(cells, device)
    return Moments.load(sums, device=device)


def _state(path: str | Path) -> dict[str, int]:
    """Return size and modification time: they identify the file version without reading all of it."""
    stat = Path(path).stat()
    return {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


def _source(cells: CellStream) -> dict[str, int | str]:
    """Return the hash of the file of the cells and their number, which the merged sums record."""
    return {"sha256": cells.uns["input"]["sha256"], "cells": cells.n_obs}


def _check_source(file: str | Path, expected: dict[str, int | str], path: str | Path) -> None:
    """Raise ValueError if the sums in a file were not made from the expected source."""
    try:
        found = dict(json.loads(str(files.read_npz(file, FORMAT, "sums over shards", ["made_from"])["made_from"])))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged: its source cannot be read ({error}). Delete it and compute it again."
        ) from error
    differ = [f"{key} is {found.get(key)}, not {value}" for key, value in expected.items() if found.get(key) != value]
    if differ:
        problem = f"{file} was not made from {path} as it is now: {'; '.join(differ)}"
        raise ValueError(f"{problem}. Delete it and compute it again.")


def _check_memory(cells: CellStream, device: str = "cpu", *, merging: bool = False) -> None:
    """Raise MemoryError if the sums over all cells do not fit in memory; `merging` needs two S in float64."""
    n_partitions = cells.obs[DONOR].nunique()
    sizes = {"n_cells": cells.n_obs, "n_genes": cells.n_vars, "nnz": cells.nnz, "n_partitions": n_partitions}
    second = merging * n_partitions * 4 * cells.n_vars**2  # bytes
    try:
        choose_representation(**sizes, k=1, mode=EXPLICIT, device=device, extra_bytes=second)
    except MemoryError as error:
        raise MemoryError(f"{error} Sums over shards are explicit: leave out SHARDS to avoid them.") from None
