"""The benchmark figures and table show the scores of their tables, marked as seeds and folds, in every layout."""

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from checks import EXTRA, LAYOUTS, axes, check_files, check_layout, marks, settings, simulate, texts
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex

from aenmf_lib import figures, results
from aenmf_lib.figures import style
from aenmf_lib.metrics import classification, clustering

TABLES = {
    "fig1_benchmark": ("clustering", "classification", "resolution"),
    "figS5_resolution": ("resolution",),
    "table1": ("clustering", "classification"),
}
PAIRS = {"clustering": "NMI", "classification": "F1"}


def draw(name: str, tables: dict, layout: dict | None = None, **run):
    """Draw a figure as notebook 07 does."""
    inputs = [tables[table] for table in TABLES[name]]
    return getattr(figures, name)(*inputs, run=replace(tables["run"], **run), settings=settings(**(layout or {})))


@pytest.fixture(scope="module")
def small() -> dict:
    return simulate("small")


@pytest.fixture(scope="module")
def fig1(small):
    return draw("fig1_benchmark", small)


def panel(fig, benchmark: str, label: str, metric: str):
    """Return the axes of some scores."""
    return axes(fig)[f"{benchmark} {label} {metric}"]


def offsets(ax, *, filled: bool) -> np.ndarray:
    """Return the x of the filled or the open points of a panel, in order."""
    chosen = [mark for mark in marks(ax, PathCollection) if (len(mark.get_facecolor()) > 0) is filled]
    return np.sort(np.concatenate([mark.get_offsets()[:, 0] for mark in chosen] or [np.empty(0)]))


def place(mark) -> tuple:
    """Return the color and the coordinates of a point or ring."""
    color = mark.get_edgecolor() if mark.get_label() == "ring" else mark.get_facecolor()
    return to_hex(color[0]).upper(), mark.get_offsets()[0]


def verticals(ax) -> set:
    """Return the x of the vertical lines of a panel, rounded."""
    segments = [np.asarray(s) for mark in marks(ax, LineCollection) for s in mark.get_segments()]
    return {s[0, 0].round(12) for s in segments if s[0, 0] == s[1, 0]}


def test_filled_points_are_seeds_open_points_are_folds_and_bars_are_means(small, fig1):
    for (label, model_scores), metric in zip(small["clustering"].groupby("label"), ["NMI", "NMI"], strict=True):
        ax = panel(fig1, "clustering", label, metric)
        np.testing.assert_allclose(offsets(ax, filled=True), np.sort(model_scores[metric]), atol=1e-15)
        assert len(offsets(ax, filled=False)) == 0
        assert verticals(ax) == set(model_scores.groupby("Model")[metric].mean().round(12))
    fits = small["classification"]
    for label, metric in (("cell_type", "F1"), ("donor_id", "AUROC")):
        own, ax = fits[fits["label"] == label], panel(fig1, "classification", label, metric)
        np.testing.assert_allclose(offsets(ax, filled=False), np.sort(own[metric]), atol=1e-15)
        of_seeds = own.groupby(["Model", "classifier", "seed"])[metric].mean()
        np.testing.assert_allclose(offsets(ax, filled=True), np.sort(of_seeds), atol=1e-12)
        of_classifiers = of_seeds.groupby(["Model", "classifier"]).mean()
        of_models = own.groupby("Model")[metric].mean()
        assert verticals(ax) == {*of_classifiers.round(12), *of_models.round(12)}


def test_rows_and_colors_are_those_of_the_models(small, fig1):
    ax = panel(fig1, "clustering", "cell_type", "ARI")
    names = [text.get_text() for text in panel(fig1, "clustering", "cell_type", "NMI").get_yticklabels()]
    assert names == ["Conditional AE-NMF 1†", "Conditional AE-NMF 2", "AE-NMF", "NMF", "Untied AE-NMF"]
    scores = small["clustering"].query("label == 'cell_type'")
    for mark in marks(ax, PathCollection):
        rows = set(mark.get_offsets()[:, 1].round().astype(int))
        assert len(rows) == 1
        model = results.MODELS[rows.pop()]
        assert to_hex(mark.get_facecolor()[0]).upper() == style.color_of(model)
        expected = np.sort(scores["ARI"][scores["Model"] == model])
        np.testing.assert_allclose(np.sort(mark.get_offsets()[:, 0]), expected)


