# %% [markdown]
# # 01 · Filter the cells
# **Question.** Which cells enter the analysis, and in which units?  **Reads** an `.h5ad` file of single cells.
# **Writes** one file of filtered, normalized cells. All four models are trained on this file.

# %% tags=["parameters"]
data: str = "data/demo.h5ad"  # input file: cells × genes, with raw counts in a layer, raw.X or X
out: str = "results/demo/filtered.h5ad"  # output file
min_cells: int = 5000  # keep donors with at least this many cells
donor_key: str = "donor_id"  # obs column with the donor
cell_type_key: str = "cell_type"  # obs column with the cell type
layer: str = ""  # layer with the raw counts; '' searches raw.X and X
# rarely changed
keep_obs: list[str] = []  # further obs columns to keep
keep_unlabeled: bool = False  # keep cells without a type; scores against cell_type exclude these cells
drop_missing: bool = False  # drop cells without donor or type; if False, such cells are an error
drop_empty: bool = False  # drop cells without counts; if False, such cells are an error
fractional: bool = False  # accept counts that are not integers, as in a layer of corrected counts

# %%
import logging

from aenmf_lib import figures, results
from aenmf_lib.data import file_info, filter_cells, read_counts

logging.basicConfig(level=logging.INFO, format="%(message)s")

# %% [markdown]
# ## Find the raw counts
# Files store raw counts in different places: a layer, `raw.X` or `X`. Raw counts are integers and not negative. Scaled
# or log-normalized values are an error: to normalize them again would give wrong results without any warning.

# %%
counts, where = read_counts(data, layer=layer, fractional=fractional)
print(f"{counts.n_obs:,} cells × {counts.n_vars:,} genes, raw counts from {where}")

# %% [markdown]
# ## Keep the donors with enough cells, and normalize
# Each cell is scaled to 10,000 counts, then log1p is applied. This is the only normalization in the whole pipeline.
# Genes without a count in the remaining cells are dropped. The table below has one row per donor. The column `kept`
# shows whether the cells of this donor stay.

# %%
cells, donors = filter_cells(
    counts,
    min_cells=min_cells,
    donor_key=donor_key,
    cell_type_key=cell_type_key,
    keep_obs=keep_obs,
    drop_missing=drop_missing,
    keep_unlabeled=keep_unlabeled,
    drop_empty=drop_empty,
)
donors

# %% [markdown]
# The figure shows the same table. Each bar is a donor, and the vertical line is `min_cells`.

# %%
figures.donors(donors, min_cells=min_cells)

# %% [markdown]
# Donors whose bar does not reach the line are excluded. If you need such a donor, run the notebook with a smaller
# `min_cells`.
#
# ## Check that donors share their cell types
# The table counts the remaining cells by type and donor. Look for rows in which only one donor has cells.

# %%
cells.obs.groupby(["cell_type", "donor_id"], observed=True).size().unstack(fill_value=0)

# %% [markdown]
# If only one donor has a cell type, no method can separate the type from the effect of this donor. The scores of such a
# type say little about conditioning. In the demo, every type occurs in every donor.
#
# ## Write the filtered cells
# The output file also records the source of its cells: the input file with its hash, the donors, and the package
# versions.

# %%
cells.uns["provenance"] = {
    "input": file_info(data),
    "counts_from": where,
    "min_cells": min_cells,
    "donors": donors,
    **results.run_info(),
}
results.write_h5ad(cells, out)
cells
