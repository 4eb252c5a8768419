"""Figures show the values of their csv, are the same bytes in each run, and have no cut or overlapping text."""

import functools
import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from aenmf_lib import figures, programs, results
from aenmf_lib.data import LABELS, read_h5ad
from aenmf_lib.figures import FIGURES, cells, style
from aenmf_lib.figures.style import COLORS, DOUBLE
from aenmf_lib.metrics import classification
from aenmf_lib.metrics.classifiers import CLASSIFIERS
from aenmf_lib.results import RunInfo

MODEL_COLORS = {model: COLORS[model] for model in results.MODELS}

LONG_NAMES = [
    "CD16-negative, CD56-bright natural killer cell, human",
    "CD8-positive, alpha-beta cytokine secreting effector T cell",
    "naive thymus-derived CD4-positive, alpha-beta T cell",
    "naive thymus-derived CD8-positive, alpha-beta T cell",
    "effector memory CD8-positive, alpha-beta T cell, terminally differentiated, of the upper blood stream (sorted)",
    "effector memory CD8-positive, alpha-beta T cell, terminally differentiated, of the lower blood stream (sorted)",
]
CASES = {  # types, donors, cells, programs
    "small": (8, 5, 400, 12),
    "middle": (13, 8, 2_000, 20),
    "large": (40, 25, 12_000, 80),
}


@functools.cache
def simulate(case: str) -> dict:
    """Return random tables in the shape that the benchmarks write them."""
    n_types, n_donors, n_cells, k = CASES[case]
    rng = np.random.default_rng(0)
    scores, fits, lines, curve, by_class, confusion = [], [], [], [], [], []
    shared = {"n_cells": n_cells}
    for i, model in enumerate(results.MODELS):
        used = {"cell_type_in_training": model == "CAE_NMF1"}
        for label, classes, level in (("cell_type", n_types, 0.7), ("donor_id", n_donors, 0.003)):
            about = {"Model": model, "label": label, "n_classes": classes, **shared, **used}
            for seed in range(10):
                ari, nmi = level + rng.normal(0, 0.004, 2)
                graph = {"n_clusters": 12, "n_neighbors": 25, "resolution": 0.8}
                scores.append({**about, **graph, "seed": seed, "ARI": ari, "NMI": nmi + 0.1})
            for at in (0.2, 0.8, 1.6):
                graph = {"n_clusters": int(10 * at), "n_neighbors": 25, "resolution": at, "seed": 0}
                curve.append({**about, **graph, "ARI": level * at / 2, "NMI": level})
            for kind, seed, fold in itertools.product(CLASSIFIERS, (42, 52), range(5)):
                value = 0.3 + level / 2 + 0.05 * list(CLASSIFIERS).index(kind) + rng.normal(0, 0.01)
                values = dict(
                    zip(("F1", "AUROC", "Precision", "Accuracy", "Recall"), value + rng.normal(0, 0.01, 5), strict=True)
                )
                run = {"classifier": kind, "seed": seed, "fold": fold, "min_cells_per_class": 10, "max_cells": 4_000}
                fits.append({**about, **run, **values, "n_cells": min(4_000, n_cells)})
        steps = np.arange(40 * (i + 1)) if model != "Base_NMF" else np.array([100])
        relative = 0.51 + 0.001 * i + 0.4 * np.exp(-steps / 9)
        lines.append(
            pd.DataFrame({"Model": model, "iteration": steps, "loss": 300 * relative, "relative_loss": relative})
        )
    types = (LONG_NAMES if case == "large" else []) + [f"type {i}" for i in range(n_types)]
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
    for model, kind in itertools.product(results.MODELS, CLASSIFIERS):
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
    for model in results.MODELS:
        centers = rng.normal(0, 6, (n_types, 2))[obs["cell_type"].cat.codes]
        coords.obsm[f"X_umap_{model}"] = (centers + rng.normal(size=(n_cells, 2))).astype(np.float32)
        H[model] = rng.gamma(0.3, size=(n_types, k))[obs["cell_type"].cat.codes] + rng.random((n_cells, k)) / 10
    return {
        "clustering": pd.DataFrame(scores),
        "classification": pd.DataFrame(fits),
        "resolution": pd.DataFrame(curve),
        "by_class": pd.DataFrame(by_class),
        "confusion": pd.DataFrame(confusion),
        "umap": coords,
        "programs": programs.usage_by_type(H, obs["cell_type"]),
        "training": pd.concat(lines, ignore_index=True),
        "run": RunInfo(k, n_cells, {"CAE_NMF1": True, "AE_NMF": False}),
    }


def simulate_study() -> pd.DataFrame:
    """Return a random table in the shape of ``study.summarize``."""
    rng = np.random.default_rng(0)
    variants = [("Types", 0, "none"), ("PCA", 0, "none"), ("Harmony", 0, "none"), ("AE_NMF", 0, "none")]
    variants += [("CAE_NMF1", 0, "cell_type"), ("CAE_NMF2", 0, "none"), ("CAE_NMF2", 0.2, "clusters")]
    variants += [(model, at, "cell_type") for model in ("CAE_NMF1", "CAE_NMF2") for at in (0.05, 0.2, 1.0)]
    rows = []
    for on, (model, strength, labels) in itertools.product(("donor_id", "condition"), variants):
        row = {"on": on, "Model": model, "strength": strength, "labels": labels, "gene_weights": "none", "n_starts": 3}
        for score, end in itertools.product(("NMI", "knn", "unseen_NMI"), ("type", "on")):
            row[f"{score}_{end}"], row[f"{score}_{end}_std"] = rng.random(), 0.02
        rows.append(row)
    table = pd.DataFrame(rows)
    table.loc[table["Model"] == "Harmony", ["unseen_NMI_type", "unseen_NMI_on"]] = np.nan  # fits no other cells
    return pd.concat([table, table[table["strength"] == 0.2].assign(gene_weights="shared")], ignore_index=True)


