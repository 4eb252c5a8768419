"""Texts near points: inside the panel, over no other text, the same each time; ticks whose labels have space."""

import itertools

import numpy as np
import pytest
from checks import overlap, settings
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from aenmf_lib.figures.labels import fix_layout, place_labels, thin_ticks, wrap_name
from aenmf_lib.figures.settings import use
from aenmf_lib.figures.text import text_width

NAMES = [f"name of point {i}" for i in range(8)]


def panel(xy: np.ndarray, width: float = 80, **limits) -> tuple:
    """Return a panel with points, in mm."""
    fig = Figure(figsize=(width / 25.4, 60 / 25.4), layout="constrained")
    ax = fig.subplots()
    ax.scatter(*np.asarray(xy, float).T, s=9)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="x", ylabel="y")
    ax.set(**limits)
    return fig, ax


def boxes(ax) -> dict:
    """Return the boxes of the placed texts by text, after drawing, in pixels."""
    FigureCanvasAgg(ax.figure).draw()
    return {text.get_text(): Text.get_window_extent(text) for text in ax.texts}


def place(xy, names, *, options=None, **limits) -> tuple:
    """Place names near points; return the panel and the indices of those without space."""
    with use():
        _, ax = panel(xy, **limits)
        return ax, place_labels(ax, *np.asarray(xy, float).T, names, **(options or {}))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("centered", [False, True])
def test_placed_texts_are_inside_and_apart_and_the_others_are_returned(seed, centered):
    xy = np.random.default_rng(seed).random((8, 2)) * [1, 0.3]  # crowded
    ax, left_out = place(xy, NAMES, options={"centered": centered})
    shown = boxes(ax)
    assert set(shown) == {name for i, name in enumerate(NAMES) if i not in left_out} and len(shown) >= 4
    for box in shown.values():
        assert ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
    assert not any(overlap(a, b, 0) for a, b in itertools.combinations(shown.values(), 2))
    again, _ = place(xy, NAMES, options={"centered": centered})
    assert {name: box.extents.tolist() for name, box in boxes(again).items()} == {
        name: box.extents.tolist() for name, box in shown.items()
    }


def test_a_text_is_beside_its_point_and_covers_no_other_point():
    xy = np.array([[0.3, 0.5], [0.4, 0.5], [0.5, 0.5]])  # the next point is on the right
    ax, left_out = place(xy, ["first point", "", ""])
    assert not left_out and list(boxes(ax)) == ["first point"]
    box = boxes(ax)["first point"]
    pixels = ax.transData.transform(xy)
    assert not any(box.x0 < x < box.x1 and box.y0 < y < box.y1 for x, y in pixels)
    gap = max(box.x0 - pixels[0][0], pixels[0][0] - box.x1, box.y0 - pixels[0][1], pixels[0][1] - box.y1)
    assert 0 < gap < box.height


def test_a_text_crosses_no_line_if_there_is_space():
    with use():
        _, ax = panel([[0.5, 0.5]])
        ax.plot([0.5, 1], [0.5, 0.5])  # on the right
        place_labels(ax, [0.5], [0.5], ["point"])
    box = boxes(ax)["point"]
    x, y = ax.transData.transform([0.5, 0.5])
    assert box.x1 < x or box.y0 > y or box.y1 < y


def test_centered_texts_with_space_are_on_their_points():
    xy = np.array([[0.3, 0.2], [0.5, 0.5], [0.7, 0.8]])
    ax, left_out = place(xy, ["one", "two", "three"], options={"centered": True, "colors": ["red", "k", "k"]})
    assert left_out == [] and ax.texts[0].get_color() == "red"
    for name, point in zip(["one", "two", "three"], ax.transData.transform(xy), strict=True):
        box = boxes(ax)[name]
        np.testing.assert_allclose([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2], point, atol=1)


def test_a_distant_text_is_joined_to_its_point():
    xy = np.full((5, 2), 0.5) + np.arange(5)[:, None] * [1e-3, 0]
    ax, left_out = place(xy, NAMES[:5])
    assert left_out == []
    joined = [text for text in ax.texts if isinstance(text, Annotation) and text.arrow_patch is not None]
    FigureCanvasAgg(ax.figure).draw()
    assert 0 < len(joined) < 5
    for text in joined:
        ends = text.arrow_patch.get_transform().transform(text.arrow_patch.get_path().vertices)
        point = ax.transData.transform(text.xy)
        assert np.hypot(*(ends - point).T).min() < 2  # pixels
        others = [other for other in ax.texts if other is not text]
        steps = ends[0] + np.linspace(0, 1, 50)[:, None] * (ends[-1] - ends[0])
        for box in map(Text.get_window_extent, others):
            assert not any(box.contains(*step) for step in steps)


