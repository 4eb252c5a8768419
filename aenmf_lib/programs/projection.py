"""Projection of new cells: the usages and the results file of cells and donors that were not in the fit."""

import contextlib
import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from aenmf_lib import results
from aenmf_lib.data import files, preprocessing
from aenmf_lib.data.counts import find_counts, read_counts
from aenmf_lib.data.labels import CELL_TYPE, DONOR, as_text
from aenmf_lib.data.progress import tqdm
from aenmf_lib.data.reading import open_cells
from aenmf_lib.data.streaming import CellStream, iter_blocks
from aenmf_lib.models.base import Model, check_fitted
from aenmf_lib.programs.alignment import LEAST, Alignment, align_genes
from aenmf_lib.programs.missing_genes import Completion
from aenmf_lib.programs.new_donors import DonorSums
from aenmf_lib.results.files import add_model, describe_cells, without_matrix
from aenmf_lib.results.schema import OBSM, PROJECTION, PROVENANCE
from aenmf_lib.training.inputs import as_cells

__all__ = ["project", "project_file"]

log = logging.getLogger(__name__)

_TOTAL, _TOLERANCE = 1e4, 0.01  # counts to which cells are scaled, and the relative tolerance of their sum
UNKNOWN = "unknown"  # type of all cells if the file contains no types
_MANY_OUTSIDE = 0.2  # a larger share of the counts in genes that the model does not have causes a warning


def project(
    model: Model | str | Path,
    cells: AnnData | str | Path,
    *,
    donor_key: str = DONOR,
    cell_type_key: str = CELL_TYPE,
    layer: str = "",
    gene_name_key: str = "",
    fractional: bool = False,
    min_coverage: float = LEAST,
) -> AnnData:
    """Compute the usages of new cells, also of new donors, and return them as the contents of a results file.

    Cells are normalized as in notebook 01: they are scaled to 10,000 counts over all genes of their file, then log1p is
    applied. Genes are matched by id or symbol, whichever finds more genes (`alignment.align_genes`). If genes of the
    model are missing, the usages are corrected to the same scale (`missing_genes.Completion`). If none is missing, the
    usages are bit-identical to ``model.transform``. For conditional models, the donor part of each donor is computed
    from its own cells, even if a donor of the fit has the same name (`new_donors.DonorSums`). No cell types are needed.

    Parameters
    ----------
    model
        A fitted model, or the path of its results file.
    cells
        An AnnData, or the path of a file, which is read in blocks.
    layer, fractional
        The matrix with the raw counts, and whether they may be fractional, as for `data.read_counts`. If there are no
        raw counts, X is used if `data.prepare` or notebook 01 made it, or if its expm1 adds up to 10,000 in each cell.
    donor_key, cell_type_key
        Columns of obs. If there is no ``donor_id``, all cells are of one donor. If there is no ``cell_type``, all cells
        get the type 'unknown'.
    gene_name_key
        Column of var with ids or symbols to match besides ``var_names``; '' searches the common columns.
    min_coverage
        Smallest median coverage of the programs by the genes of the cells, from 0 to 1 (see `alignment.align_genes`).

    Returns
    -------
    AnnData
        The contents of a results file, as from `results.write`, with the genes of the model and the obs of the cells:
        embeddings in obsm, programs in varm. ``uns['provenance']['projection']`` describes the overlap of the genes.

    Raises
    ------
    NotFittedError, OSError, TypeError, ValueError
        The model is not fitted; there are no cells or no genes; the cells have no raw counts, and no X that can be
        used; names are repeated; a given column is missing; a cell has no donor; or the coverage of the programs is
        too low.
    """
    begin = time.perf_counter()
    source = {}
    if not isinstance(model, Model):
        loaded = results.load_model(model)
        model, source = loaded, {"model_file": files.file_info(model)}
    check_fitted(model)
    new = _read(cells, layer, fractional)
    if not (new.cells.n_obs and new.cells.n_vars):
        raise ValueError(f"{new.name}: there are {new.cells.n_obs} cells × {new.cells.n_vars} genes. At least one of "
                         "each is expected. Check how the cells were selected.")  # fmt: skip
    donor, cell_type = _read_labels(new, donor_key, cell_type_key)
    aligned = align_genes(model, new.cells.var, gene_name_key=gene_name_key, min_coverage=min_coverage)
    outside = _share_outside(new.sample, aligned)
    completion = Completion(model, aligned, new.sample, totals=new.totals)
    donors, code = np.unique(donor, return_inverse=True)
    sums = DonorSums(completion, len(donors)) if getattr(model, "conditional", False) else None

    H, squares = np.zeros((new.cells.n_obs, model.k), np.float32), 0.0
    bar = tqdm(total=len(H), desc="project", unit="cell", unit_scale=True, mininterval=2, disable=len(H) < 10_000)
    for block, rows in iter_blocks(new.cells):
        X = completion.select(block)
        H[rows] = completion.usages(X)
        squares += np.square(X.data, dtype=np.float64).sum()
        if sums:
            sums.add(X, H[rows], code[rows])
        bar.update(X.shape[0])
    bar.close()

    projected, embeddings = _with_donors(model, donors.astype(str), sums, H, code)
    var = pd.DataFrame({} if model.symbols_ is None else {"feature_name": model.symbols_}, index=model.genes_)
    out = without_matrix(AnnData(obs=new.cells.obs, var=var), donor_key, cell_type_key)
    out.obs[DONOR], out.obs[CELL_TYPE] = pd.Categorical(donor), pd.Categorical(cell_type)
    for role, values in embeddings.items():
        out.obsm[OBSM[model.name][role].format(k=model.k)] = values
    add_model(out, projected, describe_cells(new.cells, donor_key, cell_type_key), donor_U=False)
    report = aligned.report() | {"count_share": completion.share, "share_outside_model": outside, **source}
    report |= {"sq_norm_per_cell": squares / len(H)}  # that in the provenance belongs to the cells of the fit
    out.uns[PROVENANCE][PROJECTION] = report | {"seconds": time.perf_counter() - begin}
    return out


