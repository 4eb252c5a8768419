"""The Makefile and the setup, in sandboxes in which nothing is installed and no notebook runs."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml
from sandbox import (
    DESCRIBED,
    FIGURES,
    MODELS,
    NAMES,
    ON_REQUEST,
    PROGRAMS,
    PYTHON,
    ROOT,
    SCORED,
    SCORES,
    STAGES,
    STUDY,
    STUDY_FILES,
    TABLES,
    UNTIED,
    Sandbox,
)

import aenmf_lib
from aenmf_lib import figures, programs, results
from aenmf_lib.workflow import cli
from aenmf_lib.workflow.parameters import declared


@pytest.fixture
def make(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


@pytest.fixture(scope="module")
def all_made(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A sandbox after `make all`."""
    make = Sandbox(tmp_path_factory.mktemp("all"))
    assert make.ran("all") == STAGES
    return make


@pytest.fixture
def done(all_made: Sandbox, tmp_path: Path) -> Sandbox:
    """A copy of that sandbox, with the file times."""
    shutil.copytree(all_made.root, tmp_path, dirs_exist_ok=True, symlinks=True)
    return Sandbox.existing(tmp_path)


def test_make_without_target_lists_the_public_targets_on_one_screen(make):
    shown = make().stdout
    listed = re.findall(r"^  make (\w+) +\S", shown, re.M)
    texts = [(ROOT / name).read_text() for name in ("Makefile", "slurm/slurm.mk")]
    phony = [name for text in texts for name in re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", text, re.M)[1].split()]
    assert sorted(listed) == sorted({*phony} - {"resolved", "FORCE", "\\"})
    assert listed[:7] == ["all", "filter", "train", "benchmarks", "programs", "figures", "scores"]
    assert len(shown.splitlines()) <= 34
    assert max(map(len, shown.splitlines())) <= 120


def test_conditioning_is_not_part_of_all_and_needs_only_the_filtered_cells(make):
    assert make.ran("conditioning") == [STAGES[0], STUDY]
    assert make.files("results/demo/k20") >= {*STUDY_FILES, f"{STUDY}.ipynb"}
    assert make.ran("conditioning") == []
    assert make.ran("all") == STAGES[1:]
    make.edit("aenmf_lib/models/penalties.py")
    assert make.would_run("conditioning") == [STUDY]


@pytest.mark.parametrize("goal", ON_REQUEST)
def test_a_stage_on_request_is_made_once_and_changes_nothing_else(done, goal):
    stage, files = ON_REQUEST[goal]
    folder = "results/demo" if goal == "rank" else "results/demo/k20"
    options = {"projection": ["MODEL=AE_NMF"], "rank": ["K=5 10"], "differential": ["BY=donor_id"]}.get(goal, [])
    before = done.files("results/demo")
    assert done.would_run(goal, *options) == [stage]
    assert done.ran(goal, *options) == [stage]
    made = {f"{folder.removeprefix('results/demo')}/{name}".lstrip("/") for name in [*files, f"{stage}.ipynb"]}
    assert made <= done.files("results/demo") - before
    assert done.ran("all") == []
    assert done.ran(goal, *options) == []
    values = (done.root / folder / f"params/{stage}.yaml").read_text()
    expected = {"projection": "model: AE_NMF", "rank": "ranks:\n- 5\n- 10\n", "differential": "by: donor_id"}
    assert expected.get(goal, "") in values
    (done.root / "notebooks/params/demo.yaml").write_text(f"data: data/demo.h5ad\nk: 20\n{stage}: {{}}\n")
    assert done.ran("all", *([goal, *options] if goal != "rank" else [])) == []
    done.edit(f"notebooks/{stage}.py")
    assert done.ran("all") == []
    assert done.ran(goal, *options) == [stage]


@pytest.mark.parametrize("goal", ["conditioning", "projection", "rank", "consensus"])
def test_a_stage_that_reads_only_the_cells_writes_no_values_of_other_stages(make, goal):
    stage = ON_REQUEST[goal][0]
    assert make.ran(goal, *(["SEED=3"] if goal != "conditioning" else [])) == ["01_filter", stage]
    written = {Path(name).name for name in make.files("results/demo") if "params/" in name}
    assert written == {"01_filter.yaml", f"{stage}.yaml"}


def test_the_ranks_are_a_list_and_the_results_belong_to_the_data_set(done):
    values = done.root / "results/demo/params/12_rank.yaml"
    for given, ranks in (("K=5 10", [5, 10]), ("K=5, 10", [5, 10]), ("K=5", [5]), ("", None)):
        done.ran("rank", *([given] if given else []))
        assert (yaml.safe_load(values.read_text()) or {}).get("ranks") == ranks
    assert {path.name for path in done.root.glob("results/demo/k*")} == {"k20"}
    assert done.ran("results/demo/filtered.h5ad", "K=5 10") == []  # as the job of the filter does
    assert done.ran("results/demo/rank.csv", "results/demo/figures/figS2_rank.pdf", "K=5 10") == ["12_rank"]
    (done.root / "notebooks/params/demo.yaml").write_text("data: data/demo.h5ad\nk: 20\nranks: [3]\n")
    assert done.ran("rank") == ["12_rank"]
    assert yaml.safe_load(values.read_text()) == {"ranks": [3]}
    for wrong in ("5 x", "5,,x", "0", "05", "-3", "5.5"):
        assert f"K='{wrong}': expected numbers of programs, such as K=\"5 10 20\"" in done("rank", f"K={wrong}").stderr


@pytest.mark.parametrize(
    ("variable", "missing", "what", "again"),
    [
        ("GENE_SETS=file", "GENE_SETS=none", "gene sets", DESCRIBED),
        ("SETTINGS=file", "SETTINGS=none", "settings", ["07_figures"]),
        ("EXTRA=PCA=file:X_pca", "EXTRA=PCA=file:X_pca Own=none:X_own", "an embedding", SCORED),
    ],
)
def test_a_file_of_the_user_counts_by_its_content(done, variable, missing, what, again):
    file = done.root / "file"
    file.write_text("font_size: 8\n")
    assert done.would_run("all", variable) == again
    assert done.ran("all", variable) == again
    done.count("hashed")
    assert done.ran("all", variable) == []
    assert done.count("hashed") == 0  # a file with the same size and dates is not read again
    done.touch("file")
    assert done.would_run("all", variable) == []
    assert done.ran("all", variable) == []
    done.count("checked")
    file.write_text("font_size: 9\n")
    assert done.would_run("all", variable) == again
    assert done.ran("all", variable) == again
    assert done.count("checked") == 1
    for goal in (["all"], ["-n", "all"]):
        refused = done(*goal, missing)
        assert refused.returncode == 2
        assert f"File of {what} not found: none. Pass an existing file" in refused.stderr


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["FORMAT=svg pdf", "WIDTH=120"], {"formats": ["svg", "pdf"], "width": 120.0}),
        (["COLOR_BY=condition,cell state"], {"color_by": ["condition", "cell state"]}),
        (["EXTRA=A=a.h5ad:X_a B=b.zarr:X_b"], {"extra": ["A=a.h5ad:X_a", "B=b.zarr:X_b"]}),
        (["BASELINES=PCA,Harmony"], {"baselines": ["PCA", "Harmony"]}),
    ],
)
def test_variables_of_figures_and_embeddings_set_values_of_06_or_07(done, words, values):
    for name in ("a.h5ad", "b.zarr"):
        (done.root / name).touch()
    again = SCORED if {"extra", "baselines"} & {*values} else ["07_figures"]
    assert done.ran("all", *words) == again
    written = yaml.safe_load((done.root / f"results/demo/k20/params/{again[0]}.yaml").read_text())
    assert {name: value for name, value in written.items() if name != "model_paths"} == values
    assert done.ran("all", *words) == []
    assert done.ran("all") == again


