"""Tables of simulated runs, and checks that hold for every figure: no text is cut, and no two texts overlap."""

import functools
import itertools
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from aenmf_lib import figures, results
from aenmf_lib.figures.settings import find_font, use
from aenmf_lib.metrics.classifiers import CLASSIFIERS
from aenmf_lib.results import RunInfo

if find_font(figures.read_settings().fonts) == "DejaVu Sans":  # a wider font, in which other names fit
    pytest.skip("needs the font Arial, Helvetica or Liberation Sans", allow_module_level=True)

LONG_NAMES = [
    "CD16-negative, CD56-bright natural killer cell, human",
    "CD8-positive, alpha-beta cytokine secreting effector T cell",
    "naive thymus-derived CD4-positive, alpha-beta T cell",
    "naive thymus-derived CD8-positive, alpha-beta T cell",
    "effector memory CD8-positive, alpha-beta T cell, terminally differentiated, of the upper blood stream (sorted)",
    "effector memory CD8-positive, alpha-beta T cell, terminally differentiated, of the lower blood stream (sorted)",
]
ODD_NAMES = [
    *("NA", "nan", "None", "null", "1", "01", "1e5", "TRUE", "x", " x", "x ", "x (1)", 'a"b', "a,b", "a\nb", "a\rb"),
    *("a\tb", "a b", "no type", "$x_1$", "_x", "é—β", "\x07", "regulatory\nT cell", "T" * 99 + "U" * 99),
    *("T" * 99 + "V" * 99, "<b>&amp;</b>"),
]
CASES = {  # types, donors, cells, programs
    "small": (8, 5, 400, 12),
    "middle": (13, 8, 2_000, 20),
    "large": (40, 25, 12_000, 80),
    "many": (200, 100, 12_000, 256),
}
EXTRA = ("PCA", "my embedding")  # embeddings beside the models
RUN = RunInfo(12, 400, dict.fromkeys(results.MODELS, False) | {"CAE_NMF1": True})


def settings(*, font: float = 1, width: float = 1, **options) -> figures.settings.Settings:
    """Return the default settings with the font and the width multiplied."""
    default = figures.read_settings()
    sizes = {"font_size": default.font_size * font, "single": default.single * width, "double": default.double * width}
    return replace(default, **sizes, **options)


LAYOUTS = {"default": {}, "font doubled": {"font": 2}, "width halved": {"width": 0.5}}  # arguments of `settings`


@functools.cache
def simulate(case: str, extra: tuple[str, ...] = ()) -> dict:
    """Return random tables in the shape that the benchmarks write them, also of embeddings beside the models."""
    n_types, n_donors, n_cells, k = CASES[case]
    rng = np.random.default_rng(0)
    scores, fits, lines, curve, by_class, confusion = [], [], [], [], [], []
    models = (*results.MODELS, *extra)
    for i, model in enumerate(models):
        used = {"cell_type_in_training": model == "CAE_NMF1"}
        for label, classes, level in (("cell_type", n_types, 0.7), ("donor_id", n_donors, 0.003)):
            about = {"Model": model, "label": label, "n_classes": classes, "n_cells": n_cells, **used}
            for seed in range(10):
                ari, nmi = level + 0.02 * i + rng.normal(0, 0.004, 2)
                graph = {"n_clusters": 12, "n_neighbors": 25, "resolution": 0.8}
                scores.append({**about, **graph, "seed": seed, "ARI": ari, "NMI": nmi + 0.1})
            for at in (0.2, 0.8, 1.6):
                graph = {"n_clusters": int(10 * at), "n_neighbors": 25, "resolution": at, "seed": 0}
                curve.append({**about, **graph, "ARI": level * at / 2, "NMI": level})
            for kind, seed, fold in itertools.product(CLASSIFIERS, (42, 52), range(5)):
                value = 0.3 + level / 2 + 0.05 * list(CLASSIFIERS).index(kind) + rng.normal(0, 0.01)
                names = ("F1", "AUROC", "Precision", "Accuracy", "Recall")
                values = dict(zip(names, value + rng.normal(0, 0.01, 5), strict=True))
                run = {"classifier": kind, "seed": seed, "fold": fold, "min_cells_per_class": 10, "max_cells": 4_000}
                fits.append({**about, **run, **values, "n_cells": min(4_000, n_cells)})
        steps = np.arange(40 * (i + 1)) if model != "Base_NMF" else np.array([100])
        relative = 0.51 + 0.001 * i + 0.4 * np.exp(-steps / 9)
        line = pd.DataFrame({"Model": model, "iteration": steps, "loss": 300 * relative, "relative_loss": relative})
        lines += [line] if model not in extra else []
    types = (LONG_NAMES if n_types >= 40 else []) + [f"type {i}" for i in range(n_types)]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(np.arange(n_cells) % n_types, sorted(types[:n_types])),
            "donor_id": pd.Categorical.from_codes(
                rng.integers(n_donors, size=n_cells), [f"D{i:02}" for i in range(n_donors)]
            ),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    sizes = obs["cell_type"].value_counts().sort_index()
    for model, kind in itertools.product(models, CLASSIFIERS):
        of = {"Model": model, "label": "cell_type", "classifier": kind}
        for i, (name, n) in enumerate(sizes.items()):
            by_class.append({**of, "class": name, "n_cells": n, "F1": rng.random()})
            other = sizes.index[(i + 1) % n_types]
            confusion += [
                {**of, "class": name, "predicted": name, "n_cells": 4 * n},
                {**of, "class": name, "predicted": other, "n_cells": n},
            ]
    coords = AnnData(obs=obs)
    H = {}
    for model in models:
        centers = rng.normal(0, 6, (n_types, 2))[obs["cell_type"].cat.codes]
        coords.obsm[f"X_umap_{model}"] = (centers + rng.normal(size=(n_cells, 2))).astype(np.float32)
        if model not in extra:
            H[model] = rng.gamma(0.3, size=(n_types, k))[obs["cell_type"].cat.codes] + rng.random((n_cells, k)) / 10
    return {
        "clustering": pd.DataFrame(scores),
        "classification": pd.DataFrame(fits),
        "resolution": pd.DataFrame(curve),
        "by_class": pd.DataFrame(by_class),
        "confusion": pd.DataFrame(confusion),
        "umap": coords,
        "H": H,
        "training": pd.concat(lines, ignore_index=True),
        "run": replace(RUN, k=k, n_cells=n_cells),
    }


