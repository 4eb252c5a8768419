"""Fetch cells from a local server that interrupts, stalls, redirects or sends wrong data. No download is lost."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata
import numpy as np
import pytest
import yaml
from sandbox import Sandbox

from aenmf_lib.data.files import file_info, write_h5ad
from aenmf_lib.workflow import cli, download, parameters
from aenmf_lib.workflow import fetch as fetching
from aenmf_lib.workflow.download import FetchError
from aenmf_lib.workflow.lock import Locked

ROOT = Path(__file__).parents[2]
DATASET = "11111111-2222-3333-4444-555555555555"
VERSION, OLDER = "aaaaaaaa-0000-0000-0000-00000000000b", "aaaaaaaa-0000-0000-0000-00000000000a"
CELLS, SCHEMA = 60, "7.0.0"
Part = namedtuple("Part", "start end")  # bytes of a file that were sent


def content(version: str) -> anndata.AnnData:
    """Return cells with the metadata that CELLxGENE writes into its files."""
    rng = np.random.default_rng(0)
    cells = anndata.AnnData(rng.random((CELLS, 600)))
    collection = "https://cellxgene.example/collections/c"
    cells.uns = {
        "title": "Immune",
        "schema_version": SCHEMA,
        "citation": f"Publication: https://doi.org/10.1/x Dataset Version: https://files.example/{version}.h5ad "
        f"curated and distributed by CZ CELLxGENE Discover in Collection: {collection}",
    }
    return cells


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    write_h5ad(content(VERSION), path)
    return path.read_bytes()


class Server(ThreadingHTTPServer):
    """The API and the files of CELLxGENE. `plan` says what happens to the first requests for a file."""

    daemon_threads = True

    def __init__(self, file: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.file, self.tag, self.ranges, self.plan = file, '"one"', True, []
        self.listed = {"filesize": len(file), "cell_count": CELLS, "schema_version": SCHEMA}
        self.sent: list[Part] = []
        self.asked, self.go_on = 0, threading.Event()  # number of requests for the list; set to end a stall

    def versions(self) -> list[dict]:
        file = {"filetype": "H5AD", "filesize": self.listed["filesize"], "url": f"{self.url}/{VERSION}.h5ad"}
        entry = {name: self.listed[name] for name in ("cell_count", "schema_version")}
        entry |= {"dataset_id": DATASET, "collection_id": "c", "title": "Immune", "published_at": "2026-01-01"}
        old = file | {"url": f"{self.url}/{OLDER}.h5ad"}
        return [
            entry | {"dataset_version_id": VERSION, "assets": [{"filetype": "RDS", "filesize": 1, "url": ""}, file]},
            entry | {"dataset_version_id": OLDER, "assets": [old]},
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):  # the client left
            pass

    def answer(self, body: bytes, status: int = 200, length: int | None = None, headers=()) -> None:
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        server, do = self.server, {}
        if self.path.endswith("/versions"):
            server.asked += 1
            do = server.listed.get("answer") or {"body": json.dumps(server.versions()).encode()}
            return self.answer(**do)
        do = server.plan.pop(0) if server.plan else {}
        if "status" in do:
            return self.answer(b"no", do["status"], headers=do.get("headers", {}))
        file, headers = server.file, {"ETag": server.tag} if server.tag else {}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = do.get("ignore_tag") or self.headers.get("If-Range") == server.tag
        start = int(asked[1]) if asked and server.ranges and same else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(file) - 1}/{len(file)}"
        length = do.get("length", len(file) - start)  # -1: none
        end = max(do.get("until", len(file)), start)
        server.sent.append(Part(start, end))
        self.answer(file[start:end], 206 if start else 200, length, headers)
        if do.get("stall"):
            server.go_on.wait(5)


@pytest.fixture
def server(real):
    with Server(real) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path, monkeypatch, server) -> Path:
    """A folder with the parameters of a data set, and a downloader that does not wait long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "_WAIT", 0.001)
    monkeypatch.setattr(download, "_TIMEOUT", (1, 0.2))
    monkeypatch.setattr(download, "_PATIENCE", 4)
    write_params(tmp_path, server)
    return tmp_path


