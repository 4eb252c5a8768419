"""Parameters of the notebooks: accepted and refused names and types."""

import os
from pathlib import Path

import pytest

from aenmf_lib.workflow.parameters import ParameterError, declared, defaults, require_known, resolve, write

ROOT = Path(__file__).parents[2]
NOTEBOOK = """\
# %% [markdown]
# # A notebook
# %% tags=["parameters"]
cells: str = "cells.h5ad"  # made by 01
k: int = 80  # programs
tol: float = 0.0001  # where to stop
labels: bool = True
seeds: list[int] = [0, 1]
models: list[str] = ["a", "b"]
depth: int = -1  # no limit
# %%
print(k)
"""


@pytest.fixture
def notebooks(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "02_train.py", tmp_path / "06_benchmarks.py"]
    paths[0].write_text(NOTEBOOK)
    paths[1].write_text('# %% tags=["parameters"]\nmax_cells: int = 0\nk: int = 80\n')
    return paths


def given(notebooks: list[Path], yaml: str, *overrides: tuple[str, str]) -> dict:
    file = notebooks[0].parent / "cells.yaml"
    file.write_text(yaml)
    return resolve(notebooks, file, overrides)


def test_declared_reads_names_and_types_in_order(notebooks):
    assert list(declared(notebooks[0]).items()) == [
        ("cells", "str"),
        ("k", "int"),
        ("tol", "float"),
        ("labels", "bool"),
        ("seeds", "list[int]"),
        ("models", "list[str]"),
        ("depth", "int"),
    ]


def test_a_notebook_without_parameters_cell_declares_nothing(tmp_path):
    (tmp_path / "explore.py").write_text("# %%\nk: int = 80\n")
    assert declared(tmp_path / "explore.py") == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("k = 80", r"02_train.py, line 4: expected one parameter"),
        ("k: int", r"line 4: expected one parameter"),
        ("k: complex = 1", r"line 4: expected one parameter.* of type str, int"),
        ("seeds: list[int] = [\n0]", r"line 4: expected one parameter"),
        ("k: int = '80'", r"line 4: expected int, found '80'"),
        ("k: int = 8 * 10", r"line 4: expected a literal, found 8 \* 10"),
        ("query: str = 'a=b'", r"line 4: the default and the comment must not contain '=', found \"query: str = 'a=b'"),
        ("k: int = 80  # from make K=80", r"line 4: the default and the comment must not contain '='"),
        ("%load_ext x", r"02_train.py: the parameters cell is not valid Python"),
        ('# %% tags=["parameters"]', "2 cells tagged"),
    ],
)
def test_other_lines_in_the_parameters_cell_are_refused(notebooks, line, message):
    notebooks[0].write_text(NOTEBOOK.replace('cells: str = "cells.h5ad"  # made by 01', line))
    with pytest.raises(ParameterError, match=message):
        declared(notebooks[0])


def test_a_value_is_set_for_every_notebook_that_declares_its_name(notebooks):
    assert given(notebooks, "k: 20\nmax_cells: 5\n") == {
        "02_train": {"k": 20},
        "06_benchmarks": {"max_cells": 5, "k": 20},
    }


def test_a_section_sets_one_notebook_and_wins_in_any_order(notebooks):
    expected = {"02_train": {"k": 20}, "06_benchmarks": {"k": 5}}
    assert given(notebooks, "k: 20\n06_benchmarks:\n  k: 5\n") == expected
    assert given(notebooks, "06_benchmarks:\n  k: 5\nk: 20\n") == expected


def test_the_command_line_wins_over_the_file(notebooks):
    assert given(notebooks, "k: 20\n", ("k", "7"))["02_train"] == {"k": 7}


def test_a_name_in_a_section_and_on_the_command_line_is_refused(notebooks):
    with pytest.raises(
        ParameterError, match=r"cells.yaml sets k for 02_train, and the command line sets it too. Keep one"
    ):
        given(notebooks, "02_train:\n  k: 20\n", ("k", "7"))


