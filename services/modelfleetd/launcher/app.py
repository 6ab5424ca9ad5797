"""Launcher: takes candidates to their share of the traffic, step by step, and back where they are not good enough."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from modelfleet.launcher.v1 import launcher_pb2_grpc
from modelfleetd import names
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.app import Service, run_service
from modelfleetd.kit.auth import TeamOf
from modelfleetd.kit.worker import Periodic
from modelfleetd.launcher import exporter, migrations, observer
from modelfleetd.launcher.api import LauncherServicer
from modelfleetd.launcher.clients import AgentClients, CapacityClient, RegistryClient, StabilityClient
from modelfleetd.launcher.exporter import Exporter
from modelfleetd.launcher.observer import Observer
from modelfleetd.launcher.ports import World
from modelfleetd.launcher.reconciler import LEASE_SECONDS, Reconciler
from modelfleetd.launcher.store import Store
from modelfleetd.launcher.watch import Notifier

_SWEEP_SECONDS = 30.0
_WATCH_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the launcher's own flags."""
    parser.add_argument(
        "--lease-seconds",
        type=float,
        default=LEASE_SECONDS,
        help="how long a launch stays with a process that does not answer any more; a round takes at most half of it",
    )


async def build(service: Service) -> None:
    """Composes the launcher."""
    store = Store(await service.database("launcher", migrations))
    client = service.client
    world = World(
        RegistryClient(client.registry),
        CapacityClient(client.capacity),
        StabilityClient(client.stability),
        AgentClients(service.outbound.platform),
    )
    await compose(service, store, world)


async def compose(service: Service, store: Store, world: World) -> None:
    """Composes the launcher in a world: the others' real services, or whatever a test puts in their place."""
    notifier = Notifier(store)
    reconciler = Reconciler(
        store,
        world,
        service.clock,
        notifier,
        holder=service.id,
        lease=getattr(service.options, "lease_seconds", LEASE_SECONDS),
        traced=service.telemetry.exports,
    )
    service.work(
        reconciler,
        Periodic("look at every launch", _SWEEP_SECONDS, reconciler.sweep, service.clock),
        Periodic("tell watchers", _WATCH_SECONDS, notifier.poll, service.clock),
        Periodic(
            "observe the fleet", observer.INTERVAL_SECONDS, Observer(store, world, service.id).observe, service.clock
        ),
    )
    if service.telemetry.exports:
        export = Exporter(store, service.telemetry, service.id).export
        service.work(Periodic("export spans", exporter.INTERVAL_SECONDS, export, service.clock))
        service.at_end(export)
    roles = service.registry_roles()
    server = service.server(roles=roles, team_of=team_of(store, roles.team_of))
    servicer = LauncherServicer(store, world, reconciler.wake, notifier, service.clock, roles)
    server.add(servicer, launcher_pb2_grpc.add_LauncherServiceServicer_to_server)


def team_of(store: Store, in_registry: TeamOf) -> TeamOf:
    """A launch belongs to the team of its model type, and so does a hold on a model."""

    async def find(name: str) -> str | None:
        if names.HOLD.match(name) is not None:
            try:
                return await in_registry((await store.hold(name)).model)
            except ResourceNotFound:
                return None
        if names.LAUNCH.match(name) is None:
            return await in_registry(name)
        try:
            return await in_registry((await store.get(name)).model_type)
        except ResourceNotFound:
            return None

    return find


def main(argv: Sequence[str] | None = None) -> int:
    return run_service("launcher", build, argv, arguments=add_arguments)
