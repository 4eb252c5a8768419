# %% [markdown]
# # 14 · Differential usage
# **Question.** Which programs do two groups of donors use differently, within each cell type?  **Reads** the results
# files of one run, whose `obs` must contain a column with the groups.  **Writes** a table with one row per model,
# program and cell type (`differential_usage.csv`), and a figure of the programs that differ.  This notebook trains no
# model.
#
# The first table shows the numbers of cells and donors of each group. If `obs` has no column `by`, its columns are
# listed instead.

# %% tags=["parameters"]
model_paths: list[str] = ["results/demo/k12/cae_nmf1_k12.h5ad", "results/demo/k12/cae_nmf2_k12.h5ad", "results/demo/k12/ae_nmf_k12.h5ad", "results/demo/k12/base_nmf_k12.h5ad"]  # results files to compare  # noqa: E501  # fmt: skip
out_dir: str = "results/lab"  # folder for the table, and for figures/
by: str = "condition"  # column of obs with the two groups
groups: list[str] = []  # the two groups to compare, the reference first; may be empty if the column has two
# rarely changed
min_cells_per_donor: int = 10  # donors with fewer cells of a type in a group are left out of these tests
min_donors: int = 2  # smallest number of donors per group

# %%
import logging

from aenmf_lib import figures, programs, results

logging.basicConfig(format="%(message)s")
logging.getLogger("aenmf_lib").setLevel(logging.INFO)
embeddings = results.read_embeddings(model_paths)
obs = embeddings.obs
obs.groupby(by, observed=True)["donor_id"].agg(cells="size", donors="nunique") if by in obs else list(obs)

# %% [markdown]
# ## Tests
# The cells of one donor resemble each other. A test that treats cells as samples therefore finds differences between
# any two groups of donors, even between random groups. Here the usages are averaged over the cells of each donor, and a
# t-test compares the donors. If most donors have enough cells in both groups, for example before and after a
# treatment, the test is paired (`design`). The next table counts the tests of each model: `tests` were done, and
# `not_done` were not. `share_of_p_below_05` is the share of p-values below .05, and `found` is the number of tests with
# a false discovery rate (FDR) below .05.

# %%
table = programs.differential_usage(
    embeddings.H, obs, by, groups=groups, min_cells=min_cells_per_donor, min_donors=min_donors
)
results.write_table(table, f"{out_dir}/differential_usage.csv")
table.groupby(["Model", "design"], sort=False).agg(
    tests=("p_value", "count"),
    not_done=("p_value", lambda p: p.isna().sum()),
    share_of_p_below_05=("p_value", lambda p: (p.dropna() < 0.05).mean()),
    found=("fdr", lambda fdr: (fdr < 0.05).sum()),
)

# %% [markdown]
# If no usage differs, about 5 % of the p-values are below .05, and almost no FDR is below .05. In the written table,
# the column `reason` explains why a test was not done, for example because too few donors have cells of the type.
#
# ## Programs that differ
# The next table shows the 20 largest effects with FDR < .05, and the top genes of the programs. `effect` is the
# difference of the mean log2 usage between the groups: 1 means that the usage in `group_b` is about twice that in the
# reference `group_a`. `ci_low` and `ci_high` are the 95 % confidence interval of the effect.

# %%
cards = programs.program_cards(model_paths)
found = table[table["fdr"] < 0.05].merge(cards[["Model", "program", "top_genes"]], how="left")
order = found["effect"].abs().sort_values(ascending=False).index
found.loc[order[:20], ["Model", "program", "cell_type", "effect", "ci_low", "ci_high", "fdr", "top_genes"]]

# %% [markdown]
# The figure shows the programs with the largest significant effects in all cell types, at most ten programs per model.
# Red means a higher usage in `group_b` than in the reference, and blue a lower usage. A dot marks FDR < .05, and a
# cross marks a test that was not done.

# %%
fig = figures.differential(table, cards, run=embeddings.run)
figures.save(fig, f"{out_dir}/figures")
fig

# %% [markdown]
# - If no test has FDR < .05, look at the confidence intervals. With two or three donors per group, they are wide, and a
#   difference can be missed.
# - The conditional models remove differences between donors. If each donor is in one group only, they also remove the
#   differences between the groups. In this case, use AE-NMF or Base NMF. With four donors per condition from Kang et
#   al. (2018), the effect of interferon was 2.1 with AE-NMF and 0.0 with CAE_NMF1. In a paired design, CAE_NMF1 keeps
#   the effect.
# - Counts are normalized to the same total in each cell, and programs share genes. If the usage of one program
#   increases, that of others may therefore decrease a little. Trust the largest effects first.
