"""Calls from one service to another, and what the client does about servers that fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2

from modelfleet import AsyncClient, Tls, errors
from modelfleet.common.v1 import permission_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from modelfleet.stability.v1 import stability_pb2
from modelfleet.transport import has_request_id, is_repeatable
from modelfleetd.errors import FleetError
from modelfleetd.kit.app import Service
from modelfleetd.kit.auth import Principal, PrincipalKind, Role
from modelfleetd.kit.channel import acting_for
from modelfleetd.kit.roles import RegistryRoles
from modelfleetd.kit.telemetry import within_trace
from tests.kit.fakes import FakeRegistry, build_with
from tests.support.servers import client_of, running
from tests.support.tls import Authority
from tests.support.wait import until

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


class Registry(FakeRegistry):
    """A registry with teams that the test sets, and failures to come."""

    def __init__(self) -> None:
        super().__init__()
        self.teams: list[pb.Team] = []
        self.listed = 0
        self.failures: list[grpc.StatusCode] = []
        self.calls = 0

    async def ListTeams(self, request: pb.ListTeamsRequest, context: Any) -> pb.ListTeamsResponse:
        self.listed += 1
        return pb.ListTeamsResponse(teams=self.teams)

    async def GetTeam(self, request: pb.GetTeamRequest, context: Any) -> pb.Team:
        await self._fail(context)
        return await super().GetTeam(request, context)

    async def CreateTeam(self, request: pb.CreateTeamRequest, context: Any) -> pb.Team:
        await self._fail(context)
        return await super().CreateTeam(request, context)

    async def _fail(self, context: Any) -> None:
        self.calls += 1
        if self.failures:
            await context.abort(self.failures.pop(0), "later")


@pytest.fixture
def registry() -> Registry:
    return Registry()  # type: ignore[abstract]  # the rest is refused


@pytest.fixture
async def upstream(registry: Registry) -> AsyncIterator[Service]:
    async with running("registry", build_with(registry)) as service:
        yield service


async def _serve(registry: Registry) -> tuple[grpc.aio.Server, str]:
    """Starts a bare server: what it aborts with reaches the client as it is."""
    server = grpc.aio.server()
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture
async def bare(registry: Registry) -> AsyncIterator[str]:
    registry._note = lambda request: None  # type: ignore[method-assign]  # no call of the kit's to note
    server, address = await _serve(registry)
    yield address
    await server.stop(0)


async def test_reads_and_calls_with_a_request_id_are_repeated(registry: Registry, bare: str) -> None:
    async with AsyncClient(bare) as client:
        registry.failures = [grpc.StatusCode.UNAVAILABLE] * 2
        assert (await client.registry.get_team(name="teams/a")).name == "teams/a"
        assert registry.calls == 3
        registry.failures = [grpc.StatusCode.UNAVAILABLE] * 2
        assert (await client.registry.create_team(team_id="a", team=pb.Team())).name == "teams/a"
        assert registry.calls == 6


async def test_what_was_refused_is_not_repeated(registry: Registry, bare: str) -> None:
    async with AsyncClient(bare) as client:
        for code, kind in (
            (grpc.StatusCode.ABORTED, errors.Aborted),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhausted),
            (grpc.StatusCode.UNKNOWN, errors.Internal),
        ):
            registry.calls, registry.failures = 0, [code]
            with pytest.raises(kind):
                await client.registry.get_team(name="teams/a")
            assert registry.calls == 1


def test_only_harmless_repetitions_are_declared() -> None:
    methods = stability_pb2.DESCRIPTOR.services_by_name["StabilityService"].methods_by_name
    # A column of request ids is not the id of a request.
    written = [method for method in methods.values() if method.name.startswith("Write")]
    assert written and not any(has_request_id(method) or is_repeatable(method) for method in written)
    registry = pb.DESCRIPTOR.services_by_name["RegistryService"].methods_by_name
    assert is_repeatable(registry["GetTeam"]) and is_repeatable(registry["CreateTeam"])
    assert not is_repeatable(registry["WatchRevisions"]) and not is_repeatable(registry["ReportServing"])


async def test_nobody_there_is_unavailable() -> None:
    async with AsyncClient("127.0.0.1:1", timeout=5) as client:
        with pytest.raises(errors.Unavailable) as caught:
            await client.registry.get_team(name="teams/a")
    assert caught.value.method == "/modelfleet.registry.v1.RegistryService/GetTeam"


async def test_a_client_takes_a_message_or_fields_but_not_both() -> None:
    async with AsyncClient() as client:
        with pytest.raises(TypeError, match="not both"):
            await client.registry.get_team(pb.GetTeamRequest(), name="teams/a")


async def test_services_call_each_other_as_themselves_within_the_trace(registry: Registry, upstream: Service) -> None:
    async def build(service: Service) -> None:
        pass

    async with running("launcher", build, registry_address=upstream.address) as service:
        with within_trace(TRACE, SPAN):
            await service.client.registry.get_team(name="teams/a")
    assert registry.principal is not None
    assert (registry.principal.name, registry.principal.kind) == ("service/launcher", PrincipalKind.SERVICE)
    assert registry.traceparent.split("-")[1] == f"{TRACE:032x}"
    assert registry.principal.on_behalf_of is None


class Passing(FakeRegistry):
    """A service that asks another for everything."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service

    async def GetTeam(self, request: pb.GetTeamRequest, context: Any) -> pb.Team:
        return await self._service.client.registry.get_team(request)

    async def GetModelType(self, request: pb.GetModelTypeRequest, context: Any) -> pb.ModelType:
        await self._service.client.registry.get_team(name="not a name")
        raise AssertionError("unreachable")


