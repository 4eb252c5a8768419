"""Work out what each notebook is given: only names that it declares, only values of the declared type."""

from __future__ import annotations

import ast
import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

SCALARS = {"str": str, "int": int, "float": float, "bool": bool}
TYPES = (*SCALARS, *(f"list[{kind}]" for kind in SCALARS))
PARAMETERS_CELL = re.compile(r'^# %%[^\n]*\btags=\[[^\]\n]*"parameters"[^\n]*\n(.*?)(?=^# %%|\Z)', re.M | re.S)


class ParameterError(ValueError):
    """A parameter that no notebook takes, or not so; the text is for the user."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        first: dict[str, int] = {}
        for key, _ in node.value:  # the plain loader keeps the last of two and says nothing
            if not isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                raise ParameterError(
                    f"{key.start_mark.name}, line {line}: a list or mapping stands where a name is expected."
                )
            name, place, line = key.value, key.start_mark.name, key.start_mark.line + 1
            if name in first:
                raise ParameterError(
                    f"{place}, line {line}: '{name}' is given already in line {first[name]}. Keep one."
                )
            first[name] = line
            key.tag = "tag:yaml.org,2002:str"  # a name, also where YAML would read a truth value, as in 'on'
        return super().construct_mapping(node, deep)


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open(encoding="utf-8") as stream:
            given = yaml.load(stream, Loader=_Loader)  # a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f"Cannot read the parameters file {file}: {error}") from None
    if not isinstance(given, dict | None):
        raise ParameterError(f"{file}: expected lines of 'name: value', found {type(given).__name__}.")
    return given or {}


def require_known(name: str, names: Iterable[str], where: str, what: str) -> None:
    """Raise ParameterError, with what was perhaps meant, if ``name`` is not among ``names``."""
    names = sorted(names)
    if name not in names:
        close = difflib.get_close_matches(str(name), names)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"There are: {', '.join(names) or 'none'}."
        raise ParameterError(f"{where}: '{name}' is no {what}. {hint}")


def _checked(value: Any, kind: str, where: str) -> Any:
    if kind.startswith("list[") and isinstance(value, list):
        return [_checked(item, kind[5:-1], where) for item in value]
    if kind == "float" and type(value) is int:
        return float(value)
    if type(value) is SCALARS.get(kind):  # not isinstance, to which True is an int
        return value
    hint = ""
    if kind == "str":
        hint = ' Write it in quotes, "" for none: to YAML a bare no, null or 12 is not text.'
    elif isinstance(value, str) and re.fullmatch(r"[-+.\d]+([eE][-+]?\d+)?", value):
        hint = " To YAML that is text: write numbers without quotes, and 0.01 or 1.0e-2 for 1e-2."
    raise ParameterError(f"{where}: expected {kind}, found {value!r} ({type(value).__name__}).{hint}")


def _parsed(text: str, kind: str, where: str) -> Any:
    if kind.startswith("list["):
        return [_parsed(item.strip(), kind[5:-1], where) for item in text.split(",")] if text.strip() else []
    try:
        return {"true": True, "false": False}[text.lower()] if kind == "bool" else SCALARS[kind](text)
    except (ValueError, KeyError):
        expected = "true or false" if kind == "bool" else kind
        raise ParameterError(f"{where}: expected {expected}, found {text!r}.") from None


def declared(notebook: Path) -> dict[str, str]:
    """Read which parameters a notebook takes, without running it.

    Parameters
    ----------
    notebook
        Percent script. Its cell tagged ``parameters`` holds one ``name: type = literal  # comment`` a line.

    Returns
    -------
    The type of each parameter, in the order of the cell; empty without such a cell.

    Raises
    ------
    ParameterError
        No such file, more than one such cell, or another kind of line in it.
    """
    try:
        text = notebook.read_text(encoding="utf-8")
    except OSError as error:
        raise ParameterError(f"Cannot read the notebook: {error}") from None
    cells = list(PARAMETERS_CELL.finditer(text))
    if len(cells) > 1:
        raise ParameterError(f'{notebook} has {len(cells)} cells tagged "parameters"; tag one.')
    types: dict[str, str] = {}
    try:
        lines = ast.parse(cells[0][1]).body if cells else []
    except SyntaxError as error:
        raise ParameterError(f"{notebook}: the parameters cell is not Python: {error}") from None
    for line in lines:
        where = f"{notebook}, line {text.count(chr(10), 0, cells[0].start(1)) + line.lineno}"
        kind = ast.unparse(line.annotation) if isinstance(line, ast.AnnAssign) and line.value else ""
        if kind not in TYPES or line.lineno != line.end_lineno:
            raise ParameterError(f"{where}: expected one parameter, as in 'k: int = 80', of type {', '.join(TYPES)}.")
        try:
            default = ast.literal_eval(line.value)
        except ValueError:
            raise ParameterError(f"{where}: expected a literal, found {ast.unparse(line.value)}") from None
        if "=" in str(default):  # papermill would misread the line
            raise ParameterError(f"{where}: a default must not hold '='; found {default!r}.")
        _checked(default, kind, where)
        types[line.target.id] = kind
    return types


def resolve(
    notebooks: Sequence[Path], file: Path | None = None, overrides: Sequence[tuple[str, str]] = ()
) -> dict[str, dict[str, Any]]:
    """Work out what each notebook is given, and refuse what no notebook takes.

    Parameters
    ----------
    notebooks
        All notebooks that a value may be meant for.
    file
        YAML of ``name: value``, for every notebook that declares the name; a mapping under a notebook's name is for
        that notebook alone.
    overrides
        Names and values as text, as of a command line; they win over the file.

    Returns
    -------
    Values by notebook name, then by parameter, without the notebook's own defaults.

    Raises
    ------
    ParameterError
        A name that no notebook declares, a wrong type, a name given twice, an unreadable file.
    """
    types = {notebook.stem: declared(notebook) for notebook in notebooks}
    entries = []  # where it was said, of which notebooks, name, value, how to read it
    for name, value in (_read(file) if file else {}).items():
        if name not in types and not isinstance(value, dict):
            entries.append((f"{file}", types, name, value, _checked))
            continue
        require_known(name, types, f"{file}", "notebook, which a mapping must be named after")
        if not isinstance(value, dict | None):
            raise ParameterError(f"{file}, {name}: expected a mapping for this notebook, found {value!r}.")
        for inner, its in (value or {}).items():
            if inner in dict(overrides):  # neither may win in silence
                raise ParameterError(f"{file} gives {name} its own {inner}, and there is -p {inner} too. Keep one.")
            entries.append((f"{file}, {name}", {name: types[name]}, inner, its, _checked))
    entries.sort(key=lambda entry: entry[1] is not types)  # what is said of one notebook wins
    entries += [("-p", types, name, text, _parsed) for name, text in overrides]
    values: dict[str, dict[str, Any]] = {notebook: {} for notebook in types}
    for where, those, name, value, read in entries:
        whose = next(iter(those)) if len(those) == 1 else "any notebook"
        require_known(name, {n for kinds in those.values() for n in kinds}, where, f"parameter of {whose}")
        for notebook, kinds in those.items():
            if name in kinds:
                values[notebook][name] = read(value, kinds[name], f"{where}: {name}")
    return values


def write(file: Path, values: dict[str, Any]) -> None:
    """Write values as YAML, in one step; a file that says so already keeps its time."""
    text = yaml.safe_dump(values, sort_keys=False)
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
