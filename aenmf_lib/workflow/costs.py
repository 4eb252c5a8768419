"""Predicted time, memory and disk of each stage: from the sizes of the data, and the measured speed of this machine.

A time is the number of operations of a stage, for the number of iterations that a fit typically needs, times the
seconds of one operation. These constants were fitted to single fits and logs of one machine; `Speed` compares another
machine with it. The aim is a factor of two; `benchmarks/predictions.py` compares predictions with new runs.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from aenmf_lib.metrics.classifiers import FOREST
from aenmf_lib.metrics.clustering import RESOLUTIONS
from aenmf_lib.metrics.integration import SILHOUETTE_CELLS
from aenmf_lib.metrics.neighbors import PARALLEL_UMAP
from aenmf_lib.training.second_moment import EXPLICIT, choose_representation
from aenmf_lib.workflow.speed import Speed, available_cores  # noqa: F401

STAGES = {  # model -> notebook that trains it
    "Base_NMF": "02_train_base_nmf",
    "AE_NMF": "03_train_ae_nmf",
    "CAE_NMF1": "04_train_cae_nmf1",
    "CAE_NMF2": "05_train_cae_nmf2",
    "Untied_AE_NMF": "15_train_untied_ae_nmf",
}
FILTER, BENCHMARKS, FIGURES, PROGRAMS = "01_filter", "06_benchmarks", "07_figures", "10_programs"
CLASSIFICATION, OTHERS = "classification", "other embeddings"  # parts of 06
CONDITIONAL, UNTIED = ("CAE_NMF1", "CAE_NMF2"), "Untied_AE_NMF"
_GB = 1e9
_WORKER = 0.25e9  # bytes of a parallel worker
_RESOLUTION = 0.8  # of benchmark 1; the resolution curve computes only the others

# Seconds of an operation on one core of the reference machine (2 cores, AMD EPYC, AVX2, 2026-11-27)
_SPARSE = 2.4e-10  # a nonzero times one program, in a product of sparse cells
_NONZERO = 1.0e-8  # a nonzero in a sweep of coordinate descent,
_NONZERO_K = 2.0e-10  # and for each program
_DENSE = 1.7e-11  # a multiplication and addition of a dense product
_GENE = 2.0e-8  # updating one program of a gene by coordinate descent
_PAIR = 1.0e-9  # a pair of programs, of a cell or gene, in a sweep of scikit-learn's NMF
_BLOCK = 4e-4  # overhead of one block of 256 genes
_COMPONENT = 2.2e-9  # a nonzero in the PCA of k components, times k^1.37
_HARMONY = 7e-5  # a cell
_GPU = 20.0  # a GPU computes the iterations this many times faster than two cores
_STARTUP = {
    FILTER: 5.5, "Base_NMF": 7.0, "AE_NMF": 10.5, "CAE_NMF1": 11.0, "CAE_NMF2": 11.5, "Untied_AE_NMF": 11.0,
    BENCHMARKS: 25.0, FIGURES: 16.0, PROGRAMS: 8.0,
}  # fmt: skip
_MEMORY = {
    FILTER: 0.5, "Base_NMF": 0.3, "AE_NMF": 0.65, "CAE_NMF1": 0.65, "CAE_NMF2": 0.65, "Untied_AE_NMF": 0.65,
    BENCHMARKS: 0.6, FIGURES: 0.5, PROGRAMS: 0.6,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Sizes of a data set, before (`file_…`) and after the filter."""

    n_cells: int
    n_genes: int
    nnz: int
    n_donors: int
    n_types: int
    k: int
    file_cells: int = 0
    file_nnz: int = 0
    names: float = 100.0  # bytes of the columns of obs per cell


