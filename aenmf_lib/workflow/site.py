"""A report of a run as a static website: pages that open without a server, small enough to send by mail."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aenmf_lib.data.tables import NAMES
from aenmf_lib.results.schema import MODELS, PROVENANCE, SKIPPED, USED_CELL_TYPE, load
from aenmf_lib.workflow import crate, executed, parameters
from aenmf_lib.workflow.executed import Executed
from aenmf_lib.workflow.parameters import ParameterError

_LARGEST = 1_500_000  # bytes of a file that the report contains; the page names larger ones
_ROWS = 500  # of a table that a page shows
_PER_MM = 5.5  # pixels of a page for a mm of a figure: text of 7 pt is as large as that of the page
_LARGEST_IMAGE = 8_000_000  # bytes of a picture that a page shows
_IMAGES, _DRAWN, _DATA = (".png", ".svg"), (".png", ".pdf", ".svg"), (".csv", ".tex", ".md")
_TOGETHER = 60  # seconds in which all formats of a figure are written; one that is older is from an earlier drawing
_TABLE = "table1"  # the figure that is a table: the scores of the benchmark
_CACHE = "_scores"  # end of the names of tables that only save computed scores
_MARK = "aenmf_lib report"
_SCORES = {
    "clustering_cell_type": "Clusters and cell types (higher is better)",
    "clustering_donor_id": "Clusters and donors (lower is better)",
    "classification_cell_type": "Classification of cell types (higher is better)",
    "classification_donor_id": "Classification of donors (lower is better)",
}


@dataclass(frozen=True)
class Table:
    """A table as text."""

    name: str
    columns: list[str]
    rows: list[list[str]]
    n_rows: int  # of the file
    numeric: list[bool]  # columns of numbers
    link: str  # to the file in the report; empty if it is too large
    source: Path


def build(run: Path, out: Path) -> Path:
    """Write the report of a run and return its first page. The same results give the same bytes.

    Parts that do not exist yet are left out, and the first page names them. `run` is the folder of the results of one
    number of programs, ``results/<data set>/k<K>``, and `out` is the folder of the report, which is replaced. Raises
    ParameterError if `run` has no executed notebook, or `out` contains something else.
    """
    runs = sorted([*executed.find(run.parent), *executed.find(run)], key=lambda each: each.name)
    if not re.fullmatch(r"k\d+", run.name) or not any(each.path.parent == run for each in runs):
        expected = "Expected the results of a run, such as results/demo/k12. To make them: make all."
        raise ParameterError(f"{run} has no executed notebook. {expected}")
    index = out / "index.html"
    if out.exists() and not (index.is_file() and _MARK in index.read_text(encoding="utf-8", errors="replace")):
        if not out.is_dir() or any(out.iterdir()):
            raise ParameterError(f"{out} exists and is not a report. Pass another folder, or remove it.")
    part = out.with_name(f".{os.getpid()}.{out.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _Site(run, part, runs).write()
        shutil.rmtree(out, ignore_errors=True)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return index


class _Site:
    """The pages of a report in a folder."""

    def __init__(self, run: Path, out: Path, runs: Sequence[Executed]) -> None:
        import jinja2

        from aenmf_lib.figures import read_settings

        self.run, self.out, self.runs = run, out, runs
        self.names = {model: of["name"] for model, of in read_settings().models.items()}
        templates = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
        self.pages = jinja2.Environment(
            loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        self.pages.filters |= {"number": _number, "size": _size, "date": _date, "seconds": _seconds}
        self.common = {"mark": _MARK, "data_set": run.resolve().parent.name, "k": run.name.removeprefix("k")}

    def write(self) -> None:
        """Write all pages and the files that they refer to."""
        for folder in ("figures", "notebooks", "tables"):
            (self.out / folder).mkdir(parents=True)
        for name in ("style.css", "sort.js"):
            shutil.copyfile(Path(__file__).with_name("templates") / name, self.out / name)
        figures = [self._figure(path) for path in self._captions()]
        tables = [self._table(path, _ROWS) for path in self._table_files()]
        cards = self._cards()
        self.common["has_programs"] = bool(cards)
        for table in tables:
            self._page("table.html", f"tables/{table.name}.html", "../", title=table.name, table=table)
        for run in self.runs:
            self._page("notebook.html", f"notebooks/{run.name}.html", "../", title=run.title, body=self._html(run))
        if cards:
            self._page("programs.html", "programs.html", "", title="Programs", models=cards)
        metadata = self._copy(self.run.parent / crate.NAME, "")
        self._page(
            "index.html",
            "index.html",
            "",
            title=f"{self.common['data_set']}, {self.common['k']} programs",
            runs=self.runs,
            input=parameters.read_old(self.run.parent / "input.yaml") or {},
            models=self._models(),
            benchmark=self._benchmark(),
            scores=self._scores(),
            figures=[figure for figure in figures if figure["name"] != _TABLE],
            below=next((figure for figure in figures if figure["name"] == _TABLE), None),
            tables=tables,
            crate=metadata,
            versions=self._versions(),
            missing=self._missing(figures, cards),
        )

    def _page(self, template: str, name: str, root: str, **values: Any) -> None:
        """Write a page. `root` leads from its folder to that of the report."""
        text = self.pages.get_template(template).render(**self.common, root=root, **values)
        (self.out / name).write_text(text, encoding="utf-8")

    def _html(self, run: Executed) -> str:
        """Return the cells of an executed notebook as HTML, without scripts. Figures of the run are links.

        One table of the parameters replaces the cell of the defaults and the cell that overrides them.
        """
        from nbconvert import HTMLExporter

        logging.getLogger("traitlets").setLevel(logging.ERROR)  # no warning about images without a text
        exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
        body, _ = exporter.from_file(io.StringIO(executed.for_readers(run.path)))
        values = self.pages.get_template("parts.html").module.parameters(run)
        body = body.replace(f"<p>{executed.PLACE}</p>", f"<h2>Parameters</h2>\n{values}", 1)

        def link(image: re.Match) -> str:
            found = (self.out / f"figures/{image[2]}.png").is_file()
            return f'{image[1]}src="../figures/{image[2]}.png"' if found else image[0]

        body = re.sub(r'(alt="(\w+)" )src="data:image/png;base64,[^"]+"', link, body)
        return re.sub(r"(?s)<script\b.*?</script>", "", body)

    def _copy(self, file: Path, folder: str, largest: int = 0) -> str:
        """Copy a file into a folder of the report, and return its link. Empty if there is none or it is too large."""
        if not file.is_file() or file.stat().st_size > (largest or _LARGEST):
            return ""
        shutil.copyfile(file, self.out / folder / file.name)
        return f"{folder}/{file.name}".lstrip("/")

    # ---- Parts -------------------------------------------------------------------------------------------------------
    def _captions(self) -> list[Path]:
        """Return the captions of the figures of the run and of the data set: figures, supplement, then others."""
        found = [*self.run.glob("figures/*.txt"), *self.run.parent.glob("figures/*.txt")]
        return sorted(found, key=lambda path: (not path.stem.startswith("fig"), "figS" in path.name, path.name))

    def _figure(self, caption: Path) -> dict[str, Any]:
        """Copy a figure; return what the page shows of it."""
        number = re.match(r"(fig|table)(S?\d+)", caption.stem)
        files = {end: path for end in (*_DRAWN, *_DATA) if (path := caption.with_suffix(end)).is_file()}
        changed = {end: path.stat().st_mtime for end, path in files.items() if end in _DRAWN}
        older = [end for end, time in changed.items() if time < max(changed.values()) - _TOGETHER]
        shown = next((end for end in _IMAGES if end in files and end not in older), "")
        image = self._copy(files[shown], "figures", _LARGEST_IMAGE) if shown else ""
        linked = [end for end in files if end not in (*older, ".png")]
        if {".png", ".pdf"} <= {*files} - {*older}:
            linked = [end for end in linked if end != ".svg"]  # the pdf has the same lines, and is half as large
        links = {end: image if end == shown and image else self._copy(files[end], "figures") for end in linked}
        return {
            "name": caption.stem,
            "title": f"{'Figure' if number[1] == 'fig' else 'Table'} {number[2]}" if number else caption.stem,
            "caption": caption.read_text(encoding="utf-8", errors="replace").strip(),
            "image": image,
            "width": _width(files[shown]) if image else "",
            "older": [end.removeprefix(".") for end in older],
            "links": {end.removeprefix("."): link for end, link in links.items() if link},
            "large": [(files[end], files[end].stat().st_size) for end, link in links.items() if not link],
        }

    def _table_files(self) -> list[Path]:
        """Return the tables of the run and of the data set."""
        found = [*self.run.glob("*.csv"), *self.run.parent.glob("*.csv")]
        return sorted((path for path in found if not path.stem.endswith(_CACHE)), key=lambda path: path.name)

    def _table(self, path: Path, n_rows: int | None = None) -> Table:
        """Read a table as text, of which a page shows the first rows. Copy its file."""
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            columns, *rows = csv.reader(file) if path.stat().st_size else [[]]
        shown = rows[:n_rows]
        numeric = [
            name not in NAMES and all(_is_number(row[i]) for row in shown if i < len(row))
            for i, name in enumerate(columns)
        ]
        return Table(path.stem, columns, shown, len(rows), numeric, self._copy(path, "tables"), path)

    def _benchmark(self) -> str:
        """Return the table of the benchmark as HTML, or an empty string."""
        from nbconvert.filters import markdown2html

        path = self.run / f"figures/{_TABLE}.md"
        if not path.is_file():
            return ""
        return markdown2html(path.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0])

    def _scores(self) -> list[tuple[str, Table]]:
        """Return the published tables."""
        found = [(title, self.run / f"{name}.csv") for name, title in _SCORES.items()]
        return [(title, self._table(path)) for title, path in found if path.is_file()]

    def _cards(self) -> list[dict[str, Any]]:
        """Return the cards of the programs of each model that has some."""
        found = []
        for model in MODELS:
            path = self.run / f"program_cards_{model.lower()}.csv"
            if not path.is_file():
                continue
            with path.open(encoding="utf-8", errors="replace", newline="") as file:
                cards = list(csv.DictReader(file))
            for card in cards:
                others = [key.removeprefix("nearest_") for key in card if key.startswith("nearest_") and card[key]]
                card["nearest"] = [
                    (self.names.get(other, other), card[f"nearest_{other}"], card[f"cosine_{other}"])
                    for other in others
                    if other != model
                ]
            found.append({"key": model.lower(), "name": self.names.get(model, model), "cards": cards})
        return found

    def _models(self) -> list[dict[str, Any]]:
        """Return the size and training of each model, and whether it used cell types, from its results file."""
        found = []
        for model in MODELS:
            path = self.run / f"{model.lower()}_{self.run.name}.h5ad"
            cells, faults = load(path, with_cells=False) if path.is_file() else (None, [])
            if cells is None or faults:
                continue
            of = cells.uns.get(PROVENANCE, {})
            found.append({"name": self.names.get(model, model), "skipped": str(of.get(SKIPPED, "")), "key": model,
                          "n_cells": of.get("n_cells"), "n_genes": cells.n_vars, "used": bool(of.get(USED_CELL_TYPE)),
                          "n_iter": of.get("n_iter"), "stop": of.get("stop"), "seconds": of.get("fit_seconds"),
                          "device": of.get("device")})  # fmt: skip
        return found

    def _versions(self) -> dict[str, list[str]]:
        """Return the versions of the code and of all packages. Several if the notebooks did not run with the same."""
        found: dict[str, list[str]] = {}
        for run in self.runs:
            kept = {"code": run.info.get("git_commit"), "Python": run.info.get("python"),
                    "machine": run.info.get("platform")}  # fmt: skip
            for name, version in {**kept, **run.packages}.items():
                if version and version not in found.setdefault(name, []):
                    found[name].append(version)
        return found

    def _missing(self, figures: Sequence, cards: Sequence) -> list[str]:
        """Return what a whole run has and this one has not, with the command that makes it."""
        numbers = {run.name[:2] for run in self.runs}
        parts = {
            "scores (make benchmarks)": "06" in numbers,
            "figures (make figures)": bool(figures),
            "programs (make programs)": bool(cards),
            f"{crate.NAME}, the provenance (written by each notebook)": (self.run.parent / crate.NAME).is_file(),
        }
        return [name for name, exists in parts.items() if not exists]


def _is_number(text: str) -> bool:
    """Return whether a text is a number or empty."""
    try:
        return not text or isinstance(float(text), float)
    except ValueError:
        return False


def _number(text: str | float, digits: int = 4) -> str:
    """Return a number with some significant digits. Any other text stays as it is."""
    if not text or not _is_number(str(text)) or not math.isfinite(value := float(text)):
        return str(text)
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.{digits}g}"


def _width(image: Path) -> str:
    """Return the width of an image on the page, in pixels, from its width in mm."""
    head = image.read_bytes()[:1000]
    if image.suffix == ".svg":
        points = re.search(rb'<svg[^>]* width="([\d.]+)pt"', head)
        return str(round(_PER_MM * float(points[1]) * 25.4 / 72)) if points else ""
    pixels, found = int.from_bytes(head[16:20]), head.find(b"pHYs") + 4
    return str(round(_PER_MM * pixels / int.from_bytes(head[found : found + 4]) * 1000)) if found > 4 else ""


def _size(n_bytes: int) -> str:
    """Return a size for readers."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{max(n_bytes / 1e3, 0.1):.1f} kB"


def _date(text: str) -> str:
    """Return a date and time in UTC, to the minute."""
    return text[:16].replace("T", " ")


def _seconds(value: float) -> str:
    """Return a duration for readers."""
    value = float(value)
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:.1f} h"
