"""Tests of the requests of jobs: computed from the sizes of the data, at most what a node has. Slurm is not needed."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from anndata import AnnData
from sandbox import ROOT
from scipy.sparse import random as random_matrix

from aenmf_lib.workflow import cli, cluster
from aenmf_lib.workflow.costs import BENCHMARKS, CLASSIFICATION, STAGES, Size, predict

KANG = Size(n_cells=13_963, n_genes=14_044, nnz=9_753_391, n_donors=8, n_types=13, k=20)
ATLAS = Size(n_cells=592_317, n_genes=60_606, nnz=1_200_000_000, n_donors=20, n_types=40, k=80)
AE_NMF = STAGES["AE_NMF"]


@pytest.fixture
def jobs(monkeypatch):
    """The module slurm/jobs.py."""
    monkeypatch.syspath_prepend(ROOT / "slurm")
    import jobs

    return jobs


def asked(size: Size, values: dict | None = None, *lines: str, tmp_path: Path | None = None):
    """Return the requests, with the table of the repository or with a table of these lines."""
    path = ROOT / cluster.REQUESTS
    if lines:
        path = tmp_path / "stages.tsv"
        path.write_text("".join(line.replace(" ", "\t") + "\n" for line in lines))
    return cluster.requests(size, values or {}, models=list(STAGES), path=path)


def test_memory_and_time_are_the_prediction_with_a_margin(tmp_path):
    table = predict(ATLAS, {}, models=list(STAGES)).query("part == ''").set_index("stage")  # two cores
    line = "03_train_ae_nmf 1 2 auto auto 1"
    request = asked(ATLAS, {}, line, tmp_path=tmp_path).loc[AE_NMF]
    gib = 2**30
    assert 0 <= request["memory"] - (1.5 * table.loc[AE_NMF, "memory"] + 2e9) < gib and request["memory"] % gib == 0
    assert 0 <= request["seconds"] - (4 * table.loc[AE_NMF, "seconds"] + 1800) < 600
    more = asked(KANG, {}, line, tmp_path=tmp_path).loc[AE_NMF]
    assert more["memory"] < request["memory"] and more["seconds"] < request["seconds"]


def test_a_number_in_the_table_replaces_the_computed_value(tmp_path):
    lines = ["03_train_ae_nmf 1 8 1500M auto 1", "04_train_cae_nmf1 1 8 auto 2-12:00:00 1", "lab 0 4 32G 08:00:00 1"]
    table = asked(ATLAS, {}, *lines, "12_rank 1 8 training 01:00:00 1", tmp_path=tmp_path)
    assert table.loc[AE_NMF, "memory"] == 1500 * 2**20 and table.loc[AE_NMF, "seconds"] % 600 == 0
    assert table.loc[AE_NMF, "source"] == f"memory from {tmp_path}/stages.tsv"
    assert table.loc["04_train_cae_nmf1", "seconds"] == 60 * 3600
    assert table.loc["lab", ["memory", "seconds"]].tolist() == [32 * 2**30, 8 * 3600]
    assert table.loc["lab", "source"] == f"memory and time from {tmp_path}/stages.tsv"
    most = asked(ATLAS, {}, "05_train_cae_nmf2 1 8 auto auto 1", tmp_path=tmp_path).loc["05_train_cae_nmf2", "memory"]
    assert table.loc["12_rank", "memory"] == most  # the largest of training
    only_numbers = cluster.requests(None, {}, models=[], path=tmp_path / "stages.tsv")
    assert only_numbers.empty and "lab" in cluster.requests(None, {}, models=[], path=ROOT / cluster.REQUESTS).index


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("03_train_ae_nmf 1 8 much auto 1", "03_train_ae_nmf: memory is 'much'. Expected auto, training, or a size"),
        ("03_train_ae_nmf 1 8 auto soon 1", "03_train_ae_nmf: time is 'soon'. Expected auto, training, or a time"),
        ("03_train_ae_nmf 1 8 auto 99 1", "03_train_ae_nmf: time is '99'. Expected auto, training, or a time"),
        ("03_train_ae_nmf 1 8 auto 00:00:00 1", "03_train_ae_nmf: time is '00:00:00'. Expected"),
        ("03_train_ae_nmf 1 many auto auto 1", "03_train_ae_nmf: cpus is 'many'. Expected a whole number, such as 4"),
        ("lab 0 4 auto 08:00:00 1", "lab: there is no prediction for this stage, so auto is not possible. Expected"),
    ],
)
def test_a_wrong_entry_of_the_table_is_an_error_that_names_the_stage(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        asked(KANG, {}, line, tmp_path=tmp_path)


def test_a_gpu_is_requested_only_with_device_cuda():
    on_gpu = {"device": "cuda"}
    values = {stage: on_gpu for stage in [*STAGES.values(), "12_rank", "13_consensus"] if stage != "02_train_base_nmf"}
    assert asked(KANG)["gpus"].sum() == 0
    found = asked(KANG, values)["gpus"]
    assert set(found.index[found > 0]) >= {"01_sums", *[*STAGES.values()][1:], "12_rank", "13_consensus"}
    assert not found[["01_filter", "02_train_base_nmf", "07_figures"]].any()


def test_the_request_of_a_score_job_is_for_one_model_and_one_seed():
    five, one = ({BENCHMARKS: {"classification_seeds": list(range(n)), "unseen_seeds": [0]}} for n in (5, 1))
    jobs = [asked(ATLAS, values).loc[cluster.SCORES, "predicted_seconds"] for values in (five, one)]
    assert jobs[0] == jobs[1]
    table = predict(ATLAS, five, models=list(STAGES))
    assert jobs[0] < table.loc[table["part"] == CLASSIFICATION, "seconds"].iloc[0] / 8
    assert asked(ATLAS, five).loc[BENCHMARKS, "seconds"] == asked(ATLAS, one).loc[BENCHMARKS, "seconds"]
    on_gpu = {BENCHMARKS: {**five[BENCHMARKS], "device": "cuda"}}  # 06 computes the other classifiers there
    assert asked(ATLAS, on_gpu).loc[BENCHMARKS, "seconds"] > asked(ATLAS, five).loc[BENCHMARKS, "seconds"]


@pytest.mark.parametrize(("size", "expected"), [("2048K", 2), ("1.50G", 1536), ("0.5T", 2**19), ("0", 0), ("", 0)])
def test_the_memory_of_a_running_job_is_read_in_all_units_of_slurm(jobs, monkeypatch, size, expected):
    monkeypatch.setattr(jobs, "run_command", lambda *words: f"12.batch|{size}\n12.extern|1K\n")
    used = jobs.memory_used([SimpleNamespace(id="12")])
    assert used == {"12": expected or 2**-10}


def test_sizes_are_read_from_filtered_cells(tmp_path):
    X = random_matrix(30, 12, 0.4, "csr", dtype=np.float32, random_state=0)
    cells = AnnData(X)
    cells.obs["donor_id"], cells.obs["cell_type"] = np.arange(30) % 3, np.arange(30) % 5
    cells.obs = cells.obs.astype(str).astype("category")
    cells.write_h5ad(tmp_path / "filtered.h5ad")
    size = cluster.measured_size(tmp_path / "filtered.h5ad", k=4)
    assert (size.n_cells, size.n_genes, size.nnz, size.n_donors, size.n_types, size.k) == (30, 12, X.nnz, 3, 5, 4)


def test_the_command_computes_the_requests_of_all_stages(monkeypatch, capsys, tmp_path):
    from aenmf_lib.data.simulation import simulate

    cells, _ = simulate(n_cells=300, n_genes=1300, n_donors=2)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.chdir(ROOT)
    notebooks = [str(path) for path in sorted(Path("notebooks").glob("[01][0-9]_*.py"))]
    make = ["--notebooks", *notebooks, "--data", str(tmp_path / "cells.h5ad"), "--folder", str(tmp_path)]
    make += ["--run", str(tmp_path / "k5"), "--models", "base_nmf", "ae_nmf", "--valid", "DEVICE", "-p", "k", "5"]
    cli.main(["requests", *make, "-p", "device", "cuda"])
    printed = json.loads(capsys.readouterr().out)
    asked = printed["stages"]
    assert printed["size"][0] <= 300 and {"01_filter", "03_train_ae_nmf", "06_scores", "lab"} <= {*asked}
    assert "04_train_cae_nmf1" not in asked
    assert (asked["03_train_ae_nmf"]["gpus"], asked["02_train_base_nmf"]["gpus"]) == (1, 0)


def test_the_requests_of_goals_without_data_are_printed(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    cli.main(["requests"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["size"] is None and {"lab", "project"} == {*printed["stages"]}


DAY, NEVER = 86400, float("inf")


@pytest.mark.parametrize(
    ("nodes", "expected", "note"),
    [
        ([(250_000, 64, NEVER)], (100_000, 16, 2 * DAY), ""),
        ([(64_000, 64, NEVER), (250_000, 16, NEVER)], (100_000, 16, 2 * DAY), ""),  # the second has enough
        ([(64_000, 64, NEVER), (90_000, 8, NEVER)], (90_000, 8, 2 * DAY), "instead of 97.7 GB, 16 CPUs"),
        ([(250_000, 64, DAY), (64_000, 4, 3600)], (100_000, 16, DAY), "instead of 2 days: the partition has no more"),
        ([], (100_000, 16, 2 * DAY), ""),  # no such partition: sbatch reports it
    ],
)
def test_a_request_is_at_most_what_one_node_has(jobs, nodes, expected, note):
    request = jobs._capped(jobs.Request(0, 16, 100_000, 2 * DAY, 1), nodes)
    assert (request.memory, request.cpus, request.seconds) == expected
    assert note in str(request) and bool(request.notes) == bool(note)


def test_limits_are_read_from_the_given_or_default_partition(jobs, monkeypatch):
    lines = {
        (): "long*|64000+|8|7-00:00:00|(null)\nshort|128000|32|4:00:00|(null)\n",
        ("-p", "gpu"): "gpu|500000|64|infinite|gpu:a100:4(S:0-1)\ngpu|900000|64|30:00|(null)\n",
    }
    monkeypatch.setattr(jobs, "run_command", lambda *words, **_: lines[words[5:]])  # after the format
    assert jobs._nodes("", "cpu") == [(64_000, 8, 7 * DAY)]  # the default partition
    assert jobs._nodes("gpu", "gpu") == [(500_000, 64, NEVER)]
    assert jobs._nodes("gpu", "cpu")[1] == (900_000, 64, 1800)


def test_options_name_the_gpu_partition_only_for_a_stage_with_a_gpu(jobs):
    site = SimpleNamespace(cpu_partition="cpu", gpu_partition="gpu", account="", gpu_type="a100", sbatch="--qos=x")
    options = [jobs.sbatch_options(jobs.Request(gpus, 8, 3072, 4000, 1), site) for gpus in (0, 1)]
    common = ["--cpus-per-task=8", "--mem=3072M", "--time=67"]
    assert options[0] == [*common, "--partition=cpu", "--qos=x"]
    assert options[1] == [*common, "--partition=gpu", "--gres=gpu:a100:1", "--qos=x"]


def test_progress_is_the_last_cell_and_its_progress_bar(jobs, tmp_path):
    from states import _progress

    log = tmp_path / "log"
    log.write_text(
        "== 03_train_ae_nmf on n1, job 7, now, requested --mem=1M\n03_train_ae_nmf [5/9] old\n 90%|### |\n"
        "== 03_train_ae_nmf on n2, job 7, now, requested --mem=1M\n03_train_ae_nmf [1/9] import logging\n"
        "03_train_ae_nmf [2/9] model.fit(\nAE-NMF:   4%|4   | 4/100\nAE-NMF:  35%|### | 35/100 [00:02<00:04]\n"
    )
    assert _progress(log) == ["cell 2 of 9", "35 %"]
    with log.open("a") as file:
        file.write("03_train_ae_nmf [3/9] loss\n")
    assert _progress(log) == ["cell 3 of 9"]
    assert _progress(tmp_path / "none") == []


def test_watch_redraws_on_a_terminal_and_appends_elsewhere(jobs, monkeypatch, capsys):
    import states

    shown = [(["first " + "x" * 200, "second"], True), (["last"], False)] * 2
    monkeypatch.setattr(states, "show_status", lambda *_: shown.pop(0))
    monkeypatch.setattr(states, "_EVERY", 0)
    monkeypatch.setattr(states.shutil, "get_terminal_size", lambda: (20, 10))
    states.watch(None, [])
    assert capsys.readouterr().out == f"first {'x' * 200}\nsecond\n\nlast\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    states.watch(None, [])
    printed = capsys.readouterr().out
    assert printed == f"\x1b[Hfirst {'x' * 14}\x1b[K\nsecond\x1b[K\n\x1b[J\x1b[Hlast\x1b[K\n\x1b[J"
