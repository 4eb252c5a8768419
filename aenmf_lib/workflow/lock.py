"""A lock next to a file: only one process at a time runs a notebook, fetches a data set or writes a crate."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)
_ENDING = 60  # seconds to wait for a process that has ended, or that will end soon because its make was killed


class Locked(ValueError):
    """Another process has the lock. The message is for the user."""


@contextlib.contextmanager
def only_one(report: Path, doing: str = "run", wait: float = 0.0) -> Iterator[Path]:
    """Lock a report, or another file, while the block runs, and yield the lock file.

    `doing` is the verb in the error message: the file is already being "run", "fetched" or "written".
    The system releases the lock when the process ends, for any reason. Raises Locked if another process still has the
    lock after `wait` seconds. On a file system without locks it only warns.
    """
    path = report.with_name(f".{report.stem}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    while (locked := _lock(path)) is None:  # another process has it
        written = ""
        with contextlib.suppress(FileNotFoundError):  # the other process has just removed the file
            written = path.read_text(errors="replace")
        process, user, host, parent = ((written or "?").split("\t") + ["?"] * 4)[:4]
        ends = not written or (host == socket.gethostname() and not (_exists(process) and _exists(parent)))
        if time.monotonic() - start >= (max(wait, _ENDING) if ends else wait):
            raise Locked(
                f"{report.stem} is already being {doing} by process {process} of user {user} on host {host}; wait "
                f"until it has ended, or stop that process."
            )
        time.sleep(0.05)
    try:
        yield path
    finally:
        if locked >= 0:
            path.unlink(missing_ok=True)  # while it is locked, so that no other process can have it
            os.close(locked)


def _lock(path: Path) -> int | None:
    """Return the file descriptor of the locked file, -1 if this file system has no locks, None if it is taken."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # left behind by another user
            file = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except OSError as error:
            os.close(file)
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF):
                raise
            path.unlink(missing_ok=True)
            log.warning("warning: %s has no file locks. Run make only once at a time.", path.parent)
            return -1
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file)):  # not removed by its last owner meanwhile
                break
        os.close(file)
    with contextlib.suppress(OSError):  # read-only, or a full disk: only the lock matters, not the content of the file
        os.ftruncate(file, 0)
        user = getpass.getuser()
        os.write(file, "\t".join([str(os.getpid()), user, socket.gethostname(), str(os.getppid())]).encode())
    return file


def _exists(process: str) -> bool:
    """Return whether a process of this machine exists."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
