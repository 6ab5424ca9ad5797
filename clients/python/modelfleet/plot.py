"""Series as pictures: PNG and SVG files through matplotlib (the extra `plots`), and text for the terminal.

One description, `Chart`, is drawn either way. A value that is not finite, or not above 0 on a logarithmic axis, is a
gap.
"""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["line", "steps", "points", "band"]
Mark = Literal["good", "bad", "unknown", "best", "value", "range", "interval", "immature", "corrected"]

SUFFIXES = (".png", ".svg")

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_LIMIT_COLOUR = "#555555"
_FILE_MARKERS = ("o", "X", "^", "s", "D", "v", "P", "*")
# Without colours, characters tell the series apart.
_TEXT_POINTS = ("●", "×", "▲", "■", "◆", "▼", "+", "*")
# What means something looks the same in every chart: its colour, and its marker as text and in files.
_MARKS: dict[Mark, tuple[str, str, str]] = {
    "good": ("#009E73", "●", "o"),
    "bad": ("#D55E00", "×", "X"),
    "unknown": ("#999999", "▲", "^"),
    "best": ("#009E73", "◆", "D"),
    "value": ("#0072B2", "*", "o"),
    "range": ("#009E73", "-", ""),
    "interval": ("#56B4E9", "·", ""),
    "immature": ("#888888", "o", ""),
    "corrected": ("#E69F00", "+", ""),
}
# Lines that are not the last word.
_DASHED: dict[Mark, Any] = {"immature": (0, (1.5, 1.5)), "corrected": (0, (4, 1.5))}
_TEXT_LINES = ("braille", "*", "+", "o", "#", "=", "~", "%")
# Several limits differ in their strokes.
_LIMIT_MARKERS = ("-", "·", "=", "¨")
_LIMIT_STYLES = ("--", ":", "-.", (0, (8, 3)))
_PANEL_INCHES = (9.0, 4.2)
_DOTS_AN_INCH = 150
_EDGE = 0.8
_FEWEST_COLUMNS, _FEWEST_ROWS = 30, 8
_STEPS_OF_TIME = (
    *(1, 2, 5, 10, 15, 30),
    *(60 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3600 * hours for hours in (1, 2, 3, 6, 12)),
    *(86_400 * days for days in (1, 2, 7, 14, 30, 91, 182, 365)),
)


class CannotPlot(Exception):
    """A picture cannot be made; the message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn under one name in the legend.

    Attributes:
        label: in the legend; with the unit where it is not that of the axis.
        x: where; on a time axis seconds since 1970 in UTC.
        y: the values, as many.
        kind: a line from point to point, steps (a value holds until the next), points alone, or a band from `y` to
            `upper`.
        upper: of a band: its upper edge, as many values.
        mark: what it means; without it, its look is that of its place among the series.

    Raises:
        ValueError: the numbers of values differ.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Kind = "line"
    upper: Sequence[float] = ()
    mark: Mark | None = None

    def __post_init__(self) -> None:
        edges = (self.y, self.upper) if self.kind == "band" else (self.y,)
        if any(len(edge) != len(self.x) for edge in edges):
            raise ValueError(f"{self.label}: as many values as places, please")


@dataclass(frozen=True, slots=True)
class Limit:
    """A horizontal line that values should keep to."""

    value: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One pair of axes and what is drawn in it.

    Attributes:
        title: what is seen.
        x_label: with its unit; empty for a time axis, which is in UTC.
        y_label: with its unit.
        series: drawn in this order.
        limits: horizontal lines.
        log_x: whether the horizontal axis is logarithmic; not together with `time_x`.
        log_y: whether the vertical axis is logarithmic.
        time_x: whether the horizontal axis is time.
        whole_x: whether the horizontal axis counts: it has whole numbers only.
        zero_y: whether the vertical axis begins at 0, so that heights are in proportion; not together with `log_y`.
        height: of the axes, as a part of what is usual.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    limits: Sequence[Limit] = ()
    log_x: bool = False
    log_y: bool = False
    time_x: bool = False
    whole_x: bool = False
    zero_y: bool = False
    height: float = 1.0


def write(charts: Chart | Sequence[Chart], path: Path | str) -> None:
    """Writes a picture of one chart, or of several beneath each other, as its name's suffix says: .png or .svg.

    Raises:
        CannotPlot: the suffix is another one, or matplotlib is not installed.
        OSError: the file cannot be written.
    """
    check(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    charts = [charts] if isinstance(charts, Chart) else charts
    style: dict[Any, Any] = {
        "axes.edgecolor": "#888888", "axes.grid": True, "axes.axisbelow": True, "axes.spines.right": False,
        "axes.spines.top": False, "axes.titlelocation": "left", "axes.titlesize": 12, "font.size": 10,
        "grid.color": "#E4E4E4", "grid.linewidth": 0.8, "legend.frameon": False, "svg.fonttype": "none",
        "svg.hashsalt": "modelfleet", "text.parse_math": False, "timezone": "UTC",
    }  # fmt: skip
    with mpl.rc_context(style):
        width, height = _PANEL_INCHES
        heights = [chart.height for chart in charts]
        figure = Figure(figsize=(width, height * sum(heights)), layout="constrained")
        panels = figure.subplots(len(charts), squeeze=False, height_ratios=heights)[:, 0]
        for axes, chart in zip(panels, charts, strict=True):
            _draw(axes, chart)
        if Path(path).suffix.lower() == ".svg":
            # Without the date of its making, the same series give the same file.
            figure.savefig(path, metadata={"Date": None})
        else:
            _save_png(figure, path)


def _save_png(figure: Figure, path: Path | str) -> None:
    """Writes a figure with a palette, which takes a third of the bytes: there are few colours in a drawing."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DOTS_AN_INCH)
    image = Image.open(drawn).convert("RGB").quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.save(path, format="png", optimize=True)


