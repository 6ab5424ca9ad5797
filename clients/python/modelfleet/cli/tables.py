"""Tables that lose nothing where a terminal is narrow: what must be read or copied whole is never cut."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_GAP, _LEAST_GAP = 2, 1
# Of what stands beneath a row: top, right, bottom, left.
_BENEATH = (0, 0, 0, 2)
# Narrower than this a sentence is a ladder of words, and a name cannot be recognised.
_LEAST_OF_PROSE, _LEAST_OF_NAME = 20, 8
# A part of a name is broken only where it is longer than this.
_MOST_OF_PART = 12
# A name that is too long for its column is broken behind these.
_PARTS = re.compile(r"(?<=[/_\-;,])")
_DAY = len("2026-11-26")
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
_STATE = re.compile(r"[A-Z][A-Z0-9_]+")
_SPACES_OF_PROSE = 3

_STYLES = {
    "SUCCEEDED": "green", "PASS": "green", "HELD": "green", "TRUE": "green", "BASELINE": "green",
    "STABLE": "green", "AVAILABLE": "green",
    "FAILED": "red", "FAIL": "red", "ERROR": "red", "UNSTABLE": "red", "UNAVAILABLE": "red",
    "ROLLED_BACK": "yellow", "ROLLING_BACK": "yellow", "CANCELLED": "yellow", "INCONCLUSIVE": "yellow",
    "EXPIRED": "yellow", "UNKNOWN": "yellow",
    "STARTING": "cyan", "CERTIFYING": "cyan",
    "SHIFTING": "cyan", "PREPARING": "cyan", "FINALIZING": "cyan", "ESTIMATING": "cyan", "SEARCHING": "cyan",
}  # fmt: skip


class _Kind(IntEnum):
    """What a column holds; the higher kinds give room first."""

    WHOLE = 0
    NAME = 1
    TIME = 2
    PROSE = 3


@dataclass(frozen=True, slots=True)
class _Column:
    """A column with the widths that it would like to have and may be brought down to."""

    header: str
    cells: Sequence[str]
    kind: _Kind
    is_numeric: bool
    is_time: bool
    natural: int
    least: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a table is drawn: columns with their widths and the gap between them, and what stands beneath each row."""

    columns: Sequence[_Column]
    widths: Sequence[int]
    gap: int
    beneath: _Column | None = None


