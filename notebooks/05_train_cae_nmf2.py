# %% [markdown]
# # 05 · Train conditional AE-NMF, model 2
# **Question.** How do the programs change if each donor has its own version of them?  **Reads** the filtered cells.
# **Writes** a results file.
#
# Model 2 reconstructs a cell of donor d as x̂ = h (W + U_d) with h = x Wᵀ. All donors share the encoder Wᵀ, so usages
# can be compared between donors. The penalty is that of model 1. Model 2 usually removes more of the donor effect and
# keeps more of the cell types than model 1, but takes two to three times as long. Notebooks 03 and 04 explain the
# parameters and outputs that are not explained here.

# %% tags=["parameters"]
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, written by 01
out: str = "results/lab/cae_nmf2_k12.h5ad"  # results file
k: int = 12  # number of programs
seed: int = 42  # random seed
strength: float = 0.2  # size of the penalty relative to the error of AE-NMF; 0: no penalty, as published
# rarely changed
ae_nmf_path: str = ""  # results file of notebook 03, set by make; empty: AE-NMF is fitted here
lambda_U: float = 5e-2  # weight of ‖U‖²
donor_U: bool = False  # write U (donors × k × genes) into the results file
preset: str = ""  # 'published' sets strength, row_norm and all weights to the published values
# explained in notebook 03
n_starts: int = 1
gene_weights: str = "none"
device: str = "cpu"
sums_path: str = ""
lambda_W: float = 1e-2
tol: float = 5e-4
max_iter: int = 1000
init: str = "cells"
row_norm: bool = False
mode: str = "auto"
tie_cost: bool = False
float16: bool = False

# %%
import logging

import pandas as pd

from aenmf_lib import CAENMF2, data, figures, programs, results

logging.basicConfig(level=logging.INFO, format="%(message)s")
cells = data.load_stream(cells_path) if sums_path else data.load(cells_path)
cells

# %% [markdown]
# ## Check that there are donors to compare
# The model needs cells of at least two donors. With one donor, the notebook ends here, and the results file records
# only the reason. The tables of notebook 06 then show the model without scores, and the figures leave it out.

# %%
results.require_donors(cells, out, CAENMF2)

# %% [markdown]
# ## Train
# The starting point, the penalty and the strength are those of notebook 04. Model 2 is slower than model 1, because
# every donor has its own second moment (XᵀX of the cells of this donor).

# %%
model = CAENMF2(
    strength=strength, lambda_U=lambda_U,
    # as in notebook 03
    k=k, seed=seed, n_starts=n_starts, lambda_W=lambda_W, row_norm=row_norm, preset=preset or None, tol=tol,
    max_iter=max_iter, init=init, mode=mode, gene_weights=gene_weights, device=device,
)  # fmt: skip
model.fit(
    cells, sums=sums_path or None, checkpoint=results.checkpoint_path(out), aenmf=ae_nmf_path or None
)  # fmt: skip

# %% [markdown]
# ## Has the fit converged?
# Expect a larger decrease than for model 1, because U has k rows per donor.

# %%
figures.loss_curve(model.loss_history_)

# %% [markdown]
# ## How much do the donors change the programs?
# The table shows the norm ‖U_d‖ of each donor.

# %%
print(model.summary())
if tie_cost:
    print(model.tie_cost(cells))
pd.Series((model.U_**2).sum(axis=(1, 2)) ** 0.5, index=model.donors_, name="‖U‖ of the donor").to_frame()

# %% [markdown]
# If the model explains more than AE-NMF, this is no evidence of a donor effect. With U, the decoder W + U_d may differ
# from the encoder Wᵀ, and this improves the fit even if donors do not differ. Look at the effective strength in the
# summary instead: a value near 0 means that the donors differ by no more than chance, unless the summary says that
# donors could not be compared.
#
# ## Do the programs depend on the random start?
# Notebook 03 explains both tables.

# %%
model.starts_

# %%
model.stability_.dropna().nsmallest(10, "cosine")

# %% [markdown]
# ## Which genes define the programs?
# Compare the table with the tables in notebooks 03 and 04.

# %%
genes = programs.top_genes(model.W_, cells.var.get("feature_name", cells.var_names), n=8)
genes.groupby("program")["gene"].agg(", ".join).to_frame()

# %% [markdown]
# In the demo, the programs describe cell types and processes such as stress or the cell cycle. No program of background
# genes (`BG…`) is left. Notebook 06 measures whether the embedding has improved as well.
#
# ## Write the results file
# The file also contains the donor part of the embedding. It contains U only if `donor_U` is True, because U is large.

# %%
results.write(out, model, cells, donor_U=donor_U, float16=float16)
results.check(out) or "The results file is valid."