def check(path: Path | str) -> None:
    """Says before any work is done whether a picture can be written to a path.

    Raises:
        CannotPlot: its suffix is neither .png nor .svg, its folder does not exist, or matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise CannotPlot(f"{path}: a picture's name ends in {' or '.join(SUFFIXES)}")
    if not Path(path).parent.is_dir():
        raise CannotPlot(f"{path}: there is no folder {Path(path).parent}")
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError:
        raise CannotPlot("pictures need matplotlib; install it with: pip install 'modelfleet[plots]'") from None


def terminal(chart: Chart, width: int = 80, height: int = 20, *, color: bool = False) -> str:
    """Draws a chart as text.

    Args:
        chart: what to draw.
        width: columns that it takes at most; at least 30.
        height: lines of the axes and what is in them; title, labels and legend come on top. At least 8.
        color: with the escape sequences of a terminal.

    Returns:
        Lines without a newline at the end.
    """
    width, height = max(width, _FEWEST_COLUMNS), max(height, _FEWEST_ROWS)
    lines = [*textwrap.wrap(chart.title, width), *textwrap.wrap(chart.y_label, width)]
    drawn = _TextPanel(chart, width, height, color=color)
    lines += drawn.lines()
    lines += [part.rjust(width) for part in textwrap.wrap(_x_label(chart), width)]
    lines += drawn.legend()
    return "\n".join(line.rstrip() for line in lines)


def _draw(axes: Axes, chart: Chart) -> None:
    """Draws a chart with matplotlib."""
    axes.set_title(chart.title)
    axes.set_xlabel(_x_label(chart))
    axes.set_ylabel(chart.y_label)
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    for number, series in enumerate(chart.series):
        _draw_series(axes, chart, series, number)
    for limit, style in zip(chart.limits, itertools.cycle(_LIMIT_STYLES)):
        axes.axhline(limit.value, color=_LIMIT_COLOUR, linestyle=style, linewidth=1.2, label=limit.label, zorder=1.5)
    if chart.zero_y:
        axes.set_ylim(bottom=0)
    _number_axes(axes, chart)
    if chart.series or chart.limits:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def _draw_series(axes: Axes, chart: Chart, series: Series, number: int) -> None:
    color, marker = _COLOURS[number % len(_COLOURS)], _FILE_MARKERS[number % len(_FILE_MARKERS)]
    if series.mark:
        color, _, marker = _MARKS[series.mark]
    places = [datetime.fromtimestamp(x, UTC) if chart.time_x else x for x in series.x]
    # Their types know only numbers; dates are converted by the axis.
    x: Any = places
    y = [_or_gap(value, log=chart.log_y) for value in series.y]
    match series.kind:
        case "band":
            upper = [_or_gap(value, log=chart.log_y) for value in series.upper]
            # Where both are drawn, the range can be told from the interval.
            shade = 0.12 if series.mark == "range" else 0.25
            axes.fill_between(x, y, upper, color=color, alpha=shade, linewidth=0, label=series.label)
            if series.mark == "range":
                # Its ends are seen under the interval too.
                for edge in (y, upper):
                    axes.plot(x, edge, color=color, linewidth=_EDGE)
        case "points":
            axes.plot(x, y, linestyle="none", marker=marker, markersize=7, color=color, label=series.label)
        case "steps":
            axes.step(x, y, where="post", color=color, linewidth=1.6, label=series.label)
        case "line":
            # Few points are worth seeing one by one.
            dots = marker if len(x) <= 40 else ""
            dashes = _DASHED.get(series.mark, "-") if series.mark else "-"
            axes.plot(x, y, color=color, linewidth=1.6, linestyle=dashes, marker=dots, markersize=4, label=series.label)


def _number_axes(axes: Axes, chart: Chart) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

    if chart.time_x:
        locator = AutoDateLocator(tz=UTC)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]
    if chart.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axis, log, limits in ((axes.xaxis, chart.log_x, axes.get_xlim()), (axes.yaxis, chart.log_y, axes.get_ylim())):
        if log:
            axis.set_major_locator(FixedLocator(_log_ticks(*limits)))
            axis.set_minor_locator(NullLocator())
            axis.set_minor_formatter(NullFormatter())
        if log or not (chart.time_x and axis is axes.xaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))


class _TextPanel:
    """The axes of one chart as text. Logarithms and ticks are made here: the library gets plain numbers."""

    def __init__(self, chart: Chart, width: int, height: int, *, color: bool) -> None:
        import plotext

        self._plotext = plotext
        self._chart = chart
        self._width = width
        self._height = height
        self._color = color

    def lines(self) -> list[str]:
        chart, figure = self._chart, self._plotext.figure
        # The library has one figure for the whole process; nothing of it may be left from the chart before.
        self._plotext.terminal.limit(False, False)
        figure.clear()
        figure.theme("colorless")
        figure.canvas("default")
        figure.legend(False)
        figure.plot_size(self._width, self._height)
        x_range, y_range = self._ranges()
        # Limits lie behind the series.
        for limit, marker in zip(chart.limits, itertools.cycle(_LIMIT_MARKERS)):
            if (at := self._place_y(limit.value)) is not None:
                self._add(x_range, (at, at), marker, _LIMIT_COLOUR, joined=True)
        for number, series in enumerate(chart.series):
            for x, y in self._strokes(series):
                self._add(x, y, self._marker(number), self._colour(number), joined=series.kind != "points")
        if chart.time_x:
            x_ticks = _time_ticks(*x_range, self._width // 16)
        else:
            x_ticks = _ticks(*x_range, self._width // 12, log=chart.log_x, whole=chart.whole_x)
        y_ticks = _ticks(*y_range, self._height // 3, log=chart.log_y)
        for axis, (low, high), ticks in (("x", x_range, x_ticks), ("y", y_range, y_ticks)):
            figure.ruler(axis).lim(low, high)
            figure.ruler(axis).ticks([place for place, _ in ticks], [label for _, label in ticks])
        text: str = figure.build().string(colorless=not self._color)
        return text.splitlines()

    def legend(self) -> list[str]:
        """Returns what the characters mean, as many as fit in a line."""
        entries = [
            (self._in_legend(number), series.label, self._colour(number))
            for number, series in enumerate(self._chart.series)
        ]
        limits = zip(self._chart.limits, itertools.cycle(_LIMIT_MARKERS))
        entries += [(marker * 2, limit.label, _LIMIT_COLOUR) for limit, marker in limits]
        lines, used = [""], 0
        for marker, label, colour in entries:
            label = textwrap.shorten(label, self._width - 6, placeholder="…")
            size = len(marker) + 1 + len(label)
            if used and used + 3 + size > self._width:
                lines.append("")
                used = 0
            gap = "   " if used else ""
            lines[-1] += f"{gap}{self._coloured(marker, colour)} {label}"
            used += len(gap) + size
        return lines if entries else []

    def _add(self, x: Sequence[float], y: Sequence[float], marker: str, colour: str, *, joined: bool) -> None:
        figure, pixel = self._plotext.figure, self._plotext.pixel(_rgb(colour))
        signal = figure.signal(list(x), list(y), marker=self._plotext.marker(marker, pixel))
        figure.draw(signal.lines(joined))

    def _coloured(self, text: str, colour: str) -> str:
        pixel = self._plotext.pixel(_rgb(colour))
        colorized: str = self._plotext.colorize(text, pixel).string(colorless=not self._color)
        return colorized

    def _strokes(self, series: Series) -> Iterator[tuple[list[float], list[float]]]:
        """Gives a series piece by piece, cut at its gaps; of a band both of its edges."""
        for edge in (series.y, series.upper) if series.kind == "band" else (series.y,):
            xs: list[float] = []
            ys: list[float] = []
            for x, y in zip(map(self._place_x, series.x), map(self._place_y, edge), strict=True):
                if x is None or y is None:
                    if xs:
                        yield xs, ys
                    xs, ys = [], []
                    continue
                if xs and series.kind == "steps":
                    xs.append(x)
                    ys.append(ys[-1])
                xs.append(x)
                ys.append(y)
            if xs:
                yield xs, ys

    def _ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        chart = self._chart
        xs = [place for series in chart.series for x in series.x if (place := self._place_x(x)) is not None]
        edges = [edge for series in chart.series for edge in (series.y, series.upper)]
        values = [value for edge in edges for value in edge] + [limit.value for limit in chart.limits]
        ys = [place for value in values if (place := self._place_y(value)) is not None]
        y_range = _around([0.0, *ys] if chart.zero_y else ys)
        return _around(xs, time=chart.time_x), y_range

    def _place_x(self, value: float) -> float | None:
        return _place(value, log=self._chart.log_x)

    def _place_y(self, value: float) -> float | None:
        return _place(value, log=self._chart.log_y)

    def _marker(self, number: int) -> str:
        series = self._chart.series[number]
        if self._color and series.kind != "points":
            return "braille"
        if series.mark:
            return _MARKS[series.mark][1]
        characters = _TEXT_POINTS if series.kind == "points" else _TEXT_LINES
        return characters[number % len(characters)]

    def _in_legend(self, number: int) -> str:
        marker = self._marker(number)
        return "⠒⠒" if marker == "braille" else marker

    def _colour(self, number: int) -> str:
        mark = self._chart.series[number].mark
        colour = _MARKS[mark][0] if mark else _COLOURS[number % len(_COLOURS)]
        # Black is not seen on a dark terminal.
        return "#BBBBBB" if colour == "#000000" else colour


def _x_label(chart: Chart) -> str:
    return chart.x_label or ("time (UTC)" if chart.time_x else "")


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _or_gap(value: float, *, log: bool) -> float:
    return math.nan if _place(value, log=log) is None else value


def _place(value: float, *, log: bool) -> float | None:
    """Returns where a value lies on an axis; None for a gap."""
    if not math.isfinite(value) or (log and value <= 0):
        return None
    return math.log10(value) if log else float(value)


def _around(places: Sequence[float], *, time: bool = False) -> tuple[float, float]:
    """Returns the range of an axis: what is on it and a little more; time ends where the series end."""
    if not places:
        return 0.0, 1.0
    low, high = min(places), max(places)
    if low == high:
        room = max(abs(low) * 0.1, 0.1)
        return low - room, high + room
    room = 0.0 if time else (high - low) * 0.05
    # Nothing is below 0 where nothing was.
    return (0.0 if 0 <= low < room else low - room), high + room


def _ticks(low: float, high: float, most: int, *, log: bool, whole: bool = False) -> list[tuple[float, str]]:
    if log:
        ticks = _log_ticks(10**low, 10**high)
        while len(ticks) > max(2, most):
            ticks = ticks[::2]
        return [(math.log10(value), _number(value)) for value in ticks]
    step = _nice((high - low) / max(2, most))
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step)
    return [(number * step, _number(number * step)) for number in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Returns powers of ten between two numbers, or finer ones where there are few."""
    for leading in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [digit * 10.0**power for power in powers for digit in leading]
        found = [tick for tick in ticks if low <= tick <= high]
        if len(found) >= 3:
            return found
    return [tick for tick in (low, high) if tick > 0]


def _time_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    wanted = (high - low) / max(2, most)
    step = next((step for step in _STEPS_OF_TIME if step >= wanted), _STEPS_OF_TIME[-1])
    if step < 60:
        form = "%H:%M:%S"
    elif step < 86_400:
        form = "%H:%M" if high - low < 86_400 else "%d %b %H:%M"
    else:
        form = "%d %b %Y"
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [(number * step, datetime.fromtimestamp(number * step, UTC).strftime(form)) for number in numbers]


def _nice(step: float) -> float:
    """Returns the next of 1, 2, 5, 10, 20 … that is not below."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))


def _number(value: float) -> str:
    return f"{value:,.6g}"
