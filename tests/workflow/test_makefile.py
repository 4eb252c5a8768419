"""The set-up and the Makefile, in sandboxes in which nothing is installed and no notebook is run."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import aenmf_lib
from aenmf_lib import results
from aenmf_lib.figures.embeddings import NAMES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"] if line
]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line[:60])
STAGES = [
    "01_filter",
    "02_train_base_nmf",
    "03_train_ae_nmf",
    "04_train_cae_nmf1",
    "05_train_cae_nmf2",
    "06_benchmarks",
    "07_figures",
]
STUDY = "08_conditioning"  # made when it is asked for
STUDIED = [
    "conditioning.csv",
    "conditioning_long.csv",
    *(f"figures/conditioning.{kind}" for kind in ("pdf", "png", "csv")),
]
FIGURES = [
    f"figures/{name}.{kind}"
    for name in ("clustering", "resolution", "classification", "classes", "umap", "programs", "training")
    for kind in ("pdf", "png", "csv")
]
TABLES = [
    *(f"{what}_{name}.csv" for what in ("clustering", "classification") for name in ("cell_type", "donor_id", "long")),
    *("clustering_resolution.csv", "classification_by_class.csv", "classification_confusion.csv", "integration.csv"),
    *("unseen_donors_long.csv", "unseen_donors_by_class.csv"),
]
MODELS = {
    "02_train_base_nmf": "base_nmf",
    "03_train_ae_nmf": "ae_nmf",
    "04_train_cae_nmf1": "cae_nmf1",
    "05_train_cae_nmf2": "cae_nmf2",
}


# ---- what is installed -----------------------------------------------------------------------------------------------


def imported(files: list[Path]) -> set[str]:
    """Names of the top-level packages that the files import."""
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"aenmf_lib"}


def test_what_is_imported_is_declared():
    distributions = packages_distributions()
    needed = imported([*ROOT.glob("aenmf_lib/*.py"), *ROOT.glob("notebooks/*.py")])
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert {name for name in needed if canonicalize_name(distributions[name][0]) not in declared} == set()


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_each_dependency_is_pinned_within_its_bound(requirement):
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_pins_are_plain_versions():
    assert {name: pin for name, pin in PINS.items() if not re.fullmatch(r"\d+(\.\d+)*(\.post\d+)?", pin)} == {}


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="not the environment that make makes")
def test_what_is_installed_is_what_is_pinned():
    found = {name: version(name).partition("+")[0] for name in PINS}
    assert found == PINS


def test_environment_yml_is_in_step_with_pyproject():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert conda["channels"] == ["conda-forge", "nodefaults"]
    python, pip, packages = conda["dependencies"]
    assert (python, pip) == (f"python{PROJECT['requires-python']}", "pip")
    assert packages == {"pip": ["-c constraints.txt", "-e .[test]"]}


def test_the_version_is_told_once():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])


# ---- make, with a Python that notes what it is asked for -----------------------------------------------------------

PYTHON = f"""\
import os, sys
from pathlib import Path
if sys.argv[1:4] == ["-m", "aenmf_lib.run", "resolve"] or sys.argv[1] == "slurm/submit.py":
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
if sys.argv[1:3] == ["-m", "aenmf_lib.synthetic"]:
    made = [sys.argv[3]]
elif sys.argv[1:3] == ["-m", "aenmf_lib.part"]:
    made = [sys.argv[sys.argv.index("--done") + 1]]
elif sys.argv[1:3] == ["-m", "aenmf_lib.shards"]:
    made = [sys.argv[-1]]
    with open("summed", "a") as summed:
        summed.write(Path(made[0]).stem + "\\n")
else:
    notebook, *options = sys.argv[4:]
    given = {{options[i + 1]: options[i + 2] for i, option in enumerate(options) if option == "-p"}}
    report = Path(options[options.index("--report") + 1])
    for path in [notebook, options[options.index("--params") + 1], *given.get("models", "").split(",")]:
        assert not path or Path(path).is_file(), path
    with open("ran", "a") as ran:
        ran.write(Path(notebook).stem + "\\n")
    made = {{
        "06_benchmarks": [f"{{given.get('out_dir')}}/{{name}}" for name in {[*TABLES, "umap.h5ad"]}],
        "07_figures": [f"{{given.get('out_dir')}}/{{name[8:]}}" for name in {FIGURES}],
        "{STUDY}": [f"{{given.get('out_dir')}}/{{name}}" for name in {STUDIED}],
    }}.get(Path(notebook).stem) or [given["out"]]
    made.append(report)
