"""The maps of notebook 09: the embeddings of one run, their colors, and what the selected cells are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from aenmf_lib.data import CELL_TYPE
from aenmf_lib.exploration import selection, static
from aenmf_lib.exploration.coloring import MAX_LABELS, NUMBER, SELECTED, Coloring, color_column, color_values
from aenmf_lib.exploration.reading import Cells
from aenmf_lib.programs import top_genes

__all__ = ["Maps", "explore"]

MAX_POINTS = 1_000_000  # of more cells, the kernel draws pictures of one map; of fewer, the browser draws all maps
_GENES = 3  # in the name of a program


class Maps:
    """Maps of the cells by each model. Made by `explore`; a notebook displays them, with controls if it can.

    Parameters
    ----------
    cells
        What the maps show.
    widgets
        Whether to display controls and maps to zoom, or only a picture. None: if the notebook is open in a browser.

    Attributes
    ----------
    cells, names
        The data, and the names of the programs of each model: number and top genes.
    rows
        Rows of the selected cells, sorted, (n_selected,).
    """

    def __init__(self, cells: Cells, widgets: bool | None = None) -> None:
        self.cells, self.rows, self._widgets, self._panel = cells, np.zeros(0, dtype=np.int64), widgets, None
        self.names = {model: _name_programs(cells.W[model], cells.symbols) for model in cells.models}
        self._color = CELL_TYPE if CELL_TYPE in cells.columns else cells.columns[0] if cells.columns else NUMBER

    def __repr__(self) -> str:
        return f"{self.cells.n_cells:,} cells, {', '.join(self.cells.models)}, colored by {self._color}"

    @property
    def drawn_by_browser(self) -> bool:
        """Whether the browser draws all cells; otherwise the kernel draws pictures of one map."""
        return self.cells.n_cells <= MAX_POINTS

    @property
    def color(self) -> str:
        """The color of the cells: a column of obs, a program such as ``"AE_NMF 3"``, a gene, or ``"selected"``.

        Set it to draw the maps in other colors. Raises ValueError if there is no such column, program or gene.
        """
        return self._color

    @color.setter
    def color(self, name: str) -> None:
        coloring = self.coloring(name)
        self._color = name
        if self._panel is not None:
            self._panel.recolor(name, coloring)

    def coloring(self, name: str) -> Coloring | None:
        """Return the colors of all cells by a column, a program or a gene (see `color`); None: the number of cells."""
        if name == NUMBER:
            return None
        if name == SELECTED:
            codes = np.zeros(self.cells.n_cells, dtype=np.int8)
            codes[self.rows] = 1
            return Coloring("", codes, ["#cccccc", "#d62728"], ["not selected", "selected"])
        if name in self.cells.columns:
            if (n := self.cells.n_labels(name)) > MAX_LABELS:
                found = f"obs[{name!r}] has {n:,} labels, more than {MAX_LABELS}"
                raise ValueError(f"{found}, which colors cannot show. Choose another column.")
            return color_column(self.cells.column(name), name)
        if program := self.find_program(name):
            model, number = program
            return color_values(self.cells.usage(model, number), f"usage of {model} {self.names[model][number]}")
        if name in self.cells.symbols:
            return color_values(self.cells.gene(name), f"{name}, log1p of counts per 10,000")
        raise ValueError(f"{name!r} is not a column ({', '.join(self.cells.columns)}), a program (such as "
                         f"'{self.cells.models[0]} 0') or a gene. Choose one of these.")  # fmt: skip

    def find_program(self, name: str) -> tuple[str, int] | None:
        """Return the model and the number of a program such as ``"AE_NMF 3"``, or None if there is no such program."""
        model, _, number = name.rpartition(" ")
        valid = model in self.names and number.isdecimal() and int(number) < len(self.names[model])
        return (model, int(number)) if valid else None

    def program(self, model: str, number: int, n: int = 20) -> dict[str, pd.DataFrame]:
        """Return the top genes of a program, and its mean usage by cell type, largest first."""
        if self.find_program(f"{model} {number}") is None:
            sizes = ", ".join(f"{name} (0 to {len(names) - 1})" for name, names in self.names.items())
            raise ValueError(f"There is no program {number!r} of {model!r}. Choose one of {sizes}.")
        genes = top_genes(self.cells.W[model][[number]], self.cells.symbols, n=n)
        tables = {"genes": genes[["gene", "weight"]].set_index("gene")}
        if CELL_TYPE in self.cells.columns:
            tables["types"] = self.cells.usage_by_label(model, number, self.cells.column(CELL_TYPE))
        return tables

    def select(self, which: Sequence[int] | np.ndarray | pd.Series) -> None:
        """Select cells: a bool for each cell, or their rows. Raises ValueError if they do not fit."""
        which, n_cells = np.asarray(which), self.cells.n_cells
        if which.dtype == bool and which.shape != (n_cells,):
            raise ValueError(f"The selection has shape {which.shape}. Pass one value for each of the {n_cells} cells.")
        rows = np.flatnonzero(which) if which.dtype == bool else np.unique(which.astype(np.int64))
        if len(rows) and not 0 <= rows[0] <= rows[-1] < n_cells:
            raise ValueError(f"The selection has rows from {rows[0]} to {rows[-1]}. Choose from 0 to {n_cells - 1}.")
        if self._panel is None:
            self.rows = rows
        else:
            self._panel.view.select(rows)

    @property
    def selected(self) -> pd.DataFrame:
        """The selected cells: one row per cell with all columns of obs, indexed by the names of the cells."""
        columns = {name: self.cells.column(name).iloc[self.rows].to_numpy() for name in self.cells.columns}
        return pd.DataFrame(columns, index=self.cells.names(self.rows))

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables about the selected cells: ``types``, ``donors``, ``programs`` and, with a filtered file, ``genes``."""
        return selection.describe(self.cells, self.names, self.rows) if len(self.rows) else {}

    def figure(self):
        """Return a figure of all maps in the current colors, for pages without widgets."""
        titles = {model: (lambda model=model: self.cells.coordinates(model)) for model in self.cells.models}
        return static.maps(titles, self.coloring(self._color), self.cells.n_cells)

    def _repr_mimebundle_(self, **options) -> dict[str, object]:
        """Return what a notebook displays: controls and maps, a picture, and a text."""
        shown: dict[str, object] = {"text/plain": repr(self)}
        if self._widgets if self._widgets is not None else _in_browser():
            if self._panel is None:
                from aenmf_lib.exploration.panel import Panel

                self._panel = Panel(self)
            shown |= self._panel.widget._repr_mimebundle_()
        if self._panel is None or self.cells.n_cells <= static.MAX_MARKS:
            shown["image/png"] = self.figure()._repr_png_()
        return shown


