"""Notebook 09 in JupyterLab and a browser: maps, colors, the lasso, and millions of points drawn by the kernel."""

import os
import shutil
from pathlib import Path

import browser
import numpy as np
import pytest

pytest_plugins = ["small_run"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LEFT_HALF = [(0.15, 0.02), (0.5, 0.02), (0.5, 0.98), (0.15, 0.98), (0.15, 0.04)]  # right of the buttons
AROUND_ALL = [(0.08, 0.02), (0.98, 0.02), (0.98, 0.98), (0.08, 0.98), (0.08, 0.04)]


def colored(picture: np.ndarray) -> float:
    """Return the share of pixels that are neither white nor gray."""
    return float((np.ptp(picture, axis=2) > 0.2).mean())


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory):
    """The notebook in a browser, after all cells have run, and the errors of the browser."""
    pytest.importorskip("playwright")
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(run / "results", root / "results")
    if CHROMIUM is None:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            if not Path(playwright.chromium.executable_path).exists():
                pytest.skip("needs Chromium: apt install chromium, or playwright install chromium")
    with browser.server(root) as address, browser.chromium(CHROMIUM) as (page, errors):
        browser.open_notebook(page, address)
        browser.run_all(page)
        page.wait_for_selector(".jp-OutputArea canvas", timeout=40_000)
        browser.wait(
            lambda: page.locator(".jp-Notebook .jp-InputPrompt:text-is('[*]:')").count() == 0, 40, "all outputs"
        )
        page.locator(".jp-OutputArea canvas").first.scroll_into_view_if_needed()
        yield page, errors


def boxes(page) -> list[dict]:
    """Return the places of the maps on the page."""
    found = {}
    for canvas in page.locator(".jp-OutputArea canvas").all():
        if (box := canvas.bounding_box()) and box["width"] > 200:
            found.setdefault((round(box["x"]), round(box["y"])), box)
    return list(found.values())


def show(page, name: str) -> None:
    """Write a picture of the page, for people, into $TMPDIR/lab."""
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / "lab"
    page.screenshot(path=folder / f"{name}.png")


def test_maps_appear_and_change_color(page):
    page, errors = page
    browser.wait(lambda: len(boxes(page)) == 4, 20, "four maps")
    first = boxes(page)[0]
    browser.wait(lambda: colored(browser.picture(page, first)) > 0.005, 20, "points")
    before = browser.picture(page, first)
    show(page, "types")
    browser.choose(page, "Color by", "donor_id")
    browser.wait(lambda: "SIM1" in page.locator(".jp-OutputArea-output").first.inner_text(), 20, "the legend")
    browser.wait(lambda: np.abs(browser.picture(page, first) - before).max() > 0.3, 20, "other colors")
    assert browser.run_code(page, "print(maps.color)") == "donor_id\n"
    show(page, "donors")
    browser.choose(page, "Program", browser.run_code(page, "print('AE_NMF', maps.names['AE_NMF'][2])").strip())
    browser.wait(lambda: page.locator("text=/Program 2: SYM/").count() == 1, 20, "the table of the program")
    assert browser.run_code(page, "print(maps.color)") == "AE_NMF 2\n"
    show(page, "program")
    assert not errors


def test_lasso_selects_the_cells_inside_it_in_all_maps(page):
    page, errors = page
    page.locator(".jp-OutputArea button").nth(1).click()  # the lasso
    browser.draw(page, boxes(page)[0], LEFT_HALF)
    browser.wait(lambda: page.locator("text=/cells are selected$/").count() == 1, 30, "the tables")
    code = """
x = maps.cells.coordinates(maps.cells.models[0])[0][:, 0]
inside = x[maps.rows]
outside = x[[i for i in range(len(x)) if i not in set(maps.rows)]]
same = all((sorted(s.selection()) == maps.rows).all() for s in maps._panel.view._scatters)
print(len(maps.selected), len(inside), len(outside), inside.max() <= outside.min(), same)
"""
    selected, inside, outside, separated, same = browser.run_code(page, code).split()
    assert selected == inside
    assert min(int(inside), int(outside)) > 30
    assert (separated, same) == ("True", "True")
    text = page.locator(".jp-OutputArea-output").first.inner_text()
    assert f"{selected} of " in text
    names = browser.run_code(page, "print(*maps.selected.index)").split()
    counts = browser.run_code(page, "print(maps.tables['types']['selected'].sum())")
    assert int(counts) == len(names) == int(selected)
    for title in ("types", "donors", "programs", "genes"):
        assert title in text
    page.locator("text=/cells are selected$/").scroll_into_view_if_needed()
    show(page, "lasso")
    assert not errors


def test_figures_can_be_zoomed_with_matplotlib_widget(page):
    page, errors = page
    browser.run_cell(
        page, "%matplotlib widget\nimport matplotlib.pyplot as plt\nplt.figure(); plt.plot([1, 2], [3, 1]);"
    )
    page.wait_for_selector(".jupyter-matplotlib-figure canvas", timeout=20_000)
    assert not errors


def test_kernel_draws_the_map_of_many_cells_again_after_zooming(page):
    page, errors = page
    code = "import aenmf_lib.exploration.maps as module\nmodule.MAX_POINTS = 100\n"
    browser.run_cell(page, f"{code}many = exploration.explore(model_paths, tables_dir, cells_path)\nmany")
    page.wait_for_selector("label:text-is('Map of')", timeout=30_000)
    last = page.locator(".jupyter-matplotlib-canvas-container").last
    browser.wait(lambda: (box := last.bounding_box()) and colored(browser.picture(page, box)) > 0.003, 30, "a picture")
    show(page, "density")
    box = last.bounding_box()
    before = colored(browser.picture(page, box))
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for _ in range(4):
        page.mouse.wheel(0, -100)
        page.wait_for_timeout(200)
    browser.wait(lambda: abs(colored(browser.picture(page, box)) - before) > 0.2 * before, 20, "the zoomed picture")
    show(page, "zoomed")
    browser.draw(page, box, AROUND_ALL)
    browser.wait(lambda: browser.run_code(page, "print(len(many.rows))") != "0\n", 20, "a selection")
    code = """
view = many._panel.view
xy = many.cells.coordinates(view.model.value)[0]
(x0, x1), (y0, y1) = view.axes.get_xlim(), view.axes.get_ylim()
seen = {i for i, (x, y) in enumerate(xy) if x0 < x < x1 and y0 < y < y1}
print(len(seen), len(seen & set(many.rows)), len(set(many.rows) - seen))
"""
    seen, selected, wrong = map(int, browser.run_code(page, code).split())
    assert 0 < seen < 600
    assert selected > 0.8 * seen
    assert wrong == 0
    assert not errors
