"""The stages as jobs of a real Slurm with two nodes, and a stub of Python that only records its commands."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import cluster
import psutil
import pytest
from sandbox import PYTHON, ROOT, SCORED, SCORES, STAGES, STUDY, Sandbox

pytestmark = pytest.mark.skipif(not cluster.available(), reason="needs Slurm: slurmctld slurmd slurm-client munge")

SITE = "GPU_PARTITION := gpu\nPRELUDE := export A='x y' && echo $$B\n"
SENT = [*STAGES[:5], "06_scores", "10_programs", *SCORED]
# While a file `slow-STAGE` exists the stage waits, unless there is a file `go-PROCESS`; `waits` lists the stages that
# have waited, and their processes. With `fail-STAGE` the stage fails, and with `eat-STAGE` it uses more memory than it
# requested.
FAULTS = """
import time
stage = Path(sys.argv[4]).stem if command == "execute" else ""
if "--done" in sys.argv:
    part = Path(sys.argv[sys.argv.index("--done") + 1]).with_suffix("")
    stage = part.name
    with open("scored", "a") as file:
        file.write(f"{part.parent.name}/{part.name}\\n")
if command in ("sum", "merge"):
    stage = Path(sys.argv[sys.argv.index("--out") + 1]).stem
if Path(f"slow-{stage}").exists():
    with open("waits", "a") as file:
        file.write(f"{stage} {os.getpid()}\\n")
while Path(f"slow-{stage}").exists() and not Path(f"go-{os.getpid()}").exists():
    time.sleep(0.1)
if Path(f"eat-{stage}").exists():
    used = bytearray(400 << 20)
    used[:: 4096] = used[:: 4096].replace(b"\\0", b"x")
    time.sleep(30)
if Path(f"fail-{stage}").exists():
    if "--report" in sys.argv:
        open(f"results/demo/k20/{stage}.failed.ipynb", "w")
    sys.exit("error: planned failure")