def inputs(name: str, tables: dict) -> tuple:
    """Return the tables that a figure is drawn from."""
    return tuple(tables[table] for table in (("by_class", "confusion") if name == "classes" else (name,)))


def draw(name: str, tables: dict, **run) -> Figure:
    """Draw a figure as 07_figures does."""
    return getattr(figures, name)(*inputs(name, tables), run=replace(tables["run"], **run))


@functools.cache
def drawn(name: str, case: str = "small") -> Figure:
    """Draw a figure of a case once."""
    return draw(name, simulate(case))


def save_all(folder: str | Path) -> None:
    """Save the figures of a case."""
    for name in FIGURES:
        figures.save(draw(name, simulate("small")), folder)
    figures.save(figures.conditioning(simulate_study()), folder)


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

    fig.set_dpi(300)
    with mock.patch.object(Text, "draw", record):
        FigureCanvasAgg(fig).draw()
    return seen


def overlap(a, b, apart: float = -1) -> bool:
    """Return whether two boxes share more than a pixel of height and are closer than `apart` pixels sideways."""
    return max(a.x0, b.x0) - min(a.x1, b.x1) < apart and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


def faults(fig: Figure, apart: float = 8) -> list[str]:
    """List texts that are cut, within `apart` pixels sideways of other texts, or over a panel of other axes."""
    found, shown = [], texts(fig)
    for word, box, _ in shown:
        if box.x0 < 0 or box.y0 < 0 or box.x1 > fig.bbox.x1 or box.y1 > fig.bbox.y1:
            found.append(f"cut: {word!r}")
    for (a, x, _), (b, y, _) in itertools.combinations(shown, 2):
        if overlap(x, y, apart):
            found.append(f"over each other: {a!r}, {b!r}")
    for word, box, of in shown:
        found += [f"over a panel: {word!r}" for ax in fig.axes if ax is not of and overlap(box, ax.get_window_extent())]
    return found


def caption(fig: Figure) -> str:
    """Return the caption in one line."""
    return fig.get_supxlabel().replace("\n", " ").replace("\u00a0", " ")


@pytest.fixture(scope="module")
def small() -> dict:
    return simulate("small")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    save_all(folder)
    return folder


@pytest.fixture
def points(saved):
    return lambda name: pd.read_csv(saved / f"{name}.csv", float_precision="round_trip")


def test_another_process_with_another_style_writes_the_same_bytes(saved, tmp_path):
    (tmp_path / "matplotlibrc").write_text(
        "font.family: serif\nlegend.loc: center\nfigure.constrained_layout.use: False\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "86400", "MPLBACKEND": "svg"}
    environment["MATPLOTLIBRC"] = str(tmp_path / "matplotlibrc")
    script = "import matplotlib as m; m.rcParams.update({'font.size': 20, 'axes.grid': True, 'savefig.dpi': 50})\n"
    script += "import pandas as p, seaborn as s; s.set_theme(context='poster', palette='husl')\n"
    script += "p.set_option('display.precision', 2, 'future.infer_string', True, 'compute.use_bottleneck', False)\n"
    script += f"import test_figures; test_figures.save_all({str(tmp_path / 'figures')!r})"
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, env=environment, check=True)
    expected = {f"{name}.{ending}" for name in (*FIGURES, "conditioning") for ending in ("pdf", "png", "csv")}
    assert {path.name for path in saved.iterdir()} == expected
    for name in sorted(expected):
        assert (saved / name).read_bytes() == (tmp_path / "figures" / name).read_bytes(), name
    assert not any(b"Date" in path.read_bytes() for path in saved.glob("*.pdf"))


def test_a_figure_saved_twice_gives_the_same_bytes(tmp_path):
    for folder in ("first", "second"):
        figures.save(drawn("training"), tmp_path / folder)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_pdfs_embed_truetype_and_pngs_have_a_column_width_at_300_dpi(saved):
    for name in (*FIGURES, "conditioning"):
        pdf = (saved / f"{name}.pdf").read_bytes()
        assert b"/FontFile2" in pdf and b"/Type3" not in pdf, name
        png = (saved / f"{name}.png").read_bytes()
        millimeters = int.from_bytes(png[16:20], "big") / 300 * 25.4
        assert min(abs(millimeters - width) for width in (89, 183)) < 0.1, name


@pytest.mark.parametrize("name", [*FIGURES, "conditioning"])
def test_text_has_7_points_and_captions_6(name):
    fig = figures.conditioning(simulate_study()) if name == "conditioning" else drawn(name)
    sizes = {text.get_fontsize() for text in fig.findobj(Text) if text.get_text()}
    assert sizes <= {7, 6, 5} and (5 in sizes) is (name == "conditioning")


@pytest.mark.parametrize("name", ["clustering", "classification"])
def test_score_points_equal_csv(points, name):
    table, panels = points(name), axes(drawn(name))
    groups = table.groupby(["label", "metric"])
    assert {f"{label} {metric}" for label, metric in groups.groups} == set(panels)
    by = ["Model"] + (["classifier"] if name == "classification" else [])
    for (label, metric), group in groups:
        ax = panels[f"{label} {metric}"]
        x = np.concatenate([mark.get_offsets()[:, 0] for mark in marks(ax, PathCollection)])
        np.testing.assert_allclose(np.sort(x), np.sort(group["value"]), rtol=0, atol=1e-15)
        bars = [np.asarray(segment) for mark in marks(ax, LineCollection) for segment in mark.get_segments()]
        flat = {tuple(b[:, 0].round(12)) for b in bars if b[0, 1] == b[1, 1]}
        upright = {b[0, 0].round(12) for b in bars if b[0, 0] == b[1, 0] and b[0, 1] != b[1, 1]}
        expected = group.groupby(by)["value"].agg(["mean", "std"])
        assert flat == {(round(m - s, 12), round(m + s, 12)) for m, s in expected.to_numpy()}
        overall = [] if name == "clustering" else group.groupby("Model")["value"].mean()
        assert upright == {round(value, 12) for value in [*expected["mean"], *overall]}


