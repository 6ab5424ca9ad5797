"""Who evaluates, and what the newest evaluation said of each model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from modelfleetd.kit.db import Connection, Database
from modelfleetd.kit.failpoint import passing
from modelfleetd.stability.domain.availability import Availability, AvailabilityState, Interval, Report
from modelfleetd.stability.domain.criteria import Limits
from modelfleetd.stability.domain.estimates import Estimate, State
from modelfleetd.stability.domain.fleet import Metric
from modelfleetd.stability.domain.judging import WindowVerdict
from modelfleetd.stability.domain.maturity import micros, minute_of, moment_of
from modelfleetd.stability.domain.standing import ModelState, Standing
from modelfleetd.stability.domain.window_verdict import Demand, Reason, Stability

_STATE = "SELECT minute, revision, holder, expire_time <= now() AS is_free FROM evaluation"
_CLAIM = """
UPDATE evaluation SET
    fence = fence + CASE WHEN holder = $1 AND expire_time > now() THEN 0 ELSE 1 END,
    holder = $1, expire_time = now() + make_interval(secs => $2)
WHERE (holder = $1 OR expire_time <= now()) AND coalesce(minute < $3, true)
RETURNING fence
"""
# A transaction may have been stopped after it began: the clock is asked, not the transaction.
_CONCLUDE = """
UPDATE evaluation SET minute = $3, revision = $4
WHERE holder = $1 AND fence = $2 AND expire_time > clock_timestamp() AND coalesce(minute < $3, true)
RETURNING true
"""
_RESIGN = "UPDATE evaluation SET expire_time = now() WHERE holder = $1 AND expire_time > now()"
_KEEP = """
INSERT INTO standings (model, minute, standing)
SELECT model, $1, standing FROM unnest($2::text[], $3::jsonb[]) AS given (model, standing) ORDER BY model COLLATE "C"
ON CONFLICT (model) DO UPDATE SET minute = excluded.minute, standing = excluded.standing
"""
_DROP = "DELETE FROM standings WHERE NOT model = ANY ($1::text[])"
_READ = "SELECT model, standing FROM standings WHERE minute > $1"
_NEVER: Final = -1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the evaluation has come."""

    minute: int | None  # the newest that was evaluated
    revision: int  # of the registry, that it was evaluated by
    holder: str
    is_free: bool  # whoever wants to may take the lease


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to evaluate, until it ends or passes on."""

    holder: str
    fence: int


class Superseded(Exception):
    """The lease has ended, or somebody else has evaluated the minute: nothing may be written."""


async def progress(database: Database) -> Progress:
    """Returns how far the evaluation has come."""
    row = await database.fetchrow(_STATE)
    assert row is not None
    return Progress(row["minute"], row["revision"], row["holder"], row["is_free"])


async def claim(database: Database, holder: str, seconds: float, minute: int) -> Lease | None:
    """Takes or renews the lease to evaluate a minute; None where another holds it or has evaluated that minute.

    Args:
        database: whose clock says when a lease ends.
        holder: this process.
        seconds: how long the lease lasts.
        minute: to evaluate.
    """
    with passing("stability", "commit", "claim"):
        fence = await database.fetchval(_CLAIM, holder, seconds, minute)
    return None if fence is None else Lease(holder, fence)


async def conclude(conn: Connection, lease: Lease, minute: int, revision: int) -> None:
    """Says that a minute is evaluated, first of all in the transaction that writes what was found.

    Raises:
        Superseded: the lease has ended, or somebody else has evaluated the minute.
    """
    if not await conn.fetchval(_CONCLUDE, lease.holder, lease.fence, minute, revision):
        raise Superseded


async def resign(database: Database, holder: str) -> None:
    """Gives the lease back where this process holds it."""
    await database.execute(_RESIGN, holder)


async def keep(conn: Connection, minute: int, changed: Iterable[Standing], serving: Iterable[str]) -> None:
    """Writes standings that have changed, and drops those of models that do not serve any more."""
    rows = [(standing.model, _document(standing)) for standing in changed]
    await conn.execute(_KEEP, minute, [model for model, _ in rows], [document for _, document in rows])
    await conn.execute(_DROP, list(serving))


async def read(database: Database, after: int | None) -> dict[str, Standing]:
    """Returns the standings that have changed after a minute; None: all of them."""
    rows = await database.fetch(_READ, _NEVER if after is None else after)
    return {row["model"]: _standing(row["model"], row["standing"]) for row in rows}


# As JSON: lists in the order of the fields, since there are many and the names would be most of it.


def _document(standing: Standing) -> dict[str, Any]:
    availability = standing.availability
    return {
        "state": standing.state.value,
        "since": minute_of(standing.since),
        "culprit": None if standing.culprit is None else [standing.culprit[0], standing.culprit[1].value],
        "metrics": [_metric_row(metric) for metric in standing.metrics],
        "availability": [
            availability.state.value,
            availability.success_share,
            availability.requests,
            availability.request_rate,
            availability.latency_p99_ms,
            None if availability.observe_time is None else micros(availability.observe_time),
        ],
        "intervals": {region: _interval_row(interval) for region, interval in standing.intervals.items()},
    }


def _standing(model: str, document: Mapping[str, Any]) -> Standing:
    state, share, requests, rate, latency, observed = document["availability"]
    culprit = document["culprit"]
    return Standing(
        model=model,
        state=ModelState(document["state"]),
        since=moment_of(document["since"]),
        culprit=None if culprit is None else (culprit[0], Metric(culprit[1])),
        metrics=tuple(_metric(row) for row in document["metrics"]),
        availability=Availability(
            AvailabilityState(state), share, requests, rate, latency, None if observed is None else _moment(observed)
        ),
        intervals={region: _interval(row) for region, row in document["intervals"].items()},
    )


def _metric_row(metric: WindowVerdict) -> list[Any]:
    estimate, limits, demand = metric.estimate, metric.limits, metric.demand
    return [
        metric.prediction,
        metric.metric.value,
        metric.state.value,
        metric.reason.value,
        estimate.state.value,
        *map(_finite, (estimate.value, estimate.low, estimate.high, limits.low, limits.high)),
        minute_of(metric.start),
        minute_of(metric.end),
        metric.immature,
        metric.label_coverage,
        metric.positives,
        metric.examples,
        demand.min_positives,
        demand.min_label_coverage,
    ]


def _metric(row: list[Any]) -> WindowVerdict:
    prediction, metric, state, reason, known, *numbers = row[:10]
    start, end, immature, coverage, positives, examples, min_positives, min_coverage = row[10:]
    value, low, high, least, most = (math.inf if number is None else number for number in numbers)
    return WindowVerdict(
        prediction,
        Metric(metric),
        Stability(state),
        Reason(reason),
        Estimate(State(known), value, low, high),
        Limits(least, most),
        moment_of(start),
        moment_of(end),
        immature,
        coverage,
        positives,
        examples,
        Demand(min_positives, min_coverage),
    )


def _interval_row(interval: Interval) -> list[Any]:
    report = interval.report
    known = [report.requests, report.errors, report.latency_p99_ms, micros(report.observe_time)]
    return [*known, interval.requests, interval.errors, interval.seconds]


def _interval(row: list[Any]) -> Interval:
    requests, errors, latency, observed, *since = row
    return Interval(Report(requests, errors, latency, _moment(observed)), *since)


def _finite(number: float) -> float | None:
    """JSON knows no infinity."""
    return number if math.isfinite(number) else None


def _moment(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
