"""What was expected of a window, and had come, by each moment of the past, from one lag to the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from modelfleetd.stability.domain.cumulated import Cumulated
from modelfleetd.stability.domain.delays import Delays
from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.maturity import AGE_BOUNDS, MINUTE_MICROS
from modelfleetd.stability.domain.minute_series import MinuteSeries, as_matrix
from modelfleetd.stability.domain.window_kinds import MINUTE, WindowKind, shares_at


def sliding(
    kind: WindowKind, series: MinuteSeries, delays: Delays, moments: Integers, last: int
) -> Iterator[tuple[int, Floats, Floats]]:
    """Yields for each lag what was expected, and had been observed, by each moment of the window that ended then.

    From one lag to the next a window loses its newest minute and gains an older one: in age, not in time, so that both
    are weighed with the share of labels that had come at that age.
    """
    oldest = last + kind.width + 1
    first = int(moments[0]) - oldest
    part = series.between(first, int(moments[-1]) + 1)
    known = part.expected - part.waiting_expected
    come = None if series.arrivals is None else _come(series, first, int(moments[-1]) + 1)
    at_once = part.observed if come is None else np.maximum(part.observed - come[-1], 0.0)
    ages = np.arange(oldest, dtype=np.float64) + 0.5
    shares = shares_at(kind, delays, ages)
    # How many buckets of age are over at each age, and how much of the next: in the last one labels come until the
    # attribution window ends.
    bounds = AGE_BOUNDS / MINUTE_MICROS
    bounds = np.concatenate(([0.0], bounds[bounds < delays.window / MINUTE], [delays.window / MINUTE]))
    places = np.interp(ages, bounds, np.arange(len(bounds)))
    places[ages >= bounds[-1]] = len(AGE_BOUNDS) + 1

    def of_age(age: int) -> tuple[Floats, Floats]:
        """Returns what the minute of this age, at each moment, had expected and observed by then."""
        at = slice(oldest - age, oldest - age + len(moments))
        expected = known[at] + part.waiting_expected[at] * shares[age - 1]
        if come is None:
            return expected, at_once[at]
        whole, share = divmod(float(places[age - 1]), 1.0)
        lower = come[int(whole)][at]
        return expected, at_once[at] + (lower if not share else lower + share * (come[int(whole) + 1][at] - lower))

    complete = min(kind.width, kind.maturity)
    rest = Cumulated(as_matrix(part), kind.width)
    older = (moments - kind.width)[np.newaxis], (moments - complete)[np.newaxis]
    expected, observed = rest.between("expected", *older)[0], rest.between("observed", *older)[0]
    for age in range(1, complete + 1):
        _add((expected, observed), of_age(age))
    # What rounding leaves of a positive that came and went is none, and not a very small one.
    nothing = _RESIDUE * float(part.observed.sum())
    for lag in range(last + 1):
        yield lag, expected, np.where(observed > nothing, observed, 0.0)
        _add((expected, observed), of_age(lag + 1 + kind.width))
        _add((expected, observed), of_age(lag + 1), np.subtract)


_RESIDUE: Final = 1e-10


def _add(totals: tuple[Floats, Floats], addends: tuple[Floats, Floats], operation: np.ufunc = np.add) -> None:
    for total, addend in zip(totals, addends, strict=True):
        operation(total, addend, out=total)


def _come(series: MinuteSeries, start: int, end: int) -> Floats:
    """Returns what had come by the end of each bucket of age, of the minutes of a span: (none and buckets, minutes)."""
    assert series.arrivals is not None
    come = np.zeros((len(AGE_BOUNDS) + 2, end - start))
    low, high = max(start, series.start), min(end, series.end)
    if low < high:
        part = series.arrivals[:, low - series.start : high - series.start]
        np.cumsum(part, axis=0, out=come[1 : len(part) + 1, low - start : high - start])
        come[len(part) + 1 :] = come[len(part)]
    return come
