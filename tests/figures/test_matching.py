"""Figure 5: programs of one model against those of another one, and stability."""

import numpy as np
import pandas as pd
import pytest
from checks import LAYOUTS, axes, check_files, check_layout, marks, settings
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.patches import Rectangle
from program_tables import of_models, simulate_programs

from aenmf_lib import figures
from aenmf_lib.results import MODELS, RunInfo


def draw(tables: dict, **options):
    return figures.fig5_matching(tables["matches"], tables["cards"], **{"run": tables["run"]} | options)


@pytest.fixture(scope="module")
def small():
    return simulate_programs("small")


@pytest.fixture(scope="module")
def fig(small):
    return draw(small)


@pytest.fixture(scope="module")
def other_fits(small):
    rng = np.random.default_rng(0)
    is_aenmf = small["cards"]["Model"] == "AE_NMF"
    consensus = {"program": range(12), "recurrence": 0.6, "cosine": rng.uniform(0.3, 0.9, 12), "rounds": 8}
    rank = {"k": [5, 12], "starts_median": [0.99, 0.5], "halves_median": [0.98, np.nan]}
    return {
        "cards": small["cards"].assign(stability=np.where(is_aenmf, rng.uniform(0.5, 1, len(is_aenmf)), np.nan)),
        "consensus": pd.DataFrame(consensus).assign(kept=np.arange(12) < 9),
        "rank": pd.DataFrame(rank),
    }


@pytest.mark.parametrize(
    ("case", "layout"), [*[("small", layout) for layout in LAYOUTS], ("large", "default"), ("many", "width halved")]
)
def test_no_text_is_cut_and_no_texts_overlap(case, layout, other_fits):
    tables = simulate_programs(case)
    options = {"consensus": other_fits["consensus"], "rank": other_fits["rank"]}
    assert check_layout(draw(tables, settings=settings(**LAYOUTS[layout]), **options)) == []


def test_large_text_on_a_narrow_page_is_not_cut(small):
    assert check_layout(draw(small, settings=settings(font=2, width=0.5))) == []


def test_files_are_the_same_bytes(fig, tmp_path):
    check_files(fig, tmp_path)


def test_planted_matches_are_on_the_diagonal_in_the_order_of_their_cosine(fig, small):
    for i, model in enumerate(MODELS[1:], 1):
        ax = axes(fig)[f"map {model}"]
        rows, columns = ([int(text.get_text()) for text in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis))
        assert columns == [(row - i) % 12 for row in rows]
        (mesh,) = marks(ax, QuadMesh)
        grid = mesh.get_array().reshape(12, 12)
        assert (np.diff(grid.diagonal()) <= 0).all()
        matches = small["matches"].query(f"Model == 'CAE_NMF1' and other == '{model}'")
        cosines = matches.set_index(["program", "other_program"])["cosine"]
        for r, program in enumerate(rows):
            for c, other in enumerate(columns):
                expected = cosines.get((program, other), 0)
                assert grid[r, c] == expected or (np.ma.is_masked(grid[r, c]) and expected < 0.1)


def test_matches_below_a_tenth_are_white_with_a_frame_as_the_caption_says(small, fig):
    assert "framed" not in fig.caption
    weak = small["matches"].copy()
    of_map = weak["matched"] & (weak["Model"] == "CAE_NMF1") & (weak["other"] == "AE_NMF")
    weak.loc[weak.index[of_map][:3], "cosine"] = [0.0, 0.0999, 0.1]
    fig = draw(small | {"matches": weak})
    assert "white, below 0.1; framed, a match below it." in fig.caption
    ax = axes(fig)["map AE_NMF"]
    (mesh,) = marks(ax, QuadMesh)
    grid = mesh.get_array().reshape(12, 12)
    assert grid.diagonal().mask.tolist() == [False] * 10 + [True] * 2
    assert grid[9, 9] == 0.1
    frames = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert sorted(int(frame.get_x()) for frame in frames) == sorted(int(frame.get_y()) for frame in frames) == [10, 11]
    assert not any(frame.get_fill() for frame in frames)
    assert not axes(fig)["map Base_NMF"].patches


