"""Assets and what is found by them, through a real channel and PostgreSQL, and on the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from modelfleet.common.v1 import permission_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1.assets_pb2 import Asset, EntryMatch
from tests.support import registry_calls
from tests.support.registry_calls import CTR, NEW, OLD, Registry, populate, refused


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with registry_calls.registry(database_url) as found:
        await populate(found)
        yield found


def dashboard(key: str = "dash", **fields: Any) -> Asset:
    defaults: dict[str, Any] = {"kind": Asset.DASHBOARD, "uri": f"https://{key}", "team": "teams/feed"}
    return Asset(**(defaults | fields))


async def test_an_asset_is_created_read_listed_changed_and_deleted(registry: Registry) -> None:
    made = await registry.CreateAsset(asset_id="dash", asset=dashboard(model_types=[CTR], labels={"a": "b"}))
    assert await registry.GetAsset(name="assets/dash", min_revision=made.revision) == made
    other = await registry.CreateAsset(asset_id="other", asset=dashboard("other"))
    listed = await registry.ListAssets(page_size=1)
    assert list(listed.assets) == [made]
    assert list((await registry.ListAssets(page_size=1, page_token=listed.next_page_token)).assets) == [other]
    changed = await registry.UpdateAsset(
        asset=Asset(name="assets/dash", display_name="CTR", etag=made.etag),
        update_mask=FieldMask(paths=["display_name"]),
    )
    assert (changed.display_name, changed.uri, changed.uid) == ("CTR", made.uri, made.uid)
    (revision,) = (await registry.ListRevisions(resource="assets/dash", page_size=1)).revisions
    assert [field.path for field in revision.changes[0].fields] == ["display_name"]
    assert revision.changes[0].asset == changed
    await registry.DeleteAsset(name="assets/dash", etag=changed.etag)
    await refused(registry.GetAsset(name="assets/dash"), grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_what_is_refused_says_why(registry: Registry) -> None:
    await registry.CreateAsset(asset_id="dash", asset=dashboard())
    taken = registry.CreateAsset(asset_id="x", asset=dashboard("dash"))
    await refused(taken, grpc.StatusCode.ALREADY_EXISTS, "URI_TAKEN")
    unknown = registry.CreateAsset(asset_id="x", asset=dashboard("x", models=[f"{CTR}/models/nope"]))
    await refused(unknown, grpc.StatusCode.FAILED_PRECONDITION, "REFERENCE_NOT_FOUND")
    spaces = registry.CreateAsset(asset_id="x", asset=dashboard("x y"))
    found = await refused(spaces, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")
    assert set(found.paths) == {"asset.uri"}
    for query in ("  ", "x" * 2001):
        await refused(registry.LookupEntries(query=query), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")
    stale = registry.UpdateAsset(asset=Asset(name="assets/dash", display_name="x", etag="r1"))
    await refused(stale, grpc.StatusCode.ABORTED, "ETAG_MISMATCH")


async def test_moving_an_asset_to_another_team_takes_the_role_there(registry: Registry) -> None:
    await registry.CreateAsset(asset_id="dash", asset=dashboard())
    engineer = [pb.RoleBinding(role=permission_pb2.ENGINEER, members=["ann"])]
    await registry.UpdateTeam(team=pb.Team(name="teams/feed", role_bindings=engineer))
    await registry.CreateTeam(team_id="ads", team=pb.Team())
    ann = registry.as_("ann")
    moved = Asset(name="assets/dash", team="teams/ads")
    found = await refused(ann.UpdateAsset(asset=moved), grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING")
    assert found.infos[0].metadata["team"] == "teams/ads"
    assert await ann.UpdateAsset(asset=Asset(name="assets/dash", display_name="mine"))
    await registry.UpdateTeam(team=pb.Team(name="teams/ads", role_bindings=engineer))
    assert (await ann.UpdateAsset(asset=moved)).team == "teams/ads"
    # By its new team from then on.
    await registry.UpdateTeam(team=pb.Team(name="teams/ads"), update_mask=FieldMask(paths=["role_bindings"]))
    await refused(ann.DeleteAsset(name="assets/dash"), grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING")


async def test_a_model_that_goes_is_taken_off_its_assets_in_the_same_revision(registry: Registry) -> None:
    await registry.CreateAsset(asset_id="dash", asset=dashboard(models=[NEW, OLD]))
    await registry.DeleteModel(name=NEW)
    found = await registry.GetAsset(name="assets/dash")
    assert list(found.models) == [OLD]
    (revision,) = (await registry.ListRevisions(resource=NEW, page_size=1)).revisions
    assert [change.resource for change in revision.changes] == [NEW, "assets/dash"]
    assert revision.number == found.revision


async def test_a_team_that_owns_assets_stays(registry: Registry) -> None:
    await registry.CreateTeam(team_id="ads", team=pb.Team())
    await registry.CreateAsset(asset_id="dash", asset=dashboard(team="teams/ads"))
    call = registry.DeleteTeam(name="teams/ads")
    await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "RESOURCE_IN_USE")


async def test_entries_are_found_by_name_asset_and_endpoint_also_after_a_restart(
    registry: Registry, database_url: str
) -> None:
    endpoint = dashboard(kind=Asset.INFERENCE_SERVICE, uri="grpc://ranker:8500", models=[NEW])
    await registry.CreateAsset(asset_id="endpoint", asset=endpoint)
    made = await registry.UpdateModel(model=pb.Model(name=NEW, checkpoint="s3://c/new"))
    async with registry_calls.registry(database_url) as anew:
        for seen in (registry, anew):
            for query, basis, resources in (
                ("ctr", EntryMatch.NAME, [CTR]),
                ("e", EntryMatch.PART_OF_NAME, [NEW]),
                ("ranker:8500", EntryMatch.SERVING_ENDPOINT, [NEW]),
                ("s3://c/new", EntryMatch.CHECKPOINT, [NEW]),
            ):
                answer = await seen.LookupEntries(query=query, min_revision=made.revision)
                assert [(each.resource, each.basis) for each in answer.matches] == [(each, basis) for each in resources]
                assert answer.revision == made.revision and not answer.truncated
            first = await seen.LookupEntries(query="modelTypes/ctr/models/old")
            assert [each.resource for each in first.matches] == [OLD]
    await registry.DeleteAsset(name="assets/endpoint")
    assert not (await registry.LookupEntries(query="ranker:8500")).matches


async def test_a_match_says_what_fits_and_an_answer_whether_there_are_more(registry: Registry) -> None:
    await registry.CreateAsset(asset_id="dash", asset=dashboard(model_types=[CTR], models=[OLD]))
    answer = await registry.LookupEntries(query="https://dash/", page_size=1)
    (match,) = answer.matches
    assert (match.resource, match.matched, match.asset) == (CTR, "https://dash", "assets/dash")
    assert answer.truncated
