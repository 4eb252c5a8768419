"""The figures: each function takes tables and returns a Figure with its ``name`` and the ``table`` that it draws.

`run` (from ``Embeddings.run``) adds the rank, the number of cells and the training settings to the caption. † marks
models trained with cell types. All functions raise ValueError if a table has no rows or lacks a column, or if a name is
unknown or a number is not finite; `conditioning` allows empty scores, and draws no point for them.
"""

from aenmf_lib.figures.cells import donors, programs, umap
from aenmf_lib.figures.curves import conditioning, loss_curve, training
from aenmf_lib.figures.scores import classes, classification, clustering, resolution
from aenmf_lib.figures.style import save
from aenmf_lib.figures.tables import model_files, read_table

FIGURES = ("clustering", "resolution", "classification", "classes", "umap", "programs", "training")  # of notebook 07

__all__ = [  # noqa: RUF022
    "clustering", "resolution", "classification", "classes", "umap", "programs", "training", "FIGURES", "conditioning",
    "donors", "loss_curve", "model_files", "read_table", "save",
]  # fmt: skip
