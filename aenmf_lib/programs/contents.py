"""Input of the tables of programs: the programs of a fit, and sums of its usages by cell type and donor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from aenmf_lib import results
from aenmf_lib.data.labels import CELL_TYPE, DONOR, as_text, gene_symbols
from aenmf_lib.models.base import Model
from aenmf_lib.models.matching import check_programs
from aenmf_lib.results import schema
from aenmf_lib.results.files import embedding_of
from aenmf_lib.training.inputs import Cells, as_cells

_BLOCK = 65536  # number of cells whose usages are converted to float64 at a time


@dataclass
class UsageSums:
    """Sums of the usages over groups of cells with one type and one donor. Missing labels are ''."""

    groups: pd.DataFrame  # one row per group: cell_type, donor_id, n_cells
    sums: np.ndarray  # (n_groups, k), of usages
    squares: np.ndarray  # (n_groups, k), of squared usages

    @classmethod
    def of(cls, H: np.ndarray, types: pd.Series | None, donors: pd.Series | None) -> "UsageSums":
        """Return the sums of the usages H (n_cells, k) over groups."""
        missing = np.full(len(H), "", dtype=object)
        labels = [missing if names is None else as_text(names).fillna("").to_numpy() for names in (types, donors)]
        (of_type, types), (of_donor, donors) = (pd.factorize(names, sort=True) for names in labels)
        present, codes = np.unique(of_type * len(donors) + of_donor, return_inverse=True)
        groups = pd.DataFrame({CELL_TYPE: types[present // len(donors)], DONOR: donors[present % len(donors)]})
        groups["n_cells"] = np.bincount(codes)
        sums, squares = np.zeros((2, len(groups), H.shape[1]))
        for lo in range(0, len(H), _BLOCK):
            block, at = np.asarray(H[lo : lo + _BLOCK], dtype=np.float64), codes[lo : lo + _BLOCK]
            members = csr_matrix((np.ones(len(at)), (at, np.arange(len(at)))), (len(groups), len(at)))
            sums += members @ block
            squares += members @ block**2
        return cls(groups, sums, squares)

    @property
    def typed(self) -> "UsageSums":
        """The groups of cells with a type."""
        typed = (self.groups[CELL_TYPE] != "").to_numpy()
        return UsageSums(self.groups[typed], self.sums[typed], self.squares[typed])

    def by_type(self) -> tuple[pd.Series, pd.DataFrame]:
        """Return the number of cells (n_types,) and the sums of usages (n_types, k) of each type."""
        types = self.groups[CELL_TYPE].to_numpy()
        return self.groups["n_cells"].groupby(types).sum(), pd.DataFrame(self.sums).groupby(types).sum()


@dataclass
class Contents:
    """The programs of one fit, their genes, and the sums of their usages."""

    name: str
    W: np.ndarray | None = None  # (k, n_genes) float64
    genes: pd.Index | None = None  # (n_genes,) ids
    symbols: np.ndarray | None = (
        None  # (n_genes,), with the id of a gene that has no symbol; None: the ids of all genes
    )
    usages: UsageSums | None = None
    sq_norm: float | np.ndarray = np.nan  # ‖X‖²; of projected cells (k,), divided by the coverage of the programs
    stability: pd.DataFrame = field(default_factory=pd.DataFrame)  # empty with one start
    skipped: str = ""  # why the model was not trained; all other fields are then empty

    def __post_init__(self) -> None:
        if self.symbols is None and self.genes is not None:
            self.symbols = self.genes.astype(str).to_numpy(dtype=object)

    @property
    def norms(self) -> np.ndarray:
        """Norm ‖h_j‖ of the usages of each program over all cells, (k,)."""
        return np.sqrt(self.usages.squares.sum(0))

    @property
    def specificity(self) -> np.ndarray:
        """Share of each program in the reconstruction of each gene, ``‖h_j‖ W_jg / Σ_i ‖h_i‖ W_ig``, (k, n_genes)."""
        parts = self.norms[:, None] * self.W
        total = parts.sum(0)
        return parts / np.where(total > 0, total, 1)


def read_fits(
    models: str | Path | Model | Sequence[str | Path | Model], cells: Cells | None = None
) -> tuple[dict[str, Contents], dict[str, str]]:
    """Return the contents of the trained models, in the order of `results.MODELS`, and the reason of each skipped one.

    Raises the errors of `read_contents`, and ValueError if two models are of the same kind or if all were skipped.
    """
    fits, skipped, given = {}, {}, {}
    for model in [models] if isinstance(models, str | Path | Model) else models:
        fit = read_contents(model, cells)
        if fit.name in given:
            raise ValueError(f"{given[fit.name]} and {model} are both of {fit.name}. Pass one model of each kind.")
        given[fit.name] = model
        if fit.skipped:
            skipped[fit.name] = fit.skipped
        else:
            fits[fit.name] = fit
    if not fits:
        reasons = "; ".join(f"{name} was skipped: {reason}" for name, reason in skipped.items()) or "the list is empty"
        raise ValueError(f"There is no trained model ({reasons}). Pass the file of a model that was trained.")
    return {name: fits[name] for name in results.MODELS if name in fits}, skipped


def read_contents(model: str | Path | Model, cells: Cells | None = None) -> Contents:
    """Return the contents of a results file, or of a fitted model or saved model with its cells."""
    if cells is None:
        if isinstance(model, Model):
            raise ValueError(f"The usages of this {model.name} are unknown. Pass its cells too, or pass the path of "
                             "its results file instead of the model.")  # fmt: skip
        return _from_file(model)
    model = model if isinstance(model, Model) else results.load_model(model)
    H = model.embeddings(cells)["shared"] if model.name == "Base_NMF" else model.transform(cells)
    cells = as_cells(cells)
    symbols = gene_symbols(cells.var)
    return Contents(
        name=model.name,
        W=check_programs(model.W_, f"W of {model.name}"),
        genes=model.genes_,
        symbols=model.symbols_ if symbols is None else symbols,
        usages=UsageSums.of(H, *(cells.obs.get(key) for key in (model.cell_type_key_, model.donor_key_))),
        sq_norm=model.sq_norm_per_cell_ * cells.n_obs,
        stability=pd.DataFrame(model.stability_),
    )


def _from_file(path: str | Path) -> Contents:
    """Return the contents of a results file."""
    found = results.read(path)
    provenance = found.uns.get(schema.PROVENANCE, {})
    if reason := schema.skip_reason(found.uns):
        return Contents(str(provenance["model"]), skipped=reason)
    name, k, H, _ = embedding_of(found, path, "shared")
    return Contents(
        name=name,
        W=check_programs(found.varm[schema.VARM[name]["W"].format(k=k)].T, f"{path}: W"),
        genes=found.var_names,
        symbols=gene_symbols(found.var),
        usages=UsageSums.of(H, found.obs.get(CELL_TYPE), found.obs.get(DONOR)),
        sq_norm=_sq_norm_per_cell(provenance) * found.n_obs,
        stability=pd.DataFrame(provenance.get("stability", {})),
    )


def _sq_norm_per_cell(provenance: Mapping) -> float | np.ndarray:
    """Return ‖X‖² / n. Of projected cells, X has only the found genes: it is divided by their share of each ‖w‖²."""
    if schema.PROJECTION not in provenance:
        return float(provenance.get("sq_norm_per_cell", np.nan))
    projection = provenance[schema.PROJECTION]
    with np.errstate(divide="ignore"):
        return float(projection.get("sq_norm_per_cell", np.nan)) / np.asarray(projection.get("coverage", 1.0))
