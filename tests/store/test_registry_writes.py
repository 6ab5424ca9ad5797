"""Writes that wait are committed together: in order, each refused alone, none seen before it is committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.errors import FleetError, RequestIdReused, ResourceExists, ResourceNotFound
from modelfleetd.kit.db import Database
from modelfleetd.kit.turns import Turns
from modelfleetd.registry.domain import entries
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.overlay import Overlay
from modelfleetd.registry.domain.resources import Model, ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Author, Edit, Edits, Stamp, revise
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.store import Store
from modelfleetd.registry.writer import Writer
from tests.store.test_registry_snapshot import BEGIN, KEYS, decide, operations
from tests.support import registry as builders
from tests.support.registry import START, LedgerOf, team
from tests.support.registry_calls import request_id


@settings(max_examples=50)
@given(operations)
def test_a_ledger_with_edits_on_top_is_the_ledger_after_them(steps: list[tuple[str, Any]]) -> None:
    """Each decision on an overlay is the one on the state after everything before it."""
    below = LedgerOf()
    for number, (verb, entry) in enumerate(BEGIN[: len(BEGIN) // 2]):
        below.revision = number
        below.apply(decide(below, verb, entry))
    after = LedgerOf(*below.entries.values(), revision=below.revision)
    overlay = Overlay(below, builders.references)
    for verb, entry in [*BEGIN[len(BEGIN) // 2 :], *steps]:
        outcomes: list[Any] = []
        for ledger in (after, overlay):
            try:
                outcomes.append(decide(ledger, verb, entry))
            except FleetError as error:
                outcomes.append((type(error), error.metadata))
        assert outcomes[0] == outcomes[1]
        if outcomes[0] and isinstance(outcomes[0][0], Edit):
            after.apply(outcomes[0])
            stamp = Stamp(after.revision, START.replace(year=2026))
            changes = revise(outcomes[0], stamp)
            overlay.apply(
                tuple(
                    Edit(edit.before, after.entries.get(change.resource))
                    for edit, change in zip(outcomes[0], changes, strict=True)
                )
            )
    for kind in (Team, Region, ModelType, Model):
        assert overlay.every(kind) == after.every(kind)
    for key in KEYS:
        for name in (f"teams/{key}", f"regions/{key}", f"modelTypes/{key}"):
            assert overlay.find(name) == after.find(name)
            assert overlay.referrers(name) == after.referrers(name)
        assert overlay.models_of(f"modelTypes/{key}") == after.models_of(f"modelTypes/{key}")
    for edit in overlay.edits():
        assert edit.before == below.find(edit.name) and edit.after == after.find(edit.name)


async def test_who_comes_while_others_are_at_work_is_served_together_and_in_order() -> None:
    batches: list[list[int]] = []
    first = asyncio.Event()

    async def act(works: Sequence[int]) -> None:
        batches.append(list(works))
        await first.wait()

    turns = Turns(act, most=4)
    tasks = [asyncio.create_task(turns.do(number)) for number in range(8)]
    await asyncio.sleep(0)
    first.set()
    await asyncio.gather(*tasks)
    assert batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(["well", "fails", "leaves", "leaves at work"]), min_size=1, max_size=12), st.integers(1, 4)
)
async def test_who_fails_or_leaves_is_alone_with_that(manners: list[str], most: int) -> None:
    """However the one at work ends, everybody else's work is done exactly once, or they left."""
    done: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def act(works: Sequence[int]) -> None:
        await asyncio.sleep(0)
        leader = works[0]
        if manners[leader] == "fails":
            raise LookupError(leader)
        if manners[leader] == "leaves at work":
            tasks[leader].cancel()
        await asyncio.sleep(0)
        done.extend(works)

    turns = Turns(act, most)
    tasks += [asyncio.create_task(turns.do(number)) for number in range(len(manners))]
    for _ in range(3):
        await asyncio.sleep(0)
    for task, manner in zip(tasks, manners, strict=True):
        if manner == "leaves":
            task.cancel()
    async with asyncio.timeout(30):
        results = await asyncio.gather(*tasks, return_exceptions=True)
        manners.append("well")
        await turns.do(len(manners) - 1)
    assert done[-1] == len(manners) - 1, "nobody was left at work"
    for number, result in enumerate(results):
        if result is None:
            assert done.count(number) == 1
        else:
            assert isinstance(result, (LookupError, asyncio.CancelledError))
            assert manners[number] != "well"
            assert done.count(number) <= 1


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    found = await Database.open(database_url, "registry")
    yield found
    await found.close()


