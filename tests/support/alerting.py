"""Alerts on their own: minutes are what the test says they count as, everything behind them is real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from modelfleetd.clock import ManualClock, SystemClock
from modelfleetd.kit.alertmanager import Alertmanager as Client
from modelfleetd.kit.db import Database
from modelfleetd.kit.migrations import migrate
from modelfleetd.stability import migrations
from modelfleetd.stability.alerts import Delivery, Deriving
from modelfleetd.stability.delivery_metrics import DeliveryMetrics
from modelfleetd.stability.domain.alert import Resolution, Severity, State
from modelfleetd.stability.domain.alerting import Culprit, Known
from modelfleetd.stability.domain.fleet import (
    FunnelStage,
    Metric,
    Role,
    ServiceLevel,
    Tier,
    WatchedFleet,
    WatchedModel,
)
from modelfleetd.stability.domain.slices import Objective, Slice
from modelfleetd.stability.store import slices
from tests.support.alertmanager import Alertmanager
from tests.support.stability import CTR, OLD

CLICK = Culprit("click", Metric.CALIBRATION, "calibration of click is 1.31, above its range of 0.9 to 1.1")


def watched(name: str = OLD, role: Role = Role.BASELINE, tier: Tier = Tier.TIER1) -> WatchedModel:
    """A model of modelTypes/ctr that serves."""
    return WatchedModel(
        name=name,
        model_type=CTR,
        role=role,
        tier=tier,
        team="teams/feed",
        on_call="ada",
        surface="feed",
        product="app",
        funnel_stage=FunnelStage.LATE_STAGE_RANKING,
        share_basis_points=10_000,
        predictions={"click": None},  # type: ignore[dict-item]
        ranges={},
        service_level=ServiceLevel(0.995, 0.9, 0.995, 0.99, 0.0),
    )


@dataclass
class Replica:
    """What one replica of stability does for alerts."""

    deriving: Deriving
    deliveries: Sequence[Delivery]

    async def deliver(self) -> None:
        for delivery in self.deliveries:
            await delivery.round()


@dataclass
class Alerting:
    """Replicas on one database. Time passes by minutes that are evaluated; it ends before now."""

    database: Database
    clock: ManualClock
    view: WatchedFleet = field(default_factory=lambda: fleet(watched()))
    # The revision by which minutes are evaluated; None: that of the view.
    evaluated_by: int | None = None
    replicas: list[Replica] = field(default_factory=list)
    known: dict[str, Known] = field(default_factory=dict)
    metrics: DeliveryMetrics = field(default_factory=DeliveryMetrics)

    async def pass_minutes(self, count: int, bad: Iterable[str] = (), others: Slice = Slice.GOOD) -> None:
        """Lets minutes pass, in which some models are unstable, and derives after each."""
        for _ in range(count):
            await self.evaluate(1, bad, others)
            await self.derive()

    async def derive(self) -> None:
        """Has all replicas derive at once."""
        await asyncio.gather(*(replica.deriving.round() for replica in self.replicas))

    async def evaluate(self, count: int, bad: Iterable[str] = (), others: Slice = Slice.GOOD) -> None:
        """Lets minutes pass and writes what they count as, as evaluations do; nobody derives meanwhile."""
        bad = set(bad)
        revision = self.view.revision if self.evaluated_by is None else self.evaluated_by
        counted = {
            (model.slo, objective): Slice.BAD if model.name in bad and objective is Objective.STABILITY else others
            for model in self.view.models.values()
            for objective in (Objective.STABILITY, Objective.AVAILABILITY)
        }
        async with self.database.transaction() as conn:
            for _ in range(count):
                self.clock.set(self.clock.monotonic() + 60)
                minute = int(self.clock.now().timestamp()) // 60
                await slices.write(conn, minute, counted)
                await conn.execute("UPDATE evaluation SET minute = $1, revision = $2", minute, revision)
        for model in self.view.models.values():
            self.known[model.name] = Known((CLICK,), self.clock.now()) if model.name in bad else Known()

    async def deliver(self) -> None:
        """Has every replica tell every Alertmanager."""
        for replica in self.replicas:
            await replica.deliver()

    async def alerts(self) -> list[tuple[str, str, str]]:
        """Model, severity and state, or how they ended, of all alerts there ever were, in their order."""
        rows = await self.database.fetch("SELECT * FROM alerts ORDER BY sequence")
        return [
            (
                row["model"],
                Severity(row["severity"]).name,
                Resolution(row["resolution"]).name if row["resolution"] else State(row["state"]).name,
            )
            for row in rows
        ]

    def _known(self, _: int, models: Sequence[WatchedModel]) -> Mapping[str, Known]:
        return {model.name: self.known[model.name] for model in models if model.name in self.known}

    async def add_replica(
        self, stack: AsyncExitStack, url: str, managers: Iterable[Alertmanager], resend: timedelta
    ) -> None:
        """Adds a replica that tells some Alertmanagers, with connections of its own."""
        database = await Database.open(url, "stability", max_size=4)
        stack.push_async_callback(database.close)
        deliveries = []
        for manager in managers:
            client = Client(manager.url)
            stack.push_async_callback(client.close)
            # Alertmanager goes by the machine's clock, and so must what is told to hold.
            delivery = Delivery(client, database, SystemClock(), self.metrics, "https://grafana/d/models", resend)
            deliveries.append(delivery)
        deriving = Deriving(database, lambda: self.view, self._known, self.clock, lambda: None)
        self.replicas.append(Replica(deriving, deliveries))


def fleet(*models: WatchedModel, revision: int = 1) -> WatchedFleet:
    """A fleet at a revision."""
    return WatchedFleet(revision, {model.name: model for model in models})


@asynccontextmanager
async def alerting(
    database_url: str,
    *managers: Alertmanager,
    replicas: int = 1,
    resend: timedelta = timedelta(minutes=1),
    minutes: int = 20,
) -> AsyncIterator[Alerting]:
    """Runs alerts until the block ends; the minutes before were good.

    Args:
        database_url: of a test's database.
        managers: Alertmanagers that are told.
        replicas: how many derive and tell.
        resend: how often workers tell.
        minutes: before now at which it begins. Alertmanager knows no future, and what was over a quarter of an hour
            ago is told to nobody any more: so many minutes pass in a test, or some more.
    """
    await migrate(database_url, "stability", migrations)
    async with AsyncExitStack() as stack:
        database = await Database.open(database_url, "stability", max_size=2)
        stack.push_async_callback(database.close)
        found = Alerting(database, ManualClock(datetime.now(UTC) - timedelta(minutes=minutes)))
        for _ in range(replicas):
            await found.add_replica(stack, database_url, managers, resend)
        yield found
