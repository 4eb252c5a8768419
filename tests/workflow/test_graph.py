"""The stages that slurm/graph.py reads from make. Needs no Slurm."""

import pytest
from sandbox import ON_REQUEST, ROOT, SCORED, SCORES, STAGES, STUDY, UNTIED, Sandbox


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Return a function that reads the stages of a sandbox for some goals."""
    monkeypatch.syspath_prepend(ROOT / "slurm")
    from graph import read_graph

    sandbox = Sandbox(tmp_path)
    monkeypatch.chdir(tmp_path)

    def read(*goals, more=(), **options):
        return read_graph(["make", f"PYTHON={sandbox.python}", "EXECUTOR=local", *more], list(goals), **options)

    read.sandbox = sandbox
    return read


def test_the_graph_has_every_stage_with_what_it_needs(read):
    stages = read("all")
    assert list(stages) == [*STAGES[:5], "06_scores", "10_programs", *SCORED]
    assert [len(stage.tasks) for stage in stages.values()] == [1, 1, 1, 1, 1, 12, 1, 1, 1]
    assert [stage.missing for stage in stages.values()] == [[0]] * 5 + [[*range(12)]] + [[0]] * 3
    assert stages["06_scores"].tasks == [[f"results/demo/k20/{part}.done"] for part in SCORES]
    assert stages["01_filter"].needs == []
    assert stages["03_train_ae_nmf"].needs == ["01_filter"]
    assert stages["06_scores"].needs == STAGES[1:5]
    assert stages["06_benchmarks"].needs == [*STAGES[1:5], "06_scores"]
    assert stages["07_figures"].needs == ["01_filter", *STAGES[1:5], "06_benchmarks", "10_programs"]
    assert stages["10_programs"].needs == STAGES[1:5]
    assert stages["01_filter"].job_name == "demo:01_filter"
    assert stages["06_scores"].job_name == "demo/k20:06_scores"
    assert str(stages["06_scores"].log(3)) == "results/demo/k20/06_scores.3.log"


def test_scores_have_one_task_per_model_label_and_seed_of_the_values(read):
    values = read.sandbox.root / "notebooks/params/demo.yaml"
    values.write_text("data: data/demo.h5ad\nk: 20\nclassification_seeds: [42, 52, 62, 72, 82]\nunseen_seeds: [7]\n")

    def parts(*goals, more=()):
        return {"/".join(task[0].split("/")[-2:]) for task in read(*goals, more=more)["06_scores"].tasks}

    all_parts = parts("all")
    assert len([part for part in all_parts if part.startswith("classification_scores/")]) == 40
    assert {part for part in all_parts if "donor_id" in part and ".62." in part} == {
        f"classification_scores/{model}.donor_id.62.done" for model in ("base_nmf", "ae_nmf", "cae_nmf1", "cae_nmf2")
    }
    assert len(all_parts) == 44 and "unseen_donors_scores/ae_nmf.cell_type.7.done" in all_parts
    assert len(parts("scores", more=["MODELS=AE_NMF"])) == 11
    assert len(parts("all", more=["QUICK=true"])) == 12  # one seed
    values.write_text("data: data/demo.h5ad\nk: 20\n06_benchmarks:\n  classification_seeds:\n  - 1\n  - 2\n")
    assert {part.split(".")[2] for part in parts("all") if part.startswith("classification")} == {"1", "2"}


def test_shards_add_one_task_each_and_a_merge(read):
    stages = read("train", more=["SHARDS=4"])
    to_run = [name for name, stage in stages.items() if stage.missing]
    assert to_run == ["01_filter", "01_sums", "02_train_base_nmf", "01_merge", *STAGES[2:5]]
    assert [task[0] for task in stages["01_sums"].tasks] == [f"results/demo/sums/{i}-of-4.npz" for i in range(4)]
    assert stages["01_merge"].needs == ["01_sums"]
    assert stages["03_train_ae_nmf"].needs == ["01_filter", "01_merge"]


def test_the_untied_model_is_a_stage_of_its_own(read):
    stages = read("all", more=["MODELS=all"])
    assert stages[UNTIED].needs == ["01_filter"]
    assert UNTIED in stages["06_benchmarks"].needs and len(stages["06_scores"].tasks) == 15


def test_only_stages_that_make_would_run_are_missing(read):
    read.sandbox.ran("all")
    assert [name for name, stage in read("all").items() if stage.missing] == []
    read.sandbox.touch("notebooks/07_figures.py")
    assert [name for name, stage in read("all").items() if stage.missing] == []
    read.sandbox.edit("notebooks/07_figures.py")
    assert [name for name, stage in read("all", "conditioning").items() if stage.missing] == [STUDY, "07_figures"]
    stages = read("all", "conditioning", resolve=False)  # status: as of the last call that ran or submitted stages
    assert [name for name, stage in stages.items() if stage.missing] == [STUDY]


@pytest.mark.parametrize("goal", ON_REQUEST)
def test_a_stage_on_request_needs_the_cells_or_the_models(read, goal):
    stage, files = ON_REQUEST[goal]
    stages = read(goal)
    assert [name for name in stages if stages[name].missing][-1] == stage
    assert stages[stage].needs == (STAGES[1:5] if goal == "differential" else ["01_filter"])
    assert {*files, f"{stage}.ipynb"} <= {
        file.split("/", 3 if "/k20/" in file else 2)[-1] for file in stages[stage].tasks[0]
    }
    assert stages[stage].job_name == ("demo:12_rank" if goal == "rank" else f"demo/k20:{stage}")


def test_new_cells_are_a_stage_of_their_own(read):
    for name in ("new.h5ad", "model.h5ad"):
        (read.sandbox.root / name).touch()
    stages = read("project", more=["CELLS=new.h5ad", "MODEL=model.h5ad"])
    assert [(stage.job_name, stage.tasks, stage.missing) for stage in stages.values()] == [
        ("new:project", [["results/new/projected/model.h5ad"]], [0])
    ]
