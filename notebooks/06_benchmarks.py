# %% [markdown]
# # 06 · Two benchmarks
# **Question.** Do cells that are close in an embedding share their cell type rather than their donor?  **Reads** the
# results files of the models, and files with embeddings of other methods.  **Writes** the four published tables, long
# tables with one row per seed or fit, tables of other common scores, the UMAP coordinates, and `baselines.h5ad`.
#
# A good embedding scores high against `cell_type` and low against `donor_id`. Every score is saved in `*_scores.csv` as
# soon as it is computed. After an interruption, the notebook computes only the missing scores. If you add a model or
# another embedding, only its scores are computed. On a cluster, or after `make scores`, one job per model,
# label and seed has already computed the scores of the classifications, and the notebook only collects them. With
# `device: cuda`, these jobs compute only the forests.

# %% tags=["parameters"]
model_paths: list[str] = ["results/demo/k12/cae_nmf1_k12.h5ad", "results/demo/k12/cae_nmf2_k12.h5ad", "results/demo/k12/ae_nmf_k12.h5ad", "results/demo/k12/base_nmf_k12.h5ad"]  # results files to compare  # noqa: E501  # fmt: skip
out_dir: str = "results/lab"  # folder for the tables
extra: list[str] = []  # embeddings of other methods; each is a name, a file and a key of its obsm, as shown below
baselines: list[str] = []  # 'PCA' and 'Harmony': computed from the cells, with as many columns as programs
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, written by 01; read only for the baselines
seed: int = 42  # seed of the subset of cells, of UMAP, of the silhouette sample and of the baselines
max_cells: int = 1500  # largest number of cells in the classification (a stratified subset); 0 uses all cells
forest: str = "random_forest"  # as published; 'random_forest_intelex' is much faster, with slightly different scores
n_jobs: int = -1  # number of parallel workers; -1 uses all cores
device: str = "cpu"  # 'cuda' computes neighbors and logistic regressions on a GPU; the forests stay on the CPU
clustering_seeds: list[int] = [0, 1, 2, 3, 4]  # one Leiden clustering per seed; 10 seeds as published
classification_seeds: list[int] = [42]  # five folds per seed; 5 seeds as published
# rarely changed
unseen_seeds: list[int] = [42]  # five folds per seed, for the classification of unseen donors
resolutions: list[float] = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 2.0]  # Leiden resolutions of the curve
scib: bool = False  # also compute LISI, BRAS, CiLISI and kBET; needs the extra 'integration' (scib-metrics)

# %%
import logging
import warnings

import pandas as pd

from aenmf_lib import results
from aenmf_lib.metrics import classification, clustering, integration, neighbors
from aenmf_lib.metrics.baselines import add_baselines
from aenmf_lib.metrics.splits import Splits

logging.basicConfig(level=logging.INFO, format="%(message)s")
warnings.filterwarnings("ignore", message="IProgress not found")  # umap asks for widgets; the progress bars are text
embeddings = results.read_embeddings(model_paths).with_extra(extra)
embeddings = add_baselines(embeddings, baselines, cells_path, f"{out_dir}/baselines.h5ad", seed=seed)
used_cell_type = pd.Series(embeddings.run.used_cell_type, name="cell_type used")
n_columns = pd.Series({name: H.shape[1] for name, H in embeddings.H.items()})
pd.DataFrame({"cell_type used": used_cell_type, "columns": n_columns})

# %% [markdown]
# All models must be trained on the same cells in the same order; otherwise the code above stops with an error. If
# `cell_type used` is True, the penalty of the model used the cell types. The scores of this model against `cell_type`
# are then not independent evidence. The training of other embeddings is unknown here; they count as `False`.
#
# An entry of `extra` such as `PCA=pca.h5ad:X_pca` names an embedding, its file and its key in `obsm`. The file must
# contain all cells; they are found by their names. Other embeddings are in all tables except the four published ones,
# which contain only the models. Harmony corrects the principal components for the donor. Both baselines are in
# `baselines.h5ad`, as `X_PCA` and `X_Harmony`. In the tables, the column `version` contains the package that computed a
# baseline, with its version.
#
# The next list shows the models that were skipped, with the reason. Usually the list is empty. The published tables
# have one row without scores for each skipped model.

# %%
pd.Series(embeddings.run.skipped, name="skipped", dtype=object)

# %% [markdown]
# A label with one class, such as `donor_id` with one donor, has empty scores in all tables, and a warning reports it.
#
# With fewer seeds or cells, a run is shorter and its scores are less precise. The table compares this run with the
# published settings.

