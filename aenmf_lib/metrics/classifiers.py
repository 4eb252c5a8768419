"""How is one classifier fitted on one fold, and scored? What a worker of benchmark 2 does.

Imports little, for every worker pays for it.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

METRICS = ("F1", "AUROC", "Precision", "Accuracy", "Recall")  # in the order of the published columns
LOGISTIC, KNN, FOREST = "logistic_regression", "knn", "random_forest"  # the published three
N_NEIGHBORS = 15
CLASSIFIERS: dict[str, Callable[[int], ClassifierMixin]] = {  # name -> classifier for a seed
    LOGISTIC: lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    KNN: lambda seed: make_pipeline(StandardScaler(), KNeighborsClassifier(N_NEIGHBORS)),
    FOREST: lambda seed: Forest(200, seed),
}


def _intelex(seed: int) -> ClassifierMixin:
    forest = importlib.import_module("sklearnex.ensemble").RandomForestClassifier
    return forest(200, random_state=seed, n_jobs=1)


FORESTS = {FOREST: CLASSIFIERS[FOREST], f"{FOREST}_intelex": _intelex}  # another forest has another name in every row


class Forest(ClassifierMixin):
    """The probabilities of `RandomForestClassifier(n_trees, random_state=seed)`, a few trees at a time.

    The same trees and the same bits. But a tree keeps a count of every class in each of its nodes: 200 at once take
    gigabytes where cells and classes are many, and every worker has its own.
    """

    def __init__(self, n_trees: int, seed: int, *, at_once: int = 20) -> None:
        self.n_trees, self.at_once = n_trees, at_once
        self.forest = RandomForestClassifier(random_state=seed, warm_start=True)

    def fit(self, X: np.ndarray, y: np.ndarray) -> Forest:
        """Keep the cells to learn from, (n_train, k) and (n_train,)."""
        self.X, self.y, self.classes_ = X, y, np.unique(y)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Grow the trees and give their mean, (n_test, n_classes)."""
        X = np.asarray(X, np.float32)  # as the forest does
        total = np.zeros((len(X), len(self.classes_)))
        for done in range(0, self.n_trees, self.at_once):
            self.forest.n_estimators = min(done + self.at_once, self.n_trees)
            self.forest.fit(self.X, self.y)  # a warm start: only their number is asked of the trees before
            for tree in self.forest.estimators_[done:]:
                total += tree.predict_proba(X, check_input=False)
            self.forest.estimators_ = [None] * self.forest.n_estimators
        return total / self.n_trees


def named(name: tuple, *args) -> tuple[tuple, dict]:
    """Give a name back beside what `fit` gives: workers answer in any order."""
    return name, fit_fold(*args)


def fit_fold(
    make: Callable[[int], ClassifierMixin],
    H: np.ndarray,
    cells: np.ndarray,
    names: np.ndarray,
    y: np.ndarray,
    fold_of: np.ndarray,
    seed: int,
    fold: int,
) -> dict:
    """Fit a classifier on one thread to the cells outside a fold, and score it on those within.

    Parameters
    ----------
    make
        Gives the classifier for a seed.
    H : (all cells, k)
    cells : (n_cells,)
        Rows of H that are classified.
    names : (n_classes,)
    y, fold_of : (n_cells,), int
        Class and fold of each of them.

    Returns
    -------
    See `score`; and `converged`.
    """
    test = fold_of == fold
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted = make(seed).fit(H[cells[~test]], y[~test])
        probability = fitted.predict_proba(H[cells[test]])
    converged = True
    for warning in caught:  # counted by the caller; any other warning goes on to the reader
        if issubclass(warning.category, ConvergenceWarning):
            converged = False
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return score_fold(y, test, fitted.classes_, probability, names) | {"converged": converged}


def score_fold(
    y: np.ndarray, test: np.ndarray, classes: np.ndarray, probability: np.ndarray, names: np.ndarray
) -> dict:
    """Score the probabilities of one fold's cells.

    A class is scored if there are cells of it on both sides: of others nothing could be learnt, or asked. Cells of a
    class that was not learnt are left out.

    Parameters
    ----------
    y : (n_cells,), int
    test : (n_cells,), bool
    classes : (n_learnt,)
        What the columns of `probability` stand for, ascending.
    probability : (n_test, n_learnt)
    names : (n_classes,)

    Returns
    -------
    The `METRICS`: means over the scored classes, accuracy over cells; `n_scored`, the number of cells they are of; and
    as json `by_class`: the classes, which of them were scored, AUROC of each of these, and the counts of cells of each
    class (rows) that were taken for each.
    """
    truth, n_classes = y[test], len(names)
    known = np.isin(truth, classes)
    truth, probability = truth[known], probability[known]
    predicted = classes[probability.argmax(axis=1)]  # as `predict` does, which would compute all this again
    counts = np.bincount(truth * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)
    precision, recall, f1 = precision_recall_f1(counts)
    scored = np.flatnonzero(counts.sum(axis=1))
    area = auroc(truth, classes, probability)[np.isin(classes, scored)]
    told = {"classes": names.tolist(), "scored": scored.tolist(), "AUROC": area.tolist(), "counts": counts.tolist()}
    return {
        "F1": f1[scored].mean(),
        "AUROC": area.mean(),
        "Precision": precision[scored].mean(),
        "Accuracy": np.trace(counts) / counts.sum(),
        "Recall": recall[scored].mean(),
        "n_scored": len(truth),
        "by_class": json.dumps(told, separators=(",", ":")),
    }


def precision_recall_f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give precision, recall and F1 of each class from the counts of its cells (rows) taken for each; 0 for 0 / 0."""
    of, hit, taken = counts.sum(axis=1), np.diag(counts), counts.sum(axis=0)
    return hit / np.maximum(taken, 1), hit / np.maximum(of, 1), 2 * hit / np.maximum(of + taken, 1)


def auroc(y: np.ndarray, classes: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Give the area under the ROC curve of each class against the rest, NaN where there is no cell of it or no other.

    From the ranks of its cells, ties shared (Mann and Whitney 1947): the same as `sklearn.metrics.roc_auc_score`, in a
    tenth of the time. Of two classes the first has the area of the second, as there.
    """
    is_class = y[:, None] == classes
    n = is_class.sum(axis=0)
    with np.errstate(invalid="ignore"):
        area = (np.where(is_class, rankdata(probability, axis=0), 0).sum(axis=0) - n * (n + 1) / 2) / (n * (len(y) - n))
    return np.repeat(area[1:], 2) if len(classes) == 2 else area
