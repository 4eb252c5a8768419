"""The provenance of a data set as an RO-Crate, and the record of a run from which it is made."""

import hashlib
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import fabricated
import pytest

from aenmf_lib.workflow import crate, executed, run

PROFILES = [f"https://w3id.org/ro/wfrun/{kind}/0.5" for kind in ("process", "workflow", "provenance")]
NOTEBOOK = """\
# %% [markdown]
# # 03 · Write two files
# **Question.** Which files are written?  **Writes** two files.
# %% tags=["parameters"]
out: str = "results/lab/first.csv"  # a table
out_dir: str = "results/lab"  # folder
k: int = 3  # number of programs
# %%
import os
import pandas as pd
from aenmf_lib.data.tables import write_table
with open(f"{out_dir}/scratch.tmp", "w") as scratch:
    scratch.write("not a result")
os.replace(f"{out_dir}/scratch.tmp", "cache.tmp")
write_table(pd.DataFrame({"k": [k]}), out)
write_table(pd.DataFrame({"k": [k]}), f"{out_dir}/figures/second.csv")
"""


def listed(value) -> list:
    return value if isinstance(value, list) else [value]


class Crate:
    """A crate as a reader sees it: entities by name, and references followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content = json.loads((folder / crate.NAME).read_text())
        self.graph = self.content["@graph"]
        self.of = {entity["@id"]: entity for entity in self.graph}

    def refs(self, entity: dict, key: str) -> list[dict]:
        return [self.of.get(ref["@id"], {"@id": ref["@id"], "@type": "nothing"}) for ref in listed(entity.get(key, []))]

    def typed(self, kind: str) -> list[dict]:
        return [entity for entity in self.graph if kind in listed(entity["@type"])]

    def faults(self) -> list[str]:
        """Return what breaks a MUST of RO-Crate 1.1, Workflow RO-Crate 1.0 or the three Workflow Run profiles 0.5."""
        rules = {
            "unique names": len(self.of) == len(self.graph),
            "references": all(
                ref["@id"] in self.of or (key == "conformsTo" and ref["@id"].startswith("https://"))
                for entity in self.graph
                for key, value in entity.items()
                for ref in listed(value)
                if isinstance(ref, dict) and not (key == "url" and ref["@id"].startswith("https://"))
            ),
            "no nesting": all(
                ref.keys() == {"@id"}
                for entity in self.graph
                for value in entity.values()
                for ref in listed(value)
                if isinstance(ref, dict)
            ),
            "types": all("@id" in entity and "@type" in entity for entity in self.graph),
        }
        descriptor, root = self.of["ro-crate-metadata.json"], self.of["./"]
        rules["descriptor"] = descriptor["about"] == {"@id": "./"} and descriptor["@type"] == "CreativeWork"
        rules["version"] = {"@id": "https://w3id.org/ro/crate/1.1"} in descriptor["conformsTo"]
        rules["root"] = root.keys() >= {"name", "description", "datePublished", "license", "mainEntity"}
        rules["profiles"] = {*PROFILES} <= {work["@id"] for work in self.refs(root, "conformsTo")} and all(
            work["@type"] == "CreativeWork" for work in self.refs(root, "conformsTo")
        )
        files = [of for of in [*self.typed("File"), *self.typed("Dataset")] if of["@id"] != "./"]
        parts = [of["@id"] for of in self.refs(root, "hasPart")]
        rules["all files are parts"] = sorted(parts) == sorted(of["@id"] for of in files)
        inside = [of for of in files if not of["@id"].startswith("#")]
        rules["files exist"] = all((self.folder / unquote(of["@id"])).exists() for of in inside)
        workflow = self.of[root["mainEntity"]["@id"]]
        rules["workflow"] = {"File", "SoftwareSourceCode", "ComputationalWorkflow"} <= {*workflow["@type"]}
        rules["language"] = self.refs(workflow, "programmingLanguage")[0]["@type"] == "ComputerLanguage"
        actions, tools = self.typed("CreateAction"), self.refs(workflow, "hasPart")
        instruments = [listed(action["instrument"]) for action in actions]
        rules["one instrument"] = all(len(each) == 1 for each in instruments)
        used = [each[0]["@id"] for each in instruments]
        rules["run of the workflow"] = used.count(workflow["@id"]) == 1
        rules["tools are used"] = bool(tools) and {tool["@id"] for tool in tools} == {*used} - {workflow["@id"]}
        formal = [each for tool in tools for side in ("input", "output") for each in self.refs(tool, side)]
        rules["formal parameters"] = all(each.get("additionalType") for each in formal) and (
            {each["@type"] for each in formal} == {"FormalParameter"}
        )
        examples = [each for parameter in formal for each in self.refs(parameter, "workExample")]
        rules["examples"] = all({"File", "Dataset", "PropertyValue"} & {*listed(each["@type"])} for each in examples)
        steps, controls = self.typed("HowToStep"), self.typed("ControlAction")
        rules["steps"] = "HowTo" in workflow["@type"] and self.refs(workflow, "step") == steps
        rules["tools of steps"] = {step["workExample"]["@id"] for step in steps} == {tool["@id"] for tool in tools}
        rules["positions"] = all(step["position"].isdigit() for step in steps)
        pairs = [(self.refs(of, "instrument")[0], self.refs(of, "object")[0]) for of in controls]
        rules["controls"] = all(step["workExample"] == action["instrument"] for step, action in pairs)
        (engine,) = self.typed("OrganizeAction")
        rules["engine"] = self.of[engine["instrument"]["@id"]]["@type"] == "SoftwareApplication"
        rules["organized"] = self.refs(engine, "object") == controls and len(controls) == len(actions) - 1
        rules["result"] = self.of[engine["result"]["@id"]]["instrument"] == {"@id": workflow["@id"]}
        usage = [each for action in actions for each in self.refs(action, "resourceUsage")]
        rules["usage"] = all(
            each["@type"] == "PropertyValue" and each["propertyID"] and each["unitCode"] for each in usage
        )
        return [rule for rule, kept in rules.items() if not kept]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The results of a data set."""
    makefile = tmp_path / "Makefile"
    makefile.write_text("all:\n")
    found = fabricated.write_run(tmp_path).parent
    crate.write(found, makefile)
    return found


