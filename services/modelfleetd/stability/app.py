"""Serves stability: predictions and labels in, calibration, normalized entropy and judgements out."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from modelfleet.stability.v1 import stability_pb2_grpc
from modelfleetd.kit.alertmanager import Alertmanager
from modelfleetd.kit.app import Service, run_service
from modelfleetd.kit.auth import TeamOf
from modelfleetd.kit.db import Database
from modelfleetd.kit.worker import Periodic
from modelfleetd.names import SILENCE
from modelfleetd.stability import migrations
from modelfleetd.stability.alerts import DERIVE_SECONDS, Delivery, Deriving
from modelfleetd.stability.api import StabilityServicer
from modelfleetd.stability.budgets import BUDGET_SECONDS, BudgetKeeper
from modelfleetd.stability.delivery_metrics import DeliveryMetrics
from modelfleetd.stability.domain.alerting import Known
from modelfleetd.stability.domain.fleet import WatchedModel
from modelfleetd.stability.domain.known import known_of
from modelfleetd.stability.evaluator import TICK_SECONDS, Evaluator
from modelfleetd.stability.fleet import TEAMS_SECONDS, Fleet
from modelfleetd.stability.intake_metrics import IntakeMetrics
from modelfleetd.stability.judging import Judge
from modelfleetd.stability.learner import LEARN_SECONDS, DelayLearner
from modelfleetd.stability.proposer import Proposer
from modelfleetd.stability.published import MOST_MODELS, Published
from modelfleetd.stability.reader import Reader
from modelfleetd.stability.registry import Registry
from modelfleetd.stability.store import Store, silences
from modelfleetd.stability.writer import Writer

_SWEEP_SECONDS = 300.0


@asynccontextmanager
async def _published(metrics: IntakeMetrics | DeliveryMetrics) -> AsyncIterator[None]:
    end = metrics.publish()
    try:
        yield
    finally:
        end()


async def build(service: Service) -> None:
    """Composes stability."""
    database = await service.database("stability", migrations)
    store = Store(database)
    registry = Registry(service.client.registry, service.clock)
    fleet = await service.enter(Fleet(service.client))
    metrics = IntakeMetrics(service.clock)
    evaluator = Evaluator(database, store.delays, fleet, service.client.registry, service.clock, service.id)
    service.at_end(evaluator.resign)
    budgets = BudgetKeeper(database, fleet)
    reading_budgets = Periodic("budgets", BUDGET_SECONDS, budgets.refresh, service.clock)
    budgets.wake = reading_budgets.wake
    service.work(
        Periodic("stability sweep", _SWEEP_SECONDS, lambda: store.sweep(service.clock.now()), service.clock),
        Periodic("learn delays", LEARN_SECONDS, DelayLearner(store, registry, service.clock).learn, service.clock),
        Periodic("read who is on call", TEAMS_SECONDS, fleet.read_teams, service.clock),
        Periodic("evaluation", TICK_SECONDS, evaluator.tick, service.clock, jitter=0.0),
        Periodic("slices sweep", _SWEEP_SECONDS, evaluator.sweep, service.clock),
        reading_budgets,
    )
    deliveries = DeliveryMetrics()
    if service.config.metrics_listen:
        await service.enter(_published(metrics))
        await service.enter(_published(deliveries))
        most = getattr(service.options, "max_published_models", MOST_MODELS)
        service.publish(Published(evaluator, budgets, service.clock, most).text)
    alerting = work_of_alerts(service, database, fleet, evaluator, deliveries)
    server = service.server(roles=service.registry_roles(), team_of=team_of(database, registry.team_of))
    writer, reader = Writer(store, service.clock), Reader(store, service.clock)
    proposer = Proposer(database, fleet, service.clock, store.delays)
    servicer = StabilityServicer(
        registry,
        writer,
        reader,
        fleet,
        metrics,
        evaluator.board,
        budgets,
        database,
        service.clock,
        alerting.wake,
        proposer,
        Judge(store, service.clock),
    )
    server.add(servicer, stability_pb2_grpc.add_StabilityServiceServicer_to_server)


def work_of_alerts(
    service: Service, database: Database, fleet: Fleet, evaluator: Evaluator, metrics: DeliveryMetrics
) -> Periodic:
    """Has alerts derived and delivered; returns what is woken when silences change."""
    deliveries = []
    for url in service.config.alertmanager_url:
        alertmanager = Alertmanager(url)
        service.at_end(alertmanager.close)
        deliveries.append(Delivery(alertmanager, database, service.clock, metrics, service.config.dashboard_url))

    def deliver() -> None:
        for delivery in deliveries:
            delivery.wake()

    def known(minute: int, models: Sequence[WatchedModel]) -> Mapping[str, Known] | None:
        if evaluator.minute is None or evaluator.minute < minute:
            return None
        standings = evaluator.standings
        return {
            model.name: known_of(standings[model.name], model.service_level)
            for model in models
            if model.name in standings
        }

    async def derive() -> None:
        periodic.wake()

    deriving = Deriving(database, fleet.view, known, service.clock, deliver)
    periodic = Periodic("derive alerts", DERIVE_SECONDS, deriving.round, service.clock)
    evaluator.after_round.append(derive)
    service.work(periodic, *deliveries, Periodic("forget old alerts", _SWEEP_SECONDS, deriving.forget, service.clock))
    return periodic


def team_of(database: Database, in_registry: TeamOf) -> TeamOf:
    """Returns what maps the names of silences, model types and models to teams."""

    async def find(name: str) -> str | None:
        if SILENCE.match(name):
            resource = await silences.resource_of(database, name)
            return None if resource is None else await in_registry(resource)
        return await in_registry(name)

    return find


def main(argv: Sequence[str] | None = None) -> int:
    """Runs stability until it is told to stop; returns the exit status."""
    return run_service("stability", build, argv, arguments=_add_arguments)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    most = f"models that Prometheus is told of, the most critical ones first (default {MOST_MODELS})"
    parser.add_argument("--max-published-models", type=int, default=MOST_MODELS, metavar="MODELS", help=most)
