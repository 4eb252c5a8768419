"""Skipping a model that cannot be trained on the cells: a results file then records the reason instead of results."""

import logging
from pathlib import Path

from anndata import AnnData

from aenmf_lib.data import files
from aenmf_lib.data.labels import DONOR, as_text
from aenmf_lib.data.provenance import run_info
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.results.files import describe_cells, without_matrix
from aenmf_lib.results.schema import MODELS, PROVENANCE, SKIPPED

log = logging.getLogger(__name__)


class Skipped(Exception):
    """A model was not trained, because it cannot be trained on these cells. The workflow goes on without it."""


def skip(path: str | Path, model, cells: AnnData | CellStream, reason: str) -> None:
    """Write a results file that only records why a model was skipped, and raise `Skipped`.

    Parameters
    ----------
    path
        The ``.h5ad`` file to write. It has the obs and the gene names of the cells, but no embedding.
    model
        The model, its class or its name.
    cells, reason
        The cells, and why the model is not trained on them.

    Raises
    ------
    Skipped
        Always, after the file is written.
    ValueError
        The model is unknown or the reason is empty.
    """
    name = getattr(model, "name", model)
    if name not in MODELS or not reason:
        raise ValueError(
            f"skip got model={name!r} and reason={reason!r}. Expected one of {', '.join(MODELS)}, and a reason."
        )
    out = without_matrix(cells)
    out.uns[PROVENANCE] = {"model": name, SKIPPED: reason, **describe_cells(cells), **run_info()}
    files.write_h5ad(out, path)
    log.warning("%s is skipped: %s", name, reason)
    raise Skipped(f"{name} is skipped: {reason}")


def require_donors(cells: AnnData | CellStream, out: str | Path, model) -> None:
    """Skip a model that compares donors (see `skip`) unless the cells are of at least two donors.

    Raises `Skipped` after it has written the file `out`, or ValueError if the cells have no column ``donor_id``.
    """
    if DONOR not in cells.obs:
        raise ValueError(f"The cells have no obs column {DONOR!r}. Pass a file of notebook 01_filter.")
    donors = as_text(cells.obs[DONOR]).dropna().unique()
    if len(donors) < 2:
        found = f"all cells are of one donor, {donors[0]!r}" if len(donors) else "no cell has a donor"
        skip(out, model, cells, f"{found}, and the model compares donors")