def test_crate_keeps_the_rules_of_the_profiles(folder):
    assert Crate(folder).faults() == []


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (lambda of: of["workflow/Makefile"].pop("hasPart"), "tools are used"),
        (lambda of: of["#k2/03_train_ae_nmf"].update(instrument={"@id": "#nothing"}), "references"),
        (lambda of: of["#03_train_ae_nmf.py/k"].pop("additionalType"), "formal parameters"),
        (lambda of: of["./"]["hasPart"].pop(), "all files are parts"),
        (lambda of: of["#k2/03_train_ae_nmf/duration"].update(propertyID=""), "usage"),
    ],
)
def test_check_of_the_rules_finds_a_planted_fault(folder, fault, rule):
    broken = Crate(folder)
    fault(broken.of)
    assert rule in broken.faults()


def test_action_has_what_its_notebook_read_set_and_wrote(folder):
    found = Crate(folder)
    action = found.of["#k2/06_benchmarks"]
    values = {of["name"]: of["value"] for of in found.refs(action, "object") if of["@type"] == "PropertyValue"}
    assert values == {"seeds": [0, 1, 2], "scib": False, "extra": "scVI=other/scvi.h5ad:X_scVI"}
    read = [of["@id"] for of in found.refs(action, "object") if of["@type"] == "File"]
    assert read == ["k2/ae_nmf_k2.h5ad", "#other/scvi.h5ad"]  # and not the default of cells_path
    written = ["k2/clustering_long.csv", "k2/clustering_cell_type.csv", "k2/figures/fig1_benchmark.png"]
    assert [of["@id"] for of in found.refs(action, "result")] == [*written, "k2/06_benchmarks.ipynb"]
    assert (action["startTime"], action["endTime"]) == ("2026-01-02T03:03:00+00:00", "2026-01-02T03:03:30+00:00")
    usage = {of["name"]: of["value"] for of in found.refs(action, "resourceUsage")}
    assert usage == {"duration": "30.000", "peak memory": "345"}
    tool = found.of[action["instrument"]["@id"]]
    assert tool["version"] == "0123456789abcdef"
    software = {(of["name"], of["softwareVersion"]) for of in found.refs(tool, "softwareRequirements")}
    assert software == {("Python", "3.11.7"), ("numpy", "2.4.6"), ("matplotlib", "3.11.2")}
    seeds = found.of["#06_benchmarks.py/seeds"]
    assert (seeds["additionalType"], seeds["description"], seeds["multipleValues"]) == (
        "Integer", "one clustering per seed", True)  # fmt: skip
    assert seeds["workExample"] == {"@id": "#k2/06_benchmarks/seeds"}


