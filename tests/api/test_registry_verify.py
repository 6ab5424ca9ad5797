"""What somebody with full access to the database does to history is found and named, by a client that believes nothing.

Each test changes the database as a superuser can, and asks for the first damage.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleet import ledger
from modelfleet.ledger import Damage, Verified
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1.history_pb2 import Checkpoint, CompactHistoryRequest, ReadHistoryResponse
from modelfleetd.errors import InvalidFields, Overloaded, RevisionOutOfRange
from modelfleetd.kit.db import Connection, Database
from modelfleetd.registry import readout
from modelfleetd.registry.compaction import Compaction
from modelfleetd.registry.domain import revisions
from modelfleetd.registry.readout import Readout
from modelfleetd.registry.store import HistoryStore
from tests.support import registry_calls
from tests.support.postgres import Postgres
from tests.support.registry_calls import CTR, OLD, populate, spec, swap

parts = st.binary(max_size=300)


@given(st.sampled_from([b"", b"h" * 32]), parts, st.lists(parts, max_size=3))
def test_the_client_hashes_what_the_server_hashed(previous: bytes, header: bytes, changes: list[bytes]) -> None:
    """The server hashes part by part; the client the frames of all parts, as they travel."""
    content = b"".join(map(ledger._framed, (previous, header, *changes)))
    assert hashlib.sha256(content).digest() == revisions.chain(previous, header, changes)


def test_the_verifier_knows_nothing_of_the_daemons() -> None:
    code = "import modelfleet.ledger, sys; assert not any(name.startswith('modelfleetd') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@dataclass
class Written:
    """A history in a database, and a checkpoint of the middle of it."""

    url: str
    checkpoint: Checkpoint


@pytest.fixture(scope="module")
def history(postgres: Postgres) -> Iterator[Written]:
    """A history that tests make copies of."""
    url = postgres.create()

    async def write() -> Checkpoint:
        async with registry_calls.registry(url) as registry:
            adopted = await populate(registry)
            await registry.FinalizeLaunch(**swap(adopted.revision))
            await registry.DeleteModel(name=OLD)
            middle = await registry.GetRevision(name="revisions/8")
            for number in range(4):
                await registry.UpdateTeam(team=pb.Team(name="teams/feed", on_call=f"pager {number}"))
            await registry.CreateModel(parent=CTR, model_id="next", model=pb.Model(serving_spec=spec()))
        return Checkpoint(revision=middle.number, hash=middle.hash)

    yield Written(url, asyncio.run(write()))
    postgres.drop(url)


class Copy:
    """A copy of the history, to be changed and verified."""

    def __init__(self, url: str, database: Database, checkpoint: Checkpoint) -> None:
        self.url = url
        self.database = database
        self.checkpoint = checkpoint

    async def messages(self) -> list[ReadHistoryResponse]:
        return [message async for message in Readout(HistoryStore(self.database)).stream(0, with_state=True)]

    async def verify(self, checkpoint: Checkpoint | None = None) -> Verified:
        return ledger.verify(await self.messages(), checkpoint)

    async def damage(self, checkpoint: Checkpoint | None = None) -> Damage:
        with pytest.raises(Damage) as raised:
            await self.verify(checkpoint)
        return raised.value

    async def tamper(self, *statements: str) -> None:
        async with self.database.transaction() as conn:
            for statement in statements:
                await conn.execute(statement)


@pytest.fixture
async def written(history: Written, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Copy]:
    monkeypatch.setattr(readout, "_ROWS", 4)
    monkeypatch.setattr(readout, "_NAMES", 3)
    url = postgres.create(template=history.url)
    database = await Database.open(url, "registry")
    yield Copy(url, database, history.checkpoint)
    await database.close()
    postgres.drop(url)


async def test_a_history_that_nobody_touched_is_verified_whole(written: Copy) -> None:
    told: list[tuple[int, int]] = []
    async with registry_calls.registry(written.url) as registry:
        stream = [message async for message in registry.ReadHistory(with_state=True)]
        verified = ledger.verify(stream, written.checkpoint, lambda *done: told.append(done))
        assert (verified.head.revision, verified.revisions, verified.entries) == (13, 13, 5)
        assert verified.base == Checkpoint()
        assert told[-1] == (13, 13)
        # What it was verified up to is a checkpoint of what comes later.
        await registry.CreateTeam(team_id="late", team=pb.Team())
    assert (await written.verify(verified.head)).head.revision == 14


async def test_an_empty_history_is_verified(database_url: str) -> None:
    async with registry_calls.registry(database_url) as registry:
        messages = [message async for message in registry.ReadHistory(with_state=True)]
        assert ledger.verify(messages).revisions == 0


Tamper = list[str]
REPLACED = "UPDATE changes SET change = convert_to(replace(convert_from(change, 'LATIN1'), 'pager', 'PAGER'), 'LATIN1')"


@pytest.mark.parametrize(
    ("statements", "revision", "what"),
    [
        (["UPDATE revisions SET header = header || '\\x3a0178' WHERE number = 3"], 3, "hash"),
        ([f"{REPLACED} WHERE revision = 9"], 9, "hash"),
        (["UPDATE revisions SET hash = sha256('x') WHERE number = 4"], 4, "hash"),
        (["UPDATE revisions SET previous_hash = sha256('x') WHERE number = 4"], 4, "previous_hash"),
        (["DELETE FROM changes WHERE revision = 5; DELETE FROM revisions WHERE number = 5"], 5, "number"),
        (["DELETE FROM changes WHERE revision = 7 AND position = 1"], 7, "hash"),
        (["DELETE FROM revisions WHERE number = 1; DELETE FROM changes WHERE revision = 1"], 1, "number"),
        (
            ["UPDATE revisions SET number = number + 1000 WHERE number IN (9, 10)",
             "UPDATE revisions SET number = 1019 - number WHERE number > 1000",
             "UPDATE changes SET revision = -revision WHERE revision IN (9, 10)",
             "UPDATE changes SET revision = 19 + revision WHERE revision < 0"],
            9, "hash",
        ),
        (["UPDATE changes SET position = 9 WHERE revision = 7 AND position = 0"], 7, "hash"),
        (["UPDATE revisions SET time = time - interval '1 day' WHERE number = 6"], 6, "time that it is indexed"),
        (["UPDATE changes SET resource = 'teams/other' WHERE revision = 9"], 9, "name that a change is indexed"),
        (["INSERT INTO changes SELECT 99, 0, 'teams/x', change FROM changes WHERE revision = 9"], 0, "teams/x"),
        (["UPDATE resources SET state = substr(state, 2) WHERE name = 'teams/feed'"], 0, "content after revision 13"),
        (["UPDATE resources SET state = state || '\\x1a0141' WHERE name = 'teams/feed'"], 12, "state of teams/feed"),
        (["UPDATE resources SET kind = 'region' WHERE name = 'teams/feed'"], 12, "kind of teams/feed"),
        (["UPDATE resources SET revision = 11 WHERE name = 'teams/feed'"], 12, "revision of the state of teams/feed"),
        (["DELETE FROM resources WHERE name = 'regions/eu'"], 2, "state of regions/eu"),
        (["INSERT INTO resources SELECT 'teams/ghost', kind, revision, state FROM resources WHERE name = 'teams/feed'"],
         12, "state of teams/ghost"),
        (["UPDATE resources SET name = 'modelTypes/ctr/models/old' WHERE name = 'modelTypes/ctr/models/next'"],
         8, "modelTypes/ctr/models/old"),
        (["UPDATE head SET hash = sha256('x')"], 0, "head"),
        (["UPDATE head SET number = 12, hash = (SELECT hash FROM revisions WHERE number = 12)"], 0, "head"),
        (["UPDATE head SET time = time + interval '1 day'"], 0, "time of the head"),
        (["UPDATE base SET (number, hash, digest, time) ="
          " (SELECT 2, hash, sha256('x'), time FROM revisions WHERE number = 2)"], 0, "kept"),
    ],
)  # fmt: skip
async def test_what_a_superuser_changed_is_found_and_named(
    written: Copy, statements: Tamper, revision: int, what: str
) -> None:
    await written.tamper(*statements)
    damage = await written.damage()
    assert (damage.revision, what in damage.what) == (revision, True), damage
    assert damage.expected != damage.found


async def rewrite(conn: Connection, first: int) -> None:
    """Computes all hashes from a revision on anew, as somebody would who wants the chain to fit again."""
    rows = await conn.fetch(
        "SELECT number, header, previous_hash,"
        " ARRAY(SELECT change FROM changes WHERE revision = number ORDER BY position) AS changes"
        " FROM revisions WHERE number >= $1 ORDER BY number",
        first,
    )
    previous: bytes = rows[0]["previous_hash"]
    for row in rows:
        computed = revisions.chain(previous, row["header"], row["changes"])
        await conn.execute(
            "UPDATE revisions SET previous_hash = $2, hash = $3 WHERE number = $1", row["number"], previous, computed
        )
        previous = computed
    await conn.execute("UPDATE head SET hash = $1", previous)


async def test_an_edit_with_all_later_hashes_computed_anew_is_found_by_the_checkpoint_alone(written: Copy) -> None:
    async with written.database.transaction() as conn:
        await conn.execute("UPDATE revisions SET header = header || '\\x3a0178' WHERE number = 3")
        await rewrite(conn, 3)
    await written.verify()
    damage = await written.damage(written.checkpoint)
    assert damage.revision == written.checkpoint.revision and damage.expected == written.checkpoint.hash
    # What came after the checkpoint is not what it vouches for.
    after = (await written.verify()).head
    async with written.database.transaction() as conn:
        await conn.execute(f"{REPLACED} WHERE revision = 9")
        await rewrite(conn, 9)
    assert (await written.damage(after)).revision == after.revision


async def test_a_history_that_was_cut_off_with_its_head_and_state_is_found_by_the_checkpoint_alone(
    written: Copy,
) -> None:
    newest = (await written.verify()).head
    await written.tamper(
        "DELETE FROM changes WHERE revision > 12",
        "DELETE FROM revisions WHERE number > 12",
        "UPDATE head SET (number, time, hash) = (SELECT number, time, hash FROM revisions WHERE number = 12)",
    )
    assert "models/next" in (await written.damage()).what
    await written.tamper("DELETE FROM resources WHERE name = 'modelTypes/ctr/models/next'")
    await written.verify(written.checkpoint)
    damage = await written.damage(newest)
    assert (damage.revision, damage.found) == (0, "12") and "13" in damage.expected


async def test_a_compacted_history_is_verified_from_its_base_on(written: Copy) -> None:
    head = (await written.verify()).head
    compaction = Compaction(HistoryStore(written.database))
    request = CompactHistoryRequest(oldest_kept=10, request_id=registry_calls.request_id())
    base = (await compaction.compact(request)).base
    assert base.revision == 9 and base.kept_hash
    for _ in range(2):  # Before the rows go, and after.
        verified = await written.verify(head)
        assert (verified.base, verified.revisions) == (base, 4)
        await written.verify(base)
        assert "forgotten by compaction" in (await written.damage(written.checkpoint)).expected
        await compaction.forget()
    assert await written.database.fetchval("SELECT min(number) FROM revisions") == 10
    await written.tamper(f"{REPLACED} WHERE revision = 9")
    damage = await written.damage()
    assert "kept" in damage.what
    # Whoever writes the digest of what is kept anew as well is found by the base that was kept elsewhere.
    found = await written.messages()
    await written.tamper(f"UPDATE base SET digest = '\\x{damage.found}'")
    await written.verify(head)
    assert (await written.damage(base)).expected == base.kept_hash
    assert found[0].base.kept_hash == base.kept_hash


async def test_only_so_many_read_all_of_it_at_a_time(written: Copy) -> None:
    reader = Readout(HistoryStore(written.database))
    streams = [reader.stream(0, with_state=True) for _ in range(2)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(Overloaded):
        await anext(reader.stream(0, with_state=True))
    await streams[0].aclose()  # type: ignore[attr-defined]
    await anext(reader.stream(0, with_state=True))
    await streams[1].aclose()  # type: ignore[attr-defined]


async def test_history_is_read_from_a_revision_on(written: Copy) -> None:
    reader = Readout(HistoryStore(written.database))
    messages = [message async for message in reader.stream(9, with_state=False)]
    assert messages[0].base.revision == 9
    assert b"".join(message.revisions.numbers for message in messages) == struct.pack(">4q", 10, 11, 12, 13)
    with pytest.raises(RevisionOutOfRange):
        await anext(reader.stream(99, with_state=False))
    with pytest.raises(InvalidFields):
        await anext(reader.stream(-1, with_state=False))


async def test_a_large_revision_travels_in_a_message_of_its_own(written: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "_BYTES", 1)
    messages = await written.messages()
    assert ledger.verify(messages).revisions == 13
    assert [len(message.revisions.numbers) for message in messages if message.HasField("revisions")] == [8] * 13
    assert max(len(message.entries) for message in messages) == 1
