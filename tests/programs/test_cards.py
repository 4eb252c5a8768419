"""The tables of genes and the cards of programs, and the enrichment of gene sets."""

import gzip
from math import comb

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import tiny_cells

from aenmf_lib import AENMF, CAENMF1, CAENMF2, BaseNMF, UntiedAENMF, programs, results
from aenmf_lib.figures import read_table
from aenmf_lib.programs import contents, enrichment

K = 5
SYMBOLS = ["RPL3", "Rps27a", "RPLP0", "RPSA", "MT-ND1", "mt-Co1", "RPS6KA1", "RPS19BP1", "MRPL3", "NA"]


@pytest.fixture(scope="module")
def cells():
    cells = tiny_cells(n_cells=150)
    cells.X = cells.X.astype(np.float32)
    cells.var_names = [f"ENSG{i:011d}.2" for i in range(40)]
    cells.var["feature_name"] = [*SYMBOLS, *(f"G{i}" for i in range(10, 39)), np.nan]
    cells.obs["cell_type"] = np.random.default_rng(1).choice(["T", "B", "NK"], 150, p=[0.5, 0.3, 0.2])
    cells.obs.loc[cells.obs_names[:12], "cell_type"] = np.nan
    return cells


@pytest.fixture(scope="module")
def fitted(cells):
    settings = {"AE_NMF": {"n_starts": 3}, "CAE_NMF1": {"strength": 0}, "CAE_NMF2": {"strength": 0}}
    models = {model.name: model for model in (CAENMF1, CAENMF2, AENMF, BaseNMF, UntiedAENMF)}
    return {name: models[name](k=K, max_iter=8, **settings.get(name, {})).fit(cells) for name in models}


