"""64 clients on one pool, through two replicas: never oversold, exactly once, and the ledger is the balance."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from dataclasses import dataclass, field

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.errors import Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable
from modelfleetd.capacity.app import build
from tests.support.capacity import EU, NEW, OLD, POOL, CapacityFleet, capacity_fleet, hold, make_pool, uses
from tests.support.servers import client_of, running

CLIENTS, ATTEMPTS, UNITS = 64, 15, 200
SUCCEEDED, ROLLED_BACK = pb.SettleReservationRequest.SUCCEEDED, pb.SettleReservationRequest.ROLLED_BACK


@dataclass
class Seen:
    """What all clients together were told."""

    outcomes: Counter[str] = field(default_factory=Counter)
    answers: dict[str, str] = field(default_factory=dict)

    def answered(self, key: str, made: pb.Reservation) -> None:
        """The same key always names the same reservation."""
        assert self.answers.setdefault(key, made.name) == made.name


class Launcher:
    """Reserves, repeats itself, activates, settles and cancels, at one replica or the other."""

    def __init__(self, number: int, replicas: list[AsyncClient], seen: Seen) -> None:
        self._draw = random.Random(number)
        self._replicas = replicas
        self._number = number
        self._seen = seen

    async def run(self) -> None:
        for attempt in range(ATTEMPTS):
            try:
                made = await self._reserve(f"l{self._number}-{attempt}")
            except ResourceExhausted as error:
                self._seen.outcomes[error.reason] += 1
            else:
                await self._end(made)

    async def _reserve(self, launch: str) -> pb.Reservation:
        replaced = (OLD, NEW) if self._draw.random() < 0.3 else ()
        wanted, key = hold(launch, self._draw.randint(1, 20), replaced=replaced), str(uuid.uuid4())
        # As after lost answers: the same call two or three times, at once and at different replicas.
        calls = [self._create(wanted, key) for _ in range(self._draw.choice((1, 1, 2, 3)))]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        made = [answer for answer in answers if isinstance(answer, pb.Reservation)]
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ResourceExhausted):
                raise answer
        for one in made:
            self._seen.answered(key, one)
        if not made:
            raise next(answer for answer in answers if isinstance(answer, ResourceExhausted))
        self._seen.outcomes["held"] += 1
        return made[0]

    async def _create(self, wanted: pb.Reservation, key: str) -> pb.Reservation:
        client = self._draw.choice(self._replicas)
        return await client.capacity.create_reservation(reservation=wanted, request_id=key, timeout=30)

    async def _end(self, made: pb.Reservation) -> None:
        capacity = self._draw.choice(self._replicas).capacity
        end = self._draw.random()
        if end < 0.25:
            await capacity.cancel_reservation(name=made.name, timeout=30)
            return
        await capacity.activate_reservation(name=made.name, timeout=30)
        if end < 0.5:
            await capacity.settle_reservation(name=made.name, outcome=ROLLED_BACK, timeout=30)
            return
        held = made.items[0].hold_units
        usages = [uses(NEW, self._draw.randint(0, held)), uses(OLD, 0)]
        for _ in range(self._draw.choice((1, 2))):
            done = await capacity.settle_reservation(name=made.name, outcome=SUCCEEDED, usages=usages, timeout=30)
            assert done.state == pb.Reservation.SETTLED


async def test_64_clients_with_repeated_keys_never_oversell_a_pool(database_url: str) -> None:
    async with capacity_fleet(database_url) as fleet:
        await make_pool(fleet.client, UNITS)
        await fleet.client.capacity.book_usage(pool=POOL, usages=[uses(OLD, 30), uses(NEW, 30)])
        registry_address = fleet.registry.address
        async with (
            running("capacity", build, database_url, registry_address=registry_address) as second,
            client_of(fleet.registry, second) as other,
        ):
            seen, stop = Seen(), asyncio.Event()
            watcher = asyncio.create_task(_watch(fleet, stop))
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(Launcher(number, [fleet.client, other], seen).run())
            stop.set()
            await watcher
        assert seen.outcomes["held"] > CLIENTS
        assert seen.outcomes["QUOTA_EXCEEDED"] > 0
        entries = [entry async for entry in fleet.client.capacity.list_ledger_entries_all(pool=POOL, page_size=1000)]
        usage = await fleet.usage()
        assert usage.held_units == 0
        assert sum(entry.delta_units for entry in entries) == usage.serving_units <= UNITS
        reservations = [one async for one in fleet.client.capacity.list_reservations_all(pool=POOL, page_size=1000)]
        assert len({one.launch for one in reservations}) == len(reservations) == len(set(seen.answers.values()))
        assert await fleet.differences() == []


async def _watch(fleet: CapacityFleet, stop: asyncio.Event) -> None:
    """Looks at the pool from outside all the time: at no moment more is used than owned."""
    while not stop.is_set():
        usage = await fleet.usage(EU)
        assert usage.available_units >= 0
        assert await fleet.differences() == []
        await asyncio.sleep(0.05)


async def test_holders_that_die_lose_what_they_never_activated_and_nothing_leaks(database_url: str) -> None:
    """Half of the clients reserve and vanish; a replica is stopped in the middle of everything."""
    async with capacity_fleet(database_url) as fleet:
        await make_pool(fleet.client, UNITS)
        registry_address = fleet.registry.address
        second = running("capacity", build, database_url, registry_address=registry_address, drain_seconds=0.0)
        service = await second.__aenter__()
        async with client_of(fleet.registry, service) as other:
            calls = [
                asyncio.create_task(_reserve_and_vanish((fleet.client, other)[number % 2], number))
                for number in range(CLIENTS)
            ]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            await second.__aexit__(None, None, None)
            await asyncio.gather(*calls)

        async with asyncio.timeout(20):
            while (await fleet.usage()).available_units != UNITS:
                await asyncio.sleep(0.1)
        assert await fleet.differences() == []


async def _reserve_and_vanish(client: AsyncClient, number: int) -> None:
    wanted = pb.CreateReservationRequest(reservation=hold(f"l{number}", 5), request_id=str(uuid.uuid4()))
    wanted.time_to_live.nanos = 200_000_000
    try:
        await client.capacity.create_reservation(wanted, timeout=5)
    except (ResourceExhausted, Unavailable, DeadlineExceeded, Cancelled):
        return
