"""Rows of launches: claims, epochs, and what a claim that was lost may not write."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import asyncpg
import pytest

from modelfleetd.errors import ResourceExists, RouteBusy
from modelfleetd.kit.db import Database
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.launch import Launch, Strategy, enter
from modelfleetd.launcher.domain.policy import Policy
from modelfleetd.launcher.domain.record import Act, Intent, PhaseTime
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.store import Change, Settled, Store
from modelfleetd.launcher.store.launches import page_query
from modelfleetd.launcher.store.rounds import CLAIM

NOW = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    database = await Database.open(database_url, "launcher")
    try:
        yield Store(database)
    finally:
        await database.close()


def launch(key: str = "l1", route: str = "ctr", **fields: object) -> Launch:
    made = Launch(
        name=f"launches/{key}",
        uid=str(uuid.uuid4()),
        model_type=f"modelTypes/{route}",
        candidate=f"modelTypes/{route}/models/new",
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
    return replace(made, **fields)  # type: ignore[arg-type]


async def insert(store: Store, *launches: Launch) -> None:
    for new in launches:
        async with store.transaction() as conn:
            await store.insert(conn, new)


def intent(number: int = 1) -> Intent:
    return Intent(number, Act.START, f"l1/1/1/start.{number}", 1, "regions/eu", False, {}, NOW)


async def test_a_launch_is_read_as_it_was_written(store: Store) -> None:
    await insert(store, launch())
    read = await store.get("launches/l1")
    assert replace(read, update_time=NOW) == launch(uid=read.uid)


async def test_a_claim_is_exclusive_and_each_has_a_newer_epoch(store: Store) -> None:
    await insert(store, *(launch(f"l{i}", f"r{i}") for i in range(10)))
    claims = [c for found in await asyncio.gather(*(store.claim("a", 30, 4) for _ in range(5))) for c in found]
    assert len({claim.launch.name for claim in claims}) == len(claims) == 10
    assert len({claim.launch.epoch for claim in claims}) == 10
    assert await store.claim("b", 30, 10) == []


async def test_a_holder_that_was_replaced_writes_nothing(store: Store) -> None:
    await insert(store, launch())
    (stalled,) = await store.claim("stalled", 0.0, 1)
    (fresh,) = await store.claim("fresh", 30, 1)
    assert fresh.launch.epoch > stalled.launch.epoch
    late = Change(stalled.launch, enter(stalled.launch, State.CANCELLED, NOW), due=0.0)
    assert await store.record(late) is None
    assert not await store.watched(stalled.launch, 1.0)
    await store.yield_lease(stalled.launch)
    assert await store.claim("third", 30, 1) == []
    written = await store.record(Change(fresh.launch, enter(fresh.launch, State.ESTIMATING, NOW), due=None))
    assert written is not None and written.version == fresh.launch.version + 1


async def test_a_verb_in_between_makes_the_round_void(store: Store) -> None:
    await insert(store, launch())
    (claim,) = await store.claim("a", 30, 1)
    async with store.transaction() as conn:
        found, now = await store.lock(conn, "launches/l1")
        await store.put(conn, replace(found, reason="changed"), Event("Paused", "by a person", now))
    assert await store.record(Change(claim.launch, claim.launch, due=1.0)) is None
    await store.yield_lease(claim.launch)
    (again,) = await store.claim("a", 30, 1)
    assert again.launch.reason == "changed"


async def test_an_intent_and_its_outcome_are_kept_and_only_one_is_unsettled(store: Store, database_url: str) -> None:
    await insert(store, launch())
    (claim,) = await store.claim("a", 30, 1)
    meant = await store.record(Change(claim.launch, claim.launch, due=None, intent=intent()))
    assert meant is not None
    with pytest.raises(asyncpg.UniqueViolationError):
        await store.record(Change(meant, meant, due=None, intent=intent(2)))
    done = await store.record(Change(meant, meant, due=None, settled=Settled(1, "done")))
    assert done is not None
    assert await store.record(Change(done, done, due=None, intent=intent(2))) is not None


async def test_events_are_numbered_without_gaps(store: Store) -> None:
    await insert(store, launch())
    (claim,) = await store.claim("a", 30, 1)
    at = claim.launch
    for _ in range(3):
        written = await store.record(Change(at, at, due=None, events=[Event("A", "a", NOW), Event("B", "b", NOW)]))
        assert written is not None
        at = written
    assert [event.sequence for event in await store.events("launches/l1", after=0, limit=10)] == [1, 2, 3, 4, 5, 6]


async def test_one_launch_is_active_on_a_route_and_the_queue_moves_on_when_it_ends(store: Store) -> None:
    await insert(store, launch("first"))
    with pytest.raises(RouteBusy) as raised:
        await insert(store, launch("second"))
    assert raised.value.metadata["launch"] == "launches/first"
    with pytest.raises(ResourceExists):
        await insert(store, launch("first", "other"))
    await insert(store, launch("second", queued=True), launch("third", queued=True))
    claims = {claim.launch.name: claim for claim in await store.claim("a", 30, 10)}
    assert not await store.leave_queue(claims["launches/second"].launch)
    ended = enter(claims["launches/first"].launch, State.CANCELLED, NOW)
    assert await store.record(Change(claims["launches/first"].launch, ended, due=0.0)) is not None
    assert not await store.leave_queue(claims["launches/third"].launch)
    assert await store.leave_queue(claims["launches/second"].launch)
    assert not (await store.get("launches/second")).queued


async def test_nobody_goes_past_the_queue_of_a_route(store: Store) -> None:
    await insert(store, launch("first"), launch("second", queued=True))
    claims = {claim.launch.name: claim for claim in await store.claim("a", 30, 10)}
    ended = enter(claims["launches/first"].launch, State.CANCELLED, NOW)
    assert await store.record(Change(claims["launches/first"].launch, ended, due=0.0)) is not None
    with pytest.raises(RouteBusy) as raised:
        await insert(store, launch("third"))
    assert raised.value.metadata["launch"] == "launches/second"
    await insert(store, launch("other", "another_route"))


async def mitigate(store: Store, new: Launch) -> Launch:
    async with store.transaction() as conn:
        new = await store.with_precedence(conn, new, NOW)
        await store.insert(conn, new)
    return await store.get(new.name)


def ending(key: str, *, queued: bool = False) -> Launch:
    candidate = "modelTypes/ctr/models/experiment"
    return launch(key, strategy=Strategy.END_EXPERIMENT, candidate=candidate, queued=queued)


async def test_a_mitigation_comes_first_and_who_acted_until_then_writes_nothing_more(store: Store) -> None:
    await insert(store, launch("active"), launch("next", queued=True))
    (acting,) = [claim for claim in await store.claim("a", 30, 10) if claim.launch.name == "launches/active"]
    made = await mitigate(store, ending("m1"))
    assert not made.queued and (await store.first_on(made.model_type)) == "launches/m1"
    held = await store.held_for(made)
    assert held is not None and (held.name, held.preempted_by) == ("launches/active", "launches/m1")
    assert [pause.author for pause in held.pause_reasons] == ["mitigation/m1"] and held.epoch > acting.launch.epoch
    assert await store.record(Change(acting.launch, acting.launch, due=1.0)) is None
    (mine,) = [claim for claim in await store.claim("b", 30, 10) if claim.launch.name == "launches/m1"]
    assert mine.launch.epoch > held.epoch
    assert [event.type for event in await store.events("launches/active", after=0, limit=10)] == ["Preempted"]


async def test_a_second_mitigation_is_refused_or_queued_before_everybody_else(store: Store) -> None:
    await insert(store, launch("active"), launch("next", queued=True))
    await mitigate(store, ending("m1"))
    with pytest.raises(RouteBusy) as raised:
        await mitigate(store, ending("m2"))
    assert raised.value.metadata["launch"] == "launches/m1"
    await mitigate(store, ending("m3", queued=True))
    claims = {claim.launch.name: claim.launch for claim in await store.claim("a", 30, 10)}
    assert not await store.leave_queue(claims["launches/m3"])
    for name in ("launches/m1", "launches/active"):
        ended = enter(claims[name], State.CANCELLED, NOW)
        assert await store.record(Change(claims[name], ended, due=0.0)) is not None
    assert not await store.leave_queue(claims["launches/next"])
    assert await store.leave_queue(claims["launches/m3"])
    assert not (await store.get("launches/m3")).queued


async def test_a_launch_that_moves_the_same_model_goes_back_before_the_mitigation(store: Store) -> None:
    await insert(store, launch("active"))
    made = await mitigate(store, replace(ending("m1"), candidate="modelTypes/ctr/models/new"))
    active = await store.get("launches/active")
    assert made.queued and active.abort is not None and active.preempted_by == ""
    assert "launches/m1 takes modelTypes/ctr/models/new away" in active.abort.reason


async def test_a_launch_goes_back_before_its_baseline_is_rolled_back(store: Store) -> None:
    old = "modelTypes/ctr/models/old"
    await insert(store, launch("active", baseline=old))
    verified = replace(ending("m1"), candidate="modelTypes/ctr/models/verified", baseline=old)
    made = await mitigate(store, replace(verified, strategy=Strategy.ROLL_BACK))
    active = await store.get("launches/active")
    assert made.queued and active.abort is not None and f"takes {old} away" in active.abort.reason


async def test_the_end_of_a_mitigation_wakes_the_launch_that_holds(store: Store) -> None:
    await insert(store, launch("active"))
    await mitigate(store, ending("m1"))
    claims = {claim.launch.name: claim.launch for claim in await store.claim("a", 30, 10)}
    assert await store.watched(claims["launches/active"], 60.0)
    assert await store.claim("a", 30, 10) == []
    ended = enter(claims["launches/m1"], State.CANCELLED, NOW)
    assert await store.record(Change(claims["launches/m1"], ended, due=0.0)) is not None
    assert [claim.launch.name for claim in await store.claim("a", 30, 10)] == ["launches/active"]


async def test_of_those_who_come_to_a_route_at_once_one_gets_it(store: Store) -> None:
    came = await asyncio.gather(
        *(insert(store, launch(f"l{i}", queued=i % 2 == 1)) for i in range(8)), return_exceptions=True
    )
    assert all(found is None or isinstance(found, RouteBusy) for found in came)
    rows = await store.page(before=None, limit=100)
    assert sum(not found.queued for _, found in rows) <= 1
    active = [number for number, found in rows if not found.queued]
    assert active in ([], [min(number for number, _ in rows)])


async def _plan_of(database_url: str, statement: str, *arguments: object) -> str:
    """How the database goes about a statement, among many launches that have ended and some that have not."""
    database = await Database.open(database_url, "launcher", max_size=1)
    try:
        await database.execute(
            """INSERT INTO launches (id, uid, model_type, actor, state, queued, version, epoch, next_due_time, body,
                                     create_time, update_time, end_time)
               SELECT 'l' || n, gen_random_uuid(), 'modelTypes/t' || n % 200, 'a', CASE WHEN open THEN 'PENDING' ELSE
                      'CANCELLED' END, open, 1, 0, CASE WHEN open THEN now() + interval '1 h' END, '{}', now(), now(),
                      CASE WHEN NOT open THEN now() END
               FROM generate_series(1, 20000) AS n, LATERAL (SELECT n % 100 = 0) AS o(open)"""
        )
        await database.execute("ANALYZE launches")
        rows = await database.fetch(f"EXPLAIN {statement}", *arguments)
        return "\n".join(row["QUERY PLAN"] for row in rows)
    finally:
        await database.close()


async def test_what_is_due_is_found_by_its_index(database_url: str) -> None:
    plan = await _plan_of(database_url, CLAIM, 32, "a", 10.0)
    assert "launches_due" in plan and "Seq Scan on launches" not in plan, plan


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        ({"model_type": "modelTypes/t7"}, "launches_of_route"),
        ({"model_type": "modelTypes/t7", "before": 15_000}, "launches_of_route"),
        ({"model_type": "modelTypes/t0", "active_only": True}, "launches_open"),
        ({"active_only": True}, "launches_active"),
        ({"before": 15_000}, "launches_number_key"),
    ],
)
async def test_a_page_of_launches_is_read_from_an_index(
    database_url: str, asked: dict[str, object], index: str
) -> None:
    statement, arguments = page_query(**({"before": None, "limit": 51} | asked))  # type: ignore[arg-type]
    plan = await _plan_of(database_url, statement, *arguments)
    assert index in plan and "Seq Scan" not in plan and "Sort" not in plan, plan


async def test_what_is_not_due_is_not_claimed_and_the_sweeper_finds_what_sleeps_too_long(store: Store) -> None:
    await insert(store, launch())
    (claim,) = await store.claim("a", 30, 1)
    await store.record(Change(claim.launch, claim.launch, due=3_600.0))
    assert await store.claim("a", 30, 1) == []
    assert await store.sweep(7_200) == 0
    assert await store.sweep(120) == 1
    assert len(await store.claim("a", 30, 1)) == 1


async def test_an_illegal_state_cannot_be_stored(store: Store) -> None:
    await insert(store, launch())
    (claim,) = await store.claim("a", 30, 1)
    with pytest.raises(asyncpg.CheckViolationError):
        await store.record(Change(claim.launch, replace(claim.launch, state=State.SUCCEEDED), due=0.0))


async def test_the_fence_follows_an_agent_that_knows_newer_epochs(store: Store) -> None:
    await insert(store, launch())
    await store.raise_fence(5_000)
    await store.raise_fence(10)
    (claim,) = await store.claim("a", 30, 1)
    assert claim.launch.epoch > 5_000


async def test_a_duty_has_one_holder_until_it_expires(store: Store) -> None:
    assert await store.take_duty("watch", "a", 30)
    assert await store.take_duty("watch", "a", 0)
    assert await store.take_duty("watch", "b", 30)
    assert not await store.take_duty("watch", "a", 30)
