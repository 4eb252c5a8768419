"""An interrupted fit resumes, and its result is bit-identical to that of an uninterrupted fit."""

import signal

import numpy as np
import pytest
import torch
from conftest import tiny_cells
from scipy.sparse import csr_matrix

from aenmf_lib import AENMF, CAENMF1, CAENMF2, UntiedAENMF, data, results
from aenmf_lib.models import aenmf
from aenmf_lib.training import checkpoint, coordinate_descent, projected_gradient

MODELS = {
    "AE_NMF": lambda **more: AENMF(k=4, tol=0, max_iter=60, **more),
    "CAE_NMF1": lambda **more: CAENMF1(k=4, tol=0, max_iter=60, **{"strength": 0, **more}),
    "CAE_NMF2": lambda **more: CAENMF2(k=4, tol=0, max_iter=60, **{"strength": 0, **more}),
    # init="nndsvd", because a start on samples of the cells leaves few steps to interrupt
    "row_norm": lambda **more: AENMF(k=6, tol=0, max_iter=60, row_norm=True, init="nndsvd", **more),
}


class Killed(Exception):
    """Raised in place of a signal that ends the process."""


@pytest.fixture(autouse=True)
def write_every_state(monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)


@pytest.fixture(scope="module")
def uninterrupted():
    """Uninterrupted fits of `MODELS`, each computed once."""
    fitted = {}

    def fit(name, **more):
        key = name, *more.items()
        if key not in fitted:
            fitted[key] = MODELS[name](**more).fit(tiny_cells())
        return fitted[key]

    return fit


@pytest.fixture
def terminations():
    """Raise Killed on SIGTERM. Return the handler, functions to call at each SIGTERM, and the list of their results."""
    found, record = [], []

    def end(*_):
        found.extend(call() for call in record)
        raise Killed

    before = signal.signal(signal.SIGTERM, end)
    yield end, record, found
    signal.signal(signal.SIGTERM, before)


def at_step(monkeypatch, name, step, do):
    """Call `do` once, before step `step` of a fit, counted from now. With so few cells, the start has no steps."""
    owner = projected_gradient.ProjectedGradient if name == "row_norm" else coordinate_descent._Descent
    left, real = [step], owner.step

    def counted(self):
        left[0] -= 1
        if left[0] == -1:
            do()
        return real(self)

    monkeypatch.setattr(owner, "step", counted)


def die():
    raise Killed


def fit_with_interruptions(monkeypatch, make, cells, path, name, window, after=lambda: None):
    """Fit until one fit ends, with interruptions after random numbers of steps; return the model and their number."""
    rng = np.random.default_rng(1)
    for n_killed in range(50):
        with monkeypatch.context() as patch:
            at_step(patch, name, int(rng.integers(window + 1, window + 15)), die)
            try:
                return make().fit(cells, checkpoint=path), n_killed
            except Killed:
                after()
    raise AssertionError("the fit did not end")


def assert_same(model, expected):
    np.testing.assert_array_equal(model.W_, expected.W_)
    np.testing.assert_array_equal(model.loss_history_, expected.loss_history_)
    assert expected.U_ is None or np.array_equal(model.U_, expected.U_)


@pytest.mark.parametrize("name", MODELS)
def test_resumed_fit_equals_uninterrupted_fit(tiny, tmp_path, monkeypatch, uninterrupted, name):
    window, path = 30 if name == "row_norm" else 10, tmp_path / "state.npz"
    model, n_killed = fit_with_interruptions(monkeypatch, MODELS[name], tiny, path, name, window)
    assert n_killed >= 1
    assert_same(model, uninterrupted(name))


def test_resumed_fit_with_a_strength_equals_uninterrupted_fit(tiny, tmp_path, monkeypatch):
    make = lambda: CAENMF1(k=4, tol=0, max_iter=60, strength=0.5)  # noqa: E731
    tiny.X = csr_matrix(tiny.X.toarray() * np.where((tiny.obs["donor_id"] == "d1").to_numpy()[:, None], 4, 1))
    expected, path, n_files = make().fit(tiny), results.checkpoint_path(tmp_path / "m.h5ad"), set()
    assert expected.strength_ > 0
    count_files = lambda: n_files.add(len(list(tmp_path.iterdir())))  # noqa: E731
    model, n_killed = fit_with_interruptions(monkeypatch, make, tiny, path, "CAE_NMF1", 10, count_files)
    assert n_killed > 2
    assert n_files == {1, 2}
    assert set(tmp_path.iterdir()) <= set(model.checkpoint_files_)
    assert_same(model, expected)
    tiny.uns["input"] = {}
    results.write(tmp_path / "m.h5ad", model, tiny)
    assert [file.name for file in tmp_path.iterdir()] == ["m.h5ad"]


