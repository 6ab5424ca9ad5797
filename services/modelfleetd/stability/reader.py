"""Answers questions about what was written: series."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.clock import Clock
from modelfleetd.errors import invalid
from modelfleetd.stability.domain.criteria import DeclaredPrediction
from modelfleetd.stability.domain.maturity import MINUTE_MICROS, mature_before, micros
from modelfleetd.stability.domain.points import Span, span_between
from modelfleetd.stability.domain.segments import grain
from modelfleetd.stability.domain.series import Asked, Series, make_series
from modelfleetd.stability.store import Store

RESOLUTIONS: Final = (timedelta(minutes=1), timedelta(minutes=5), timedelta(hours=1))
MOST_POINTS: Final = 10_000
# Where no resolution is asked for: as many as somebody looks at.
_FEW_POINTS: Final = 2000


class Reader:
    """Reads statistics and makes metrics of them."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def series(
        self,
        model: str,
        prediction: DeclaredPrediction,
        start: datetime | None,
        end: datetime | None,
        resolution: timedelta | None,
        *,
        confidence: float,
        matured_only: bool,
    ) -> Series:
        """Returns the points of a model's prediction, oldest first, and all of them as one.

        Raises:
            InvalidFields: the span or the resolution is none.
        """
        now = self._clock.now()
        span = span_between(start, end, now)
        minutes = _minutes(resolution, span, now)
        key, window = (model, prediction.id), prediction.attribution_window
        before = mature_before(now, window)
        stored = await self._store.series(*key, span, minutes, before, now)
        delays = await self._store.delays({key: window})
        asked = Asked(
            span,
            minutes,
            before,
            micros(now) / MINUTE_MICROS,
            confidence,
            matured_only=matured_only,
            ignores_missing=prediction.ignores_missing,
        )
        return await asyncio.to_thread(make_series, stored, asked, delays[key])


def _minutes(resolution: timedelta | None, span: Span, now: datetime) -> int:
    """Returns how many minutes wide a point is.

    Raises:
        InvalidFields: there are no such points, or not any more, or too many of them.
    """
    kept, widths = grain(span.start, now), [width // timedelta(minutes=1) for width in RESOLUTIONS]
    minutes = span.end - span.start
    if resolution is None:
        few = [width for width in widths if width >= kept and minutes <= _FEW_POINTS * width]
        return few[0] if few else _checked(widths[-1], minutes)
    if resolution not in RESOLUTIONS:
        raise invalid("resolution", "must be 60 s, 300 s or 3600 s")
    width = resolution // timedelta(minutes=1)
    if width < kept:
        raise invalid("resolution", f"must be at least {kept * 60} s where the span begins: narrower ones are gone")
    return _checked(width, minutes)


def _checked(width: int, minutes: int) -> int:
    if minutes > MOST_POINTS * width and width == RESOLUTIONS[-1] // timedelta(minutes=1):
        most = timedelta(minutes=MOST_POINTS * width)
        raise invalid("start_time", f"must be at most {most.days} days before the end: there are no wider points")
    if minutes > MOST_POINTS * width:
        raise invalid(
            "resolution", f"makes more than {MOST_POINTS:,} points of the span; take a wider one, or ask for less"
        )
    return width
