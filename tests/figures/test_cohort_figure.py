"""The cohort: bars and heat map equal the table, for any number of donors and types."""

import numpy as np
import pandas as pd
import pytest
from checks import LAYOUTS, LONG_NAMES, ODD_NAMES, axes, check_files, check_layout, marks, settings, texts
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex

from aenmf_lib import figures
from aenmf_lib.data import filter_cells, simulate
from aenmf_lib.results import RunInfo, write_table


def cohort(counts, types=None, donors=None, min_cells: int = 10) -> pd.DataFrame:
    """Return the table of a matrix of types × donors."""
    counts = np.asarray(counts)
    types = types or [f"type {i}" for i in range(len(counts))]
    donors = donors or [f"D{j}" for j in range(counts.shape[1])]
    rows = [(donors[j], types[i], n) for (i, j), n in np.ndenumerate(counts) if n]
    table = pd.DataFrame(rows, columns=["donor_id", "cell_type", "n_cells"])
    kept = table.groupby("donor_id")["n_cells"].transform("sum") >= min_cells
    return table.assign(kept=kept, min_cells=min_cells)


def draw(table, **options):
    """Draw the figure."""
    return figures.figS3_cohort(table, **options)


SMALL = cohort([[7, 20, 1], [3, 0, 4], [0, 90, 2]])


def test_bars_and_heat_map_equal_the_table():
    panels = axes(draw(SMALL))
    donors = [bar.get_height() for bar in panels["donors"].patches]
    assert donors == [110, 10, 7]  # largest first
    light = [to_hex(bar.get_facecolor()) for bar in panels["donors"].patches]
    assert light[0] == light[1] != light[2]  # 7 cells are fewer than 10
    (threshold,) = panels["donors"].lines
    assert list(threshold.get_ydata()) == [10, 10]
    (mesh,) = marks(panels["counts"], QuadMesh)
    np.testing.assert_array_equal(mesh.get_array().filled(0), [[90, 0, 2], [20, 7, 1], [0, 3, 4]])
    assert [text.get_text() for text in panels["counts"].get_yticklabels()] == ["type 2", "type 0", "type 1"]
    assert [text.get_text() for text in panels["counts"].get_xticklabels()] == ["D1", "D0", "D2"]
    kept, dropped = np.split(np.array([bar.get_width() for bar in panels["types"].patches]), 2)
    assert list(kept) == [90, 27, 3] and list(dropped) == [2, 1, 4]
    boundary = panels["counts"].lines[-1].get_xdata()
    assert list(boundary) == [2, 2]  # between the kept and the dropped donors


def test_numbers_in_the_heat_map_are_in_their_cells():
    fig = draw(SMALL)
    ax = axes(fig)["counts"]
    shown = {tuple(text.get_position()): text.get_text() for text in ax.texts if text.get_text() != "b"}
    grid = marks(ax, QuadMesh)[0].get_array().filled(0)
    assert shown == {(j + 0.5, i + 0.5): f"{n}" for (i, j), n in np.ndenumerate(grid)}


def test_the_table_is_in_the_order_of_the_figure_and_the_caption_adds_up():
    fig = draw(SMALL.sample(frac=1, random_state=0))
    expected = [("D1", "type 2"), ("D1", "type 0"), ("D0", "type 0"), ("D0", "type 1")]
    assert [*zip(fig.table["donor_id"], fig.table["cell_type"], strict=True)][:4] == expected
    assert "2 of 3 donors were kept, with 120 of 127 cells." in fig.caption and "white, no cell" in fig.caption
    legend = {word for word, *_ in texts(fig)}
    assert {"kept: 2 donors, 120 cells", "dropped: 1 donor, 7 cells", "minimum: 10 cells"} <= legend


