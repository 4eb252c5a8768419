"""`make check`: what is found, every fault at once, and the command that solves them."""

import shlex
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csc_matrix, csr_matrix

from aenmf_lib.workflow import check, metadata, parameters, report

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
MODELS = ["Base_NMF", "AE_NMF", "CAE_NMF1", "CAE_NMF2"]


def counts(n_cells: int = 240, n_genes: int = 60, **obs) -> AnnData:
    """Return raw counts of four donors and three types, with more or other columns of obs."""
    rng = np.random.default_rng(0)
    X = csr_matrix(rng.poisson(1.0, (n_cells, n_genes)).astype(np.float32))
    columns = {"donor_id": [f"d{i % 4}" for i in range(n_cells)], "cell_type": [f"t{i % 3}" for i in range(n_cells)]}
    columns = {name: values for name, values in (columns | obs).items() if values is not None}
    names = {"index": [f"cell{i}" for i in range(n_cells)]}
    return AnnData(X, obs=pd.DataFrame(columns, **names), var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


@pytest.fixture
def examine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes cells, and checks them with variables of make."""
    monkeypatch.chdir(NOTEBOOKS.parent)
    monkeypatch.setattr(check.Speed, "measure", lambda: check.Speed())  # fast

    def run(cells: AnnData | Path, models: list[str] = MODELS, slurm: bool = False, **variables: str) -> check.Report:
        path = cells if isinstance(cells, Path) else tmp_path / "cells.h5ad"
        if isinstance(cells, AnnData):
            cells.write_h5ad(path)
        variables = {"DATA": str(path), "K": "5"} | variables
        unknown = ("QUICK", "MODELS", "EXECUTOR")
        parameter = {"FORMAT": "formats"}
        settings = [
            (parameter.get(name, name.lower()), text) for name, text in variables.items() if name not in unknown
        ]
        values = parameters.resolve(sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py")), None, settings)
        options = {"notebooks": NOTEBOOKS, "folder": tmp_path / "results"}
        return check.examine(values, models=models, slurm=slurm, variables=variables, **options)

    return run


def typed(found: check.Report) -> dict[str, str]:
    """Return the variables of the suggested command."""
    words = shlex.split(found.command)
    assert words[:2] == ["make", "all"]
    return dict(word.split("=", 1) for word in words[2:])


def test_good_cells_have_no_error_and_the_command_is_what_was_typed(examine):
    found = examine(counts(), SEED="7")
    assert found.errors == []
    assert {name: text for name, text in typed(found).items() if name != "DATA"} == {"K": "5", "SEED": "7"}
    assert "240 of 240 cells, 4 of 4 donors" in found.text and "3 types" in found.text
    assert "No problems were found" in found.text
    assert "05_train_cae_nmf2" in found.text and "Estimated cost" in found.text


def test_weights_of_the_penalties_are_valid_without_a_strength(examine):
    assert examine(counts(), STRENGTH="0", GAMMA="30").errors == []
    (error,) = examine(counts(), GAMMA="30").errors
    assert "gamma=30.0 would be ignored" in error


def test_all_faults_are_reported_at_once(examine):
    cells = counts(donor_id=None, patient=[f"p{i % 4}" for i in range(240)])
    cells.X.data[cells.X.indptr[7] : cells.X.indptr[8]] = 0
    cells.X.eliminate_zeros()
    cells.obs["cell_type"] = pd.Categorical([None, None, *cells.obs["cell_type"][2:]])
    faults = {"K": "500", "STRENGTH": "-1", "GENE_WEIGHTS": "wrong", "FOREST": "oak", "DEVICE": "tpu"}
    faults |= {"MAX_CELLS": "12", "N_STARTS": "0", "N_JOBS": "0"}
    found = examine(cells, **faults)
    expected = (
        "donor_id",
        "cell7",
        "'cell_type'] is empty",
        "k=500",
        "strength",
        "'wrong'",
        "oak",
        "'tpu'",
        "max_cells=12",
    )
    for text in (*expected, "n_starts=0", "n_jobs=0"):
        assert any(text in error for error in found.errors), text
    assert len(found.errors) == len(set(found.errors)) == len(expected) + 2
    corrected = examine(
        Path(typed(found)["DATA"]), **{name: text for name, text in typed(found).items() if name != "DATA"}
    )
    assert corrected.errors == []


def test_faults_of_other_embeddings_and_of_the_figures_are_reported(examine, tmp_path):
    other = counts(condition=["a", "b"] * 120)
    other.obsm["X_pca"] = np.zeros((240, 3))
    other.write_h5ad(tmp_path / "other.h5ad")
    (tmp_path / "mine.yaml").write_text("font_size: large\n")
    place = f"{tmp_path}/other.h5ad"
    good = {"EXTRA": f"PCA={place}:X_pca", "COLOR_BY": "condition", "FORMAT": "svg", "WIDTH": "120"}
    assert examine(other.copy(), **good).errors == []
    faults = {"EXTRA": f"Own={place}:X_own", "BASELINES": "UMAP", "COLOR_BY": "conditon", "FORMAT": "jpg"}
    faults |= {"WIDTH": "-3", "SETTINGS": f"{tmp_path}/mine.yaml"}
    found = examine(other.copy(), **faults)
    for text in ("no obsm['X_own']", "'UMAP'", "obs['conditon']: the file has no such column", "jpg", "-3", "large"):
        assert any(text in error for error in found.errors), (text, found.errors)
    assert len(found.errors) == 6
    assert not {*faults} & {*typed(found)}  # the suggested command leaves them out


def test_gene_sets_with_other_names_of_genes_are_refused_before_anything_runs(examine, tmp_path):
    def sets(*genes):
        (tmp_path / "sets.gmt").write_text("\t".join(["set", "", *genes]) + "\n")
        return {"GENE_SETS": f"{tmp_path}/sets.gmt"}

    cells = counts()
    cells.var["symbol"] = [f"S{i}" for i in range(60)]
    assert examine(cells, **sets(*(f"S{i}" for i in range(8)))).errors == []  # symbols
    assert examine(cells, **sets(*(f"g{i}" for i in range(8)))).errors == []  # ids
    found = examine(cells, **sets("ENSG1", "ENSG2", "ENSG3")).errors
    assert len(found) == 1 and "None of the genes of 1 gene sets" in found[0] and "'ENSG1'" in found[0]
    assert "at least 5" in examine(cells, **sets("S1", "S2")).errors[0]
    (tmp_path / "sets.gmt").write_text("set g1 g2\n")
    refused = examine(counts(), GENE_SETS=f"{tmp_path}/sets.gmt")
    assert "line 1 has no tab" in refused.errors[0] and "GENE_SETS" not in typed(refused)


def test_missing_columns_are_replaced_by_the_obvious_candidates(examine):
    labels = {"patient": [f"p{i % 4}" for i in range(240)], "celltype": [f"t{i % 3}" for i in range(240)]}
    found = examine(counts(donor_id=None, cell_type=None, n_umi=np.arange(240.0), **labels))
    assert typed(found)["DONOR_KEY"] == "patient" and typed(found)["CELL_TYPE_KEY"] == "celltype"
    assert len(found.errors) == 2 and found.costs is not None


def test_columns_that_cannot_be_guessed_are_left_open_in_the_command(examine):
    found = examine(counts(donor_id=None, cell_type=None, zzz=["a", "b"] * 120), K="500")
    assert typed(found)["DONOR_KEY"] == "COLUMN" and found.costs is None
    assert any("k=500" in error for error in found.errors)


def test_min_cells_that_leaves_no_donor_is_replaced_by_one_that_keeps_donors(examine):
    found = examine(counts(), MIN_CELLS="1000")
    assert any("1000" in error for error in found.errors)
    assert typed(found)["MIN_CELLS"] == "60"
    assert examine(counts(), MIN_CELLS="60").errors == []


def test_different_counts_in_two_layers_are_listed_and_one_is_suggested(examine):
    cells = counts()
    cells.layers["counts"], cells.layers["corrected"] = cells.X.copy(), counts(n_genes=60).X[::-1].copy()
    cells.X = csr_matrix(np.log1p(cells.X.toarray()))
    found = examine(cells)
    assert any("counts" in error and "corrected" in error for error in found.errors)
    assert typed(found)["LAYER"] == "counts"
    assert examine(cells, LAYER="corrected").errors == []
    assert any("no layer 'nothing'" in error for error in examine(cells, LAYER="nothing").errors)


def test_counts_in_a_layer_are_taken_without_an_option(examine):
    cells = counts()
    cells.layers["counts"] = cells.X.copy()
    cells.X = csr_matrix(np.log1p(cells.X.toarray()))
    found = examine(cells)
    assert found.errors == [] and "layers['counts']" in found.text


def test_file_without_counts_is_an_error(examine):
    cells = counts()
    cells.X.data = cells.X.data - 1.5
    found = examine(cells, DONOR_KEY="wrong", MAX_CELLS="3")
    for text in ("no raw counts", "'wrong'", "max_cells=3"):  # labels are checked all the same
        assert any(text in error for error in found.errors), text


def test_missing_and_damaged_files_are_errors_and_the_parameters_are_still_checked(examine, tmp_path):
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(b"no HDF5")
    for path, text in ((tmp_path / "no.h5ad", "not found"), (broken, "not an HDF5 file")):
        found = examine(path, FOREST="oak")
        assert any(text in error for error in found.errors) and any("oak" in error for error in found.errors)
        assert found.costs is None


def test_max_cells_too_small_for_the_donors_is_found_before_training(examine):
    cells = counts(2400, 20, donor_id=[f"d{i % 160}" for i in range(2400)])
    found = examine(cells, MAX_CELLS="1500")
    assert any("160 classes of donor_id" in error for error in found.errors)
    assert typed(found)["MAX_CELLS"] == "1600"
    assert examine(cells, MAX_CELLS="1600").errors == []


def test_quick_raises_max_cells_instead_of_an_error(examine, monkeypatch):
    usual = parameters._of_make

    def of_make(notebook: Path) -> dict:  # QUICK sets max_cells; here it is too small
        return usual(notebook) | ({"max_cells": 20} if notebook.stem == "06_benchmarks" else {})

    monkeypatch.setattr(parameters, "_of_make", of_make)
    found = examine(counts(), QUICK="true")
    assert found.errors == [] and found.raised == {"max_cells": 40}
    assert examine(counts()).raised == {} and examine(counts()).errors


@pytest.mark.parametrize("n_genes_with_counts", [3, 5])
def test_k_is_compared_with_the_genes_that_have_counts(examine, n_genes_with_counts):
    cells = counts()
    dense = cells.X.toarray()
    dense[:, n_genes_with_counts:] = 0
    dense[:, 0] += 1
    cells.X = csr_matrix(dense)
    errors = examine(cells, K="5").errors
    assert bool(errors) == (n_genes_with_counts < 5)
    cells.X = csc_matrix(dense)
    assert len(examine(cells, K="5").errors) == len(errors)


def test_k_smaller_than_the_number_of_types_is_a_warning(examine):
    found = examine(counts(cell_type=[f"t{i % 8}" for i in range(240)]))
    assert found.errors == [] and any("K=5 is smaller" in warning for warning in found.warnings)


def test_one_donor_is_a_warning_and_an_error_only_if_no_model_is_left(examine):
    cells = counts(donor_id=["only"] * 240)
    found = examine(cells)
    assert found.errors == [] and any("skipped" in warning for warning in found.warnings)
    assert "02_train_base_nmf" in found.text and "04_train_cae_nmf1" not in found.text
    assert any("one donor" in error for error in examine(cells, models=["CAE_NMF1"]).errors)
    assert any("one donor" in error for error in examine(cells, models=["CAE_NMF1", "Untied_AE_NMF"]).errors)
    untied = examine(cells, models=["CAE_NMF1", "Untied_AE_NMF"], STRENGTH="0")  # has no penalty and trains
    assert untied.errors == [] and "15_train_untied_ae_nmf" in untied.text
    (error,) = examine(cells, BASELINES="PCA,Harmony").errors
    assert "Harmony corrects for differences between donors, and there is only one donor" in error


def test_one_type_is_a_warning(examine):
    found = examine(counts(cell_type=["only"] * 240))
    assert found.errors == [] and any("cell type" in warning for warning in found.warnings)


def test_too_few_cells_for_the_neighbor_graph_are_an_error(examine):
    assert any("neighbor graph" in error for error in examine(counts(20), MIN_CELLS="1").errors)


def test_small_classes_are_a_warning(examine):
    found = examine(counts(cell_type=["rare"] * 3 + [f"t{i % 3}" for i in range(237)]))
    assert any("'rare', 3" in warning for warning in found.warnings) and found.errors == []


def test_donors_that_are_dropped_are_no_small_classes(examine):
    donors = pd.Categorical(["small"] * 5 + [f"d{i % 4}" for i in range(235)])
    assert not any("fewer than" in warning for warning in examine(counts(donor_id=donors), MIN_CELLS="20").warnings)


def test_unknown_model_is_an_error(examine):
    found = examine(counts(), models=["AE_NMF", "PCA"])
    assert any("'PCA'" in error for error in found.errors)


def test_repeated_seeds_are_an_error(examine, tmp_path):
    counts().write_h5ad(tmp_path / "cells.h5ad")
    values = {"01_filter": {"data": str(tmp_path / "cells.h5ad")}, "06_benchmarks": {"clustering_seeds": [1, 1]}}
    found = check.examine(values, models=MODELS, variables={}, notebooks=NOTEBOOKS, folder=tmp_path)
    assert any("clustering_seeds" in error for error in found.errors)


def test_gpu_is_not_needed_here_if_the_stages_run_on_a_cluster(examine, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert any("cuda" in error for error in examine(counts(), DEVICE="cuda").errors)
    assert examine(counts(), slurm=True, DEVICE="cuda").errors == []
    assert any("tpu" in error for error in examine(counts(), slurm=True, DEVICE="tpu").errors)


def test_full_disk_and_small_memory_are_found_before_the_first_stage(examine, monkeypatch):
    monkeypatch.setattr(report, "free_disk", lambda folder: 1000)
    monkeypatch.setattr(report, "memory", lambda: (10**8, 10**7))
    errors = examine(counts()).errors
    assert any("of disk" in error for error in errors) and any("of memory" in error for error in errors)
    monkeypatch.setattr(report, "memory", lambda: (10**12, 10**7))
    assert any("of memory" in warning for warning in examine(counts()).warnings)


def test_folder_that_cannot_be_written_is_an_error(examine, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False if mode & 2 else True)
    assert any("permission denied" in error for error in examine(counts()).errors)


def test_only_the_columns_that_are_needed_are_read(tmp_path):
    path = tmp_path / "wide.h5ad"
    counts(**{f"more{i}": np.arange(240.0) for i in range(5)}).write_h5ad(path)
    with h5py.File(path, "a") as file:  # a column that cannot be read
        del file["obs/more3"]
        file["obs/more3"] = np.zeros(3)
    with h5py.File(path) as file:
        obs = metadata.read_obs(file, ["donor_id", "cell_type", "is_primary_data"], ["donor_id", "cell_type"])
    assert list(obs) == ["donor_id", "cell_type"] and obs.index[0] == "cell0"


@pytest.mark.parametrize("part", ["obs", "var"])
def test_repeated_names_are_an_error(examine, part):
    cells = counts()
    names = getattr(cells, part).index.to_numpy(copy=True)
    names[5] = names[4]
    setattr(cells, f"{part}_names", names)
    assert [error for error in examine(cells).errors if f"names in {part} are repeated" in error]


def test_report_is_aligned_and_not_wider_than_120_characters(examine):
    types = [f"a type with a rather long name, number {i % 9}" for i in range(240)]
    text = examine(counts(cell_type=types), MAX_CELLS="12", MIN_CELLS="900", FOREST="oak").text
    lines = [line for line in text.splitlines() if "make all" not in line]
    assert max(map(len, lines)) <= 120 and not any(line != line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (75, "75 s"), (240, "4 min"), (9000, "2.5 h"), (3 * 86400, "3 days")]
)
def test_times_are_short(seconds, text):
    assert report.time_text(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(1, "1 MB"), (8.2e7, "82 MB"), (1.23e9, "1.2 GB"), (2.56e11, "256 GB")])
def test_sizes_are_short(size, text):
    assert report.bytes_text(size) == text
