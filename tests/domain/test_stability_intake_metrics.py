"""What Prometheus is told of the intake: every row by its fate, and how far behind each kind is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from modelfleetd.clock import ManualClock
from modelfleetd.stability.domain.batch import Outcome
from modelfleetd.stability.domain.columns import Reason, RejectedRows
from modelfleetd.stability.domain.maturity import micros
from modelfleetd.stability.intake_metrics import IntakeMetrics

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


def told(metrics: IntakeMetrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name.removeprefix("modelfleet_stability_"), *sample.labels.values()): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


def test_rows_are_counted_by_fate_once_and_the_newest_event_says_how_far_behind_a_kind_is() -> None:
    clock = ManualClock(NOW)
    metrics = IntakeMetrics(clock)
    rejected = (RejectedRows(Reason.BAD_SCORE, 2, 0), RejectedRows(Reason.BAD_STATISTICS, 1, 5))
    newest, older = micros(NOW - timedelta(seconds=30)), micros(NOW - timedelta(hours=1))
    metrics.counted("examples", Outcome(10, rejected, newest_event=newest))
    metrics.counted("examples", Outcome(5, (), newest_event=older))
    metrics.counted("examples", Outcome(10, rejected, duplicate=True))
    metrics.counted("labels", Outcome(0, (RejectedRows(Reason.TOO_LATE, 3, 0),)))
    clock.set(60)
    assert told(metrics) == {
        ("rows_total", "examples", "ACCEPTED"): 15,
        ("rows_total", "examples", "BAD_SCORE"): 2,
        ("rows_total", "examples", "BAD_STATISTICS"): 1,
        ("rows_total", "labels", "ACCEPTED"): 0,
        ("rows_total", "labels", "TOO_LATE"): 3,
        ("batches_total", "examples", "new"): 2,
        ("batches_total", "examples", "repeated"): 1,
        ("batches_total", "labels", "new"): 1,
        ("newest_event_age_seconds", "examples"): 90,
    }
