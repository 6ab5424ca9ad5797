"""Logs and traces. Nothing of OpenTelemetry's SDK is loaded unless a collector is configured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from modelfleetd.errors import Code
from modelfleetd.kit.call import Call, find_call
from modelfleetd.kit.config import ServiceConfig
from modelfleetd.kit.trace import Ids, current_ids, enter_ids

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span

# Codes that are the server's fault: a span of theirs is an error (OpenTelemetry's conventions for gRPC servers).
_SERVER_ERRORS = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS}
)


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened within a span."""

    name: str
    time: datetime
    attributes: Mapping[str, Any]


class Telemetry:
    """Where the spans of one process go."""

    def __init__(self, service: str, ratio: float, processor: SpanProcessor | None = None) -> None:
        self.ratio = ratio
        self._service = service
        self._processor = processor
        self._provider: TracerProvider | None = None
        if processor is not None:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider

            self._resource = Resource.create({"service.name": f"modelfleetd-{service}"})
            self._provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
            self._provider.add_span_processor(processor)

    @classmethod
    def of(cls, service: str, config: ServiceConfig) -> Telemetry:
        """Returns what the configuration asks for."""
        if not config.otlp_endpoint:
            return cls(service, config.trace_ratio)
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(endpoint=config.otlp_endpoint, insecure=config.otlp_endpoint.startswith("http://"))
        return cls(service, config.trace_ratio, BatchSpanProcessor(exporter))

    @property
    def exports(self) -> bool:
        """Whether spans go anywhere."""
        return self._processor is not None

    async def flush(self) -> None:
        """Sends what is still held."""
        if self._processor is not None:
            await asyncio.to_thread(self._processor.force_flush, 5000)

    async def close(self) -> None:
        """Sends what is still held and ends."""
        if self._provider is not None:
            await asyncio.to_thread(self._provider.shutdown)

    def emit_span(
        self,
        name: str,
        *,
        trace_id: int,
        span_id: int,
        parent_span_id: int | None,
        start: datetime,
        end: datetime,
        attributes: Mapping[str, Any] | None = None,
        events: Sequence[SpanEvent] = (),
        links: Sequence[tuple[int, int]] = (),
        error: str | None = None,
    ) -> None:
        """Sends a span that is over, with given ids and its true times: launches outlive the processes that run them.

        Args:
            name: of the span.
            trace_id: of the trace, 128 bits.
            span_id: of the span, 64 bits.
            parent_span_id: of the parent; None for the root.
            start: when it began, aware.
            end: when it ended, aware.
            attributes: of the span.
            events: within it.
            links: trace and span ids of related spans.
            error: what went wrong; None where it went well.
        """
        if self._processor is None:
            return
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import Link, Status, StatusCode

        span = ReadableSpan(
            name=name,
            context=_span_context(trace_id, span_id),
            parent=None if parent_span_id is None else _span_context(trace_id, parent_span_id),
            resource=self._resource,
            attributes=attributes,
            events=[Event(event.name, dict(event.attributes), _nanoseconds(event.time)) for event in events],
            links=[Link(_span_context(*link)) for link in links],
            status=Status(StatusCode.OK) if error is None else Status(StatusCode.ERROR, error),
            start_time=_nanoseconds(start),
            end_time=_nanoseconds(end),
            instrumentation_scope=InstrumentationScope("modelfleetd"),
        )
        self._processor.on_end(span)

    def start_call_span(self, call: Call, parent_span_id: int) -> Span:
        """Starts the span of a sampled call; its span id becomes the call's."""
        assert self._provider is not None
        from opentelemetry.trace import NonRecordingSpan, SpanKind, set_span_in_context

        # Without a parent of the caller's, one that is nowhere recorded makes the SDK keep the call's trace id.
        parent = NonRecordingSpan(_span_context(call.trace_id, parent_span_id or call.span_id))
        method = call.method
        span = self._provider.get_tracer("modelfleetd").start_span(
            f"{method.service}/{method.name}",
            context=set_span_in_context(parent),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": method.service, "rpc.method": method.name},
        )
        call.span_id = span.get_span_context().span_id
        return span

    def end_call_span(self, span: Span, call: Call) -> None:
        """Ends the span of a call with the code that it ended with, and with who called."""
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("rpc.grpc.status_code", int(call.code))
        if call.principal is not None:
            span.set_attribute("enduser.id", call.principal.name)
        if call.code in _SERVER_ERRORS:
            span.set_status(Status(StatusCode.ERROR, call.code.name))
        span.end()


@contextlib.contextmanager
def within_trace(trace_id: int, span_id: int) -> Iterator[None]:
    """Makes onward calls and logs inside part of a trace, below that span: for work that no call is behind."""
    with enter_ids(Ids(trace_id, span_id, sampled=True)):
        yield


def _span_context(trace_id: int, span_id: int) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _nanoseconds(moment: datetime) -> int:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    since = moment - epoch
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


# Whatever looks like a secret, wherever it comes from: passwords in URLs, tokens, private keys.
_SECRETS = re.compile(
    # Up to the last @ of the word: a password that was not encoded may hold anything but a space.
    r"(?P<url>[a-z][a-z0-9+.-]{0,20}://[^\s:/@]{0,200}:)\S+(?=@)"
    r"|(?P<pair>\b(?!\w{0,20}page_token)[\w-]{0,30}(?:password|passwd|secret|token|api[_-]?key|authorization)\b"
    r"['\"]?\s*[=:]\s*['\"]?(?:bearer\s+)?)[^\s'\",;&]+"
    r"|(?P<bearer>\bbearer\s+)[A-Za-z0-9._~+/-]+=*"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.IGNORECASE | re.DOTALL,
)


def redact(text: str) -> str:
    """Returns the text with everything that looks like a secret replaced."""
    return _SECRETS.sub(lambda m: (m["url"] or m["pair"] or m["bearer"] or "") + "[redacted]", text)


class _Formatter(logging.Formatter):
    """One line an entry: JSON for programs, or text for people. Trace ids of the work at hand; no secrets."""

    def __init__(self, service: str, *, as_json: bool) -> None:
        super().__init__()
        self._service = service
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        ids = current_ids()
        if ids is not None:
            entry |= {"trace_id": f"{ids.trace_id:032x}", "span_id": f"{ids.span_id:016x}"}
        call = find_call()
        if call is not None:
            entry["method"] = call.method.path
        if record.exc_info and record.exc_info[0] is not None:
            entry["exception"] = "".join(traceback.format_exception(*record.exc_info))
        if self._as_json:
            # Redacted value by value: a secret may hold quotes that the encoding would hide.
            return json.dumps({key: redact(value) for key, value in entry.items()}, ensure_ascii=False)
        shown = f"{entry['time'][11:23]} {record.levelname:7} {self._service}: {entry['message']}"
        if ids is not None:
            shown += f" [{entry['trace_id']}]"
        return redact("\n".join([shown, entry["exception"]]) if "exception" in entry else shown)


def configure_logging(service: str, config: ServiceConfig) -> None:
    """Sends every log of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(service, as_json=config.log_format != "console"))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler], force=True)
    # They log whole URLs, and those of some receivers are secrets.
    for client in ("httpx", "httpcore"):
        logging.getLogger(client).setLevel(logging.WARNING)
