"""JupyterLab on a copy of the notebooks, and a browser without a window that uses it."""

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parents[2]
# WebGL without a GPU; containers often lack the rights for a sandbox, and have a small /dev/shm
FLAGS = [
    "--enable-unsafe-swiftshader",
    "--use-angle=swiftshader",
    "--ignore-gpu-blocklist",
    "--no-sandbox",
    "--disable-dev-shm-usage",
]
PAGE = {"width": 1500, "height": 1300}


@contextlib.contextmanager
def server(root: Path) -> Iterator[str]:
    """Start JupyterLab as `make explore` does in a job, which opens no browser, and yield its address."""
    shutil.copytree(ROOT / "notebooks", root / "notebooks", dirs_exist_ok=True)
    with (root / "notebooks/.jupyter/jupyter_server_config.py").open("a") as config:
        config.write("c.LabApp.expose_app_in_browser = True\n")  # for `run_code`
    settings = {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_CONFIG_PATH": str(root / "notebooks/.jupyter")}
    private = {name: str(root / "home") for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    log = (root / "lab.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "notebooks/.jupyter/lab.py", "notebooks/09_explore.py"],
        cwd=root,
        env=os.environ | settings | private | {"SLURM_JOB_ID": "1", "JUPYTERLAB_WORKSPACES_DIR": str(root / "home")},
        stdout=log,
        stderr=log,
    )
    info = root / "results/.lab.json"
    try:
        wait(lambda: info.exists() or process.poll() is not None, 40, "JupyterLab")
        found = json.loads(info.read_text())
        yield f"http://127.0.0.1:{found['port']}/lab/tree/notebooks/09_explore.py?token={found['token']}"
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        log.close()


def wait(happened, seconds: float, what: str) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"{what}: not there after {seconds} s"
        time.sleep(0.1)


@contextlib.contextmanager
def chromium(executable: str | None):
    """Yield a page, and the list of its errors so far."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        page, errors = chromium.new_page(viewport=PAGE), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        yield page, errors
        chromium.close()


def open_notebook(page, address: str) -> None:
    """Open the notebook and wait for its kernel."""
    wait(lambda: _goto(page, address), 40, "JupyterLab")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=40_000)
    wait(lambda: _has_kernel(page), 40, "a kernel")


def _has_kernel(page) -> bool:
    """Return whether the kernel is ready. Accept the proposed one if JupyterLab asks for it."""
    if page.locator(".jp-Dialog .jp-mod-accept").count():
        page.locator(".jp-Dialog .jp-mod-accept").click()
    return page.evaluate("window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")


def _goto(page, address: str) -> bool:
    """Return whether the server answers."""
    from playwright.sync_api import Error

    try:
        return page.goto(address).ok
    except Error as error:
        assert "ERR_CONNECTION" in str(error)
        return False


def run_all(page) -> None:
    """Run all cells of the open notebook."""
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").click()
    page.locator(".lm-Menu-item:visible", has_text="Run All Cells").first.click()


def run_code(page, code: str) -> str:
    """Run code in a new last cell, and return its output."""
    page.evaluate(
        """async code => {
            const panel = window.jupyterapp.shell.currentWidget;
            const session = panel.sessionContext.session;
            const future = session.kernel.requestExecute({code});
            let text = '';
            future.onIOPub = message => {
                const content = message.content;
                if (message.header.msg_type === 'stream') text += content.text;
                if (message.header.msg_type === 'error') text += content.ename + ': ' + content.evalue;
            };
            await future.done;
            window.lastOutput = text;
        }""",
        code,
    )
    return page.evaluate("window.lastOutput")


def run_cell(page, code: str) -> None:
    """Write code into a new last cell, run it, and scroll to it."""
    page.evaluate(
        """async code => {
            const app = window.jupyterapp, notebook = app.shell.currentWidget.content;
            notebook.activeCellIndex = notebook.widgets.length - 1;
            await app.commands.execute('notebook:insert-cell-below');
            await app.commands.execute('notebook:change-cell-to-code');
            notebook.activeCell.model.sharedModel.setSource(code);
            await app.commands.execute('notebook:run-cell');
            notebook.activeCell.node.scrollIntoView();
        }""",
        code,
    )


def choose(page, label: str, option: str) -> None:
    """Choose an option of the drop-down with a label."""
    page.locator(f".widget-dropdown:has(label:text-is('{label}')) select").select_option(label=option)


def draw(page, box: dict, corners: list[tuple[float, float]]) -> None:
    """Drag the mouse along corners, given as shares of the width and height of a box."""
    points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for start, end in itertools.pairwise(points):
        for share in np.linspace(0.1, 1, 10):
            page.mouse.move(*(a + (b - a) * share for a, b in zip(start, end, strict=True)))
            page.wait_for_timeout(20)  # a lasso gets a corner every 10 ms at most
    page.mouse.up()


def picture(page, box: dict) -> np.ndarray:
    """Return a part of the page as numbers from 0 to 1, (height, width, 3)."""
    return plt.imread(io.BytesIO(page.screenshot(clip=box)))[..., :3]
