"""Score one model against one label: a job of an array. Notebook 06 finds the scores and makes only what is missing."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from aenmf_lib.data import preprocessing
from aenmf_lib.metrics import classification
from aenmf_lib.results import files
from aenmf_lib.workflow import parameters

# parameter of the notebook -> of `classification.score`; left out, both have the same default
OPTIONS = {
    "classification_seeds": "seeds",
    "max_cells": "max_cells",
    "seed": "subset_seed",
    "n_jobs": "n_jobs",
    "forest": "forest",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m aenmf_lib.part", description=__doc__)
    parser.add_argument("model", type=Path, help="a results file")
    parser.add_argument("--label", choices=preprocessing.LABELS, required=True)
    parser.add_argument("--notebook", type=Path, required=True, help="06_benchmarks.py, whose parameters are meant")
    parser.add_argument("--params", type=Path, help="YAML of values for it")
    parser.add_argument("--store", type=Path, required=True, help="csv that keeps each score as soon as it is made")
    parser.add_argument("--done", type=Path, required=True, help="file that is made when all are there")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        values = parameters.resolve([chosen.notebook], chosen.params)[chosen.notebook.stem]
        held = files.read_embeddings([chosen.model])
        options = {OPTIONS[name]: value for name, value in values.items() if name in OPTIONS}
        classification.cross_validate(
            held.H,
            held.obs,
            used_cell_type=held.used_cell_type,
            labels=[chosen.label],
            store=chosen.store,
            **options,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    chosen.done.touch()


if __name__ == "__main__":
    main()