async def _build_passing(service: Service) -> None:
    server = service.server()
    passing = Passing(service)  # type: ignore[abstract]
    server.add(passing, registry_pb2_grpc.add_RegistryServiceServicer_to_server)


async def test_what_another_service_refuses_is_passed_on_as_it_said_it(upstream: Service) -> None:
    async with (
        running("capacity", _build_passing, registry_address=upstream.address) as service,
        AsyncClient(service.address) as client,
    ):
        with pytest.raises(errors.NotFound) as missing:
            await client.registry.get_team(name="teams/nope")
        assert missing.value.metadata == {"resource": "teams/nope"}
        # But a call of ours that was wrong is our defect, not the caller's.
        with pytest.raises(errors.Internal):
            await client.registry.get_model_type(name="modelTypes/a")


async def test_onward_calls_keep_the_deadline_and_the_person_behind_them(registry: Registry, upstream: Service) -> None:
    async with (
        running("capacity", _build_passing, registry_address=upstream.address) as service,
        AsyncClient(service.address, principal="alice") as client,
    ):
        await client.registry.get_team(name="teams/a", timeout=3)
        assert registry.remaining is not None and registry.remaining < 3.5
        assert registry.principal is not None
        assert (registry.principal.name, registry.principal.on_behalf_of) == ("service/capacity", "alice")
        with acting_for("bob"):
            await service.client.registry.get_team(name="teams/a")
        assert registry.principal.on_behalf_of == "bob"


async def test_a_service_that_cannot_be_reached_is_named() -> None:
    async with (
        running("capacity", _build_passing, registry_address="127.0.0.1:1") as service,
        AsyncClient(service.address) as client,
    ):
        with pytest.raises(errors.Unavailable) as caught:
            await client.registry.get_team(name="teams/a")
    assert (caught.value.reason, caught.value.metadata) == ("PART_UNAVAILABLE", {"part": "registry"})


def _team(name: str, role: Role, *members: str) -> pb.Team:
    binding = pb.RoleBinding(role=int(role), members=members)  # type: ignore[arg-type]
    return pb.Team(name=name, role_bindings=[binding])


async def test_role_bindings_are_read_from_the_registry_and_kept_for_a_moment(
    registry: Registry, upstream: Service
) -> None:
    alice = Principal("alice", PrincipalKind.PERSON, frozenset({"sre"}))
    registry.teams = [_team("teams/a", Role.OWNER, "alice"), _team("teams/b", Role.ONCALL, "group:sre", "bob")]
    async with client_of(upstream) as client:
        roles = RegistryRoles(client.registry)
        assert await roles.roles(alice, "teams/a") == {Role.OWNER}
        assert await roles.roles(alice, "teams/b") == {Role.ONCALL}
        assert await roles.roles_anywhere(alice) == {Role.OWNER, Role.ONCALL}
        assert await roles.roles(alice, None) == frozenset()
        assert registry.listed == 1
        # A role that was just given counts at once: a denial never rests on old bindings.
        registry.teams = [_team("teams/c", Role.ENGINEER, "alice")]

        async def counts() -> bool:
            return await roles.roles(alice, "teams/c") == {Role.ENGINEER}

        await until(counts, timeout=2)


async def test_the_team_of_a_model_is_its_types(upstream: Service) -> None:
    async with client_of(upstream) as client:
        roles = RegistryRoles(client.registry)
        assert await roles.team_of("teams/a") == "teams/a"
        assert await roles.team_of("modelTypes/x/models/y") == "teams/ranking"
        assert await roles.team_of("launches/x") is None


