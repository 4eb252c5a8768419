"""A copy of the Makefile among empty notebooks and modules, with a stub of Python that only records its commands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODELS = {
    "02_train_base_nmf": "base_nmf",
    "03_train_ae_nmf": "ae_nmf",
    "04_train_cae_nmf1": "cae_nmf1",
    "05_train_cae_nmf2": "cae_nmf2",
}
STAGES = ["01_filter", *MODELS, "06_benchmarks", "10_programs", "07_figures"]  # in the order in which they run
SCORED, DESCRIBED = ["06_benchmarks", "07_figures"], ["10_programs", "07_figures"]  # each with what reads its tables
STUDY = "08_conditioning"  # not part of `make all`
UNTIED = "15_train_untied_ae_nmf"  # only if MODELS names it


def drawn(*names: str, formats: tuple[str, ...] = ("pdf", "png", "svg")) -> list[str]:
    """Return the files of figures."""
    return [f"figures/{name}.{kind}" for name in names for kind in (*formats, "csv", "txt")]


STUDY_FILES = ["conditioning.csv", "conditioning_long.csv", *drawn("conditioning")]
NAMES = ["fig1_benchmark", "fig2_embeddings", "fig3_programs", "fig4_loadings", "fig5_matching", "fig6_donors"]
NAMES += ["figS1_training", "figS3_cohort", "figS4_classes", "figS5_resolution"]
FIGURES = [*drawn(*NAMES), *drawn("table1", formats=("md", "tex"))]
PROGRAMS = [f"{table}_{model}.csv" for table in ("programs", "program_cards") for model in MODELS.values()]
PROGRAMS += ["usage_by_type.csv", "program_matches.csv", "gene_set_enrichment.csv"]
PROGRAMS += ["donor_genes.csv", "donor_share.csv"]
# the stages with a goal of their own, and their files
ON_REQUEST = {
    "conditioning": (STUDY, STUDY_FILES),
    "projection": ("11_project", ["projection.csv"]),
    "rank": ("12_rank", ["rank.csv", *drawn("figS2_rank")]),
    "consensus": ("13_consensus", ["consensus.csv"]),
    "differential": ("14_differential", ["differential_usage.csv", *drawn("differential")]),
}
TABLES = [
    *(f"{task}_{name}.csv" for task in ("clustering", "classification") for name in ("cell_type", "donor_id", "long")),
    *(
        "clustering_resolution.csv",
        "clustering_best.csv",
        "classification_by_class.csv",
        "classification_confusion.csv",
        "integration.csv",
    ),
    *("unseen_donors_long.csv", "unseen_donors_by_class.csv"),
]
# jobs of the classification: per model and label, also for unseen donors, one seed each
SCORES = [
    f"classification_scores/{model}.{label}.42" for model in MODELS.values() for label in ("cell_type", "donor_id")
]
SCORES = sorted([*SCORES, *(f"unseen_donors_scores/{model}.cell_type.42" for model in MODELS.values())])
# what the stub of `requests` prints for each stage
REQUEST = {"gpus": 0, "cpus": 1, "memory": 2**28, "seconds": 7200, "width": 8, "source": ""}
SENT_STAGES = [
    *STAGES,
    *(stage for stage, _ in ON_REQUEST.values()),
    "01_sums",
    "01_merge",
    "06_scores",
    "project",
    "lab",
]

PYTHON = f"""\
import os, sys
from pathlib import Path
isolated = sys.argv.pop(1) if sys.argv[1] == "-Es" else ""
command = sys.argv[3] if sys.argv[1:3] == ["-m", "aenmf_lib"] else ""
if command in ("resolve", "preflight", "jobs", "fetch") or sys.argv[1] == "slurm/submit.py":
    os.execv(sys.executable, [sys.executable, isolated, *sys.argv[1:]])
assert isolated or not command
if command == "simulate":
    made = [sys.argv[4]]
