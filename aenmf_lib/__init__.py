"""Non-negative autoencoding of single-cell transcriptomes: models, metrics and the workflow around them.

Names are imported on first use, so that a command that needs one package does not import the others.
"""

import os
from importlib import import_module

# Let waiting threads sleep. Spinning makes training four times slower when other programs use the machine.
# OpenMP reads this variable when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_MODELS = {"AENMF": "aenmf", "CAENMF1": "conditional", "CAENMF2": "conditional", "BaseNMF": "base_nmf"}
_MODELS |= {"UntiedAENMF": "untied"}
_PACKAGES = ("conditioning", "data", "figures", "metrics", "models", "programs", "results", "training", "workflow")
__all__ = [*_MODELS, *_PACKAGES]


def __getattr__(name: str):
    if name == "__version__":
        return import_module("importlib.metadata").version(__name__)
    if name in _MODELS:
        return getattr(import_module(f"{__name__}.models.{_MODELS[name]}"), name)
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Available: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
