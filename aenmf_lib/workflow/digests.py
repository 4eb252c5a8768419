"""Digests of the code and of other small inputs, so that stages depend on content and not on dates of files.

Jupyter rewrites a notebook that is only opened, and git changes the dates of files. A digest file is written only when
its content has changed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from aenmf_lib.workflow import inputs
from aenmf_lib.workflow.parameters import ParameterError, read_json, write_text

_LIBRARY = Path("aenmf_lib")
_PROSE = re.compile(r"\[(markdown|md|raw)\]")
# the parameters that name files of the user, whose content counts: what these are, and how make is given one
_FILES = {
    "gene_sets": ("gene sets", "GENE_SETS=sets.gmt"),
    "settings": ("settings", "SETTINGS=mine.yaml"),
    "extra": ("an embedding", "EXTRA=PCA=pca.h5ad:X_pca"),
}
_HEADER = re.compile(r"\A# ---\n(#.*\n)*?# ---\n")  # the metadata that jupytext writes


class Digest:
    """The digest of a notebook, a package, a module ``package.module``, or a parameter: its file is named after it."""

    def __init__(self, file: Path, notebooks: Path, values: dict[str, dict[str, Any]]) -> None:
        self.file, self.name = file, file.stem
        self.of_user = self.name in _FILES  # whether the digest covers files of the user
        self._known: dict[str, list[str]] | None = None  # the signature and the hash of each file, if one has changed
        if self.of_user:
            parts = self._contents(_named_files(self.name, values))
        elif re.match(r"\d\d_", self.name):
            parts = [code_cells(notebooks / f"{self.name}.py").encode()]
        else:
            parts = [_library_code(path) for path in _sources(self.name)]
        self._text = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest() + "\n"
        # whether the content differs from that of the last call
        self.changed = not file.is_file() or file.read_text(errors="replace") != self._text

    def write(self) -> None:
        """Write the digest if it has changed."""
        if self.changed:
            write_text(self.file, self._text)
        if self._known:
            write_text(self.file.with_suffix(".json"), json.dumps(self._known))

    def _contents(self, files: list[Path]) -> list[bytes]:
        """Return the hash of each file. Files with the size and dates of the last call are not read again."""
        before = read_json(self.file.with_suffix(".json"))
        known = {}
        for file in files:
            signature, last = inputs.signature(file), before.get(str(file), [])
            known[str(file)] = last if last[:1] == [signature] else [signature, inputs.content_hash(file)]
        self._known = known if known != before else None
        return [sha256.encode() for _, sha256 in known.values()]


def code_cells(notebook: Path) -> str:
    """Return the code of a notebook, without prose, metadata and blank lines around cells."""
    text = _HEADER.sub("", notebook.read_text(encoding="utf-8"))
    _, *cells = re.split(r"^# %%(.*)\n", f"# %%\n{text}\n", flags=re.M)  # marker, source, marker, source, ...
    code = [s for marker, s in zip(cells[::2], cells[1::2], strict=True) if not _PROSE.search(marker)]
    return "\n# %%\n".join("\n".join(map(str.rstrip, source.strip().split("\n"))) for source in code if source.strip())


def _sources(name: str) -> list[Path]:
    """Return the files of a package or of a module of the library."""
    path = _LIBRARY / name.replace(".", "/")
    files = sorted(file for end in ("py", "mplstyle", "yaml") for file in path.glob(f"*.{end}"))
    if not files and not path.with_suffix(".py").is_file():
        raise ParameterError(f"{path} does not exist. Correct the packages of this stage in the Makefile.")
    return files or [path.with_suffix(".py")]


def _library_code(file: Path) -> bytes:
    """Return the code of a module without comments, docstrings and layout; of another file, its content."""
    if file.suffix != ".py":
        return file.read_bytes()
    tree = ast.parse(file.read_bytes(), file.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            del node.body[0]
    return ast.dump(tree).encode()


def _named_files(name: str, values: dict[str, dict[str, Any]]) -> list[Path]:
    """Return the files that a parameter names in any notebook. Raise ParameterError if one does not exist."""
    given = [of[name] for of in values.values() if of.get(name)]
    if name == "extra":  # each a list of NAME=path:key
        given = [text.partition("=")[2].rpartition(":")[0] for texts in given for text in texts]
    files = sorted({Path(text).expanduser() for text in given if text})
    what, example = _FILES[name]
    for file in files:
        if not file.exists():
            raise ParameterError(f"File of {what} not found: {file}. Pass an existing file: {example}.")
    return files
