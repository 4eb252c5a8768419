# %% [markdown]
# # 02 · Train the baseline: scikit-learn's NMF
# **Question.** Which programs reconstruct the cells best if the usages of every cell are fitted?  **Reads** the
# filtered cells. **Writes** a results file.
#
# NMF finds H ≥ 0 and W ≥ 0 with X ≈ H W. NMF fits the usages of every cell. AE-NMF (notebook 03) instead computes the
# usages from X with the matrix Wᵀ.

# %% tags=["parameters"]
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, written by 01
out: str = "results/lab/base_nmf_k12.h5ad"  # results file
k: int = 12  # number of programs
seed: int = 42  # random seed
# rarely changed
max_iter: int = 100  # largest number of sweeps; 100 as published
tol: float = 1e-4  # stop when the violation of optimality is at most this share of that of the first sweep
float16: bool = False  # write the embeddings in float16, at half the size

# %%
import logging

from aenmf_lib import BaseNMF, data, figures, programs, results

logging.basicConfig(level=logging.INFO, format="%(message)s")
cells = data.load(cells_path)
cells

# %% [markdown]
# ## Train
# scikit-learn's coordinate descent trains the model with the published settings. The progress bar shows the violation
# of the optimality conditions, relative to the first sweep. Expect the training to stop at `max_iter`, because 100
# sweeps are rarely enough to converge. The published baseline has the same limit, so this notebook keeps it.

# %%
model = BaseNMF(k=k, seed=seed, tol=tol, max_iter=max_iter)
model.fit(cells)

# %% [markdown]
# ## How well does the model reconstruct the cells?
# The summary gives the reason for stopping and the share of ‖X‖² that the model explains. scikit-learn reports its
# objective only at the end, so the loss curve is a single point.

# %%
print(model.summary())
figures.loss_curve(model.loss_history_)

# %% [markdown]
# At its optimum, NMF explains at least as much as any model with H = X Wᵀ and the same k. Compare this share with the
# share in notebook 03: the difference is the cost of computing H from X.
#
# ## Which genes define the programs?
# The table lists the genes with the largest weights in each program.

# %%
genes = programs.top_genes(model.W_, cells.var.get("feature_name", cells.var_names), n=8)
genes.groupby("program")["gene"].agg(", ".join).to_frame()

# %% [markdown]
# Name a program only if its top genes form a signature that you recognize. In the demo, the gene names show which
# program was simulated. Most programs of the cell types are found. Several other programs consist of background genes
# (`BG…`).
#
# ## Write the results file
# It contains the embedding H, the programs W and the provenance, but no expression matrix.

# %%
results.write(out, model, cells, float16=float16)
results.check(out) or "The results file is valid."
