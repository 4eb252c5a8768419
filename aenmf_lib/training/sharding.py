"""Sums over an atlas on many machines: each job sums over one shard of the cells; a last job merges the sums.

Notebooks 03 to 05 read the merged file. It contains XᵀX of all cells or, for CAE_NMF2, of each donor, and the sums over
each type and donor. Each file records its source. Sums of other cells or of another number of shards raise ValueError.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from aenmf_lib.data import files, streaming
from aenmf_lib.data.preprocessing import DONOR
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.training.moments import FORMAT, Moments
from aenmf_lib.training.second_moment import EXPLICIT, check_device, choose_representation

__all__ = ["load_sums", "merge_shards", "sum_shard"]

log = logging.getLogger(__name__)


def sum_shard(
    path: str | Path, shard: int, of: int, out: str | Path, *, by_donor: bool = False, device: str = "cpu"
) -> None:
    """Sum over one shard of the cells that notebook 01 wrote. Memory use: the sums and a few blocks of cells.

    Parameters
    ----------
    path, shard, of, out
        File of the cells; number of the shard, from 0, and of all shards; where to write the sums.
    by_donor
        Keep one second moment per donor, as CAE_NMF2 needs.
    device
        Device that forms the second moment. The sums can be read on any device.

    Raises
    ------
    ValueError, RuntimeError, MemoryError
        The shard does not exist; the device is not available; the sums over all cells do not fit in memory (checked
        before summing).
    """
    check_device(device)
    state = _state(path)  # first, so that a file replaced in between is detected when the shards are merged
    cells = CellStream(path)
    n = cells.n_obs
    if not 0 <= shard < of <= n:
        missing = f"shard {shard} of {of} does not exist for the {n} cells of {path}"
        raise ValueError(f"{missing}. Choose 1 to {n} shards (SHARDS=…), numbered from 0.")
    _check_memory(cells, by_donor, merging=True)
    if device != "cpu":
        _check_memory(cells, by_donor, device)
    cells = CellStream(path, rows=slice(shard * n // of, (shard + 1) * n // of))
    log.info("shard %d of %d: %s", shard, of, cells)
    made_from = json.dumps({"shard": shard, "of": of, "cells": n, **state})
    Moments.from_cells(cells, by_donor=by_donor, mode=EXPLICIT, device=device).save(out, made_from=made_from)


def merge_shards(shards: Sequence[str | Path], path: str | Path, out: str | Path) -> None:
    """Add the sums of all shards of the cells at `path`, in the order of the shards. Memory use: two sums.

    Shard files of other SHARDS values in the same folder are deleted, so that make rebuilds `out` when SHARDS changes.

    Raises
    ------
    FileNotFoundError, ValueError, MemoryError
        A shard is missing; it is from other cells or another number of shards; some shards are by donor and others not;
        the sums do not fit (checked first).
    """
    if not len(shards):
        raise ValueError(
            f"No shard of {path} was given. Pass the files that sum_shard wrote, in the order of the shards."
        )
    cells = streaming.load_stream(path)
    for shard, file in enumerate(shards):  # hash first, to detect a file replaced in between
        _check_source(file, {"shard": shard, "of": len(shards), "cells": cells.n_obs, **_state(path)}, path)
    by_donor = _by_donor(shards[0])
    if other := next((file for file in shards if _by_donor(file) != by_donor), None):
        pair = (shards[0], other) if by_donor else (other, shards[0])
        raise ValueError(f"{pair[0]} has sums per donor, and {pair[1]} has none. Delete both and compute them again, "
                         "with the same MODELS.")  # fmt: skip
    _check_memory(cells, by_donor, merging=True)
    total = Moments.load(shards[0])
    for shard, file in enumerate(shards[1:], 2):
        total += Moments.load(file)
        log.info("added %d of %d shards, %d of %d cells", shard, len(shards), total.n_cells, cells.n_obs)
    for other in set(Path(shards[0]).parent.glob("[!.]*-of-*.npz")) - {Path(file) for file in shards}:
        other.unlink(missing_ok=True)
    total.reason = f"sums over {len(shards)} shards"
    total.save(out, made_from=json.dumps(_source(cells)))


def load_sums(
    sums: str | Path, cells: CellStream, *, by_donor: bool = False, mode: str = "auto", device: str = "cpu"
) -> Moments:
    """Return the moments that `merge_shards` wrote, to fit `cells`, which `data.load_stream` returned.

    Parameters
    ----------
    sums, cells
        File of the sums, and the cells over which they were computed.
    by_donor, mode, device
        Whether the model needs one second moment per donor; 'auto' or 'explicit'; the device of the products.

    Raises
    ------
    ValueError, MemoryError
        The sums are from other cells; they are not per donor, but `by_donor` is set; the mode is not
        explicit; the sums do not fit in memory (checked before reading).
    """
    if not isinstance(cells, CellStream) or "input" not in cells.uns:
        raise TypeError(f"sums={str(sums)!r} needs the cells from data.load_stream, not a {type(cells).__name__}.")
    if mode not in ("auto", EXPLICIT):
        raise ValueError(f"mode={mode!r}, but {sums} contains explicit sums. Set mode='auto', or leave out SHARDS.")
    _check_source(sums, _source(cells), cells.path)
    per_donor = _by_donor(sums)
    if by_donor and not per_donor:
        raise ValueError(f"{sums} has one second moment for all donors, but CAE_NMF2 needs one per donor. Compute the "
                         "sums again with MODELS that include CAE_NMF2.")  # fmt: skip
    _check_memory(cells, per_donor, device)
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


def _by_donor(file: str | Path) -> bool:
    """Return whether the sums in a file are per donor; only the names of the donors are read."""
    return files.read_npz(file, FORMAT, "sums over shards", ["partitions"])["partitions"].tolist() != [""]


def _check_memory(cells: CellStream, by_donor: bool, device: str = "cpu", *, merging: bool = False) -> None:
    """Raise MemoryError if the sums over all cells do not fit in memory; `merging` needs two S in float64."""
    n_partitions = cells.obs[DONOR].nunique() if by_donor else 1
    sizes = {"n_cells": cells.n_obs, "n_genes": cells.n_vars, "nnz": cells.nnz, "n_partitions": n_partitions}
    second = merging * n_partitions * 4 * cells.n_vars**2  # bytes
    try:
        choose_representation(**sizes, k=1, mode=EXPLICIT, device=device, extra_bytes=second)
    except MemoryError as error:
        raise MemoryError(f"{error} Sums over shards are explicit: leave out SHARDS to avoid them.") from None