for path in map(Path, made):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("made")
"""


class Sandbox:
    """A copy of the Makefile among notebooks and modules that are empty."""

    @classmethod
    def of(cls, root: Path) -> "Sandbox":
        """One that is there already."""
        sandbox = cls.__new__(cls)
        sandbox.root, sandbox.python = root, root / "bin/python"
        return sandbox

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("notebooks/params", "aenmf_lib"):
            (root / folder).mkdir(parents=True)
        for name in ("Makefile", "aenmf_lib/run.py", "aenmf_lib/parameters.py"):
            shutil.copy(ROOT / name, root / name)
        for module in ("__init__", *modules_in_makefile(), "synthetic"):
            (root / f"aenmf_lib/{module}.py").touch()
        (root / "aenmf_lib/aenmf.mplstyle").touch()
        for stage in [*STAGES, STUDY]:
            k = "k: int = 80\n" if stage in [*MODELS, STUDY] else ""
            own = {"01_filter": 'data: str = ""\nmin_cells: int = 5\n', "06_benchmarks": "max_cells: int = 0\n"}
            own = own.get(stage, 'sums: str = ""\n' if stage in STAGES[2:5] else "")
            (root / f"notebooks/{stage}.py").write_text(f'# %% tags=["parameters"]\n{k}{own}')
        (root / "notebooks/params/demo.yaml").write_text("data: data/demo.h5ad\nk: 20\n")
        (root / "notebooks/params/other.yaml").write_text("data: other.h5ad\n")
        (root / "pyproject.toml").write_text("pyproject\n")
        (root / "constraints.txt").write_text("constraints\n")
        self.program("python.py", PYTHON)
        self.python = self.program("python", f'#!/bin/sh\nexec "{sys.executable}" "$0.py" "$@"\n')

    def program(self, name: str, text: str) -> Path:
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def __call__(self, *arguments: str, python: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        bare = {"PATH": "/usr/bin:/bin", "HOME": str(self.root)}
        asked = ["make", *([f"PYTHON={self.python}"] if python else []), *arguments]
        return subprocess.run(asked, cwd=self.root, env=bare | environment, capture_output=True, text=True, check=False)

    def ran(self, *arguments: str, **environment: str) -> list[str]:
        """Make, and tell which notebooks that ran."""
        note = self.root / "ran"
        note.write_text("")
        done = self(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return note.read_text().split()

    def would_run(self, *arguments: str) -> list[str]:
        """Ask make which notebooks it would run."""
        return re.findall(r"aenmf_lib\.run execute notebooks/(\w+)\.py", self("-n", *arguments).stdout)

    def files(self, folder: str) -> set[str]:
        return {str(path.relative_to(self.root / folder)) for path in (self.root / folder).rglob("*") if path.is_file()}


def modules_in_makefile() -> dict[str, list[str]]:
    """Of which stages' results the Makefile says that a module decides them."""
    stages: dict[str, list[str]] = {}
    for stage, modules in re.findall(r"^(\w+)_LIB := (.*)$", (ROOT / "Makefile").read_text(), re.M):
        for module in modules.split():
            stages.setdefault(module, []).append(stage)
    return stages


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
    """A copy of it, times and all."""
    shutil.copytree(all_made.root, tmp_path, dirs_exist_ok=True)
    return Sandbox.of(tmp_path)


def test_make_alone_lists_the_public_targets(make):
    listed = re.findall(r"^  make (\w+) +\S", make().stdout, re.M)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert sorted(listed) == sorted(set(phony) - {"resolved", "FORCE"})
    assert listed[:6] == ["all", "filter", "train", "benchmarks", "figures", "scores"]


def test_the_study_is_made_when_it_is_asked_for_and_needs_the_filtered_cells_alone(make):
    assert make.ran("conditioning") == [STAGES[0], STUDY]
    assert make.files("results/demo/k20") >= {*STUDIED, f"{STUDY}.ipynb"}
    assert make.ran("conditioning") == []
    assert make.ran("all") == STAGES[1:]
    os.utime(make.root / "aenmf_lib/penalties.py")
    assert make.would_run("conditioning") == [STUDY]


