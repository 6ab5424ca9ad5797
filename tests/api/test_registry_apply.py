"""ApplyEntries through a real channel and PostgreSQL: many entries in one revision, by the rules of single methods."""

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
DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with registry_calls.registry(database_url) as found:
        await populate(found)
        yield found


def change(etag: str = "", mask: tuple[str, ...] = (), **entry: Any) -> pb.EntryChange:
    return pb.EntryChange(etag=etag, update_mask=FieldMask(paths=mask), **entry)


async def current(registry: Registry) -> int:
    return int((await registry.ListTeams()).revision)


def new_type(key: str, **fields: Any) -> pb.ModelType:
    stated: dict[str, Any] = {"name": f"modelTypes/{key}", "team": "teams/feed", "regions": ["regions/eu"]}
    return pb.ModelType(**(stated | fields))


def new_model(key: str, of: str, **fields: Any) -> pb.Model:
    stated: dict[str, Any] = {"name": f"modelTypes/{of}/models/{key}", "serving_spec": spec()}
    return pb.Model(**(stated | fields))


async def test_many_entries_are_one_revision_with_what_follows_from_them(registry: Registry) -> None:
    ctr = await registry.GetModelType(name=CTR)
    asked = [
        change(team=pb.Team(name="teams/ads", on_call="pager-ads")),
        change(region=pb.Region(name="regions/us", agent_address="host:1")),
        change(model_type=new_type("rank", tier="TIER2", upstream_types=[CTR])),
        change(model=new_model("v1", "rank")),
        change(etag=ctr.etag, mask=("purpose", "labels.site"), model_type=pb.ModelType(name=CTR, purpose="clicks")),
        change(delete=NEW),
    ]
    thought = await registry.ApplyEntries(changes=asked, validate_only=True)
    assert thought.revision == 0 and await current(registry) == ctr.revision
    made = await registry.ApplyEntries(changes=asked, reason="spring")
    assert made.revision == ctr.revision + 1
    stored = await registry.GetRevision(name=f"revisions/{made.revision}")
    assert (list(stored.changes), stored.reason) == (list(made.changes), "spring")
    assert [each.resource for each in made.changes] == [
        "teams/ads", "regions/us", "modelTypes/rank", "modelTypes/rank/models/v1", CTR, NEW,
    ]  # fmt: skip
    described = [(each.resource, each.action, list(each.fields)) for each in thought.changes]
    assert described == [(each.resource, each.action, list(each.fields)) for each in made.changes]
    # One change of the type: what was asked, and the tier that follows from its new consumer.
    assert [field.path for field in made.changes[4].fields] == ["purpose", "required_tier", "required_tier_path"]
    assert (await registry.GetModelType(name=CTR)) == made.changes[4].model_type


