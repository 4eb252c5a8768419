"""Parameters of the notebooks: their names and types, and the values that a user sets.

Names and types are checked with the standard library only, so that make can check them before the environment exists.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["resolve"]

_OF_MAKE = ("SHELL", "UV_FIND_LINKS")  # variables that make accepts without listing them
_TYPES = {"str": str, "int": int, "float": float, "bool": bool}
_KINDS = (*_TYPES, *(f"list[{kind}]" for kind in _TYPES))
_HINTS = {
    "str": ' Write text in quotes ("" for none): YAML reads a bare no, null or 12 as another type.',
    "int": " Write numbers without quotes, and without an exponent.",
    "float": " Write numbers without quotes, and 0.01 or 1.0e-2 for 1e-2, which YAML reads as text.",
}
_PARAMETERS_CELL = re.compile(r'^# %%[^\n]*\btags=\[[^\]\n]*"parameters"[^\n]*\n(.*?)(?=^# %%|\Z)', re.M | re.S)


class ParameterError(ValueError):
    """An unknown parameter or a value of the wrong type. The message is for the user."""


def require_known(name: str, names: Iterable[str], where: object = "", what: str = "parameter") -> None:
    """Raise ParameterError, with the closest valid name, if ``name`` is not one of ``names``."""
    valid = {known.casefold(): known for known in names}
    if name not in valid.values():
        close = [valid[match] for match in difflib.get_close_matches(str(name).casefold(), valid)]
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        place = f" in {where}" if where else ""
        raise ParameterError(f"Unknown {what} {name}{place}.{hint} Valid {what}s: {', '.join(valid.values())}.")


def declared(notebook: Path) -> dict[str, str]:
    """Return the type of each parameter by name: the cell tagged ``parameters`` has lines ``name: type = literal``."""
    text = notebook.read_text(encoding="utf-8")
    cells = list(_PARAMETERS_CELL.finditer(text))
    if len(cells) > 1:
        raise ParameterError(f'{notebook} has {len(cells)} cells tagged "parameters". Tag only one.')
    try:
        lines = ast.parse(cells[0][1]).body if cells else []
    except SyntaxError as error:
        raise ParameterError(f"{notebook}: the parameters cell is not valid Python: {error}") from None
    types: dict[str, str] = {}
    for line in lines:
        where = f"{notebook}, line {text.count(chr(10), 0, cells[0].start(1)) + line.lineno}"
        kind = ast.unparse(line.annotation) if isinstance(line, ast.AnnAssign) and line.value else ""
        if kind not in _KINDS or line.lineno != line.end_lineno:
            raise ParameterError(f"{where}: expected one parameter such as 'k: int = 80', of type {', '.join(_KINDS)}.")
        if (source := cells[0][1].split("\n")[line.lineno - 1]).count("=") > 1:  # papermill would misread the line
            raise ParameterError(f"{where}: the default and the comment must not contain '=', found {source!r}.")
        try:
            default = ast.literal_eval(line.value)
        except ValueError:
            raise ParameterError(f"{where}: expected a literal, found {ast.unparse(line.value)}.") from None
        _convert(default, kind, where)
        types[line.target.id] = kind
    return types


def resolve(
    notebooks: Sequence[Path], file: Path | None = None, overrides: Sequence[tuple[str, str]] = ()
) -> dict[str, dict[str, Any]]:
    """Return the values set for each notebook, by notebook name and parameter, without the notebook's defaults.

    Raises ParameterError for a name that no notebook declares or that is given twice, and for a wrong type.

    Parameters
    ----------
    notebooks : all notebooks whose parameters may be set
    file : YAML with ``name: value`` for every notebook that declares the name, and a mapping under the name of a
        notebook for that notebook only
    overrides : names and values as text, from the command line, which replace those of the file
    """
    types = {notebook.stem: declared(notebook) for notebook in notebooks}
    given = read_yaml(file) if file else {}
    sections = {name: value for name, value in given.items() if name in types or isinstance(value, dict)}
    settings = [(file, types, name, value) for name, value in given.items() if name not in sections]  # the last wins
    for section, inner in sections.items():
        require_known(section, types, file, "notebook")
        if not isinstance(inner, dict | None):
            raise ParameterError(f"{file}, {section}: expected a mapping for this notebook, found {inner!r}.")
        for name, value in (inner or {}).items():
            if name in dict(overrides):
                raise ParameterError(f"{file} sets {name} for {section}, and the command line sets it too. Keep one.")
            settings.append((f"{file}, {section}", {section: types[section]}, name, value))
    settings += [("", types, name, text) for name, text in overrides]
    values: dict[str, dict[str, Any]] = {notebook: {} for notebook in types}
    for where, types_of, name, value in settings:
        require_known(name, sorted(set().union(*types_of.values())), where)
        for notebook, kinds in types_of.items():
            if name in kinds:
                place = f"{where}: {name}" if where else name
                values[notebook][name] = _convert(value, kinds[name], place, text=not where)
    return values


def parse_variables(
    words: Sequence[str], valid: Sequence[str], notebooks: Sequence[Path], goals: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Check the ``NAME=value`` of make's command line; return the parameters that they set, as (name, text)."""
    given = dict(word.split("=", 1) for word in sorted(words))
    types = {notebook.stem: declared(notebook) for notebook in notebooks}
    kinds = {name.upper(): kind for own in types.values() for name, kind in own.items()}
    for name, text in given.items():
        if name in kinds and name not in valid:
            place = "notebooks/params/<data set>.yaml"
            raise ParameterError(f"make has no variable {name}. Set {name.lower()} in {place}.")
        if name not in _OF_MAKE:
            require_known(name, valid, what="variable")
        if name == "SHARDS" and not re.fullmatch("[1-9][0-9]*", text):
            raise ParameterError(f"SHARDS={text}: expected a number of shards, such as SHARDS=8.")
        if name in kinds:
            _convert(text, kinds[name], name, text=True)
    if "SHARDS" in given and given.get("LABELS") == "clusters":
        raise ParameterError(
            "SHARDS does not work with LABELS=clusters, which needs all cells in memory. Pass only one of the two."
        )
    read = {*types.get("01_filter", ()), *types.get("08_conditioning", ())}
    unread = [name for name in given if (name in kinds or name == "SHARDS") and name.lower() not in read]
    if unread and list(goals) == ["conditioning"]:
        own = ", ".join(name for name in types["08_conditioning"] if name not in ("cells_path", "out_dir", "k"))
        raise ParameterError(
            f"'make conditioning' does not read {', '.join(unread)}: it compares several strengths, labels, gene "
            f"weights and starts. Set these in notebooks/params/<data set>.yaml: {own}."
        )
    return [(name.lower(), text) for name, text in given.items() if name in kinds and name != "K"]