def test_the_cohort_of_notebook_01_is_drawn(tmp_path):
    cells, table = filter_cells(simulate(400)[0].raw.to_adata(), min_cells=50)
    write_table(table, tmp_path / "cohort.csv")
    read = figures.read_table(tmp_path / "cohort.csv")
    fig = draw(read, run=RunInfo(n_cells=cells.n_obs))
    by_donor = cells.obs["donor_id"].value_counts()
    heights = [bar.get_height() for bar in axes(fig)["donors"].patches]
    assert heights[: len(by_donor)] == by_donor.tolist() and check_layout(fig) == []
    with pytest.raises(ValueError, match=rf"cohort.csv contains {cells.n_obs} kept cells. This run has 77 cells\. Run"):
        draw(read, run=RunInfo(n_cells=77))
    sampled = RunInfo(n_cells=100, sampled_from=cells.n_obs)
    assert "A random sample of 100 of the kept cells was analyzed." in draw(read, run=sampled).caption


def random_counts(n_types: int, n_donors: int) -> np.ndarray:
    """Return numbers of cells between 0 and some thousands, the largest in the first row and column."""
    rng = np.random.default_rng(0)
    size = np.outer(np.sort(rng.lognormal(0, 2, n_types)), np.sort(rng.lognormal(2, 1.5, n_donors)))
    counts = rng.poisson(size)
    counts[0], counts[0, 0] = 0, 3  # a type of three cells
    counts[-1] += 1
    return counts


@pytest.mark.parametrize("layout", [*LAYOUTS, "both"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (13, 8), (200, 12), (8, 300), (200, 300)], ids=str)
def test_any_number_of_donors_and_types_fits(shape, layout):
    table = cohort(random_counts(*shape), min_cells=30)
    fig = draw(table, settings=settings(**LAYOUTS.get(layout, {"font": 2, "width": 0.5})))
    assert check_layout(fig) == []
    grid = marks(axes(fig)["counts"], QuadMesh)[0].get_array().filled(0)
    assert grid.sum() == table["n_cells"].sum() and grid.shape[1] == shape[1]
    rows = [text.get_text() for text in axes(fig)["counts"].get_yticklabels()]
    if shape[0] == 200:
        assert rows[-1] == f"{201 - len(rows)} others"
        assert f"The {201 - len(rows)} smallest types are counted in one row." in fig.caption
    assert len(fig.table) == len(table)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_odd_and_very_long_names_fit(layout):
    names = [*ODD_NAMES, *LONG_NAMES, "$\\frac{a}{b}$ é\nβ" + "x" * 140]
    rng = np.random.default_rng(0)
    table = cohort(rng.poisson(40, (len(names), len(names))), names, names)
    fig = draw(table, settings=settings(**LAYOUTS[layout]))
    assert check_layout(fig) == []
    assert set(fig.table["cell_type"]) == set(fig.table["donor_id"]) == set(names)
    rows = [text.get_text() for text in axes(fig)["counts"].get_yticklabels()]
    assert len(set(rows)) == len(rows) and all(row.isprintable() for row in rows)


def test_cells_without_a_type_are_the_last_row():
    fig = draw(cohort([[50, 40], [9, 1], [3, 2]], ["", "no type", "B"]))
    rows = [text.get_text() for text in axes(fig)["counts"].get_yticklabels()]
    assert rows == ["no type", "B", "(no type)"]


def test_the_columns_of_the_user_are_named():
    fig = draw(SMALL, run=RunInfo(donor_column="batch", cell_type_column="annotation"))
    words = " ".join([word for word, *_ in texts(fig)] + [fig.caption])
    assert "2 of 3 values of batch were kept" in words and "Cells of each value of annotation (rows)" in words
    assert "donor" not in words and " type" not in words.replace("type 0", "").replace("type 1", "").replace(
        "type 2", ""
    )


def test_files_are_the_same_bytes_with_real_text(tmp_path):
    check_files(draw(SMALL), tmp_path)


def test_invalid_tables_raise():
    for wrong, match in (
        (SMALL.drop(columns="kept"), "cohort.csv has no column 'kept'"),
        (SMALL.drop(columns="min_cells"), "cohort.csv has no column 'min_cells'"),
        (SMALL[:0], "cohort.csv has no rows"),
        (SMALL.assign(n_cells=np.nan), "'n_cells' is not a finite number"),
        (SMALL.assign(kept="yes"), "contains the kept 'yes'. Expected one of True, False"),
    ):
        with pytest.raises(ValueError, match=match):
            draw(wrong)
    pd.testing.assert_frame_equal(draw(SMALL.assign(kept=SMALL["kept"].astype(str))).table, draw(SMALL).table)