@pytest.fixture(scope="module")
def paths(fitted, cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for name, model in fitted.items():
        results.write(folder / f"{name}.h5ad", model, cells)
    return {name: folder / f"{name}.h5ad" for name in fitted}


@pytest.fixture(scope="module")
def cards(paths):
    return programs.program_cards(list(paths.values()))


def of(table, name):
    return table[table["Model"] == name].reset_index(drop=True)


def usages(model, cells):
    return model.embeddings(cells)["shared"].astype(np.float64)


# ---- genes
@pytest.mark.parametrize("name", ["AE_NMF", "Base_NMF", "CAE_NMF2", "Untied_AE_NMF"])
def test_specificity_is_the_share_of_the_norm_of_the_reconstruction_of_a_gene(paths, fitted, cells, name):
    table = programs.gene_table(paths[name], n=40)
    H, W = usages(fitted[name], cells), fitted[name].W_.astype(np.float64)
    parts = np.array([np.linalg.norm(np.outer(h, w), axis=0) for h, w in zip(H.T, W, strict=True)])  # (k, n_genes)
    expected = parts / parts.sum(0)
    column = cells.var_names.get_indexer(table["gene"])
    np.testing.assert_allclose(table["specificity"], expected[table["program"], column], rtol=1e-5)
    assert len(table) == (fitted[name].W_ > 0).sum()
    totals = table.groupby("gene")["specificity"].sum()
    np.testing.assert_allclose(totals, 1, rtol=1e-6)
    np.testing.assert_array_equal(table["weight"], W[table["program"], column])


def test_specificity_does_not_depend_on_the_norms_of_the_rows_of_w():
    rng = np.random.default_rng(0)
    H, W, c = rng.random((30, 4)), rng.random((4, 9)), np.array([1e-3, 1, 7, 1e4])
    sums = [contents.UsageSums.of(H / a, None, None) for a in (c, np.ones(4))]
    fits = [contents.Contents("Base_NMF", W * a[:, None], usages=u) for a, u in zip((c, np.ones(4)), sums, strict=True)]
    np.testing.assert_allclose(fits[0].specificity, fits[1].specificity, rtol=1e-12)


def test_genes_have_ids_symbols_and_flags(paths, cells):
    table = programs.gene_table(paths["AE_NMF"], n=40).drop_duplicates("gene").set_index("gene")
    symbols = cells.var["feature_name"].where(cells.var["feature_name"].notna(), cells.var_names)
    assert table["symbol"].to_dict() == symbols.loc[table.index].to_dict()
    flags = table.set_index("symbol")[["ribosomal", "mitochondrial"]].loc[SYMBOLS]
    assert flags["ribosomal"].tolist() == [True] * 4 + [False] * 6
    assert flags["mitochondrial"].tolist() == [False] * 4 + [True] * 2 + [False] * 4
    assert tuple(programs.gene_table(paths["AE_NMF"], n=3)) == (
        "program", "rank", "gene", "symbol", "weight", "specificity", "ribosomal", "mitochondrial"
    )  # fmt: skip
    assert programs.gene_table(paths["AE_NMF"], n=3)["rank"].tolist() == [1, 2, 3] * K


def test_model_and_cells_give_the_tables_of_the_file(paths, fitted, cells, tmp_path):
    for name in ("AE_NMF", "Base_NMF"):
        expected = programs.gene_table(paths[name])
        fitted[name].save(tmp_path / f"{name}.h5ad")
        for source in (fitted[name], results.load_model(paths[name]), tmp_path / f"{name}.h5ad"):
            pd.testing.assert_frame_equal(programs.gene_table(source, cells), expected)
            pd.testing.assert_frame_equal(programs.program_cards(source, cells), programs.program_cards(paths[name]))
        with pytest.raises(ValueError, match=rf"The usages of this {name} are unknown\. Pass its cells"):
            programs.gene_table(fitted[name])
        with pytest.raises(ValueError, match="has no embedding: it is a model without cells"):
            programs.program_cards([tmp_path / f"{name}.h5ad"])
    unnamed = programs.gene_table(fitted["AE_NMF"], cells.X)  # the symbols are those of the fit
    pd.testing.assert_frame_equal(unnamed, programs.gene_table(paths["AE_NMF"]))


# ---- cards
def test_share_of_norm_equals_a_dense_computation(cards, fitted, cells):
    for name, model in fitted.items():
        H, W = usages(model, cells), model.W_.astype(np.float64)
        expected = [np.sum(np.outer(H[:, j], W[j]) ** 2) / np.sum(cells.X.toarray() ** 2) for j in range(K)]
        np.testing.assert_allclose(of(cards, name)["share_of_norm"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["AE_NMF", "Base_NMF"])
def test_explained_variance_equals_an_analysis_of_variance(cards, fitted, cells, name):
    typed = cells.obs["cell_type"].notna().to_numpy()
    H, obs = pd.DataFrame(usages(fitted[name], cells))[typed], cells.obs[typed].astype(str)
    by_type = H.groupby(obs["cell_type"].to_numpy()).transform("mean")
    by_group = H.groupby([obs["cell_type"].to_numpy(), obs["donor_id"].to_numpy()]).transform("mean")
    total = ((H - H.mean()) ** 2).sum()
    card = of(cards, name)
    np.testing.assert_allclose(card["variance_by_type"], ((by_type - H.mean()) ** 2).sum() / total, rtol=1e-6)
    np.testing.assert_allclose(card["variance_by_donor"], ((by_group - by_type) ** 2).sum() / total, rtol=1e-6)
    assert (card["variance_by_type"] + card["variance_by_donor"] <= 1).all()


def test_planted_types_and_donors_explain_their_programs():
    rng = np.random.default_rng(2)
    types, donors = rng.choice(["a", "b"], 4000, p=[0.8, 0.2]), rng.choice(["x", "y", "z"], 4000)
    donors[types == "b"] = rng.choice(["x", "y"], (types == "b").sum(), p=[0.9, 0.1])  # composition, no donor effect
    noise = rng.random((4000, 3)) * 0.1
    H = noise + np.stack([types == "b", donors == "y", np.zeros(4000)], axis=1)
    sums = contents.UsageSums.of(H, pd.Series(types), pd.Series(donors))
    from aenmf_lib.programs.cards import _explained_variance

    by_type, by_donor = _explained_variance(sums)
    assert by_type[0] > 0.98
    assert by_donor[0] < 0.002
    assert by_donor[1] > 0.9
    assert by_type[1] < 0.1
    assert max(by_type[2], by_donor[2]) < 0.01


def test_usage_by_type_are_ratios_of_means(cards, fitted, cells):
    means = programs.usage_by_type({"AE_NMF": fitted["AE_NMF"].transform(cells)}, cells.obs["cell_type"])
    overall = fitted["AE_NMF"].transform(cells)[cells.obs["cell_type"].notna()].mean(0)
    for program, part in means.groupby("program"):
        part = part.sort_values("mean_usage", ascending=False)
        expected = part.assign(ratio=part["mean_usage"] / overall[program]).query("ratio > 1")
        texts = [f"{row.cell_type} ({row.ratio:.1f}×)" for row in expected.itertuples()]
        card = of(cards, "AE_NMF").loc[program]
        assert card["usage_by_type"] == ", ".join(texts)
        assert card["top_type"] == part["cell_type"].iloc[0]


def test_top_genes_and_specific_genes_are_in_order(cards, paths):
    for name, path in paths.items():
        table = programs.gene_table(path, n=40)
        table["product"] = table["weight"] * table["specificity"]
        for column, order in (("top_genes", "weight"), ("specific_genes", "product")):
            ordered = table.sort_values(["program", order], ascending=[True, False], kind="stable")
            expected = ordered.groupby("program")["symbol"].agg(lambda names: ", ".join(names[:10]))
            assert of(cards, name)[column].tolist() == expected.tolist()


def test_nearest_programs_equal_a_search_over_all_pairs(cards, fitted):
    for name, model in fitted.items():
        for other, more in fitted.items():
            for j, w in enumerate(model.W_):
                cosine = [w @ v / np.linalg.norm(w) / np.linalg.norm(v) for v in more.W_]
                if name == other:
                    cosine[j] = -1
                card = of(cards, name).loc[j]
                assert card[f"nearest_{other}"] == np.argmax(cosine)
                assert card[f"cosine_{other}"] == pytest.approx(max(cosine), rel=1e-5)


def test_stability_is_that_of_the_starts_and_columns_of_absent_models_are_empty(cards, fitted, paths):
    np.testing.assert_allclose(of(cards, "AE_NMF")["stability"], fitted["AE_NMF"].stability_["cosine"])
    assert of(cards, "Base_NMF")["stability"].isna().all()
    alone = programs.program_cards(str(paths["AE_NMF"]))
    assert alone.filter(like="_CAE").isna().all(axis=None)
    assert alone["gene_set"].tolist() == [""] * K
    assert alone["gene_set_fdr"].isna().all()


def test_order_of_cells_changes_only_rounding(cells, fitted):
    order = np.random.default_rng(3).permutation(150)
    a, b = (programs.program_cards(fitted["AE_NMF"], part) for part in (cells, cells[order].copy()))
    pd.testing.assert_frame_equal(a, b, rtol=1e-6)


def test_one_donor_no_types_and_an_empty_program_are_described(cells, tmp_path):
    bare = ad.AnnData(cells.X)
    model = AENMF(k=K, max_iter=3).fit(bare)
    model.W_[2] = 0
    card = programs.program_cards(model, bare)
    assert card[["variance_by_type", "variance_by_donor"]].isna().all(axis=None)
    assert card["top_type"].tolist() == [""] * K
    assert card.loc[2, ["top_genes", "specific_genes", "share_of_norm"]].tolist() == ["", "", 0]
    assert card.loc[2, ["nearest_AE_NMF", "cosine_AE_NMF"]].isna().all()
    results.write_table(card, tmp_path / "card.csv")
    written = pd.read_csv(tmp_path / "card.csv", dtype=str, keep_default_na=False).filter(like="nearest_")
    assert written["nearest_AE_NMF"].str.isdigit().sum() == K - 1  # "0", not "0.0"
    assert set(written["nearest_AE_NMF"][2] + written["nearest_CAE_NMF1"]) == {""}
    bare.obs["cell_type"] = "T"
    bare.obs["donor_id"] = cells.obs["donor_id"].to_numpy()
    card = programs.program_cards(model, bare)
    assert card["variance_by_type"].isna().all()
    assert card["variance_by_donor"].notna().tolist() == [True, True, False, True, True]
    results.write(tmp_path / "m.h5ad", model, bare)
    pd.testing.assert_frame_equal(programs.program_cards(tmp_path / "m.h5ad"), card)


# ---- files
def test_tables_are_written_per_model_and_read_back(cards, paths, cells, tmp_path):
    skipped = cells.copy()
    skipped.obs["donor_id"] = "only"
    with pytest.raises(results.Skipped):
        results.require_donors(skipped, tmp_path / "skipped.h5ad", CAENMF2)
    given = [paths["Base_NMF"], tmp_path / "skipped.h5ad", paths["AE_NMF"], paths["CAE_NMF1"]]
    tables = programs.write_program_tables(given, tmp_path / "out", n=7)
    genes, found = tables["programs"], tables["program_cards"]
    names = ["ae_nmf", "base_nmf", "cae_nmf1", "cae_nmf2"]
    expected = {f"{stem}_{name}.csv" for stem in ("programs", "program_cards") for name in names}
    of_all = {"usage_by_type", "program_matches", "gene_set_enrichment"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected | {f"{stem}.csv" for stem in of_all}
    assert set(tables) == {"programs", "program_cards", *of_all}
    for stem in of_all:
        read = read_table(tmp_path / f"out/{stem}.csv")
        pd.testing.assert_frame_equal(read, tables[stem], check_dtype=False, check_index_type=False)
    assert found["Model"].unique().tolist() == ["CAE_NMF1", "AE_NMF", "Base_NMF"]
    compared = [column.removeprefix("nearest_") for column in found.filter(like="nearest_")]
    assert compared == ["CAE_NMF1", "CAE_NMF2", "AE_NMF", "Base_NMF"]  # the published models, and others of the run
    for stem, table in (("programs", genes), ("program_cards", found)):
        for name in ("AE_NMF", "Base_NMF", "CAE_NMF1"):
            read = read_table(tmp_path / f"out/{stem}_{name.lower()}.csv")
            pd.testing.assert_frame_equal(read, of(table, name).drop(columns="Model"), check_dtype=False)
        assert (tmp_path / f"out/{stem}_cae_nmf2.csv").read_text() == ",".join(list(table)[1:]) + "\n"
    assert genes.groupby(["Model", "program"]).size().max() == 7
    alone = programs.write_program_tables(str(paths["AE_NMF"]), tmp_path / "alone", n=7)
    pd.testing.assert_frame_equal(of(alone["programs"], "AE_NMF"), of(genes, "AE_NMF"))
    header = "Model,program,other,other_program,cosine,matched\n"
    assert (tmp_path / "alone/program_matches.csv").read_text() == header  # one model has no other
    with pytest.raises(ValueError, match=r"There is no trained model \(CAE_NMF2 was skipped: all cells are of one"):
        programs.program_cards([tmp_path / "skipped.h5ad"])
    with pytest.raises(ValueError, match=r"skipped\.h5ad has no programs, because CAE_NMF2 was skipped"):
        programs.gene_table(tmp_path / "skipped.h5ad")


def test_mean_usages_in_the_file_are_those_of_the_cells(paths, fitted, cells, tmp_path):
    table = programs.write_program_tables(list(paths.values()), tmp_path)["usage_by_type"]
    H = {name: model.embeddings(cells)["shared"] for name, model in fitted.items()}
    expected = programs.usage_by_type({name: H[name] for name in results.MODELS}, cells.obs["cell_type"])
    pd.testing.assert_frame_equal(table, expected, rtol=1e-6)
    sizes = table.drop_duplicates("cell_type").set_index("cell_type")["n_cells"]
    assert sizes.to_dict() == cells.obs["cell_type"].value_counts().to_dict()


def test_without_types_the_table_of_mean_usages_has_only_its_header(cells, tmp_path):
    bare = ad.AnnData(cells.X, obs=cells.obs[["donor_id"]])
    results.write(tmp_path / "m.h5ad", AENMF(k=K, max_iter=3).fit(bare), bare)
    table = programs.write_program_tables(tmp_path / "m.h5ad", tmp_path)["usage_by_type"]
    assert table.empty
    assert (tmp_path / "usage_by_type.csv").read_text() == "Model,program,cell_type,mean_usage,n_cells\n"


def test_matches_are_the_hungarian_pairs_and_the_other_cosines(paths, fitted, tmp_path):
    table = programs.write_program_tables(list(paths.values()), tmp_path)["program_matches"]
    assert len(table.groupby(["Model", "other"])) == 10
    for (a, b), part in table.groupby(["Model", "other"]):
        assert results.MODELS.index(a) < results.MODELS.index(b)
        W_a, W_b = (fitted[name].W_.astype(float) for name in (a, b))
        cosine = (W_a @ W_b.T) / np.linalg.norm(W_a, axis=1)[:, None] / np.linalg.norm(W_b, axis=1)
        pairs, _ = programs.match_programs(W_a, W_b)
        assert part.loc[part["matched"], ["program", "other_program"]].to_numpy().tolist() == pairs.tolist()
        assert part["matched"].tolist() == sorted(part["matched"], reverse=True)  # the pairs are first
        np.testing.assert_allclose(part["cosine"], cosine[part["program"], part["other_program"]], atol=1e-6)
        listed = np.zeros(cosine.shape, dtype=bool)
        listed[part["program"], part["other_program"]] = True
        assert (cosine[~listed] < 0.1).all()
        assert not part.duplicated(["program", "other_program"]).any()


def test_models_that_cannot_be_compared_raise(paths, cells, fitted):
    with pytest.raises(ValueError, match="are both of AE_NMF"):
        programs.program_cards([paths["AE_NMF"], paths["AE_NMF"]])
    with pytest.raises(ValueError, match="the list is empty"):
        programs.program_cards([])
    other = cells[:, ::-1].copy()
    model = BaseNMF(k=K, max_iter=3).fit(other)
    fits, _ = contents.read_fits([paths["AE_NMF"]])
    fits["Base_NMF"] = contents.read_contents(model, other)
    from aenmf_lib.programs.cards import _make_cards

    with pytest.raises(ValueError, match=r"have different genes \(40 and 40\)"):
        _make_cards(fits, {})


# ---- gene sets
def test_p_value_equals_a_hand_computed_hypergeometric_probability():
    genes = [f"g{i}" for i in range(20)]
    table = enrichment.enrich([["g0", "g1", "g2", "g9"]], genes, {"set": [f"g{i}" for i in range(5)]})
    p = (comb(5, 3) * comb(15, 1) + comb(5, 4)) / comb(20, 4)  # 155 / 4845
    assert table.loc[0, ["program", "gene_set", "overlap", "size"]].tolist() == [0, "set", 3, 5]
    assert table.loc[0, "p"] == pytest.approx(p, rel=1e-12)


def test_p_values_equal_those_of_gseapy_and_all_tests_are_corrected():
    gseapy = pytest.importorskip("gseapy")
    rng = np.random.default_rng(4)
    genes = [f"g{i}" for i in range(500)]
    sets = {f"s{i}": list(rng.choice(genes + ["x"] * 50, rng.integers(6, 60))) for i in range(40)}
    lists = [list(rng.choice(genes, 30, replace=False)) for _ in range(3)]
    table = enrichment.enrich(lists, genes, sets)
    for i, chosen in enumerate(lists):
        found = gseapy.enrich(chosen, sets, background=genes, outdir=None, no_plot=True, cutoff=1).results
        found = found.set_index("Term")["P-value"].astype(float)
        ours = table[table["program"] == i].set_index("gene_set")
        np.testing.assert_allclose(ours.loc[found.index, "p"], found, rtol=1e-9)
        assert (ours.drop(found.index)["p"] == 1).all()  # gseapy leaves out sets without a common gene
    p = np.sort(table["p"].to_numpy())
    expected = np.minimum.accumulate((p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    np.testing.assert_allclose(np.sort(table["fdr"].to_numpy()), np.minimum(expected, 1), rtol=1e-12)
    assert len(table) == 3 * 40


def write_gmt(path, text, *, compress=False):
    path.write_bytes(gzip.compress(text.encode()) if compress else text.encode())
    return path


@pytest.mark.parametrize("compress", [False, True])
def test_gmt_with_windows_lines_byte_order_mark_blank_lines_and_repeats_is_read(tmp_path, compress):
    text = "\ufeffA\tna\tg1\tg2\tg1\t\r\n\r\nB b\t\tg3\r\nempty\tna\r\nA\tother\tg2\tg1\r\n"
    assert enrichment.read_gene_sets(write_gmt(tmp_path / "sets.gmt", text, compress=compress)) == {
        "A": ["g1", "g2"], "B b": ["g3"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no gene set. Expected a GMT file: one gene set per line"),
        ("\n\n", "contains no gene set"),
        ("A\tna\tg1\nCD3D CD3E\n", r"line 2 has no tab: 'CD3D CD3E'\. Expected a GMT file"),
        ("A\tna\tg1\n\tna\tg1\n", "line 2 has no name"),
        ("A\tna\tg1\nB\tna\tg1\nA\tna\tg2\n", "lines 1 and 3 are different sets with the same name, 'A'"),
    ],
)
def test_bad_gmt_raises_with_the_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        enrichment.read_gene_sets(write_gmt(tmp_path / "sets.gmt", text))


def test_files_that_are_no_gmt_raise(tmp_path):
    (tmp_path / "a.gmt").write_bytes(b"\x1f\x8b\x08\x00broken")
    (tmp_path / "b.gmt").write_bytes(b"\xff\xfe\x00A")
    damaged = bytearray(gzip.compress(("set\tna\t" + "\t".join(f"GENE{i * i}" for i in range(200))).encode()))
    damaged[40] ^= 0xFF
    (tmp_path / "z.gmt").write_bytes(damaged)
    for name in "abz":
        with pytest.raises(ValueError, match=rf"{name}\.gmt is not a text file"):
            enrichment.read_gene_sets(tmp_path / f"{name}.gmt")
    with pytest.raises(FileNotFoundError, match=r"c\.gmt cannot be read .* Pass the path of a GMT file"):
        enrichment.read_gene_sets(tmp_path / "c.gmt")
    with pytest.raises(IsADirectoryError, match="cannot be read"):
        enrichment.read_gene_sets(tmp_path)


def test_sets_of_other_names_or_too_few_genes_raise_with_examples():
    genes = [f"G{i}" for i in range(30)]
    with pytest.raises(ValueError, match=r"None of the genes of 1 gene sets .* 'g1', 'g2'; .* are 'G0', 'G1', 'G2' …"):
        enrichment.enrich([["G1"]], genes, {"mouse": ["g1", "g2"]})
    with pytest.raises(ValueError, match=r"The largest of 1 gene sets has 2 genes of the fit\. Expected at least 5"):
        enrichment.enrich([["G1"]], genes, {"A": ["G1", "G2", "x", "y", "z"]})
    table = enrichment.enrich([["G1"]], genes, {"A": ["G1", "G2"], "B": genes[:5]})
    assert table["gene_set"].tolist() == ["B"]


@pytest.mark.parametrize("n_small", [1, 5])
def test_small_gene_sets_are_reported_once_with_their_names(paths, tmp_path, caplog, n_small):
    caplog.set_level("INFO")
    lines = [f"SMALL{i}\tna\tG10\tG11\tNOTHING{i}\tNOTHING{i}B\tNOTHING{i}C\n" for i in range(n_small)]
    lines.append("\t".join(["LARGE", "na", *(f"G{i}" for i in range(10, 16))]) + "\n")
    gmt = write_gmt(tmp_path / "sets.gmt", "".join(lines))
    table = programs.write_program_tables(list(paths.values()), tmp_path, gene_sets=gmt)["gene_set_enrichment"]
    (message,) = [message for message in caplog.messages if "not tested" in message]
    names = {1: "SMALL0", 5: "SMALL0, SMALL1, SMALL2, …"}[n_small]
    reason = "because fewer than 5 of their genes are genes of the fit"
    assert message == f"{n_small} of {n_small + 1} gene sets not tested, {reason}: {names}"
    assert set(table["gene_set"]) <= {"LARGE"}


def test_gene_sets_with_other_names_stop_before_any_table_is_written(paths, tmp_path):
    mouse = write_gmt(tmp_path / "mouse.gmt", "IMMUNE\tna\tCd3d\tCd3e\tMs4a1\tNkg7\tLyz2\n")
    with pytest.raises(ValueError, match=r"None of the genes of 1 gene sets .* 'Cd3d', 'Cd3e', 'Ms4a1'; .* 'RPL3'"):
        programs.write_program_tables(list(paths.values()), tmp_path / "out", gene_sets=mouse)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", ["symbols", "ids"])
def test_gene_set_of_a_program_is_found_by_symbols_and_by_ids(paths, cells, tmp_path, names):
    table = programs.gene_table(paths["AE_NMF"], n=8)
    chosen = table[table["program"] == 3]
    members = chosen["symbol"] if names == "symbols" else chosen["gene"].str.removesuffix(".2")
    others = [f"G{i}" for i in range(10, 16)] if names == "symbols" else [f"ENSG{i:011d}" for i in range(10, 16)]
    text = "\t".join(["planted", "na", *members]) + "\n" + "\t".join(["other", "na", *others]) + "\n"
    card = programs.program_cards(paths["AE_NMF"], gene_sets=write_gmt(tmp_path / "sets.gmt", text)).loc[3]
    assert (card["gene_set"], card["gene_set_overlap"]) == ("planted", "8 of 8")
    assert 0 < card["gene_set_fdr"] <= 1
    found = programs.write_program_tables(paths["AE_NMF"], tmp_path, gene_sets=tmp_path / "sets.gmt")
    found = found["gene_set_enrichment"]
    assert (found["overlap"] > 0).all()
    row = found[(found["program"] == 3) & (found["gene_set"] == "planted")].iloc[0]
    assert (row["overlap"], row["size"], row["fdr"]) == (8, 8, card["gene_set_fdr"])
    assert sorted(row["shared_genes"].split(", ")) == sorted(chosen["symbol"])


def test_all_sets_below_the_limit_are_listed_and_the_best_set_of_each_program():
    rng = np.random.default_rng(4)
    genes = pd.Index([f"g{i}" for i in range(500)])
    symbols = np.array([f"S{i}" for i in range(500)], dtype=object)
    lists = [np.arange(30), rng.choice(500, 30, replace=False)]
    sets = {f"s{i}": list(symbols[rng.choice(500, 40, replace=False)]) for i in range(20)}
    sets |= {"a": list(symbols[:20]), "b": list(symbols[10:40])}
    table = enrichment.enrich_programs(lists, genes, symbols, sets)
    every = enrichment.enrich([symbols[at] for at in lists], symbols, sets)
    assert set(every.query("fdr < .05")["gene_set"]) == {"a", "b"}
    assert table[table["program"] == 0]["gene_set"].tolist() == ["a", "b"]
    assert table[table["program"] == 1]["gene_set"].tolist() == every.query("program == 1")["gene_set"].tolist()[:1]
    assert table.loc[1, "shared_genes"] == ", ".join(f"S{i}" for i in range(10, 30))


def test_programs_of_background_genes_are_those_that_donors_explain(planted):
    cells, _ = planted
    model = AENMF(k=12, max_iter=30).fit(cells)
    genes = programs.gene_table(model, cells, n=20)
    donor = programs.program_cards(model, cells).set_index("program")["variance_by_donor"]
    background = genes.groupby("program")["symbol"].agg(lambda names: names.str.startswith("BG").mean() > 0.9)
    assert background.any()
    assert (donor[background] > 0.5).all()  # programs of background genes describe donors
    assert (donor[~background] < 0.1).all()
