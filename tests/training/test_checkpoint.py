"""A fit that is killed goes on, to the same bits."""

import signal

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from aenmf_lib import AENMF, CAENMF1, CAENMF2, results
from aenmf_lib.models import aenmf
from aenmf_lib.training import checkpoint, coordinate_descent, projected_gradient

KINDS = {
    "AE_NMF": lambda **more: AENMF(k=4, tol=0, max_iter=60, **more),
    "CAE_NMF1": lambda **more: CAENMF1(k=4, tol=0, max_iter=60, **{"strength": 0, **more}),
    "CAE_NMF2": lambda **more: CAENMF2(k=4, tol=0, max_iter=60, **{"strength": 0, **more}),
    # from singular vectors, for from samples of the cells it has few steps left
    "row_norm": lambda **more: AENMF(k=6, tol=0, max_iter=60, row_norm=True, init="nndsvd", **more),
}


class Killed(Exception):
    """Stands for a signal."""


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)


def at_step(monkeypatch, name, step, do):
    """Do something once in this step of a fit, counted from now; its start on samples of the cells takes none."""
    owner, left = projected_gradient.ProjectedGradient if name == "row_norm" else coordinate_descent._Descent, [step]

    def counted(self, real=owner.step):
        left[0] -= 1
        if left[0] == -1:
            do()
        return real(self)

    monkeypatch.setattr(owner, "step", counted)


def die():
    raise Killed


@pytest.mark.parametrize("name", KINDS)
def test_killed_again_and_again_it_ends_in_the_same_bits(tiny, tmp_path, monkeypatch, name):
    whole, rng, path = KINDS[name]().fit(tiny), np.random.default_rng(1), tmp_path / "state.npz"
    deaths, window = 0, 30 if name == "row_norm" else 10
    for _ in range(50):
        with monkeypatch.context() as patch:
            at_step(patch, name, int(rng.integers(window + 1, window + 15)), die)
            try:
                model = KINDS[name]().fit(tiny, checkpoint=path)
                break
            except Killed:
                deaths += 1
    assert deaths >= 1
    np.testing.assert_array_equal(model.W_, whole.W_)
    np.testing.assert_array_equal(model.loss_history_, whole.loss_history_)
    assert whole.U_ is None or np.array_equal(model.U_, whole.U_)


def test_killed_in_any_of_the_fits_that_clusters_take_it_ends_in_the_same_bits(tiny, tmp_path, monkeypatch):
    make = lambda: CAENMF1(k=4, tol=0, max_iter=60, strength=0.5, labels="clusters")  # noqa: E731
    tiny.X = csr_matrix(tiny.X.toarray() * np.where((tiny.obs["donor_id"] == "d1").to_numpy()[:, None], 4, 1))
    whole, rng, path, deaths, there = (
        make().fit(tiny),
        np.random.default_rng(1),
        checkpoint.checkpoint_path(tmp_path / "m.h5ad"),
        0,
        set(),
    )
    assert whole.strength_ > 0
    for _ in range(50):
        with monkeypatch.context() as patch:
            at_step(patch, "CAE_NMF1", int(rng.integers(11, 25)), die)
            try:
                model = make().fit(tiny, checkpoint=path)
                break
            except Killed:
                deaths += 1
                there.add(len(list(tmp_path.iterdir())))
    assert deaths > 2
    assert there == {1, 2, 3}
    np.testing.assert_array_equal(model.W_, whole.W_)
    np.testing.assert_array_equal(model.loss_history_, whole.loss_history_)
    other = make()
    other.groups_, other.penalty_ = model.groups_[::-1], model.penalty_
    with pytest.raises(ValueError, match=r"groups is '.*' there and '.*' here"):
        other._fit(other._moments(tiny), None, path)
    tiny.uns["input"] = {}
    results.write(tmp_path / "m.h5ad", model, tiny)
    assert [file.name for file in tmp_path.iterdir()] == ["m.h5ad"]


@pytest.mark.parametrize("wait", [0.0, 1e9])
@pytest.mark.parametrize("name", ["AE_NMF", "CAE_NMF2", "row_norm"])
def test_killed_in_the_second_start_it_ends_in_the_same_bits(tiny, tmp_path, monkeypatch, name, wait):
    whole, path = KINDS[name](n_starts=3).fit(tiny), checkpoint.checkpoint_path(tmp_path / "m.h5ad")
    monkeypatch.setattr(checkpoint, "SECONDS", wait)  # or nothing is written but at the end of a start
    first, began = whole.starts_["iterations"][0], []
    with monkeypatch.context() as patch:
        at_step(patch, name, int(first) + 5, die)
        with pytest.raises(Killed):
            KINDS[name](n_starts=3).fit(tiny, checkpoint=path)
    there = {file.name for file in tmp_path.iterdir()}
    assert there == {"m.checkpoint.npz"} | ({"m.checkpoint.start1.npz"} if not wait else set())
    real = aenmf.AENMF._start
    monkeypatch.setattr(aenmf.AENMF, "_start", lambda self, of, seed: began.append(seed) or real(self, of, seed))
    model = KINDS[name](n_starts=3).fit(tiny, checkpoint=path)
    assert began == ([43, 44] if wait else [44])  # the first start is not made again
    np.testing.assert_array_equal(model.W_, whole.W_)
    assert model.starts_.drop(columns="seconds").equals(whole.starts_.drop(columns="seconds"))
    assert model.stability_.equals(whole.stability_)
    tiny.uns["input"] = {}
    results.write(tmp_path / "m.h5ad", model, tiny)
    assert [file.name for file in tmp_path.iterdir()] == ["m.h5ad"]
    held = results.read(tmp_path / "m.h5ad").uns["provenance"]
    assert held["starts"]["objective"].tolist() == model.starts_["objective"].tolist()
    assert held["stability"]["cosine"].tolist() == model.stability_["cosine"].tolist()


