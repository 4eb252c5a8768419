"""Tables of programs of a simulated run, in the shape that notebook 10 writes them."""

import functools

import numpy as np
import pandas as pd
from checks import simulate

from aenmf_lib import figures
from aenmf_lib.programs.cards import _enrich, _list_sets, _make_cards
from aenmf_lib.programs.contents import Contents, UsageSums
from aenmf_lib.programs.tables import list_genes, list_matches, list_usages


@functools.cache
def simulate_programs(case: str, n_genes: int = 900) -> dict:
    """Return the tables of a run whose models have the same programs, in another order in each model, with noise.

    The gene sets are the first genes of each program. Some genes have the names of markers.
    """
    run, rng = simulate(case), np.random.default_rng(1)
    k = run["run"].k
    W = rng.gamma(0.05, size=(k, n_genes))
    markers = [gene for genes in figures.read_settings().markers.values() for gene in genes]
    symbols = np.array([*dict.fromkeys(markers)] + [f"GENE{i}" for i in range(n_genes)], dtype=object)[:n_genes]
    fits = {}
    for i, (model, H) in enumerate(run["H"].items()):
        order = (np.arange(k) + i) % k  # program j of model i is planted program (j + i) % k
        fits[model] = Contents(
            name=model,
            W=W[order] + 0.02 * i * rng.random(W.shape),
            genes=pd.Index([f"ENSG{g:05}" for g in range(n_genes)]),
            symbols=symbols,
            usages=UsageSums.of(H[:, order], run["umap"].obs["cell_type"], run["umap"].obs["donor_id"]),
            sq_norm=1e6,
        )
    sets = {f"SET_OF_PROGRAM_{j}": list(symbols[np.argsort(-W[j])[:20]]) for j in range(min(k, 30))}
    enriched = _enrich(fits, sets)
    genes = pd.concat([list_genes(fit, 100).assign(Model=model) for model, fit in fits.items()], ignore_index=True)
    return {
        "genes": genes,
        "cards": _make_cards(fits, enriched),
        "usage": list_usages({model: fit.usages for model, fit in fits.items()}),
        "matches": list_matches({model: fit.W for model, fit in fits.items()}),
        "sets": _list_sets(enriched),
        "run": run["run"],
    }


def of_models(tables: dict, *models: str) -> dict:
    """Return the tables of some of the models."""
    chosen = {}
    for name, table in tables.items():
        if isinstance(table, pd.DataFrame):
            table = table[table["Model"].isin(models)]
            table = table[table["other"].isin(models)] if "other" in table else table
            table = table.reset_index(drop=True)
        chosen[name] = table
    return chosen
