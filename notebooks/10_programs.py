# %% [markdown]
# # 10 · Programs
# **Question.** Which genes define each program, where is the program used, and does it recur?  **Reads** the results
# files of 02 to 05, and optionally a file of gene sets.  **Writes** two tables per model: the genes of each program
# (`programs_<model>.csv`), and one row per program (`program_cards_<model>.csv`).
#
# The tables of a skipped model have only a header. In Python, `programs.gene_table(path)` and
# `programs.program_cards(paths)` return the same tables.

# %% tags=["parameters"]
model_paths: list[str] = ["results/demo/k12/cae_nmf1_k12.h5ad", "results/demo/k12/cae_nmf2_k12.h5ad", "results/demo/k12/ae_nmf_k12.h5ad", "results/demo/k12/base_nmf_k12.h5ad"]  # results files to describe  # noqa: E501  # fmt: skip
gene_sets: str = ""  # GMT file of gene sets (symbols or gene ids), may be compressed; empty: no gene sets
out_dir: str = "results/lab"  # folder for the tables

# %%
import logging

import pandas as pd

from aenmf_lib import programs

logging.basicConfig(level=logging.INFO, format="%(message)s")
pd.options.display.max_colwidth = None  # whole names
pd.options.display.max_rows = 400
genes, cards = programs.write_program_tables(model_paths, out_dir, gene_sets=gene_sets)
cards.groupby("Model", sort=False).size().to_frame("programs")

# %% [markdown]
# ## Genes
# `top_genes` have the largest weights. `specific_genes` have the largest product of weight and specificity. The
# specificity of a gene is the share of this program in the reconstruction of the gene, from 0 to 1. Expect both lists
# to agree for AE-NMF, whose programs have few genes in common, and to differ for Base NMF.

# %%
cards.set_index(["Model", "program"])[["top_genes", "specific_genes"]]

# %% [markdown]
# Name a program only if its genes form a signature that you recognize. A program of ribosomal or mitochondrial genes
# often describes the quality of the cells. The next table shows the share of these genes among the first 100 genes of
# each program.

# %%
flags = genes.groupby(["Model", "program"], sort=False)[["ribosomal", "mitochondrial"]].mean()
flags[flags.max(axis=1) > 0.2].style.format("{:.0%}")

# %% [markdown]
# ## Size and use
# `share_of_norm` is ‖h‖² ‖w‖² / ‖X‖², the size of the program's part in the reconstruction. Programs overlap, so these
# shares do not add up to the share of ‖X‖² that the model explains. In model 2, the shares are small, because the donor
# part U reconstructs most of X. `usage_by_type` lists up to three cell types whose mean usage is above the mean of all
# cells, with the ratio of both means.

# %%
cards.set_index(["Model", "program"])[["share_of_norm", "top_type", "usage_by_type"]].round(4)

# %% [markdown]
# ## Cell types or donors
# `variance_by_type` is the share of the variance of the usage that lies between cell types. `variance_by_donor` is the
# share that lies between donors within cell types. A program with a large `variance_by_donor` describes donors or
# batches. Expect such programs in AE-NMF and Base NMF if donors differ, and fewer in the conditional models. Both
# columns are empty if there is only one type or donor.

# %%
cards.sort_values("variance_by_donor", ascending=False, kind="stable").head(20)[
    ["Model", "program", "variance_by_donor", "variance_by_type", "top_genes"]
].round(3)

# %% [markdown]
# ## Programs that recur
# `stability` is the mean cosine of a program to its partner in the other random starts; it is empty with one start.
# `nearest_…` and `cosine_…` name the most similar program in each model; in the same model, the most similar other
# program.

# %%
cards.set_index(["Model", "program"]).filter(regex="stability|nearest|cosine").round(2)

# %% [markdown]
# Trust a program more if it is stable and if other models find it too. Two programs of one model with a large cosine
# describe almost the same genes: try a smaller k.
#
# ## Gene sets
# The most enriched gene set of each program, if `gene_sets` is given (`make programs GENE_SETS=sets.gmt`). The
# hypergeometric test asks whether the first 100 genes in the order of `specific_genes` contain more genes of a set than
# 100 random genes of the fit. `gene_set_fdr` is corrected for all programs of the model and all sets.

# %%
cards.set_index(["Model", "program"])[["gene_set", "gene_set_overlap", "gene_set_fdr"]].query("gene_set_fdr < 0.05")

# %% [markdown]
# A small FDR means that program and set share genes, not that the program is the process of the set: read the genes.
