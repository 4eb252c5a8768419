"""How F1 and AUROC are made: benchmark 2, how well plain classifiers read a label from an embedding.

Classes with at least 10 cells; `StratifiedKFold(5, shuffle=True)` under five seeds; logistic regression and 15 nearest
neighbours on z-scored columns, and a forest of 200 trees: 75 fits for each model and label. Every number is what the
plain scikit-learn pipeline gives; added here are the choice of cells, one worker a core, and the tables.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from aenmf_lib.data import CELL_TYPE, DONOR
from aenmf_lib.results import MODELS
from aenmf_lib.store import OF, Store, fingerprint

logger = logging.getLogger(__name__)

LABELS = (CELL_TYPE, DONOR)
SEEDS = (42, 52, 62, 72, 82)
_KEY = ("Model", "label", "classifier", "seed", "fold")
_SETTINGS = ("n_cells", "n_classes", "min_cells_per_class", "max_cells", "cell_type_in_training")
METRICS = ("F1", "AUROC", "Precision", "Accuracy", "Recall")  # in the order of the published columns
FOREST = "random_forest"  # the published one
CLASSIFIERS: dict[str, Callable[[int], ClassifierMixin]] = {  # name -> classifier for a seed
    "logistic_regression": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "knn": lambda seed: make_pipeline(StandardScaler(), KNeighborsClassifier(15)),
    FOREST: lambda seed: RandomForestClassifier(200, random_state=seed),
}


def _intelex(seed: int) -> ClassifierMixin:
    forest = importlib.import_module("sklearnex.ensemble").RandomForestClassifier
    return forest(200, random_state=seed, n_jobs=1)


FORESTS = {FOREST: CLASSIFIERS[FOREST], f"{FOREST}_intelex": _intelex}  # another forest has another name in every row


def check_embeddings(H: Mapping[str, np.ndarray], obs: pd.DataFrame) -> None:
    """Stop on embeddings that neither benchmark can score.

    Parameters
    ----------
    H : model name -> (n_cells, k)
    obs : (n_cells, columns)

    Raises
    ------
    ValueError
        No embedding; one with other rows than obs; one with NaN or infinite values.
    """
    if not H:
        raise ValueError("There is no embedding to score. Name at least one results file.")
    for model, usages in H.items():
        if usages.ndim != 2 or len(usages) != len(obs):
            raise ValueError(
                f"The embedding of {model} has shape {usages.shape}, but obs has {len(obs)} cells. Expected a row for "
                f"each cell, in the order of obs: take both from the same results file."
            )
        bad = ~np.isfinite(usages)
        if bad.any():
            cell, program = np.argwhere(bad)[0]
            raise ValueError(
                f"The embedding of {model} holds {bad.sum()} NaN or infinite values in {bad.any(axis=1).sum()} of "
                f"{len(obs)} cells (first: cell {obs.index[cell]!r}, column {program}). Expected finite usages: train "
                f"{model} again and look at its loss history."
            )


def check_labels(obs: pd.DataFrame, labels: Sequence[str], seeds: Sequence[int]) -> None:
    """Stop on labels and seeds that neither benchmark can use.

    Parameters
    ----------
    obs : (n_cells, columns)
    labels
        Columns of obs to score against.
    seeds
        Repetitions.

    Raises
    ------
    ValueError
        A label that is missing as a column, missing for some cells, or the same for all; no seed, or one seed twice.
    """
    for label in labels:
        if label not in obs:
            raise ValueError(f"obs has no column {label!r}, only {list(obs.columns)}. Name a column that holds labels.")
        missing = (obs[label].isna() | (obs[label].astype(str).str.strip() == "")).to_numpy()
        if missing.any():
            raise ValueError(
                f"obs[{label!r}] is empty for {missing.sum()} of {len(obs)} cells (first: {obs.index[missing][0]!r}). "
                f"Every cell that is scored needs a label: leave these cells out before training, or name another "
                f"column."
            )
        if obs[label].nunique() < 2:
            raise ValueError(
                f"obs[{label!r}] is {obs[label].iloc[0]!r} for all {len(obs)} cells. Agreement and classification need "
                f"at least two classes: keep more cells (a lower min_cells), or leave {label!r} out of the labels."
            )
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"The seeds are {list(seeds)}. Expected at least one, and none twice.")


def choose_cells(
    obs: pd.DataFrame,
    label: str,
    *,
    n_splits: int = 5,
    min_cells_per_class: int = 10,
    max_cells: int = 0,
    subset_seed: int = 42,
) -> np.ndarray:
    """Choose the cells that are classified: those of large enough classes and, with `max_cells`, a stratified subset.

    The subset is drawn without looking at an embedding, so all models see the same cells. Each class gets
    `max(n_splits, min_cells_per_class)` cells, and of what is left a share in proportion to its other cells.

    Parameters
    ----------
    obs : (n_cells, columns)
    label
        Column of obs that holds the classes, complete.
    n_splits
        Folds; each needs a cell of each class.
    min_cells_per_class
        Smaller classes are left out, and logged with their counts.
    max_cells
        Size of the subset; 0 keeps all cells.
    subset_seed
        Decides which cells the subset holds.

    Returns
    -------
    cells : (n_chosen,), int
        Row numbers in obs, ascending.

    Raises
    ------
    ValueError
        Fewer than two classes are large enough; a class is smaller than the folds; `max_cells` is negative or too
        small.
    """
    classes = obs[label].astype(str).to_numpy()
    sizes = pd.Series(classes).value_counts().sort_index()
    kept = sizes[sizes >= min_cells_per_class]
    if len(kept) < 2:
        raise ValueError(
            f"obs[{label!r}] has {len(kept)} classes with at least min_cells_per_class={min_cells_per_class} cells, of "
            f"{len(sizes)} (largest: {sizes.idxmax()!r}, {sizes.max()} cells). Classification needs two: keep more "
            f"cells."
        )
    if kept.min() < n_splits:
        raise ValueError(
            f"The class {kept.idxmin()!r} of obs[{label!r}] has {kept.min()} cells, fewer than the {n_splits} folds. "
            f"Each fold needs a cell of each class: set min_cells_per_class to {n_splits} or more."
        )
    dropped = sizes.drop(kept.index)
    if len(dropped):
        logger.info(
            "%s: %d classes with fewer than %d cells are left out, %d of %d cells: %s",
            *(label, len(dropped), min_cells_per_class, dropped.sum(), len(obs)),
            ", ".join(f"{name} ({n})" for name, n in dropped.items()),
        )
    cells = np.flatnonzero(np.isin(classes, kept.index))
    if max_cells < 0:
        raise ValueError(f"max_cells={max_cells} is negative. Expected a number of cells, or 0 for all.")
    if max_cells == 0 or max_cells >= len(cells):
        return cells

    floor = max(n_splits, min_cells_per_class)  # every kept class holds as many
    spare = max_cells - floor * len(kept)
    if spare < 0:
        raise ValueError(
            f"max_cells={max_cells} cannot hold {floor} cells of each of the {len(kept)} classes of obs[{label!r}]. "
            f"Set max_cells to {floor * len(kept)} or more, or to 0 for all cells."
        )
    logger.info("%s: a stratified subset of %d of %d cells, seed %d", label, max_cells, len(cells), subset_seed)
    share = spare * (kept - floor) / (kept - floor).sum()
    quota = floor + np.floor(share).astype(int)
    largest_remainder = (share % 1).sort_values(ascending=False, kind="stable").index
    quota[largest_remainder[: max_cells - quota.sum()]] += 1
    shuffled = np.random.default_rng(subset_seed).permutation(cells)
    rank = pd.Series(shuffled).groupby(classes[shuffled]).cumcount().to_numpy()  # first, second ... of its class
    return np.sort(shuffled[rank < quota[classes[shuffled]].to_numpy()])


def score(
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
    store
        File that keeps every fit as soon as it is made: if killed, the same call goes on, and what was fitted on the
        same numbers before is not fitted again.

    Returns
    -------
    A row a fit, ordered by model, label, classifier, seed and fold: `Model, label, classifier, seed, fold, F1, AUROC,
    Precision, Accuracy, Recall, n_cells, n_classes, min_cells_per_class, max_cells, cell_type_in_training`.

    Raises
    ------
    ValueError
        See `check_embeddings`, `check_labels` and `choose_cells`; or the forest is unknown or not installed.
    """
    check_embeddings(H, obs)
    check_labels(obs, labels, seeds)
    classifiers = _classifiers(forest)
    in_training = {model: bool(used_cell_type[model]) for model in H}
    target = {}  # label -> (rows of obs, class of each)
    for label in labels:
        cells = choose_cells(
            obs,
            label,
            n_splits=n_splits,
            min_cells_per_class=min_cells_per_class,
            max_cells=max_cells,
            subset_seed=subset_seed,
        )
        target[label] = cells, np.unique(obs[label].astype(str).to_numpy()[cells], return_inverse=True)[1]

    of = min_cells_per_class, max_cells, n_splits, Path(__file__).read_bytes()  # other code may score otherwise
    made_from = {
        (model, label): fingerprint(usages[cells], y, in_training[model], *of, packages=("scikit-learn", "numpy"))
        for (model, usages), (label, (cells, y)) in product(H.items(), target.items())
    }
    held = Store(store, [*_KEY, *METRICS, *_SETTINGS, "converged"], _KEY)

    def key(model: str, label: str, classifier: str, seed: int, fold: int) -> tuple:
        return model, label, classifier, seed, fold, made_from[model, label]

    # Models and classifiers alternate, so that the time left is estimated from a fair mixture of fast and slow fits.
    order = product(labels, seeds, range(n_splits), H, classifiers)
    fits = [(model, label, classifier, seed, fold) for label, seed, fold, model, classifier in order]
    missing = [fit for fit in fits if key(*fit) not in held]
    if len(missing) < len(fits):
        logger.info("%d of %d fits are there already.", len(fits) - len(missing), len(fits))
    run = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
        delayed(_fit)(fit, classifiers[fit[2]], H[fit[0]], *target[fit[1]], n_splits) for fit in missing
    )
    for fit, scores in tqdm(run, total=len(fits), initial=len(fits) - len(missing), desc="classification", unit="fit"):
        model, label = fit[:2]
        settings = len(target[label][0]), int(target[label][1].max()) + 1, min_cells_per_class, max_cells
        settings = dict(zip(_SETTINGS, (*settings, in_training[model]), strict=True))
        held.add(dict(zip((*_KEY, OF), key(*fit), strict=True)) | settings | scores)

    long = held.table(key(*fit) for fit in product(H, labels, classifiers, seeds, range(n_splits)))
    unconverged = long[~long["converged"]]
    if len(unconverged):
        logger.warning(
            "%d of %d logistic regressions did not converge (first: %s, seed %d, fold %d, %s); scored as they stopped.",
            *(len(unconverged), (long["classifier"] == "logistic_regression").sum()),
            *unconverged.iloc[0][["label", "seed", "fold", "Model"]],
        )
    return long.drop(columns="converged")


