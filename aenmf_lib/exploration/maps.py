"""The maps of notebook 09: the embeddings of one run, their colors, and tables about the selected cells."""

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

MAX_POINTS = 1_000_000  # with more cells, the kernel draws one map at a time; otherwise, the browser draws all maps
_GENES = 3  # number of genes in the name of a program


class Maps:
    """Maps of the cells, one per model, as returned by `explore`. A notebook displays them, with controls if possible.

    Attributes
    ----------
    cells, names
        The cells of the run, and the names of the programs of each model (number and top genes).
    rows
        Sorted rows of the selected cells, (n_selected,).
    """

    def __init__(self, cells: Cells, widgets: bool | None = None) -> None:
        self.cells, self.rows, self._widgets, self._panel = cells, np.zeros(0, dtype=np.int64), widgets, None
        self.names = {model: _name_programs(cells.W[model], cells.symbols) for model in cells.models}
        self._color = next((name for name in cells.columns if cells.n_labels(name) <= MAX_LABELS), NUMBER)

    def __repr__(self) -> str:
        return f"{self.cells.n_cells:,} cells, {', '.join(self.cells.models)}, colored by {self._color}"

    @property
    def drawn_by_browser(self) -> bool:
        """Whether the browser draws all maps. Otherwise, the kernel draws images of one map at a time."""
        return self.cells.n_cells <= MAX_POINTS

    @property
    def color(self) -> str:
        """Name of the coloring, such as ``"cell_type"``.

        It is a column of obs, a program such as ``"AE_NMF 3"``, the symbol or name of a gene, ``"selected"`` or
        ``"number of cells"``. Set it to draw the maps in other colors. Raises ValueError if there is no such column,
        program or gene.
        """
        return self._color

    @color.setter
    def color(self, name: str) -> None:
        coloring = self.coloring(name)
        self._color = name
        if self._panel is not None:
            self._panel.recolor(name, coloring)

    def coloring(self, name: str) -> Coloring | None:
        """Return the colors of all cells by a quantity (see `color`), or None for the number of cells."""
        if name == NUMBER:
            return None
        if name == SELECTED:
            codes = np.zeros(self.cells.n_cells, dtype=np.int8)
            codes[self.rows] = 1
            return Coloring("", codes, ["#cccccc", "#d62728"], ["not selected", "selected"])
        if name in self.cells.columns:
            if (n := self.cells.n_labels(name)) > MAX_LABELS:
                found = f"obs[{name!r}] has {n:,} labels, more than {MAX_LABELS}"
                raise ValueError(f"{found}. Choose a column with fewer labels.")
            return color_column(self.cells.column(name), name)
        if program := self.find_program(str(name)):
            model, number = program
            return color_values(self.cells.usage(model, number), f"usage of {model} {self.names[model][number]}")
        if self.cells.find_gene(name) is not None:
            return color_values(self.cells.gene(name), f"{name}, log1p of counts per 10,000")
        raise ValueError(f"{name!r} is not a column ({', '.join(self.cells.columns)}), a program (such as "
                         f"'{self.cells.models[0]} 0') or a gene. Choose one of these.")  # fmt: skip

    def find_program(self, name: str) -> tuple[str, int] | None:
        """Return the model and number of a program such as ``"AE_NMF 3"``, or None if there is no such program."""
        model, _, number = name.rpartition(" ")
        valid = model in self.names and number.isdecimal() and int(number) < len(self.names[model])
        return (model, int(number)) if valid else None

    def program(self, model: str, number: int, n: int = 20) -> dict[str, pd.DataFrame]:
        """Return the tables of a program: ``genes``, its top n genes, and ``types``, its mean usage by cell type.

        Both start with the largest value. Raises ValueError if there is no such program.
        """
        if (found := self.find_program(f"{model} {number}")) is None:
            sizes = ", ".join(f"{name} (0 to {len(names) - 1})" for name, names in self.names.items())
            raise ValueError(f"There is no program {number!r} of {model!r}. Choose one of {sizes}.")
        model, number = found
        genes = top_genes(self.cells.W[model][[number]], self.cells.symbols, n=n)
        tables = {"genes": genes[["gene", "weight"]].set_index("gene")}
        if CELL_TYPE in self.cells.columns:
            tables["types"] = self.cells.usage_by_label(model, number, self.cells.column(CELL_TYPE))
        return tables

    def select(self, which: Sequence[int] | np.ndarray | pd.Series) -> None:
        """Select cells, given as one bool per cell or as rows, from 0.

        Raises TypeError for other values, and ValueError if the shape or a row does not fit.
        """
        which, n_cells = np.asarray(which), self.cells.n_cells
        if which.size and which.dtype.kind not in "biu":
            raise TypeError(f"The selection has {which.flat[0]!r}. Pass one bool per cell, such as "
                            "maps.cells.column('donor_id') == 'A', or the rows of cells as whole numbers.")  # fmt: skip
        if which.dtype == bool and which.shape != (n_cells,):
            raise ValueError(f"The selection has shape {which.shape}. Pass one value for each of the {n_cells} cells.")
        rows = np.flatnonzero(which) if which.dtype == bool else np.unique(which.astype(np.int64))
        if len(rows) and not 0 <= rows[0] <= rows[-1] < n_cells:
            raise ValueError(f"The selection has rows {rows[0]} to {rows[-1]}. Choose rows from 0 to {n_cells - 1}.")
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
        """Tables about the selected cells: ``types``, ``donors``, ``programs`` and, with a filtered file, ``genes``.

        The dictionary is empty if no cell is selected.
        """
        return selection.describe(self.cells, self.names, self.rows) if len(self.rows) else {}

    def figure(self):
        """Return a figure of all maps in the current colors, for pages without widgets."""
        return static.maps(self.cells, self.coloring(self._color))

    def _repr_mimebundle_(self, **options) -> dict[str, object]:
        """Return the formats that a notebook can display: widgets, an image, and a text."""
        shown: dict[str, object] = {"text/plain": repr(self)}
        if self._widgets if self._widgets is not None else _in_browser():
            if self._panel is None:
                from aenmf_lib.exploration.panel import Panel

                self._panel = Panel(self)
            shown |= self._panel.widget._repr_mimebundle_()
        if self._panel is None or self.cells.n_cells <= static.MAX_MARKS:
            shown["image/png"] = self.figure().png()
        return shown


