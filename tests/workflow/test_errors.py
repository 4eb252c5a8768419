"""Errors of the operating system and of memory, in the words of the user."""

import errno
import os

import pytest

from aenmf_lib.workflow.environment import clean
from aenmf_lib.workflow.errors import explain, explain_text, is_known


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space on this disk"),
        (errno.EDQUOT, "Your quota on this disk is used up"),
        (errno.EROFS, "This file system is read-only. Work in a clone"),
        (errno.EACCES, "Ask its owner for permission"),
        (errno.EIO, "The disk or its connection is faulty"),
    ],
)
def test_an_error_of_the_system_names_the_path_the_reason_and_the_remedy(number, remedy):
    reason = os.strerror(number)
    error = OSError(number, reason, "results/mine/filtered.h5ad")
    assert explain(error).startswith(f"{reason}: results/mine/filtered.h5ad. {remedy}")
    assert "\n" not in explain(error)
    assert explain(OSError(number, reason), "out").startswith(f"{reason}: out. {remedy}")  # a write names no file


def test_errors_of_hdf5_are_recognized_whatever_their_class():
    error = RuntimeError("Can't decrement id ref count (file write failed, errno = 28,\n error message = 'No space')")
    assert is_known(error)
    assert "No space left on device: Can't decrement id ref count" in explain(error)
    assert "\n" not in explain(error)
    assert not is_known(RuntimeError("a bug"))


def test_memory_errors_name_what_to_do():
    assert explain(MemoryError()).startswith("Out of memory. Use a machine with more memory, or fewer cells")
    text = (
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    assert explain_text("RuntimeError", text).endswith("fewer cells: SAMPLE_CELLS=20000 or QUICK=true.")


def test_other_messages_are_unchanged():
    assert explain(ValueError("K=90 is too large.\nChoose less.")) == "K=90 is too large.\nChoose less."
    assert explain(OSError("x.h5ad is damaged\nat 7")) == "x.h5ad is damaged at 7"


def test_only_settings_that_can_change_results_are_removed_from_the_environment():
    kept = {
        "PATH": "/bin",
        "HOME": "/root",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "1",
        "NUMBA_CACHE_DIR": "/tmp",
    }
    kept |= {"HDF5_USE_FILE_LOCKING": "FALSE", "SLURM_JOB_ID": "7", "NUMBA_NUM_THREADS": "2"}
    removed = {
        "PYTHONPATH": "x",
        "PYTHONHASHSEED": "1",
        "IPYTHONDIR": "x",
        "JUPYTER_PATH": "x",
        "NUMBA_DISABLE_JIT": "1",
    }
    removed |= {"ANNDATA_CHECK_UNIQUENESS": "0", "PANDAS_FUTURE_INFER_STRING": "1", "ZARR_ARRAY__ORDER": "F"}
    cleaned = clean(kept | removed)
    assert kept.items() <= cleaned.items()
    assert not removed.keys() & cleaned.keys()
