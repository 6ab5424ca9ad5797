"""Nobody acts outside their role: every method of every service × every role × the team that counts and another one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from itertools import product

import grpc
import pytest
from google.protobuf import field_mask_pb2
from google.protobuf.message import Message

from modelfleet import errors
from modelfleet.capacity.v1 import capacity_pb2, policies_pb2
from modelfleet.common.v1 import permission_pb2, serving_pb2
from modelfleet.registry.v1 import assets_pb2, registry_pb2
from tests.support.contracts import Rpc, refused, rpcs
from tests.support.fleet import Fleet, fleet
from tests.support.registry_calls import EVIDENCE
from tests.support.wait import until

ADMIN, SERVICE, VIEWER = permission_pb2.ADMIN, permission_pb2.SERVICE, permission_pb2.VIEWER
# Roles that a team can bind; the others come from the installation's configuration.
ROLES = {name: number for name, number in permission_pb2.Role.items() if number not in {0, ADMIN, SERVICE}}

# A resource of teams/ours for each path that a rule may name.
RESOURCES = {
    "team.name": "teams/ours",
    "model_type.team": "teams/ours",
    "pool.team": "teams/ours",
    "asset.team": "teams/ours",
    "asset.name": "assets/ours",
    "model_type.name": "modelTypes/ranker",
    "batch.model_type": "modelTypes/ranker",
    "launch.model_type": "modelTypes/ranker",
    "parent": "modelTypes/ranker",
    "resource": "modelTypes/ranker",
    "model_type": "modelTypes/ranker",
    "pool": "pools/ours",
    "model.name": "modelTypes/ranker/models/a",
    "certificate.model": "modelTypes/ranker/models/a",
    "estimate.model": "modelTypes/ranker/models/a",
    "load_test.model": "modelTypes/ranker/models/a",
    "recording.model_type": "modelTypes/ranker",
    "pool.name": "pools/ours",
    "reservation.pool": "pools/ours",
    "launch_policy.team": "teams/ours",
    "launch_policy.name": "launchPolicies/ours",
    "launch_decision.candidate": "modelTypes/ranker/models/a",
    "loan.lender": "pools/ours",
    "silence.resource": "modelTypes/ranker/models/a",
    "hold.model": "modelTypes/ranker/models/a",
}
# Where the path is `name`, the method's own words say what it names.
NAMED = {
    "DeleteModelType": "modelTypes/ranker",
    "DeleteModel": "modelTypes/ranker/models/a",
    "DeleteEvaluationReport": "modelTypes/ranker/models/a/evaluationReports/nope",
    "DeleteRiskAssessment": "modelTypes/ranker/models/a/riskAssessments/nope",
    "DeletePool": "pools/ours",
    "DeleteLaunchPolicy": "launchPolicies/ours",
    "DeleteAsset": "assets/ours",
    "ApproveCriticality": "criticalityRequests/ranker-e5cfb27f",
    "RejectCriticality": "criticalityRequests/ranker-e5cfb27f",
    "WithdrawCriticality": "criticalityRequests/ranker-e5cfb27f",
}


@pytest.fixture
async def peopled(database_url: str) -> AsyncIterator[Fleet]:
    """A fleet with a principal for each role on teams/ours and on teams/theirs, named `engineer-ours` and so on."""
    async with fleet(database_url) as running:
        async with running.client() as client:
            for team in ("ours", "theirs"):
                bindings = [
                    registry_pb2.RoleBinding(role=number, members=[f"{name.lower()}-{team}"])
                    for name, number in ROLES.items()
                ]
                await client.registry.create_team(team_id=team, team=registry_pb2.Team(role_bindings=bindings))
            await client.registry.create_model_type(
                model_type_id="ranker", model_type=registry_pb2.ModelType(team="teams/ours")
            )
            spec = serving_pb2.ServingSpec(command=["serve"], flavor="flavors/cpu")
            await client.registry.create_model(
                parent="modelTypes/ranker", model_id="a", model=registry_pb2.Model(serving_spec=spec)
            )
            dashboard = assets_pb2.Asset(kind=assets_pb2.Asset.DASHBOARD, uri="https://ours", team="teams/ours")
            await client.registry.create_asset(asset_id="ours", asset=dashboard)
            # Its name is made of the entry and of the id of the call.
            await client.registry.request_criticality(
                resource="modelTypes/ranker",
                tier=serving_pb2.TIER1,
                evidence=EVIDENCE,
                request_id="0c2a5e7c-6f0e-4f5b-8f5e-0a4c7f3b9d10",
            )
            await client.capacity.create_flavor(flavor_id="cpu", flavor=capacity_pb2.Flavor())
            await client.capacity.create_pool(pool_id="ours", pool=capacity_pb2.Pool(team="teams/ours"))
            free = policies_pb2.LaunchPolicy(team="teams/ours", free_within_quota=policies_pb2.FreeWithinQuota())
            await client.capacity.create_launch_policy(launch_policy_id="ours", launch_policy=free)
        yield running


def a_request(rpc: Rpc) -> Message | None:
    """A request that names a resource of teams/ours and lacks everything else, so that it changes nothing."""
    request = rpc.request()
    if not rpc.resource:
        return request
    value = NAMED.get(rpc.name) if rpc.resource == "name" else RESOURCES[rpc.resource]
    if value is None:
        return None
    *parents, last = rpc.resource.split(".")
    target = request
    for parent in parents:
        target = getattr(target, parent)
    setattr(target, last, value)
    return request


def may_call(rpc: Rpc, role: int, team: str) -> bool:
    """What the rule in the proto says, in the words of API.md."""
    if VIEWER in rpc.roles:
        return True  # every binding implies it
    return role in rpc.roles and bool(rpc.resource) and team == "ours"


@pytest.mark.parametrize("service", ["registry", "capacity", "stability", "launcher"])
async def test_every_method_obeys_the_rule_that_its_proto_declares(peopled: Fleet, service: str) -> None:
    checked = 0
    async with peopled.channel(service) as channel:
        for (role, number), team in product(ROLES.items(), ("ours", "theirs")):
            principal = f"{role.lower()}-{team}"
            for rpc in rpcs(service):
                request = a_request(rpc)
                if request is None:
                    continue
                found = await refused(rpc, channel, request, principal)
                denied = found is not None and found.code is grpc.StatusCode.PERMISSION_DENIED
                assert denied != may_call(rpc, number, team), f"{principal} {rpc.name}: {found}"
                if denied:
                    assert found is not None and found.reason == "ROLE_MISSING"
                checked += 1
    assert checked > 50


@pytest.mark.parametrize("role", [ADMIN, SERVICE])
async def test_no_team_can_give_itself_power_over_others(peopled: Fleet, role: permission_pb2.Role.ValueType) -> None:
    async with peopled.client("owner-ours") as client:
        binding = registry_pb2.RoleBinding(role=role, members=["owner-ours"])
        with pytest.raises(errors.InvalidArgument):
            await client.registry.update_team(team=registry_pb2.Team(name="teams/ours", role_bindings=[binding]))


@pytest.mark.parametrize("service", ["registry", "capacity", "stability", "launcher"])
async def test_nobody_without_a_binding_may_do_anything_but_look(peopled: Fleet, service: str) -> None:
    async with peopled.channel(service) as channel:
        for rpc in rpcs(service):
            if VIEWER in rpc.roles:
                continue
            found = await refused(rpc, channel, a_request(rpc) or rpc.request(), "stranger")
            assert found is not None and found.code is grpc.StatusCode.PERMISSION_DENIED, rpc.name


@pytest.mark.parametrize("service", ["registry", "capacity", "stability", "launcher", "platform"])
def test_every_method_declares_a_rule(service: str) -> None:
    for rpc in rpcs(service):
        assert rpc.roles, f"{rpc.name} has no permission option and is denied to everybody"
        assert not rpc.resource or a_request(rpc) is not None or rpc.resource == "name"


async def test_nothing_is_moved_into_a_team_in_which_the_caller_has_no_role(peopled: Fleet) -> None:
    async def moved(principal: str, mask: list[str]) -> None:
        async with peopled.client(principal) as client:
            update = field_mask_pb2.FieldMask(paths=mask)
            if principal.startswith("capacity"):
                pool = capacity_pb2.Pool(name="pools/ours", team="teams/theirs")
                await client.capacity.update_pool(pool=pool, update_mask=update)
            else:
                kind = registry_pb2.ModelType(name="modelTypes/ranker", team="teams/theirs", purpose="x")
                await client.registry.update_model_type(model_type=kind, update_mask=update)

    for principal, mask in product(("engineer-ours", "owner-ours", "capacity_owner-ours"), ([], ["team"])):
        with pytest.raises(errors.PermissionDenied) as caught:
            await moved(principal, mask)
        assert caught.value.metadata["team"] == "teams/theirs"
    async with peopled.client("capacity_owner-ours") as client:
        policy = policies_pb2.LaunchPolicy(name="launchPolicies/ours", team="teams/theirs")
        with pytest.raises(errors.PermissionDenied):
            await client.capacity.update_launch_policy(launch_policy=policy)
    # What the mask leaves out stays, whatever the request says of it.
    await moved("engineer-ours", ["purpose"])
    async with peopled.client() as client:
        assert (await client.registry.get_model_type(name="modelTypes/ranker")).team == "teams/ours"
        assert (await client.capacity.get_pool(name="pools/ours")).team == "teams/ours"
        # Whoever has the role on both may.
        for team in ("ours", "theirs"):
            roles = (permission_pb2.ENGINEER, permission_pb2.CAPACITY_OWNER)
            both = [registry_pb2.RoleBinding(role=role, members=["both", "capacity-both"]) for role in roles]
            await client.registry.update_team(team=registry_pb2.Team(name=f"teams/{team}", role_bindings=both))
        await moved("both", ["team"])

        async def may_by_now() -> bool:
            with contextlib.suppress(errors.PermissionDenied):
                await moved("capacity-both", ["team"])
                return True
            return False

        # Capacity has read the bindings a moment ago.
        await until(may_by_now)
        assert (await client.registry.get_model_type(name="modelTypes/ranker")).team == "teams/theirs"
        assert (await client.capacity.get_pool(name="pools/ours")).team == "teams/theirs"