def project_file(cells_path: str | Path, model_path: str | Path, out: str | Path, **options) -> None:
    """Project the cells of a file onto the model of a results file, and write the results file `out`.

    `cells_path` is a file of raw counts, ``.h5ad`` or ``.zarr``, `model_path` the results file of the model, and `out`
    another ``.h5ad``, which notebooks 06 and 07 score and draw like the results files of training. The `options` are
    those of `project`, which also lists the errors.
    """
    files.check_output(out, ".h5ad")
    for source in (cells_path, model_path):
        if _overwrites(Path(out), Path(source)):
            raise ValueError(f"out={out} would overwrite {source}, which is read. Choose another path for out.")
    cells = project(model_path, cells_path, **options)
    files.write_h5ad(cells, out)
    log.info("wrote %s: %d cells of %d donors, %.1f s", out, cells.n_obs, cells.obs[DONOR].nunique(),
             cells.uns[PROVENANCE][PROJECTION]["seconds"])  # fmt: skip


def _overwrites(out: Path, source: Path) -> bool:
    """Return whether `out` is the file `source`, also by a link, or is inside the folder `source`."""
    same = out.exists() and source.exists() and out.samefile(source)
    return same or source.resolve() in (out.resolve(), *out.resolve().parents)


@dataclass
class _NewCells:
    """Log-normalized cells."""

    cells: AnnData | CellStream
    sample: csr_matrix  # some of the cells
    totals: bool  # whether each cell is scaled to 10,000 counts over the genes in this file
    name: str  # name of the file without extension, or "new cells"


def _read(cells: AnnData | str | Path, layer: str, fractional: bool) -> _NewCells:
    """Return normalized cells, from raw counts or from a normalized X. A file is read later, in blocks."""
    if not isinstance(cells, AnnData | str | Path):
        raise TypeError(f"cells is a {type(cells).__name__}. Pass an AnnData, or the path of an .h5ad or .zarr file.")
    options = {"layer": layer, "fractional": fractional}
    if in_memory := isinstance(cells, AnnData):
        cells = cells.to_memory() if cells.isbacked else cells
    with contextlib.nullcontext(cells) if in_memory else open_cells(cells) as file:
        try:
            sample, totals, raw = preprocessing.normalize(find_counts(file, **options).sample), True, True
        except ValueError as error:
            if layer:
                raise
            sample, totals, raw = *_normalized_sample(file, error), False
    if not in_memory:
        stream = CellStream(cells, counts=raw, **options)
        stream.uns["input"] = files.file_info(cells)
        return _NewCells(stream, sample, totals, Path(cells).stem)
    if raw:
        counts, _ = read_counts(cells, **options)
        cells = AnnData(preprocessing.normalize(counts.X), obs=counts.obs, var=counts.var, uns=dict(cells.uns))
    return _NewCells(as_cells(cells), sample, totals, "new cells")