def test_a_changed_row_moves_its_point_and_no_other_panel(small, fig1):
    changed = {**small, "classification": small["classification"].copy()}
    changed["classification"].loc[3, "F1"] += 0.0123
    after = draw("fig1_benchmark", changed)
    label = changed["classification"].loc[3, "label"]
    for key, ax in axes(fig1).items():
        if key.startswith("trade-off"):
            continue
        moved = offsets(ax, filled=False) - offsets(axes(after)[key], filled=False)
        assert moved.any() == (key == f"classification {label} F1")


def test_the_trade_off_shows_the_mean_scores_the_best_corner_and_other_resolutions(small, fig1):
    for benchmark, metric in PAIRS.items():
        ax = axes(fig1)[f"trade-off {benchmark}"]
        means = small[benchmark].groupby(["Model", "label"])[metric].mean()
        points = dict(map(place, marks(ax, PathCollection)))
        assert len(points) == len(results.MODELS)
        for model in results.MODELS:
            expected = [means[model, "donor_id"], means[model, "cell_type"]]
            np.testing.assert_allclose(points[style.color_of(model)], expected)
        (low, high), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        assert low < high and bottom < top  # donors to the right, types upward: the best corner is the upper left
        best = next(text for text in ax.texts if text.get_text() == "best")
        assert tuple(best.xy) == (0, 1) and best.xycoords == "axes fraction"
        names = [
            text for text in ax.texts if text.get_text() in style.model_names(results.MODELS, small["run"]).values()
        ]
        assert len(names) == len(results.MODELS)
        for text in names:
            assert text.xy == pytest.approx(points[to_hex(text.get_color()).upper()])
        assert "lower is better" in ax.get_xlabel() and "higher is better" in ax.get_ylabel()
    ax, curve = axes(fig1)["trade-off clustering"], small["resolution"]
    for model in results.MODELS:
        own = curve[curve["Model"] == model].pivot_table("NMI", "resolution", "label")[["donor_id", "cell_type"]]
        lines = [line for line in ax.lines if to_hex(line.get_color()).upper() == style.color_of(model)]
        drawn = [line.get_xydata() for line in lines if len(line.get_xydata()) == len(own)]
        np.testing.assert_allclose(drawn, [own.to_numpy()])


def test_a_point_that_would_cover_another_one_is_a_ring_around_it(small, fig1):
    same = {**small, "clustering": small["clustering"].copy()}
    table = same["clustering"].set_index("Model")
    for column in ("ARI", "NMI"):
        table.loc["CAE_NMF2", column] = table.loc["CAE_NMF1", column].to_numpy()
    fig = draw("fig1_benchmark", {**same, "clustering": table.reset_index()})
    found = {place(mark)[0]: mark for mark in marks(axes(fig)["trade-off clustering"], PathCollection)}
    first, second = (found[style.color_of(model)] for model in ("CAE_NMF1", "CAE_NMF2"))
    np.testing.assert_allclose(first.get_offsets(), second.get_offsets())
    assert len(first.get_facecolor()) == 1 and len(second.get_facecolor()) == 0
    hole = np.sqrt(second.get_sizes()[0]) - second.get_linewidth()[0]
    assert hole > np.sqrt(first.get_sizes()[0])  # points
    assert "A ring is a large point that would cover another one." in fig.caption


def test_captions_say_what_other_embeddings_are():
    for name in ("fig1_benchmark", "table1"):
        text = draw(name, simulate("small", ("PCA", "Harmony", *EXTRA[1:]))).caption
        assert (
            "Other embeddings: PCA of the matrix of the models, with 12 components; Harmony, PCA corrected for the "
            "donor; my embedding, read from a file." in text
        )
        assert "Other embeddings" not in draw(name, simulate("small")).caption


