"""Benchmark 2: how well simple classifiers predict a label from an embedding, by F1 and AUROC.

Classes with at least 10 cells; five stratified folds under each of five seeds; logistic regression and 15 nearest
neighbors on z-scored columns, and a forest of 200 trees: 75 fits per model and label, equal to those of scikit-learn.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from aenmf_lib.data.preprocessing import LABELS, is_missing
from aenmf_lib.metrics import classifiers as fitting
from aenmf_lib.metrics import knn, neighbors
from aenmf_lib.metrics.classifiers import FOREST, INTELEX, KNN, LOGISTIC, METRICS
from aenmf_lib.metrics.score_cache import ScoreCache, fingerprint, mean_and_std, run_parallel, source_code
from aenmf_lib.metrics.splits import PUBLISHED, Splits, assign_donor_folds, assign_folds, stratified_subset
from aenmf_lib.metrics.validation import check_inputs

if TYPE_CHECKING:
    import torch

__all__ = ["confusion", "cross_validate", "per_class", "summarize"]

logger = logging.getLogger(__name__)

SEEDS = (42, 52, 62, 72, 82)
_KEY = ("Model", "label", "classifier", "seed", "fold")
_SETTINGS = ("n_cells", "n_classes", "min_cells_per_class", "max_cells")
LONG = [*_KEY, *METRICS, *_SETTINGS]  # columns of the table with one row per fit


@dataclass(frozen=True)
class _Task:
    """The cells, classes and folds of one label."""

    cells: np.ndarray  # (n_cells,) rows of obs that are classified
    names: np.ndarray  # (n_classes,) names of the classes
    y: np.ndarray  # (n_cells,) class of each of these cells, an index into `names`
    fold_of: dict[int, np.ndarray]  # seed -> (n_cells,) fold of each cell, -1 if the fold is not scored
    settings: dict[str, int]  # the columns _SETTINGS
    made_from: str  # fingerprint

    def folds(self, seed: int) -> list[int]:
        """Return the folds of a seed that are scored; -1 stands for none."""
        found = np.unique(self.fold_of[seed]).tolist()
        return [fold for fold in found if fold >= 0] or [-1]

    def unscored(self) -> dict:
        """Return the scores of a fit with fold -1."""
        counts = np.zeros((len(self.names), len(self.names)), int).tolist()
        by_class = json.dumps({"classes": self.names.tolist(), "scored": [], "AUROC": [], "counts": counts})
        return dict.fromkeys(METRICS, np.nan) | {"n_scored": 0, "by_class": by_class, "converged": True}


def cross_validate(
    H: Mapping[str, np.ndarray],
    obs: pd.DataFrame,
    *,
    labels: Sequence[str] = LABELS,
    splits: Splits = PUBLISHED,
    classifiers: Sequence[str] = (LOGISTIC, KNN, FOREST),
    seeds: Sequence[int] = SEEDS,
    n_jobs: int = -1,
    device: str = "cpu",
    cache: str | Path | None = None,
) -> pd.DataFrame:
    """Train and score every classifier on every fold of every embedding, for each label.

    Parameters
    ----------
    H : model name -> (n_cells, k); obs : (n_cells, columns)
        Embeddings, from `results.read_embeddings`, and their cells with the columns `labels`, which are predicted.
    splits
        Which cells, and which folds. With `held_out`, cells of a class without training cells are not scored.
    classifiers
        The published three, some of them, or 'random_forest_intelex' (scikit-learn-intelex: fast, with other trees).
    seeds
        One set of folds each, the same for all models and classifiers; also the seeds of the forests.
    n_jobs, cache
        Parallel fits of one thread each (-1: one per core), and a file that records each fit; see `ScoreCache`.
    device
        'cpu', 'cuda' or 'cuda:<number>'. A GPU computes the neighbors and the logistic regressions. The neighbors
        are the same. In the mean over folds, F1, AUROC, accuracy and recall of the regressions differ by up to 0.0005;
        the precision of a class that is rarely predicted can differ more. The forests are computed on the CPU.

    Returns
    -------
    One row per fit, ordered by model, label, classifier, seed and fold: the columns `LONG`, then `n_scored` and
    `by_class`, which `per_class` and `confusion` read. Precision, recall and F1 are means over classes (macro; 0 for a
    class that is never predicted); AUROC is the mean over classes of one against the rest. If a seed has no fold that
    can be scored, for example because a label has one class, its row has fold -1 and empty scores.

    Raises
    ------
    ValueError
        The embeddings, labels, seeds or splits do not fit together; a classifier is unknown or not installed.
    RuntimeError
        `device` is a GPU that this machine does not have.
    """
    check_inputs(H, obs, [*labels, *filter(None, [splits.held_out])], seeds)
    makers = fitting.find_classifiers(classifiers)
    on = neighbors.gpu(device)
    on_gpu = [name for name in makers if name in (LOGISTIC, KNN)] if on else []
    if on_gpu:
        logger.info("%s: computed on %s; other classifiers on the CPU", " and ".join(on_gpu), device)
    if LOGISTIC in on_gpu:
        makers[LOGISTIC] = lambda seed: fitting.OnGPU(fitting.CLASSIFIERS[LOGISTIC](seed), on)
    tasks = {label: _task(obs, label, splits, seeds) for label in labels}
    packages = ["scikit-learn", "numpy", "scipy", *(["scikit-learn-intelex"] if INTELEX in classifiers else [])]
    source = source_code("metrics/classifiers.py", "metrics/splits.py", "metrics/knn.py")
    code = fingerprint(source, packages=packages)  # other code may give other scores
    gpu_code = fingerprint(source_code("metrics/neighbors.py"), packages=["torch"]) if on_gpu else ""
    model_ids = {model: fingerprint(usages, code) for model, usages in H.items()}
    fits = {
        (model, label, classifier, seed, fold): model_ids[model]
        + tasks[label].made_from
        + gpu_code * (classifier in on_gpu)
        for model, label, classifier, seed in product(H, labels, classifiers, seeds)
        for fold in tasks[label].folds(seed)
    }
    scores = ScoreCache(
        cache, [*_KEY, *METRICS, "n_scored", "by_class", "converged", *_SETTINGS], _KEY, text=["by_class"]
    )
    worker = partial(_fit, H=H, tasks=tasks, makers=makers, n_jobs=n_jobs, on=on)
    long = scores.evaluate(fits, worker, description="classification", unit="fit")
    unconverged = long[~long["converged"]]
    if len(unconverged):
        logger.warning(
            "%d of %d logistic regressions did not converge (first: %s, seed %d, fold %d, %s). They are scored anyway.",
            *(len(unconverged), (long["classifier"] == LOGISTIC).sum()),
            *unconverged.iloc[0][["label", "seed", "fold", "Model"]],
        )
    return long[[*LONG, "n_scored", "by_class"]]


def _task(obs: pd.DataFrame, label: str, splits: Splits, seeds: Sequence[int]) -> _Task:
    """Choose the cells that are classified for a label, and assign their folds."""
    cells = stratified_subset(obs, label, splits)
    names, y = np.unique(obs[label].astype(str).to_numpy(object)[cells], return_inverse=True)
    if len(names) < 2:
        groups, fold_of = np.empty(0), np.full((len(seeds), len(y)), -1)
    elif splits.held_out:
        groups = obs[splits.held_out].astype(str).to_numpy()[cells]
        fold_of = assign_donor_folds(y, names, groups, seeds, splits, label)
    else:
        groups, fold_of = np.empty(0), assign_folds(y, seeds, splits.n_splits)
    sizes = splits.min_cells_per_class, splits.max_cells
    settings = dict(zip(_SETTINGS, (len(cells), len(names), *sizes), strict=True))
    made_from = fingerprint(cells, names, y, groups, splits.n_splits, *sizes)
    return _Task(cells, names, y, dict(zip(seeds, fold_of, strict=True)), settings, made_from)


def _fit(
    missing: list[tuple],
    H: Mapping,
    tasks: Mapping[str, _Task],
    makers: Mapping[str, Callable],
    n_jobs: int,
    on: torch.device | None,
) -> Iterator[tuple[tuple, dict]]:
    """Yield key and scores of each missing fit; one neighbor search serves all folds of a model and label.

    Only this process uses the GPU `on`, because some clusters allow one process per GPU.
    """
    yield from ((key, tasks[key[1]].unscored() | tasks[key[1]].settings) for key in missing if key[4] < 0)
    missing = [key for key in missing if key[4] >= 0]
    pairs: dict[tuple[str, str], list] = {}  # model and label -> seeds and folds
    for model, label, classifier, seed, fold in missing:
        if classifier == KNN:
            pairs.setdefault((model, label), []).append((seed, fold))
    for (model, label), wanted in pairs.items():
        task = tasks[label]
        for (seed, fold), *found in knn.probabilities(H[model][task.cells], task.y, task.fold_of, wanted, n_jobs, on):
            scores = fitting.score_fold(task.y[task.fold_of[seed] == fold], *found, task.names)
            yield (model, label, KNN, seed, fold), scores | {"converged": True} | task.settings

    def arguments(model: str, label: str, classifier: str, seed: int, fold: int) -> tuple:
        task = tasks[label]
        return makers[classifier], seed, H[model], task.cells, task.y, task.fold_of[seed] == fold, task.names

    # Models and classifiers alternate, so that the progress bar estimates the time from both slow and fast fits.
    divisions = [(label, seed) for label, task in tasks.items() for seed in task.fold_of]
    others = [key for key in missing if key[2] != KNN]
    others.sort(key=lambda key: (divisions.index((key[1], key[3])), key[4]))
    on_gpu = [key for key in others if on and key[2] == LOGISTIC]
    for keys, n in ((on_gpu, 1), ([key for key in others if key not in on_gpu], n_jobs)):
        for key, scores in run_parallel(fitting.fit_fold, ((key, arguments(*key)) for key in keys), n):
            yield key, scores | tasks[key[1]].settings


def transfer_f1(H: np.ndarray, labels: pd.Series, n_training: int, classifier: str) -> float:
    """Return the F1 of a classifier that is trained on the first `n_training` cells and tested on the others.

    H is (n_cells, k). Cells without a label are left out. NaN if no class occurs in both parts.
    """
    labeled = np.flatnonzero(~is_missing(labels))
    names, y = np.unique(labels.iloc[labeled].astype(str), return_inverse=True)
    test = labeled >= n_training
    if not np.isin(y[test], y[~test]).any():
        return np.nan
    return fitting.fit_fold(fitting.CLASSIFIERS[classifier], 42, H, labeled, y, test, names)["F1"]


def summarize(long: pd.DataFrame, label: str) -> pd.DataFrame:
    """Summarize the fits of one label in the published table format: mean and standard deviation (ddof 1) over fits.

    The columns are `Model, MeanFoldF1, F1_std, MeanFoldAUROC, AUROC_std, …` (all `METRICS`), `n_rows` (the number of
    fits), `n_cells, n_classes, min_cells_per_class`; one row per model in the order of `results.MODELS`, then of other
    methods. A label without rows, and fits with different numbers of cells or classes, raise a ValueError.
    """
    return mean_and_std(long, label, METRICS, _SETTINGS[:3], names=("MeanFold{}", "{}_std"))


def per_class(long: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of each class: mean and standard deviation (ddof 1) over the fits that scored it.

    The columns are `Model, label, classifier, class, n_cells, F1, F1_std, AUROC, AUROC_std, Precision, Precision_std,
    Recall, Recall_std, n_fits`. `n_cells` is the number of cells of the class that were scored under one seed. A class
    without scores has an empty row.
    """
    group, n_seeds = ["Model", "label", "classifier", "class"], long["seed"].nunique()
    metrics, rows = ["F1", "AUROC", "Precision", "Recall"], []
    for fit in long.itertuples():
        found = json.loads(fit.by_class)
        about = fit.Model, fit.label, fit.classifier
        if fit.fold < 0:
            rows += [(*about, name, 0.0, *[np.nan] * len(metrics)) for name in found["classes"]]
            continue
        counts = np.array(found["counts"])
        precision, recall, f1 = fitting.precision_recall_f1(counts)
        for c, area in zip(found["scored"], found["AUROC"], strict=True):
            rows.append((*about, found["classes"][c], counts[c].sum() / n_seeds, f1[c], area, precision[c], recall[c]))
    classes = pd.DataFrame(rows, columns=[*group, "n_cells", *metrics]).groupby(group, sort=False)
    table = classes[["n_cells"]].sum().round().astype(int)
    for metric in metrics:
        table[metric], table[f"{metric}_std"] = classes[metric].mean(), classes[metric].std()
    return table.assign(n_fits=classes["F1"].count()).reset_index()


def confusion(long: pd.DataFrame) -> pd.DataFrame:
    """Return how many cells of each class were predicted as each class, over all folds and seeds of a classifier.

    The columns are `Model, label, classifier, class, predicted, n_cells`, for the pairs that occur.
    """
    group, tables = ["Model", "label", "classifier"], []
    for values, fits in long.groupby(group, sort=False):
        found = [json.loads(text) for text in fits["by_class"]]
        classes = np.array(found[0]["classes"], object)
        shape = len(classes), len(classes)
        counts = sum(np.array(fit["counts"], int).reshape(shape) for fit in found)
        true, predicted = counts.nonzero()
        pairs = {"class": classes[true], "predicted": classes[predicted], "n_cells": counts[true, predicted]}
        tables.append(pd.DataFrame({**dict(zip(group, values, strict=True)), **pairs}))
    return pd.concat(tables, ignore_index=True)