def test_all_makes_every_result_and_a_second_time_nothing(done):
    run = {f"params/{stage}.yaml" for stage in STAGES[1:]} | {f"{stage}.ipynb" for stage in STAGES[1:]}
    run |= (
        {f"params/{STUDY}.yaml"}
        | {f"{model}_k20.h5ad" for model in MODELS.values()}
        | set(TABLES)
        | set(FIGURES)
        | {"umap.h5ad"}
    )
    assert done.files("results/demo/k20") == run
    assert done.files("results/demo") == {f"k20/{name}" for name in run} | {
        "filtered.h5ad",
        "01_filter.ipynb",
        "params/01_filter.yaml",
    }
    assert done.ran("all") == []
    assert done.would_run("all") == []


def test_jobs_of_the_classification_come_before_the_notebook_if_they_are_asked_for(make):
    ran = make.ran("-j4", "scores", "benchmarks")
    assert (ran[0], sorted(ran[1:5]), ran[5:]) == (STAGES[0], STAGES[1:5], STAGES[5:6])
    jobs = make.files("results/demo/k20/classification_scores")
    assert jobs == {f"{model}.{label}.done" for model in MODELS.values() for label in ("cell_type", "donor_id")}
    assert make.ran("scores", "benchmarks") == []


def test_sums_over_shards_come_between_the_filter_and_the_models_that_take_them(make):
    def summed(*arguments):
        (make.root / "summed").unlink(missing_ok=True)
        ran = make.ran("-j4", "train", *arguments)
        return ran, (make.root / "summed").read_text().split() if (make.root / "summed").exists() else []

    eleven = [f"{i:02}-of-11" for i in range(11)]  # in the order of their numbers by name too
    ran, first = summed("SHARDS=11")
    assert (ran[0], sorted(ran)) == (STAGES[0], STAGES[:5])
    assert (sorted(first[:-1]), first[-1]) == (eleven, "sums")
    for stage, takes in zip(STAGES[1:5], (False, True, True, True), strict=True):
        values = (make.root / f"results/demo/k20/params/{stage}.yaml").read_text()
        assert ("sums: results/demo/sums.npz" in values) == takes
    assert summed("SHARDS=11") == ([], [])
    (make.root / "results/demo/sums/03-of-11.npz").unlink()
    again, sums = summed("SHARDS=11")
    assert (sorted(again), sums) == (STAGES[2:5], ["03-of-11", "sums"])
    assert summed("SHARDS=11", "K=5")[1] == []  # of the data set, for all ranks
    assert sorted(summed("SHARDS=2")[1]) == ["0-of-2", "1-of-2", "sums"]
    os.utime(make.root / "aenmf_lib/moments.py")
    again, sums = summed("SHARDS=2")
    assert (sorted(again), sorted(sums)) == (STAGES[1:5], ["0-of-2", "1-of-2", "sums"])
    assert sorted(summed()[0]) == STAGES[2:5]  # from the cells again
    os.utime(make.root / "results/demo/filtered.h5ad")
    assert sorted(summed("SHARDS=2")[1]) == ["0-of-2", "1-of-2", "sums"]


@pytest.mark.parametrize("jobs", ["-j1", "-j8"])
def test_a_run_that_makes_several_files_runs_once(make, jobs):
    assert sorted(make.ran(jobs, "all")) == STAGES


@pytest.mark.parametrize(
    ("touched", "again"),
    [
        ("notebooks/07_figures.py", STAGES[6:]),
        ("notebooks/06_benchmarks.py", STAGES[5:]),
        ("notebooks/04_train_cae_nmf1.py", [STAGES[3], *STAGES[5:]]),
        ("notebooks/01_filter.py", STAGES),
        ("aenmf_lib/figures.py", STAGES[6:]),
        ("aenmf_lib/aenmf.mplstyle", STAGES[6:]),
        ("aenmf_lib/clustering.py", STAGES[5:]),
        ("aenmf_lib/solver.py", STAGES[1:]),
        ("aenmf_lib/data.py", STAGES),
        ("aenmf_lib/synthetic.py", STAGES),
        ("aenmf_lib/run.py", []),
        ("notebooks/params/demo.yaml", []),
        ("constraints.txt", []),
    ],
)
def test_what_is_touched_runs_again_with_what_depends_on_it(done, touched, again):
    os.utime(done.root / touched)
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
def test_a_result_that_is_lost_is_made_again(done, lost, again):
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
def test_a_changed_value_runs_again_what_takes_it(done, yaml, again):
    (done.root / "notebooks/params/demo.yaml").write_text(yaml)
    assert done.would_run("all") == again
    assert done.ran("all") == again