def axes(fig: Figure) -> dict:
    """Return the axes by their label."""
    return {ax.get_label(): ax for ax in fig.axes if ax.get_label() != "<colorbar>"}


def marks(ax, kind) -> list:
    """Return the artists of a kind in axes."""
    return [artist for artist in ax.collections if isinstance(artist, kind)]


def texts(fig: Figure) -> list:
    """Return every text that is drawn, its box in pixels at the resolution of the saved file, and its axes."""
    seen, original = [], Text.draw

    def record(self, renderer):
        if self.get_visible() and self.get_text().strip():
            seen.append((self.get_text(), Text.get_window_extent(self, renderer), self.axes))
        return original(self, renderer)

    with use(fig.settings), mock.patch.object(Text, "draw", record):
        fig.set_dpi(fig.settings.dpi)
        FigureCanvasAgg(fig).draw()
    return seen


def overlap(a, b, apart: float = -1) -> bool:
    """Return whether two boxes share more than a pixel of height and are closer than `apart` pixels sideways."""
    return max(a.x0, b.x0) - min(a.x1, b.x1) < apart and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


def check_layout(fig: Figure, apart: float = 2, *, on_panels: bool = False) -> list[str]:
    """List texts that are cut, within `apart` pixels sideways of other texts, or over a panel of other axes.

    With `on_panels`, texts that belong to the whole figure may lie on panels, as names on a map do.
    """
    found, shown = [], texts(fig)
    for word, box, _ in shown:
        if box.x0 < -1 or box.y0 < -1 or box.x1 > fig.bbox.x1 + 1 or box.y1 > fig.bbox.y1 + 1:
            found.append(f"cut: {word!r}")
    for (a, x, _), (b, y, _) in itertools.combinations(shown, 2):
        if overlap(x, y, apart):
            found.append(f"over each other: {a!r}, {b!r}")
    for word, box, of in shown if not on_panels else ():
        found += [f"over a panel: {word!r}" for ax in fig.axes if ax is not of and overlap(box, ax.get_window_extent())]
    return found


def check_files(fig: Figure, folder: Path) -> None:
    """Check that a figure writes all its files, the same bytes twice, with real text in pdf and svg."""
    for part in ("first", "second"):
        figures.save(fig, folder / part)
    names = {path.name for path in (folder / "first").iterdir()}
    assert names == {f"{fig.name}.{ending}" for ending in ("csv", "txt", *fig.settings.formats)}
    for name in names:
        assert (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes(), name
    pdf, svg = ((folder / "first" / f"{fig.name}.{ending}").read_bytes() for ending in ("pdf", "svg"))
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"CreationDate" not in pdf
    assert b"<text" in svg and b"<dc:date>" not in svg
    assert (folder / "first" / f"{fig.name}.txt").read_text().strip() == fig.caption
