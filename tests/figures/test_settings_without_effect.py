"""Entries of the user's settings that change nothing are reported with the name that was probably meant."""

import logging

import pandas as pd
import pytest

from aenmf_lib import figures
from aenmf_lib.figures import settings, style
from aenmf_lib.results import MODELS


@style.figure
def example(models: list[str]) -> style.Sheet:
    """Draw a figure that uses the colors of models and of cell types."""
    colors = [*map(style.color_of, models), *style.palette("cell_type", ["B cell", "T cell"])]
    names = style.model_names(models)
    return style.new_figure(pd.DataFrame({"color": colors}), "single", 20, [str(names)])


@pytest.fixture
def warnings(tmp_path, caplog):
    settings._warn_once.cache_clear()

    def draw(text: str, models=MODELS) -> list[str]:
        """Return the warnings for the settings of a file."""
        (tmp_path / "mine.yaml").write_text(text)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            example(models, settings=figures.read_settings(tmp_path / "mine.yaml"))
        return caplog.messages

    return draw


@pytest.mark.parametrize(
    ("text", "expected", "closest"),
    [
        ("models: {AE-NMF: {color: red}}", "models: AE-NMF is not a model of the settings or the tables", "AE_NMF"),
        (
            "models: {cae_nmf1: {color: red}}",
            "models: cae_nmf1 is not a model of the settings or the tables",
            "CAE_NMF1",
        ),
        ("models: {NMF: {color: red}}", "models: NMF is not a model of the settings or the tables", "Base_NMF"),
        ("label_colors: {celltype: {B: red}}", "label_colors: celltype is not a label of the figure", "cell_type"),
        ("palettes: {cell_types: magma}", "palettes: cell_types is not a label of the figure", "cell_type"),
        (
            "label_colors: {cell_type: {B cells: red}}",
            "label_colors: cell_type: B cells is not in the figure",
            "B cell",
        ),
        ("label_colors: {cell_type: {neuron: red}}", "label_colors: cell_type: neuron is not in the figure", ""),
    ],
)
def test_an_entry_without_effect_is_reported_once_with_the_closest_name(warnings, text, expected, closest):
    assert warnings(text) == [expected + f"; did you mean {closest}?" * bool(closest)]
    assert warnings(text) == []


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("models: {my embedding: {color: red}}", MODELS),  # of another figure
        ("models: {AE_NMF 2: {color: red}}", (*MODELS, "AE_NMF 2")),  # an embedding of the tables
        ("models: {PCA: {color: red}, AE_NMF: {name: My NMF}}", MODELS),
        ("label_colors: {cell_type: {B cell: red}, condition: {stim: red}, donor_id: {D1: red}}", MODELS),
        ("palettes: {condition: magma, donor_id: magma}", MODELS),
    ],
)
def test_entries_that_other_figures_may_use_are_allowed(warnings, text, models):
    assert warnings(text, models) == []