@pytest.mark.parametrize("name", ["fig1_benchmark", "figS5_resolution"])
def test_a_figure_of_six_embeddings_at_120_mm_and_9_points_fits_on_a_page(name):
    tables = simulate("small", ("Harmony",))
    fig = draw(name, tables, {"width": 120 / 183, "font": 9 / 7})
    assert fig.get_figheight() * 25.4 <= 247 and check_layout(fig) == []
    if name == "fig1_benchmark":
        names = [text.get_text() for text in panel(fig, "clustering", "cell_type", "NMI").get_yticklabels()]
        assert names[:2] == ["Conditional\nAE-NMF 1†", "Conditional\nAE-NMF 2"]  # 1 stays with its word


def test_the_key_and_the_caption_have_the_same_words_for_the_lines(fig1):
    words = {word for word, *_ in texts(fig1)}
    assert {"mean over seeds (thick line)", "mean of all fits (thin line)"} <= words
    assert "bar" not in fig1.caption


def test_figs5_explains_its_panels_and_the_number_of_seeds(small):
    text = draw("figS5_resolution", small).caption
    assert "a, b, Agreement with cell type. c, Number of clusters; dotted" in text and "d, e, Agreement with" in text
    assert "Lines show one Leiden seed (n = 1 here), with 25 neighbors." in text
    more = pd.concat([small["resolution"], small["resolution"].assign(seed=1)])
    assert (
        "Lines show the mean over the Leiden seeds (n = 2)"
        in draw("figS5_resolution", {**small, "resolution": more}).caption
    )


def test_table_contains_each_point(small, fig1):
    for benchmark, metrics in (("clustering", ["NMI", "ARI"]), ("classification", ["F1", "AUROC"])):
        own = fig1.table[fig1.table["benchmark"] == benchmark]
        assert len(own) == len(metrics) * len(small[benchmark])
        np.testing.assert_allclose(np.sort(own["value"]), np.sort(small[benchmark][metrics].to_numpy().ravel()))
    own = fig1.table[fig1.table["benchmark"] == "classification"]
    of = own[(own["Model"] == "AE_NMF") & (own["label"] == "donor_id") & (own["metric"] == "F1")]
    rows = small["classification"].query("Model == 'AE_NMF' and label == 'donor_id'")
    assert set(of["mean_all"].round(12)) == {round(rows["F1"].mean(), 12)}  # the number of the published table
    assert set(of["mean"].round(12)) == set(rows.groupby("classifier")["F1"].mean().round(12))


def test_axes_that_do_not_start_at_0_are_marked(small, fig1):
    for ax in fig1.axes:
        if not ax.get_visible() or not ax.get_label():
            continue
        strokes = [line for line in ax.lines if isinstance(line.get_marker(), list | tuple | np.ndarray)]
        low, high = ax.get_xlim()
        expected = 2 * (not low <= 0 <= high)
        if ax.get_label().startswith("trade-off"):
            bottom, top = ax.get_ylim()
            expected += 2 * (not bottom <= 0 <= top)
        assert len(strokes) == expected, ax.get_label()
    assert "Axes that are marked with two strokes do not start at 0" in fig1.caption


def test_figs5_lines_equal_the_curve(small):
    fig = draw("figS5_resolution", small)
    for label, metric in (("cell_type", "NMI"), ("donor_id", "ARI")):
        ax, own = axes(fig)[f"{label} {metric}"], small["resolution"].query("label == @label")
        for model, line in zip(results.MODELS, ax.lines, strict=False):
            expected = own[own["Model"] == model].sort_values("resolution")[["resolution", metric]]
            np.testing.assert_array_equal(line.get_xydata(), expected)
            assert to_hex(line.get_color()).upper() == style.color_of(model)
    ax = axes(fig)["clusters"]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0.2, 2], [0.8, 8], [1.6, 16]])
    dotted = {line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"}
    assert dotted == {8, 5}  # the numbers of cell types and donors


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["fig1_benchmark", "figS5_resolution"])
def test_no_text_is_cut_or_over_other_text(name, layout):
    assert check_layout(draw(name, simulate("large", EXTRA), LAYOUTS[layout])) == []


