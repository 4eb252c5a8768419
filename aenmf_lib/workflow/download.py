"""Download one large file over HTTP. An interrupted download continues at the byte where it stopped."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import HTTPError

from aenmf_lib.data.progress import tqdm
from aenmf_lib.workflow.parameters import read_json

log = logging.getLogger(__name__)
_BLOCK = 2**18  # largest number of bytes that are written at once
_TIMEOUT = (10, 60)  # longest wait in seconds for a connection, and for the next byte
_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds before the next attempt; doubled after each failure
_PATIENCE = 8  # attempts in a row without a new byte: about three minutes
_INTERRUPTIONS = (requests.ConnectionError, requests.Timeout, requests.exceptions.RetryError, HTTPError)


class FetchError(ValueError):
    """A file could not be fetched, or is not the expected one. The message is for the user."""


def open_session() -> requests.Session:
    """Return a session that follows redirects, uses the proxies of the environment and retries if a server is busy."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    busy = {429, 500, 502, 503, 504}
    retry = Retry(5, connect=1, read=1, status_forcelist=busy, backoff_factor=_WAIT, backoff_max=_LONGEST_WAIT,
                  respect_retry_after_header=False)  # fmt: skip
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    session.headers["Accept-Encoding"] = "identity"  # bytes as they are in the file
    return session


def get(session: requests.Session, url: str, **options) -> requests.Response:
    """Return the answer to a request. Raises FetchError if the server refuses it, and the errors of requests."""
    answer = session.get(url, timeout=_TIMEOUT, **options)
    if answer.status_code not in (200, 206):
        answer.close()
        raise FetchError(f"{url}: the server answers {answer.status_code} {answer.reason}. Expected the file or the "
                         "list at this address. Downloaded bytes are kept. Type the same command later.")  # fmt: skip
    return answer


def reason(error: Exception) -> str:
    """Return why a request failed, without the names of Python objects."""
    while isinstance(inner := getattr(error, "reason", None) or next(iter(error.args), None), Exception):
        error = inner
    text = str(inner or type(error).__name__)
    return re.sub(r"\[Errno -?\d+\] |HTTPS?Connection(Pool)?\(.*?\): |\(\d+ bytes read.*?\)", "", text)


def part_of(path: Path) -> Path:
    """Return the path of the part: the file that contains the bytes that were downloaded so far."""
    return path.with_name(f"{path.name}.part")


def begun(path: Path) -> dict[str, str | None]:
    """Return the address of an unfinished download and its validator (ETag or date), or an empty dictionary."""
    return read_json(_state(path)) if part_of(path).exists() else {}  # without a validator, it starts at the first byte


def download(url: str, path: Path, size: int, session: requests.Session) -> Path:
    """Download a file and return the path of the complete part, which `finish` renames to `path`.

    `size` is the expected size in bytes. Raises FetchError, and keeps the part, if the disk has too little space, or if
    the server refuses, sends another size, or sends nothing new for several minutes.
    """
    part, unit = part_of(path), size / 1e9
    if (before := begun(path).get("url", url)) != url:
        raise FetchError(f"{part} is a part of {before}. Expected a part of {url}. Delete {part} to start again.")
    if (have := _size(part)) > size:
        raise FetchError(f"{part} has {have:,} bytes. Expected at most {size:,}. Delete {part} to start again.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(path.parent).free) < size - have:
        raise FetchError(
            f"{path} needs {(size - have) / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free on its disk. Free some "
            f"space, or put the file on another disk and make a link to it at {path}."
        )
    if have:
        log.info("Continuing %s after %.2f of %.2f GB", path.name, have / 1e9, unit)
    best, failures = have, 0
    with tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=path.name, mininterval=1) as bar:
        while have < size:
            try:
                _receive(url, path, size, session, bar)
                why = "the file ended early"
            except _INTERRUPTIONS as error:
                why = reason(error)
            have = _size(part)
            if have == size:
                break
            failures = 0 if have > best else failures + 1
            best = max(best, have)
            if failures == _PATIENCE:
                raise FetchError(
                    f"{url} was interrupted {failures} times in a row at {have:,} of {size:,} bytes ({why}). Expected "
                    f"a connection to this server. Check the connection and type the same command again: the download "
                    f"continues where it stopped."
                )
            wait = min(_WAIT * 2**failures, _LONGEST_WAIT)
            log.warning("Interrupted at %.2f of %.2f GB (%s). Continuing in %.0f s", have / 1e9, unit, why, wait)
            time.sleep(wait)
    return part


def finish(path: Path) -> None:
    """Rename a complete part to the name of the file."""
    with part_of(path).open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part_of(path), path)
    _state(path).unlink(missing_ok=True)


def _receive(url: str, path: Path, size: int, session: requests.Session, bar: tqdm) -> None:
    """Append the bytes from the server to the part. Start again if the file has changed or cannot be continued."""
    part, validator = part_of(path), begun(path).get("validator")
    have = _size(part)
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have and validator else {}
    with get(session, url, headers=headers, stream=True) as answer:
        start, total = _extent(answer)
        now = _validator(answer)
        # A restart overwrites the part. The size must be right, so that the page of a proxy cannot replace the part.
        if total != size and (have or total is not None):
            found = "a file of unknown size" if total is None else f"{total:,} bytes"
            raise FetchError(f"{url}: the server sends {found}. Expected {size:,} bytes. Nothing was overwritten. "
                             "Try again later; a proxy may have sent a page of its own.")  # fmt: skip
        if start and (start != have or now != validator):  # the server ignores If-Range
            log.warning("%s has changed on the server. Starting again", path.name)
            part.unlink()
            return
        if have and not start:
            changed = validator and now != validator
            why = "has changed on the server" if changed else "cannot be continued from this server"
            log.warning("%s %s. Starting again", path.name, why)
        _state(path).write_text(json.dumps({"url": url, "validator": now}), encoding="utf-8")
        bar.n = start
        bar.refresh()
        with part.open("ab" if start else "wb") as file:
            # read1 returns the bytes that have arrived. Other methods wait for a whole block, and may lose it.
            for block in iter(lambda: answer.raw.read1(_BLOCK), b""):
                if file.tell() + len(block) > size:
                    raise FetchError(f"{url}: the server sends more than {size:,} bytes. Expected exactly this number. "
                                     "Try again later.")  # fmt: skip
                file.write(block)
                bar.update(len(block))


def _extent(answer: requests.Response) -> tuple[int, int | None]:
    """Return the first byte that an answer contains, and the size of the whole file if the server sends it."""
    if answer.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        return (int(found[1]), int(found[2])) if found else (0, None)
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _validator(answer: requests.Response) -> str | None:
    """Return the text that identifies the content of a file on the server: a strong ETag or a date."""
    tag = answer.headers.get("ETag", "W/")
    return answer.headers.get("Last-Modified") if tag.startswith("W/") else tag


def _state(path: Path) -> Path:
    """Return the file with the address and the validator of an unfinished download."""
    return path.with_name(f"{path.name}.part.json")


def _size(part: Path) -> int:
    """Return the size of a part in bytes, 0 if there is none."""
    return part.stat().st_size if part.exists() else 0
