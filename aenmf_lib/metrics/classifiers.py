"""The classifiers of benchmark 2, and the fit and scores of one fold. Few imports, for fast worker start."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import sklearn
from scipy.stats import rankdata
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    import torch

METRICS = ("F1", "AUROC", "Precision", "Accuracy", "Recall")  # in the order of the published columns
LOGISTIC, KNN, FOREST = "logistic_regression", "knn", "random_forest"
INTELEX = "random_forest_intelex"  # named separately, because its scores differ
N_NEIGHBORS = 15


class Forest(ClassifierMixin):
    """The probabilities of `RandomForestClassifier(n_trees, random_state=seed)`, to the bit, with less memory.

    It grows and discards `at_once` trees at a time. Each node of a tree stores a count of every class, so with many
    cells and classes 200 trees need gigabytes in every worker.
    """

    def __init__(self, n_trees: int, seed: int, *, at_once: int = 20) -> None:
        self.n_trees, self.at_once = n_trees, at_once
        self.forest = RandomForestClassifier(random_state=seed, warm_start=True)

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Store the training cells, (n_train, k) and (n_train,)."""
        self.X, self.y, self.classes_ = X, y, np.unique(y)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Grow the trees and return the mean of their probabilities, (n_test, n_classes)."""
        X = np.asarray(X, np.float32)  # as RandomForestClassifier does
        total = np.zeros((len(X), len(self.classes_)))
        for done in range(0, self.n_trees, self.at_once):
            self.forest.n_estimators = min(done + self.at_once, self.n_trees)
            self.forest.fit(self.X, self.y)  # a warm start uses only the number of the earlier trees
            for tree in self.forest.estimators_[done:]:
                total += tree.predict_proba(X, check_input=False)
            self.forest.estimators_ = [None] * self.forest.n_estimators
        return total / self.n_trees


class OnGPU(ClassifierMixin):
    """The published pipeline of the logistic regression, computed by scikit-learn on a GPU.

    Objective, solver and stop are the same. Sums are rounded in another order, so the solver, which stops early, can
    stop one step earlier or later. A few cells per thousand then change class, as with another number of threads.
    """

    def __init__(self, pipeline: Pipeline, on: torch.device) -> None:
        if not get_tags(pipeline[-1]).array_api_support:
            found = f"scikit-learn {sklearn.__version__} cannot fit this classifier on a GPU."
            raise ValueError(f"{found} Install version 1.9 or later, or use device='cpu' (DEVICE=cpu).")
        self.pipeline, self.on = pipeline, on

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Fit the pipeline to the training cells, (n_train, k) and (n_train,)."""
        self.classes_ = np.unique(y)
        with self._arrays(X) as there:
            self.pipeline.fit(there, y)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return the probabilities, (n_test, n_classes)."""
        with self._arrays(X) as there:
            return self.pipeline.predict_proba(there).cpu().numpy()

    @contextlib.contextmanager
    def _arrays(self, X: np.ndarray) -> Iterator[torch.Tensor]:
        """Yield X on the GPU. Within the block, scikit-learn computes on the device of its input ("array API")."""
        from unittest import mock

        import torch

        from aenmf_lib.training.second_moment import tf32

        try:  # scikit-learn requires this variable; no function of scipy that reads it is called
            with (
                mock.patch.dict(os.environ, SCIPY_ARRAY_API="1"),
                sklearn.config_context(array_api_dispatch=True),
                tf32(False),
            ):
                yield torch.from_numpy(X).to(self.on)
        except torch.OutOfMemoryError as error:
            expected = "Set max_cells to a smaller number (MAX_CELLS=…), or use device='cpu' (DEVICE=cpu)."
            raise MemoryError(
                f"A logistic regression of {X.shape} numbers needs more memory than {self.on} has. {expected}"
            ) from error


def _intelex_forest(seed: int) -> ClassifierMixin:
    """Return the forest of scikit-learn-intelex: much faster, but with other trees and other scores."""
    return importlib.import_module("sklearnex.ensemble").RandomForestClassifier(200, random_state=seed, n_jobs=1)


CLASSIFIERS: dict[str, Callable[[int], ClassifierMixin]] = {  # the published ones: name -> classifier for a seed
    LOGISTIC: lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    KNN: lambda seed: make_pipeline(StandardScaler(), KNeighborsClassifier(N_NEIGHBORS)),
    FOREST: lambda seed: Forest(200, seed),
}
OTHERS = {INTELEX: _intelex_forest}


def find_classifiers(names: Sequence[str]) -> dict[str, Callable[[int], ClassifierMixin]]:
    """Return name -> classifier for a seed. Raise ValueError if one is unknown or not installed, or none is given."""
    known = CLASSIFIERS | OTHERS
    if not names or any(name not in known for name in names):
        raise ValueError(f"The classifiers are {list(names)}. Choose one or more of {', '.join(sorted(known))}.")
    try:
        for name in names:
            known[name](0)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"The classifier {INTELEX!r} needs a package that is not installed ({error.name}). Run `pip install "
            f"scikit-learn-intelex`, or choose {FOREST!r}."
        ) from error
    return {name: known[name] for name in names}


def fit_fold(
    make: Callable, seed: int, H: np.ndarray, cells: np.ndarray, y: np.ndarray, test: np.ndarray, names: np.ndarray
) -> dict:
    """Train the classifier ``make(seed)`` on one thread on the cells outside a fold, and score it on those of the fold.

    H is (all cells, k); `cells` (n_cells,) are the rows of H that are used; class y (n_cells,), an index into `names`
    (n_classes,); `test` (n_cells,) bool marks the fold. Returns the keys of `score_fold` and `converged`.
    """
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted = make(seed).fit(H[cells[~test]], y[~test])
        probability = fitted.predict_proba(H[cells[test]])
    others = [warning for warning in caught if not issubclass(warning.category, ConvergenceWarning)]
    for warning in others:  # show them; the caller counts the fits that did not converge
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    converged = len(others) == len(caught)
    return score_fold(y[test], fitted.classes_, probability, names) | {"converged": converged}


def score_fold(truth: np.ndarray, classes: np.ndarray, probability: np.ndarray, names: np.ndarray) -> dict:
    """Return the scores of the predicted probabilities of the cells of one fold.

    A class is scored if both the training cells and the fold contain cells of it. Cells without training cells of their
    class are left out. `truth` (n_test,) is the class of each cell, an index into `names` (n_classes,); `classes`
    (n_learned,), ascending, are those of the training cells; `probability` is (n_test, n_learned).

    The keys are `METRICS` (means over the scored classes; accuracy over cells), `n_scored` cells, and `by_class`, a
    JSON text: class names, indices of the scored classes, their AUROC, and counts (class, predicted class) of cells.
    """
    n_classes, known = len(names), np.isin(truth, classes)
    truth, probability = truth[known], probability[known]
    predicted = classes[probability.argmax(axis=1)]  # as `predict`, which would compute the probabilities again
    counts = np.bincount(truth * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)
    scored = np.flatnonzero(counts.sum(axis=1))
    precision, recall, f1 = (values[scored].mean() for values in precision_recall_f1(counts))
    area = _auroc(truth, classes, probability)[np.isin(classes, scored)]
    scores = dict(zip(METRICS, (f1, area.mean(), precision, np.trace(counts) / counts.sum(), recall), strict=True))
    by_class = {"classes": names.tolist(), "scored": scored.tolist(), "AUROC": area.tolist(), "counts": counts.tolist()}
    return scores | {"n_scored": len(truth), "by_class": json.dumps(by_class, separators=(",", ":"))}


def precision_recall_f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall and F1 of each class from counts (true class, predicted class); 0 / 0 is 0."""
    true, correct, predicted = counts.sum(axis=1), np.diag(counts), counts.sum(axis=0)
    precision, recall = correct / np.maximum(predicted, 1), correct / np.maximum(true, 1)
    return precision, recall, 2 * correct / np.maximum(true + predicted, 1)


def _auroc(truth: np.ndarray, classes: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return the AUROC of each class against the rest, (n_learned,); NaN if all cells or none are of the class.

    Computed from ranks, with mean ranks for ties (Mann and Whitney 1947): equal to `sklearn.metrics.roc_auc_score` in a
    tenth of the time. With two classes, both get the AUROC of the second, as in scikit-learn.
    """
    is_class = truth[:, None] == classes
    n = is_class.sum(axis=0)
    with np.errstate(invalid="ignore"):
        rank_sum = np.where(is_class, rankdata(probability, axis=0), 0).sum(axis=0)
        area = (rank_sum - n * (n + 1) / 2) / (n * (len(truth) - n))
    return np.repeat(area[1:], 2) if len(classes) == 2 else area