def _normalized_sample(file: object, error: ValueError) -> tuple[csr_matrix, bool]:
    """Return some cells of a normalized X, and whether each is scaled to 10,000 counts over the genes in the file.

    If X is not log1p of counts per 10,000, raises the `error` of the search for raw counts with an explanation.
    """
    try:
        sample = find_counts(file, counts=False).sample
    except ValueError:
        raise error from None
    sample.eliminate_zeros()
    with np.errstate(over="ignore"):
        counts = sample._with_data(np.expm1(sample.data.astype(np.float64)))
    found = np.asarray(counts.sum(axis=1)).ravel()[sample.getnnz(axis=1) > 0]
    if len(found) and sample.data.min() >= 0 and np.abs(found / _TOTAL - 1).max() <= _TOLERANCE:
        return sample, True
    made = file.uns.get(PROVENANCE, {}) if isinstance(file, AnnData) else file.get(f"uns/{PROVENANCE}", {})
    if len(found) and sample.data.min() >= 0 and "min_cells" in made and found.max() <= _TOTAL * (1 + _TOLERANCE):
        return sample, False  # notebook 01 removes genes after it has normalized the cells
    sums = f"between {found.min():.6g} and {found.max():.6g}" if len(found) else "0"
    raise ValueError(f"{error} Normalized values are accepted only if they are log1p of counts per 10,000. The sum of "
                     f"expm1(X) over the genes of a cell is {sums} in a sample, not 10,000.") from error  # fmt: skip


def _read_labels(new: _NewCells, donor_key: str, cell_type_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the donor and the type of each cell, (n_cells,) object. If some cells have a type, the others are NaN."""
    obs = new.cells.obs
    for option, key, default in (("donor_key", donor_key, DONOR), ("cell_type_key", cell_type_key, CELL_TYPE)):
        if key not in obs and key != default:
            columns = ", ".join(map(repr, obs)) or "none"
            raise ValueError(f"obs has no column {key!r}; its columns are {columns}. Set {option} "
                             f"({option.upper()}=…) to one of them, or do not set it.")  # fmt: skip
    if donor_key in obs:
        donor = as_text(obs[donor_key])
        if n := int(donor.isna().sum()):
            raise ValueError(f"obs[{donor_key!r}] is empty for {n} of {len(obs)} cells. Every cell needs a donor: fill "
                             "the column, or remove it to treat all cells as one donor.")  # fmt: skip
    else:
        log.warning("obs has no column %r, so all cells are of one new donor, %r. If another column contains the "
                    "donors, set donor_key (DONOR_KEY=…)", donor_key, new.name)  # fmt: skip
        donor = pd.Series(new.name, index=obs.index, dtype=object)
    cell_type = as_text(obs[cell_type_key]) if cell_type_key in obs else pd.Series(np.nan, obs.index, dtype=object)
    if cell_type.isna().all():  # benchmarks and figures leave out a label with one class
        log.info("There are no types in obs[%r], so all cells get the type %r, which has no scores",
                 cell_type_key, UNKNOWN)  # fmt: skip
        cell_type = cell_type.fillna(UNKNOWN)
    return donor.to_numpy(object), cell_type.to_numpy(object)


def _share_outside(sample: csr_matrix, aligned: Alignment) -> float:
    """Return the share of the counts in genes that the model does not have. Log a warning if it is large."""
    total = np.expm1(sample.data, dtype=np.float64).sum()
    known = sample[:, aligned.target >= 0]
    outside = 1 - float(np.expm1(known.data, dtype=np.float64).sum() / total) if total else 0.0
    if outside > _MANY_OUTSIDE:
        log.warning("%.0f %% of the counts are in genes that the model does not have. Each cell is scaled to 10,000 "
                    "counts over all genes of its file, as in training. If the training file did not contain these "
                    "genes, remove them first; otherwise the usages are too small", 100 * outside)  # fmt: skip
    return outside


def _with_donors(
    model: Model, donors: np.ndarray, sums: DonorSums | None, H: np.ndarray, code: np.ndarray
) -> tuple[Model, dict[str, np.ndarray]]:
    """Return the model with the donor part of the new donors, and the embeddings of their cells by role."""
    if sums is None:
        return model, {"shared": H}
    if known := sorted(map(str, set(donors) & set(model.donors_))):
        log.info("%d donors have the name of a donor of the fit (first: %r). Their donor part is computed anew from "
                 "the new cells", len(known), known[0])  # fmt: skip
    new = copy.copy(model)
    new.donors_, (new.U_, new.overlap_) = donors, sums.donor_part()
    if new.overlap_ is None:
        return new, {"shared": H}
    latent = new.overlap_[code] if model.by_donor is False else H * new.overlap_[code]
    latent = latent.astype(np.float32)
    return new, {"shared": H, "cond_latent": latent, "concat_full": np.hstack([H, latent])}
