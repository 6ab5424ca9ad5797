"""What happens around every call: through real channels, with a servicer that needs no database."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY, generate_latest

from modelfleet import AsyncClient, Client, errors
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from modelfleetd.kit.app import Service
from modelfleetd.kit.config import ServiceConfig
from modelfleetd.kit.interceptors.base import Stream, Unary
from modelfleetd.kit.interceptors.pipeline import Pipeline
from modelfleetd.kit.server import Server
from modelfleetd.kit.telemetry import Telemetry, configure_logging
from tests.kit.fakes import FakeRegistry, build_with
from tests.support.servers import channel_to, client_of, running
from tests.support.wait import until


@pytest.fixture
def fake() -> FakeRegistry:
    return FakeRegistry()  # type: ignore[abstract]  # the rest is refused


@pytest.fixture
async def service(fake: FakeRegistry) -> AsyncIterator[Service]:
    async with running("registry", build_with(fake)) as service:
        yield service


@pytest.fixture
async def client(service: Service) -> AsyncIterator[AsyncClient]:
    async with client_of(service) as client:
        yield client


async def test_a_call_reaches_the_servicer_with_identity_deadline_and_trace(
    client: AsyncClient, fake: FakeRegistry
) -> None:
    team = await client.registry.get_team(name="teams/ranking", timeout=7)
    assert team.display_name == "Ranking"
    assert fake.principal is not None and fake.principal.name == "local"
    assert fake.remaining is not None and 5 < fake.remaining < 7.5
    assert fake.traceparent.startswith("00-") and fake.traceparent.endswith("-00")


async def test_a_refusal_arrives_as_a_typed_exception_with_reason_and_metadata(client: AsyncClient) -> None:
    with pytest.raises(errors.NotFound, match="teams/nope does not exist") as caught:
        await client.registry.get_team(name="teams/nope")
    assert caught.value.reason == "RESOURCE_NOT_FOUND"
    assert caught.value.metadata == {"resource": "teams/nope"}


async def test_a_defect_is_answered_generically_and_logged_in_full_without_secrets(
    client: AsyncClient, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("registry", ServiceConfig())
    try:
        with pytest.raises(errors.Internal) as caught:
            await client.registry.get_team(name="teams/broken")
    finally:
        logging.getLogger().handlers.clear()
    assert caught.value.reason == "INTERNAL_ERROR"
    assert "hunter2" not in caught.value.message and "RuntimeError" not in caught.value.message
    entry = next(entry for line in capfd.readouterr().err.splitlines() if "exception" in (entry := json.loads(line)))
    assert entry["trace_id"] == caught.value.trace_id
    assert "RuntimeError" in entry["exception"] and "hunter2" not in json.dumps(entry)


async def test_every_wrong_field_is_named_at_once(client: AsyncClient) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        await client.registry.create_model_type(
            model_type_id="Feed CTR",
            model_type=pb.ModelType(
                regions=["regions/eu", "eu"], predictions=[pb.Prediction()], funnel_stage=pb.SOURCING
            ),
            request_id="1",
        )
    assert {violation.field for violation in caught.value.violations} == {
        "model_type_id",
        "model_type.team",
        "model_type.regions[1]",
        "model_type.predictions[0].id",
        "request_id",
    }
    assert all(violation.description for violation in caught.value.violations)


async def test_damaged_bytes_are_bad_input_and_not_a_defect(service: Service) -> None:
    async with channel_to(service) as channel:
        call: Any = channel.unary_unary("/modelfleet.registry.v1.RegistryService/GetTeam")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff\xff", timeout=5)
    assert errors.from_rpc_error(caught.value).reason == "INVALID_FIELDS"


async def test_an_unknown_method_is_answered_with_a_reason(service: Service) -> None:
    async with channel_to(service) as channel:
        for path in ("/modelfleet.registry.v1.RegistryService/Nope", "/nope.v1.Nope/Nope", "/x"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                call: Any = channel.unary_unary(path)
                await call(b"", timeout=5)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
            assert errors.from_rpc_error(caught.value).reason == "METHOD_UNKNOWN"


async def test_streams_are_checked_and_refused_like_plain_calls(client: AsyncClient, fake: FakeRegistry) -> None:
    answers = client.registry.watch_revisions(after_revision=1)
    assert (await anext(answers)).current_revision == 2
    assert fake.principal is not None and fake.remaining is not None
    await answers.aclose()
    await until(lambda: fake.streams == 0)
    answers = client.registry.watch_revisions(after_revision=13)
    assert (await anext(answers)).current_revision == 14
    with pytest.raises(errors.NotFound, match="revisions/13"):
        await anext(answers)


async def test_a_call_without_deadline_gets_one_and_is_counted(service: Service, fake: FakeRegistry) -> None:
    async with channel_to(service) as channel:
        await registry_pb2_grpc.RegistryServiceStub(channel).GetTeam(pb.GetTeamRequest(name="teams/ranking"))
    assert fake.remaining is not None and 29 < fake.remaining < 30.5
    lines = {metric.name: metric.samples for metric in service.metrics.collect()}
    assert [sample.value for sample in lines["modelfleet_deadlines_missing"]] == [1]


async def test_a_deadline_that_passes_ends_the_work(client: AsyncClient, fake: FakeRegistry) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        await client.registry.get_region(name="regions/eu", timeout=0.1)
    await until(lambda: fake.waiting == 0)


async def test_lists_go_through_all_pages(client: AsyncClient) -> None:
    names = [team.name async for team in client.registry.list_teams_all()]
    assert names == [f"teams/t{index}" for index in range(5)]


async def test_a_missing_request_id_is_filled_in_and_a_given_one_is_kept(client: AsyncClient) -> None:
    team = pb.Team(display_name="Ranking")
    made = await client.registry.create_team(team_id="ranking", team=team)
    assert uuid.UUID(made.uid).version == 4
    request = pb.CreateTeamRequest(team_id="ranking", team=team)
    assert (await client.registry.create_team(request)).uid != made.uid
    assert request.request_id == ""
    given = str(uuid.uuid4())
    assert (await client.registry.create_team(team_id="ranking", team=team, request_id=given)).uid == given


async def test_the_sync_client_is_the_same_without_async(service: Service) -> None:
    def use() -> list[str]:
        with Client(registry=service.address, principal="alice") as client:
            assert client.registry.get_team(name="teams/ranking").display_name == "Ranking"
            with pytest.raises(errors.NotFound):
                client.registry.get_team(name="teams/nope")
            watched = client.registry.watch_revisions(after_revision=1)
            assert next(watched).current_revision == 2
            watched.close()
            return [team.name for team in client.registry.list_teams_all()]

    assert len(await asyncio.to_thread(use)) == 5


async def test_the_limiter_refuses_what_is_too_much_and_recovers(fake: FakeRegistry) -> None:
    build = build_with(fake, expensive=("GetRegion",))
    async with running("registry", build, max_expensive_calls=2) as service, client_of(service) as client:
        calls = [asyncio.create_task(client.registry.get_region(name="regions/eu")) for _ in range(5)]
        await until(lambda: fake.waiting == 2 and sum(call.done() for call in calls) == 3)
        # Others go on meanwhile.
        await client.registry.get_team(name="teams/ranking")
        fake.gate.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, errors.ResourceExhausted)]
        assert len(refused) == 3
        assert {error.reason for error in refused} == {"OVERLOADED"}
        assert refused[0].retry_after == 5.0
        assert (await client.registry.get_region(name="regions/eu")).name == "regions/eu"


async def test_streams_have_a_limit_of_their_own_and_give_their_place_back(fake: FakeRegistry) -> None:
    async with running("registry", build_with(fake), max_streams=1) as service, client_of(service) as client:
        first = client.registry.watch_revisions(after_revision=1)
        await anext(first)
        with pytest.raises(errors.ResourceExhausted):
            await anext(client.registry.watch_revisions(after_revision=1))
        await first.aclose()

        async def again() -> bool:
            try:
                second = client.registry.watch_revisions(after_revision=1)
                await anext(second)
            except errors.ResourceExhausted:
                return False
            await second.aclose()
            return True

        await until(again)


async def test_draining_lets_calls_end_and_says_not_serving(fake: FakeRegistry) -> None:
    service = Service("registry", build_with(fake), ServiceConfig(drain_seconds=5))
    await service.__aenter__()
    async with client_of(service) as client, channel_to(service) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        health = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        statuses = aiter(health)
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.SERVING
        call = asyncio.create_task(client.registry.get_region(name="regions/eu"))
        await until(lambda: fake.waiting == 1)
        stopping = asyncio.create_task(service.__aexit__(None, None, None))
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        health.cancel()
        fake.gate.set()
        assert (await call).name == "regions/eu"
        await stopping


async def test_reflection_lists_the_services(service: Service) -> None:
    messages: Any = reflection_pb2
    request = messages.ServerReflectionRequest(list_services="")
    async with channel_to(service) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]  # stubs know no aio
        async for answer in stub.ServerReflectionInfo(iter([request]), timeout=5):
            names = [found.name for found in answer.list_services_response.service]
    assert "modelfleet.registry.v1.RegistryService" in names


async def test_metrics_are_served_with_bounded_labels(fake: FakeRegistry) -> None:
    async with (
        running("registry", build_with(fake), metrics_listen="127.0.0.1:0") as service,
        client_of(service) as client,
    ):
        await client.registry.get_team(name="teams/ranking")
        with pytest.raises(errors.NotFound):
            await client.registry.get_team(name="teams/nope")
        labels = 'method="GetTeam",service="modelfleet.registry.v1.RegistryService"'
        # A call is counted once it is over, which is after its caller has the answer.
        await until(lambda: f'calls_total{{code="NOT_FOUND",{labels}}} 1.0' in generate_latest(REGISTRY).decode())
        assert f'modelfleet_call_seconds_bucket{{le="+Inf",{labels}}} 2.0' in generate_latest(REGISTRY).decode()


class Recorder:
    """An interceptor that notes when it is passed."""

    def __init__(self, name: str, passed: list[str]) -> None:
        self._name = name
        self._passed = passed

    def unary(self, method: Any, inner: Unary) -> Unary:
        async def recorded(request: Any, context: Any) -> Any:
            self._passed.append(self._name)
            return await inner(request, context)

        return recorded

    def stream(self, method: Any, inner: Stream) -> Stream:
        async def recorded(request: Any, context: Any) -> AsyncIterator[Any]:
            self._passed.append(self._name)
            async for answer in inner(request, context):
                yield answer

        return recorded


async def test_interceptors_are_passed_in_the_order_in_which_they_are_given() -> None:
    passed: list[str] = []
    pipeline = Pipeline([Recorder(name, passed) for name in ("a", "b", "c")], ())

    async def answer(request: Any, context: Any) -> str:
        passed.append("handler")
        return "done"

    handler: Any = grpc.unary_unary_rpc_method_handler(answer)

    async def continuation(details: Any) -> Any:
        return handler

    details = SimpleNamespace(method="/modelfleet.registry.v1.RegistryService/GetTeam")
    wrapped = await pipeline.intercept_service(continuation, details)
    await wrapped.unary_unary(b"", None)
    assert passed == ["a", "b", "c", "handler"]
    assert await pipeline.intercept_service(continuation, details) is wrapped


async def test_the_server_has_its_interceptors_in_the_order_that_the_rules_ask_for() -> None:
    server = Server(ServiceConfig(), telemetry=Telemetry("x", 0.0))
    assert [type(found).__name__.removesuffix("Interceptor") for found in server.interceptors] == [
        "Tracing",
        "Errors",
        "Deadline",
        "Identity",
        "Decoding",
        "Permission",
        "Validation",
        "Limiter",
    ]
