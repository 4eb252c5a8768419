# %% [markdown]
# # 02 · Train the baseline, scikit-learn's NMF
# **Question.** Which programs rebuild the cells best when every cell's usages are free?  **Reads** the filtered
# cells. **Writes** a results-only file.

# %% tags=["parameters"]
cells: str = "results/demo/filtered.h5ad"  # made by 01
out: str = "results/demo/k80/base_nmf_k80.h5ad"  # results-only file
k: int = 80  # programs
seed: int = 42  # everything random
tol: float = 1e-4  # scikit-learn's, on the change of a sweep
max_iter: int = 100  # sweeps, as published

# %%
import logging

from aenmf_lib import BaseNMF, data, programs, results
from aenmf_lib.figures import training
from aenmf_lib.models import base

logging.basicConfig(level=logging.INFO, format="%(message)s")
cells_ = data.load(cells)
cells_

# %% [markdown]
# Coordinate descent as published. 100 sweeps seldom converge; that is the published baseline, so it stays.

# %%
model = BaseNMF(k=k, seed=seed, tol=tol, max_iter=max_iter)
model.fit(cells_)

# %% [markdown]
# scikit-learn tells its objective at the end only: one point.

# %%
training.loss_curve(model.loss_history_)

# %% [markdown]
# How it ended, and how much of ‖X‖² the model explains (penalties counted against it).

# %%
print(base.summary(model))

# %% [markdown]
# Genes that weigh most in each program. A program is worth a name when its genes are.

# %%
genes = programs.top_genes(model.W_, cells_.var.get("feature_name", cells_.var_names), n=8)
genes.groupby("program")["gene"].agg(", ".join).to_frame()

# %% [markdown]
# The embedding, the programs and what made them go to the results-only file; the expression matrix does not.

# %%
results.write(out, model, cells_)
results.check(out) or "the file is as it should be"