def test_only_the_formats_of_the_settings_are_files_of_the_figures(done):
    def drawn(*words):
        shutil.rmtree(done.root / "results/demo/k20/figures")
        assert done.ran("figures", *words) == ["07_figures"]
        assert done.ran("figures", *words) == []
        return {Path(name).suffix for name in done.files("results/demo/k20/figures")} - {".csv", ".txt", ".md", ".tex"}

    assert drawn("FORMAT=svg") == {".svg"}
    assert drawn("FORMAT=png,svg") == {".png", ".svg"}
    assert drawn() == {".pdf", ".png", ".svg"}
    demo = done.root / "notebooks/params/demo.yaml"
    demo.write_text("data: data/demo.h5ad\nk: 20\nformats: [png]  # small\n")
    assert drawn() == {".png"}
    assert drawn("FORMAT=pdf") == {".pdf"}
    demo.write_text("data: data/demo.h5ad\nk: 20\nformats:\n- svg\n")  # make does not know these formats
    assert drawn() == {".svg"}


def test_the_formats_in_a_file_of_settings_replace_the_usual_ones(done):
    (done.root / "mine.yaml").write_text("font_size: 9\nformats: [ 'png' ]\n")

    def kinds(*words):
        return {*re.findall(r"^results/demo/k20/figures/fig1_benchmark\.(\w+):", done("-np", *words).stdout, re.M)}

    assert kinds("figures", "SETTINGS=mine.yaml") == {"csv", "png", "txt"}
    demo = done.root / "notebooks/params/demo.yaml"
    demo.write_text("data: data/demo.h5ad\nk: 20\nsettings: mine.yaml\n")
    assert kinds("figures") == {"csv", "png", "txt"}
    demo.write_text("data: data/demo.h5ad\nk: 20\nsettings: mine.yaml\nformats: [svg]\n")  # as in read_settings
    assert kinds("figures") == {"csv", "svg", "txt"}


def test_one_figure_is_drawn_at_once_without_any_stage(done):
    (done.root / "notebooks/params/demo.yaml").write_text("data: data/demo.h5ad\nk: 20\ncolor_by: [condition]\n")
    done.edit("notebooks/02_train_base_nmf.py")
    for executor in ("local", "slurm"):
        assert done.ran("figures", "FIGURE=fig2", "FORMAT=svg", f"EXECUTOR={executor}") == []
        (call,) = (done.root / "called").read_text().splitlines()
        (done.root / "called").unlink()
        words = call.split()
        assert words[0] == "draw"
        assert {"FIGURE=fig2", "FORMAT=svg"} <= {*words}
        assert words[words.index("--run") + 1] == "results/demo/k20"
    assert done.ran("all") == STAGES[1:2] + STAGES[5:]


def test_a_report_packs_what_exists_and_computes_nothing(done):
    done.edit("notebooks/02_train_base_nmf.py")
    for words in ([], ["SEED=7", "MIN_CELLS=9"], ["SETTINGS=none.yaml"]):
        before = {name: (done.root / "results" / name).stat().st_mtime_ns for name in done.files("results")}
        assert done.ran("report", *words) == []
        assert {name: (done.root / "results" / name).stat().st_mtime_ns for name in done.files("results")} == before
    call = "report results/demo/k20 --out results/demo/k20/report\n"
    assert (done.root / "called").read_text() == 3 * call


@pytest.mark.parametrize("words", [["-j3", "report", "all"], ["all", "report"]])
def test_a_report_waits_for_the_other_goals_of_the_call(make, words):
    make.program("python.py", PYTHON + '\nif command == "report":\n    Path("ran").open("a").write("report\\n")\n')
    assert make.ran(*words) == [*STAGES, "report"] if "-j3" not in words else make.ran(*words)[-1] == "report"


