# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Figures
# **Question.** What do the numbers of a run look like?  **Reads** the tables, the maps and the results-only files of
# one run. **Writes** each figure as pdf, png and the csv of what it draws.  Nothing is trained or scored here: a new
# color costs seconds.

# %% tags=["parameters"]
tables: str = "results/demo/k12"  # folder of a run: what 02 to 06 wrote
out_dir: str = "results/demo/k12/figures"  # where the figures go

# %%
from aenmf_lib import data, programs, results
from aenmf_lib.figures import embeddings as maps
from aenmf_lib.figures import layout, scores, training
from aenmf_lib.figures import tables as drawn

files = drawn.model_files(tables)
embeddings = results.read_embeddings(files)
embeddings.obs.groupby("cell_type", observed=True)["donor_id"].agg(cells="size", donors="nunique")

# %% [markdown]
# ## Clustering agreement
# Leiden clusters of each embedding against the cell types (upper row, high is good) and against the donors (lower
# row, low is good). A point is one Leiden seed: a difference between models counts when it is wider than the points
# of either.

# %%
clustering = drawn.read_table(f"{tables}/clustering_long.csv")
fig = scores.clustering(clustering, k=embeddings.k)
layout.save(fig, f"{out_dir}/clustering", drawn.clustering(clustering))
fig

# %% [markdown]
# ## Resolution
# The same agreement at other resolutions of Leiden; the published one is 0.8. A model that is ahead at every
# resolution is ahead; where lines cross, the order is one of the resolution.

# %%
curve = drawn.read_table(f"{tables}/clustering_resolution.csv")
fig = scores.resolution(curve, k=embeddings.k)
layout.save(fig, f"{out_dir}/resolution", drawn.resolution(curve))
fig

# %% [markdown]
# ## Classification
# How well three classifiers read the cell type and the donor from an embedding. Look at each classifier by itself: a
# linear one can be misled where neighbors are not. The upright line is the mean over all fits, the number in the
# published table.

# %%
classification = drawn.read_table(f"{tables}/classification_long.csv")
fig = scores.classification(classification, k=embeddings.k)
layout.save(fig, f"{out_dir}/classification", drawn.classification(classification))
fig

# %% [markdown]
# ## Classes
# Which cell types are read well, and what the others are taken for. Dark fields off the diagonal are pairs of types
# that an embedding does not keep apart; look whether they are neighbors in biology.

# %%
by_class = drawn.read_table(f"{tables}/classification_by_class.csv")
confusion = drawn.read_table(f"{tables}/classification_confusion.csv")
trained = {"used_cell_type": embeddings.used_cell_type, "groups": embeddings.groups}
fig = scores.classes(by_class, confusion, k=embeddings.k, **trained)
layout.save(fig, f"{out_dir}/classes", drawn.classes(by_class, confusion))
fig

# %% [markdown]
# ## UMAP
# The four embeddings, by cell type and by donor, a color a label in all panels. Islands of one type with all donors
# mixed are what one hopes for. A map shows neighbors, not distances: the numbers above decide.

# %%
coords = data.read_h5ad(f"{tables}/umap.h5ad")
fig = maps.umap(coords, k=embeddings.k, **trained)
layout.save(fig, f"{out_dir}/umap", drawn.umap(coords))
fig

# %% [markdown]
# ## Programs
# Which types use which programs: mean usage, as z-score over the types. A clean diagonal means programs that belong
# to one type; a column with several warm fields is a program that types share.

# %%
usage = programs.usage_by_type(embeddings.H, embeddings.obs["cell_type"])
fig = maps.programs(usage, **trained)
layout.save(fig, f"{out_dir}/programs", drawn.programs(usage))
fig

# %% [markdown]
# ## Training
# The loss of each model over the mean squared norm of a cell, so that data sets compare. Each line should fall and
# flatten. The objectives differ in their penalties, and Base NMF codes its cells freely where the others are tied:
# read the lines, not the ranking.

# %%
history = results.history(files)
fig = training.training(history, k=embeddings.k, n_cells=len(embeddings.obs), groups=embeddings.groups)
layout.save(fig, f"{out_dir}/training", drawn.training(history))
fig
