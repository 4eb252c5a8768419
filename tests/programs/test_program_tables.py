"""What is in a program: top genes, usage by type, matching between runs."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from aenmf_lib import programs


def test_top_genes_equal_a_hand_worked_table():
    W = np.array([[0.1, 3.0, 0.0, 2.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    table = programs.top_genes(W, ["a", "b", "c", "d"], n=2)
    # The second program has one gene with weight, the third none: zeros are not top genes.
    assert table.to_numpy().tolist() == [[0, 1, "b", 3.0], [0, 2, "d", 2.0], [1, 1, "a", 5.0]]
    assert list(table) == ["program", "rank", "gene", "weight"]


def test_top_genes_keep_gene_order_for_ties():
    W = np.random.default_rng(0).integers(1, 4, 400)
    table = programs.top_genes(W[None], np.arange(400), n=400)
    assert table["gene"].tolist() == sorted(range(400), key=lambda gene: -W[gene])  # Python's sort is stable


def test_usage_by_type_equals_group_means():
    rng = np.random.default_rng(0)
    types = pd.Series(pd.Categorical(rng.choice(["T", "B", "NK"], 500), categories=["unused", "T", "NK", "B"]))
    H = {"AE_NMF": rng.gamma(1, size=(500, 7)).astype(np.float32), "Base_NMF": rng.gamma(1, size=(500, 5))}
    table = programs.usage_by_type(H, types)
    assert list(table) == ["Model", "program", "cell_type", "mean_usage", "n_cells"]
    assert len(table) == 3 * (7 + 5)
    for model, usage in H.items():
        expected = pd.DataFrame(usage.astype(np.float64)).groupby(types.astype(str).to_numpy()).mean()
        got = table[table["Model"] == model].pivot_table(index="cell_type", columns="program", values="mean_usage")
        np.testing.assert_allclose(got.loc[expected.index].to_numpy(), expected.to_numpy(), rtol=1e-12)
    sizes = table.drop_duplicates("cell_type").set_index("cell_type")["n_cells"]
    assert sizes.to_dict() == types.astype(str).value_counts().to_dict()


def test_usage_by_type_leaves_out_cells_without_a_type():
    H, types = np.random.default_rng(1).random((9, 3)), pd.Series([*"aabbab", None, None, None])
    some = programs.usage_by_type({"AE_NMF": H}, types)
    pd.testing.assert_frame_equal(some, programs.usage_by_type({"AE_NMF": H[:6]}, types[:6]))


def test_usage_by_type_does_not_depend_on_cell_order():
    rng = np.random.default_rng(1)
    H, types, order = rng.random((60, 4)), pd.Series(rng.choice(["x", "y"], 60)), rng.permutation(60)
    a = programs.usage_by_type({"m": H}, types)
    b = programs.usage_by_type({"m": H[order]}, types.iloc[order])
    pd.testing.assert_frame_equal(a, b)


@pytest.mark.parametrize("shape", [(5, 5), (3, 6), (6, 3)])
def test_match_finds_the_best_of_all_pairings(shape):
    rng = np.random.default_rng(2)
    k_a, k_b = shape
    W_a, W_b = rng.gamma(0.4, size=(k_a, 12)), rng.gamma(0.4, size=(k_b, 12))
    W_a[0] = 0
    cosine = np.array([[a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300) for b in W_b] for a in W_a])
    if k_a <= k_b:
        best = max(sum(cosine[i, j] for i, j in enumerate(p)) for p in permutations(range(k_b), k_a))
    else:
        best = max(sum(cosine[i, j] for j, i in enumerate(p)) for p in permutations(range(k_a), k_b))
    pairs, values = programs.match_programs(W_a, W_b)
    assert pairs.shape == (min(shape), 2)
    assert all(len(set(column)) == min(shape) for column in pairs.T)
    np.testing.assert_allclose(values, cosine[pairs[:, 0], pairs[:, 1]], atol=1e-12)
    assert values.sum() == pytest.approx(best, abs=1e-12)


def test_match_recovers_shuffled_and_scaled_programs():
    rng = np.random.default_rng(3)
    W = rng.gamma(0.3, size=(20, 200))
    order = rng.permutation(20)
    # Scales whose squares under- and overflow float64: the cosine does not know the length.
    pairs, cosine = programs.match_programs(W, W[order] * np.logspace(-170, 170, 20)[:, None])
    np.testing.assert_array_equal(order[pairs[:, 1]], pairs[:, 0])
    np.testing.assert_allclose(cosine, 1, atol=1e-12)


def test_stability_separates_shared_programs_from_noise():
    rng = np.random.default_rng(4)
    planted, noise = rng.gamma(0.3, size=(5, 300)), rng.gamma(0.3, size=(3, 1, 300))
    Ws = [np.vstack([planted + 0.02 * rng.random(planted.shape), more])[rng.permutation(6)] for more in noise]
    table = programs.stability(Ws)
    assert list(table) == ["program", "cosine", "least", "start 1", "start 2"]
    surplus = int(np.argmin(np.abs(Ws[0] - noise[0]).sum(1)))
    assert (table["cosine"] > 0.9).tolist() == [program != surplus for program in range(6)]
    assert table["cosine"][surplus] < 0.6
    for i, W in enumerate(Ws[1:], 1):
        pairs, cosine = programs.match_programs(Ws[0], W)
        assert table[f"start {i}"].tolist() == cosine[np.argsort(pairs[:, 0])].tolist()
    assert table["least"].tolist() == table[["start 1", "start 2"]].min(axis=1).tolist()
    assert programs.stability([Ws[0], Ws[1][:4]])["cosine"].isna().sum() == 2
    assert programs.stability(Ws[:1])["cosine"].isna().all()
    with pytest.raises(ValueError, match="Ws is empty"):
        programs.stability([])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: programs.match_programs(np.ones((2, 3)), np.ones((2, 4))), "W_a has 3 genes, W_b has 4"),
        (
            lambda: programs.match_programs(np.ones((2, 3)), [[1, 1, 1], [1, np.nan, 1]]),
            r"W_b contains 1 .*program 1, gene 1: nan",
        ),
        (lambda: programs.match_programs(np.ones(3), np.ones((1, 3))), r"W_a has shape \(3,\)"),
        (lambda: programs.top_genes(np.ones((2, 3)), ["a", "b"]), "W has 3 genes"),
        (lambda: programs.top_genes(np.ones((2, 3)), list("abc"), n=0), "n=0 is not valid"),
        (lambda: programs.top_genes(np.ones((2, 3)), list("abc"), n=1.5), "n=1.5 is not valid"),
        (lambda: programs.top_genes(np.ones((2, 3)), list("abc"), n="a"), "n='a' is not valid"),
        (
            lambda: programs.usage_by_type({"AE_NMF": np.ones((1, 2))}, pd.Series([None])),
            "1 models and 0 cells",
        ),
        (lambda: programs.usage_by_type({"AE_NMF": np.ones((3, 2))}, pd.Series(["a", "b"])), "AE_NMF has shape"),
        (lambda: programs.usage_by_type({"AE_NMF": np.full((1, 2), np.inf)}, pd.Series(["a"])), "AE_NMF contains NaN"),
        (lambda: programs.usage_by_type({}, pd.Series(["a"])), "0 models and 1 cells with a type, of 1"),
    ],
)
def test_invalid_input_raises_with_the_values_found(call, words):
    with pytest.raises(ValueError, match=words):
        call()
