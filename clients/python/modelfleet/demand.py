"""Peaks of traffic from files of rates: what `modelfleet capacity demand import` takes for a model type's demand."""

from __future__ import annotations

import csv
import itertools
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction

MAX_ROWS = 5_000_000
COLUMNS = ("time", "region", "qps")


@dataclass(frozen=True, slots=True)
class Peak:
    """The peak of one region.

    Attributes:
        region: regions/{region}.
        qps: the quantile of its rates in the window, in requests a second.
        rows: how many rates the window has.
        first: time of the oldest of them.
        last: time of the newest of them.
    """

    region: str
    qps: float
    rows: int
    first: datetime
    last: datetime


def quantile_of(values: Sequence[float], quantile: float) -> float:
    """Returns a quantile as one of the values: the ceil(q × n)-th smallest, as capacity takes it from Prometheus."""
    return sorted(values)[_rank(len(values), quantile) - 1]


def is_maximum(count: int, quantile: float) -> bool:
    """Whether a quantile below 1 of so many values is but their maximum: there are too few of them for it."""
    return quantile < 1 and _rank(count, quantile) == count


def _rank(count: int, quantile: float) -> int:
    return max(1, math.ceil(Fraction(repr(quantile)) * count))


class _Rates:
    """The rates of one region, in the order of the file."""

    def __init__(self) -> None:
        self.times = array("d")
        self.values = array("d")


def peaks_of(lines: Iterable[str], window: timedelta, quantile: float) -> list[Peak]:
    """Returns the peak of each region of a CSV with the columns time, region and qps, in the order of their names.

    Args:
        lines: of the file; the first one names the columns, in any order, others beside them are passed over.
        window: only rows of this time before the newest row of the file count.
        quantile: of the rates of the rows, in (0, 1].

    Raises:
        ValueError: the file has no such columns, too many rows, a row that is no rate, or a time twice; says where.
    """
    rows = csv.reader(lines)
    header = [name.strip().lower() for name in next(rows, [])]
    if missing := [name for name in COLUMNS if name not in header]:
        raise ValueError(f"line 1: no column {', '.join(missing)}; the first line must name time,region,qps")
    places = [header.index(name) for name in COLUMNS]
    rates: dict[str, _Rates] = {}
    for count, row in enumerate(rows):
        if not row:
            continue
        if count >= MAX_ROWS:
            raise ValueError(f"line {rows.line_num}: more than {MAX_ROWS:,} rows; take a shorter window")
        time, region, qps = _row(row, places, rows.line_num)
        of = rates.setdefault(region, _Rates())
        of.times.append(time)
        of.values.append(qps)
    if not rates:
        raise ValueError("line 2: no rows; expected lines such as 2026-11-24T15:00:00Z,eu,812.5")
    since = max(max(of.times) for of in rates.values()) - window.total_seconds()
    found = (_peak(region, of, since, quantile) for region, of in sorted(rates.items()))
    return [peak for peak in found if peak is not None]


def _row(row: Sequence[str], places: Sequence[int], line: int) -> tuple[float, str, float]:
    if len(row) <= max(places):
        raise ValueError(f"line {line}: {len(row)} values, fewer than the first line names")
    time, region, qps = (row[place].strip() for place in places)
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        raise ValueError(f"line {line}: '{time}' is no time; write 2026-11-24T15:00:00Z") from None
    try:
        rate = float(qps)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"line {line}: '{qps}' is no rate; write requests a second, 0 or more")
    if not region:
        raise ValueError(f"line {line}: no region")
    stamp = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return stamp, region if region.startswith("regions/") else f"regions/{region}", rate


def _peak(region: str, rates: _Rates, since: float, quantile: float) -> Peak | None:
    inside = [(time, value) for time, value in zip(rates.times, rates.values, strict=True) if time > since]
    if not inside:
        return None
    times = sorted(time for time, _ in inside)
    if twice := next((time for time, after in itertools.pairwise(times) if time == after), None):
        moment = datetime.fromtimestamp(twice, UTC)
        raise ValueError(f"{region} has {moment:%Y-%m-%d %H:%M:%S} UTC twice; add up what belongs together")
    return Peak(
        region=region,
        qps=quantile_of([value for _, value in inside], quantile),
        rows=len(inside),
        first=datetime.fromtimestamp(times[0], UTC),
        last=datetime.fromtimestamp(times[-1], UTC),
    )
