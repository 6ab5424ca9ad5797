"""Registry and capacity beside a fleet in virtual time: the services themselves, on PostgreSQL, over gRPC.

Whatever the fleet's registry and pool do in memory the services do as well, in the same order and at the same time of
the fleet. The launcher gets what the services answer, and what memory answers is held against it. What services do by
themselves (expiry, the ends of rollback windows, serving those who wait) they do here when it is due.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from modelfleet.common.v1 import permission_pb2, serving_pb2
from modelfleet.registry.v1 import criticality_pb2, registry_pb2, registry_pb2_grpc
from modelfleetd.capacity.api import CapacityServicer
from modelfleetd.capacity.books import ACTOR, Books
from modelfleetd.capacity.datasets import Datasets
from modelfleetd.capacity.demands import Demands
from modelfleetd.capacity.domain.ledger import Account
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.registry import Registry as CapacitysRegistry
from modelfleetd.capacity.store import balances, reservations
from modelfleetd.capacity.waiters import Waiters
from modelfleetd.clock import Clock, ManualClock
from modelfleetd.errors import DeadlinePassed, FleetError, PartUnavailable
from modelfleetd.kit.app import Service
from modelfleetd.kit.db import Database
from modelfleetd.launcher.clients import CapacityClient, RegistryClient
from modelfleetd.launcher.domain.hold import Hold, HoldState
from modelfleetd.launcher.domain.planning import Room
from modelfleetd.launcher.domain.record import Share
from modelfleetd.launcher.ports import (
    Estimate,
    HeldUnits,
    HoldRequest,
    Judgement,
    PoolFacts,
    SizedModel,
    TypeFacts,
    UsedUnits,
)
from modelfleetd.launcher.remote import translated
from modelfleetd.registry.access import SnapshotRoles
from modelfleetd.registry.api import RegistryServicer
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.standings import Standings
from modelfleetd.registry.store import Store
from modelfleetd.registry.watch import Watches
from modelfleetd.registry.writer import Writer
from modelfleetd.rehearsal.capacity import MemoryCapacity
from modelfleetd.rehearsal.chance import Chance
from modelfleetd.rehearsal.registry import MemoryRegistry
from modelfleetd.rehearsal.routes import FLAVOR
from modelfleetd.rehearsal.stability import WINDOW, MemoryStability
from modelfleetd.rehearsal.world import PEAK_QPS, MemoryWorld, Trained
from tests.support.servers import client_of, running
from tests.support.virtual_time import VirtualTime, unhurried

T = TypeVar("T")
# What a busy machine may take for a call, in seconds, and how often a call of the launcher's is repeated.
_PATIENCE = 60.0
_TRIES = 5
_BY_REQUEST = ("TIER0", "TIER1")
# Who asks for a tier that somebody else has to approve.
_ASKS = "asks"
_EVIDENCE = criticality_pb2.CriticalityEvidence(
    on_call_24x7="rotation", business_metric="clicks", contribution="it is rehearsed"
)
# What a row has of its own; the message names who cancelled it.
_OF_A_ROW = ("name", "uid", "sequence", "version", "update_time", "message")
_PREDICTION = registry_pb2.Prediction(
    id="click", calibration_range=registry_pb2.Range(low=0.8, high=1.25), min_positives=100
)
_PREDICTION.attribution_window.FromTimedelta(WINDOW)


@dataclass(eq=False)
class _Act:
    """Something that was done in memory, to be done by a service."""

    time: datetime
    what: str
    do: Callable[[], Awaitable[Any]]
    ours: Any
    theirs: Any = None


class StoredParts:
    """Both services, and what they have yet to do.

    Attributes:
        differences: where a service did not answer as memory did.
        asked: acts and questions that a service has answered.
    """

    def __init__(self, clock: ManualClock, time: VirtualTime, database: Database) -> None:
        self.clock = clock
        self.database = database
        self.differences: list[str] = []
        self.asked = 0
        # Of the act at hand, as the launcher has it.
        self.key = ""
        self.team = ""
        self.models: Mapping[str, Trained] = {}
        self._freed = self._inside = False
        self._books, self._waiters = Books(database), Waiters(database, ACTOR)
        self._time = time
        self._acts: deque[_Act] = deque()
        self._lock = asyncio.Lock()
        # Set once they listen.
        self.client: AsyncClient
        self.requester: AsyncClient
        self.registry: RegistryClient
        self.capacity: CapacityClient

    def note(self, what: str, ours: Any, do: Callable[[], Awaitable[Any]]) -> None:
        """Takes note of what was done in memory, and answered: a value, or the error that was raised."""
        self._acts.append(_Act(self.clock.now(), what, do, ours))

    def both(self, what: str, ours: Callable[[], T], theirs: Callable[[T | None], Awaitable[T]]) -> T:
        """Does something in memory, and has a service do it.

        Args:
            what: is done.
            ours: does it in memory.
            theirs: does it at the service, told what memory answered (None: an error), and answers in its names.
        """
        if self._inside:
            # A part of something that the service does as a whole.
            return ours()
        self._inside = True
        try:
            made = ours()
        except FleetError as error:
            self.note(what, error, lambda: theirs(None))
            raise
        finally:
            self._inside = False
        self.note(what, made, lambda: theirs(made))
        return made

    async def answer(self, ours: Awaitable[T], key: str = "") -> T:
        """Answers as the service does. Raises what may have been lost, where nothing may have been done."""
        self.key = key
        act: _Act | None = None
        try:
            await ours
        finally:
            # Memory does not wait, so that nobody else has done anything meanwhile.
            act = self._acts[-1] if self._acts else None
            await self.catch_up()
        assert act is not None
        if isinstance(act.theirs, FleetError):
            raise act.theirs
        return cast(T, act.theirs)

    async def prepare(self, team: str, regions: Sequence[str]) -> None:
        """Makes, once, what everything else refers to."""
        if self.team:
            return
        self.team = team
        own = registry_pb2.Team()
        own.role_bindings.add(role=permission_pb2.Role.Value("OWNER"), members=[_ASKS])
        await self.client.registry.create_team(team_id=team.partition("/")[2], team=own, timeout=_PATIENCE)
        for region in regions:
            await self.client.registry.create_region(
                region_id=region.partition("/")[2],
                region=registry_pb2.Region(agent_address="127.0.0.1:1"),
                timeout=_PATIENCE,
            )
        await self.client.capacity.create_flavor(
            flavor_id=FLAVOR.partition("/")[2], flavor=capacity_pb2.Flavor(unit_cost=1.0), timeout=_PATIENCE
        )

    async def catch_up(self) -> None:
        """Has the services do what was done in memory."""
        async with self._lock:
            while self._acts:
                act = self._acts.popleft()
                await self._time.set(act.time)
                act.theirs = await self._done(act.do)
                self.same(act.what, act.ours, act.theirs)
                await self._serve()

    async def ask(self, what: str, ours: T, question: Callable[[], Awaitable[T]], alike: Callable[[T], T]) -> T:
        """Asks a service what memory has answered.

        Args:
            what: is asked, for a difference.
            ours: the answer of memory.
            question: asks the service.
            alike: its answer in the names and revisions of memory.
        """
        await self.catch_up()
        async with self._lock:
            await self._time.set(self.clock.now())
            theirs = await self._done(question)
            if isinstance(theirs, FleetError):
                self.same(what, ours, theirs)
                raise theirs
            found = alike(theirs)
            self.same(what, ours, found)
            return found

    def same(self, what: str, ours: Any, theirs: Any) -> None:
        """Both have to be alike; of errors kind and words."""
        if _said(ours) != _said(theirs):
            self.differences.append(f"{self.clock.now()} {what}: {_apart(_said(ours), _said(theirs))}"[:2_000])

    async def _done(self, do: Callable[[], Awaitable[T]]) -> T | FleetError:
        """Does something at a service, again with its own key where a busy machine took too long."""
        self.asked += 1

        @unhurried
        async def done() -> T:
            with translated("service"):
                return await do()

        for left in reversed(range(_TRIES)):
            try:
                return await done()
            except (PartUnavailable, DeadlinePassed) as error:
                if not left:
                    return error
            except FleetError as error:
                return error
        raise AssertionError

    def wake(self) -> None:
        """Something may have become free, or somebody waits."""
        self._freed = True

    async def sweep(self) -> None:
        """What capacity does by itself."""
        await self._books.sweep()
        self.wake()

    @unhurried
    async def _serve(self) -> None:
        if self._freed:
            self._freed = False
            await self._waiters.serve()

    async def look_at_line(self) -> None:
        """Plans anew for those who wait, as the service does every second."""
        await self._waiters.serve()


def _said(answer: Any) -> Any:
    return (type(answer).__name__, answer.message) if isinstance(answer, FleetError) else answer


def _apart(ours: Any, theirs: Any) -> str:
    if not is_dataclass(ours) or type(ours) is not type(theirs):
        return f"{ours!r} and {theirs!r}"
    found = [(each.name, getattr(ours, each.name), getattr(theirs, each.name)) for each in fields(ours)]
    return "; ".join(f"{name}: {one!r} and {other!r}" for name, one, other in found if one != other)


class StoredRegistry(MemoryRegistry):
    """The ledger of a fleet, in memory and in the registry."""

    def __init__(self, parts: StoredParts) -> None:
        super().__init__()
        self._parts = parts
        # Revisions of model types in the registry, by those in memory.
        self.theirs: dict[int, int] = {0: 0}

    def create_type(self, name: str, team: str, tier: str, regions: Sequence[str]) -> None:
        super().create_type(name, team, tier, regions)
        revision = self.revision

        async def create() -> None:
            await self._parts.prepare(team, regions)
            by_request = tier in _BY_REQUEST
            made = await self._parts.client.registry.create_model_type(
                model_type_id=name.partition("/")[2],
                model_type=registry_pb2.ModelType(
                    team=team,
                    tier=serving_pb2.Tier.Value("TIER2" if by_request else tier),
                    regions=list(regions),
                    predictions=[_PREDICTION],
                    demand_source=registry_pb2.DemandSource(
                        stated=[registry_pb2.RegionDemand(region=region, peak_qps=PEAK_QPS) for region in regions]
                    ),
                ),
                timeout=_PATIENCE,
            )
            if by_request:
                made = await self._raise_tier(name, tier)
            self.theirs[revision] = made.revision

        self._parts.note(f"create {name}", None, create)

    async def _raise_tier(self, name: str, tier: str) -> registry_pb2.ModelType:
        """Two people agree that a type is that critical."""
        asked = await self._parts.requester.registry.request_criticality(
            resource=name, tier=serving_pb2.Tier.Value(tier), evidence=_EVIDENCE, timeout=_PATIENCE
        )
        await self._parts.client.registry.approve_criticality(name=asked.name, timeout=_PATIENCE)
        return await self._parts.client.registry.get_model_type(name=name, timeout=_PATIENCE)

    def create_model(self, model_type: str, name: str) -> None:
        super().create_model(model_type, name)

        async def create() -> None:
            model = self._parts.models[name]
            spec = serving_pb2.ServingSpec(
                command=model.spec.command, flavor=model.spec.flavor, units_per_replica=model.spec.units
            )
            spec.startup_timeout.FromTimedelta(model.startup)
            await self._parts.client.registry.create_model(
                parent=model_type,
                model_id=name.rpartition("/")[2],
                model=registry_pb2.Model(serving_spec=spec),
                timeout=_PATIENCE,
            )
            # A replica carries the same wherever it runs.
            (max_qps,) = set(model.max_qps.values())
            await self._parts.client.capacity.create_certificate(
                certificate=capacity_pb2.Certificate(
                    model=name, flavor=model.spec.flavor, max_qps=max_qps, note="rehearsed"
                ),
                timeout=_PATIENCE,
            )

        self._parts.note(f"create {name}", None, create)

    def adopt(self, model_type: str, roles: Mapping[str, str], splits: Mapping[str, Sequence[Share]]) -> None:
        super().adopt(model_type, roles, splits)
        revision = self.revision

        async def adopt() -> None:
            made = await self._parts.client.registry.adopt_serving(
                model_type=model_type,
                role_changes=[
                    registry_pb2.RoleChange(model=model, role=registry_pb2.Model.Role.Value(role))
                    for model, role in roles.items()
                ],
                splits=[
                    serving_pb2.RegionSplit(
                        region=region,
                        shares=[serving_pb2.ModelShare(model=s.model, share_basis_points=s.share) for s in shares],
                    )
                    for region, shares in splits.items()
                ],
                timeout=_PATIENCE,
            )
            self.theirs[revision] = made.revision

        self._parts.note(f"adopt {model_type}", None, adopt)

    def finalize(
        self,
        model_type: str,
        launch: str,
        *,
        succeeded: bool,
        expected_revision: int,
        roles: Mapping[str, str],
        splits: Mapping[str, Sequence[Share]],
        attempt: int,
    ) -> int:
        key = self._parts.key

        async def theirs(ours: int | None) -> int:
            revision = await self._parts.registry.finalize(
                model_type,
                launch,
                key,
                succeeded=succeeded,
                expected_revision=self.theirs[expected_revision],
                roles=roles,
                splits=splits,
                attempt=attempt,
            )
            return revision if ours is None else self.alike(ours, revision)

        return self._parts.both(
            f"finalize {launch}",
            lambda: super(StoredRegistry, self).finalize(
                model_type,
                launch,
                succeeded=succeeded,
                expected_revision=expected_revision,
                roles=roles,
                splits=splits,
                attempt=attempt,
            ),
            theirs,
        )

    def alike(self, ours: int, theirs: int) -> int:
        """The revision in memory that one of the registry is."""
        return ours if self.theirs.setdefault(ours, theirs) == theirs else theirs

    async def compare(self) -> None:
        """Looks for differences in what there is: baselines, splits and roles."""
        client = self._parts.client.registry
        for name, ours in self._types.items():
            found = await client.get_model_type(name=name, timeout=_PATIENCE)
            baseline, splits = (
                self.type_of(name).baseline,
                {split.region: self.split(name, split.region) for split in ours.splits},
            )
            self._parts.same(f"baseline of {name}", baseline, found.baseline)
            self._parts.same(
                f"splits of {name}",
                splits,
                {each.region: {one.model: one.share_basis_points for one in each.shares} for each in found.splits},
            )
            roles = {model.name: model.role.name for model in self.models_of(name) if model.role is not None}
            models = [model async for model in client.list_models_all(parent=name, page_size=1000)]
            self._parts.same(
                f"roles of {name}", roles, {each.name: registry_pb2.Model.Role.Name(each.role) for each in models}
            )


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
                await client.create_pool(pool_id=self.pool.partition("/")[2], pool=pool, timeout=_PATIENCE)
            used = capacity_pb2.ModelUnits(model=model, flavor=place.flavor, region=place.region, units=units)
            await client.book_usage(pool=self.pool, usages=[used], timeout=_PATIENCE)

        self._parts.note(f"book {model}", None, book)

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


class StoredWorld(MemoryWorld):
    """Gives the launcher what the services answer."""

    def __init__(
        self,
        parts: StoredParts,
        registry: StoredRegistry,
        capacity: StoredCapacity,
        stability: MemoryStability,
        chance: Chance,
        team: str,
    ) -> None:
        super().__init__(registry, capacity, stability, chance, team)
        parts.models = self.models
        self._parts = parts
        self._ledger = registry

    # Registry

    async def model_type(self, name: str) -> TypeFacts:
        ours = await super().model_type(name)
        return await self._parts.ask(
            f"type {name}",
            ours,
            lambda: self._parts.registry.model_type(name),
            lambda theirs: replace(theirs, revision=self._ledger.alike(ours.revision, theirs.revision)),
        )

    async def model(self, name: str, path: str) -> SizedModel:
        ours = await super().model(name, path)
        # The machines run what they are told to by the document; that of the registry says more, and the same.
        return await self._parts.ask(
            f"model {name}",
            ours,
            lambda: self._parts.registry.model(name, path),
            lambda theirs: replace(theirs, facts=ours.facts) if theirs.facts.name == name else theirs,
        )

    async def evaluate_evidence(self, model: str, baseline: str) -> Judgement:
        ours = await super().evaluate_evidence(model, baseline)
        return await self._parts.ask(
            f"evidence of {model}",
            ours,
            lambda: self._parts.registry.evaluate_evidence(model, baseline),
            lambda theirs: theirs,
        )

    async def finalize(
        self,
        model_type: str,
        launch: str,
        key: str,
        *,
        succeeded: bool,
        expected_revision: int = 0,
        roles: Mapping[str, str] | None = None,
        splits: Mapping[str, Sequence[Share]] | None = None,
        reason: str = "",
        attempt: int = 1,
    ) -> int:
        ours = super().finalize(
            model_type,
            launch,
            key,
            succeeded=succeeded,
            expected_revision=expected_revision,
            roles=roles,
            splits=splits,
            reason=reason,
            attempt=attempt,
        )
        return await self._parts.answer(ours, key)

    # Capacity

    async def estimate(self, model: str, key: str, *, keep: bool) -> Estimate:
        ours = await super().estimate(model, key, keep=keep)
        return await self._parts.ask(
            f"estimate of {model}",
            ours,
            lambda: self._parts.capacity.estimate(model, key, keep=keep),
            lambda theirs: replace(theirs, name=ours.name),
        )

    async def unit_cost(self, flavor: str) -> float:
        ours = await super().unit_cost(flavor)
        return await self._parts.ask(
            f"cost of {flavor}", ours, lambda: self._parts.capacity.unit_cost(flavor), lambda theirs: theirs
        )

    async def pool(self, name: str) -> PoolFacts:
        ours = await super().pool(name)
        return await self._parts.ask(name, ours, lambda: self._parts.capacity.pool(name), lambda theirs: theirs)

    async def booked_elsewhere(self, model: str, pool: str, flavor: str, regions: Sequence[str]) -> str:
        ours = await super().booked_elsewhere(model, pool, flavor, regions)
        return await self._parts.ask(
            f"what {model} has elsewhere",
            ours,
            lambda: self._parts.capacity.booked_elsewhere(model, pool, flavor, regions),
            lambda theirs: theirs,
        )

    async def room(
        self, pool: str, launch: str, wanted: Sequence[HeldUnits], replaced: Sequence[str], *, takes_over: str = ""
    ) -> Mapping[tuple[str, str], Room]:
        return await self._parts.answer(super().room(pool, launch, wanted, replaced, takes_over=takes_over))

    async def foresee(self, request: HoldRequest) -> Hold | None:
        return await self._parts.answer(super().foresee(request))

    async def hold(self, reservation: str) -> Hold:
        return await self._parts.answer(super().hold(reservation))

    async def reserve(self, request: HoldRequest, key: str) -> Hold:
        return await self._parts.answer(super().reserve(request, key), key)

    async def renew(self, reservation: str, release: datetime | None, key: str) -> None:
        await self._parts.answer(super().renew(reservation, release, key), key)

    async def activate(self, reservation: str, key: str) -> None:
        await self._parts.answer(super().activate(reservation, key), key)

    async def cancel(self, reservation: str, key: str) -> None:
        await self._parts.answer(super().cancel(reservation, key), key)

    async def settle(
        self,
        reservation: str,
        usages: Iterable[UsedUnits],
        kept: Iterable[HeldUnits],
        retain: timedelta,
        key: str,
    ) -> None:
        await self._parts.answer(super().settle(reservation, usages, kept, retain, key), key)

    async def release(self, reservation: str, key: str) -> None:
        await self._parts.answer(super().release(reservation, key), key)


@asynccontextmanager
async def stored_parts(time: VirtualTime) -> AsyncIterator[StoredParts]:
    """Runs registry and capacity on a database whose time is the fleet's, without what they do by themselves."""
    clock = ManualClock()
    ledger, books = Store(await time.database("registry")), await time.database("capacity")

    async def build_registry(service: Service) -> None:
        follower = Follower(ledger)
        await follower.load()
        access, standings = SnapshotRoles(follower), Standings(follower, clock)
        servicer = RegistryServicer(
            ledger, follower, Writer(ledger, follower), Watches(ledger, follower), clock, standings
        )
        server = service.server(roles=access, team_of=access.team_of)
        server.add(servicer, registry_pb2_grpc.add_RegistryServiceServicer_to_server)

    parts = StoredParts(clock, time, books)

    async def build_capacity(service: Service) -> None:
        registry = CapacitysRegistry(service.client.registry)
        servicer = CapacityServicer(books, registry, clock, Datasets(""), Demands(None, clock), parts.wake)
        service.server().add(servicer, capacity_pb2_grpc.add_CapacityServiceServicer_to_server)

    async with (
        running("registry", build_registry) as registry,
        running("capacity", build_capacity, registry_address=registry.address) as capacity,
        client_of(registry, capacity) as parts.client,
        client_of(registry, principal=_ASKS) as parts.requester,
    ):
        parts.registry = RegistryClient(parts.client.registry)
        parts.capacity = CapacityClient(parts.client.capacity)
        yield parts
