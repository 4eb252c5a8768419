# %% [markdown]
# # 11 · Project new cells
# **Question.** Are the usages of new donors as good as if their cells had been in training?  **Reads** the filtered
# cells.  **Writes** a table with one row per way to obtain the usages.
#
# This notebook is a worked example. It trains a model on some donors, projects the cells of the other donors, and
# compares them with the same cells in training. To project your own cells onto a trained model, use
# `make project CELLS=new.h5ad MODEL=results/…/cae_nmf1_k80.h5ad`, or `programs.project(model, cells)`.

# %% tags=["parameters"]
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, written by 01
out_dir: str = "results/lab"  # folder for the table
k: int = 12  # number of programs
seed: int = 42  # random seed
model: str = "CAE_NMF1"  # AE_NMF, CAE_NMF1, CAE_NMF2 or Base_NMF
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
# projected onto the first model. A new donor needs no labels: its donor part is computed from the sums over its own
# cells. The cells are projected a second time by the symbols of their genes, and a third time with a random half of the
# genes, as if their file did not have the other half.

# %%
table = programs.compare_projection(cells, model, k=k, seed=seed, new_donors=new_donors)
results.write_table(table, f"{out_dir}/projection.csv")
table.round(3)

# %% [markdown]
# ## What to conclude
# - Compare `F1_cell_type` of *new, projected* with *new, in training*: these are the same cells, and both classifiers
#   learned from the cells of the other donors. A small difference means that the model does not need new donors in
#   training. *seen* has other cells and is usually higher, because the classifier knows their donors.
# - `F1_donor` measures the donor information. For a conditional model it can be higher in projected cells than in
#   training, because the penalty never saw these donors.
# - Matching by symbol changes nothing if the symbols are complete: `slope` and `correlation` are 1.
# - With half of the genes missing, usages that are *not corrected* are too small (`slope` below 1). Corrected usages
#   have the scale of all genes, but more noise. `coverage` is the share of the weight of the programs that these genes
#   have.
