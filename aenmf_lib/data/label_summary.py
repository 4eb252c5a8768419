"""The donors and types of a data set: which cells stay, and everything that is wrong or worth knowing about them."""

import difflib
import numbers
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from aenmf_lib.data.labels import CELL_TYPE, DONOR, as_text

_MIN_CELLS = 5000  # cells per donor, the threshold of the paper
_PRIMARY = "is_primary_data"  # CELLxGENE: False for cells that another data set contributed first
# labels that name no type and no donor, with or without a number; and words that mark cells of low quality
_PLACEHOLDERS = re.compile(
    r"(unknown|unk|nan|none|null|na|n/a|#n/a|<na>|n a|missing|empty|blank|not available|not applicable|tbd|\?+|-+"
    r"|unassigned|not assigned|undefined|undetermined|unidentified|unclassified|unlabell?ed|unannotated|unspecified"
    r"|uncertain|ambiguous|other|others|negative|pool|pooled|mixed|debris|artifact|dead)( \d+)?"
    r"|.*\b(doublets?|multiplets?|low ?quality)\b.*"
)
_LIKELY = {  # words in the names of columns, the most likely first
    DONOR: "donor patient subject individual participant person orig.ident sample mouse animal batch library".split(),
    CELL_TYPE: "celltype cell_type cell.type annot type cluster leiden louvain label ident class".split(),
}


@dataclass
class LabelSummary:
    """The donors and types of a data set, the cells that stay, and all errors, warnings and notes about them."""

    donors: pd.DataFrame  # one row per donor, most cells first: donor_id, n_cells (before sampling), kept
    keep: np.ndarray  # (n_cells,) bool
    donor: pd.Series  # (n_cells,) str, NaN if missing
    cell_type: pd.Series  # (n_cells,) str, NaN if missing
    min_cells: int  # the threshold used
    counted: np.ndarray | None = None  # (n_cells,) bool, the cells from which the donors were chosen
    sampled_from: int = 0  # number of cells before sampling, 0 if the cells were not sampled
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    n_types = property(lambda self: self.cell_type[self.keep].nunique())

    @property
    def cohort(self) -> pd.DataFrame:
        """The cells of each donor and type before sampling, largest donor first, as `filter_cells` returns them."""
        labels = {DONOR: self.donor[self.counted], CELL_TYPE: self.cell_type[self.counted].fillna("")}
        cohort = pd.DataFrame(labels).groupby([DONOR, CELL_TYPE]).size().reset_index(name="n_cells")
        cohort = self.donors[[DONOR, "kept"]].merge(cohort, on=DONOR, validate="one_to_many")
        return cohort[[DONOR, CELL_TYPE, "n_cells", "kept"]].assign(min_cells=self.min_cells)


def summarize_labels(
    obs: pd.DataFrame,
    donor_key: str = DONOR,
    cell_type_key: str = CELL_TYPE,
    min_cells: int = 0,
    *,
    usable: np.ndarray | None = None,
    keep_obs: Sequence[str] = (),
    drop_missing: bool = False,
    keep_unlabeled: bool = False,
    drop_labels: Sequence[str] = (),
    merge_labels: bool = False,
    primary_only: bool = False,
    sample: int = 0,
    seed: int = 42,
) -> LabelSummary:
    """Find the donors, the types and the cells that stay, with all errors and warnings at once. Raises no errors.

    Parameters
    ----------
    obs, usable
        The cells, and a mask of those that may stay, such as the cells with counts; None for all.
    donor_key, cell_type_key, min_cells, keep_obs, drop_missing, keep_unlabeled
        These and all other parameters are those of `filter_cells`.
    """
    keep = np.ones(len(obs), dtype=bool) if usable is None else np.array(usable, dtype=bool)
    nothing = pd.Series(np.nan, index=obs.index, dtype=object)
    labels = {key: as_text(obs[key]) if key in obs else nothing for key in (cell_type_key, donor_key)}
    no_donors = pd.DataFrame({DONOR: pd.Series(dtype=object), "n_cells": 0, "kept": False})
    found = LabelSummary(no_donors, keep, labels[donor_key], labels[cell_type_key], min_cells)
    needed = [(donor_key, DONOR, "DONOR_KEY"), (cell_type_key, CELL_TYPE, "CELL_TYPE_KEY")]
    needed += [(key, "", "keep_obs") for key in keep_obs]
    found.errors += [_describe_missing_column(obs, *one) for one in needed if one[0] not in obs]
    if min_cells < 0:
        found.errors.append(f"min_cells={min_cells} is negative. Set the minimum number of cells per donor, 1 or more.")
    if sample < 0:
        found.errors.append(f"sample={sample} is negative. Set the number of cells to keep, or 0 for all.")

    _select_primary(found, obs, only=primary_only)
    known = {key: text for key, text in labels.items() if key in obs}
    if known and len(drop_labels):
        _drop_labels(found, known, drop_labels, complete=len(known) == len(labels))
    for key in known:
        labels[key] = _clean_labels(found, labels[key], key, merge=merge_labels)
    found.donor, found.cell_type = labels[donor_key], labels[cell_type_key]
    for key in dict.fromkeys([donor_key] if keep_unlabeled else [donor_key, cell_type_key]):
        if key in known:
            _drop_missing(found, labels[key], key, drop=drop_missing, may_keep=key != donor_key)
    if donor_key in obs:
        _choose_donors(found)
    if len(known) == len(labels) and found.donors["kept"].any():
        _compare_donors(found)
        _draw_sample(found, sample, seed)
    return found


