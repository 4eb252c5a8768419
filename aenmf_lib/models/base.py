"""The base class of the models, the checks of their parameters, and the reconstruction error ‖X − HW‖ / ‖X‖."""

import inspect
import numbers
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import issparse
from sklearn.decomposition import non_negative_factorization
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from aenmf_lib.data.labels import CELL_TYPE, DONOR, gene_ids, gene_symbols
from aenmf_lib.data.streaming import CellStream
from aenmf_lib.results.files import write_model
from aenmf_lib.training.inputs import Cells, as_cells, iter_matrices
from aenmf_lib.training.second_moment import check_device_name

__all__ = ["relative_error"]

_COUNTS = ("k", "max_iter", "n_starts")
_WEIGHTS = ("tol", "gamma", "eta", "lambda_W", "lambda_U", "strength")
_SWITCHES = ("row_norm",)
_MAX_SEED = 2**32 - 1  # of scikit-learn


@dataclass(kw_only=True)
class Model:
    """Base class of the models: shared hyperparameters, defaults of fitted attributes, summaries of a fit."""

    k: int = 80
    seed: int = 42
    tol: float = 5e-4
    max_iter: int = 1000

    name: ClassVar[str]
    device: ClassVar[str] = "cpu"
    choices: ClassVar[dict[str, tuple]] = {}  # parameter -> its valid values

    # Values of fitted attributes that only some models set.
    symbols_ = U_ = overlap_ = gene_weights_ = penalty_ = None
    strength_, second_moment_ = 0.0, ""
    _donor_part = None  # of a loaded model 2: its donor part at the mean usages of all cells, (n_genes, n_donors)
    donors_ = starts_ = stability_ = checkpoint_files_ = ()
    donor_key_, cell_type_key_ = DONOR, CELL_TYPE

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check_parameter(name, value, self.choices.get(name))

    def _set_names(self, cells: object, donor_key: str, cell_type_key: str) -> None:
        """Store the names of the columns and the symbols of the genes. Raise ValueError if a column is not a name."""
        for option, key in (("donor_key", donor_key), ("cell_type_key", cell_type_key)):
            if not isinstance(key, str) or not key:
                raise ValueError(f"{option}={key!r} is not the name of a column. Pass the name of an obs column.")
        self.donor_key_, self.cell_type_key_ = donor_key, cell_type_key
        self.symbols_ = gene_symbols(var) if isinstance(var := getattr(cells, "var", None), pd.DataFrame) else None

    @property
    def uses_cell_type(self) -> bool:
        """Whether training reads the cell types. Scores against ``cell_type`` are then not label-free."""
        return False

    def fit_transform(self, cells: Cells, **fit_options) -> np.ndarray:
        """Fit the model to all cells and return their usages H.

        Parameters
        ----------
        cells : n_cells × n_genes
            As for `fit`, but not moments.
        fit_options
            Options of `fit`.

        Returns
        -------
        H : (n_cells, k)

        Raises
        ------
        TypeError, ValueError, MemoryError
            As `fit` does.
        """
        cells = as_cells(cells)
        return self.fit(cells, **fit_options).transform(cells)

    def refit(self, cells: Cells) -> np.ndarray:
        """Return the usages H ≥ 0 that fit the cells best for the fitted W, by least squares, (n_cells, k).

        Raises NotFittedError, TypeError or ValueError, as `transform` does.
        """
        usages, settings = [], {"n_components": self.k, "update_H": False, "tol": 1e-3, "max_iter": 50}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for X, _ in iter_matrices(check_genes(self, cells)):
                W = np.ascontiguousarray(self.W_, dtype=X.dtype)
                usages.append(non_negative_factorization(X, H=W, **settings)[0])
        return np.concatenate(usages)

    def embeddings(self, cells: Cells) -> dict[str, np.ndarray]:
        """Return the embeddings of cells by role, (n_cells, columns), as the results file stores them.

        ``shared`` is H. The conditional models also have ``cond_latent`` and ``concat_full``. Raises as `transform`
        does, and ValueError if the embeddings depend on the donors and a donor was not in the fit. Base NMF returns the
        usages of the fit, and raises ValueError for another number of cells.
        """
        cells, found = check_genes(self, cells), {}
        for part, rows in self.iter_embeddings(cells):
            for role, H in part.items():
                found.setdefault(role, np.empty((cells.n_obs, H.shape[1]), H.dtype))[rows] = H
        return found

    def save(self, path: str | Path) -> None:
        """Write the fitted model, without cells, to an ``.h5ad`` file that `results.load_model` reads.

        The file also contains U of model 2, and the usages `H_` of Base NMF. `results.write` writes the embeddings of
        the cells too. Raises NotFittedError, or OSError if the file cannot be written.
        """
        check_fitted(self)
        write_model(path, self)

    def summary(self) -> str:
        """Return one line: the iterations, why the fit stopped, the objective and the share of ‖X‖² explained."""
        loss = self.loss_history_.min()
        return (
            f"{self.name}: {self.n_iter_} iterations ({self.stop_reason_}); objective {loss:.6g}; "
            f"{1 - loss / self.sq_norm_per_cell_:.1%} of ‖X‖² explained, penalties counted as error"
        )

    def tie_cost(self, cells: Cells) -> str:
        """Return one line with the relative error for ``H = X Eᵀ`` and for the best H ≥ 0 (`refit`)."""
        encoded, free = (relative_error(cells, H, self.W_) for H in (self.transform(cells), self.refit(cells)))
        return f"{self.name}: ‖X − H W‖ / ‖X‖ = {encoded:.4f} with H = X Eᵀ, {free:.4f} with H by least squares"


