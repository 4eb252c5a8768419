# %% [markdown]
# # 09 · Explore the embeddings
# **Question.** Where in an embedding are the cells of a type, the cells of a donor, and the cells that use a program?
# **Reads** the results files of one run, the UMAP if notebook 06 has computed it, and the filtered cells if the file
# exists.  **Writes** nothing. It trains no model.
#
# Choose *Run > Run All Cells*. Without a browser, the notebook shows a figure instead of the interactive maps.

# %% tags=["parameters"]
model_paths: list[str] = ["results/demo/k12/cae_nmf1_k12.h5ad", "results/demo/k12/cae_nmf2_k12.h5ad", "results/demo/k12/ae_nmf_k12.h5ad", "results/demo/k12/base_nmf_k12.h5ad"]  # results files to show  # noqa: E501  # fmt: skip
tables_dir: str = "results/demo/k12"  # folder with umap.h5ad, written by 06
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, for the expression of genes; ignored if missing

# %%
from aenmf_lib import exploration

maps = exploration.explore(model_paths, tables_dir, cells_path)
maps

# %% [markdown]
# There is one map per model, and one point per cell. Move the mouse over a cell to mark this cell in all maps. In UMAP,
# cells that are close have similar usages, but the distance between two clusters has no meaning. A model without UMAP
# is shown by its first two principal components, which usually separate fewer cell types. `make benchmarks` computes
# UMAP. With more than a million cells, one map is drawn at a time, and a pixel shows the mean color of its cells.
#
# - **Color by** colors the cells by a column of `obs`, such as the cell type or the donor.
# - **Program** colors all maps by the usage of one program of one model. Below the maps, tables show its top genes and
#   its mean usage by cell type.
# - **Gene** colors the cells by the expression of a gene, as log1p of counts per 10,000.
#
# A program describes one cell type if only one cluster has a high usage. If the cells of one donor are separate from
# the others, the embedding contains donor differences.
#
# You can also set the color in Python: `maps.color = "donor_id"`, `maps.color = "AE_NMF 3"`, or the symbol or id of a
# gene.
#
# ## Programs
# The next cell lists the programs of each model. The name of a program is its number and its three top genes.

# %%
maps.names

# %% [markdown]
# The next two tables describe the first program of the first model. They are the tables below the maps: the top genes
# with their weights in W, and the mean usage and the number of cells of each cell type.

# %%
program = maps.program(maps.cells.models[0], 0)
program["genes"].head(10)

# %%
program["types"]

# %% [markdown]
# ## Select cells
# Click the second button of a map, and draw a line around cells. All maps then mark the selected cells. With more than
# a million cells, draw the line without a button, and color by `selected` to see the selected cells. Tables below the
# maps describe them:
#
# - `types` and `donors`: numbers of selected cells by label. Of the selected cells, `share` have the label. Of all
#   cells with the label, `share_of_label` are selected.
# - `programs`: mean usages of the selected cells (`selected`) and of the other cells (`others`). `difference` is the
#   difference of these means, divided by the standard deviation within both groups.
# - `genes`: the same for the mean expression. `expressing` is the share of the selected cells that express the gene.
#
# `programs` and `genes` use random samples if there are many cells. The cells were selected because they are close in a
# map, so no test of these differences would be valid.
#
# In Python, `maps.selected` is a table of the selected cells, and `maps.tables` contains the tables. `maps.select`
# selects cells by their labels: `maps.select(maps.cells.column("donor_id") == "SIM1")`. At first, no cells are
# selected, so the next two cells show an empty table and nothing. Run them again after you have selected cells.

# %%
maps.selected

# %%
maps.tables.get("programs")

# %% [markdown]
# The programs with the largest `difference` distinguish the selected cells from the others.
#
# To zoom into any matplotlib figure, run `%matplotlib widget` in a cell before you draw the figure.
