"""Lists of the registry, filtered and ordered, through a real channel and the command line."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.schemas import ExtensionSchema, SchemaTarget
from tests.support import registry_calls
from tests.support.registry import model, model_type, region, spec, team
from tests.support.registry_calls import Registry, refused
from tests.support.registry_rows import write

INVALID = grpc.StatusCode.INVALID_ARGUMENT
QPS = ExtensionSchema(
    name="extensionSchemas/load",
    target=SchemaTarget.MODEL,
    schema={"type": "object", "properties": {"qps": {"type": "number"}}},
    filterable=("qps",),
)


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    """Two teams with a type each, one critical, the other not, and models."""
    await write(
        database_url,
        [
            team("feed", labels={"site": "paris"}),
            team("ads"),
            region("eu", agent_address="eu.example:9000"),
            region("us", agent_address="us.example:9000"),
            QPS,
            model_type("ctr", tier=Tier.TIER1, purpose="Clicks in the feed."),
            model_type("ads", team="teams/ads", tier=Tier.TIER3, regions=("regions/us", "regions/eu")),
            model_type("other", regions=()),
            model("v1", "ctr", labels={"owner": "alice"}, attributes={"qps": 40}),
            model("v2", "ctr", tier_override=Tier.TIER0),
            model("v1", "ads", labels={"owner": "bob"}, serving_spec=spec(flavor="flavors/gpu"), attributes={"qps": 7}),
            model("v2", "ads", checkpoint="s3://ads/2"),
        ],
        per_revision=1,
    )
    async with registry_calls.registry(database_url) as found:
        yield found


async def ids(call: Any, field: str) -> list[str]:
    return [each.name.removeprefix("modelTypes/").replace("/models/", "/") for each in getattr(await call, field)]


async def test_every_list_is_filtered_and_ordered(registry: Registry) -> None:
    assert await ids(registry.ListTeams(filter="labels.site = paris"), "teams") == ["teams/feed"]
    assert await ids(registry.ListTeams(order_by="name desc"), "teams") == ["teams/feed", "teams/ads"]
    assert await ids(registry.ListRegions(filter='agent_address:"EU"'), "regions") == ["regions/eu"]
    for text, expected in (
        ('team = "teams/feed" AND tier <= TIER1', ["ctr"]),
        ("tier <= TIER1 OR team = ads", ["ads", "ctr"]),
        ("NOT tier:*", ["other"]),
        ("regions:us", ["ads"]),
        ("purpose:clicks", ["ctr"]),
        ("update_time > 2000-01-01 -name:o", []),
    ):
        assert await ids(registry.ListModelTypes(filter=text), "model_types") == expected, text
    for order, expected in (
        ("tier", ["ctr", "ads", "other"]),
        ("tier desc", ["other", "ads", "ctr"]),
        ("create_time", ["ctr", "ads", "other"]),
        ("create_time desc", ["other", "ads", "ctr"]),
    ):
        assert await ids(registry.ListModelTypes(order_by=order), "model_types") == expected, order


async def test_models_are_found_by_what_they_are_and_by_what_their_type_is(registry: Registry) -> None:
    for parent, text, expected in (
        ("-", "labels.owner:*", ["ads/v1", "ctr/v1"]),
        ("-", "NOT labels.owner:*", ["ads/v2", "ctr/v2"]),
        ("ctr", "NOT labels.owner:*", ["ctr/v2"]),
        ("-", "model_type.team = feed", ["ctr/v1", "ctr/v2"]),
        ("-", "model_type.tier <= TIER1 AND tier_override:*", ["ctr/v2"]),
        ("-", "serving_spec.flavor = gpu AND model_type.regions:eu", ["ads/v1"]),
        ("-", "checkpoint = s3://ads/*", ["ads/v2"]),
        ("-", "attributes.qps > 7", ["ctr/v1"]),
        ("-", "attributes.qps:*", ["ads/v1", "ctr/v1"]),
    ):
        assert await ids(registry.ListModels(parent=f"modelTypes/{parent}", filter=text), "models") == expected, text


async def test_a_change_is_in_the_next_list(registry: Registry) -> None:
    name = "modelTypes/ctr/models/v1"
    before = await registry.ListModels(parent="modelTypes/-", filter="labels.owner = carol")
    assert not before.models
    await registry.UpdateModel(model=pb.Model(name=name, labels={"owner": "carol"}))
    await registry.UpdateModelType(model_type=pb.ModelType(name="modelTypes/ctr", team="teams/ads"))
    both = "labels.owner = carol model_type.team = ads"
    assert await ids(registry.ListModels(parent="modelTypes/-", filter=both), "models") == ["ctr/v1"]
    latest = await registry.ListModels(parent="modelTypes/-", order_by="update_time desc", page_size=1)
    assert latest.models[0].name == name
    await registry.DeleteModel(name=name)
    assert not (await registry.ListModels(parent="modelTypes/-", filter=both)).models


async def test_pages_of_a_filtered_list_follow_each_other_and_are_bound_to_it(registry: Registry) -> None:
    asked = {"parent": "modelTypes/-", "filter": "NOT role:* OR role = CANDIDATE", "order_by": "update_time desc"}
    names: list[str] = []
    token = ""
    for _ in range(5):
        page = await registry.ListModels(**asked, page_size=1, page_token=token)
        names += [each.name for each in page.models]
        token = page.next_page_token
        if not token:
            break
    assert names == [
        f"modelTypes/{each}" for each in ("ads/models/v2", "ads/models/v1", "ctr/models/v2", "ctr/models/v1")
    ]
    first = await registry.ListModels(**asked, page_size=1)
    for changed in ({"filter": "role:*"}, {"filter": ""}, {"order_by": ""}, {"order_by": "update_time"}):
        call = registry.ListModels(**asked | changed, page_token=first.next_page_token)
        await refused(call, INVALID, "INVALID_PAGE_TOKEN")


async def test_what_is_wrong_with_a_list_is_said_all_at_once(registry: Registry) -> None:
    call = registry.ListModels(parent="modelTypes/-", filter="roll = BASELINE OR role = BOSS", order_by="size")
    found = await refused(call, INVALID, "INVALID_FIELDS")
    message = found.message
    assert (
        "at character 1: this list cannot be filtered by 'roll' (do you mean 'role'?), but by attributes.qps" in message
    )
    assert "at character 27: role is one of CANDIDATE, BASELINE, HOLDOUT, EXPERIMENT, RETIRED" in message
    assert "order_by: must be one of name, create_time, update_time, tier_override, with ' desc'" in message
    found = await refused(registry.ListModelTypes(filter="attributes.qps > 1"), INVALID, "INVALID_FIELDS")
    assert "cannot be filtered by 'attributes.qps'" in found.paths["filter"], "the schema is about models"


async def test_the_longest_filter_is_answered_or_refused_at_once(registry: Registry) -> None:
    began = time.monotonic()
    for text in ("name:a " * 10, "(" * 20 + "role:*" + ")" * 20, "labels.owner = x OR " * 99 + "role:*"):
        assert (await registry.ListModels(parent="modelTypes/-", filter=text)) is not None
    for text in ("(" * 9000, "-" * 9000, "a" * 20_000, '"' + "\\" * 9000, "name:a " * 11, "role:* " * 101):
        await refused(registry.ListModels(parent="modelTypes/-", filter=text), INVALID, "INVALID_FIELDS")
    assert time.monotonic() - began < 5
