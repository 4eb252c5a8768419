"""Predictions of time, memory and disk: against measured values, and monotone in what they depend on."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from aenmf_lib.results.schema import PUBLISHED
from aenmf_lib.workflow import cluster, costs
from aenmf_lib.workflow.costs import BENCHMARKS, CLASSIFICATION, FILTER, STAGES, Size, Speed

KANG = Size(n_cells=13_963, n_genes=14_044, nnz=9_753_391, n_donors=8, n_types=13, k=20)
ATLAS = Size(n_cells=1_000_000, n_genes=2000, nnz=59_000_000, n_donors=8, n_types=12, k=10)
DEMO = Size(n_cells=4782, n_genes=2000, nnz=2_381_820, n_donors=5, n_types=8, k=12)
# of `make rehearse` with CELLS=20000 and CELLS=200000
REHEARSED = Size(19_701, 52_039, 39_285_989, 18, 40, k=80, file_cells=20_000, file_nnz=40_000_000, names=252)
LARGER = Size(197_095, 52_052, 394_417_236, 18, 40, k=80, file_cells=200_000, file_nnz=400_000_000, names=252)
# Seconds and GiB of whole stages as the logs report them, 2 cores, November 2026; nothing is scaled.
# Demo: wall clock of one run. Kang et al., MAX_CELLS=1000: wall clock of one run, and memory of a later run. The load
# of the machine is not known, but 03 and 05 ran later on an idle machine. Million simulated cells: processor time (user
# + system) of the stage, because the machine was too busy for the wall clock to say anything; its filter was measured
# later, with the version that reads in blocks. Rehearsals: wall clock of a nearly idle machine, but other programs ran
# during 02 of the larger one. Untied AE-NMF: processor time. The constants in `costs` were fitted to these and similar
# runs: the test guards them against changes, and `benchmarks/predictions.py` tests them on new runs.
MEASURED = [
    (KANG, FILTER, 7, 0.5),
    (KANG, STAGES["Base_NMF"], 26, 0.4),
    (KANG, STAGES["AE_NMF"], 12, 0.8),
    (KANG, STAGES["CAE_NMF1"], 28, 1.0),
    (KANG, STAGES["CAE_NMF2"], 28, 1.2),
    (KANG, BENCHMARKS, 293, 1.2),
    (KANG, costs.FIGURES, 20, 0.5),
    (ATLAS, FILTER, 15.8, 0.74),
    (ATLAS, STAGES["Base_NMF"], 44.5, 1.4),
    (ATLAS, STAGES["AE_NMF"], 37.8, 2.0),
    (ATLAS, STAGES["CAE_NMF1"], 73.4, 2.3),
    (ATLAS, STAGES["CAE_NMF2"], 119, 2.6),
    (DEMO, FILTER, 7, 0.3),
    (DEMO, STAGES["Base_NMF"], 10, 0.3),
    (DEMO, STAGES["AE_NMF"], 13, 0.7),
    (DEMO, STAGES["CAE_NMF1"], 15, 0.7),
    (DEMO, STAGES["CAE_NMF2"], 17, 0.7),
    (DEMO, BENCHMARKS, 83, 0.7),
    (DEMO, costs.FIGURES, 18, 0.4),
    (REHEARSED, FILTER, 11, 0.5),
    (REHEARSED, STAGES["Base_NMF"], 250, 1.3),
    (REHEARSED, STAGES["AE_NMF"], 38, 1.5),
    (REHEARSED, STAGES["CAE_NMF1"], 35, 3.2),
    (REHEARSED, STAGES["CAE_NMF2"], 180, 5.4),
    (REHEARSED, BENCHMARKS, 262, 1.3),
    (REHEARSED, costs.PROGRAMS, 15, 0.8),
    (REHEARSED, costs.FIGURES, 34, 0.5),
    (LARGER, FILTER, 23, 0.6),
    (LARGER, STAGES["Base_NMF"], 2558, 6.9),
    (LARGER, STAGES["AE_NMF"], 167, 6.9),
    (LARGER, STAGES["CAE_NMF1"], 147, 11.6),
    (LARGER, STAGES["CAE_NMF2"], 411, 16.2),
    (LARGER, BENCHMARKS, 1207, 2.4),
    (LARGER, costs.PROGRAMS, 19, 1.1),
    (LARGER, costs.FIGURES, 40, 0.5),
    (KANG, STAGES["Untied_AE_NMF"], 20.8, 1.0),
    (DEMO, STAGES["Untied_AE_NMF"], 7.8, 0.8),
]
SETTINGS = {
    KANG: {BENCHMARKS: {"max_cells": 1000}},
    REHEARSED: {BENCHMARKS: {"max_cells": 2000}},
    LARGER: {BENCHMARKS: {"max_cells": 2000}},
    DEMO: {BENCHMARKS: {"max_cells": 1500, "clustering_seeds": [0, 1, 2, 3, 4], "classification_seeds": [42]}},
}


def predicted(size: Size, values: dict | None = None, **options) -> pd.DataFrame:
    """Return the predictions of the published models, with a row label per stage and part."""
    table = costs.predict(size, values or {}, models=options.pop("models", PUBLISHED), **options)
    return table.set_index(table["part"].where(table["part"] != "", table["stage"]))


@pytest.mark.parametrize(("size", "stage", "seconds", "gib"), MEASURED)
def test_predictions_are_within_a_factor_of_two_of_the_measured(size, stage, seconds, gib):
    models = STAGES if "untied" in stage else PUBLISHED
    row = predicted(size, SETTINGS.get(size), models=models).loc[stage]
    assert 0.5 < row["seconds"] / seconds < 2
    assert 0.5 < row["memory"] / 2**30 / gib < 2


@pytest.mark.parametrize("field", ["n_cells", "n_genes", "nnz", "n_donors", "n_types", "k"])
def test_larger_data_never_cost_less(field):
    fields = ("n_cells", "nnz") if field == "n_cells" else (field,)  # as many nonzeros per cell
    small, large = predicted(KANG), predicted(replace(KANG, **{name: 2 * getattr(KANG, name) for name in fields}))
    for column in ("seconds", "memory", "disk"):
        shrinks = large[column] < 0.999 * small[column]
        assert not shrinks.any(), (column, large.index[shrinks].tolist())


def test_disk_of_filtered_cells_is_eight_bytes_per_nonzero():
    assert predicted(KANG).loc[FILTER, "disk"] == pytest.approx(8 * KANG.nnz, rel=0.1)


def test_classification_takes_less_time_with_fewer_cells_seeds_or_the_fast_forest():
    whole = predicted(KANG).loc[CLASSIFICATION, "seconds"]
    for values in ({"max_cells": 1000}, {"classification_seeds": [42]}, {"forest": "random_forest_intelex"}):
        assert predicted(KANG, {BENCHMARKS: values}).loc[CLASSIFICATION, "seconds"] < 0.6 * whole


def test_stages_of_models_that_are_not_trained_have_no_row():
    table = predicted(KANG, models=["AE_NMF"])
    assert STAGES["AE_NMF"] in table.index
    assert not {STAGES["Base_NMF"], STAGES["CAE_NMF1"], STAGES["CAE_NMF2"]} & set(table.index)
    assert table.loc[BENCHMARKS, "seconds"] < predicted(KANG).loc[BENCHMARKS, "seconds"]


def test_other_embeddings_and_baselines_are_counted_in_the_benchmarks():
    usual = predicted(DEMO, SETTINGS[DEMO])
    values = {BENCHMARKS: {"extra": ["a", "b", "c"], "baselines": ["PCA", "Harmony"], "n_jobs": 1}}
    values[BENCHMARKS] = SETTINGS[DEMO][BENCHMARKS] | values[BENCHMARKS]
    found = predicted(DEMO, values, speed=Speed(cores=1))
    assert 0.5 < found.loc[BENCHMARKS, "seconds"] / 188 < 2  # measured: processor time of one run
    assert 0.5 < found.loc[BENCHMARKS, "memory"] / 2**30 / 0.6 < 2
    assert found.loc[BENCHMARKS, "disk"] > usual.loc[BENCHMARKS, "disk"] + 2 * 4 * DEMO.n_cells * DEMO.k
    assert costs.OTHERS in found.index and costs.OTHERS not in usual.index


@pytest.mark.parametrize(("k", "seconds"), [(20, 1.3 + 0.9), (80, 8.7 + 0.7)])  # measured: PCA and Harmony
def test_time_of_the_baselines_is_within_a_factor_of_two_of_the_measured(k, seconds):
    def others(**values) -> float:
        return predicted(replace(KANG, k=k), {BENCHMARKS: values}).loc[costs.OTHERS, "seconds"]

    assert 0.5 < (others(baselines=["PCA", "Harmony"]) - others(extra=["a", "b"])) / seconds < 2


def test_jobs_of_the_models_do_not_compute_other_embeddings():
    table = predicted(KANG, {BENCHMARKS: {"baselines": ["PCA"]}})
    assert table.loc[CLASSIFICATION, "seconds"] == predicted(KANG).loc[CLASSIFICATION, "seconds"]


def test_a_slower_machine_takes_longer_and_more_cores_take_less():
    usual = predicted(KANG)["seconds"]
    assert (predicted(KANG, speed=Speed(2, 2, 2))["seconds"] > 1.5 * usual).all()
    more = predicted(KANG, speed=Speed(cores=16))["seconds"]
    assert (more <= usual).all() and more[CLASSIFICATION] < usual[CLASSIFICATION] / 4


def test_wide_data_use_the_mode_that_training_chooses():
    few_genes = replace(KANG, n_genes=2000, nnz=6_963_869)  # measured: explicit
    assert predicted(few_genes).loc[STAGES["AE_NMF"], "mode"] == "explicit"
    assert predicted(KANG).loc[STAGES["AE_NMF"], "mode"] == "implicit"
    requested = {STAGES["AE_NMF"]: {"mode": "explicit"}}
    assert predicted(KANG, requested).loc[STAGES["AE_NMF"], "mode"] == "explicit"


def test_measured_speed_is_that_of_a_machine_of_today():
    speed = Speed.measure()
    assert all(0.05 < value < 50 for value in (speed.sparse, speed.dense, speed.trees)) and speed.cores >= 1


def test_cluster_requests_are_read_with_their_units(tmp_path: Path):
    path = tmp_path / "stages.tsv"
    path.write_text("# comment\n01_filter\t0\t16\t256G\tauto\t1\n06_scores\t0\t8\t500M\t2-12:00:00\t8\n")
    table = cluster.read_requests(path)
    assert table.loc["01_filter"].tolist() == [0, 16, 256 * 2**30, "auto", 1]
    assert table.loc["06_scores"].tolist() == [0, 8, 500 * 2**20, 2.5 * 86400, 8]
    path.write_text("01_filter\tcpu\t0\t16\t256G\t04:00:00\t1\n")  # of an earlier version
    with pytest.raises(ValueError, match=r"stages.tsv: '01_filter\\tcpu.*' has 7 columns. Expected 6: stage, gpus"):
        cluster.read_requests(path)
    assert cluster.read_requests(tmp_path / "missing.tsv").empty


def test_every_stage_of_the_cluster_is_compared_with_its_request(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    table = cluster.add_cluster(predicted(KANG, models=STAGES), KANG, {}, models=[*STAGES], speed=Speed())
    compared = table["requested_memory"].notna()
    assert set(table.index[~compared]) == {"clustering", "UMAP"}
    assert (table["cluster_seconds"][compared] <= table["seconds"][compared]).all()
