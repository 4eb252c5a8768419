"""Reading the results files of one run: their embeddings, and facts about the models without their cells."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from aenmf_lib.data import files
from aenmf_lib.data.labels import CELL_TYPE, DONOR, LABELS, is_missing
from aenmf_lib.results import extra, schema
from aenmf_lib.results.files import NO_CELLS, embedding_of, read
from aenmf_lib.results.schema import CELLS, MODELS, OBSM, PROVENANCE, SKIPPED, USED_CELL_TYPE, RunInfo

log = logging.getLogger(__name__)

# columns that were donor_id and cell_type in the input: names in RunInfo -> names in the provenance
_COLUMNS = {"donor_column": "donor_key", "cell_type_column": "cell_type_key"}


@dataclass
class Embeddings:
    """The embeddings of the same cells: of the models in the order of `MODELS`, then of other methods by name."""

    H: dict[str, np.ndarray]  # model -> (n_cells, k) float32; the columns of another method may differ in number
    obs: pd.DataFrame  # one row per cell, in the order of H; cell_type (NaN if unknown) and donor_id are categorical
    run: RunInfo  # of the models; another method counts as trained without cell types
    versions: dict[str, str] = field(default_factory=dict)  # baseline -> its package with version, "harmonypy 2.1.0"

    def with_extra(self, entries: Sequence[str]) -> "Embeddings":
        """Return these embeddings and those of other methods, given as 'NAME=path:key of obsm'.

        Each file must contain all cells, in any order. Raises OSError or ValueError (see `extra.read`).
        """
        found = self.H | extra.read(entries, self.obs.index, self.H)
        H = {name: found[name] for name in [*filter(found.__contains__, MODELS), *sorted({*found} - {*MODELS})]}
        used = dict.fromkeys(H, False) | dict(self.run.used_cell_type)
        return replace(self, H=H, run=replace(self.run, used_cell_type=used))

    def annotate(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the columns `cell_type_in_training` and `version` to a table with a column `Model`.

        `version` is the package that computed a baseline, with its version; it is empty for models and for embeddings
        that were read from files.
        """
        version = [self.versions.get(name, "") for name in table["Model"]]
        return table.assign(**{USED_CELL_TYPE: table["Model"].map(self.run.used_cell_type), "version": version})

    def published(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return a table with one row per model, without other methods.

        If a model was skipped, it has a row without scores, and the reason is in the column `skipped`.
        """
        table = table[table["Model"].isin(MODELS)].reset_index(drop=True)
        if not (skipped := self.run.skipped):
            return table
        rows = pd.DataFrame({"Model": list(skipped), SKIPPED: list(skipped.values())})
        return pd.concat([table, rows], ignore_index=True)


def read_run(paths: Sequence[str | Path]) -> RunInfo:
    """Return the facts about a run, from one results file per model, without reading cells and embeddings.

    Raises ValueError if two files are of the same model, if the files differ in rank or number of cells, or if all
    models were skipped.
    """
    models, run = _read_facts(paths)
    n_cells = {path: _count_cells(path, name, run.k) for name, path in models.items()}
    first, *others = n_cells
    for path in others:
        if n_cells[path] != n_cells[first]:
            raise ValueError(f"{path} contains {n_cells[path]} cells and {first} {n_cells[first]}. The same cells are "
                             "expected. Train all models on one filtered file.")  # fmt: skip
    return replace(run, n_cells=n_cells[first])


def _read_facts(paths: Sequence[str | Path]) -> tuple[dict[str, str | Path], RunInfo]:
    """Return the files by model, without skipped models, in the order of `MODELS`; and the run, without `n_cells`."""
    if not paths:
        raise ValueError("No results file was given. Pass at least one path.")
    found, skipped, described = {}, {}, {}
    for path in paths:
        contents = read(path, with_cells=False)
        provenance = contents.uns.get(PROVENANCE, {})
        if reason := schema.skip_reason(contents.uns):
            skipped[str(provenance["model"])] = reason
            continue
        name, k = schema.identify(contents)
        if name in found:
            raise ValueError(f"{path} and {found[name][0]} are both of {name}. Pass one file per model.")
        if not found:
            first, rank = path, k
        if k != rank:
            raise ValueError(f"{path} is of rank {k}, but {first} is of rank {rank}. Pass models of the same rank.")
        # published files have no provenance: by their published settings, only model 1 read the cell types
        found[name] = path, bool(provenance.get(USED_CELL_TYPE, name == "CAE_NMF1"))
        described = described or dict(provenance.get(CELLS, {}))
    if not found:
        reasons = "; ".join(f"{model}: {reason}" for model, reason in skipped.items())
        raise ValueError(f"All models were skipped ({reasons}). Pass the file of a model that was trained.")
    files_of, used = ({name: found[name][i] for name in MODELS if name in found} for i in range(2))
    columns = {column: str(described[key]) for column, key in _COLUMNS.items() if key in described}
    skipped = {name: skipped[name] for name in MODELS if name in skipped}
    sampled_from = int(described.get("sampled_from", 0))
    return files_of, RunInfo(rank, None, used, sampled_from=sampled_from, skipped=skipped, **columns)


def _count_cells(path: str | Path, name: str, k: int) -> int:
    """Return the number of cells of a results file, from the shape of its embedding."""
    key = OBSM[name]["shared"].format(k=k)
    with files.open_cells(path) as file, files.guard(path, f"obsm/{key}"):
        shape = file[f"obsm/{key}"].shape if key in file.get("obsm", ()) else None
    if shape is None:
        raise ValueError(f"{path} {NO_CELLS}")
    return int(shape[0])


def read_embeddings(paths: Sequence[str | Path], role: str = "shared") -> Embeddings:
    """Read the embeddings of several models, one results file per model. Files of skipped models are left out.

    Raises ValueError if two files are of the same model, if the files differ in cells, labels or rank, if a label is
    missing, or if all models were skipped.
    """
    models, run = _read_facts(paths)
    H, obs = {}, None
    for name, path in models.items():
        cells = read(path)
        H[name] = embedding_of(cells, path, role)[2]
        _check_labels(cells.obs, path)
        if obs is None:
            first, obs = path, cells.obs
        _check_same_cells(obs, first, cells.obs, path)
    untyped = is_missing(obs[CELL_TYPE])
    if untyped.any():
        log.info("%d of %d cells have no %s: left out of the scores against it", untyped.sum(), len(obs), CELL_TYPE)
    obs = obs.assign(**{label: obs[label].mask(untyped & (label == CELL_TYPE)).astype("category") for label in LABELS})
    return Embeddings(H, obs, replace(run, n_cells=len(obs)))


def history(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Return the objective of each model during its training: ``Model, iteration, loss, relative_loss``.

    ``relative_loss`` is the loss divided by ‖X‖²/n. Base NMF has one row, because scikit-learn reports only the last
    value. Files without provenance and files of skipped models are left out. Raises ValueError if no file has a loss
    history.
    """
    if not paths:
        raise ValueError("No results file was given. Pass at least one path.")
    tables = []
    for path in paths:
        cells = read(path, with_cells=False)
        if reason := schema.skip_reason(cells.uns):
            log.info("%s: %s was skipped (%s)", path, cells.uns[PROVENANCE]["model"], reason)
            continue
        if (provenance := cells.uns.get(PROVENANCE)) is None:
            log.warning("%s has no provenance and so no loss history: left out of the training curves", path)
            continue
        loss = np.asarray(provenance["loss_history"])
        iteration = np.arange(len(loss)) if len(loss) > 1 else [provenance["n_iter"]]
        table = pd.DataFrame({"Model": schema.identify(cells)[0], "iteration": iteration, "loss": loss})
        tables.append(table.assign(relative_loss=loss / provenance["sq_norm_per_cell"]))
    if not tables:
        raise ValueError(f"No loss history in {', '.join(map(str, paths))}. Train the models again with this version.")
    table = pd.concat(tables, ignore_index=True)
    return table.sort_values("Model", key=lambda model: model.map(MODELS.index), kind="stable", ignore_index=True)


def _check_labels(obs: pd.DataFrame, path: str | Path) -> None:
    """Raise ValueError if a results file has no cell types or donors, or cells without a donor."""
    for label in LABELS:
        if label not in obs:
            columns = ", ".join(map(repr, obs.columns[:20])) or "none"
            option = "donor_key" if label == DONOR else "cell_type_key"
            raise ValueError(f"{path} has no obs column {label!r}, against which models are scored; its columns are "
                             f"{columns}. Name it in fit(…, {option}=…), and write the results again.")  # fmt: skip
    if n := int(is_missing(obs[DONOR]).sum()):
        raise ValueError(f"{path}: obs[{DONOR!r}] is empty for {n} of {len(obs)} cells. Every cell needs a donor to be "
                         "scored. Correct the column and write the results again.")  # fmt: skip


def _check_same_cells(obs: pd.DataFrame, path, other: pd.DataFrame, other_path) -> None:
    """Raise ValueError if two results files differ in their cells or labels."""
    advice = "Train all models on one filtered file."
    if not obs.index.equals(other.index):
        shared = len(obs.index.intersection(other.index))
        order = " in another order" if shared == len(obs) == len(other) else ""
        found = f"{other_path} contains {len(other)} cells and {path} {len(obs)}; {shared} are in both{order}"
        raise ValueError(f"{found}. The same cells in the same order are expected. {advice}")
    for label in LABELS:
        if n := int((obs[label].astype(str).to_numpy() != other[label].astype(str).to_numpy()).sum()):
            raise ValueError(f"{other_path} and {path} differ in obs[{label!r}] for {n} of {len(obs)} cells. {advice}")