def write_params(folder: Path, server: Server, **changes: str) -> None:
    block = {"api": f"{server.url}/v1", "page": "https://page.example", "files": "https://files.example"}
    block |= {"dataset": DATASET, "version": VERSION, **changes}
    (folder / "notebooks/params").mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"data": "data/atlas.h5ad", "k": 80, "fetch": block})
    (folder / "notebooks/params/atlas.yaml").write_text(text)


def fetch() -> dict:
    """Fetch the cells and return the record."""
    return yaml.safe_load(fetching.fetch("data/atlas.h5ad", Path("notebooks/params/atlas.yaml")).read_text())


def assert_complete(folder: Path, real: bytes) -> None:
    assert (folder / "data/atlas.h5ad").read_bytes() == real
    assert sorted(file.name for file in (folder / "data").iterdir()) == ["atlas.fetched.yaml", "atlas.h5ad"]


def refused(folder: Path, *expected: str) -> str:
    """Fetch, which must fail, and return the message. The file must not get its name."""
    with pytest.raises(FetchError) as error:
        fetch()
    assert not (folder / "data/atlas.h5ad").exists()
    for text in (*expected, "Expected"):
        assert text in str(error.value)
    return str(error.value)


# ---- resumed ---------------------------------------------------------------------------------------------------------


def test_a_whole_file_is_recorded_and_downloaded_once(folder, server, real):
    record = fetch()
    assert_complete(folder, real)
    known = {"dataset_version_id": VERSION, "dataset_id": DATASET, "title": "Immune", "size": len(real)}
    known |= {"cell_count": CELLS, "schema_version": SCHEMA, "sha256": hashlib.sha256(real).hexdigest()}
    assert record.items() >= known.items()
    assert "Dataset Version" in record["citation"] and record["how"] == "downloaded"
    assert fetch() == record
    assert server.sent == [Part(0, len(real))] and server.asked == 1


def test_twenty_interruptions_at_random_bytes_are_resumed_where_they_happened(folder, server, real):
    cuts = sorted(random.Random(1).sample(range(1, len(real)), 20))
    server.plan = [{"until": cut} for cut in cuts]
    fetch()
    assert_complete(folder, real)
    assert server.sent == [Part(*ends) for ends in zip([0, *cuts], [*cuts, len(real)], strict=True)]  # no byte twice


def test_a_stalled_connection_is_resumed(folder, server, real, caplog):
    server.plan = [{"until": 200_000, "stall": True}, {}]
    fetch()
    assert_complete(folder, real)
    assert server.sent[1].start == 200_000
    assert "Read timed out" in caplog.text


def test_a_download_from_a_slow_server_is_not_interrupted(folder, server, real, monkeypatch):
    step, write = 50_000, Handler.answer

    def slow(self, body, *arguments):
        if len(body) <= step:
            return write(self, body, *arguments)
        write(self, body[:step], *arguments)
        for start in range(step, len(body), step):
            time.sleep(0.05)
            self.wfile.write(body[start : start + step])

    monkeypatch.setattr(Handler, "answer", slow)
    monkeypatch.setattr(server, "plan", [{"length": len(real)}])
    fetch()
    assert_complete(folder, real)
    assert len(server.sent) == 1


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(folder, server, real, status):
    server.plan = [{"status": status}, {"status": status}, {"until": 1000}, {"status": status}]
    fetch()
    assert_complete(folder, real)


def test_a_redirect_is_followed_and_resumed(folder, server, real):
    elsewhere = {"status": 302, "headers": {"Location": "/elsewhere"}}
    server.plan = [elsewhere, {"until": 5000}, elsewhere]
    fetch()
    assert_complete(folder, real)
    assert server.sent == [Part(0, 5000), Part(5000, len(real))]


