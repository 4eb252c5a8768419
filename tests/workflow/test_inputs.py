"""What make does before the first stage: the environment, the input known by its content, and the check."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from sandbox import MODELS, STAGES, STUDY, Sandbox

CELLS = "DATA=mine.h5ad"


@pytest.fixture
def make(tmp_path: Path) -> Sandbox:
    """A sandbox with two files of cells that have the same name."""
    sandbox = Sandbox(tmp_path)
    (tmp_path / "mine.h5ad").write_text("cells")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.h5ad").write_text("other cells")
    return sandbox


@pytest.fixture
def filtered(make: Sandbox) -> Sandbox:
    """The sandbox after `make filter`."""
    assert make.ran("filter", CELLS) == ["01_filter"]
    make.count("hashed")
    return make


# ---- variables in the environment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("goals", ["all", "-n filter", "clean", "check", "test all"])
def test_variables_of_the_environment_are_refused(make, goals):
    names = ["DATA", "DATASET", "K", "MODELS", "QUICK", "MIN_CELLS", "SHARDS", "DEVICE"]
    for name in names if goals == "all" else names[:1]:
        refused = make(*goals.split(), **{name: "x"})
        assert refused.returncode == 2
        assert f"{name}=x: set in the environment, which make does not read. Write the variable after" in refused.stderr
        assert f"unset {name}" in refused.stderr
        assert refused.stdout == ""


def test_a_target_that_reads_no_variable_accepts_any_environment(make):
    assert make("help", K="7").returncode == 0


def test_a_parent_make_may_pass_variables(make):
    (make.root / "parent.mk").write_text(
        "all:\n\t$(MAKE) -f Makefile filter\nexported:\n\tMIN_CELLS=7 $(MAKE) filter\n"
    )
    assert make.ran("-f", "parent.mk", "all", "MIN_CELLS=7", CELLS) == ["01_filter"]
    assert "min_cells: 7" in (make.root / "results/mine/params/01_filter.yaml").read_text()
    assert "MIN_CELLS=7: set in the environment" in make("-f", "parent.mk", "exported").stderr


def test_a_value_of_the_environment_is_not_executed(make):
    make("filter", DATA="$(shell touch executed)")
    assert not (make.root / "executed").exists()


# ---- the input is known by its content -------------------------------------------------------------------------------


def test_an_input_replaced_by_an_older_file_is_filtered_again(filtered):
    new = filtered.root / "new"
    new.write_text("new cells")
    os.utime(new, (1e9, 1e9))
    new.replace(filtered.root / "mine.h5ad")
    assert filtered.would_run("filter", CELLS) == ["01_filter"]
    assert filtered.ran("filter", CELLS) == ["01_filter"]
    assert filtered.ran("filter", CELLS) == []


@pytest.mark.parametrize("date", [1e9, 2**31 - 1])
def test_another_date_alone_changes_nothing(filtered, date):
    os.utime(filtered.root / "mine.h5ad", (date, date))
    assert filtered.ran("filter", CELLS) == []
    assert filtered.count("hashed") == 1
    assert filtered.ran("filter", CELLS) == []
    assert filtered.count("hashed") == 0  # size and dates are those of the last call


def test_other_spellings_of_a_path_are_the_same_file(filtered):
    for path in ("./mine.h5ad", str(filtered.root / "mine.h5ad"), "elsewhere/../mine.h5ad"):
        assert filtered.ran("filter", f"DATA={path}") == []
    assert filtered.count("hashed") == 0


def test_a_moved_file_is_the_same_file(filtered):
    shutil.move(filtered.root / "mine.h5ad", filtered.root / "elsewhere/mine.h5ad")
    assert filtered.ran("filter", "DATA=elsewhere/mine.h5ad") == []
    values = yaml.safe_load((filtered.root / "results/mine/params/01_filter.yaml").read_text())
    assert values["data"] == "elsewhere/mine.h5ad"


def test_results_of_another_file_of_the_same_name_are_not_overwritten(filtered):
    files = filtered.files("results")
    refused = filtered("filter", "DATA=elsewhere/mine.h5ad")
    assert refused.returncode == 2
    assert "results/mine/ was made from mine.h5ad, not from elsewhere/mine.h5ad. Pass DATASET=other" in refused.stderr
    assert filtered.files("results") == files
    assert filtered.ran("filter", "DATA=elsewhere/mine.h5ad", "DATASET=other") == ["01_filter"]


@pytest.mark.parametrize("first", [["filter", "DATA=typo/mine.h5ad"], ["-n", "all", CELLS], ["all", "MIN_CELLS=x"]])
def test_a_failed_or_dry_call_leaves_nothing_and_refuses_no_later_call(make, first):
    make(*first)
    assert not (make.root / "results").exists()
    assert make.ran("filter", "DATA=elsewhere/mine.h5ad") == ["01_filter"]


def test_a_failed_filter_refuses_no_other_file(make):
    make.program("python.py", _failing(make))
    assert make("filter", CELLS).returncode == 2
    make.program("python.py", Path(make.root / "bin/works.py").read_text())
    assert make.ran("filter", "DATA=elsewhere/mine.h5ad") == ["01_filter"]


def _failing(make: Sandbox) -> str:
    """Return a stub of Python in which every notebook fails, after keeping the working one as works.py."""
    works = (make.root / "bin/python.py").read_text()
    (make.root / "bin/works.py").write_text(works)
    return works.replace('elif command == "execute":', 'elif command == "execute":\n    sys.exit("error: planned")')


def test_a_missing_file_is_reported_before_the_environment_is_made(make):
    (make.root / "data").mkdir()
    (make.root / "data/near.h5ad").touch()
    for words in (["DATA=data/none.h5ad"], ["DATASET=other"]):
        refused = make("all", *words, python=False)
        assert refused.returncode == 2
        assert "File not found: " in refused.stderr
        near = {"DATA=data/none.h5ad": "data/ contains near.h5ad", "DATASET=other": "./ contains mine.h5ad"}[words[0]]
        assert f"{near}. Pass an existing file: make all DATA=" in refused.stderr
    assert not (make.root / ".venv").exists()
    assert not (make.root / "results").exists()


def test_results_of_a_file_that_is_gone_can_be_used(filtered):
    filtered.ran("train", CELLS)
    (filtered.root / "mine.h5ad").unlink()
    refused = filtered("all", CELLS)
    assert refused.returncode == 2
    assert "mine.h5ad no longer exists. results/mine/filtered.h5ad was made from mine.h5ad (sha256" in refused.stderr
    assert "replace the goal 'all' by: train, benchmarks or figures" in refused.stderr
    assert filtered("filter", CELLS).returncode == 2
    filtered.edit("aenmf_lib/data/preprocessing.py")  # which would otherwise filter again
    assert "mine.h5ad no longer exists" in filtered("train", CELLS).stderr
    assert filtered.ran("figures", CELLS) == STAGES[5:]
    refused = filtered("figures", CELLS, "MIN_CELLS=9")
    assert refused.returncode == 2
    assert "MIN_CELLS: was 5 (default), now 9. This change needs the cells of mine.h5ad" in refused.stderr


def test_the_data_set_of_a_folder_needs_no_path(filtered):
    assert filtered.ran("filter", "DATASET=mine") == []


@pytest.mark.parametrize("path", ["cells.zarr", "cells.zarr/", "./cells.zarr"])
def test_a_zarr_folder_is_an_input(make, path):
    (make.root / "cells.zarr/X").mkdir(parents=True)
    (make.root / "cells.zarr/X/0").write_text("1")
    assert make.ran("filter", f"DATA={path}") == ["01_filter"]
    values = yaml.safe_load((make.root / "results/cells/params/01_filter.yaml").read_text())
    assert values == {"data": "cells.zarr"}
    assert make.ran("filter", f"DATA={path}") == []
    (make.root / "cells.zarr/X/0").write_text("2")
    assert make.ran("filter", f"DATA={path}") == ["01_filter"]


def test_a_packed_file_is_refused(make):
    (make.root / "cells.h5ad.gz").touch()
    assert (
        "cells.h5ad.gz is packed. Expected an .h5ad or .zarr. Unpack it first: gunzip"
        in make("all", "DATA=cells.h5ad.gz").stderr
    )


def test_a_path_with_special_characters_in_a_yaml_file_is_read(make):
    for text in ('"my cells.h5ad"  # mine', "'my cells.h5ad'", "my cells.h5ad # mine", "my cells.h5ad"):
        (make.root / "my cells.h5ad").write_text(text)
        (make.root / "notebooks/params/odd.yaml").write_text(f"data: {text}\n")
        assert make.ran("filter", "DATASET=odd") == ["01_filter"]


def test_a_damaged_cache_is_ignored(filtered):
    (filtered.root / "results/mine/.input.json").write_text("{")
    assert filtered.ran("filter", CELLS) == []
    assert json.loads((filtered.root / "results/mine/.input.json").read_text())["sha256"]


# ---- the check before the first stage --------------------------------------------------------------------------------


def test_the_check_runs_when_the_values_or_the_input_have_changed(make):
    for words, times in (
        ([], 1),
        ([], 0),
        (["MAX_CELLS=9"], 1),
        (["MAX_CELLS=9"], 0),
        (["K=7"], 1),
        (["K=7"], 0),
    ):
        assert make.ran("train", CELLS, *words) is not None
        assert make.count("checked") == times, words
    (make.root / "mine.h5ad").write_text("new")
    make.ran("filter", CELLS)
    assert make.count("checked") == 1
    expected = "mine.h5ad: Base_NMF AE_NMF CAE_NMF1 CAE_NMF2, 7, results/mine\n"
    assert (make.root / "results/mine/k7/check.txt").read_text() == expected


def test_errors_of_the_check_stop_before_any_stage(make):
    (make.root / "refuse").write_text("one donor only\nK=90 is too large\n")
    refused = make("all", CELLS, "K=90")
    assert refused.returncode == 2
    assert "warning: few cells\n" in refused.stderr
    assert "error: one donor only\nerror: K=90 is too large\nNothing was run. Whole report: make " in refused.stderr
    assert f"make check {CELLS} K=90" in refused.stderr
    assert not (make.root / "ran").exists()
    assert not (make.root / "results").exists()
    (make.root / "refuse").unlink()
    assert make.ran("filter", CELLS) == ["01_filter"]


def test_make_check_prints_the_report_and_writes_nothing(make):
    assert make("check", CELLS, "MODELS=AE_NMF").stdout == "mine.h5ad: AE_NMF, no K, results/mine\n"
    (make.root / "refuse").write_text("one donor only")
    refused = make("check", CELLS)
    assert refused.returncode == 2
    assert "error: one donor only\n" in refused.stderr
    assert refused.stdout.startswith("mine.h5ad: ")
    assert "File not found: none.h5ad" in make("check", "DATA=none.h5ad").stderr
    assert not (make.root / "results").exists()
    assert make("check").stdout.endswith("results/demo\n")  # of simulated cells


def test_forgotten_values_are_listed_before_stages_run_again(make):
    make.ran("benchmarks", CELLS, "MIN_CELLS=1000", "MAX_CELLS=9", "SEED=3")
    again = make("figures", CELLS, "SEED=3")
    assert "MAX_CELLS: was 9, now 0 (default)\nMIN_CELLS: was 1000, now 5 (default)\n" in _sorted(again.stderr)
    assert "Computed again: 01_filter, and stages that need it" in again.stderr
    assert "SEED" not in again.stderr
    assert "was" not in make("figures", CELLS, "SEED=3").stderr


def test_only_stages_that_the_call_runs_are_announced_as_computed_again(make):
    make.ran("all", CELLS)
    (make.root / "sets.gmt").write_text("a")
    programs = make("programs", CELLS, "MAX_CELLS=9", "GENE_SETS=sets.gmt").stderr
    assert "MAX_CELLS: was 0 (default), now 9\n" in programs
    assert "Computed again: 10_programs, and" in programs and "06_benchmarks" not in programs
    later = make("programs", CELLS, "MAX_CELLS=8", "GENE_SETS=sets.gmt").stderr
    assert "Not by this call, but later computed again: 06_benchmarks, and" in later
    assert "Computed again: 06_benchmarks, and" in make("all", CELLS, "GENE_SETS=sets.gmt").stderr


def _sorted(text: str) -> str:
    """Return the lines with values in alphabetical order."""
    return "".join(sorted(line + "\n" for line in text.splitlines() if ": was " in line))


# ---- a choice of models, and a quick look ----------------------------------------------------------------------------


@pytest.mark.parametrize("models", ["Base_NMF AE_NMF", "AE_NMF,Base_NMF", "ae_nmf, base_nmf"])
def test_only_the_chosen_models_are_trained_and_scored(make, models):
    ran = make.ran("-j2", "all", "scores", CELLS, f"MODELS={models}")
    assert sorted(ran) == sorted([*STAGES[:3], *STAGES[5:]])
    scored = make.files("results/mine/k80/classification_scores")
    assert scored == {f"{m}.{label}.42.done" for m in ("base_nmf", "ae_nmf") for label in ("cell_type", "donor_id")}
    assert make.ran("all", CELLS, f"MODELS={models}") == []
    assert make.ran("all", CELLS) == STAGES[3:]  # adds the other models
    assert make.ran("all", CELLS, "MODELS=Base_NMF") == STAGES[5:]
    assert make.ran("conditioning", CELLS, "MODELS=Base_NMF") == [STUDY]


def test_a_quick_look_has_its_own_folder_and_fewer_cells(make):
    (make.root / "notebooks/params/demo.yaml").write_text("data: data/demo.h5ad\nk: 20\nmax_cells: 1500\n")
    assert make.ran("all", "QUICK=true") == STAGES
    values = {
        stem: yaml.safe_load((make.root / f"results/demo-quick/{folder}/{stem}.yaml").read_text())
        for stem, folder in (("01_filter", "params"), ("06_benchmarks", "k20/params"))
    }
    assert values["01_filter"] == {"data": "data/demo.h5ad", "sample_cells": 20_000}
    assert values["06_benchmarks"]["max_cells"] == 1500  # the data set has less than 2,000
    make.ran("filter", "QUICK=true", "SAMPLE_CELLS=7", CELLS)
    values = yaml.safe_load((make.root / "results/mine-quick/params/01_filter.yaml").read_text())
    assert values["sample_cells"] == 7
    assert not (make.root / "results/demo").exists()
    assert make("clean", "QUICK=true").stdout == "Removing results/demo-quick\n"


def test_a_quick_look_raises_max_cells_to_what_the_classes_need(make):
    (make.root / "raise").touch()
    make.ran("benchmarks", CELLS, "QUICK=true")
    file = make.root / "results/mine-quick/k80/params/06_benchmarks.yaml"
    assert yaml.safe_load(file.read_text())["max_cells"] == 2150
    make.count("checked")
    assert make.ran("benchmarks", CELLS, "QUICK=true") == []
    assert make.count("checked") == 0
    make.ran("benchmarks", CELLS, "QUICK=true", "MAX_CELLS=2000")
    assert yaml.safe_load(file.read_text())["max_cells"] == 2000


def test_every_model_has_a_notebook_and_a_name(make):
    text = (make.root / "Makefile").read_text()
    assert f"ALL_MODELS := {' '.join(m.upper().replace('BASE', 'Base') for m in MODELS.values())}\n" in text
