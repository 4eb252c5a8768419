"""Tests of opening files: what cannot be read is one clear error with the file, the element and the remedy."""

import errno
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
import zlib

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import psutil
import pytest
import zarr
from conftest import tiny_cells

from aenmf_lib import data
from aenmf_lib.data import files, reading
from aenmf_lib.data.streaming import CellStream

READERS = {
    "read_counts": data.read_counts,
    "stream": lambda path: [X for X, _ in CellStream(path, counts=True)],
    "load": data.load,
    "read_h5ad": files.read_h5ad,
}


def message(path, readers=("read_counts", "stream", "load", "read_h5ad"), kind=(OSError, ValueError)):
    """Return the errors of all readers, which must be of a kind that names the file."""
    texts = []
    for name in readers:
        with pytest.raises(kind) as error:
            READERS[name](path)
        assert str(path) in str(error.value)
        texts.append(str(error.value))
    return texts if len(texts) > 1 else texts[0]


# ---- paths
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"), (b"cell,gene\n", "a text file"), (b"PK\x03\x04....", "a zip archive"),
        (pickle.dumps({"a": 1}), "a pickle of Python"), (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b"<html>", "a web page"),
    ],
)  # fmt: skip
def test_file_of_another_format_is_named(tmp_path, content, kind):
    path = tmp_path / "cells.h5ad"
    path.write_bytes(content)
    for text in message(path, kind=OSError):
        assert f"({len(content)} bytes) is not an HDF5 file; it is {kind}" in text


def test_missing_file_gives_advice_for_make_and_python(tmp_path, h5ad):
    text = message(tmp_path / "other.h5ad", kind=FileNotFoundError)[0]
    assert "contains cells.h5ad. Pass the path of an existing .h5ad or .zarr, such as" in text
    assert f"(with make: DATA={h5ad})" in text


def test_link_to_itself_and_dangling_link_and_pipe_and_folder(tmp_path):
    (tmp_path / "a.h5ad").symlink_to(tmp_path / "b.h5ad")
    (tmp_path / "b.h5ad").symlink_to(tmp_path / "a.h5ad")
    (tmp_path / "c.h5ad").symlink_to(tmp_path / "gone.h5ad")
    os.mkfifo(tmp_path / "pipe.h5ad")
    (tmp_path / "folder").mkdir()
    for name, expected in {
        "a.h5ad": "is a link that leads to itself", "c.h5ad": "a link to ", "pipe.h5ad": "neither a file nor a folder",
        "folder": "is a folder, but not a zarr store",
    }.items():  # fmt: skip
        assert expected in message(tmp_path / name, ["read_counts"], OSError)


def test_file_without_permission(h5ad, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root can read all files
    assert "permission denied. Ask its owner, or run: chmod +r" in message(h5ad, ["read_counts"], PermissionError)


@pytest.mark.parametrize("size", [9, 500, 3000, -1])
def test_truncated_file(h5ad, size):
    h5ad.write_bytes(h5ad.read_bytes()[:size])
    for text in message(h5ad, kind=OSError):
        assert (
            "cannot be opened as HDF5" if size == 9 else "is truncated (was a copy or download interrupted?)"
        ) in text


def test_locked_file_is_not_called_truncated(h5ad):
    read = f"from aenmf_lib import data\ntry: data.read_counts({str(h5ad)!r})\nexcept OSError as error: print(error)"
    with h5py.File(h5ad, "r+"):
        text = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True).stdout
    assert "is open for writing in another program, or the file system has no locks" in text
    assert "HDF5_USE_FILE_LOCKING=FALSE" in text
    assert "truncated" not in text


def run_lines(text) -> None:
    """Run the last two lines of an error."""
    exec("\n".join(line.strip() for line in text.splitlines()[-2:]), {})