elif command == "requests":
    import json
    each = {REQUEST}
    on_gpu = {{stage: each | {{"gpus": 1}} for stage in {STAGES[2:5]} if "DEVICE=cuda" in sys.argv}}
    asked = dict.fromkeys({SENT_STAGES}, each) | on_gpu
    own = json.loads(Path("asked").read_text()) if Path("asked").exists() else {{}}
    asked |= {{stage: asked[stage] | request for stage, request in own.items()}}
    print(json.dumps({{"size": [4000, 2000], "stages": asked}}))
    made = []
elif command == "score":
    made = [sys.argv[sys.argv.index("--done") + 1]]
elif command == "project":
    with open("projected", "a") as projected:
        projected.write(" ".join(sys.argv[4:]) + "\\n")
    made = [sys.argv[sys.argv.index("--out") + 1]]
elif command in ("draw", "report"):
    with open("called", "a") as called:
        called.write(" ".join(sys.argv[3:]) + "\\n")
    made = []
elif command in ("sum", "merge"):
    made = [sys.argv[sys.argv.index("--out") + 1]]
    with open("summed", "a") as summed:
        summed.write(Path(made[0]).stem + "\\n")
elif command == "execute":
    notebook, *options = sys.argv[4:]
    given = {{options[i + 1]: options[i + 2] for i, option in enumerate(options) if option == "-p"}}
    report = Path(options[options.index("--report") + 1])
    values = Path(options[options.index("--params") + 1])
    models = [line[2:] for line in values.read_text().splitlines() if line.startswith("- results/")]
    read_models = ("06_benchmarks", "07_figures", "10_programs", "14_differential")
    assert bool(models) == any(name in notebook for name in read_models)
    for path in [notebook, *models]:
        assert Path(path).is_file(), path
    with open("ran", "a") as ran:
        ran.write(Path(notebook).stem + "\\n")
    made = {{
        "06_benchmarks": [f"{{given.get('out_dir')}}/{{name}}" for name in {[*TABLES, "umap.h5ad"]}],
        "07_figures": [f"{{given.get('out_dir')}}/{{name[8:]}}" for name in {FIGURES}],
        "10_programs": [f"{{given.get('out_dir')}}/{{name}}" for name in {PROGRAMS}],
    }} | {{
        stage: [f"{{given.get('out_dir')}}/{{name}}" for name in files] for stage, files in {list(ON_REQUEST.values())}
    }}
    made = made.get(Path(notebook).stem, []) + ([given["out"]] if "out" in given else [])
    if "filter" in notebook:
        made.append(f"{{given['out_dir']}}/cohort.csv")
    formats = [line[2:] for line in values.read_text().partition("formats:")[2].splitlines() if line[:2] == "- "]
    if "07_figures" in notebook and formats:
        made = [name for name in made if name[-3:] not in ("pdf", "png", "svg") or name[-3:] in formats]
    made.append(report)
for path in map(Path, made):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("made")
"""

# stubs of the hash of a file, and of the check, which fails if there is a file `refuse`
FILES = """\
import hashlib
from pathlib import Path
def file_info(path):
    with open("hashed", "a") as hashed:
        hashed.write(f"{path}\\n")
    files = sorted(p for p in Path(path).rglob("*") if p.is_file()) or [Path(path)]
    return {"path": path, "sha256": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()}
"""
CHECK = """\
from pathlib import Path
from types import SimpleNamespace
def examine(values, *, models, slurm, variables, notebooks, folder):
    refuse, data = Path("refuse"), values["01_filter"]["data"]
    assert Path(data).exists() and notebooks == Path("notebooks")
    with open("checked", "a") as checked:
        checked.write("checked\\n")
    errors = refuse.read_text().splitlines() if refuse.exists() else []
    raised = {"max_cells": 2150} if Path("raise").exists() else {}
    text = f"{data}: {' '.join(models)}{', slurm' if slurm else ''}, {variables.get('K', 'no K')}, {folder}"
    return SimpleNamespace(errors=errors, warnings=["few cells"], text=text, command="", raised=raised)
