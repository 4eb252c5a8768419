"""Measure the maps of notebook 09 on simulated coordinates: 500,000 points with widgets, 60 million as images.

    python benchmarks/maps.py                       # needs Chromium for `widgets`; takes minutes and 3 GB of memory
    python benchmarks/maps.py raster --points 60000000 --runs 3

`widgets` uses a browser that draws in software, without a GPU. `raster` uses no browser: it measures how long the
kernel takes to draw an image of the size in the notebook (900 × 600 pixels). Reading the coordinates is not measured.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from anndata import AnnData
from measure import measured, run_in_turn

from aenmf_lib import results
from aenmf_lib.data import files
from aenmf_lib.exploration.coloring import Coloring, color_values
from aenmf_lib.exploration.raster import Tiles, fit
from aenmf_lib.figures import style

ROOT = Path(__file__).parents[1]
N_TYPES, N_DONORS, K = 40, 20, 20
LABELS = [str(i) for i in range(N_TYPES)]
SIZE = 900, 600  # pixels
ZOOMS = {"zoomed 2 times": 2, "zoomed 10 times": 10, "zoomed 100 times": 100}
MODELS = ("CAE_NMF1", "CAE_NMF2", "AE_NMF", "Base_NMF")


def simulate(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates of clusters with different sizes and shapes, (n, 2) float32, and the type of each point."""
    rng = np.random.default_rng(0)
    types = rng.choice(N_TYPES, n, p=rng.dirichlet(np.full(N_TYPES, 0.5) + 0.01)).astype(np.int8)
    centers, width = rng.normal(0, 6, (N_TYPES, 2)), rng.gamma(4, 0.2, (N_TYPES, 2))
    xy = rng.standard_normal((n, 2), dtype=np.float32)
    for lo in range(0, n, 2**20):  # in parts, to save memory
        part = slice(lo, lo + 2**20)
        xy[part] = xy[part] * width[types[part]] + centers[types[part]]
    return xy, types


def raster(points: int, color: str) -> dict:
    """Return the seconds of the first image and of zoomed images of one map, and the peak memory with coordinates."""
    few, few_types = simulate(10_000)
    colorings = {
        "count": lambda types: None,
        "40 labels": lambda types: Coloring("", types, style.palette("cell_type", LABELS), LABELS),
        "numbers": lambda types: color_values(np.random.default_rng(0).random(len(types), dtype=np.float32), ""),
    }
    Tiles(few).image(colorings[color](few_types), (-1, 1, -1, 1), *SIZE)  # load compiled code
    found = {}
    with measured() as memory:
        xy, types = simulate(points)
        coloring = colorings[color](types)
        with clock(found, "first picture"):
            tiles = Tiles(xy)
            del xy
            view = fit(tiles.view, *SIZE)
            tiles.image(coloring, view, *SIZE)
        with clock(found, "same again"):
            tiles.image(coloring, view, *SIZE)
        middle = tiles._x[len(tiles.order) // 2], tiles._y[len(tiles.order) // 2]
        for name, scale in ZOOMS.items():
            half = (view[1] - view[0]) / 2 / scale, (view[3] - view[2]) / 2 / scale
            zoomed = tuple(float(at + side * d) for at, d in zip(middle, half, strict=True) for side in (-1, 1))
            with clock(found, name):
                tiles.image(coloring, zoomed, *SIZE)
    return found | {"peak_mib": memory["peak_mib"]}


@contextlib.contextmanager
def clock(found: dict[str, float], name: str) -> Iterator[None]:
    """Record the seconds that a block of code takes."""
    start = time.perf_counter()
    yield
    found[name] = time.perf_counter() - start


def widgets(points: int, color: str) -> dict:
    """Return the seconds from running the cell in JupyterLab until the first and all four maps are drawn."""
    sys.path.insert(0, str(ROOT / "tests/exploration"))
    import browser

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_results(root / "results/demo", points)
        with (
            browser.server(root) as address,
            browser.chromium(shutil.which("chromium") or shutil.which("google-chrome")) as (page, errors),
        ):
            browser.open_notebook(page, address)
            browser.run_code(page, "from aenmf_lib import exploration\nimport jscatter, ipywidgets, datashader")
            code = "maps = exploration.explore(MODELS, 'results/demo/k12')\nmaps"
            code = code.replace("MODELS", repr([f"results/demo/k12/{model}.h5ad" for model in MODELS]))
            start = time.perf_counter()
            browser.run_cell(page, code)
            page.wait_for_selector(".jp-OutputArea canvas", timeout=120_000)
            found = {}
            browser.wait(lambda: n_drawn(page, browser) >= 1, 120, "the first map")
            found["first picture"] = time.perf_counter() - start
            browser.wait(lambda: n_drawn(page, browser) == len(MODELS), 120, "all maps")
            found["all maps"] = time.perf_counter() - start
            start = time.perf_counter()
            browser.run_code(page, "maps.color = 'donor_id'")
            found["other color, kernel"] = time.perf_counter() - start
            text = "import time, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
            found["peak_mib"] = float(browser.run_code(page, text))
            assert not errors, errors
    return found


def n_drawn(page, browser) -> int:
    """Return the number of maps that show points, that is, colored pixels."""
    found = {}
    for canvas in page.locator(".jp-OutputArea canvas").all():
        if (box := canvas.bounding_box()) and box["width"] > 200 and box["y"] + box["height"] < browser.PAGE["height"]:
            found[round(box["x"]), round(box["y"])] = box
    return sum(bool((np.ptp(browser.picture(page, box), axis=2) > 0.2).mean() > 0.005) for box in found.values())


def write_results(folder: Path, points: int) -> None:
    """Write results files of four models with random usages, and their UMAP."""
    rng = np.random.default_rng(0)
    xy, types = simulate(points)
    labels = {"cell_type": types, "donor_id": rng.integers(N_DONORS, size=points)}
    genes = [f"gene{i}" for i in range(100)]
    cells = AnnData(shape=(points, len(genes)))
    cells.obs_names, cells.var_names = [f"cell{i}" for i in range(points)], genes
    for name, codes in labels.items():
        cells.obs[name] = codes.astype(str)
        cells.obs[name] = cells.obs[name].astype("category")
    coords = AnnData(obs=cells.obs, obsm={f"X_umap_{model}": xy for model in MODELS})
    files.write_h5ad(coords, folder / "k12/umap.h5ad")
    for model in MODELS:
        one = cells.copy()
        roles = results.OBSM[model].items()
        for role, key in roles:
            width = 2 * K if role == "concat_full" else K
            one.obsm[key.format(k=K)] = rng.random((points, width), dtype=np.float32)
        for key in results.VARM[model].values():
            one.varm[key.format(k=K)] = rng.random((len(genes), K if "W" in key else N_DONORS), dtype=np.float32)
        files.write_h5ad(one, folder / f"k12/{model}.h5ad")


def main() -> None:
    """Read the command line, run the benchmarks, and write and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("all", "widgets", "raster"), nargs="?", default="all")
    parser.add_argument("--points", type=int, help="number of points, instead of the default")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    if args.what != "raster":
        rows = [{"points": args.points or 500_000, "color": "40 labels"}]
        print(run_in_turn("maps_widgets", widgets, rows, runs=args.runs).median(numeric_only=True))
    if args.what != "widgets":
        rows = [{"points": args.points or 60_000_000, "color": color} for color in ("count", "40 labels", "numbers")]
        table = run_in_turn("maps", raster, rows, runs=args.runs)
        print(table.groupby("color").median(numeric_only=True).T)


if __name__ == "__main__":
    main()
