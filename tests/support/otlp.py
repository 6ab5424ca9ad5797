"""An OpenTelemetry collector in the process of the test: keeps the spans that are sent to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What was received so far."""

    endpoint: str = ""
    spans: list[trace_pb2.Span] = field(default_factory=list)

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[trace_pb2.Span]:
        """Returns the spans of that name, in the order of their begin."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start_time_unix_nano)

    def tree(self) -> dict[str, list[str]]:
        """Returns the names of the children of each span, by the name of the parent; roots are children of ''."""
        names = {span.span_id: span.name for span in self.spans}
        found: dict[str, list[str]] = {}
        for span in sorted(self.spans, key=lambda span: span.start_time_unix_nano):
            found.setdefault(names.get(span.parent_span_id, ""), []).append(span.name)
        return found


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """Runs a collector; `.endpoint` is what services are told as otlp_endpoint."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    received = Collector(f"http://127.0.0.1:{port}")
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(received, server)  # type: ignore[no-untyped-call]
    await server.start()
    try:
        yield received
    finally:
        await server.stop(0)
