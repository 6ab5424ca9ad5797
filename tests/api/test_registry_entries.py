"""Every method on entries of the ledger, and every way in which it refuses, through a real channel and PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from modelfleet.common.v1 import permission_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from tests.support import registry_calls
from tests.support.registry_calls import CTR, NEW, OLD, Registry, populate, refused, request_id, spec, split

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
NOT_FOUND = grpc.StatusCode.NOT_FOUND


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with registry_calls.registry(database_url) as found:
        await populate(found)
        yield found


def mask(*paths: str) -> FieldMask:
    return FieldMask(paths=paths)


async def current(registry: Registry) -> int:
    return int((await registry.ListTeams()).revision)


async def test_what_is_created_is_read_listed_changed_and_deleted(registry: Registry) -> None:
    made = await registry.CreateTeam(team_id="ads", team=pb.Team(display_name="Ads", on_call="a"))
    assert await registry.GetTeam(name="teams/ads", min_revision=made.revision) == made
    changed = await registry.UpdateTeam(
        team=pb.Team(name="teams/ads", on_call="b", etag=made.etag), update_mask=mask("on_call"), reason="rotation"
    )
    assert (changed.on_call, changed.display_name, changed.uid) == ("b", "Ads", made.uid)
    assert changed.revision == made.revision + 1
    assert changed.create_time == made.create_time
    assert [team.name for team in (await registry.ListTeams()).teams] == ["teams/ads", "teams/feed"]
    await registry.DeleteTeam(name="teams/ads", etag=changed.etag)
    await refused(registry.GetTeam(name="teams/ads"), NOT_FOUND, "RESOURCE_NOT_FOUND")

    revisions = (await registry.ListRevisions(resource="teams/ads")).revisions
    assert [revision.changes[0].action for revision in revisions] == [
        pb.ResourceChange.DELETED,
        pb.ResourceChange.UPDATED,
        pb.ResourceChange.CREATED,
    ]
    update = revisions[1]
    assert (update.reason, update.actor, update.launch) == ("rotation", "local", "")
    (field,) = update.changes[0].fields
    assert (field.path, field.before.string_value, field.after.string_value) == ("on_call", "a", "b")
    assert update.changes[0].team == changed
    assert await registry.GetRevision(name=update.name) == update


async def test_a_region_and_a_model_are_changed_likewise(registry: Registry) -> None:
    region = await registry.UpdateRegion(region=pb.Region(name="regions/eu", agent_address="host:1"))
    assert (await registry.GetRegion(name="regions/eu")) == region
    model = await registry.UpdateModel(model=pb.Model(name=NEW, labels={"a": "b"}))
    assert (await registry.GetModel(name=NEW)) == model
    model_type = await registry.UpdateModelType(model_type=pb.ModelType(name=CTR, purpose="clicks"))
    assert (await registry.GetModelType(name=CTR)) == model_type
    assert model_type.baseline == OLD
    await registry.DeleteModel(name=NEW)
    await registry.CreateRegion(region_id="us", region=pb.Region(agent_address="host:1"))
    await registry.DeleteRegion(name="regions/us")
    await registry.CreateModelType(model_type_id="x", model_type=pb.ModelType(team="teams/feed"))
    await registry.DeleteModelType(name="modelTypes/x")
    assert [each.name for each in (await registry.ListRegions()).regions] == ["regions/eu"]


async def test_a_read_sees_the_write_that_came_before_it(registry: Registry) -> None:
    for number in range(20):
        made = await registry.UpdateTeam(team=pb.Team(name="teams/feed", on_call=str(number)))
        assert (await registry.GetTeam(name="teams/feed")).on_call == str(number)
        assert await current(registry) == made.revision


async def test_an_update_without_a_difference_is_no_revision(registry: Registry) -> None:
    before = await registry.GetModelType(name=CTR)
    assert await registry.UpdateModelType(model_type=before) == before
    assert await current(registry) == before.revision


async def test_pages_follow_each_other_in_the_order_of_names(registry: Registry) -> None:
    for number in range(7):
        await registry.CreateModel(parent=CTR, model_id=f"m{number}", model=pb.Model(serving_spec=spec()))
    await registry.CreateModelType(model_type_id="another", model_type=pb.ModelType(team="teams/feed"))
    await registry.CreateModel(parent="modelTypes/another", model_id="m", model=pb.Model(serving_spec=spec()))
    for parent, expected in ((CTR, 9), ("modelTypes/-", 10), ("modelTypes/another", 1)):
        names: list[str] = []
        token = ""
        while True:
            page = await registry.ListModels(parent=parent, page_size=2, page_token=token)
            assert len(page.models) <= 2
            names += [model.name for model in page.models]
            token = page.next_page_token
            if not token:
                break
        assert names == sorted(names)
        assert len(set(names)) == len(names) == expected
    first = await registry.ListModels(parent=CTR, page_size=1)
    for wrong in (first.next_page_token, "nonsense"):
        call = registry.ListModels(parent="modelTypes/-", page_token=wrong)
        await refused(call, INVALID, "INVALID_PAGE_TOKEN")
    await refused(registry.ListModels(parent=CTR, page_size=-1), INVALID, "INVALID_FIELDS")
    revisions = await registry.ListRevisions(page_size=3)
    older = await registry.ListRevisions(page_size=3, page_token=revisions.next_page_token)
    numbers = [each.number for each in (*revisions.revisions, *older.revisions)]
    assert numbers == list(range(numbers[0], numbers[0] - 6, -1))


async def test_a_repeated_call_is_answered_the_same_and_its_id_is_for_nothing_else(registry: Registry) -> None:
    again = request_id()
    first = await registry.CreateTeam(team_id="x", team=pb.Team(), request_id=again)
    await registry.UpdateTeam(team=pb.Team(name="teams/x", on_call="later"))
    assert await registry.CreateTeam(team_id="x", team=pb.Team(), request_id=again) == first
    call = registry.CreateTeam(team_id="y", team=pb.Team(), request_id=again)
    await refused(call, grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_validate_only_answers_as_if_and_changes_nothing(registry: Registry) -> None:
    before = await current(registry)
    made = await registry.CreateModel(
        parent=CTR, model_id="dry", model=pb.Model(serving_spec=spec()), validate_only=True
    )
    assert made.role == pb.Model.CANDIDATE
    assert made.serving_spec.digest.startswith("sha256:")
    assert made.revision == 0
    await registry.DeleteModel(name=NEW, validate_only=True)
    call = registry.DeleteModel(name=OLD, validate_only=True)
    await refused(call, PRECONDITION, "RESOURCE_IN_USE")
    assert await current(registry) == before
    await refused(registry.GetModel(name=f"{CTR}/models/dry"), NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_a_revision_that_does_not_exist_is_not_waited_for(registry: Registry) -> None:
    newest = await current(registry)
    assert (await registry.GetTeam(name="teams/feed", min_revision=newest)).name == "teams/feed"
    for method, fields in (
        ("GetTeam", {"name": "teams/feed"}),
        ("GetModelType", {"name": CTR}),
        ("ListModels", {"parent": CTR}),
    ):
        call = getattr(registry, method)(**fields, min_revision=newest + 1)
        found = await refused(call, grpc.StatusCode.OUT_OF_RANGE, "REVISION_OUT_OF_RANGE")
        assert found.infos[0].metadata["current_revision"] == str(newest)
    await refused(registry.GetTeam(name="teams/feed", min_revision=-1), INVALID, "INVALID_FIELDS")


TEAM: dict[str, Any] = {"team_id": "x", "team": pb.Team()}
TYPE: dict[str, Any] = {"model_type_id": "x", "model_type": pb.ModelType(team="teams/feed")}
MODEL: dict[str, Any] = {"parent": CTR, "model_id": "x", "model": pb.Model(serving_spec=spec())}
GONE = "modelTypes/gone"


REFUSALS: list[tuple[str, dict[str, Any], grpc.StatusCode, str]] = [
    ("GetRegion", {"name": "regions/gone"}, NOT_FOUND, "RESOURCE_NOT_FOUND"),
    ("GetModelType", {"name": GONE}, NOT_FOUND, "RESOURCE_NOT_FOUND"),
    ("GetModel", {"name": f"{CTR}/models/gone"}, NOT_FOUND, "RESOURCE_NOT_FOUND"),
    ("GetRevision", {"name": "revisions/999"}, NOT_FOUND, "RESOURCE_NOT_FOUND"),
    ("ListModels", {"parent": GONE}, NOT_FOUND, "RESOURCE_NOT_FOUND"),
    ("UpdateTeam", {"team": pb.Team(name="teams/gone")}, NOT_FOUND, "RESOURCE_NOT_FOUND"),
    (
        "UpdateRegion",
        {"region": pb.Region(name="regions/gone", agent_address="h:1")},
        NOT_FOUND,
        "RESOURCE_NOT_FOUND",
    ),
    (
        "UpdateModelType",
        {"model_type": pb.ModelType(name=GONE, team="teams/feed")},
        NOT_FOUND,
        "RESOURCE_NOT_FOUND",
    ),
    (
        "UpdateModel",
        {"model": pb.Model(name=f"{CTR}/models/gone", serving_spec=spec())},
        NOT_FOUND,
        "RESOURCE_NOT_FOUND",
    ),
    ("DeleteTeam", {"name": "teams/gone"}, NOT_FOUND, "RESOURCE_NOT_FOUND"),
    ("DeleteRegion", {"name": "regions/gone"}, NOT_FOUND, "RESOURCE_NOT_FOUND"),
    ("DeleteModelType", {"name": GONE}, NOT_FOUND, "RESOURCE_NOT_FOUND"),
    ("DeleteModel", {"name": f"{CTR}/models/gone"}, NOT_FOUND, "RESOURCE_NOT_FOUND"),
    ("CreateModel", MODEL | {"parent": GONE}, NOT_FOUND, "RESOURCE_NOT_FOUND"),
    ("CreateTeam", TEAM | {"team_id": "feed"}, grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS"),
    (
        "CreateRegion",
        {"region_id": "eu", "region": pb.Region(agent_address="h:1")},
        grpc.StatusCode.ALREADY_EXISTS,
        "RESOURCE_EXISTS",
    ),
    ("CreateModelType", TYPE | {"model_type_id": "ctr"}, grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS"),
    ("CreateModel", MODEL | {"model_id": "old"}, grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS"),
    ("UpdateTeam", {"team": pb.Team(name="teams/feed", etag="r0")}, grpc.StatusCode.ABORTED, "ETAG_MISMATCH"),
    ("DeleteModelType", {"name": CTR, "etag": "r0"}, grpc.StatusCode.ABORTED, "ETAG_MISMATCH"),
    ("DeleteTeam", {"name": "teams/feed"}, PRECONDITION, "RESOURCE_IN_USE"),
    ("DeleteRegion", {"name": "regions/eu"}, PRECONDITION, "RESOURCE_IN_USE"),
    ("DeleteModelType", {"name": CTR}, PRECONDITION, "RESOURCE_IN_USE"),
    ("DeleteModel", {"name": OLD}, PRECONDITION, "RESOURCE_IN_USE"),
    ("CreateModelType", TYPE | {"model_type": pb.ModelType(team="teams/no")}, PRECONDITION, "REFERENCE_NOT_FOUND"),
    (
        "UpdateModel",
        {"model": pb.Model(name=NEW, serving_spec=spec(artifact="b")), "update_mask": mask("serving_spec")},
        INVALID,
        "FIELD_IMMUTABLE",
    ),
    (
        "UpdateModelType",
        {"model_type": pb.ModelType(name=CTR, baseline=NEW), "update_mask": mask("baseline")},
        PRECONDITION,
        "FIELD_OWNED_BY_LAUNCHES",
    ),
    ("UpdateModel", {"model": pb.Model(name=NEW, role=pb.Model.BASELINE)}, PRECONDITION, "FIELD_OWNED_BY_LAUNCHES"),
    (
        "CreateModelType",
        TYPE | {"model_type": pb.ModelType(team="teams/feed", splits=[split(old=10_000)])},
        PRECONDITION,
        "FIELD_OWNED_BY_LAUNCHES",
    ),
    (
        "AdoptServing",
        {
            "model_type": CTR,
            "role_changes": [
                pb.RoleChange(model=NEW, role=pb.Model.BASELINE),
                pb.RoleChange(model=OLD, role=pb.Model.RETIRED),
            ],
            "splits": [split(new=10_000)],
        },
        PRECONDITION,
        "FIELD_OWNED_BY_LAUNCHES",
    ),
]


async def test_refusals_say_why_and_change_nothing(registry: Registry, subtests: pytest.Subtests) -> None:
    before = await current(registry)
    for number, (method, fields, code, reason) in enumerate(REFUSALS):
        with subtests.test(f"{number}: {method}, {reason}"):
            await refused(getattr(registry, method)(**fields), code, reason)
            assert await current(registry) == before


BAD_INPUT: list[tuple[str, dict[str, Any], str]] = [
    ("GetTeam", {"name": "team/x"}, "name"),
    ("GetTeam", {"name": ""}, "name"),
    ("GetModel", {"name": CTR}, "name"),
    ("ListModels", {"parent": "teams/feed"}, "parent"),
    ("GetRevision", {"name": "revisions/x"}, "name"),
    ("ListRevisions", {"resource": "x"}, "resource"),
    ("ListServingStatuses", {"model_type": "x"}, "model_type"),
    ("CreateTeam", TEAM | {"team_id": "Feed Ranking"}, "team_id"),
    ("CreateTeam", TEAM | {"request_id": "x"}, "request_id"),
    ("CreateTeam", TEAM | {"reason": "x" * 1001}, "reason"),
    ("CreateTeam", {"team_id": "x"}, "team"),
    ("CreateRegion", {"region_id": "x", "region": pb.Region()}, "region.agent_address"),
    ("CreateModelType", TYPE | {"model_type_id": "X"}, "model_type_id"),
    ("CreateModelType", {"model_type_id": "x", "model_type": pb.ModelType()}, "model_type.team"),
    ("CreateModel", MODEL | {"parent": "modelTypes/-"}, "parent"),
    ("CreateModel", MODEL | {"model_id": ""}, "model_id"),
    ("CreateModel", MODEL | {"model": pb.Model()}, "model.serving_spec"),
    ("UpdateTeam", {"team": pb.Team(name="x")}, "team.name"),
    ("UpdateTeam", {"team": pb.Team(name="teams/feed"), "update_mask": mask("nope")}, "update_mask"),
    ("UpdateTeam", {"team": pb.Team(name="teams/feed", display_name="x" * 201)}, "team.display_name"),
    ("UpdateRegion", {"region": pb.Region(name="regions/eu", agent_address="x")}, "region.agent_address"),
    ("UpdateModelType", {"model_type": pb.ModelType(name=CTR, upstream_types=[CTR])}, "model_type.upstream_types"),
    ("UpdateModel", {"model": pb.Model(name=NEW, labels={"A": "b"})}, "model.labels.A"),
    ("AdoptServing", {"model_type": CTR}, "role_changes"),
]


async def test_bad_input_is_answered_with_its_path(registry: Registry, subtests: pytest.Subtests) -> None:
    before = await current(registry)
    for number, (method, fields, path) in enumerate(BAD_INPUT):
        with subtests.test(f"{number}: {method}, {path}"):
            found = await refused(getattr(registry, method)(**fields), INVALID, "INVALID_FIELDS")
            assert path in found.paths
            assert await current(registry) == before


async def test_roles_are_bound_by_team(registry: Registry) -> None:
    owners = pb.RoleBinding(role=permission_pb2.OWNER, members=["olga"])
    engineers = pb.RoleBinding(role=permission_pb2.ENGINEER, members=["eve"])
    await registry.UpdateTeam(team=pb.Team(name="teams/feed", role_bindings=[owners, engineers]))
    await registry.CreateTeam(team_id="ads", team=pb.Team())
    olga, eve, vera = registry.as_("olga"), registry.as_("eve"), registry.as_("vera")
    assert (await vera.GetTeam(name="teams/feed")).name == "teams/feed"
    await eve.UpdateModelType(model_type=pb.ModelType(name=CTR, purpose="by eve"))
    await eve.CreateModel(parent=CTR, model_id="e", model=pb.Model(serving_spec=spec()))
    await olga.UpdateTeam(team=pb.Team(name="teams/feed", on_call="olga"))
    (last,) = (await registry.ListRevisions(page_size=1)).revisions
    assert (last.actor, last.actor_asserted) == ("olga", True)
    for call in (
        vera.UpdateModelType(model_type=pb.ModelType(name=CTR, purpose="x")),
        eve.UpdateTeam(team=pb.Team(name="teams/feed", on_call="eve")),
        eve.DeleteModelType(name=CTR),
        eve.CreateModelType(model_type_id="x", model_type=pb.ModelType(team="teams/ads")),
        olga.UpdateTeam(team=pb.Team(name="teams/ads", on_call="x")),
        olga.CreateTeam(team_id="x", team=pb.Team()),
        olga.FinalizeLaunch(**registry_calls.swap(1)),
        olga.ReportServing(statuses=[]),
    ):
        await refused(call, grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING")
    capacity = pb.RoleBinding(role=permission_pb2.CAPACITY_OWNER, members=["olga"])
    call = olga.UpdateTeam(team=pb.Team(name="teams/feed", role_bindings=[owners, capacity]))
    await refused(call, grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING")
