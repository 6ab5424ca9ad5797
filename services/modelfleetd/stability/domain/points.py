"""Evidence of one model and prediction over a span of event time, and the numbers that are made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.errors import invalid
from modelfleetd.stability.domain.estimates import Estimate, base_rate, calibration, normalized_entropy
from modelfleetd.stability.domain.maturity import minute_after, minute_of, moment_of
from modelfleetd.stability.domain.sums import NOTHING, Sums


@dataclass(frozen=True, slots=True)
class Span:
    """Minutes of event time: from the first, inclusive, to the end, exclusive."""

    start: int
    end: int

    @property
    def start_time(self) -> datetime:
        return moment_of(self.start)

    @property
    def end_time(self) -> datetime:
        return moment_of(self.end)


def span_between(start: datetime | None, end: datetime | None, now: datetime) -> Span:
    """Returns the whole minutes that hold a span: by default the hour before its end, and until now.

    Raises:
        InvalidFields: it ends before it begins.
    """
    end = now if end is None else end
    start = end - timedelta(hours=1) if start is None else start
    if start >= end:
        raise invalid("start_time", f"must be before end_time, {end:%Y-%m-%dT%H:%M:%SZ}")
    return Span(minute_of(start), minute_after(end))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a span, apart by whether labels may still come."""

    matured: Sums = NOTHING
    waiting: Sums = NOTHING
    first_waiting: int | None = None  # the oldest minute with events that wait for labels
    rejected: int = 0
    malformed: int = 0  # of these: rows that cannot be right, unlike duplicates and what came too late
    seen: int = 0  # predictions, also those that do not count without a label

    def __add__(self, other: Evidence) -> Evidence:
        oldest = [minute for minute in (self.first_waiting, other.first_waiting) if minute is not None]
        return Evidence(
            self.matured + other.matured,
            self.waiting + other.waiting,
            min(oldest, default=None),
            self.rejected + other.rejected,
            self.malformed + other.malformed,
            self.seen + other.seen,
        )

    @property
    def total(self) -> Sums:
        return self.matured + self.waiting

    @property
    def examples(self) -> int:
        return self.matured.examples + self.waiting.examples

    def only_matured(self) -> Evidence:
        """Returns the evidence without events that wait for labels."""
        return replace(self, waiting=NOTHING)


NO_EVIDENCE: Final = Evidence()


@dataclass(frozen=True, slots=True)
class Point:
    """The metrics of one model and prediction over one span."""

    start_time: datetime
    end_time: datetime
    calibration: Estimate
    ne: Estimate
    base_rate: Estimate
    mean_prediction: float
    examples: int
    positives: int
    matured_share: float
    rejected_rows: int
    mature: bool


def make_point(span: Span, evidence: Evidence, *, confidence: float, mature_before: int, matured_only: bool) -> Point:
    """Returns the metrics of a span. NE is of matured events always, the rest of all of them unless `matured_only`."""
    counted = evidence.matured if matured_only else evidence.total
    everything = evidence.total.examples
    return Point(
        start_time=span.start_time,
        end_time=span.end_time,
        calibration=calibration(counted, confidence),
        ne=normalized_entropy(evidence.matured, confidence),
        base_rate=base_rate(counted, confidence),
        mean_prediction=counted.expected / counted.weight if counted.weight else 0.0,
        examples=counted.examples,
        positives=counted.positives.n,
        matured_share=evidence.matured.examples / everything if everything else 0.0,
        rejected_rows=evidence.rejected,
        mature=span.end <= mature_before,
    )


def rate_per_second(positives: int, span: Span, until: datetime) -> float:
    """Returns how many positives a second came in the part of the span before a moment."""
    seconds = (min(span.end_time, until) - span.start_time) / timedelta(seconds=1)
    return positives / seconds if seconds > 0 else 0.0
