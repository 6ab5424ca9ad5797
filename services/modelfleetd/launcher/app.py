"""Launcher: takes candidates to their share of the traffic, step by step, and back where they are not good enough."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from modelfleet.launcher.v1 import launcher_pb2_grpc
from modelfleetd import names
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.alertmanager import Alertmanager
from modelfleetd.kit.app import Service, run_service
from modelfleetd.kit.auth import TeamOf
from modelfleetd.kit.worker import Periodic
from modelfleetd.launcher import delivery, exporter, migrations, observer, webhooks
from modelfleetd.launcher.api import LauncherServicer
from modelfleetd.launcher.clients import AgentClients, CapacityClient, RegistryClient, StabilityClient
from modelfleetd.launcher.delivery import AlertDelivery, OutboxMetrics, Receivers, WebhookDelivery
from modelfleetd.launcher.exporter import Exporter
from modelfleetd.launcher.observer import Observer
from modelfleetd.launcher.ports import World
from modelfleetd.launcher.reconciler import LEASE_SECONDS, Reconciler
from modelfleetd.launcher.store import Store
from modelfleetd.launcher.watch import Notifier
from modelfleetd.launcher.webhooks import Webhooks

_SWEEP_SECONDS = 30.0
_WATCH_SECONDS = 1.0
# Of a lease: a request to a webhook ends well before the round that has made it does.
_WEBHOOK_SHARE = 0.4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the launcher's own flags."""
    parser.add_argument(
        "--lease-seconds",
        type=float,
        default=float(os.environ.get("MODELFLEET_LEASE_SECONDS", LEASE_SECONDS)),
        help="how long a launch stays with a process that does not answer any more; a round takes at most half of it",
    )
    parser.add_argument(
        "--observe-seconds",
        type=float,
        default=float(os.environ.get("MODELFLEET_OBSERVE_SECONDS", observer.INTERVAL_SECONDS)),
        help="how often every platform agent is read and the registry is told what serves; $MODELFLEET_OBSERVE_SECONDS",
    )
    parser.add_argument(
        "--webhooks",
        default=os.environ.get("MODELFLEET_WEBHOOKS", ""),
        metavar="FILE.yaml",
        help="webhooks that are told of launches, or asked as gates: their addresses, secrets, and what they are told; "
        "$MODELFLEET_WEBHOOKS",
    )


async def build(service: Service) -> None:
    """Composes the launcher."""
    receivers = receivers_of(service)
    store = Store(await service.database("launcher", migrations), receivers.audience)
    client = service.client
    world = World(
        RegistryClient(client.registry),
        CapacityClient(client.capacity),
        StabilityClient(client.stability),
        AgentClients(service.outbound.platform),
        receivers.webhooks,
    )
    await compose(service, store, world, receivers)


def receivers_of(service: Service) -> Receivers:
    """Whom the launcher tells and asks, by its configuration."""
    told = None
    if path := getattr(service.options, "webhooks", ""):
        told = Webhooks(webhooks.read(path), service.clock, _WEBHOOK_SHARE * lease_of(service))
        service.at_end(told.close)
    alertmanagers = [Alertmanager(url) for url in service.config.alertmanager_url]
    for alertmanager in alertmanagers:
        service.at_end(alertmanager.close)
    return Receivers(told, alertmanagers)


def lease_of(service: Service) -> float:
    """Seconds for which a claim stays with a process that does not answer any more."""
    lease: float = getattr(service.options, "lease_seconds", LEASE_SECONDS)
    return lease


async def compose(service: Service, store: Store, world: World, receivers: Receivers | None = None) -> None:
    """Composes the launcher in a world: the others' real services, or whatever a test puts in their place."""
    await tell(service, store, receivers or Receivers())
    notifier = Notifier(store)
    reconciler = Reconciler(
        store,
        world,
        service.clock,
        notifier,
        holder=service.id,
        lease=lease_of(service),
        traced=service.telemetry.exports,
    )
    every = getattr(service.options, "observe_seconds", observer.INTERVAL_SECONDS)
    service.work(
        reconciler,
        Periodic("look at every launch", _SWEEP_SECONDS, reconciler.sweep, service.clock),
        Periodic("tell watchers", _WATCH_SECONDS, notifier.poll, service.clock),
        Periodic("observe the fleet", every, Observer(store, world, service.id, every).observe, service.clock),
    )
    if service.telemetry.exports:
        export = Exporter(store, service.telemetry, service.id).export
        service.work(Periodic("export spans", exporter.INTERVAL_SECONDS, export, service.clock))
        service.at_end(export)
    roles = service.registry_roles()
    server = service.server(roles=roles, team_of=team_of(store, roles.team_of))
    servicer = LauncherServicer(
        store, world, reconciler.wake, notifier, service.clock, roles, traced=service.telemetry.exports
    )
    server.add(servicer, launcher_pb2_grpc.add_LauncherServiceServicer_to_server)


async def tell(service: Service, store: Store, receivers: Receivers) -> None:
    """Has people told what the launches' changes have written into the outbox."""
    clock = service.clock
    if receivers.webhooks is not None:
        for name in receivers.webhooks.audience:
            act = WebhookDelivery(name, receivers.webhooks, store, lease_of(service)).round
            service.work(Periodic(f"tell {name}", delivery.LOOK_SECONDS, act, clock))
    for alertmanager in receivers.alertmanagers:
        act = AlertDelivery(alertmanager, store, clock).round
        service.work(Periodic(f"tell {alertmanager.host}", delivery.LOOK_SECONDS, act, clock))
    service.work(Periodic("sweep notifications", delivery.SWEEP_SECONDS, store.sweep_notifications, clock))
    if service.config.metrics_listen:
        metrics = OutboxMetrics(store, clock, receivers.audience)
        await service.enter(_published(metrics))
        service.work(Periodic("count notifications", delivery.COUNT_SECONDS, metrics.count, clock))


@asynccontextmanager
async def _published(metrics: OutboxMetrics) -> AsyncIterator[None]:
    end = metrics.publish()
    try:
        yield
    finally:
        end()


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
