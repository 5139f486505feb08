"""Charts as inline SVG whose colors are variables of the page, so that they follow its light or dark scheme.

matplotlib draws with stand-in colors; afterwards each is replaced by ``var(--...)``, the drawing loses its own size,
metadata and fonts, and its ids get a prefix, since they must be unique in the page.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from betaedit.extras import import_extra
from betaedit.reports.charts import Chart, Cloud, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = 8
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1, 1.3)), (0, (6, 1.5, 1.5, 1.5)), (0, (2.5, 1)))
"""Patterns of runs' lines: where two coincide, the later one's gaps show the earlier one, which is wider."""
_INK, _MUTED, _GRID = "#0a0b01", "#0a0b02", "#0a0b03"
_STAND_INS = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--rule)",
    **{f"#0a1b{place:02x}": f"var(--run-{place})" for place in range(COLORS)},
    **{f"#0a2b{place:02x}": f"var(--group-{place})" for place in range(COLORS)},
}
_SIZE = (4.0, 2.75)  # inches: narrow enough that letters stay readable at 360 pixels
_SQUARE = (4.0, 3.4)
_BOX = (0.145, 0.165, 0.835, 0.815)  # left, bottom, width, height: the same in all, so that axes stand in line
_INCHES_PER_LETTER = 0.06
_LABELS_APART = 1 / 13  # of the height of the axes
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "betaedit",
    "font.size": 9.5,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.markersize": 4.5,
}
_FAR = 30.0  # times the least: a logarithmic axis from here on
_DEEPEST = 1000.0  # times below the greatest: where a logarithmic axis with zeros ends


def draw_chart(chart: Chart) -> str:
    """Lines with their intervals as bands."""
    with _canvas(_SIZE, _box(chart)) as (figure, axes):
        for line in chart.lines:
            _draw_line(axes, line, _look(line.color) if chart.by == "run" else _PLAIN)
        _scale(axes, chart)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel(chart.x)
        if chart.labels:
            _label_ends(axes, chart)
        return _inline(figure, chart.key)


def draw_cloud(cloud: Cloud) -> str:
    """Every prompt's state before (hollow) and after (full), joined by a thin line."""
    from matplotlib.collections import LineCollection

    with _canvas(_SQUARE) as (figure, axes):
        for place, (group, before) in enumerate(cloud.view.before.items()):
            color, marker = f"#0a2b{place % COLORS:02x}", _marker(place)
            after = cloud.view.after[group]
            axes.add_collection(
                LineCollection(list(zip(before, after, strict=True)), colors=color, linewidths=0.6, alpha=0.35)
            )
            style: dict[str, Any] = {"s": 14, "marker": marker}
            axes.scatter(*_columns(before), facecolors="none", edgecolors=color, alpha=0.55, lw=0.8, **style)
            axes.scatter(*_columns(after), color=color, alpha=0.85, lw=0, **style)
        axes.set_xlabel("first principal component")
        axes.set_ylabel("second")
        return _inline(figure, cloud.key)


def draw_marker(place: int, family: str = "run") -> str:
    """The marker of a run or group, for a legend."""
    with _canvas((0.3, 0.2), (0, 0, 1, 1)) as (figure, axes):
        axes.set_axis_off()
        color = f"#0a{'1' if family == 'run' else '2'}b{place % COLORS:02x}"
        if family == "run":
            axes.plot([0, 2], [0, 0], color=color, lw=1.8, ls=DASHES[place % len(DASHES)])
        axes.plot([1], [0], marker=_marker(place), color=color, ms=6)
        axes.set(xlim=(0, 2), ylim=(-1, 1))
        return _inline(figure, f"marker-{family}-{place}")


_PLAIN: dict[str, Any] = {"lw": 1.8}


def _look(place: int) -> dict[str, Any]:
    """Pattern and sizes of a run's line: later lines are drawn so that earlier ones below them stay visible."""
    rank = place % COLORS
    return {"ls": DASHES[place % len(DASHES)], "lw": 2.6 - 0.2 * rank, "ms": 6.5 - 0.5 * rank}


def _box(chart: Chart) -> tuple[float, float, float, float]:
    """Where the axes stand, with room for labels on their right."""
    left, bottom, width, height = _BOX
    longest = max((len(line.name) for line in chart.lines), default=0) if chart.labels else 0
    room = (longest + 2) * _INCHES_PER_LETTER / _SIZE[0] if longest else 0.0
    return left, bottom, width - room, height