def test_vertical_line_equals_published_mean(small):
    row = small["classification"].query("Model == 'AE_NMF' and label == 'donor_id'")
    ax = axes(drawn("classification"))["donor_id F1"]
    places = [np.asarray(s)[0, 0] for m in marks(ax, LineCollection) for s in m.get_segments()]
    assert min(abs(place - row["F1"].mean()) for place in places) < 1e-12


@pytest.mark.parametrize("name", ["clustering", "classification"])
def test_a_changed_row_moves_its_point_and_no_other(small, name):
    metric = {"clustering": "ARI", "classification": "F1"}[name]
    changed = {**small, name: small[name].copy()}
    label = changed[name].loc[3, "label"]
    changed[name].loc[3, metric] += 0.0123
    before, after = axes(drawn(name)), axes(draw(name, changed))
    for key in before:
        x = [marks(panels[key], PathCollection)[0].get_offsets()[:, 0] for panels in (before, after)]
        moved = np.abs(x[0] - x[1])
        if key == f"{label} {metric}":
            assert (moved > 0).sum() == 1 and moved.max() == pytest.approx(0.0123)
        else:
            assert not moved.any()


def test_program_heatmaps_equal_csv(small, points):
    table, panels = points("programs"), axes(drawn("programs"))
    for model, group in table.groupby("Model"):
        (mesh,) = marks(panels[model], QuadMesh)
        grid = group.pivot_table(index="cell_type", columns="position", values="z_score")
        np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(grid.shape), grid.to_numpy())
        assert [text.get_text() for text in panels[model].get_xticklabels()] == [
            str(program) for program in group.drop_duplicates("position").sort_values("position")["program"]
        ]
        # By hand from the usages: z over types, programs in the order of their peak.
        usage = small["programs"].query("Model == @model")
        usage = usage.pivot_table(index="cell_type", columns="program", values="mean_usage")
        z = (usage - usage.mean()) / usage.std(ddof=0)
        order = sorted(z, key=lambda p: (z.index.get_loc(z[p].idxmax()), -z[p].max()))
        np.testing.assert_allclose(grid.to_numpy(), z[order].to_numpy(), rtol=1e-9, atol=1e-12)


def test_the_number_of_cells_is_in_the_row_of_its_type(small):
    sizes = {name: 1_000 + i for i, name in enumerate(small["programs"]["cell_type"].unique())}
    table = small["programs"].assign(n_cells=small["programs"]["cell_type"].map(sizes))
    boxes = {word: box for word, box, _ in texts(figures.programs(table))}
    for name, n in sizes.items():
        cell_type, number = boxes[name], boxes[f"{n:,}"]
        assert abs((cell_type.y0 + cell_type.y1) - (number.y0 + number.y1)) / 2 < 0.2 * (cell_type.y1 - cell_type.y0)


def test_a_program_without_a_peak_is_flat_and_last():
    H = np.column_stack([np.full(6, 0.1), [1, 1, 1, 2, 2, 2], np.zeros(6)])
    table = figures.programs(programs.usage_by_type({"AE_NMF": H}, pd.Series(list("aaabbb")))).table
    z = table.pivot_table(index="program", columns="cell_type", values="z_score")
    np.testing.assert_array_equal(z.to_numpy(), [[0, 0], [-1, 1], [0, 0]])
    assert table.drop_duplicates("program").set_index("program")["position"].to_dict() == {1: 0, 0: 1, 2: 2}


def test_umap_points_equal_csv_and_a_label_has_one_color(small, points):
    table, panels = points("umap"), axes(drawn("umap"))
    assert sorted(table["cell"]) == sorted(small["umap"].obs_names)
    order = small["umap"].obs_names.get_indexer(table["cell"])
    seen = {}
    for model, label in itertools.product(results.MODELS, LABELS):
        (mark,) = marks(panels[f"{label} {model}"], PathCollection)
        xy = np.asarray(mark.get_offsets(), dtype=np.float32)
        np.testing.assert_array_equal(xy, table[[f"{model}_x", f"{model}_y"]].to_numpy(np.float32))
        np.testing.assert_array_equal(xy, small["umap"].obsm[f"X_umap_{model}"][order])
        for name, color in zip(table[label], map(to_hex, mark.get_facecolors()), strict=True):
            assert seen.setdefault((label, name), color) == color
    for label in LABELS:
        assert len({color for (of, _), color in seen.items() if of == label}) == table[label].nunique()


def test_102_labels_have_102_colors():
    for n in (1, 20, 21, 28, 29, 102):
        assert len(set(style.palette(n))) == n
    assert style.palette(103)[102] == style.palette(103)[0]


def test_umap_of_many_cells_shows_a_sample_and_reports_it(small, monkeypatch):
    whole = axes(drawn("umap"))["cell_type AE_NMF"]
    monkeypatch.setattr(cells, "MAX_POINTS", 3)  # fewer than there are types
    fig = draw("umap", small)
    assert "n = 400 cells, of which 3 drawn at random (seed 0) are shown" in caption(fig)
    assert len(fig.table) == 3
    part = axes(fig)["cell_type AE_NMF"]
    # The sample is the beginning of the same shuffle, in the same colors.
    for get in ("get_offsets", "get_facecolors"):
        first = getattr(marks(whole, PathCollection)[0], get)()[:3]
        np.testing.assert_array_equal(getattr(marks(part, PathCollection)[0], get)(), first)


@pytest.mark.parametrize(
    ("name", "key", "kind"),
    [("umap", "donor_id AE_NMF", PathCollection), ("programs", "AE_NMF", QuadMesh)],
)
def test_more_than_10000_marks_are_pixels(name, key, kind):
    for case, expected in (("large", True), ("small", False)):
        (mark,) = marks(axes(drawn(name, case))[key], kind)
        assert bool(mark.get_rasterized()) is expected


