"""A simulated run without computation: executed notebooks, tables, a figure and a results file, with odd names."""

import base64
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from aenmf_lib.results import write_h5ad

ODD = 'B <cell> & "T" $x$ \' </script><script>alert(1)</script>'
ENVIRONMENT = {
    "info": {
        "git_commit": "0123456789abcdef",
        "python": "3.11.7",
        "platform": "Linux",
        "peak_memory_mib": "345",
        "version_numpy": "2.4.6",
    },
    "packages": {"numpy": "2.4.6", "matplotlib": "3.11.2"},
}
TRAIN = """\
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells
k: int = 12  # number of programs
out: str = "results/lab/ae_nmf_k12.h5ad"  # results file
"""
BENCHMARKS = """\
model_paths: list[str] = ["results/demo/k12/ae_nmf_k12.h5ad"]  # results files to compare  # noqa: E501  # fmt: skip
out_dir: str = "results/lab"  # folder for the tables
seeds: list[int] = [0, 1, 2]  # one clustering per seed
scib: bool = False  # also compute the scores of scib-metrics
cells_path: str = "results/demo/filtered.h5ad"  # filtered cells; not set
extra: list[str] = []  # embeddings of other methods
"""
FILTER = """\
data: str = "data/demo.h5ad"  # input file
out: str = "results/lab/filtered.h5ad"  # output file
drop_labels: list[str] = []  # types whose cells are dropped
"""


def notebook(title: str, parameters: str, given: dict, minute: int, outputs: list[str], *texts: str) -> dict:
    """Return an executed notebook, which ran for 30 seconds, whose cells print texts."""
    prose = f"# {title}\n**Question.** What is in the file?  **Reads** a file.  **Writes** another one."
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": prose}]
    cells.append(_code("b", parameters, ["parameters"]))
    cells.append(
        _code("given", "".join(f"{name} = {value!r}\n" for name, value in given.items()), ["injected-parameters"])
    )
    cells += [_code(f"c{i}", "print(text)  # noqa: T201  # fmt: skip", [], text) for i, text in enumerate(texts)]
    papermill = {
        "parameters": given,
        "start_time": f"2026-01-02T03:{minute:02}:00.123456+00:00",
        "end_time": f"2026-01-02T03:{minute:02}:30.123456+00:00",
        "duration": 30.0,
    }
    metadata = {"papermill": papermill, "aenmf_lib": {"outputs": outputs, **ENVIRONMENT}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _code(name: str, source: str, tags: list[str], text: str = "") -> dict:
    """Return an executed code cell."""
    outputs = [{"output_type": "stream", "name": "stdout", "text": text}] if text else []
    shared = {"cell_type": "code", "id": name, "source": source, "execution_count": 1}
    return shared | {"metadata": {"tags": tags}, "outputs": outputs}


def _picture(name: str) -> dict:
    """Return the output of a cell that shows a figure."""
    html = f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(png(20, 10)).decode()}"/>'
    return {"output_type": "display_data", "metadata": {}, "data": {"text/html": html}}


def png(width: int, height: int) -> bytes:
    """Return a gray image of 300 dpi."""
    rows = (b"\0" + b"\x80" * width) * height
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"pHYs": struct.pack(">IIB", 11811, 11811, 1),  # pixels per meter
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    size = struct.Struct(">I").pack
    body = (size(len(of)) + kind + of + size(zlib.crc32(kind + of)) for kind, of in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def write_notebook(path: Path, content: dict) -> None:
    """Write a notebook."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_run(root: Path, data: str = "data/demo.h5ad") -> Path:
    """Write ``results/demo/k2`` below a folder: a filter, a fit and the benchmarks. Return its path."""
    folder, run = root / "results/demo", root / "results/demo/k2"
    (run / "figures").mkdir(parents=True)
    (folder / "input.yaml").write_text(f"path: {json.dumps(data)}\nsha256: {'ab' * 32}\n")
    (folder / "filtered.h5ad").write_bytes(b"cells")
    cells = AnnData(obs=pd.DataFrame(index=[]), var=pd.DataFrame(index=["a", "b", "c"]))
    cells.varm["W_tied_k2"] = np.ones((3, 2), "f4")
    cells.uns["provenance"] = {
        "input": {"path": "results/demo/filtered.h5ad", "sha256": "cd" * 32},
        "cell_type_in_training": False, "loss_history": np.array([2.0, 1.0]), "n_iter": 2, "sq_norm_per_cell": 1.0,
        "n_cells": 60, "stop": "reached max_iter = 2", "fit_seconds": 1.5, "device": "cpu",
    }  # fmt: skip
    write_h5ad(cells, run / "ae_nmf_k2.h5ad")
    given = {"data": data, "out": "results/demo/filtered.h5ad"}
    write_notebook(folder / "01_filter.ipynb", notebook("01 · Filter", FILTER, given, 1, ["filtered.h5ad"], ODD))
    given = {"cells_path": "results/demo/filtered.h5ad", "k": 2, "out": "results/demo/k2/ae_nmf_k2.h5ad"}
    content = notebook("03 · Train", TRAIN, given, 2, ["ae_nmf_k2.h5ad"], "fitted")
    write_notebook(run / "03_train_ae_nmf.ipynb", content)
    given = {"model_paths": ["results/demo/k2/ae_nmf_k2.h5ad"], "out_dir": "results/demo/k2"}
    given["extra"] = ["scVI=other/scvi.h5ad:X_scVI"]
    written = ["clustering_long.csv", "clustering_cell_type.csv", "figures/fig1_benchmark.png"]
    content = notebook("06 · Benchmarks", BENCHMARKS, given, 3, written, "scored")
    content["cells"][-1]["outputs"].append(_picture("fig1_benchmark"))
    content["cells"][-1]["outputs"].append(_picture("loss"))
    write_notebook(run / "06_benchmarks.ipynb", content)
    rows = [("AE_NMF", ODD, "01", 10, 0.123456789), ("AE_NMF", "T", "1e5", 9, -2.5), ("AE_NMF", "NK", "7", 100, 0.0)]
    table = pd.DataFrame(rows, columns=["Model", "class", "donor_id", "n_cells", "F1"])
    table.to_csv(run / "clustering_long.csv", index=False)
    table.iloc[:1].to_csv(run / "clustering_cell_type.csv", index=False)
    cards = pd.DataFrame({"program": [0, 1], "top_genes": [ODD, "CD3D, CD3E"], "stability": ["", 0.98765]})
    cards = cards.assign(usage_by_type=[f"{ODD} (3.0×)", "T (1.0×)"], variance_by_donor=0.25)
    cards = cards.assign(nearest_Base_NMF=[3.0, 0.0], cosine_Base_NMF=0.5)
    cards = cards.assign(
        nearest_CAE_NMF1=[1.0, np.nan], cosine_CAE_NMF1=[0.25, np.nan]
    )  # of another number of programs
    wide = {f"comment_{i}_on_the_program": "a_name_without_spaces" for i in range(12)}
    cards = cards.assign(**wide)  # wider than a page
    cards.to_csv(run / "program_cards_ae_nmf.csv", index=False)
    (run / "figures/fig1_benchmark.png").write_bytes(png(1051, 400))
    for end in ("pdf", "svg", "csv"):
        (run / f"figures/fig1_benchmark.{end}").write_text(f"a {end}\n")
    (run / "figures/fig1_benchmark.txt").write_text(f"Scores of {ODD}; one point per seed.\n")
    return run
