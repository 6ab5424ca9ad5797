"""What healthy ranges are asked for, checked when they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.stability.domain.criteria import DeclaredPrediction
from modelfleetd.stability.domain.history import STEP
from modelfleetd.stability.domain.maturity import minute_after, minute_of
from modelfleetd.stability.domain.points import Span
from modelfleetd.stability.domain.range_terms import DEFAULT_PAGES_PER_WEEK
from modelfleetd.stability.domain.retention import TOTALS_5MIN

MOST_HISTORY: Final = timedelta(days=35)
_USUAL_HISTORY: Final = timedelta(days=28)
_MOST_PAGES: Final = 10.0
_NARROWEST, _WIDEST, _STEP = timedelta(minutes=5), timedelta(days=1), timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Wish:
    """What ranges are asked for; zeros and None mean the defaults until `checked` has filled them in."""

    predictions: tuple[str, ...]
    start: datetime | None = None
    end: datetime | None = None
    pages_per_week: float = 0.0
    window: timedelta | None = None

    def checked(
        self, model_type: str, declared: Mapping[str, DeclaredPrediction], now: datetime
    ) -> tuple[Span, float, int, tuple[str, ...]]:
        """Returns the span, the pages a week, the width in minutes (0: any) and the predictions.

        Raises:
            InvalidFields: some cannot be; all of them are named.
        """
        end = now if self.end is None else min(self.end, now)
        start = end - _USUAL_HISTORY if self.start is None else self.start
        found = []
        if start >= end:
            found.append(FieldViolation("start_time", f"must be before the end, {end:%Y-%m-%dT%H:%M:%SZ}"))
        elif end - start > MOST_HISTORY:
            found.append(FieldViolation("start_time", f"must be at most {MOST_HISTORY.days} days before the end"))
        if self.pages_per_week and not 0.0 < self.pages_per_week <= _MOST_PAGES:
            found.append(FieldViolation("pages_per_week", f"must be above 0 and at most {_MOST_PAGES:g}"))
        if self.window is not None and (self.window % _STEP or not _NARROWEST <= self.window <= _WIDEST):
            found.append(FieldViolation("window", "must be a multiple of 5 min, from 5 min to 1 d (300 s to 86400 s)"))
        known = ", ".join(declared)
        found += [
            FieldViolation(f"predictions[{index}]", f"must be one that {model_type} declares: {known}")
            for index, prediction in enumerate(self.predictions)
            if prediction not in declared
        ]
        if found:
            raise InvalidFields(found)
        # Whole steps; and rows of the oldest may be gone already.
        first = max(minute_after(start), TOTALS_5MIN.read_from(now))
        span = Span(-(-first // STEP) * STEP, max(first, minute_of(end)) // STEP * STEP)
        width = 0 if self.window is None else self.window // timedelta(minutes=1)
        wanted = tuple(dict.fromkeys(self.predictions)) or tuple(declared)
        return span, self.pages_per_week or DEFAULT_PAGES_PER_WEEK, width, wanted