def test_training_lines_equal_csv(points):
    table, fig = points("training"), drawn("training")
    lines = axes(fig)["training"].lines
    assert [line.get_label() for line in lines] == list(results.MODELS)
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    for line, name in zip(lines, names, strict=True):
        rows = table[table["Model"] == line.get_label()]
        np.testing.assert_array_equal(line.get_xydata(), rows[["iteration", "relative_loss"]].to_numpy())
        assert (line.get_marker() == "o") is (line.get_label() == "Base_NMF")
        assert name == f"{line.get_label()} {rows['relative_loss'].iloc[-1]:.3f}"


def test_resolution_lines_equal_csv(points):
    panels, table = axes(drawn("resolution")), points("resolution")
    for (label, metric), group in table.groupby(["label", "metric"]):
        for model, line in zip(results.MODELS, panels[f"{label} {metric}"].lines, strict=True):
            expected = group[group["Model"] == model].sort_values("resolution")[["resolution", "value"]]
            np.testing.assert_array_equal(line.get_xydata(), expected)
            assert to_hex(line.get_color()).upper() == COLORS[model]


def test_class_panels_equal_csv(small, points):
    table, panels = points("classes"), axes(drawn("classes"))
    names = sorted(table["class"].unique())
    f1 = table.drop_duplicates(["Model", "class"])
    for model, dots in zip(results.MODELS, marks(panels["F1"], PathCollection), strict=True):
        expected = f1[f1["Model"] == model].sort_values("class")["F1"]
        np.testing.assert_allclose(dots.get_offsets()[:, 0], expected)
        assert to_hex(dots.get_facecolor()[0]).upper() == COLORS[model]
        (mesh,) = marks(panels[model], QuadMesh)
        share = np.asarray(mesh.get_array()).reshape(len(names), len(names))
        np.testing.assert_allclose(share.sum(axis=1), 1)
        np.testing.assert_allclose(np.diag(share), 0.8)
        np.testing.assert_allclose(share[np.arange(len(names)), np.roll(np.arange(len(names)), -1)], 0.2)
    one = small["by_class"].query("Model == 'AE_NMF' and `class` == 'type 3'")
    assert f1.query("Model == 'AE_NMF' and `class` == 'type 3'")["F1"].item() == pytest.approx(one["F1"].mean())
    with pytest.raises(ValueError, match=r"contain 32 and 31 pairs of a model and a cell type, of which 31 are in"):
        drop = ~((small["confusion"]["class"] == "type 3") & (small["confusion"]["Model"] == "AE_NMF"))
        figures.classes(small["by_class"], small["confusion"][drop])


def test_the_conditioning_figure_draws_each_point_once():
    table = simulate_study()
    fig = figures.conditioning(table, run=RunInfo(k=12))
    points, panels = fig.table, axes(fig)
    assert len(points) == 3 * len(table) - 2  # Harmony has no scores on held-out donors
    assert set(panels) == {f"{on} {s}" for on in ("donor_id", "condition") for s in ("NMI", "knn", "unseen_NMI")}
    for (on, score), group in points.groupby(["on", "score"]):
        ax, models = panels[f"{on} {score}"], group[group["Model"] != "Types"]
        found = [tuple(bar.lines[0].get_xydata()[0]) for bar in ax.containers]
        assert sorted(found) == sorted(zip(models["on_value"], models["type"], strict=True))
        for bar, row in zip(ax.containers, models.itertuples(), strict=True):
            assert to_hex(bar.lines[0].get_color()).upper() == COLORS[row.Model]
        (dotted,) = [line for line in ax.lines if line.get_linestyle() == ":"]
        assert set(dotted.get_xdata()) == set(group["on_value"][group["Model"] == "Types"])
    assert caption(fig) == (
        "rank k = 12; starts: 3; bars: ± s.d. over the starts; numbers: strength of the penalties (0: published "
        "weights), omitted where they overlap; w: genes weighted; dotted: an embedding of the cell types only."
    )
    one = figures.conditioning(table.query("on == 'donor_id' and gene_weights == 'none'"))
    assert "w:" not in caption(one) and len(axes(one)) == 3
    assert faults(fig, 0) == [] and faults(one, 0) == []


def test_conditioning_of_another_table_raises():
    with pytest.raises(ValueError, match="has no column 'NMI_on'"):
        figures.conditioning(simulate_study().drop(columns="NMI_on"))
    with pytest.raises(ValueError, match="has no rows"):
        figures.conditioning(simulate_study()[:0])


def test_intelex_forest_is_named_separately(small):
    long = small["classification"].replace({"classifier": {"random_forest": "random_forest_intelex"}})
    fig = draw("classification", {**small, "classification": long})
    names = [text.get_text() for text in fig.findobj(Text)]
    assert "random forest of scikit-learn-intelex" in names and "random forest" not in names
    assert not faults(fig)


def test_a_model_has_one_color_in_all_figures():
    okabe_ito = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert tuple(MODEL_COLORS) == results.MODELS and set(MODEL_COLORS.values()) < okabe_ito
    assert len(set(COLORS.values())) == len(COLORS)
    lines = axes(drawn("training"))["training"].lines
    assert {line.get_label(): to_hex(line.get_color()).upper() for line in lines} == MODEL_COLORS
    for name in ("clustering", "classification"):
        for ax in axes(drawn(name)).values():
            for mark in marks(ax, PathCollection):
                pairs = list(zip(mark.get_offsets()[:, 1], mark.get_facecolors(), strict=True))
                pairs += [
                    (np.mean(segment[:, 1]), color)
                    for bars in marks(ax, LineCollection)
                    for segment, color in zip(bars.get_segments(), bars.get_colors(), strict=True)
                ]
                for y, color in pairs:
                    assert to_hex(color).upper() == COLORS[results.MODELS[round(float(y))]]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_or_over_other_text(case, name):
    # Numbers on an axis are readable only with the width of a digit between them.
    assert faults(drawn(name, case), 20 if name in ("clustering", "classification") else 8) == []