def test_a_stage_makes_only_what_it_needs(make):
    assert make.ran("train") == STAGES[:5]
    assert make.ran("figures") == STAGES[5:]


def test_an_unknown_value_stops_before_anything_runs(make):
    (make.root / "notebooks/params/demo.yaml").write_text("data: data/demo.h5ad\nmin_cell: 5\n")
    stopped = make("all")
    assert stopped.returncode == 2
    assert (
        "notebooks/params/demo.yaml: 'min_cell' is no parameter of any notebook. Did you mean min_cells"
        in stopped.stderr
    )
    assert not (make.root / "ran").exists()


def test_two_ranks_and_two_data_sets_lie_side_by_side(done):
    (done.root / "cells").mkdir()
    (done.root / "cells/mine.h5ad").touch()
    assert done.ran("all", "K=5") == STAGES[1:]  # the cells do not depend on the rank
    assert done.ran("all", "DATA=cells/mine.h5ad") == STAGES
    assert done.ran("all") == []
    folders = {path.relative_to(done.root / "results").as_posix() for path in done.root.glob("results/*/k*")}
    assert folders == {"demo/k20", "demo/k5", "mine/k80"}  # 80: the notebook's own default
    assert (done.root / "results/demo/k5/params/02_train_base_nmf.yaml").read_text() == "k: 5\n"
    assert (done.root / "results/mine/params/01_filter.yaml").read_text() == "data: cells/mine.h5ad\n"
    os.utime(done.root / "cells/mine.h5ad")
    assert done.ran("all", "DATA=cells/mine.h5ad") == STAGES


def test_the_command_line_overrides_and_the_environment_does_not(make):
    assert make.ran("filter", K="7", DATA="x.h5ad", DATASET="other", MIN_CELLS="7", PYTHON="/bin/false") == [
        "01_filter"
    ]
    values = make.root / "results/demo/params/01_filter.yaml"
    assert values.read_text() == "data: data/demo.h5ad\n"
    assert make.ran("filter", "MIN_CELLS=7", "MAX_CELLS=8") == ["01_filter"]
    assert values.read_text() == "data: data/demo.h5ad\nmin_cells: 7\n"


def test_a_data_set_without_its_file_is_left_to_the_notebook(make):
    assert make.ran("filter", "DATASET=other") == ["01_filter"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["DATASET=dmeo"], "There is no data set 'dmeo'. There are: demo other. For cells of your own: make all DATA="),
        (["DATA=my cells.h5ad"], "DATA='my cells.h5ad' holds a space"),
        (["DATASET=my cells"], "DATASET='my cells' is to name a folder"),
        (["DATASET=..", "DATA=x.h5ad"], "DATASET='..' is to name a folder"),
        (["DATASET=", "DATA=x.h5ad"], "DATASET='' is to name a folder"),
        (["DATASET=a/b", "DATA=x.h5ad"], "DATASET='a/b' is to name a folder"),
        (["K=many"], "K='many': expected the number of programs"),
        (["SHARDS=0"], "SHARDS='0': expected the number of parts in which the cells are summed over"),
        (["SHARDS=-3"], "SHARDS='-3': expected the number of parts"),
        (["DATASET=bare"], "notebooks/params/bare.yaml has no line 'data: cells.h5ad'"),
    ],
)
def test_what_make_cannot_handle_is_refused(make, arguments, words):
    (make.root / "notebooks/params/bare.yaml").write_text("k: 3\n")
    (make.root / "results").mkdir()
    refused = make("clean", *arguments)
    assert refused.returncode == 2
    assert words in refused.stderr.replace("bare demo", "demo")
    assert (make.root / "results").is_dir()


def test_clean_removes_the_results_of_one_data_set(done):
    (done.root / "results/other").mkdir()
    assert done("clean").stdout == "Removing results/demo\n"
    assert os.listdir(done.root / "results") == ["other"]


def test_a_failed_stage_leaves_nothing_that_make_takes_for_done(make):
    broken = (
        PYTHON + '\nif "notebooks/05_train_cae_nmf2.py" in sys.argv:\n    Path(made[-1]).unlink()\n    sys.exit(1)\n'
    )
    make.program("python.py", broken)
    assert make("all").returncode == 2
    assert not (make.root / "results/demo/k20/cae_nmf2_k20.h5ad").exists()
    make.program("python.py", PYTHON)
    assert make.ran("all") == STAGES[4:]


