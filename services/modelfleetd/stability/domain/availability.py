"""Availability: whether the requests to a model succeed in time, from the counters that its regions' agents report."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.stability.domain.fleet import ServiceLevel

# A report that is older says nothing about now; two that are further apart say nothing about a minute.
FRESH: Final = timedelta(minutes=3)


class AvailabilityState(enum.Enum):
    """Whether requests succeed in time. The numbers are those of the protos, and stored."""

    AVAILABLE = 1
    UNAVAILABLE = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Report:
    """What an agent counted of a model in its region."""

    requests: int  # since the target exists
    errors: int  # of these
    latency_p99_ms: float | None
    observe_time: datetime


@dataclass(frozen=True, slots=True)
class Interval:
    """What came between the last two reports of a region; nothing, over no time, where there is no earlier one."""

    report: Report
    requests: int = 0
    errors: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a model's requests succeed in time, over all regions."""

    state: AvailabilityState = AvailabilityState.UNKNOWN
    success_share: float = 0.0
    requests: int = 0
    request_rate: float = 0.0  # a second
    latency_p99_ms: float | None = None  # of the worst region
    observe_time: datetime | None = None


NOT_OBSERVED: Final = Availability()


def since(known: Interval | None, report: Report) -> Interval:
    """Returns what came since the report before.

    A report that is not newer changes nothing. Counters that have gone back began anew: all that they count is new.

    Args:
        known: what is known of the region; None: nothing.
        report: the newest one.
    """
    if known is None:
        return Interval(report)
    before = known.report
    if report.observe_time <= before.observe_time:
        return known
    passed = report.observe_time - before.observe_time
    if passed > FRESH:
        return Interval(report)
    began_anew = report.requests < before.requests or report.errors < before.errors
    requests = report.requests - (0 if began_anew else before.requests)
    errors = report.errors - (0 if began_anew else before.errors)
    return Interval(report, requests, min(errors, requests), passed / timedelta(seconds=1))


def judged(intervals: Iterable[Interval], level: ServiceLevel, now: datetime) -> Availability:
    """Returns whether a model is available, by the regions whose last report is fresh.

    Args:
        intervals: of its regions.
        level: what its users may expect.
        now: the moment of the judgement.
    """
    fresh = [one for one in intervals if now - one.report.observe_time <= FRESH]
    if not fresh:
        return NOT_OBSERVED
    requests, errors = sum(one.requests for one in fresh), sum(one.errors for one in fresh)
    # A region without requests has a latency of the past.
    latencies = [one.report.latency_p99_ms for one in fresh if one.requests and one.report.latency_p99_ms is not None]
    latency = max(latencies, default=None)
    share = 1.0 - errors / requests if requests else 0.0
    return Availability(
        state=_state(requests, share, latency, level),
        success_share=share,
        requests=requests,
        request_rate=sum(one.requests / one.seconds for one in fresh if one.seconds),
        latency_p99_ms=latency,
        observe_time=max(one.report.observe_time for one in fresh),
    )


def _state(requests: int, share: float, latency: float | None, level: ServiceLevel) -> AvailabilityState:
    if not requests:
        return AvailabilityState.UNKNOWN
    is_late = latency is not None and 0.0 < level.max_latency_p99_ms < latency
    if is_late or share < level.min_success_share:
        return AvailabilityState.UNAVAILABLE
    return AvailabilityState.AVAILABLE