@dataclass(frozen=True)
class _Run:
    """The inputs of all predictions: sizes, values of all notebooks, models and machine."""

    size: Size
    values: Mapping[str, Mapping[str, Any]]
    models: Collection[str]
    speed: Speed

    def of(self, stage: str) -> Mapping[str, Any]:
        """Return the values of one notebook."""
        return self.values.get(stage, {})

    @property
    def n_embeddings(self) -> int:
        """The number of embeddings that 06 scores: those of the models and others."""
        values = self.of(BENCHMARKS)
        return len(self.models) + len(values.get("extra", ())) + len(values.get("baselines", ()))

    def parallel(self, seconds: float, share: float = 0.6) -> float:
        """Return the time of a computation on all cores; each core after the first adds `share`."""
        return seconds / (1 + share * (min(self.speed.cores, 16) - 1))


def compares_donors(model: str, values: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether a model compares donors, and so needs at least two donors."""
    return model in CONDITIONAL or (model == UNTIED and values.get(STAGES[UNTIED], {}).get("strength", 1) > 0)


def predict(
    size: Size, values: Mapping[str, Mapping[str, Any]], *, models: Collection[str], speed: Speed | None = None
) -> pd.DataFrame:
    """Return the predicted cost of each stage.

    Parameters
    ----------
    size
        The sizes of the data.
    values : notebook -> parameter -> value
        The values of the notebooks' parameters. A missing parameter has its default.
    models, speed
        The models that are trained, and the speed of the machine; the reference machine if None.

    Returns
    -------
    One row per stage, and below it one per part of 06: ``stage, part, seconds, memory, disk`` (bytes). `part` is empty
    in the row of a whole stage. ``mode`` is how a model stores XᵀX.
    """
    run = _Run(size, values, models, speed or Speed())
    rows = [
        _filter(run),
        *(_training(run, model) for model in STAGES if model in models),
        *_benchmarks(run),
        _programs(run),
        _figures(run),
    ]
    return pd.DataFrame(rows, columns=["stage", "part", "seconds", "memory", "disk", "mode"]).fillna({"mode": ""})


def _row(stage: str, seconds: float, memory: float, disk: float, part: str = "", mode: str = "") -> dict[str, Any]:
    """Return one row of the table; `memory` in bytes."""
    return {"stage": stage, "part": part, "seconds": seconds, "memory": memory, "disk": disk, "mode": mode}


def _filter(run: _Run) -> dict[str, Any]:
    """Predict notebook 01, which reads all counts twice, normalizes and writes them."""
    s, speed = run.size, run.speed.sparse
    n, nnz = max(s.file_cells, s.n_cells), max(s.file_nnz, s.nnz)
    seconds = _STARTUP[FILTER] + 4e-8 * nnz + 8e-6 * n
    memory = _MEMORY[FILTER] * _GB + (200 + s.names) * n  # the counts are read in blocks
    return _row(FILTER, speed * seconds, memory, 8 * s.nnz + (40 + s.names) * s.n_cells + 60 * s.n_genes)


def _training(run: _Run, model: str) -> dict[str, Any]:
    """Predict the notebook that trains one model."""
    s, stage, values, k = run.size, STAGES[model], run.of(STAGES[model]), run.size.k
    sums = bool(values.get("sums_path"))
    columns = 4 * k if model in CONDITIONAL else k  # H, the latent of the donor, and both side by side
    U = {"CAE_NMF2": s.n_donors * k * s.n_genes}.get(model, s.n_donors * s.n_genes)
    in_file = U if compares_donors(model, run.values) and (model != "CAE_NMF2" or values.get("donor_U")) else 0
    in_file += s.n_genes * k * (2 if model == UNTIED else 1)
    disk = (2 if values.get("float16") else 4) * s.n_cells * columns + 4 * in_file
    disk += (40 + s.names) * s.n_cells + 60 * s.n_genes
    memory = _MEMORY[model] * _GB + (2 * s.names + 50) * s.n_cells
    if not sums:
        memory += (
            8 * s.nnz + 8 * s.n_cells * columns
        )  # the cells, and all embeddings, which are one block for cells in memory
    mode = ""
    if model == "Base_NMF":
        seconds, more = _base_nmf(run, values)
    else:
        seconds, more, mode = _autoencoder(run, model, values, sums)
    startup = _STARTUP[model] * run.speed.trees
    return _row(stage, startup + seconds, memory + more, disk, mode=mode)


def _base_nmf(run: _Run, values: Mapping[str, Any]) -> tuple[float, float]:
    """Return seconds and memory of scikit-learn's NMF: a singular value decomposition, then sweeps on one core."""
    s, k, sweeps = run.size, run.size.k, min(values.get("max_iter", 100), 80)
    start = 18 * s.nnz * (k + 10) * 1.3 * _SPARSE
    sweep = s.nnz * (4e-9 + 2 * k * _SPARSE) + (s.n_cells + s.n_genes) * k**2 * _PAIR
    error = s.nnz * k * 2 * _SPARSE + 5e-8 * s.nnz
    return run.speed.sparse * (start + sweeps * sweep + error), 8 * s.nnz + 12 * (s.n_cells + s.n_genes) * (k + 10)


def _autoencoder(run: _Run, model: str, values: Mapping[str, Any], sums: bool) -> tuple[float, float, str]:
    """Return seconds, memory and mode of AE-NMF and of the models that start from it."""
    s, k, by_donor = run.size, run.size.k, model == "CAE_NMF2"
    products = 2 if by_donor or model == UNTIED else 1  # with S, in a sweep
    n_parts = max(s.n_donors, 1) if by_donor else 1
    on_gpu = str(values.get("device", "cpu")).startswith("cuda")
    mode = EXPLICIT if sums else _mode(run, values, n_parts)
    per_cell = s.nnz / max(s.n_cells, 1)
    blocks = -(-s.n_genes // 256) * _BLOCK
    genes = s.n_genes * k * _GENE

    def sweep(nnz: float) -> float:  # implicit: a pass over the cells, by blocks of genes
        return nnz * (_NONZERO + k * _NONZERO_K) + genes + blocks

    start = 45 * sweep(per_cell * min(1024, s.n_cells)) + 20 * sweep(per_cell * min(4096, s.n_cells))
    setup, own = 1.0e-7 * s.nnz + 1e-5 * s.n_cells, 0.0
    if mode == EXPLICIT:
        setup += 0 if sums else s.n_cells * s.n_genes**2 * _DENSE / 2
        aenmf = s.n_genes**2 * k * 2 * _DENSE + genes + blocks
        own = n_parts * products * s.n_genes**2 * k * 2 * _DENSE
    else:
        aenmf = sweep(s.nnz)
        own = sweep((1.4 if by_donor else products) * s.nnz)  # model 2 reads the cells once for both products
    if by_donor:
        own += 4 * n_parts * genes
    iterations = min(values.get("max_iter", 1000), 20 + k / 6)
    of_aenmf = values.get("n_starts", 1) * (start + iterations * aenmf / (_GPU if on_gpu else 1))
    more = {"CAE_NMF1": 36, "CAE_NMF2": 52, UNTIED: 110}.get(model, 0)
    of_model = min(values.get("max_iter", 1000), more) * own / (_GPU if on_gpu else 1)
    if model in CONDITIONAL and not values.get("strength", 0.2):
        of_aenmf = start
    elif model in CONDITIONAL and "AE_NMF" in run.models:  # notebook 03 fits it
        of_aenmf = 0.0
    tie_cost = s.nnz * k * 20 * _SPARSE if values.get("tie_cost") else 0.0
    seconds = run.speed.sparse * (setup + run.parallel(of_aenmf + of_model) + tie_cost)
    return seconds, _autoencoder_memory(run, model, mode, n_parts), mode


def _mode(run: _Run, values: Mapping[str, Any], n_parts: int) -> str:
    """Return how a fit stores XᵀX, as training chooses it; the requested mode if memory is too small for it."""
    s, mode = run.size, values.get("mode", "auto")
    sizes = {"n_cells": s.n_cells, "n_genes": s.n_genes, "nnz": s.nnz, "k": s.k, "n_partitions": n_parts}
    try:
        return choose_representation(**sizes, mode=mode)[0]
    except (MemoryError, ValueError):
        return mode if mode == EXPLICIT else "implicit"


def _autoencoder_memory(run: _Run, model: str, mode: str, n_parts: int) -> float:
    """Return the memory of a fit, beyond the cells and the program."""
    s, k, by_donor = run.size, run.size.k, model == "CAE_NMF2"
    groups = (50 if compares_donors(model, run.values) else 0) * s.n_donors * s.n_types * s.n_genes
    programs = n_parts * k * s.n_genes * {"CAE_NMF2": 33, UNTIED: 40}.get(model, 20)
    if mode == EXPLICIT:
        return groups + programs + 12 * n_parts * s.n_genes**2 + 8 * 1024 * s.n_genes
    copies = 2 if by_donor or model == UNTIED else 1  # of the usages; model 2 also keeps two copies of the cells
    return (
        groups + programs + (24 if by_donor else 16) * s.nnz + 8 * copies * s.n_cells * k + 1024 * n_parts * s.n_genes
    )


def _graph(run: _Run, n: int) -> float:
    """Return the seconds of one exact neighbor search."""
    return n**2 * (3.5e-9 + 2.5e-11 * run.size.k) / math.sqrt(min(run.speed.cores, 16)) + 1e-5 * n


def _benchmarks(run: _Run) -> Iterator[dict[str, Any]]:
    """Predict notebook 06 and its parts."""
    parts = {"clustering": _clustering(run), "UMAP": _umap(run), CLASSIFICATION: _classification(run, len(run.models))}
    if n_others := run.n_embeddings - len(run.models):
        parts[OTHERS] = _others(run, n_others)
    seconds = run.speed.trees * (_STARTUP[BENCHMARKS] + sum(part[0] for part in parts.values()))
    memory = _MEMORY[BENCHMARKS] * _GB + max(part[1] for part in parts.values())
    memory += run.n_embeddings * run.size.n_cells * 700
    disk = run.size.n_cells * (8 * run.n_embeddings + 40 + run.size.names) + 2e6
    wanted = run.of(BENCHMARKS).get("baselines", ())
    disk += (bool(wanted) + ("Harmony" in wanted)) * run.size.n_cells * run.size.k * 4  # Harmony with its components
    yield _row(BENCHMARKS, seconds, memory, disk)
    for part, (own, peak) in parts.items():
        yield _row(BENCHMARKS, run.speed.trees * own, _MEMORY[BENCHMARKS] * _GB + peak, 0, part)


def _jobs(run: _Run) -> int:
    """Return the number of parallel workers of notebook 06."""
    n_jobs = run.of(BENCHMARKS).get("n_jobs", -1)
    return max(1, min(n_jobs, run.speed.cores) if n_jobs > 0 else run.speed.cores + 1 + n_jobs)


def _clustering(run: _Run) -> tuple[float, float]:
    """Return seconds and memory of neighbor graphs, Leiden clusters and mixing; the silhouette has the most pairs."""
    s, values = run.size, run.of(BENCHMARKS)
    others = [r for r in values.get("resolutions", RESOLUTIONS) if r != _RESOLUTION]
    runs = len(values.get("clustering_seeds", range(10))) + len(others)
    leiden = 6e-5 * s.n_cells
    scib = bool(values.get("scib"))
    mixing = (2 * 2.4e-8 + 5e-8 * scib) * min(s.n_cells, SILHOUETTE_CELLS) ** 2
    seconds = run.n_embeddings * (_graph(run, s.n_cells) + mixing + runs * leiden / _jobs(run))
    seconds += 2.5 * scib * s.n_types  # JAX compiles its functions once for each size of a cell type
    distances = min(2**30, 4 * min(s.n_cells, SILHOUETTE_CELLS) ** 2)  # scikit-learn computes 1 GiB of them at a time
    return seconds + 6, max(distances, _jobs(run) * (_WORKER + 7000.0 * s.n_cells))


def _umap(run: _Run) -> tuple[float, float]:
    """Return seconds and memory of the layouts."""
    n, epochs = run.size.n_cells, 500 if run.size.n_cells <= 10_000 else 200
    jobs = min(_jobs(run), run.n_embeddings) if n >= PARALLEL_UMAP else 1
    seconds = (2.5e-6 * epochs + 7e-5) * max(1.0, n / 14_000) ** 0.07 * n  # of one embedding
    return seconds * run.n_embeddings / jobs, jobs * (_WORKER + 4000.0 * n)


def _classification(run: _Run, n_embeddings: int) -> tuple[float, float]:
    """Return seconds and memory of all fits to some embeddings, also those on unseen donors."""
    s, values = run.size, run.of(BENCHMARKS)
    n = min(values.get("max_cells", 0) or s.n_cells, s.n_cells)
    seeds, unseen = (len(values.get(name, range(n))) for name, n in (("classification_seeds", 5), ("unseen_seeds", 1)))
    own = {}
    for label, classes, hard in (("type", s.n_types, 1.0), ("donor", s.n_donors, 1.3)):
        forest = 6.5e-6 * n * math.log2(max(n, 2)) * math.sqrt(s.k) * (1 + 0.03 * classes) * hard
        if values.get("forest", FOREST) != FOREST:
            forest /= 8
        own[label] = forest + 0.04 + 1.25e-8 * n * s.k * classes
    fits = 5 * seeds * (own["type"] + own["donor"]) + min(5, s.n_donors) * unseen * own["type"]
    search = 3 * (6e-9 * n**2 / math.sqrt(run.speed.cores) + 1e-5 * n * seeds)
    return n_embeddings * (fits / _jobs(run) + search) + 5, _jobs(run) * (
        _WORKER + n * (8.0 * s.k + 45.0 * max(s.n_types, s.n_donors))
    )


def _others(run: _Run, n_others: int) -> tuple[float, float]:
    """Return seconds and memory of the baselines, and of the fits to all embeddings that are not of the models."""
    s, wanted = run.size, run.of(BENCHMARKS).get("baselines", ())
    seconds, memory = _classification(run, n_others)
    if wanted:
        seconds += s.nnz * s.k**1.37 * _COMPONENT
        memory = max(memory, 16 * s.nnz + 12 * (s.n_cells + s.n_genes) * 2 * s.k)
    return seconds + ("Harmony" in wanted) * _HARMONY * s.n_cells, memory


def _programs(run: _Run) -> dict[str, Any]:
    """Predict notebook 10, which reads the embeddings and programs of all models."""
    s, n_models = run.size, len(run.models)
    seconds = _STARTUP[PROGRAMS] + n_models * (4e-8 * s.n_cells * s.k + 1.2e-6 * s.n_genes * s.k)
    memory = _MEMORY[PROGRAMS] * _GB + 12 * s.n_cells * s.k + 40 * s.n_genes * s.k + (2 * s.names + 50) * s.n_cells
    return _row(PROGRAMS, run.speed.trees * seconds, memory, n_models * s.k * 3e4)


def _figures(run: _Run) -> dict[str, Any]:
    """Predict notebook 07."""
    n, n_models = run.size.n_cells, run.n_embeddings
    memory = _MEMORY[FIGURES] * _GB + (400 + 60 * n_models) * n
    return _row(
        FIGURES, run.speed.trees * (_STARTUP[FIGURES] + 0.3 * run.size.n_types + 1.2e-5 * n * n_models), memory, 5e6
    )
