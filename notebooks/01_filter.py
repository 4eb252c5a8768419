# %% [markdown]
# # 01 · Filter the cells
# **Question.** Which cells enter, and in what units?  **Reads** an `.h5ad` of single cells.  **Writes** one file of
# filtered, normalized cells that all four models train on.

# %% tags=["parameters"]
data: str = "data/demo.h5ad"  # cells × genes, raw counts somewhere inside
out: str = "results/demo/filtered.h5ad"  # the filtered cells
min_cells: int = 5000  # keep donors with at least this many cells
donor_key: str = "donor_id"  # obs column of the donor
cell_type_key: str = "cell_type"  # obs column of the cell type
layer: str = ""  # layer of raw counts; '' finds raw.X, or X
fractional: bool = False  # let counts be fractions, for layers of corrected counts
keep_obs: list[str] = []  # more obs columns to keep
drop_missing: bool = False  # leave out cells without donor or type; otherwise they are an error
keep_unlabeled: bool = False  # keep cells without type: in the data term of the models, in no score against the type
drop_empty: bool = False  # leave out cells without counts; otherwise they are an error

# %%
import logging

from aenmf_lib import results
from aenmf_lib.data import file_info, filter_cells, read_counts
from aenmf_lib.figures import embeddings

logging.basicConfig(level=logging.INFO, format="%(message)s")

# %% [markdown]
# ## Find the raw counts
# Files differ in where they keep them: a layer, `raw.X` or `X`. Whatever is taken must hold integers and nothing
# negative; scaled or log-normalized values are refused, since normalizing twice would go unseen.

# %%
counts, where = read_counts(data, layer=layer, fractional=fractional)
print(f"{counts.n_obs} cells × {counts.n_vars} genes, raw counts from {where}")

# %% [markdown]
# ## Keep the donors that have enough cells, and normalize
# Each cell is scaled to 10 000 counts and log1p is taken, once, here. Genes without a count in the kept cells are
# left out.

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
# Each bar is a donor; those left of the line are out.

# %%
embeddings.donors(donors, min_cells=min_cells)

# %% [markdown]
# What is left, type by donor. A type that one donor alone has cannot be told from that donor: keep it in mind when
# reading what conditioning does.

# %%
cells.obs.groupby(["cell_type", "donor_id"], observed=True).size().unstack(fill_value=0)

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
