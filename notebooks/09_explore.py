# %% [markdown]
# # 09 · Explore the embeddings
# **Question.** Where in an embedding are the cells of a type, of a donor, or the cells that use a program?  **Reads**
# the results files of one run, its UMAP if 06 has computed it, and the filtered cells if they are there.  **Writes**
# nothing, and trains nothing.
#
# Choose *Run, Run All Cells*. Without a browser, the notebook shows pictures instead of the maps.

# %% tags=["parameters"]
model_paths: list[str] = ["results/demo/k12/cae_nmf1_k12.h5ad", "results/demo/k12/cae_nmf2_k12.h5ad", "results/demo/k12/ae_nmf_k12.h5ad", "results/demo/k12/base_nmf_k12.h5ad"]  # results files to show  # noqa: E501  # fmt: skip
tables_dir: str = "results/demo/k12"  # folder with umap.h5ad of 06
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, for the expression of genes; may be missing

# %%
from aenmf_lib import exploration

maps = exploration.explore(model_paths, tables_dir, cells_path)
maps

# %% [markdown]
# There is one map per model. Move the mouse over a cell: all maps show the same cell. The distance between two clusters
# of a map has no meaning; only neighbors do. A map of principal components shows less than UMAP. To compute UMAP, run
# `make benchmarks`. Of more than a million cells, one map is drawn at a time, and a pixel shows the mean color of its
# cells.
#
# - **Color by** shows a column of `obs`, such as the cell type or the donor.
# - **Program** shows the usages of a program of one model in all maps, its top genes, and its mean usage by cell type.
# - **Gene** shows the expression of a gene.
#
# Python can choose the color, too: `maps.color = "donor_id"`, `maps.color = "AE_NMF 3"`, or the name of a gene.
#
# ## Programs
# The names of the programs contain their number and their top genes.

# %%
maps.names

# %% [markdown]
# This is what the maps show below a program: its top genes, and the types that use it.

# %%
program = maps.program(maps.cells.models[0], 0)
program["genes"].head(10)

# %%
program["types"]

# %% [markdown]
# ## Select cells
# Click on the second button of a map, and draw a line around cells. (With more than a million cells, draw the line
# without a button.) All maps then show the selected cells, and tables below the maps describe them:
#
# - `types` and `donors` count their labels. `share` is the share of the selected cells, `of_all` the share of all cells
#   with the label.
# - `programs` compares mean usages, and `genes` compares mean expression, with other cells. `difference` is in
#   standard deviations within both groups. These tables use random samples of large selections.
#
# The cells were chosen because they are close in a map, so no test of these differences would be valid.
#
# In Python, `maps.selected` contains the selected cells, and `maps.tables` contains the tables. `maps.select` selects
# cells by their labels: `maps.select(maps.cells.column("donor_id") == "SIM1")`. Run the next cells again after you have
# selected cells.

# %%
maps.selected

# %%
maps.tables.get("programs")

# %% [markdown]
# To zoom into any matplotlib figure, write `%matplotlib widget` into a cell before you draw it.
