# %% [markdown]
# # 01 · Filter the cells
# **Question.** Which cells enter the analysis, and in which units?  **Reads** a file of single cells, `.h5ad` or
# `.zarr`.  **Writes** one file of filtered, normalized cells, on which all models are trained, and `cohort.csv`, the
# number of cells of each donor and type.

# %% tags=["parameters"]
data: str = "data/demo.h5ad"  # input file: cells × genes, with raw counts in a layer, raw.X or X
out: str = "results/lab/filtered.h5ad"  # output file
out_dir: str = "results/lab"  # folder for cohort.csv
min_cells: int = 500  # keep donors with at least this many cells; 0 means 5,000, or fewer if the donors are small
donor_key: str = "donor_id"  # obs column with the donor
cell_type_key: str = "cell_type"  # obs column with the cell type
gene_name_key: str = ""  # var column with the gene symbols; '' searches the usual names
layer: str = ""  # matrix with the raw counts: a layer, X or raw.X; '' searches all of them
# rarely changed
keep_obs: list[str] = []  # further obs columns to keep; if empty, all are kept
keep_unlabeled: bool = False  # keep cells without a type; scores against cell_type exclude these cells
drop_missing: bool = False  # drop cells without donor or type; if False, such cells are an error
drop_empty: bool = False  # drop cells without counts; if False, such cells are an error
drop_labels: list[str] = []  # donors and types whose cells are dropped, such as unknown or doublet
merge_labels: bool = False  # merge labels that differ only in case or spaces
primary_only: bool = False  # drop cells that CELLxGENE does not mark as primary data
fractional: bool = False  # accept counts that are not integers, as in a layer of corrected counts
sample_cells: int = 0  # keep at most this many random cells; 0 keeps all
seed: int = 42  # random seed of the sample

# %%
import logging

from aenmf_lib import figures, results
from aenmf_lib.data import filter_cells

logging.basicConfig(level=logging.INFO, format="%(message)s")

# %% [markdown]
# ## Keep the donors with enough cells, and normalize
# Files store raw counts in different places: a layer, `raw.X` or `X`. Raw counts are integers and not negative. Scaled
# or log-normalized values are an error: to normalize them again would give wrong results without any warning.
#
# Each cell is scaled to 10,000 counts, then log1p is applied. This is the only normalization in the whole pipeline.
# Genes without a count in the remaining cells are dropped. All columns of `obs` and `var` are kept.
#
# The file is read in blocks, so it can be larger than memory. This code reads all counts, checks them, and
# chooses the cells and genes to keep. Read its messages. They report labels such as `unknown` or `doublet`, labels that
# differ only in case or spaces, and how many types have cells of several donors. Nothing is dropped or merged unless a
# parameter says so. The table below has one row per donor. Its column `kept` shows whether the donor is kept.

# %%
cells, cohort = filter_cells(
    data,
    layer=layer,
    min_cells=min_cells,
    donor_key=donor_key,
    cell_type_key=cell_type_key,
    gene_name_key=gene_name_key,
    keep_obs=keep_obs,
    drop_missing=drop_missing,
    keep_unlabeled=keep_unlabeled,
    drop_empty=drop_empty,
    drop_labels=drop_labels,
    merge_labels=merge_labels,
    primary_only=primary_only,
    fractional=fractional,
    sample=sample_cells,
    seed=seed,
)
cells.uns["provenance"]["donors"]

# %% [markdown]
# The figure shows the cells of each donor (a), of each donor and type (b), and of each type (c). The dashed line is the
# minimum number of cells. Its table is written as `cohort.csv`, and notebook 07 draws the figure again for the paper.

# %%
results.write_table(cohort, f"{out_dir}/cohort.csv")
figures.figS3_cohort(cohort, run=results.RunInfo(donor_column=donor_key, cell_type_column=cell_type_key))

# %% [markdown]
# Donors whose bar does not reach the line are excluded. If you need such a donor, run the notebook with a smaller
# `min_cells`. If `sample_cells` is set, the sample is drawn from the donors that stay, and each donor keeps its share.
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
# The remaining cells are read again, normalized and written, block by block. The output file also records the source of
# its cells: the input file with its hash, the columns, the donors, and the package versions. In Python,
# `data.prepare(path, min_cells=…)` reads, filters and normalizes the cells in one call, and returns them in memory.

# %%
cells.uns["provenance"] |= results.run_info()
results.write_h5ad(cells, out)
cells
