"""The pool of a fleet, in memory and in capacity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from modelfleet.capacity.v1 import capacity_pb2
from modelfleetd.capacity.domain.ledger import Account
from modelfleetd.capacity.domain.policy import LaunchPolicy
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.store import balances, reservations
from modelfleetd.capacity.wire.policies import policy_to_proto
from modelfleetd.clock import Clock
from modelfleetd.launcher.domain.hold import Hold, HoldState
from modelfleetd.launcher.domain.planning import Room
from modelfleetd.launcher.ports import (
    HeldUnits,
    HoldRequest,
    UsedUnits,
)
from modelfleetd.rehearsal.capacity import MemoryCapacity
from tests.support.stored.parts import PATIENCE, StoredParts

# What a row has of its own; the message names who cancelled it.
_OF_A_ROW = ("name", "uid", "sequence", "version", "update_time", "message")


class StoredCapacity(MemoryCapacity):
    """The pool of a fleet, in memory and in capacity."""

    def __init__(
        self, parts: StoredParts, pool: str, quota: Mapping[Place, int], clock: Clock, *, future_reservations: bool
    ) -> None:
        assert future_reservations
        super().__init__(pool, quota, clock)
        self._parts = parts
        self._exists = False
        # Reservations of capacity by those in memory.
        self._theirs: dict[str, str] = {"": ""}

    def book(self, model: str, place: Place, units: int) -> None:
        super().book(model, place, units)
        quota = dict(self.quota)

        async def book() -> None:
            client = self._parts.client.capacity
            if not self._exists:
                self._exists = True
                quotas = [
                    capacity_pb2.Quota(flavor=place.flavor, region=place.region, nominal_units=units)
                    for place, units in quota.items()
                ]
                pool = capacity_pb2.Pool(team=self._parts.team, quotas=quotas)
                await client.create_pool(pool_id=self.pool.partition("/")[2], pool=pool, timeout=PATIENCE)
            used = capacity_pb2.ModelUnits(model=model, flavor=place.flavor, region=place.region, units=units)
            await client.book_usage(pool=self.pool, usages=[used], timeout=PATIENCE)

        self._parts.note(f"book {model}", None, book)

    def set_policy(self, policy: LaunchPolicy) -> None:
        super().set_policy(policy)

        async def create() -> None:
            await self._parts.client.capacity.create_launch_policy(
                launch_policy_id=policy.name.partition("/")[2],
                launch_policy=policy_to_proto(replace(policy, name="")),
                timeout=PATIENCE,
            )

        self._parts.note(f"create {policy.name}", None, create)

    def room(
        self, launch: str, wanted: Sequence[HeldUnits], replaced: Sequence[str], takes_over: str
    ) -> Mapping[tuple[str, str], Room]:
        async def theirs(_: object) -> Mapping[tuple[str, str], Room]:
            kept = self._theirs[takes_over]
            return await self._parts.capacity.room(self.pool, launch, wanted, replaced, takes_over=kept)

        return self._parts.both(
            f"room for {launch}",
            lambda: super(StoredCapacity, self).room(launch, wanted, replaced, takes_over),
            theirs,
        )

    def foresee(self, request: HoldRequest) -> Hold | None:
        async def theirs(_: object) -> Hold | None:
            return await self._parts.capacity.foresee(self._of(request))

        return self._parts.both(
            f"foresee {request.launch}", lambda: super(StoredCapacity, self).foresee(request), theirs
        )

    def reserve(self, request: HoldRequest, key: str) -> Hold:
        async def theirs(ours: Hold | None) -> Hold:
            made = await self._parts.capacity.reserve(self._of(request), key)
            if ours is None:
                return made
            self._theirs[ours.reservation] = made.reservation
            return replace(made, reservation=ours.reservation)

        return self._parts.both(
            f"reserve for {request.launch}", lambda: super(StoredCapacity, self).reserve(request, key), theirs
        )

    def hold(self, name: str) -> Hold:
        async def theirs(ours: Hold | None) -> Hold:
            if ours is not None and ours.state is HoldState.PENDING:
                await self._parts.look_at_line()
            return replace(await self._parts.capacity.hold(self._theirs[name]), reservation=name)

        return self._parts.both(f"hold {name}", lambda: super(StoredCapacity, self).hold(name), theirs)

    def renew(self, name: str, release: datetime | None) -> None:
        key = self._parts.key

        async def theirs(_: object) -> None:
            await self._parts.capacity.renew(self._theirs[name], release, key)

        self._parts.both(f"renew {name}", lambda: super(StoredCapacity, self).renew(name, release), theirs)

    def activate(self, name: str) -> None:
        key = self._parts.key

        async def theirs(_: object) -> None:
            await self._parts.capacity.activate(self._theirs[name], key)

        self._parts.both(f"activate {name}", lambda: super(StoredCapacity, self).activate(name), theirs)

    def cancel(self, name: str) -> None:
        key = self._parts.key

        async def theirs(_: object) -> None:
            await self._parts.capacity.cancel(self._theirs[name], key)

        self._parts.both(f"cancel {name}", lambda: super(StoredCapacity, self).cancel(name), theirs)

    def settle(self, name: str, usages: Iterable[UsedUnits], kept: Iterable[HeldUnits], retain: timedelta) -> None:
        key, usages, kept = self._parts.key, list(usages), list(kept)

        async def theirs(_: object) -> None:
            await self._parts.capacity.settle(self._theirs[name], usages, kept, retain, key)

        self._parts.both(
            f"settle {name}", lambda: super(StoredCapacity, self).settle(name, usages, kept, retain), theirs
        )

    def release(self, name: str) -> None:
        key = self._parts.key

        async def theirs(_: object) -> None:
            await self._parts.capacity.release(self._theirs[name], key)

        self._parts.both(f"release {name}", lambda: super(StoredCapacity, self).release(name), theirs)

    def catch_up(self) -> None:
        due = self.next_due
        super().catch_up()
        if due is not None and due <= self._parts.clock.now():
            self._parts.note("what is due", None, self._parts.sweep)

    async def compare(self) -> None:
        """Looks for differences in what there is: accounts, lines of the ledger, bookings and reservations; and in how
        they add up."""
        database, parts = self._parts.database, self._parts
        parts.same("the books", [], await balances.differences(database))
        rows = await database.fetch(
            "SELECT flavor, region, serving_units, held_units, retained_units, ending_units FROM balances"
        )
        places = [Place(row["flavor"], row["region"]) for row in rows]
        accounts = (Account.SERVING, Account.HELD, Account.RETAINED)
        parts.same(
            "balances",
            {
                place: [*(self._balances.get((place, each), 0) for each in accounts), self._ending[place]]
                for place in places
            },
            {place: list(row.values())[2:] for place, row in zip(places, rows, strict=True)},
        )
        parts.same("lines of the ledger", self.entries, await database.fetchval("SELECT count(*) FROM ledger"))
        booked = await database.fetch("SELECT model, flavor, region, units FROM bookings")
        parts.same(
            "bookings",
            self._bookings,
            {(row["model"], Place(row["flavor"], row["region"])): row["units"] for row in booked},
        )
        for name, ours in self._reservations.items():
            theirs = await reservations.get(database, self._theirs[name])
            alike = replace(theirs, **{field: getattr(ours, field) for field in _OF_A_ROW})
            parts.same(f"{name} at the end", ours, alike)

    def _of(self, request: HoldRequest) -> HoldRequest:
        return replace(request, takes_over=self._theirs[request.takes_over])