def test_other_embeddings_are_drawn_in_neutral_colors_after_the_models():
    tables = simulate("small", EXTRA)
    ax = panel(draw("fig1_benchmark", tables), "clustering", "cell_type", "NMI")
    assert [text.get_text() for text in ax.get_yticklabels()][len(results.MODELS) :] == list(EXTRA)
    for mark in marks(ax, PathCollection)[len(results.MODELS) :]:
        red, green, blue = mark.get_facecolor()[0][:3]
        assert max(red, green, blue) - min(red, green, blue) < 0.25


def test_missing_models_are_left_out(small):
    models = results.MODELS[1:3]
    part = {**small, **{key: small[key][small[key]["Model"].isin(models)] for key in ("clustering", "classification")}}
    part["resolution"] = small["resolution"][small["resolution"]["Model"].isin(models)]
    run = {"used_cell_type": {model: model == "CAE_NMF1" for model in models}}
    for name in ("fig1_benchmark", "figS5_resolution"):
        fig = draw(name, part, **run)
        assert check_layout(fig) == []
        shown = {word.rstrip("†") for word, *_ in texts(fig)}
        assert {model for model in results.MODELS if style.name_of(model) in shown} == set(models)
        assert " not part of this run" in fig.caption
    assert len(draw("table1", part, **run).table) == 2 * len(models)


def test_names_and_columns_of_the_user_are_shown_and_fit(small):
    long = {"donor_column": "the column\nof all donors " * 5, "cell_type_column": "annotation " * 20}
    for name in ("fig1_benchmark", "figS5_resolution"):
        assert check_layout(draw(name, small, **long)) == []
        words = " ".join(w for w, *_ in texts(draw(name, small, donor_column="batch", cell_type_column="level_2")))
        assert "batch" in words and "level_2" in words and "donor" not in words and "cell type" not in words
    names = {"Base_NMF": {"name": "a$b$ <&> " + "very " * 30 + "long", "color": "#123456"}}
    fig = draw("fig1_benchmark", small, {"models": {**figures.read_settings().models, **names}})
    assert check_layout(fig) == [] and any(word.startswith("a$b$ <&>") for word, *_ in texts(fig))
    assert "#123456" in {place(mark)[0] for mark in marks(axes(fig)["trade-off clustering"], PathCollection)}


