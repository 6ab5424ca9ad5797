"""Flavors, pools, certificates and estimates over gRPC: what they are for, listing, changing, dry runs."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.errors import Aborted, FailedPrecondition, NotFound
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.capacity.books import Books
from modelfleetd.kit.db import Database
from tests.support.capacity import CPU, CTR, EU, GPU, NEW, OLD, POOL, US, CapacityFleet, capacity_fleet, make_pool, uses
from tests.support.wait import until


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[CapacityFleet]:
    async with capacity_fleet(database_url) as running:
        yield running


def stated(max_qps: float, **fields: object) -> pb.Certificate:
    made = pb.Certificate(model=NEW, flavor=CPU, max_qps=max_qps, note="measured by hand")
    made.MergeFrom(pb.Certificate(**fields))  # type: ignore[arg-type]
    return made


async def test_a_flavor_is_changed_field_by_field_and_only_by_who_has_read_it_last(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    first = await capacity.get_flavor(name=CPU)
    wanted = pb.Flavor(name=CPU, description="4 cores", unit_cost=99.0, etag=first.etag)
    changed = await capacity.update_flavor(flavor=wanted, update_mask=FieldMask(paths=["description"]))
    assert (changed.description, changed.unit_cost, changed.uid) == ("4 cores", 2.5, first.uid)
    assert changed.etag != first.etag
    with pytest.raises(Aborted):
        await capacity.update_flavor(flavor=wanted)
    # An empty mask means what is set; a mask may set to nothing.
    assert (await capacity.update_flavor(flavor=pb.Flavor(name=CPU, unit_cost=3.0))).description == "4 cores"
    free = await capacity.update_flavor(flavor=pb.Flavor(name=CPU), update_mask=FieldMask(paths=["unit_cost"]))
    assert free.unit_cost == 0.0


async def test_lists_go_on_from_page_to_page_in_order(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    for index in range(5):
        await make_pool(fleet.client, index, f"p{index}")
        await capacity.create_certificate(certificate=stated(10.0 + index))
    assert [pool.name async for pool in capacity.list_pools_all(page_size=2)] == [f"pools/p{i}" for i in range(5)]
    assert [one.name async for one in capacity.list_flavors_all(page_size=1)] == [CPU, GPU]
    rates = [one.max_qps async for one in capacity.list_certificates_all(model=NEW, page_size=2)]
    assert rates == [14.0, 13.0, 12.0, 11.0, 10.0]
    assert [one async for one in capacity.list_certificates_all(model=OLD)] == []


async def test_bookings_are_listed_page_by_page(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    quotas = [pb.Quota(flavor=CPU, region=region, nominal_units=100) for region in (EU, US)]
    await capacity.create_pool(pool_id="feed", pool=pb.Pool(team="teams/feed", quotas=quotas))
    await capacity.book_usage(pool=POOL, usages=[uses(OLD, 1), uses(OLD, 2, US), uses(NEW, 3)])
    await capacity.book_usage(pool=POOL, usages=[uses(OLD, 0), uses(NEW, 4)])
    found = [(one.model, one.region, one.units) async for one in capacity.list_bookings_all(pool=POOL, page_size=1)]
    assert found == [(NEW, EU, 4), (OLD, US, 2)]


async def test_a_dry_run_says_what_would_be_and_changes_nothing(fleet: CapacityFleet) -> None:
    capacity, key = fleet.client.capacity, str(uuid.uuid4())
    flavor = pb.Flavor(unit_cost=1.0)
    made = await capacity.create_flavor(flavor_id="tpu", flavor=flavor, validate_only=True, request_id=key)
    assert made.name == "flavors/tpu"
    with pytest.raises(NotFound):
        await capacity.get_flavor(name="flavors/tpu")
    # The same intent for real: a dry run is not an answer to it.
    assert (await capacity.create_flavor(flavor_id="tpu", flavor=flavor, request_id=key)).unit_cost == 1.0
    await make_pool(fleet.client, 10)
    await capacity.delete_pool(name=POOL, validate_only=True)
    would = await capacity.book_usage(pool=POOL, usages=[uses(OLD, 4)], validate_only=True)
    assert would.usages[0].serving_units == 4
    assert (await fleet.usage()).serving_units == 0
    await capacity.create_certificate(certificate=stated(10.0))
    estimate = await capacity.create_estimate(estimate=pb.Estimate(model=NEW), validate_only=True)
    assert (estimate.regions[0].replicas, estimate.name) == (100, "")
    assert not (await capacity.list_estimates()).estimates


async def test_quotas_are_replaced_whole_and_a_cut_below_usage_shows_as_negative(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    await make_pool(fleet.client, 10)
    await capacity.book_usage(pool=POOL, usages=[uses(OLD, 8)])
    pool = pb.Pool(name=POOL, quotas=[pb.Quota(flavor=CPU, region=US, nominal_units=3)])
    changed = await capacity.update_pool(pool=pool)
    assert {(one.region, one.nominal_units, one.available_units) for one in changed.usages} == {(EU, 0, -8), (US, 3, 3)}
    await capacity.book_usage(pool=POOL, usages=[uses(OLD, 0)])
    assert [one.region for one in (await capacity.update_pool(pool=pool)).quotas] == [US]
    await capacity.delete_pool(name=POOL)
    await capacity.delete_flavor(name=CPU)


async def test_an_estimate_shows_every_input_with_its_source_and_the_formula_with_its_numbers(
    fleet: CapacityFleet,
) -> None:
    capacity = fleet.client.capacity
    certificate = await capacity.create_certificate(certificate=stated(10.0))
    assert (certificate.source, certificate.actor) == (pb.Certificate.STATED, "local")
    made = await capacity.create_estimate(estimate=pb.Estimate(model=NEW))
    (region,) = made.regions
    assert (region.region, region.replicas, region.units, region.min_replicas) == (EU, 100, 100, 2)
    assert made.cost_per_hour == region.cost_per_hour == 250.0
    assert (made.certificate, made.flavor, made.units_per_replica) == (certificate.name, CPU, 1)
    assert "686/(10×0.7)" in region.explanation
    sources = {one.id: one.source for one in made.inputs}
    assert sources["max_qps"] == certificate.name
    assert sources["peak_qps"] == CTR
    assert sources["normal_utilization"] == "default"
    assert made.headroom.machine_loss == 0.02
    assert await capacity.get_estimate(name=made.name) == made
    assert [one.name async for one in capacity.list_estimates_all(model=NEW)] == [made.name]


async def test_headroom_failover_and_growth_are_taken_from_where_they_belong(fleet: CapacityFleet) -> None:
    registry, capacity = fleet.client.registry, fleet.client.capacity
    share = registry_pb2.FailoverShare(region=EU, share_basis_points=5_000)
    await registry.update_region(region=registry_pb2.Region(name=US, failover_shares=[share]))
    peaks = [registry_pb2.RegionDemand(region=region, peak_qps=100.0) for region in (EU, US)]
    demand = registry_pb2.DemandSource(stated=peaks, growth_basis_points=1_000)
    await registry.update_model_type(
        model_type=registry_pb2.ModelType(name=CTR, regions=[EU, US], demand_source=demand),
        update_mask=FieldMask(paths=["regions", "demand_source"]),
    )
    await capacity.create_certificate(certificate=stated(10.0))
    headroom = pb.Headroom(normal_utilization=1.0, failover_utilization=1.0, machine_loss=0.0, min_replicas=12)
    made = await capacity.create_estimate(estimate=pb.Estimate(model=NEW, headroom=headroom))
    found = {one.region: one for one in made.regions}
    assert (found[EU].demand_qps, found[EU].failover_demand_qps, found[EU].replicas) == (110.0, 165.0, 17)
    assert (found[US].failover_demand_qps, found[US].replicas, found[US].units) == (110.0, 11, 12)


async def test_an_expired_certificate_is_refused_by_name_unless_it_is_allowed(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    soon = Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(seconds=2))
    made = await capacity.create_certificate(certificate=stated(10.0, expire_time=soon))
    refusals: list[FailedPrecondition] = []

    async def is_refused() -> bool:
        try:
            await capacity.create_estimate(estimate=pb.Estimate(model=NEW), validate_only=True)
        except FailedPrecondition as error:
            refusals.append(error)
        return bool(refusals)

    await until(is_refused)
    assert refusals[0].reason == "CERTIFICATE_EXPIRED"
    assert refusals[0].metadata["certificate"] == made.name
    assert f"{soon.ToDatetime():%Y-%m-%d %H:%M} UTC" in refusals[0].message
    forced = await capacity.create_estimate(estimate=pb.Estimate(model=NEW, allow_expired_certificate=True))
    assert (forced.certificate_expired, forced.regions[0].replicas) == (True, 100)
    assert "expired" in forced.warnings[0]


async def test_a_load_test_is_accepted_listed_watched_and_cancelled(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    await capacity.create_certificate(certificate=stated(123.0))
    wanted = pb.LoadTest(
        model=NEW, region=EU, sample_requests=[inference.ModelInferRequest(model_name="ctr").SerializeToString()]
    )
    made = await capacity.create_load_test(load_test=wanted)
    # It begins where the newest certificate of its type ends, and keeps its samples to itself.
    assert (made.start_qps, made.certification_requests, len(made.sample_requests)) == (123.0, 50_000, 0)
    assert made.stoppers.error_rate == 0.001
    assert [one.name async for one in capacity.list_load_tests_all(model=NEW)] == [made.name]
    cancelled = await capacity.cancel_load_test(name=made.name)
    assert (cancelled.state, cancelled.message) == (pb.LoadTest.CANCELLED, "Cancelled by local.")
    assert [one.state async for one in capacity.watch_load_test(name=made.name)] == [pb.LoadTest.CANCELLED]


async def test_books_that_differ_are_an_error_in_the_log(
    fleet: CapacityFleet, caplog: pytest.LogCaptureFixture
) -> None:
    await make_pool(fleet.client, 10)
    database = await Database.open(fleet.database_url, "capacity", max_size=1)
    books = Books(database)
    # The service itself adds up the whole ledger when it starts; a day later it is due again.
    await until(lambda: database.fetchval("SELECT true FROM whole_checks"))
    with caplog.at_level(logging.ERROR):
        await books.check()
        assert caplog.records == []
        await database.execute("UPDATE balances SET serving_units = 1")
        await books.check()
        gauge = "modelfleet_capacity_book_differences"
        assert REGISTRY.get_sample_value(gauge, {"ledger": "recent"}) == 2
        await books.check_whole()
        assert not REGISTRY.get_sample_value(gauge, {"ledger": "whole"})
        await database.execute("UPDATE whole_checks SET due_time = now()")
        await books.check_whole()
        await books.check_whole()
        assert REGISTRY.get_sample_value(gauge, {"ledger": "whole"}) == 2
    await database.close()
    assert "the ledger say 0, the balance says 1" in caplog.text
