"""`modelfleet capacity reservation` as a user types it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import main
from tests.support.capacity import NEW, OLD, POOL, capacity_fleet, hold, make_pool, uses
from tests.support.wait import until

RESERVATION = ("capacity", "reservation")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("simulate",), "give --pool POOL and --item FLAVOR@REGION=UNITS"),
        (("simulate", "--pool", "feed", "--item", "cpu=3"), "'cpu=3' is not FLAVOR@REGION=UNITS"),
        (("create", "l1", "--pool", "feed", "--item", "cpu@eu=3", "--end", "cpu@us=3"), "there is no such --item"),
        (("settle", "r1"), "give --rolled-back, or with --uses what each model uses now"),
        (("settle", "r1", "--rolled-back", "--keep", "1h"), "--keep goes with --uses"),
        (("settle", "r1", "--uses", "cpu@eu=3"), "is not TYPE/MODEL:FLAVOR@REGION=UNITS"),
        (("create", "l1", "--pool", "feed", "--item", "cpu@eu=3", "--tier", "TIER9"), "TIER0"),
    ],
)
def test_what_cannot_be_meant_is_answered_with_what_can(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RESERVATION, *arguments]) == 1
    assert says in capsys.readouterr().err


async def test_one_that_waits_is_listed_followed_and_held_when_the_other_is_settled_by_hand(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with capacity_fleet(database_url) as fleet:
        await make_pool(fleet.client, 600)
        await fleet.client.capacity.book_usage(pool=POOL, usages=[uses(OLD, 500)])

        async def run(*arguments: str) -> str:
            status = await asyncio.to_thread(main, [*RESERVATION, *arguments, "--address", fleet.capacity.address])
            printed = capsys.readouterr()
            assert status == 0, printed.err
            return printed.out

        swap = ("--pool", "feed", "--item", "cpu@eu=584", "--end", "cpu@eu=420", "--replaces", "ctr/old")
        first = json.loads(await run("create", "first", *swap, "--ends-in", "2h", "-o", "json"))
        assert first["items"][0]["moved_units"] == "500"
        wish = ("--pool", "feed", "--item", "cpu@eu=100", "--tier", "TIER1", "--ttl", "30m", "--wait")
        waits = json.loads(await run("create", "second", *wish, "-o", "json"))
        assert (waits["state"], waits["tier"], waits["position"]) == ("PENDING", "TIER1", 1)
        (listed,) = json.loads(await run("list", "--waiting", "-o", "json"))
        assert listed["name"] == waits["name"]
        assert "launches/first frees at about" in await run("list", "--waiting", "--pool", "feed")
        assert "PENDING" in await run("renew", waits["name"], "--ttl", "2h")
        assert "HELD" in await run("renew", first["name"], "--ends-in", "5h")
        assert "SETTLED" in await run("settle", first["name"], "--uses", "ctr/new:cpu@eu=420")
        assert (await fleet.usage()).retained_units == 0

        async def nobody_waits() -> bool:
            return await run("list", "--waiting") == "Nobody waits.\n"

        await until(nobody_waits, timeout=20, every=0.1)
        for verb in ("cancel", "watch"):
            said = await run(verb, waits["name"])
            assert "CANCELLED  Cancelled by " in said and said.endswith("; 100 units are free again.\n")
        third = json.loads(await run("create", "third", "--pool", "feed", "--item", "cpu@eu=50", "-o", "json"))
        assert "SETTLED" in await run("settle", third["name"], "--uses", "ctr/new:cpu@eu=20", "--keep", "1h")
        assert (await fleet.usage()).retained_units == 30
        bookings = await fleet.client.capacity.list_bookings(pool=POOL)
        assert [(one.model, one.units) for one in bookings.bookings] == [(NEW, 440)]


async def test_one_that_is_refused_is_told_whether_waiting_would_help(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with capacity_fleet(database_url) as fleet:
        await make_pool(fleet.client, 100)

        async def refused(*arguments: str) -> str:
            command = [*RESERVATION, "create", *arguments, "--pool", "feed", "--address", fleet.capacity.address]
            status = await asyncio.to_thread(main, command)
            printed = capsys.readouterr()
            assert (status, printed.out) == (1, "")
            return printed.err

        first = hold("first", 60)
        first.items[0].end_units = 0
        first.expected_release_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
        await fleet.client.capacity.create_reservation(reservation=first)
        later = await refused("l1", "--item", "cpu@eu=80")
        assert "Fits later, at about" in later and later.endswith("To wait for it, add --wait. [QUOTA_EXCEEDED]\n")
        await fleet.client.capacity.book_usage(pool=POOL, usages=[uses(OLD, 40)])
        never = "Nothing that is held would ever free enough. [QUOTA_EXCEEDED]\n"
        for wait in ((), ("--wait",)):
            assert (await refused("l1", "--item", "cpu@eu=80", "--end", "cpu@eu=0", *wait)).endswith(never)
        # In an organisation, what a launch ends with must be its pool's own.
        await fleet.client.capacity.create_pool(pool_id="org", pool=pb.Pool(team="teams/feed"))
        await fleet.client.capacity.update_pool(pool=pb.Pool(name=POOL, parent="pools/org"))
        beyond = await refused("l1", "--item", "cpu@eu=101")
        assert "It never will: what it ends with is beyond quota and loans. [QUOTA_EXCEEDED]" in beyond
