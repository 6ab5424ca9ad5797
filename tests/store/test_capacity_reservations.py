"""Reservations on PostgreSQL against a model in a dictionary, and what the schema makes unstorable."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelfleetd.capacity import holds
from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.pool import Flavor, Place, Pool, Quota
from modelfleetd.capacity.domain.reservation import Asked, HoldItem, Outcome, State
from modelfleetd.capacity.domain.settlement import Settlement
from modelfleetd.capacity.store import balances, flavors, pools, reservations
from modelfleetd.errors import FleetError, QuotaExceeded, ResourceExists, SettlementExceedsHold, WrongState
from modelfleetd.kit.db import Database
from tests.support.machines import run_machine
from tests.support.reservations import prospect_of, reserve

T = TypeVar("T")
CPU, PLACES = "flavors/cpu", [Place("flavors/cpu", "regions/eu"), Place("flavors/cpu", "regions/us")]
MODELS = [f"modelTypes/ctr/models/m{index}" for index in range(3)]
SOON, LATER = timedelta(microseconds=1), timedelta(hours=1)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, "capacity", max_size=4)
    async with opened.transaction() as conn:
        await flavors.insert(conn, Flavor(CPU, "", 1.0))
    yield opened
    await opened.close()


async def make_pool(database: Database, name: str, units: int) -> None:
    async with database.transaction() as conn:
        quotas = tuple(Quota(place.flavor, place.region, units) for place in PLACES)
        await pools.insert(conn, Pool(name, "teams/feed", None, quotas))


def asks(pool: str, launch: str, units: dict[Place, int], replaced: tuple[str, ...] = ()) -> Asked:
    items = tuple(HoldItem(place.flavor, place.region, count) for place, count in units.items())
    return Asked(pool, f"launches/{launch}", items, replaced)


@dataclass
class Held:
    """The machine's own idea of a live hold."""

    name: str
    launch: str
    hold: dict[Place, int]
    moved: dict[tuple[str, Place], int]
    soon: bool
    active: bool = False
    replaced: frozenset[str] = frozenset()


@dataclass
class Books:
    """The machine's own idea of a pool."""

    nominal: dict[Place, int]
    serving: dict[tuple[str, Place], int] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    retained: list[dict[Place, int]] = field(default_factory=list)

    def used(self, place: Place) -> int:
        return (
            sum(units for (_, at), units in self.serving.items() if at == place)
            + sum(one.hold.get(place, 0) for one in self.held.values())
            + sum(kept.get(place, 0) for kept in self.retained)
        )

    def add(self, model: str, place: Place, units: int) -> None:
        self.serving[model, place] = self.serving.get((model, place), 0) + units


UNITS = st.fixed_dictionaries({}, optional={place: st.integers(0, 12) for place in PLACES}).filter(bool)


