"""The figures of one run, drawn from its tables: without the cells and their embeddings, one figure takes seconds."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from aenmf_lib import figures
from aenmf_lib.data.tables import read_table
from aenmf_lib.figures.settings import Settings
from aenmf_lib.figures.style import NO_RUN, Sheet
from aenmf_lib.results import MODELS, RunInfo, history, read_run

log = logging.getLogger(__name__)

# figure -> the tables that its function takes, in the order of its arguments; with "?": None if there is no such file
_TABLES = {
    "fig1_benchmark": ["clustering_long", "classification_long", "clustering_resolution"],
    "fig2_embeddings": ["umap", "color_by"],
    "fig3_programs": ["usage_by_type", "program_cards", "program_matches"],
    "fig4_loadings": ["programs", "program_cards", "gene_set_enrichment", "usage_by_type"],
    "fig5_matching": ["program_matches", "program_cards", "consensus?", "rank?"],
    "fig6_donors": ["donor_genes", "donor_share", "program_cards"],
    "figS1_training": ["history"],
    "figS3_cohort": ["cohort"],
    "figS4_classes": ["classification_by_class", "classification_confusion"],
    "figS5_resolution": ["clustering_resolution"],
    "table1": ["clustering_long", "classification_long"],
    "figS2_rank": ["rank"],
    "conditioning": ["conditioning"],
    "differential": ["differential_usage", "program_cards"],
}
_OTHER_NOTEBOOKS = ("figS2_rank", "conditioning", "differential")
FIGURES = tuple(name for name in _TABLES if name not in _OTHER_NOTEBOOKS)  # of notebook 07
_OF_DATA_SET = ("cohort", "rank")  # tables in the folder above that of the run
_OF_MODEL = ("programs", "program_cards")  # tables with one file per model
_NOT_OF_RESULTS = ("cohort", "rank", "consensus", "conditioning")  # tables that are made without the results files


class RunTables:
    """The tables of one run. A table is read when a figure needs it, and only once.

    Parameters
    ----------
    tables_dir
        The folder of the run, ``results/<data set>/k<K>``. The tables of the data set are in the folder above.
    model_paths
        The results files of the run, of which only the facts about the models are read. If None, the files
        ``<model>_k<K>.h5ad`` in the folder.
    color_by
        Further columns of obs by which `fig2_embeddings` colors the cells.
    """

    def __init__(
        self, tables_dir: str | Path, model_paths: Sequence[str | Path] | None = None, color_by: Sequence[str] = ()
    ) -> None:
        self.folder, self.color_by = Path(tables_dir), list(color_by)
        self.model_paths = _find_models(self.folder) if model_paths is None else list(model_paths)
        self._read: dict[str, object] = {}

    @cached_property
    def run(self) -> RunInfo:
        """Facts about the models, for captions."""
        return read_run(self.model_paths)

    def __getitem__(self, name: str) -> object:
        """Return a table by the name of its file, such as ``clustering_long``, with all models.

        ``umap`` are the coordinates, ``history`` the losses in training. Raises FileNotFoundError if its file does not
        exist.
        """
        if name not in self._read:
            self._read[name] = self._load(name)
        return self._read[name]

    def _load(self, name: str) -> object:
        """Read a table."""
        paths = self.paths(name)
        if name == "color_by":
            return self.color_by
        if name == "history":
            return history(self.model_paths)
        if name == "umap":
            from aenmf_lib.data.files import read_h5ad
            from aenmf_lib.figures.embeddings import add_columns

            if not paths[0].is_file():
                raise FileNotFoundError(f"{paths[0]} does not exist. Run 06_benchmarks, or pass another folder.")
            return add_columns(read_h5ad(paths[0]), self.model_paths[0], self.color_by)
        if name not in _OF_MODEL:
            return read_table(*paths)
        models = zip(self.run.used_cell_type, paths, strict=True)
        table = pd.concat([read_table(path).assign(Model=model) for model, path in models], ignore_index=True)
        table.attrs["source"] = str(self.folder / f"{name}_<model>.csv")
        return table[["Model", *table.columns.drop("Model")]]

    def paths(self, name: str) -> list[Path]:
        """Return the files of a table, of which some may not exist; none for ``color_by`` and ``history``."""
        if name in ("color_by", "history"):
            return []
        if name in _OF_MODEL:
            return [self.folder / f"{name}_{model.lower()}.csv" for model in self.run.used_cell_type]
        folder = self.folder.parent if name in _OF_DATA_SET else self.folder
        return [folder / f"{name}.{'h5ad' if name == 'umap' else 'csv'}"]


def draw(name: str, tables: RunTables, settings: Settings | None = None) -> Sheet:
    """Draw one figure of a run. Warn if a table is older than the results file of a model.

    Parameters
    ----------
    name
        The name of a figure, or its beginning, such as ``fig2``. `FIGURES` lists those of notebook 07; figS2_rank,
        conditioning and differential can be drawn if their notebooks have run.
    tables, settings
        The tables of the run, and the settings from `read_settings`; None for the default settings.

    Raises
    ------
    ValueError, FileNotFoundError
        No figure or several have this name, or a table does not exist, is not valid, or belongs to another run.
    """
    name = _find(name)
    arguments = [_take(tables, table) for table in _TABLES[name]]
    _warn_if_old(name, tables)
    return getattr(figures, name)(*arguments, run=_facts(name, tables), settings=settings)


def _find_models(folder: Path) -> list[Path]:
    """Return the results files in the folder of a run. Raise FileNotFoundError if there is none."""
    # [0-9]: not the programs of a consensus
    found = [path for model in MODELS for path in sorted(folder.glob(f"{model.lower()}_k[0-9]*.h5ad"))]
    if not found:
        expected = "Expected results/<data set>/k<K> after 'make train', or model_paths"
        raise FileNotFoundError(f"{folder} contains no results file such as ae_nmf_k12.h5ad. {expected}.")
    return found


def _warn_if_old(name: str, tables: RunTables) -> None:
    """Warn if a table was made before the results file that it should describe."""
    models = [path for path in map(Path, tables.model_paths) if path.is_file()]
    newest = max(models, key=lambda path: path.stat().st_mtime_ns, default=None)
    read = [table.rstrip("?") for table in _TABLES[name]]
    for path in [path for table in read if table not in _NOT_OF_RESULTS for path in tables.paths(table)]:
        if newest and path.is_file() and path.stat().st_mtime_ns < newest.stat().st_mtime_ns:
            goal = name if name in _OTHER_NOTEBOOKS else "figures"
            log.warning("warning: %s is older than %s: 'make %s' computes it again", path, newest, goal)
            return


def _facts(name: str, tables: RunTables) -> RunInfo:
    """Return the facts for the caption. Studies of the cells fit their own models, also before those of the run."""
    if name not in ("figS2_rank", "conditioning"):
        return tables.run
    if name == "conditioning" and all(Path(path).is_file() for path in tables.model_paths):
        return replace(tables.run, used_cell_type={}, skipped={})
    return NO_RUN


def _take(tables: RunTables, table: str) -> object:
    """Return a table; None if it is optional and has not been made."""
    try:
        return tables[table.rstrip("?")]
    except FileNotFoundError:
        if table.endswith("?"):
            return None
        raise


def _find(name: str) -> str:
    """Return the name of the figure that begins with a text. Raises ValueError unless there is exactly one."""
    found = [figure for figure in _TABLES if figure.startswith(name)] if name else []
    found = [name] if name in found else found
    if len(found) != 1:
        several = f"stands for {', '.join(found)}" if found else "is not a figure"
        raise ValueError(f"{name!r} {several}. Expected one of {', '.join(_TABLES)}, or its beginning, such as fig2.")
    return found[0]
