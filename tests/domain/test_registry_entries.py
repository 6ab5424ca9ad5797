"""What may be registered, changed and deleted, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modelfleetd.errors import (
    EtagMismatch,
    FieldImmutable,
    FieldOwnedByLaunches,
    FleetError,
    InvalidFields,
    ReferenceNotFound,
    ResourceExists,
    ResourceInUse,
    ResourceNotFound,
    RoleMissing,
)
from modelfleetd.registry.domain import entries
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import (
    DemandSource,
    FailoverShare,
    Model,
    ModelRole,
    ModelType,
    Region,
    RegionDemand,
    Role,
    RoleBinding,
    Team,
)
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.domain.serving import Protocol
from tests.support.registry import LedgerOf, fleet, model, model_type, region, serving, spec, split, team


def only(edits: Edits) -> object:
    (edit,) = edits
    return edit.after


def test_a_new_entry_gets_its_uid_and_keeps_what_was_asked() -> None:
    made = only(entries.create_team(LedgerOf(), team(on_call="pager"), "u1"))
    assert made == team(on_call="pager", uid="u1")


@pytest.mark.parametrize(
    ("create", "asked"),
    [
        (entries.create_team, team()),
        (entries.create_region, region()),
        (entries.create_model_type, model_type()),
        (entries.create_model, model("old")),
    ],
)
def test_a_name_is_given_once(create: object, asked: object) -> None:
    with pytest.raises(ResourceExists):
        create(fleet(), asked, "u")  # type: ignore[operator]


def test_a_model_becomes_a_candidate_with_its_spec_complete_and_digested() -> None:
    made = only(entries.create_model(fleet(), model("v9"), "u"))
    assert isinstance(made, Model)
    assert made.role is ModelRole.CANDIDATE
    assert made.serving_spec is not None
    assert (made.serving_spec.protocol, made.serving_spec.units_per_replica) == (Protocol.OPEN_INFERENCE_V2_GRPC, 1)
    assert made.serving_spec.digest.startswith("sha256:")


def test_the_digest_is_the_same_whether_defaults_are_written_or_not_and_differs_with_content() -> None:
    plain, written = spec().complete(), spec(units_per_replica=1, digest="sha256:lie").complete()
    assert plain.digest == written.digest
    assert plain.digest != spec(artifact="other").complete().digest
    # Pinned: approvals of years ago are bound to it.
    assert plain.digest == "sha256:939d8386ef2078b0d53a249a5c235153732eb397fda2557c4100263a18fe421e"


def test_a_model_of_an_unknown_type_is_not_found() -> None:
    with pytest.raises(ResourceNotFound):
        entries.create_model(fleet(), model(of="nope"), "u")


@pytest.mark.parametrize(
    ("asked", "field", "missing"),
    [
        (model_type("x", team="teams/nope"), "model_type.team", "teams/nope"),
        (model_type("x", regions=("regions/eu", "regions/nope")), "model_type.regions[1]", "regions/nope"),
        (model_type("x", upstream_types=("modelTypes/nope",)), "model_type.upstream_types[0]", "modelTypes/nope"),
        (
            model_type("x", demand_source=DemandSource(stated=(RegionDemand(region="regions/nope"),))),
            "model_type.demand_source.stated[0].region",
            "regions/nope",
        ),
    ],
)
def test_a_type_refers_to_what_exists(asked: ModelType, field: str, missing: str) -> None:
    with pytest.raises(ReferenceNotFound) as refused:
        entries.create_model_type(fleet(), asked, "u")
    assert refused.value.metadata == {"field": field, "resource": missing}


def test_a_region_fails_over_to_what_exists() -> None:
    shares = (FailoverShare(region="regions/us", share_basis_points=1),)
    with pytest.raises(ReferenceNotFound):
        entries.create_region(fleet(), region("asia", failover_shares=shares), "u")
    with pytest.raises(ReferenceNotFound):
        entries.update_region(fleet(), region(failover_shares=shares), ())
    assert entries.create_region(fleet(region("us")), region("asia", failover_shares=shares), "u")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (model_type("x", baseline="modelTypes/x/models/m"), "model_type.baseline"),
        (model_type("x", holdouts=("modelTypes/x/models/m",)), "model_type.holdouts"),
        (model_type("x", splits=(split(of="x", m=10_000),)), "model_type.splits"),
    ],
)
def test_a_new_type_has_no_baseline_before_a_launch_gives_it_one(asked: ModelType, field: str) -> None:
    with pytest.raises(FieldOwnedByLaunches) as refused:
        entries.create_model_type(fleet(), asked, "u")
    assert refused.value.metadata == {
        "field": field,
        "command": "modelfleet launch create modelTypes/x/models/MODEL",
    }


def test_a_new_model_has_no_role_before_a_launch_gives_it_one() -> None:
    with pytest.raises(FieldOwnedByLaunches):
        entries.create_model(fleet(), model("v9", role=ModelRole.BASELINE), "u")


def test_what_launches_own_is_passed_over_when_it_is_sent_back_as_it_was() -> None:
    ledger = fleet()
    current = ledger.model_type("modelTypes/ctr")
    assert current is not None
    assert entries.update_model_type(ledger, current, ()) == ()
    assert entries.update_model_type(ledger, model_type(purpose="new"), ("*",))
    for changed in (model_type(baseline="modelTypes/ctr/models/new"), model_type(splits=(split(new=10_000),))):
        with pytest.raises(FieldOwnedByLaunches):
            entries.update_model_type(ledger, changed, ())
    with pytest.raises(FieldOwnedByLaunches):
        entries.update_model_type(ledger, current, ("baseline",))
    with pytest.raises(FieldOwnedByLaunches):
        entries.update_model(ledger, model("new", role=ModelRole.BASELINE), ())


def test_a_serving_spec_never_changes() -> None:
    ledger = fleet()
    for asked, mask in (
        (model("new", serving_spec=spec(artifact="b")), ()),
        (model("new", serving_spec=spec(artifact="b")), ("*",)),
        (model("new", serving_spec=spec(artifact="b")), ("serving_spec",)),
        (model("new", serving_spec=spec(artifact="b")), ("description", "serving_spec.artifact")),
    ):
        with pytest.raises(FieldImmutable) as refused:
            entries.update_model(ledger, asked, mask)
        assert refused.value.metadata == {"field": "model.serving_spec"}
    # Sent back as it was registered, defaults left out, it is no change.
    (edit,) = entries.update_model(ledger, model("new", description="better"), ())
    assert isinstance(edit.after, Model)
    assert edit.after.description == "better"


def test_an_update_without_a_difference_edits_nothing() -> None:
    assert entries.update_team(fleet(), team(), (), "a", is_admin=False) == ()
    assert entries.update_model(fleet(), model("new"), ()) == ()


@pytest.mark.parametrize("name", ["teams/nope", "regions/nope", "modelTypes/nope", "modelTypes/ctr/models/nope"])
def test_what_does_not_exist_is_neither_changed_nor_deleted(name: str) -> None:
    ledger = fleet()
    calls: list[Callable[[], object]] = [
        lambda: entries.update_team(ledger, Team(name=name), (), "a", is_admin=True),
        lambda: entries.delete_team(ledger, name, ""),
        lambda: entries.update_region(ledger, Region(name=name), ()),
        lambda: entries.delete_region(ledger, name, ""),
        lambda: entries.update_model_type(ledger, ModelType(name=name), ()),
        lambda: entries.delete_model_type(ledger, name, ""),
        lambda: entries.update_model(ledger, Model(name=name), ()),
        lambda: entries.delete_model(ledger, name, ""),
    ]
    for call in calls:
        with pytest.raises(ResourceNotFound) as refused:
            call()
        assert refused.value.metadata == {"resource": name}


def test_an_old_etag_is_refused_and_the_current_one_told() -> None:
    calls: list[Callable[[], object]] = [
        lambda: entries.update_model_type(fleet(), model_type(purpose="x", etag="r6"), ()),
        lambda: entries.delete_model_type(fleet(), "modelTypes/ctr", "r6"),
    ]
    for call in calls:
        with pytest.raises(EtagMismatch) as refused:
            call()
        assert refused.value.metadata == {"resource": "modelTypes/ctr", "etag": "r6", "current_etag": "r7"}
    assert entries.update_model_type(fleet(), model_type(purpose="x", etag="r7"), ())


def _refused_in_use(call: Callable[[], object]) -> str:
    with pytest.raises(ResourceInUse) as refused:
        call()
    return refused.value.metadata["referred_by"]


def test_what_others_refer_to_is_not_deleted() -> None:
    us = region("us", failover_shares=(FailoverShare(region="regions/eu", share_basis_points=1),))
    consumer = model_type("feed", upstream_types=("modelTypes/leaf",), regions=())
    ledger = fleet(us, consumer, model_type("leaf", regions=()), serving(ModelRole.RETIRED, "gone"))
    assert _refused_in_use(lambda: entries.delete_team(ledger, "teams/feed", "")).startswith("modelTypes/ctr")
    assert _refused_in_use(lambda: entries.delete_region(ledger, "regions/eu", "")) == "modelTypes/ctr, regions/us"
    assert _refused_in_use(lambda: entries.delete_model_type(ledger, "modelTypes/leaf", "")) == "modelTypes/feed"
    assert "models/old" in _refused_in_use(lambda: entries.delete_model_type(ledger, "modelTypes/ctr", ""))
    assert "BASELINE" in _refused_in_use(lambda: entries.delete_model(ledger, "modelTypes/ctr/models/old", ""))
    assert entries.delete_model(ledger, "modelTypes/ctr/models/new", "")
    assert entries.delete_model(ledger, "modelTypes/ctr/models/gone", "")
    assert entries.delete_region(ledger, "regions/us", "")


def test_a_region_with_traffic_stays_with_its_type() -> None:
    with pytest.raises(ResourceInUse):
        entries.update_model_type(fleet(), model_type(regions=()), ("regions",))


def test_a_tier_reaches_every_type_that_is_consumed_in_the_same_revision() -> None:
    ledger = fleet(
        model_type("a", upstream_types=("modelTypes/b",), tier=Tier.TIER3),
        model_type("b", upstream_types=("modelTypes/c",), required_tier=Tier.TIER3),
        model_type("c", required_tier=Tier.TIER3),
    )
    edits = entries.update_model_type(ledger, model_type("a", tier=Tier.TIER2), ("tier",))
    required = {edit.name: edit.after.required_tier for edit in edits[1:] if isinstance(edit.after, ModelType)}
    assert required == {"modelTypes/b": Tier.TIER2, "modelTypes/c": Tier.TIER2}
    edits = entries.delete_model_type(ledger, "modelTypes/a", "")
    assert [(edit.name, edit.after and edit.after.name) for edit in edits] == [
        ("modelTypes/a", None),
        ("modelTypes/b", "modelTypes/b"),
        ("modelTypes/c", "modelTypes/c"),
    ]


def test_owners_give_roles_but_not_those_of_the_installation_nor_capacity() -> None:
    def bound(role: Role) -> Team:
        return team(role_bindings=(RoleBinding(role=role, members=("bob",)),))

    def update(asked: Team, *, is_admin: bool) -> Edits:
        return entries.update_team(fleet(), asked, ("role_bindings",), "alice", is_admin=is_admin)

    assert update(bound(Role.ONCALL), is_admin=False)
    refusals: list[type[FleetError]] = []
    for role in (Role.ADMIN, Role.SERVICE, Role.CAPACITY_OWNER):
        with pytest.raises((InvalidFields, RoleMissing)) as refused:
            update(bound(role), is_admin=False)
        refusals.append(type(refused.value))
    assert refusals == [InvalidFields, InvalidFields, RoleMissing]
    assert update(bound(Role.CAPACITY_OWNER), is_admin=True)
    with pytest.raises(InvalidFields):
        update(bound(Role.ADMIN), is_admin=True)
