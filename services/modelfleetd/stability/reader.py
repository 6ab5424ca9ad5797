"""Answers questions about what was written: series."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from modelfleetd.clock import Clock
from modelfleetd.errors import invalid
from modelfleetd.stability.domain.criteria import DeclaredPrediction
from modelfleetd.stability.domain.maturity import mature_before
from modelfleetd.stability.domain.points import Evidence, Point, Span, make_point, span_between
from modelfleetd.stability.store import Store

RESOLUTIONS: Final = (timedelta(minutes=1), timedelta(minutes=5), timedelta(hours=1))
MOST_POINTS: Final = 2000


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
    ) -> tuple[list[Point], Point]:
        """Returns the points of a model's prediction, oldest first, and all of them as one.

        Raises:
            InvalidFields: the span or the resolution is none.
        """
        now = self._clock.now()
        span = span_between(start, end, now)
        minutes = _minutes(resolution or RESOLUTIONS[0], span)
        before = mature_before(now, prediction.attribution_window)
        key = (model, prediction.id)
        found = (await self._store.evidence({key: before}, span, now, minutes)).get(key, {})

        def point(part: Span, evidence: Evidence) -> Point:
            return make_point(part, evidence, confidence=confidence, mature_before=before, matured_only=matured_only)

        total = sum(found.values(), Evidence())
        # The first and the last point end where the span does.
        parts = {start: Span(max(start, span.start), min(start + minutes, span.end)) for start in sorted(found)}
        return [point(part, found[start]) for start, part in parts.items()], point(span, total)


def _minutes(resolution: timedelta, span: Span) -> int:
    if resolution not in RESOLUTIONS:
        raise invalid("resolution", "must be 60 s, 300 s or 3600 s")
    minutes = resolution // timedelta(minutes=1)
    if (span.end - span.start) > MOST_POINTS * minutes:
        raise invalid(
            "resolution", f"makes more than {MOST_POINTS} points of the span; take a wider one, or ask for less"
        )
    return minutes