@pytest.mark.parametrize("why", ["no ranges", "no validator"])
def test_a_download_that_the_server_cannot_continue_starts_again_with_a_warning(folder, server, real, caplog, why):
    server.ranges, server.tag = why != "no ranges", None if why == "no validator" else '"one"'
    server.plan = [{"until": 9000}]
    fetch()
    assert_complete(folder, real)
    assert [part.start for part in server.sent] == [0, 0]
    assert "cannot be continued from this server. Starting again" in caplog.text


@pytest.mark.parametrize("ignore_tag", [False, True])
def test_a_file_that_changes_between_attempts_starts_again_with_a_warning(folder, server, real, caplog, ignore_tag):
    old, server.file = real, bytes(len(real))  # another content of the same size
    server.plan = [{"until": 30_000}, {"status": 404}]
    refused(folder, "404")
    server.file, server.tag = old, '"two"'
    server.plan = [{"ignore_tag": ignore_tag}]
    fetch()
    assert_complete(folder, real)
    assert "has changed on the server. Starting again" in caplog.text


def test_a_killed_process_is_resumed(folder, server, real):
    server.plan = [{"until": 150_000, "stall": True}]
    words = [sys.executable, "-c", "import sys; from aenmf_lib.workflow.cli import main; main(sys.argv[1:])", "fetch"]
    words += ["--data", "data/atlas.h5ad", "--params", "notebooks/params/atlas.yaml"]
    part = folder / "data/atlas.h5ad.part"
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        for _ in range(1000):
            if part.exists() and part.stat().st_size > 60_000:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    have = part.stat().st_size
    assert have > 60_000
    fetch()
    assert_complete(folder, real)
    assert server.sent[1:] == [Part(have, len(real))]


def test_two_calls_at_once_download_once(folder, server, real):
    server.plan = [{"until": 5000, "stall": True}]
    download._TIMEOUT = (1, 5)
    first = threading.Thread(target=fetch)
    first.start()
    while not (folder / "data/atlas.h5ad.part").exists():
        time.sleep(0.01)
    with pytest.raises(Locked, match=r"atlas is already being fetched by process \d+ of user"):
        fetch()
    with pytest.raises(SystemExit, match="error: atlas is already being fetched by process"):  # no traceback
        cli.main(["fetch", "--data", "data/atlas.h5ad", "--params", "notebooks/params/atlas.yaml"])
    server.go_on.set()
    first.join()
    assert_complete(folder, real)
    assert server.sent[0] == Part(0, 5000) and len(server.sent) == 2


def test_a_proxy_of_the_environment_is_used(folder, server, real, monkeypatch):
    write_params(folder, server, api="http://api.example/v1")
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    fetch()
    assert_complete(folder, real)


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_of_the_server_is_reported_and_the_part_is_kept(folder, server, real, status):
    server.plan = [{"until": 5000}, {"status": status}]
    refused(folder, f"the server answers {status}")
    assert (folder / "data/atlas.h5ad.part").read_bytes() == real[:5000]
    fetch()
    assert_complete(folder, real)
    assert server.sent[1] == Part(5000, len(real))


def test_repeated_interruptions_are_reported_and_the_part_is_kept(folder, server, real):
    server.plan = [{"until": 5000}] * 20
    message = refused(folder, "interrupted 4 times in a row at 5,000 of", "continues where it stopped")
    assert len(server.sent) == 5, message
    assert (folder / "data/atlas.h5ad.part").read_bytes() == real[:5000]


def test_a_file_of_another_length_is_refused_and_the_part_is_kept(folder, server, real):
    server.plan = [{"until": 5000}, {"status": 404}]
    refused(folder)
    server.file, server.tag = real + b"more", '"two"'
    refused(folder, f"the server sends {len(real) + 4:,} bytes. Expected {len(real):,}")
    assert (folder / "data/atlas.h5ad.part").read_bytes() == real[:5000]