def explore(
    model_paths: str | Path | Sequence[str | Path],
    tables_dir: str | Path = "",
    cells_path: str | Path = "",
    widgets: bool | None = None,
) -> Maps:
    """Read the results of a run, and return its maps for a notebook. Nothing is trained or written.

    Parameters
    ----------
    model_paths
        Results files of models of the same cells, or one path.
    tables_dir
        Folder with ``umap.h5ad``. The map of a model without UMAP shows the first two principal components of its
        z-scored usages.
    cells_path
        File of the filtered cells, for the expression of genes. Ignored if the file does not exist.
    widgets
        Whether to display interactive maps with controls, or a figure. By default, interactive maps if the notebook is
        open in a browser.

    Returns
    -------
    Maps
        Object that a notebook displays. Set ``color`` to color the cells. Use ``select`` or the lasso to select cells;
        ``selected`` and ``tables`` describe the selected cells. ``program`` describes a program.

    Raises
    ------
    OSError, ValueError
        A file is not valid, all models were skipped, or two files do not contain the same cells. Usages, maps and the
        expression of genes are checked when they are read.
    """
    return Maps(Cells(model_paths, tables_dir, cells_path), widgets)


def _name_programs(W: np.ndarray, symbols: pd.Index) -> list[str]:
    """Return the name of each program, (k,): its number and its top genes."""
    genes = top_genes(W, symbols, n=_GENES).groupby("program")["gene"].agg(", ".join)
    return [f"{number}: {genes.get(number, 'no genes')}" for number in range(len(W))]


def _in_browser() -> bool:
    """Return whether a browser or an editor runs the current cell. They send the id of the cell."""
    try:
        from IPython import get_ipython

        return "cellId" in get_ipython().kernel.get_parent("shell")["metadata"]
    except (ImportError, AttributeError, KeyError, TypeError):
        return False