def _draw_line(axes: Axes, line: Line, look: dict[str, Any]) -> None:
    color, marker = f"#0a1b{line.color % COLORS:02x}", _marker(line.color)
    x = [point.x for point in line.points]
    y = [point.y if math.isfinite(point.y) else math.nan for point in line.points]
    low = [middle if point.low is None else point.low for point, middle in zip(line.points, y, strict=True)]
    high = [middle if point.high is None else point.high for point, middle in zip(line.points, y, strict=True)]
    if any(point.low is not None for point in line.points):
        axes.fill_between(x, low, high, color=color, alpha=0.16, lw=0)
    axes.plot(x, y, color=color, marker=marker, alpha=line.strength, mec="none", **look)


def _scale(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if chart.scale == "wide" and _stretch(axes, [point.y for line in chart.lines for point in line.points]):
        return
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if chart.scale == "share":
        axes.set_ylim(-0.02, 1.04)
    if chart.scale in ("share", "percent"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol="%"))


def _stretch(axes: Axes, values: list[float]) -> bool:
    """Give figures that differ by orders of magnitude a logarithmic axis; zeros are in its linear part."""
    from matplotlib.ticker import FuncFormatter

    positive = sorted(value for value in values if 0 < value < math.inf)
    if not positive or positive[-1] < _FAR * positive[0]:
        return False
    if min(values) > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=max(positive[0], positive[-1] / _DEEPEST))
        axes.set_ylim(bottom=0)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    return True


def _label_ends(axes: Axes, chart: Chart) -> None:
    """Names on the right of the axes, at the heights of their lines' ends or as near as they do not overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = []
    for line in chart.lines:
        finite = [(point.x, point.y) for point in line.points if math.isfinite(point.y)]
        if finite:
            ends.append((line, tuple(to_axes.transform(finite[-1]))))
    ends.sort(key=lambda end: end[1][1])
    for (line, (x, y)), place in zip(ends, spread([y for _, (_, y) in ends], _LABELS_APART), strict=True):
        axes.plot([x, 1.02], [y, place], color=_MUTED, lw=0.5, alpha=0.6, transform=axes.transAxes, clip_on=False)
        color = f"#0a1b{line.color % COLORS:02x}" if chart.by == "run" else _INK
        axes.text(1.03, place, line.name, color=color, va="center", fontsize=8.5, transform=axes.transAxes)


def spread(heights: Sequence[float], apart: float) -> list[float]:
    """Heights from 0 to 1 that are ``apart``, or as far as there is room, near the given ones.

    Args:
        heights: Ascending.
        apart: The least distance.
    """
    apart = min(apart, 1 / (len(heights) - 1)) if len(heights) > 1 else apart
    places: list[float] = []
    for height in heights:
        places.append(max(height, places[-1] + apart if places else 0.0))
    highest = 1.0
    for index in reversed(range(len(places))):
        places[index] = min(places[index], highest)
        highest = places[index] - apart
    return places


def need_matplotlib() -> Any:
    """Matplotlib with its figures.

    Raises:
        MissingExtraError: It is absent.
    """
    mpl = import_extra("matplotlib", "reports", "a figure")
    import_extra("matplotlib.figure", "reports", "a figure")
    return mpl


@contextmanager
def _canvas(size: tuple[float, float], box: tuple[float, float, float, float] = _BOX) -> Iterator[tuple[Figure, Axes]]:
    """A figure and its axes, in the page's style.

    Raises:
        MissingExtraError: matplotlib is absent.
    """
    mpl = need_matplotlib()
    with mpl.rc_context(_STYLE):
        figure = mpl.figure.Figure(figsize=size)
        yield figure, figure.add_axes(box)


def _inline(figure: Figure, key: str) -> str:
    """The drawing as an ``<svg>`` element of the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', text)
    text = re.sub(r"<svg[^>]*>", f'<svg {box[0] if box else ""} aria-hidden="true">', text, count=1)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{key}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"<[^>]*>", _rounded, text)
    text = re.sub(r"stroke: #\w+; stroke-opacity: 0(?![.\d])", "stroke: none", text)
    for stand_in, variable in _STAND_INS.items():
        text = text.replace(stand_in, variable)
    return re.sub(r"\n\s*", "\n", text).strip()


def _rounded(tag: re.Match[str]) -> str:
    """A tag whose numbers have two decimals: a hundredth of a point is finer than anyone sees."""
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0])


def _marker(place: int) -> str:
    """Color and marker together repeat only after 64."""
    return MARKERS[(place + place // COLORS) % len(MARKERS)]


def _columns(points: list[tuple[float, float]]) -> tuple[Any, Any]:
    return [x for x, _ in points], [y for _, y in points]
