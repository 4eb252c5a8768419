"""The graph through a real Slurm of two nodes, with a Python that only notes what it is asked for."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import cluster
import pytest
from test_packaging import PYTHON, ROOT, STAGES, Sandbox

pytestmark = pytest.mark.skipif(not cluster.available(), reason="needs Slurm: slurmctld slurmd slurm-client munge")

SITE = "GPU_PARTITION := gpu\nMEMORY_SHARE := 128\nMOST_CPUS := 1\nPRELUDE := export A='x y' && echo $$B\n"
# a file `slow-STAGE` holds a stage up for as long as it is there; with `fail-STAGE` it fails
FAULTS = """
import time
stage = next((Path(word).stem for word in sys.argv if word.startswith("notebooks/")), "")
while Path(f"slow-{stage}").exists():
    time.sleep(0.1)
if Path(f"fail-{stage}").exists():
    open(f"results/demo/k20/{stage}.failed.ipynb", "w")
    sys.exit("error: it was to fail")
"""


@pytest.fixture(scope="module")
def slurm():
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # munge wants a path that all may enter, which pytest's is not
    conf = cluster.start(folder)
    yield {"SLURM_CONF": str(conf)}
    cluster.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make(tmp_path, slurm):
    """Give make in a folder of its own, on the cluster."""
    sandbox = Sandbox(tmp_path)
    (tmp_path / "slurm").mkdir()
    for file in (ROOT / "slurm").iterdir():
        if file.suffix in (".py", ".sh", ".tsv"):
            (tmp_path / "slurm" / file.name).write_bytes(file.read_bytes())
            (tmp_path / "slurm" / file.name).chmod(0o755)
    (tmp_path / "slurm/cluster.mk").write_text(SITE)
    head, rest = PYTHON.split("if sys.argv[1:4]", 1)
    sandbox.program("python.py", f"{head}{FAULTS}if sys.argv[1:4]{rest}")

    def call(*arguments, **environment):
        return sandbox(*arguments, **{**slurm, **environment})

    call.root, call.files = tmp_path, sandbox.files
    yield call
    for path in tmp_path.glob("slow-*"):
        path.unlink()
    queue(slurm, tmp_path, cancel=True)


def queue(slurm: dict, folder: Path, *, cancel: bool = False) -> dict[str, str]:
    """Give the jobs sent from a folder: name -> state."""
    told = subprocess.run(
        ["squeue", "-h", "-o", "%i %j %T %Z"], env=os.environ | slurm, capture_output=True, text=True, check=True
    )
    jobs = [line.split() for line in told.stdout.splitlines()]
    jobs = [job for job in jobs if job[3] == str(folder) and job[2] != "COMPLETING"]
    if cancel and jobs:
        subprocess.run(["scancel", *(job[0] for job in jobs)], env=os.environ | slurm, check=True)
    return {job[1]: job[2] for job in jobs}


def until(condition, what: str, seconds: float = 90) -> None:
    for _ in range(int(seconds * 5)):
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {what}")


def ended(make, slurm) -> list[str]:
    """Wait for the jobs and tell which notebooks ran, in this order."""
    until(lambda: not queue(slurm, make.root), "the queue is empty")
    print(*(path.read_text() for path in (make.root / "results/demo").rglob("*.log")), sep="\n")  # shown if it fails
    ran = make.root / "ran"
    found = ran.read_text().split() if ran.exists() else []
    ran.unlink(missing_ok=True)
    return found


def test_the_graph_runs_in_order_and_leaves_what_a_local_run_leaves(make, slurm, tmp_path_factory):
    sent = make("all")
    assert sent.returncode == 0, sent.stderr
    assert re.findall(r"^ +\d+  (\w+)", sent.stdout, re.M) == STAGES
    assert "make watch" in sent.stdout
    ran = ended(make, slurm)
    assert (ran[0], sorted(ran[1:5]), ran[5:]) == (STAGES[0], STAGES[1:5], STAGES[5:])
    here = Sandbox(tmp_path_factory.mktemp("here"))
    here.ran("all", "EXECUTOR=local")
    logs = {f"{'k20/' if stage != STAGES[0] else ''}{stage}.log" for stage in STAGES}
    assert make.files("results/demo") - {".submit.lock"} - logs == here.files("results/demo")
    assert "Everything is made." in make("all").stdout
    assert [line.split() for line in make("status").stdout.splitlines()] == [[stage, "made"] for stage in STAGES]


def test_sent_again_or_from_two_shells_at_once_nothing_is_there_twice(make, slurm):
    (make.root / "slow-01_filter").touch()
    words = ["make", f"PYTHON={make.root}/bin/python", "all"]
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(make.root)} | slurm
    shells = [subprocess.Popen(words, cwd=make.root, env=bare, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [shell.wait() for shell in shells] == [0, 0]
    assert sorted(queue(slurm, make.root)) == [*(f"demo/k20:{stage}" for stage in STAGES[1:]), "demo:01_filter"]
    again = make("all")
    assert len(re.findall(r"is there already", again.stdout)) == len(STAGES)
    assert len(queue(slurm, make.root)) == len(STAGES)
    (make.root / "slow-01_filter").unlink()
    assert sorted(ended(make, slurm)) == STAGES


def test_a_stage_that_fails_takes_back_what_waits_for_it_and_is_sent_again_with_it(make, slurm):
    (make.root / "fail-04_train_cnmf1").touch()
    make("all")
    assert sorted(ended(make, slurm)) == sorted({*STAGES[:5]} - {"04_train_cnmf1"})
    told = make("status").stdout
    assert "04_train_cnmf1       failed: results/demo/k20/04_train_cnmf1.failed.ipynb" in told
    assert "error: it was to fail" in told
    assert "06_benchmarks        not made" in told
    (make.root / "fail-04_train_cnmf1").unlink()
    sent = make("all")
    assert re.findall(r"^ +\d+  (\w+)", sent.stdout, re.M) == ["04_train_cnmf1", "06_benchmarks", "07_figures"]
    assert ended(make, slurm) == ["04_train_cnmf1", "06_benchmarks", "07_figures"]


def test_what_the_cluster_has_not_is_told_before_anything_is_sent(make, slurm):
    (make.root / "slurm/cluster.mk").write_text(SITE.replace(":= gpu", ":= volta"))
    refused = make("all")
    assert refused.returncode
    assert "03_train_ae_nmf: sbatch --test-only" in refused.stderr
    assert "invalid partition specified: volta" in refused.stderr
    assert re.search(r"There are:\nPARTITION.*\ncpu\* 2 nodes, 4 CPUs, 4000 MB, gpu:1", refused.stderr)
    assert "Nothing was submitted" in refused.stderr
    assert queue(slurm, make.root) == {}


def test_cancel_takes_back_the_jobs_of_its_run_alone(make, slurm):
    (make.root / "slow-01_filter").touch()
    (make.root / "slow-02_train_base_nmf").touch()
    make("all")
    make("all", "K=21")
    names = [f"demo/k20:{stage}" for stage in STAGES[1:]] + [f"demo/k21:{stage}" for stage in STAGES[1:]]
    assert sorted(queue(slurm, make.root)) == sorted(["demo:01_filter", *names])  # the filter serves both
    assert "6 jobs of demo/k20 cancelled" in make("cancel").stdout
    left = ["demo:01_filter", *names[6:]]
    until(lambda: sorted(queue(slurm, make.root)) == sorted(left), "only the other run's jobs are there")
    assert "7 jobs of demo/k21 cancelled" in make("cancel", "K=21").stdout


def test_any_file_that_is_lost_is_made_again_and_what_waits_waits_for_it(make, slurm):
    make("all")
    ended(make, slurm)
    (make.root / "results/demo/k20/ae_nmf_k20.h5ad").unlink()
    (make.root / "slow-03_train_ae_nmf").touch()
    assert re.findall(r"^ +\d+  (\w+)", make("all").stdout, re.M) == [STAGES[2], *STAGES[5:]]
    until(lambda: queue(slurm, make.root).get("demo/k20:03_train_ae_nmf") == "RUNNING", "03 runs")
    (make.root / "slow-02_train_base_nmf").touch()
    os.utime(make.root / "notebooks/02_train_base_nmf.py")
    make("all")  # 06 is queued already, and is to wait for 02 as well
    (make.root / "slow-03_train_ae_nmf").unlink()
    until(lambda: "demo/k20:03_train_ae_nmf" not in queue(slurm, make.root), "03 has ended")
    time.sleep(3)
    assert queue(slurm, make.root)["demo/k20:06_benchmarks"] == "PENDING"
    (make.root / "slow-02_train_base_nmf").unlink()
    assert ended(make, slurm) == [STAGES[2], STAGES[1], *STAGES[5:]]


def test_asking_how_it_is_changes_no_value(make, slurm):
    (make.root / "slow-01_filter").touch()
    make("all", "MAX_CELLS=7")
    values = make.root / "results/demo/k20/params/06_benchmarks.yaml"
    before = values.read_text()
    assert "max_cells: 7" in before
    assert "06_benchmarks        pending" in make("status").stdout
    assert values.read_text() == before


def test_told_that_its_time_is_up_a_job_queues_again_and_ends_the_same(make, slurm):
    (make.root / "slow-03_train_ae_nmf").touch()
    make("all")
    name = "demo/k20:03_train_ae_nmf"
    until(lambda: queue(slurm, make.root).get(name) == "RUNNING", "03 runs")
    time.sleep(1)
    job = subprocess.run(
        ["squeue", "-h", "-n", name, "-o", "%i"], env=os.environ | slurm, capture_output=True, text=True, check=True
    ).stdout.split()[0]
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=os.environ | slurm, check=True)
    until(lambda: queue(slurm, make.root).get(name) == "PENDING", "03 waits again")
    assert "its time is nearly up" in (make.root / "results/demo/k20/03_train_ae_nmf.log").read_text()
    (make.root / "slow-03_train_ae_nmf").unlink()
    time.sleep(6)  # what is left of its first run is gone; Slurm itself would wait two minutes
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=os.environ | slurm, check=True)
    assert sorted(ended(make, slurm)) == STAGES


def test_a_cluster_that_does_not_answer_is_an_error_and_without_one_it_runs_here(make, slurm, tmp_path):
    conf = tmp_path / "gone.conf"
    conf.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", Path(slurm["SLURM_CONF"]).read_text()))
    down = make("all", "EXECUTOR=slurm", SLURM_CONF=str(conf), SLURM_CLIENT_TIMEOUT="1")
    assert down.returncode
    assert "error: squeue" in down.stderr
    assert make("all", SLURM_CONF=str(conf)).returncode == 0  # found not to be there
    assert (make.root / "results/demo/k20/07_figures.ipynb").exists()
    assert "expected local or slurm" in make("all", "EXECUTOR=cloud").stderr
