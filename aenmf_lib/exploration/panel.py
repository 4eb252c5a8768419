"""The controls around the maps in a notebook: the choice of a color, and the tables of programs and selected cells."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from ipywidgets import HTML, Combobox, Dropdown, HBox, Layout, VBox

from aenmf_lib.exploration.coloring import MAX_LABELS, NUMBER, SELECTED, Coloring
from aenmf_lib.figures import style

if TYPE_CHECKING:
    from aenmf_lib.exploration.maps import Maps

_ROWS = 10  # rows shown of a table
_ROWS_OF_EACH = 3  # rows shown of each model, in a table of several models
_FORMATS = dict.fromkeys(("share", "share_of_label", "expressing"), "{:.0%}".format) | {"difference": "{:.2f}".format}
_STYLE = (
    "<style>.aenmf td, .aenmf th {padding: 0 8px; text-align: right; line-height: 1.4}"
    ".aenmf {display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start}</style>"
)
_HELP = (  # first: the browser draws the maps; second: the kernel draws them
    "Wheel: zoom. Drag: move. Second button: draw a line around cells to select them. Tables below describe the cells.",
    "Wheel: zoom. Drag: draw a line around cells to select them. Tables below describe the cells. Buttons: move, back.",
)


class Panel:
    """All widgets of one `Maps`, whose `rows` change when cells are selected.

    `widget` is displayed; `view` is the part with the maps.
    """

    def __init__(self, maps: Maps) -> None:
        self._maps, self._busy = maps, False
        cells, columns = maps.cells, _useful_columns(maps)
        programs = [(f"{model} {name}", f"{model} {number}")
                    for model in cells.models for number, name in enumerate(maps.names[model])]  # fmt: skip
        genes = list(cells.symbols) if cells.cells_path is not None else []
        wide = Layout(width="320px")
        self._column = Dropdown(options=[("", ""), *((name, name) for name in columns)], description="Color by")
        self._program = Dropdown(options=[("", ""), *programs], description="Program", layout=wide)
        self._gene = Combobox(options=genes, description="Gene", ensure_option=True, continuous_update=False)
        self._gene.placeholder = "a gene symbol"
        self._choices = [self._column, self._program, *([self._gene] if genes else [])]
        for choice in self._choices:
            choice.observe(self._choose, names="value")
        self._legend, self._described, self._selected = HTML(), HTML(), HTML()
        coloring = maps.coloring(maps.color)
        if maps.drawn_by_browser:
            from aenmf_lib.exploration.scatters import Scatters as View
        else:
            from aenmf_lib.exploration.density import Density as View
        self.view = View(cells, coloring, self._select)
        help_text = HTML(f"<i>{_HELP[not maps.drawn_by_browser]}</i>")
        self.widget = VBox(
            [HBox(self._choices), self._legend, self.view.widget, help_text, self._described, self._selected]
        )
        self._show(maps.color, coloring)
        self._select(maps.rows)

    def recolor(self, name: str, coloring: Coloring | None) -> None:
        """Draw the maps in other colors, and show the name of the coloring in the controls."""
        self.view.recolor(coloring)
        self._show(name, coloring)

    def _choose(self, change: dict) -> None:
        """Color the maps by the value of the control that changed."""
        if change["new"] and not self._busy:
            self._legend.value = "<i>reading …</i>"
            try:
                self._maps.color = change["new"]
            except (OSError, ValueError, MemoryError) as error:
                self._legend.value = escape(style.printable(str(error)))

    def _show(self, name: str, coloring: Coloring | None) -> None:
        """Show the name of the coloring, its legend, and the tables if it is a program."""
        self._busy = True  # the controls change without drawing the maps again
        try:
            for choice in self._choices:
                values = [value[1] if isinstance(value, tuple) else value for value in choice.options]
                choice.value = name if name in values else ""
        finally:
            self._busy = False
        self._legend.value = "<b>number of cells</b> in each pixel" if coloring is None else coloring.legend()
        if program := self._maps.find_program(name):
            title = f"Program {self._maps.names[program[0]][program[1]]} of {program[0]}"
            self._described.value = _tables(title, self._maps.program(*program))

    def _select(self, rows) -> None:
        """Show the tables of the selected cells."""
        self._maps.rows = rows
        if not len(rows):
            self._selected.value = "<i>No cells are selected.</i>"
            return
        self._selected.value = f"<i>{len(rows):,} cells are selected: reading …</i>"
        n = f"{len(rows):,} of {self._maps.cells.n_cells:,} cells are selected"
        try:
            self._selected.value = _tables(n, self._maps.tables)
        except (OSError, ValueError, MemoryError) as error:
            self._selected.value = f"{n}. {escape(style.printable(str(error)))}"


def _useful_columns(maps: Maps) -> list[str]:
    """Return the columns of obs with at most MAX_LABELS labels and, if the kernel draws, NUMBER and SELECTED."""
    columns = [name for name in maps.cells.columns if maps.cells.n_labels(name) <= MAX_LABELS]
    return [*columns, NUMBER, SELECTED] if not maps.drawn_by_browser else columns


def _tables(title: str, tables: dict[str, pd.DataFrame]) -> str:
    """Return the first rows of tables as HTML, next to each other."""
    shown = []
    for name, table in tables.items():
        grouped = isinstance(table.index, pd.MultiIndex)
        first = table.groupby(level=0, sort=False).head(_ROWS_OF_EACH) if grouped else table.head(_ROWS)
        columns = {column: [_FORMATS.get(column, _format)(value) for value in first[column]] for column in first}
        html = pd.DataFrame(columns, first.index).to_html(border=0, escape=True)
        more = f"<br><i>the first of {len(table):,} rows</i>" if len(table) > len(first) and not grouped else ""
        shown.append(f"<div><b>{name}</b>{html}{more}</div>")
    heading = f"<b>{escape(style.printable(title))}</b>"
    return f"{_STYLE}{heading}<div class='aenmf'>{''.join(shown)}</div>"


def _format(value: float) -> str:
    """Return a number as text: an integer in full, other numbers with three digits."""
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:.3g}"
