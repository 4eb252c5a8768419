"""Settings, fonts, names and captions that all figures share."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from checks import LAYOUTS, check_files, check_layout, settings, texts
from matplotlib.colors import to_hex

from aenmf_lib import figures
from aenmf_lib.figures import style
from aenmf_lib.figures.settings import find_font, use
from aenmf_lib.figures.tables import check_run
from aenmf_lib.results import MODELS, RunInfo

RUN = RunInfo(12, 1234, {"CAE_NMF1": True, "AE_NMF": False})
TABLE = pd.DataFrame({"Model": ["AE_NMF", "CAE_NMF1", "PCA"], "value": [0.5, 0.7, 0.6]})


@style.figure
def example(table: pd.DataFrame, run: RunInfo = style.NO_RUN) -> style.Sheet:
    """Draw a figure with everything that figures share."""
    names = style.model_names(table["Model"], run)
    fig = style.new_figure(table, "single", 20 * style.line(), [*style.run_note("1,234 cells", run)], names, run)
    axes = fig.subplots(2, 1)
    for ax in axes:
        ax.scatter(table["value"], range(len(table)), color=[style.color_of(model) for model in table["Model"]])
        ax.set(ylim=(-1, 3), xlabel="score")
        ax.set_title("A title", loc="left")
        ax.set_yticks(range(len(table)), style.shorten_labels(names.values(), style.page_width("single") / 3))
        style.mark_cut_axis(ax)
    style.letters(axes)
    style.legend(fig, {name: style.color_of(model) for model, name in names.items()})
    return fig


def mine(folder: Path, text: str) -> figures.settings.Settings:
    """Return the settings of a file of the user."""
    (folder / "mine.yaml").write_text(text)
    return figures.read_settings(folder / "mine.yaml")


def test_each_setting_of_an_author_changes_the_figure(tmp_path):
    default = example(TABLE, run=RUN)
    changed = mine(tmp_path, 'font_size: 9\nsingle: 120\nmodels: {AE_NMF: {color: "#ff0000", name: "My NMF"}}\n')
    fig = example(TABLE, run=RUN, settings=replace(changed, formats=("svg",)))
    assert fig.get_figwidth() == pytest.approx(120 / 25.4) and default.get_figwidth() == pytest.approx(89 / 25.4)
    assert {to_hex(color) for color in fig.axes[0].collections[0].get_facecolors()} >= {"#ff0000"}
    assert "My NMF" in [word for word, *_ in texts(fig)]
    assert {text.get_fontsize() for text in fig.findobj(mpl.text.Text) if text.get_text()} == {9}
    figures.save(fig, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"example.csv", "example.txt", "example.svg"}


def test_pictures_in_other_formats_of_an_earlier_call_are_removed(tmp_path):
    figures.save(example(TABLE, run=RUN, settings=settings(formats=("pdf", "png"))), tmp_path)
    others = ["example_2.pdf", "example.h5ad", "other.png"]
    for name in others:
        (tmp_path / name).touch()
    figures.save(example(TABLE, run=RUN, settings=settings(formats=("svg",))), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"example.csv", "example.txt", "example.svg", *others}


def test_an_entry_that_is_not_set_keeps_its_default(tmp_path):
    changed = mine(tmp_path, "models: {PCA: {color: red}, mine: {name: My embedding}}\nmarkers: {B cell: [MS4A1]}\n")
    default = figures.read_settings()
    assert changed.models["AE_NMF"] == default.models["AE_NMF"]
    assert changed.models["PCA"] == {"name": "PCA", "color": "red"}
    assert changed.markers == {"B cell": ["MS4A1"]}
    with use(changed):
        assert style.name_of("mine") == "My embedding" and style.name_of("other") == "other"
        assert style.color_of("mine") in default.other_embeddings
    assert figures.read_settings(width=120, formats=["svg"]) == replace(
        default, single=120, double=120, formats=("svg",)
    )
    assert figures.read_settings("") == figures.read_settings() == mine(tmp_path, "")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("font_sice: 8", "mine.yaml has an unknown entry 'font_sice'. Did you mean 'font_size'?"),
        ("font_size: large", "mine.yaml: font_size is 'large'. Expected a number of points from 3 to 40."),
        ("single: true", "mine.yaml: single is True. Expected a width from 60 to 1000 mm."),
        ("fonts: Arial", "mine.yaml: fonts is 'Arial'. Expected a list of fonts, such as [Arial]."),
        ("formats: [pdf, jpg]", "formats is ['pdf', 'jpg']. Expected a list of formats, of pdf, png, svg, tiff."),
        ("models: {AE_NMF: {nme: x}}", "models: AE_NMF has an unknown entry 'nme'. Did you mean 'name'?"),
        ("models: {AE_NMF: {color: rot}}", "AE_NMF: color is 'rot'. Expected a color, such as \"#0072B2\"."),
        ("models: [AE_NMF]", "mine.yaml: models is ['AE_NMF']. Expected a mapping"),
        ("palettes: {cell_type: rainbows}", "palettes: cell_type is 'rainbows'. Expected a palette of colorcet"),
        ("label_colors: {cell_type: {B: rot}}", "label_colors is {'cell_type': {'B': 'rot'}}. Expected colors"),
        ("markers: {B: MS4A1}", "markers is {'B': 'MS4A1'}. Expected genes by cell type"),
        ("sequential: rainbows", "sequential is 'rainbows'. Expected a colormap of matplotlib"),
        ("- 3", "mine.yaml contains [3]. Expected lines such as 'font_size: 8'."),
        ("a: [", "mine.yaml is not a YAML file"),
    ],
)
def test_a_setting_that_is_not_valid_is_named(tmp_path, text, error):
    with pytest.raises(ValueError) as raised:
        mine(tmp_path, text)
    assert error in str(raised.value)


def test_options_and_files_that_are_not_valid_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"WIDTH is 5. Expected a width from 60 to 1000 mm"):
        figures.read_settings(width=5)
    with pytest.raises(ValueError, match=r"FORMAT is \['doc'\]"):
        figures.read_settings(formats=["doc"])
    with pytest.raises(FileNotFoundError, match=r"none.yaml. Pass an existing file: SETTINGS=mine.yaml"):
        figures.read_settings(tmp_path / "none.yaml")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_text_is_cut_or_overlaps(layout):
    assert check_layout(example(TABLE, run=RUN, settings=settings(**LAYOUTS[layout]))) == []


def test_files_have_real_text_and_the_same_bytes_twice(tmp_path):
    check_files(example(TABLE, run=RUN), tmp_path)


def test_another_process_with_another_style_writes_the_same_bytes(tmp_path):
    (tmp_path / "matplotlibrc").write_text("font.family: serif\nlegend.loc: center\nfigure.dpi: 50\n")
    environment = {**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "86400", "MPLBACKEND": "svg"}
    environment["MATPLOTLIBRC"] = str(tmp_path / "matplotlibrc")
    script = (
        "import matplotlib as m; m.rcParams.update({'font.size': 20, 'axes.grid': True, 'svg.fonttype': 'path'})\n"
        "import seaborn as s; s.set_theme(context='poster', palette='husl')\n"
        "import test_style as t; from aenmf_lib import figures\n"
        f"figures.save(t.example(t.TABLE, run=t.RUN), {str(tmp_path / 'other')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, env=environment, check=True)
    figures.save(example(TABLE, run=RUN), tmp_path / "this")
    for file in sorted((tmp_path / "this").iterdir()):
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes(), file.name


def test_the_first_installed_font_is_used(caplog):
    find_font.cache_clear()
    assert find_font(("No such font", "STIXGeneral", "DejaVu Sans")) == "STIXGeneral"
    assert caplog.messages == []
    assert find_font(("No such font",)) == "DejaVu Sans"
    assert "No font No such font is installed: figures use DejaVu Sans" in caplog.text
    fig = example(TABLE, settings=settings(fonts=("STIXGeneral",)))
    assert {text.get_fontname() for text in fig.findobj(mpl.text.Text) if text.get_text()} == {"STIXGeneral"}


def test_models_have_one_name_and_one_color_in_a_fixed_order():
    names = style.model_names(["PCA", "mine", "AE_NMF", "CAE_NMF1"], RUN)
    assert list(names) == ["CAE_NMF1", "AE_NMF", "PCA", "mine"]
    assert names["CAE_NMF1"] == "Conditional AE-NMF 1†" and names["AE_NMF"] == "AE-NMF" and names["mine"] == "mine"
    okabe_ito = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert len({style.color_of(model) for model in MODELS} & okabe_ito) == len(MODELS)


def test_types_and_donors_have_different_palettes_and_256_colors_each():
    palettes = [style.palette(kind, range(256)) for kind in ("cell_type", "donor_id", "condition")]
    assert [len(set(colors)) for colors in palettes] == [256] * 3
    assert not set(palettes[0][:20]) & set(palettes[1][:20])
    chosen = settings(label_colors={"cell_type": {"b": "red"}})
    with use(chosen):
        assert style.palette("cell_type", "abc") == [palettes[0][0], "red", palettes[0][2]]


def test_captions_report_the_run_and_explain_the_dagger():
    skipped = RunInfo(
        12, 90, {"AE_NMF": False}, skipped={"CAE_NMF1": "one donor. Add donors", "CAE_NMF2": "one donor."}
    )
    assert style.run_note("90 cells", skipped) == [
        "n = 90 cells, rank k = 12", "Conditional AE-NMF 1 and Conditional AE-NMF 2 were skipped: one donor",
        "NMF was not part of this run",
    ]  # fmt: skip
    assert example(TABLE, run=RUN).caption.endswith("† marks models that were trained with cell types.")
    assert "†" not in example(TABLE, run=skipped).caption


def test_an_empty_figure_says_why():
    empty = style.figure(lambda table: style.empty_figure(table, "the run has one donor, " * 5, ["n = 3 cells"]))
    empty.__wrapped__.__name__ = "empty"
    for layout in LAYOUTS.values():
        fig = empty(TABLE, settings=settings(**layout))
        assert fig.caption.startswith("Not drawn: the run has one donor") and fig.caption.endswith("n = 3 cells.")
        assert check_layout(fig) == []
        assert "the run has one donor" in " ".join(word.replace("\n", " ") for word, *_ in texts(fig))


def test_a_notebook_shows_the_picture_and_the_escaped_caption():
    shown = example(TABLE.assign(Model=["<b>$a$", "PCA", "AE_NMF"]))
    shown.caption += " <b>"
    html = shown._repr_html_()
    assert html.startswith("<img ") and "data:image/png;base64," in html
    assert "&lt;b&gt;</p>" in html and "tex2jax_ignore" in html


def test_a_table_of_another_run_is_refused():
    check_run(pd.DataFrame({"Model": ["AE_NMF", "PCA"], "n_cells": [1234, 9], "program": [11, 0]}), "a.csv", RUN)
    check_run(pd.DataFrame({"label": ["cell_type", "donor_id"], "n_cells": [900, 1234]}), "a.csv", RUN)
    with pytest.raises(ValueError, match=r"a.csv contains 900 cells, but this run has 1,234"):
        check_run(pd.DataFrame({"label": ["donor_id"], "n_cells": [900]}), "a.csv", RUN)
    check_run(pd.DataFrame({"label": ["donor_id"], "n_cells": [900], "max_cells": [900]}), "a.csv", RUN)
    with pytest.raises(ValueError, match=r"a.csv contains 6 programs, but this run has 12"):
        check_run(pd.DataFrame({"program": range(6), "share_of_norm": 0.1}), "a.csv", RUN)
    with pytest.raises(ValueError, match=r"a.csv contains 2,000 cells, but this run has 1,234. Run its notebook again"):
        check_run(pd.DataFrame({"n_cells": [2000]}), "a.csv", RUN)
    with pytest.raises(ValueError, match=r"a.csv contains 80 programs, but this run has 12"):
        check_run(pd.DataFrame({"program": [79]}), "a.csv", RUN)
    with pytest.raises(ValueError, match=r"a.csv contains Base_NMF, which is not among the models of this run"):
        check_run(pd.DataFrame({"Model": ["Base_NMF"]}), "a.csv", RUN)
