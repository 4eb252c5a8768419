"""The notebooks as sources: they agree with each other and with the library, and stay stories."""

import dataclasses
import re
from pathlib import Path

import jupytext
import pytest

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.py"))
TRAINING = {
    "02_train_base_nmf": BaseNMF,
    "03_train_ae_nmf": AENMF,
    "04_train_cae_nmf1": CAENMF1,
    "05_train_cae_nmf2": CAENMF2,
}


def cells(path):
    return jupytext.read(path).cells


def parameters(path) -> dict:
    (source,) = [cell.source for cell in cells(path) if "parameters" in cell.metadata.get("tags", [])]
    values = {}
    exec(source, values)
    return {name: values[name] for name in values["__annotations__"]}


def test_all_are_there():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_filter",
        *TRAINING,
        "06_benchmarks",
        "07_figures",
        "08_conditioning",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_a_story_of_short_cells(path):
    code = [cell.source for cell in cells(path) if cell.cell_type == "code"]
    assert cells(path)[0].source.startswith(f"# {path.stem[:2]} · ")
    for part in ("**Question.**", "**Reads**", "**Writes**"):
        assert part in cells(path)[0].source
    assert not re.search(r"^\s*(def|class|for|while) ", "\n".join(code), re.M)
    assert max(source.count("\n") for source in code) < 25
    # every thought is told: no two cells of code on end but for the import that follows the parameters
    kinds = "".join("c" if cell.cell_type == "code" else "m" for cell in cells(path))
    assert "ccc" not in kinds


def test_a_parameter_means_the_same_in_every_notebook():
    seen = {}
    for path in NOTEBOOKS:
        for name, value in parameters(path).items():
            # the last three differ by the definition of the models
            if name not in ("out", "out_dir", "lambda_U", "max_iter", "tol"):
                assert seen.setdefault(name, value) == value, (path.stem, name)


@pytest.mark.parametrize("stem", TRAINING)
def test_defaults_are_the_models(stem):
    """Each hyper-parameter is a parameter of the notebook, with the default of the library."""
    given = parameters(ROOT / f"notebooks/{stem}.py")
    for field in dataclasses.fields(TRAINING[stem]):
        if field.name == "preset":
            assert given["preset"] == ""
        else:
            assert given[field.name] == field.default, field.name
