"""Digests of the code and of other small inputs, so that stages depend on content and not on dates of files.

Jupyter rewrites a notebook that is only opened, and git changes the dates of files. A digest file is written only when
its content has changed.
"""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path
from typing import Any

from aenmf_lib.workflow.parameters import ParameterError, write_text

_LIBRARY = Path("aenmf_lib")
_PROSE = re.compile(r"\[(markdown|md|raw)\]")
GENE_SETS = "gene_sets"  # the digest of the file that this parameter names
_HEADER = re.compile(r"\A# ---\n(#.*\n)*?# ---\n")  # the metadata that jupytext writes


class Digest:
    """The digest of what its file is named after: a notebook, a package, a module ``package.module``, or a parameter.

    Attributes
    ----------
    changed
        Whether the content differs from that of the last call.
    """

    def __init__(self, file: Path, notebooks: Path, values: dict[str, dict[str, Any]]) -> None:
        self.file, self.name = file, file.stem
        if self.name == GENE_SETS:
            parts = _gene_sets(values)
        elif re.match(r"\d\d_", self.name):
            parts = [code_cells(notebooks / f"{self.name}.py").encode()]
        else:
            parts = [_library_code(path) for path in _sources(self.name)]
        self._text = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest() + "\n"
        self.changed = not file.is_file() or file.read_text(errors="replace") != self._text

    def write(self) -> None:
        """Write the digest if it has changed."""
        if self.changed:
            write_text(self.file, self._text)


def code_cells(notebook: Path) -> str:
    """Return the code of a notebook, without prose, metadata and blank lines around cells."""
    text = _HEADER.sub("", notebook.read_text(encoding="utf-8"))
    _, *cells = re.split(r"^# %%(.*)\n", f"# %%\n{text}\n", flags=re.M)  # marker, source, marker, source, ...
    code = [s for marker, s in zip(cells[::2], cells[1::2], strict=True) if not _PROSE.search(marker)]
    return "\n# %%\n".join("\n".join(map(str.rstrip, source.strip().split("\n"))) for source in code if source.strip())


def _sources(name: str) -> list[Path]:
    """Return the files of a package or of a module of the library."""
    path = _LIBRARY / name.replace(".", "/")
    files = sorted(file for end in ("py", "mplstyle") for file in path.glob(f"*.{end}")) or [path.with_suffix(".py")]
    if not files[0].is_file():
        raise ParameterError(f"{path} does not exist. Correct the packages of this stage in the Makefile.")
    return files


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


def _gene_sets(values: dict[str, dict[str, Any]]) -> list[bytes]:
    """Return the content of the files of gene sets that the notebooks read."""
    files = sorted({Path(of[GENE_SETS]).expanduser() for of in values.values() if of.get(GENE_SETS)})
    for file in files:
        if not file.is_file():
            raise ParameterError(f"File of gene sets not found: {file}. Pass an existing file: GENE_SETS=sets.gmt.")
    return [file.read_bytes() for file in files]