def test_after_the_figures_make_names_their_folder_and_the_report(done):
    for goal in ("all", "figures"):
        last = done(goal, "DATASET=demo", "K=20").stdout.splitlines()[-1]
        assert "results/demo/k20/figures/" in last and last.endswith("make report DATASET=demo K=20")
    assert "make report" not in done("figures", "FIGURE=fig1").stdout + done("train").stdout


def test_new_cells_are_projected_with_a_model(make):
    (make.root / "new.h5ad").touch()
    (make.root / "model_k5.h5ad").touch()
    words = ["project", "CELLS=new.h5ad", "MODEL=model_k5.h5ad", "DONOR_KEY=the donor", "LAYER=", "FRACTIONAL=true"]
    for _ in range(2):  # always again, with the options of this call
        done = make(*words, EXECUTOR="local")
        assert done.returncode == 0, done.stderr
    out = "results/new/projected/model_k5.h5ad"
    call = f"new.h5ad model_k5.h5ad --out {out} --donor_key the donor --fractional\n"
    assert (make.root / "projected").read_text() == 2 * call
    assert make.files("results") == {out.removeprefix("results/")}  # nothing of the demo


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL=model.h5ad"], "CELLS='': expected an existing file"),
        (["CELLS=none.h5ad", "MODEL=model.h5ad"], "CELLS='none.h5ad': expected an existing file"),
        (
            ["CELLS=new.h5ad new.h5ad", "MODEL=model.h5ad"],
            "CELLS='new.h5ad new.h5ad': expected an existing file without spaces in its name",
        ),
        (["CELLS=new.h5ad"], "MODEL='': expected an existing file"),
        (["CELLS=new.h5ad", "MODEL=none.h5ad"], "make project CELLS=new.h5ad MODEL=results/demo/k12/ae_nmf_k12.h5ad"),
    ],
)
def test_a_projection_without_cells_or_model_is_refused(make, words, message):
    for name in ("new.h5ad", "model.h5ad"):
        (make.root / name).touch()
    for flag in ([], ["-n"]):
        refused = make(*flag, "project", *words)
        assert refused.returncode == 2
        assert message in refused.stderr


def test_all_makes_every_result_once(done):
    run = {f"params/{stage}.yaml" for stage in STAGES[1:]} | {f"{stage}.ipynb" for stage in STAGES[1:]}
    run |= (
        {f"{model}_k20.h5ad" for model in MODELS.values()}
        | set(PROGRAMS)
        | set(TABLES)
        | set(FIGURES)
        | {"umap.h5ad", "check.txt"}
    )
    assert done.files("results/demo/k20") == run
    assert {name for name in done.files("results/demo") if "digests/" not in name} == {
        f"k20/{name}" for name in run
    } | {
        "filtered.h5ad",
        "01_filter.ipynb",
        "cohort.csv",
        "params/01_filter.yaml",
        "input.yaml",
        ".input.json",
    }
    assert done.ran("all") == []
    assert done.would_run("all") == []


def test_scores_are_made_before_the_benchmarks_when_both_are_goals(make):
    ran = make.ran("-j4", "scores", "benchmarks")
    assert (ran[0], sorted(ran[1:5]), ran[5:]) == (STAGES[0], STAGES[1:5], ["06_benchmarks"])
    assert {name for name in make.files("results/demo/k20") if ".done" in name} == {f"{part}.done" for part in SCORES}
    assert make.ran("scores", "benchmarks") == []


def test_scores_need_valid_values_and_an_environment(make):
    (make.root / "notebooks/params/demo.yaml").write_text("data: data/demo.h5ad\nk: 20\nclassification_seeds: [x]\n")
    refused = make("scores")
    assert refused.returncode == 2 and "classification_seeds: expected int, found 'x'" in refused.stderr
    assert "Type 'make setup' first" in make("scores", python=False).stderr
    assert not (make.root / "ran").exists()


def test_the_untied_model_is_trained_only_if_it_is_named(make):
    assert make.ran("train") == STAGES[:5]
    assert not any("untied" in file for file in make.files("results/demo"))
    named = "MODELS=Base_NMF AE_NMF CAE_NMF1 CAE_NMF2 Untied_AE_NMF"
    (command,) = [line for line in make("-n", "train", named).stdout.splitlines() if "execute" in line]
    assert f"notebooks/{UNTIED}.py" in command and "ae_nmf_path" not in command  # its AE-NMF has other gene weights
    assert make.ran("train", "MODELS=all") == [UNTIED]
    assert make.ran("train", named) == []
    models = "results/demo/k20/{}_k20.h5ad"
    given = (make.root / "results/demo/k20/params/06_benchmarks.yaml").read_text()
    assert [line[2:] for line in given.splitlines() if line.startswith("- results/")] == [
        models.format(model) for model in [*MODELS.values(), "untied_ae_nmf"]
    ]
    pooled = make("-n", "train", "SHARDS=2", "MODELS=Untied_AE_NMF").stdout
    assert "sums_pooled" in pooled and "--by-donor" not in pooled