def test_files_are_connected_from_the_input_to_the_tables(folder):
    found = Crate(folder)
    chain = [found.of[f"#{name}"] for name in ("01_filter", "k2/03_train_ae_nmf", "k2/06_benchmarks")]
    wrote = [{of["@id"] for of in found.refs(action, "result")} for action in chain]
    read = [{of["@id"] for of in found.refs(action, "object")} for action in chain]
    assert wrote[0] & read[1] == {"filtered.h5ad"}
    assert wrote[1] & read[2] == {"k2/ae_nmf_k2.h5ad"}
    whole = found.of["#run"]
    assert [of["@id"] for of in found.refs(whole, "object")] == ["#data/demo.h5ad", "#other/scvi.h5ad"]
    assert {of["@id"] for of in found.refs(whole, "result")} == set().union(*wrote)
    assert (whole["startTime"], whole["endTime"]) == ("2026-01-02T03:01:00+00:00", "2026-01-02T03:03:30+00:00")


def test_small_files_have_their_hash_and_larger_ones_their_size(folder, monkeypatch):
    found = Crate(folder)
    files = [of for of in found.typed("File") if not of["@id"].startswith("#")]
    assert len(files) == 9
    for of in files:
        content = (folder / unquote(of["@id"])).read_bytes()
        assert (of["sha256"], of["contentSize"]) == (hashlib.sha256(content).hexdigest(), str(len(content))), of
    assert "sha256" not in found.of["#other/scvi.h5ad"]
    assert "Files up to 5 MB have a sha256." in found.of["./"]["description"]
    monkeypatch.setattr(crate, "_HASHED", 1000)
    crate.write(folder)
    for of in Crate(folder).typed("File"):
        if not of["@id"].startswith("#"):
            assert ("sha256" in of) == (int(of["contentSize"]) <= 1000), of
            assert of["contentSize"] == found.of[of["@id"]]["contentSize"]


def test_code_has_its_license_and_the_author_of_the_citation(folder):
    found = Crate(folder)
    citation = (Path(__file__).parents[2] / "CITATION.cff").read_text()
    for of in found.typed("SoftwareSourceCode"):
        (license,), (author,) = found.refs(of, "license"), found.refs(of, "author")
        assert license["@id"] == f"https://spdx.org/licenses/{license['identifier']}"
        assert f"\nlicense: {license['identifier']}\n" in citation
        assert author["@type"] == "Organization" and f"authors:\n  - name: {author['name']}\n" in citation
    (license,) = found.refs(found.of["./"], "license")
    assert license["@type"] == "CreativeWork" and "The license of the cells also applies" in license["description"]


def test_recorded_hashes_of_large_files_are_kept(folder, monkeypatch):
    monkeypatch.setattr(crate, "_HASHED", 4)
    crate.write(folder)
    found = Crate(folder)
    assert found.of["#data/demo.h5ad"]["sha256"] == "ab" * 32  # of input.yaml
    assert found.of["filtered.h5ad"]["sha256"] == "cd" * 32  # of the provenance of the fit
    assert found.of["filtered.h5ad"]["contentSize"] == "5"
    content = json.loads((folder / "01_filter.ipynb").read_text())
    content["metadata"]["papermill"]["end_time"] = "2026-01-02T03:59:00+00:00"  # filtered again, after the fit
    fabricated.write_notebook(folder / "01_filter.ipynb", content)
    crate.write(folder)
    assert "sha256" not in Crate(folder).of["filtered.h5ad"]


def test_same_results_in_another_folder_give_the_same_crate(folder, tmp_path):
    other = tmp_path / "copy/results/demo"
    shutil.copytree(folder, other)
    assert crate.write(other).read_bytes() == (folder / crate.NAME).read_bytes()


def test_input_with_an_odd_name_is_a_valid_reference(tmp_path):
    folder = fabricated.write_run(tmp_path, data="/my data/cells & <b> #1.h5ad").parent
    with pytest.raises(ValueError, match="workflow/Makefile does not exist"):
        crate.write(folder)
    (tmp_path / "Makefile").touch()
    crate.write(folder, tmp_path / "Makefile")
    found = Crate(folder)
    assert found.faults() == []
    (data,) = (of for of in found.typed("File") if of["name"] == "cells & <b> #1.h5ad")
    assert data["@id"] == "#/my%20data/cells%20%26%20%3Cb%3E%20%231.h5ad"
    assert data["sha256"] == "ab" * 32