def unscored(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """Return the table with the empty scores that a label with one class has."""
    table, one = table.copy(), table["label"] == label
    table.loc[one, ["ARI", "NMI", "F1", "AUROC", "Precision", "Accuracy", "Recall"]] = np.nan
    table.loc[one, "n_classes"] = 1
    return table[~one | ~table["fold"].gt(0)].assign(fold=table["fold"].mask(one, -1)) if "fold" in table else table


@pytest.mark.parametrize(("label", "other"), [("donor_id", "cell_type"), ("cell_type", "donor_id")])
def test_a_label_with_one_class_is_left_out_and_reported(small, label, other, tmp_path):
    part = dict(small)
    for table in TABLES["fig1_benchmark"]:
        results.write_table(unscored(small[table], label), tmp_path / f"{table}.csv")
        part[table] = figures.read_table(tmp_path / f"{table}.csv")
    fig = draw("fig1_benchmark", part)
    assert {key.split()[1] for key in axes(fig) if key} == {other}  # and no trade-off
    assert f"{label} has one value and was not scored" in fig.caption
    assert f"{label} has one class of at least 10 cells and was not scored" in fig.caption
    assert check_layout(fig) == [] and np.isfinite(fig.table["value"]).all()
    fig = draw("figS5_resolution", part)
    assert {key.split()[0] for key in axes(fig)} - {""} == {other, "clusters"} and check_layout(fig) == []
    table = draw("table1", part)
    assert set(table.table["label"]) == {other} and f"{label} has one value" in table.caption


def test_no_label_with_two_classes_gives_the_reason(small):
    part = {key: unscored(unscored(small[key], "donor_id"), "cell_type") for key in TABLES["fig1_benchmark"]}
    for name in TABLES:
        fig = draw(name, {**small, **part})
        assert "cell_type has one value and was not scored" in fig.caption
        if name != "table1":
            assert "Not drawn" in fig.caption and check_layout(fig) == []
    assert draw("table1", {**small, **part}).table.empty


def test_one_seed_and_one_resolution_are_drawn(small):
    one = {**small, "clustering": small["clustering"].query("seed == 0")}
    one["classification"] = small["classification"].query("seed == 42 and fold == 0")
    one["resolution"] = small["resolution"].query("resolution == 0.8")
    for name in ("fig1_benchmark", "figS5_resolution"):
        assert check_layout(draw(name, one)) == []
    table = draw("table1", one).table
    assert table["NMI_sd"].isna().all() and (table["n_fits"] == 3).all()
    assert "| Untied AE-NMF | **0.879** | **0.784** | 0.689 ± " in draw("table1", one).texts["md"]


def test_captions_report_the_data_and_the_run(small, fig1):
    text = fig1.caption
    for words in (
        "n = 400 cells (400 in the classification), rank k = 12",
        "Each model was fit once: the points show the spread of Leiden seeds and of folds, not of repeated fits",
        "25 neighbors, resolution 0.8",
        "Leiden seeds (n = 10)",
        "logistic regression, k nearest neighbors and random forest",
        "classes of at least 10 cells",
        "folds (5 per seed, of the same cells); filled points show seeds (n = 2)",
        "small points that are joined by a line show one seed at resolutions 0.2 to 1.6, of which the open point is",
        "thick lines show the mean over the seeds of a classifier; thin lines show the mean of all fits",
        "† marks models that were trained with cell types.",
    ):
        assert words in text, words
    reason = "all cells are of one donor, 'D1', and the model compares donors. More cells help."
    for name in TABLES:
        text = draw(name, small, sampled_from=10**6, skipped={"CAE_NMF2": reason}).caption
        assert "random sample of 400 of 1,000,000 cells" in text
        assert (
            "Conditional AE-NMF 2 was skipped: all cells are of one donor, 'D1', and the model compares donors." in text
        )
    intelex = small["classification"].replace({"classifier": {"random_forest": "random_forest_intelex"}})
    assert "random forest of scikit-learn-intelex" in draw("table1", {**small, "classification": intelex}).caption


def test_a_dagger_marks_models_that_the_tables_say_were_trained_with_cell_types(small):
    unknown = draw("fig1_benchmark", small, used_cell_type={})
    assert "Conditional AE-NMF 1†" in [word for word, *_ in texts(unknown)]
    blind = {key: small[key].assign(cell_type_in_training=False) for key in TABLES["fig1_benchmark"]}
    for name in ("fig1_benchmark", "figS5_resolution"):
        fig = draw(name, {**small, **blind}, used_cell_type={})
        assert "†" not in fig.caption and not any("†" in word for word, *_ in texts(fig))


def test_table1_contains_the_published_numbers(small):
    table = draw("table1", small).table
    for label in ("cell_type", "donor_id"):
        own = table[table["label"] == label].set_index("Model")
        published = clustering.summarize(small["clustering"], label).set_index("Model")
        for metric in ("ARI", "NMI"):
            np.testing.assert_allclose(own[metric], published.loc[own.index, metric])
            np.testing.assert_allclose(own[f"{metric}_sd"], published.loc[own.index, f"{metric} Std"])
        published = classification.summarize(small["classification"], label).set_index("Model")
        for metric in ("F1", "AUROC", "Accuracy"):
            np.testing.assert_allclose(own[metric], published.loc[own.index, f"MeanFold{metric}"])
            np.testing.assert_allclose(own[f"{metric}_sd"], published.loc[own.index, f"{metric}_std"])


def test_the_best_score_is_bold_and_equal_scores_are_not(small):
    scores = small["clustering"].copy()
    scores["NMI"] = scores["Model"].map(dict(zip(results.MODELS, (0.5, 0.9, 0.90049, 0.1, 0.2), strict=True)))
    scores["ARI"] = 0.25
    text = draw("table1", {**small, "clustering": scores}).texts
    types, donors = text["md"].split("**Donor")
    assert "| AE-NMF | **0.900** ± 0.000 | 0.250 ± 0.000 |" in types  # equal as printed: both are best
    assert "| Conditional AE-NMF 2 | **0.900** ± 0.000 |" in types
    assert "| NMF | **0.100** ± 0.000 | 0.250" in donors and "**0.900**" not in donors
    assert "NMF & \\textbf{0.100} $\\pm$ 0.000 & 0.250 $\\pm$ 0.000" in text["tex"]


def test_table1_is_valid_markdown_and_latex_with_odd_names(tmp_path):
    odd = r"a_b|c $x$ & 5% \ {~^}# <*`"
    tables = simulate("small", ("PCA", odd))
    table = draw("table1", tables)
    figures.save(table, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"table1.{end}" for end in ("csv", "md", "tex", "txt")}
    markdown = (tmp_path / "table1.md").read_text().split("\n\n")[0].splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in markdown} == {7}
    rows = [line.split(" | ")[0] for line in markdown]
    assert rows.count("| *Other embeddings*") == 2 and rows.index("| PCA") > rows.index("| *Other embeddings*")
    tex = (tmp_path / "table1.tex").read_text()
    body = [line for line in tex.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
    assert len(body) == 1 + 2 * 7 and {len(re.findall(r"(?<!\\)&", line)) for line in body} == {5}
    bare = re.sub(r"\\[{}]", "", tex)
    assert bare.count("{") == bare.count("}") and tex.count(r"\begin{") == tex.count(r"\end{") == 2
    name = r"a\_b|c \$x\$ \& 5\% \textbackslash{} \{\textasciitilde{}\textasciicircum{}\}\# \textless{}*`"
    assert f"\n{name} & " in tex
    assert all(ord(character) < 128 for character in tex)
    written = next(csv.DictReader(io.StringIO((tmp_path / "table1.csv").read_text())))
    assert written["Model"] == "CAE_NMF1" and float(written["NMI"]) == table.table["NMI"].iloc[0]
    assert (tmp_path / "table1.txt").read_text().strip() == table.caption
    assert table._repr_markdown_() == table.texts["md"]


def test_files_have_the_same_bytes_twice(small, fig1, tmp_path):
    check_files(fig1, tmp_path)
    for part in ("third", "fourth"):
        figures.save(draw("fig1_benchmark", small), tmp_path / part)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "third" / path.name).read_bytes()