def test_sums_are_per_donor_only_if_model_2_is_trained_or_such_sums_exist(make):
    def summed(models, *arguments):
        shown = make("-n", "train", "SHARDS=2", f"MODELS={models}", *arguments).stdout
        return [line.split("sum ", 1)[1] for line in shown.splitlines() if " sum " in line]

    make("filter")
    for models, folder, n in (("AE_NMF CAE_NMF1", "sums_pooled", 0), ("AE_NMF CAE_NMF2", "sums", 2)):
        commands = " ".join(summed(models))
        assert commands.count(f"--out results/demo/{folder}/") == 2
        assert commands.count("--by-donor") == n
    assert " ".join(summed("AE_NMF", "DEVICE=cuda:1")).count("--device cuda:1") == 2
    make("train", "SHARDS=2")
    assert (make.root / "results/demo/sums.npz").exists()
    values = make.root / "results/demo/k20/params/03_train_ae_nmf.yaml"
    make("train", "SHARDS=2", "MODELS=AE_NMF")
    assert "sums_path: results/demo/sums.npz" in values.read_text()
    assert not (make.root / "results/demo/sums_pooled.npz").exists()


def test_sums_over_shards_are_made_before_the_models_that_read_them(make):
    def summed(*arguments):
        (make.root / "summed").unlink(missing_ok=True)
        ran = make.ran("-j4", "train", *arguments)
        return ran, (make.root / "summed").read_text().split() if (make.root / "summed").exists() else []

    eleven = [f"{i:02}-of-11" for i in range(11)]  # names sort like numbers
    ran, first = summed("SHARDS=11")
    assert (ran[0], sorted(ran)) == (STAGES[0], STAGES[:5])
    assert (sorted(first[:-1]), first[-1]) == (eleven, "sums")
    for stage, takes in zip(STAGES[1:5], (False, True, True, True), strict=True):
        values = (make.root / f"results/demo/k20/params/{stage}.yaml").read_text()
        assert ("sums_path: results/demo/sums.npz" in values) == takes
    assert summed("SHARDS=11") == ([], [])
    (make.root / "results/demo/sums/03-of-11.npz").unlink()
    again, sums = summed("SHARDS=11")
    assert (sorted(again), sums) == (STAGES[2:5], ["03-of-11", "sums"])
    assert summed("SHARDS=11", "K=5")[1] == []  # shared by all k of a data set
    assert sorted(summed("SHARDS=2")[1]) == ["0-of-2", "1-of-2", "sums"]
    make.edit("aenmf_lib/training/moments.py")
    again, sums = summed("SHARDS=2")
    assert (sorted(again), sorted(sums)) == (STAGES[1:5], ["0-of-2", "1-of-2", "sums"])
    assert sorted(summed()[0]) == STAGES[2:5]  # from the cells again
    make.touch("results/demo/filtered.h5ad")
    assert sorted(summed("SHARDS=2")[1]) == ["0-of-2", "1-of-2", "sums"]


@pytest.mark.parametrize("jobs", ["-j1", "-j8"])
def test_a_stage_with_several_results_runs_once(make, jobs):
    assert sorted(make.ran(jobs, "all")) == sorted(STAGES)


@pytest.mark.parametrize(
    ("edited", "again"),
    [
        ("notebooks/10_programs.py", DESCRIBED),
        ("notebooks/07_figures.py", ["07_figures"]),
        ("notebooks/06_benchmarks.py", SCORED),
        ("notebooks/04_train_cae_nmf1.py", [STAGES[3], *STAGES[5:]]),
        ("notebooks/01_filter.py", STAGES),
        ("aenmf_lib/figures/style.py", ["07_figures"]),
        ("aenmf_lib/figures/aenmf.mplstyle", ["07_figures"]),
        ("figures/settings.yaml", ["07_figures"]),
        ("aenmf_lib/metrics/clustering.py", STAGES[5:]),
        ("aenmf_lib/metrics/neighbors.py", STAGES[5:]),
        ("aenmf_lib/models/matching.py", STAGES[1:]),
        ("aenmf_lib/programs/tables.py", DESCRIBED),
        ("aenmf_lib/training/solver.py", STAGES[1:]),
        ("aenmf_lib/data/preprocessing.py", STAGES),
        ("aenmf_lib/data/simulation.py", STAGES),
        ("aenmf_lib/workflow/run.py", []),
        ("aenmf_lib/conditioning/study.py", []),
        ("constraints.txt", []),
    ],
)
def test_a_new_date_reruns_nothing_and_new_content_the_dependent_stages(done, edited, again):
    done.touch(edited)
    assert done.would_run("all") == []
    assert done.ran("all") == []
    done.edit(edited)
    assert done.would_run("all") == again
    assert done.ran("all") == again
    assert done.ran("all") == []


def test_a_comment_or_docstring_of_the_library_reruns_nothing(done):
    file = done.root / "aenmf_lib/training/solver.py"
    file.write_text('"""A solver."""\n\n\ndef solve():\n    """Solve it."""\n    return 1  # one\n')
    assert done.ran("all") == STAGES[1:]
    file.write_text('"""The solver."""\n\ndef solve():\n    """Solve all."""\n\n    return 1\n')
    assert done.ran("all") == []
    file.write_text('"""The solver."""\n\ndef solve():\n    """Solve all."""\n\n    return 2\n')
    assert done.ran("all") == STAGES[1:]


SAVED = """\
# ---
# jupyter:
#   kernelspec:
#     name: python3
# ---

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# Other prose

# %% jupyter={"outputs_hidden": true} tags=["parameters"]
k: int = 12\x20\x20
sums_path: str = ""
strength: float = 0.2

"""


def test_a_notebook_saved_by_jupyter_is_the_same_code(done):
    notebook = done.root / "notebooks/03_train_ae_nmf.py"
    assert [line.strip() for line in SAVED.split("\n")[-5:-1]] == notebook.read_text().split("\n")[1:]
    notebook.write_text(SAVED, newline="\r\n")
    assert done.ran("all") == []
    notebook.write_text(SAVED.replace("0.2", "0.3"))
    assert done.ran("all") == STAGES[2:]  # models 1 and 2 start from AE-NMF
    notebook.write_text(SAVED.replace("0.2", "0.3") + "# %%\n1 + 1\n# %% [markdown]\n# 1 + 1\n")
    assert done.ran("all") == STAGES[2:]
    notebook.write_text(SAVED.replace("0.2", "0.3") + "# %%\n1 +\n# %%\n1\n")  # a cell that was split
    assert done.ran("all") == STAGES[2:]