@pytest.mark.parametrize("models", [results.MODELS[:1], results.MODELS[1:3], results.MODELS[:3]])
@pytest.mark.parametrize("name", FIGURES)
def test_fewer_models_also_fit(small, name, models):
    part = dict(small)
    for key in ("clustering", "resolution", "classification", "by_class", "confusion", "programs", "training"):
        part[key] = small[key][small[key]["Model"].isin(models)]
    maps = {f"X_umap_{model}": small["umap"].obsm[f"X_umap_{model}"] for model in models}
    part["umap"] = AnnData(obs=small["umap"].obs, obsm=maps)
    fig = draw(name, part)
    assert faults(fig) == []
    shown = " ".join(word for word, *_ in texts(fig))
    assert {model for model in results.MODELS if re.search(rf"(?<!C){model}", shown)} == set(models)
    assert ("†" in shown) is ("CAE_NMF1" in models and name != "training")


def test_very_long_names_and_102_labels_fit():
    rng = np.random.default_rng(0)
    names = [f"{'very ' * 25}long name of {i}, {'and ' * 20}so on" for i in range(99)] + ["a$b$", "ß—→", "x" * 200]
    obs = pd.DataFrame({"cell_type": pd.Categorical(names), "donor_id": pd.Categorical(names)}, index=names)
    coords = AnnData(obs=obs, obsm={"X_umap_AE_NMF": rng.normal(size=(102, 2))})
    assert faults(figures.umap(coords)) == []
    few = obs.iloc[69:]
    assert faults(figures.programs(programs.usage_by_type({"AE_NMF": rng.random((33, 5))}, few["cell_type"]))) == []
    table = pd.DataFrame({"donor_id": few["donor_id"], "n_cells": range(0, 3_300_000, 100_000), "kept": True})
    assert faults(figures.donors(table, min_cells=10)) == []


ODD_NAMES = [
    *("NA", "nan", "None", "null", "1", "01", "1e5", "TRUE", "x", " x", "x ", "x (1)", 'a"b', "a,b", "a\nb", "a\rb"),
    *(
        "a\tb",
        "a b",
        "no type",
        "$x_1$",
        "_x",
        "é—β",
        "\x07",
        "regulatory\nT cell",
        "T" * 99 + "U" * 99,
        "T" * 99 + "V" * 99,
    ),
]


@functools.cache
def odd(folder: str) -> dict:
    """Return the tables of cells whose types and donors have odd names, after they were written and read."""
    rng, n = np.random.default_rng(0), len(ODD_NAMES)
    labels = pd.Series(np.array(ODD_NAMES, object)[np.arange(30 * n) % n], dtype="category")
    obs = pd.DataFrame({"cell_type": labels, "donor_id": labels.to_numpy()[::-1]}).astype("category")
    obs.index = [f"cell{i}" for i in range(len(obs))]
    H = {model: rng.random((len(obs), 5)).astype(np.float32) for model in results.MODELS[:2]}
    coords = AnnData(obs=obs, obsm={f"X_umap_{model}": usages[:, :2] for model, usages in H.items()})
    results.write_h5ad(coords, f"{folder}/umap.h5ad")
    fits = classification.cross_validate(H, obs, classifiers=["knn"], seeds=[42], n_jobs=1)
    for name, table in (("by_class", classification.per_class(fits)), ("confusion", classification.confusion(fits))):
        results.write_table(table, f"{folder}/{name}.csv")
    tables = {name: figures.read_table(f"{folder}/{name}.csv") for name in ("by_class", "confusion")}
    coords = read_h5ad(f"{folder}/umap.h5ad")
    return {**tables, "umap": coords, "programs": programs.usage_by_type(H, obs["cell_type"]), "run": RunInfo(5)}


@pytest.fixture(scope="module")
def odd_tables(tmp_path_factory) -> dict:
    return odd(str(tmp_path_factory.mktemp("odd")))


@pytest.mark.parametrize("name", ["classes", "umap", "programs"])
def test_types_with_odd_names_are_all_drawn_and_in_the_csv(odd_tables, name, tmp_path):
    fig = draw(name, odd_tables)
    figures.save(fig, tmp_path)
    column = "class" if name == "classes" else "cell_type"
    read = figures.read_table(tmp_path / f"{name}.csv")
    assert set(fig.table[column]) == set(read[column]) == set(ODD_NAMES)
    shown = [word for word, *_ in texts(fig)]
    for word in style.shorten_labels(
        sorted(ODD_NAMES), 55 if column == "class" or name == "programs" else DOUBLE / 3 - 8
    ):
        assert word in shown
    assert faults(fig) == []
    if name == "classes":
        shares = read.groupby(["Model", "class"])["share"].sum()
        np.testing.assert_allclose(shares, 1)
        assert len(shares) == 2 * len(ODD_NAMES)


@pytest.mark.parametrize("lost", ["NA", "nan", "None", "null", "01"])
def test_a_type_with_the_name_of_a_missing_value_keeps_its_share(lost, tmp_path):
    types = np.array(["T cell", lost, "1"], object)[np.arange(360) % 3]
    H = np.eye(3)[np.arange(360) % 3] + np.random.default_rng(0).gamma(1, 0.6, (360, 3))
    obs = pd.DataFrame({"cell_type": types, "donor_id": np.repeat(["A", "B", "C"], 120)})
    options = {"seeds": [42], "labels": ["cell_type"], "classifiers": ["knn"], "n_jobs": 1}
    long = classification.cross_validate({"AE_NMF": H}, obs, **options)
    counts = classification.confusion(long)
    results.write_table(classification.per_class(long), tmp_path / "by_class.csv")
    results.write_table(counts, tmp_path / "confusion.csv")
    tables = [figures.read_table(tmp_path / f"{name}.csv") for name in ("by_class", "confusion")]
    table = figures.classes(*tables).table
    assert set(table["class"]) == set(table["predicted"]) == {"T cell", lost, "1"}
    counts["share"] = counts["n_cells"] / 120
    both = table.merge(counts[["class", "predicted", "share"]], on=["class", "predicted"])
    np.testing.assert_allclose(both["share_x"], both["share_y"])
    assert both["share_y"].sum() == pytest.approx(3)


