"""Spans as a collector receives them, and logs without secrets."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta

import grpc.aio
import pytest

from modelfleet import errors
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from modelfleetd.kit.config import ServiceConfig
from modelfleetd.kit.telemetry import SpanEvent, configure_logging, redact, within_trace
from modelfleetd.kit.trace import current_ids
from tests.kit.fakes import FakeRegistry, build_with
from tests.support.otlp import collector
from tests.support.servers import channel_to, client_of, running
from tests.support.wait import until

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
SAMPLED = f"00-{TRACE:032x}-{PARENT:016x}-01"


def _fake() -> FakeRegistry:
    return FakeRegistry()  # type: ignore[abstract]  # the rest is refused


async def test_a_call_continues_its_callers_trace_and_records_how_it_ended() -> None:
    fake = _fake()
    async with (
        collector() as received,
        running("registry", build_with(fake), otlp_endpoint=received.endpoint, trace_ratio=0.0) as service,
        channel_to(service) as channel,
    ):
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        metadata = [("traceparent", SAMPLED)]
        await stub.GetTeam(pb.GetTeamRequest(name="teams/a"), metadata=metadata, timeout=5)
        assert fake.traceparent.startswith(f"00-{TRACE:032x}-") and fake.traceparent.endswith("-01")
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetTeam(pb.GetTeamRequest(name="teams/broken"), metadata=metadata, timeout=5)
        # Not sampled by the caller, or by nobody: no span, but ids all the same.
        await stub.GetTeam(pb.GetTeamRequest(name="teams/a"), metadata=[("traceparent", SAMPLED[:-1] + "0")], timeout=5)
        await stub.GetTeam(pb.GetTeamRequest(name="teams/a"), timeout=5)
        assert fake.traceparent.endswith("-00")
        await service.telemetry.flush()
        await until(lambda: len(received.spans) >= 2)
    assert [span.name for span in received.spans] == ["modelfleet.registry.v1.RegistryService/GetTeam"] * 2
    assert {span.trace_id.hex() for span in received.spans} == {f"{TRACE:032x}"}
    assert {span.parent_span_id.hex() for span in received.spans} == {f"{PARENT:016x}"}
    codes = [
        attribute.value.int_value
        for span in received.spans
        for attribute in span.attributes
        if attribute.key == "rpc.grpc.status_code"
    ]
    assert codes == [0, 13]
    assert received.spans[1].status.code == 2  # ERROR


async def test_the_ratio_decides_where_no_caller_does() -> None:
    async with (
        collector() as received,
        running("registry", build_with(_fake()), otlp_endpoint=received.endpoint, trace_ratio=1.0) as service,
        client_of(service) as client,
    ):
        with pytest.raises(errors.NotFound):
            await client.registry.get_team(name="teams/nope")
        await service.telemetry.flush()
        await until(lambda: received.spans)
    # A refusal is no error of the server's.
    assert received.spans[0].status.code == 0


async def test_spans_are_emitted_with_given_ids_and_true_times() -> None:
    start = datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
    end = start + timedelta(hours=3)
    async with (
        collector() as received,
        running("launcher", build_with(_fake()), otlp_endpoint=received.endpoint) as service,
    ):
        service.telemetry.emit_span(
            "launch",
            trace_id=TRACE,
            span_id=1,
            parent_span_id=None,
            start=start,
            end=end,
            attributes={"launch": "launches/a", "steps": 3},
            events=[SpanEvent("abort", start, {"by": "alice"})],
            links=[(TRACE + 1, 9)],
        )
        service.telemetry.emit_span(
            "step", trace_id=TRACE, span_id=2, parent_span_id=1, start=start, end=end, error="gate failed"
        )
        await service.telemetry.flush()
        await until(lambda: len(received.spans) == 2)
    root, step = received.named("launch")[0], received.named("step")[0]
    assert received.tree() == {"": ["launch"], "launch": ["step"]}
    assert (root.trace_id.hex(), root.span_id.hex()) == (f"{TRACE:032x}", f"{1:016x}")
    assert root.start_time_unix_nano == int(start.timestamp()) * 10**9 + 123456000
    assert root.end_time_unix_nano - root.start_time_unix_nano == 3 * 3600 * 10**9
    assert root.events[0].name == "abort" and root.links[0].span_id.hex() == f"{9:016x}"
    assert step.status.message == "gate failed"


def test_work_that_no_call_is_behind_can_belong_to_a_trace() -> None:
    assert current_ids() is None
    with within_trace(TRACE, PARENT):
        ids = current_ids()
        assert ids is not None and ids.traceparent == SAMPLED
    assert current_ids() is None


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://root:hunter2@db:5432/fleet",
        "postgresql://root:a/b#c@hunter2@db:5432/fleet",
        "postgresql://root:/hunter2@db",
        "PGPASSWORD=hunter2",
        "postgresql://db/fleet?user=root&password=hunter2",
        "client_secret: hunter2",
        "connect failed: password=hunter2 host=db",
        "{'password': 'hunter2'}",
        "authorization: Bearer hunter2",
        "Bearer hunter2",
        'token="hunter2"',
        "api_key=hunter2",
        "secret: hunter2",
        "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----",
        "-----BEGIN EC PRIVATE KEY-----\nhunter2",
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.hunter2",
    ],
)
def test_secrets_are_redacted(text: str) -> None:
    assert "hunter2" not in redact(f"before {text} after")


@pytest.mark.parametrize("text", ["page_token: does not belong", "teams/ranking", "http://host:80/path", "a token"])
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text).split(":")[0] == text.split(":", maxsplit=1)[0]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_logs_carry_trace_ids_and_no_secrets(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("registry", ServiceConfig(log_format=log_format))
        with within_trace(TRACE, PARENT):
            try:
                raise ValueError("password=hunter2")
            except ValueError:
                logging.getLogger("x").exception("connecting to %s", "postgresql://root:hunter2@db/")
    finally:
        root.handlers, root.level = before, level
    said = capsys.readouterr().err
    assert "hunter2" not in said and f"{TRACE:032x}" in said and "ValueError" in said
    if log_format == "json":
        entry = json.loads(said)
        assert entry["level"] == "error" and entry["service"] == "registry"
