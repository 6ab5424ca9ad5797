"""Services call one another under every way of telling who calls: certificates, tokens, and both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelfleet import AsyncClient, Tls, errors
from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.capacity.app import build as build_capacity
from modelfleetd.kit.app import run_service
from modelfleetd.kit.channel import Outbound
from modelfleetd.kit.config import ServiceConfig
from modelfleetd.registry.app import build as build_registry
from tests.support.servers import running
from tests.support.tls import Authority, Issuer

PREFIX = "system:serviceaccount:fleet:"


@dataclass
class Setting:
    """How the services and ada, who may do everything, tell who they are."""

    of: Callable[[str], dict[str, Any]]
    tls: Tls | None = None
    token: str | None = None


def _by_certificate(folder: Path) -> Setting:
    authority = Authority(folder)

    def of(service: str) -> dict[str, Any]:
        cert, key = authority.issue(service, spiffe_id=f"spiffe://cluster.local/modelfleet/{service}")
        return {"tls_ca": authority.ca, "tls_cert": cert, "tls_key": key, "admins": ("people/ada",)}

    return Setting(of, Tls(authority.ca, *authority.issue("ada", spiffe_id="spiffe://cluster.local/people/ada")))


def _by_both(folder: Path) -> Setting:
    certified, issuer = _by_certificate(folder), Issuer(folder)
    tokens = {"jwt_jwks": issuer.jwks, "jwt_issuer": issuer.url, "admins": ("ada",)}
    # The certificate is anybody's: what counts is the token.
    return Setting(lambda service: certified.of(service) | tokens, certified.tls, issuer.token("ada"))


def _by_token(folder: Path) -> Setting:
    issuer = Issuer(folder)

    def of(service: str) -> dict[str, Any]:
        token = folder / f"{service}.token"
        token.write_text(issuer.token(f"{PREFIX}{service}") + "\n")
        return {
            "jwt_jwks": issuer.jwks,
            "jwt_issuer": issuer.url,
            "admins": ("ada",),
            "jwt_service_prefix": PREFIX,
            "service_token_file": str(token),
        }

    return Setting(of, None, issuer.token("ada"))


@pytest.mark.parametrize("secure", [_by_certificate, _by_both, _by_token])
async def test_capacity_asks_the_registry_on_behalf_of_whoever_asks_it(
    secure: Callable[[Path], Setting], tmp_path: Path, database_url: str
) -> None:
    setting = secure(tmp_path)
    async with (
        running("registry", build_registry, database_url, **setting.of("registry")) as registry,
        running(
            "capacity", build_capacity, database_url, registry_address=registry.address, **setting.of("capacity")
        ) as capacity,
        AsyncClient(
            registry=registry.address, capacity=capacity.address, tls=setting.tls, token=setting.token
        ) as client,
    ):
        await client.registry.create_team(team_id="ranking", team=registry_pb2.Team())
        # Whether the team exists only the registry can tell.
        pool = await client.capacity.create_pool(pool_id="p", pool=capacity_pb2.Pool(team="teams/ranking"))
        assert pool.team == "teams/ranking"
        with pytest.raises(errors.FailedPrecondition) as caught:
            await client.capacity.create_pool(pool_id="q", pool=capacity_pb2.Pool(team="teams/nope"))
        assert caught.value.reason == "REFERENCE_NOT_FOUND"


async def test_without_a_certificate_a_person_with_a_token_does_not_get_in_where_authorities_are_configured(
    tmp_path: Path, database_url: str
) -> None:
    setting = _by_both(tmp_path)
    assert setting.tls is not None
    async with (
        running("registry", build_registry, database_url, **setting.of("registry")) as registry,
        AsyncClient(registry.address, tls=Tls(setting.tls.ca), token=setting.token, timeout=2) as client,
    ):
        with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
            await client.registry.list_teams()


async def test_a_persons_token_does_not_become_a_services(tmp_path: Path, database_url: str) -> None:
    issuer = Issuer(tmp_path)
    settings: dict[str, Any] = {
        "jwt_jwks": issuer.jwks,
        "jwt_issuer": issuer.url,
        "jwt_service_prefix": PREFIX,
    }
    async with running("registry", build_registry, database_url, **settings) as registry:
        for name in ("service/launcher", PREFIX, "group:x"):
            async with AsyncClient(registry.address, token=issuer.token(name)) as client:
                with pytest.raises((errors.Unauthenticated, errors.PermissionDenied)):
                    await client.registry.list_teams()
        async with AsyncClient(registry.address, token=issuer.token(f"{PREFIX}launcher")) as client:
            await client.registry.list_teams()


def test_a_service_that_could_not_say_who_it_is_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    issuer = Issuer(tmp_path)

    async def build(service: Any) -> None:
        assert service.client

    assert run_service("capacity", build, ["--jwt-jwks", issuer.jwks, "--jwt-issuer", issuer.url]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "capacity has nothing to show" in said and "--service-token-file" in said


def test_the_token_of_a_service_does_not_travel_in_plain_text(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a.b.c")
    config = {"service_token_file": str(token), "registry_address": "registry.example.com:8461"}
    with pytest.raises(ValueError, match="without encryption"):
        Outbound("capacity", ServiceConfig(**config))  # type: ignore[arg-type]
    Outbound("capacity", ServiceConfig(**config, tls_terminated_upstream=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["", "two\nlines", "gr\u00fcn"])
def test_a_token_file_that_holds_no_token_is_refused_at_once(tmp_path: Path, content: str) -> None:
    token = tmp_path / "token"
    token.write_text(content)
    with pytest.raises(ValueError, match="token"):
        Outbound("capacity", ServiceConfig(service_token_file=str(token)))


async def test_the_token_of_a_service_is_read_again_when_it_changes(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one")
    outbound = Outbound("capacity", ServiceConfig(service_token_file=str(token)))
    assert outbound.metadata() == (("authorization", "Bearer one"),)
    fresh = tmp_path / "fresh"
    fresh.write_text("two")
    fresh.replace(token)
    assert outbound.metadata() == (("authorization", "Bearer two"),)
    token.unlink()
    assert outbound.metadata() == (("authorization", "Bearer two"),)
    await outbound.close()
