# %% [markdown]
# # 05 · Train conditional AE-NMF, model 2
# **Question.** What do the programs become when each may bend per donor?  **Reads** the filtered cells. **Writes** a
# results-only file.

# %% tags=["parameters"]
cells: str = "results/demo/filtered.h5ad"  # made by 01
sums: str = ""  # sums over them that make SHARDS made: the cells are then not held in memory
out: str = "results/demo/k80/cae_nmf2_k80.h5ad"  # results-only file
k: int = 80  # programs
seed: int = 42  # everything random
n_starts: int = 1  # fit from so many starts, seed, seed + 1 …, and keep the best
lambda_W: float = 1e-2  # weight of ‖W‖²
lambda_U: float = 5e-2  # weight of ‖U‖²
strength: float = 0.2  # share of the error that the penalty is at the plain AE-NMF; 0: none, as published
labels: str = "cell_type"  # or 'clusters', found without labels; 'none': HSIC in place of the invariance
donor_U: bool = False  # write U (donors × k × genes) too
tol: float = 5e-4  # stop at this relative decrease of the objective over 10 sweeps
max_iter: int = 1000  # iterations at most
row_norm: bool = False  # hold the rows of W at length 1
init: str = "cells"  # start from random cells, improved on samples; or 'nndsvd'
mode: str = "auto"  # how XᵀX is kept: 'implicit', 'explicit', or the cheaper
gene_weights: str = "none"  # or 'shared': a gene counts by the variance it shares with others
untied: bool = False  # also tell the error with usages that are not tied to W
preset: str = ""  # 'published': the published choices, over the values here
device: str = "cpu"  # 'cpu' or 'cuda'

# %%
import logging

import pandas as pd

from aenmf_lib import CAENMF2, data, programs, results
from aenmf_lib.figures import training
from aenmf_lib.models import base
from aenmf_lib.training import checkpoint, sharding

logging.basicConfig(level=logging.INFO, format="%(message)s")
cells_ = data.load_stream(cells) if sums else data.load(cells)
cells_

# %% [markdown]
# It starts from AE-NMF on all cells, at which the `strength` of the penalty is reckoned. Then every donor decodes with
# W + U_d: usages stay H = X Wᵀ. Where `labels` is 'cell_type' the training has seen the types, as every score says.

# %%
model = CAENMF2(
    k=k,
    seed=seed,
    n_starts=n_starts,
    lambda_W=lambda_W,
    lambda_U=lambda_U,
    strength=strength,
    labels=labels,
    row_norm=row_norm,
    preset=preset or None,
    tol=tol,
    max_iter=max_iter,
    init=init,
    mode=mode,
    gene_weights=gene_weights,
    device=device,
)
model.fit(
    sharding.load_sums(sums, cells_, mode=mode, device=device) if sums else cells_,
    checkpoint=checkpoint.checkpoint_path(out),
)

# %% [markdown]
# The exact objective over all cells, at the start and after each iteration. It should fall and flatten; with `row_norm`
# or on a GPU single steps may rise, as the line search allows.

# %%
training.loss_curve(model.loss_history_)

# %% [markdown]
# How it ended, and how much of ‖X‖² the model explains (penalties counted against it). And how far each donor bends
# the programs.

# %%
print(base.summary(model))
if untied:
    print(base.cost_of_the_tie(model, cells_))
pd.Series((model.U_**2).sum(axis=(1, 2)) ** 0.5, index=model.donors_, name="‖U‖ of the donor").to_frame()

# %% [markdown]
# How each start ended, and the mean cosine of its programs to those kept. Below, the programs that hang most on the
# start; with one start there is nothing to compare. With a strength these are starts of the AE-NMF that it goes from.

# %%
model.starts_

# %%
model.stability_.dropna().nsmallest(10, "cosine")

# %% [markdown]
# Genes that weigh most in each program. A program is worth a name when its genes are.

# %%
genes = programs.top_genes(model.W_, cells_.var.get("feature_name", cells_.var.index), n=8)
genes.groupby("program")["gene"].agg(", ".join).to_frame()

# %% [markdown]
# The embedding, the programs and what made them go to the results-only file; the expression matrix does not.

# %%
results.write(out, model, cells_, donor_U=donor_U)
results.check(out) or "the file is as it should be"
