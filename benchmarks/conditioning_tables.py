"""The tables of the conditioning studies in README.md: which models and scores they show, and under which names."""

import pandas as pd

from aenmf_lib.conditioning import study
from aenmf_lib.conditioning.variants import COLUMNS

SCORES = {
    "error": "‖X − X̂‖ / ‖X‖", "scatter": "between donors", "knn_type": "type: kNN", "NMI_type": "type: NMI",
    "best_NMI_type": "type: best NMI", "knn_on": "donor: kNN", "NMI_on": "donor: NMI",
    "unseen_scatter": "held-out, between donors", "unseen_knn_type": "held-out, type: kNN",
    "unseen_knn_on": "held-out, donor: kNN",
}  # fmt: skip
REAL = (
    "Types", "PCA", "Harmony", "LinearSCVI", "Base_NMF", "AE_NMF", "AE_NMF, weighted", "CAE_NMF1, published",
    "CAE_NMF1, 0.2", "CAE_NMF1, 0.2, weighted", "CAE_NMF2, 0.2", "CAE_NMF2, 0.2, weighted",
    "Untied_AE_NMF, no penalty", "Untied_AE_NMF, no penalty, weighted", "Untied_AE_NMF, 1",
    "Untied_AE_NMF, 0.2, weighted", "Untied_AE_NMF, 1, weighted",
)  # fmt: skip
SIMULATED = (
    "Types", "Harmony", "AE_NMF", "AE_NMF, weighted", "CAE_NMF1, published", "CAE_NMF1, 0.2", "CAE_NMF2, 0.2",
    "Untied_AE_NMF, no penalty", "Untied_AE_NMF, no penalty, weighted", "Untied_AE_NMF, 1, weighted",
)  # fmt: skip


def study_table(
    studies: dict[str, pd.DataFrame], models: tuple[str, ...], on: str
) -> tuple[list[str], list[list[str]], str]:
    """Return the head and the rows of a table of some studies, and the dates and the versions of the baselines.

    `studies` has the rows of each study by the name of its cells. An entry is the mean over the starts, with the
    standard deviation where there are several. Scores that no study measured have no column. The names of the cells
    have a column if there are several studies, and the numbers of scored cells if these differ.
    """
    parts, notes = {}, set()
    for name, long in studies.items():
        long = long.reindex(columns=long.columns.union([*SCORES, "version"], sort=False))
        table = study.summarize(long)
        texts = study.format_table(table, [*SCORES]).droplevel("on")
        texts["starts"] = table["n_starts"].astype(str).to_numpy()
        sizes = long.groupby(["on", *COLUMNS], sort=False)["max_cells"].unique()
        texts["cells scored"] = [" or ".join(f"{n:,}" for n in sorted(found)) for found in sizes]
        parts[name] = texts.loc[[model for model in models if model in texts.index]]
        notes |= {*long["date"], *long["version"].dropna()} - {""}
    texts = pd.concat(parts, names=["donor effect", ""]).reset_index()
    if len(studies) == 1:
        texts = texts.drop(columns="donor effect")
    if len(set(texts["cells scored"])) == 1:
        texts = texts.drop(columns="cells scored")
    texts = texts.loc[:, (texts != "").any()]
    head = [SCORES.get(name, name).replace("donor:", f"{on}:") for name in texts]
    return head, texts.to_numpy().tolist(), ", ".join(sorted(notes)) + "."
