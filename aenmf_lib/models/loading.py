"""Function that rebuilds a fitted model from its results file."""

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from aenmf_lib.data import files
from aenmf_lib.data.labels import DONOR, as_text
from aenmf_lib.models.aenmf import AENMF
from aenmf_lib.models.base import Model
from aenmf_lib.models.base_nmf import BaseNMF
from aenmf_lib.models.conditional import CAENMF1, CAENMF2
from aenmf_lib.models.penalties import PenaltyWeights
from aenmf_lib.models.untied import UntiedAENMF
from aenmf_lib.results import schema
from aenmf_lib.results.schema import PROVENANCE
from aenmf_lib.training.second_moment import check_device

__all__ = ["load_model"]

log = logging.getLogger(__name__)

# parameters of earlier versions, which are ignored -> the value that the models now always use
_REMOVED = {"labels": "cell_type", "invariance": "published"}
_CLASSES = {model.name: model for model in (AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF)}


def load_model(path: str | Path) -> Model:
    """Rebuild the fitted model from a results file, or from a file written by ``model.save``.

    `transform` of the rebuilt model returns bit-identical usages. The embeddings of the cells are not read, except the
    usages `H_` of Base NMF, which `results.write` stores in float32. If a file has the published keys but no
    provenance, only W, and U of model 1, are restored. The parameters then have their published values, and the other
    attributes are empty or NaN.

    Parameters
    ----------
    path
        Results file (``.h5ad``) of a model.

    Returns
    -------
    AENMF, CAENMF1, CAENMF2, BaseNMF or UntiedAENMF
        The fitted model. ``U_`` of model 2 is None unless the file was written with ``donor_U=True`` or by
        ``model.save``. `embeddings` works without it, unless the file is of an early version, which did not store the
        overlap of U with the programs either: then `embeddings` raises ValueError. If the device of the fit is not
        available, the device is the CPU.

    Raises
    ------
    OSError, TypeError, ValueError
        `path` is not a path; the file cannot be read, is not a results file, or is damaged; the model was skipped; or
        the file contains parameters of a newer version of this library. Parameters that earlier versions had are
        ignored, and a log line lists them.

    Examples
    --------
    >>> from aenmf_lib import AENMF, data, results
    >>> cells, _ = data.simulate(n_cells=200)
    >>> AENMF(k=3, max_iter=5).fit(cells).save("model.h5ad")  # doctest: +SKIP
    >>> results.load_model("model.h5ad").transform(cells).shape  # doctest: +SKIP
    (200, 3)
    """
    found, faults = schema.load(path, with_cells=False)
    if found is None:
        raise ValueError(f"{path} {faults[0]}")
    if faults:
        advice = "Train the model again, or write the file again with results.write."
        raise ValueError(f"{path} is not a valid results file. {advice}\n  " + "\n  ".join(faults))
    if reason := schema.skip_reason(found.uns):
        raise ValueError(f"{path} has no model, because {found.uns[PROVENANCE]['model']} was skipped: {reason}.")
    name, k = schema.identify(found)
    provenance = found.uns.get(PROVENANCE, {})
    with files.guard(path):
        model = _construct(name, k, provenance)
        _restore_fit(model, found, provenance)
        _restore_programs(model, found, path)
    return model


def _construct(name: str, k: int, provenance: Mapping) -> Model:
    """Return the model with the parameters in the provenance, or with the published parameters if there are none."""
    given = {key: _plain(value) for key, value in provenance.get("parameters", {}).items()}
    if removed := {key: given.pop(key) for key in _REMOVED if key in given}:
        listed = ", ".join(f"{key}={value!r} (now always {_REMOVED[key]!r})" for key, value in removed.items())
        log.info("%s was written by an earlier version; these parameters are ignored: %s", name, listed)
        if given.get("strength"):  # earlier versions wrote gamma=0 for labels other than 'cell_type'
            given.pop("gamma", None)
    known = {field.name for field in fields(_CLASSES[name])}
    if unknown := sorted(set(given) - known):
        written = provenance.get("version_aenmf_lib", "unknown")
        raise files.Fault(f"has parameters that {name} does not have ({', '.join(unknown)}); the version of aenmf_lib "
                          f"that wrote it is {written}", "Install that version or a newer one.")  # fmt: skip
    if (stored := given.get("k", k)) != k:
        raise files.Fault(f"is damaged: its parameter k is {stored!r}, but its programs are of rank {k}")
    if not given:
        if name not in schema.PUBLISHED:
            raise files.Fault(f"is damaged: its provenance has no parameters of {name}")
        published = {"preset": "published"} if "preset" in known else {}
        return _CLASSES[name](k=k, **published)
    if "device" in given:
        given["device"] = _available(given["device"])
    return _CLASSES[name](**given)


def _plain(value: object) -> object:
    """Return a parameter as a Python value. Files store None as ''."""
    value = value.item() if isinstance(value, np.generic | np.ndarray) and value.size == 1 else value
    return None if isinstance(value, str) and not value else value


def _available(device: str) -> str:
    """Return the device, or 'cpu' if this machine does not have it."""
    try:
        return check_device(device)
    except RuntimeError as error:
        log.warning("%s The loaded model computes on the CPU.", error)
        return "cpu"


