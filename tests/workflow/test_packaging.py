"""The declared dependencies and the environments made from them."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import aenmf_lib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def imported(files: list[Path]) -> set[str]:
    """Return the top-level packages that files import, without the standard library and this library."""
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"aenmf_lib"}


def test_every_imported_package_is_declared():
    distributions = packages_distributions()
    needed = imported([*ROOT.glob("aenmf_lib/**/*.py"), *ROOT.glob("notebooks/*.py")])
    optional = {"daal4py", "sklearnex", "harmonypy", "scvi", "scib_metrics", "jax"}  # extras, imported on request
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    installed = {name for name in needed - optional if canonicalize_name(distributions[name][0]) not in declared}
    assert installed == set()


def test_environment_yml_installs_what_pyproject_declares():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert conda["channels"] == ["conda-forge", "nodefaults"]
    python, pip, packages = conda["dependencies"]
    assert (python, pip) == (f"python{PROJECT['requires-python']}", "pip")
    assert packages == {"pip": ["-c constraints.txt", "-e .[test]"]}


def test_citation_and_package_have_the_version_of_pyproject():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert aenmf_lib.__version__ == PROJECT["version"]


def test_every_folder_of_the_library_is_an_installed_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["packages"]["find"]["include"] == ["aenmf_lib*"]
    assert settings["package-data"]["aenmf_lib.figures"] == ["*.mplstyle", "*.yaml"]
    folders = {path.parent for path in ROOT.glob("aenmf_lib/**/*.py")}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()
