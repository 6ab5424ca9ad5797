"""The outbox on real rows: written with the change or not at all, claimed by one, told again until it is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from modelfleetd.kit.alertmanager import RESOLVED_KEPT
from modelfleetd.kit.db import Database
from modelfleetd.launcher.domain import verbs
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.launch import Launch, enter
from modelfleetd.launcher.domain.notifications import ALERTMANAGER, TRIED, DeliveryState, Kind, Outgoing
from modelfleetd.launcher.domain.record import Abort, Condition, Status
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.store import Change, Store
from tests.store.test_launcher_store import NOW, insert, launch

AUDIENCE = {"chat": frozenset(Kind), "pager": frozenset({Kind.FAILED}), ALERTMANAGER: frozenset(Kind)}


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = await Database.open(database_url, "launcher")
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database, AUDIENCE)


async def sent(store: Store) -> list[Outgoing]:
    """All that was written, oldest first."""
    return (await store.notifications(launch="", pending_only=False, before=None, limit=100))[::-1]


async def changed(store: Store, after: Launch, time: datetime | None = None) -> Launch:
    """Writes a round's change of the launch as it stands."""
    before = await store.get(after.name)
    written = await store.record(Change(before, after, due=None, time=time or datetime.now(UTC)))
    assert written is not None
    return written


def alarmed(launch: Launch, reason: str) -> Launch:
    alarm = Condition("NeedsAttention", Status.TRUE, reason, "holds", NOW)
    return replace(launch, conditions=(alarm,) if reason else ())


async def test_each_receiver_is_told_what_it_asked_for_with_the_same_key(store: Store) -> None:
    await insert(store, launch(abort=Abort("bob", "no", NOW)))
    await changed(store, enter(await store.get("launches/l1"), State.CANCELLED, NOW))
    assert [(one.receiver, one.kind, one.key) for one in await sent(store)] == [
        (ALERTMANAGER, Kind.CANCELLED, "launches/l1/2/0"),
        ("chat", Kind.CANCELLED, "launches/l1/2/0"),
    ]


async def test_a_verb_tells_in_its_transaction_and_nothing_where_that_does_not_commit(store: Store) -> None:
    await insert(store, launch())

    class Undone(Exception):
        pass

    async def pause(*, fails: bool) -> None:
        async with store.transaction() as conn:
            locked, now = await store.lock(conn, "launches/l1")
            after = verbs.pause(locked, "bob", "a look", now)
            await store.put(conn, after, Event("Paused", "a look", now, actor="bob"))
            if fails:
                raise Undone

    with pytest.raises(Undone):
        await pause(fails=True)
    assert await sent(store) == []
    await pause(fails=False)
    assert {(one.receiver, one.kind, one.state) for one in await sent(store)} == {
        ("chat", Kind.PAUSED, DeliveryState.PENDING),
        (ALERTMANAGER, Kind.PAUSED, DeliveryState.PENDING),
    }


async def test_a_change_that_comes_too_late_tells_nothing(store: Store) -> None:
    await insert(store, launch(abort=Abort("bob", "no", NOW)))
    before = await store.get("launches/l1")
    await store.claim("another one", 10.0, 1)
    late = Change(before, enter(before, State.CANCELLED, NOW), due=0.0)
    assert await store.record(late) is None
    assert await sent(store) == []


async def test_of_many_replicas_one_has_a_notification_and_after_its_lease_another_one_with_the_same_key(
    store: Store,
) -> None:
    await insert(store, *(launch(f"l{at}", f"r{at}", abort=Abort("bob", "no", NOW)) for at in range(20)))
    for at in range(20):
        await changed(store, enter(await store.get(f"launches/l{at}"), State.CANCELLED, NOW))
    claimed = await asyncio.gather(*(store.due_notifications("chat", 0.0, 7) for _ in range(4)))
    numbers = [due.number for dues in claimed for due in dues]
    # With a lease of nothing they are due again at once: but never in two hands by the same attempt.
    assert len({(due.number, due.attempts) for dues in claimed for due in dues}) == len(numbers)
    held = await store.due_notifications("chat", 60.0, 100)
    assert await store.due_notifications("chat", 60.0, 100) == []
    assert sorted({due.key for due in held}) == sorted(f"launches/l{at}/2/0" for at in range(20))


