# %% [markdown]
# # 07 · Figures
# **Question.** What do the results of a run look like?  **Reads** the tables, the UMAP coordinates and the results
# files of one run.  **Writes** each figure as pdf, png and csv; the csv contains the data that the figure shows.  This
# notebook trains no model and computes no score.

# %% tags=["parameters"]
model_paths: list[str] = ["results/demo/k12/cae_nmf1_k12.h5ad", "results/demo/k12/cae_nmf2_k12.h5ad", "results/demo/k12/ae_nmf_k12.h5ad", "results/demo/k12/base_nmf_k12.h5ad"]  # results files to show  # noqa: E501  # fmt: skip
tables_dir: str = "results/demo/k12"  # folder with the tables of 06
out_dir: str = "results/lab/figures"  # folder for the figures

# %%
from aenmf_lib import data, figures, programs, results

embeddings = results.read_embeddings(model_paths)
embeddings.obs.groupby("cell_type", observed=True)["donor_id"].agg(cells="size", donors="nunique")

# %% [markdown]
# A label with one class has no scores. The figures leave its panels out, and the captions report it. The captions also
# list the skipped models.
#
# ## Clustering agreement
# The figure compares Leiden clusters with the cell types (higher is better) and with the donors (lower is better). Each
# point is one Leiden seed.

# %%
fig = figures.clustering(figures.read_table(f"{tables_dir}/clustering_long.csv"), run=embeddings.run)
figures.save(fig, out_dir)
fig

# %% [markdown]
# Trust a difference between two models only if it is larger than the spread of the points of each model.
#
# ## Resolution
# The figure shows the same agreement at other Leiden resolutions. The published resolution is 0.8.

# %%
fig = figures.resolution(figures.read_table(f"{tables_dir}/clustering_resolution.csv"), run=embeddings.run)
figures.save(fig, out_dir)
fig

# %% [markdown]
# If the lines of two models cross, their ranking depends on the resolution.
#
# ## Classification
# The figure shows the scores of three classifiers that predict the cell type or the donor. The vertical line of a model
# is the mean over all its fits. This mean is the number in the published table.

# %%
fig = figures.classification(figures.read_table(f"{tables_dir}/classification_long.csv"), run=embeddings.run)
figures.save(fig, out_dir)
fig

# %% [markdown]
# Look at each classifier separately. kNN depends on neighborhoods, while a linear classifier can use a single direction
# of the embedding.
#
# ## Classes
# The left panel shows how well each cell type is predicted. The other panels show, for each type (row), the types that
# were predicted (columns).

# %%
per_class = figures.read_table(f"{tables_dir}/classification_by_class.csv")
confusion = figures.read_table(f"{tables_dir}/classification_confusion.csv")
fig = figures.classes(per_class, confusion, run=embeddings.run)
figures.save(fig, out_dir)
fig

# %% [markdown]
# A dark square off the diagonal is a pair of types that the embedding does not separate. Such pairs are often closely
# related types.
#
# ## UMAP
# The figure shows the four embeddings, colored by cell type and by donor. A label has the same color in all panels.

# %%
fig = figures.umap(data.read_h5ad(f"{tables_dir}/umap.h5ad"), run=embeddings.run)
figures.save(fig, out_dir)
fig

# %% [markdown]
# In a good embedding, each cell type is one island, in which the donors are mixed. UMAP preserves neighborhoods but not
# distances: base conclusions on the scores, not on this figure.
#
# ## Programs
# Each column is a program, and each row is a cell type. The color is the mean usage, as z-score over the types.

# %%
usage = programs.usage_by_type(embeddings.H, embeddings.obs["cell_type"])
fig = figures.programs(usage, run=embeddings.run)
figures.save(fig, out_dir)
fig

# %% [markdown]
# A column with one red square is a program of one cell type. A column with several red squares is a program that these
# types share.
#
# ## Training
# The figure shows the loss of each model, divided by the mean squared norm of a cell so that data sets can be compared.

# %%
fig = figures.training(results.history(model_paths), run=embeddings.run)
figures.save(fig, out_dir)
fig

# %% [markdown]
# Each line should fall and then flatten. Do not rank the models by their loss: their objectives contain different
# penalties, and Base NMF is free to choose H.
