"""Functions for fitted programs: tables of genes and usages, comparison of fits, and projection of new cells.

A name is imported on first use, so that a table of genes does not import the models.
"""

from importlib import import_module

_MODULES = {
    "compare_projection": "programs.projection_study",
    "consensus_programs": "programs.consensus",
    "differential_usage": "programs.differential",
    "gene_table": "programs.tables",
    "match_programs": "models.matching",
    "program_cards": "programs.cards",
    "project": "programs.projection",
    "project_file": "programs.projection",
    "rank_summary": "programs.rank",
    "rank_table": "programs.rank",
    "stability": "models.matching",
    "top_genes": "programs.tables",
    "usage_by_type": "programs.tables",
    "write_donor_tables": "programs.donor_part",
    "write_program_tables": "programs.cards",
}
__all__ = [*_MODULES]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Available: {', '.join(__all__)}.")
    return getattr(import_module(f"aenmf_lib.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