# %%
pd.DataFrame(
    {
        "this run": [len(embeddings.obs), len(clustering_seeds), len(classification_seeds), max_cells or "all"],
        "published": ["all", len(clustering.SEEDS), len(classification.SEEDS), "all"],
    },
    index=["cells", "clustering seeds", "classification seeds", "largest number of cells in the classification"],
)

# %% [markdown]
# ## Do clusters agree with the labels?
# The neighbor graph of each embedding is computed once. Each seed gives one Leiden clustering, which is compared with
# both labels. Expect the seeds of one model to differ little. The table shows the mean number of clusters and the
# number of classes.

# %%
graphs = neighbors.neighbor_graphs(embeddings.H, embeddings.obs, device)
agreement = clustering.evaluate(
    graphs, embeddings.obs, seeds=clustering_seeds, n_jobs=n_jobs, cache=f"{out_dir}/clustering_scores.csv"
)
results.write_table(embeddings.annotate(agreement), f"{out_dir}/clustering_long.csv")
agreement.pivot_table(index="Model", columns="label", values=["n_clusters", "n_classes"], sort=False)

# %% [markdown]
# With many more clusters than classes, ARI is low even if every cluster contains one class only. NMI is affected less.
# Agreement with `cell_type` (higher is better):

# %%
agreement_cell_type = clustering.summarize(agreement, "cell_type")
results.write_table(embeddings.published(agreement_cell_type), f"{out_dir}/clustering_cell_type.csv")
agreement_cell_type

# %% [markdown]
# Agreement with `donor_id` (lower is better; random clusters have an ARI of 0):

# %%
agreement_donor_id = clustering.summarize(agreement, "donor_id")
results.write_table(embeddings.published(agreement_donor_id), f"{out_dir}/clustering_donor_id.csv")
agreement_donor_id

# %% [markdown]
# Trust a difference between two models only if it is clearly larger than the standard deviations of both models. In the
# demo, AE-NMF and Base NMF split the cell types by donor. The conditional models do not split them.
#
# ## Does the ranking depend on the Leiden resolution?
# The published resolution is 0.8. A higher resolution gives more clusters.

# %%
curve = clustering.resolution_curve(
    graphs,
    embeddings.obs,
    resolutions,
    seeds=clustering_seeds[:1],
    n_jobs=n_jobs,
    cache=f"{out_dir}/clustering_scores.csv",
)
results.write_table(embeddings.annotate(curve), f"{out_dir}/clustering_resolution.csv")
curve.pivot_table(index=["label", "Model"], columns="resolution", values="NMI", sort=False).round(3)

# %% [markdown]
# If the ranking of two models changes from one column to another, the ranking depends on the resolution and not on the
# embeddings. In the demo, models 1 and 2 are better than AE-NMF and Base NMF at every resolution.
#
# The next table shows each model at its best resolution, where the NMI with `cell_type` is highest. The scores against
# `donor_id` are those at the same resolution.

# %%
best = clustering.best_resolution(curve)
results.write_table(embeddings.annotate(best), f"{out_dir}/clustering_best.csv")
best.pivot_table(index="Model", columns="label", values=["NMI", "ARI", "resolution"], sort=False).round(3)

# %% [markdown]
# ## Are the labels mixed among neighbors?
# These measures need no clusters. Purity is the share of a cell's neighbors that have the label of the cell. Compare
# the purity of donors with the purity of random neighbors, which is 1/m for m donors with equal numbers of cells.
#
# The silhouette of donors can be misleading: donors that overlap only in part can score like donors that are mixed.
# With `scib: true`, the table also contains LISI, and three scores that compare the donors within each cell type: BRAS,
# CiLISI and kBET. These three are near 0 if the donors are separate, and near 1 if the donors are mixed.

# %%
mixing = integration.evaluate(graphs, embeddings.obs, scib=scib, seed=seed)
results.write_table(embeddings.annotate(mixing), f"{out_dir}/integration.csv")
mixing.drop(columns=["n_neighbors", "silhouette_cells"]).round(3)

# %% [markdown]
# Neighbors can still show a donor effect when clusters do not show it any more. This is common on real data, so read
# both tables.
#
# ## UMAP
# The UMAP coordinates are computed from the same neighbor graphs, and start at two principal components of the
# embedding. Notebook 07 draws them, and no score uses them.

