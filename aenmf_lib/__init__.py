"""Non-negative autoencoding of single-cell transcriptomes: the models, the metrics, and what surrounds them.

Names are imported when they are first used, so that a command that needs one module does not pay for all of them.
"""

import os
from importlib import import_module
from importlib.metadata import version

# Waiting threads are to sleep, not to spin: beside other programs on the machine spinning costs a factor of four.
# OpenMP reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = version("aenmf_lib")

_MODELS = {"AENMF": "models", "CAENMF1": "conditional", "CAENMF2": "conditional", "BaseNMF": "baseline"}
_MODULES = (
    "baseline",
    "checkpoint",
    "checks",
    "classification",
    "clustering",
    "communities",
    "conditional",
    "data",
    "descent",
    "figures",
    "fits",
    "folds",
    "forming",
    "gradient",
    "groups",
    "integration",
    "kernels",
    "models",
    "moments",
    "nearest",
    "part",
    "penalties",
    "programs",
    "provenance",
    "results",
    "run",
    "scored",
    "shards",
    "solver",
    "start",
    "stream",
    "study",
    "sums",
    "synthetic",
    "tradeoff",
    "variants",
    "weighting",
    "words",
    "yardsticks",
)
__all__ = [*_MODELS, *_MODULES]


def __getattr__(name: str):
    if name in _MODELS:
        return getattr(import_module(f"{__name__}.{_MODELS[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