"""


class Sandbox:
    """A folder in which nothing is installed and no notebook is run."""

    @classmethod
    def existing(cls, root: Path) -> "Sandbox":
        """Return the sandbox in a folder that has one."""
        sandbox = cls.__new__(cls)
        sandbox.root, sandbox.python = root, root / "bin/python"
        return sandbox

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "notebooks/params").mkdir(parents=True)
        used = ["Makefile", "slurm/slurm.mk", ".ci/make-venv", "aenmf_lib/__init__.py", "aenmf_lib/__main__.py"]
        used += ["figures/settings.yaml", "aenmf_lib/figures/settings.yaml"]
        workflow = (
            "__init__",
            "cli",
            "digests",
            "environment",
            "errors",
            "inputs",
            "lock",
            "parameters",
            "plan",
            "run",
        )
        used += [f"aenmf_lib/workflow/{name}.py" for name in workflow]
        modules = [*ROOT.glob("aenmf_lib/*/*.py"), *ROOT.glob("aenmf_lib/*/*.mplstyle")]
        for name in {*used, *(str(path.relative_to(ROOT)) for path in modules)}:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if name in used:
                shutil.copy(ROOT / name, root / name, follow_symlinks=False)
            else:
                (root / name).touch()
        (root / "aenmf_lib/data/files.py").write_text(FILES)
        (root / "aenmf_lib/workflow/check.py").write_text(CHECK)
        declared = {
            "01_filter": 'data: str = ""\nmin_cells: int = 5\ndonor_key: str = ""\nsample_cells: int = 0\n',
            "06_benchmarks": "model_paths: list[str] = []\nextra: list[str] = []\nbaselines: list[str] = []\n"
            "max_cells: int = 0\nseed: int = 42\nclassification_seeds: list[int] = [42]\n"
            "unseen_seeds: list[int] = [42]\n",
            "07_figures": 'model_paths: list[str] = []\nsettings: str = ""\nformats: list[str] = []\n'
            "width: float = 0.0\ncolor_by: list[str] = []\n",
            STUDY: "k: int = 12\nstrengths: list[float] = [0.2]\nstarts: int = 5\n",
            "10_programs": 'model_paths: list[str] = []\ngene_sets: str = ""\n',
            "11_project": 'model: str = "CAE_NMF1"\nk: int = 12\nseed: int = 42\n',
            "12_rank": "ranks: list[int] = [5, 10, 20]\nseed: int = 42\n",
            "13_consensus": "k: int = 12\n",
            "14_differential": 'model_paths: list[str] = []\nby: str = "condition"\n',
        }
        (root / "notebooks/defaults.yaml").write_text("k: 80\n")
        for stage in [*STAGES, UNTIED, *(stage for stage, _ in ON_REQUEST.values())]:
            sums = 'sums_path: str = ""\nstrength: float = 0.2\n' if stage in [*STAGES[2:5], UNTIED] else ""
            cell = declared.get(stage, f"k: int = 12\n{sums}" if stage in [*MODELS, UNTIED] else "")
            (root / f"notebooks/{stage}.py").write_text(f'# %% tags=["parameters"]\n{cell}')
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
        words = ["make", *([f"PYTHON={self.python}"] if python else []), *arguments]
        return subprocess.run(words, cwd=self.root, env=bare | environment, capture_output=True, text=True, check=False)

    def ran(self, *arguments: str, **environment: str) -> list[str]:
        """Run make and return the notebooks that ran."""
        record = self.root / "ran"
        record.write_text("")
        done = self(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return record.read_text().split()

    def count(self, record: str) -> int:
        """Return how many lines the stubs wrote into a record, and empty it."""
        path = self.root / record
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return len(lines)

    def would_run(self, *arguments: str) -> list[str]:
        """Return the notebooks that make would run."""
        return re.findall(r"-m aenmf_lib execute notebooks/(\w+)\.py", self("-n", *arguments).stdout)

    def files(self, folder: str) -> set[str]:
        return {str(path.relative_to(self.root / folder)) for path in (self.root / folder).rglob("*") if path.is_file()}

    def edit(self, *names: str) -> None:
        """Change the content of files: code of a notebook or a module."""
        for name in names:
            with (self.root / name).open("a") as file:
                file.write("# %%\n1 + 1\n" if name.endswith(".py") else "more\n")

    def touch(self, *names: str) -> None:
        """Set the modification time of files to now."""
        for name in names:
            os.utime(self.root / name)
