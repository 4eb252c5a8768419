"""How F1 and AUROC are made: benchmark 2, how well plain classifiers read a label from an embedding.

Classes with at least 10 cells; `StratifiedKFold(5, shuffle=True)` under five seeds; logistic regression and 15 nearest
neighbors on z-scored columns, and a forest of 200 trees: 75 fits for each model and label. Every number is what the
plain scikit-learn pipeline gives; added here are the choice of cells, one worker a core, and the tables.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.base import ClassifierMixin
from tqdm import tqdm

from aenmf_lib.data.preprocessing import LABELS
from aenmf_lib.metrics import classifiers, knn, splits
from aenmf_lib.metrics.classifiers import CLASSIFIERS, FOREST, FORESTS, KNN, LOGISTIC, METRICS, N_NEIGHBORS
from aenmf_lib.metrics.score_cache import FINGERPRINT, ScoreCache, fingerprint
from aenmf_lib.metrics.splits import assign_donor_folds, assign_folds, stratified_subset
from aenmf_lib.metrics.validation import check_embeddings, check_labels, select_label
from aenmf_lib.results.schema import MODELS

logger = logging.getLogger(__name__)

_CODE = classifiers, splits, knn  # other code may score otherwise: it is scored again
_PACKAGES = "scikit-learn", "numpy", "scipy"

SEEDS = (42, 52, 62, 72, 82)
_KEY = ("Model", "label", "classifier", "seed", "fold")
_SETTINGS = ("n_cells", "n_classes", "min_cells_per_class", "max_cells", "cell_type_in_training")
_SCORES = (*METRICS, "n_scored", "by_class", "converged")
LONG = [*_KEY, *METRICS, *_SETTINGS]  # columns of the long table


def cross_validate(
    H: Mapping[str, np.ndarray],
    obs: pd.DataFrame,
    *,
    used_cell_type: Mapping[str, bool],
    labels: Sequence[str] = LABELS,
    seeds: Sequence[int] = SEEDS,
    n_splits: int = 5,
    min_cells_per_class: int = 10,
    max_cells: int = 0,
    subset_seed: int = 42,
    n_jobs: int = -1,
    forest: str = FOREST,
    classifiers: Sequence[str] | None = None,
    unseen: str | None = None,
    store: str | Path | None = None,
) -> pd.DataFrame:
    """Fit every classifier on every fold of every embedding, against each label: a row a fit.

    A seed decides the folds, which are the same for all models and classifiers, and the forest. Precision, recall and
    F1 are means over classes (macro; a class never predicted counts 0); AUROC is the mean over classes of one against
    the rest. Of two classes the one that sorts last is the positive one; its AUROC is also that of the other.

    Parameters
    ----------
    H : model name -> (n_cells, k)
        Embeddings, as `results.read_embeddings` gives them. Used in their own floating type.
    obs : (n_cells, columns)
        Holds the columns named in `labels`.
    used_cell_type : model name -> bool
        Whether `cell_type` was used in training; copied to every row of the model.
    labels
        Columns to classify.
    seeds
        One set of folds each.
    n_splits, min_cells_per_class, max_cells, subset_seed
        Which cells and folds, see `choose_cells`.
    n_jobs
        Fits at once, each on one thread (-1: one a core). The scores do not depend on it.
    forest
        'random_forest', the published one, or 'random_forest_intelex', that of scikit-learn-intelex: far faster, but
        its trees are others and so are its scores. It is named in every row.
    classifiers
        Which of the published three; None: all.
    unseen
        Column of obs whose groups are kept whole: with 'donor_id' a fold's donors were not seen by its classifiers
        (`StratifiedGroupKFold`). Not the published benchmark. A cell whose class no training cell has is left out; a
        class is scored in the folds that hold it.
    store
        File that keeps every fit as soon as it is made: if killed, the same call goes on, and what was fitted on the
        same numbers before is not fitted again.

    Returns
    -------
    A row a fit, ordered by model, label, classifier, seed and fold: `Model, label, classifier, seed, fold, F1, AUROC,
    Precision, Accuracy, Recall, n_cells, n_classes, min_cells_per_class, max_cells, cell_type_in_training` (`LONG`),
    then what `by_class` and `confusion` read: `n_scored`, cells of the fold that were scored, and `by_class`.

    Raises
    ------
    ValueError
        See `check_embeddings`, `check_labels` and `choose_cells`; the forest is unknown or not installed; there is
        one unseen group alone.
    """
    check_embeddings(H, obs)
    check_labels(obs, [*labels, *([unseen] if unseen else [])], seeds)
    classifiers = _classifiers(list(CLASSIFIERS) if classifiers is None else list(classifiers), forest)
    in_training = {model: bool(used_cell_type[model]) for model in H}
    packages = (*_PACKAGES, *([] if forest == FOREST else ["scikit-learn-intelex"]))
    code = [Path(module.__file__).read_bytes() for module in _CODE]
    tasks, made_from = {}, {}
    for label in labels:
        sizes = {"n_splits": n_splits, "min_cells_per_class": min_cells_per_class}
        cells = stratified_subset(obs, label, max_cells=max_cells, subset_seed=subset_seed, **sizes)
        names, y = np.unique(obs[label].astype(str).to_numpy()[cells], return_inverse=True)
        groups = obs[unseen].astype(str).to_numpy()[cells] if unseen else np.empty(0)
        if unseen:
            fold_of = assign_donor_folds(y, names, seeds, n_splits=n_splits, groups=groups, label=label, unseen=unseen)
        else:
            fold_of = assign_folds(y, seeds, n_splits=n_splits)
        tasks[label] = cells, names, y, fold_of
        of = names, y, groups, n_splits, min_cells_per_class, max_cells, *code
        for model, usages in H.items():
            made_from[model, label] = fingerprint(usages[cells], *of, in_training[model], packages=packages)
    held = ScoreCache(store, [*_KEY, *_SCORES, *_SETTINGS], _KEY)

    def key(model: str, label: str, classifier: str, seed: int, fold: int) -> tuple:
        return model, label, classifier, seed, fold, made_from[model, label]

    # Models and classifiers alternate, so that the time left is estimated from a fair mixture of fast and slow fits.
    divided = [  # a fold of donors that cannot be scored is none
        (label, seed, fold)
        for label in labels
        for seed, of in zip(seeds, tasks[label][-1], strict=True)
        for fold in np.unique(of[of >= 0]).tolist()
    ]
    every = [
        (model, label, classifier, seed, fold)
        for (label, seed, fold), model, classifier in product(divided, H, classifiers)
    ]
    missing = [fit for fit in every if key(*fit) not in held]
    n_there = len(every) - len(missing)
    if n_there:
        logger.info("%d of %d fits are there already.", n_there, len(every))
    with tqdm(total=len(every), initial=n_there, desc="classification", unit="fit") as bar:
        for fit, scores in _run(missing, classifiers, H, tasks, list(seeds), n_jobs):
            model, label = fit[:2]
            cells, names, *_ = tasks[label]
            settings = len(cells), len(names), min_cells_per_class, max_cells, in_training[model]
            row = dict(zip((*_KEY, FINGERPRINT), key(*fit), strict=True)) | dict(zip(_SETTINGS, settings, strict=True))
            held.add(row | scores)
            bar.update()

    wanted = set(every)
    ordered = product(H, labels, classifiers, seeds, range(n_splits))
    long = held.table(key(*fit) for fit in ordered if fit in wanted)
    unconverged = long[~long["converged"]]
    if len(unconverged):
        logger.warning(
            "%d of %d logistic regressions did not converge (first: %s, seed %d, fold %d, %s); scored as they stopped.",
            *(len(unconverged), (long["classifier"] == LOGISTIC).sum()),
            *unconverged.iloc[0][["label", "seed", "fold", "Model"]],
        )
    return long[[*LONG, "n_scored", "by_class"]]


def _run(missing: list[tuple], classifiers: dict, H: Mapping[str, np.ndarray], tasks: dict, seeds: list, n_jobs: int):
    """Fit and score what is missing; yields (fit, scores) as they are done."""
    wanted: dict[tuple[str, str], list] = {}  # (model, label) -> the divisions and folds of kNN
    for model, label, classifier, seed, fold in missing:
        if classifier == KNN:
            wanted.setdefault((model, label), []).append((seeds.index(seed), fold))
    for (model, label), pairs in wanted.items():  # all folds at once, on all cores
        cells, names, y, fold_of = tasks[label]
        found = knn.probabilities(
            classifiers[KNN], H[model][cells], y, fold_of, pairs, n_neighbors=N_NEIGHBORS, n_jobs=n_jobs
        )
        for (division, fold), learnt, probability in found:
            scores = classifiers.score_fold(y, fold_of[division] == fold, learnt, probability, names)
            yield (model, label, KNN, seeds[division], fold), scores | {"converged": True}

    def job(fit: tuple) -> tuple:
        model, label, classifier, seed, fold = fit
        cells, names, y, fold_of = tasks[label]
        return fit, classifiers[classifier], H[model], cells, names, y, fold_of[seeds.index(seed)], seed, fold

    rest = [fit for fit in missing if fit[2] != KNN]
    yield from Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
        delayed(classifiers.named)(*job(fit)) for fit in rest
    )


def _classifiers(names: Sequence[str], forest: str) -> dict[str, Callable[[int], ClassifierMixin]]:
    """Give the classifiers of these names, with this forest."""
    if not names or any(name not in CLASSIFIERS for name in names):
        raise ValueError(f"classifiers={names}: expected some of {', '.join(CLASSIFIERS)}.")
    if forest not in FORESTS:
        raise ValueError(f"forest={forest!r} is not known: give {' or '.join(map(repr, FORESTS))}.")
    try:
        FORESTS[forest](0)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"forest={forest!r} needs a package that is not installed ({error.name}): `pip install "
            f"scikit-learn-intelex`, or take {FOREST!r}."
        ) from error
    made = {FOREST: forest}  # name of the forest that is meant -> its own
    return {made.get(name, name): {**CLASSIFIERS, **FORESTS}[made.get(name, name)] for name in names}


def summarize(long: pd.DataFrame, label: str) -> pd.DataFrame:
    """Make the published table of one label: a row a model, mean and standard deviation over all its fits.

    Parameters
    ----------
    long : a row a fit
        From `score`.
    label
        Which of its labels.

    Returns
    -------
    `Model, MeanFoldF1, F1_std, MeanFoldAUROC, AUROC_std, MeanFoldPrecision, Precision_std, MeanFoldAccuracy,
    Accuracy_std, MeanFoldRecall, Recall_std, n_rows, n_cells, n_classes, min_cells_per_class`, models in the order of
    `results.MODELS`. `n_rows` is the number of fits. Deviations have ddof 1 and pool classifiers, seeds and folds.

    Raises
    ------
    ValueError
        No fit against the label; fits on different numbers of cells or classes.
    """
    settings = ["n_cells", "n_classes", "min_cells_per_class"]
    fits = select_label(long, label, settings)
    table = fits.groupby("Model", sort=False)[list(METRICS)].agg(["mean", "std"])
    table.columns = [f"MeanFold{metric}" if of == "mean" else f"{metric}_std" for metric, of in table.columns]
    table["n_rows"] = fits.groupby("Model", sort=False).size()
    table[settings] = fits.groupby("Model", sort=False)[settings].first()
    return table.loc[sorted(table.index, key=MODELS.index)].reset_index()


def per_class(long: pd.DataFrame) -> pd.DataFrame:
    """Score each class: mean and standard deviation (ddof 1) over the fits that scored it.

    Parameters
    ----------
    long : a row a fit
        From `score`.

    Returns
    -------
    `Model, label, classifier, class, n_cells, F1, F1_std, AUROC, AUROC_std, Precision, Precision_std, Recall,
    Recall_std, n_fits`. `n_cells` is the number of cells of the class that were scored under one seed.
    """
    rows = []
    for fit in long.itertuples():
        told = json.loads(fit.by_class)
        counts = np.array(told["counts"])
        of, (precision, recall, f1) = counts.sum(axis=1), classifiers.precision_recall_f1(counts)
        for c, area in zip(told["scored"], told["AUROC"], strict=True):
            rows.append(
                {
                    **{name: getattr(fit, name) for name in ("Model", "label", "classifier")},
                    "class": told["classes"][c],
                    "n_cells": of[c] / long["seed"].nunique(),
                    "F1": f1[c],
                    "AUROC": area,
                    "Precision": precision[c],
                    "Recall": recall[c],
                }
            )
    columns = ["Model", "label", "classifier", "class", "n_cells", "F1", "AUROC", "Precision", "Recall"]
    groups = pd.DataFrame(rows, columns=columns).groupby(columns[:4], sort=False)
    table = groups[["n_cells"]].sum().round().astype(int)
    for metric in ("F1", "AUROC", "Precision", "Recall"):
        table[metric], table[f"{metric}_std"] = groups[metric].mean(), groups[metric].std()
    return table.assign(n_fits=groups.size()).reset_index()


def confusion(long: pd.DataFrame) -> pd.DataFrame:
    """Count for what the cells of each class were taken, over all folds and seeds of a classifier.

    Returns
    -------
    `Model, label, classifier, class, predicted, n_cells`, pairs that occur.
    """
    tables = []
    for names, fits_ in long.groupby(["Model", "label", "classifier"], sort=False):
        told = [json.loads(text) for text in fits_["by_class"]]
        counts, classes = sum(np.array(one["counts"]) for one in told), np.array(told[0]["classes"])
        true, predicted = counts.nonzero()
        table = pd.DataFrame(
            {"class": classes[true], "predicted": classes[predicted], "n_cells": counts[true, predicted]}
        )
        tables.append(table.assign(**dict(zip(("Model", "label", "classifier"), names, strict=True))))
    return pd.concat(tables, ignore_index=True)[["Model", "label", "classifier", "class", "predicted", "n_cells"]]
