"""The registry's SQL: a revision is written whole or not at all, and only onto what was decided on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest
from google.protobuf.empty_pb2 import Empty

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit.db import Database
from modelfleetd.registry import wire
from modelfleetd.registry.domain import entries
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.revisions import Author, Edit, Edits, Stamp, StoredRevision, revise
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.store import Head, Store, Written
from modelfleetd.registry.writer import Writer
from tests.support.registry import team
from tests.support.registry_calls import request_id


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    found = await Database.open(database_url, "registry")
    yield found
    await found.close()


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)


class Stop(Exception):
    """Ends a transaction in the middle."""


async def create(store: Store, follower: Follower, key: str, *, stop: bool = False) -> pb.Team:
    def decide(ledger: Ledger) -> Edits:
        return entries.create_team(ledger, team(key), "u")

    class Stopped(Store):
        async def append(self, *arguments: object) -> None:
            await super().append(*arguments)  # type: ignore[arg-type]
            raise Stop

    writing = Stopped(store._database) if stop else store
    request = pb.CreateTeamRequest(team_id=key, request_id=request_id())
    return await Writer(writing, follower).change(request, pb.Team, f"teams/{key}", Author("a"), decide)


async def test_a_revision_is_there_whole_or_not_at_all(store: Store, database: Database) -> None:
    follower = Follower(store)
    await create(store, follower, "a")
    with pytest.raises(Stop):
        await create(store, follower, "b", stop=True)
    assert follower.snapshot.revision == 1, "what is not committed is not seen"
    await create(store, follower, "c")
    for table, expected in (("revisions", 2), ("changes", 2), ("resources", 2), ("requests", 2)):
        assert await database.fetchval(f"SELECT count(*) FROM {table}") == expected
    number, hash_, resources = await store.load(["team", "region", "model_type", "model"])
    assert (number, hash_) == (2, follower.snapshot.hash)
    assert {pb.Team.FromString(state).name for _, state in resources} == {"teams/a", "teams/c"}


async def test_a_revision_that_was_decided_on_something_else_is_refused(store: Store, database: Database) -> None:
    await create(store, Follower(store), "a")
    for edit in (
        Edit(None, team("a")),
        Edit(team("a", revision=7), team("a", on_call="x")),
        Edit(team("a", revision=7), None),
        Edit(team("gone", revision=1), None),
    ):
        with pytest.raises(RuntimeError, match="would change 1 resources, 0 match"):
            async with store.transaction() as conn:
                await append(store, conn, await store.lock_head(conn), (edit,))
    assert await database.fetchval("SELECT number FROM head") == 1


async def append(store: Store, conn: object, head: Head, edits: Edits) -> None:
    stamp = Stamp(head.number + 1, head.now)
    header = wire.header_of(Author("a"), stamp)
    changes = [wire.stored_change(change, stamp.revision) for change in revise(edits, stamp)]
    parts = [change.change for change in changes]
    stored = StoredRevision.following(head.hash, stamp.revision, header, parts)
    await store.append(conn, [Written(stored, stamp.time, changes)])  # type: ignore[arg-type]


async def test_writers_wait_for_the_head_and_time_never_goes_back(store: Store, database: Database) -> None:
    await database.execute("UPDATE head SET time = now() + interval '1 hour'")
    followers = [Follower(store) for _ in range(4)]
    await asyncio.gather(*(create(store, followers[number % 4], f"t{number}") for number in range(40)))
    rows = await database.fetch("SELECT number, time FROM revisions ORDER BY number")
    assert [row["number"] for row in rows] == list(range(1, 41))
    assert all(before["time"] <= after["time"] for before, after in itertools.pairwise(rows))
    for follower in followers:
        await follower.catch_up()
    assert len({follower.snapshot.hash for follower in followers}) == 1
    assert all(follower.snapshot.teams == followers[0].snapshot.teams for follower in followers)


async def test_a_writer_that_stalls_with_the_head_is_thrown_out(store: Store) -> None:
    async with store.transaction() as conn:
        await store.lock_head(conn)
        assert await conn.fetchval("SHOW idle_in_transaction_session_timeout") == "5s"


async def test_a_deletion_leaves_history_and_no_state(store: Store, database: Database) -> None:
    follower = Follower(store)
    await create(store, follower, "a")
    request = pb.DeleteTeamRequest(name="teams/a", request_id=request_id())

    def decide(ledger: Ledger) -> Edits:
        return entries.delete_team(ledger, "teams/a", "")

    await Writer(store, follower).change(request, Empty, "teams/a", Author("a"), decide)
    assert (await store.load(["team", "region", "model_type", "model"]))[2] == []
    assert [each.number for each in await store.revisions_before("teams/a", None, 10)] == [2, 1]
    assert [each.number for each in await store.revisions_before("teams/a", 2, 10)] == [1]
    assert await store.revisions_before("teams/b", None, 10) == []


async def test_an_illegal_state_cannot_be_stored(database: Database) -> None:
    for statement in (
        "INSERT INTO head (only_row) VALUES (false)",
        "INSERT INTO resources (name, kind, revision, state) VALUES ('x', 'nope', 1, '')",
        "INSERT INTO revisions (number, time, header, previous_hash, hash) VALUES (2, now(), '', '', '')",
        "INSERT INTO launch_outcomes (launch, outcome, digest, response) VALUES ('x', 'PAUSED', '', '')",
        "UPDATE base SET number = 9",
    ):
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await database.execute(statement)


async def test_answers_are_forgotten_after_a_while_and_launches_never(store: Store, database: Database) -> None:
    follower = Follower(store)
    await create(store, follower, "a")
    await store.forget_requests(timedelta(days=1))
    assert await database.fetchval("SELECT count(*) FROM requests") == 1
    await database.execute("UPDATE requests SET create_time = now() - interval '2 days'")
    await store.forget_requests(timedelta(days=1))
    assert await database.fetchval("SELECT count(*) FROM requests") == 0


async def test_reads_of_history_use_an_index(database: Database, store: Store) -> None:
    follower = Follower(store)
    await create(store, follower, "a")
    async with database.transaction() as conn:
        await conn.execute("SET LOCAL enable_seqscan = off")
        for query, index in (
            ("SELECT * FROM changes WHERE resource = 'x' AND revision < 5", "changes_resource"),
            ("SELECT * FROM revisions WHERE number >= 5 ORDER BY number LIMIT 10", "revisions_pkey"),
            ("SELECT * FROM serving_status WHERE model_type = 'x' AND region > ''", "serving_status_pkey"),
        ):
            plan = await conn.fetch(f"EXPLAIN {query}")
            assert any(index in row["QUERY PLAN"] for row in plan), plan