def test_a_page_of_unknown_length_does_not_replace_a_part(folder, server, real):
    server.plan = [{"until": 5000}, {"length": -1, "until": 400}]
    server.ranges = False
    refused(folder, "a file of unknown size")
    assert (folder / "data/atlas.h5ad.part").read_bytes() == real[:5000]


@pytest.mark.parametrize(("change", "found"), [(4, "sends more than 3"), (-4, "the server sends 3")])
def test_a_file_of_another_size_is_refused_without_a_content_length(folder, server, real, change, found):
    server.file = (real + b"more")[: len(real) + change]
    server.plan = [{"length": -1}]
    refused(folder, found)


@pytest.mark.parametrize("size", [1, -1])
def test_a_wrong_size_in_the_list_is_refused(folder, server, real, size):
    server.listed["filesize"] = size * (len(real) - 1)
    refused(folder, f"Expected {len(real) - 1:,} bytes" if size == 1 else "no size of an H5AD file")


@pytest.mark.parametrize(("name", "value"), [("cell_count", CELLS + 1), ("schema_version", "5.0.0")])
def test_another_number_of_cells_or_schema_is_refused_and_the_part_kept(folder, server, real, name, value):
    server.listed[name] = value
    for _ in range(2):
        refused(
            folder, f"Expected {name} {value}, as CELLxGENE lists it", "Delete it and type: make fetch DATASET=atlas"
        )
    assert (folder / "data/atlas.h5ad.part").read_bytes() == real
    assert len(server.sent) == 1


@pytest.mark.parametrize("start", [b"<html>", b"\x89HDF\r\n\x1a\n"])
def test_a_file_that_is_not_hdf5_is_refused(folder, server, real, start):
    server.file = start + bytes(len(real) - len(start))
    refused(folder, "atlas.h5ad.part is not the expected file", "Expected an .h5ad file of CELLxGENE")


@pytest.mark.parametrize(
    ("answer", "found"),
    [({"status": 404}, "404"), ({"status": 500}, "500"), ({"body": b"<html>"}, "not JSON"),
     ({"body": b"{}"}, "not a list"), ({"body": b"[]"}, "not a list"), ({"body": b'[{"title": "x"}]'}, "not a list")],
)  # fmt: skip
def test_a_list_that_cannot_be_read_is_refused(folder, server, answer, found):
    server.listed["answer"] = {"body": b"", **answer}
    refused(folder, found)


def test_a_full_disk_is_reported_before_the_download(folder, server, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FetchError, match=r"needs 0\.0 GB, but 0\.0 GB are free on its disk\. Free some"):
        fetch()
    assert not server.sent


# ---- versions and records --------------------------------------------------------------------------------------------


def test_latest_is_the_newest_version_until_a_download_has_begun(folder, server, real):
    write_params(folder, server, version="latest")
    listed = server.versions()
    server.listed["answer"] = {"body": json.dumps(listed[1:]).encode()}  # only the older one is published yet
    server.plan = [{"until": 5000}, {"status": 404}]
    refused(folder)
    del server.listed["answer"]
    record = fetch()
    assert record["dataset_version_id"] == OLDER
    assert server.sent[1] == Part(5000, len(real))
    (folder / "data/atlas.h5ad").unlink()
    assert fetch()["dataset_version_id"] == OLDER  # as recorded
    shutil.rmtree(folder / "data")
    assert fetch()["dataset_version_id"] == VERSION


def test_an_unknown_version_is_refused_with_the_known_ones(folder, server):
    write_params(folder, server, version="x")
    refused(folder, f"does not list version x of this data set. Expected one of {VERSION}, {OLDER}")


