"""Serves stability: predictions and labels in, calibration, normalized entropy and judgements out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from modelfleet.stability.v1 import stability_pb2_grpc
from modelfleetd.kit.app import Service, run_service
from modelfleetd.kit.worker import Periodic
from modelfleetd.stability import migrations
from modelfleetd.stability.api import StabilityServicer
from modelfleetd.stability.fleet import TEAMS_SECONDS, Fleet
from modelfleetd.stability.intake_metrics import IntakeMetrics
from modelfleetd.stability.judging import Judge
from modelfleetd.stability.reader import Reader
from modelfleetd.stability.registry import Registry
from modelfleetd.stability.store import Store
from modelfleetd.stability.writer import Writer

_SWEEP_SECONDS = 300.0


@asynccontextmanager
async def _published(metrics: IntakeMetrics) -> AsyncIterator[None]:
    end = metrics.publish()
    try:
        yield
    finally:
        end()


async def build(service: Service) -> None:
    """Composes stability."""
    store = Store(await service.database("stability", migrations))
    registry = Registry(service.client.registry, service.clock)
    fleet = await service.enter(Fleet(service.client))
    metrics = IntakeMetrics()
    service.work(
        Periodic("stability sweep", _SWEEP_SECONDS, lambda: store.sweep(service.clock.now()), service.clock),
        Periodic("read who is on call", TEAMS_SECONDS, fleet.read_teams, service.clock),
    )
    if service.config.metrics_listen:
        await service.enter(_published(metrics))
    server = service.server(roles=service.registry_roles(), team_of=registry.team_of)
    reader, judge = Reader(store, service.clock), Judge(store, service.clock)
    servicer = StabilityServicer(registry, Writer(store, service.clock), reader, fleet, metrics, judge)
    server.add(servicer, stability_pb2_grpc.add_StabilityServiceServicer_to_server)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs stability until it is told to stop; returns the exit status."""
    return run_service("stability", build, argv)
