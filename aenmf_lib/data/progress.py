"""Progress bars of the library, which a caller can hide for a block of code."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import tqdm as _tqdm

_hidden = ContextVar("hidden", default=False)


def tqdm(*args, disable: bool = False, **options) -> _tqdm.tqdm:
    """Return a progress bar of tqdm; it is not drawn if it starts within `hide_progress_bars`."""
    return _tqdm.tqdm(*args, disable=disable or _hidden.get(), **options)


def cell_bar(blocks: Iterable[tuple[object, slice]], description: str) -> Iterator[tuple[object, slice]]:
    """Yield the blocks of a `CellStream`, with a progress bar if it has 10,000 cells or more."""
    n = blocks.n_obs
    with tqdm(total=n, desc=description, unit="cell", unit_scale=True, mininterval=2, disable=n < 10_000) as bar:
        for X, rows in blocks:
            yield X, rows
            bar.update(rows.stop - rows.start)


@contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Hide the bars that start within this block, such as those of the hundreds of fits of a study."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)