class Reservations(RuleBasedStateMachine):
    """Does at random what launches, capacity owners and the worker do, and expects what the dictionary says."""

    runner: asyncio.Runner
    database: Database
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.pool = f"pools/p{next(self.numbers)}"
        self.books = Books(dict.fromkeys(PLACES, 30))
        self.do(make_pool(self.database, self.pool, 30))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @rule(launch=st.integers(0, 3), units=UNITS, replaced=st.sets(st.sampled_from(MODELS)), soon=st.booleans())
    def reserves(self, launch: int, units: dict[Place, int], replaced: set[str], soon: bool) -> None:
        books, name = self.books, f"{self.pool.removeprefix('pools/')}-{launch}"
        asked = asks(self.pool, name, units, tuple(sorted(replaced)))
        moved = {
            (model, place): count
            for (model, place), count in books.serving.items()
            if model in replaced and place in units and count
        }
        hold = {
            place: max(count, sum(n for (_, at), n in moved.items() if at == place)) for place, count in units.items()
        }
        extra = {place: hold[place] - sum(n for (_, at), n in moved.items() if at == place) for place in hold}
        fits = all(not count or count <= books.nominal[place] - books.used(place) for place, count in extra.items())
        simulated = self.do(prospect_of(self.database, asked)).admission
        assert simulated.admitted == fits
        try:
            made = self.do(reserve(self.database, asked, SOON if soon else LATER))
        except QuotaExceeded:
            assert not fits
            assert name not in books.held
        except ResourceExists:
            assert name in books.held
        else:
            assert fits
            assert name not in books.held
            assert made.items == simulated.items
            for key in moved:
                del books.serving[key]
            books.held[name] = Held(made.name, name, hold, moved, soon, replaced=frozenset(replaced))

    @precondition(lambda self: self.books.held)
    @rule(data=st.data())
    def activates(self, data: st.DataObject) -> None:
        one = self._pick(data)
        self.do(self._change(lambda conn: holds.activate(conn, one.name)))
        one.active = True

    @precondition(lambda self: self.books.held)
    @rule(data=st.data())
    def cancels(self, data: st.DataObject) -> None:
        one = self._pick(data)
        try:
            self.do(self._change(lambda conn: holds.cancel(conn, one.name, "alice")))
        except WrongState:
            assert one.active
        else:
            assert not one.active
            self._undo(one)

    @precondition(lambda self: self.books.held)
    @rule(data=st.data(), rolls_back=st.booleans(), keeps=st.booleans(), times=st.integers(1, 2))
    def settles(self, data: st.DataObject, rolls_back: bool, keeps: bool, times: int) -> None:
        one = self._pick(data)
        # What the replaced models have got booked meanwhile counts as held where the launch succeeds.
        serving = self.books.serving.items()
        over = {key: n for key, n in serving if key[0] in one.replaced and key[1] in one.hold and not rolls_back}
        limit = {place: n + sum(m for (_, at), m in over.items() if at == place) for place, n in one.hold.items()}
        if rolls_back:
            settlement, usages = Settlement(Outcome.ROLLED_BACK), one.moved
        else:
            usages = {(MODELS[0], place): data.draw(st.integers(0, most + 1)) for place, most in limit.items()}
            booked = tuple(ModelUnits(model, at.flavor, at.region, n) for (model, at), n in usages.items())
            settlement = Settlement(Outcome.SUCCEEDED, booked, SOON if keeps else timedelta())
        try:
            for _ in range(times):
                self.do(self._change(lambda conn: holds.end(conn, one.name, settlement, "alice")))
        except SettlementExceedsHold:
            assert any(units > limit[place] for (_, place), units in usages.items())
            return
        del self.books.held[one.launch]
        for key in over:
            del self.books.serving[key]
        for (model, place), units in usages.items():
            self.books.add(model, place, units)
        if keeps and not rolls_back:
            self.books.retained.append({at: n - usages.get((MODELS[0], at), 0) for at, n in limit.items()})

    @rule()
    def time_passes(self) -> None:
        self.do(self._sweep())
        for one in [one for one in self.books.held.values() if one.soon and not one.active]:
            self._undo(one)
        self.books.retained.clear()

    async def _sweep(self) -> None:
        while await holds.expire_one(self.database, "service/capacity"):
            pass
        while await holds.release_one(self.database, "service/capacity"):
            pass

    @rule(model=st.sampled_from(MODELS), place=st.sampled_from(PLACES), units=st.integers(0, 20))
    def books_usage(self, model: str, place: Place, units: int) -> None:
        wanted = (ModelUnits(model, place.flavor, place.region, units),)
        growth = units - self.books.serving.get((model, place), 0)
        fits = growth <= 0 or growth <= self.books.nominal[place] - self.books.used(place)
        try:
            self.do(self._change(lambda conn: holds.book_usage(conn, self.pool, wanted, "alice", "")))
        except QuotaExceeded:
            assert not fits
        else:
            assert fits
            self.books.serving[model, place] = units

    @rule(place=st.sampled_from(PLACES), nominal=st.integers(0, 40))
    def changes_a_quota(self, place: Place, nominal: int) -> None:
        self.books.nominal[place] = nominal
        quotas = tuple(Quota(at.flavor, at.region, units) for at, units in self.books.nominal.items())
        self.do(self._change(lambda conn: self._update(conn, quotas)))

    async def _update(self, conn: Any, quotas: tuple[Quota, ...]) -> None:
        current = await pools.lock(conn, self.pool, "")
        await pools.update(conn, Pool(current.name, current.team, None, quotas))

    @invariant()
    def the_books_agree(self) -> None:
        usages = self.do(balances.headroom(self.database, self.pool, lock=False))
        for place in PLACES:
            assert usages[place].available_units == self.books.nominal[place] - self.books.used(place)
        serving = {
            (one.model, one.place): one.units for one in self.do(balances.bookings_of(self.database, self.pool, MODELS))
        }
        assert serving == {key: units for key, units in self.books.serving.items() if units}
        assert self.do(balances.differences(self.database)) == []

    def _undo(self, one: Held) -> None:
        del self.books.held[one.launch]
        for (model, place), units in one.moved.items():
            self.books.add(model, place, units)

    def _pick(self, data: st.DataObject) -> Held:
        return self.books.held[data.draw(st.sampled_from(sorted(self.books.held)))]

    async def _change(self, act: Any) -> Any:
        async with self.database.transaction() as conn:
            return await act(conn)


