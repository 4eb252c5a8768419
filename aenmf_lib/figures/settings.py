"""The settings of all figures: ``figures/settings.yaml``, and the file and options of the user, which replace them.

While a figure is drawn, `current` returns its settings.
"""

import contextlib
import contextvars
import difflib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import yaml
from matplotlib import font_manager, style
from matplotlib.colors import is_color_like, to_hex

log = logging.getLogger(__name__)

MM = 25.4  # per inch
POINTS = 72  # per inch
_active: contextvars.ContextVar["Settings | None"] = contextvars.ContextVar("settings", default=None)
_DEFAULTS = Path(__file__).with_name("settings.yaml")
_FORMATS = ("pdf", "png", "svg", "tiff")


class _Entries(dict):
    """Entries by name. It notes the names for which a figure asks, to find entries of the user without effect."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self.asked: dict[str, None] = {}

    def get(self, name: str, default: Any = None) -> Any:
        """Return the entry of a name, and note the name."""
        self.asked[name] = None
        return super().get(name, default)


@dataclass(frozen=True)
class Settings:
    """The look of the figures, from `read_settings`. Lengths are in mm, the font size is in points."""

    fonts: tuple[str, ...]
    font_size: float
    single: float
    double: float
    formats: tuple[str, ...]
    dpi: float
    models: Mapping[str, Mapping[str, str]]  # model -> name and color
    other_embeddings: tuple[str, ...]  # colors
    palettes: Mapping[str, str | Sequence[str]]  # label -> palette
    label_colors: Mapping[str, Mapping[str, str]]  # label -> value -> color
    sequential: str
    diverging: str
    markers: Mapping[str, Sequence[str]]  # cell type -> genes

    def __post_init__(self) -> None:
        colors = {label: _Entries(values) for label, values in self.label_colors.items()}
        for name, entries in {"models": self.models, "palettes": self.palettes, "label_colors": colors}.items():
            object.__setattr__(self, name, _Entries(entries))

    def palette(self, kind: str) -> list[str]:
        """Return the colors of a kind of label: ``cell_type``, ``donor_id`` or ``other``."""
        return _colors(self.palettes.get(kind, self.palettes["other"]))


def read_settings(path: str | Path | None = None, *, width: float = 0, formats: Sequence[str] = ()) -> Settings:
    """Return the default settings, or those of a file and of the options, which replace them one by one.

    Parameters
    ----------
    path
        YAML file with some of the entries of ``figures/settings.yaml``; None or "" for the defaults.
    width
        Width of every figure in mm; 0 for the widths of the settings.
    formats
        Formats of every figure; empty for those of the settings.

    Raises
    ------
    FileNotFoundError, ValueError
        The file does not exist, or an entry is unknown or not valid.
    """
    values = _defaults()
    if path:
        values = _replace(values, _read(Path(path)), str(path))
    if formats:
        _check("formats", list(formats), "FORMAT")
        values = values | {"formats": list(dict.fromkeys(formats))}
    if width:
        _check("single", width, "WIDTH")
        values = values | {"single": width, "double": width}
    return Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@functools.cache
def _defaults() -> dict[str, Any]:
    """Return the entries of the file of defaults."""
    return yaml.safe_load(_DEFAULTS.read_text(encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    """Return the entries of a file of the user."""
    if not path.is_file():
        raise FileNotFoundError(f"File of settings not found: {path}. Pass an existing file: SETTINGS=mine.yaml.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}. Correct it.") from None
    if not isinstance(values, dict | None):
        raise ValueError(f"{path} contains {values!r:.60}. Expected lines such as 'font_size: 8'.")
    return values or {}


def _replace(defaults: Mapping[str, Any], values: Mapping, where: str) -> dict[str, Any]:
    """Return the defaults with the values that replace them. Models and palettes are replaced one by one."""
    merged = dict(defaults)
    for name, value in values.items():
        _require_known(name, defaults, where)
        place = f"{where}: {name}"
        if name in ("models", "palettes"):
            _require(isinstance(value, Mapping), place, value, f"a mapping, such as in {_DEFAULTS}")
            merged[name] = dict(defaults[name])
        if name == "models":
            for model, entries in value.items():
                of_model = f"{place}: {model}"
                _require(isinstance(entries, Mapping), of_model, entries, 'such as {name: PCA, color: "#999999"}')
                for key, text in entries.items():
                    _require_known(key, {"name": 0, "color": 0}, of_model)
                    _check(key, text, f"{of_model}: {key}")
                merged[name][str(model)] = {"name": str(model)} | dict(merged[name].get(model, {})) | dict(entries)
        elif name == "palettes":
            for label, palette in value.items():
                _check("palette", palette, f"{place}: {label}")
                merged[name][str(label)] = palette
        else:
            _check(name, value, place)
            merged[name] = value
    return merged


def _texts(value: Any, valid: Callable[[str], bool] = str.strip) -> bool:
    """Return whether a value is a list of valid texts."""
    return isinstance(value, list) and value and all(isinstance(text, str) and valid(text) for text in value)


def _number(value: Any, low: float, high: float) -> bool:
    """Return whether a value is a number between two limits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _mapping(value: Any, valid: Callable[[Any], bool]) -> bool:
    """Return whether a value is a mapping from texts to valid values."""
    return isinstance(value, Mapping) and all(isinstance(key, str) and valid(each) for key, each in value.items())


