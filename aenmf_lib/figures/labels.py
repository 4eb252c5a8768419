"""Texts near points and ticks on axes, without overlap."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import Stroke
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox, IdentityTransform

from aenmf_lib.figures.settings import MM, current, line
from aenmf_lib.figures.text import text_width, wrap

_ANGLES = np.deg2rad([0, 180, 90, 270, 45, 315, 135, 225, 22.5, 337.5, 157.5, 202.5, 67.5, 292.5, 112.5, 247.5])
_GAPS = (0.3, 0.8, 1.5, 2.5, 4, 6, 9)  # between a point and its text, in heights of a line of text
_MAP_GAPS = (0.2, 0.8, 1.5, 2.5, 4)  # the same for texts that are best on their points
_LEADER = 0.7  # a text farther from its point than this, in heights of a line of text, is joined to it by a line
_APART = 0.15  # space around a text, in heights of a line of text
_ROUNDS = 8  # each text is placed again until none moves, at most this many times
_OVERLAP, _CROSSED = 1e6, 60.0  # costs of an overlap of texts and of a crossed line between a text and its point
_MARKER, _LINE = 8.0, 0.5  # costs of a covered marker, and of a covered point of a line
_OUTLINE = 0.22  # width of the white line around the letters on a map, in font sizes
_draw_text = Text.draw  # without the line to its point


class _Outlined(Annotation):
    """A text on a map, with a white line around its letters. It stays text in pdf and svg: only the line is paths."""

    def draw(self, renderer) -> None:
        """Draw the outline, then the text."""
        width = _OUTLINE * self.get_fontsize()
        self.set_path_effects([Stroke(linewidth=width, foreground="white", joinstyle="round")])
        _draw_text(self, renderer)
        self.set_path_effects([])
        super().draw(renderer)


def place_labels(
    ax: Axes,
    xs: Sequence[float],
    ys: Sequence[float],
    texts: Sequence[str],
    colors: Sequence[str] | None = None,
    *,
    centered: bool | Sequence[bool] = False,
    on_map: bool = False,
) -> list[int]:
    """Write each text near its point, inside the panel and over no other text; join distant texts by a line.

    Call this function last, when all marks are drawn and the limits are set: it fixes the layout of the figure, and the
    texts avoid the marks and texts of `ax`. The same input gives the same places.

    Parameters
    ----------
    xs, ys : position of each point, in data units
    texts : an empty text is not drawn
    colors : color of each text (default: black)
    centered : whether a text (each, or all) is best on its point and may cover marks
    on_map : whether texts have a white outline, and all that are not on their points a line to them

    Returns
    -------
    list of int
        Indices of the texts for which there is no space. They are not drawn.
    """
    fig = ax.figure.figure
    fix_layout(fig)
    if ax.get_aspect() != "auto":
        ax.apply_aspect()
    wanted = [i for i, text in enumerate(texts) if str(text).strip()]
    points = ax.transData.transform(np.column_stack([np.asarray(v, float)[wanted] for v in (xs, ys)]))
    taken = [_extents(text) for text in ax.findobj(Text) if text.get_visible() and text.get_text().strip()]
    taken = np.array(taken).reshape(-1, 4)
    on_points = np.broadcast_to(centered, len(texts))
    marks = np.empty((0, 4)) if on_points.all() else _list_marks(ax)
    sizes = [_measure(ax, texts[i]) for i in wanted]
    lines = [1 if on_map else str(texts[i]).count("\n") + 1 for i in wanted]  # texts on maps are farther apart
    height = max((size[1] / n for size, n in zip(sizes, lines, strict=True)), default=1)
    far = 0.0 if on_map else _LEADER
    labels = [
        _Label(i, *each, height, centered=bool(on_points[i]), far=far)
        for i, *each in zip(wanted, points, sizes, strict=True)
    ]
    for label in labels:
        label.rate(ax.bbox.extents, taken, marks[:0] if on_points[label.index] else marks)
    drawn: list[_Label] = []
    _arrange(labels, taken)
    for move in (False, True):  # labels that are in the way of others move at last
        for label in sorted(labels, key=lambda label: label.price):
            if label not in drawn and label.move(drawn, taken, move=move) < _CROSSED:
                drawn.append(label)
                color = "black" if colors is None else colors[label.index]
                label.write(ax, texts[label.index], color, _Outlined if on_map else Annotation)
    return sorted({*wanted} - {label.index for label in drawn})


def fix_layout(fig: Figure) -> None:
    """Lay a figure out for good. Places are rounded, because the last digits of the solver vary from run to run."""
    if engine := fig.get_layout_engine():
        if fig.axes:
            engine.execute(fig)
        fig.set_layout_engine("none")
        parts = [*fig.subfigs]
        for part in parts:  # grows
            parts += part.subfigs
            part.bbox_relative.set_points(part.bbox_relative.get_points().round(6))
        for ax in fig.axes:
            ax.set_position(Bbox(ax.get_position(original=True).get_points().round(6)))


def _arrange(labels: Sequence["_Label"], taken: np.ndarray) -> None:
    """Move each label to its cheapest place until none moves."""
    placed: list[_Label] = []
    for _ in range(_ROUNDS):
        before = [label.at for label in labels]
        for label in sorted(labels, key=lambda label: -label.cost.min()):  # the label with the worst places first
            label.move([other for other in placed if other is not label], taken)
            placed = [*(other for other in placed if other is not label), label]
        if before == [label.at for label in labels]:
            break


class _Label:
    """A text, its point, its possible places, and the place chosen. All lengths are in pixels."""

    def __init__(self, index: int, point: np.ndarray, size: np.ndarray, height: float, *, centered: bool, far: float):
        """List the possible boxes (n, 4) of a text of a `size`, and join those `far` from its point to it."""
        self.index, self.point, self.height, self.at, self.price = index, point, height, -1, 0.0
        centers, gaps = ([point], [0.0]) if centered else ([], [])
        for gap in _MAP_GAPS if centered else _GAPS:
            for angle in _ANGLES:
                direction = np.array([np.cos(angle), np.sin(angle)]).round(9)
                centers.append(point + direction * gap * height + np.sign(direction) * abs(direction) ** 0.5 * size / 2)
                gaps.append(gap)
        centers = np.array(centers)
        self.boxes = np.hstack([centers - size / 2, centers + size / 2])
        away = np.maximum(np.maximum(self.boxes[:, :2] - point, point - self.boxes[:, 2:]), 0)
        away = np.where(np.array(gaps) == 0, 0, np.hypot(*away.T) / height)
        self.joined = away > far
        self.cost = away**1.5 + 1e-3 * np.arange(len(away))  # among equal places, the first direction

    def rate(self, panel: np.ndarray, taken: np.ndarray, marks: np.ndarray) -> None:
        """Add to the cost of each place what lies outside the panel, and what covers texts and marks of the panel."""
        beyond = np.maximum(np.hstack([panel[:2] - self.boxes[:, :2], self.boxes[:, 2:] - panel[2:]]), 0).sum(axis=1)
        self.cost += _OVERLAP * (beyond > 0) + _OVERLAP * beyond / self.height
        self.cost += _OVERLAP * _overlap(self.boxes, taken, _APART * self.height).sum(axis=1)
        for i in range(0, len(marks), 5_000):  # bounds the memory
            x, y, radius, weight = marks[i : i + 5_000].T
            boxes = np.column_stack([x - radius, y - radius, x + radius, y + radius])
            self.cost += _overlap(self.boxes, boxes, _APART * self.height) @ weight

    def move(self, others: Sequence["_Label"], taken: np.ndarray, *, move: bool = True) -> float:
        """Choose the cheapest place besides the other labels (or stay), and return its cost."""
        boxes = np.array([other.boxes[other.at] for other in others]).reshape(-1, 4)
        points = np.array([other.point for other in others]).reshape(-1, 2)
        joined = np.array([other.joined[other.at] for other in others], dtype=bool)
        cost = self.cost + _OVERLAP * _overlap(self.boxes, boxes, _APART * self.height).sum(axis=1)
        cost += _CROSSED * _cross(points[joined], boxes[joined], self.boxes).sum(axis=0)
        own = np.tile(self.point, (self.joined.sum(), 1))
        in_the_way = np.vstack([boxes, taken])
        cost[self.joined] += _CROSSED * _cross(own, self.boxes[self.joined], in_the_way).sum(axis=1)
        self.at = int(np.argmin(cost)) if move else self.at
        self.price = cost[self.at]
        return self.price

    def write(self, ax: Axes, text: str, color: str, kind: type[Annotation]) -> None:
        """Write the text into its box, and draw a line from its point to a distant box."""
        box = self.boxes[self.at]
        nearest = (np.clip(self.point, box[:2], box[2:]) - box[:2]) / (box[2:] - box[:2])
        leader = {"arrowstyle": "-", "color": color, "lw": 0.4, "shrinkA": 0, "shrinkB": 0, "patchA": None}
        shift = ((box[:2] + box[2:]) / 2 - self.point) * 72 / ax.figure.figure.dpi
        ax.add_artist(kind(
            text, ax.transData.inverted().transform(self.point), tuple(shift), textcoords="offset points",
            ha="center", va="center", color=color, zorder=5, annotation_clip=False, clip_on=False,
            arrowprops=leader | {"relpos": tuple(nearest)} if self.joined[self.at] else None,
            transform=IdentityTransform(),
        )).set_in_layout(False)  # fmt: skip


def wrap_name(name: str, width: float) -> list[str]:
    """Return a name in lines of at most `width` mm; a number at its end stays with the word before it."""
    lines = wrap(name, width)
    if len(lines) > 1 and lines[-1].rstrip("†").isdecimal() and " " in lines[-2]:
        first, word = lines[-2].rsplit(" ", 1)
        if text_width(f"{word} {lines[-1]}") <= width:
            lines[-2:] = [first, f"{word} {lines[-1]}"]
    return lines


def _extents(text: Text) -> np.ndarray:
    """Return the box of a text (x0, y0, x1, y1) in pixels."""
    return np.array(Text.get_window_extent(text).extents)


def _measure(ax: Axes, text: str) -> np.ndarray:
    """Return the width and height of a text in pixels."""
    drawn = ax.text(0, 0, text, transform=None, ha="left", va="bottom")
    box = _extents(drawn)
    drawn.remove()
    return box[2:] - box[:2]


def _list_marks(ax: Axes) -> np.ndarray:
    """Return x, y, radius (pixels) and cost of each marker, and of points along each line, of a panel."""
    pixels, found = ax.figure.figure.dpi / 72, [np.empty((0, 4))]
    for marks in ax.collections:
        if isinstance(marks, PathCollection):
            xy = marks.get_offset_transform().transform(np.ma.filled(marks.get_offsets().astype(float), np.nan))
            radii = np.resize(np.sqrt(marks.get_sizes()) / 2 * pixels, len(xy))
            found.append(np.column_stack([xy, radii, np.full(len(xy), _MARKER)]))
        elif isinstance(marks, LineCollection):
            found += [_follow(marks.get_transform().transform(path.vertices), pixels) for path in marks.get_paths()]
    for curve in ax.lines:
        xy = curve.get_transform().transform(np.asarray(curve.get_xydata(), float))
        if curve.get_marker() not in ("", " ", None, "None", "none"):
            found.append(np.column_stack([xy, np.tile([curve.get_markersize() / 2 * pixels, _MARKER], (len(xy), 1))]))
        if curve.get_linestyle() not in ("", " ", None, "None", "none"):
            found.append(_follow(xy, pixels))
    marks = np.concatenate(found)
    return marks[np.isfinite(marks).all(axis=1)]


def _follow(xy: np.ndarray, pixels: float) -> np.ndarray:
    """Return points along a line, one point apart."""
    parts = [np.empty((0, 4))]
    for start, end in itertools.pairwise(xy):
        if np.isfinite([start, end]).all():
            n = min(int(np.hypot(*(end - start)) / pixels) + 2, 2_000)
            steps = np.linspace(0, 1, n)[:, None]
            parts.append(np.column_stack([start + steps * (end - start), np.tile([pixels / 2, _LINE], (n, 1))]))
    return np.concatenate(parts)


def _overlap(boxes: np.ndarray, others: np.ndarray, apart: float) -> np.ndarray:
    """Return whether each box (n, 4) is less than `apart` pixels away from each other box (m, 4), as (n, m)."""
    x0, y0, x1, y1 = others.T
    sideways = (boxes[:, [0]] < x1 + apart) & (x0 - apart < boxes[:, [2]])
    return sideways & (boxes[:, [1]] < y1 + apart) & (y0 - apart < boxes[:, [3]])


def _cross(points: np.ndarray, ends: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return whether the line from each point (n, 2) to the box at its end (n, 4) crosses each box (m, 4)."""
    start = points[:, None]
    way = np.clip(points, ends[:, :2], ends[:, 2:])[:, None] - start
    way = np.where(np.abs(way) < 1e-9, 1e-9, way)
    low, high = (boxes[None, :, :2] - start) / way, (boxes[None, :, 2:] - start) / way  # (n, m, 2), shares of the way
    enters, leaves = np.minimum(low, high).max(axis=-1), np.maximum(low, high).min(axis=-1)
    return (np.maximum(enters, 0) < np.minimum(leaves, 1)) & (leaves > 0)


