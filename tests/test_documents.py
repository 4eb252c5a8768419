"""The documents: every number of the prose comes from a table of results, from the code, or from a cited source.

benchmarks/numbers.yaml says where each number comes from, as an expression of the functions in `SOURCES` below. Each
expression is evaluated, rounded as in the document, and compared.
"""

import importlib
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import yaml

from aenmf_lib.figures import run_figures

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "notebooks/README.md", "benchmarks/README.md", "figures/README.md",
             "slurm/README.md"]  # fmt: skip
RESULTS = ROOT / "benchmarks/results"
NUMBERS = yaml.safe_load((ROOT / "benchmarks/numbers.yaml").read_text())

# Parts of a document without numbers to trace: blocks of code, tables between marks (test_benchmarks.py compares them
# with benchmarks/results), comments, HTML, code, addresses of links, headings and numbers of a list.
SKIPPED = (
    r"(?ms)^```.*?^```$",
    r"(?s)<!-- table: .*?<!-- end -->",
    r"(?s)<!--.*?-->",
    r"(?s)<[a-z][^>]*>",
    r"`[^`]*`",
    r"(?<=\])\([^)]*\)",
    r"(?m)^#+ .*$",
    r"(?m)^ *\d+\. ",
)
# Names that contain a number. A number joined to letters, such as H100 or F1, is none anyway.
NAMES = (
    r"[Mm]odels? [12](?: and 2)?\b",
    r"[Nn]otebook \d\d\b",
    r"what 03 to 05 share",
    r"(?m)^\|[ ,]+\|[\d, –]+\|",  # the notebooks of a parameter, which have a test of their own
    r"Kang (?:et al\. )?2018",
    r"batch 2",
    r"BSD 3-Clause",
    r"127\.0\.0\.1",
)
NUMBER = r"(?<![\w.,-])\.?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?!\w)"
WORDS = "two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|half|third|quarter"
MEASURED = rf"(?i)\b(?:{WORDS})(?: to (?:{WORDS}))? (?:times|percent|%|seconds|minutes|hours)"


def prose(text: str) -> str:
    """Return a document without the parts that have no numbers to trace; all positions stay."""
    for pattern in (*SKIPPED, *NAMES):
        text = re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return text


def numbers(document: str) -> list[re.Match]:
    """Return the numbers in a document."""
    return list(re.finditer(NUMBER, prose((ROOT / document).read_text())))


# ---- where numbers come from -----------------------------------------------------------------------------------------


@cache
def csv(name: str) -> pd.DataFrame:
    """Return a table of benchmarks/results."""
    return pd.read_csv(RESULTS / f"{name}.csv", keep_default_na=False, na_values=[""])


def mean(score: str, cells: str, on: str, model: str, strength: float = 0, weights: str = "none") -> float:
    """Return the mean over the starts of a score of the conditioning study."""
    table = csv(f"conditioning_{cells}")
    rows = (table["on"] == on) & (table["Model"] == model) & (table["strength"] == strength)
    rows &= table["gene_weights"] == weights
    if not rows.any():
        raise ValueError(f"No rows of {model} in conditioning_{cells}.csv")
    return table.loc[rows, score].mean()


def removed(cells: str, on: str, *model: object, score: str = "scatter") -> float:
    """Return the percentage of the variance between groups that a model removes, relative to AE-NMF."""
    return 100 * (1 - mean(score, cells, on, *model) / mean(score, cells, on, "AE_NMF"))


def worse(cells: str, on: str, *model: object) -> float:
    """Return by how many percent the error of a model is higher than that of AE-NMF."""
    return 100 * (mean("error", cells, on, *model) / mean("error", cells, on, "AE_NMF") - 1)


def reading(form: str, other: str, genes: int) -> float:
    """Return the ratio of the times of one core to read two formats and to keep this number of genes."""
    table = csv("reader").query("genes == @genes and cores == 1").pivot_table("seconds", "run", "format")
    return table[form].median() / table[other].median()


def seconds(name: str, solver: str, other: str = "") -> float:
    """Return the median time of a solver, or the median over the rounds of its ratio to the time of another one."""
    table = csv(name).pivot_table("seconds", "run", "solver", sort=False)
    return (table[solver] / table[other] if other else table[solver]).median()


def cell(table: str, row: str, column: str) -> float:
    """Return an entry of a table in benchmarks/README.md."""
    text = (ROOT / "benchmarks/README.md").read_text().partition(f"<!-- table: {table} -->")[2].partition("<!-- end")[0]
    head, _, *rows = [line[2:-2].split(" | ") for line in text.splitlines() if line[:1] == "|"]
    found = next(line for line in rows if line[0] == row)[head.index(column)]
    return float(found.strip("*%").replace(",", ""))


def text(file: str, pattern: str) -> float:
    """Return the number in the only place of a file that matches a pattern."""
    (found,) = set(re.findall(pattern, (ROOT / file).read_text()))
    return float(found.replace("_", "").replace(",", ""))


def setting(cells: str, name: str) -> float:
    """Return a setting of a data set, or of all data sets."""
    files = [ROOT / f"notebooks/params/{cells}.yaml", ROOT / "notebooks/defaults.yaml"]
    return next(values[name] for file in files if name in (values := yaml.safe_load(file.read_text())))


def parameter(notebook: str, name: str) -> float:
    """Return the default of a parameter of a notebook."""
    return text(f"notebooks/{notebook}.py", rf"(?m)^{name}: \w+ = ([\d.e-]+)")


