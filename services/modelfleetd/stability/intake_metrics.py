"""What Prometheus is told of stability's intake: rows by method and fate, and how old the newest of them are.

Labels are bounded by the protos: which models are behind, the series say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from modelfleetd.clock import Clock
from modelfleetd.stability.domain.batch import Outcome
from modelfleetd.stability.domain.maturity import MICROS, micros

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_ACCEPTED: Final = "ACCEPTED"


class IntakeMetrics:
    """Figures of rows and batches since the start."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The newest event by kind, in microseconds since 1970.
        self._newest: dict[str, int] = {}
        self._rows: Counter[tuple[str, str]] = Counter()
        self._batches: Counter[tuple[str, str]] = Counter()

    def counted(self, kind: str, outcome: Outcome) -> Outcome:
        """Counts a batch of examples, predictions, labels or statistics; returns its outcome."""
        self._batches[kind, "repeated" if outcome.duplicate else "new"] += 1
        if outcome.newest_event is not None:
            self._newest[kind] = max(outcome.newest_event, self._newest.get(kind, 0))
        if not outcome.duplicate:
            self._rows[kind, _ACCEPTED] += outcome.accepted_rows
            for entry in outcome.rejected:
                self._rows[kind, entry.reason.name] += entry.rows
        return outcome

    def publish(self) -> Callable[[], None]:
        """Has Prometheus told with everything else that this process tells it; returns how to end that."""
        from prometheus_client import REGISTRY

        collector: Any = self
        REGISTRY.register(collector)
        return lambda: REGISTRY.unregister(collector)

    def collect(self) -> Iterator[Metric]:
        """Gives Prometheus the figures, in its terms."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        rows = CounterMetricFamily("modelfleet_stability_rows", "Rows that came in", labels=("kind", "fate"))
        batches = CounterMetricFamily(
            "modelfleet_stability_batches", "Batches that came in", labels=("kind", "novelty")
        )
        for family, figures in ((rows, self._rows), (batches, self._batches)):
            for labels, count in list(figures.items()):
                family.add_metric(labels, count)
            yield family
        lag = GaugeMetricFamily(
            "modelfleet_stability_newest_event_age_seconds",
            "Age of the newest event that was taken since the start; of labels, of the newest label",
            labels=("kind",),
        )
        now = micros(self._clock.now())
        for kind, newest in list(self._newest.items()):
            lag.add_metric((kind,), (now - newest) / MICROS)
        yield lag