def likely_columns(obs: pd.DataFrame, key: str, what: str = "") -> dict[str, int]:
    """Return the columns that may be meant by `key`, the most likely first, with their number of values.

    `what` is `DONOR` or `CELL_TYPE`. Columns with a name like `key` come first, and columns with a single value last.
    """
    names = {str(name).casefold(): name for name in obs if not pd.api.types.is_float_dtype(obs[name])}
    close = difflib.get_close_matches(key.casefold(), names, n=2, cutoff=0.75)
    close += [name for word in _LIKELY.get(what, ()) for name in names if word in name]
    values = {names[name]: as_text(obs[names[name]]).nunique() for name in dict.fromkeys(close)}
    found = {name: n for name, n in values.items() if n < max(len(obs), 2)}  # names of cells are no labels
    return dict(sorted(found.items(), key=lambda item: item[1] < 2))


def _describe_missing_column(obs: pd.DataFrame, key: str, what: str, option: str) -> str:
    """Return an error that lists the columns that may be meant, with their number of values."""
    likely = likely_columns(obs, key, what)
    listed = [f"{name!r} ({n} value{'s' * (n != 1)})" for name, n in list(likely.items())[:6]]
    kind = {DONOR: "the donors", CELL_TYPE: "the cell types"}.get(what, "what you are looking for")
    close = f"These may contain {kind}: {', '.join(listed)}. " if listed else ""
    columns = _join(map(repr, obs)) or "none"
    advice = f"Choose one of them ({option}={next(iter(likely), '…')})" if obs.shape[1] else "Add it to the file"
    return f"There is no obs column {key!r}. {close}The columns are: {columns}. {advice}."


def _select_primary(found: LabelSummary, obs: pd.DataFrame, *, only: bool) -> None:
    """Drop the cells that are no primary data if `only`; otherwise warn if there are some, but not all."""
    if _PRIMARY not in obs:
        if only:
            found.errors.append(f"primary_only needs obs[{_PRIMARY!r}] (CELLxGENE). Leave out PRIMARY_ONLY=true.")
        return
    primary = as_text(obs[_PRIMARY]).str.casefold().isin(["true", "1"]).to_numpy()
    n = int((found.keep & ~primary).sum())
    text = f"{n} of {int(found.keep.sum())} cells are not primary data (obs[{_PRIMARY!r}])"
    if only:
        found.notes.append(f"{text}. These cells are dropped.")
        found.keep &= primary
        if not found.keep.any():
            found.errors.append(f"{text}, so primary_only keeps no cell. Leave out PRIMARY_ONLY=true.")
    elif n and (found.keep & primary).any():
        drop = "To drop them, set primary_only=true (PRIMARY_ONLY=true)"
        found.warnings.append(f"{text}: they are copies of cells of other data sets. {drop}.")


