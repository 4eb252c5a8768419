"""Parameters of the notebooks: their names and types, and the values that a user sets.

Names and types are checked with the standard library only, so that make can check them before the environment exists.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["resolve"]

_OF_MAKE = ("SHELL", "UV_FIND_LINKS")  # variables that make accepts without listing them
_VARIABLES = {"formats": "FORMAT"}  # parameters that make calls otherwise than in capitals
_WORDS = ("FORMAT", "EXTRA", "BASELINES")  # lists that may also be separated by spaces
# variables that only some goals read
_DRAWN = ["all", "figures", "report", "check", "rehearse"]
_SCORED = [*_DRAWN, "benchmarks"]
_OF_GOALS = {"CELLS": ["project", "rehearse"], "MODEL": ["project", "projection"]}
_OF_GOALS |= {"BY": ["differential"], "FIGURE": ["figures"]}
_OF_GOALS |= dict.fromkeys(("FORMAT", "WIDTH", "SETTINGS", "COLOR_BY"), _DRAWN)
_OF_GOALS |= dict.fromkeys(("EXTRA", "BASELINES"), _SCORED)
_JOBS = ("status", "watch", "cancel")
FETCH = "fetch"  # block of a parameters file: where to download the cells. Notebooks do not read it
_DEFAULTS = "defaults.yaml"  # beside the notebooks: the values of make, where a notebook opens with those of the demo
# QUICK=true: a first look at a data set in minutes. Smaller values in the parameters file are kept.
_QUICK = {
    "sample_cells": 20_000,
    "max_cells": 2_000,
    "clustering_seeds": [0, 1],
    "classification_seeds": [42],
    "n_starts": 1,
}
_TYPES = {"str": str, "int": int, "float": float, "bool": bool}
_KINDS = (*_TYPES, *(f"list[{kind}]" for kind in _TYPES))
_HINTS = {
    "str": ' Write text in quotes ("" for none): YAML reads a bare no, null or 12 as another type.',
    "int": " Write numbers without quotes, and without an exponent.",
    "float": " Write numbers without quotes, and 0.01 or 1.0e-2 for 1e-2, which YAML reads as text.",
}
# names of earlier versions: those that changed, and those that were removed
_RENAMED = {"lisi": "scib", "untied": "tie_cost"}
_WITHIN_TYPES = "a strength always compares donors within cell types"
_REMOVED = {
    "labels": _WITHIN_TYPES,
    "labels_tried": _WITHIN_TYPES,
    "invariance": "with strength 0, the penalty is always the published one",
}
_LONGEST_FILE = 1_000_000  # characters of a parameters file
_PARAMETERS_CELL = re.compile(r'^# %%[^\n]*\btags=\[[^\]\n]*"parameters"[^\n]*\n(.*?)(?=^# %%|\Z)', re.M | re.S)


class ParameterError(ValueError):
    """An unknown parameter or a value of the wrong type. The message is for the user."""


def require_known(name: str, names: Iterable[str], where: object = "", what: str = "parameter") -> None:
    """Raise ParameterError, with the closest valid name, if ``name`` is not one of ``names``."""
    valid = {known.casefold(): known for known in names}
    if name not in valid.values():
        folded = str(name).casefold()
        close = [valid[match] for match in difflib.get_close_matches(folded, valid)]
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        if (new := _RENAMED.get(folded)) in valid:
            hint = f" It is now called {valid[new]}."
        elif folded in _REMOVED and what in ("parameter", "variable"):
            hint = f" It was removed: {_REMOVED[folded]}."
        place = f" in {where}" if where else ""
        raise ParameterError(f"Unknown {what} {_shown(name)}{place}.{hint} Valid {what}s: {', '.join(valid.values())}.")


def declared(notebook: Path) -> dict[str, str]:
    """Return the type of each parameter by name."""
    return {name: kind for name, (kind, _) in _declarations(notebook).items()}


def defaults(notebook: Path) -> dict[str, Any]:
    """Return the value of each parameter by name that make uses if nothing else is set."""
    return {name: default for name, (_, default) in _declarations(notebook).items()} | _of_make(notebook)


def _of_make(notebook: Path) -> dict[str, Any]:
    """Return the values that make uses for every data set, by name."""
    file, kinds = notebook.with_name(_DEFAULTS), declared(notebook)
    values = read_yaml(file) if file.is_file() else {}
    return {name: _convert(value, kinds[name], f"{file}: {name}") for name, value in values.items() if name in kinds}


def _declarations(notebook: Path) -> dict[str, tuple[str, Any]]:
    """Return type and default by name: the cell tagged ``parameters`` has lines ``name: type = literal``."""
    text = notebook.read_text(encoding="utf-8")
    cells = list(_PARAMETERS_CELL.finditer(text))
    if len(cells) > 1:
        raise ParameterError(f'{notebook} has {len(cells)} cells tagged "parameters". Tag only one.')
    try:
        lines = ast.parse(cells[0][1]).body if cells else []
    except SyntaxError as error:
        raise ParameterError(f"{notebook}: the parameters cell is not valid Python: {error}") from None
    found: dict[str, tuple[str, Any]] = {}
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
        found[line.target.id] = kind, default
    return found


def resolve(
    notebooks: Sequence[Path],
    file: Path | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    *,
    quick: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return the values set for each notebook, by notebook name and parameter, without the notebook's own defaults.

    A file ``defaults.yaml`` beside a notebook has values for every data set, which all others replace.
    Raises ParameterError for a name that no notebook declares or that is given twice, and for a wrong type.

    Parameters
    ----------
    notebooks : all notebooks whose parameters may be set
    file : YAML with ``name: value`` for every notebook that declares the name, and a mapping under the name of a
        notebook for that notebook only
    overrides : names and values as text, from the command line, which replace those of the file
    quick : set fewer cells, seeds and starts than the file, unless the command line sets them
    """
    types = {notebook.stem: declared(notebook) for notebook in notebooks}
    given = read_yaml(file) if file else {}
    given.pop(FETCH, None)
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
    values = {notebook.stem: _of_make(notebook) for notebook in notebooks}
    _set(values, settings)
    if quick:
        for notebook, kinds in types.items():
            for name in kinds.keys() & _QUICK.keys():
                values[notebook][name] = _smaller(values[notebook].get(name), _QUICK[name])
    _set(values, [("", types, name, text) for name, text in overrides])
    return values


