"""Other files that the pipeline reads: parameters (YAML), sums and checkpoints (npz) and score caches (csv)."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from fuzzing.element_damage import pick

_CALL = "open('executed', 'w').close()"  # code that must never run


class _Code:
    """An object whose unpickling runs code."""

    def __reduce__(self) -> tuple:
        return exec, (_CALL,)


@dataclass(frozen=True)
class Target:
    """A file that the product reads: its name, its valid content, how it is read, and the damage to try."""

    file: str
    content: bytes
    read: Callable[[Path], object]
    plain: Callable[[Path], object]  # the same without the product
    damages: dict[str, Callable[[bytes, np.random.Generator], bytes]]


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off at any byte."""
    return content[: int(rng.integers(len(content)))]


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip some bits."""
    data = bytearray(content)
    for i in rng.integers(len(data), size=int(rng.integers(1, 6))):
        data[i] ^= 1 << int(rng.integers(8))
    return bytes(data)


# ---- YAML ------------------------------------------------------------------------------------------------------------
_YAML = b"k: 12\nseed: 3\ngene_weights: none\nsums_path: ''\n03_train_ae_nmf:\n  max_iter: 40\n"
_NOTEBOOK = '# %% tags=["parameters"]\nk: int = 80  # programs\nseed: int = 42\nmax_iter: int = 100\n' + (
    'gene_weights: str = ""\nsums_path: str = ""\nstrengths: list[float] = [0.1]\n'
)
_LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
_INLINE = "&a0 [x], " + ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))
_YAMLS = {
    "call": f'k: !!python/object/apply:builtins.exec ["{_CALL}"]\n',
    "system": "k: !!python/object/apply:os.system ['touch executed']\n",
    "new": "k: !!python/object/new:os.system ['touch executed']\n",
    "name": "k: !!python/name:os.system\n",
    "module": "k: !!python/module:os\n",
    "unknown tag": "k: !secret 12\n",
    "laughs": _LAUGHS,
    "laughs in k": f"k: [{_INLINE}]\n",
    "alias of itself": "k: &k [*k]\n",
    "mapping of itself": "03_train_ae_nmf: &a {k: 3, max_iter: *a}\n",
    "merge": "a: &a {k: 3}\n03_train_ae_nmf:\n  <<: *a\n",
    "deep": "k: " + "[" * 1500 + "]" * 1500,
    "long": "gene_weights: " + "x" * 300_000 + "\n",
    "wrong and long": "k: " + "x" * 300_000 + "\n",
    "many names": "".join(f"name{i}: {i}\n" for i in range(3000)),
    "two documents": "k: 3\n---\nk: 4\n",
    "tabs": "k:\t3\n\tseed: 4\n",
    "control characters": "k: \x1b[31m\n",
    "escaped control characters": '"\\e[31mred": 3\n',
    "latin-1": "gene_weights: é\n",
    "list": "- k\n- seed\n",
    "number": "12\n",
    "empty": "",
    "null name": "~: 3\n",
    "large number": "k: " + "9" * 5000 + "\n",
    "sexagesimal": "k: 1:30:00\n",
    "date": "k: 2020-02-30\n",
    "binary": "k: !!binary gA==\n",
    "set": "k: !!set {1, 2}\n",
    "number as text": "k: '12'\n",
    "infinite": "strengths: [.inf]\n",
    "not a number": "strengths: [.nan]\n",
    "path": "sums_path: ../../../../etc/passwd\n",
    "code in text": f'gene_weights: "\\"; {_CALL} #"\n',
}


def _read_yaml(path: Path) -> object:
    """Read parameters as the workflow does."""
    from aenmf_lib.workflow import parameters

    notebook = path.with_name("03_train_ae_nmf.py")
    parameters.read_yaml(path)
    return parameters.resolve([notebook], path)["03_train_ae_nmf"]


def _plain_yaml(path: Path) -> object:
    """Read parameters with the safe loader of PyYAML."""
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    own = values.pop("03_train_ae_nmf", None) or {}
    return {n: [float(x) for x in v] if n == "strengths" else v for n, v in {**values, **own}.items()}


# ---- npz -------------------------------------------------------------------------------------------------------------
_OF = {"model": "AE_NMF", "seed": 3}


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Return arrays as npz."""
    np.savez(file := io.BytesIO(), **arrays)
    return file.getvalue()


