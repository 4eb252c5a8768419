"""Cells: reading raw counts, filtering, normalizing, streaming from disk and simulating."""

from aenmf_lib.data.counts import read_counts
from aenmf_lib.data.files import file_info, read_h5ad
from aenmf_lib.data.filtering import filter_cells, prepare
from aenmf_lib.data.labels import CELL_TYPE, DONOR, LABELS, gene_ids
from aenmf_lib.data.preprocessing import normalize
from aenmf_lib.data.simulation import simulate
from aenmf_lib.data.streaming import CellStream, load, load_stream

__all__ = [
    "CELL_TYPE", "DONOR", "LABELS", "CellStream", "file_info", "filter_cells", "gene_ids", "load",
    "load_stream", "normalize", "prepare", "read_counts", "read_h5ad", "simulate",
]  # fmt: skip
