"""The database pool and migrations, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.errors import DeadlinePassed, PartUnavailable, RequestIdReused
from modelfleetd.kit import deadline
from modelfleetd.kit.db import Connection, Database
from modelfleetd.kit.idempotency import once
from modelfleetd.kit.migrations import migrate
from tests.kit import migrations_ok
from tests.support.postgres import Postgres
from tests.support.wait import until


@pytest.fixture
async def database(empty_database_url: str) -> AsyncIterator[Database]:
    await migrate(empty_database_url, "things", migrations_ok)
    database = await Database.open(empty_database_url, "things")
    yield database
    await database.close()


async def test_migrations_apply_once_however_many_replicas_start(empty_database_url: str) -> None:
    await asyncio.gather(*(migrate(empty_database_url, "things", migrations_ok) for _ in range(5)))
    await migrate(empty_database_url, "things", migrations_ok)
    database = await Database.open(empty_database_url, "things")
    row = await database.fetchrow("SELECT * FROM things")
    assert row is not None and dict(row) == {"name": "it's; fine", "data": {"a": 1}, "note": "100 %", "more": 7}
    assert await database.fetchval("SELECT array_agg(version_num) FROM alembic_version") == ["0002"]
    await database.close()


async def test_a_schema_newer_than_the_program_is_refused(empty_database_url: str) -> None:
    await migrate(empty_database_url, "things", migrations_ok)
    conn = await asyncpg.connect(empty_database_url)
    await conn.execute("UPDATE things.alembic_version SET version_num = '0099'")
    await conn.close()
    with pytest.raises(RuntimeError, match="0099"):
        await migrate(empty_database_url, "things", migrations_ok)


async def test_a_transaction_is_rolled_back_when_an_exception_passes(database: Database) -> None:
    with pytest.raises(KeyError):
        async with database.transaction() as conn:
            await conn.execute("INSERT INTO things (name) VALUES ('x')")
            raise KeyError
    assert await database.fetchval("SELECT count(*) FROM things") == 1


async def test_statements_end_with_the_deadline_of_the_call(database: Database) -> None:
    with deadline.limit(0.1), pytest.raises(DeadlinePassed):
        await database.fetchval("SELECT pg_sleep(5)")
    with pytest.raises(DeadlinePassed), deadline.limit(0.1):
        async with database.transaction() as conn:
            assert await conn.fetchval("SHOW statement_timeout") in [f"{ms}ms" for ms in range(20, 101)]
            await conn.fetchval("SELECT pg_sleep(5)")
    with deadline.limit(0), pytest.raises(DeadlinePassed):
        await database.fetchval("SELECT 1")


async def test_a_connection_to_a_server_that_takes_no_writes_is_evicted(
    database: Database, empty_database_url: str
) -> None:
    pid = await database.fetchval("SELECT pg_backend_pid()")
    # As a demoted primary: the connection answers, but refuses writes. The role's later sessions are as before.
    await database.execute("SET default_transaction_read_only = on")
    assert await database.fetchval("SELECT pg_backend_pid()") != pid


async def test_sqlstate_25006_evicts_the_connection(database: Database) -> None:
    pid = await database.fetchval("SELECT pg_backend_pid()")
    with pytest.raises(PartUnavailable):
        async with database.transaction(readonly=True) as conn:
            await conn.execute("INSERT INTO things (name) VALUES ('x')")
    assert await database.fetchval("SELECT pg_backend_pid()") != pid


async def test_the_pool_survives_a_crash_of_the_server(database: Database, postgres: Postgres) -> None:
    assert await database.fetchval("SELECT 1") == 1
    await asyncio.to_thread(postgres.stop)
    with pytest.raises(PartUnavailable):
        await database.fetchval("SELECT 1")
    with pytest.raises(PartUnavailable):
        async with database.transaction():
            raise AssertionError("unreachable")
    await asyncio.to_thread(postgres.start)

    async def answers() -> bool:
        try:
            return bool(await database.fetchval("SELECT 1"))
        except PartUnavailable:
            return False

    await until(answers)


async def test_a_transaction_open_while_the_server_crashes_is_reported_as_unavailable(
    database: Database, postgres: Postgres
) -> None:
    with pytest.raises(PartUnavailable):
        async with database.transaction() as conn:
            await asyncio.to_thread(postgres.stop)
            try:
                await conn.execute("SELECT 1")
            finally:
                await asyncio.to_thread(postgres.start)


async def test_collisions_are_repeated(database: Database) -> None:
    await database.execute("INSERT INTO things (name, more) VALUES ('n', 0)")

    async def add(conn: Connection) -> None:
        value = await conn.fetchval("SELECT more FROM things WHERE name = 'n'")
        await asyncio.sleep(0)
        await conn.execute("UPDATE things SET more = $1 WHERE name = 'n'", value + 1)

    await asyncio.gather(*(database.run(add, isolation="serializable", attempts=50) for _ in range(5)))
    assert await database.fetchval("SELECT more FROM things WHERE name = 'n'") == 5


async def test_a_collision_that_is_not_repeated_asks_the_caller_to_try_again(database: Database) -> None:
    with pytest.raises(PartUnavailable) as caught:
        async with database.transaction(isolation="serializable") as conn:
            await conn.fetch("SELECT * FROM things")
            await database.execute("UPDATE things SET more = 1")
            await conn.execute("UPDATE things SET more = 2")
    assert caught.value.reason == "PART_UNAVAILABLE"


async def test_driver_errors_of_the_statement_itself_come_through(database: Database) -> None:
    with pytest.raises(asyncpg.UniqueViolationError):
        await database.execute("INSERT INTO things (name) VALUES ('it''s; fine')")
    moment = datetime(2025, 1, 1, tzinfo=UTC)
    assert await database.fetchval("SELECT $1::timestamptz", moment) == moment


ID = "0b6de3c4-0f1c-4f0e-9d1a-0f6f0e6f0a01"


async def test_a_repeated_request_gets_the_same_answer_and_acts_once(database: Database) -> None:
    acted: list[int] = []

    async def create(team_id: str) -> pb.Team:
        async with database.transaction() as conn:

            async def act() -> pb.Team:
                acted.append(1)
                return pb.Team(name=f"teams/{team_id}", etag=str(len(acted)))

            return await once(conn, pb.CreateTeamRequest(team_id=team_id, request_id=ID), pb.Team, act)

    answers = await asyncio.gather(*(create("a") for _ in range(8)))
    assert len(acted) == 1
    assert {answer.etag for answer in answers} == {"1"}
    with pytest.raises(RequestIdReused):
        await create("b")


async def test_an_answer_is_forgotten_with_the_transaction_that_failed(database: Database) -> None:
    async def fail() -> pb.Team:
        raise KeyError

    async def succeed() -> pb.Team:
        return pb.Team(name="teams/a")

    for act, expected in ((fail, KeyError), (succeed, None)):
        try:
            async with database.transaction() as conn:
                await once(conn, pb.CreateTeamRequest(request_id=ID), pb.Team, act)
        except KeyError:
            assert expected is KeyError


async def test_a_connection_whose_protocol_was_cut_off_is_lost_and_not_used_again(empty_database_url: str) -> None:
    database = await Database.open(empty_database_url, "public", max_size=1)
    try:
        before = await database.fetchval("SELECT pg_backend_pid()")
        with pytest.raises(PartUnavailable):
            async with database.connection():
                # What the driver raises when the server goes away between two messages.
                raise asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")
        assert await database.fetchval("SELECT pg_backend_pid()") != before
    finally:
        await database.close()