def write(file: Path, values: dict[str, Any]) -> None:
    """Write values as YAML, atomically. A file with the same content keeps its modification time."""
    import yaml

    text = yaml.safe_dump(values, sort_keys=False)
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the content of a YAML file, in which each name may be given once."""
    import yaml

    try:
        with file.open(encoding="utf-8") as stream:
            loader = yaml.SafeLoader(stream)
            node = loader.get_single_node()
            _require_unique_names(node, file)
            values = (loader.construct_document(node) if node else None) or {}
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ParameterError(f"Cannot read the parameters file {file}: {error}") from None
    if not isinstance(values, dict):
        raise ParameterError(f"{file}: expected lines of 'name: value', found {type(values).__name__}.")
    return values


def _require_unique_names(node: Any, file: Path) -> None:
    """Raise ParameterError if a mapping contains a name twice, of which YAML would silently keep the last."""
    lines: dict[str, int] = {}
    for key, value in node.value if node and node.id == "mapping" else ():
        line = key.start_mark.line + 1
        if key.id != "scalar":
            raise ParameterError(f"{file}, line {line}: expected a name, found a list or mapping.")
        if key.value in lines:
            raise ParameterError(f"{file}, line {line}: '{key.value}' is already set in line {lines[key.value]}.")
        lines[key.value] = line
        key.tag = "tag:yaml.org,2002:str"  # also where YAML would read a truth value, as in 'on'
        _require_unique_names(value, file)


def _convert(value: Any, kind: str, where: str, *, text: bool = False) -> Any:
    """Return a value of the declared type, from YAML or from text of the command line."""
    expected, hint = kind, ""
    if kind.startswith("list["):
        if text:
            value = [item.strip() for item in value.split(",")] if value.strip() else []
        if isinstance(value, list):
            return [_convert(item, kind[5:-1], where, text=text) for item in value]
    elif text:
        expected = "true or false" if kind == "bool" else kind
        with contextlib.suppress(ValueError, KeyError):
            return {"true": True, "false": False}[value.lower()] if kind == "bool" else _TYPES[kind](value)
    elif type(value) is _TYPES[kind]:  # isinstance would accept True as an int
        return value
    elif kind == "float" and type(value) is int:
        return float(value)
    elif kind == "str" or isinstance(value, str):
        hint = _HINTS.get(kind, "")
    raise ParameterError(f"{where}: expected {expected}, found {value!r} ({type(value).__name__}).{hint}")