def test_dots_are_the_matched_cosines_of_each_two_models(fig, small):
    (dots, *more) = marks(axes(fig)["models"], PathCollection)
    pairs = small["matches"].query("matched").groupby(["Model", "other"], sort=False)["cosine"]
    assert len(more) == len(pairs) - 1 == 9  # five models
    for (_, cosines), found in zip(pairs, [dots, *more], strict=True):
        np.testing.assert_array_equal(found.get_offsets()[:, 0], cosines)
    texts = [text.get_text() for text in axes(fig)["models"].texts]
    assert texts[::2] == [f"{cosines.median():.2f}" for _, cosines in pairs]
    assert texts[1] == "Conditional AE-NMF 1† – Conditional AE-NMF 2"
    assert "stability" not in axes(fig)
    assert "The models were fitted with one random start, so their stability is unknown." in fig.caption


def test_starts_and_halves_of_the_donors_are_drawn_if_their_tables_are_given(small, other_fits):
    fig = draw(small | other_fits, consensus=other_fits["consensus"], rank=other_fits["rank"])
    assert check_layout(fig) == []
    ax = axes(fig)["stability"]
    names = [text.get_text().replace("\n", " ") for text in ax.texts[1::2]]
    assert names == [
        "AE-NMF: random starts",
        "AE-NMF: halves of the donors, 8 rounds",
        "AE-NMF: random starts, rank table",
    ]
    starts, halves = marks(ax, PathCollection)
    stability = other_fits["cards"].query("Model == 'AE_NMF'")["stability"]
    np.testing.assert_array_equal(starts.get_offsets()[:, 0], stability)
    np.testing.assert_array_equal(halves.get_offsets()[:, 0], other_fits["consensus"]["cosine"])
    assert len(np.unique(halves.get_facecolors(), axis=0)) == 2  # kept and not kept
    medians = [f"{stability.median():.2f}", f"{other_fits['consensus']['cosine'].median():.2f}", "0.50"]
    assert [text.get_text() for text in ax.texts[::2]] == medians
    assert fig.table.query("panel == 'stability'")["group"].nunique() == 3
    assert "Only the median is known for the rank table" in fig.caption


def test_one_model_shows_its_stability_or_says_why_nothing_is_drawn(small, other_fits):
    alone = of_models(small, "AE_NMF")
    fig = draw(alone, run=RunInfo(12, 400, {"AE_NMF": False}))
    assert fig.caption.startswith("Not drawn: there is one model, and no table of random starts")
    fig = draw(alone | {"cards": other_fits["cards"].query("Model == 'AE_NMF'")})
    assert "There is one model, so no models are compared. a, Cosine of each program" in fig.caption
    assert check_layout(fig) == []
    assert [label for label in axes(fig) if label.startswith("map")] == []


def test_a_missing_model_is_named_and_the_first_one_is_the_reference(small):
    fig = draw(of_models(small, "CAE_NMF2", "Base_NMF"), run=RunInfo(12, 400, {"CAE_NMF2": False, "Base_NMF": False}))
    assert [label for label in axes(fig) if label.startswith("map")] == ["map Base_NMF"]
    assert "Conditional AE-NMF 1 and AE-NMF were not part of this run." in fig.caption
    assert check_layout(fig) == []


def test_models_of_different_ranks_are_drawn(small):
    matches = small["matches"].query("other_program < 9 or other != 'Base_NMF'")
    fig = draw(small | {"matches": matches}, run=RunInfo())
    (mesh,) = marks(axes(fig)["map Base_NMF"], QuadMesh)
    assert mesh.get_array().size == 12 * 9 or mesh.get_array().size == 11 * 9 or mesh.get_array().size % 9 == 0
    assert check_layout(fig) == []


def test_tables_of_another_run_raise(small):
    with pytest.raises(ValueError, match="contains 12 programs, but this run has 10"):
        draw(small, run=RunInfo(10, 400, {}))
    with pytest.raises(ValueError, match="has no pairs of CAE_NMF1 and AE_NMF"):
        draw(small | {"matches": small["matches"].query("not (matched and Model == 'CAE_NMF1' and other == 'AE_NMF')")})
    with pytest.raises(ValueError, match="'cosine' is not a finite number"):
        draw(small | {"matches": small["matches"].assign(cosine=np.nan)})