def relative_error(cells: Cells, H: np.ndarray, W: np.ndarray) -> float:
    """Return ``‖X − H W‖ / ‖X‖`` for usages H (n_cells, k) and programs W (k, n_genes), without forming H W.

    Raises TypeError or ValueError if the cells are not valid or the shapes do not fit together.
    """
    error, squares = squared_error(cells, H, W)
    if not squares:
        raise ValueError("All values of X are 0, so no relative error exists. Pass cells with expression.")
    return float(np.sqrt(error / squares))


def squared_error(cells: Cells, H: np.ndarray, W: np.ndarray) -> tuple[float, float]:
    """Return ``‖X − H W‖²`` and ``‖X‖²``."""
    cells = as_cells(cells)
    H, W, squares, cross = np.asarray(H, dtype=np.float64), np.asarray(W, dtype=np.float64), 0.0, 0.0
    if H.ndim != 2 or W.ndim != 2 or (*H.shape, *W.shape) != (cells.n_obs, len(W), H.shape[1], cells.n_vars):
        raise ValueError(f"H has shape {H.shape} and W {W.shape}. Expected {cells.n_obs} cells × k and k × "
                         f"{cells.n_vars} genes. Pass H and W of one fit.")  # fmt: skip
    for X, rows in iter_matrices(cells):
        squares += np.square(X.data, dtype=np.float64).sum()
        cross += np.sum((X @ W.T) * H[rows])
    return squares - 2 * cross + np.sum((H.T @ H) * (W @ W.T)), squares


def check_rank(k: int, n_cells: int, n_genes: int) -> None:
    """Raise ValueError if there are fewer cells or genes than k programs."""
    if k > (most := min(n_cells, n_genes)):
        choose = f"Choose k between 1 and {most}." if most else "Pass at least one cell and one gene."
        raise ValueError(f"k={k} is too large for {n_cells:,} cells × {n_genes:,} genes. {choose}")


def check_fitted(model: Model) -> None:
    """Raise NotFittedError if the model is not fitted."""
    if not hasattr(model, "genes_"):
        raise NotFittedError(f"{model.name} is not fitted. Call fit first.")


def check_seeds(seed: int, n: int, what: str) -> None:
    """Raise ValueError if the last of the n seeds ``seed``, ``seed + 1`` … is too large."""
    if seed + n - 1 > _MAX_SEED:
        raise ValueError(f"seed={seed} is too large for {n} {what}. Choose at most {_MAX_SEED - n + 1}.")


def check_genes(model: Model, cells: Cells) -> AnnData | CellStream:
    """Return the checked cells; raise if the model is not fitted or was fitted to other genes.

    A matrix without names needs the number of genes of the fit. The versions of Ensembl ids may differ.
    """
    check_fitted(model)
    expected, named = model.genes_, not (issparse(cells) or isinstance(cells, np.ndarray))
    cells = as_cells(cells)
    if (not named and cells.n_vars == len(expected)) or (named and same_genes(cells.var_names, expected)):
        return cells
    found = f"{cells.n_vars} genes"
    if named:
        n_shared = len(gene_ids(expected).unique().intersection(gene_ids(cells.var_names)))
        order = ", in another order" if n_shared == cells.n_vars == len(expected) else ""
        found += f", of which {n_shared} are genes of the model{order}"
    raise ValueError(
        f"The cells have {found}. {model.name} was fitted to {len(expected)} genes and expects exactly these, in the "
        "order of the fit. Select them with cells[:, model.genes_]."
    )


def same_genes(names, expected) -> bool:
    """Return whether names of genes are equal, in the same order, apart from the versions of Ensembl ids."""
    return len(names) == len(expected) and (names.equals(expected) or gene_ids(names).equals(gene_ids(expected)))


def _check_parameter(name: str, value: object, choices: tuple | None) -> None:
    """Raise ValueError if a parameter has a wrong type, is out of range, or is not one of its choices."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    whole = number and isinstance(value, numbers.Integral)
    expected = ""
    if name in _COUNTS and not (whole and value >= 1):
        expected = "a whole number of at least 1"
    elif name in _WEIGHTS and not (number and 0 <= value < np.inf):
        expected = "a finite number of at least 0"
    elif name == "seed" and not (whole and 0 <= value <= _MAX_SEED):
        expected = f"a whole number from 0 to {_MAX_SEED}"
    elif name in _SWITCHES and not isinstance(value, bool | np.bool_):
        expected = "True or False"
    if expected:
        raise ValueError(f"{name}={value!r} is not valid. Choose {expected}.")
    if choices and (not isinstance(value, str | None) or value not in choices):
        raise ValueError(f"{name}={value!r} is unknown. Choose {' or '.join(map(repr, choices))}.")
    if name == "device":
        check_device_name(value)


def with_inherited_entries(model: type[Model]) -> type[Model]:
    """Insert the entries of its two parents into the docstring of a model, unless it has an entry of the same name."""
    docs = [inspect.cleandoc(of.__doc__) for of in (model.__mro__[2], model.__mro__[1], model)]
    for title in ("Parameters", "Attributes"):
        header = f"\n\n{title}\n{'-' * len(title)}\n"
        sections = [doc.split(header)[1].split("\n\n")[0] for doc in docs]
        entries = [entry for section in sections for entry in re.split(r"\n(?=\S)", section)]
        last = {re.split(" : |\n", entry)[0]: entry for entry in entries if not entry.startswith("U_, ")}
        docs[2] = docs[2].replace(header + sections[2], header + "\n".join(last.values()))
    model.__doc__ = docs[2]
    return model
