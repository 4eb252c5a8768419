"""Figures: what is drawn is in the csv, the same bytes again, every word on the page and none over another."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from aenmf_lib import programs, results
from aenmf_lib.figures import embeddings, layout, scores, tables, training
from aenmf_lib.figures.style import COLORS
from aenmf_lib.metrics.classifiers import CLASSIFIERS

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


def simulate(case: str) -> dict:
    """Draw tables in the shape that the benchmarks write them."""
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
        centres = rng.normal(0, 6, (n_types, 2))[obs["cell_type"].cat.codes]
        coords.obsm[f"X_umap_{model}"] = (centres + rng.normal(size=(n_cells, 2))).astype(np.float32)
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
        "k": k,
    }


def function(name: str):
    """Find what draws a figure."""
    return getattr(scores if hasattr(scores, name) else embeddings, name)


def inputs(name: str, tables: dict) -> tuple:
    """Find what it is drawn from."""
    return tuple(tables[table] for table in (("by_class", "confusion") if name == "classes" else (name,)))


def draw(name: str, tables: dict) -> Figure:
    """Draw as 07_figures does."""
    used = {"used_cell_type": {"CAE_NMF1": True, "AE_NMF": False}}
    more = {
        "clustering": {"k": tables["k"]},
        "classification": {"k": tables["k"]},
        "resolution": {"k": tables["k"]},
        "classes": {"k": tables["k"], **used},
        "umap": {"k": tables["k"], **used},
        "programs": used,
        "training": {"k": tables["k"], "n_cells": tables["umap"].n_obs},
    }
    return function(name)(*inputs(name, tables), **more[name])


def save_all(folder: str | Path, case: str = "small") -> None:
    """Save the figures of a case."""
    tables = simulate(case)
    for name in embeddings.NAMES:
        layout.save(draw(name, tables), f"{folder}/{name}", getattr(tables, name)(*inputs(name, tables)))


def axes(fig: Figure) -> dict:
    """Find axes by their label."""
    return {ax.get_label(): ax for ax in fig.axes}


def marks(ax, kind) -> list:
    """Find the artists of a kind in axes."""
    return [artist for artist in ax.collections if isinstance(artist, kind)]


def words(fig: Figure) -> list:
    """Give every text that is drawn and its box in pixels, at the resolution of the saved file."""
    seen, original = [], Text.draw

    def record(self, renderer):
        if self.get_visible() and self.get_text().strip():
            seen.append((self.get_text(), Text.get_window_extent(self, renderer)))
        return original(self, renderer)

    fig.set_dpi(300)
    with mock.patch.object(Text, "draw", record):
        FigureCanvasAgg(fig).draw()
    return seen


def over(a, b, apart: float = -1) -> bool:
    """Tell whether two boxes share more than a pixel of height and come closer than ``apart`` pixels sideways."""
    return max(a.x0, b.x0) - min(a.x1, b.x1) < apart and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


def faults(fig: Figure, apart: float = 8) -> list[str]:
    """List words off the page, within ``apart`` pixels sideways of other words, or over a panel."""
    texts = words(fig)
    panels = [ax.get_window_extent() for ax in fig.axes if ax.get_label() != "key"]
    found = [
        f"off the page: {word!r}"
        for word, b in texts
        if b.x0 < 0 or b.y0 < 0 or b.x1 > fig.bbox.x1 or b.y1 > fig.bbox.y1
    ]
    found += [
        f"over each other: {a!r}, {b!r}" for (a, x), (b, y) in itertools.combinations(texts, 2) if over(x, y, apart)
    ]
    return found + [f"over a panel: {word!r}" for word, box in texts if any(over(box, panel) for panel in panels)]


def caption(fig: Figure) -> str:
    """Read the caption back, its lines joined."""
    return " ".join(text.get_text() for text in fig.texts if text.get_fontsize() == layout.NOTE).replace("\u00a0", " ")


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


def test_another_process_on_another_day_writes_the_same_bytes(saved, tmp_path):
    environment = {**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "86400", "MPLBACKEND": "svg"}
    # A user's own look of matplotlib must not reach the files either.
    script = "import matplotlib as m; m.rcParams.update({'font.size': 20, 'axes.grid': True, 'savefig.dpi': 50})\n"
    script += f"import test_figures; test_figures.save_all({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], env=environment, check=True)
    expected = {f"{name}.{ending}" for name in embeddings.NAMES for ending in ("pdf", "png", "csv")}
    assert {path.name for path in saved.iterdir()} == expected
    for name in sorted(expected):
        assert (saved / name).read_bytes() == (tmp_path / name).read_bytes(), name
    assert not any(b"Date" in path.read_bytes() for path in saved.glob("*.pdf"))


def test_pdfs_embed_truetype_and_pngs_have_a_column_width_at_300_dpi(saved):
    for name in embeddings.NAMES:
        pdf = (saved / f"{name}.pdf").read_bytes()
        assert b"/FontFile2" in pdf and b"/Type3" not in pdf, name
        png = (saved / f"{name}.png").read_bytes()
        millimetres = int.from_bytes(png[16:20], "big") / 300 * 25.4
        assert min(abs(millimetres - width) for width in (89, 183)) < 0.1, name


@pytest.mark.parametrize("name", ["clustering", "classification"])
def test_scores_drawn_are_those_of_the_csv(small, points, name):
    table, panels = points(name), axes(draw(name, small))
    groups = table.groupby(["label", "metric"])
    assert {f"{label} {metric}" for label, metric in groups.groups} == set(panels) - {"key"}
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


def test_a_mean_is_that_of_the_published_table(small):
    row = small["classification"].query("Model == 'AE_NMF' and label == 'donor_id'")
    ax = axes(draw("classification", small))["donor_id F1"]
    places = [np.asarray(s)[0, 0] for m in marks(ax, LineCollection) for s in m.get_segments()]
    assert min(abs(place - row["F1"].mean()) for place in places) < 1e-12


@pytest.mark.parametrize("name", ["clustering", "classification"])
def test_a_changed_row_moves_its_point_and_no_other(small, name):
    metric = {"clustering": "ARI", "classification": "F1"}[name]
    changed = {**small, name: small[name].copy()}
    label = changed[name].loc[3, "label"]
    changed[name].loc[3, metric] += 0.0123
    before, after = axes(draw(name, small)), axes(draw(name, changed))

    def x(panels, key):
        return np.concatenate([mark.get_offsets()[:, 0] for mark in marks(panels[key], PathCollection)])

    for key in before:
        moved = np.abs(x(before, key) - x(after, key))
        if key == f"{label} {metric}":
            assert (moved > 0).sum() == 1 and moved.max() == pytest.approx(0.0123)
        else:
            assert not moved.any()


def test_programs_drawn_are_those_of_the_csv(small, points):
    table, panels = points("programs"), axes(draw("programs", small))
    for model, group in table.groupby("Model"):
        (mesh,) = marks(panels[model], QuadMesh)
        grid = group.pivot_table(index="cell_type", columns="position", values="z_score")
        np.testing.assert_array_equal(np.asarray(mesh.get_array()), grid.to_numpy())
        assert [text.get_text() for text in panels[model].get_xticklabels()] == [
            str(program) for program in group.drop_duplicates("position").sort_values("position")["program"]
        ]
        # By hand from the usages themselves: z over types, programs in the order of their peak.
        usage = (
            small["programs"]
            .query("Model == @model")
            .pivot_table(index="cell_type", columns="program", values="mean_usage")
        )
        z = (usage - usage.mean()) / usage.std(ddof=0)
        order = sorted(z, key=lambda p: (z.index.get_loc(z[p].idxmax()), -z[p].max()))
        np.testing.assert_allclose(grid.to_numpy(), z[order].to_numpy(), rtol=1e-9, atol=1e-12)


def test_the_number_of_cells_stands_beside_its_type(small):
    sizes = {name: 1_000 + i for i, name in enumerate(small["programs"]["cell_type"].unique())}
    table = small["programs"].assign(n_cells=small["programs"]["cell_type"].map(sizes))
    boxes = dict(words(embeddings.programs(table)))
    for name, n in sizes.items():
        type_, number = boxes[name], boxes[f"{n:,}"]
        assert abs((type_.y0 + type_.y1) - (number.y0 + number.y1)) / 2 < 0.2 * (type_.y1 - type_.y0)


def test_a_program_without_a_peak_is_flat_and_last():
    H = np.column_stack([np.full(6, 0.1), [1, 1, 1, 2, 2, 2], np.zeros(6)])
    table = tables.programs(programs.usage_by_type({"AE_NMF": H}, pd.Series(list("aaabbb"))))
    z = table.pivot_table(index="program", columns="cell_type", values="z_score")
    np.testing.assert_array_equal(z.to_numpy(), [[0, 0], [-1, 1], [0, 0]])
    assert table.drop_duplicates("program").set_index("program")["position"].to_dict() == {1: 0, 0: 1, 2: 2}


def test_maps_drawn_are_those_of_the_csv_and_a_label_has_one_color(small, points):
    table, panels = points("umap"), axes(draw("umap", small))
    assert sorted(table["cell"]) == sorted(small["umap"].obs_names)
    cells = small["umap"].obs_names.get_indexer(table["cell"])
    seen = {}
    for model, label in itertools.product(results.MODELS, tables.LABELS):
        (mark,) = marks(panels[f"{label} {model}"], PathCollection)
        xy = np.asarray(mark.get_offsets(), dtype=np.float32)
        np.testing.assert_array_equal(xy, table[[f"{model}_x", f"{model}_y"]].to_numpy(np.float32))
        np.testing.assert_array_equal(xy, small["umap"].obsm[f"X_umap_{model}"][cells])
        for name, color in zip(table[label], map(to_hex, mark.get_facecolors()), strict=True):
            assert seen.setdefault((label, name), color) == color
    for label in tables.LABELS:
        assert len({color for (of, _), color in seen.items() if of == label}) == table[label].nunique()


def test_a_map_of_many_cells_shows_a_sample_and_says_so(small, monkeypatch):
    whole = axes(draw("umap", small))["cell_type AE_NMF"]
    monkeypatch.setattr(tables, "MAX_POINTS", 3)  # fewer than there are types
    fig = draw("umap", small)
    assert "n = 400 cells, of which 3 drawn at random (seed 0) are shown" in caption(fig)
    assert len(tables.umap(small["umap"])) == 3
    part = axes(fig)["cell_type AE_NMF"]
    # The sample is the start of the same shuffle, in the same colors.
    for get in ("get_offsets", "get_facecolors"):
        first = getattr(marks(whole, PathCollection)[0], get)()[:3]
        np.testing.assert_array_equal(getattr(marks(part, PathCollection)[0], get)(), first)


def test_more_than_ten_thousand_marks_are_pixels():
    large, small = simulate("large"), simulate("small")
    for name, key, kind in (("umap", "donor_id AE_NMF", PathCollection), ("programs", "AE_NMF", QuadMesh)):
        for given, expected in ((large, True), (small, False)):
            (mark,) = marks(axes(draw(name, given))[key], kind)
            assert bool(mark.get_rasterized()) is expected


def test_lines_drawn_are_those_of_the_csv(small, points):
    table, ax = points("training"), axes(draw("training", small))["training"]
    assert [line.get_label() for line in ax.lines] == list(results.MODELS)
    for line in ax.lines:
        rows = table[table["Model"] == line.get_label()]
        np.testing.assert_array_equal(line.get_xydata(), rows[["iteration", "relative_loss"]].to_numpy())
        assert (line.get_marker() == "o") is (line.get_label() == "Base_NMF")
    ends = {text.get_text(): text.xy for text in ax.texts}
    for model, rows in table.groupby("Model"):
        last = rows.iloc[-1]
        assert ends[f"{model} {last['relative_loss']:.3f}"] == (last["iteration"], last["relative_loss"])


def test_the_curve_is_that_of_the_csv(small, points):
    panels, table = axes(draw("resolution", small)), points("resolution")
    for (label, metric), group in table.groupby(["label", "metric"]):
        for model, line in zip(results.MODELS, panels[f"{label} {metric}"].lines, strict=True):
            expected = group[group["Model"] == model].sort_values("resolution")[["resolution", "value"]]
            np.testing.assert_array_equal(line.get_xydata(), expected)
            assert to_hex(line.get_color()).upper() == COLORS[model]


def test_classes_are_those_of_the_csv(small, points):
    fig, table = draw("classes", small), points("classes")
    panels, names = axes(fig), sorted(table["class"].unique())
    f1 = table.drop_duplicates(["Model", "class"])
    for model, dots in zip(results.MODELS, panels["F1"].collections, strict=False):
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
    with pytest.raises(ValueError, match="hold 32 and 31 pairs of a model and a cell type, 31 in both"):
        drop = ~((small["confusion"]["class"] == "type 3") & (small["confusion"]["Model"] == "AE_NMF"))
        scores.classes(small["by_class"], small["confusion"][drop])


def test_another_forest_has_another_name(small):
    long = small["classification"].replace({"classifier": {"random_forest": "random_forest_intelex"}})
    fig = draw("classification", {**small, "classification": long})
    names = [text.get_text() for text in fig.findobj(Text)]
    assert "random forest of scikit-learn-intelex" in names and "random forest" not in names
    assert not faults(fig)


def test_a_model_has_one_color_in_all_figures(small):
    okabe_ito = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert tuple(COLORS) == results.MODELS
    assert set(COLORS.values()) < okabe_ito and len(set(COLORS.values())) == len(results.MODELS)
    lines = axes(draw("training", small))["training"].lines
    assert {line.get_label(): to_hex(line.get_color()).upper() for line in lines} == COLORS
    for name in ("clustering", "classification"):
        for label, ax in axes(draw(name, small)).items():
            if label == "key":
                continue
            for mark in (artist for artist in ax.collections):
                y = (
                    mark.get_offsets()[:, 1]
                    if isinstance(mark, PathCollection)
                    else np.vstack(mark.get_segments())[:, 1]
                )
                model = results.MODELS[round(float(np.mean(y)))]
                assert to_hex(
                    mark.get_edgecolor()[0] if isinstance(mark, LineCollection) else mark.get_facecolor()[0]
                ) == (to_hex(to_rgba(COLORS[model])))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", embeddings.NAMES)
def test_every_word_is_on_the_page_and_none_over_another(case, name):
    # Numbers on an axis side by side need the width of a digit between them to be read apart.
    apart = 20 if name in ("clustering", "classification") else 8
    assert faults(draw(name, simulate(case)), apart) == []


@pytest.mark.parametrize("models", [results.MODELS[:1], results.MODELS[1:3], results.MODELS[:3]])
@pytest.mark.parametrize("name", embeddings.NAMES)
def test_fewer_models_also_fit(small, name, models):
    part = dict(small)
    for key in ("clustering", "resolution", "classification", "by_class", "confusion", "programs", "training"):
        part[key] = small[key][small[key]["Model"].isin(models)]
    part["umap"] = AnnData(
        obs=small["umap"].obs, obsm={f"X_umap_{m}": small["umap"].obsm[f"X_umap_{m}"] for m in models}
    )
    fig = draw(name, part)
    assert faults(fig) == []
    shown = " ".join(word for word, _ in words(fig))
    assert {model for model in results.MODELS if re.search(rf"(?<!C){model}", shown)} == set(models)


def test_hostile_names_fit_too():
    rng = np.random.default_rng(0)
    names = [f"{'very ' * 25}long name of {i}, {'and ' * 20}so on" for i in range(30)] + ["a$b$", "ß—→", "x" * 200]
    obs = pd.DataFrame({"cell_type": pd.Categorical(names), "donor_id": pd.Categorical(names)}, index=names)
    coords = AnnData(obs=obs, obsm={"X_umap_AE_NMF": rng.normal(size=(33, 2))})
    assert faults(embeddings.umap(coords)) == []
    usage = programs.usage_by_type({"AE_NMF": rng.random((33, 5))}, obs["cell_type"])
    assert faults(embeddings.programs(usage)) == []
    table = pd.DataFrame({"donor_id": names, "n_cells": range(0, 3_300_000, 100_000), "kept": True})
    assert faults(embeddings.donors(table, min_cells=10)) == []


def test_one_seed_has_no_error_bar(small):
    one = {**small, "clustering": small["clustering"].query("seed == 0")}
    fig = draw("clustering", one)
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
    text = caption(draw("classification", small))
    assert "n = 400 cells (max_cells = 4,000)" in text and "fits a model and classifier: 10 (2 seeds × 5 folds)" in text
    assert "classes of at least 10 cells" in text
    one = {**small, "classification": small["classification"].query("seed == 42")}
    assert "5 (1 seed × 5 folds)" in caption(draw("classification", one))
    uncapped = {**small, "classification": small["classification"].assign(max_cells=0)}
    assert "max_cells" not in caption(draw("classification", uncapped))
    for name in ("resolution", "classes", "umap", "programs", "training"):
        assert caption(draw(name, small)).startswith("n = 400 cells; rank k = 12; ")


def test_the_dagger_marks_who_saw_the_cell_types(small):
    for name in ("clustering", "classification"):
        fig = draw(name, small)
        for label, ax in axes(fig).items():
            ticks = [text.get_text() for text in ax.get_yticklabels() if text.get_text()]
            if ticks and label != "key":
                assert ticks == ["CAE_NMF1†" if label.startswith("cell_type") else "CAE_NMF1", *results.MODELS[1:]]
        assert caption(fig).endswith("† trained with cell_type.")
        unseen = {**small, name: small[name].assign(cell_type_in_training=False)}
        assert not any("†" in word for word, _ in words(draw(name, unseen)))
    for name in ("classes", "umap", "programs"):
        marked = [word for word, _ in words(draw(name, small)) if "†" in word]
        assert marked[0] == "CAE_NMF1†" or marked[-1] == "CAE_NMF1†"
        assert "† trained with cell_type" in caption(draw(name, small))
        assert not any("†" in word for word, _ in words(function(name)(*inputs(name, small))))


def test_captions_tell_of_clusters(small):
    groups = dict.fromkeys(results.MODELS, "none")
    told = "donors compared within clusters in training: CAE_NMF2"
    for name in embeddings.NAMES:
        assert "within clusters" not in caption(draw(name, small))
        if name in ("clustering", "classification", "resolution"):
            table = small[name].assign(groups_in_training=small[name]["Model"].replace("CAE_NMF2", "clusters"))
            assert told in caption(draw(name, {**small, name: table}))
        else:
            given = {"groups": groups | {"CAE_NMF2": "clusters"}}
            assert told in caption(function(name)(*inputs(name, small), **given))


def test_loss_curve_and_donors():
    fig = training.loss_curve([3.0, 2.0, 1.5])
    np.testing.assert_array_equal(fig.axes[0].lines[0].get_xydata(), [[0, 3], [1, 2], [2, 1.5]])
    for history in ([3.0, 2.0, 1.5], [646.65], [1e-5, 3e-5], [12_345.7, 12_345.6], [0.0, 0.0]):
        assert faults(training.loss_curve(history)) == []
    single = training.loss_curve([646.65])
    assert [text.get_text() for text in single.axes[0].get_xticklabels()] == ["end"]  # of the training, not iteration 0
    assert caption(single) == "1 value, the last 646.65."
    table = pd.DataFrame({"donor_id": ["a", "b", "c"], "n_cells": [700, 5_000, 5_001], "kept": [False, True, True]})
    fig = embeddings.donors(table, min_cells=5_000)
    assert [bar.get_width() for bar in fig.axes[0].patches] == [5_001, 5_000, 700]
    dark, *_, light = [to_hex(bar.get_facecolor()) for bar in fig.axes[0].patches]
    assert dark != light
    assert caption(fig) == "2 of 3 donors kept (dark), with 10,001 of 10,701 cells."
    assert faults(fig) == []


def test_drawing_leaves_the_users_style_alone(small):
    with mpl.rc_context({"font.size": 19, "axes.grid": True}):
        draw("training", small)
        assert mpl.rcParams["font.size"] == 19 and mpl.rcParams["axes.grid"] is True


def test_a_notebook_shows_the_figure_in_our_style(small):
    with mpl.rc_context({"savefig.transparent": True, "savefig.bbox": "tight"}):
        png = draw("training", small)._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert abs(int.from_bytes(png[16:20], "big") - 89 / 25.4 * 150) < 1  # pixels: 89 mm at 150 dpi


def test_a_failed_save_leaves_no_file(small, tmp_path):
    fig = draw("training", small)
    with mock.patch.object(fig, "savefig", side_effect=OSError("no space left")), pytest.raises(OSError, match="space"):
        layout.save(fig, tmp_path / "training", small["training"])
    assert {path.name for path in tmp_path.iterdir()} == {"training.csv"}


def without(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Drop columns."""
    return table.drop(columns=list(columns))


