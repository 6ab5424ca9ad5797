"""From which rows a span is summed: the widest that lie in it, in its points and on one side of maturity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from modelfleetd.stability.domain.maturity import minute_of
from modelfleetd.stability.domain.points import Span
from modelfleetd.stability.domain.retention import EXPOSURE, TOTALS_5MIN, TOTALS_HOUR, Table

# The widest first. Rows by minute stand for exposure, positives and rejections.
_TABLES: Final = (TOTALS_HOUR, TOTALS_5MIN, EXPOSURE)
# While labels still come, the younger events are, the faster: what is to come is told from narrow rows.
_YOUNG: Final = ((timedelta(hours=3), 1), (timedelta(hours=24), 5))


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows of one width."""

    table: Table
    span: Span


def grain(minute: int, now: datetime) -> int:
    """Returns how many minutes wide the narrowest rows are that are kept of a minute."""
    return min((table.width for table in _TABLES if minute >= table.read_from(now)), default=_TABLES[0].width)


def mature_rows_before(mature_before: int, now: datetime) -> int:
    """Returns the first minute whose row is not mature, where those before the first one that is not are."""
    return _down(mature_before, grain(mature_before, now))


def segments(span: Span, resolution: int, mature_before: int, now: datetime) -> tuple[Segment, ...]:
    """Returns the rows of a span, oldest first. No row reaches beyond the span.

    Of what is so old that only wide rows are kept, those that lie in the span as a whole count, and those count as
    mature that are so as a whole.

    Args:
        span: what is asked for.
        resolution: minutes of a point, one of the tables' widths; 0: the whole span is one.
        mature_before: the first minute that is not mature.
        now: the time.
    """
    start, end = _up(span.start, grain(span.start, now)), _down(span.end, grain(span.end, now))
    mature = mature_rows_before(mature_before, now)
    widest = resolution or _TABLES[0].width
    young = [(_down(minute_of(now - age), 60), width) for age, width in _YOUNG]
    cuts = sorted({start, end, *(cut for cut in (mature, *(cut for cut, _ in young)) if start < cut < end)})
    found: list[Segment] = []
    for first, last in pairwise(cuts):
        narrowest = min([width for cut, width in young if mature <= first and cut <= first], default=widest)
        limit = min(widest, max(narrowest, grain(first, now)))
        found += _cover(first, last, [table for table in _TABLES if table.width <= limit], now)
    return tuple(found)


def _cover(start: int, end: int, tables: Sequence[Table], now: datetime) -> list[Segment]:
    if start >= end or not tables:
        return []
    table, *narrower = tables
    first, last = _up(max(start, table.read_from(now)), table.width), _down(end, table.width)
    if first >= last:
        return _cover(start, end, narrower, now)
    return [
        *_cover(start, first, narrower, now),
        Segment(table, Span(first, last)),
        *_cover(last, end, narrower, now),
    ]


def _up(minute: int, width: int) -> int:
    return -(-minute // width) * width


def _down(minute: int, width: int) -> int:
    return minute // width * width
