# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · Conditioning
# **Question.** What does conditioning keep and remove, at what price, and is that more than the chance of a start?
# **Reads** the filtered cells. **Writes** a table with a row a start, one with their means, and a figure.  Not part of
# the published benchmark, and not of `make all`.
#
# Every model is trained from several starts, each time on all cells and again without a third of the donors. Where a
# penalty reads `cell_type`, scores against it on the cells of the fit prove nothing; those on the donors held out do.

# %% tags=["parameters"]
cells: str = "results/demo/filtered.h5ad"  # made by 01
out_dir: str = "results/demo/k12"  # where the tables go, and figures/
k: int = 80  # programs
on: list[str] = ["donor_id"]  # columns to condition on, a study each; 'donor_id+condition' is both
starts: int = 5  # starts of each model, and choices of the donors held out
strengths: list[float] = [0.05, 0.2, 1.0]  # of the penalties, beside the published weights
labels_tried: list[str] = ["cell_type", "clusters", "none"]  # what the penalties read; the first at all strengths
weights_tried: list[str] = ["none", "shared"]  # of the genes; other rules than "none" at one strength
tried_at: float = 0.2  # that strength
yardsticks: list[str] = ["Types", "PCA", "Harmony", "Base_NMF"]  # LinearSCVI takes hours, and scvi-tools
scored_cells: int = 4000  # cells clustered and classified, at random; 0 takes all

# %%
from aenmf_lib import data, results
from aenmf_lib.conditioning import study, variants
from aenmf_lib.figures import conditioning, layout

cells_ = data.load(cells)
plan = variants.plan(strengths, at=tried_at, labels=labels_tried, gene_weights=weights_tried, yardsticks=yardsticks)
print(f"{len(plan)} models, conditioned on {' and on '.join(on)}, from {starts} starts:")
print(*map(variants.label, plan), sep="\n")

# %% [markdown]
# ## Fit and score
# A bar counts fits. Each row is kept as soon as it is made: a study that was killed goes on, and one that is enlarged
# makes only what is new.

# %%
long = study.run(
    cells_,
    plan,
    on=on,
    k=k,
    seeds=range(starts),
    max_cells=scored_cells,
    store=f"{out_dir}/conditioning_scores.csv",
)
results.write_table(long, f"{out_dir}/conditioning_long.csv")
table = study.summarize(long)
results.write_table(table, f"{out_dir}/conditioning.csv")
long.groupby("on", sort=False).size().to_frame("fits")

# %% [markdown]
# ## What it costs
# The error of reconstruction with all that a model adds for a donor, the variance of the usages that lies between
# donors within a cell type, and both on donors that were held out. `strength_left` is what chance leaves of the
# strength: where donors do not differ, nothing is asked. These numbers, and no score against a label, are what a
# strength may be chosen by.

# %%
study.format_table(table, ["strength_left", "error", "scatter", "unseen_error", "unseen_scatter", "seconds"])

# %% [markdown]
# ## What it keeps and removes
# Against the type high is good, against what was conditioned on low is good. Look at neighbors (kNN, NMI) before the
# linear classifier, which alone is easily misled. `Types` is an embedding that tells the type and nothing else: donors
# whose shares of the types differ are told apart by it too, and no model can fall below without losing types.

# %%
study.format_table(table, study.SEEN)

# %% [markdown]
# The same on donors that no fit and no classifier has seen. Nothing stands where a label is not shared by the donors
# held out and the others, as the donor itself.

# %%
study.format_table(table, study.UNSEEN)

# %% [markdown]
# ## The trade
# Up is more of the type, left is less of what was conditioned on. A line joins the strengths of a model, from the
# published weights on; bars are deviations over the starts. A model is better where its line lies above and to the left
# of another's, by more than the bars. The dotted line is what the types alone tell.

# %%
fig = conditioning.conditioning(table, k=k)
layout.save(fig, f"{out_dir}/figures/conditioning", conditioning.drawn(table))
fig
