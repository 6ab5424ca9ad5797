"""The stream of revisions: ordered, complete, resumable; two replicas agree; the database may go and come back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit.db import Database
from modelfleetd.registry import follower, watch
from modelfleetd.registry.scopes import Wanted
from tests.support import registry_calls
from tests.support.postgres import Postgres
from tests.support.registry_calls import CTR, Registry, populate, refused
from tests.support.wait import until

OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with registry_calls.registry(database_url) as found:
        await populate(found)
        yield found


async def current(registry: Registry) -> int:
    return int((await registry.ListTeams()).revision)


async def take(stream: Any, count: int, timeout: float = 20) -> list[pb.Revision]:
    """The next revisions of a stream, heartbeats left out."""
    found: list[pb.Revision] = []
    async with asyncio.timeout(timeout):
        while len(found) < count:
            message = await stream.read()
            assert message is not grpc.aio.EOF
            if message.HasField("revision"):
                found.append(message.revision)
    return found


async def write(registry: Registry, text: str) -> pb.Team:
    team: pb.Team = await registry.UpdateTeam(team=pb.Team(name="teams/feed", on_call=text))
    return team


async def test_a_watch_begins_with_a_heartbeat_and_gives_every_revision_in_order(registry: Registry) -> None:
    newest = await current(registry)
    stream = registry.WatchRevisions(after_revision=0)
    first = await stream.read()
    assert (first.HasField("revision"), first.current_revision) == (False, newest)
    assert [revision.number for revision in await take(stream, newest)] == list(range(1, newest + 1))
    made = await write(registry, "x")
    (revision,) = await take(stream, 1)
    assert revision == await registry.GetRevision(name=f"revisions/{made.revision}")
    resumed = registry.WatchRevisions(after_revision=newest)
    assert await take(resumed, 1) == [revision]


async def test_revisions_that_are_not_there_are_refused(registry: Registry) -> None:
    newest = await current(registry)
    ahead = registry.WatchRevisions(after_revision=newest + 1)
    found = await refused(ahead.read(), OUT_OF_RANGE, "REVISION_OUT_OF_RANGE")
    assert found.infos[0].metadata["current_revision"] == str(newest)
    negative = registry.WatchRevisions(after_revision=-1)
    await refused(negative.read(), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")


async def test_what_was_compacted_is_refused_and_what_is_left_is_given(database_url: str) -> None:
    async with registry_calls.registry(database_url) as registry:
        await populate(registry)
        newest = await current(registry)
        await registry.CompactHistory(oldest_kept=3)
    async with registry_calls.registry(database_url) as registry:
        found = await refused(registry.WatchRevisions(after_revision=1).read(), OUT_OF_RANGE, "REVISION_OUT_OF_RANGE")
        assert found.infos[0].metadata["oldest_revision"] == "3"
        kept = await take(registry.WatchRevisions(after_revision=2), newest - 2)
        assert [revision.number for revision in kept] == list(range(3, newest + 1))


async def test_a_watcher_without_news_hears_heartbeats(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(10):
        watches = watch.Watches(None, follower.Follower(None), heartbeat_seconds=0.01)  # type: ignore[arg-type]
        stream = watches.after(0)
        for _ in range(3):
            assert not (await anext(stream)).HasField("revision")
        await stream.aclose()  # type: ignore[attr-defined]


async def test_a_watcher_hears_heartbeats_while_all_that_comes_is_passed_over() -> None:
    """Revisions come more often than heartbeats are due, and the one who watches another team still hears from us."""
    source = follower.Follower(None)  # type: ignore[arg-type]
    watches = watch.Watches(None, source, heartbeat_seconds=0.2)  # type: ignore[arg-type]
    stream = watches.after(0, Wanted((frozenset({"teams/other"}),)))
    await anext(stream)

    async def come() -> None:
        for number in itertools.count(1):
            team = pb.Team(name="teams/feed", on_call=str(number))
            change = pb.ResourceChange(resource=team.name, action=pb.ResourceChange.UPDATED, team=team)
            source.apply(pb.Revision(number=number, changes=[change]))
            await asyncio.sleep(0.01)

    coming = asyncio.create_task(come())
    async with asyncio.timeout(10):
        heard = [await anext(stream) for _ in range(3)]
    coming.cancel()
    assert not any(message.HasField("revision") for message in heard)
    assert 0 < heard[0].position < heard[1].position < heard[2].position
    await stream.aclose()  # type: ignore[attr-defined]


async def test_watchers_of_the_same_are_sent_the_same_message() -> None:
    source = follower.Follower(None)  # type: ignore[arg-type]
    watches = watch.Watches(None, source)  # type: ignore[arg-type]
    streams = [watches.after(0) for _ in range(3)]
    for stream in streams:
        await anext(stream)
    team = pb.Team(name="teams/feed")
    change = pb.ResourceChange(resource=team.name, action=pb.ResourceChange.CREATED, team=team)
    source.apply(pb.Revision(number=1, hash="01", changes=[change]))
    one, two = [await anext(stream) for stream in streams[:2]]
    assert one is two and (one.position, one.current_revision) == (1, 1)
    source.apply(pb.Revision(number=2, hash="02", previous_hash="01", changes=[change]))
    late = await anext(streams[2])
    # What one was sent stays as it was; what is sent now says how far the ledger is now.
    assert (one.current_revision, late.current_revision, late.revision) == (1, 2, one.revision)
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]


async def test_a_watcher_that_fell_behind_what_is_in_memory_misses_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_RECENT", 3)
    monkeypatch.setattr(watch, "_BATCH", 2)
    async with registry_calls.registry(database_url) as registry:
        await populate(registry)
        newest = await current(registry)
        slow = registry.WatchRevisions(after_revision=0)
        quick = registry.WatchRevisions(after_revision=newest)
        for number in range(20):
            await write(registry, str(number))
            await take(quick, 1)
        assert [each.number for each in await take(slow, newest + 20)] == list(range(1, newest + 21))


async def test_a_hundred_watchers_hear_of_a_write_and_a_slow_one_holds_up_nobody(
    registry: Registry,
) -> None:
    newest = await current(registry)
    streams = [registry.WatchRevisions(after_revision=newest) for _ in range(100)]
    await asyncio.gather(*(stream.read() for stream in streams))
    silent = streams.pop()
    for number in range(5):
        await write(registry, f"{number}" * 100)
        found = await asyncio.gather(*(take(stream, 1) for stream in streams))
        assert {revision.number for (revision,) in found} == {newest + 1 + number}
    assert [each.number for each in await take(silent, 5)] == list(range(newest + 1, newest + 6))


def verify(revisions: list[pb.Revision]) -> None:
    """The chain, from the first revision on."""
    for number, (before, after) in enumerate(zip([pb.Revision(), *revisions], revisions, strict=False), start=1):
        assert after.number == number
        assert after.previous_hash == before.hash
        assert after.time.ToNanoseconds() >= before.time.ToNanoseconds()


async def test_two_replicas_write_one_linear_history_and_both_tell_all_of_it(database_url: str) -> None:
    async with registry_calls.registry(database_url) as one, registry_calls.registry(database_url) as two:
        await populate(one)
        start = await current(one)
        watches = [each.WatchRevisions(after_revision=0) for each in (one, two)]
        writers, writes = 8, 10

        async def work(writer: int) -> None:
            registry = (one, two)[writer % 2]
            for number in range(writes):
                if number % 3 == 0:
                    await registry.CreateTeam(team_id=f"t{writer}-{number}", team=pb.Team())
                else:
                    made = await write(registry, f"{writer}-{number}")
                    # The other replica has it when it is asked for.
                    seen = await (one, two)[(writer + 1) % 2].GetTeam(name="teams/feed", min_revision=made.revision)
                    assert seen.revision >= made.revision

        await asyncio.gather(*map(work, range(writers)))
        total = start + writers * writes
        histories = [await take(stream, total) for stream in watches]
        assert histories[0] == histories[1]
        verify(histories[0])
        final = [await each.ListTeams(page_size=1000, min_revision=total) for each in (one, two)]
        assert final[0] == final[1]
        await stored_chain_holds(database_url, total)


async def stored_chain_holds(database_url: str, total: int) -> None:
    """The chain over the bytes in the tables, computed anew."""
    database = await Database.open(database_url, "registry")
    rows = await database.fetch(
        "SELECT header, hash, ARRAY(SELECT change FROM changes WHERE revision = number ORDER BY position) AS changes"
        " FROM revisions ORDER BY number"
    )
    await database.close()
    assert len(rows) == total
    previous = b""
    for row in rows:
        digest = hashlib.sha256()
        for part in (previous, row["header"], *row["changes"]):
            digest.update(len(part).to_bytes(8, "big") + part)
        previous = digest.digest()
        assert row["hash"] == previous


async def test_a_replica_that_never_writes_follows_by_itself(database_url: str) -> None:
    async with registry_calls.registry(database_url) as one, registry_calls.registry(database_url) as two:
        stream = two.WatchRevisions(after_revision=0)
        await one.CreateTeam(team_id="feed", team=pb.Team())
        assert (await take(stream, 1))[0].changes[0].resource == "teams/feed"

        async def seen() -> bool:
            return bool((await two.ListTeams()).teams)

        await until(seen)


async def test_reads_go_on_without_the_database_and_writes_after_it(postgres: Postgres, database_url: str) -> None:
    async with registry_calls.registry(database_url) as registry:
        await populate(registry)
        stream = registry.WatchRevisions(after_revision=await current(registry))
        # Cleanly: the tests' server does not wait for the disk, and would lose what it has acknowledged.
        postgres.stop("fast")
        try:
            assert (await registry.GetModelType(name=CTR)).name == CTR
            assert (await registry.ListModels(parent=CTR)).models
            await refused(write(registry, "x"), grpc.StatusCode.UNAVAILABLE, "PART_UNAVAILABLE")
            asked = registry.GetTeam(name="teams/feed", min_revision=10_000)
            await refused(asked, grpc.StatusCode.UNAVAILABLE, "PART_UNAVAILABLE")
        finally:
            postgres.start()

        async def written() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await write(registry, "back")
                return True
            return False

        await until(written, timeout=20)
        assert (await take(stream, 1))[0].changes[0].team.on_call == "back"


async def test_a_database_that_lost_its_last_revision_is_read_anew(database_url: str) -> None:
    async with registry_calls.registry(database_url) as one, registry_calls.registry(database_url) as two:
        await populate(one)
        await write(one, "kept")
        newest = await current(one)
        lost = await write(one, "lost")
        await two.GetTeam(name="teams/feed", min_revision=lost.revision)
        stream = one.WatchRevisions(after_revision=lost.revision)
        await stream.read()
        await lose_revision(database_url, lost.revision)

        async def seen_again(registry: Registry) -> bool:
            return await current(registry) == newest and (await registry.GetTeam(name="teams/feed")).on_call == "kept"

        for registry in (one, two):
            await until(functools.partial(seen_again, registry))
        assert (await write(two, "other")).revision == lost.revision
        await refused(_end(stream), OUT_OF_RANGE, "REVISION_OUT_OF_RANGE")


async def _end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def lose_revision(database_url: str, number: int) -> None:
    """What a failover does to a write that the standby had not received."""
    database = await Database.open(database_url, "registry")
    async with database.transaction() as conn:
        await conn.execute("SET LOCAL session_replication_role = replica")
        before = await conn.fetchrow("SELECT number, time, hash FROM revisions WHERE number = $1", number - 1)
        assert before is not None
        change = await conn.fetchval("SELECT change FROM changes WHERE revision = $1", number - 1)
        team = pb.ResourceChange.FromString(change).team
        await conn.execute(
            "UPDATE resources SET state = $1, revision = $2 WHERE name = $3",
            team.SerializeToString(),
            number - 1,
            team.name,
        )
        await conn.execute("DELETE FROM changes WHERE revision = $1", number)
        await conn.execute("DELETE FROM revisions WHERE number = $1", number)
        await conn.execute("UPDATE head SET number = $1, time = $2, hash = $3", *before.values())
    await database.close()