class FittedTable:
    """A table without frame; numbers to the right, states in their colour.

    Its first column, numbers and states always stand whole in one line. Where there is too little room, sentences wrap
    first, then times between day and hour, then names. Where that is not enough, sentences in the last column go
    beneath their rows, and at last each row becomes a block with a line for each of its values. A column without a
    header adorns the others: it goes where there is no room for it.
    """

    def __init__(self, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        listed = [list(row) for row in rows]
        self._number = len(listed)
        self._columns = [_column(index, header, listed, len(headers)) for index, header in enumerate(headers)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws itself in the room there is."""
        columns = self._columns
        if _taken([column.natural for column in columns], _GAP) > options.max_width:
            columns = [column for column in columns if column.header]
        layout = _layout(columns, options.max_width)
        if layout is None:
            yield from _blocks(columns, self._number)
        elif layout.beneath is None:
            yield _lines(layout, range(self._number))
        else:
            yield from _pairs(layout, layout.beneath, self._number)
        # Elsewhere programs read it, to which a line more would be a row.
        if console.is_terminal and any(column.is_time for column in columns):
            yield Text("Times are in UTC.", style="dim")


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """What is known of one thing, a line each; those that are empty are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        if value:
            grid.add_row(label, _text(value))
    return grid


def _layout(columns: Sequence[_Column], room: int) -> _Layout | None:
    """Returns the best layout that fits; None where only blocks do."""
    widths = _widths(columns, room, _GAP)
    if widths is not None:
        return _Layout(columns, widths, _GAP)
    *others, last = columns
    kept, beneath = (others, last) if others and last.kind is _Kind.PROSE else (columns, None)
    for gap in (_GAP, _LEAST_GAP):
        widths = _widths(kept, room, gap)
        if widths is not None:
            return _Layout(kept, widths, gap, beneath)
    return None


def _lines(layout: _Layout, rows: Iterable[int], *, with_header: bool = True) -> Table:
    """A line a row, or more where a cell wraps."""
    result = Table(
        box=None, header_style="bold", pad_edge=False, padding=(0, layout.gap, 0, 0), show_header=with_header
    )
    for column, width in zip(layout.columns, layout.widths, strict=True):
        result.add_column(column.header, justify="right" if column.is_numeric else "left", overflow="fold", width=width)
    for row in rows:
        cells = zip(layout.columns, layout.widths, strict=True)
        result.add_row(*(_text(column.cells[row], width) for column, width in cells))
    return result


def _pairs(layout: _Layout, beneath: _Column, number: int) -> RenderResult:
    """A row, and indented beneath it what is said of it."""
    yield _lines(layout, ())
    yield Padding(Text(beneath.header, style="bold"), _BENEATH)
    for row in range(number):
        yield _lines(layout, [row], with_header=False)
        if beneath.cells[row]:
            yield Padding(Text(beneath.cells[row], overflow="fold"), _BENEATH)


def _blocks(columns: Sequence[_Column], number: int) -> RenderResult:
    """A line a value, an empty line between rows."""
    for row in range(number):
        if row:
            yield Text("")
        yield facts((column.header, column.cells[row]) for column in columns)


def _column(index: int, header: str, rows: Sequence[Sequence[str]], columns: int) -> _Column:
    cells = [row[index] for row in rows]
    is_numeric = bool(cells) and all(map(_is_number, cells))
    kind = _Kind.WHOLE if index == 0 or is_numeric else _kind(cells, is_last=index == columns - 1)
    natural = max((_width(cell) for cell in (header, *cells)), default=0)
    # A header may wrap between its words and no further.
    word = max(map(cell_len, header.split()), default=0)
    least = {
        _Kind.WHOLE: max(word, *map(_width, cells), 0),
        _Kind.NAME: max(word, _LEAST_OF_NAME, min(_MOST_OF_PART, _longest_part(cells))),
        _Kind.TIME: max(word, _DAY),
        _Kind.PROSE: max(word, _LEAST_OF_PROSE),
    }[kind]
    return _Column(header, cells, kind, is_numeric, _are(_TIME, cells), natural, min(natural, least))


def _kind(cells: Sequence[str], *, is_last: bool) -> _Kind:
    if _are(_TIME, cells):
        return _Kind.TIME
    # An empty column has nothing to give either.
    if _are(_STATE, cells) or not any(cells):
        return _Kind.WHOLE
    # What ends a row may be a sentence, unless it is too short to be one: `3.4s`.
    is_prose = (is_last and max(map(_width, cells)) > _LEAST_OF_PROSE) or any(
        cell.count(" ") >= _SPACES_OF_PROSE for cell in cells
    )
    return _Kind.PROSE if is_prose else _Kind.NAME


def _are(shape: re.Pattern[str], cells: Sequence[str]) -> bool:
    """Whether all that is stated, and something is, has a shape."""
    stated = [cell for cell in cells if cell]
    return bool(stated) and all(map(shape.fullmatch, stated))


def _widths(columns: Sequence[_Column], room: int, gap: int) -> list[int] | None:
    """Returns how wide each column is; None where not even the least of all fits."""
    widths = [column.natural for column in columns]
    # At last also columns that stay whole give what only their headers take.
    for kind in sorted(_Kind, reverse=True):
        giving = [index for index, column in enumerate(columns) if column.kind is kind]
        left = room - _taken(widths, gap) + sum(widths[index] for index in giving)
        capped = _capped([widths[index] for index in giving], [columns[index].least for index in giving], left)
        for index, width in zip(giving, capped, strict=True):
            widths[index] = width
    return widths if _taken(widths, gap) <= room else None


def _capped(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """The widest give first: none is wider than a common cap that makes them fit, or narrower than it may be."""

    def under(cap: int) -> list[int]:
        return [min(width, max(cap, floor)) for width, floor in zip(widths, least, strict=True)]

    caps = range(max(widths, default=0) + 1)
    return under(bisect.bisect_right(caps, room, key=lambda cap: sum(under(cap))) - 1)


def _taken(widths: Sequence[int], gap: int) -> int:
    """What columns take with the gaps between them."""
    return sum(widths) + gap * (len(widths) - 1)


def _width(cell: str) -> int:
    return max(map(cell_len, cell.splitlines()), default=0)


def _text(value: str, width: int | None = None) -> Text:
    return Text(value if width is None else _broken(value, width), style=_STYLES.get(value, ""))


def _longest_part(cells: Sequence[str]) -> int:
    return max((cell_len(part) for cell in cells for word in cell.split() for part in _PARTS.split(word)), default=0)


def _broken(value: str, width: int) -> str:
    """A cell in which names that do not fit a line are broken between their parts, as far as these fit."""
    return re.sub(r"\S+", lambda found: _in_parts(found[0], width), value)


def _in_parts(word: str, width: int) -> str:
    if cell_len(word) <= width:
        return word
    lines = [""]
    for part in _PARTS.split(word):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _is_number(value: str) -> bool:
    return not value or value.replace(".", "").replace("%", "").replace(",", "").replace("-", "").strip().isdigit()
