"""The lock: the versions of all packages, and the hashes of their files, which an installation must have."""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "constraints.lock").read_text()
PINS = (ROOT / "constraints.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = {*PROJECT["dependencies"], *(line for lines in PROJECT["optional-dependencies"].values() for line in lines)}
LOCKED = [Requirement(line) for line in re.findall(r"(?m)^([a-z].*?)(?: \\)?$", LOCK)]
UV = Path(sys.prefix) / "bin/uv"


def versions(name: str) -> list[str]:
    """Return the locked versions of a package; several if they depend on Python or the system."""
    return [next(iter(locked.specifier)).version for locked in LOCKED if locked.name == canonicalize_name(name)]


def test_constraints_txt_has_the_versions_of_the_lock_and_its_hash():
    assert [Requirement(line) for line in re.findall(r"(?m)^[a-z].*$", PINS)] == LOCKED
    assert f"sha256 {hashlib.sha256(LOCK.encode()).hexdigest()}." in PINS


def test_every_package_but_torch_has_hashes():
    entries = re.findall(r"(?m)^([a-z0-9.-]+)==.*\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)*)", LOCK)
    assert len(entries) == len(LOCKED)
    assert [name for name, hashes in entries if not hashes] == ["torch"]


def test_lock_and_constraints_name_no_package_index():
    assert re.findall(r"(?i)https?:|--(?:extra-)?index|find-links|file:", LOCK + PINS) == []


@pytest.mark.parametrize("line", sorted(DECLARED))
def test_each_dependency_is_locked_within_its_bound(line):
    requirement = Requirement(line)
    assert versions(requirement.name)
    assert all(requirement.specifier.contains(version) for version in versions(requirement.name))


def test_locked_versions_are_releases():
    assert [
        str(r) for r in LOCKED if not re.fullmatch(r"\d+(\.\d+)*(\.post\d+)?", next(iter(r.specifier)).version)
    ] == []


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="not the environment that make creates")
def test_installed_versions_are_the_locked_ones():
    tools = {"aenmf-lib", "certifi", "pip", "setuptools", "uv"}  # .ci/lock says why certifi is not locked
    installed = {canonicalize_name(found.name): found.version.partition("+")[0] for found in distributions()}
    assert {name: v for name, v in installed.items() if name not in tools and v not in versions(name)} == {}


@pytest.fixture
def wheel(tmp_path) -> Path:
    """A small package in a folder of its own."""
    path = tmp_path / "wheels/small-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("small.py", "")
        archive.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        archive.writestr("small-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("small-1.0.dist-info/RECORD", "")
    return path


@pytest.mark.skipif(not UV.exists(), reason="uv is not in this environment")
@pytest.mark.parametrize("changed", [False, True])
def test_uv_refuses_a_file_with_another_hash(wheel, tmp_path, changed):
    digest = hashlib.sha256(wheel.read_bytes() + b"changed" * changed).hexdigest()
    (tmp_path / "constraints.lock").write_text(f"small==1.0 \\\n    --hash=sha256:{digest}\n")
    words = [UV, "pip", "install", "--no-config", "--offline", "--no-index", "--find-links", wheel.parent]
    words += ["--no-cache", "--python", sys.executable, "--target", tmp_path / "installed"]
    done = subprocess.run([*words, "-c", tmp_path / "constraints.lock", "small"], capture_output=True, text=True)
    assert (done.returncode != 0) == changed, done.stderr
    assert ("Hash mismatch for `small==1.0`" in done.stderr) == changed
    assert (tmp_path / "installed/small.py").exists() != changed


@pytest.mark.parametrize("changed", [False, True])
def test_installation_with_pip_is_refused_if_a_file_has_another_hash(tmp_path, changed):
    check = (ROOT / ".ci/make-venv").read_text().partition("<< 'EOF'; then\n")[2].partition("\nEOF\n")[0]
    digest = re.search(r"(?m)^jupyter-core==.*\n    --hash=sha256:(\w+)", LOCK)[1]
    package = {
        "metadata": {"name": "jupyter_core", "version": versions("jupyter-core")[0]},
        "download_info": {"archive_info": {"hashes": {"sha256": "0" * 64 if changed else digest}}},
    }
    local = {"metadata": {"name": "aenmf_lib", "version": "0.1.0"}, "download_info": {"dir_info": {"editable": True}}}
    torch = {"metadata": {"name": "torch", "version": versions("torch")[0] + "+cpu"}, "download_info": {}}
    (tmp_path / "report.json").write_text(json.dumps({"install": [local, torch, package]}))
    words = [sys.executable, "-", tmp_path / "report.json", ROOT / "constraints.lock"]
    done = subprocess.run(words, input=check, capture_output=True, text=True)
    assert (done.returncode != 0) == changed, done.stderr
    assert (f"jupyter-core: sha256 {'0' * 64}, expected" in done.stderr) == changed