def test_donors_with_odd_names_are_all_drawn():
    table = pd.DataFrame({"donor_id": ODD_NAMES, "n_cells": range(1, 1 + len(ODD_NAMES)), "kept": True})
    fig = figures.donors(table, min_cells=5)
    assert set(fig.table["donor_id"]) == set(ODD_NAMES)
    assert set(style.shorten_labels(fig.table["donor_id"], 35)) <= {word for word, *_ in texts(fig)}
    assert faults(fig) == []


def test_names_that_look_equal_are_numbered_and_control_characters_are_blanks():
    assert style.shorten_labels(["a\nb", "a\tb", "a b ", "c\r", "\x07"], 40) == [
        *("a b (1)", "a b (2)", "a b (3)", "c", "(blank)")
    ]
    shown = style.shorten_labels(["x", "x ", "x (1)", "x (2)"], 40)
    assert len(set(shown)) == 4
    shown = style.shorten_labels(ODD_NAMES, 55)
    assert len(set(shown)) == len(ODD_NAMES)
    assert all(word.isprintable() for word in shown)


def test_a_type_named_as_cells_without_a_type_stays_apart(small):
    coords = small["umap"].copy()
    coords.obs["cell_type"] = coords.obs["cell_type"].cat.rename_categories({"type 0": "no type"})
    coords.obs.loc["cell3", "cell_type"] = np.nan
    table = figures.umap(coords).table.set_index("cell")["cell_type"]
    assert table["cell3"] == "(no type)"
    assert (table == "no type").sum() == (small["umap"].obs["cell_type"] == "type 0").sum()


OWN_COLUMNS = {"donor_column": "batch", "cell_type_column": "annotation_level_2"}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_name_the_columns_of_the_user(small, name):
    before, after = (" ".join(word for word, *_ in texts(draw(name, small, **own))) for own in ({}, OWN_COLUMNS))
    assert "batch" not in before and "annotation_level_2" not in before
    if name in ("clustering", "resolution", "classification"):
        assert "Donor (5 classes)" in before and "Cell type (8 classes)" in before
        assert "batch (5 classes)" in after and "annotation_level_2 (8 classes)" in after
    if name == "umap":
        assert "Donor (5)" in before and "batch (5)" in after and "annotation_level_2 (8)" in after
    for word in ("Donor", "donor", "cell_type", "Cell type", "cell type"):
        assert word not in after
    groups = dict.fromkeys(results.MODELS, "clusters")
    clause = "values of batch compared within clusters in training: CAE_NMF1"
    assert clause in caption(draw(name, small, groups=groups, **OWN_COLUMNS))
    long = {"donor_column": "the column\nof all donors " * 5, "cell_type_column": "annotation " * 20}
    assert faults(draw(name, small, groups=groups, **long)) == []


