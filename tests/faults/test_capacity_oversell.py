"""64 clients on the pools of one organisation while the processes of capacity are killed: never oversold, exactly once,
nothing leaks, and the ledger is the balance.

OVERSELL_ATTEMPTS says how many reservations are tried; with 100000 it takes its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.common.v1 import serving_pb2
from modelfleet.errors import Cancelled, DeadlineExceeded, FailedPrecondition, ResourceExhausted, Unavailable
from modelfleetd.capacity.app import build
from modelfleetd.clock import SystemClock
from modelfleetd.kit.db import Database
from tests.support.capacity import CPU, EU, NEW, OLD, CapacityFleet, capacity_fleet, uses
from tests.support.processes import Part, capacity_process
from tests.support.servers import client_of, running

T = TypeVar("T")
CLIENTS, NOMINAL = 64, 100
ATTEMPTS = int(os.environ.get("OVERSELL_ATTEMPTS", "400"))
# How often a process is killed.
KILLS = max(2, ATTEMPTS // 1000)
ORGANISATION, TEAMS = "pools/org", ("pools/feed", "pools/ads")
SUCCEEDED, ROLLED_BACK = pb.SettleReservationRequest.SUCCEEDED, pb.SettleReservationRequest.ROLLED_BACK
_CUT_OFF = (Unavailable, DeadlineExceeded, Cancelled)
_SHORT = Duration(seconds=2)

pytestmark = pytest.mark.timeout(120 + ATTEMPTS // 5)


@dataclass
class Seen:
    """What all clients together were told."""

    outcomes: Counter[str] = field(default_factory=Counter)
    answers: dict[str, tuple[pb.CreateReservationRequest, pb.Reservation]] = field(default_factory=dict)
    tried: int = 0

    def answered(self, request: pb.CreateReservationRequest, made: pb.Reservation) -> None:
        """The same key is always given the same answer."""
        _, before = self.answers.setdefault(request.request_id, (request, made))
        assert made == before


async def sure(call: Callable[[], Awaitable[T]]) -> T:
    """Calls until somebody answers."""
    while True:
        try:
            return await call()
        except _CUT_OFF:
            await asyncio.sleep(0.05)


class Launcher:
    """Reserves, repeats itself, waits, activates, renews, settles, cancels, or vanishes; at any of the replicas."""

    def __init__(self, number: int, replicas: list[AsyncClient], seen: Seen) -> None:
        self._draw = random.Random(number)
        self._replicas = replicas
        self._number = number
        self._seen = seen

    async def run(self) -> None:
        while self._seen.tried < ATTEMPTS:
            self._seen.tried += 1
            request = self._wanted(f"launches/l{self._number}-{self._seen.tried}")
            try:
                made = await self._reserve(request)
            except (ResourceExhausted, FailedPrecondition) as error:
                self._seen.outcomes[error.reason] += 1
            else:
                await self._end(made)

    def _wanted(self, launch: str) -> pb.CreateReservationRequest:
        units = self._draw.randint(1, 30)
        wanted = pb.Reservation(
            pool=self._draw.choice(TEAMS),
            launch=launch,
            items=[pb.HoldItem(flavor=CPU, region=EU, hold_units=units, end_units=self._draw.randint(0, units) // 3)],
            replaced_models=(OLD, NEW) if self._draw.random() < 0.3 else (),
            tier=self._draw.choice(serving_pb2.Tier.values()),
        )
        # What a holder expects it says by its own clock, and some are wrong by an hour. Nothing is decided by that.
        wrong = timedelta(hours=self._draw.choice((-1, 0, 1)))
        wanted.expected_release_time.FromDatetime(datetime.now(UTC) + wrong + timedelta(seconds=5))
        return pb.CreateReservationRequest(
            reservation=wanted,
            request_id=str(uuid.uuid4()),
            may_wait=self._draw.random() < 0.5,
            time_to_live=_SHORT,
        )

    async def _reserve(self, request: pb.CreateReservationRequest) -> pb.Reservation:
        # As after lost answers: the same call two or three times, at once and at different replicas.
        calls = [
            self._sure(lambda to: to.capacity.create_reservation(request, timeout=10)) for _ in range(self._times())
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        for answer in answers:
            if isinstance(answer, pb.Reservation):
                self._seen.answered(request, answer)
        if len(refused) == len(answers):
            raise refused[0]
        for error in refused:
            # A call that is refused is nothing that is remembered: repeated, it may fit.
            if not isinstance(error, ResourceExhausted):
                raise error
        self._seen.outcomes["held or waiting"] += 1
        return self._seen.answers[request.request_id][1]

    def _times(self) -> int:
        return self._draw.choice((1, 1, 2, 3))

    async def _sure(self, call: Callable[[AsyncClient], Awaitable[T]]) -> T:
        return await sure(lambda: call(self._draw.choice(self._replicas)))

    async def _end(self, made: pb.Reservation) -> None:
        end = self._draw.random()
        try:
            if end < 0.2:
                self._seen.outcomes["vanished"] += 1
            elif end < 0.4:
                await self._sure(lambda to: to.capacity.cancel_reservation(name=made.name, timeout=10))
            else:
                await self._launch(made, succeeds=end > 0.6)
        except FailedPrecondition as error:
            if error.reason != "WRONG_STATE":
                raise
            # It waited until its time ran out, or a machine this slow let its hold expire.
            self._seen.outcomes["too late"] += 1

    async def _launch(self, made: pb.Reservation, *, succeeds: bool) -> None:
        await self._sure(lambda to: to.capacity.activate_reservation(name=made.name, timeout=10))
        await self._sure(lambda to: to.capacity.renew_reservation(name=made.name, timeout=10))
        held = await self._sure(lambda to: to.capacity.get_reservation(name=made.name, timeout=10))
        usages = [uses(NEW, self._draw.randint(0, held.items[0].end_units)), uses(OLD, 0)] if succeeds else []
        outcome = SUCCEEDED if succeeds else ROLLED_BACK
        for _ in range(self._times()):
            done = await self._sure(
                lambda to: to.capacity.settle_reservation(name=made.name, outcome=outcome, usages=usages, timeout=10)
            )
            assert done.state == pb.Reservation.SETTLED
        self._seen.outcomes["settled"] += 1


class Replicas:
    """Processes of capacity that are killed and come again at their addresses."""

    def __init__(self, url: str, registry: str, stack: AsyncExitStack) -> None:
        self._url = url
        self._registry = registry
        self._stack = stack
        self.addresses: list[str] = []
        self._parts: list[Part] = []

    async def start(self) -> None:
        found, address = await self._stack.enter_async_context(capacity_process(self._url, self._registry))
        self._parts.append(found)
        self.addresses.append(address)

    async def kill(self, number: int) -> None:
        """Kills one as by kill −9, and starts another at its address."""
        self._parts[number].process.kill()
        await self._parts[number].process.wait()
        again = capacity_process(self._url, self._registry, self.addresses[number])
        self._parts[number], _ = await self._stack.enter_async_context(again)


@asynccontextmanager
async def organisation(database_url: str) -> AsyncIterator[CapacityFleet]:
    """Two teams that own 100 units each of an organisation, and models that serve."""
    async with capacity_fleet(database_url) as fleet:
        capacity = fleet.client.capacity
        await capacity.create_pool(pool_id="org", pool=pb.Pool(team="teams/feed"))
        for team in TEAMS:
            quotas = [pb.Quota(flavor=CPU, region=EU, nominal_units=NOMINAL)]
            pool = pb.Pool(team="teams/feed", parent=ORGANISATION, quotas=quotas)
            await capacity.create_pool(pool_id=team.removeprefix("pools/"), pool=pool)
            await capacity.book_usage(pool=team, usages=[uses(OLD, 10), uses(NEW, 10)])
        yield fleet


async def test_64_clients_and_processes_that_die_oversell_nothing_and_everybody_is_answered_once(
    database_url: str,
) -> None:
    seen, chance = Seen(), random.Random(7)
    async with organisation(database_url) as fleet, AsyncExitStack() as stack:
        replicas = Replicas(database_url, fleet.registry.address, stack)
        clients = [fleet.client]
        for _ in range(2):
            await replicas.start()
            address = replicas.addresses[-1]
            clients.append(await stack.enter_async_context(AsyncClient("127.0.0.1:1", capacity=address)))
        watcher = asyncio.create_task(_watch(fleet, database_url))
        launchers = [asyncio.create_task(Launcher(number, clients, seen).run()) for number in range(CLIENTS)]
        for kill in range(KILLS):
            await _until_tried(seen, ATTEMPTS * (kill + 1) // (KILLS + 2))
            await replicas.kill(chance.randrange(2))
            # While all this goes on, a quota is cut below what is used, and given back.
            await _set_quota(fleet, TEAMS[0], 20 if kill % 2 == 0 else NOMINAL)
        await asyncio.gather(*launchers)
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        await _set_quota(fleet, TEAMS[0], NOMINAL)
        await _expect_nothing_leaked(fleet, database_url)
        await _expect_the_same_answers(seen, clients[1:])
        assert seen.outcomes["settled"] > 0
        assert seen.outcomes["QUOTA_EXCEEDED"] > 0
        assert seen.outcomes["vanished"] > 0


async def _until_tried(seen: Seen, count: int) -> None:
    while seen.tried < count:
        await asyncio.sleep(0.02)


async def _set_quota(fleet: CapacityFleet, pool: str, units: int) -> None:
    quotas = [pb.Quota(flavor=CPU, region=EU, nominal_units=units)]
    await fleet.client.capacity.update_pool(pool=pb.Pool(name=pool, quotas=quotas), timeout=30)


async def _watch(fleet: CapacityFleet, database_url: str) -> None:
    """Looks at the books from outside all the time: at no moment do they differ, or is more used than there is.

    That the constraints of the tables would refuse it is not relied on: what is used is added up from the ledger.
    """
    database = await Database.open(database_url, "capacity", max_size=1)
    most = 2 * NOMINAL
    try:
        while True:
            assert await fleet.differences() == []
            used = await database.fetchval("SELECT sum(delta_units) FROM ledger")
            assert used <= most
            await asyncio.sleep(0.2)
    finally:
        await database.close()


async def _expect_nothing_leaked(fleet: CapacityFleet, database_url: str) -> None:
    """Whatever was held by those who vanished is free, and what is used is what serves."""
    database = await Database.open(database_url, "capacity", max_size=1)
    try:
        async with asyncio.timeout(30):
            while await database.fetchval("SELECT count(*) FROM reservations WHERE state IN ('PENDING', 'HELD')"):
                await asyncio.sleep(0.1)
        used = await database.fetchval("SELECT sum(delta_units) FROM ledger")
        twice = await database.fetchval("SELECT count(*) - count(DISTINCT launch) FROM reservations")
    finally:
        await database.close()
    assert twice == 0
    usages = [await fleet.usage(pool=team) for team in TEAMS]
    assert {(usage.held_units, usage.retained_units) for usage in usages} == {(0, 0)}
    assert used == sum(usage.serving_units for usage in usages)
    assert await fleet.differences() == []


async def _expect_the_same_answers(seen: Seen, clients: list[AsyncClient]) -> None:
    """A call that is repeated long after is answered as it was, whatever became of its reservation."""
    for index, (request, answer) in enumerate(list(seen.answers.values())[-50:]):
        capacity = clients[index % len(clients)].capacity
        assert await sure(partial(capacity.create_reservation, request, timeout=10)) == answer


class WrongClock(SystemClock):
    """A clock that is an hour fast."""

    def now(self) -> datetime:
        return super().now() + timedelta(hours=1)


async def test_a_replica_and_a_client_whose_clocks_are_an_hour_fast_change_nothing(database_url: str) -> None:
    """Times are the database's: a hold lives as long as it should, and what is free is free at the same moment."""
    async with (
        organisation(database_url) as fleet,
        running("capacity", build, database_url, registry_address=fleet.registry.address, clock=WrongClock()) as wrong,
        client_of(fleet.registry, wrong) as client,
    ):
        wanted = pb.Reservation(pool=TEAMS[0], launch="launches/l1")
        wanted.items.add(flavor=CPU, region=EU, hold_units=150, end_units=0)
        wanted.expected_release_time.FromDatetime(WrongClock().now())
        made = await client.capacity.create_reservation(reservation=wanted, time_to_live=Duration(seconds=1800))
        now = datetime.now(UTC).timestamp()
        assert abs(made.create_time.seconds - now) < 60
        assert abs(made.expire_time.seconds - now - 1800) < 60
        wanted.launch = "launches/l2"
        waits = await client.capacity.create_reservation(reservation=wanted, may_wait=True)
        # Both replicas look for what has run out every second.
        await asyncio.sleep(2.5)
        assert (await client.capacity.get_reservation(name=made.name)).state == pb.Reservation.HELD
        await client.capacity.cancel_reservation(name=made.name)
        async with asyncio.timeout(20):
            while (await client.capacity.get_reservation(name=waits.name)).state != pb.Reservation.HELD:
                await asyncio.sleep(0.1)
        assert await fleet.differences() == []