def test_killed_while_it_writes_the_state_before_holds(tiny, tmp_path, monkeypatch):
    path, real = tmp_path / "state.npz", np.savez
    writes = []

    def half(file, **arrays):
        writes.append(1)
        if len(writes) == 3:
            file.write(b"half")
            raise Killed
        real(file, **arrays)

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(Killed):
        KINDS["AE_NMF"]().fit(tiny, checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]
    monkeypatch.setattr(np, "savez", real)
    np.testing.assert_array_equal(KINDS["AE_NMF"]().fit(tiny, checkpoint=path).W_, KINDS["AE_NMF"]().fit(tiny).W_)


def test_a_state_of_another_fit_is_refused(tiny, tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    KINDS["AE_NMF"]().fit(tiny, checkpoint=path)
    for other, message in (
        (AENMF(k=5, tol=0, max_iter=60), "k is 4 there and 5 here"),
        (AENMF(k=4, tol=0, max_iter=60, lambda_W=0.5), "lambda_W is 0.01 there and 0.5 here"),
        (KINDS["CAE_NMF1"](), "model is 'AE_NMF' there and 'CAE_NMF1' here"),
    ):
        with pytest.raises(ValueError, match=f"is a checkpoint of another fit: .*{message}.*Remove it to start anew"):
            other.fit(tiny, checkpoint=path)
    with pytest.raises(ValueError, match="cells is 60 there and 59 here"):
        KINDS["AE_NMF"]().fit(tiny[1:].copy(), checkpoint=path)
    monkeypatch.setattr("aenmf_lib.models.version", lambda name: "99")
    with pytest.raises(ValueError, match=r"version is '.*' there and '99' here"):
        KINDS["AE_NMF"]().fit(tiny, checkpoint=path)


def test_a_cut_state_is_refused(tiny, tmp_path):
    path = tmp_path / "state.npz"
    KINDS["AE_NMF"]().fit(tiny, checkpoint=path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="is not a file of a solver's state, or is cut short"):
        KINDS["AE_NMF"]().fit(tiny, checkpoint=path)


def test_once_the_results_are_written_the_state_is_gone(tiny, tmp_path):
    tiny.uns["input"] = {}
    out = tmp_path / "ae_nmf_k4.h5ad"
    model = AENMF(k=4, max_iter=25, tol=0).fit(tiny, checkpoint=checkpoint.checkpoint_path(out))
    assert checkpoint.checkpoint_path(out).exists()
    results.write(out, model, tiny)
    assert [file.name for file in tmp_path.iterdir()] == ["ae_nmf_k4.h5ad"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("step", [3, 37])
def test_told_to_end_it_writes_what_it_has_and_goes_on_to_the_same_bits(tiny, tmp_path, monkeypatch, name, step):
    whole, path, ended = KINDS[name]().fit(tiny), tmp_path / "state.npz", []
    monkeypatch.setattr(checkpoint, "SECONDS", 1e9)  # by itself it would write nothing

    def end(*_):
        ended.append(path.exists())
        raise Killed

    before = signal.signal(signal.SIGTERM, end)
    try:
        with monkeypatch.context() as patch:
            at_step(patch, name, step, lambda: signal.raise_signal(signal.SIGTERM))
            with pytest.raises(Killed):
                KINDS[name]().fit(tiny, checkpoint=path)
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [True]
    window = 30 if name == "row_norm" else 10
    assert len(np.load(path)["history"]) - 1 == step // window * window
    model = KINDS[name]().fit(tiny, checkpoint=path)
    np.testing.assert_array_equal(model.W_, whole.W_)
    np.testing.assert_array_equal(model.loss_history_, whole.loss_history_)
    assert whole.U_ is None or np.array_equal(model.U_, whole.U_)


def test_told_to_end_while_it_writes_it_writes_to_the_end(tiny, tmp_path, monkeypatch):
    path, real = tmp_path / "state.npz", np.savez

    def told(file, **arrays):
        signal.raise_signal(signal.SIGTERM)
        real(file, **arrays)

    def end(*_):
        raise Killed

    before = signal.signal(signal.SIGTERM, end)
    try:
        with monkeypatch.context() as patch:
            at_step(patch, "AE_NMF", 5, lambda: patch.setattr(np, "savez", told))  # at the first there is no handler
            with pytest.raises(Killed):
                KINDS["AE_NMF"]().fit(tiny, checkpoint=path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(np.load(path)["history"]) - 1 == 10
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]
