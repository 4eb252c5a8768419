# %% [markdown]
# # 11 · Project new cells
# **Question.** Are the usages of projected cells of new donors as good as those of the same cells in training?
# **Reads** the filtered cells.  **Writes** a table with one row per way to compute the usages (`projection.csv`).
#
# This notebook is an example. It trains a model on some donors, projects the cells of the other
# donors, and compares their usages with those of the same cells in training.
#
# To project your own cells onto a trained model, use `make project CELLS=new.h5ad MODEL=results/…/cae_nmf1_k80.h5ad`,
# or `programs.project(model, cells)` in Python.

# %% tags=["parameters"]
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, written by 01
out_dir: str = "results/lab"  # folder for the table
k: int = 12  # number of programs
seed: int = 42  # random seed
model: str = "CAE_NMF1"  # AE_NMF, CAE_NMF1, CAE_NMF2, Base_NMF or Untied_AE_NMF
new_donors: list[str] = []  # donors to project; if empty, the last three eighths of the donors by name

# %%
import logging

from aenmf_lib import data, programs, results

logging.basicConfig(level=logging.INFO, format="%(message)s")
cells = data.load(cells_path)
cells

# %% [markdown]
# ## Train without the new donors, and project them
# The model is trained twice: on the donors that are not new, and on all donors. The cells of the new donors are
# projected onto the first model. No cell types are needed, because the donor part of a new donor is computed from the
# sums over its own cells. The cells are projected a second time with genes matched by symbol, and a third time with a
# random half of the genes, as if their file did not contain the other half. The rows of the table are:
#
# - *seen*: cells of the donors in the training of the first model
# - *new, in training*: cells of the new donors, with the model that was trained on all donors
# - *new, projected*, *new, by symbol*, *new, half of the genes*: the three projections
# - *new, half of the genes, not corrected*: the missing genes are set to 0
#
# Expect similar scores of *new, in training* and *new, projected*.

# %%
table = programs.compare_projection(cells, model, k=k, seed=seed, new_donors=new_donors)
results.write_table(table, f"{out_dir}/projection.csv")
table.round(3)

# %% [markdown]
# ## What to conclude
# - `n_cells` and `n_genes` are the numbers of cells and genes that were used. `coverage` is the share of the weight of
#   the programs that these genes have (median over the programs).
# - `F1_cell_type` is the macro F1 of a kNN classifier of the cell type. Compare *new, projected* with *new, in
#   training*: the cells are the same, and both classifiers were trained on the cells of the other donors. A small
#   difference means that the model does not need new donors in training. *seen* contains other cells, and is usually
#   higher, because the classifier was trained on cells of the same donors.
# - `F1_donor` is the macro F1 of a classifier of the donor. It measures how much donor information the usages contain.
#   For a conditional model, it can be higher in projected cells than in training, because the penalty did not include
#   the new donors.
# - `error` is ‖X − H W‖ / ‖X‖ over all genes. It contains no donor part, so it is larger for CAE_NMF2.
# - `slope` and `correlation` compare the usages with *new, projected* (medians over the programs). They are 1 for *new,
#   by symbol* if all symbols are known and unique.
# - With half of the genes, the usages that are *not corrected* are too small (`slope` below 1). The corrected usages
#   have the scale of the usages with all genes, but they contain more noise (`correlation` below 1).
