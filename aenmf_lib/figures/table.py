"""The benchmark as a table for a manuscript: csv, Markdown and LaTeX."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from aenmf_lib.data import CELL_TYPE
from aenmf_lib.figures import style
from aenmf_lib.figures.points import (
    ABBREVIATIONS,
    AUROC,
    BETTER,
    CLASSIFICATION,
    CLUSTERING,
    METRICS,
    count_cells,
    describe_others,
    list_unscored,
    mark_used,
    name_classifiers,
    read_points,
)
from aenmf_lib.figures.settings import Settings
from aenmf_lib.results import MODELS, RunInfo

_SHOWN = {CLUSTERING: ("NMI", "ARI"), CLASSIFICATION: ("F1", "AUROC", "Accuracy")}
_COLUMNS = [metric for metrics in _SHOWN.values() for metric in metrics]
_OTHER = "Other embeddings"
_DIGITS = 3
_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "†": r"$^\dagger$"},
    **{"±": r"$\pm$", "×": r"$\times$", "<": r"\textless{}", ">": r"\textgreater{}", "–": "--", "…": r"\dots{}"},
}
_MARKDOWN = {character: f"\\{character}" for character in r"\`*_[]<>|$~#&"}


@dataclass
class TextTable:
    """A table of a manuscript. `figures.save` writes it as csv, Markdown and LaTeX, and its caption as txt."""

    name: str
    table: pd.DataFrame
    caption: str
    texts: Mapping[str, str]  # ending -> contents of the file
    settings: Settings

    def savefig(self, path: str | Path, format: str, **_: object) -> None:
        """Write one of the formats."""
        Path(path).write_text(self.texts[format], encoding="utf-8")

    def _repr_markdown_(self) -> str:
        """Return the table and its caption for a notebook."""
        return self.texts["md"]


def table1(
    clustering: pd.DataFrame,
    classification: pd.DataFrame,
    run: RunInfo = style.NO_RUN,
    *,
    settings: Settings | None = None,
) -> TextTable:
    """Return the scores of each embedding against cell types and donors: mean ± s.d., the best one in bold.

    The numbers of the four models are those of the published tables. Other embeddings are in a block of their own.

    Table: one row per (label, Model) with mean and s.d. (ddof 1) of each score, the scores that are ``best`` in their
    column, and the numbers of cells, classes, seeds and fits.

    Parameters
    ----------
    clustering : ``clustering_long.csv``, one row per (Model, label, seed)
    classification : ``classification_long.csv``, one row per fit (Model, label, classifier, seed, fold)
    """
    with style.use(settings):
        tables = {CLUSTERING: clustering, CLASSIFICATION: classification}
        points = read_points(tables, _SHOWN, run)
        models = [*clustering["Model"], *classification["Model"]]
        names = style.model_names(models, mark_used(run, clustering, classification))
        table = _summarize(points, names)
        caption = _describe(tables, points, names, run)
        titles = {label: f"{title} ({BETTER[label]})" for label, title in style.label_titles(run).items()}
        rows = [*_list_rows(table, names, titles)]
        formats = {"md": _write_markdown(rows, caption), "tex": _write_latex(rows, caption)}
        return TextTable("table1", table, caption, formats, replace(style.current(), formats=tuple(formats)))


def _summarize(points: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Return one row per (label, Model) with mean and s.d. of each score, and which scores are best."""
    rows = []
    for label in BETTER:
        for model, name in names.items():
            own = points[(points["Model"] == model) & (points["label"] == label)]
            if own.empty:
                continue
            block = "models" if model in MODELS else _OTHER.lower()
            row = {"label": label, "Model": model, "name": name, "block": block}
            for metric in _COLUMNS:
                values = own["value"][own["metric"] == metric]
                row |= {metric: values.mean(), f"{metric}_sd": values.std()}
            for benchmark, unit in ((CLUSTERING, "seeds"), (CLASSIFICATION, "fits")):
                runs = own[(own["benchmark"] == benchmark) & (own["metric"] == _SHOWN[benchmark][0])]
                row |= {f"n_{unit}": len(runs), f"n_cells_{benchmark}": runs["n_cells"].max()}
                row |= {f"n_classes_{benchmark}": runs["n_classes"].max()}
            rows.append(row)
    counts = [f"n_{what}_{benchmark}" for benchmark in _SHOWN for what in ("cells", "classes")]
    scores = [column for metric in _COLUMNS for column in (metric, f"{metric}_sd")]
    columns = ["label", "Model", "name", "block", "best", *scores, "n_seeds", "n_fits", *counts]
    table = pd.DataFrame(rows, columns=columns)
    table[counts] = table[counts].astype("Int64")
    table["best"] = [", ".join(metric for metric in _COLUMNS if _is_best(table, i, metric)) for i in table.index]
    return table