async def test_a_repeated_call_answers_the_same_and_writes_nothing(registry: Registry) -> None:
    again, asked = request_id(), [change(team=pb.Team(name="teams/ads"))]
    first = await registry.ApplyEntries(changes=asked, request_id=again)
    await registry.UpdateTeam(team=pb.Team(name="teams/ads", on_call="later"))
    assert await registry.ApplyEntries(changes=asked, request_id=again) == first
    call = registry.ApplyEntries(changes=[change(team=pb.Team(name="teams/x"))], request_id=again)
    await refused(call, grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_what_is_so_already_is_no_revision(registry: Registry) -> None:
    ctr = await registry.GetModelType(name=CTR)
    made = await registry.ApplyEntries(changes=[change(etag=ctr.etag, mask=("*",), model_type=ctr)])
    assert (made.revision, list(made.changes), await current(registry)) == (0, [], ctr.revision)


async def test_one_entry_that_is_wrong_keeps_all_of_them_out_and_each_is_told_where(registry: Registry) -> None:
    before = await current(registry)
    found = await refused(
        registry.ApplyEntries(
            changes=[
                change(team=pb.Team(name="teams/ads")),
                change(model_type=pb.ModelType(name="modelTypes/x")),
                change(model=pb.Model(name="modelTypes/x/models/v1")),
                change(region=pb.Region(name="Regions/Us")),
                change(delete="launches/l1"),
                change(),
                change(team=pb.Team()),
                change(mask=("on_call",), team=pb.Team(name="teams/y")),
                change(etag="r1", mask=("pager",), team=pb.Team(name="teams/feed")),
            ]
        ),
        INVALID,
        "INVALID_FIELDS",
    )
    assert set(found.paths) == {"changes[3].region.name"}, "names first: nothing else can be said before"
    found = await refused(
        registry.ApplyEntries(
            changes=[
                change(team=pb.Team(name="teams/ads")),
                change(model_type=pb.ModelType(name="modelTypes/x")),
                change(model=pb.Model(name="modelTypes/x/models/v1")),
                change(delete="launches/l1"),
                change(),
                change(team=pb.Team()),
                change(mask=("on_call",), team=pb.Team(name="teams/y")),
                change(etag="r1", mask=("pager",), team=pb.Team(name="teams/feed")),
                change(delete="teams/feed"),
                change(team=pb.Team(name="teams/feed")),
            ]
        ),
        INVALID,
        "INVALID_FIELDS",
    )
    assert set(found.paths) == {
        "changes[1].model_type.team",
        "changes[2].model.serving_spec",
        "changes[3].delete",
        "changes[4]",
        "changes[5].team.name",
        "changes[6].update_mask",
        "changes[7].update_mask",
        "changes[9]",
    }
    found = await refused(
        registry.ApplyEntries(
            changes=[
                change(team=pb.Team(name="teams/ads")),
                change(team=pb.Team(name="teams/feed")),
                change(model_type=new_type("x", regions=["regions/eu", "regions/nope"])),
                change(etag="r0", model=pb.Model(name=NEW, description="x")),
                change(delete="regions/eu"),
            ]
        ),
        grpc.StatusCode.ALREADY_EXISTS,
        "RESOURCE_EXISTS",
    )
    assert set(found.paths) == {"changes[1]", "changes[2].model_type.regions[1]", "changes[3]", "changes[4]"}
    assert found.infos[0].metadata["resource"] == "teams/feed"
    assert await current(registry) == before


async def test_one_wrong_etag_is_told_as_by_the_single_method(registry: Registry) -> None:
    team = await registry.GetTeam(name="teams/feed")
    found = await refused(
        registry.ApplyEntries(changes=[change(etag="r0", team=pb.Team(name="teams/feed", on_call="x"))]),
        grpc.StatusCode.ABORTED,
        "ETAG_MISMATCH",
    )
    assert found.infos[0].metadata["current_etag"] == team.etag


async def test_regions_that_fail_over_to_each_other_are_created_in_two_steps_of_one_revision(
    registry: Registry,
) -> None:
    def region(key: str, to: str) -> pb.Region:
        share = pb.FailoverShare(region=f"regions/{to}", share_basis_points=10_000)
        return pb.Region(name=f"regions/{key}", agent_address="host:1", failover_shares=[share])

    made = await registry.ApplyEntries(
        changes=[
            change(region=pb.Region(name="regions/us", agent_address="host:1")),
            change(region=region("asia", "us")),
            change(mask=("failover_shares",), region=region("us", "asia")),
        ]
    )
    assert [each.action for each in made.changes] == [pb.ResourceChange.CREATED] * 2
    assert (await registry.GetRegion(name="regions/us")).failover_shares[0].region == "regions/asia"


async def test_fields_that_launches_own_are_refused_but_for_what_serves_before_the_first_launch(
    registry: Registry,
) -> None:
    ctr = await registry.GetModelType(name=CTR)
    call = registry.ApplyEntries(
        changes=[change(etag=ctr.etag, mask=("baseline",), model_type=pb.ModelType(name=CTR, baseline=NEW))],
        adopt_serving=True,
    )
    found = await refused(call, PRECONDITION, "FIELD_OWNED_BY_LAUNCHES")
    assert "modelfleet launch create" in found.message

    def serving(**fields: Any) -> list[pb.EntryChange]:
        name = "modelTypes/rank"
        first, second = f"{name}/models/v1", f"{name}/models/v2"
        shares = [split().shares.add(model=first, share_basis_points=10_000)]
        stated = {"baseline": first, "splits": [{"region": "regions/eu", "shares": shares}]} | fields
        return [
            change(model_type=new_type("rank", **stated)),
            change(model=new_model("v1", "rank")),
            change(model=new_model("v2", "rank", role=pb.Model.HOLDOUT)),
            change(model=new_model("v3", "rank")),
        ] + ([change(mask=("description",), model=pb.Model(name=second, description="kept"))] if not fields else [])

    await refused(registry.ApplyEntries(changes=serving()), PRECONDITION, "FIELD_OWNED_BY_LAUNCHES")
    for wrong, where in (
        ({"baseline": ""}, "changes[0]"),
        ({"baseline": "modelTypes/rank/models/v9"}, "changes[0].model_type.baseline"),
        ({"splits": [{"region": "regions/us"}]}, "changes[0].model_type.splits[0].region"),
        ({"holdouts": ["modelTypes/rank/models/v1"]}, "changes[0].model_type.holdouts"),
    ):
        found = await refused(
            registry.ApplyEntries(changes=serving(**wrong), adopt_serving=True), INVALID, "INVALID_FIELDS"
        )
        assert where.partition(".")[0] in {path.partition(".")[0] for path in found.paths}, found.paths
    made = await registry.ApplyEntries(changes=serving(), adopt_serving=True)
    adopted = await registry.GetModelType(name="modelTypes/rank")
    assert adopted.baseline == "modelTypes/rank/models/v1"
    assert list(adopted.holdouts) == ["modelTypes/rank/models/v2"]
    assert adopted.splits[0].shares[0].share_basis_points == 10_000
    roles = [(await registry.GetModel(name=f"modelTypes/rank/models/{key}")).role for key in ("v1", "v2", "v3")]
    assert roles == [pb.Model.BASELINE, pb.Model.HOLDOUT, pb.Model.CANDIDATE]
    assert all(each.action == pb.ResourceChange.CREATED for each in made.changes)
    assert adopted.revision == adopted.serving_revision == made.revision


async def test_each_entry_takes_the_role_that_its_own_method_asks_for(registry: Registry) -> None:
    def bound(team: str, **roles: list[str]) -> pb.Team:
        bindings = [pb.RoleBinding(role=permission_pb2.Role.Value(role), members=who) for role, who in roles.items()]
        return pb.Team(name=f"teams/{team}", role_bindings=bindings)

    await registry.UpdateTeam(team=bound("feed", ENGINEER=["eve", "both"], OWNER=["olga"], VIEWER=["vic"]))
    await registry.CreateTeam(team_id="ads", team=bound("ads", ENGINEER=["adam", "both"]))
    ctr, new = await registry.GetModelType(name=CTR), await registry.GetModel(name=NEW)
    update = change(etag=ctr.etag, mask=("purpose",), model_type=pb.ModelType(name=CTR, purpose="x"))
    move = change(etag=ctr.etag, mask=("team",), model_type=pb.ModelType(name=CTR, team="teams/ads"))
    model = change(etag=new.etag, model=pb.Model(name=NEW, description="x"))
    for who, entry, method in (
        ("vic", update, "UpdateModelType"),
        ("adam", update, "UpdateModelType"),
        ("adam", model, "UpdateModel"),
        ("adam", change(model=new_model("v9", "ctr")), "CreateModel"),
        ("adam", change(delete=NEW), "DeleteModel"),
        ("eve", change(delete=NEW), "DeleteModel"),
        ("eve", move, "UpdateModelType"),
        ("eve", change(team=pb.Team(name="teams/new")), "CreateTeam"),
        ("eve", change(region=pb.Region(name="regions/new", agent_address="h:1")), "CreateRegion"),
        ("eve", change(model_type=new_type("x", team="teams/ads")), "CreateModelType"),
        ("olga", change(delete="teams/ads"), "DeleteTeam"),
        ("eve", change(etag="r1", team=pb.Team(name="teams/feed", on_call="x")), "UpdateTeam"),
    ):
        found = await refused(registry.as_(who).ApplyEntries(changes=[entry]), DENIED, "ROLE_MISSING")
        assert found.infos[0].metadata["method"] == method
    # Together with what is allowed, and hidden behind it.
    mixed = [change(model_type=new_type("y")), change(team=pb.Team(name="teams/new"))]
    await refused(registry.as_("eve").ApplyEntries(changes=mixed), DENIED, "ROLE_MISSING")
    # What the call itself gives does not count for the call.
    feed = await registry.GetTeam(name="teams/feed")
    grab = change(etag=feed.etag, mask=("role_bindings",), team=bound("feed", OWNER=["olga"], APPROVER=["olga"]))
    await registry.as_("olga").ApplyEntries(changes=[grab], validate_only=True)
    far = [change(model_type=new_type("z")), change(mask=("team",), model_type=new_type("z", team="teams/ads"))]
    await refused(registry.as_("eve").ApplyEntries(changes=far), DENIED, "ROLE_MISSING")
    made = await registry.as_("both").ApplyEntries(changes=[move, model, change(model=new_model("v9", "ctr"))])
    assert (await registry.GetRevision(name=f"revisions/{made.revision}")).actor == "both"
    # Adoption is its own method, with its own role.
    serving = [
        change(model_type=new_type("rank", baseline="modelTypes/rank/models/v1")),
        change(model=new_model("v1", "rank")),
    ]
    call = registry.as_("eve").ApplyEntries(changes=serving, adopt_serving=True)
    found = await refused(call, DENIED, "ROLE_MISSING")
    assert found.infos[0].metadata["method"] == "AdoptServing"


async def test_a_set_that_is_too_large_is_refused_with_its_size(registry: Registry) -> None:
    many = [change(team=pb.Team(name=f"teams/t{number}")) for number in range(2001)]
    found = await refused(registry.ApplyEntries(changes=many), INVALID, "INVALID_FIELDS")
    assert found.paths["changes"] == "must be at most 2,000, they are 2,001; send them in parts"
    labels = {f"k{number}": "x" * 200 for number in range(64)}
    heavy = [change(team=pb.Team(name=f"teams/t{number}", labels=labels)) for number in range(250)]
    found = await refused(registry.ApplyEntries(changes=heavy), INVALID, "INVALID_FIELDS")
    assert "must have at most 3.0 MiB, they have 3.2 MiB" in found.paths["changes"]
    # Small enough to send, and too large as a revision: with every field before and after, and the entry as it is then.
    heavy = heavy[:200]
    for validate_only in (True, False):
        call = registry.ApplyEntries(changes=heavy, validate_only=validate_only)
        found = await refused(call, INVALID, "INVALID_FIELDS")
        assert "of at most 3.5 MiB" in found.paths["changes"]


async def test_two_thousand_entries_reach_a_watcher_in_one_message_of_the_usual_size(registry: Registry) -> None:
    before = await current(registry)
    many = [change(model_type=new_type("rank"))]
    many += [
        change(model=new_model(f"m{number}", "rank", description="one of many", labels={"batch": "first"}))
        for number in range(1999)
    ]
    registry.timeout = 60.0
    made = await registry.ApplyEntries(changes=many)
    assert made.revision == before + 1 and len(made.changes) == 2000
    assert len((await registry.ListModels(parent="modelTypes/rank", page_size=1000)).models) == 1000
    # This channel takes no more than gRPC's default of 4 MiB.
    watch = registry.WatchRevisions(after_revision=before)
    answers = [answer async for answer in _until_a_revision(watch)]
    assert len(answers[-1].revision.changes) == 2000


async def _until_a_revision(watch: Any) -> AsyncIterator[pb.WatchRevisionsResponse]:
    async for answer in watch:
        yield answer
        if answer.HasField("revision"):
            watch.cancel()
            return


async def test_the_roles_of_old_models_stay_with_launches(registry: Registry) -> None:
    old = await registry.GetModel(name=OLD)
    same = change(etag=old.etag, mask=("*",), model=old)
    assert (await registry.ApplyEntries(changes=[same], adopt_serving=True)).revision == 0
    other = change(etag=old.etag, model=pb.Model(name=OLD, role=pb.Model.RETIRED))
    for adopt in (True, False):
        call = registry.ApplyEntries(changes=[other], adopt_serving=adopt)
        found = await refused(call, PRECONDITION, "FIELD_OWNED_BY_LAUNCHES")
        assert "changes[0].model.role" in found.paths
