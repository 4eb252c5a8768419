# %% [markdown]
# # 10 · Programs
# **Question.** Which genes define each program, which cells use it, and do other fits find it again?  **Reads** the
# results files of 02 to 05, and optionally a file of gene sets.  **Writes** two tables per model:
# `programs_<model>.csv` lists the top 100 genes of each program, and `program_cards_<model>.csv` describes each program
# in one row. It also writes tables of all models: the mean usages by cell type (`usage_by_type.csv`), the programs that
# two models share (`program_matches.csv`), the enriched gene sets (`gene_set_enrichment.csv`), and the content of the
# donor part (`donor_genes.csv`, `donor_share.csv`). The figures of 07 show these tables.
#
# A skipped model has no rows. In Python, `programs.gene_table(path)` and `programs.program_cards(paths)` return the
# tables of genes and of cards.

# %% tags=["parameters"]
model_paths: list[str] = ["results/demo/k12/cae_nmf1_k12.h5ad", "results/demo/k12/cae_nmf2_k12.h5ad", "results/demo/k12/ae_nmf_k12.h5ad", "results/demo/k12/base_nmf_k12.h5ad"]  # results files to describe  # noqa: E501  # fmt: skip
gene_sets: str = ""  # GMT file of gene sets (symbols or gene ids), also compressed; empty for no gene sets
out_dir: str = "results/lab"  # folder for the tables

# %%
import logging

import pandas as pd

from aenmf_lib import programs

logging.basicConfig(level=logging.INFO, format="%(message)s")
pd.options.display.max_colwidth = None  # show long texts in full
pd.options.display.max_rows = 400
tables = programs.write_program_tables(model_paths, out_dir, gene_sets=gene_sets)
genes, cards = tables["programs"], tables["program_cards"]
cards.groupby("Model", sort=False).size().to_frame("programs")

# %% [markdown]
# The table above shows the number of programs of each model.
#
# ## Genes
# `top_genes` are the ten genes with the largest weights. `specific_genes` are the ten genes with the largest product of
# weight and specificity. The specificity of a gene is the share of this program in the reconstruction of the gene, from
# 0 to 1. Expect similar lists for AE-NMF, whose programs have few genes in common, and different lists for Base NMF.

# %%
cards.set_index(["Model", "program"])[["top_genes", "specific_genes"]]

# %% [markdown]
# Name a program only if its genes form a signature that you recognize. A program of ribosomal or mitochondrial genes
# often describes the quality of the cells. The next table shows the shares of ribosomal and of mitochondrial genes
# among the top 100 genes, for programs in which one of them is above 20 %. The table is empty if there is no such
# program.

# %%
flags = genes.groupby(["Model", "program"], sort=False)[["ribosomal", "mitochondrial"]].mean()
flags[flags.max(axis=1) > 0.2].style.format("{:.0%}")

# %% [markdown]
# ## Size and use
# - `share_of_norm` is ‖h‖² ‖w‖² / ‖X‖², the size of the program's part in the reconstruction. Programs overlap, so
#   these shares do not add up to the share of ‖X‖² that the model explains. In CAE_NMF2, the shares are smaller,
#   because the donor part U also reconstructs a part of X.
# - `top_type` is the cell type with the largest mean usage.
# - `usage_by_type` lists up to three cell types whose mean usage is above the mean of all cells. The number is the
#   ratio of the two means: `B cell (3.0×)` means that B cells use the program three times as much as the average cell.

# %%
cards.set_index(["Model", "program"])[["share_of_norm", "top_type", "usage_by_type"]].round(4)

# %% [markdown]
# A program with one type and a ratio far above 1 is specific to this cell type. Ratios close to 1 mean that all types
# use the program.
#
# ## Cell types or donors
# `variance_by_type` is the share of the variance of the usage that lies between cell types. It is empty if there is
# only one type. `variance_by_donor` is the share that lies between donors within cell types. It is empty if there is
# only one donor. The next table shows the 20 programs with the largest `variance_by_donor`. Expect programs of AE-NMF
# and Base NMF at the top if donors differ, and fewer programs of the conditional models.

# %%
cards.sort_values("variance_by_donor", ascending=False, kind="stable").head(20)[
    ["Model", "program", "variance_by_donor", "variance_by_type", "top_genes"]
].round(3)

# %% [markdown]
# A program with a large `variance_by_donor` describes donors or batches. Do not interpret it as a process of a cell
# type before you have compared more donors.
#
# ## Programs that other fits find again
# `stability` is the mean cosine of a program with the matched programs of the other random starts. It is empty with one
# start. `nearest_<model>` is the number of the most similar program of each model, and `cosine_<model>` is its cosine.
# In the same model, it is the most similar other program.

# %%
cards.set_index(["Model", "program"]).filter(regex="stability|nearest|cosine").round(2)

# %% [markdown]
# Trust a program more if it is stable and if other models find it too. Two programs of one model with a large cosine
# have almost the same genes, which suggests a smaller k.
#
# Several programs can have the same nearest program. The next table instead pairs the programs of each two models so
# that each program has one partner and the sum of the cosines is largest (Hungarian method). It shows the distribution
# of the cosines of these pairs.

# %%
pairs = tables["program_matches"].query("matched").astype({"cosine": float})
pairs.groupby(["Model", "other"], sort=False)["cosine"].describe().round(2)

# %% [markdown]
# A program without a similar partner depends on the model. The table is empty if there is one model.
#
# ## Gene sets
# If `gene_sets` is given (`make programs GENE_SETS=sets.gmt`), the hypergeometric test asks whether the top 100 genes
# in the order of `specific_genes` contain more genes of a set than 100 random genes of the fit. `gene_set` is the set
# with the smallest p-value. `gene_set_overlap` is the number of its genes among these 100, and the size of the set.
# `gene_set_fdr` is the false discovery rate over all programs of the model and all sets. The next table shows the
# programs with FDR < .05, and the genes in common. It is empty without gene sets. `gene_set_enrichment.csv` lists all
# sets with FDR < .05 of each program.

# %%
best = tables["gene_set_enrichment"].drop_duplicates(["Model", "program"]).query("fdr < 0.05")
best.set_index(["Model", "program"])[["gene_set", "overlap", "size", "fdr", "shared_genes"]]

# %% [markdown]
# A small FDR means that the program and the set share genes. It does not show that the program is the process in the
# name of the set. Look at the genes before you name the program.

# %% [markdown]
# ## Donor part
# The conditional models reconstruct differences between donors by a donor part. In the next table, `share` is the share
# of the reconstruction of an average cell that comes from the donor part, and `share_common` is the part of this share
# that all donors have. The table is empty without a conditional model.

# %%
donor_genes, donor_share = programs.write_donor_tables(model_paths, out_dir)
donor_share.set_index(["Model", "donor_id"]).round(3)

# %% [markdown]
# A donor whose `share` is far above `share_common` differs from the other donors. `donor_genes.csv` lists the genes in
# which each donor differs most.
