"""The public names: listed once in ``__all__``, documented, and few."""

import importlib
import inspect
from pathlib import Path

import pytest

import aenmf_lib

ROOT = Path(aenmf_lib.__file__).parent
REEXPORTED = ("data", "results", "figures")  # packages that list the public names of their modules


def modules() -> list[str]:
    files = [*ROOT.glob("*/*.py")]
    names = [".".join(file.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return sorted(names)


def public() -> dict[str, object]:
    """Public functions and classes by qualified name."""
    found = {}
    for name in modules():
        module = importlib.import_module(name)
        for symbol in getattr(module, "__all__", ()):
            value = getattr(module, symbol)
            if callable(value):
                found[f"{value.__module__}.{symbol}"] = value
    return found


PUBLIC = public()


def test_at_most_eighty_functions_and_classes_are_public_beside_the_figures():
    others = [name for name in PUBLIC if ".figures." not in name]
    assert 50 < len(others) <= 80, sorted(others)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented(name):
    value = PUBLIC[name]
    doc = inspect.getdoc(value)
    assert len(doc) > 30
    parameters = [] if inspect.isclass(value) else list(inspect.signature(value).parameters)
    if len(parameters) > 4:  # shorter signatures are explained in a sentence
        assert [parameter for parameter in parameters if parameter not in doc] == []


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[1] in REEXPORTED])
def test_names_of_a_reexporting_package_are_listed_only_there(name):
    assert hasattr(importlib.import_module(name), "__all__") == (name.count(".") == 1)