@pytest.mark.parametrize(
    ("yaml", "value"),
    [
        ("tol: 1.0e-2", 0.01),
        ("tol: 1", 1.0),
        ("seeds: [3, 4]", [3, 4]),
        ("models: []", []),
        ("depth: -2", -2),
        ("labels: false", False),
        ('cells: ""', ""),
    ],
)
def test_values_of_the_declared_type_are_accepted(notebooks, yaml, value):
    found = given(notebooks, yaml)["02_train"][yaml.partition(":")[0]]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("tol: 1e-2", r"cells.yaml: tol: expected float, found '1e-2' \(str\).* 0.01 or 1.0e-2"),
        ("k: '80'", r"k: expected int, found '80' \(str\).* without quotes"),
        ("k: 80.0", r"k: expected int, found 80.0 \(float\)"),
        ("k: true", r"k: expected int, found True \(bool\)"),
        ("tol: true", r"tol: expected float, found True"),
        ("labels: 1", r"labels: expected bool, found 1"),
        ("cells: no", r"cells: expected str, found False \(bool\).* in quotes"),
        ("cells:", r"cells: expected str, found None"),
        ("seeds: 3", r"seeds: expected list\[int\], found 3"),
        ("seeds: [0, x]", r"seeds: expected int, found 'x'"),
        ("06_benchmarks: {max_cells: 1e3}", r"cells.yaml, 06_benchmarks: max_cells: expected int, found '1e3'"),
        ("max_cell: 5", r"Unknown parameter max_cell in .*cells.yaml. Did you mean max_cells or cells\? Valid"),
        ("zzz: 5", r"Unknown parameter zzz in .*cells.yaml. Valid parameters: cells, depth, k"),
        (
            "06_benchmarks: {tol: 1.0}",
            r"Unknown parameter tol in .*cells.yaml, 06_benchmarks. Valid parameters: k, max_cells",
        ),
        ("06_benchmark: {k: 1}", r"Unknown notebook 06_benchmark in .*Did you mean 06_benchmarks"),
        ("06_benchmarks: 3", r"06_benchmarks: expected a mapping.* found 3"),
        ("k: 1\nk: 2", r"cells.yaml, line 2: 'k' is already set in line 1"),
        ("02_train:\n  k: 1\n  k: 2", r"line 3: 'k' is already set in line 2"),
        ("- k", "contains a list. Write one 'name: value'"),
        ("k: [", "Cannot read the parameters file"),
    ],
)
def test_wrong_names_and_types_in_the_file_are_refused(notebooks, yaml, message):
    with pytest.raises(ParameterError, match=message):
        given(notebooks, yaml)


@pytest.mark.parametrize(
    ("name", "valid", "what", "message"),
    [
        ("lisi", ["k", "scib"], "parameter", r"Unknown parameter lisi\. It is now called scib\. Valid"),
        ("LISI", ["K", "SCIB"], "variable", r"Unknown variable LISI\. It is now called SCIB\. Valid"),
        ("untied", ["tie_cost"], "parameter", r"Unknown parameter untied\. It is now called tie_cost\. Valid"),
        ("lisi", ["k"], "parameter", r"Unknown parameter lisi\. Valid"),  # a notebook without the new name
        ("LABELS", ["DROP_LABELS"], "variable", r"LABELS\. It was removed: a strength always compares donors within"),
        ("invariance", ["k"], "parameter", r"invariance\. It was removed: with strength 0, the penalty is"),
        ("labels", ["drop_labels"], "notebook", r"Unknown notebook labels\. Did you mean drop_labels\? Valid"),
    ],
)
def test_names_of_earlier_versions_are_explained(name, valid, what, message):
    with pytest.raises(ParameterError, match=message):
        require_known(name, valid, what=what)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("k", "20", 20),
        ("tol", "1e-2", 0.01),
        ("labels", "False", False),
        ("cells", "12", "12"),
        ("cells", "", ""),
        ("seeds", "0,1, 2", [0, 1, 2]),
        ("seeds", "", []),
        ("models", "a.h5ad,b.h5ad", ["a.h5ad", "b.h5ad"]),
        ("depth", "-1", -1),
    ],
)
def test_text_of_the_command_line_becomes_the_declared_type(notebooks, name, text, value):
    found = resolve(notebooks, None, [(name, text)])["02_train"][name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("k", "20.5", "k: expected int, found '20.5'"),
        ("k", "", "expected int, found ''"),
        ("labels", "1", "expected true or false, found '1'"),
        ("seeds", "0,,1", "expected int, found ''"),
        ("K", "1", r"Unknown parameter K. Did you mean k\?"),
    ],
)
def test_wrong_names_and_types_on_the_command_line_are_refused(notebooks, name, text, message):
    with pytest.raises(ParameterError, match=message):
        resolve(notebooks, None, [(name, text)])


def test_quick_sets_fewer_seeds_but_keeps_smaller_and_typed_values(tmp_path):
    notebook, file = tmp_path / "06.py", tmp_path / "cells.yaml"
    lines = [
        "max_cells: int = 0",
        "clustering_seeds: list[int] = [0, 1, 2]",
        "classification_seeds: list[int] = [1, 2]",
    ]
    notebook.write_text(
        "\n".join(['# %% tags=["parameters"]', *lines, "n_starts: int = 1", "sample_cells: int = 0", ""])
    )
    few = {"max_cells": 2000, "clustering_seeds": [0, 1], "classification_seeds": [42], "n_starts": 1}
    assert resolve([notebook], quick=True)["06"] == few | {"sample_cells": 20_000}
    file.write_text("max_cells: 500\nclustering_seeds: [7]\nclassification_seeds: [1, 2, 3]\n06: {n_starts: 9}\n")
    own = {"max_cells": 500, "clustering_seeds": [7]}
    assert resolve([notebook], file, quick=True)["06"] == few | own | {"sample_cells": 20_000}
    typed = [("max_cells", "0"), ("sample_cells", "50000")]
    assert resolve([notebook], file, typed, quick=True)["06"] == few | own | {"max_cells": 0, "sample_cells": 50_000}


