"""Simulated cells with the shape of an atlas and the schema of a CELLxGENE file, in any number.

They stand in for an atlas when time, memory and disk are measured. The counts are drawn and written block by block, so
that memory does not grow with the counts. Each cell type is a mixture of sparse gene programs, and its cells differ in
their usages. Each donor adds its own program and changes some others. A background covers all genes. The number of
genes per cell is drawn first, so that the arrays of the file have their final size. For a simulation with known
programs use `aenmf_lib.data.simulate`.
"""

import shutil
import string
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import write_elem
from numba import njit

from aenmf_lib.data.appending import COMPRESSIONS, GrowingMatrix, new_folder
from aenmf_lib.data.files import atomic

_PROGRAMS = 60
_BACKGROUND, _DONOR = 0.4, 0.05  # share of a cell's counts from the background, and from the program of its donor
_CHANGED, _CHANGE = 4, 0.15  # programs that differ in a donor, and the share of their counts that goes to other genes
_SLOTS = 1 << 12  # entries in the table of a program: each gene occurs as often as its share, so a draw is one look-up
_BACKGROUND_SLOTS = 1 << 17
_PICKS = 1 << 10  # a cell's usages are rounded to multiples of 1 / _PICKS
_BLOCK = 1 << 21  # nonzeros that are drawn at a time
_AHEAD = 4  # number of blocks that are drawn in advance, and of threads that draw them
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)  # multiplied by a power of 2, its first 6 bits identify the power
_POSITION = np.argsort([((int(_DE_BRUIJN) << i) % 2**64) >> 58 for i in range(64)])
_SPREAD = 0.3  # standard deviation of the logarithm of the number of genes per cell
_TERMS = {  # columns of obs with one value for all cells: the value and the id of its term
    "assay": ("10x 3' v3", "EFO:0009922"),
    "development_stage": ("adult stage", "HsapDv:0000258"),
    "disease": ("normal", "PATO:0000461"),
    "organism": ("Homo sapiens", "NCBITaxon:9606"),
    "self_reported_ethnicity": ("unknown", "unknown"),
    "sex": ("unknown", "unknown"),
    "tissue": ("blood", "UBERON:0000178"),
}


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """Simulated cells with the shape of an atlas. `write` writes them; the same parameters give the same cells.

    Parameters
    ----------
    cells, genes, types, donors
        Numbers of cells, genes, cell types and donors. Types and donors have unequal numbers of cells, as in atlases.
    nonzeros
        Mean number of genes that a cell expresses. The number of each cell is drawn from a lognormal distribution.
    seed
        Seed of all random numbers.
    compact
        Store counts and gene numbers as uint16 instead of the published float32 and int32: half of the size.
    compression
        ``"none"``, ``"gzip"`` (h5ad) or ``"zstd"`` (zarr, version 3, in shards).
    raw_only
        Store the counts in ``X``. Otherwise ``X`` is log-normalized and ``raw/X`` has the counts, as is usual.

    Raises
    ------
    ValueError
        A number is out of range.
    """

    cells: int
    genes: int = 60_606
    nonzeros: int = 2000
    types: int = 40
    donors: int = 20
    seed: int = 42
    compact: bool = False
    compression: str = "none"
    raw_only: bool = False

    def __post_init__(self) -> None:
        least = {"cells": 1, "genes": 100, "nonzeros": 1, "types": 1, "donors": 1, "seed": 0}
        most = {"types": 1000, "donors": 5000} | ({"genes": 2**16} if self.compact else {})
        for name, low in least.items():
            value, high = getattr(self, name), most.get(name, 2**31 - 1)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name}={value!r} is not possible. Choose a whole number from {low} to {high}.")

    def write(self, path: str | Path) -> None:
        """Write the cells as ``.h5ad`` or ``.zarr``, atomically. Memory: below 1 GB, and about 500 bytes per cell.

        Raises ValueError if the name or the compression does not fit, and OSError if the disk is too small.
        """
        path = Path(path)
        known = COMPRESSIONS.get(path.suffix)
        if known is None or self.compression not in known:
            choices = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in COMPRESSIONS.items())
            found = f"{path} with the compression {self.compression!r} cannot be written"
            raise ValueError(f"{found}. Choose a name that ends in .h5ad or .zarr, and a compression ({choices}).")
        needed, folder = self.size(), next(parent for parent in path.absolute().parents if parent.exists())
        if needed > (free := shutil.disk_usage(folder).free):
            found = f"{path} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {folder}"
            raise OSError(f"{found}. Choose fewer cells (now {self.cells:,}), or another disk.")
        if path.suffix == ".h5ad":
            with atomic(path) as partial, h5py.File(partial, "w") as file:
                self._fill(file)
            return
        with new_folder(path) as partial, anndata.settings.override(auto_shard_zarr_v3=False):
            self._fill(zarr.open_group(partial, mode="w", zarr_format=3))

    def size(self) -> int:
        """Return the approximate size of the file in bytes, without compression."""
        per_count = (4 if self.compact else 8) + (0 if self.raw_only else 6 if self.compact else 8)
        return int(1.02 * self.cells * (self.nonzeros * per_count + 150)) + 300 * self.genes

    def _fill(self, file: h5py.File | zarr.Group) -> None:
        """Draw all cells and write them into an empty file."""
        rng = np.random.default_rng(self.seed)
        tables = _Tables.draw(rng, self)
        if self.nonzeros > tables.reach // 2:
            found = f"nonzeros={self.nonzeros} is too large for genes={self.genes}, because many of the genes are rare"
            raise ValueError(f"{found}. Choose at most {tables.reach // 2} nonzeros, or more genes.")
        n_nonzero = self.nonzeros * rng.lognormal(-(_SPREAD**2) / 2, _SPREAD, self.cells)
        n_nonzero = n_nonzero.astype(np.int64).clip(1, tables.reach)
        donor, kind = _draw_labels(rng, self)
        indptr = np.concatenate([[0], n_nonzero.cumsum()])
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", _obs(rng, donor, kind))
        var = _var(self.genes)
        write_elem(file, "var", var)
        title = f"{self.cells} simulated cells with the shape of an atlas"
        uns = {"schema_version": "7.0.0", "title": title, "citation": "Simulated, not published", **asdict(self)}
        write_elem(file, "uns", {name: value for name, value in uns.items() if not isinstance(value, bool)})
        for name in ("layers", "obsm", "obsp", "varm", "varp"):
            write_elem(file, name, {})
        if not self.raw_only:
            raw = file.create_group("raw")
            raw.attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})
            write_elem(raw, "var", var.drop(columns="feature_is_filtered"))
            write_elem(raw, "varm", {})

        def draw(lo: int, hi: int) -> tuple[np.ndarray, ...]:
            own = np.random.default_rng([self.seed, lo])
            picks = _picks(own, tables.shares[kind[lo:hi]], tables, donor[lo:hi])
            seeds = own.integers(1, 2**63, hi - lo, dtype=np.uint64)
            return _draw(seeds, n_nonzero[lo:hi], picks, tables.genes, tables.starts, tables.masks, self.genes)

        with ThreadPoolExecutor(_AHEAD) as pool:
            settings = {"compression": self.compression, "pool": pool}
            types = (np.uint16, np.uint16) if self.compact else (np.float32, np.int32)
            name = "X" if self.raw_only else "raw/X"
            raw, normalized = GrowingMatrix(file, name, indptr, self.genes, types=types, **settings), None
            if not self.raw_only:
                types = (np.float32, types[1])
                normalized = GrowingMatrix(file, "X", indptr, self.genes, types=types, **settings)
            for indices, counts, values in _ahead(pool, draw, _blocks(indptr)):
                raw.append(indices, counts)
                if normalized:
                    normalized.append(indices, values)
            raw.close()
            if normalized:
                normalized.close()


