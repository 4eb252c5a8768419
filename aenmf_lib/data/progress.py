"""Progress bars of the library, which a caller can hide for a block of code."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import tqdm as _tqdm

_hidden = ContextVar("hidden", default=False)


def tqdm(*args, disable: bool = False, **options) -> _tqdm.tqdm:
    """Return a progress bar of tqdm; it is not drawn if it starts within `hide_progress_bars`."""
    return _tqdm.tqdm(*args, disable=disable or _hidden.get(), **options)


@contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Hide the bars that start within this block, such as those of the hundreds of fits of a study."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)
