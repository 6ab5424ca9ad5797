"""Replicas of stability are killed around every step of an alert: people are told once, and once that it is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelfleet import AsyncClient
from modelfleet.common.v1.serving_pb2 import ModelShare, RegionSplit, ServingSpec
from modelfleet.registry.v1 import monitoring_pb2, registry_pb2
from modelfleetd.kit.app import Service
from modelfleetd.kit.db import Database
from modelfleetd.kit.migrations import migrate
from modelfleetd.registry.app import build
from modelfleetd.stability import migrations
from modelfleetd.stability.domain.slices import Objective, Slice
from modelfleetd.stability.domain.tenure import Tenure
from modelfleetd.stability.store import alerts, slices
from tests.support.alertmanager import Alertmanager, alertmanager
from tests.support.servers import client_of, running
from tests.support.stability import CLICK, CTR, NEW, OLD
from tests.support.wait import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]


@asynccontextmanager
async def replica(
    url: str, registry: Service, manager: Alertmanager, failpoint: str = ""
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs stability as a process of its own; kills it at the end."""
    environment = {**os.environ, "MODELFLEET_DATABASE_URL": url, "MODELFLEET_LOG_LEVEL": "error"}
    if failpoint:
        environment["MODELFLEET_FAILPOINT"] = f"{failpoint}:kill"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "modelfleetd", "stability", "--listen", "127.0.0.1:0",
        "--registry-address", registry.address, "--alertmanager-url", manager.url, env=environment,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def serve(client: AsyncClient, launch: str, baseline: str, *retired: str) -> int:
    """Ends a launch that makes a model the baseline; returns the revision."""
    roles = [registry_pb2.RoleChange(model=baseline, role=registry_pb2.Model.BASELINE)]
    roles += [registry_pb2.RoleChange(model=model, role=registry_pb2.Model.RETIRED) for model in retired]
    shares = [ModelShare(model=baseline, share_basis_points=10_000)]
    done = await client.registry.finalize_launch(
        model_type=CTR,
        launch=launch,
        outcome=registry_pb2.FinalizeLaunchRequest.SUCCEEDED,
        expected_revision=(await client.registry.get_model_type(name=CTR)).revision,
        role_changes=roles,
        splits=[RegionSplit(region="regions/eu", shares=shares)],
    )
    return int(done.revision)


async def populate(client: AsyncClient) -> int:
    """Makes a route whose objective burns fast; returns the revision."""
    await client.registry.create_team(team_id="feed", team=registry_pb2.Team(on_call="ada"))
    await client.registry.create_region(region_id="eu", region=registry_pb2.Region(agent_address="127.0.0.1:1"))
    level = monitoring_pb2.ServiceLevel(stability=0.999)
    predictions = [registry_pb2.Prediction(id=CLICK)]
    made = registry_pb2.ModelType(
        team="teams/feed", regions=["regions/eu"], predictions=predictions, service_level=level
    )
    await client.registry.create_model_type(model_type_id="ctr", model_type=made)
    spec = ServingSpec(command=["serve"], flavor="flavors/cpu", units_per_replica=1)
    for model in ("old", "new"):
        await client.registry.create_model(parent=CTR, model_id=model, model=registry_pb2.Model(serving_spec=spec))
    return await serve(client, "launches/first", OLD)


async def burn(database: Database, revision: int) -> None:
    """Writes a past of the old model that was bad for the last half of an hour, as evaluations would have."""
    now = int(datetime.now(UTC).timestamp()) // 60
    async with database.transaction() as conn:
        await alerts.write_tenures(conn, [Tenure(OLD, "slos/ctr", revision, now - 30)])
        for minute in range(now - 30, now):
            await slices.write(conn, minute, {("slos/ctr", Objective.STABILITY): Slice.BAD})


async def test_people_are_told_once_whatever_dies_in_the_middle(database_url: str, tmp_path: Path) -> None:
    await migrate(database_url, "stability", migrations)
    database = await Database.open(database_url, "stability", max_size=2)
    with alertmanager(tmp_path) as manager:
        told = manager.receivers
        try:
            async with running("registry", build, database_url) as registry, client_of(registry) as client:
                await burn(database, await populate(client))
                for place, rows in (("stability.before_record.alerts", 0), ("stability.after_record.alerts", 1)):
                    async with replica(database_url, registry, manager, place) as process:
                        assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL
                    # Each transition happens once, or has not happened yet.
                    assert await database.fetchval("SELECT count(*) FROM alerts") == rows
                async with (
                    replica(database_url, registry, manager, "stability.after_call.alertmanager") as one,
                    replica(database_url, registry, manager) as other,
                ):
                    # Both tell of it; one of them dies before it could write down that it has.
                    assert await asyncio.wait_for(one.wait(), 60) == -signal.SIGKILL
                    delivered = "SELECT deliver_time IS NOT NULL FROM alerts"
                    await until(lambda: database.fetchval(delivered), timeout=60)
                    # The launch ends while that one is dead: the other one hands over.
                    await serve(client, "launches/second", NEW, OLD)
                    await until(lambda: len(told.of("pager")) == 2, timeout=60)
                    assert other.returncode is None
                assert told.of("pager") == [("firing", "ModelUnstable"), ("resolved", "ModelUnstable")]
                assert manager.notifications("pager") == 2
                assert await database.fetchval("SELECT count(*) FROM alerts") == 1, (
                    "nothing is held against the new one"
                )
        finally:
            await database.close()
