"""Simulate raw counts of any size for benchmarks of reading and training.

The counts are written to an ``.h5ad`` block by block, so that memory does not grow with the cells. Cell types mix
sparse gene programs, cells of a type differ in their usages, each donor adds its own program, and a background covers
all genes. The number of genes per cell is drawn first, so that the arrays of the file have their final size and can be
contiguous. For a simulation with known programs and donor effects use `aenmf_lib.data.simulate`.

    python benchmarks/simulate.py --cells 200000 --genes 20000 --nonzeros 2460 --out cells.h5ad
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from numba import njit

BACKGROUND = 0.4  # share of a cell's counts from the background
DONOR = 0.05  # share from the program of its donor
SLOTS = 1 << 12  # a program is a table of this many genes, repeated by their share, so that a draw is one look-up
BACKGROUND_SLOTS = 1 << 17
PICKS = 1 << 10  # a cell's usages are rounded to shares of 1 / PICKS
BLOCK_VALUES = 1 << 22  # nonzeros per block
EMPTY = ("layers", "obsm", "obsp", "uns", "varm", "varp")


def simulate(
    path: str | Path,
    *,
    cells: int,
    genes: int = 20_000,
    nonzeros: int = 2460,
    donors: int = 8,
    types: int = 12,
    programs: int = 40,
    seed: int = 0,
    compression: str | None = None,
) -> None:
    """Write simulated counts to an ``.h5ad``.

    Parameters
    ----------
    path
        Where to write; an existing file is overwritten.
    cells, genes, donors, types, programs
        Their numbers; a program has a twentieth of the genes.
    nonzeros
        Mean number of genes that a cell expresses; lognormal from cell to cell.
    seed
        The same seed and sizes give the same counts.
    compression
        ``"gzip"``, ``"lzf"`` or None, which leaves the arrays contiguous.

    Raises
    ------
    ValueError
        `nonzeros` is too large for the number of genes.
    """
    rng = np.random.default_rng(seed)
    background = _table(rng, np.arange(genes), BACKGROUND_SLOTS, spread=1.8)
    reach = len(np.unique(background))
    n_nonzero = (nonzeros * rng.lognormal(-(0.3**2) / 2, 0.3, cells)).astype(np.int64).clip(1, int(0.8 * reach))
    if nonzeros > reach // 2:
        raise ValueError(f"nonzeros={nonzeros} is too large for {genes} genes. Choose at most {reach // 2}.")
    members = [rng.choice(genes, max(genes // 20, 1), replace=False) for _ in range(programs + donors)]
    tables = np.stack([_table(rng, some, SLOTS, spread=1.0) for some in members])
    usages = rng.dirichlet(np.full(programs, 3 / programs), types)  # a type uses a few programs
    kind = rng.choice(types, cells, p=rng.dirichlet(np.full(types, 5.0))).astype(np.int16)
    donor = rng.integers(donors, size=cells).astype(np.int16)

    indptr = np.concatenate([[0], n_nonzero.cumsum()])
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        obs = {
            "cell_type": pd.Categorical.from_codes(kind, [f"type {t}" for t in range(types)]),
            "donor_id": pd.Categorical.from_codes(donor, [f"donor{d}" for d in range(donors)]),
        }
        write_elem(file, "obs", pd.DataFrame(obs, index=pd.RangeIndex(cells).astype(str)))
        write_elem(file, "var", pd.DataFrame(index=[f"gene{g}" for g in range(genes)]))
        for name in EMPTY:
            write_elem(file, name, {})
        X = file.create_group("X")
        X.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [cells, genes]})
        X["indptr"] = indptr
        data = X.create_dataset("data", indptr[-1:], np.float32, compression=compression)
        indices = X.create_dataset("indices", indptr[-1:], np.int32, compression=compression)
        for lo, hi in _blocks(indptr):
            block = slice(lo, hi)
            mixed = usages[kind[block]] * rng.gamma(4, 1 / 4, (hi - lo, programs))
            picks = _picks(rng, mixed, programs + donor[block], background_at=programs + donors)
            at = slice(indptr[lo], indptr[hi])
            seeds = rng.integers(1, 2**63, hi - lo, dtype=np.uint64)
            indices[at], data[at] = _draw(seeds, n_nonzero[block], picks, tables, background, genes)


def _table(rng: np.random.Generator, genes: np.ndarray, slots: int, *, spread: float) -> np.ndarray:
    """Return a table (slots,) of genes, repeated by their lognormal shares."""
    share = rng.lognormal(0, spread, len(genes))
    return rng.choice(genes, slots, p=share / share.sum()).astype(np.int32)


def _blocks(indptr: np.ndarray) -> list[tuple[int, int]]:
    """Return the bounds of blocks of about BLOCK_VALUES nonzeros."""
    edges = [*np.searchsorted(indptr, np.arange(0, indptr[-1], BLOCK_VALUES)), len(indptr) - 1]
    return [(lo, hi) for lo, hi in pairwise(edges) if hi > lo]


def _picks(rng: np.random.Generator, usages: np.ndarray, own: np.ndarray, *, background_at: int) -> np.ndarray:
    """Return a table of programs per cell, (n_cells, PICKS), repeated by the usages (n_cells, programs).

    The program `own` (n_cells,) of the donor and the background, number `background_at`, have fixed shares.
    """
    n_own, n_background = int(DONOR * PICKS), int(BACKGROUND * PICKS)
    at = usages.cumsum(axis=1)
    at *= (PICKS - n_own - n_background) / at[:, -1:]
    picks = np.empty((len(usages), PICKS), dtype=np.int16)
    _fill(picks, at, own, n_own, background_at)
    return picks


@njit(cache=True)
def _fill(picks, at, own, n_own, background_at):
    for i in range(len(picks)):
        slot = 0
        for j in range(at.shape[1]):
            end = round(at[i, j])
            picks[i, slot:end] = j
            slot = max(slot, end)
        picks[i, slot : slot + n_own] = own[i]
        picks[i, slot + n_own :] = background_at


@njit(cache=True)
def _draw(seeds, n_nonzero, picks, tables, background, n_genes):
    """Draw counts for each cell until it expresses its number of genes: (indices, counts), cell after cell."""
    indices = np.empty(n_nonzero.sum(), dtype=np.int32)
    counts = np.empty(len(indices), dtype=np.float32)
    count = np.zeros(n_genes, dtype=np.int32)
    seen = np.zeros(n_genes // 64 + 1, dtype=np.uint64)  # one bit per gene, to return the genes in order
    put = 0
    for i in range(len(seeds)):
        state, missing = seeds[i], n_nonzero[i]
        while missing:
            # splitmix64 (Steele et al. 2014, doi:10.1145/2660193.2660195)
            state += np.uint64(0x9E3779B97F4A7C15)
            z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
            program = picks[i, z & np.uint64(PICKS - 1)]
            slot = z >> np.uint64(32)
            if program < len(tables):
                gene = tables[program, slot & np.uint64(SLOTS - 1)]
            else:
                gene = background[slot & np.uint64(BACKGROUND_SLOTS - 1)]
            if count[gene] == 0:
                missing -= 1
                seen[gene >> 6] |= np.uint64(1) << np.uint64(gene & 63)
            count[gene] += 1
        for word in range(len(seen)):
            bits = seen[word]
            seen[word] = 0
            gene = word * 64
            while bits:
                if bits & np.uint64(1):
                    indices[put], counts[put] = gene, count[gene]
                    count[gene] = 0
                    put += 1
                bits >>= np.uint64(1)
                gene += 1
    return indices, counts


def main() -> None:
    """Read the command line and write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, required=True)
    for name, default in (("genes", 20_000), ("nonzeros", 2460), ("donors", 8), ("types", 12), ("programs", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compression", choices=("gzip", "lzf"))
    parser.add_argument("--out", type=Path, required=True)
    options = vars(parser.parse_args())
    path, start = options.pop("out"), time.perf_counter()
    simulate(path, **options)
    seconds = time.perf_counter() - start
    print(f"{path}: {options['cells']:,} cells, {path.stat().st_size / 2**30:.2f} GiB in {seconds:.1f} s")


if __name__ == "__main__":
    main()
