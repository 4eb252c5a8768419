"""What was found? Fills the tables of README.md, and draws the front page's figure, from results/*.csv.

    python benchmarks/report.py

Every number between two ``<!-- table -->`` marks is written here.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter
from measure import RESULTS

from aenmf_lib.conditioning import study
from aenmf_lib.figures.conditioning import conditioning as conditioning_figure

HERE = Path(__file__).parent
FIGURE = HERE.parent / "figures" / "speed.png"
TRADEOFF = HERE.parent / "figures" / "kang2018_conditioning.png"
STYLE = HERE.parent / "aenmf_lib" / "figures" / "aenmf.mplstyle"
OURS = "AE-NMF"
OWN = (OURS, "model 1", "model 2")
UNTOLD = ("model 2",)  # rebuilds a cell with the U of its donor, of which ‖X − H W‖ does not know

# what the extrapolation is about
TABULA = {"cells": 592_317, "genes": 60_606, "nonzeros": 2500}
ATLAS = {"cells": 60_000_000, "nonzeros": 2000}
CORES = 16  # of the job that scores, as published


def read(name: str) -> pd.DataFrame:
    """Give a table of results."""
    return pd.read_csv(RESULTS / f"{name}.csv")


def provenance(table: pd.DataFrame) -> str:
    """Say on what a table was measured, and when."""
    told = table[["machine", "date"]].drop_duplicates()
    return "; ".join(f"{row.machine}, {row.date}" for row in told.itertuples())


def peers(name: str) -> str:
    """Give medians over the runs; the ratio is the median of those within a round, or to the median of ours.

    The latter for solvers that were timed once, after the rounds.
    """
    table = read(name)
    ours = table[table["solver"] == OURS].set_index("run")["seconds"]
    in_turn = table.groupby("solver")["run"].transform("count") == len(ours)
    ratio = table["seconds"] / table["run"].map(ours).where(in_turn, ours.median())
    shown = table.assign(ratio=ratio).groupby("solver", sort=False).agg(
        runs=("run", "count"), ratio=("ratio", "median"), seconds=("seconds", "median"), cpu=("cpu_seconds", "median"),
        peak=("peak_mib", "median"), error=("relative_error", "median"), free=("relative_error_untied", "median"),
        iterations=("iterations", "median"), stop=("stop", "first"),
    )  # fmt: skip
    rows = [
        [
            solver,
            f"**{r.ratio:.1f}**" if pd.notna(r.ratio) else r.stop,
            f"{r.seconds:.1f}", f"{r.cpu:.1f}", f"{max(r.peak, 0):.0f}", f"{r.error:.4f}",
            f"{r.free:.4f}" if pd.notna(r.free) else "", str(int(r.runs)),
        ]
        for solver, r in shown.iterrows()
    ]  # fmt: skip
    head = ["", "time / AE-NMF's", "s", "CPU s", "peak MiB", "‖X − H W‖ / ‖X‖", "with H freed", "runs"]
    return _table(head, rows) + f"\n\n{provenance(table)}."


def passes() -> str:
    """Tell what a pass over cells on disk costs."""
    table = read("streaming_pass")
    rows = [
        [f"{cells:,}", f"{some.us_per_cell.median():.0f}", f"{some.peak_mib.median():.0f}", str(len(some))]
        for cells, some in table.groupby("cells")
    ]
    return _table(["cells", "µs a cell", "peak MiB", "runs"], rows) + f"\n\n{provenance(table)}."


def training() -> str:
    """Tell what training from sums costs, against the number of cells, here and on a card."""
    table = pd.concat([read("streaming_train"), read("streaming_train_cuda")])
    rows = [
        [f"{r.cells:,}", r.machine.split(";")[0].split(",")[0], f"{r.sums_seconds:.3g}", f"{r.training_seconds:.0f}",
         str(r.iterations), f"{r.seconds:.0f}", f"{r.peak_mib:.0f}", f"{r.explained:.1%}"]
        for r in table.itertuples()
    ]  # fmt: skip
    head = ["cells", "on", "sums, s", "training, s", "iterations", "in all, s", "peak MiB", "of ‖X‖² explained"]
    return _table(head, rows) + f"\n\n{provenance(table)}."


def roofline(*names: str) -> str:
    """Tell shares of the peaks."""
    table = pd.concat([read(f"roofline_{name}") for name in names])
    rows = [
        [f"{r.genes:,}", r.what, str(r.k) if r.k else "", f"{r.seconds:.3g}", f"{r.gflops:,.0f}",
         f"{r.sgemm_gflops:,.0f}", f"{r.share_of_sgemm:.0%}"]
        for r in table.itertuples()
    ]  # fmt: skip
    return _table(["genes", "", "k", "s", "GF/s", "peak GF/s", "share"], rows) + f"\n\n{provenance(table)}."


def seeds() -> str:
    """Compare ten seeds at their own stop with the best of them ten times as long."""
    table = read("seeds")
    rows = []
    for (genes, k), some in table.groupby(["genes", "k"], sort=False):
        best, own = some["error_long"].min(), some.loc[some["seed"] == 42, "error"].iloc[0]
        reached = [own, some["error"].median(), best]
        short = [error / best - 1 for error in (*reached[:2], some["error"].max())]
        rows.append(
            [
                str(genes),
                str(k),
                str(len(some)),
                *(f"{error:.5f}" for error in reached),
                *(f"{share:.2%}" for share in short),
            ]
        )
    head = ["genes", "k", "seeds", "seed 42", "median seed", "best, ten times as long", "seed 42", "median", "worst"]
    return _table(head, rows) + f"\n\n{provenance(table)}."


def extrapolation() -> str:
    """Work out arithmetic, bytes and memory of sizes that were not run, from rates that were measured on a card."""
    read_ = read("streaming_pass")
    us = float(read_.loc[read_["cells"] == read_["cells"].max(), "us_per_cell"].median())
    rows = []
    for name, n, p, near, k, z in (
        ("Tabula Sapiens Immune", TABULA["cells"], TABULA["genes"], 60_000, 80, TABULA["nonzeros"]),
        ("60 million cells", ATLAS["cells"], 20_000, 20_000, 256, ATLAS["nonzeros"]),
        ("60 million cells", ATLAS["cells"], 60_000, 60_000, 256, ATLAS["nonzeros"]),
    ):
        card = read(f"roofline_cuda_{near}")
        rate = float(card.loc[card["what"] == "form S", "gflops"].iloc[0]) * 1e9
        form = n * p**2
        rows.append([f"{name} × {p:,}, k {k}", f"{form:.1e}", f"{form / rate / 60:.2g}", f"{8 * n * z / 2**40:.2g}",
                     f"{n * us / 3.6e9:.2g}", f"{12 * p**2 / 2**30:.3g}", f"{16 * n * z / 2**40:.2g}"])  # fmt: skip
    head = ["", "flop to form S", "card-minutes for S", "TiB to read", "hours of 2 cores to read", "GiB for S",
            "TiB if implicit"]  # fmt: skip
    return _table(head, rows)


def scoring() -> str:
    """Compare the two benchmarks with plain scikit-learn and scanpy calls, part by part and for the stage as published.

    The stage: of four embeddings and two labels 40 clusterings and 200 fits of each classifier, from the time of a fit.
    """
    table = read("scoring").groupby(["files", "max_cells", "part", "n_seeds", "way"], sort=False)
    table = table.mean(numeric_only=True).reset_index()
    rows, stage = [], {"plain": 0.0, "here": 0.0, "here, other forest": 0.0}
    for (files, max_cells, part, n_seeds), some in table.groupby(["files", "max_cells", "part", "n_seeds"], sort=False):
        against = "random_forest" if part.startswith("random_forest") else part
        same = (table[["files", "max_cells", "n_seeds", "part"]] == [files, max_cells, n_seeds, against]).all(axis=1)
        plain, ours = table[same & (table["way"] == "plain")].iloc[0], some[some["way"] == "ours"].iloc[0]
        scores = [name for name in table if " " in name and pd.notna(ours[name])]
        n_models, clustering = len(files.split()), part.startswith("neighbors")
        fits = n_models * (n_seeds if clustering else 2 * 5 * min(n_seeds, 5))
        rows.append(
            [
                part.replace("_", " "), f"{max_cells:,}" if max_cells and not clustering else "all", str(n_models),
                str(fits), f"{plain['seconds']:.1f}", f"{ours['seconds']:.1f}",
                f"**{plain['seconds'] / ours['seconds']:.1f}**", f"{ours['cores_busy']:.0%}",
                f"{(ours[scores] - plain[scores]).abs().max():.1g}",
            ]
        )  # fmt: skip
        if n_models == 4:
            whole = (40 if clustering else 200) / fits
            if part == against:
                stage["plain"] += whole * plain["seconds"]
            if part != "random_forest_intelex":
                stage["here"] += whole * ours["seconds"]
            if part != "random_forest":
                stage["here, other forest"] += whole * ours["seconds"]
    for name, way in (
        ("here", "with the published forest"),
        ("here, other forest", "with that of scikit-learn-intelex"),
    ):
        ratio = f"**{stage['plain'] / stage[name]:.1f}**"
        rows.append([f"stage, {way}", "", "4", "640", f"{stage['plain']:.0f}", f"{stage[name]:.0f}", ratio, "", ""])
    head = ["", "cells", "embeddings", "fits", "plain, s", "here, s", "ratio", "cores busy", "largest difference"]
    return _table(head, rows) + f"\n\n{provenance(read('scoring'))}."


STAGE = {"neighbor graph": 4, "one Leiden seed": 40, "knn": 8, "logistic_regression": 200, "random_forest": 200}


def atlas() -> str:
    """Extrapolate what the stage takes, by the power law through two sizes; in CPU time, which noise moves least."""
    table = read("scoring_atlas")
    low, high = sorted(table["cells"].unique())[-2:]
    rows, total = [], 0.0
    for part, n in STAGE.items():
        of = table[table["part"] == part].set_index("cells")
        power = np.log(of.loc[high, "cpu_seconds"] / of.loc[low, "cpu_seconds"]) / np.log(high / low)
        there = of.loc[high, "cpu_seconds"] * (TABULA["cells"] / high) ** power
        hours = n * there / CORES / 3600
        total += hours
        rows.append(
            [part.replace("_", " "), f"{of.loc[low, 'cpu_seconds']:.0f}", f"{of.loc[high, 'cpu_seconds']:.0f}",
             f"{of.loc[high, 'peak_mib']:,.0f}", f"{power:.2f}", f"{there / 60:.0f}", str(n), f"{hours:.1f}"]
        )  # fmt: skip
    rows.append(["in all", "", "", "", "", "", "", f"**{total:.1f}**"])
    head = ["part", f"{low:,} cells, CPU s", f"{high:,} cells, CPU s", f"peak MiB at {high:,}", "power of n",
            f"{TABULA['cells']:,} cells, CPU min", "times in the stage", f"hours of {CORES} cores"]  # fmt: skip
    return _table(head, rows) + f"\n\n{provenance(table)}."


STUDIED = {
    "error": "‖X − X̂‖ / ‖X‖", "scatter": "between donors", "logistic_regression_type": "type: logistic",
    "knn_type": "type: kNN", "NMI_type": "NMI", "logistic_regression_on": "donor: logistic", "knn_on": "donor: kNN",
    "NMI_on": "NMI",
    "unseen_scatter": "donors held out: between donors", "unseen_knn_type": "type, kNN", "unseen_NMI_type": "NMI",
    "unseen_knn_on": "donor, kNN",
    "unseen_NMI_on": "NMI",
}  # fmt: skip
PLANTED = {
    "demo_none": "nothing", "demo_weak": "a quarter", "demo": "the demo's effects",
    "demo_confounded": "the same, unlike shares of types",
}  # fmt: skip
_OURS = "CAE_NMF1, published", "CAE_NMF1, 0.2", "CAE_NMF1, 0.2, no labels", "CAE_NMF2, 0.2"
SHOWN = ("Types", "Harmony", "AE_NMF", *_OURS)


def conditioning(cells: str, on: str) -> str:
    """Tell what each model keeps and removes: means over the starts, with the deviation where there are several."""
    long = read(f"conditioning_{cells}").query("on == @on")
    heads, rows = _studied(long, [name for name in STUDIED if long[name].notna().any()])
    heads = [head.replace("donor:", f"{on}:").replace("donor,", f"{on},") for head in heads]
    return _table(["", *heads, "starts"], rows) + f"\n\n{', '.join(sorted(set(long['date'])))}."


def planted() -> str:
    """Tell the same of simulated cells, of a few models."""
    table, dates = [], set()
    for cells, what in PLANTED.items():
        long = read(f"conditioning_{cells}")
        heads, rows = _studied(
            long, ["error", "scatter", "knn_type", "NMI_type", "knn_on", "NMI_on", "unseen_scatter", "unseen_knn_type"]
        )
        table += [[what, *row] for row in rows if row[0] in SHOWN]
        dates |= set(long["date"])
    return _table(["planted", "", *heads, "starts"], table) + f"\n\n{', '.join(sorted(dates))}."


def _studied(long: pd.DataFrame, names: list[str]) -> tuple[list[str], list[list[str]]]:
    """Give the heads of some columns of a study, and a row a model: its name, the columns, its starts."""
    table = study.summarize(long)
    shown = study.format_table(table, names)
    rows = zip(shown.index.get_level_values("model"), shown.to_numpy().tolist(), table["n_starts"], strict=True)
    return [STUDIED[name] for name in names], [[name, *values, str(n)] for name, values, n in rows]


TABLES: dict[str, Callable[[], str]] = {
    "peers, all genes, k 80": lambda: peers("peers_kang2018_all_k80"),
    "peers, 2000 genes, k 20": lambda: peers("peers_kang2018_2000_k20"),
    "seeds": seeds,
    "passes": passes,
    "training": training,
    "roofline": partial(roofline, "cpu_5000"),
    "roofline, card": partial(roofline, "cuda_20000", "cuda_60000"),
    "peers, card": lambda: peers("peers_kang2018_all_k80_cuda"),
    "extrapolation": extrapolation,
    "scoring": scoring,
    "scoring atlas": atlas,
    **{
        f"conditioning, {cells}, {on}": partial(conditioning, cells, on)
        for cells in ("kang2018_k20", "kang2018_k80")
        for on in ("condition", "donor_id", "donor_id+condition")
    },
    "conditioning, kang2018_third_k80, donor_id": partial(conditioning, "kang2018_third_k80", "donor_id"),
    "planted": planted,
}


def filled(text: str) -> str:
    """Put each table between its marks."""
    for name, make in TABLES.items():
        pattern = re.compile(f"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"README.md has no place, or several, for the table {name!r}.")
        before, after = pattern.search(text).groups()
        text = pattern.sub(lambda _, new=f"{before}{make()}\n{after}": new, text)  # noqa: B008
    return text


def draw() -> plt.Figure:
    """Draw the time of each solver, a line a solver, with the error it reached; both sets of genes."""
    plt.style.use(STYLE)
    figure, axes = plt.subplots(1, 2, figsize=(183 / 25.4, 68 / 25.4), layout="constrained")
    for axis, name, title in zip(
        axes,
        ("peers_kang2018_all_k80", "peers_kang2018_2000_k20"),
        ("14 044 genes, 80 programs", "2000 genes, 20 programs"),
        strict=True,
    ):
        table = read(name).dropna(subset=["seconds"]).groupby("solver")[["seconds", "relative_error"]]
        middle, low, high = table.median().sort_values("seconds", ascending=False), table.min(), table.max()
        for line, (solver, row) in enumerate(middle.iterrows()):
            color = "#0072B2" if solver in OWN else "#595959"
            axis.plot([low.seconds[solver], high.seconds[solver]], [line, line], color=color, lw=1.5)
            axis.plot(row.seconds, line, "o", color=color, ms=4)
            error = "–" if solver in UNTOLD else f"{row.relative_error:.3f}"
            axis.annotate(error, (1.02, line), xycoords=("axes fraction", "data"), va="center", color=color)
        axis.set_yticks(range(len(middle)), middle.index)
        axis.annotate("error", (1.02, 1), xycoords="axes fraction", color="#595959")
        axis.set(xscale="log", xlabel="seconds to its own stop", ylim=(-0.6, len(middle) - 0.4))
        axis.set_title(title, loc="left", pad=10)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.08)
    return figure


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write both."""
    readme = HERE / "README.md"
    readme.write_text(filled(readme.read_text()))
    draw().savefig(FIGURE)
    plain = "on != 'donor_id+condition' and gene_weights == 'none' and (labels == 'cell_type' or strength == 0)"
    shown = read("conditioning_kang2018_k20").query(plain)
    conditioning_figure(study.summarize(shown), k=20).savefig(TRADEOFF)


if __name__ == "__main__":
    main()
