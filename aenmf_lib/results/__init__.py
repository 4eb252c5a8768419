"""What is on disk, under which key, and what made it."""

from aenmf_lib.data.files import write_h5ad, write_table
from aenmf_lib.results.files import Embeddings, embedding, history, read, read_embeddings, write
from aenmf_lib.results.provenance import run_info
from aenmf_lib.results.schema import (
    GENE_WEIGHTS,
    GROUPS,
    META,
    MODELS,
    OBSM,
    PROVENANCE,
    U_DONOR,
    VARM,
    RunInfo,
    check,
    identify,
)

__all__ = [
    "GENE_WEIGHTS",
    "GROUPS",
    "META",
    "MODELS",
    "OBSM",
    "PROVENANCE",
    "U_DONOR",
    "VARM",
    "Embeddings",
    "RunInfo",
    "check",
    "embedding",
    "history",
    "identify",
    "read",
    "read_embeddings",
    "run_info",
    "write",
    "write_h5ad",
    "write_table",
]
