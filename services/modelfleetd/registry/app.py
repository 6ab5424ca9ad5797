"""Serves the registry: teams, regions, model types and models, every change as a revision."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from modelfleet.registry.v1 import registry_pb2_grpc
from modelfleetd.kit.app import Service, run_service
from modelfleetd.kit.worker import Periodic
from modelfleetd.registry import lapses, migrations, renaming, standings
from modelfleetd.registry.access import SnapshotRoles
from modelfleetd.registry.api import RegistryServicer
from modelfleetd.registry.compaction import Compaction
from modelfleetd.registry.follower import POLL_SECONDS, Follower
from modelfleetd.registry.renaming import Renaming
from modelfleetd.registry.store import Store
from modelfleetd.registry.watch import Watches
from modelfleetd.registry.writer import Writer

# Long after the last retry of any client.
_REQUESTS_KEPT = timedelta(days=7)


async def build(service: Service) -> None:
    """Composes the registry."""
    store = Store(await service.database("registry", migrations))
    follower = Follower(store)
    await follower.load()
    writer = Writer(store, follower)
    due, standing = lapses.Lapses(follower, writer, service.clock), standings.Standings(follower, service.clock)
    service.work(
        Periodic("registry follower", POLL_SECONDS, follower.catch_up, service.clock),
        Periodic("registry compaction", 60.0, Compaction(store.history).forget, service.clock),
        Periodic("registry requests", 3600.0, lambda: store.forget_requests(_REQUESTS_KEPT), service.clock),
        Periodic("registry names", renaming.PERIOD_SECONDS, Renaming(follower, writer).round, service.clock),
        Periodic("registry criticality", lapses.ROUND_SECONDS, due.round, service.clock),
        Periodic("registry standings", standings.ROUND_SECONDS, standing.keep_up, service.clock),
    )
    access = SnapshotRoles(follower)
    server = service.server(roles=access, team_of=access.team_of)
    servicer = RegistryServicer(store, follower, writer, Watches(store, follower), service.clock, standing)
    server.add(servicer, registry_pb2_grpc.add_RegistryServiceServicer_to_server)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the registry until it is told to stop; returns the exit status."""
    return run_service("registry", build, argv)
