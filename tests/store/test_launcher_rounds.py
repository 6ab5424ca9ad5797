"""Rounds on real rows: what a holder may still do when its lease has run on without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from modelfleetd.clock import SystemClock
from modelfleetd.errors import PartUnavailable
from modelfleetd.kit.db import Database
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.policy import Policy
from modelfleetd.launcher.domain.record import Act, Frozen, Intent, PhaseTime
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.reconciler import Reconciler
from modelfleetd.launcher.round import Round
from modelfleetd.launcher.store import Change, Claim, Store
from modelfleetd.launcher.watch import Notifier
from tests.support.wait import until

NOW = datetime(2025, 1, 1, tzinfo=UTC)
LEASE = 0.4


class SlowStore(Store):
    """The answer to a claim is heard when half of its lease is over."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.claims = self.records = 0

    async def claim(self, holder: str, lease: float, limit: int) -> list[Claim]:
        claims = await super().claim(holder, lease, limit)
        self.claims += len(claims)
        await asyncio.sleep(lease * 0.6)
        return claims

    async def record(self, change: Change) -> Launch | None:
        self.records += 1
        return await super().record(change)


@dataclass
class Executor:
    """Remembers what it is told to do; nobody knows whether it was done."""

    performed: list[Intent] = field(default_factory=list)

    async def perform(self, launch: Launch, intent: Intent, now: datetime) -> tuple[Launch, str]:
        self.performed.append(intent)
        raise PartUnavailable("capacity")


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[SlowStore]:
    database = await Database.open(database_url, "launcher")
    try:
        yield SlowStore(database)
    finally:
        await database.close()


def launch(**fields: Any) -> Launch:
    made = Launch(
        name="launches/l1",
        uid="6c1f6a3e-6a63-4a44-9f5e-7a1c2b7d9e10",
        model_type="modelTypes/ctr",
        candidate="modelTypes/ctr/models/new",
        strategy=Strategy.REPLACE_BASELINE,
        pool="pools/p",
        regions=("regions/eu",),
        policy=Policy(),
        actor="alice",
        trace_id="0" * 32,
        create_time=NOW,
        update_time=NOW,
        phase_times=(PhaseTime(State.PENDING, NOW),),
    )
    return replace(made, **fields)


async def insert(store: Store, new: Launch) -> None:
    async with store.transaction() as conn:
        await store.insert(conn, new)


async def test_a_lease_counts_from_when_the_claim_was_asked_for(store: SlowStore) -> None:
    await insert(store, launch())
    world = cast("Any", SimpleNamespace(stability=None))
    reconciler = Reconciler(store, world, SystemClock(), Notifier(store), holder="slow", lease=LEASE)
    running = asyncio.create_task(reconciler.run())
    try:
        await until(lambda: store.claims >= 3, 10)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert store.records == 0
    assert (await store.get("launches/l1")).state is State.PENDING


@pytest.mark.parametrize("replaced", [False, True])
async def test_an_unsettled_call_is_repeated_only_by_who_still_holds_the_launch(
    store: SlowStore, replaced: bool
) -> None:
    intent = Intent(1, Act.RESERVE, "l1/1/0/reserve.1", 0, "", False, {}, NOW)
    await insert(store, launch(state=State.PREPARING, intent=intent, intents=1))
    started = SystemClock().monotonic()
    (claim,) = await store.claim("stalled", 0.0, 1)
    if replaced:
        await store.claim("fresh", 30, 1)
    executor = Executor()
    at_hand = Round(
        replace(claim, lease=30),
        store=store,
        executor=cast("Any", executor),
        judges=cast("Any", None),
        clock=SystemClock(),
        traced=False,
        started=started,
    )
    await at_hand.run()
    assert executor.performed == ([] if replaced else [intent])


async def test_whoever_looks_at_a_launch_while_its_freeze_window_changes_begins_anew(store: SlowStore) -> None:
    window = cast("Any", SimpleNamespace(name="freezeWindows/f"))
    frozen = Frozen(window.name, "few people are there", since=NOW, end_time=NOW + timedelta(days=1), counted=NOW)
    await insert(store, launch(state=State.PREPARING, frozen=frozen))
    other = "6c1f6a3e-6a63-4a44-9f5e-7a1c2b7d9e11"
    await insert(store, launch(name="launches/l2", uid=other, model_type="modelTypes/other", state=State.PREPARING))
    claimed = {claim.launch.name: claim.launch for claim in await store.claim("slow", 30.0, 2)}
    async with store.transaction() as conn:
        await store.look_at_frozen(conn, window)
    assert await store.watched(claimed["launches/l2"], 60.0), "no window holds it back"
    assert not await store.watched(claimed["launches/l1"], 60.0), "it has seen the window as it was"
    await store.yield_lease(claimed["launches/l1"])
    assert [claim.launch.name for claim in await store.claim("next", 30.0, 2)] == ["launches/l1"]
