"""Who may call what: asserted names, certificates, tokens, and the rules that the protos declare."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from modelfleet import AsyncClient, Tls, errors
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from modelfleetd.kit.app import Service, run_service
from modelfleetd.kit.auth import PrincipalKind, Role
from modelfleetd.kit.config import ServiceConfig, is_loopback
from modelfleetd.kit.server import Server
from modelfleetd.kit.telemetry import Telemetry
from tests.kit.fakes import FakeRegistry, FakeRoles, build_with
from tests.support.servers import channel_to, client_of, running
from tests.support.tls import Authority, Issuer
from tests.support.wait import until

RANKING = "modelTypes/ranking_ctr"


@pytest.fixture
def fake() -> FakeRegistry:
    return FakeRegistry()  # type: ignore[abstract]  # the rest is refused


@pytest.fixture
def roles() -> FakeRoles:
    return FakeRoles(
        {
            ("olga", "teams/ranking"): {Role.OWNER},
            ("emil", "teams/ranking"): {Role.ENGINEER},
            ("emma", "teams/other"): {Role.ENGINEER},
            ("group:owners", "teams/ranking"): {Role.OWNER},
            ("ona", "teams/other"): {Role.OWNER},
        }
    )


@pytest.fixture
async def service(fake: FakeRegistry, roles: FakeRoles) -> AsyncIterator[Service]:
    async with running("registry", build_with(fake, roles), admins=("ada",)) as service:
        yield service


@pytest.fixture
def secured(tmp_path: Path) -> dict[str, Any]:
    """Configuration of a service with certificates."""
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", spiffe_id="spiffe://cluster.local/modelfleet/registry")
    return {"tls_cert": cert, "tls_key": key, "tls_ca": authority.ca, "authority": authority}


async def _update(service: Service, principal: str | None) -> None:
    async with client_of(service, principal=principal) as client:
        await client.registry.update_model_type(model_type=pb.ModelType(name=RANKING, purpose="x"))


async def _delete(service: Service, principal: str, name: str) -> None:
    async with client_of(service, principal=principal) as client:
        await client.registry.delete_model_type(name=name)


@pytest.mark.parametrize("principal", [None, "olga", "emil", "ada"])
async def test_who_has_the_role_on_the_team_may(service: Service, principal: str | None) -> None:
    await _update(service, principal)


@pytest.mark.parametrize("principal", ["emma", "nobody", "service/launcher"])
async def test_who_lacks_the_role_on_the_team_may_not(service: Service, principal: str, fake: FakeRegistry) -> None:
    with pytest.raises(errors.PermissionDenied) as caught:
        await _update(service, principal)
    assert caught.value.metadata == {
        "principal": principal,
        "method": "UpdateModelType",
        "team": "teams/ranking",
        "needed_roles": "ENGINEER, OWNER",
    }
    assert fake.request is None


async def test_another_role_on_the_team_does_not_suffice(service: Service) -> None:
    with pytest.raises(errors.PermissionDenied):
        await _delete(service, "emil", RANKING)


async def test_what_does_not_exist_is_only_told_to_those_who_could_act_on_it(service: Service) -> None:
    with pytest.raises(errors.NotFound):
        await _delete(service, "ona", "modelTypes/nope")
    with pytest.raises(errors.PermissionDenied):
        await _delete(service, "emma", "modelTypes/nope")


async def test_a_rule_without_resource_needs_the_role_everywhere(service: Service) -> None:
    team = pb.Team(display_name="New")
    async with client_of(service, principal="ada") as client:
        await client.registry.create_team(team_id="new", team=team)
    async with client_of(service, principal="olga") as client:
        with pytest.raises(errors.PermissionDenied):
            await client.registry.create_team(team_id="new", team=team)


async def test_everybody_on_loopback_may_read(service: Service, fake: FakeRegistry) -> None:
    async with client_of(service, principal="nobody") as client:
        await client.registry.get_team(name="teams/ranking")
    assert fake.principal is not None
    assert (fake.principal.name, fake.principal.asserted) == ("nobody", True)


async def test_malformed_names_are_no_identity(service: Service) -> None:
    async with client_of(service, principal="not a name!") as client:
        with pytest.raises(errors.Unauthenticated):
            await client.registry.get_team(name="teams/ranking")


async def test_only_services_act_on_behalf_of_somebody(service: Service, fake: FakeRegistry) -> None:
    async with channel_to(service) as channel:
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        request = pb.GetTeamRequest(name="teams/ranking")
        metadata = [("x-modelfleet-principal", "service/launcher"), ("x-modelfleet-on-behalf-of", "alice")]
        await stub.GetTeam(request, metadata=metadata, timeout=5)
        assert fake.principal is not None
        assert (fake.principal.kind, fake.principal.on_behalf_of) == (PrincipalKind.SERVICE, "alice")
        metadata[0] = ("x-modelfleet-principal", "bob")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetTeam(request, metadata=metadata, timeout=5)
    assert errors.from_rpc_error(caught.value).reason == "DELEGATION_DENIED"


async def test_a_certificate_says_who_calls(fake: FakeRegistry, secured: dict[str, Any]) -> None:
    authority: Authority = secured.pop("authority")
    async with running("registry", build_with(fake), **secured) as service:
        cert, key = authority.issue("launcher", spiffe_id="spiffe://cluster.local/modelfleet/launcher")
        async with AsyncClient(service.address, tls=Tls(authority.ca, cert, key)) as client:
            await client.registry.get_team(name="teams/ranking")
            assert fake.principal is not None
            assert fake.principal.name == "service/launcher" and not fake.principal.asserted
            assert Role.SERVICE in fake.principal.roles_everywhere
        # Of another trust domain: known to the authority, unknown to us.
        cert, key = authority.issue("stranger", spiffe_id="spiffe://elsewhere/modelfleet/launcher")
        async with AsyncClient(service.address, tls=Tls(authority.ca, cert, key)) as client:
            with pytest.raises(errors.Unauthenticated):
                await client.registry.get_team(name="teams/ranking")
        # An asserted name counts for nothing.
        async with AsyncClient(service.address, tls=Tls(authority.ca, cert, key), principal="ada") as client:
            with pytest.raises(errors.Unauthenticated):
                await client.registry.get_team(name="teams/ranking")
        # No certificate: not even a connection.
        async with AsyncClient(service.address, tls=Tls(authority.ca), timeout=2) as client:
            with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
                await client.registry.get_team(name="teams/ranking")


async def test_certificates_are_reloaded_while_running(
    fake: FakeRegistry, secured: dict[str, Any], tmp_path: Path
) -> None:
    old: Authority = secured.pop("authority")
    cert, key = old.issue("client", spiffe_id="spiffe://cluster.local/modelfleet/launcher")
    (tmp_path / "new").mkdir()
    new = Authority(tmp_path / "new")

    async def works(service: Service, tls: Tls) -> bool:
        async with AsyncClient(service.address, tls=tls, timeout=2) as client:
            try:
                await client.registry.get_team(name="teams/ranking")
            except (errors.Unavailable, errors.DeadlineExceeded):
                return False
            return True

    async with running("registry", build_with(fake), **secured) as service:
        assert await works(service, Tls(old.ca, cert, key))
        # The same files, from another authority.
        served = Authority(tmp_path, "ca")
        served.issue("server", spiffe_id="spiffe://cluster.local/modelfleet/registry")
        cert, key = served.issue("client", spiffe_id="spiffe://cluster.local/modelfleet/launcher")
        await until(lambda: works(service, Tls(served.ca, cert, key)))
        assert not await works(service, Tls(new.ca, *new.issue("client")))


@pytest.mark.parametrize("broken", ["tls_cert", "tls_key", "tls_ca"])
async def test_a_server_whose_files_are_no_certificates_says_which(secured: dict[str, Any], broken: str) -> None:
    del secured["authority"]
    Path(secured[broken]).write_text("no PEM")
    with pytest.raises(ValueError, match=secured[broken]):
        async with running("registry", build_with(FakeRegistry()), **secured):  # type: ignore[abstract]
            raise AssertionError("unreachable")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_a_token_says_who_calls(fake: FakeRegistry, roles: FakeRoles, tmp_path: Path, algorithm: str) -> None:
    issuer = Issuer(tmp_path, algorithm=algorithm)
    other = Issuer(tmp_path / ".." / tmp_path.name, algorithm=algorithm)
    settings: dict[str, Any] = {"jwt_jwks": issuer.jwks, "jwt_issuer": issuer.url, "admins": ("group:sre",)}
    issuer.rotate()
    async with running("registry", build_with(fake, roles), **settings) as service:

        async def call(token: str | Callable[[], str] | None) -> None:
            async with client_of(service, token=token) as client:
                await client.registry.update_model_type(model_type=pb.ModelType(name=RANKING, purpose="x"))

        await call(issuer.token("olga"))
        assert fake.principal is not None and not fake.principal.asserted
        await call(lambda: issuer.token("zoe", groups=("owners",)))
        await call(issuer.token("zoe", groups=("sre",)))
        with pytest.raises(errors.PermissionDenied):
            await call(issuer.token("zoe"))
        for bad in (
            None,
            "garbage",
            issuer.token("olga", lives=-60),
            issuer.token("olga", aud="another"),
            issuer.token("olga", iss="https://elsewhere.test"),
            issuer.token("service/launcher"),
            other.token("olga"),
        ):
            with pytest.raises(errors.Unauthenticated):
                await call(bad)
        # Withdrawn with the key that it was signed with.
        old = issuer.token("olga")
        await call(old)
        issuer.rotate()
        await call(issuer.token("olga"))
        with pytest.raises(errors.Unauthenticated):
            await call(old)


async def test_a_person_without_any_binding_may_not_even_read(
    fake: FakeRegistry, roles: FakeRoles, tmp_path: Path
) -> None:
    issuer = Issuer(tmp_path)
    settings: dict[str, Any] = {"jwt_jwks": issuer.jwks, "jwt_issuer": issuer.url}
    async with running("registry", build_with(fake, roles), **settings) as service:
        async with client_of(service, token=issuer.token("emma")) as client:
            await client.registry.get_team(name="teams/ranking")
        async with client_of(service, token=issuer.token("stranger")) as client:
            with pytest.raises(errors.PermissionDenied):
                await client.registry.get_team(name="teams/ranking")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/x", "127.9.9.9:0"])
def test_loopback_addresses(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.com:1", ":1"])
async def test_a_server_that_others_can_reach_does_not_start_without_identity(address: str) -> None:
    with pytest.raises(ValueError, match="without identity"):
        Server(ServiceConfig(listen=address), telemetry=Telemetry("x", 0.0))


def test_a_service_that_cannot_start_says_why_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    async def build(service: Service) -> None:
        raise AssertionError("unreachable")

    assert run_service("registry", build, ["--listen", "0.0.0.0:0"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("modelfleetd registry: refusing to listen on 0.0.0.0:0") and said.count("\n") == 1