def thin_ticks(axes: Iterable[Axes]) -> None:
    """Set round ticks on the axes of numbers, as many as have space for their labels once the figure is laid out."""
    axes = list(axes)
    if engine := axes[0].figure.figure.get_layout_engine():
        engine.execute(axes[0].figure.figure)
    for ax in axes:
        dpi = ax.figure.figure.dpi
        for axis, pixels in ((ax.xaxis, ax.bbox.width), (ax.yaxis, ax.bbox.height)):
            if axis.get_scale() == "linear" and not isinstance(axis.get_major_locator(), FixedLocator | NullLocator):
                _set_ticks(axis, pixels / dpi * MM)


def _set_ticks(axis: Axis, length: float) -> None:
    """Set the ticks of an axis of a `length` in mm, with a space below them that keeps apart the labels at a corner."""
    axis.set_tick_params(pad=(0.45 if axis.axis_name == "x" else 0.3) * current().font_size)
    low, high = sorted(axis.get_view_interval())
    ticks = [(low + high) / 2]
    for n in range(6, 0, -1):
        locator = MaxNLocator(n, steps=[1, 2, 5, 10])
        ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high] or ticks
        axis.set_major_locator(locator)
        names = axis.get_major_formatter().format_ticks(ticks)
        needed = 1.4 * line() if axis.axis_name == "y" else 1.25 * max(map(text_width, names))
        if len(ticks) > 1 and (ticks[1] - ticks[0]) / (high - low) * length >= needed:
            return
    axis.set_major_locator(FixedLocator([ticks[len(ticks) // 2]]))  # no space for two
