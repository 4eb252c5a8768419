# %% [markdown]
# # 12 · Rank
# **Question.** How many programs do the cells support?  **Reads** the filtered cells. **Writes** a table with one row
# per rank, and a figure.  This notebook is not part of `make all`.
#
# AE-NMF is fitted at each rank. One set of sums over the cells serves all fits. Some donors are held out, and so is a
# share of the cells of every other donor.

# %% tags=["parameters"]
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, written by 01
out_dir: str = "results/lab"  # folder for the table, and for figures/
ranks: list[int] = [5, 10, 20]  # numbers of programs to compare
seed: int = 42  # random seed
rank_starts: int = 2  # number of random starts of each rank
# rarely changed
held_out: float = 0.2  # share of the donors, and of the cells of each other donor, that training does not use
device: str = "cpu"  # 'cpu' or 'cuda'

# %%
import logging

from aenmf_lib import data, figures, programs, results

logging.basicConfig(format="%(message)s")
logging.getLogger("aenmf_lib").setLevel(logging.INFO)
cells = data.load_stream(cells_path)
cells

# %% [markdown]
# ## Fit every rank
# Each rank is fitted from `rank_starts` random starts, and once to each of two halves of the donors. Each rank is saved
# as soon as it is measured, so an interrupted run continues.

# %%
table = programs.rank_table(
    cells,
    ranks,
    seed=seed,
    starts=rank_starts,
    held_out=held_out,
    device=device,
    cache=f"{out_dir}/rank_fits.csv",
)
results.write_table(table, f"{out_dir}/rank.csv")
table.set_index("k").round(4).T

# %% [markdown]
# `error` is the relative error ‖X − X Wᵀ W‖ / ‖X‖ of the training cells. `error_cells` and `error_donors` are the same
# error for held-out cells and donors. These three decrease with almost every program, even if the data contain no
# structure. `error_genes` does not: each fifth of the genes of the held-out cells is predicted from the other genes.
# Programs that describe noise do not lower this error.
#
# The other columns compare the programs of two fits. Each program is matched with its partner in the other fit, and the
# table contains the mean and the median of the cosines. The fits differ in the random start (`starts`) or in the donors
# (`halves`). A `dead` program contributes less than 1e-5 of ‖X‖².
#
# ## Which ranks do the data support?

# %%
fig = figures.rank(table)
figures.save(fig, f"{out_dir}/figures")
fig

# %%
print(programs.rank_summary(table))

# %% [markdown]
# Choose a rank at which `error_genes` has stopped decreasing. Choose a smaller rank if you need programs that other
# donors reproduce. A program that differs between starts should not support a conclusion: notebook 13 keeps only
# programs that recur. The table does not choose the rank for you, because the question decides which detail matters.