def _restore_fit(model: Model, found: AnnData, provenance: Mapping) -> None:
    """Set the fitted attributes that the provenance contains, and the names of columns and genes."""
    model.loss_history_ = np.asarray(provenance.get("loss_history", [np.nan]))
    model.sq_norm_per_cell_ = float(provenance.get("sq_norm_per_cell", np.nan))
    model.n_iter_, model.stop_reason_ = int(provenance.get("n_iter", 0)), str(provenance.get("stop", "unknown"))
    model.seconds_ = float(provenance.get("fit_seconds", np.nan))
    model.second_moment_ = str(provenance.get("second_moment", ""))
    for name, attribute in (("starts", "starts_"), ("stability", "stability_")):
        if isinstance(table := provenance.get(name), pd.DataFrame):
            setattr(model, attribute, table.reset_index(drop=True))
    if penalty := dict(provenance.get("penalty", {})):
        if wrong := {"note", *penalty} ^ {"strength", *(field.name for field in fields(PenaltyWeights))}:
            raise files.Fault(f"is damaged: entries of its penalty are missing or unknown ({', '.join(sorted(wrong))})")
        model.strength_ = float(penalty.pop("strength"))
        penalty = {key: _plain(value) for key, value in penalty.items()}
        model.penalty_ = PenaltyWeights(**penalty | {"note": penalty.get("note") or ""})
        if not np.isfinite([model.strength_, model.penalty_.gamma, model.penalty_.eta]).all():
            raise files.Fault("is damaged: its penalty contains values that are NaN or infinite")
    elif isinstance(model, CAENMF1 | CAENMF2):
        model.penalty_ = PenaltyWeights(model.gamma, model.eta, centered=False)
    elif isinstance(model, UntiedAENMF):
        raise files.Fault("is damaged: its provenance has no penalty")
    keys = provenance.get(schema.FIT_KEYS, {})
    names = (str(keys.get(key, getattr(model, f"{key}_"))) for key in ("donor_key", "cell_type_key"))
    model._set_names(found, *names)


def _restore_programs(model: Model, found: AnnData, path: str | Path) -> None:
    """Set the programs, the gene weights, the usages of Base NMF, and the donor part."""
    name, k, keys = model.name, model.k, schema.VARM[model.name]
    model.genes_ = found.var_names.copy()
    model.W_ = _rows(found.varm[keys["W"].format(k=k)])
    if "E" in keys:
        model.encoder_ = _rows(found.varm[keys["E"].format(k=k)])
    if not (model.W_.any() and ("E" not in keys or model.encoder_.any())):
        raise files.Fault("has no program with a weight above 0", "Train the model again, with smaller penalties.")
    if schema.GENE_WEIGHTS in found.varm:
        model.gene_weights_ = np.asarray(found.varm[schema.GENE_WEIGHTS])[:, 0].copy()
    with files.open_cells(path) as file:
        key = schema.OBSM[name]["shared"].format(k=k)
        if (n_cells := found.uns.get(PROVENANCE, {}).get("n_cells")) is None:
            if key not in file.get("obsm", ()):
                raise files.Fault(f"has no cells and no uns/{PROVENANCE}/n_cells", "Write it again with model.save.")
            n_cells = file["obsm"][key].shape[0]
        model.n_cells_ = int(n_cells)
        if name == "Base_NMF":
            H = np.asarray(found.uns[key] if key in found.uns else files.read_element(file, f"obsm/{key}", path))
            model.H_ = H.astype(np.float32) if H.dtype == np.float16 else H
        if not isinstance(model, CAENMF1 | CAENMF2 | UntiedAENMF):
            return
        meta = found.uns[schema.META[name].format(k=k)]
        donors = meta.get("donors") if isinstance(meta, Mapping) else None
        if donors is None and DONOR in file.get("obs", ()):  # a published file: rows of U are in the order of names
            donors = sorted(as_text(files.read_element(file, "obs", path)[DONOR]).dropna().unique())
    model.donors_ = np.array(donors, dtype=str) if donors is not None and len(donors) else ()
    if isinstance(model, UntiedAENMF) and model.conditional != bool(len(model.donors_)):
        raise files.Fault(f"is damaged: its strength is {model.strength:g}, but it lists {len(model.donors_)} donors")
    U = found.varm.get(keys["U"].format(k=k)) if "U" in keys else None
    model.U_ = _rows(U) if U is not None else found.uns.get(schema.U_DONOR.format(k=k))
    model._donor_part = found.varm.get(schema.DONOR_PART.format(k=k))
    if (overlap := found.uns.get(schema.OVERLAP.format(k=k))) is not None:
        model.overlap_ = overlap
    elif model.U_ is not None:
        model.overlap_ = model._overlap()
    for part in (model.U_, model.overlap_):
        if part is not None and len(part) != len(model.donors_):
            raise files.Fault(f"has a donor part of {len(part)} donors, but lists {len(model.donors_)} donors")


def _rows(matrix) -> np.ndarray:
    """Return a matrix of varm (genes × programs) as programs × genes, C-contiguous as in a fitted model."""
    return np.ascontiguousarray(np.asarray(matrix).T)