def code(module: str, name: str) -> float:
    """Return a constant of a module of the library or of the benchmarks."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return getattr(importlib.import_module(module), name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


SOURCES: dict[str, Callable] = {
    f.__name__: f for f in (csv, mean, removed, worse, reading, seconds, cell, text, setting, parameter, code)
} | {"min": min, "max": max, "len": len, "float": float}


def evaluate(expression: str) -> float:
    """Return the value of an expression."""
    return float(eval(expression, {"__builtins__": {}, **SOURCES}))


def written(value: float, number: str) -> str:
    """Return a value as a number is written: with as many decimals, and with a comma at thousands."""
    if "e" in number:
        return f"{value:.0e}".replace("e-0", "e-")
    decimals = len(number.partition(".")[2])
    shown = f"{value:,.{decimals}f}" if "," in number else f"{value:.{decimals}f}"
    return shown[1:] if number.startswith(".") else shown


# ---- the tests -------------------------------------------------------------------------------------------------------


def entries(document: str) -> list[tuple[str, list[str], tuple[int, int]]]:
    """Return the phrases of a document with the expressions of their numbers and their positions."""
    content, found = (ROOT / document).read_text(), []
    for phrase, expressions in (NUMBERS["documents"].get(document) or {}).items():
        pattern = r"\s+".join(map(re.escape, phrase.split()))
        places = list(re.finditer(pattern, content))
        instead = re.search(re.sub(r"[\d.,\\]*\d", r"[\\d.,]+", pattern), content)
        assert len(places) == 1, (
            f"{document} contains '{phrase}' {len(places)} times, but once '{instead and instead[0]}'"
        )
        found.append((phrase, expressions if isinstance(expressions, list) else [expressions], places[0].span()))
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_number_is_listed_with_its_source(document):
    spans = [span for *_, span in entries(document)]
    content = (ROOT / document).read_text()
    missing = [
        f"{document}, line {content[: number.start()].count(chr(10)) + 1}: {number[0]}"
        for number in numbers(document)
        if not any(start <= number.start() < end for start, end in spans)
    ]
    assert not missing, "Add the sources of these numbers to benchmarks/numbers.yaml:\n" + "\n".join(missing)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_listed_number_has_the_value_of_its_source(document):
    wrong = []
    for phrase, expressions, (start, end) in entries(document):
        shown = [number[0] for number in numbers(document) if start <= number.start() < end]
        assert len(shown) == len(expressions), f"{document}: '{phrase}' has the numbers {shown}, but {expressions}"
        for number, expression in zip(shown, expressions, strict=True):
            if not expression.startswith("stated: ") and (value := written(evaluate(expression), number)) != number:
                wrong.append(f"{document}: '{phrase}' says {number}, but {expression} is {value}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_measurements_are_written_in_digits(document):
    content = prose((ROOT / document).read_text())
    assert re.findall(MEASURED, content) == []
    joined = re.findall(r"(?<![\w-])\d[\d.,]*(?!e-?\d)[A-Za-zµ%×]+", content)
    assert joined == [], "Write a space between a number and its unit"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def test_every_table_of_results_has_the_command_that_made_it():
    commands, makefile = NUMBERS["commands"], (ROOT / "Makefile").read_text()
    assert set(commands) == {path.stem for path in RESULTS.glob("*.csv")}
    for name, command in commands.items():
        program, script = command.split()[:2]
        exists = (ROOT / script).exists() if program == "python" else f"{script}/08_" in makefile
        assert program in ("python", "make") and exists, f"{name}: '{command}' is not a command of this project"


def test_table_of_parameters_lists_the_notebooks_that_have_them():
    declared = {}
    for path in ROOT.glob("notebooks/[0-9]*.py"):
        cell = path.read_text().partition('tags=["parameters"]')[2].partition("# %%")[0]
        for name in re.findall(r"(?m)^(\w+): ", cell):
            declared.setdefault(name, set()).add(int(path.name[:2]))
    wrong = []
    for names, column in re.findall(
        r"(?m)^\| (`[`\w, ]+`) \| ([\d, –]+) \|", (ROOT / "notebooks/README.md").read_text()
    ):
        ranges = [part.split("–") for part in column.split(", ")]
        listed = {number for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1)}
        for name in re.findall(r"\w+", names):
            if declared.get(name) != listed:
                wrong.append(f"{name}: listed {sorted(listed)}, declared {sorted(declared.get(name, []))}")
    assert not wrong, "\n".join(wrong)


def test_table_of_figures_lists_the_tables_that_each_figure_is_drawn_from():
    listed, content = {}, (ROOT / "figures/README.md").read_text()
    for name, column in re.findall(r"(?m)^\| `(\w+)` \|.*\| ([^|]*) \|[^|]*\|$", content):
        listed[name] = {"history"} if column == "results files" else set(re.findall(r"`(\w+?)(?:_\*)?\.\w+`", column))
    tables = {name: {table.rstrip("?") for table in needed} for name, needed in run_figures._TABLES.items()}
    assert listed == {name: needed - {"color_by"} for name, needed in tables.items()}


def test_numbers_are_found_in_prose_only():
    example = "F1 of 0.5 and 1,000 cells, `k=3`, [x](a-4.md), model 2, AVX2, 2–4 %.\n## 6 parts\n1. first, .25\n"
    assert re.findall(NUMBER, prose(example)) == ["0.5", "1,000", "2", "4", ".25"]


def test_a_value_is_rounded_as_in_the_document():
    values = {"0.687": 0.68662, "1,000,000": 1e6, "5e-4": 5e-4, ".20": 0.2, "96": 95.6}
    assert {number: written(value, number) for number, value in values.items()} == {number: number for number in values}
