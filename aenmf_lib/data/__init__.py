"""Which cells and genes enter, in what units."""

from aenmf_lib.data.files import file_info, open_h5ad, read_h5ad
from aenmf_lib.data.preprocessing import (
    CELL_TYPE,
    DONOR,
    LABELS,
    TARGET_SUM,
    filter_cells,
    is_missing,
    load,
    normalize,
    read_counts,
)
from aenmf_lib.data.simulation import simulate
from aenmf_lib.data.streaming import CellStream, load_stream

__all__ = [
    "CELL_TYPE",
    "DONOR",
    "LABELS",
    "TARGET_SUM",
    "CellStream",
    "file_info",
    "filter_cells",
    "is_missing",
    "load",
    "load_stream",
    "normalize",
    "open_h5ad",
    "read_counts",
    "read_h5ad",
    "simulate",
]
