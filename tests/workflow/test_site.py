"""The report of a run: a site that opens without a server and a network."""

import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import fabricated
import pytest

from aenmf_lib.workflow import cli, crate, site
from aenmf_lib.workflow.parameters import ParameterError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """The links, names, text and scripts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.links, self.names, self.text, self.tags = path, [], set(), "", []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.names.add(values.get("id"))
        self.links += [(tag, values[key]) for key in ("href", "src") if key in values]

    def handle_data(self, data):
        self.text += f"{data} "

    def broken(self) -> list[str]:
        """Return the links that lead nowhere, and what the page would load from elsewhere."""
        found = []
        for tag, link in self.links:
            path, _, name = link.partition("#")
            target = (self.path.parent / unquote(path)).resolve() if path else self.path
            inside = target.is_file() and (self.path.parents[1] in target.parents or target.parent == self.path.parent)
            if link.startswith("data:") or (tag == "a" and link.startswith("https://")):
                continue
            if not inside or (name and not {name, unquote(name)} & Page(target).names):
                found.append(link)
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the crate of its data set."""
    root = tmp_path_factory.mktemp("run")
    found = fabricated.write_run(root)
    (root / "Makefile").touch()
    crate.write(found.parent, root / "Makefile")
    return found


@pytest.fixture(scope="module")
def report(run: Path) -> Path:
    """Its report."""
    return site.build(run, run / "report").parent


def pages(report: Path) -> list[Page]:
    return [Page(path) for path in sorted(report.rglob("*.html"))]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_links_resolve_and_nothing_comes_from_elsewhere(report):
    found = pages(report)
    assert len(found) == 1 + 1 + 3 + 3  # first page, programs, notebooks, tables
    assert {page.path.name: broken for page in found if (broken := page.broken())} == {}
    css = (report / "style.css").read_text()
    assert not re.search(r"url\(|@import|@font-face", css)


def test_odd_names_are_shown_as_text(report):
    for page in pages(report):
        assert page.tags.count("script") == 1, page.path  # sort.js
        assert "cell" not in page.tags
    shown = {page.path.stem: page.text for page in pages(report)}
    for name in ("index", "programs", "clustering_long", "01_filter"):
        assert fabricated.ODD in shown[name], name


def test_first_page_says_what_was_run_on_which_input_with_which_parameters(report):
    page = Page(report / "index.html")
    text = " ".join(page.text.split())
    assert f"Input: data/demo.h5ad sha256 {'ab' * 32}" in text
    assert "Run from 2026-01-02 03:01 to 2026-01-02 03:03 (UTC)" in text
    assert "seeds [0, 1, 2] one clustering per seed" in text
    assert "k 2 number of programs" in text and "<b>2</b>" in page.path.read_text()  # set, not the default
    assert "AE-NMF 60 3 no 2 reached max_iter = 2 1.5 s cpu" in text
    for version in ("code 0123456789abcdef", "Python 3.11.7", "numpy 2.4.6", "matplotlib 3.11.2", "345 MiB"):
        assert version in text
    assert "Not part of this report" not in text
    notebooks = [link for _, link in page.links if link.startswith("notebooks/")]
    assert notebooks == [f"notebooks/{name}.html" for name in ("01_filter", "03_train_ae_nmf", "06_benchmarks")]


def test_names_that_look_like_numbers_stay_and_numbers_are_rounded(report):
    page = Page(report / "tables/clustering_long.html")
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page.path.read_text())
    assert cells[2:5] == ["01", "10", "0.1235"]
    assert cells[7:10] == ["1e5", "9", "-2.5"]
    assert (report / "tables/clustering_long.csv").read_bytes() == (report.parent / "clustering_long.csv").read_bytes()


def test_figure_has_its_caption_files_and_width(report):
    text = (report / "index.html").read_text()
    links = [link for _, link in Page(report / "index.html").links if link.startswith("figures/")]
    assert links == [f"figures/fig1_benchmark.{end}" for end in ("png", "png", "pdf", "csv")]  # no svg beside a pdf
    assert 'width="489"' in text  # 89 mm
    assert "<b>Figure 1.</b> Scores of B &lt;cell&gt; &amp;" in text


