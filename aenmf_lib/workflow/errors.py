"""One line for an error of the operating system: what is wrong, where, and what to do."""

from __future__ import annotations

import errno
import os
import re

_ERRNO = re.compile(r"\[Errno (\d+)\]|\berrno ?= ?(\d+)")  # as Python and as HDF5 print it
_AGAIN = "then type the same command again: finished stages are kept"
_REMEDIES = {
    errno.ENOSPC: f"Free some space on this disk (df -h shows the disks), {_AGAIN}",
    errno.EDQUOT: f"Your quota on this disk is used up. Delete files or ask for a larger quota, {_AGAIN}",
    errno.EFBIG: f"The file would exceed a size limit (of ulimit -f, or of the file system). Raise the limit, {_AGAIN}",
    errno.EROFS: "This file system is read-only. Work in a clone of the repository on a disk that you can write to",
    errno.EACCES: "Ask its owner for permission, or work in your own clone of the repository",
    errno.EPERM: "Ask its owner for permission, or work in your own clone of the repository",
    errno.ENOTDIR: "A file is in the place of a folder. Move it away",
    errno.EMFILE: f"Raise the limit of open files (ulimit -n 4096), {_AGAIN}",
    errno.ENFILE: f"Too many files are open on this machine. Close other programs, {_AGAIN}",
    errno.EIO: f"The disk or its connection is faulty. Check it, {_AGAIN}",
    errno.ESTALE: f"The network file system was disconnected. Wait until it is back, {_AGAIN}",
    errno.ENOLCK: f"The file system offers no locks. Ask its administrator, or use another disk, {_AGAIN}",
}
_MEMORY = re.compile(r"unable to allocate|can't allocate memory|out of memory|cannot allocate memory", re.I)
_LESS = "Use a machine with more memory, or fewer cells: SAMPLE_CELLS=20000 or QUICK=true"


def explain(error: BaseException, path: object = "") -> str:
    """Return the message of an error for the user, on one line for errors of the operating system and of memory.

    `path` is named if the error does not name a file.
    """
    if isinstance(error, OSError) and error.errno and (error.filename or path):  # the complete name, without quotes
        names = " -> ".join(str(name) for name in (error.filename or path, error.filename2) if name)
        return _os_error(error.errno, f"{error.strerror}: {names}")
    return explain_text(type(error).__name__, str(error))


def explain_text(name: str, text: str) -> str:
    """Return the message for an error of a cell, given the name of its class and its text."""
    if name in ("MemoryError", "_ArrayMemoryError", "OutOfMemoryError") or _MEMORY.search(text):
        return ": ".join(filter(None, ("Out of memory", " ".join(text.split()).rstrip(".")))) + f". {_LESS}."
    if found := _ERRNO.search(text):
        number = int(found[1] or found[2])
        return _os_error(number, re.sub(r"^\[Errno \d+\] ", "", " ".join(text.split())))
    if name in ("OSError", "IOError", "FileNotFoundError", "PermissionError"):
        return " ".join(text.split())
    return text


def is_known(error: BaseException) -> bool:
    """Return whether `explain` can name the fault: an error of the operating system or of memory."""
    return isinstance(error, OSError | MemoryError) or bool(_ERRNO.search(str(error)) or _MEMORY.search(str(error)))


def _os_error(number: int, text: str) -> str:
    """Return a sentence with the reason of the system, and the remedy if there is one."""
    reason = os.strerror(number)
    message = text if reason.lower() in text.lower() else f"{reason}: {text}"
    if number not in _REMEDIES:
        return message
    return f"{message.rstrip('.')}. {_REMEDIES[number]}."
