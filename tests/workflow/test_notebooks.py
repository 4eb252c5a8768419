"""The sources of the notebooks: consistent with each other and with the library, short cells, prose."""

import dataclasses
import re
from pathlib import Path

import jupytext
import pytest

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF
from aenmf_lib.workflow.parameters import defaults, read_yaml, resolve

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))
TRAINING = {
    "02_train_base_nmf": BaseNMF,
    "03_train_ae_nmf": AENMF,
    "04_train_cae_nmf1": CAENMF1,
    "05_train_cae_nmf2": CAENMF2,
    "15_train_untied_ae_nmf": UntiedAENMF,
}


def cells(path):
    return jupytext.read(path).cells


def parameters(path) -> dict:
    (source,) = [cell.source for cell in cells(path) if "parameters" in cell.metadata.get("tags", [])]
    values = {}
    exec(source, values)
    return {name: values[name] for name in values["__annotations__"]}


def test_every_notebook_exists():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_filter",
        *[*TRAINING][:4],
        "06_benchmarks",
        "07_figures",
        "08_conditioning",
        "09_explore",
        "10_programs",
        "11_project",
        "12_rank",
        "13_consensus",
        "14_differential",
        "15_train_untied_ae_nmf",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_has_short_cells_with_prose_and_no_functions(path):
    code = [cell.source for cell in cells(path) if cell.cell_type == "code"]
    assert cells(path)[0].source.startswith(f"# {path.stem[:2]} · ")
    for part in ("**Question.**", "**Reads**", "**Writes**"):
        assert part in cells(path)[0].source
    assert not re.search(r"^\s*(def|class|for|while) ", "\n".join(code), re.M)
    assert max(source.count("\n") for source in code) < 25
    # Prose comes before each cell of code, but for the imports after the parameters.
    kinds = "".join("c" if cell.cell_type == "code" else "m" for cell in cells(path))
    assert "ccc" not in kinds


def test_a_parameter_has_the_same_default_in_every_notebook():
    seen = {}
    for path in NOTEBOOKS:
        for name, value in parameters(path).items():
            # of the results, and of the models and studies by definition
            if name not in ("out", "out_dir", "lambda_U", "max_iter", "tol", "baselines", "strength", "gene_weights"):
                assert seen.setdefault(name, value) == value, (path.stem, name)


def test_notebooks_open_with_the_values_of_the_demo_and_make_uses_those_of_all_data_sets():
    demo, usual = (read_yaml(ROOT / f"notebooks/{name}.yaml") for name in ("params/demo", "defaults"))
    opened = {name: value for path in NOTEBOOKS for name, value in parameters(path).items()}
    assert {name: opened[name] for name in demo} == demo
    assert usual.keys() == demo.keys() - {"data"}
    assert resolve(NOTEBOOKS)["01_filter"]["min_cells"] == 0


def test_a_notebook_that_runs_as_opened_writes_only_into_the_lab_folder():
    for path in NOTEBOOKS:
        for name, value in parameters(path).items():
            if name in ("out", "out_dir"):
                assert value.startswith("results/lab"), (path.stem, value)
            else:
                assert "results/lab" not in str(value), (path.stem, name)


@pytest.mark.parametrize("stem", TRAINING)
def test_values_of_make_for_a_training_notebook_equal_the_defaults_of_its_model(stem):
    given = defaults(ROOT / f"notebooks/{stem}.py")
    for field in dataclasses.fields(TRAINING[stem]):
        if stem.startswith("15") and field.name in ("preset", "row_norm"):
            assert field.name not in given  # the model refuses both
        elif field.name == "preset":
            assert given["preset"] == ""
        else:
            assert given[field.name] == field.default, field.name
