# %% [markdown]
# # 14 · Differential usage
# **Question.** Which programs do the cells of two groups of donors use differently, within each cell type?  **Reads**
# the results files of one run; their `obs` must contain the column of the groups.  **Writes** a table with one row per
# model, program and cell type, and a figure of the programs that differ.  This notebook trains no model.

# %% tags=["parameters"]
model_paths: list[str] = ["results/demo/k12/cae_nmf1_k12.h5ad", "results/demo/k12/cae_nmf2_k12.h5ad", "results/demo/k12/ae_nmf_k12.h5ad", "results/demo/k12/base_nmf_k12.h5ad"]  # results files to compare  # noqa: E501  # fmt: skip
out_dir: str = "results/lab"  # folder for the table
by: str = "condition"  # column of obs with the two groups
groups: list[str] = []  # the two groups to compare, the reference first; empty if the column has only two
# rarely changed
min_cells_per_donor: int = 10  # donors with fewer cells of a type are left out of the tests of this type
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
# The cells of one donor resemble each other. A test that counts cells finds differences between any two groups of
# donors, also between random groups. Here the usages are averaged over the cells of each donor, and a t-test compares
# the donors. If the donors have cells in both groups, for example before and after a treatment, the test is paired.
# `effect` is the difference of the mean log2 usage: 1 means that usage doubles, compared with the reference `group_a`.

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
# If no usage differs, about 5 % of the p-values are below .05, and almost no FDR is. `found` is the number of tests
# with FDR < .05. The column `reason` of the table says why a test was not done, for example because too few donors have
# cells of the type.
#
# ## Programs that differ
# The largest effects with FDR < .05, with the genes of the programs:

# %%
cards = programs.program_cards(model_paths)
found = table[table["fdr"] < 0.05].merge(cards[["Model", "program", "top_genes"]], how="left")
order = found["effect"].abs().sort_values(ascending=False).index
found.loc[order[:20], ["Model", "program", "cell_type", "effect", "ci_low", "ci_high", "fdr", "top_genes"]]

# %% [markdown]
# The figure shows these programs in all cell types. Red: more usage in `group_b` than in the reference.

# %%
fig = figures.differential(table, cards, run=embeddings.run)
figures.save(fig, f"{out_dir}/figures")
fig

# %% [markdown]
# - If no test has FDR < .05, look at the intervals: with two or three donors per group, they are wide, and a difference
#   can be missed.
# - The conditional models remove differences between donors. If each donor is in one group only, they also remove
#   differences between the groups: rely on AE-NMF and Base NMF. With four of Kang's donors per condition, the effect of
#   interferon was 2.1 with AE-NMF and 0.0 with model 1. In a paired design, model 1 keeps it.
# - Usages are relative to the other genes of a cell, and programs share genes. If one program rises, others may seem to
#   fall a little. Trust the largest effects first.
