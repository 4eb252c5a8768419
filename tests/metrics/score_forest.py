"""Score a forest with two workers, as notebook 06 does. A test kills this program, so it imports little."""

import sys

import pandas as pd
from test_classification import simulate

from aenmf_lib.metrics.classification import cross_validate
from aenmf_lib.metrics.classifiers import FOREST


def run(path: str | None) -> pd.DataFrame:
    """Return the scores of ten forests."""
    H, obs = simulate(n_cells=120)
    return cross_validate({"AE_NMF": H}, obs, classifiers=[FOREST], seeds=[42], n_jobs=2, cache=path)


if __name__ == "__main__":
    run(sys.argv[1])
