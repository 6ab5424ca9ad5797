"""Differences of two points, watches of a part of the fleet, and what is left of a history that was compacted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.registry.v1 import assets_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit.db import Database
from modelfleetd.registry import past, watch
from modelfleetd.registry.compaction import Compaction
from modelfleetd.registry.scopes import surface_of
from modelfleetd.registry.store import HistoryStore, history
from tests.api.test_registry_past import everything
from tests.api.test_registry_watch import current, take
from tests.support import registry_calls
from tests.support.registry_calls import CTR, NEW, OLD, Registry, populate, refused, request_id, spec, swap

OUT_OF_RANGE, INVALID = grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.INVALID_ARGUMENT
CREATED, UPDATED, DELETED = pb.ResourceChange.CREATED, pb.ResourceChange.UPDATED, pb.ResourceChange.DELETED


@pytest.fixture(autouse=True)
def _quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far a stream has come without anything to send is told with a heartbeat."""
    monkeypatch.setattr(watch.Watches.__init__, "__kwdefaults__", {"heartbeat_seconds": 0.05})


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with registry_calls.registry(database_url) as running:
        yield running


async def differences(registry: Registry, **asked: Any) -> list[pb.ResourceChange]:
    """All pages."""
    found, token = [], ""
    while True:
        answer = await registry.DiffRevisions(page_token=token, **asked)
        found += answer.changes
        token = answer.next_page_token
        if not token:
            return found


async def write_much(registry: Registry) -> int:
    """A history in which entries come, change, change back and go; returns the revision of its middle."""
    adopted = await populate(registry)
    await registry.UpdateTeam(team=pb.Team(name="teams/feed", on_call="other"))
    await registry.UpdateTeam(team=pb.Team(name="teams/feed", on_call="pager"))
    await registry.CreateModelType(model_type_id="ctr-2", model_type=pb.ModelType(team="teams/feed"))
    await registry.DeleteModelType(name=f"{CTR}-2")
    await registry.CreateModelType(model_type_id="gone", model_type=pb.ModelType(team="teams/feed"))
    middle = await current(registry)
    await registry.DeleteModelType(name="modelTypes/gone")
    await registry.FinalizeLaunch(**swap(adopted.revision))
    await registry.CreateModel(parent=CTR, model_id="next", model=pb.Model(serving_spec=spec()))
    return middle


async def test_a_difference_tells_what_was_done_between_two_points_and_nothing_that_was_undone(
    registry: Registry,
) -> None:
    middle = await write_much(registry)
    newest = await current(registry)
    answer = await registry.DiffRevisions(from_revision=middle)
    assert (answer.from_revision, answer.to_revision) == (middle, newest)
    assert [(change.resource, change.action) for change in answer.changes] == [
        (CTR, UPDATED),
        (NEW, UPDATED),
        (f"{CTR}/models/next", CREATED),
        (OLD, UPDATED),
        ("modelTypes/gone", DELETED),
    ]
    (baseline,) = [field for field in answer.changes[0].fields if field.path == "baseline"]
    assert (baseline.before.string_value, baseline.after.string_value) == (OLD, NEW)
    assert answer.changes[0].model_type == await registry.GetModelType(name=CTR)
    # The other way round it says how to go back.
    back = await registry.DiffRevisions(from_revision=newest, to_revision=middle)
    assert {change.resource: change.action for change in back.changes}["modelTypes/gone"] == CREATED
    assert back.changes[0].fields[0].before == answer.changes[0].fields[0].after
    everything_since = await differences(registry)
    assert {change.action for change in everything_since} == {CREATED}
    assert {change.resource for change in everything_since} == {
        "teams/feed", "regions/eu", CTR, OLD, NEW, f"{CTR}/models/next",
    }  # fmt: skip


