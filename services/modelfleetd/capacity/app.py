"""Capacity: flavors, pools with quotas, reservations, certificates of load, estimates, load tests."""

from __future__ import annotations

import argparse
import functools
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from modelfleet.capacity.v1 import capacity_pb2_grpc
from modelfleetd import names
from modelfleetd.capacity import migrations
from modelfleetd.capacity.api import CapacityServicer
from modelfleetd.capacity.books import ACTOR, Books
from modelfleetd.capacity.datasets import Datasets
from modelfleetd.capacity.demands import Demands
from modelfleetd.capacity.domain.history import FINER
from modelfleetd.capacity.holders import Holders
from modelfleetd.capacity.loadtest.generator import OpenLoop
from modelfleetd.capacity.loadtest.job import LEASE_SECONDS, LoadTests
from modelfleetd.capacity.loadtest.replay import replayed
from modelfleetd.capacity.loadtest.replica import Replica, connect
from modelfleetd.capacity.prometheus import Prometheus
from modelfleetd.capacity.recordings import Recordings as RecordingsWorker
from modelfleetd.capacity.registry import Registry
from modelfleetd.capacity.store import (
    certificates,
    decisions,
    estimates,
    loadtests,
    loans,
    policies,
    pools,
    recordings,
    reservations,
)
from modelfleetd.capacity.store.loadtests import Claim
from modelfleetd.capacity.waiters import Waiters
from modelfleetd.kit.app import Service, run_service
from modelfleetd.kit.auth import TeamOf
from modelfleetd.kit.db import Database
from modelfleetd.kit.worker import Periodic
from modelfleetd.platform.client import PlatformClient

_SWEEP_SECONDS = 1.0
_EXPIRE_SECONDS = 60.0
_SERVE_SECONDS = 1.0
_ABSENT_SECONDS = 15.0
_CHECK_SECONDS = 300.0
_CHECK_WHOLE_SECONDS = 3600.0
_LOANS_SECONDS = 60.0
_FORGET_SECONDS = 3600.0
# An agent writes the last file of a recording before it answers.
_AGENT_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds capacity's own flags."""
    parser.add_argument(
        "--lease-seconds",
        type=float,
        default=float(os.environ.get("MODELFLEET_LEASE_SECONDS", LEASE_SECONDS)),
        help="how long a load test stays with a process that does not answer any more",
    )


async def build(service: Service) -> None:
    """Composes capacity."""
    database = await service.database("capacity", migrations)
    registry = Registry(service.client.registry)
    books = Books(database)
    datasets = Datasets(service.config.recordings_uri)
    recorder = recordings_worker(service, database, registry, datasets)
    waiters = Periodic("serve those who wait", _SERVE_SECONDS, Waiters(database, ACTOR).serve, service.clock)
    roles = service.registry_roles()
    service.work(
        load_tests(service, database, registry),
        # While one reads a large recording the other goes on looking after the rest.
        recorder,
        recordings_worker(service, database, registry, datasets),
        Periodic("delete old recordings", _EXPIRE_SECONDS, recorder.expire, service.clock),
        Periodic("expire and release holds", _SWEEP_SECONDS, books.sweep, service.clock),
        waiters,
        Periodic("look for absent holders", _ABSENT_SECONDS, Holders(database).look, service.clock),
        # The first round is at the start.
        Periodic("check the ledger", _CHECK_SECONDS, books.check, service.clock),
        Periodic("check the whole ledger", _CHECK_WHOLE_SECONDS, books.check_whole, service.clock),
        Periodic("look at loans", _LOANS_SECONDS, books.look_at_loans, service.clock),
        *(
            Periodic(
                f"usage by {resolution}",
                finer.total_seconds(),
                functools.partial(books.roll_up, resolution),
                service.clock,
            )
            for resolution, finer in FINER.items()
        ),
        Periodic("forget answered requests", _FORGET_SECONDS, books.forget, service.clock),
    )
    server = service.server(roles=roles, team_of=team_of(database, roles.team_of))
    servicer = CapacityServicer(database, registry, service.clock, datasets, demands(service), waiters.wake)
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
        async with connect(address) as channel, replayed(database, claim) as requests:
            yield OpenLoop(
                Replica(channel, target, test.model, test.stoppers),
                requests,
                test.stoppers,
                test.certification_requests,
                service.clock,
                random.Random(claim.epoch),
                None if test.warm_up_duration is None else test.warm_up_duration.total_seconds(),
            )

    def platform_at(address: str) -> PlatformClient:
        return PlatformClient(service.outbound.platform(address))

    lease = getattr(service.options, "lease_seconds", LEASE_SECONDS)
    return LoadTests(database, registry, platform_at, open_load, service.clock, service.id, lease)


def recordings_worker(service: Service, database: Database, registry: Registry, datasets: Datasets) -> RecordingsWorker:
    """Returns a worker that looks after recordings with the agents of the regions."""

    def platform_at(address: str) -> PlatformClient:
        return PlatformClient(service.outbound.platform(address), timeout=_AGENT_SECONDS)

    return RecordingsWorker(database, registry, platform_at, datasets, service.clock)


def team_of(database: Database, in_registry: TeamOf) -> TeamOf:
    """Returns what maps the names of capacity's resources, and of those that they refer to, to teams."""

    async def find(name: str) -> str | None:
        if names.RESERVATION.match(name):
            pool = await reservations.pool_of(database, name)
            return None if pool is None else await pools.team(database, pool)
        if names.LOAN.match(name):
            lender = await loans.lender_of(database, name)
            return None if lender is None else await pools.team(database, lender)
        if names.POOL.match(name):
            return await pools.team(database, name)
        if names.LOAD_TEST.match(name):
            return await _of_model(await loadtests.model_of(database, name))
        if names.RECORDING.match(name):
            model_type = await recordings.model_type_of(database, name)
            return None if model_type is None else await in_registry(model_type)
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
    return run_service("capacity", build, argv, arguments=add_arguments)