# ---------------------------------------------------------------- drawing
@dataclass(frozen=True)
class _Tables:
    """Genes of each program, and usages of each type. Programs of donors follow those of types."""

    genes: np.ndarray  # int32, all tables in sequence; the last two are the common and the rare genes of the background
    starts: np.ndarray  # (n_tables,) uint64, the start of each table
    masks: np.ndarray  # (n_tables,) uint64, its length − 1
    rare: float  # share of the rare genes in the background
    shares: np.ndarray  # (n_types, _PROGRAMS), usages
    changed: np.ndarray  # (n_donors, _CHANGED), the programs that differ in a donor
    reach: int  # the largest number of genes that a cell can express

    @classmethod
    def draw(cls, rng: np.random.Generator, shape: StandIn) -> "_Tables":
        """Draw the programs of types and donors, and the background."""
        share = rng.lognormal(0, 2.4, shape.genes)
        share /= share.sum()
        common = share >= 1 / _BACKGROUND_SLOTS
        background = [_table(rng, np.flatnonzero(common), share[common], _BACKGROUND_SLOTS)]
        rare = np.flatnonzero(~common) if not common.all() else np.arange(shape.genes)
        background.append(_table(rng, rare, share[rare], _BACKGROUND_SLOTS))
        sizes = [max(shape.genes // 40, 5)] * (_PROGRAMS + shape.donors) + [15] * (shape.donors * _CHANGED)
        programs = []
        for size in sizes:
            genes = rng.choice(shape.genes, min(size, shape.genes), replace=False)
            programs.append(_table(rng, genes, rng.lognormal(0, 1.8, len(genes)), _SLOTS))
        changed = np.stack([rng.choice(_PROGRAMS, _CHANGED, replace=False) for _ in range(shape.donors)])
        usages = rng.dirichlet(np.full(_PROGRAMS, 3 / _PROGRAMS), shape.types)
        reach = len(np.unique(background[0]))
        tables = [*programs, *background]
        lengths = np.array([len(table) for table in tables], dtype=np.uint64)
        starts = lengths.cumsum(dtype=np.uint64) - lengths
        return cls(np.concatenate(tables), starts, lengths - 1, float(share[~common].sum()), usages, changed, reach)


def _table(rng: np.random.Generator, genes: np.ndarray, share: np.ndarray, slots: int) -> np.ndarray:
    """Return a table (slots,) of genes, repeated by their shares."""
    return rng.choice(genes, slots, p=share / share.sum()).astype(np.int32)


def _draw_labels(rng: np.random.Generator, shape: StandIn) -> tuple[np.ndarray, np.ndarray]:
    """Return the donor and the type of each cell, (n_cells,) int16. Small donors lack some types."""
    size = rng.permutation(np.exp(0.8 * np.linspace(-2, 2, shape.donors)))
    donor = rng.choice(shape.donors, shape.cells, p=size / size.sum()).astype(np.int16)
    frequency = rng.permutation(np.exp(1.2 * np.linspace(-2, 2, shape.types)))
    shares = rng.dirichlet(60 * frequency / frequency.sum(), shape.donors)  # (n_donors, n_types)
    kind = np.empty(shape.cells, dtype=np.int16)
    for d in range(shape.donors):
        of_donor = donor == d
        kind[of_donor] = rng.choice(shape.types, of_donor.sum(), p=shares[d])
    return donor, kind


def _picks(rng: np.random.Generator, usages: np.ndarray, tables: _Tables, donor: np.ndarray) -> np.ndarray:
    """Return the tables that each cell draws from, (n_cells, _PICKS). `usages` of its type: (n_cells, _PROGRAMS)."""
    n, n_donors = len(donor), len(tables.changed)
    own = usages * rng.gamma(4, 1 / 4, usages.shape) + 1e-6
    own *= (1 - _BACKGROUND - _DONOR) / own.sum(axis=1, keepdims=True)
    shares = np.zeros((n, len(tables.starts)))
    shares[:, :_PROGRAMS] = own
    cell = np.arange(n)
    shares[cell, _PROGRAMS + donor] = _DONOR
    for j, program in enumerate(tables.changed[donor].T):
        moved = _CHANGE * own[cell, program]
        shares[cell, program] -= moved
        shares[cell, _PROGRAMS + n_donors + _CHANGED * donor + j] = moved
    shares[:, -2], shares[:, -1] = _BACKGROUND * (1 - tables.rare), _BACKGROUND * tables.rare
    at = np.rint(shares.cumsum(axis=1) * _PICKS).astype(np.int64)
    picks = np.repeat(np.tile(np.arange(shares.shape[1], dtype=np.int16), n), np.diff(at, prepend=0, axis=1).ravel())
    return picks.reshape(n, _PICKS)


@njit(cache=True, nogil=True)
def _draw(seeds, n_nonzero, picks, genes, starts, masks, n_genes):
    """Draw counts until each cell expresses its number of genes. Return indices, counts and log-normalized counts."""
    indices = np.empty(n_nonzero.sum(), dtype=np.int32)
    counts = np.empty(len(indices), dtype=np.float32)
    values = np.empty(len(indices), dtype=np.float32)
    count = np.zeros(n_genes, dtype=np.int32)
    small = np.empty(32, dtype=np.float32)  # log-normalized values of the counts below 32 in one cell
    seen = np.zeros(n_genes // 64 + 1, dtype=np.uint64)  # one bit per gene, to return the genes in order
    put = 0
    for i in range(len(seeds)):
        state, missing, total, first = seeds[i], n_nonzero[i], 0, put
        while missing:
            # splitmix64 (Steele et al. 2014, doi:10.1145/2660193.2660195)
            state += np.uint64(0x9E3779B97F4A7C15)
            z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
            table = picks[i, z & np.uint64(_PICKS - 1)]
            gene = genes[starts[table] + ((z >> np.uint64(32)) & masks[table])]
            missing -= count[gene] == 0  # without branches, which processors predict badly for random numbers
            seen[gene >> 6] |= np.uint64(1) << np.uint64(gene & 63)
            count[gene] += 1
            total += 1
        for word in range(len(seen)):
            bits = seen[word]
            seen[word] = 0
            while bits:
                gene = word * 64 + _POSITION[((bits & -bits) * _DE_BRUIJN) >> np.uint64(58)]
                indices[put], counts[put] = gene, count[gene]
                count[gene] = 0
                put += 1
                bits &= bits - np.uint64(1)
        scale = np.float32(1e4 / total)
        for j in range(len(small)):
            small[j] = np.log1p(np.float32(j) * scale)
        for j in range(first, put):
            n = np.int64(counts[j])
            values[j] = small[n] if n < len(small) else np.log1p(counts[j] * scale)
    return indices, counts, values


# ---------------------------------------------------------------- writing
def _blocks(indptr: np.ndarray) -> list[tuple[int, int]]:
    """Return the bounds of blocks of about _BLOCK nonzeros."""
    edges = [*np.searchsorted(indptr, np.arange(0, indptr[-1], _BLOCK)), len(indptr) - 1]
    return [(lo, hi) for lo, hi in pairwise(edges) if hi > lo]


def _ahead(pool: ThreadPoolExecutor, task: Callable, calls: list[tuple]) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the results of a task in order, while the next ones are computed."""
    waiting = deque()
    for call in calls:
        waiting.append(pool.submit(task, *call))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _obs(rng: np.random.Generator, donor: np.ndarray, kind: np.ndarray) -> pd.DataFrame:
    """Return obs with the columns of CELLxGENE's schema."""
    n, n_donors, n_types = len(donor), donor.max() + 1, kind.max() + 1
    letters = rng.choice(np.frombuffer(string.ascii_letters.encode(), "S1"), (n, 10))
    obs = pd.DataFrame(index=[f"SIM{d + 1}_{i:07d}" for i, d in enumerate(donor)])
    obs["donor_id"] = pd.Categorical.from_codes(donor, [f"SIM{d + 1}" for d in range(n_donors)])
    obs["cell_type"] = pd.Categorical.from_codes(kind, [f"simulated type {t + 1}" for t in range(n_types)])
    obs["cell_type_ontology_term_id"] = pd.Categorical.from_codes(kind, [f"SIM:{t + 1:07d}" for t in range(n_types)])
    constant = {"suspension_type": "cell", "tissue_type": "tissue"}
    for name, (value, term) in _TERMS.items():
        constant |= {name: value, f"{name}_ontology_term_id": term}
    for name, value in constant.items():
        obs[name] = pd.Categorical.from_codes(np.zeros(n, np.int8), [value])
    obs["is_primary_data"] = True
    obs["observation_joinid"] = letters.view("S10").ravel().astype(str).astype(object)
    return obs


def _var(n: int) -> pd.DataFrame:
    """Return var with the columns of CELLxGENE's schema. The ids are not ids of human genes."""
    var = pd.DataFrame({"feature_is_filtered": np.zeros(n, bool)}, index=[f"ENSG9{i:010d}" for i in range(n)])
    var["feature_name"] = pd.Categorical([f"SIM{i + 1}" for i in range(n)])
    for name, value in (("reference", "NCBITaxon:9606"), ("biotype", "gene"), ("type", "protein_coding")):
        var[f"feature_{name}"] = pd.Categorical.from_codes(np.zeros(n, np.int8), [value])
    var["feature_length"] = 1000
    return var