def test_results_are_up_to_date_when_the_dates_of_all_files_change(done):
    for path in done.root.rglob("*.py"):  # as after a clone or a change of branch
        os.utime(path)
    assert done.ran("all") == []
    assert done.would_run("all") == []


@pytest.mark.parametrize(
    ("lost", "again"),
    [
        ("filtered.h5ad", STAGES),
        ("01_filter.ipynb", STAGES),
        ("k20/cae_nmf1_k20.h5ad", ["04_train_cae_nmf1", *STAGES[5:]]),
        ("k20/04_train_cae_nmf1.ipynb", ["04_train_cae_nmf1", *STAGES[5:]]),
        ("cohort.csv", STAGES),
        *((f"k20/{name}", SCORED) for name in [*TABLES, "umap.h5ad", "06_benchmarks.ipynb"]),
        *((f"k20/{name}", ["07_figures"]) for name in [*FIGURES[:5], FIGURES[-1], "07_figures.ipynb"]),
        *((f"k20/{name}", DESCRIBED) for name in [*PROGRAMS[:2], PROGRAMS[-1], "10_programs.ipynb"]),
        ("digests/training.sha256", STAGES[1:]),
    ],
)
def test_deleted_result_is_rebuilt(done, lost, again):
    (done.root / "results/demo" / lost).unlink()
    assert done.ran("all") == again
    assert done.ran("all") == []


@pytest.mark.parametrize(
    ("yaml", "again"),
    [
        ("data: data/demo.h5ad\nk: 20\nmax_cells: 9\n", SCORED),
        ("data: data/demo.h5ad\nk: 20\n05_train_cae_nmf2: {}\n", []),
        ("data: data/demo.h5ad\nmin_cells: 9\nk: 20\n", STAGES),
    ],
)
def test_a_changed_value_reruns_the_notebooks_that_declare_it(done, yaml, again):
    (done.root / "notebooks/params/demo.yaml").write_text(yaml)
    assert done.would_run("all") == again
    assert done.ran("all") == again


def test_a_goal_runs_only_the_stages_it_needs(make):
    assert make.ran("train") == STAGES[:5]
    assert make.ran("programs") == ["10_programs"]
    assert make.ran("figures") == SCORED


def test_an_unknown_name_in_the_yaml_stops_before_anything_runs(make):
    (make.root / "notebooks/params/demo.yaml").write_text("data: data/demo.h5ad\nmin_cell: 5\n")
    stopped = make("-j4", "all")
    assert stopped.returncode == 2
    assert "Unknown parameter min_cell in notebooks/params/demo.yaml. Did you mean min_cells or" in stopped.stderr
    assert not (make.root / "results").exists()
    assert not (make.root / "ran").exists()


def test_results_of_each_data_set_and_k_have_their_own_folder(done):
    (done.root / "cells").mkdir()
    (done.root / "cells/mine.h5ad").touch()
    assert done.ran("all", "K=5") == STAGES[1:]  # the cells do not depend on k
    assert done.ran("all", "DATA=cells/mine.h5ad") == STAGES
    assert done.ran("all") == []
    folders = {path.relative_to(done.root / "results").as_posix() for path in done.root.glob("results/*/k*")}
    assert folders == {"demo/k20", "demo/k5", "mine/k80"}  # 80: of notebooks/defaults.yaml
    assert (done.root / "results/demo/k5/params/02_train_base_nmf.yaml").read_text() == "k: 5\n"
    assert (done.root / "results/mine/params/01_filter.yaml").read_text() == "data: cells/mine.h5ad\n"


def test_variables_of_the_command_line_set_values(make):
    assert make.ran("filter", PYTHON="/bin/false", MIN_CELLS="") == ["01_filter"]
    values = make.root / "results/demo/params/01_filter.yaml"
    assert values.read_text() == "data: data/demo.h5ad\n"
    assert make.ran("filter", "MIN_CELLS=7", "MAX_CELLS=8") == ["01_filter"]
    assert values.read_text() == "data: data/demo.h5ad\nmin_cells: 7\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATA=my cells.h5ad"], "DATA='my cells.h5ad' contains a space"),
        (["DATASET=my cells"], "DATASET='my cells' cannot name a folder"),
        (["DATASET=..", "DATA=x.h5ad"], "DATASET='..' cannot name a folder"),
        (["DATASET=", "DATA=x.h5ad"], "DATASET='' cannot name a folder"),
        (["DATASET=a/b", "DATA=x.h5ad"], "DATASET='a/b' cannot name a folder"),
        (["DATA=o'brien.h5ad"], "DATASET='o'brien' cannot name a folder"),
        (["K=many"], "K='many': expected the number of programs"),
        (["SHARDS=0"], "SHARDS=0: expected a number of shards, such as SHARDS=8"),
        (["SHARDS=-3"], "SHARDS=-3: expected a number of shards"),
        (["MIN_CELLS=many"], "MIN_CELLS: expected int, found 'many'"),
        (["LABELS=clusters"], "Unknown variable LABELS"),
        (["KK=20"], "Unknown variable KK. Did you mean K? Valid variables: DATASET, DATA, K, MODELS, QUICK, MIN_CELLS"),
        (["MIN_CELL=3"], "Unknown variable MIN_CELL. Did you mean MIN_CELLS"),
        (["min_cells=3"], "Unknown variable min_cells. Did you mean MIN_CELLS"),
        (["STARTS=3"], "make has no variable STARTS. Set starts in notebooks/params/<data set>.yaml"),
        (["K=5 10"], "K='5 10': expected the number of programs, such as K=20. To compare several numbers: make rank"),
        (["K=5 x"], "K='5 x': expected the number of programs"),
        (["MODEL=Base_NMF"], "does not read MODEL, only 'make project' and 'make projection'. Did you mean MODELS?"),
        (["BY=condition"], "does not read BY, only 'make differential'. Remove it"),
        (["FIGURE=fig1"], "does not read FIGURE, only 'make figures'. Remove it"),
        (["WIDTH=wide"], "WIDTH: expected float, found 'wide'"),
        (["FORMATS=svg"], "Unknown variable FORMATS. Did you mean FORMAT"),
        (["MODELS=Base_NMF,PCA"], "MODELS='Base_NMF,PCA': expected some of Base_NMF AE_NMF CAE_NMF1 CAE_NMF2"),
        (["QUICK=yes"], "QUICK=yes: expected true or false"),
        (["EXECUTOR=cloud"], "EXECUTOR='cloud': expected local or slurm"),
    ],
)
def test_a_wrong_variable_is_refused_before_anything_runs(make, arguments, message):
    (make.root / "results").mkdir()
    for goal in (["clean"], ["-n", "all"]):
        refused = make(*goal, *arguments)
        assert refused.returncode == 2
        assert message in refused.stderr
        assert refused.stdout == ""
    assert os.listdir(make.root / "results") == []


