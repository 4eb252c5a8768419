"""The figures of training, of the choice of the rank, and of other solvers: they draw what is in the csv."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from checks import LAYOUTS, axes, check_files, check_layout, settings, simulate, texts
from matplotlib.colors import to_hex

from aenmf_lib import figures, results
from aenmf_lib.figures import style
from aenmf_lib.results import RunInfo

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def ranks(**columns) -> pd.DataFrame:
    """Return a table in the shape of ``programs.rank_table``."""
    k = np.array([5, 10, 20, 40, 80, 160, 256])
    shares = {"error": 0.8, "error_cells": 0.8, "error_donors": 0.82, "error_genes": 0.85}
    table = pd.DataFrame({"k": k} | {name: start - k / 2000 for name, start in shares.items()})
    for i, name in enumerate(("starts_mean", "starts_median", "halves_mean", "halves_median")):
        table[name] = 0.95 - 0.02 * i - k / 1000
    more = {"dead": [0] * 6 + [3], "seconds": k / 2, "seconds_more": k * 2.5, "cells": 3165, "cells_out": 792}
    return table.assign(**more, donors=4, donors_out=1, starts=2, held_out=0.2, note=np.nan, **columns)


# ---- training
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_draws_the_csv_and_names_each_line_with_its_last_value(layout):
    tables = simulate("small")
    fig = figures.figS1_training(tables["training"], tables["run"], settings=settings(**LAYOUTS[layout]))
    assert check_layout(fig) == []
    lines = [line for line in axes(fig)["training"].lines if line.get_label() in results.MODELS]
    assert [line.get_label() for line in lines] == list(results.MODELS)
    words = [" ".join(word.split()) for word, *_ in texts(fig)]
    for line in lines:
        rows = fig.table[fig.table["Model"] == line.get_label()]
        np.testing.assert_array_equal(line.get_xydata(), rows[["iteration", "relative_loss"]].to_numpy())
        assert (line.get_marker() == "o") is (line.get_label() == "Base_NMF")
        assert to_hex(line.get_color()) == to_hex(style.color_of(line.get_label()))
        last = f"{rows['relative_loss'].iloc[-1]:.3f}"
        assert any(word.endswith(last) and word.startswith(style.name_of(line.get_label())) for word in words)
    assert "Only the last value of NMF is known (marker)." in fig.caption
    assert "n = 400 cells, rank k = 12" in fig.caption


@pytest.mark.parametrize(("font", "width"), [(2, 0.5), (1, 0.34), (12 / 7, 0.5)])
def test_training_in_a_narrow_figure_names_the_lines_above_the_panel(font, width):
    tables = simulate("small")
    fig = figures.figS1_training(tables["training"], tables["run"], settings=settings(font=font, width=width))
    assert check_layout(fig) == []
    (ax,) = fig.axes
    assert len(fig.legends[0].get_texts()) == 5 and ax.bbox.width > 0.4 * fig.bbox.width
    assert check_layout(figures.loss_curve([3, 2, 1.5], settings=settings(font=font, width=width))) == []


def test_training_of_fewer_models_or_of_another_run():
    tables = simulate("small")
    history = tables["training"].query("Model == 'AE_NMF'")
    fig = figures.figS1_training(history, RunInfo(12, 400, {"AE_NMF": False}))
    assert "Conditional AE-NMF 1, Conditional AE-NMF 2 and NMF were not part of this run." in fig.caption
    assert check_layout(fig) == []
    with pytest.raises(ValueError, match="training history contains Base_NMF, which is not among the models of this"):
        figures.figS1_training(tables["training"], RunInfo(12, 400, {"AE_NMF": False}))
    with pytest.raises(ValueError, match="'relative_loss' is not a finite number in 1 of"):
        figures.figS1_training(
            history.assign(relative_loss=history["relative_loss"].replace(history.iloc[3, 3], np.nan))
        )


def test_names_of_lines_with_the_same_end_do_not_overlap():
    tables = simulate("small")
    history = tables["training"].assign(relative_loss=0.5)
    for layout in LAYOUTS.values():
        assert check_layout(figures.figS1_training(history, settings=settings(**layout))) == []


def test_a_loss_curve_shows_each_value():
    fig = figures.loss_curve([3.0, 2.0, 1.5])
    np.testing.assert_array_equal(fig.axes[0].lines[0].get_xydata(), [[0, 3], [1, 2], [2, 1.5]])
    for history in ([3.0, 2.0, 1.5], [646.65], [1e-5, 3e-5], [12_345.7, 12_345.6], [0.0, 0.0]):
        for layout in LAYOUTS.values():
            assert check_layout(figures.loss_curve(history, settings=settings(**layout))) == []
    single = figures.loss_curve([646.65])
    assert [text.get_text() for text in single.axes[0].get_xticklabels()] == ["end"]  # of the training, not iteration 0
    assert "1 values, the last 646.65" in single.caption
    with pytest.raises(ValueError, match=r"loss_history has shape \(1, 2\)"):
        figures.loss_curve([[1.0, 2.0]])


# ---- rank
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rank_draws_the_columns_that_exist(layout, tmp_path):
    with warnings.catch_warnings(action="error"):
        fig = figures.figS2_rank(table := ranks(), settings=settings(**LAYOUTS[layout]))
    assert check_layout(fig) == []
    panels = {ax.get_label(): [line for line in ax.lines if len(line.get_xdata()) > 1] for ax in fig.axes}
    assert [len(lines) for lines in panels.values()] == [4, 4, 1, 2]
    np.testing.assert_array_equal(panels["relative error"][3].get_ydata(), table["error_genes"])
    np.testing.assert_array_equal(panels["seconds"][1].get_ydata(), table["seconds_more"])
    one = {"error_donors": np.nan, "halves_mean": np.nan, "halves_median": np.nan, "note": "one donor: no halves"}
    alone = table.assign(**one)
    alone.to_csv(tmp_path / "rank.csv", index=False)
    fig = figures.figS2_rank(figures.read_table(tmp_path / "rank.csv"), settings=settings(**LAYOUTS[layout]))
    assert [sum(len(line.get_xdata()) > 1 for line in ax.lines) for ax in fig.axes] == [3, 2, 1, 2]
    assert "No halves, because there is one donor." in fig.caption
    fig = figures.figS2_rank(alone.assign(starts_mean=np.nan, starts_median=np.nan))  # a panel without lines: left out
    assert [ax.get_label() for ax in fig.axes] == ["relative error", "empty programs", "seconds"]
    assert check_layout(fig) == []


def test_rank_marks_axes_that_do_not_start_at_0_and_ticks_whole_programs():
    panels = axes(figures.figS2_rank(ranks().assign(dead=[0] * 6 + [1])))
    marked = {name for name, ax in panels.items() if any(len(line.get_xdata()) == 1 for line in ax.lines)}
    assert marked == {"relative error", "cosine of matched programs"}
    low, high = panels["empty programs"].get_ylim()
    ticks = [tick for tick in panels["empty programs"].get_yticks() if low < tick < high]
    assert ticks == [0, 1]


def test_rank_caption_explains_each_panel_in_sentences():
    text = figures.figS2_rank(ranks()).caption
    for words in (
        "a, Relative errors ‖X − X Wᵀ W‖ / ‖X‖ of the training cells, 792 held-out cells of the same donors and 1 "
        "held-out donor. For",
        "b, Cosines of programs that were matched between 2 random starts and between fits to halves of the donors.",
        "c, Number of empty programs: those with ",
        "d, Time of the first start, and of the other starts",
    ):
        assert words in text, words
    none = dict.fromkeys(["starts_mean", "starts_median", "halves_mean", "halves_median", "error_donors"], np.nan)
    note = "one donor: no held-out donors and no halves of the donors; one start: no comparison of starts"
    text = figures.figS2_rank(ranks().assign(**none, note=note, starts=1, donors=1, donors_out=0)).caption
    assert "Cosines" not in text and "b, Number of empty programs" in text and "of 1 donor. " in text
    assert "No held-out donors and no halves of the donors, because there is one donor. No comparison of" in text


def test_table_of_ranks_without_a_column_is_refused():
    with pytest.raises(ValueError, match="no column 'dead'"):
        figures.figS2_rank(ranks().drop(columns="dead"))


def test_files_are_the_same_twice(tmp_path):
    check_files(figures.figS2_rank(ranks()), tmp_path / "rank")
    check_files(figures.figS1_training(simulate("small")["training"]), tmp_path / "training")


# ---- comparison with other solvers
def test_speed_draws_medians_and_the_range_of_the_runs():
    sys.path.insert(0, str(BENCHMARKS))
    import report
    import speed

    peers = {name: report.read(name) for name in speed.PANELS}
    for layout in LAYOUTS.values():
        fig = speed.speed(peers, settings=settings(**layout))
        assert check_layout(fig) == []
    words = [word for word, *_ in texts(fig)]
    for name, title in speed.PANELS.items():
        runs = peers[name].dropna(subset=["seconds"])
        drawn = fig.table[fig.table["cells"] == title].set_index("solver")
        assert set(drawn.index) == set(runs["solver"]) - {"model 2"} <= set(words)
        for solver, row in drawn.iterrows():
            of = runs[runs["solver"] == solver]
            expected = of["seconds"].median(), of["seconds"].min(), of["relative_error"].median()
            assert (row["median"], row["min"], row["error"]) == pytest.approx(expected)
        points = axes(fig)[title].collections[1].get_offsets()
        np.testing.assert_allclose(points, drawn[["median", "error"]])
    most = max(peers[name]["solver"].value_counts().max() for name in speed.PANELS)
    assert f"medians of 1 to {most} runs" in fig.caption