def _drop_labels(
    found: LabelSummary, labels: dict[str, pd.Series], drop_labels: Sequence[str], *, complete: bool
) -> None:
    """Drop the cells with one of these labels in a column of `labels`. A label that does not occur is an error."""
    wanted = set(map(str, drop_labels))
    names = {name: _clean(name) for text in labels.values() for name in text.dropna().unique()}
    matched = [name for name, clean in names.items() if wanted & {name, clean}]
    columns = " or ".join(f"obs[{key!r}]" for key in labels)
    for label in sorted(wanted - {text for name in matched for text in (name, names[name])}) if complete else ():
        folded = {clean.casefold(): name for name, clean in names.items()}
        close = [repr(folded[match]) for match in difflib.get_close_matches(label.casefold(), folded)]
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        found.errors.append(f"drop_labels contains {label!r}, which is not in {columns}. {hint}Use the exact spelling.")
    if matched:
        dropped = found.keep & np.any([text.isin(matched) for text in labels.values()], axis=0)
        found.notes.append(f"{int(dropped.sum())} cells are dropped by drop_labels: {_join(map(repr, matched))}.")
        found.keep &= ~dropped


def _clean_labels(found: LabelSummary, text: pd.Series, key: str, *, merge: bool) -> pd.Series:
    """Warn about labels such as 'unknown' and labels that differ only in case or spaces. `merge` merges the latter."""
    sizes = text[found.keep].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    show = [f"{name!r} ({n} cells)" for name, n in sizes.items()]
    spellings = pd.Series({name: _clean(name).casefold() for name in sizes.index}, dtype=object)
    similar = spellings.duplicated(keep=False).to_numpy(dtype=bool)
    untidy = np.array([name != _clean(name) for name in sizes.index], dtype=bool) & ~similar
    words = [re.sub(r"[\s_.-]+", " ", name.casefold()).strip() or name for name in sizes.index]
    unnamed = [_PLACEHOLDERS.fullmatch(name) is not None for name in words]
    place, option = f"obs[{key!r}]", "set merge_labels=true (MERGE_LABELS=true)"
    if any(unnamed):
        named = ",".join(map(_clean, sizes.index[unnamed]))
        found.warnings.append(
            f"{place} has labels that do not seem to name a type or donor: {_join(np.array(show, object)[unnamed])}. "
            f'They are used like all others. To drop these cells, set drop_labels (DROP_LABELS="{named}").'
        )
    if similar.any():
        order = spellings[similar].sort_values(kind="stable").index  # the most frequent spelling first
        listed = _join(f"{name!r} ({sizes[name]} cells)" for name in order)
        done = "They are merged." if merge else f"They stay separate. To merge them, {option}."
        (found.notes if merge else found.warnings).append(
            f"{place} has {similar.sum()} labels that differ only in case or spaces: {listed}. {done}"
        )
    if untidy.any():
        listed = _join(np.array(show, object)[untidy])
        done = "They are cleaned." if merge else f"To clean them, {option}."
        (found.notes if merge else found.warnings).append(
            f"{place} has {untidy.sum()} labels with line breaks, tabs or extra spaces: {listed}. {done}"
        )
    if not merge:
        return text
    best = {spellings[name]: _clean(name) for name in reversed(sizes.index)}  # the most frequent one is last
    return text.map({name: best[spelling] for name, spelling in spellings.items()}).astype(object)


def _join(items: Iterable[str], most: int = 30) -> str:
    """Join at most `most` items with commas."""
    items = list(items)
    return ", ".join(items[:most]) + (f", and {len(items) - most} others" if len(items) > most else "")


def _clean(label: str) -> str:
    """Return a label without line breaks and extra spaces."""
    return " ".join(label.split())


def _drop_missing(found: LabelSummary, text: pd.Series, key: str, *, drop: bool, may_keep: bool) -> None:
    """Drop the cells without a label, which is an error unless `drop`."""
    missing = found.keep & text.isna().to_numpy()
    if not (n := int(missing.sum())):
        return
    found.keep &= ~missing
    what = f"obs[{key!r}] is empty for {n} of {len(text)} cells (first: {text.index[missing][0]!r})"
    keep = "set keep_unlabeled=true (KEEP_UNLABELED=true) to keep them, " if may_keep else ""
    advice = f"Set drop_missing=true (DROP_MISSING=true) to drop these cells, {keep}or choose another column"
    (found.warnings if drop else found.errors).append(f"{what}. {'These cells are dropped' if drop else advice}.")


