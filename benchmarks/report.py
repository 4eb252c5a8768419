"""Fill the tables of README.md and draw two figures from results/*.csv.

    python benchmarks/report.py

Everything between a ``<!-- table: NAME -->`` mark and its ``<!-- end -->`` is overwritten.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import conditioning_tables
import numpy as np
import pandas as pd
from measure import RESULTS
from peers import CITED, SOLVERS
from speed import PANELS, speed

from aenmf_lib import figures
from aenmf_lib.conditioning import study
from aenmf_lib.data.tables import read_table
from aenmf_lib.figures import style
from aenmf_lib.results import RunInfo

HERE = Path(__file__).parent
FIGURES = HERE.parent / "figures"

# sizes of the extrapolated data sets
TABULA = {"cells": 592_317, "genes": 60_606, "nonzeros": 2500}
ATLAS = {"cells": 60_000_000, "nonzeros": 2000}
CORES = 16  # of the published scoring job


def read(name: str) -> pd.DataFrame:
    """Return a table of results."""
    return read_table(RESULTS / f"{name}.csv")


def markdown(head: list[str], rows: list[list[str]], sources: pd.DataFrame | None = None) -> str:
    """Return a Markdown table, followed by the machines and dates of the tables it was made from."""
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if sources is None:
        return text
    machines = sources[["machine", "date"]].drop_duplicates()
    return text + "\n\n" + "; ".join(f"{row.machine}, {row.date}" for row in machines.itertuples()) + "."


def peers(name: str) -> str:
    """Return the medians over the runs of each solver.

    The ratio is the median over the rounds. A solver that ran once is compared with the median of AE-NMF. The time to
    the error of AE-NMF is interpolated between the recorded iterations. The last rows are those of `CITED`.
    """
    table = read(name)
    target = table.loc[table["solver"] == "AE-NMF", "relative_error"].median()
    table["to_target"] = [_seconds_to(target, run) for run in table.to_dict("records")]
    ours = table[table["solver"] == "AE-NMF"].set_index("run")["seconds"]
    in_turn = table.groupby("solver")["run"].transform("count") == len(ours)
    ratio = table["seconds"] / table["run"].map(ours).where(in_turn, ours.median())
    columns = ["ratio", "seconds", "to_target", "cpu_seconds", "peak_mib", "relative_error", "relative_error_untied"]
    groups = table.assign(ratio=ratio).groupby("solver", sort=False)
    medians = groups[columns].median().assign(runs=groups.size(), stop=groups["stop"].first())
    rows = []
    for solver, row in medians.loc[[name for name in SOLVERS if name in medians.index]].iterrows():
        numbers = [f"**{row.ratio:.1f}**", f"{row.seconds:.1f}", _known(row.to_target, ".1f"),
                   _known(row.cpu_seconds, ".1f"), f"{max(row.peak_mib, 0):.0f}", f"{row.relative_error:.4f}",
                   _known(row.relative_error_untied, ".4f")]  # fmt: skip
        rows.append([solver, *(numbers if pd.notna(row.ratio) else [row.stop, *[""] * 6]), str(row.runs)])
    note, cited = CITED.get(name, ("", []))
    rows += [[f"{solver} †", "", seconds, "", "", "", error, "", "1"] for solver, seconds, error in cited]
    head = ["", "time relative to AE-NMF", "s", "s to the error of AE-NMF", "CPU s", "peak MiB", "‖X − H W‖ / ‖X‖",
            "error with free H", "runs"]  # fmt: skip
    return markdown(head, rows, table) + (f" † {note}" if note else "")


def _known(value: float, form: str) -> str:
    """Return a number as text, or an empty text for NaN."""
    return "" if np.isnan(value) else format(value, form)


def _seconds_to(target: float, run: dict) -> float:
    """Return the seconds after which the error of a run is at most `target`, NaN if it never is or is not recorded."""
    points = [point[1:] for point in json.loads(run["curve"])] if isinstance(run.get("curve"), str) else []
    if not points and run["solver"] not in ("AE-NMF", "scanpy's PCA"):  # target; no iterations
        return np.nan
    points.append((run["seconds"], run["relative_error"]))
    before = (0.0, np.inf)
    for seconds, error in points:
        if error <= target:  # linear between two points; the error before the first point is unknown
            share = (before[1] - target) / (before[1] - error) if np.isfinite(before[1]) else 1
            return before[0] + share * (seconds - before[0])
        before = seconds, error
    return np.nan


def passes() -> str:
    """Return the cost of a pass over cells on disk."""
    table = read("streaming_pass")
    rows = [
        [f"{cells:,}", f"{runs.us_per_cell.median():.0f}", f"{runs.peak_mib.median():.0f}", str(len(runs))]
        for cells, runs in table.groupby("cells")
    ]
    return markdown(["cells", "µs per cell", "peak MiB", "runs"], rows, table)


def reader() -> str:
    """Return the speed of reading and normalizing cells, as medians over the runs."""
    table, rows = read("reader"), []
    for (form, genes, cores), runs in table.groupby(["format", "genes", "cores"], sort=False):
        row = runs.median(numeric_only=True)
        speeds = f"{row.million_per_s_core:.0f}", f"{row.us_per_cell:.1f}", f"{row.peak_mib:.0f}"
        rows.append([form, f"{genes:,}", str(cores), *speeds, str(len(runs))])
    head = ["format", "genes kept", "cores", "million nonzeros per s and core", "µs per cell", "peak MiB", "runs"]
    return markdown(head, rows, table)


def training() -> str:
    """Return the cost of training from sums for several numbers of cells, on the CPU and on a GPU."""
    table = pd.concat([read("streaming_train"), read("streaming_train_cuda")])
    rows = [
        [f"{row.cells:,}", row.machine.split(";")[0].split(",")[0], f"{row.sums_seconds:.3g}",
         f"{row.training_seconds:.0f}", str(row.iterations), f"{row.seconds:.0f}", f"{row.peak_mib:.0f}",
         f"{row.explained:.1%}"]
        for row in table.itertuples()
    ]  # fmt: skip
    head = ["cells", "device", "sums, s", "training, s", "iterations", "total, s", "peak MiB", "‖X‖² explained"]
    return markdown(head, rows, table)


def roofline(*names: str) -> str:
    """Return the speed of the inner loops as a share of the measured peak."""
    table = pd.concat([read(f"roofline_{name}") for name in names])
    rows = [
        [f"{row.genes:,}", row.what, str(row.k) if row.k else "", f"{row.seconds:.3g}", f"{row.gflops:,.0f}",
         f"{row.sgemm_gflops:,.0f}", f"{row.share_of_sgemm:.0%}"]
        for row in table.itertuples()
    ]  # fmt: skip
    return markdown(["genes", "step", "k", "s", "GF/s", "peak GF/s", "share"], rows, table)


def seeds() -> str:
    """Return the errors of ten seeds at the default stop, relative to the best of them after ten times as long."""
    table, rows = read("seeds"), []
    for (genes, k), runs in table.groupby(["genes", "k"], sort=False):
        best, default = runs["error_long"].min(), runs.loc[runs["seed"] == 42, "error"].iloc[0]
        errors = [default, runs["error"].median(), best]
        excess = [error / best - 1 for error in (default, runs["error"].median(), runs["error"].max())]
        rows.append([genes, str(k), str(len(runs)), *(f"{e:.5f}" for e in errors), *(f"{e:.2%}" for e in excess)])
    head = ["genes", "k", "seeds", "error: seed 42", "median", "best, ten times as long",
            "above the best: seed 42", "median", "worst"]  # fmt: skip
    return markdown(head, rows, table)


def extrapolation() -> str:
    """Return operations, bytes and memory of sizes that were not run, from measured rates."""
    table = read("streaming_pass")
    us = float(table.loc[table["cells"] == table["cells"].max(), "us_per_cell"].median())
    rows = []
    for name, n, p, measured, k, nonzeros in (
        ("Tabula Sapiens Immune", TABULA["cells"], TABULA["genes"], 60_000, 80, TABULA["nonzeros"]),
        ("60 million cells", ATLAS["cells"], 20_000, 20_000, 256, ATLAS["nonzeros"]),
        ("60 million cells", ATLAS["cells"], 60_000, 60_000, 256, ATLAS["nonzeros"]),
    ):
        gpu, flop = read(f"roofline_cuda_{measured}"), n * p**2
        rate = float(gpu.loc[gpu["what"] == "form S", "gflops"].iloc[0]) * 1e9
        rows.append([f"{name} × {p:,}, k {k}", f"{flop:.1e}", f"{flop / rate / 60:.2g}",
                     f"{8 * n * nonzeros / 2**40:.2g}", f"{n * us / 3.6e9:.2g}", f"{12 * p**2 / 2**30:.3g}",
                     f"{16 * n * nonzeros / 2**40:.2g}"])  # fmt: skip
    head = ["", "operations to form S", "GPU-minutes for S", "TiB to read", "hours of 2 cores to read", "GiB for S",
            "TiB if implicit"]  # fmt: skip
    return markdown(head, rows)


def rehearsal() -> str:
    """Return the cost of each stage of `make rehearse`: measured, estimated from fewer cells, and for the atlas."""
    table = read("predictions")
    rows = [
        [f"`{row.stage}`", *(f"{seconds / 60:.1f}" for seconds in (row.seconds, row.estimated_seconds)),
         f"{row.time_ratio:.2f}", f"{row.gb:.1f}", f"{row.estimated_gb:.1f}", f"{row.memory_ratio:.2f}",
         f"{row.atlas_seconds / 60:.0f}", f"{row.atlas_gb:.0f}"]
        for row in table.itertuples()
    ]  # fmt: skip
    head = ["", "min", "estimated", "ratio", "GB", "estimated", "ratio", "min, atlas", "GB, atlas"]
    return markdown(head, rows, table)


def scoring() -> str:
    """Compare the two published benchmarks with direct scanpy and scikit-learn calls, by part and in total.

    The total is for four embeddings and two labels: 40 clusterings and 200 fits of each classifier.
    """
    table = read("scoring").groupby(["files", "max_cells", "part", "n_seeds", "way"], sort=False)
    table = table.mean(numeric_only=True).reset_index()
    rows, total = [], {"direct": 0.0, "published forest": 0.0, "forest of scikit-learn-intelex": 0.0}
    for (files, max_cells, part, n_seeds), runs in table.groupby(["files", "max_cells", "part", "n_seeds"], sort=False):
        reference = "random_forest" if part.startswith("random_forest") else part
        same = (table[["files", "max_cells", "n_seeds", "part"]] == [files, max_cells, n_seeds, reference]).all(axis=1)
        direct, ours = table[same & (table["way"] == "plain")].iloc[0], runs[runs["way"] == "ours"].iloc[0]
        scores = [name for name in table if " " in name and pd.notna(ours[name])]
        n_models, clustering = len(files.split()), part.startswith("neighbors")
        fits = n_models * (n_seeds if clustering else 2 * 5 * min(n_seeds, 5))
        rows.append(
            [part.replace("_", " "), f"{max_cells:,}" if max_cells and not clustering else "all", str(n_models),
             str(fits), f"{direct['seconds']:.1f}", f"{ours['seconds']:.1f}",
             f"**{direct['seconds'] / ours['seconds']:.1f}**", f"{ours['cores_busy']:.0%}",
             f"{(ours[scores] - direct[scores]).abs().max():.1g}"]
        )  # fmt: skip
        if n_models == 4:
            factor = (40 if clustering else 200) / fits
            total["direct"] += factor * direct["seconds"] * (part == reference)
            total["published forest"] += factor * ours["seconds"] * (part != "random_forest_intelex")
            total["forest of scikit-learn-intelex"] += factor * ours["seconds"] * (part != "random_forest")
    direct = total.pop("direct")
    for forest, seconds in total.items():
        ratio = f"**{direct / seconds:.1f}**"
        rows.append([f"total, {forest}", "", "4", "640", f"{direct:.0f}", f"{seconds:.0f}", ratio, "", ""])
    head = ["", "cells", "embeddings", "fits", "direct calls, s", "this project, s", "ratio", "cores busy",
            "largest difference"]  # fmt: skip
    return markdown(head, rows, read("scoring"))


STAGE = {"neighbor graph": 4, "one Leiden seed": 40, "knn": 8, "logistic_regression": 200, "random_forest": 200}


def atlas() -> str:
    """Extrapolate the CPU time of scoring an atlas, by the power law through two measured sizes."""
    table = read("scoring_atlas")
    low, high = sorted(table["cells"].unique())[-2:]
    rows, total = [], 0.0
    for part, n in STAGE.items():
        runs = table[table["part"] == part].set_index("cells")
        power = np.log(runs.loc[high, "cpu_seconds"] / runs.loc[low, "cpu_seconds"]) / np.log(high / low)
        seconds = runs.loc[high, "cpu_seconds"] * (TABULA["cells"] / high) ** power
        hours = n * seconds / CORES / 3600
        total += hours
        rows.append(
            [part.replace("_", " "), f"{runs.loc[low, 'cpu_seconds']:.0f}", f"{runs.loc[high, 'cpu_seconds']:.0f}",
             f"{runs.loc[high, 'peak_mib']:,.0f}", f"{power:.2f}", f"{seconds / 60:.0f}", str(n), f"{hours:.1f}"]
        )  # fmt: skip
    rows.append(["total", "", "", "", "", "", "", f"**{total:.1f}**"])
    head = ["part", f"{low:,} cells, CPU s", f"{high:,} cells, CPU s", f"peak MiB at {high:,}", "power of n",
            f"{TABULA['cells']:,} cells, CPU min", "runs in the stage", f"hours of {CORES} cores"]  # fmt: skip
    return markdown(head, rows, table)


def conditioning(cells: str, on: str) -> str:
    """Return the scores of the main models in a study of real cells."""
    return _study({"": read(f"conditioning_{cells}").query("on == @on")}, conditioning_tables.REAL, on)


SIMULATED = {
    "demo_none": "none", "demo_weak": "a quarter of demo", "demo": "demo",
    "demo_confounded": "demo, different composition",
}  # fmt: skip
MANY_DONORS = {"demo_many": "rank 2", "demo_many_full": "full rank"}


def simulated(effects: dict[str, str]) -> str:
    """Return the scores of the main models on simulated data sets, given with their donor effects."""
    studies = {effect: read(f"conditioning_{cells}") for cells, effect in effects.items()}
    return _study(studies, conditioning_tables.SIMULATED, "donor")


def _study(studies: dict[str, pd.DataFrame], models: tuple[str, ...], on: str) -> str:
    """Return the table of some studies with its note."""
    head, rows, note = conditioning_tables.study_table(studies, models, on)
    return markdown(head, rows) + f"\n\n{note}"


def fuzz() -> str:
    """Return how many damaged files gave which outcome, by kind of file."""
    table = read("fuzz").groupby("suite", sort=False).sum(numeric_only=True)
    table.loc["all"] = table.sum()
    names = {"h5ad": ".h5ad", "zarr": ".zarr", "other": "YAML, .npz, csv"}
    rows = [[names.get(suite, suite), *(f"{n:,}" for n in (row.sum(), *row))] for suite, row in table.iterrows()]
    return markdown(["", "files", *table], rows)


def stability(*names: str) -> str:
    """Return how well the programs of two halves of the donors match, as means over the divisions, with the range."""
    rows, tables = [], [read(name) for name in names]
    for (k, method), runs in pd.concat(tables).groupby(["k", "method"], sort=False):
        kept = pd.concat([runs["programs_a"], runs["programs_b"]]).mean()
        median = f"**{runs['median'].mean():.3f}** ({runs['median'].min():.3f} to {runs['median'].max():.3f})"
        scores = [f"{runs[name].mean():.3f}" for name in ("mean", "error", "knn", "logistic_regression", "NMI")]
        rows.append([str(k), method, str(runs["rounds"].iloc[0]), f"{kept:.1f}", median, *scores, str(len(runs))])
    head = ["k", "", "fits per half", "programs", "median cosine", "mean cosine", "‖X − H W‖ / ‖X‖", "type: kNN",
            "type: logistic", "type: NMI", "divisions"]  # fmt: skip
    return markdown(head, rows, pd.concat(tables))


def maps() -> str:
    """Return the time to draw and zoom the map of notebook 09, as medians over the runs."""
    table = read("maps")
    medians = table.drop(columns=["run", "machine", "date"]).groupby(["points", "color"], sort=False).median()
    rows = [[f"{points:,}", color, *(f"{value:.2f}" for value in row[:-1]), f"{row.iloc[-1]:.0f}"]
            for (points, color), row in medians.iterrows()]  # fmt: skip
    return markdown(["points", "colored by", *(f"{name}, s" for name in medians.columns[:-1]), "peak MiB"], rows, table)


TABLES: dict[str, Callable[[], str]] = {
    "peers, all genes, k 80": partial(peers, "peers_kang2018_all_k80"),
    "peers, 2000 genes, k 20": partial(peers, "peers_kang2018_2000_k20"),
    "seeds": seeds,
    "reader": reader,
    "passes": passes,
    "training": training,
    "roofline": partial(roofline, "cpu_5000"),
    "roofline, GPU": partial(roofline, "cuda_20000", "cuda_60000"),
    "peers, GPU": partial(peers, "peers_kang2018_all_k80_cuda"),
    "rehearsal": rehearsal,
    "extrapolation": extrapolation,
    "scoring": scoring,
    "scoring atlas": atlas,
    "conditioning, kang2018_k20, condition": partial(conditioning, "kang2018_k20", "condition"),
    **{
        f"conditioning, kang2018_k80, {on}": partial(conditioning, "kang2018_k80", on)
        for on in ("condition", "donor_id", "donor_id+condition")
    },
    "conditioning, kang2018_third_k80, donor_id": partial(conditioning, "kang2018_third_k80", "donor_id"),
    "simulated": partial(simulated, SIMULATED),
    "simulated, many donors": partial(simulated, MANY_DONORS),
    "fuzz": fuzz,
    "stability": partial(stability, "stability_kang2018_k20"),
    "maps": maps,
}


def fill(text: str) -> str:
    """Return the text of the README with each table between its marks."""
    for name, make in TABLES.items():
        pattern = re.compile(f"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if (n := len(pattern.findall(text))) != 1:
            raise ValueError(f"README.md contains {n} marks '<!-- table: {name} -->'. Expected exactly one.")
        before, after = pattern.search(text).groups()
        text = pattern.sub(lambda _, new=f"{before}{make()}\n{after}": new, text)  # noqa: B008
    return text


def save(fig: style.Sheet, name: str) -> None:
    """Write the picture of a figure, without its data and caption, for the READMEs."""
    with style.use(fig.settings):
        fig.savefig(FIGURES / f"{name}.png")


def main() -> None:
    """Write the tables and the figures."""
    readme = HERE / "README.md"
    readme.write_text(fill(readme.read_text()))
    save(speed({name: read(name) for name in PANELS}), "speed")
    main_rows = "on != 'donor_id+condition' and (gene_weights == 'shared') == (Model == 'Untied_AE_NMF')"
    table = study.summarize(read("conditioning_kang2018_k20").query(main_rows))
    save(figures.conditioning(table, run=RunInfo(k=20)), "kang2018_conditioning")


if __name__ == "__main__":
    main()
