"""Loans, quota cuts and usage over time over gRPC."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.capacity.v1 import loans_pb2
from modelfleet.cli import main
from modelfleet.common.v1 import permission_pb2
from modelfleet.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.capacity.books import Books
from modelfleetd.kit.db import Database
from tests.support.capacity import CPU, EU, NEW, OLD, US, CapacityFleet, capacity_fleet, hold, uses
from tests.support.servers import client_of
from tests.support.wait import until


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[CapacityFleet]:
    async with capacity_fleet(database_url) as running:
        await running.client.capacity.create_pool(pool_id="org", pool=pb.Pool(team="teams/feed"))
        for pool_id, quota in (
            ("a", pb.Quota(flavor=CPU, region=EU, nominal_units=100, lending_limit_units=20)),
            ("b", pb.Quota(flavor=CPU, region=EU, nominal_units=100)),
        ):
            pool = pb.Pool(team="teams/feed", parent="pools/org", quotas=[quota])
            await running.client.capacity.create_pool(pool_id=pool_id, pool=pool)
        yield running


def loan(units: int, *, seconds: float = 3600, lender: str = "pools/a", borrower: str = "pools/b") -> loans_pb2.Loan:
    expires = Timestamp()
    expires.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return loans_pb2.Loan(
        lender=lender, borrower=borrower, flavor=CPU, region=EU, units=units, expire_time=expires, reason="for the fair"
    )


async def test_a_loan_is_given_once_shown_on_both_sides_and_ended_as_often_as_one_likes(fleet: CapacityFleet) -> None:
    capacity, key = fleet.client.capacity, str(uuid.uuid4())
    would = await capacity.create_loan(loan=loan(20), validate_only=True)
    assert (await capacity.list_loans()).loans == []
    wanted = loan(15)
    made = await capacity.create_loan(loan=wanted, request_id=key)
    assert await capacity.create_loan(loan=wanted, request_id=key) == made
    assert (made.state, made.actor, made.reason, would.state) == (loans_pb2.Loan.ACTIVE, "local", "for the fair", 1)
    assert await capacity.get_loan(name=made.name) == made
    lender, borrower = await fleet.usage(pool="pools/a"), await fleet.usage(pool="pools/b")
    assert (lender.lent_units, borrower.loaned_units, lender.loaned_units, borrower.lent_units) == (15, 15, 0, 0)
    with pytest.raises(FailedPrecondition) as refused:
        await capacity.create_loan(loan=loan(6))
    assert (refused.value.reason, refused.value.metadata["lendable"]) == ("LOAN_EXCEEDS_LENDING", "5")
    second = await capacity.create_loan(loan=loan(5))
    for pool in ("pools/a", "pools/b"):
        assert [one.name async for one in capacity.list_loans_all(pool=pool, page_size=1)] == [second.name, made.name]
    assert (await capacity.list_loans(pool="pools/org")).loans == []
    ended = await capacity.end_loan(name=made.name)
    assert ended.state == loans_pb2.Loan.ENDED
    assert await capacity.end_loan(name=made.name) == ended
    assert [one.name for one in (await capacity.list_loans(active_only=True)).loans] == [second.name]
    assert (await fleet.usage(pool="pools/b")).loaned_units == 5
    assert await fleet.differences() == []


async def test_loans_are_refused_where_they_cannot_be(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    await capacity.create_pool(pool_id="alone", pool=pb.Pool(team="teams/feed"))
    for wrong, path in (
        (loan(0), "loan.units"),
        (loan(1, seconds=-1), "loan.expire_time"),
        (loan(1, borrower="pools/a"), "loan.borrower"),
        (loan(1, borrower="pools/alone"), "loan.borrower"),
        (loan(1, borrower="pools/nope"), "loan.borrower"),
        (loan(1, lender="pools/alone"), "loan.borrower"),
    ):
        with pytest.raises((InvalidArgument, FailedPrecondition, NotFound)) as refused:
            await capacity.create_loan(loan=wrong)
        assert path in str(refused.value), wrong
    unknown = loan(1)
    unknown.flavor = "flavors/nope"
    with pytest.raises(FailedPrecondition) as missing:
        await capacity.create_loan(loan=unknown)
    assert missing.value.reason == "REFERENCE_NOT_FOUND" and "flavors/nope" in str(missing.value)
    made = await capacity.create_loan(loan=loan(1))
    # Neither side leaves the organisation, or goes, while the loan is in force.
    with pytest.raises(FailedPrecondition) as held:
        await capacity.update_pool(pool=pb.Pool(name="pools/b"), update_mask=FieldMask(paths=["parent"]))
    assert (held.value.reason, made.name in str(held.value)) == ("RESOURCE_IN_USE", True)
    with pytest.raises(FailedPrecondition):
        await capacity.delete_pool(name="pools/a")
    await capacity.end_loan(name=made.name)
    await capacity.update_pool(pool=pb.Pool(name="pools/b"), update_mask=FieldMask(paths=["parent"]))
    assert (await capacity.get_pool(name="pools/b")).parent == ""


async def test_a_loan_that_expires_takes_nothing_away_and_is_told(
    fleet: CapacityFleet, caplog: pytest.LogCaptureFixture
) -> None:
    capacity = fleet.client.capacity
    await capacity.book_usage(pool="pools/b", usages=[uses(OLD, 115)])
    made = await capacity.create_loan(loan=loan(20, seconds=1.5))
    assert (await fleet.usage(pool="pools/b")).overdue_units == 0

    async def has_expired() -> bool:
        return (await capacity.get_loan(name=made.name)).state == loans_pb2.Loan.EXPIRED

    await until(has_expired)
    usage = await fleet.usage(pool="pools/b")
    assert (usage.serving_units, usage.loaned_units, usage.overdue_units, usage.borrowed_units) == (115, 0, 15, 15)
    database = await Database.open(fleet.database_url, "capacity", max_size=1)
    try:
        books = Books(database)
        with caplog.at_level(logging.WARNING):
            await books.look_at_loans()
            await books.look_at_loans()
        assert [record.getMessage() for record in caplog.records if "serve more" in record.getMessage()] == [
            "pools that serve more than they own and were lent: {'pools/b': 15}"
        ]
        gauge = "modelfleet_capacity_overdue_units"
        assert REGISTRY.get_sample_value(gauge, {"pool": "pools/b"}) == 15
        await capacity.book_usage(pool="pools/b", usages=[uses(OLD, 100)])
        await books.look_at_loans()
        assert REGISTRY.get_sample_value(gauge, {"pool": "pools/b"}) is None
    finally:
        await database.close()


async def test_only_the_lender_lends_and_only_who_decides_for_the_organisation_joins_it(fleet: CapacityFleet) -> None:
    for team in ("ours", "theirs"):
        binding = registry_pb2.RoleBinding(role=permission_pb2.CAPACITY_OWNER, members=[f"cap-{team}"])
        await fleet.client.registry.create_team(team_id=team, team=registry_pb2.Team(role_bindings=[binding]))
    made = await fleet.client.capacity.create_loan(loan=loan(1))
    quota = pb.Quota(flavor=CPU, region=EU, nominal_units=1)
    await fleet.client.capacity.create_pool(pool_id="theirs", pool=pb.Pool(team="teams/theirs", quotas=[quota]))
    async with client_of(fleet.registry, fleet.capacity, principal="cap-ours") as ours:
        for parent in ("pools/theirs", "pools/org"):
            with pytest.raises(PermissionDenied):
                await ours.capacity.create_pool(pool_id="ours", pool=pb.Pool(team="teams/ours", parent=parent))
        await ours.capacity.create_pool(pool_id="ours", pool=pb.Pool(team="teams/ours"))
        for mask in ([], ["parent"], ["*"]):
            with pytest.raises(PermissionDenied) as refused:
                await ours.capacity.update_pool(
                    pool=pb.Pool(name="pools/ours", team="teams/ours", parent="pools/theirs"),
                    update_mask=FieldMask(paths=mask),
                )
            assert refused.value.metadata["team"] == "teams/theirs"
        with pytest.raises(PermissionDenied):
            await ours.capacity.create_loan(loan=loan(1))
        with pytest.raises(PermissionDenied):
            await ours.capacity.end_loan(name=made.name)


async def test_after_a_cut_nothing_is_admitted_and_the_answer_says_what_would_free_it(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    await capacity.book_usage(pool="pools/a", usages=[uses(OLD, 60)])
    peak = hold("l1", 110, pool="pools/b")
    peak.items[0].end_units = 50
    peak.expected_release_time.FromDatetime(datetime(2036, 1, 2, 3, 4, tzinfo=UTC))
    await capacity.create_reservation(reservation=peak)
    quota = pb.Quota(flavor=CPU, region=EU, nominal_units=30, lending_limit_units=20)
    cut = await capacity.update_pool(pool=pb.Pool(name="pools/a", quotas=[quota]))
    # a keeps 10 of its 30 and stores 20; 50 of its 60 are used there, beside the 110 of b: 120 − 160.
    (usage,) = cut.usages
    assert (usage.available_units, usage.overdue_units, usage.serving_units) == (-40, 30, 60)
    assert usage.message == (
        "Nothing is admitted: free 40 or raise the quota by as much: launches/l1 of pools/b holds 110 "
        f"until about 2036-01-02 03:04 UTC, {OLD} serves with 60."
    )
    assert (await capacity.get_pool(name="pools/org")).usages[0].message != ""
    for refuse in (
        capacity.create_reservation(reservation=hold("l2", 5, pool="pools/a")),
        capacity.book_usage(pool="pools/a", usages=[uses(NEW, 5)]),
    ):
        with pytest.raises(ResourceExhausted) as refused:
            await refuse
        assert refused.value.reason == "QUOTA_EXCEEDED"
        assert refused.value.metadata["remedy"].startswith("free 45 or raise the quota by as much: launches/l1 of")
        assert f"{OLD} serves with 60" in refused.value.message
    # Within what it moves a launch may still swap.
    await capacity.create_reservation(reservation=hold("l3", 60, pool="pools/a", replaced=(OLD,)))
    assert await fleet.differences() == []


async def test_usage_over_time_is_answered_in_whole_steps_by_place(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    quotas = [pb.Quota(flavor=CPU, region=region, nominal_units=100) for region in (EU, US)]
    await capacity.create_pool(pool_id="feed", pool=pb.Pool(team="teams/feed", quotas=quotas))
    await capacity.book_usage(pool="pools/feed", usages=[uses(OLD, 70)])
    await capacity.book_usage(pool="pools/feed", usages=[uses(OLD, 40), uses(NEW, 5, US)])
    found = await capacity.list_usage_history(pool="pools/feed")
    assert [(one.region, len(one.points)) for one in found.series] == [(EU, 1), (US, 1)]
    assert found.step.ToTimedelta() == timedelta(hours=1)
    (point,) = found.series[0].points
    assert (point.nominal_units, point.serving_units, point.used_units) == (100, 70, 70)
    one = await capacity.list_usage_history(pool="pools/feed", region=US)
    assert [series.region for series in one.series] == [US]
    with pytest.raises(NotFound):
        await capacity.list_usage_history(pool="pools/nope")
    start = Timestamp()
    start.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(InvalidArgument, match="start_time"):
        await capacity.list_usage_history(pool="pools/feed", start_time=start)


async def test_the_tree_of_a_pool_that_does_not_exist_is_refused(
    fleet: CapacityFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = ["capacity", "pool", "tree", "--address", fleet.capacity.address]
    assert await asyncio.to_thread(main, [*tree, "nope"]) == 1
    assert "pools/nope does not exist" in capsys.readouterr().err
    assert await asyncio.to_thread(main, [*tree, "org"]) == 0
    assert "└─ b" in capsys.readouterr().out
