# %% [markdown]
# # 08 · Conditioning
# **Question.** What does conditioning keep, what does it remove, and at what cost? Are these effects larger than the
# differences between random starts?  **Reads** the filtered cells. **Writes** a table with one row per model and start,
# a table of the means over the starts, and a figure.  This notebook is not part of the published benchmark or of
# `make all`.
#
# Every model is trained from several starts. From each start it is trained twice: on all cells, and without the cells
# of a third of the donors. The penalty uses `cell_type`, so scores of the training cells against `cell_type` are not
# independent evidence. Scores on the donors that were excluded from training are independent evidence. Strength 0 means
# the published weights in models 1 and 2, and no penalty in the untied model.

# %% tags=["parameters"]
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells, written by 01
out_dir: str = "results/lab"  # folder for the tables, and for figures/
k: int = 12  # number of programs
on: list[str] = ["donor_id"]  # obs columns to condition on, one study per entry; 'donor_id+condition' combines two
starts: int = 2  # number of starts of each model; each start excludes its own random third of the donors
strengths: list[float] = [0.05, 0.2, 1.0]  # penalty strengths; strength 0 is always included
# rarely changed
tried_at: float = 0.2  # strength for values of `gene_weights` that are not the default of a model
weights_tried: list[str] = ["none", "shared"]  # values of `gene_weights` to compare
baselines: list[str] = ["Types", "PCA", "Harmony", "Base_NMF"]  # also 'LinearSCVI' (takes hours; extra 'baselines')
scored_cells: int = 4000  # number of random cells that are clustered and classified; 0 uses all cells
scib: bool = False  # also compute LISI, BRAS, CiLISI and kBET; needs the extra 'integration' (scib-metrics)

# %%
from aenmf_lib import data, figures, results
from aenmf_lib.conditioning import study, variants

cells = data.load(cells_path)
plan = variants.plan(strengths, at=tried_at, gene_weights=weights_tried, baselines=baselines)
print(f"{len(plan)} models, conditioned on {' and on '.join(on)}, {starts} starts each:")
print(*map(variants.label, plan), sep="\n")

# %% [markdown]
# ## Fit and score
# Each row is saved as soon as it is computed. After an interruption, or if you add models or starts, only the missing
# rows are computed. The column `version` contains the package that computed a baseline, with its version.

# %%
long = study.run(
    cells,
    plan,
    on=on,
    k=k,
    seeds=range(starts),
    max_cells=scored_cells,
    scib=scib,
    cache=f"{out_dir}/conditioning_scores.csv",
)
results.write_table(long, f"{out_dir}/conditioning_long.csv")
table = study.summarize(long)
results.write_table(table, f"{out_dir}/conditioning.csv")
long.groupby(["on", "version"], sort=False).size().to_frame("fits")

# %% [markdown]
# ## What does it cost?
# `error` is the relative reconstruction error, including the donor part of the model. `scatter` is the share of the
# usage variance that lies between donors within a cell type. `unseen_error` and `unseen_scatter` are the same measures
# on the excluded donors, but `unseen_error` cannot include a donor part. `unseen_scatter` is empty if only one donor
# was excluded. `strength_left` is the effective strength: `strength` without the part that chance explains (notebook
# 04).

# %%
study.format_table(table, ["strength_left", "error", "scatter", "unseen_error", "unseen_scatter", "seconds"])

# %% [markdown]
# Choose a strength from these columns, not from scores against a label. Take the smallest strength that lowers
# `scatter` enough at an error you can accept. If donors do not differ, `strength_left` is near 0 and conditioning costs
# nothing. If `scatter` stays high at every strength, there may be too many donors for the number of programs.
#
# ## What does it keep and remove?
# Scores against the type should be high. Scores against the column conditioned on should be low. `Types` is an
# embedding that contains only the cell type. Donors differ in composition, so even `Types` predicts the donor a little.
# A model scores lower than `Types` against the donor only if it loses cell-type information.

# %%
study.format_table(table, study.SEEN)

# %% [markdown]
# Read the scores of neighbors and clusters (kNN, NMI) first. The linear classifier also detects a small effect in a
# single direction of the embedding. Expect the NMI of the donor to fall to the value of `Types`. The kNN score of the
# donor often stays above the value of `Types`. NMI and ARI compare Leiden clusters at resolution 0.8. The ranking can
# depend on the resolution, so `best_NMI_type` is the highest NMI of the type over eight resolutions, and
# `best_resolution` is the resolution of this NMI.
#
# The next table shows the same scores on donors that neither the model nor the classifier has seen. An F1 is empty if
# training and excluded donors have no class of this label in common. F1 against `donor_id` is therefore always empty.

# %%
study.format_table(table, study.UNSEEN)

# %% [markdown]
# If a model removes the effect in the table above but not in this table, it has learned only the differences between
# the training donors. This happens if new donors differ in other ways than the training donors.
#
# The next table is empty unless `scib` is true. LISI of the type should be near 1. BRAS, CiLISI and kBET compare the
# values of the column conditioned on within each cell type. They are near 0 if the values are separate, and near 1 if
# the values are mixed.

# %%
study.format_table(table, [*study.MIXING, *study.UNSEEN_MIXING])

# %% [markdown]
# ## The trade-off
# Vertical: score against the cell type, higher is better. Horizontal: score against the column conditioned on, lower is
# better. A line connects the strengths of a model, starting from 0; a larger marker is a larger strength. Bars are
# standard deviations over the starts. The dotted line is the value of `Types`.

# %%
made = cells.uns.get("provenance", {})
columns = {
    "donor_column": made.get("donor_key", "donor_id"),
    "cell_type_column": made.get("cell_type_key", "cell_type"),
}
run = results.RunInfo(k=k, n_cells=cells.n_obs, sampled_from=int(made.get("sampled_from", 0)), **columns)
fig = figures.conditioning(table, run=run)
figures.save(fig, f"{out_dir}/figures")
fig

# %% [markdown]
# One model is better than another if its line lies above and to the left of the other line, by more than the bars.