def test_10x_file_gives_the_lines_that_convert_it(tmp_path):
    cells, path = tiny_cells(), tmp_path / "tenx.h5"
    X = cells.X.ceil().T.tocsc()
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"], group["shape"] = cells.obs_names.to_numpy().astype("S"), [40, 60]
        group["data"], group["indices"], group["indptr"] = X.data.astype(np.int32), X.indices, X.indptr
        names = cells.var_names.to_numpy().astype("S")
        for name in ("id", "name", "feature_type", "genome"):
            group[f"features/{name}"] = np.array([b"Gene Expression"] * 40) if name == "feature_type" else names
    text = message(path, ["read_counts"])
    assert "is a 10x file, not an .h5ad file" in text
    run_lines(text)
    converted = data.read_counts(path.with_suffix(".h5ad"))[0]
    np.testing.assert_array_equal(converted.X.toarray(), cells.X.ceil().toarray())


def test_h5mu_file_gives_the_lines_that_convert_it(tmp_path, h5ad):
    path, cells = tmp_path / "m.h5mu", ad.read_h5ad(h5ad)
    with h5py.File(path, "w") as file:
        for part, value in {"mod/rna": cells, "obs": cells.obs, "var": cells.var}.items():
            ad.io.write_elem(file, part, value)
    text = message(path, ["read_counts"])
    assert "is a file of several modalities" in text
    run_lines(text)
    assert data.read_counts(path.with_suffix(".h5ad"))[0].shape == (60, 40)


# ---- the guard
@pytest.mark.parametrize(
    "error",
    [KeyError("x"), IndexError("x"), OverflowError("x"), RuntimeError("x"), zlib.error("x"), AttributeError("x"),
     UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), RecursionError("x"), TypeError("x"), AssertionError()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_guard_turns_every_error_into_one_with_file_element_and_remedy(error):
    with pytest.raises(ValueError, match=r"^cells.h5ad: obs/a cannot be read \(.+\)\. Copy or download the file again"):
        with files.guard("cells.h5ad", "obs/a"):
            raise error


def test_guard_keeps_memory_errors_and_errors_that_are_explained():
    with pytest.raises(MemoryError, match=r"a.h5ad: X does not fit in memory"), files.guard("a.h5ad", "X"):
        np.empty(2**55)
    with pytest.raises(OSError, match=r"^a.h5ad: X cannot be read \(x\)"), files.guard("b"), files.guard("a.h5ad", "X"):
        raise OSError("x")


def test_memory_limit_is_restored_and_does_not_disturb_other_threads():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    allocated = []
    with files.guard("a.h5ad"):
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] != before[0]
        thread = threading.Thread(target=lambda: allocated.append(np.ones(2**27, np.uint8).sum()))
        thread.start()
        thread.join()
        with files.guard("b.h5ad"):
            pass
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert allocated == [2**27]


def change(h5ad, edit):
    """Change a file with a function of the open file."""
    with h5py.File(h5ad, "r+") as file:
        edit(file)


def replace_data(file, **options):
    """Replace the values of X by another data set."""
    n = file["X/data"].shape[0]
    del file["X/data"]
    return file["X"].create_dataset("data", (n,), "f4", **options)


def test_compressed_values_that_expand_are_refused(h5ad, monkeypatch):
    bomb = zlib.compress(bytes(2**28), 9)
    edits = {
        "more than the possible": {"chunks": (700,)},
        "cannot be read": {"chunks": (2**20,), "maxshape": (None,)},
    }
    monkeypatch.setattr(reading, "_SPARE", 2**27)
    for expected, options in edits.items():
        change(
            h5ad, lambda file, o=options: replace_data(file, compression="gzip", **o).id.write_direct_chunk((0,), bomb)
        )
        for text in message(h5ad, ["read_counts", "load"]):
            assert expected in text


def external(file):
    del file["X"]
    file["X"] = h5py.ExternalLink("other.h5ad", "/X")


def virtual(file):
    layout = h5py.VirtualLayout((n := file["X/data"].shape[0],), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (n,))
    del file["X/data"]
    file["X"].create_virtual_dataset("data", layout)


@pytest.mark.parametrize(
    "edit", [external, virtual, lambda file: replace_data(file, external=[("other", 0, h5py.h5f.UNLIMITED)])]
)
def test_values_in_another_file_are_refused(h5ad, edit):
    change(h5ad, edit)
    for text in message(h5ad):
        assert "is a link to another file. Copy the data into the file" in text


def circle(file):
    file["uns/provenance"] = file["uns"]


