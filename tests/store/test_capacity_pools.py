"""Pools of organisations on PostgreSQL: what two rows say is what the rule says over all pools."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from modelfleetd.capacity import holds
from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.pool import Place, Quota
from modelfleetd.capacity.domain.reservation import Asked, HoldItem, Outcome, Reservation
from modelfleetd.capacity.domain.settlement import Settlement
from modelfleetd.capacity.store import balances, pools
from modelfleetd.errors import InvalidFields, QuotaExceeded, ResourceInUse
from modelfleetd.kit.db import Database
from tests.support import reservations
from tests.support.machines import run_machine
from tests.support.organisations import EU, US, Member, available, change, make, make_flavor, nodes_of, quota

T = TypeVar("T")
MODEL = "modelTypes/ctr/models/m"
LIMITS = st.none() | st.integers(0, 25)
QUOTAS = st.fixed_dictionaries(
    {}, optional={place: st.tuples(st.integers(0, 20), LIMITS, LIMITS) for place in (EU, US)}
)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, "capacity", max_size=12)
    await make_flavor(opened)
    yield opened
    await opened.close()


async def reserve(
    database: Database, pool: str, units: dict[Place, int], replaced: tuple[str, ...] = ()
) -> Reservation:
    """Reserves peaks that end with nothing, so that what is available decides alone."""
    items = tuple(HoldItem(place.flavor, place.region, count, end_units=0) for place, count in units.items())
    asked = Asked(pool, f"launches/l{uuid.uuid4().hex}", items, replaced)
    return await reservations.reserve(database, asked)


async def book(database: Database, pool: str, place: Place, units: int) -> None:
    async with database.transaction() as conn:
        wanted = (ModelUnits(MODEL, place.flavor, place.region, units),)
        await holds.book_usage(conn, pool, wanted, "alice", "")


async def free(database: Database, pool: str, place: Place = EU) -> int:
    return (await balances.headroom(database, pool, [place], lock=False))[place].available_units


async def organisation(database: Database, *quotas: Quota) -> None:
    """pools/org, which owns nothing, with pools/a, pools/b … that own these."""
    await make(database, "pools/org")
    for letter, one in zip("abcdef", quotas, strict=False):
        await make(database, f"pools/{letter}", "pools/org", [one])


async def test_a_lends_twenty_of_its_hundred_and_uses_eighty_so_b_has_a_hundred_and_twenty(database: Database) -> None:
    await organisation(database, quota(EU, 100, lends=20), quota(EU, 100))
    await book(database, "pools/a", EU, 80)
    assert (await free(database, "pools/b"), await free(database, "pools/a")) == (120, 120)
    await reserve(database, "pools/b", {EU: 120})
    assert (await free(database, "pools/b"), await free(database, "pools/a")) == (0, 0)
    with pytest.raises(QuotaExceeded):
        await reserve(database, "pools/b", {EU: 1})
    assert await balances.differences(database) == []


async def test_a_pool_borrows_only_where_it_has_a_quota_if_only_of_nothing(database: Database) -> None:
    await organisation(database, quota(EU, 100), quota(US, 0))
    with pytest.raises(QuotaExceeded):
        await reserve(database, "pools/b", {EU: 1})
    await change(database, "pools/b", "pools/org", [quota(EU, 0)])
    await reserve(database, "pools/b", {EU: 100})
    # The organisation's own pool may use what its teams do not.
    assert await free(database, "pools/org") == 0


async def test_an_oversold_organisation_cannot_be_stored(database: Database) -> None:
    await organisation(database, quota(EU, 10), quota(EU, 10, borrows=5))
    await book(database, "pools/a", EU, 3)
    for oversold in (
        "UPDATE balances SET held_units = 16 WHERE pool = 'pools/b'",
        "UPDATE balances SET children_used_units = 21 WHERE pool = 'pools/org'",
        "UPDATE balances SET serving_units = 18 WHERE pool = 'pools/org'",
        "UPDATE balances SET ceiling_units = NULL WHERE pool = 'pools/org'",
        "UPDATE balances SET ending_units = 1 WHERE pool = 'pools/a'",
        "UPDATE balances SET children_used_units = 1 WHERE pool = 'pools/a'",
    ):
        with pytest.raises(asyncpg.CheckViolationError):
            await database.execute(oversold)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await database.execute("DELETE FROM balances WHERE pool = 'pools/org'")


async def test_a_cut_of_one_team_stops_all_who_borrow_until_usage_has_fallen_and_takes_nothing(
    database: Database,
) -> None:
    await organisation(database, quota(EU, 100), quota(EU, 100))
    held = await reserve(database, "pools/b", {EU: 150})
    await change(database, "pools/a", "pools/org", [quota(EU, 20)])
    assert (await free(database, "pools/a"), await free(database, "pools/b")) == (-30, -30)
    for pool in ("pools/a", "pools/b"):
        with pytest.raises(QuotaExceeded):
            await reserve(database, pool, {EU: 1})
    async with database.transaction() as conn:
        usages = (ModelUnits(MODEL, EU.flavor, EU.region, 110),)
        await holds.end(conn, held.name, Settlement(Outcome.SUCCEEDED, usages), "alice")
    assert await free(database, "pools/a") == 10
    await reserve(database, "pools/a", {EU: 10})
    assert await balances.differences(database) == []


async def test_what_two_pools_sum_up_to_is_deleted_with_the_last_of_them(database: Database) -> None:
    await organisation(database, quota(EU, 10), quota(EU, 10))
    for pool in ("pools/a", "pools/b"):
        async with database.transaction() as conn:
            await pools.delete(conn, await pools.lock(conn, pool, ""))
    assert await database.fetchval("SELECT count(*) FROM balances") == 0
    async with database.transaction() as conn:
        await pools.delete(conn, await pools.lock(conn, "pools/org", ""))


async def test_an_organisation_with_teams_can_be_neither_deleted_nor_joined_to_another(database: Database) -> None:
    await organisation(database, quota(EU, 10))
    await make(database, "pools/other")
    async with database.transaction() as conn:
        org = await pools.lock(conn, "pools/org", "")
        with pytest.raises(ResourceInUse):
            await pools.delete(conn, org)
    with pytest.raises(InvalidFields):
        await change(database, "pools/org", "pools/other", [])
    with pytest.raises(InvalidFields):
        await make(database, "pools/deep", "pools/a")


async def test_pools_show_what_they_and_their_teams_have_together(database: Database) -> None:
    await organisation(database, quota(EU, 10, lends=4), quota(EU, 20))
    await change(database, "pools/org", None, [quota(EU, 5), quota(US, 1)])
    await book(database, "pools/a", EU, 7)
    await book(database, "pools/b", EU, 25)
    org, team = await pools.get(database, "pools/org"), await pools.get(database, "pools/b")
    assert [(one.region, one.nominal_units) for one in org.quotas] == [(EU.region, 5), (US.region, 1)]
    eu, us = org.usages
    assert (eu.subtree_nominal_units, eu.subtree_used_units, us.subtree_nominal_units) == (35, 32, 0)
    assert (eu.available_units, eu.borrowed_units) == (3, 0)
    (own,) = team.usages
    assert (own.available_units, own.borrowed_units, own.overdue_units) == (3, 5, 5)
    assert await pools.page(database, "", "pools/a", 2) == [team, org]


async def test_many_admissions_on_two_siblings_and_their_parent_neither_collide_nor_oversell(
    database: Database,
) -> None:
    """Forwards and backwards over places, up and down the organisation, while quotas and parents change beside it."""
    both = [quota(EU, 60), quota(US, 60, lends=30)]
    for name, parent in (
        ("pools/org", None),
        ("pools/a", "pools/org"),
        ("pools/b", "pools/org"),
        ("pools/other", None),
    ):
        await make(database, name, parent, both)
    outcomes: list[str] = []

    async def admit(number: int) -> None:
        pool = ("pools/a", "pools/b", "pools/org")[number % 3]
        units = {EU: 1 + number % 4, US: 1 + number % 3} if number % 2 else {US: 2, EU: 3}
        try:
            await reserve(database, pool, units)
            outcomes.append("held")
        except QuotaExceeded:
            outcomes.append("refused")

    async def move(number: int) -> None:
        await change(database, "pools/b", ("pools/other", "pools/org")[number % 2], both)

    async with asyncio.TaskGroup() as group:
        for number in range(150):
            group.create_task(admit(number))
            if number % 25 == 0:
                group.create_task(move(number // 25))
    assert set(outcomes) == {"held", "refused"}
    assert await balances.differences(database) == []
    totals = await database.fetchrow("SELECT sum(nominal_units) AS owned, sum(used_units) AS used FROM balances")
    assert totals is not None
    assert totals["used"] <= totals["owned"]


@pytest.mark.parametrize(
    ("tampering", "says"),
    [
        ("UPDATE balances SET children_used_units = 4 WHERE pool = 'pools/org'", "BORROWED: the pools say 5"),
        ("UPDATE balances SET nominal_units = 9 WHERE pool = 'pools/b'", "STORED: the pools say 19"),
        ("UPDATE balances SET lent_units = 1 WHERE pool = 'pools/a'", "LENT: the loans say 0, the balance says 1"),
        ("UPDATE balances SET ending_units = 2 WHERE pool = 'pools/a'", "ENDING: the ledger say 0"),
        ("INSERT INTO checkpoints VALUES ('pools/b', 'flavors/cpu', 'regions/eu', 9, 7, 0, 0, 0)", "the ledger say 7"),
        # Lines that nobody wrote, after and before what was checked.
        ("INSERT INTO ledger (pool, flavor, region, account, delta_units, model, launch, reservation, actor, reason)"
         " VALUES ('pools/a', 'flavors/cpu', 'regions/eu', 'HELD', 3, '', '', '', '', '')", "HELD: the ledger say 8"),
    ],
)  # fmt: skip
async def test_tampering_is_found_without_reading_what_was_checked_before(
    database: Database, tampering: str, says: str
) -> None:
    await organisation(database, quota(EU, 10), quota(EU, 10))
    await reserve(database, "pools/a", {EU: 5})
    await balances.advance(database)
    assert await balances.differences(database, whole=False) == []
    await database.execute(tampering)
    assert says in "; ".join(await balances.differences(database, whole=False))
    # What differs is never taken for granted.
    await balances.advance(database)
    assert says in "; ".join(await balances.differences(database, whole=False))


async def test_what_was_changed_behind_the_checkpoint_is_found_by_the_check_of_the_whole_ledger(
    database: Database,
) -> None:
    await organisation(database, quota(EU, 10))
    await reserve(database, "pools/a", {EU: 5})
    await balances.advance(database)
    await database.execute("ALTER TABLE ledger DISABLE TRIGGER append_only")
    await database.execute("UPDATE ledger SET delta_units = 4")
    assert await balances.differences(database, whole=False) == []
    assert "HELD: the ledger say 4, the balance says 5" in "; ".join(await balances.differences(database))


async def test_the_check_reads_only_the_lines_since_the_last_one(database: Database) -> None:
    await organisation(database, quota(EU, 1000))
    for _ in range(40):
        await reserve(database, "pools/a", {EU: 1})
    assert await _lines_read(database) == 40
    await balances.advance(database)
    for _ in range(3):
        await reserve(database, "pools/a", {EU: 1})
    assert await _lines_read(database) == 3
    await balances.advance(database)
    await reserve(database, "pools/a", {EU: 1})
    assert await balances.differences(database, whole=False) == []
    assert await database.fetchval("SELECT held_units FROM checkpoints WHERE pool = 'pools/a'") == 43


async def _lines_read(database: Database) -> float:
    async with database.transaction() as conn:
        # A few lines would be read whole otherwise.
        await conn.execute("SET LOCAL enable_seqscan = off")
        plan = await conn.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {balances.LEDGER_SINCE}", ["pools/org", "pools/a"])
    scans = [node for node in nodes_of(plan) if node.get("Relation Name") == "ledger"]
    assert {scan["Index Name"] for scan in scans} == {"ledger_place"}
    return float(sum(scan["Actual Rows"] * scan["Actual Loops"] for scan in scans))


async def test_pools_are_read_in_one_statement_by_keys(database: Database) -> None:
    """Whether one or a page of them is asked for, and however many pools and siblings there are."""
    async with database.transaction() as conn:
        await conn.execute(
            "INSERT INTO pools (name, team) SELECT 'pools/o' || o, 'teams/feed' FROM generate_series(1, 20) o"
        )
        await conn.execute(
            """INSERT INTO pools (name, team, parent) SELECT 'pools/o' || o || '-' || p, 'teams/feed', 'pools/o' || o
               FROM generate_series(1, 20) o, generate_series(1, 100) p"""
        )
        await conn.execute(
            """INSERT INTO balances (pool, parent, flavor, region, nominal_units, ceiling_units, children_stored_units)
               SELECT name, parent, 'flavors/cpu', 'regions/r' || r, 10, CASE WHEN parent IS NULL THEN 1010 END,
                   CASE WHEN parent IS NULL THEN 1000 ELSE 0 END
               FROM pools, generate_series(1, 3) r ORDER BY parent IS NOT NULL"""
        )
    await database.execute("ANALYZE pools; ANALYZE balances")
    plan = await database.fetchval(
        f"EXPLAIN (ANALYZE, FORMAT JSON) {pools.WITH_USAGES} WHERE o.name = $1", "pools/o7-42"
    )
    assert not [node for node in nodes_of(plan) if node["Node Type"] == "Seq Scan"]
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in nodes_of(plan) if "Relation Name" in node) <= 7
    # The organisation's own adds up what its hundred teams have.
    plan = await database.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {pools.WITH_USAGES} WHERE o.name = $1", "pools/o7")
    read = [node for node in nodes_of(plan) if "Relation Name" in node and node["Actual Loops"]]
    assert {node["Node Type"] for node in read} <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in read) <= 1 + 3 + 3 * 100
    page = await pools.page(database, "pools/o7", "pools/o7-98", 10)
    assert [pool.name for pool in page] == ["pools/o7-99"]
    (org,) = await pools.page(database, "pools/o7", "", 1)
    assert [(one.available_units, one.subtree_nominal_units) for one in org.usages] == [(1010, 1010)] * 3
    plan = await database.fetchval(
        f"EXPLAIN (ANALYZE, FORMAT JSON) {balances.LOCKED}", "pools/o7-42", [EU.flavor], ["regions/r2"]
    )
    read = [node for node in nodes_of(plan) if "Relation Name" in node]
    assert {node["Node Type"] for node in read} <= {"Index Scan", "Bitmap Heap Scan"}
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in read) == 2


class Organisations(RuleBasedStateMachine):
    """Changes pools at random, and expects what the rule says over all of them."""

    runner: asyncio.Runner
    database: Database
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.number = next(self.numbers)
        self.fleet: dict[str, Member] = {}
        self.live: dict[str, tuple[str, dict[Place, int]]] = {}
        for index in range(5):
            name, parent = self.name(index), self.name(0) if index in (2, 3, 4) else None
            self.fleet[name] = Member(parent)
            self.do(make(self.database, name, parent))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def name(self, index: int) -> str:
        return f"pools/p{self.number}-{index}"

    @rule(index=st.integers(0, 4), quotas=QUOTAS, moves=st.booleans(), below=st.sampled_from([None, 0, 1]))
    def changes(self, index: int, quotas: dict[Place, tuple[int, Any, Any]], moves: bool, below: int | None) -> None:
        member = self.fleet[self.name(index)]
        parent = member.parent if not moves or index < 2 else None if below is None else self.name(below)
        wanted = {place: quota(place, n, borrows=b, lends=k) for place, (n, b, k) in quotas.items()}
        self.do(change(self.database, self.name(index), parent, wanted.values()))
        member.parent, member.quotas = parent, wanted

    @rule(index=st.integers(0, 4), units=st.dictionaries(st.sampled_from([EU, US]), st.integers(0, 30), min_size=1))
    def reserves(self, index: int, units: dict[Place, int]) -> None:
        name = self.name(index)
        fits = all(not count or count <= available(self.fleet, name, place) for place, count in units.items())
        try:
            made = self.do(reserve(self.database, name, units))
        except QuotaExceeded:
            assert not fits
        else:
            assert fits
            self.live[made.name] = (name, units)
            self._add(name, units, 1)
            assert all(not count or available(self.fleet, name, place) >= 0 for place, count in units.items())

    @rule(index=st.integers(0, 4), place=st.sampled_from([EU, US]), units=st.integers(0, 30))
    def books(self, index: int, place: Place, units: int) -> None:
        name = self.name(index)
        before = {one.place: one.units for one in self.do(balances.bookings_of(self.database, name, [MODEL]))}.get(
            place, 0
        )
        fits = units <= before or units - before <= available(self.fleet, name, place)
        try:
            self.do(book(self.database, name, place, units))
        except QuotaExceeded:
            assert not fits
        else:
            assert fits
            self._add(name, {place: units - before}, 1)

    @rule(data=st.data(), succeeds=st.booleans())
    def settles(self, data: st.DataObject, succeeds: bool) -> None:
        if not self.live:
            return
        name = data.draw(st.sampled_from(sorted(self.live)))
        pool, units = self.live.pop(name)
        booked = tuple(ModelUnits(MODEL, place.flavor, place.region, count // 2) for place, count in units.items())
        settlement = Settlement(Outcome.SUCCEEDED, booked) if succeeds else Settlement(Outcome.ROLLED_BACK)
        self.do(self._settle(name, settlement))
        freed = {place: count - count // 2 if succeeds else count for place, count in units.items()}
        self._add(pool, freed, -1)

    async def _settle(self, name: str, settlement: Settlement) -> None:
        async with self.database.transaction() as conn:
            await holds.end(conn, name, settlement, "alice")

    def _add(self, pool: str, units: dict[Place, int], times: int) -> None:
        used = self.fleet[pool].used
        for place, count in units.items():
            used[place] = used.get(place, 0) + times * count

    @invariant()
    def two_rows_say_what_all_pools_say(self) -> None:
        for name in self.fleet:
            rooms = self.do(balances.headroom(self.database, name, lock=False))
            for place in (EU, US):
                stated = rooms[place].available_units if place in rooms else 0
                expected = available(self.fleet, name, place)
                if place in rooms:
                    assert stated == expected, (name, place)
                else:
                    assert expected <= 0
        assert self.do(balances.differences(self.database)) == []


def test_two_rows_say_what_the_rule_says_whatever_is_cut_moved_reserved_and_settled(database_url: str) -> None:
    async def open_database() -> Database:
        opened = await Database.open(database_url, "capacity", max_size=2)
        await make_flavor(opened)
        return opened

    with asyncio.Runner() as runner:
        Organisations.runner, Organisations.database = runner, runner.run(open_database())
        try:
            run_machine(Organisations, examples=15, steps=16)
        finally:
            runner.run(Organisations.database.close())