# %%
coords = neighbors.umaps(graphs, embeddings.obs, seed=seed, n_jobs=n_jobs)
results.write_h5ad(coords, f"{out_dir}/umap.h5ad")
coords

# %% [markdown]
# ## Can a classifier predict the labels?
# Three classifiers are trained on five folds per seed. The random forests take most of the time. Classes that are too
# small for the folds are excluded, and the log lists them. Scores differ more between classifiers than between folds,
# so look at the mean of each classifier first.

# %%
classifiers = ["logistic_regression", "knn", forest]
fits = classification.cross_validate(
    embeddings.H,
    embeddings.obs,
    splits=Splits(max_cells=max_cells, subset_seed=seed),
    classifiers=classifiers,
    seeds=classification_seeds,
    n_jobs=n_jobs,
    device=device,
    cache=f"{out_dir}/classification_scores.csv",
)
results.write_table(embeddings.annotate(fits[classification.LONG]), f"{out_dir}/classification_long.csv")
results.write_table(classification.per_class(fits), f"{out_dir}/classification_by_class.csv")
results.write_table(classification.confusion(fits), f"{out_dir}/classification_confusion.csv")
fits.pivot_table(index=["label", "Model"], columns="classifier", values=["F1", "AUROC"], sort=False)

# %% [markdown]
# The published table contains means over all classifiers, seeds and folds. For `cell_type` (higher is better):

# %%
classified_cell_type = classification.summarize(fits, "cell_type")
results.write_table(embeddings.published(classified_cell_type), f"{out_dir}/classification_cell_type.csv")
classified_cell_type

# %% [markdown]
# For `donor_id` (lower is better):

# %%
classified_donor_id = classification.summarize(fits, "donor_id")
results.write_table(embeddings.published(classified_donor_id), f"{out_dir}/classification_donor_id.csv")
classified_donor_id

# %% [markdown]
# This benchmark is stricter than clustering: a classifier can detect a small donor effect that no cluster shows. In the
# demo, the donor is easy to predict from AE-NMF and Base NMF, and hard to predict from the conditional models.
#
# ## Can cell types be predicted for unseen donors?
# The published folds mix cells of all donors. Here, all cells of a donor are in the same fold, so each classifier is
# tested on donors that it has not seen. A cell is excluded if the training donors have no cell of its type. This
# benchmark is not part of the published tables.

# %%
unseen = classification.cross_validate(
    embeddings.H,
    embeddings.obs,
    labels=["cell_type"],
    splits=Splits(max_cells=max_cells, subset_seed=seed, held_out="donor_id"),
    classifiers=classifiers,
    seeds=unseen_seeds,
    n_jobs=n_jobs,
    device=device,
    cache=f"{out_dir}/unseen_donors_scores.csv",
)
columns = [*classification.LONG, "cell_type_in_training", "version", "n_scored"]
results.write_table(embeddings.annotate(unseen)[columns], f"{out_dir}/unseen_donors_long.csv")
results.write_table(classification.per_class(unseen), f"{out_dir}/unseen_donors_by_class.csv")
unseen.pivot_table(index="Model", columns="classifier", values="F1", sort=False).round(3).join(used_cell_type)

# %% [markdown]
# The embeddings themselves were trained on all donors. If a model used `cell_type`, its high score here is therefore
# not independent evidence; `make conditioning` excludes donors from the training of the models, too. In the demo, the
# kNN score of AE-NMF and Base NMF is much lower on unseen donors, because cells that are close in these embeddings
# often come from the same donor.
#
# ## Summary
# The table has one row per model. Conditioning should raise the columns of `cell_type` and lower the columns of
# `donor_id`.

# %%
pd.DataFrame(
    {
        "ARI cell_type": agreement_cell_type.set_index("Model")["ARI"],
        "ARI donor_id": agreement_donor_id.set_index("Model")["ARI"],
        "F1 cell_type": classified_cell_type.set_index("Model")["MeanFoldF1"],
        "F1 cell_type, unseen donors": unseen.groupby("Model")["F1"].mean(),
        "F1 donor_id": classified_donor_id.set_index("Model")["MeanFoldF1"],
        "cell_type used": used_cell_type,
    }
).round(3).loc[used_cell_type.index]

# %% [markdown]
# Check how far the donor scores fall, and whether the cell-type scores fall as well. In the demo, models 1 and 2
# improve every column, because the simulated donor effects are strong and have the form that the models assume. Real
# donor effects are harder to remove: see notebook 08.
