"""Capacity: flavors, pools with quotas, reservations, certificates of load, estimates, load tests."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from modelfleet.capacity.v1 import capacity_pb2_grpc
from modelfleetd import names
from modelfleetd.capacity import migrations
from modelfleetd.capacity.api import CapacityServicer
from modelfleetd.capacity.books import Books
from modelfleetd.capacity.demands import Demands
from modelfleetd.capacity.loadtest.generator import OpenLoop
from modelfleetd.capacity.loadtest.job import LoadTests
from modelfleetd.capacity.loadtest.replica import Replica, connect
from modelfleetd.capacity.prometheus import Prometheus
from modelfleetd.capacity.registry import Registry
from modelfleetd.capacity.store import certificates, decisions, estimates, loadtests, policies, pools, reservations
from modelfleetd.capacity.store.loadtests import Claim
from modelfleetd.kit.app import Service, run_service
from modelfleetd.kit.auth import TeamOf
from modelfleetd.kit.db import Database
from modelfleetd.kit.worker import Periodic
from modelfleetd.platform.client import PlatformClient

_SWEEP_SECONDS = 1.0
_CHECK_SECONDS = 300.0
_FORGET_SECONDS = 3600.0


async def build(service: Service) -> None:
    """Composes capacity."""
    database = await service.database("capacity", migrations)
    registry = Registry(service.client.registry)
    books = Books(database)
    roles = service.registry_roles()
    service.work(
        load_tests(service, database, registry),
        Periodic("expire and release holds", _SWEEP_SECONDS, books.sweep, service.clock),
        # The first round is at the start.
        Periodic("check the ledger", _CHECK_SECONDS, books.check, service.clock),
        Periodic("forget answered requests", _FORGET_SECONDS, books.forget, service.clock),
    )
    server = service.server(roles=roles, team_of=team_of(database, roles.team_of))
    servicer = CapacityServicer(database, registry, demands(service), service.clock)  # type: ignore[abstract]
    server.add(servicer, capacity_pb2_grpc.add_CapacityServiceServicer_to_server)


def demands(service: Service) -> Demands:
    """Returns where the demand of routes is asked for, with a Prometheus where one is given."""
    if not service.config.prometheus_url:
        return Demands(None, service.clock)
    prometheus = Prometheus(service.config.prometheus_url)
    service.at_end(prometheus.close)
    return Demands(prometheus, service.clock)


def load_tests(service: Service, database: Database, registry: Registry) -> LoadTests:
    """Returns the worker that runs load tests against the agents of the regions."""

    @asynccontextmanager
    async def open_load(address: str, target: str, claim: Claim) -> AsyncIterator[OpenLoop]:
        test = claim.test
        async with connect(address) as channel:
            replica = Replica(channel, target, test.model, test.stoppers)
            requests = test.certification_requests
            yield OpenLoop(
                replica, claim.sample_requests, test.stoppers, requests, service.clock, random.Random(claim.epoch)
            )

    def platform_at(address: str) -> PlatformClient:
        return PlatformClient(service.outbound.platform(address))

    return LoadTests(database, registry, platform_at, open_load, service.clock, service.id)


def team_of(database: Database, in_registry: TeamOf) -> TeamOf:
    """Returns what maps the names of capacity's resources, and of those that they refer to, to teams."""

    async def find(name: str) -> str | None:
        if names.RESERVATION.match(name):
            pool = await reservations.pool_of(database, name)
            return None if pool is None else await pools.team(database, pool)
        if names.POOL.match(name):
            return await pools.team(database, name)
        if names.LOAD_TEST.match(name):
            return await _of_model(await loadtests.model_of(database, name))
        if names.CERTIFICATE.match(name):
            return await _of_model(await certificates.model_of(database, name))
        if names.ESTIMATE.match(name):
            return await _of_model(await estimates.model_of(database, name))
        if names.LAUNCH_POLICY.match(name):
            return await policies.team(database, name)
        if names.LAUNCH_DECISION.match(name):
            return await _of_model(await decisions.candidate_of(database, name))
        return await in_registry(name)

    async def _of_model(model: str | None) -> str | None:
        return None if model is None else await in_registry(model)

    return find


def main(argv: Sequence[str] | None = None) -> int:
    return run_service("capacity", build, argv)
