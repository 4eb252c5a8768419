# %% [markdown]
# # 07 · Figures
# **Question.** What do the results of a run look like?  **Reads** the tables of 01, 06 and 10, the UMAP coordinates,
# and facts about the models in their results files.  **Writes** each figure in the formats of the settings, the data
# that it shows as csv, and its caption as txt; and the benchmark as a table in LaTeX, Markdown and csv.
#
# This notebook trains no model and computes no score, so a new color takes seconds. Fonts, sizes, colors, palettes and
# the names of the models are in `figures/settings.yaml`. Write the lines to change into a file of your own, and pass it
# with `make figures SETTINGS=mine.yaml`. One figure is drawn again with
# `make figures FIGURE=fig2 FORMAT=svg WIDTH=120`.

# %% tags=["parameters"]
model_paths: list[str] = ["results/demo/k12/cae_nmf1_k12.h5ad", "results/demo/k12/cae_nmf2_k12.h5ad", "results/demo/k12/ae_nmf_k12.h5ad", "results/demo/k12/base_nmf_k12.h5ad"]  # results files to show  # noqa: E501  # fmt: skip
tables_dir: str = "results/demo/k12"  # folder with the tables of 06 and 10; cohort.csv is in the folder above
out_dir: str = "results/lab/figures"  # folder for the figures
settings: str = ""  # YAML file with entries of figures/settings.yaml that are to be replaced; '' for none
formats: list[str] = []  # such as svg; if empty, the formats of the settings
width: float = 0.0  # mm, of every figure; 0 for the widths of the settings
color_by: list[str] = []  # further columns of obs by which the UMAPs are colored, such as condition

# %%
from aenmf_lib import figures

look = figures.read_settings(settings, width=width, formats=formats)
tables = figures.RunTables(tables_dir, model_paths, color_by)

# %% [markdown]
# The captions report what the pictures do not show: the numbers of cells and seeds, skipped or missing models, and
# labels that have only one class. † marks models that were trained with the cell types, so that their scores against
# the cell types are not independent evidence.
#
# ## Figure 1: Do the embeddings contain cell types rather than donors?
# The upper panels show all scores of both benchmarks: against cell types on the left (higher is better), against donors
# on the right (lower is better). Each filled point is one seed, each open point is one fold, and the shapes are the
# classifiers. The points of a model are repeated computations on one embedding; they are not replicates of the
# experiment. The lower panels show the trade-off, with one labeled point per model. A thin line leads to the scores at
# other Leiden resolutions, or to those of each classifier. The arrow marks the best corner.

# %%
fig = figures.draw("fig1", tables, look)
figures.save(fig, out_dir)
fig

# %% [markdown]
# Conditioning works if a conditional model is closer to the best corner than AE-NMF and NMF: its scores against donors
# are lower, and its scores against cell types are at least as high. Trust a difference between two models only if it is
# larger than the spread of the points of each model, and if the thin lines do not cross.
#
# ## Figure 2: Which cells are close in each embedding?
# UMAPs of all embeddings, colored by cell type, by donor, and by the columns in `color_by`. A label has the same color
# in all panels, and types and donors have different palettes.

# %%
fig = figures.draw("fig2", tables, look)
figures.save(fig, out_dir)
fig

# %% [markdown]
# In a good embedding, each cell type is one group of cells, in which the donors are mixed. UMAP preserves neighborhoods
# but not distances: base conclusions on the scores of figure 1, not on this figure.
#
# ## Figure 3: Which cells use which program?
# Each row is one program of the first model, with its three largest genes, and its matched program in each other model.
# The color is the mean usage of a cell type, divided by the mean over the types. The lower panel lists, for each cell
# type, its most specific programs. The dendrogram orders the types by their usages.

# %%
fig = figures.draw("fig3", tables, look)
figures.save(fig, out_dir)
fig