def test_a_part_of_another_version_is_refused_and_kept(folder, server, real):
    server.plan = [{"until": 5000}, {"status": 404}]
    refused(folder)
    write_params(folder, server, version=OLDER)
    refused(folder, f"is a part of {server.url}/{VERSION}.h5ad. Expected a part of {server.url}/{OLDER}.h5ad")
    assert (folder / "data/atlas.h5ad.part").read_bytes() == real[:5000]


def test_a_record_of_another_version_is_refused(folder, server):
    fetch()
    write_params(folder, server, version=OLDER)
    with pytest.raises(FetchError, match=f"record of version {VERSION}, but .*atlas.yaml asks for {OLDER}"):
        fetch()


def test_a_copied_record_requires_the_same_bytes(folder, server, real):
    record = fetch()
    (folder / "data/atlas.h5ad").unlink()
    server.file = real[:-1] + bytes([real[-1] ^ 1])
    refused(folder, f"Expected {record['sha256']}, as data/atlas.fetched.yaml says")
    (folder / "data/atlas.h5ad.part").unlink()
    server.file = real
    assert fetch()["sha256"] == record["sha256"]


@pytest.mark.parametrize("change", ["date", "size", "content"])
def test_a_changed_file_is_compared_with_its_record(folder, real, change):
    record, path = fetch(), folder / "data/atlas.h5ad"
    path.write_bytes({"date": real, "size": real + b"0", "content": b"0" + real[1:]}[change])
    if change == "date":
        assert fetch() | {"checked": ""} == record | {"checked": ""}
        return
    expected = f"{len(real):,} bytes" if change == "size" else f"sha256 {record['sha256']}"
    with pytest.raises(FetchError, match=f"is not the recorded file: .*Expected {expected}"):
        fetch()


def test_a_file_from_the_user_is_checked_and_recorded(folder, server, real):
    path = folder / "data/atlas.h5ad"
    path.parent.mkdir()
    path.write_bytes(real)
    record = fetch()
    assert (record["how"], record["sha256"]) == ("put there by hand", hashlib.sha256(real).hexdigest())
    assert record["url"] == f"{server.url}/{VERSION}.h5ad" and not server.sent
    (folder / "data/atlas.fetched.yaml").unlink()
    path.write_bytes(real[:-1])
    with pytest.raises(FetchError, match=r"is not the expected file: .*Expected .*Move it away and type: make fetch"):
        fetch()
    assert path.exists() and not (folder / "data/atlas.fetched.yaml").exists()


@pytest.mark.parametrize("version", [VERSION, OLDER, "latest"])
def test_without_a_network_a_file_must_name_the_version(folder, server, real, version, caplog):
    write_params(folder, server, version=version, api="http://127.0.0.1:9/v1")
    (folder / "data").mkdir()
    (folder / "data/atlas.h5ad").write_bytes(real)
    if version == OLDER:
        with pytest.raises(FetchError, match=f"version {VERSION}. Expected version {OLDER} in its citation"):
            fetch()
        return
    assert fetch().items() >= {"dataset_version_id": VERSION, "cell_count": CELLS}.items()
    assert "Only the version that the file names is checked" in caplog.text


@pytest.mark.parametrize("version", [VERSION, "latest"])
def test_without_a_network_the_message_says_what_to_do_by_hand(folder, server, version):
    write_params(folder, server, version=version, api="http://127.0.0.1:9/v1")
    address = "https://page.example" if version == "latest" else f"https://files.example/{VERSION}.h5ad"
    refused(folder, "cannot be reached", "Connection refused", address,
            "Put it at data/atlas.h5ad and type: make fetch DATASET=atlas")  # fmt: skip


def test_a_link_is_kept_and_the_part_is_beside_its_target(folder, server, real):
    (folder / "data").mkdir()
    (folder / "data/atlas.h5ad").symlink_to(folder / "big/cells.h5ad")
    with pytest.raises(FetchError, match="the folder of that file does not exist"):
        fetch()
    (folder / "big").mkdir()
    fetch()
    assert (folder / "data/atlas.h5ad").is_symlink() and (folder / "big/cells.h5ad").read_bytes() == real