def _choose_donors(found: LabelSummary) -> None:
    """Keep the donors with at least `min_cells` cells; 0 means the default. No such donor is an error."""
    found.counted = found.keep.copy()
    sizes = found.donor[found.keep].value_counts()
    if not found.min_cells and len(sizes):
        found.min_cells = _MIN_CELLS
        if (sizes >= _MIN_CELLS).sum() < 2:
            found.min_cells = -(-int(sizes.max()) // 10)
            found.warnings.append(
                f"Fewer than two donors have {_MIN_CELLS:,} cells, so min_cells is {found.min_cells:,}, a tenth of the "
                "cells of the largest donor. To choose another value, set min_cells (MIN_CELLS=…)."
            )
    donors = sizes.rename_axis(DONOR).reset_index(name="n_cells")
    donors["kept"] = donors["n_cells"] >= found.min_cells
    found.donors = donors.astype({DONOR: object})
    found.keep &= found.donor.isin(donors.loc[donors["kept"], DONOR]).to_numpy()
    if donors.empty:
        found.errors.append("No cell is left. Drop fewer cells, or choose another column.")
    elif not donors["kept"].any():
        listed = _join((f"{_clean(name)} {n}" for name, n in sizes.items()), 20)
        text = f"No donor has {found.min_cells} cells or more. The {len(donors)} donors have: {listed}"
        advice = f"Choose a smaller min_cells (make all MIN_CELLS=…): {_second_largest(donors)}"
        found.errors.append(f"{text}. {advice}.")


def _second_largest(donors: pd.DataFrame) -> str:
    """Return the largest threshold that keeps two donors (or the only one), in words."""
    return f"{donors['n_cells'].iloc[:2].min()} keeps {'2 donors' if len(donors) > 1 else 'the only donor'}"


def _compare_donors(found: LabelSummary) -> None:
    """Report how many types are shared by donors, and warn if there is one donor, one type, or nothing to compare."""
    kept = pd.DataFrame({"donor": found.donor[found.keep], "type": found.cell_type[found.keep]})
    donors, types = sorted(kept["donor"].unique()), sorted(kept["type"].dropna().unique())
    if n := int(kept["type"].isna().sum()):
        found.notes.append(f"{n} of the kept cells have no type.")
    if len(donors) == 1:
        text = f"Only the donor {donors[0]!r} is left: the conditional models, which compare donors, will be skipped"
        more = f" A smaller min_cells keeps more: {_second_largest(found.donors)}." if len(found.donors) > 1 else ""
        found.warnings.append(f"{text}.{more}")
    if len(types) < 2:
        text = f"Only the cell type {types[0]!r} is left" if types else "No cell has a type"
        more = "" if types else " Models that compare donors within types cannot be trained."
        found.warnings.append(f"{text}: scores against the cell type cannot be computed.{more}")
    if len(donors) == 1 or not types:
        return
    shared = int(kept.drop_duplicates()["type"].value_counts().gt(1).sum())
    if not shared:
        text = "No type has cells of two donors, so donors cannot be compared within types"
        found.warnings.append(f"{text}. Choose another CELL_TYPE_KEY or DONOR_KEY.")
        return
    text = f"{shared} of {len(types)} types have cells of two donors or more"
    text += "" if shared == len(types) else "; donors can be compared only within these"
    few = 2 * shared < len(types) or shared == 1 < len(types)
    (found.warnings if few else found.notes).append(f"{text}.")


def _draw_sample(found: LabelSummary, sample: int, seed: int) -> None:
    """Keep at most `sample` random cells: each donor keeps its share of the cells, and at least one cell."""
    rows = np.flatnonzero(found.keep)
    for name, number in (("sample", sample), ("seed", seed)):
        if not isinstance(number, numbers.Integral) or number < 0:
            found.errors.append(f"{name}={number!r} is not valid. Choose a whole number of at least 0.")
            return
    if sample == 0 or sample >= len(rows):
        return
    codes, names = pd.factorize(found.donor.to_numpy()[rows], sort=True)
    if sample < len(names):
        found.errors.append(f"sample={sample} is smaller than the number of donors. Set it to {len(names)} or more.")
        return
    share = np.bincount(codes) * (sample / len(rows))
    n = np.maximum(np.floor(share), 1).astype(int)
    while (rest := sample - n.sum()) != 0:  # the donors that are furthest from their share change first
        step = int(np.sign(rest))
        n[np.argmax(np.where(n + step > 0, step * (share - n), -np.inf))] += step
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(rows[codes == code])[: n[code]] for code in range(len(names))]
    found.sampled_from, found.keep = len(rows), np.zeros_like(found.keep)
    found.keep[np.concatenate(drawn)] = True
    found.notes.append(f"The cells are a random sample of {sample:,} of {len(rows):,} cells.")