def _color(value: Any) -> bool:
    """Return whether a value is a color."""
    return isinstance(value, str) and is_color_like(value)


def _palette(value: Any) -> bool:
    """Return whether a value names a palette or is a list of colors."""
    if not isinstance(value, str):
        return _texts(value, _color)
    return _colorcet(value) is not None or value in mpl.colormaps


def _colormap(value: Any) -> bool:
    """Return whether a value is the name of a colormap."""
    return isinstance(value, str) and value in mpl.colormaps


# entry -> whether a value is valid, what is expected
_CHECKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "fonts": (_texts, "a list of fonts, such as [Arial]"),
    "font_size": (lambda value: _number(value, 3, 40), "a number of points from 3 to 40"),
    "single": (lambda value: _number(value, 60, 1000), "a width from 60 to 1000 mm"),
    "double": (lambda value: _number(value, 60, 1000), "a width from 60 to 1000 mm"),
    "dpi": (lambda value: _number(value, 30, 2400), "a number from 30 to 2400"),
    "formats": (lambda value: _texts(value, _FORMATS.__contains__), f"a list of formats, of {', '.join(_FORMATS)}"),
    "other_embeddings": (lambda value: _texts(value, _color), 'a list of colors, such as ["#7F8C99"]'),
    "label_colors": (
        lambda value: _mapping(value, lambda colors: _mapping(colors, _color)),
        'colors of labels, such as {cell_type: {B cell: "#1B9E77"}}',
    ),
    "sequential": (_colormap, "a colormap of matplotlib, such as viridis"),
    "diverging": (_colormap, "a colormap of matplotlib, such as RdBu_r"),
    "markers": (lambda value: _mapping(value, _texts), "genes by cell type, such as {B cell: [MS4A1, CD79A]}"),
    "palette": (_palette, "a palette of colorcet or matplotlib, or a list of colors"),
    "name": (lambda value: isinstance(value, str) and value.strip(), "a text"),
    "color": (_color, 'a color, such as "#0072B2"'),
}


def _check(name: str, value: Any, place: str) -> None:
    """Raise ValueError unless the value of an entry is valid."""
    valid, expected = _CHECKS[name]
    _require(valid(value), place, value, expected)


def _require(valid: Any, place: str, value: Any, expected: str) -> None:
    """Raise ValueError unless a value is valid."""
    if not valid:
        raise ValueError(f"{place} is {value!r:.60}. Expected {expected}.")


