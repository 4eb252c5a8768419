"""Class docstrings of the models: they list every parameter and fitted attribute, and their examples run."""

import doctest
import inspect
from dataclasses import fields

import pytest

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF

MODELS = (AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF)


def documented(model, title):
    """Names of the entries in one section of a class docstring, which may have several names per entry."""
    section = inspect.cleandoc(model.__doc__).split(f"\n{title}\n{'-' * len(title)}\n")[1].split("\n\n")[0]
    entries = [line.split(" : ")[0] for line in section.splitlines() if not line.startswith(" ")]
    return [name for entry in entries for name in entry.split(", ")]


@pytest.mark.parametrize("model", MODELS)
def test_docstring_lists_every_parameter_once(model):
    assert sorted(documented(model, "Parameters")) == sorted(field.name for field in fields(model))


@pytest.mark.parametrize("model", MODELS)
def test_docstring_lists_every_fitted_attribute_once(model, tiny):
    fitted = model(k=3, max_iter=3).fit(tiny)
    attributes = [name for name in dir(fitted) if name.endswith("_") and not name.startswith("_")]
    assert sorted(documented(model, "Attributes")) == sorted(attributes)


@pytest.mark.parametrize("model", MODELS)
def test_docstring_has_raises_references_and_an_example_that_runs(model):
    assert all(f"\n{title}\n" in inspect.cleandoc(model.__doc__) for title in ("Raises", "References"))
    assert "doi:10." in model.__doc__
    (test,) = doctest.DocTestFinder(recurse=False).find(model, model.name)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
