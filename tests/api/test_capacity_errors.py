"""Every way in which a method of capacity can be refused, once, through real channels."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.capacity.v1 import capacity_pb2_grpc
from modelfleet.errors import ModelfleetError, from_rpc_error
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.registry.v1 import registry_pb2
from modelfleet.services import AsyncCapacity
from tests.support.capacity import (
    CPU,
    EU,
    GPU,
    NEW,
    OLD,
    POOL,
    CapacityFleet,
    capacity_fleet,
    hold,
    make_pool,
    uses,
)
from tests.support.servers import channel_to, client_of

M = TypeVar("M", bound=Message)
Call = Callable[[AsyncCapacity], Awaitable[Any]]
SUCCEEDED, ROLLED_BACK = pb.SettleReservationRequest.SUCCEEDED, pb.SettleReservationRequest.ROLLED_BACK
NOWHERE = "modelTypes/ctr/models/nowhere"
PAST = Timestamp(seconds=int((datetime.now(UTC) - timedelta(days=1)).timestamp()))


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[CapacityFleet]:
    async with capacity_fleet(database_url) as running:
        await make_pool(running.client, 600)
        await running.client.capacity.book_usage(pool=POOL, usages=[uses(OLD, 5)])
        yield running


def made(message: M, fields: dict[str, Any]) -> M:
    """A message with some fields set otherwise."""
    message.MergeFrom(type(message)(**fields))
    for name, value in fields.items():
        if not value:
            message.ClearField(name)
    return message


def quota(**fields: Any) -> pb.Quota:
    return made(pb.Quota(flavor=CPU, region=EU, nominal_units=1), fields)


def pool(**fields: Any) -> pb.Pool:
    return made(pb.Pool(team="teams/feed"), fields)


def certificate(**fields: Any) -> pb.Certificate:
    return made(pb.Certificate(model=NEW, flavor=CPU, max_qps=10.0), fields)


def load_test(**fields: Any) -> pb.LoadTest:
    samples = fields.pop("sample_requests", [inference.ModelInferRequest(model_name="ctr").SerializeToString()])
    return made(pb.LoadTest(model=NEW, region=EU, sample_requests=samples), fields)


INVALID: dict[str, tuple[Call, str]] = {
    "flavor id": (lambda c: c.create_flavor(flavor_id="Bad Id", flavor=pb.Flavor()), "flavor_id"),
    "flavor cost below 0": (
        lambda c: c.create_flavor(flavor_id="a", flavor=pb.Flavor(unit_cost=-1)),
        "flavor.unit_cost",
    ),
    "flavor cost not a number": (
        lambda c: c.create_flavor(flavor_id="a", flavor=pb.Flavor(unit_cost=float("nan"))),
        "flavor.unit_cost",
    ),
    "flavor description": (
        lambda c: c.create_flavor(flavor_id="a", flavor=pb.Flavor(description="x" * 1001)),
        "flavor.description",
    ),
    "flavor name": (lambda c: c.get_flavor(name="pools/feed"), "name"),
    "flavor mask": (
        lambda c: c.update_flavor(flavor=pb.Flavor(name=CPU), update_mask=FieldMask(paths=["nope"])),
        "update_mask",
    ),
    "page size": (lambda c: c.list_flavors(page_size=-1), "page_size"),
    "page token": (lambda c: c.list_pools(page_token="x"), "page_token"),
    "pool without a team": (lambda c: c.create_pool(pool_id="a", pool=pb.Pool()), "pool.team"),
    "pool quota below 0": (
        lambda c: c.create_pool(pool_id="a", pool=pool(quotas=[quota(nominal_units=-1)])),
        "pool.quotas[0].nominal_units",
    ),
    "pool quota twice": (lambda c: c.create_pool(pool_id="a", pool=pool(quotas=[quota(), quota()])), "pool.quotas[1]"),
    "pool of its own": (lambda c: c.create_pool(pool_id="a", pool=pool(parent="pools/a")), "pool.parent"),
    "booking of nothing": (lambda c: c.book_usage(pool=POOL), "usages"),
    "booking below 0": (lambda c: c.book_usage(pool=POOL, usages=[uses(OLD, -1)]), "usages[0].units"),
    "booking twice": (lambda c: c.book_usage(pool=POOL, usages=[uses(OLD, 1), uses(OLD, 2)]), "usages[1]"),
    "booking reason": (lambda c: c.book_usage(pool=POOL, usages=[uses(OLD, 1)], reason="x" * 1001), "reason"),
    "hold without items": (
        lambda c: c.create_reservation(reservation=pb.Reservation(pool=POOL, launch="launches/l")),
        "reservation.items",
    ),
    "hold below 0": (lambda c: c.create_reservation(reservation=hold("l", -1)), "reservation.items[0].hold_units"),
    "hold without a launch": (
        lambda c: c.create_reservation(reservation=pb.Reservation(pool=POOL, items=hold("l", 1).items)),
        "reservation.launch",
    ),
    "hold for too long": (
        lambda c: c.create_reservation(reservation=hold("l", 1), time_to_live=Duration(seconds=8 * 86400)),
        "time_to_live",
    ),
    "request id": (lambda c: c.create_reservation(reservation=hold("l", 1), request_id="x"), "request_id"),
    "simulation": (lambda c: c.simulate_reservation(reservation=hold("l", -1)), "reservation.items[0].hold_units"),
    "settlement without outcome": (lambda c: c.settle_reservation(name="reservations/a"), "outcome"),
    "rollback with usages": (
        lambda c: c.settle_reservation(name="reservations/a", outcome=ROLLED_BACK, usages=[uses(OLD, 1)]),
        "usages",
    ),
    "retained too long": (
        lambda c: c.settle_reservation(
            name="reservations/a", outcome=SUCCEEDED, retain_duration=Duration(seconds=8 * 86400)
        ),
        "retain_duration",
    ),
    "certificate of nothing": (
        lambda c: c.create_certificate(certificate=certificate(max_qps=0)),
        "certificate.max_qps",
    ),
    "certificate too sure": (
        lambda c: c.create_certificate(certificate=certificate(confidence=1.5)),
        "certificate.confidence",
    ),
    "certificate expired": (
        lambda c: c.create_certificate(certificate=certificate(expire_time=PAST)),
        "certificate.expire_time",
    ),
    "certificate note": (lambda c: c.create_certificate(certificate=certificate(note="x" * 1001)), "certificate.note"),
    "headroom": (
        lambda c: c.create_estimate(estimate=pb.Estimate(model=NEW, headroom=pb.Headroom(normal_utilization=1.1))),
        "estimate.headroom.normal_utilization",
    ),
    "load test without samples": (
        lambda c: c.create_load_test(load_test=load_test(sample_requests=[])),
        "load_test.sample_requests",
    ),
    "load test samples too large": (
        lambda c: c.create_load_test(load_test=load_test(sample_requests=[b"x" * (1 << 20), b"y"])),
        "load_test.sample_requests",
    ),
    "load test latency": (
        lambda c: c.create_load_test(load_test=load_test(stoppers=pb.Stoppers(latency_p99_ms=-1))),
        "load_test.stoppers.latency_p99_ms",
    ),
    "load test errors": (
        lambda c: c.create_load_test(load_test=load_test(stoppers=pb.Stoppers(error_rate=1))),
        "load_test.stoppers.error_rate",
    ),
    "load test start": (lambda c: c.create_load_test(load_test=load_test(start_qps=0.01)), "load_test.start_qps"),
    "load test too short to confirm": (
        lambda c: c.create_load_test(load_test=load_test(certification_requests=1_000)),
        "load_test.certification_requests",
    ),
}


async def test_a_wrong_field_is_named_with_what_would_be_accepted(fleet: CapacityFleet) -> None:
    for case, (call, path) in INVALID.items():
        with pytest.raises(ModelfleetError) as refused:
            await call(fleet.client.capacity)
        assert refused.value.code.name == "INVALID_ARGUMENT", case
        paths = {
            violation.field.partition(".paths")[0]: violation.description for violation in refused.value.violations
        }
        assert path in paths, (case, paths)
        assert paths[path], case


MISSING = "reservations/nowhere"
REFUSED: dict[str, tuple[Call, str, str, str]] = {
    "get flavor": (lambda c: c.get_flavor(name="flavors/no"), "NOT_FOUND", "RESOURCE_NOT_FOUND", "flavors/no"),
    "update flavor": (
        lambda c: c.update_flavor(flavor=pb.Flavor(name="flavors/no")),
        "NOT_FOUND",
        "RESOURCE_NOT_FOUND",
        "flavors/no",
    ),
    "delete flavor": (lambda c: c.delete_flavor(name="flavors/no"), "NOT_FOUND", "RESOURCE_NOT_FOUND", "flavors/no"),
    "create flavor": (
        lambda c: c.create_flavor(flavor_id="cpu", flavor=pb.Flavor()),
        "ALREADY_EXISTS",
        "RESOURCE_EXISTS",
        CPU,
    ),
    "flavor etag": (lambda c: c.update_flavor(flavor=pb.Flavor(name=CPU, etag="x")), "ABORTED", "ETAG_MISMATCH", CPU),
    "flavor etag at deletion": (lambda c: c.delete_flavor(name=CPU, etag="x"), "ABORTED", "ETAG_MISMATCH", CPU),
    "flavor in use": (lambda c: c.delete_flavor(name=CPU), "FAILED_PRECONDITION", "RESOURCE_IN_USE", POOL),
    "get pool": (lambda c: c.get_pool(name="pools/no"), "NOT_FOUND", "RESOURCE_NOT_FOUND", "pools/no"),
    "update pool": (lambda c: c.update_pool(pool=pool(name="pools/no")), "NOT_FOUND", "RESOURCE_NOT_FOUND", "pools/no"),
    "delete pool": (lambda c: c.delete_pool(name="pools/no"), "NOT_FOUND", "RESOURCE_NOT_FOUND", "pools/no"),
    "create pool": (lambda c: c.create_pool(pool_id="feed", pool=pool()), "ALREADY_EXISTS", "RESOURCE_EXISTS", POOL),
    "pool etag": (lambda c: c.update_pool(pool=pool(name=POOL, etag="x")), "ABORTED", "ETAG_MISMATCH", POOL),
    "pool in use": (lambda c: c.delete_pool(name=POOL), "FAILED_PRECONDITION", "RESOURCE_IN_USE", OLD),
    "pool of a team that is not there": (
        lambda c: c.create_pool(pool_id="a", pool=pool(team="teams/no")),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        "teams/no",
    ),
    "pool of a flavor that is not there": (
        lambda c: c.create_pool(pool_id="a", pool=pool(quotas=[quota(flavor="flavors/no")])),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        "flavors/no",
    ),
    "pool in a region that is not there": (
        lambda c: c.create_pool(pool_id="a", pool=pool(quotas=[quota(region="regions/no")])),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        "regions/no",
    ),
    "pool below one that is not there": (
        lambda c: c.create_pool(pool_id="a", pool=pool(parent="pools/no")),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        "pools/no",
    ),
    "booking in a pool that is not there": (
        lambda c: c.book_usage(pool="pools/no", usages=[uses(OLD, 1)]),
        "NOT_FOUND",
        "RESOURCE_NOT_FOUND",
        "pools/no",
    ),
    "booking of a model that is not there": (
        lambda c: c.book_usage(pool=POOL, usages=[uses(NOWHERE, 1)]),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        NOWHERE,
    ),
    "booking of a flavor that is not there": (
        lambda c: c.book_usage(pool=POOL, usages=[pb.ModelUnits(model=OLD, flavor="flavors/no", region=EU, units=1)]),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        "flavors/no",
    ),
    "booking of too much": (
        lambda c: c.book_usage(pool=POOL, usages=[uses(OLD, 601)]),
        "RESOURCE_EXHAUSTED",
        "QUOTA_EXCEEDED",
        POOL,
    ),
    "hold in a pool that is not there": (
        lambda c: c.create_reservation(reservation=hold("l", 1, pool="pools/no")),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        "pools/no",
    ),
    "hold of a flavor that is not there": (
        lambda c: c.create_reservation(
            reservation=pb.Reservation(
                pool=POOL, launch="launches/l", items=[pb.HoldItem(flavor="flavors/no", region=EU, hold_units=1)]
            )
        ),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        "flavors/no",
    ),
    "hold of a flavor without quota": (
        lambda c: c.create_reservation(
            reservation=pb.Reservation(
                pool=POOL, launch="launches/l", items=[pb.HoldItem(flavor=GPU, region=EU, hold_units=1)]
            )
        ),
        "RESOURCE_EXHAUSTED",
        "QUOTA_EXCEEDED",
        GPU,
    ),
    "simulation in a pool that is not there": (
        lambda c: c.simulate_reservation(reservation=hold("l", 1, pool="pools/no")),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        "pools/no",
    ),
    "get reservation": (lambda c: c.get_reservation(name=MISSING), "NOT_FOUND", "RESOURCE_NOT_FOUND", MISSING),
    "activate": (lambda c: c.activate_reservation(name=MISSING), "NOT_FOUND", "RESOURCE_NOT_FOUND", MISSING),
    "cancel": (lambda c: c.cancel_reservation(name=MISSING), "NOT_FOUND", "RESOURCE_NOT_FOUND", MISSING),
    "settle": (
        lambda c: c.settle_reservation(name=MISSING, outcome=ROLLED_BACK),
        "NOT_FOUND",
        "RESOURCE_NOT_FOUND",
        MISSING,
    ),
    "get certificate": (
        lambda c: c.get_certificate(name="certificates/no"),
        "NOT_FOUND",
        "RESOURCE_NOT_FOUND",
        "certificates/no",
    ),
    "certificate of a model that is not there": (
        lambda c: c.create_certificate(certificate=certificate(model=NOWHERE)),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        NOWHERE,
    ),
    "certificate of a flavor that is not there": (
        lambda c: c.create_certificate(certificate=certificate(flavor="flavors/no")),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        "flavors/no",
    ),
    "get estimate": (lambda c: c.get_estimate(name="estimates/no"), "NOT_FOUND", "RESOURCE_NOT_FOUND", "estimates/no"),
    "estimate of a model that is not there": (
        lambda c: c.create_estimate(estimate=pb.Estimate(model=NOWHERE)),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        NOWHERE,
    ),
    "estimate without a certificate": (
        lambda c: c.create_estimate(estimate=pb.Estimate(model=NEW)),
        "FAILED_PRECONDITION",
        "CERTIFICATE_MISSING",
        NEW,
    ),
    "get load test": (
        lambda c: c.get_load_test(name="loadTests/no"),
        "NOT_FOUND",
        "RESOURCE_NOT_FOUND",
        "loadTests/no",
    ),
    "cancel load test": (
        lambda c: c.cancel_load_test(name="loadTests/no"),
        "NOT_FOUND",
        "RESOURCE_NOT_FOUND",
        "loadTests/no",
    ),
    "load test of a model that is not there": (
        lambda c: c.create_load_test(load_test=load_test(model=NOWHERE)),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        NOWHERE,
    ),
    "load test in a region that is not there": (
        lambda c: c.create_load_test(load_test=load_test(region="regions/no")),
        "FAILED_PRECONDITION",
        "REFERENCE_NOT_FOUND",
        "regions/no",
    ),
}


async def test_every_refusal_has_its_code_its_reason_and_names_what_it_is_about(fleet: CapacityFleet) -> None:
    before = await fleet.client.capacity.get_pool(name=POOL)
    for case, (call, code, reason, names) in REFUSED.items():
        with pytest.raises(ModelfleetError) as refused:
            await call(fleet.client.capacity)
        error = refused.value
        assert (error.code.name, error.reason) == (code, reason), (case, error.message)
        assert names in error.metadata.values(), (case, error.metadata)
    assert await fleet.client.capacity.get_pool(name=POOL) == before
    assert await fleet.differences() == []


async def test_watching_a_load_test_that_is_not_there_is_refused(fleet: CapacityFleet) -> None:
    with pytest.raises(ModelfleetError) as refused:
        async for _ in fleet.client.capacity.watch_load_test(name="loadTests/no"):
            raise AssertionError("nothing to see")
    assert refused.value.reason == "RESOURCE_NOT_FOUND"


async def test_an_estimate_of_a_type_without_regions_or_demand_says_what_to_set(fleet: CapacityFleet) -> None:
    registry, capacity = fleet.client.registry, fleet.client.capacity
    spec = (await registry.get_model(name=NEW)).serving_spec
    for type_id, regions in (("nowhere", []), ("unknown", [EU])):
        route = registry_pb2.ModelType(team="teams/feed", regions=regions)
        await registry.create_model_type(model_type_id=type_id, model_type=route)
        parent = f"modelTypes/{type_id}"
        made = await registry.create_model(parent=parent, model_id="m", model=registry_pb2.Model(serving_spec=spec))
        with pytest.raises(ModelfleetError) as refused:
            await capacity.create_estimate(estimate=pb.Estimate(model=made.name))
        assert refused.value.reason == "NOT_CONFIGURED"
        assert refused.value.metadata["resource"] == parent


async def test_a_settlement_beyond_the_hold_and_a_settlement_after_the_end_are_refused(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    made = await capacity.create_reservation(reservation=hold("l1", 10))
    with pytest.raises(ModelfleetError) as refused:
        await capacity.settle_reservation(name=made.name, outcome=SUCCEEDED, usages=[uses(NEW, 11)])
    assert refused.value.reason == "SETTLEMENT_EXCEEDS_HOLD"
    await capacity.cancel_reservation(name=made.name)
    with pytest.raises(ModelfleetError) as refused:
        await capacity.settle_reservation(name=made.name, outcome=ROLLED_BACK)
    assert (refused.value.reason, refused.value.metadata["state"]) == ("WRONG_STATE", "CANCELLED")
    settled = await capacity.create_reservation(reservation=hold("l1", 10))
    await capacity.settle_reservation(name=settled.name, outcome=ROLLED_BACK)
    for verb in (capacity.activate_reservation, capacity.cancel_reservation):
        with pytest.raises(ModelfleetError) as refused:
            await verb(name=settled.name)
        assert refused.value.reason == "WRONG_STATE"


async def test_two_levels_of_pools_and_not_more(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    await capacity.create_pool(pool_id="child", pool=pool(parent=POOL))
    with pytest.raises(ModelfleetError) as refused:
        await capacity.create_pool(pool_id="grandchild", pool=pool(parent="pools/child"))
    assert refused.value.violations[0].field == "pool.parent"


async def test_without_the_registry_capacity_says_which_part_does_not_answer(fleet: CapacityFleet) -> None:
    await fleet.registry.__aexit__(None, None, None)
    request = pb.CreateEstimateRequest(estimate=pb.Estimate(model=NEW), request_id=str(uuid.uuid4()))
    # A bare channel: the client would try again for a while.
    async with channel_to(fleet.capacity) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await capacity_pb2_grpc.CapacityServiceStub(channel).CreateEstimate(request, timeout=10)
    assert from_rpc_error(refused.value).reason == "PART_UNAVAILABLE"
    assert from_rpc_error(refused.value).metadata["part"] == "registry"
    # What needs no registry goes on.
    await fleet.client.capacity.create_reservation(reservation=hold("l1", 10))


async def test_roles_are_those_of_the_team_that_a_resource_belongs_to(fleet: CapacityFleet) -> None:
    from modelfleet.common.v1 import permission_pb2

    owner = registry_pb2.RoleBinding(role=permission_pb2.CAPACITY_OWNER, members=["alice"])
    engineer = registry_pb2.RoleBinding(role=permission_pb2.ENGINEER, members=["eve"])
    team = registry_pb2.Team(name="teams/feed", role_bindings=[owner, engineer])
    await fleet.client.registry.update_team(team=team)
    made = await fleet.client.capacity.create_reservation(reservation=hold("l1", 10))
    async with (
        client_of(fleet.registry, fleet.capacity, principal="alice") as alice,
        client_of(fleet.registry, fleet.capacity, principal="eve") as eve,
    ):
        await alice.capacity.activate_reservation(name=made.name)
        await eve.capacity.create_certificate(certificate=certificate())
        for denied in (
            eve.capacity.activate_reservation(name=made.name),
            eve.capacity.book_usage(pool=POOL, usages=[uses(OLD, 1)]),
            alice.capacity.create_certificate(certificate=certificate()),
        ):
            with pytest.raises(ModelfleetError) as refused:
                await denied
            assert refused.value.reason == "ROLE_MISSING", refused.value
        assert (await eve.capacity.get_pool(name=POOL)).name == POOL
