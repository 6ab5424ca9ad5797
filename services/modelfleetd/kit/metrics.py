"""Figures of calls, and the address where Prometheus reads them.

Calls only add to plain numbers; what Prometheus wants is made of them when it asks. Labels are methods and codes, both
bounded by the protos.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modelfleetd.errors import Code
from modelfleetd.kit.method import Method

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_log = logging.getLogger(__name__)
# Upper ends of the buckets of latency, in seconds.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class MethodFigures:
    """Figures of one method since the start."""

    __slots__ = ("buckets", "calls", "in_flight", "missing_deadlines", "seconds")

    def __init__(self) -> None:
        self.in_flight = 0
        self.calls: dict[Code, int] = {}
        self.buckets = [0] * (len(_BUCKETS) + 1)
        self.seconds = 0.0
        self.missing_deadlines = 0

    def done(self, code: Code, seconds: float) -> None:
        """Counts a call that ended."""
        self.in_flight -= 1
        self.calls[code] = self.calls.get(code, 0) + 1
        self.buckets[bisect_left(_BUCKETS, seconds)] += 1
        self.seconds += seconds


class CallMetrics:
    """Figures of every method of one server."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, str], MethodFigures] = {}

    def of(self, method: Method) -> MethodFigures:
        """Returns the figures of a method; made when first asked for."""
        return self._figures.setdefault((method.service, method.name), MethodFigures())

    def deadline_missing(self, method: Method) -> None:
        """Counts a call that came without a deadline."""
        figures = self.of(method)
        figures.missing_deadlines += 1
        if figures.missing_deadlines == 1:
            _log.warning("%s was called without a deadline", method.path)

    def collect(self) -> Iterator[Metric]:
        """Gives Prometheus the figures, in its terms."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        labels = ("service", "method")
        calls = CounterMetricFamily("modelfleet_calls", "Calls that ended", labels=(*labels, "code"))
        seconds = HistogramMetricFamily("modelfleet_call_seconds", "Latency of calls", labels=labels)
        in_flight = GaugeMetricFamily("modelfleet_calls_in_flight", "Calls under way", labels=labels)
        missing = CounterMetricFamily("modelfleet_deadlines_missing", "Calls without a deadline", labels=labels)
        for key, figures in list(self._figures.items()):
            for code, count in list(figures.calls.items()):
                calls.add_metric((*key, code.name), count)
            total, buckets = 0, []
            for end, count in zip((*_BUCKETS, None), list(figures.buckets), strict=True):
                total += count
                buckets.append(("+Inf" if end is None else str(end), total))
            seconds.add_metric(key, buckets, figures.seconds)
            in_flight.add_metric(key, figures.in_flight)
            missing.add_metric(key, figures.missing_deadlines)
        yield from (calls, seconds, in_flight, missing)


class MetricsServer:
    """Answers Prometheus over HTTP, in a thread of its own."""

    def __init__(self, address: str, metrics: CallMetrics) -> None:
        from prometheus_client import REGISTRY, start_http_server

        self._registry = REGISTRY
        self._metrics: Any = metrics
        REGISTRY.register(self._metrics)
        host, _, port = address.rpartition(":")
        self._server, self._thread = start_http_server(int(port), host.strip("[]") or "127.0.0.1")

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._registry.unregister(self._metrics)
