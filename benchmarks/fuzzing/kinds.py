"""The list of all kinds of damage."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fuzzing.bases import Base

Damage = Callable[[Path, Base, np.random.Generator], str]  # changes a copy of the file; returns what was changed


@dataclass(frozen=True)
class Kind:
    """A kind of damage: where it applies, and which outcomes are right."""

    name: str
    damage: Damage
    suites: tuple[str, ...]
    contents: tuple[str, ...]
    valid: bool  # the file stays valid: only the right result is accepted
    strict: bool  # other values are never accepted, even if anndata reads them too


KINDS: list[Kind] = []


def kind(
    name: str,
    suites: str = "h5ad zarr",
    contents: str = "counts filtered results",
    *,
    valid: bool = False,
    strict: bool = False,
) -> Callable[[Damage], Damage]:
    """Register a function as a kind of damage."""

    def register(damage: Damage) -> Damage:
        KINDS.append(Kind(name, damage, tuple(suites.split()), tuple(contents.split()), valid, strict))
        return damage

    return register


class NotApplicableError(Exception):
    """The chosen file has no element that this kind of damage could change."""
