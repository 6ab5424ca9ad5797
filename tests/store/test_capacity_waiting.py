"""Waiting on PostgreSQL: whatever launches, owners and time do, the line keeps its rules and simulation is true."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity import holds, lines
from modelfleetd.capacity.admissions import Admissions
from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.pool import Flavor, Place, Pool, Quota
from modelfleetd.capacity.domain.reservation import Asked, HoldItem, Outcome, Reservation, State, Tier, rank
from modelfleetd.capacity.domain.settlement import Settlement
from modelfleetd.capacity.domain.simulation import When, simulate
from modelfleetd.capacity.store import balances, flavors, pools, reservations
from modelfleetd.capacity.waiters import Waiters
from modelfleetd.errors import (
    EndStateExceedsQuota,
    QuotaExceeded,
    ReferenceNotFound,
    RequestIdReused,
    ResourceExists,
)
from modelfleetd.kit.db import Database
from tests.support.machines import run_machine
from tests.support.reservations import arrival, reserve

T = TypeVar("T")
CPU, EU, US = "flavors/cpu", "regions/eu", "regions/us"
HERE, THERE = Place(CPU, EU), Place(CPU, US)
OLD, NEW = "modelTypes/ctr/models/old", "modelTypes/ctr/models/new"
SOON, HOUR = timedelta(microseconds=1), timedelta(hours=1)
POOL = "pools/feed"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await open_database(database_url)
    yield opened
    await opened.close()


async def open_database(url: str) -> Database:
    opened = await Database.open(url, "capacity", max_size=6)
    async with opened.transaction() as conn:
        await flavors.insert(conn, Flavor(CPU, "", 1.0))
    return opened


async def make_pool(database: Database, name: str, units: int, parent: str | None = None) -> None:
    async with database.transaction() as conn:
        quotas = tuple(Quota(place.flavor, place.region, units) for place in (HERE, THERE))
        await pools.insert(conn, Pool(name, "teams/feed", parent, quotas))


def asks(launch: str, units: int, end: int | None = 0, *, pool: str = POOL, **fields: Any) -> Asked:
    fields.setdefault("expected_release_time", datetime.now(UTC) + HOUR)
    return Asked(pool, f"launches/{launch}", (HoldItem(CPU, EU, units, end_units=end),), **fields)


async def used(database: Database, pool: str = POOL) -> tuple[int, int]:
    found = (await balances.headroom(database, pool, lock=False))[HERE]
    return found.serving_units, found.held_units


async def test_those_that_come_together_share_a_transaction_and_are_refused_alone(database: Database) -> None:
    await make_pool(database, POOL, 100)
    await reserve(database, asks("taken", 1))
    key = str(uuid.uuid4())
    arrivals = [
        arrival(asks("first", 60)),
        arrival(asks("large", 60)),
        arrival(asks("taken", 1)),
        arrival(asks("again", 10), key=key),
        arrival(asks("again", 10), key=key),
        arrival(Asked(POOL, "launches/odd", (HoldItem("flavors/none", EU, 1),))),
        arrival(asks("other", 1), key=key),
        arrival(asks("last", 29)),
    ]
    admissions = Admissions(database)
    done = await asyncio.gather(*map(admissions.reserve, arrivals), return_exceptions=True)
    kinds = [type(one) for one in done]
    assert kinds == [
        pb.Reservation, QuotaExceeded, ResourceExists, pb.Reservation, pb.Reservation, ReferenceNotFound,
        RequestIdReused, pb.Reservation,
    ]  # fmt: skip
    assert done[3] == done[4]
    assert await used(database) == (0, 100)
    # The first came to nobody at work; all others waited for it, and were committed together.
    times = await database.fetchval("SELECT count(DISTINCT create_time) FROM reservations WHERE sequence > 1")
    assert times == 2
    assert await balances.differences(database) == []


async def test_what_one_moves_is_not_there_for_the_next_in_the_same_transaction(database: Database) -> None:
    await make_pool(database, POOL, 100)
    async with database.transaction() as conn:
        await holds.book_usage(conn, POOL, (ModelUnits(OLD, CPU, EU, 40),), "alice", "")
    admissions = Admissions(database)
    first, *others = await asyncio.gather(
        *(admissions.reserve(arrival(asks(f"l{number}", 20, replaced_models=(OLD,)))) for number in range(4)),
        return_exceptions=True,
    )
    assert isinstance(first, pb.Reservation)
    assert first.items[0].moved_units == 40
    assert [one.items[0].moved_units for one in others if isinstance(one, pb.Reservation)] == [0, 0, 0]
    assert await used(database) == (0, 100)
    assert await balances.differences(database) == []


async def test_the_same_launch_in_two_pools_at_once_gets_one_reservation(database: Database) -> None:
    names = [f"pools/p{number}" for number in range(6)]
    for name in names:
        await make_pool(database, name, 10)
    admissions = Admissions(database)
    done = await asyncio.gather(
        *(admissions.reserve(arrival(asks("one", 1, pool=name))) for name in names), return_exceptions=True
    )
    made = [one for one in done if isinstance(one, pb.Reservation)]
    refused = [one for one in done if isinstance(one, ResourceExists)]
    assert (len(made), len(refused)) == (1, 5)
    assert {error.metadata["resource"] for error in refused} == {made[0].name}
    assert await balances.differences(database) == []


async def test_two_replicas_that_serve_the_line_hold_each_once(database: Database) -> None:
    await make_pool(database, POOL, 100)
    first = await reserve(database, asks("first", 100))
    for number in range(10):
        await reserve(database, asks(f"w{number}", 10), may_wait=True)
    async with database.transaction() as conn:
        await holds.end(conn, first.name, Settlement(Outcome.SUCCEEDED, ()), "alice")
    await asyncio.gather(*(Waiters(database, "service/capacity").serve() for _ in range(3)))
    assert await used(database) == (0, 100)
    held = await database.fetchval("SELECT count(*) FROM ledger WHERE reason = 'held after waiting'")
    assert held == 10
    assert await balances.differences(database) == []


async def test_waiting_reads_by_index_whatever_is_held_besides(database: Database) -> None:
    """What is asked for each time that somebody reserves does not grow with what is live."""
    await make_pool(database, POOL, 10**9)
    await database.execute(
        """INSERT INTO reservations (name, pool, launch, state, replaced_models, expire_time, hold_time)
           SELECT 'reservations/h' || n, 'pools/feed', 'launches/h' || n, 'HELD', '{}', now(), now()
           FROM generate_series(1, 20000) n"""
    )
    await database.execute("ANALYZE")
    seen = [
        ("reservations_waiting", reservations.WAITING, ("pools/feed",)),
        ("reservations_live", reservations.LIVE, (["launches/h7"],)),
        ("reservations_releasing", reservations.RELEASES, ("pools/feed", [CPU], [EU])),
    ]
    for index, statement, arguments in seen:
        rows = await database.fetch(f"EXPLAIN {statement}", *arguments)
        plan = "\n".join(row["QUERY PLAN"] for row in rows)
        assert index in plan, plan
        assert "Seq Scan on reservations" not in plan, plan


@dataclass
class Live:
    """What the machine knows of a reservation that has not ended."""

    name: str
    pool: str
    active: bool = False


MOSTLY = st.sampled_from([True, True, True, False])
TIERS = st.sampled_from([None, Tier.TIER0, Tier.TIER2])


class Lines(RuleBasedStateMachine):
    """An organisation with two teams: launches reserve, wait, renew, settle and vanish; quotas are cut and raised."""

    runner: asyncio.Runner
    database: Database
    numbers = itertools.count()
    outcomes: ClassVar[Counter[State]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        number = next(self.numbers)
        self.organisation, self.teams = f"pools/o{number}", (f"pools/a{number}", f"pools/b{number}")
        self.live: dict[str, Live] = {}
        self.do(make_pool(self.database, self.organisation, 10))
        for team in self.teams:
            self.do(make_pool(self.database, team, 30, self.organisation))
        self.booked = self.do(self._book())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def _book(self) -> None:
        async with self.database.transaction() as conn:
            await holds.book_usage(conn, self.teams[0], (ModelUnits(OLD, CPU, EU, 12),), "alice", "")

    @rule(
        units=st.integers(1, 45),
        end=st.integers(0, 12),
        there=st.sampled_from([0, 0, 5, 20]),
        team=st.integers(0, 1),
        tier=TIERS,
        may_wait=MOSTLY,
        replaces=st.booleans(),
        known=MOSTLY,
        soon=st.sampled_from([False, False, False, True]),
    )
    def reserves(
        self,
        units: int,
        end: int,
        there: int,
        team: int,
        tier: Tier | None,
        may_wait: bool,
        replaces: bool,
        known: bool,
        soon: bool,
    ) -> None:
        items = [HoldItem(CPU, EU, units, end_units=min(units, end))]
        items += [HoldItem(CPU, US, there, end_units=0)] if there else []
        asked = Asked(
            self.teams[team],
            f"launches/l{uuid.uuid4().hex}",
            tuple(items),
            (OLD,) if replaces else (),
            tier,
            datetime.now(UTC) + HOUR if known else None,
        )
        expected = self.do(self._simulated(asked))
        before = self.do(self._waiting())
        try:
            made = self.do(reserve(self.database, asked, SOON if soon else HOUR, may_wait=may_wait))
        except QuotaExceeded:
            assert expected is When.NEVER or (expected is When.LATER and not may_wait)
        except EndStateExceedsQuota:
            assert expected is When.NEVER
        else:
            assert (expected, made.state) in {(When.NOW, State.HELD), (When.LATER, State.PENDING)}
            self.live[made.name] = Live(made.name, made.pool)
            self.outcomes[made.state] += 1
            self._expect_nobody_lost(before, made)

    async def _simulated(self, asked: Asked) -> When:
        """What simulating says; and it changes nothing."""
        everything = "SELECT count(*), sum(version) FROM reservations"
        before = await self.database.fetchrow(everything), await self.database.fetchval("SELECT count(*) FROM ledger")
        async with self.database.transaction(readonly=True) as conn:
            view = await lines.view(conn, asked.pool, [asked], lock=False, wait=True)
        answer = simulate(asked, (), lambda each: view.line.prospect_of(view.claim("", 2**62, each))).answer
        after = await self.database.fetchrow(everything), await self.database.fetchval("SELECT count(*) FROM ledger")
        assert before == after
        return answer

    async def _waiting(self) -> dict[str, Reservation]:
        return {one.name: one for one in await reservations.waiting(self.database, self.organisation)}

    def _expect_nobody_lost(self, before: dict[str, Reservation], made: Reservation) -> None:
        """Whoever waited for something, and is as important, still does, or can be held."""
        for name, one in before.items():
            if one.promises and rank(one.tier) <= rank(made.tier):
                prospect = self.do(self._prospect(name))
                assert prospect.fits or prospect.can_wait

    async def _prospect(self, name: str) -> Any:
        async with self.database.transaction(readonly=True) as conn:
            view = await lines.view(conn, self.organisation, (), lock=False, wait=True)
        return next(one for one in view.line.prospects() if one.claim.reservation == name)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), how=st.sampled_from(["activate", "renew", "cancel", "succeed", "roll back"]))
    def goes_on(self, data: st.DataObject, how: str) -> None:
        one = self.live[data.draw(st.sampled_from(sorted(self.live)))]
        found = self.do(reservations.get(self.database, one.name))
        if found.state is State.HELD and how == "activate":
            self.do(self._change(lambda conn: holds.activate(conn, one.name)))
        elif how == "renew":
            later = datetime.now(UTC) + data.draw(st.sampled_from([-HOUR, HOUR, 5 * HOUR]))
            self.do(self._change(lambda conn: holds.renew(conn, one.name, HOUR, later)))
        elif how == "cancel" and found.activate_time is None:
            self.do(self._change(lambda conn: holds.cancel(conn, one.name, "alice")))
            del self.live[one.name]
        elif found.state is State.HELD and how in ("succeed", "roll back"):
            end = found.items[0].ends_with
            keeps = data.draw(st.sampled_from([timedelta(), SOON, HOUR]))
            settlement = Settlement(Outcome.SUCCEEDED, (ModelUnits(NEW, CPU, EU, end),), keeps)
            if how == "roll back":
                settlement = Settlement(Outcome.ROLLED_BACK)
            self.do(self._change(lambda conn: holds.end(conn, one.name, settlement, "alice")))
            del self.live[one.name]

    @rule(team=st.integers(0, 1), units=st.sampled_from([0, 15, 30, 30, 45, 60]))
    def a_quota_changes(self, team: int, units: int) -> None:
        async def update(conn: Any) -> None:
            current = await pools.lock(conn, self.teams[team], "")
            quotas = tuple(Quota(CPU, place.region, units) for place in (HERE, THERE))
            await pools.update(conn, Pool(current.name, current.team, current.parent, quotas))

        self.do(self._change(update))

    @rule()
    def time_passes_and_those_who_wait_are_served(self) -> None:
        self.do(self._sweep())
        states = self.do(self._states())
        self.live = {name: one for name, one in self.live.items() if states[name] in (State.PENDING, State.HELD)}
        waiting = self.do(self._waiting())
        held = {name for name, state in states.items() if state is State.HELD}
        kept = self.do(self._kept())
        for one in waiting.values():
            # Nobody who fits is left waiting, and nobody waits for one who waits.
            prospect = self.do(self._prospect(one.name))
            assert not prospect.fits
            assert one.promises == prospect.promises
            assert {promise.reservation for promise in one.promises} <= held | kept
            assert one.message
            assert one.position == prospect.position

    async def _sweep(self) -> None:
        while await holds.expire_one(self.database, "service/capacity"):
            pass
        while await holds.release_one(self.database, "service/capacity"):
            pass
        await Waiters(self.database, "service/capacity").serve()

    async def _states(self) -> dict[str, State]:
        rows = await self.database.fetch("SELECT name, state FROM reservations WHERE pool = ANY($1)", list(self.teams))
        return {row["name"]: State(row["state"]) for row in rows}

    async def _kept(self) -> set[str]:
        rows = await self.database.fetch("SELECT name FROM reservations WHERE retain_until IS NOT NULL")
        return {row["name"] for row in rows}

    @invariant()
    def the_books_agree_and_what_waits_uses_nothing(self) -> None:
        assert self.do(balances.differences(self.database)) == []
        assert not self.do(
            self.database.fetchval(
                """SELECT count(*) FROM reservation_models JOIN reservations ON name = reservation
                   WHERE state = 'PENDING'"""
            )
        )

    async def _change(self, act: Any) -> Any:
        async with self.database.transaction() as conn:
            return await act(conn)


def test_the_line_keeps_its_rules_whatever_happens(database_url: str) -> None:
    with asyncio.Runner() as runner:
        Lines.runner, Lines.database = runner, runner.run(open_database(database_url))
        try:
            run_machine(Lines, examples=8, steps=25, derandomize=True)
            # It has been where it was meant to go.
            served = "SELECT count(*) FROM ledger WHERE reason = 'held after waiting'"
            assert Lines.outcomes[State.PENDING] > 5
            assert runner.run(Lines.database.fetchval(served)) > 0
        finally:
            runner.run(Lines.database.close())