def explore(
    model_paths: Sequence[str | Path],
    tables_dir: str | Path = "",
    cells_path: str | Path = "",
    widgets: bool | None = None,
) -> Maps:
    """Read the results of a run, and return its maps for a notebook. Nothing is trained, nothing is written.

    Parameters
    ----------
    model_paths
        Results files of models of the same cells.
    tables_dir
        Folder with ``umap.h5ad``. A model without UMAP gets the first two principal components of its usages.
    cells_path
        The filtered cells, for the expression of genes; ignored if the file does not exist.
    widgets
        Whether to display controls and maps to zoom, or a picture. None: if the notebook is open in a browser.

    Returns
    -------
    Maps
        Shown by a notebook. ``color`` chooses the color, ``select`` and the lasso choose cells, ``selected`` and
        ``tables`` describe them, and ``program`` describes a program.

    Raises
    ------
    OSError, ValueError
        A file is not valid, no file has an embedding, or two files do not contain the same cells.
    """
    return Maps(Cells(model_paths, tables_dir, cells_path), widgets)


def _name_programs(W: np.ndarray, symbols: pd.Index) -> list[str]:
    """Return a name of each program, (k,): its number and its top genes."""
    genes = top_genes(W, symbols, n=_GENES).groupby("program")["gene"].agg(", ".join)
    return [f"{number}: {genes.get(number, 'no genes')}" for number in range(len(W))]


def _in_browser() -> bool:
    """Return whether the current cell was run in a browser or an editor: these send the id of the cell."""
    try:
        from IPython import get_ipython

        return "cellId" in get_ipython().kernel.get_parent("shell")["metadata"]
    except (ImportError, AttributeError, KeyError, TypeError):
        return False