"""


@pytest.fixture(scope="module")
def slurm():
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # munge needs a folder that all users may enter
    conf = cluster.start(folder)
    yield {"SLURM_CONF": str(conf), "SLURMD": str(folder)}
    cluster.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make(tmp_path, slurm):
    """Return make in a sandbox, on the cluster."""
    sandbox = Sandbox(tmp_path)
    for file in (ROOT / "slurm").iterdir():
        if file.suffix in (".py", ".sh", ".tsv", ".mk"):
            (tmp_path / "slurm" / file.name).write_bytes(file.read_bytes())
            (tmp_path / "slurm" / file.name).chmod(0o755)
    (tmp_path / "slurm/cluster.mk").write_text(SITE)
    head, rest = PYTHON.split('if command == "simulate"', 1)
    sandbox.program("python.py", f'{head}{FAULTS}if command == "simulate"{rest}')

    def call(*arguments, **environment):
        return sandbox(*arguments, **{**slurm, **environment})

    call.root, call.files = tmp_path, sandbox.files
    yield call
    for path in tmp_path.glob("slow-*"):
        path.unlink()
    queue(slurm, tmp_path, cancel=True)


def queue(slurm: dict, folder: Path, *, cancel: bool = False) -> dict[str, str]:
    """Return the state of the jobs submitted from a folder, by name."""
    shown = subprocess.run(
        ["squeue", "-h", "--array", "-o", "%A %j %T %Z"],
        env=os.environ | slurm,
        capture_output=True,
        text=True,
        check=True,
    )
    jobs = [line.split() for line in shown.stdout.splitlines()]
    jobs = [job for job in jobs if job[3] == str(folder) and job[2] != "COMPLETING"]
    if cancel and jobs:
        call(slurm, "scancel", *{job[0] for job in jobs})
    return {job[1]: job[2] for job in jobs}


def call(slurm: dict, *words: str) -> str:
    return subprocess.run(words, env=os.environ | slurm, capture_output=True, text=True, check=True).stdout


def until(condition, what: str, seconds: float = 90) -> None:
    for _ in range(int(seconds * 5)):
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError(f"did not happen within {seconds} s: {what}")


def ended(make, slurm) -> list[str]:
    """Wait for the jobs and return the notebooks that ran, in order; 10, which does not wait for 06, as if it did."""
    until(lambda: not queue(slurm, make.root), "the queue is empty")
    print(*(path.read_text() for path in (make.root / "results/demo").rglob("*.log")), sep="\n")  # shown if it fails
    ran = make.root / "ran"
    found = ran.read_text().split() if ran.exists() else []
    ran.unlink(missing_ok=True)
    if {"06_benchmarks", "10_programs"} <= {*found}:
        assert found.index("10_programs") < found.index("07_figures")
        found.remove("10_programs")
        found.insert(found.index("06_benchmarks") + 1, "10_programs")
    return found


def test_all_stages_run_in_order_and_leave_the_files_of_a_local_run(make, slurm, tmp_path_factory):
    sent = make("all")
    assert sent.returncode == 0, sent.stderr
    assert re.findall(r"^ +\d+  (\w+)", sent.stdout, re.M) == SENT
    assert "make watch" in sent.stdout
    watched = make("watch")
    assert watched.returncode == 0 and queue(slurm, make.root) == {}
    assert re.search(r"^demo/k20 +.*\d+ pending", watched.stdout, re.M)
    assert [line.split() for line in watched.stdout.split("\n\n")[-1].splitlines()] == [
        [stage, "done"] for stage in SENT
    ]
    ran = ended(make, slurm)
    assert (ran[0], sorted(ran[1:5]), ran[5:]) == (STAGES[0], STAGES[1:5], STAGES[5:])
    here = Sandbox(tmp_path_factory.mktemp("here"))
    here.ran("all", "EXECUTOR=local")
    logs = {f"{'k20/' if stage != STAGES[0] else ''}{stage}.log" for stage in STAGES}
    more = logs | {".submit.lock", *(f"k20/06_scores.{i}.log" for i in range(12))}
    more |= {f"k20/{part}.done" for part in SCORES}
    assert make.files("results/demo") - more == here.files("results/demo")
    assert sorted((make.root / "scored").read_text().split()) == SCORES
    assert "Everything is done." in make("all").stdout
    assert [line.split() for line in make("status").stdout.splitlines()] == [[stage, "done"] for stage in SENT]


def test_conditioning_is_submitted_with_the_filter_and_shown_once_requested(make, slurm):
    assert STUDY not in make("status").stdout
    assert re.findall(r"^ +\d+  (\w+)", make("conditioning").stdout, re.M) == [STAGES[0], STUDY]
    assert STUDY in make("status").stdout
    assert ended(make, slurm) == [STAGES[0], STUDY]
    assert f"{STUDY}      done" in make("status").stdout


def test_a_list_of_ranks_reaches_the_job_and_another_list_waits_for_it(make, slurm):
    (make.root / "slow-12_rank").touch()
    assert re.findall(r"^ +\d+  (\w+)", make("rank", "K=5 10").stdout, re.M) == [STAGES[0], "12_rank"]
    again = make("rank", "K=5 10").stdout
    assert "12_rank: already" in again
    assert "make watch 'K=5 10'" in again
    refused = make("rank", "K=5 20")
    assert refused.returncode
    assert "jobs of demo are queued with other values ('K=5 10'; now 'K=5 20')" in refused.stderr
    assert re.search("^12_rank +(pending|running)", make("status", "K=5 10").stdout, re.M)
    assert "12_rank" in make("status").stdout  # also without the list
    (make.root / "slow-12_rank").unlink()
    assert ended(make, slurm) == [STAGES[0], "12_rank"]
    assert "- 5\n- 10\n" in (make.root / "results/demo/params/12_rank.yaml").read_text()
    assert "Everything is done." in make("rank", "K=5 10").stdout
    assert not list(make.root.glob("results/demo/k*/*"))


def test_new_cells_are_projected_in_a_job_of_their_own(make, slurm):
    for name in ("new.h5ad", "model.h5ad"):
        (make.root / name).touch()
    words = ["CELLS=new.h5ad", "MODEL=model.h5ad"]
    assert re.findall(r"^ +\d+  (\w+)", make("project", *words).stdout, re.M) == ["project"]
    assert re.search("^project +(pending|running|done)", make("status", *words).stdout, re.M)
    assert ended(make, slurm) == []  # no notebook
    assert (make.root / "projected").read_text().split()[-1] == "results/new/projected/model.h5ad"
    assert re.search("^project +done", make("status", *words).stdout, re.M)
    assert make.files("results/demo") <= {".submit.lock"}


def test_nothing_is_submitted_twice_from_two_shells_or_again(make, slurm):
    (make.root / "slow-01_filter").touch()
    words = ["make", f"PYTHON={make.root}/bin/python", "all"]
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(make.root)} | slurm
    shells = [subprocess.Popen(words, cwd=make.root, env=bare, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [shell.wait() for shell in shells] == [0, 0]
    assert sorted(queue(slurm, make.root)) == sorted([*(f"demo/k20:{stage}" for stage in SENT[1:]), "demo:01_filter"])
    again = make("all")
    assert len(re.findall(r": already (?:pending|running)", again.stdout)) == len(STAGES) + len(SCORES)
    assert len(queue(slurm, make.root)) == len(SENT)
    (make.root / "slow-01_filter").unlink()
    assert sorted(ended(make, slurm)) == sorted(STAGES)


def test_a_failed_stage_cancels_dependent_jobs_and_is_submitted_again_with_them(make, slurm):
    (make.root / "fail-04_train_cae_nmf1").touch()
    make("all")
    assert sorted(ended(make, slurm)) == sorted({*STAGES[:5]} - {"04_train_cae_nmf1"})
    shown = make("status").stdout
    assert "04_train_cae_nmf1    failed: results/demo/k20/04_train_cae_nmf1.failed.ipynb" in shown
    assert "error: planned failure" in shown
    assert "06_benchmarks        not done" in shown
    (make.root / "fail-04_train_cae_nmf1").unlink()
    sent = make("all")
    assert re.findall(r"^ +\d+  (\w+)", sent.stdout, re.M) == ["04_train_cae_nmf1", *SENT[5:]]
    assert ended(make, slurm) == ["04_train_cae_nmf1", *STAGES[5:]]


def test_a_missing_partition_is_reported_before_anything_is_submitted(make, slurm):
    (make.root / "slurm/cluster.mk").write_text(SITE.replace(":= gpu", ":= volta"))
    refused = make("all", "DEVICE=cuda")
    assert refused.returncode
    assert "03_train_ae_nmf: sbatch --test-only" in refused.stderr
    assert "invalid partition specified: volta" in refused.stderr
    assert "It requests 256 MB, 1 CPU, 2 h, 1 GPU. The cluster has" in refused.stderr
    assert re.search(r"The cluster has:\nPARTITION.*\ncpu\* 2 nodes, 4 CPUs, 4000 MB, gpu:1", refused.stderr)
    assert "Nothing was submitted" in refused.stderr
    assert queue(slurm, make.root) == {}


def test_cancel_cancels_only_the_jobs_of_its_run(make, slurm):
    (make.root / "slow-01_filter").touch()
    (make.root / "slow-02_train_base_nmf").touch()
    make("all")
    make("all", "K=21")
    names = [f"demo/k20:{stage}" for stage in SENT[1:]] + [f"demo/k21:{stage}" for stage in SENT[1:]]
    assert sorted(queue(slurm, make.root)) == sorted(["demo:01_filter", *names])  # both runs use the filter
    runs, stages = make("status").stdout.split("\n\n")
    assert re.sub(" +", " ", runs) in [
        f"demo 1 {state}\ndemo/k20 19 pending\ndemo/k21 19 pending" for state in ("running", "pending")
    ]
    assert re.search(r"^06_scores +12 pending of 12, 0 done, job \d+ \(Dependency\)$", stages, re.M)
    assert "19 jobs of demo/k20 canceled" in make("cancel").stdout
    left = ["demo:01_filter", *names[8:]]
    until(lambda: sorted(queue(slurm, make.root)) == sorted(left), "only the other run's jobs are there")
    assert "20 jobs of demo/k21 canceled" in make("cancel", "K=21").stdout


def test_deleted_file_is_rebuilt_and_queued_jobs_wait_for_it(make, slurm):
    make("all")
    ended(make, slurm)
    (make.root / "results/demo/k20/cae_nmf1_k20.h5ad").unlink()
    (make.root / "slow-04_train_cae_nmf1").touch()
    assert re.findall(r"^ +\d+  (\w+)", make("all").stdout, re.M) == [STAGES[3], *SENT[5:]]
    until(lambda: queue(slurm, make.root).get("demo/k20:04_train_cae_nmf1") == "RUNNING", "04 runs")
    (make.root / "slow-02_train_base_nmf").touch()
    with (make.root / "notebooks/02_train_base_nmf.py").open("a") as notebook:
        notebook.write("# %%\n1 + 1\n")
    make("all")  # 06 is already queued, and must wait for 02 too
    (make.root / "slow-04_train_cae_nmf1").unlink()
    until(lambda: "demo/k20:04_train_cae_nmf1" not in queue(slurm, make.root), "04 has ended")
    time.sleep(3)
    assert queue(slurm, make.root)["demo/k20:06_benchmarks"] == "PENDING"
    (make.root / "slow-02_train_base_nmf").unlink()
    assert ended(make, slurm) == [STAGES[3], STAGES[1], *STAGES[5:]]


def test_errors_of_the_check_are_reported_before_anything_is_submitted(make, slurm):
    (make.root / "refuse").write_text("K=90 is too large for 40 genes.")
    refused = make("all")
    assert refused.returncode
    assert "error: K=90 is too large for 40 genes.\nNothing was run." in refused.stderr
    assert "error: Nothing was submitted" in refused.stderr
    assert queue(slurm, make.root) == {}
    (make.root / "refuse").unlink()
    (make.root / "slow-01_filter").touch()
    assert make("all").returncode == 0
    assert ", slurm, " in (make.root / "results/demo/k20/check.txt").read_text()


def test_only_the_chosen_models_are_submitted(make, slurm):
    (make.root / "slow-01_filter").touch()
    sent = make("all", "MODELS=AE_NMF,Base_NMF", "DEVICE=cuda")
    assert re.findall(r"^ +\d+  (\w+)", sent.stdout, re.M) == [*SENT[:3], *SENT[5:]]
    assert "06_scores, 6 tasks" in sent.stdout
    assert "computed from 4,000 cells × 2,000 genes" in sent.stdout
    assert re.search(r"  03_train_ae_nmf, after 01_filter: 256 MB, 1 CPU, 2 h, 1 GPU$", sent.stdout, re.M)
    requested = call(slurm, "squeue", "-h", "-o", "%j %P %b %Z")
    shown = {
        words[0].split(":")[1]: words[1:3]
        for words in map(str.split, requested.splitlines())
        if words[3] == str(make.root)
    }
    assert shown["03_train_ae_nmf"] == ["gpu", "gres:gpu:1"]
    assert shown["02_train_base_nmf"] == shown["06_scores"] == ["cpu", "N/A"]


def test_status_changes_no_value(make, slurm):
    (make.root / "slow-01_filter").touch()
    make("all", "MAX_CELLS=7")
    values = make.root / "results/demo/k20/params/06_benchmarks.yaml"
    before = values.read_text()
    assert "max_cells: 7" in before
    assert "06_benchmarks        pending" in make("status").stdout
    assert values.read_text() == before
    used = r"^01_filter +running, \d:\d\d, [\d.]+ MB of 256 MB, job \d+$"
    until(lambda: re.search(used, make("status").stdout, re.M), "the elapsed time and the memory are shown")


def waiting(make, stage: str) -> list[int]:
    """Return the processes of a delayed stage that have begun to wait, the first one first."""
    waits = make.root / "waits"
    lines = waits.read_text().splitlines() if waits.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(f"{stage} ")]


def running(make, slurm, stage: str) -> str:
    """Wait until a delayed stage runs and return its job. A job is RUNNING before make has started the stage."""
    until(lambda: waiting(make, stage), f"{stage} runs")
    return call(slurm, "squeue", "-h", "-n", f"demo/k20:{stage}", "-o", "%i %Z").split(f" {make.root}")[0].split()[-1]


def has_ended(process: int) -> None:
    """Wait until a process of a stage has ended, so that it writes nothing any more."""
    until(lambda: not psutil.pid_exists(process), f"process {process} has ended")


def rerun(make, slurm, stage: str) -> tuple[str, list[str]]:
    """Wait until a delayed stage runs a second time, let it finish, and return its log and the notebooks that ran.

    The first process may still wait, because only the daemon of its node was killed: it finishes before the second one.
    """
    until(lambda: len(waiting(make, stage)) == 2, f"{stage} runs again")
    first = waiting(make, stage)[0]
    (make.root / f"go-{first}").touch()
    has_ended(first)
    (make.root / f"slow-{stage}").unlink()
    ran = sorted(ended(make, slurm))
    assert "Everything is done." in make("all").stdout
    return (make.root / f"results/demo/k20/{stage}.log").read_text(), ran


def test_a_shell_killed_while_submitting_is_completed_by_the_next_call(make, slurm):
    (make.root / "slow-01_filter").touch()
    kills = make.root / "bin/sbatch"
    kills.write_text(
        f'#!/bin/sh\n/usr/bin/sbatch "$@" || exit\n[ "$1" = --test-only ] || echo >> {make.root}/count\n'
        f"[ $(wc -l < {make.root}/count) != 3 ] || kill -9 0\n"
    )
    kills.chmod(0o755)
    (make.root / "count").touch()
    words = ["make", f"PYTHON={make.root}/bin/python", "all"]
    bare = {"PATH": f"{make.root}/bin:/usr/bin:/bin", "HOME": str(make.root)} | slurm
    shell = subprocess.Popen(words, cwd=make.root, env=bare, stdout=subprocess.DEVNULL, start_new_session=True)
    assert shell.wait() == -signal.SIGKILL
    assert len(queue(slurm, make.root)) == 3
    make("all")
    assert len(queue(slurm, make.root)) == len(SENT)
    (make.root / "slow-01_filter").unlink()
    assert sorted(ended(make, slurm)) == sorted(STAGES)


def test_a_preempted_stage_runs_again(make, slurm):
    (make.root / "slow-03_train_ae_nmf").touch()
    make("all")
    running(make, slurm, "03_train_ae_nmf")
    call(slurm, "sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    log, ran = rerun(make, slurm, "03_train_ae_nmf")
    assert ran == sorted(STAGES)
    assert "DUE TO PREEMPTION" in log
    assert "terminated by Slurm: preempted" in log


def test_a_stage_near_its_time_limit_is_queued_again(make, slurm):
    (make.root / "asked").write_text('{"03_train_ae_nmf": {"seconds": 60}}')
    path = make.root / "slurm/submit.py"
    text, n = re.subn(r"WARNING = \d+", "WARNING = 55", path.read_text())
    assert n == 1
    path.write_text(text)
    (make.root / "slow-03_train_ae_nmf").touch()
    make("all")
    running(make, slurm, "03_train_ae_nmf")
    log, ran = rerun(make, slurm, "03_train_ae_nmf")
    assert ran == sorted(STAGES)
    assert "the time limit is near; the same job is queued again" in log


def test_a_stage_on_a_lost_node_runs_again_on_another(make, slurm):
    (make.root / "slow-03_train_ae_nmf").touch()
    make("all")
    job = running(make, slurm, "03_train_ae_nmf")
    node = call(slurm, "squeue", "-h", "-j", job, "-o", "%N").strip()
    cluster.lose_node(Path(slurm["SLURMD"]), node)
    try:
        log, ran = rerun(make, slurm, "03_train_ae_nmf")
    finally:
        cluster.start_node(Path(slurm["SLURMD"]), node)
    assert {*re.findall(r"^== 03_train_ae_nmf on (n\d)", log, re.M)} == {"n1", "n2"}
    assert ran == sorted([*STAGES, "03_train_ae_nmf"])  # the first process also finished
    until(lambda: call(slurm, "sinfo", "-h", "-t", "idle", "-p", "cpu", "-o", "%D").strip() == "2", "both nodes are up")


def test_a_stage_out_of_memory_reports_what_to_raise(make, slurm):
    (make.root / "eat-05_train_cae_nmf2").touch()
    make("all")
    assert sorted(ended(make, slurm)) == sorted({*STAGES[:5]} - {"05_train_cae_nmf2"})
    shown = make("status").stdout
    requested = "failed: out of memory: it requested --mem=256M. Request more memory in slurm/stages.tsv"
    assert f"05_train_cae_nmf2    {requested}" in shown
    assert re.search(r"exceeded memory limit \(\d{9} > 268435456\)", shown)  # used, requested
    (make.root / "eat-05_train_cae_nmf2").unlink()
    make("all")
    assert sorted(ended(make, slurm)) == sorted({*STAGES} - {*STAGES[:5]} | {"05_train_cae_nmf2"})


def test_a_stage_out_of_time_reports_what_to_raise(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "slurm")
    from graph import Stage
    from jobs import Job
    from states import explain_failure

    stage = Stage("02_train_base_nmf", tmp_path, [["file"]], [], [0])
    log = "== 02_train_base_nmf on n1, job 7, 10:00, requested --mem=3072M --time=40\n"
    log += "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT … DUE TO TIME LIMIT ***\n"
    stage.log().write_text(log)
    failure = explain_failure(stage, 0, Job("7", stage.job_name, 0, "TIMEOUT", "TimeLimit", ""))
    requested = "failed: out of time: it requested --time=40. Request more time in slurm/stages.tsv"
    assert failure.startswith(requested)


def test_scancel_of_one_job_cancels_only_dependent_jobs(make, slurm):
    (make.root / "slow-04_train_cae_nmf1").touch()
    make("all")
    call(slurm, "scancel", running(make, slurm, "04_train_cae_nmf1"))
    has_ended(waiting(make, "04_train_cae_nmf1")[0])  # it must not see that it may continue
    (make.root / "slow-04_train_cae_nmf1").unlink()
    assert sorted(ended(make, slurm)) == sorted({*STAGES[:5]} - {"04_train_cae_nmf1"})
    assert re.search(r"^04_train_cae_nmf1    not done \(job \d+ canceled\)$", make("status").stdout, re.M)
    make("all")
    assert ended(make, slurm) == ["04_train_cae_nmf1", *STAGES[5:]]


def test_only_the_failed_score_job_is_submitted_again(make, slurm):
    (make.root / "fail-ae_nmf.donor_id.42").touch()
    make("all")
    assert sorted(ended(make, slurm)) == [*STAGES[:5], "10_programs"]
    scored = make.root / "scored"
    assert sorted(scored.read_text().split()) == SCORES
    task = SCORES.index(part := "classification_scores/ae_nmf.donor_id.42")
    shown = make("status").stdout
    assert f"06_scores            failed: results/demo/k20/06_scores.{task}.log\n" in shown
    assert "error: planned failure" in shown
    (make.root / "fail-ae_nmf.donor_id.42").unlink()
    scored.unlink()
    sent = make("all").stdout
    assert re.search(r"^ +\d+  06_scores, 1 tasks: 256 MB, 1 CPU, 2 h$", sent, re.M), sent
    assert ended(make, slurm) == SCORED
    assert scored.read_text().split() == [part]


def test_only_the_failed_shard_is_submitted_again(make, slurm):
    for name in ("fail-2-of-4", "slow-01_filter"):
        (make.root / name).touch()
    sent = make("all", "SHARDS=4")
    assert re.search(r"^ +\d+  01_sums, 4 tasks, after 01_filter: ", sent.stdout, re.M), sent
    assert re.search(r"^ +\d+  03_train_ae_nmf, after 01_filter, 01_merge: ", sent.stdout, re.M), sent
    requested = call(slurm, "scontrol", "show", "job", re.search(r"(\d+)  01_sums", sent.stdout)[1])
    assert "ArrayTaskThrottle=8" in requested  # the width in the table of requests
    (make.root / "slow-01_filter").unlink()
    assert sorted(ended(make, slurm)) == STAGES[:2]  # stages that do not read the sums run
    summed = make.root / "summed"
    assert sorted(summed.read_text().split()) == ["0-of-4", "1-of-4", "3-of-4"]
    shown = make("status", "SHARDS=4").stdout
    assert "01_sums              failed: results/demo/01_sums.2.log\n" in shown
    assert "01_merge             not done" in shown
    (make.root / "fail-2-of-4").unlink()
    summed.unlink()
    sent = make("all", "SHARDS=4").stdout
    assert re.search(r"^ +\d+  01_sums, 1 tasks: ", sent, re.M), sent
    ran = ended(make, slurm)
    assert (sorted(ran[:3]), ran[3:]) == (STAGES[2:5], STAGES[5:])
    assert summed.read_text().split() == ["2-of-4", "sums"]


def test_other_values_are_refused_while_jobs_are_queued(make, slurm):
    (make.root / "slow-01_filter").touch()
    make("all")
    refused = make("all", "MAX_CELLS=7")
    assert refused.returncode
    assert "jobs of demo/k20 are queued with other values (none; now MAX_CELLS=7)" in refused.stderr
    assert "max_cells" not in (make.root / "results/demo/k20/params/06_benchmarks.yaml").read_text()
    assert make("all", "K=21", "MAX_CELLS=7", "SHARDS=2").returncode == 0  # another run
    refused = make("all", "K=22", "SHARDS=4")  # another run that uses the same sums
    assert "jobs of demo are queued with other values (MAX_CELLS=7 SHARDS=2; now SHARDS=4)" in refused.stderr
    assert make("all", "K=22", "SHARDS=2").returncode == 0


def test_nothing_is_submitted_when_results_cannot_be_written(make, slurm):
    (make.root / "results").symlink_to("/proc/sys")  # where root cannot write either
    refused = make("all")
    assert refused.returncode
    assert re.search(r"error: Cannot write to results/demo \(.+\)\. Nothing was submitted", refused.stderr)
    assert queue(slurm, make.root) == {}


def test_values_with_special_characters_reach_the_jobs_unchanged(make, slurm):
    name = 'my$HOME"cells`.h5ad'
    (make.root / name).touch()
    sent = make("filter", f"DATA={name.replace('$', '$$')}", "DATASET=mine")
    assert sent.returncode == 0, sent.stderr
    assert ended(make, slurm) == [STAGES[0]]  # only the requested stage
    assert (make.root / "results/mine/01_filter.ipynb").exists()
    assert name in (make.root / "results/mine/params/01_filter.yaml").read_text()


def test_a_cluster_that_does_not_answer_is_an_error_only_if_slurm_was_requested(make, slurm, tmp_path):
    conf = tmp_path / "gone.conf"
    conf.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", Path(slurm["SLURM_CONF"]).read_text()))
    down = make("all", "EXECUTOR=slurm", SLURM_CONF=str(conf), SLURM_CLIENT_TIMEOUT="1")
    assert down.returncode
    assert "error: squeue" in down.stderr
    assert make("all", SLURM_CONF=str(conf)).returncode == 0  # no cluster found: runs here
    assert (make.root / "results/demo/k20/07_figures.ipynb").exists()
    assert "expected local or slurm" in make("all", "EXECUTOR=cloud").stderr


def test_jupyterlab_runs_in_a_job_and_requires_its_token(slurm, tmp_path):
    for name in ("Makefile", "slurm", "notebooks"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / "slurm/cluster.mk").write_text(SITE)
    open_settings = tmp_path / ".jupyter/jupyter_server_config.py"  # of a user who opened Jupyter to everyone
    open_settings.parent.mkdir()
    open_settings.write_text("c.ServerApp.ip = '0.0.0.0'\nc.IdentityProvider.token = ''\nc.ServerApp.token = ''\n")
    bare = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)} | slurm
    words = ["make", "lab", f"PYTHON={sys.executable}"]
    try:
        shown = subprocess.run(words, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=60)
        assert shown.returncode == 0, shown.stderr
        port, node = re.search(r"ssh -N -L 8888:127\.0\.0\.1:(\d+) -J \S+@\S+ \S+@(\S+)$", shown.stdout, re.M).groups()
        assert node == socket.gethostname()
        token = re.search(r"http://127\.0\.0\.1:8888/lab\?token=(\w{48})$", shown.stdout, re.M)[1]
        address = f"http://127.0.0.1:{port}/api/contents/notebooks/01_filter.py"
        assert _get(address) == 403
        assert _get(f"{address}?token=") == 403
        assert _get(f"{address}?token={token}") == 200
        listening = [c for c in psutil.net_connections() if c.status == "LISTEN" and c.laddr.port == int(port)]
        assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
        server = psutil.Process(listening[0].pid)
        assert not any(token in word for word in server.cmdline())
        for file in ("results/.lab.json", "results/lab.log"):
            assert (tmp_path / file).stat().st_mode & 0o077 == 0
        assert (
            "JupyterLab is running"
            in subprocess.run(words, cwd=tmp_path, env=bare, capture_output=True, text=True).stdout
        )
        assert queue(slurm, tmp_path) == {"lab": "RUNNING"}  # the same job
    finally:
        queue(slurm, tmp_path, cancel=True)


def _get(address: str) -> int:
    try:
        return urllib.request.urlopen(address, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code