def test_write_keeps_the_date_if_only_an_unimportant_value_changes(tmp_path):
    file = tmp_path / "01_filter.yaml"
    write(file, {"data": "cells.h5ad", "min_cells": 5})
    os.utime(file, (1, 1))
    write(file, {"data": "moved/cells.h5ad", "min_cells": 5}, unimportant=("data",))
    assert (file.read_text(), file.stat().st_mtime) == ("data: moved/cells.h5ad\nmin_cells: 5\n", 1)
    write(file, {"data": "moved/cells.h5ad", "min_cells": 6}, unimportant=("data",))
    assert file.stat().st_mtime > 1


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    file = tmp_path / "01_filter.yaml"
    write(file, {"k": 1})
    stale = tmp_path / ".4194304.01_filter.yaml"  # of a killed process: larger than any process number
    stale.touch()
    os.utime(stale, (1, 1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"01_filter\.yaml"):
        patch.setattr(Path, "write_text", full)
        write(file, {"k": 2})
    assert file.read_text() == "k: 1\n"
    write(file, {"k": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["01_filter.yaml"]


def test_a_missing_file_is_named(notebooks, tmp_path):
    with pytest.raises(ParameterError, match=r"Cannot read the parameters file .*none.yaml"):
        resolve(notebooks, tmp_path / "none.yaml")
    with pytest.raises(FileNotFoundError, match=r"08.py"):
        resolve([tmp_path / "08.py"])


def test_write_touches_a_file_only_when_its_content_changes(tmp_path):
    file = tmp_path / "new" / "02_train.yaml"
    write(file, {"k": 20, "tol": 1e-05})
    os.utime(file, (1, 1))
    write(file, {"k": 20, "tol": 1e-05})
    assert file.stat().st_mtime == 1
    write(file, {"k": 21, "tol": 1e-05})
    assert file.stat().st_mtime > 1
    assert [path.name for path in file.parent.iterdir()] == ["02_train.yaml"]


def test_written_values_read_back_equal(notebooks, tmp_path):
    values = {"cells": "no", "tol": 1e-5, "labels": True, "seeds": [0], "models": ["a=b", "1"]}
    write(tmp_path / "out.yaml", values)
    assert resolve(notebooks, tmp_path / "out.yaml")["02_train"] == values


def test_the_name_on_is_not_read_as_a_truth_value(notebooks):
    notebooks[1].write_text('# %% tags=["parameters"]\non: bool = False\n')
    assert given(notebooks, "on: true")[notebooks[1].stem]["on"] is True


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks" / "params").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_settings_file_of_the_repository_is_valid(file):
    assert resolve(sorted((ROOT / "notebooks").glob("[0-9]*.py")), file)


@pytest.mark.parametrize("text", ["---", "~", "---\n# nothing"])
def test_file_without_values_sets_nothing(notebooks, tmp_path, text):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    assert resolve(notebooks[:1], file) == {"02_train": {}}


def test_the_values_for_every_data_set_are_replaced_by_all_others(notebooks, tmp_path):
    (tmp_path / "defaults.yaml").write_text("k: 60\nmax_cells: 5000\n")
    expected = {"02_train": {"k": 60}, "06_benchmarks": {"k": 60, "max_cells": 5000}}
    assert resolve(notebooks) == expected
    assert defaults(notebooks[0])["k"] == 60
    assert given(notebooks, "k: 20\n06_benchmarks: {max_cells: 7}\n", ("k", "3")) == {
        "02_train": {"k": 3},
        "06_benchmarks": {"k": 3, "max_cells": 7},
    }
    assert resolve(notebooks, quick=True)["06_benchmarks"]["max_cells"] == 2000
    (tmp_path / "defaults.yaml").write_text("k: many\n")
    with pytest.raises(ParameterError, match=r"defaults.yaml: k: expected int, found 'many'"):
        resolve(notebooks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k: !!python/object/apply:os.system ['touch made']", "os.system"),
        ("k: &a [*a]", "refers to another value"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nk: [*b, *b]", "refers to another value"),
        ("k: 2026-02-31", "day is out of range"),
        ("k: " + "9" * 5000, "4300 digits"),
        ("k: " + "x" * 5000, "found 'x"),
        ("k: 1\n---\nk: 2", "single document"),
        ('"\\e[31mk": 1', "Unknown parameter"),
        ("k: " + "[" * 5000 + "]" * 5000, "recursion"),
        ("#" * 2_000_000, "2,000,000 characters"),
    ],
)
def test_hostile_yaml_is_one_short_line_and_runs_nothing(notebooks, tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "cells.yaml"
    file.write_text(text)
    with pytest.raises(ParameterError, match=message) as error:
        resolve(notebooks, file)
    assert len(str(error.value)) < 700 + len(str(tmp_path))
    assert str(error.value).isprintable()
    assert not (tmp_path / "made").exists()


def test_file_that_contains_itself_is_an_error(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("a: &a\n  b: *a\n")
    with pytest.raises(ParameterError, match="refers to another value"):
        resolve([ROOT / "notebooks/01_filter.py"], file)