def test_reservations_do_what_a_dictionary_says_and_the_books_always_agree(database_url: str) -> None:
    async def open_database() -> Database:
        opened = await Database.open(database_url, "capacity", max_size=2)
        async with opened.transaction() as conn:
            await flavors.insert(conn, Flavor(CPU, "", 1.0))
        return opened

    with asyncio.Runner() as runner:
        Reservations.runner, Reservations.database = runner, runner.run(open_database())
        try:
            run_machine(Reservations, examples=10, steps=25)
        finally:
            runner.run(Reservations.database.close())


async def test_a_success_may_keep_what_was_booked_meanwhile_for_the_model_that_it_replaced_beside_all_that_it_held(
    database: Database,
) -> None:
    await make_pool(database, "pools/feed", 20)
    place, old, new = PLACES[0], *MODELS[:2]
    made = await reserve(database, asks("pools/feed", "l1", {place: 10}, (old,)))
    async with database.transaction() as conn:
        # A mitigation had precedence, and grew the baseline.
        await holds.book_usage(conn, "pools/feed", (ModelUnits(old, place.flavor, place.region, 4),), "alice", "")
    booked = (ModelUnits(new, place.flavor, place.region, 1),)
    async with database.transaction() as conn:
        await holds.end(conn, made.name, Settlement(Outcome.SUCCEEDED, booked, LATER), "alice")
    assert (await reservations.get(database, made.name)).retained == (HoldItem(place.flavor, place.region, 13),)
    assert (await balances.headroom(database, "pools/feed", lock=False))[place].available_units == 6
    assert await balances.differences(database) == []


async def test_a_balance_beyond_its_quota_cannot_be_stored(database: Database) -> None:
    await make_pool(database, "pools/feed", 10)
    with pytest.raises(asyncpg.CheckViolationError, match="never_oversold"):
        await database.execute("UPDATE balances SET held_units = 11")


async def test_the_ledger_is_append_only(database: Database) -> None:
    await make_pool(database, "pools/feed", 10)
    await reserve(database, asks("pools/feed", "l1", {PLACES[0]: 5}))
    for statement in ("UPDATE ledger SET delta_units = 1", "DELETE FROM ledger", "TRUNCATE ledger"):
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await database.execute(statement)


@pytest.mark.parametrize(
    ("tampering", "says"),
    [
        ("UPDATE balances SET held_units = held_units + 1", "the ledger say 5, the balance says 6"),
        ("UPDATE reservation_items SET hold_units = hold_units - 1", "the reservations say 4, the balance says 5"),
        ("INSERT INTO bookings VALUES ('pools/feed', 'm', 'flavors/cpu', 'regions/eu', 3)", "the bookings say 3"),
    ],
)
async def test_tampering_with_the_books_is_found(database: Database, tampering: str, says: str) -> None:
    await make_pool(database, "pools/feed", 10)
    await reserve(database, asks("pools/feed", "l1", {PLACES[0]: 5}))
    assert await balances.differences(database) == []
    await database.execute(tampering)
    assert says in "; ".join(await balances.differences(database))


