"""Judging the outcome of reading one damaged file, inside the worker process."""

import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from fuzzing.readers import Cells, plain_reader

RIGHT, CLEAR, UNDETECTABLE, WRONG = "right result", "clear error", "undetectable change", "anything else"
ORDER = (RIGHT, CLEAR, UNDETECTABLE, WRONG)
_VERBS = (
    "Add Ask Call Change Check Choose Close Compute Convert Copy Correct Decompress Delete Download Export Fix Free "
    "Give Install Keep Leave Link Make Move Name Open Pass Put Quote Remove Rename Repeat Replace Request Run Save "
    "Set Start Store Train Try Unpack Unzip Update Use Wait Write"
).split()
_WORDS = "|".join([*_VERBS, *map(str.lower, _VERBS), "Did you mean"])
_ADVICE = re.compile(rf"[.:;,] (?:{_WORDS})\b|\. Valid \w+: ")
_RAW = re.compile(r"Traceback|object at 0x|<HDF5|<Closed|<zarr|\.py\"?, line|site-packages|\bself\.")
_LONGEST = 900  # characters


def unclear(error: BaseException, name: str) -> str:
    """Return why an error is not clear, or an empty text. `name` is the name of the file; empty: not expected."""
    kinds = (OSError, ValueError, MemoryError)
    message, frames = str(error), traceback.extract_tb(error.__traceback__)
    if not isinstance(error, kinds):
        return f"a {type(error).__name__} is raised"
    if not frames or "aenmf_lib" not in Path(frames[-1].filename).parts:
        return f"a {type(error).__name__} of {frames[-1].filename.rpartition('site-packages/')[2]} is not caught"
    if name and name not in message:
        return "the message does not name the file"
    if "\n\n" in message or re.search(r"\n(?!  \S)", message):
        return "the message is more than one paragraph"
    if any(not c.isprintable() for c in message.replace("\n", "")):
        return "the message contains control characters"
    if len(message) > _LONGEST:
        return f"the message has {len(message):,} characters"
    if found := _RAW.search(message):
        return f"the message contains {found[0]!r}"
    if not _ADVICE.search(message):
        return "the message gives no advice"
    return ""


class Watch:
    """Watches this process for files written outside its folder and for programs that it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = f"{folder}/", []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        """Record an event."""
        if event == "open":
            path, mode, flags = args
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if writes and isinstance(path, str | bytes) and not os.fsdecode(path).startswith("/dev/"):
                self.seen.append(f"wrote {os.fsdecode(path)}")
        elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class", "os.fork"):
            self.seen.append(f"{event} {args!r}"[:200])
        elif event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "shutil.rmtree"):
            self.seen.append(f"{event} {args[0]!r}"[:200])


def read_all(
    path: Path, readers: dict[str, Callable], truth: dict[str, Cells], *, content: str, min_cells: int, valid: bool,
    strict: bool, watch: Watch,
) -> tuple[str, str]:  # fmt: skip
    """Read a file with each reader. Return the worst outcome, and what happened as text."""
    outcomes, notes = [], []
    before = _listing(path.parent)
    for name, reader in readers.items():
        watch.seen.clear()
        try:
            found = reader(path, min_cells)
        except BaseException as error:  # noqa: BLE001, whatever the product raises is judged
            about = "" if _in_filter(error) else path.name
            reason = unclear(error, about)
            text = f"{type(error).__name__}: {str(error)[:600]}"
            outcome = WRONG if reason or valid else CLEAR
            reason = reason or ("a valid file is refused" if valid else "")
            notes.append(f"{name}: {reason + ' — ' if reason else ''}{text}")
            if os.environ.get("FUZZ_TRACEBACK"):
                traceback.print_exception(error)
        else:
            difference = found.difference(truth[name])
            outcome = RIGHT
            if difference:
                outcome, why = (WRONG, "") if valid or strict else _compare_plain(path, found, name, content, min_cells)
                notes.append(f"{name}: differs in {difference}{'; ' + why if why else ''}")
        if events := list(watch.seen):
            outcome = WRONG
            notes.append(f"{name}: {events[0]}")
        outcomes.append(outcome)
    if _listing(path.parent) != before:
        outcomes.append(WRONG)
        notes.append("reading changed the files in the folder")
    return max(outcomes, key=ORDER.index), " | ".join(notes)


def _in_filter(error: BaseException) -> bool:
    """Return whether an error is from `filter_cells`, which works on cells in memory and knows no file."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "filter_cells" for frame in frames)


def _compare_plain(path: Path, found: Cells, name: str, content: str, min_cells: int) -> tuple[str, str]:
    """Return whether anndata reads the same other values, in which case no reader could notice the change."""
    try:
        plain = plain_reader(path, content, found.where, min_cells)[name]
    except Exception as error:  # noqa: BLE001, whatever anndata raises
        return WRONG, f"anndata refuses the file: {type(error).__name__}: {str(error)[:200]}"
    difference = found.difference(plain)
    return (WRONG, f"anndata reads other values: {difference}") if difference else (UNDETECTABLE, "")


def compare_text(path: Path, found: object, plain: Callable[[Path], object]) -> tuple[str, str]:
    """Return whether a plain reader reads the same other values."""
    try:
        expected = plain(path)
    except Exception as error:  # noqa: BLE001, whatever the plain reader raises
        return WRONG, f"read as {str(found)[:200]}, but a plain reader refuses the file: {str(error)[:200]}"
    if found == expected:
        return UNDETECTABLE, f"read as {str(found)[:200]}"
    return WRONG, f"read as {str(found)[:200]}, but a plain reader reads {str(expected)[:200]}"


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of everything in a folder."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            if not name.startswith("worker."):
                status = os.lstat(os.path.join(place, name))
                found[os.path.join(place, name)] = (status.st_size, status.st_mtime_ns)
    return found