@pytest.mark.parametrize("seconds", [0.0, 1e9])
@pytest.mark.parametrize("name", ["AE_NMF", "CAE_NMF2", "row_norm"])
def test_fit_killed_in_second_start_does_not_repeat_first(tiny, tmp_path, monkeypatch, uninterrupted, name, seconds):
    expected, path = uninterrupted(name, n_starts=3), results.checkpoint_path(tmp_path / "m.h5ad")
    monkeypatch.setattr(checkpoint, "SECONDS", seconds)  # 1e9: checkpoints are written only at the end of a start
    with monkeypatch.context() as patch:
        at_step(patch, name, int(expected.starts_["iterations"][0]) + 5, die)
        with pytest.raises(Killed):
            MODELS[name](n_starts=3).fit(tiny, checkpoint=path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"m.checkpoint.npz"} | ({"m.checkpoint.start1.npz"} if not seconds else set())
    real, started = aenmf.AENMF._start, []
    monkeypatch.setattr(aenmf.AENMF, "_start", lambda self, m, seed: started.append(seed) or real(self, m, seed))
    model = MODELS[name](n_starts=3).fit(tiny, checkpoint=path)
    assert started == ([43, 44] if seconds else [44])  # the first start is not repeated
    assert_same(model, expected)
    assert model.starts_.drop(columns="seconds").equals(expected.starts_.drop(columns="seconds"))
    assert model.stability_.equals(expected.stability_)
    tiny.uns["input"] = {}
    results.write(tmp_path / "m.h5ad", model, tiny)
    assert [file.name for file in tmp_path.iterdir()] == ["m.h5ad"]
    provenance = results.read(tmp_path / "m.h5ad").uns["provenance"]
    assert provenance["starts"]["objective"].tolist() == model.starts_["objective"].tolist()
    assert provenance["stability"]["cosine"].tolist() == model.stability_["cosine"].tolist()


def test_checkpoint_files_have_one_name_per_role_and_start(tmp_path):
    path = results.checkpoint_path(tmp_path / "m.h5ad")
    names = [file.name for file in checkpoint.checkpoint_files(path, 2)]
    assert names == [f"m.checkpoint{role}{start}.npz" for role in ("", ".plain") for start in ("", ".start1")]


def test_fit_killed_while_writing_keeps_the_previous_checkpoint(tiny, tmp_path, monkeypatch, uninterrupted):
    path, real = tmp_path / "state.npz", np.savez
    writes = []

    def write_half(file, **arrays):
        writes.append(1)
        if len(writes) == 3:
            file.write(b"half")
            raise Killed
        real(file, **arrays)

    monkeypatch.setattr(np, "savez", write_half)
    with pytest.raises(Killed):
        MODELS["AE_NMF"]().fit(tiny, checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]
    monkeypatch.setattr(np, "savez", real)
    assert_same(MODELS["AE_NMF"]().fit(tiny, checkpoint=path), uninterrupted("AE_NMF"))


