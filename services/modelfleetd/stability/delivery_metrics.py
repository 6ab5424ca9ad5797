"""What Prometheus is told of the delivery of alerts: whoever relies on alerts must learn it when they reach nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class DeliveryMetrics:
    """Figures of what each Alertmanager was told since the start. Its labels are the hosts that are configured."""

    def __init__(self) -> None:
        self._rounds: Counter[tuple[str, str]] = Counter()
        self._last: dict[str, float] = {}

    def taken(self, alertmanager: str, now: float) -> None:
        """Counts a round in which it took everything over."""
        self._rounds[alertmanager, "taken"] += 1
        self._last[alertmanager] = now

    def failed(self, alertmanager: str) -> None:
        """Counts a round in which it did not."""
        self._rounds[alertmanager, "failed"] += 1

    def publish(self) -> Callable[[], None]:
        """Has Prometheus told with everything else that this process tells it; returns how to end that."""
        from prometheus_client import REGISTRY

        collector: Any = self
        REGISTRY.register(collector)
        return lambda: REGISTRY.unregister(collector)

    def collect(self) -> Iterator[Metric]:
        """Gives Prometheus the figures, in its terms."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        rounds = CounterMetricFamily(
            "modelfleet_stability_alert_deliveries",
            "Rounds in which an Alertmanager was told all that fires",
            labels=("alertmanager", "outcome"),
        )
        for labels, count in list(self._rounds.items()):
            rounds.add_metric(labels, count)
        yield rounds
        last = GaugeMetricFamily(
            "modelfleet_stability_alert_delivery_timestamp_seconds",
            "When an Alertmanager last took over all that fires",
            labels=("alertmanager",),
        )
        for alertmanager, moment in list(self._last.items()):
            last.add_metric((alertmanager,), moment)
        yield last