def soft_circle(file):
    file["uns/provenance"] = h5py.SoftLink("/uns")


@pytest.mark.parametrize("edit", [circle, soft_circle])
def test_groups_that_contain_themselves_end_quickly(h5ad, edit):
    change(h5ad, edit)
    for text in message(h5ad, ["stream", "load", "read_h5ad"]):
        assert "a link to one of its own groups" in text


def set_value(name, at, value):
    """Return a function that sets one value of a data set."""

    def edit(file):
        values = file[name][:]
        values[at] = value
        file[name][:] = values

    return edit


def of_type(name, dtype):
    """Return a function that stores a data set in another type."""

    def edit(file):
        values, attributes = file[name][:], dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, data=values.astype(dtype)).attrs.update(attributes)

    return edit


DAMAGED = {
    "obs/donor_id cannot be read (codes need to be between": set_value("obs/donor_id/codes", 3, 77),
    "obs/donor_id cannot be read (No read method registered": lambda f: f["obs/donor_id"].attrs.update(
        {"encoding-type": "?"}
    ),
    "obs/_index cannot be read (a text is not UTF-8": set_value("obs/_index", 3, b"\xff\xfe"),
    "X contains values of type complex64": of_type("X/data", "c8"),
    "X has indices that are not whole numbers": of_type("X/indices", "f4"),
    "obs/donor_id": lambda f: f["obs"].attrs.update({"column-order": ["donor_id", "."]}),
    "obs/gone cannot be read": lambda f: f["obs"].attrs.update({"column-order": ["donor_id", "gone"]}),
    "obs cannot be read": lambda f: f["obs"].attrs.__delitem__("_index"),
}


@pytest.mark.parametrize("expected", DAMAGED)
def test_damaged_element_is_named(h5ad, expected):
    change(h5ad, DAMAGED[expected])
    for text in message(h5ad, ["read_counts", "stream", "load"]):
        assert f"cells.h5ad: {expected}" in text


def test_texts_that_hdf5_would_read_in_a_circle_are_refused(h5ad):
    raw = bytearray(h5ad.read_bytes())
    heap = raw.index(b"GCOL\x01\0\0\0")
    raw[heap + 16 : heap + 32] = bytes(16)
    h5ad.write_bytes(raw)
    for text in message(h5ad, kind=OSError):
        assert f"is damaged: the texts at byte {heap + 16} cannot be read" in text


@pytest.mark.parametrize("name", ["X/data", "X/indptr"])
def test_declared_size_that_does_not_fit_in_memory_is_refused(h5ad, name):
    def huge(file):
        del file[name]
        file.create_dataset(name, (2**45,), "i4", chunks=(1024,))

    change(h5ad, huge)
    message(h5ad, kind=(ValueError, MemoryError))


def test_index_of_another_length_is_an_error_before_it_is_read(h5ad):
    def longer(file):
        del file["obs/_index"]
        file["obs"].create_dataset("_index", (2**28,), h5py.string_dtype(), chunks=(1024,))

    change(h5ad, longer)
    with h5py.File(h5ad, "r+") as file:  # a column that is one array
        del file["obs/donor_id"]
        file["obs/donor_id"] = np.arange(60)
    text = message(h5ad, ["read_counts"])
    assert f"obs/donor_id has 60 values, but there are {2**28} names" in text


def test_link_inside_a_zarr_folder_is_refused(h5ad, tmp_path):
    path = tmp_path / "cells.zarr"
    ad.read_h5ad(h5ad).write_zarr(path)
    (path / "X/extra").symlink_to("/dev/zero")
    assert "X/extra is a link to another file" in message(path)[0]


def test_damaged_zarr_is_one_clear_error(h5ad, tmp_path):
    ad.read_h5ad(h5ad).write_zarr(source := tmp_path / "source.zarr")
    n = 0
    for file in sorted(file.relative_to(source) for file in (source / "X").rglob("*") if file.is_file()):
        if file.name != ".zattrs" or file.parent.name == "X":  # arrays have no attributes that are used
            shutil.copytree(source, path := tmp_path / f"{n}.zarr")
            (path / file).write_bytes((path / file).read_bytes()[: 7 + n % 2])
            message(path, ["read_counts", "load"])
            n += 1
    assert n >= 8


