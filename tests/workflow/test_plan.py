"""What make prints about a figure that is drawn alone."""

import json
import logging
from pathlib import Path

import pytest

from aenmf_lib.workflow import cli, parameters
from aenmf_lib.workflow.plan import Plan

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9][0-9]_*.py"))
(FIGURES,) = (path for path in NOTEBOOKS if path.stem == "07_figures")


@pytest.fixture
def look(tmp_path, caplog):
    """Return what is printed for a figure, from the values of the last run, of this call and without variables."""
    caplog.set_level(logging.INFO)

    def compare(last: dict, here: dict, usual: dict | None = None, figure: str = "fig1_benchmark", **typed: str) -> str:
        declared = parameters._PARAMETERS_CELL.search(FIGURES.read_text())[1]
        cell = {"cell_type": "code", "source": declared, "metadata": {"tags": ["parameters"]}, "outputs": []}
        time = "2026-01-02T03:04:05"
        record = {"parameters": last, "start_time": time, "end_time": time, "duration": 1.0}
        tmp_path.joinpath("07_figures.ipynb").write_text(
            json.dumps({"cells": [cell], "metadata": {"papermill": record}})
        )
        variables = {"DATASET": "kang2018", "FIGURE": "fig1"} | typed
        plan = Plan({"07_figures": here}, NOTEBOOKS, [], [], tmp_path.parent, tmp_path, [], variables)
        caplog.clear()
        plan.compare_look(figure, usual or {})
        return caplog.text.partition("fig")[2]

    return compare


def test_a_figure_with_another_look_than_the_run_is_announced_with_the_command_that_undoes_it(look):
    text = look({}, {"width": 120.0, "formats": ["svg"]}, WIDTH="120", FORMAT="svg")
    assert "1_benchmark now differs" in text and text.count("\n") == 1
    assert "(FORMAT: svg instead of empty (default); WIDTH: 120 instead of 0 (default))" in text
    assert text.endswith("To undo: make figures DATASET=kang2018 FIGURE=fig1\n")


def test_the_undo_repeats_the_look_of_the_run_that_no_file_sets(look):
    own = {"width": 100.0, "settings": "my look.yaml"}
    text = look(own, {"settings": "my look.yaml"}, {"settings": "my look.yaml"})
    assert "WIDTH: 0 (default) instead of 100" in text and "SETTINGS" not in text
    assert text.endswith("FIGURE=fig1 WIDTH=100\n")
    assert look(own, {"width": 9.0}).endswith("FIGURE=fig1 'SETTINGS=my look.yaml' WIDTH=100\n")


def test_a_figure_that_looks_like_those_of_the_run_is_not_announced(look, tmp_path):
    assert look({"width": 100.0}, {"width": 100.0}, WIDTH="100") == ""
    assert look({}, {"width": 0.0, "formats": []}) == ""
    assert look({}, {"color_by": ["condition"]}) == ""  # has no effect on this figure
    assert "COLOR_BY: condition instead of" in look({}, {"color_by": ["condition"]}, figure="fig2_embeddings")
    tmp_path.joinpath("07_figures.ipynb").unlink()
    Plan({"07_figures": {"width": 9.0}}, NOTEBOOKS, [], [], tmp_path, tmp_path, [], {}).compare_look("fig1", {})


def test_a_report_of_a_run_without_executed_notebooks_says_what_to_run(tmp_path):
    (tmp_path / "k12").mkdir()
    with pytest.raises(SystemExit, match=r"error: .*k12 has no executed notebook.*make all"):
        cli.main(["report", str(tmp_path / "k12"), "--out", str(tmp_path / "k12/report")])
    assert not (tmp_path / "k12/report").exists()