# %% [markdown]
# A row with one strong color is a program of one cell type. A row with several strong colors is a program that these
# types share. If a row looks the same in all models, the program does not depend on the choice of the model.
#
# ## Figure 4: Which genes define the programs?
# Each column is one program of the first model, each row is one gene, and the color is its weight. Known markers, which
# are listed in the settings, are bold and have the name of their cell type. If notebook 10 was given gene sets
# (`GENE_SETS=sets.gmt`), dots show the sets that are enriched in each program.

# %%
fig = figures.draw("fig4", tables, look)
figures.save(fig, out_dir)
fig

# %% [markdown]
# Name a program after a cell type only if its markers have large weights in this program and in few others. A gene with
# a large weight in many programs is expressed by most cells.
#
# ## Figure 5: Do other models and other fits find the same programs?
# The heat maps show the cosines between the programs of two models, ordered so that matched pairs are on the diagonal.
# The dots are the cosines of the matched pairs, and the stability of the programs in other random starts. The stability
# in halves of the donors is added if `make consensus` and `make rank` have been run before; draw the figure again with
# `make figures FIGURE=fig5`.

# %%
fig = figures.draw("fig5", tables, look)
figures.save(fig, out_dir)
fig

# %% [markdown]
# A pair with a cosine near 1 is the same program in both models. Interpret a program with a small cosine in all models,
# or with a low stability, with care: another fit would not find it.
#
# ## Figure 6: What does the donor part contain?
# The conditional models reconstruct a cell from a shared part and a part of its donor. The figure shows the top genes
# of the donor part in each donor, compared with the other donors, and the share of the reconstruction that comes from
# this part. Below, it shows how much of the variance of each program's usage lies between donors and between types,
# before conditioning (AE-NMF) and after.

# %%
fig = figures.draw("fig6", tables, look)
figures.save(fig, out_dir)
fig

# %% [markdown]
# If conditioning works, the variance between donors is smaller in the conditional models, and the variance between
# types is not. Look at the genes of each donor: genes of sex chromosomes, of stress or of a batch are expected here.
# Markers of a cell type in this part mean that the model has also removed biology.
#
# ## Table 1: The benchmark
# The same scores as in figure 1, for a manuscript. The files are `table1.tex`, `table1.md` and `table1.csv`.

# %%
table = figures.draw("table1", tables, look)
figures.save(table, out_dir)
table

# %% [markdown]
# The four tables of notebook 06 (`clustering_cell_type.csv` …) have the same numbers, with the columns of the published
# tables.
#
# ## Figure S1: Did training converge?
# The loss of each model against the iteration, divided by the mean squared norm of a cell so that data sets can be
# compared.

# %%
fig = figures.draw("figS1", tables, look)
figures.save(fig, out_dir)
fig

# %% [markdown]
# Each line should fall and then flatten. Do not rank the models by their loss: their objectives contain different
# penalties, and NMF is free to choose H.
#
# ## Figure S3: Which cells entered the analysis?
# The cells of each donor (a), of each donor and type (b), and of each type (c). Donors with fewer cells than the dashed
# line were dropped.

# %%
fig = figures.draw("figS3", tables, look)
figures.save(fig, out_dir)
fig

# %% [markdown]
# If only one donor has a cell type, no model can separate the type from the effect of this donor. Figure S2 compares
# numbers of programs; notebook 12 draws it (`make rank K="5 10 20"`).
#
# ## Figure S4: Which cell types are confused?
# The points show how well each cell type is predicted from each embedding. The heat maps show, for each type (row), the
# types that were predicted (columns).

# %%
fig = figures.draw("figS4", tables, look)
figures.save(fig, out_dir)
fig

# %% [markdown]
# A dark square off the diagonal is a pair of types that the embedding does not separate. Such pairs are often closely
# related types.
#
# ## Figure S5: Does the ranking depend on the Leiden resolution?
# The agreement of the clusters with the labels at several resolutions. The published resolution is 0.8.

# %%
fig = figures.draw("figS5", tables, look)
figures.save(fig, out_dir)
fig

# %% [markdown]
# If the lines of two models cross, their ranking depends on the resolution and not only on the embeddings.
#
# All figures are in `results/<data set>/k<K>/figures/`. `make report` packs them as a website, together with the tables
# and the executed notebooks.
