"""Names from elsewhere that an RO-Crate uses, the license and author of the code, and parts of JSON-LD."""

from collections.abc import Iterable
from typing import Any

TERMS = "https://w3id.org/ro/terms/workflow-run#"
CRATE = "https://w3id.org/ro/crate/1.1"
CONTEXT = [f"{CRATE}/context", {name: TERMS + name for name in ("sha256", "resourceUsage")}]
WORKFLOW_CRATE = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
PROFILES = {
    **{f"https://w3id.org/ro/wfrun/{kind.lower()}/0.5": f"{kind} Run Crate" for kind in ("Process", "Workflow")},
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    WORKFLOW_CRATE: "Workflow RO-Crate",
}
FORMATS = {
    ".csv": "text/csv", ".h5ad": "application/x-hdf5", ".ipynb": "application/x-ipynb+json", ".pdf": "application/pdf",
    ".png": "image/png", ".svg": "image/svg+xml", ".txt": "text/plain", ".md": "text/markdown", ".tex": "text/x-tex",
    ".json": "application/json", ".npz": "application/x-npz",
}  # fmt: skip
TYPES = {"int": "Integer", "float": "Float", "bool": "Boolean", "str": "Text"}
PYTHON = "https://docs.python.org/release/"  # packages have a package URL instead: pkg:pypi/name@version
MAKE = "https://www.gnu.org/software/make"
COMPLETED = "http://schema.org/CompletedActionStatus"

_LICENSE = "https://spdx.org/licenses/BSD-3-Clause"
OF_CODE = {
    "license": {
        "@id": _LICENSE,
        "@type": "CreativeWork",
        "name": "BSD-3-Clause",
        "identifier": "BSD-3-Clause",
        "url": {"@id": _LICENSE},
    },
    "author": {"@id": "#authors", "@type": "Organization", "name": "The AENMF authors"},  # as in CITATION.cff
}
OF_RESULTS = {
    "license": {
        "@id": "#license",
        "@type": "CreativeWork",
        "name": "License of the results",
        "description": "The license of the cells also applies to what was computed from them. "
        "The license of the code is BSD-3-Clause.",
    }
}


def compact(entity: dict[str, Any]) -> dict[str, Any]:
    """Return an entity without empty lists, and without lists around single values, as RO-Crate recommends."""
    lists = {name: of for name, of in entity.items() if isinstance(of, list)}
    return {name: of[0] if name in lists and len(of) == 1 else of for name, of in entity.items() if of != []}


def listed(value: Any) -> list[Any]:
    """Return a value as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def ref(name: str) -> dict[str, str]:
    """Return a reference to an entity."""
    return {"@id": name}


def refs(names: Iterable[str]) -> list[dict[str, str]]:
    """Return references to entities."""
    return [ref(name) for name in names]