def _set(values: dict[str, dict[str, Any]], settings: Iterable[tuple[Any, dict, str, Any]]) -> None:
    """Set values in every notebook that declares them. A setting is where it was read, types, name and value."""
    for where, types_of, name, value in settings:
        require_known(name, sorted(set().union(*types_of.values())), where)
        for notebook, kinds in types_of.items():
            if name in kinds:
                place = f"{where}: {name}" if where else name
                values[notebook][name] = _convert(value, kinds[name], place, text=not where)


def _smaller(own: Any, quick: Any) -> Any:
    """Return the smaller of the value of a data set and that of QUICK, both numbers or both lists; 0 means all."""
    size = len(own) if isinstance(own, list) else own
    return own if size and size <= (len(quick) if isinstance(quick, list) else quick) else quick


def parse_variables(
    words: Sequence[str], valid: Sequence[str], notebooks: Sequence[Path], goals: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Check the ``NAME=value`` of make's command line; return the parameters that they set, as (name, text)."""
    given = dict(word.split("=", 1) for word in sorted(words))
    given |= {name: ",".join(given[name].replace(",", " ").split()) for name in _WORDS if name in given}
    types = {notebook.stem: declared(notebook) for notebook in notebooks}
    parameters = {variable(name): name for own in types.values() for name in own}
    kinds = {variable(name): kind for own in types.values() for name, kind in own.items()}
    for name, text in given.items():
        if name in kinds and name not in valid:
            place = "notebooks/params/<data set>.yaml"
            raise ParameterError(f"make has no variable {name}. Set {parameters[name]} in {place}.")
        if name not in _OF_MAKE:
            require_known(name, valid, what="variable")
        if name == "QUICK" and text not in ("true", "false", ""):
            raise ParameterError(f"QUICK={text}: expected true or false.")
        if name == "SHARDS" and not re.fullmatch("[1-9][0-9]*", text):
            raise ParameterError(f"SHARDS={text}: expected a number of shards, such as SHARDS=8.")
        if name in kinds and name != "K":  # make checks K, which may be a list for some goals
            _convert(text, kinds[name], name, text=True)
        if read_by := _OF_GOALS.get(name):
            _require_goal(name, read_by, goals)
    read = {*types.get("01_filter", ()), *types.get("08_conditioning", ())}
    unread = [name for name in given if name == "SHARDS" or (name in kinds and parameters[name] not in read)]
    if unread and list(goals) == ["conditioning"]:
        own = ", ".join(name for name in types["08_conditioning"] if name not in ("cells_path", "out_dir", "k"))
        raise ParameterError(
            f"'make conditioning' does not read {', '.join(unread)}: it compares several strengths, gene weights "
            f"and starts. Set these in notebooks/params/<data set>.yaml: {own}."
        )
    return [(parameters[name], text) for name, text in given.items() if name in kinds and name != "K"]


def variable(parameter: str) -> str:
    """Return the name of make's variable for a parameter."""
    return _VARIABLES.get(parameter, parameter.upper())


def _require_goal(name: str, read_by: Sequence[str], goals: Sequence[str]) -> None:
    """Raise ParameterError if no goal reads a variable. A goal that is a file may read any variable."""
    if not any(goal in (*read_by, *_JOBS) or "/" in goal for goal in goals):
        expected = " and ".join(", ".join(f"'make {goal}'" for goal in read_by).rsplit(", ", 1))
        hint = " Did you mean MODELS?" if name == "MODEL" else ""
        raise ParameterError(f"make {' '.join(goals)} does not read {name}, only {expected}.{hint} Remove it.")


def write(file: Path, values: dict[str, Any], unimportant: Sequence[str] = ()) -> None:
    """Write values as YAML, atomically. A file with the same values keeps its modification time.

    A file in which only the values of `unimportant` names differ keeps it too.
    """
    import yaml

    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if file.is_file() and file.read_text(encoding="utf-8", errors="replace") == text:
        return
    date = None if differ(read_old(file), values, unimportant) else file.stat()
    write_text(file, text)
    if date:
        os.utime(file, ns=(date.st_atime_ns, date.st_mtime_ns))


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically, and remove temporary files of killed processes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for left in file.parent.glob(f".*.{file.name}"):
        owner = left.name.split(".")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and time.time() - left.stat().st_mtime > 10:
            left.unlink(missing_ok=True)
    part = file.with_name(f".{os.getpid()}.{file.name}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:  # the error of a full disk names no file
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        part.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file, or an empty dictionary if there is none or if it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def differ(before: dict[str, Any] | None, values: dict[str, Any], unimportant: Sequence[str] = ()) -> bool:
    """Return whether values differ from earlier ones, or whether there were none."""
    kept = [{name: value for name, value in of.items() if name not in unimportant} for of in (before or {}, values)]
    return before is None or kept[0] != kept[1]


def read_old(file: Path) -> dict[str, Any] | None:
    """Return the values that an earlier call wrote, or None if there are none that can be read."""
    try:
        return read_yaml(file) if file.is_file() else None
    except ParameterError:
        return None


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the content of a YAML file, in which each name may be given once."""
    import yaml

    expected = "Write one 'name: value' in each line."
    try:
        text = file.read_text(encoding="utf-8")
        if len(text) > _LONGEST_FILE:
            raise ParameterError(f"{file} has {len(text):,} characters, more than {_LONGEST_FILE:,}. {expected}")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ParameterError(f"{file} refers to another value with '*'. Write each value where it is used.")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _require_unique_names(node, file)
        values = (loader.construct_document(node) if node else None) or {}
    except ParameterError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: such as the date 2026-02-31
        found = _shown(" ".join(str(error).replace('in "<unicode string>", ', "").split()), 300)
        raise ParameterError(f"Cannot read the parameters file {file} ({found}). {expected}") from None
    if not isinstance(values, dict):
        raise ParameterError(f"{file} contains a {type(values).__name__}. {expected}")
    return values


def _shown(text: object, longest: int = 80) -> str:
    """Return a text for a message, without control characters, and cut if it is longer."""
    text = "".join(char if char.isprintable() else "?" for char in str(text))
    return text if len(text) <= longest else f"{text[:longest]} …"


def _require_unique_names(node: Any, file: Path) -> None:
    """Raise ParameterError if a mapping contains a name twice, of which YAML would silently keep the last."""
    lines: dict[str, int] = {}
    for key, value in node.value if node and node.id == "mapping" else ():
        line = key.start_mark.line + 1
        where = f"{file}, line {line}"
        if key.id != "scalar":
            raise ParameterError(f"{where}: expected a name, found a list or mapping. Correct it.")
        if key.value in lines:
            raise ParameterError(f"{where}: '{key.value}' is already set in line {lines[key.value]}. Keep one.")
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
    found = f"{_shown(repr(value))} ({type(value).__name__})"
    raise ParameterError(f"{where}: expected {expected}, found {found}.{hint or ' Write a value of this type.'}")
