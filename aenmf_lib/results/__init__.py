"""Results files: their keys, writing and reading them, and their provenance."""

from importlib import import_module

from aenmf_lib.data.files import write_h5ad
from aenmf_lib.data.provenance import run_info
from aenmf_lib.data.tables import write_table
from aenmf_lib.results.files import checkpoint_path, embedding, read, write
from aenmf_lib.results.runs import Embeddings, history, read_embeddings, read_run
from aenmf_lib.results.schema import GENE_WEIGHTS, MODELS, OBSM, VARM, RunInfo, check, identify
from aenmf_lib.results.skipping import Skipped, require_donors

__all__ = [
    "GENE_WEIGHTS", "MODELS", "OBSM", "VARM", "Embeddings", "RunInfo", "Skipped", "check", "checkpoint_path",
    "embedding", "history", "identify", "load_model", "read", "read_embeddings", "read_run", "require_donors",
    "run_info", "write", "write_h5ad", "write_table",
]  # fmt: skip


def __getattr__(name: str):
    # Imported on first use, because the package `models` imports this package.
    if name == "load_model":
        return import_module("aenmf_lib.models.loading").load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Available: {', '.join(__all__)}.")
