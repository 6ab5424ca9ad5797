"""The services beside a fleet in virtual time: themselves, on PostgreSQL, over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modelfleet.capacity.v1 import capacity_pb2_grpc
from modelfleet.registry.v1 import registry_pb2_grpc
from modelfleet.stability.v1 import stability_pb2_grpc
from modelfleetd.capacity.api import CapacityServicer
from modelfleetd.capacity.datasets import Datasets
from modelfleetd.capacity.demands import Demands
from modelfleetd.capacity.registry import Registry as CapacitysRegistry
from modelfleetd.clock import ManualClock
from modelfleetd.kit.app import Service
from modelfleetd.launcher.clients import CapacityClient, RegistryClient, StabilityClient
from modelfleetd.registry.access import SnapshotRoles
from modelfleetd.registry.api import RegistryServicer
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.standings import Standings
from modelfleetd.registry.store import Store
from modelfleetd.registry.watch import Watches
from modelfleetd.registry.writer import Writer
from modelfleetd.stability.api import StabilityServicer
from modelfleetd.stability.budgets import BudgetKeeper
from modelfleetd.stability.evaluator import Evaluator
from modelfleetd.stability.fleet import Fleet as StabilitysFleet
from modelfleetd.stability.intake_metrics import IntakeMetrics
from modelfleetd.stability.judging import Judge
from modelfleetd.stability.proposer import Proposer
from modelfleetd.stability.reader import Reader
from modelfleetd.stability.registry import Registry as StabilitysRegistry
from modelfleetd.stability.store import Store as StatisticsStore
from modelfleetd.stability.writer import Writer as StatisticsWriter
from tests.support.servers import client_of, running
from tests.support.stored.parts import ASKS, StoredParts
from tests.support.stored.virtual_time import VirtualTime


@asynccontextmanager
async def stored_parts(time: VirtualTime) -> AsyncIterator[StoredParts]:
    """Runs the services on a database whose time is the fleet's, without what they do by themselves."""
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

    statistics = await time.database("stability")

    async def build_stability(service: Service) -> None:
        store, registry = StatisticsStore(statistics), StabilitysRegistry(service.client.registry, clock)
        fleet = await service.enter(StabilitysFleet(service.client))
        evaluator = Evaluator(statistics, store.delays, fleet, service.client.registry, clock, service.id)
        servicer = StabilityServicer(
            registry,
            StatisticsWriter(store, clock),
            Reader(store, clock),
            fleet,
            IntakeMetrics(clock),
            evaluator.board,
            BudgetKeeper(statistics, fleet),
            statistics,
            clock,
            lambda: None,
            Proposer(statistics, fleet, clock, store.delays),
            Judge(store, clock),
        )
        service.server().add(servicer, stability_pb2_grpc.add_StabilityServiceServicer_to_server)

    async with (
        running("registry", build_registry) as registry,
        running("capacity", build_capacity, registry_address=registry.address) as capacity,
        running("stability", build_stability, registry_address=registry.address) as stability,
        client_of(registry, capacity, stability) as parts.client,
        client_of(registry, principal=ASKS) as parts.requester,
    ):
        parts.registry = RegistryClient(parts.client.registry)
        parts.capacity = CapacityClient(parts.client.capacity)
        parts.stability = StabilityClient(parts.client.stability)
        yield parts