def _classifiers(forest: str) -> dict[str, Callable[[int], ClassifierMixin]]:
    """Give the classifiers, with this forest."""
    if forest not in FORESTS:
        raise ValueError(f"forest={forest!r} is not known: give {' or '.join(map(repr, FORESTS))}.")
    try:
        FORESTS[forest](0)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"forest={forest!r} needs a package that is not installed ({error.name}): `pip install "
            f"scikit-learn-intelex`, or take {FOREST!r}."
        ) from error
    classifiers = {**CLASSIFIERS}
    if forest != FOREST:
        del classifiers[FOREST]
        classifiers[forest] = FORESTS[forest]
    return classifiers


def _fit(
    fit: tuple, make: Callable[[int], ClassifierMixin], H: np.ndarray, cells: np.ndarray, y: np.ndarray, n_splits: int
) -> tuple[tuple, dict]:
    """Fit and score one classifier on one fold; runs in a worker, on one thread."""
    *_, seed, fold = fit
    folds = StratifiedKFold(n_splits, shuffle=True, random_state=seed).split(cells, y)
    train, test = list(folds)[fold]
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted = make(seed).fit(H[cells[train]], y[train])
        probability = fitted.predict_proba(H[cells[test]])  # (n_test, n_classes)
    predicted = fitted.classes_[probability.argmax(axis=1)]  # as `predict` does, which would compute all this again
    converged = True
    for warning in caught:  # counted by `score`; any other warning goes on to the reader
        if issubclass(warning.category, ConvergenceWarning):
            converged = False
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    precision, recall, f1, _ = precision_recall_fscore_support(y[test], predicted, average="macro", zero_division=0)
    two_classes = probability.shape[1] == 2
    return fit, {
        "F1": f1,
        "AUROC": roc_auc_score(
            y[test], probability[:, 1] if two_classes else probability, multi_class="ovr", average="macro"
        ),
        "Precision": precision,
        "Accuracy": accuracy_score(y[test], predicted),
        "Recall": recall,
        "converged": converged,
    }


def summarise(long: pd.DataFrame, label: str) -> pd.DataFrame:
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


def select_label(long: pd.DataFrame, label: str, settings: Sequence[str]) -> pd.DataFrame:
    """Take the rows of one label from a long table, if all were made under one value of each setting."""
    rows = long[long["label"] == label]
    if rows.empty:
        raise ValueError(f"The table holds no score against {label!r}, only against {sorted(long['label'].unique())}.")
    for setting in settings:
        values = sorted(rows[setting].unique().tolist())
        if len(values) > 1:
            raise ValueError(
                f"The scores against {label!r} come from runs with different {setting}: {values}. They cannot share a "
                f"table: run the benchmark again on all models at once."
            )
    return rows
