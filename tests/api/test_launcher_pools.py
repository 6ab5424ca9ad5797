"""Whose capacity a launch may take."""

from __future__ import annotations

import pytest

from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.common.v1 import permission_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import registry_pb2
from tests.support.launcher import CPU, EU, OLD, Fleet, launcher_fleet, refused
from tests.support.servers import client_of


async def other_pool(fleet: Fleet, *, team: str = "teams/ads", parent: str = "") -> None:
    """Makes `pools/ads`, large enough for anything."""
    await fleet.client.registry.create_team(team_id="ads", team=registry_pb2.Team(on_call="pager"))
    quota = capacity_pb2.Quota(flavor=CPU, region=EU, nominal_units=1_000)
    pool = capacity_pb2.Pool(team=team, quotas=[quota], parent=parent)
    await fleet.client.capacity.create_pool(pool_id="ads", pool=pool)


async def bind(fleet: Fleet, team: str, principal: str, role: permission_pb2.Role.ValueType) -> None:
    found = await fleet.client.registry.get_team(name=team)
    found.role_bindings.add(role=role, members=[principal])
    await fleet.client.registry.update_team(team=found)


async def test_an_engineer_of_one_team_cannot_spend_another_teams_pool(database_url: str) -> None:
    async with launcher_fleet(database_url, serving=False) as fleet:
        await other_pool(fleet)
        await bind(fleet, "teams/feed", "bob", permission_pb2.ENGINEER)
        async with client_of(fleet.registry, fleet.launcher, principal="bob") as bob:
            for validate_only in (True, False):
                with refused("ROLE_MISSING") as raised:
                    await bob.launcher.create_launch(
                        launch_id="l1", launch=fleet.request(pool="pools/ads"), validate_only=validate_only
                    )
                assert raised.value.metadata["team"] == "teams/ads"
            await bob.launcher.create_launch(launch_id="own", launch=fleet.request())


@pytest.mark.parametrize(
    "role", [permission_pb2.ENGINEER, permission_pb2.OWNER, permission_pb2.CAPACITY_OWNER], ids=permission_pb2.Role.Name
)
async def test_who_has_a_role_on_the_pools_team_may_take_it_for_another_teams_launch(
    database_url: str, role: permission_pb2.Role.ValueType
) -> None:
    async with launcher_fleet(database_url, serving=False) as fleet:
        await other_pool(fleet)
        await bind(fleet, "teams/feed", "bob", permission_pb2.ENGINEER)
        await bind(fleet, "teams/ads", "bob", role)
        async with client_of(fleet.registry, fleet.launcher, principal="bob") as bob:
            await bob.launcher.create_launch(launch_id="l1", launch=fleet.request(pool="pools/ads"))


async def test_a_pool_below_one_of_the_own_teams_may_be_taken(database_url: str) -> None:
    async with launcher_fleet(database_url, serving=False) as fleet:
        await other_pool(fleet, parent="pools/feed")
        await bind(fleet, "teams/feed", "bob", permission_pb2.ENGINEER)
        async with client_of(fleet.registry, fleet.launcher, principal="bob") as bob:
            await bob.launcher.create_launch(launch_id="l1", launch=fleet.request(pool="pools/ads"))


async def test_a_launch_is_refused_where_its_baseline_is_booked_in_another_pool(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=8) as fleet:
        await other_pool(fleet, team="teams/feed")
        with refused("WRONG_STATE") as raised:
            await fleet.create(pool="pools/ads")
        assert f"{OLD} is booked in pools/feed" in raised.value.message
        await fleet.create()
        await fleet.reaches(pb.Launch.SUCCEEDED)