@pytest.mark.parametrize("name", TABLES)
def test_errors_report_the_file_and_the_fault(small, name, tmp_path):
    key = TABLES[name][-1]
    column = {"resolution": "NMI", "classification": "AUROC"}[key]
    holed = small[key].copy()
    holed.loc[4, column] = np.nan
    for table, match in (
        (small[key].drop(columns=column), f"has no column '{column}'"),
        (small[key].iloc[:0], "no rows"),
        (small[key].assign(label="tissue"), r"the label 'tissue'\. Expected one of cell_type, donor_id"),
        (small[key].assign(n_cells=401), "401 cells, but this run has 400"),
        (holed, rf"'{column}' is not a finite number in 1 of {len(holed)} rows \(first: nan in row 5\)"),
    ):
        path = tmp_path / f"{key}_long.csv"
        table.to_csv(path, index=False)
        with pytest.raises(ValueError, match=match) as error:
            draw(name, {**small, key: figures.read_table(path)})
        assert str(path) in str(error.value)
    other = small["run"].used_cell_type.keys() - {"AE_NMF"}
    with pytest.raises(ValueError, match="contains AE_NMF, which is not among the models of this run"):
        draw(name, small, used_cell_type=dict.fromkeys(other, False))


def test_unknown_classifiers_and_flags_are_refused(small):
    fits = small["classification"]
    with pytest.raises(ValueError, match=r"contains the classifier 'svm'\. Expected one of log"):
        draw("fig1_benchmark", {**small, "classification": fits.assign(classifier="svm")})
    with pytest.raises(ValueError, match=r"'cell_type_in_training' is of type .*\. Expected True or False"):
        draw("table1", {**small, "classification": fits.assign(cell_type_in_training="False")})