# ---- obs and var
def awkward() -> pd.DataFrame:
    """Return columns of all types, some of which not all anndata versions can write."""
    n, names = 60, [f"cell{i}" for i in range(60)]
    return pd.DataFrame(
        {
            "text": [f"a{i}" for i in range(n)],
            "nullable": pd.array([None, *"ab" * 29, "c"], dtype="string"),
            "integers": pd.array([None, *range(n - 1)], dtype="Int64"),
            "bools": pd.array([None, *[True] * (n - 1)], dtype="boolean"),
            "floats": pd.array([None, *range(n - 1)], dtype="Float64"),
            "ordered": pd.Categorical([None, *[1, 2] * 29, 3], categories=[3, 2, 1], ordered=True),
            "bytes": [b"x"] * n,
            "mixed": ["a", 1, None, *[2.5] * (n - 3)],
            "dates": pd.date_range("2020", periods=n),
            "objects": [(1, 2)] * n,
            "big-endian": np.arange(n, dtype=">f4"),
            "half": np.arange(n, dtype=np.float16),
            "intervals": pd.cut(np.arange(n), 3),
        },
        index=pd.Index(names, name="text"),
    )


def test_columns_of_every_type_are_written_and_read(tmp_path, h5ad, caplog):
    cells = ad.read_h5ad(h5ad)
    cells.obs = awkward()
    caplog.set_level("INFO")
    read = data.read_counts(cells)[0]
    assert "obs: 4 columns are read as text" in caplog.text
    files.write_h5ad(cells, tmp_path / "a.h5ad")
    read.write_h5ad(tmp_path / "b.h5ad")
    for obs in (data.read_counts(tmp_path / "a.h5ad")[0].obs, data.read_counts(tmp_path / "b.h5ad")[0].obs):
        assert list(obs) == list(awkward())
        assert obs["nullable"].isna().sum() == 1
        assert list(obs["mixed"][:2]) == ["a", "1"]
        assert obs["mixed"].isna().sum() == 1
        assert obs["ordered"].cat.ordered
        assert list(obs["ordered"].cat.categories) == [3, 2, 1]
        assert obs["dates"].iloc[1].startswith("2020-01-02")
        assert set(obs["bytes"]) == {"x"}
        assert obs["integers"].iloc[5] == 4
        assert obs["bools"].isna().sum() == obs["floats"].isna().sum() == 1
        assert obs["big-endian"].dtype == np.float32
        assert obs.index.dtype == object


@pytest.mark.parametrize("dtype", ["string", object, "category", "S"])
def test_names_are_plain_text(tmp_path, h5ad, dtype):
    cells = ad.read_h5ad(h5ad)
    with ad.settings.override(allow_write_nullable_strings=True):
        cells.obs.index = cells.obs.index.astype("string" if dtype == "string" else object)
        cells.write_h5ad(tmp_path / "a.h5ad")
    if dtype in ("S", "category"):
        with h5py.File(tmp_path / "a.h5ad", "r+") as file:
            values = file["obs/_index"][:].astype("S")
            del file["obs/_index"]
            if dtype == "S":
                file["obs/_index"] = values
            else:
                ad.io.write_elem(file["obs"], "_index", pd.Categorical(values.astype(str)))
    for obs in (data.read_counts(tmp_path / "a.h5ad")[0].obs, CellStream(tmp_path / "a.h5ad", counts=True).obs):
        assert obs.index.dtype == object
        assert list(obs.index) == [f"cell{i}" for i in range(60)]


def test_missing_name_is_an_error(tmp_path, h5ad):
    cells = ad.read_h5ad(h5ad)
    with h5py.File(h5ad, "r+") as file:
        del file["var/_index"]
        names = pd.array([*cells.var_names[:7], None, *cells.var_names[8:]], dtype="string")
        with ad.settings.override(allow_write_nullable_strings=True):
            ad.io.write_elem(file["var"], "_index", names)
    assert "var has 1 missing names (first: number 8 of 40)" in message(h5ad, ["read_counts"])