async def test_two_reservations_that_cross_places_in_opposite_order_do_not_wait_in_a_circle(
    database: Database,
) -> None:
    await make_pool(database, "pools/feed", 10_000)
    forwards, backwards = dict.fromkeys(PLACES, 1), dict.fromkeys(reversed(PLACES), 1)
    async with asyncio.TaskGroup() as group:
        for index in range(40):
            units = forwards if index % 2 else backwards
            group.create_task(reserve(database, asks("pools/feed", f"l{index}", units)))
    assert await balances.differences(database) == []


async def test_a_cut_below_usage_admits_nothing_takes_nothing_and_recovers_as_holds_end(database: Database) -> None:
    await make_pool(database, "pools/feed", 10)
    made = await reserve(database, asks("pools/feed", "l1", {PLACES[0]: 8}))
    async with database.transaction() as conn:
        current = await pools.lock(conn, "pools/feed", "")
        await pools.update(conn, Pool(current.name, current.team, None, (Quota(CPU, "regions/eu", 5),)))
    usages = await balances.headroom(database, "pools/feed", lock=False)
    assert usages[PLACES[0]].available_units == -3
    assert PLACES[1] not in usages
    with pytest.raises(QuotaExceeded):
        await reserve(database, asks("pools/feed", "l2", {PLACES[0]: 1}))
    async with database.transaction() as conn:
        await holds.cancel(conn, made.name, "alice")
    await reserve(database, asks("pools/feed", "l2", {PLACES[0]: 5}))
    with pytest.raises(asyncpg.CheckViolationError):
        await database.execute("UPDATE balances SET held_units = 6")


async def test_two_workers_expire_each_hold_once(database: Database) -> None:
    await make_pool(database, "pools/feed", 100)
    for index in range(20):
        await reserve(database, asks("pools/feed", f"l{index}", {PLACES[0]: 1}), SOON)

    async def sweep() -> int:
        count = 0
        while await holds.expire_one(database, "service/capacity"):
            count += 1
        return count

    assert sum(await asyncio.gather(sweep(), sweep(), sweep())) == 20
    rows = await reservations.page(database, "pools/feed", "", 2**62, 100)
    assert {row.reservation.state for row in rows} == {State.EXPIRED}
    assert (await balances.headroom(database, "pools/feed", lock=False))[PLACES[0]].available_units == 100


async def test_a_launch_has_one_live_reservation_and_may_have_another_after_it_ended(database: Database) -> None:
    await make_pool(database, "pools/feed", 100)
    first = await reserve(database, asks("pools/feed", "l1", {PLACES[0]: 1}))
    with pytest.raises(ResourceExists) as refused:
        await reserve(database, asks("pools/feed", "l1", {PLACES[1]: 1}))
    assert refused.value.metadata["resource"] == first.name
    async with database.transaction() as conn:
        await holds.end(conn, first.name, Settlement(Outcome.ROLLED_BACK), "alice")
    second = await reserve(database, asks("pools/feed", "l1", {PLACES[1]: 1}))
    assert second.name != first.name


async def test_a_transaction_that_fails_half_way_changes_nothing(database: Database) -> None:
    await make_pool(database, "pools/feed", 100)

    made = await reserve(database, asks("pools/feed", "l1", {PLACES[0]: 1}))

    async def fails() -> None:
        async with database.transaction() as conn:
            await holds.end(conn, made.name, Settlement(Outcome.ROLLED_BACK), "alice")
            raise FleetError("half way")

    with pytest.raises(FleetError):
        await fails()
    assert (await balances.headroom(database, "pools/feed", lock=False))[PLACES[0]].available_units == 99
    assert await database.fetchval("SELECT count(*) FROM ledger") == 1
