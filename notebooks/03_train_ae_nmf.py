# %% [markdown]
# # 03 · Train AE-NMF
# **Question.** Which programs reconstruct the cells if one matrix both encodes and decodes?  **Reads** the filtered
# cells. **Writes** a results file.
#
# AE-NMF computes the usages as H = X Wᵀ and reconstructs the cells as X̂ = H W. It minimizes (1/n) ‖X − X Wᵀ W‖² + λ_W
# ‖W‖² over W ≥ 0. Notebooks 04 and 05 extend this model. This notebook explains what all three share.

# %% tags=["parameters"]
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, written by 01
out: str = "results/lab/ae_nmf_k12.h5ad"  # results file
k: int = 12  # number of programs
seed: int = 42  # random seed
n_starts: int = 1  # number of random starts, with seeds `seed`, `seed` + 1, …; the best fit is kept
gene_weights: str = "none"  # 'shared' weights each gene by the variance that it shares with other genes
device: str = "cpu"  # 'cpu' or 'cuda'
# rarely changed
sums_path: str = ""  # file with sums over the cells, set by make with SHARDS; the cells are then read in blocks
lambda_W: float = 1e-2  # weight of ‖W‖²
tol: float = 5e-4  # stop when the objective decreases by less than this share in 10 iterations
max_iter: int = 1000  # largest number of iterations
init: str = "cells"  # starting point: 'cells' (means of random cells) or 'nndsvd' (singular vectors)
row_norm: bool = False  # keep the rows of W at length 1
mode: str = "auto"  # representation of XᵀX: 'implicit', 'explicit', or 'auto' for the cheaper one
tie_cost: bool = False  # also report the error with the best H for the same W
float16: bool = False  # write the embeddings in float16, at half the size
preset: str = ""  # 'published' sets lambda_W, row_norm and gene_weights to the published values

# %%
import logging

from aenmf_lib import AENMF, data, figures, programs, results

logging.basicConfig(level=logging.INFO, format="%(message)s")
cells = data.load_stream(cells_path) if sums_path else data.load(cells_path)
cells

# %% [markdown]
# ## Train
# **Starting point.** AE-NMF starts from means of random cells. Short fits on samples of up to 4,096 cells refine these
# means; the log shows the short fits first. **Convergence.** The fit then uses all cells. It stops when the objective
# decreases by less than `tol` in 10 iterations (30 on a GPU or with `row_norm`). **Interruptions.** The state is saved
# every minute, and an interrupted fit resumes from this state. On the CPU the result is identical to that of a fit
# without interruption.

# %%
model = AENMF(
    k=k,
    seed=seed,
    n_starts=n_starts,
    lambda_W=lambda_W,
    row_norm=row_norm,
    preset=preset or None,
    tol=tol,
    max_iter=max_iter,
    init=init,
    mode=mode,
    gene_weights=gene_weights,
    device=device,
)
model.fit(cells, sums=sums_path or None, checkpoint=results.checkpoint_path(out))

# %% [markdown]
# ## Has the fit converged?
# The curve shows the exact objective over all cells, at the start and after each iteration. The curve should fall and
# then flatten. On a GPU or with `row_norm`, single iterations may increase the objective; the line search allows this.

# %%
figures.loss_curve(model.loss_history_)

# %% [markdown]
# A flat end means that more iterations would change little. If the summary below says that `max_iter` was reached,
# increase `max_iter`. A short curve is normal, as in the demo: the short fits on samples have done most of the work.
#
# ## How well does the model reconstruct the cells?
# The summary gives the reason for stopping and the share of ‖X‖² that the model explains. This share counts the penalty
# λ_W ‖W‖² as error. With `tie_cost`, a second line compares two errors for this W: with H = X Wᵀ, and with the H ≥ 0
# that reconstructs X best.

# %%
print(model.summary())
if tie_cost:
    print(model.tie_cost(cells))

# %% [markdown]
# Expect AE-NMF to explain slightly less than Base NMF with the same k, because AE-NMF cannot choose H freely.
#
# ## Do the programs depend on the random start?
# With `n_starts` above 1, the first table shows the final objective and the stop reason of each start. The column
# `cosine` compares the programs of a start with those of the fit that was kept. The second table lists the ten programs
# that differ most between the starts.

# %%
model.starts_

# %%
model.stability_.dropna().nsmallest(10, "cosine")

# %% [markdown]
# If the cosine of a program is low, other starts did not find this program. Do not base a conclusion on it. With one
# start there is nothing to compare, and the second table is empty.
#
# ## Which genes define the programs?
# The table lists the genes with the largest weights in each program.

# %%
genes = programs.top_genes(model.W_, cells.var.get("feature_name", cells.var_names), n=8)
genes.groupby("program")["gene"].agg(", ".join).to_frame()

# %% [markdown]
# Name a program only if its top genes form a signature that you recognize. In the demo, some programs consist of
# background genes (`BG…`). Such a program describes a single donor, not a cell type. Notebooks 04 and 05 remove these
# programs.
#
# ## Write the results file
# The results file contains the embedding H, the programs W, the tables of the starts, and the provenance (settings,
# input file, versions, losses). It contains no expression matrix. The check compares the keys of the file with the
# published keys.

# %%
results.write(out, model, cells, float16=float16)
results.check(out) or "The results file is valid."
