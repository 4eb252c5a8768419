"""The cells that a fit accepts: every form of a matrix gives the same sums, and invalid values are refused."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from aenmf_lib.data.streaming import CellStream
from aenmf_lib.training.inputs import as_cells, as_csr, iter_matrices
from aenmf_lib.training.moments import Moments

FORMS = {
    "CSC": sparse.csc_matrix,
    "CSC array": sparse.csc_array,
    "CSR array": sparse.csr_array,
    "dense": lambda X: X.toarray(),
    "dense, by gene": lambda X: np.asfortranarray(X.toarray()),
    "big-endian": lambda X: X.toarray().astype(">f8"),
    "64-bit indices": lambda X: with_index(X, np.int64),
    "unsorted": lambda X: reversed_rows(X),
    "duplicates": lambda X: in_two_pieces(X),
}


def with_index(X, dtype):
    X = X.copy()
    X.indices, X.indptr = X.indices.astype(dtype), X.indptr.astype(dtype)
    return X


def reversed_rows(X):
    """Return X with the entries of each row in reverse order."""
    order = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(X.indptr[:-1], X.indptr[1:], strict=True)])
    return sparse.csr_matrix((X.data[order], X.indices[order], X.indptr), X.shape)


def in_two_pieces(X):
    """Return X with each value stored as a quarter and three quarters."""
    data = np.column_stack([X.data / 4, X.data * 3 / 4]).ravel()
    return sparse.csr_matrix((data, np.repeat(X.indices, 2), 2 * X.indptr), X.shape)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_matrix_gives_the_same_bits(tiny, form):
    tiny.X.data = np.round(tiny.X.data * 64) / 64 + 1 / 128  # so that pieces add up exactly
    given = FORMS[form](tiny.X)
    before = [np.copy(part) for part in parts(given)]
    expected = Moments.from_cells(tiny, mode="implicit")
    found = Moments.from_cells(AnnData(given, obs=tiny.obs, var=tiny.var), mode="implicit")
    np.testing.assert_array_equal(found.group_sums, expected.group_sums)
    V = expected.donor_sums
    np.testing.assert_array_equal(found.product(V), expected.product(V))
    for part, kept in zip(parts(given), before, strict=True):
        np.testing.assert_array_equal(part, kept)  # the given object is never changed


def parts(X):
    """Return the arrays of a matrix."""
    return [X] if isinstance(X, np.ndarray) else [X.data, X.indices, X.indptr]


@pytest.mark.parametrize("form", ["coo", "lil", "dok", "bsr"])
def test_other_sparse_formats_are_converted(tiny, form):
    np.testing.assert_array_equal(as_cells(tiny.X.asformat(form)).X.toarray(), tiny.X.toarray())


@pytest.mark.parametrize(
    ("dtype", "expected"), [("f2", "f4"), (">f4", "f4"), ("f8", "f8"), ("g", "f8"), ("i8", "f4"), ("?", "f4")]
)
@pytest.mark.parametrize("form", ["dense", "CSR"])
def test_numbers_become_native_float32_and_float64_stays(dtype, expected, form):
    X = np.array([[0, 1], [2, 0]]).astype(dtype)
    if form == "CSR":
        stored, X = X[X != 0], sparse.csr_matrix(X.astype(float))
        X.data = stored  # SciPy makes no matrix of float16 or of another byte order, but accepts such values here
    X = as_csr(X)
    assert X.dtype == np.dtype(expected)
    np.testing.assert_array_equal(X.toarray(), np.array([[0, 1], [2, 0]]).astype(dtype).astype(expected))


def test_valid_cells_are_not_copied(tiny):
    assert as_cells(tiny) is tiny
    assert as_csr(tiny.X) is tiny.X


def test_stale_flag_does_not_hide_duplicates(tiny):
    X = in_two_pieces(tiny.X)
    X.has_canonical_format = True
    np.testing.assert_allclose(as_csr(X).toarray(), tiny.X.toarray())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda X: X.indices.__setitem__(3, 40), "indices range from 0 to 40, but should be at least 0 and below 40"),
        (lambda X: X.indices.__setitem__(3, -1), "indices range from -1"),
        (lambda X: X.indptr.__setitem__(2, 10**6), "index pointers are not 61 increasing numbers from 0 to"),
        (lambda X: X.data.__setitem__(3, np.inf), "contains 1 values that are NaN or infinite"),
        (lambda X: X.data.__setitem__(3, -1), "contains 1 negative values"),
    ],
)
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix])
def test_damaged_matrix_raises(tiny, edit, message, form):
    X = form(tiny.X)
    if form is sparse.csc_matrix:
        message = message.replace("61", "41").replace("40", "60")
        edit = edit if "60," not in message else lambda X: X.indices.__setitem__(3, 60)
    edit(X)
    with pytest.raises(ValueError, match=message):
        as_cells(X)


@pytest.mark.parametrize(
    ("cells", "error", "message"),
    [
        ("cells.h5ad", TypeError, "The cells are a str. Expected an AnnData"),
        ([[0.5]], TypeError, "The cells are a list"),
        (np.ma.masked_array([[0.5]]), TypeError, "X is a MaskedArray"),
        (np.array([0.5]), ValueError, r"X has shape \(1,\). Expected two dimensions"),
        (np.array([["a"]]), ValueError, "X has values of type <U1, not numbers"),
        (np.array([[1j]]), ValueError, "X has values of type complex128"),
        (AnnData(obs={"a": ["1"]}), ValueError, "The cells have no X"),
    ],
)
def test_other_types_raise(cells, error, message):
    with pytest.raises(error, match=message):
        as_cells(cells)


@pytest.mark.parametrize("dtype", ["i4", "u2", "f4", "f8", "?"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_raw_counts_raise_and_the_remedy_is_named(dtype, form):
    counts = np.random.default_rng(0).poisson(0.5, (50, 20)).astype(dtype)
    with pytest.raises(
        ValueError, match=r"contains only whole numbers \(largest \d\), .* data\.normalize\(X\), or .* data\.prep"
    ):
        as_cells(form(counts))


def test_one_fraction_anywhere_shows_that_values_are_no_counts():
    counts = np.random.default_rng(0).poisson(1, (600, 400)).astype(np.float32)  # more than the sampled values
    counts[17, 3] = 0.5
    assert as_cells(counts).n_obs == 600


@pytest.mark.parametrize("X", [np.zeros((3, 2)), np.zeros((0, 2)), sparse.csr_matrix((3, 2))])
def test_cells_without_values_are_not_called_counts(X):
    assert as_cells(X).shape == X.shape


def test_stream_of_raw_counts_raises_unless_it_normalizes(h5ad):
    with pytest.raises(ValueError, match="contains only whole numbers"):
        list(iter_matrices(CellStream(h5ad, block=20)))
    assert sum(X.shape[0] for X, _ in iter_matrices(CellStream(h5ad, counts=True, block=20))) == 60


def test_view_is_read_once_and_equals_its_copy(tiny):
    view = tiny[::2, 5:]
    (found, _), (expected, _) = iter_matrices(view)[0], iter_matrices(view.copy())[0]
    np.testing.assert_array_equal(found.toarray(), expected.toarray())
    assert view.is_view


def test_no_cells_raise(tiny):
    with pytest.raises(ValueError, match="There are 0 cells × 40 genes"):
        Moments.from_cells(tiny[:0].copy())