def test_a_signal_to_make_reaches_what_it_runs(make):
    waits = 'import os, time\nprint("waits", os.getpid(), flush=True)\ntime.sleep(60)\n'
    make.program("python.py", PYTHON + f'\nif "--report" in sys.argv:\n    exec({waits!r})\n')
    asked = ["make", f"PYTHON={make.python}", "filter"]
    with subprocess.Popen(
        asked, cwd=make.root, env={"PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE, text=True
    ) as running:
        runner = next(psutil.Process(int(line.split()[1])) for line in running.stdout if line.startswith("waits"))
        running.terminate()
        gone, _ = psutil.wait_procs([runner], timeout=10)
        if not gone:
            runner.kill()
    assert gone


def test_figures_are_drawn_under_a_fixed_date(make):
    assert "SOURCE_DATE_EPOCH=1767225600" in make("-n", "figures").stdout.split("07_figures.py")[-2].splitlines()[-1]


# ---- the Makefile and the library say the same -----------------------------------------------------------------------


def test_the_figures_of_the_makefile_are_those_of_the_library():
    pass

    assert re.search(r"^FIGURES := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split() == list(NAMES)


def library_imports(file: Path) -> set[str]:
    """Modules of the library that a file imports, by whatever form of import."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in (node for node in nodes if isinstance(node, ast.ImportFrom)):
        names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    parts = {name.split(".")[1] for name in names if name.startswith("aenmf_lib.")}
    parts = {aenmf_lib._MODELS.get(part, part) for part in parts}
    return {part for part in parts if (ROOT / f"aenmf_lib/{part}.py").is_file()}


@pytest.mark.parametrize("stage", [*STAGES, STUDY, "01_sums"])
def test_the_makefile_names_the_modules_that_a_notebook_uses(stage):
    # Drawing decides no result but the figures: a new color must not train again.
    only_shown = set() if stage in ("07_figures", STUDY) else {"drawn", "figures", "page", "programs"}
    notebook, used = ROOT / f"notebooks/{stage}.py", set()
    todo = library_imports(notebook) - only_shown if notebook.exists() else {"shards"}
    while todo:
        used.add(module := todo.pop())
        todo |= library_imports(ROOT / f"aenmf_lib/{module}.py") - used - only_shown
    group = "TRAIN" if stage in MODELS else stage[3:].upper()
    named = {module for module, stages in modules_in_makefile().items() if group in stages}
    assert named >= used
    assert named - used == set() or group == "TRAIN"  # of the four, base NMF needs less than the others


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
# as a Python, with what make asks of it: its version, its place, an environment, pip
PYTHON3 = f"""\
#!/bin/sh
case "$*" in
    ("-m venv .venv") test ! -e venv-cannot && mkdir -p .venv/bin && cp "$0" .venv/bin/python; exit;;
    ("-m pip install -q uv") test ! -e uv-cannot && cp bin-uv .venv/bin/uv; exit;;
    ("-m pip install"*) echo pip >> calls; test ! -e pip-cannot; exit;;
    (*sys.executable*) echo "$0"; exit;;
esac
exec "{sys.executable}" "$@"
"""


@pytest.fixture
def bare(make: Sandbox) -> Sandbox:
    """A sandbox on whose PATH are python3 and the usual tools, no uv, and no other Python."""
    for tool in ("sh", "sed", "cat", "cmp", "touch", "rm", "mkdir", "cp", "tr", "test", "awk", "make"):
        (make.root / "bin").mkdir(exist_ok=True)
        (make.root / "bin" / tool).symlink_to(shutil.which(tool))
    (make.root / "bin/python").unlink()
    make.program("python3", PYTHON3)
    make.program("../bin-uv", UV)
    return make


def setup(make: Sandbox, *, fails: bool = False, **environment: str) -> str:
    """Run `make setup` and tell how .venv was made."""
    (make.root / "calls").write_text("")
    done = make("setup", python=False, PATH=str(make.root / "bin"), **environment)
    assert (done.returncode == 2) == fails, done.stderr
    assert (make.root / ".venv/made-from").exists() != fails
    return done.stderr if fails else " ".join((make.root / "calls").read_text().split("\n")).strip()


def test_uv_on_the_path_makes_the_environment(bare):
    bare.program("uv", UV)
    assert setup(bare, PIP_FIND_LINKS="a b") == "uv venv uv pip"
    assert (bare.root / "links").read_text() == "a,b\n"
    assert setup(bare) == ""


def test_uv_is_fetched_where_it_can_be_had(bare):
    assert setup(bare) == "uv pip"


def test_pip_where_uv_cannot_be_had(bare):
    (bare.root / "uv-cannot").touch()
    assert setup(bare) == "pip"
    bare.program("uv", UV)  # there, but it does not get to the packages
    shutil.rmtree(bare.root / ".venv")
    assert setup(bare) == "uv venv uv pip pip"


def test_the_environment_is_made_anew_when_what_it_was_made_from_changes(bare):
    assert setup(bare) == "uv pip"
    os.utime(bare.root / "pyproject.toml", (2**31, 2**31))
    assert setup(bare) == ""
    (bare.root / "constraints.txt").write_text("others\n")
    os.utime(bare.root / "constraints.txt", (2**31, 2**31))
    (bare.root / ".venv/left").touch()
    assert setup(bare) == "uv pip"
    assert not (bare.root / ".venv/left").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(bare):
    assert setup(bare) == "uv pip"
    (bare.root / ".venv/bin/python").unlink()
    assert setup(bare) == "uv pip"


def test_a_half_made_environment_is_not_taken_for_done(bare):
    (bare.root / "uv-cannot").touch()
    (bare.root / "pip-cannot").touch()
    setup(bare, fails=True)
    (bare.root / "uv-cannot").unlink()
    assert setup(bare) == "uv pip"


def test_a_python_that_cannot_make_environments_is_told_of(bare):
    (bare.root / "venv-cannot").touch()
    assert f"{bare.root}/bin/python3 cannot make an environment: install its venv module" in setup(bare, fails=True)
    assert not (bare.root / ".venv").exists()


def test_an_old_python_is_passed_over(bare):
    (bare.root / "bin/python3").rename(bare.root / "bin/python3.12")
    bare.program("python3", "#!/bin/sh\nexit 1\n")
    assert setup(bare) == "uv pip"
    (bare.root / "bin/python3.12").unlink()
    shutil.rmtree(bare.root / ".venv")
    assert "No Python 3.11 or later" in setup(bare, fails=True)


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_is_used_if_it_holds_the_library(bare, variable):
    theirs = bare.root / "their env"
    (theirs / "bin").mkdir(parents=True)
    (theirs / "bin/python").write_text('#!/bin/sh\ntest "$1 $4" = "-I " && test -e holds-aenmf\n')
    (theirs / "bin/python").chmod(0o755)
    environment = {variable: str(theirs), "PATH": str(bare.root / "bin")}
    assert "Making .venv" in bare("-n", "test", python=False, **environment).stdout
    (bare.root / "holds-aenmf").touch()
    asked = bare("-n", "test", python=False, **environment).stdout
    assert asked == f'"{theirs}/bin/python" -m pytest -n 2 --dist loadfile\n'
    setup_done = bare("setup", python=False, **environment)
    assert setup_done.returncode == 0
    assert not (bare.root / ".venv").exists()


def test_without_a_cluster_the_targets_about_its_jobs_say_so(make):
    told = make("status", "EXECUTOR=local")
    assert told.returncode != 0
    assert "make status is about jobs of Slurm, and none answers here" in told.stderr


def test_the_readme_tells_every_key_of_the_results_files():
    told = (ROOT / "README.md").read_text()
    keys = {key for table in (results.OBSM, results.VARM) for roles in table.values() for key in roles.values()}
    assert {key for key in keys if f"`{key.format(k='<K>')}`" not in told} == set()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("all", "MIN_CELL=3"), "MIN_CELL: no variable of this Makefile. There are: DATASET K DATA MIN_CELLS"),
        (("all", "min_cells=3"), "min_cells: no variable of this Makefile"),
        (("conditioning", "STRENGTH=1", "SEED=3"), "SEED STRENGTH: not read by 'make conditioning'"),
        (("all", "DONOR_KEY=the donor's"), "A value holds a quote (')"),
        (
            ("all", "DATA=elsewhere/demo.h5ad"),
            "results/demo/ was made from data/demo.h5ad, not from elsewhere/demo.h5ad",
        ),
    ],
)
def test_what_make_would_ignore_or_overwrite_is_refused(done, asked, told):
    files = done.files("results")
    refused = done(*asked)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert done.files("results") == files
    assert done("help").returncode == 0