_STATE = {"format": 1, "of": json.dumps(_OF), "W": np.arange(12.0).reshape(3, 4), "history": np.ones(3), "seconds": 2.5}


def _read_checkpoint(path: Path) -> object:
    """Read a checkpoint as a fit does."""
    from aenmf_lib.training.checkpoint import Checkpoint

    state = Checkpoint(path, _OF).load()
    return {name: np.asarray(state[name]).tolist() for name in ("W", "history")}


def _read_npz(path: Path) -> object:
    """Read sums as training does."""
    from aenmf_lib.data import files

    state = files.read_npz(path, 1, "sums over cells", ["W", "history"])
    return {name: np.asarray(state[name]).tolist() for name in ("W", "history")}


def _plain_npz(path: Path) -> object:
    """Read arrays with NumPy."""
    with np.load(path) as file:
        return {name: file[name].tolist() for name in ("W", "history")}


def _zip(**members: bytes) -> bytes:
    """Return a zip file."""
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _torch() -> bytes:
    """Return a torch file: a zip file with a pickle."""
    return _zip(**{"archive/data.pkl": pickle.dumps({"W": _Code()}), "archive/version": b"3\n"})


def _header(shape: str, descr: str = "<f8") -> bytes:
    """Return a numpy array without values."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


_ONE = _header("()", "<i8") + bytes([1] + [0] * 7)  # the format, as an array
_NPZS = {
    "cut": _cut,
    "flipped": _flip,
    "empty": lambda content, rng: b"",
    "pickled": lambda content, rng: pickle.dumps(_Code()),
    "pickled member": lambda content, rng: _npz(_STATE | {"W": np.array([_Code()], dtype=object)}),
    "pickled format": lambda content, rng: _npz(_STATE | {"format": np.array([_Code()], dtype=object)}),
    "torch": lambda content, rng: _torch(),
    "npy": lambda content, rng: _header("(3,)") + bytes(24),
    "other format": lambda content, rng: _npz(_STATE | {"format": 99}),
    "format is text": lambda content, rng: _npz(_STATE | {"format": "one"}),
    "format is an array": lambda content, rng: _npz(_STATE | {"format": np.ones(3)}),
    "missing": lambda content, rng: _npz({n: v for n, v in _STATE.items() if n != pick(_STATE, rng)}),
    "of is no json": lambda content, rng: _npz(_STATE | {"of": "{'model': open('executed', 'w')}"}),
    "of is a list": lambda content, rng: _npz(_STATE | {"of": "[1]"}),
    "of is another fit": lambda content, rng: _npz(_STATE | {"of": '{"model": "Base_NMF", "seed": 3}'}),
    "of is huge": lambda content, rng: _npz(_STATE | {"of": '{"model": "' + "x" * 1_000_000 + '"}'}),
    "terabytes": lambda content, rng: _zip(**{"format.npy": _ONE,
                                              "of.npy": b"", "W.npy": _header("(1099511627776,)")}),
    "bomb": lambda content, rng: _zip(**{"format.npy": _ONE,
                                         "W.npy": _header("(2097152,)") + bytes(1 << 24),
                                         "history.npy": _header("(3,)") + bytes(24)}),
    "a member is no array": lambda content, rng: _zip(**{"format.npy": _ONE,
        "W.npy": b"", "history.npy": b"text"}),
    "names with ../": lambda content, rng: _zip(**{"../../escaped.npy": content[:50]}),
    "zip of texts": lambda content, rng: _zip(**{"format.npy": b"text", "W.npy": b"text"}),
}  # fmt: skip

# ---- csv -------------------------------------------------------------------------------------------------------------
_ARI = [0.5, 0.25, 0.125, 1.0, 0.75]
_COLUMNS = ["label", "Model", "seed", "ARI"]
_CSV = pd.DataFrame(
    {"label": "cell_type", "Model": "AE_NMF", "seed": range(5), "ARI": _ARI, "made_from": "0a"}
).to_csv(index=False).encode()  # fmt: skip
_CSVS = {
    "cut": _cut,
    "flipped": _flip,
    "empty": lambda content, rng: b"",
    "binary": lambda content, rng: rng.bytes(500) + b"\n",
    "zeros": lambda content, rng: content[:60] + bytes(100) + content[60:],
    "text in numbers": lambda content, rng: content.replace(b"0.25", b"0.2x5"),
    "too many columns": lambda content, rng: content.replace(b"0.25,", b"0.25,1,2,"),
    "too few columns": lambda content, rng: content.replace(b"AE_NMF,1,0.25,", b"AE_NMF,1"),
    "open quote": lambda content, rng: content.replace(b"cell_type,AE_NMF,1", b'"cell_type,AE_NMF,1'),
    "other columns": lambda content, rng: content.replace(b"ARI", b"NMI", 1),
    "long line": lambda content, rng: content + b"x" * 5_000_000 + b"\n",
    "formula": lambda content, rng: content.replace(b"0.25", b'=cmd|" /C touch executed"!A0'),
    "pickled": lambda content, rng: pickle.dumps(_Code()) + b"\n",
    "repeated header": lambda content, rng: content + content,
    "blank lines": lambda content, rng: content.replace(b"\n", b"\n\n"),
    "carriage returns": lambda content, rng: content.replace(b"\n", b"\r\n"),
    "byte order mark": lambda content, rng: b"\xef\xbb\xbf" + content,
}


def _read_csv(path: Path) -> object:
    """Read cached scores as notebook 06 does: rows that are valid, the rest is computed again."""
    from aenmf_lib.metrics.score_cache import ScoreCache

    cache = ScoreCache(path, _COLUMNS, ["label", "Model", "seed"])
    tasks = {("cell_type", "AE_NMF", seed): "0a" for seed in range(5)}
    table = cache.evaluate(tasks, lambda keys: ((key, {"ARI": _ARI[key[2]]}) for key in keys))
    if not pd.api.types.is_float_dtype(table["ARI"]):
        raise AssertionError(f"scores are {table['ARI'].tolist()}")
    return table["ARI"].tolist()


def _plain_csv(path: Path) -> object:
    """Return the cached scores that pandas reads, and the computed ones for rows that it does not find."""
    table = pd.read_csv(path, float_precision="round_trip")
    table = table[(table["label"] == "cell_type") & (table["Model"] == "AE_NMF") & (table["made_from"] == "0a")]
    found = {int(seed): float(score) for seed, score in zip(table["seed"], table["ARI"], strict=True)}
    return [found.get(seed, score) for seed, score in enumerate(_ARI)]


TARGETS = {
    "yaml": Target(
        "other.yaml", _YAML, _read_yaml, _plain_yaml,
        {"cut": _cut, "flipped": _flip}
        | {n: (lambda content, rng, t=t: t.encode("latin-1" if "é" in t else "utf-8")) for n, t in _YAMLS.items()},
    ),
    "checkpoint": Target("ae.checkpoint.npz", _npz(_STATE), _read_checkpoint, _plain_npz, _NPZS),
    "sums": Target("sums.npz", _npz(_STATE), _read_npz, _plain_npz, _NPZS),
    "scores": Target("scores.csv", _CSV, _read_csv, _plain_csv, _CSVS),
}  # fmt: skip
CASES = [(target, damage) for target in TARGETS for damage in TARGETS[target].damages]


def write(folder: Path, target: str, damage: str, rng: np.random.Generator) -> Path:
    """Write a damaged file and what its reader needs beside it; return its path."""
    (folder / "03_train_ae_nmf.py").write_text(_NOTEBOOK)
    path = folder / TARGETS[target].file
    path.write_bytes(TARGETS[target].damages[damage](TARGETS[target].content, rng))
    return path