@pytest.mark.parametrize("many", [0, 10_000])
async def test_pages_and_parts_of_a_difference_are_the_whole(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """Whether changes or names are looked at, and however few at a time."""
    middle = await write_much(registry)
    monkeypatch.setattr(history, "_MANY_REVISIONS", many)
    whole = await differences(registry, from_revision=2)
    monkeypatch.setattr(past, "_MOST_LOOKED_AT", 2)
    for size in (1, 2, 3):
        assert await differences(registry, from_revision=2, page_size=size) == whole
    below = await differences(registry, from_revision=middle, resource=CTR, page_size=1)
    assert [change.resource for change in below] == [CTR, NEW, f"{CTR}/models/next", OLD]
    assert [each.resource for each in await differences(registry, from_revision=middle, resource=OLD)] == [OLD]
    assert await differences(registry, from_revision=middle, resource="teams/feed") == []


async def test_points_are_revisions_or_times(registry: Registry) -> None:
    middle = await write_much(registry)
    time = (await registry.GetRevision(name=f"revisions/{middle}")).time
    by_revision = await registry.DiffRevisions(from_revision=middle, to_revision=middle + 2)
    by_time = await registry.DiffRevisions(from_time=time, to_revision=middle + 2)
    assert by_time == by_revision
    long_ago = Timestamp()
    long_ago.FromDatetime(datetime.now(UTC) - timedelta(days=1))
    assert (await registry.DiffRevisions(from_time=long_ago)).from_revision == 0
    for wrong in ({"from_revision": 1, "from_time": time}, {"to_revision": 1, "to_time": time}, {"resource": "nope"}):
        await refused(registry.DiffRevisions(**wrong), INVALID, "INVALID_FIELDS")
    await refused(registry.DiffRevisions(to_revision=10_000), OUT_OF_RANGE, "REVISION_OUT_OF_RANGE")


# Watches of a part of the fleet.


async def write_widely(registry: Registry) -> None:
    """Two teams, two surfaces; types that move from one to another, with models, assets and a request for a tier."""
    for key in ("feed", "ads"):
        await registry.CreateTeam(team_id=key, team=pb.Team())
    for key, team, surface in (("a", "feed", "home"), ("b", "ads", "home"), ("c", "ads", "tray")):
        made = pb.ModelType(team=f"teams/{team}", labels={"surface": surface})
        await registry.CreateModelType(model_type_id=key, model_type=made)
    for key in ("a", "b", "c"):
        model = pb.Model(serving_spec=spec())
        await registry.CreateModel(parent=f"modelTypes/{key}", model_id="v1", model=model)
    asset = assets_pb2.Asset(team="teams/feed", uri="s3://x", kind=assets_pb2.Asset.DATASET)
    await registry.CreateAsset(asset_id="x", asset=asset)
    await registry.UpdateAsset(asset=assets_pb2.Asset(name="assets/x", team="teams/ads"))
    mask = FieldMask(paths=["labels.surface"])
    moved = pb.ModelType(name="modelTypes/a", labels={"surface": "tray"})
    await registry.UpdateModelType(model_type=moved, update_mask=mask)
    await registry.UpdateModelType(model_type=pb.ModelType(name="modelTypes/b", team="teams/feed"))
    for key in ("a", "b", "c"):
        await registry.UpdateModel(model=pb.Model(name=f"modelTypes/{key}/models/v1", description="new"))
    await registry.UpdateTeam(team=pb.Team(name="teams/ads", on_call="x"))
    await registry.DeleteModel(name="modelTypes/c/models/v1")
    await registry.DeleteModelType(name="modelTypes/c")


async def wanted(registry: Registry, **asked: Any) -> set[int]:
    """The revisions that a filter is for, found by reading all the types before and after each."""
    numbers: set[int] = set()
    newest = await current(registry)
    before: dict[str, pb.ModelType] = {}
    for number in range(1, newest + 1):
        listed = await registry.ListModelTypes(as_of_revision=number)
        after = {each.name: each for each in listed.model_types}
        for change in (await registry.GetRevision(name=f"revisions/{number}")).changes:
            of = "/".join(change.resource.split("/")[:2])
            states = [each[of] for each in (before, after) if of in each]
            teams = {each.team for each in states} | {of}
            if change.resource.startswith("assets/"):
                teams = {"teams/feed", "teams/ads"} if change.action == UPDATED else {"teams/feed"}
            fits = [
                of in asked.get("model_types", [of]),
                asked.get("surface") in {None, *map(surface_of, states)},
                asked.get("team") in {None, *teams},
            ]
            if all(fits):
                numbers.add(number)
        before = after
    return numbers


@pytest.mark.parametrize(
    "asked",
    [
        {"model_types": ["modelTypes/a"]},
        {"model_types": ["modelTypes/b", "modelTypes/c"]},
        {"surface": "home"},
        {"surface": "tray"},
        {"team": "teams/feed"},
        {"team": "teams/ads"},
        {"team": "teams/ads", "surface": "tray"},
        {"surface": "nowhere"},
    ],
    ids=str,
)
async def test_a_filtered_watch_gives_all_that_fits_and_nothing_else_live_and_from_the_past(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    monkeypatch.setattr(watch, "_BATCH", 3)
    live = registry.WatchRevisions(after_revision=0, **asked)
    await live.read()
    await write_widely(registry)
    newest = await current(registry)
    expected = sorted(await wanted(registry, **asked))
    # A last one that everybody hears of ends each stream.
    assert await told_until(live, newest) == expected
    later = registry.WatchRevisions(after_revision=0, **asked)
    assert await told_until(later, newest) == expected
    if expected:
        resumed = registry.WatchRevisions(after_revision=expected[0], **asked)
        assert await told_until(resumed, newest) == expected[1:]


async def told_until(stream: Any, newest: int) -> list[int]:
    """The revisions of a stream until it says that it has come so far."""
    found: list[int] = []
    async with asyncio.timeout(20):
        while True:
            message = await stream.read()
            if message.HasField("revision"):
                assert message.revision.number == message.position
                found.append(message.position)
            if message.position >= newest:
                return found


async def test_a_filtered_watch_reads_the_past_from_the_database_as_from_memory(database_url: str) -> None:
    async with registry_calls.registry(database_url) as registry:
        await write_widely(registry)
        expected = {team: sorted(await wanted(registry, team=team)) for team in ("teams/ads", "teams/feed")}
        newest = await current(registry)
    # A new process has nothing of the past in memory.
    async with registry_calls.registry(database_url) as registry:
        for team, numbers in expected.items():
            stream = registry.WatchRevisions(after_revision=0, team=team)
            assert await told_until(stream, newest) == numbers


async def test_too_many_model_types_are_refused(registry: Registry) -> None:
    names = [f"modelTypes/t{number}" for number in range(1001)]
    await refused(registry.WatchRevisions(model_types=names).read(), INVALID, "INVALID_FIELDS")


# Compaction.


async def test_what_is_kept_answers_as_before_and_what_is_not_is_refused(database_url: str, registry: Registry) -> None:
    middle = await write_much(registry)
    newest = await current(registry)
    known = {number: await everything(registry, as_of_revision=number) for number in range(middle, newest + 1)}
    listed = list((await registry.ListRevisions(resource=CTR)).revisions)
    planned = await registry.CompactHistory(oldest_kept=middle + 1, validate_only=True)
    assert (planned.base.revision, planned.forgotten) == (middle, middle)
    assert (await registry.GetRevision(name="revisions/1")).number == 1, "only checked"
    asked = {"oldest_kept": middle + 1, "request_id": request_id()}
    done = await registry.CompactHistory(**asked)
    assert (done.base, done.forgotten) == (planned.base, middle)
    assert await registry.CompactHistory(**asked) == done
    database = await Database.open(database_url, "registry")
    compaction = Compaction(HistoryStore(database))
    for _ in range(2):  # Out of sight at once; the same once the rows are gone.
        for number, answers in known.items():
            assert await everything(registry, as_of_revision=number) == answers
        for call in (
            registry.GetTeam(name="teams/feed", as_of_revision=middle - 1),
            registry.ListModels(parent=CTR, as_of_revision=1),
            registry.GetRevision(name=f"revisions/{middle}"),
            registry.DiffRevisions(from_revision=middle - 1),
            registry.DiffRevisions(),
        ):
            found = await refused(call, OUT_OF_RANGE, "REVISION_OUT_OF_RANGE")
            assert found.infos[0].metadata["oldest_revision"] in (str(middle), str(middle + 1))
        kept = list((await registry.ListRevisions(resource=CTR)).revisions)
        assert kept == [each for each in listed if each.number > middle]
        assert len((await registry.ListRevisions()).revisions) == newest - middle
        assert len((await registry.DiffRevisions(from_revision=middle)).changes) == 5
        stream = registry.WatchRevisions(after_revision=middle)
        assert [each.number for each in await take(stream, newest - middle)] == list(range(middle + 1, newest + 1))
        await compaction.forget()
    assert await database.fetchval("SELECT count(*) FROM revisions") == newest - middle
    # Who has it in memory still gives it to watchers, and nobody else does.
    async with registry_calls.registry(database_url) as other:
        behind = other.WatchRevisions(after_revision=middle - 1)
        found = await refused(behind.read(), OUT_OF_RANGE, "REVISION_OUT_OF_RANGE")
        assert found.infos[0].metadata["oldest_revision"] == str(middle + 1)
    # Of before the base one change an entry is left, of those that existed then.
    left = await database.fetch("SELECT resource FROM changes WHERE revision <= $1 ORDER BY resource", middle)
    assert [row["resource"] for row in left] == [CTR, NEW, OLD, "modelTypes/gone", "regions/eu", "teams/feed"]
    # Entries go on, and a second time leaves nothing behind either.
    await registry.DeleteModel(name=OLD)
    await registry.CompactHistory(oldest_kept=newest + 1)
    await compaction.forget()
    left = await database.fetch("SELECT resource FROM changes WHERE revision <= $1 ORDER BY resource", newest)
    assert [row["resource"] for row in left] == [CTR, NEW, f"{CTR}/models/next", OLD, "regions/eu", "teams/feed"]
    assert await everything(registry, as_of_revision=newest) == known[newest]
    await database.close()


async def test_compaction_ended_at_any_point_goes_on_where_it_was(
    database_url: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelfleetd.registry import compaction

    monkeypatch.setattr(compaction, "_BATCH", 1)
    middle = await write_much(registry)
    expected = await everything(registry, as_of_revision=middle)
    await registry.CompactHistory(oldest_kept=middle + 1)
    database = await Database.open(database_url, "registry")
    store, rounds = HistoryStore(database), 0

    class Killed(Exception):
        pass

    async def once(numbers: Any, ended: Any) -> None:
        await store.forget(numbers, ended)
        raise Killed

    while True:
        ended = HistoryStore(database)
        ended.forget = once  # type: ignore[method-assign]
        try:
            await Compaction(ended).forget()
        except Killed:
            rounds += 1
            assert await everything(registry, as_of_revision=middle) == expected
        else:
            break
    assert rounds == middle
    await database.close()


async def test_compaction_of_what_is_not_there_or_gone_already_changes_nothing(registry: Registry) -> None:
    await populate(registry)
    await refused(registry.CompactHistory(oldest_kept=10_000), OUT_OF_RANGE, "REVISION_OUT_OF_RANGE")
    assert (await registry.CompactHistory(oldest_kept=1)).forgotten == 0
    assert (await registry.CompactHistory(oldest_kept=4)).forgotten == 3
    again = await registry.CompactHistory(oldest_kept=2)
    assert (again.forgotten, again.base.revision) == (0, 3)
