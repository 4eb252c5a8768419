"""Download the cells of a data set from CELLxGENE once, compare them with the list of versions, and write a record.

The API is described at https://api.cellxgene.cziscience.com/curation/ui/. It has no checksums, so the record beside the
file contains a sha256 that is computed here. Later calls, and other machines with a copy of the record, accept only a
file with this sha256.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from aenmf_lib.data.files import fetch_record
from aenmf_lib.data.reading import guard, open_cells
from aenmf_lib.workflow import download, inputs, parameters
from aenmf_lib.workflow.download import FetchError
from aenmf_lib.workflow.lock import only_one

log = logging.getLogger(__name__)
_KEYS = ("api", "page", "files", "dataset", "version")  # of the block `fetch` in a parameters file
_LATEST = "latest"
_RECORDED = ("dataset_version_id", "url", "size", "sha256", "checked")  # entries that a record must have


def fetch(data: str, params: Path | None) -> Path:
    """Download the cells of a data set, or check the file that already exists. Return the path of the record.

    `params` is the parameters file of the data set, with a block `fetch` that has the keys of `_KEYS`. Raises
    FetchError if the file cannot be downloaded or is not the expected one, and Locked if another process is fetching
    it. The downloaded bytes are kept.
    """
    source = _source(params)
    path = Path(inputs.canonical(data))
    if path.suffix != ".h5ad":
        raise FetchError(f"{data} cannot be fetched. Expected a name that ends in .h5ad. Change 'data' in {params}.")
    if path.is_symlink() and not path.resolve().parent.is_dir():
        raise FetchError(f"{path} is a link to {os.readlink(path)}, and the folder of that file does not exist. Create "
                         "the folder, or remove the link.")  # fmt: skip
    with only_one(path, "fetched"):
        return _Fetch(path, source, params).run()


def _source(params: Path | None) -> dict[str, str]:
    """Return the block `fetch` of a parameters file."""
    block = parameters.read_yaml(params).get(parameters.FETCH) if params else None
    if block is None:
        files = sorted(Path("notebooks/params").glob("*.yaml"))
        others = [file.stem for file in files if parameters.FETCH in (parameters.read_old(file) or {})]
        raise FetchError(f"{params or 'This data set'} does not say where to fetch the cells. Expected a block "
                         f"'{parameters.FETCH}'. Add it, or choose a data set that has it: "
                         f"{', '.join(others)}.")  # fmt: skip
    if not isinstance(block, dict) or {*block} != {*_KEYS} or not all(isinstance(v, str) for v in block.values()):
        raise FetchError(f"{params}, {parameters.FETCH}: found {block}. Expected a text for each of "
                         f"{', '.join(_KEYS)}. Correct the block.")  # fmt: skip
    return block


class _Fetch:
    """One call of `fetch`."""

    def __init__(self, path: Path, source: Mapping[str, str], params: Path) -> None:
        self.path, self.source = path, source
        self.target = path.resolve()  # of a link, its target, so that the part is on the same disk
        self.part = download.part_of(self.target)
        self.command = f"make fetch DATASET={params.stem}"
        self.record_file = fetch_record(path)
        self.record = parameters.read_yaml(self.record_file) if self.record_file.is_file() else {}
        if self.record and (missing := [name for name in _RECORDED if name not in self.record]):
            raise FetchError(f"{self.record_file} has no {missing[0]}. Expected a record of 'make fetch'. Delete "
                             f"this record and type: {self.command}")  # fmt: skip
        self.version = source["version"]
        if self.record:
            recorded = self.record["dataset_version_id"]
            if self.version not in (_LATEST, recorded):
                raise FetchError(
                    f"{self.record_file} is the record of version {recorded}, but {params} asks for {self.version}. "
                    f"Expected one version. To replace the file, remove it and its record and type: {self.command}; to "
                    f"keep it, write 'version: {recorded}' in {params}."
                )
            self.version = recorded

    def run(self) -> Path:
        """Download the file, or check the existing file, and return the path of the record."""
        if self.path.exists():
            return self._check_recorded() if self.record else self._accept()
        with download.open_session() as session:
            listed = self._listed(session)
            log.info("%s: %s (%s cells, %.1f GB), version %s", self.path, listed["title"], f"{listed['cell_count']:,}",
                     listed["size"] / 1e9, listed["dataset_version_id"])  # fmt: skip
            try:
                download.download(listed["url"], self.target, listed["size"], session)
            except requests.RequestException as error:
                raise self._unreachable(listed["url"], error) from None
        found = self._contents(self.part)
        self._compare(self.part, found, listed)
        sha256 = self._hash(self.part)
        if sha256 != self.record.get("sha256", sha256):
            raise self._wrong(self.part, f"sha256 {sha256}", f"{self.record['sha256']}, as {self.record_file} says")
        download.finish(self.target)
        return self._write(listed | found, sha256, "downloaded")

    def _check_recorded(self) -> Path:
        """Check that a file is the recorded one. Its content is read only if its size or date has changed."""
        record = self.record
        if record["checked"] != inputs.signature(self.path):
            size = self.path.stat().st_size
            found = f"{size:,} bytes" if size != record["size"] else f"sha256 {self._hash(self.path)}"
            expected = f"{record['size']:,} bytes" if size != record["size"] else f"sha256 {record['sha256']}"
            if found != expected:
                raise FetchError(
                    f"{self.path} is not the recorded file: {found}. Expected {expected}, as {self.record_file} says. "
                    f"Move the file away and type: {self.command}; or delete the record if you changed the file."
                )
            self.record["checked"] = inputs.signature(self.path)
            parameters.write(self.record_file, self.record)
        log.info("%s is complete: version %s, sha256 %s", self.path, self.version, record["sha256"])
        return self.record_file

    def _accept(self) -> Path:
        """Check a file that the user provided, and write its record."""
        found = self._contents(self.path)
        try:
            with download.open_session() as session:
                listed = self._listed(session)
        except FetchError as error:
            if not isinstance(error.__cause__, requests.RequestException):
                raise
            # Without a network, the file itself names its version.
            log.warning("warning: %s cannot be reached. Only the version that the file names is checked.",
                        self.source["api"])  # fmt: skip
            named = re.search(r"/([0-9a-f-]{36})\.h5ad", found.get("citation", ""))
            listed = {"dataset_version_id": named[1] if named else "none", "size": self.path.stat().st_size}
            if not named or self.version not in (_LATEST, named[1]):
                expected = f"version {self.version} in its citation"
                raise self._wrong(self.path, f"version {listed['dataset_version_id']}", expected) from None
            listed |= {"dataset_id": self.source["dataset"], "url": f"{self.source['files']}/{named[1]}.h5ad"}
        self._compare(self.path, found, listed)
        return self._write(listed | found, self._hash(self.path), "put there by hand")

    def _listed(self, session: requests.Session) -> dict[str, Any]:
        """Return what CELLxGENE lists for the version to fetch."""
        url = f"{self.source['api']}/datasets/{self.source['dataset']}/versions"
        try:
            versions = download.get(session, url).json()
            entries = {version["dataset_version_id"]: _entry(version) for version in versions}
            newest = next(iter(entries))
        except requests.exceptions.JSONDecodeError as error:
            raise FetchError(f"{url}: the answer is not JSON ({error}). Expected a list of versions. Try again later; "
                             "a proxy may have sent a page of its own.") from None  # fmt: skip
        except (KeyError, TypeError, StopIteration) as error:
            raise FetchError(f"{url}: the answer is not a list of versions ({error!r}). Expected the API of CELLxGENE. "
                             f"Download the file by hand: {self._by_hand()}") from None  # fmt: skip
        except requests.RequestException as error:
            raise self._unreachable(url, error) from error
        version = self.version
        if version == _LATEST:  # an unfinished download keeps its version
            begun = download.begun(self.target).get("url")
            version = next((name for name, entry in entries.items() if entry["url"] == begun), newest)
        if version not in entries:
            raise FetchError(f"CELLxGENE does not list version {version} of this data set. Expected one of "
                             f"{', '.join(entries)} ({url}). Write one of them, or '{_LATEST}', as 'version' in the "
                             "parameters file.")  # fmt: skip
        entry = entries[version]
        if not (entry["url"] and entry["size"] > 0 and entry["cell_count"]):  # the API writes -1 for an unknown size
            raise FetchError(f"CELLxGENE lists no size of an H5AD file, or no number of cells, for version {version}. "
                             f"Expected both ({url}). Try again later.")  # fmt: skip
        return entry

    def _contents(self, file: Path) -> dict[str, Any]:
        """Return the number of cells of a file, and its title, citation and schema version."""
        try:
            with open_cells(file) as cells, guard(file, "uns"):
                obs, uns = cells["obs"], cells["uns"]
                names = [name for name in ("title", "citation", "schema_version") if name in uns]
                texts = {name: str(uns[name].asstr()[()]) for name in names}
                return {"cell_count": int(obs[obs.attrs["_index"]].shape[0]), **texts}
        except (OSError, ValueError, MemoryError) as error:
            raise self._wrong(file, str(error), "an .h5ad file of CELLxGENE") from error

    def _compare(self, file: Path, found: Mapping[str, Any], listed: Mapping[str, Any]) -> None:
        """Raise FetchError if a file differs from what CELLxGENE lists."""
        for name, value in {"size": file.stat().st_size, **found}.items():
            if name in ("size", "cell_count", "schema_version") and listed.get(name, value) != value:
                raise self._wrong(file, f"{name} {value}", f"{name} {listed[name]}, as CELLxGENE lists it")

    def _wrong(self, file: Path, found: str, expected: str) -> FetchError:
        """Return the error for a file that is not the expected one."""
        delete = "Delete it" if file == self.part else "Move it away"
        return FetchError(f"{file} is not the expected file: {found.rstrip('.')}. Expected {expected}. {delete} and "
                          f"type: {self.command}")  # fmt: skip

    def _unreachable(self, url: str, error: Exception) -> FetchError:
        """Return the error for a server that cannot be reached, with instructions for a download by hand."""
        return FetchError(
            f"{url} cannot be reached ({download.reason(error)}). Expected a connection to the internet, through a "
            f"proxy if https_proxy is set. Connect and type: {self.command}\n"
            f"Without a connection, download the file on another machine: {self._by_hand()}"
        )

    def _by_hand(self) -> str:
        """Return where to download the file, where to put it, and how to continue."""
        address = f"{self.source['files']}/{self.version}.h5ad" if self.version != _LATEST else self.source["page"]
        return f"{address}\nPut it at {self.path} and type: {self.command}"

    @staticmethod
    def _hash(file: Path) -> str:
        """Return the hash of a file."""
        log.info("Reading %s (%.1f GB) to compute its hash", file.name, file.stat().st_size / 1e9)
        return inputs.content_hash(file)

    def _write(self, described: Mapping[str, Any], sha256: str, how: str) -> Path:
        """Write the record of a file."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        signature = inputs.signature(self.path)  # to see later whether the file has changed
        record = {**described, "sha256": sha256, "recorded": now, "how": how, "checked": signature}
        parameters.write(self.record_file, record)
        log.info("%s is complete: %s cells, sha256 %s", self.path, f"{described['cell_count']:,}", sha256)
        log.info("%s is the record. With a copy of it, another machine accepts only the same file", self.record_file)
        return self.record_file


def _entry(listed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded properties of a version that the API lists, with the size and address of its file."""
    ids = ("dataset_version_id", "dataset_id", "collection_id")
    entry = {name: listed.get(name) for name in (*ids, "title", "published_at", "cell_count", "schema_version")}
    file = next((asset for asset in listed["assets"] if asset["filetype"] == "H5AD"), {"url": "", "filesize": 0})
    return entry | {"url": file["url"], "size": int(file["filesize"])}