def test_conditioning_and_donors_name_the_columns_of_the_user():
    table = simulate_study()
    table["on"] = table["on"].replace({"condition": "donor_id+condition"})
    fig = figures.conditioning(table, run=RunInfo(k=12, **OWN_COLUMNS))
    words = [word for word, *_ in texts(fig)]
    assert "Conditioned on batch" in words and "Conditioned on batch+condition" in words
    assert "annotation_level_2 → higher is better" in words and "trained with annotation_level_2" in words
    assert "clusters, held-out values of batch (NMI)" in words
    assert not any("donor" in word or "cell_type" in word for word in words)
    assert faults(fig, 0) == []
    table["on"] = "a very long name of a column, " * 4
    assert (
        faults(figures.conditioning(table[: len(table) // 2], run=RunInfo(k=12, donor_column="column " * 9)), 0) == []
    )
    table = pd.DataFrame({"donor_id": ["a", "b"], "n_cells": [7, 5_000], "kept": [False, True]})
    text = caption(figures.donors(table, min_cells=100, column="batch"))
    assert text.startswith("1 of 2 values of batch kept") and "minimum cells per value of batch (100)" in text


@pytest.mark.parametrize("name", FIGURES)
def test_captions_report_the_sample_and_skipped_models(small, name):
    reason = "all cells are of one donor, 'D1', and the model compares donors. More cells help."
    skipped = {"CAE_NMF2": reason, "CAE_NMF1": reason, "AE_NMF": "no time"}
    fig = draw(name, small, n_cells=20_000, sampled_from=1_000_000, skipped=skipped)
    text = caption(fig)
    assert "; random sample of 20,000 of 1,000,000 cells; " in text
    assert "CAE_NMF1 and CAE_NMF2 skipped: all cells are of one donor, 'D1', and the model compares donors;" in text
    assert "AE_NMF skipped: no time" in text and "More cells" not in text
    assert faults(fig) == []
    assert "random sample" not in caption(drawn(name)) and "skipped" not in caption(drawn(name))


def unscored(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """Return the table with the empty scores that a label with one class has."""
    table = table.copy()
    one = table["label"] == label
    table.loc[one, ["ARI", "NMI", "F1", "AUROC", "Precision", "Accuracy", "Recall"]] = np.nan
    table.loc[one, "n_classes"] = 1
    return table[~one | ~table["fold"].gt(0)].assign(fold=table["fold"].mask(one, -1)) if "fold" in table else table


@pytest.mark.parametrize("name", ["clustering", "resolution", "classification"])
def test_a_label_with_one_class_is_left_out_and_reported(small, name, tmp_path):
    found = "one class of at least 10 cells" if name == "classification" else "one value"
    for label, other, title in (("donor_id", "cell_type", "Donor"), ("cell_type", "donor_id", "Cell type")):
        results.write_table(unscored(small[name], label), tmp_path / "table.csv")
        fig = draw(name, {**small, name: figures.read_table(tmp_path / "table.csv")})
        assert {key.split()[0] for key in axes(fig)} == {other}
        assert f"{label} has {found} and was not scored" in caption(fig)
        assert not any(word.startswith(title) for word, *_ in texts(fig))
        assert set(fig.table["label"]) == {other} and np.isfinite(fig.table["value"]).all()
        assert faults(fig) == []
    both = unscored(unscored(small[name], "donor_id"), "cell_type")
    fig = draw(name, {**small, name: both}, donor_column="batch")
    assert fig.axes == [] and f"cell_type has {found} and was not scored; batch has {found} and was" in caption(fig)
    assert faults(fig) == []
    figures.save(fig, tmp_path)
    assert {path.suffix for path in tmp_path.glob(f"{name}.*")} == {".csv", ".pdf", ".png"}
    holed = small[name].copy()
    holed.loc[holed["label"] == "donor_id", ["ARI", "F1"]] = np.nan  # several classes: a damaged table
    with pytest.raises(ValueError, match="is not a finite number"):
        draw(name, {**small, name: holed})


def test_classes_of_one_type_are_not_drawn_and_reported(small, tmp_path):
    by_class, other = small["by_class"], small["by_class"].assign(label="donor_id", F1=np.nan)
    confusion = small["confusion"].assign(label="donor_id")
    for table in (pd.concat([by_class.assign(F1=np.nan)[:1], other]), other[:0]):
        fig = draw("classes", {**small, "by_class": table, "confusion": confusion[: len(table)]})
        assert fig.axes == [] and "cell_type has fewer than two classes and was not scored" in caption(fig)
        figures.save(fig, tmp_path)
        assert len(figures.read_table(tmp_path / "classes.csv")) == 0
    confusion = pd.concat([small["confusion"], confusion])
    fig = draw("classes", {**small, "by_class": pd.concat([by_class, other]), "confusion": confusion})
    pd.testing.assert_frame_equal(fig.table, drawn("classes").table)  # empty scores of donors change nothing


def test_programs_of_one_type_are_drawn():
    H = np.random.default_rng(0).random((50, 4))
    fig = figures.programs(programs.usage_by_type({"AE_NMF": H, "Base_NMF": H}, pd.Series(["T cell"] * 50)))
    assert (fig.table["z_score"] == 0).all() and faults(fig) == []


def test_one_seed_has_no_error_bar(small):
    fig = draw("clustering", {**small, "clustering": small["clustering"].query("seed == 0")})
    assert "a single run: no s.d." in caption(fig) and "±" not in caption(fig)
    for ax in fig.axes:
        assert all(s[0][0] == s[1][0] for mark in marks(ax, LineCollection) for s in mark.get_segments())
    assert faults(fig) == []


def test_captions_come_from_the_tables(small):
    tables = {**small, "clustering": small["clustering"].query("seed < 7").assign(n_cells=1234, resolution=0.5)}
    assert caption(draw("clustering", tables)) == (
        "n = 1,234 cells; rank k = 12; Leiden seeds: 7, neighbors: 25, resolution: 0.5; points: seeds; "
        "bars: mean ± s.d. (ddof 1); † trained with cell_type."
    )
    text = caption(drawn("classification"))
    assert "n = 400 cells (max_cells = 4,000)" in text and "classes of at least 10 cells" in text
    assert "fits per model and classifier: 10 (seeds × folds: 2 × 5)" in text
    one = {**small, "classification": small["classification"].query("seed == 42").assign(max_cells=0)}
    text = caption(draw("classification", one))
    assert "5 (seeds × folds: 1 × 5)" in text and "max_cells" not in text
    for name in FIGURES[3:]:
        assert caption(drawn(name)).startswith("n = 400 cells; rank k = 12; ")


def test_a_dagger_marks_models_trained_with_cell_types(small):
    for name in ("clustering", "classification"):
        for label, ax in axes(drawn(name)).items():
            ticks = [text.get_text() for text in ax.get_yticklabels() if text.get_text()]
            if ticks:
                assert ticks == ["CAE_NMF1†" if label.startswith("cell_type") else "CAE_NMF1", *results.MODELS[1:]]
        assert caption(drawn(name)).endswith("† trained with cell_type.")
        unseen = {**small, name: small[name].assign(cell_type_in_training=False)}
        assert not any("†" in word for word, *_ in texts(draw(name, unseen)))
    for name in ("classes", "umap", "programs"):
        assert "CAE_NMF1†" in [word for word, *_ in texts(drawn(name))]
        assert "† trained with cell_type" in caption(drawn(name))
        assert not any("†" in word for word, *_ in texts(draw(name, small, used_cell_type={})))


@pytest.mark.parametrize("name", FIGURES)
def test_captions_report_clusters(small, name):
    groups = dict.fromkeys(results.MODELS, "none") | {"CAE_NMF2": "clusters"}
    clause = "donors compared within clusters in training: CAE_NMF2"
    assert "within clusters" not in caption(drawn(name))
    assert clause in caption(draw(name, small, groups=groups))
    if name in ("clustering", "classification", "resolution"):
        table = small[name].assign(groups_in_training=small[name]["Model"].map(groups))
        assert clause in caption(draw(name, {**small, name: table}))


def test_a_loss_curve_shows_each_value():
    fig = figures.loss_curve([3.0, 2.0, 1.5])
    np.testing.assert_array_equal(fig.axes[0].lines[0].get_xydata(), [[0, 3], [1, 2], [2, 1.5]])
    for history in ([3.0, 2.0, 1.5], [646.65], [1e-5, 3e-5], [12_345.7, 12_345.6], [0.0, 0.0]):
        assert faults(figures.loss_curve(history)) == []
    single = figures.loss_curve([646.65])
    assert [text.get_text() for text in single.axes[0].get_xticklabels()] == ["end"]  # of the training, not iteration 0
    assert caption(single) == "values: 1, the last 646.65."


def test_donors_are_sorted_and_dropped_ones_are_light():
    table = pd.DataFrame({"donor_id": ["a", "b", "c"], "n_cells": [700, 5_000, 5_001], "kept": [False, True, True]})
    fig = figures.donors(table, min_cells=5_000)
    assert [bar.get_width() for bar in fig.axes[0].patches] == [5_001, 5_000, 700]
    dark, *_, light = [to_hex(bar.get_facecolor()) for bar in fig.axes[0].patches]
    assert dark != light
    assert caption(fig).startswith("2 of 3 donors kept (dark), with 10,001 of 10,701 cells; dashed line: minimum")
    assert faults(fig) == []


def test_drawing_leaves_pyplot_and_the_users_style_unchanged(small):
    with mpl.rc_context({"font.size": 19, "axes.grid": True}):
        draw("training", small)
        assert mpl.rcParams["font.size"] == 19 and mpl.rcParams["axes.grid"] is True
    assert plt.get_fignums() == []


def test_a_notebook_shows_the_figure_in_our_style():
    with mpl.rc_context({"savefig.transparent": True, "savefig.bbox": "tight"}):
        png = drawn("training")._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert abs(int.from_bytes(png[16:20], "big") - 89 / 25.4 * 150) < 1  # pixels: 89 mm at 150 dpi


def test_importing_figures_does_not_import_scanpy():
    script = "import sys, aenmf_lib.figures; assert 'scanpy' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_failed_save_leaves_no_file(tmp_path):
    fig = drawn("training")
    with mock.patch.object(fig, "savefig", side_effect=OSError("no space left")), pytest.raises(OSError, match="space"):
        figures.save(fig, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"training.csv"}


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("clustering", "NMI"),
        ("classification", "AUROC"),
        ("programs", "mean_usage"),
        ("training", "relative_loss"),
    ],
)
def test_errors_report_the_file_and_the_fault(small, name, column, tmp_path):
    path, holed = tmp_path / f"{name}_long.csv", small[name].copy()
    holed.loc[4, column] = np.nan
    for table, match in (
        (small[name].drop(columns=column), f"has no column '{column}'"),
        (small[name].iloc[:0], "no rows"),
        (small[name].assign(Model="Other"), "contains the model 'Other'. Expected one of CAE_NMF1"),
        (holed, rf"'{column}' is not a finite number in 1 of {len(holed)} rows \(first: nan in row 5\)"),
    ):
        table.to_csv(path, index=False)
        with pytest.raises(ValueError, match=match) as error:
            getattr(figures, name)(figures.read_table(path))
        assert str(path) in str(error.value)


def test_invalid_tables_raise(small):
    with pytest.raises(
        ValueError, match=r"classification_long\.csv contains the classifier 'svm'. Expected one of log"
    ):
        figures.classification(small["classification"].assign(classifier="svm"))
    with pytest.raises(ValueError, match=r"the label 'tissue'\. Expected one of cell_type, donor_id"):
        figures.clustering(small["clustering"].assign(label="tissue"))
    with pytest.raises(ValueError, match=r"contains the cell_type_in_training 'no'\. Expected one of True, False"):
        figures.clustering(small["clustering"].assign(cell_type_in_training="no"))
    with pytest.raises(ValueError, match=r"'cell_type_in_training' is of type .*\. Expected True or False"):
        figures.clustering(small["clustering"].assign(cell_type_in_training="False"))
    with pytest.raises(ValueError, match=r"has 383 rows. Expected 384"):
        figures.programs(small["programs"].iloc[1:])
    for history, match in (
        ([], "loss_history has no rows"),
        ([1.0, np.nan], r"loss_history: 'loss' is not a finite number in 1 of 2 rows \(first: nan in row 2\)"),
        ([[1.0], [2.0]], r"loss_history has shape \(2, 1\)\. Expected \(n_iterations,\)"),
    ):
        with pytest.raises(ValueError, match=match):
            figures.loss_curve(history)
    with pytest.raises(ValueError, match="table of donors has no column 'kept'"):
        figures.donors(pd.DataFrame({"donor_id": ["a"], "n_cells": [1]}), min_cells=1)


def test_invalid_umap_coordinates_raise(small):
    with pytest.raises(ValueError, match=r"umap.h5ad has no column 'cell_type' \(it has donor_id\)"):
        figures.umap(AnnData(obs=small["umap"].obs[["donor_id"]], obsm=dict(small["umap"].obsm)))
    with pytest.raises(ValueError, match=r"obsm \[\]. Expected .*'X_umap_<Model>' for one of CAE_NMF1"):
        figures.umap(AnnData(obs=small["umap"].obs))
    coords = small["umap"].copy()
    coords.obsm["X_umap_AE_NMF"][7, 0] = np.nan
    with pytest.raises(ValueError, match=r"'AE_NMF_x' is not a finite number in 1 of 400 rows \(first: nan in row 8\)"):
        figures.umap(coords)
    coords.obsm["X_umap_AE_NMF"] = np.zeros((400, 3))
    with pytest.raises(ValueError, match=r"X_umap_AE_NMF'\] has shape \(400, 3\). Expected \(400, 2\)"):
        figures.umap(coords)
    coords = small["umap"].copy()
    coords.obs.loc["cell3", "donor_id"] = np.nan
    with pytest.raises(ValueError, match=r"is empty for 1 of 400 cells \(first: 'cell3'"):
        figures.umap(coords)


def test_cells_without_a_type_are_drawn_as_no_type(small):
    coords = small["umap"].copy()
    coords.obs.loc["cell3", "cell_type"] = np.nan
    assert figures.umap(coords).table.set_index("cell")["cell_type"]["cell3"] == "no type"


def test_missing_files_are_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv does not exist. Run the notebook that writes it"):
        figures.read_table(tmp_path / "nowhere.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match=r"empty\.csv is not a table"):
        figures.read_table(tmp_path / "empty.csv")


def test_shortened_names_fit_and_remain_different():
    shown = style.shorten_labels(LONG_NAMES, 40)
    assert len(set(shown)) == len(LONG_NAMES)
    assert all(style.text_width(name) <= 40 for name in shown)
    assert style.shorten_labels(["B cell", "T cell"], 40) == ["B cell", "T cell"]
    # The last two differ only in the middle, which is cut: numbers in their order make them different.
    assert [name[-4:] for name in shown[-2:]] == [" (1)", " (2)"]
