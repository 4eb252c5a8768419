"""The figures of a run, drawn from its tables by name."""

import inspect
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from checks import RUN, simulate

from aenmf_lib import figures, results
from aenmf_lib.figures import run_figures
from aenmf_lib.figures.run_figures import RunTables, draw

_CARDS = [f"program_cards_{model.lower()}.csv" for model in RUN.used_cell_type]


@pytest.fixture
def tables(tmp_path):
    """The tables of a simulated run. Of its results files, only the facts for captions are read."""
    tables = RunTables(tmp_path / "k12", ["model.h5ad"])
    tables.run = RUN
    return tables


@pytest.mark.parametrize("name", run_figures._TABLES)
def test_each_figure_takes_the_tables_that_are_read_for_it(name):
    parameters = dict(inspect.signature(getattr(figures, name)).parameters)
    assert {"run", "settings"} & {*parameters} >= {"run"}
    taken = [p for p in parameters.values() if p.name not in ("run", "settings")]
    needed = [p for p in taken if p.default is p.empty]
    assert len(needed) <= len(run_figures._TABLES[name]) <= len(taken), [p.name for p in taken]


def test_every_figure_of_the_library_but_that_of_one_fit_is_drawn_by_name():
    assert {*run_figures._TABLES} == {name for name in figures.__all__ if name[:3] in ("fig", "tab")} | {
        "conditioning",
        "differential",
    }
    assert {*run_figures._TABLES} - {*figures.FIGURES} == {"figS2_rank", "conditioning", "differential"}


def test_the_beginning_of_a_name_is_enough(tables):
    table = simulate("small")["resolution"]
    results.write_table(table, tables.folder / "clustering_resolution.csv")
    assert draw("figS5", tables).name == draw("figS5_resolution", tables).name == "figS5_resolution"
    assert draw("figS5", tables, figures.read_settings(width=100)).get_figwidth() == pytest.approx(100 / 25.4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fig", "'fig' stands for fig1_benchmark, fig2_embeddings"),
        ("figS", "'figS' stands for figS1_training, figS3_cohort"),
        ("fig9", "'fig9' is not a figure. Expected one of fig1_benchmark"),
        ("", "'' is not a figure"),
    ],
)
def test_a_name_of_no_figure_or_of_several_is_refused(tables, name, message):
    with pytest.raises(ValueError, match=message):
        draw(name, tables)


def test_a_missing_table_is_an_error_that_names_its_file(tables):
    for name, file in (("figS5", "k12/clustering_resolution.csv"), ("figS3", "cohort.csv"), ("fig2", "k12/umap.h5ad")):
        with pytest.raises(FileNotFoundError, match=f"{file} does not exist. Run"):
            draw(name, tables)


def test_a_figure_of_the_cells_needs_no_model_of_the_run(tmp_path):
    tables = RunTables(tmp_path / "k12", [tmp_path / "k12/none.h5ad"])
    assert run_figures._facts("figS2_rank", tables) == run_figures._facts("conditioning", tables) == results.RunInfo()
    with pytest.raises(FileNotFoundError):
        run_figures._facts("fig1_benchmark", tables)
    tables.model_paths, tables.run = [], RUN
    assert run_figures._facts("conditioning", tables) == results.RunInfo(RUN.k, RUN.n_cells)  # no † of other models
    assert run_figures._facts("fig1_benchmark", tables) == RUN


def test_a_table_is_read_once_and_tables_of_all_models_are_joined(tables, monkeypatch):
    read = []
    monkeypatch.setattr(run_figures, "read_table", lambda path: read.append(path) or pd.DataFrame({"program": [0, 1]}))
    for _ in range(2):
        cards = tables["program_cards"]
    assert [path.name for path in read] == [f"program_cards_{model.lower()}.csv" for model in RUN.used_cell_type]
    assert [*cards.columns] == ["Model", "program"]
    assert [*cards["Model"].unique()] == [*RUN.used_cell_type]


def test_cells_are_colored_by_a_column_of_the_results_file(tmp_path):
    obs = pd.DataFrame({"donor_id": ["a", "b"], "cell_type": ["T", "B"]}, index=["c1", "c2"])
    coords = AnnData(obs=obs, obsm={"X_umap_AE_NMF": np.zeros((2, 2), np.float32)})
    (tmp_path / "k12").mkdir()
    results.write_h5ad(coords, tmp_path / "k12/umap.h5ad")
    results.write_h5ad(AnnData(obs=obs.assign(condition=["x", "y"])), tmp_path / "model.h5ad")
    tables = RunTables(tmp_path / "k12", [tmp_path / "model.h5ad"], ["condition"])
    assert [*tables["umap"].obs["condition"]] == ["x", "y"]
    assert tables["color_by"] == ["condition"]


def test_a_table_older_than_a_model_is_named(tables, caplog):
    path, model = tables.folder / "clustering_resolution.csv", tables.folder / "ae_nmf_k12.h5ad"
    results.write_table(simulate("small")["resolution"], path)
    model.touch()
    tables.model_paths = ["missing.h5ad", model]
    for table_time, model_time, warned in ((5, 9, True), (9, 5, False), (5, 5, False)):
        os.utime(path, (table_time, table_time))
        os.utime(model, (model_time, model_time))
        caplog.clear()
        draw("figS5", tables)
        assert (f"{path} is older than {model}: 'make figures' computes it again" in caplog.text) == warned


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("figS5", {"clustering_resolution.csv"}),
        ("fig2", {"umap.h5ad"}),
        (
            "fig6",
            {"donor_genes.csv", "donor_share.csv", *_CARDS},
        ),
        ("figS3", set()),  # made before the models
        ("figS1", set()),  # drawn from the results files themselves
        ("figS2", set()),  # fits its own models
        ("conditioning", set()),
    ],
)
def test_tables_of_the_results_files_are_compared_with_them(tables, name, expected, monkeypatch):
    named = set()
    monkeypatch.setattr(RunTables, "paths", lambda self, table, paths=RunTables.paths: named.update(
        path.name for path in paths(self, table)) or [])  # fmt: skip
    run_figures._warn_if_old(run_figures._find(name), tables)
    assert named == expected


def test_the_results_files_of_a_folder_are_found(tmp_path):
    folder = tmp_path / "k12"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"k12 contains no results file such as .* after 'make train'"):
        RunTables(folder)
    own = [folder / f"{model.lower()}_k12.h5ad" for model in results.MODELS]
    for path in own:
        path.touch()
    for name in ("ae_nmf_consensus_k12.h5ad", "ae_nmf_k12.checkpoint.npz", "umap.h5ad", "baselines.h5ad"):
        (folder / name).touch()
    assert RunTables(folder).model_paths == RunTables(str(folder)).model_paths == own
    assert RunTables(folder, color_by=["condition"]).color_by == ["condition"]
    own[1].unlink()
    assert RunTables(folder).model_paths == [own[0], *own[2:]]
    assert RunTables(folder, []).model_paths == []


def test_drawing_needs_none_of_the_slow_packages():
    code = "from aenmf_lib import figures; figures.draw; import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "scanpy", "sklearn", "umap", "numba", "datashader", "colorcet", "seaborn"} & {*loaded}