def test_on_a_map_each_text_that_is_not_on_its_point_is_joined_to_it():
    xy = np.random.default_rng(1).random((8, 2))
    with use():
        _, ax = panel(xy)
        left_out = place_labels(ax, *xy.T, NAMES, centered=[True] * 3 + [False] * 5, on_map=True)
    joined = {text.get_text(): text.arrow_patch is not None for text in ax.texts}
    for i, (name, point) in enumerate(zip(NAMES, ax.transData.transform(xy), strict=True)):
        if i not in left_out:
            box = boxes(ax)[name]
            assert joined[name] is not box.contains(*point)
    assert {*joined.values()} == {True, False}


def test_the_outline_of_a_text_on_a_map_is_narrow_and_white():
    pictures = {}
    for on_map in (False, True):
        with use():
            fig, ax = panel([[2, 2]], facecolor="red")  # outside
            place_labels(ax, [0.5], [0.5], ["mm"], centered=True, on_map=on_map)
            canvas = FigureCanvasAgg(fig)
            canvas.draw()
            x0, y0, x1, y1 = boxes(ax)["mm"].extents.round().astype(int)
            canvas.draw()
            picture = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)
        white = (picture == 255).all(axis=-1)
        near = white[y0 - 5 : y1 + 5, x0 - 5 : x1 + 5].sum()  # at 300 pixels per inch
        pictures[on_map] = near, white[y0 - 20 : y1 + 20, x0 - 20 : x1 + 20].sum() - near
    assert pictures[False] == (0, 0)
    assert pictures[True][0] > 100 and pictures[True][1] == 0


def test_a_number_at_the_end_of_a_name_stays_with_its_word():
    with use():
        name = "Conditional AE-NMF 1†"
        width = text_width("Conditional AE-NMF") + 0.1
        assert wrap_name(name, width) == ["Conditional", "AE-NMF 1†"]
        assert wrap_name(name, text_width(name) + 0.1) == [name]
        assert wrap_name("Conditional 2", text_width("Conditional") + 0.1) == ["Conditional", "2"]  # no space


def test_texts_without_space_are_returned_and_not_drawn():
    ax, left_out = place([[0.5, 0.5], [0.2, 0.2]], ["W" * 80, "short"])
    assert left_out == [0] and list(boxes(ax)) == ["short"]
    ax, left_out = place(np.full((60, 2), 0.5), [f"name {i}" for i in range(60)], width=40)
    assert 0 < len(left_out) < 60 and len(boxes(ax)) == 60 - len(left_out)


def test_texts_avoid_texts_that_are_there():
    with use():
        _, ax = panel([[0.5, 0.5]])
        there = [ax.text(0.55 + 0.1 * i, 0.5, "there", va="center") for i in range(2)]
        assert place_labels(ax, [0.5], [0.5], ["point"]) == []
        assert place_labels(ax, [], [], []) == []
    assert not any(overlap(boxes(ax)["point"], Text.get_window_extent(text), 0) for text in there)


@pytest.mark.parametrize("layout", [{}, {"font": 2}, {"font": 3}, {"font": 2, "width": 0.4}])
@pytest.mark.parametrize("limits", [(0, 1), (0.98765, 0.98799), (-1000, 123_456), (0.5, 0.501)])
def test_tick_labels_have_space(layout, limits):
    chosen = settings(**layout)
    with use(chosen):
        fig, ax = panel([[0.5, 0.5]], chosen.single, xlim=limits, ylim=limits)
        thin_ticks([ax])
        FigureCanvasAgg(fig).draw()
        for axis in (ax.xaxis, ax.yaxis):
            shown = [tick.label1 for tick in axis.get_major_ticks() if tick.label1.get_text()]
            shown = [t for t, at in zip(shown, axis.get_majorticklocs(), strict=True) if limits[0] <= at <= limits[1]]
            assert shown
            for a, b in itertools.pairwise(map(Text.get_window_extent, shown)):
                assert b.x0 - a.x1 > 2 or b.y0 - a.y1 > 2 or a.y0 - b.y1 > 2


def test_the_layout_is_rounded_because_the_solver_varies_in_the_last_digits():
    with use():
        fig = Figure(layout="constrained")
        upper, lower = fig.subfigures(2, 1, height_ratios=[1, 2.3])
        axes = [*upper.subplots(1, 3), lower.subplots()]
        for ax in axes:
            ax.set(xlabel="x", ylabel="y", title="title")
        fix_layout(fig)
    assert fig.get_layout_engine() is None or fig.get_layout_engine().__class__.__name__ == "PlaceHolderLayoutEngine"
    places = [ax.get_position().get_points() for ax in axes]
    places += [part.bbox_relative.get_points() for part in (upper, lower)]
    for place in places:
        np.testing.assert_array_equal(place, place.round(6))
    assert lower.bbox_relative.height == pytest.approx(2.3 / 3.3, abs=0.01)


def test_ticks_with_names_stay():
    with use():
        fig, ax = panel([[0.5, 0.5]])
        ax.set_yticks([0.1, 0.2], ["one", "two"])
        thin_ticks([ax])
        FigureCanvasAgg(fig).draw()
    assert [text.get_text() for text in ax.get_yticklabels()] == ["one", "two"]
