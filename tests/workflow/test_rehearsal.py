"""Tests of `make rehearse`: what it runs, what it refuses, and that its estimate is the scaled prediction."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fabricated import notebook, write_notebook

from aenmf_lib.data.stand_in import StandIn
from aenmf_lib.results.schema import PUBLISHED
from aenmf_lib.workflow import cluster, costs, rehearsal, report
from aenmf_lib.workflow.parameters import ParameterError
from aenmf_lib.workflow.rehearsal import ATLAS_CELLS, Rehearsal, RehearsalError

ROOT = Path(__file__).parents[2]
VALID = ["DATASET", "DATA", "K", "MIN_CELLS", "MAX_CELLS", "MODELS", "QUICK", "CELLS", "SAMPLE_CELLS", "DEVICE"]
TRAINING = [stage for model, stage in costs.STAGES.items() if model in PUBLISHED]
STAGES = [costs.FILTER, *TRAINING, costs.BENCHMARKS, costs.PROGRAMS, costs.FIGURES]
# stub of make: records its arguments and environment, and moves the executed notebooks into place
MAKE = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
Path("called.json").write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
for new in [*Path(".").rglob("*.new"), *Path(".").rglob("*.later")]:
    if new.suffix == ".new":
        new.rename(new.with_suffix(""))
    else:
        new.rename(new.with_suffix(".new"))
sys.exit(Path("fails").exists())
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the notebooks and a stub of make."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "make").write_text(MAKE)
    (tmp_path / "make").chmod(0o755)
    return tmp_path


def planned(**variables: str) -> Rehearsal:
    notebooks = sorted(Path("notebooks").glob("[0-9][0-9]_*.py"))
    return Rehearsal.from_variables({"CELLS": "2000"} | variables, notebooks, VALID)


def fabricate(made: Rehearsal, measured: dict[str, tuple[float, float]], suffix: str = "") -> None:
    """Write filtered cells, and executed notebooks with these seconds and MiB."""
    filtered = made.path.with_name("filtered.h5ad")
    if not filtered.exists():
        StandIn(cells=1900, genes=2500, nonzeros=100, types=7, donors=5, raw_only=True).write(filtered)
    for stage, (seconds, mib) in measured.items():
        content = notebook(stage, 'out: str = "x"  # file\n', {}, 1, [])
        content["metadata"]["papermill"]["duration"] = seconds
        content["metadata"]["aenmf_lib"]["info"] = {"peak_memory_mib": str(mib)}
        folder = made.path.parent if stage == costs.FILTER else made.run
        write_notebook(folder / f"{stage}.ipynb{suffix}", content)


def test_default_settings_are_those_of_the_paper_scaled_to_the_cells():
    made = planned()
    assert made.variables == {
        "K": "80",
        "MIN_CELLS": "17",  # 5000 / 592,317 of 2000
        "DATASET": "rehearsal-2000",
        "DATA": "results/rehearsal-2000/stand_in.h5ad",
    }
    assert made.shape == StandIn(cells=2000) and made.models == ["Base_NMF", "AE_NMF", "CAE_NMF1", "CAE_NMF2"]
    assert planned(MODELS="all").models == list(costs.STAGES)
    assert made.settings["03_train_ae_nmf"]["k"] == 80 and made.settings["01_filter"]["min_cells"] == 17
    given = planned(K="9", MIN_CELLS="5", MAX_CELLS="300", MODELS="AE_NMF", DEVICE="cuda")
    assert given.run == Path("results/rehearsal-2000/k9") and given.models == ["AE_NMF"]
    assert given.settings["06_benchmarks"]["max_cells"] == 300 and given.settings["03_train_ae_nmf"]["device"] == "cuda"


def test_quick_keeps_all_cells():
    made = planned(QUICK="true")
    assert made.path == Path("results/rehearsal-2000-quick/stand_in.h5ad")
    assert made.settings["01_filter"]["sample_cells"] == 0
    assert made.settings["06_benchmarks"]["classification_seeds"] == [42]


@pytest.mark.parametrize("cells", ["", "x", "999", "1e5", "new.h5ad"])
def test_missing_or_invalid_number_of_cells_raises(cells):
    with pytest.raises(RehearsalError, match=r"is not a whole number of at least 1000\. Set it, as in CELLS=100000"):
        planned(CELLS=cells)


def test_cells_of_the_user_and_unknown_variables_are_refused():
    with pytest.raises(RehearsalError, match=r"does not use DATA: it simulates its cells.*make all DATA=cells\.h5ad"):
        planned(DATA="mine.h5ad")
    with pytest.raises(ParameterError, match="MAX_CELL"):
        planned(MAX_CELL="3")


def test_small_disk_and_small_memory_are_reported_before_anything_is_written(place, monkeypatch):
    made = planned()
    monkeypatch.setattr(report, "free_disk", lambda folder: 1e6)
    with pytest.raises(
        RehearsalError, match=r"needs .* of disk space, and 1 MB are free in .*rehearsal-2000.*CELLS=2000"
    ):
        rehearsal.rehearse(made, "./make")
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setattr(report, "memory", lambda: (10**9, 10**8))
    with pytest.raises(RehearsalError, match=r"may need .* of memory, and 0.1 GB are free.*smaller MAX_CELLS"):
        rehearsal.rehearse(made, "./make")
    rehearsal.check(made, slurm=True)  # the memory of this machine does not matter
    assert not Path("results").exists() and not Path("called.json").exists()


def test_all_stages_run_on_simulated_cells_and_the_table_has_their_cost(place, monkeypatch, capsys):
    made = planned(MAX_CELLS="300")
    fabricate(made, {stage: (100.0 + i, 500 + i) for i, stage in enumerate(STAGES)}, ".new")
    monkeypatch.setattr(StandIn, "write", lambda shape, path: Path(path).write_bytes(b"cells"))
    for name in ("CELLS", "MAX_CELLS", "MAKEFLAGS", "MAKELEVEL"):  # as make exports them
        monkeypatch.setenv(name, "2000")
    rehearsal.rehearse(made, "./make")
    words, environment = json.loads(Path("called.json").read_text())
    assert words == ["all", *(f"{name}={value}" for name, value in made.variables.items())]
    assert not {"CELLS", "MAX_CELLS", "MAKEFLAGS", "MAKELEVEL"} & {*environment} and "PATH" in environment
    table = pd.read_csv(made.run / "rehearsal.csv", index_col="stage")
    assert table["seconds"].to_dict() == {stage: 100.0 + i for i, stage in enumerate(STAGES)}
    assert table.loc["06_benchmarks", "memory"] == pytest.approx(505 * 2**20, rel=1e-3)
    printed = capsys.readouterr().out
    assert "measured, 2,000 cells" in printed and "estimated, 592,317 cells" in printed
    assert "MAX_CELLS=300" in printed and all(stage in printed for stage in STAGES)


def test_estimate_is_the_prediction_times_the_measured_ratio(place):
    made = planned()
    fabricate(made, {})
    size = cluster.measured_size(made.path.with_name("filtered.h5ad"), 80)
    nnz = 2000 * 2000
    size = costs.Size(**vars(size) | {"file_cells": 2000, "file_nnz": nnz})
    of = costs.predict(size, made.settings, models=made.models)
    of = of[of["part"] == ""].set_index("stage")
    speed = costs.Speed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs.Speed, "measure", classmethod(lambda cls: speed))
        fabricate(
            made, {stage: (3 * of.loc[stage, "seconds"], 2 * of.loc[stage, "memory"] / 2**20) for stage in STAGES}
        )
        same = rehearsal.estimate(made, 2000)
        table = rehearsal.estimate(made)
    pd.testing.assert_series_equal(same["estimated_seconds"], same["seconds"], check_names=False)
    pd.testing.assert_series_equal(same["estimated_memory"], same["memory"], check_names=False)
    factor = ATLAS_CELLS / 2000
    large = costs.Size(
        round(1900 * factor),
        size.n_genes,
        round(size.nnz * factor),
        5,
        7,
        80,
        ATLAS_CELLS,
        2000 * ATLAS_CELLS,
        size.names,
    )
    expected = costs.predict(large, made.settings, models=made.models)
    expected = expected[expected["part"] == ""].set_index("stage").loc[table.index]
    pd.testing.assert_series_equal(table["estimated_seconds"], 3 * expected["seconds"], check_names=False)
    pd.testing.assert_series_equal(table["estimated_memory"], 2 * expected["memory"], check_names=False)


def test_table_is_printed_when_the_jobs_have_ended(place, monkeypatch, capsys, caplog):
    made = planned()
    fabricate(made, dict.fromkeys(STAGES[:3], (50.0, 400)), ".new")
    fabricate(made, dict.fromkeys(STAGES[3:], (50.0, 400)), ".later")
    monkeypatch.setattr(StandIn, "write", lambda shape, path: Path(path).write_bytes(b"cells"))
    with caplog.at_level("INFO"):
        rehearsal.rehearse(made, "./make", slurm=True)
    assert "Not finished: 04_train_cae_nmf1, 05_train_cae_nmf2, 06_benchmarks, 07_figures, 10_programs" in caplog.text
    assert "Run the same command after the jobs to see the table" in caplog.text and not capsys.readouterr().out
    made.path.write_bytes(b"kept")
    rehearsal.rehearse(made, "./make", slurm=True)
    assert "04_train_cae_nmf1" in capsys.readouterr().out
    assert made.path.read_bytes() == b"kept"  # the simulated cells are written once


def test_scores_of_jobs_are_a_stage_that_is_not_measured(place):
    made = planned()
    fabricate(made, dict.fromkeys(STAGES, (50.0, 400)))
    whole = rehearsal.estimate(made)
    (made.run / "classification_scores").mkdir()
    (made.run / "classification_scores/ae_nmf.cell_type.42.done").touch()
    table = rehearsal.estimate(made)
    assert pd.isna(table.loc["06_scores", "seconds"]) and table.loc["06_scores", "estimated_seconds"] > 0
    sums = table.loc[["06_scores", "06_benchmarks"], "predicted_seconds"].sum()
    assert sums == pytest.approx(
        whole.loc["06_benchmarks", "predicted_seconds"], rel=0.5
    )  # the speed is measured twice
    assert "  -" in rehearsal.text(table, made)


def test_failed_stage_is_an_error_with_the_command_that_resumes(place, monkeypatch):
    Path("fails").touch()
    monkeypatch.setattr(StandIn, "write", lambda shape, path: (path.parent.mkdir(parents=True), path.touch()))
    with pytest.raises(
        RehearsalError, match=r"failed.* make all K=80 MIN_CELLS=17 DATASET=rehearsal-2000 DATA=results"
    ):
        rehearsal.rehearse(planned(), str(Path("make").absolute()))


def test_make_passes_its_variables_and_runs_nothing_with_n():
    words = ["make", "-n", "rehearse", "CELLS=3000", "K=7", f"PYTHON={sys.executable}", "EXECUTOR=local"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    assert "-m aenmf_lib rehearse" in done.stdout and "'CELLS=3000'" in done.stdout and "--make 'make'" in done.stdout
    assert not (ROOT / "results/rehearsal-3000").exists()
