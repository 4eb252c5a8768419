"""The figures: each function takes tables and returns a Figure with its ``name`` and the ``table`` that it draws.

`run` (from ``Embeddings.run``) adds the rank, the number of cells, the skipped models and the training settings to the
caption, and the names of the user's columns. † marks models trained with cell types. All functions raise ValueError if
a table has no rows or lacks a column, or if a name is unknown or a number is not finite. A label with one class has
empty scores: its panels are left out, and the caption says so. `conditioning` draws no point for empty scores.
"""

from aenmf_lib.data.tables import read_table
from aenmf_lib.figures.cells import donors, programs, umap
from aenmf_lib.figures.curves import conditioning, loss_curve, training
from aenmf_lib.figures.differential import differential
from aenmf_lib.figures.ranks import rank
from aenmf_lib.figures.scores import classes, classification, clustering, resolution
from aenmf_lib.figures.style import save

FIGURES = ("clustering", "resolution", "classification", "classes", "umap", "programs", "training")  # of notebook 07

__all__ = [  # noqa: RUF022
    "clustering", "resolution", "classification", "classes", "umap", "programs", "training", "FIGURES", "conditioning",
    "differential", "donors", "loss_curve", "rank", "read_table", "save",
]  # fmt: skip
