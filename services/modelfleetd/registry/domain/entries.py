"""Creating, changing and deleting entries of the ledger: each function decides the edits of one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modelfleetd.errors import (
    FieldViolation,
    InvalidFields,
    ReferenceNotFound,
    ResourceInUse,
    ResourceNotFound,
    RoleMissing,
)
from modelfleetd.registry.domain import edits, rules, tiers
from modelfleetd.registry.domain.asset_entries import is_asset, without
from modelfleetd.registry.domain.attributes import wrong_attributes
from modelfleetd.registry.domain.dependencies import Dependencies, follow_up, refuse_circle
from modelfleetd.registry.domain.evidence_entries import deleted as deleted_evidence
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.masks import merge
from modelfleetd.registry.domain.monitoring import expect_declared
from modelfleetd.registry.domain.resources import (
    Model,
    ModelRole,
    ModelType,
    Region,
    Role,
    Team,
)
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.domain.roles import launch_command, refuse_launch_owned
from modelfleetd.registry.domain.schemas import SchemaTarget
from modelfleetd.registry.domain.type_names import naming, wrong_id


def create_team(ledger: Ledger, asked: Team, uid: str) -> Edits:
    """Decides CreateTeam."""
    edits.refuse_existing(ledger, asked.name)
    return edits.created(rules.check_team(asked), uid)


def update_team(ledger: Ledger, asked: Team, mask: Sequence[str], caller: str, *, is_admin: bool) -> Edits:
    """Decides UpdateTeam. Only administrators name capacity owners: owners could give themselves quota otherwise."""
    current = edits.current(ledger.team(asked.name), asked.name, asked.etag)
    team = rules.check_team(merge(current, asked, mask, field="team"))
    if not is_admin and _capacity_owners(team) - _capacity_owners(current):
        raise RoleMissing(caller, "UpdateTeam with new capacity owners", [Role.ADMIN.name], asked.name)
    return edits.changed(current, team)


def _capacity_owners(team: Team) -> frozenset[str]:
    bindings = (binding for binding in team.role_bindings if binding.role is Role.CAPACITY_OWNER)
    return frozenset(member for binding in bindings for member in binding.members)


def delete_team(ledger: Ledger, name: str, etag: str) -> Edits:
    """Decides DeleteTeam: of a team that owns nothing."""
    current = edits.current(ledger.team(name), name, etag)
    edits.refuse_in_use(name, ledger.referrers(name))
    return edits.deleted(current)


def create_region(ledger: Ledger, asked: Region, uid: str) -> Edits:
    """Decides CreateRegion."""
    edits.refuse_existing(ledger, asked.name)
    region = rules.check_region(asked)
    _expect_failover_regions(ledger, region)
    return edits.created(region, uid)


def update_region(ledger: Ledger, asked: Region, mask: Sequence[str]) -> Edits:
    """Decides UpdateRegion."""
    current = edits.current(ledger.region(asked.name), asked.name, asked.etag)
    region = rules.check_region(merge(current, asked, mask, field="region"))
    _expect_failover_regions(ledger, region)
    return edits.changed(current, region)


def delete_region(ledger: Ledger, name: str, etag: str) -> Edits:
    """Decides DeleteRegion: of a region that nothing refers to."""
    current = edits.current(ledger.region(name), name, etag)
    edits.refuse_in_use(name, ledger.referrers(name))
    return edits.deleted(current)


def create_model_type(ledger: Ledger, asked: ModelType, uid: str) -> Edits:
    """Decides CreateModelType."""
    edits.refuse_existing(ledger, asked.name)
    refuse_launch_owned(asked)
    derived_later = replace(asked, required_tier=None, required_tier_path=(), tier_grant=None, naming={})
    model_type = rules.check_model_type(derived_later)
    _expect_conforming(ledger, model_type, wrong_id(ledger, asked.name))
    _expect_references(ledger, model_type)
    tiers.refuse_raise(None, model_type)
    model_type = replace(model_type, naming=naming(ledger, asked.name))
    return edits.created(model_type, uid) + follow_up(ledger, None, model_type)


def update_model_type(ledger: Ledger, asked: ModelType, mask: Sequence[str]) -> Edits:
    """Decides UpdateModelType."""
    current = edits.current(ledger.model_type(asked.name), asked.name, asked.etag)
    command = launch_command(asked.name)
    model_type = rules.check_model_type(merge(current, asked, mask, field="model_type", command=command))
    _expect_conforming(ledger, model_type)
    _expect_references(ledger, model_type)
    model_type = replace(model_type, naming=naming(ledger, asked.name))
    for split in model_type.splits:
        if split.shares and split.region not in model_type.regions:
            raise ResourceInUse(split.region, [f"{model_type.name} (its split there)"])
    tiers.refuse_raise(current, model_type)
    model_type, requests = tiers.settled(ledger, current, model_type)
    return edits.changed(current, model_type) + follow_up(ledger, current, model_type) + requests


def delete_model_type(ledger: Ledger, name: str, etag: str) -> Edits:
    """Decides DeleteModelType: of a type without models that no other type consumes. Assets do not keep it."""
    current = edits.current(ledger.model_type(name), name, etag)
    referrers = [each for each in ledger.referrers(name) if not is_asset(each)]
    edits.refuse_in_use(name, [*referrers, *(model.name for model in ledger.models_of(name))])
    left_behind = without(ledger, name) + tiers.abandoned(ledger, name)
    return edits.deleted(current) + follow_up(ledger, current, None) + left_behind


def create_model(ledger: Ledger, asked: Model, uid: str) -> Edits:
    """Decides CreateModel: registers a candidate, its serving spec complete and with its digest."""
    model_type = ledger.model_type(asked.model_type)
    if model_type is None:
        raise ResourceNotFound(asked.model_type)
    edits.refuse_existing(ledger, asked.name)
    refuse_launch_owned(asked)
    model = rules.check_model(replace(asked, tier_grant=None))
    expect_declared(model, None, model_type)
    _expect_conforming(ledger, model)
    tiers.refuse_raise(None, model)
    spec = None if model.serving_spec is None else model.serving_spec.complete()
    return edits.created(replace(model, role=ModelRole.CANDIDATE, serving_spec=spec), uid)


def update_model(ledger: Ledger, asked: Model, mask: Sequence[str]) -> Edits:
    """Decides UpdateModel: of anything but the serving spec and the role."""
    current = edits.current(ledger.model(asked.name), asked.name, asked.etag)
    # Compared as it would be stored, so that leaving out a default is no change.
    spec = None if asked.serving_spec is None else asked.serving_spec.complete()
    merged = merge(
        current,
        replace(asked, serving_spec=spec),
        mask,
        field="model",
        command=launch_command(current.model_type, asked.name),
        instead="register a new model instead",
    )
    model = rules.check_model(merged)
    model_type = ledger.model_type(model.model_type)
    assert model_type is not None
    expect_declared(model, current, model_type)
    _expect_conforming(ledger, model)
    tiers.refuse_raise(current, model)
    model, requests = tiers.settled(ledger, current, model)
    return edits.changed(current, model) + requests


def delete_model(ledger: Ledger, name: str, etag: str) -> Edits:
    """Decides DeleteModel: of a model whose role does not serve. Its evidence goes with it; assets do not keep it."""
    current = edits.current(ledger.model(name), name, etag)
    if current.role is not None and current.role.serves:
        edits.refuse_in_use(name, [f"{current.model_type} (as its {current.role.name})"])
    left_behind = without(ledger, name) + tiers.abandoned(ledger, name)
    return edits.deleted(current) + deleted_evidence(ledger.evidence_of(name)) + left_behind


def _expect_conforming(ledger: Ledger, entry: ModelType | Model, wrong: Sequence[FieldViolation] = ()) -> None:
    """Raises InvalidFields where an entry's attributes do not fulfil the schemas, or with what else is wrong."""
    if isinstance(entry, ModelType):
        found = wrong_attributes(ledger, SchemaTarget.MODEL_TYPE, entry.attributes, "model_type")
    else:
        found = wrong_attributes(ledger, SchemaTarget.MODEL, entry.attributes, "model")
    if wrong or found:
        raise InvalidFields([*wrong, *found])


def _expect_failover_regions(ledger: Ledger, region: Region) -> None:
    for index, share in enumerate(region.failover_shares):
        if ledger.region(share.region) is None:
            raise ReferenceNotFound(f"region.failover_shares[{index}].region", share.region)


def _expect_references(ledger: Ledger, model_type: ModelType) -> None:
    if ledger.team(model_type.team) is None:
        raise ReferenceNotFound("model_type.team", model_type.team)
    for index, region in enumerate(model_type.regions):
        if ledger.region(region) is None:
            raise ReferenceNotFound(f"model_type.regions[{index}]", region)
    if model_type.demand_source is not None:
        for index, stated in enumerate(model_type.demand_source.stated):
            if ledger.region(stated.region) is None:
                raise ReferenceNotFound(f"model_type.demand_source.stated[{index}].region", stated.region)
    # Before the circle is looked for: a type that names itself exists only after the call.
    refuse_circle(Dependencies(ledger, model_type.name, model_type))
    for index, upstream in enumerate(model_type.upstream_types):
        if ledger.model_type(upstream) is None:
            raise ReferenceNotFound(f"model_type.upstream_types[{index}]", upstream)