async def test_without_the_registry_nobody_is_let_in_blindly() -> None:
    async with AsyncClient("127.0.0.1:1", timeout=0.5) as client:
        with pytest.raises(FleetError, match="registry does not answer"):
            await RegistryRoles(client.registry).roles(Principal("a", PrincipalKind.PERSON), "teams/a")


async def test_a_client_follows_certificates_that_are_replaced(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("modelfleet.transport._LOOK_EVERY", 0.0)
    first = Authority(tmp_path)
    cert, key = first.issue("server", spiffe_id="spiffe://cluster.local/modelfleet/registry")
    fake = FakeRegistry()  # type: ignore[abstract]
    settings: dict[str, Any] = {"tls_cert": cert, "tls_key": key, "tls_ca": first.ca}
    async with running("registry", build_with(fake), **settings) as service:
        tls = Tls(first.ca, *first.issue("client", spiffe_id="spiffe://cluster.local/modelfleet/launcher"))
        async with AsyncClient(service.address, tls=tls) as client:
            await client.registry.get_team(name="teams/a")
            assert fake.principal is not None and fake.principal.name == "service/launcher"
            first.issue("client", spiffe_id="spiffe://cluster.local/modelfleet/capacity")
            await client.registry.get_team(name="teams/a")
            assert fake.principal.name == "service/capacity"


def _declare_streams() -> Any:
    """Declares a service whose methods stream requests: none of ours does yet."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/streams.proto",
        package="modelfleet.tests.v1",
        dependency=["modelfleet/registry/v1/registry.proto", "google/protobuf/empty.proto"],
    )
    service = file.service.add(name="Streams")
    for name, both in (("Send", False), ("Exchange", True)):
        method = service.method.add(
            name=name,
            input_type=".modelfleet.registry.v1.GetTeamRequest",
            output_type=".google.protobuf.Empty",
            client_streaming=True,
            server_streaming=both,
        )
        method.options.Extensions[permission_pb2.permission].any_of.append(permission_pb2.VIEWER)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())


class _Streams:
    async def Send(self, requests: Any, context: Any) -> empty_pb2.Empty:
        async for _ in requests:
            pass
        return empty_pb2.Empty()

    async def Exchange(self, requests: Any, context: Any) -> AsyncIterator[empty_pb2.Empty]:
        async for _ in requests:
            yield empty_pb2.Empty()


def _add_streams(servicer: _Streams, server: Any) -> None:
    kinds = {"Send": grpc.stream_unary_rpc_method_handler, "Exchange": grpc.stream_stream_rpc_method_handler}
    handlers = {
        name: make(getattr(servicer, name), pb.GetTeamRequest.FromString, empty_pb2.Empty.SerializeToString)
        for name, make in kinds.items()
    }
    server.add_registered_method_handlers("modelfleet.tests.v1.Streams", handlers)


async def test_each_request_of_a_stream_is_checked() -> None:
    _declare_streams()

    async def build(service: Service) -> None:
        service.server().add(_Streams(), _add_streams)

    async with (
        running("registry", build) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        encode, decode = pb.GetTeamRequest.SerializeToString, empty_pb2.Empty.FromString
        send: Any = channel.stream_unary("/modelfleet.tests.v1.Streams/Send", encode, decode)
        exchange: Any = channel.stream_stream("/modelfleet.tests.v1.Streams/Exchange", encode, decode)
        good = pb.GetTeamRequest(name="teams/a")
        await send(iter([good, good]), timeout=5)
        assert len([answer async for answer in exchange(iter([good, good]), timeout=5)]) == 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await send(iter([good, pb.GetTeamRequest(name="nope")]), timeout=5)
        assert errors.from_rpc_error(caught.value).reason == "INVALID_FIELDS"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in exchange(iter([good, pb.GetTeamRequest()]), timeout=5):
                pass
        assert errors.from_rpc_error(caught.value).reason == "INVALID_FIELDS"


def test_importing_the_client_is_light_and_loads_nothing_of_the_daemons() -> None:
    program = """
import sys, time
import grpc, grpc.aio
start = time.perf_counter()
import modelfleet
print(time.perf_counter() - start)
print([name for name in sys.modules if name.split(".")[0] in
       ("modelfleetd", "numpy", "opentelemetry", "rich", "click", "yaml") or name.startswith("modelfleet.inference")])
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, loaded = answer.stdout.splitlines()
    assert float(seconds) < 0.1
    assert loaded == "[]"