def test_a_wrong_variable_is_refused_before_the_environment_exists(bare):
    refused = bare("all", "KK=20", python=False, PATH=str(bare.root / "bin"))
    assert refused.returncode == 2
    assert "Unknown variable KK. Did you mean K?" in refused.stderr
    assert not (bare.root / ".venv").exists()


def test_a_data_set_without_data_is_refused(make):
    (make.root / "notebooks/params/bare.yaml").write_text("k: 3\n")
    assert "Pass DATA=cells.h5ad, or add the line 'data: cells.h5ad'" in make("filter", "DATASET=bare").stderr


def test_values_with_special_characters_reach_the_notebook(make):
    name = 'my$HOME"cells`.h5ad'
    (make.root / name).touch()
    words = [f"DATA={name.replace('$', '$$')}", "DATASET=mine", "DONOR_KEY=the donor's, \\ # $$ %"]
    assert make.ran("filter", *words) == ["01_filter"]
    values = yaml.safe_load((make.root / "results/mine/params/01_filter.yaml").read_text())
    assert values == {"data": name, "donor_key": "the donor's, \\ # $ %"}


def test_conditioning_refuses_variables_that_it_does_not_read(make):
    refused = make("conditioning", "STRENGTH=1", "SEED=3")
    assert refused.returncode == 2
    assert "'make conditioning' does not read SEED, STRENGTH: it compares several strengths" in refused.stderr
    assert "strengths, starts" in refused.stderr
    assert make.ran("conditioning", "MIN_CELLS=3") == [STAGES[0], STUDY]


def test_clean_removes_the_results_of_one_data_set(done):
    (done.root / "results/other").mkdir()
    assert done("clean").stdout == "Removing results/demo\n"
    assert os.listdir(done.root / "results") == ["other"]
    assert done("clean", "DATASET=mine").returncode == 0  # also if there is nothing to remove


def test_a_failed_stage_runs_again(make):
    broken = (
        PYTHON + '\nif "notebooks/05_train_cae_nmf2.py" in sys.argv:\n    Path(made[-1]).unlink()\n    sys.exit(1)\n'
    )
    make.program("python.py", broken)
    assert make("all").returncode == 2
    make.program("python.py", PYTHON)
    assert make.ran("all") == STAGES[4:]


@pytest.mark.parametrize("stage", ["06_benchmarks", "10_programs"])
def test_a_failed_stage_leaves_the_results_of_the_last_run(done, stage):
    before = done.files("results")
    fails = f'\nif "notebooks/{stage}.py" in sys.argv:\n    Path(made[-1]).unlink(missing_ok=True)\n    sys.exit(1)\n'
    done.program("python.py", PYTHON.replace("for path in map(Path, made):", f"{fails}for path in map(Path, made):"))
    (done.root / f"notebooks/{stage}.py").write_text(
        (done.root / f"notebooks/{stage}.py").read_text() + "\n# %%\n1 + 1\n"
    )
    failed = done("all")
    assert failed.returncode == 2 and f"{stage}.py" in failed.stdout, failed.stderr
    assert before - done.files("results") == {f"demo/k20/{stage}.ipynb"}
    done.program("python.py", PYTHON)
    assert stage in done.ran("all")


def test_projecting_never_trains_the_model_again(done):
    (done.root / "new.h5ad").touch()
    model = "results/demo/k20/ae_nmf_k20.h5ad"
    done.touch("aenmf_lib/training/solver.py")
    (done.root / "aenmf_lib/training/solver.py").write_text("changed = True\n")
    assert done.ran("project", "CELLS=new.h5ad", f"MODEL={model}", "DONOR_KEY=patient") == []
    assert "--out results/new/projected/demo_k20_ae_nmf_k20.h5ad" in (done.root / "projected").read_text()


def test_explore_opens_a_notebook_of_the_run_that_is_made_once(make, monkeypatch):
    shutil.copy(ROOT / "notebooks/09_explore.py", make.root / "notebooks")
    monkeypatch.chdir(make.root)
    cli.main(["copy", "notebooks/09_explore.py", "--out", "own.ipynb", "-p", "tables_dir", "t"])
    cells = json.loads(Path("own.ipynb").read_text())["cells"]
    assert ["".join(c["source"]) for c in cells if "injected-parameters" in c["metadata"].get("tags", [])] == [
        '# Parameters\ntables_dir = "t"\n'
    ]
    shown = make("-n", "explore", "MODELS=AE_NMF").stdout
    assert "-p model_paths results/demo/k20/ae_nmf_k20.h5ad" in shown and "-p tables_dir results/demo/k20" in shown
    (make.root / "results/demo/k20").mkdir(parents=True)
    (make.root / "results/demo/k20/09_explore.ipynb").touch()
    assert "copy" not in make("-n", "explore").stdout