def _is_best(table: pd.DataFrame, i: int, metric: str) -> bool:
    """Return whether a score, as it is printed, is the best one of its label; no score is, if all are equal."""
    label = table["label"][i]
    scores = table[metric][table["label"] == label].dropna().round(_DIGITS)
    best = scores.max() if label == CELL_TYPE else scores.min()
    return bool(scores.min() < scores.max() and round(table[metric][i], _DIGITS) == best)


def _list_rows(
    table: pd.DataFrame, names: Mapping[str, str], titles: Mapping[str, str]
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield each row as its kind (head, section, block or row) and its cells, each a text and its part in bold."""
    yield "head", [(text, "") for text in ("", *(METRICS[metric] for metric in _COLUMNS))]
    for label, part in table.groupby("label", sort=False):
        yield "section", [(titles[label], "")]
        for block, own in part.groupby("block", sort=False):
            if block != "models" and "models" in set(part["block"]):
                yield "block", [(_OTHER, "")]
            for row in own.to_dict("records"):
                cells = [(names[row["Model"]], "")]
                for metric in _COLUMNS:
                    mean, sd = (f"{row[column]:.{_DIGITS}f}" for column in (metric, f"{metric}_sd"))
                    mean = "–" if np.isnan(row[metric]) else mean.replace("-0.000", "0.000")
                    rest = "" if np.isnan(row[f"{metric}_sd"]) else f" ± {sd}"
                    best = metric in row["best"].split(", ")
                    cells.append((rest, mean) if best else (f"{mean}{rest}", ""))
                yield "row", cells


def _escaper(characters: Mapping[str, str]) -> Callable[[str], str]:
    """Return the function that replaces the special characters of a format."""
    return lambda text: "".join(characters.get(character, character) for character in text)


def _write_markdown(rows: list, caption: str) -> str:
    """Return the table in Markdown, with its caption."""
    escape, lines = _escaper(_MARKDOWN), []
    for kind, cells in rows:
        texts = [f"**{bold}**{escape(text)}" if bold else escape(text) for text, bold in cells]
        if kind == "section":
            texts[0] = f"**{texts[0]}**"
        if kind == "block":
            texts[0] = f"*{texts[0]}*"
        texts += [""] * (len(_COLUMNS) + 1 - len(texts))
        lines.append(f"| {' | '.join(texts)} |")
        if kind == "head":
            lines.append("|".join(["", ":---", *["---:"] * len(_COLUMNS), ""]))
    return "\n".join([*lines, "", escape(caption), ""])


def _write_latex(rows: list, caption: str) -> str:
    """Return the table in LaTeX, with its caption."""
    escape, n = _escaper(_TEX), len(_COLUMNS) + 1
    lines = ["% \\usepackage{booktabs}", "\\begin{table}", "\\centering", f"\\caption{{{escape(caption)}}}"]
    lines += ["\\label{tab:benchmark}", f"\\begin{{tabular}}{{l{'r' * len(_COLUMNS)}}}", "\\toprule"]
    for kind, cells in rows:
        texts = [f"\\textbf{{{bold}}}{escape(text)}" if bold else escape(text) for text, bold in cells]
        if kind == "section":
            lines += ["\\midrule", f"\\multicolumn{{{n}}}{{l}}{{\\textbf{{{texts[0]}}}}} \\\\"]
        elif kind == "block":
            lines += [f"\\cmidrule(lr){{1-{n}}}", f"\\multicolumn{{{n}}}{{l}}{{\\emph{{{texts[0]}}}}} \\\\"]
        else:
            lines.append(f"{' & '.join(texts)} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def _describe(tables: Mapping[str, pd.DataFrame], points: pd.DataFrame, names: Mapping[str, str], run: RunInfo) -> str:
    """Return the caption."""
    clusters, fits = (points[points["benchmark"] == benchmark] for benchmark in _SHOWN)
    sentences = [
        "Scores of the embeddings of one fit of each model (mean ± s.d.)",
        *style.run_note(count_cells(tables), run),
        "NMI and ARI measure the agreement of Leiden clusters with the label, over Leiden seeds "
        f"(n = {clusters['seed'].nunique()})",
        f"Macro F1, macro AUROC and accuracy measure the prediction of the label by "
        f"{style.join(name_classifiers(fits['classifier']))}, over all classifiers, seeds "
        f"(n = {fits['seed'].nunique()}) and folds (n = {fits['fold'].nunique()})"
        if len(fits)
        else "",
        f"{ABBREVIATIONS}; {AUROC}",
        "Bold marks the best score of its column against each label, as printed",
        describe_others(names, run),
        *list_unscored(run, *tables.values()),
    ]
    return style.write_caption(sentences, names, run)
