"""What happens around every call: through real channels, with a servicer that needs no database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from modelfleet import AsyncClient, errors
from modelfleetd.kit.app import Service
from tests.kit.fakes import FakeRegistry, build_with
from tests.support.servers import client_of, running


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
    assert fake.remaining is not None and 5 < fake.remaining <= 7
    assert fake.traceparent.startswith("00-") and fake.traceparent.endswith("-00")


async def test_a_refusal_arrives_as_a_typed_exception_with_reason_and_metadata(client: AsyncClient) -> None:
    with pytest.raises(errors.NotFound, match="teams/nope does not exist") as caught:
        await client.registry.get_team(name="teams/nope")
    assert caught.value.reason == "RESOURCE_NOT_FOUND"
    assert caught.value.metadata == {"resource": "teams/nope"}
