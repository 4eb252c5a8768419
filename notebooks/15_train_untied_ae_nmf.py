# %% [markdown]
# # 15 · Train untied AE-NMF
# **Question.** How do the programs and usages change if encoder and decoder are two matrices?  **Reads** the filtered
# cells. **Writes** a results file.  This model is not among the published ones: `make all MODELS=all` trains it too.
#
# AE-NMF encodes and decodes with one matrix. The untied model has an encoder E ≥ 0 and a decoder W ≥ 0: H = X E and X̂ =
# H W + C U. Row d of U is the gene profile of donor d, as in model 1. The encoder can avoid a gene that differs between
# donors, while the decoder still reconstructs this gene. With `strength: 0`, there is no penalty and no U, and donors
# and cell types are not used. Notebooks 03 and 04 explain the parameters and outputs that are not explained here.

# %% tags=["parameters"]
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, written by 01
out: str = "results/lab/untied_ae_nmf_k12.h5ad"  # results file
k: int = 12  # number of programs
seed: int = 42  # random seed
strength: float = 1.0  # size of the penalty relative to the error of AE-NMF; 0: no penalty and no U
# rarely changed
lambda_U: float = 1e-1  # weight of ‖U‖²
# explained in notebook 03
n_starts: int = 1
gene_weights: str = "shared"  # the default of this model
device: str = "cpu"
sums_path: str = ""
lambda_W: float = 1e-2
tol: float = 5e-4
max_iter: int = 1000
init: str = "cells"
mode: str = "auto"
float16: bool = False

# %%
import logging

import numpy as np
import pandas as pd

from aenmf_lib import UntiedAENMF, data, figures, programs, results

logging.basicConfig(level=logging.INFO, format="%(message)s")
cells = data.load_stream(cells_path) if sums_path else data.load(cells_path)
cells

# %% [markdown]
# ## Check that there are donors to compare
# The penalty needs cells of at least two donors. With one donor and a `strength` above 0, the notebook ends here, and
# the results file records only the reason.

# %%
if strength:
    results.require_donors(cells, out, UntiedAENMF)

# %% [markdown]
# ## Train
# **Starting point.** AE-NMF with the same gene weights is fitted first. The untied model starts with the W of AE-NMF as
# decoder, and with E = Wᵀ as encoder. By default the genes are weighted, unlike in notebook 03. ‖E‖² and ‖W‖² have the
# weight `lambda_W` / 2 each. So without a penalty and U, the starting point has the same objective as in AE-NMF. No
# iteration on the CPU increases the objective. With `strength: 0`, it therefore ends at or below that of AE-NMF.
#
# **Penalty.** For each program, take the share of the variance of its usage that lies between donors within cell types.
# The penalty is the mean of these shares. A share does not change if E becomes smaller and W larger. `strength` sets
# the weight of the penalty as in notebook 04, and chance is subtracted in the same way.

# %%
model = UntiedAENMF(
    strength=strength, lambda_U=lambda_U,
    # as in notebook 03
    k=k, seed=seed, n_starts=n_starts, lambda_W=lambda_W, tol=tol, max_iter=max_iter, init=init, mode=mode,
    gene_weights=gene_weights, device=device,
)  # fmt: skip
model.fit(cells, sums=sums_path or None, checkpoint=results.checkpoint_path(out))

# %% [markdown]
# ## Has the fit converged?
# The first point is the objective at the AE-NMF solution, including the penalty and the best U for this solution. On
# the CPU, the curve never rises.

# %%
figures.loss_curve(model.loss_history_)

# %% [markdown]
# ## How much do encoder and decoder differ?
# `encoder_` is Eᵀ, so it has one row per program, like W. For each program, the table shows the cosine between its rows
# of W and Eᵀ, and the genes with the largest weights in each of these rows.

# %%
print(model.summary())
names = cells.var.get("feature_name", cells.var_names)
cosine = (model.W_ * model.encoder_).sum(1) / np.sqrt((model.W_**2).sum(1) * (model.encoder_**2).sum(1))
decoder, encoder = (programs.top_genes(part, names, n=8) for part in (model.W_, model.encoder_))
pd.DataFrame({
    "cosine": cosine,
    "decoder": decoder.groupby("program")["gene"].agg(", ".join),
    "encoder": encoder.groupby("program")["gene"].agg(", ".join),
})  # fmt: skip

# %% [markdown]
# Name a program by its genes in the decoder. The encoder avoids a gene of the decoder if this gene differs between
# donors, or if other genes measure the usage better.
#
# ## Do the programs depend on the random start?
# Both tables describe the starts of AE-NMF; notebook 03 explains them.

# %%
model.starts_

# %%
model.stability_.dropna().nsmallest(10, "cosine")

# %% [markdown]
# ## Write the results file
# The file contains H, W, E, and U if `strength` is above 0. It records whether training used `cell_type`; tables and
# figures mark such a model.

# %%
results.write(out, model, cells, float16=float16)
results.check(out) or "The results file is valid."