def test_a_notebook_with_other_versions_is_another_tool(folder):
    other = folder / "k3"
    shutil.copytree(folder / "k2", other)
    content = json.loads((other / "06_benchmarks.ipynb").read_text())
    content["metadata"]["aenmf_lib"]["packages"]["numpy"] = "2.5.0"
    content["metadata"]["aenmf_lib"]["info"]["version_numpy"] = "2.5.0"
    fabricated.write_notebook(other / "06_benchmarks.ipynb", content)
    crate.write(folder)
    found = Crate(folder)
    assert found.faults() == []
    assert found.of["#k2/06_benchmarks"]["instrument"] != found.of["#k3/06_benchmarks"]["instrument"]
    assert found.of["#k2/03_train_ae_nmf"]["instrument"] == found.of["#k3/03_train_ae_nmf"]["instrument"]


def test_stages_that_end_at_the_same_time_are_all_in_the_crate(folder):
    content = (folder / "k2/03_train_ae_nmf.ipynb").read_text()

    def end(i: int) -> None:
        report = folder / f"k{i}/03_train_ae_nmf.ipynb"
        report.parent.mkdir()
        report.write_text(content)
        crate.write(folder)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(end, range(10, 26)))
    found = Crate(folder)
    assert {f"#k{i}/03_train_ae_nmf" for i in range(10, 26)} <= found.of.keys()
    assert found.faults() == []
    assert [
        path.name for path in folder.iterdir() if "lock" in path.name or path.name.startswith(f".{crate.NAME}")
    ] == []


def test_failed_running_and_damaged_notebooks_are_left_out(folder, caplog):
    before = (folder / crate.NAME).read_bytes()
    for name in ("08_conditioning.failed.ipynb", "08_conditioning.running.ipynb"):
        shutil.copy(folder / "k2/06_benchmarks.ipynb", folder / "k2" / name)
    (folder / "k2/14_differential.ipynb").write_text("{")
    (folder / "k2/09_explore.ipynb").write_text(json.dumps({"cells": [], "metadata": {}}))
    with caplog.at_level(logging.WARNING):
        crate.write(folder)
    assert (folder / crate.NAME).read_bytes() == before
    assert [record.getMessage().split(" is left out")[0] for record in caplog.records] == [
        f"warning: {folder}/k2/14_differential.ipynb"
    ]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Makefile and a notebook, as the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "_stop_kernel_on_signal", lambda *_: None)  # this process goes on
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/03_write.py").write_text(NOTEBOOK)
    (tmp_path / "Makefile").write_text("all:\n\techo all\n")
    return tmp_path


def execute(place: str) -> None:
    values = {"out": f"{place}/first.csv", "out_dir": place}
    Path(place, "figures").mkdir(parents=True, exist_ok=True)
    run.execute(Path("notebooks/03_write.py"), values, Path(place, "03_write.ipynb"))


def test_executed_notebook_records_the_files_that_it_wrote(project):
    execute("results/tiny/k3")
    done = executed.read(Path("results/tiny/k3/03_write.ipynb"))
    assert done.outputs == ["first.csv", "figures/second.csv"]  # and not cache.tmp, which is elsewhere
    assert done.info["python"] and float(done.info["peak_memory_mib"]) > 10
    assert {"numpy", "matplotlib"} <= done.packages.keys()
    found = Crate(Path("results/tiny"))
    assert found.faults() == []
    written = [of["@id"] for of in found.refs(found.of["#k3/03_write"], "result")]
    assert sorted(written) == ["k3/03_write.ipynb", "k3/figures/second.csv", "k3/first.csv"]
    assert found.of["k3/first.csv"]["exampleOfWork"] == {"@id": "#03_write.py/out"}
    assert Path("results/tiny/workflow/Makefile").read_text() == "all:\n\techo all\n"


def test_crate_that_cannot_be_written_is_a_warning_and_the_stage_passes(project, caplog):
    Path("results/tiny", crate.NAME).mkdir(parents=True)
    with caplog.at_level(logging.INFO):
        execute("results/tiny/k3")
    assert Path("results/tiny/k3/03_write.ipynb").is_file()
    (warning,) = (record for record in caplog.records if crate.NAME in record.getMessage())
    assert warning.levelname == "WARNING" and "Is a directory" in warning.getMessage()


def test_notebook_outside_of_the_results_makes_no_crate(tmp_path):
    assert crate.folder_of(tmp_path / "out/03_write.ipynb") is None
    assert crate.folder_of(tmp_path / "results/demo/k12/03_write.ipynb") == tmp_path / "results/demo"
    assert crate.folder_of(tmp_path / "results/demo/12_rank.ipynb") == tmp_path / "results/demo"
