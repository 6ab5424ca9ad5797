"""The ledger as of a revision or a time, against what was answered when it was the present."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit.db import Database
from modelfleetd.registry import past
from tests.support import registry_calls
from tests.support.registry_calls import CTR, NEW, OLD, Registry, populate, refused, spec, swap

OUT_OF_RANGE, NOT_FOUND = grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.NOT_FOUND


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with registry_calls.registry(database_url) as running:
        yield running


async def everything(registry: Registry, **as_of: Any) -> list[Any]:
    """What all lists answer."""
    return [
        list((await registry.ListTeams(**as_of)).teams),
        list((await registry.ListRegions(**as_of)).regions),
        list((await registry.ListModelTypes(**as_of)).model_types),
        list((await registry.ListModels(parent="modelTypes/-", **as_of)).models),
    ]


async def test_every_list_and_get_answers_as_it_did_then(registry: Registry) -> None:
    """At each revision what is current is kept; at the end each is asked for, by revision and by time."""
    seen: dict[int, list[Any]] = {}

    async def keep() -> None:
        seen[(await registry.ListTeams()).revision] = await everything(registry)

    await keep()
    adopted = await populate(registry)
    await keep()
    await registry.FinalizeLaunch(**swap(adopted.revision))
    await keep()
    await registry.CreateModelType(model_type_id="ctr-2", model_type=pb.ModelType(team="teams/feed"))
    await registry.CreateModel(parent=f"{CTR}-2", model_id="a", model=pb.Model(serving_spec=spec()))
    await keep()
    await registry.DeleteModel(name=OLD)
    await keep()
    await registry.UpdateTeam(team=pb.Team(name="teams/feed", on_call="other"))
    await registry.CreateModel(parent=CTR, model_id="old", model=pb.Model(serving_spec=spec(), description="again"))
    await keep()
    assert list(seen) == sorted(seen) and len(seen) == 6
    for revision, answers in list(seen.items())[1:]:
        time = (await registry.GetRevision(name=f"revisions/{revision}")).time
        for as_of in ({"as_of_revision": revision}, {"as_of_time": time}):
            assert await everything(registry, **as_of) == answers
            for model in answers[3]:
                assert await registry.GetModel(name=model.name, **as_of) == model
    assert (await registry.GetModelType(name=CTR, as_of_revision=adopted.revision)).baseline == OLD
    assert (await registry.GetModelType(name=CTR)).baseline == NEW


async def test_pages_of_the_past_stay_at_the_revision_of_the_first_one(registry: Registry) -> None:
    await populate(registry)
    for number in range(6):
        await registry.CreateModel(parent=CTR, model_id=f"m{number}", model=pb.Model(serving_spec=spec()))
    soon = Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    names: list[str] = []
    revisions, token = set(), ""
    while True:
        answer = await registry.ListModels(parent=CTR, page_size=3, page_token=token, as_of_time=soon)
        names += [model.name for model in answer.models]
        revisions.add(answer.revision)
        await registry.CreateModel(parent=CTR, model_id=f"z{len(names)}", model=pb.Model(serving_spec=spec()))
        token = answer.next_page_token
        if not token:
            break
    assert names == [f"{CTR}/models/{key}" for key in ("m0", "m1", "m2", "m3", "m4", "m5", "new", "old")]
    assert len(revisions) == 1
    await refused(
        registry.ListModels(parent=CTR, page_token=answer.next_page_token or "x", as_of_time=soon),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_PAGE_TOKEN",
    )


async def test_before_the_first_revision_there_was_nothing(registry: Registry) -> None:
    before = Timestamp()
    before.FromDatetime(datetime.now(UTC) - timedelta(days=1))
    await populate(registry)
    assert await everything(registry, as_of_revision=0)
    answer = await registry.ListTeams(as_of_time=before)
    assert (list(answer.teams), answer.revision) == ([], 0)
    await refused(registry.GetTeam(name="teams/feed", as_of_time=before), NOT_FOUND, "RESOURCE_NOT_FOUND")
    await refused(registry.ListModels(parent=CTR, as_of_time=before), NOT_FOUND, "RESOURCE_NOT_FOUND")
    await refused(registry.GetModel(name=OLD, as_of_revision=1), NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_points_that_cannot_be_are_refused(registry: Registry) -> None:
    await populate(registry)
    newest = (await registry.ListTeams()).revision
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    both = await refused(
        registry.ListTeams(as_of_revision=1, as_of_time=Timestamp(seconds=1)), invalid, "INVALID_FIELDS"
    )
    assert "leave one out" in both.paths["as_of_time"]
    await refused(registry.GetTeam(name="teams/feed", as_of_revision=-1), invalid, "INVALID_FIELDS")
    await refused(registry.GetTeam(name="teams/feed", as_of_time=Timestamp(seconds=1 << 60)), invalid, "INVALID_FIELDS")
    ahead = await refused(
        registry.GetTeam(name="teams/feed", as_of_revision=newest + 1), OUT_OF_RANGE, "REVISION_OUT_OF_RANGE"
    )
    assert ahead.infos[0].metadata["current_revision"] == str(newest)


async def test_a_page_ends_where_enough_was_looked_at_and_the_next_goes_on(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "_MOST_LOOKED_AT", 2)
    for number in range(8):
        await registry.CreateTeam(team_id=f"t{number}", team=pb.Team())
    for number in range(1, 7):
        await registry.DeleteTeam(name=f"teams/t{number}")
    found, token, pages = [], "", 0
    while True:
        answer = await registry.ListTeams(page_size=2, page_token=token, as_of_revision=14)
        found += [team.name for team in answer.teams]
        token, pages = answer.next_page_token, pages + 1
        if not token:
            break
    assert found == ["teams/t0", "teams/t7"]
    assert pages > 1


async def test_the_past_is_read_by_index_alone(database_url: str) -> None:
    """Names × changes of each: rows that a page touches grow with neither."""
    database = await Database.open(database_url, "registry")
    await database.execute(
        """
        INSERT INTO changes (revision, position, resource, change)
        SELECT number, 0, format('modelTypes/t%s/models/m%s', number % 40, number % 1000), '\\x0801'
        FROM generate_series(1, 40000) AS number
        """
    )
    await database.execute("ANALYZE changes")
    from modelfleetd.registry.store.history import _AS_OF, _WALK

    async with database.connection() as conn:
        plans = [
            await conn.fetch(f"EXPLAIN (ANALYZE, FORMAT TEXT) {query}", *arguments)
            for query, arguments in (
                (_AS_OF, ("modelTypes/t1/models/m1", 20_000)),
                (_WALK, ("modelTypes/", "modelTypes0", 4, 51, "^(?:modelTypes/[^/]+/models/[^/]+)$", 20_000)),
                (_WALK, ("modelTypes/", "modelTypes0", 2, 51, "^(?:modelTypes/[^/]+)$", 20_000)),
            )
        ]
    await database.close()
    for plan in plans:
        text = "\n".join(row["QUERY PLAN"] for row in plan)
        assert "Seq Scan on changes" not in text, text
        assert "changes_resource" in text, text
        scans = [line for line in text.splitlines() if "changes_resource" in line]
        # Each look-up ends at its first row.
        assert all(
            "rows=1 " in line or "rows=1.00 " in line or "rows=0" in line or "never" in line for line in scans
        ), text