def test_checkpoint_of_another_fit_raises(tiny, tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    MODELS["AE_NMF"]().fit(tiny, checkpoint=path)
    for other, message in (
        (AENMF(k=5, tol=0, max_iter=60), "k is 4, expected 5"),
        (AENMF(k=4, tol=0, max_iter=60, lambda_W=0.5), "lambda_W is 0.01, expected 0.5"),
        (MODELS["CAE_NMF1"](), "model is 'AE_NMF', expected 'CAE_NMF1'"),
    ):
        with pytest.raises(ValueError, match=f"is a checkpoint of another fit: .*{message}.*Delete it to start"):
            other.fit(tiny, checkpoint=path)
    with pytest.raises(ValueError, match="cells is 60, expected 59"):
        MODELS["AE_NMF"]().fit(tiny[1:].copy(), checkpoint=path)
    monkeypatch.setattr(aenmf, "version", lambda name: "99")
    with pytest.raises(ValueError, match=r"version is '.*', expected '99'"):
        MODELS["AE_NMF"]().fit(tiny, checkpoint=path)


@pytest.mark.parametrize("model", [CAENMF1, UntiedAENMF])
def test_checkpoint_of_a_fit_from_another_ae_nmf_or_with_other_types_raises(tmp_path, model):
    """The weight of the penalty depends on the AE-NMF; with another one, the objective is another."""
    cells, _ = data.simulate(n_cells=400)
    settings = {"k": 4, "tol": 0, "gene_weights": "none"}
    first, other = (AENMF(seed=seed, max_iter=3, **settings).fit(cells) for seed in (1, 2))
    model(max_iter=5, **settings).fit(cells, aenmf=first, checkpoint=tmp_path / "state.npz")
    with pytest.raises(ValueError, match="is a checkpoint of another fit: penalty is"):
        model(max_iter=5, **settings).fit(cells, aenmf=other, checkpoint=tmp_path / "state.npz")
    types = cells.copy()
    types.obs["cell_type"] = types.obs["cell_type"].cat.rename_categories(lambda name: f"new {name}")
    with pytest.raises(ValueError, match="is a checkpoint of another fit: groups is"):
        model(max_iter=5, **settings).fit(types, aenmf=first, checkpoint=tmp_path / "state.npz")
    with pytest.raises(ValueError, match=r"aenmf \(\w+\) is not a fitted AENMF"):
        model(max_iter=5, **settings).fit(cells, aenmf=model(max_iter=1, **settings).fit(cells))


def test_truncated_checkpoint_raises(tiny, tmp_path):
    path = tmp_path / "state.npz"
    MODELS["AE_NMF"]().fit(tiny, checkpoint=path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"state\.npz cannot be read .* Expected a checkpoint: delete the file"):
        MODELS["AE_NMF"]().fit(tiny, checkpoint=path)


def edited(path, edit):
    """Apply `edit` to the arrays of an .npz file."""
    with np.load(path) as file:
        arrays = dict(file)
    edit(arrays)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a: a.pop("of"), "is not a complete checkpoint: it has no of"),
        (lambda a: [a.pop(name) for name in ("W", "history")], "it has no W, history"),
        (lambda a: a.pop("least"), r"is not a valid checkpoint of this fit \(KeyError: 'least'\)"),
        (lambda a: a.update(of="{"), "is damaged: it does not name its fit"),
        (lambda a: a.update(W=np.zeros((4, 3))), "is not a valid checkpoint of this fit"),
        (lambda a: a.update(format=99), "contains a checkpoint of format 99, not 1"),
        (lambda a: a.pop("format"), "Expected a checkpoint"),
        (lambda a: a.update(of=np.array([{}], dtype=object)), "Expected a checkpoint"),  # a pickle is not opened
    ],
)
def test_checkpoint_that_lacks_entries_raises(tiny, tmp_path, monkeypatch, edit, message):
    path = tmp_path / "state.npz"
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    MODELS["AE_NMF"]().fit(tiny, checkpoint=path)
    edited(path, edit)
    with pytest.raises(ValueError, match=f"state.npz.*{message}.*(Delete it|delete the file|Compute it again)"):
        MODELS["AE_NMF"]().fit(tiny, checkpoint=path)


def test_torch_file_as_checkpoint_raises(tiny, tmp_path):
    torch.save({"W": torch.ones(3)}, tmp_path / "state.npz")
    with pytest.raises(ValueError, match="Expected a checkpoint: delete the file"):
        MODELS["AE_NMF"]().fit(tiny, checkpoint=tmp_path / "state.npz")


def test_numpy_numbers_as_parameters_can_be_saved(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    for k in (np.int64(4), 4):
        AENMF(k=k, tol=np.float32(0.5), max_iter=12).fit(tiny, checkpoint=tmp_path / "state.npz")


def test_checkpoint_is_deleted_after_results_are_written(tiny, tmp_path):
    tiny.uns["input"] = {}
    out = tmp_path / "ae_nmf_k4.h5ad"
    model = AENMF(k=4, max_iter=25, tol=0).fit(tiny, checkpoint=results.checkpoint_path(out))
    assert results.checkpoint_path(out).exists()
    results.write(out, model, tiny)
    assert [file.name for file in tmp_path.iterdir()] == ["ae_nmf_k4.h5ad"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("step", [3, 37])
def test_sigterm_writes_the_newest_state(tiny, tmp_path, monkeypatch, uninterrupted, terminations, name, step):
    path, (end, record, found) = tmp_path / "state.npz", terminations
    monkeypatch.setattr(checkpoint, "SECONDS", 1e9)  # so that only a signal causes a write
    record.append(path.exists)
    with monkeypatch.context() as patch:
        at_step(patch, name, step, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Killed):
            MODELS[name]().fit(tiny, checkpoint=path)
    assert signal.getsignal(signal.SIGTERM) is end
    assert found == [True]
    window = 30 if name == "row_norm" else 10
    assert len(np.load(path)["history"]) - 1 == step // window * window
    assert_same(MODELS[name]().fit(tiny, checkpoint=path), uninterrupted(name))


def test_sigterm_during_a_write_completes_it(tiny, tmp_path, monkeypatch, terminations):
    path, real = tmp_path / "state.npz", np.savez

    def write_with_signal(file, **arrays):
        signal.raise_signal(signal.SIGTERM)
        real(file, **arrays)

    with monkeypatch.context() as patch:
        # not at the first write, when there is no handler yet
        at_step(patch, "AE_NMF", 5, lambda: patch.setattr(np, "savez", write_with_signal))
        with pytest.raises(Killed):
            MODELS["AE_NMF"]().fit(tiny, checkpoint=path)
    assert len(np.load(path)["history"]) - 1 == 10
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]
