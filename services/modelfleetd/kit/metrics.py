"""Figures of calls, and the address where Prometheus reads them.

Calls only add to plain numbers; what Prometheus wants is made of them when it asks. Labels are methods and codes, both
bounded by the protos.
"""

from __future__ import annotations

import functools
import gzip
import logging
import socket
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, TypeAlias

from modelfleetd.errors import Code
from modelfleetd.kit.method import Method

if TYPE_CHECKING:
    from prometheus_client.core import Metric

Text: TypeAlias = "Callable[[], bytes]"

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
    """Answers Prometheus over HTTP, in threads of its own."""

    def __init__(self, address: str, metrics: CallMetrics, texts: Sequence[Text] = ()) -> None:
        """Begins to answer.

        Args:
            address: host:port; port 0 takes a free one.
            metrics: of calls.
            texts: more, in Prometheus's text format, each asked whenever Prometheus asks.
        """
        from prometheus_client import REGISTRY

        self._registry = REGISTRY
        self._metrics: Any = metrics
        REGISTRY.register(self._metrics)
        host, _, port = address.rpartition(":")
        handler = functools.partial(_Handler, tuple(texts))
        self._server = _HTTPServer((host.strip("[]") or "127.0.0.1", int(port)), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

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


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class _Handler(BaseHTTPRequestHandler):
    """Gives all metrics on whatever path, as the client library's own server does."""

    def __init__(self, texts: Sequence[Text], *rest: Any) -> None:
        self._texts = texts
        super().__init__(*rest)

    def do_GET(self) -> None:
        from prometheus_client import generate_latest

        body = generate_latest() + b"".join(text() for text in self._texts)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            # Lines resemble each other: the quickest level makes a twentieth of them.
            body = gzip.compress(body, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Scrapes are not worth a line of the log."""
