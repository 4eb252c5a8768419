"""What do all figures say alike? Colors, the order of models, and the words for numbers."""

from collections.abc import Collection, Mapping

import pandas as pd

from aenmf_lib.data.preprocessing import CELL_TYPE, DONOR
from aenmf_lib.results import schema

COLORS = {"CAE_NMF1": "#0072B2", "CAE_NMF2": "#009E73", "AE_NMF": "#E69F00", "Base_NMF": "#000000"}  # Okabe & Ito
LABELS = {CELL_TYPE: ("Cell type", "higher is better →"), DONOR: ("Donor", "← lower is better")}
STEPS = [1, 2, 5, 10]  # of ticks


def models(table: pd.DataFrame) -> list[str]:
    """Give the models of a table in the order of every table and figure."""
    return [model for model in schema.MODELS if model in set(table["Model"])]


def used(models: Collection[str], used_cell_type: Mapping[str, bool] | None) -> list[str]:
    """Give the models whose training saw the cell types."""
    return [model for model in models if (used_cell_type or {}).get(model, False)]


def mark_label_aware(model: str, marked: Collection[str]) -> str:
    """Mark a model whose training saw the labels that it is held against."""
    return f"{model}†" if model in marked else model


def cluster_note(groups: Mapping[str, str] | pd.DataFrame | None) -> str:
    """Say which models compared donors within clusters; from a value a model, or a table that tells it."""
    if isinstance(groups, pd.DataFrame):
        told = groups[["Model", schema.GROUPS]] if schema.GROUPS in groups else groups.iloc[:0, :0]
        groups = dict(told.drop_duplicates().itertuples(index=False, name=None))
    named = [model for model in schema.MODELS if (groups or {}).get(model) == "clusters"]
    return f"donors compared within clusters in training: {', '.join(named)}" if named else ""


def format_range(values: pd.Series) -> str:
    """Say the value that all share, or the range."""
    low, high = values.min(), values.max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def pluralize(n: int, what: str) -> str:
    """Say how many there are of something."""
    return f"{n:,} {what}" + ("s" if n != 1 else "")


def rank(k: int | None) -> str:
    """Say the rank, if it is known."""
    return "" if k is None else f"rank k = {k}"


def spread(points: pd.DataFrame) -> str:
    """Say what the error bars are; a single run has none."""
    return " ±\u00a0s.d. (ddof\u00a01)" if points["sd"].notna().any() else " (a single run: no s.d.)"