def test_results_name_the_source_of_cells_that_were_fetched(folder, server):
    path = folder / "data/atlas.h5ad"
    record = fetch()
    assert file_info(path).items() >= {"url": record["url"], "citation": record["citation"]}.items()
    path.write_bytes(path.read_bytes() + b"0")
    assert {*file_info(path)} == {"path", "sha256"}


# ---- parameters and make ---------------------------------------------------------------------------------------------


def test_the_block_fetch_is_not_a_notebook_parameter_and_must_be_complete(folder, server):
    params = Path("notebooks/params/atlas.yaml")
    notebook = folder / "notebooks/01_x.py"
    notebook.write_text('# %% tags=["parameters"]\ndata: str = ""\nk: int = 3\n')
    assert parameters.resolve([notebook], params) == {"01_x": {"data": "data/atlas.h5ad", "k": 80}}
    params.write_text("data: data/atlas.h5ad\nfetch:\n  api: x\n")
    refused(folder, "fetch: found {'api': 'x'}. Expected a text for each of api, page, files, dataset, version")
    params.write_text("data: data/atlas.h5ad\n")
    refused(folder, "does not say where to fetch the cells")


def test_the_parameters_of_the_atlas_have_a_complete_block_fetch():
    source = fetching._source(ROOT / "notebooks/params/tabula_sapiens_immune.yaml")
    assert all(source[name].startswith("https://") for name in ("api", "page", "files"))
    assert all(re.fullmatch(r"[0-9a-f-]{36}", source[name]) for name in ("dataset", "version"))


@pytest.fixture
def make(tmp_path) -> Sandbox:
    """A sandbox with a data set to fetch, and a stub that fetches it."""
    sandbox = Sandbox(tmp_path)
    (tmp_path / "notebooks/params/atlas.yaml").write_text("data: atlas.h5ad\nk: 12\nfetch:\n  api: x\n")
    stub = "from pathlib import Path\ndef fetch(data, params):\n    Path(data).write_text('cells')\n"
    stub += "    with open('fetched', 'a') as file:\n        file.write(f'{data} {params}\\n')\n"
    (tmp_path / "aenmf_lib/workflow/fetch.py").write_text(stub)
    return sandbox


@pytest.mark.parametrize("goals", [["all"], ["filter", "MIN_CELLS=7"], ["check"], ["fetch"], ["-j2", "fetch", "all"]])
def test_make_fetches_missing_cells_first(make, goals):
    done = make(*goals, "DATASET=atlas")
    assert done.returncode == 0, done.stderr
    lines = (make.root / "fetched").read_text().splitlines()
    assert {*lines} == {"atlas.h5ad notebooks/params/atlas.yaml"}
    assert len(lines) == 1
    ran = (make.root / "ran").read_text() if (make.root / "ran").exists() else ""
    assert ran.startswith("01_filter") == (goals not in (["check"], ["fetch"]))


def test_make_does_not_fetch_cells_that_were_already_filtered(make):
    make.ran("all", "DATASET=atlas")
    (make.root / "atlas.h5ad").unlink()
    assert make.count("fetched") == 1
    assert make.ran("train", "DATASET=atlas") == []
    refused = make("all", "DATASET=atlas")
    assert "atlas.h5ad no longer exists" in refused.stderr
    assert "To download the cells: make fetch DATASET=atlas" in refused.stderr
    assert make.count("fetched") == 0
    assert make("fetch", "DATASET=atlas").returncode == 0
    assert make.ran("all", "DATASET=atlas") == []


def test_make_does_not_fetch_a_file_that_the_user_names(make):
    refused = make("all", "DATASET=atlas", "DATA=mine.h5ad")
    assert "File not found: mine.h5ad" in refused.stderr
    assert not (make.root / "fetched").exists()