async def test_a_failure_is_told_again_later_until_a_week_is_over(store: Store, database: Database) -> None:
    await insert(store, launch(abort=Abort("bob", "no", NOW)))
    await changed(store, enter(await store.get("launches/l1"), State.CANCELLED, NOW))
    (due,) = await store.due_notifications("chat", 60.0, 10)
    await store.not_delivered(due.number, due.attempts - 1, "from an attempt that was overtaken", 0.0)
    await store.not_delivered(due.number, due.attempts, "chat answered with status 500", 0.0)
    (again,) = await store.due_notifications("chat", 60.0, 10)
    assert (again.key, again.body, again.attempts) == (due.key, due.body, 2)
    await database.execute("UPDATE notifications SET create_time = now() - $1::interval", TRIED + timedelta(minutes=1))
    await store.not_delivered(again.number, again.attempts, "chat answered with status 502", 3600.0)
    (given_up,) = [one for one in await sent(store) if one.receiver == "chat"]
    assert (given_up.state, given_up.attempts) == (DeliveryState.ABANDONED, 2)
    assert given_up.last_error == "chat answered with status 502"
    assert await store.due_notifications("chat", 60.0, 10) == []


async def test_what_nobody_delivers_is_given_up_too_and_what_is_old_is_forgotten(
    store: Store, database: Database
) -> None:
    await insert(store, launch(abort=Abort("bob", "no", NOW)))
    await changed(store, enter(await store.get("launches/l1"), State.CANCELLED, NOW))
    await store.sweep_notifications()
    assert (await store.backlog()).keys() == {"chat", ALERTMANAGER}
    await database.execute("UPDATE notifications SET create_time = now() - interval '8 days'")
    await store.sweep_notifications()
    assert await store.backlog() == {}
    await database.execute(
        "UPDATE notifications SET create_time = now() - interval '91 days', end_time = now() - interval '90 days'"
    )
    await store.sweep_notifications()
    assert await sent(store) == []


async def test_an_alarm_that_comes_and_goes_is_told_once_an_hour_but_its_alert_begins_again(store: Store) -> None:
    await insert(store, launch(state=State.SHIFTING))
    quiet = await store.get("launches/l1")
    begin = datetime.now(UTC)
    for at in range(3):
        loud = await changed(store, alarmed(quiet, "HoldShort"), begin + timedelta(minutes=at))
        (alert,) = await store.lasting_alerts(RESOLVED_KEPT)
        assert alert.end_time is None
        quiet = await changed(store, alarmed(loud, ""), begin + timedelta(minutes=at))
        (alert,) = await store.lasting_alerts(RESOLVED_KEPT)
        assert alert.end_time is not None
    assert [one.receiver for one in await sent(store)] == [ALERTMANAGER, "chat"]
    await changed(store, alarmed(quiet, "GateErrored"), begin + timedelta(minutes=5))
    await changed(store, alarmed(quiet, ""), begin + timedelta(minutes=6))
    await changed(store, alarmed(quiet, "HoldShort"), begin + timedelta(minutes=61))
    assert [one.receiver for one in await sent(store)] == [ALERTMANAGER, "chat"] * 3


async def test_alerts_end_with_what_they_tell_and_the_newest_speaks_for_all_of_the_same_labels(store: Store) -> None:
    await insert(store, launch())

    async def steer(verb: verbs.Verb) -> None:
        async with store.transaction() as conn:
            locked, now = await store.lock(conn, "launches/l1")
            await store.put(conn, verb(locked, now), Event("Steered", "", now))

    for _ in range(2):
        await steer(lambda found, now: verbs.pause(found, "bob", "a look", now))
        await steer(lambda found, now: verbs.resume(found, "bob", now))
    await steer(lambda found, now: verbs.pause(found, "bob", "a look", now))
    await steer(lambda found, now: verbs.pause(found, "carol", "a look, too", now))
    lasting = await store.lasting_alerts(RESOLVED_KEPT)
    assert [(alert.labels["about"], alert.end_time) for alert in lasting] == [("carol", None), ("bob", None)]
    await store.alerts_taken([alert.number for alert in lasting])
    # The pauses that were over before anybody was told of them are not told any more.
    assert {one.state for one in await sent(store) if one.receiver == ALERTMANAGER} == {DeliveryState.DELIVERED}
    await steer(lambda found, now: verbs.resume(found, "bob", now, any_author=True))
    lasting = await store.lasting_alerts(RESOLVED_KEPT)
    assert len(lasting) == 2 and all(alert.end_time is not None for alert in lasting)
    assert await store.lasting_alerts(timedelta(0)) == []
