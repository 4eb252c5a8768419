"""The Makefile and the setup, in sandboxes in which nothing is installed and no notebook runs."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from sandbox import FIGURES, MODELS, PYTHON, ROOT, STAGES, STUDY, STUDY_FILES, TABLES, Sandbox

import aenmf_lib
from aenmf_lib import figures, results
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
    shutil.copytree(all_made.root, tmp_path, dirs_exist_ok=True)
    return Sandbox.existing(tmp_path)


def test_make_without_target_lists_the_public_targets_on_one_screen(make):
    shown = make().stdout
    listed = re.findall(r"^  make (\w+) +\S", shown, re.M)
    texts = [(ROOT / name).read_text() for name in ("Makefile", "slurm/slurm.mk")]
    phony = [name for text in texts for name in re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()]
    assert sorted(listed) == sorted({*phony} - {"resolved", "FORCE"})
    assert listed[:6] == ["all", "filter", "train", "benchmarks", "figures", "scores"]
    assert len(shown.splitlines()) <= 24
    assert max(map(len, shown.splitlines())) <= 120


def test_conditioning_is_not_part_of_all_and_needs_only_the_filtered_cells(make):
    assert make.ran("conditioning") == [STAGES[0], STUDY]
    assert make.files("results/demo/k20") >= {*STUDY_FILES, f"{STUDY}.ipynb"}
    assert make.ran("conditioning") == []
    assert make.ran("all") == STAGES[1:]
    make.touch("aenmf_lib/models/penalties.py")
    assert make.would_run("conditioning") == [STUDY]


def test_all_makes_every_result_once(done):
    run = {f"params/{stage}.yaml" for stage in STAGES[1:]} | {f"{stage}.ipynb" for stage in STAGES[1:]}
    run |= (
        {f"params/{STUDY}.yaml"}
        | {f"{model}_k20.h5ad" for model in MODELS.values()}
        | set(TABLES)
        | set(FIGURES)
        | {"umap.h5ad", "check.txt"}
    )
    assert done.files("results/demo/k20") == run
    assert done.files("results/demo") == {f"k20/{name}" for name in run} | {
        "filtered.h5ad",
        "01_filter.ipynb",
        "params/01_filter.yaml",
        "input.yaml",
        ".input.json",
    }
    assert done.ran("all") == []
    assert done.would_run("all") == []


def test_scores_are_made_before_the_benchmarks_when_both_are_goals(make):
    ran = make.ran("-j4", "scores", "benchmarks")
    assert (ran[0], sorted(ran[1:5]), ran[5:]) == (STAGES[0], STAGES[1:5], STAGES[5:6])
    jobs = make.files("results/demo/k20/classification_scores")
    assert jobs == {f"{model}.{label}.done" for model in MODELS.values() for label in ("cell_type", "donor_id")}
    assert make.ran("scores", "benchmarks") == []


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
    make.touch("aenmf_lib/training/moments.py")
    again, sums = summed("SHARDS=2")
    assert (sorted(again), sorted(sums)) == (STAGES[1:5], ["0-of-2", "1-of-2", "sums"])
    assert sorted(summed()[0]) == STAGES[2:5]  # from the cells again
    make.touch("results/demo/filtered.h5ad")
    assert sorted(summed("SHARDS=2")[1]) == ["0-of-2", "1-of-2", "sums"]


@pytest.mark.parametrize("jobs", ["-j1", "-j8"])
def test_a_stage_with_several_results_runs_once(make, jobs):
    assert sorted(make.ran(jobs, "all")) == STAGES


@pytest.mark.parametrize(
    ("touched", "again"),
    [
        ("notebooks/07_figures.py", STAGES[6:]),
        ("notebooks/06_benchmarks.py", STAGES[5:]),
        ("notebooks/04_train_cae_nmf1.py", [STAGES[3], *STAGES[5:]]),
        ("notebooks/01_filter.py", STAGES),
        ("aenmf_lib/figures/scores.py", STAGES[6:]),
        ("aenmf_lib/figures/aenmf.mplstyle", STAGES[6:]),
        ("aenmf_lib/metrics/clustering.py", STAGES[5:]),
        ("aenmf_lib/metrics/neighbors.py", STAGES[1:]),
        ("aenmf_lib/models/matching.py", STAGES[1:]),
        ("aenmf_lib/programs/tables.py", STAGES[6:]),
        ("aenmf_lib/training/solver.py", STAGES[1:]),
        ("aenmf_lib/data/preprocessing.py", STAGES),
        ("aenmf_lib/data/simulation.py", STAGES),
        ("aenmf_lib/workflow/run.py", []),
        ("aenmf_lib/conditioning/study.py", []),
        ("notebooks/params/demo.yaml", []),
        ("constraints.txt", []),
    ],
)
def test_touching_a_file_reruns_dependent_stages(done, touched, again):
    done.touch(touched)
    assert done.would_run("all") == again
    assert done.ran("all") == again
    assert done.ran("all") == []


@pytest.mark.parametrize(
    ("lost", "again"),
    [
        ("filtered.h5ad", STAGES),
        ("01_filter.ipynb", STAGES),
        ("k20/cae_nmf1_k20.h5ad", ["04_train_cae_nmf1", *STAGES[5:]]),
        ("k20/04_train_cae_nmf1.ipynb", ["04_train_cae_nmf1", *STAGES[5:]]),
        *((f"k20/{name}", STAGES[5:]) for name in [*TABLES, "umap.h5ad", "06_benchmarks.ipynb"]),
        *((f"k20/{name}", STAGES[6:]) for name in [*FIGURES[:3], FIGURES[-1], "07_figures.ipynb"]),
    ],
)
def test_deleted_result_is_rebuilt(done, lost, again):
    (done.root / "results/demo" / lost).unlink()
    assert done.ran("all") == again
    assert done.ran("all") == []


@pytest.mark.parametrize(
    ("yaml", "again"),
    [
        ("data: data/demo.h5ad\nk: 20\nmax_cells: 9\n", STAGES[5:]),
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
    assert make.ran("figures") == STAGES[5:]


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
    assert folders == {"demo/k20", "demo/k5", "mine/k80"}  # 80: the notebook's own default
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
        (["SHARDS=2", "LABELS=clusters"], "SHARDS does not work with LABELS=clusters"),
        (["KK=20"], "Unknown variable KK. Did you mean K? Valid variables: DATASET, DATA, K, MODELS, QUICK, MIN_CELLS"),
        (["MIN_CELL=3"], "Unknown variable MIN_CELL. Did you mean MIN_CELLS"),
        (["min_cells=3"], "Unknown variable min_cells. Did you mean MIN_CELLS"),
        (["STARTS=3"], "make has no variable STARTS. Set starts in notebooks/params/<data set>.yaml"),
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
    assert not (make.root / "results/demo/k20/cae_nmf2_k20.h5ad").exists()
    make.program("python.py", PYTHON)
    assert make.ran("all") == STAGES[4:]


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
    listed = re.search(r"^FIGURES := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert listed == list(figures.FIGURES)


def imported_modules(file: Path) -> set[str]:
    """Return the modules of the library that a file imports, as package/module or package."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    modules = set()
    for name in names:
        library, *parts = name.split(".")
        if library == "aenmf_lib":
            if parts[0] in {**aenmf_lib._MODELS, "programs": ""}:  # from aenmf_lib import AENMF
                parts = ["models", aenmf_lib._MODELS.get(parts[0], parts[0])]
            path = ROOT / "aenmf_lib" / "/".join(parts[:2])
            modules.add("/".join(parts[:2]) if path.with_suffix(".py").is_file() else parts[0])
    return modules


@pytest.mark.parametrize("stage", [*STAGES, STUDY])
def test_a_stage_depends_on_every_module_that_it_imports(make, stage):
    shown = make("-np", "all", "conditioning").stdout
    rule = re.search(rf"^results/\S+: notebooks/{stage}\.py .*$", shown, re.M)[0]
    files = [ROOT / f"notebooks/{stage}.py", *map(ROOT.joinpath, re.findall(r"aenmf_lib/\S+\.py", rule))]
    needed = {module for file in files for module in imported_modules(file)}
    if stage not in ("07_figures", STUDY):  # figures are only shown there: a new color must not retrain a model
        needed = {module for module in needed if not module.startswith("figures")}
    assert {module for module in needed if f" aenmf_lib/{module}" not in rule} == set()


@pytest.mark.parametrize("stage", [*STAGES, STUDY])
def test_make_passes_only_parameters_that_the_notebook_declares(make, stage):
    shown = make("-n", "all", "conditioning", "SHARDS=2").stdout
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