class Counting(Store):
    """Counts transactions; lets a test look while one is open."""

    transactions = 0
    appended: Any = None

    def transaction(self) -> Any:
        self.transactions += 1
        return super().transaction()

    async def append(self, *arguments: Any) -> None:
        await super().append(*arguments)
        if self.appended is not None:
            self.appended()


def creation(writer: Writer, key: str, request: str | None = None, on_call: str = "") -> Any:
    asked = pb.CreateTeamRequest(team_id=key, team=pb.Team(on_call=on_call), request_id=request or request_id())

    def decided(ledger: Ledger) -> Edits:
        if key == "defect":
            raise ZeroDivisionError
        return entries.create_team(ledger, team(key, on_call=on_call), "u")

    return writer.change(asked, pb.Team, f"teams/{key}", Author("a"), decided)


def deletion(writer: Writer, key: str) -> Any:
    asked = pb.DeleteTeamRequest(name=f"teams/{key}", request_id=request_id())

    def decided(ledger: Ledger) -> Edits:
        return entries.delete_team(ledger, f"teams/{key}", "")

    return writer.change(asked, Empty, f"teams/{key}", Author("a"), decided)


async def test_waiting_writes_share_a_commit_and_each_is_decided_on_what_the_others_left(database: Database) -> None:
    store = Counting(database)
    follower = Follower(store)
    writer = Writer(store, follower)
    same = request_id()
    results: list[Any] = await asyncio.gather(
        creation(writer, "first"),
        creation(writer, "a"),
        creation(writer, "a"),
        creation(writer, "b", same),
        creation(writer, "b", same),
        creation(writer, "b", same, on_call="other content"),
        creation(writer, "defect"),
        deletion(writer, "a"),
        creation(writer, "a", on_call="again"),
        deletion(writer, "nope"),
        return_exceptions=True,
    )
    assert store.transactions == 2
    kinds = [type(result) for result in results]
    assert kinds[:3] == [pb.Team, pb.Team, ResourceExists]
    assert results[3] == results[4] and kinds[5:7] == [RequestIdReused, ZeroDivisionError]
    assert kinds[8:] == [pb.Team, ResourceNotFound]
    assert [each.revision for each in (results[0], results[1], results[3], results[8])] == [1, 2, 3, 5]
    assert await database.fetchval("SELECT array_agg(number ORDER BY number) FROM revisions") == [1, 2, 3, 4, 5]
    assert await database.fetchval("SELECT count(*) FROM requests") == 5
    # What is in memory is what is stored.
    loaded = Follower(store)
    await loaded.load()
    assert loaded.snapshot.teams == follower.snapshot.teams
    assert loaded.snapshot.hash == follower.snapshot.hash
    assert follower.snapshot.teams["teams/a"].on_call == "again"


async def test_nobody_sees_a_revision_before_it_is_committed(database: Database) -> None:
    store = Counting(database)
    follower = Follower(store)
    seen: list[int] = []
    store.appended = lambda: seen.append(follower.snapshot.revision)
    writer = Writer(store, follower)
    await asyncio.gather(*(creation(writer, f"t{number}") for number in range(5)))
    assert seen == [0, 1]
    assert follower.snapshot.revision == 5


async def test_writers_of_two_replicas_take_turns_in_the_database(database: Database) -> None:
    writers = [Writer(Store(database), Follower(Store(database))) for _ in range(2)]
    made = await asyncio.gather(*(creation(writers[number % 2], f"t{number}") for number in range(60)))
    assert sorted(each.revision for each in made) == list(range(1, 61))
