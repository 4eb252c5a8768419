"""The figures: each function takes tables and returns a Figure with its ``name``, its ``table`` and its ``caption``.

`run` (from ``results.read_run``) adds the rank, the number of cells, the skipped models and the training settings to
the caption, and the names of the user's columns. `settings` (from `read_settings`) sets fonts, sizes and colors.
† marks models trained with cell types. All functions raise ValueError if a table has no rows, lacks a column or is of
another run, or if a name is unknown or a number is not finite. If there is nothing to draw, the figure says why.
"""

from importlib import import_module

from aenmf_lib.data.tables import read_table
from aenmf_lib.figures.settings import read_settings
from aenmf_lib.figures.style import save

# A figure is imported on first use, so that one figure is drawn without waiting for the libraries of the others.
_MODULES = {
    "fig1_benchmark": "benchmark",
    "fig2_embeddings": "embeddings",
    "fig3_programs": "programs",
    "fig4_loadings": "loadings",
    "fig5_matching": "matching",
    "fig6_donors": "donors",
    "figS1_training": "curves",
    "figS2_rank": "curves",
    "figS3_cohort": "cohort",
    "figS4_classes": "classes",
    "figS5_resolution": "benchmark",
    "table1": "table",
    "conditioning": "strengths",
    "differential": "differences",
    "loss_curve": "curves",
    "FIGURES": "run_figures",
    "RunTables": "run_figures",
    "draw": "run_figures",
}
__all__ = [*_MODULES, "read_settings", "read_table", "save"]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Available: {', '.join(__all__)}.")
    return getattr(import_module(f"aenmf_lib.figures.{_MODULES[name]}"), name)