@pytest.mark.parametrize(
    ("ages", "shown", "linked"),
    [
        ({"png": 0, "svg": 0, "pdf": 0}, "png", ["pdf", "csv"]),
        ({"png": 50, "svg": 0, "pdf": 40}, "png", ["pdf", "csv"]),  # one drawing, which took a while
        ({"png": 0, "svg": 0}, "png", ["svg", "csv"]),
        ({"svg": 0, "pdf": 0}, "svg", ["pdf", "svg", "csv"]),
        ({"svg": 0}, "svg", ["svg", "csv"]),
        ({"png": 90, "svg": 0, "pdf": 90}, "svg", ["svg", "csv"]),  # drawn again with FORMAT=svg
        ({"png": 90, "svg": 90, "pdf": 0}, "", ["pdf", "csv"]),
        ({"pdf": 0}, "", ["pdf", "csv"]),
        ({}, "", ["csv"]),
    ],
)
def test_figure_is_shown_from_the_newest_drawing(run, tmp_path, monkeypatch, ages, shown, linked):
    monkeypatch.setattr(site, "_LARGEST", 20)  # a picture may be larger than other files
    part = tmp_path / "results/demo/k2"
    shutil.copytree(run.parent, part.parent, ignore=shutil.ignore_patterns("report", "fig1_benchmark.p*", "*.svg"))
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="252.283465pt" height="99pt" viewBox="0 0 252 99"></svg>'
    content = {"png": fabricated.png(1051, 400), "svg": svg.encode(), "pdf": b"a pdf", "csv": b"a,b"}
    if shown != "svg":
        content["svg"] = b"<svg/>"
    for end, age in ages.items():
        (file := part / f"figures/fig1_benchmark.{end}").write_bytes(content[end])
        os.utime(file, (1e9 - age, 1e9 - age))
    index = site.build(part, tmp_path / "report")
    page, name = Page(index), "figures/fig1_benchmark"
    assert page.broken() == []
    assert [link for tag, link in page.links if tag == "img"] == ([f"{name}.{shown}"] if shown else [])
    files = index.read_text().partition('class="files"')[2].partition("</p>")[0]
    assert re.findall(r'href="figures/fig1_benchmark\.(\w+)"', files) == linked
    assert re.findall(r' width="(\d+)"', index.read_text()) == (
        ["490" if shown == "svg" else "489"] if shown else []
    )  # 89 mm
    assert ("Figure 1 as pdf" in page.text) == ("pdf" in linked and not shown)
    old = [end for end in ("png", "pdf", "svg") if ages.get(end, 0) == 90]
    assert ("from an earlier drawing, and left out: " + ", ".join(old) in page.text) == bool(old)


def test_cards_name_the_nearest_programs_with_whole_numbers(report):
    text = " ".join(Page(report / "programs.html").text.split())
    assert "Nearest NMF: program 3, cosine 0.5; Conditional AE-NMF 1: program 1, cosine 0.25" in text
    assert text.endswith("Nearest NMF: program 0, cosine 0.5")
    assert "Program 1 Top genes CD3D, CD3E" in text


def test_notebook_has_one_table_of_its_parameters_and_no_comments_for_tools(report):
    page = Page(report / "notebooks/06_benchmarks.html")
    text = " ".join(page.text.split())
    assert "model_paths ['results/demo/k2/ae_nmf_k2.h5ad'] results files to compare" in text
    assert "seeds [0, 1, 2] one clustering per seed" in text
    assert "<b>&#39;results/demo/k2&#39;</b>" in page.path.read_text()  # set, not the default
    for absent in ("results/lab", "results/demo/k12", "noqa", "fmt: skip", "@parameters@", "list["):
        assert absent not in text
    assert text.count("out_dir") == 1
    assert "print ( text )" in text


def test_notebook_shows_the_figures_of_the_report(report):
    images = [link for tag, link in Page(report / "notebooks/06_benchmarks.html").links if tag == "img"]
    assert images[0] == "../figures/fig1_benchmark.png"
    assert images[1].startswith("data:image/png;base64,")  # it is not a figure of the run


def test_first_page_shows_the_table_of_the_benchmark_once_it_is_drawn(run, tmp_path):
    part = tmp_path / "results/demo/k2"
    shutil.copytree(run.parent, part.parent, ignore=shutil.ignore_patterns("report"))
    assert "Clusters and cell types (higher is better)" in site.build(part, tmp_path / "report").read_text()
    table = "|  | NMI |\n|:---|---:|\n| **Cell type** |  |\n| AE-NMF | **0.928** ± 0.017 |\n\nIts caption."
    (part / "figures/table1.md").write_text(table)
    (part / "figures/table1.txt").write_text("Scores of the embeddings.\n")
    page = Page(site.build(part, tmp_path / "report"))
    assert page.broken() == []
    text = " ".join(page.text.split())
    assert "Scores NMI Cell type AE-NMF 0.928 ± 0.017 Table 1. Scores of the embeddings. table1: md Figures" in text