# ---- writing
def test_full_disk_is_one_line_without_a_crash_and_leaves_no_file(tmp_path, h5ad):
    limited = f"""
import resource, signal
from aenmf_lib.data import files
cells = files.read_h5ad({str(h5ad)!r})
cells.obsm["large"] = __import__("numpy").zeros((60, 5000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for size in range(1000, 90_000, 6_000):  # the disk is full at the start, in the middle, at the end
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        files.write_h5ad(cells, {str(tmp_path / "out.h5ad")!r})
    except OSError as error:
        assert error.errno == {errno.EFBIG} and "\\n" not in str(error), error
        print(str(error))
    else:
        print("no error")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", limited], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(lines := done.stdout.splitlines()) == 15
    assert all("out.h5ad cannot be written: " in line for line in lines)
    assert os.listdir(tmp_path) == ["cells.h5ad"]


def test_npz_with_a_pickle_is_not_opened(tmp_path):
    np.savez(tmp_path / "a.npz", format=1, x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"a.npz cannot be read \(Object arrays cannot be loaded.*Expected sums"):
        files.read_npz(tmp_path / "a.npz", 1, "sums")
    with pytest.raises(FileNotFoundError, match=r"b.npz does not exist\. Expected sums"):
        files.read_npz(tmp_path / "b.npz", 1, "sums")


def test_zarr_opens_read_only(h5ad, tmp_path):
    ad.read_h5ad(h5ad).write_zarr(tmp_path / "cells.zarr")
    with files.open_cells(tmp_path / "cells.zarr") as file:
        assert isinstance(file, zarr.Group)
        assert file.read_only


def test_raw_counts_are_written(h5ad, tmp_path):
    cells = ad.read_h5ad(h5ad)
    cells.raw = cells.copy()
    cells = cells[:, :7].copy()
    files.write_h5ad(cells, tmp_path / "raw.h5ad")
    assert (data.read_counts(tmp_path / "raw.h5ad", layer="raw.X")[0].X != cells.raw.X).nnz == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder.h5ad", r"folder\.h5ad is a folder, but the path of a file is expected"),
        ("taken.csv/a/b.h5ad", r"b\.h5ad cannot be written, because .*taken\.csv is a file, not a folder. Choose"),
        ("a.zarr", r"does not end in \.h5ad. Rename it, for example to .*a\.h5ad"),
        ("a.txt", r"does not end in \.h5ad"),
    ],
)
def test_path_that_cannot_be_written_is_refused_and_nothing_changes(tmp_path, h5ad, name, message):
    cells, folder = files.read_h5ad(h5ad), tmp_path / "new"
    (folder / "folder.h5ad").mkdir(parents=True)
    (folder / "taken.csv").write_text("kept")
    before = sorted(folder.rglob("*"))
    writers = [lambda path: files.write_h5ad(cells, path)]
    if not name.startswith("a."):  # tables have other endings
        writers.append(lambda path: data.tables.write_table(pd.DataFrame({"a": [1]}), path))
    for write in writers:
        with pytest.raises((OSError, ValueError), match=message):
            write(folder / name)
    assert sorted(folder.rglob("*")) == before
    assert (folder / "taken.csv").read_text() == "kept"


def test_partial_files_of_killed_processes_are_removed(tmp_path):
    killed = subprocess.Popen(["true"])
    killed.wait()
    mine = tmp_path / f".{os.getpid()}.b.csv"
    for left in (tmp_path / f".{killed.pid}.a.csv", mine):
        left.write_text("half")
    with files.atomic(tmp_path / "a.csv") as partial:
        partial.write_text("all")
    assert sorted(os.listdir(tmp_path)) == [mine.name, "a.csv"]


def test_temporary_file_of_a_killed_process_that_is_still_listed_is_removed(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as process:
        left = tmp_path / f".{process.pid}.out.bin"
        left.touch()
        with files.atomic(tmp_path / "out.bin") as partial:
            partial.touch()
        assert left.exists()  # of a process that runs
        process.kill()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:  # until `wait` is called
            time.sleep(0.01)
        with files.atomic(tmp_path / "out.bin") as partial:
            partial.touch()
        assert not left.exists()