@pytest.mark.parametrize("name", ["clustering", "classification", "programs", "training"])
def test_a_table_with_a_fault_is_refused_by_its_name(small, name, tmp_path):
    path = tmp_path / f"{name}_long.csv"
    column = {"clustering": "NMI", "classification": "AUROC", "programs": "mean_usage", "training": "relative_loss"}[
        name
    ]

    def refused(table: pd.DataFrame, words: str) -> None:
        table.to_csv(path, index=False)
        with pytest.raises(ValueError, match=words) as error:
            function(name)(tables.read_table(path))
        assert str(path) in str(error.value)

    refused(without(small[name], column), f"has no column '{column}'")
    refused(small[name].iloc[:0], "no rows")
    refused(small[name].assign(Model="Other"), "model 'Other': expected one of CAE_NMF1")
    holed = small[name].copy()
    holed.loc[4, column] = np.nan
    refused(holed, rf"'{column}' is no finite number in 1 of {len(holed)} rows \(first: nan in row 5\)")


def test_other_faults_are_refused_too(small, tmp_path):
    table = small["classification"]
    with pytest.raises(
        ValueError, match=r"classification_long\.csv holds the classifier 'svm': expected one of logistic"
    ):
        scores.classification(table.assign(classifier="svm"))
    with pytest.raises(ValueError, match="the label 'tissue': expected one of cell_type, donor_id"):
        scores.clustering(small["clustering"].assign(label="tissue"))
    with pytest.raises(ValueError, match="'cell_type_in_training' holds 'no': expected True or False"):
        scores.clustering(small["clustering"].assign(cell_type_in_training="no"))
    with pytest.raises(ValueError, match="has 383 rows: expected 384"):
        embeddings.programs(small["programs"].iloc[1:])
    with pytest.raises(ValueError, match=r"obs \['donor_id'\] .*expected cells with obs 'cell_type'"):
        embeddings.umap(AnnData(obs=small["umap"].obs[["donor_id"]], obsm=dict(small["umap"].obsm)))
    with pytest.raises(ValueError, match=r"obsm \[\]: expected .*'X_umap_<Model>' for one of CAE_NMF1"):
        embeddings.umap(AnnData(obs=small["umap"].obs))
    with pytest.raises(ValueError, match=r"X_umap_AE_NMF.* has shape \(400, 2\) and 1 values that are NaN"):
        coords = small["umap"].copy()
        coords.obsm["X_umap_AE_NMF"][7, 0] = np.nan
        embeddings.umap(coords)
    with pytest.raises(ValueError, match=r"is empty for 1 of 400 cells \(first: 'cell3'"):
        coords = small["umap"].copy()
        coords.obs.loc["cell3", "donor_id"] = np.nan
        embeddings.umap(coords)
    coords = small["umap"].copy()
    coords.obs.loc["cell3", "cell_type"] = np.nan
    assert tables.umap(coords).set_index("cell")["cell_type"]["cell3"] == "no type"
    for history in ([], [1.0, np.nan], [[1.0], [2.0]]):
        with pytest.raises(ValueError, match="expected one finite number an iteration"):
            training.loss_curve(history)
    with pytest.raises(ValueError, match="table of donors has no column 'kept'"):
        embeddings.donors(pd.DataFrame({"donor_id": ["a"], "n_cells": [1]}), min_cells=1)
    with pytest.raises(ValueError, match=r"x\.csv would have no rows"):
        layout.save(Figure(), tmp_path / "x", pd.DataFrame({"a": []}))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv does not exist: run 06_benchmarks"):
        tables.read_table(tmp_path / "nowhere.csv")
    with pytest.raises(
        FileNotFoundError, match=r"holds no results file of a model \(as base_nmf_k80\.h5ad\): train first"
    ):
        tables.model_files(tmp_path)
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match=r"empty\.csv is no table"):
        tables.read_table(tmp_path / "empty.csv")


def test_labels_move_apart_and_no_further_than_they_must():
    for seed in range(50):
        at = np.random.default_rng(seed).uniform(-5, 50, 6)
        y = layout.spread_labels(at, 3, 0, 45)
        order = np.argsort(at)
        assert (np.diff(y[order]) >= 3 - 1e-9).all() and y.min() >= 0 and y.max() <= 45
    np.testing.assert_array_equal(layout.spread_labels([30, 10, 20], 3, 0, 45), [30, 10, 20])


def test_short_names_stay_apart():
    shown = layout.shorten_labels(LONG_NAMES, 40)
    assert len(set(shown)) == len(LONG_NAMES)
    assert all(layout.breadth(name) <= 40 for name in shown)
    assert layout.shorten_labels(["B cell", "T cell"], 40) == ["B cell", "T cell"]
    # The last two differ only in the middle, which is cut: numbers in their order tell them apart.
    assert [name[-4:] for name in shown[-2:]] == [" (1)", " (2)"]
