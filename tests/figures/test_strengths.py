"""The figure of the conditioning study: it draws each point once, and names each model."""

import itertools

import numpy as np
import pandas as pd
import pytest
from checks import LAYOUTS, axes, check_files, check_layout, settings, texts
from matplotlib.colors import to_hex

from aenmf_lib import figures
from aenmf_lib.figures import style
from aenmf_lib.results import RunInfo

OWN_COLUMNS = {"donor_column": "batch", "cell_type_column": "annotation_level_2"}


def simulate(ons=("donor_id", "condition")) -> pd.DataFrame:
    """Return a random table in the shape of ``study.summarize``."""
    rng = np.random.default_rng(0)
    variants = [(model, 0) for model in ("Types", "PCA", "Harmony", "AE_NMF")]
    variants += [(model, at) for model in ("CAE_NMF1", "CAE_NMF2") for at in (0, 0.05, 0.2, 1.0)]
    rows = []
    for on, (model, strength) in itertools.product(ons, variants):
        row = {"on": on, "Model": model, "strength": strength, "gene_weights": "none", "n_starts": 3}
        for score, end in itertools.product(("NMI", "knn", "unseen_NMI"), ("type", "on")):
            row[f"{score}_{end}"], row[f"{score}_{end}_std"] = rng.random(), 0.02
        rows.append(row)
    table = pd.DataFrame(rows)
    table.loc[table["Model"] == "Harmony", ["unseen_NMI_type", "unseen_NMI_on"]] = np.nan  # fits no other cells
    return pd.concat([table, table[table["strength"] == 0.2].assign(gene_weights="shared")], ignore_index=True)


@pytest.fixture(scope="module")
def fig():
    return figures.conditioning(simulate(), run=RunInfo(k=12))


def test_each_point_is_drawn_once_in_the_color_of_its_model(fig):
    points, panels = fig.table, axes(fig)
    assert len(points) == 3 * len(simulate()) - 2  # Harmony has no scores on held-out donors
    assert list(panels) == [f"{on} {s}" for on in ("donor_id", "condition") for s in ("NMI", "knn", "unseen_NMI")]
    for (on, score), group in points.groupby(["on", "score"]):
        ax, models = panels[f"{on} {score}"], group[group["Model"] != "Types"]
        for bar, row in zip(ax.containers, models.itertuples(), strict=True):
            assert tuple(bar.lines[0].get_xydata()[0]) == (row.on_value, row.type)
            assert to_hex(bar.lines[0].get_color()) == to_hex(style.color_of(row.Model))
        (dotted,) = [line for line in ax.lines if line.get_linestyle() == ":"]
        assert set(dotted.get_xdata()) == set(group["on_value"][group["Model"] == "Types"])


def test_larger_markers_are_larger_strengths_and_hollow_ones_have_gene_weights(fig):
    ax = axes(fig)["donor_id NMI"]
    rows = fig.table.query("on == 'donor_id' and score == 'NMI' and Model != 'Types'")
    sizes, hollow = {}, {}
    for bar, row in zip(ax.containers, rows.itertuples(), strict=True):
        if row.Model.startswith("CAE"):
            sizes.setdefault(row.strength, set()).add(bar.lines[0].get_markersize())
        hollow.setdefault(row.gene_weights, set()).add(to_hex(bar.lines[0].get_markerfacecolor()) == "#ffffff")
    assert all(len(size) == 1 for size in sizes.values())
    assert sorted(sizes) == sorted(sizes, key=lambda strength: min(sizes[strength])) == [0, 0.05, 0.2, 1]
    assert hollow == {"none": {False}, "shared": {True}}


def test_every_model_is_named_and_no_number_is_on_an_error_bar(fig):
    assert check_layout(fig) == []
    words = [word for word, *_ in texts(fig)]
    for name in ("Conditional AE-NMF 1†", "Conditional AE-NMF 2†", "AE-NMF", "PCA", "Harmony"):
        assert name in words
    for word in ("strength 0 (published weights, or no penalty)", "strength 0.05", "genes weighted"):
        assert word in words
    sizes = {text.get_fontsize() for ax in fig.axes for text in ax.texts}
    assert sizes == {fig.settings.font_size}
    letters = f"a to {max(word for word in words if len(word) == 1)}, "
    assert fig.caption == (
        f"{letters}Score against the cell type, and against the column conditioned on, of each model (mean ± s.d. of "
        "3 starts). Rank k = 12. Lines connect the strengths of the penalty of a model, from 0 (the published weights, "
        "or no penalty in the untied model); a larger marker is a larger strength. Names are at the largest strength; "
        "a name that has no space in one panel is in another. The dotted line is the score of an embedding that "
        "contains only the cell types. † marks models "
        "that were trained with cell types."
    )


@pytest.mark.parametrize("layout", ["font doubled", "width halved"])
def test_no_text_is_cut_or_over_other_text(layout):
    table = simulate(["donor_id"]).query("gene_weights == 'none'")
    fig = figures.conditioning(table, settings=settings(**LAYOUTS[layout]))
    assert check_layout(fig) == []
    assert "genes weighted" not in [word for word, *_ in texts(fig)]


def test_names_without_space_in_any_panel_are_in_a_legend():
    table = simulate(["donor_id"]).query("gene_weights == 'none'")
    models = style.current().models | {"PCA": {"name": "a name that is wider than a panel " * 2, "color": "#999999"}}
    fig = figures.conditioning(table, settings=settings(models=models, width=0.5))
    assert len(fig.legends) == 2
    assert not any(text.get_text().startswith("Conditional") for ax in fig.axes for text in ax.texts)


def test_columns_have_the_names_of_the_user():
    table = simulate()
    table["on"] = table["on"].replace({"condition": "donor_id+condition"})
    fig = figures.conditioning(table, run=RunInfo(k=12, **OWN_COLUMNS))
    words = " ".join(word for word, *_ in texts(fig))
    for part in ("batch (lower", "batch+condition (lower", "annotation_level_2 (higher", "held-out values of batch"):
        assert part in words.replace("\n", " ")
    assert "donor" not in words and "cell_type" not in words
    assert check_layout(fig) == []
    table["on"] = "a very long name of a column, " * 4
    fig = figures.conditioning(table[: len(table) // 2], run=RunInfo(k=12, donor_column="column " * 9))
    assert check_layout(fig) == []


def test_tables_of_something_else_are_refused():
    with pytest.raises(ValueError, match="has no column 'NMI_on'"):
        figures.conditioning(simulate().drop(columns="NMI_on"))
    with pytest.raises(ValueError, match="has no rows"):
        figures.conditioning(simulate()[:0])


def test_scores_of_one_label_only_give_an_empty_figure_with_the_reason():
    table = simulate()
    fig = figures.conditioning(table.assign(**dict.fromkeys([c for c in table if c.endswith("_on")], np.nan)))
    assert "no model has scores against both labels" in fig.caption
    assert fig.table.empty


def test_files_are_the_same_twice(tmp_path, fig):
    check_files(fig, tmp_path)
