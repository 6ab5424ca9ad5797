"""Lists stay below what a message may hold, however large their rows are, and nobody loses a role over it."""

from __future__ import annotations

import pytest

from modelfleet.common.v1 import permission_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit import paging
from modelfleetd.kit.auth import Principal, PrincipalKind, Role
from modelfleetd.kit.roles import RegistryRoles
from modelfleetd.registry.app import build
from tests.support.servers import client_of, running

TEAMS = 20


@pytest.fixture
def large() -> list[pb.RoleBinding]:
    """As many members as a team may have, with names that are as long as they may be."""
    return [
        pb.RoleBinding(
            role=permission_pb2.ENGINEER, members=[f"person-{number:04}-".ljust(200, "x") for number in range(1000)]
        )
        for _ in range(4)
    ] + [pb.RoleBinding(role=permission_pb2.OWNER, members=["olga"])]


async def test_teams_that_fill_many_messages_are_listed_and_their_roles_count(
    database_url: str, large: list[pb.RoleBinding]
) -> None:
    async with running("registry", build, database_url) as service, client_of(service, timeout=30) as client:
        for number in range(TEAMS):
            await client.registry.create_team(team_id=f"t{number:02}", team=pb.Team(role_bindings=large))
        first = await client.registry.list_teams(page_size=1000)
        assert 1 < len(first.teams) < TEAMS
        assert first.ByteSize() < paging.MAX_BYTES + 1000
        assert len([team async for team in client.registry.list_teams_all(page_size=1000)]) == TEAMS
        revisions = [each async for each in client.registry.list_revisions_all(page_size=1000)]
        assert len(revisions) == TEAMS
        olga = Principal("olga", PrincipalKind.PERSON)
        assert await RegistryRoles(client.registry).roles(olga, f"teams/t{TEAMS - 1}") == {Role.OWNER}
