# %% [markdown]
# # 13 · Consensus programs
# **Question.** Which programs do other random starts and other donors find again?  **Reads** the filtered cells.
# **Writes** a results file of AE-NMF with the programs that recur, and a table.  This notebook is not part of `make
# all`.
#
# AE-NMF is fitted many times: each round uses a random half of the donors and its own random start. One set of sums
# over the cells of each donor serves all rounds. The mean of the programs that the rounds share is a consensus program.

# %% tags=["parameters"]
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, written by 01
out: str = "results/lab/ae_nmf_consensus_k12.h5ad"  # results file
out_dir: str = "results/lab"  # folder for the table
k: int = 12  # number of programs of each round
seed: int = 42  # random seed
rounds: int = 10  # number of fits; use 40 for programs to report
# rarely changed
min_recurrence: float = 0.5  # keep programs in more than this share of the rounds; 0 keeps all, 1 those in all rounds
gene_weights: str = "none"  # 'shared' weights each gene by the variance that it shares with other genes
device: str = "cpu"  # 'cpu' or 'cuda'

# %%
import logging

from aenmf_lib import data, programs, results

logging.basicConfig(level=logging.INFO, format="%(message)s")
cells = data.load(cells_path)
cells

# %% [markdown]
# ## Fit all rounds
# Round 2 uses the donors that round 1 did not use, and so on: every donor is in half of the rounds. Each round is
# saved, so an interrupted run continues. With one donor, the rounds differ only in the random start.

# %%
model, table = programs.consensus_programs(
    cells,
    k,
    rounds=rounds,
    seed=seed,
    min_recurrence=min_recurrence,
    checkpoint=results.checkpoint_path(out),
    gene_weights=gene_weights,
    device=device,
)

# %% [markdown]
# ## How often does each program recur?
# A round contains a program if one of its programs has a cosine of at least 0.7 with it. `recurrence` is the share of
# these rounds. `cosine` is the mean over all rounds, and `least` is the minimum. A program that only one donor has is
# in half of the rounds at most, and is not kept.

# %%
results.write_table(table, f"{out_dir}/consensus.csv")
table.round(3)

# %% [markdown]
# Base conclusions on programs with a recurrence close to 1. Programs with a low recurrence usually divide the same
# genes in another way in each round, such as ribosomal genes or other genes that all cells express.
#
# ## What does the consensus cost?
# The lengths of the programs are fitted to all cells, but not their directions, so AE-NMF at the same `k` explains
# slightly more. The table describes the rounds. Their objectives are those of half of the donors, and differ between
# the halves.

# %%
print(model.summary())
model.starts_

# %% [markdown]
# ## Which genes define the programs?
# The programs are in the order of the table above.

# %%
genes = programs.top_genes(model.W_, cells.var.get("feature_name", cells.var_names), n=8)
genes.groupby("program")["gene"].agg(", ".join).to_frame()

# %% [markdown]
# ## Write the results file
# The results file is that of an AE-NMF model, with as many programs as were kept. Notebooks 06, 07 and 10 can read it,
# and so can `results.load_model`.

# %%
results.write(out, model, cells)
results.check(out) or "The results file is valid."