def test_same_run_gives_the_same_bytes_and_replaces_the_old_report(run, report, tmp_path):
    before = content(report)
    (report / "tables/old.html").touch()
    site.build(run, report)
    assert content(report) == before
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    moved = tmp_path / "elsewhere/demo/k2"
    shutil.copytree(run.parent, moved.parent)
    other = content(site.build(moved, tmp_path / "report").parent)
    assert other == before


def test_missing_parts_are_left_out_and_named(run, tmp_path):
    part = tmp_path / "results/demo/k2"
    shutil.copytree(
        run.parent, part.parent, ignore=shutil.ignore_patterns("report", "figures", "*.csv", "06*", crate.NAME)
    )
    page = Page(site.build(part, tmp_path / "report"))
    assert page.broken() == []
    missing = re.search(r"they do not exist yet: (.*?)\.\s", page.text)[1]
    assert missing == (
        "scores (make benchmarks); figures (make figures); programs (make programs); "
        "ro-crate-metadata.json, the provenance (written by each notebook)"
    )
    assert not (tmp_path / "report/programs.html").exists()


def test_large_files_are_named_but_not_copied(run, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "_LARGEST", 100)
    monkeypatch.setattr(site, "_LARGEST_IMAGE", 100)
    page = Page(site.build(run, tmp_path / "report"))
    assert page.broken() == []
    assert {path.suffix for path in (tmp_path / "report/figures").iterdir()} == {".csv", ".pdf"}
    monkeypatch.setattr(site, "_LARGEST", 3)
    monkeypatch.setattr(site, "_LARGEST_IMAGE", 3)
    page = Page(site.build(run, tmp_path / "report"))
    assert page.broken() == []
    assert "not included (0.1 kB)" in page.text
    assert list((tmp_path / "report/figures").iterdir()) == []


def test_long_tables_are_cut_on_the_page_only(run, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "_ROWS", 2)
    site.build(run, tmp_path / "report")
    page = tmp_path / "report/tables/clustering_long.html"
    assert "The first 2 of 3 rows." in page.read_text()
    assert page.read_text().count("<tr>") == 3
    assert len((page.with_suffix(".csv")).read_text().splitlines()) == 4


def test_files_in_another_encoding_are_shown_as_far_as_they_can_be_read(run, tmp_path):
    folder = tmp_path / "results/demo" / run.name
    shutil.copytree(run.parent, folder.parent)
    (folder / "integration.csv").write_bytes("Model,value\nNMF é,0.5\n".encode("utf-16"))
    next(folder.glob("figures/*.txt")).write_bytes(b"A caption \xff.")
    index = site.build(folder, tmp_path / "report")
    assert "A caption \ufffd." in index.read_text()


def test_folder_with_other_files_is_not_replaced(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/index.html").write_text("my page")
    with pytest.raises(ParameterError, match="mine exists and is not a report"):
        site.build(run, tmp_path / "mine")
    assert (tmp_path / "mine/index.html").read_text() == "my page"


@pytest.mark.parametrize("place", ["results/demo", "results/demo/k9", "results/other/k2"])
def test_folder_without_a_run_is_an_error(run, place, tmp_path):
    with pytest.raises(ParameterError, match=f"{place} has no executed notebook. Expected the results of a run"):
        site.build(run.parents[2] / place, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_command_writes_the_report(run, tmp_path, caplog):
    caplog.set_level("INFO")
    cli.main(["report", str(run), "--out", str(tmp_path / "report")])
    assert (tmp_path / "report/index.html").is_file()
    assert re.search(r"wrote .*/report/index.html \(0\.\d MB\)", caplog.text)


def test_report_in_a_browser(report):
    sync = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page, faults = browser.new_page(viewport={"width": 390, "height": 800}), []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else faults.append(request.url),
        )
        for path in sorted(report.rglob("*.html")):
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path  # a phone
            assert page.evaluate("document.styleSheets.length && getComputedStyle(document.body).marginTop") == "0px"
        page.emulate_media(media="print")
        for path in sorted(report.rglob("*.html")):
            width = 1030 if 'class="landscape"' in path.read_text() else 700  # A4 with margins of 12 mm
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        page.emulate_media(media="screen")
        page.set_viewport_size({"width": 390, "height": 800})
        page.goto((report / "index.html").as_uri())
        assert page.evaluate("document.images[0].naturalWidth") == 1051
        page.goto((report / "tables/clustering_long.html").as_uri())
        column = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[3].textContent)"
        page.click("th:text-is('n_cells')")
        assert page.evaluate(column) == ["9", "10", "100"]  # as numbers
        page.click("th:text-is('n_cells')")
        assert page.evaluate(column) == ["100", "10", "9"]
        browser.close()
    assert faults == []