def _require_known(name: Any, names: Mapping, where: str) -> None:
    """Raise ValueError, with the closest valid name, if a name is unknown."""
    if name not in names:
        close = difflib.get_close_matches(str(name), [*map(str, names)], 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{where} has an unknown entry {str(name)!r}.{hint} Valid entries: {', '.join(names)}.")


def _colorcet(name: str) -> list | None:
    """Return the colors of a palette of colorcet, or None if it has no palette of this name."""
    import colorcet  # takes half a second, and few figures need it

    colors = getattr(colorcet, name, None)
    return colors if isinstance(colors, list) else None


def _colors(palette: str | Sequence[str]) -> list[str]:
    """Return the colors of a palette."""
    if isinstance(palette, str):
        if (colors := _colorcet(palette)) is not None:
            palette = colors
        else:
            colormap = mpl.colormaps[palette]
            palette = colormap(range(colormap.N)) if colormap.N < 256 else colormap([i / 19 for i in range(20)])
    return [to_hex(color) for color in palette]


def current() -> Settings:
    """Return the settings of the figure that is being drawn."""
    return _active.get() or read_settings()


@contextlib.contextmanager
def use(settings: Settings | None = None) -> Iterator[None]:
    """Draw with these settings (None: the default settings), whatever the user's rcParams are."""
    settings = settings or read_settings()
    text = {"font.family": [find_font(settings.fonts), "DejaVu Sans"], "font.size": settings.font_size}
    resolution = {"figure.dpi": settings.dpi, "savefig.dpi": settings.dpi}  # of the layout, and of the files
    token = _active.set(settings)
    try:
        with style.context(["aenmf_lib.figures.aenmf", text | resolution], after_reset=True):
            yield
            _warn_without_effect(settings)
    finally:
        _active.reset(token)


def _warn_without_effect(settings: Settings) -> None:
    """Warn of entries of the user that look like a name for which the figure asked, and of colors of no label."""
    models, palettes, colors = settings.models, settings.palettes, settings.label_colors
    shown = {str(models[model].get("name", model)): model for model in models.asked if model in models}
    drawn = shown | {model: model for model in models.asked}
    for model in sorted({*models} - {*_defaults()["models"]} - {*models.asked}):
        _warn_once(f"models: {model} is not a model of the settings or the tables", _closest(model, drawn), True)
    for name, entries in {"palettes": palettes, "label_colors": colors}.items():
        labels = {label: label for label in [*_defaults()["palettes"], *entries.asked]}
        for label in sorted({*entries} - {*labels}):
            _warn_once(f"{name}: {label} is not a label of the figure", _closest(label, labels), True)
    for label in filter(colors.__contains__, colors.asked):
        values = {value: value for value in colors[label].asked}
        for value in sorted({*colors[label]} - {*values}):
            _warn_once(f"label_colors: {label}: {value} is not in the figure", _closest(value, values), False)


def _closest(name: str, names: Mapping[str, str]) -> str:
    """Return the value of the most similar name; empty if none is similar."""
    folded = {key.casefold(): value for key, value in names.items()}
    close = difflib.get_close_matches(name.casefold(), folded, 1, 0.7)
    return folded[close[0]] if close else ""


@functools.cache
def _warn_once(text: str, closest: str, only_close: bool) -> None:
    """Warn that an entry of the settings has no effect; with `only_close`, only if there is a similar name."""
    if closest or not only_close:
        log.warning("%s%s", text, f"; did you mean {closest}?" if closest else "")


@functools.cache
def find_font(families: tuple[str, ...]) -> str:
    """Return the first font of the list that is installed, or the one that comes with matplotlib."""
    for family in families:
        if family in font_manager.get_font_names():
            break
        # matplotlib does not see fonts that were installed after it was first used
        start = family.replace(" ", "").lower()
        files = [file for file in font_manager.findSystemFonts() if Path(file).stem.lower().startswith(start)]
        for file in sorted(files):
            with contextlib.suppress(RuntimeError, OSError):  # a file that is not a font
                font_manager.fontManager.addfont(file)
        if family in font_manager.get_font_names():
            break
    else:
        family = "DejaVu Sans"
    if family == "DejaVu Sans" and families[0] != family:
        wanted = [name for name in families if name != family]
        log.warning("No font %s is installed: figures use DejaVu Sans. Debian: apt install fonts-liberation",
                    " or ".join(wanted))  # fmt: skip
    return family


def page_width(columns: str) -> float:
    """Return the width of a figure of one (``single``) or two (``double``) columns, in mm."""
    return {"single": current().single, "double": current().double}[columns]


def line() -> float:
    """Return the height of a line of text, with the space between lines, in mm."""
    return current().font_size / POINTS * MM * 1.25