def test_a_signal_to_make_reaches_the_runner(make):
    waits = 'import os, time\nprint("waiting", os.getpid(), flush=True)\ntime.sleep(60)\n'
    make.program("python.py", PYTHON + f'\nif "--report" in sys.argv:\n    exec({waits!r})\n')
    words = ["make", f"PYTHON={make.python}", "filter"]
    with subprocess.Popen(
        words, cwd=make.root, env={"PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE, text=True
    ) as running:
        runner = next(psutil.Process(int(line.split()[1])) for line in running.stdout if line.startswith("waiting"))
        running.terminate()
        gone, _ = psutil.wait_procs([runner], timeout=10)
        if not gone:
            runner.kill()
    assert gone


# ---- the Makefile and the library agree ------------------------------------------------------------------------------


def test_the_makefile_lists_the_figures_of_the_library():
    listed = re.search(r"^FIGURES := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.M)[1].replace("\\", "")
    assert sorted([*listed.split(), "table1"]) == sorted(figures.FIGURES)
    assert listed.split() == NAMES


def imported_modules(file: Path) -> set[str]:
    """Return the modules of the library that a file imports, as package/module or package."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {f"programs.{name}" for name in programs.__all__}:
            names |= {f"aenmf_lib.{programs._MODULES[node.attr]}"}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} - {"aenmf_lib.programs"}
    modules = set()
    for name in names:
        library, *parts = name.split(".")
        if library == "aenmf_lib":
            if parts[0] in aenmf_lib._MODELS:  # from aenmf_lib import AENMF
                parts = ["models", aenmf_lib._MODELS[parts[0]]]
            path = ROOT / "aenmf_lib" / "/".join(parts[:2])
            modules.add("/".join(parts[:2]) if path.with_suffix(".py").is_file() else parts[0])
    return modules


ALL_STAGES = [*STAGES, *(stage for stage, _ in ON_REQUEST.values())]


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_a_stage_depends_on_every_module_that_it_imports(make, stage):
    shown = make("-np", "all", *ON_REQUEST).stdout
    rule = re.search(rf"^results/\S+: results/\S+/params/{stage}\.yaml .*$", shown, re.M)[0]
    parts = {name.replace(".", "/") for name in re.findall(r"digests/(\S+)\.sha256", rule)}
    parts -= {"gene_sets", "settings", "extra"}
    assert stage in parts
    files = [ROOT / f"notebooks/{stage}.py", *(file for part in parts for file in ROOT.glob(f"aenmf_lib/{part}.py"))]
    files += [file for part in parts for file in ROOT.glob(f"aenmf_lib/{part}/*.py")]
    needed = {module for file in files for module in imported_modules(file)}
    used = {part.split("/")[0] for part in parts}
    shown = {"figures", "programs"} - used  # only shown in the report: a new color must not retrain a model
    needed = {module for module in needed if module.split("/")[0] not in shown}
    assert sorted(module for module in needed if not {module, module.split("/")[0]} & parts) == []


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_make_passes_only_parameters_that_the_notebook_declares(make, stage):
    shown = make("-n", "all", *ON_REQUEST, "SHARDS=2").stdout
    call = re.search(rf"execute notebooks/{stage}\.py .*", shown)[0]
    passed = set(re.findall(r" -p (\w+)", call))
    assert passed <= declared(ROOT / f"notebooks/{stage}.py").keys()
    assert ("sums_path" in declared(ROOT / f"notebooks/{stage}.py")) == (stage in STAGES[2:5])


def test_lab_runs_notebooks_in_the_root_and_opens_scripts_as_notebooks():
    from traitlets.config import PyFileConfigLoader

    settings = ROOT / "notebooks/.jupyter"
    config = PyFileConfigLoader("jupyter_server_config.py", path=str(settings)).load_config()
    manager = config.ServerApp.kernel_manager_class(root_dir=str(ROOT))
    assert manager.cwd_for_path("notebooks/params/none.py") == str(ROOT)
    overrides = json.loads((settings / "labconfig/default_setting_overrides.json").read_text())
    assert overrides["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"] == {"python": "Jupytext Notebook"}


@pytest.mark.parametrize(("goal", "page"), [("lab", ""), ("explore", "/tree/results/demo/k12/09_explore.ipynb")])
def test_lab_prints_its_address_once_and_stops_without_a_question(tmp_path, goal, page):
    for name in ("Makefile", "slurm", "notebooks"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    words = ["make", goal, f"PYTHON={sys.executable}", "EXECUTOR=local"]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "BROWSER": "true"}  # a browser that does nothing
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # a shell starts processes in the background with Ctrl-C ignored, also this one
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(words, cwd=tmp_path, env=env, start_new_session=True, **pipes) as server:
        try:
            first = server.stdout.readline()
            address = re.fullmatch(rf"JupyterLab: (http://127\.0\.0\.1:\d+/lab{page}\?token=\w{{48}})\n", first)
            assert address, first
            assert urllib.request.urlopen(address[1], timeout=30).status == 200
        finally:
            os.killpg(server.pid, signal.SIGINT)  # Ctrl-C
        rest = server.communicate(timeout=30)[0]
    assert "token=" not in rest


# ---- the set-up ------------------------------------------------------------------------------------------------------

UV = """\
#!/bin/sh
echo "uv $1" >> calls
case "$1" in
    (venv) mkdir -p .venv/bin && cp "$4" .venv/bin/python;;
    (pip) echo "$UV_FIND_LINKS" > links; test ! -e uv-cannot;;
esac
"""
# stub of python3: answers for its version, its path, venv, pip and compile
PYTHON3 = f"""\
#!/bin/sh
case "$*" in
    ("-m venv .venv") test ! -e venv-cannot && mkdir -p .venv/bin && cp "$0" .venv/bin/python; exit;;
    ("-m pip install -q uv") test ! -e uv-cannot && cp bin-uv .venv/bin/uv; exit;;
    ("-Es -m aenmf_lib compile") echo compile >> calls; exit;;
    ("-m pip install"*) echo pip >> calls; test ! -e pip-cannot; exit;;
    (*sys.executable*) echo "$0"; exit;;
esac
exec "{sys.executable}" "$@"
"""


@pytest.fixture
def bare(make: Sandbox) -> Sandbox:
    """A sandbox whose PATH has python3 and the usual tools, but no uv and no other Python."""
    for tool in ("sh", "sed", "cat", "cmp", "touch", "rm", "mkdir", "cp", "tr", "test", "awk", "make", "fold"):
        (make.root / "bin").mkdir(exist_ok=True)
        (make.root / "bin" / tool).symlink_to(shutil.which(tool))
    (make.root / "bin/python").unlink()
    make.program("python3", PYTHON3)
    make.program("../bin-uv", UV)
    return make


def set_up(make: Sandbox, *, fails: bool = False, **environment: str) -> str:
    """Run `make setup` and return how .venv was made."""
    (make.root / "calls").write_text("")
    done = make("setup", python=False, PATH=str(make.root / "bin"), **environment)
    assert (done.returncode == 2) == fails, done.stderr
    assert (make.root / ".venv/made-from").exists() != fails
    return done.stderr if fails else " ".join((make.root / "calls").read_text().split("\n")).strip()


def test_setup_uses_uv_from_the_path(bare):
    bare.program("uv", UV)
    assert set_up(bare, PIP_FIND_LINKS="a b") == "uv venv uv pip compile"
    assert (bare.root / "links").read_text() == "a,b\n"
    assert set_up(bare) == ""


def test_setup_installs_uv_if_there_is_none(bare):
    assert set_up(bare) == "uv pip compile"


def test_setup_falls_back_to_pip(bare):
    (bare.root / "uv-cannot").touch()
    assert set_up(bare) == "pip compile"
    bare.program("uv", UV)  # installed, but it cannot reach the packages
    shutil.rmtree(bare.root / ".venv")
    assert set_up(bare) == "uv venv uv pip pip compile"


def test_setup_runs_again_only_when_the_pins_change(bare):
    assert set_up(bare) == "uv pip compile"
    os.utime(bare.root / "pyproject.toml", (2**31, 2**31))
    assert set_up(bare) == ""
    (bare.root / "constraints.txt").write_text("others\n")
    os.utime(bare.root / "constraints.txt", (2**31, 2**31))
    (bare.root / ".venv/left").touch()
    assert set_up(bare) == "uv pip compile"
    assert not (bare.root / ".venv/left").exists()


def test_setup_runs_again_when_the_python_of_the_environment_is_missing(bare):
    assert set_up(bare) == "uv pip compile"
    (bare.root / ".venv/bin/python").unlink()
    assert set_up(bare) == "uv pip compile"


def test_setup_runs_again_after_it_failed(bare):
    (bare.root / "uv-cannot").touch()
    (bare.root / "pip-cannot").touch()
    set_up(bare, fails=True)
    (bare.root / "uv-cannot").unlink()
    assert set_up(bare) == "uv pip compile"


def test_setup_reports_a_python_without_venv(bare):
    (bare.root / "venv-cannot").touch()
    assert f"{bare.root}/bin/python3 cannot make an environment. Install its venv module" in set_up(bare, fails=True)
    assert not (bare.root / ".venv").exists()


def test_setup_skips_an_old_python(bare):
    (bare.root / "bin/python3").rename(bare.root / "bin/python3.12")
    bare.program("python3", "#!/bin/sh\nexit 1\n")
    assert set_up(bare) == "uv pip compile"
    (bare.root / "bin/python3.12").unlink()
    shutil.rmtree(bare.root / ".venv")
    assert "No Python 3.11 or later" in set_up(bare, fails=True)


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_with_the_library_is_used(bare, variable):
    other = bare.root / "their env"
    (other / "bin").mkdir(parents=True)
    (other / "bin/python").write_text('#!/bin/sh\ntest "$1 $4" = "-I " && test -e has-aenmf\n')
    (other / "bin/python").chmod(0o755)
    environment = {variable: str(other), "PATH": str(bare.root / "bin")}
    assert ".ci/make-venv" in bare("-n", "test", python=False, **environment).stdout
    (bare.root / "has-aenmf").touch()
    shown = bare("-n", "test", python=False, **environment).stdout
    assert shown == f'"{other}/bin/python" -m pytest -n 2 --dist loadfile\n'
    setup_done = bare("setup", python=False, **environment)
    assert setup_done.returncode == 0
    assert not (bare.root / ".venv").exists()


def test_status_without_slurm_says_what_to_do(make):
    refused = make("status", "EXECUTOR=local")
    assert refused.returncode != 0
    assert "'make status' needs Slurm, but 'scontrol ping' got no answer" in refused.stderr


def test_the_readme_lists_every_key_of_the_results_files():
    text = (ROOT / "README.md").read_text()
    keys = {key for table in (results.OBSM, results.VARM) for roles in table.values() for key in roles.values()}
    assert {key for key in keys if f"`{key.format(k='<K>')}`" not in text} == set()
