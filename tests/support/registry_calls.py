"""Calls of a registry through a real channel, and what makes them short in tests."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from modelfleet.common.v1 import permission_pb2, serving_pb2
from modelfleet.registry.v1 import criticality_pb2, registry_pb2_grpc
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.registry.app import build
from tests.support.contracts import Refusal, refusal
from tests.support.servers import channel_to, running

CTR = "modelTypes/ctr"
OLD, NEW = f"{CTR}/models/old", f"{CTR}/models/new"
_METHODS = pb.DESCRIPTOR.services_by_name["RegistryService"].methods_by_name


def request_id() -> str:
    return str(uuid.uuid4())


class Registry:
    """A registry as one caller sees it: `await registry.GetTeam(name=…)`; request_id is made where it is not given."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        principal: str = "",
        timeout: float = 10.0,
        address: str = "",
        *metadata: tuple[str, str],
    ) -> None:
        self.channel = channel
        self.address = address
        self.stub = registry_pb2_grpc.RegistryServiceStub(channel)
        self.metadata = (*((("x-modelfleet-principal", principal),) if principal else ()), *metadata)
        self.timeout = timeout

    def as_(self, principal: str, *metadata: tuple[str, str]) -> Registry:
        return Registry(self.channel, principal, self.timeout, self.address, *metadata)

    def __getattr__(self, method: str) -> Any:
        request_type = GetMessageClass(_METHODS[method].input_type)

        def call(**fields: Any) -> Any:
            if "request_id" in request_type.DESCRIPTOR.fields_by_name:
                fields.setdefault("request_id", request_id())
            timeout = None if method == "WatchRevisions" else self.timeout
            return getattr(self.stub, method)(request_type(**fields), metadata=self.metadata, timeout=timeout)

        return call


@asynccontextmanager
async def registry(database_url: str, **config: Any) -> AsyncIterator[Registry]:
    async with running("registry", build, database_url, **config) as service, channel_to(service) as channel:
        yield Registry(channel, address=service.address)


async def refused(call: Awaitable[object], code: grpc.StatusCode, reason: str) -> Refusal:
    """Says how a call was refused; fails where it was not, or not so."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    found = refusal(raised.value)
    assert (found.code, found.reason) == (code, reason), found
    return found


def spec(**fields: Any) -> serving_pb2.ServingSpec:
    return serving_pb2.ServingSpec(**({"command": ["serve"], "flavor": "flavors/cpu"} | fields))


def split(region: str = "eu", **shares: int) -> serving_pb2.RegionSplit:
    parts = [
        serving_pb2.ModelShare(model=f"{CTR}/models/{key}", share_basis_points=part) for key, part in shares.items()
    ]
    return serving_pb2.RegionSplit(region=f"regions/{region}", shares=parts)


async def populate(registry: Registry) -> pb.ModelType:
    """A team, a region, and the type `ctr`, whose baseline is `old` and whose candidate is `new`."""
    await registry.CreateTeam(team_id="feed", team=pb.Team(on_call="pager"))
    await registry.CreateRegion(region_id="eu", region=pb.Region(agent_address="127.0.0.1:9000"))
    ctr = pb.ModelType(team="teams/feed", regions=["regions/eu"])
    await registry.CreateModelType(model_type_id="ctr", model_type=ctr)
    for key in ("old", "new"):
        await registry.CreateModel(parent=CTR, model_id=key, model=pb.Model(serving_spec=spec()))
    adopted: pb.ModelType = await registry.AdoptServing(
        model_type=CTR, role_changes=[pb.RoleChange(model=OLD, role=pb.Model.BASELINE)], splits=[split(old=10_000)]
    )
    return adopted


def swap(expected_revision: int, launch: str = "launches/l1", **fields: Any) -> dict[str, Any]:
    """FinalizeLaunch of the launch that makes `new` the baseline."""
    return {
        "model_type": CTR,
        "launch": launch,
        "outcome": pb.FinalizeLaunchRequest.SUCCEEDED,
        "expected_revision": expected_revision,
        "role_changes": [
            pb.RoleChange(model=NEW, role=pb.Model.BASELINE),
            pb.RoleChange(model=OLD, role=pb.Model.RETIRED),
        ],
        "splits": [split(new=10_000)],
    } | fields


EVIDENCE = criticality_pb2.CriticalityEvidence(
    on_call_24x7="pager", business_metric="time spent", contribution="carries 12% of it"
)


async def bind(registry: Registry, team: str = "feed", **members: str) -> pb.Team:
    """Binds principals on a team, by role: `bind(registry, ENGINEER="alice", APPROVER="bob")`."""
    bindings = [
        pb.RoleBinding(role=permission_pb2.Role.Value(role), members=[member]) for role, member in members.items()
    ]
    bound: pb.Team = await registry.UpdateTeam(team=pb.Team(name=f"teams/{team}", role_bindings=bindings))
    return bound


async def raise_tier(
    registry: Registry, resource: str, tier: serving_pb2.Tier.ValueType, **fields: Any
) -> criticality_pb2.CriticalityRequest:
    """Raises an entry of a team on which `alice` is an engineer and `bob` an approver: she asks, he approves."""
    asked = await registry.as_("alice").RequestCriticality(
        resource=resource, tier=tier, **({"evidence": EVIDENCE} | fields)
    )
    approved: criticality_pb2.CriticalityRequest = await registry.as_("bob").ApproveCriticality(name=asked.name)
    return approved
