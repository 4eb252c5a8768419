# %% [markdown]
# # 04 · Train conditional AE-NMF, model 1
# **Question.** How do the programs change if each donor has its own gene profile?  **Reads** the filtered cells.
# **Writes** a results file.
#
# Model 1 reconstructs the cells as X̂ = H W + C U with H = X Wᵀ. C assigns each cell to its donor, and each row of U is
# the gene profile of one donor. A penalty reduces the donor information in H. Notebook 03 explains the parameters and
# outputs that are not explained here.

# %% tags=["parameters"]
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, written by 01
out: str = "results/lab/cae_nmf1_k12.h5ad"  # results file
k: int = 12  # number of programs
seed: int = 42  # random seed
strength: float = 0.2  # size of the penalty relative to the error of AE-NMF; 0 uses gamma and eta
# rarely changed
ae_nmf_path: str = ""  # results file of notebook 03, set by make; empty: AE-NMF is fitted here
lambda_U: float = 1e-1  # weight of ‖U‖²
gamma: float = 1e-3  # weight of the invariance penalty, which uses cell_type; only if strength is 0
eta: float = 0.256  # weight of the HSIC penalty; only if strength is 0
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

from aenmf_lib import CAENMF1, data, figures, programs, results

logging.basicConfig(level=logging.INFO, format="%(message)s")
cells = data.load_stream(cells_path) if sums_path else data.load(cells_path)
cells

# %% [markdown]
# ## Check that there are donors to compare
# The model needs cells of at least two donors. With one donor, the notebook ends here, and the results file records
# only the reason. The tables of notebook 06 then show the model without scores, and the figures leave it out.

# %%
results.require_donors(cells, out, CAENMF1)

# %% [markdown]
# ## Train
# **Starting point.** If `strength` is above 0, the fit starts from AE-NMF on all cells. AE-NMF is read from the results
# file `ae_nmf_path`, or fitted here if `ae_nmf_path` is empty. `n_starts` counts the AE-NMF fits; model 1 is fitted
# once, from the best of them. The tables of starts below describe AE-NMF.
#
# **Penalty.** The penalty compares the mean usages of the donors within each cell type. Training uses the cell types.
# Cells without types can be clustered first; notebooks/README.md shows how.
#
# **Strength.** At the AE-NMF solution, the weight γ of the penalty is set so that the penalty is `strength` times the
# reconstruction error. The size of the penalty is then comparable between data sets. Donor means also differ by chance.
# If chance explains a share s of the penalty, the *effective strength* is `strength` × (1 − s). The log and the summary
# report it. If donors cannot be compared, because no type has cells of two donors, there is no penalty, and the log and
# the summary report it.

# %%
model = CAENMF1(
    strength=strength, lambda_U=lambda_U, gamma=gamma, eta=eta,
    # as in notebook 03
    k=k, seed=seed, n_starts=n_starts, lambda_W=lambda_W, row_norm=row_norm, preset=preset or None, tol=tol,
    max_iter=max_iter, init=init, mode=mode, gene_weights=gene_weights, device=device,
)  # fmt: skip
model.fit(
    cells, sums=sums_path or None, checkpoint=results.checkpoint_path(out), aenmf=ae_nmf_path or None
)  # fmt: skip

# %% [markdown]
# ## Has the fit converged?
# If `strength` is above 0, the first point is the objective for the W of AE-NMF and the best U for this W.

# %%
figures.loss_curve(model.loss_history_)

# %% [markdown]
# A curve with very few iterations is not an error. It means that the donors differ so little that the model can gain
# almost nothing over AE-NMF.
#
# ## How much does the model add per donor?
# If `strength` is above 0, the summary ends with the effective strength. The table shows the norm ‖U‖ of each
# donor's profile.

# %%
print(model.summary())
if tie_cost:
    print(model.tie_cost(cells))
pd.Series((model.U_**2).sum(axis=1) ** 0.5, index=model.donors_, name="‖U‖ of the donor").to_frame()

# %% [markdown]
# An effective strength near 0 means that the donors differ by no more than chance, unless the summary says that donors
# could not be compared. In both cases, the model is almost AE-NMF. In the demo, the effective strength is almost as
# large as `strength`.
#
# Each profile also contains expression that all donors share. Compare profiles between donors instead of reading a
# single profile. Profiles of donors with few cells have
# smaller norms, because the weight λ_U shrinks them more.
#
# ## Do the programs depend on the random start?
# Notebook 03 explains both tables.

# %%
model.starts_

# %%
model.stability_.dropna().nsmallest(10, "cosine")

# %% [markdown]
# ## Which genes define the programs?
# Compare the table with the table in notebook 03.

# %%
genes = programs.top_genes(model.W_, cells.var.get("feature_name", cells.var_names), n=8)
genes.groupby("program")["gene"].agg(", ".join).to_frame()

# %% [markdown]
# In the demo, programs of cell types that AE-NMF missed have replaced the programs of background genes (`BG…`).
# Notebook 06 measures whether the embedding has improved as well.
#
# ## Write the results file
# The file also contains U and the donor part of the embedding, C U Wᵀ. It records whether training used `cell_type`;
# tables and figures mark such a model.

# %%
results.write(out, model, cells, float16=float16)
results.check(out) or "The results file is valid."
