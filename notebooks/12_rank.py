# %% [markdown]
# # 12 · Rank
# **Question.** How many programs do the cells support?  **Reads** the filtered cells.  **Writes** a table with one row
# per rank (`rank.csv`), and a figure.  This notebook is not part of `make all`.
#
# The rank k is the number of programs. AE-NMF is fitted at each rank. Its errors are computed on the training cells
# and on held-out cells: some donors are held out, and so is a share of the cells of every other donor.

# %% tags=["parameters"]
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, written by 01
out_dir: str = "results/lab"  # folder for the table, and for figures/
ranks: list[int] = [5, 10, 20]  # numbers of programs to compare
seed: int = 42  # random seed
rank_starts: int = 2  # number of random starts per rank
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
# Each rank is fitted to the training cells from `rank_starts` random starts, and once to the cells of each half of the
# donors. Each rank is saved in `rank_fits.csv` as soon as it is computed, so an interrupted run is resumed. The table
# has one column per rank.

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
# - `error` is the relative error ‖X − X Wᵀ W‖ / ‖X‖ of the training cells. `error_cells` is the same error of the
#   held-out cells, and `error_donors` that of the held-out donors. These three errors decrease with almost every
#   program, even if the data contain no structure.
# - `error_genes` is the error of the held-out cells if each fifth of the genes is predicted from the other genes.
#   Programs that describe noise do not decrease this error.
# - `starts_mean`, `starts_median`, `halves_mean` and `halves_median` compare the programs of two fits. Each program is
#   matched with a program of the other fit, and the table contains the mean and the median of the cosines. The fits
#   differ in the random start (`starts_…`) or in the donors (`halves_…`).
# - `dead` is the number of programs that contribute less than 1e-5 of ‖X‖².
# - `seconds` is the time of the first start, and `seconds_more` that of the other starts and the halves.
# - `cells`, `donors`, `cells_out` and `donors_out` are the numbers of cells and donors in training and held out.
#   `starts` and `held_out` are the settings. `note` gives the reason if rows are empty.
#
# ## Which ranks do the data support?
# The figure shows these measures against the rank. Expect `error_genes` ("predicted genes") to decrease up to the
# number of programs in the data, and then to stay constant or to increase.

# %%
fig = figures.figS2_rank(table)
figures.save(fig, f"{out_dir}/figures")
fig

# %%
print(programs.rank_summary(table))

# %% [markdown]
# Choose the smallest rank at which `error_genes` has stopped decreasing. Choose a smaller rank if you need programs
# that other donors reproduce (high `halves_median`). Do not base a conclusion on a program that differs between starts;
# notebook 13 keeps only programs that recur. The table does not choose the rank for you, because your question decides
# which details matter.
